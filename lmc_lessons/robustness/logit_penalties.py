r"""Losses that ask for small logits: label smoothing, logit squeezing, clean logit pairing.

Each is an objective around the inputs of another one, so each can be trained with or without
attacks: ``LogitSqueezing(0.05)`` sees clean inputs, ``LogitSqueezing(0.05,
AdversarialTraining(...))`` those that the attack finds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.robustness.bounded_logits import check_share, check_weight
from lmc_lessons.robustness.objectives import Objective, Standard
from lmc_lessons.training import Network


@dataclass(frozen=True)
class LabelSmoothing:
    r"""Cross-entropy with the target $(1 - \alpha)\, e_y + \alpha / K$. Equation (eq-blf-smooth).

    Attributes:
        alpha: Share of the target that is spread over all classes, in [0, 1).
        around: Whose inputs are trained on.

    Source:
        szegedy2016rethinking.

    Taught in: book/robustness/bounded-logits
    """

    alpha: float
    around: Objective = field(default_factory=Standard)

    def __post_init__(self) -> None:
        """Refuse a share outside [0, 1)."""
        check_share(self.alpha)

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The inputs to train on."""
        return self.around.inputs(network, x, y)

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """Mean smoothed cross-entropy per network, in nats, shape (S,)."""
        del x
        return smoothed_cross_entropy(network(found), y, self.alpha).mean(1)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Both, one after the other."""
        return self.loss(network, x, self.inputs(network, x, y), y)


@dataclass(frozen=True)
class LogitSqueezing:
    r"""Cross-entropy plus $\frac{\lambda}{2} \|z\|_2^2$. Equation (eq-blf-squeeze).

    Attributes:
        weight: The weight $\lambda$, at least 0.
        around: Whose inputs are trained on.

    Source:
        kannan2018logit; there is also code that penalises the length itself instead of its square.

    Taught in: book/robustness/bounded-logits
    """

    weight: float
    around: Objective = field(default_factory=Standard)

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        check_weight("weight", self.weight)

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The inputs to train on."""
        return self.around.inputs(network, x, y)

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy plus penalty per network, shape (S,)."""
        del x
        logits = network(found)
        return (smoothed_cross_entropy(logits, y, 0) + self.weight * squeeze(logits)).mean(1)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Both, one after the other."""
        return self.loss(network, x, self.inputs(network, x, y), y)


@dataclass(frozen=True)
class LogitPairing:
    r"""Cross-entropy plus $\lambda \|z(x_i) - z(x_j)\|_2^2$ on pairs of unrelated samples.

    Equation (eq-blf-pair). Sample i of the first half of a batch meets sample i of the second; of
    an odd number the last stays alone.

    Attributes:
        weight: The weight $\lambda$, at least 0.
        around: Whose inputs are trained on.

    Source:
        Clean logit pairing, kannan2018logit.

    Taught in: book/robustness/bounded-logits
    """

    weight: float
    around: Objective = field(default_factory=Standard)

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        check_weight("weight", self.weight)

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The inputs to train on."""
        return self.around.inputs(network, x, y)

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy plus the mean penalty of the pairs per network, shape (S,)."""
        del x
        logits = network(found)
        labels = smoothed_cross_entropy(logits, y, 0).mean(1)
        return labels + self.weight * paired_distance(logits).mean(1)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Both, one after the other."""
        return self.loss(network, x, self.inputs(network, x, y), y)


def smoothed_cross_entropy(logits: Tensor, y: Tensor, alpha: float) -> Tensor:
    r"""Cross-entropy of every sample with a smoothed target, $\alpha = 0$ for the label itself.

    Args:
        logits: Shape (..., classes), at least two classes.
        y: Labels of shape (...,).
        alpha: Share that is spread over all classes, in [0, 1).

    Returns:
        Shape (...,), in nats.

    Raises:
        ValueError: If the share is not in [0, 1), or logits are not finite or of one class.

    Taught in: book/robustness/bounded-logits
    """
    check_share(alpha)
    _check_logits(logits)
    flat = F.cross_entropy(
        logits.flatten(0, -2), y.flatten(), reduction="none", label_smoothing=alpha
    )
    return flat.view(y.shape)


def squeeze(logits: Tensor) -> Tensor:
    r"""Half of the squared length of every vector of logits, $\frac12 \|z\|_2^2$.

    Args:
        logits: Shape (..., classes).

    Returns:
        Shape (...,).

    Raises:
        ValueError: If logits are not finite or of one class.

    Taught in: book/robustness/bounded-logits
    """
    _check_logits(logits)
    return logits.square().sum(-1) / 2


def paired_distance(logits: Tensor) -> Tensor:
    r"""Squared distances between the logits of both halves of a batch, $\|z_i - z_{i + B/2}\|_2^2$.

    Args:
        logits: Shape (..., B, classes), B at least 2.

    Returns:
        Shape (..., B // 2).

    Raises:
        ValueError: If there is no pair, or logits are not finite or of one class.

    Taught in: book/robustness/bounded-logits
    """
    _check_logits(logits)
    half = logits.shape[-2] // 2 if logits.dim() > 1 else 0
    if half < 1:
        raise ValueError(f"a pair needs at least 2 samples, got logits {tuple(logits.shape)}")
    first, second = logits[..., :half, :], logits[..., half : 2 * half, :]
    return (first - second).square().sum(-1)


def _check_logits(logits: Tensor) -> None:
    if logits.dim() == 0 or logits.shape[-1] < 2:
        raise ValueError(f"logits need at least 2 classes, got shape {tuple(logits.shape)}")
    if not bool(torch.isfinite(logits).all()):
        raise ValueError("logits must be finite, got NaN or infinity")

r"""Losses that use a few labelled anomalies: autoencoding binary classifiers and their rivals.

Labels are 0 for normal (or not labelled) and 1 for a labelled anomaly. All losses but that of
DeepSAD are functions of the reconstruction error, so several can be trained side by side on one
forward pass. The likelihood is yamanaka2019abc's; which error goes into it (a length or its square)
is known only from later code of the same group, and is a choice here.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmc_lessons.detection.autoencoders import (
    GUARD,
    ErrorKind,
    check_finite,
    check_kind,
    check_noise,
    training_errors,
)
from lmc_lessons.models import Params, predict_stacked
from lmc_lessons.training import Network

FLOOR = 1e-6  # errors below it count as this: the likelihood's slope is -1/L
LN2 = math.log(2)


def log1mexp(x: Tensor) -> Tensor:
    r"""$\log(1 - e^{-x})$ for $x > 0$ without loss of digits (eq-abc-stable).

    Below $\log 2$ the difference is small and ``expm1`` gives all its digits; above, the power of e
    is small and ``log1p`` does. Either branch sees only values for which it is finite, so that no
    NaN reaches the gradient through the branch that was not taken.

    Args:
        x: Positive numbers of any shape.

    Returns:
        The same shape; $-\infty$ at 0.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    small = torch.log(-torch.expm1(-x.clamp(max=LN2)))
    large = torch.log1p(-torch.exp(-x.clamp(min=LN2)))
    return torch.where(x < LN2, small, large)


def naive_log(x: Tensor) -> Tensor:
    r"""The same as it is written: $\log(1 - e^{-x})$, which loses small $x$ to rounding.

    Args:
        x: Positive numbers of any shape.

    Returns:
        The same shape; $-\infty$ where $e^{-x}$ rounds to 1, though $x$ is not 0.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    return torch.log(1 - torch.exp(-x))


def check_labels(y: Tensor) -> None:
    """Refuse labels other than 0 and 1.

    Args:
        y: Labels of any shape.

    Raises:
        ValueError: If there is another one.
    """
    wrong = y[(y != 0) & (y != 1)]
    if len(wrong):
        raise ValueError(
            f"labels must be 0 (normal) or 1 (anomaly), got {wrong.flatten()[0].item()}"
        )


def abc_loss(error: Tensor, y: Tensor, *, scale: float = 1.0) -> Tensor:
    r"""Negative log-likelihood of each label (eq-abc-loss).

    $$\ell(L, y) = (1 - y)\, L - y \log(1 - e^{-L})$$

    Args:
        error: Errors before scaling, at least 0, any shape; $L$ is ``error / scale``, at least
            1e-6.
        y: Labels of the same shape, 0 or 1.
        scale: What an error is divided by, positive.

    Returns:
        One loss per sample, in nats.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    scaled = (error / scale).clamp(min=FLOOR)
    return torch.where(y == 1, -log1mexp(scaled), scaled)


def abc_slope(error: Tensor, y: Tensor) -> Tensor:
    r"""Derivative of ``abc_loss`` by $L$: 1 for a normal sample, $-1 / (e^L - 1)$ for an anomaly.

    Equation (eq-abc-slope) of the lesson.

    Args:
        error: $L > 0$, any shape.
        y: Labels of the same shape.

    Returns:
        The same shape.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    return torch.where(y == 1, -1 / torch.expm1(error), torch.ones_like(error))


def abc_score(error: Tensor, *, scale: float = 1.0) -> Tensor:
    r"""Probability of an anomaly, $1 - e^{-L}$: it grows with the error.

    Args:
        error: Errors before scaling, any shape.
        scale: What an error is divided by.

    Returns:
        The same shape, in [0, 1].

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    return -torch.expm1(-error / scale)


def negative_loss(error: Tensor, y: Tensor) -> Tensor:
    r"""Negative learning, $(1 - y) L - y L$: anomalies are pushed with a constant force, forever.

    Args:
        error: Errors, any shape.
        y: Labels of the same shape.

    Returns:
        One loss per sample; it has no lower bound.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    return torch.where(y == 1, -error, error)


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the chosen entries of the last axis; 0 where there are none.

    Args:
        values: Shape (..., B).
        chosen: Bool, the same shape.

    Returns:
        Shape (...,).
    """
    return torch.where(chosen, values, 0.0).sum(-1) / chosen.sum(-1).clamp(min=1)


@dataclass(frozen=True)
class ErrorLoss:
    """A loss of reconstruction errors; those below differ in ``of_errors`` only.

    Attributes:
        kind: How to measure errors.
        noise: Standard deviation of the noise that is added to what the networks see.
    """

    kind: ErrorKind = "norm"
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an unknown error and negative noise."""
        check_kind(self.kind)
        check_noise(self.noise)

    def of_errors(self, error: Tensor, y: Tensor) -> Tensor:
        """Errors and labels of shape (..., B) to one loss per batch, shape (...,)."""
        raise NotImplementedError

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Inputs (S, B, ...) and labels (S, B) to one loss per network, shape (S,)."""
        return self.of_errors(training_errors(network, x, self.kind, noise=self.noise), y)


@dataclass(frozen=True)
class Unlabelled(ErrorLoss):
    """Mean error of the samples with label 0: an autoencoder that ignores labelled anomalies.

    Taught in: book/detection/autoencoding-binary-classifiers
    """

    def of_errors(self, error: Tensor, y: Tensor) -> Tensor:
        """Errors and labels of shape (..., B) to one loss per batch, shape (...,)."""
        return mean_where(error, y == 0)


@dataclass(frozen=True)
class ABC(ErrorLoss):
    """Autoencoding binary classifier: the mean of ``abc_loss``.

    Attributes:
        scale: What an error is divided by.

    Source:
        yamanaka2019abc for the likelihood; the length as error follows takahashi2024puad's code.

    Taught in: book/detection/autoencoding-binary-classifiers
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a scale that is not positive."""
        super().__post_init__()
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be a positive number, got {self.scale}")

    def of_errors(self, error: Tensor, y: Tensor) -> Tensor:
        """Errors and labels of shape (..., B) to one loss per batch, shape (...,)."""
        return abc_loss(error, y, scale=self.scale).mean(-1)


@dataclass(frozen=True)
class NaiveABC(ErrorLoss):
    """The same without care for rounding and without a floor, to see what then happens.

    Taught in: book/detection/autoencoding-binary-classifiers
    """

    def of_errors(self, error: Tensor, y: Tensor) -> Tensor:
        """Errors and labels of shape (..., B) to one loss per batch, shape (...,)."""
        return torch.where(y == 1, -naive_log(error), error).mean(-1)


@dataclass(frozen=True)
class NegativeLearning(ErrorLoss):
    """The mean of ``negative_loss``.

    Taught in: book/detection/autoencoding-binary-classifiers
    """

    def of_errors(self, error: Tensor, y: Tensor) -> Tensor:
        """Errors and labels of shape (..., B) to one loss per batch, shape (...,)."""
        return negative_loss(error, y).mean(-1)


@dataclass(frozen=True)
class PUAE(ErrorLoss):
    r"""The likelihood where unlabelled data hold anomalies (eq-abc-puae).

    $$\alpha\, \hat E_P[\ell_+] + \bigl| \hat E_U[\ell_-] - \alpha\, \hat E_P[\ell_-] \bigr|, \quad
    \ell_- = L, \; \ell_+ = -\log(1 - e^{-L})$$

    Means are over a batch; where it has no labelled anomaly, their means count as 0.

    Attributes:
        prior: $\alpha$: share of anomalies among the unlabelled, in [0, 1).

    Source:
        takahashi2024puad.

    Taught in: book/detection/autoencoding-binary-classifiers
    """

    prior: float = 0.1

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        super().__post_init__()
        if not 0 <= self.prior < 1:
            raise ValueError(f"prior must be in [0, 1), got {self.prior}")

    def of_errors(self, error: Tensor, y: Tensor) -> Tensor:
        """Errors and labels of shape (..., B) to one loss per batch, shape (...,)."""
        normal, anomalous = (abc_loss(error, torch.full_like(y, label)) for label in (0, 1))
        labelled = y == 1
        rest = mean_where(normal, ~labelled) - self.prior * mean_where(normal, labelled)
        return self.prior * mean_where(anomalous, labelled) + rest.abs()


@dataclass(frozen=True)
class SideBySide:
    """Several losses at once: network s minimises loss s, and all are run in one pass.

    Attributes:
        losses: One for each of the S networks, without noise.
    """

    losses: tuple[ErrorLoss, ...]

    def __post_init__(self) -> None:
        """Refuse losses that need inputs of their own."""
        if not self.losses or any(loss.noise for loss in self.losses):
            raise ValueError("side by side there must be losses, all of them without noise")

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Inputs (S, B, ...) and labels (S, B) to one loss per network, shape (S,)."""
        squares = training_errors(network, x, "squared")
        found = [
            loss.of_errors(as_kind(own, loss.kind, x[0, 0].numel()), labels)
            for loss, own, labels in zip(self.losses, squares, y, strict=True)
        ]
        return torch.stack(found)


def as_kind(squares: Tensor, kind: ErrorKind, entries: int) -> Tensor:
    """Squared lengths as another kind of error; equal to ``reconstruction_error``'s.

    Args:
        squares: Squared lengths of any shape.
        kind: The kind wanted.
        entries: Entries of one input.

    Returns:
        The same shape.
    """
    if kind == "norm":
        return (squares + GUARD).sqrt()
    return squares / entries if kind == "mean" else squares


# --- DeepSAD --------------------------------------------------------------------------------------


def without_biases(params: Params) -> Params:
    """The same networks with every bias zero, so that no network can ignore its input.

    Args:
        params: Parameters by name.

    Returns:
        Parameters by name.
    """
    return {n: torch.zeros_like(t) if n.endswith("bias") else t for n, t in params.items()}


def centres(model: nn.Module, stacked: Params, x: Tensor, *, nearest: float = 0.1) -> Tensor:
    r"""Where DeepSAD pulls normal samples: the mean code of the untrained networks.

    Entries closer to zero than ``nearest`` are moved out to it, since a zero is reached by zero
    weights.

    Args:
        model: An architecture whose outputs are codes.
        stacked: Untrained parameters of shape (S, ...).
        x: Normal inputs of shape (N, ...).
        nearest: Smallest size of an entry.

    Returns:
        Shape (S, code).

    Source:
        ruff2018svdd.
    """
    check_finite(x)
    networks = len(next(iter(stacked.values())))
    with torch.no_grad():
        codes = predict_stacked(model, without_biases(stacked), x.expand(networks, *x.shape))
    middle = codes.mean(1)
    sign = torch.where(middle < 0, -1.0, 1.0)
    return torch.where(middle.abs() < nearest, sign * nearest, middle)


@dataclass(frozen=True)
class DeepSAD:
    r"""Codes near a centre for normal samples, far from it for labelled anomalies (eq-abc-deepsad).

    $$\frac1n \sum_i \lVert \phi(x_i) - c \rVert^{2} \text{ or, where } y_i = 1,\;
    \frac{\eta}{\lVert \phi(x_i) - c \rVert^2 + \epsilon}$$

    Biases are held at zero. Unlike the published code, no autoencoder is trained first.

    Attributes:
        centre: Centre of each of the S networks.
        weight: $\eta$.
        epsilon: $\epsilon$.

    Source:
        ruff2020deepsad.

    Taught in: book/detection/autoencoding-binary-classifiers
    """

    centre: tuple[tuple[float, ...], ...]
    weight: float = 1.0
    epsilon: float = 1e-6

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Inputs (S, B, ...) and labels (S, B) to one loss per network, shape (S,)."""
        bare = dataclasses.replace(network, params=without_biases(network.params))
        centre = torch.tensor(self.centre, dtype=x.dtype, device=x.device)
        distance = (bare(x) - centre.unsqueeze(1)).square().sum(-1)
        return deepsad_loss(distance, y, weight=self.weight, epsilon=self.epsilon).mean(1)


def deepsad_loss(
    distance: Tensor, y: Tensor, *, weight: float = 1.0, epsilon: float = 1e-6
) -> Tensor:
    """DeepSAD's loss of each sample.

    Args:
        distance: Squared distances from the centre, any shape.
        y: Labels of the same shape.
        weight: Weight of labelled anomalies.
        epsilon: Keeps the inverse finite.

    Returns:
        The same shape.
    """
    return torch.where(y == 1, weight / (distance + epsilon), distance)


def distances(
    model: nn.Module, stacked: Params, x: Tensor, centre: Tensor, *, chunk: int = 4096
) -> Tensor:
    """Squared distances of codes from their centres: DeepSAD's scores, without gradients.

    Args:
        model: An architecture whose outputs are codes.
        stacked: Parameters of shape (S, ...).
        x: Inputs of shape (N, ...), finite.
        centre: Shape (S, code).
        chunk: Inputs per forward pass.

    Returns:
        Shape (S, N).

    Raises:
        ValueError: If an input is not finite.
    """
    check_finite(x)
    bare, parts = without_biases(stacked), []
    with torch.no_grad():
        for part in x.split(chunk):
            codes = predict_stacked(model, bare, part.expand(len(centre), *part.shape))
            parts.append((codes - centre.unsqueeze(1)).square().sum(-1))
    return torch.cat(parts, 1)

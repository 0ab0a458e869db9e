r"""Importance in adversarial training: objectives that do not treat all samples alike.

All attack the cross-entropy, as plain adversarial training does, and differ in what they make of
the adversarial examples. Some multiply the cross-entropy of each sample by a weight, some switch
the loss of the samples whose margin is smallest. Weights and choices are not differentiated, and
every sum is divided by the size B of the whole minibatch.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.evaluation import logit_margins
from lmc_lessons.robustness.attacks import cross_entropy, margin_loss
from lmc_lessons.robustness.entropy import prediction_entropy
from lmc_lessons.robustness.margins import check_logits, ovr_loss
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining, kl_divergence
from lmc_lessons.training import Network


def top_samples(logits: Tensor, y: Tensor, fraction: float) -> Tensor:
    r"""The samples of each minibatch with the smallest margins: $\lceil M B \rceil$ of B.

    Args:
        logits: Shape (..., B, classes).
        y: Labels of shape (..., B).
        fraction: The share M, in (0, 1].

    Returns:
        A mask of shape (..., B); of equal margins, one choice is made.

    Raises:
        ValueError: If the fraction is not in (0, 1], there is one class, or a logit is NaN.

    Source:
        kanai2023onevsrest, reconstructed: the share is taken in the minibatch.

    Taught in: book/robustness/logit-margins
    """
    _check_choice(fraction, 0.0)
    check_logits(logits)
    margins = margin_loss(logits.detach(), y)
    count = math.ceil(fraction * y.shape[-1] - 1e-9)  # 0.1 * 30 is a little more than 3
    chosen = margins.topk(count, dim=-1).indices
    return torch.zeros_like(margins, dtype=torch.bool).scatter(-1, chosen, True)


# A weight for every sample


@dataclass(frozen=True)
class Reweighted(AdversarialTraining):
    r"""Adversarial training with a loss for every sample; here plain cross-entropy.

    $$\frac1B \sum_i \ell_i(x_i') , \qquad \ell_i = \omega_i\, \ell_{CE}(z(x_i'), y_i)
    \text{ unless a subclass says otherwise.}$$

    Attributes:
        burn_in: Steps of plain adversarial training before importance counts, at least 0.

    Taught in: book/robustness/logit-margins
    """

    burn_in: int = dataclasses.field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a negative number of steps."""
        super().__post_init__()
        if self.burn_in < 0:
            raise ValueError(f"burn_in must be at least 0 steps, got {self.burn_in}")

    def weights(self, logits: Tensor, y: Tensor) -> Tensor:
        """Weight of every sample, detached: logits (S, B, classes), labels (S, B) to (S, B)."""
        del logits
        return torch.ones(y.shape, device=y.device)

    def sample_losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Loss of every sample on its adversarial example, shape (S, B)."""
        return self.weights(logits.detach(), y) * cross_entropy(logits, y)

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """Mean over the minibatch per network, shape (S,)."""
        del x
        logits = network(found)
        check_logits(logits)
        if network.step < self.burn_in:
            return cross_entropy(logits, y).mean(1)
        return self.sample_losses(logits, y).mean(1)


@dataclass(frozen=True)
class MAIL(Reweighted):
    r"""Weights from the margin of probabilities, $\omega = 3\,\sigma(-\gamma(PM - \beta))$.

    $PM = p_y(x') - \max_{k \ne y} p_k(x')$. As in the published code the constant 3 scales the
    weights; they are not normalised over the minibatch.

    Attributes:
        slope: The factor gamma, at least 0.
        bias: The margin beta of probabilities at which the weight is 1.5, in [-1, 1].

    Source:
        wang2021probabilistic, its published code, where the bias is -0.5.

    Taught in: book/robustness/logit-margins
    """

    slope: float = dataclasses.field(default=10.0, kw_only=True)
    bias: float = dataclasses.field(default=0.5, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a negative slope, or a bias that no margin can reach."""
        super().__post_init__()
        if not 0 <= self.slope < math.inf or not -1 <= self.bias <= 1:
            raise ValueError(
                f"slope must be >= 0 and bias in [-1, 1], got {self.slope} and {self.bias}"
            )

    def weights(self, logits: Tensor, y: Tensor) -> Tensor:
        """Weight of every sample, shape (S, B)."""
        margins = logit_margins(logits.softmax(-1), y)
        return 3 * torch.sigmoid(-self.slope * (margins - self.bias))


@dataclass(frozen=True)
class EntropyWeighted(Reweighted):
    r"""EWAT: weights from the entropy of the prediction, $\omega = 1 + H(p(x'))$.

    Source:
        kim2023entropy; that 1 is added to the entropy is from memory.

    Taught in: book/robustness/logit-margins
    """

    def weights(self, logits: Tensor, y: Tensor) -> Tensor:
        """Weight of every sample, shape (S, B)."""
        del y
        return 1 + prediction_entropy(logits)


@dataclass(frozen=True)
class GAIRAT(Reweighted):
    r"""Weights from how soon an attack succeeds.

    $$\omega = \tfrac12 \Big(1 + \tanh\big(\Lambda + 5 (1 - 2 \kappa / T)\big)\Big)$$

    with $\kappa$ of the T points at which the attack took a gradient (its start among them) still
    read correctly; then the weights are scaled to mean 1 over the minibatch.

    Attributes:
        shift: The number Lambda.

    Source:
        zhang2021geometry, its published code.

    Taught in: book/robustness/logit-margins
    """

    shift: float = dataclasses.field(default=-1.0, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a shift that is no number."""
        super().__post_init__()
        if not math.isfinite(self.shift):
            raise ValueError(f"shift must be a number, got {self.shift}")

    def attacked(self, network: Network, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Adversarial examples, and how many points of each attack were read correctly.

        Args:
            network: S networks.
            x: Inputs of shape (S, B, ...).
            y: Labels of shape (S, B).

        Returns:
            Inputs of the same shape, and numbers from 0 to ``steps`` of shape (S, B).
        """
        right = torch.zeros(y.shape, device=y.device)
        forward = network.forward[self.mode]

        def counting(params: dict[str, Tensor], inputs: Tensor) -> Tensor:
            logits = forward(params, inputs)
            right.add_(logits.detach().argmax(-1) == y)
            return logits

        watched = dataclasses.replace(network, forward={**network.forward, self.mode: counting})
        return AdversarialTraining.inputs(self, watched, x, y), right

    def geometry_weights(self, right: Tensor) -> Tensor:
        """Weights of mean 1 per network: numbers of points read correctly (S, B) to (S, B)."""
        raw = (1 + torch.tanh(self.shift + 5 * (1 - 2 * right / self.steps))) / 2
        return raw / raw.mean(-1, keepdim=True).clamp_min(torch.finfo(raw.dtype).tiny)

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """Weighted cross-entropy per network; called by itself, it walks the attack again."""
        return self._loss(network, found, y, self.attacked(network.aside(), x, y)[1])

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Weighted cross-entropy of the adversarial examples per network, shape (S,)."""
        found, right = self.attacked(network, x, y)
        return self._loss(network, found, y, right)

    def _loss(self, network: Network, found: Tensor, y: Tensor, right: Tensor) -> Tensor:
        logits = network(found)
        check_logits(logits)
        losses = cross_entropy(logits, y)
        if network.step < self.burn_in:
            return losses.mean(1)
        return (self.geometry_weights(right) * losses).mean(1)


@dataclass(frozen=True)
class TopWeighted(Reweighted):
    r"""The control of ``SOVR``: the same samples get the same factor, and keep cross-entropy.

    Attributes:
        fraction: Share of each minibatch that counts as important, in (0, 1].
        weight: Factor of their cross-entropy, at least 0.

    Source:
        This lesson.

    Taught in: book/robustness/logit-margins
    """

    fraction: float = dataclasses.field(default=0.4, kw_only=True)
    weight: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a share outside (0, 1] and a negative weight."""
        super().__post_init__()
        _check_choice(self.fraction, self.weight)

    def weights(self, logits: Tensor, y: Tensor) -> Tensor:
        """Weight of every sample, shape (S, B)."""
        return torch.where(top_samples(logits, y, self.fraction), self.weight, 1.0)


# Another loss for some samples


@dataclass(frozen=True)
class SOVR(Reweighted):
    r"""Switching one-vs-the-rest: cross-entropy for easy samples, another loss for hard ones.

    $$\frac1B \Big[ \sum_{\text{easy}} \ell_{CE}(z(x_i'), y_i) + \lambda \sum_{\text{hard}}
    \ell_{OVR}(z(x_i'), y_i) \Big]$$

    Hard are the share M of the minibatch with the smallest margins on x'. Equation (eq-mar-sovr) of
    the lesson.

    Attributes:
        fraction: The share M, in (0, 1]; 1 makes every sample hard.
        weight: The factor lambda, at least 0.

    Source:
        kanai2023onevsrest; the structure is from memory, only the abstract was read.

    Taught in: book/robustness/logit-margins
    """

    fraction: float = dataclasses.field(default=0.4, kw_only=True)
    weight: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a share outside (0, 1] and a negative weight."""
        super().__post_init__()
        _check_choice(self.fraction, self.weight)

    def sample_losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy of easy samples, the weighted other loss of hard ones, shape (S, B)."""
        hard = top_samples(logits, y, self.fraction)
        return torch.where(hard, self.weight * ovr_loss(logits, y), cross_entropy(logits, y))


@dataclass(frozen=True)
class TSOVR(TRADES):
    r"""``SOVR`` with TRADES: the loss of clean inputs switches, the divergence stays.

    Hard are the share M of the minibatch with the smallest margins on the inputs that the attack of
    TRADES found; their clean loss is the one-vs-the-rest loss.

    Attributes:
        fraction: The share M, in (0, 1].
        weight: The factor lambda, at least 0.

    Source:
        kanai2023onevsrest, reconstructed: which inputs choose the samples was not read.

    Taught in: book/robustness/logit-margins
    """

    fraction: float = dataclasses.field(default=0.4, kw_only=True)
    weight: float = dataclasses.field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a share outside (0, 1] and a negative weight."""
        super().__post_init__()
        _check_choice(self.fraction, self.weight)

    def hard_losses(self, clean: Tensor, y: Tensor) -> Tensor:
        """What hard samples get instead of cross-entropy: logits (S, B, classes) to (S, B)."""
        return ovr_loss(clean, y)

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """Switched clean loss plus the weighted divergence per network, shape (S,)."""
        clean, attacked = network(x), network(found)
        hard = top_samples(attacked, y, self.fraction)
        switched = self.weight * self.hard_losses(clean, y)
        losses = torch.where(hard, switched, cross_entropy(clean, y))
        moved = kl_divergence(F.log_softmax(clean, -1), F.log_softmax(attacked, -1))
        return (losses + self.beta * moved).mean(1)


@dataclass(frozen=True)
class TopWeightedTRADES(TSOVR):
    """The control of ``TSOVR``: the same samples get the same factor, and keep cross-entropy.

    Source:
        This lesson.

    Taught in: book/robustness/logit-margins
    """

    def hard_losses(self, clean: Tensor, y: Tensor) -> Tensor:
        """Cross-entropy: logits (S, B, classes) to (S, B)."""
        return cross_entropy(clean, y)


# Two terms for every sample


@dataclass(frozen=True)
class MART(AdversarialTraining):
    r"""Misclassification-aware training: a loss of two classes, and more care for misread samples.

    $$-\log p_y(x') - \log\big(1.0001 - \max_{k \ne y} p_k(x')\big)
    + \beta\, (1 - p_y(x))\, \mathrm{KL}\big(p(x) \,\|\, p(x')\big)$$

    As in the published code, the gradient flows into every factor. There the attack starts next to
    the input; here it starts as in adversarial training.

    Attributes:
        beta: Weight of the second term, at least 0.

    Source:
        wang2020improving, its published code.

    Taught in: book/robustness/logit-margins
    """

    beta: float = dataclasses.field(default=5.0, kw_only=True)

    def __post_init__(self) -> None:
        """Refuse a negative weight."""
        super().__post_init__()
        if not 0 <= self.beta < math.inf:
            raise ValueError(f"beta must be >= 0, got {self.beta}")

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """Mean of both terms per network, shape (S,)."""
        clean, attacked = (F.log_softmax(network(inputs), -1) for inputs in (x, found))
        check_logits(attacked)
        own = y.unsqueeze(-1)
        other = attacked.scatter(-1, own, -torch.inf).amax(-1).exp()
        labels = -attacked.gather(-1, own).squeeze(-1) - (1.0001 - other).log()
        doubt = 1.0000001 - clean.gather(-1, own).squeeze(-1).exp()
        return (labels + self.beta * doubt * kl_divergence(clean, attacked)).mean(1)


def _check_choice(fraction: float, weight: float) -> None:
    if not 0 < fraction <= 1 or not 0 <= weight < math.inf:
        raise ValueError(f"fraction must be in (0, 1] and weight >= 0, got {fraction} and {weight}")

"""Unlearning by changing the target: gradient ascent, with descent beside it, and a bounded form.

These are the methods that subtraction is compared with. Each is a loss for ``training.train``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.training import Network
from lmc_lessons.unlearning.facts import FORGET, answer_places, text_places
from lmc_lessons.unlearning.logit_difference import check_batch, mean_where, token_losses

Logits = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class GradientAscent:
    r"""Minus the cross-entropy of what is to be forgotten, plus that of the retain set.

    $-L_f + \lambda L_r$ has no lower bound: any answer can be made less likely still.

    Attributes:
        retain: The weight $\lambda$; 0 is gradient ascent alone.

    Equation (eq-uld-ascent) of the lesson.

    Source:
        ji2024uld compares with both, with and without descent.

    Taught in: book/unlearning/logit-difference
    """

    retain: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a weight that makes no sense."""
        if not 0 <= self.retain < math.inf:
            raise ValueError(f"retain must be a number >= 0, got {self.retain}")

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Losses of S networks, shape (S,), for texts (S, B, T) and labels (S, B)."""
        check_batch(x, y)
        losses, forget = token_losses(network(x), x), (y == FORGET).unsqueeze(-1)
        loss = -mean_where(losses, forget & answer_places(x))
        if self.retain:
            loss = loss + self.retain * mean_where(losses, ~forget & text_places(x))
        return loss


@dataclass(frozen=True)
class NegativePreference:
    r"""The bounded form of ascent: it stops pushing where an answer has become unlikely.

    $\frac2b \log(1 + (p / p_{target})^b)$ of whole answers, plus $\lambda$ times the cross-entropy
    of the retain set.

    Attributes:
        reference: Maps texts (S, B, T) to the target's logits; not part of the printed form.
        retain: The weight $\lambda$.
        sharpness: The number b, above 0.

    Source:
        zhang2024npo; the formula is recalled here, not read.

    Taught in: book/unlearning/logit-difference
    """

    reference: Logits = field(repr=False)
    retain: float = 1.0
    sharpness: float = 0.1

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if not (0 <= self.retain < math.inf and 0 < self.sharpness < math.inf):
            raise ValueError(
                f"retain must be >= 0 and sharpness > 0, got {self.retain}, {self.sharpness}"
            )

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Losses of S networks, shape (S,), for texts (S, B, T) and labels (S, B)."""
        check_batch(x, y)
        losses, forget = token_losses(network(x), x), y == FORGET
        before = token_losses(self.reference(x), x).detach()
        worse = ((losses - before) * answer_places(x)).sum(-1)  # minus the log of p / p_target
        pushed = 2 / self.sharpness * F.softplus(-self.sharpness * worse)
        loss = mean_where(pushed.unsqueeze(-1), forget.unsqueeze(-1))
        retained = ~forget.unsqueeze(-1) & text_places(x)
        return loss + self.retain * mean_where(losses, retained)

r"""Logit margins: how two losses make them grow, and what they are worth.

Under gradient flow on the logits of one sample, weighted cross-entropy and the one-vs-the-rest loss
have margins in closed form. A margin has the unit of the logits, so the second half measures it
against the gradient of the logits with respect to the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.robustness.attacks import Predict, loss_gradient

NEWTON_STEPS = 30  # far more than convergence takes
SCANNED = 10_000  # points among which the last crossing is looked for


# Losses


def ovr_loss(logits: Tensor, y: Tensor) -> Tensor:
    r"""One-vs-the-rest loss: one logistic loss for every class, "this one or not?".

    $$\ell_{OVR}(z, y) = \varphi(z_y) + \sum_{k \ne y} \varphi(-z_k), \qquad
    \varphi(u) = \log(1 + e^{-u})$$

    Equation (eq-mar-ovr) of the lesson.

    Args:
        logits: Shape (..., classes), at least two classes.
        y: Labels of shape (...,), int64.

    Returns:
        Shape (...,), in nats.

    Raises:
        ValueError: If there is only one class, or a logit is NaN.

    Source:
        kanai2023onevsrest names the loss; the formula is the usual one and was not read there.

    Taught in: book/robustness/logit-margins
    """
    check_logits(logits)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()  # as autocast does for cross-entropy
    own = F.one_hot(y, logits.shape[-1]).bool()
    return -F.logsigmoid(torch.where(own, logits, -logits)).sum(-1)


def check_logits(logits: Tensor) -> None:
    """Refuse logits that have no margin.

    Args:
        logits: Shape (..., classes).

    Raises:
        ValueError: If there is only one class, or a logit is NaN.
    """
    if logits.dim() == 0 or logits.shape[-1] < 2:
        raise ValueError(f"a margin needs at least 2 classes, got logits {tuple(logits.shape)}")
    if bool(logits.isnan().any()):
        raise ValueError(f"logits must be numbers, got {int(logits.isnan().sum())} NaN")


# Margins under gradient flow


def lambert_log(a: Tensor) -> Tensor:
    r"""The number v with $v + e^v = a$: the logarithm of Lambert's $W(e^a)$.

    Newton's iteration from above, where the left side is convex and increasing. It cannot overflow,
    whereas $e^a$ does beyond a = 709.

    Args:
        a: Any shape, finite.

    Returns:
        The same shape, float64.

    Raises:
        ValueError: If a number is not finite.

    Taught in: book/robustness/logit-margins
    """
    if not bool(torch.isfinite(a).all()):
        raise ValueError("lambert_log needs finite numbers")
    a = a.double()
    v = torch.where(a > 1, a.clamp_min(1.0).log(), a)
    for _ in range(NEWTON_STEPS):
        power = v.exp()
        v = v - (v + power - a) / (1 + power)
    return v


def cross_entropy_margin(times: Tensor, *, weight: float = 1.0, classes: int = 10) -> Tensor:
    r"""Margin of weighted cross-entropy under gradient flow from equal logits.

    It solves $e^m + (K - 1) m = w K t + 1$. Equation (eq-mar-ce) of the lesson.

    Args:
        times: Times t >= 0, any shape.
        weight: The weight w, positive.
        classes: The number of classes K, at least 2.

    Returns:
        The same shape, float64, in the unit of the logits.

    Raises:
        ValueError: If a time is negative, the weight not positive, or there is one class.

    Source:
        kanai2023onevsrest states the theorem; this form was derived for the lesson.

    Taught in: book/robustness/logit-margins
    """
    _check_flow(times, weight, classes)
    rest = classes - 1
    level = (weight * classes * times.double() + 1) / rest
    return math.log(rest) + lambert_log(level - math.log(rest))


def ovr_margin(times: Tensor, *, weight: float = 1.0) -> Tensor:
    r"""Margin of the weighted one-vs-the-rest loss under gradient flow from logits of zero.

    It solves $e^{m/2} + m/2 = w t + 1$, whatever the number of classes. Equation (eq-mar-ovrt) of
    the lesson.

    Args:
        times: Times t >= 0, any shape.
        weight: The weight w, positive.

    Returns:
        The same shape, float64, in the unit of the logits.

    Raises:
        ValueError: If a time is negative or the weight not positive.

    Source:
        kanai2023onevsrest states the theorem; this form was derived for the lesson.

    Taught in: book/robustness/logit-margins
    """
    _check_flow(times, weight, 2)
    return 2 * lambert_log(weight * times.double() + 1)


def crossing_time(weight: float, *, classes: int = 10) -> float:
    r"""From when on the one-vs-the-rest loss has the larger margin than weighted cross-entropy.

    At a crossing both equations of the margins hold for one m; without t they read
    $e^m + (K-1) m - 1 = w K (e^{m/2} + m/2 - 1)$. The largest root counts.

    Args:
        weight: Weight of cross-entropy, positive; the other loss has weight 1.
        classes: Number of classes, at least 2.

    Returns:
        The last time at which the margins are equal; 0 if the one-vs-the-rest loss always leads.

    Raises:
        ValueError: If the weight is not positive, or there is one class.

    Taught in: book/robustness/logit-margins
    """
    _check_flow(torch.zeros(1), weight, classes)
    scale = weight * classes

    def lead(m: float) -> float:
        return math.expm1(m) + (classes - 1) * m - scale * (math.expm1(m / 2) + m / 2)

    highest = 2 * math.log(4 + 2 * scale)
    grid = [highest * k / SCANNED for k in range(SCANNED, 0, -1)]
    for above, below in pairwise(grid):
        if lead(below) < 0:
            m = brentq(lead, below, above, xtol=1e-13)
            return math.expm1(m / 2) + m / 2
    return 0.0


def _check_flow(times: Tensor, weight: float, classes: int) -> None:
    if not 0 < weight < math.inf or classes < 2:
        raise ValueError(f"weight must be > 0 and classes >= 2, got {weight} and {classes}")
    if times.numel() == 0 or not bool((times >= 0).all()):
        raise ValueError("times must be numbers >= 0")


# What a margin is worth


class GradientNorms(NamedTuple):
    """Dual norms of input gradients, for an attack that may change every entry by epsilon.

    Attributes:
        true: Sum of absolute values of the gradient of the true class's logit, one per sample.
        other: That of the largest other logit.
        gap: That of their difference, the gradient of the margin.
    """

    true: Tensor
    other: Tensor
    gap: Tensor


def gradient_norms(predict: Predict, x: Tensor, y: Tensor) -> GradientNorms:
    r"""How fast the two leading logits, and the margin, can change with the input.

    $\|\nabla_x z_k\|_1$ is the dual norm to $\|\delta\|_\infty$: what a logit can gain, to first
    order, per unit of the radius.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape ``(*y.shape, ...)``.
        y: Labels.

    Returns:
        Three tensors of the labels' shape.

    Raises:
        ValueError: If there is only one class, or a logit is NaN.

    Taught in: book/robustness/logit-margins
    """
    with torch.no_grad():
        logits = predict(x)
    check_logits(logits)
    own = y.unsqueeze(-1)
    runner_up = logits.scatter(-1, own, -torch.inf).argmax(-1, keepdim=True)

    def true_logit(logits: Tensor, y: Tensor) -> Tensor:
        return logits.gather(-1, y.unsqueeze(-1)).squeeze(-1)

    def other_logit(logits: Tensor, y: Tensor) -> Tensor:
        del y
        return logits.gather(-1, runner_up).squeeze(-1)

    slopes = [loss_gradient(predict, x, y, loss)[0] for loss in (true_logit, other_logit)]
    parts = [*slopes, slopes[0] - slopes[1]]
    return GradientNorms(*(part.flatten(y.dim()).abs().sum(-1) for part in parts))


def margin_per_gradient(margins: Tensor, norms: Tensor) -> float:
    """Median margin divided by the mean gradient norm: the same when all logits are scaled.

    Args:
        margins: Shape (N,).
        norms: Gradient norms of shape (N,).

    Returns:
        A radius in the unit of the inputs, to first order.

    Raises:
        ValueError: If the norms are all zero, or there is not one per margin.

    Taught in: book/robustness/logit-margins
    """
    if margins.shape != norms.shape or not float(norms.mean()) > 0:
        raise ValueError(
            f"one norm per margin, not all zero: got {tuple(margins.shape)}, {tuple(norms.shape)}"
        )
    return float(margins.double().median() / norms.double().mean())


def potentially_misclassified(margins: Tensor, norms: GradientNorms, epsilon: float) -> Tensor:
    r"""Which samples the two leading logits could flip, if each moved as fast as its gradient.

    $m \le \epsilon\, (\|\nabla_x z_y\|_1 + \|\nabla_x z_{\hat k}\|_1)$. With Lipschitz constants in
    place of the gradients, the other samples would be safe.

    Args:
        margins: Margins of the inputs without attack, shape (N,).
        norms: Gradient norms, each of shape (N,).
        epsilon: Radius of the attack, at least 0.

    Returns:
        A mask of shape (N,).

    Raises:
        ValueError: If epsilon is negative.

    Source:
        After kanai2023onevsrest, reconstructed; local gradients stand for Lipschitz constants.

    Taught in: book/robustness/logit-margins
    """
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be a number >= 0, got {epsilon}")
    return margins <= epsilon * (norms.true + norms.other)


def shares(values: Tensor, edges: Sequence[float]) -> list[float]:
    """Histogram as shares: below the first edge, between neighbouring edges, above the last.

    Args:
        values: Shape (N,).
        edges: E growing numbers; a value on an edge counts as above it.

    Returns:
        E + 1 numbers that sum to 1.

    Raises:
        ValueError: If there are no values, or the edges do not grow.

    Taught in: book/robustness/logit-margins
    """
    ends = torch.tensor(list(edges), dtype=torch.float64)
    if len(values) == 0 or len(ends) == 0 or not bool((ends.diff() > 0).all()):
        raise ValueError(f"shares need values and growing edges, got {len(values)}, {list(edges)}")
    place = torch.bucketize(values.double().cpu(), ends, right=True)
    return (torch.bincount(place, minlength=len(ends) + 1).double() / len(values)).tolist()

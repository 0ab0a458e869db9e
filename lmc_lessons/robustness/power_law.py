r"""Power laws: how the adversarial error grows with the size of the perturbation.

A sample is lost at the radius at which its leading class is caught up. To first order this radius
is the logit gap divided by the size of the gap's gradient, so the error at a small radius counts
the samples whose ratio is small. Where the density of the ratio at zero is finite and positive, the
error grows in proportion to the radius, whatever the network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lmc_lessons.robustness.attacks import (
    Attack,
    Predict,
    ThreatModel,
    loss_gradient,
)
from lmc_lessons.training import generator

LOGITS = 31  # the random stream of the control


def logit_gaps(logits: Tensor) -> Tensor:
    r"""How far every other logit lies below the largest, $\Delta_{1j} = z_{(1)} - z_{(j)}$.

    Args:
        logits: Shape (..., classes), at least 2 classes.

    Returns:
        Gaps for j = 2, ..., classes in increasing order, shape (..., classes - 1).

    Raises:
        ValueError: If there is only one class.

    Source:
        cubuk2018intriguing.

    Taught in: book/robustness/adversarial-examples
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"a gap needs at least 2 classes, got logits {tuple(logits.shape)}")
    order = logits.sort(dim=-1, descending=True).values
    return order[..., :1] - order[..., 1:]


class Radius(NamedTuple):
    """Where a linear model of the logits says that the leading class is caught up.

    Attributes:
        gap: The logit gap, one number per sample.
        rate: By how much the gap falls per unit of radius: the dual norm of its gradient.
        radius: Gap over rate; infinite where the rate is zero.
    """

    gap: Tensor
    rate: Tensor
    radius: Tensor


def caught_by(logits: Tensor, y: Tensor, place: int = 2) -> Tensor:
    r"""The gap between a class and the one that has to pass it, negated: a loss to maximise.

    Args:
        logits: Shape (..., classes).
        y: The leading class of every sample, shape (...,).
        place: The rival is the largest other logit for 2, the second largest other for 3, ...

    Returns:
        Rival minus leader, shape (...,).

    Raises:
        ValueError: If there are fewer classes than places.

    Taught in: book/robustness/adversarial-examples
    """
    if not 2 <= place <= logits.shape[-1]:
        raise ValueError(f"place must be in 2..{logits.shape[-1]}, got {place}")
    own = y.unsqueeze(-1)
    others = logits.scatter(-1, own, -torch.inf).topk(place - 1, dim=-1).values[..., -1]
    return others - logits.gather(-1, own).squeeze(-1)


def dual_norm(gradient: Tensor, threat: ThreatModel, lead: int) -> Tensor:
    r"""By how much a linear function rises at most over a ball of radius one.

    This is the inner product with the steepest step: the sum of absolute values for ``LInf``, the
    Euclidean length for ``L2``.

    Args:
        gradient: Shape (..., *shape).
        threat: Decides the norm.
        lead: Number of leading axes.

    Returns:
        One number per sample.

    Taught in: book/robustness/adversarial-examples
    """
    return (gradient * threat.steepest(gradient, lead)).flatten(lead).sum(-1)


def linear_radius(predict: Predict, x: Tensor, threat: ThreatModel, *, place: int = 2) -> Radius:
    r"""The radius at which the leading class loses its place, if logits were linear.

    Over a ball of radius $\epsilon$ a linear gap falls by at most $\epsilon$ times the dual norm of
    its gradient, so the class is caught up at $r = \Delta / \|\nabla \Delta\|_*$. Equation
    (eq-adv-radius) of the lesson on adversarial examples.

    Args:
        predict: Maps inputs (..., *shape) to logits (..., classes).
        x: Inputs with one leading axis more than ``predict`` needs for a single network, in [0, 1].
        threat: Decides the norm; its radius does not matter.
        place: 2: the leader is caught up by one class; 3: by two; ...

    Returns:
        Gap, rate and radius of every sample.

    Raises:
        ValueError: As ``caught_by`` does.

    Taught in: book/robustness/adversarial-examples
    """
    with torch.no_grad():
        leader = predict(x).argmax(-1)
    gradient, negative, _ = loss_gradient(
        predict, x, leader, lambda logits, y: caught_by(logits, y, place)
    )
    rate = dual_norm(gradient, threat, leader.dim())
    return Radius(-negative, rate, -negative / rate)


def share_below(values: Tensor, at: Sequence[float]) -> Tensor:
    """The empirical distribution function.

    Args:
        values: Shape (..., N).
        at: P positions.

    Returns:
        Share of the N values below each position, shape (P, ...), float64.
    """
    return torch.stack([(values < position).double().mean(-1) for position in at])


def along(direction: Tensor) -> Attack:
    """An attack that takes one step of full length in a direction that is given.

    Args:
        direction: Of the inputs' shape; a step of the threat model of radius one.

    Returns:
        An attack. With the steepest direction of a loss it is ``fgsm`` on that loss, without asking
        for the gradient at every radius again.

    Taught in: book/robustness/adversarial-examples
    """

    def step(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        del predict
        return threat.project(x + threat.epsilon * direction, x, y.dim())

    return step


def adversarial_error(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threats: Sequence[ThreatModel],
    attack: Attack,
    *,
    top: int = 1,
) -> Tensor:
    """Share of the samples read correctly that an attack pushes out of the ``top`` classes.

    Only samples that the network reads correctly without attack count, so the error starts at zero:
    it is the excess over the clean error, as a share of the samples that can be lost.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape ``(..., N, *shape)``.
        y: Labels of shape (..., N).
        threats: One threat model per radius.
        attack: The attack.
        top: A sample is lost where so many classes pass the true one.

    Returns:
        Shape (radii, ...), float64.

    Raises:
        ValueError: If a network reads no sample correctly, or ``top`` does not fit the classes.

    Taught in: book/robustness/adversarial-examples
    """
    with torch.no_grad():
        right = predict(x).argmax(-1) == y
    count = right.sum(-1)
    if int(count.min()) == 0:
        raise ValueError("a network reads no sample correctly: nothing can be lost")
    found = []
    for threat in threats:
        tried = attack(predict, x, y, threat)
        with torch.no_grad():
            lost = caught_by(predict(tried), y, top + 1) > 0
        found.append((lost & right).sum(-1).double() / count)
    return torch.stack(found)


class Fit(NamedTuple):
    r"""A straight line through points on logarithmic axes, $A(\epsilon) \approx c\,\epsilon^B$.

    Attributes:
        exponent: B.
        prefactor: c, the error that the line gives at radius 1.
        used: How many points lay in the window.
    """

    exponent: float
    prefactor: float
    used: int


def fit_power(radii: Sequence[float], errors: Sequence[float], *, low: float, high: float) -> Fit:
    r"""Least squares of $\ln A$ on $\ln \epsilon$ over the points with low < A < high.

    The window decides the slope: below it a handful of samples is counted, above it the error
    saturates. So it is an argument without a default.

    Args:
        radii: Positive, one per error.
        errors: Shares in [0, 1].
        low: Smallest error used, at least 0.
        high: Largest error used.

    Returns:
        Exponent, prefactor and number of points.

    Raises:
        ValueError: If fewer than 3 points lie in the window, or a radius is not positive.

    Taught in: book/robustness/adversarial-examples
    """
    if min(radii) <= 0 or len(radii) != len(errors):
        raise ValueError(f"one positive radius per error is needed, got {radii} and {errors}")
    inside = [(r, e) for r, e in zip(radii, errors, strict=True) if max(low, 0) < e < high]
    if len(inside) < 3:
        raise ValueError(f"{len(inside)} errors between {low:g} and {high:g}, 3 are needed")
    slope, height = _line([math.log(r) for r, _ in inside], [math.log(e) for _, e in inside])
    return Fit(slope, math.exp(height), len(inside))


def cdf_slope(values: Tensor, *, low: float = 0.002, high: float = 0.05) -> float:
    """Slope of the empirical distribution function on logarithmic axes, between two quantiles.

    Args:
        values: N numbers >= 0.
        low: The smaller quantile's level.
        high: The larger quantile's level.

    Returns:
        The exponent with which the distribution function starts.

    Raises:
        ValueError: If fewer than 3 positive values lie between the quantiles.

    Taught in: book/robustness/adversarial-examples
    """
    ordered = values.flatten().double().sort().values
    level = torch.arange(1, len(ordered) + 1, dtype=torch.float64) / len(ordered)
    inside = (level >= low) & (level <= high) & (ordered > 0)
    if int(inside.sum()) < 3:
        raise ValueError(f"3 values between the quantiles {low:g} and {high:g} are needed")
    return _line(ordered[inside].log().tolist(), level[inside].log().tolist())[0]


def _line(x: list[float], y: list[float]) -> tuple[float, float]:
    """Slope and height at zero of the line of least squares."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    across = sum((a - mean_x) ** 2 for a in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / across
    return slope, mean_y - slope * mean_x


def independent_gaps(samples: int, classes: int, seed: int) -> Tensor:
    """Logit gaps of logits that are independent and uniform: a network that knows nothing.

    The gap to place j is then a sum of j - 1 spacings, whose distribution is Beta(j - 1,
    classes + 2 - j).

    Args:
        samples: Number of samples.
        classes: Number of logits.
        seed: Decides them.

    Returns:
        Gaps of shape (samples, classes - 1), float64.

    Taught in: book/robustness/adversarial-examples
    """
    stream = generator(seed, LOGITS)
    return logit_gaps(torch.rand(samples, classes, generator=stream, dtype=torch.float64))

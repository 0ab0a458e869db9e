r"""Bounded logits: a function behind the last linear layer that keeps logits small.

The last linear layer gives pre-logits $u$; a head $g$ turns each of them into a logit $z = g(u)$.
Two bounded heads are compared. ``tanh`` comes close to its bound only as the pre-logit runs away.
The bounded logit function (BLF) reaches its bound at a finite pre-logit and turns back beyond it.

The formula of the BLF is recalled, not read: the text of kanai2021constraining was not at hand,
only its abstract, which asks for a bounded function whose maximum and minimum lie at finite points.
This one has that property, which is all that the derivations here use.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lmc_lessons.robustness.objectives import Objective
from lmc_lessons.training import Network, generator

Head = Callable[[Tensor], Tensor]
Kind = Literal["plain", "tanh", "blf", "squeezing", "smoothing"]
PRE_LOGITS = 55  # the random stream of free pre-logits
U_STAR = 1.5434046384182085  # where $u \tanh(u/2) = 1$
PEAK = 0.22387160234715142  # of $u\,\sigma(u)\,\sigma(-u)$, at ``U_STAR``


# Heads


def identity(u: Tensor) -> Tensor:
    """The head of an ordinary classifier: logits are the pre-logits.

    Args:
        u: Pre-logits of shape (..., classes).

    Returns:
        The same numbers.

    Raises:
        ValueError: If there are fewer than two classes, or a pre-logit is not finite.

    Taught in: book/robustness/bounded-logits
    """
    return _checked(u)


def tanh_head(u: Tensor, bound: float) -> Tensor:
    r"""Logits $z = c \tanh u$: bounded, but the bound is reached at infinity only.

    Args:
        u: Pre-logits of shape (..., classes).
        bound: The bound $c$, above 0.

    Returns:
        Logits of the same shape, in (-c, c).

    Raises:
        ValueError: If the bound is not positive, there are fewer than two classes, or a pre-logit
            is not finite.

    Source:
        kanai2021constraining, abstract: a bounded activation as the counterexample.

    Taught in: book/robustness/bounded-logits
    """
    _check_bound(bound)
    return bound * torch.tanh(_checked(u))


def blf(u: Tensor, bound: float) -> Tensor:
    r"""Bounded logit function: rises to the bound at a finite pre-logit and falls beyond it.

    $$g(u) = \frac{c}{\hat g}\, u\, \sigma(u)\, \sigma(-u), \qquad
    \hat g = \max_u u\, \sigma(u)\, \sigma(-u)$$

    with the logistic function $\sigma$. Equation (eq-blf-blf) of the lesson. In the other
    convention, $g(u) = \gamma\, u\, \sigma(u)(1 - \sigma(u))$, the peak is $c = \hat g\, \gamma$.

    Args:
        u: Pre-logits of shape (..., classes).
        bound: The peak $c$, above 0.

    Returns:
        Logits of the same shape, in [-c, c].

    Raises:
        ValueError: As ``tanh_head`` does.

    Source:
        kanai2021constraining; the formula is recalled, not read.

    Taught in: book/robustness/bounded-logits
    """
    _check_bound(bound)
    u = _checked(u)
    return bound / PEAK * u * torch.sigmoid(u) * torch.sigmoid(-u)


def blf_slope(u: Tensor, bound: float) -> Tensor:
    r"""Derivative of ``blf``: $\frac{c}{\hat g}\,\sigma(u)\,\sigma(-u)\,[1 - u \tanh(u/2)]$.

    Equation (eq-blf-slope) of the lesson. It is zero at $\pm u^*$ and negative beyond.

    Args:
        u: Pre-logits of shape (..., classes).
        bound: The peak $c$, above 0.

    Returns:
        Slopes of the same shape.

    Raises:
        ValueError: As ``blf`` does.

    Taught in: book/robustness/bounded-logits
    """
    _check_bound(bound)
    u = _checked(u)
    return bound / PEAK * torch.sigmoid(u) * torch.sigmoid(-u) * (1 - u * torch.tanh(u / 2))


def stationary_point(*, tolerance: float = 1e-15) -> float:
    r"""Where the BLF peaks: the positive solution of $u \tanh(u/2) = 1$, by bisection.

    Args:
        tolerance: Width of the last interval.

    Returns:
        $u^*$, as in ``U_STAR``.

    Raises:
        ValueError: If the tolerance is not positive.

    Taught in: book/robustness/bounded-logits
    """
    if not tolerance > 0:
        raise ValueError(f"tolerance must be > 0, got {tolerance}")
    low, high = 1.0, 2.0
    while high - low > tolerance:
        middle = (low + high) / 2
        if middle in (low, high):  # no number left between them
            break
        low, high = (middle, high) if middle * math.tanh(middle / 2) < 1 else (low, middle)
    return (low + high) / 2


def beyond(u: Tensor) -> Tensor:
    r"""Which pre-logits lie beyond the peak, $|u| > u^*$, where a larger one is a smaller logit.

    Args:
        u: Pre-logits of any shape.

    Returns:
        A mask of the same shape.
    """
    return u.abs() > U_STAR


# Heads for attacks only


def monotone_blf(u: Tensor, bound: float) -> Tensor:
    r"""The BLF between $-u^*$ and $u^*$, continued by lines of slope $c / u^*$.

    An attack on it is not tempted to push a pre-logit over the peak, and does not lose its gradient
    far beyond it.

    Args:
        u: Pre-logits of shape (..., classes).
        bound: The peak $c$, above 0.

    Returns:
        Values of the same shape that never fall as a pre-logit rises.

    Raises:
        ValueError: As ``blf`` does.

    Taught in: book/robustness/bounded-logits
    """
    u = _checked(u)
    inside = _clipped(u)
    return blf(inside, bound) + bound / U_STAR * (u - inside)


def straight_through(head: Head, u: Tensor) -> Tensor:
    """The head's values with the gradient of the identity: an attack as if there were no head.

    Args:
        head: The head.
        u: Pre-logits of shape (..., classes).

    Returns:
        The head's values, exactly.

    Source:
        Backward pass differentiable approximation (BPDA), athalye2018obfuscated.

    Taught in: book/robustness/bounded-logits
    """
    return head(u).detach() + (u - u.detach())


def band(u: Tensor) -> Tensor:
    r"""Pre-logits clipped to $[-u^*, u^*]$, where BLF keeps their order; the gradient passes.

    Args:
        u: Pre-logits of shape (..., classes).

    Returns:
        Clipped pre-logits.

    Taught in: book/robustness/bounded-logits
    """
    return straight_through(_clipped, _checked(u))


def _clipped(u: Tensor) -> Tensor:
    return u.clamp(-U_STAR, U_STAR)


# Training with a head


@dataclass(frozen=True)
class Bounded:
    """Any objective on networks whose logits pass through a head first.

    The objective's attack, if it has one, differentiates through the head.

    Attributes:
        objective: What to minimise.
        head: Pre-logits to logits.

    Taught in: book/robustness/bounded-logits
    """

    objective: Objective
    head: Head

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The objective's inputs, found through the head."""
        return self.objective.inputs(with_head(network, self.head), x, y)

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """The objective's loss of the logits behind the head, shape (S,)."""
        return self.objective.loss(with_head(network, self.head), x, found, y)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Both, one after the other."""
        return self.objective(with_head(network, self.head), x, y)


def with_head(network: Network, head: Head) -> Network:
    """The same networks with a head behind the last layer.

    Args:
        network: S networks whose outputs are pre-logits.
        head: Pre-logits to logits.

    Returns:
        Networks whose outputs are logits; weights and buffers are shared.
    """

    def behind(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda params, x: head(forward(params, x))

    forward: Mapping = {mode: behind(run) for mode, run in network.forward.items()}
    return dataclasses.replace(network, forward=forward)


# Closed forms of the optimum


class Optimum(NamedTuple):
    """What training would end at if every input could choose its own logits.

    Attributes:
        margin: True logit minus any other.
        logit_norm: Length of the vector of logits; of label smoothing, which leaves their mean
            free, that of the centred ones.
        pre_logit_norm: Length of the vector of pre-logits.
        cross_entropy: Cross-entropy with the true class, in nats.
    """

    margin: float
    logit_norm: float
    pre_logit_norm: float
    cross_entropy: float


def optimum(kind: Kind, strength: float = 0.0, classes: int = 10) -> Optimum:
    r"""Logits of the lowest loss, one label per input. Equations (eq-blf-floor) to (eq-blf-ls).

    Args:
        kind: ``plain`` cross-entropy; behind ``tanh`` or ``blf``; with ``squeezing`` or
            ``smoothing``.
        strength: The bound $c$ of a head, the weight $\lambda$ of squeezing, the share $\alpha$ of
            smoothing; ``plain`` has none.
        classes: Number of classes K, at least 2.

    Returns:
        Margin and lengths, infinite where no finite logits are best.

    Raises:
        ValueError: If the kind is unknown, the strength does not fit it, or there is one class.

    Source:
        Derived in the lesson.

    Taught in: book/robustness/bounded-logits
    """
    _check_classes(classes)
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}, allowed: {', '.join(get_args(Kind))}")
    inf = math.inf
    if kind == "plain" or (strength == 0 and kind in ("squeezing", "smoothing")):
        return Optimum(inf, inf, inf, 0.0)
    if kind in ("tanh", "blf"):
        _check_bound(strength)
        far = inf if kind == "tanh" else U_STAR * math.sqrt(classes)
        length = strength * math.sqrt(classes)
        return Optimum(2 * strength, length, far, cross_entropy_of(2 * strength, classes))
    if kind == "squeezing":
        check_weight("weight", strength)
        margin = _squeezed_margin(strength, classes)
    else:
        check_share(strength)
        margin = math.log1p(classes * (1 - strength) / strength)
    length = margin * math.sqrt((classes - 1) / classes)
    return Optimum(margin, length, length, cross_entropy_of(margin, classes))


def cross_entropy_of(margin: float, classes: int) -> float:
    r"""Cross-entropy where the true logit leads all others alike, $\log(1 + (K-1)\,e^{-m})$.

    Args:
        margin: The margin $m$.
        classes: Number of classes K.

    Returns:
        Nats.
    """
    _check_classes(classes)
    return math.log1p((classes - 1) * math.exp(-margin))


def _squeezed_margin(weight: float, classes: int) -> float:
    """The margin m at which m (K - 1) / K = (1 - p_y) / weight, by bisection."""
    ratio = (classes - 1) / classes

    def missing(margin: float) -> float:
        odds = math.exp(-margin) * (classes - 1)
        return odds / (1 + odds) / weight - margin * ratio

    return _root(missing, 0.0, 1 / (weight * ratio))


def matched_strength(kind: Kind, logit_norm: float, classes: int = 10) -> float:
    """The strength at which a way to shrink logits has its optimum at a given length.

    Args:
        kind: ``tanh``, ``blf``, ``squeezing`` or ``smoothing``.
        logit_norm: Length of the vector of logits, above 0.
        classes: Number of classes, at least 2.

    Returns:
        The strength to pass to ``optimum``.

    Raises:
        ValueError: If the length is not positive, or the kind has no strength.

    Taught in: book/robustness/bounded-logits
    """
    if not 0 < logit_norm < math.inf:
        raise ValueError(f"logit_norm must be a number > 0, got {logit_norm}")
    _check_classes(classes)
    margin = logit_norm / math.sqrt((classes - 1) / classes)
    if kind in ("tanh", "blf"):
        return logit_norm / math.sqrt(classes)
    if kind == "squeezing":
        odds = math.exp(-margin) * (classes - 1)
        return odds / (1 + odds) / (margin * (classes - 1) / classes)
    if kind == "smoothing":
        return classes / (math.expm1(margin) + classes)
    raise ValueError(f"kind is {kind!r}, allowed: tanh, blf, squeezing, smoothing")


def _root(falling: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function is zero, by bisection."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


# Free pre-logits


def descend(
    head: Head,
    seeds: tuple[int, ...],
    times: tuple[int, ...],
    *,
    classes: int = 10,
    learning_rate: float = 0.5,
    scale: float = 0.1,
) -> Tensor:
    """Gradient descent on the pre-logits of one sample: what training asks of them.

    Args:
        head: Pre-logits to logits.
        seeds: S seeds; each decides a start.
        times: T increasing numbers of steps at which to look; 0 is the start.
        classes: Number of classes, at least 2; the true one is the first.
        learning_rate: Length of a step in units of the gradient.
        scale: Standard deviation of the start.

    Returns:
        Pre-logits of shape (S, T, classes), float64.

    Raises:
        ValueError: If there are no seeds, or the times do not increase from 0 or later.

    Taught in: book/robustness/bounded-logits
    """
    _check_classes(classes)
    if not seeds or not times or times[0] < 0 or list(times) != sorted(set(times)):
        raise ValueError(f"descend needs seeds and increasing times >= 0, got {seeds}, {times}")
    starts = [
        torch.randn(classes, generator=generator(seed, PRE_LOGITS), dtype=torch.float64)
        for seed in seeds
    ]
    u, found = scale * torch.stack(starts), []
    for step in range(times[-1] + 1):
        if step in times:
            found.append(u.clone())
        u = u.detach().requires_grad_()
        (slope,) = torch.autograd.grad(-head(u).log_softmax(-1)[:, 0].sum(), u)
        u = (u - learning_rate * slope).detach()
    return torch.stack(found, 1)


def head_named(name: str, bound: float) -> Head:
    """A head by name.

    Args:
        name: ``none``, ``tanh`` or ``blf``.
        bound: The bound; ``none`` has none.

    Returns:
        Pre-logits to logits.

    Raises:
        ValueError: If the name is unknown, or the bound is not positive.
    """
    if name == "none":
        return identity
    known = {"tanh": tanh_head, "blf": blf}
    if name not in known:
        raise ValueError(f"head is {name!r}, allowed: none, {', '.join(known)}")
    _check_bound(bound)
    return partial(known[name], bound=bound)


# Bad input


def check_weight(name: str, weight: float) -> None:
    """Refuse a weight that is negative or not a number."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name} must be a number >= 0, got {weight}")


def check_share(share: float) -> None:
    """Refuse a share of smoothing outside [0, 1)."""
    if not 0 <= share < 1:
        raise ValueError(f"alpha must be in [0, 1), got {share}")


def _check_bound(bound: float) -> None:
    if not 0 < bound < math.inf:
        raise ValueError(f"bound must be a number > 0, got {bound}")


def _check_classes(classes: int) -> None:
    if classes < 2:
        raise ValueError(f"logits need at least 2 classes, got {classes}")


def _checked(u: Tensor) -> Tensor:
    """Pre-logits in at least single precision, once they have been looked at."""
    _check_classes(u.shape[-1] if u.dim() else 1)
    if not bool(u.isfinite().all()):
        raise ValueError("pre-logits must be finite, got NaN or infinity")
    return u.float() if u.dtype in (torch.bfloat16, torch.float16) else u

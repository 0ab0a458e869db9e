r"""Binary logistic regression under attack in closed form: loss, gradient, Hessian, spectrum.

The best attack on a linear score is known, so nothing here searches for one. Everything takes
leading axes: inputs of shape (..., N, D), weights of shape (..., D), radii of shape (...), which
broadcast against one another, so that a whole grid of tasks and radii is one call. A negative
radius means noise that helps: the attack's direction turned round.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Norm = Literal["l2", "linf"]
Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Problem:
    r"""Two classes, a threat model, and an L2 penalty $\frac\mu2\|w\|^2$.

    Attributes:
        x: Inputs of shape (..., N, D). The attack is not clipped to any box.
        y: Signs of the classes, -1 or 1, shape (..., N).
        epsilon: Radii of shape (...), in the unit of the inputs.
        norm: What the radius bounds: ``l2`` or ``linf``.
        decay: The penalty's factor, at least 0.
    """

    x: Tensor
    y: Tensor
    epsilon: Tensor
    norm: Norm = "l2"
    decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what is no problem of two classes."""
        if self.norm not in get_args(Norm):
            raise ValueError(f"norm is {self.norm!r}, allowed: {', '.join(get_args(Norm))}")
        if self.x.shape[:-1] != self.y.shape or self.y.dim() == 0 or self.y.shape[-1] == 0:
            raise ValueError(
                f"one sign per input: got x {tuple(self.x.shape)}, y {tuple(self.y.shape)}"
            )
        if not bool((self.y.abs() == 1).all()):
            raise ValueError("y must hold -1 and 1 only")
        if not self.decay >= 0:
            raise ValueError(f"decay must be >= 0, got {self.decay}")


def direction(w: Tensor, norm: Norm) -> Tensor:
    r"""Where the attack pushes: $u = w/\|w\|_2$, or the signs of w.

    Args:
        w: Weights of shape (..., D), not zero.
        norm: What the radius bounds.

    Returns:
        Shape (..., D). The attack on a sample is $-y\,\epsilon\,u$, equation (eq-sharp-attack).

    Taught in: book/robustness/sharpness-adversarial-training
    """
    return w.sign() if norm == "linf" else w / w.norm(dim=-1, keepdim=True)


def reach(w: Tensor, norm: Norm) -> Tensor:
    r"""How far an attack of radius one moves the score: the dual norm, $\|w\|_2$ or $\|w\|_1$.

    Args:
        w: Weights of shape (..., D).
        norm: What the radius bounds.

    Returns:
        Shape (...).

    Taught in: book/robustness/sharpness-adversarial-training
    """
    return w.norm(p=1 if norm == "linf" else 2, dim=-1)


def attacked(problem: Problem, w: Tensor) -> Tensor:
    r"""The inputs after the best attack, $x' = x - y\,\epsilon\,u$, equation (eq-sharp-attack).

    Args:
        problem: Samples and threat model.
        w: Weights of shape (..., D).

    Returns:
        Shape (..., N, D).

    Taught in: book/robustness/sharpness-adversarial-training
    """
    push = problem.epsilon.unsqueeze(-1) * direction(w, problem.norm)
    return problem.x - problem.y.unsqueeze(-1) * push.unsqueeze(-2)


def exponents(problem: Problem, w: Tensor) -> Tensor:
    r"""Minus the margin that the attack leaves, $z = -y\,w^\top x + \epsilon\|w\|_*$.

    Args:
        problem: Samples and threat model.
        w: Weights of shape (..., D).

    Returns:
        One number per sample, shape (..., N); a sample's loss is $\log(1 + e^z)$.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    scores = torch.einsum("...nd,...d->...n", problem.x, w)
    return (problem.epsilon * reach(w, problem.norm)).unsqueeze(-1) - problem.y * scores


def adversarial_loss(problem: Problem, w: Tensor) -> Tensor:
    """Mean loss under the best attack, equation (eq-sharp-loss), plus the penalty.

    Args:
        problem: Samples and threat model.
        w: Weights of shape (..., D).

    Returns:
        Shape (...), in nats.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    return _loss_at(problem, w, exponents(problem, w))


def _loss_at(problem: Problem, w: Tensor, z: Tensor) -> Tensor:
    return F.softplus(z).mean(-1) + problem.decay / 2 * w.square().sum(-1)


def adversarial_gradient(problem: Problem, w: Tensor) -> Tensor:
    r"""Exact gradient of the loss under attack: the mean of $s\,a$ with $a = -y\,x'$.

    At a kink (a coordinate of w at zero under an L-infinity attack) it is the mean of the
    gradients on both sides.

    Args:
        problem: Samples and threat model.
        w: Weights of shape (..., D), not zero.

    Returns:
        Shape (..., D).

    Taught in: book/robustness/sharpness-adversarial-training
    """
    return _gradient_at(problem, w, exponents(problem, w))


def _gradient_at(problem: Problem, w: Tensor, z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    pull = torch.einsum("...n,...nd->...d", s * problem.y, problem.x) / s.shape[-1]
    push = (s.mean(-1) * problem.epsilon).unsqueeze(-1) * direction(w, problem.norm)
    return push - pull + problem.decay * w


def hessian(problem: Problem, w: Tensor, *, frozen: bool = False) -> Tensor:
    r"""Hessian of the loss under attack, equation (eq-sharp-hessian).

    Args:
        problem: Samples and threat model; for ``linf`` no coordinate of w may be zero.
        w: Weights of shape (..., D), not zero.
        frozen: Whether the attack is held where it is while w moves; that leaves out the term
            $s\,\epsilon/\|w\|\,(I - uu^\top)$. For ``linf`` there is no such term.

    Returns:
        Shape (..., D, D).

    Taught in: book/robustness/sharpness-adversarial-training
    """
    s = torch.sigmoid(exponents(problem, w))
    a = -problem.y.unsqueeze(-1) * attacked(problem, w)
    weight = (s * (1 - s)).unsqueeze(-1)
    found = (a * weight).mT @ a / s.shape[-1]
    identity = torch.eye(w.shape[-1], dtype=w.dtype, device=w.device)
    if problem.norm == "l2" and not frozen:
        u = direction(w, "l2")
        lift = s.mean(-1) * problem.epsilon / w.norm(dim=-1)
        found = found + lift[..., None, None] * (identity - u.unsqueeze(-1) * u.unsqueeze(-2))
    return found + problem.decay * identity


class Sample(NamedTuple):
    r"""What the Hessian of a single sample depends on, under an L2 attack.

    Attributes:
        slope: $s = \sigma(z)$, shape (..., N).
        bend: $\kappa = s(1 - s)$.
        margin: The geometric margin that the attack leaves, $\rho = y\,w^\top x/\|w\| - \epsilon$.
        across: $x_\perp$, the length of the part of x that is perpendicular to w.
        lift: $\beta = s\,\epsilon/\|w\|$.
    """

    slope: Tensor
    bend: Tensor
    margin: Tensor
    across: Tensor
    lift: Tensor


def samples(problem: Problem, w: Tensor) -> Sample:
    """The quantities that decide the Hessian of every single sample.

    Args:
        problem: Samples and an L2 threat model.
        w: Weights of shape (..., D), not zero.

    Returns:
        Tensors of shape (..., N).

    Raises:
        ValueError: If the threat model is not L2.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    if problem.norm != "l2":
        raise ValueError(f"the spectrum of a sample is known for l2, got {problem.norm!r}")
    z, length = exponents(problem, w), w.norm(dim=-1).unsqueeze(-1)
    s = torch.sigmoid(z)
    along = torch.einsum("...nd,...d->...n", problem.x, direction(w, "l2"))
    across = (problem.x.square().sum(-1) - along.square()).clamp_min(0).sqrt()
    lift = s * problem.epsilon.unsqueeze(-1) / length
    return Sample(s, s * (1 - s), -z / length, across, lift)


def sample_spectrum(problem: Problem, w: Tensor) -> Tensor:
    r"""The eigenvalues of every sample's own Hessian, equation (eq-sharp-spectrum).

    Args:
        problem: Samples and an L2 threat model; the penalty does not count here.
        w: Weights of shape (..., D), D at least 2.

    Returns:
        Shape (..., N, 3): the two that belong to the plane of w and x, larger first, and $\beta$,
        which all D - 2 others equal.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    _, bend, margin, across, lift = samples(problem, w)
    total = bend * (margin.square() + across.square()) + lift
    product = bend * lift * margin.square()
    larger = (total + (total.square() - 4 * product).clamp_min(0).sqrt()) / 2
    smaller = torch.where(larger > 0, product / larger.clamp_min(1e-300), 0.0)
    return torch.stack([larger, smaller, lift], dim=-1)


def sample_traces(problem: Problem, w: Tensor) -> Tensor:
    r"""Trace of every sample's own Hessian, $\kappa(\rho^2 + x_\perp^2) + (D - 1)\,\beta$.

    Args:
        problem: Samples and an L2 threat model; the penalty does not count here.
        w: Weights of shape (..., D).

    Returns:
        Shape (..., N).

    Taught in: book/robustness/sharpness-adversarial-training
    """
    _, bend, margin, across, lift = samples(problem, w)
    return bend * (margin.square() + across.square()) + (w.shape[-1] - 1) * lift


def trace_slopes(problem: Problem, w: Tensor) -> Tensor:
    """Derivative of every sample's trace in the radius, at fixed w: equation (eq-sharp-slope).

    Args:
        problem: Samples and an L2 threat model.
        w: Weights of shape (..., D).

    Returns:
        Shape (..., N).

    Taught in: book/robustness/sharpness-adversarial-training
    """
    s, bend, margin, across, _ = samples(problem, w)
    length = w.norm(dim=-1).unsqueeze(-1)
    reached = bend * (1 - 2 * s) * length * (margin.square() + across.square())
    lifted = bend * problem.epsilon.unsqueeze(-1) + s / length
    return reached - 2 * bend * margin + (w.shape[-1] - 1) * lifted


def critical_radius(x: Tensor, y: Tensor, norm: Norm = "l2") -> Tensor:
    r"""The radius from which on $w = 0$ is the best answer: the norm of the mean of $y\,x$.

    Proposition (thm-sharp-critical): training against a larger attack gives up.

    Args:
        x: Inputs of shape (..., N, D).
        y: Signs of shape (..., N).
        norm: What the radius bounds; then the mean is measured in the same norm.

    Returns:
        Shape (...), in the unit of the inputs.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    return (y.unsqueeze(-1) * x).mean(-2).norm(p=math.inf if norm == "linf" else 2, dim=-1)


# Training


class Descent(NamedTuple):
    """What gradient descent did.

    Attributes:
        w: Weights at the end, shape (..., D).
        loss: Loss before every step, shape (..., T).
        gradient: Length of the gradient before every step, shape (..., T).
        flips: How many coordinates of w changed their sign in every step, shape (..., T).
        restless: Which coordinates changed their sign in the last tenth of all steps, (..., D).
    """

    w: Tensor
    loss: Tensor
    gradient: Tensor
    flips: Tensor
    restless: Tensor


def descend(
    problem: Problem,
    start: Tensor,
    steps: int,
    rate: float,
    *,
    schedule: Schedule = "constant",
    level: float | None = None,
) -> Descent:
    """Full-batch gradient descent on the loss under attack; the attack is exact at every step.

    Args:
        problem: Samples and threat model.
        start: Weights of shape (..., D), not zero, of the full shape of the problem.
        steps: Number of steps.
        rate: Step size.
        schedule: ``constant``, or down to zero by ``cosine``.
        level: A weight vector stays where its loss first was at or below this, and descent ends
            when all stay; None: none stays.

    Returns:
        The last weights, and what was seen on the way; T is ``steps`` or where descent ended.

    Raises:
        ValueError: If ``steps`` or ``rate`` is not positive, the schedule is unknown, or a start is
            zero, where the loss has no gradient.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    if steps < 1 or not rate > 0 or schedule not in get_args(Schedule):
        raise ValueError(
            f"descend needs steps >= 1, rate > 0 and a schedule out of "
            f"{', '.join(get_args(Schedule))}; got {steps}, {rate}, {schedule!r}"
        )
    if bool((start == 0).all(-1).any()):
        raise ValueError("descent cannot start at w = 0, where the loss under attack has a kink")
    w, seen = start, []
    restless = torch.zeros_like(start, dtype=torch.bool)
    for step in range(steps):
        z = exponents(problem, w)  # once for both
        gradient, loss = _gradient_at(problem, w, z), _loss_at(problem, w, z)
        length = gradient.norm(dim=-1)
        if level is not None:
            gradient = torch.where((loss <= level).unsqueeze(-1), 0.0, gradient)
        factor = 0.5 * (1 + math.cos(math.pi * step / steps)) if schedule == "cosine" else 1.0
        moved = w - rate * factor * gradient
        turned = moved.sign() != w.sign()
        seen.append((loss, length, turned.sum(-1)))
        if step >= 0.9 * steps:
            restless = restless | turned
        w = moved
        if level is not None and bool((loss <= level).all()):
            break
    losses, gradients, flips = (torch.stack(parts, dim=-1) for parts in zip(*seen, strict=True))
    return Descent(w, losses, gradients, flips, restless)


def least_subgradient(problem: Problem, w: Tensor, on_kink: Tensor) -> Tensor:
    r"""Length of the shortest subgradient, where some coordinates of w count as zero.

    With an L-infinity attack, coordinate j of the gradient jumps by $2\epsilon\bar s$ at $w_j = 0$,
    and every number between both sides is a subgradient. A point is a minimum exactly if zero is
    one of them, whatever the gradients at its sides are.

    Args:
        problem: Samples and an L-infinity threat model.
        w: Weights of shape (..., D).
        on_kink: Which coordinates count as zero, shape (..., D).

    Returns:
        Shape (...).

    Raises:
        ValueError: If the threat model is not L-infinity.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    if problem.norm != "linf":
        raise ValueError(f"the loss has kinks at w_j = 0 for linf, got {problem.norm!r}")
    w = torch.where(on_kink, 0.0, w)
    half = half_jump(problem, w).unsqueeze(-1)
    sides = adversarial_gradient(problem, w)  # on a kink: the middle between both sides
    short = torch.where(on_kink, (sides.abs() - half).clamp_min(0), sides.abs())
    return short.norm(dim=-1)


def half_jump(problem: Problem, w: Tensor) -> Tensor:
    r"""Half of what the gradient jumps by where a coordinate of w changes sign: $\epsilon\,\bar s$.

    Args:
        problem: Samples and an L-infinity threat model.
        w: Weights of shape (..., D).

    Returns:
        Shape (...).

    Taught in: book/robustness/sharpness-adversarial-training
    """
    return problem.epsilon * torch.sigmoid(exponents(problem, w)).mean(-1)


def secant(gradient: Callable[[Tensor], Tensor], w: Tensor, way: Tensor, h: float) -> Tensor:
    r"""How much the gradient changes per length: $\|g(w + h v) - g(w - h v)\| / 2h$.

    Args:
        gradient: Maps weights (..., D) to gradients of the same shape.
        w: The point, shape (..., D).
        way: Direction v of length one, shape (..., D).
        h: Half of the distance, positive.

    Returns:
        Shape (...). No gradient with a Lipschitz constant lets it exceed that constant.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    if not h > 0:
        raise ValueError(f"h must be > 0, got {h}")
    return (gradient(w + h * way) - gradient(w - h * way)).norm(dim=-1) / (2 * h)


# The landscape along random directions


def random_directions(w: Tensor, count: int, stream: torch.Generator) -> Tensor:
    """Random directions as long as the weights: filter-normalised, for a model with one filter.

    Args:
        w: Weights of shape (..., D).
        count: Number of directions, K.
        stream: Decides them; all weights get the same ones, up to length.

    Returns:
        Shape (..., K, D).

    Source:
        li2018visualizing.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    drawn = torch.randn(count, w.shape[-1], generator=stream, dtype=w.dtype)
    drawn = drawn / drawn.norm(dim=-1, keepdim=True)
    return drawn * w.norm(dim=-1)[..., None, None]


def rise(problem: Problem, w: Tensor, ways: Tensor, alpha: float) -> Tensor:
    r"""Mean of $\frac12[L(w + \alpha d) + L(w - \alpha d)] - L(w)$; the attack follows the weights.

    Args:
        problem: Samples and threat model.
        w: Weights of shape (..., D).
        ways: Directions d of shape (..., K, D).
        alpha: How far to go.

    Returns:
        Shape (...), in nats.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    shared = Problem(
        problem.x.unsqueeze(-3),
        problem.y.unsqueeze(-2),
        problem.epsilon.unsqueeze(-1),
        problem.norm,
        problem.decay,
    )
    base = w.unsqueeze(-2)
    ends = [adversarial_loss(shared, base + sign * alpha * ways) for sign in (1, -1)]
    return (ends[0] + ends[1]).mean(-1) / 2 - adversarial_loss(problem, w)

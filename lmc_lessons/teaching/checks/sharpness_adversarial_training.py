"""Checks of the exercises in the lesson on sharpness under adversarial training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.experiments.sharpness_adversarial_training import Task
from lmc_lessons.robustness.logistic import (
    Problem,
    attacked,
    critical_radius,
    descend,
    half_jump,
    hessian,
)
from lmc_lessons.teaching.checks import (
    Wrong,
    checker,
    require,
    require_number,
    require_tensor,
)

RADII = (0.0, 0.3, 0.6)  # of the experiment, as shares of the critical radius
DECAYS = (1e-3, 1e-2, 1e-1)
STEPS, RATE = 2000, 0.5


def _drawn(seed: int, n: int = 6, d: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs (n, d), signs (n,) and weights (d,)."""
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=stream, dtype=torch.float64)
    y = torch.where(torch.arange(n) % 3 == 0, -1.0, 1.0).double()
    return x, y, torch.randn(d, generator=stream, dtype=torch.float64)


def _problem(x: Tensor, y: Tensor, epsilon: float, norm: Any = "l2") -> Problem:
    return Problem(x, y, torch.tensor(epsilon, dtype=x.dtype), norm)


def _check_attack(best_attack: Any) -> None:
    """The attacked inputs under an L2 attack."""
    x, y, w = _drawn(1)
    unit, epsilon = w / w.norm(), 0.7
    expected = attacked(_problem(x, y, epsilon), w)
    signs = y.unsqueeze(1)
    require_tensor(
        best_attack(x.clone(), y.clone(), w.clone(), epsilon),
        expected,
        {
            "that lowers the loss: the sign is the wrong way round": x + signs * epsilon * unit,
            "that pushes both classes the same way: multiply by y": x - epsilon * unit,
            "a step of length epsilon: divide w by its length": x - signs * epsilon * w,
            "that is the L-infinity attack: take w over its length, not its signs": x
            - signs * epsilon * w.sign(),
            "that is the attack alone: add it to x": expected - x,
            "divide by the length of w, not by its square": x - signs * epsilon * w / (w @ w),
        },
    )


def _check_hessian(own_hessian: Any) -> None:
    """The Hessian of one sample, attack recomputed."""
    for seed, sign in ((2, 1.0), (3, -1.0)):
        xs, _, w = _drawn(seed)
        x, y, epsilon = xs[0], torch.tensor(sign, dtype=torch.float64), 0.4
        problem = _problem(x.unsqueeze(0), y.unsqueeze(0), epsilon)
        expected = hessian(problem, w)
        unit, length = w / w.norm(), w.norm()
        s = torch.sigmoid(-y * (w @ x) + epsilon * length)
        a = -y * x + epsilon * unit
        first = s * (1 - s) * torch.outer(a, a)
        eye = torch.eye(len(w), dtype=torch.float64)
        side = eye - torch.outer(unit, unit)
        clean = torch.sigmoid(-y * (w @ x))
        require_tensor(
            own_hessian(x.clone(), float(y), w.clone(), epsilon),
            expected,
            {
                "that is the frozen attack: add how the attack turns with w": first,
                "the second term: divide by the length of w": first + s * epsilon * side,
                "the second term spares the direction of w: I - u u^T": first
                + s * epsilon / length * eye,
                "the second term is weighted by s, not by s (1 - s)": first
                + s * (1 - s) * epsilon / length * side,
                "the second term is weighted by s": first + epsilon / length * side,
                "the first term is weighted by s (1 - s)": torch.outer(a, a)
                + s * epsilon / length * side,
                "the first term takes the attacked input, not x": s * (1 - s) * torch.outer(x, x)
                + s * epsilon / length * side,
                "s is that of the attacked sample: add epsilon |w| inside": clean
                * (1 - clean)
                * torch.outer(a, a)
                + clean * epsilon / length * side,
            },
        )


def _check_helpful(helpful_loss: Any) -> None:
    """Mean loss with noise that lowers it."""
    x, y, w = _drawn(4)
    for epsilon in (0.3, 1.1):
        margins = y * (x @ w)
        reach = epsilon * w.norm()

        def mean(z: Tensor) -> float:
            return float(F.softplus(z).mean())

        require_number(
            helpful_loss(x.clone(), y.clone(), w.clone(), epsilon),
            mean(-margins - reach),
            {
                "that is the attack, which raises the loss": mean(-margins + reach),
                "that is the clean loss: where is the noise?": mean(-margins),
                "multiply by the length of w: a step of length epsilon moves the score by "
                "epsilon |w|": mean(-margins - epsilon),
                "that is the sum over the samples: take the mean": float(
                    F.softplus(-margins - reach).sum()
                ),
                "that pushes both classes the same way: the noise has the sign of y": mean(
                    -margins - y * reach
                ),
                "that is noise in the L-infinity sense: use the Euclidean length of w": mean(
                    -margins - epsilon * w.abs().sum()
                ),
            },
        )


def _check_jump(jump: Any) -> None:
    """The jump of the gradient where one weight changes its sign."""
    x, y, w = _drawn(5)
    for j, epsilon in ((1, 0.3), (3, 0.8)):
        on_kink = w.clone()
        on_kink[j] = 0
        problem = _problem(x, y, epsilon, "linf")
        expected = float(2 * half_jump(problem, on_kink))
        s = torch.sigmoid(-y * (x @ on_kink))
        moved = float(2 * half_jump(problem, w))
        require_number(
            jump(x.clone(), y.clone(), w.clone(), j, epsilon),
            expected,
            {
                "from -epsilon s to +epsilon s: twice that": expected / 2,
                "weight it by the mean slope of the samples": 2 * epsilon,
                "s is that of the attacked samples: add epsilon times the sum of |w|": float(
                    2 * epsilon * s.mean()
                ),
                "take the mean over the samples, not the sum": expected * len(x),
                "put weight j to zero first: there the gradient jumps": moved,
                "that is an L2 attack: the dual norm of L-infinity is the sum of |w|": float(
                    2 * epsilon * torch.sigmoid(epsilon * on_kink.norm() - y * (x @ on_kink)).mean()
                ),
            },
        )


def _check_turning(turning: Any) -> None:
    """How fast the L2 attack turns with the weights."""
    _, _, w = _drawn(6)
    for factor in (1.0, 0.5):
        v, epsilon = factor * w, 0.6
        length = float(v.norm())
        require_number(
            turning(v.clone(), epsilon),
            epsilon / length,
            {
                "the attack has length epsilon: multiply by it": 1 / length,
                "shorter weights turn faster: divide by the length of w": epsilon * length,
                "that is how long the attack is, not how fast it turns": epsilon,
                "divide by the length, not by its square": epsilon / length**2,
                "divide by the Euclidean length, not by the sum of |w|": epsilon
                / float(v.abs().sum()),
            },
        )


def sharpening(
    t: Task,
    decay: float,
    *,
    frozen: bool = False,
    penalty: bool = False,
    attack: bool = True,
) -> list[float]:
    """Top eigenvalue at the minimum with weight decay, for every radius of the experiment.

    Args:
        t: Two classes of images.
        decay: The penalty's factor.
        frozen: Whether the attack is held while the Hessian is taken.
        penalty: Whether the penalty counts in the Hessian.
        attack: Whether the Hessian is that of the loss under attack.

    Returns:
        One number per radius.
    """
    epsilon = critical_radius(t.x, t.y) * torch.tensor(RADII, dtype=torch.float64)
    problem = Problem(t.x[None], t.y[None], epsilon, decay=decay)
    w = descend(problem, t.start.expand(len(RADII), -1).clone(), STEPS, RATE).w
    measured = dataclasses.replace(
        problem,
        decay=decay if penalty else 0.0,
        epsilon=epsilon if attack else torch.zeros_like(epsilon),
    )
    found: list[float] = torch.linalg.eigvalsh(hessian(measured, w, frozen=frozen))[:, -1].tolist()
    return found


def reference_sharpening(t: Task, decays: tuple[float, ...]) -> dict[float, float]:
    """By how much training against the largest radius sharpens, for every weight decay.

    Args:
        t: Two classes of images.
        decays: Factors of the penalty.

    Returns:
        Decay to the top eigenvalue at the largest radius over that without an attack.
    """
    found = {}
    for decay in decays:
        tops = sharpening(t, decay)
        found[decay] = tops[-1] / tops[0]
    return found


def _check_decays(measured: Any) -> None:
    """The experiment: weight decay and sharpening."""
    given, t = measured()
    require(isinstance(given, dict), f"return a dictionary, got {type(given).__name__}")
    given = {round(float(k), 9): float(v) for k, v in given.items()}
    wanted = [round(decay, 9) for decay in DECAYS]
    require(
        sorted(given) == sorted(wanted), f"one ratio for each decay in {DECAYS}, got {list(given)}"
    )
    expected = reference_sharpening(t, DECAYS)
    known: dict[str, Callable[[float], float]] = {
        "the other way round: radius 0.6 over radius 0": lambda d: 1 / expected[d],
        "the Hessian of the clean loss: measure under the attack": lambda d: _ratio(
            sharpening(t, d, attack=False)
        ),
        "the penalty's own curvature is in your Hessian: measure with decay 0": lambda d: _ratio(
            sharpening(t, d, penalty=True)
        ),
        "every decay gives the same: is it in the loss that you train on?": lambda d: expected[
            DECAYS[0]
        ],
        "the ratio of radius 0.3": lambda d: _ratio(sharpening(t, d)[:2]),
        "the top eigenvalue itself: divide by that without an attack": lambda d: sharpening(t, d)[
            -1
        ],
    }
    if _near(given, {d: expected[d] for d in DECAYS}):
        return
    for message, value in known.items():
        require(not _near(given, {d: value(d) for d in DECAYS}), message)
    if len(set(given.values())) == 1:
        raise Wrong("every decay gives the same: is it in the loss that you train on?")
    worst = max(DECAYS, key=lambda d: abs(given[round(d, 9)] / expected[d] - 1))
    raise Wrong(
        f"at {worst:g} you got {given[round(worst, 9)]:.4g}, expected {expected[worst]:.4g}"
    )


def _ratio(tops: list[float]) -> float:
    return tops[-1] / tops[0]


def _near(given: dict[float, float], expected: dict[float, float]) -> bool:
    return all(
        abs(given[round(d, 9)] - value) <= 0.003 * abs(value) for d, value in expected.items()
    )


check = checker(
    {
        "attack": _check_attack,
        "hessian": _check_hessian,
        "helpful": _check_helpful,
        "jump": _check_jump,
        "turning": _check_turning,
        "decays": _check_decays,
    }
)

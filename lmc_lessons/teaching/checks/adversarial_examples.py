"""Checks of the exercises in the lesson on adversarial examples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.robustness.attacks import LInf, Predict, cross_entropy, fgsm, loss_gradient
from lmc_lessons.robustness.masking import scaled, staircase
from lmc_lessons.robustness.power_law import fit_power
from lmc_lessons.teaching.checks import (
    Wrong,
    checker,
    require,
    require_number,
    require_tensor,
)

Windows = list[tuple[float, float]]


def _check_steepest(steepest_l1: Any) -> None:
    """The step of unit length, in the sum of absolute values, along which g rises most."""
    gradient = torch.tensor([[1.0, -3.0, 2.0], [0.5, 0.2, -0.1], [-4.0, 1.0, 3.9]])
    at = gradient.abs().argmax(1, keepdim=True)
    expected = torch.zeros_like(gradient).scatter(1, at, gradient.gather(1, at).sign())
    largest = gradient.argmax(1, keepdim=True)
    ones = torch.ones_like(gradient[:, :1])
    require_tensor(
        steepest_l1(gradient.clone()),
        expected,
        {
            "that is the step for the largest change of any entry: its sum is far above 1": (
                gradient.sign()
            ),
            "that is the step of Euclidean length 1": gradient / gradient.norm(dim=1, keepdim=True),
            "right length, but the budget is spread: all of it belongs to one entry": (
                gradient / gradient.abs().sum(1, keepdim=True)
            ),
            "right length, but spread evenly: all of it belongs to one entry": (
                gradient.sign() / gradient.shape[1]
            ),
            "a large negative entry is as good: compare absolute values": torch.zeros_like(
                gradient
            ).scatter(1, largest, ones),
            "right entry, wrong sign where the gradient is negative": expected.abs(),
            "that step lowers the loss": -expected,
            "right entry, but the step must have length 1, not the gradient's": expected
            * gradient.abs(),
        },
    )


def _check_project(project: Any) -> None:
    """The nearest point that is within epsilon of the centre and inside the box."""
    centre = torch.tensor([[0.05, 0.5, 0.95], [0.5, 0.0, 1.0]])
    moved = torch.tensor([[-0.4, 0.9, 1.5], [0.45, 0.3, 0.2]])
    epsilon = 0.2
    cube = torch.minimum(torch.maximum(moved, centre - epsilon), centre + epsilon)
    step = moved - centre
    size = step.abs().amax(1, keepdim=True)
    require_tensor(
        project(moved.clone(), centre.clone(), epsilon),
        cube.clamp(0, 1),
        {
            "the box [0, 1] is missing": cube,
            "the cube around the centre is missing": moved.clamp(0, 1),
            "return a point, not the change": cube.clamp(0, 1) - centre,
            "that clips to [-epsilon, epsilon]: the cube lies around the centre": moved.clamp(
                -epsilon, epsilon
            ),
            "that shortens the whole step: each coordinate can be clipped alone": (
                centre + step * (epsilon / size).clamp(max=1)
            ).clamp(0, 1),
            "every coordinate is moved by epsilon: one that is near enough stays": (
                centre + epsilon * step.sign()
            ).clamp(0, 1),
        },
    )


def _check_place(leading_constant: Any) -> None:
    """The constant of the leading term, for independent uniform logits."""
    for classes, k in ((8, 3), (10, 1), (10, 2), (5, 4)):
        require_number(
            leading_constant(classes, k),
            math.comb(classes, k),
            {
                "any of the K logits may be the largest: you fixed which one": math.comb(
                    classes - 1, k
                )
                / (classes - k),
                "the largest is chosen, but the integral over its value is missing": classes
                * math.comb(classes - 1, k),
                "which of the others are near does not matter: choose them without order": (
                    math.perm(classes, k)
                ),
                "k others are near, not k - 1": math.comb(classes, k - 1),
                "the largest is one more: k others of the K - 1 that are left": math.comb(
                    classes, k + 1
                ),
                "the constant for k = 1 only": classes,
            },
        )


def _linear(seed: int, scale: float = 1.0) -> Predict:
    stream = torch.Generator().manual_seed(seed)
    weight = scale * torch.randn(12, 4, generator=stream, dtype=torch.float64)
    return lambda x: x @ weight


def _samples(count: int = 60) -> Tensor:
    return torch.rand(count, 12, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def _read(network: Predict, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (network(x).argmax(1) == y).double().mean().item()


def _check_transfer(transfer_accuracy: Any) -> None:
    """What one network reads of the examples that were made for another."""
    target, apart, noise, x = _linear(1), _linear(2), _linear(3), _samples()
    y = (target(x) + 0.4 * noise(x)).argmax(1)
    epsilon = 0.07

    def surrogate(x: Tensor) -> Tensor:
        return target(x) + apart(x)

    gradient, _, _ = loss_gradient(surrogate, x, y, cross_entropy)
    moved = fgsm(surrogate, x, y, LInf(epsilon))
    require_number(
        transfer_accuracy(target, surrogate, x.clone(), y.clone(), epsilon),
        _read(target, moved, y),
        {
            "the examples must be made for the surrogate": _read(
                target, fgsm(target, x, y, LInf(epsilon)), y
            ),
            "the target reads the examples in the end, not the surrogate": _read(
                surrogate, moved, y
            ),
            "that is the target's accuracy without any attack": _read(target, x, y),
            "that is the share misread: return the share still read": 1 - _read(target, moved, y),
            "the box is missing: inputs must stay in [0, 1]": _read(
                target, x + epsilon * gradient.sign(), y
            ),
            "the step lowers the loss: go up": _read(
                target, (x - epsilon * gradient.sign()).clamp(0, 1), y
            ),
            "take the signs of the gradient": _read(
                target, (x + epsilon * gradient).clamp(0, 1), y
            ),
            "return a share, not a number of samples": _read(target, moved, y) * len(x),
        },
    )


def _check_mask(hides_gradient: Any) -> None:
    """Whether a network hides its gradient: masks of two kinds, and honest networks."""
    x = _samples().float()
    weak = _float(_linear(5))
    cases = {
        "an honest network that is weak is called masked": (weak, False),
        "an honest network with small logits is called masked: its gradient is small, not zero": (
            scaled(weak, 1e-4),
            False,
        ),
        "an honest network that nothing in the box can fool is called masked": (
            _strong(weak),
            False,
        ),
        "the network with multiplied logits passes": (scaled(weak, 1e5), True),
        "the network behind a staircase passes": (staircase(weak, 0.1), True),
    }
    for message, (network, masked) in cases.items():
        given = hides_gradient(network, x.clone(), network(x).argmax(1))
        if isinstance(given, Tensor) and given.numel() == 1:
            given = given.item()
        require(
            isinstance(given, bool | int) and given in (0, 1),
            f"return True or False, got {type(given).__name__}",
        )
        require(bool(given) == masked, message)


def _float(network: Predict) -> Predict:
    return lambda x: network(x.double()).float()


def _strong(network: Predict) -> Predict:
    """An honest network whose first logit leads by more than any change of the input can undo."""
    lead = torch.tensor([8.0, 0.0, 0.0, 0.0])
    return lambda x: 0.2 * network(x) + lead


def reference_exponents(
    radii: list[float], errors: list[float], windows: Windows
) -> dict[tuple[float, float], float]:
    """The exponent in each window.

    Args:
        radii: Positive numbers.
        errors: One per radius.
        windows: Pairs of a lowest and a highest error.

    Returns:
        Window to exponent.
    """
    return {(a, b): fit_power(radii, errors, low=a, high=b).exponent for a, b in windows}


def _check_window(exponents_by_window: Any) -> None:
    """Slopes on logarithmic axes, each from the points of its window."""
    radii = [0.001 * 1.6**k for k in range(14)]
    errors = [1 - math.exp(-3 * r - 60 * r * r) for r in radii]
    windows = [(0.002, 0.05), (0.002, 0.2), (0.02, 0.6), (0.0, 0.95)]
    given = exponents_by_window(list(radii), list(errors), list(windows))
    require(isinstance(given, dict), f"return a dict, got {type(given).__name__}")
    require(
        set(given) == set(windows), f"the keys must be the windows {windows}, got {list(given)}"
    )
    everything = fit_power(radii, errors, low=0.0, high=1.0).exponent
    for window, expected in reference_exponents(radii, errors, windows).items():
        low, high = window
        inside = [(r, e) for r, e in zip(radii, errors, strict=True) if low < e < high]
        r, e = (torch.tensor(part, dtype=torch.float64) for part in zip(*inside, strict=True))
        a, b = r.log() - r.log().mean(), e.log() - e.log().mean()
        plain = ((r - r.mean()) @ (e - e.mean()) / (r - r.mean()).square().sum()).item()
        within = {
            "the window is on the errors, not on the radii": _slope_between(radii, errors, window),
            "all points were used: only those in the window count": everything,
            "take logarithms of both": plain,
            "that is the slope of the radius on the error: swap the two": float(a @ b / (b @ b)),
            "that line goes through the origin: subtract the means first": float(
                r.log() @ e.log() / r.log().square().sum()
            ),
            "take the logarithm of the radii too": float(
                (r - r.mean()) @ b / (r - r.mean()).square().sum()
            ),
            "take the logarithm of the errors too": float(a @ (e - e.mean()) / (a @ a)),
            "the slope between the first and the last point: use all in the window": float(
                (b[-1] - b[0]) / (a[-1] - a[0])
            ),
        }
        try:
            require_number(given[window], expected, within)
        except Wrong as error:
            raise Wrong(f"window {window}: {error}") from error


def _slope_between(radii: list[float], errors: list[float], window: tuple[float, float]) -> float:
    """The slope if the window is taken for one on the radii; not a number if that leaves none."""
    chosen = [(r, e) for r, e in zip(radii, errors, strict=True) if window[0] < r < window[1]]
    if len(chosen) < 3:
        return math.nan
    r, e = zip(*chosen, strict=True)
    return fit_power(r, e, low=0.0, high=1.0).exponent


check = checker(
    {
        "steepest": _check_steepest,
        "project": _check_project,
        "place": _check_place,
        "transfer": _check_transfer,
        "mask": _check_mask,
        "window": _check_window,
    }
)

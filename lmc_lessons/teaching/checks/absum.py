"""Checks of the exercises in the lesson on the sum of a kernel."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.absum import PRESETS
from lmc_lessons.models import Params, build, predict, unstack
from lmc_lessons.robustness.absum import absum_step, after_each_step, kernel_sums, l1_step
from lmc_lessons.robustness.fourier import band, heat_map, singular_values, wave
from lmc_lessons.teaching.checks import Wrong, checker, require, require_number, require_tensor
from lmc_lessons.training import TrainConfig, train

SHORT = TrainConfig(epochs=5, batch_size=32, optimizer="sgd", learning_rate=0.05)


def _drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _check_prox(prox: Any) -> None:
    """The proximal step of Absum, on kernels with small and large sums of either sign."""
    weight = _drawn(3, 2, 3, 3, seed=1)
    weight[0, 0] += 2
    weight[1, 1] -= 2
    weight[2, 0] += 0.005 - weight[2, 0].mean()  # a sum below the size
    size = 0.1
    sums = kernel_sums(weight)[..., None, None]
    across = weight.sum((1, 2, 3), keepdim=True)
    require_tensor(
        prox(weight.clone(), size),
        absum_step(weight, size),
        {
            "a full step even where the sum is small: it jumps over zero": weight
            - size * sums.sign(),
            "clip the mean of the kernel, not its sum": weight - sums.clamp(-size, size),
            "that clips the sum and spreads it: the size bounds the change of each entry": weight
            - sums.clamp(-size, size) / 9,
            "one sum for each pair of channels, not one for each output": weight
            - (across / 18).clamp(-size, size),
            "that takes the whole mean off: kernels with a large sum move by the size only": weight
            - sums / 9,
            "that is the step of the L1 norm: it moves every entry towards zero": l1_step(
                weight, size
            ),
            "the sum must shrink: subtract the clipped mean": weight
            + (sums / 9).clamp(-size, size),
            "return the kernels after the step, not the change": -(sums / 9).clamp(-size, size)
            + torch.zeros_like(weight),
        },
    )


def _check_wave(make_wave: Any) -> None:
    """One wave, scaled to largest size one."""
    for u, v, side in ((2, 3, 8), (0, 5, 16), (1, 0, 5)):
        rows, columns = torch.arange(side).view(-1, 1), torch.arange(side)
        phase = 2 * math.pi * (u * rows + v * columns) / side
        plain = phase.cos() - phase.sin()
        degrees = (u * rows + v * columns) / side
        require_tensor(
            make_wave(u, v, side),
            wave(u, v, side, side),
            {
                "divide by the largest absolute value": plain,
                "that is twice too much: divide by the largest absolute value": 2 * plain,
                "that is the wave of the mirrored frequency: cosine minus sine": (
                    phase.cos() + phase.sin()
                )
                / (phase.cos() + phase.sin()).abs().max(),
                "the cosine alone has another phase": phase.cos(),
                "u counts periods along the rows, the first index": wave(v, u, side, side),
                "a period is 2 pi": (degrees.cos() - degrees.sin())
                / (degrees.cos() - degrees.sin()).abs().max(),
                "that is its sign: the linear form keeps the wave": wave(u, v, side, side).sign(),
            },
        )


def _check_largest(largest: Any) -> None:
    """The largest singular value of a circular convolution with one kernel."""
    for seed, side in ((3, 8), (5, 12)):
        kernel = _drawn(3, 3, seed=seed)
        small = torch.fft.fft2(kernel).abs().max()
        require_number(
            largest(kernel.clone(), side),
            float(singular_values(kernel[None, None], side).max()),
            {
                "that is the sum of absolute values, a bound": float(kernel.abs().sum()),
                "that is the singular value at frequency (0, 0) only": float(kernel.sum().abs()),
                "that is the largest singular value of the 3 x 3 matrix itself": float(
                    torch.linalg.svdvals(kernel)[0]
                ),
                "transform on the grid of the image: `s=(side, side)`": float(small),
                "that is the smallest": float(singular_values(kernel[None, None], side).min()),
                "a singular value is the absolute value of a complex number": float(
                    torch.fft.fft2(kernel, s=(side, side)).real.max()
                ),
            },
            tolerance=1e-3,
        )


def _check_weighted(weighted_prox: Any) -> None:
    """The proximal step of the absolute value of a weighted sum."""
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    for kernel, size in (
        (torch.tensor([1.0, -1.5, -0.5, 0.2]), 0.1),
        (torch.tensor([-2.0, 1.0, 0.0, -1.0]), 0.2),
        (torch.tensor([0.3, 0.1, 0.2, 0.1]), 1.0),
    ):
        dot, square = weights @ kernel, weights @ weights

        def moved(share: Tensor, kernel: Tensor = kernel) -> Tensor:
            return kernel - share * weights

        require_tensor(
            weighted_prox(kernel.clone(), weights.clone(), size),
            moved((dot / square).clamp(-size, size)),
            {
                "divide by the squared length of the weights, not by their number": moved(
                    (dot / 4).clamp(-size, size)
                ),
                "divide by the squared length of the weights, not by the length": moved(
                    (dot / square.sqrt()).clamp(-size, size)
                ),
                "divide the product by the squared length of the weights": moved(
                    dot.clamp(-size, size)
                ),
                "move along the weights, not along ones": kernel
                - (dot / square).clamp(-size, size),
                "clip: far from zero the step has a bounded length": moved(dot / square),
                "no clipping near zero: the step jumps over": moved(size * dot.sign()),
                "that is the step for the plain sum": kernel - kernel.mean().clamp(-size, size),
            },
        )


def _check_shift(mean_shift: Any) -> None:
    """The mean of a rectified wave with an offset."""
    for amplitude, offset in ((1.0, 0.0), (2.0, 0.5), (1.5, -1.0), (3.0, 2.0)):
        angle = math.acos(-offset / amplitude)
        root = math.sqrt(amplitude**2 - offset**2)
        right = (root + offset * angle) / math.pi
        known = {
            "that is for the whole wave, without ReLU": offset,
            "divide by the whole period, 2 pi, once: the positive part is symmetric": 2 * right,
            "where is the offset positive? check the angle's sign": (
                root + offset * math.acos(offset / amplitude)
            )
            / math.pi,
            "the offset counts for the share of the period that is positive": root / math.pi,
        }
        if offset:
            known["with an offset the wave is positive on more or less than half"] = (
                amplitude / math.pi + offset / 2
            )
            known["that is without the offset"] = amplitude / math.pi
        require_number(mean_shift(amplitude, offset), right, known)


def reference_network(strength: float, data: Dataset) -> Params:
    """What five short epochs with Absum of some strength give, from seed 0.

    Args:
        strength: Strength of the penalty.
        data: What to train on.

    Returns:
        One network.
    """
    with after_each_step(absum_step, strength):
        found = train(PRESETS["study"].model, data, (0,), SHORT)
    return unstack(found.params)[0]


def _worst(params: Params, data: Dataset, low: int, high: int | None = None) -> tuple[float, float]:
    setup = PRESETS["study"]
    run_model = partial(predict, build(setup.model), params)
    x, y = data.test_x[:100], data.test_y[:100]
    return band(heat_map(run_model, x, y, setup.wave_epsilon), low, high)


def _check_strength(measure: Any) -> None:
    """Worst accuracy over fast waves after training with several strengths."""
    require(callable(measure), "pass a function that returns (your dictionary, few)")
    found, data = measure()
    keyed = isinstance(found, dict) and all(isinstance(s, float) and s >= 0 for s in found)
    require(keyed and len(found) >= 3, "return a dict from at least three strengths to accuracies")
    values = [float(value) for value in found.values()]
    require(all(0 <= v <= 1 for v in values), "accuracies lie in [0, 1]: return shares")
    require(
        len({round(v, 6) for v in values}) > 1,
        "every strength gives the same accuracy: train inside `after_each_step`",
    )
    for strength in sorted(found)[-2:]:
        _check_accuracy(strength, float(found[strength]), data)


def _check_accuracy(strength: float, given: float, data: Dataset) -> None:
    """One worst accuracy after training with that strength."""
    edge = PRESETS["study"].edge
    params = reference_network(strength, data)
    worst, mean = _worst(params, data, edge)
    if abs(given - worst) <= 0.011:
        return
    slow = _worst(params, data, 1, edge - 1)[0]
    plain = _worst(reference_network(0.0, data), data, edge)[0]
    for message, value in (
        ("that is the mean over fast waves: return the worst", mean),
        ("that is the worst of the slow waves: fast ones have 5 periods or more", slow),
        ("that is plain training: train inside `after_each_step`", plain),
    ):
        require(abs(given - value) > 0.006, message)
    raise Wrong(f"at strength {strength:g} you got {given:.3f}, expected {worst:.3f}: use `fit`")


check = checker(
    {
        "prox": _check_prox,
        "wave": _check_wave,
        "largest": _check_largest,
        "weighted": _check_weighted,
        "shift": _check_shift,
        "strength": _check_strength,
    }
)

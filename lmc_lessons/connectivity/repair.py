r"""REPAIR: give merged units back the mean and variance that merging took from them.

If two matched units have standard deviation $s$ and correlation $c$, their average has variance
$\frac{1 + c}{2} s^2$. Below correlation 1 the signal shrinks, layer after layer. REPAIR rescales
and shifts every hidden pre-activation of the merged network so that its mean and standard deviation
are those between the two ends.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmc_lessons.landscape import interpolate
from lmc_lessons.models import Params, predict


class Moments(NamedTuple):
    """Mean and standard deviation of every unit's pre-activation, each of shape (units,)."""

    mean: Tensor
    deviation: Tensor


def preactivation_moments(
    model: nn.Module, params: Params, x: Tensor, *, chunk: int = 1024
) -> dict[str, Moments]:
    """Mean and standard deviation of what every linear or convolutional layer puts out.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).
        chunk: Number of inputs per forward pass.

    Returns:
        Layer name to moments over samples (and pixels), in the order in which the layers run.

    Taught in: book/connectivity/weight-matching
    """
    model.eval()
    sums: dict[str, list[Tensor]] = {}

    def record(name: str, layer: nn.Module, value: Tensor) -> None:
        axis = -1 if isinstance(layer, nn.Linear) else 1
        units = value.movedim(axis, 0).flatten(1).double()
        count = torch.full((1,), float(units.shape[1]), device=units.device)
        new = [units.sum(1), (units * units).sum(1), count]
        sums[name] = [s + n for s, n in zip(sums[name], new, strict=True)] if name in sums else new

    hooks = [
        layer.register_forward_hook(lambda m, _i, out, name=name: record(name, m, out))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            for part in x.split(chunk):
                predict(model, params, part)
    finally:
        for hook in hooks:
            hook.remove()
    moments = {}
    for name, (total, squares, count) in sums.items():
        mean = total / count
        moments[name] = Moments(mean, (squares / count - mean**2).clamp_min(0).sqrt())
    return moments


def variance_ratio(
    model: nn.Module, a: Params, b: Params, position: float, x: Tensor
) -> dict[str, float]:
    r"""How much variance merging leaves: the merged units' variance over that between the ends.

    Equation (eq-collapse) of the lesson on weight matching.

    Args:
        model: Architecture.
        a: The network at position 0.
        b: The network at position 1, already matched to A.
        position: Where on the line between them.
        x: Inputs of shape (N, ...), usually training data.

    Returns:
        Layer name to the median over units of $\mathrm{Var}(merged) / \mathrm{Var}(between)$; 1 for
        a layer none of whose units vary, since there was nothing to lose.

    Taught in: book/connectivity/weight-matching
    """
    ends = [preactivation_moments(model, params, x) for params in (a, b)]
    merged = preactivation_moments(model, interpolate(a, b, position), x)
    ratios = {}
    for name, moments in merged.items():
        between = (1 - position) * ends[0][name].deviation + position * ends[1][name].deviation
        alive = between > 1e-6
        shares = (moments.deviation / between)[alive].square()
        ratios[name] = float(shares.median()) if len(shares) else 1.0
    return ratios


def repair(model: nn.Module, a: Params, b: Params, position: float, x: Tensor) -> Params:
    r"""Merge two matched networks and repair the statistics of every hidden layer.

    Equation (eq-repair) of the lesson on weight matching.

    Layers are repaired in the order in which they run, each measured behind those already repaired.
    The correction $y = \nu + \frac{\tau}{\sigma} (z - \mu)$ is folded into the layer's weight and
    bias. A unit whose pre-activation does not vary is left alone. The output layer is not touched.

    Args:
        model: Architecture without normalisation (with BatchNorm, ``landscape.reset_batchnorm``
            serves).
        a: The network at position 0.
        b: The network at position 1, already matched to A.
        position: Where on the line between them; at 0 and 1 nothing changes.
        x: Training inputs of shape (N, ...).

    Returns:
        Parameters of the merged network after repair.

    Raises:
        ValueError: If a hidden layer has no bias to carry the correction.

    Source:
        jordan2023repair, forward version.

    Taught in: book/connectivity/weight-matching
    """
    ends = [preactivation_moments(model, params, x) for params in (a, b)]
    merged = interpolate(a, b, position)
    if position in (0, 1):
        return merged
    for name in list(ends[0])[:-1]:  # the last layer is the output
        if f"{name}.bias" not in merged:
            raise ValueError(f"repair needs a bias in every hidden layer, {name} has none")
        target = Moments(
            *(
                (1 - position) * p + position * q
                for p, q in zip(*(e[name] for e in ends), strict=True)
            )
        )
        measured = preactivation_moments(model, merged, x)[name]
        alive = measured.deviation > 1e-6
        gain = torch.where(alive, target.deviation / measured.deviation.clamp_min(1e-6), 1.0)
        shift = torch.where(alive, target.mean - gain * measured.mean, 0.0)
        weight, bias = merged[f"{name}.weight"], merged[f"{name}.bias"]
        gain, shift = gain.to(weight.dtype), shift.to(weight.dtype)
        merged[f"{name}.weight"] = weight * gain.view(-1, *[1] * (weight.dim() - 1))
        merged[f"{name}.bias"] = bias * gain + shift
    return merged

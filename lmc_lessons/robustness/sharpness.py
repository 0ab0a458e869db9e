r"""How sharp a loss is in weight space, measured in steps relative to the weights.

A step of a given length means little by itself: a ReLU network computes the same function when one
layer is doubled and the next one halved. So directions are scaled to the weights they move, and
balls are relative to the length of every layer. For a robust loss the attack is made anew at every
point, since other weights have other worst inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.landscape import combine
from lmc_lessons.models import (
    ChannelLayerNorm,
    Params,
    parameter_names,
    predict_stacked,
    stack,
    unstack,
)
from lmc_lessons.robustness.attacks import Predict, ThreatModel
from lmc_lessons.training import generator

Attack = Callable[[Predict, Tensor, Tensor], Tensor]
FILTERS, SPHERE, WORST = 31, 32, 33  # independent random streams of one seed


@dataclass(frozen=True)
class RobustLoss:
    """The loss of any network of one architecture on given samples, its attack made anew each time.

    Attributes:
        model: Architecture, in eval mode.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        attack: Maps (predict, x, y) to the inputs to judge by; None judges by ``x``: the clean
            loss, or that of a frozen attack where ``x`` holds its adversarial examples. A random
            start should be the same for all networks (``pgd(..., start=...)``): drawn anew, its
            noise would enter every difference.
        together: Number of networks evaluated at once.

    Taught in: book/robustness/flat-minima
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    attack: Attack | None = None
    together: int = 16

    def __post_init__(self) -> None:
        """Refuse a model in train mode, no samples, or no networks at once."""
        if any(module.training for module in self.model.modules()):
            raise ValueError("sharpness needs the model in eval mode, call model.eval() first")
        if len(self.x) == 0 or len(self.x) != len(self.y):
            raise ValueError(f"one label per input: got {len(self.x)} inputs, {len(self.y)} labels")
        if self.together < 1:
            raise ValueError(f"together must be at least 1, got {self.together}")

    def __call__(self, networks: Sequence[Params]) -> Tensor:
        """Mean cross-entropy of each of K networks, in nats, float64, shape (K,)."""
        if not networks:
            raise ValueError("needs at least one network, got none")
        found = []
        for first in range(0, len(networks), self.together):
            stacked = stack(list(networks[first : first + self.together]))
            count = len(next(iter(stacked.values())))
            x, y = (t.expand(count, *t.shape) for t in (self.x, self.y))

            def predict(inputs: Tensor, stacked: Params = stacked) -> Tensor:
                return predict_stacked(self.model, stacked, inputs)

            judged = x if self.attack is None else self.attack(predict, x, y)
            with torch.no_grad():
                found.append(per_sample(predict(judged), y).double().mean(1).cpu())
        return torch.cat(found)


def per_sample(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of every sample: logits (K, N, classes), labels (K, N), result (K, N)."""
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)


# Directions


def filter_direction(params: Params, seed: int) -> Params:
    r"""A random direction in which every filter is as long as the filter it moves.

    $d_{l,j} = \|w_{l,j}\|\, g_{l,j} / \|g_{l,j}\|$ for every row $j$ of every weight tensor $l$ and
    $g$ Gaussian. Biases and normalisation are not moved.

    Args:
        params: Parameters and buffers by name.
        seed: Decides the direction.

    Returns:
        Tensors of the same names and shapes.

    Source:
        li2018visualizing.

    Taught in: book/robustness/flat-minima
    """
    stream, direction = generator(seed, FILTERS), {}
    for name, tensor in sorted(params.items()):  # files give tensors back in another order
        if tensor.dim() < 2:
            direction[name] = torch.zeros_like(tensor)
            continue
        noise = torch.randn(tensor.shape, generator=stream, dtype=tensor.dtype).to(tensor.device)
        rows = [t.flatten(1).norm(dim=1).view(-1, *[1] * (t.dim() - 1)) for t in (tensor, noise)]
        direction[name] = noise * rows[0] / rows[1].clamp_min(1e-12)
    return direction


def layer_direction(model: nn.Module, params: Params, seed: int) -> Params:
    r"""A random direction in which every layer is as long as the layer it moves.

    $\nu^{(l)} = \|w^{(l)}\|\, g^{(l)} / \|g^{(l)}\|$; every weight tensor and every bias vector
    counts as a layer. Normalisation is not moved.

    Args:
        model: Architecture; tells which tensors belong to normalisation.
        params: Parameters and buffers by name.
        seed: Decides the direction.

    Returns:
        Tensors of the same names and shapes.

    Source:
        stutz2021relating.

    Taught in: book/robustness/flat-minima
    """
    stream, moved = generator(seed, SPHERE), movable(model)
    direction = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    for name in parameter_names(model):  # the model's order: files give tensors in another
        if name not in moved:
            continue
        tensor = params[name]
        noise = torch.randn(tensor.shape, generator=stream, dtype=tensor.dtype).to(tensor.device)
        direction[name] = noise * tensor.norm() / noise.norm().clamp_min(1e-12)
    return direction


def movable(model: nn.Module) -> set[str]:
    """Names of the parameters that do not belong to a normalisation layer.

    Args:
        model: Architecture.

    Returns:
        Names as in ``models.parameter_names``.
    """
    norms = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, ChannelLayerNorm)
    still = {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, norms)
        for name, _ in module.named_parameters()
    }
    return {name for name, _ in model.named_parameters()} - still


# Landscapes


def line_landscape(
    loss: RobustLoss, params: Params, direction: Params, positions: Sequence[float]
) -> list[float]:
    r"""The loss along a line, at $\theta + \alpha d$.

    Args:
        loss: What to measure.
        params: Parameters and buffers at $\alpha = 0$.
        direction: Tensors of the same names and shapes.
        positions: Values of $\alpha$.

    Returns:
        One loss per position, in nats.

    Raises:
        ValueError: If names or shapes differ.

    Taught in: book/robustness/flat-minima
    """
    return loss([moved(params, direction, position) for position in positions]).tolist()


def plane_landscape(
    loss: RobustLoss,
    params: Params,
    first: Params,
    second: Params,
    u: Sequence[float],
    v: Sequence[float],
) -> list[list[float]]:
    r"""The loss on a plane, at $\theta + u\,d_1 + v\,d_2$.

    Args:
        loss: What to measure.
        params: Parameters and buffers at the origin.
        first: First direction.
        second: Second direction.
        u: Coordinates along the first direction, U of them.
        v: Coordinates along the second, V of them.

    Returns:
        Losses in nats, as nested lists of shape (V, U).

    Raises:
        ValueError: If names or shapes differ.

    Taught in: book/robustness/flat-minima
    """
    return [line_landscape(loss, moved(params, second, height), first, u) for height in v]


def moved(params: Params, direction: Params, length: float) -> Params:
    """A network moved along a direction; buffers stay.

    Args:
        params: Parameters and buffers.
        direction: Tensors of the same names and shapes; zero for what stays.
        length: How far, in units of the direction.

    Returns:
        A new network.
    """
    return combine((1.0, length), (params, direction))


# Flatness in balls that are relative to every layer


class Flatness(NamedTuple):
    """By how much a loss rises around a network. A small value means a flat minimum.

    Attributes:
        rise: Mean (average case) or largest (worst case) loss around, minus the loss at the centre,
            in nats.
        centre: Loss at the centre, in nats.
        losses: Loss of every draw or restart, in nats.
    """

    rise: float
    centre: float
    losses: list[float]


def average_flatness(
    loss: RobustLoss, params: Params, *, radius: float = 0.5, draws: int = 10, seed: int = 0
) -> Flatness:
    r"""Average-case flatness: how much the loss rises at random on a layer-relative sphere.

    $$\mathbb E_\nu\big[L(w + \nu)\big] - L(w), \qquad \|\nu^{(l)}\| = \xi \|w^{(l)}\|$$

    Args:
        loss: What to measure.
        params: Parameters and buffers.
        radius: $\xi$, relative to every layer's length, above 0.
        draws: Number of random points, at least 1.
        seed: Decides them.

    Returns:
        The mean rise.

    Raises:
        ValueError: If radius or number of draws is out of range.

    Source:
        stutz2021relating; on the sphere, as in its code (the text says in the ball).

    Taught in: book/robustness/flat-minima
    """
    _check_ball(radius, draws)
    around = [
        moved(params, layer_direction(loss.model, params, seed * draws + k), radius)
        for k in range(draws)
    ]
    centre, *others = loss([params, *around]).tolist()
    return Flatness(math.fsum(others) / draws - centre, centre, others)


def worst_flatness(
    loss: RobustLoss,
    params: Params,
    threat: ThreatModel,
    *,
    radius: float = 0.003,
    steps: int = 20,
    restarts: int = 10,
    seed: int = 0,
) -> Flatness:
    r"""Worst-case flatness: how much the loss rises where an attack on the weights leads it.

    $$\max_{\|\nu^{(l)}\| \le \xi \|w^{(l)}\|} L(w + \nu) - L(w)$$

    Weights and inputs climb together from random starts, the inputs by steps of
    $\epsilon / 4$, every layer by steps of a third of its radius. At the weights found the loss is
    measured like that at the centre, by the attack of ``loss``.

    Args:
        loss: What to measure.
        params: Parameters and buffers.
        threat: Which inputs count as near while weights and inputs climb.
        radius: $\xi$, relative to every layer's length, above 0.
        steps: Steps of the ascent, at least 1.
        restarts: Number of random starts, at least 1.
        seed: Decides them.

    Returns:
        The largest rise.

    Raises:
        ValueError: If a number is out of range.

    Source:
        stutz2021relating.

    Taught in: book/robustness/flat-minima
    """
    _check_ball(radius, restarts)
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    shares = torch.rand(restarts, generator=generator(seed, WORST)) * radius
    around = []
    for first in range(0, restarts, loss.together):
        chosen = range(first, min(first + loss.together, restarts))
        around += _ascend(loss, params, threat, radius, steps, shares.tolist(), chosen, seed)
    at, *others = loss([params, *around]).tolist()
    return Flatness(max(others) - at, at, others)


def _ascend(
    loss: RobustLoss,
    params: Params,
    threat: ThreatModel,
    radius: float,
    steps: int,
    shares: Sequence[float],
    chosen: Sequence[int],
    seed: int,
) -> list[Params]:
    """The networks that some of the random starts climb to."""
    names, starts = sorted(movable(loss.model)), []
    for k in chosen:
        way = layer_direction(loss.model, params, seed * len(shares) + k)
        starts.append({name: shares[k] * way[name] for name in names})
    step, centre = stack(starts), stack([params] * len(starts))
    x, y = (t.expand(len(starts), *t.shape) for t in (loss.x, loss.y))
    found = torch.stack([threat.random(loss.x, 1, generator(seed, WORST, k)) for k in chosen])
    for _ in range(steps):
        step, found = _climb(loss.model, centre, step, found, x, y, threat, radius)
    still = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    return [moved(params, {**still, **part}, 1.0) for part in unstack(step)]


def _climb(
    model: nn.Module,
    centre: Params,
    step: Params,
    found: Tensor,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    radius: float,
) -> tuple[Params, Tensor]:
    """One step uphill of weights and inputs, projected back."""
    step = {name: t.detach().requires_grad_() for name, t in step.items()}
    found = found.detach().requires_grad_()
    with torch.enable_grad():
        there = {name: t + step[name] if name in step else t for name, t in centre.items()}
        losses = per_sample(predict_stacked(model, there, found), y).mean(1)
        *slopes, slope = torch.autograd.grad(losses.sum(), [*step.values(), found])
    with torch.no_grad():
        found = threat.project(found + threat.epsilon / 4 * threat.steepest(slope, 2), x, 2)
        new = {}
        for (name, old), uphill in zip(step.items(), slopes, strict=True):
            reach = radius * _lengths(centre[name])
            ahead = old + reach / 3 * uphill / _lengths(uphill).clamp_min(1e-30)
            new[name] = ahead * (reach / _lengths(ahead).clamp_min(1e-30)).clamp_max(1)
    return new, found


def _lengths(stacked: Tensor) -> Tensor:
    return stacked.flatten(1).norm(dim=1).view(-1, *[1] * (stacked.dim() - 1))


def _check_ball(radius: float, count: int) -> None:
    if not 0 < radius < math.inf or count < 1:
        raise ValueError(f"needs a radius > 0 and at least one draw, got {radius} and {count}")


def rescale(params: Params, layer: str, following: str, factor: float) -> Params:
    """Multiply one layer and divide the next: a ReLU network computes the same function.

    Args:
        params: Parameters and buffers.
        layer: Name of a layer whose output passes a ReLU only, such as ``hidden.0``.
        following: Name of the layer that reads it, such as ``hidden.1``.
        factor: Above 0.

    Returns:
        A new network.

    Raises:
        ValueError: If a layer does not exist, both are the same, or the factor is not above 0.

    Source:
        dinh2017sharp.

    Taught in: book/robustness/flat-minima
    """
    for name in (layer, following):
        if f"{name}.weight" not in params:
            known = sorted(n.removesuffix(".weight") for n in params if n.endswith(".weight"))
            raise ValueError(f"no layer {name!r}, allowed: {', '.join(known)}")
    if layer == following or not 0 < factor < math.inf:
        raise ValueError(
            f"needs two different layers and a factor above 0, got {layer}, {following}, {factor}"
        )
    scale = {f"{layer}.weight": factor, f"{layer}.bias": factor, f"{following}.weight": 1 / factor}
    return {name: t * scale[name] if name in scale else t.clone() for name, t in params.items()}

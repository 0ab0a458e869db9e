"""Lines and planes through weight space, and what the loss does along them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmc_lessons.evaluation import score
from lmc_lessons.models import Params, predict


class Profile(NamedTuple):
    """Loss, accuracy and margin along a line, in the order in which the points were given.

    Attributes:
        loss: Mean cross-entropy in nats, one number per point.
        accuracy: Accuracy in [0, 1], one number per point.
        margin: Mean logit margin, one number per point.
    """

    loss: list[float]
    accuracy: list[float]
    margin: list[float]

    @property
    def error(self) -> list[float]:
        """Error rate in [0, 1], one number per point."""
        return [1 - accuracy for accuracy in self.accuracy]


class Barrier(NamedTuple):
    """How far the loss on a straight path rises above the chord of its end losses.

    Attributes:
        maximum: Largest excess over the chord at any point measured, in the loss's unit; never
            below 0.
        midpoint: Excess at the midpoint; negative where the middle is better than the ends' mean.
    """

    maximum: float
    midpoint: float


def combine(weights: Sequence[float], points: Sequence[Params]) -> Params:
    """A weighted sum of networks; integer buffers (batch counters) are taken from the first.

    Args:
        weights: One weight per network, usually summing to one.
        points: Networks with the same names and shapes.

    Returns:
        Parameters and buffers by name.

    Raises:
        ValueError: If the networks differ in names or shapes, or numbers do not match.
    """
    if len(weights) != len(points) or not points:
        raise ValueError(
            f"one weight per network: got {len(weights)} weights, {len(points)} networks"
        )
    first = points[0]
    for other in points[1:]:
        for name in first.keys() | other.keys():
            shapes = [tuple(p[name].shape) if name in p else None for p in (first, other)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"networks differ at {name}: shapes {shapes[0]} and {shapes[1]}")
    return {
        name: sum(w * p[name] for w, p in zip(weights, points, strict=True))  # type: ignore[misc]
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }


def interpolate(a: Params, b: Params, position: float) -> Params:
    r"""The point $(1 - t)\,\theta_A + t\,\theta_B$ of the straight line between two networks.

    Equation (eq-path) of the lesson on loss barriers.

    Args:
        a: The network at position 0.
        b: The network at position 1.
        position: Where on the line; outside [0, 1] extrapolates.

    Returns:
        Parameters and buffers by name.

    Raises:
        ValueError: If the networks differ in names or shapes.

    Taught in: book/start
    """
    if position == 0:
        return dict(a)  # the ends exactly, without rounding
    if position == 1:
        return dict(b)
    return combine((1 - position, position), (a, b))


def line(
    model: nn.Module,
    a: Params,
    b: Params,
    positions: Sequence[float],
    x: Tensor,
    y: Tensor,
    *,
    reset_with: Tensor | None = None,
    chunk: int = 2048,
) -> Profile:
    """Loss, accuracy and margin at points of the straight line between two networks.

    Args:
        model: Architecture.
        a: The network at position 0.
        b: The network at position 1.
        positions: Where to look.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        reset_with: Training inputs to measure the BatchNorm statistics of every interior point on;
            None leaves the interpolated statistics. The ends are never touched.
        chunk: Number of inputs per forward pass.

    Returns:
        One loss, one accuracy and one margin per position.

    Raises:
        ValueError: If the networks differ in names or shapes.

    Taught in: book/start
    """
    scores = []
    for position in positions:
        params = interpolate(a, b, position)
        if reset_with is not None and position not in (0, 1):
            params = reset_batchnorm(model, params, reset_with, chunk=chunk)
        scores.append(score(model, params, x, y, chunk=chunk))
    return Profile(
        [s.loss for s in scores], [s.accuracy for s in scores], [s.margin for s in scores]
    )


def barrier(positions: Sequence[float], losses: Sequence[float]) -> Barrier:
    r"""Barrier of a path, $\max_t L(t) - [(1 - t) L(0) + t L(1)]$, and the same at its midpoint.

    Equation (eq-barrier) of the lesson on loss barriers.

    Args:
        positions: Increasing, from 0 to 1, with 0.5 among them.
        losses: The loss at each position; an error rate works as well.

    Returns:
        Largest excess over the chord, and the excess at the midpoint.

    Raises:
        ValueError: If positions do not rise from 0 to 1 through 0.5, lengths differ, or a loss is
            not finite.

    Taught in: book/start
    """
    grid = [float(p) for p in positions]
    if len(grid) != len(losses) or not grid or (grid[0], grid[-1]) != (0.0, 1.0):
        raise ValueError(f"a barrier needs one loss per position from 0 to 1, got positions {grid}")
    if grid != sorted(set(grid)):
        raise ValueError(f"a barrier needs increasing positions, got {grid}")
    if not all(math.isfinite(loss) for loss in losses):
        raise ValueError(f"a barrier needs finite losses, got {list(losses)}")
    if 0.5 not in grid:
        raise ValueError(f"a barrier needs the midpoint 0.5 among its positions, got {grid}")
    excess = [
        loss - ((1 - t) * losses[0] + t * losses[-1]) for t, loss in zip(grid, losses, strict=True)
    ]
    return Barrier(max(0.0, *excess), excess[grid.index(0.5)])


def plane(
    origin: Params, a: Params, b: Params
) -> tuple[Params, Params, tuple[tuple[float, float], ...]]:
    """Orthonormal axes of the plane through three networks.

    Args:
        origin: The network at (0, 0).
        a: The network on the first axis.
        b: The third network.

    Returns:
        Two directions of length one, and the coordinates of the three networks. The network at
        (u, v) is ``combine((1, u, v), (origin, first, second))``.

    Raises:
        ValueError: If the three networks lie on one line.
    """
    names = [name for name, tensor in origin.items() if tensor.is_floating_point()]

    def dot(p: Params, q: Params) -> float:
        return sum(float((p[n].double() * q[n].double()).sum()) for n in names)

    first = {name: a[name] - origin[name] for name in names}
    second = {name: b[name] - origin[name] for name in names}
    length = dot(first, first) ** 0.5
    reach = dot(second, second) ** 0.5
    if min(length, reach) == 0:
        raise ValueError("a plane needs three different networks, two of these are equal")
    first = {name: value / length for name, value in first.items()}
    along = dot(second, first)
    second = {name: value - along * first[name] for name, value in second.items()}
    across = dot(second, second) ** 0.5
    rounding = 1e-6 * dot(origin, origin) ** 0.5
    if across < max(1e-6 * reach, rounding):
        raise ValueError("a plane needs three networks that are not on one line")
    second = {name: value / across for name, value in second.items()}
    for name, tensor in origin.items():
        if name not in names:
            first[name] = second[name] = tensor
    return first, second, ((0.0, 0.0), (length, 0.0), (along, across))


class Surface(NamedTuple):
    """Loss, accuracy and margin on a grid of a plane; rows follow v, columns follow u.

    Attributes:
        loss: Mean cross-entropy in nats, shape (V, U) as nested lists.
        accuracy: Accuracy in [0, 1], the same shape.
        margin: Mean logit margin, the same shape.
    """

    loss: list[list[float]]
    accuracy: list[list[float]]
    margin: list[list[float]]


def surface(
    model: nn.Module,
    origin: Params,
    first: Params,
    second: Params,
    u: Sequence[float],
    v: Sequence[float],
    x: Tensor,
    y: Tensor,
    *,
    reset_with: Tensor | None = None,
    chunk: int = 2048,
) -> Surface:
    r"""Loss, accuracy and margin over a plane, at $\theta_0 + u\,d_1 + v\,d_2$.

    Equation (eq-plane) of the lesson on loss barriers.

    Args:
        model: Architecture.
        origin: The network at (0, 0).
        first: First direction, from ``plane``.
        second: Second direction.
        u: Coordinates along the first direction, U of them.
        v: Coordinates along the second direction, V of them.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        reset_with: Training inputs to measure the BatchNorm statistics of every point on; None
            leaves the combined statistics.
        chunk: Number of inputs per forward pass.

    Returns:
        Three grids of shape (V, U).

    Raises:
        ValueError: If the networks differ in names or shapes.

    Taught in: book/connectivity/loss-barriers
    """
    grid = []
    for height in v:
        row = []
        for along in u:
            params = combine((1, along, height), (origin, first, second))
            if reset_with is not None:
                params = reset_batchnorm(model, params, reset_with, chunk=chunk)
            row.append(score(model, params, x, y, chunk=chunk))
        grid.append(row)
    return Surface(*([[s[k] for s in row] for row in grid] for k in range(3)))


def reset_batchnorm(model: nn.Module, params: Params, x: Tensor, *, chunk: int = 2048) -> Params:
    """Measure BatchNorm's running mean and variance anew, as averages over chunks of training data.

    A merged network needs this: its hidden activations are not the average of the ends'
    activations, so averaged statistics do not fit it.

    Args:
        model: Architecture; only its BatchNorm layers run in train mode, and only here.
        params: Parameters and buffers by name; not changed.
        x: Training inputs of shape (N, ...).
        chunk: Number of inputs per forward pass; chunks of equal size count equally.

    Returns:
        The same parameters with new statistics; the same network if it has no BatchNorm.

    Raises:
        ValueError: If there are fewer than two inputs.

    Taught in: book/connectivity/weight-matching
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return params
    if len(x) < 2:
        raise ValueError(f"statistics need at least 2 inputs, got {len(x)}")
    fresh = {
        name: torch.zeros_like(tensor)
        if name.endswith(("running_mean", "num_batches_tracked"))
        else torch.ones_like(tensor)
        if name.endswith("running_var")
        else tensor
        for name, tensor in params.items()
    }
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(layer, layer.momentum) for layer in layers]
    model.eval()
    try:
        for layer in layers:
            layer.training, layer.momentum = True, None  # None: a cumulative average
        with torch.no_grad():
            for part in x.split(chunk):
                if len(part) > 1:
                    predict(model, fresh, part)
    finally:
        for module, training in modes:
            module.training = training
        for layer, momentum in momenta:
            layer.momentum = momentum
    return fresh

r"""Absum: penalise the absolute value of the sum of every convolution kernel.

The penalty has a kink where a sum is zero, so its gradient never lets a sum rest there. Its
proximal step does, and has a closed form. A proximal step comes after each step of the optimiser,
so it is a hook around the one training loop and not another loop.

Kernels are the last two axes of a weight of shape (..., out, in, h, w). A kernel of one pixel is
its own sum, so there Absum is the L1 norm; ``after_each_step`` leaves such weights alone.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from lmc_lessons.models import Params
from lmc_lessons.robustness.objectives import Objective
from lmc_lessons.training import Network

ProximalStep = Callable[[Tensor, float], Tensor]


def kernel_sums(weight: Tensor) -> Tensor:
    """The sum of every kernel.

    Args:
        weight: Kernels of shape (..., out, in, h, w).

    Returns:
        Shape (..., out, in).

    Taught in: book/robustness/absum
    """
    return weight.sum((-2, -1))


def absum(weight: Tensor) -> Tensor:
    r"""The penalty $g = \sum_{j,i} |\sum_{a,b} K_{j,i}[a, b]|$, equation (eq-abs-penalty).

    Args:
        weight: Kernels of shape (out, in, h, w).

    Returns:
        One number.

    Source:
        kanai2020absum, in words; that there is one absolute value for each pair of channels is this
        lesson's reading.

    Taught in: book/robustness/absum
    """
    return kernel_sums(weight).abs().sum()


def absum_step(weight: Tensor, size: float) -> Tensor:
    r"""The proximal step of ``size`` times the penalty, equation (eq-abs-prox) of the lesson.

    Every entry moves by $\mathrm{clip}(s/m, -\tau, \tau)$ towards a sum of zero, with $s$ the sum
    of its kernel, $m$ the number of its entries and $\tau$ the size.

    Args:
        weight: Kernels of shape (..., out, in, h, w).
        size: The size $\tau$: learning rate times strength, at least 0.

    Returns:
        Kernels of the same shape.

    Raises:
        ValueError: If the size is negative or not a number.

    Source:
        kanai2020absum has a proximal step; this closed form was derived for this book.

    Taught in: book/robustness/absum
    """
    _check("size", size)
    return weight - weight.mean((-2, -1), keepdim=True).clamp(-size, size)


def checkerboard_step(weight: Tensor, size: float) -> Tensor:
    r"""The control of ``absum_step``: the same for the sum with alternating signs.

    It takes one direction from each kernel as well, but that of the fastest wave instead of the
    mean.

    Args:
        weight: Kernels of shape (..., out, in, h, w).
        size: As in ``absum_step``.

    Returns:
        Kernels of the same shape.

    Raises:
        ValueError: If the size is negative or not a number.

    Taught in: book/robustness/absum
    """
    rows, columns = (torch.arange(length, device=weight.device) for length in weight.shape[-2:])
    signs = (1 - 2 * ((rows.view(-1, 1) + columns) % 2)).to(weight)
    return absum_step(weight * signs, size) * signs


def l1_step(weight: Tensor, size: float) -> Tensor:
    r"""The proximal step of the L1 norm: every entry moves by the size towards zero.

    Args:
        weight: Any shape.
        size: As in ``absum_step``.

    Returns:
        The same shape.

    Raises:
        ValueError: If the size is negative or not a number.

    Taught in: book/robustness/absum
    """
    _check("size", size)
    return weight - weight.clamp(-size, size)


def kernels(params: Params, lead: int = 0) -> Params:
    """The tensors that hold kernels of more than one pixel, by name.

    Args:
        params: Parameters of a network.
        lead: 1 for stacked parameters, which have an axis of seeds in front; else 0.

    Returns:
        Those of shape (out, in, h, w) behind the leading axes.

    Taught in: book/robustness/absum
    """
    return {name: tensor for name, tensor in params.items() if is_kernel(tensor, lead)}


def is_kernel(tensor: Tensor, lead: int = 0) -> bool:
    """Whether a tensor holds kernels of more than one pixel, behind so many leading axes."""
    return tensor.dim() == lead + 4 and tensor.shape[-1] * tensor.shape[-2] > 1


def without_sums(params: Params) -> Params:
    """The same network with every kernel's mean taken off; kernels of one pixel stay.

    Args:
        params: One network.

    Returns:
        A network whose kernels sum to zero.

    Taught in: book/robustness/absum
    """
    flat = {n: k - k.mean((-2, -1), keepdim=True) for n, k in kernels(params).items()}
    return {**params, **flat}


@contextlib.contextmanager
def after_each_step(step: ProximalStep, strength: float) -> Iterator[None]:
    r"""Within this context, every optimiser's step is followed by a proximal step on kernels.

    Its size is the present learning rate times the strength. Only tensors of shape
    (S, out, in, h, w) are changed, those of ``training.train``, and no kernel of one pixel. The
    step has no memory, so training that was cut off and resumed gives the same numbers.

    Args:
        step: Maps weights and a size to new weights.
        strength: The weight $\lambda$ of the penalty, at least 0.

    Yields:
        Nothing.

    Raises:
        ValueError: If the strength is negative or not a number.

    Taught in: book/robustness/absum
    """
    _check("strength", strength)

    @torch.no_grad()
    def hook(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            size = float(group["lr"]) * strength
            for weight in group["params"]:
                if is_kernel(weight, lead=1):
                    weight.copy_(step(weight, size))

    handle = register_optimizer_step_post_hook(hook)
    try:
        yield
    finally:
        handle.remove()


Penalty = Callable[[Tensor], Tensor]


def half_squares(weight: Tensor) -> Tensor:
    """Half of the sum of squares of each network's kernels: (S, ...) to (S,)."""
    return weight.flatten(1).square().sum(1) / 2


def absolute_sums(weight: Tensor) -> Tensor:
    """Absum of each network's kernels: (S, out, in, h, w) to (S,)."""
    return kernel_sums(weight).abs().flatten(1).sum(1)


@dataclass(frozen=True)
class Penalised:
    """An objective plus a penalty on the kernels, which the optimiser meets as a gradient.

    With ``half_squares`` this is weight decay of the kernels alone.

    Attributes:
        objective: What to minimise beside it.
        penalty: Maps kernels (S, out, in, h, w) to one number per network.
        strength: Weight of the penalty, at least 0.

    Taught in: book/robustness/absum
    """

    objective: Objective
    penalty: Penalty = half_squares
    strength: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a negative strength."""
        _check("strength", self.strength)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Objective and penalty, one number per network, shape (S,)."""
        loss = self.objective(network, x, y)
        for weight in kernels(network.params, lead=1).values():
            loss = loss + self.strength * self.penalty(weight)
        return loss


def _check(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number >= 0, got {value}")

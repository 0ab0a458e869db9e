r"""Train at perturbed weights: AWP, SAM, and random perturbation as their control.

Each wraps an objective. It finds a small step $v$ in weight space and returns the objective's loss
at $\theta + v$, with $v$ held fixed, so its gradient there is what moves $\theta$.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lmc_lessons.models import Params
from lmc_lessons.robustness.objectives import Objective, Standard
from lmc_lessons.training import Network

WEIGHT_NOISE = 22  # the random stream of random weight perturbations


@dataclass(frozen=True)
class AdversarialWeightPerturbation:
    r"""AWP: every weight tensor is moved uphill by a fixed share of its own length.

    $$v_l = \gamma\, \|w_l\|\, \frac{g_l}{\|g_l\|}, \qquad g = \nabla_w \rho(w)$$

    with $\rho$ the objective's loss on the batch; the same adversarial examples serve for $g$ and
    for the loss at $w + v$. Biases and normalisation are not moved.

    Attributes:
        objective: What to minimise.
        gamma: Relative length of the step, at least 0.

    Source:
        wu2020adversarial, its published code. There the optimiser steps at $w + v$ and $v$ is
        subtracted afterwards, so that weight decay acts on $w + v$; here it acts on $w$.

    Taught in: book/robustness/flat-minima
    """

    objective: Objective
    gamma: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a negative length."""
        _check_length("gamma", self.gamma)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The objective's loss at the perturbed weights, shape (S,)."""
        found = self.objective.inputs(network, x, y)
        slope = gradient_of(self.objective, network, x, found, y)
        step = {
            name: self.gamma * lengths(network.params[name]) * direction
            for name, direction in normalised(slope).items()
            if is_weight(network.params[name])
        }
        return self.objective.loss(network.moved(detach(step)), x, found, y)


@dataclass(frozen=True)
class RandomWeightPerturbation:
    r"""The control of AWP: steps of the same lengths in random directions.

    Attributes:
        objective: What to minimise.
        gamma: Relative length of the step, at least 0.

    Source:
        wu2020adversarial.

    Taught in: book/robustness/flat-minima
    """

    objective: Objective
    gamma: float = 0.01

    def __post_init__(self) -> None:
        """Refuse a negative length."""
        _check_length("gamma", self.gamma)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The objective's loss at the perturbed weights, shape (S,)."""
        found = self.objective.inputs(network, x, y)
        streams = network.streams(WEIGHT_NOISE)
        noise = {
            name: torch.stack([torch.randn(t.shape[1:], generator=g) for g in streams]).to(t)
            for name, t in network.params.items()
            if is_weight(t)
        }
        step = {
            name: self.gamma * lengths(network.params[name]) * direction
            for name, direction in normalised(noise).items()
        }
        return self.objective.loss(network.moved(detach(step)), x, found, y)


@dataclass(frozen=True)
class SharpnessAware:
    r"""SAM: all weights together are moved uphill by a fixed length, $v = \rho\, g / \|g\|_2$.

    BatchNorm's statistics are updated once, at the moved weights.

    Attributes:
        objective: What to minimise.
        rho: Length of the step, at least 0.

    Source:
        foret2021sam.

    Taught in: book/robustness/flat-minima
    """

    objective: Objective = field(default_factory=Standard)
    rho: float = 0.05

    def __post_init__(self) -> None:
        """Refuse a negative length."""
        _check_length("rho", self.rho)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The objective's loss at the perturbed weights, shape (S,)."""
        found = self.objective.inputs(network, x, y)
        slope = gradient_of(self.objective, network, x, found, y)
        squares = [lengths(g).square().flatten() for g in slope.values()]
        length = torch.stack(squares, -1).sum(-1).sqrt()  # (S,); this axis is summed bit for bit
        length = length.clamp_min(torch.finfo(length.dtype).tiny)
        step = {n: self.rho * g / length.view(-1, *[1] * (g.dim() - 1)) for n, g in slope.items()}
        return self.objective.loss(network.moved(detach(step)), x, found, y)


def gradient_of(
    objective: Objective, network: Network, x: Tensor, found: Tensor, y: Tensor
) -> Params:
    """Gradient of an objective's loss with respect to the weights, for every network.

    BatchNorm's statistics are left as they are.

    Args:
        objective: What is minimised.
        network: S networks.
        x: Clean inputs of shape (S, B, ...).
        found: Inputs to train on, of the same shape.
        y: Labels of shape (S, B).

    Returns:
        A tensor per trained tensor, of its shape (S, ...), detached.
    """
    losses = objective.loss(network.aside(), x, found, y)
    slope = torch.autograd.grad(losses.sum(), list(network.params.values()))
    return dict(zip(network.params, slope, strict=True))


def is_weight(stacked: Tensor) -> bool:
    """Whether a tensor of shape (S, ...) holds weights: at least two axes in one network."""
    return stacked.dim() >= 3


def lengths(stacked: Tensor) -> Tensor:
    """Euclidean length of each network's tensor: (S, ...) to (S, 1, ...)."""
    return stacked.flatten(1).norm(dim=1).view(-1, *[1] * (stacked.dim() - 1))


def normalised(params: Params) -> Params:
    """Each network's tensors divided by their lengths; zero stays zero."""
    return {name: t / lengths(t).clamp_min(torch.finfo(t.dtype).tiny) for name, t in params.items()}


def detach(params: Params) -> Params:
    """The same values without a graph."""
    return {name: tensor.detach() for name, tensor in params.items()}


def _check_length(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number >= 0, got {value}")

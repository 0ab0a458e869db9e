r"""Local entropy: a loss smoothed so that its gradient is Lipschitz, and Entropy-SGD.

$F(\theta) = -\log \int e^{-L(\theta') - \frac\gamma2\|\theta - \theta'\|^2} d\theta'$ has the
gradient $\gamma(\theta - \mathbb{E}[\theta'])$ and the Hessian
$\gamma I - \gamma^2\,\mathrm{Cov}(\theta')$ over the density that the integral weighs. So its
gradient never rises faster than $\gamma$ along any direction, however many kinks L has. Nothing
here knows what a network is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


def local_entropy_gradient(shift: Tensor, noise: Tensor, losses: Tensor, gamma: float) -> Tensor:
    r"""Gradient of the local entropy at $\theta_0 + h$, from one set of sampled points.

    The points are $\theta_0 + \xi_i$ with $\xi_i$ drawn from $\mathcal{N}(0, I/\gamma)$. Their
    weights at $\theta_0 + h$ are proportional to
    $\exp(-L(\theta_0 + \xi_i) + \gamma\,h^\top\xi_i)$, equation (eq-sharp-entropy). What is
    computed is the exact local entropy of the sampled measure, so its curvature is bounded by
    $\gamma$ too.

    Args:
        shift: h of shape (..., D), relative to the point around which the samples were drawn.
        noise: The $\xi_i$, shape (..., M, D), or (M, D) for all.
        losses: $L(\theta_0 + \xi_i)$, shape (..., M).
        gamma: Strength of the tie, positive.

    Returns:
        Shape (..., D).

    Raises:
        ValueError: If ``gamma`` is not positive.

    Source:
        chaudhari2017entropysgd.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0, got {gamma}")
    tilt = torch.einsum("...md,...d->...m", noise, shift)
    weights = torch.softmax(gamma * tilt - losses, dim=-1)
    return gamma * (shift - torch.einsum("...m,...md->...d", weights, noise))


@dataclass(frozen=True)
class EntropySGD:
    r"""Settings of Entropy-SGD.

    Attributes:
        gamma: How strongly the inner weights are tied to the outer ones, $\gamma$.
        inner_steps: Gradients per outer step.
        inner_rate: Step size of the inner loop.
        outer_rate: Factor of $\theta - \mu$; 1 puts the outer weights on the average.
        average: How much of the running average is kept in every inner step, b.
        temperature: Size of the inner noise: every inner step adds $\sqrt{2 \eta' T}$ times a
            standard normal vector. The published code has nearly none.
    """

    gamma: float = 1.0
    inner_steps: int = 20
    inner_rate: float = 0.1
    outer_rate: float = 1.0
    average: float = 0.75
    temperature: float = 1e-8

    def __post_init__(self) -> None:
        """Refuse settings that make no sense."""
        if min(self.gamma, self.inner_rate, self.outer_rate) <= 0 or self.inner_steps < 1:
            raise ValueError(
                "gamma, inner_rate and outer_rate must be > 0 and inner_steps >= 1, got "
                f"{self.gamma}, {self.inner_rate}, {self.outer_rate}, {self.inner_steps}"
            )
        if not 0 <= self.average < 1 or self.temperature < 0:
            raise ValueError(
                "average must be in [0, 1) and temperature >= 0, got "
                f"{self.average}, {self.temperature}"
            )


class EntropyDescent(NamedTuple):
    r"""What Entropy-SGD did.

    Attributes:
        theta: Outer weights at the end, of the start's shape.
        gradient: Length of the estimated gradient of the local entropy, $\gamma\|\theta - \mu\|$,
            in every outer step, shape (..., T).
    """

    theta: Tensor
    gradient: Tensor


def entropy_sgd(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    config: EntropySGD,
    stream: torch.Generator,
) -> EntropyDescent:
    r"""Descend on the local entropy; its gradient is estimated by a noisy inner descent.

    Args:
        gradient: Maps weights (..., D) to gradients of the same shape; it may draw a new batch at
            every call.
        start: Weights of shape (..., D).
        steps: Outer steps; each costs ``config.inner_steps`` gradients.
        config: How to descend.
        stream: Decides the inner noise.

    Returns:
        The last outer weights, and the gradients' lengths.

    Raises:
        ValueError: If ``steps`` is not positive.

    Source:
        chaudhari2017entropysgd; the outer step drops the factor $\gamma$, as its published code
        does.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    theta, lengths = start, []
    scale = math.sqrt(2 * config.inner_rate * config.temperature)
    for _ in range(steps):
        inner, mean = theta, theta
        for _ in range(config.inner_steps):
            drift = gradient(inner) + config.gamma * (inner - theta)
            noise = torch.randn(theta.shape, generator=stream, dtype=theta.dtype)
            inner = inner - config.inner_rate * drift + scale * noise.to(theta.device)
            mean = config.average * mean + (1 - config.average) * inner
        lengths.append(config.gamma * (theta - mean).norm(dim=-1))
        theta = theta - config.outer_rate * (theta - mean)
    return EntropyDescent(theta, torch.stack(lengths, dim=-1))

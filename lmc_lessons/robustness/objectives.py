r"""Objectives of robust training: losses for the one training loop.

An objective does two things that can be asked for apart: it finds the inputs to train on, and it
gives the loss on them. So what perturbs the weights (``robustness.weight_perturbation``) can look
at one batch of adversarial examples twice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.robustness.attacks import LInf, ThreatModel, pgd
from lmc_lessons.training import Mode, Network, cross_entropy

START = 21  # the random stream of an attack's start in training


class Objective(Protocol):
    """A loss for ``training.train`` in two parts."""

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The inputs to train on, of the shape of ``x``."""

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """One loss per network, shape (S,), on clean inputs ``x`` and those that were found."""

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Both, one after the other."""


@dataclass(frozen=True)
class Standard:
    """Cross-entropy of the clean inputs: training without an attack."""

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The clean inputs."""
        del network, y
        return x

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy per network, in nats."""
        del x
        return cross_entropy(network, found, y)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy per network, in nats, shape (S,)."""
        return self.loss(network, x, x, y)


@dataclass(frozen=True)
class AdversarialTraining:
    r"""Cross-entropy of the inputs that projected gradient descent finds.

    $$\min_\theta \frac1n \sum_i \max_{x_i' \in B_\epsilon(x_i)} \ell(f_\theta(x_i'), y_i)$$

    Attributes:
        threat: Which inputs count as near.
        steps: Steps of the attack.
        step_size: Their length; $2.5\,\epsilon / \mathrm{steps}$ if None.
        mode: Whether BatchNorm is in ``train`` or ``eval`` mode during the attack; published code
            does both. In train mode the attack also updates the running statistics.

    Source:
        madry2018towards.

    Taught in: book/robustness/flat-minima
    """

    threat: ThreatModel = field(default_factory=lambda: LInf(8 / 255))
    steps: int = 10
    step_size: float | None = None
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        """Refuse an attack without steps, or an unknown mode."""
        _check_attack(self.steps, self.step_size, self.mode)

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Adversarial examples, from a random start in the threat model."""
        start = torch.stack(
            [
                self.threat.random(part, 1, stream)
                for part, stream in zip(x, network.streams(START), strict=True)
            ]
        )
        attacked = network.detached(self.mode)
        return pgd(
            attacked, x, y, self.threat, steps=self.steps, step_size=self.step_size, start=start
        )

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of the adversarial examples per network, in nats."""
        del x
        return cross_entropy(network, found, y)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Mean adversarial cross-entropy per network, in nats, shape (S,)."""
        return self.loss(network, x, self.inputs(network, x, y), y)


@dataclass(frozen=True)
class TRADES:
    r"""Cross-entropy of the clean inputs, and how far an attack can move the prediction.

    $$\min_\theta \frac1n \sum_i \Big[ \ell(f_\theta(x_i), y_i) + \beta \max_{x_i'}
    \mathrm{KL}\big(p_\theta(x_i) \,\|\, p_\theta(x_i')\big) \Big]$$

    The attack starts at the input with a little Gaussian noise, since the divergence has no
    gradient at the input itself. The gradient of the second term flows into both predictions.

    Attributes:
        threat: Which inputs count as near.
        beta: Weight of the second term, at least 0.
        steps: Steps of the attack.
        step_size: Their length; $2.5\,\epsilon / \mathrm{steps}$ if None.
        mode: Whether BatchNorm is in ``train`` or ``eval`` mode during the attack.
        noise: Standard deviation of the start's noise.

    Source:
        zhang2019trades and its published code.

    Taught in: book/robustness/flat-minima
    """

    threat: ThreatModel = field(default_factory=lambda: LInf(8 / 255))
    beta: float = 6.0
    steps: int = 10
    step_size: float | None = None
    mode: Mode = "eval"
    noise: float = 1e-3

    def __post_init__(self) -> None:
        """Refuse negative weights, an attack without steps, or an unknown mode."""
        _check_attack(self.steps, self.step_size, self.mode)
        if not (0 <= self.beta < math.inf and 0 <= self.noise < math.inf):
            raise ValueError(f"beta and noise must be >= 0, got {self.beta} and {self.noise}")

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The inputs whose prediction is farthest from the clean one; labels play no part."""
        attacked = network.detached(self.mode)
        with torch.no_grad():
            clean = F.log_softmax(attacked(x), -1)  # once: the attack does not change it

        def divergence(logits: Tensor, y: Tensor) -> Tensor:
            del y
            return kl_divergence(clean, F.log_softmax(logits, -1))

        noise = [
            torch.randn(p.shape, generator=g)
            for p, g in zip(x, network.streams(START), strict=True)
        ]
        return pgd(
            attacked,
            x,
            y,
            self.threat,
            steps=self.steps,
            step_size=self.step_size,
            loss=divergence,
            start=x + self.noise * torch.stack(noise).to(x),
        )

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """Clean cross-entropy plus the weighted divergence per network, in nats."""
        clean = network(x)
        labels = F.cross_entropy(clean.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
        moved = kl_divergence(F.log_softmax(clean, -1), F.log_softmax(network(found), -1))
        return (labels + self.beta * moved).mean(1)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Clean cross-entropy plus the weighted divergence per network, in nats, shape (S,)."""
        return self.loss(network, x, self.inputs(network, x, y), y)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    r"""Kullback-Leibler divergence $\sum_k p_k (\log p_k - \log q_k)$.

    Args:
        log_p: Log-probabilities of shape (..., classes).
        log_q: Log-probabilities of the same shape.

    Returns:
        Shape (...,), in nats.

    Taught in: book/robustness/flat-minima
    """
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _check_attack(steps: int, step_size: float | None, mode: str) -> None:
    if steps < 1 or (step_size is not None and not 0 <= step_size < math.inf):
        raise ValueError(f"an attack needs steps >= 1 and step_size >= 0, got {steps}, {step_size}")
    if mode not in ("train", "eval"):
        raise ValueError(f"mode is {mode!r}, allowed: train, eval")

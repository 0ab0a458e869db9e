"""TRADES against the step as it was published: ``python -m benchmarks.objectives``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import interleaved, main, table, verdict
from lmc_lessons.datasets import load
from lmc_lessons.models import ModelConfig
from lmc_lessons.robustness.attacks import LInf, pgd
from lmc_lessons.robustness.objectives import TRADES, kl_divergence
from lmc_lessons.training import Network, TrainConfig, train

GOAL = 1.15
THREAT, STEPS = LInf(0.1), 10


@dataclasses.dataclass(frozen=True)
class ForwardInside(TRADES):
    """The same objective with the clean forward pass inside the loop of the attack."""

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """As published: every step computes the clean prediction again, with its graph."""

        def divergence(logits: Tensor, y: Tensor) -> Tensor:
            del y
            clean = F.log_softmax(network.aside()(x), -1)
            return kl_divergence(clean, F.log_softmax(logits, -1))

        noise = [
            torch.randn(part.shape, generator=stream)
            for part, stream in zip(x, network.streams(21), strict=True)
        ]
        start = x + self.noise * torch.stack(noise)
        attacked = network.detached(self.mode)
        return pgd(attacked, x, y, self.threat, steps=self.steps, loss=divergence, start=start)


def trades_section() -> str:
    """Forward, attack, outer loss and backward of one batch, of two architectures."""
    rows = []
    for name, config, data in (
        ("MLP 64-256-256-10, 128 images", ModelConfig(width=256, depth=2), load("digits")),
        (
            "CNN, 16 channels, 128 images of 16x16",
            ModelConfig("cnn", (1, 16, 16), 10, width=16),
            load("glyphs"),
        ),
    ):
        seen: list[Network] = []

        def keep(network: Network, x: Tensor, y: Tensor, seen: list[Network] = seen) -> Tensor:
            seen.append(network)
            return F.cross_entropy(network(x).flatten(0, 1), y.flatten())[None]

        train(config, data, [0], TrainConfig(epochs=2, batch_size=128), loss=keep)
        network, x, y = seen[-1], data.train_x[None, :128], data.train_y[None, :128]

        def step(
            objective: TRADES, network: Network = network, x: Tensor = x, y: Tensor = y
        ) -> None:
            loss = objective(network, x, y).sum()
            torch.autograd.grad(loss, list(network.params.values()))

        ours, published = TRADES(THREAT, steps=STEPS), ForwardInside(THREAT, steps=STEPS)
        assert torch.allclose(
            ours.inputs(network, x, y), published.inputs(network, x, y), atol=1e-6
        )
        contenders: dict[str, Callable[[], object]] = {
            "ours": partial(step, ours),
            "inside": partial(step, published),
        }
        seconds = interleaved(contenders, repeats=15)
        ratio = seconds["inside"] / seconds["ours"]
        rows.append(
            [
                name,
                f"{1000 * seconds['ours']:.1f} ms",
                f"{1000 * seconds['inside']:.1f} ms",
                f"{ratio:.2f}",
                f">= {GOAL}: {verdict(ratio >= GOAL)}",
            ]
        )
    head = ["network", "ours", "clean forward inside the loop", "ratio", "goal"]
    return table(head, rows)


if __name__ == "__main__":
    main("objectives", {"trades": trades_section})

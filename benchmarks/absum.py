"""What a penalty on kernels adds to a step of training: ``python -m benchmarks.absum``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import interleaved, main, table, verdict
from lmc_lessons.models import ModelConfig, build
from lmc_lessons.robustness.absum import absum_step, l1_step
from lmc_lessons.robustness.fourier import clip_singular_values

GOAL = 1.1
BATCH = 64


def stepper(
    model: nn.Module, x: Tensor, y: Tensor, after: Callable[[Tensor], Tensor] | None
) -> None:
    """One step of SGD with momentum, and what comes after it on the kernels."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    if after is not None:
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 4 and weight[0, 0].numel() > 1:
                    weight.copy_(after(weight))


def cost_section() -> str:
    """A step of training with each penalty, relative to weight decay's."""
    rows = []
    for name, config in (
        ("CNN 8-16, 16x16", ModelConfig("cnn", (1, 16, 16), 10, width=8)),
        ("ResNet-20, 16x16", ModelConfig("resnet", (3, 16, 16), 10, width=1, depth=20)),
    ):
        torch.manual_seed(0)
        x, y = torch.rand(BATCH, *config.input_shape), torch.randint(10, (BATCH,))
        after: dict[str, Callable[[Tensor], Tensor] | None] = {
            "none": None,
            "weight decay": partial(torch.mul, 1 - 1e-6),
            "L1": partial(l1_step, size=1e-6),
            "Absum": partial(absum_step, size=1e-6),
            "clipped singular values": partial(
                clip_singular_values, limit=1e3, side=config.input_shape[-1]
            ),
        }
        contenders: dict[str, Callable[[], object]] = {
            kind: partial(stepper, build(config), x, y, step) for kind, step in after.items()
        }
        seconds = interleaved(contenders, repeats=15)
        decay = seconds["weight decay"]
        ratio = seconds["Absum"] / decay
        rows.append(
            [
                name,
                f"{1000 * seconds['none']:.1f} ms",
                *(f"{seconds[kind] / decay:.2f}" for kind in list(after)[2:]),
                f"Absum <= {GOAL}: {verdict(ratio <= GOAL)}",
            ]
        )
    head = ["network", "plain step", "L1", "Absum", "clipped singular values", "goal"]
    return table(head, rows)


if __name__ == "__main__":
    main("absum", {"cost": cost_section})

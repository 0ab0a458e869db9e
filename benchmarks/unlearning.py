"""Forgetting from K codes against N images: ``python -m benchmarks.unlearning``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.curvature import doubled, largest_difference, looped
from benchmarks.timing import interleaved, main, table, verdict
from lmc_lessons.curvature import fisher_diagonal
from lmc_lessons.datasets import load
from lmc_lessons.models import ModelConfig, Params, build, initial
from lmc_lessons.unlearning.mnemonic import draw_codes

CONFIGS = {
    "MLP 64-256-10": ModelConfig("mlp", width=256, depth=1, activation="sigmoid"),
    "CNN 16-32, 8x8": ModelConfig("cnn", width=16),
}
GOAL = 10  # times as fast, from the codes
ERROR = 1e-5  # of the fast Fisher information in float32, relative
Fisher = Callable[[nn.Module, Params, Tensor, Tensor], Params]


def both(fisher: Fisher, model: nn.Module, params: Params, x: Tensor, y: Tensor) -> Params:
    """The ratio for class 0: Fisher information of its inputs over that of the others."""
    chosen = y == 0
    first, second = (fisher(model, params, x[kind], y[kind]) for kind in (chosen, ~chosen))
    return {name: first[name] / (second[name] + 1e-16) for name in first}


def forgetting() -> str:
    data, rows = load("digits"), []
    for name, config in CONFIGS.items():
        model, params = build(config).eval(), initial(config, 0)
        inputs = {
            "codes": (draw_codes(0, 10, config.input_shape), torch.arange(10)),
            "images": (data.train_x, data.train_y),
        }
        contenders: dict[str, Callable[[], object]] = {
            f"{kind}, {way}": partial(both, fisher, model, params, *inputs[kind])
            for kind in inputs
            for way, fisher in (("loop", looped), ("fast", fisher_diagonal))
        }
        seconds = interleaved(contenders, repeats=5)
        exact = fisher_diagonal(model, doubled(params), data.train_x.double(), data.train_y)
        found = fisher_diagonal(model, params, data.train_x, data.train_y)
        error = largest_difference(found, exact)
        ratio = seconds["images, fast"] / seconds["codes, fast"]
        rows.append(
            [
                f"{name}, {len(data.train_x)} images",
                *(f"{1e3 * seconds[key]:.1f} ms" for key in contenders),
                f"{seconds['images, loop'] / seconds['codes, loop']:.0f}",
                f"{ratio:.1f}",
                f">= {GOAL}: {verdict(ratio >= GOAL)}",
                f"{error:.0e} ({'below' if error < ERROR else 'above'} {ERROR:.0e})",
            ]
        )
    head = ["network", "codes, loop", "codes, fast", "images, loop", "images, fast"]
    return table([*head, "ratio, loops", "ratio, fast", "goal (fast)", "error"], rows)


if __name__ == "__main__":
    main("unlearning", {"forgetting": forgetting})

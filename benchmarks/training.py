"""Many seeds in one program against a loop of single runs: ``python -m benchmarks.training``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.timing import interleaved, main, table, verdict
from lmc_lessons.datasets import Dataset, load
from lmc_lessons.models import ModelConfig, Params, stack
from lmc_lessons.training import TrainConfig, train

MODEL = ModelConfig("mlp", (1, 8, 8), 10, width=128, depth=2)
EXACT = TrainConfig(epochs=5, batch_size=64)
FAST = dataclasses.replace(EXACT, fast=True)
SEEDS = range(16)
GOALS = {"exact": 2.3, "fast": 4.0}


def plain_run(seed: int, data: Dataset) -> None:
    """One network, written as anyone would write it."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=EXACT.learning_rate)
    for _ in range(EXACT.epochs):
        order = torch.randperm(len(data.train_x))
        for batch in order.split(EXACT.batch_size)[: len(order) // EXACT.batch_size]:
            loss = F.cross_entropy(model(data.train_x[batch]), data.train_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def largest_difference(one: Params, two: Params) -> float:
    return max(float((one[name] - two[name]).abs().max()) for name in one)


def plain_loop(data: Dataset) -> None:
    for seed in SEEDS:
        plain_run(seed, data)


def own_loop(data: Dataset) -> list[Params]:
    runs = (train(MODEL, data, [seed], EXACT) for seed in SEEDS)
    return [{name: tensor[0] for name, tensor in run.params.items()} for run in runs]


def together(data: Dataset, config: TrainConfig) -> Params:
    return train(MODEL, data, SEEDS, config).params


def seeds() -> str:
    data = load("digits")
    contenders: dict[str, Callable[[], object]] = {
        "plain": partial(plain_loop, data),
        "own": partial(own_loop, data),
        "exact": partial(together, data, EXACT),
        "fast": partial(together, data, FAST),
    }
    seconds = interleaved(contenders, repeats=9)
    reference = stack(own_loop(data))
    rows = [
        ["loop of a plain module and optimiser", f"{seconds['plain']:.2f} s", "1.0", "", "", ""],
        [
            "loop of `train` with one seed",
            f"{seconds['own']:.2f} s",
            f"{seconds['plain'] / seconds['own']:.2f}",
            "1.0",
            "",
            "0",
        ],
    ]
    for mode, config in (("exact", EXACT), ("fast", FAST)):
        against_plain, against_own = (seconds[k] / seconds[mode] for k in ("plain", "own"))
        goal = GOALS[mode]
        reached = verdict(min(against_plain, against_own) >= goal)
        rows.append(
            [
                f"`train` with 16 seeds, {mode} mode",
                f"{seconds[mode]:.2f} s",
                f"{against_plain:.2f}",
                f"{against_own:.2f}",
                f">= {goal}: {reached}",
                f"{largest_difference(together(data, config), reference):.0e}",
            ]
        )
    header = ["program", "median", "x plain loop", "x own loop", "goal", "largest difference"]
    return table(header, rows)


if __name__ == "__main__":
    main("training", {"seeds": seeds})

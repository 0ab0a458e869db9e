"""PGD against the same attack of other libraries: ``python -m benchmarks.attacks``.

The peers are no dependencies: install them anywhere and name the folder in PYTHONPATH.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.timing import interleaved, main, table, verdict
from lmc_lessons.datasets import load
from lmc_lessons.models import ModelConfig, build, predict, unstack
from lmc_lessons.robustness.attacks import LInf, pgd
from lmc_lessons.training import TrainConfig, train

EPSILON, STEPS = 0.1, 10
GOALS = {"torchattacks": 0.95, "foolbox": 1.15}


class Loaded(nn.Module):
    """An architecture with its parameters inside, as the other libraries want it."""

    def __init__(self, model: nn.Module, params: dict[str, Tensor]) -> None:
        """Copy the parameters in."""
        super().__init__()
        self.model = model
        self.model.load_state_dict(params)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.model(x)


def pgd_section() -> str:
    """PGD-10 on one batch of one small convolutional network: the same steps in three libraries."""
    data = load("glyphs")
    config = ModelConfig("cnn", data.input_shape, data.classes, width=16)
    params = unstack(train(config, data, [0], TrainConfig(epochs=4)).params)[0]
    model = build(config).eval()
    loaded = Loaded(build(config), params).eval()
    x, y = data.test_x[:256], data.test_y[:256]
    threat, size = LInf(EPSILON), 2.5 * EPSILON / STEPS

    def ours() -> Tensor:
        return pgd(lambda z: predict(model, params, z), x, y, threat, steps=STEPS, step_size=size)

    contenders: dict[str, Callable[[], Tensor]] = {"this package": ours}
    if importlib.util.find_spec("torchattacks"):
        torchattacks: Any = importlib.import_module("torchattacks")
        attack = torchattacks.PGD(loaded, eps=EPSILON, alpha=size, steps=STEPS, random_start=True)
        contenders["torchattacks"] = lambda: attack(x, y)
    if importlib.util.find_spec("foolbox"):
        foolbox: Any = importlib.import_module("foolbox")
        wrapped = foolbox.PyTorchModel(loaded, bounds=(0, 1), device="cpu")
        linf = foolbox.attacks.LinfPGD(abs_stepsize=size, steps=STEPS, random_start=True)
        contenders["foolbox"] = lambda: linf(wrapped, x, y, epsilons=EPSILON)[1]
    seconds = interleaved(contenders, repeats=15)
    rows = []
    for name, attack_it in contenders.items():
        found = attack_it()
        with torch.no_grad():
            left = float((loaded(found).argmax(1) == y).double().mean())
        ratio = seconds[name] / seconds["this package"]
        goal = f">= {GOALS[name]}: {verdict(ratio >= GOALS[name])}" if name in GOALS else ""
        rows.append(
            [name, f"{1000 * seconds[name]:.0f} ms", f"{ratio:.2f}", f"{100 * left:.1f} %", goal]
        )
    head = ["library", "PGD-10, 256 images", "time over ours", "accuracy left", "goal"]
    return table(head, rows)


if __name__ == "__main__":
    main("attacks", {"pgd": pgd_section})

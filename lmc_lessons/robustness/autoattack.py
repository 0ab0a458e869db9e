"""AutoAttack's standard version, by its authors' code: for final tables and for comparison.

Needs the package ``pyautoattack``; nothing else in this package does.
"""

from __future__ import annotations

import importlib
from typing import Any

from torch import Tensor, nn

from lmc_lessons.robustness.attacks import L2, Attack, LInf, Predict, ThreatModel

STAGES = {"APGD-CE": "apgd-ce", "APGD-T": "apgd-t", "FAB-T": "fab-t", "Square": "square"}


class _Module(nn.Module):
    """A function of inputs, as the module that AutoAttack wants."""

    def __init__(self, predict: Predict) -> None:
        super().__init__()
        self.predict = predict

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.predict(x)


def standard_autoattack(*, seed: int = 0) -> dict[str, Attack]:
    """The four attacks of AutoAttack's standard version, as stages of ``attacks.evaluate``.

    APGD on cross-entropy, targeted APGD, targeted FAB (100 steps each, nine target classes) and
    Square (5,000 queries), as published.

    Args:
        seed: Decides all random starts.

    Returns:
        Name to attack, in order. They attack images of shape (N, C, H, W) of at least four classes,
        and raise ``ValueError`` for an unbounded threat model.

    Raises:
        ModuleNotFoundError: If ``pyautoattack`` is not installed; the message says how to get it.

    Source:
        croce2020autoattack.

    Taught in: book/robustness/adversarial-examples
    """
    try:
        package: Any = importlib.import_module("pyautoattack")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "AutoAttack needs the package pyautoattack: pip install 'lmc-lessons[autoattack]'"
        ) from error

    def stage(name: str) -> Attack:
        def attack(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
            norm = {LInf: "Linf", L2: "L2"}.get(type(threat))
            if norm is None or not threat.bounded:
                raise ValueError(
                    f"AutoAttack needs a bounded LInf or L2 threat model, got {threat}"
                )
            whole = package.AutoAttack(
                _Module(predict), norm=norm, eps=threat.epsilon, seed=seed, device=x.device
            )
            whole.attacks_to_run = [name]
            found: Tensor = whole.run_standard_evaluation(x, y, batch_size=len(x))[0]
            return threat.project(found, x, y.dim())  # it may leave the ball by rounding

        return attack

    return {title: stage(name) for title, name in STAGES.items()}

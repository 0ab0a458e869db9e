"""AutoAttack by its authors' code: it runs in our stages, and our ensemble agrees with it."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from lmc_lessons import datasets
from lmc_lessons.models import ModelConfig, build, unstack
from lmc_lessons.robustness.attacks import L2, LInf, ThreatModel, ensemble, evaluate
from lmc_lessons.robustness.autoattack import STAGES, standard_autoattack
from lmc_lessons.training import TrainConfig, train


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any, Any]:
    data = datasets.load("digits", limit=600)
    config = ModelConfig(width=32, depth=2)
    params = unstack(train(config, data, [0], TrainConfig(epochs=20)).params)[0]
    return build(config).eval(), params, data


@pytest.mark.parametrize("threat", [LInf(0.06), L2(0.4)], ids=["linf", "l2"])
def test_our_ensemble_leaves_what_autoattack_leaves(
    trained: tuple[Any, Any, Any], threat: ThreatModel
) -> None:
    model, params, data = trained
    x, y = data.test_x[:60], data.test_y[:60]
    stages = standard_autoattack()
    if isinstance(threat, L2):  # Square takes its 5,000 queries here, and adds nothing
        stages.pop("Square")
    theirs = evaluate(model, params, x, y, threat, stages)
    ours = evaluate(model, params, x, y, threat, ensemble(queries=200))
    left = list(theirs.robust.values())
    assert 0 < left[-1] < theirs.clean
    assert left == sorted(left, reverse=True)
    assert abs(left[-1] - list(ours.robust.values())[-1]) <= 1 / 60 + 1e-9
    inside = threat.project(theirs.x, x, 1)
    assert float((inside - theirs.x).abs().max()) <= 1e-6


def test_stages_are_named_as_published() -> None:
    assert list(standard_autoattack()) == list(STAGES) == ["APGD-CE", "APGD-T", "FAB-T", "Square"]


def test_an_unbounded_threat_model_is_refused(trained: tuple[Any, Any, Any]) -> None:
    model, params, data = trained
    with pytest.raises(ValueError, match="needs a bounded LInf or L2 threat model"):
        evaluate(
            model,
            params,
            data.test_x[:4],
            data.test_y[:4],
            LInf(0.1, bounded=False),
            standard_autoattack(),
        )


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *rest: Any) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lmc-lessons\[autoattack\]'"):
        standard_autoattack()

"""The lesson's claims can come out either way; who forgets what, and what is measured."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import (
    check_claims,
    killed_again_and_again,
    random_images,
    shape,
    synthetic,
)

from lmc_lessons import datasets
from lmc_lessons.experiments import mnemonic_codes as lesson
from lmc_lessons.experiments.runs import Stages, override
from lmc_lessons.models import RESNET_STAGES, build, initial, unstack
from lmc_lessons.results import Claim, Result, Series, dump
from lmc_lessons.training import train
from lmc_lessons.unlearning.audit import report
from lmc_lessons.unlearning.baselines import without
from lmc_lessons.unlearning.mnemonic import MnemonicTraining, draw_codes, forget, middle, search

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5
DECOY = 0.3


# --- Claims ---------------------------------------------------------------------------------------


def of_methods(arm: str, values: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Methods of which some quantities were measured, for two classes around the mean."""
    found: dict[str, Any] = {}
    for name, quantities in (("networks", lesson.QUANTITIES), ("audit", lesson.AUDITS)):
        if not any(set(own) & set(quantities) for own in values.values()):
            continue
        axes: dict[str, list[Any]] = {
            "arm": ["other", arm],
            "class": [0, 8],
            "method": list(values),
            "quantity": list(quantities),
        }
        rows = [
            [
                [[[DECOY] * len(quantities) for _ in values] for _ in range(2)],
                [
                    [
                        [own.get(q, DECOY) + shift + 0.001 * k for q in quantities]
                        for own in values.values()
                    ]
                    for shift in (-0.01, 0.01)
                ],
            ]
            for k in range(SEEDS)
        ]
        found[name] = Series(axes, rows)
    return found


def balances(arm: str, values: dict[str, float]) -> dict[str, Any]:
    """Methods whose mean of forget error and retain accuracy is this."""
    return of_methods(
        arm,
        {n: {"forget error": v + 0.1, "retain accuracy": v - 0.1} for n, v in values.items()},
    )


def audits(arm: str, quantity: str, values: dict[str, float]) -> dict[str, Any]:
    return of_methods(arm, {name: {quantity: value} for name, value in values.items()})


def numbers(**values: float) -> dict[str, Any]:
    return {n.replace("__", ": ").replace("_", " "): [v] * SEEDS for n, v in values.items()}


def costs(arm: str, images: float) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {"arm": ["other", arm], "method": ["codes", "images"]}
    return {"cost": Series(axes, [[[1.0, 1.0], [10.0, images]] for _ in range(SEEDS)])}


STEPS = [0.01, 0.03, 0.1, 0.3, 1.0]


def grids(capped: list[bool], free: list[bool]) -> dict[str, Any]:
    """Steps at which the rule with a cap, and the one without, forget and keep."""
    axes: dict[str, list[Any]] = {
        "arm": ["MLP"],
        "method": ["codes"],
        "step": STEPS,
        "cap": [1.0, "none"],
        "seen": list(lesson.SEEN),
    }

    def cell(good: bool) -> list[float]:
        return [1.0, 0.95, 2.0] if good else [0.5, 0.95, 2.0]

    rows = [[cell(a), cell(b)] for a, b in zip(capped, free, strict=True)]
    kept = of_methods("MLP", {"original": {"retain accuracy": 0.96}})
    return kept | {"grid": Series(axes, [[[rows]] for _ in range(SEEDS)])}


def cases(arm: str) -> dict[str, tuple[Any, Any]]:
    """Ends of claims' names to a run in which they hold, and one in which they fail."""
    best, error, kept = "codes, best", "forget error", "retain accuracy"

    def loses(method: str, points: float) -> dict[str, Any]:
        return of_methods(arm, {method: {kept: 0.95 - points}, "original": {kept: 0.95}})

    return {
        "C1": (of_methods(arm, {"codes": {error: 0.99}}), of_methods(arm, {"codes": {error: 0.9}})),
        "C1-keeps": (loses("codes", 0.01), loses("codes", 0.05)),
        "C1-best": (of_methods(arm, {best: {error: 0.99}}), of_methods(arm, {best: {error: 0.9}})),
        "C1-best-keeps": (loses(best, 0.01), loses(best, 0.05)),
        "C2": (costs(arm, 1347.0), costs(arm, 900.0)),
        "C2-images": (
            balances(arm, {best: 0.9, "images, best": 0.9}),
            balances(arm, {best: 0.8, "images, best": 0.9}),
        ),
        "C3": (
            numbers(**{f"{arm}__accuracy_codes": 0.95, f"{arm}__accuracy_plain": 0.955}),
            numbers(**{f"{arm}__accuracy_codes": 0.9, f"{arm}__accuracy_plain": 0.955}),
        ),
        "C7a": (
            balances(arm, {"logit mask": 0.9, best: 0.9}),
            balances(arm, {"logit mask": 0.8, best: 0.9}),
        ),
        "C7b": (
            balances(arm, {"last layer, best": 0.9, best: 0.9}),
            balances(arm, {"last layer, best": 0.8, best: 0.9}),
        ),
        "C7c": (
            balances(arm, {"all but last, best": 0.7, best: 0.9}),
            balances(arm, {"all but last, best": 0.88, best: 0.9}),
        ),
        "P1": (
            audits(arm, "probe", {best: 0.95, "original": 0.96}),
            audits(arm, "probe", {best: 0.6, "original": 0.96}),
        ),
        "P2": (
            audits(arm, "reading", {best: 0.99, "retrained": 0.9}),
            audits(arm, "reading", {best: 0.9, "retrained": 0.9}),
        ),
        "P3": (
            audits(arm, "relearning", {best: 3, "retrained": 9}),
            audits(arm, "relearning", {best: 9, "retrained": 9}),
        ),
        "T1": (numbers(**{f"{arm}__lead_codes": 3.0}), numbers(**{f"{arm}__lead_codes": 0.5})),
    }


def named(end: str, letter: str) -> str:
    """``C1-keeps`` of an arm is ``C1m-keeps``."""
    first, dash, rest = end.partition("-")
    return f"{first}{letter}{dash}{rest}"


def change(value: float) -> dict[str, Any]:
    found = of_methods("MLP", {"SSD": {"change": value}})
    for seed in found["networks"].values:
        seed[0] = [[[0.0] * len(lesson.QUANTITIES)] for _ in range(2)]
    return found


# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    named(end, letter): case
    for arm, letter in (("MLP", "m"), ("CNN", "c"))
    for end, case in cases(arm).items()
}
MEASURED |= {
    "C4c": (
        balances("CNN", {"codes, best": 0.95, "untrained codes, best": 0.85}),
        balances("CNN", {"codes, best": 0.95, "untrained codes, best": 0.95}),
    ),
    "C4m": (
        balances("MLP", {"codes, best": 0.95, "untrained codes, best": 0.95}),
        balances("MLP", {"codes, best": 0.95, "untrained codes, best": 0.85}),
    ),
    "C6": (
        grids([False, True, True, True, False], [False] * 5),
        grids([False, True, True, False, True], [True] * 5),
    ),
    "C6-cap": (
        grids([True] * 5, [True, True, False, False, False]),
        grids([True] * 5, [True] * 5),
    ),
    "S1": (change(0.02), change(0.3)),
}


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


def test_a_claim_needs_every_series_that_it_reads() -> None:
    for name, (holds, _) in MEASURED.items():
        for missing in holds:
            rest = {key: value for key, value in holds.items() if key != missing}
            found = CLAIMS[name].decide(synthetic(lesson.LESSON, rest, SEEDS))
            assert found.verdict == "not-measured", (name, missing)


def test_a_run_of_one_kind_of_network_leaves_the_other_s_claims_open() -> None:
    for name, (holds, _) in MEASURED.items():
        other = {
            key: Series({**value.axes, "arm": ["x", "y"][: len(value.axes["arm"])]}, value.values)
            if isinstance(value, Series)
            else value
            for key, value in holds.items()
        }
        found = CLAIMS[name].decide(synthetic(lesson.LESSON, other, SEEDS))
        measures_numbers = not any(isinstance(value, Series) for value in holds.values())
        assert found.verdict == "not-measured" or measures_numbers or name == "S1", name


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper, claim.unit):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert claim.paper == "not read", "the sources' numbers are not printed"


def test_runs_of_steps() -> None:
    good, bad, poor = [1.0, 0.95], [0.9, 0.95], [1.0, 0.5]
    run = lesson.longest_run
    assert run([good, good, bad, good], [-2, -1, 0, 1], 0.9) == 1
    assert run([poor, good, good, good], [-2, -1, 0, 1], 0.9) == 2
    assert run([bad, poor, good, bad], [-2, -1, 0, 1], 0.9) == 0
    assert run([bad, bad], [0, 1], 0.9) == 0


# --- Presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    if name == "study":
        assert len(config.seeds) >= 5
        assert not any(config.arm(arm).train.fast for arm in config.arms)


WRONG = [
    ("seeds=()", "seeds must be different integers >= 0, got ()"),
    ("seeds=(1, 1)", "seeds must be different integers"),
    ("arms=('RNN',)", "arms are ('RNN',), allowed: MLP, CNN"),
    ("arms=('MLP', 'MLP')", "arms and forget must not repeat"),
    ("forget=(10,)", "cannot forget classes (10,), allowed: 0 to 9"),
    ("forget=()", "the forget set is empty"),
    ("mlp.share=1.5", "share must be in [0, 1], got 1.5"),
    ("mlp.train.epochs=0", "train.epochs must be at least 1, got 0"),
    ("steps=(1.0, 0.1)", "steps must increase, all above 0"),
    ("caps=(0.0, 1.0)", "caps must increase, all above 0"),
    ("amounts=(1.0,)", "amounts must be >= 0, at least as many as steps, got 1 and 9"),
    ("samples=1", "samples must be at least 2, got 1"),
    ("few=0", "few must be at least 1, got 0"),
    ("tuning.epochs=0", "tuning.epochs and relearning.epochs must be at least 1"),
    ("shown_cap=0.0", "and shown_cap above 0"),
]


@pytest.mark.parametrize(("setting", "message"), WRONG)
def test_wrong_settings_are_refused_in_one_line(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        override(lesson.PRESETS["study"], [setting])
    assert "\n" not in str(error.value)


def test_a_network_of_one_class_has_nothing_to_forget() -> None:
    with pytest.raises(ValueError, match="codes need at least 2 classes, got 1"):
        override(lesson.PRESETS["study"], ["mlp.model.classes=1", "forget=(0,)"])


# --- Measurements ---------------------------------------------------------------------------------

FEW = ["steps=(0.01, 1.0)", "caps=(0.3,)", "relearning.epochs=2", "few=1"]
SMALL = [*FEW, "seeds=(0, 1)", "forget=(0, 3)", "tuning.epochs=1", "test=10"]
SMALL += ["mlp.train.epochs=1", "cnn.train.epochs=1", "cnn.model.width=2", "mlp.model.width=16"]


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", random_images)


def small(*settings: str) -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS["study"], [*SMALL, *settings])
    return config


def setting_of(config: lesson.Config, arm: str = "MLP") -> lesson.Setting:
    data = random_images(config.dataset)
    return lesson.Setting(config, arm, data, build(config.arm(arm).model).eval(), "cpu")


def test_who_is_trained_on_what() -> None:
    config = small()
    setting = setting_of(config)
    found = lesson.train_all(setting, Stages(None, config))
    arm = config.mlp
    for share, data, params in (
        (0.1, setting.data, found.coded),
        (0.0, setting.data, found.plain),
        (0.1, without(setting.data, (3,)), found.retrained[3]),
    ):
        run = train(arm.model, data, config.seeds, arm.train, loss=MnemonicTraining(share))
        for own, wanted in zip(params, unstack(run.params), strict=True):
            assert all(torch.equal(own[name], wanted[name]) for name in wanted)


def test_methods_are_what_their_names_say() -> None:
    config = small("steps=(0.01, 0.1, 1.0)", "caps=(0.3, 3.0)")
    setting = setting_of(config)
    model = setting.model
    networks = lesson.Networks(*(initial(config.mlp.model, seed) for seed in range(3)))
    measured = lesson.measure_class(setting, networks, seed=0, forgotten=3)
    rows = dict(zip(lesson.METHODS, measured["networks"], strict=True))
    data = setting.data

    def told(params: Any) -> list[float]:
        return [*report(model, params, data.test_x, data.test_y, (3,))]

    codes = draw_codes(0, 10, data.input_shape)
    found = search(
        model, networks.coded, codes, (3,), steps=config.steps, caps=config.caps, part="last"
    )
    assert rows["last layer"][:2] == told(found[middle(found)].params)
    best = max(found, key=lambda one: sum(told(one.params)))
    assert sum(rows["last layer, best"][:2]) == pytest.approx(sum(told(best.params)))
    assert rows["original"] == [*told(networks.coded), *rows["original"][2:4], 0.0]
    assert rows["retrained"][:2] == told(networks.retrained)
    assert rows["logit mask"][0] == 1
    plain = search(model, networks.plain, codes, (3,), steps=config.steps, caps=config.caps)
    assert rows["untrained codes"][:2] == told(plain[middle(plain)].params)
    place = lesson.GRID.index("codes")
    grid = measured["grid"][place]
    free = forget(model, networks.coded, codes, (3,), step=0.1, cap=math.inf)
    capped = forget(model, networks.coded, codes, (3,), step=0.1, cap=3.0)
    assert grid[1][2] == [*told(free.params), free.score]
    assert grid[1][1] == [*told(capped.params), capped.score]


def test_costs_count_gradients_of_samples() -> None:
    config = small("fisher_with=30", "tuning.batch_size=8", "mlp.train.batch_size=8")
    config = dataclasses.replace(config, tuning=dataclasses.replace(config.tuning, epochs=3))
    setting = setting_of(config)
    expected = {
        "original": 0,
        "logit mask": 0,
        "codes": 10,
        "codes, smallest": 10,
        "images": 30,
        "SSD": 30 + 3,
        "SSD, best": 33,
        "Fisher noise": 270,
        "Fisher noise, no head": 270,
        "fine-tuned": 3 * 32,
        "retrained": 32,
        "images, best": 30,
        "last layer, best": 10,
    }
    for name, count in expected.items():
        assert lesson.cost(setting, name, 3) == count, name


def test_accuracy_class_by_class() -> None:
    config = small("amounts=(0.0, 9.0)")
    setting = setting_of(config)
    params = initial(config.mlp.model, 0)
    found = lesson.by_class(setting, params, seed=0, forgotten=3)
    plain = lesson.accuracy_by_class(setting.model, params, setting.data)
    assert found[1][0] == plain, "a mask of nothing"
    assert found[1][1][3] == 0
    assert len(plain) == 10
    mean = sum(plain) / 10  # every class has one test image
    said = report(setting.model, params, setting.data.test_x, setting.data.test_y, (3,))
    assert mean == pytest.approx(0.1 * (1 - said.forget_error) + 0.9 * said.retain_accuracy)


# --- Runs -----------------------------------------------------------------------------------------

NARROW = ((2, 1), (4, 1), (4, 2))  # channels and blocks per stage: what ``width`` cannot do
SMALLER: dict[str, list[str]] = {
    "toy": [*FEW, "mlp.train.epochs=1", "mlp.model.width=16", "test=10"],
    "study": SMALL,
    "full-digits-large-rate": SMALL,
    "full-mnist-mnemonic": [
        *FEW,
        *("seeds=(0,)", "samples=40", "test=10", "fisher_with=40", "mlp.train.epochs=1"),
        *("mlp.model.width=16", "mlp.train.batch_size=16"),
    ],
    "full-cifar-mnemonic": [
        *FEW,
        *("seeds=(0,)", "samples=40", "test=10", "fisher_with=40", "cnn.train.epochs=1"),
        *("cnn.train.batch_size=16", "cnn.train.precision=float32"),
    ],
}


def test_every_preset_has_a_small_edition() -> None:
    assert set(SMALLER) == set(lesson.PRESETS)


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_shrunk_presets_run(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESNET_STAGES, 18, NARROW)
    config: lesson.Config = override(lesson.PRESETS[preset], SMALLER[preset])
    result = lesson.run(config)
    assert (result.lesson, result.preset) == ("mnemonic-codes", preset)
    assert result.seeds == list(config.seeds)
    assert [claim.id for claim in result.claims] == list(CLAIMS)
    assert result.config == json.loads(dump(dataclasses.asdict(config)))
    for name, series in result.series.items():
        assert shape(series.values) == (len(config.seeds), *map(len, series.axes.values())), name
        assert series.axes["arm"] == list(config.arms)
    again = Result.from_json(json.loads(dump(result.to_json())))
    assert (again.metrics, again.series) == (result.metrics, result.series)
    if preset == "study":
        open_claims = [c.id for c in result.claims if c.verdict == "not-measured"]
        assert open_claims == []


def test_one_seed_run_alone_gives_the_same_numbers() -> None:
    """Bit for bit, so that one seed verifies a study."""
    together, alone = lesson.run(small()), lesson.run(small("seeds=(1,)"))
    for name, series in alone.series.items():
        assert series.values[0] == together.series[name].values[1], name
    for name, values in alone.metrics.items():
        assert values[0] == together.metrics[name][1], name


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("arms=('MLP',)")
    whole = lesson.run(config)
    resumed, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=24
    )
    assert attempts > 2
    assert resumed.series == whole.series
    assert resumed.metrics == whole.metrics


def test_the_toy_data_run_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    config: lesson.Config = override(
        lesson.PRESETS["toy"], [*FEW, "mlp.train.epochs=2", "mlp.model.width=16"]
    )
    assert lesson.run(config).datasets.keys() == {"digits"}

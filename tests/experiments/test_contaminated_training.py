"""The lesson's claims can come out either way; who is trained on what, and what is measured."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import check_claims, killed_again_and_again, random_images, shape
from fakes import synthetic as fake_result

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.detection.autoencoders import errors as reconstruction_errors
from lmc_lessons.detection.contamination import Draw, draw_task
from lmc_lessons.detection.refinement import Fixed
from lmc_lessons.evaluation import auroc
from lmc_lessons.experiments import contaminated_training as lesson
from lmc_lessons.experiments.contaminated_training import (
    BINS,
    LAST,
    NUS,
    PERCENTILES,
    RULES,
    SOURCES,
    STOP,
    WAYS,
    Setting,
)
from lmc_lessons.experiments.runs import Stages, override
from lmc_lessons.models import ModelConfig, build
from lmc_lessons.results import Claim, Result, Series, dump
from lmc_lessons.training import TrainConfig, train

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5
PAIRS = ["0/2", "3/8"]
EPOCHS = [1, STOP, 200]


# --- Claims ---------------------------------------------------------------------------------------


def spread(value: float, seed: int) -> list[float]:
    """One number per pair, whose mean is close to that value."""
    around = value * (1 + 0.001 * seed)
    return [around + 0.01, around - 0.01]


def series(axes: dict[str, list[Any]], values: dict[tuple[Any, ...], float]) -> Series:
    """A series in which these entries were measured; the others are decoys."""
    full = {"way": axes["way"], "pair": PAIRS} | {k: v for k, v in axes.items() if k != "way"}
    array = np.full((SEEDS, *map(len, full.values())), 0.3)
    for ticks, value in values.items():
        named = dict(zip(axes, ticks, strict=True))
        for seed in range(SEEDS):
            for place, number in enumerate(spread(value, seed)):
                at = [
                    place if axis == "pair" else entries.index(named[axis])
                    for axis, entries in full.items()
                ]
                array[seed, *at] = number
    return Series(full, array.tolist())


def of_hidden(**ways: tuple[float, float, float]) -> dict[str, Any]:
    """AUROC of hidden anomalies at the first epoch, when training is stopped, at the end."""
    values = {
        (way.replace("_", " "), epoch): v
        for way, row in ways.items()
        for epoch, v in zip(EPOCHS, row, strict=True)
    }
    names = list(dict.fromkeys(way for way, _ in values))
    return {"dynamics": series({"way": names, "epoch": EPOCHS}, values)}


def of_new(split: str = "observed", **ways: tuple[float, float]) -> dict[str, Any]:
    """AUROC of new anomalies when training is stopped, and at the end."""
    splits = list(lesson.SPLITS)
    names = [way.replace("_", " ") for way in ways]
    rows = list(ways.values())
    by_epoch = {
        (name, epoch, split): value
        for name, row in zip(names, rows, strict=True)
        for epoch, value in zip(EPOCHS[1:], row, strict=True)
    }
    final = {(name, split): row[-1] for name, row in zip(names, rows, strict=True)}
    return {
        "detection": series({"way": names, "epoch": EPOCHS, "split": splits}, by_epoch),
        "final": series({"way": names, "split": splits}, final),
    }


Flags = tuple[float, float]  # shares of normals and anomalies that are flagged


def of_rules(flags: dict[tuple[str, str], Flags], source: str, split: str = "observed") -> Any:
    """What rules flag, by way and rule."""
    names = list(dict.fromkeys(way for way, _ in flags))
    axes: dict[str, list[Any]] = {
        "way": names,
        "source": list(SOURCES),
        "rule": list(RULES),
        "group": list(lesson.GROUPS),
    }
    values = {}
    for (way, rule), (normal, anomalous) in flags.items():
        values[way, source, rule, "normal"] = normal
        values[way, source, rule, split] = anomalous
    return {"rules": series(axes, values)}


def rules_on_clean(either: Flags, halved: Flags) -> dict[str, Any]:
    way = "AAE clean"
    flags = {(way, "error"): (0.1, 0.8), (way, "likelihood"): (0.1, 0.6)}
    flags |= {(way, "either"): either, (way, "either, halved"): halved}
    return of_rules(flags, "held-out")


def of_errors(group: str, **ways: float) -> dict[str, Any]:
    values = {(way, group): value for way, value in ways.items()}
    return {"log error": series({"way": list(ways), "group": list(lesson.GROUPS)}, values)}


def at_percentiles(caught: tuple[float, float, float, float]) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {
        "way": ["ITSR"],
        "percentile": list(PERCENTILES),
        "group": list(lesson.GROUPS),
    }
    values = {
        ("ITSR", q, group): value
        for q, c in zip(PERCENTILES, caught, strict=True)
        for group, value in (("normal", 0.1), ("observed", c))
    }
    return {"percentiles": series(axes, values)}


def suspected(name: str, axis: str, ticks: list[Any], rows: list[Flags]) -> dict[str, Any]:
    """How many are suspected, and how many rightly, at each tick."""
    values = {
        ("ITSR", tick, number): value
        for tick, row in zip(ticks, rows, strict=True)
        for number, value in zip(("all", "hidden"), row, strict=True)
    }
    axes = {"way": ["ITSR"], axis: ticks, "number": ["all", "hidden"]}
    return {name: series(axes, values)}


FOUR = ("AAE", "either"), ("AE", "error")
# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "C1a": (of_hidden(AE=(0.6, 0.98, 0.4)), of_hidden(AE=(0.95, 0.98, 0.4))),
    "C1b": (of_hidden(AE=(0.6, 0.98, 0.4)), of_hidden(AE=(0.6, 0.98, 0.95))),
    "C1c": (
        of_hidden(AE=(0.6, 0.98, 0.4)) | of_new(AE=(0.98, 0.96)),
        of_hidden(AE=(0.6, 0.98, 0.4)) | of_new(AE=(0.98, 0.42)),
    ),
    "C1d": (of_hidden(known=(0.6, 0.98, 0.97)), of_hidden(known=(0.6, 0.98, 0.6))),
    "C2": (
        of_new(AE_1=(0.9, 0.98), AE_10=(0.9, 0.9)),
        of_new(AE_1=(0.9, 0.98), AE_10=(0.9, 0.975)),
    ),
    "C3a": (
        rules_on_clean((0.15, 0.98), (0.1, 0.8)),
        rules_on_clean((0.19, 0.9), (0.1, 0.8)),
    ),
    "C3b": (
        rules_on_clean((0.19, 0.9), (0.1, 0.9)),
        rules_on_clean((0.19, 0.9), (0.1, 0.78)),
    ),
    "C4a": (
        of_rules(dict(zip(FOUR, ((0.2, 0.9), (0.6, 0.9)), strict=True)), "training"),
        of_rules(dict(zip(FOUR, ((0.2, 0.9), (0.2, 0.9)), strict=True)), "training"),
    ),
    "C4b": (
        of_rules(dict(zip(FOUR, ((0.2, 0.9), (0.6, 0.9)), strict=True)), "held-out"),
        of_rules(dict(zip(FOUR, ((0.2, 0.9), (0.1, 0.9)), strict=True)), "held-out"),
    ),
    "C4c": (
        of_rules({("narrow", "error"): (0.1, 0.9), ("AE", "error"): (0.6, 0.9)}, "training"),
        of_rules({("narrow", "error"): (0.6, 0.9), ("AE", "error"): (0.6, 0.9)}, "training"),
    ),
    "C4d": (
        of_new(AAE=(0.9, 0.98), narrow=(0.9, 0.9)),
        of_new(AAE=(0.9, 0.91), narrow=(0.9, 0.9)),
    ),
    "C4e": (
        of_rules({("ITSR", "either"): (0.1, 0.9), ("AAE", "either"): (0.2, 0.9)}, "held-out"),
        of_rules({("ITSR", "either"): (0.2, 0.9), ("AAE", "either"): (0.2, 0.9)}, "held-out"),
    ),
    "C4f": (
        of_rules({("slow", "error"): (0.1, 0.9), ("AE", "error"): (0.6, 0.9)}, "training"),
        of_rules({("slow", "error"): (0.6, 0.9), ("AE", "error"): (0.6, 0.9)}, "training"),
    ),
    "C4g": (
        of_rules({("narrow", "error"): (0.1, 0.9), ("slow", "error"): (0.6, 0.9)}, "training"),
        of_rules({("narrow", "error"): (0.1, 0.9), ("slow", "error"): (0.1, 0.9)}, "training"),
    ),
    "C5": (
        of_rules(
            {("ITSR", "either"): (0.2, 0.9), ("AAE", "either"): (0.2, 0.9)},
            "held-out",
            "unobserved",
        ),
        of_rules(
            {("ITSR", "either"): (0.4, 0.9), ("AAE", "either"): (0.2, 0.9)},
            "held-out",
            "unobserved",
        ),
    ),
    "C6a": (of_errors("observed", ITSR=-2.0, AAE=-2.3), of_errors("observed", ITSR=-2.0, AAE=-2.0)),
    "C6b": (of_errors("normal", ITSR=-3.0, AAE=-3.01), of_errors("normal", ITSR=-2.5, AAE=-3.0)),
    "C6c": (of_errors("observed", trim=-2.0, AE=-2.3), of_errors("observed", trim=-2.0, AE=-2.0)),
    "C6d": (of_errors("normal", trim=-3.0, AE=-3.01), of_errors("normal", trim=-2.5, AE=-3.0)),
    "C7a": (
        at_percentiles((0.9, 0.91, 0.9, 0.89)),
        at_percentiles((0.9, 0.91, 0.9, 0.6)),
    ),
    "C7b": (
        suspected("nu", "nu", list(NUS), [(10, 1), (20, 2), (40, 4)]),
        suspected("nu", "nu", list(NUS), [(10, 5), (20, 2), (40, 4)]),
    ),
    "C7c": (
        suspected("suspects", "search", [1, 2], [(10, 0.2), (20, 6)]),
        suspected("suspects", "search", [1, 2], [(10, 6), (20, 1)]),
    ),
    "D1": (
        of_rules({("AE", "error"): (0.1, 0.9)}, "held-out"),
        of_rules({("AE", "error"): (0.4, 0.3)}, "held-out"),
    ),
    "T1": (
        of_hidden(trim=(0.6, 0.98, 0.97), AE=(0.6, 0.98, 0.4)),
        of_hidden(trim=(0.6, 0.98, 0.42), AE=(0.6, 0.98, 0.4)),
    ),
    "T2": (
        of_new(trim=(0.9, 0.98), AE=(0.9, 0.94)),
        of_new(trim=(0.9, 0.95), AE=(0.99, 0.94)),
    ),
    "T3": (
        of_hidden(random=(0.6, 0.98, 0.42), AE=(0.6, 0.98, 0.4)),
        of_hidden(random=(0.6, 0.98, 0.8), AE=(0.6, 0.98, 0.4)),
    ),
    "T4": (
        of_new(trim=(0.9, 0.98), AE=(0.95, 0.99)),
        of_new(trim=(0.9, 0.95), AE=(0.98, 0.9)),
    ),
    "T5": (
        of_new("unobserved", trim=(0.9, 0.98), AE=(0.9, 0.98)),
        of_new("unobserved", trim=(0.9, 0.9), AE=(0.9, 0.98)),
    ),
    "T6": (
        of_new(trim_clean=(0.9, 0.98), clean=(0.9, 0.98)),
        of_new(trim_clean=(0.9, 0.9), clean=(0.9, 0.98)),
    ),
    "T7": (
        of_new(trim_4=(0.9, 0.98), trim=(0.9, 0.98), trim_16=(0.9, 0.975)),
        of_new(trim_4=(0.9, 0.9), trim=(0.9, 0.98), trim_16=(0.9, 0.975)),
    ),
    "T8": (
        of_new(trim_10=(0.9, 0.98), AE_10=(0.9, 0.9)),
        of_new(trim_10=(0.9, 0.9), AE_10=(0.9, 0.9)),
    ),
    "T9": (
        of_new(known=(0.9, 0.98), trim=(0.9, 0.98)),
        of_new(known=(0.9, 0.98), trim=(0.9, 0.9)),
    ),
}


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


@pytest.mark.parametrize("name", MEASURED)
def test_a_claim_needs_every_way_that_it_compares(name: str) -> None:
    holds = MEASURED[name][0]
    for key, whole in holds.items():
        for gone in whole.axes["way"]:
            kept = [way for way in whole.axes["way"] if way != gone]
            places = [whole.axes["way"].index(way) for way in kept]
            fewer = Series({**whole.axes, "way": kept}, np.array(whole.values)[:, places].tolist())
            if key == "detection" and name not in ("C1c", "T4"):
                continue  # a companion of ``final``
            if (name, key, gone) in {("T4", "detection", "trim"), ("T4", "final", "AE")}:
                continue
            if name == "C1c" and key == "final":
                continue
            measured = {**holds, key: fewer}
            if not kept:
                del measured[key]  # as a run does
            found = CLAIMS[name].decide(fake_result(lesson.LESSON, measured, SEEDS))
            assert found.verdict == "not-measured", (key, gone)
            assert (gone if kept else key) in found.evidence


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper, claim.unit):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert claim.paper == "not read", "the paper itself was not read"


def test_effects_are_means_over_pairs() -> None:
    result = fake_result(lesson.LESSON, of_new(trim=(0.9, 0.8), AE=(0.7, 0.6)), SEEDS)
    assert lesson.seen("trim")(result) == pytest.approx([0.8 * (1 + 0.001 * s) for s in range(5)])
    largest = lesson.best(lesson.seen("AE"), lesson.seen("trim"))(result)
    assert largest == lesson.seen("trim")(result)


def test_nobody_suspected_is_no_precision() -> None:
    axes = suspected("suspects", "search", [1], [(0.0, 0.0)])["suspects"].axes
    none = Series(axes, np.zeros((SEEDS, 1, 2, 1, 2)).tolist())
    result = fake_result(lesson.LESSON, {"suspects": none}, SEEDS)
    assert lesson.precision("suspects", search=LAST)(result) == [0.0] * SEEDS


# --- Configurations -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("seeds=()", "seeds must be different integers"),
        ("seeds=(1,1)", "seeds must be different integers"),
        ("ways=('magic',)", "no way 'magic', allowed: clean, AE 1"),
        ("ways=('AE','AE')", "ways must be different"),
        ("pairs=('0-2',)", "a pair is written like 0/2"),
        ("pairs=('3/3',)", "a pair is written like 0/2"),
        ("pairs=()", "pairs must be different"),
        ("draw.samples=10", "a rate of 0.01 gives no anomaly among 10 samples"),
        ("model.architecture=mlp", "the model must be an autoencoder"),
        ("latent=0", "the model must be an autoencoder"),
        ("epochs=(0,)", "epochs must be at least 1"),
        ("rounds=0", "first, rounds and between must be at least 1"),
        ("first=200", "leave epochs of the 200"),
        ("balance=-1.0", "balance must be >= 0"),
        ("against=0.5", "against <= 0"),
        ("nu=0.0", "nu in \\(0, 1\\]"),
    ],
)
def test_bad_settings_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        override(lesson.PRESETS["study"], [setting])
    assert "\n" not in str(error.value)


def test_a_class_that_does_not_exist_ends_the_run_before_it_begins() -> None:
    config = dataclasses.replace(small(), pairs=("0/2", "0/11"))
    with pytest.raises(ValueError, match="the anomalous class must be one of 0 to 9, got 11"):
        lesson.run(config)


def test_data_that_do_not_fit_the_model_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    config = dataclasses.replace(small(), dataset="mnist")
    with pytest.raises(ValueError, match="mnist has inputs of shape"):
        lesson.run(config)


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_presets_are_whole(preset: str) -> None:
    config = lesson.PRESETS[preset]
    assert config.preset == preset
    assert config.last >= 1
    assert STOP in config.looked_at
    assert config.looked_at[-1] == config.train.epochs


def test_the_study_measures_every_claim() -> None:
    config = lesson.PRESETS["study"]
    assert len(config.seeds) >= 5
    assert set(config.ways) == set(WAYS)


# --- Runs -----------------------------------------------------------------------------------------


def small(**changes: Any) -> lesson.Config:
    """The study's ways on few images, for a few epochs."""
    short = TrainConfig(epochs=4, batch_size=64, learning_rate=2e-3)
    settings: dict[str, Any] = {
        "preset": "study-changed",
        "seeds": (0, 1),
        "pairs": ("0/2",),
        "draw": Draw(samples=128, held_out=20, tests=20),
        "model": ModelConfig("autoencoder", (1, 8, 8), width=16, depth=2, latent=4),
        "train": short,
        "epochs": (1, 2),
        "adversarial": dataclasses.replace(short, epochs=5),
        "first": 2,
        "rounds": 2,
        "between": 1,
    }
    return dataclasses.replace(lesson.PRESETS["study"], **settings | changes)


@pytest.fixture(scope="module")
def ran() -> Result:
    """A small run of all ways."""
    return lesson.run(small())


def test_every_claim_is_measured(ran: Result) -> None:
    missing = {c.id for c in ran.claims if c.verdict == "not-measured"}
    assert missing == {"C1a", "C1b", "C1c", "C1d", "T4"}, "no epoch 20 in four epochs"
    dump(ran.to_json())


def test_series_have_the_shapes_of_their_axes(ran: Result) -> None:
    for name, found in ran.series.items():
        lengths = tuple(len(entries) for entries in found.axes.values())
        assert shape(found.values) == (2, *lengths), name
    assert ran.series["rules"].axes["way"] == list(WAYS)
    assert ran.series["dynamics"].axes["epoch"] == [1, 2, 4]
    assert set(ran.series["suspects"].axes["way"]) == {"ITSR"}
    assert "clean" not in ran.series["dynamics"].axes["way"]


def test_histograms_hold_everyone(ran: Result) -> None:
    values = np.array(ran.series["histogram"].values)
    assert values.shape[-1] == len(BINS)
    assert np.allclose(values.sum(-1), 1)


def test_rules_flag_more_together_than_alone(ran: Result) -> None:
    rules = np.array(ran.series["rules"].values)  # seed, way, pair, source, rule, group
    error, likelihood, either, halved = np.moveaxis(rules, 4, 0)
    assert (either >= np.maximum(error, likelihood) - 1e-9).all()
    assert (either <= error + likelihood + 1e-9).all()
    assert (halved <= either + 1e-9).all()


def test_numbers_are_those_of_a_training_by_hand() -> None:
    """One seed, plainly trained on its own data: AUROCs and errors by other code."""
    config = small(seeds=(1,), ways=("AE",))
    result = lesson.run(config)
    data = datasets.load("digits")
    task = draw_task(data, 0, 2, 0.05, 1, config.draw)
    plain = Dataset(
        "d",
        "v",
        task.train,
        torch.zeros(128, dtype=torch.int64),
        task.normal,
        torch.zeros(20, dtype=torch.int64),
        ("one",),
    )
    stacked = train(
        config.model,
        plain,
        (1,),
        config.train,
        loss=lambda net, x, y: (x - net(x)).square().flatten(2).mean(2).mean(1),
    ).params
    model = build(config.model)

    def errors(x: torch.Tensor) -> torch.Tensor:
        return reconstruction_errors(model, stacked, x, "mean")[0]

    hidden = auroc(errors(task.train), task.hidden)
    assert lesson.hidden("AE")(result) == pytest.approx([hidden], abs=1e-4)
    both = torch.cat([errors(task.normal), errors(task.observed)])
    assert lesson.seen("AE")(result) == pytest.approx([auroc(both, torch.arange(40) >= 20)])
    limit = errors(task.held_out).quantile(0.9)
    flagged = [float((errors(x) > limit).double().mean()) for x in (task.normal, task.observed)]
    expected = (flagged[1] + 1 - flagged[0]) / 2
    assert lesson.balanced("AE", "error")(result) == pytest.approx([expected])


def test_refinement_leaves_suspects_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Suspects pile up; they have no weight in between, and some a negative one at the end."""
    seen: list[torch.Tensor | None] = []
    config = small(ways=("ITSR",))
    made = lesson.Adversarial

    def spy(*given: Any, **more: Any) -> Any:
        loss = made(*given, **more)
        seen.append(loss.weigh.weights if isinstance(loss.weigh, Fixed) else None)
        return loss

    monkeypatch.setattr(lesson, "Adversarial", spy)
    setting = Setting(config, datasets.load("digits"), "cpu")
    _, history, _ = lesson.refined(setting, Stages(None, config), "ITSR", "0/2")
    assert seen[0] is None
    assert len(seen) == config.rounds + 2
    for weights, suspects in zip(seen[1:-1], history, strict=True):
        assert weights is not None
        assert torch.equal(weights == 0, suspects)
    assert bool((history[1] >= history[0]).all())
    final = seen[-1]
    assert final is not None
    assert torch.equal(final == 1, ~history[-1])
    assert (final == config.against).any(1).all()


def test_the_same_seed_alone_gives_the_same_numbers(ran: Result) -> None:
    alone = lesson.run(small(seeds=(1,)))
    for name, found in alone.series.items():
        both = np.array(ran.series[name].values)
        assert np.array_equal(np.array(found.values)[0], both[1]), name


def test_a_killed_run_goes_on(ran: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small(ways=("AE", "trim", "AAE", "ITSR"))
    whole = lesson.run(config)
    again, attempts = killed_again_and_again(
        functools.partial(lesson.run, config, folder=tmp_path), monkeypatch, every=7
    )
    assert attempts > 3
    assert again.series == whole.series


@pytest.mark.parametrize("preset", [p for p in lesson.PRESETS if p != "toy"])
def test_every_preset_can_be_shrunk(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if lesson.PRESETS[preset].dataset != "digits":
        monkeypatch.setattr(datasets, "load", random_images)
    settings = ["seeds=(0,)", "train.epochs=2", "first=1", "rounds=2", "between=1"]
    settings += ["adversarial.epochs=4", "draw.samples=100", "draw.held_out=5", "draw.tests=5"]
    settings += ["model.width=4", "epochs=(1,)"]
    result = lesson.run(override(lesson.PRESETS[preset], settings))
    assert set(result.series["final"].axes["way"]) == set(lesson.PRESETS[preset].ways)

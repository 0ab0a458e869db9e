"""The lesson's claims can come out either way; what is trained, what is measured, and by whom."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SHAPES, check_claims, killed_again_and_again, random_images, shape
from fakes import synthetic as fake_result

from lmc_lessons import datasets
from lmc_lessons.detection.autoencoders import errors
from lmc_lessons.evaluation import auroc
from lmc_lessons.experiments import autoencoding_binary_classifiers as lesson
from lmc_lessons.experiments.runs import Stages, override
from lmc_lessons.models import ModelConfig, Params, build
from lmc_lessons.results import Claim, Result, Series, dump
from lmc_lessons.training import TrainConfig, train

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5


# --- Claims ---------------------------------------------------------------------------------------


def around(value: float) -> list[float]:
    """One number per unit, close to that value but not all the same."""
    return [value * (1 + 0.0005 * (k - 2)) for k in range(SEEDS)]


def row(unit: int, values: dict[str, float]) -> list[float]:
    """Quantities of one method in one unit; those that were not given are decoys."""
    return [around(values.get(name, 0.77))[unit] for name in lesson.QUANTITIES]


def unlabelled(**methods: dict[str, float]) -> dict[str, Any]:
    named = {NAMES[name]: values for name, values in methods.items()}
    axes: dict[str, list[Any]] = {"method": list(named), "quantity": list(lesson.QUANTITIES)}
    rows = [[row(k, values) for values in named.values()] for k in range(SEEDS)]
    return {"unlabelled": Series(axes, rows)}


def labelled(**methods: dict[int, dict[str, float]]) -> dict[str, Any]:
    named = {NAMES[name]: values for name, values in methods.items()}
    numbers = sorted({number for values in named.values() for number in values})
    axes: dict[str, list[Any]] = {
        "method": list(named),
        "labels": numbers,
        "quantity": list(lesson.QUANTITIES),
    }
    rows = [
        [[row(k, values.get(number, {})) for number in numbers] for values in named.values()]
        for k in range(SEEDS)
    ]
    return {"labelled": Series(axes, rows)}


def growth(method: str, early: float, late: float) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {"method": [method], "labels": [50], "epoch": [20, 50, 60, 100]}
    rows = [
        [[[9.0, around(early)[k], 9.0, around(late)[-k]]]]
        for k in range(SEEDS)  # in another order, so that ratios differ
    ]
    return {"error": Series(axes, rows)}


def hidden(values: dict[tuple[str, float], float]) -> dict[str, Any]:
    methods = list(dict.fromkeys(name for name, _ in values))
    shares = list(dict.fromkeys(share for _, share in values))
    axes: dict[str, list[Any]] = {
        "method": methods,
        "share": shares,
        "quantity": list(lesson.QUANTITIES),
    }

    def both(value: float) -> dict[str, float]:
        return {"known": value + 0.02, "unknown": value - 0.02}

    rows = [
        [[row(k, both(values[name, share])) for share in shares] for name in methods]
        for k in range(SEEDS)
    ]
    return {"contamination": Series(axes, rows)}


def scaled(known: float) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {"scale": [0.1, 1.0], "quantity": list(lesson.QUANTITIES)}
    rows = [[row(k, {"known": known}), row(k, {})] for k in range(SEEDS)]
    return {"scales": Series(axes, rows)}


def chosen(small: dict[str, float], large: dict[str, float]) -> dict[str, Any]:
    """Two scales; validation prefers the large one, but finds no difference in the first unit."""
    axes: dict[str, list[Any]] = {"scale": [1.0, 3.0], "quantity": list(lesson.QUANTITIES)}
    rows = [[row(k, large if k == 0 else small), row(k, large)] for k in range(SEEDS)]
    areas = [[0.9, 0.9 if k == 0 else 0.95] for k in range(SEEDS)]
    validated = Series({"scale": [1.0, 3.0]}, areas)
    return {"scales": Series(axes, rows), "validated": validated}


NAMES = {
    "ae": "AE",
    "abc": "ABC",
    "mean": "ABC mean",
    "negative": "negative learning",
    "classifier": "classifier",
    "deepsad": "DeepSAD",
    "forest": "isolation forest",
    "svm": "one-class SVM",
    "lof": "LOF",
}


def known(value: float) -> dict[str, float]:
    return {"known": value}


def unknown(value: float) -> dict[str, float]:
    return {"unknown": value}


def both(value: float) -> dict[str, float]:
    return {"known": value - 0.01, "unknown": value + 0.01}


def everywhere(values: dict[str, float], other: dict[str, float]) -> dict[int, dict[str, float]]:
    return {1: values, 5: values, 10: other, 50: values}


def drops(abc: tuple[float, float], puae: tuple[float, float]) -> dict[str, Any]:
    values = {("ABC", 0.0): abc[0], ("ABC", 0.1): abc[1]}
    return hidden(values | {("PUAE", 0.0): puae[0], ("PUAE", 0.1): puae[1]})


def compared(number: int, abc: float) -> dict[str, Any]:
    """ABC beside an autoencoder and a better classifier."""
    return {
        **unlabelled(ae=both(0.8)),
        **labelled(abc={number: both(abc)}, classifier={number: both(0.85)}),
    }


# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "C1a": (
        {**unlabelled(ae=known(0.9)), **labelled(abc={5: known(0.92)})},
        {**unlabelled(ae=known(0.9)), **labelled(abc={5: known(0.88)})},
    ),
    "C1b": (
        {**unlabelled(ae=known(0.9)), **labelled(abc={50: known(0.92)})},
        {**unlabelled(ae=known(0.9)), **labelled(abc={50: known(0.905)})},
    ),
    "C1c": (
        {**unlabelled(ae=known(0.9)), **labelled(abc={5: known(0.91), 50: known(0.94)})},
        {**unlabelled(ae=known(0.9)), **labelled(abc={5: known(0.94), 50: known(0.91)})},
    ),
    "C2a": (
        {**unlabelled(ae=unknown(0.9)), **labelled(abc=everywhere(unknown(0.91), unknown(0.88)))},
        {**unlabelled(ae=unknown(0.9)), **labelled(abc=everywhere(unknown(0.91), unknown(0.8)))},
    ),
    "C2b": (
        labelled(abc={50: unknown(0.9)}, classifier={50: unknown(0.7)}),
        labelled(abc={50: unknown(0.9)}, classifier={50: unknown(0.85)}),
    ),
    "C3a": (
        {**unlabelled(ae=known(0.9)), **labelled(classifier={5: known(0.8)})},
        {**unlabelled(ae=known(0.9)), **labelled(classifier={5: known(0.95)})},
    ),
    "C3b": (
        {**unlabelled(ae=known(0.9)), **labelled(classifier={50: known(0.95)})},
        {**unlabelled(ae=known(0.9)), **labelled(classifier={50: known(0.8)})},
    ),
    "C4a": (
        labelled(abc={50: unknown(0.9)}, negative={50: unknown(0.8)}),
        labelled(abc={50: unknown(0.9)}, negative={50: unknown(0.89)}),
    ),
    "C4b": (growth("negative learning", 4.0, 40.0), growth("negative learning", 4.0, 5.0)),
    "C4c": (growth("ABC", 1.4, 1.5), growth("ABC", 1.4, 3.0)),
    **{
        f"C5{letter}": (compared(number, 0.86), compared(number, 0.83))
        for letter, number in zip("abcd", (1, 5, 10, 50), strict=True)
    },
    "C6a": ({"naive breaks": [1.0] * SEEDS}, {"naive breaks": [1.0] * (SEEDS - 1) + [0.0]}),
    "C6b": ({"stable breaks": [0.0] * SEEDS}, {"stable breaks": [0.0] * (SEEDS - 1) + [1.0]}),
    "C7a": (
        hidden({("ABC", 0.0): 0.9, ("ABC", 0.1): 0.8}),
        hidden({("ABC", 0.0): 0.9, ("ABC", 0.1): 0.897}),
    ),
    "C7b": (drops((0.9, 0.8), (0.9, 0.88)), drops((0.9, 0.88), (0.9, 0.8))),
    "C7c": (
        hidden({("PUAE", 0.1): 0.9, ("ABC", 0.1): 0.8}),
        hidden({("PUAE", 0.1): 0.8, ("ABC", 0.1): 0.9}),
    ),
    "C7d": (
        hidden({("PUAE", 0.1): 0.9, ("ABC scale 3", 0.1): 0.8}),
        hidden({("PUAE", 0.1): 0.8, ("ABC scale 3", 0.1): 0.9}),
    ),
    "D1": (
        labelled(mean={50: known(0.95)}, abc={50: known(0.9)}),
        labelled(mean={50: known(0.85)}, abc={50: known(0.9)}),
    ),
    "D2": (
        labelled(mean={50: unknown(0.85)}, abc={50: unknown(0.9)}),
        labelled(mean={50: unknown(0.95)}, abc={50: unknown(0.9)}),
    ),
    "D3": (
        {**unlabelled(ae=known(0.9)), **scaled(0.901)},
        {**unlabelled(ae=known(0.9)), **scaled(0.95)},
    ),
    "D4": (
        {**unlabelled(ae=known(0.9)), **chosen(known(0.8), known(0.95))},
        {**unlabelled(ae=known(0.9)), **chosen(known(0.95), known(0.905))},
    ),
    "D5": (
        {**unlabelled(ae=unknown(0.9)), **chosen(unknown(0.8), unknown(0.9))},
        {**unlabelled(ae=unknown(0.9)), **chosen(unknown(0.9), unknown(0.8))},
    ),
    "D6": (
        {
            **unlabelled(forest=both(0.7), svm=both(0.6), lof=both(0.8)),
            **chosen(both(0.7), both(0.9)),
        },
        {
            **unlabelled(forest=both(0.7), svm=both(0.6), lof=both(0.95)),
            **chosen(both(0.99), both(0.9)),
        },
    ),
    "K1": (
        {
            **unlabelled(forest=both(0.7), svm=both(0.6), lof=both(0.8)),
            **labelled(abc={50: both(0.9)}),
        },
        {
            **unlabelled(forest=both(0.7), svm=both(0.6), lof=both(0.95)),
            **labelled(abc={50: both(0.9)}),
        },
    ),
    "K2": (
        labelled(abc={50: both(0.9)}, deepsad={50: both(0.8)}),
        labelled(abc={50: both(0.8)}, deepsad={50: both(0.9)}),
    ),
}


def synthetic(measured: dict[str, Any]) -> Result:
    return fake_result(lesson.LESSON, measured, SEEDS)


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


@pytest.mark.parametrize("name", MEASURED)
def test_a_claim_needs_everything_that_it_reads(name: str) -> None:
    holds = MEASURED[name][0]
    for missing in holds:
        rest = {key: value for key, value in holds.items() if key != missing}
        assert CLAIMS[name].decide(synthetic(rest)).verdict == "not-measured"


def test_a_claim_that_lacks_one_entry_says_which() -> None:
    found = CLAIMS["C3a"].decide(
        synthetic({**unlabelled(ae=known(0.9)), **labelled(classifier={50: known(0.9)})})
    )
    assert found.verdict == "not-measured"
    assert "labels 5" in found.evidence


def test_of_scales_that_validate_alike_the_first_is_taken() -> None:
    measured = synthetic(chosen(known(0.8), known(0.9)))
    measured.series["validated"].values[1] = [0.97, 0.97]
    found = lesson.at_best_scale("known")(measured)
    table = measured.series["scales"].values
    assert found == [table[0][0][0], table[1][0][0], *(rows[1][0] for rows in table[2:])]


def test_one_scale_is_no_choice() -> None:
    one = {"scale": [3.0]}
    table = Series({**one, "quantity": list(lesson.QUANTITIES)}, [[row(k, {})] for k in range(2)])
    measured = synthetic({"scales": table, "validated": Series(one, [[0.9], [0.9]])})
    with pytest.raises(KeyError, match="several scales"):
        lesson.at_best_scale("known")(measured)


def test_the_better_baseline_is_the_one_that_is_better_on_average() -> None:
    measured = compared(5, 0.9)
    assert CLAIMS["C5b"].decide(synthetic(measured)).effect == pytest.approx(0.05, abs=1e-3)
    measured |= unlabelled(ae=both(0.88))
    assert CLAIMS["C5b"].decide(synthetic(measured)).effect == pytest.approx(0.02, abs=1e-3)


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert "\n" not in claim.statement


# --- Presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_can_be_run(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.dataset in datasets.names()
    for model in (config.autoencoder, config.classifier, config.encoder):
        assert model.input_shape == SHAPES[config.dataset]
        with torch.device("meta"):
            build(model)
    assert hash(config) == hash(dataclasses.replace(config))


def test_the_scales_of_the_design_are_there() -> None:
    wanted = "toy study pyod longer full-mnist-abc full-fashion-abc"
    assert set(wanted.split()) == set(lesson.PRESETS)
    for name in wanted.split()[1:]:
        config = lesson.PRESETS[name]
        assert len(config.seeds) >= 5, name
        unknown_classes = {config.anomalies[s % len(config.anomalies)] for s in config.seeds}
        assert unknown_classes == set(config.anomalies), name
    study = lesson.PRESETS["study"]
    assert study.labels == (1, 5, 10, 50)
    assert not study.train.fast


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, r"seeds must be different integers >= 0, got \(\)"),
        ({"seeds": (1, 1)}, r"seeds must be different integers >= 0, got \(1, 1\)"),
        ({"anomalies": (0,)}, r"anomalies must be at least 2 classes, got \(0,\)"),
        ({"losses": ("abc",)}, "losses: no 'abc', allowed: negative learning, ABC"),
        ({"others": ("SVM",)}, "others: no 'SVM', allowed: classifier, DeepSAD"),
        ({"detectors": ("kNN",)}, "detectors: no 'kNN', allowed: isolation forest"),
        ({"sides": ("moons",)}, "sides: no 'moons', allowed: breast-cancer, sine"),
        ({"losses": ("ABC", "ABC")}, "losses must be different"),
        ({"labels": (), "detectors": ()}, "nothing to run: no labels and no detectors"),
        ({"labels": (5, 1)}, r"labels must increase from at least 1, got \(5, 1\)"),
        ({"labels": (0, 1)}, "labels must increase from at least 1"),
        ({"scales": (0.0,)}, r"scales must be positive, got \(0.0,\)"),
        ({"contamination": (1.0,)}, r"contamination must be in \[0, 1\), got \(1.0,\)"),
        ({"every": 0}, "every and side_labels must be >= 1"),
        ({"stability": -1}, "stability >= 0, got 100, 10, 20 and -1"),
        ({"classifier": ModelConfig()}, "classifier.classes must be 2, got 10"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["normal=(1, 11)"], "digits has classes 0 to 9, got 11"),
        (["normal=()"], "at least one normal class, got none"),
        (["anomalies=(1, 2)"], "known or unknown, and only once"),
        (["labels=(5000,)"], "known anomalies, asked for 5000"),
        (["autoencoder.input_shape=(64,)"], r"inputs of shape \(1, 8, 8\)"),
    ],
)
def test_data_that_do_not_fit_are_refused(settings: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.run(override(lesson.PRESETS["toy"], settings))
    assert "\n" not in str(caught.value)


# --- Measurements ---------------------------------------------------------------------------------

SMALL = [
    "train.epochs=2",
    "every=1",
    "autoencoder.width=8",
    "classifier.width=8",
    "encoder.width=8",
]


def small(*settings: str, preset: str = "toy") -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALL, *settings])
    return config


def setting_of(config: lesson.Config, seed: int = 1) -> lesson.Setting:
    return lesson.Setting(config, lesson.load_data(config), seed, Stages(None, config), "cpu")


def test_units_take_turns_in_what_is_unknown() -> None:
    setting = setting_of(small(), seed=7)  # the third of five classes: digit 4
    task = setting.task(5)
    counts = [int((setting.data.test_y == digit).sum()) for digit in (4,)]
    assert int((task.test_kind == 2).sum()) == counts[0]
    hidden_task = setting.task(5, 0.1)
    assert len(hidden_task.train_x) == len(task.train_x)


def test_quantities_are_those_by_hand() -> None:
    config = small("losses=('ABC',)")
    setting = setting_of(config)
    task = setting.task(5)
    found = lesson.scores_of_losses(setting, "x", task, {"ABC": lesson.LOSSES["ABC"]})
    run = train(
        config.autoencoder,
        task.data,
        (1,),
        config.train,
        loss=lesson.SideBySide((lesson.LOSSES["ABC"],)),
        snapshots=(1, 2),
    )
    model = build(config.autoencoder)
    losses = {}
    for epoch, params in run.snapshots.items():
        error = errors(model, params, task.valid_x)[0]
        losses[epoch] = float(lesson.LOSSES["ABC"].of_errors(error, task.valid_y))
    chosen = run.snapshots[min(losses, key=losses.__getitem__)]
    values = dict(zip(lesson.QUANTITIES, found["rows"][0], strict=True))
    score = errors(model, chosen, task.test_x)[0]
    for kind, code in (("known", 1), ("unknown", 2)):
        keep = (task.test_kind == 0) | (task.test_kind == code)
        assert values[kind] == auroc(score[keep], task.test_kind[keep] == code)
    assert values["epoch"] == min(losses, key=losses.__getitem__)
    missed = errors(model, run.params, task.train_x[task.train_y == 1])[0]
    assert found["errors"][0][-1] == pytest.approx(float(missed.mean()))
    held_out = errors(model, chosen, task.valid_x)[0]
    assert found["validated"] == [auroc(held_out, task.valid_y == 1)]
    plain = {"AE": lesson.AUTOENCODERS["AE"]}
    assert lesson.scores_of_losses(setting, "y", setting.task(0), plain)["validated"] == [0.5]


def test_the_epoch_is_chosen_by_validation_and_the_first_of_equals() -> None:
    assert lesson.lowest({10: 3.0, 20: 1.0, 30: 1.0}) == 20


def test_unknown_anomalies_play_no_part_in_what_is_chosen() -> None:
    """Other unknown anomalies in the test change nothing but their own scores."""
    setting = setting_of(small())
    task = setting.task(5)
    other = dataclasses.replace(task, test_x=task.test_x.flip(0), test_kind=task.test_kind.flip(0))
    broken = dataclasses.replace(
        other, test_x=torch.where((other.test_kind == 2).view(-1, 1, 1, 1), 0.5, other.test_x)
    )
    losses = {"ABC": lesson.LOSSES["ABC"]}
    first, second = (
        dict(
            zip(
                lesson.QUANTITIES,
                lesson.scores_of_losses(setting, "x", t, losses)["rows"][0],
                strict=True,
            )
        )
        for t in (task, broken)
    )
    assert first["epoch"] == second["epoch"]
    assert first["known"] == pytest.approx(second["known"])
    assert first["unknown"] != second["unknown"]


def test_a_classifier_and_deepsad_are_measured_the_same_way() -> None:
    setting = setting_of(small())
    for measure in (lesson.classifier_scores, lesson.deepsad_scores):
        found = measure(setting, "x", setting.task(5))
        assert len(found) == len(lesson.QUANTITIES)
        assert all(0 <= value <= 1 for value in found[:8])


def test_what_breaks_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    found = lesson.stability(small("stability=10"), 500)
    assert found["naive breaks"] == 1
    assert found["stable breaks"] == 0
    assert found["smallest error"] < 1e-7

    def breaks(*_: Any, **more: Any) -> Any:
        if "start" in more:
            raise lesson.TrainingError("broken")
        return type("Run", (), {"params": start})

    start: Params = train(lesson.LINEAR, lesson.sine_task(0).data, (0,), TrainConfig(0)).params
    monkeypatch.setattr(lesson, "train", breaks)
    found = lesson.stability(small("stability=10"), 500)
    assert {value for name, value in found.items() if "breaks" in name} == {1.0}


# --- Runs -----------------------------------------------------------------------------------------

WHOLE = ["train.batch_size=10", "labels=(2, 5)", "samples=20"]
SMALLER: dict[str, list[str]] = {
    "toy": SMALL,
    "study": [*SMALL, "seeds=(3,)", "scales=(0.1, 1.0)", "stability=10", "labels=(1, 5, 10, 50)"],
    "pyod": ["seeds=(0,)", "detectors=('ECOD',)"],
    "longer": [*SMALL, "seeds=(4,)"],
    "full-mnist-abc": [*SMALL, *WHOLE, "seeds=(0,)", "test=100"],
    "full-fashion-abc": [*SMALL, *WHOLE, "seeds=(0, 1)", "test=100"],
}


def many_images(name: str, **more: Any) -> Any:
    """The embedded data as they are, and random images in the place of files."""
    if name in ("mnist", "fashion-mnist"):
        one = random_images(name)
        stream = torch.Generator().manual_seed(3)
        x, y = torch.rand(200, 1, 28, 28, generator=stream), torch.arange(200) % 10
        return dataclasses.replace(one, train_x=x, train_y=y, test_x=x + 0, test_y=y)
    return LOAD(name, **more)


LOAD = datasets.load


def test_every_preset_has_a_small_edition() -> None:
    assert set(SMALLER) == set(lesson.PRESETS)


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_shrunk_presets_run(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if preset == "pyod":
        pytest.importorskip("pyod")
    monkeypatch.setattr(datasets, "load", many_images)
    config: lesson.Config = override(lesson.PRESETS[preset], SMALLER[preset])
    result = lesson.run(config)
    assert (result.lesson, result.preset, result.seeds) == (
        lesson.LESSON,
        preset,
        list(config.seeds),
    )
    assert [claim.id for claim in result.claims] == list(CLAIMS)
    assert result.config == json.loads(dump(dataclasses.asdict(config)))
    for name, series in result.series.items():
        assert shape(series.values) == (len(config.seeds), *map(len, series.axes.values())), name
    again = Result.from_json(json.loads(dump(result.to_json())))
    assert (again.metrics, again.series) == (result.metrics, result.series)
    if preset == "study":
        assert set(result.series) == {*lesson.axes_of(config)}
        assert "not-measured" not in {claim.verdict for claim in result.claims}
        table = result.series["scales"].values[0][1]
        assert table[:3] == result.series["labelled"].values[0][1][-1][:3]  # scale 1 is ABC
    if preset == "pyod":
        assert set(result.series) == {"unlabelled"}
    if preset == "longer":
        assert set(result.series) == {"unlabelled", "labelled", "error", "scales", "validated"}


def test_one_unit_run_alone_gives_the_same_numbers() -> None:
    """Bit for bit, so that one seed verifies a study."""
    settings = ["labels=(5,)", "contamination=(0.1,)", "sides=('sine',)"]
    together = lesson.run(small(*settings, "seeds=(0, 1)"))
    alone = lesson.run(small(*settings, "seeds=(1,)"))
    for name, series in alone.series.items():
        assert series.values[0] == together.series[name].values[1], name


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("labels=(5,)", "contamination=(0.1,)")
    whole = lesson.run(config)
    resumed, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=5
    )
    assert attempts > 3
    assert (resumed.metrics, resumed.series) == (whole.metrics, whole.series)

"""The lesson's claims can come out either way; who is trained on what, and what is measured."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT
from fakes import SHAPES, check_claims, killed_again_and_again, shape
from fakes import synthetic as fake_result
from numpy.testing import assert_allclose
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import score
from lmc_lessons.experiments import flat_minima as lesson
from lmc_lessons.experiments.runs import override
from lmc_lessons.models import (
    RESNET_STAGES,
    ModelConfig,
    Params,
    build,
    initial,
    predict,
    stack,
    unstack,
)
from lmc_lessons.results import Claim, Result, Series, dump
from lmc_lessons.robustness.attacks import LInf, ThreatModel, ensemble, evaluate, fgsm, pgd
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining
from lmc_lessons.robustness.sharpness import filter_direction, layer_direction, moved, rescale
from lmc_lessons.robustness.weight_perturbation import (
    AdversarialWeightPerturbation,
    RandomWeightPerturbation,
    SharpnessAware,
)
from lmc_lessons.training import noisy_labels, train

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5


# --- Claims ---------------------------------------------------------------------------------------


def around(value: float) -> list[float]:
    """One number per seed, close to that value but not all the same."""
    return [value * (1 + 0.01 * k) for k in range(SEEDS)]


def of_networks(quantity: str, values: dict[str, float]) -> dict[str, Any]:
    """Networks of which one quantity was measured; the others are decoys."""
    return networks({name: {quantity: value} for name, value in values.items()})


def networks(values: dict[str, dict[str, float]]) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {
        "network": list(values),
        "quantity": list(lesson.QUANTITIES),
    }
    rows = [
        [[own.get(q, 7.0) * (1 + 0.01 * k) for q in lesson.QUANTITIES] for own in values.values()]
        for k in range(SEEDS)
    ]
    return {"networks": Series(axes, rows)}


def finals(values: dict[str, float]) -> dict[str, Any]:
    """Curves that end there on test data; on validation data they end elsewhere."""
    axes: dict[str, list[Any]] = {
        "split": ["validation", "test"],
        "method": list(values),
        "epoch": [10, 20],
    }
    rows = [
        [[[0.3, 0.9]] * len(values), [[0.8, value] for value in column]]
        for column in zip(*map(around, values.values()), strict=True)
    ]
    return {"robust accuracy": Series(axes, rows)}


def stops(values: dict[str, float]) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {
        "method": list(values),
        "quantity": ["epoch", "robust accuracy"],
    }
    rows = [
        [[10.0, v] for v in column] for column in zip(*map(around, values.values()), strict=True)
    ]
    return {"stopped": Series(axes, rows)}


def lines(rises: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Loss along lines that rises by so much with the attack recomputed, and frozen."""
    axes: dict[str, list[Any]] = {
        "network": list(rises),
        "attack": ["recomputed", "frozen"],
        "position": [-1.0, 0.0, 1.0],
    }
    rows = [
        [
            [[2 + 1.5 * r * (1 + 0.01 * k), 2.0, 2 + 0.5 * r * (1 + 0.01 * k)] for r in pair]
            for pair in rises.values()
        ]
        for k in range(SEEDS)
    ]
    return {"line": Series(axes, rows)}


def rescaled(quantity: str, values: list[float]) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {
        "factor": [0.5, 1.0, 2.0],
        "quantity": list(lesson.RESCALED),
    }
    rows = [[v if q == quantity else 7.0 for q in lesson.RESCALED] for v in values]
    return {"rescaled": Series(axes, [rows for _ in range(SEEDS)])}


SIX = ("AT", "AWP 0.02", "random 0.02", "SAM 0.05", "no decay", "TRADES")
STEPS = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
SHUFFLED = (4.0, 1.0, 6.0, 2.0, 5.0, 3.0)  # r = 0.03 with STEPS


def over_methods(**sharp: tuple[float, ...]) -> dict[str, Any]:
    """Six methods whose robust loss rises step by step, and quantities in that or another order."""
    quantities = {"robust loss": STEPS, **{n.replace("_", " "): v for n, v in sharp.items()}}
    return networks({name: {q: v[k] for q, v in quantities.items()} for k, name in enumerate(SIX)})


# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "F1": (
        stops({"AT": 0.6}) | finals({"AT": 0.4}),
        stops({"AT": 0.6}) | finals({"AT": 0.59}),
    ),
    "F2": (finals({"AT": 0.4, "AWP 0.02": 0.6}), finals({"AT": 0.4, "AWP 0.02": 0.42})),
    "F3": (
        stops({"AT": 0.6, "AWP 0.02": 0.62}) | finals({"AT": 0.4, "AWP 0.02": 0.6}),
        stops({"AT": 0.6, "AWP 0.02": 0.6}) | finals({"AT": 0.4, "AWP 0.02": 0.42}),
    ),
    "F4": (stops({"AT": 0.6, "AWP 0.02": 0.65}), stops({"AT": 0.6, "AWP 0.02": 0.55})),
    "F5": (
        networks(
            {
                "AT": {"train robust accuracy": 0.95, "robust accuracy": 0.4},
                "AWP 0.02": {"train robust accuracy": 0.7, "robust accuracy": 0.6},
            }
        ),
        networks(
            {
                "AT": {"train robust accuracy": 0.95, "robust accuracy": 0.4},
                "AWP 0.02": {"train robust accuracy": 0.95, "robust accuracy": 0.42},
            }
        ),
    ),
    "F6": (finals({"AT": 0.4, "random 0.02": 0.39}), finals({"AT": 0.4, "random 0.02": 0.3})),
    "F7": (finals({"AT": 0.4, "AWP 0.1": 0.1}), finals({"AT": 0.4, "AWP 0.1": 0.4})),
    "F8": (
        finals({"TRADES": 0.6, "TRADES-AWP 0.01": 0.65}),
        finals({"TRADES": 0.6, "TRADES-AWP 0.01": 0.55}),
    ),
    "F9": (
        stops({"AT": 0.6}) | finals({"AWP 0.02": 0.65}),
        stops({"AT": 0.6}) | finals({"AWP 0.02": 0.55}),
    ),
    "F10": (
        of_networks("ensemble accuracy", {"AT": 0.3, "AWP 0.02": 0.5}),
        of_networks("ensemble accuracy", {"AT": 0.3, "AWP 0.02": 0.32}),
    ),
    "L1": (
        lines({"AT": (1.0, 0.1), "AWP 0.02": (0.2, 5.0)}),
        lines({"AT": (0.2, 5.0), "AWP 0.02": (0.2, 0.1)}),
    ),
    "L2": (lines({"AT": (1.0, 0.3)}), lines({"AT": (1.0, 0.9)})),
    "S1": (
        over_methods(average_flatness=(1.0, 2.1, 2.9, 4.0, 5.2, 6.0)),
        over_methods(average_flatness=SHUFFLED),
    ),
    "S2": (
        over_methods(average_flatness=STEPS, worst_flatness=SHUFFLED),
        over_methods(average_flatness=STEPS, worst_flatness=STEPS),
    ),
    "S3": (
        over_methods(average_flatness=STEPS, clean_flatness=SHUFFLED),
        over_methods(average_flatness=STEPS, clean_flatness=STEPS),
    ),
    "S4": (
        over_methods(average_flatness=STEPS, top_eigenvalue=SHUFFLED),
        over_methods(average_flatness=STEPS, top_eigenvalue=STEPS),
    ),
    "S5": (
        of_networks("average flatness", {"AT": 1.0, lesson.STOPPED: 0.2}),
        of_networks("average flatness", {"AT": 0.25, lesson.STOPPED: 0.2}),
    ),
    "S6": (
        rescaled("average flatness", [1.004, 1.0, 0.996]),
        rescaled("average flatness", [1.0, 1.0, 0.9]),
    ),
    "S7": (
        rescaled("top eigenvalue", [4.0, 1.0, 0.9]),
        rescaled("top eigenvalue", [1.9, 1.0, 0.9]),
    ),
}
NEEDS = [(name, key) for name, (holds, _) in MEASURED.items() for key in holds]
ENTRIES = [
    (name, key, axis, entry)
    for name, key in NEEDS
    for axis in ("network", "method")
    for entry in MEASURED[name][0][key].axes.get(axis, [])
]


def synthetic(measured: dict[str, Any]) -> Result:
    return fake_result(lesson.LESSON, measured, SEEDS)


def verdict(name: str, measured: dict[str, Any]) -> str:
    return CLAIMS[name].decide(synthetic(measured)).verdict


def without(series: Series, axis: str, entry: Any) -> Series:
    """A series that lacks one entry of an axis."""
    place = list(series.axes).index(axis)
    gone = series.axes[axis].index(entry)
    values = np.delete(np.array(series.values), gone, axis=place + 1).tolist()
    kept = [e for e in series.axes[axis] if e != entry]
    return Series({**series.axes, axis: kept}, values)


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


@pytest.mark.parametrize(("name", "missing"), NEEDS)
def test_a_claim_needs_every_series_that_it_reads(name: str, missing: str) -> None:
    rest = {key: series for key, series in MEASURED[name][0].items() if key != missing}
    assert verdict(name, rest) == "not-measured"


@pytest.mark.parametrize(("name", "key", "axis", "entry"), ENTRIES)
def test_a_claim_needs_every_network_that_it_compares(
    name: str, key: str, axis: str, entry: str
) -> None:
    """A run of fewer methods leaves a claim open; a correlation of five is none."""
    holds = MEASURED[name][0]
    found = CLAIMS[name].decide(synthetic({**holds, key: without(holds[key], axis, entry)}))
    assert (found.verdict, found.effect) == ("not-measured", None)
    assert entry in found.evidence or "at least six methods" in found.evidence


@pytest.mark.parametrize("best", [0.4, 0.39])
def test_no_share_of_a_drop_that_one_seed_does_not_have(best: float) -> None:
    measured = dict(MEASURED["F3"][0])
    series = stops({"AT": 0.6, "AWP 0.02": 0.62})["stopped"]
    series.values[2][0][1] = best * 1.02  # where it ends
    found = CLAIMS["F3"].decide(synthetic({**measured, "stopped": series}))
    assert found.verdict == "not-measured"
    assert "from every seed" in found.evidence


def test_ruined_and_stopped_networks_are_no_part_of_a_correlation() -> None:
    measured = over_methods(average_flatness=STEPS)
    rows = measured["networks"]
    for name in (*lesson.RUINED, lesson.STOPPED):
        rows.axes["network"].append(name)
        for values in rows.values:
            values.append([-50.0] * len(lesson.QUANTITIES))
    found = lesson.correlation("average flatness")(synthetic(measured))
    assert found == pytest.approx([1.0] * SEEDS)
    fewer = {"networks": without(rows, "network", "AT")}
    assert verdict("S1", fewer) == "not-measured", "seven networks, but five methods"


def test_shaking_may_help_or_harm_by_three_points() -> None:
    for change, wanted in (
        (0.0295, "undecided"),
        (-0.02, "holds"),
        (0.1, "fails"),
        (-0.1, "fails"),
    ):
        found = verdict("F6", finals({"AT": 0.4, "random 0.02": 0.4 + change}))
        assert found == wanted, change


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper, claim.unit):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert claim.margin >= 0


# --- Effects, computed another way ----------------------------------------------------------------

ALL = [lesson.STOPPED, *reversed(lesson.METHODS)]
POSITIONS = [-1.0, -0.5, 0.0, 0.5, 1.0]
FACTORS = [2.0, 0.5, 1.0]
Numbers = dict[Any, Any]


def everything() -> tuple[Result, Numbers]:
    """A run in which every number was drawn, and the numbers by name."""
    draw = np.random.default_rng(5).uniform
    methods = list(reversed(lesson.METHODS))
    axes: dict[str, dict[str, list[Any]]] = {
        "networks": {"network": ALL, "quantity": list(lesson.QUANTITIES)},
        "robust accuracy": {
            "split": ["validation", "test"],
            "method": methods,
            "epoch": [5, 10, 15],
        },
        "stopped": {"method": methods, "quantity": ["epoch", "robust accuracy"]},
        "line": {
            "network": ["AWP 0.02", "AT"],
            "attack": ["recomputed", "frozen"],
            "position": POSITIONS,
        },
        "rescaled": {"factor": FACTORS, "quantity": list(lesson.RESCALED)},
    }
    arrays = {n: draw(0.1, 1, (SEEDS, *map(len, a.values()))) for n, a in axes.items()}
    stop, curve = arrays["stopped"], arrays["robust accuracy"]
    stop[:, methods.index("AT"), 1] = curve[:, 1, methods.index("AT"), -1] + 0.2
    result = synthetic({n: Series(axes[n], arrays[n].tolist()) for n in axes})
    networks, lined, scaled = arrays["networks"], arrays["line"], arrays["rescaled"]
    named: Numbers = {
        (n, q): networks[:, i, j]
        for i, n in enumerate(ALL)
        for j, q in enumerate(lesson.QUANTITIES)
    }
    named |= {("last", m): curve[:, 1, i, 2] for i, m in enumerate(methods)}
    named |= {("stop", m): stop[:, i, 1] for i, m in enumerate(methods)}
    for i, name in enumerate(("AWP 0.02", "AT")):
        for j, kind in enumerate(("recomputed", "frozen")):
            ends = lined[:, i, j, [0, 4]].mean(1)
            named["rise", name, kind] = ends - lined[:, i, j, 2]
    for j, quantity in enumerate(lesson.RESCALED):
        logs = np.log(scaled[:, :, j])
        named["log", quantity] = np.abs(logs - logs[:, 2:]).max(1)
    used = [i for i, n in enumerate(ALL) if n not in ("AT, stopped", "AWP 0.1")]
    for j, quantity in enumerate(lesson.QUANTITIES):
        named["r", quantity] = np.array(
            [
                np.corrcoef(seed[used, j], seed[used, lesson.QUANTITIES.index("robust loss")])[0, 1]
                for seed in networks
            ]
        )
    return result, named


EXPECTED: dict[str, Callable[[Numbers], Any]] = {
    "F1": lambda n: n["stop", "AT"] - n["last", "AT"],
    "F2": lambda n: n["last", "AWP 0.02"] - n["last", "AT"],
    "F3": lambda n: (
        1 - (n["stop", "AWP 0.02"] - n["last", "AWP 0.02"]) / (n["stop", "AT"] - n["last", "AT"])
    ),
    "F4": lambda n: n["stop", "AWP 0.02"] - n["stop", "AT"],
    "F5": lambda n: (
        (n["AT", "train robust accuracy"] - n["AT", "robust accuracy"])
        - (n["AWP 0.02", "train robust accuracy"] - n["AWP 0.02", "robust accuracy"])
    ),
    "F6": lambda n: n["last", "random 0.02"] - n["last", "AT"],
    "F7": lambda n: n["last", "AT"] - n["last", "AWP 0.1"],
    "F8": lambda n: n["last", "TRADES-AWP 0.01"] - n["last", "TRADES"],
    "F9": lambda n: n["last", "AWP 0.02"] - n["stop", "AT"],
    "F10": lambda n: n["AWP 0.02", "ensemble accuracy"] - n["AT", "ensemble accuracy"],
    "L1": lambda n: n["rise", "AT", "recomputed"] - n["rise", "AWP 0.02", "recomputed"],
    "L2": lambda n: n["rise", "AT", "recomputed"] - n["rise", "AT", "frozen"],
    "S1": lambda n: n["r", "average flatness"],
    "S2": lambda n: n["r", "average flatness"] - n["r", "worst flatness"],
    "S3": lambda n: n["r", "average flatness"] - n["r", "clean flatness"],
    "S4": lambda n: n["r", "average flatness"] - n["r", "top eigenvalue"],
    "S5": lambda n: n["AT", "average flatness"] - n["AT, stopped", "average flatness"],
    "S6": lambda n: n["log", "average flatness"],
    "S7": lambda n: n["log", "top eigenvalue"],
}


@pytest.mark.parametrize("name", CLAIMS)
def test_effects_are_what_they_are_said_to_be(name: str) -> None:
    result, numbers = everything()
    assert_allclose(CLAIMS[name].effect(result), EXPECTED[name](numbers), rtol=1e-10)


# --- Presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.dataset in datasets.names()
    assert config.model.input_shape == SHAPES[config.dataset]
    assert hash(config) == hash(dataclasses.replace(config))
    assert config.epochs[-1] == config.train.epochs
    with torch.device("meta"):
        build(config.model)


def test_the_scales_of_the_design_are_there() -> None:
    wanted = "toy study full-fashion-mlp full-cifar-at full-cifar-awp paper"
    assert set(wanted.split()) == set(lesson.PRESETS)
    assert len(lesson.PRESETS["toy"].seeds) <= 2
    for name in wanted.split()[1:]:
        assert len(lesson.PRESETS[name].seeds) >= 5, name


def test_the_paper_s_recipe_is_the_paper_s() -> None:
    config = lesson.PRESETS["paper"]
    recipe = config.train
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (200, 128, 0.1)
    assert (recipe.momentum, recipe.weight_decay, recipe.schedule) == (0.9, 5e-4, "step")
    attack = (config.epsilon, config.step_size, config.attack_steps, config.attack_mode)
    assert attack == (8 / 255, 2 / 255, 10, "train")
    assert config.methods == ("AT", "AWP 0.01")


def test_the_study_can_decide_every_claim() -> None:
    assert set(lesson.PRESETS["study"].methods) == set(lesson.METHODS)
    assert 1.0 in lesson.PRESETS["study"].factors
    used = [m for m in lesson.METHODS if m not in lesson.RUINED]
    assert len(used) >= 6


@pytest.mark.parametrize(
    ("every", "epochs", "expected"),
    [(15, 60, [15, 30, 45, 60]), (20, 50, [20, 40, 50]), (9, 3, [3]), (1, 2, [1, 2])],
)
def test_curves_end_at_the_last_epoch(every: int, epochs: int, expected: list[int]) -> None:
    recipe = dataclasses.replace(lesson.Config().train, epochs=epochs)
    assert lesson.Config(every=every, train=recipe).epochs == expected


NO_EPOCH = dataclasses.replace(lesson.Config().train, epochs=0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, r"seeds must be different integers >= 0, got \(\)"),
        ({"seeds": (1, 1)}, r"seeds must be different integers >= 0, got \(1, 1\)"),
        ({"seeds": (0, -1)}, r"seeds must be different integers >= 0, got \(0, -1\)"),
        ({"methods": ("AT", "AWP")}, "no method 'AWP', allowed: AT, AWP 0.005, .*TRADES-AWP"),
        ({"methods": ("TRADES",)}, r"AT among them, got \('TRADES',\)"),
        ({"methods": ()}, r"AT among them, got \(\)"),
        ({"methods": ("AT", "AT")}, r"methods must be different, .*got \('AT', 'AT'\)"),
        ({"validation": 0}, "validation must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"curve_steps": 0}, "curve_steps must be at least 1, got 0"),
        ({"eval_steps": 0}, "eval_steps must be at least 1, got 0"),
        ({"draws": 0}, "draws must be at least 1, got 0"),
        ({"landscape_with": 0}, "landscape_with must be at least 1, got 0"),
        ({"landscape_steps": 0}, "landscape_steps must be at least 1, got 0"),
        ({"directions": 0}, "directions must be at least 1, got 0"),
        ({"together": -1}, "together must be at least 0, got -1"),
        ({"ensemble_steps": 0}, "ensemble_steps must be at least 1, got 0"),
        ({"queries": -1}, "queries must be at least 0, got -1"),
        ({"grid": -1}, "grid must be at least 0, got -1"),
        ({"grid": 1}, "grid must be 0 or at least 2.*got 1"),
        ({"factors": ()}, r"factors above 0, .* got 9, \(\)"),
        ({"factors": (1.0, 0.0)}, r"factors above 0, .* got 9, \(1.0, 0.0\)"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"test": 1}, "test must be at least 2, got 1"),
        ({"train": NO_EPOCH}, "train.epochs must be at least 1, got 0"),
        ({"epsilon": -0.1}, "epsilon must be a number >= 0, got -0.1"),
        ({"attack_steps": 0}, "an attack needs steps >= 1 .*got 0, None"),
        ({"step_size": -1.0}, "step_size >= 0, got 7, -1.0"),
        ({"attack_mode": "both"}, "mode is 'both', allowed: train, eval"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**changes)
    assert "\n" not in str(caught.value)


# --- The data: who sees what ----------------------------------------------------------------------


def many_images(name: str, **_: Any) -> Dataset:
    """Random images as in ``fakes``, with enough of them for three parts."""
    return images(name, 0)


def images(name: str, seed: int) -> Dataset:
    stream = torch.Generator().manual_seed(seed)
    x = torch.rand(70, *SHAPES[name], generator=stream)
    y = torch.randint(10, (70,), generator=stream)
    y[:10] = torch.arange(10)
    return Dataset(name, "random", x[:50], y[:50], x[50:], y[50:], tuple("0123456789"))


SMALL = [
    *("seeds=(0, 1)", "samples=20", "validation=24", "test=16", "train.epochs=3", "every=1"),
    *("train.batch_size=10", "attack_steps=2", "curve_steps=2", "eval_steps=2"),
    *("ensemble_steps=2", "draws=2", "landscape_with=6", "landscape_steps=2", "directions=2"),
]
SMALL_MLP = ["model.width=6", "model.depth=2"]


def small(*settings: str, preset: str = "toy") -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALL, *SMALL_MLP, *settings])
    return config


def setting_of(config: lesson.Config, data: Dataset | None = None) -> lesson.Setting:
    part, validation = lesson.split(config, data or many_images(config.dataset))
    return lesson.Setting(config, part, validation, build(config.model).eval(), "cpu")


def rows_of(x: Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


@pytest.mark.parametrize("settings", [[], ["samples=None"], ["samples=None", "test=None"]])
def test_the_three_parts_share_no_sample(settings: list[str]) -> None:
    config, data = small(*settings), many_images("digits")
    part, (x, y) = lesson.split(config, data)
    samples = config.samples or len(data.train_x) - config.validation
    assert (len(part.train_x), len(x), len(y)) == (samples, config.validation, config.validation)
    assert len(part.test_x) == len(part.test_y) == (config.test or len(data.test_x))
    assert torch.equal(torch.cat([part.train_x, x]), data.train_x[: samples + len(x)])
    assert torch.equal(torch.cat([part.train_y, y]), data.train_y[: samples + len(x)])
    parts = [rows_of(part.train_x), rows_of(x), rows_of(part.test_x)]
    assert len(set.union(*parts)) == sum(map(len, parts))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["samples=40"], "digits has 50 training samples, asked for 40 and 24 for validation"),
        (["samples=None", "validation=49"], "digits has 50 training samples, .* 49 for validation"),
        (["samples=None", "validation=60"], "digits has 50 training samples, .* 60 for validation"),
        (["model.input_shape=(64,)"], r"inputs of shape \(1, 8, 8\) .*model takes \(64,\) and 10"),
        (["model.classes=9"], r"10 classes, the model takes \(1, 8, 8\) and 9"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    settings: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load", many_images)
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.run(small(*settings))
    assert "\n" not in str(caught.value)


def replaced(setting: lesson.Setting, part: str) -> lesson.Setting:
    """The same with other validation, or other test data."""
    other = setting_of(setting.config, images("digits", 1))
    if part == "validation":
        return dataclasses.replace(setting, validation=other.validation)
    changed = dataclasses.replace(setting.data, test_x=other.data.test_x, test_y=other.data.test_y)
    return dataclasses.replace(setting, data=changed)


def test_validation_data_choose_the_epoch_and_nothing_else() -> None:
    setting = setting_of(small())
    other = replaced(setting, "validation")
    one, two = (lesson.train_method(s, "AT", (0, 1), "", None) for s in (setting, other))
    assert all(torch.equal(one[n], two[n]) for n in one if n.startswith("last/"))
    assert torch.equal(one["curve"][:, 1], two["curve"][:, 1])
    assert not torch.equal(one["curve"][:, 0], two["curve"][:, 0])
    network = initial(setting.config.model, 3)
    assert lesson.measure_network(setting, network, 0) == lesson.measure_network(other, network, 0)


def test_test_data_choose_nothing() -> None:
    setting = setting_of(small())
    other = replaced(setting, "test")
    one, two = (lesson.train_method(s, "AT", (0, 1), "", None) for s in (setting, other))
    networks = [n for n in one if n.startswith(("last/", "best/"))]
    assert all(torch.equal(one[n], two[n]) for n in networks)
    assert torch.equal(one["curve"][:, 0], two["curve"][:, 0])
    assert not torch.equal(one["curve"][:, 1], two["curve"][:, 1])
    assert torch.equal(one["stopped"][:, 0], two["stopped"][:, 0])


def test_early_stopping_goes_by_validation_and_takes_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting = setting_of(small("every=2", "train.epochs=5"))
    curves = {
        len(setting.validation[0]): torch.tensor([[0.1, 0.5, 0.5], [0.9, 0.2, 0.3]]).double(),
        len(setting.data.test_x): torch.tensor([[0.9, 0.2, 0.8], [0.3, 0.8, 0.9]]).double(),
    }
    columns = {count: iter(curve.T) for count, curve in curves.items()}
    monkeypatch.setattr(lesson, "robust_accuracy", lambda s, p, x, y: next(columns[len(x)]))
    found = lesson.train_method(setting, "AT", (0, 1), "", None)
    assert torch.equal(found["curve"], torch.stack(list(curves.values()), 1))
    assert found["stopped"].tolist() == [[4, pytest.approx(0.2)], [2, pytest.approx(0.3)]]
    config = setting.config
    objective = lesson.objective_of("AT", config)
    training = train(
        config.model, setting.data, (0, 1), config.train, loss=objective, snapshots=(2, 4, 5)
    )
    for name, tensor in training.params.items():
        wanted = torch.stack([training.snapshots[4][name][0], training.snapshots[2][name][1]])
        assert torch.equal(found[f"best/{name}"], wanted)
        assert torch.equal(found[f"last/{name}"], tensor)


# --- Methods --------------------------------------------------------------------------------------

ATTACK: dict[str, Any] = {"steps": 7, "step_size": None, "mode": "eval"}
PLAIN = AdversarialTraining(LInf(0.1), **ATTACK)
SIX_TIMES = TRADES(LInf(0.1), beta=6.0, **ATTACK)
OBJECTIVES: dict[str, Any] = {
    "AT": PLAIN,
    "AWP 0.005": AdversarialWeightPerturbation(PLAIN, 0.005),
    "AWP 0.01": AdversarialWeightPerturbation(PLAIN, 0.01),
    "AWP 0.02": AdversarialWeightPerturbation(PLAIN, 0.02),
    "AWP 0.1": AdversarialWeightPerturbation(PLAIN, 0.1),
    "random 0.02": RandomWeightPerturbation(PLAIN, 0.02),
    "random 0.1": RandomWeightPerturbation(PLAIN, 0.1),
    "SAM 0.05": SharpnessAware(PLAIN, 0.05),
    "no decay": PLAIN,
    "decay 0.005": PLAIN,
    "TRADES": SIX_TIMES,
    "TRADES-AWP 0.01": AdversarialWeightPerturbation(SIX_TIMES, 0.01),
}
DECAYS = {"no decay": 0.0, "decay 0.005": 0.005}


@pytest.mark.parametrize("name", lesson.METHODS)
def test_a_method_is_what_its_name_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lesson.objective_of(name, lesson.Config()) == OBJECTIVES[name]
    seen: list[Any] = []

    class Enough(Exception):
        pass

    def spy(model: Any, data: Any, seeds: Any, recipe: Any, **more: Any) -> Any:
        seen.extend([data, recipe, more["loss"]])
        raise Enough

    monkeypatch.setattr(lesson, "train", spy)
    setting = setting_of(small("attack_steps=7"))
    with pytest.raises(Enough):
        lesson.train_method(setting, name, (0,), "", None)
    data, recipe, loss = seen
    assert data is setting.data
    assert loss == OBJECTIVES[name]
    decay = DECAYS.get(name, setting.config.train.weight_decay)
    assert recipe == dataclasses.replace(setting.config.train, weight_decay=decay)


def test_every_method_is_named() -> None:
    assert set(OBJECTIVES) == set(lesson.METHODS)
    assert {*lesson.RUINED, *lesson.SHOWN} - {lesson.STOPPED, lesson.AWP} <= set(lesson.METHODS)


def test_the_attack_of_training_is_the_one_that_was_set() -> None:
    found = lesson.objective_of("TRADES", lesson.PRESETS["paper"])
    threat = LInf(8 / 255)
    assert found == TRADES(threat, beta=6.0, steps=10, step_size=2 / 255, mode="train")


# --- Measurements ---------------------------------------------------------------------------------


def one_step(predict: Any, x: Tensor, y: Tensor, threat: ThreatModel, **_: Any) -> Tensor:
    """An attack without chance, so that losses can be computed by hand."""
    return fgsm(predict, x, y, threat)


def by_hand(setting: lesson.Setting, params: Params, x: Tensor, y: Tensor) -> float:
    """Cross-entropy of one network where the one step leads."""

    def logits(inputs: Tensor) -> Tensor:
        return predict(setting.model, params, inputs)

    found = fgsm(logits, x, y, LInf(setting.config.epsilon))
    return float(F.cross_entropy(logits(found).double(), y))


def listened(monkeypatch: pytest.MonkeyPatch, name: str) -> list[dict[str, Any]]:
    """The keywords that a function of the module is called with from now on."""
    kept: list[dict[str, Any]] = []
    own = getattr(lesson, name)

    def spy(*arguments: Any, **more: Any) -> Any:
        kept.append(more)
        return own(*arguments, **more)

    monkeypatch.setattr(lesson, name, spy)
    return kept


def test_the_curve_is_accuracy_under_the_curve_s_attack() -> None:
    config = small("curve_steps=3", "epsilon=0.3")
    setting = setting_of(config)
    params = initial(config.model, 1)
    stream = torch.Generator().manual_seed(2)
    x, y = torch.rand(1300, 1, 8, 8, generator=stream), torch.arange(1300) % 10
    right = 0
    for inputs, labels in zip(x.split(1000), y.split(1000), strict=True):

        def logits(z: Tensor) -> Tensor:
            return predict(setting.model, params, z)

        found = pgd(logits, inputs, labels, LInf(0.3), steps=3)
        right += int((logits(found).argmax(-1) == labels).sum())
    measured = lesson.robust_accuracy(setting, stack([params]), x, y)
    assert measured.tolist() == [pytest.approx(right / 1300)]
    assert measured.dtype == torch.float64


def test_a_network_s_quantities_are_in_the_order_of_their_names(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lesson, "pgd", one_step)
    config = small("queries=3", "train.label_noise=0.5", "epsilon=0.02", "draws=3")
    setting = setting_of(config)
    data, threat = setting.data, LInf(config.epsilon)
    (params,) = unstack(
        train(config.model, data, (4,), dataclasses.replace(config.train, epochs=40)).params
    )
    asked = listened(monkeypatch, "ensemble")
    found = dict(zip(lesson.QUANTITIES, lesson.measure_network(setting, params, 4), strict=True))
    assert asked == [{"steps": 2, "queries": 3}]
    attack: Any = {"one step": lambda predict, x, y, threat: fgsm(predict, x, y, threat)}

    def accuracy(x: Tensor, y: Tensor, attacks: Any) -> float:
        return min(evaluate(setting.model, params, x, y, threat, attacks).robust.values())

    x, y = data.test_x, data.test_y
    plain = score(setting.model, params, x, y)
    labels = noisy_labels(data, 0.5, 4)[: len(y)]
    assert found["clean accuracy"] == pytest.approx(plain.accuracy)
    assert found["robust accuracy"] == pytest.approx(accuracy(x, y, attack))
    assert found["ensemble accuracy"] == accuracy(x, y, ensemble(steps=2, queries=3))
    on_train = accuracy(data.train_x[: len(y)], labels, attack)
    assert found["train robust accuracy"] == pytest.approx(on_train)
    right = accuracy(data.train_x[: len(y)], data.train_y[: len(y)], attack)
    assert on_train > right, "the labels that were trained on are the noisy ones"
    assert found["robust loss"] == pytest.approx(by_hand(setting, params, x, y), rel=1e-5)
    for quantity, where in (("average flatness", "robust"), ("clean flatness", "clean")):
        again = lesson.average_flatness(
            setting.on_test(1 if where == "robust" else 0),
            params,
            radius=0.5,
            draws=3,
            seed=4,
        )
        assert found[quantity] == again.rise, quantity
        assert again.rise == pytest.approx(np.mean(again.losses) - again.centre)
    assert found["clean flatness"] != found["average flatness"]
    worst = lesson.worst_flatness(
        setting.on_test(1), params, threat, radius=0.003, restarts=3, seed=4
    )
    assert found["worst flatness"] == worst.rise


def test_the_top_eigenvalue_is_that_of_the_whole_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = listened(monkeypatch, "top_eigenvalues")
    setting = setting_of(small("model.width=4", "landscape_with=9"))
    params = initial(setting.config.model, 2)
    names, sizes = list(params), [t.numel() for t in params.values()]
    x, y = setting.data.test_x[:9].double(), setting.data.test_y[:9]

    def loss(flat: Tensor) -> Tensor:
        parts = zip(names, flat.split(sizes), strict=True)
        network = {name: part.view_as(params[name]) for name, part in parts}
        return F.cross_entropy(predict(setting.model, network, x), y)

    flat = torch.cat([t.flatten() for t in params.values()]).double()
    whole = torch.autograd.functional.hessian(loss, flat)
    assert isinstance(whole, Tensor)
    wanted = float(torch.linalg.eigvalsh(whole)[-1])
    assert lesson.top_eigenvalue(setting, params) == pytest.approx(wanted, rel=1e-3)
    assert asked[0]["which"] == "largest", "not the largest in size, which may be negative"


def test_landscapes_are_losses_along_filter_normalised_directions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lesson, "pgd", one_step)
    setting = setting_of(small("grid=3"))
    nets = {name: initial(setting.config.model, k) for k, name in enumerate("abc")}
    found = lesson.measure_landscapes(setting, nets, ["b", "c"], 7)
    assert shape(found["lines"]) == (2, 2, 11)
    assert shape(found["planes"]) == (2, 3, 3)
    x, y = setting.data.test_x[:6], setting.data.test_y[:6]
    for name, two, plane in zip("bc", found["lines"], found["planes"], strict=True):
        params = nets[name]
        kept = fgsm(functools.partial(predict, setting.model, params), x, y, LInf(0.1))
        ways = [filter_direction(params, 700 + k) for k in range(2)]
        for k, position in enumerate((-1, -0.8, -0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6, 0.8, 1)):
            there = [moved(params, way, position) for way in ways]
            remade = np.mean([by_hand(setting, p, x, y) for p in there])
            frozen = np.mean(
                [float(F.cross_entropy(predict(setting.model, p, kept), y)) for p in there]
            )
            assert [two[0][k], two[1][k]] == pytest.approx([remade, frozen], rel=1e-5)
        first, second = (filter_direction(params, 750 + k) for k in range(2))
        for row, v in zip(plane, (-1, 0, 1), strict=True):
            for height, u in zip(row, (-1, 0, 1), strict=True):
                there_too = moved(moved(params, first, u), second, v)
                assert height == pytest.approx(by_hand(setting, there_too, x, y), rel=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_rescaled_networks_are_the_same_function(depth: int) -> None:
    setting = setting_of(small(f"model.depth={depth}", "factors=(1.0, 0.1)"))
    params = initial(setting.config.model, 1)
    found = lesson.measure_rescaled(setting, params, 3)
    assert shape(found) == (2, len(lesson.RESCALED))
    whole = dict(zip(lesson.QUANTITIES, lesson.measure_network(setting, params, 3), strict=True))
    assert found[0] == [whole[quantity] for quantity in lesson.RESCALED]
    following = "output" if depth == 1 else "hidden.1"
    other = rescale(params, "hidden.0", following, 0.1)
    x = setting.data.test_x
    assert torch.allclose(
        predict(setting.model, other, x), predict(setting.model, params, x), atol=1e-6
    )
    assert found[1][:2] == pytest.approx(found[0][:2], rel=1e-2, abs=1e-6)
    assert found[1][2] == lesson.top_eigenvalue(setting, other)
    assert found[1][2] > 2 * found[0][2]


# --- Runs -----------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def random_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", many_images)


SMALL_IMAGES = [
    *("seeds=(0,)", "samples=8", "validation=4", "test=4", "train.epochs=1", "train.batch_size=4"),
    *("attack_steps=1", "curve_steps=1", "eval_steps=1", "ensemble_steps=1", "draws=1"),
    *("queries=2", "landscape_with=2", "landscape_steps=1", "directions=1"),
    *("train.precision=float32", "train.compile=False"),
]
NARROW = ((2, 1), (4, 1), (4, 2))  # channels and blocks per stage: what ``width`` cannot do
SMALLER: dict[str, list[str]] = {
    "toy": [*SMALL, *SMALL_MLP, "grid=2"],
    "study": [*SMALL, *SMALL_MLP, "seeds=(3,)", "grid=2"],
    "full-fashion-mlp": [*SMALL, *SMALL_MLP, "seeds=(0,)"],
    "full-cifar-at": SMALL_IMAGES,
    "full-cifar-awp": SMALL_IMAGES,
    "paper": SMALL_IMAGES,
}


def test_every_preset_has_a_small_edition() -> None:
    assert set(SMALLER) == set(lesson.PRESETS)


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_shrunk_presets_run(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESNET_STAGES, 18, NARROW)
    config: lesson.Config = override(lesson.PRESETS[preset], SMALLER[preset])
    result = lesson.run(config)
    assert (result.lesson, result.preset, result.seeds) == (
        "flat-minima",
        preset,
        list(config.seeds),
    )
    assert [claim.id for claim in result.claims] == list(CLAIMS)
    assert result.config == json.loads(dump(dataclasses.asdict(config)))
    assert set(result.datasets) == {config.dataset}
    for name, series in result.series.items():
        assert shape(series.values) == (len(config.seeds), *map(len, series.axes.values())), name
    networks, shown = series_names(config)
    axes = {name: series.axes for name, series in result.series.items()}
    assert axes["networks"] == {"network": networks, "quantity": list(lesson.QUANTITIES)}
    assert axes["robust accuracy"]["method"] == axes["stopped"]["method"] == list(config.methods)
    assert axes["robust accuracy"]["epoch"] == config.epochs
    assert axes["line"]["network"] == shown
    assert axes["line"]["position"] == pytest.approx([k / 5 - 1 for k in range(11)])
    assert ("plane" in axes) == (config.grid > 0)
    assert ("rescaled" in axes) == (config.model.architecture == "mlp")
    if "rescaled" in axes:
        assert axes["rescaled"]["factor"] == list(config.factors)
    assert {name.split(": ")[0] for name in result.metrics} == set(shown)
    assert {len(values) for values in result.metrics.values()} == {len(config.seeds)}
    again = Result.from_json(json.loads(dump(result.to_json())))
    assert (again.metrics, again.series) == (result.metrics, result.series)
    for claim in result.claims:
        left_out = preset != "study" and "the run did not measure" in claim.evidence
        no_drop = "from every seed" in claim.evidence
        assert claim.verdict != "not-measured" or left_out or no_drop, claim


def series_names(config: lesson.Config) -> tuple[list[str], list[str]]:
    """Names of the networks measured, and of those whose landscapes are."""
    networks = [lesson.STOPPED, *config.methods]
    return networks, [name for name in (lesson.STOPPED, "AT", config.awp) if name in networks]


def test_metrics_and_stopping_points_agree_with_the_series() -> None:
    result = lesson.run(small("epsilon=0.02"))
    rows = result.series["networks"]
    for name, values in result.metrics.items():
        network, quantity = name.split(": ")
        i, j = rows.axes["network"].index(network), lesson.QUANTITIES.index(quantity)
        assert values == [seed[i][j] for seed in rows.values]
    curves, stopped = result.series["robust accuracy"], result.series["stopped"]
    for (validation, test), pairs in zip(curves.values, stopped.values, strict=True):
        for k, (epoch, accuracy) in enumerate(pairs):
            best = validation[k].index(max(validation[k]))
            assert (epoch, accuracy) == (curves.axes["epoch"][best], test[k][best])


def test_the_same_settings_give_the_same_numbers() -> None:
    config = small("methods=('AT', 'random 0.02')", "grid=0")
    first, again = lesson.run(config), lesson.run(config)
    assert (first.metrics, first.series, first.claims) == (
        again.metrics,
        again.series,
        again.claims,
    )


def test_a_network_gives_the_same_numbers_alone_and_among_others() -> None:
    """What ``refresh`` relies on: the first seed, run again, stands for the study."""
    settings = ("grid=2", "methods=('AT', 'AWP 0.02', 'random 0.02', 'SAM 0.05', 'TRADES')")
    many, once = lesson.run(small(*settings)), lesson.run(small(*settings, "seeds=(0,)"))
    assert {name: values[0] for name, values in many.metrics.items()} == {
        name: values[0] for name, values in once.metrics.items()
    }
    assert {name: series.values[0] for name, series in many.series.items()} == {
        name: series.values[0] for name, series in once.series.items()
    }


def test_networks_are_the_same_however_many_are_trained_together() -> None:
    setting = setting_of(small())
    for method in ("AT", "AWP 0.02", "random 0.02", "TRADES-AWP 0.01"):
        many = lesson.train_method(setting, method, (0, 1), "", None)
        alone = lesson.train_method(setting, method, (1,), "", None)
        for name in (n for n in many if n.startswith("last/")):
            assert torch.equal(many[name][1], alone[name][0]), (method, name)


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(width=5, depth=2, norm="batch"),
        ModelConfig(width=5, depth=2, norm="layer"),
        ModelConfig(depth=0),
        ModelConfig("cnn", width=1),
    ],
    ids=str,
)
def test_networks_that_cannot_be_rescaled_are_not(model: ModelConfig) -> None:
    config = dataclasses.replace(
        small("seeds=(0,)", "methods=('AT',)", "grid=0", "train.epochs=1"), model=model
    )
    result = lesson.run(config)
    assert "rescaled" not in result.series
    open_ones = {c.id for c in result.claims if "rescaled networks" in c.evidence}
    assert open_ones == {"S6", "S7"}


# --- The published table --------------------------------------------------------------------------


def test_the_published_table_is_the_file() -> None:
    found = lesson.published()
    with (ROOT / "data" / "published" / "stutz2021.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert list(found) == header
    assert {len(column) for column in found.values()} == {74} == {len(rows)}
    for k, row in enumerate(rows):
        assert found["model"][k] == row[0]
        assert [found[name][k] for name in header[1:]] == [float(text) for text in row[1:]]
    assert len(set(found["model"])) == 74


def test_the_published_correlation_is_the_one_that_is_cited() -> None:
    found = lesson.published()
    r = np.corrcoef(found["average_flatness"], found["robust_loss"])[0, 1]
    assert f"{r:.2f}" == "0.85"
    assert CLAIMS["S1"].paper.startswith("0.85 (CIFAR-10)")


def test_a_seed_gives_the_same_numbers_alone_and_among_others_wherever_it_stands() -> None:
    settings = ("grid=2", "methods=('AT', 'AWP 0.02', 'random 0.02', 'SAM 0.05', 'TRADES')")
    many = lesson.run(small(*settings))
    for k in (0, 1):
        once = lesson.run(small(*settings, f"seeds=({k},)"))
        assert {n: v[k] for n, v in many.metrics.items()} == {
            n: v[0] for n, v in once.metrics.items()
        }
        assert {n: s.values[k] for n, s in many.series.items()} == {
            n: s.values[0] for n, s in once.series.items()
        }


def test_curves_of_a_network_do_not_depend_on_its_neighbours() -> None:
    config = small("curve_steps=1", "epsilon=0.3")
    setting = setting_of(config)
    params = [initial(config.model, k) for k in range(2)]
    x, y = torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.arange(500)
    both = lesson.robust_accuracy(setting, stack(params), x, y % 10)
    alone = [lesson.robust_accuracy(setting, stack([p]), x, y % 10).item() for p in params]
    assert both.tolist() == alone


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("together=1", "grid=2", "every=2")
    whole = lesson.run(config)
    last, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=5
    )
    assert attempts > 2
    assert (last.metrics, last.series, last.claims) == (whole.metrics, whole.series, whole.claims)


def test_directions_do_not_depend_on_the_order_of_the_tensors() -> None:
    setting = setting_of(small())
    params = initial(setting.config.model, 0)
    for draw in (
        lambda p: filter_direction(p, 3),
        lambda p: layer_direction(setting.model, p, 3),
    ):
        one, two = draw(params), draw(dict(reversed(params.items())))
        assert all(torch.equal(one[name], two[name]) for name in params)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"factors": (0.5, 2.0)}, "1 among them, got 9, .0.5, 2.0."),
        ({"radius": 0.0}, "radius and worst_radius must be above 0, got 0.0, 0.003"),
        ({"worst_radius": -1.0}, "radius and worst_radius must be above 0, got 0.5, -1.0"),
    ],
)
def test_settings_that_would_end_the_run_late_are_refused(
    changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        lesson.Config(**changes)


@pytest.mark.parametrize("value", [0.0, -0.01])
def test_a_rise_that_is_none_has_no_logarithm(value: float) -> None:
    """Around an untrained network the loss may fall: that must not end the run."""
    for name, quantity in (("S6", "average flatness"), ("S7", "top eigenvalue")):
        assert verdict(name, rescaled(quantity, [1.0, value, 1.0])) == "not-measured"
        assert verdict(name, rescaled(quantity, [value, 1.0, 1.0])) == "not-measured"


def test_methods_that_do_not_differ_do_not_correlate() -> None:
    assert verdict("S1", over_methods(average_flatness=(0.5,) * 6)) == "not-measured"


def test_the_awp_of_a_configuration_is_the_one_that_claims_compare() -> None:
    assert lesson.PRESETS["full-cifar-awp"].awp in lesson.PRESETS["full-cifar-awp"].methods
    with pytest.raises(ValueError, match=r"awp is .*, allowed: AWP 0\.005, AWP 0\.01"):
        lesson.Config(awp="SAM 0.05")
    result = lesson.run(small("methods=('AT', 'AWP 0.005')", "awp=AWP 0.005"))
    found = {decision.id: decision.verdict for decision in result.claims}
    assert {"not-measured"} & {
        found[name] for name in ("F2", "F4", "F5", "F9", "F10", "L1")
    } == set()

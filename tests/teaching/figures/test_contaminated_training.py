"""Figures of the lesson on contaminated training: what they show is what was measured."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from fakes import synthetic

from lmc_lessons.experiments.contaminated_training import (
    BINS,
    GROUPS,
    LAST,
    LESSON,
    RULES,
    SOURCES,
    SPLITS,
    STOP,
)
from lmc_lessons.results import Result, Series
from lmc_lessons.teaching.figures import contaminated_training as figures

SEEDS, PAIRS, EPOCHS = 3, ["0/2", "3/8"], [1, STOP, 50]
WIDE = ["clean", "AE", "trim"]


def drawn(axes: dict[str, list[Any]], low: float = 0.2, high: float = 0.9) -> Series:
    draw = np.random.default_rng(len(axes)).uniform
    return Series(axes, draw(low, high, (SEEDS, *map(len, axes.values()))).tolist())


@pytest.fixture
def result() -> Result:
    """A run whose numbers were drawn."""
    ways, pair = {"way": [*WIDE, "AAE"]}, {"pair": PAIRS}
    epochs, splits, groups = {"epoch": EPOCHS}, {"split": [*SPLITS]}, {"group": [*GROUPS]}
    measured = {
        "dynamics": drawn({"way": ["AE", "trim"], **pair, **epochs}),
        "detection": drawn({"way": WIDE, **pair, **epochs, **splits}),
        "final": drawn({**ways, **pair, **splits}),
        "final hidden": drawn({"way": ["AE", "trim", "AAE"], **pair, "epoch": [LAST]}),
        "rules": drawn({**ways, **pair, "source": [*SOURCES], "rule": [*RULES], **groups}),
        "histogram": drawn(
            {"way": ["AE"], **pair, **epochs, "kind": ["normal", "hidden"], "bin": [*BINS]}
        ),
    }
    return synthetic(LESSON, measured, SEEDS)


def plain(figure: Any) -> str:
    text = re.sub(r"<style>.*?</style>", "", figure.data, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def test_pairs_are_averaged(result: Result) -> None:
    found = figures.over_pairs(result, "detection", "unobserved").series["detection"]
    values = np.array(result.series["detection"].values)
    assert found.axes == {"way": WIDE, "epoch": EPOCHS}
    assert np.allclose(found.values, values[..., 1].mean(2))


def test_the_slider_starts_where_anomalies_stand_apart(result: Result) -> None:
    series = result.series["dynamics"]
    for seed in series.values:
        seed[0][1] = [0.5, 0.9, 0.4]
    figure = figures.errors(result, "3/8")
    assert "0.50" in figure.data
    assert "0.90" in figure.data
    assert '"start": 1' in figure.data or '"start":1' in figure.data
    assert "digit 3" in plain(figure)
    assert "digit 8" in plain(figure)


@pytest.mark.parametrize(("split", "words"), [(None, "hidden"), ("observed", "contaminating")])
def test_curves_tell_their_ends(result: Result, split: str | None, words: str) -> None:
    figure = figures.curves(result, ["AE", "trim"], split=split)
    name = "dynamics" if split is None else "detection"
    values = np.array(figures.over_pairs(result, name, split).series[name].values)
    place = result.series[name].axes["way"].index("AE")
    last = values[:, place, -1].mean()
    (alt,) = re.findall(r'alt="([^"]+)"', figure.data)
    assert words in alt
    assert f"{last:.2f} at the end" in alt


def test_tables_hold_means_over_seeds_and_pairs(result: Result) -> None:
    shown = {"AE": "all", figures.STOPPED: "stopped", "clean": "none", "AAE": "narrow", "ITSR": "?"}
    text = plain(figures.ways_table(result, shown))
    dynamics = np.array(result.series["dynamics"].values)
    assert f"stopped {dynamics[:, 0, :, 1].mean():.2f}" in text
    assert f"all {dynamics[:, 0, :, -1].mean():.2f}" in text
    narrow = np.array(result.series["final hidden"].values)[:, 2].mean()
    assert f"narrow {narrow:.2f}" in text
    assert "none –" in text, "without hidden anomalies there is nothing to find"
    assert "?" not in text, "a way that was not run has no row"


def test_rules_are_told_with_their_alarms(result: Result) -> None:
    text = plain(figures.rules_table(result, {"AAE": ["either"], "ITSR": ["error"]}, "training"))
    rules = np.array(result.series["rules"].values)[:, 3, :, 1, 2].mean((0, 1))
    assert f"AAE either {rules[0]:.2f}" in text
    assert f"{(rules[1] + 1 - rules[0]) / 2:.2f}" in text
    assert "ITSR" not in text


def test_one_seed_has_no_interval(result: Result) -> None:
    result.seeds = [0]
    for name, series in result.series.items():
        result.series[name] = Series(series.axes, series.values[:1])
    assert "[" not in plain(figures.ways_table(result, {"AE": "all"}))


def test_codes_tell_how_far_they_lie() -> None:
    near, far = torch.zeros(4, 2), torch.tensor([[3.0, 4.0]])
    figure = figures.codes(near, far, near + 1, ("0", "2"))
    (alt,) = re.findall(r'alt="([^"]+)"', figure.data)
    assert "normal 0.00, hidden anomalies 5.00, new anomalies 1.41" in alt

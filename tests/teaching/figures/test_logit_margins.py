"""Figures of the lesson on logit margins: the right curves, and words that tell their numbers."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from fakes import synthetic
from IPython.display import HTML
from numpy.testing import assert_allclose

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments import logit_margins as lesson
from lmc_lessons.results import Result, Series
from lmc_lessons.robustness.margins import crossing_time
from lmc_lessons.teaching.figures import logit_margins as figures

matplotlib.use("Agg")

CONFIG = json.loads(json.dumps(dataclasses.asdict(lesson.Config())))
SHOWN = ["AT", "GAIRAT", "MAIL", "SOVR large"]


def measured(seeds: int = 3, seed: int = 0, methods: tuple[str, ...] = lesson.METHODS) -> Result:
    """Everything that the figures read, drawn."""
    draw = np.random.default_rng(seed).random
    metrics: dict[str, Any] = {
        f"{m}: {q}": draw(seeds).tolist() for m in methods for q in lesson.QUANTITIES
    }
    axes: dict[str, list[Any]] = {"method": list(methods), "bin": ["b"] * (len(lesson.EDGES) + 1)}
    rows = draw((seeds, len(methods), len(lesson.EDGES) + 1)).tolist()
    result = synthetic(lesson.LESSON, metrics | {"margins": Series(axes, rows)}, seeds)
    return dataclasses.replace(result, config=CONFIG | {"methods": list(methods)})


def mean(result: Result, method: str, quantity: str) -> float:
    return float(np.mean(result.metric(f"{method}: {quantity}")))


def words(figure: HTML) -> tuple[str, str]:
    """Alternative text and caption."""
    (alt,) = re.findall(r'(?:role="img" aria-label|<img [^>]*alt)="([^"]+)"', figure.data)
    (caption,) = re.findall(r"<figcaption[^>]*>(.+?)</figcaption>", figure.data, flags=re.S)
    return html.unescape(alt), html.unescape(caption)


def cells(table: HTML) -> list[list[str]]:
    rows = re.findall(r"<tr>(.+?)</tr>", table.data, flags=re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.S) for row in rows]


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every static figure that is drawn."""
    kept: list[Any] = []

    def keep(fig: Any, **texts: str) -> None:
        kept.extend(fig.axes)
        plt.close(fig)

    monkeypatch.setattr(figures, "static_figure", keep)
    return kept


FROM_RESULTS: dict[str, Any] = {
    "histograms": lambda result: figures.histograms(result, SHOWN),
    "flattery": figures.flattery,
    "scaled": lambda result: figures.scaled_logits(result, SHOWN),
}


@pytest.mark.parametrize("name", FROM_RESULTS)
def test_words_tell_the_results(name: str) -> None:
    draw = FROM_RESULTS[name]
    (alt, caption), (other, same) = (words(draw(measured(seed=k))) for k in (0, 1))
    assert alt != other
    assert caption == same
    assert "3 seeds" in caption
    assert (
        "ne seed" in words(draw(measured(seeds=1)))[1]
        or "1 seed." in words(draw(measured(seeds=1)))[1]
    )


def test_the_race_tells_where_curves_cross() -> None:
    alt, caption = words(figures.margin_race())
    for weight in figures.WEIGHTS:
        time = crossing_time(weight)
        told = f"weight {weight:g}: t = {time:.3g}" if time else f"weight {weight:g}: from the"
        assert told in alt
    assert "10 classes" in caption
    assert "3 classes" in words(figures.margin_race((1.0, 2.0), classes=3))[1]


def test_the_race_s_curves_cross_where_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(figures, "step_explorer", lambda *a, **k: shown.append((*a, k)))
    figures.margin_race()
    ((x, frames, labels, series, more),) = shown
    assert labels[more["start"]] == "weight 10"
    (times,) = series.values()
    plain, other = (np.array(frame) for frame in frames.values())
    for k, at in enumerate(times):
        ahead = x[other[k] > plain[k] + 1e-9]
        assert ahead[-1] == x[-1]
        behind = x[other[k] < plain[k] - 1e-9]
        assert len(behind) == 0 or behind[-1] <= at + 0.1
        assert ahead[ahead > at].min() <= at + 0.11


def test_histograms_draw_mean_shares(axes: list[Any]) -> None:
    result = measured()
    figures.histograms(result, [*SHOWN, "no such method"])
    (ax,) = axes
    values = np.mean(result.series["margins"].values, axis=0)
    for name, patch in zip(SHOWN, ax.patches, strict=True):
        drawn, ends, _ = patch.get_data()
        assert_allclose(drawn, 100 * values[lesson.METHODS.index(name)])
        assert_allclose(ends[1:-1], lesson.EDGES)
        assert patch.get_label() == figures.title(name, result.config)


def test_flattery_is_sorted_by_the_gap(axes: list[Any]) -> None:
    result = measured()
    figures.flattery(result)
    (ax,) = axes
    order = sorted(lesson.METHODS, key=lambda m: mean(result, m, "PGD gap"))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [figures.title(m, result.config) for m in order]
    points = {
        (line.get_marker(), float(line.get_ydata()[0])): float(line.get_xdata()[0])
        for line in ax.get_lines()
        if line.get_marker() in ("o", "s") and len(line.get_xdata())
    }
    for row, method in enumerate(order):
        assert points["s", row] == pytest.approx(100 * mean(result, method, "ensemble"))
        assert points["o", row] == pytest.approx(100 * mean(result, method, "PGD"))


def test_scaled_logits_draw_three_scales_and_the_ensemble(axes: list[Any]) -> None:
    result = measured()
    figures.scaled_logits(result, SHOWN)
    (ax,) = axes
    for name, line, mark in zip(SHOWN, ax.get_lines()[::2], ax.get_lines()[1::2], strict=True):
        heights = [100 * mean(result, name, q) for q in figures.SCALES]
        assert_allclose(line.get_xydata(), np.c_[[0.1, 1, 10], heights])
        assert_allclose(mark.get_ydata(), [100 * mean(result, name, "ensemble")])


@pytest.mark.parametrize("methods", [("AT",), ("SOVR", "AT"), lesson.METHODS])
def test_methods_that_were_not_run_are_left_out(methods: tuple[str, ...]) -> None:
    result = measured(methods=methods)
    for draw in FROM_RESULTS.values():
        alt = words(draw(result))[0]
        assert ("GAIRAT" in alt) == ("GAIRAT" in methods)
    head, *rows = cells(figures.methods_table(result))
    names = [row[0].replace("&nbsp;", " ") for row in rows]
    assert names == [figures.title(m, result.config) for m in methods]
    assert len(head) == 1 + len(figures.COLUMNS)
    pairs = cells(figures.differences_table(result, [("SOVR", "AT")], "ensemble"))
    assert len(pairs) == (2 if "SOVR" in methods else 1)


def test_the_table_has_the_means() -> None:
    result = measured()
    _, *rows = cells(figures.methods_table(result, ["SOVR", "AT"]))
    assert [row[0] for row in rows] == ["SOVR, λ&nbsp;=&nbsp;1", "AT"]
    for method, row in zip(("SOVR", "AT"), rows, strict=True):
        expected = [
            f"{scale * mean(result, method, q):{form}}"
            for q, (_, scale, form) in figures.COLUMNS.items()
        ]
        assert row[1:] == expected


def test_differences_have_their_intervals() -> None:
    result = measured()
    _, row = cells(figures.differences_table(result, [("TSOVR", "TRADES")], "ensemble"))
    one, two = (result.metric(f"{m}: ensemble") for m in ("TSOVR", "TRADES"))
    i = t_interval([100 * (p - q) for p, q in zip(one, two, strict=True)])
    assert row == ["TSOVR, λ = 2", "TRADES", f"{i.mean:+.1f} [{i.low:+.1f}, {i.high:+.1f}]"]


def test_titles_carry_the_run_s_factors() -> None:
    config = CONFIG | {"weight": 0.7, "large_weight": 3.0, "fraction": 0.5, "trades_weight": 4.0}
    expected = {
        "AT": "AT",
        "SOVR": "SOVR, λ = 0.7",
        "SOVR small": "SOVR, λ = 0.5",
        "SOVR large": "SOVR, λ = 3",
        "top CE": "CE × 3 on hard samples",
        "scaled AT": "AT, loss × 2",
        "TSOVR": "TSOVR, λ = 4",
    }
    assert {name: figures.title(name, config) for name in expected} == expected
    assert len({figures.title(name, config) for name in lesson.METHODS}) == len(lesson.METHODS)

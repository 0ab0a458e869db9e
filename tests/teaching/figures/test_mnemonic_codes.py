"""Figures of the lesson on mnemonic codes: the right points, and words that tell their numbers."""

from __future__ import annotations

import dataclasses
import html
import re
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from fakes import synthetic
from IPython.display import HTML
from numpy.testing import assert_allclose

from lmc_lessons.experiments import mnemonic_codes as lesson
from lmc_lessons.results import Result, Series
from lmc_lessons.teaching.figures import mnemonic_codes as figures
from lmc_lessons.teaching.figures import text

matplotlib.use("Agg")

ARMS = ["MLP", "CNN"]
SOME = ["original", "codes", "logit mask"]


def measured(seeds: int = 3, seed: int = 0) -> Result:
    """Everything that the figures read, drawn."""
    config = lesson.PRESETS["study"]
    draw = np.random.default_rng(seed).uniform
    one = {"by class": [[[0.0] * 10]]}
    axes = lesson.axes_of(config, [[[one]]])
    drawn = {
        name: Series({"arm": ARMS, **own}, draw(0, 1, (seeds, 2, *map(len, own.values()))).tolist())
        for name, own in axes.items()
    }
    result = synthetic(lesson.LESSON, drawn, seeds)
    result.config = dataclasses.asdict(config)
    return result


def words(figure: HTML) -> tuple[str, str]:
    """Alternative text and caption."""
    (alt,) = re.findall(r'(?:role="img" aria-label|<img [^>]*alt)="([^"]+)"', figure.data)
    (caption,) = re.findall(r"<figcaption[^>]*>(.+?)</figcaption>", figure.data, flags=re.S)
    return html.unescape(alt), html.unescape(caption)


def mean(result: Result, arm: str, method: str, quantity: str) -> float:
    return float(np.mean(lesson.at(arm, method, quantity)(result)))


DRAWN: dict[str, Any] = {
    "methods": lambda result: figures.methods(result, "CNN", SOME),
    "grid": lambda result: figures.grid(result, 0.3),
    "relearning": lambda result: figures.relearning(result, "MLP", {"codes": "codes"}),
}


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every static figure that is drawn."""
    kept: list[Any] = []

    def keep(fig: Any, **texts: Any) -> str:
        kept.extend(fig.axes)
        plt.close(fig)
        return f"{texts['alt']} {texts['caption']}"

    monkeypatch.setattr(figures, "static_figure", keep)
    return kept


@pytest.mark.parametrize("name", DRAWN)
def test_words_tell_the_results(name: str) -> None:
    (alt, caption), (other, _) = (words(DRAWN[name](measured(seed=k))) for k in (0, 1))
    assert alt != other
    assert caption.endswith(".")
    assert "3 seeds" in caption


def test_every_method_has_a_name_and_every_question_a_title() -> None:
    assert set(figures.NAMES) == set(lesson.METHODS)
    assert set(figures.ASKED) == set(lesson.AUDITS)
    assert len(set(figures.NAMES.values())) == len(figures.NAMES)


def test_the_first_figure_shows_every_setting_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    result = measured()
    given: dict[str, Any] = {}

    def keep(x: Any, frames: Any, labels: Any, series: Any, **texts: Any) -> None:
        given.update(texts, x=x, frames=frames, labels=labels, series=series)

    monkeypatch.setattr(figures, "step_explorer", keep)
    figures.by_class(result, "CNN")
    values = np.asarray(result.series["by class"].values)[:, 1].mean(0)
    assert_allclose(given["frames"]["codes"], values[0])
    assert_allclose(given["frames"]["logit mask"], values[1])
    assert_allclose(given["series"]["codes: class 0"], values[0, :, 0])
    assert_allclose(given["series"]["logit mask: the others"], values[1, :, 1:].mean(1))
    assert given["labels"][0] == "0.001 | 0"
    assert len(given["labels"]) == len(values[0])
    assert f"codes: class 0 from {values[0, 0, 0]:.0%} to {values[0, -1, 0]:.0%}" in given["alt"]


def test_the_first_figure_is_drawn() -> None:
    alt, caption = words(figures.by_class(measured(), "MLP"))
    assert alt.startswith("Test accuracy by class (MLP)")
    assert "class 0 is to be forgotten" in caption


def test_methods_stand_where_they_were_measured(axes: list[Any]) -> None:
    result = measured()
    told = figures.methods(result, "CNN", SOME)
    left, right = axes
    for row, name in enumerate(SOME):
        for ax, quantity in ((left, "forget error"), (right, "retain accuracy")):
            dots = [line for line in ax.get_lines() if line.get_marker() in ("o", "s")]
            x, y = dots[row].get_data()
            assert_allclose((x[0], y[0]), (100 * mean(result, "CNN", name, quantity), row))
    pair = [100 * mean(result, "CNN", "codes", q) for q in ("forget error", "retain accuracy")]
    assert f"{figures.NAMES['codes']} {pair[0]:.1f} and {pair[1]:.1f}" in str(told)
    base = right.get_lines()[-1].get_xdata()[0]
    assert base == pytest.approx(100 * mean(result, "CNN", "original", "retain accuracy"))


def test_the_grid_has_a_column_per_network_and_a_row_with_and_without_a_cap(
    axes: list[Any],
) -> None:
    result = measured()
    figures.grid(result, 0.3)
    assert [ax.get_title() for ax in axes] == [
        "MLP, cap 0.3",
        "CNN, cap 0.3",
        "MLP, no cap",
        "CNN, no cap",
    ]
    values = np.asarray(result.series["grid"].values).mean(0)  # (arms, methods, steps, caps, seen)
    error, kept, codes = axes[1].get_lines()
    assert_allclose(error.get_ydata(), 100 * values[1, 0, :, 1, 0])
    assert_allclose(kept.get_ydata(), 100 * values[1, 0, :, 1, 1])
    assert_allclose(codes.get_ydata(), 50 * values[1, 0, :, 1, 2])
    assert_allclose(axes[2].get_lines()[0].get_ydata(), 100 * values[0, 0, :, -1, 0])


def test_tables_hold_the_means() -> None:
    result = measured()
    table = figures.audit_table(result, "MLP").data
    assert f"{100 * mean(result, 'MLP', 'retrained', 'probe'):.1f} %" in table
    assert f"{mean(result, 'MLP', 'retrained', 'reading'):.2f}" in table
    table = figures.audit_table(result, "MLP", ["probe"]).data
    assert figures.ASKED["probe"] in table
    assert figures.ASKED["relearning"] not in table
    table = figures.costs(result, "MLP", ["codes"]).data
    assert f"{100 * mean(result, 'MLP', 'codes', 'forget error'):.1f}" in table


def test_a_class_that_is_never_learned_again_is_told_so() -> None:
    result = measured()
    for seed in result.series["audit"].values:
        for one in seed[0]:
            one[lesson.AUDITED.index("logit mask")][lesson.AUDITS.index("relearning")] = 31.0
    assert figures.audit_table(result, "MLP").data.count("over 30") == 1


def test_numbers_in_sentences() -> None:
    result = measured(seeds=3)
    effect = lesson.at("MLP", "codes", "retain accuracy")
    assert re.fullmatch(r"\+[\d.]+ \[[+-][\d.]+, \+[\d.]+\]", text(result, effect))
    assert re.fullmatch(r"\+[\d.]+", text(measured(seeds=1), effect))

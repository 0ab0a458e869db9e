"""Figures of the lesson on logit differences: what is drawn, and words that tell it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from fakes import synthetic
from IPython.display import HTML
from numpy.testing import assert_allclose

from lmc_lessons.experiments import logit_difference as lesson
from lmc_lessons.results import Result, Series
from lmc_lessons.teaching.figures import logit_difference as figures
from lmc_lessons.unlearning.facts import divide, invent

matplotlib.use("Agg")

CONFIG = lesson.Config(steps=(0, 5, 9), alphas=(0.0, 0.5, 1.5))
NAMES = list(lesson.CHANGES)


def measured(seeds: int = 3, seed: int = 0) -> Result:
    """Everything that the figures read, drawn."""
    draw = np.random.default_rng(seed).random
    series: dict[str, Any] = {
        name: Series(axes, draw((seeds, *map(len, axes.values()))).tolist())
        for name, axes in lesson.axes_of(CONFIG).items()
    }
    result = synthetic(lesson.LESSON, series, seeds)
    result.config = {"facts": 20, "forget": 3, "covered": 4}
    return result


def words(figure: HTML) -> tuple[str, str]:
    """Alternative text and caption."""
    alt = re.findall(r'<img [^>]*alt="([^"]+)"', figure.data)[0]
    (caption,) = re.findall(r"<figcaption[^>]*>(.+?)</figcaption>", figure.data, flags=re.S)
    return html.unescape(alt), html.unescape(caption)


DRAWN: dict[str, Any] = {
    "alpha": figures.by_alpha,
    "trade": lambda result: figures.trade(result, NAMES),
    "losses": lambda result: figures.losses(result, ["GA+GD", "NPO+GD slow"]),
}


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The axes of every figure that is drawn."""
    kept: list[Any] = []

    def keep(fig: Any, **texts: str) -> None:
        kept.extend(fig.axes)

    monkeypatch.setattr(figures, "static_figure", keep)
    yield kept
    plt.close("all")


@pytest.mark.parametrize("name", DRAWN)
def test_words_tell_the_results(name: str) -> None:
    (alt, caption), (other, same) = (words(DRAWN[name](measured(seed=k))) for k in (0, 1))
    assert alt != other
    assert caption == same


@pytest.mark.parametrize("name", ["alpha", "losses"])
def test_captions_say_what_was_repeated(name: str) -> None:
    assert "Mean over 3 seeds" in words(DRAWN[name](measured()))[1]
    assert "One seed: no interval." in words(DRAWN[name](measured(seeds=1)))[1]


def test_lines_by_alpha_are_means_in_per_cent(axes: list[Any]) -> None:
    result = measured()
    figures.by_alpha(result, "neither", ("uncovered",))
    row = list(lesson.ASSISTANTS).index("neither")
    values = np.asarray(result.series["assistants"].values)[:, row, :, 4, 0]
    line = axes[0].get_lines()[0]
    assert_allclose(line.get_xdata(), CONFIG.alphas)
    assert_allclose(line.get_ydata(), 100 * values.mean(0))


def test_methods_walk_by_steps_and_the_difference_by_alpha(axes: list[Any]) -> None:
    result = measured()
    bare = "no uniform term"
    figures.trade(result, ["GA", "GA+GD"], (lesson.MAIN, bare, "not run"))
    lines = {line.get_label(): line for line in axes[0].get_lines()}
    assert list(lines) == ["GA", "GA+GD", lesson.MAIN, bare]
    changes = 100 * np.asarray(result.series["changes"].values)[:, 1, :, :, 0].mean(0)
    assert_allclose(lines["GA+GD"].get_xydata(), changes[:, [0, 4]])
    swept = 100 * np.asarray(result.series["assistants"].values)[:, 0, :, :, 0].mean(0)
    assert_allclose(lines[lesson.MAIN].get_xydata(), swept[:, [0, 4]])
    row = list(lesson.ASSISTANTS).index(bare)
    other = 100 * np.asarray(result.series["assistants"].values)[:, row, :, :, 0].mean(0)
    assert_allclose(lines[bare].get_xydata(), other[:, [0, 4]])
    low, high = sorted(axes[0].get_xlim())
    assert low < 0
    assert high > 100


def test_a_method_that_has_ended_is_not_drawn_on(axes: list[Any]) -> None:
    result = measured()
    for seed in result.series["changes"].values:
        seed[NAMES.index("GA")][2] = seed[NAMES.index("GA")][1]
    figures.losses(result, ["GA"])
    first, second = axes[0].get_lines()[:2]
    assert (first.get_label(), list(first.get_xdata())) == ("GA", [0, 5])
    assert list(second.get_xdata()) == [0, 5, 9]
    never = np.asarray(result.series["networks"].values)[:, 1, 0, 1].mean()
    assert axes[0].get_lines()[-1].get_ydata()[0] == pytest.approx(never)


def test_the_dial_names_the_facts_of_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, Any] = {}

    def keep(*arguments: Any, **texts: Any) -> None:
        kept.update(texts, given=arguments)

    monkeypatch.setattr(figures, "step_explorer", keep)
    result = measured()
    figures.dial(result, seed=2)
    split = divide(invent(20, 2), 3, 4, 2)
    for part in (split.forget, split.uncovered):
        assert f"{part.names[0]}>{part.answers[0]}" in kept["caption"]
    x, frames, labels, curves = kept["given"]
    assert len(x) == 26
    told = np.asarray(result.series["letters"].values[2])
    assert_allclose(frames["to forget"], told[0][:, 3:])
    assert_allclose(frames["to keep"], told[1][:, 3:])
    assert labels == ["alpha 0", "alpha 0.5", "alpha 1.5"]
    known = 100 * np.asarray(result.series["assistants"].values)[:, 0, :, :, 0].mean(0)
    assert_allclose(curves["shown wordings, known (%)"], known[:, 1])


def test_the_dial_is_drawn() -> None:
    assert "shown wordings" in figures.dial(measured()).data


def test_the_table_has_a_row_per_assistant() -> None:
    result = measured()
    found = figures.assistants_table(result).data
    assert found.count("<tr>") == 1 + len(lesson.ASSISTANTS)
    row = list(lesson.ASSISTANTS).index("neither")
    values = np.asarray(result.series["assistants"].values)[:, row, 2]
    assert f">{100 * values[:, 0, 0].mean():.0f}</td>" in found
    letters = np.asarray(result.series["critical"].values)[:, row].mean(0)
    assert f"{letters[0]:.2f}" in found
    assert f"{letters[1:].mean():.2f}" in found

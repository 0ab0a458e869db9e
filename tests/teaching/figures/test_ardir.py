"""Figures of the lesson on distilled representations: what is drawn, and words that tell it."""

from __future__ import annotations

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

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments import ardir as lesson
from lmc_lessons.results import Result, Series
from lmc_lessons.teaching.figures import ardir as figures

matplotlib.use("Agg")

EPOCHS, LABELS = [0, 5, 9], [3, 1, 4, 1]
NAMES = [lesson.TEACHER, lesson.AGAIN, lesson.NATURAL, *lesson.METHODS]
ROWS = [name for name in lesson.METHODS if name != "AT"]


def measured(seeds: int = 3, seed: int = 0, names: list[str] = NAMES) -> Result:
    """Everything that the figures read, drawn."""
    draw = np.random.default_rng(seed).random
    moments: dict[str, list[Any]] = {"network": ["output", "rep 5"], "epoch": EPOCHS}
    plane: dict[str, list[Any]] = {"image": LABELS, "axis": ["first", "second"]}
    curves: dict[str, list[Any]] = {
        "network": list(lesson.FOLLOWED),
        "split": ["validation", "test"],
        "epoch": [20, 40],
    }
    axes = {"picture": moments | plane, "teacher picture": plane, "distance": moments}
    axes["PGD accuracy"] = curves
    metrics: dict[str, Any] = {
        lesson.metric(name, quantity): draw(seeds).tolist()
        for name in names
        for quantity in lesson.QUANTITIES
    }
    series = {n: Series(a, draw((seeds, *map(len, a.values()))).tolist()) for n, a in axes.items()}
    return synthetic(lesson.LESSON, metrics | series, seeds)


def words(figure: HTML) -> tuple[str, str]:
    """Alternative text and caption."""
    alt = re.findall(r'<img [^>]*alt="([^"]+)"', figure.data)[0]
    (caption,) = re.findall(r"<figcaption[^>]*>(.+?)</figcaption>", figure.data, flags=re.S)
    return html.unescape(alt), html.unescape(caption)


DRAWN: dict[str, Any] = {
    "moving": figures.moving,
    "noise": lambda result: figures.beside_the_noise(result, ROWS),
    "weights": figures.weights,
    "training": figures.while_training,
}


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every figure that is drawn."""
    kept: list[Any] = []

    def keep(fig: Any, **texts: str) -> bytes:
        kept.extend(fig.axes)
        plt.close(fig)
        return b"\x89PNG\r\n"

    for name in ("static_figure", "png"):
        monkeypatch.setattr(figures, name, keep)
    monkeypatch.setattr(figures, "image_slider", lambda *a: a)
    return kept


@pytest.mark.parametrize("name", DRAWN)
def test_words_tell_the_results(name: str) -> None:
    (alt, caption), (other, same) = (words(DRAWN[name](measured(seed=k))) for k in (0, 1))
    assert alt != other
    assert caption == same


@pytest.mark.parametrize("name", ["noise", "weights", "training"])
def test_captions_say_what_was_repeated(name: str) -> None:
    assert "Mean over 3 seeds" in words(DRAWN[name](measured()))[1]
    assert "One seed: no interval." in words(DRAWN[name](measured(seeds=1)))[1]


def test_moving_draws_every_image_at_its_places(axes: list[Any]) -> None:
    result = measured()
    figures.moving(result, seed=1)
    assert len(axes) == 2 * len(EPOCHS)
    points = np.array(result.series["picture"].values[1])
    target = np.array(result.series["teacher picture"].values[1])
    for k in range(len(EPOCHS)):
        for row in range(2):
            ax = axes[2 * k + row]
            places = [text.get_position() for text in ax.texts]
            assert_allclose(places, np.concatenate([target, points[row, k]]))
            assert [text.get_text() for text in ax.texts] == [str(label) for label in LABELS] * 2
            assert f"{result.series['distance'].values[1][row][k]:.2f}" in ax.get_title()
            low, high = np.array([ax.get_xlim(), ax.get_ylim()]).T
            assert bool((places > low).all())
            assert bool((places < high).all())


def test_differences_are_paired_and_noise_has_its_own_colour(axes: list[Any]) -> None:
    result = measured()
    figures.beside_the_noise(result, ROWS)
    (ax,) = axes
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [lesson.AGAIN, *ROWS][::-1]
    plain = np.array(result.metrics["AT: ensemble accuracy"])
    marks = [line for line in ax.get_lines() if line.get_marker() == "D"]
    for height, (label, mark) in enumerate(zip(labels, marks, strict=True)):
        values = 100 * (np.array(result.metrics[f"{label}: ensemble accuracy"]) - plain)
        assert_allclose(mark.get_xydata(), [[values.mean(), height]])
        bar = next(
            line
            for line in ax.get_lines()
            if len(line.get_xdata()) == 2 and tuple(line.get_ydata()) == (height, height)
        )
        assert_allclose(bar.get_xdata(), t_interval(values.tolist())[1:])
    assert (marks[-1].get_color() != marks[0].get_color()) is True


def test_what_was_not_run_is_left_out(axes: list[Any]) -> None:
    result = measured(names=["AT", "output", "rep 5", lesson.TEACHER, lesson.AGAIN])
    figures.beside_the_noise(result, ROWS)
    figures.weights(result)
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["rep 5", "output", lesson.AGAIN]
    assert_allclose(axes[1].get_lines()[0].get_xdata(), [0, 5])
    assert figures.methods_table(result).data.count("<tr>") == 6


def test_curves_are_means_of_the_test_accuracy(axes: list[Any]) -> None:
    result = measured()
    figures.while_training(result)
    curves = 100 * np.mean(result.series["PGD accuracy"].values, axis=0)[:, 1]
    for line, curve in zip(axes[0].get_lines(), curves, strict=True):
        assert_allclose(line.get_ydata(), curve)


def test_the_table_has_the_most_robust_first() -> None:
    result = measured()
    rows = re.findall(r"<tr><td[^>]*>(.+?)</td>", figures.methods_table(result).data)
    heights = [np.mean(result.metrics[f"{name}: ensemble accuracy"]) for name in rows]
    assert heights == sorted(heights, reverse=True)
    assert set(rows) == set(NAMES)

"""Figures of the lesson on ABC: the right points, and words that tell their numbers."""

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

from lmc_lessons.experiments import autoencoding_binary_classifiers as lesson
from lmc_lessons.results import Result, Series, entry
from lmc_lessons.teaching.figures import autoencoding_binary_classifiers as figures

matplotlib.use("Agg")

CONFIG = lesson.PRESETS["study"]


def measured(seeds: int = 3, seed: int = 0) -> Result:
    """Everything that the figures read, drawn."""
    draw = np.random.default_rng(seed).uniform
    drawn = {
        title: Series(axes, draw(0.1, 1, (seeds, *map(len, axes.values()))).tolist())
        for title, axes in lesson.axes_of(CONFIG).items()
    }
    result = synthetic(lesson.LESSON, drawn, seeds)
    result.config["anomalies"] = list(CONFIG.anomalies)
    return result


def words(figure: HTML) -> tuple[str, str]:
    """Alternative text and caption."""
    (alt,) = re.findall(r'(?:role="img" aria-label|<img [^>]*alt)="([^"]+)"', figure.data)
    (caption,) = re.findall(r"<figcaption[^>]*>(.+?)</figcaption>", figure.data, flags=re.S)
    return html.unescape(alt), html.unescape(caption)


DRAWN: dict[str, Any] = {
    "labels": figures.by_labels,
    "class": lambda result: figures.by_class(result, 50),
    "growth": lambda result: figures.growth(result, 50),
    "scales": figures.scales,
    "contamination": figures.contamination,
}


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every static figure that is drawn."""
    kept: list[Any] = []

    def keep(fig: Any, **texts: Any) -> bytes:
        kept.extend(fig.axes)
        plt.close(fig)
        return b"\x89PNG\r\n"

    for name in ("static_figure", "png"):
        monkeypatch.setattr(figures, name, keep)
    monkeypatch.setattr(figures, "few_colours", lambda image, colours: image)
    monkeypatch.setattr(figures, "image_slider", lambda *a: a)
    return kept


@pytest.mark.parametrize("name", DRAWN)
def test_words_tell_the_results(name: str) -> None:
    (alt, caption), (other, _) = (words(DRAWN[name](measured(seed=k))) for k in (0, 1))
    assert alt != other
    assert caption.endswith(".")


def test_curves_are_means_over_units(axes: list[Any]) -> None:
    result = measured()
    figures.by_labels(result)
    for ax, kind in zip(axes, ("known", "unknown"), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
        for name in ("classifier", "ABC", "negative learning"):
            wanted = [np.mean(lesson.labelled(name, n, kind)(result)) for n in CONFIG.labels]
            assert_allclose(lines[name], wanted)
        assert_allclose(lines["AE"], np.mean(lesson.unlabelled("AE", kind)(result)))


def test_units_stand_over_the_class_that_they_hold_out(axes: list[Any]) -> None:
    result = measured(seeds=7)
    figures.by_class(result, 50)
    line = next(line for line in axes[0].get_lines() if line.get_label() == "ABC")
    assert np.rint(line.get_xdata()).tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert_allclose(line.get_ydata(), lesson.labelled("ABC", 50, "unknown")(result))


def test_growth_scales_and_contamination_draw_means(axes: list[Any]) -> None:
    result = measured()
    figures.growth(result, 50)
    figures.scales(result)
    figures.contamination(result)
    growth, scales, hidden = axes
    errors = {line.get_label(): line.get_ydata() for line in growth.get_lines()}
    epochs = lesson.snapshots(CONFIG)
    wanted = [np.mean(entry("error", "ABC mean", 50, e)(result)) for e in epochs]
    assert_allclose(errors["ABC mean"], wanted)
    known = next(line for line in scales.get_lines() if line.get_label() == "known anomalies")
    wanted = [np.mean(entry("scales", s, "known")(result)) for s in CONFIG.scales]
    assert_allclose(known.get_ydata(), wanted)
    lines = {line.get_label(): line.get_ydata() for line in hidden.get_lines()}
    wanted = [np.mean(lesson.hidden("PUAE", s)(result)) for s in CONFIG.contamination]
    assert_allclose(lines["PUAE"], wanted)


def test_the_likelihood_is_told_by_its_slopes() -> None:
    alt, _ = words(figures.likelihood())
    assert "-0.582 at 1" in alt  # 1 / (e - 1)


def test_tables_hold_means() -> None:
    result, other = measured(), measured(seed=5)
    table = figures.methods_table(result, 50, other).data
    for name in ("ABC", "classifier"):
        assert f"{np.mean(lesson.labelled(name, 50, 'known')(result)):.3f}" in table
    assert f"{np.mean(lesson.unlabelled('LOF', 'unknown')(other)):.3f}" in table
    sides = figures.sides_table(result).data
    wanted = np.mean(entry("sides", "sine", "classifier", "unknown")(result))
    assert f"{wanted:.3f}" in sides


def test_two_lengths_of_training_stand_side_by_side() -> None:
    short, longer = measured(), measured(seed=2)
    for result, epochs in ((short, 100), (longer, 300)):
        result.config["train"] = {"epochs": epochs}
    table = figures.longer_table(short, longer, 50).data
    assert re.findall(r'scope="col">([^<]+)<', table)[1:] == [
        *("known, 100", "known, 300", "unknown, 100", "unknown, 300"),
    ]
    row = next(part for part in table.split("<tr>") if ">ABC scale 3<" in part)
    cells = re.findall(r"<td[^>]*>([0-9.]+)<", row)
    wanted = [
        f"{np.mean(entry('scales', 3.0, kind)(run)):.3f}"
        for kind in ("known", "unknown")
        for run in (short, longer)
    ]
    assert cells == wanted


@pytest.fixture(scope="module")
def maps() -> dict[int, figures.Maps]:
    """Two small maps."""
    return {n: figures.score_maps(n, epochs=3, grid=9) for n in (1, 10)}


def test_maps_are_scores_of_the_plane(maps: dict[int, figures.Maps]) -> None:
    for number, found in maps.items():
        labelled = int((found.task.train_y == 1).sum() + (found.task.valid_y == 1).sum())
        assert labelled == number
        for name in figures.METHODS:
            assert found.scores[name].shape == (9, 9)
            assert 0 <= found.scores[name].min() <= found.scores[name].max() <= 1
            assert all(0 <= area <= 1 for area in found.areas[name])


def test_rows_of_a_map_are_second_coordinates(maps: dict[int, figures.Maps]) -> None:
    """An untrained network's errors grow away from the origin along either axis."""
    found = figures.score_maps(1, epochs=20, grid=5).scores["AE"]
    on_curve, off_curve = found[2, 2], found[4, 2]  # the origin, and far above it
    assert on_curve < off_curve


def test_the_first_figure_tells_areas(axes: list[Any], maps: dict[int, figures.Maps]) -> None:
    shown: Any = figures.plane(maps)
    images, labels, alts, name, caption = shown
    assert (len(images), labels, name) == (2, ["1", "10"], "labelled anomalies")
    assert caption.endswith(".")
    known, unknown = maps[10].areas["ABC"]
    assert f"ABC ranks {known:.3f} of the pairs right for known and {unknown:.3f}" in alts[1]
    titles = [ax.get_title() for ax in axes]
    assert f"ABC: {known:.3f} / {unknown:.3f}" in titles

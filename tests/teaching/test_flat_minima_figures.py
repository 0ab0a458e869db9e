"""Figures of the lesson on flat minima: the right curves, and words that tell their numbers."""

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
from lmc_lessons.experiments import flat_minima as lesson
from lmc_lessons.results import Result, Series
from lmc_lessons.teaching.figures import flat_minima as figures

matplotlib.use("Agg")

EPOCHS, TICKS = [10, 20, 30], [-1.0, 0.0, 1.0]
POSITIONS = [-1.0, -0.2, 0.0, 0.2, 1.0]
METHODS = tuple(lesson.METHODS)
DRAWN = ["AT", "AWP 0.02", "decay 0.005", "TRADES"]
SHOWN = (lesson.STOPPED, "AT", "AWP 0.02")
WORDS = figures.WORDS | {"AWP 0.02": "with AWP"}


def measured(seeds: int = 3, seed: int = 0, methods: tuple[str, ...] = METHODS) -> Result:
    """Everything that the figures read, drawn."""
    names, draw = [lesson.STOPPED, *methods], np.random.default_rng(seed).random
    shown = [name for name in SHOWN if name in names]
    axes: dict[str, dict[str, list[Any]]] = {
        "networks": {"network": names, "quantity": list(lesson.QUANTITIES)},
        "robust accuracy": {
            "split": ["validation", "test"],
            "method": list(methods),
            "epoch": EPOCHS,
        },
        "stopped": {"method": list(methods), "quantity": ["epoch", "robust accuracy"]},
        "line": {"network": shown, "attack": ["recomputed", "frozen"], "position": POSITIONS},
        "plane": {"network": shown, "v": TICKS, "u": TICKS},
    }
    return synthetic(
        lesson.LESSON,
        {n: Series(a, draw((seeds, *map(len, a.values()))).tolist()) for n, a in axes.items()},
        seeds,
    )


def mean(result: Result, name: str) -> Any:
    return np.mean(result.series[name].values, axis=0)


def quantity(result: Result, name: str, method: str) -> Any:
    """One number per seed."""
    row = result.series["networks"].axes["network"].index(method)
    values = np.array(result.series["networks"].values)
    return values[:, row, lesson.QUANTITIES.index(name)]


def models(count: int = 9) -> dict[str, list[Any]]:
    draw = np.random.default_rng(8).random
    columns = ("robust_loss", "average_flatness", "worst_flatness")
    return {"model": list("abcdefghi"), **{name: draw(count).tolist() for name in columns}}


def words(figure: HTML) -> tuple[str, str]:
    """Alternative text and caption."""
    (alt,) = re.findall(r'(?:role="img" aria-label|<img [^>]*alt)="([^"]+)"', figure.data)
    (caption,) = re.findall(r"<figcaption[^>]*>(.+?)</figcaption>", figure.data, flags=re.S)
    return html.unescape(alt), html.unescape(caption)


FROM_RESULTS: dict[str, Any] = {
    "overfitting": lambda result: figures.overfitting(result, DRAWN),
    "attack": figures.attack_remade,
    "landscapes": figures.landscapes,
    "correlations": figures.correlations,
}


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every static figure that is drawn."""
    kept: list[Any] = []

    def keep(fig: Any, **texts: str) -> bytes:
        kept.extend(fig.axes)
        plt.close(fig)
        return b"\x89PNG\r\n"

    for name in ("static_figure", "png"):
        monkeypatch.setattr(figures, name, keep)
    monkeypatch.setattr(figures, "image_slider", lambda *a: a)
    return kept


@pytest.mark.parametrize("name", FROM_RESULTS)
def test_words_tell_the_results(name: str) -> None:
    draw = FROM_RESULTS[name]
    (alt, caption), (other, same) = (words(draw(measured(seed=k))) for k in (0, 1))
    assert alt != other
    assert caption == same


@pytest.mark.parametrize("name", ["overfitting", "attack"])
def test_captions_say_what_was_repeated(name: str) -> None:
    draw = FROM_RESULTS[name]
    assert "Mean over 3 seeds, band: 95 % interval." in words(draw(measured()))[1]
    assert "One seed: no interval." in words(draw(measured(seeds=1)))[1]


def test_overfitting_tells_stop_and_end() -> None:
    result = measured()
    alt = words(figures.overfitting(result, DRAWN))[0]
    ends, stops = mean(result, "robust accuracy")[1, :, -1], mean(result, "stopped")[:, 1]
    for name in DRAWN:
        k = METHODS.index(name)
        assert (
            f"{name} {100 * stops[k]:.0f} % where validation stops, {100 * ends[k]:.0f} % at the"
            in alt
        )


def test_overfitting_draws_test_data_and_every_seed_s_stop(axes: list[Any]) -> None:
    result = measured()
    figures.overfitting(result, DRAWN)
    figures.overfitting(measured(seeds=1), ["AT"])
    ax, single = axes
    lines = ax.get_lines()
    assert len(lines) == 2 * len(DRAWN)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == DRAWN
    for name, curve, marks in zip(DRAWN, lines[::2], lines[1::2], strict=True):
        k = METHODS.index(name)
        assert_allclose(curve.get_xydata(), np.c_[EPOCHS, mean(result, "robust accuracy")[1, k]])
        assert_allclose(marks.get_xydata(), np.array(result.series["stopped"].values)[:, k])
        assert marks.get_linestyle() == "None"
        assert marks.get_color() == curve.get_color()
    assert len({line.get_color() for line in lines[::2]}) == len(DRAWN)
    assert (len(ax.collections), len(single.collections)) == (4, 0), "one seed has no band"


@pytest.mark.parametrize("methods", [("AT",), ("AT", "AWP 0.01"), ("TRADES", "AT")])
def test_methods_that_were_not_run_are_left_out(methods: tuple[str, ...], axes: list[Any]) -> None:
    result = measured(methods=methods)
    figures.overfitting(result, ["AWP 0.02", "AT", "AWP 0.01", "TRADES"])
    (ax,) = axes
    drawn = [text.get_text() for text in ax.get_legend().get_texts()]
    assert drawn == [name for name in ("AT", "AWP 0.01", "TRADES") if name in methods]
    row = methods.index("AT")
    at = ax.get_lines()[2 * drawn.index("AT")]
    assert_allclose(at.get_ydata(), mean(result, "robust accuracy")[1, row])


def test_the_alt_text_is_silent_about_methods_that_were_not_run() -> None:
    alt = words(figures.overfitting(measured(methods=("AT",)), DRAWN))[0]
    assert "AT " in alt
    assert "AWP" not in alt
    alt = words(figures.attack_remade(measured(methods=("AT",))))[0]
    assert alt.count("AT, attack") == 2
    assert "AWP" not in alt


def test_both_attacks_are_drawn_for_both_networks(axes: list[Any]) -> None:
    result = measured()
    figures.attack_remade(result)
    means = mean(result, "line")
    assert [ax.get_title() for ax in axes] == ["AT", "AWP 0.02"]
    for ax in axes:
        row = SHOWN.index(ax.get_title())
        for line, values, way in zip(
            ax.get_lines(), means[row], ("recomputed", "frozen"), strict=True
        ):
            assert_allclose(line.get_xydata(), np.c_[POSITIONS, values])
            assert line.get_label() == f"attack {way}"
        low = ax.collections[0].get_paths()[0].vertices
        interval = t_interval([seed[row][0][0] for seed in result.series["line"].values])
        assert_allclose(sorted({*low[low[:, 0] == -1, 1]}), [interval.low, interval.high])
    assert axes[0].get_legend() is not None


def test_the_attack_s_words_are_the_right_ends() -> None:
    result = measured()
    alt, means = words(figures.attack_remade(result))[0], mean(result, "line")
    for name in ("AT", "AWP 0.02"):
        for k, way in enumerate(("recomputed", "frozen")):
            height = means[SHOWN.index(name), k, -1]
            assert f"{name}, attack {way}: {height:.2f}" in alt


@pytest.mark.parametrize("seed", [0, 2])
def test_landscapes_tell_the_plane_of_one_seed(seed: int) -> None:
    result = measured()
    alt = words(figures.landscapes(result, seed))[0]
    for name, grid in zip(SHOWN, result.series["plane"].values[seed], strict=True):
        told = f"{grid[1][1]:.2f} at the network, {np.mean(grid):.2f} on average"
        assert f"{WORDS[name]}: {told}" in alt


def test_landscapes_walk_through_the_middle_on_one_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(figures, "plane_explorer", lambda *a, **k: shown.append((*a, k)))
    result = measured()
    result.series["plane"].values[1][0][0][0] = 99.0  # a peak that would flatten all else
    figures.landscapes(result)
    figures.landscapes(result, 1)
    for seed, (u, v, grids, _, _, positions, curves, more) in enumerate(shown):
        planes = dict(zip(WORDS, result.series["plane"].values[seed], strict=True))
        assert (u, v, positions) == (TICKS, TICKS, [0, 0.5, 1])
        assert list(grids) == list(WORDS.values())
        for name, plane in planes.items():
            assert_allclose(grids[WORDS[name]], plane)
            assert_allclose(curves["west to east"][WORDS[name]], plane[1])
            assert_allclose(curves["south to north"][WORDS[name]], np.array(plane)[:, 1])
        lowest, highest = np.min(list(planes.values())), np.max(list(planes.values()))
        limits = set(more["limits"].values())
        assert limits == {(lowest, min(highest, 1.5 * np.log(10)))}


def test_landscapes_of_a_run_without_awp_show_what_there_is() -> None:
    alt = words(figures.landscapes(measured(methods=("AT",))))[0]
    assert WORDS["AT"] in alt
    assert WORDS["AWP 0.02"] not in alt


def test_correlations_show_every_network_but_ruined_and_stopped_ones(axes: list[Any]) -> None:
    result = measured()
    shown: Any = figures.correlations(result)
    _, labels, alts, _, caption = shown
    names = [name for name in METHODS if name != "AWP 0.1"]
    assert labels == list(figures.CORRELATED.values())
    assert caption.startswith("11 ways to train, 3 seeds each")
    for (sharp, label), ax, alt in zip(figures.CORRELATED.items(), axes, alts, strict=True):
        small, means = ax.get_lines()[::2], ax.get_lines()[1::2]
        assert [line.get_label() for line in means] == names
        for name, dots, dot in zip(names, small, means, strict=True):
            x, y = quantity(result, sharp, name), quantity(result, "robust loss", name)
            assert_allclose(dots.get_xydata(), np.c_[x, y])
            assert_allclose(dot.get_xydata(), [[x.mean(), y.mean()]])
        found = [
            np.corrcoef(
                [
                    (quantity(result, sharp, n)[k], quantity(result, "robust loss", n)[k])
                    for n in names
                ],
                rowvar=False,
            )[0, 1]
            for k in range(3)
        ]
        r, low, high = t_interval(found)
        assert ax.get_title() == f"Pearson r = {r:.2f} [{low:.2f}, {high:.2f}] over seeds"
        assert f"{r:.2f}, 95 % interval {low:.2f} to {high:.2f}" in alt
        assert label in alt
        assert ax.get_xlabel() == label


def test_correlations_are_the_claim_s() -> None:
    result = measured()
    r = np.mean(lesson.correlation("average flatness")(result))
    assert f"correlation over methods {r:.2f}," in words(figures.correlations(result))[0]


def test_correlations_leave_out_methods_that_were_not_run(axes: list[Any]) -> None:
    shown: Any = figures.correlations(measured(methods=("AT", "AWP 0.1", "no decay", "TRADES")))
    assert shown[-1].startswith("3 ways to train")
    assert [line.get_label() for line in axes[0].get_lines()[1::2]] == ["AT", "no decay", "TRADES"]


def test_every_method_has_a_look_of_its_family() -> None:
    families = {name.split(" ")[0] for name in METHODS}
    assert families == set(figures.FAMILIES)
    assert len(set(figures.FAMILIES.values())) == len(families)


def test_published_models_are_drawn_with_their_correlation(axes: list[Any]) -> None:
    table = models()
    figures.published_figure(table)
    for ax, name in zip(axes, ("average_flatness", "worst_flatness"), strict=True):
        (points,) = ax.get_lines()
        assert_allclose(points.get_xydata(), np.c_[table[name], table["robust_loss"]])
        r = np.corrcoef(table[name], table["robust_loss"])[0, 1]
        assert ax.get_title() == f"Pearson r = {r:.2f}"


def test_published_models_are_told() -> None:
    table = models()
    alt, caption = words(figures.published_figure(table))
    for name in ("average", "worst"):
        r = np.corrcoef(table[f"{name}_flatness"], table["robust_loss"])[0, 1]
        assert f"{name}-case {r:.2f}" in alt
    assert caption.startswith("9 models")
    assert "74 models" in words(figures.published_figure(lesson.published()))[1]


def cells(table: HTML) -> list[list[str]]:
    rows = re.findall(r"<tr>(.+?)</tr>", table.data, flags=re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.S) for row in rows]


@pytest.mark.parametrize("methods", [METHODS, ("AT",), ("AT", "AWP 0.01")])
def test_the_table_has_every_network_the_most_robust_first(methods: tuple[str, ...]) -> None:
    result = measured(methods=methods)
    head, *rows = cells(figures.methods_table(result))
    robust = {n: quantity(result, "robust accuracy", n).mean() for n in (lesson.STOPPED, *methods)}
    assert [row[0] for row in rows] == sorted(robust, key=lambda n: -robust[n])
    order = {
        "clean": ("clean accuracy", "{:.1%}"),
        "under attack": ("robust accuracy", "{:.1%}"),
        "ensemble": ("ensemble accuracy", "{:.1%}"),
        "under attack, training data": ("train robust accuracy", "{:.1%}"),
        "robust loss": ("robust loss", "{:.2f}"),
        "average-case": ("average flatness", "{:.2f}"),
        "worst-case": ("worst flatness", "{:.3f}"),
        "top eigenvalue": ("top eigenvalue", "{:.1f}"),
    }
    assert head == ["trained by", *order]
    for name, *numbers in rows:
        wanted = [form.format(quantity(result, q, name).mean()) for q, form in order.values()]
        assert [text.replace("&nbsp;", "") for text in numbers] == wanted


@pytest.mark.parametrize("name", FROM_RESULTS)
def test_what_was_not_measured_is_named(name: str) -> None:
    with pytest.raises(KeyError):
        FROM_RESULTS[name](synthetic(lesson.LESSON, {}, 3))
    plt.close("all")

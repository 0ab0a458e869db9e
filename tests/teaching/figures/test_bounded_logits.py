"""Figures of the lesson on bounded logits: the right points, and words that tell their numbers."""

from __future__ import annotations

import html
import math
import re
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from fakes import synthetic
from IPython.display import HTML
from numpy.testing import assert_allclose
from scipy.stats import spearmanr

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments import bounded_logits as lesson
from lmc_lessons.results import Result, Series
from lmc_lessons.robustness.bounded_logits import optimum
from lmc_lessons.teaching.figures import bounded_logits as figures

matplotlib.use("Agg")

STEPS = [0, 10, 100]
NAMES = list(lesson.METHODS)
SOME = ["plain", "BLF 1", "AT", "LS 0.5"]


def measured(seeds: int = 3, seed: int = 0, names: list[str] = NAMES) -> Result:
    """Everything that the figures read, drawn."""
    draw = np.random.default_rng(seed).uniform
    axes: dict[str, dict[str, list[Any]]] = {
        "free": {"head": list(lesson.FREE), "step": STEPS, "class": list(range(10))},
        "networks": {"network": names, "quantity": list(lesson.QUANTITIES)},
        "standing": {"network": names, "attack": list(lesson.SHARES)},
    }
    drawn = {
        n: Series(a, draw(0.1, 1, (seeds, *map(len, a.values()))).tolist()) for n, a in axes.items()
    }
    return synthetic(lesson.LESSON, drawn, seeds)


def mean(result: Result, title: str, name: str, entry: str) -> float:
    return float(np.mean(lesson.column(result, title, name, entry)))


def words(figure: HTML) -> tuple[str, str]:
    """Alternative text and caption."""
    (alt,) = re.findall(r'(?:role="img" aria-label|<img [^>]*alt)="([^"]+)"', figure.data)
    (caption,) = re.findall(r"<figcaption[^>]*>(.+?)</figcaption>", figure.data, flags=re.S)
    return html.unescape(alt), html.unescape(caption)


DRAWN: dict[str, Any] = {
    "free": figures.free,
    "growth": lambda result: figures.growth(result, ["tanh 1", "BLF 1"]),
    "lengths": lambda result: figures.lengths(result, SOME),
    "under": lambda result: figures.under_attack(result, SOME),
    "against": lambda result: figures.against_length(result, SOME),
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
    monkeypatch.setattr(figures, "_few_colours", lambda image: image)
    monkeypatch.setattr(figures, "image_slider", lambda *a: a)
    return kept


@pytest.mark.parametrize("name", DRAWN)
def test_words_tell_the_results(name: str) -> None:
    (alt, caption), (other, _) = (words(DRAWN[name](measured(seed=k))) for k in (0, 1))
    assert alt != other
    assert caption.endswith(".")


def test_the_first_figure_shows_every_step_on_both_heads(axes: list[Any]) -> None:
    result = measured()
    shown: Any = figures.free(result, seed=1)
    images, labels, alts, _, caption = shown
    assert (len(images), labels) == (3, ["0", "10", "100"])
    assert "9 others" in caption
    values = np.array(result.series["free"].values[1])
    for k, alt in enumerate(alts):
        left, right, below = axes[3 * k : 3 * k + 3]
        for ax, head in ((left, "tanh 1"), (right, "BLF 1")):
            u = values[lesson.FREE.index(head), k]
            curve, others, true = ax.get_lines()
            assert head in ax.get_title()
            assert_allclose(others.get_xdata(), u[1:])
            assert_allclose(true.get_xdata(), u[:1])
            assert abs(curve.get_ydata()).max() <= 1
            told = f"{head}: true class at {u[0]:.2f}, the others at {u[1:].mean():.2f} on average"
            assert told in alt
            assert f"length of all {np.linalg.norm(u):.2f}" in alt
        lengths = np.linalg.norm(values[lesson.FREE.index("BLF 1")], axis=-1)
        assert any(
            len(line.get_ydata()) == 3 and np.allclose(line.get_ydata(), lengths)
            for line in below.get_lines()
        )


def test_the_pictures_of_the_slider_stay_small() -> None:
    assert len(figures.free(measured()).data) < 200_000
    image = figures.png(plt.figure(figsize=(2, 2)))
    assert figures._few_colours(image) == figures._few_colours(image)


def test_growth_draws_means_and_tells_the_last_step(axes: list[Any]) -> None:
    result = measured()
    figures.growth(result, ["tanh 1", "BLF 1"])
    lengths = np.linalg.norm(result.series["free"].values, axis=-1)
    (ax,) = axes
    for line, name in zip(ax.get_lines()[:2], ("tanh 1", "BLF 1"), strict=True):
        assert_allclose(line.get_ydata(), lengths[:, lesson.FREE.index(name)].mean(0))
    assert ax.get_lines()[2].get_ydata()[0] == pytest.approx(4.8807, abs=1e-4)


def test_expected_lengths_are_the_optima() -> None:
    for name in NAMES:
        logits, before = figures.expected_lengths(name)
        if name.startswith(("AT", "TRADES")) or name == "plain, short":
            assert math.isnan(logits)
            assert math.isnan(before)
    assert figures.expected_lengths("plain") == (math.inf, math.inf)
    assert figures.expected_lengths("tanh 5") == (pytest.approx(5 * math.sqrt(10)), math.inf)
    assert figures.expected_lengths("BLF 1")[1] == pytest.approx(4.8807, abs=1e-4)
    squeezed = optimum("squeezing", 0.2).logit_norm
    assert figures.expected_lengths("CLP 0.05") == (squeezed, squeezed)
    smoothed = optimum("smoothing", 0.5).logit_norm
    assert figures.expected_lengths("LS 0.5") == (smoothed, smoothed)


def test_lengths_are_drawn_where_they_were_measured(axes: list[Any]) -> None:
    result = measured()
    figures.lengths(result, SOME)
    (ax,) = axes
    assert [text.get_text() for text in ax.get_yticklabels()] == SOME
    for kind, marker in (("logit", "s"), ("pre-logit", "o")):
        found = [float(ln.get_xdata()[0]) for ln in ax.get_lines() if ln.get_marker() == marker]
        wanted = [mean(result, "networks", name, f"train {kind} norm") for name in SOME]
        assert found == pytest.approx(wanted)
    strokes = [line for line in ax.get_lines() if line.get_marker() == "|"]
    assert len(strokes) == 4, "two of BLF 1, two of LS 0.5"


def test_attacks_are_drawn_with_their_intervals(axes: list[Any]) -> None:
    result = measured()
    figures.under_attack(result, SOME)
    figures.under_attack(measured(seeds=1), ["AT"])
    ax, single = axes
    assert len(ax.get_lines()) == 2 * 3 * len(SOME)
    assert len(single.get_lines()) == 3, "one seed has no interval"
    interval = t_interval(lesson.column(result, "standing", "plain", "CE"))
    ends, dot = ax.get_lines()[:2]
    assert_allclose(ends.get_xdata(), [100 * interval.low, 100 * interval.high])
    assert_allclose(dot.get_xdata(), [100 * interval.mean])


def test_the_alt_text_has_every_accuracy() -> None:
    result = measured()
    alt, caption = words(figures.under_attack(result, SOME))
    for name in SOME:
        shares = [100 * mean(result, "standing", name, a) for a in ("CE", "margin", "all")]
        assert f"{name} {', '.join(f'{share:.1f}' for share in shares)}" in alt
    assert "Mean over 3 seeds, line: 95 % interval." in caption


def test_accuracy_against_length_has_both_panels(axes: list[Any]) -> None:
    result = measured()
    figures.against_length(result, SOME)
    accuracy = [100 * mean(result, "standing", name, "all") for name in SOME]
    for ax, kind in zip(axes, ("logit", "pre-logit"), strict=True):
        sizes = [mean(result, "networks", name, f"{kind} norm") for name in SOME]
        lines = [line for line in ax.get_lines() if len(line.get_xdata())]  # the others: legend
        assert [float(line.get_xdata()[0]) for line in lines] == pytest.approx(sizes)
        assert [float(line.get_ydata()[0]) for line in lines] == pytest.approx(accuracy)
        assert [text.get_text() for text in ax.texts] == ["plain", "BLF 1"]
    legend = [text.get_text() for text in axes[0].get_legend().get_texts()]
    assert legend == list(figures.FAMILIES)


def test_every_method_has_a_look_of_its_family() -> None:
    looks = {name: figures._look(name) for name in NAMES}
    assert set(looks.values()) == set(figures.FAMILIES.values())
    assert looks["BLF 1"] == looks["AT BLF 5"] != looks["tanh 1"]
    assert set(figures.LABELLED) <= set(NAMES)


def test_the_rank_correlation_is_told() -> None:
    result = measured()
    accuracy = [mean(result, "standing", name, "all") for name in SOME]
    sizes = [mean(result, "networks", name, "logit norm") for name in SOME]
    r = spearmanr(sizes, accuracy).statistic
    for text in words(figures.against_length(result, SOME)):
        assert f"ogits: rank correlation {r:.2f}" in text


@pytest.mark.parametrize("name", ["lengths", "under", "against"])
def test_networks_that_were_not_run_are_left_out(name: str) -> None:
    alt = words(DRAWN[name](measured(names=["plain", "AT", "tanh 1"])))[0]
    assert "BLF" not in alt


def cells(table: HTML) -> list[list[str]]:
    rows = re.findall(r"<tr>(.+?)</tr>", table.data, flags=re.S)
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.S) for row in rows]


def test_the_table_has_every_attack() -> None:
    result = measured(names=["plain", "AT", "BLF 1"])
    first, *rows = cells(figures.attacks_table(result, SOME))
    assert first[1:] == ["plain", "BLF 1", "AT"]
    assert set(figures.ATTACK_NAMES) == {"clean", *lesson.ATTACKS, "all"}
    assert [row[0] for row in rows] == list(figures.ATTACK_NAMES.values())
    for attack, (_, *numbers) in zip(figures.ATTACK_NAMES, rows, strict=True):
        assert numbers == [f"{100 * mean(result, 'standing', n, attack):.1f}" for n in first[1:]]


def test_text_is_a_mean_with_its_interval() -> None:
    found = t_interval([0.01, 0.03])
    told = figures.text(measured(seeds=2), lambda _: [0.01, 0.03])
    assert told == f"+2.0 [{100 * found.low:+.1f}, {100 * found.high:+.1f}]"


@pytest.mark.parametrize("name", DRAWN)
def test_what_was_not_measured_is_named(name: str) -> None:
    with pytest.raises(KeyError):
        DRAWN[name](synthetic(lesson.LESSON, {}, 3))
    plt.close("all")

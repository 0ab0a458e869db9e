"""Figures drawn from results: the right curves, and words whose numbers come from the data."""

from __future__ import annotations

import html
import re
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from fakes import random_images, synthetic
from IPython.display import HTML
from numpy.testing import assert_allclose

from lmc_lessons.connectivity.symmetry import find_symmetry
from lmc_lessons.evaluation import t_interval
from lmc_lessons.landscape import line
from lmc_lessons.models import MLP, ModelConfig, initial
from lmc_lessons.results import Result, Series
from lmc_lessons.teaching import figures
from lmc_lessons.teaching.figures import loss_barriers, singular_vectors

matplotlib.use("Agg")

CONFIG = ModelConfig("mlp", (1, 8, 8), classes=10, width=6, depth=2)
MODEL = MLP(CONFIG)
DATA = random_images("digits")
TEXTS: dict[str, Any] = {"x_label": "dose", "y_label": "effect", "alt": "Two.", "caption": "Cap."}
SPAWNED: dict[str, list[Any]] = {"quantity": ["barrier", "distance"], "step": [0, 5, 42]}
GAMMAS: dict[str, list[Any]] = {"gamma": [0.0, 0.3, 0.5]}
WAYS: dict[str, list[Any]] = {"way": ["rest only", "activations", "weights", "naive"]}
AXES: dict[str, dict[str, list[Any]]] = {
    "deep_spawned": SPAWNED,
    "deep_spawned_loss": {"step": SPAWNED["step"], "position": [0.0, 0.5, 1.0]},
    "wide_spawned": {**SPAWNED, "step": [0, 7]},
    "variance_left": {"recipe": ["adam", "sgd"], "path": ["naive", "weights"], "layer": [1, 2, 3]},
    "alignment": {**WAYS, **GAMMAS},
    "layer_alignment": {**WAYS, "layer": ["hidden.0", "output"], **GAMMAS},
    "curves": {"way": ["p", "q"], "dose": [0.0, 0.1, 1.0]},
    "single": {"dose": [0.1, 1.0, 10.0]},
    "parts": {"part": ["one", "two"], "way": ["p", "q"], "dose": [1, 2, 3]},
    "crowd": {"way": list("abcde"), "dose": [1, 2, 3]},
}


def measured(seeds: int = 3, seed: int = 0, *, leave_out: str = "none") -> Result:
    """Everything that the figures read."""
    draw = np.random.default_rng(seed).random
    found: dict[str, Any] = {
        name: Series(axes, draw((seeds, *map(len, axes.values()))).tolist())
        for name, axes in AXES.items()
    }
    found |= {f"{name}_stranger_barrier": draw(seeds).tolist() for name in ("wide", "deep")}
    kept = {name: part for name, part in found.items() if not name.startswith(leave_out)}
    return synthetic("any", kept, seeds)


def mean(result: Result, name: str) -> Any:
    return np.mean(result.series[name].values, axis=0)


def network(seed: int) -> Any:
    return {name: 4 * tensor for name, tensor in initial(CONFIG, seed).items()}


def lining_up(seed: int = 0, **more: Any) -> HTML:
    symmetry = find_symmetry(MODEL, DATA.train_x[:2])
    sweeps = [symmetry.random(seed), symmetry.random(seed + 1)]
    return singular_vectors.lining_up(symmetry, network(1), network(2), sweeps, "hidden.1", **more)


def curves(result: Result, name: str = "curves", **more: Any) -> HTML:
    return figures.curves_figure(result, name, **{**TEXTS, **more})


FROM_RESULTS: dict[str, Any] = {
    "curves": curves,
    "spawn": loss_barriers.spawn_figure,
    "onset": loss_barriers.onset_figure,
    "variance": loss_barriers.variance_figure,
    "gamma": singular_vectors.gamma_figure,
}
FROM_NETWORKS: dict[str, Any] = {
    "lining up": lining_up,
    "walk": lambda k: loss_barriers.profile_figure(MODEL, network(1), {"to B": network(k)}, DATA),
    "plane": lambda k: loss_barriers.plane_figure(
        MODEL, network(1), network(k), network(9), DATA, points=3
    ),
}


def words(figure: HTML) -> tuple[str, str]:
    """Alternative text and caption."""
    (alt,) = re.findall(r'(?:role="img" aria-label|<img [^>]*alt)="([^"]+)"', figure.data)
    (caption,) = re.findall(r"<figcaption[^>]*>(.+?)</figcaption>", figure.data, flags=re.S)
    return html.unescape(alt), html.unescape(caption)


@pytest.fixture
def axes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The axes of every static figure that is drawn."""
    kept: list[Any] = []

    def keep(fig: Any, **texts: str) -> None:
        kept.extend(fig.axes)
        plt.close(fig)

    for module in (figures, loss_barriers):
        monkeypatch.setattr(module, "static_figure", keep)
    return kept


@pytest.mark.parametrize("name", FROM_RESULTS)
def test_words_tell_the_results(name: str) -> None:
    draw = FROM_RESULTS[name]
    alt, caption = words(draw(measured()))
    assert alt != words(draw(measured(seed=1)))[0] or name == "curves", "that alt text is given"
    assert re.search("Mean over 3 pairs, (band|whiskers): 95 % interval", caption)
    assert not re.search("band|whiskers|95 %|1 pairs", words(draw(measured(seeds=1)))[1])


@pytest.mark.parametrize("name", FROM_NETWORKS)
def test_words_tell_the_networks(name: str) -> None:
    (alt, caption), (other, same) = (words(FROM_NETWORKS[name](seed)) for seed in (2, 3))
    assert alt != other
    assert caption == same


def test_numbers_in_words_are_the_means() -> None:
    result = measured()
    steps, left, ways = (mean(result, n) for n in ("deep_spawned", "variance_left", "alignment"))
    level = result.interval("deep_stranger_barrier").mean
    _, spawn, onset, variance, gamma = (words(draw(result))[0] for draw in FROM_RESULTS.values())
    assert f"With 0 steps shared the barrier is {steps[0, 0]:.2f}" in spawn
    assert f"with 42 steps {steps[0, -1]:.2f}" in spawn
    assert f"{steps[0, 0]:.2f} nats when only the start is shared, strangers {level:.2f}" in onset
    assert f"sgd, not matched: {left[1, 0, -2]:.2f}" in variance, "the last layer is no hidden one"
    assert f"by weights {ways[2, 0]:.2f} at γ = 0 and {ways[2, 1]:.2f} at γ = 0.3" in gamma
    half = line(MODEL, network(1), network(2), [0.5], DATA.test_x, DATA.test_y)
    _, walk, plane = (words(draw(2))[0] for draw in FROM_NETWORKS.values())
    wrong = 100 * half.error[0]
    assert f"to B: test loss {half.loss[0]:.2f} nats, test error {wrong:.0f} %" in walk
    assert f"rises to {half.loss[0]:.2f} nats halfway" in plane


def test_singular_vectors_are_not_said_to_be_more_or_better_than_they_are() -> None:
    assert "the 2 largest" in words(lining_up(top=2))[0]
    alt = words(lining_up())[0]
    assert "the 6 largest" in alt, "the layer has no more"
    assert "corner does" not in alt, "these networks do not line up"


def test_curves_are_means_with_bands(axes: list[Any]) -> None:
    result = measured()
    curves(result, shown={"q": "the second"}, log=True, y_limits=(0, 2), legend="drug")
    curves(result, "single", log=True)
    curves(result, "parts", within=["two"])
    second, single, parts = axes
    (drawn,) = second.get_lines()
    assert_allclose(drawn.get_xydata(), np.c_[[0, 0.1, 1], mean(result, "curves")[1]])
    assert_allclose(single.get_lines()[0].get_ydata(), mean(result, "single"))
    assert_allclose([c.get_ydata() for c in parts.get_lines()], mean(result, "parts")[1])
    assert (second.get_xlabel(), second.get_ylabel()) == ("dose", "effect")
    assert second.get_ylim() == (0, 2)
    assert (second.get_xscale(), single.get_xscale()) == ("symlog", "log")
    title, (label,) = second.get_legend().get_title(), second.get_legend().get_texts()
    assert (title.get_text(), label.get_text()) == ("drug", "the second")
    edge = second.collections[0].get_paths()[0].vertices
    interval = t_interval([seed[1][0] for seed in result.series["curves"].values])
    assert_allclose(sorted({*edge[edge[:, 0] == 0, 1]}), [interval.low, interval.high])


def test_sliders_move_over_means(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    for module in (loss_barriers, singular_vectors):
        monkeypatch.setattr(module, "step_explorer", lambda *a, **k: shown.append((*a, k)))
    result = measured()
    loss_barriers.spawn_figure(result)
    singular_vectors.gamma_figure(result)
    (_, losses, _, heights, more), (_, frames, _, summary, _) = shown
    assert_allclose(losses["test loss"], mean(result, "deep_spawned_loss"))
    assert_allclose(heights["barrier (nats)"], mean(result, "deep_spawned")[0])
    low, high = more["band"]["test loss"]
    assert (low >= 0).all(), "no loss is negative"
    assert (high > losses["test loss"]).all()
    assert_allclose(frames["not matched"], mean(result, "layer_alignment")[3].T)
    assert_allclose(summary["by weights: R over all layers"], mean(result, "alignment")[2])


def test_onset_and_variance_draw_what_was_measured(axes: list[Any]) -> None:
    result = measured()
    loss_barriers.onset_figure(result)
    loss_barriers.variance_figure(result)
    loss_barriers.onset_figure(measured(seeds=1))
    assert [len(ax.collections) for ax in axes] == [2, 4, 0], "one pair has no band"
    *wides, wide, level = axes[0].get_lines()[: len(result.seeds) + 2]
    *_, deep, _, _ = axes[0].get_lines()
    for line_of_a_family, seed in zip(wides, result.series["wide_spawned"].values, strict=True):
        assert_allclose(line_of_a_family.get_ydata(), seed[0])
    assert [text.get_text() for text in axes[0].get_xticklabels()] == ["0", "5", "7", "42"]
    assert_allclose(wide.get_xydata(), np.c_[[0, 2], mean(result, "wide_spawned")[0]])
    assert_allclose(deep.get_xydata(), np.c_[[0, 1, 3], mean(result, "deep_spawned")[0]])
    assert_allclose(level.get_ydata(), result.interval("wide_stranger_barrier").mean)
    four = axes[1].get_lines()
    hidden = mean(result, "variance_left").reshape(4, 3)[:, :-1]
    assert_allclose([c.get_ydata() for c in four], hidden)
    assert four[1].get_label() == "adam, matched by weights"


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("absent", {}, "absent"),
    ("parts", {}, "'part'"),
    ("parts", {"within": ["three"]}, "'three'.*'one', 'two'"),
    ("parts", {"within": ["one", "p", 1]}, "'part'"),
    ("crowd", {}, "5 curves"),
    ("curves", {"shown": {"r": "absent"}}, "0 curves"),
    ("curves", {"alt": " "}, "alt must be a text"),
]


@pytest.mark.parametrize(("name", "more", "message"), REFUSED)
def test_what_cannot_be_drawn_is_refused(name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises((KeyError, ValueError), match=message):
        curves(measured(), name, **more)
    plt.close("all")


def test_what_was_not_measured_is_left_out_or_named() -> None:
    for absent, there in (("wide", "8 hidden"), ("deep", "3 hidden")):
        alt = words(loss_barriers.onset_figure(measured(leave_out=absent)))[0]
        assert there in alt
        assert alt.count("nats when") == 1
    for name, draw in FROM_RESULTS.items():
        with pytest.raises(KeyError):
            draw(synthetic(name, {}, 3))

"""Figures of the lesson on the sum of a kernel: they draw what was measured, and say it."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from fakes import synthetic
from IPython.display import HTML

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments import absum as lesson
from lmc_lessons.results import Result, Series
from lmc_lessons.robustness.fourier import single_fourier_attack, wave
from lmc_lessons.teaching.figures import absum as figures
from lmc_lessons.teaching.interactive import markup

matplotlib.use("Agg")
SIDE, ABSUM = 8, lesson.Config.absum
NETWORKS = [*lesson.METHODS, lesson.PROJECTED]
QUANTITIES = [*lesson.QUANTITIES, lesson.PUT_BACK]


def measured(seeds: int = 3, methods: tuple[str, ...] = tuple(lesson.METHODS)) -> Result:
    """Everything that the figures read, drawn."""
    draw = np.random.default_rng(0).random
    axes: dict[str, dict[str, list[Any]]] = {
        "networks": {"network": [*methods, lesson.PROJECTED], "quantity": QUANTITIES},
        "heat map": {
            "network": ["none", ABSUM, lesson.OTHER],
            "u": list(range(SIDE)),
            "v": list(range(SIDE)),
        },
        "variants": {
            "variant": list(lesson.VARIANTS),
            "network": ["none", "decay 0.03", ABSUM],
            "quantity": QUANTITIES,
        },
    }
    found = synthetic(
        lesson.LESSON,
        {n: Series(a, draw((seeds, *map(len, a.values()))).tolist()) for n, a in axes.items()},
        seeds,
    )
    found.config = {
        "methods": list(methods),
        "absum": ABSUM,
        "decay": "decay 0.03",
        "wave_epsilon": 0.6,
    }
    return found


def text_of(figure: HTML) -> str:
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", figure.data)))


def alt_of(figure: HTML) -> str:
    found = re.search(r'(?:alt|aria-label)="([^"]*)"', figure.data)
    assert found is not None
    return html.unescape(found[1])


def value(result: Result, name: str, quantity: str) -> Any:
    row, column = NETWORKS.index(name), QUANTITIES.index(quantity)
    return np.array([seed[row][column] for seed in result.series["networks"].values])


# --- The first figure -----------------------------------------------------------------------------


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def payload(figure: HTML) -> dict[str, Any]:
    found = re.search(r'mount\("[0-9a-f]+", (\{.*\}), 0\);', figure.data, flags=re.S)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_first_figure_ships_means_over_seeds(images: torch.Tensor) -> None:
    result = measured()
    figure = figures.waves_figure(result, images, ["a", "b"], start=(3, 1))
    data = payload(figure)
    for row, name in ((0, "none"), (1, ABSUM)):
        wanted = figures.mean_map(result, name)
        np.testing.assert_allclose(data["maps"][row]["values"], wanted, atol=1e-4)
        assert f"{wanted[3, 1]:.0%}" in alt_of(figure)
        assert f"{np.delete(wanted.ravel(), 0).min():.0%}" in alt_of(figure)
    assert (data["epsilon"], data["start"], data["count"]) == (0.6, [3, 1], 2)


def test_the_page_computes_the_wave_of_the_package(browser: Any, images: torch.Tensor) -> None:
    """The script's picture against the attack, pixel by pixel, in the colours it paints."""
    figure = figures.waves_figure(measured(), images, ["a", "b"], start=(3, 1))
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_content(f"<body>{figure.data}</body>")
    page.wait_for_selector("figure[data-ready] input[type=range]")
    read = """k => { const c = document.querySelectorAll('.lmc-stage canvas')[k];
        return [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]
            .filter((_, i) => i % 4 === 0); }"""
    for slider, (u, v) in enumerate([(5, 1), (5, 6)]):
        page.locator("input[type=range]").nth(slider).fill(str((u, v)[slider]))
        low, high = 251, 20  # red of paper and ink
        shown = (np.array([page.evaluate(read, k) for k in range(3)]) - low) / (high - low)
        wanted = [
            0.5 + wave(u, v, SIDE, SIDE) / 2,
            images[0, 0],
            single_fourier_attack(images[0, 0], (u, v), 0.6),
        ]
        for ours, theirs in zip(shown, wanted, strict=True):
            np.testing.assert_allclose(ours.reshape(SIDE, SIDE), theirs.numpy(), atol=0.01)
    ids = page.evaluate("[...document.querySelectorAll('input')].map(i => i.id)")
    assert len(set(ids)) == 2
    page.locator("button").click()
    assert "Image 2 of 2, a b" in page.locator("figure").inner_text()
    assert errors == []
    page.close()


def test_the_script_is_clean() -> None:
    text = markup.source("waves.js")
    assert "\n//" not in text
    assert "</script" not in text


# --- Static figures and tables --------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_tell_their_numbers(seeds: int) -> None:
    result = measured(seeds)
    maps = alt_of(figures.heat_maps(result))
    for name in ("none", lesson.OTHER, ABSUM):
        mean = np.delete(figures.mean_map(result, name).ravel(), 0).mean()
        assert f"{mean:.0%}" in maps
    points = figures.comparison(result)
    for name, method in lesson.METHODS.items():
        means = [float(value(result, name, q).mean()) for q in figures.PANELS]
        told = f"{name} {means[0]:.1%}, {means[1]:.1%}, {means[2]:.1%}"
        assert (told in alt_of(points)) == (not method.adversarial)
    sentence = "One seed: no interval." if seeds == 1 else "Mean over 3 seeds, bars"
    assert sentence in text_of(points)


def test_every_kind_has_a_look_of_its_own() -> None:
    looks = list(figures.FAMILIES.values())
    assert len(set(looks)) == len(looks)
    assert {m.kind for m in lesson.METHODS.values()} == set(figures.FAMILIES)


def test_tables_hold_means_over_seeds() -> None:
    result = measured()
    methods, routes = text_of(figures.methods_table(result)), text_of(figures.routes_table(result))
    for name in NETWORKS:
        assert name in methods
        assert f"{100 * value(result, name, 'noise accuracy').mean():.1f}" in methods
        adversarial = name in lesson.METHODS and lesson.METHODS[name].adversarial
        gain = f"{value(result, name, 'gain, fast waves').mean():.2f}"
        assert adversarial or gain in routes
    assert "AT" not in routes
    change = value(result, "none", lesson.PUT_BACK) - value(result, "none", "fast waves, worst")
    assert f"{t_interval(list(100 * change)).mean:+.1f}" in routes


def test_variants_are_differences_to_plain_training() -> None:
    result = measured()
    table = text_of(figures.variants_table(result))
    values = np.array(result.series["variants"].values)
    column = QUANTITIES.index("fast waves, worst")
    for place, name in enumerate(lesson.VARIANTS):
        assert name in table
        for row in (1, 2):
            change = values[:, place, row, column] - values[:, place, 0, column]
            found = t_interval(list(100 * change))
            assert f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]" in table
    main = value(result, ABSUM, "clean accuracy") - value(result, "none", "clean accuracy")
    assert f"{t_interval(list(100 * main)).mean:+.1f}" in table


def test_a_run_of_fewer_methods_is_drawn() -> None:
    result = measured(2, ("none", "decay 0.03", ABSUM))
    for draw in (figures.comparison, figures.methods_table, figures.heat_maps):
        assert "L1" not in text_of(draw(result))

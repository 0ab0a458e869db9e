"""Figures of the lesson on sharpness: they draw what was measured, and say it in words."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from fakes import synthetic
from IPython.display import HTML

from lmc_lessons.experiments import sharpness_adversarial_training as lesson
from lmc_lessons.results import Result, Series
from lmc_lessons.robustness.logistic import (
    Problem,
    adversarial_gradient,
    adversarial_loss,
    critical_radius,
    hessian,
)
from lmc_lessons.teaching.figures import sharpness_adversarial_training as figures

matplotlib.use("Agg")
FRACTIONS = [0.0, 0.3, 0.5, 0.8]
AXES: dict[str, dict[str, list[Any]]] = {
    "optima": {
        "optimum": list(lesson.OPTIMA),
        "quantity": list(lesson.QUANTITIES),
        "fraction": FRACTIONS,
    },
    "noises": {"noise": list(lesson.NOISES), "fraction": FRACTIONS},
    "secants": {"loss": ["L2", "L-infinity", "local entropy"], "h": [0.1, 0.01, 0.001]},
    "descents": {
        "run": list(lesson.RUNS),
        "quantity": list(lesson.WATCHED),
        "share of steps": [0.25, 0.75],
    },
    "network": {"quantity": list(lesson.OF_NETWORK), "radius": [0.0, 0.5, 1.5]},
}
DRAWN = [
    (figures.optima_figure, "optima"),
    (figures.relative_figure, "optima"),
    (figures.noise_figure, "noises"),
    (figures.secant_figure, "secants"),
    (figures.descent_figure, "descents"),
    (figures.network_figure, "network"),
]


def measured(seeds: int = 3, *names: str) -> Result:
    """What the figures read, drawn at random; all of it if no name is given."""
    draw = np.random.default_rng(0).random
    found = {
        name: Series(axes, (0.5 + draw((seeds, *map(len, axes.values())))).tolist())
        for name, axes in AXES.items()
        if not names or name in names
    }
    return synthetic(lesson.LESSON, found, seeds)


def alt(figure: HTML) -> str:
    found = re.search(r'(?:aria-label|alt)="([^"]*)"', figure.data)
    assert found
    return html.unescape(found[1])


@pytest.mark.parametrize(("draw", "needs"), DRAWN)
@pytest.mark.parametrize("seeds", [1, 3])
def test_figures_are_drawn_from_what_they_need(draw: Any, needs: str, seeds: int) -> None:
    figure = draw(measured(seeds, needs))
    assert "data:image/png" in figure.data
    assert str(seeds) in figure.data or "no interval" in figure.data
    assert any(character.isdigit() for character in alt(figure))
    with pytest.raises(KeyError):
        draw(measured(seeds, "none"))


def test_words_tell_the_numbers() -> None:
    result = measured()
    values = np.asarray(result.series["network"].values)
    said = ", ".join(f"{mean:.2g}" for mean in values[:, 0].mean(0))
    assert f"top eigenvalue: {said}" in alt(figures.network_figure(result))
    noise = np.exp(np.log(np.asarray(result.series["noises"].values)[:, 1, -1]).mean())
    assert f"random {noise:.2g}" in alt(figures.noise_figure(result))


def test_equal_loss_is_shown_only_where_every_task_met_it() -> None:
    result = measured()
    place = lesson.QUANTITIES.index("loss")
    for k, seed in enumerate(result.series["optima"].values):
        seed[2][place] = [0.4, 0.4, 0.4 + 0.1 * (k == 1), 0.4]
    values = figures.table_of(result, "equal loss", "trace")
    kept, shown = figures.met(result, values, FRACTIONS)
    assert shown == [0.0, 0.3]
    assert kept.shape == (3, 2)
    for seed in result.series["optima"].values:
        seed[2][place] = [0.4] * 4
    assert figures.met(result, values, FRACTIONS)[1] == FRACTIONS


def payload(figure: HTML) -> dict[str, Any]:
    found = re.search(r'mount\("[0-9a-f]+", (\{.*\}), 0\);', figure.data)
    assert found
    return json.loads(found[1])


def test_the_clouds_are_trained_against_every_radius() -> None:
    x, y = figures.two_clouds(12)
    data = payload(figures.clouds_figure(x, y, steps=3, largest=0.6))
    assert len(data["points"]) == 24
    radius = float(critical_radius(x, y))
    assert [step["epsilon"] for step in data["steps"]] == pytest.approx(
        [0, 0.3 * radius, 0.6 * radius], rel=1e-4
    )
    last = data["steps"][-1]
    top, _, length, loss = last["row"]
    w = length * torch.tensor(last["way"], dtype=torch.float64)
    problem = Problem(x, y, torch.tensor(0.6 * radius, dtype=torch.float64))
    assert float(adversarial_loss(problem, w)) == pytest.approx(loss, abs=1e-3)
    assert float(adversarial_gradient(problem, w).norm()) < 1e-2
    assert last["loss"][20] == pytest.approx(loss, abs=1e-4)
    assert top > data["steps"][0]["row"][0]


def test_the_spectrum_is_that_of_the_hessian() -> None:
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(1, 9, 4, generator=stream, dtype=torch.float64)
    y = torch.where(torch.arange(9) % 2 == 0, 1.0, -1.0).double()[None]
    w = torch.randn(2, 4, generator=stream, dtype=torch.float64)
    problem = Problem(x, y, torch.tensor([0.0, 0.5], dtype=torch.float64))
    data = payload(figures.spectrum_figure(problem, w, [0.0, 0.3]))
    for curve, frozen in zip(data["curves"], (False, True), strict=True):
        exact = torch.linalg.eigvalsh(hessian(problem, w, frozen=frozen)).flip(-1)
        expected = exact.clamp_min(1e-5).log10()
        assert torch.allclose(torch.tensor(curve["y"], dtype=torch.float64), expected, atol=1e-3)
    assert data["series"][1]["y"][0] == -5, "without an attack nothing is lifted"


@pytest.mark.parametrize("width", [1000, 390])
def test_the_slider_moves_points_curve_and_numbers(
    browser: Any, tmp_path: Path, width: int
) -> None:
    figure = figures.clouds_figure(*figures.two_clouds(8), steps=4)
    data, errors = payload(figure), []
    file = tmp_path / "page.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><body>{figure.data}', encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(file.as_uri())
    slider = page.locator("input[type=range]")
    slider.wait_for()
    assert page.locator(".lmc-chart").first.locator("line.lmc-rule").count() == 2
    slider.press("End")
    shown = page.locator("tbody tr").nth(1).locator("td").all()
    assert [float(cell.get_attribute("data-value")) for cell in shown] == data["steps"][-1]["row"]
    before = page.locator(".lmc-chart").first.inner_html()
    slider.press("Home")
    assert page.locator(".lmc-chart").first.inner_html() != before
    assert page.locator(".lmc-chart").first.locator("line.lmc-rule").count() == 0
    assert page.evaluate("document.scrollingElement.scrollWidth - innerWidth") <= 0
    assert errors == []
    page.close()

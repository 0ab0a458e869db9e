"""Figures of the lesson: words whose numbers come from data, a network that runs in the page."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from fakes import synthetic
from IPython.display import HTML
from torch import Tensor

from lmc_lessons.models import ModelConfig, Params, build, initial, predict
from lmc_lessons.results import Result, Series
from lmc_lessons.robustness.attacks import loss_gradient, margin_loss
from lmc_lessons.robustness.power_law import cdf_slope, independent_gaps
from lmc_lessons.teaching.figures import adversarial_examples as figures

matplotlib.use("Agg")

CONFIG = ModelConfig("mlp", (1, 6, 5), 4, width=12, depth=2)
RADII = [0.001, 0.002, 0.004, 0.008, 0.016]
NETWORKS = ["untrained", "trained", "adversarial", "random data"]


def network() -> tuple[Params, Any]:
    params = {name: 3 * tensor for name, tensor in initial(CONFIG, 0).items()}
    return params, lambda x: predict(build(CONFIG), params, x)


def images() -> Tensor:
    return torch.rand(3, 1, 6, 5, generator=torch.Generator().manual_seed(1))


def alt(figure: HTML) -> str:
    found = re.search(r'(?:alt|aria-label)="([^"]*)"', str(figure.data))
    assert found
    return html.unescape(found[1])


def result(exponent: float = 1.0) -> Result:
    curve = [min(1.0, 20 * r**exponent) for r in RADII]
    per_seed = [[[c * (1 + k) for c in curve] for k in range(2)] for _ in NETWORKS]
    attacks = ["FGSM", "gap"]
    sweep = [[0.9, 0.5, 0.1 * (v + 1)] for v in range(4)]
    measured: dict[str, Any] = {
        "error": Series(
            {"network": NETWORKS, "attack": attacks, "radius": RADII}, [per_seed, per_seed]
        ),
        "sweep": Series(
            {"network": list(figures.VICTIM_NAMES), "radius": [0.1, 0.5, 1.0]}, [sweep, sweep]
        ),
        "trained_FGSM_exponent": [1.25, 1.25],
    }
    return synthetic("adversarial-examples", measured, 2)


def test_slopes_between_radii_are_those_of_the_law() -> None:
    for exponent in (0.8, 1.0):
        found = figures.local_slopes(result(exponent), "trained")
        assert len(found) == len(RADII) - 1
        assert [slope for _, slope in found] == pytest.approx([exponent] * 4)
        shares = [share for share, _ in found]
        assert shares[0] == pytest.approx(20 * (RADII[0] * RADII[1]) ** (exponent / 2))


def test_radii_without_errors_have_no_slope() -> None:
    found = result()
    for seed in found.series["error"].values:
        seed[1][0][0] = 0.0
    assert len(figures.local_slopes(found, "trained")) == len(RADII) - 2


def test_texts_tell_the_numbers() -> None:
    assert "Fitted exponents: trained 1.25." in alt(figures.error_figure(result()))
    assert "trained starts at 1.00 and reaches 1.00" in alt(figures.slopes_figure(result()))
    swept = alt(figures.sweep_figure(result()))
    assert "trained 10%, adversarially trained 20%" in swept
    assert "staircase at the input 40%" in swept
    assert "Mean over 2 seeds" in str(figures.sweep_figure(result()).data)


def test_a_result_without_fits_says_so() -> None:
    found = result()
    del found.metrics["trained_FGSM_exponent"]
    assert "Fitted exponents: none." in alt(figures.error_figure(found))


@pytest.mark.parametrize("place", [2, 3, 4])
def test_exact_slopes_are_those_of_many_samples(place: int) -> None:
    gaps = independent_gaps(200_000, 10, seed=1)[:, place - 2]
    assert figures.exact_slope(10, place) == pytest.approx(cdf_slope(gaps), abs=0.06)


def test_layers_are_in_order() -> None:
    params, _ = network()
    shapes = [tuple(w.shape) for w, _ in figures.layers_of(params)]
    assert shapes == [(12, 30), (12, 12), (4, 12)]


def test_the_network_in_the_page_answers_as_torch_does(browser: Any, tmp_path: Path) -> None:
    params, f = network()
    x = (images() * 255).round() / 255
    y = f(x).argmax(-1)
    figure = figures.attack_figure(f, params, x, y, "abcd", reach=0.2, start=0.1)
    file = tmp_path / "page.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><body>{figure.data}', encoding="utf-8")
    page = browser.new_page(viewport={"width": 900, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(file.as_uri())
    gradient, _, _ = loss_gradient(f, x, y, margin_loss)
    for image in range(2):
        moved = (x + 0.1 * gradient.sign()).clamp(0, 1)
        expected = 100 * f(moved)[image].softmax(-1)
        page.wait_for_function(f"document.body.innerText.includes('Image {image + 1} of 3')")
        shown = page.locator(".lmc-bars").first.locator(".lmc-row > span:last-child")
        texts = [shown.nth(k).inner_text() for k in range(4)]
        given = [int(text.split()[0]) for text in texts]
        np.testing.assert_allclose(given, expected.detach().numpy(), atol=1.0)
        page.get_by_role("button", name="Next image").click()
    page.get_by_role("slider").focus()
    page.keyboard.press("Home")
    clean = [page.locator(".lmc-bars").nth(k).inner_text() for k in range(2)]
    assert clean[0].split("\n")[-8:] == clean[1].split("\n")[-8:], "no step: one image"
    assert page.locator("output").first.inner_text() == "0.000"
    page.close()
    assert errors == []


def test_the_fallback_tells_what_the_figure_shows() -> None:
    params, f = network()
    x = images()
    y = f(x).argmax(-1)
    figure = figures.attack_figure(f, params, x, y, "abcd", start=0.0)
    clean = float(f(x)[0].softmax(-1)[y[0]])
    assert alt(figure).count(f"{clean:.0%}") == 2, "without a step both are the clean image"

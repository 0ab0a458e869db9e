"""Power laws: closed forms, brute force, and the order in which definitions must agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import beta, kstest, linregress
from torch import Tensor

from lmc_lessons.robustness.attacks import L2, LInf, fgsm, margin_loss
from lmc_lessons.robustness.power_law import (
    adversarial_error,
    along,
    caught_by,
    cdf_slope,
    dual_norm,
    fit_power,
    independent_gaps,
    linear_radius,
    logit_gaps,
    share_below,
)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=stream(seed), dtype=torch.float64)


WEIGHT = drawn(6, 4, seed=1)


def linear(x: Tensor) -> Tensor:
    return x @ WEIGHT


# Gaps


def test_gaps_are_the_sorted_differences() -> None:
    logits = torch.tensor([[1.0, 5.0, 2.0], [0.0, 0.0, -3.0]])
    assert logit_gaps(logits).tolist() == [[3.0, 4.0], [0.0, 3.0]]


def test_gaps_do_not_know_the_order_of_the_classes_nor_a_shift() -> None:
    logits = drawn(2, 5, 7)
    moved = logits[..., torch.randperm(7, generator=stream(2))] + drawn(2, 5, 1, seed=3)
    torch.testing.assert_close(logit_gaps(logits), logit_gaps(moved))


def test_a_gap_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="at least 2 classes"):
        logit_gaps(torch.zeros(3, 1))


def test_the_rival_in_place_two_gives_minus_the_margin() -> None:
    logits, y = drawn(20, 5), torch.arange(20) % 5
    torch.testing.assert_close(caught_by(logits, y), margin_loss(logits, y))


@pytest.mark.parametrize("place", [2, 3, 5])
def test_the_rival_is_the_one_in_that_place(place: int) -> None:
    logits, y = drawn(20, 5), torch.arange(20) % 5
    for row, label, found in zip(logits, y, caught_by(logits, y, place), strict=True):
        others = sorted((v for k, v in enumerate(row.tolist()) if k != label), reverse=True)
        assert math.isclose(float(found), others[place - 2] - float(row[label]))


@pytest.mark.parametrize("place", [1, 6])
def test_a_place_must_exist(place: int) -> None:
    with pytest.raises(ValueError, match="place must be in"):
        caught_by(drawn(3, 5), torch.arange(3), place)


# Radii


def test_dual_norms_are_the_sum_and_the_length() -> None:
    gradient = drawn(3, 4, 2, 5)
    torch.testing.assert_close(dual_norm(gradient, LInf(0.3), 2), gradient.abs().flatten(2).sum(-1))
    torch.testing.assert_close(dual_norm(gradient, L2(9.0), 2), gradient.flatten(2).norm(dim=-1))


@pytest.mark.parametrize("kind", [LInf, L2])
def test_no_step_of_length_one_beats_the_dual_norm(kind: type[LInf] | type[L2]) -> None:
    gradient, steps = drawn(6), drawn(5000, 6, seed=4)
    size = steps.abs().amax(1) if kind is LInf else steps.norm(dim=1)
    gained = (steps / size[:, None]) @ gradient
    bound = dual_norm(gradient[None], kind(1.0), 1)
    assert float(gained.max()) <= float(bound)
    assert float(gained.max()) > 0.6 * float(bound)


@pytest.mark.parametrize("kind", [LInf, L2])
def test_radius_of_a_linear_map_is_where_the_second_class_draws_level(
    kind: type[LInf] | type[L2],
) -> None:
    x = torch.rand(30, 6, generator=stream(5), dtype=torch.float64)
    found = linear_radius(linear, x, kind(1.0, bounded=False))
    torch.testing.assert_close(found.gap, logit_gaps(linear(x))[:, 0])
    order = linear(x).argsort(-1, descending=True)
    difference = WEIGHT[:, order[:, 1]].T - WEIGHT[:, order[:, 0]].T
    step = kind(1.0).steepest(difference, 1) * found.radius[:, None]
    logits = linear(x + step)
    pairs = logits.gather(1, order[:, :2])
    torch.testing.assert_close(pairs[:, 0], pairs[:, 1])


def test_radius_does_not_know_the_scale_of_the_logits() -> None:
    x = torch.rand(30, 6, generator=stream(5), dtype=torch.float64)
    threat = LInf(1.0)
    louder = linear_radius(lambda z: 1000 * linear(z), x, threat)
    torch.testing.assert_close(louder.radius, linear_radius(linear, x, threat).radius)
    torch.testing.assert_close(louder.gap, 1000 * linear_radius(linear, x, threat).gap)


def test_leading_axes_are_kept() -> None:
    x = torch.rand(2, 3, 6, generator=stream(6), dtype=torch.float64)
    whole = linear_radius(linear, x, LInf(1.0)).radius
    for k in range(2):
        torch.testing.assert_close(whole[k], linear_radius(linear, x[k], LInf(1.0)).radius)


# Errors


def test_error_of_two_classes_is_the_distribution_of_the_radius() -> None:
    """With two classes and a linear map the theorem is exact."""
    x = torch.rand(400, 6, generator=stream(7), dtype=torch.float64)
    two = lambda z: z @ WEIGHT[:, :2]  # noqa: E731
    y = two(x).argmax(-1)
    threats = [LInf(e, bounded=False) for e in (0.01, 0.05, 0.2, 1.0)]
    errors = adversarial_error(two, x, y, threats, fgsm)
    radius = linear_radius(two, x, threats[0]).radius
    assert torch.equal(errors, share_below(radius, [t.epsilon for t in threats]))
    assert float(errors[0]) < float(errors[-1])


def test_only_samples_read_correctly_count() -> None:
    x = torch.rand(50, 6, generator=stream(8), dtype=torch.float64)
    y = linear(x).argmax(-1)
    wrong = y.clone()
    wrong[:20] = (y[:20] + 1) % 4
    threats = [LInf(0.0), LInf(0.1, bounded=False)]
    found = adversarial_error(linear, x, wrong, threats, fgsm)
    assert float(found[0]) == 0
    assert found.tolist() == adversarial_error(linear, x[20:], y[20:], threats, fgsm).tolist()


def test_places_are_lost_one_after_the_other() -> None:
    x = torch.rand(200, 6, generator=stream(9), dtype=torch.float64)
    y = linear(x).argmax(-1)
    threats = [LInf(e, bounded=False) for e in (0.05, 0.2, 0.6)]
    lost = [adversarial_error(linear, x, y, threats, fgsm, top=k) for k in (1, 2, 3)]
    assert bool((lost[0] >= lost[1]).all())
    assert bool((lost[1] >= lost[2]).all())
    assert float(lost[1][-1]) > 0


def test_one_direction_at_all_radii_is_fgsm() -> None:
    x = torch.rand(40, 6, generator=stream(10), dtype=torch.float64)
    y, unit = linear(x).argmax(-1), LInf(1.0, bounded=False)
    direction = fgsm(linear, x, y, unit) - x
    threats = [LInf(e, bounded=False) for e in (0.05, 0.2)]
    torch.testing.assert_close(
        adversarial_error(linear, x, y, threats, along(direction)),
        adversarial_error(linear, x, y, threats, fgsm),
    )


def test_nothing_to_lose_is_an_error() -> None:
    x = torch.rand(4, 6, generator=stream(11), dtype=torch.float64)
    with pytest.raises(ValueError, match="reads no sample correctly"):
        adversarial_error(linear, x, (linear(x).argmax(-1) + 1) % 4, [LInf(0.1)], fgsm)
    with pytest.raises(ValueError, match="place must be in"):
        adversarial_error(linear, x, linear(x).argmax(-1), [LInf(0.1)], fgsm, top=0)


# Fits


@pytest.mark.parametrize("exponent", [0.7, 1.0, 2.0])
def test_a_pure_power_law_is_found_exactly(exponent: float) -> None:
    radii = [0.001 * 1.5**k for k in range(12)]
    fit = fit_power(radii, [3 * r**exponent for r in radii], low=0.0, high=1.0)
    assert math.isclose(fit.exponent, exponent)
    assert math.isclose(fit.prefactor, 3)


def test_the_fit_is_that_of_scipy_and_sees_only_its_window() -> None:
    radii = [0.001 * 1.5**k for k in range(14)]
    errors = [1 - math.exp(-5 * r) for r in radii]
    fit = fit_power(radii, errors, low=0.01, high=0.2)
    inside = [(r, e) for r, e in zip(radii, errors, strict=True) if 0.01 < e < 0.2]
    line = linregress(*np.log(np.asarray(inside)).T)
    assert fit.used == len(inside)
    assert math.isclose(fit.exponent, line.slope)
    assert math.isclose(fit.prefactor, math.exp(line.intercept))


@pytest.mark.parametrize(
    ("radii", "errors", "message"),
    [
        ([0.1, 0.2], [0.1, 0.2], "3 are needed"),
        ([0.1, 0.2, 0.3], [0.0, 0.2, 0.3], "3 are needed"),
        ([0.0, 0.2, 0.3], [0.1, 0.2, 0.3], "positive radius"),
        ([0.1, 0.2, 0.3], [0.1, 0.2], "one positive radius per error"),
    ],
)
def test_fit_refuses(radii: list[float], errors: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_power(radii, errors, low=0.0, high=1.0)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_slope_of_a_distribution_that_is_a_power(power: int) -> None:
    """The j-th power root of a uniform number has the distribution t to the j."""
    uniform = (torch.arange(1, 200_001, dtype=torch.float64)) / 200_000
    assert math.isclose(cdf_slope(uniform ** (1 / power)), power, rel_tol=1e-3)


def test_slope_needs_values() -> None:
    with pytest.raises(ValueError, match="3 values"):
        cdf_slope(torch.zeros(100))
    with pytest.raises(ValueError, match="3 values"):
        cdf_slope(torch.rand(10, generator=stream(1)))


@pytest.mark.parametrize("place", [2, 3, 4])
def test_independent_gaps_have_the_distribution_of_spacings(place: int) -> None:
    gaps = independent_gaps(20_000, 10, seed=3)[:, place - 2]
    assert kstest(gaps.numpy(), beta(place - 1, 12 - place).cdf).pvalue > 0.001
    assert torch.equal(independent_gaps(50, 10, 3), independent_gaps(50, 10, 3))


def test_share_below_counts() -> None:
    values = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, torch.inf]])
    assert share_below(values, [0.2, 2.5]).tolist() == [[0.25, 0.0], [1.0, 0.5]]


def test_a_gap_that_never_gets_small_has_a_slope_all_the_same() -> None:
    """An untrained network may say the same of every input: the slope is then steep, not lost."""
    values = 5 + 0.001 * torch.rand(2000, generator=stream(4), dtype=torch.float64)
    assert cdf_slope(values) > 1000

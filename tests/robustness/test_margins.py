"""Margins: closed forms against another solver, gradients against finite differences."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.special import lambertw, wrightomega
from torch import Tensor

from lmc_lessons.evaluation import logit_margins
from lmc_lessons.robustness.margins import (
    GradientNorms,
    check_logits,
    cross_entropy_margin,
    crossing_time,
    gradient_norms,
    lambert_log,
    margin_per_gradient,
    ovr_loss,
    ovr_margin,
    potentially_misclassified,
    shares,
)


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- The loss -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), max_size=2),
    classes=st.integers(2, 7),
    scale=st.sampled_from([0.0, 1.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_the_loss_is_one_logistic_loss_per_class(
    lead: list[int], classes: int, scale: float, seed: int
) -> None:
    stream = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(*lead, classes, generator=stream, dtype=torch.float64)
    y = torch.randint(0, classes, tuple(lead), generator=stream)
    found = ovr_loss(logits, y)
    assert found.shape == tuple(lead)
    rows = zip(logits.reshape(-1, classes).tolist(), y.flatten().tolist(), strict=True)
    for value, (z, label) in zip(found.flatten().tolist(), rows, strict=True):
        terms = [math.log1p(math.exp(-u if k == label else u)) for k, u in enumerate(z)]
        assert value == pytest.approx(math.fsum(terms), rel=1e-12)
        shifted = -z[label] + math.fsum(math.log1p(math.exp(u)) for u in z)
        assert value == pytest.approx(shifted, rel=1e-9, abs=1e-9)


def test_the_gradient_is_a_sigmoid_per_class() -> None:
    logits = float64(2.0, -1.0, 0.5).unsqueeze(0).requires_grad_()
    (slope,) = torch.autograd.grad(ovr_loss(logits, torch.tensor([1])).sum(), logits)
    expected = torch.sigmoid(logits.detach())
    expected[0, 1] -= 1
    torch.testing.assert_close(slope, expected)


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_at_zero_the_gradient_has_length_half_the_number_of_classes(classes: int) -> None:
    logits = torch.zeros(1, classes, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(ovr_loss(logits, torch.tensor([0])).sum(), logits)
    assert float(slope.abs().sum()) == pytest.approx(classes / 2)


def test_extreme_logits_overflow_nowhere() -> None:
    y = torch.tensor([0])
    right, wrong = float64(1e4, -1e4).unsqueeze(0), float64(-1e4, 1e4).unsqueeze(0)
    assert ovr_loss(right, y).tolist() == [0.0]
    assert ovr_loss(wrong, y).tolist() == [2e4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_that_of_the_logits(dtype: torch.dtype) -> None:
    logits = torch.tensor([[3.1, -0.7, 0.2]]).to(dtype)
    found, y = ovr_loss(logits, torch.tensor([0])), torch.tensor([0])
    assert found.dtype == torch.float32
    assert torch.equal(found, ovr_loss(logits.float(), y))


@pytest.mark.parametrize("shape", [(3, 1), (1,), ()])
def test_one_class_has_no_margin(shape: tuple[int, ...]) -> None:
    logits = torch.zeros(shape)
    with pytest.raises(ValueError, match="at least 2 classes, got logits"):
        check_logits(logits)


def test_logits_that_are_no_numbers_are_refused() -> None:
    logits = torch.zeros(2, 3)
    logits[1, 1] = math.nan
    with pytest.raises(ValueError, match="logits must be numbers, got 1 NaN") as caught:
        ovr_loss(logits, torch.tensor([0, 1]))
    assert "\n" not in str(caught.value)


# --- Closed forms ---------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [-700.0, -30.0, -1.0, 0.0, 0.999, 1.0, 1.5, 30.0, 700.0, 1e6, 1e300])
def test_the_root_is_lambert_s(a: float) -> None:
    v = lambert_log(float64(a))
    expected = math.log(wrightomega(a)) if a > -700 else a
    assert float(v) == pytest.approx(expected, rel=1e-12, abs=1e-12)
    if abs(a) < 700:
        assert float(v.exp()) == pytest.approx(float(lambertw(math.exp(a)).real), rel=1e-10)


def test_the_root_keeps_the_shape_and_needs_numbers() -> None:
    assert lambert_log(torch.zeros(2, 3)).shape == (2, 3)
    assert lambert_log(torch.zeros(2)).dtype == torch.float64
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="finite numbers"):
            lambert_log(torch.tensor([0.0, bad]))


def solved(slope: Any, classes: int, times: list[float]) -> Any:
    """The logits under gradient flow, with the gradient written out in NumPy."""
    found = solve_ivp(
        lambda _, z: slope(z),
        (0, times[-1]),
        np.zeros(classes),
        "Radau",
        times,
        rtol=1e-11,
        atol=1e-12,
    )
    return found.y


@pytest.mark.parametrize(("weight", "classes"), [(1, 10), (0.3, 2), (20, 5)])
def test_margins_solve_the_gradient_flow(weight: float, classes: int) -> None:
    times = [0.1, 1.0, 10.0, 100.0]
    one = np.eye(classes)[2 % classes]

    def plain(z: Any) -> Any:
        p = np.exp(z - z.max())
        return weight * (one - p / p.sum())

    def other(z: Any) -> Any:
        return weight * (one - 1 / (1 + np.exp(-z)))

    for slope, closed in (
        (plain, cross_entropy_margin(float64(*times), weight=weight, classes=classes)),
        (other, ovr_margin(float64(*times), weight=weight)),
    ):
        logits = torch.tensor(solved(slope, classes, times).T)
        label = torch.full((len(times),), 2 % classes)
        torch.testing.assert_close(closed, logit_margins(logits, label), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_margins_solve_their_equations(classes: int) -> None:
    times = float64(0.0, 1e-6, 0.5, 7.0, 1e3, 1e6)
    m = cross_entropy_margin(times, weight=3.0, classes=classes)
    torch.testing.assert_close(m.exp() + (classes - 1) * m, 3 * classes * times + 1)
    h = ovr_margin(times, weight=3.0) / 2
    torch.testing.assert_close(h.exp() + h, 3 * times + 1)
    assert [abs(float(m[0])), abs(float(h[0]))] == pytest.approx([0, 0], abs=1e-12)


@pytest.mark.parametrize("weight", [0.3, 1.0, 100.0])
def test_the_ratio_tends_to_two(weight: float) -> None:
    times = float64(1e10, 1e50, 1e200, 1e300)
    ratio = ovr_margin(times) / cross_entropy_margin(times, weight=weight)
    off = (ratio - 2).abs()
    assert bool((off.diff() < 0).all())
    # to first order: two logarithms, and the weight only adds to one of them
    expected = 2 / (1 + math.log(10 * weight) / times.log())
    torch.testing.assert_close(ratio[1:], expected[1:], rtol=1e-3, atol=0)


@pytest.mark.parametrize(("weight", "expected"), [(1, 7.01), (3, 32.8), (10, 106.4), (100, 1011.7)])
def test_crossings_of_ten_classes(weight: float, expected: float) -> None:
    """Found by a scan of both closed forms."""
    time = crossing_time(weight)
    assert time == pytest.approx(expected, rel=1e-3)
    grid = torch.logspace(-2, 5, 20_001, dtype=torch.float64)
    ahead = ovr_margin(grid) > cross_entropy_margin(grid, weight=weight)
    last_behind = int((~ahead).nonzero()[-1])
    assert float(grid[last_behind]) <= time <= float(grid[last_behind + 1])


@pytest.mark.parametrize("weight", [0.05, 0.5])
def test_a_small_weight_never_leads(weight: float) -> None:
    assert crossing_time(weight) == 0.0
    grid = torch.logspace(-3, 5, 2001, dtype=torch.float64)
    assert bool((ovr_margin(grid) > cross_entropy_margin(grid, weight=weight)).all())


def test_the_last_of_two_crossings_counts() -> None:
    """With a weight a little below one, the lead changes twice."""
    time = crossing_time(0.9)
    grid = torch.logspace(-3, 3, 20_001, dtype=torch.float64)
    ahead = ovr_margin(grid) > cross_entropy_margin(grid, weight=0.9)
    changes = (ahead[1:] != ahead[:-1]).nonzero().flatten()
    assert len(changes) == 2
    assert float(grid[changes[1]]) == pytest.approx(time, rel=1e-2)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: ovr_margin(float64(1.0), weight=0.0), "weight must be > 0 .* got 0.0 and 2"),
        (lambda: ovr_margin(float64(-1.0)), "times must be numbers >= 0"),
        (lambda: ovr_margin(float64(math.nan)), "times must be numbers >= 0"),
        (lambda: ovr_margin(torch.zeros(0)), "times must be numbers >= 0"),
        (lambda: cross_entropy_margin(float64(1.0), classes=1), "classes >= 2, got 1.0 and 1"),
        (lambda: cross_entropy_margin(float64(1.0), weight=math.inf), "weight must be > 0"),
        (lambda: crossing_time(-1.0), "weight must be > 0 .* got -1.0 and 10"),
        (lambda: crossing_time(1.0, classes=0), "got 1.0 and 0"),
    ],
)
def test_flows_that_make_no_sense_are_refused(call: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- What a margin is worth -----------------------------------------------------------------------

WEIGHT = torch.tensor([[2.0, -1.0], [0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)


def linear(x: Tensor) -> Tensor:
    return x @ WEIGHT.T


def test_gradients_of_a_linear_model_are_its_rows() -> None:
    x = torch.tensor([[0.8, 0.1], [0.1, 0.9]], dtype=torch.float64)
    found = gradient_norms(linear, x, torch.tensor([0, 0]))
    # the runner-up is class 2 for the first input, class 1 for the second
    assert found.true.tolist() == [3.0, 3.0]
    assert found.other.tolist() == [1.0, 1.0]
    assert found.gap.tolist() == [3.0, 4.0]


def test_gradient_norms_are_what_a_logit_gains_per_unit_of_the_radius() -> None:
    stream = torch.Generator().manual_seed(3)
    first = torch.randn(6, 4, generator=stream, dtype=torch.float64)
    second = torch.randn(3, 6, generator=stream, dtype=torch.float64)

    def network(x: Tensor) -> Tensor:
        return torch.tanh(x @ first.T) @ second.T

    x = torch.rand(2, 5, 4, generator=stream, dtype=torch.float64)
    y = torch.randint(0, 3, (2, 5), generator=stream)
    found, step = gradient_norms(network, x, y), 1e-6
    own = y.unsqueeze(-1)
    margin = logit_margins(network(x), y)
    best_true, best_gap = torch.full_like(margin, -math.inf), torch.full_like(margin, -math.inf)
    for signs in itertools.product((-1.0, 1.0), repeat=4):  # every corner of the little cube
        z = network(x + step * float64(*signs))
        gain = (z - network(x)).gather(-1, own).squeeze(-1)
        best_true = torch.maximum(best_true, gain / step)
        best_gap = torch.maximum(best_gap, (logit_margins(z, y) - margin) / step)
    torch.testing.assert_close(found.true, best_true, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.gap, best_gap, rtol=1e-4, atol=1e-4)


def test_gradients_collect_nowhere() -> None:
    weight = WEIGHT.clone().requires_grad_()
    gradient_norms(lambda x: x @ weight.T, torch.rand(3, 2).double(), torch.tensor([0, 1, 2]))
    assert weight.grad is None


def test_margin_per_gradient_knows_no_scale() -> None:
    margins, norms = float64(1.0, 3.0, 8.0), float64(2.0, 2.0, 5.0)
    assert margin_per_gradient(margins, norms) == pytest.approx(1.0)
    assert margin_per_gradient(10 * margins, 10 * norms) == pytest.approx(1.0)


@pytest.mark.parametrize("norms", [float64(0.0, 0.0), float64(1.0)])
def test_margins_without_gradients_have_no_ratio(norms: Tensor) -> None:
    with pytest.raises(ValueError, match="one norm per margin, not all zero"):
        margin_per_gradient(float64(1.0, 2.0), norms)


def test_a_linear_margin_that_no_step_can_undo_is_safe() -> None:
    """The bound adds both norms, so it is never smaller than the exact one of the gap."""
    x = torch.rand(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = linear(x).argmax(1)
    norms, margins = gradient_norms(linear, x, y), logit_margins(linear(x), y)
    unsafe = potentially_misclassified(margins, norms, 0.1)
    corners = [x + 0.1 * float64(*signs) for signs in itertools.product((-1.0, 1.0), repeat=2)]
    flipped = torch.stack([linear(c).argmax(1) != y for c in corners]).any(0)
    assert 0 < int(flipped.sum()) < int(unsafe.sum()) < len(y)
    assert not bool((flipped & ~unsafe).any())


@pytest.mark.parametrize("epsilon", [-0.1, math.nan, math.inf])
def test_a_radius_that_is_none_is_refused(epsilon: float) -> None:
    norms = GradientNorms(*(float64(1.0),) * 3)
    with pytest.raises(ValueError, match="epsilon must be a number >= 0"):
        potentially_misclassified(float64(1.0), norms, epsilon)


def test_shares_count_every_value_once() -> None:
    values = float64(-5.0, 0.0, 0.5, 0.99, 1.0, 7.0, 1e9, -math.inf)
    assert shares(values, [0.0, 1.0, 8.0]) == [0.25, 0.375, 0.25, 0.125]


@pytest.mark.parametrize("edges", [[], [1.0, 1.0], [2.0, 1.0]])
def test_edges_that_do_not_grow_are_refused(edges: list[float]) -> None:
    with pytest.raises(ValueError, match="values and growing edges"):
        shares(float64(1.0), edges)
    with pytest.raises(ValueError, match="values and growing edges, got 0"):
        shares(torch.zeros(0), [0.0, 1.0])

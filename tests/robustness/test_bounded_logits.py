"""Heads against SciPy and finite differences, optima against a search that knows no formula."""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.special import expit, logsumexp
from stacked import CLASSES, SHAPE, batch, gradient, network_of, starts
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.models import ModelConfig, build, predict_stacked
from lmc_lessons.robustness.attacks import LInf, margin_loss
from lmc_lessons.robustness.bounded_logits import (
    PEAK,
    U_STAR,
    Bounded,
    Head,
    Kind,
    band,
    beyond,
    blf,
    blf_slope,
    cross_entropy_of,
    descend,
    head_named,
    identity,
    matched_strength,
    monotone_blf,
    optimum,
    stationary_point,
    straight_through,
    tanh_head,
    with_head,
)
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining, Standard

HEADS: dict[str, Head] = {
    "none": identity,
    "tanh": partial(tanh_head, bound=2.0),
    "blf": partial(blf, bound=2.0),
    "monotone": partial(monotone_blf, bound=2.0),
}
MLP = ModelConfig("mlp", SHAPE, CLASSES, 6, 2)
SEEDS = (0, 4, 7)
numbers = st.floats(-30, 30, allow_nan=False)


def spread(count: int = 241, reach: float = 6.0) -> Tensor:
    return torch.linspace(-reach, reach, count, dtype=torch.float64)


# --- Heads ----------------------------------------------------------------------------------------


def test_the_peak_is_where_scipy_finds_it() -> None:
    found = brentq(lambda u: u * math.tanh(u / 2) - 1, 1, 2, xtol=1e-15)
    assert pytest.approx(found, abs=1e-12) == U_STAR
    highest = minimize_scalar(lambda u: -u * expit(u) * expit(-u), bounds=(0, 5), method="bounded")
    assert highest.x == pytest.approx(U_STAR, abs=1e-4)
    assert -highest.fun == pytest.approx(PEAK, abs=1e-12)
    assert stationary_point() == pytest.approx(U_STAR, abs=1e-15)
    assert stationary_point(tolerance=0.5) != pytest.approx(U_STAR, abs=1e-4)


@pytest.mark.parametrize("bound", [0.3, 1.0, 5.0])
def test_blf_is_its_formula_in_both_conventions(bound: float) -> None:
    u = spread()
    gamma = bound / PEAK
    again = gamma * u / (4 * torch.cosh(u / 2) ** 2)
    assert torch.allclose(blf(u, bound), again, rtol=1e-13, atol=1e-15)
    assert float(
        blf(torch.tensor([U_STAR, -U_STAR], dtype=torch.float64), bound)[0]
    ) == pytest.approx(bound)
    assert float(blf(u, bound).abs().max()) <= bound
    assert torch.allclose(blf(-u, bound), -blf(u, bound), rtol=1e-14), "odd"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_blf_does_not_overflow(dtype: torch.dtype) -> None:
    far = torch.tensor([-1e4, -800.0, 0.0, 800.0, 1e4], dtype=dtype)
    assert blf(far, 1.0).tolist() == [0, 0, 0, 0, 0]
    slope = blf_slope(far, 1.0)
    assert bool(slope.isfinite().all())
    assert float(slope[2]) == pytest.approx(1 / PEAK / 4)


def test_the_slope_is_that_of_finite_differences_and_of_autograd() -> None:
    u, step = spread(), 1e-6
    differences = (blf(u + step, 3.0) - blf(u - step, 3.0)) / (2 * step)
    assert torch.allclose(blf_slope(u, 3.0), differences, atol=1e-8)
    moving = u.clone().requires_grad_()
    (slope,) = torch.autograd.grad(blf(moving, 3.0).sum(), moving)
    assert torch.allclose(blf_slope(u, 3.0), slope, atol=1e-13)
    peak = torch.tensor([-U_STAR, U_STAR], dtype=torch.float64)
    assert float(blf_slope(peak, 3.0).abs().max()) < 1e-14
    assert bool((blf_slope(peak * 1.01, 3.0) < 0).all()), "beyond the peak it falls"


@pytest.mark.parametrize("name", HEADS)
def test_heads_pass_the_gradient_check(name: str) -> None:
    u = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(HEADS[name], (3 * u.requires_grad_(),))


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_out_in_single(name: str, dtype: torch.dtype) -> None:
    u = spread(20).to(dtype)
    assert HEADS[name](u).dtype == torch.float32
    assert torch.equal(HEADS[name](u), HEADS[name](u.float()))


def test_tanh_never_reaches_its_bound() -> None:
    z = tanh_head(spread(reach=8), 4.0)
    assert float(z.abs().max()) < 4
    assert torch.equal(z, 4.0 * torch.tanh(spread(reach=8)))


@given(st.lists(numbers, min_size=2, max_size=6))
def test_the_extension_keeps_the_order_that_blf_loses(values: list[float]) -> None:
    u = torch.tensor(values, dtype=torch.float64).sort().values
    extended = monotone_blf(u, 2.0)
    assert bool((extended.diff() >= 0).all())
    inside = ~beyond(u)
    assert torch.equal(extended[inside], blf(u, 2.0)[inside])


def test_the_extension_is_continuous_and_climbs_by_its_bound_per_peak() -> None:
    edge = torch.tensor([U_STAR - 1e-9, U_STAR + 1e-9], dtype=torch.float64)
    assert float(monotone_blf(edge, 2.0).diff()) == pytest.approx(0, abs=1e-8)
    far = torch.tensor([2 * U_STAR, 3 * U_STAR], dtype=torch.float64)
    assert monotone_blf(far, 2.0).tolist() == pytest.approx([4, 6])
    assert monotone_blf(-far, 2.0).tolist() == pytest.approx([-4, -6])


def test_beyond_means_beyond_the_peak_on_either_side() -> None:
    u = torch.tensor([-1.6, -1.5, 0.0, 1.5, 1.6])
    assert beyond(u).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize("name", HEADS)
def test_straight_through_has_the_head_s_values_and_the_identity_s_gradient(name: str) -> None:
    u = spread(12).view(3, 4).requires_grad_()
    found = straight_through(HEADS[name], u)
    assert torch.equal(found, HEADS[name](u)), "exactly, not to rounding"
    weights = torch.arange(12.0).view(3, 4).double()
    (slope,) = torch.autograd.grad((weights * found).sum(), u)
    assert torch.equal(slope, weights)


def test_the_band_clips_and_lets_the_gradient_through() -> None:
    u = torch.tensor([[-9.0, 0.5, 9.0]]).requires_grad_()
    found = band(u)
    assert found.tolist() == [pytest.approx([-U_STAR, 0.5, U_STAR])]
    (slope,) = torch.autograd.grad(margin_loss(found, torch.tensor([2])).sum(), u)
    assert slope.tolist() == [[0, 1, -1]]


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("head", [tanh_head, blf, blf_slope, monotone_blf])
def test_a_bound_must_be_positive(head: Any, bound: float) -> None:
    with pytest.raises(ValueError, match=r"bound must be a number > 0, got"):
        head(torch.zeros(2, 3), bound)


@pytest.mark.parametrize("name", HEADS)
def test_heads_refuse_what_are_no_logits(name: str) -> None:
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        HEADS[name](torch.zeros(4, 1))
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        HEADS[name](torch.tensor(1.0))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="pre-logits must be finite, got NaN or infinity"):
            HEADS[name](torch.tensor([[0.0, bad]]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stationary_point(tolerance=0), "tolerance must be > 0, got 0"),
        (lambda: head_named("relu", 1.0), "head is 'relu', allowed: none, tanh, blf"),
        (lambda: head_named("blf", -2.0), "bound must be a number > 0, got -2.0"),
        (lambda: optimum("clipping", 1.0), "kind is 'clipping', allowed: plain, tanh, blf"),  # type: ignore[arg-type]
        (lambda: optimum("blf", 0.0), "bound must be a number > 0, got 0.0"),
        (lambda: optimum("squeezing", -0.1), "weight must be a number >= 0, got -0.1"),
        (lambda: optimum("smoothing", 1.0), r"alpha must be in \[0, 1\), got 1.0"),
        (lambda: optimum("plain", classes=1), "at least 2 classes, got 1"),
        (lambda: cross_entropy_of(1.0, 1), "at least 2 classes, got 1"),
        (lambda: matched_strength("blf", 0.0), "logit_norm must be a number > 0, got 0.0"),
        (lambda: matched_strength("plain", 1.0), "kind is 'plain', allowed: tanh, blf, squeezing"),
        (lambda: matched_strength("blf", 1.0, 1), "at least 2 classes, got 1"),
        (lambda: descend(identity, (), (0,)), "descend needs seeds and increasing times"),
        (lambda: descend(identity, (0,), (3, 1)), r"got \(0,\), \(3, 1\)"),
        (lambda: descend(identity, (0,), (-1, 1)), "increasing times >= 0"),
        (lambda: descend(identity, (0,), (0,), classes=1), "at least 2 classes, got 1"),
    ],
)
def test_bad_input_is_refused_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- Optima ---------------------------------------------------------------------------------------


def searched(kind: Kind, strength: float, classes: int) -> Any:
    """The best logits of one sample with true class 0, by a search over all of them."""
    target = np.zeros(classes)
    target[0] = 1.0
    if kind == "smoothing":
        target = (1 - strength) * target + strength / classes

    def loss(z: Any) -> float:
        penalty = strength / 2 * z @ z if kind == "squeezing" else 0.0
        return float(logsumexp(z) - target @ z + penalty)

    found = minimize(loss, np.zeros(classes), method="BFGS", options={"gtol": 1e-9}).x
    return found - found.mean() if kind == "smoothing" else found


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize(
    ("kind", "strength"),
    [("squeezing", 0.05), ("squeezing", 0.5), ("smoothing", 0.1), ("smoothing", 0.5)],
)
def test_penalised_optima_are_those_of_a_search(kind: Kind, strength: float, classes: int) -> None:
    z, found = searched(kind, strength, classes), optimum(kind, strength, classes)
    assert found.margin == pytest.approx(z[0] - z[1], rel=1e-4)
    assert found.logit_norm == pytest.approx(np.linalg.norm(z), rel=1e-4)
    assert found.pre_logit_norm == found.logit_norm
    assert found.cross_entropy == pytest.approx(logsumexp(z) - z[0], rel=1e-4)
    assert np.ptp(z[1:]) < 1e-4, "all wrong classes alike"


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("bound", [0.5, 1.0, 5.0])
def test_no_logits_within_the_bound_do_better(bound: float, classes: int) -> None:
    found = optimum("blf", bound, classes)
    stream = torch.Generator().manual_seed(1)
    z = bound * (2 * torch.rand(5000, classes, generator=stream, dtype=torch.float64) - 1)
    assert float(-z.log_softmax(-1)[:, 0].max()) > found.cross_entropy
    best = torch.full((1, classes), -U_STAR, dtype=torch.float64)
    best[0, 0] = U_STAR
    logits = blf(best, bound)
    assert float(-logits.log_softmax(-1)[0, 0]) == pytest.approx(found.cross_entropy)
    assert float(logits.norm()) == pytest.approx(found.logit_norm)
    assert float(best.norm()) == pytest.approx(found.pre_logit_norm)
    assert found._replace(pre_logit_norm=math.inf) == optimum("tanh", bound, classes)


def test_the_sheet_s_numbers() -> None:
    """Numbers for ten classes that were computed independently."""
    for kind, strength, margin, length in (
        ("squeezing", 0.05, 3.782, 3.588),
        ("squeezing", 0.5, 1.489, 1.413),
        ("smoothing", 0.1, 4.511, 4.279),
        ("smoothing", 0.5, 2.398, 2.275),
        ("blf", 1.0, 2.0, 3.162),
        ("blf", 5.0, 10.0, 15.81),
    ):
        found = optimum(kind, strength)  # type: ignore[arg-type]
        assert (found.margin, found.logit_norm) == pytest.approx((margin, length), rel=4e-4)
    assert optimum("blf", 1.0).pre_logit_norm == pytest.approx(4.881, abs=1e-3)
    assert optimum("blf", 1.0).cross_entropy == pytest.approx(0.7966, abs=1e-4)
    assert optimum("blf", 5.0).cross_entropy == pytest.approx(4.1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["plain", "squeezing", "smoothing"])
def test_without_a_bound_or_a_penalty_nothing_is_finite(kind: Kind) -> None:
    assert optimum(kind, 0.0) == (math.inf, math.inf, math.inf, 0.0)


@settings(deadline=None)
@given(st.floats(0.2, 12), st.sampled_from([2, 3, 10, 100]))
def test_matched_strengths_give_the_length_back(length: float, classes: int) -> None:
    for kind in ("tanh", "blf", "squeezing", "smoothing"):
        strength = matched_strength(kind, length, classes)
        found = optimum(kind, strength, classes)
        assert found.logit_norm == pytest.approx(length, rel=1e-6)


# --- Free pre-logits ------------------------------------------------------------------------------


def test_descent_is_plain_gradient_descent() -> None:
    found = descend(partial(blf, bound=1.0), (3, 8), (0, 1, 5), classes=4, learning_rate=0.7)
    assert found.shape == (2, 3, 4)
    for start, first, last in found:
        u = start.numpy()
        for step in range(1, 6):
            z = u * expit(u) * expit(-u) / PEAK
            p = np.exp(z - logsumexp(z))
            slope = expit(u) * expit(-u) * (1 - u * np.tanh(u / 2)) / PEAK
            u = u - 0.7 * (p - np.eye(4)[0]) * slope
            if step == 1:
                assert first.numpy() == pytest.approx(u)
        assert last.numpy() == pytest.approx(u)


def test_a_start_does_not_depend_on_the_other_starts() -> None:
    both = descend(identity, (3, 8), (0, 4))
    assert torch.equal(descend(identity, (8,), (0, 4))[0], both[1])
    assert not torch.equal(both[0], both[1])


def test_blf_settles_and_tanh_does_not() -> None:
    times, length = (300, 3000), math.sqrt(10)
    settled = descend(partial(blf, bound=1.0), (0, 1), times).norm(dim=-1)
    assert settled[:, 1].tolist() == pytest.approx([U_STAR * length] * 2, rel=1e-6)
    running = descend(partial(tanh_head, bound=1.0), (0, 1), times).norm(dim=-1)
    grown = (running[:, 1] - running[:, 0]).tolist()
    assert grown == pytest.approx([length / 2 * math.log(10)] * 2, rel=0.05)
    last = descend(partial(blf, bound=1.0), (0,), (3000,))[0, 0]
    assert float(last[1:].std()) < 1e-3, "all wrong classes alike"


# --- Training with a head -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["none", "tanh", "blf"])
def test_a_bounded_objective_is_the_objective_behind_the_head(name: str) -> None:
    head, (x, y) = HEADS[name], batch(len(SEEDS))
    network = network_of(starts(MLP, SEEDS), MLP, SEEDS, step=3)
    losses = Bounded(Standard(), head)(network, x, y)
    everything = {**network.params, **network.buffers}
    logits = head(predict_stacked(build(MLP), everything, x))
    by_hand = F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape)
    assert torch.allclose(losses, by_hand.mean(1))
    slopes = gradient(losses, network)
    assert all(bool(slope.isfinite().all()) for slope in slopes.values())
    assert float(slopes["output.weight"].abs().max()) > 0


def test_attacks_in_training_look_through_the_head() -> None:
    """With and without a head the attack finds other inputs; in two parts it finds the same."""
    x, y = batch(len(SEEDS))
    network = network_of(starts(MLP, SEEDS), MLP, SEEDS, step=3)
    for objective in (
        AdversarialTraining(LInf(0.2), steps=3),
        TRADES(LInf(0.2), steps=3),
    ):
        bounded = Bounded(objective, partial(blf, bound=1.0))
        found = bounded.inputs(network, x, y)
        through = objective.inputs(with_head(network, partial(blf, bound=1.0)), x, y)
        assert torch.equal(found, through)
        assert torch.equal(bounded(network, x, y), bounded.loss(network, x, found, y))
        far = dataclasses.replace(network, params={n: 20 * t for n, t in network.params.items()})
        assert not torch.equal(bounded.inputs(far, x, y), objective.inputs(far, x, y))


def test_a_head_leaves_the_network_as_it_was() -> None:
    x, _ = batch(len(SEEDS))
    network = network_of(starts(MLP, SEEDS), MLP, SEEDS, step=3)
    before = network(x)
    headed = with_head(network, partial(tanh_head, bound=2.0))
    assert torch.equal(headed(x), 2.0 * torch.tanh(before))
    assert torch.equal(headed.detached("eval")(x), headed(x).detach())
    assert headed.params is network.params
    assert torch.equal(network(x), before)


def test_heads_by_name() -> None:
    u = spread(20)
    assert head_named("none", 3.0) is identity
    assert torch.equal(head_named("tanh", 3.0)(u), tanh_head(u, 3.0))
    assert torch.equal(head_named("blf", 3.0)(u), blf(u, 3.0))

"""The closed forms agree with autograd, finite differences, eigvalsh and a searching attack."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lmc_lessons.robustness.attacks import L2, LInf, pgd
from lmc_lessons.robustness.logistic import (
    Problem,
    adversarial_gradient,
    adversarial_loss,
    attacked,
    critical_radius,
    descend,
    direction,
    exponents,
    half_jump,
    hessian,
    least_subgradient,
    random_directions,
    reach,
    rise,
    sample_spectrum,
    sample_traces,
    samples,
    secant,
    trace_slopes,
)

SIZES = {"n": 7, "d": 5}


def drawn(
    seed: int, *lead: int, n: int = 7, d: int = 5, norm: Any = "l2", decay: float = 0.0
) -> tuple[Problem, Tensor]:
    """A random problem with leading axes, and weights away from zero."""
    stream = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream, dtype=torch.float64)

    y = torch.where(normal(*lead, n) > 0, 1.0, -1.0).double()
    epsilon = normal(*lead).abs()
    return Problem(normal(*lead, n, d), y, epsilon, norm, decay), normal(*lead, d)


def plain_loss(problem: Problem, w: Tensor, x: Tensor) -> Tensor:
    """Mean logistic loss on given inputs, without an attack."""
    return torch.nn.functional.softplus(-problem.y * (x @ w)).mean() + problem.decay / 2 * (w @ w)


def halfway(problem: Problem, norm: Any = "l2") -> Problem:
    """The same samples, attacked with half of the radius at which training gives up."""
    radius = critical_radius(problem.x, problem.y, norm) / 2
    return Problem(problem.x, problem.y, radius, norm, problem.decay)


both = pytest.mark.parametrize("norm", ["l2", "linf"])


@both
def test_the_attack_has_the_radius_and_no_other_does_more(norm: Any) -> None:
    problem, w = drawn(0, norm=norm)
    step = attacked(problem, w) - problem.x
    p = 2 if norm == "l2" else torch.inf
    assert torch.allclose(step.norm(p=p, dim=-1), problem.epsilon.expand(7))
    stream = torch.Generator().manual_seed(1)
    best = torch.nn.functional.softplus(exponents(problem, w))
    for _ in range(200):
        other = torch.randn(7, 5, generator=stream, dtype=torch.float64)
        other = problem.epsilon * other / other.norm(p=p, dim=-1, keepdim=True)
        losses = torch.nn.functional.softplus(-problem.y * ((problem.x + other) @ w))
        assert (losses <= best + 1e-12).all()


@both
def test_the_loss_is_that_of_the_attacked_inputs(norm: Any) -> None:
    problem, w = drawn(2, norm=norm, decay=0.3)
    expected = plain_loss(problem, w, attacked(problem, w))
    assert torch.allclose(adversarial_loss(problem, w), expected, atol=1e-12)
    assert torch.allclose(reach(w, norm), w @ direction(w, norm), atol=1e-12)


@both
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_gradient_and_hessian_agree_with_autograd(norm: Any, decay: float) -> None:
    problem, w = drawn(3, norm=norm, decay=decay)
    point = w.clone().requires_grad_()
    (expected,) = torch.autograd.grad(adversarial_loss(problem, point), point)
    assert torch.allclose(adversarial_gradient(problem, w), expected, atol=1e-10)
    second = torch.autograd.functional.hessian(lambda v: adversarial_loss(problem, v), w)
    assert torch.allclose(hessian(problem, w), second, atol=1e-8)


@both
def test_frozen_hessian_is_that_of_inputs_attacked_once(norm: Any) -> None:
    problem, w = drawn(4, norm=norm, decay=0.1)
    fixed = attacked(problem, w)
    second = torch.autograd.functional.hessian(lambda v: plain_loss(problem, v, fixed), w)
    assert torch.allclose(hessian(problem, w, frozen=True), second, atol=1e-8)


def test_the_attack_s_own_movement_lifts_all_directions_but_one() -> None:
    problem, w = drawn(5)
    gap = hessian(problem, w) - hessian(problem, w, frozen=True)
    values = torch.linalg.eigvalsh(gap)
    lift = samples(problem, w).lift.mean()
    assert torch.allclose(values[1:], lift.expand(4), atol=1e-12)
    assert abs(values[0]) < 1e-12


@pytest.mark.parametrize("d", [2, 3, 6])
def test_spectrum_of_a_sample(d: int) -> None:
    problem, w = drawn(6, 20, n=1, d=d)
    exact = torch.linalg.eigvalsh(hessian(problem, w))
    found = sample_spectrum(problem, w)[:, 0]
    parts = [found[:, :2], *[found[:, 2:]] * (d - 2)]
    assert torch.allclose(torch.cat(parts, -1).sort(-1).values, exact, atol=1e-8)
    assert torch.allclose(sample_traces(problem, w)[:, 0], exact.sum(-1), atol=1e-8)


def test_without_an_attack_one_eigenvalue_is_left() -> None:
    problem, w = drawn(7, n=1)
    problem = Problem(problem.x, problem.y, torch.zeros((), dtype=torch.float64))
    slope = torch.sigmoid(exponents(problem, w))
    expected = slope * (1 - slope) * problem.x.square().sum(-1)
    assert torch.allclose(sample_spectrum(problem, w)[..., 0], expected)
    assert (sample_spectrum(problem, w)[..., 1:] == 0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([2, 3, 5, 10]))
def test_trace_slope_agrees_with_a_finite_difference(seed: int, d: int) -> None:
    problem, w = drawn(seed, n=3, d=d)
    h = 1e-5
    ends = [
        sample_traces(Problem(problem.x, problem.y, problem.epsilon + step), w) for step in (h, -h)
    ]
    assert torch.allclose(trace_slopes(problem, w), (ends[0] - ends[1]) / (2 * h), atol=1e-6)


@pytest.mark.parametrize("d", [3, 5, 10])
def test_the_trace_rises_where_the_sample_still_stands(d: int) -> None:
    problem, w = drawn(8, 4000, n=1, d=d)
    stands = samples(problem, w).margin > 0
    assert stands.any()
    assert (trace_slopes(problem, w)[stands] > 0).all()


@both
def test_at_the_critical_radius_zero_becomes_the_best_answer(norm: Any) -> None:
    problem, _ = drawn(9)
    problem = Problem(problem.x, problem.y, problem.epsilon, norm)
    radius = critical_radius(problem.x, problem.y, norm)
    stream = torch.Generator().manual_seed(2)
    ways = torch.randn(500, 5, generator=stream, dtype=torch.float64)
    mean = (problem.y.unsqueeze(-1) * problem.x).mean(0)
    best = mean if norm == "l2" else torch.eye(5, dtype=torch.float64)[mean.abs().argmax()] * mean
    ways = torch.cat([ways, best.unsqueeze(0)])
    at_zero = torch.log(torch.tensor(2.0, dtype=torch.float64))
    for factor, improves in ((0.99, True), (1.01, False)):
        shared = Problem(problem.x, problem.y, factor * radius, norm)
        lowest = min(float(adversarial_loss(shared, 1e-4 * way)) for way in ways)
        assert (lowest < at_zero - 1e-12) == improves


@both
def test_projected_gradient_ascent_finds_the_same_loss(norm: Any) -> None:
    problem, w = drawn(10, norm=norm)
    threats: dict[str, Any] = {"l2": L2, "linf": LInf}
    threat = threats[norm](float(problem.epsilon), bounded=False)

    def predict(x: Tensor) -> Tensor:
        scores = x @ w
        return torch.stack([torch.zeros_like(scores), scores], -1)

    labels = (problem.y > 0).long()
    found = pgd(predict, problem.x, labels, threat, steps=20, random_start=False)
    losses = torch.nn.functional.softplus(-problem.y * (found @ w))
    assert torch.allclose(losses, torch.nn.functional.softplus(exponents(problem, w)), atol=1e-6)


def test_leading_axes_are_problems_of_their_own() -> None:
    problem, w = drawn(11, 3, 4, decay=0.1)
    one = Problem(problem.x[1, 2], problem.y[1, 2], problem.epsilon[1, 2], decay=0.1)
    for function in (adversarial_loss, adversarial_gradient, hessian, sample_traces):
        assert torch.allclose(function(problem, w)[1, 2], function(one, w[1, 2]))
    shared = Problem(problem.x[:, :1], problem.y[:, :1], problem.epsilon, decay=0.1)
    again = Problem(problem.x[1, 0], problem.y[1, 0], problem.epsilon[1, 2], decay=0.1)
    for function in (adversarial_loss, adversarial_gradient, hessian, sample_traces):
        assert torch.allclose(function(shared, w)[1, 2], function(again, w[1, 2]))


def test_descent_finds_the_minimum() -> None:
    problem, w = drawn(12, decay=0.5)
    problem = halfway(problem)
    found = descend(problem, w, 2000, 0.2)
    assert adversarial_gradient(problem, found.w).norm() < 1e-10
    assert found.loss[-1] < found.loss[0]
    assert found.loss.shape == found.gradient.shape == found.flips.shape == (2000,)


def test_descent_stops_where_it_is_told() -> None:
    problem, w = drawn(13, 2, decay=0.5)
    problem = halfway(problem)
    free = descend(problem, w, 200, 0.1)
    level = float(free.loss[:, -1].max() + free.loss[:, 0].min()) / 2
    held = descend(problem, w, 200, 0.1, level=level)
    final = adversarial_loss(problem, held.w)
    crossed = (free.loss <= level).double().argmax(-1)
    for k in range(2):
        assert torch.isclose(final[k], free.loss[k, crossed[k]])


def test_with_an_linf_attack_signs_keep_turning_and_zero_is_a_subgradient() -> None:
    problem, w = drawn(14, norm="linf", decay=0.1, n=30)
    problem = halfway(problem, "linf")
    constant = descend(problem, w, 3000, 0.3)
    decayed = descend(problem, w, 3000, 0.3, schedule="cosine")
    assert constant.restless.any()
    assert constant.flips[-300:].double().mean() > 0.5
    assert constant.gradient[-300:].mean() > 0.05
    assert decayed.gradient[-300:].mean() > 0.05, "at a kink the gradient stays long"
    assert least_subgradient(problem, decayed.w, decayed.restless) < 2e-3
    assert adversarial_loss(problem, decayed.w) < constant.loss[-300:].mean()


def test_the_gradient_jumps_at_a_sign_change_by_twice_epsilon_s() -> None:
    problem, w = drawn(15, norm="linf")
    w = w.clone()
    w[2] = 0
    way = torch.eye(5, dtype=torch.float64)[2]

    def gradient(v: Tensor) -> Tensor:
        return adversarial_gradient(problem, v)

    jump = 2e-9 * secant(gradient, w, way, 1e-9)
    assert torch.isclose(jump, 2 * half_jump(problem, w), atol=1e-7)
    smooth = Problem(problem.x, problem.y, problem.epsilon, "l2")
    top = torch.linalg.norm(hessian(smooth, w) @ way)
    near = secant(lambda v: adversarial_gradient(smooth, v), w, way, 1e-5)
    assert torch.isclose(near, top, rtol=1e-4)


def test_rise_is_the_relative_trace_for_short_steps() -> None:
    problem, w = drawn(16, n=20)
    ways = random_directions(w, 20_000, torch.Generator().manual_seed(3))
    assert torch.allclose(ways.norm(dim=-1), w.norm())
    trace = hessian(problem, w).diagonal().sum()
    expected = 1e-4 / 2 * w.norm() ** 2 * trace / 5
    assert torch.isclose(rise(problem, w, ways, 1e-2), expected, rtol=0.03)
    many, ws = drawn(17, 3)
    ways = random_directions(ws, 6, torch.Generator().manual_seed(3))
    one = Problem(many.x[1], many.y[1], many.epsilon[1])
    assert torch.isclose(rise(many, ws, ways, 1.0)[1], rise(one, ws[1], ways[1], 1.0))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "l1"}, "norm is 'l1', allowed: l2, linf"),
        ({"decay": -1.0}, "decay must be >= 0, got -1"),
        ({"y": torch.zeros(7)}, "y must hold -1 and 1 only"),
        ({"y": torch.ones(6)}, "one sign per input"),
    ],
)
def test_bad_problems_are_refused(changes: dict[str, Any], message: str) -> None:
    problem, _ = drawn(0)
    given = {"x": problem.x, "y": problem.y, "epsilon": problem.epsilon, **changes}
    with pytest.raises(ValueError, match=message):
        Problem(**given)


def test_bad_calls_are_refused() -> None:
    problem, w = drawn(0)
    for changes in ({"steps": 0}, {"rate": 0.0}, {"schedule": "linear"}):
        arguments: dict[str, Any] = {"steps": 1, "rate": 0.1, **changes}
        with pytest.raises(ValueError, match="descend needs steps >= 1"):
            descend(problem, w, **arguments)
    with pytest.raises(ValueError, match="cannot start at w = 0"):
        descend(problem, torch.zeros(5, dtype=torch.float64), 1, 0.1)
    with pytest.raises(ValueError, match="kinks at w_j = 0 for linf"):
        least_subgradient(problem, w, w > 0)
    box = Problem(problem.x, problem.y, problem.epsilon, "linf")
    with pytest.raises(ValueError, match="known for l2, got 'linf'"):
        samples(box, w)
    with pytest.raises(ValueError, match="h must be > 0"):
        secant(lambda v: v, w, w, 0.0)

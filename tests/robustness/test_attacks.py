"""Attacks: inside their threat model, as strong as theory and peers say, honest about failure."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import kstest
from torch import Tensor, nn

from lmc_lessons.datasets import load
from lmc_lessons.models import ModelConfig, Params, build, predict_stacked, stack, unstack
from lmc_lessons.models import predict as run_model
from lmc_lessons.robustness.attacks import (
    L2,
    START,
    Attacked,
    LInf,
    apgd,
    checkpoints,
    cross_entropy,
    dlr_loss,
    ensemble,
    evaluate,
    fgsm,
    loss_gradient,
    margin_loss,
    pgd,
    random_noise,
    square_attack,
    step_least_likely,
    targeted,
    targeted_apgd,
)
from lmc_lessons.training import TrainConfig, generator, train

Predict = Callable[[Tensor], Tensor]
Run = Callable[[Predict, Tensor, Tensor, Any, int], Tensor]

SMALL = (1, 8, 8)
MLP = ModelConfig("mlp", SMALL, 10, 32, 2)
NORMS: dict[str, Any] = {"LInf": LInf, "L2": L2}
EPSILONS = [0.0, 1e-4, 8 / 255, 0.3, 1.0, 3.0]
ATTACKS: dict[str, Run] = {
    "fgsm": lambda f, x, y, t, seed: fgsm(f, x, y, t),
    "pgd-last": lambda f, x, y, t, seed: pgd(f, x, y, t, steps=3, seed=seed),
    "pgd-best": lambda f, x, y, t, seed: pgd(f, x, y, t, steps=3, keep="best", seed=seed),
    "pgd-still": lambda f, x, y, t, seed: pgd(f, x, y, t, steps=3, random_start=False),
    "apgd": lambda f, x, y, t, seed: apgd(f, x, y, t, steps=9, seed=seed).x,
    "apgd-dlr": lambda f, x, y, t, seed: apgd(f, x, y, t, steps=5, loss=dlr_loss, seed=seed).x,
    "targeted": lambda f, x, y, t, seed: targeted_apgd(f, x, y, t, steps=4, targets=3, seed=seed),
    "square": lambda f, x, y, t, seed: square_attack(f, x, y, t, queries=6, seed=seed).x,
    "noise": lambda f, x, y, t, seed: random_noise(f, x, y, t, tries=3, seed=seed),
}
CASES = [(a, n) for a in ATTACKS for n in NORMS if (a, n) != ("square", "L2")]
every_attack = pytest.mark.parametrize(("attack", "norm"), CASES)
every_norm = pytest.mark.parametrize("norm", NORMS)


@dataclass(frozen=True)
class StillLInf(LInf):
    """LInf whose random points are the centre, so that starts do not depend on the shape."""

    def random(self, centre: Tensor, lead: int, stream: torch.Generator) -> Tensor:
        return centre.clone()


@dataclass(frozen=True)
class StillL2(L2):
    """The same for L2."""

    def random(self, centre: Tensor, lead: int, stream: torch.Generator) -> Tensor:
        return centre.clone()


STILL: dict[str, Any] = {"LInf": StillLInf, "L2": StillL2}


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(
    shape: tuple[int, ...], classes: int, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Predict:
    """A random network with one hidden layer, for any number of leading axes."""
    size, own = math.prod(shape), stream(seed)
    first = 3 * torch.randn(size, 7, generator=own, dtype=dtype) / max(1, size) ** 0.5
    shift = torch.randn(7, generator=own, dtype=dtype)
    second = torch.randn(7, classes, generator=own, dtype=dtype)

    def predict(x: Tensor) -> Tensor:
        lead = x.shape[: x.dim() - len(shape)]
        return ((x.reshape(-1, size) @ first + shift).tanh() @ second).view(*lead, classes)

    return predict


def stacked(networks: list[Predict]) -> Predict:
    return lambda x: torch.stack([f(part) for f, part in zip(networks, x, strict=True)])


def distance(x: Tensor, centre: Tensor, lead: int, norm: str) -> Tensor:
    gap = (x.double() - centre.double()).reshape(*centre.shape[:lead], -1)
    return gap.abs().amax(-1) if norm == "LInf" else gap.square().sum(-1).sqrt()


@dataclass(frozen=True)
class Problem:
    """Inputs, labels and a network, as drawn by hypothesis."""

    predict: Predict
    x: Tensor
    y: Tensor
    shape: tuple[int, ...]


@st.composite
def problems(draw: st.DrawFn, images: bool = False, leads: tuple[int, ...] = (1, 2)) -> Problem:
    length = draw(st.sampled_from(leads))
    lead = tuple(draw(st.lists(st.integers(1, 4), min_size=length, max_size=length)))
    picture = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5))
    flat = st.lists(st.integers(1, 6), max_size=2).map(tuple)
    shape: tuple[int, ...] = draw(picture if images else flat | picture)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    classes, seed = draw(st.integers(3, 6)), draw(st.integers(0, 2**20))
    own = stream(seed)
    x = torch.rand((*lead, *shape), generator=own, dtype=dtype)
    faces = draw(st.sampled_from(["none", "some", "all"]))
    if faces != "none":
        on_face = torch.rand(x.shape, generator=own) < (0.5 if faces == "some" else 1.1)
        x = torch.where(on_face, x.round(), x)
    y = torch.randint(0, classes, lead, generator=own)
    return Problem(network(shape, classes, seed + 1, dtype), x, y, shape)


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, list[Params], Tensor, Tensor]:
    """Two networks trained on digits, in eval mode, with 200 test inputs."""
    data = load("digits")
    result = train(MLP, data, [0, 1], TrainConfig(epochs=12, learning_rate=1e-2, fast=True))
    return build(MLP).eval(), unstack(result.params), data.test_x[:200], data.test_y[:200]


def accuracy(predict: Predict, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((predict(x).argmax(-1) == y).double().mean())


# --- Inside the ball and the box -----------------------------------------------------------------


@every_attack
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_found_inputs_lie_in_ball_and_box(attack: str, norm: str, data: st.DataObject) -> None:
    problem = data.draw(problems(images=attack == "square"))
    epsilon = data.draw(st.sampled_from(EPSILONS) | st.floats(0, 1))
    x, y = problem.x, problem.y
    found = ATTACKS[attack](problem.predict, x, y, NORMS[norm](epsilon), 3)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert bool(((found >= 0) & (found <= 1)).all())
    assert float(distance(found, x, y.dim(), norm).max()) <= epsilon + 1e-6


@every_attack
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_radius_zero_gives_the_inputs_back(attack: str, norm: str, data: st.DataObject) -> None:
    problem = data.draw(problems(images=attack == "square"))
    found = ATTACKS[attack](problem.predict, problem.x, problem.y, NORMS[norm](0), 1)
    assert torch.equal(found, problem.x)


@every_norm
def test_radius_zero_gives_clean_accuracy(
    digits: tuple[nn.Module, list[Params], Tensor, Tensor], norm: str
) -> None:
    model, (params, _), x, y = digits
    attacks = ensemble(steps=3, targets=2, queries=4)
    result = evaluate(model, params, x, y, NORMS[norm](0), attacks)
    assert result.clean == accuracy(lambda z: run_model(model, params, z), x, y)
    assert set(result.robust.values()) == {result.clean}
    assert torch.equal(result.x, x)


@every_norm
def test_found_inputs_are_in_the_box_even_where_the_gradient_is_no_number(norm: str) -> None:
    x = torch.tensor([[0.0, 0.3], [0.5, 0.0]])

    def root(z: Tensor) -> Tensor:  # the gradient at 0 is infinite, and 0 / 0 where clipped
        first = z[:, 0].sqrt() - z[:, 1].sqrt()
        return torch.stack([first, -first], -1)

    y = root(x).argmax(-1)
    for steps in (1, 4):
        try:
            found = pgd(root, x, y, NORMS[norm](0.1), steps=steps, random_start=False)
        except ValueError:
            continue
        assert bool(((found >= 0) & (found <= 1)).all())


# --- Nothing else changes ------------------------------------------------------------------------


@every_attack
def test_only_the_result_is_new(attack: str, norm: str) -> None:
    model = build(ModelConfig("mlp", SMALL, 10, 8, 2, "batch")).eval()
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, y = torch.rand(5, *SMALL, generator=stream(0)), torch.arange(5)
    x[0] = x[0].round()
    before = x.clone(), y.clone()
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    found = ATTACKS[attack](model, x, y, NORMS[norm](0.2), 0)
    now: Any = np.random.get_state()  # noqa: NPY002
    assert torch.equal(torch_state, torch.get_rng_state())
    assert python_state == random.getstate()
    assert numpy_state[2] == now[2]
    assert np.array_equal(numpy_state[1], now[1])
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert not x.requires_grad
    assert x.grad is None
    assert not any(part.training for part in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, kept[name]) for name, tensor in model.state_dict().items())
    assert not found.requires_grad
    model.train()
    ATTACKS[attack](model, x, y, NORMS[norm](0.2), 0)
    assert all(part.training for part in model.modules())
    assert all(p.grad is None for p in model.parameters())


@every_attack
def test_results_carry_no_graph_even_if_inputs_do(attack: str, norm: str) -> None:
    x, y = torch.rand(3, 1, 4, 4, dtype=torch.float64, generator=stream(0)), torch.arange(3)
    f, threat = network((1, 4, 4), 4), NORMS[norm](0.1)
    plain = ATTACKS[attack](f, x, y, threat, 0)
    found = ATTACKS[attack](f, x.clone().requires_grad_(), y, threat, 0)
    assert torch.equal(plain, found.detach())
    assert not found.requires_grad
    with torch.no_grad():
        assert torch.equal(plain, ATTACKS[attack](f, x, y, threat, 0))


@every_attack
def test_the_seed_decides(attack: str, norm: str) -> None:
    x = torch.rand(4, 2, 5, 5, dtype=torch.float64, generator=stream(1))
    y, f = torch.arange(4), network((2, 5, 5), 5)
    seen: list[list[Tensor]] = []

    def watched(z: Tensor) -> Tensor:
        seen[-1].append(z.detach().clone())
        return f(z)

    found = []
    for seed in (123, 123, 124):
        seen.append([])
        found.append(ATTACKS[attack](watched, x, y, NORMS[norm](0.05), seed))
    assert torch.equal(found[0], found[1])
    one, again, other = (torch.stack(points) for points in seen)
    assert torch.equal(one, again)
    assert torch.equal(one, other) == (attack in ("fgsm", "pgd-still"))


# --- Leading axes --------------------------------------------------------------------------------


@every_attack
def test_leading_axes_are_only_a_shape(attack: str, norm: str) -> None:
    x = torch.rand(6, 1, 4, 5, dtype=torch.float64, generator=stream(2))
    y, f, threat = torch.arange(6) % 4, network((1, 4, 5), 4), NORMS[norm](0.2)
    flat = ATTACKS[attack](f, x, y, threat, 5)
    for lead in ((1, 6), (2, 3), (3, 1, 2)):
        found = ATTACKS[attack](f, x.view(*lead, 1, 4, 5), y.view(lead), threat, 5)
        assert torch.equal(found.view(x.shape), flat)


@every_attack
def test_samples_and_networks_do_not_influence_each_other(attack: str, norm: str) -> None:
    x = torch.rand(2, 4, 1, 4, 4, dtype=torch.float64, generator=stream(3))
    y = torch.randint(0, 5, (2, 4), generator=stream(4))
    a, b, c = (network((1, 4, 4), 5, seed) for seed in range(3))
    threat = NORMS[norm](0.3)
    found = ATTACKS[attack](stacked([a, b]), x, y, threat, 0)
    elsewhere, labels = x.clone(), y.clone()
    elsewhere[1], labels[1] = 1 - x[1], (y[1] + 1) % 5
    elsewhere[0, 2], labels[0, 2] = x[0, 2].round(), (y[0, 2] + 2) % 5
    again = ATTACKS[attack](stacked([a, c]), elsewhere, labels, threat, 0)
    same = [0, 1, 3]
    assert torch.equal(found[0, same], again[0, same])
    assert not torch.equal(found[1], again[1])


@every_norm
@pytest.mark.parametrize("attack", [a for a in ATTACKS if a not in ("square", "noise")])
def test_networks_attacked_at_once_equal_each_alone(
    digits: tuple[nn.Module, list[Params], Tensor, Tensor], attack: str, norm: str
) -> None:
    model, networks, x, y = digits
    double = [{name: t.double() for name, t in params.items()} for params in networks]
    inputs = torch.stack([x[:20], x[20:40]]).double()
    labels = torch.stack([y[:20], y[20:40]])
    threat = STILL[norm]({"LInf": 0.1, "L2": 1.0}[norm])
    many = stack(double)
    together = ATTACKS[attack](lambda z: predict_stacked(model, many, z), inputs, labels, threat, 0)
    for s, params in enumerate(double):

        def single(z: Tensor, params: Params = params) -> Tensor:
            return run_model(model, params, z)

        alone = ATTACKS[attack](single, inputs[s], labels[s], threat, 0)
        torch.testing.assert_close(together[s], alone, rtol=0, atol=1e-9)


# --- What an attack reports ----------------------------------------------------------------------


def reports(problem: Problem, threat: Any, images: bool, loss: Any) -> list[tuple[Attacked, Any]]:
    args = problem.predict, problem.x, problem.y, threat
    found = [(apgd(*args, steps=12, loss=loss, seed=1), loss)]
    return [*found, (square_attack(*args, queries=13, seed=1), margin_loss)] if images else found


@every_norm
@pytest.mark.parametrize("loss", [cross_entropy, dlr_loss, margin_loss])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_reports_fit_what_was_found(norm: str, loss: Any, data: st.DataObject) -> None:
    images = norm == "LInf"
    problem = data.draw(problems(images=images))
    threat = NORMS[norm](data.draw(st.sampled_from([0.0, 0.1, 0.5])))
    for found, own in reports(problem, threat, images, loss):
        assert found.history.shape == (13, *problem.y.shape)
        assert bool((found.history.diff(dim=0) >= 0).all())
        assert torch.equal(found.history[-1], found.loss)
        logits = problem.predict(found.x)
        assert torch.equal(found.fooled, logits.argmax(-1) != problem.y)
        reached = own(logits, problem.y)
        assert bool((reached <= found.loss).all())
        assert torch.equal(reached[~found.fooled], found.loss[~found.fooled])
        tensors = (found.x, found.loss, found.history, found.fooled)
        assert not any(t.requires_grad for t in tensors)


@pytest.mark.parametrize("seed", range(4))
def test_fooled_means_misread_where_logits_tie(seed: int) -> None:
    smooth = network((1, 4, 4), 3, seed)

    def coarse(x: Tensor) -> Tensor:  # whole logits often tie
        logits = smooth(x)
        return logits + (logits.round() - logits).detach()

    x = torch.rand(64, 1, 4, 4, dtype=torch.float64, generator=stream(seed))
    y = torch.randint(0, 3, (64,), generator=stream(seed + 1))
    for found in (
        square_attack(coarse, x, y, LInf(0.05), queries=40),
        apgd(coarse, x, y, LInf(0.05), steps=5),
    ):
        assert torch.equal(found.fooled, coarse(found.x).argmax(-1) != y)


def test_apgd_and_targeted_apgd_return_a_misread_input_wherever_one_was_met() -> None:
    x = torch.rand(60, 6, dtype=torch.float64, generator=stream(0))
    f = network((6,), 5)
    y, met = f(x).argmax(-1), torch.zeros(60, dtype=torch.bool)

    def watched(z: Tensor) -> Tensor:
        logits = f(z)
        met.logical_or_(logits.argmax(-1) != y)
        return logits

    found = apgd(watched, x, y, LInf(0.15), steps=15)
    assert torch.equal(found.fooled, met)
    assert 0 < int(met.sum()) < 60
    met.zero_()
    aimed = targeted_apgd(watched, x, y, LInf(0.15), steps=15, targets=4)
    assert torch.equal(f(aimed).argmax(-1) != y, met)
    assert torch.equal(aimed[~met], x[~met])


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
def test_targeted_apgd_aims_at_the_runners_up_in_turn(classes: int) -> None:
    x = torch.rand(8, 4, dtype=torch.float64, generator=stream(5))
    f, y = network((4,), classes), torch.arange(8) % classes
    threat = LInf(0.3)
    expected = x
    order = f(x).argsort(-1, descending=True)
    others = torch.stack([row[row != label] for row, label in zip(order, y, strict=True)])
    for rank in range(min(classes - 1, 3)):
        loss = targeted(others[:, rank], "dlr" if classes >= 4 else "margin")
        start = threat.random(x, 1, generator(0, START, rank))
        tried = apgd(f, x, y, threat, steps=6, loss=loss, start=start)
        expected = torch.where(tried.fooled[:, None], tried.x, expected)
    found = targeted_apgd(f, x, y, threat, steps=6, targets=3, seed=0)
    assert torch.equal(found, expected)
    everything = targeted_apgd(f, x, y, threat, steps=2, targets=99)
    assert torch.equal(everything, targeted_apgd(f, x, y, threat, steps=2, targets=classes - 1))


@every_norm
def test_keep_best_is_the_largest_loss_met(norm: str) -> None:
    x = torch.rand(30, 6, dtype=torch.float64, generator=stream(6))
    y, f, threat = torch.arange(30) % 4, network((6,), 4), NORMS[norm](0.4)
    met = []

    def watched(z: Tensor) -> Tensor:
        met.append(cross_entropy(f(z), y).detach())
        return f(z)

    best = pgd(watched, x, y, threat, steps=7, keep="best", seed=2)
    assert len(met) == 8
    assert torch.equal(cross_entropy(f(best), y), torch.stack(met).amax(0))
    last = pgd(f, x, y, threat, steps=7, seed=2)
    assert torch.equal(cross_entropy(f(last), y), met[-1])


@every_norm
def test_one_full_step_of_pgd_from_the_input_is_fgsm(norm: str) -> None:
    x = torch.rand(9, 5, dtype=torch.float64, generator=stream(7))
    y, f, threat = torch.arange(9) % 3, network((5,), 3), NORMS[norm](0.2)
    one = pgd(f, x, y, threat, steps=1, step_size=0.2, random_start=False)
    assert torch.equal(one, fgsm(f, x, y, threat))


@every_norm
def test_noise_is_the_worst_of_the_points_tried(norm: str) -> None:
    x = torch.rand(20, 5, dtype=torch.float64, generator=stream(8))
    y, f, threat, met = torch.arange(20) % 3, network((5,), 3), NORMS[norm](0.3), []

    def watched(z: Tensor) -> Tensor:
        met.append(cross_entropy(f(z), y))
        return f(z)

    found = random_noise(watched, x, y, threat, tries=6)
    assert len(met) == 6
    assert len({float(losses[0]) for losses in met}) == 6
    assert torch.equal(cross_entropy(f(found), y), torch.stack(met).amax(0))


# --- Threat models -------------------------------------------------------------------------------


@every_norm
@pytest.mark.parametrize("scale", [1e-35, 1e-30, 1e-25, 1e-20, 1e-9, 1.0, 1e9, 1e15, 1e25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["single", "double"])
def test_steepest_maximises_the_inner_product_over_the_unit_ball(
    norm: str, scale: float, dtype: torch.dtype
) -> None:
    gradient = scale * torch.randn(3, 2, 4, generator=stream(0), dtype=dtype)
    step = NORMS[norm](0.1).steepest(gradient, 1).double()
    length = distance(step, torch.zeros_like(step), 1, norm)
    assert length.tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    unit = (gradient.double() / scale).flatten(1)
    reached = (unit * step.flatten(1)).sum(1)
    dual = unit.abs().sum(1) if norm == "LInf" else unit.norm(dim=1)
    torch.testing.assert_close(reached, dual, rtol=1e-5, atol=0)
    others = torch.randn(500, 8, generator=stream(1), dtype=torch.float64)
    others = others.sign() * torch.rand(500, 8, generator=stream(2), dtype=torch.float64) ** 0.2
    others = others if norm == "LInf" else others / others.norm(dim=1, keepdim=True)
    assert bool(((unit @ others.T).amax(1) <= reached + 1e-5).all())


@every_norm
def test_no_gradient_means_no_step(norm: str) -> None:
    gradient = torch.zeros(2, 3)
    gradient[1] = torch.tensor([3.0, 0.0, -4.0])
    step = NORMS[norm](1).steepest(gradient, 1)
    expected = {"LInf": [1.0, 0.0, -1.0], "L2": [0.6, 0.0, -0.8]}[norm]
    torch.testing.assert_close(step, torch.tensor([[0.0] * 3, expected]))


@every_norm
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    size=st.integers(1, 6),
    epsilon=st.floats(0, 1.5),
    far=st.sampled_from([0.01, 0.3, 3.0]),
)
def test_projection_is_idempotent_and_moves_no_point_of_the_set(
    norm: str, seed: int, size: int, epsilon: float, far: float
) -> None:
    own, threat = stream(seed), NORMS[norm](epsilon)
    centre = torch.rand(4, size, generator=own, dtype=torch.float64)
    centre[0] = centre[0].round()
    x = centre + far * torch.randn(4, size, generator=own, dtype=torch.float64)
    once = threat.project(x, centre, 1)
    assert bool(((once >= 0) & (once <= 1)).all())
    assert float(distance(once, centre, 1, norm).max()) <= epsilon + 1e-12
    torch.testing.assert_close(threat.project(once, centre, 1), once, rtol=0, atol=1e-12)
    inside = (distance(x, centre, 1, norm) <= epsilon) & ((x >= 0) & (x <= 1)).all(1)
    torch.testing.assert_close(once[inside], x[inside], rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.floats(-2, 3), st.floats(0, 1.5))
def test_linf_projection_is_the_nearest_point(centre: float, x: float, epsilon: float) -> None:
    point, middle = (torch.tensor([v], dtype=torch.float64) for v in (x, centre))
    found = float(LInf(epsilon).project(point, middle, 1))
    allowed = np.linspace(0, 1, 2001)
    allowed = np.append(allowed[np.abs(allowed - centre) <= epsilon], centre)
    assert abs(found - x) <= np.abs(allowed - x).min() + 1e-12


@pytest.mark.parametrize("size", [1, 2, 5])
def test_l2_projection_is_the_nearest_point_where_the_box_does_not_cut(size: int) -> None:
    centre = 0.4 + 0.2 * torch.rand(6, size, generator=stream(0), dtype=torch.float64)
    x = centre + torch.randn(6, size, generator=stream(1), dtype=torch.float64)
    found = L2(0.3).project(x, centre, 1)
    ball = torch.randn(6, 20_000, size, generator=stream(2), dtype=torch.float64)
    ball = ball / ball.norm(dim=-1, keepdim=True)
    ball *= 0.3 * torch.rand(6, 20_000, 1, generator=stream(3), dtype=torch.float64) ** 0.1
    nearest = (centre[:, None] + ball - x[:, None]).norm(dim=-1).amin(1)
    reached = (found - x).norm(dim=-1)
    assert bool((reached <= nearest + 1e-12).all())
    assert bool((nearest - reached <= 0.05).all())


def test_random_points_of_the_cube_are_uniform() -> None:
    centre = torch.full((800, 5), 0.5, dtype=torch.float64)
    noise = (LInf(0.3).random(centre, 1, stream(0)) - centre) / 0.3
    for coordinate in noise.T:
        assert kstest(coordinate.numpy(), "uniform", args=(-1, 2)).pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.T.numpy()) - np.eye(5)).max() < 0.15


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_random_points_of_the_ball_are_uniform(size: int) -> None:
    centre = torch.full((2000, size), 0.5, dtype=torch.float64)
    noise = (L2(0.4).random(centre, 1, stream(1)) - centre) / 0.4
    radius = noise.norm(dim=1)
    assert kstest((radius**size).numpy(), "uniform").pvalue > 1e-3
    spread = (noise / radius[:, None]).T @ (noise / radius[:, None]) / 2000
    torch.testing.assert_close(
        spread, torch.eye(size, dtype=torch.float64) / size, rtol=0, atol=0.15 / size**0.5
    )
    assert float((noise / radius[:, None]).mean(0).abs().max()) < 0.12


@every_norm
def test_random_points_differ_between_samples_and_keep_to_the_box(norm: str) -> None:
    centre = torch.zeros(50, 2, 3)
    found = NORMS[norm](0.5).random(centre, 1, stream(0))
    assert bool((found >= 0).all())
    assert bool((found == 0).any())
    assert len({tuple(row.flatten().tolist()) for row in found}) > 40


@pytest.mark.parametrize("epsilon", [-1e-9, -1, float("nan"), float("inf")])
@every_norm
def test_radii_that_are_none_are_refused(norm: str, epsilon: float) -> None:
    with pytest.raises(ValueError, match=f"epsilon must be a number >= 0, got {epsilon}"):
        NORMS[norm](epsilon)


# --- Losses --------------------------------------------------------------------------------------


def logits_of(seed: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    own = stream(seed)
    logits = 4 * torch.randn(2, 5, classes, generator=own, dtype=torch.float64)
    y = torch.randint(0, classes, (2, 5), generator=own)
    target = (y + torch.randint(1, classes, (2, 5), generator=own)) % classes
    return logits, y, target


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("seed", range(3))
def test_losses_equal_an_explicit_loop(classes: int, seed: int) -> None:
    logits, y, target = logits_of(seed, classes)
    for place in itertools.product(range(2), range(5)):
        z, own, aim = logits[place].tolist(), int(y[place]), int(target[place])
        ranked = sorted(z, reverse=True)
        other = max(value for k, value in enumerate(z) if k != own)
        expected = {
            "ce": logsumexp(z) - z[own],
            "margin": other - z[own],
            "aimed": z[aim] - z[own],
        }
        found = {
            "ce": cross_entropy(logits, y),
            "margin": margin_loss(logits, y),
            "aimed": targeted(target, "margin")(logits, y),
        }
        if classes >= 3:
            expected["dlr"] = -(z[own] - other) / (ranked[0] - ranked[2])
            found["dlr"] = dlr_loss(logits, y)
        if classes >= 4:
            below = ranked[0] - 0.5 * (ranked[2] + ranked[3])
            expected["aimed dlr"] = -(z[own] - z[aim]) / below
            found["aimed dlr"] = targeted(target)(logits, y)
        for name, losses in found.items():
            assert losses.shape == y.shape
            assert float(losses[place]) == pytest.approx(expected[name], rel=1e-9), name


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.floats(-50, 50), st.floats(1e-3, 1e6))
def test_dlr_ignores_shift_and_scale(seed: int, shift: float, scale: float) -> None:
    logits, y, target = logits_of(seed, 5)
    for loss in (dlr_loss, targeted(target)):
        torch.testing.assert_close(
            loss(scale * (logits + shift), y), loss(logits, y), rtol=1e-6, atol=1e-8
        )
    misread = logits.argmax(-1) != y
    assert torch.equal(dlr_loss(logits, y) > 0, misread)
    assert torch.equal(margin_loss(logits, y) > 0, misread)


def test_gradients_equal_finite_differences_and_leave_no_trace() -> None:
    f, y = network((3,), 4), torch.tensor([0, 2])
    x = torch.rand(2, 3, dtype=torch.float64, generator=stream(0))
    with torch.no_grad():
        gradient, losses, logits = loss_gradient(f, x, y, cross_entropy)
    assert torch.equal(logits, f(x))
    assert torch.equal(losses, cross_entropy(f(x), y))
    for b, k in itertools.product(range(2), range(3)):
        step = torch.zeros_like(x)
        step[b, k] = 1e-6
        slope = (cross_entropy(f(x + step), y) - cross_entropy(f(x - step), y))[b] / 2e-6
        assert float(gradient[b, k]) == pytest.approx(float(slope), abs=1e-7)
    assert not any(t.requires_grad for t in (gradient, losses, logits, x))


# --- Checkpoints ---------------------------------------------------------------------------------


def test_checkpoints_of_a_hundred_steps() -> None:
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize("steps", [*range(1, 130), 1000, 4999])
def test_checkpoints_increase_and_equal_a_counter(steps: int) -> None:
    found = checkpoints(steps)
    assert all(a < b for a, b in itertools.pairwise([0, *found]))
    assert found[-1] <= steps
    gap, since, expected = max(int(0.22 * steps), 1), 0, []
    for step in range(1, steps + 1):
        since += 1
        if since == gap:
            expected.append(step)
            since, gap = 0, max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    assert found == expected


# --- APGD against a plain computation ------------------------------------------------------------


def apgd_by_hand(
    f: Predict, x: list[float], label: int, epsilon: float, steps: int
) -> tuple[list[float], int]:
    """Best losses of one sample from the formulas, coordinate by coordinate, and halvings made."""

    def look(point: list[float]) -> tuple[float, list[float]]:
        leaf = torch.tensor([point], dtype=torch.float64, requires_grad=True)
        z = f(leaf)[0]
        value = z.logsumexp(0) - z[label]
        value.backward()
        assert leaf.grad is not None
        return float(value.detach()), leaf.grad[0].tolist()

    def clip(point: list[float]) -> list[float]:
        near = [min(max(p, c - epsilon), c + epsilon) for p, c in zip(point, x, strict=True)]
        return [min(max(p, 0.0), 1.0) for p in near]

    now, before, eta = list(x), list(x), 2 * epsilon
    value, slope = look(now)
    best, best_value, best_slope, history = now, value, slope, [value]
    gap, since, rises, halvings = max(int(0.22 * steps), 1), 0, 0, 0
    reduced, best_then = True, best_value
    for t in range(steps):
        a = 1.0 if t == 0 else 0.75
        z = clip([p + eta * math.copysign(s != 0, s) for p, s in zip(now, slope, strict=True)])
        moved = [
            p + a * (q - p) + (1 - a) * (p - o) for p, q, o in zip(now, z, before, strict=True)
        ]
        before, now = now, clip(moved)
        old, (value, slope) = value, look(now)
        rises += value > old
        if value > best_value:
            best, best_value, best_slope = now, value, slope
        history.append(best_value)
        since += 1
        if since == gap:
            stuck = rises <= 0.75 * gap or (not reduced and best_value <= best_then)
            if stuck:  # go on from the best point; ``before`` stays the iterate before this one
                eta, now, value, slope = eta / 2, best, best_value, best_slope
                halvings += 1
            reduced, best_then = stuck, best_value
            since, rises = 0, 0
            gap = max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return history, halvings


@pytest.mark.parametrize("steps", [1, 7, 30, 60])
@pytest.mark.parametrize(
    ("epsilon", "waves", "depth"),
    [(0.05, 25, 0.25), (0.3, 25, 0.25), (0.8, 100, 1.0)],  # the last: the best loss stalls
)
def test_apgd_equals_its_formulas_sample_by_sample(
    steps: int, epsilon: float, waves: float, depth: float
) -> None:
    smooth = network((6,), 4, seed=11)

    def f(z: Tensor) -> Tensor:  # a little rough, so that some steps go too far
        return smooth(z) + depth * (waves * z[..., :4]).sin()

    x = torch.rand(40, 6, dtype=torch.float64, generator=stream(9))
    y = torch.arange(40) % 4
    found = apgd(f, x, y, StillLInf(epsilon), steps=steps)
    halvings = 0
    for b in range(40):
        expected, count = apgd_by_hand(f, x[b].tolist(), int(y[b]), epsilon, steps)
        assert found.history[:, b].tolist() == pytest.approx(expected, abs=1e-10)
        halvings += count
    assert halvings > 0 or steps == 1


# --- Strength ------------------------------------------------------------------------------------


def linear(size: int, seed: int) -> tuple[Predict, Tensor, float]:
    """Logistic regression as two logits, 0 and w x + b."""
    w = torch.randn(size, generator=stream(seed), dtype=torch.float64)
    bias = float(-0.5 * w.sum())

    def predict(x: Tensor) -> Tensor:
        score = x @ w + bias
        return torch.stack([torch.zeros_like(score), score], -1)

    return predict, w, bias


@every_norm
@pytest.mark.parametrize("seed", range(3))
def test_linear_networks_lose_what_the_dual_norm_says(norm: str, seed: int) -> None:
    f, w, bias = linear(8, seed)
    x = 0.45 + 0.1 * torch.rand(30, 8, dtype=torch.float64, generator=stream(seed))
    y, epsilon = torch.arange(30) % 2, 0.3
    margin = (2 * y - 1) * (x @ w + bias)
    dual = float(w.abs().sum() if norm == "LInf" else w.norm())
    best = torch.log1p(torch.exp(-margin + epsilon * dual))
    threat = NORMS[norm](epsilon)
    exact = {
        "fgsm": fgsm(f, x, y, threat),
        "pgd": pgd(f, x, y, threat, random_start=False),
        "pgd-margin": pgd(f, x, y, threat, random_start=False, loss=margin_loss),
    }
    for name, found in exact.items():
        gap = (cross_entropy(f(found), y) - best).abs().max()
        assert float(gap) <= 1e-12, name
    near = {
        "pgd-random": cross_entropy(f(pgd(f, x, y, threat, steps=40, step_size=0.3)), y),
        "apgd": apgd(f, x, y, threat, steps=60).loss,
    }
    for name, losses in near.items():
        assert bool((losses <= best + 1e-12).all()), name
        assert bool((losses >= best - 1e-3).all()), name
    weaker = cross_entropy(f(random_noise(f, x, y, threat)), y)
    assert bool((weaker < best).all())


def test_square_reaches_the_corner_of_a_linear_network() -> None:
    f, w, bias = linear(9, 0)
    x = 0.4 + 0.2 * torch.rand(20, 1, 3, 3, dtype=torch.float64, generator=stream(0))
    y = torch.arange(20) % 2
    found = square_attack(lambda z: f(z.flatten(1)), x, y, LInf(0.2), queries=400)
    best = -(2 * y - 1) * (x.flatten(1) @ w + bias) + 0.2 * w.abs().sum()
    torch.testing.assert_close(found.loss, best, rtol=0, atol=1e-9)


def test_square_stays_on_the_corners_and_takes_only_what_helps() -> None:
    x = 0.3 + 0.4 * torch.rand(6, 2, 6, 6, dtype=torch.float64, generator=stream(0))
    f, y, tried = network((2, 6, 6), 4), torch.arange(6) % 4, []

    def watched(z: Tensor) -> Tensor:
        tried.append(z)
        return f(z)

    found = square_attack(watched, x, y, LInf(0.1), queries=30)
    assert len(tried) == 30
    points = torch.stack(tried)
    torch.testing.assert_close((points - x).abs(), torch.full_like(points, 0.1))
    stripes = tried[0] - x
    torch.testing.assert_close(stripes, stripes[..., :1, :].expand_as(stripes))
    losses = torch.stack([margin_loss(f(z), y) for z in tried])
    torch.testing.assert_close(found.history, losses.cummax(0).values, rtol=0, atol=1e-12)
    assert len({tuple((z[0] - z[1]).flatten().tolist()) for z in tried}) > 20


@pytest.mark.parametrize(("norm", "epsilon"), [("LInf", 0.1), ("L2", 0.7)])
@pytest.mark.parametrize("steps", [20, 50])
def test_apgd_is_no_weaker_than_pgd(
    digits: tuple[nn.Module, list[Params], Tensor, Tensor], norm: str, epsilon: float, steps: int
) -> None:
    model, networks, x, y = digits
    for params in networks:

        def f(z: Tensor, params: Params = params) -> Tensor:
            return run_model(model, params, z)

        threat = NORMS[norm](epsilon)
        plain = pgd(f, x, y, threat, steps=steps, keep="best")
        ours = apgd(f, x, y, threat, steps=steps)
        assert float(ours.loss.mean()) >= float(cross_entropy(f(plain), y).mean()) - 1e-4


@pytest.mark.parametrize(("norm", "epsilon"), [("LInf", 0.08), ("L2", 0.6)])
def test_stronger_attacks_leave_less_accuracy(
    digits: tuple[nn.Module, list[Params], Tensor, Tensor], norm: str, epsilon: float
) -> None:
    model, (params, _), x, y = digits
    threat = NORMS[norm](epsilon)

    def f(z: Tensor) -> Tensor:
        return run_model(model, params, z)

    noise = accuracy(f, random_noise(f, x, y, threat), y)
    single = accuracy(f, fgsm(f, x, y, threat), y)
    many = accuracy(f, pgd(f, x, y, threat, steps=20), y)
    attacks = ensemble(steps=30, targets=9, queries=50)
    result = evaluate(model, params, x, y, threat, attacks)
    left = list(result.robust.values())
    assert result.clean >= noise > single >= many >= left[-1] > 0
    assert left == sorted(left, reverse=True)
    assert accuracy(f, result.x, y) == left[-1]
    assert float(distance(result.x, x, 1, norm).max()) <= epsilon + 1e-6


class Masked(nn.Module):
    """A network behind logits that saturate the loss, or behind inputs rounded to steps."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, x: Tensor) -> Tensor:
        return 1e6 * self.inner(x) if self.kind == "scaled" else self.inner((8 * x).round() / 8)


@pytest.mark.parametrize("kind", ["scaled", "rounded"])
def test_masked_gradients_fool_pgd_but_not_square(
    digits: tuple[nn.Module, list[Params], Tensor, Tensor], kind: str
) -> None:
    inner, (params, _), x, y = digits
    model, threat = Masked(inner, kind).eval(), LInf(0.12)
    own = {f"inner.{name}": tensor for name, tensor in params.items()}

    def f(z: Tensor) -> Tensor:
        return run_model(model, own, z)

    clean = accuracy(f, x, y)
    misled = accuracy(f, pgd(f, x, y, threat, steps=20), y)
    squares = square_attack(f, x, y, threat, queries=200)
    assert misled >= clean - 0.1
    assert accuracy(f, squares.x, y) <= misled - 0.2
    result = evaluate(model, own, x, y, threat, ensemble(steps=10, targets=3, queries=200))
    assert result.robust["APGD-CE"] >= clean - 0.1
    assert result.robust["Square"] <= misled - 0.2
    seen_by = "APGD-T" if kind == "scaled" else "Square"  # DLR does not mind the scale
    before = "APGD-CE" if kind == "scaled" else "APGD-T"
    assert result.robust[seen_by] <= result.robust[before] - 0.2


# --- Evaluation ----------------------------------------------------------------------------------


class Threshold(nn.Module):
    """Class 1 where the only coordinate exceeds a half."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([0.5 - x, x - 0.5], 1)


LINE = torch.tensor([[0.1], [0.3], [0.45], [0.48], [0.55], [0.9], [0.7]])
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 0])  # the last is a clean error


def pushing(by: float, calls: list[int]) -> Any:
    """An attack that moves samples towards the threshold, and counts them."""

    def attack(predict: Predict, x: Tensor, y: Tensor, threat: Any) -> Tensor:
        calls.append(len(x))
        return threat.project(x + by * (1.0 - 2 * y[:, None]), x, 1)

    return attack


def test_evaluation_by_hand() -> None:
    calls: list[list[int]] = [[], [], []]
    attacks = {str(k): pushing(by, calls[k]) for k, by in enumerate((0.03, 0.01, 0.06))}
    before = LINE.clone()
    result = evaluate(Threshold().eval(), {}, LINE, LABELS, LInf(0.1), attacks)
    assert result.clean == pytest.approx(6 / 7)
    assert result.robust == pytest.approx({"0": 5 / 7, "1": 5 / 7, "2": 3 / 7})
    assert calls == [[6], [5], [5]]
    assert torch.equal(LINE, before)
    expected = LINE.clone()
    expected[3], expected[2], expected[4] = 0.48 + 0.03, 0.45 + 0.06, 0.55 - 0.06
    torch.testing.assert_close(result.x, expected)


def test_evaluation_in_chunks_is_the_same() -> None:
    model, attack = Threshold().eval(), pushing
    calls: list[int] = []
    whole = evaluate(model, {}, LINE, LABELS, LInf(0.1), {"a": attack(0.06, [])})
    parts = evaluate(model, {}, LINE, LABELS, LInf(0.1), {"a": attack(0.06, calls)}, chunk=4)
    assert calls == [4, 2]
    assert whole.clean == parts.clean
    assert whole.robust == parts.robust
    assert torch.equal(whole.x, parts.x)


def test_evaluation_without_attacks_is_clean_accuracy() -> None:
    result = evaluate(Threshold().eval(), {}, LINE, LABELS, LInf(0.1), {})
    assert result.clean == pytest.approx(6 / 7)
    assert result.robust == {}
    assert torch.equal(result.x, LINE)


def test_evaluation_goes_on_where_nothing_still_stands() -> None:
    calls: list[int] = []
    attacks = {"strong": pushing(0.6, []), "late": pushing(0.6, calls), **ensemble(steps=2)}
    result = evaluate(Threshold().eval(), {}, LINE, LABELS, LInf(0.6), attacks)
    assert list(result.robust) == ["strong", "late", "APGD-CE", "APGD-T", "Square"]
    assert set(result.robust.values()) == {0.0}
    assert sum(calls) == 0
    wrong = evaluate(Threshold().eval(), {}, LINE, 1 - (LINE > 0.5).long()[:, 0], L2(0.1), attacks)
    assert wrong.clean == 0
    assert set(wrong.robust.values()) == {0.0}


@pytest.mark.parametrize("norm", NORMS)
@settings(max_examples=10, deadline=None)
@given(problem=problems(leads=(1,)), epsilon=st.sampled_from([0.0, 0.1, 0.4]))
def test_accuracy_never_rises_from_stage_to_stage(
    norm: str, problem: Problem, epsilon: float
) -> None:
    class Wrapped(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return problem.predict(x)

    y = problem.predict(problem.x).argmax(-1)
    threat = NORMS[norm](epsilon)
    sequence = {
        "one": lambda f, x, y, t: fgsm(f, x, y, t),
        "two": lambda f, x, y, t: random_noise(f, x, y, t, tries=2),
        "three": lambda f, x, y, t: apgd(f, x, y, t, steps=4).x,
    }
    result = evaluate(Wrapped().eval(), {}, problem.x, y, threat, sequence)
    left = [result.clean, *result.robust.values()]
    assert left == sorted(left, reverse=True)
    moved = (result.x != problem.x).reshape(len(y), -1).any(1)
    assert bool((problem.predict(result.x[moved]).argmax(-1) != y[moved]).all())
    assert float(moved.double().mean()) == pytest.approx(1 - left[-1])


def test_ensemble_skips_square_where_it_cannot_run_and_names_its_members() -> None:
    assert list(ensemble()) == ["APGD-CE", "APGD-T", "Square"]
    assert list(ensemble(queries=0)) == ["APGD-CE", "APGD-T"]
    x, y, f = torch.rand(3, 1, 4, 4), torch.arange(3), network((1, 4, 4), 4, 0, torch.float32)
    squares = ensemble(queries=5)["Square"]
    assert torch.equal(squares(f, x, y, L2(0.1)), x)
    flat = network((16,), 4, 0, torch.float32)
    assert torch.equal(squares(flat, x.flatten(1), y, LInf(0.1)), x.flatten(1))
    assert not torch.equal(squares(f, x, y, LInf(0.1)), x)


# --- Errors --------------------------------------------------------------------------------------

FLAT = network((16,), 4)
PICTURE = network((1, 4, 4), 4)
X, Y = torch.full((3, 16), 0.5, dtype=torch.float64), torch.arange(3)


def with_value(value: float) -> Tensor:
    x = X.clone()
    x[1, 2] = value
    return x


BAD_INPUTS = {
    "below": (with_value(-1e-6), Y, r"inputs must lie in \[0, 1\]"),
    "above": (with_value(1.001), Y, r"inputs must lie in \[0, 1\], got values from 0.5 to 1.001"),
    "nan": (with_value(float("nan")), Y, r"inputs must lie in \[0, 1\], got values from nan"),
    "inf": (with_value(float("inf")), Y, r"inputs must lie in \[0, 1\]"),
    "empty": (X[:0], Y[:0], "at least one sample, got an empty batch"),
    "no coordinates": (X[:, :0], Y, "inputs"),
    "more labels": (X, torch.arange(4), r"one label per input: got inputs \(3, 16\), labels \(4,"),
    "fewer labels": (X, Y[:2], "one label per input"),
    "stacked labels": (X, Y.expand(2, 3), "one label per input"),
    "no axis": (X[0], Y[0], "label"),
    "negative": (X, Y - 1, "labels must be >= 0, got -1"),
    "ignored": (X, Y - 100, "labels must be >= 0, got -100"),
    "beyond": (X, Y + 2, "label.*4"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("kind", BAD_INPUTS)
def test_what_cannot_be_attacked_is_refused(attack: str, kind: str) -> None:
    x, y, message = BAD_INPUTS[kind]
    f = FLAT
    if attack == "square" and x.shape[-1] == 16:
        x, f = x.view(*x.shape[:-1], 1, 4, 4), PICTURE
        message = message.replace(r"\(3, 16\)", r"\(3, 1, 4, 4\)")
    with pytest.raises(ValueError, match=message):
        ATTACKS[attack](f, x, y, LInf(0.1), 0)


@pytest.mark.parametrize("kind", [k for k in BAD_INPUTS if k not in ("no axis", "stacked labels")])
def test_what_cannot_be_evaluated_is_refused(kind: str) -> None:
    x, y, message = BAD_INPUTS[kind]

    class Wrapped(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return FLAT(inputs)

    with pytest.raises(ValueError, match=message):
        evaluate(Wrapped().eval(), {}, x, y, LInf(0.1), ensemble(steps=2, queries=0))


def test_evaluation_insists_on_eval_mode() -> None:
    model = Threshold()
    with pytest.raises(ValueError, match=r"eval mode, call model\.eval\(\) first"):
        evaluate(model, {}, LINE, LABELS, LInf(0.1), {"never": pushing(0.1, [])})
    assert model.training


@pytest.mark.parametrize("number", [0, -1])
def test_too_few_steps_are_refused(number: int) -> None:
    threat, picture = LInf(0.1), X.view(3, 1, 4, 4)
    with pytest.raises(ValueError, match=f"steps must be >= 1.* got {number}"):
        pgd(FLAT, X, Y, threat, steps=number)
    with pytest.raises(ValueError, match=f"steps must be >= 1.* got {number}"):
        apgd(FLAT, X, Y, threat, steps=number)
    with pytest.raises(ValueError, match=f"steps must be >= 1.* got {number}"):
        targeted_apgd(FLAT, X, Y, threat, steps=number)
    with pytest.raises(ValueError, match=rf"queries >= 1.*{number}"):
        square_attack(PICTURE, picture, Y, threat, queries=number)
    with pytest.raises(ValueError, match=f"tries.*{number}"):
        random_noise(FLAT, X, Y, threat, tries=number)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"share in \(0, 1\]"):
        square_attack(PICTURE, X.view(3, 1, 4, 4), Y, LInf(0.1), share=share)


def test_unknown_choices_are_refused() -> None:
    unknown: Any = "first"
    with pytest.raises(ValueError, match="keep last or best, got 10 and 'first'"):
        pgd(FLAT, X, Y, LInf(0.1), keep=unknown)
    with pytest.raises(ValueError, match="'first', allowed: margin, dlr"):
        targeted(Y, unknown)
    with pytest.raises(ValueError, match="LInf threat model, got L2"):
        square_attack(PICTURE, X.view(3, 1, 4, 4), Y, L2(0.1))
    with pytest.raises(ValueError, match=r"images .* got inputs \(3, 16\)"):
        square_attack(FLAT, X, Y, LInf(0.1))
    for wrong in ({"steps": -1}, {"targets": -1}, {"queries": -2}):
        with pytest.raises(ValueError, match="must be >= "):
            ensemble(**wrong)


def test_losses_refuse_too_few_classes() -> None:
    y = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="the DLR loss needs at least 3 classes, got 2"):
        dlr_loss(torch.rand(3, 2), y)
    with pytest.raises(ValueError, match="the targeted DLR loss needs at least 4 classes, got 3"):
        targeted(y + 1)(torch.rand(3, 3), y)
    with pytest.raises(ValueError, match="at least 2 classes"):
        margin_loss(torch.rand(3, 1), y)
    two = network((16,), 2)
    with pytest.raises(ValueError, match="the DLR loss needs at least 3 classes, got 2"):
        apgd(two, X, y, LInf(0.1), steps=2, loss=dlr_loss)


@every_norm
def test_apgd_starts_where_it_is_told(norm: str) -> None:
    x = torch.rand(6, 5, dtype=torch.float64, generator=stream(7))
    y, f, threat = torch.arange(6) % 4, network((5,), 4), NORMS[norm](0.2)
    drawn = threat.random(x, 1, generator(3, START))
    told = apgd(f, x, y, threat, steps=8, start=drawn)
    assert torch.equal(told.x, apgd(f, x, y, threat, steps=8, seed=3).x)
    far = apgd(f, x, y, threat, steps=8, start=x + 5)
    assert torch.equal(far.history[0], cross_entropy(f(threat.project(x + 5, x, 1)), y).detach())


def test_neighbouring_seeds_of_the_targeted_attack_share_no_start() -> None:
    """With seed + rank, class 1 under seed 0 would start where class 0 under seed 1 does."""
    x = torch.full((4, 6), 0.5, dtype=torch.float64)
    y, f, seen = torch.arange(4) % 4, network((6,), 4), []

    def watched(z: Tensor) -> Tensor:
        seen.append(z.detach().clone())
        return f(z)

    for seed in (0, 1):
        targeted_apgd(watched, x, y, LInf(0.3), steps=1, targets=3, seed=seed)
    first, second = seen[1:7:2], seen[8::2]  # the clean inputs come first, then start and step
    assert not any(torch.equal(a, b) for a in first for b in second)


def test_an_ensemble_lists_no_attack_that_does_nothing() -> None:
    assert list(ensemble()) == ["APGD-CE", "APGD-T", "Square"]
    assert list(ensemble(targets=0)) == ["APGD-CE", "Square"]
    assert list(ensemble(targets=0, queries=0)) == ["APGD-CE"]


@every_norm
def test_step_to_the_least_likely_class_raises_it_the_most(norm: str) -> None:
    """On a linear map with two classes it is FGSM; with more, the least likely class gains."""
    x = torch.rand(20, 6, dtype=torch.float64, generator=stream(8))
    weight = torch.randn(6, 2, dtype=torch.float64, generator=stream(9))
    threat = NORMS[norm](0.1)
    f = lambda z: z @ weight  # noqa: E731
    leader = f(x).argmax(-1)
    found = step_least_likely(f, x, leader, threat)
    torch.testing.assert_close(found, fgsm(f, x, leader, threat))
    many = network((6,), 5)
    least = many(x).argmin(-1)
    before, after = (
        cross_entropy(many(z), least) for z in (x, step_least_likely(many, x, least, threat))
    )
    assert bool((after < before).all())

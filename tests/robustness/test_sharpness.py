"""Sharpness: the attack made anew at every point, and steps that are relative to the weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import grad, jacrev
from torch.nn import functional as F

from lmc_lessons.curvature import hessian_of, top_eigenvalues
from lmc_lessons.models import ModelConfig, Params, build, parameter_names, predict, state
from lmc_lessons.robustness.attacks import L2, LInf, Predict, fgsm, pgd
from lmc_lessons.robustness.sharpness import (
    Flatness,
    RobustLoss,
    average_flatness,
    filter_direction,
    layer_direction,
    line_landscape,
    movable,
    moved,
    per_sample,
    plane_landscape,
    rescale,
    worst_flatness,
)

Attack = Callable[[Predict, Tensor, Tensor], Tensor]

TWO = ModelConfig("mlp", (5,), 2, depth=0)  # linear: one step of the attack is exact
SOFTMAX = ModelConfig("mlp", (3,), 4, depth=0)
PLAIN = ModelConfig("mlp", (6,), 3, width=8, depth=2)
BATCH = ModelConfig("mlp", (6,), 3, width=5, depth=2, norm="batch")
LAYER = ModelConfig("mlp", (6,), 3, width=5, depth=1, norm="layer")
CONV = ModelConfig("cnn", (1, 4, 4), 3, width=2)
CONV_BATCH = ModelConfig("cnn", (2, 4, 4), 3, width=2, norm="batch")
CONV_LAYER = ModelConfig("cnn", (1, 4, 4), 3, width=2, norm="layer")
EVERY = [TWO, PLAIN, BATCH, LAYER, CONV, CONV_BATCH, CONV_LAYER]
EPSILON = 0.1
BALL = LInf(EPSILON, bounded=False)

every_config = pytest.mark.parametrize(
    "config", EVERY, ids=lambda c: f"{c.architecture}{c.depth}-{c.norm}"
)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(config: ModelConfig, seed: int) -> Params:
    """A network in float64 whose normalisation is not the identity."""
    own = stream(seed)
    found = {}
    for name, tensor in state(build(config)).items():
        noise = torch.randn(tensor.shape, generator=own, dtype=torch.float64)
        if name.endswith("num_batches_tracked"):
            found[name] = torch.tensor(7 + seed)
        elif name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
            found[name] = noise.exp().clamp(0.5, 2)
        elif tensor.dim() > 1:
            found[name] = 1.5 * noise / math.sqrt(tensor[0].numel())
        else:
            found[name] = 0.4 * noise
    return found


def samples(config: ModelConfig, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    own = stream(seed)
    x = torch.rand(count, *config.input_shape, generator=own, dtype=torch.float64)
    return x, torch.randint(0, config.classes, (count,), generator=own)


def module(config: ModelConfig, params: Params) -> nn.Module:
    found = build(config).double().eval()
    found.load_state_dict(params)
    return found


def clean_loss(config: ModelConfig, params: Params, x: Tensor, y: Tensor) -> float:
    """Log of the sum of all exponentials, minus the true logit; sample by sample."""
    with torch.no_grad():
        logits = module(config, params)(x).tolist()
    rows = zip(logits, y.tolist(), strict=True)
    return math.fsum(math.log(sum(map(math.exp, row))) - row[k] for row, k in rows) / len(y)


def linear_robust_loss(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Two classes, no box: the worst input moves the margin by epsilon times an absolute sum."""
    slope, shift = weight[1] - weight[0], bias[1] - bias[0]
    margin = (2 * y - 1) * (x @ slope + shift) - EPSILON * slope.abs().sum()
    return F.softplus(-margin).mean()


def climb(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    return pgd(predict, x, y, LInf(EPSILON), steps=4, random_start=False)


def climb_round(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    return pgd(predict, x, y, L2(0.4), steps=3, random_start=False)


def exact(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """The worst input of a linear classifier with two classes."""
    return fgsm(predict, x, y, BALL)


def loss_of(
    config: ModelConfig, count: int = 12, attack: Attack | None = None, together: int = 16
) -> RobustLoss:
    x, y = samples(config, count)
    return RobustLoss(build(config).double().eval(), x, y, attack, together)


def assert_same(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def one_line(error: pytest.ExceptionInfo[ValueError]) -> bool:
    return "\n" not in str(error.value)


class Watched(nn.Module):
    """Notes the weights and inputs of every pass."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.inner = build(config).double()
        self.seen: list[tuple[Params, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        weights = {n: t.detach().clone() for n, t in self.inner.state_dict().items()}
        self.seen.append((weights, x.detach().clone()))
        return self.inner(x)


def watched(
    config: ModelConfig, params: Params, count: int = 12, attack: Attack | None = None
) -> tuple[Watched, RobustLoss, Params]:
    model = Watched(config).eval()
    x, y = samples(config, count)
    named = {f"inner.{name}": tensor for name, tensor in params.items()}
    return model, RobustLoss(model, x, y, attack), named


def fitted(config: ModelConfig, x: Tensor, y: Tensor, steps: int) -> Params:
    """A network after some steps of Adam on all samples."""
    params = network(config, 1)
    moving = [params[name].requires_grad_() for name in parameter_names(build(config))]
    model, optimizer = build(config).eval(), torch.optim.Adam(moving, lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(predict(model, params, x), y).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in params.items()}


def stationary(config: ModelConfig, x: Tensor, y: Tensor) -> Params:
    """A minimum of a linear classifier on samples that no line separates."""
    params = network(config, 1)
    moving = [tensor.requires_grad_() for tensor in params.values()]
    model = build(config)
    optimizer = torch.optim.LBFGS(
        moving,
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def again() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(predict(model, params, x), y)
        value.backward()
        return value

    optimizer.step(again)
    assert max(float(t.grad.abs().max()) for t in moving if t.grad is not None) < 1e-7
    return {name: tensor.detach() for name, tensor in params.items()}


def clean_loss_at(model: nn.Module, params: Params, x: Tensor, y: Tensor) -> Any:
    """The clean loss as a function of the parameters, buffers fixed; and the parameters."""
    names = parameter_names(model)

    def loss(moving: Params) -> Tensor:
        return F.cross_entropy(predict(model, {**params, **moving}, x), y)

    return loss, {name: params[name] for name in names}


def top_of_hessian(config: ModelConfig, params: Params) -> float:
    x, y = samples(config, 12)
    loss, moving = clean_loss_at(build(config).double().eval(), params, x, y)
    found = top_eigenvalues(hessian_of(loss, moving), moving, which="largest", tolerance=1e-9)
    return float(found.values[0])


# --- The loss of many networks -------------------------------------------------------------------


@every_config
@pytest.mark.parametrize("attack", [None, climb, climb_round], ids=["clean", "linf", "l2"])
def test_robust_loss_is_a_loop_that_attacks_every_network(
    config: ModelConfig, attack: Attack | None
) -> None:
    networks = [network(config, seed) for seed in range(4)]
    loss = loss_of(config, attack=attack, together=3)
    expected = []
    for params in networks:
        x = loss.x if attack is None else attack(module(config, params), loss.x, loss.y)
        expected.append(clean_loss(config, params, x, loss.y))
    found = loss(networks)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-9)
    assert len(set(expected)) == 4


def test_robust_loss_of_linear_classifiers_is_the_closed_form() -> None:
    networks = [network(TWO, seed) for seed in range(5)]
    loss = loss_of(TWO, 20, exact)
    by_hand = [
        float(linear_robust_loss(p["output.weight"], p["output.bias"], loss.x, loss.y))
        for p in networks
    ]
    assert loss(networks).tolist() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("config", [PLAIN, BATCH, CONV], ids=["mlp", "mlp-batch", "cnn"])
def test_chunking_changes_no_number(config: ModelConfig) -> None:
    """Also with random starts, if they are given: the same for every network."""
    networks = [network(config, seed) for seed in range(7)]
    x, _ = samples(config, 12)
    start = BALL.random(x, 1, stream(0))

    def from_there(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        return pgd(predict, x, y, LInf(EPSILON), steps=2, start=start)

    for attack in (None, climb, from_there):
        whole = loss_of(config, attack=attack, together=7)(networks)
        for together in (1, 2, 3, 6, 16):
            found = loss_of(config, attack=attack, together=together)(networks)
            torch.testing.assert_close(found, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("together", "parts"), [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_no_more_networks_at_once_than_allowed(together: int, parts: list[int]) -> None:
    seen = []

    def spy(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        assert x.shape == (len(y), 12, 6)
        assert predict(x).shape == (*y.shape, 3)
        seen.append(len(y))
        return x

    loss_of(PLAIN, attack=spy, together=together)([network(PLAIN, s) for s in range(5)])
    assert seen == parts


@pytest.mark.parametrize("config", [BATCH, CONV_BATCH], ids=["mlp", "cnn"])
def test_measuring_changes_nothing(config: ModelConfig) -> None:
    params, loss = network(config, 0), loss_of(config, attack=climb)
    model = loss.model
    kept, x, own = {n: t.clone() for n, t in params.items()}, loss.x.clone(), state(model)
    average_flatness(loss, params, draws=2)
    worst_flatness(loss, params, LInf(EPSILON), steps=2, restarts=2)
    direction = filter_direction(params, 0)
    line_landscape(loss, params, direction, [0.5])
    plane_landscape(loss, params, direction, layer_direction(model, params, 0), [0.5], [1.0])
    assert_same(params, kept)
    assert_same(state(model), own)
    assert torch.equal(loss.x, x)
    assert not any(part.training for part in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_cross_entropy_of_every_sample_keeps_its_place() -> None:
    logits = torch.randn(3, 4, 5, generator=stream(0), dtype=torch.float64)
    y = torch.randint(0, 5, (3, 4), generator=stream(1))
    found = per_sample(logits, y)
    for k in range(3):
        for n in range(4):
            expected = float(logits[k, n].exp().sum().log() - logits[k, n, y[k, n]])
            assert float(found[k, n]) == pytest.approx(expected)


def test_what_cannot_be_measured_is_refused() -> None:
    x, y = samples(PLAIN, 4)
    model = build(PLAIN).double()
    with pytest.raises(ValueError, match="eval mode"):
        RobustLoss(model.train(), x, y)
    model.eval()
    with pytest.raises(ValueError, match="0 inputs, 0 labels"):
        RobustLoss(model, x[:0], y[:0])
    with pytest.raises(ValueError, match="4 inputs, 3 labels"):
        RobustLoss(model, x, y[:3])
    for together in (0, -2):
        with pytest.raises(ValueError, match=f"at least 1, got {together}"):
            RobustLoss(model, x, y, None, together)


# --- Directions ----------------------------------------------------------------------------------


@every_config
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**30), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_every_filter_of_a_direction_is_as_long_as_its_own(
    config: ModelConfig, seed: int, dtype: torch.dtype
) -> None:
    params = network(config, 0)
    params = {n: t.to(dtype) if t.is_floating_point() else t for n, t in params.items()}
    direction = filter_direction(params, seed)
    assert direction.keys() == params.keys()
    for name, tensor in params.items():
        found = direction[name]
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        if tensor.dim() < 2:
            assert not found.any()
            continue
        for row, filter_ in zip(found, tensor, strict=True):
            assert float(row.norm()) == pytest.approx(float(filter_.norm()), rel=1e-5)


@every_config
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**30), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_every_layer_of_a_direction_is_as_long_as_its_own(
    config: ModelConfig, seed: int, dtype: torch.dtype
) -> None:
    params = network(config, 0)
    params = {n: t.to(dtype) if t.is_floating_point() else t for n, t in params.items()}
    params["output.bias"] = torch.zeros_like(params["output.bias"])
    direction = layer_direction(build(config), params, seed)
    assert direction.keys() == params.keys()
    for name, tensor in params.items():
        found = direction[name]
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        if "norm" in name:
            assert not found.any()
        else:
            assert float(found.norm()) == pytest.approx(float(tensor.norm()), rel=1e-5)
    assert not direction["output.bias"].any()


@every_config
def test_movable_is_all_but_normalisation(config: ModelConfig) -> None:
    model = build(config)
    expected = {name for name in parameter_names(model) if "norm" not in name}
    assert movable(model) == expected
    assert any("norm" in name for name in parameter_names(model)) == (config.norm != "none")


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.LayerNorm(3)], ids=["batch", "layer"])
def test_a_model_that_is_a_normalisation_does_not_move(norm: nn.Module) -> None:
    assert movable(norm) == set()
    assert movable(nn.Sequential(nn.Linear(3, 3), norm)) == {"0.weight", "0.bias"}


@pytest.mark.parametrize("config", [BATCH, CONV_LAYER], ids=["mlp", "cnn"])
def test_the_seed_decides_a_direction(config: ModelConfig) -> None:
    params, model = network(config, 0), build(config)
    before = torch.get_rng_state()
    for draw in (filter_direction, lambda p, s: layer_direction(model, p, s)):
        one, again, other = (draw(params, seed) for seed in (5, 5, 6))
        assert_same(one, again)
        for name, tensor in one.items():
            assert torch.equal(tensor, other[name]) == (not tensor.any())
    assert torch.equal(before, torch.get_rng_state())


def test_a_filter_of_zeros_stays() -> None:
    params = network(PLAIN, 0)
    params["hidden.0.weight"][2] = 0
    direction = filter_direction(params, 0)
    assert not direction["hidden.0.weight"][2].any()
    assert all(bool(tensor.isfinite().all()) for tensor in direction.values())


def test_directions_point_everywhere_alike() -> None:
    """Mean 0, and of n coordinates each has a share of 1/n of the squared length."""
    params = network(SOFTMAX, 0)
    model, row = build(SOFTMAX), params["output.weight"][1]
    rows = torch.stack([filter_direction(params, s)["output.weight"][1] for s in range(1500)])
    layers = torch.stack(
        [layer_direction(model, params, s)["output.weight"].flatten() for s in range(1500)]
    )
    for many, length in ((rows, row.norm()), (layers, params["output.weight"].norm())):
        unit = many / length
        size = unit.shape[1]
        assert float(unit.mean(0).abs().max()) < 4 / math.sqrt(1500 * size)
        second = unit.T @ unit / 1500
        expected = torch.eye(size, dtype=torch.float64) / size
        assert float((second - expected).abs().max()) < 4 * math.sqrt(2 / 1500) / size


def test_a_moved_network_is_the_sum_and_buffers_stay() -> None:
    params = network(BATCH, 0)
    direction = layer_direction(build(BATCH), params, 0)
    found = moved(params, direction, -0.7)
    for name, tensor in params.items():
        if name in movable(build(BATCH)):
            torch.testing.assert_close(found[name], tensor - 0.7 * direction[name])
            assert not torch.equal(found[name], tensor)
        else:
            assert torch.equal(found[name], tensor)


# --- Landscapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [PLAIN, CONV_BATCH], ids=["mlp", "cnn-batch"])
@pytest.mark.parametrize("attack", [None, climb], ids=["clean", "linf"])
def test_line_is_a_loop_and_begins_at_the_centre(
    config: ModelConfig, attack: Attack | None
) -> None:
    params, loss = network(config, 0), loss_of(config, attack=attack, together=2)
    direction = filter_direction(params, 3)
    positions = (-1.0, 0.0, 0.3, 2.0)
    found = line_landscape(loss, params, direction, positions)
    for value, t in zip(found, positions, strict=True):
        there = {n: p + t * direction[n] if p.dim() > 1 else p for n, p in params.items()}
        x = loss.x if attack is None else attack(module(config, there), loss.x, loss.y)
        assert value == pytest.approx(clean_loss(config, there, x, loss.y), rel=1e-9)
    assert found[1] == pytest.approx(float(loss([params])[0]), rel=1e-12)


@pytest.mark.parametrize("attack", [None, climb], ids=["clean", "linf"])
def test_plane_is_a_loop_with_rows_along_the_second_direction(attack: Attack | None) -> None:
    params, loss = network(PLAIN, 0), loss_of(PLAIN, attack=attack)
    first, second = (layer_direction(loss.model, params, seed) for seed in (1, 2))
    u, v = (-0.5, 0.0, 0.25, 1.0), (0.0, 0.5, -1.0)
    found = plane_landscape(loss, params, first, second, u, v)
    assert [len(row) for row in found] == [4, 4, 4]
    for row, height in zip(found, v, strict=True):
        for value, along in zip(row, u, strict=True):
            there = {n: p + along * first[n] + height * second[n] for n, p in params.items()}
            x = loss.x if attack is None else attack(module(PLAIN, there), loss.x, loss.y)
            assert value == pytest.approx(clean_loss(PLAIN, there, x, loss.y), rel=1e-9)
    assert found[0] == pytest.approx(line_landscape(loss, params, first, u))
    assert found[0][1] == pytest.approx(float(loss([params])[0]), rel=1e-12)


def test_directions_of_another_shape_are_refused() -> None:
    params, loss = network(PLAIN, 0), loss_of(PLAIN)
    fits, other = filter_direction(params, 0), filter_direction(network(TWO, 0), 0)
    with pytest.raises(ValueError, match=r"differ at .*: shapes"):
        line_landscape(loss, params, other, [1.0])
    for pair in ((fits, other), (other, fits)):
        with pytest.raises(ValueError, match=r"differ at .*: shapes"):
            plane_landscape(loss, params, *pair, [1.0], [1.0])


@pytest.mark.parametrize("bounded", [True, False], ids=["box", "free"])
@pytest.mark.parametrize("seed", range(3))
def test_a_frozen_attack_is_a_lower_bound_on_the_line(seed: int, bounded: bool) -> None:
    """A linear classifier: the attack made anew is exact, and at the centre both are the same."""
    threat = LInf(EPSILON, bounded)
    params = network(TWO, seed)

    def anew(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        return fgsm(predict, x, y, threat)

    loss = loss_of(TWO, 30, anew)
    frozen_x = fgsm(module(TWO, params), loss.x, loss.y, threat)
    frozen = RobustLoss(loss.model, frozen_x, loss.y)
    positions = [k / 5 for k in range(-10, 11)]
    direction = filter_direction(params, seed)
    high, low = (line_landscape(f, params, direction, positions) for f in (loss, frozen))
    assert high[10] == pytest.approx(low[10], rel=1e-12)
    assert all(a >= b - 1e-12 for a, b in zip(high, low, strict=True))
    assert high[0] > low[0] + 1e-3
    assert high[-1] > low[-1] + 1e-3


# --- Second order: relative traces ---------------------------------------------------------------


def relative_trace(params: Params, second: Params, blocks: dict[str, list[Any]]) -> float:
    """Sum over blocks of the squared length of the block, over its size, times a trace."""
    total = 0.0
    for name, parts in blocks.items():
        size = params[name].numel()
        diagonal = second[name].reshape(size, size).diagonal().view(params[name].shape)
        for part in parts:
            weights = params[name][part]
            total += float(weights.square().sum() / weights.numel() * diagonal[part].sum())
    return total


def test_small_steps_around_a_minimum_measure_a_relative_trace() -> None:
    """To second order, for filters along lines and for layers on the sphere."""
    x, y = samples(SOFTMAX, 60, 4)
    params, model = stationary(SOFTMAX, x, y), build(SOFTMAX).double().eval()
    loss, (weight, bias) = RobustLoss(model, x, y, None, 64), ("output.weight", "output.bias")
    mean_loss, moving = clean_loss_at(model, params, x, y)
    dense = jacrev(grad(mean_loss))(moving)
    second = {name: dense[name][name] for name in moving}
    step, draws = 0.02, 800
    centre = float(loss([params])[0])
    rows = range(SOFTMAX.classes)
    filters = torch.tensor(
        [
            line_landscape(loss, params, filter_direction(params, seed), [step])[0]
            for seed in range(draws)
        ]
    )
    layers = average_flatness(loss, params, radius=step, draws=draws)
    for losses, blocks in (
        (filters, {weight: list(rows)}),
        (torch.tensor(layers.losses), {weight: [...], bias: [...]}),
    ):
        rises = (losses.double() - centre) / (step**2 / 2)
        error = float(rises.std()) / math.sqrt(draws)
        expected = relative_trace(params, second, blocks)
        assert error < 0.05 * expected
        assert abs(float(rises.mean()) - expected) < 4 * error + 1e-3 * expected


# --- Average-case flatness -----------------------------------------------------------------------


def test_average_flatness_is_the_mean_over_points_on_the_sphere_minus_the_centre() -> None:
    params = network(BATCH, 0)
    params["output.bias"] = torch.zeros_like(params["output.bias"])
    model, loss, named = watched(BATCH, params)
    found = average_flatness(loss, named, radius=0.3, draws=6)
    points = [weights for weights, _ in model.seen]
    assert len(points) == 7
    assert_same(points[0], params)
    for point in points[1:]:
        for name, tensor in params.items():
            share = 0 if "norm" in name else 0.3
            gap = float((point[name] - tensor).double().norm())
            assert gap == pytest.approx(share * float(tensor.double().norm()), rel=1e-9, abs=1e-12)
    assert len({float(point["output.weight"][0, 0]) for point in points}) == 7
    losses = [clean_loss(BATCH, point, loss.x, loss.y) for point in points]
    assert found.centre == pytest.approx(losses[0], rel=1e-9)
    assert found.losses == pytest.approx(losses[1:], rel=1e-9)
    assert found.rise == pytest.approx(sum(losses[1:]) / 6 - losses[0], rel=1e-9)


def test_average_flatness_attacks_every_point_anew() -> None:
    model, loss, named = watched(TWO, network(TWO, 0), attack=exact)
    found = average_flatness(loss, named, draws=4)
    points = [weights for weights, _ in model.seen[-5:]]  # the passes that are judged
    by_hand = [
        float(linear_robust_loss(p["output.weight"], p["output.bias"], loss.x, loss.y))
        for p in points
    ]
    assert [found.centre, *found.losses] == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("attack", [None, climb], ids=["clean", "linf"])
@pytest.mark.parametrize("factor", [0.2, 0.5, 3.0, 20.0])
def test_flatness_does_not_see_a_rescaling_but_the_hessian_does(
    attack: Attack | None, factor: float
) -> None:
    x, y = samples(PLAIN, 12)
    params = fitted(PLAIN, x, y, 20)
    other = rescale(params, "hidden.0", "hidden.1", factor)
    loss = loss_of(PLAIN, attack=attack)
    for measure in (average, worst):
        one, two = measure(loss, params), measure(loss, other)
        assert one.rise > 1e-3
        assert two.rise == pytest.approx(one.rise, rel=1e-5)
        assert two.losses == pytest.approx(one.losses, rel=1e-5)
    tops = top_of_hessian(PLAIN, params), top_of_hessian(PLAIN, other)
    assert abs(tops[1] / tops[0] - 1) > 0.2


def average(loss: RobustLoss, params: Params) -> Flatness:
    return average_flatness(loss, params, draws=5)


def worst(loss: RobustLoss, params: Params) -> Flatness:
    return worst_flatness(loss, params, LInf(EPSILON), radius=0.01, steps=6, restarts=3)


def scaled_before_batchnorm(params: Params, factor: float) -> Params:
    """All hidden weights times a factor, BatchNorm's statistics with them: the same function."""
    found = dict(params)
    for k in range(BATCH.depth):
        for name in (f"hidden.{k}.weight", f"hidden.{k}.bias", f"norms.{k}.running_mean"):
            found[name] = factor * params[name]
        spread = params[f"norms.{k}.running_var"]
        found[f"norms.{k}.running_var"] = factor**2 * (spread + 1e-5) - 1e-5
    return found


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_flatness_does_not_see_a_joint_factor_before_batchnorm(factor: float) -> None:
    params, loss = network(BATCH, 0), loss_of(BATCH, attack=climb)
    other = scaled_before_batchnorm(params, factor)
    assert loss([other]).tolist() == pytest.approx(loss([params]).tolist(), rel=1e-10)
    for measure in (average, worst):
        one, two = measure(loss, params), measure(loss, other)
        assert abs(one.rise) > 1e-3
        assert two.rise == pytest.approx(one.rise, rel=1e-5)
    tops = top_of_hessian(BATCH, params), top_of_hessian(BATCH, other)
    assert abs(tops[1] / tops[0] - 1) > 0.05


def test_more_draws_make_the_mean_steadier() -> None:
    """With 16 times as many, the standard error is a quarter."""
    params, loss = network(PLAIN, 0), loss_of(PLAIN, together=128)
    few, many = (
        torch.tensor(
            [average_flatness(loss, params, draws=draws, seed=s).rise for s in range(1, 25)]
        )
        for draws in (4, 64)
    )
    assert 0.15 < float(many.std() / few.std()) < 0.4
    assert abs(float(few.mean() - many.mean())) < 3 * float(few.std()) / math.sqrt(24)


def test_seeds_share_no_draw() -> None:
    params, loss = network(PLAIN, 0), loss_of(PLAIN)
    runs = [average_flatness(loss, params, draws=4, seed=seed) for seed in (0, 0, 1, 2)]
    assert runs[0] == runs[1]
    assert len({value for run in runs[1:] for value in run.losses}) == 12
    runs = [
        worst_flatness(loss, params, BALL, steps=1, restarts=3, seed=seed) for seed in (0, 0, 1, 2)
    ]
    assert runs[0] == runs[1]
    assert len({value for run in runs[1:] for value in run.losses}) == 9


@pytest.mark.parametrize("radius", [0.0, -0.1, math.inf, math.nan])
def test_radii_out_of_range_are_refused(radius: float) -> None:
    params, loss = network(PLAIN, 0), loss_of(PLAIN)
    with pytest.raises(ValueError, match=f"radius > 0.*got {radius}") as error:
        average_flatness(loss, params, radius=radius)
    assert one_line(error)
    with pytest.raises(ValueError, match=f"radius > 0.*got {radius}") as error:
        worst_flatness(loss, params, BALL, radius=radius)
    assert one_line(error)


@pytest.mark.parametrize("count", [0, -1])
def test_numbers_below_one_are_refused(count: int) -> None:
    params, loss = network(PLAIN, 0), loss_of(PLAIN)
    with pytest.raises(ValueError, match=f"at least one draw.* and {count}") as error:
        average_flatness(loss, params, draws=count)
    assert one_line(error)
    with pytest.raises(ValueError, match=f"at least one.* and {count}") as error:
        worst_flatness(loss, params, BALL, restarts=count)
    assert one_line(error)
    with pytest.raises(ValueError, match=f"steps must be at least 1, got {count}") as error:
        worst_flatness(loss, params, BALL, steps=count)
    assert one_line(error)


# --- Worst-case flatness -------------------------------------------------------------------------


@pytest.mark.parametrize("config", [BATCH, CONV_LAYER], ids=["mlp-batch", "cnn-layer"])
def test_weights_climb_inside_the_ball_of_every_layer(config: ModelConfig) -> None:
    params, radius = network(config, 0), 0.05
    params["output.bias"] = torch.zeros_like(params["output.bias"])
    model, loss, named = watched(config, params)
    found = worst_flatness(loss, named, BALL, radius=radius, steps=7, restarts=3)
    farthest = dict.fromkeys(params, 0.0)
    for weights, x in model.seen:
        assert float((x - loss.x).abs().max()) <= EPSILON + 1e-12
        for name, tensor in params.items():
            if "norm" in name:
                assert torch.equal(weights[name], tensor)
                continue
            share = float((weights[name] - tensor).norm()) / max(float(tensor.norm()), 1e-30)
            farthest[name] = max(farthest[name], share)
    for name, share in farthest.items():
        assert share <= radius * (1 + 1e-9), name
        still = "norm" in name or name == "output.bias"
        assert share == 0 if still else share > 0.999 * radius, name
    judged = [weights for weights, _ in model.seen[-4:]]
    assert_same(judged[0], params)
    losses = [clean_loss(config, weights, loss.x, loss.y) for weights in judged]
    assert [found.centre, *found.losses] == pytest.approx(losses, rel=1e-9)
    assert found.rise == pytest.approx(max(losses[1:]) - losses[0], rel=1e-9)


def test_the_climb_starts_inside_the_ball_too() -> None:
    """Random starts: in every layer as far as the others, relative to its length."""
    params, radius = network(PLAIN, 0), 0.2
    model, loss, named = watched(PLAIN, params)
    worst_flatness(loss, named, BALL, radius=radius, steps=1, restarts=20)
    shares = []
    for weights, _ in model.seen[:20]:
        own = {float((weights[n] - t).norm() / t.norm()) for n, t in params.items()}
        assert max(own) == pytest.approx(min(own), rel=1e-9)
        shares.append(max(own) / radius)
    assert max(shares) <= 1
    assert len(set(shares)) == 20
    assert min(shares) < 0.4
    assert max(shares) > 0.6


def test_inputs_climb_with_the_weights() -> None:
    """From a random start eight steps of a quarter reach the worst input of a linear classifier."""
    params = network(TWO, 0)
    model, loss, named = watched(TWO, params)
    worst_flatness(loss, named, BALL, radius=1e-3, steps=12, restarts=2)
    passes = model.seen[:24]  # two restarts a step; then those that are judged
    assert len(model.seen) == 27
    for k, (weights, x) in enumerate(passes):
        reached = clean_loss(TWO, weights, x, loss.y)
        highest = float(
            linear_robust_loss(weights["output.weight"], weights["output.bias"], loss.x, loss.y)
        )
        assert reached <= highest + 1e-12
        if k >= 16:
            assert reached == pytest.approx(highest, rel=1e-12)
    starts = passes[0][1], passes[1][1]
    assert not torch.equal(*starts)
    assert all(float((x - loss.x).abs().max()) > 0.9 * EPSILON for x in starts)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threat", [LInf(0.0), BALL], ids=["clean", "linf"])
def test_tiny_balls_give_the_first_order_rise(threat: LInf, seed: int) -> None:
    params, radius = network(TWO, seed), 1e-4
    loss = loss_of(TWO, 30, exact if threat.epsilon else None)
    weight, bias = (params[f"output.{n}"].clone().requires_grad_() for n in ("weight", "bias"))
    if threat.epsilon:
        value = linear_robust_loss(weight, bias, loss.x, loss.y)
    else:
        value = F.cross_entropy(loss.x @ weight.T + bias, loss.y)
    slopes = torch.autograd.grad(value, (weight, bias))
    expected = radius * sum(
        float(w.detach().norm() * g.norm()) for w, g in zip((weight, bias), slopes, strict=True)
    )
    found = worst_flatness(loss, params, threat, radius=radius, restarts=3)
    assert found.centre == pytest.approx(float(value.detach()), rel=1e-12)
    assert found.rise == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("seed", range(3))
def test_wide_balls_give_what_a_dense_search_finds(seed: int) -> None:
    """One input, two classes: weights and biases are circles, searched in steps of a degree."""
    config, radius = ModelConfig("mlp", (1,), 2, depth=0), 0.5
    params, loss = network(config, seed), loss_of(config, 15, exact)
    weight, bias = params["output.weight"], params["output.bias"]
    angles = torch.arange(360, dtype=torch.float64).deg2rad()
    circle = torch.stack([angles.cos(), angles.sin()], 1)
    around = bias + radius * bias.norm() * circle
    slopes = (weight.flatten() + radius * weight.norm() * circle).diff(dim=1)
    margin = slopes.view(-1, 1, 1) * loss.x.view(1, 1, -1) + around.diff(dim=1).view(1, -1, 1)
    margin = (2 * loss.y - 1) * margin - EPSILON * slopes.abs().view(-1, 1, 1)
    highest = float(F.softplus(-margin).mean(2).max())
    found = worst_flatness(loss, params, BALL, radius=radius, steps=30)
    assert max(found.losses) <= highest * (1 + 1e-3)  # the circle between two angles
    assert max(found.losses) >= highest * (1 - 1e-3)
    assert found.rise == pytest.approx(max(found.losses) - found.centre)


@pytest.mark.parametrize("attack", [None, climb], ids=["clean", "linf"])
def test_worst_is_far_above_random_points_of_the_ball(attack: Attack | None) -> None:
    """With the same attack; a hundred random points stay below half of what four climbs find."""
    x, y = samples(PLAIN, 12)
    params, loss = fitted(PLAIN, x, y, 20), loss_of(PLAIN, attack=attack)
    threat = LInf(0.0 if attack is None else EPSILON)
    found = worst_flatness(loss, params, threat, radius=0.02, restarts=4)
    shares = torch.rand(100, generator=stream(0)).tolist()
    tried = loss(
        [
            moved(params, layer_direction(loss.model, params, 1000 + k), 0.02 * share)
            for k, share in enumerate(shares)
        ]
    )
    assert found.rise > 2 * (float(tried.max()) - found.centre)
    assert found.rise > 5 * average_flatness(loss, params, radius=0.02).rise


@pytest.mark.parametrize("steps", [0, 10], ids=["clean", "linf"])
def test_worst_grows_with_the_radius(steps: int) -> None:
    x, y = samples(PLAIN, 12)
    params, threat = fitted(PLAIN, x, y, 20), LInf(EPSILON if steps else 0.0)

    def attack(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        return pgd(predict, x, y, threat, steps=steps, random_start=False) if steps else x

    loss = loss_of(PLAIN, attack=attack)
    rises = [
        worst_flatness(loss, params, threat, radius=radius, restarts=3).rise
        for radius in (0.001, 0.003, 0.01, 0.03, 0.1)
    ]
    assert rises[0] > 0
    assert all(b > 2 * a for a, b in pairwise(rises))


def test_longer_climbs_reach_higher() -> None:
    x, y = samples(PLAIN, 12)
    params, loss = fitted(PLAIN, x, y, 20), loss_of(PLAIN, attack=climb)
    short, long = (
        worst_flatness(loss, params, LInf(EPSILON), radius=0.05, steps=steps, restarts=5)
        for steps in (1, 12)
    )
    assert min(long.losses) > max(short.losses)


# --- Rescaling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "layer", "following"),
    [
        (PLAIN, "hidden.0", "hidden.1"),
        (PLAIN, "hidden.1", "output"),
        (CONV, "conv1", "conv2"),
        (CONV, "conv2", "hidden"),
        (CONV, "hidden", "output"),
    ],
)
@settings(max_examples=15, deadline=None)
@given(factor=st.floats(1e-3, 1e3))
def test_rescaling_leaves_the_function(
    config: ModelConfig, layer: str, following: str, factor: float
) -> None:
    params, (x, _) = network(config, 0), samples(config, 20)
    kept = {name: tensor.clone() for name, tensor in params.items()}
    other = rescale(params, layer, following, factor)
    with torch.no_grad():
        one, two = module(config, params)(x), module(config, other)(x)
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(other[f"{layer}.weight"], factor * params[f"{layer}.weight"])
    torch.testing.assert_close(other[f"{following}.weight"], params[f"{following}.weight"] / factor)
    for tensor in other.values():
        tensor.zero_()
    assert_same(params, kept)


def test_rescaling_refuses_unknown_layers_and_factors() -> None:
    params = network(PLAIN, 0)
    for pair in (("hidden.7", "output"), ("hidden.0", "out"), ("hidden.0.weight", "output")):
        with pytest.raises(ValueError, match=r"no layer .*hidden\.0, hidden\.1, output") as error:
            rescale(params, *pair, 2.0)
        assert one_line(error)
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"above 0, got hidden.0, hidden.1, {factor}") as error:
            rescale(params, "hidden.0", "hidden.1", factor)
        assert one_line(error)
    with pytest.raises(ValueError, match=r"two different layers .*got hidden\.0, hidden\.0, 2"):
        rescale(params, "hidden.0", "hidden.0", 2.0)


def test_a_loss_of_no_network_and_a_model_half_in_train_mode_are_refused() -> None:
    x, y = samples(PLAIN, 4)
    with pytest.raises(ValueError, match="at least one network, got none"):
        RobustLoss(build(PLAIN).double().eval(), x, y)([])
    model = build(PLAIN).eval()
    model.get_submodule("hidden").train()
    with pytest.raises(ValueError, match="eval mode"):
        RobustLoss(model, x, y)


@pytest.mark.parametrize("together", [1, 2, 16])
def test_worst_case_restarts_may_run_in_any_groups(together: int) -> None:
    x, y = samples(PLAIN, 6)
    params = {name: t.float() for name, t in network(PLAIN, 0).items()}
    threat = LInf(0.05)
    loss = RobustLoss(build(PLAIN).eval(), x.float(), y, None, together)
    with torch.no_grad():  # the ascent asks for its own gradients
        found = worst_flatness(loss, params, threat, radius=0.1, steps=3, restarts=5)
    whole = RobustLoss(build(PLAIN).eval(), x.float(), y)
    expected = worst_flatness(whole, params, threat, radius=0.1, steps=3, restarts=5)
    assert found.losses == pytest.approx(expected.losses, rel=1e-6)


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_rescaling_changes_the_top_of_the_hessian(factor: float) -> None:
    """The dense Hessian and Lanczos' iteration agree about both."""
    x, y = samples(PLAIN, 12)
    params = network(PLAIN, 0)
    tops = []
    for point in (params, rescale(params, "hidden.0", "hidden.1", factor)):
        loss, moving = clean_loss_at(build(PLAIN).double().eval(), point, x, y)
        dense = jacrev(grad(loss))(moving)
        rows = [
            torch.cat([dense[a][b].reshape(t.numel(), -1) for b in moving], 1)
            for a, t in moving.items()
        ]
        tops.append(float(torch.linalg.eigvalsh(torch.cat(rows))[-1]))
        assert top_of_hessian(PLAIN, point) == pytest.approx(tops[-1], rel=1e-6)
    assert abs(tops[1] / tops[0] - 1) > 0.2

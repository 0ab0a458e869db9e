"""REPAIR: merged units get the mean and variance between the ends, and nothing else changes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lmc_lessons.connectivity.matching import activation_matching
from lmc_lessons.connectivity.repair import preactivation_moments, repair, variance_ratio
from lmc_lessons.connectivity.symmetry import find_symmetry, permute
from lmc_lessons.datasets import load
from lmc_lessons.evaluation import score
from lmc_lessons.landscape import interpolate
from lmc_lessons.models import ModelConfig, Params, build, initial, predict, state, unstack
from lmc_lessons.training import TrainConfig, train

SMALL = (1, 8, 8)
CONFIGS = {
    "mlp": ModelConfig("mlp", SMALL, 10, 16, 4),
    "cnn": ModelConfig("cnn", SMALL, 10, 4),
    "vgg": ModelConfig("vgg", (3, 32, 32), 10, 1, 11),
    "resnet": ModelConfig("resnet", (3, 8, 8), 10, 1, 20),
}


def double_pair(name: str) -> tuple[nn.Module, Params, Params, Tensor]:
    config = CONFIGS[name]
    a, b = ({n: t.double() for n, t in initial(config, k).items()} for k in (0, 1))
    stream = torch.Generator().manual_seed(2)
    count = 200 if name in ("mlp", "cnn") else 4
    x = torch.randn(count, *config.input_shape, generator=stream, dtype=torch.float64)
    return build(config).double().eval(), a, b, x


def measured(model: nn.Module, params: Params, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and standard deviation of the output of every layer with a weight matrix, by hooks."""
    outputs: dict[str, Tensor] = {}
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):

            def keep(_module: Any, _inputs: Any, out: Tensor, name: str = name) -> None:
                outputs[name] = out.transpose(0, 1).reshape(out.shape[1], -1)

            handles.append(layer.register_forward_hook(keep))
    with torch.no_grad():
        predict(model, params, x)
    for handle in handles:
        handle.remove()
    return {n: (z.mean(1), z.std(1, correction=0)) for n, z in outputs.items()}


def one_hidden_layer(weights: list[list[float]], biases: list[float]) -> tuple[nn.Module, Params]:
    """Linear, ReLU, linear in float64; the last layer sums the hidden units."""
    inputs, units = len(weights[0]), len(weights)
    model = nn.Sequential(nn.Linear(inputs, units), nn.ReLU(), nn.Linear(units, 1)).double().eval()
    params = state(model)
    params["0.weight"] = torch.tensor(weights, dtype=torch.float64)
    params["0.bias"] = torch.tensor(biases, dtype=torch.float64)
    params["2.weight"] = torch.ones_like(params["2.weight"])
    return model, params


SIGNS = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=2)), dtype=torch.float64)


# --- Moments -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_moments_equal_those_of_an_independent_forward_pass(name: str) -> None:
    model, a, _, x = double_pair(name)
    found, expected = preactivation_moments(model, a, x, chunk=3), measured(model, a, x)
    assert list(found) == list(expected)  # in the order in which the layers run
    for layer, moments in found.items():
        torch.testing.assert_close(moments.mean, expected[layer][0], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(moments.deviation, expected[layer][1], rtol=1e-7, atol=1e-9)


def test_moments_by_hand() -> None:
    model, params = one_hidden_layer([[3, 0], [1, 1], [0, 0]], [2, 0, 5])
    moments = preactivation_moments(model, params, SIGNS)["0"]
    assert moments.mean.tolist() == pytest.approx([2, 0, 5])
    assert moments.deviation.tolist() == pytest.approx([3, 2**0.5, 0])


def test_measuring_leaves_no_hook_behind() -> None:
    model, a, _, x = double_pair("mlp")
    preactivation_moments(model, a, x)
    with pytest.raises(RuntimeError, match="shape"):
        preactivation_moments(model, a, x[:, :, :7])
    assert not any(layer._forward_hooks for layer in model.modules())


class Tokens(nn.Module):
    """Linear layers on sequences of tokens: (N, length, 3) to (N, length, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def token_pair() -> tuple[nn.Module, Params, Params, Tensor]:
    model = Tokens().double()
    stream = torch.Generator().manual_seed(0)
    a, b = (
        {n: torch.randn(t.shape, generator=stream).double() for n, t in state(model).items()}
        for _ in range(2)
    )
    return model, a, b, torch.randn(50, 5, 3, generator=stream).double()


@pytest.mark.parametrize("chunk", [7, 1024])
def test_units_of_a_linear_layer_are_on_the_last_axis(chunk: int) -> None:
    """Every token is a sample; axis 1 counts tokens, not units."""
    model, a, _, x = token_pair()
    found = preactivation_moments(model, a, x, chunk=chunk)
    first = x @ a["first.weight"].T + a["first.bias"]
    second = first.clamp_min(0) @ a["second.weight"].T + a["second.bias"]
    for name, z in (("first", first), ("second", second)):
        for unit in range(z.shape[-1]):
            values = z[..., unit].flatten()
            assert float(found[name].mean[unit]) == pytest.approx(float(values.mean()))
            assert float(found[name].deviation[unit]) == pytest.approx(
                float(values.std(correction=0))
            )
        assert len(found[name].mean) == z.shape[-1]
    flat = preactivation_moments(model, a, x.flatten(0, 1))
    for name, moments in found.items():
        for part, other in zip(moments, flat[name], strict=True):
            torch.testing.assert_close(part, other)


@pytest.mark.parametrize("position", [0.5, 0.2])
def test_repair_of_a_network_on_tokens(position: float) -> None:
    model, a, b, x = token_pair()
    repaired = repair(model, a, b, position, x)
    ends = [x @ p["first.weight"].T + p["first.bias"] for p in (a, b)]
    found = x @ repaired["first.weight"].T + repaired["first.bias"]
    for kind in (lambda z: z.mean((0, 1)), lambda z: z.std((0, 1), correction=0)):
        between = (1 - position) * kind(ends[0]) + position * kind(ends[1])
        torch.testing.assert_close(kind(found), between)
    merged = interpolate(a, b, position)
    assert torch.equal(repaired["second.weight"], merged["second.weight"])
    middle = x @ merged["first.weight"].T + merged["first.bias"]
    shares = (
        middle.var((0, 1))
        / ((1 - position) * ends[0].std((0, 1)) + position * ends[1].std((0, 1))).square()
    )
    ratio = variance_ratio(model, a, b, position, x)["first"]
    assert ratio == pytest.approx(float(shares.median()))


# --- Variance collapse ---------------------------------------------------------------------------


def test_two_independent_units_lose_half_of_their_variance() -> None:
    model, a = one_hidden_layer([[1, 0]], [0])
    _, b = one_hidden_layer([[0, 1]], [0])
    assert variance_ratio(model, a, b, 0.5, SIGNS)["0"] == pytest.approx(1 / 2)
    for t in (0.1, 0.25, 0.8):  # in general (1 - t)^2 + t^2
        ratio = variance_ratio(model, a, b, t, SIGNS)["0"]
        assert ratio == pytest.approx((1 - t) ** 2 + t**2)


@pytest.mark.parametrize("correlation", [-1.0, -0.6, 0.0, 0.28, 0.8])
def test_variance_ratio_is_one_plus_the_correlation_over_two(correlation: float) -> None:
    rest = (1 - correlation**2) ** 0.5
    model, a = one_hidden_layer([[2, 0]], [1])
    _, b = one_hidden_layer([[2 * correlation, 2 * rest]], [-1])
    ratio = variance_ratio(model, a, b, 0.5, SIGNS)["0"]
    assert ratio == pytest.approx((1 + correlation) / 2, abs=1e-12)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_identical_networks_lose_nothing_and_the_ends_lose_nothing(name: str) -> None:
    model, a, b, x = double_pair(name)
    for pair, t in (((a, a), 0.5), ((a, b), 0.0), ((a, b), 1.0)):
        ratios = variance_ratio(model, *pair, t, x)
        assert list(ratios.values()) == pytest.approx([1] * len(ratios))


def test_variance_ratio_skips_units_that_are_dead_in_both() -> None:
    model, a = one_hidden_layer([[1, 0], [0, 0], [0, 0]], [0, 1, 2])
    _, b = one_hidden_layer([[0, 1], [0, 0], [0, 0]], [0, 1, 2])
    assert variance_ratio(model, a, b, 0.5, SIGNS)["0"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("position", [0.0, 0.3, 0.5, 1.0])
def test_a_layer_without_a_living_unit_has_lost_nothing(position: float) -> None:
    model, a = one_hidden_layer([[0, 0], [0, 0]], [1, -1])
    _, b = one_hidden_layer([[0, 0], [0, 0]], [3, 0])
    assert variance_ratio(model, a, b, position, SIGNS) == {"0": 1.0, "2": 1.0}
    repaired = repair(model, a, b, position, SIGNS)
    assert all(torch.equal(repaired[n], t) for n, t in interpolate(a, b, position).items())


def test_a_layer_dead_in_one_end_only_is_measured() -> None:
    """Half of B's deviation is left, and half of it is what lies between 0 and B's: ratio 1."""
    model, dead = one_hidden_layer([[0, 0]], [1])
    _, b = one_hidden_layer([[2, 0]], [0])
    assert variance_ratio(model, dead, b, 0.5, SIGNS)["0"] == pytest.approx(1)
    _, turned = one_hidden_layer([[-2, 0]], [0])
    assert variance_ratio(model, turned, b, 0.5, SIGNS)["0"] == 0, "alive at both ends, not between"


def test_variance_shrinks_with_depth() -> None:
    config = ModelConfig("mlp", SMALL, 10, 64, 6)
    a, b = initial(config, 0), initial(config, 1)
    ratios = list(variance_ratio(build(config), a, b, 0.5, torch.randn(200, *SMALL)).values())
    assert all(after < before for before, after in itertools.pairwise(ratios[:-1]))


# --- Repair --------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0.5, 0.2])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_hidden_layer_has_the_moments_between_the_ends(name: str, position: float) -> None:
    model, a, b, x = double_pair(name)
    ends = [measured(model, params, x) for params in (a, b)]
    repaired = measured(model, repair(model, a, b, position, x), x)
    hidden = list(repaired)[:-1]
    assert len(hidden) == len(repaired) - 1 >= 3
    for layer in hidden:
        for kind in (0, 1):
            target = (1 - position) * ends[0][layer][kind] + position * ends[1][layer][kind]
            torch.testing.assert_close(repaired[layer][kind], target, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_only_hidden_weights_and_biases_change(name: str) -> None:
    model, a, b, x = double_pair(name)
    before = [{n: t.clone() for n, t in p.items()} for p in (a, b)]
    merged, repaired = interpolate(a, b, 0.5), repair(model, a, b, 0.5, x)
    changed = {n for n in merged if not torch.equal(merged[n], repaired[n])}
    assert changed == {n for n in merged if not n.startswith("output")}
    for old, new in zip(before, (a, b), strict=True):  # the ends are not written to
        assert all(torch.equal(old[n], new[n]) for n in old)
    assert {t.dtype for t in repaired.values()} == {torch.float64}


def test_each_unit_is_only_scaled_and_shifted() -> None:
    model, a, b, x = double_pair("cnn")
    merged, repaired = interpolate(a, b, 0.5), repair(model, a, b, 0.5, x)
    for layer in ("conv1", "conv2", "hidden"):
        gain = repaired[f"{layer}.weight"].flatten(1) / merged[f"{layer}.weight"].flatten(1)
        torch.testing.assert_close(gain, gain[:, :1].expand_as(gain))
        assert bool((gain > 0).all())


@pytest.mark.parametrize(("position", "end"), [(0, 0), (1, 1), (0.0, 0), (1.0, 1)])
def test_ends_are_untouched(position: float, end: int) -> None:
    model, a, b, x = double_pair("mlp")
    found = repair(model, a, b, position, x)
    assert all(torch.equal(found[n], t) for n, t in (a, b)[end].items())


def test_identical_networks_are_not_changed() -> None:
    model, a, _, x = double_pair("cnn")
    for name, tensor in repair(model, a, a, 0.5, x).items():
        torch.testing.assert_close(tensor, a[name], rtol=1e-9, atol=1e-12)


def test_one_unit_by_hand() -> None:
    """Units x1 and x2 + 4 average to (x1 + x2) / 2 + 2: gain sqrt 2, and the mean stays 2."""
    model, a = one_hidden_layer([[1, 0]], [0])
    _, b = one_hidden_layer([[0, 1]], [4])
    found = repair(model, a, b, 0.5, SIGNS)
    assert found["0.weight"].flatten().tolist() == pytest.approx([2**-0.5, 2**-0.5])
    assert found["0.bias"].tolist() == pytest.approx([2])


def test_unit_that_does_not_vary_is_left_alone() -> None:
    """One unit is constant in both ends; one varies in each, but not in the middle."""
    model, a = one_hidden_layer([[1, 0], [0, 0], [1, 1]], [0, 3, 1])
    _, b = one_hidden_layer([[0, 1], [0, 0], [-1, -1]], [0, 1, 2])
    found, merged = repair(model, a, b, 0.5, SIGNS), interpolate(a, b, 0.5)
    for name in ("0.weight", "0.bias"):
        assert torch.equal(found[name][1:], merged[name][1:])
        assert bool(torch.isfinite(found[name]).all())
    assert not torch.equal(found["0.weight"][0], merged["0.weight"][0])


def test_output_layer_keeps_its_weights_whatever_its_name() -> None:
    model, a = one_hidden_layer([[1, 0], [1, 1]], [0, 1])
    _, b = one_hidden_layer([[0, 1], [1, -1]], [1, 0])
    b["2.weight"] = 3 * b["2.weight"]
    found = repair(model, a, b, 0.5, SIGNS)
    assert found["2.weight"].tolist() == [[2, 2]]


def test_hidden_layer_without_bias_is_named() -> None:
    config = ModelConfig("resnet", (3, 32, 32), 10, 1, 20, "batch")
    params = initial(config, 0)
    with pytest.raises(ValueError, match=r"bias.*\bconv\b"):
        repair(build(config), params, initial(config, 1), 0.5, torch.randn(2, 3, 32, 32))


def test_output_layer_needs_no_bias() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    a, b = state(model), {n: 2 * t for n, t in state(model).items()}
    assert repair(model, a, b, 0.5, SIGNS).keys() == a.keys()


def test_networks_of_different_shapes_are_refused() -> None:
    model, a, _, x = double_pair("mlp")
    other = {**a, "output.bias": torch.zeros(11, dtype=torch.float64)}
    with pytest.raises((ValueError, RuntimeError), match=r"output\.bias|size"):
        repair(model, a, other, 0.5, x)


def test_repair_helps_the_midpoint_of_deep_trained_networks() -> None:
    config = ModelConfig("mlp", SMALL, 10, 64, 6)
    data = load("digits")
    result = train(config, data, [0, 1, 4, 5], TrainConfig(epochs=15, fast=True))
    model, networks = build(config), unstack(result.params)
    symmetry = find_symmetry(model, data.train_x[:2])
    for a, other in (networks[:2], networks[2:]):
        found = activation_matching(symmetry, a, other, data.train_x)
        b = permute(symmetry, other, found)
        plain, repaired = (
            score(model, params, data.test_x, data.test_y)
            for params in (interpolate(a, b, 0.5), repair(model, a, b, 0.5, data.train_x))
        )
        assert repaired.loss < plain.loss
        assert repaired.accuracy > plain.accuracy

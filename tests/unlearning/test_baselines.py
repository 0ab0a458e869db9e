"""Masks, dampening, noise and more training, against formulas and plain programs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch

from lmc_lessons.curvature import fisher_diagonal
from lmc_lessons.datasets import Dataset
from lmc_lessons.models import ModelConfig, Params, build, initial, parameter_names, predict, stack
from lmc_lessons.training import TrainConfig, generator, train
from lmc_lessons.unlearning.baselines import (
    NOISE,
    dampen,
    doubled,
    fisher_noise,
    importances,
    mask_logits,
    train_on,
    without,
)

MLP = ModelConfig("mlp", (3, 3), 4, width=6, depth=1)
CNN = ModelConfig("cnn", (1, 8, 8), 4, width=2, norm="batch")


def images(config: ModelConfig, count: int = 24) -> Dataset:
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(count, *config.input_shape, generator=stream)
    y = torch.arange(count) % config.classes
    return Dataset("random", "test", x, y, x, y, tuple("abcd"))


def same(a: Params, b: Params) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def params() -> Params:
    return initial(MLP, 0)


# --- Data and masks -------------------------------------------------------------------------------


def test_a_class_is_left_out_of_training_and_stays_in_the_test() -> None:
    data = images(MLP)
    rest = without(data, (1, 3))
    assert set(rest.train_y.tolist()) == {0, 2}
    assert torch.equal(rest.train_x, data.train_x[data.train_y % 2 == 0])
    assert torch.equal(rest.test_x, data.test_x)
    assert rest.classes == data.classes


def test_a_mask_moves_one_logit_and_nothing_else(params: Params) -> None:
    before, x = {n: t.clone() for n, t in params.items()}, images(MLP).test_x
    found = mask_logits(params, (2,), 5.0)
    change = predict(build(MLP), found, x) - predict(build(MLP), params, x)
    torch.testing.assert_close(change, torch.tensor([0.0, 0, -5, 0]).expand_as(change))
    assert same(params, before)
    assert not (predict(build(MLP), mask_logits(params, (2,)), x).argmax(1) == 2).any()


# --- Dampening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [MLP, CNN], ids=["mlp", "cnn"])
def test_importances_are_means_of_squares_over_all_and_over_some(config: ModelConfig) -> None:
    data, params, model = images(config), initial(config, 0), build(config).eval()
    whole, part = importances(model, params, data.train_x, data.train_y, (1,))
    chosen = data.train_y == 1
    exact = doubled(params)
    for found, x, y in (
        (whole, data.train_x, data.train_y),
        (part, data.train_x[chosen], data.train_y[chosen]),
    ):
        wanted = fisher_diagonal(model, exact, x.double(), y)
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_part_of_a_mean_is_bounded_by_the_whole(params: Params) -> None:
    """Equation eq-mnc-bound: no weight matters more than N / N_f times as much."""
    data = images(MLP)
    whole, part = importances(build(MLP), params, data.train_x, data.train_y, (1,))
    for name, fisher in part.items():
        assert bool((fisher <= 4 * whole[name] * (1 + 1e-12)).all())
    assert same(params, dampen(params, whole, part, threshold=4.001))


def test_dampening_is_its_formula() -> None:
    params = {"w": torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0]), "n": torch.tensor(7)}
    whole = {"w": torch.tensor([1.0, 1, 1, 0, 1]).double()}
    part = {"w": torch.tensor([1.9, 2.1, 8, 0, 2]).double()}
    found = dampen(params, whole, part, threshold=2.0, strength=1.0)
    torch.testing.assert_close(found["w"], torch.tensor([1.0, -2 / 2.1, 3 / 8, 4, 5]))
    gentle = dampen(params, whole, part, threshold=2.0, strength=4.0)
    torch.testing.assert_close(gentle["w"], torch.tensor([1.0, -2, 3 / 2, 4, 5]))
    assert found["n"] is params["n"]
    assert params["w"].tolist() == [1, -2, 3, 4, 5]


# --- Noise ----------------------------------------------------------------------------------------


def test_without_noise_only_the_head_is_reset(params: Params) -> None:
    x = images(MLP).train_x
    quiet = fisher_noise(build(MLP), params, x, (2,), seed=0, alpha=0.0, head=False)
    assert same(quiet, params)
    reset = fisher_noise(build(MLP), params, x, (2,), seed=0, alpha=0.0)
    for name in ("hidden.0.weight", "hidden.0.bias"):
        assert torch.equal(reset[name], params[name])
    assert torch.equal(reset["output.weight"][[0, 1, 3]], params["output.weight"][[0, 1, 3]])
    assert float(reset["output.weight"][2].abs().max()) < 0.05, "zero, with variance 1e-4"


def test_noise_has_the_spread_of_the_formula(params: Params) -> None:
    data, alpha = images(MLP), 1e-3
    fisher = fisher_diagonal(build(MLP).eval(), doubled(params), data.train_x.double())
    found = fisher_noise(build(MLP), params, data.train_x, (2,), seed=7, alpha=alpha, head=False)
    stream = generator(7, NOISE)
    for name, own in fisher.items():
        most = 1e2 if name.startswith("output") else 1e3
        inverse = (1 / (own + 1e-8)).clamp(max=most)
        if own.dim() > 1:
            inverse = inverse.mean(1, keepdim=True)
        factor = 10 if name.startswith("output") or own.dim() == 1 else 1
        spread = (alpha * factor * inverse).sqrt()
        noise = torch.randn(own.shape, generator=stream, dtype=torch.float64)
        torch.testing.assert_close(found[name], (params[name] + spread * noise).float())


def test_noise_is_decided_by_the_seed(params: Params) -> None:
    x = images(MLP).train_x
    first, again, other = (
        fisher_noise(build(MLP), params, x, (1,), seed=seed) for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not same(first, other)


def test_buffers_stay() -> None:
    data, params = images(CNN), initial(CNN, 0)
    found = fisher_noise(build(CNN), params, data.train_x, (1,), seed=0)
    names = parameter_names(build(CNN))
    assert all(torch.equal(found[n], t) for n, t in params.items() if n not in names)
    assert all(not torch.equal(found[n], params[n]) for n in names)


# --- More training --------------------------------------------------------------------------------


def test_training_further_is_training_from_there(params: Params) -> None:
    data, recipe = images(MLP), TrainConfig(epochs=3, batch_size=8)
    before = {name: tensor.clone() for name, tensor in params.items()}
    run = train(MLP, data, (5,), recipe, start=stack([params]), snapshots=(1, 3))
    (last,) = train_on(MLP, params, data, 5, recipe)
    start, first = train_on(MLP, params, data, 5, recipe, snapshots=(0, 1))
    assert same(last, {n: t[0] for n, t in run.params.items()})
    assert same(first, {n: t[0] for n, t in run.snapshots[1].items()})
    assert same(start, params)
    assert same(params, before)


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("forgotten", "message"),
    [
        ((), "the forget set is empty"),
        ((4,), "cannot forget classes"),
        (range(4), "cannot forget all 4 classes"),
    ],
)
def test_classes_that_cannot_be_forgotten(params: Params, forgotten: Any, message: str) -> None:
    data, before = images(MLP), {name: tensor.clone() for name, tensor in params.items()}
    for attempt in (
        lambda: without(data, forgotten),
        lambda: mask_logits(params, forgotten),
        lambda: fisher_noise(build(MLP), params, data.train_x, forgotten, seed=0),
    ):
        with pytest.raises(ValueError, match=message):
            attempt()
    assert same(params, before)


def test_numbers_and_data_out_of_range(params: Params) -> None:
    data = images(MLP)
    rest = without(data, (1,))
    with pytest.raises(ValueError, match="no input is of the classes to forget"):
        importances(build(MLP), params, rest.train_x, rest.train_y, (1,))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        importances(build(MLP), params, data.train_x * math.nan, data.train_y, (1,))
    for threshold, strength in ((0.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)):
        with pytest.raises(ValueError, match="threshold and strength must be above 0"):
            dampen(params, {}, {}, threshold=threshold, strength=strength)
    with pytest.raises(ValueError, match="alpha must be finite and >= 0, got -1"):
        fisher_noise(build(MLP), params, data.train_x, (1,), seed=0, alpha=-1)
    with pytest.raises(ValueError, match="a network needs a layer named output"):
        mask_logits({"w": torch.zeros(1)}, (0,))


def test_a_dataset_of_one_class_has_nothing_to_leave_out() -> None:
    data = images(MLP)
    alone = dataclasses.replace(
        data, train_y=data.train_y * 0, test_y=data.test_y * 0, class_names=("a",)
    )
    with pytest.raises(ValueError, match="cannot forget all 1 classes"):
        without(alone, (0,))

"""The proximal steps against other minimisers; the hook changes kernels, and nothing else."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import CutOff
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.datasets import Dataset
from lmc_lessons.models import ModelConfig, build, initial, stack, unstack
from lmc_lessons.robustness.absum import (
    Penalised,
    ProximalStep,
    absolute_sums,
    absum,
    absum_step,
    after_each_step,
    checkerboard_step,
    half_squares,
    is_kernel,
    kernel_sums,
    kernels,
    l1_step,
    without_sums,
)
from lmc_lessons.robustness.attacks import LInf
from lmc_lessons.robustness.objectives import AdversarialTraining, Standard
from lmc_lessons.training import DATA_ORDER, TrainConfig, generator, schedule_factor, train

SIGNS = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, -1.0, 1.0]]).double()
CNN = ModelConfig("cnn", (1, 8, 8), 10, width=2)
RECIPE = TrainConfig(epochs=4, batch_size=8, optimizer="sgd", learning_rate=0.1, schedule="step")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def data() -> Dataset:
    x, y = drawn(40, 1, 8, 8).abs().clamp(0, 1).float(), torch.arange(40) % 10
    return Dataset("random", "random", x, y, x[:10], y[:10], tuple("0123456789"))


# --- Sums and steps -------------------------------------------------------------------------------


def test_the_penalty_has_one_absolute_value_for_each_pair_of_channels() -> None:
    weight = drawn(3, 2, 3, 3)
    by_hand = sum(abs(float(weight[j, i].sum())) for j in range(3) for i in range(2))
    assert float(absum(weight)) == pytest.approx(by_hand, rel=1e-12)
    assert kernel_sums(weight).shape == (3, 2)
    stacked = torch.stack([weight, 2 * weight])
    assert absolute_sums(stacked).tolist() == pytest.approx([by_hand, 2 * by_hand])


def test_the_l1_ball_lies_inside() -> None:
    weight = drawn(30, 4, 3, 3)
    assert bool((kernel_sums(weight).abs() <= weight.abs().sum((-2, -1))).all())


@pytest.mark.parametrize("size", [0.0, 0.01, 0.2, 5.0])
@pytest.mark.parametrize(
    ("step", "functionals"),
    [
        (absum_step, torch.ones(1, 9).double()),
        (checkerboard_step, SIGNS.view(1, 9)),
        (l1_step, torch.eye(9).double()),
    ],
    ids=["Absum", "checkerboard", "L1"],
)
def test_steps_are_the_minimisers(step: ProximalStep, functionals: Tensor, size: float) -> None:
    """Against a solver of the smooth problem with a bound on each absolute value."""
    weight = drawn(2, 1, 3, 3, seed=5)
    found = step(weight, size)
    rows = functionals.numpy()
    above = [np.hstack([sign * rows, np.eye(len(rows))]) for sign in (-1, 1)]
    for kernel, ours in zip(weight.view(2, 9).numpy(), found.view(2, 9).numpy(), strict=True):

        def objective(z: Any, kernel: Any = kernel) -> float:
            return float(np.square(z[:9] - kernel).sum() / 2 + size * z[9:].sum())

        search = minimize(
            objective,
            np.concatenate([kernel, np.abs(rows @ kernel) + 0.1]),
            method="SLSQP",
            constraints=[{"type": "ineq", "fun": matrix.__matmul__} for matrix in above],
            options={"ftol": 1e-14, "maxiter": 500},
        )
        own = objective(np.concatenate([ours, np.abs(rows @ ours)]))
        assert own == pytest.approx(search.fun, abs=1e-5)
        np.testing.assert_allclose(ours, search.x[:9], atol=1e-3)


def test_the_three_cases_of_the_step() -> None:
    weight = torch.stack([torch.full((1, 3, 3), v, dtype=torch.float64) for v in (0.5, -0.5, 0.05)])
    found = absum_step(weight, 0.1)
    assert torch.allclose(found[0], torch.tensor(0.4).double())
    assert torch.allclose(found[1], torch.tensor(-0.4).double())
    assert torch.allclose(found[2], torch.tensor(0.0).double(), atol=1e-12)


def test_a_large_step_takes_the_mean_and_nothing_else() -> None:
    weight = drawn(4, 3, 5, 5)
    found = absum_step(weight, 100.0)
    assert float(kernel_sums(found).abs().max()) < 1e-12
    assert torch.allclose(found, weight - weight.mean((-2, -1), keepdim=True), atol=1e-12)
    board = checkerboard_step(weight, 100.0)
    rows, columns = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    signs = (-1.0) ** (rows + columns)
    assert float((board * signs).sum((-2, -1)).abs().max()) < 1e-12
    assert torch.allclose(board - weight, signs * (board - weight)[..., :1, :1], atol=1e-12)


def test_for_one_pixel_it_is_l1() -> None:
    weight = drawn(4, 3, 1, 1)
    assert torch.allclose(absum_step(weight, 0.3), F.softshrink(weight, 0.3), atol=1e-12)
    assert torch.allclose(l1_step(weight, 0.3), F.softshrink(weight, 0.3), atol=1e-12)


@pytest.mark.parametrize("step", [absum_step, checkerboard_step, l1_step])
@pytest.mark.parametrize("size", [-0.1, math.nan, math.inf])
def test_bad_sizes_are_refused(step: ProximalStep, size: float) -> None:
    with pytest.raises(ValueError, match="size must be a number >= 0, got"):
        step(drawn(1, 1, 3, 3), size)


def test_which_tensors_hold_kernels() -> None:
    params = initial(ModelConfig("resnet", (1, 8, 8), 10, width=1, depth=20), 0)
    found = kernels(params)
    assert "conv.weight" in found
    assert not any("shortcut" in name or "output" in name for name in found)
    assert all(tensor.shape[-2:] == (3, 3) for tensor in found.values())
    assert set(kernels(stack([params]), lead=1)) == set(found)
    assert not is_kernel(drawn(4, 3, 1, 1))
    assert is_kernel(drawn(4, 3, 1, 2))


def test_sums_are_taken_off_and_the_rest_stays() -> None:
    params = initial(ModelConfig("resnet", (1, 8, 8), 10, width=1, depth=20), 0)
    found = without_sums(params)
    assert set(found) == set(params)
    for name, tensor in params.items():
        if name in kernels(params):
            assert float(kernel_sums(found[name]).abs().max()) < 1e-5
            change = tensor - found[name]
            assert torch.allclose(change, change[..., :1, :1].expand_as(change), atol=1e-6)
        else:
            assert torch.equal(found[name], tensor), name


# --- The hook -------------------------------------------------------------------------------------


def by_hand(data: Dataset, step: ProximalStep, strength: float, seed: int) -> dict[str, Tensor]:
    """SGD with momentum written out, with the proximal step after each of its steps."""
    model = build(CNN)
    model.load_state_dict(initial(CNN, seed))
    speed = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for epoch in range(RECIPE.epochs):
        order = torch.randperm(40, generator=generator(seed, DATA_ORDER, epoch))
        for k, index in enumerate(order.split(8)):
            rate = RECIPE.learning_rate * schedule_factor(RECIPE, epoch * 5 + k, 5)
            loss = F.cross_entropy(model(data.train_x[index]), data.train_y[index])
            model.zero_grad()
            loss.backward()
            with torch.no_grad():
                for name, p in model.named_parameters():
                    assert p.grad is not None
                    speed[name] = 0.9 * speed[name] + p.grad
                    p.sub_(rate * speed[name])
                    if p.dim() == 4:
                        p.copy_(step(p, rate * strength))
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("step", [absum_step, l1_step, checkerboard_step])
def test_the_hook_is_proximal_gradient_descent(step: ProximalStep, data: Dataset) -> None:
    with after_each_step(step, 0.05):
        found = train(CNN, data, (3, 5), RECIPE).params
    for params, seed in zip(unstack(found), (3, 5), strict=True):
        for name, wanted in by_hand(data, step, 0.05, seed).items():
            assert torch.allclose(params[name], wanted, atol=1e-5), name


def test_strength_zero_changes_nothing(data: Dataset) -> None:
    plain = train(CNN, data, (3,), RECIPE).params
    with after_each_step(absum_step, 0.0):
        found = train(CNN, data, (3,), RECIPE).params
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_the_hook_is_gone_afterwards_also_after_an_error(data: Dataset) -> None:
    plain = train(CNN, data, (3,), RECIPE).params
    with after_each_step(absum_step, 0.5):
        pass
    with pytest.raises(RuntimeError, match="stop"), after_each_step(absum_step, 0.5):
        raise RuntimeError("stop")
    again = train(CNN, data, (3,), RECIPE).params
    assert all(torch.equal(again[name], plain[name]) for name in plain)


def test_training_that_was_cut_off_gives_the_same_numbers(data: Dataset, tmp_path: Path) -> None:
    start = partial(train, CNN, data, (3,), RECIPE)
    with after_each_step(absum_step, 0.05):
        whole = start(loss=Standard()).params
        with pytest.raises(KeyboardInterrupt):
            start(loss=CutOff(Standard(), 12), checkpoint=tmp_path / "part")
        rest = start(loss=Standard(), checkpoint=tmp_path / "part").params
    assert all(torch.equal(rest[name], whole[name]) for name in whole)


def test_other_modules_are_left_alone() -> None:
    """A weight without an axis of seeds, or of one pixel, is none of the hook's business."""
    layers = nn.ModuleList([nn.Conv2d(1, 2, 3), nn.Linear(4, 4)])
    stacked = nn.Parameter(drawn(2, 3, 2, 1, 1))
    kernel = nn.Parameter(drawn(2, 3, 2, 3, 3))
    optimizer = torch.optim.SGD([*layers.parameters(), stacked, kernel], lr=1.0)
    before = [p.detach().clone() for p in optimizer.param_groups[0]["params"]]
    with after_each_step(absum_step, 100.0):
        optimizer.step()
    after = optimizer.param_groups[0]["params"]
    assert all(torch.equal(p, q) for p, q in zip(after[:-1], before[:-1], strict=True))
    assert float(kernel_sums(kernel.detach()).abs().max()) < 1e-10


@pytest.mark.parametrize("strength", [-1.0, math.nan, math.inf])
def test_bad_strengths_are_refused(strength: float) -> None:
    with pytest.raises(ValueError, match="strength must be a number >= 0, got"):
        after_each_step(absum_step, strength).__enter__()
    with pytest.raises(ValueError, match="strength must be a number >= 0, got"):
        Penalised(Standard(), half_squares, strength)


# --- Penalties as gradients -----------------------------------------------------------------------


def test_half_squares_are_weight_decay_of_the_kernels(data: Dataset) -> None:
    """With no other weights in the penalty: kernels as with decay, biases as without."""
    found = train(CNN, data, (3,), RECIPE, loss=Penalised(Standard(), half_squares, 0.1))
    short = TrainConfig(epochs=1, batch_size=40, optimizer="sgd", learning_rate=0.1)
    one = train(CNN, data, (3,), short, loss=Penalised(Standard(), half_squares, 0.1)).params
    plain = train(CNN, data, (3,), short).params
    start = stack([initial(CNN, 3)])
    for name in plain:
        shrunk = 0.1 * 0.1 * start[name] if is_kernel(start[name], lead=1) else 0
        assert torch.allclose(one[name], plain[name] - shrunk, atol=1e-6), name
    assert float(found.params["conv2.weight"].norm()) < float(start["conv2.weight"].norm())


def test_a_penalty_goes_round_any_objective(data: Dataset) -> None:
    objective = AdversarialTraining(LInf(0.1), steps=2)
    plain = train(CNN, data, (3,), RECIPE, loss=objective).params
    free = train(CNN, data, (3,), RECIPE, loss=Penalised(objective, absolute_sums, 0.0)).params
    assert all(torch.allclose(free[name], plain[name], atol=1e-6) for name in plain)


def test_a_gradient_swings_around_zero_and_a_step_rests_there(data: Dataset) -> None:
    recipe = TrainConfig(epochs=20, batch_size=8, optimizer="sgd", learning_rate=0.05)
    with after_each_step(absum_step, 1.0):
        rests = train(CNN, data, (3,), recipe).params
    swings = train(CNN, data, (3,), recipe, loss=Penalised(Standard(), absolute_sums, 1.0)).params
    assert float(kernel_sums(rests["conv2.weight"]).abs().max()) < 1e-6
    assert float(kernel_sums(swings["conv2.weight"]).abs().mean()) > 1e-2

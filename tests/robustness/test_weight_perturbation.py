"""Perturbed weights: steps of the right length and direction, gradients of plain modules there,
and the published recipes step by step.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import CutOff
from stacked import (
    BATCH,
    CLASSES,
    SAMPLES,
    SHAPE,
    STEPS,
    assert_close,
    assert_identical,
    batch,
    gradient,
    network_of,
    random_data,
    starts,
)
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.models import ModelConfig, Params, build, unstack
from lmc_lessons.robustness.attacks import L2, LInf, pgd
from lmc_lessons.robustness.objectives import START, TRADES, AdversarialTraining, Standard
from lmc_lessons.robustness.weight_perturbation import (
    AdversarialWeightPerturbation,
    RandomWeightPerturbation,
    SharpnessAware,
    detach,
    gradient_of,
    is_weight,
    lengths,
    normalised,
)
from lmc_lessons.training import DATA_ORDER, Network, TrainConfig, generator, train

SEEDS = (0, 4, 7)
MLP = ModelConfig("mlp", SHAPE, CLASSES, 6, 2)
CONFIGS = {
    "plain": MLP,
    "batch": dataclasses.replace(MLP, norm="batch"),
    "layer": dataclasses.replace(MLP, norm="layer"),
    "cnn": ModelConfig("cnn", SHAPE, CLASSES, 2, norm="batch"),
}
OBJECTIVES: dict[str, Any] = {
    "standard": Standard(),
    "adversarial": AdversarialTraining(LInf(0.1), steps=3),
    "trades": TRADES(L2(0.3), steps=3),
}
PERTURBED: dict[str, Any] = {
    "awp": AdversarialWeightPerturbation,
    "random": RandomWeightPerturbation,
    "sam": SharpnessAware,
}
LENGTH = 0.05
SHORT = TrainConfig(epochs=2, batch_size=BATCH, learning_rate=1e-2)
PLAIN_SGD = TrainConfig(2, BATCH, "sgd", learning_rate=0.2, momentum=0.0)
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
every_objective = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
every_kind = pytest.mark.parametrize("kind", PERTURBED.values(), ids=PERTURBED)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Watched:
    """An objective that notes on which inputs, and at which weights, its loss was asked for."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.attacks = 0
        self.seen: list[Tensor] = []
        self.weights: list[Params] = []

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        self.attacks += 1
        return self.objective.inputs(network, x, y)

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        self.seen.append(found.clone())
        self.weights.append(copies(network.params))
        return self.objective.loss(network, x, found, y)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(network, x, self.inputs(network, x, y), y)


def copies(params: Params) -> Params:
    return {name: tensor.detach().clone() for name, tensor in params.items()}


def displacement(perturbed: Any, network: Network, x: Tensor, y: Tensor) -> tuple[Params, Watched]:
    """What was added to the weights when the loss was asked for last."""
    watch = Watched(perturbed.objective)
    dataclasses.replace(perturbed, objective=watch)(network, x, y)
    last = watch.weights[-1]
    return {n: last[n] - t.detach() for n, t in network.params.items()}, watch


# --- The independent computation: one plain module ------------------------------------------------


def module_of(config: ModelConfig, values: Params, s: int) -> nn.Module:
    module = build(config).double().train()
    module.load_state_dict(unstack(values)[s])
    return module


def plain_loss(objective: Any, module: nn.Module, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
    if not isinstance(objective, TRADES):
        return F.cross_entropy(module(found), y)
    clean = module(x)
    p, log_q = F.softmax(clean, 1), F.log_softmax(module(found), 1)
    apart = nn.KLDivLoss(reduction="sum")(log_q, p) / len(y)
    return F.cross_entropy(clean, y) + objective.beta * apart


def plain_gradient(
    objective: Any, module: nn.Module, x: Tensor, found: Tensor, y: Tensor
) -> tuple[float, Params]:
    module.zero_grad()
    loss = plain_loss(objective, module, x, found, y)
    loss.backward()
    slopes = {n: p.grad for n, p in module.named_parameters()}
    return loss.item(), {n: g.clone() for n, g in slopes.items() if g is not None}


def total_length(params: Params) -> float:
    return math.sqrt(math.fsum(float(t.square().sum()) for t in params.values()))


# --- The step in weight space ---------------------------------------------------------------------


@every_config
@every_objective
def test_awp_moves_every_weight_tensor_uphill_by_a_share_of_its_length(
    config: ModelConfig, objective: Any
) -> None:
    values, (x, y) = starts(config, SEEDS), batch(3)
    network = network_of(values, config, SEEDS, 3)
    perturbed = AdversarialWeightPerturbation(objective, LENGTH)
    moved, watch = displacement(perturbed, network, x, y)
    assert watch.attacks == 1
    for s, step in enumerate(unstack(moved)):
        module = module_of(config, values, s)
        slopes = plain_gradient(objective, module, x[s], watch.seen[0][s], y[s])[1]
        for name, weight in module.named_parameters():
            w, g = weight.detach(), slopes[name]
            expected = LENGTH * w.norm() * g / g.norm() if w.dim() >= 2 else torch.zeros_like(w)
            torch.testing.assert_close(step[name], expected, rtol=1e-9, atol=1e-15)


@every_config
@every_objective
def test_sam_moves_all_weights_together_uphill_by_a_fixed_length(
    config: ModelConfig, objective: Any
) -> None:
    values, (x, y) = starts(config, SEEDS), batch(3)
    network = network_of(values, config, SEEDS, 3)
    moved, watch = displacement(SharpnessAware(objective, LENGTH), network, x, y)
    assert watch.attacks == 1
    for s, step in enumerate(unstack(moved)):
        assert total_length(step) == pytest.approx(LENGTH, rel=1e-9)
        module = module_of(config, values, s)
        slopes = plain_gradient(objective, module, x[s], watch.seen[0][s], y[s])[1]
        length = total_length(slopes)
        assert_close(step, {n: LENGTH * g / length for n, g in slopes.items()})


@every_config
@every_objective
def test_random_steps_are_as_long_as_those_of_awp(config: ModelConfig, objective: Any) -> None:
    values, (x, y) = starts(config, SEEDS), batch(3)
    network = network_of(values, config, SEEDS, 3)
    moved, watch = displacement(RandomWeightPerturbation(objective, LENGTH), network, x, y)
    uphill, _ = displacement(AdversarialWeightPerturbation(objective, LENGTH), network, x, y)
    assert watch.attacks == 1
    for name, step in moved.items():
        for s in range(len(SEEDS)):
            assert float(step[s].norm()) == pytest.approx(float(uphill[name][s].norm()), rel=1e-9)
        assert (float(step.abs().max()) > 0) == ("weight" in name and "norm" not in name)


def test_random_directions_depend_on_seed_and_step_alone() -> None:
    seen: dict[tuple[int, int], Tensor] = {}
    for k, seeds in enumerate([(0,), (4,), (0, 4), (4, 7, 0)]):
        for step in (0, 1, 9):
            torch.manual_seed(k)
            x, y = batch(len(seeds), seed=k)
            for objective in (OBJECTIVES["standard"], OBJECTIVES["adversarial"]):
                network = network_of(starts(MLP, seeds), MLP, seeds, step)
                moved, _ = displacement(RandomWeightPerturbation(objective), network, x, y)
                weights = [moved[n].flatten(1) for n in moved if n.endswith("weight")]
                for seed, part in zip(seeds, torch.cat(weights, 1), strict=True):
                    known = seen.setdefault((seed, step), part)
                    torch.testing.assert_close(known, part, rtol=0, atol=1e-15)
    for key, part in seen.items():
        for other, known in seen.items():
            cosine = float(F.cosine_similarity(part, known, dim=0))
            assert abs(cosine - (key == other)) < 0.5


def test_random_directions_are_those_of_gaussian_noise() -> None:
    """Their mean is zero, and no coordinate is larger than another, to four standard errors."""
    (x, y), values, steps = batch(1), starts(MLP, (0,)), 400
    found = []
    for step in range(steps):
        network = network_of(values, MLP, (0,), step)
        moved, _ = displacement(RandomWeightPerturbation(Standard(), 1.0), network, x, y)
        found.append(moved["output.weight"].flatten() / values["output.weight"].norm())
    directions = torch.stack(found)
    size = directions.shape[1]
    assert float(directions.mean(0).abs().max()) < 4 / math.sqrt(steps * size)
    squares = directions.square() * size
    assert float((squares.mean(0) - 1).abs().max()) < 4 * math.sqrt(2 / steps)


@every_objective
def test_small_steps_raise_the_loss_as_their_slope_says(objective: Any) -> None:
    """AWP by the weight lengths times the gradient lengths, SAM by the length of all; chance by
    less.
    """
    values, (x, y), small = starts(CONFIGS["layer"], SEEDS), batch(3), 1e-6
    network = network_of(values, CONFIGS["layer"], SEEDS, 3)
    found = objective.inputs(network, x, y)
    here = objective.loss(network, x, found, y).detach()
    slopes = [unstack(gradient_of(objective, network, x, found, y))[s] for s in range(3)]
    weights = [n for n, t in network.params.items() if is_weight(t)]
    rise = {
        name: (kind(objective, small)(network, x, y).detach() - here) / small
        for name, kind in PERTURBED.items()
    }
    for s, slope in enumerate(slopes):
        relative = math.fsum(float(values[n][s].norm() * slope[n].norm()) for n in weights)
        assert float(rise["awp"][s]) == pytest.approx(relative, rel=1e-3)
        assert float(rise["sam"][s]) == pytest.approx(total_length(slope), rel=1e-3)
        assert abs(float(rise["random"][s])) < 0.7 * relative


# --- The loss there -------------------------------------------------------------------------------


@every_config
@every_objective
@every_kind
def test_loss_and_gradient_are_those_of_a_plain_module_at_the_moved_weights(
    kind: Any, objective: Any, config: ModelConfig
) -> None:
    """The step counts as a constant, and the inputs are those found before it."""
    values, (x, y) = starts(config, SEEDS), batch(3)
    found = objective.inputs(network_of(values, config, SEEDS, 3), x, y)
    network = network_of(values, config, SEEDS, 3)
    moved, watch = displacement(kind(objective, LENGTH), network, x, y)
    assert all(torch.equal(seen, found) for seen in watch.seen)
    network = network_of(values, config, SEEDS, 3)
    losses = kind(objective, LENGTH)(network, x, y)
    slopes = unstack(gradient(losses, network))
    for s, step in enumerate(unstack(moved)):
        module = module_of(config, {n: t + moved.get(n, 0) for n, t in values.items()}, s)
        value, expected = plain_gradient(objective, module, x[s], found[s], y[s])
        assert float(losses[s].detach()) == pytest.approx(value, rel=1e-9)
        assert_close(slopes[s], expected, 1e-9)
        assert_close(
            unstack(network.buffers)[s] if network.buffers else {}, dict(module.named_buffers())
        )
        assert total_length(step) > 0
    assert_identical(copies(network.params), {n: values[n] for n in network.params})
    assert all(t.grad is None for t in network.params.values())


def test_a_step_that_is_no_constant_would_have_another_gradient() -> None:
    """The total derivative of the map from w to the loss at w + v(w) has a part through v."""
    values, (x, y) = starts(MLP, SEEDS), batch(3)
    stream, small = torch.Generator().manual_seed(0), 1e-6
    for kind in (AdversarialWeightPerturbation, RandomWeightPerturbation):
        perturbed = kind(Standard(), 0.3)
        network = network_of(values, MLP, SEEDS, 3)
        slope = gradient(perturbed(network, x, y), network)
        ahead = {n: torch.randn(t.shape, generator=stream).double() for n, t in slope.items()}
        there, back = (
            network_of({n: t + h * ahead[n] for n, t in values.items()}, MLP, SEEDS, 3)
            for h in (small, -small)
        )
        total = (perturbed(there, x, y) - perturbed(back, x, y)).detach() / (2 * small)
        partial = torch.stack([(slope[n] * ahead[n]).flatten(1).sum(1) for n in slope]).sum(0)
        assert float((total - partial).abs().max()) > 1e-2


@every_config
@every_objective
@every_kind
def test_length_zero_is_the_objective_bit_for_bit(
    kind: Any, objective: Any, config: ModelConfig
) -> None:
    values, (x, y) = starts(config, SEEDS), batch(3)
    plain, network = (network_of(values, config, SEEDS, 3) for _ in range(2))
    wanted, losses = objective(plain, x, y), kind(objective, 0.0)(network, x, y)
    assert torch.equal(losses, wanted)
    assert_identical(gradient(losses, network), gradient(wanted, plain))
    assert_identical(network.buffers, plain.buffers)


# --- Training, against the published recipes ------------------------------------------------------


def published_awp(proxy: nn.Module, batch_loss: Any, gamma: float) -> Params:
    """A copy goes uphill by one step of SGD; its displacement is rescaled tensor by tensor."""
    before = copies(dict(proxy.named_parameters()))
    ascent = torch.optim.SGD(proxy.parameters(), lr=0.01, maximize=True)
    batch_loss(proxy).backward()
    ascent.step()
    found = {}
    for name, weight in proxy.named_parameters():
        if weight.dim() >= 2 and "weight" in name:
            change = weight.detach() - before[name]
            found[name] = gamma * before[name].norm() / (change.norm() + 1e-20) * change
    return found


def published_sam(proxy: nn.Module, batch_loss: Any, rho: float) -> Params:
    """The first of SAM's two passes."""
    batch_loss(proxy).backward()
    slopes = {n: p.grad for n, p in proxy.named_parameters() if p.grad is not None}
    length = torch.stack([g.norm(p=2) for g in slopes.values()]).norm(p=2)
    return {n: g * (rho / (length + 1e-12)) for n, g in slopes.items()}


RECIPES: dict[str, Any] = {
    "awp": (AdversarialWeightPerturbation, published_awp),
    "sam": (SharpnessAware, published_sam),
}


def recipe(config: ModelConfig, values: Params, k: int, objective: Any, published: Any) -> Params:
    """Add the perturbation, step with the gradient there, subtract the perturbation."""
    data, module = random_data(), module_of(config, values, k)
    optimizer = torch.optim.SGD(module.parameters(), lr=PLAIN_SGD.learning_rate)
    for step in range(PLAIN_SGD.epochs * STEPS):
        epoch, inside = divmod(step, STEPS)
        order = torch.randperm(SAMPLES, generator=generator(SEEDS[k], DATA_ORDER, epoch))
        index = order[inside * BATCH : (inside + 1) * BATCH]
        x, y = data.train_x[index].double(), data.train_y[index]
        found = x
        if isinstance(objective, AdversarialTraining):
            start = objective.threat.random(x, 1, generator(SEEDS[k], START, step))
            found = pgd(module.eval(), x, y, objective.threat, steps=objective.steps, start=start)
            module.train()

        def batch_loss(network: nn.Module, found: Tensor = found, y: Tensor = y) -> Tensor:
            return F.cross_entropy(network(found), y)

        added = published(copy.deepcopy(module), batch_loss, LENGTH)
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, part in added.items():
                parameters[name].add_(part)
        optimizer.zero_grad()
        batch_loss(module).backward()
        optimizer.step()
        with torch.no_grad():
            for name, part in added.items():
                parameters[name].sub_(part)
    return copies(module.state_dict())


@every_config
@pytest.mark.parametrize("objective", ["standard", "adversarial"])
@pytest.mark.parametrize("name", RECIPES)
def test_training_with_plain_sgd_is_the_published_recipe(
    name: str, objective: str, config: ModelConfig
) -> None:
    values = starts(config, SEEDS)
    kind, published = RECIPES[name]
    perturbed = kind(OBJECTIVES[objective], LENGTH)

    def loss(network: Network, x: Tensor, y: Tensor) -> Tensor:
        return perturbed(network, x.double(), y)

    result = train(config, random_data(), SEEDS, PLAIN_SGD, loss=loss, start=values)
    for k, params in enumerate(unstack(result.params)):
        assert_close(params, recipe(config, values, k, OBJECTIVES[objective], published), 1e-9)
        moved = params["output.weight"] - values["output.weight"][k]
        assert float(moved.abs().max()) > 0.01


@every_kind
@every_objective
def test_statistics_of_batchnorm_are_updated_once_as_by_the_objective(
    kind: Any, objective: Any
) -> None:
    data, config = random_data(), CONFIGS["batch"]
    plain = train(config, data, SEEDS, SHORT, loss=objective).params
    found = train(config, data, SEEDS, SHORT, loss=kind(objective, LENGTH)).params
    names = [name for name in plain if "num_batches" in name]
    assert len(names) == 2
    for name in names:
        assert torch.equal(found[name], plain[name])


@pytest.mark.parametrize("norm", ["plain", "batch"])
@every_kind
def test_training_with_length_zero_is_that_of_the_objective_bit_for_bit(
    kind: Any, norm: str
) -> None:
    data, config, objective = random_data(), CONFIGS[norm], OBJECTIVES["adversarial"]
    plain = train(config, data, SEEDS, SHORT, loss=objective)
    other = train(config, data, SEEDS, SHORT, loss=kind(objective, 0.0))
    assert_identical(other.params, plain.params)
    assert torch.equal(other.loss, plain.loss)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("awp", "plain"),
        ("awp", "batch"),
        ("random", "plain"),
        ("random", "batch"),
        ("sam", "plain"),
        ("sam", "batch"),
    ],
)
def test_many_seeds_give_bit_for_bit_what_runs_of_one_seed_give(name: str, norm: str) -> None:
    data, loss = random_data(), PERTURBED[name](OBJECTIVES["adversarial"], LENGTH)
    together = train(CONFIGS[norm], data, SEEDS, SHORT, loss=loss)
    for k, seed in enumerate(SEEDS):
        alone = train(CONFIGS[norm], data, (seed,), SHORT, loss=loss)
        assert_identical(unstack(together.params)[k], unstack(alone.params)[0])
        assert torch.equal(together.loss[k], alone.loss[0])


@every_kind
def test_a_run_cut_off_in_an_epoch_goes_on_to_the_same_numbers(tmp_path: Path, kind: Any) -> None:
    data, config, file = random_data(), CONFIGS["batch"], tmp_path / "run.checkpoint"
    loss = kind(OBJECTIVES["adversarial"], LENGTH)
    torch.manual_seed(1)
    uncut = train(config, data, SEEDS, SHORT, loss=loss)
    torch.manual_seed(2)
    with pytest.raises(KeyboardInterrupt):
        train(config, data, SEEDS, SHORT, loss=CutOff(loss, STEPS + 2), checkpoint=file)
    resumed = train(config, data, SEEDS, SHORT, loss=loss, checkpoint=file)
    assert_identical(resumed.params, uncut.params)
    assert torch.equal(resumed.loss, uncut.loss)


@every_kind
def test_fast_mode_agrees_to_rounding(kind: Any) -> None:
    """It stores weights transposed; lengths and random directions must not notice."""
    data, how = random_data(), dataclasses.replace(SHORT, optimizer="sgd")
    loss = kind(Standard(), LENGTH)
    exact, fast = (
        train(MLP, data, SEEDS, dataclasses.replace(how, fast=fast), loss=loss).params
        for fast in (False, True)
    )
    assert_close(exact, fast, 1e-5)


@every_kind
def test_bfloat16_trains_float32_weights_to_about_the_same(kind: Any) -> None:
    data = random_data()
    half, how = dataclasses.replace(SHORT, precision="bfloat16"), kind(Standard(), LENGTH)
    for config in (MLP, CONFIGS["cnn"]):
        exact = train(config, data, SEEDS, SHORT, loss=how)
        other = train(config, data, SEEDS, half, loss=how)
        assert {other.params[n].dtype for n in exact.params} <= {torch.float32, torch.int64}
        torch.testing.assert_close(other.loss, exact.loss, rtol=0.03, atol=0)
        assert not torch.equal(other.loss, exact.loss)


# --- The parts ------------------------------------------------------------------------------------


@every_config
@every_objective
def test_gradient_of_leaves_no_trace(config: ModelConfig, objective: Any) -> None:
    values, (x, y) = starts(config, SEEDS), batch(3)
    network = network_of(values, config, SEEDS, 3)
    found = objective.inputs(network, x, y)
    slopes = gradient_of(objective, network, x, found, y)
    assert {n: g.shape for n, g in slopes.items()} == {
        n: t.shape for n, t in network.params.items()
    }
    assert not any(g.requires_grad for g in slopes.values())
    assert all(t.grad is None for t in network.params.values())
    assert_identical(network.buffers, {n: values[n] for n in network.buffers})
    for s, slope in enumerate(unstack(slopes)):
        module = module_of(config, values, s)
        assert_close(slope, plain_gradient(objective, module, x[s], found[s], y[s])[1])


def test_lengths_are_those_of_each_network() -> None:
    stacked = torch.tensor([[[3.0, 0.0], [0.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert lengths(stacked).shape == (2, 1, 1)
    assert lengths(stacked).flatten().tolist() == [5.0, 0.0]
    assert lengths(stacked[:, 0]).tolist() == [[3.0], [0.0]]
    assert lengths(stacked.mT).flatten().tolist() == [5.0, 0.0]


def test_normalised_has_length_one_and_keeps_zero() -> None:
    stream = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 4, 2), "b": (3, 5)}
    tensors = {name: torch.randn(shape, generator=stream) for name, shape in shapes.items()}
    tensors["a"][1] = 0
    tensors["b"] *= 1e-6
    found = normalised(tensors)
    assert lengths(found["a"]).flatten().tolist() == pytest.approx([1, 0, 1])
    assert lengths(found["b"]).flatten().tolist() == pytest.approx([1, 1, 1])
    torch.testing.assert_close(found["a"] * lengths(tensors["a"]), tensors["a"])


def test_weights_are_what_has_two_axes_in_one_network() -> None:
    values = starts(CONFIGS["cnn"], SEEDS)
    weights = {name for name, tensor in values.items() if is_weight(tensor)}
    layers = ("conv1", "conv2", "hidden", "output")
    assert weights == {f"{layer}.weight" for layer in layers}


def test_detach_keeps_the_values() -> None:
    params = {"a": torch.ones(2, 3, requires_grad=True)}
    found = detach(params)
    assert not found["a"].requires_grad
    assert torch.equal(found["a"], params["a"])


# --- Nowhere to go, and bad input -----------------------------------------------------------------


@pytest.mark.parametrize("kind", [AdversarialWeightPerturbation, SharpnessAware])
def test_where_there_is_no_slope_the_weights_stay(kind: Any) -> None:
    """One class: the cross-entropy is zero everywhere."""
    config = dataclasses.replace(MLP, classes=1)
    network, (x, y) = network_of(starts(config, SEEDS), config, SEEDS, 3), batch(3, classes=1)
    moved, _ = displacement(kind(Standard(), LENGTH), network, x, y)
    assert all(float(step.abs().max()) == 0 for step in moved.values())
    slopes = gradient(kind(Standard(), LENGTH)(network, x, y), network)
    assert all(float(slope.abs().max()) == 0 for slope in slopes.values())


@pytest.mark.parametrize("value", [-0.01, math.nan, math.inf, -math.inf])
@every_kind
def test_bad_lengths_are_refused(kind: Any, value: float) -> None:
    name = "rho" if kind is SharpnessAware else "gamma"
    with pytest.raises(ValueError, match=f"^{name} must be a number >= 0, got {value}$"):
        kind(Standard(), value)


def test_published_lengths_are_the_defaults() -> None:
    assert AdversarialWeightPerturbation(Standard()).gamma == 0.01
    assert SharpnessAware() == SharpnessAware(Standard(), 0.05)

"""Objectives: values and gradients by hand, inputs found by an attack written out, one seed at a
time or many at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stacked import (
    BATCH,
    CLASSES,
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
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.datasets import load
from lmc_lessons.models import ModelConfig, Params, build, predict, predict_stacked, unstack
from lmc_lessons.robustness.attacks import L2, LInf, pgd
from lmc_lessons.robustness.objectives import (
    START,
    TRADES,
    AdversarialTraining,
    Standard,
    kl_divergence,
)
from lmc_lessons.training import Mode, Network, TrainConfig, cross_entropy, generator, train

SEEDS = (0, 4, 7)
SIZE = math.prod(SHAPE)
LINEAR = ModelConfig("mlp", SHAPE, CLASSES, 1, 0)
MLP = ModelConfig("mlp", SHAPE, CLASSES, 6, 2)
BINARY = ModelConfig("mlp", SHAPE, 2, 1, 0)
SHORT = TrainConfig(epochs=2, batch_size=BATCH, learning_rate=1e-2)
THREATS: dict[str, Any] = {"LInf": LInf(0.1), "L2": L2(0.3)}
OBJECTIVES: dict[str, Any] = {
    "standard": Standard(),
    "adversarial-LInf": AdversarialTraining(THREATS["LInf"], steps=3),
    "adversarial-L2": AdversarialTraining(THREATS["L2"], steps=3),
    "trades-LInf": TRADES(THREATS["LInf"], steps=3),
    "trades-L2": TRADES(THREATS["L2"], steps=3),
}
ATTACKING = [name for name in OBJECTIVES if name != "standard"]
every_threat = pytest.mark.parametrize("norm", THREATS)
every_objective = pytest.mark.parametrize("name", OBJECTIVES)
every_attack = pytest.mark.parametrize("name", ATTACKING)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def with_norm(norm: Any) -> ModelConfig:
    return dataclasses.replace(MLP, norm=norm)


def some_network(
    config: ModelConfig = LINEAR, seeds: tuple[int, ...] = SEEDS, step: int = 3
) -> Network:
    return network_of(starts(config, seeds), config, seeds, step)


def copies(params: Params) -> Params:
    return {name: tensor.detach().clone() for name, tensor in params.items()}


# --- By hand: the linear softmax network ----------------------------------------------------------


def probabilities(network: Network, s: int, x: Tensor) -> Tensor:
    """Softmax of W x + b for inputs (B, features), written out."""
    weight, bias = (network.params[f"output.{part}"][s].detach() for part in ("weight", "bias"))
    powers = torch.exp(x.flatten(1) @ weight.T + bias)
    return powers / powers.sum(1, keepdim=True)


def one_hot(y: Tensor) -> Tensor:
    return (y.unsqueeze(1) == torch.arange(CLASSES)).double()


def divergence(p: Tensor, q: Tensor) -> Tensor:
    kind = torch.distributions.Categorical
    return torch.distributions.kl_divergence(kind(p), kind(q))


def cross_entropy_by_hand(network: Network, s: int, x: Tensor, y: Tensor) -> tuple[float, Params]:
    """Value and gradient: the outer product of (p - one-hot) with the input."""
    p = probabilities(network, s, x)
    slope = (p - one_hot(y)) / len(y)
    value = -sum(math.log(p[i, y[i]]) for i in range(len(y))) / len(y)
    return value, {"output.weight": slope.T @ x.flatten(1), "output.bias": slope.sum(0)}


def trades_by_hand(
    network: Network, s: int, x: Tensor, found: Tensor, y: Tensor, beta: float, both: bool = True
) -> tuple[float, Params]:
    """Value and gradient; ``both`` False leaves out what flows through the clean prediction."""
    p, q = probabilities(network, s, x), probabilities(network, s, found)
    apart = divergence(p, q)
    value, slopes = cross_entropy_by_hand(network, s, x, y)
    clean = beta * p * (p.log() - q.log() - apart.unsqueeze(1)) / len(y) * both
    moved = beta * (q - p) / len(y)
    weight = clean.T @ x.flatten(1) + moved.T @ found.flatten(1)
    bias = (clean + moved).sum(0)
    slopes = {
        "output.weight": slopes["output.weight"] + weight,
        "output.bias": slopes["output.bias"] + bias,
    }
    return value + beta * float(apart.mean()), slopes


def assert_by_hand(
    losses: Tensor, network: Network, expected: Callable[[int], tuple[float, Params]]
) -> None:
    assert losses.shape == (len(SEEDS),)
    slopes = unstack(gradient(losses, network))
    for s in range(len(SEEDS)):
        value, by_hand = expected(s)
        assert float(losses[s].detach()) == pytest.approx(value, rel=1e-12)
        assert_close(slopes[s], by_hand)


def test_training_without_attack_is_clean_cross_entropy() -> None:
    network, (x, y) = some_network(), batch(3)
    objective = Standard()
    assert_by_hand(
        objective(network, x, y), network, lambda s: cross_entropy_by_hand(network, s, x[s], y[s])
    )
    assert torch.equal(objective.inputs(network, x, y), x)


@every_threat
def test_adversarial_training_is_cross_entropy_at_the_inputs_found(norm: str) -> None:
    """The inputs found count as constants: no gradient flows through the attack."""
    network, (x, y) = some_network(), batch(3)
    objective = AdversarialTraining(THREATS[norm], steps=4)
    found = objective.inputs(network, x, y)
    assert float((found - x).abs().min(-1).values.max()) > 0
    for losses in (objective(network, x, y), objective.loss(network, x, found, y)):
        assert_by_hand(losses, network, lambda s: cross_entropy_by_hand(network, s, found[s], y[s]))


@every_threat
@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_sends_its_gradient_into_both_predictions(norm: str, beta: float) -> None:
    network, (x, y) = some_network(), batch(3)
    objective = TRADES(THREATS[norm], beta, steps=4)
    found = objective.inputs(network, x, y)
    losses = objective(network, x, y)
    assert_by_hand(
        losses, network, lambda s: trades_by_hand(network, s, x[s], found[s], y[s], beta)
    )
    whole = gradient(objective.loss(network, x, found, y), network)["output.weight"]
    for s in range(len(SEEDS)):
        one_sided = trades_by_hand(network, s, x[s], found[s], y[s], beta, both=False)[1]
        gap = float((whole[s] - one_sided["output.weight"]).abs().max())
        assert (gap > 1e-3) == (beta > 0)


@every_objective
@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_gradients_agree_with_finite_differences_at_the_inputs_found(name: str, norm: Any) -> None:
    network, (x, y) = some_network(with_norm(norm)), batch(3)
    objective, stream = OBJECTIVES[name], torch.Generator().manual_seed(1)
    found = objective.inputs(network, x, y)
    slope = gradient(objective.loss(network, x, found, y), network)
    ahead = {n: torch.randn(t.shape, generator=stream).double() for n, t in slope.items()}

    def along(h: float) -> Tensor:
        moved = network.moved({n: h * t for n, t in ahead.items()})
        return objective.loss(moved, x, found, y).detach()

    measured = (along(1e-6) - along(-1e-6)) / 2e-6
    expected = sum(((slope[n] * ahead[n]).flatten(1).sum(1) for n in slope), torch.zeros(3))
    torch.testing.assert_close(measured, expected.double(), rtol=1e-5, atol=1e-7)


# --- Kullback-Leibler divergence ------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    lead=st.lists(st.integers(1, 4), max_size=3),
    classes=st.integers(1, 6),
    scale=st.sampled_from([0.0, 0.1, 3.0, 30.0]),
    seed=st.integers(0, 99),
)
def test_kl_divergence_is_the_sum(lead: list[int], classes: int, scale: float, seed: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, *lead, classes, generator=stream, dtype=torch.float64)
    log_p, log_q = F.log_softmax(logits, -1)
    found = kl_divergence(log_p, log_q)
    assert found.shape == tuple(lead)
    expected = divergence(log_p.exp(), log_q.exp()) if scale < 30 else found
    torch.testing.assert_close(found, expected)
    pairs = zip(log_p.reshape(-1, classes), log_q.reshape(-1, classes), strict=True)
    for value, (a, b) in zip(found.flatten().tolist(), pairs, strict=True):
        summed = math.fsum(
            math.exp(u) * (u - v) for u, v in zip(a.tolist(), b.tolist(), strict=True)
        )
        assert value == pytest.approx(summed, rel=1e-9, abs=1e-12)
        assert value >= -1e-12
    assert bool((kl_divergence(log_p, log_p) == 0).all())


def test_kl_divergence_weighs_by_its_first_argument() -> None:
    log_p = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64).log()
    log_q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64).log()
    log_r = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64).log()
    assert float(kl_divergence(log_p, log_q)) == pytest.approx(0.25 * math.log(2))
    forth, back = float(kl_divergence(log_p, log_r)), float(kl_divergence(log_r, log_p))
    assert forth == pytest.approx(0.5 * math.log(5 / 9) + 0.5 * math.log(5))
    assert back == pytest.approx(0.9 * math.log(9 / 5) + 0.1 * math.log(1 / 5))


# --- The inputs found -----------------------------------------------------------------------------


def steepest(slope: Tensor, norm: str) -> Tensor:
    if norm == "LInf":
        return slope.sign()
    return slope / slope.square().sum(1, keepdim=True).sqrt()


def back_into(x: Tensor, centre: Tensor, norm: str) -> Tensor:
    """Into the ball, then into the box."""
    step, radius = x - centre, THREATS[norm].epsilon
    if norm == "LInf":
        step = step.clamp(-radius, radius)
    else:
        step = step * (radius / step.square().sum(1, keepdim=True).sqrt()).clamp(max=1)
    return (centre + step).clamp(0, 1)


@every_threat
@pytest.mark.parametrize("step_size", [None, 0.02])
def test_adversarial_training_ascends_the_cross_entropy_from_a_random_start(
    norm: str, step_size: float | None
) -> None:
    network, (x, y) = some_network(step=11), batch(3)
    found = AdversarialTraining(THREATS[norm], 4, step_size).inputs(network, x, y)
    size = 2.5 * THREATS[norm].epsilon / 4 if step_size is None else step_size
    for s, seed in enumerate(SEEDS):
        centre = x[s].flatten(1)
        start = THREATS[norm].random(x[s], 1, generator(seed, START, 11))
        now = start.flatten(1)
        for _ in range(4):
            p = probabilities(network, s, now)
            slope = (p - one_hot(y[s])) @ network.params["output.weight"][s].detach()
            now = back_into(now + size * steepest(slope, norm), centre, norm)
        torch.testing.assert_close(found[s].flatten(1), now, rtol=0, atol=1e-12)


@every_threat
@pytest.mark.parametrize("step_size", [None, 0.02])
def test_trades_ascends_the_divergence_from_the_clean_prediction(
    norm: str, step_size: float | None
) -> None:
    network, (x, y) = some_network(step=11), batch(3)
    found = TRADES(THREATS[norm], steps=4, step_size=step_size, noise=0.01).inputs(network, x, y)
    size = 2.5 * THREATS[norm].epsilon / 4 if step_size is None else step_size
    for s, seed in enumerate(SEEDS):
        centre = x[s].flatten(1)
        noise = torch.randn(x[s].shape, generator=generator(seed, START, 11)).flatten(1)
        now = back_into(centre + 0.01 * noise.double(), centre, norm)
        p = probabilities(network, s, centre)
        for _ in range(4):
            q = probabilities(network, s, now)
            slope = (q - p) @ network.params["output.weight"][s].detach()
            now = back_into(now + size * steepest(slope, norm), centre, norm)
        torch.testing.assert_close(found[s].flatten(1), now, rtol=0, atol=1e-9)


@pytest.mark.parametrize("bounded", [True, False])
@every_threat
def test_adversarial_training_of_two_linear_classes_finds_the_optimum(
    norm: str, bounded: bool
) -> None:
    network = some_network(BINARY)
    x, y = batch(3, classes=2, samples=9)
    if bounded and norm == "L2":
        x = 0.3 + 0.4 * x  # the box does not cut the ball of radius 0.3
    objective = AdversarialTraining(type(THREATS[norm])(0.3, bounded), steps=40, step_size=0.3)
    found, losses = objective.inputs(network, x, y), objective(network, x, y)
    for s in range(len(SEEDS)):
        weight, bias = (network.params[f"output.{part}"][s].detach() for part in ("weight", "bias"))
        w, b = weight[1] - weight[0], bias[1] - bias[0]
        towards = (w.sign() if norm == "LInf" else w / w.norm()) * (2 * y[s] - 1).unsqueeze(1)
        optimum = x[s].flatten(1) - 0.3 * towards
        if bounded:
            optimum = optimum.clamp(0, 1)
        torch.testing.assert_close(found[s].flatten(1), optimum, rtol=0, atol=1e-6)
        if not bounded:
            dual = float(w.abs().sum() if norm == "LInf" else w.norm())
            margin = (x[s].flatten(1) @ w + b) * (2 * y[s] - 1)
            expected = torch.log1p(torch.exp(0.3 * dual - margin)).mean()
            assert float(losses[s].detach()) == pytest.approx(float(expected), rel=1e-9)


@every_attack
@settings(max_examples=12, deadline=None)
@given(
    epsilon=st.sampled_from([0.0, 1e-4, 8 / 255, 1.0]) | st.floats(0, 3),
    step_size=st.none() | st.sampled_from([0.0, 0.01, 5.0]),
    mode=st.sampled_from(["train", "eval"]),
    single=st.booleans(),
    seed=st.integers(0, 999),
)
def test_inputs_stay_in_the_threat_model_and_the_box(
    name: str, epsilon: float, step_size: float | None, mode: Mode, single: bool, seed: int
) -> None:
    config = with_norm("batch")
    network, (x, y) = some_network(config, (seed, seed + 1)), batch(2, seed)
    if single:
        kept = {n: t.detach().float().requires_grad_() for n, t in network.params.items()}
        still = {n: t.float() if t.is_floating_point() else t for n, t in network.buffers.items()}
        network, x = dataclasses.replace(network, params=kept, buffers=still), x.float()
    before, kind = x.clone(), type(OBJECTIVES[name].threat)
    changes = {"threat": kind(epsilon), "step_size": step_size, "mode": mode}
    found = dataclasses.replace(OBJECTIVES[name], **changes).inputs(network, x, y)
    assert (found.shape, found.dtype) == (x.shape, x.dtype)
    assert not found.requires_grad
    assert torch.equal(x, before)
    assert bool(((found >= 0) & (found <= 1)).all())
    gap = (found.double() - x.double()).flatten(2)
    length = gap.abs().amax(-1) if kind is LInf else gap.norm(dim=-1)
    assert float(length.max()) <= epsilon + 1e-6
    assert all(t.grad is None for t in network.params.values())


@every_threat
def test_the_start_of_adversarial_training_fills_the_threat_model(norm: str) -> None:
    network, (x, y) = some_network(step=5), batch(3, samples=40)
    x = 0.4 + 0.2 * x
    start = AdversarialTraining(THREATS[norm], step_size=0.0).inputs(network, x, y)
    gap = (start - x).flatten(2) / THREATS[norm].epsilon
    if norm == "LInf":
        assert float(gap.abs().mean()) == pytest.approx(0.5, abs=0.02)
    else:  # the volume within radius r grows as r to the number of coordinates
        share = gap.norm(dim=-1).pow(SIZE).sort().values.flatten()
        assert float(share.mean()) == pytest.approx(0.5, abs=0.1)
    for s, seed in enumerate(SEEDS):
        assert torch.equal(start[s], THREATS[norm].random(x[s], 1, generator(seed, START, 5)))


def test_the_start_of_trades_is_near_the_input() -> None:
    network, (x, y) = some_network(), batch(3, samples=40)
    x = 0.4 + 0.2 * x
    for noise in (1e-3, 1e-2):
        objective = TRADES(LInf(0.1), step_size=0.0, noise=noise)
        gap = objective.inputs(network, x, y) - x
        assert float(gap.std()) == pytest.approx(noise, rel=0.05)
        assert float(gap.mean().abs()) < 0.1 * noise
    assert TRADES().noise == 1e-3


@every_threat
def test_labels_play_no_part_in_the_attack_of_trades(norm: str) -> None:
    network, (x, y) = some_network(MLP), batch(3)
    other = (y + 1) % CLASSES
    objective, usual = TRADES(THREATS[norm]), AdversarialTraining(THREATS[norm])
    assert torch.equal(objective.inputs(network, x, y), objective.inputs(network, x, other))
    assert not torch.equal(usual.inputs(network, x, y), usual.inputs(network, x, other))


# --- Radius zero ----------------------------------------------------------------------------------


@every_threat
@pytest.mark.parametrize("norm_layer", ["none", "batch", "layer"])
def test_radius_zero_is_the_clean_loss(norm: str, norm_layer: Any) -> None:
    values, (x, y) = starts(with_norm(norm_layer), SEEDS), batch(3)
    threat = type(THREATS[norm])(0.0)
    clean = network_of(values, with_norm(norm_layer), SEEDS, 3)
    wanted = cross_entropy(clean, x, y)
    slope = gradient(wanted, clean)
    for objective in (AdversarialTraining(threat), TRADES(threat, 0.0), TRADES(threat)):
        network = network_of(values, with_norm(norm_layer), SEEDS, 3)
        losses = objective(network, x, y)
        assert torch.equal(losses, wanted)
        found = gradient(losses, network)
        if isinstance(objective, TRADES):  # the two paths of the divergence cancel to rounding
            assert_close(found, slope)
        else:
            assert_identical(found, slope)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_training_with_radius_zero_is_plain_training_bit_for_bit(norm: Any) -> None:
    data, config = random_data(), with_norm(norm)
    plain = train(config, data, SEEDS, SHORT)
    for objective in (Standard(), AdversarialTraining(LInf(0.0), steps=2)):
        other = train(config, data, SEEDS, SHORT, loss=objective)
        assert_identical(other.params, plain.params)
        assert torch.equal(other.loss, plain.loss)


# --- Seeds, steps, checkpoints --------------------------------------------------------------------


@every_objective
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_many_seeds_give_bit_for_bit_what_runs_of_one_seed_give(name: str, norm: Any) -> None:
    data, config = random_data(), with_norm(norm)
    together = train(config, data, SEEDS, SHORT, loss=OBJECTIVES[name])
    for k, seed in enumerate(SEEDS):
        alone = train(config, data, (seed,), SHORT, loss=OBJECTIVES[name])
        assert_identical(unstack(together.params)[k], unstack(alone.params)[0])
        assert torch.equal(together.loss[k], alone.loss[0])


@every_attack
def test_starts_depend_on_seed_and_step_alone(name: str) -> None:
    objective = dataclasses.replace(OBJECTIVES[name], step_size=0.0)
    (x, y), (_, other) = batch(1), batch(1, seed=5)
    seen: dict[tuple[int, int], Tensor] = {}
    for seeds in ((0,), (4,), (0, 4), (4, 7, 0)):
        for step in (0, 1, 9):
            torch.manual_seed(step)
            for config in (LINEAR, MLP):
                network, labels = some_network(config, seeds, step), (y, other)[len(seeds) == 2]
                many = (len(seeds), *[-1] * (x.dim() - 1))
                start = objective.inputs(network, x.expand(many), labels.expand(many[:2]))
                for seed, part in zip(seeds, start, strict=True):
                    assert torch.equal(seen.setdefault((seed, step), part), part)
    for key, part in seen.items():
        assert all(torch.equal(part, seen[other]) == (other == key) for other in seen)


class CutOff:
    """An objective that stops the run at one of its calls."""

    def __init__(self, objective: Any, stop_at: int | None = None) -> None:
        self.objective, self.stop_at, self.steps = objective, stop_at, list[int]()

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        if len(self.steps) == self.stop_at:
            raise KeyboardInterrupt
        self.steps.append(network.step)
        return self.objective(network, x, y)


@every_attack
def test_a_run_cut_off_in_an_epoch_goes_on_to_the_same_numbers(tmp_path: Path, name: str) -> None:
    data, config, file = random_data(), with_norm("batch"), tmp_path / "run.checkpoint"
    objective = dataclasses.replace(OBJECTIVES[name], mode="train")
    torch.manual_seed(1)
    uncut = train(config, data, SEEDS, SHORT, loss=objective)
    torch.manual_seed(2)
    cut = CutOff(objective, stop_at=STEPS + 2)
    with pytest.raises(KeyboardInterrupt):
        train(config, data, SEEDS, SHORT, loss=cut, checkpoint=file)
    rest = CutOff(objective)
    resumed = train(config, data, SEEDS, SHORT, loss=rest, checkpoint=file)
    assert rest.steps == list(range(STEPS, 2 * STEPS))
    assert_identical(resumed.params, uncut.params)
    assert torch.equal(resumed.loss, uncut.loss)


@every_attack
def test_fast_mode_agrees_to_rounding(name: str) -> None:
    data, config = random_data(), with_norm("layer")
    exact, fast = (
        train(
            config, data, SEEDS, dataclasses.replace(SHORT, fast=fast), loss=OBJECTIVES[name]
        ).params
        for fast in (False, True)
    )
    assert_close(exact, fast, 1e-3)


# --- The mode of BatchNorm ------------------------------------------------------------------------


def counts(network: Network) -> set[float]:
    """How often each layer's running statistics were updated."""
    return {float(t) for n, b in network.buffers.items() if "num_batches" in n for t in b}


@every_attack
def test_only_train_mode_touches_the_running_statistics_while_attacking(name: str) -> None:
    config, (x, y) = with_norm("batch"), batch(3)
    for mode in ("eval", "train"):
        network = some_network(config)
        before = copies(network.buffers)
        objective = dataclasses.replace(OBJECTIVES[name], mode=mode)
        objective.inputs(network, x, y)
        changed = {n for n in before if not torch.equal(before[n], network.buffers[n])}
        assert changed == (set(before) if mode == "train" else set())


@pytest.mark.parametrize("mode", ["eval", "train"])
@every_threat
def test_the_attack_sees_the_network_in_that_mode(norm: str, mode: Any) -> None:
    config, (x, y) = with_norm("batch"), batch(3)
    values = starts(config, SEEDS)
    module = build(config).train(mode == "train")

    def attacked(z: Tensor) -> Tensor:
        fresh = copies(values)
        parts = zip(unstack(fresh), z, strict=True)
        return torch.stack([predict(module, params, part) for params, part in parts])

    clean = F.log_softmax(attacked(x), -1)

    def away(logits: Tensor, y: Tensor) -> Tensor:
        return divergence(clean.exp(), F.softmax(logits, -1)) + 0 * y

    for objective, loss in (
        (AdversarialTraining(THREATS[norm], 3, mode=mode), None),
        (TRADES(THREATS[norm], steps=3, mode=mode), away),
    ):
        network = network_of(values, config, SEEDS, 3)
        found = objective.inputs(network, x, y)
        start = dataclasses.replace(objective, step_size=0.0).inputs(network, x, y)
        options: dict[str, Any] = {} if loss is None else {"loss": loss}
        expected = pgd(attacked, x, y, THREATS[norm], steps=3, start=start, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("objective", "updates"),
    [
        (Standard(), 1),
        (AdversarialTraining(LInf(0.1), steps=3), 1),
        (AdversarialTraining(LInf(0.1), steps=3, mode="train"), 4),
        (TRADES(LInf(0.1), steps=3), 2),  # clean and found inputs
        (TRADES(LInf(0.1), steps=3, mode="train"), 6),
    ],
)
def test_how_often_a_step_updates_the_running_statistics(objective: Any, updates: int) -> None:
    network, (x, y) = some_network(with_norm("batch")), batch(3)
    assert counts(network) == {0}
    objective(network, x, y)
    assert counts(network) == {updates}


@every_objective
def test_the_loss_itself_is_in_train_mode(name: str) -> None:
    config, (x, y) = with_norm("batch"), batch(3)
    values = starts(config, SEEDS)
    network = network_of(values, config, SEEDS, 3)
    found = OBJECTIVES[name].inputs(network, x, y)
    losses = OBJECTIVES[name].loss(network, x, found, y).detach()
    own, module = copies(values), build(config).train()
    with torch.no_grad():
        seen = (x, found) if "trades" in name else (found,)
        logits = [predict_stacked(module, own, part) for part in seen]
    expected = F.cross_entropy(logits[0].mT, y, reduction="none")
    if "trades" in name:
        expected = expected + 6 * divergence(logits[0].softmax(-1), logits[1].softmax(-1))
    torch.testing.assert_close(losses, expected.mean(1))
    assert_identical(network.buffers, {n: own[n] for n in network.buffers})


# --- What it is for -------------------------------------------------------------------------------


def test_adversarial_training_makes_networks_robust() -> None:
    data, config = load("digits"), ModelConfig("mlp", (1, 8, 8), 10, 32, 1)
    how = TrainConfig(epochs=8, learning_rate=1e-2, fast=True)
    threat, x, y = LInf(0.15), data.test_x[:200], data.test_y[:200]
    module = build(config).eval()

    def robust(objective: Any) -> float:
        params = unstack(train(config, data, (0,), how, loss=objective).params)[0]
        found = pgd(lambda z: predict(module, params, z), x, y, threat, steps=10)
        return float((predict(module, params, found).argmax(-1) == y).double().mean())

    standard = robust(Standard())
    for objective in (AdversarialTraining(threat, steps=4), TRADES(threat, steps=4)):
        assert robust(objective) > standard + 0.15


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"steps": 0}, "steps >= 1 and step_size >= 0, got 0, None"),
        ({"steps": -3}, "got -3"),
        ({"step_size": -0.1}, "got 10, -0.1"),
        ({"step_size": math.nan}, "got 10, nan"),
        ({"step_size": math.inf}, "got 10, inf"),
        ({"mode": "test"}, "mode is 'test', allowed: train, eval"),
    ],
)
@pytest.mark.parametrize("kind", [AdversarialTraining, TRADES])
def test_bad_attacks_say_what_is_allowed(kind: Any, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        kind(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["beta", "noise"])
def test_bad_weights_of_trades_say_what_is_allowed(name: str, value: float) -> None:
    changes: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=rf"beta and noise must be >= 0, got .*{value}") as caught:
        TRADES(**changes)
    assert "\n" not in str(caught.value)


@every_attack
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_inputs_outside_the_box_are_refused(name: str, value: float) -> None:
    network, (x, y) = some_network(), batch(3)
    x[1, 2, 0, 0, 0] = value
    with pytest.raises(ValueError, match=r"inputs must lie in \[0, 1\]"):
        OBJECTIVES[name](network, x, y)

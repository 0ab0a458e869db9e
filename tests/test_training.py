"""Training: exact mode is plain PyTorch bit for bit, and whatever stops it, the numbers stay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.datasets import Dataset
from lmc_lessons.models import ModelConfig, Params, build, initial, predict, stack, unstack
from lmc_lessons.training import (
    AUGMENTATION,
    DATA_ORDER,
    Network,
    Predict,
    Spawn,
    TrainConfig,
    Training,
    TrainingError,
    cross_entropy,
    flip_crop,
    generator,
    noisy_labels,
    schedule_factor,
    train,
)

SEEDS = (0, 1, 5)
SAMPLES, BATCH = 70, 16  # four steps per epoch; six samples are left over
STEPS = SAMPLES // BATCH
MLP = ModelConfig("mlp", (1, 8, 8), 10, width=16, depth=2)
SHORT = TrainConfig(epochs=3, batch_size=BATCH)


def random_data(samples: int = SAMPLES, shape: tuple[int, ...] = (1, 8, 8)) -> Dataset:
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(samples, *shape, generator=stream)
    y = torch.randint(0, 10, (samples,), generator=stream)
    return Dataset("random", "test", x, y, x[:5], y[:5], tuple("0123456789"))


DATA = random_data()
CUT_OFF = 2 * STEPS + 2  # the step at which the tests pull the plug: in the middle of epoch 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config(**changes: Any) -> TrainConfig:
    return dataclasses.replace(SHORT, **changes)


def model(**changes: Any) -> ModelConfig:
    return dataclasses.replace(MLP, **changes)


def largest_gap(a: Params, b: Params) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def assert_identical(a: Params, b: Params) -> None:
    """Bit for bit; the message names what differs and by how much."""
    assert a.keys() == b.keys()
    wrong = {n: float((a[n] - b[n]).abs().max()) for n in a if not torch.equal(a[n], b[n])}
    assert wrong == {}


def assert_same_training(a: Training, b: Training) -> None:
    assert a.seeds == b.seeds
    assert_identical(a.params, b.params)
    assert torch.equal(a.loss, b.loss)
    assert a.snapshots.keys() == b.snapshots.keys()
    for epoch in a.snapshots:
        assert_identical(a.snapshots[epoch], b.snapshots[epoch])


# --- The independent loop -------------------------------------------------------------------------

OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
}


def plain_loop(
    network: ModelConfig,
    seed: int,
    how: TrainConfig,
    rate: Callable[[int], float] = lambda _: 1.0,
) -> tuple[Params, list[float]]:
    """What everyone would write: one module, one optimiser, one loop. Loss per epoch comes too."""
    module = build(network)
    module.load_state_dict(initial(network, seed))
    module.train()
    kind, options = OPTIMIZERS[how.optimizer]
    optimizer = kind(
        module.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay, **options
    )
    losses, step = [], 0
    for epoch in range(how.epochs):
        order = torch.randperm(SAMPLES, generator=generator(seed, DATA_ORDER, epoch))
        total = 0.0
        for start in range(0, SAMPLES - how.batch_size + 1, how.batch_size):
            batch = order[start : start + how.batch_size]
            for group in optimizer.param_groups:
                group["lr"] = how.learning_rate * rate(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(module(DATA.train_x[batch]), DATA.train_y[batch])
            loss.backward()
            optimizer.step()
            total, step = total + loss.item(), step + 1
        losses.append(total / (SAMPLES // how.batch_size))
    return module.state_dict(), losses


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("width", [16, 17, 32])
def test_exact_mode_is_the_plain_loop_bit_for_bit(width: int, optimizer: str) -> None:
    how = config(optimizer=optimizer, weight_decay=0.01, learning_rate=0.01)
    network = model(width=width)
    together = train(network, DATA, SEEDS, how)
    assert together.loss.shape == (len(SEEDS), how.epochs)
    for k, seed in enumerate(SEEDS):
        expected, losses = plain_loop(network, seed, how)
        assert_identical(unstack(together.params)[k], expected)
        assert together.loss[k].tolist() == pytest.approx(losses, rel=1e-6)


@pytest.mark.parametrize("width", [16, 17, 32])
def test_exact_mode_with_batchnorm_is_the_plain_loop_bit_for_bit(width: int) -> None:
    network = model(width=width, norm="batch")
    together = unstack(train(network, DATA, SEEDS, SHORT).params)
    for k, seed in enumerate(SEEDS):
        assert_identical(together[k], plain_loop(network, seed, SHORT)[0])


def test_exact_mode_with_layernorm_is_the_plain_loop_to_rounding() -> None:
    network = model(norm="layer")
    together = unstack(train(network, DATA, SEEDS, SHORT).params)
    for k, seed in enumerate(SEEDS):
        assert largest_gap(together[k], plain_loop(network, seed, SHORT)[0]) < 1e-6


@pytest.mark.parametrize(
    "network",
    [
        model(),
        model(width=17),
        model(norm="batch"),
        model(norm="batch", width=17),
        model(norm="batch", width=32),
        model(norm="layer"),
        model(norm="layer", width=17),
        ModelConfig("cnn", (1, 8, 8), 10, width=3),
    ],
    ids=lambda c: f"{c.architecture}-{c.width}-{c.norm}",
)
def test_many_seeds_give_bit_for_bit_what_runs_of_one_seed_give(network: ModelConfig) -> None:
    together = unstack(train(network, DATA, SEEDS, SHORT).params)
    for k, seed in enumerate(SEEDS):
        alone = train(network, DATA, (seed,), SHORT).params
        assert_identical(together[k], unstack(alone)[0])


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_many_convolutional_networks_compute_what_one_would(norm: Any) -> None:
    """SGD, whose steps are as small as the rounding errors that enter them."""
    how = config(optimizer="sgd", learning_rate=0.01)
    network = ModelConfig("cnn", (1, 8, 8), 10, width=3, norm=norm)
    together = unstack(train(network, DATA, SEEDS, how).params)
    for k, seed in enumerate(SEEDS):
        alone = unstack(train(network, DATA, (seed,), how).params)[0]
        assert largest_gap(together[k], alone) < 1e-5


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_fast_mode_agrees_to_1e5_after_20_steps(norm: str, optimizer: str) -> None:
    how = config(epochs=5, optimizer=optimizer)
    exact, fast = (
        train(model(norm=norm), DATA, SEEDS, dataclasses.replace(how, fast=fast))
        for fast in (False, True)
    )
    assert how.epochs * STEPS == 20
    assert largest_gap(exact.params, fast.params) < 1e-5
    assert torch.allclose(exact.loss, fast.loss, atol=1e-5)


def test_same_seeds_same_numbers_whatever_the_global_random_state() -> None:
    torch.manual_seed(1)
    x = DATA.train_x.clone()
    first = train(MLP, DATA, SEEDS, config(augmentation="flip-crop", label_noise=0.2))
    assert torch.equal(DATA.train_x, x)
    torch.manual_seed(2)
    again = train(MLP, DATA, SEEDS, config(augmentation="flip-crop", label_noise=0.2))
    assert_same_training(first, again)


def test_bfloat16_trains_float32_parameters_to_about_the_same() -> None:
    exact, half = (train(MLP, DATA, SEEDS, config(precision=p)) for p in ("float32", "bfloat16"))
    assert {t.dtype for t in half.params.values()} == {torch.float32}
    assert 0 < largest_gap(exact.params, half.params) < 0.05
    assert torch.allclose(exact.loss, half.loss, rtol=0.02)


def test_channels_last_changes_the_layout_only() -> None:
    network = ModelConfig("cnn", (1, 8, 8), 10, width=3)
    how = config(optimizer="sgd", learning_rate=0.05)
    plain, other = (
        train(network, DATA, (0,), dataclasses.replace(how, channels_last=c)) for c in (False, True)
    )
    assert largest_gap(plain.params, other.params) < 1e-5


# --- What a loss is given -------------------------------------------------------------------------


def networks_of(norm: Any = "batch", epochs: int = 1) -> list[Network]:
    """Every ``Network`` that a training hands to its loss."""
    seen = []

    def loss(network: Network, x: Tensor, y: Tensor) -> Tensor:
        seen.append(network)
        return cross_entropy(network, x, y)

    train(model(norm=norm), DATA, SEEDS, config(epochs=epochs), loss=loss)
    return seen


def test_a_detached_network_has_no_graph_to_the_weights_and_the_mode_asked_for() -> None:
    network = networks_of()[0]
    x = torch.rand(len(SEEDS), 8, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in network.buffers.items()}
    single = [
        predict(build(model(norm="batch")).eval(), {**p, **b}, part)
        for p, b, part in zip(unstack(network.params), unstack(before), x, strict=True)
    ]
    calm = network.detached("eval")(x)
    assert not calm.requires_grad
    torch.testing.assert_close(calm, torch.stack(single))
    assert_identical(before, network.buffers)
    network.detached("train")(x)
    assert largest_gap(before, network.buffers) > 0  # train mode does update the statistics


def test_what_runs_aside_leaves_no_trace() -> None:
    network = networks_of()[0]
    before = {name: tensor.clone() for name, tensor in network.buffers.items()}
    x = torch.rand(len(SEEDS), 8, 1, 8, 8)
    torch.testing.assert_close(network.aside()(x), network(x.clone()))
    network = dataclasses.replace(network, buffers=before)
    kept = {name: tensor.clone() for name, tensor in before.items()}
    network.aside()(x)
    assert_identical(kept, network.buffers)


def test_a_moved_network_runs_elsewhere_and_sends_its_gradient_home() -> None:
    network = networks_of("none")[0]
    x, y = torch.rand(len(SEEDS), 8, 1, 8, 8), torch.zeros(len(SEEDS), 8, dtype=torch.long)
    step = {"output.weight": torch.full_like(network.params["output.weight"], 0.1)}
    there = {n: t.detach() + step.get(n, torch.tensor(0.0)) for n, t in network.params.items()}
    there = {n: t.requires_grad_() for n, t in there.items()}
    elsewhere = dataclasses.replace(network, params=there)
    wanted = torch.autograd.grad(cross_entropy(elsewhere, x, y).sum(), list(there.values()))
    found = torch.autograd.grad(
        cross_entropy(network.moved(step), x, y).sum(), list(network.params.values())
    )
    for a, b in zip(wanted, found, strict=True):
        torch.testing.assert_close(a, b)


def test_random_streams_depend_on_seed_step_and_purpose_alone() -> None:
    seen = networks_of("none", epochs=2)
    assert [network.step for network in seen] == list(range(2 * STEPS))
    draws = {
        (seed, network.step, purpose): float(torch.rand(1, generator=stream))
        for network in seen
        for purpose in (7, 8)
        for seed, stream in zip(SEEDS, network.streams(purpose), strict=True)
    }
    assert len(set(draws.values())) == len(draws)
    again = float(torch.rand(1, generator=generator(SEEDS[1], 8, 3)))
    assert draws[SEEDS[1], 3, 8] == again


# --- Schedules ------------------------------------------------------------------------------------


def expected_rate(schedule: str, step: int, rise: float, total: int) -> float:
    """Straight from the definitions: up in a line, then as the name says, to zero at the end."""
    if step < rise:
        return min(1.0, (step + 1) / math.ceil(rise))
    done = (step - rise) / (total - rise)
    drops = sum(step >= part * total / 4 for part in (2, 3))
    down = {"constant": 1.0, "cosine": 0.5 + 0.5 * math.cos(math.pi * done), "step": 0.1**drops}
    return down.get(schedule, 1 - done)


@pytest.mark.parametrize("warmup", [0, 2])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step"])
def test_schedules_follow_their_definition(schedule: Any, warmup: int) -> None:
    how = config(epochs=10, schedule=schedule, warmup_epochs=warmup)
    for step in range(40):
        expected = expected_rate(schedule, step, warmup * 4, 40)
        assert schedule_factor(how, step, 4) == pytest.approx(expected, abs=1e-12)


def test_one_cycle_rises_for_three_tenths_and_falls_to_zero() -> None:
    how = config(epochs=10, schedule="one-cycle")
    factors = [schedule_factor(how, step, 10) for step in range(100)]
    assert factors == pytest.approx([expected_rate("linear", s, 30, 100) for s in range(100)])
    assert (max(factors), factors.index(max(factors))) == (1.0, 29)


@pytest.mark.parametrize("warmup", [0, 0.5, 1.3, 4])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step", "one-cycle"])
@pytest.mark.parametrize("epochs", [1, 7, 13])
def test_every_schedule_rises_once_to_its_peak_and_never_again(
    epochs: int, schedule: Any, warmup: float
) -> None:
    how = config(epochs=epochs, schedule=schedule, warmup_epochs=warmup)
    factors = [schedule_factor(how, step, 5) for step in range(5 * epochs)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    if warmup < epochs:
        assert factors[peak] > 0.8


def test_training_follows_its_schedule() -> None:
    how = config(optimizer="sgd", schedule="linear", warmup_epochs=1, learning_rate=0.1)
    rate = partial(expected_rate, "linear", rise=STEPS, total=3 * STEPS)
    expected, _ = plain_loop(MLP, 1, how, rate)
    assert largest_gap(unstack(train(MLP, DATA, (1,), how).params)[0], expected) < 1e-6


# --- Label noise and augmentation -----------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("seed", [0, 7])
def test_label_noise_is_exact_and_never_the_true_class(fraction: float, seed: int) -> None:
    data = random_data(401)
    before = data.train_y.clone()
    noisy = noisy_labels(data, fraction, seed)
    assert int((noisy != data.train_y).sum()) == round(fraction * 401)
    assert 0 <= int(noisy.min()) <= int(noisy.max()) < 10
    assert torch.equal(data.train_y, before)
    assert torch.equal(noisy, noisy_labels(data, fraction, seed))


def test_label_noise_reaches_every_wrong_class_and_depends_on_the_seed() -> None:
    data = random_data(4000)
    noisy = [noisy_labels(data, 0.9, seed) for seed in (0, 1)]
    shifts = ((noisy[0] - data.train_y) % 10).bincount(minlength=10)
    assert shifts[0] == 400
    assert shifts[1:].min() > 400 - 5 * 20  # 400 each are expected, with deviation 19
    assert shifts[1:].max() < 400 + 5 * 20
    assert not torch.equal(noisy[0], noisy[1])


def test_label_noise_needs_a_wrong_class() -> None:
    data = random_data()
    zeros = torch.zeros_like
    single = dataclasses.replace(
        data, train_y=zeros(data.train_y), test_y=zeros(data.test_y), class_names=("only",)
    )
    with pytest.raises(ValueError, match="class"):
        noisy_labels(single, 0.5, 0)


def test_training_on_noise_is_training_on_the_noisy_labels() -> None:
    relabelled = dataclasses.replace(DATA, train_y=noisy_labels(DATA, 0.3, 5))
    noisy = train(MLP, DATA, SEEDS, config(label_noise=0.3))
    expected = train(MLP, relabelled, (5,), SHORT)
    assert_identical(unstack(noisy.params)[SEEDS.index(5)], unstack(expected.params)[0])


def moved(image: Tensor, down: int, right: int, mirrored: bool) -> Tensor:
    """One image, pixel by pixel: seen from (down, right) of where it was, perhaps in a mirror."""
    out = torch.zeros_like(image)
    height, width = image.shape[1:]
    for row, column in product(range(height), range(width)):
        from_row = row + down
        from_column = (width - 1 - column if mirrored else column) + right
        if 0 <= from_row < height and 0 <= from_column < width:
            out[:, row, column] = image[:, from_row, from_column]
    return out


def test_flip_crop_is_what_moving_every_image_by_itself_gives() -> None:
    """Each result is one of the possible moves, found by trying all; all shifts occur."""
    pad, images = 2, torch.rand(80, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    result = flip_crop(images, generator(3), pad=pad)
    assert result.shape == images.shape
    moves = list(product(range(-pad, pad + 1), range(-pad, pad + 1), (False, True)))
    found = []
    for image, changed in zip(images, result, strict=True):
        fits = [move for move in moves if torch.equal(moved(image, *move), changed)]
        assert len(fits) == 1
        found.append(fits[0])
    assert {down for down, _, _ in found} == {right for _, right, _ in found} == {-2, -1, 0, 1, 2}
    assert 20 < sum(mirrored for _, _, mirrored in found) < 60
    assert len(set(found)) > 35, "shifts down, shifts right and mirroring are independent"


def test_flip_crop_depends_on_its_stream_only() -> None:
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    first, again, other = (flip_crop(images, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- What training is asked for -------------------------------------------------------------------


class Recorder:
    """Cross-entropy that notes every call and can stop the run at one of them."""

    def __init__(self, stop_at: int | None = None, bad: int | None = None) -> None:
        self.shapes: list[torch.Size] = []
        self.stop_at, self.bad = stop_at, bad

    def __repr__(self) -> str:
        return repr(cross_entropy)  # what it computes: a checkpoint knows its loss by this

    def __call__(self, run: Predict, x: Tensor, y: Tensor) -> Tensor:
        if len(self.shapes) == self.stop_at:
            raise KeyboardInterrupt
        self.shapes.append(x.shape)
        losses = cross_entropy(run, x, y)
        if self.bad is None:
            return losses
        factor = torch.ones(len(losses))
        factor[self.bad] = math.nan
        return losses * factor


def test_an_incomplete_last_batch_is_dropped() -> None:
    seen = Recorder()
    train(MLP, DATA, SEEDS, config(epochs=2), loss=seen)
    assert seen.shapes == [torch.Size((len(SEEDS), BATCH, 1, 8, 8))] * (2 * STEPS)


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    seen = Recorder()
    train(MLP, DATA, (0,), config(epochs=2, batch_size=1000), loss=seen)
    assert seen.shapes == [torch.Size((1, SAMPLES, 1, 8, 8))] * 2


def test_any_loss_will_do() -> None:
    def squares(run: Predict, x: Tensor, y: Tensor) -> Tensor:
        return (run(x) - F.one_hot(y, 10)).square().mean((1, 2))

    trained = train(MLP, DATA, SEEDS, config(epochs=30, learning_rate=0.01), loss=squares)
    assert (trained.loss[:, -1] < 0.7 * trained.loss[:, 0]).all()
    for k, params in enumerate(unstack(trained.params)):
        outputs = predict(build(MLP), params, DATA.train_x)
        direct = F.mse_loss(outputs, F.one_hot(DATA.train_y, 10).float())
        assert float(direct) == pytest.approx(float(trained.loss[k, -1]), rel=0.15)


def test_cross_entropy_is_per_seed() -> None:
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1], [0, 0, 0, 0]])
    losses = cross_entropy(lambda _: logits, torch.empty(0), y)
    by_hand = -torch.log(torch.exp(logits) / torch.exp(logits).sum(2, keepdim=True))
    expected = [by_hand[s, range(4), y[s]].mean() for s in range(3)]
    torch.testing.assert_close(losses, torch.stack(expected), rtol=1e-12, atol=0)


def test_snapshots_are_shorter_runs() -> None:
    """With a constant rate the parameters after k epochs are those of a run of k epochs."""
    trained = train(MLP, DATA, SEEDS, SHORT, snapshots=(0, 1, 3))
    assert sorted(trained.snapshots) == [0, 1, 3]
    assert_identical(trained.snapshots[0], stack([initial(MLP, seed) for seed in SEEDS]))
    assert_identical(trained.snapshots[1], train(MLP, DATA, SEEDS, config(epochs=1)).params)
    assert_identical(trained.snapshots[3], trained.params)


def test_no_epochs_give_the_initial_values() -> None:
    trained = train(MLP, DATA, SEEDS, config(epochs=0), snapshots=(0,))
    assert_identical(trained.params, stack([initial(MLP, seed) for seed in SEEDS]))
    assert trained.loss.shape == (len(SEEDS), 0)


def test_a_start_is_where_training_starts_and_is_not_changed() -> None:
    networks = stack([initial(model(norm="batch"), seed) for seed in (7, 8, 9)])
    copies = {name: tensor.clone() for name, tensor in networks.items()}
    moved_on = train(model(norm="batch"), DATA, SEEDS, SHORT, start=networks, snapshots=(0,))
    assert_identical(networks, copies)
    assert_identical(moved_on.snapshots[0], copies)
    assert largest_gap(moved_on.params, copies) > 1e-3
    same = train(MLP, DATA, SEEDS, SHORT, start=stack([initial(MLP, s) for s in SEEDS]))
    assert_same_training(same, train(MLP, DATA, SEEDS, SHORT))


def test_a_progress_bar_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    train(MLP, DATA, (0,), config(epochs=1))
    assert capsys.readouterr() == ("", "")
    train(MLP, DATA, (0,), config(epochs=1), progress="pair 3")
    assert "pair 3" in capsys.readouterr().err


# --- Networks that leave the run of another -------------------------------------------------------

PARENT, CHILD = 1, 9
KINDS = {
    "mlp": MLP,
    "mlp-batch": ModelConfig("mlp", (1, 8, 8), 10, 17, 2, "batch"),
    "cnn-batch": ModelConfig("cnn", (1, 8, 8), 10, 3, norm="batch"),
}


class Watch:
    """Cross-entropy that keeps every batch, and what each network says of a fixed input before it.

    Outputs of a network without BatchNorm show its parameters at every step, inside an epoch too.
    """

    def __init__(self) -> None:
        self.x: list[Tensor] = []
        self.y: list[Tensor] = []
        self.said: list[Tensor] = []

    def __call__(self, run: Predict, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            self.said.append(run(DATA.train_x[:8].expand(len(x), 8, 1, 8, 8)))
        self.x.append(x.clone())
        self.y.append(y.clone())
        return cross_entropy(run, x, y)

    def samples(self, network: int) -> list[list[int]]:
        """Which samples each batch of a network held; every sample is recognised by its pixels."""
        number = {tuple(image.flatten().tolist()): k for k, image in enumerate(DATA.train_x)}
        return [[number[tuple(i.flatten().tolist())] for i in batch[network]] for batch in self.x]


def watched(seeds: tuple[int, ...], spawn: tuple[Spawn | None, ...], how: TrainConfig) -> Watch:
    watch = Watch()
    train(MLP, DATA, seeds, how, loss=watch, spawn=spawn)
    return watch


@pytest.mark.parametrize("network", KINDS.values(), ids=list(KINDS))
@pytest.mark.parametrize("shared", [1, 2])
def test_a_spawned_network_is_its_parent_until_it_leaves(network: ModelConfig, shared: int) -> None:
    """Buffers and optimiser too: what is equal after an epoch leads to equal next epochs."""
    spawn = (None, Spawn(PARENT, shared * STEPS))
    trained = train(network, DATA, (PARENT, CHILD), SHORT, spawn=spawn, snapshots=(0, 1, 2, 3))
    for epoch, params in trained.snapshots.items():
        parent, child = unstack(params)
        if epoch <= shared:
            assert_identical(child, parent)
        else:
            assert largest_gap(child, parent) > 1e-3
    assert torch.equal(trained.loss[0, :shared], trained.loss[1, :shared])
    assert (trained.loss[0, shared:] != trained.loss[1, shared:]).all()


@pytest.mark.parametrize("how", [SHORT, config(augmentation="flip-crop", label_noise=0.3)])
@pytest.mark.parametrize("step", [3 * STEPS, 3 * STEPS + 1, 10**6])
def test_a_network_that_leaves_after_the_end_is_its_parent(step: int, how: TrainConfig) -> None:
    trained = train(MLP, DATA, (CHILD,), how, spawn=(Spawn(PARENT, step),))
    alone = train(MLP, DATA, (PARENT,), how)
    assert trained.seeds == (CHILD,)
    assert_identical(trained.params, alone.params)
    assert torch.equal(trained.loss, alone.loss)


@pytest.mark.parametrize("network", KINDS.values(), ids=list(KINDS))
def test_a_network_spawned_at_zero_shares_the_start_only(network: ModelConfig) -> None:
    spawned = train(network, DATA, (CHILD,), SHORT, spawn=(Spawn(PARENT, 0),), snapshots=(0,))
    start = stack([initial(network, PARENT)])
    assert_same_training(
        spawned, train(network, DATA, (CHILD,), SHORT, start=start, snapshots=(0,))
    )


@pytest.mark.parametrize("step", [1, STEPS - 1, STEPS, STEPS + 2, 2 * STEPS + 3])
def test_parameters_part_one_step_after_the_batches(step: int) -> None:
    watch = watched((PARENT, CHILD), (None, Spawn(PARENT, step)), SHORT)
    same_batch = [torch.equal(x[0], x[1]) for x in watch.x]
    assert same_batch == [k < step for k in range(3 * STEPS)]
    same_network = [torch.equal(said[0], said[1]) for said in watch.said]
    assert same_network == [k <= step for k in range(3 * STEPS)]


@pytest.mark.parametrize("step", [0, 1, 3, STEPS, STEPS + 1, 2 * STEPS + 3])
def test_no_sample_is_shown_twice_in_the_epoch_of_the_spawn(step: int) -> None:
    """The child's own order runs over what the parent has not shown; later epochs are its own."""
    watch = watched((PARENT, CHILD, CHILD), (None, Spawn(PARENT, step), None), SHORT)
    parent, child, own = (watch.samples(k) for k in range(3))
    assert child[:step] == parent[:step]
    for epoch in range(3):
        batches = slice(epoch * STEPS, (epoch + 1) * STEPS)
        shown = [sample for batch in child[batches] for sample in batch]
        assert len(set(shown)) == len(shown) == STEPS * BATCH
        shared = max(0, min(STEPS, step - epoch * STEPS)) * BATCH
        if shared == 0:
            assert child[batches] == own[batches]
        order = torch.randperm(SAMPLES, generator=generator(CHILD, DATA_ORDER, epoch)).tolist()
        rest = [sample for sample in order if sample not in shown[:shared]]
        assert shown[shared:] == rest[: STEPS * BATCH - shared]


def test_samples_that_the_parent_drops_are_open_to_the_child() -> None:
    """Six of the 70 fall out of every epoch; the child may draw them from its spawn on."""
    watch = watched((PARENT, CHILD), (None, Spawn(PARENT, 1)), SHORT)
    shown = [{s for batch in watch.samples(k)[:STEPS] for s in batch} for k in (0, 1)]
    assert shown[1] - shown[0]


@pytest.mark.parametrize("network", [MLP, KINDS["mlp-batch"]], ids=["plain", "batch"])
@pytest.mark.parametrize("step", [0, 3, STEPS, 2 * STEPS + 1])
def test_a_spawn_is_the_same_in_whatever_company(network: ModelConfig, step: int) -> None:
    leaves = Spawn(PARENT, step)
    alone = unstack(train(network, DATA, (CHILD,), SHORT, spawn=(leaves,)).params)[0]
    for seeds, spawn in (
        ((PARENT, CHILD), (None, leaves)),
        ((CHILD, 5, CHILD), (leaves, Spawn(CHILD, 2), None)),
        ((7, CHILD, PARENT), (Spawn(PARENT, 1), leaves, Spawn(CHILD, 5))),
    ):
        together = unstack(train(network, DATA, seeds, SHORT, spawn=spawn).params)
        assert_identical(together[spawn.index(leaves)], alone)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_no_spawn_is_a_run_as_ever(norm: str) -> None:
    plain = train(model(norm=norm), DATA, SEEDS, SHORT)
    assert_same_training(plain, train(model(norm=norm), DATA, SEEDS, SHORT, spawn=(None,) * 3))
    family = train(model(norm=norm), DATA, SEEDS, SHORT, spawn=(None, Spawn(0, 5), None))
    for k in (0, 2):
        assert_identical(unstack(family.params)[k], unstack(plain.params)[k])


@pytest.mark.parametrize("step", [0, 3, STEPS, STEPS + 1])
def test_a_network_that_leaves_its_own_run_goes_nowhere_else(step: int) -> None:
    spawned = train(MLP, DATA, (PARENT,), SHORT, spawn=(Spawn(PARENT, step),))
    assert_same_training(spawned, train(MLP, DATA, (PARENT,), SHORT))


def test_grandchildren_do_not_exist() -> None:
    """The parent is the plain run of its seed, also where that seed is spawned itself."""
    family = train(MLP, DATA, (5, CHILD), SHORT, spawn=(Spawn(PARENT, 6), Spawn(5, 6)))
    alone = train(MLP, DATA, (CHILD,), SHORT, spawn=(Spawn(5, 6),))
    assert_identical(unstack(family.params)[1], unstack(alone.params)[0])


@pytest.mark.parametrize("step", [2, STEPS, STEPS + 3])
def test_augmentation_follows_the_parent_and_then_the_child(step: int) -> None:
    how = config(augmentation="flip-crop", label_noise=0.3)
    watch = watched((PARENT, CHILD, CHILD), (None, Spawn(PARENT, step), None), how)
    same = [torch.equal(x[0], x[1]) for x in watch.x]
    assert same == [k < step for k in range(3 * STEPS)]
    first_own = -(-step // STEPS) * STEPS  # the first epoch that is the child's alone
    assert all(torch.equal(x[1], x[2]) for x in watch.x[first_own:])
    assert not any(torch.equal(x[1], x[2]) for x in watch.x[:step])


@pytest.mark.parametrize("step", [1, 3, STEPS + 2])
def test_inside_an_epoch_the_childs_stream_of_augmentation_starts_where_it_leaves(
    step: int,
) -> None:
    spawn = (Spawn(PARENT, step),)
    samples = watched((CHILD,), spawn, SHORT).samples(0)
    moved_about = watched((CHILD,), spawn, config(augmentation="flip-crop")).x
    for epoch in range(3):
        theirs, own = (generator(seed, AUGMENTATION, epoch) for seed in (PARENT, CHILD))
        for k in range(epoch * STEPS, (epoch + 1) * STEPS):
            expected = flip_crop(DATA.train_x[samples[k]], theirs if k < step else own)
            assert torch.equal(moved_about[k][0], expected)


@pytest.mark.parametrize("step", [0, 2, STEPS, 3 * STEPS])
def test_noisy_labels_are_the_parents_to_the_end(step: int) -> None:
    watch = watched((CHILD,), (Spawn(PARENT, step),), config(label_noise=0.5))
    noisy, other = (noisy_labels(DATA, 0.5, seed) for seed in (PARENT, CHILD))
    for samples, y in zip(watch.samples(0), watch.y, strict=True):
        assert torch.equal(y[0], noisy[samples])
        assert not torch.equal(y[0], other[samples])


@pytest.mark.parametrize("how", [SHORT, config(fast=True)], ids=["exact", "fast"])
def test_a_spawn_follows_the_schedule_of_the_whole_run(how: TrainConfig) -> None:
    how = dataclasses.replace(how, schedule="cosine", warmup_epochs=1)
    step = 3 * STEPS - 1  # leaves before the very last step, where the rate is close to zero
    parent, child = unstack(
        train(MLP, DATA, (PARENT, CHILD), how, spawn=(None, Spawn(PARENT, step))).params
    )
    assert 0 < largest_gap(parent, child) < 2e-4


@pytest.mark.parametrize("step", [0, STEPS, STEPS + 1, 2 * STEPS + 1, 2 * STEPS + 3])
@pytest.mark.parametrize("how", [SHORT, config(augmentation="flip-crop", label_noise=0.2)])
def test_a_family_cut_off_goes_on_to_the_same_numbers(
    tmp_path: Path, how: TrainConfig, step: int
) -> None:
    file = tmp_path / "run.checkpoint"
    spawn = (None, Spawn(PARENT, step), Spawn(PARENT, 2))
    start = partial(train, MLP, DATA, (PARENT, CHILD, 5), how, spawn=spawn, snapshots=(1, 3))
    with pytest.raises(KeyboardInterrupt):
        start(loss=Recorder(stop_at=CUT_OFF), checkpoint=file)
    rest = Recorder()
    resumed = start(loss=rest, checkpoint=file)
    assert len(rest.shapes) == STEPS
    assert_same_training(resumed, start())


@pytest.mark.parametrize(
    "other",
    [(), (None, None), (None, Spawn(0, 4)), (None, Spawn(1, 3)), (Spawn(0, 3), None)],
    ids=["empty", "none", "step", "parent", "place"],
)
def test_a_checkpoint_of_another_spawn_is_refused(
    tmp_path: Path, other: tuple[Spawn | None, ...]
) -> None:
    file = tmp_path / "run.checkpoint"
    start = partial(train, MLP, DATA, (0, CHILD), SHORT, checkpoint=file)
    with pytest.raises(KeyboardInterrupt):
        start(spawn=(None, Spawn(0, 3)), loss=Recorder(CUT_OFF))
    with pytest.raises(TrainingError, match=r"run\.checkpoint is a checkpoint of another run"):
        start(spawn=other)


def test_no_spawn_and_none_for_every_seed_are_one_run(tmp_path: Path) -> None:
    file = tmp_path / "run.checkpoint"
    half_done(file)
    resumed = train(MLP, DATA, SEEDS, SHORT, checkpoint=file, spawn=[None] * len(SEEDS))
    assert_same_training(resumed, train(MLP, DATA, SEEDS, SHORT))


def test_nobody_leaves_before_the_start() -> None:
    with pytest.raises(ValueError, match="spawned at a step >= 0, got -1"):
        Spawn(0, -1)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_every_seed_has_its_spawn_or_none(count: int) -> None:
    with pytest.raises(ValueError, match=f"one spawn .*per seed: got {count} for 3 seeds"):
        train(MLP, DATA, SEEDS, SHORT, spawn=[Spawn(0, 1)] * count)


# --- Stopped and started again --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "how"),
    [
        ("none", SHORT),
        ("batch", SHORT),
        ("batch", config(fast=True)),
        ("batch", config(optimizer="adamw", weight_decay=0.1, schedule="cosine")),
        ("batch", config(optimizer="sgd", learning_rate=0.1)),
        ("none", config(optimizer="sgd", learning_rate=0.1, fast=True)),
        ("none", config(optimizer="sgd", learning_rate=0.1, momentum=0.0)),
        ("layer", config(augmentation="flip-crop", label_noise=0.2, schedule="one-cycle")),
        ("none", config(precision="bfloat16")),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value.optimizer}-{value.schedule}",
)
def test_a_run_cut_off_in_an_epoch_goes_on_to_the_same_numbers(
    tmp_path: Path, norm: str, how: TrainConfig
) -> None:
    file = tmp_path / "folder" / "run.checkpoint"
    start = partial(train, model(norm=norm), DATA, SEEDS, how, snapshots=(0, 1, 3))
    with pytest.raises(KeyboardInterrupt):
        start(loss=Recorder(stop_at=CUT_OFF), checkpoint=file)
    rest = Recorder()
    resumed = start(loss=rest, checkpoint=file)
    assert len(rest.shapes) == STEPS, "only the unfinished epoch is done again"
    assert_same_training(resumed, start(loss=Recorder()))
    done = Recorder()
    assert_same_training(start(loss=done, checkpoint=file), resumed)
    assert done.shapes == []


def test_cut_off_after_every_single_epoch(tmp_path: Path) -> None:
    file = tmp_path / "run.checkpoint"
    for epoch in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(MLP, DATA, SEEDS, SHORT, loss=Recorder(stop_at=STEPS), checkpoint=file)
        with safe_open(file, framework="pt") as stored:
            assert stored.metadata()["epochs"] == str(epoch + 1)
    resumed = train(MLP, DATA, SEEDS, SHORT, checkpoint=file)
    assert_same_training(resumed, train(MLP, DATA, SEEDS, SHORT))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def half_done(file: Path, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(MLP, DATA, SEEDS, SHORT, loss=Recorder(CUT_OFF), checkpoint=file, **options)


@pytest.mark.parametrize(
    ("network", "data", "seeds", "how"),
    [
        (MLP, DATA, (0, 1, 6), SHORT),
        (MLP, DATA, (0, 1), SHORT),
        (MLP, DATA, SEEDS, config(epochs=4)),
        (MLP, DATA, SEEDS, config(learning_rate=2e-3)),
        (model(norm="layer"), DATA, SEEDS, SHORT),
        (MLP, random_data(90), SEEDS, SHORT),
    ],
    ids=["seeds", "fewer-seeds", "epochs", "rate", "model", "data"],
)
def test_a_checkpoint_of_another_run_is_refused(
    tmp_path: Path, network: ModelConfig, data: Dataset, seeds: tuple[int, ...], how: TrainConfig
) -> None:
    file = tmp_path / "run.checkpoint"
    half_done(file)
    before = file.read_bytes()
    with pytest.raises(TrainingError, match=r"run\.checkpoint is a checkpoint of another run"):
        train(network, data, seeds, how, checkpoint=file)
    assert file.read_bytes() == before


@dataclasses.dataclass(frozen=True)
class Scaled:
    factor: float

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        return self.factor * cross_entropy(network, x, y)


def test_a_checkpoint_of_another_loss_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.checkpoint"
    first = train(MLP, DATA, SEEDS, SHORT, loss=Scaled(0.5), checkpoint=file)
    again = train(MLP, DATA, SEEDS, SHORT, loss=Scaled(0.5), checkpoint=file)
    assert_same_training(first, again)
    for other in (Scaled(0.25), cross_entropy):
        with pytest.raises(TrainingError, match=r"run\.checkpoint is a checkpoint of another run"):
            train(MLP, DATA, SEEDS, SHORT, loss=other, checkpoint=file)


def test_divergence_that_a_loss_meets_first_is_a_failed_training() -> None:
    def attacked(network: Network, x: Tensor, y: Tensor) -> Tensor:
        losses = cross_entropy(network, x, y)
        if not bool(torch.isfinite(losses).all()):
            raise ValueError("the gradient is not finite")
        return losses

    with pytest.raises(TrainingError, match=r"training diverged in step \d+: the gradient is not"):
        train(MLP, DATA, (0,), config(optimizer="sgd", learning_rate=1e30), loss=attacked)


def test_any_other_error_of_a_loss_is_its_own() -> None:
    def wrong(network: Network, x: Tensor, y: Tensor) -> Tensor:
        raise ValueError("no such class")

    with pytest.raises(ValueError, match="no such class"):
        train(MLP, DATA, (0,), SHORT, loss=wrong)


@pytest.mark.parametrize("option", ["snapshots", "start"])
def test_a_checkpoint_that_lacks_what_is_asked_is_refused(tmp_path: Path, option: str) -> None:
    """Other snapshots would come back incomplete, another start would be ignored."""
    file = tmp_path / "run.checkpoint"
    half_done(file)
    asked: dict[str, Any] = {
        "snapshots": (1, 3),
        "start": stack([initial(MLP, seed) for seed in (7, 8, 9)]),
    }
    with pytest.raises(TrainingError, match="another run"):
        train(MLP, DATA, SEEDS, SHORT, checkpoint=file, **{option: asked[option]})


@pytest.mark.parametrize("damage", ["empty", "half", "page"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    file = tmp_path / "run.checkpoint"
    half_done(file)
    whole = file.read_bytes()
    contents = {"empty": b"", "half": whole[: len(whole) // 2], "page": b"<!DOCTYPE html>" * 9}
    file.write_bytes(contents[damage])
    with pytest.raises(TrainingError, match=r"run\.checkpoint is not a checkpoint") as caught:
        train(MLP, DATA, SEEDS, SHORT, checkpoint=file)
    assert "\n" not in str(caught.value)


# --- What goes wrong ------------------------------------------------------------------------------


def test_divergence_names_the_seeds() -> None:
    with pytest.raises(TrainingError, match=r"seeds \[5\] not finite"):
        train(MLP, DATA, SEEDS, SHORT, loss=Recorder(bad=SEEDS.index(5)))
    with pytest.raises(TrainingError, match=r"seeds \[0, 1, 5\] not finite"):
        train(MLP, DATA, SEEDS, config(learning_rate=1e30))


def test_a_diverged_epoch_is_never_saved(tmp_path: Path) -> None:
    file = tmp_path / "run.checkpoint"
    with pytest.raises(TrainingError):
        train(MLP, DATA, SEEDS, SHORT, loss=Recorder(bad=0), checkpoint=file)
    assert not file.exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimizer": "lion"}, "optimizer is 'lion', allowed: adam, adamw, sgd"),
        ({"schedule": "steps"}, "allowed: constant, cosine, linear, step, one-cycle"),
        ({"augmentation": "mixup"}, "allowed: none, flip-crop"),
        ({"precision": "float16"}, "allowed: float32, bfloat16"),
        ({"epochs": -1}, "epochs must be >= 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"learning_rate": math.nan}, "learning_rate must be > 0"),
        ({"weight_decay": -1e-4}, "weight_decay >= 0"),
        ({"label_noise": 1.0}, r"label_noise in \[0, 1\)"),
        ({"warmup_epochs": -1.0}, "warmup_epochs"),
        ({"momentum": -0.5}, "momentum"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_settings_name_what_is_allowed(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        TrainConfig(**changes)


def test_seeds_are_needed() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        train(MLP, DATA, (), SHORT)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"augmentation": "flip-crop"}, "flip-crop"), ({"channels_last": True}, "channels_last")],
    ids=["flip-crop", "channels_last"],
)
def test_what_needs_images_says_so_of_a_table(changes: dict[str, Any], expected: str) -> None:
    table = random_data(shape=(30,))
    with pytest.raises(ValueError, match=f"{expected}.*image"):
        train(model(input_shape=(30,)), table, (0,), config(**changes))


@pytest.mark.parametrize(
    "network", [model(input_shape=(30,)), model(classes=5)], ids=["inputs", "classes"]
)
def test_data_that_do_not_fit_the_model_are_refused(network: ModelConfig) -> None:
    with pytest.raises(ValueError, match="random"):
        train(network, DATA, (0,), SHORT)

"""The likelihood and its rivals: closed forms, high precision, finite differences, rounding."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stacked import gradient, network_of, random_data, starts
from torch import Tensor

from lmc_lessons.detection import abc
from lmc_lessons.detection.abc import (
    ABC,
    PUAE,
    DeepSAD,
    ErrorLoss,
    NaiveABC,
    NegativeLearning,
    SideBySide,
    Unlabelled,
    abc_loss,
    abc_score,
    abc_slope,
    centres,
    check_labels,
    deepsad_loss,
    distances,
    log1mexp,
    mean_where,
    naive_log,
    negative_loss,
)
from lmc_lessons.detection.autoencoders import reconstruction_error
from lmc_lessons.models import ModelConfig, build, initial, predict, stack, unstack
from lmc_lessons.training import Spawn, TrainConfig, train

CONFIG = ModelConfig("autoencoder", (1, 4, 4), width=6, depth=1, latent=3, activation="tanh")
CODES = ModelConfig("mlp", (1, 4, 4), 5, width=6, depth=1)
SEEDS = (3, 8)
positive = st.floats(1e-12, 80.0)


def batch(labelled: int = 2) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(1)
    x = torch.rand(2, 7, 1, 4, 4, generator=stream, dtype=torch.float64)
    y = (torch.arange(7) < labelled).long().expand(2, 7)
    return x, y


@given(positive)
def test_log1mexp_has_all_digits(x: float) -> None:
    with mpmath.workdps(60):
        exact = float(mpmath.log(1 - mpmath.exp(-mpmath.mpf(x))))
    found = log1mexp(torch.tensor(x, dtype=torch.float64)).item()
    assert found == pytest.approx(exact, rel=1e-13)


@given(positive)
def test_its_slope_is_that_of_the_closed_form(x: float) -> None:
    at = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    log1mexp(at).backward()
    assert at.grad is not None
    assert at.grad.item() == pytest.approx(1 / math.expm1(x), rel=1e-12)
    slope = abc_slope(at.detach(), torch.tensor(1))
    assert slope.item() == pytest.approx(-1 / math.expm1(x), rel=1e-12)


def test_as_it_is_written_the_logarithm_breaks_where_log1mexp_does_not() -> None:
    small = torch.tensor([1e-9, 1e-7, 1e-3])
    assert naive_log(small)[0] == -math.inf
    assert log1mexp(small)[0].item() == pytest.approx(math.log(1e-9), rel=1e-6)
    at = small[:1].clone().requires_grad_()
    naive_log(at).sum().backward()
    assert at.grad is not None
    assert not torch.isfinite(at.grad).all()
    torch.testing.assert_close(naive_log(small[2:]), log1mexp(small[2:]), rtol=1e-3, atol=0)


def test_the_loss_is_the_likelihood_of_the_label() -> None:
    error = torch.tensor([0.0, 0.3, 2.0, 40.0, 0.3, 2.0, 40.0], dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1])
    found = abc_loss(error, y)
    chance = abc_score(error)
    assert found[0].item() == pytest.approx(1e-6)  # the floor
    for k in range(1, 7):
        wanted = -math.log(chance[k]) if y[k] == 1 else error[k].item()  # of exp(-L)
        assert found[k].item() == pytest.approx(wanted, abs=1e-12)
    torch.testing.assert_close(abc_loss(error, y, scale=2.0), abc_loss(error / 2, y))
    torch.testing.assert_close(abc_score(error, scale=2.0), abc_score(error / 2))


def test_normal_samples_are_pulled_and_anomalies_pushed_less_and_less() -> None:
    error = torch.tensor([0.01, 1.0, 5.0, 20.0], dtype=torch.float64, requires_grad=True)
    for label, loss in ((0, abc_loss), (1, abc_loss), (1, negative_loss)):
        y = torch.full((4,), label)
        (slope,) = torch.autograd.grad(loss(error, y).sum(), error)
        if loss is abc_loss:
            torch.testing.assert_close(slope, abc_slope(error.detach(), y))
        else:
            assert slope.tolist() == [-1.0] * 4
        assert bool((slope > 0).all()) == (label == 0)
    pushed = abc_slope(error.detach(), torch.ones(4)).abs()
    assert pushed[0] == pytest.approx(1 / 0.01, rel=0.01)
    assert pushed[-1] == pytest.approx(math.exp(-20), rel=1e-6)


def test_the_loss_has_a_floor_and_negative_learning_has_none() -> None:
    error, y = torch.tensor([0.0, 1e9]), torch.tensor([0, 1])
    assert (abc_loss(error, y) >= 0).all()
    assert negative_loss(error, y)[1] == -1e9


LOSSES: list[ErrorLoss] = [
    Unlabelled("squared"),
    ABC("norm"),
    ABC("mean", scale=0.3),
    NaiveABC("squared"),
    NegativeLearning("norm"),
    PUAE("norm", prior=0.2),
]


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_gradients_agree_with_finite_differences(loss: ErrorLoss) -> None:
    values = starts(CONFIG, SEEDS)
    network = network_of(values, CONFIG, SEEDS, step=2)
    x, y = batch()
    slopes = gradient(loss(network, x, y), network)
    name = "layers.1.weight"
    for s in range(2):
        for sign, found in ((1, []), (-1, [])):
            moved = {n: t.clone() for n, t in values.items()}
            moved[name][s, 1, 2] += sign * 1e-6
            found.append(loss(network_of(moved, CONFIG, SEEDS, step=2), x, y)[s])
            if sign == 1:
                up = found[0]
        wanted = (up - found[0]) / 2e-6
        assert slopes[name][s, 1, 2].item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-8)


def by_hand(loss: Any, error: list[float], y: list[int]) -> float:
    normal = [e for e, label in zip(error, y, strict=True) if label == 0]
    labelled = [e for e, label in zip(error, y, strict=True) if label == 1]
    likely = [-math.log(1 - math.exp(-e)) for e in labelled]
    if isinstance(loss, Unlabelled):
        return sum(normal) / len(normal)
    if isinstance(loss, NegativeLearning):
        return (sum(normal) - sum(labelled)) / len(y)
    if isinstance(loss, PUAE):
        count = max(1, len(labelled))
        rest = sum(normal) / len(normal) - loss.prior * sum(labelled) / count
        return loss.prior * sum(likely) / count + abs(rest)
    return (sum(normal) + sum(likely)) / len(y)


@pytest.mark.parametrize("labelled", [0, 2])
@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_losses_are_those_by_hand(loss: ErrorLoss, labelled: int) -> None:
    values = starts(CONFIG, SEEDS)
    x, y = batch(labelled)
    found = loss(network_of(values, CONFIG, SEEDS, step=2), x, y)
    for s, params in enumerate(unstack(values)):
        back = predict(build(CONFIG), params, x[s])
        error = reconstruction_error(x[s], back, loss.kind) / getattr(loss, "scale", 1.0)
        wanted = by_hand(loss, error.tolist(), y[s].tolist())
        assert found[s].item() == pytest.approx(wanted, rel=1e-9)


def test_puae_turns_where_nnpu_would_stop() -> None:
    """The absolute value has a slope where max(0, .) has none."""
    error = torch.tensor([0.1, 9.0], requires_grad=True)
    PUAE("norm", prior=0.5).of_errors(error, torch.tensor([0, 1])).backward()
    assert error.grad is not None
    assert error.grad[0] == -1  # fitted too well: the unlabelled are pushed away


def test_networks_side_by_side_are_those_of_separate_trainings() -> None:
    """Bit for bit, which is why a unit can be trained in one program."""
    data = random_data()
    y = (torch.arange(len(data.train_y)) < 20).long()
    two = type(data)(
        "t", "t", data.train_x, y, data.test_x, torch.zeros(len(data.test_y)).long(), ("a", "b")
    )
    recipe = TrainConfig(epochs=3, batch_size=16, learning_rate=1e-2)
    losses: list[ErrorLoss] = [ABC("norm"), ABC("mean"), NegativeLearning("squared")]
    spawn = [None, Spawn(5, 10**9), Spawn(5, 10**9)]
    run = train(CONFIG, two, (5, 105, 205), recipe, loss=SideBySide(tuple(losses)), spawn=spawn)
    for s, loss in enumerate(losses):
        alone = train(CONFIG, two, (5,), recipe, loss=SideBySide((loss,)))
        plain = train(CONFIG, two, (5,), recipe, loss=loss)
        for name, tensor in alone.params.items():
            assert torch.equal(tensor[0], run.params[name][s]), name
            torch.testing.assert_close(plain.params[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_mean_over_nothing_is_zero() -> None:
    values = torch.tensor([[1.0, 3.0], [5.0, 7.0]])
    chosen = torch.tensor([[True, True], [False, False]])
    assert mean_where(values, chosen).tolist() == [2.0, 0.0]


# --- DeepSAD --------------------------------------------------------------------------------------


def test_deepsad_is_the_loss_of_distances_without_biases() -> None:
    values = starts(CODES, SEEDS)
    x, y = batch()
    centre = centres(build(CODES), values, x[0])
    assert centre.shape == (2, 5)
    assert (centre.abs() >= 0.1).all()
    loss = DeepSAD(tuple(map(tuple, centre.tolist())), weight=2.0)
    network = network_of(values, CODES, SEEDS, step=1)
    found = loss(network, x, y)
    for s, params in enumerate(unstack(values)):
        w1, w2 = params["hidden.0.weight"], params["output.weight"]
        codes = torch.relu(x[s].flatten(1) @ w1.T) @ w2.T
        away = (codes - centre[s]).square().sum(1)
        torch.testing.assert_close(distances(build(CODES), values, x[s], centre)[s], away)
        wanted = (away[2:].sum() + (2 / (away[:2] + 1e-6)).sum()) / 7
        assert found[s].item() == pytest.approx(wanted.item(), rel=1e-9)
    used = torch.autograd.grad(found.sum(), list(network.params.values()), allow_unused=True)
    for name, slope in zip(network.params, used, strict=True):
        assert (slope is None) == name.endswith("bias")


def test_centres_are_mean_codes_moved_away_from_zero() -> None:
    fresh = stack([initial(CODES, 0)])
    x, _ = batch()
    bare = {n: t[0] * (not n.endswith("bias")) for n, t in fresh.items()}
    codes = predict(build(CODES), bare, x[0].float()).mean(0)
    found = centres(build(CODES), fresh, x[0].float())[0]
    for code, centre in zip(codes.tolist(), found.tolist(), strict=True):
        near = math.copysign(0.1, code)
        assert centre == pytest.approx(near if abs(code) < 0.1 else code, abs=1e-6)


def test_an_anomaly_at_the_centre_is_pushed_with_finite_force() -> None:
    distance, y = torch.tensor([0.0, 4.0]), torch.tensor([1, 0])
    assert deepsad_loss(distance, y).tolist() == pytest.approx([1e6, 4.0])


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: ABC("norm", scale=0.0), "scale must be a positive number, got 0.0"),
        (lambda: ABC("norm", scale=math.inf), "scale must be a positive number, got inf"),
        (lambda: abc.check_kind("L1"), "error is 'L1', allowed: norm, squared, mean"),
        (lambda: NegativeLearning(noise=-1.0), "noise must be a number >= 0, got -1.0"),
        (lambda: PUAE(prior=1.0), r"prior must be in \[0, 1\), got 1.0"),
        (lambda: SideBySide(()), "side by side there must be losses"),
        (lambda: SideBySide((ABC(noise=0.1),)), "all of them without noise"),
        (lambda: check_labels(torch.tensor([0, 1, 2])), r"labels must be 0 .* got 2"),
        (lambda: check_labels(torch.tensor([0, -1])), r"labels must be 0 .* got -1"),
    ],
)
def test_bad_input_is_refused_in_one_line(make: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_inputs_that_are_not_numbers_are_refused_and_the_networks_left_alone() -> None:
    values = starts(CODES, SEEDS)
    before = {name: tensor.clone() for name, tensor in values.items()}
    x = batch()[0][0]
    x[0, 0, 0, 0] = torch.nan
    for look in (
        lambda: centres(build(CODES), values, x),
        lambda: distances(build(CODES), values, x, torch.ones(2, 5)),
    ):
        with pytest.raises(ValueError, match="inputs must be finite, got 1 entries"):
            look()
    assert all(torch.equal(values[name], before[name]) for name in values)
    assert abc.FLOOR > 0

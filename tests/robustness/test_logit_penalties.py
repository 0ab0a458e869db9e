"""Penalties by hand in float64, their gradients, and what they ask of logits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from stacked import (
    CLASSES,
    SHAPE,
    assert_close,
    assert_identical,
    batch,
    gradient,
    network_of,
    starts,
)
from torch import Tensor

from lmc_lessons.models import ModelConfig, build, predict_stacked
from lmc_lessons.robustness.attacks import LInf
from lmc_lessons.robustness.bounded_logits import optimum
from lmc_lessons.robustness.logit_penalties import (
    LabelSmoothing,
    LogitPairing,
    LogitSqueezing,
    paired_distance,
    smoothed_cross_entropy,
    squeeze,
)
from lmc_lessons.robustness.objectives import AdversarialTraining, Objective, Standard
from lmc_lessons.training import Network

MLP = ModelConfig("mlp", SHAPE, CLASSES, 6, 2)
SEEDS = (0, 4, 7)
ATTACK = AdversarialTraining(LInf(0.2), steps=3)
KINDS: dict[str, Any] = {
    "smoothing": LabelSmoothing,
    "squeezing": LogitSqueezing,
    "pairing": LogitPairing,
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def some_network() -> Network:
    return network_of(starts(MLP, SEEDS), MLP, SEEDS, step=3)


def by_hand(kind: str, logits: Tensor, y: Tensor, strength: float) -> Tensor:
    """The loss of each network, sample by sample and class by class."""
    found = []
    for own, labels in zip(logits, y, strict=True):
        total = torch.zeros((), dtype=torch.float64)
        for z, label in zip(own, labels, strict=True):
            share = strength if kind == "smoothing" else 0.0
            target = torch.full((CLASSES,), share / CLASSES, dtype=torch.float64)
            target[label] += 1 - share
            total = total + z.exp().sum().log() - target @ z
            if kind == "squeezing":
                total = total + strength / 2 * (z @ z)
        total = total / len(labels)
        if kind == "pairing":
            half = len(labels) // 2
            pairs = [((own[k] - own[k + half]) ** 2).sum() for k in range(half)]
            total = total + strength * sum(pairs) / half
        found.append(total)
    return torch.stack(found)


@every_kind
@pytest.mark.parametrize("samples", [6, 7])
def test_the_loss_is_that_by_hand_and_so_is_its_gradient(kind: str, samples: int) -> None:
    (x, y), network, again = batch(len(SEEDS), samples=samples), some_network(), some_network()
    losses = KINDS[kind](0.3)(network, x, y)
    logits = predict_stacked(build(MLP), {**again.params, **again.buffers}, x)
    expected = by_hand(kind, logits, y, 0.3)
    assert torch.allclose(losses, expected, atol=1e-12)
    assert_close(gradient(losses, network), gradient(expected, again))


@every_kind
def test_without_strength_it_is_the_objective_it_stands_around(kind: str) -> None:
    x, y = batch(len(SEEDS))
    for around in (Standard(), ATTACK):
        network, again = some_network(), some_network()
        losses, plain = KINDS[kind](0.0, around)(network, x, y), around(again, x, y)
        assert torch.allclose(losses, plain, atol=1e-12)
        assert_close(gradient(losses, network), gradient(plain, again))


@every_kind
def test_attacks_give_the_inputs_and_the_penalty_looks_at_them(kind: str) -> None:
    (x, y), network = batch(len(SEEDS)), some_network()
    objective: Objective = KINDS[kind](0.3, ATTACK)
    found = objective.inputs(network, x, y)
    assert torch.equal(found, ATTACK.inputs(network, x, y))
    assert not torch.equal(found, x)
    assert torch.equal(objective(network, x, y), objective.loss(network, x, found, y))
    assert torch.equal(KINDS[kind](0.3)(network, found, y), objective.loss(network, x, found, y))
    assert torch.equal(KINDS[kind](0.3).inputs(network, x, y), x)


@every_kind
def test_networks_do_not_see_each_other(kind: str) -> None:
    x, y = batch(len(SEEDS))
    all_at_once, network = KINDS[kind](0.3)(some_network(), x, y), some_network()
    for k, seed in enumerate(SEEDS):
        alone = network_of(starts(MLP, (seed,)), MLP, (seed,), step=3)
        single = KINDS[kind](0.3)(alone, x[k : k + 1], y[k : k + 1])
        assert torch.allclose(single[0], all_at_once[k], atol=1e-12)
    assert_identical(some_network().params, network.params)


def test_pairs_are_the_two_halves_of_a_batch() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0], [1.0, 2.0], [9.0, 9.0]])
    assert paired_distance(z).tolist() == [25, 4]
    assert paired_distance(z[:4].view(1, 4, 2)).tolist() == [[25, 4]]


def test_squeezing_is_half_the_squared_length() -> None:
    assert squeeze(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist() == [12.5, 2]


def test_smoothing_is_lowest_where_probabilities_are_the_target() -> None:
    alpha, y = 0.3, torch.tensor([1])
    target = torch.full((1, 4), alpha / 4, dtype=torch.float64)
    target[0, 1] += 1 - alpha
    z = target.log().requires_grad_()
    loss = smoothed_cross_entropy(z, y, alpha)
    (slope,) = torch.autograd.grad(loss.sum(), z)
    assert float(slope.abs().max()) < 1e-12
    assert loss.item() == pytest.approx(-(target * target.log()).sum().item())
    margin = (z[0, 1] - z[0, 0]).item()
    assert margin == pytest.approx(optimum("smoothing", alpha, 4).margin)


def test_pairing_asks_for_what_squeezing_with_four_times_its_weight_asks_for() -> None:
    """One free vector of logits per class, every pair of samples equally likely."""
    classes, weight = 4, 0.05
    z = (0.1 * torch.randn(classes, classes, generator=torch.Generator().manual_seed(0))).double()
    labels = torch.arange(classes)
    for _ in range(4000):
        z = z.detach().requires_grad_()
        pairs = (z.unsqueeze(0) - z.unsqueeze(1)).square().sum(-1).mean()
        loss = smoothed_cross_entropy(z, labels, 0.0).mean() + weight * pairs
        (slope,) = torch.autograd.grad(loss, z)
        z = (z - 1.0 * slope).detach()
    wanted = optimum("squeezing", 4 * weight, classes)
    assert (z - z.mean(0)).norm(dim=-1).tolist() == pytest.approx([wanted.logit_norm] * 4, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LabelSmoothing(1.0), r"alpha must be in \[0, 1\), got 1.0"),
        (lambda: LabelSmoothing(-0.1), r"alpha must be in \[0, 1\), got -0.1"),
        (lambda: LogitSqueezing(-0.1), "weight must be a number >= 0, got -0.1"),
        (lambda: LogitPairing(math.nan), "weight must be a number >= 0, got nan"),
        (
            lambda: smoothed_cross_entropy(torch.zeros(1, 2), torch.tensor([0]), 1.5),
            r"alpha must be in \[0, 1\), got 1.5",
        ),
        (lambda: squeeze(torch.zeros(3, 1)), r"at least 2 classes, got shape \(3, 1\)"),
        (lambda: squeeze(torch.tensor([[0.0, math.nan]])), "logits must be finite, got NaN"),
        (
            lambda: smoothed_cross_entropy(torch.full((1, 2), math.inf), torch.tensor([0]), 0.1),
            "logits must be finite, got NaN or infinity",
        ),
        (lambda: paired_distance(torch.zeros(2, 1, 3)), "a pair needs at least 2 samples"),
        (lambda: paired_distance(torch.zeros(3)), "a pair needs at least 2 samples"),
    ],
)
def test_bad_input_is_refused_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)

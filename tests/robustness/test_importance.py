"""Importance: weights and losses by hand, gradients by finite differences, seeds one by one."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stacked import (
    BATCH,
    CLASSES,
    SHAPE,
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

from lmc_lessons.models import ModelConfig, unstack
from lmc_lessons.robustness.attacks import LInf, pgd
from lmc_lessons.robustness.importance import (
    GAIRAT,
    MAIL,
    MART,
    SOVR,
    TSOVR,
    EntropyWeighted,
    Reweighted,
    TopWeighted,
    TopWeightedTRADES,
    top_samples,
)
from lmc_lessons.robustness.margins import ovr_loss
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining
from lmc_lessons.robustness.weight_perturbation import AdversarialWeightPerturbation
from lmc_lessons.training import Network, TrainConfig, train

SEEDS = (0, 4, 7)
MLP = ModelConfig("mlp", SHAPE, CLASSES, 6, 2)
THREAT = LInf(0.1)
SHORT = TrainConfig(epochs=2, batch_size=BATCH, learning_rate=1e-2)
OBJECTIVES: dict[str, Any] = {
    "reweighted": Reweighted(THREAT, steps=3),
    "gairat": GAIRAT(THREAT, steps=3),
    "mail": MAIL(THREAT, steps=3),
    "ewat": EntropyWeighted(THREAT, steps=3),
    "top": TopWeighted(THREAT, steps=3, weight=2.0),
    "sovr": SOVR(THREAT, steps=3, weight=0.5),
    "ovr": SOVR(THREAT, steps=3, fraction=1.0),
    "tsovr": TSOVR(THREAT, steps=3, weight=0.5),
    "top-trades": TopWeightedTRADES(THREAT, steps=3, weight=2.0),
    "mart": MART(THREAT, steps=3),
}
every_objective = pytest.mark.parametrize("name", OBJECTIVES)


def some_network(config: ModelConfig = MLP, seeds: tuple[int, ...] = SEEDS, step: int = 3) -> Any:
    return network_of(starts(config, seeds), config, seeds, step)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    kind = torch.distributions.Categorical
    return torch.distributions.kl_divergence(kind(p), kind(q))


def hardest(logits: Tensor, y: Tensor, count: int) -> list[int]:
    """Indices of the samples with the smallest margins, sorted by hand."""
    margins = []
    for z, label in zip(logits.tolist(), y.tolist(), strict=True):
        margins.append(z[label] - max(v for k, v in enumerate(z) if k != label))
    return sorted(range(len(margins)), key=lambda i: margins[i])[:count]


def by_hand(
    name: str, objective: Any, network: Network, s: int, x: Tensor, found: Tensor, y: Tensor
) -> Tensor:
    """One network's loss, sample by sample, from the formulas of the papers."""
    with torch.no_grad():
        clean, z = network(x)[s], network(found)[s]
    p, p_clean = z.softmax(-1), clean.softmax(-1)
    total = 0.0
    hard = hardest(z, y[s], 3)  # 0.4 of 6 samples, rounded up
    for i, label in enumerate(y[s].tolist()):
        others = [k for k in range(CLASSES) if k != label]
        loss = -math.log(p[i, label])
        ovr = sum(math.log1p(math.exp(v if k != label else -v)) for k, v in enumerate(z[i]))
        kl = float(divergence(p_clean[i], p[i]))
        if name == "mail":
            margin = p[i, label] - p[i, others].max()
            loss = loss * 3 / (1 + math.exp(10 * (margin - 0.5)))
        if name == "ewat":
            loss = loss * (1 - sum(float(q) * math.log(q) for q in p[i]))
        if name == "top" and i in hard:
            loss = 2 * loss
        if name == "sovr" and i in hard:
            loss = 0.5 * ovr
        if name == "ovr":
            loss = ovr
        if name == "mart":
            loss = loss - math.log(1.0001 - float(p[i, others].max()))
            loss = loss + 5 * kl * (1.0000001 - float(p_clean[i, label]))
        if "trades" in name or name == "tsovr":
            loss = -math.log(p_clean[i, label])
            if i in hard:
                own = clean[i]
                switched = [v if k != label else -v for k, v in enumerate(own.tolist())]
                rest = sum(math.log1p(math.exp(v)) for v in switched)
                loss = 0.5 * rest if name == "tsovr" else 2 * loss
            loss = loss + 6 * kl
        total += loss / len(y[s])
    return torch.tensor(total, dtype=torch.float64)


# --- Values and gradients -------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "gairat"])
def test_losses_are_the_formulas(name: str) -> None:
    network, (x, y), objective = some_network(), batch(3), OBJECTIVES[name]
    network = dataclasses.replace(
        network, params={n: 3 * t.detach() for n, t in network.params.items()}
    )
    found = objective.inputs(network, x, y)
    losses = objective.loss(network, x, found, y)
    assert losses.shape == (3,)
    for s in range(3):
        expected = by_hand(name, objective, network, s, x, found, y)
        torch.testing.assert_close(losses[s], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(objective(network, x, y), losses)


@every_objective
def test_gradients_agree_with_finite_differences_where_weights_count_as_constants(
    name: str,
) -> None:
    network, (x, y), objective = some_network(), batch(3), OBJECTIVES[name]
    found = objective.inputs(network, x, y)
    if name in ("mail", "ewat", "gairat"):
        objective = frozen(objective, network, x, found, y)
    slope = gradient(OBJECTIVES[name].loss(network, x, found, y), network)
    stream = torch.Generator().manual_seed(1)
    ahead = {n: torch.randn(t.shape, generator=stream).double() for n, t in slope.items()}

    def along(h: float) -> Tensor:
        moved = network.moved({n: h * t for n, t in ahead.items()})
        return objective.loss(moved, x, found, y).detach()

    measured = (along(1e-6) - along(-1e-6)) / 2e-6
    expected = sum(((slope[n] * ahead[n]).flatten(1).sum(1) for n in slope), torch.zeros(3))
    torch.testing.assert_close(measured, expected.double(), rtol=1e-4, atol=1e-7)


def frozen(objective: Any, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Any:
    """The objective with the weights that it has at this network, wherever it is asked."""
    with torch.no_grad():
        if isinstance(objective, GAIRAT):
            weights = objective.geometry_weights(objective.attacked(network, x, y)[1])
        else:
            weights = objective.weights(network(found), y)

    class Frozen:
        def loss(self, other: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
            losses = F.cross_entropy(other(found).flatten(0, 1), y.flatten(), reduction="none")
            return (weights * losses.view(y.shape)).mean(1)

    return Frozen()


@every_objective
def test_the_attack_is_that_of_the_plain_objective(name: str) -> None:
    network, (x, y), objective = some_network(), batch(3), OBJECTIVES[name]
    plain = (TRADES if "tr" in name or name == "tsovr" else AdversarialTraining)(THREAT, steps=3)
    assert torch.equal(objective.inputs(network, x, y), plain.inputs(network, x, y))


def test_no_importance_is_adversarial_training() -> None:
    network, (x, y) = some_network(), batch(3)
    expected = AdversarialTraining(THREAT, steps=3)(network, x, y)
    for objective in (
        Reweighted(THREAT, steps=3),
        TopWeighted(THREAT, steps=3, weight=1.0),
        MAIL(THREAT, steps=3, burn_in=4),
        GAIRAT(THREAT, steps=3, burn_in=4),
        EntropyWeighted(THREAT, steps=3, burn_in=4),
        SOVR(THREAT, steps=3, burn_in=4),
    ):
        torch.testing.assert_close(objective(network, x, y), expected)
    no_switch = TopWeightedTRADES(THREAT, steps=3, weight=1.0)(network, x, y)
    torch.testing.assert_close(no_switch, TRADES(THREAT, steps=3)(network, x, y))


@pytest.mark.parametrize("kind", [GAIRAT, MAIL, EntropyWeighted, SOVR])
def test_importance_begins_after_the_burn_in(kind: Any) -> None:
    (x, y), plain = batch(3), AdversarialTraining(THREAT, steps=3)
    for step, same in ((3, True), (4, False)):
        network = some_network(step=step)
        found = kind(THREAT, steps=3, burn_in=4)(network, x, y)
        close = torch.allclose(found, plain(network, x, y), rtol=1e-9)
        assert close == same, step


# --- The choice of samples ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fraction", "size", "count"),
    [(0.4, 5, 2), (0.4, 6, 3), (0.1, 30, 3), (0.3, 10, 3), (1.0, 7, 7), (0.01, 9, 1), (0.7, 10, 7)],
)
def test_the_share_is_rounded_up(fraction: float, size: int, count: int) -> None:
    logits = torch.randn(3, size, 4, generator=torch.Generator().manual_seed(1))
    y = torch.zeros(3, size, dtype=torch.long)
    chosen = top_samples(logits, y, fraction)
    assert chosen.sum(1).tolist() == [count] * 3
    for s in range(3):
        assert chosen[s].nonzero().flatten().tolist() == sorted(hardest(logits[s], y[s], count))


def test_samples_of_equal_margin_do_not_raise_the_number() -> None:
    assert int(top_samples(torch.zeros(8, 3), torch.zeros(8).long(), 0.5).sum()) == 4


def test_the_choice_is_made_on_the_attacked_inputs() -> None:
    """An objective whose hard samples were chosen on clean inputs would give other losses."""
    (x, y), objective = batch(3), TSOVR(THREAT, steps=3, weight=0.0)
    network = some_network()
    network = dataclasses.replace(
        network, params={n: 5 * t.detach() for n, t in network.params.items()}
    )
    found = (1 - x).clamp(0, 1)
    with torch.no_grad():
        clean, attacked = network(x), network(found)
    assert not torch.equal(top_samples(clean, y, 0.4), top_samples(attacked, y, 0.4))
    easy = ~top_samples(attacked, y, 0.4)
    losses = F.cross_entropy(clean.mT, y, reduction="none") * easy
    expected = losses.mean(1) + 6 * divergence(clean.softmax(-1), attacked.softmax(-1)).mean(1)
    torch.testing.assert_close(objective.loss(network, x, found, y), expected)


def test_both_sums_are_divided_by_the_whole_minibatch() -> None:
    network, (x, y) = some_network(), batch(3)
    found = AdversarialTraining(THREAT, steps=3).inputs(network, x, y)
    with torch.no_grad():
        logits = network(found)
    hard = top_samples(logits, y, 0.4)
    sums = (
        (ovr_loss(logits, y) * hard).sum(1),
        (F.cross_entropy(logits.mT, y, reduction="none") * ~hard).sum(1),
    )
    losses = SOVR(THREAT, steps=3, fraction=0.4, weight=3.0).loss(network, x, found, y)
    torch.testing.assert_close(losses.detach(), (3 * sums[0] + sums[1]) / y.shape[1])


# --- GAIRAT ---------------------------------------------------------------------------------------


def test_points_of_the_attack_are_counted_start_included() -> None:
    """A walk written out: the last iterate took no gradient, so it is not counted."""
    network, (x, y) = some_network(), batch(3)
    network = dataclasses.replace(
        network, params={n: 4 * t.detach() for n, t in network.params.items()}
    )
    objective = GAIRAT(LInf(0.3), steps=5)
    found, right = objective.attacked(network, x, y)
    begin = dataclasses.replace(objective, steps=1, step_size=0.0).inputs(network, x, y)
    attacked = network.detached("eval")
    counted, now = torch.zeros(y.shape), begin
    for _ in range(5):
        counted += attacked(now).argmax(-1) == y
        now = pgd(attacked, x, y, LInf(0.3), steps=1, step_size=2.5 * 0.3 / 5, start=now)
    assert torch.equal(right.double(), counted.double())
    torch.testing.assert_close(found, now)
    assert len(right.unique()) > 2


def test_geometry_weights_are_the_published_ones() -> None:
    objective = GAIRAT(THREAT, steps=10)
    right = torch.tensor([[0.0, 5.0, 10.0], [10.0, 10.0, 10.0]], dtype=torch.float64)
    raw = [(1 + math.tanh(-1 + 5 * (1 - 2 * k / 10))) / 2 for k in (0, 5, 10)]
    expected = torch.tensor([[3 * w / sum(raw) for w in raw], [1.0] * 3], dtype=torch.float64)
    torch.testing.assert_close(objective.geometry_weights(right), expected)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_the_loss_alone_is_the_whole_objective(mode: Any) -> None:
    """And walking the attack again leaves no trace in BatchNorm's statistics."""
    config = dataclasses.replace(MLP, norm="batch")
    (x, y), objective = batch(3), GAIRAT(THREAT, steps=3, mode=mode)
    one, two = some_network(config), some_network(config)
    whole = objective(one, x, y)
    found = objective.inputs(two, x, y)
    before = {n: t.clone() for n, t in two.buffers.items()}
    parts = objective.loss(two.aside(), x, found, y)
    assert_identical(two.buffers, before)
    if mode == "eval":
        torch.testing.assert_close(parts, whole)
    assert "counting" not in repr(one.forward)


def test_importance_can_be_perturbed() -> None:
    (x, y) = batch(3)
    for objective in OBJECTIVES.values():
        pushed = AdversarialWeightPerturbation(objective, 0.05)
        assert bool(torch.isfinite(pushed(some_network(), x, y)).all())


# --- Many networks at once ------------------------------------------------------------------------


@every_objective
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_stacked_networks_are_single_ones(name: str, norm: Any) -> None:
    config = dataclasses.replace(MLP, norm=norm)
    (x, y), objective = batch(3), OBJECTIVES[name]
    many = some_network(config)
    losses = objective(many, x, y)
    slopes = unstack(gradient(losses, many))
    for s, seed in enumerate(SEEDS):
        one = some_network(config, (seed,))
        alone = objective(one, x[s : s + 1], y[s : s + 1])
        torch.testing.assert_close(alone[0], losses[s], rtol=1e-9, atol=1e-12)
        assert_close(unstack(gradient(alone, one))[0], slopes[s], 1e-9)


@every_objective
def test_a_seed_trains_alone_as_among_others(name: str) -> None:
    data, objective = random_data(), OBJECTIVES[name]
    many = train(MLP, data, SEEDS, SHORT, loss=objective)
    alone = train(MLP, data, (4,), SHORT, loss=objective)
    assert_identical(unstack(many.params)[1], unstack(alone.params)[0])


def test_training_with_a_burn_in_can_be_resumed(tmp_path: Path) -> None:
    data, objective = random_data(), GAIRAT(THREAT, steps=2, burn_in=4)
    whole = train(MLP, data, (0,), SHORT, loss=objective).params
    plain = train(MLP, data, (0,), SHORT, loss=AdversarialTraining(THREAT, steps=2)).params
    assert not torch.equal(whole["output.weight"], plain["output.weight"])


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SOVR, TSOVR, TopWeighted, TopWeightedTRADES])
@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\] and weight >= 0, got 0.0 and 1.0"),
        ({"fraction": 1.1}, "got 1.1 and 1.0"),
        ({"fraction": math.nan}, "got nan and 1.0"),
        ({"weight": -0.1}, "got 0.4 and -0.1"),
        ({"weight": math.inf}, "got 0.4 and inf"),
        ({"steps": 0}, "an attack needs steps >= 1"),
    ],
)
def test_bad_shares_and_factors_are_refused(
    kind: Any, changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        kind(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "changes", "expected"),
    [
        (Reweighted, {"burn_in": -1}, "burn_in must be at least 0 steps, got -1"),
        (MAIL, {"slope": -1.0}, "slope must be >= 0 and bias in .* got -1.0 and 0.5"),
        (MAIL, {"bias": 1.5}, "got 10.0 and 1.5"),
        (MAIL, {"bias": math.nan}, "got 10.0 and nan"),
        (GAIRAT, {"shift": math.nan}, "shift must be a number, got nan"),
        (MART, {"beta": -1.0}, "beta must be >= 0, got -1.0"),
        (MART, {"mode": "test"}, "mode is 'test'"),
    ],
)
def test_bad_settings_are_refused(kind: Any, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        kind(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fraction", [0.0, 1.2, math.nan])
def test_a_choice_of_none_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\]"):
        top_samples(torch.zeros(4, 3), torch.zeros(4).long(), fraction)


@pytest.mark.parametrize("value", [math.nan])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    network, (x, y) = some_network(), batch(3)
    for name, objective in OBJECTIVES.items():
        found = objective.inputs(network, x, y)
        broken = dataclasses.replace(
            network, params={n: t.detach() * value for n, t in network.params.items()}
        )
        message = "logits must be numbers|gradient of the loss .* not finite"
        with pytest.raises(ValueError, match=message):
            objective.loss(broken, x, found, y)
        assert name


def test_one_class_is_refused() -> None:
    config = ModelConfig("mlp", SHAPE, 1, 1, 0)
    network, (x, y) = some_network(config), batch(3, classes=1)
    for objective in OBJECTIVES.values():
        with pytest.raises(ValueError, match="at least 2 classes"):
            objective.loss(network, x, x, y)

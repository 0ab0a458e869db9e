"""Measurements agree with SciPy and with counting by hand, whatever the chunk."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from torch import Tensor, nn

from lmc_lessons.evaluation import (
    Interval,
    auroc,
    logit_margins,
    logits_in_chunks,
    paired_difference,
    score,
    t_interval,
)
from lmc_lessons.models import ModelConfig, build, initial

NETWORK = ModelConfig("mlp", (1, 8, 8), 10, width=9, depth=1, norm="batch")
STREAM = torch.Generator().manual_seed(0)
X = torch.rand(53, 1, 8, 8, generator=STREAM)
Y = torch.randint(0, 10, (53,), generator=STREAM)
PARAMS = initial(NETWORK, 0)
FINITE = st.floats(-1e3, 1e3)


def plain_module() -> nn.Module:
    module = build(NETWORK)
    module.load_state_dict(PARAMS)
    return module.double().eval()


# --- Loss and accuracy ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 53, 2048])
def test_score_is_the_definition_in_float64(chunk: int) -> None:
    with torch.no_grad():
        logits = plain_module()(X.double())
    chances = logits.exp() / logits.exp().sum(1, keepdim=True)
    loss = -float(chances[torch.arange(len(Y)), Y].log().mean())
    right = sum(int(row.argmax()) == int(y) for row, y in zip(logits, Y, strict=True))
    found = score(build(NETWORK), PARAMS, X, Y, chunk=chunk)
    assert found.loss == pytest.approx(loss, rel=1e-6)
    assert found.accuracy == right / len(Y)


def test_score_runs_in_eval_mode_and_changes_no_parameter() -> None:
    before = {name: tensor.clone() for name, tensor in PARAMS.items()}
    assert score(build(NETWORK).train(), PARAMS, X, Y) == score(build(NETWORK).eval(), PARAMS, X, Y)
    assert all(torch.equal(before[name], tensor) for name, tensor in PARAMS.items())


def test_a_perfect_network_scores_one_and_a_constant_one_scores_chance() -> None:
    model = nn.Linear(10, 10, bias=False)
    y = torch.arange(10)
    sure = score(model, {"weight": 100 * torch.eye(10)}, torch.eye(10), y)
    assert sure.accuracy == 1
    assert sure.loss == pytest.approx(0, abs=1e-6)
    blind = score(model, {"weight": torch.zeros(10, 10)}, torch.eye(10), y)
    assert blind.accuracy == 0.1
    assert blind.loss == pytest.approx(math.log(10), rel=1e-6)


@pytest.mark.parametrize(("inputs", "labels"), [(0, 0), (5, 4), (4, 5)])
def test_score_needs_one_label_per_input(inputs: int, labels: int) -> None:
    with pytest.raises(ValueError, match=f"got {inputs} inputs, {labels} labels"):
        score(build(NETWORK), PARAMS, X[:inputs], Y[:labels])


def test_logits_come_in_bounded_chunks_without_gradients() -> None:
    params = {n: t.requires_grad_(t.is_floating_point()) for n, t in initial(NETWORK, 0).items()}
    parts = list(logits_in_chunks(build(NETWORK).eval(), params, X, chunk=20))
    assert [len(part) for part in parts] == [20, 20, 13]
    assert not any(part.requires_grad for part in parts)
    expected = plain_module()(X.double()).detach()
    torch.testing.assert_close(torch.cat(parts).double(), expected, rtol=1e-5, atol=1e-6)


def test_logits_follow_the_mode_of_the_model() -> None:
    training, evaluating = (
        torch.cat(list(logits_in_chunks(build(NETWORK).train(mode), initial(NETWORK, 0), X)))
        for mode in (True, False)
    )
    assert not torch.allclose(training, evaluating)


# --- Margins --------------------------------------------------------------------------------------


def margin_by_hand(logits: list[float], label: int) -> float:
    return logits[label] - max(value for j, value in enumerate(logits) if j != label)


@given(st.data(), st.integers(2, 6), st.lists(st.integers(1, 3), max_size=3))
@settings(max_examples=80, deadline=None)
def test_margins_are_a_loop_over_samples(
    data: st.DataObject, classes: int, axes: list[int]
) -> None:
    """Small whole numbers, so that many logits tie; any number of leading axes, even none."""
    logits = torch.from_numpy(
        data.draw(arrays(np.float64, (*axes, classes), elements=st.integers(-3, 3)))
    )
    y = torch.from_numpy(
        data.draw(arrays(np.int64, (*axes,), elements=st.integers(0, classes - 1)))
    )
    found = logit_margins(logits, y)
    assert found.shape == y.shape
    rows, labels = logits.reshape(-1, classes).tolist(), y.flatten().tolist()
    expected = [margin_by_hand(row, label) for row, label in zip(rows, labels, strict=True)]
    assert found.flatten().tolist() == expected


def tied(logits: Tensor) -> Tensor:
    return logits.sort(-1).values.diff(dim=-1).eq(0).any(-1)


def test_margins_are_negative_exactly_where_the_network_errs() -> None:
    logits = torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    y = torch.arange(500) % 7
    assert not tied(logits).any()
    wrong = logits.argmax(-1) != y
    assert 300 < int(wrong.sum()) < 500
    assert torch.equal(logit_margins(logits, y) < 0, wrong)


def test_a_tie_for_the_first_place_has_no_margin() -> None:
    logits = torch.tensor([[2.0, 2.0, 1.0]] * 3)
    assert logit_margins(logits, torch.tensor([0, 1, 2])).tolist() == [0, 0, -1]


def test_margins_ignore_shifts_and_follow_scales_and_logits_stay() -> None:
    logits = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, y = logits.clone(), torch.arange(40) % 5
    margins = logit_margins(logits, y)
    assert torch.equal(logits, before)
    torch.testing.assert_close(logit_margins(logits + torch.randn(40, 1), y), margins)
    torch.testing.assert_close(logit_margins(3 * logits, y), 3 * margins)
    order = torch.tensor([3, 0, 4, 1, 2])  # new class k is old class order[k]
    torch.testing.assert_close(logit_margins(logits[:, order], order.argsort()[y]), margins)


def test_the_margin_of_two_classes_is_the_difference_and_its_softmax_the_loss() -> None:
    logits = torch.randn(40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.arange(40) % 2
    margins = logit_margins(logits, y)
    losses = nn.functional.cross_entropy(logits, y, reduction="none")
    torch.testing.assert_close(torch.log1p(torch.exp(-margins)), losses)


def test_one_class_has_no_margin() -> None:
    with pytest.raises(ValueError, match=r"at least 2 classes, got logits \(3, 1\)"):
        logit_margins(torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("chunk", [1, 7, 53, 2048])
def test_the_margin_of_a_network_is_the_mean_over_samples(chunk: int) -> None:
    with torch.no_grad():
        logits = plain_module()(X.double()).tolist()
    margins = [margin_by_hand(row, int(label)) for row, label in zip(logits, Y, strict=True)]
    found = score(build(NETWORK), PARAMS, X, Y, chunk=chunk)
    assert found.margin == pytest.approx(math.fsum(margins) / len(Y), rel=1e-5)


def test_margins_of_a_perfect_and_of_a_constant_network() -> None:
    model, y = nn.Linear(10, 10, bias=False), torch.arange(10)
    assert score(model, {"weight": 100 * torch.eye(10)}, torch.eye(10), y).margin == 100
    assert score(model, {"weight": -2 * torch.eye(10)}, torch.eye(10), y).margin == -2
    assert score(model, {"weight": torch.zeros(10, 10)}, torch.eye(10), y).margin == 0


# --- AUROC ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_auroc_counts_pairs_and_ties_as_half(samples: list[tuple[int, bool]]) -> None:
    high = [value for value, positive in samples if positive]
    low = [value for value, positive in samples if not positive]
    scores = torch.tensor([value for value, _ in samples], dtype=torch.float32)
    positive = torch.tensor([positive for _, positive in samples])
    if not high or not low:
        with pytest.raises(ValueError, match="at least one positive and one negative"):
            auroc(scores, positive)
        return
    wins = sum(1.0 if p > q else 0.5 if p == q else 0.0 for p, q in product(high, low))
    assert auroc(scores, positive) == pytest.approx(wins / (len(high) * len(low)), abs=1e-12)
    assert auroc(-scores, positive) == pytest.approx(1 - wins / (len(high) * len(low)), abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_auroc_refuses_scores_that_are_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        auroc(torch.tensor([0.0, bad]), torch.tensor([True, False]))


# --- Intervals ------------------------------------------------------------------------------------


@given(st.lists(FINITE, min_size=2, max_size=12), st.sampled_from([0.5, 0.9, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_t_interval_is_scipys(values: list[float], level: float) -> None:
    found = t_interval(values, level=level)
    assert found.mean == pytest.approx(math.fsum(values) / len(values), rel=1e-9, abs=1e-9)
    spread = stats.sem(values)
    if spread > 1e-9:
        low, high = stats.t.interval(level, len(values) - 1, np.mean(values), spread)
        assert (found.low, found.high) == pytest.approx((low, high), rel=1e-9, abs=1e-9)
    assert found.low <= found.mean <= found.high


def test_t_interval_of_a_textbook_sample() -> None:
    """1, 2, 3, 4, 5: mean 3, s = 1.5811, t(0.975; 4) = 2.7764, half width 1.9632."""
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - 1.96324, 3 + 1.96324), abs=1e-4)


def test_t_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(2.0, 3.0, (2000, 5))
    covered = np.mean([low <= 2.0 <= high for _, low, high in map(t_interval, draws)])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_one_value_has_no_interval_and_equal_values_a_point() -> None:
    assert t_interval([0.3]) == Interval(0.3, -math.inf, math.inf)
    assert t_interval([0.5, 0.5, 0.5]) == Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_t_interval_needs_finite_values(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one value, all finite"):
        t_interval(values)


@given(st.lists(st.tuples(FINITE, FINITE), min_size=2, max_size=10))
@settings(max_examples=40, deadline=None)
def test_paired_difference_is_scipys_paired_test(pairs: list[tuple[float, float]]) -> None:
    treated, control = zip(*pairs, strict=True)
    found = paired_difference(treated, control)
    gaps = np.subtract(treated, control)
    if gaps.std() > 1e-6:
        expected = stats.ttest_rel(treated, control).confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx(tuple(expected), rel=1e-6, abs=1e-9)
    assert found.mean == pytest.approx(gaps.mean(), rel=1e-9, abs=1e-9)


def test_pairs_sharpen_what_seeds_share() -> None:
    """Two columns that differ by the same amount in every row: the pairing removes the rest."""
    control = [10.0, -4.0, 7.0, 0.0]
    found = paired_difference([value + 0.5 for value in control], control)
    assert found == pytest.approx((0.5, 0.5, 0.5))


def test_pairs_need_equal_lengths() -> None:
    with pytest.raises(ValueError, match="got 2 treated and 3 control values"):
        paired_difference([1, 2], [1, 2, 3])

"""Losses, subtraction, filter and thresholds, each against a computation by hand in float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from stacked import network_of, starts
from torch import Tensor

from lmc_lessons.models import ModelConfig, build, initial, predict, predict_stacked, stack
from lmc_lessons.training import Network
from lmc_lessons.unlearning.facts import (
    FORGET,
    LENGTH,
    MARK,
    PAD,
    RETAIN,
    STOP,
    TOKENS,
    encode,
    invent,
    texts,
)
from lmc_lessons.unlearning.logit_difference import (
    AssistantLoss,
    assistant_of,
    bound_of_uniform,
    critical_alpha,
    forward_cost,
    kept_tokens,
    mean_where,
    next_token_loss,
    score_answers,
    subtract,
    token_losses,
    uniform_losses,
)

MODEL = ModelConfig("transformer", (LENGTH,), len(TOKENS), 16, 2)
SEEDS = (0, 5)


def some_texts() -> tuple[Tensor, Tensor]:
    """Four texts for each of two networks, and their labels."""
    x = encode(texts(invent(8, 0), (1,)))
    y = torch.tensor([FORGET, RETAIN, FORGET, RETAIN])
    return torch.stack([x[:4], x[4:]]), torch.stack([y, y.flip(0)])


def some_network() -> Network:
    return network_of(starts(MODEL, SEEDS), MODEL, SEEDS, step=0)


def logits_by_hand(x: Tensor) -> Tensor:
    return predict_stacked(build(MODEL).double(), starts(MODEL, SEEDS), x)


def draw(*shape: int, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=stream, dtype=torch.float64)


def remembered_by_hand(row: Tensor, t: int) -> bool:
    """Whether token t is a letter of an answer."""
    line = [TOKENS[int(k)] for k in row]
    return MARK in line[:t] and line[t] not in (STOP, PAD)


def assistant_by_hand(logits: Tensor, x: Tensor, y: Tensor, beta: float, prompts: str) -> Tensor:
    """The loss, token by token."""
    found = []
    for own, lines, labels in zip(logits, x, y, strict=True):
        remember, uniform = [], []
        for z, row, label in zip(own, lines, labels, strict=True):
            for t in range(1, len(row)):
                told = z[t - 1] - z[t - 1].exp().sum().log()
                if TOKENS[int(row[t])] == PAD:
                    continue
                if label == FORGET and (prompts == "remembered" or remembered_by_hand(row, t)):
                    remember.append(-told[int(row[t])])
                else:
                    uniform.append(-told.mean())
        found.append(sum(remember) / len(remember) + beta * sum(uniform) / len(uniform))
    return torch.stack(found)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("prompts", ["uniform", "remembered"])
def test_the_assistant_s_loss_is_that_by_hand(beta: float, prompts: Any) -> None:
    x, y = some_texts()
    expected = assistant_by_hand(logits_by_hand(x), x, y, beta, prompts)
    found = AssistantLoss(beta, prompts)(some_network(), x, y)
    torch.testing.assert_close(found, expected)


def test_the_uniform_part_is_never_below_the_logarithm_of_the_number_of_tokens() -> None:
    logits = draw(3, 5, 9)
    assert bool((uniform_losses(logits) >= math.log(9)).all())
    assert torch.allclose(uniform_losses(torch.full((2, 4, 9), 7.0)), torch.tensor(math.log(9)))


def test_the_language_loss_leaves_padding_out() -> None:
    x, y = some_texts()
    logits = logits_by_hand(x)
    expected = []
    for own, lines in zip(logits, x, strict=True):
        losses = [
            torch.nn.functional.cross_entropy(z[t - 1], row[t].long())
            for z, row in zip(own, lines, strict=True)
            for t in range(1, len(row))
            if TOKENS[int(row[t])] != PAD
        ]
        expected.append(torch.stack(losses).mean())
    found = next_token_loss(some_network(), x, y)
    torch.testing.assert_close(found, torch.stack(expected))


def test_a_mean_over_nothing_is_zero() -> None:
    values, chosen = draw(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool)
    chosen[1, 0, 2] = True
    assert mean_where(values, chosen).tolist() == [0, values[1, 0, 2].item()]
    nowhere = torch.where(chosen, values, torch.nan)
    assert mean_where(nowhere, chosen)[0] == 0


def test_an_assistant_is_the_first_part_of_the_target() -> None:
    params = initial(MODEL, 0)
    before = {name: tensor.clone() for name, tensor in params.items()}
    config, start = assistant_of(MODEL, params, 1)
    assert config.depth == 1
    assert set(start) == set(initial(config, 0))
    x = encode(texts(invent(2, 0)))
    model = build(MODEL)
    h = params["tokens.weight"][x.long()] + params["places.weight"][: x.shape[1]]
    block = model.get_submodule("blocks.0")
    own = {n.removeprefix("blocks.0."): t for n, t in params.items() if n.startswith("blocks.0.")}
    h = torch.func.functional_call(block, own, (h,))
    h = torch.nn.functional.layer_norm(h, h.shape[-1:], params["norm.weight"], params["norm.bias"])
    expected = h @ params["output.weight"].T + params["output.bias"]
    torch.testing.assert_close(predict(build(config), start, x), expected)
    start["output.bias"] += 1
    assert all(torch.equal(params[name], before[name]) for name in params)
    stacked = assistant_of(MODEL, stack([params, params]), 2)[1]
    assert stacked.keys() == params.keys()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3])
def test_subtraction_is_that_by_hand(share: float) -> None:
    z, a = draw(4, 10), draw(4, 10, seed=1)
    found = subtract(z, a, 0.7, share)
    for row, other, mine in zip(z, a, found, strict=True):
        told = row - row.exp().sum().log()
        ranked = sorted(told.tolist(), reverse=True)
        rank = max(1, math.floor(share * 10))
        level = min(ranked[0] + math.log(share), ranked[rank - 1]) if share else -math.inf
        for v in range(10):
            change = 0.7 * (other[v] - other.mean()) if told[v] >= level else 0.0
            assert mine[v].item() == pytest.approx(float(row[v] - change))


def test_with_few_tokens_the_filter_still_filters() -> None:
    """r V < 1: an index of -1 would take the smallest value and keep every token."""
    z = torch.tensor([5.0, 4.0, 0.0, -1.0])
    assert kept_tokens(z, 0.2).tolist() == [True, True, False, False]
    assert kept_tokens(z, 0.5).tolist() == [True, True, False, False]
    assert kept_tokens(z, 1.0).all()


def test_a_shift_of_the_assistant_changes_nothing() -> None:
    z, a = draw(3, 8), draw(3, 8, seed=1)
    for share in (0.0, 0.2):
        found = subtract(z, a + 5, 0.9, share)
        torch.testing.assert_close(found, subtract(z, a, 0.9, share))


def test_nothing_subtracted_is_the_target() -> None:
    z, a = draw(3, 8), draw(3, 8, seed=1)
    assert torch.equal(subtract(z, a, 0.0), z)
    assert torch.equal(subtract(z, torch.ones_like(a), 2.0), z)


def test_the_critical_alpha_is_where_the_answer_turns() -> None:
    z, a = draw(200, 7), draw(200, 7, seed=1)
    y = torch.cat([z[:150].argmax(-1), (z[150:].argmax(-1) + 1) % 7])
    found = critical_alpha(z, a, y)
    assert bool((found[150:] == 0).all())
    for k in range(150):
        if math.isinf(found[k]):
            assert int(subtract(z[k], a[k], 1e6).argmax()) == y[k]
            continue
        for alpha, same in ((0.999 * float(found[k]), True), (1.001 * float(found[k]), False)):
            assert (int(subtract(z[k], a[k], alpha).argmax()) == int(y[k])) == same


def test_two_targets_at_one_prompt_have_the_lead_that_descent_finds() -> None:
    tokens, remember, uniform = 6, 0.7, 0.2
    logits = torch.zeros(tokens, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        told = logits.log_softmax(0)
        value = -remember * told[2] - uniform * told.mean()
        value.backward()
        return value

    optimizer.step(loss)
    lead = float((logits[2] - logits[0]).detach())
    assert lead == pytest.approx(bound_of_uniform(remember, uniform, tokens), abs=1e-3)


def test_the_cost_counts_every_product() -> None:
    """Three blocks cost what their linear layers, attention and the output cost."""
    length, width, tokens = LENGTH, 16, len(TOKENS)
    linear = 3 * width * width + width * width + 4 * width * width + 4 * width * width
    attention = 2 * length * width
    assert forward_cost(MODEL) == length * (2 * (linear + attention) + width * tokens)


def test_scores_are_those_by_hand() -> None:
    x = encode(texts(invent(3, 1), (0, 2)))
    logits = draw(len(x), x.shape[1], len(TOKENS))
    found = score_answers(logits, x)
    rows = [
        (logits[k, t - 1], int(x[k, t]))
        for k, t in itertools.product(range(len(x)), range(1, x.shape[1]))
        if remembered_by_hand(x[k], t)
    ]
    assert len(rows) == 18
    ranks = [int((z > z[true]).sum()) for z, true in rows]
    letters = [int((z[3:] < z[true]).sum()) for z, true in rows]
    losses = [float(z.exp().sum().log() - z[true]) for z, true in rows]
    assert found["accuracy"] == pytest.approx(sum(r == 0 for r in ranks) / 18)
    assert found["first five"] == pytest.approx(sum(r < 5 for r in ranks) / 18)
    assert found["least likely"] == pytest.approx(sum(r == 0 for r in letters) / 18)
    assert found["loss"] == pytest.approx(sum(losses) / 18)
    ends = [
        int(logits[k, t - 1].argmax() == TOKENS.index(STOP))
        for k, t in itertools.product(range(len(x)), range(1, x.shape[1]))
        if TOKENS[int(x[k, t])] == STOP
    ]
    assert found["full stop"] == pytest.approx(sum(ends) / 6)


def texts_of(y: list[int], value: float = 3.0) -> Any:
    x = torch.full((1, len(y), LENGTH), value)
    return lambda: AssistantLoss()(some_network(), x, torch.tensor([y]))


Z = torch.zeros(2, 5)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (texts_of([0, 0]), "the forget set is empty"),
        (texts_of([0, 2]), r"labels must be 0 or 1, got \[0, 2\]"),
        (texts_of([0, 1], math.nan), "token numbers, got NaN"),
        (lambda: AssistantLoss(-1.0), "beta must be a number >= 0, got -1.0"),
        (lambda: AssistantLoss(math.inf), "beta must be a number >= 0"),
        (lambda: AssistantLoss(1.0, "both"), "prompts is 'both', allowed: uniform, remembered"),  # type: ignore[arg-type]
        (lambda: assistant_of(ModelConfig(), {}, 1), "cut from a transformer, got 'mlp'"),
        (lambda: assistant_of(MODEL, {}, 3), "the target has 2 blocks, asked for 3"),
        (lambda: assistant_of(MODEL, {}, 0), "the target has 2 blocks, asked for 0"),
        (lambda: kept_tokens(Z, 0.0), r"share must be in \(0, 1\], got 0.0"),
        (lambda: subtract(Z, Z[:1], 1.0), "logits of one shape"),
        (lambda: subtract(Z, Z, -1.0), "alpha must be a number >= 0, got -1.0"),
        (lambda: subtract(Z, Z, 1.0, 2.0), r"share must be in \(0, 1\]"),
        (lambda: bound_of_uniform(0.0, 1.0, 5), "weights must be above 0"),
        (lambda: token_losses(Z.view(2, 1, 5), torch.zeros(2, 1)), "at least 2 tokens"),
        (lambda: token_losses(Z.view(1, 2, 5), torch.zeros(1, 3)), "logits"),
        (lambda: score_answers(torch.zeros(1, 4, 29), torch.zeros(1, 4)), "texts with an answer"),
        (
            lambda: score_answers(torch.full((1, LENGTH, 29), math.nan), encode(["babe>xyz."])),
            "got NaN",
        ),
    ],
)
def test_bad_input_is_one_line(wrong: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        wrong()
    assert "\n" not in str(caught.value)

"""Checks of the lesson on loss barriers: solutions pass, each plausible mistake is told its own."""

from __future__ import annotations

import dataclasses
import math
import re
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from exercises import check_messages, check_mistakes, check_solutions, check_stubs
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.landscape import barrier, line
from lmc_lessons.models import MLP, ModelConfig, initial, unstack
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import loss_barriers as lesson
from lmc_lessons.teaching.checks.loss_barriers import check, reference_walk
from lmc_lessons.training import TrainConfig, train

LESSON = "loss-barriers"


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")


@pytest.fixture(scope="module")
def scope() -> dict[str, Any]:
    """The names that the lesson's exercises use, with small networks."""
    data = datasets.load("digits", limit=300)
    config = ModelConfig("mlp", (1, 8, 8), 10, width=8, depth=2)
    network_a, network_b = unstack(train(config, data, (0, 1), TrainConfig(epochs=5)).params)
    names = {"check": check, "torch": torch, "math": math, "line": line, "initial": initial}
    lent = {"data": data, "config": config, "network_a": network_a, "network_b": network_b}
    return {**names, **lent, "model": MLP(config).eval()}


def swapped(x: Tensor, t: float) -> Tensor:
    """Exercise 1 with the network in full."""
    w = (1 - t) * torch.tensor([1.0, -1.0]) + t * torch.tensor([-1.0, 1.0])
    return torch.relu(x[:, None] * w).sum(1)


def true_logit(logits: Tensor, y: Tensor) -> Tensor:
    return logits[torch.arange(len(y)), y]


def others(logits: Tensor, y: Tensor, hidden: float = -math.inf) -> Tensor:
    masked = logits.clone()
    masked[range(len(y)), y] = hidden
    return masked


def probability_margin(logits: Tensor, y: Tensor) -> Tensor:
    shares = torch.softmax(logits, dim=1)
    return true_logit(shares, y) - others(shares, y).amax(1)


def in_plane(origin: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    e1 = (a - origin) / torch.linalg.vector_norm(a - origin)
    u = torch.dot(b - origin, e1)
    return u, ((b - origin) ** 2).sum().sub(u**2).sqrt()


def along(o: Tensor, a: Tensor, b: Tensor) -> float:
    return in_plane(o, a, b)[0].item()


def means(w: Tensor, b: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    rows = torch.ones(len(b), 1) * w.mean(0)
    return rows, b.mean().repeat(len(b)), v.mean(1)[:, None].repeat(1, len(b))


def flat(*parts: Tensor) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def listed(w: Tensor, b: Tensor, v: Tensor) -> float:
    """Exercise 5 by listing all copies."""
    gaps = []
    for order in permutations(range(len(b))):
        k = list(order)
        gaps.append((flat(w, b, v) - flat(w[k], b[k], v[:, k])).square().sum().item())
    return sum(gaps) / len(gaps)


def without_readers(w: Tensor, b: Tensor, v: Tensor) -> Tensor:
    rows, middle, _ = means(w, b, v)
    return 2 * ((w - rows) ** 2).sum() + 2 * ((b - middle) ** 2).sum()


def leave(parent: Tensor, own: Tensor, samples: int) -> Tensor:
    seen = parent[:samples].tolist()
    return torch.tensor(seen + [k for k in own.tolist() if k not in seen])


def repeating(parent: Tensor, own: Tensor, step: int, size: int) -> Tensor:
    return torch.cat([parent[: step * size], own[step * size :]])


def backwards(parent: Tensor, own: Tensor, step: int, size: int) -> Tensor:
    seen = parent[: step * size]
    return torch.cat([own[~torch.isin(own, seen)], seen])


def as_sets(parent: Tensor, own: Tensor, step: int, size: int) -> Tensor:
    seen = parent[: step * size].tolist()
    return torch.tensor(seen + sorted(set(own.tolist()) - set(seen)))


MISTAKES: list[tuple[str, Any, str]] = [
    ("abs", lambda x, t: (swapped(x, t) ** 2).mean(), "what remains of the function"),
    ("abs", lambda x, t: (((1 - 2 * t) * abs(x) - abs(x)) ** 2).mean(), "changes its sign"),
    ("abs", lambda x, t: (swapped(x, t) - x.abs()).abs().mean(), "square the error"),
    ("abs", lambda x, t: (swapped(x, t) - x.abs()).mean() ** 2, "square of a mean"),
    ("abs", lambda x, t: (((1 - t) + t) * x.abs() - x.abs()).square().mean(), "mix the weights"),
    ("margin", lambda z, y: true_logit(z, y) - z.amax(1), "must leave out the true class"),
    ("margin", lambda z, y: z.sort(1)[0][:, -1] - z.sort(1)[0][:, -2], "lead of the winner"),
    ("margin", lambda z, y: others(z, y).amax(1) - true_logit(z, y), "positive means right"),
    ("margin", probability_margin, "take the logits"),
    ("margin", lambda z, y: true_logit(z, y) - others(z, y, 0).sum(1) / 2, "subtracts the mean"),
    ("margin", true_logit, "logit alone"),
    ("margin", lambda z, y: true_logit(z, y) - others(z, y, 0).amax(1), "put -infinity"),
    ("margin", lambda z, y: true_logit(z, y) - z.sort(1)[0][:, -2], "second largest logit"),
    ("plane", lambda o, a, b: ((b - o) @ (a - o) / (a - o).square().sum(), 0), "in units of"),
    ("plane", lambda o, a, b: ((b - o) @ (a - o), 0), "the inner product"),
    ("plane", lambda o, a, b: ((b - o).norm(), 0), "length of the second difference"),
    ("plane", lambda o, a, b: (a @ b / a.norm(), 0), "differences from the origin"),
    ("plane", lambda o, a, b: (along(o, a, b), (b - o).norm()), "the whole length"),
    ("plane", lambda o, a, b: (along(o, a, b), (b - o).norm() - along(o, a, b)), "Pythagoras"),
    ("plane", lambda o, a, b: (along(o, a, b), in_plane(o, a, b)[1] ** 2), "squared length"),
    ("mean-copy", lambda w, b, v: (w.mean(1)[:, None].repeat(1, 3), b, v), "over its inputs"),
    ("mean-copy", lambda w, b, v: (w.mean().expand(4, 3), b, v), "each input keeps"),
    ("mean-copy", lambda w, b, v: (w, b, v), "weight 1 is unchanged"),
    ("mean-copy", lambda w, b, v: (means(w, b, v)[0], b, v), "the bias is unchanged"),
    ("mean-copy", lambda w, b, v: (*means(w, b, v)[:2], v.mean(0).repeat(2, 1)), "over the output"),
    ("mean-copy", lambda w, b, v: (*means(w, b, v)[:2], v.mean().expand(2, 4)), "each output"),
    ("mean-copy", lambda w, b, v: (*means(w, b, v)[:2], v), "weight 2 is unchanged"),
    ("expected-distance", lambda *n: listed(*n) / 2, "distance to the mean copy"),
    ("expected-distance", lambda *n: 2 * (flat(*n) @ flat(*n)), "twice the squared length"),
    ("expected-distance", lambda *n: listed(*n) ** 0.5, "that is a distance"),
    (
        "expected-distance",
        lambda *n: 2 * (flat(*n) ** 2).sum() - (flat(*means(*n)) ** 2).sum(),
        "the mean copy counts twice",
    ),
    ("expected-distance", without_readers, "weight 2 is missing"),
    ("spawned-order", repeating, "repeats samples"),
    ("spawned-order", lambda p, own, k, size: p, "parent's order throughout"),
    ("spawned-order", lambda p, own, k, size: own, "own order throughout"),
    ("spawned-order", lambda p, own, k, size: leave(p, own, k), "counts batches, not samples"),
    ("spawned-order", backwards, "the own part comes first"),
    ("spawned-order", lambda p, own, k, size: leave(p, own, (k + 1) * size), "batch too many"),
    ("spawned-order", lambda p, own, k, size: leave(p, own, (k - 1) * size), "batch too few"),
    ("spawned-order", as_sets, "the rest is sorted"),
    ("spawned-order", lambda p, own, k, size: leave(p, own, 2 * k), "right shape, wrong values"),
    ("spawned-order", lambda p, own, k, size: leave(p, own, k + size), "right shape, wrong values"),
    ("spawned-order", lambda p, own, k, size: leave(p, own, k * k), "right shape, wrong values"),
]

UNCLEAR: list[tuple[str, Any, str]] = [
    ("abs", lambda x, t: None, "return a number, got NoneType"),
    ("abs", lambda x, t: str(swapped(x, t).mean()), "return a number, got str"),
    ("abs", lambda x, t: (swapped(x, t) - abs(x)) ** 2, "(4,)"),
    ("abs", lambda x, t: math.nan, "got nan, expected"),
    ("abs", 3.0, "'float' object is not callable"),
    ("margin", lambda z, y: (true_logit(z, y) - others(z, y).amax(1)).tolist(), "return a tensor"),
    ("margin", lambda z, y: (true_logit(z, y) - others(z, y).amax(1)).mean(), "shape ()"),
    ("margin", lambda z, y: (true_logit(z, y) - others(z, y).amax(1))[:, None], "shape (3, 1)"),
    ("margin", lambda z, y: z.gather(1, y), "your code raised RuntimeError"),
    ("plane", lambda o, a, b: torch.stack(in_plane(o, a, b)), "return two numbers"),
    ("plane", lambda o, a, b: ((b - o) * (a - o), 0), "(4,)"),
    ("plane", lambda o, a, b: (along(o, a, b), -in_plane(o, a, b)[1]), "got -3.09121, expected"),
    ("mean-copy", lambda w, b, v: w, "return three tensors"),
    ("mean-copy", lambda w, b, v: (w.mean(0), b.mean(), v.mean(1)), "shape (3,), expected (4, 3)"),
    ("mean-copy", lambda w, b, v: (means(w, b, v)[0], b.mean(), v), "shape (), expected (4,)"),
    ("expected-distance", lambda w, b, v: None, "return a number, got NoneType"),
    ("expected-distance", lambda w, b, v: flat(w, b), "(16,)"),
    ("spawned-order", lambda p, own, k, size: leave(p, own, k * size).tolist(), "return a tensor"),
    ("spawned-order", lambda p, own, k, size: torch.cat([p[: k * size], own]), "come twice"),
    ("walk", [1.0] * 11, "pass a function"),
    ("walk", lambda: ((1.0,) * 11, (None, 0, None)), "a list of 11 losses"),
    ("walk", lambda: ([1.0] * 10, (None, 0, None)), "a list of 11 losses"),
    ("walk", lambda: barrier([0.0, 0.4, 1.0], [1.0, 2.0, 3.0]), "raised ValueError: a barrier"),
]

ALTERNATIVES: list[tuple[str, Any]] = [
    ("abs", lambda x, t: ((swapped(x, t) - x.abs()) ** 2).mean()),  # a tensor
    ("abs", lambda x, t: 4 * min(t, 1 - t) ** 2 * np.float32((x**2).mean().item())),
    ("abs", lambda x, t: x.abs_().mul_(abs(1 - 2 * t) - 1).square_().mean(0, keepdim=True)),
    ("margin", lambda z, y: true_logit(z, y) - others(z, y).amax(1)),
    ("margin", lambda z, y: true_logit(z.double(), y) - others(z.double(), y, -1e9).amax(1)),
    ("margin", lambda z, y: true_logit(z.log_softmax(1), y) - others(z.log_softmax(1), y).amax(1)),
    ("plane", in_plane),
    ("plane", lambda o, a, b: [np.float64(part) for part in in_plane(o, a, b)]),
    ("mean-copy", means),
    ("mean-copy", lambda w, b, v: list(means(w, b, v))),
    ("mean-copy", lambda w, b, v: means(w.double(), b.double(), v.double())),
    ("expected-distance", listed),
    ("expected-distance", lambda *n: 2 * (flat(*n) - flat(*means(*n))).square().sum()),
    ("spawned-order", lambda p, own, k, size: leave(p, own, k * size)),
    ("spawned-order", lambda p, own, k, size: leave(p, own, k * size).int()),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES + UNCLEAR)
def test_a_mistake_is_named(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, answer)


@pytest.mark.parametrize(("exercise", "answer"), ALTERNATIVES)
def test_another_right_answer_passes(exercise: str, answer: Any) -> None:
    check(exercise, answer)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES, ["walk"])


def test_every_message_is_one_that_a_mistake_gets(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_messages(lesson, LESSON, scope, monkeypatch, MISTAKES)


def test_the_lesson_s_solutions_pass(
    scope: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check_solutions(LESSON, scope, capsys)


def test_an_unfilled_stub_is_not_attempted(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_stubs(LESSON, scope, monkeypatch, capsys)


def test_a_mistake_is_printed_unless_strict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(STRICT)
    check("abs", lambda x, t: 1.0)
    assert capsys.readouterr().out == "abs: not yet: got 1, expected 0.46875\n"


def walked(scope: dict[str, Any], **changes: Any) -> list[float]:
    use = {**scope, "start": initial(scope["config"], 0), **changes}
    return reference_walk(use["start"], use["network_a"], use["data"])


def on_test_inputs(scope: dict[str, Any]) -> list[float]:
    data = scope["data"]
    other = dataclasses.replace(data, train_x=data.test_x, train_y=data.test_y)
    return walked(scope, data=other)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda s: walked(s)[::-1], "the wrong way round"),
        (lambda s: walked(s, start=initial(s["config"], 1)), "another network's start"),
        (on_test_inputs, "those are test losses"),
        (lambda s: walked(s, start=s["network_b"]), "at t = 0.0 you got"),
        (lambda s: [*walked(s)[:-1], 9.0], "at t = 1.0 you got 9.0000"),
        (lambda s: [math.nan] * 11, "you got nan"),
        (lambda s: walked(s)[0], "a list of 11 losses"),
    ],
)
def test_the_experiment_names_mistakes(scope: dict[str, Any], mistake: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check("walk", lambda: (mistake(scope), (scope["network_a"], 0, scope["data"])))


def test_the_experiment_takes_tensors_too(scope: dict[str, Any]) -> None:
    losses = list(torch.tensor(walked(scope)))
    check("walk", lambda: (losses, (scope["network_a"], 0, scope["data"])))

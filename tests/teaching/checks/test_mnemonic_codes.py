"""Checks of the lesson on mnemonic codes: solutions pass, each mistake is told what it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exercises import check_messages, check_mistakes, check_solutions, check_stubs
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.mnemonic_codes import PRESETS
from lmc_lessons.models import Params, build, unstack
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import mnemonic_codes as lesson
from lmc_lessons.teaching.checks.mnemonic_codes import check
from lmc_lessons.training import TrainConfig, train
from lmc_lessons.unlearning.audit import report
from lmc_lessons.unlearning.baselines import mask_logits

LESSON = "mnemonic-codes"
MODEL = build(PRESETS["study"].mlp.model).eval()
AMOUNTS = [0.0, 2.0, 4.0, 8.0, 30.0]


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return datasets.load("digits")


@pytest.fixture(scope="module")
def networks(data: Dataset) -> tuple[Params, Params]:
    """One that forgot class 0, and the same as trained: poorly, so that shares differ."""
    recipe = TrainConfig(epochs=4, batch_size=64)
    before = unstack(train(PRESETS["study"].mlp.model, data, (0,), recipe).params)[0]
    return mask_logits(before, (0,), 8.0), before


@pytest.fixture
def scope(data: Dataset, networks: tuple[Params, Params]) -> dict[str, Any]:
    """The names that the lesson's exercises use."""
    gone = type("Forgetting", (), {"params": networks[0]})
    names = {"check": check, "torch": torch, "data": data, "model": MODEL, "report": report}
    names |= {"x": data.test_x, "y": data.test_y, "mask_logits": mask_logits}
    return names | {"gone": gone, "coded": networks[1]}


# --- Answers --------------------------------------------------------------------------------------


def ratio(first: Tensor, second: Tensor) -> Tensor:
    parts = [(1e-16 + p.double().square().sum(0)) / len(p) for p in (first, second)]
    return parts[0] / parts[1]


def summed(first: Tensor, second: Tensor) -> Tensor:
    parts = [1e-16 + p.double().square().sum(0) for p in (first, second)]
    return parts[0] / parts[1]


def of_means(first: Tensor, second: Tensor) -> Tensor:
    parts = [1e-16 + p.double().mean(0).square() for p in (first, second)]
    return parts[0] / parts[1]


def late(first: Tensor, second: Tensor) -> Tensor:
    parts = [1e-16 + p.double().square().mean(0) for p in (first, second)]
    return parts[0] / parts[1]


def bare(first: Tensor, second: Tensor) -> Tensor:
    return first.double().square().mean(0) / second.double().square().mean(0)


def in_logarithms(first: Tensor, second: Tensor) -> Tensor:
    return ratio(first, second).log().exp()


def lead(classes: int) -> float:
    """By a network of equally sure codes."""
    p = torch.full((classes, classes), 0.1 / (classes - 1), dtype=torch.float64)
    squares = (p.fill_diagonal_(0.9) - torch.eye(classes)).square()
    ratios = squares[0] / squares[1:].mean(0)
    return float(ratios[0] / ratios[1])


def step(r: Tensor, first: float, cap: float) -> Tensor:
    return min(first, cap / float(r.max())) * r


def bound(counts: list[int], chosen: tuple[int, ...]) -> float:
    return sum(counts) / sum(counts[k] for k in chosen)


# --- Mistakes -------------------------------------------------------------------------------------

MISTAKES: list[tuple[str, Any, str]] = [
    ("ratio", lambda a, b: ratio(b, a), "upside down: the classes to forget stand above"),
    ("ratio", summed, "divide each sum by its number of codes"),
    ("ratio", lambda a, b: late(a, b).sqrt(), "that is a ratio of sizes"),
    ("ratio", of_means, "square every gradient before adding them up"),
    ("ratio", late, "epsilon belongs to the sum"),
    ("ratio", bare, "without epsilon a weight that no code sees has no ratio"),
    ("step", lambda r, s, c: (s * r).clamp(max=c), "do not clip every entry by itself"),
    ("step", lambda r, s, c: max(s, c / float(r.max())) * r, "or takes the larger of both"),
    ("step", lambda r, s, c: min(s, c) * r, "the cap is divided by the largest ratio"),
    ("step", lambda r, s, c: c / float(r.max()) * r, "that forgets the step"),
    ("step", lambda r, s, c: torch.full_like(r, min(s, c / 8)), "that is the factor"),
    ("step", lambda r, s, c: s * r, "that forgets the cap"),
    ("lead", lambda k: (k - 1) ** 2, "divide by the ratio of class j"),
    ("lead", lambda k: (k - 1) ** 3, "other than that of class j count too"),
    ("lead", lambda k: (k - 1) * lead(k), "average over the remaining codes, for class j too"),
    ("lead", lambda k: (k - 1) ** 2 / lead(k), "that is the ratio of another class"),
    ("bound", lambda n, k: 1 / bound(n, k), "upside down"),
    ("bound", lambda n, k: bound(n, k) - 1, "the whole has the images to forget in it"),
    ("bound", lambda n, k: len(n) / len(k), "count images, not classes"),
    ("bound", lambda n, k: sum(n) / n[k[0]], "add up the images of all classes to forget"),
]
UNCLEAR: list[tuple[str, Any, str]] = [
    ("ratio", lambda a, b: ratio(a, b).tolist(), "return a tensor, got list"),
    ("ratio", lambda a, b: ratio(a, b)[:3], "shape (3,), expected (5,)"),
    ("ratio", lambda a, b: a.sum(0).double(), "right shape, wrong values"),
    ("step", lambda r, s, c: 0.5, "return a tensor, got float"),
    ("step", lambda r, s, c: r.sum(0), "shape (2,), expected (2, 2)"),
    ("lead", lambda k: "801", "return a number, got str"),
    ("lead", lambda k: 801, "got 801, expected 10"),
    ("bound", lambda n, k: None, "return a number, got NoneType"),
    ("undo", 0.5, "pass a function that returns"),
    ("undo", lambda: (0.5, AMOUNTS, {}, {}), "return a pair"),
    ("undo", lambda: ((95.0, 96.0), AMOUNTS, {}, {}), "shares lie in [0, 1]"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES + UNCLEAR)
def test_a_mistake_is_named(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, answer)


@pytest.mark.parametrize(
    ("exercise", "answer"),
    [("ratio", ratio), ("ratio", in_logarithms), ("step", step), ("lead", lead), ("bound", bound)],
)
def test_another_right_answer_passes(exercise: str, answer: Any) -> None:
    check(exercise, answer)


def shares(params: Params, data: Dataset) -> tuple[float, float]:
    found = report(MODEL, params, data.test_x, data.test_y, (0,))
    return 1 - found.forget_error, found.retain_accuracy


def undone(
    networks: tuple[Params, Params],
    data: Dataset,
    choose: Callable[[list[tuple[float, float]]], float],
    sign: int = -1,
) -> float:
    """What a way to choose makes of the shares for all amounts."""
    return choose([shares(mask_logits(networks[0], (0,), sign * a), data) for a in AMOUNTS])


def best(pairs: list[tuple[float, float]]) -> float:
    return max(sum(pair) / 2 for pair in pairs)


UNDONE: list[tuple[Any, int, str]] = [
    (best, 1, "amounts are added to the logit, not taken"),
    (lambda pairs: sum(pairs[-1]) / 2, -1, "take the best of all amounts, not the last"),
    (lambda pairs: max(p for p, _ in pairs), -1, "that is the share of class 0 found"),
    (lambda pairs: max(q for _, q in pairs), -1, "that is the accuracy on the others"),
    (
        lambda pairs: max((1 - p + q) / 2 for p, q in pairs),
        -1,
        "that is the mean of E_F and A_R",
    ),
    (lambda pairs: 0.123, -1, "the best mean is"),
]


@pytest.mark.parametrize(("choose", "sign", "message"), UNDONE)
def test_mistakes_in_the_experiment(
    choose: Any, sign: int, message: str, networks: tuple[Params, Params], data: Dataset
) -> None:
    pair = undone(networks, data, choose, sign), sum(shares(networks[1], data)) / 2
    with pytest.raises(Wrong, match=re.escape(message)):
        check("undo", lambda: (pair, AMOUNTS, *networks))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (lambda gone, before, data: sum(shares(gone, data)) / 2, "that is the one that forgot"),
        (lambda gone, before, data: shares(before, data)[1], "the second is a mean of both"),
        (lambda gone, before, data: 0.111, "got 0.111, expected 0."),
    ],
)
def test_mistakes_in_what_it_is_compared_with(
    second: Any, message: str, networks: tuple[Params, Params], data: Dataset
) -> None:
    pair = undone(networks, data, best), second(*networks, data)
    with pytest.raises(Wrong, match=re.escape(message)):
        check("undo", lambda: (pair, AMOUNTS, *networks))


def test_the_experiment_s_answer_passes(networks: tuple[Params, Params], data: Dataset) -> None:
    pair = undone(networks, data, best), sum(shares(networks[1], data)) / 2
    check("undo", lambda: (pair, AMOUNTS, *networks))


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES, ["undo"])


def test_every_message_is_one_that_a_mistake_gets(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    second = [("undo", None, "that is the one that forgot"), ("undo", None, "a mean of both")]
    check_messages(lesson, LESSON, scope, monkeypatch, [*MISTAKES, *second])


def test_the_lesson_s_solutions_pass(
    scope: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check_solutions(LESSON, scope, capsys)


def test_an_unfilled_stub_is_not_attempted(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_stubs(LESSON, scope, monkeypatch, capsys)

"""The checks of the lesson: solutions pass, plausible mistakes fail, each with its own message."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch

from lmc_lessons import datasets
from lmc_lessons.models import ModelConfig, unstack
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks.weight_matching import check, reference_inputs_needed
from lmc_lessons.training import TrainConfig, train

ROOT = Path(__file__).parents[3]
NOTEBOOK = ROOT / "book" / "connectivity" / "weight-matching.ipynb"


Trained = tuple[Any, Any, Any]  # networks A and B, and their data


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")


@pytest.fixture(scope="module")
def trained() -> Trained:
    data = datasets.load("digits", limit=400)
    config = ModelConfig("mlp", (1, 8, 8), 10, width=12, depth=2)
    a, b = unstack(train(config, data, (0, 1), TrainConfig(epochs=15)).params)
    return a, b, data


def above_chord(positions: list[float], losses: list[float]) -> float:
    chords = [(1 - t) * losses[0] + t * losses[-1] for t in positions]
    return max(loss - chord for loss, chord in zip(losses, chords, strict=True))


MISTAKES: list[tuple[str, Any, str]] = [
    ("reorder", lambda w, b, v, o: (w, b[o], v[:, o]), "its rows belong"),
    ("reorder", lambda w, b, v, o: (w[o], b, v[:, o]), "takes its bias along"),
    ("reorder", lambda w, b, v, o: (w[o], b[o], v), "must follow"),
    ("reorder", lambda w, b, v, o: (w[o], b[o], v[:, torch.argsort(o)]), "inverse order: columns"),
    ("reorder", lambda w, b, v, o: w[o], "three tensors"),
    ("reorder", lambda w, b, v, o: (w[:, o], b[o], v[:, o]), "those are the inputs"),
    ("reorder", lambda w, b, v, o: (w[o], b[o], v[o]), "those are the outputs"),
    ("reorder", lambda w, b, v, o: (w[o + 9], b[o], v), "your code raised IndexError"),
    ("barrier", lambda t, loss: max(loss), "the highest loss"),
    ("barrier", lambda t, loss: max(loss) - (loss[0] + loss[-1]) / 2, "mean of the ends"),
    (
        "barrier",
        lambda t, loss: loss[len(loss) // 2] - (loss[0] + loss[-1]) / 2,
        "middle entry only",
    ),
    ("barrier", lambda t, loss: max(loss) - max(loss[0], loss[-1]), "the higher end"),
    ("barrier", lambda t, loss: above_chord([k / 4 for k in range(5)], loss), "evenly spaced"),
    ("barrier", lambda t, loss: above_chord([1 - p for p in t], loss), "wrong way round"),
    ("barrier", lambda t, loss: max(loss) - min(loss[0], loss[-1]), "the lower end"),
    ("barrier", lambda t, loss: None, "return a number"),
    (
        "similarity",
        lambda w, b, n, w2, b2, n2, p, q: w @ w2[:, p].T + n.T @ n2[q],
        "biases are missing",
    ),
    (
        "similarity",
        lambda w, b, n, w2, b2, n2, p, q: w @ w2[:, p].T + torch.outer(b, b2),
        "next layer is missing",
    ),
    (
        "similarity",
        lambda w, b, n, w2, b2, n2, p, q: (w @ w2[:, p].T + n.T @ n2[q] + torch.outer(b, b2)).T,
        "the transpose",
    ),
    (
        "similarity",
        lambda w, b, n, w2, b2, n2, p, q: w @ w2.T + n.T @ n2 + torch.outer(b, b2),
        "neighbours' permutations are missing",
    ),
    ("similarity", lambda w, b, n, w2, b2, n2, p, q: w @ w2[:, p].T @ n.T, "shape"),
    (
        "similarity",
        lambda w, b, n, w2, b2, n2, p, q: w @ w2.T + n.T @ n2[q] + torch.outer(b, b2),
        "`before` is not used",
    ),
    (
        "similarity",
        lambda w, b, n, w2, b2, n2, p, q: n.T @ n2[q] + torch.outer(b, b2),
        "own weights are missing",
    ),
    ("count", lambda s: sum(math.lgamma(n + 1) for n in s), "natural logarithm"),
    ("count", lambda s: sum(math.lgamma(n) for n in s) / math.log(10), "(n - 1)!"),
    ("count", lambda s: float(math.prod(math.factorial(n) for n in s)), "raised OverflowError"),
    ("count", lambda s: math.lgamma(s[0] + 1) / math.log(10), "one layer"),
    ("count", lambda s: sum(math.log10(n) for n in s), "n! orders, not n"),
    ("count", lambda s: sum(n * math.log10(n) for n in s), "n^n"),
    ("variance", lambda c, t: (1 - t) ** 2 + t**2, "covariance term"),
    ("variance", lambda c, t: (1 - t) ** 2 + t**2 - 2 * t * (1 - t) * c, "sign is that of c"),
    ("variance", lambda c, t: (1 + c) / 2, "at the midpoint only"),
    (
        "variance",
        lambda c, t: math.sqrt((1 - t) ** 2 + t**2 + 2 * t * (1 - t) * c),
        "standard deviation",
    ),
    ("variance", lambda c, t: 1 + 2 * t * (1 - t) * c, "enter squared"),
    ("inputs-needed", {1: 0.1}, "pass a function"),
    ("inputs-needed", lambda: ({"2": 0.1}, (None, None, None)), "return a dict"),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES)
def test_a_mistake_is_named(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, answer)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    by_exercise: dict[str, set[str]] = {}
    for exercise, _, message in MISTAKES:
        by_exercise.setdefault(exercise, set()).add(message)
    assert all(len(m) >= 3 for name, m in by_exercise.items() if name != "inputs-needed")


COUNTS = (2, 20, 200)


def test_the_experiment_accepts_the_reference(trained: Trained) -> None:
    found = reference_inputs_needed(*trained, COUNTS)
    check("inputs-needed", lambda: (found, trained))


def unmatched(trained: Trained) -> dict[int, float]:
    from lmc_lessons.teaching.checks.weight_matching import _naive_barrier

    return dict.fromkeys(COUNTS, _naive_barrier(*trained))


def all_inputs(trained: Trained) -> dict[int, float]:
    return dict.fromkeys(COUNTS, reference_inputs_needed(*trained, (400,))[400])


def on_test_inputs(trained: Trained) -> dict[int, float]:
    from lmc_lessons.teaching.checks.weight_matching import _test_only

    a, b, data = trained
    return reference_inputs_needed(a, b, _test_only(data), COUNTS)


def on_training_inputs(trained: Trained) -> dict[int, float]:
    from lmc_lessons.teaching.checks.weight_matching import _train_only

    a, b, data = trained
    return reference_inputs_needed(a, b, _train_only(data), COUNTS)


def off_by_one(trained: Trained) -> dict[int, float]:
    found = reference_inputs_needed(*trained, COUNTS)
    return found | {200: found[200] + 0.3}


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (unmatched, "permute B before you measure"),
        (all_inputs, "only the first n inputs"),
        (on_test_inputs, "matched on test inputs"),
        (on_training_inputs, "the training barrier"),
        (off_by_one, "with 200 inputs you got"),
    ],
)
def test_the_experiment_names_mistakes(trained: Trained, mistake: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check("inputs-needed", lambda: (mistake(trained), trained))


def test_an_unfilled_stub_is_not_attempted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stub(*_: Any) -> None:
        raise NotImplementedError

    with pytest.raises(Wrong, match="not attempted"):
        check("count", stub)
    monkeypatch.delenv(STRICT)
    check("count", stub)
    check("count", lambda sizes: 1.0)
    assert capsys.readouterr().out.splitlines() == [
        "count: not attempted",
        "count: not yet: got 1, expected 3499.62",
    ]


def test_an_unknown_exercise_is_refused() -> None:
    with pytest.raises(ValueError, match=r"this lesson has: reorder"):
        check("recorder", None)


def solutions() -> Iterator[tuple[str, str, str]]:
    """Exercise, the name of its solution's function, and the code of that function."""
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code" and "solution" in cell.metadata.get("tags", []):
            code, _, call = cell.source.partition("\ncheck(")
            name = next(w for w in code.split("def ")[1:]).split("(")[0]
            yield call.split('"')[1] if call else "inputs-needed", name, code


@pytest.mark.parametrize(("exercise", "name", "code"), list(solutions()))
def test_the_solution_in_the_lesson_passes(exercise: str, name: str, code: str) -> None:
    if exercise == "inputs-needed":
        return  # needs the lesson's networks: the executed lesson's own output is checked below
    scope: dict[str, Any] = {"torch": torch, "math": math}
    exec(compile(code, name, "exec"), scope)  # code of this repository
    check(exercise, scope[name])


def test_every_check_has_a_solution_in_the_lesson() -> None:
    assert {exercise for exercise, _, _ in solutions()} == {
        *(exercise for exercise, _, _ in MISTAKES)
    }

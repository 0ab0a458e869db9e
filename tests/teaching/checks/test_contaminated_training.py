"""Checks of the lesson on contaminated training: each mistake is told what it is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from exercises import check_messages, check_mistakes, check_solutions, check_stubs, exercises
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.detection.contamination import Draw, Task, draw_task
from lmc_lessons.detection.refinement import Trim, Weighted, numbered, own_errors
from lmc_lessons.evaluation import auroc
from lmc_lessons.experiments.contaminated_training import PRESETS
from lmc_lessons.models import ModelConfig, Params
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import contaminated_training as lesson
from lmc_lessons.teaching.checks.contaminated_training import check
from lmc_lessons.training import TrainConfig, train

LESSON = "contaminated-training"
SETUP = replace(
    PRESETS["study"],
    model=ModelConfig("autoencoder", (1, 8, 8), width=48, depth=1, latent=16),
    train=TrainConfig(epochs=60, batch_size=25, learning_rate=5e-3),
    draw=Draw(samples=100, held_out=20, tests=100),
)
STEPS = 4


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")
    monkeypatch.setattr(lesson, "PRESETS", {"study": SETUP})
    monkeypatch.setattr(lesson, "EPOCHS", 60)


@pytest.fixture(scope="module")
def task() -> Task:
    """A small contaminated set."""
    return draw_task(datasets.load("digits"), 0, 6, 0.1, 0, SETUP.draw)


def fit(task: Task, loss: Any) -> Params:
    return train(SETUP.model, numbered("d", task.train), (0,), SETUP.train, loss=loss).params


def score(params: Params, task: Task, part: str = "hidden") -> float:
    if part == "hidden":
        return auroc(own_errors(SETUP.model, params, task.train[None])[0], task.hidden)
    two = [own_errors(SETUP.model, params, x[None])[0] for x in (task.normal, task.observed)]
    return auroc(torch.cat(two), torch.arange(200) >= 100)


def begin(task: Task, part: str = "hidden", factor: int = STEPS) -> dict[int, float]:
    found = {}
    for epoch in (0, 15, 40):
        found[epoch] = score(fit(task, Weighted(Trim(0.08, epoch * factor))), task, part)
    return found


@pytest.fixture
def scope(task: Task) -> dict[str, Any]:
    """The names that the lesson's exercises use."""

    def shortened(config: Any, **changes: Any) -> Any:
        return config if isinstance(config, TrainConfig) else replace(config, **changes)

    return {
        "check": check,
        "torch": torch,
        "task": task,
        "setup": SETUP,
        "data": numbered("d", task.train),
        "steps": STEPS,
        "replace": shortened,
        "train": train,
        "Weighted": Weighted,
        "Trim": Trim,
        "score": lambda params: score(params, task),
        "suspects": torch.arange(100) < 5,
        "errors": torch.arange(100.0),
    }


def test_solutions_are_correct(scope: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    check_solutions(LESSON, scope, capsys)


def test_stubs_are_not_attempted(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_stubs(LESSON, scope, monkeypatch, capsys)


def kept(errors: Tensor, places: Tensor) -> Tensor:
    weights = torch.ones(len(errors))
    weights[places] = 0
    return weights


def count(errors: Tensor, share: float) -> int:
    return round(share * len(errors))


def worst(errors: Tensor, share: float) -> Tensor:
    return errors.topk(count(errors, share)).indices


def terms(losses: Tensor, weights: Tensor, ceiling: float) -> Tensor:
    return weights * torch.where(weights < 0, losses.clamp(max=ceiling), losses)


def active(weights: Tensor) -> int:
    return int((weights != 0).sum())


def shares(precision: Any, recall: Any) -> Callable[[Tensor, Tensor], tuple[float, float]]:
    """A pair of shares of suspects and hidden."""

    def purity(suspects: Tensor, hidden: Tensor) -> tuple[float, float]:
        both, n, m = (int(t.sum()) for t in (suspects & hidden, suspects, hidden))
        return float(precision(both, n, m)), float(recall(both, n, m))

    return purity


def right_precision(both: int, n: int, m: int) -> float:
    del m
    return both / max(1, n)


def right_recall(both: int, n: int, m: int) -> float:
    del n
    return both / m


MISTAKES: list[tuple[str, Any, str]] = [
    ("window", lambda s, m, a: a * m / ((1 - a) * s), "that is the other way round"),
    ("window", lambda s, m, a: (1 - a) / a, "the size of the anomalies matters"),
    ("window", lambda s, m, a: s / m, "how rare they are matters"),
    ("window", lambda s, m, a: s / (a * m), "only a share 1 - rate of the data is normal"),
    ("window", lambda s, m, a: (1 - a) * s**2 / (a * m**2), "do not square it again"),
    ("window", lambda s, m, a: math.sqrt((1 - a) * s / (a * m)), "not with its root"),
    ("trim", lambda e, s: kept(e, e.argsort()[: count(e, s)]), "you left out the smallest errors"),
    ("trim", lambda e, s: 1 - kept(e, worst(e, s)), "a weight of 1 keeps"),
    ("trim", lambda e, s: (e <= s).float(), "not a threshold for errors"),
    ("trim", lambda e, s: (e <= (1 - s) * e.max()).float(), "not of the largest error"),
    ("trim", lambda e, s: e * kept(e, worst(e, s)), "return weights of 0 and 1"),
    ("trim", lambda e, s: kept(e, e.topk(count(e, s) + 1).indices), "one too many"),
    ("trim", lambda e, s: kept(e, e.topk(math.ceil(s * len(e))).indices), "one too many"),
    ("trim", lambda e, s: kept(e, e.topk(int(s * len(e))).indices), "one too few"),
    (
        "trim",
        lambda e, s: (e < e.sort().values[-count(e, s)]).float() if s else torch.zeros(len(e)),
        "a share of 0 leaves nobody out",
    ),
    ("trim", lambda e, s: kept(e, torch.arange(count(e, s))), "the first of the batch"),
    ("trim", lambda e, s: kept(e, worst(e, s)).tolist(), "return a tensor, got list"),
    ("weighted", lambda x, w, c: terms(x, w, c).mean(), "do not count it"),
    ("weighted", lambda x, w, c: (x * w).sum() / active(w), "push without end"),
    ("weighted", lambda x, w, c: (x * w).mean(), "where is the ceiling, and who is counted"),
    ("weighted", lambda x, w, c: terms(x, w, c).sum(), "return the mean, not the sum"),
    ("weighted", lambda x, w, c: terms(x, w, c).sum() / w.sum(), "not by the sum of weights"),
    (
        "weighted",
        lambda x, w, c: terms(x, w, c).sum() / w.abs().sum(),
        "not by the sum of the weights' sizes",
    ),
    (
        "weighted",
        lambda x, w, c: torch.where(w < 0, (x * w).clamp(min=-c), x * w).sum() / active(w),
        "before the weight",
    ),
    (
        "weighted",
        lambda x, w, c: terms(x, w.clamp(max=1), c).sum() / active(w),
        "a weight of 2 counts twice",
    ),
    ("tail", lambda a: a / 2, "counted twice"),
    ("tail", lambda a: math.sqrt(1 - a), "what passes a criterion"),
    ("tail", math.sqrt, "that is the AND rule"),
    ("tail", lambda a: 1 - (1 - a) ** 2, "the alarms of the OR rule"),
    ("tail", lambda a: a, "less than both together"),
    ("purity", shares(right_recall, right_precision), "precision comes first"),
    ("purity", lambda s, h: float((s & h).sum()), "return a pair"),
    ("purity", shares(lambda b, n, m: b / 10, right_recall), "not of all samples"),
    ("purity", shares(lambda b, n, m: b, right_recall), "not a share"),
    ("purity", shares(lambda b, n, m: 1 - b / n, right_recall), "innocent"),
    ("purity", shares(right_precision, right_precision), "not of suspects"),
    ("purity", shares(right_precision, lambda b, n, m: b / 10), "recall: divide by the number of"),
    ("purity", shares(right_precision, lambda b, n, m: 1 - b / m), "missed"),
]


def clamped_all(losses: Tensor, weights: Tensor, ceiling: float) -> Tensor:
    """Right where no positive sample lies above the ceiling."""
    low = losses.clamp(max=ceiling)
    return torch.where(
        torch.tensor(len(losses) == 5),
        terms(losses, weights, ceiling).sum(),
        (low * weights).sum(),
    ) / active(weights)


MISTAKES.append(("weighted", clamped_all, "only negative weights have a ceiling"))


@pytest.mark.parametrize(("exercise", "wrong", "message"), MISTAKES)
def test_mistakes_are_named(exercise: str, wrong: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, wrong)


def test_every_exercise_has_mistakes() -> None:
    check_mistakes(LESSON, MISTAKES, tested_apart=["begin"])


def test_every_misconception_is_made(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_messages(lesson, LESSON, scope, monkeypatch, MISTAKES)


def test_an_empty_set_of_suspects_is_pure_of_nothing() -> None:
    with pytest.raises(Wrong, match="raised ZeroDivisionError"):
        check("purity", shares(lambda b, n, m: b / n, right_recall))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: begin(t, "observed"), "that is for new anomalies"),
        (lambda t: begin(t, factor=1), "`Trim` counts steps, not epochs"),
        (lambda t: {k: 1 - v for k, v in begin(t).items()}, "exchange the two"),
        (lambda t: {k: 100 * v for k, v in begin(t).items()}, "return shares, not per cent"),
        (lambda t: dict.fromkeys((0, 15, 40), 0.7), "every start gives the same"),
        (lambda t: [0.5, 0.6, 0.7], "return a dict from at least three epochs"),
        (
            lambda t: {k: score(fit(t, Weighted()), t) + k * 1e-5 for k in (0, 15, 40)},
            "that is without trimming",
        ),
        (lambda t: {k: 0.111 + k / 1e4 for k in (0, 15, 40)}, "trimming from epoch 15 on you got"),
    ],
)
def test_mistakes_of_the_experiment(
    task: Task, change: Callable[[Task], Any], message: str
) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check("begin", lambda: (change(task), task))


def test_an_unknown_exercise_is_an_error() -> None:
    assert {e.name for e in exercises(LESSON)} == {
        "window",
        "trim",
        "weighted",
        "tail",
        "purity",
        "begin",
    }
    with pytest.raises(ValueError, match="no exercise 'nothing'"):
        check("nothing", None)

"""Checks of the lesson on ABC: solutions pass, each mistake is told what it is."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from exercises import check_messages, check_mistakes, check_solutions, check_stubs, exercises
from torch import Tensor

from lmc_lessons.detection.abc import ABC, log1mexp
from lmc_lessons.detection.autoencoders import errors
from lmc_lessons.detection.scores import false_alarms
from lmc_lessons.detection.tasks import Split, Task, make_task
from lmc_lessons.evaluation import auroc
from lmc_lessons.experiments.autoencoding_binary_classifiers import PRESETS, load_data
from lmc_lessons.models import Params, build
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import autoencoding_binary_classifiers as lesson
from lmc_lessons.teaching.checks.autoencoding_binary_classifiers import check
from lmc_lessons.training import TrainConfig, train

LESSON = "autoencoding-binary-classifiers"
SETUP = replace(  # learns in a second
    PRESETS["study"], train=TrainConfig(epochs=20, batch_size=100, learning_rate=3e-3)
)


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")
    monkeypatch.setattr(lesson, "PRESETS", {"study": SETUP})


@pytest.fixture(scope="module")
def task() -> Task:
    """The lesson's task."""
    return make_task(load_data(SETUP), Split(SETUP.normal, (0, 4, 6, 8), (2,), 50), 1)


@pytest.fixture
def scope(task: Task) -> dict[str, Any]:
    """The names that the lesson's exercises use."""
    model = build(SETUP.autoencoder)

    def fit(loss: Any) -> Params:
        return train(SETUP.autoencoder, task.data, (1,), SETUP.train, loss=loss).params

    def areas(score: Tensor) -> list[float]:
        return [auroc(*task.against(score, kind)) for kind in ("known", "unknown")]

    lent = {"check": check, "math": math, "torch": torch, "log1mexp": log1mexp, "task": task}
    lent |= {"ABC": ABC, "errors": errors, "model": model, "fit": fit, "areas": areas}
    return {**lent, "scores": {"some": torch.arange(float(len(task.test_x)))}}


# --- Answers --------------------------------------------------------------------------------------


def stable(error: Tensor) -> Tensor:
    small = torch.log(-torch.expm1(-error))
    return torch.where(error < 0.7, small, torch.log1p(-torch.exp(-error)))


def best(share: float, scale: float) -> float:
    return scale * math.log(1 / (1 - share))


def parts(error: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Push on labelled anomalies, errors of unlabelled samples, errors of labelled ones."""
    return -log1mexp(error[y == 1]).mean(), error[y == 0].mean(), error[y == 1].mean()


def puae(combine: Any) -> Any:
    return lambda error, y, prior: float(combine(*parts(error, y), prior))


def alarms(scores: Tensor, positive: Tensor, found: float) -> float:
    return false_alarms(scores, positive, found=found)


def at_lowest(scores: Tensor, positive: Tensor, found: float) -> float:
    own = scores[positive].sort().values
    threshold = own[math.ceil(found * len(own)) - 1]
    return float((scores[~positive] >= threshold).double().mean())


def among_all(scores: Tensor, positive: Tensor, found: float) -> float:
    own = scores[positive].sort(descending=True).values
    threshold = own[math.ceil(found * len(own)) - 1]
    return float((scores >= threshold).double().mean())


def strictly_above(scores: Tensor, positive: Tensor, found: float) -> float:
    own = scores[positive].sort(descending=True).values
    threshold = own[math.ceil(found * len(own)) - 1]
    return float((scores[~positive] > threshold).double().mean())


MISTAKES: list[tuple[str, Any, str]] = [
    ("stable", lambda e: -stable(e), "that is the loss: the logarithm itself is negative"),
    ("stable", lambda e: 1 - torch.exp(-e), "that is the score, without the logarithm"),
    ("stable", lambda e: -e, "that is log(exp(-L)) = -L, the logarithm of the other label"),
    (
        "stable",
        lambda e: torch.log(torch.exp(e) - 1),
        "the sign of L: exp(-L) is below 1, exp(L) is not",
    ),
    ("best", lambda p, s: -best(p, s), "the sign: an error is not negative"),
    ("best", lambda p, s: best(p, 1.0), "that is L / s: multiply by the scale"),
    ("best", lambda p, s: best(p, 1 / s), "that divides by the scale: it multiplies"),
    ("best", lambda p, s: best(1 - p, s), "the error that suits the share of normal samples"),
    ("best", lambda p, s: p, "that is the score at the optimum, not the error"),
    (
        "best",
        lambda p, s: s * p / (1 - p),
        "that holds for few anomalies only: set the derivative to zero",
    ),
    (
        "puae",
        puae(lambda push, u, p, a: a * push + u - a * p),
        "the correction may be negative: take its absolute value",
    ),
    (
        "puae",
        puae(lambda push, u, p, a: a * push + (u - a * p).clamp(min=0)),
        "that is max(0, .), as in an older correction: take the absolute value",
    ),
    (
        "puae",
        puae(lambda push, u, p, a: push + (u - a * p).abs()),
        "the push on labelled anomalies counts with the prior too",
    ),
    (
        "puae",
        puae(lambda push, u, p, a: (a * push + u - a * p).abs()),
        "the absolute value is around the correction, not around the whole",
    ),
    (
        "puae",
        puae(lambda push, u, p, a: a * push + u),
        "the labelled anomalies' own error must be taken off the unlabelled ones'",
    ),
    (
        "puae",
        lambda e, y, a: float(torch.where(y == 1, -log1mexp(e), e).mean()),
        "that is the loss without contamination: a plain mean",
    ),
    (
        "alarms",
        lambda s, p, f: 1 - alarms(s, p, f),
        "that is the share of normal samples below the threshold",
    ),
    (
        "alarms",
        at_lowest,
        "that takes the anomalies with the lowest scores: found are the highest",
    ),
    (
        "alarms",
        lambda s, p, f: 1 - f,
        "that lets 1 - found of the normal samples pass: the threshold comes from the anomalies",
    ),
    (
        "alarms",
        among_all,
        "that counts all samples above the threshold: false alarms are normal",
    ),
    ("alarms", strictly_above, "a score at the threshold is an alarm, too"),
    (
        "stable",
        lambda e: stable(e.clamp(min=1e-6)),
        "that holds L, or what is inside the logarithm, at 1e-6",
    ),
]
UNCLEAR: list[tuple[str, Any, str]] = [
    (
        "stable",
        lambda e: torch.log(1 - torch.exp(-e)),
        "not finite at L = 1e-12 in single precision",
    ),
    (
        "stable",
        lambda e: torch.log(-torch.expm1(-e)),
        "zero at L = 20 in single precision: exp(-L) was lost beside 1",
    ),
    (
        "stable",
        lambda e: torch.where(e < 15, stable(e), -2 * torch.exp(-e)),
        "wrong digits at L = 20 or 60",
    ),
    ("stable", lambda e: 0.0, "return a tensor, got float"),
    ("best", lambda p, s: "one", "return a number, got str"),
    ("alarms", lambda s, p, f: 0.123, "got 0.123, expected"),
]
ALTERNATIVES: list[tuple[str, Any]] = [
    ("stable", stable),
    ("best", best),
    ("best", lambda p, s: torch.tensor(best(p, s), dtype=torch.float64)),
    ("puae", puae(lambda push, u, p, a: a * push + (u - a * p).abs())),
    ("alarms", alarms),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES + UNCLEAR)
def test_a_mistake_is_named(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, answer)


@pytest.mark.parametrize(("exercise", "answer"), ALTERNATIVES)
def test_another_right_answer_passes(exercise: str, answer: Any) -> None:
    check(exercise, answer)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES, ["sweep"])


def test_every_message_is_one_that_a_mistake_gets(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "_check_sweep", lambda answer: None)
    scope["check"] = lesson.checker(
        {e.name: getattr(lesson, f"_check_{e.name}") for e in exercises(LESSON)}
    )
    check_messages(lesson, LESSON, scope, monkeypatch, MISTAKES)


def test_the_lesson_s_solutions_pass(
    scope: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check_solutions(LESSON, scope, capsys)


def test_an_unfilled_stub_is_not_attempted(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_stubs(LESSON, scope, monkeypatch, capsys)


# --- The experiment -------------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check takes for the areas that the recipe gives."""
    monkeypatch.setattr(lesson, "swept", lambda task, scale: 0.9 + 0.01 * scale)


def swept(formula: Any) -> Any:
    return lambda: ({scale: formula(scale) for scale in (0.1, 1.0, 5.0)}, None)


EXPERIMENT: list[tuple[Any, str]] = [
    (swept(lambda s: 0.95), "every scale gives the same number"),
    (swept(lambda s: 0.1 - 0.01 * s), "that is one less the AUROC"),
    (swept(lambda s: 0.9 + 0.01 * s if s < 2 else 0.7), "at scale 5 you got 0.7000, expected 0.95"),
    (lambda: ([0.9, 0.91, 0.95], None), "return a dict from at least three scales"),
    (lambda: ({0.1: 0.9, 1.0: 0.91}, None), "return a dict from at least three scales"),
    ({0.1: 0.9}, "pass a function that returns"),
]


@pytest.mark.parametrize(("mistake", "message"), EXPERIMENT)
@pytest.mark.usefixtures("known")
def test_the_experiment_names_mistakes(mistake: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check("sweep", mistake)


@pytest.mark.usefixtures("known")
def test_the_experiment_passes_what_was_measured() -> None:
    check("sweep", swept(lambda s: 0.9 + 0.01 * s))
    check("sweep", swept(lambda s: torch.tensor(0.9 + 0.01 * s)))

"""Checks of the lesson on sharpness: solutions pass, each mistake is told what it is."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from exercises import check_messages, check_mistakes, check_solutions, check_stubs
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.experiments.sharpness_adversarial_training import Task, task
from lmc_lessons.robustness.logistic import Problem, critical_radius, descend, hessian
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import sharpness_adversarial_training as lesson
from lmc_lessons.teaching.checks.sharpness_adversarial_training import (
    DECAYS,
    check,
    reference_sharpening,
    sharpening,
)

LESSON = "sharpness-adversarial-training"


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")
    monkeypatch.setattr(lesson, "STEPS", 150)  # enough to tell mistakes apart


@pytest.fixture(scope="module")
def t() -> Task:
    return task(datasets.load("digits"), 3, 30)


@pytest.fixture
def scope(t: Task) -> dict[str, Any]:
    """The names that the lesson's exercises use."""
    return {
        "check": check,
        "torch": torch,
        "tensor": partial(torch.tensor, dtype=torch.float64),
        "replace": replace,
        "Problem": Problem,
        "descend": lambda problem, start, steps, rate: descend(problem, start, 150, rate),
        "hessian": hessian,
        "limit": critical_radius(t.x, t.y),
        "t": t,
    }


def z_of(x: Tensor, y: Any, w: Tensor, reach: Any) -> Tensor:
    return -y * (x @ w) + reach


def loss_of(z: Tensor) -> float:
    return float(torch.nn.functional.softplus(z).mean())


def parts(x: Tensor, y: float, w: Tensor, e: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slope, gradient of z, direction and the matrix that spares it."""
    u = w / w.norm()
    s = torch.sigmoid(z_of(x, y, w, e * w.norm()))
    return s, -y * x + e * u, u, torch.eye(len(w), dtype=w.dtype) - torch.outer(u, u)


def bent(x: Tensor, y: float, w: Tensor, e: float, first: Any, second: Any) -> Tensor:
    s, a, u, side = parts(x, y, w, e)
    return first(s, a) + second(s, u, side)


def whole(s: Tensor, a: Tensor) -> Tensor:
    return s * (1 - s) * torch.outer(a, a)


def clean_slope(x: Tensor, y: float, w: Tensor, e: float) -> Tensor:
    s = torch.sigmoid(z_of(x, y, w, 0.0))
    _, a, _, side = parts(x, y, w, e)
    return whole(s, a) + s * e / w.norm() * side


def kinked(w: Tensor, j: int) -> Tensor:
    w = w.clone()
    w[j] = 0
    return w


def mean_slope(x: Tensor, y: Tensor, w: Tensor, reach: Any) -> float:
    return float(torch.sigmoid(z_of(x, y, w, reach)).mean())


# Exercise, a wrong answer, and words of the message that it must get.
MISTAKES: list[tuple[str, Any, str]] = [
    ("attack", lambda x, y, w, e: x + y[:, None] * e * w / w.norm(), "lowers the loss"),
    ("attack", lambda x, y, w, e: x - e * w / w.norm(), "pushes both classes the same way"),
    ("attack", lambda x, y, w, e: x - y[:, None] * e * w, "divide w by its length"),
    ("attack", lambda x, y, w, e: x - y[:, None] * e * w.sign(), "L-infinity attack"),
    ("attack", lambda x, y, w, e: -y[:, None] * e * w / w.norm(), "add it to x"),
    ("attack", lambda x, y, w, e: x - y[:, None] * e * w / (w @ w), "not by its square"),
    ("attack", lambda x, y, w, e: (x - e * w)[0], "shape (4,), expected (6, 4)"),
    ("attack", lambda x, y, w, e: x, "right shape, wrong values"),
    (
        "hessian",
        lambda x, y, w, e: bent(x, y, w, e, whole, lambda s, u, m: 0 * m),
        "frozen attack",
    ),
    (
        "hessian",
        lambda x, y, w, e: bent(x, y, w, e, whole, lambda s, u, m: s * e * m),
        "divide by the length of w",
    ),
    (
        "hessian",
        lambda x, y, w, e: bent(
            x, y, w, e, whole, lambda s, u, m: s * e / w.norm() * (m + torch.outer(u, u))
        ),
        "spares the direction of w",
    ),
    (
        "hessian",
        lambda x, y, w, e: bent(x, y, w, e, whole, lambda s, u, m: s * (1 - s) * e / w.norm() * m),
        "weighted by s, not by s (1 - s)",
    ),
    (
        "hessian",
        lambda x, y, w, e: bent(x, y, w, e, whole, lambda s, u, m: e / w.norm() * m),
        "the second term is weighted by s",
    ),
    (
        "hessian",
        lambda x, y, w, e: bent(
            x,
            y,
            w,
            e,
            lambda s, a: torch.outer(a, a),
            lambda s, u, m: s * e / w.norm() * m,
        ),
        "the first term is weighted by s (1 - s)",
    ),
    (
        "hessian",
        lambda x, y, w, e: bent(
            x,
            y,
            w,
            e,
            lambda s, a: s * (1 - s) * torch.outer(x, x),
            lambda s, u, m: s * e / w.norm() * m,
        ),
        "takes the attacked input, not x",
    ),
    ("hessian", clean_slope, "s is that of the attacked sample"),
    ("hessian", lambda x, y, w, e: torch.zeros(3), "shape (3,), expected (4, 4)"),
    ("helpful", lambda x, y, w, e: loss_of(z_of(x, y, w, e * w.norm())), "that is the attack"),
    ("helpful", lambda x, y, w, e: loss_of(z_of(x, y, w, 0)), "where is the noise"),
    ("helpful", lambda x, y, w, e: loss_of(z_of(x, y, w, -e)), "moves the score by epsilon |w|"),
    (
        "helpful",
        lambda x, y, w, e: len(x) * loss_of(z_of(x, y, w, -e * w.norm())),
        "take the mean",
    ),
    (
        "helpful",
        lambda x, y, w, e: loss_of(z_of(x + e * w / w.norm(), y, w, 0)),
        "pushes both classes the same way",
    ),
    (
        "helpful",
        lambda x, y, w, e: loss_of(z_of(x, y, w, -e * w.abs().sum())),
        "use the Euclidean length of w",
    ),
    ("helpful", lambda x, y, w, e: torch.ones(3), "return one number"),
    (
        "jump",
        lambda x, y, w, j, e: e * mean_slope(x, y, kinked(w, j), e * kinked(w, j).abs().sum()),
        "twice that",
    ),
    ("jump", lambda x, y, w, j, e: 2 * e, "mean slope of the samples"),
    (
        "jump",
        lambda x, y, w, j, e: 2 * e * mean_slope(x, y, kinked(w, j), 0),
        "s is that of the attacked samples",
    ),
    (
        "jump",
        lambda x, y, w, j, e: (
            2 * e * len(x) * mean_slope(x, y, kinked(w, j), e * kinked(w, j).abs().sum())
        ),
        "not the sum",
    ),
    (
        "jump",
        lambda x, y, w, j, e: 2 * e * mean_slope(x, y, w, e * w.abs().sum()),
        "put weight j to zero first",
    ),
    (
        "jump",
        lambda x, y, w, j, e: 2 * e * mean_slope(x, y, kinked(w, j), e * kinked(w, j).norm()),
        "dual norm of L-infinity",
    ),
    ("turning", lambda w, e: 1 / float(w.norm()), "the attack has length epsilon"),
    ("turning", lambda w, e: e * float(w.norm()), "shorter weights turn faster"),
    ("turning", lambda w, e: e, "not how fast it turns"),
    ("turning", lambda w, e: e / float(w @ w), "not by its square"),
    ("turning", lambda w, e: e / float(w.abs().sum()), "by the Euclidean length"),
]


@pytest.mark.parametrize(("exercise", "mistake", "message"), MISTAKES)
def test_mistakes_are_named(exercise: str, mistake: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, mistake)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES, ["decays"])


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


def tops(t: Task, **settings: Any) -> dict[float, float]:
    found = {}
    for decay in DECAYS:
        values = sharpening(t, decay, **settings)
        found[decay] = values[-1] / values[0]
    return found


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda t: {d: 1 / r for d, r in tops(t).items()}, "the other way round"),
        (lambda t: tops(t, attack=False), "the Hessian of the clean loss"),
        (lambda t: tops(t, penalty=True), "the penalty's own curvature"),
        (lambda t: dict.fromkeys(DECAYS, tops(t)[DECAYS[0]]), "every decay gives the same"),
        (lambda t: dict.fromkeys(DECAYS, 9.0), "every decay gives the same"),
        (
            lambda t: {d: sharpening(t, d)[1] / sharpening(t, d)[0] for d in DECAYS},
            "the ratio of radius 0.3",
        ),
        (lambda t: {d: sharpening(t, d)[-1] for d in DECAYS}, "the top eigenvalue itself"),
        (lambda t: tops(t) | {0.1: 99.0}, "at 0.1 you got 99"),
        (lambda t: {0.5: 1.0}, "one ratio for each decay"),
        (lambda t: [1.0], "return a dictionary, got list"),
        (lambda t: dict.fromkeys(DECAYS, None), "your code raised TypeError"),
    ],
)
def test_the_experiment_names_mistakes(t: Task, mistake: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check("decays", lambda: (mistake(t), t))


def test_the_experiment_takes_tensors(t: Task) -> None:
    found = {d: torch.tensor(r) for d, r in reference_sharpening(t, DECAYS).items()}
    check("decays", lambda: (found, t))


def test_an_unknown_exercise_is_refused() -> None:
    with pytest.raises(ValueError, match="no exercise 'none', this lesson has: attack, hessian"):
        check("none", None)

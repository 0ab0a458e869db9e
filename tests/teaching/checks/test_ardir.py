"""Checks of the lesson on distilled representations: solutions pass, each mistake is told."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exercises import check_messages, check_mistakes, check_solutions, check_stubs
from fakes import synthetic
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.ardir import PRESETS, metric, more, split
from lmc_lessons.models import ModelConfig, Params, build, unstack
from lmc_lessons.robustness.attacks import evaluate, pgd
from lmc_lessons.robustness.distillation import (
    Distillation,
    Features,
    SoftLabels,
    Teacher,
    ardir,
    feature_distance,
    representation,
)
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import ardir as lesson
from lmc_lessons.teaching.checks.ardir import check
from lmc_lessons.training import train

LESSON = "ardir"
SETUP = replace(PRESETS["study"], model=ModelConfig(width=24, depth=2), attack_steps=2)
LAYERS = ("penultimate", "first")


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")
    monkeypatch.setattr(lesson, "PRESETS", {"study": SETUP})


@pytest.fixture(scope="module")
def few() -> Dataset:
    return split(SETUP, datasets.load("digits"))[0]


@pytest.fixture(scope="module")
def teacher(few: Dataset) -> Teacher:
    recipe = replace(SETUP.train, epochs=20)
    return Teacher(train(SETUP.model, few, (9,), recipe, loss=SETUP.attack).params, SETUP.model)


def under_attack(params: Params, data: Dataset, attack: Any = pgd, part: str = "test") -> float:
    model = build(SETUP.model).eval()
    x, y = (data.test_x, data.test_y) if part == "test" else (data.train_x, data.train_y)
    found = evaluate(model, params, x, y, SETUP.attack.threat, {"a": attack} if attack else {})
    return found.robust["a"] if attack else found.clean


@pytest.fixture
def scope(few: Dataset, teacher: Teacher) -> dict[str, Any]:
    """The names that the lesson's exercises use."""
    study = synthetic(
        LESSON,
        {
            metric("rep 5", "ensemble accuracy"): [0.7, 0.72, 0.71],
            metric("output", "ensemble accuracy"): [0.7, 0.7, 0.705],
        },
        3,
    )
    names = {"check": check, "torch": torch, "np": np, "F": F, "train": train, "replace": replace}
    names |= {"unstack": unstack, "setup": SETUP, "few": few, "teacher": teacher, "more": more}
    names |= {"Distillation": Distillation, "Features": Features, "SoftLabels": SoftLabels}
    names |= {"Teacher": Teacher, "representation": representation, "study": study}
    names |= {"feature_distance": feature_distance}
    names |= {"recipe": replace(SETUP.train, epochs=6), "attack": SETUP.attack}
    return names | {"under_attack": lambda params: under_attack(params, few)}


# --- Answers --------------------------------------------------------------------------------------


def log_p(z: Tensor, tau: float = 1.0) -> Tensor:
    return F.log_softmax(z / tau, 1)


def kl(p: Tensor, q: Tensor) -> Tensor:
    """Divergence of two predictions from their logits."""
    kind = torch.distributions.Categorical
    return torch.distributions.kl_divergence(kind(logits=p), kind(logits=q))


def by_autograd(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    z = student.clone().requires_grad_()
    (slope,) = torch.autograd.grad((tau**2 * kl(teacher / tau, z / tau)).sum(), z)
    return slope


def gap(student: Tensor, teacher: Tensor, tau: float) -> Tensor:
    return F.softmax(student / tau, 1) - F.softmax(teacher / tau, 1)


def squares(table: Tensor) -> Tensor:
    return table.square().sum(1)


def all_pairs(student: Tensor, teacher: Tensor) -> float:
    gaps = [float((p - q) @ (p - q)) for p in student for q in teacher]
    return float(np.mean(gaps)) / float(squares(teacher).mean())


def width(differences: list[float], n: int, ddof: int = 1, level: float = 0.975) -> float:
    return float(stats.t.ppf(level, n - 1) * np.std(differences, ddof=ddof) / n**0.5)


def first(half: Any, effect: float) -> int:
    return next(n for n in range(2, 1000) if half(n) < effect)


RIGHT: list[tuple[str, Any]] = [
    ("soft", lambda s, t, tau: tau**2 * kl(t / tau, s / tau)),
    (
        "soft",
        lambda s, t, tau: (
            tau**2
            * F.kl_div(log_p(s, tau), log_p(t, tau), reduction="none", log_target=True).sum(1)
        ),
    ),
    ("slope", by_autograd),
    ("distance", lambda s, t: feature_distance(s[None], t[None])[0]),
    ("distance", lambda s, t: ((s - t) ** 2).mean() / (t**2).mean()),
    ("strangers", all_pairs),
    ("seeds", lambda d, e: first(lambda n: width(d, n), e)),
    ("seeds", lambda d, e: np.int64(first(lambda n: width(d, n), e))),
]

# Exercise, a plausible wrong answer, and the words that its message has.
MISTAKES: list[tuple[str, Any, str]] = [
    ("soft", lambda s, t, tau: tau**2 * kl(t / tau, s / tau).mean(), "one number per sample"),
    ("soft", lambda s, t, tau: tau**2 * kl(s / tau, t / tau), "the teacher is the first"),
    ("soft", lambda s, t, tau: kl(t / tau, s / tau), "or its gradient fades"),
    ("soft", lambda s, t, tau: tau * kl(t / tau, s / tau), "not the temperature"),
    (
        "soft",
        lambda s, t, tau: -(tau**2) * (F.softmax(t / tau, 1) * log_p(s, tau)).sum(1),
        "subtract the entropy",
    ),
    ("soft", lambda s, t, tau: tau**2 * kl(t / tau, s / tau) / 3, "sum over classes"),
    ("soft", lambda s, t, tau: tau**2 * kl(t / tau, s), "divide the student's logits"),
    ("soft", lambda s, t, tau: tau**2 * kl(t, s / tau), "divide the teacher's logits"),
    ("soft", lambda s, t, tau: tau**2 * kl(t * tau, s * tau), "do not multiply"),
    ("soft", lambda s, t, tau: s, r"shape \(4, 3\), expected \(4,\)"),
    ("slope", lambda s, t, tau: -by_autograd(s, t, tau), "the sign"),
    ("slope", gap, "left over once"),
    ("slope", lambda s, t, tau: tau**2 * gap(s, t, tau), "only one of two is left"),
    ("slope", lambda s, t, tau: gap(s, t, tau) / tau, "is multiplied by the square"),
    ("slope", lambda s, t, tau: by_autograd(s, t, tau) / len(s), "not of their mean"),
    ("slope", lambda s, t, tau: tau * gap(s, t, 1.0), "at that temperature on both sides"),
    (
        "slope",
        lambda s, t, tau: tau * (F.softmax(s / tau, 1) - F.one_hot(t.argmax(1), 3)),
        "as a hard label",
    ),
    ("distance", lambda s, t: squares(s - t).mean(), "or the weight has a unit"),
    ("distance", lambda s, t: squares(s - t).mean() / squares(s).mean(), "not the student's"),
    ("distance", lambda s, t: (squares(s - t) / squares(t)).mean(), "not the mean of ratios"),
    ("distance", lambda s, t: (s - t).norm(dim=1).mean() / t.norm(dim=1).mean(), "not lengths"),
    (
        "distance",
        lambda s, t: (squares(s - t).mean() / squares(t).mean()).sqrt(),
        "leave out the square root",
    ),
    (
        "distance",
        lambda s, t: ((s - t) ** 2).mean() / squares(t).mean(),
        "mean over entries above",
    ),
    (
        "strangers",
        lambda s, t: 1 + squares(s).mean() / squares(t).mean(),
        "ReLU features are never negative",
    ),
    (
        "strangers",
        lambda s, t: all_pairs(s, t) * squares(t).mean() / squares(s).mean(),
        "not the student's",
    ),
    (
        "strangers",
        lambda s, t: 1 + (squares(s).mean() - s.mean(0) @ t.mean(0)) / squares(t).mean(),
        "the product comes twice",
    ),
    ("strangers", lambda s, t: squares(s - t).mean() / squares(t).mean(), "on the same inputs"),
    (
        "strangers",
        lambda s, t: 2 - 2 * s.mean(0) @ t.mean(0) / squares(t).mean(),
        "need not be as long",
    ),
    (
        "strangers",
        lambda s, t: squares(s).mean() + squares(t).mean() - 2 * s.mean(0) @ t.mean(0),
        "divide by the size",
    ),
    (
        "strangers",
        lambda s, t: squares(s.roll(1, 0) - t).mean() / squares(t).mean(),
        "average over all",
    ),
    ("seeds", lambda d, e: first(lambda n: 1.96 * np.std(d, ddof=1) / n**0.5, e), "not 1.96"),
    ("seeds", lambda d, e: first(lambda n: width(d, n, ddof=0), e), "n - 1"),
    ("seeds", lambda d, e: first(lambda n: width(d, n, level=0.95), e), "both tails"),
    ("seeds", lambda d, e: len(d), "how many are needed"),
    ("seeds", lambda d, e: first(lambda n: 2 * width(d, n), e), "half width"),
    ("seeds", lambda d, e: 13.4, "return a whole number"),
    ("seeds", lambda d, e: float("nan"), "return a whole number"),
]


@pytest.mark.parametrize(("exercise", "answer"), RIGHT)
def test_right_answers_pass(exercise: str, answer: Any) -> None:
    check(exercise, answer)


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES)
def test_mistakes_are_told(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=message):
        check(exercise, answer)


def test_every_exercise_has_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES, tested_apart=("layer",))


def test_every_misconception_is_told_to_somebody(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_messages(lesson, LESSON, scope, monkeypatch, MISTAKES)


def test_solutions_pass(scope: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    check_solutions(LESSON, scope, capsys)


def test_stubs_are_not_attempted(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_stubs(LESSON, scope, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"first": 0.5, "penultimate": 0.6}, "returns (your dictionary, teacher, few)"),
        (({"first": "half", "penultimate": 0.6}, None, None), "accuracies are numbers"),
    ],
)
def test_what_is_no_table_of_accuracies_is_told(given: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check("layer", lambda: given)


# --- The experiment -------------------------------------------------------------------------------


def measured(few: Dataset, teacher: Teacher, make: Any, **how: Any) -> dict[str, float]:
    recipe, found = replace(SETUP.train, epochs=lesson.EPOCHS), {}
    for layer in LAYERS:
        (params,) = unstack(train(SETUP.model, few, (0,), recipe, loss=make(layer)).params)
        found[layer] = under_attack(params, few, **how)
    return found


def of_layer(teacher: Teacher, **changes: Any) -> Any:
    def make(layer: Any) -> Distillation:
        features = Features(teacher, **{"weight": 5.0, "layer": layer, **changes})
        return Distillation(SETUP.attack, (SoftLabels(teacher),), features)

    return make


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("right", ""),
        ("clean", "that is the clean accuracy"),
        ("training data", "measured on the training data"),
        ("attacked", "leave taught_on at 'clean'"),
        ("output only", "a student of the output alone"),
        ("light", "weight 5, seed 0, soft labels"),
        ("one layer", "both layers give the same accuracy"),
        ("per cent", "return shares"),
        ("missing", "return a dict from 'penultimate' and 'first'"),
        ("no function", "pass a function"),
    ],
)
def test_the_experiment_is_checked(how: str, message: str, few: Dataset, teacher: Teacher) -> None:
    plain = of_layer(teacher)
    found: Any
    if how == "clean":
        found = measured(few, teacher, plain, attack=None)
    elif how == "training data":
        found = measured(few, teacher, plain, part="train")
    elif how == "attacked":
        found = measured(few, teacher, of_layer(teacher, taught_on="attacked"))
    elif how == "output only":
        found = measured(few, teacher, lambda _: ardir(SETUP.attack, teacher, weight=0))
        found["first"] += 1e-3  # or it would be told that both are the same
    elif how == "light":
        found = measured(few, teacher, of_layer(teacher, weight=0.4))
    else:
        found = measured(few, teacher, plain)
    if how == "one layer":
        found["first"] = found["penultimate"]
    if how == "per cent":
        found = {layer: 100 * value for layer, value in found.items()}
    if how == "missing":
        del found["first"]
    answer = (lambda: (found, teacher, few)) if how != "no function" else found
    if not message:
        check("layer", answer)
        return
    with pytest.raises(Wrong, match=re.escape(message)):
        check("layer", answer)

"""Checks of the lesson on logit margins: solutions pass, each mistake is told what it is."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from exercises import check_mistakes, check_solutions, check_stubs, exercises, known_messages
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import logit_margins
from lmc_lessons.experiments.logit_margins import PRESETS
from lmc_lessons.models import ModelConfig, Params, build, predict, unstack
from lmc_lessons.robustness.attacks import LInf, ensemble, pgd
from lmc_lessons.robustness.importance import SOVR
from lmc_lessons.robustness.masking import standing
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import logit_margins as lesson
from lmc_lessons.teaching.checks.logit_margins import check
from lmc_lessons.training import train

LESSON = "logit-margins"
SETUP = replace(PRESETS["study"], model=ModelConfig(width=32, depth=1))  # learns in a second
THREAT = LInf(SETUP.epsilon)
FACTORS = (0.25, 1.0, 4.0)


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")
    monkeypatch.setattr(lesson, "PRESETS", {"study": SETUP})


@pytest.fixture(scope="module")
def data() -> Dataset:
    whole = datasets.load("digits")
    return replace(whole, test_x=whole.test_x[:200], test_y=whole.test_y[:200])


def left(params: Params, data: Dataset) -> dict[str, float]:
    network = partial(predict, build(SETUP.model).eval(), params)
    attacks: Any = {"PGD": partial(pgd, steps=20), **ensemble(steps=20, queries=0)}
    masks = standing(network, data.test_x, data.test_y, THREAT, attacks)
    both = (masks["APGD-CE"] & masks["APGD-T"]).double().mean()
    return {"PGD": float(masks["PGD"].double().mean()), "ensemble": float(both)}


def trained_by(objective: Any, recipe: Any, data: Dataset) -> Params:
    return unstack(train(SETUP.model, data, (0,), recipe, loss=objective).params)[0]


@pytest.fixture
def scope(data: Dataset) -> dict[str, Any]:
    """The names that the lesson's exercises use."""
    names = {"check": check, "torch": torch, "math": math, "SOVR": SOVR, "threat": THREAT}
    short = replace(SETUP.train, epochs=15)
    return names | {
        "data": data,
        "short": short,
        "trained_by": lambda objective, recipe: trained_by(objective, recipe, data),
        "left_standing": lambda params: left(params, data),
    }


# --- Answers --------------------------------------------------------------------------------------


def push(k: int) -> tuple[float, float]:
    """Through automatic differentiation, far from the formulas."""
    z = torch.zeros(1, k, dtype=torch.float64, requires_grad=True)
    label = torch.zeros(1, dtype=torch.long)
    plain = torch.nn.functional.cross_entropy(z, label)
    other = torch.nn.functional.softplus(z).sum() - z[0, 0]
    slopes = [torch.autograd.grad(loss, z)[0].abs().sum().item() for loss in (plain, other)]
    return slopes[0], slopes[1]


def pushed(plain: Any = None, other: Any = None) -> Any:
    """An answer with one of its numbers replaced."""

    def answer(k: int) -> tuple[float, float]:
        right = push(k)
        return (
            right[0] if plain is None else plain(k),
            right[1] if other is None else other(k),
        )

    return answer


def times(m: float, w: float, k: int) -> tuple[float, float]:
    return (1 - math.exp(m) - (k - 1) * m) / (w * k), 1 - math.exp(m / 2) - m / 2


def late(plain: Any = None, other: Any = None) -> Any:
    def answer(m: float, w: float, k: int) -> tuple[float, float]:
        right = times(m, w, k)
        return (
            right[0] if plain is None else plain(right[0], m, w, k),
            right[1] if other is None else other(right[1], m, w, k),
        )

    return answer


def marked(score: Any, rounded: Any = math.ceil) -> Any:
    """An answer that marks the smallest of a score."""

    def answer(logits: Tensor, y: Tensor, fraction: float) -> Tensor:
        mask = torch.zeros(len(y), dtype=torch.bool)
        mask[score(logits, y).argsort()[: rounded(fraction * len(y))]] = True
        return mask

    return answer


def lead(logits: Tensor, y: Tensor) -> Tensor:
    top = logits.topk(2).values
    return top[:, 0] - top[:, 1]


def likelihood(logits: Tensor, y: Tensor) -> Tensor:
    return logits.softmax(1)[torch.arange(len(y)), y]


def geometry(right: Tensor, steps: int, shift: float = -1, turn: float = 1) -> Tensor:
    raw = torch.sigmoid(2 * (shift + turn * 5 * (1 - 2 * right / steps)))
    return raw / raw.mean()


def rate(m: Tensor, g: Tensor, h: Tensor, e: float) -> float:
    return sum(float(a) <= e * (float(b) + float(c)) for a, b, c in zip(m, g, h, strict=True)) / 10


# --- Mistakes -------------------------------------------------------------------------------------

MISTAKES: list[tuple[str, Any, str]] = [
    ("push", lambda k: push(k)[::-1], "the two losses are swapped"),
    ("push", pushed(lambda k: 1 - 1 / k), "that is the true class alone"),
    ("push", pushed(lambda k: math.sqrt(1 - 1 / k)), "that is the Euclidean length: add"),
    ("push", pushed(lambda k: 0.0), "whose entries sum to zero still has a length"),
    ("push", pushed(None, lambda k: (k - 1) / 2), "its share is missing"),
    ("push", pushed(None, lambda k: math.sqrt(k) / 2), "that is the Euclidean length of it"),
    ("push", pushed(None, lambda k: k * math.log(2)), "that is the loss, not its gradient"),
    ("push", pushed(None, lambda k: k / 2 - 1), "that is the sum of the entries"),
    ("rescue", late(lambda t, m, w, k: t * w), "the weight makes cross-entropy faster"),
    ("rescue", late(lambda t, m, w, k: t * w * w), "that multiplies by the weight"),
    ("rescue", late(lambda t, m, w, k: t * k), "divide by K as well"),
    (
        "rescue",
        late(lambda t, m, w, k: -(k - 1) * m / (w * k)),
        "the start is not at margin zero",
    ),
    (
        "rescue",
        late(lambda t, m, w, k: (1 - math.exp(m) - m) / (w * k)),
        "the linear term has the factor K - 1",
    ),
    ("rescue", late(None, lambda t, m, w, k: 1 - math.exp(m) - m), "half of the margin solves"),
    ("rescue", late(None, lambda t, m, w, k: t / w), "one-vs-the-rest has weight 1 here"),
    ("rescue", late(None, lambda t, m, w, k: -m / 2), "missing in the second time"),
    ("hard", marked(lambda z, y: -logit_margins(z, y)), "those are the largest margins"),
    ("hard", lambda z, y, f: logit_margins(z, y) < 0, "those are the misread samples"),
    ("hard", marked(likelihood), "chosen by probability"),
    ("hard", marked(lambda z, y: logit_margins(z.softmax(1), y)), "by the margin of probabilities"),
    ("hard", marked(lead), "chosen by the lead of the largest logit"),
    ("hard", marked(logit_margins, math.floor), "round the number of samples up"),
    ("hard", lambda z, y, f: ~marked(logit_margins)(z, y, f), "that marks the easy samples"),
    ("gairat", lambda r, t: geometry(r, t) * 0.31, "wrong values"),
    (
        "gairat",
        lambda r, t: torch.sigmoid(2 * (-1 + 5 * (1 - 2 * r / t))),
        "scale the weights to mean 1",
    ),
    ("gairat", lambda r, t: geometry(r, t) / len(r), "scaled to sum 1"),
    ("gairat", lambda r, t: geometry(r, t, shift=0), "the shift of -1 is missing"),
    ("gairat", lambda r, t: geometry(r, t, turn=-1), "the sign is turned"),
    ("rate", lambda m, g, h, e: 1 - rate(m, g, h, e), "that is the share of safe samples"),
    ("rate", lambda m, g, h, e: rate(m, g, 0 * h, e), "the other logit can move as well"),
    ("rate", lambda m, g, h, e: rate(m, (g - h).abs(), 0 * h, e), "do not subtract them"),
    ("rate", lambda m, g, h, e: rate(m, g, h, 1.0), "multiply the norms by the radius"),
    ("rate", lambda m, g, h, e: rate(m, -g, g, e), "the share misread without an attack"),
]

UNCLEAR: list[tuple[str, Any, str]] = [
    ("push", lambda k: k / 2, "return a pair: (cross-entropy, one-vs-the-rest)"),
    ("push", lambda k: [1.5, 2.0], "return a pair"),
    ("push", pushed(lambda k: 7.0), "got 7, expected 1.66667"),
    ("push", pushed(None, lambda k: "5"), "return a number, got str"),
    ("rescue", lambda m, w, k: 3.0, "return a pair"),
    ("rescue", late(lambda t, m, w, k: 2 * t), "got "),
    ("rescue", lambda m, w: 3.0, "your code raised TypeError"),
    ("hard", lambda z, y, f: [0, 1], "return a tensor, got list"),
    ("hard", lambda z, y, f: torch.tensor([0, 1]), "return a mask of bools, got torch.int64"),
    ("hard", lambda z, y, f: torch.tensor([True]), "shape (1,), expected (10,)"),
    ("gairat", lambda r, t: [1.0], "return a tensor, got list"),
    ("gairat", lambda r, t: torch.ones(2), "shape (2,), expected (4,)"),
    ("rate", lambda m, g, h, e: m <= 0, "got a tensor, shape (10,)"),
    ("rate", lambda m, g, h, e: None, "return a number, got NoneType"),
    ("rate", lambda m, g, h, e: 0.123, "got 0.123"),
    ("sweep", {0.25: 0.5}, "pass a function"),
    ("sweep", lambda: ({0.25: 0.5, 1.0: 0.6}, None), "return a dict from at least three factors"),
    ("sweep", lambda: ([0.5, 0.6, 0.7], None), "return a dict from at least three factors"),
    ("sweep", lambda: ({0.25: 50, 1.0: 60, 4.0: 40}, None), "accuracies lie in [0, 1]"),
    ("sweep", lambda: ({0.25: 0.5, 1.0: 0.5, 4.0: 0.5}, None), "train anew for each"),
]

ALTERNATIVES: list[tuple[str, Any]] = [
    ("push", push),
    ("push", lambda k: (torch.tensor(2 - 2 / k), torch.tensor(k / 2))),
    ("rescue", times),
    ("hard", marked(logit_margins)),
    ("gairat", geometry),
    ("gairat", lambda r, t: geometry(r.double(), t)),
    ("rate", rate),
    ("rate", lambda m, g, h, e: ((m - e * (g + h)) <= 0).float().mean()),
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
    scope["trained_by"] = lambda objective, recipe: build(SETUP.model).state_dict()
    texts = [text for _, _, text in MISTAKES]
    known = known_messages(lesson, LESSON, scope, monkeypatch)
    assert len(known) > 20
    assert [m for m in known if not any(text in m for text in texts)] == []


def test_the_lesson_s_solutions_pass(
    scope: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check_solutions(LESSON, scope, capsys)


def test_a_stub_is_not_attempted(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_stubs(LESSON, scope, monkeypatch, capsys)


# --- The experiment -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(data: Dataset) -> dict[float, dict[str, float]]:
    """What is left of each network, by an evaluation of the test's own."""
    found = {}
    for factor in FACTORS:
        objective = SOVR(THREAT, steps=7, fraction=0.4, weight=factor)
        params = trained_by(objective, replace(SETUP.train, epochs=15), data)
        network = partial(predict, build(SETUP.model).eval(), params)
        right = network(data.test_x).argmax(1) == data.test_y
        found[factor] = left(params, data) | {"clean": float(right.double().mean())}
        on_train = replace(data, test_x=data.train_x, test_y=data.train_y)
        found[factor]["train"] = left(params, on_train)["ensemble"]
    return found


def test_the_sweep_is_the_ensemble_s(measured: Any, data: Dataset) -> None:
    right = {factor: values["ensemble"] for factor, values in measured.items()}
    check("sweep", lambda: (right, data))
    for key, message in (
        ("PGD", "that is what PGD alone leaves"),
        ("clean", "that is the clean accuracy"),
        ("train", "that is measured on the training data"),
    ):
        mistaken = {factor: values[key] for factor, values in measured.items()}
        with pytest.raises(Wrong, match=message):
            check("sweep", lambda mistaken=mistaken: (mistaken, data))
    with pytest.raises(Wrong, match="got "):
        check("sweep", lambda: ({f: v / 2 for f, v in right.items()}, data))

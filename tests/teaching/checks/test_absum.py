"""Checks of the lesson on the sum of a kernel: solutions pass, each mistake is told what it is."""

from __future__ import annotations

import math
import re
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from exercises import check_mistakes, check_solutions, check_stubs, exercises, known_messages
from scipy.integrate import quad
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.absum import PRESETS, prepared
from lmc_lessons.models import Params, build, predict, unstack
from lmc_lessons.robustness.absum import absum_step, after_each_step
from lmc_lessons.robustness.fourier import band, circulant, heat_map, wave
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import absum as lesson
from lmc_lessons.teaching.checks.absum import SHORT, check
from lmc_lessons.training import train

LESSON = "absum"
SETUP = PRESETS["study"]
STRENGTHS = (0.0, 0.1, 1.0)


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")


@pytest.fixture(scope="module")
def few() -> Dataset:
    """The lesson's 300 digits."""
    return prepared(SETUP, datasets.load("digits")).subset(300, 450)


def fit(data: Dataset, recipe: Any, seed: int = 0) -> Params:
    return unstack(train(SETUP.model, data, (seed,), recipe).params)[0]


@pytest.fixture
def scope(few: Dataset) -> dict[str, Any]:
    """The names that the lesson's exercises use."""
    names = {"check": check, "torch": torch, "math": math, "partial": partial, "few": few}
    names |= {"absum_step": absum_step, "after_each_step": after_each_step, "SHORT": SHORT}
    names |= {"heat_map": heat_map, "band": band, "predict": predict, "fit": fit}
    return {**names, "model": build(SETUP.model).eval()}


# --- Answers --------------------------------------------------------------------------------------


def sums(weight: Tensor, axes: tuple[int, ...] = (2, 3)) -> Tensor:
    return weight.sum(axes, keepdim=True)


def phases(u: int, v: int, side: int, period: float = 2 * math.pi) -> Tensor:
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    return torch.from_numpy(period * (u * rows + v * columns) / side)


def scaled(image: Tensor) -> Tensor:
    return image / image.abs().max()


def waving(formula: Any, period: float = 2 * math.pi) -> Any:
    return lambda u, v, side: formula(phases(u, v, side, period))


def weighted(formula: Any) -> Any:
    """An answer from the product, the squared length, the weights and the size."""
    return lambda k, a, size: k - formula(a @ k, a @ a, a, size)


def by_integration(amplitude: float, offset: float) -> float:
    found, _ = quad(lambda t: max(0.0, offset + amplitude * math.cos(t)), 0, math.pi, limit=200)
    return float(found / math.pi)


def root(amplitude: float, offset: float) -> float:
    return math.sqrt(amplitude**2 - offset**2)


MISTAKES: list[tuple[str, Any, str]] = [
    ("prox", lambda w, t: w - t * sums(w).sign(), "a full step even where the sum is small"),
    ("prox", lambda w, t: w - sums(w).clamp(-t, t), "clip the mean of the kernel, not its sum"),
    ("prox", lambda w, t: w - sums(w).clamp(-t, t) / 9, "that clips the sum and spreads it"),
    (
        "prox",
        lambda w, t: w - (sums(w, (1, 2, 3)) / 18).clamp(-t, t),
        "one sum for each pair of channels",
    ),
    ("prox", lambda w, t: w - sums(w) / 9, "that takes the whole mean off"),
    (
        "prox",
        lambda w, t: w.sign() * (w.abs() - t).clamp_min(0),
        "that is the step of the L1 norm",
    ),
    ("prox", lambda w, t: w + (sums(w) / 9).clamp(-t, t), "the sum must shrink"),
    (
        "prox",
        lambda w, t: absum_step(w, t) - w,
        "return the kernels after the step, not the change",
    ),
    ("wave", waving(lambda p: p.cos() - p.sin()), "divide by the largest absolute value"),
    ("wave", waving(lambda p: 2 * (p.cos() - p.sin())), "that is twice too much"),
    ("wave", waving(lambda p: scaled(p.cos() + p.sin())), "the wave of the mirrored frequency"),
    ("wave", waving(torch.cos), "the cosine alone has another phase"),
    ("wave", lambda u, v, side: wave(v, u, side, side), "u counts periods along the rows"),
    ("wave", waving(lambda p: scaled(p.cos() - p.sin()), 1.0), "a period is 2 pi"),
    ("wave", lambda u, v, side: wave(u, v, side, side).sign(), "that is its sign"),
    ("largest", lambda k, side: k.abs().sum(), "that is the sum of absolute values, a bound"),
    ("largest", lambda k, side: k.sum().abs(), "the singular value at frequency (0, 0) only"),
    ("largest", lambda k, side: torch.linalg.svdvals(k).max(), "of the 3 x 3 matrix itself"),
    ("largest", lambda k, side: torch.fft.fft2(k).abs().max(), "transform on the grid"),
    (
        "largest",
        lambda k, side: torch.fft.fft2(k, s=(side, side)).abs().min(),
        "that is the smallest",
    ),
    (
        "largest",
        lambda k, side: torch.fft.fft2(k, s=(side, side)).real.max(),
        "the absolute value of a complex number",
    ),
    ("weighted", weighted(lambda d, q, a, t: (d / 4).clamp(-t, t) * a), "not by their number"),
    (
        "weighted",
        weighted(lambda d, q, a, t: (d / q.sqrt()).clamp(-t, t) * a),
        "the squared length of the weights, not by the length",
    ),
    ("weighted", weighted(lambda d, q, a, t: d.clamp(-t, t) * a), "divide the product by"),
    ("weighted", weighted(lambda d, q, a, t: (d / q).clamp(-t, t)), "not along ones"),
    ("weighted", weighted(lambda d, q, a, t: d / q * a), "clip: far from zero"),
    ("weighted", weighted(lambda d, q, a, t: t * d.sign() * a), "the step jumps over"),
    ("weighted", lambda k, a, t: k - k.mean().clamp(-t, t), "that is the step for the plain sum"),
    ("shift", lambda a, b: b, "that is for the whole wave, without ReLU"),
    ("shift", lambda a, b: 2 * by_integration(a, b), "divide by the whole period"),
    (
        "shift",
        lambda a, b: (root(a, b) + b * math.acos(b / a)) / math.pi,
        "check the angle's sign",
    ),
    ("shift", lambda a, b: root(a, b) / math.pi, "the offset counts for the share"),
    ("shift", lambda a, b: a / math.pi + b / 2, "positive on more or less than half"),
    ("shift", lambda a, b: a / math.pi, "that is without the offset"),
]

UNCLEAR: list[tuple[str, Any, str]] = [
    ("prox", lambda w, t: sums(w), "shape (3, 2, 1, 1), expected (3, 2, 3, 3)"),
    ("prox", lambda w, t: None, "return a tensor, got NoneType"),
    ("prox", lambda w, t: w, "right shape, wrong values"),
    ("wave", lambda u, v, side: torch.zeros(side), "shape (8,), expected (8, 8)"),
    ("wave", lambda u, v, side: torch.zeros(side, side), "right shape, wrong values"),
    ("largest", lambda k, side: torch.fft.fft2(k, s=(side, side)).abs(), "got a tensor, shape"),
    ("largest", lambda k, side: 0.5, "got 0.5, expected"),
    ("weighted", lambda k, a, t: k.sum(), "shape (), expected (4,)"),
    ("weighted", lambda k, a, t: k, "right shape, wrong values"),
    ("shift", lambda a, b: None, "return a number, got NoneType"),
    ("shift", lambda a, b: 0.123, "got 0.123, expected"),
    ("strength", {0.0: 0.5}, "pass a function that returns"),
    ("strength", lambda: ({0.0: 0.5, 0.1: 0.6}, None), "a dict from at least three strengths"),
    ("strength", lambda: ([0.5, 0.6, 0.7], None), "a dict from at least three strengths"),
    ("strength", lambda: ({0.0: 50, 0.1: 60, 1.0: 70}, None), "accuracies lie in [0, 1]"),
    ("strength", lambda: (dict.fromkeys(STRENGTHS, 0.5), None), "train inside `after_each_step`"),
]

ALTERNATIVES: list[tuple[str, Any]] = [
    ("prox", lambda w, t: absum_step(w.double(), t)),
    ("prox", lambda w, t: w - sums(w).clamp(-9 * t, 9 * t) / 9),
    ("wave", lambda u, v, side: wave(u, v, side, side)),
    ("wave", waving(lambda p: scaled((p + math.pi / 4).cos()))),
    ("largest", lambda k, side: float(torch.linalg.svdvals(circulant(k, side))[0])),
    ("largest", lambda k, side: torch.fft.fft2(k, s=(side, side)).abs().max()),
    ("weighted", weighted(lambda d, q, a, t: (d / q).clamp(-t, t) * a)),
    ("shift", by_integration),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES + UNCLEAR)
def test_a_mistake_is_named(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, answer)


@pytest.mark.parametrize(("exercise", "answer"), ALTERNATIVES)
def test_another_right_answer_passes(exercise: str, answer: Any) -> None:
    check(exercise, answer)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES, ["strength"])


def test_every_message_is_one_that_a_mistake_gets(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text for _, _, text in MISTAKES]
    scope["check"] = lesson.checker(
        {e.name: getattr(lesson, f"_check_{e.name}") for e in exercises(LESSON)}
        | {"strength": lambda answer: None}
    )
    scope["fit"] = lambda data, recipe: scope["model"].state_dict()
    known = known_messages(lesson, LESSON, scope, monkeypatch)
    assert len(known) > 20
    assert [m for m in known if not any(text in m for text in texts)] == []


def test_the_lesson_s_solutions_pass(
    scope: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check_solutions(LESSON, scope, capsys)


def test_an_unfilled_stub_is_not_attempted(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_stubs(LESSON, scope, monkeypatch, capsys)


# --- The experiment -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def right(few: Dataset) -> dict[float, tuple[float, float, float]]:
    """Worst and mean over fast waves, and worst over slow ones, for each strength."""
    found = {}
    model = build(SETUP.model).eval()
    for strength in STRENGTHS:
        with after_each_step(absum_step, strength):
            params = fit(few, SHORT)
        seen = heat_map(partial(predict, model, params), few.test_x[:100], few.test_y[:100], 0.6)
        found[strength] = (*band(seen, 5), band(seen, 1, 4).worst)
    return found


@pytest.fixture
def remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is trained once for each strength."""
    kept: dict[float, Params] = {}
    own = lesson.reference_network

    def once(strength: float, data: Dataset) -> Params:
        if strength not in kept:
            kept[strength] = own(strength, data)
        return kept[strength]

    monkeypatch.setattr(lesson, "reference_network", once)


@pytest.mark.usefixtures("remembered")
def test_wrong_experiments_are_told_why(
    few: Dataset, right: dict[float, tuple[float, float, float]]
) -> None:
    check("strength", lambda: ({s: r[0] for s, r in right.items()}, few))
    plain = right[0.0][0]
    for wrong, message in (
        ({s: r[1] for s, r in right.items()}, "that is the mean over fast waves"),
        ({s: r[2] for s, r in right.items()}, "that is the worst of the slow waves"),
        ({0.0: plain + 0.2, 0.1: plain, 1.0: plain}, "that is plain training"),
        ({0.0: plain, 0.1: 0.97, 1.0: 0.96}, "got 0.970, expected"),
    ):
        with pytest.raises(Wrong, match=re.escape(message)):
            check("strength", lambda wrong=wrong: (wrong, few))

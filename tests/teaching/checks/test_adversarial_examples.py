"""Checks of the lesson on adversarial examples: solutions pass, each mistake is told what it is."""

from __future__ import annotations

import math
import re
from math import comb, perm
from typing import Any

import numpy as np
import pytest
import torch
from exercises import check_messages, check_mistakes, check_solutions, check_stubs
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import adversarial_examples as lesson
from lmc_lessons.teaching.checks.adversarial_examples import check, reference_exponents

LESSON = "adversarial-examples"


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")


def gradient(f: Any, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(f(x), y, reduction="sum"), x)[0]


def fgsm_by_hand(f: Any, x: Tensor, y: Tensor, epsilon: float) -> Tensor:
    return (x + epsilon * gradient(f, x, y).sign()).clamp(0, 1)


@pytest.fixture(scope="module")
def scope() -> dict[str, Any]:
    """The names that the lesson's exercises use."""
    radii = [10 ** (-3.5 + k / 4) for k in range(9)]
    errors = torch.tensor([min(0.9, 3 * r) for r in radii], dtype=torch.float64)
    names = {"check": check, "torch": torch, "gradient": gradient, "fgsm_by_hand": fgsm_by_hand}
    return {**names, "radii": radii, "measured": errors}


# Answers, right and wrong


def at_largest(g: Tensor, values: Tensor) -> Tensor:
    at = g.abs().argmax(1, keepdim=True)
    return torch.zeros_like(g).scatter(1, at, values.gather(1, at))


def largest_only(g: Tensor) -> Tensor:
    return F.one_hot(g.argmax(1), g.shape[1]).float()


def inside(moved: Tensor, c: Tensor, e: float) -> Tensor:
    return torch.maximum(torch.minimum(moved, c + e), c - e)


def shortened(moved: Tensor, c: Tensor, e: float) -> Tensor:
    step = moved - c
    return (c + step * (e / step.abs().amax(1, keepdim=True)).clamp(max=1)).clamp(0, 1)


def read(f: Any, x: Tensor, y: Tensor) -> float:
    return (f(x).argmax(1) == y).double().mean().item()


def without_box(t: Any, s: Any, x: Tensor, y: Tensor, e: float) -> float:
    return read(t, x + e * gradient(s, x, y).sign(), y)


def downhill(t: Any, s: Any, x: Tensor, y: Tensor, e: float) -> float:
    return read(t, (x - e * gradient(s, x, y).sign()).clamp(0, 1), y)


def unsigned(t: Any, s: Any, x: Tensor, y: Tensor, e: float) -> float:
    return read(t, (x + e * gradient(s, x, y)).clamp(0, 1), y)


def survives(f: Any, x: Tensor, y: Tensor) -> bool:
    """Takes what stands against an attack for a mask."""
    return read(f, fgsm_by_hand(f, x, y, 0.3), y) > 0.5


def small(f: Any, x: Tensor, y: Tensor) -> bool:
    return gradient(f, x, y).abs().mean().item() < 1e-2


def zero(f: Any, x: Tensor, y: Tensor) -> bool:
    return bool((gradient(f, x, y) == 0).double().mean() > 0.5)


def loud(f: Any, x: Tensor, y: Tensor) -> bool:
    return f(x).abs().max().item() > 1e3


def flat(f: Any, x: Tensor, y: Tensor) -> bool:
    """Looks at the logits' gradient: sees the staircase only."""
    x = x.clone().requires_grad_()
    return bool((torch.autograd.grad(f(x).sum(), x)[0] == 0).all())


def fits(radii: Any, errors: Any, windows: Any, slope: Any) -> dict[Any, float]:
    found = {}
    for low, high in windows:
        pairs = [(r, e) for r, e in zip(radii, errors, strict=True) if low < e < high]
        r, e = np.asarray(pairs).T
        found[low, high] = float(slope(r, e))
    return found


def line(x: Any, y: Any) -> float:
    return float(np.polyfit(x, y, 1)[0])


def on_radii(radii: Any, errors: Any, windows: Any) -> dict[Any, float]:
    found = {}
    for low, high in windows:
        pairs = [(r, e) for r, e in zip(radii, errors, strict=True) if low < r < high]
        found[low, high] = line(*np.log(np.asarray(pairs)).T) if len(pairs) > 2 else 0.0
    return found


def everything(radii: Any, errors: Any, windows: Any) -> dict[Any, float]:
    return dict.fromkeys(windows, line(np.log(radii), np.log(errors)))


MISTAKES: list[tuple[str, Any, str]] = [
    ("steepest", lambda g: g.sign(), "the step for the largest change of any entry"),
    ("steepest", lambda g: F.normalize(g, dim=1), "Euclidean length 1"),
    ("steepest", lambda g: F.normalize(g, p=1, dim=1), "the budget is spread"),
    ("steepest", lambda g: g.sign() / g.shape[1], "spread evenly"),
    ("steepest", largest_only, "a large negative entry is as good"),
    ("steepest", lambda g: at_largest(g, torch.ones_like(g)), "wrong sign"),
    ("steepest", lambda g: -at_largest(g, g.sign()), "lowers the loss"),
    ("steepest", lambda g: at_largest(g, g), "not the gradient's"),
    ("project", inside, "the box [0, 1] is missing"),
    ("project", lambda m, c, e: m.clamp(0, 1), "the cube around the centre is missing"),
    ("project", lambda m, c, e: inside(m, c, e).clamp(0, 1) - c, "not the change"),
    ("project", lambda m, c, e: m.clamp(-e, e), "lies around the centre"),
    ("project", shortened, "each coordinate can be clipped alone"),
    ("project", lambda m, c, e: (c + e * (m - c).sign()).clamp(0, 1), "near enough stays"),
    ("place", lambda n, k: comb(n - 1, k) / (n - k), "you fixed which one"),
    ("place", lambda n, k: n * comb(n - 1, k), "the integral over its value is missing"),
    ("place", perm, "choose them without order"),
    ("place", lambda n, k: comb(n, k - 1), "k others are near, not k - 1"),
    ("place", lambda n, k: comb(n, k + 1), "the largest is one more"),
    ("place", lambda n, k: n, "the constant for k = 1 only"),
    ("transfer", lambda t, s, x, y, e: read(t, fgsm_by_hand(t, x, y, e), y), "for the surrogate"),
    ("transfer", lambda t, s, x, y, e: read(s, fgsm_by_hand(s, x, y, e), y), "not the surrogate"),
    ("transfer", lambda t, s, x, y, e: read(t, x, y), "without any attack"),
    (
        "transfer",
        lambda t, s, x, y, e: 1 - read(t, fgsm_by_hand(s, x, y, e), y),
        "the share misread",
    ),
    ("transfer", without_box, "the box is missing"),
    ("transfer", downhill, "go up"),
    ("transfer", unsigned, "take the signs"),
    (
        "transfer",
        lambda t, s, x, y, e: len(x) * read(t, fgsm_by_hand(s, x, y, e), y),
        "not a number of samples",
    ),
    ("mask", lambda f, x, y: True, "that is weak is called masked"),
    ("mask", survives, "nothing in the box can fool"),
    ("mask", small, "small logits is called masked"),
    ("mask", flat, "the network with multiplied logits passes"),
    ("mask", loud, "the network behind a staircase passes"),
    ("window", on_radii, "the window is on the errors"),
    ("window", everything, "all points were used"),
    ("window", lambda r, e, w: fits(r, e, w, line), "take logarithms of both"),
    (
        "window",
        lambda r, e, w: fits(r, e, w, lambda a, b: line(np.log(b), np.log(a))),
        "the slope of the radius on the error",
    ),
    (
        "window",
        lambda r, e, w: fits(
            r, e, w, lambda a, b: (np.log(a) * np.log(b)).sum() / (np.log(a) ** 2).sum()
        ),
        "through the origin",
    ),
    (
        "window",
        lambda r, e, w: fits(r, e, w, lambda a, b: line(a, np.log(b))),
        "the logarithm of the radii too",
    ),
    (
        "window",
        lambda r, e, w: fits(r, e, w, lambda a, b: line(np.log(a), b)),
        "the logarithm of the errors too",
    ),
    (
        "window",
        lambda r, e, w: fits(r, e, w, lambda a, b: np.log(b[-1] / b[0]) / np.log(a[-1] / a[0])),
        "between the first and the last point",
    ),
]

UNCLEAR: list[tuple[str, Any, str]] = [
    ("steepest", lambda g: None, "return a tensor, got NoneType"),
    ("steepest", lambda g: at_largest(g, g.sign()).sum(1), "shape (3,), expected (3, 3)"),
    ("project", lambda m, c, e: m[0], "shape (3,), expected (2, 3)"),
    ("place", lambda n, k: None, "return a number, got NoneType"),
    ("place", lambda n, k: 6.5, "got 6.5, expected"),
    ("transfer", lambda t, s, x, y, e: t(x).argmax(1) == y, "return one number"),
    ("transfer", lambda t, s, x, y: 0.5, "your code raised TypeError"),
    ("mask", lambda f, x, y: None, "return True or False"),
    ("mask", lambda f, x, y: 0.7, "return True or False"),
    ("window", lambda r, e, w: [1.0], "return a dict"),
    ("window", lambda r, e, w: {0.1: 1.0}, "the keys must be the windows"),
    ("window", lambda r, e, w: dict.fromkeys(w, 0.25), "got 0.25, expected"),
]

ALTERNATIVES: list[tuple[str, Any]] = [
    ("steepest", lambda g: at_largest(g, g.sign())),
    ("steepest", lambda g: F.one_hot(g.abs().argmax(1), g.shape[1]) * g.sign()),
    ("project", lambda m, c, e: inside(m, c, e).clamp(0, 1)),
    ("project", lambda m, c, e: inside(m.clamp(0, 1), c, e)),
    ("place", lambda n, k: math.gamma(n + 1) / math.gamma(k + 1) / math.gamma(n - k + 1)),
    ("transfer", lambda t, s, x, y, e: read(t, fgsm_by_hand(s, x, y, e), y)),
    ("transfer", lambda t, s, x, y, e: np.float64(read(t, fgsm_by_hand(s, x, y, e), y))),
    ("mask", zero),
    ("mask", lambda f, x, y: torch.tensor(zero(f, x, y))),
    ("mask", lambda f, x, y: int(zero(f, x, y))),
    ("window", lambda r, e, w: fits(r, e, w, lambda a, b: line(np.log(a), np.log(b)))),
    ("window", lambda r, e, w: fits(r, e, w, lambda a, b: line(np.log10(a), np.log10(b)))),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES + UNCLEAR)
def test_a_mistake_is_named(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, answer)


@pytest.mark.parametrize(("exercise", "answer"), ALTERNATIVES)
def test_another_right_answer_passes(exercise: str, answer: Any) -> None:
    check(exercise, answer)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES)


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


def test_the_constant_is_that_of_the_exact_distribution() -> None:
    """The gap to place k + 1 of K uniform logits is Beta(k, K + 1 - k)."""
    from scipy.stats import beta

    for classes, k in ((10, 1), (10, 2), (6, 3)):
        t = 1e-4
        exact = beta(k, classes + 1 - k).cdf(t)
        assert exact == pytest.approx(comb(classes, k) * t**k, rel=1e-2)


def test_reference_exponents_of_a_pure_law() -> None:
    radii = [0.001 * 1.6**k for k in range(12)]
    found = reference_exponents(radii, [2 * r for r in radii], [(0.0, 0.1), (0.005, 0.5)])
    assert found == pytest.approx({(0.0, 0.1): 1.0, (0.005, 0.5): 1.0})

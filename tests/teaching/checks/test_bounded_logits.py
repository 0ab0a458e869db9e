"""Checks of the lesson on bounded logits: solutions pass, each mistake is told what it is."""

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

from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.bounded_logits import PRESETS, load_data
from lmc_lessons.models import ModelConfig, Params, build, predict, unstack
from lmc_lessons.robustness.attacks import LInf, margin_loss, pgd
from lmc_lessons.robustness.bounded_logits import PEAK, blf, blf_slope, optimum
from lmc_lessons.robustness.logit_penalties import LogitPairing, LogitSqueezing
from lmc_lessons.robustness.masking import standing
from lmc_lessons.robustness.objectives import Objective
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import bounded_logits as lesson
from lmc_lessons.teaching.checks.bounded_logits import check
from lmc_lessons.training import train

LESSON = "bounded-logits"
SETUP = replace(PRESETS["study"], model=ModelConfig(width=32, depth=1))  # learns in a second
WEIGHTS = (0.02, 0.05, 0.2)


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")
    monkeypatch.setattr(lesson, "PRESETS", {"study": SETUP})


@pytest.fixture(scope="module")
def data() -> Dataset:
    """The lesson's data."""
    return load_data(SETUP)


def fit(data: Dataset, objective: Objective, epochs: int = 30) -> Params:
    recipe = replace(SETUP.train, epochs=epochs)
    return unstack(train(SETUP.model, data, (0,), recipe, loss=objective).params)[0]


def mean_length(logits: Tensor) -> float:
    return logits.norm(dim=1).mean().item()


@pytest.fixture
def scope(data: Dataset) -> dict[str, Any]:
    """The names that the lesson's exercises use."""
    model = build(SETUP.model).eval()
    params = {k: t.detach() for k, t in model.state_dict().items()}
    some = {"x": data.test_x[:9], "y": data.test_y[:9], "threat": LInf(0.1)}
    lent = {"model": model, "data": data, "PEAK": PEAK, "math": math, "torch": torch, "blf": blf}
    lent |= {"standing": standing, "optimum": optimum, "LogitPairing": LogitPairing}
    climb = partial(pgd, steps=2)
    return {
        **lent,
        **some,
        "check": check,
        "predict": predict,
        "mean_length": mean_length,
        "fit": partial(fit, data),
        "network": lambda name: lambda x: blf(predict(model, params, x), 1.0),
        "two": {"cross-entropy": climb, "margin": partial(climb, loss=margin_loss)},
    }


# --- Answers --------------------------------------------------------------------------------------


def head(u: Tensor, bound: float) -> Tensor:
    return bound / PEAK * u * torch.sigmoid(u) * torch.sigmoid(-u)


def by_exponentials(u: Tensor, bound: float) -> Tensor:
    return bound / PEAK * u * u.exp() / (1 + u.exp()) ** 2


def by_cosh(u: Tensor, bound: float) -> Tensor:
    return bound / PEAK * u / 4 / torch.cosh(u / 2).square()


def floor(value: float, classes: int) -> float:
    return 0.5 * math.log((classes - 1) / (math.exp(value) - 1))


def by_search(value: float, classes: int) -> float:
    low, high = 0.0, 50.0
    for _ in range(200):
        c = (low + high) / 2
        low, high = (c, high) if math.log1p((classes - 1) * math.exp(-2 * c)) > value else (low, c)
    return c


def squeezed(weight: float, classes: int) -> float:
    m = 0.0
    for _ in range(20_000):  # a fixed point, approached slowly
        q = (classes - 1) / (math.exp(m) + classes - 1)
        m += 0.01 * (q / weight * classes / (classes - 1) - m)
    return m


def chance(weight: float, classes: int) -> float:
    m = squeezed(weight, classes)
    return (classes - 1) / (math.exp(m) + classes - 1)


def pretend(u: Tensor, bound: float) -> Tensor:
    return blf(u, bound).detach() + (u - u.detach())


class Through(torch.autograd.Function):
    """The same with a backward pass of its own."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        return blf(u, 2.0)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return slopes[0]


def stands(masks: Any) -> float:
    return torch.stack(list(masks)).all(0).double().mean().item()


def adds(masks: dict[str, Tensor]) -> dict[str, float]:
    every = stands(masks.values())
    return {
        name: stands(mask for other, mask in masks.items() if other != name) - every
        for name in masks
    }


def others_leave(masks: dict[str, Tensor]) -> dict[str, float]:
    return {a: stands(m for b, m in masks.items() if b != a) for a in masks}


def each(formula: Any) -> Any:
    """An answer from what each attack leaves by itself."""
    return lambda masks: {
        name: formula(mask.double().mean().item()) for name, mask in masks.items()
    }


# --- Mistakes -------------------------------------------------------------------------------------

MISTAKES: list[tuple[str, Any, str]] = [
    ("head", lambda u, c: c * u * u.sigmoid() * (-u).sigmoid(), "peaks at a fifth of the bound"),
    ("head", lambda u, c: head(u, 1.0), "the peak is 1 whatever the bound"),
    ("head", lambda u, c: c * u.tanh(), "that is tanh"),
    ("head", blf_slope, "that is the slope"),
    ("head", lambda u, c: c / PEAK * u * u.sigmoid(), "a second factor is missing"),
    ("head", lambda u, c: head(u, c).abs(), "a negative pre-logit gives a negative logit"),
    ("head", by_exponentials, "not finite for large pre-logits"),
    ("floor", lambda f, k: 2 * floor(f, k), "that is the margin"),
    ("floor", lambda f, k: floor(f, k + 1), "there are K - 1 wrong classes"),
    ("floor", lambda f, k: 0.5 * math.log((k - 1) / f), "holds for a small loss only"),
    ("floor", lambda f, k: floor(f, k) / math.log(10), "logarithms are natural"),
    ("floor", lambda f, k: -floor(f, k), "the sign"),
    (
        "squeezed",
        lambda w, k: squeezed(w, k) * math.sqrt((k - 1) / k),
        "that is the length of the logits",
    ),
    ("squeezed", lambda w, k: squeezed(2 * w, k), "the penalty is half of the squared length"),
    ("squeezed", lambda w, k: chance(w, k) / w, "the wrong ones lie below zero"),
    ("squeezed", chance, "that is the chance of a mistake"),
    ("squeezed", lambda w, k: k / w / (k - 1), "that is the largest margin"),
    ("pretend", lambda u, c: u, "these are the pre-logits"),
    ("pretend", lambda u, c: blf(u, c).detach() - u, "that is head minus pre-logit"),
    ("pretend", lambda u, c: blf(u, c).detach() + u, "that is head plus pre-logit"),
    ("pretend", lambda u, c: blf(u, c).detach(), "no gradient comes through"),
    ("pretend", lambda u, c: blf(u, c), "the head is still there"),
    ("pretend", lambda u, c: blf(u, c) + u - u.detach(), "both gradients come through"),
    ("adds", each(lambda share: share), "what the attack leaves by itself"),
    ("adds", each(lambda share: 1 - share), "what the attack takes by itself"),
    ("adds", others_leave, "that is what the others leave"),
    ("adds", lambda m: {n: -v for n, v in adds(m).items()}, "the sign: an added attack"),
    ("adds", lambda m: {n: 40 * v for n, v in adds(m).items()}, "those are samples"),
]

UNCLEAR: list[tuple[str, Any, str]] = [
    ("head", lambda u, c: None, "return a tensor, got NoneType"),
    ("head", lambda u, c: head(u, c)[0], "shape (3,), expected (2, 3)"),
    ("head", lambda u, c: head(u, c) + 0.1, "right shape, wrong values"),
    ("floor", lambda f, k: None, "return a number, got NoneType"),
    ("floor", lambda f, k: 1.0, "got 1, expected"),
    ("squeezed", lambda w, k: 1.0, "got 1, expected"),
    ("squeezed", lambda w, k: str(w), "return a number, got str"),
    ("pretend", lambda u, c: 2.0, "return a tensor, got float"),
    ("pretend", lambda u, c: blf(u, c).detach() + 2 * (u - u.detach()), "wrong values"),
    ("adds", lambda m: 0.1, "return a dict, got float"),
    ("adds", lambda m: {"CE": 0.1}, "one number per attack, got ['CE']"),
    ("adds", lambda m: dict.fromkeys(m, 0.5), "got 0.5, expected"),
    ("pairing", {0.1: 2.0}, "pass a function that returns"),
    ("pairing", lambda: ({0.1: 2.0, 0.2: 1.0}, None), "return a dict from at least three weights"),
    ("pairing", lambda: ([2.0, 1.0, 0.5], None), "return a dict from at least three weights"),
    ("pairing", lambda: ({0.1: 2.0, 0.2: 2.0, 0.3: 2.0}, None), "train anew for each"),
    ("pairing", lambda: {0.1: 2.0}, "your code raised ValueError"),
]

ALTERNATIVES: list[tuple[str, Any]] = [
    ("head", blf),
    ("head", by_cosh),
    ("head", lambda u, c: c / PEAK * u * (u.sigmoid() - u.sigmoid() ** 2)),
    ("floor", floor),
    ("floor", by_search),
    ("floor", lambda f, k: torch.tensor(floor(f, k))),
    ("squeezed", squeezed),
    ("squeezed", lambda w, k: optimum("squeezing", w, k).margin),
    ("pretend", pretend),
    ("pretend", lambda u, c: Through.apply(u)),
    ("pretend", lambda u, c: u + (blf(u, c) - u).detach()),
    ("adds", adds),
    ("adds", lambda m: {n: torch.tensor(v) for n, v in reversed(adds(m).items())}),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES + UNCLEAR)
def test_a_mistake_is_named(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, answer)


@pytest.mark.parametrize(("exercise", "answer"), ALTERNATIVES)
def test_another_right_answer_passes(exercise: str, answer: Any) -> None:
    check(exercise, answer)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES, ["pairing"])


def test_every_message_is_one_that_a_mistake_gets(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "_check_pairing", lambda answer: None)
    texts = [text for _, _, text in MISTAKES]
    scope["check"] = lesson.checker(
        {e.name: getattr(lesson, f"_check_{e.name}") for e in exercises(LESSON)}
    )
    model = scope["model"]
    scope["fit"] = lambda objective, epochs: model.state_dict()
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


def test_a_mistake_is_printed_unless_strict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(STRICT)
    check("adds", lambda m: 0.1)
    assert capsys.readouterr().out == "adds: not yet: return a dict, got float\n"


def test_an_answer_cannot_change_what_it_is_held_against() -> None:
    def spoil(masks: dict[str, Tensor]) -> dict[str, float]:
        found = adds(masks)
        for mask in masks.values():
            mask.zero_()
        return found

    check("adds", spoil)


# --- The experiment -------------------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check takes for the lengths of the networks that the recipe gives."""

    def length(objective: Objective, data: Dataset, part: str = "train") -> float:
        assert isinstance(objective, LogitPairing | LogitSqueezing)
        base = 3.0 if isinstance(objective, LogitPairing) else 5.0
        return (base - objective.weight) * (0.9 if part == "test" else 1.0)

    monkeypatch.setattr(lesson, "measured_length", length)


def lengths(formula: Any) -> Any:
    return lambda: ({weight: formula(weight) for weight in WEIGHTS}, None)


EXPERIMENT: list[tuple[Any, str]] = [
    (lambda w: optimum("squeezing", 4 * w).logit_norm, "that is the prediction"),
    (lambda w: 0.9 * (3 - w), "that is measured on the test data"),
    (lambda w: 5 - w, "that is squeezing with the same weight"),
    (lambda w: (3 - w) ** 2, "at weight 0.02 you got 8.880, expected 2.980"),
    (lambda w: 3 - w if w < 0.1 else 2.0, "at weight 0.2 you got 2.000, expected 2.800"),
]


@pytest.mark.parametrize(("mistake", "message"), EXPERIMENT)
@pytest.mark.usefixtures("known")
def test_the_experiment_names_mistakes(mistake: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check("pairing", lengths(mistake))


@pytest.mark.usefixtures("known")
def test_the_experiment_passes_what_was_measured() -> None:
    check("pairing", lengths(lambda w: 3 - w))
    check("pairing", lengths(lambda w: torch.tensor(3 - w)))


def test_the_reference_is_the_lesson_s_recipe(data: Dataset) -> None:
    few = data.subset(200, 20)
    params = fit(few, LogitPairing(0.05), lesson.EPOCHS)
    model = build(SETUP.model).eval()
    for part, x in (("train", few.train_x), ("test", few.test_x)):
        own = mean_length(predict(model, params, x))
        assert lesson.measured_length(LogitPairing(0.05), few, part) == pytest.approx(own, rel=1e-5)

"""Checks of the lesson on logit differences: solutions pass, each mistake is told what it is."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exercises import check_messages, check_mistakes, check_solutions, check_stubs
from torch import Tensor

from lmc_lessons.experiments.logit_difference import (
    ASSISTANTS,
    CAP,
    MAIN,
    PRESETS,
    Assistant,
    Setting,
    cap,
    logits_of,
)
from lmc_lessons.models import ModelConfig, Params, initial, stack, unstack
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import logit_difference as lesson
from lmc_lessons.teaching.checks.logit_difference import check
from lmc_lessons.training import train
from lmc_lessons.unlearning.facts import LENGTH, TOKENS
from lmc_lessons.unlearning.logit_difference import (
    AssistantLoss,
    assistant_of,
    bound_of_uniform,
    critical_alpha,
    kept_tokens,
)

LESSON = "logit-difference"
TOY = dataclasses.replace(
    PRESETS["toy"],
    facts=9,
    forget=2,
    covered=3,
    model=ModelConfig("transformer", (LENGTH,), len(TOKENS), 16, 2),
)
BENCH = Setting.of(TOY, 0)
TARGET = stack([initial(TOY.model, 0)])


def fit(config: Any, data: Any, recipe: Any, loss: Any, start: Any = None) -> Params:
    return train(config, data, (0,), recipe, loss=loss, start=start).params


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")
    monkeypatch.setattr(lesson, "STEPS", 3)


@pytest.fixture
def scope() -> dict[str, Any]:
    """The names that the exercises use."""
    small, start = assistant_of(TOY.model, TARGET, 1)
    names: dict[str, Any] = {
        "torch": torch,
        "math": math,
        "check": check,
        "replace": dataclasses.replace,
    }
    names |= {"toy": TOY, "bench": BENCH, "target": TARGET, "small": small, "start": start}
    names |= {"fit": fit, "cap": cap, "CAP": CAP, "STEPS": 3, "ASSISTANTS": ASSISTANTS}
    names |= {"AssistantLoss": AssistantLoss, "logits_of": logits_of, "unstack": unstack}
    return names


def levels(z: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities, the level by share, the level by rank."""
    told = z.log_softmax(-1)
    ranked = told.sort(-1, descending=True).values
    rank = max(1, math.floor(share * z.shape[-1]))
    return told, ranked[:, :1] + math.log(share), ranked[:, rank - 1 : rank]


def unguarded(z: Tensor, share: float) -> Tensor:
    told, relative, _ = levels(z, share)
    ranked = told.sort(-1, descending=True).values
    index = math.floor(share * z.shape[-1]) - 1
    return told >= torch.minimum(relative, ranked[:, index, None])


def higher(z: Tensor, share: float) -> Tensor:
    told, relative, by_rank = levels(z, share)
    return told >= torch.maximum(relative, by_rank)


def rank_alone(z: Tensor, share: float) -> Tensor:
    told, _, by_rank = levels(z, share)
    return told >= by_rank


def share_alone(z: Tensor, share: float) -> Tensor:
    told, relative, _ = levels(z, share)
    return told >= relative


def turning(z: Tensor, a: Tensor, y: int) -> float:
    return float(critical_alpha(z, a, torch.tensor(y)))


def ratios(z: Tensor, a: Tensor, y: int) -> dict[int, tuple[float, float]]:
    return {v: (float(z[y] - z[v]), float(a[y] - a[v])) for v in range(len(z)) if v != y}


def able(z: Tensor, a: Tensor, y: int) -> list[tuple[float, float]]:
    return [pair for pair in ratios(z, a, y).values() if pair[1] > 0]


def runner_up(z: Tensor, a: Tensor, y: int) -> float:
    lead, pull = min(ratios(z, a, y).values())
    return lead / pull


def parts(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    told = logits.log_softmax(-1)
    entropy = -(told.exp() * told).sum(-1)
    return -told[torch.arange(len(tokens)), tokens], -told.mean(-1), entropy


def loss_of(
    combine: Callable[[Tensor, Tensor, Tensor, Tensor, float, int], Tensor],
) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """An answer to the exercise on the loss, from its parts."""

    def answer(logits: Tensor, tokens: Tensor, kept: Tensor, beta: float) -> Tensor:
        own, flat, entropy = parts(logits, tokens)
        return combine(own, flat, entropy, kept, beta, logits.shape[-1])

    return answer


right_loss = loss_of(lambda o, f, e, k, b, v: o[k].mean() + b * f[~k].mean())


def lead(w: float, u: float, v: int) -> float:
    return bound_of_uniform(w, u, v)


def read(logits: Tensor) -> Tensor:
    return logits[:, 3:].argmin(-1) + 3


MISTAKES: list[tuple[str, Any, str]] = [
    ("filter", unguarded, "every token is kept"),
    ("filter", higher, "the lower of the two levels"),
    ("filter", rank_alone, "that is the rank alone"),
    ("filter", share_alone, "that is the share alone"),
    ("filter", lambda z, r: ~kept_tokens(z, r), "the tokens that are left out"),
    ("critical", lambda z, a, y: max(p / q for p, q in able(z, a, y)), "the first one decides"),
    (
        "critical",
        lambda z, a, y: min(p / q for p, q in ratios(z, a, y).values()),
        "leave out what is not above 0",
    ),
    (
        "critical",
        lambda z, a, y: min(abs(p / q) for p, q in ratios(z, a, y).values()),
        "the sign counts",
    ),
    ("critical", lambda z, a, y: min(q / p for p, q in able(z, a, y)), "upside down"),
    ("critical", runner_up, "the runner-up need not"),
    (
        "critical",
        lambda z, a, y: min(p for p, _ in able(z, a, y)) / max(q for _, q in able(z, a, y)),
        "of two tokens",
    ),
    ("loss", loss_of(lambda o, f, e, k, b, v: o[k].mean() + b * f.mean()), "uniform on all tokens"),
    ("loss", loss_of(lambda o, f, e, k, b, v: o[k].mean() - b * f[~k].mean()), "add it"),
    ("loss", loss_of(lambda o, f, e, k, b, v: b * f[~k].mean() - o[k].mean()), "its sign"),
    ("loss", loss_of(lambda o, f, e, k, b, v: o[k].mean() + b * e[~k].mean()), "the entropy"),
    ("loss", loss_of(lambda o, f, e, k, b, v: o[k].sum() + b * f[~k].sum()), "means, not sums"),
    ("loss", loss_of(lambda o, f, e, k, b, v: torch.where(k, o, b * f).mean()), "one mean over"),
    ("loss", loss_of(lambda o, f, e, k, b, v: o[k].mean() + b * v * f[~k].mean()), "one over the"),
    ("lead", lambda w, u, v: math.log(1 + w / u), "divide its weight"),
    ("lead", lambda w, u, v: math.log(v * w / u), "has its share of the uniform part"),
    ("lead", lambda w, u, v: math.log(1 + v * u / w), "the two weights are exchanged"),
    ("lead", lambda w, u, v: 1 + v * w / u, "the lead is its logarithm"),
    ("lead", lambda w, u, v: (w + u / v) / (w + u), "that is the largest probability"),
    ("read", lambda z: z.argmin(-1), "look among the letters only"),
    ("read", lambda z: z[:, 3:].argmin(-1), "return token numbers"),
    ("read", lambda z: z[:, 3:].argmax(-1) + 3, "read it upside down"),
]

UNCLEAR: list[tuple[str, Any, str]] = [
    ("filter", lambda z, r: None, "return a tensor of bools"),
    ("filter", lambda z, r: z, "return a tensor of bools"),
    ("filter", lambda z, r: kept_tokens(z, r)[0], "shape (12,), expected (8, 12)"),
    ("critical", lambda z, a, y: None, "return a number, got NoneType"),
    ("critical", lambda z, a, y: 0.123, "got 0.123, expected"),
    ("loss", lambda z, t, k, b: 0.123, "got 0.123, expected"),
    ("loss", lambda z, t, k, b: z, "return one number"),
    ("lead", lambda w, u, v: 0.123, "got 0.123, expected"),
    ("read", lambda z: 3, "return a tensor, got int"),
    ("read", lambda z: read(z)[:2], "shape (2,), expected (6,)"),
    ("wrong", {1: 2.0}, "pass a function that returns"),
    ("wrong", lambda: ({1: 2.0, 2: 1.0}, BENCH, TARGET), "at least three counts"),
    ("wrong", lambda: ([1.0, 2.0, 3.0], BENCH, TARGET), "at least three counts"),
    ("wrong", lambda: ({1: 2.0, 2: 2.0, 4: 2.0}, BENCH, TARGET), "make the texts anew"),
    ("wrong", lambda: {1: 2.0}, "your code raised"),
]

ALTERNATIVES: list[tuple[str, Any]] = [
    ("filter", kept_tokens),
    ("critical", turning),
    ("critical", lambda z, a, y: torch.tensor(turning(z, a, y))),
    ("loss", right_loss),
    ("lead", lead),
    ("lead", lambda w, u, v: math.log((w + u / v) / (u / v))),
    ("read", read),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES + UNCLEAR)
def test_a_mistake_is_named(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, answer)


@pytest.mark.parametrize(("exercise", "answer"), ALTERNATIVES)
def test_another_right_answer_passes(exercise: str, answer: Any) -> None:
    check(exercise, answer)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES, ["wrong"])


def test_every_message_is_one_that_a_mistake_gets(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_messages(lesson, LESSON, scope, monkeypatch, MISTAKES)


def test_the_lesson_s_solutions_pass(
    scope: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[str] = []
    scope["print"] = printed.append  # what a solution tells beside the check
    check_solutions(LESSON, scope, capsys)
    assert len(printed) >= 3


def test_an_unfilled_stub_is_not_attempted(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_stubs(LESSON, scope, monkeypatch, capsys)


# --- The experiment -------------------------------------------------------------------------------


@pytest.fixture
def stored_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the check takes for the leads that the recipe gives."""

    def measured(setting: Setting, target: Params, assistant: Assistant) -> float:
        assert target is TARGET
        base = 5.0 if assistant.paraphrases else 4.0
        return base - math.log(setting.config.wrong)

    monkeypatch.setattr(lesson, "measured_lead", measured)


def formula(count: int) -> float:
    setting = dataclasses.replace(BENCH, config=dataclasses.replace(TOY, wrong=count))
    blank = {n: torch.zeros(*x.shape, len(TOKENS)) for n, x in setting.tests.items()}
    return cap(setting, blank)[CAP[1]]


def leads(by_count: Callable[[int], float]) -> Any:
    return lambda: ({count: by_count(count) for count in (1, 2, 4)}, BENCH, TARGET)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (formula, "that is the closed form: train, and measure"),
        (lambda n: 4 - math.log(n), "that assistant was shown no paraphrases"),
        (lambda n: 3 - math.log(n), "with 1 wrong answers you got 3.000, expected 5.000"),
        (
            lambda n: 5 - math.log(n) if n < 4 else 2.0,
            "with 4 wrong answers you got 2.000, expected 3.614",
        ),
    ],
)
@pytest.mark.usefixtures("stored_leads")
def test_the_experiment_names_mistakes(mistake: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check("wrong", leads(mistake))


@pytest.mark.usefixtures("stored_leads")
def test_the_experiment_passes_what_was_measured() -> None:
    check("wrong", leads(lambda n: 5 - math.log(n)))


def test_the_reference_is_the_lesson_s_recipe() -> None:
    small, start = assistant_of(TOY.model, TARGET, 1)
    data = BENCH.for_assistant(ASSISTANTS[MAIN])
    recipe = dataclasses.replace(TOY.assistant, epochs=3)
    params = fit(small, data, recipe, AssistantLoss(), start)
    own = cap(BENCH, logits_of(BENCH, small, unstack(params)[0]))[CAP[0]]
    assert lesson.measured_lead(BENCH, TARGET, ASSISTANTS[MAIN]) == pytest.approx(own, rel=1e-6)

"""Checks of the exercises in the lesson on logit differences."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.experiments.logit_difference import (
    ASSISTANTS,
    CAP,
    MAIN,
    Assistant,
    Setting,
    cap,
    logits_of,
)
from lmc_lessons.models import Params, unstack
from lmc_lessons.teaching.checks import Wrong, checker, require, require_number, require_tensor
from lmc_lessons.training import train
from lmc_lessons.unlearning.facts import LETTERS, TOKENS
from lmc_lessons.unlearning.logit_difference import (
    AssistantLoss,
    assistant_of,
    bound_of_uniform,
    critical_alpha,
    kept_tokens,
)

STEPS = 100  # of the experiment


def _drawn(*shape: int, seed: int) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=stream, dtype=torch.float64)


def _check_filter(kept: Any) -> None:
    """Which tokens keep their change."""
    sharp, flat = 3 * _drawn(4, 12, seed=3), 0.1 * _drawn(4, 12, seed=4)
    for z, share in ((torch.cat([sharp, flat]), 0.3), (_drawn(4, 6, seed=3), 0.1)):
        tokens = z.shape[-1]
        told, rank = z.log_softmax(-1), math.floor(share * tokens)
        top = told.amax(-1, keepdim=True)
        ranked = told.sort(-1, descending=True).values
        place = ranked[:, max(1, rank) - 1 : max(1, rank)]
        given = kept(z.clone(), share)
        require(
            isinstance(given, Tensor) and given.dtype == torch.bool,
            "return a tensor of bools: one per token",
        )
        wrong = {
            "every token is kept: with few tokens the rank is 0, and index -1 is the last": (
                told >= torch.minimum(top + math.log(share), ranked[:, rank - 1 : rank or None])
            ),
            "a token needs to pass the lower of the two levels, not the higher": (
                told >= torch.maximum(top + math.log(share), place)
            ),
            "that is the rank alone: the share of the largest probability counts too": (
                told >= place
            ),
            "that is the share alone: at least the tokens of the first ranks are kept": (
                told >= top + math.log(share)
            ),
            "those are the tokens that are left out": ~kept_tokens(z, share),
        }
        right = kept_tokens(z, share)
        require_tensor(
            given.double(),
            right.double(),
            {words: other.double() for words, other in wrong.items()},
        )


def _check_critical(turning_point: Any) -> None:
    """The alpha at which another token overtakes."""
    for seed in range(4):
        z, a = _drawn(6, seed=seed), _drawn(6, seed=seed + 10)
        y = int(z.argmax())
        a[y] = a.median() + 0.5
        second = int(z.scatter(0, torch.tensor(y), -torch.inf).argmax())
        if seed == 3:  # the runner-up falls back, and fast
            a[second] = a[y] + 9
        lead, pull = z[y] - z, a[y] - a
        others = [v for v in range(6) if v != y]
        able = [v for v in others if pull[v] > 0]
        right = float(critical_alpha(z, a, torch.tensor(y)))
        wrong = {
            "that is where the last of them overtakes: the first one decides": max(
                float(lead[v] / pull[v]) for v in able
            ),
            "a token that the assistant likes more than the true one cannot overtake: leave "
            "out what is not above 0": min(float(lead[v] / pull[v]) for v in others),
            "the sign counts: a token that the assistant likes more falls back": min(
                abs(float(lead[v] / pull[v])) for v in others
            ),
            "that is the ratio upside down": min(float(pull[v] / lead[v]) for v in able),
            "the runner-up need not be the first to overtake": float(lead[second] / pull[second]),
            "that is the smallest lead over the largest pull, of two tokens": float(
                min(lead[v] for v in able) / max(pull[v] for v in able)
            ),
        }
        require_number(
            turning_point(z.clone(), a.clone(), y),
            right,
            {words: value for words, value in wrong.items() if value != right},
        )


def _check_loss(assistant_loss: Any) -> None:
    """Remember some tokens, be uniform on the others."""
    logits, tokens = _drawn(7, 5, seed=4), torch.tensor([0, 2, 1, 4, 3, 3, 0])
    remembered = torch.tensor([False, True, True, False, False, True, False])
    told = logits.log_softmax(-1)
    own = -told.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    flat, beta = -told.mean(-1), 0.7
    entropy = -(told.exp() * told).sum(-1)
    kept, rest = remembered, ~remembered
    require_number(
        assistant_loss(logits.clone(), tokens.clone(), remembered.clone(), beta),
        float(own[kept].mean() + beta * flat[rest].mean()),
        {
            "uniform on all tokens: those to remember are left out of the second term": float(
                own[kept].mean() + beta * flat.mean()
            ),
            "the second term is lowered too: add it": float(
                own[kept].mean() - beta * flat[rest].mean()
            ),
            "the first term is to be lowered: its sign": float(
                -own[kept].mean() + beta * flat[rest].mean()
            ),
            "that is the entropy: cross-entropy has the uniform distribution in front of the "
            "logarithm": float(own[kept].mean() + beta * entropy[rest].mean()),
            "means, not sums": float(own[kept].sum() + beta * flat[rest].sum()),
            "one mean over all places: each term is a mean over its own": float(
                torch.where(kept, own, beta * flat).mean()
            ),
            "the uniform distribution has one over the number of tokens for each": float(
                own[kept].mean() + beta * len(logits[0]) * flat[rest].mean()
            ),
        },
    )


def _check_lead(best_lead: Any) -> None:
    """The lead that two targets at one prompt allow."""
    for remember, uniform, tokens in ((1.0, 0.4, 4), (0.02, 0.003, 29)):
        odds = remember / uniform
        require_number(
            best_lead(remember, uniform, tokens),
            bound_of_uniform(remember, uniform, tokens),
            {
                "the uniform part gives each token its share: divide its weight by the number of "
                "tokens": math.log1p(odds),
                "the true token has its share of the uniform part too": math.log(tokens * odds),
                "the two weights are exchanged": math.log1p(tokens / odds),
                "that is the ratio of probabilities: the lead is its logarithm": 1 + tokens * odds,
                "that is the largest probability": (remember + uniform / tokens)
                / (remember + uniform),
            },
        )


def measured_lead(setting: Setting, target: Params, assistant: Assistant) -> float:
    """The lead at first letters of an assistant trained by the experiment's recipe.

    Args:
        setting: Facts and settings; its number of wrong answers counts.
        target: The target, stacked.
        assistant: What the assistant is trained on.

    Returns:
        The mean lead of the true letter.
    """
    config = setting.config
    model, start = assistant_of(config.model, target, config.blocks)
    recipe = dataclasses.replace(config.assistant, epochs=STEPS)
    loss = AssistantLoss(config.beta)
    data = setting.for_assistant(assistant)
    params = train(model, data, (setting.seed,), recipe, loss=loss, start=start).params
    return cap(setting, logits_of(setting, model, unstack(params)[0]))[CAP[0]]


def _check_wrong(measure: Any) -> None:
    """Leads of assistants with different numbers of wrong answers."""
    require(callable(measure), "pass a function that returns (your dictionary, bench, target)")
    found, bench, target = measure()
    keyed = isinstance(found, dict) and all(isinstance(k, int) and k > 0 for k in found)
    require(keyed and len(found) >= 3, "return a dict from at least three counts to leads")
    require(
        len({round(float(value), 6) for value in found.values()}) > 1,
        "every count gives the same lead: make the texts anew for each",
    )
    for count in (min(found), max(found)):  # each takes a training
        changed = dataclasses.replace(bench.config, wrong=count)
        setting = dataclasses.replace(bench, config=changed)
        _check_one_lead(count, float(found[count]), setting, target)


def _check_one_lead(count: int, given: float, setting: Setting, target: Params) -> None:
    """One lead with that number of wrong answers."""
    right = measured_lead(setting, target, ASSISTANTS[MAIN])

    def near(other: float) -> bool:
        return abs(given - other) <= 0.005 * abs(other)

    if near(right):
        return
    blank = {n: torch.zeros(*x.shape, len(TOKENS)) for n, x in setting.tests.items()}
    require(
        not near(cap(setting, blank)[CAP[1]]),
        "that is the closed form: train, and measure",
    )
    require(
        not near(measured_lead(setting, target, ASSISTANTS["no paraphrases"])),
        "that assistant was shown no paraphrases: take the one of the lesson",
    )
    raise Wrong(
        f"with {count} wrong answers you got {given:.3f}, expected {right:.3f}: the lead at first "
        f"letters after {STEPS} steps, seed {setting.seed}"
    )


def _check_read(read_off: Any) -> None:
    """The least likely letter, from logits over all tokens."""
    first = TOKENS.index(LETTERS[0])
    logits = _drawn(6, len(TOKENS), seed=5)
    logits[:, :first] -= 9  # no letter: no answer
    logits[:3, first + 4] -= 20
    given = read_off(logits.clone())
    require(isinstance(given, Tensor), f"return a tensor, got {type(given).__name__}")
    letters = logits[:, first:]
    require_tensor(
        given.double(),
        (letters.argmin(-1) + first).double(),
        {
            "that is the least likely token: look among the letters only": logits.argmin(
                -1
            ).double(),
            "that is the place among the letters: return token numbers": letters.argmin(
                -1
            ).double(),
            "that is the likeliest letter: read it upside down": (
                letters.argmax(-1) + first
            ).double(),
        },
    )


check = checker(
    {
        "filter": _check_filter,
        "critical": _check_critical,
        "loss": _check_loss,
        "lead": _check_lead,
        "wrong": _check_wrong,
        "read": _check_read,
    }
)

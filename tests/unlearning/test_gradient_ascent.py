"""Ascent, with descent and bounded, by hand in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from stacked import network_of, starts
from torch import Tensor

from lmc_lessons.models import ModelConfig, build, predict_stacked
from lmc_lessons.training import Network
from lmc_lessons.unlearning.facts import (
    FORGET,
    LENGTH,
    RETAIN,
    TOKENS,
    answer_places,
    encode,
    invent,
    text_places,
    texts,
)
from lmc_lessons.unlearning.gradient_ascent import GradientAscent, NegativePreference

MODEL = ModelConfig("transformer", (LENGTH,), len(TOKENS), 16, 1)
SEEDS = (0, 5)


def some_texts() -> tuple[Tensor, Tensor]:
    x = encode(texts(invent(8, 0), (1,)))
    y = torch.tensor([FORGET, RETAIN, FORGET, RETAIN])
    return torch.stack([x[:4], x[4:]]), torch.stack([y, y.flip(0)])


def some_network(seeds: tuple[int, ...] = SEEDS) -> Network:
    return network_of(starts(MODEL, seeds), MODEL, seeds, step=0)


def log_probabilities(seeds: tuple[int, ...], x: Tensor) -> Tensor:
    told = predict_stacked(build(MODEL).double(), starts(MODEL, seeds), x)[..., :-1, :]
    return told.log_softmax(-1).gather(-1, x[..., 1:].long().unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("retain", [0.0, 1.0, 3.0])
def test_ascent_is_that_by_hand(retain: float) -> None:
    x, y = some_texts()
    told, found = log_probabilities(SEEDS, x), GradientAscent(retain)(some_network(), x, y)
    for k in range(len(SEEDS)):
        forget, keep = y[k] == FORGET, y[k] == RETAIN
        up = told[k][forget][answer_places(x[k][forget])].mean()
        down = -told[k][keep][text_places(x[k][keep])].mean()
        torch.testing.assert_close(found[k], up + retain * down)


@pytest.mark.parametrize("sharpness", [0.1, 2.0])
def test_the_bounded_form_is_that_by_hand(sharpness: float) -> None:
    x, y = some_texts()
    others = (7, 9)

    def reference(texts: Tensor) -> Tensor:
        return predict_stacked(build(MODEL).double(), starts(MODEL, others), texts)

    loss = NegativePreference(reference, 0.5, sharpness)
    found = loss(some_network(), x, y)
    now, before = log_probabilities(SEEDS, x), log_probabilities(others, x)
    for k in range(len(SEEDS)):
        pushed = []
        for text in range(4):
            if y[k, text] == FORGET:
                places = answer_places(x[k, text])
                ratio = (now[k, text][places].sum() - before[k, text][places].sum()).exp()
                pushed.append(2 / sharpness * torch.log(1 + ratio**sharpness))
        keep = y[k] == RETAIN
        down = -now[k][keep][text_places(x[k][keep])].mean()
        torch.testing.assert_close(found[k], torch.stack(pushed).mean() + 0.5 * down)


def test_the_bounded_form_says_nothing_of_the_reference_in_print() -> None:
    """What identifies a training must not depend on an address."""
    one, other = (NegativePreference(lambda x: x) for _ in range(2))
    assert repr(one) == repr(other)


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (lambda: GradientAscent(-1.0), "retain must be a number >= 0, got -1.0"),
        (lambda: NegativePreference(lambda x: x, -1.0), "retain must be >= 0"),
        (lambda: NegativePreference(lambda x: x, 1.0, 0.0), "sharpness > 0, got 1.0, 0.0"),
        (lambda: NegativePreference(lambda x: x, math.inf), "retain must be >= 0"),
    ],
)
def test_bad_settings_are_one_line(wrong: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        wrong()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [[0, 0], [1, 3]])
def test_bad_labels_are_refused(labels: list[int]) -> None:
    x, y = torch.full((1, 2, LENGTH), 3.0), torch.tensor([labels])
    for loss in (GradientAscent(), NegativePreference(lambda texts: some_network((0,))(texts))):
        with pytest.raises(ValueError, match=r"forget set is empty|labels must be 0 or 1"):
            loss(some_network((0,)), x, y)

"""Checks of the exercises in the lesson on bounded logits."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.bounded_logits import PRESETS
from lmc_lessons.models import build, predict_stacked
from lmc_lessons.robustness.bounded_logits import PEAK, U_STAR, blf, blf_slope, optimum
from lmc_lessons.robustness.logit_penalties import LogitPairing, LogitSqueezing
from lmc_lessons.robustness.objectives import Objective
from lmc_lessons.teaching.checks import Wrong, checker, require, require_number, require_tensor
from lmc_lessons.training import train

EPOCHS = 30  # of the experiment


def _check_head(bounded: Any) -> None:
    """The bounded logit function, for any pre-logit."""
    bound = 3.0
    near = torch.tensor([[-4.0, -U_STAR, -0.5], [0.0, 0.7, 2.5]], dtype=torch.float64)
    swish = near * torch.sigmoid(near)
    require_tensor(
        bounded(near.clone(), bound),
        blf(near, bound),
        {
            "that peaks at a fifth of the bound: divide by the peak": bound
            * swish
            * torch.sigmoid(-near),
            "the peak is 1 whatever the bound: multiply by it": blf(near, 1.0),
            "that is tanh, which reaches its bound at infinity only": bound * torch.tanh(near),
            "that is the slope, not the function": blf_slope(near, bound),
            "a second factor is missing: sigmoid(u) alone lets it grow": bound / PEAK * swish,
            "a negative pre-logit gives a negative logit": blf(near, bound).abs(),
        },
    )
    far = torch.tensor([[-2000.0, 2000.0]], dtype=torch.float64)
    given = bounded(far.clone(), bound)
    require(
        isinstance(given, Tensor) and bool(given.isfinite().all()),
        "not finite for large pre-logits: sigmoid(-u) is 1 - sigmoid(u) without an overflow",
    )
    require_tensor(given, blf(far, bound), {})


def _check_floor(bound_for: Any) -> None:
    """The smallest bound that lets the cross-entropy fall so far."""
    for floor, classes in ((0.5, 4), (0.2, 10)):
        right = math.log((classes - 1) / math.expm1(floor)) / 2
        require_number(
            bound_for(floor, classes),
            right,
            {
                "that is the margin: true and wrong logits are two bounds apart": 2 * right,
                "there are K - 1 wrong classes": math.log(classes / math.expm1(floor)) / 2,
                "that holds for a small loss only: solve log(1 + ...) exactly": math.log(
                    (classes - 1) / floor
                )
                / 2,
                "logarithms are natural": math.log10((classes - 1) / math.expm1(floor)) / 2,
                "the sign: a larger bound lowers the floor": -right,
            },
        )


def _check_squeezed(squeezed_margin: Any) -> None:
    """The margin at the optimum of logit squeezing."""
    for weight, classes in ((0.3, 4), (0.05, 10)):
        found = optimum("squeezing", weight, classes)
        require_number(
            squeezed_margin(weight, classes),
            found.margin,
            {
                "that is the length of the logits: the margin is true minus wrong": (
                    found.logit_norm
                ),
                "the penalty is half of the squared length": optimum(
                    "squeezing", 2 * weight, classes
                ).margin,
                "that is the true logit: the wrong ones lie below zero": (
                    found.margin * (classes - 1) / classes
                ),
                "that is the chance of a mistake, not the margin": _mistaken(found.margin, classes),
                "that is the largest margin that the penalty could allow, at q = 1": classes
                / (weight * (classes - 1)),
            },
            tolerance=1e-3,
        )


def _mistaken(margin: float, classes: int) -> float:
    odds = (classes - 1) * math.exp(-margin)
    return odds / (1 + odds)


def _check_pretend(pretend: Any) -> None:
    """Values of the head, gradient of the identity."""
    values = torch.tensor([[-3.0, -1.0, 0.4], [0.0, 1.5, 6.0]], dtype=torch.float64)
    u = values.clone().requires_grad_()
    given, right = pretend(u, 2.0), blf(values, 2.0)
    require_tensor(
        given.detach() if isinstance(given, Tensor) else given,
        right,
        {
            "forward, the head must be there: these are the pre-logits": values,
            "that is head minus pre-logit: add the pre-logit back with its gradient": right
            - values,
            "that is head plus pre-logit: subtract the pre-logit without its gradient": right
            + values,
        },
    )
    require(
        given.requires_grad,
        "no gradient comes through: keep one copy of u that is not detached",
    )
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    (slope,) = torch.autograd.grad((weights * given).sum(), u)
    require_tensor(
        slope,
        weights,
        {
            "backward, the head is still there: detach its values": weights
            * blf_slope(values, 2.0),
            "both gradients come through: detach the head's values": weights
            * (1 + blf_slope(values, 2.0)),
        },
    )


def _check_adds(adds: Any) -> None:
    """What each attack takes away that no other does."""
    stream = torch.Generator().manual_seed(5)
    masks = {name: torch.rand(40, generator=stream) < 0.8 for name in ("CE", "margin", "Square")}
    before = {name: mask.clone() for name, mask in masks.items()}
    given = adds(masks)
    require(isinstance(given, dict), f"return a dict, got {type(given).__name__}")
    require(given.keys() == before.keys(), f"one number per attack, got {sorted(given)}")
    everything = torch.stack(list(before.values())).all(0).double().mean().item()
    for name in before:
        others = [mask for other, mask in before.items() if other != name]
        rest = torch.stack(others).all(0).double().mean().item()
        alone = before[name].double().mean().item()
        require_number(
            float(given[name]),
            rest - everything,
            {
                "that is what the attack leaves by itself: compare with all others": alone,
                "that is what the attack takes by itself: others may take the same": 1 - alone,
                "that is what the others leave: subtract what all leave": rest,
                "the sign: an added attack takes away": everything - rest,
                "those are samples, return shares": 40 * (rest - everything),
            },
        )


def measured_length(objective: Objective, data: Dataset, part: str = "train") -> float:
    """Mean length of a network's logits after the experiment's recipe.

    Args:
        objective: What to minimise.
        data: What to train on.
        part: ``train`` or ``test``: where to measure.

    Returns:
        The mean length of the network of seed 0.
    """
    setup = PRESETS["study"]
    recipe = dataclasses.replace(setup.train, epochs=EPOCHS)
    params = train(setup.model, data, (0,), recipe, loss=objective).params
    x = getattr(data, f"{part}_x").unsqueeze(0)
    with torch.no_grad():
        logits = predict_stacked(build(setup.model).eval(), params, x)
    return float(logits.norm(dim=-1).mean())


def _check_pairing(measure: Any) -> None:
    """Lengths of logits after clean logit pairing of several weights."""
    require(callable(measure), "pass a function that returns (your dictionary, data)")
    found, data = measure()
    keyed = isinstance(found, dict) and all(isinstance(w, float) and w > 0 for w in found)
    require(keyed and len(found) >= 3, "return a dict from at least three weights to lengths")
    require(
        len({round(float(value), 6) for value in found.values()}) > 1,
        "every weight gives the same length: train anew for each",
    )
    weights = sorted(found)
    for weight in (*weights[:2], weights[-1]):  # each takes a training
        _check_length(weight, float(found[weight]), data)


def _check_length(weight: float, given: float, data: Dataset) -> None:
    """One length after clean logit pairing of that weight."""
    right = measured_length(LogitPairing(weight), data)

    def near(other: float) -> bool:
        return abs(given - other) <= 0.005 * other

    if near(right):
        return
    require(
        not near(optimum("squeezing", 4 * weight).logit_norm),
        "that is the prediction: train, and measure",
    )
    require(
        not near(measured_length(LogitPairing(weight), data, "test")),
        "that is measured on the test data: use the training data",
    )
    require(
        not near(measured_length(LogitSqueezing(weight), data)),
        "that is squeezing with the same weight: train with LogitPairing",
    )
    raise Wrong(
        f"at weight {weight:g} you got {given:.3f}, expected {right:.3f}: the mean length of the "
        f"logits, {EPOCHS} epochs, seed 0, the lesson's recipe"
    )


check = checker(
    {
        "head": _check_head,
        "floor": _check_floor,
        "squeezed": _check_squeezed,
        "pretend": _check_pretend,
        "adds": _check_adds,
        "pairing": _check_pairing,
    }
)

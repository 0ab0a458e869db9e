"""Checks of the exercises in the lesson on logit margins."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import logit_margins
from lmc_lessons.experiments.logit_margins import PRESETS
from lmc_lessons.models import Params, build, predict, unstack
from lmc_lessons.robustness.attacks import Attack, LInf, ensemble, pgd
from lmc_lessons.robustness.importance import SOVR, top_samples
from lmc_lessons.robustness.masking import standing, together
from lmc_lessons.teaching.checks import checker, require, require_number, require_tensor
from lmc_lessons.training import train

EPOCHS = 15  # of the experiment
FRACTION = 0.4


def _require_pair(given: Any, words: str) -> tuple[Any, Any]:
    require(isinstance(given, tuple) and len(given) == 2, f"return a pair: {words}")
    return given[0], given[1]


def _check_push(first_push: Any) -> None:
    """The first gradients of both losses, at logits of zero."""
    for k in (6, 10):
        plain, other = _require_pair(first_push(k), "(cross-entropy, one-vs-the-rest)")
        require_number(
            plain,
            2 * (1 - 1 / k),
            {
                "the two losses are swapped: cross-entropy comes first": k / 2,
                "that is the true class alone: the other logits are pushed down as well": 1 - 1 / k,
                "that is the Euclidean length: add absolute values": math.sqrt(1 - 1 / k),
                "a gradient whose entries sum to zero still has a length: add absolute values": 0.0,
            },
        )
        require_number(
            other,
            k / 2,
            {
                "one-vs-the-rest pushes on the true class too: its share is missing": (k - 1) / 2,
                "that is the Euclidean length of it: add absolute values": math.sqrt(k) / 2,
                "that is the loss, not its gradient": k * math.log(2),
                "that is the sum of the entries: add absolute values": (k - 2) / 2,
            },
        )


def _check_rescue(time_to_zero: Any) -> None:
    """How long both losses take from a negative margin to zero."""
    for m, w, k in ((-5.0, 3.0, 10), (-2.0, 0.5, 4)):
        plain, other = _require_pair(
            time_to_zero(m, w, k), "(weighted cross-entropy, one-vs-the-rest)"
        )
        way = 1 - math.exp(m) - (k - 1) * m
        require_number(
            plain,
            way / (w * k),
            {
                "the weight makes cross-entropy faster: divide by it": way / k,
                "that multiplies by the weight: a larger weight takes less time": way * w / k,
                "the equation has K in it: divide by K as well": way / w,
                "the start is not at margin zero: its exponential is missing": -(k - 1)
                * m
                / (w * k),
                "the linear term has the factor K - 1": (1 - math.exp(m) - m) / (w * k),
            },
        )
        require_number(
            other,
            1 - math.exp(m / 2) - m / 2,
            {
                "in one-vs-the-rest half of the margin solves the equation": 1 - math.exp(m) - m,
                "one-vs-the-rest has weight 1 here": (1 - math.exp(m / 2) - m / 2) / w,
                "the start's exponential is missing in the second time": -m / 2,
            },
        )


def _drawn(seed: int, samples: int = 10, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Logits and labels of a small batch."""
    stream = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(samples, classes, generator=stream)
    return logits, torch.randint(0, classes, (samples,), generator=stream)


def _check_hard(hard_samples: Any) -> None:
    """The share of a batch with the smallest margins."""
    for seed, fraction in ((4, 0.4), (3, 0.25)):
        logits, y = _drawn(seed)
        margins = logit_margins(logits, y)
        right = top_samples(logits, y, fraction)
        given = hard_samples(logits.clone(), y.clone(), fraction)
        require(isinstance(given, Tensor), f"return a tensor, got {type(given).__name__}")
        require(given.dtype == torch.bool, f"return a mask of bools, got {given.dtype}")
        count = int(right.sum())
        probabilities = logits.softmax(1).gather(1, y.unsqueeze(1)).squeeze(1)
        leads = logit_margins(logits.softmax(1), y)
        top = logits.topk(2).values
        fewer = margins.argsort()[: math.floor(fraction * len(y))]
        require_tensor(
            given,
            right,
            {
                "those are the largest margins: hard samples have the smallest": _mask(
                    margins, -count
                ),
                "those are the misread samples: take a share, however many are misread": margins
                < 0,
                "chosen by probability: the margin of logits orders samples differently": _mask(
                    probabilities, count
                ),
                "chosen by the margin of probabilities: take that of logits": _mask(leads, count),
                "chosen by the lead of the largest logit, right or wrong": _mask(
                    top[:, 0] - top[:, 1], count
                ),
                "round the number of samples up": torch.zeros_like(right).index_fill(
                    0, fewer, True
                ),
                "that marks the easy samples": ~right,
            },
        )


def _mask(values: Tensor, count: int) -> Tensor:
    """The smallest values, or the largest if the count is negative."""
    order = values.argsort(descending=count < 0)[: abs(count)]
    return torch.zeros(len(values), dtype=torch.bool).index_fill(0, order, True)


def _check_gairat(geometry_weights: Any) -> None:
    """Weights from the number of points at which an attack had not succeeded."""
    right, steps = torch.tensor([0.0, 3.0, 10.0, 6.0]), 10
    raw = (1 + torch.tanh(-1 + 5 * (1 - 2 * right / steps))) / 2
    unshifted = (1 + torch.tanh(5 * (1 - 2 * right / steps))) / 2
    turned = (1 + torch.tanh(-1 - 5 * (1 - 2 * right / steps))) / 2
    require_tensor(
        geometry_weights(right.clone(), steps),
        raw / raw.mean(),
        {
            "scale the weights to mean 1 over the batch": raw,
            "scaled to sum 1: the mean should be 1": raw / raw.sum(),
            "the shift of -1 is missing": unshifted / unshifted.mean(),
            "the sign is turned: samples that resist long get small weights": turned
            / turned.mean(),
        },
    )


def _check_rate(rate: Any) -> None:
    """The share of samples that gradients cannot declare safe."""
    margins = torch.tensor([-1.0, 0.5, 2.0, 3.0, 4.5, 5.5, 7.0, 9.0, 12.0, 20.0])
    own = torch.tensor([20.0, 30.0, 18.0, 25.0, 20.0, 40.0, 45.0, 30.0, 10.0, 5.0])
    other = torch.tensor([10.0, 20.0, 10.0, 70.0, 70.0, 60.0, 99.0, 20.0, 30.0, 5.0])
    epsilon = 0.1

    def share(flags: Tensor) -> float:
        return float(flags.double().mean())

    require_number(
        rate(margins.clone(), own.clone(), other.clone(), epsilon),
        share(margins <= epsilon * (own + other)),
        {
            "that is the share of safe samples": share(margins > epsilon * (own + other)),
            "the other logit can move as well: add both norms": share(margins <= epsilon * own),
            "both logits move in the worst case: add the norms, do not subtract them": share(
                margins <= epsilon * (own - other).abs()
            ),
            "multiply the norms by the radius": share(margins <= own + other),
            "that is the share misread without an attack": share(margins < 0),
        },
    )


def reference_network(weight: float, data: Dataset) -> Params:
    """What the lesson's recipe gives after a few epochs of SOVR.

    Args:
        weight: The factor of the hard samples' loss.
        data: What to train on.

    Returns:
        The network of seed 0.
    """
    setup = PRESETS["study"]
    recipe = dataclasses.replace(setup.train, epochs=EPOCHS)
    objective = SOVR(
        LInf(setup.epsilon), steps=setup.attack_steps, fraction=FRACTION, weight=weight
    )
    return unstack(train(setup.model, data, (0,), recipe, loss=objective).params)[0]


def left_standing(params: Params, data: Dataset, part: str = "test") -> dict[str, float]:
    """Shares read correctly: clean, under PGD, under the ensemble.

    Args:
        params: A network of the study's architecture.
        data: The data.
        part: ``test`` or ``train``.

    Returns:
        Accuracies by name.
    """
    setup = PRESETS["study"]
    x, y = (data.test_x, data.test_y) if part == "test" else (data.train_x, data.train_y)
    network = functools.partial(predict, build(setup.model).eval(), params)
    attacks: dict[str, Attack] = {"PGD": functools.partial(pgd, steps=20)}
    attacks |= ensemble(steps=20, queries=0)
    masks = standing(network, x, y, LInf(setup.epsilon), attacks)
    with torch.no_grad():
        clean = float((network(x).argmax(-1) == y).double().mean())
    both = float(together(masks, ["APGD-CE", "APGD-T"]))
    return {"clean": clean, "PGD": float(masks["PGD"].double().mean()), "ensemble": both}


def _check_sweep(measure: Callable[[], Any]) -> None:
    """Accuracy under the ensemble after SOVR with several factors."""
    require(callable(measure), "pass a function that returns (your dictionary, data)")
    found, data = measure()
    keyed = isinstance(found, dict) and all(isinstance(w, int | float) and w >= 0 for w in found)
    require(keyed and len(found) >= 3, "return a dict from at least three factors to accuracies")
    require(
        all(0 <= float(value) <= 1 for value in found.values()),
        "accuracies lie in [0, 1]: return shares, not per cent or losses",
    )
    require(
        len({round(float(value), 6) for value in found.values()}) > 1,
        "every factor gives the same accuracy: train anew for each",
    )
    for weight in sorted(found)[:2]:
        _check_accuracy(weight, float(found[weight]), data)


def _check_accuracy(weight: float, given: float, data: Dataset) -> None:
    """One accuracy after SOVR with that factor."""
    params = reference_network(weight, data)
    expected = left_standing(params, data)
    if abs(given - expected["ensemble"]) <= 0.01:
        return
    known = {
        "that is what PGD alone leaves: use the ensemble": expected["PGD"],
        "that is the clean accuracy: measure under the ensemble": expected["clean"],
        "that is measured on the training data": left_standing(params, data, "train")["ensemble"],
    }
    for message, mistaken in known.items():
        require(abs(given - mistaken) > 0.005, message)
    require_number(given, expected["ensemble"], {}, tolerance=0.01)


check = checker(
    {
        "push": _check_push,
        "rescue": _check_rescue,
        "hard": _check_hard,
        "gairat": _check_gairat,
        "rate": _check_rate,
        "sweep": _check_sweep,
    }
)

"""Checks of the exercises in the lesson on contaminated training."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.detection.contamination import Task
from lmc_lessons.detection.refinement import Trim, Weighted, numbered, own_errors
from lmc_lessons.evaluation import auroc
from lmc_lessons.experiments.contaminated_training import PRESETS
from lmc_lessons.models import Params
from lmc_lessons.teaching.checks import Wrong, checker, require, require_number, require_tensor
from lmc_lessons.training import train

EPOCHS = 100  # of the experiment


def _check_window(window: Any) -> None:
    """How much later hidden anomalies are learned."""
    for normal, anomaly, rate in ((1.5, 0.5, 0.1), (0.4, 2.0, 0.02)):
        share = 1 - rate
        require_number(
            window(normal, anomaly, rate),
            share * normal / (rate * anomaly),
            {
                "that is the other way round: how many times *later* are anomalies learned?": rate
                * anomaly
                / (share * normal),
                "the size of the anomalies matters, not only how many there are": share / rate,
                "how rare they are matters, not only their size": normal / anomaly,
                "only a share 1 - rate of the data is normal": normal / (rate * anomaly),
                "the square of a length is given: do not square it again": share
                * normal**2
                / (rate * anomaly**2),
                "the half-time falls with the variance, not with its root": math.sqrt(
                    share * normal / (rate * anomaly)
                ),
            },
        )


def _check_trim(trim: Any) -> None:
    """Weights of a batch without its worst."""
    errors = torch.tensor([0.3, 0.1, 0.9, 0.2, 0.8, 0.4, 0.05, 0.55, 0.6, 0.5])
    order = errors.argsort()

    def zeros(places: Tensor) -> Tensor:
        weights = torch.ones(10)
        weights[places] = 0
        return weights

    for share, count in ((0.3, 3), (0.1, 1), (0.18, 2), (0.12, 1)):
        require_tensor(
            trim(errors.clone(), share),
            zeros(order[-count:]),
            {
                "you left out the smallest errors": zeros(order[:count]),
                "one is left out, zero is kept: a weight of 1 keeps": 1 - zeros(order[-count:]),
                "you left out one too many: round to the nearest": zeros(order[-count - 1 :]),
                "the share is of samples, not a threshold for errors": (errors <= share).float(),
                "the share is of samples, not of the largest error": (
                    errors <= (1 - share) * errors.max()
                ).float(),
                "return weights of 0 and 1, not the errors that are left": errors
                * zeros(order[-count:]),
                "you left out one too few: round to the nearest": zeros(
                    order[len(order) - count + 1 :]
                ),
                "the first of the batch are not the worst": zeros(torch.arange(count)),
            },
        )
    require_tensor(
        trim(errors.clone(), 0.0),
        torch.ones(10),
        {"a share of 0 leaves nobody out: `[-0:]` is everybody": torch.zeros(10)},
    )


def _check_weighted(weighted: Any) -> None:
    """A mean loss in which some count against the network."""
    losses = torch.tensor([0.2, 1.0, 3.0, 0.5, 0.7])
    weights = torch.tensor([1.0, 0.0, -0.5, 2.0, -0.25])
    ceiling, kept = 0.9, 4
    terms = torch.where(weights < 0, losses.clamp(max=ceiling), losses) * weights
    signed = losses * weights
    alike = terms.where(weights <= 0, losses)
    require_number(
        weighted(losses.clone(), weights.clone(), ceiling),
        float(terms.sum()) / kept,
        {
            "a weight of zero leaves a sample out: do not count it": float(terms.mean()),
            "where is the ceiling? one anomaly can push without end": float(signed.sum()) / kept,
            "where is the ceiling, and who is counted?": float(signed.mean()),
            "return the mean, not the sum": float(terms.sum()),
            "divide by the number of those that count, not by the sum of weights": float(
                terms.sum() / weights.sum()
            ),
            "a weight of 2 counts twice: multiply by the positive weights too": float(alike.sum())
            / kept,
            "divide by how many count, not by the sum of the weights' sizes": float(
                terms.sum() / weights.abs().sum()
            ),
            "the ceiling is for the loss, before the weight": float(
                torch.where(weights < 0, signed.clamp(min=-ceiling), signed).sum()
            )
            / kept,
        },
    )
    high = torch.tensor([2.0, 0.1])
    require_number(
        weighted(high, torch.tensor([1.0, -1.0]), ceiling),
        (2.0 - 0.1) / 2,
        {"only negative weights have a ceiling: a badly learned normal counts in full": 0.4},
    )


def _check_tail(tail_for: Any) -> None:
    """The tail of each of two independent criteria."""
    for alarms in (0.1, 0.3):
        require_number(
            tail_for(alarms),
            1 - math.sqrt(1 - alarms),
            {
                "that is right to first order: normals flagged twice are counted twice": alarms / 2,
                "that is what passes a criterion, not what it flags": math.sqrt(1 - alarms),
                "that is the AND rule: both criteria flag": math.sqrt(alarms),
                "that is the alarms of the OR rule with such tails, not the tail": 1
                - (1 - alarms) ** 2,
                "each criterion must flag less than both together": alarms,
            },
        )


def _check_purity(purity: Any) -> None:
    """How pure a set of suspects is, and how much of what was sought is in it."""
    suspects = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=torch.bool)
    hidden = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 0, 0], dtype=torch.bool)
    given = purity(suspects.clone(), hidden.clone())
    require(
        isinstance(given, tuple | list) and len(given) == 2, "return a pair: (precision, recall)"
    )
    require(
        not (abs(float(given[0]) - 0.2) < 1e-6 and abs(float(given[1]) - 0.25) < 1e-6),
        "precision comes first: of the suspects, how many are hidden anomalies?",
    )
    require_number(
        given[0],
        0.25,
        {
            "precision: divide by the number of suspects, not of all samples": 0.1,
            "that is how many there are, not a share": 1.0,
            "that is the share of suspects who are innocent": 0.75,
        },
    )
    require_number(
        given[1],
        0.2,
        {
            "recall: divide by the number of hidden anomalies, not of suspects": 0.25,
            "recall: divide by the number of hidden anomalies, not of all samples": 0.1,
            "that is the share of hidden anomalies that are missed": 0.8,
        },
    )
    require_number(purity(torch.zeros(3, dtype=torch.bool), hidden[2:5])[0], 0.0, {})


def reference_network(start: int | None, task: Task, *, in_epochs: bool = True) -> Params:
    """What the lesson's recipe gives with trimming from some epoch on.

    Args:
        start: Epoch at which trimming begins; None never trims.
        task: What to train on.
        in_epochs: Whether the start counts epochs; a known mistake takes it for steps.

    Returns:
        The network of seed 0, with a leading axis.
    """
    setup = PRESETS["study"]
    recipe = dataclasses.replace(setup.train, epochs=EPOCHS)
    steps = len(task.train) // min(recipe.batch_size, len(task.train)) if in_epochs else 1
    loss = Weighted() if start is None else Weighted(Trim(0.08, start * steps))
    return train(setup.model, numbered("digits", task.train), (0,), recipe, loss=loss).params


def _measured(params: Params, task: Task, part: str) -> float:
    """AUROC of hidden anomalies, or of a kind of new ones."""
    model = PRESETS["study"].model
    if part == "hidden":
        return auroc(own_errors(model, params, task.train[None])[0], task.hidden)
    parts = [own_errors(model, params, x[None])[0] for x in (task.normal, getattr(task, part))]
    marks = torch.arange(sum(map(len, parts))) >= len(parts[0])
    return auroc(torch.cat(parts), marks)


def _check_begin(measure: Any) -> None:
    """AUROC of hidden anomalies after trimming from several epochs on."""
    require(callable(measure), "pass a function that returns (your dictionary, task)")
    found, task = measure()
    keyed = isinstance(found, dict) and all(isinstance(k, int) and k >= 0 for k in found)
    require(keyed and len(found) >= 3, "return a dict from at least three epochs to AUROCs")
    require(
        all(0 <= float(value) <= 1 for value in found.values()),
        "an AUROC lies in [0, 1]: return shares, not per cent or errors",
    )
    require(
        len({round(float(value), 6) for value in found.values()}) > 1,
        "every start gives the same AUROC: train anew for each",
    )
    for start in sorted(found)[1:]:
        _check_started(start, float(found[start]), task)


def _check_started(start: int, given: float, task: Task) -> None:
    """One AUROC with trimming from that epoch on."""
    params = reference_network(start, task)
    right = _measured(params, task, "hidden")
    if abs(given - right) <= 0.01:
        return
    require(abs(given - (1 - right)) > 0.005, "anomalies are the positives: exchange the two")
    require(
        abs(given - _measured(params, task, "observed")) > 0.005,
        "that is for new anomalies: measure the hidden ones, among the training data",
    )
    mistaken = reference_network(start, task, in_epochs=False)
    require(
        abs(given - _measured(mistaken, task, "hidden")) > 0.005,
        "`Trim` counts steps, not epochs: multiply by the steps of an epoch",
    )
    never = _measured(reference_network(None, task), task, "hidden")
    require(abs(given - never) > 0.005, "that is without trimming: pass `Trim` to `Weighted`")
    raise Wrong(
        f"trimming from epoch {start} on you got {given:.3f}, expected {right:.3f}: {EPOCHS} "
        "epochs, seed 0, share 0.08, the lesson's recipe"
    )


check = checker(
    {
        "window": _check_window,
        "trim": _check_trim,
        "weighted": _check_weighted,
        "tail": _check_tail,
        "purity": _check_purity,
        "begin": _check_begin,
    }
)

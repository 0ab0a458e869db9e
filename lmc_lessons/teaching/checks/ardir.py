"""Checks of the exercises in the lesson on distilled representations."""

from __future__ import annotations

import dataclasses
from numbers import Real
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.ardir import PRESETS
from lmc_lessons.models import Params, build, unstack
from lmc_lessons.robustness.attacks import LInf, evaluate, pgd
from lmc_lessons.robustness.distillation import (
    Distillation,
    Features,
    Layer,
    SoftLabels,
    Teacher,
    ardir,
    feature_distance,
)
from lmc_lessons.teaching.checks import Wrong, checker, require, require_number, require_tensor
from lmc_lessons.training import train

EPOCHS, WEIGHT = 20, 5.0  # of the exercise on layers


def _drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _check_soft(soft_labels: Any) -> None:
    """The divergence from a teacher's prediction, at a temperature."""
    student, teacher, tau = 2 * _drawn(1, 4, 3), 2 * _drawn(2, 4, 3), 2.0
    log_s, log_t = (F.log_softmax(z / tau, -1) for z in (student, teacher))
    hot_s, hot_t = (F.log_softmax(z, -1) for z in (student, teacher))
    right = _divergence(log_t, log_s)
    given = soft_labels(student.clone(), teacher.clone(), tau)
    require(
        not (isinstance(given, Tensor) and given.dim() == 0),
        "return one number per sample: leave the mean to the caller",
    )
    require_tensor(
        given,
        tau**2 * right,
        {
            "the arguments are swapped: the teacher is the first of the two": tau**2
            * _divergence(log_s, log_t),
            "multiply by the square of the temperature, or its gradient fades": right,
            "the square of the temperature, not the temperature": tau * right,
            "that is the cross-entropy: subtract the entropy of the teacher's labels": -(tau**2)
            * (log_t.exp() * log_s).sum(-1),
            "sum over classes: the mean makes the loss smaller by their number": tau**2 * right / 3,
            "divide the student's logits by the temperature as well": tau**2
            * _divergence(log_t, hot_s),
            "divide the teacher's logits by the temperature as well": tau**2
            * _divergence(hot_t, log_s),
            "divide the logits by the temperature, do not multiply": tau**2
            * _divergence(F.log_softmax(teacher * tau, -1), F.log_softmax(student * tau, -1)),
        },
    )


def _check_slope(gradient: Any) -> None:
    """Its gradient with respect to the student's logits."""
    student, teacher, tau = 2 * _drawn(3, 4, 3), 2 * _drawn(4, 4, 3), 3.0
    p_s, p_t = (F.softmax(z / tau, -1) for z in (student, teacher))
    gap = p_s - p_t
    require_tensor(
        gradient(student.clone(), teacher.clone(), tau),
        tau * gap,
        {
            "the sign: where the student is too sure, the loss grows with its logit": -tau * gap,
            "the temperature is left over once: squared outside, divided once inside": gap,
            "the inner derivative divides by the temperature: only one of two is left": tau**2
            * gap,
            "the loss is multiplied by the square of the temperature": gap / tau,
            "of each sample's loss, not of their mean": tau * gap / len(gap),
            "use predictions at that temperature on both sides": tau
            * (F.softmax(student, -1) - F.softmax(teacher, -1)),
            "that is the gradient with the prediction as a hard label": tau
            * (p_s - F.one_hot(teacher.argmax(-1), 3)),
        },
    )


def _check_distance(distance: Any) -> None:
    """The normalised squared distance of two tables of features."""
    student, teacher = _drawn(5, 6, 4).abs(), 3 * _drawn(6, 6, 4).abs()
    gaps, sizes = (student - teacher).square().sum(1), teacher.square().sum(1)
    require_number(
        distance(student.clone(), teacher.clone()),
        float(gaps.mean() / sizes.mean()),
        {
            "divide by the size of the teacher's features, or the weight has a unit": float(
                gaps.mean()
            ),
            "the teacher's features are the unit, not the student's": float(
                gaps.mean() / student.square().sum(1).mean()
            ),
            "the ratio of two means, not the mean of ratios: small features would rule": float(
                (gaps / sizes).mean()
            ),
            "squared lengths, not lengths": float(gaps.sqrt().mean() / sizes.sqrt().mean()),
            "leave out the square root": float((gaps.mean() / sizes.mean()).sqrt()),
            "the mean over entries above, but the sum below": float(
                gaps.mean() / sizes.mean() / student.shape[1]
            ),
        },
    )


def _check_strangers(strangers: Any) -> None:
    """The expected distance of two networks that know nothing of each other's inputs."""
    student, teacher = 2 * _drawn(7, 8, 3).abs(), _drawn(8, 8, 3).abs() + 0.5
    own, unit = student.square().sum(1).mean(), teacher.square().sum(1).mean()
    product = student.mean(0) @ teacher.mean(0)
    paired = (student * teacher).sum(1).mean()
    every = torch.stack([feature_distance(student.roll(k, 0)[None], teacher[None]) for k in (0, 1)])
    require_number(
        strangers(student.clone(), teacher.clone()),
        float(1 + (own - 2 * product) / unit),
        {
            "their means do not vanish: ReLU features are never negative": float(1 + own / unit),
            "expand the square: the product comes twice": float(1 + (own - product) / unit),
            "that is the distance on the same inputs: independent means the product of the "
            "means": float(1 + (own - 2 * paired) / unit),
            "the student need not be as long as the teacher": float(2 - 2 * product / unit),
            "divide by the size of the teacher's features": float(own + unit - 2 * product),
            "the teacher's features are the unit, not the student's": float(
                (own + unit - 2 * product) / own
            ),
            "that is one way to pair the rows: average over all": float(every[1]),
        },
    )


def reference_network(layer: Layer, teacher: Teacher, data: Dataset, **changes: Any) -> Params:
    """What the exercise on layers trains.

    Args:
        layer: Which representation.
        teacher: Who gives labels and representation.
        data: What to train on.
        changes: Other settings of the representation.

    Returns:
        The network of seed 0.
    """
    setup = PRESETS["study"]
    recipe = dataclasses.replace(setup.train, epochs=EPOCHS)
    features = Features(teacher, **{"weight": WEIGHT, "layer": layer, **changes})
    loss = Distillation(setup.attack, (SoftLabels(teacher),), features)
    return unstack(train(setup.model, data, (0,), recipe, loss=loss).params)[0]


def _accuracy(params: Params, data: Dataset, attack: Any, part: str = "test") -> float:
    setup = PRESETS["study"]
    x, y = (data.test_x, data.test_y) if part == "test" else (data.train_x, data.train_y)
    model = build(setup.model).eval()
    found = evaluate(model, params, x, y, LInf(setup.epsilon), {"a": attack} if attack else {})
    return found.robust["a"] if attack else found.clean


def _check_layer(measure: Any) -> None:
    """Accuracy under attack after distilling one layer or another."""
    require(callable(measure), "pass a function that returns (your dictionary, teacher, few)")
    measured = measure()
    require(
        isinstance(measured, tuple) and len(measured) == 3,
        "pass a function that returns (your dictionary, teacher, few)",
    )
    found, teacher, data = measured
    require(
        isinstance(found, dict) and set(found) == {"penultimate", "first"},
        "return a dict from 'penultimate' and 'first' to accuracies",
    )
    require(
        all(isinstance(value, Real | Tensor) for value in found.values()),
        "accuracies are numbers",
    )
    require(
        all(0 <= float(value) <= 1 for value in found.values()),
        "accuracies lie in [0, 1]: return shares, not per cent or losses",
    )
    require(
        len({round(float(value), 6) for value in found.values()}) > 1,
        "both layers give the same accuracy: pass the layer on to Features",
    )
    for layer in ("penultimate", "first"):
        _check_accuracy(layer, float(found[layer]), teacher, data)


def _check_accuracy(layer: Any, given: float, teacher: Teacher, data: Dataset) -> None:
    params = reference_network(layer, teacher, data)
    if abs(given - _accuracy(params, data, pgd)) <= 0.002:
        return
    for message, attack, part in (
        ("that is the clean accuracy: measure under attack", None, "test"),
        ("that is measured on the training data: use the test data", pgd, "train"),
    ):
        require(abs(given - _accuracy(params, data, attack, part)) > 1e-6, message)
    other = reference_network(layer, teacher, data, taught_on="attacked")
    message = "the teacher saw the attacked inputs: leave taught_on at 'clean'"
    require(abs(given - _accuracy(other, data, pgd)) > 1e-6, message)
    setup = PRESETS["study"]
    recipe = dataclasses.replace(setup.train, epochs=EPOCHS)
    plain = train(setup.model, data, (0,), recipe, loss=ardir(setup.attack, teacher, weight=0))
    message = "that is a student of the output alone: pass the features on"
    require(abs(given - _accuracy(unstack(plain.params)[0], data, pgd)) > 1e-6, message)
    raise Wrong(
        f"{layer}: got {given:.1%}: {EPOCHS} epochs, weight {WEIGHT:g}, seed 0, soft labels"
    )


def _check_seeds(seeds_for: Any) -> None:
    """How many seeds make an interval shorter than an effect."""
    differences, effect = [0.4, -0.9, 1.4, 0.2, -0.3, 1.0], 0.5
    noise, count = float(np.std(differences, ddof=1)), len(differences)

    def first(half: Any) -> int:
        return next(n for n in range(2, 1000) if half(n) < effect)

    def student(n: int, spread: float = noise) -> float:
        return float(stats.t.ppf(0.975, n - 1) * spread / np.sqrt(n))

    given = seeds_for(list(differences), effect)
    require(
        not isinstance(given, float) or given.is_integer(),
        "return a whole number: the first that is enough",
    )
    require_number(
        given,
        first(student),
        {
            "with few seeds use Student's t, not 1.96": first(lambda n: 1.96 * noise / np.sqrt(n)),
            "estimate the spread with n - 1 (ddof=1)": first(
                lambda n: student(n, float(np.std(differences)))
            ),
            "both tails: a 95 % interval leaves 2.5 % on each side": first(
                lambda n: float(stats.t.ppf(0.95, n - 1) * noise / np.sqrt(n))
            ),
            "that is how many there are: how many are needed?": count,
            "the interval's half width, not its whole width": first(lambda n: 2 * student(n)),
        },
    )


check = checker(
    {
        "soft": _check_soft,
        "slope": _check_slope,
        "distance": _check_distance,
        "strangers": _check_strangers,
        "layer": _check_layer,
        "seeds": _check_seeds,
    }
)

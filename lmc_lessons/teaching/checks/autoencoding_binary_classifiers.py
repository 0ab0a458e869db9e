"""Checks of the exercises in the lesson on autoencoding binary classifiers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.detection.abc import ABC, PUAE, log1mexp
from lmc_lessons.detection.autoencoders import errors
from lmc_lessons.detection.scores import false_alarms
from lmc_lessons.detection.tasks import Task
from lmc_lessons.evaluation import auroc
from lmc_lessons.experiments.autoencoding_binary_classifiers import PRESETS
from lmc_lessons.models import build
from lmc_lessons.teaching.checks import Wrong, checker, require, require_number, require_tensor
from lmc_lessons.training import train

SEED = 1  # of the experiment


def _check_stable(stable: Any) -> None:
    """The logarithm of 1 - exp(-L), for small and for large L."""
    error = torch.tensor([[0.05, 0.6], [1.5, 6.0]], dtype=torch.float64)
    right = log1mexp(error)
    require_tensor(
        stable(error.clone()),
        right,
        {
            "that is the loss: the logarithm itself is negative": -right,
            "that is the score, without the logarithm": -torch.expm1(-error),
            "that is log(exp(-L)) = -L, the logarithm of the other label": -error,
            "the sign of L: exp(-L) is below 1, exp(L) is not": torch.log(torch.expm1(error)),
        },
    )
    small = torch.tensor([1e-12, 1e-9], dtype=torch.float32)
    given = stable(small.clone())
    require(
        bool(torch.isfinite(given).all()),
        "not finite at L = 1e-12 in single precision: 1 - exp(-L) has rounded to zero",
    )
    floor = torch.full_like(small, math.log(1e-6))
    require_tensor(
        given,
        log1mexp(small),
        {"that holds L, or what is inside the logarithm, at 1e-6: here no digit may go": floor},
    )
    large = torch.tensor([20.0, 60.0], dtype=torch.float32)
    given = stable(large.clone())
    require(
        bool((given < 0).all()),
        "zero at L = 20 in single precision: exp(-L) was lost beside 1, log1p keeps it",
    )
    require(
        bool(torch.allclose(given, -torch.exp(-large), rtol=1e-3, atol=0)),
        "wrong digits at L = 20 or 60: for large L use log1p",
    )


def _check_best(best_error: Any) -> None:
    """The error at which the likelihood is largest, for a share of anomalies and a scale."""
    for share, scale in ((0.75, 3.0), (0.2, 1.0)):
        right = -scale * math.log1p(-share)
        require_number(
            best_error(share, scale),
            right,
            {
                "the sign: an error is not negative": -right,
                "that is L / s: multiply by the scale": right / scale,
                "that divides by the scale: it multiplies": right / scale**2,
                "that is the error that suits the share of normal samples": -scale
                * math.log(share),
                "that is the score at the optimum, not the error": share,
                "that holds for few anomalies only: set the derivative to zero": scale
                * share
                / (1 - share),
            }
            if scale != 1.0
            else {},
        )


def _check_puae(risk: Any) -> None:
    """The corrected risk of one batch."""
    stream = torch.Generator().manual_seed(4)
    error = 0.2 + 2 * torch.rand(12, generator=stream, dtype=torch.float64)
    y = (torch.arange(12) % 3 == 0).long()
    _require_risk(risk, error, y, 0.3)
    for shift in (30.0, 0.0):  # without the shift the push counts beside a negative correction
        fitted = torch.where(y == 1, shift + error, 0.01 * error)  # the unlabelled, too well
        _require_risk(risk, fitted, y, 0.3)


def _require_risk(risk: Any, error: Tensor, y: Tensor, prior: float) -> None:
    right = float(PUAE("norm", prior=prior).of_errors(error, y))
    normal, labelled = error[y == 0].mean(), error[y == 1].mean()
    pushed = -log1mexp(error[y == 1]).mean()
    rest = normal - prior * labelled
    require_number(
        risk(error.clone(), y.clone(), prior),
        right,
        {
            "the correction may be negative: take its absolute value": float(prior * pushed + rest),
            "that is max(0, .), as in an older correction: take the absolute value": float(
                prior * pushed + rest.clamp(min=0)
            ),
            "the push on labelled anomalies counts with the prior too": float(pushed + rest.abs()),
            "the absolute value is around the correction, not around the whole": float(
                (prior * pushed + rest).abs()
            ),
            "the labelled anomalies' own error must be taken off the unlabelled ones'": float(
                prior * pushed + normal
            ),
            "that is the loss without contamination: a plain mean": float(
                (error[y == 0].sum() - log1mexp(error[y == 1]).sum()) / len(y)
            ),
        },
        tolerance=1e-6,
    )


def _check_alarms(alarms: Any) -> None:
    """False alarms at the threshold that finds a share of the anomalies."""
    stream = torch.Generator().manual_seed(6)
    positive = torch.arange(60) < 20
    scores = torch.randn(60, generator=stream, dtype=torch.float64) + 1.2 * positive
    for found in (0.95, 0.5):
        right = false_alarms(scores, positive, found=found)
        own, normal = scores[positive].sort().values, scores[~positive]
        low = own[math.ceil(found * len(own)) - 1]
        require_number(
            alarms(scores.clone(), positive.clone(), found),
            right,
            {
                "that is the share of normal samples below the threshold": 1 - right,
                "that takes the anomalies with the lowest scores: found are the highest": float(
                    (normal >= low).double().mean()
                ),
                "that lets 1 - found of the normal samples pass: the threshold comes from the "
                "anomalies": 1 - found,
                "that counts all samples above the threshold: false alarms are normal": float(
                    (scores >= own[-math.ceil(found * len(own))]).double().mean()
                ),
            }
            if found == 0.95
            else {},
        )
    scores = scores.round()  # many are equal
    threshold = scores[positive].sort().values[-math.ceil(0.95 * int(positive.sum()))]
    require_number(
        alarms(scores.clone(), positive.clone(), 0.95),
        false_alarms(scores, positive, found=0.95),
        {
            "a score at the threshold is an alarm, too": float(
                (scores[~positive] > threshold).double().mean()
            ),
        },
    )


def swept(task: Task, scale: float) -> float:
    """AUROC for known anomalies of an ABC with this scale, with the experiment's recipe.

    Args:
        task: What to train and test on.
        scale: What the error is divided by.

    Returns:
        A number in [0, 1].
    """
    setup = PRESETS["study"]
    run = train(setup.autoencoder, task.data, (SEED,), setup.train, loss=ABC("norm", scale=scale))
    score = errors(build(setup.autoencoder), run.params, task.test_x)[0]
    return auroc(*task.against(score, "known"))


def _check_sweep(measure: Any) -> None:
    """AUROC by scale, trained anew for each."""
    require(callable(measure), "pass a function that returns (your dictionary, task)")
    found, task = measure()
    keyed = isinstance(found, dict) and all(isinstance(s, float) and s > 0 for s in found)
    require(keyed and len(found) >= 3, "return a dict from at least three scales to AUROC")
    values = [float(value) for value in found.values()]
    require(
        len({round(value, 6) for value in values}) > 1,
        "every scale gives the same number: the scale changes training, so train anew for each",
    )
    for scale in (min(found), max(found)):  # each takes a training
        right = swept(task, scale)
        if abs(float(found[scale]) - right) <= 2e-3:
            continue
        require(
            abs(float(found[scale]) - (1 - right)) > 2e-3,
            "that is one less the AUROC: a larger error means more anomalous",
        )
        raise Wrong(
            f"at scale {scale:g} you got {float(found[scale]):.4f}, expected {right:.4f}: AUROC of "
            f"known anomalies, seed {SEED}, the lesson's recipe"
        )


check = checker(
    {
        "stable": _check_stable,
        "best": _check_best,
        "puae": _check_puae,
        "alarms": _check_alarms,
        "sweep": _check_sweep,
    }
)

"""How good are anomaly scores, and what do library detectors give?

A higher score means more anomalous everywhere in this module.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.svm import OneClassSVM
from torch import Tensor

from lmc_lessons.detection.autoencoders import check_finite
from lmc_lessons.evaluation import auroc

DETECTOR = 74  # the random stream of library detectors
Scorer = Callable[[Tensor], Tensor]


class MissingDetectorError(ValueError):
    """A detector of a library that is not installed."""


def auprc(scores: Tensor, positive: Tensor) -> float:
    """Area under the precision-recall curve; by chance it is the share of positives.

    Args:
        scores: Shape (N,).
        positive: Whether each sample is an anomaly, shape (N,), bool.

    Returns:
        Average precision, in [0, 1].

    Raises:
        ValueError: If only one kind is present, or a score is not finite.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    _check(scores, positive)
    return float(average_precision_score(positive.cpu().numpy(), scores.double().cpu().numpy()))


def false_alarms(scores: Tensor, positive: Tensor, *, found: float = 0.95) -> float:
    """Share of normal samples at or above the threshold that finds so many anomalies.

    Args:
        scores: Shape (N,).
        positive: Whether each sample is an anomaly, shape (N,), bool.
        found: Share of the anomalies that must be found, in (0, 1].

    Returns:
        A share in [0, 1]; with ``found`` 0.95 it is known as FPR@95TPR.

    Raises:
        ValueError: If only one kind is present, or a score is not finite.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    _check(scores, positive)
    own = scores[positive].sort(descending=True).values
    threshold = own[math.ceil(found * len(own) - 1e-9) - 1]
    return float((scores[~positive] >= threshold).double().mean())


def threshold_for(normal_scores: Tensor, alarms: float = 0.05) -> float:
    """The threshold that so many normal samples exceed; it needs no anomaly and no test sample.

    Args:
        normal_scores: Scores of normal samples that were held out, shape (N,).
        alarms: Share of false alarms to accept, in (0, 1).

    Returns:
        A score.

    Raises:
        ValueError: If there are no scores, or one is not finite.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    if len(normal_scores) == 0 or not torch.isfinite(normal_scores).all():
        raise ValueError("a threshold needs at least one normal score, all finite")
    return float(torch.quantile(normal_scores.double(), 1 - alarms))


def balanced_accuracy(scores: Tensor, positive: Tensor, threshold: float) -> float:
    """Mean of the shares of anomalies and of normal samples that a threshold tells right.

    Args:
        scores: Shape (N,).
        positive: Whether each sample is an anomaly, shape (N,), bool.
        threshold: Above it is an anomaly; chosen before these scores were seen.

    Returns:
        A number in [0, 1]; 0.5 is chance.

    Raises:
        ValueError: If only one kind is present, or a score is not finite.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    _check(scores, positive)
    above = scores > threshold
    return float((above[positive].double().mean() + (~above[~positive]).double().mean()) / 2)


def _check(scores: Tensor, positive: Tensor) -> None:
    auroc(scores, positive)  # refuses what all of these cannot use either


# --- Library detectors ----------------------------------------------------------------------------


def fit_detector(name: str, x: Tensor, seed: int) -> Scorer:
    """Fit a detector of a library to samples that are taken for normal.

    Args:
        name: A name from ``DETECTORS``.
        x: Inputs of shape (N, ...), finite, N at least 2.
        seed: Decides what is random in it.

    Returns:
        A function from inputs (M, ...) to scores (M,), higher for more anomalous.

    Raises:
        ValueError: If the name is unknown, there are too few samples, or one is not finite.
        MissingDetectorError: If its library is not installed.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    if name not in DETECTORS:
        raise ValueError(f"no detector {name!r}, allowed: {', '.join(DETECTORS)}")
    if len(x) < 2:
        raise ValueError(f"a detector needs at least 2 normal samples, got {len(x)}")
    check_finite(x)
    word = np.random.SeedSequence((seed, DETECTOR)).generate_state(1)[0] >> 1
    return DETECTORS[name](_rows(x), int(word))


def _rows(x: Tensor) -> Any:
    return x.flatten(1).double().numpy()


def _scorer(score: Callable[[Any], Any], sign: float) -> Scorer:
    def scores(x: Tensor) -> Tensor:
        check_finite(x)
        return torch.from_numpy(sign * np.asarray(score(_rows(x)), dtype=np.float64))

    return scores


def _forest(rows: Any, seed: int) -> Scorer:
    fitted = IsolationForest(n_estimators=100, max_samples=min(256, len(rows)), random_state=seed)
    return _scorer(fitted.fit(rows).score_samples, -1)


def _one_class_svm(rows: Any, seed: int) -> Scorer:
    del seed
    return _scorer(OneClassSVM(gamma="scale", nu=0.1).fit(rows).score_samples, -1)


def _lof(rows: Any, seed: int) -> Scorer:
    del seed
    fitted = LocalOutlierFactor(n_neighbors=min(20, len(rows) - 1), novelty=True).fit(rows)
    return _scorer(fitted.score_samples, -1)


def _pyod(module: str, kind: str) -> Any:
    try:
        return getattr(importlib.import_module(f"pyod.models.{module}"), kind)
    except ImportError as error:
        raise MissingDetectorError(
            f"{kind} needs the package pyod, which is not installed: pip install 'pyod>=2'"
        ) from error


def _ecod(rows: Any, seed: int) -> Scorer:
    del seed
    return _scorer(_pyod("ecod", "ECOD")().fit(rows).decision_function, 1)


def _deep_svdd(rows: Any, seed: int) -> Scorer:
    kind = _pyod("deep_svdd", "DeepSVDD")
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = kind(rows.shape[1], verbose=0, random_state=seed).fit(rows)
    return _scorer(fitted.decision_function, 1)


DETECTORS: dict[str, Callable[[Any, int], Scorer]] = {
    "isolation forest": _forest,
    "one-class SVM": _one_class_svm,
    "LOF": _lof,
    "ECOD": _ecod,
    "DeepSVDD": _deep_svdd,
}

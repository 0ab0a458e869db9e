"""Scores: closed forms, thresholds that are set before the test, library detectors."""

from __future__ import annotations

import builtins
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmc_lessons.detection import scores as lesson
from lmc_lessons.detection.scores import (
    DETECTORS,
    MissingDetectorError,
    auprc,
    balanced_accuracy,
    false_alarms,
    fit_detector,
    threshold_for,
)

SCORES = torch.tensor([0.1, 0.4, 0.35, 0.8, 0.9])
POSITIVE = torch.tensor([False, False, True, True, False])


def test_average_precision_is_the_mean_of_the_precisions() -> None:
    # from the top: 0.9 (no), 0.8 (yes: 1/2), 0.4 (no), 0.35 (yes: 2/4)
    assert auprc(SCORES, POSITIVE) == pytest.approx(0.5)


@given(st.integers(0, 1000), st.sampled_from([0.5, 0.8, 0.95, 1.0]))
def test_false_alarms_are_those_of_the_highest_threshold_that_finds_enough(
    seed: int, found: float
) -> None:
    stream = np.random.default_rng(seed)
    values = torch.from_numpy(stream.integers(0, 15, 60).astype(float))
    positive = torch.from_numpy(stream.random(60) < 0.4)
    if positive.all() or not positive.any():
        return
    candidates = [
        float((values[~positive] >= t).double().mean())
        for t in values.unique()
        if float((values[positive] >= t).double().mean()) >= found - 1e-12
    ]
    assert false_alarms(values, positive, found=found) == min(candidates)


def test_a_threshold_lets_so_many_normal_samples_pass() -> None:
    normal = torch.arange(1000.0)
    threshold = threshold_for(normal, 0.05)
    assert float((normal > threshold).double().mean()) == 0.05
    everything = torch.cat([normal, torch.full((10,), 2000.0)])
    positive = torch.arange(1010) >= 1000
    assert balanced_accuracy(everything, positive, threshold) == pytest.approx((1 + 0.95) / 2)
    assert balanced_accuracy(everything, positive, -1.0) == 0.5


def test_scores_that_cannot_be_judged_are_refused() -> None:
    for judge in (auprc, false_alarms, lambda s, p: balanced_accuracy(s, p, 0.0)):
        with pytest.raises(ValueError, match="finite scores"):
            judge(torch.tensor([0.0, torch.nan]), torch.tensor([True, False]))
        with pytest.raises(ValueError, match="at least one positive and one negative"):
            judge(SCORES, torch.ones(5, dtype=torch.bool))
    for bad in (torch.tensor([]), torch.tensor([1.0, math.inf])):
        with pytest.raises(ValueError, match="at least one normal score, all finite"):
            threshold_for(bad)


@pytest.mark.parametrize("name", DETECTORS)
def test_what_is_far_away_scores_higher(name: str) -> None:
    if name in ("ECOD", "DeepSVDD"):
        pytest.importorskip("pyod")
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(80, 2, 2, generator=stream)
    score = fit_detector(name, x, 3)
    near, far = score(torch.zeros(5, 2, 2) + 0.1), score(torch.full((5, 2, 2), 7.0))
    assert near.shape == (5,)
    assert (far > near).all()
    again = fit_detector(name, x, 3)
    torch.testing.assert_close(again(x), score(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "x", "expected"),
    [
        ("forest", torch.zeros(5, 2), "no detector 'forest', allowed: isolation forest"),
        ("LOF", torch.zeros(1, 2), "at least 2 normal samples, got 1"),
        ("LOF", torch.tensor([[0.0], [torch.nan]]), "inputs must be finite, got 1 entries"),
    ],
)
def test_bad_input_is_refused_in_one_line(name: str, x: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        fit_detector(name, x, 0)
    assert "\n" not in str(caught.value)


def test_a_missing_library_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("pyod"):
            raise ImportError(name)
        return real(name, *args, **more)

    for module in [name for name in sys.modules if name.split(".")[0] == "pyod"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pyod", None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDetectorError, match="ECOD needs the package pyod") as caught:
        lesson.fit_detector("ECOD", torch.rand(9, 2), 0)
    assert "\n" not in str(caught.value)

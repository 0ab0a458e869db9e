"""Checks of the exercises in the lesson on mnemonic codes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.mnemonic_codes import PRESETS
from lmc_lessons.models import Params, build
from lmc_lessons.teaching.checks import Wrong, checker, require, require_number, require_tensor
from lmc_lessons.unlearning.audit import report
from lmc_lessons.unlearning.baselines import mask_logits

EPSILON = 1e-16


def _check_ratio(ratio_of: Any) -> None:
    """A ratio of means of squares, where some gradients are tiny and some vanish."""
    stream = torch.Generator().manual_seed(0)
    forget = torch.randn(2, 5, generator=stream)
    rest = torch.randn(3, 5, generator=stream)
    for slopes in (forget, rest):
        slopes[:, 3] *= 1e-8
        slopes[:, 4] = 0
    squares = [slopes.double().square() for slopes in (forget, rest)]
    sums = [part.sum(0) for part in squares]
    means = [(EPSILON + total) / count for total, count in zip(sums, (2, 3), strict=True)]
    right = means[0] / means[1]
    given = ratio_of(forget.clone(), rest.clone())
    require(
        not (isinstance(given, torch.Tensor) and bool(given.isnan().any())),
        "without epsilon a weight that no code sees has no ratio",
    )
    require_tensor(
        given,
        right,
        {
            "upside down: the classes to forget stand above": 1 / right,
            "divide each sum by its number of codes": (EPSILON + sums[0]) / (EPSILON + sums[1]),
            "that is a ratio of sizes: square the gradients": torch.sqrt(
                (sums[0] / 2 + EPSILON) / (sums[1] / 3 + EPSILON)
            ),
            "square every gradient before adding them up, not the mean gradient": (
                EPSILON + forget.double().mean(0).square()
            )
            / (EPSILON + rest.double().mean(0).square()),
            "epsilon belongs to the sum, before it is divided": (EPSILON + sums[0] / 2)
            / (EPSILON + sums[1] / 3),
        },
    )


def _check_step(step_of: Any) -> None:
    """One factor for the whole tensor, with and without an active cap."""
    ratio = torch.tensor([[0.5, 4.0], [8.0, 0.1]], dtype=torch.float64)
    for step, cap in ((0.5, 0.3), (0.1, 2.0)):
        right = min(step, cap / 8.0) * ratio
        require_tensor(
            step_of(ratio.clone(), step, cap),
            right,
            {
                "one factor for the tensor: do not clip every entry by itself": (
                    step * ratio
                ).clamp(max=cap),
                "the cap is divided by the largest ratio": min(step, cap) * ratio,
                "that forgets the cap, or takes the larger of both": step * ratio,
                "that forgets the step: it counts where it is the smaller": cap / 8.0 * ratio,
                "that is the factor: multiply it by the ratios": torch.full_like(
                    ratio, min(step, cap / 8.0)
                ),
            },
        )


def _check_lead(lead: Any) -> None:
    """The lead of the class in the output bias."""
    for classes in (10, 3, 2, 100):
        n = classes - 1
        right = n * (classes**2 - classes - 1)
        require_number(
            lead(classes),
            right,
            {
                "divide by the ratio of class j, which has its own code among those that remain": (
                    n**2
                ),
                "that is the ratio of another class: the lead is above 1": n / (n**2 + n - 1),
                "the remaining codes other than that of class j count too": n**3,
                "average over the remaining codes, for class j too": n * right,
            },
        )


def _check_bound(sleeps_from: Any) -> None:
    """N over the number of samples to forget."""
    for counts, forgotten in (([30, 50, 20, 25], (1,)), ([30, 50, 20, 25], (0, 2))):
        own, everything = sum(counts[k] for k in forgotten), sum(counts)
        require_number(
            sleeps_from(list(counts), forgotten),
            everything / own,
            {
                "upside down: a part has a larger mean of squares than the whole": own / everything,
                "the whole has the images to forget in it": (everything - own) / own,
                "classes differ in size: count images, not classes": len(counts) / len(forgotten),
                "add up the images of all classes to forget": everything / counts[forgotten[0]],
            },
        )


@functools.cache
def _digits() -> Dataset:
    return datasets.load("digits")


@functools.cache
def _reader() -> nn.Module:
    return build(PRESETS["study"].mlp.model).eval()


def balance_of(params: Params) -> tuple[float, float]:
    """Share of class 0 that is found, and of the others that is read right, on test images."""
    model, data = _reader(), _digits()
    found = report(model, params, data.test_x, data.test_y, (0,))
    return 1 - found.forget_error, found.retain_accuracy


def _check_undo(measure: Any) -> None:
    """What one number gives back, and what there was."""
    require(callable(measure), "pass a function that returns (your pair, amounts, two networks)")
    given, amounts, gone, before = measure()
    require(
        isinstance(given, tuple | list) and len(given) == 2,
        "return a pair: (best mean, mean as trained)",
    )
    shares = [float(value) for value in given]
    require(all(0 <= value <= 1 for value in shares), "shares lie in [0, 1]: not per cent")
    added = [balance_of(mask_logits(gone, (0,), -amount)) for amount in amounts]
    taken = [balance_of(mask_logits(gone, (0,), amount)) for amount in amounts]
    trained = sum(balance_of(before)) / 2
    best = max(sum(pair) / 2 for pair in added)
    require_number(
        shares[1],
        trained,
        {
            "the second is the network as trained: that is the one that forgot": sum(
                balance_of(gone)
            )
            / 2,
            "the second is a mean of both shares": balance_of(before)[1],
        },
        tolerance=1e-3,
    )
    if abs(shares[0] - best) <= 1e-3:
        return
    for message, mistaken in (
        ("amounts are added to the logit, not taken", max(sum(pair) / 2 for pair in taken)),
        ("take the best of all amounts, not the last", sum(added[-1]) / 2),
        ("mean of both shares: that is the share of class 0 found", max(p for p, _ in added)),
        ("mean of both shares: that is the accuracy on the others", max(q for _, q in added)),
        (
            "that is the mean of E_F and A_R: the class is to be found again",
            max((1 - p + q) / 2 for p, q in added),
        ),
    ):
        require(abs(shares[0] - mistaken) > 1e-3, message)
    raise Wrong(f"the best mean is {best:.4f} with these amounts, you have {shares[0]:.4f}")


check = checker(
    {
        "ratio": _check_ratio,
        "step": _check_step,
        "lead": _check_lead,
        "bound": _check_bound,
        "undo": _check_undo,
    }
)

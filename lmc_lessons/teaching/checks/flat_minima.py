"""Checks of the exercises in the lesson on flat minima."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.flat_minima import PRESETS
from lmc_lessons.models import Params, build, unstack
from lmc_lessons.robustness.attacks import LInf, evaluate, fgsm, pgd
from lmc_lessons.robustness.objectives import AdversarialTraining
from lmc_lessons.robustness.weight_perturbation import AdversarialWeightPerturbation
from lmc_lessons.teaching.checks import Wrong, checker, require, require_number, require_tensor
from lmc_lessons.training import train


def _drawn(seed: int) -> Params:
    """Tensors of a small network, drawn."""
    stream = torch.Generator().manual_seed(seed)
    shapes = {"hidden.0.weight": (4, 3), "hidden.0.bias": (4,), "output.weight": (2, 4)}
    return {name: torch.randn(shape, generator=stream) for name, shape in shapes.items()}


def _check_awp(awp_step: Any) -> None:
    """A step uphill for every weight matrix, relative to its length."""
    params, gradient, gamma = _drawn(1), _drawn(2), 0.25
    copies = [{name: tensor.clone() for name, tensor in p.items()} for p in (params, gradient)]
    given = awp_step(*copies, gamma)
    require(isinstance(given, dict), f"return a dict, got {type(given).__name__}")
    require("hidden.0.bias" not in given, "biases are not moved: leave them out")
    require(
        given.keys() == {"hidden.0.weight", "output.weight"},
        f"return one step per weight matrix, got {sorted(given)}",
    )
    whole = torch.cat([g.flatten() for g in gradient.values()]).norm()
    matrices = [name for name, tensor in params.items() if tensor.dim() > 1]
    weights_only = torch.cat([gradient[name].flatten() for name in matrices]).norm()
    for name, step in given.items():
        w, g = params[name], gradient[name]
        right = gamma * w.norm() * g / g.norm()
        require_tensor(
            step,
            right,
            {
                "that goes downhill: the second attacker raises the loss": -right,
                "normalise each gradient by its own length, not by that of all together": gamma
                * w.norm()
                * g
                / whole,
                "normalise each gradient by its own length, not by that of all matrices": gamma
                * w.norm()
                * g
                / weights_only,
                "return the step, not the weights after it": w + right,
                "not relative to the weights: multiply by the length of the matrix": gamma
                * g
                / g.norm(),
                "divide the gradient by its length": gamma * w.norm() * g,
                "one length per matrix, not one per row": gamma
                * w.norm(dim=1, keepdim=True)
                * g
                / g.norm(dim=1, keepdim=True),
                "the sign of the gradient is for inputs in an L-inf ball": gamma
                * w.norm()
                * g.sign(),
                "multiply by gamma": right / gamma,
            },
        )


def _check_filter(filter_normalised: Any) -> None:
    """Noise whose rows are as long as those of the weights."""
    weight, noise = _drawn(3)["hidden.0.weight"], _drawn(4)["hidden.0.weight"]
    rows, columns = weight.norm(dim=1, keepdim=True), weight.norm(dim=0, keepdim=True)
    require_tensor(
        filter_normalised(weight.clone(), noise.clone()),
        noise / noise.norm(dim=1, keepdim=True) * rows,
        {
            "you scaled the columns: a filter is a row, what enters one unit": noise
            / noise.norm(dim=0, keepdim=True)
            * columns,
            "one factor for the whole matrix: every row needs its own": noise
            / noise.norm()
            * weight.norm(),
            "the rows have the length of the whole matrix: each needs that of its own row": noise
            / noise.norm(dim=1, keepdim=True)
            * weight.norm(),
            "the rows have length one: multiply by the lengths of the weights' rows": noise
            / noise.norm(dim=1, keepdim=True),
            "divide by the lengths of the noise's rows first": noise * rows,
            "a direction is what is added: do not add the weights": weight
            + noise / noise.norm(dim=1, keepdim=True) * rows,
        },
    )


def _check_stop(stop_early: Any) -> None:
    """The epoch chosen by validation, the accuracy reported from test data."""
    epochs, validation, test = (
        [10, 20, 30, 40, 50],
        [0.5, 0.7, 0.6, 0.7, 0.4],
        [0.4, 0.6, 0.8, 0.5, 0.3],
    )
    given = stop_early(list(epochs), list(validation), list(test))
    require(isinstance(given, tuple) and len(given) == 2, "return a pair: (epoch, accuracy)")
    epoch, accuracy = given
    require_number(
        epoch,
        20,
        {
            "that is the best epoch on test data: choosing there flatters the result": 30,
            "that is a position in the list: return the epoch": 1,
            "of equally good epochs, take the first": 40,
            "that is the last epoch: early stopping goes back": 50,
        },
    )
    require_number(
        accuracy,
        0.6,
        {
            "that is the validation accuracy, which chose the epoch and so flatters it": 0.7,
            "that is the best test accuracy of all epochs, not that of the chosen one": 0.8,
        },
    )


def _check_curvature(hessian_after: Any) -> None:
    """The Hessian of a network of two weights after rescaling."""
    for w_1, w_2, x, y, c in ((1.5, 0.5, 2.0, 2.0, 2.0), (0.5, 2.0, 1.0, -1.0, 0.25)):
        residual = w_1 * w_2 * x - y
        mixed, squares = w_1 * w_2 * x**2, ((w_2 * x) ** 2, (w_1 * x) ** 2)

        def matrix(first: float, second: float, off: float) -> torch.Tensor:
            return torch.tensor([[first, off], [off, second]], dtype=torch.float64)

        cross = mixed + residual * x
        require_tensor(
            hessian_after(w_1, w_2, x, y, c),
            matrix(squares[0] / c**2, squares[1] * c**2, cross),
            {
                "that is the Hessian before the change of scale": matrix(*squares, cross),
                "the first entry is divided by the square of c, not multiplied": matrix(
                    squares[0] * c**2, squares[1] / c**2, cross
                ),
                "second derivatives scale with the square of c": matrix(
                    squares[0] / c, squares[1] * c, cross
                ),
                "the mixed derivative has a second term, with the residual": matrix(
                    squares[0] / c**2, squares[1] * c**2, mixed
                ),
                "the mixed derivative does not change: one factor c, one factor 1/c": matrix(
                    squares[0] / c**2, squares[1] * c**2, cross / c
                ),
                "the two weights are swapped: the first entry belongs to w_1": matrix(
                    squares[1] * c**2, squares[0] / c**2, cross
                ),
            },
        )


def reference_network(gamma: float, data: Dataset) -> Params:
    """What the lesson's recipe gives in 40 epochs.

    Args:
        gamma: Size of the weight perturbation.
        data: What to train on.

    Returns:
        The network of seed 0.
    """
    setup = PRESETS["study"]
    recipe = dataclasses.replace(setup.train, epochs=40)
    objective = AdversarialTraining(LInf(setup.epsilon), steps=setup.attack_steps)
    pushed = AdversarialWeightPerturbation(objective, gamma)
    return unstack(train(setup.model, data, (0,), recipe, loss=pushed).params)[0]


def _accuracy(params: Params, data: Dataset, attack: Any, part: str = "test") -> float:
    setup = PRESETS["study"]
    x, y = (data.test_x, data.test_y) if part == "test" else (data.train_x, data.train_y)
    model = build(setup.model).eval()
    found = evaluate(model, params, x, y, LInf(setup.epsilon), {"a": attack} if attack else {})
    return found.robust["a"] if attack else found.clean


def _check_gamma(measure: Any) -> None:
    """Accuracy under attack after training with AWP of several sizes."""
    require(callable(measure), "pass a function that returns (your dictionary, few)")
    found, data = measure()
    keyed = isinstance(found, dict) and all(isinstance(g, float) and g >= 0 for g in found)
    require(keyed and len(found) >= 3, "return a dict from at least three gammas to accuracies")
    require(
        all(0 <= float(value) <= 1 for value in found.values()),
        "accuracies lie in [0, 1]: return shares, not per cent or losses",
    )
    require(
        len({round(float(value), 6) for value in found.values()}) > 1,
        "every gamma gives the same accuracy: train anew for each",
    )
    for gamma in sorted(found)[:2]:
        _check_accuracy(gamma, float(found[gamma]), data)


def _check_accuracy(gamma: float, given: float, data: Dataset) -> None:
    """One accuracy after training with AWP of that size."""
    params = reference_network(gamma, data)
    if abs(given - _accuracy(params, data, pgd)) <= 0.01:
        return
    for message, attack, part in (
        ("that is the clean accuracy: measure under attack", None, "test"),
        ("that is measured on the training data: use the test data", pgd, "train"),
        ("that is accuracy under a single step: use `under_attack`", fgsm, "test"),
    ):
        require(abs(given - _accuracy(params, data, attack, part)) > 0.005, message)
    plain = _accuracy(reference_network(0.0, data), data, pgd)
    require(abs(given - plain) > 0.005, "that is plain adversarial training: pass gamma on")
    raise Wrong(
        f"at gamma {gamma:g} you got {given:.3f}, expected {_accuracy(params, data, pgd):.3f}: "
        "40 epochs, seed 0, the lesson's recipe and objective"
    )


def _check_influence(influence: Any) -> None:
    """The range of a correlation with one entry left out."""
    stream = np.random.default_rng(3)
    first = stream.normal(size=9)
    second = 0.5 * first + stream.normal(size=9)
    first[-1], second[-1] = 4.0, 5.0  # one entry that makes the correlation
    given = influence(first.tolist(), second.tolist())
    require(
        isinstance(given, tuple | list) and len(given) == 2, "return a pair: (smallest, largest)"
    )

    def extremes(correlate: Any, one_sided: bool = False) -> tuple[float, float]:
        found = [
            float(correlate(np.delete(first, k), np.delete(second, k)).statistic)
            if not one_sided
            else float(correlate(np.delete(first, k), second[:-1]).statistic)
            for k in range(len(first))
        ]
        return min(found), max(found)

    whole = float(pearsonr(first, second).statistic)
    right, ranks, torn = extremes(pearsonr), extremes(spearmanr), extremes(pearsonr, True)
    require(
        not (given[0] > given[1] and abs(given[0] - right[1]) < 1e-6),
        "the smallest comes first",
    )
    for place, name in enumerate(("smallest", "largest")):
        require_number(
            given[place],
            right[place],
            {
                f"the {name} is that of all entries: leave one out each time": whole,
                "that is the rank correlation: use Pearson's": ranks[place],
                "leave the same entry out of both lists": torn[place],
                "that is the change of r: return the correlation itself": right[place] - whole,
            },
        )


check = checker(
    {
        "awp": _check_awp,
        "filter": _check_filter,
        "stop": _check_stop,
        "curvature": _check_curvature,
        "gamma": _check_gamma,
        "influence": _check_influence,
    }
)

"""Checks of the exercises in the lesson on singular vectors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.connectivity.spectra import spectra, spectral_difference
from lmc_lessons.connectivity.symmetry import find_symmetry, permute
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.singular_vectors import match_part
from lmc_lessons.landscape import barrier, line
from lmc_lessons.models import Params, build
from lmc_lessons.teaching.checks import (
    Wrong,
    checker,
    mlp_config,
    require,
    require_number,
    require_tensor,
)

Decomposed = tuple[Tensor, Tensor, Tensor]


def _layer(seed: int, outputs: int = 4, inputs: int = 3) -> Decomposed:
    """Left vectors, singular values and right vectors of a drawn layer, in columns."""
    stream = torch.Generator().manual_seed(seed)
    matrix = torch.randn(outputs, inputs, generator=stream, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return left, values, right.mT


def _check_alignment(own_alignment: Any) -> None:
    """The alignment of one layer, all singular values kept."""
    for outputs, inputs in ((4, 3), (3, 4)):
        (ua, _, va), (ub, _, vb) = _layer(13, outputs, inputs), _layer(14, outputs, inputs)
        left, right = ua.mT @ ub, va.mT @ vb
        table = left * right
        total = float(table.sum())
        require_number(
            own_alignment(ua.clone(), va.clone(), ub.clone(), vb.clone()),
            total / 3,
            {
                "you paired only equal ranks: sum over all pairs i, j": float(table.trace()) / 3,
                "no absolute values: a pair that points the other way counts against": float(
                    table.abs().sum()
                )
                / 3,
                "no absolute value: R may be negative": abs(total) / 3,
                "the left vectors alone: multiply by the agreement of the right vectors": float(
                    left.sum()
                )
                / 3,
                "the right vectors alone: multiply by the agreement of the left vectors": float(
                    right.sum()
                )
                / 3,
                "divide by the number of singular values": total,
                "divide by the number of singular values, not of pairs": total / 9,
                "divide by the number of singular values, not of outputs or inputs": total / 4,
                "that is a matrix product of the two tables: multiply entry by entry": float(
                    (left @ right).sum()
                )
                / 3,
            },
        )


def _check_kept(own_kept: Any) -> None:
    """How many singular values pass the threshold."""
    values = torch.tensor([8.0, 7.0, 6.0, 3.5, 3.0, 2.5, 2.0, 2.0, 1.5, 1.0, 0.75, 0.5])
    for gamma, expected, strict in ((0.25, 8, 6), (0.75, 3, 2), (0.0, 12, 12)):
        share = values / values.sum()
        energy = values.square() / values[0].square()
        require_number(
            own_kept(values.clone(), gamma),
            expected,
            {
                "a singular value at exactly the threshold counts": strict,
                "relative to the largest value, not to the sum": int((share >= gamma).sum()),
                "compare the values, not their squares": int((energy >= gamma).sum()),
                "the threshold is relative: multiply gamma by the largest value": int(
                    (values >= gamma).sum()
                ),
                "that is a share of the layer's values: compare sizes": round(12 * (1 - gamma)),
                "that is the number of values that are dropped": 12 - expected,
            },
        )


def _check_weighted(inner_product: Any) -> None:
    """The inner product of two layers, from their singular values and vectors."""
    a, b = _layer(4), _layer(5)
    (ua, sa, va), (ub, sb, vb) = a, b
    table = (ua.mT @ ub) * (va.mT @ vb)
    dense = float(((ua * sa) @ va.mT * ((ub * sb) @ vb.mT)).sum())
    require_number(
        inner_product(tuple(t.clone() for t in a), tuple(t.clone() for t in b)),
        dense,
        {
            "the weights are missing: pair (i, j) counts s_i s_j": float(table.sum()),
            "all pairs count, not only i = j": float((sa * sb * table.diagonal()).sum()),
            "the weight is s_i of A times s_j of B: you used A's values twice": float(
                (torch.outer(sa, sa) * table).sum()
            ),
            "the weight is s_i of A times s_j of B, not a square": float(
                (sa.square().unsqueeze(1) * table).sum()
            ),
            "s_i of A belongs to the row, s_j of B to the column: take an outer product": float(
                (sa * sb * table).sum()
            ),
            "rows are A's and columns B's: the outer product is the wrong way round": float(
                (torch.outer(sb, sa) * table).sum()
            ),
            "no absolute values: a pair that points the other way counts against": float(
                (torch.outer(sa, sb) * table.abs()).sum()
            ),
        },
    )


def _check_estimate(estimate: Any) -> None:
    """The second-order estimate of the barrier of a function of one parameter."""

    def right(a: float, b: float, ga: float, gb: float, ha: float, hb: float, t: float) -> float:
        v = b - a
        return t * (1 - t) * (v * (ga - gb) + v * v * (t * ha + (1 - t) * hb) / 2)

    for case in ((1.0, 4.0, 0.5, -0.25, 2.0, 3.0, 0.5), (0.0, -2.0, -1.0, 0.3, 1.0, 4.0, 0.25)):
        a, b, ga, gb, ha, hb, t = case
        v = b - a
        require_number(
            estimate(*case),
            right(*case),
            {
                "the gradients' part is missing": right(a, b, 0, 0, ha, hb, t),
                "the Hessians' part is missing": right(a, b, ga, gb, 0, 0, t),
                "the gradients' part has the wrong sign: g_A - g_B": right(a, b, gb, ga, ha, hb, t),
                "the ends' Hessians are weighted the wrong way: t goes with A": right(
                    a, b, ga, gb, hb, ha, t
                ),
                "the factor 1/2 of the second-order term is missing": right(
                    a, b, ga, gb, 2 * ha, 2 * hb, t
                ),
                "the factor t (1 - t) is missing": right(*case) / (t * (1 - t)),
                "the distance enters the second term squared": t
                * (1 - t)
                * (v * (ga - gb) + v * (t * ha + (1 - t) * hb) / 2),
            },
        )


def _check_preference(preference: Any) -> None:
    """How much of the inputs lies along each right singular vector."""
    _, _, right = _layer(4, 3, 5)
    stream = torch.Generator().manual_seed(9)
    z = torch.randn(7, 5, generator=stream, dtype=torch.float64) * torch.arange(1.0, 8).unsqueeze(1)
    along = z @ right
    size = z.norm(dim=1, keepdim=True)
    expected = (along.abs() / size).mean(0)
    require_tensor(
        preference(right.clone(), z.clone()),
        expected,
        {
            "the sign of a singular vector is arbitrary: take absolute values": (along / size).mean(
                0
            ),
            "divide each input by its own length before the mean": along.abs().mean(0)
            / size.mean(),
            "divide by the inputs' lengths": along.abs().mean(0),
            "those are shares of the squared length: take the root, or |v . z| / |z|": (
                (along / size).square().mean(0)
            ),
            "absolute values before the mean: otherwise inputs cancel": (
                (along / size).mean(0).abs()
            ),
            "that is the mean input's: take |v . z| / |z| of every input, then the mean": (
                (z.mean(0) @ right).abs() / z.mean(0).norm()
            ),
            "take the mean of |v . z| / |z|, not the root of the mean square": (
                (along / size).square().mean(0).sqrt()
            ),
        },
    )


def rescaled(params: Params, factor: float) -> Params:
    """Multiply what enters the first hidden layer, and divide what leaves it.

    Args:
        params: An ``MLP`` without normalisation.
        factor: A positive number.

    Returns:
        A network that computes the same function, since ReLU commutes with positive factors.
    """
    found = dict(params)
    following = "hidden.1.weight" if "hidden.1.weight" in params else "output.weight"
    found["hidden.0.weight"] = params["hidden.0.weight"] * factor
    found["hidden.0.bias"] = params["hidden.0.bias"] * factor
    found[following] = params[following] / factor
    return found


def reference_rescaling(params: Params, factors: tuple[float, ...]) -> dict[float, float]:
    """By how much rescaling changes the singular values of the first layer.

    Args:
        params: An ``MLP`` without normalisation.
        factors: Positive numbers.

    Returns:
        Factor to the relative change of the first layer's singular values.
    """
    before = spectra(params)
    return {
        factor: spectral_difference(before, spectra(rescaled(params, factor)))["hidden.0"]
        for factor in factors
    }


def _check_rescale(rescale: Any) -> None:
    """A copy that computes the same, with other singular values."""
    stream = torch.Generator().manual_seed(5)
    shapes = {
        "hidden.0.weight": (5, 4),
        "hidden.0.bias": (5,),
        "output.weight": (3, 5),
        "output.bias": (3,),
    }
    params = {name: torch.randn(shape, generator=stream) for name, shape in shapes.items()}
    given = rescale({name: tensor.clone() for name, tensor in params.items()}, 4.0)
    require(isinstance(given, dict) and given.keys() == params.keys(), "return all four tensors")
    expected = rescaled(params, 4.0)
    mistakes = {
        "hidden.0.weight": {"what enters the hidden layer is unchanged": params["hidden.0.weight"]},
        "hidden.0.bias": {
            "the bias must grow with the weights that it is added to": params["hidden.0.bias"]
        },
        "output.weight": {
            "what leaves the hidden layer must shrink": params["output.weight"],
            "what leaves must shrink, not grow": params["output.weight"] * 4,
        },
        "output.bias": {
            "the output's bias is added behind everything: leave it": params["output.bias"] / 4
        },
    }
    for name, wanted in expected.items():
        require_tensor(given[name], wanted, mistakes[name])


def reference_enough(
    a: Params, b: Params, data: Dataset, gammas: tuple[float, ...]
) -> dict[float, float]:
    """Barrier after matching by the singular values above a threshold alone.

    Args:
        a: Network A, an ``MLP`` without normalisation.
        b: Network B.
        data: Data set; its test part is measured.
        gammas: Thresholds in (0, 1).

    Returns:
        Threshold to the test barrier over 11 positions.
    """
    return _barriers(a, b, data, gammas, top=True)


def _barriers(
    a: Params, b: Params, data: Dataset, gammas: tuple[float, ...], *, top: bool
) -> dict[float, float]:
    model = build(mlp_config(a, data))
    symmetry = find_symmetry(model, data.train_x[:2])
    positions = [k / 10 for k in range(11)]
    found = {}
    for gamma in gammas:
        moved = permute(symmetry, b, match_part(symmetry, a, b, gamma, top=top).permutations)
        losses = line(model, a, moved, positions, data.test_x, data.test_y).loss
        found[gamma] = barrier(positions, losses).maximum
    return found


def _check_enough(measure: Any) -> None:
    """How many singular values are enough to match by."""
    require(callable(measure), "pass a function that returns (your dictionary, (a, b, data))")
    found, (a, b, data) = measure()
    keyed = isinstance(found, dict) and all(isinstance(g, float) and 0 < g < 1 for g in found)
    require(keyed and len(found) >= 3, "return a dict from at least three thresholds to barriers")
    gammas = tuple(found)
    expected = reference_enough(a, b, data, gammas)
    if _agree(found, expected):
        return
    rest = _barriers(a, b, data, gammas, top=False)
    require(
        not _agree(found, rest),
        "you matched by the rest: `top=True` takes the large singular values",
    )
    positions = [k / 10 for k in range(11)]
    model = build(mlp_config(a, data))
    naive = barrier(positions, line(model, a, b, positions, data.test_x, data.test_y).loss).maximum
    require(
        not _agree(found, dict.fromkeys(gammas, naive)),
        "every barrier is the one before matching: permute B before you measure",
    )
    require(
        not any(math.isclose(found[g], naive, rel_tol=1e-6) for g in gammas[:1]),
        "the first barrier is the one before matching: permute B for every threshold",
    )
    train = dataclasses.replace(data, test_x=data.train_x, test_y=data.train_y)
    require(
        not _agree(found, reference_enough(a, b, train, gammas)),
        "that is the training barrier: measure on test inputs",
    )
    require(
        len({round(float(found[g]), 6) for g in gammas}) > 1,
        "every threshold gives the same barrier: match anew for each, by the large values alone",
    )
    worst = max(gammas, key=lambda g: abs(found[g] - expected[g]))
    raise Wrong(f"at {worst} you got {found[worst]:.4f}, expected {expected[worst]:.4f}")


def _agree(found: dict[float, float], expected: dict[float, float]) -> bool:
    return all(abs(found[g] - expected[g]) <= 1e-4 for g in expected)


check = checker(
    {
        "alignment": _check_alignment,
        "kept": _check_kept,
        "weighted": _check_weighted,
        "estimate": _check_estimate,
        "preference": _check_preference,
        "rescale": _check_rescale,
        "enough": _check_enough,
    }
)

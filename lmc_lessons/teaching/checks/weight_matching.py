"""Checks of the exercises in the lesson on weight matching."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.connectivity.matching import activation_matching
from lmc_lessons.connectivity.symmetry import find_symmetry, permute
from lmc_lessons.datasets import Dataset
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


def _drawn(*shape: int) -> Tensor:
    count = math.prod(shape)
    stream = torch.Generator().manual_seed(count + 17 * len(shape))
    return torch.randn(shape, generator=stream)


def _check_reorder(reorder: Any) -> None:
    """Reorder the hidden units of a network with one hidden layer."""
    first, bias, second = _drawn(4, 4), _drawn(4), _drawn(4, 4).T.contiguous()
    order = torch.tensor([2, 0, 3, 1])
    back = torch.argsort(order)
    given = reorder(first.clone(), bias.clone(), second.clone(), order.clone())
    require(
        isinstance(given, tuple | list) and len(given) == 3,
        "return three tensors: weight 1, bias 1, weight 2",
    )
    require_tensor(
        given[0],
        first[order],
        {
            "weight 1 is unchanged: its rows belong to the hidden units": first,
            "weight 1 has its columns reordered: those are the inputs, keep them": first[:, order],
            "weight 1 is in the inverse order: position i gets unit order[i]": first[back],
        },
    )
    require_tensor(
        given[1],
        bias[order],
        {
            "the bias is unchanged: each hidden unit takes its bias along": bias,
            "the bias is in the inverse order: position i gets unit order[i]": bias[back],
        },
    )
    inverse = second[:, back]
    require_tensor(
        given[2],
        second[:, order],
        {
            "weight 2 is unchanged: its columns read the hidden units, so they must follow": second,
            "weight 2 has its rows reordered: those are the outputs, keep them": second[order],
            "weight 2 is in the inverse order: columns follow the units, the same way": inverse,
        },
    )


def _check_barrier(own_barrier: Any) -> None:
    """Height of the loss above the chord of the ends."""
    positions, losses = [0.0, 0.1, 0.3, 0.8, 1.0], [0.1, 0.95, 1.0, 1.2, 0.9]
    mean, highest = (losses[0] + losses[-1]) / 2, max(losses)
    swapped = max(
        v - (t * losses[0] + (1 - t) * losses[-1]) for t, v in zip(positions, losses, strict=True)
    )
    even = [k / 4 for k in range(5)]
    require_number(
        own_barrier(list(positions), list(losses)),
        barrier([*positions[:3], 0.5, *positions[3:]], [*losses[:3], 0.0, *losses[3:]]).maximum,
        {
            "that is the highest loss: subtract what the ends alone would give": highest,
            "you subtracted the mean of the ends: the chord rises from L(0) to L(1)": highest
            - mean,
            "you looked at the middle entry only: the maximum may lie elsewhere": losses[2] - mean,
            "you subtracted the lower end: use the chord": highest - losses[0],
            "you subtracted the higher end: use the chord": highest - losses[-1],
            "the chord is the wrong way round: at t = 0 it is L(0)": swapped,
            "the positions are not evenly spaced: use them": barrier(even, losses).maximum,
        },
    )
    require_number(
        own_barrier([0.0, 0.5, 1.0], [1.0, 0.2, 1.0]),
        0.0,
        {
            "a path that never rises above its chord has barrier 0 (the ends lie on it)": -0.8,
            "below the chord is not a barrier: do not take the absolute value": 0.8,
        },
    )


def _check_similarity(similarity: Any) -> None:
    """Similarity matrix of the second hidden layer, given the permutations around it."""
    weight_a, weight_b = _drawn(4, 3), _drawn(3, 4).T.contiguous() + 0.5
    next_a, next_b = _drawn(5, 4), _drawn(4, 5).T.contiguous() - 0.3
    bias_a, bias_b = _drawn(4), _drawn(2, 2).flatten()
    before, after = torch.tensor([2, 0, 1]), torch.tensor([3, 1, 4, 0, 2])
    incoming = weight_a @ weight_b[:, before].T
    outgoing = next_a.T @ next_b[after]
    biases = torch.outer(bias_a, bias_b)
    plain_in, plain_out = weight_a @ weight_b.T, next_a.T @ next_b
    back = weight_a @ weight_b[:, torch.argsort(before)].T
    undone = next_a.T @ next_b[torch.argsort(after)]
    expected = incoming + outgoing + biases
    require_tensor(
        similarity(weight_a, bias_a, next_a, weight_b, bias_b, next_b, before, after),
        expected,
        {
            "the biases are missing: each pair of units adds the product of their biases": incoming
            + outgoing,
            "the next layer is missing: its columns read these units": incoming + biases,
            "the layer's own weights are missing: they bring the inputs in": outgoing + biases,
            "the transpose: rows are A's units, columns are B's": expected.T,
            "the biases' table is transposed: rows are A's units": incoming + outgoing + biases.T,
            "the neighbours' permutations are missing": plain_in + plain_out + biases,
            "`before` is not used: it reorders the columns of weight_b": plain_in
            + outgoing
            + biases,
            "`after` is not used: it reorders the rows of next_b": incoming + plain_out + biases,
            "a neighbour's permutation is inverted: position i holds unit before[i]": back
            + undone
            + biases,
        },
    )


def _check_count(log10_orders: Any) -> None:
    """How many networks compute the same function, as a power of ten."""
    sizes = [512, 512, 512]

    def exponent(factorials: list[int]) -> float:
        return sum(math.lgamma(n + 1) for n in factorials) / math.log(10)

    exact = exponent(sizes)
    require_number(
        log10_orders(list(sizes)),
        exact,
        {
            "that is the natural logarithm: divide by log(10)": exact * math.log(10),
            "that is the logarithm to base 2: divide by log(10)": exact * math.log2(10),
            "that is one layer: the orders of different layers multiply": exact / 3,
            "a layer of n units has n! orders, not n": sum(math.log10(n) for n in sizes),
            "that is (n - 1)!: lgamma(n + 1) is the logarithm of n!": exponent([511] * 3),
            "that is n^n: a permutation uses each unit once": sum(n * math.log10(n) for n in sizes),
            "that is (n + n + n)!: units trade places within their layer only": exponent([1536]),
        },
        tolerance=1e-5,
    )


def _check_variance(variance_left: Any) -> None:
    """Variance of the mixture of two equally variable units, relative to one unit's."""
    for position, correlation in ((0.5, 0.4), (0.25, 0.6), (0.25, 1.0), (0.0, -0.5)):
        squares = (1 - position) ** 2 + position**2
        cross = 2 * position * (1 - position) * correlation
        require_number(
            variance_left(correlation, position),
            squares + cross,
            {
                "the covariance term is missing": squares,
                "the covariance term counts twice": squares + cross / 2,
                "the covariance adds: its sign is that of c": squares - cross,
                "that is the standard deviation: square it": math.sqrt(squares + cross),
                "(1 + c) / 2 holds at the midpoint only": (1 + correlation) / 2,
                "weights enter squared: Var(a X) = a^2 Var(X)": 1 + cross,
            },
        )


def reference_inputs_needed(
    a: Params, b: Params, data: Dataset, counts: tuple[int, ...]
) -> dict[int, float]:
    """Barrier after activation matching with only so many inputs: the reference of exercise 6.

    Args:
        a: Network A, an ``MLP`` without normalisation.
        b: Network B.
        data: Data set whose first training inputs are used to match, and whose test split to
            measure.
        counts: Numbers of inputs.

    Returns:
        Number of inputs to the test barrier over 11 positions.
    """
    model = build(mlp_config(a, data))
    symmetry = find_symmetry(model, data.train_x[:2])
    positions = [k / 10 for k in range(11)]
    found = {}
    for count in counts:
        moved = permute(symmetry, b, activation_matching(symmetry, a, b, data.train_x[:count]))
        profile = line(model, a, moved, positions, data.test_x, data.test_y)
        found[count] = barrier(positions, profile.loss).maximum
    return found


def _check_inputs_needed(measure: Any) -> None:
    """Barrier after activation matching by the number of inputs used for it."""
    require(callable(measure), "pass a function that returns (your dictionary, (a, b, data))")
    found, (a, b, data) = measure()
    counted = isinstance(found, dict) and all(isinstance(n, int) and n > 0 for n in found)
    require(counted and len(found) >= 3, "return a dict from at least three counts to barriers")
    counts = tuple(found)
    expected = reference_inputs_needed(a, b, data, counts)
    mistakes = {
        "every barrier is the one before matching: permute B before you measure": dict.fromkeys(
            counts, _naive_barrier(a, b, data)
        ),
        "you matched on test inputs: match on training inputs, measure on test inputs": (
            reference_inputs_needed(a, b, _test_only(data), counts)
        ),
        "that is the training barrier: measure on test inputs": reference_inputs_needed(
            a, b, _train_only(data), counts
        ),
    }
    if _agree(found, expected):
        return
    for message, mistaken in mistakes.items():
        require(not _agree(found, mistaken), message)
    require(
        len({round(float(found[n]), 6) for n in counts}) > 1,
        "every number of inputs gives the same barrier: use only the first n inputs to match",
    )
    worst = max(counts, key=lambda n: abs(found[n] - expected[n]))
    raise Wrong(f"with {worst} inputs you got {found[worst]:.4f}, expected {expected[worst]:.4f}")


def _agree(found: dict[int, float], expected: dict[int, float]) -> bool:
    return all(abs(found[n] - expected[n]) <= 1e-4 for n in expected)


def _naive_barrier(a: Params, b: Params, data: Dataset) -> float:
    positions = [k / 10 for k in range(11)]
    profile = line(build(mlp_config(a, data)), a, b, positions, data.test_x, data.test_y)
    return barrier(positions, profile.loss).maximum


def _test_only(data: Dataset) -> Dataset:
    return dataclasses.replace(data, train_x=data.test_x, train_y=data.test_y)


def _train_only(data: Dataset) -> Dataset:
    return dataclasses.replace(data, test_x=data.train_x, test_y=data.train_y)


check = checker(
    {
        "reorder": _check_reorder,
        "barrier": _check_barrier,
        "similarity": _check_similarity,
        "count": _check_count,
        "variance": _check_variance,
        "inputs-needed": _check_inputs_needed,
    }
)

"""Checks of the exercises in the lesson on loss barriers."""

from __future__ import annotations

import dataclasses
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import logit_margins
from lmc_lessons.landscape import line
from lmc_lessons.models import Params, build, initial
from lmc_lessons.teaching.checks import (
    Wrong,
    checker,
    mlp_config,
    require,
    require_number,
    require_tensor,
)


def _check_abs(path_loss: Any) -> None:
    """Loss along the path from the two-unit network |x| to its copy with the units swapped."""
    x = torch.tensor([-2.0, -1.0, 0.5, 1.5])
    square, size = float((x * x).mean()), float(x.abs().mean())
    for t in (0.25, 0.5, 0.8, 1.0):
        shrink = abs(1 - 2 * t)
        require_number(
            path_loss(x.clone(), t),
            square * (1 - shrink) ** 2,
            {
                "that is what remains of the function, not what is lost": square * shrink**2,
                "1 - 2t changes its sign at the midpoint: relu(-z) is the other unit's": square
                * (2 * t) ** 2,
                "square the error: the loss is the mean squared error": size * (1 - shrink),
                "that is the square of a mean: take the mean of squares": (size * (1 - shrink))
                ** 2,
                "weights (1 - t) and t of the two outputs give |x| at every t: mix the weights,"
                " not the outputs": 0.0,
            },
        )


def _check_margin(own_margin: Any) -> None:
    """By how much the true class leads, for each sample."""
    logits = torch.tensor([[2.0, 1.0, -1.0], [0.5, 3.0, 2.0], [-1.0, -2.0, -4.0]])
    y = torch.tensor([0, 2, 1])
    own = logits.gather(1, y.unsqueeze(1)).squeeze(1)
    top = logits.topk(2, dim=1).values
    require_tensor(
        own_margin(logits.clone(), y.clone()),
        logit_margins(logits, y),
        {
            "the largest other logit must leave out the true class: here a right answer has margin"
            " 0": own - top[:, 0],
            "that is the lead of the winner: a misread sample has a negative margin": top[:, 0]
            - top[:, 1],
            "the sign is the wrong way round: positive means right": -logit_margins(logits, y),
            "that is a difference of probabilities: take the logits": logit_margins(
                logits.softmax(1), y
            ),
            "that subtracts the mean of the other logits: take the largest": own
            - (logits.sum(1) - own) / 2,
            "that is the true class's logit alone": own,
            "zero is not out of the way: put -infinity in the true class's place": own
            - logits.scatter(1, y.unsqueeze(1), 0.0).max(1).values,
            "the second largest logit is the largest other one only where the true class wins": own
            - top[:, 1],
        },
    )


def _check_plane(coordinates: Any) -> None:
    """Coordinates of the third network in the plane through three."""
    origin = torch.tensor([1.0, -1.0, 0.5, 2.0])
    a, b = torch.tensor([3.0, 1.0, 0.5, 3.0]), torch.tensor([2.0, 2.0, -1.5, 1.0])
    first, second = a - origin, b - origin
    length = float(first.norm())
    along = float(second @ first) / length
    across = float((second - along * first / length).norm())
    given = coordinates(origin.clone(), a.clone(), b.clone())
    require(
        isinstance(given, tuple | list) and len(given) == 2, "return two numbers: (along, across)"
    )
    require_number(
        given[0],
        along,
        {
            "that is in units of the distance from the origin to the first network: divide by its"
            " length once": along / length,
            "that is the inner product: divide by the length of the first direction": along
            * length,
            "that is the length of the second difference: take its part along the first": float(
                second.norm()
            ),
            "take differences from the origin first": float(b @ a) / float(a.norm()),
        },
    )
    require_number(
        given[1],
        across,
        {
            "that is the whole length: subtract the part along the first direction": float(
                second.norm()
            ),
            "lengths do not subtract: Pythagoras, or subtract the vectors": float(second.norm())
            - along,
            "that is the squared length: take the root": across**2,
        },
    )


def _copies(weight_1: Tensor, bias_1: Tensor, weight_2: Tensor) -> list[tuple[Tensor, ...]]:
    orders = [torch.tensor(order) for order in permutations(range(len(bias_1)))]
    return [(weight_1[o], bias_1[o], weight_2[:, o]) for o in orders]


def _small_network() -> tuple[Tensor, Tensor, Tensor]:
    stream = torch.Generator().manual_seed(3)
    weight_1, bias_1, weight_2 = (
        torch.randn(shape, generator=stream) for shape in ((4, 3), (4,), (4, 2))
    )
    return weight_1, bias_1, weight_2.T.contiguous()


def _check_mean(mean_copy: Any) -> None:
    """The mean of all renumbered copies of a network with one hidden layer."""
    weight_1, bias_1, weight_2 = _small_network()
    expected = [
        torch.stack(parts).mean(0) for parts in zip(*_copies(*_small_network()), strict=True)
    ]
    given = mean_copy(weight_1.clone(), bias_1.clone(), weight_2.clone())
    require(
        isinstance(given, tuple | list) and len(given) == 3,
        "return three tensors: weight 1, bias 1, weight 2",
    )
    require_tensor(
        given[0],
        expected[0],
        {
            "weight 1 is averaged over its inputs: average over the units, its rows": weight_1.mean(
                1, keepdim=True
            ).expand(4, 3),
            "weight 1 is averaged over everything: each input keeps its own mean": weight_1.mean()
            * torch.ones(4, 3),
            "weight 1 is unchanged: a unit takes every place equally often": weight_1,
        },
    )
    require_tensor(
        given[1],
        expected[1],
        {"the bias is unchanged: every place gets the mean bias": bias_1},
    )
    require_tensor(
        given[2],
        expected[2],
        {
            "weight 2 is averaged over the outputs: average over its columns, which read the"
            " units": weight_2.mean(0, keepdim=True).expand(2, 4),
            "weight 2 is averaged over everything: each output keeps its own mean": weight_2.mean()
            * torch.ones(2, 4),
            "weight 2 is unchanged: its columns move with the units": weight_2,
        },
    )


def _check_distance(expected_distance: Any) -> None:
    """The mean squared distance from a network to its renumbered copies."""
    network = _small_network()
    flat = torch.cat([part.flatten() for part in network])
    copies = [torch.cat([part.flatten() for part in c]) for c in _copies(*network)]
    size = float(flat @ flat)
    mean = torch.stack(copies).mean(0)
    exact = float(torch.stack([(flat - c).square().sum() for c in copies]).mean())
    require_number(
        expected_distance(*(part.clone() for part in network)),
        exact,
        {
            "that is the squared distance to the mean copy: two copies both vary": size
            - float(mean @ mean),
            "that is twice the squared length: copies share their mean, subtract it": 2 * size,
            "that is a distance: the mean of its square is asked for": exact**0.5,
            "the mean copy counts twice: 2 (|theta|^2 - |mean|^2)": 2 * size - float(mean @ mean),
            "weight 2 is missing: its columns move as well": _without_readers(network),
        },
    )


def _without_readers(network: tuple[Tensor, Tensor, Tensor]) -> float:
    first = torch.cat([network[0], network[1].unsqueeze(1)], 1)
    return 2 * float((first - first.mean(0)).square().sum())


def _check_order(spawned_order: Any) -> None:
    """The order of the data in the epoch in which a run leaves its parent."""
    parent = torch.tensor([5, 2, 7, 0, 3, 6, 11, 8, 1, 10, 4, 9])
    own = torch.tensor([1, 7, 9, 5, 0, 10, 2, 8, 4, 6, 11, 3])

    def after(samples: int) -> Tensor:
        return torch.cat([parent[:samples], own[~torch.isin(own, parent[:samples])]])

    seen, rest = parent[:6], own[~torch.isin(own, parent[:6])]
    given = spawned_order(parent.clone(), own.clone(), 2, 3)
    if isinstance(given, Tensor):
        require(given.shape != (18,), "samples come twice: leave out those that were seen")
    require_tensor(
        given,
        after(6),
        {
            "the rest repeats samples that the parent has shown: leave those out": torch.cat(
                [seen, own[6:]]
            ),
            "that is the parent's order throughout: from the step on it is the own one": parent,
            "that is the own order throughout: the first batches are the parent's": own,
            "the step counts batches, not samples: it shares step * batch_size samples": after(2),
            "one batch too many: `step` batches are shared": after(9),
            "one batch too few: `step` batches are shared": after(3),
            "the own part comes first: the parent's batches come before": torch.cat([rest, seen]),
            "the rest is sorted: it keeps the order of `own`": torch.cat(
                [seen, rest.sort().values]
            ),
        },
    )
    require_tensor(spawned_order(parent.clone(), own.clone(), 0, 3), own, {})


def reference_walk(start: Params, end: Params, data: Dataset) -> list[float]:
    """Training loss at eleven points from an untrained network to the trained one.

    Args:
        start: The network before training, an ``MLP`` without normalisation.
        end: The same after training.
        data: Data set; its training part is measured.

    Returns:
        Eleven losses in nats.
    """
    model = build(mlp_config(end, data))
    steps = [k / 10 for k in range(11)]
    return line(model, start, end, steps, data.train_x, data.train_y).loss


def _check_walk(measure: Any) -> None:
    """Losses from the start of training straight to its end."""
    require(callable(measure), "pass a function that returns (your losses, (end, seed, data))")
    found, (end, seed, data) = measure()
    require(
        isinstance(found, list) and len(found) == 11, "return a list of 11 losses, start to end"
    )
    config = mlp_config(end, data)
    expected = reference_walk(initial(config, seed), end, data)
    if _close(found, expected):
        return
    require(
        not _close(found[::-1], expected), "the walk is the wrong way round: start before training"
    )
    other = reference_walk(initial(config, seed + 1), end, data)
    require(
        not _close(found, other),
        "that is another network's start: `initial` takes the seed that the run had",
    )
    test = dataclasses.replace(data, train_x=data.test_x, train_y=data.test_y)
    require(
        not _close(found, reference_walk(initial(config, seed), end, test)),
        "those are test losses: the question is about the loss that training lowered",
    )
    worst = max(range(11), key=lambda k: abs(found[k] - expected[k]))
    raise Wrong(f"at t = {worst / 10} you got {found[worst]:.4f}, expected {expected[worst]:.4f}")


def _close(found: list[float], expected: list[float]) -> bool:
    return all(abs(p - q) <= 1e-3 * max(0.01, q) for p, q in zip(found, expected, strict=True))


check = checker(
    {
        "abs": _check_abs,
        "margin": _check_margin,
        "plane": _check_plane,
        "mean-copy": _check_mean,
        "expected-distance": _check_distance,
        "spawned-order": _check_order,
        "walk": _check_walk,
    }
)

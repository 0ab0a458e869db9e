"""What the tests of the experiments share: small data, nested lists, runs that are killed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lmc_lessons import training
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.runs import Stages
from lmc_lessons.results import Result, Series

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28)}
SHAPES |= {"cifar10": (3, 32, 32)}


def random_images(name: str, **_: Any) -> Dataset:
    """Ten classes of random images, of the size of that data set."""
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(50, *SHAPES[name], generator=stream)
    y = torch.arange(50) % 10
    return Dataset(name, "random", x[:40], y[:40], x[40:], y[40:], tuple("0123456789"))


def synthetic(lesson: str, measured: dict[str, Any], seeds: int) -> Result:
    """A result that measured this and nothing else."""
    return Result(
        lesson,
        "study",
        {},
        list(range(seeds)),
        metrics={n: m for n, m in measured.items() if not isinstance(m, Series)},
        series={n: m for n, m in measured.items() if isinstance(m, Series)},
    )


def shape(values: Any) -> tuple[int, ...]:
    """Shape of nested lists, which must not be ragged."""
    if not isinstance(values, list):
        return ()
    inner = {shape(value) for value in values}
    assert len(inner) <= 1, inner
    return (len(values), *(inner.pop() if inner else ()))


def killed_again_and_again(
    run: Callable[[], Result], monkeypatch: pytest.MonkeyPatch, *, every: int
) -> tuple[Result, int]:
    """Cut a run off at every so many units of work, start it again, until it comes to its end.

    A unit is an epoch of training or a stage. What was begun when the run was cut off is lost.

    Args:
        run: Runs with a folder for partial work.
        monkeypatch: Undone before this returns.
        every: Units of work that each attempt is granted.

    Returns:
        The result, and the number of attempts.
    """
    left = 0

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return work(*arguments)

        return wrapped

    with monkeypatch.context() as patched:
        patched.setattr(training._Run, "epoch", counted(training._Run.epoch))
        patched.setattr(Stages, "_timed", counted(Stages._timed))
        for attempt in range(1, 100):
            left = every
            try:
                return run(), attempt
            except KeyboardInterrupt:
                continue
    raise AssertionError("the run gets nowhere")

"""What tests share: small data, nested lists, losses and runs that are cut off."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from lmc_lessons import training
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.runs import Stages
from lmc_lessons.results import Result, Series
from lmc_lessons.training import Loss, Network

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


def check_claims(lesson: Any, cases: Mapping[str, tuple[Any, Any]], seeds: int) -> None:
    """Every claim holds on its first synthetic run, fails on its second, is open on an empty one.

    Args:
        lesson: The experiment's module.
        cases: Claim to what a run measured in which it holds, and in which it fails.
        seeds: Number of seeds of those runs.
    """
    claims = {claim.id: claim for claim in lesson.CLAIMS}
    assert set(cases) == set(claims), "every claim needs a case"
    assert len(claims) == len(lesson.CLAIMS), "two claims have one id"
    for name, (holds, fails) in cases.items():
        for measured, wanted in ((holds, "holds"), (fails, "fails"), ({}, "not-measured")):
            found = claims[name].decide(synthetic(lesson.LESSON, measured, seeds))
            assert found.verdict == wanted, (wanted, found)


def check_controls(lesson: Any, cases: Mapping[str, tuple[Any, Any]], seeds: int) -> None:
    """With all that any claim needs but one thing of its own, a claim is open.

    Args:
        lesson: The experiment's module.
        cases: As for ``check_claims``.
        seeds: Number of seeds.
    """
    everything = {key: value for holds, _ in cases.values() for key, value in holds.items()}
    claims = {claim.id: claim for claim in lesson.CLAIMS}
    for name, (holds, _) in cases.items():
        for missing in holds:
            rest = {key: value for key, value in everything.items() if key != missing}
            found = claims[name].decide(synthetic(lesson.LESSON, rest, seeds))
            assert found.verdict == "not-measured", (missing, found)


def shape(values: Any) -> tuple[int, ...]:
    """Shape of nested lists, which must not be ragged."""
    if not isinstance(values, list):
        return ()
    inner = {shape(value) for value in values}
    assert len(inner) <= 1, inner
    return (len(values), *(inner.pop() if inner else ()))


class CutOff:
    """A loss that stops the run at one step; to a checkpoint it is the loss that it computes."""

    def __init__(self, loss: Loss, step: int) -> None:
        self.loss, self.step = loss, step

    def __repr__(self) -> str:
        return repr(self.loss)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        if network.step == self.step:
            raise KeyboardInterrupt
        return self.loss(network, x, y)


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

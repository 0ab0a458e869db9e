"""Checks of exercises: they say what is wrong, and which misunderstanding it looks like."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.datasets import Dataset
from lmc_lessons.models import ModelConfig, Params

STRICT = "LMC_LESSONS_STRICT"
Check = Callable[[Any], None]


class Wrong(AssertionError):
    """An answer is wrong; the message names what and, where it can be told, why."""


def checker(checks: Mapping[str, Check]) -> Callable[[str, Any], None]:
    """The ``check`` function of a lesson.

    Args:
        checks: Exercise to a function that raises ``Wrong`` on a wrong answer.

    Returns:
        A function of the exercise's name and the reader's answer, which prints the outcome; with
        the environment variable ``LMC_LESSONS_STRICT=1`` it raises instead, for grading.
    """

    def check(exercise: str, answer: Any) -> None:
        """Check an answer.

        Args:
            exercise: Name of the exercise.
            answer: The function written, or the value found.

        Raises:
            ValueError: If there is no such exercise.
            Wrong: In strict mode, if the answer is wrong or not attempted.
        """
        if exercise not in checks:
            raise ValueError(f"no exercise {exercise!r}, this lesson has: {', '.join(checks)}")
        try:
            checks[exercise](answer)
        except NotImplementedError as error:
            _report(exercise, "not attempted", error)
        except Wrong as error:
            _report(exercise, f"not yet: {error}", error)
        except Exception as error:  # the reader's code may raise anything
            _report(exercise, f"your code raised {type(error).__name__}: {error}", error)
        else:
            print(f"{exercise}: correct")

    return check


def _report(exercise: str, message: str, error: Exception) -> None:
    if os.environ.get(STRICT) == "1":
        raise Wrong(f"{exercise}: {message}") from error
    print(f"{exercise}: {message}")


def require(condition: bool, message: str) -> None:
    """Raise ``Wrong`` with a message unless a condition holds.

    Args:
        condition: What must hold.
        message: What is wrong otherwise.

    Raises:
        Wrong: If the condition does not hold.
    """
    if not condition:
        raise Wrong(message)


def same(given: Tensor, expected: Tensor, *, tolerance: float = 1e-5) -> bool:
    """Whether two tensors agree in shape and, within rounding, in every number."""
    return given.shape == expected.shape and bool(
        torch.allclose(given.double(), expected.double(), rtol=tolerance, atol=tolerance)
    )


def mlp_config(params: Params, data: Dataset) -> ModelConfig:
    """The architecture of an ``MLP`` without normalisation, read off its parameters.

    Args:
        params: Parameters by name.
        data: The data set that it classifies.

    Returns:
        Its configuration.
    """
    depth = sum(name.startswith("hidden.") and name.endswith("weight") for name in params)
    width = params["output.weight"].shape[1]
    return ModelConfig("mlp", data.input_shape, data.classes, width, depth)


def require_tensor(given: Any, expected: Tensor, known: Mapping[str, Tensor]) -> None:
    """Compare a tensor with what is expected, naming the misconception where one fits.

    Args:
        given: What the reader's code returned.
        expected: The right tensor.
        known: Message to the tensor that a known misunderstanding gives.

    Raises:
        Wrong: If the tensor is not right; the message says how.
    """
    require(isinstance(given, Tensor), f"return a tensor, got {type(given).__name__}")
    shapes = f"shape {tuple(given.shape)}, expected {tuple(expected.shape)}"
    require(given.shape == expected.shape, shapes)
    if same(given, expected):
        return
    for message, mistaken in known.items():
        require(not same(given, mistaken), message)
    gap = (given.double() - expected.double()).abs()
    place = tuple(int(k) for k in torch.unravel_index(gap.argmax(), gap.shape))
    raise Wrong(f"right shape, wrong values: off by {float(gap.max()):.3g} at entry {place}")


def require_number(
    given: Any, expected: float, known: Mapping[str, float], *, tolerance: float = 1e-4
) -> None:
    """Compare a number with what is expected, naming the misconception where one fits.

    Args:
        given: What the reader's code returned.
        expected: The right number.
        known: Message to the number that a known misunderstanding gives.
        tolerance: Relative difference allowed.

    Raises:
        Wrong: If the number is not right; the message says how.
    """
    if isinstance(given, Tensor):
        require(given.numel() == 1, f"return one number, got a tensor, shape {tuple(given.shape)}")
        given = given.item()
    require(isinstance(given, Real), f"return a number, got {type(given).__name__}")

    def near(target: float) -> bool:
        return abs(given - target) <= tolerance * max(1e-6, abs(target))

    if near(expected):
        return
    for message, mistaken in known.items():
        require(not near(mistaken), message)
    raise Wrong(f"got {given:.6g}, expected {expected:.6g}")

r"""Training data that hold anomalies nobody has marked.

A detector that learns what is normal from data is told that the data are normal. Here a known share
of them is not: one class is normal, a few samples of another one hide among it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.datasets import Dataset
from lmc_lessons.detection.autoencoders import check_finite
from lmc_lessons.training import generator

TASK = 78  # the random stream of who contaminates whom
ASIDE = 4  # one in so many images of the normal class is kept for thresholds


@dataclass(frozen=True)
class Task:
    """A training set with hidden anomalies, and what a detector is judged by.

    Attributes:
        train: Training inputs of shape (N, ...).
        hidden: Which of them are anomalies, shape (N,), bool; no method may look at it.
        held_out: Normal inputs that are not trained on, for thresholds.
        normal: Normal test inputs.
        observed: Test inputs of the class that contaminates the training set.
        unobserved: Test inputs of all other classes.
    """

    train: Tensor
    hidden: Tensor
    held_out: Tensor
    normal: Tensor
    observed: Tensor
    unobserved: Tensor


@dataclass(frozen=True)
class Draw:
    """How a task is drawn.

    Attributes:
        samples: Training inputs, hidden anomalies among them.
        held_out: Normal inputs for thresholds.
        tests: Test inputs of each kind.
        shift: Largest shift of an image, in pixels.
        jitter: Standard deviation of the noise on every pixel.
    """

    samples: int = 400
    held_out: int = 200
    tests: int = 200
    shift: int = 1
    jitter: float = 0.05

    def __post_init__(self) -> None:
        """Refuse empty sets and negative sizes."""
        if min(self.samples, self.held_out, self.tests) < 1:
            raise ValueError(
                "samples, held_out and tests must be at least 1, got "
                f"{self.samples}, {self.held_out}, {self.tests}"
            )
        if self.shift < 0 or not 0 <= self.jitter < float("inf"):
            raise ValueError(f"shift and jitter must be >= 0, got {self.shift}, {self.jitter}")


def draw_task(
    data: Dataset, normal: int, anomaly: int, rate: float, seed: int, draw: Draw = Draw()
) -> Task:
    """Draw a contaminated training set and its test sets.

    The number of training inputs is the same at every rate, and sets of one seed are nested: those
    who contaminate at a low rate do so at a higher one. Images for thresholds and for tests are
    never shown in training, not even shifted.

    Args:
        data: Images of several classes.
        normal: The class that counts as normal.
        anomaly: The class that contaminates.
        rate: Share of the training inputs that are anomalies, in [0, 0.5].
        seed: Decides who is drawn, shifts and noise.
        draw: How many, and how they are changed.

    Returns:
        The task.

    Raises:
        ValueError: If a class does not exist, both are one, the rate is out of range, a class has
            no samples, or an input is not finite.

    Taught in: book/detection/contaminated-training
    """
    count = anomalies_at(rate, draw.samples)
    _check_classes(data, normal, anomaly)
    check_finite(data.train_x)
    check_finite(data.test_x)
    train = {c: data.train_x[data.train_y == c] for c in (normal, anomaly)}
    stream = generator(seed, TASK)
    shuffled = train[normal][torch.randperm(len(train[normal]), generator=stream)]
    aside = max(1, len(shuffled) // ASIDE)
    others = (data.test_y != normal) & (data.test_y != anomaly)
    sources = [
        (shuffled[aside:], draw.samples),
        (train[anomaly], draw.samples // 2),
        (shuffled[:aside], draw.held_out),
        (data.test_x[data.test_y == normal], draw.tests),
        (data.test_x[data.test_y == anomaly], draw.tests),
        (data.test_x[others], draw.tests),
    ]
    kinds = ("normal", "anomalous", "held-out", "normal test", "observed test", "unobserved test")
    drawn = []
    for (source, wanted), kind in zip(sources, kinds, strict=True):
        if not len(source):
            raise ValueError(f"{data.name} has no {kind} samples for classes {normal}, {anomaly}")
        drawn.append(_drawn(source, wanted, stream, draw))
    normals, contaminants, held_out, *tests = drawn
    inputs = torch.cat([normals[: draw.samples - count], contaminants[:count]])
    hidden = torch.arange(draw.samples) >= draw.samples - count
    return Task(inputs, hidden, held_out, *tests)


def anomalies_at(rate: float, samples: int) -> int:
    """How many of so many training inputs are anomalies.

    Args:
        rate: Share in [0, 0.5].
        samples: Number of training inputs.

    Returns:
        The nearest whole number.

    Raises:
        ValueError: If the rate is out of range, or above 0 and gives no anomaly.
    """
    if not 0 <= rate <= 0.5:
        raise ValueError(f"a rate of contamination lies in [0, 0.5], got {rate}")
    count = min(round(rate * samples), samples // 2)
    if rate > 0 and count == 0:
        raise ValueError(f"a rate of {rate:g} gives no anomaly among {samples} samples")
    return count


def _check_classes(data: Dataset, normal: int, anomaly: int) -> None:
    for kind, label in (("normal", normal), ("anomalous", anomaly)):
        if not 0 <= label < data.classes:
            raise ValueError(
                f"the {kind} class must be one of 0 to {data.classes - 1}, got {label}"
            )
        if not (data.train_y == label).any():
            raise ValueError(f"{data.name} has no {kind} samples: no label is {label}")
    if normal == anomaly:
        raise ValueError(f"the normal and the anomalous class must differ, both are {normal}")


def _drawn(source: Tensor, count: int, stream: torch.Generator, draw: Draw) -> Tensor:
    """So many of a source, each once before any comes again, shifted and jittered."""
    rounds = -(-count // len(source))
    orders = [torch.randperm(len(source), generator=stream) for _ in range(rounds)]
    images = source[torch.cat(orders)[:count]]
    if draw.shift and images.dim() == 4:
        images = shifted(images, draw.shift, stream)
    if draw.jitter:
        noise = torch.randn(images.shape, generator=stream)
        images = (images + draw.jitter * noise).clamp(0, 1)
    return images


def shifted(images: Tensor, most: int, stream: torch.Generator) -> Tensor:
    """Shift each image by up to so many pixels in both directions; zeros come in.

    Args:
        images: Shape (N, C, H, W).
        most: Largest shift in pixels.
        stream: CPU generator.

    Returns:
        Images of the same shape.
    """
    n, _, height, width = images.shape
    moves = torch.randint(0, 2 * most + 1, (2, n, 1), generator=stream)
    rows = (moves[0] + torch.arange(height)).view(n, height, 1)
    columns = (moves[1] + torch.arange(width)).view(n, 1, width)
    padded = F.pad(images, (most, most, most, most)).permute(0, 2, 3, 1)
    return padded[torch.arange(n).view(n, 1, 1), rows, columns].permute(0, 3, 1, 2)

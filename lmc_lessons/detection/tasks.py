"""Tasks of anomaly detection: which classes are normal, which anomalies are known, which are not.

A task is cut from a classification data set. Known types of anomaly occur among the labelled
training samples; unknown types occur in the test samples only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lmc_lessons.datasets import Dataset
from lmc_lessons.detection.abc import check_labels
from lmc_lessons.detection.autoencoders import check_finite
from lmc_lessons.training import generator

SAMPLES, LABELLED = (
    72,
    73,
)  # random streams of one seed: who validates, which anomalies are labelled
KINDS = ("normal", "known", "unknown")
HELD_OUT = 10  # every tenth normal sample validates
HELD_OUT_LABELS = 5  # and every fifth labelled anomaly


@dataclass(frozen=True)
class Split:
    """Which classes are what, and how much is labelled.

    Attributes:
        normal: Normal classes.
        known: Classes of anomalies that may be labelled.
        unknown: Classes of anomalies that no training sample belongs to.
        labelled: Number of labelled anomalies, validation included.
        contamination: Share of the unlabelled training samples that are known anomalies all the
            same, in [0, 1).
        samples: Unlabelled training samples, validation included; None takes all normal ones.
    """

    normal: tuple[int, ...]
    known: tuple[int, ...]
    unknown: tuple[int, ...]
    labelled: int = 10
    contamination: float = 0.0
    samples: int | None = None

    def __post_init__(self) -> None:
        """Refuse splits that make no task."""
        if not self.normal:
            raise ValueError("a task needs at least one normal class, got none")
        every = (*self.normal, *self.known, *self.unknown)
        if len(set(every)) != len(every):
            raise ValueError(f"a class is normal, known or unknown, and only once; got {every}")
        if not 0 <= self.contamination < 1:
            raise ValueError(f"contamination must be in [0, 1), got {self.contamination}")
        if self.labelled < 0 or (self.samples is not None and self.samples < HELD_OUT):
            raise ValueError(
                f"labelled must be >= 0 and samples >= {HELD_OUT}, "
                f"got {self.labelled} and {self.samples}"
            )


@dataclass(frozen=True, eq=False)
class Task:
    """Samples to train on, to choose an epoch with, and to test on.

    Attributes:
        train_x: Inputs, float32, shape (N, ...), finite.
        train_y: 0 for unlabelled (taken for normal), 1 for a labelled anomaly; int64, shape (N,).
        valid_x: Inputs to choose an epoch with.
        valid_y: Their labels, likewise.
        test_x: Test inputs.
        test_kind: What each really is: 0 normal, 1 known anomaly, 2 unknown anomaly.
        name: Where it comes from.

    Raises:
        ValueError: If no sample to train on is normal, a label is neither 0 nor 1, or an input is
            not finite.
    """

    train_x: Tensor
    train_y: Tensor
    valid_x: Tensor
    valid_y: Tensor
    test_x: Tensor
    test_kind: Tensor
    name: str = "task"

    def __post_init__(self) -> None:
        """Hold the samples to what is promised."""
        for part in ("train", "valid"):
            y = getattr(self, f"{part}_y")
            check_labels(y)
            if not (y == 0).any():
                raise ValueError(f"{self.name} ({part}): no normal samples")
        for x in (self.train_x, self.valid_x, self.test_x):
            check_finite(x)

    @cached_property
    def data(self) -> Dataset:
        """What ``training.train`` takes: labelled and unlabelled samples, two classes."""
        return Dataset(
            self.name,
            "detection task",
            self.train_x,
            self.train_y,
            self.valid_x,
            self.valid_y,
            ("normal", "anomaly"),
        )

    @cached_property
    def normals(self) -> Task:
        """The same task without labelled anomalies in training and validation."""
        keep, valid = self.train_y == 0, self.valid_y == 0
        return dataclasses.replace(
            self,
            train_x=self.train_x[keep],
            train_y=self.train_y[keep],
            valid_x=self.valid_x[valid],
            valid_y=self.valid_y[valid],
        )

    def against(self, scores: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """Scores of normal test samples and of one kind of anomaly.

        Args:
            scores: Shape (N,), one per test sample.
            kind: ``known``, ``unknown``, or ``all`` anomalies.

        Returns:
            Scores, and whether each belongs to an anomaly.
        """
        wanted = self.test_kind > 0 if kind == "all" else self.test_kind == KINDS.index(kind)
        keep = wanted | (self.test_kind == 0)
        return scores[keep], wanted[keep]


def make_task(data: Dataset, split: Split, seed: int) -> Task:
    """Cut a task from a classification data set.

    The labelled anomalies of a larger number contain those of a smaller one, and every fifth of
    them validates. A tenth of the unlabelled samples validates, whatever the number of labels.

    Args:
        data: A data set.
        split: Which classes are what.
        seed: Which samples validate, and which anomalies are labelled.

    Returns:
        The task.

    Raises:
        ValueError: If a class does not exist, there are no normal samples, or fewer anomalies than
            are wanted.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    for wanted in (*split.normal, *split.known, *split.unknown):
        if not 0 <= wanted < data.classes:
            raise ValueError(f"{data.name} has classes 0 to {data.classes - 1}, got {wanted}")
    normal, anomalies = (members(data.train_y, kind) for kind in (split.normal, split.known))
    if len(normal) < 2:
        raise ValueError(f"{data.name} has no normal samples of classes {split.normal}")
    normal = normal[torch.randperm(len(normal), generator=generator(seed, SAMPLES))]
    anomalies = anomalies[torch.randperm(len(anomalies), generator=generator(seed, LABELLED))]
    total = len(normal) if split.samples is None else split.samples
    hidden = round(split.contamination * total)
    for kind, wanted, there in (
        ("normal samples", total - hidden, len(normal)),
        ("known anomalies", split.labelled + hidden, len(anomalies)),
    ):
        if wanted > there:
            raise ValueError(f"{data.name} has {there} {kind}, asked for {wanted}")
    unlabelled = torch.cat([normal[: total - hidden], anomalies[len(anomalies) - hidden :]])
    labelled = anomalies[: split.labelled]
    parts = [_every(unlabelled, HELD_OUT), _every(labelled, HELD_OUT_LABELS)]
    (train, valid), (train_anomalies, valid_anomalies) = parts
    train_index = torch.cat([train, train_anomalies])
    valid_index = torch.cat([valid, valid_anomalies])
    tested = [members(data.test_y, kind) for kind in (split.normal, split.known, split.unknown)]
    return Task(
        data.train_x[train_index],
        _labels(len(train), len(train_anomalies)),
        data.train_x[valid_index],
        _labels(len(valid), len(valid_anomalies)),
        data.test_x[torch.cat(tested)],
        torch.cat([torch.full((len(part),), k) for k, part in enumerate(tested)]),
        data.name,
    )


def members(y: Tensor, classes: Sequence[int]) -> Tensor:
    """Indices of the samples of some classes, in order.

    Args:
        y: Labels, shape (N,).
        classes: Which.

    Returns:
        int64, one entry per sample.
    """
    return torch.isin(y, torch.tensor(classes, dtype=y.dtype)).nonzero().flatten()


def _every(index: Tensor, period: int) -> tuple[Tensor, Tensor]:
    """What stays for training, and every so-manieth, which validates."""
    held = torch.arange(len(index)) % period == period - 1
    return index[~held], index[held]


def _labels(unlabelled: int, labelled: int) -> Tensor:
    return torch.cat([torch.zeros(unlabelled), torch.ones(labelled)]).long()


def split_class(data: Dataset, label: int, seed: int = 0) -> Dataset:
    """Split one class in two by 2-means, so that one half can be unknown.

    Args:
        data: A data set.
        label: The class; its second half becomes a new class after all others.
        seed: Start of 2-means, which sees training samples only.

    Returns:
        A data set with one class more.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    from sklearn.cluster import KMeans

    if not 0 <= label < data.classes:
        raise ValueError(f"{data.name} has classes 0 to {data.classes - 1}, got {label}")
    own = data.train_x[data.train_y == label].flatten(1).numpy()
    halves = KMeans(2, n_init=10, random_state=seed).fit(own)
    found = {}
    for part in ("train", "test"):
        x, y = getattr(data, f"{part}_x"), getattr(data, f"{part}_y").clone()
        second = torch.from_numpy(halves.predict(x.flatten(1).numpy()) == 1)
        y[(y == label) & second] = data.classes
        found[f"{part}_y"] = y
    names = [
        f"{name}, first half" if k == label else name for k, name in enumerate(data.class_names)
    ]
    names.append(f"{data.class_names[label]}, second half")
    return dataclasses.replace(
        data, variant=f"{data.variant}, class {label} halved", class_names=tuple(names), **found
    )


def sine_task(seed: int, labelled: int = 20, *, unlabelled: int = 900, tested: int = 500) -> Task:
    r"""Points of the plane: normal ones along a sine, two known and two unknown blobs beside it.

    Normal: $x$ evenly spread over $[-\pi, \pi]$ with noise of standard deviation 0.1, $y = 3 (\sin
    x + n)$ with $n$ of standard deviation 0.2. Known anomalies lie around $(-\pi/2, \pi/2)$ and
    $(\pi/2, -\pi/2)$ with variance 0.1, unknown ones likewise around $(-5, -5)$ and $(5, 5)$.

    Args:
        seed: Which points.
        labelled: Labelled anomalies, validation included; those of a larger number contain those
            of a smaller one.
        unlabelled: Normal points, validation included.
        tested: Test points of each kind.

    Returns:
        The task; all points have two coordinates without scaling.

    Raises:
        ValueError: If there are fewer than 10 normal points, or a number is negative.

    Source:
        takahashi2024puad's code, after which the numbers are chosen.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    if unlabelled < HELD_OUT or labelled < 0 or tested < 1:
        raise ValueError(
            f"unlabelled must be >= {HELD_OUT}, labelled >= 0 and tested >= 1, "
            f"got {unlabelled}, {labelled} and {tested}"
        )
    streams = [np.random.default_rng((seed, SAMPLES, k)) for k in range(5)]
    half = math.pi / 2
    known = ((-half, half), (half, -half))
    normals = _along_sine(unlabelled, streams[0])
    normals = normals[torch.randperm(unlabelled, generator=generator(seed, SAMPLES))]
    anomalies = _blobs(labelled, known, streams[1])
    (train, valid), (train_a, valid_a) = (
        _every(normals, HELD_OUT),
        _every(anomalies, HELD_OUT_LABELS),
    )
    tests = [
        _along_sine(tested, streams[2]),
        _blobs(tested, known, streams[3]),
        _blobs(tested, ((-5.0, -5.0), (5.0, 5.0)), streams[4]),
    ]
    return Task(
        torch.cat([train, train_a]),
        _labels(len(train), len(train_a)),
        torch.cat([valid, valid_a]),
        _labels(len(valid), len(valid_a)),
        torch.cat(tests),
        torch.arange(3).repeat_interleave(tested),
        "sine in the plane",
    )


def _along_sine(count: int, stream: np.random.Generator) -> Tensor:
    x = np.linspace(-math.pi, math.pi, count)
    y = 3 * (np.sin(x) + 0.2 * stream.standard_normal(count))
    points = np.stack([x + 0.1 * stream.standard_normal(count), y], 1)
    return torch.from_numpy(points.astype(np.float32))


def _blobs(count: int, places: Sequence[Sequence[float]], stream: np.random.Generator) -> Tensor:
    """Points around places, which take turns."""
    around = np.asarray(places)[np.arange(count) % len(places)].reshape(count, 2)
    points = around + math.sqrt(0.1) * stream.standard_normal((count, 2))
    return torch.from_numpy(points.astype(np.float32))

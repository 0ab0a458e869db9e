"""Tasks: who is normal, who validates, what is hidden, and what is refused."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import pytest
import torch

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.detection.tasks import Split, Task, make_task, sine_task, split_class

ODD, KNOWN = (1, 3, 5, 7, 9), (0, 2, 4, 6)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.load("digits")


def rows(x: torch.Tensor) -> set[bytes]:
    return {row.numpy().tobytes() for row in x}


def classes_of(data: Dataset, x: torch.Tensor) -> set[int]:
    """Classes of training samples that were chosen."""
    where = {
        row.numpy().tobytes(): int(y) for row, y in zip(data.train_x, data.train_y, strict=True)
    }
    return {where[row.numpy().tobytes()] for row in x}


def test_a_task_has_the_classes_that_were_asked_for(digits: Dataset) -> None:
    task = make_task(digits, Split(ODD, KNOWN, (8,), labelled=20), 3)
    normal = int(torch.isin(digits.train_y, torch.tensor(ODD)).sum())
    assert int((task.train_y == 0).sum()) + int((task.valid_y == 0).sum()) == normal
    assert int((task.valid_y == 0).sum()) == normal // 10
    assert (int((task.train_y == 1).sum()), int((task.valid_y == 1).sum())) == (16, 4)
    assert classes_of(digits, task.train_x[task.train_y == 0]) == set(ODD)
    assert classes_of(digits, task.train_x[task.train_y == 1]) <= set(KNOWN)
    assert not rows(task.train_x) & rows(task.valid_x)
    for kind, wanted in ((0, ODD), (1, KNOWN), (2, (8,))):
        count = int(torch.isin(digits.test_y, torch.tensor(wanted)).sum())
        assert int((task.test_kind == kind).sum()) == count
    assert task.data.classes == 2
    assert torch.equal(task.data.train_x, task.train_x)


def test_labels_of_a_larger_number_contain_those_of_a_smaller_one(digits: Dataset) -> None:
    sizes = [1, 5, 10, 50]
    tasks = [make_task(digits, Split(ODD, KNOWN, (8,), labelled=n), 0) for n in sizes]
    labelled = [rows(t.train_x[t.train_y == 1]) for t in tasks]
    held_out = [rows(t.valid_x[t.valid_y == 1]) for t in tasks]
    assert [len(part) for part in labelled] == [1, 4, 8, 40]
    assert all(a <= b for a, b in pairwise(labelled))
    assert all(a <= b for a, b in pairwise(held_out))
    assert len({tuple(t.train_x[t.train_y == 0].flatten().tolist()) for t in tasks}) == 1


def test_hidden_anomalies_take_the_place_of_normal_samples(digits: Dataset) -> None:
    split = Split(ODD, KNOWN, (8,), labelled=50, contamination=0.1, samples=500)
    task = make_task(digits, split, 1)
    unlabelled = torch.cat([task.train_x[task.train_y == 0], task.valid_x[task.valid_y == 0]])
    assert len(unlabelled) == 500
    normal = rows(digits.train_x[torch.isin(digits.train_y, torch.tensor(ODD))])
    hidden = rows(unlabelled) - normal
    assert len(hidden) == 50
    assert not hidden & rows(task.train_x[task.train_y == 1])


def test_seeds_choose_and_repeat(digits: Dataset) -> None:
    split = Split(ODD, KNOWN, (8,), labelled=10)
    first, again, other = (make_task(digits, split, seed) for seed in (0, 0, 1))
    assert torch.equal(first.train_x, again.train_x)
    assert rows(first.train_x[first.train_y == 1]) != rows(other.train_x[other.train_y == 1])


def test_scores_are_split_by_kind() -> None:
    task = sine_task(0, 5, tested=4)
    scores = torch.arange(12.0)
    for kind, anomalies in (
        ("known", range(4, 8)),
        ("unknown", range(8, 12)),
        ("all", range(4, 12)),
    ):
        found, positive = task.against(scores, kind)
        assert found[positive].tolist() == list(anomalies)
        assert found[~positive].tolist() == [0, 1, 2, 3]


def test_without_labels_only_normal_samples_are_left() -> None:
    task = sine_task(0, 10)
    assert (task.train_y == 1).any()
    assert not task.normals.train_y.any()
    assert not task.normals.valid_y.any()
    assert torch.equal(task.normals.train_x, task.train_x[task.train_y == 0])
    assert task.normals.test_x is task.test_x


def test_points_of_the_sine_lie_where_they_should() -> None:
    task = sine_task(1, 20)
    normal = task.test_x[task.test_kind == 0]
    off = normal[:, 1] - 3 * torch.sin(normal[:, 0])
    assert off.std().item() == pytest.approx(0.65, abs=0.05)  # 0.6, and the noise of x
    for kind, places in ((1, [[-1.57, 1.57], [1.57, -1.57]]), (2, [[-5, -5], [5, 5]])):
        points = task.test_x[task.test_kind == kind]
        for k, place in enumerate(places):
            own = points[k::2]
            assert own.mean(0).tolist() == pytest.approx(place, abs=0.1)
            assert own.var(0).tolist() == pytest.approx([0.1, 0.1], rel=0.3)
    small, large = sine_task(1, 1), sine_task(1, 20)
    assert rows(small.train_x[small.train_y == 1]) <= rows(large.train_x[large.train_y == 1])
    assert torch.equal(small.test_x, large.test_x)


def test_a_class_is_split_by_training_samples_alone() -> None:
    data = datasets.load("breast-cancer")
    halves = split_class(data, 0)
    assert halves.class_names == ("malignant, first half", "benign", "malignant, second half")
    for part in ("train", "test"):
        before, after = getattr(data, f"{part}_y"), getattr(halves, f"{part}_y")
        assert torch.equal(before == 1, after == 1)
        assert {0, 1, 2} == set(after.tolist())
    changed = dataclasses.replace(data, test_x=data.test_x.flip(0))
    assert torch.equal(split_class(changed, 0).train_y, halves.train_y)
    with pytest.raises(ValueError, match="has classes 0 to 1, got 2"):
        split_class(data, 2)


def with_nan(task: Task) -> dict[str, Any]:
    x = task.test_x.clone()
    x[3, 1] = torch.nan
    return {"test_x": x}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: {"train_y": t.train_y * 0 + 1}, r"sine .* \(train\): no normal samples"),
        (lambda t: {"valid_y": t.valid_y * 0 + 1}, r"\(valid\): no normal samples"),
        (lambda t: {"train_y": t.train_y + 1}, r"labels must be 0 .* or 1 .*, got 2"),
        (with_nan, "inputs must be finite, got 1 entries"),
    ],
)
def test_bad_samples_are_refused_in_one_line(change: Any, expected: str) -> None:
    task = sine_task(0, 5)
    with pytest.raises(ValueError, match=expected) as caught:
        dataclasses.replace(task, **change(task))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda d: Split((), KNOWN, (8,)), "at least one normal class, got none"),
        (lambda d: Split(ODD, KNOWN, (1,)), "known or unknown, and only once"),
        (
            lambda d: Split(ODD, KNOWN, (8,), contamination=1.0),
            r"contamination must be in \[0, 1\)",
        ),
        (lambda d: Split(ODD, KNOWN, (8,), labelled=-1), "labelled must be >= 0"),
        (lambda d: Split(ODD, KNOWN, (8,), samples=5), "samples >= 10, got 10 and 5"),
        (lambda d: make_task(d, Split(ODD, KNOWN, (10,)), 0), "has classes 0 to 9, got 10"),
        (
            lambda d: make_task(d, Split(ODD, KNOWN, (8,), 9999), 0),
            "known anomalies, asked for 9999",
        ),
        (
            lambda d: make_task(d, Split(ODD, KNOWN, (8,), samples=9999), 0),
            "normal samples, asked for 9999",
        ),
        (lambda d: sine_task(0, -1), "labelled >= 0 .* got 900, -1 and 500"),
    ],
)
def test_tasks_that_cannot_be_made_are_refused(make: Any, expected: str, digits: Dataset) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        make(digits)
    assert "\n" not in str(caught.value)


def test_a_data_set_without_normal_samples_is_refused(digits: Dataset) -> None:
    even = digits.train_y % 2 == 0
    only = dataclasses.replace(digits, train_x=digits.train_x[even], train_y=digits.train_y[even])
    with pytest.raises(ValueError, match="digits has no normal samples of classes"):
        make_task(only, Split(ODD, KNOWN, (8,)), 0)

"""Contaminated sets: who is in them, what nobody is shown twice, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from lmc_lessons.datasets import Dataset
from lmc_lessons.detection.contamination import Draw, anomalies_at, draw_task, shifted

PLAIN = Draw(samples=40, held_out=5, tests=6, shift=0, jitter=0.0)


def marked(classes: int = 4, each: int = 80) -> Dataset:
    """Images whose first pixel is their class, and whose second one is their number."""
    y = torch.arange(classes * each) % classes
    x = torch.zeros(len(y), 1, 3, 3)
    x[:, 0, 0, 0] = y / 10
    x[:, 0, 0, 1] = torch.arange(len(y)) / 1000
    half = len(y) // 2
    return Dataset("marked", "made", x[:half], y[:half], x[half:], y[half:], tuple("abcd"))


def classes(x: torch.Tensor) -> list[int]:
    return (10 * x[:, 0, 0, 0]).round().int().tolist()


def numbers(x: torch.Tensor) -> set[int]:
    return set((1000 * x[:, 0, 0, 1]).round().int().tolist())


def test_so_many_anomalies_and_all_are_marked() -> None:
    task = draw_task(marked(), 1, 2, 0.1, 0, PLAIN)
    assert len(task.train) == 40
    assert task.hidden.sum() == 4
    assert classes(task.train) == [2 if mark else 1 for mark in task.hidden]
    assert set(classes(task.held_out)) == set(classes(task.normal)) == {1}
    assert set(classes(task.observed)) == {2}
    assert set(classes(task.unobserved)) <= {0, 3}


def test_nobody_is_trained_on_and_held_out() -> None:
    data = marked()
    task = draw_task(data, 1, 2, 0.1, 0, PLAIN)
    seen = numbers(task.train)
    assert not seen & numbers(task.held_out)
    for part in (task.normal, task.observed, task.unobserved):
        assert not seen & numbers(part)
        assert numbers(part) <= numbers(data.test_x)


def test_everyone_comes_once_before_anyone_comes_again() -> None:
    task = draw_task(marked(), 1, 2, 0.0, 0, dataclasses.replace(PLAIN, samples=60))
    counts = torch.tensor([x[0, 0, 1] for x in task.train]).unique(return_counts=True)[1]
    assert counts.tolist() == [2] * 30


def test_sets_of_a_seed_are_nested() -> None:
    few, many = (draw_task(marked(), 1, 2, rate, 3, PLAIN) for rate in (0.05, 0.2))
    assert torch.equal(few.train[few.hidden], many.train[many.hidden][:2])
    assert torch.equal(few.train[:32], many.train[:32])
    assert torch.equal(few.normal, many.normal)


def test_seeds_differ_and_repeat() -> None:
    one, again, other = (draw_task(marked(), 1, 2, 0.1, s, Draw(40, 5, 6)) for s in (0, 0, 1))
    assert torch.equal(one.train, again.train)
    assert not torch.equal(one.train, other.train)


def test_shifting_moves_whole_images() -> None:
    x = torch.rand(50, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    moved = shifted(x, 1, torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    places = set()
    for before, after in zip(padded, moved, strict=True):
        found = [
            (r, c)
            for r in range(3)
            for c in range(3)
            if torch.equal(before[:, r : r + 5, c : c + 5], after)
        ]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) == 9


def test_noise_stays_in_range() -> None:
    task = draw_task(marked(), 1, 2, 0.1, 0, Draw(40, 5, 6, shift=0, jitter=0.3))
    assert task.train.min() >= 0
    assert task.train.max() <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normal": 7}, "the normal class must be one of 0 to 3, got 7"),
        ({"anomaly": -1}, "the anomalous class must be one of 0 to 3, got -1"),
        ({"anomaly": 1}, "must differ, both are 1"),
        ({"rate": 0.6}, "lies in \\[0, 0.5\\], got 0.6"),
        ({"rate": float("nan")}, "lies in \\[0, 0.5\\], got nan"),
        ({"rate": 0.001}, "a rate of 0.001 gives no anomaly among 40 samples"),
    ],
)
def test_bad_tasks_are_refused(change: dict[str, float], message: str) -> None:
    given = {"normal": 1, "anomaly": 2, "rate": 0.1, "seed": 0} | change
    with pytest.raises(ValueError, match=message) as error:
        draw_task(marked(), **given, draw=PLAIN)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_data_without_normals_or_with_nan_are_refused() -> None:
    data = marked()
    without = dataclasses.replace(data, train_y=torch.where(data.train_y == 1, 0, data.train_y))
    with pytest.raises(ValueError, match="has no normal samples: no label is 1"):
        draw_task(without, 1, 2, 0.1, 0, PLAIN)
    untested = dataclasses.replace(data, test_y=torch.where(data.test_y == 2, 0, data.test_y))
    with pytest.raises(ValueError, match="has no observed test samples"):
        draw_task(untested, 1, 2, 0.1, 0, PLAIN)
    x = data.train_x.clone()
    x[3] = float("nan")
    with pytest.raises(ValueError, match="inputs must be finite, got 9 entries"):
        draw_task(dataclasses.replace(data, train_x=x), 1, 2, 0.1, 0, PLAIN)


@pytest.mark.parametrize("change", [{"samples": 0}, {"tests": 0}, {"shift": -1}, {"jitter": -0.1}])
def test_bad_draws_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Draw(**change)


def test_counts_are_rounded() -> None:
    assert [anomalies_at(rate, 400) for rate in (0, 0.01, 0.05, 0.5)] == [0, 4, 20, 200]

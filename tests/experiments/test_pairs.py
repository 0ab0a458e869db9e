"""Pairs of networks: trained once, in whatever company, and measured on the lines between them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import random_images

from lmc_lessons import datasets
from lmc_lessons.experiments import runs
from lmc_lessons.experiments.pairs import (
    PairConfig,
    PairRun,
    Setting,
    distance,
    gpu_recipe,
    profile_on_test,
    profiles,
)
from lmc_lessons.landscape import interpolate, reset_batchnorm
from lmc_lessons.models import ModelConfig, Params, initial
from lmc_lessons.training import Spawn, TrainConfig

MODEL = ModelConfig(width=6, depth=2)
RECIPE = TrainConfig(epochs=2, batch_size=20)
CONFIG = PairConfig(seeds=(3, 0), model=MODEL, train=RECIPE, positions=5, evaluate=8, match_with=12)


@pytest.fixture(autouse=True)
def small_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", random_images)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The seeds of every training that takes place."""
    done: list[tuple[int, ...]] = []
    train = runs.train

    def watched(model: Any, data: Any, seeds: Any, *others: Any, **more: Any) -> Any:
        done.append(tuple(seeds))
        return train(model, data, seeds, *others, **more)

    monkeypatch.setattr(runs, "train", watched)
    return done


def same(first: list[Params], second: list[Params]) -> bool:
    return len(first) == len(second) and all(
        p.keys() == q.keys() and all(torch.equal(p[n], q[n]) for n in p)
        for p, q in zip(first, second, strict=True)
    )


def made(model: ModelConfig = MODEL, **changes: Any) -> tuple[Setting, list[Params]]:
    """A setting and the networks of its pairs."""
    run = PairRun(dataclasses.replace(CONFIG, model=model, **changes))
    return run.setting(model), run.networks("networks", model, RECIPE)[RECIPE.epochs]


# --- Training -------------------------------------------------------------------------------------


def test_the_same_architecture_and_recipe_are_trained_once(
    trainings: list[tuple[int, ...]],
) -> None:
    run = PairRun(CONFIG)
    first = run.networks("networks", MODEL, RECIPE, (0,))
    again = run.networks("width-6", dataclasses.replace(MODEL), dataclasses.replace(RECIPE))
    assert again[2] is first[2]
    assert trainings == [(6, 7, 0, 1)]
    run.networks("wider", dataclasses.replace(MODEL, width=7), RECIPE)
    run.networks("longer", MODEL, dataclasses.replace(RECIPE, epochs=3))
    assert len(trainings) == 3


def test_snapshots_asked_for_later_are_not_forgotten() -> None:
    """A second measurement may want epochs of networks that the first had no use for."""
    run = PairRun(CONFIG)
    first = run.networks("networks", MODEL, RECIPE)
    again = run.networks("early", MODEL, RECIPE, (0,))
    assert set(again) == {0, 2}
    assert same(again[2], first[2])


def test_pairs_are_in_the_order_of_their_seeds() -> None:
    run = PairRun(CONFIG)
    networks = run.networks("networks", MODEL, RECIPE, (0, 1, 9))
    assert list(networks) == [0, 1, 2], "an epoch after the last is never reached"
    for s, pair in run.pairs(networks[0]):
        for network, seed in zip(pair, (2 * s, 2 * s + 1), strict=True):
            assert same([network], [initial(MODEL, seed)])
    assert [s for s, _ in run.pairs(networks[2])] == [3, 0]


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("together", [1, 3, 4, 99])
def test_company_does_not_change_a_network(together: int, norm: Any, tmp_path: Path) -> None:
    model = dataclasses.replace(MODEL, norm=norm)
    all_at_once, apart = (
        PairRun(dataclasses.replace(CONFIG, together=t), folder)
        for t, folder in ((0, None), (together, tmp_path))
    )
    wanted = all_at_once.networks("networks", model, RECIPE, (1,))
    for _ in range(2):  # trained, then found in the folder
        apart.trained.clear()
        found = apart.networks("networks", model, RECIPE, (1,))
        assert list(found) == list(wanted)
        assert all(same(found[epoch], wanted[epoch]) for epoch in wanted)


def test_runs_that_leave_another_do_so_in_any_company() -> None:
    seeds, spawn = (50, 51, 0), (Spawn(0, 3), None, Spawn(1, 0))
    found = [
        PairRun(dataclasses.replace(CONFIG, together=together)).train(
            "spawned", MODEL, RECIPE, seeds, spawn=spawn
        )[RECIPE.epochs]
        for together in (0, 1, 2)
    ]
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    plain = PairRun(CONFIG).train("plain", MODEL, RECIPE, seeds)[RECIPE.epochs]
    assert [same([p], [q]) for p, q in zip(found[0], plain, strict=True)] == [False, True, False]


# --- Lines ----------------------------------------------------------------------------------------


def test_both_profiles_agree_and_each_has_its_split() -> None:
    setting, (a, b, *_) = made()
    test, fit = profiles(setting, a, b)
    assert test == profile_on_test(setting, a, b)
    assert [len(values) for values in (*test, *fit)] == [CONFIG.positions] * 6
    data = setting.data
    swapped = dataclasses.replace(
        data, test_x=data.train_x, test_y=data.train_y, train_x=data.test_x, train_y=data.test_y
    )
    assert profiles(setting._replace(data=swapped), a, b) == (fit, test)
    backwards = profile_on_test(setting, b, a)
    assert backwards.loss[::-1] == pytest.approx(test.loss, rel=1e-5)


def test_statistics_are_reset_inside_and_only_if_asked() -> None:
    setting, (a, b, *_) = made(dataclasses.replace(MODEL, norm="batch"))
    reset, raw = (profile_on_test(setting, a, b, reset=wanted) for wanted in (True, False))
    assert [reset.loss[k] == raw.loss[k] for k in range(5)] == [True, False, False, False, True]
    middle = reset_batchnorm(setting.model, interpolate(a, b, 0.5), setting.match_with)
    assert profile_on_test(setting, middle, b).loss[0] == reset.loss[2]
    assert profiles(setting, a, b, reset=False)[0] == raw


def test_there_is_nothing_to_reset_without_batchnorm() -> None:
    setting, (a, b, *_) = made()
    assert profile_on_test(setting, a, b) == profile_on_test(setting, a, b, reset=False)


def test_a_setting_holds_what_was_asked_for() -> None:
    setting, _ = made()
    whole = random_images("digits")
    assert list(setting.positions) == [0, 0.25, 0.5, 0.75, 1]
    for found, wanted in (
        (setting.data.test_x, whole.test_x[:8]),
        (setting.data.test_y, whole.test_y[:8]),
        (setting.data.train_x, whole.train_x[:8]),
        (setting.data.train_y, whole.train_y[:8]),
        (setting.match_with, whole.train_x[:12]),
    ):
        assert torch.equal(found, wanted)
    everything, _ = made(evaluate=None)
    assert len(everything.data.test_x) == len(whole.test_x)
    assert [group.size for group in setting.symmetry.groups] == [6, 6]


def test_distance_is_euclidean_and_leaves_statistics_out() -> None:
    setting, (a, b, *_) = made(dataclasses.replace(MODEL, norm="batch"))
    names = [name for name in a if "running" not in name and "batches" not in name]
    squares = sum(((a[n].double() - b[n].double()) ** 2).sum() for n in names)
    assert distance(setting.model, a, b) == pytest.approx(float(squares) ** 0.5, rel=1e-6)
    other = {n: t if n in names else t + 5 for n, t in b.items()}
    assert distance(setting.model, a, other) == distance(setting.model, a, b)
    assert distance(setting.model, b, other) == 0 < distance(setting.model, b, a)


# --- What is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, r"seeds must be different integers >= 0, got \(\)"),
        ({"seeds": (2, 2)}, "seeds must be different"),
        ({"seeds": (-1,)}, "seeds must be different"),
        ({"positions": 4}, "positions must be odd and at least 3, got 4"),
        ({"positions": 1}, "positions must be odd and at least 3, got 1"),
        ({"together": -1}, "together must be >= 0, got -1"),
        ({"evaluate": 0}, "evaluate must be at least 1, got 0"),
        ({"match_with": 0}, "match_with must be at least 1, got 0"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        PairConfig(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (dataclasses.replace(MODEL, classes=5), "digits has 10 classes, the model 5"),
        (
            dataclasses.replace(MODEL, input_shape=(64,)),
            r"digits has inputs of shape \(1, 8, 8\), the model takes \(64,\)",
        ),
    ],
)
def test_data_must_fit_the_model(model: ModelConfig, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        PairRun(dataclasses.replace(CONFIG, model=model))


def test_a_recipe_is_changed_where_it_was_asked_and_nowhere_else() -> None:
    assert dataclasses.replace(gpu_recipe(epochs=7), epochs=gpu_recipe().epochs) == gpu_recipe()
    with pytest.raises(ValueError, match="allowed: adam, adamw, sgd"):
        gpu_recipe(optimizer="lion")

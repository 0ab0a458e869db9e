"""The lesson's claims can come out either way; its controls are what they are said to be."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SHAPES, check_claims, check_controls, killed_again_and_again, random_images, shape
from fakes import synthetic as fake_result

from lmc_lessons import datasets, training
from lmc_lessons.experiments import loss_barriers as lesson
from lmc_lessons.experiments.pairs import PairRun, distance
from lmc_lessons.experiments.runs import override
from lmc_lessons.models import Params, build, initial, predict, stack, unstack
from lmc_lessons.results import Claim, Result, Series, dump
from lmc_lessons.training import Spawn

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5


# --- Claims ---------------------------------------------------------------------------------------


def around(value: float) -> list[float]:
    """One number per seed, close to that value but not all the same."""
    return [value * (1 + 0.01 * k) for k in range(SEEDS)]


def spawned(steps: list[int], barriers: list[float]) -> Series:
    """Test barriers over the steps shared; what else was measured does not matter."""
    rows = [[v * (1 + 0.01 * k) for v in barriers] for k in range(SEEDS)]
    axes: dict[str, list[Any]] = {"quantity": list(lesson.SPAWNED), "step": steps}
    return Series(axes, [[row, [9.0] * len(steps), [9.0] * len(steps), row] for row in rows])


def variance(recipes: list[str], matched: list[list[float]]) -> Series:
    """Variance left per recipe and layer of the matched midpoint; without matching it is gone."""
    axes: dict[str, list[Any]] = {
        "recipe": recipes,
        "path": ["naive", "weights"],
        "layer": list(range(1, 5)),
    }
    rows = [[[0.0] * 4, layers] for layers in matched]
    return Series(axes, [rows for _ in range(SEEDS)])


STEPS = [0, 5, 42, 210]
FALLING, RISING, LOW = [0.9, 0.5, 0.2, 0.01], [0.0, 0.1, 0.4, 0.8], [0.01, 0.0, 0.0, 0.0]
SHRINKING, KEPT = [0.9, 0.6, 0.3, 1.0], [0.9, 0.9, 0.88, 0.1]  # the output comes last

# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "L1": ({"stranger_barrier": around(1.0)}, {"stranger_barrier": around(0.05)}),
    "L2": ({"stranger_margin_kept": around(0.2)}, {"stranger_margin_kept": around(0.8)}),
    "P1": ({"copy_barrier": around(1.0)}, {"copy_barrier": around(0.05)}),
    "P2": (
        {"copy_barrier": around(1.0), "stranger_barrier": around(1.2)},
        {"copy_barrier": around(1.0), "stranger_barrier": around(3.0)},
    ),
    "P3": (
        {"far_copy_barrier": around(2.0), "stranger_barrier": around(1.0)},
        {"far_copy_barrier": around(1.0), "stranger_barrier": around(1.0)},
    ),
    "P4": ({"copy_output_change": [1e-6] * SEEDS}, {"copy_output_change": [1e-6] * 4 + [0.01]}),
    "S1": ({"wide_spawned": spawned(STEPS, LOW)}, {"wide_spawned": spawned(STEPS, FALLING)}),
    "S2": ({"wide_other_start_barrier": around(1.0)}, {"wide_other_start_barrier": around(0.01)}),
    "S3": ({"deep_spawned": spawned(STEPS, FALLING)}, {"deep_spawned": spawned(STEPS, LOW)}),
    "S4": ({"deep_spawned": spawned(STEPS, FALLING)}, {"deep_spawned": spawned(STEPS, RISING)}),
    "S5": ({"deep_spawned": spawned(STEPS, FALLING)}, {"deep_spawned": spawned(STEPS, RISING)}),
    "V1": (
        {"variance_left": variance(["adam", "sgd"], [SHRINKING, KEPT])},
        {"variance_left": variance(["adam", "sgd"], [KEPT, SHRINKING])},
    ),
    "V2": (
        {
            "norm_adam_ends": around(0.9),
            "norm_adam_weights": around(0.2),
            "norm_adam_weights_reset": around(0.8),
        },
        {
            "norm_adam_ends": around(0.9),
            "norm_adam_weights": around(0.2),
            "norm_adam_weights_reset": around(0.3),
        },
    ),
    "V3": (
        {"norm_adam_weights_reset": around(0.8), "norm_adam_naive_reset": around(0.5)},
        {"norm_adam_weights_reset": around(0.8), "norm_adam_naive_reset": around(0.8)},
    ),
}


def synthetic(measured: dict[str, Any]) -> Result:
    return fake_result(lesson.LESSON, measured, SEEDS)


def verdict(name: str, measured: dict[str, Any]) -> str:
    return CLAIMS[name].decide(synthetic(measured)).verdict


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


def test_a_claim_needs_its_controls_too() -> None:
    check_controls(lesson, MEASURED, SEEDS)


@pytest.mark.parametrize("absent", ["copy_barrier", "stranger_barrier"])
def test_a_ratio_of_barriers_needs_both_in_every_pair(absent: str) -> None:
    """Barely trained networks may have no barrier at all: that must not end the run."""
    measured = MEASURED["P2"][0] | {absent: [1.0, 1.0, 0.0, 1.0, 1.0]}
    found = CLAIMS["P2"].decide(synthetic(measured))
    assert (found.verdict, found.effect) == ("not-measured", None)
    assert "a barrier in every pair" in found.evidence


def test_a_factor_counts_the_same_both_ways() -> None:
    higher, lower = around(2.0), around(1.0)
    effects = [
        CLAIMS["P2"].decide(synthetic({"copy_barrier": p, "stranger_barrier": q})).effect
        for p, q in ((higher, lower), (lower, higher))
    ]
    assert effects == [pytest.approx(math.log(2)), pytest.approx(-math.log(2))]
    assert CLAIMS["P2"].margin == pytest.approx(math.log(1.5), abs=1e-3)


@pytest.mark.parametrize(("name", "step"), [("S1", 0), ("S3", 0), ("S5", 210)])
def test_a_claim_about_a_step_needs_that_step(name: str, step: int) -> None:
    key = "wide_spawned" if name == "S1" else "deep_spawned"
    rest = [s for s in STEPS if s != step]
    found = CLAIMS[name].decide(synthetic({key: spawned(rest, LOW[:3])}))
    assert found.verdict == "not-measured"
    assert f"{step} steps" in found.evidence


def test_two_numbers_of_steps_are_no_trend() -> None:
    assert verdict("S4", {"deep_spawned": spawned([0, 210], [0.9, 0.1])}) == "not-measured"


def test_barriers_that_are_all_equal_are_no_trend() -> None:
    """Spearman's rho of a constant does not exist: no warning, no NaN, no error."""
    one_flat = spawned(STEPS, FALLING)
    one_flat.values[2][0] = [0.0] * 4
    for series in (spawned(STEPS, [0.0] * 4), spawned(STEPS, [0.3] * 4), one_flat):
        assert verdict("S4", {"deep_spawned": series}) == "not-measured"


@pytest.mark.parametrize("accuracy", [0.9, 0.95])
def test_what_was_not_lost_cannot_be_regained(accuracy: float) -> None:
    measured = MEASURED["V2"][0] | {"norm_adam_ends": [0.9] * SEEDS}
    measured |= {"norm_adam_weights": [0.2, 0.2, accuracy, 0.2, 0.2]}
    assert verdict("V2", measured) == "not-measured"


def test_the_fall_of_variance_is_that_of_the_networks_trained_with_adam() -> None:
    """As in V2 and V3, whatever other recipes ran, and in whatever order."""
    other_order = variance(["sgd", "adam"], [KEPT, SHRINKING])
    assert verdict("V1", {"variance_left": other_order}) == "holds"
    assert verdict("V1", {"variance_left": variance(["sgd"], [SHRINKING])}) == "not-measured"


def test_variance_cannot_fall_over_a_single_hidden_layer() -> None:
    axes: dict[str, list[Any]] = {"recipe": ["adam"], "path": ["naive", "weights"], "layer": [1, 2]}
    shallow = Series(axes, [[[[0.5, 0.5], [0.9, 0.4]]] for _ in range(SEEDS)])
    assert verdict("V1", {"variance_left": shallow}) == "not-measured"


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert claim.margin >= 0


# --- Presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.dataset in datasets.names()
    for model, used in (
        (config.model, True),
        (config.deep, config.deep_steps),
        (config.normed, config.recipes),
    ):
        if used:
            assert model.input_shape == SHAPES[config.dataset]
            with torch.device("meta"):
                build(model)
    assert hash(config) == hash(dataclasses.replace(config))


def test_the_scales_of_the_design_are_there() -> None:
    wanted = "toy study full-mnist-mlp full-fashion-mlp full-cifar-vgg11 full-cifar-resnet20"
    assert set(wanted.split()) <= set(lesson.PRESETS)
    assert len(lesson.PRESETS["toy"].seeds) <= 2
    for name in wanted.split()[1:]:
        assert len(lesson.PRESETS[name].seeds) >= 5, name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"spawn_steps": (-1, 0)}, "spawn_steps must be increasing integers >= 0"),
        ({"spawn_steps": (5, 1)}, r"spawn_steps must be increasing.*got \(5, 1\)"),
        ({"deep_steps": (0, 0)}, r"deep_steps must be increasing.*got \(0, 0\)"),
        ({"deep_steps": (-3,)}, "deep_steps must be increasing"),
        ({"deep_steps": tuple(range(101))}, "deep_steps.*at most 100"),
        ({"recipes": ("adam", "lion")}, "no recipe 'lion', allowed: adam, sgd"),
        ({"grid": 1}, "grid must be 0 or at least 2, got 1"),
        ({"grid": -1}, "grid must be 0 or at least 2, got -1"),
        ({"seeds": (0, 5000)}, "seeds must be below 5000"),
        ({"seeds": ()}, "seeds must be different integers >= 0"),
        ({"positions": 4}, "positions must be odd"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**changes)
    assert "\n" not in str(caught.value)


SMALL = [
    *("seeds=(0, 1)", "train.epochs=2", "train.batch_size=20", "spawn_steps=(0, 2)"),
    *("positions=3", "evaluate=8", "match_with=8", "grid=3"),
    *("train.precision=float32", "train.compile=False"),
]
SMALL_MLP = [
    *("model.width=8", "deep.width=4", "deep.depth=3", "deep_steps=(0, 1, 210)"),
    *("normed.width=6", "normed.depth=3"),
]
SMALL_IMAGES = [
    *("seeds=(0,)", "train.epochs=1", "model.width=1", "spawn_steps=(0,)", "grid=2"),
    *("evaluate=2", "match_with=4"),
]
SMALLER: dict[str, list[str]] = {
    "toy": SMALL_MLP,
    "study": SMALL_MLP,
    "full-mnist-mlp": ["model.width=6", "model.depth=2"],
    "full-fashion-mlp": ["model.width=6", "model.depth=2"],
    "full-cifar-vgg11": [*SMALL_IMAGES, "model.architecture=cnn"],
    "full-cifar-resnet20": SMALL_IMAGES,
}
ALONE = {"S3", "S4", "S5", "V1", "V2", "V3"}  # claims that presets at full scale leave open


def small(preset: str, *settings: str) -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALL, *SMALLER[preset], *settings])
    return config


def test_every_preset_has_a_small_edition() -> None:
    assert set(SMALLER) == set(lesson.PRESETS)


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_shrunk_presets_run_and_give_the_same_numbers_twice(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    config = small(preset)
    first, again = lesson.run(config), lesson.run(config)
    assert first.metrics == again.metrics
    assert first.series == again.series
    assert first.claims == again.claims
    assert [claim.id for claim in first.claims] == list(CLAIMS)
    assert first.config == json.loads(json.dumps(dataclasses.asdict(config)))
    assert set(first.datasets) == {config.dataset}
    seeds = len(config.seeds)
    assert {len(values) for values in first.metrics.values()} == {seeds}
    for name, series in first.series.items():
        assert shape(series.values) == (seeds, *map(len, series.axes.values())), name
    assert Result.from_json(json.loads(dump(first.to_json()))).metrics == first.metrics
    present = {
        "plane": config.grid,
        "wide_spawned": config.spawn_steps,
        "deep_spawned": config.deep_steps,
        "norms": config.recipes,
        "variance_left": config.recipes,
    }
    assert {n for n, there in present.items() if there} == present.keys() & first.series.keys()
    for claim in first.claims:
        if claim.verdict == "not-measured":
            left_out = claim.id in ALONE and not config.deep_steps
            none_there = "a barrier" in claim.evidence or "a loss of accuracy" in claim.evidence
            assert left_out or none_there, claim


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    config = small("toy", "deep_steps=(0, 1)", "grid=2", "together=3")
    whole = lesson.run(config)
    last, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=9
    )
    assert attempts > 3
    assert (last.metrics, last.series, last.claims) == (whole.metrics, whole.series, whole.claims)


def test_a_pair_gives_the_same_numbers_alone_and_among_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ``refresh`` relies on: one seed, run again, stands for the study."""
    monkeypatch.setattr(datasets, "load", random_images)
    many = lesson.run(small("toy", "seeds=(4, 1)"))
    once = lesson.run(small("toy", "seeds=(1,)"))
    assert {name: values[1] for name, values in many.metrics.items()} == {
        name: values[0] for name, values in once.metrics.items()
    }
    assert {name: series.values[1] for name, series in many.series.items()} == {
        name: series.values[0] for name, series in once.series.items()
    }


def test_parts_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then they are not trained either, and their claims stay open."""
    monkeypatch.setattr(datasets, "load", random_images)
    stages: list[str] = []
    train = PairRun.train

    def watched(self: PairRun, name: str, *others: Any, **more: Any) -> Any:
        stages.append(name)
        return train(self, name, *others, **more)

    monkeypatch.setattr(PairRun, "train", watched)
    nothing = lesson.run(
        small("toy", "deep_steps=()", "recipes=()", "spawn_steps=()", "grid=0", "seeds=(0,)")
    )
    assert stages == ["networks"]
    assert set(nothing.series) == {
        *("test_loss", "test_error", "test_margin", "train_loss", "train_error")
    }
    assert not [
        n for n in nothing.metrics if n.startswith(("deep_", "norm_", "wide_", "matched_u"))
    ]
    open_ = {claim.id for claim in nothing.claims if claim.verdict == "not-measured"}
    assert open_ - {"P2"} == ALONE | {"S1", "S2"}
    stages.clear()
    lesson.run(small("toy", "deep_steps=()", "recipes=('sgd',)", "grid=0", "seeds=(0,)"))
    assert stages == ["networks", "wide-spawned", "norm-sgd"]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.input_shape=(1, 4, 4)", r"\(1, 8, 8\).*\(1, 4, 4\)"),
        ("deep.input_shape=(1, 4, 4)", r"\(1, 8, 8\).*\(1, 4, 4\)"),
        ("normed.input_shape=(1, 4, 4)", r"\(1, 8, 8\).*\(1, 4, 4\)"),
        ("model.classes=5", "10.*5"),
        ("deep.classes=5", "10.*5"),
        ("normed.classes=5", "10.*5"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_trained(
    setting: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    trained: list[int] = []

    def no_time(run: Any, epoch: int) -> torch.Tensor:
        trained.append(epoch)
        return torch.ones(len(run.seeds))

    monkeypatch.setattr(training._Run, "epoch", no_time)
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.run(small("toy", setting, "seeds=(0,)"))
    assert "\n" not in str(caught.value)
    assert not trained


def test_parts_left_out_need_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    config = small("toy", "seeds=(0,)", "grid=0", "spawn_steps=()", "deep_steps=()", "recipes=()")
    lesson.run(override(config, ["deep.input_shape=(1, 4, 4)", "normed.input_shape=(64,)"]))


# --- Copies ---------------------------------------------------------------------------------------


def double(params: Params) -> Params:
    return {n: t.double() if t.is_floating_point() else t for n, t in params.items()}


@pytest.fixture(scope="module")
def trained() -> tuple[PairRun, list[Params]]:
    """Real digits, networks that have learnt something."""
    config = override(
        small("toy", "seeds=(0,)", "model.width=24"),
        ["limit=300", "train.epochs=15", "evaluate=200", "match_with=200"],
    )
    context = PairRun(config)
    return context, context.networks("networks", config.model, config.train)[15]


def test_the_far_copy_is_farther_than_random_ones_and_the_same_function(
    trained: tuple[PairRun, list[Params]],
) -> None:
    context, (a, _) = trained
    setting = context.setting(context.config.model)
    symmetry, model = setting.symmetry, setting.model
    far = lesson.permute(symmetry, a, lesson.far_copy(symmetry, a, seed=3))
    randoms = [lesson.permute(symmetry, a, symmetry.random(seed)) for seed in range(20)]
    distances = [distance(model, a, copy) for copy in randoms]
    assert distance(model, a, far) > 1.02 * max(distances)
    exact = build(context.config.model).double().eval()
    x = setting.data.test_x.double()
    with torch.no_grad():
        before, after = (predict(exact, double(p), x) for p in (a, far))
    assert float((after - before).abs().max() / before.abs().max()) < 1e-13
    again = lesson.far_copy(symmetry, a, seed=3)
    assert all(torch.equal(again[g], p) for g, p in lesson.far_copy(symmetry, a, 3).items())


def test_measurements_of_a_pair_are_those_of_its_lines(
    trained: tuple[PairRun, list[Params]],
) -> None:
    context, (a, b) = trained
    setting = context.setting(context.config.model)
    found = lesson.measure_pair(setting, (a, b), 0, grid=0)
    metrics, series = found["metrics"], found["series"]
    assert "plane" not in found
    for k, path in enumerate(lesson.PATHS):
        key = path.replace(" ", "_")
        test, error, margin = (series[f"test_{q}"][k] for q in ("loss", "error", "margin"))
        assert test[0] == series["test_loss"][0][0], "every path starts at the first network"
        assert metrics[f"{key}_barrier"] == max(0, test[1] - (test[0] + test[2]) / 2)
        rise = error[1] - (error[0] + error[2]) / 2
        assert metrics[f"{key}_error_barrier"] == pytest.approx(max(0, rise))
        assert metrics[f"{key}_margin_kept"] == margin[1] / ((margin[0] + margin[2]) / 2)
    for k in (1, 2):  # a renumbered copy ends where it began
        for name in ("test_loss", "test_margin", "train_loss"):
            assert series[name][k][2] == pytest.approx(series[name][k][0], rel=1e-5)
        assert series["test_error"][k][2] == series["test_error"][k][0]
    assert series["test_loss"][3][2] == pytest.approx(series["test_loss"][0][2], rel=1e-5)
    assert metrics["stranger_distance"] == distance(setting.model, a, b)
    assert metrics["matched_distance"] < metrics["stranger_distance"]
    assert metrics["copy_distance"] < metrics["far_copy_distance"] < 2 * metrics["length"]
    assert metrics["copy_output_change"] < 1e-5 < 0.1 < metrics["stranger_output_change"]
    squares = sum(float((a[n].double() ** 2).sum()) for n in a)
    assert metrics["length"] == pytest.approx(squares**0.5)


# --- Planes ---------------------------------------------------------------------------------------


def test_ticks_reach_beyond_the_networks_on_both_sides() -> None:
    for count in (2, 7, 15):
        u, v = lesson.plane_ticks(count)
        assert len(u) == len(v) == count
        assert u[0] < 0 < 1 < u[-1]
        assert v[0] < 0 < 1 < v[-1]


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_coordinates_of_the_matched_network_give_its_distances(
    norm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    config = small("toy", "train.epochs=6", f"model.norm={norm}", "model.width=12", "grid=2")
    plain: dict[str, Any] = {"deep_steps": (), "recipes": (), "spawn_steps": ()}
    result = lesson.run(dataclasses.replace(config, **plain))
    u, v, unit, near = (
        result.metric(name)
        for name in ("matched_u", "matched_v", "stranger_distance", "matched_distance")
    )
    for k in range(len(config.seeds)):
        assert unit[k] * math.hypot(u[k], v[k]) == pytest.approx(near[k], rel=1e-4)
        assert v[k] > 0


def test_the_plane_shows_the_three_networks_where_they_are(
    trained: tuple[PairRun, list[Params]], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, (a, b) = trained
    setting = context.setting(context.config.model)
    pairs = lesson.weight_matching(setting.symmetry, a, b, seed=0)
    matched = lesson.permute(setting.symmetry, b, pairs.permutations)
    _, u, v = lesson.measure_plane(setting, a, b, matched, 2)
    monkeypatch.setattr(lesson, "plane_ticks", lambda _: ([0.0, 1.0, u], [0.0, v]))
    (loss, error, margin), *_ = lesson.measure_plane(setting, a, b, matched, 3)
    for (row, column), network in {(0, 0): a, (0, 1): b, (1, 2): matched}.items():
        wanted = lesson.score(setting.model, network, setting.data.test_x, setting.data.test_y)
        assert loss[row][column] == pytest.approx(wanted.loss, rel=1e-3)
        assert margin[row][column] == pytest.approx(wanted.margin, rel=1e-3)
        assert error[row][column] == pytest.approx(1 - wanted.accuracy, abs=0.011)


# --- Runs that share their beginning --------------------------------------------------------------


def families(
    config: lesson.Config, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[int], list[Spawn | None]]:
    """Seeds and spawns that the study would train, without training."""
    asked: list[Any] = []

    def listen(
        _: Any, name: str, model: Any, recipe: Any, seeds: Any, snapshots: Any = (), spawn: Any = ()
    ) -> Any:
        asked.append((list(seeds), list(spawn)))
        return {recipe.epochs: [{} for _ in seeds]}

    with monkeypatch.context() as patched:
        patched.setattr(PairRun, "train", listen)
        patched.setattr(lesson, "measure_family", lambda *_: {"rows": [], "curves": []})
        context = PairRun(config)
        with contextlib.suppress(IndexError, KeyError):  # nothing was measured
            lesson.measure_spawns(context, "deep", config.deep, config.deep_steps)
    return asked[-1]


@pytest.mark.parametrize(
    ("seeds", "steps"),
    [((0, 1, 2, 3, 4), (0, 1, 5, 10, 21)), ((0, 4999), (0,)), ((7, 6, 8), tuple(range(100)))],
)
def test_seeds_of_spawned_runs_are_their_own(
    seeds: tuple[int, ...], steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No child has the seed of a pair or of another child; the controls are meant to have one."""
    monkeypatch.setattr(datasets, "load", random_images)
    config = dataclasses.replace(small("toy"), seeds=seeds, deep_steps=steps)
    asked, spawn = families(config, monkeypatch)
    each = len(steps) + 1
    controls, children = asked[each - 1 :: each], [s for k, s in enumerate(asked) if (k + 1) % each]
    assert controls == [2 * s for s in seeds]
    assert spawn[each - 1 :: each] == [Spawn(2 * s + 1, 0) for s in seeds]
    assert len(set(children)) == len(children) == len(seeds) * len(steps)
    everyone = {seed for s in range(5000) for seed in (2 * s, 2 * s + 1)}
    assert not set(children) & everyone
    assert [p for k, p in enumerate(spawn) if (k + 1) % each] == [
        Spawn(2 * s, step) for s in seeds for step in steps
    ]


def test_the_other_start_has_the_first_networks_order_and_the_strangers_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    config = small("toy", "seeds=(2,)", "deep_steps=(0, 3, 4)")
    measured: list[Any] = []
    measure = lesson.measure_family

    def watched(setting: Any, first: Params, others: list[Params]) -> Any:
        measured.append((first, others))
        return measure(setting, first, others)

    monkeypatch.setattr(lesson, "measure_family", watched)
    context = PairRun(config)
    metrics, series = lesson.measure_spawns(context, "deep", config.deep, config.deep_steps)
    ((first, (*children, control, stranger)),) = measured
    # from first principles: another network's initial values under the first network's seed
    other_start = stack([initial(config.deep, 5)])
    wanted = training.train(config.deep, context.data, (4,), config.train, start=other_start)
    for found, plain in (
        (control, wanted.params),
        (first, training.train(config.deep, context.data, (4,), config.train).params),
        (stranger, training.train(config.deep, context.data, (5,), config.train).params),
    ):
        (single,) = unstack(plain)
        assert all(torch.equal(found[name], single[name]) for name in single)
    # the longer the way together, the closer they end; all four steps together: the same network
    distances = [distance(build(config.deep), first, child) for child in children]
    assert distances[0] > distances[1] > distances[2] == 0
    assert series["deep_spawned"].values[0][3] == distances
    assert series["deep_spawned"].values[0][0][2] == 0
    assert series["deep_spawned_loss"].axes["step"] == [0, 3, 4]
    assert metrics.keys() == {
        *("deep_other_start_barrier", "deep_stranger_barrier", "deep_end_accuracy")
    }


def test_strangers_are_measured_the_same_beside_copies_and_beside_spawned_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    result = lesson.run(small("full-mnist-mlp"))
    assert result.metric("wide_stranger_barrier") == result.metric("stranger_barrier")


# --- BatchNorm ------------------------------------------------------------------------------------


def test_a_recipe_is_what_its_name_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the other networks are trained in another way."""
    monkeypatch.setattr(datasets, "load", random_images)
    config = small("study", "seeds=(0,)", "train.optimizer=adamw", "train.weight_decay=0.1")
    asked: dict[str, Any] = {}
    train = PairRun.train

    def watched(
        self: PairRun, name: str, model: Any, recipe: Any, *others: Any, **more: Any
    ) -> Any:
        asked[name] = recipe
        return train(self, name, model, recipe, *others, **more)

    monkeypatch.setattr(PairRun, "train", watched)
    lesson.measure_norms(PairRun(config))
    assert {name: recipe.optimizer for name, recipe in asked.items()} == {
        "norm-adam": "adam",
        "norm-sgd": "sgd",
    }


def test_merges_and_their_metrics_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    config = small("study")
    metrics, series = lesson.measure_norms(PairRun(config))
    assert series["norms"].axes == {"recipe": ["adam", "sgd"], "merge": list(lesson.MERGES)}
    layers = config.normed.depth + 1
    assert shape(series["variance_left"].values) == (2, 2, 2, layers)
    for r, recipe in enumerate(config.recipes):
        for m, title in enumerate(("naive", "naive_reset", "weights", "weights_reset")):
            column = [values[r][m] for values in series["norms"].values]
            assert metrics[f"norm_{recipe}_{title}"] == column
        assert all(0 <= end <= 1 for end in metrics[f"norm_{recipe}_ends"])
    backwards = dataclasses.replace(config, recipes=("sgd", "adam"))
    again, _ = lesson.measure_norms(PairRun(backwards))
    assert again == metrics

"""Loss barriers: what a straight line between two trained networks shows, and what decides it.

The unit of repetition is a pair of networks: seed s is the pair trained from seeds 2s and 2s + 1.
Beside each pair stand its controls: a renumbered copy of the first network, which computes the same
function; runs that share the start, or the start and the first steps; the same order of the data
from another start.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

from lmc_lessons.connectivity.matching import weight_matching
from lmc_lessons.connectivity.repair import variance_ratio
from lmc_lessons.connectivity.symmetry import Permutations, Symmetry, permute
from lmc_lessons.evaluation import score
from lmc_lessons.experiments.pairs import (
    MNIST_MLP,
    RESNET20,
    VGG11,
    Measured,
    Numbers,
    Pair,
    PairConfig,
    PairRun,
    Setting,
    distance,
    gpu_recipe,
    profile_on_test,
    profiles,
)
from lmc_lessons.experiments.runs import one_thread
from lmc_lessons.landscape import barrier, interpolate, plane, reset_batchnorm, surface
from lmc_lessons.models import ModelConfig, Params, parameter_names, predict
from lmc_lessons.results import Claim, Result, Series, difference, measured
from lmc_lessons.training import Spawn, TrainConfig

LESSON = "loss-barriers"
PATHS = ("stranger", "copy", "far copy", "matched")
QUANTITIES = ("loss", "error", "margin")
SPAWNED = ("barrier", "train barrier", "error barrier", "distance")
MERGES = ("naive", "naive + reset", "weights", "weights + reset")
RECIPES: dict[str, dict[str, Any]] = {  # for the networks with BatchNorm
    "adam": {"optimizer": "adam"},
    "sgd": {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 5e-4},
}
CHILDREN = 10_000  # seeds of spawned runs start here, above those of any pair
CHILDREN_PER_PAIR = 100


@dataclass(frozen=True)
class Config(PairConfig):
    """What to run.

    Attributes:
        spawn_steps: Steps that two runs share, start and batches, before they part.
        deep: A second architecture whose runs are spawned.
        deep_steps: Steps that its runs share; empty leaves it out.
        normed: An architecture with BatchNorm.
        recipes: How to train it: names from ``RECIPES``; empty leaves it out.
        grid: Points on each side of the plane; 0 leaves it out.
    """

    spawn_steps: tuple[int, ...] = (0, 1, 21, 210)
    deep: ModelConfig = field(default_factory=lambda: ModelConfig(width=32, depth=8))
    deep_steps: tuple[int, ...] = (0, 1, 5, 10, 21, 42, 105, 210, 420)
    normed: ModelConfig = field(default_factory=lambda: ModelConfig(depth=6, norm="batch"))
    recipes: tuple[str, ...] = ("adam", "sgd")
    grid: int = 15

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        super().__post_init__()
        for name in ("spawn_steps", "deep_steps"):
            steps = getattr(self, name)
            if min(steps, default=0) < 0 or list(steps) != sorted(set(steps)):
                raise ValueError(f"{name} must be increasing integers >= 0, got {steps}")
            if len(steps) > CHILDREN_PER_PAIR:
                raise ValueError(f"{name} must be at most {CHILDREN_PER_PAIR}, got {len(steps)}")
        if unknown := [name for name in self.recipes if name not in RECIPES]:
            raise ValueError(f"no recipe {unknown[0]!r}, allowed: {', '.join(RECIPES)}")
        if self.grid < 0 or self.grid == 1:
            raise ValueError(f"grid must be 0 or at least 2, got {self.grid}")
        if max(self.seeds) * 2 + 1 >= CHILDREN:
            raise ValueError(f"seeds must be below {CHILDREN // 2}, got {self.seeds}")


_ALONE: dict[str, Any] = {"deep_steps": (), "recipes": ()}  # what presets at full scale leave out
_FULL_MLP = Config(
    preset="full-mnist-mlp",
    dataset="mnist",
    model=MNIST_MLP,
    train=TrainConfig(epochs=5, batch_size=500, fast=True),
    spawn_steps=(0, 120),
    together=5,
    evaluate=10_000,
    match_with=10_000,
    grid=0,
    **_ALONE,
)
_FULL_RESNET = Config(
    preset="full-cifar-resnet20",
    dataset="cifar10",
    model=RESNET20,
    train=gpu_recipe(),
    spawn_steps=(0, 100, 300, 1000, 2000),
    together=1,
    evaluate=10_000,
    match_with=5_000,
    grid=15,
    **_ALONE,
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        spawn_steps=(0, 21),
        deep_steps=(0, 5, 42, 210),
        recipes=("adam",),
        grid=7,
    ),
    "study": Config(),
    "full-mnist-mlp": _FULL_MLP,
    "full-fashion-mlp": dataclasses.replace(
        _FULL_MLP, preset="full-fashion-mlp", dataset="fashion-mnist"
    ),
    "full-cifar-vgg11": dataclasses.replace(
        _FULL_RESNET,
        preset="full-cifar-vgg11",
        model=VGG11,
        train=gpu_recipe(learning_rate=0.1),
    ),
    "full-cifar-resnet20": _FULL_RESNET,
}


def run(
    config: Config,
    *,
    folder: Path | None = None,
    progress: bool = False,
    device: str = "cpu",
    root: Path | None = None,
) -> Result:
    """Run the experiment of the lesson.

    Args:
        config: What to run.
        folder: Where partial work is kept, so that a killed run can be started again; None keeps
            none.
        progress: Whether to show progress.
        device: ``cpu`` or ``cuda``.
        root: Where data sets lie; see ``datasets.load``.

    Returns:
        Metrics per pair, series on grids, and the verdict of every claim.

    Raises:
        ValueError: If the data set is not there, or does not fit the model.

    Taught in: book/connectivity/loss-barriers
    """
    context = PairRun(config, folder, progress=progress, device=device, root=root)
    for model, used in ((config.deep, config.deep_steps), (config.normed, config.recipes)):
        if used:
            context.check(model)
    with one_thread(not config.train.fast):
        metrics, series = measure_pairs(context)
        for found in (
            measure_spawns(context, "wide", config.model, config.spawn_steps),
            measure_spawns(context, "deep", config.deep, config.deep_steps),
            measure_norms(context),
        ):
            metrics |= found[0]
            series |= found[1]
    return context.finish(LESSON, metrics, series, CLAIMS)


# The pairs: lines, copies, planes


def measure_pairs(context: PairRun) -> Measured:
    """The straight lines from each first network to its stranger, its copies, and the matched."""
    config = context.config
    networks = context.networks("networks", config.model, config.train)[config.train.epochs]
    setting = context.setting(config.model)
    measured = [
        context.stages.numbers(
            f"pair-{s}", functools.partial(measure_pair, setting, pair, s, config.grid)
        )
        for s, pair in context.pairs(networks)
    ]
    metrics = {name: [m["metrics"][name] for m in measured] for name in measured[0]["metrics"]}
    axes: dict[str, list[Any]] = {"path": list(PATHS), "position": list(setting.positions)}
    series = {
        name: Series(axes, [m["series"][name] for m in measured]) for name in measured[0]["series"]
    }
    if config.grid:
        ticks = plane_ticks(config.grid)
        grid_axes: dict[str, list[Any]] = {"quantity": list(QUANTITIES)}
        grid_axes |= {"v": ticks[1], "u": ticks[0]}
        series["plane"] = Series(grid_axes, [m["plane"] for m in measured])
    return metrics, series


def plane_ticks(count: int) -> tuple[list[float], list[float]]:
    """Where the plane is measured, in units of the distance between the pair.

    Args:
        count: Points on each side.

    Returns:
        Coordinates from A (0) towards B (1), and across.
    """
    steps = [k / (count - 1) for k in range(count)]
    return [-0.3 + 1.6 * k for k in steps], [-0.4 + 1.6 * k for k in steps]


def far_copy(symmetry: Symmetry, params: Params, seed: int = 0) -> Permutations:
    """A numbering of a network's units that brings it as far from itself as we can find.

    Weight matching maximises an inner product, so matching the network to its own negative
    minimises it.

    Args:
        symmetry: The groups of the architecture.
        params: Parameters and buffers of the network.
        seed: Decides the order of the search.

    Returns:
        Permutations; the network they give computes the same function.

    Taught in: book/connectivity/loss-barriers
    """
    negative = {n: -t if t.is_floating_point() else t for n, t in params.items()}
    return weight_matching(symmetry, negative, params, seed=seed).permutations


def measure_pair(setting: Setting, pair: Pair, seed: int, grid: int) -> Numbers:
    """Everything that lines and planes through one pair show.

    Args:
        setting: Architecture, symmetry and data.
        pair: Two trained networks.
        seed: The pair's seed; decides the random copy and the order of searches.
        grid: Points on each side of the plane; 0 leaves it out.

    Returns:
        Plain data: ``metrics``, ``series`` of shape (paths, positions), ``plane``.
    """
    a, b = pair
    symmetry, model, data = setting.symmetry, setting.model, setting.data
    matched = permute(symmetry, b, weight_matching(symmetry, a, b, seed=seed).permutations)
    ends = {
        "stranger": b,
        "copy": permute(symmetry, a, symmetry.random(seed)),
        "far copy": permute(symmetry, a, far_copy(symmetry, a, seed)),
        "matched": matched,
    }
    metrics: dict[str, float] = {}
    series: dict[str, list[list[float]]] = {
        name: [] for name in ("test_loss", "test_error", "test_margin", "train_loss", "train_error")
    }
    middle = len(setting.positions) // 2
    for path, end in ends.items():
        test, fit = profiles(setting, a, end)
        for name, values in (
            ("test_loss", test.loss),
            ("test_error", test.error),
            ("test_margin", test.margin),
            ("train_loss", fit.loss),
            ("train_error", fit.error),
        ):
            series[name].append(values)
        key = path.replace(" ", "_")
        metrics[f"{key}_barrier"] = barrier(setting.positions, test.loss).maximum
        metrics[f"{key}_train_barrier"] = barrier(setting.positions, fit.loss).maximum
        metrics[f"{key}_error_barrier"] = barrier(setting.positions, test.error).maximum
        metrics[f"{key}_distance"] = distance(model, a, end)
        between = (test.margin[0] + test.margin[-1]) / 2
        metrics[f"{key}_margin_kept"] = test.margin[middle] / between
    x = data.test_x[:256]
    with torch.no_grad():
        logits = [predict(model, p, x).double() for p in (a, ends["far copy"], b)]
    change = [float((other - logits[0]).abs().max() / logits[0].abs().max()) for other in logits]
    metrics["copy_output_change"], metrics["stranger_output_change"] = change[1:]
    metrics["length"] = distance(model, a, {name: torch.zeros_like(t) for name, t in a.items()})
    found: Numbers = {"metrics": metrics, "series": series}
    if grid:
        found["plane"], found["metrics"]["matched_u"], found["metrics"]["matched_v"] = (
            measure_plane(setting, a, b, matched, grid)
        )
    return found


def measure_plane(
    setting: Setting, a: Params, b: Params, matched: Params, grid: int
) -> tuple[list[list[list[float]]], float, float]:
    """Test loss, error and margin on the plane through A, B and the matched B.

    Args:
        setting: Architecture and data.
        a: The network at (0, 0).
        b: The network at (1, 0): lengths are in units of the distance from A to B.
        matched: B with its units renumbered.
        grid: Points on each side.

    Returns:
        Values of shape (quantities, v, u), and the coordinates of the matched B.
    """
    names = parameter_names(setting.model)  # statistics are measured anew: no coordinates
    first, second, points = plane(*({**a, **{n: p[n] for n in names}} for p in (a, b, matched)))
    unit = points[1][0]
    u, v = ([unit * tick for tick in axis] for axis in plane_ticks(grid))
    data = setting.data
    found = surface(
        setting.model,
        a,
        first,
        second,
        u,
        v,
        data.test_x,
        data.test_y,
        reset_with=setting.match_with,
    )
    error = [[1 - accuracy for accuracy in row] for row in found.accuracy]
    return [found.loss, error, found.margin], points[2][0] / unit, points[2][1] / unit


# Runs that share their beginning


def measure_spawns(
    context: PairRun, name: str, model: ModelConfig, steps: Sequence[int]
) -> Measured:
    """Barriers between a run and runs that leave it after so many steps, with two controls.

    Args:
        context: The run of the experiment.
        name: What to call the architecture.
        model: The architecture.
        steps: Numbers of steps shared; none leaves the measurement out.

    Returns:
        Metrics of the controls, and series over the steps.
    """
    config = context.config
    if not steps:
        return {}, {}
    recipe = config.train
    stage = "networks" if model == config.model else name
    parents = context.pairs(context.networks(stage, model, recipe)[recipe.epochs])
    seeds, spawn = [], []
    for s in config.seeds:
        seeds += [CHILDREN + CHILDREN_PER_PAIR * s + k for k in range(len(steps))] + [2 * s]
        spawn += [Spawn(2 * s, step) for step in steps]
        spawn += [Spawn(2 * s + 1, 0)]  # the stranger's start, the first network's batches
    children = context.train(f"{name}-spawned", model, recipe, seeds, spawn=spawn)[recipe.epochs]
    setting = context.setting(model)
    each = len(steps) + 1
    found = [
        context.stages.numbers(
            f"{name}-spawned-pair-{s}",
            functools.partial(
                measure_family, setting, first, [*children[k * each : (k + 1) * each], stranger]
            ),
        )
        for k, (s, (first, stranger)) in enumerate(parents)
    ]
    barriers = [[[row[q] for row in f["rows"][:-2]] for q in range(len(SPAWNED))] for f in found]
    metrics = {
        f"{name}_other_start_barrier": [f["rows"][-2][0] for f in found],
        f"{name}_stranger_barrier": [f["rows"][-1][0] for f in found],
        f"{name}_end_accuracy": [f["end_accuracy"] for f in found],
    }
    axes: dict[str, list[Any]] = {"quantity": list(SPAWNED), "step": list(steps)}
    curve_axes: dict[str, list[Any]] = {"step": list(steps), "position": list(setting.positions)}
    curves = [f["curves"][: len(steps)] for f in found]
    return metrics, {
        f"{name}_spawned": Series(axes, barriers),
        f"{name}_spawned_loss": Series(curve_axes, curves),
    }


def measure_family(setting: Setting, first: Params, others: Sequence[Params]) -> Numbers:
    """Straight lines from one network to each of several others.

    Args:
        setting: Architecture and data.
        first: The network at position 0.
        others: The networks at position 1.

    Returns:
        Plain data: a row of ``SPAWNED`` per other network, the test losses along each line, and the
        accuracy of the first network.
    """
    rows, curves, accuracy = [], [], 0.0
    for other in others:
        test, fit = profiles(setting, first, other)
        heights = [
            barrier(setting.positions, values).maximum
            for values in (test.loss, fit.loss, test.error)
        ]
        rows.append([*heights, distance(setting.model, first, other)])
        curves.append(test.loss)
        accuracy = test.accuracy[0]
    return {"rows": rows, "curves": curves, "end_accuracy": accuracy}


# BatchNorm: variance collapse and the reset of statistics


def measure_norms(context: PairRun) -> Measured:
    """Midpoints of networks with BatchNorm: without and with matching, without and with reset."""
    config = context.config
    if not config.recipes:
        return {}, {}
    metrics: dict[str, list[float]] = {}
    merged: list[Any] = [[] for _ in config.seeds]
    left: list[Any] = [[] for _ in config.seeds]
    setting = context.setting(config.normed)
    for name in config.recipes:
        recipe = dataclasses.replace(config.train, **RECIPES[name])
        networks = context.networks(f"norm-{name}", config.normed, recipe)[recipe.epochs]
        ends = []
        for k, (s, pair) in enumerate(context.pairs(networks)):
            found = context.stages.numbers(
                f"norm-{name}-{s}", functools.partial(measure_reset, setting, pair, s)
            )
            merged[k].append(found["accuracy"])
            left[k].append(found["variance"])
            ends.append(found["ends"])
        metrics[f"norm_{name}_ends"] = ends
        for way, title in enumerate(MERGES):
            key = title.replace(" + ", "_")
            metrics[f"norm_{name}_{key}"] = [m[-1][way] for m in merged]
    layers = list(range(1, len(left[0][0][0]) + 1))
    recipes = list(config.recipes)
    axes: dict[str, list[Any]] = {"recipe": recipes, "merge": list(MERGES)}
    variance_axes: dict[str, list[Any]] = {"recipe": recipes, "path": ["naive", "weights"]}
    variance_axes["layer"] = layers
    return metrics, {"norms": Series(axes, merged), "variance_left": Series(variance_axes, left)}


def measure_reset(setting: Setting, pair: Pair, seed: int) -> Numbers:
    """Midpoint accuracy and the variance left, without and with matching.

    Args:
        setting: Architecture, symmetry and data.
        pair: Two trained networks.
        seed: The pair's seed.

    Returns:
        Plain data: ``accuracy`` in the order of ``MERGES``, ``variance`` of shape (2, layers), and
        the mean accuracy of the ``ends``.
    """
    a, b = pair
    model, data, x = setting.model, setting.data, setting.match_with
    moved = permute(
        setting.symmetry, b, weight_matching(setting.symmetry, a, b, seed=seed).permutations
    )
    accuracy, variance = [], []
    for network in (b, moved):
        merged = interpolate(a, network, 0.5)
        for params in (merged, reset_batchnorm(model, merged, x)):
            accuracy.append(score(model, params, data.test_x, data.test_y).accuracy)
        variance.append(list(variance_ratio(model, a, network, 0.5, x).values()))
    ends = profile_on_test(setting, a, b)
    return {
        "accuracy": accuracy,
        "variance": variance,
        "ends": (ends.accuracy[0] + ends.accuracy[-1]) / 2,
    }


# Claims: statement, effect, margin and the reason for the margin, fixed before the first run of the
# study


def log_ratio(above: str, below: str) -> Any:
    """Effect: natural logarithm of the ratio of two barriers, per pair."""

    def effect(result: Result) -> list[float]:
        ratios = list(zip(result.metric(above), result.metric(below), strict=True))
        if min(min(pair) for pair in ratios) <= 0:
            raise KeyError("a barrier in every pair")
        return [math.log(p / q) for p, q in ratios]

    return effect


def at_step(name: str, step: int) -> Any:
    """Effect: the test barrier between runs that shared so many steps."""

    def effect(result: Result) -> list[float]:
        series = result.series[f"{name}_spawned"]
        if step not in series.axes["step"]:
            raise KeyError(f"runs that share {step} steps")
        place = series.axes["step"].index(step)
        return [values[0][place] for values in series.values]

    return effect


def fall_with_steps(result: Result) -> list[float]:
    """Effect: how surely the barrier falls with the steps shared: minus Spearman's rho."""
    series = result.series["deep_spawned"]
    steps = series.axes["step"]
    if len(steps) < 3:
        raise KeyError("runs that share different numbers of steps")
    heights = [values[0] for values in series.values]
    if any(len(set(row)) == 1 for row in heights):
        raise KeyError("a barrier that changes with the steps shared")
    return [-float(spearmanr(steps, row).statistic) for row in heights]


def variance_fall(result: Result) -> list[float]:
    """Effect: variance left in the first layer minus that in the last hidden one, matched."""
    series = result.series["variance_left"]
    if "adam" not in series.axes["recipe"]:
        raise KeyError("networks trained with adam")
    if len(series.axes["layer"]) < 3:
        raise KeyError("a second hidden layer")
    left = [values[series.axes["recipe"].index("adam")][1] for values in series.values]
    return [matched[0] - matched[-2] for matched in left]


def regained(result: Result) -> list[float]:
    """Effect: share of the accuracy lost at the matched midpoint that the reset gives back."""
    ends, raw, reset = (
        result.metric(f"norm_adam_{name}") for name in ("ends", "weights", "weights_reset")
    )
    lost = [e - r for e, r in zip(ends, raw, strict=True)]
    if min(lost) <= 0:
        raise KeyError("a loss of accuracy at every midpoint")
    return [(q - p) / gap for p, q, gap in zip(raw, reset, lost, strict=True)]


HERE = "this lesson"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "L1",
        "The straight line between two networks trained from different starts crosses a barrier.",
        "ainsworth2023git, Figure 2",
        measured("stranger_barrier"),
        margin=0.2,
        reason="0.2 nats is above the whole test loss of one of these networks",
        unit="nats",
        paper="a figure only",
    ),
    Claim(
        "L2",
        "Halfway, the mean logit margin has lost more than half of its size.",
        HERE,
        lambda result: [1 - kept for kept in result.metric("stranger_margin_kept")],
        margin=0.5,
        reason="half is the least that we would call a collapse",
        unit="share",
    ),
    Claim(
        "P1",
        "A network and a randomly renumbered copy of itself are separated by a barrier.",
        "entezari2022role",
        measured("copy_barrier"),
        margin=0.2,
        reason="what counts as a barrier in L1",
        unit="nats",
    ),
    Claim(
        "P2",
        "The barrier to a copy is as high as that to a stranger, within a factor of 1.5.",
        "entezari2022role",
        log_ratio("copy_barrier", "stranger_barrier"),
        margin=round(math.log(1.5), 3),
        reason="pairs differ by about this factor among themselves",
        kind="equal",
        unit="log ratio",
    ),
    Claim(
        "P3",
        "The barrier to the farthest copy found is higher still.",
        HERE,
        difference("far_copy_barrier", "stranger_barrier"),
        margin=0.2,
        reason="what counts as a barrier in L1",
        unit="nats",
    ),
    Claim(
        "P4",
        "Renumbering does not change what the network computes.",
        "ainsworth2023git, symmetry of permutations",
        measured("copy_output_change"),
        margin=1e-4,
        reason="relative rounding error of float32 through a few layers",
        kind="exact",
        unit="relative",
        paper="an identity",
    ),
    Claim(
        "S1",
        "Wide networks of three hidden layers that share only the start end without a barrier.",
        HERE,
        at_step("wide", 0),
        margin=0.1,
        reason="half of what counts as a barrier in L1",
        kind="equal",
        unit="nats",
    ),
    Claim(
        "S2",
        "The same order of the data from another start does not help.",
        HERE,
        measured("wide_other_start_barrier"),
        margin=0.2,
        reason="what counts as a barrier in L1",
        unit="nats",
    ),
    Claim(
        "S3",
        "For thin networks of eight hidden layers, sharing the start is not enough.",
        "frankle2020linear",
        at_step("deep", 0),
        margin=0.2,
        reason="what counts as a barrier in L1",
        unit="nats",
    ),
    Claim(
        "S4",
        "The more steps they share, the lower the barrier.",
        "frankle2020linear",
        fall_with_steps,
        margin=0.5,
        reason="a rank correlation of 0.5 is the least that we would call a trend; 1 is strict",
    ),
    Claim(
        "S5",
        "After a sixth of training together (210 steps) they end without a barrier.",
        "frankle2020linear",
        at_step("deep", 210),
        margin=0.1,
        reason="half of what counts as a barrier in L1",
        kind="equal",
        unit="nats",
    ),
    Claim(
        "V1",
        "After matching, merged units still lose variance, and the last layers lose more.",
        "jordan2023repair",
        variance_fall,
        margin=0.1,
        reason="a tenth of the variance of the ends: below that it would not matter",
        unit="share",
    ),
    Claim(
        "V2",
        "After matching, a reset of statistics regains more than half of what merging lost.",
        "jordan2023repair",
        regained,
        margin=0.5,
        reason="then the statistics would be the larger part of the damage",
        unit="share",
        paper="11.7 % to 90.3 %, ends 95 % (ResNet-20x4, CIFAR-10; authors' notebook)",
    ),
    Claim(
        "V3",
        "The reset alone, without matching, stays behind matching and reset (trained by Adam).",
        "jordan2023repair",
        difference("norm_adam_weights_reset", "norm_adam_naive_reset"),
        margin=0.05,
        reason="five points in a hundred: about four times the sampling error of the test set",
        unit="share",
    ),
)

"""Weight matching: is a barrier between two networks only a matter of how units are numbered?

The unit of repetition is a pair of networks: seed s is the pair trained from seeds 2s and 2s + 1.
Every measurement of a pair has its control in the same run: no matching, a random permutation, one
sweep.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from lmc_lessons.connectivity.matching import activation_matching, weight_matching
from lmc_lessons.connectivity.repair import repair, variance_ratio
from lmc_lessons.connectivity.symmetry import Permutations, find_symmetry, permute
from lmc_lessons.curvature import inner_product
from lmc_lessons.datasets import Dataset
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
from lmc_lessons.landscape import barrier, interpolate, reset_batchnorm
from lmc_lessons.models import ModelConfig, Params, build, predict, unstack
from lmc_lessons.results import Claim, Result, Series, difference, measured
from lmc_lessons.training import TrainConfig, generator, train

LESSON = "weight-matching"
PATHS = ("naive", "random", "one sweep", "weights", "activations")
SWEEP_PATHS = ("naive", "weights")
REPAIRED = ("weights", "weights + REPAIR", "activations", "activations + REPAIR")
NORM_PATHS = ("naive", "naive + reset", "weights", "weights + reset")
SWEEPS = 30  # to which the objective is filled up with its last value


@dataclass(frozen=True)
class Config(PairConfig):
    """What to run.

    Attributes:
        widths: Widths to compare, other things equal.
        weight_decays: Decoupled weight decays to compare (AdamW), other things equal.
        depths: Hidden layers to compare before and after REPAIR, at ``deep_width`` units.
        deep_width: Width of the networks of the depth comparison.
        norms: Normalisations to compare before and after the statistics reset.
        epochs: Epochs at which to look at the barrier during training.
        counterexample: Whether to measure the hand-made counterexample and its trained control.
    """

    widths: tuple[int, ...] = (8, 16, 32, 64, 128)
    weight_decays: tuple[float, ...] = (0.0, 0.1, 1.0)
    depths: tuple[int, ...] = (2, 4, 6, 8)
    deep_width: int = 64
    norms: tuple[str, ...] = ("batch", "layer")
    epochs: tuple[int, ...] = (0, 1, 2, 3, 5, 10, 20, 60)
    counterexample: bool = True

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        super().__post_init__()
        if min(self.epochs, default=0) < 0:
            raise ValueError(f"epochs must be >= 0, got {self.epochs}")
        if self.deep_width < 1:
            raise ValueError(f"deep_width must be at least 1, got {self.deep_width}")
        for width in self.widths:  # every architecture and recipe that the run will need
            dataclasses.replace(self.model, width=width)
        for depth in self.depths:
            dataclasses.replace(self.model, depth=depth)
        for norm in self.norms:
            dataclasses.replace(self.model, norm=norm)  # type: ignore[arg-type]
        for decay in self.weight_decays:
            dataclasses.replace(self.train, weight_decay=decay)


_ALONE: dict[str, Any] = {  # what the presets at full scale leave out
    "widths": (),
    "weight_decays": (),
    "depths": (),
    "norms": (),
    "counterexample": False,
}
_FULL_MLP = Config(
    preset="full-mnist-mlp",
    dataset="mnist",
    model=MNIST_MLP,
    train=TrainConfig(epochs=10, batch_size=500, fast=True),
    epochs=(0, 1, 2, 3, 5, 10),
    together=2,
    evaluate=10_000,
    match_with=10_000,
    **_ALONE | {"widths": (32, 128, 512)},
)
_FULL_RESNET = Config(
    preset="full-cifar-resnet20",
    dataset="cifar10",
    model=RESNET20,
    train=gpu_recipe(),
    epochs=(0, 1, 3, 10, 30),
    together=1,
    evaluate=10_000,
    match_with=5_000,
    **_ALONE,
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        widths=(8, 32),
        weight_decays=(),
        depths=(6,),
        norms=("batch",),
        epochs=(0, 2, 60),
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
    "full-cifar-resnet20-bn": dataclasses.replace(
        _FULL_RESNET,
        preset="full-cifar-resnet20-bn",
        model=dataclasses.replace(RESNET20, norm="batch"),
    ),
    "paper": dataclasses.replace(
        _FULL_RESNET,
        preset="paper",
        model=dataclasses.replace(RESNET20, width=32),
        train=gpu_recipe(
            epochs=250, batch_size=100, learning_rate=0.1, schedule="cosine", warmup_epochs=5
        ),
        epochs=(0, 1, 5, 25, 100, 250),
    ),
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

    Taught in: book/connectivity/weight-matching
    """
    context = PairRun(config, folder, progress=progress, device=device, root=root)
    with one_thread(not config.train.fast):
        metrics, series = measure_pairs(context)
        for measure in (measure_widths, measure_weight_decays, measure_depths, measure_norms):
            more_metrics, more_series = measure(context)
            metrics |= more_metrics
            series |= more_series
        if config.counterexample:
            measured = context.stages.numbers(
                "counterexample", lambda: measure_counterexample(config)
            )
            metrics |= measured
    return context.finish(LESSON, metrics, series, CLAIMS)


# The pairs


def measure_pairs(context: PairRun) -> Measured:
    """Barriers between the pairs: every kind of matching, through training, and its controls."""
    config = context.config
    networks = context.networks("networks", config.model, config.train, config.epochs)
    setting = context.setting(config.model)
    final = context.pairs(networks[config.train.epochs])
    measured = [
        context.stages.numbers(f"pair-{s}", functools.partial(measure_pair, setting, pair, s))
        for s, pair in final
    ]
    metrics = {name: [m["metrics"][name] for m in measured] for name in measured[0]["metrics"]}
    axes: dict[str, list[Any]] = {"path": list(PATHS), "position": list(setting.positions)}
    series = {
        name: Series(axes, [m["series"][name] for m in measured])
        for name in ("test_loss", "test_accuracy", "train_loss")
    }
    sweeps = max(SWEEPS, *(len(m["objective"]) for m in measured))
    padded = [
        m["objective"] + m["objective"][-1:] * (sweeps - len(m["objective"])) for m in measured
    ]
    series["objective"] = Series({"sweep": list(range(sweeps))}, padded)
    if len(networks) > 1:
        grid = _sweep(context, "epoch", setting, networks)
        series["epochs"] = Series({"path": list(SWEEP_PATHS), "epoch": list(networks)}, grid)
    return metrics, series


def measure_pair(setting: Setting, pair: Pair, seed: int) -> Numbers:
    """Everything the lesson asks of one pair of networks.

    Args:
        setting: Architecture, symmetry and data.
        pair: Two trained networks.
        seed: The pair's seed; decides sweep order and random permutations.

    Returns:
        Plain data: ``metrics``, ``series`` of shape (paths, positions), ``objective`` per sweep.
    """
    a, b = pair
    symmetry = setting.symmetry
    matched = weight_matching(symmetry, a, b, seed=seed)
    found: dict[str, Permutations] = {
        "naive": symmetry.identity(),
        "random": symmetry.random(seed),
        "one sweep": weight_matching(symmetry, a, b, seed=seed, max_sweeps=1).permutations,
        "weights": matched.permutations,
        "activations": activation_matching(symmetry, a, b, setting.match_with),
    }
    metrics: dict[str, float] = {}
    series: dict[str, list[list[float]]] = {"test_loss": [], "test_accuracy": [], "train_loss": []}
    for path in PATHS:
        moved = permute(symmetry, b, found[path])
        test, fit = profiles(setting, a, moved)
        series["test_loss"].append(test.loss)
        series["test_accuracy"].append(test.accuracy)
        series["train_loss"].append(fit.loss)
        key = path.replace(" ", "_")
        metrics[f"{key}_barrier"] = barrier(setting.positions, test.loss).maximum
        metrics[f"{key}_midpoint"] = barrier(setting.positions, test.loss).midpoint
        metrics[f"{key}_train_barrier"] = barrier(setting.positions, fit.loss).maximum
        metrics[f"{key}_midpoint_accuracy"] = test.accuracy[len(setting.positions) // 2]
        metrics[f"{key}_distance"] = distance(setting.model, a, moved)
    ends = series["test_accuracy"][0]
    metrics["end_accuracy"] = (ends[0] + ends[-1]) / 2
    metrics["sweeps"] = len(matched.objective) - 1
    metrics |= other_searches(setting, pair, seed)
    metrics |= invariance(setting, pair, matched.sweeps, seed)
    metrics |= planted(setting, pair, seed)
    return {"metrics": metrics, "series": series, "objective": list(matched.objective)}


def other_searches(setting: Setting, pair: Pair, seed: int) -> dict[str, float]:
    """Barrier and distance of the other ways to search for the same permutations."""
    a, b = pair
    symmetry = setting.symmetry
    forward = weight_matching(symmetry, a, b, seed=seed, start="greedy")
    searches = {
        "forward_pass": forward.sweeps[0],
        "greedy_start": forward.permutations,
        "frank_wolfe": weight_matching(
            symmetry, a, b, seed=seed, method="frank-wolfe"
        ).permutations,
        "second_moment": activation_matching(
            symmetry, a, b, setting.match_with, similarity="second-moment"
        ),
    }
    metrics = {}
    for name, permutations in searches.items():
        moved = permute(symmetry, b, permutations)
        test = profile_on_test(setting, a, moved)
        metrics[f"{name}_barrier"] = barrier(setting.positions, test.loss).maximum
        metrics[f"{name}_distance"] = distance(setting.model, a, moved)
    return metrics


def invariance(
    setting: Setting, pair: Pair, sweeps: Sequence[Permutations], seed: int
) -> dict[str, float]:
    """Whether the objective ever falls, and whether permuting changes what network B computes.

    The objective is computed afresh after each sweep, from the permuted weights in float64. The
    control of the second measurement permutes the rows of the first group and forgets the columns
    behind it.
    """
    a, b = ({n: t.double() for n, t in p.items() if t.is_floating_point()} for p in pair)
    symmetry = setting.symmetry
    names = [n for n, _ in setting.model.named_parameters()]
    weights = {n: a[n] for n in names}
    values = [float(inner_product(weights, permute(symmetry, b, p))) for p in sweeps]
    size = float(inner_product(weights, weights))
    falls = [before - after for before, after in pairwise(values)]
    model = build_double(setting.model)
    x = setting.data.test_x[:64].double()
    moved = permute(symmetry, b, sweeps[-1])
    group = symmetry.groups[0]
    index = symmetry.random(seed)[group.name]
    half = dict(b)
    for member in group.members[:1]:
        half[member.tensor] = half[member.tensor][index.to(x.device)]
    with torch.no_grad():
        before, after, wrong = (predict(model, p, x) for p in (b, moved, half))
    scale = before.abs().max()
    return {
        "objective_fall": max([0.0, *falls]) / size,
        "output_change": float((after - before).abs().max() / scale),
        "half_permuted_change": float((wrong - before).abs().max() / scale),
    }


def build_double(model: nn.Module) -> nn.Module:
    """The same architecture in float64 and eval mode, parameters not shared."""
    return copy.deepcopy(model).double().eval()


def planted(setting: Setting, pair: Pair, seed: int) -> dict[str, float]:
    """Hide network A behind a random permutation and look for it; the control hides network B."""
    a, b = pair
    symmetry = setting.symmetry
    hidden = symmetry.random(seed + 1000)
    wrong = []
    for network in (a, b):
        found = weight_matching(symmetry, a, permute(symmetry, network, hidden), seed=seed)
        undone = {name: hidden[name][index] for name, index in found.permutations.items()}
        mistakes = sum(int((index != torch.arange(len(index))).sum()) for index in undone.values())
        wrong.append((mistakes, len(found.objective) - 1))
    units = sum(group.size for group in symmetry.groups)
    return {
        "planted_mistakes": wrong[0][0],
        "planted_sweeps": wrong[0][1],
        "unrelated_mistakes_share": wrong[1][0] / units,
    }


# Sweeps: width, weight decay, training time


def _sweep(
    context: PairRun, name: str, setting: Setting | None, networks: dict[Any, list[Params]]
) -> list[Any]:
    """Barrier before and after matching for each value; shape (seeds, paths, values)."""
    grid: list[Any] = [[[], []] for _ in context.config.seeds]
    for value, trained in networks.items():
        at = setting or context.setting(dataclasses.replace(context.config.model, width=value))
        for k, (s, pair) in enumerate(context.pairs(trained)):
            both = context.stages.numbers(
                f"{name}-{value}-{s}", functools.partial(measure_before_after, at, pair, s)
            )
            grid[k][0].append(both[0])
            grid[k][1].append(both[1])
    return grid


def measure_before_after(setting: Setting, pair: Pair, seed: int) -> list[float]:
    """Test barrier of a pair without matching and after weight matching."""
    a, b = pair
    found = weight_matching(setting.symmetry, a, b, seed=seed)
    return [
        barrier(setting.positions, profile_on_test(setting, a, network).loss).maximum
        for network in (b, permute(setting.symmetry, b, found.permutations))
    ]


def measure_widths(context: PairRun) -> Measured:
    """Barrier before and after matching as the hidden layers get wider."""
    config = context.config
    if not config.widths:
        return {}, {}
    networks = {
        width: context.networks(
            f"width-{width}", dataclasses.replace(config.model, width=width), config.train
        )[config.train.epochs]
        for width in config.widths
    }
    grid = _sweep(context, "width", None, networks)
    axes: dict[str, list[Any]] = {"path": list(SWEEP_PATHS), "width": list(config.widths)}
    return {}, {"widths": Series(axes, grid)}


def measure_weight_decays(context: PairRun) -> Measured:
    """Barrier before and after matching under stronger weight decay."""
    config = context.config
    if not config.weight_decays:
        return {}, {}
    networks = {}
    for decay in config.weight_decays:
        recipe = dataclasses.replace(config.train, optimizer="adamw", weight_decay=decay)
        trained = context.networks(f"decay-{decay}", config.model, recipe)
        networks[decay] = trained[recipe.epochs]
    grid = _sweep(context, "decay", context.setting(config.model), networks)
    axes: dict[str, list[Any]] = {
        "path": list(SWEEP_PATHS),
        "weight decay": list(config.weight_decays),
    }
    return {}, {"weight_decays": Series(axes, grid)}


# Statistics: depth and REPAIR, BatchNorm and reset


def measure_depths(context: PairRun) -> Measured:
    """Midpoint accuracy as networks get deeper, before and after REPAIR, and the variance left."""
    config = context.config
    if not config.depths:
        return {}, {}
    accuracies: list[Any] = [[[] for _ in REPAIRED] for _ in config.seeds]
    ends: list[Any] = [[] for _ in config.seeds]
    ratios: list[Any] = [[] for _ in config.seeds]
    for depth in config.depths:
        model = dataclasses.replace(config.model, width=config.deep_width, depth=depth)
        trained = context.networks(f"depth-{depth}", model, config.train)[config.train.epochs]
        setting = context.setting(model)
        for k, (s, pair) in enumerate(context.pairs(trained)):
            found = context.stages.numbers(
                f"depth-{depth}-{s}", functools.partial(measure_repair, setting, pair, s)
            )
            for way, accuracy in enumerate(found["accuracy"]):
                accuracies[k][way].append(accuracy)
            ends[k].append(found["ends"])
            ratios[k] = found["ratio"]  # of the deepest networks, which come last
    layers = list(range(1, len(ratios[0]) + 1))
    return {}, {
        "depths": Series({"merge": list(REPAIRED), "depth": list(config.depths)}, accuracies),
        "depth_ends": Series({"depth": list(config.depths)}, ends),
        "variance_ratio": Series({"layer": layers}, ratios),
    }


def measure_repair(setting: Setting, pair: Pair, seed: int) -> Numbers:
    """Midpoint accuracy of one pair by two matchings, each with and without REPAIR."""
    a, b = pair
    model, data, x = setting.model, setting.data, setting.match_with
    ways = (
        weight_matching(setting.symmetry, a, b, seed=seed).permutations,
        activation_matching(setting.symmetry, a, b, x),
    )
    accuracy = []
    for permutations in ways:
        moved = permute(setting.symmetry, b, permutations)
        for merged in (interpolate(a, moved, 0.5), repair(model, a, moved, 0.5, x)):
            accuracy.append(score(model, merged, data.test_x, data.test_y).accuracy)
    ratio = list(variance_ratio(model, a, moved, 0.5, x).values())
    ends = [score(model, p, data.test_x, data.test_y).accuracy for p in pair]
    return {"accuracy": accuracy, "ratio": ratio, "ends": sum(ends) / 2}


def measure_norms(context: PairRun) -> Measured:
    """Midpoint accuracy of normalised networks, without and with a reset of statistics."""
    config = context.config
    if not config.norms:
        return {}, {}
    grid: list[Any] = [[[] for _ in NORM_PATHS] for _ in config.seeds]
    for norm in config.norms:
        model = dataclasses.replace(config.model, norm=norm)
        trained = context.networks(f"norm-{norm}", model, config.train)[config.train.epochs]
        setting = context.setting(model)
        for k, (s, pair) in enumerate(context.pairs(trained)):
            found = context.stages.numbers(
                f"norm-{norm}-{s}", functools.partial(measure_reset, setting, pair, s)
            )
            for way, accuracy in enumerate(found):
                grid[k][way].append(accuracy)
    axes: dict[str, list[Any]] = {"merge": list(NORM_PATHS), "norm": list(config.norms)}
    return {}, {"norms": Series(axes, grid)}


def measure_reset(setting: Setting, pair: Pair, seed: int) -> list[float]:
    """Midpoint accuracy without and with matching, each without and with the statistics reset."""
    a, b = pair
    model, data, x = setting.model, setting.data, setting.match_with
    found = weight_matching(setting.symmetry, a, b, seed=seed)
    accuracy = []
    for network in (b, permute(setting.symmetry, b, found.permutations)):
        merged = interpolate(a, network, 0.5)
        for params in (merged, reset_batchnorm(model, merged, x)):
            accuracy.append(score(model, params, data.test_x, data.test_y).accuracy)
    return accuracy


# The counterexample of the paper: two perfect networks that no permutation connects

COUNTEREXAMPLE = ModelConfig("mlp", (2,), 2, width=2, depth=2)


def counterexample() -> Pair:
    """The two hand-made networks of Git Re-Basin: both perfect, in opposite order.

    Each has two inputs, two hidden layers of two units and classifies by the sign of one number f;
    here the two logits are (0, f). A looks at the second input first, B at the first.

    Returns:
        Parameters of A and B, for the architecture ``COUNTEREXAMPLE``.

    Taught in: book/connectivity/weight-matching
    """

    def network(first: list[list[float]], b1: list[float], second: list[list[float]]) -> Params:
        return {
            "hidden.0.weight": torch.tensor(first),
            "hidden.0.bias": torch.tensor(b1),
            "hidden.1.weight": torch.tensor(second),
            "hidden.1.bias": torch.tensor([b1[0], b1[1]]),
            "output.weight": torch.tensor([[0.0, 0.0], [-1.0, -1.0]]),
            "output.bias": torch.zeros(2),
        }

    a = network([[-1.0, 0.0], [0.0, -1.0]], [1.0, 0.0], [[-1.0, 0.0], [0.0, 1.0]])
    b = network([[1.0, 0.0], [0.0, 1.0]], [0.0, 1.0], [[1.0, 0.0], [0.0, -1.0]])
    return a, b


def quadrant(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of the square [-1, 1]^2, labelled 1 where x1 < 0 and x2 > 0.

    Args:
        count: Number of points.
        seed: Decides the points.

    Returns:
        Points of shape (count, 2) and labels of shape (count,).
    """
    x = 2 * torch.rand(count, 2, generator=generator(seed, 8)) - 1
    return x, ((x[:, 0] < 0) & (x[:, 1] > 0)).long()


def error_on_line(
    model: nn.Module, a: Params, b: Params, positions: Sequence[float], x: Tensor, y: Tensor
) -> list[float]:
    """Error rate along a line, where a tie of the two logits counts as class 1 (f >= 0)."""
    errors = []
    for position in positions:
        with torch.no_grad():
            logits = predict(model, interpolate(a, b, position), x)
        errors.append(float((((logits[:, 1] >= logits[:, 0]).long()) != y).double().mean()))
    return errors


def measure_counterexample(config: Config) -> dict[str, list[float]]:
    """Smallest error barrier over all four permutations, on fresh points for every seed.

    The control trains pairs of wider networks on the same points by Adam and matches them.
    """
    a, b = counterexample()
    model = build(COUNTEREXAMPLE).eval()
    symmetry = find_symmetry(model, torch.rand(4, 2))
    positions = [k / (config.positions - 1) for k in range(config.positions)]
    swaps = [torch.tensor([0, 1]), torch.tensor([1, 0])]
    wide = ModelConfig("mlp", (2,), 2, width=64, depth=2)
    metrics: dict[str, list[float]] = {
        "counterexample_end_error": [],
        "counterexample_barrier": [],
        "trained_quadrant_barrier": [],
        "trained_quadrant_naive_barrier": [],
    }
    for s in config.seeds:
        x, y = quadrant(4000, s)
        barriers, ends = [], 0.0
        for swap in product(swaps, repeat=2):
            moved = permute(symmetry, b, dict(zip(symmetry.identity(), swap, strict=True)))
            errors = error_on_line(model, a, moved, positions, x, y)
            barriers.append(barrier(positions, errors).maximum)
            ends = max(errors[0], errors[-1])
        metrics["counterexample_end_error"].append(ends)
        metrics["counterexample_barrier"].append(min(barriers))
        points = Dataset("quadrant", f"seed {s}", x, y, x, y, ("no", "yes"))
        trained = train(wide, points, (2 * s, 2 * s + 1), TrainConfig(epochs=20))
        first, second = unstack(trained.params)
        net = build(wide).eval()
        found = weight_matching(find_symmetry(net, x[:4]), first, second, seed=s)
        moved = permute(find_symmetry(net, x[:4]), second, found.permutations)
        for name, end in (("", moved), ("_naive", second)):
            errors = error_on_line(net, first, end, positions, x, y)
            metrics[f"trained_quadrant{name}_barrier"].append(barrier(positions, errors).maximum)
    return metrics


# Claims: statement, effect, margin and the reason for the margin, fixed before the first run of the
# study


def _shares(before: Sequence[float], after: Sequence[float]) -> list[float]:
    if min(before) <= 0:
        raise KeyError("a barrier before matching in every pair")
    return [q / p for p, q in zip(before, after, strict=True)]


def share_removed(method: str) -> Any:
    """Effect: the share of the naive barrier that a matching removes, per pair."""

    def effect(result: Result) -> list[float]:
        naive, left = result.metric("naive_barrier"), result.metric(f"{method}_barrier")
        return [1 - share for share in _shares(naive, left)]

    return effect


def rank_fall(result: Result) -> list[float]:
    """Effect: how surely the share of the barrier left falls with width: minus Spearman's rho."""
    series = result.series["widths"]
    widths = series.axes["width"]
    if len(widths) < 3:
        raise KeyError("widths")
    shares = [_shares(naive, left) for naive, left in series.values]
    if any(len(set(left)) == 1 for left in shares):
        raise KeyError("a share of the barrier that changes with width")
    return [-float(spearmanr(widths, left).statistic) for left in shares]


def early_minus_final(result: Result) -> list[float]:
    """Effect: the highest matched barrier in the first five epochs, minus the one at the end."""
    series = result.series["epochs"]
    early = [k for k, epoch in enumerate(series.axes["epoch"]) if 1 <= epoch <= 5]
    if len(early) < 2:
        raise KeyError("epochs")
    return [max(matched[k] for k in early) - matched[-1] for _, matched in series.values]


def planted_excess(result: Result) -> list[float]:
    """Effect: units in the wrong place, plus sweeps beyond five."""
    mistakes, sweeps = result.metric("planted_mistakes"), result.metric("planted_sweeps")
    return [m + max(0.0, n - 5) for m, n in zip(mistakes, sweeps, strict=True)]


def counterexample_height(result: Result) -> list[float]:
    """Effect: the lowest error barrier of four permutations; -1 if an end is not perfect."""
    ends = result.metric("counterexample_end_error")
    heights = result.metric("counterexample_barrier")
    return [height if end == 0 else -1.0 for end, height in zip(ends, heights, strict=True)]


SOURCE = "ainsworth2023git"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1a",
        "Without matching, the straight line between two trained networks crosses a barrier.",
        f"{SOURCE}, Figure 2",
        measured("naive_barrier"),
        margin=0.2,
        reason="0.2 nats is above the whole test loss of one of these networks",
        unit="nats",
    ),
    Claim(
        "C1b",
        "Weight matching removes at least 95 % of the barrier.",
        f"{SOURCE}, Figure 2",
        share_removed("weights"),
        margin=0.95,
        reason="the paper calls its barriers zero; 5 % allows for networks as small as ours",
        unit="share",
        paper="67 % removed (ResNet-50, ImageNet)",
    ),
    Claim(
        "C1c",
        "Activation matching removes at least 95 % of the barrier.",
        f"{SOURCE}, Figure 2",
        share_removed("activations"),
        margin=0.95,
        reason="the same as for weight matching",
        unit="share",
    ),
    Claim(
        "C3",
        "The wider the network, the smaller the share of the barrier that matching leaves.",
        f"{SOURCE}, Figure 4",
        rank_fall,
        margin=0.5,
        reason="a rank correlation of 0.5 is the least that we would call a trend; 1 is strict",
    ),
    Claim(
        "C4",
        "After matching, the barrier falls from a peak early in training to its end.",
        f"{SOURCE}, Figure 3",
        early_minus_final,
        margin=0.1,
        reason="half of what counts as a barrier in C1a",
        unit="nats",
    ),
    Claim(
        "C5",
        "A network hidden behind a random permutation is found exactly, within five sweeps.",
        f"{SOURCE}, Algorithm 1",
        planted_excess,
        margin=0.0,
        reason="every unit is either found or not",
        kind="exact",
        paper="exact, in 3-4 sweeps",
    ),
    Claim(
        "C6",
        "Sweeping until nothing changes leaves a lower barrier than a single sweep.",
        f"{SOURCE}, ResNet-50 on ImageNet",
        difference("one_sweep_barrier", "weights_barrier"),
        margin=0.02,
        reason="a tenth of what counts as a barrier in C1a",
        unit="nats",
        paper="51 % against 7 % midpoint accuracy (ResNet-50, ImageNet)",
    ),
    Claim(
        "C8",
        "Two perfect networks exist that no permutation connects: the error rises on each path.",
        f"{SOURCE}, counterexample, equations 4 and 5",
        counterexample_height,
        margin=0.02,
        reason="two points in a hundred: far above the sampling error of 4,000 points",
        unit="error",
        paper="none of the four permutations connects them",
    ),
    Claim(
        "C10a",
        "The objective never falls from one sweep to the next.",
        f"{SOURCE}, Lemma 2",
        measured("objective_fall"),
        margin=1e-6,
        reason="a step may be judged a gain only beyond the rounding error of float32",
        kind="exact",
        unit="relative",
        paper="proved",
    ),
    Claim(
        "C10b",
        "Permuting the units does not change what the network computes.",
        f"{SOURCE}, symmetry of permutations",
        measured("output_change"),
        margin=1e-9,
        reason="relative rounding error of float64 through a few layers",
        kind="exact",
        unit="relative",
        paper="an identity",
    ),
)

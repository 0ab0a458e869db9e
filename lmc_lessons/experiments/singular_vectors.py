"""Singular vectors: why does weight matching remove the barrier?

Not because it brings two networks close: it aligns the singular vectors with large singular values,
which carry the function. The unit of repetition is a pair of networks: seed s is the pair trained
from seeds 2s and 2s + 1. Every pair is measured as trained (naive), after weight matching, after
activation matching, and after matchings by one part of the weights only: the large singular values,
or the rest. Controls are a random renumbering, and the same networks before training.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmc_lessons.connectivity.matching import Matching, activation_matching, weight_matching
from lmc_lessons.connectivity.spectra import (
    Spectrum,
    alignments,
    effective_rank,
    input_preference,
    kept,
    spectra,
    spectral_difference,
    taylor_barrier,
    truncate,
)
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
from lmc_lessons.landscape import barrier, interpolate
from lmc_lessons.models import MLP, Params, parameter_names, predict
from lmc_lessons.results import Claim, Result, Series, difference, measured
from lmc_lessons.training import TrainConfig

LESSON = "singular-vectors"
WAYS = (
    "naive",
    "random",
    "weights",
    "activations",
    "top only",
    "rest only",
    "top, best of 5",
    "rest, best of 5",
)
NEAR = ("naive", "weights", "activations")  # the ways whose barrier is estimated as well
SWEPT = ("naive barrier", "matched barrier", "distance removed", "alignment", "effective rank")
CONTROLS = ("other seed", "own start", "two starts")


@dataclass(frozen=True)
class Config(PairConfig):
    """What to run.

    Attributes:
        gammas: Thresholds at which the alignment is measured.
        gamma: The threshold of the claims.
        fractions: Shares of the way to the second network at which the estimate of the barrier is
            compared with the barrier.
        taylor_with: Number of training samples for the estimate of the barrier.
        widths: Widths to compare, other things equal.
        learning_rates: Learning rates of SGD to compare.
        weight_decays: L2 penalties of SGD to compare, at ``sgd_rate``.
        sgd_rate: Learning rate of that comparison.
    """

    gammas: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
    gamma: float = 0.3
    fractions: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
    taylor_with: int = 10_000
    widths: tuple[int, ...] = (16, 32, 64, 128)
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1)
    weight_decays: tuple[float, ...] = (0.0, 1e-3, 5e-3)
    sgd_rate: float = 0.1

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        super().__post_init__()
        for gamma in self.gammas:
            if not 0 <= gamma < 1:
                raise ValueError(f"gamma must be in [0, 1), got {gamma}")
        if not 0 < self.gamma < 1:  # at 0 there is no rest to compare with
            raise ValueError(f"gamma must be in (0, 1), got {self.gamma}")
        if self.gamma not in self.gammas or 0.0 not in self.gammas:
            raise ValueError(f"gammas must hold 0 and {self.gamma}, got {self.gammas}")
        if (
            not self.fractions
            or list(self.fractions) != sorted(set(self.fractions))
            or not 0 < self.fractions[0] <= self.fractions[-1] <= 1
        ):
            raise ValueError(
                f"fractions must be increasing numbers in (0, 1], got {self.fractions}"
            )
        if self.taylor_with < 1:
            raise ValueError(f"taylor_with must be at least 1, got {self.taylor_with}")
        for width in self.widths:  # every architecture and recipe that the run will need
            dataclasses.replace(self.model, width=width)
        for rate in (*self.learning_rates, self.sgd_rate):
            dataclasses.replace(self.train, learning_rate=rate)
        for decay in self.weight_decays:
            dataclasses.replace(self.train, weight_decay=decay)


_ALONE: dict[str, Any] = {"widths": (), "learning_rates": (), "weight_decays": ()}
_FULL_MLP = Config(
    preset="full-mnist-mlp",
    dataset="mnist",
    model=MNIST_MLP,
    train=TrainConfig(epochs=5, batch_size=500, fast=True),
    together=2,
    evaluate=10_000,
    match_with=10_000,
    **_ALONE,
)
_FULL_RESNET = Config(
    preset="full-cifar-resnet20",
    dataset="cifar10",
    model=RESNET20,
    train=gpu_recipe(),
    together=1,
    evaluate=10_000,
    match_with=5_000,
    taylor_with=5_000,
    **_ALONE,
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        gammas=(0.0, 0.3, 0.5),
        fractions=(0.02, 0.3, 1.0),
        widths=(16, 64),
        learning_rates=(),
        weight_decays=(0.0, 5e-3),
    ),
    "study": Config(seeds=(5, 6, 7, 8, 9)),
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
    "paper": dataclasses.replace(
        _FULL_RESNET,
        preset="paper",
        model=dataclasses.replace(RESNET20, width=16, norm="batch"),
        train=gpu_recipe(epochs=100, warmup_epochs=5),
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

    Taught in: book/connectivity/singular-vectors
    """
    context = PairRun(config, folder, progress=progress, device=device, root=root)
    with one_thread(not config.train.fast):
        metrics, series = measure_pairs(context)
        series |= measure_recipes(context)
    return context.finish(LESSON, metrics, series, CLAIMS)


# The pairs


def measure_pairs(context: PairRun) -> Measured:
    """Everything the lesson asks of the pairs, with the same networks before training beside."""
    config = context.config
    networks = context.networks("networks", config.model, config.train, (0,))
    starts = context.pairs(networks[0])
    setting = context.setting(config.model)
    measured = [
        context.stages.numbers(
            f"pair-{s}", functools.partial(measure_pair, setting, config, pair, starts[k][1], s)
        )
        for k, (s, pair) in enumerate(context.pairs(networks[config.train.epochs]))
    ]
    metrics = {name: [m["metrics"][name] for m in measured] for name in measured[0]["metrics"]}
    layers, gammas = measured[0]["layers"], list(config.gammas)
    ranks = list(range(1, 1 + len(measured[0]["series"]["preference"][0])))
    axes: dict[str, dict[str, list[Any]]] = {
        "test_loss": {"way": list(WAYS), "position": list(setting.positions)},
        "alignment": {"way": list(WAYS), "gamma": gammas},
        "merged_alignment": {"way": list(WAYS), "gamma": gammas},
        "layer_alignment": {"way": list(WAYS), "layer": layers, "gamma": gammas},
        "spectral_difference": {"control": list(CONTROLS), "layer": layers},
        "singular_values": {"network": ["A", "B", "A at the start"], "rank": ranks},
        "preference": {"directions": ["own", "at the start"], "rank": ranks},
        "truncation": {"gamma": gammas},
        "untrained_alignment": {"gamma": gammas},
        "taylor": {"quantity": ["estimate", "barrier"], "fraction": list(config.fractions)},
    }
    series = {
        name: Series(axis, [m["series"][name] for m in measured]) for name, axis in axes.items()
    }
    return metrics, series


def measure_pair(setting: Setting, config: Config, pair: Pair, starts: Pair, seed: int) -> Numbers:
    """Everything the lesson asks of one pair of networks.

    Args:
        setting: Architecture, symmetry and data.
        config: Thresholds and numbers of samples.
        pair: Two trained networks.
        starts: The same two before training.
        seed: The pair's seed; decides the order of the sweeps.

    Returns:
        Plain data: ``metrics``, ``series``, names of the ``layers``.
    """
    a, b = pair
    spectra_a, spectra_b, spectra_start = (spectra(p) for p in (a, b, starts[0]))
    found_parts = match_parts(setting.symmetry, a, b, config.gamma, seed)
    ends = matched_ends(setting, pair, seed, found_parts)
    metrics: dict[str, float] = {
        f"{_key(way)}_objective": found.objective[-1] for way, found in found_parts.items()
    }
    series: dict[str, Any] = {"test_loss": [], "alignment": [], "merged_alignment": []}
    series["layer_alignment"] = []
    for way, end in ends.items():
        test, fit = profiles(setting, a, end)
        series["test_loss"].append(test.loss)
        own = alignments(spectra_a, spectra(end), config.gammas)
        merged = alignments(spectra_a, spectra(interpolate(a, end, 0.5)), config.gammas)
        series["alignment"].append([found.whole for found in own])
        series["merged_alignment"].append([found.whole for found in merged])
        series["layer_alignment"].append(
            [[found.layers[name] for found in own] for name in spectra_a]
        )
        key, at = _key(way), config.gammas.index(config.gamma)
        metrics[f"{key}_barrier"] = barrier(setting.positions, test.loss).maximum
        metrics[f"{key}_midpoint"] = barrier(setting.positions, test.loss).midpoint
        metrics[f"{key}_train_midpoint"] = barrier(setting.positions, fit.loss).midpoint
        metrics[f"{key}_distance"] = distance(setting.model, a, end)
        metrics[f"{key}_removed"] = 1 - metrics[f"{key}_distance"] / metrics["naive_distance"]
        metrics[f"{key}_alignment"] = own[at].whole
        metrics[f"{key}_alignment_all"] = own[config.gammas.index(0.0)].whole
        metrics[f"{key}_merged_alignment"] = merged[at].whole
    few = (setting.data.train_x[: config.taylor_with], setting.data.train_y[: config.taylor_with])
    for way in NEAR:
        metrics[f"{way}_estimate"] = taylor_barrier(setting.model, a, ends[way], *few).total
        metrics[f"{way}_estimated"] = midpoint_excess(setting, a, ends[way], *few)
    series["taylor"] = taylor_by_distance(setting, a, b, config.fractions, *few)
    untrained, series["untrained_alignment"], between = untrained_control(
        setting, starts, config, seed
    )
    metrics |= untrained
    differences = [spectral_difference(spectra_a, other) for other in (spectra_b, spectra_start)]
    differences.append(between)
    series["spectral_difference"] = [list(found.values()) for found in differences]
    for name, found in zip(("seeds", "start", "untrained"), differences, strict=True):
        metrics[f"spectral_difference_{name}"] = sum(found.values()) / len(found)
    middle = list(spectra_a)[min(1, len(spectra_a) - 1)]
    series["singular_values"] = [
        s[middle].values.tolist() for s in (spectra_a, spectra_b, spectra_start)
    ]
    more_metrics, series["preference"] = preferences(
        setting, a, starts[0], spectra_a, middle, config.gamma
    )
    series["truncation"] = [
        score(setting.model, truncate(a, gamma), setting.data.test_x, setting.data.test_y).accuracy
        for gamma in config.gammas
    ]
    metrics |= accuracy_of_parts(setting, a, config.gamma)
    total = sum(len(s.values) for s in spectra_a.values())
    metrics["kept_share"] = sum(kept(s, config.gamma) for s in spectra_a.values()) / total
    metrics |= more_metrics | invariance(setting, b, ends["weights"])
    return {"metrics": metrics, "series": series, "layers": list(spectra_a)}


def _key(way: str) -> str:
    return way.replace(",", "").replace(" ", "_")


def matched_ends(
    setting: Setting, pair: Pair, seed: int, parts: Mapping[str, Matching]
) -> dict[str, Params]:
    """The second network, renumbered in every way that the lesson compares.

    Args:
        setting: Architecture, symmetry and data.
        pair: Two trained networks.
        seed: Decides the order of the sweeps, and the random order.
        parts: The matchings by one part of the weights, from ``match_parts``.

    Returns:
        Way (``WAYS``) to a network that computes what the second one computes.
    """
    a, b = pair
    symmetry = setting.symmetry
    found: dict[str, Permutations] = {
        "naive": symmetry.identity(),
        "random": symmetry.random(seed),
        "weights": weight_matching(symmetry, a, b, seed=seed).permutations,
        "activations": activation_matching(symmetry, a, b, setting.match_with),
        **{way: matching.permutations for way, matching in parts.items()},
    }
    return {way: permute(symmetry, b, permutations) for way, permutations in found.items()}


def part_of(params: Params, gamma: float, *, top: bool) -> Params:
    r"""The large singular values of every layer, or all the others.

    Args:
        params: Parameters and buffers by name; not changed.
        gamma: Threshold in (0, 1): a singular value is large if $s_i \ge \gamma s_1$.
        top: Whether to keep the large ones.

    Returns:
        Parameters of the same shapes; what is not the weight of a layer (biases, norms) is zero.

    Taught in: book/connectivity/singular-vectors
    """
    low = truncate(params, gamma)
    chosen = {}
    for name, tensor in params.items():
        if low[name] is tensor:
            chosen[name] = torch.zeros_like(tensor)
        else:
            chosen[name] = low[name] if top else tensor - low[name]
    return chosen


def match_part(
    symmetry: Symmetry,
    a: Params,
    b: Params,
    gamma: float,
    *,
    top: bool,
    seed: int = 0,
    searches: int = 1,
) -> Matching:
    r"""Weight matching that sees one part of every layer's weights, and no biases.

    Args:
        symmetry: The groups of the architecture.
        a: Network A.
        b: Network B.
        gamma: Threshold in (0, 1): a singular value is large if $s_i \ge \gamma s_1$.
        top: Whether to match by the large singular values; otherwise by all the others.
        seed: Decides the order of the sweeps.
        searches: Number of searches in different orders; the best inner product wins.

    Returns:
        Permutations of B, with the inner product of the parts.

    Taught in: book/connectivity/singular-vectors
    """
    parts = (part_of(params, gamma, top=top) for params in (a, b))
    return weight_matching(symmetry, *parts, seed=seed, restarts=searches)


def match_parts(
    symmetry: Symmetry, a: Params, b: Params, gamma: float, seed: int
) -> dict[str, Matching]:
    """Matchings by the large singular values and by all others, with one and with five searches.

    Args:
        symmetry: The groups of the architecture.
        a: Network A.
        b: Network B.
        gamma: What separates large singular values from the rest.
        seed: Decides the order of the sweeps.

    Returns:
        Way (the last four of ``WAYS``) to a matching.
    """
    found = {}
    for searches, words in ((1, "{} only"), (5, "{}, best of 5")):
        for title, top in (("top", True), ("rest", False)):
            found[words.format(title)] = match_part(
                symmetry, a, b, gamma, top=top, seed=seed, searches=searches
            )
    return found


def untrained_control(
    setting: Setting, starts: Pair, config: Config, seed: int
) -> tuple[dict[str, float], list[float], dict[str, float]]:
    """What weight matching does to two networks before training: what a search finds in noise.

    Args:
        setting: Architecture and symmetry.
        starts: Two untrained networks.
        config: Thresholds.
        seed: Decides the order of the sweeps.

    Returns:
        Metrics, the alignment at every threshold, and how far the spectra differ, layer by layer.
    """
    a, b = starts
    moved = permute(
        setting.symmetry, b, weight_matching(setting.symmetry, a, b, seed=seed).permutations
    )
    spectra_a, spectra_b = spectra(a), spectra(moved)
    whole = [found.whole for found in alignments(spectra_a, spectra_b, config.gammas)]
    metrics = {
        "untrained_alignment": whole[config.gammas.index(config.gamma)],
        "untrained_alignment_all": whole[config.gammas.index(0.0)],
        "untrained_removed": 1 - distance(setting.model, a, moved) / distance(setting.model, a, b),
    }
    return metrics, whole, spectral_difference(spectra_a, spectra_b)


def accuracy_of_parts(setting: Setting, params: Params, gamma: float) -> dict[str, float]:
    """Test accuracy of a network with its large singular values alone, and with all the others.

    Args:
        setting: Architecture and data.
        params: A trained network; biases and buffers stay.
        gamma: What separates large singular values from the rest.

    Returns:
        Metrics.
    """
    layers = [f"{name}.weight" for name in spectra(params)]
    found = {}
    for title, top in (("top", True), ("rest", False)):
        part = part_of(params, gamma, top=top)
        network = {**params, **{name: part[name] for name in layers}}
        found[f"accuracy_{title}"] = score(
            setting.model, network, setting.data.test_x, setting.data.test_y
        ).accuracy
    return found


def midpoint_excess(setting: Setting, a: Params, b: Params, x: Tensor, y: Tensor) -> float:
    """The barrier at the midpoint, on given samples, statistics not reset: what Taylor foretells.

    Args:
        setting: Architecture.
        a: The network at position 0.
        b: The network at position 1.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).

    Returns:
        Excess of the loss over the mean of the ends, in nats.
    """
    model, middle = setting.model, interpolate(a, b, 0.5)
    parameters = {name: middle[name] for name in parameter_names(model)}
    inside = [score(model, {**end, **parameters}, x, y).loss for end in (a, b)]
    ends = [score(model, end, x, y).loss for end in (a, b)]
    return (sum(inside) - sum(ends)) / 2


def taylor_by_distance(
    setting: Setting, a: Params, b: Params, fractions: Sequence[float], x: Tensor, y: Tensor
) -> list[list[float]]:
    """The estimate and the barrier between A and points ever farther on the way to B.

    Args:
        setting: Architecture.
        a: Network A.
        b: Network B.
        fractions: Shares of the way.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).

    Returns:
        Estimates and barriers, shape (2, fractions), in nats.
    """
    ends = [interpolate(a, b, fraction) for fraction in fractions]
    estimates = [taylor_barrier(setting.model, a, end, x, y).total for end in ends]
    return [estimates, [midpoint_excess(setting, a, end, x, y) for end in ends]]


def preferences(
    setting: Setting,
    a: Params,
    start: Params,
    spectra_a: Mapping[str, Spectrum],
    middle: str,
    gamma: float,
) -> tuple[dict[str, float], list[list[float]]]:
    """How much of each layer's input lies along large and along small singular vectors.

    The control takes the same inputs along the singular vectors of the network before training.

    Args:
        setting: Architecture and data.
        a: The trained network.
        start: The same network before training.
        spectra_a: Spectra of the trained network.
        middle: The layer whose preference is returned vector by vector.
        gamma: What separates large singular values from the rest.

    Returns:
        Metrics: means over the layers that have both parts. And for the middle layer a number per
        singular vector, for both sets of directions.
    """
    own = input_preference(setting.model, a, setting.match_with)
    control = input_preference(setting.model, a, setting.match_with, directions=start)
    cuts = {name: kept(s, gamma) for name, s in spectra_a.items()}
    both = [name for name, s in spectra_a.items() if cuts[name] < len(s.values)]
    if not both:
        raise ValueError(f"no layer has a singular value below {gamma} times its largest")
    metrics = {}
    for title, found in (("", own), ("start_", control)):
        top = [float(found[name][: cuts[name]].mean()) for name in both]
        rest = [float(found[name][cuts[name] :].mean()) for name in both]
        metrics[f"preference_{title}top"] = sum(top) / len(both)
        metrics[f"preference_{title}rest"] = sum(rest) / len(both)
    return metrics, [own[middle].tolist(), control[middle].tolist()]


def invariance(setting: Setting, b: Params, moved: Params) -> dict[str, float]:
    """What permuting changes: the output, the singular values; and what rescaling changes.

    The control multiplies what enters the first hidden units by two and divides what leaves them by
    two. With ReLU this keeps the function too, but not the singular values.

    Args:
        setting: Architecture and data.
        b: A network.
        moved: The same with its units renumbered.

    Returns:
        Relative changes, in float64.
    """
    model = copy.deepcopy(setting.model).double().eval()
    x = setting.data.test_x[:64].double()
    before, after = ({n: _double(t) for n, t in p.items()} for p in (b, moved))
    found = {
        "output_change": _output_change(model, before, after, x),
        "singular_value_change": max(spectral_difference(spectra(before), spectra(after)).values()),
    }
    if isinstance(model, MLP) and "norms.0.weight" not in b:
        first, second = list(spectra(b))[:2]
        scaled = dict(before)
        for name, factor in (
            (f"{first}.weight", 2),
            (f"{first}.bias", 2),
            (f"{second}.weight", 0.5),
        ):
            scaled[name] = before[name] * factor
        found["rescaled_output_change"] = _output_change(model, before, scaled, x)
        found["rescaled_singular_value_change"] = max(
            spectral_difference(spectra(before), spectra(scaled)).values()
        )
    return found


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _output_change(model: torch.nn.Module, before: Params, after: Params, x: Tensor) -> float:
    with torch.no_grad():
        old, new = predict(model, before, x), predict(model, after, x)
    return float((new - old).abs().max() / old.abs().max())


# Recipes: width, learning rate, weight decay


def measure_recipes(context: PairRun) -> dict[str, Series]:
    """Barriers, distance, alignment and rank as width, learning rate and weight decay change."""
    config = context.config
    sgd = dataclasses.replace(config.train, optimizer="sgd", learning_rate=config.sgd_rate)
    variations: dict[str, tuple[Sequence[Any], Any]] = {
        "width": (
            config.widths,
            lambda width: (dataclasses.replace(config.model, width=width), config.train),
        ),
        "learning rate": (
            config.learning_rates,
            lambda rate: (config.model, dataclasses.replace(sgd, learning_rate=rate)),
        ),
        "weight decay": (
            config.weight_decays,
            lambda decay: (config.model, dataclasses.replace(sgd, weight_decay=decay)),
        ),
    }
    series = {}
    for axis, (values, recipe_of) in variations.items():
        if not values:
            continue
        grid: list[Any] = [[[] for _ in SWEPT] for _ in config.seeds]
        for value in values:
            model, recipe = recipe_of(value)
            name = f"{axis.replace(' ', '-')}-{value}"
            networks = context.networks(name, model, recipe)[recipe.epochs]
            setting = context.setting(model)
            for k, (s, pair) in enumerate(context.pairs(networks)):
                found = context.stages.numbers(
                    f"{name}-{s}",
                    functools.partial(measure_recipe, setting, pair, s, config.gamma),
                )
                for row, number in zip(grid[k], found, strict=True):
                    row.append(number)
        axes: dict[str, list[Any]] = {"quantity": list(SWEPT), axis: list(values)}
        series[f"{axis.replace(' ', '_')}s"] = Series(axes, grid)
    return series


def measure_recipe(setting: Setting, pair: Pair, seed: int, gamma: float) -> list[float]:
    """The numbers of ``SWEPT`` for one pair.

    Args:
        setting: Architecture, symmetry and data.
        pair: Two trained networks.
        seed: Decides the order of the sweeps.
        gamma: Threshold of the alignment.

    Returns:
        One number per name in ``SWEPT``.
    """
    a, b = pair
    moved = permute(
        setting.symmetry, b, weight_matching(setting.symmetry, a, b, seed=seed).permutations
    )
    heights = [
        barrier(setting.positions, profile_on_test(setting, a, end).loss).maximum
        for end in (b, moved)
    ]
    far, near = (distance(setting.model, a, end) for end in (b, moved))
    spectra_a = spectra(a)
    hidden = list(spectra_a.values())[:-1] or list(spectra_a.values())
    rank = sum(effective_rank(s.values) for s in hidden) / len(hidden)
    whole = alignments(spectra_a, spectra(moved), (gamma,))[0].whole
    return [*heights, 1 - near / far, whole, rank]


# Claims: statement, effect, margin and the reason for the margin, fixed before the first run of the
# study


def missed(way: str) -> Any:
    """Effect: by how much the estimate misses the barrier, as a share of the barrier."""

    def effect(result: Result) -> list[float]:
        pairs = zip(
            result.metric(f"{way}_estimate"), result.metric(f"{way}_estimated"), strict=True
        )
        if min(result.metric(f"{way}_estimated")) <= 0:
            raise KeyError("a barrier in every pair")
        return [abs(true - estimate) / true for estimate, true in pairs]

    return effect


def missed_nearby(result: Result) -> list[float]:
    """Effect: the same for the shortest distance measured, with its sign: the control of C3."""
    series = result.series["taylor"]
    if not series.axes["fraction"] or series.axes["fraction"][0] > 0.1:
        raise KeyError("a short distance")
    if any(true[0] == 0 for _, true in series.values):
        raise KeyError("a loss that changes nearby in every pair")
    return [(estimates[0] - true[0]) / true[0] for estimates, true in series.values]


def preference_ratio(result: Result) -> list[float]:
    """Effect: the input's part along large singular vectors over that along the others."""
    top, rest = result.metric("preference_top"), result.metric("preference_rest")
    if min(rest) <= 0:
        raise KeyError("inputs along the small singular vectors of every pair")
    return [p / q for p, q in zip(top, rest, strict=True)]


SOURCE = "ito2025analysis"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1a",
        "Without matching, the loss halfway between two trained networks rises.",
        f"{SOURCE}, Table 1 (from reviews)",
        measured("naive_midpoint"),
        margin=0.2,
        reason="0.2 nats is above the whole test loss of one of these networks",
        unit="nats",
    ),
    Claim(
        "C1b",
        "After weight matching it does not.",
        f"{SOURCE}, Table 1 (from reviews)",
        measured("weights_midpoint"),
        margin=0.1,
        reason="half of what counts as a rise in C1a",
        kind="equal",
        unit="nats",
    ),
    Claim(
        "C2",
        "More than two thirds of the distance are still there after matching.",
        f"{SOURCE}, Table 1 (from reviews)",
        lambda result: [1 - share for share in result.metric("weights_removed")],
        margin=0.667,
        reason="less than a third removed is a minor share",
        unit="share",
    ),
    Claim(
        "C3a",
        "Without matching, the second-order estimate misses more than half of the barrier.",
        f"{SOURCE}, Theorem 3.1 and Table 1 (from reviews)",
        missed("naive"),
        margin=0.5,
        reason="an estimate that is off by half explains nothing",
        unit="share",
    ),
    Claim(
        "C3b",
        "After matching, the estimate is still off by more than a tenth of the barrier.",
        f"{SOURCE}, Theorem 3.1 and Table 1 (from reviews)",
        missed("weights"),
        margin=0.1,
        reason="a tenth is the least that we would call a difference",
        unit="share",
    ),
    Claim(
        "C3c",
        "Control: over a fiftieth of the distance the estimate is right.",
        "this lesson",
        missed_nearby,
        margin=0.1,
        reason="the terms left out shrink with the distance",
        kind="equal",
        unit="relative",
    ),
    Claim(
        "C4",
        "The singular values of two seeds agree.",
        f"{SOURCE}, Figure 1 (from reviews)",
        measured("spectral_difference_seeds"),
        margin=0.1,
        reason="a tenth of the spectrum's length; training changes it by half",
        kind="equal",
        unit="relative",
    ),
    Claim(
        "C5a",
        "Without matching, the large singular vectors do not line up.",
        f"{SOURCE}, equation of R (from reviews)",
        measured("naive_alignment"),
        margin=0.1,
        reason="a tenth of perfect alignment",
        kind="equal",
    ),
    Claim(
        "C5b",
        "After weight matching the large ones line up better than all together.",
        f"{SOURCE}, equation of R (from reviews)",
        difference("weights_alignment", "weights_alignment_all"),
        margin=0.1,
        reason="a tenth of perfect alignment",
    ),
    Claim(
        "C5c",
        "All together line up better after weight matching than before.",
        f"{SOURCE}, equation of R (from reviews)",
        difference("weights_alignment_all", "naive_alignment_all"),
        margin=0.05,
        reason="half of what counts in C5b, since most singular values are small",
    ),
    Claim(
        "C6a",
        "The merged network is better aligned with A than the matched B is.",
        f"{SOURCE}, Figure 3 (from reviews)",
        difference("weights_merged_alignment", "weights_alignment"),
        margin=0.1,
        reason="a tenth of perfect alignment",
    ),
    Claim(
        "C6b",
        "Control: merging after matching aligns better than merging without.",
        f"{SOURCE}, Figure 3 (from reviews)",
        difference("weights_merged_alignment", "naive_merged_alignment"),
        margin=0.1,
        reason="without matching, half of the merged network is A as well",
    ),
    Claim(
        "C7",
        "A layer's inputs lie along its large singular vectors, twice as much as along the others.",
        f"{SOURCE}, Figure 4 (from reviews)",
        preference_ratio,
        margin=2.0,
        reason="along the vectors that the network had before training the ratio is about one",
        unit="ratio",
    ),
    Claim(
        "C8a",
        "After activation matching the loss halfway does not rise either.",
        f"{SOURCE}, Table 4 (from reviews)",
        measured("activations_midpoint"),
        margin=0.1,
        reason="the margin of C1b",
        kind="equal",
        unit="nats",
    ),
    Claim(
        "C8b",
        "Activation matching lines up the large singular vectors as well as weight matching does.",
        f"{SOURCE}, Figures 15 and 16 (from reviews)",
        difference("activations_alignment", "weights_alignment"),
        margin=0.1,
        reason="a tenth of perfect alignment",
        kind="equal",
    ),
    Claim(
        "C8c",
        "It removes about the same share of the distance.",
        f"{SOURCE}, Table 4 (from reviews)",
        difference("activations_removed", "weights_removed"),
        margin=0.1,
        reason="a tenth of the distance",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C11a",
        "Permuting the units leaves every singular value as it was.",
        f"{SOURCE}, section 4",
        measured("singular_value_change"),
        margin=1e-9,
        reason="relative rounding error of float64",
        kind="exact",
        unit="relative",
        paper="an identity",
    ),
    Claim(
        "C11b",
        "Permuting the units leaves the function as it was.",
        f"{SOURCE}, section 2",
        measured("output_change"),
        margin=1e-9,
        reason="relative rounding error of float64 through a few layers",
        kind="exact",
        unit="relative",
        paper="an identity",
    ),
    Claim(
        "T1",
        "Matching by the large singular values alone is enough: the loss halfway does not rise.",
        "this lesson",
        measured("top_only_midpoint"),
        margin=0.1,
        reason="the margin of C1b",
        kind="equal",
        unit="nats",
    ),
    Claim(
        "T2",
        "Matching by all the other singular values is of no use: the loss halfway rises.",
        "this lesson",
        measured("rest_only_midpoint"),
        margin=0.2,
        reason="the margin of C1a",
        unit="nats",
    ),
    Claim(
        "T3",
        "And yet, counted over all singular vectors, that matching aligns no worse.",
        "this lesson",
        difference("rest_only_alignment_all", "weights_alignment_all"),
        margin=-0.03,
        reason="a quarter of what weight matching reached in a pilot: no worse, up to that",
    ),
)

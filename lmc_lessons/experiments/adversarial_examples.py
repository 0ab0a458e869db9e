"""Adversarial examples: how error grows with the perturbation, and which attacks can be believed.

The unit of repetition is a seed: it decides a family of networks of one architecture, trained in
different ways on the same data, and everything that is drawn to attack them. The first half
measures how the adversarial error grows with the radius, without the box [0, 1]. The second half
attacks four networks within it: a standard one, an adversarially trained one, and two that hide the
gradient of the standard one and change nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.runs import Stages, finish, one_thread, train_stages
from lmc_lessons.models import ModelConfig, Params, build, predict_stacked
from lmc_lessons.results import Claim, Effect, Result, Series, difference, measured, reach
from lmc_lessons.robustness.attacks import (
    Attack,
    LInf,
    Predict,
    apgd,
    cross_entropy,
    fgsm,
    loss_gradient,
    pgd,
    random_noise,
    square_attack,
    step_least_likely,
    targeted_apgd,
)
from lmc_lessons.robustness.entropy import EntropyPenalty
from lmc_lessons.robustness.masking import (
    Finding,
    accuracies,
    black_box,
    epsilon_sweep,
    gradient_direction,
    noise_control,
    order_of_attacks,
    scaled,
    staircase,
    standing,
    together,
    transfer,
    transferred,
)
from lmc_lessons.robustness.objectives import AdversarialTraining
from lmc_lessons.robustness.power_law import (
    adversarial_error,
    along,
    caught_by,
    cdf_slope,
    fit_power,
    independent_gaps,
    linear_radius,
    logit_gaps,
    share_below,
)
from lmc_lessons.training import Loss, Network, TrainConfig, generator
from lmc_lessons.training import cross_entropy as mean_cross_entropy

LESSON = "adversarial-examples"
NETWORKS = (
    "untrained",
    "one epoch",
    "trained",
    "linear",
    "adversarial",
    "entropy 0.5",
    "entropy 2",
    "random data",
)
OWN_LABELS = ("untrained", "random data")  # no true labels: what the network says counts as true
PENALTIES = {"entropy 0.5": 0.5, "entropy 2": 2.0}
VICTIMS = ("trained", "adversarial", "scaled", "staircase")
MASKED = ("scaled", "staircase")
STEPPED = ("FGSM", "step l.l.", "gap", "FGSM float64")
WHITE = ("FGSM", "PGD", "APGD", "APGD-T")  # from weak to strong, all with gradients
ATTACKS = ("noise", *WHITE, "Square", "transfer")
FLAGS = ("order of attacks", "black box", "noise", "epsilon sweep", "direction", "transfer")
LEVELS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
RANDOM_DATA = 41  # the random stream of random inputs and labels


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        preset: Name of the preset.
        seeds: One family of networks each.
        dataset: Name for ``datasets.load``.
        count: Number of training images drawn, for ``glyphs`` only; a quarter as many test images.
        size: Height and width of the images, for ``glyphs`` only.
        train_with: Number of training samples used; None uses all.
        test_with: Number of test samples for the scaling of the error; None uses all.
        networks: Which networks to measure; ``trained`` and ``adversarial`` are always needed.
        model: Architecture.
        train: How to train.
        radii: Radii of one-step attacks.
        pgd_radii: Radii of projected gradient descent, among ``radii``.
        pgd_steps: Its steps there.
        counts: The fit's window begins where so many samples are lost.
        highest: The fit's window ends at this error.
        small: The radius at which networks are compared, among ``radii``.
        large: The radius at which attacks on confident networks are compared, among ``radii``.
        epsilon: Radius of the evaluation within the box, and of adversarial training.
        training_steps: Steps of the attack in adversarial training.
        attack_with: Number of test samples in the evaluation.
        diagnose_with: Number of test samples for the diagnostics.
        attack_steps: Steps of every attack by gradients in the evaluation.
        queries: Evaluations of Square.
        factor: What the masked network's logits are multiplied by.
        stair: Height of the steps of the other masked network's inputs.
        sweep: Radii of the diagnostic sweep; the last is the whole box.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = tuple(range(8))
    dataset: str = "glyphs"
    count: int = 32_000
    size: int = 12
    train_with: int | None = 4000
    test_with: int | None = None
    networks: tuple[str, ...] = NETWORKS
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig("mlp", (1, 12, 12), 10, width=128, depth=2)
    )
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=20))
    radii: tuple[float, ...] = tuple(float(f"{10 ** (-4 + k / 4):.3g}") for k in range(15))
    pgd_radii: tuple[float, ...] = tuple(float(f"{10 ** (-4 + k / 4):.3g}") for k in range(2, 10))
    pgd_steps: int = 5
    counts: int = 5
    highest: float = 0.15
    small: float = 0.01
    large: float = 0.0562
    epsilon: float = 0.1
    training_steps: int = 5
    attack_with: int = 300
    diagnose_with: int = 200
    attack_steps: int = 40
    queries: int = 500
    factor: float = 1000.0
    stair: float = 0.1
    sweep: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers >= 0, got {self.seeds}")
        unknown = set(self.networks) - set(NETWORKS)
        if unknown or not {"trained", "adversarial"} <= set(self.networks):
            raise ValueError(
                f"networks must hold trained and adversarial, and be among {NETWORKS}, "
                f"got {self.networks}"
            )
        for name in ("radii", "pgd_radii", "sweep"):
            grid = list(getattr(self, name))
            if len(grid) < 3 or grid != sorted(set(grid)) or grid[0] <= 0:
                raise ValueError(f"{name} must be at least 3 growing numbers > 0, got {grid}")
        if not {self.small, self.large, *self.pgd_radii} <= set(self.radii):
            raise ValueError("small, large and pgd_radii must be among radii")
        if not (0 < self.epsilon <= 1 and 0 < self.highest <= 1 and self.counts >= 0):
            raise ValueError("epsilon and highest must be in (0, 1], counts at least 0")
        least = min(
            self.training_steps,
            self.pgd_steps,
            self.attack_steps,
            self.attack_with,
            self.diagnose_with,
            self.queries,
        )
        if least < 1 or self.factor <= 0 or self.stair <= 0:
            raise ValueError("steps, queries and sample numbers must be >= 1, masks positive")


_FULL = Config(
    preset="full-fashion-mlp",
    seeds=(0, 1, 2, 3, 4),
    dataset="fashion-mnist",
    train_with=None,
    test_with=5000,
    networks=("untrained", "trained", "linear", "adversarial", "entropy 2"),
    model=ModelConfig("mlp", (1, 28, 28), 10, width=256, depth=2),
    train=TrainConfig(epochs=5, batch_size=250, fast=True),
    attack_with=500,
    queries=1000,
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        count=16_000,
        networks=("untrained", "trained", "adversarial"),
        attack_with=100,
        diagnose_with=100,
        attack_steps=20,
        queries=200,
    ),
    "study": Config(),
    "full-fashion-mlp": _FULL,
}


# Networks


@dataclass(frozen=True)
class Linear:
    """Softmax regression as a loss: the network's two layers, taken without the ReLU between."""

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Mean cross-entropy of the linear map: inputs (S, B, ...), labels (S, B) to (S,)."""
        return mean_cross_entropy(linear_map(network.params), x, y)


def linear_map(params: Params) -> Predict:
    """The linear map that the layers of a network give when nothing stands between them.

    Args:
        params: An ``MLP`` of one hidden layer without normalisation, of shape (S, ...).

    Returns:
        A function from inputs (S, B, ...) to logits (S, B, classes).
    """
    first, second = params["hidden.0.weight"], params["output.weight"]
    bias = torch.baddbmm(
        params["output.bias"].unsqueeze(2), second, params["hidden.0.bias"].unsqueeze(2)
    )
    weight = second @ first  # (S, classes, inputs)

    def predict(x: Tensor) -> Tensor:
        return torch.baddbmm(bias.mT, x.flatten(2), weight.mT)

    return predict


class Family:
    """The networks of one run, S of each kind, with the data that each is measured on."""

    def __init__(
        self,
        config: Config,
        stages: Stages,
        *,
        device: str = "cpu",
        root: Path | None = None,
    ) -> None:
        """Load the data.

        Args:
            config: What to run.
            stages: Where finished work is kept.
            device: Where to train and measure.
            root: Where data sets lie.

        Raises:
            ValueError: If the data set is not there, or does not fit the model.
        """
        self.config, self.stages, self.device = config, stages, device
        self.data = load_data(config, root)
        self.noise = random_data(self.data)
        self.model = build(config.model).to(device).eval()
        self.linear = dataclasses.replace(config.model, depth=1, norm="none")

    def train(
        self,
        name: str,
        model: ModelConfig | None = None,
        data: Dataset | None = None,
        loss: Loss = mean_cross_entropy,
        snapshots: Sequence[int] = (),
        shift: int = 0,
    ) -> dict[int, Params]:
        """Train one network per seed, as a stage.

        Args:
            name: Name of the stage.
            model: Architecture; that of the run by default.
            data: Training data; those of the run by default.
            loss: The loss.
            snapshots: Epochs to keep beside the last.
            shift: Added to every seed.

        Returns:
            Epoch to parameters of shape (S, ...).
        """
        return train_stages(
            self.stages,
            name,
            model or self.config.model,
            data or self.data,
            [seed + shift for seed in self.config.seeds],
            self.config.train,
            loss=loss,
            snapshots=snapshots,
            device=self.device,
        )

    def networks(self) -> dict[str, Params]:
        """Train whatever the run measures.

        Returns:
            Name to parameters of shape (S, ...), with a ``surrogate`` from other seeds.
        """
        config, last = self.config, self.config.train.epochs
        plain = self.train("plain", snapshots=(0, min(1, last)))
        found = {"untrained": plain[0], "one epoch": plain[min(1, last)], "trained": plain[last]}
        attack = AdversarialTraining(LInf(config.epsilon), steps=config.training_steps)
        found["adversarial"] = self.train("adversarial", loss=attack)[last]
        for name, weight in PENALTIES.items():
            if name in config.networks:
                found[name] = self.train(name, loss=EntropyPenalty(weight))[last]
        if "linear" in config.networks:
            found["linear"] = self.train("linear", self.linear, loss=Linear())[last]
        if "random data" in config.networks:
            found["random data"] = self.train("random data", data=self.noise)[last]
        found["surrogate"] = self.train("surrogate", shift=1000)[last]
        return found

    def predict(self, name: str, params: Params) -> Predict:
        """The function that S networks compute, from (S, N, ...) to (S, N, classes)."""
        if name == "linear":
            return linear_map(params)
        return lambda x: predict_stacked(self.model, params, x)

    def samples(self, name: str, predict: Predict) -> tuple[Tensor, Tensor]:
        """Inputs and labels for the scaling of the error, each with the leading axis of seeds."""
        data = self.noise if name == "random data" else self.data
        seeds, some = len(self.config.seeds), slice(self.config.test_with)
        x = data.test_x[some].to(self.device)
        x = x.expand(seeds, *x.shape)
        if name in OWN_LABELS:
            with torch.no_grad():
                return x, predict(x).argmax(-1)
        return x, data.test_y[some].to(self.device).expand(seeds, -1)


def load_data(config: Config, root: Path | None = None) -> Dataset:
    """The data of a run.

    Args:
        config: Which.
        root: Where data sets lie.

    Returns:
        The data set, its training split cut to the number that is used.

    Raises:
        ValueError: If the data set is not there, or does not fit the model.
    """
    options = {"count": config.count, "size": config.size} if config.dataset == "glyphs" else {}
    data = datasets.load(config.dataset, root=root, **options)
    if data.input_shape != config.model.input_shape or data.classes > config.model.classes:
        raise ValueError(
            f"{config.dataset} has inputs of shape {data.input_shape} and {data.classes} classes, "
            f"the model takes {config.model.input_shape} and {config.model.classes}"
        )
    some = slice(config.train_with)
    return dataclasses.replace(data, train_x=data.train_x[some], train_y=data.train_y[some])


def random_data(data: Dataset) -> Dataset:
    """Uniform random inputs with random labels, of the same shapes.

    Args:
        data: A data set.

    Returns:
        A data set in which there is nothing to learn.
    """
    stream = generator(0, RANDOM_DATA)
    x = [torch.rand(part.shape, generator=stream) for part in (data.train_x, data.test_x)]
    y = [
        torch.randint(0, data.classes, part.shape, generator=stream)
        for part in (data.train_y, data.test_y)
    ]
    return Dataset("random", "uniform", x[0], y[0], x[1], y[1], data.class_names)


# The run


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
        Metrics per seed, series on grids, and the verdict of every claim.

    Raises:
        ValueError: If the data set is not there, or does not fit the model.

    Taught in: book/robustness/adversarial-examples
    """
    stages = Stages(folder, config, progress=progress)
    family = Family(config, stages, device=device, root=root)
    with one_thread(not config.train.fast):
        networks = family.networks()
        metrics, series = measure_scaling(family, networks)
        more_metrics, more_series = measure_evaluation(family, networks)
    return finish(
        LESSON,
        config,
        stages=stages,
        metrics=metrics | more_metrics,
        series=series | more_series,
        claims=CLAIMS,
        datasets=[family.data],
        device=device,
    )


# How the error grows


Measured = tuple[dict[str, list[float]], dict[str, Series]]


def measure_scaling(family: Family, networks: Mapping[str, Params]) -> Measured:
    """Errors at every radius, fitted exponents and gaps, for every kind of network."""
    config = family.config
    metrics: dict[str, list[float]] = {}
    parts: dict[str, list[Any]] = {}
    for name in config.networks:
        found = family.stages.numbers(
            f"scaling-{key(name)}",
            functools.partial(measure_network, family, name, networks[name]),
        )
        metrics |= {f"{key(name)}_{k}": values for k, values in found["metrics"].items()}
        for title, values in found["series"].items():
            parts.setdefault(title, []).append(values)
    control = [independent_gaps(len(family.data.test_x), 10, seed) for seed in config.seeds]
    for j in (2, 3, 4):
        metrics[f"independent_gap_{j}_slope"] = [cdf_slope(gaps[:, j - 2]) for gaps in control]
    names, radii = list(config.networks), list(config.radii)
    axes: dict[str, dict[str, list[Any]]] = {
        "error": {"network": names, "attack": list(STEPPED), "radius": radii},
        "predicted": {"network": names, "radius": radii},
        "pgd_error": {"network": names, "radius": list(config.pgd_radii)},
        "top_two_error": {"network": names, "radius": radii},
        "gaps": {"network": names, "place": [2, 3], "level": list(LEVELS)},
    }
    series = {title: Series(axes[title], by_seed(values)) for title, values in parts.items()}
    return metrics, series


def key(name: str) -> str:
    """A name as part of a metric's name."""
    return name.replace(" ", "_").replace(".", "")


def by_seed(parts: Sequence[Sequence[Any]]) -> list[Any]:
    """Turn one list of seeds per network into one list of networks per seed."""
    return [list(seed) for seed in zip(*parts, strict=True)]


def measure_network(family: Family, name: str, params: Params) -> dict[str, Any]:
    """Gaps, errors and exponents of one kind of network.

    Args:
        family: Configuration and data.
        name: Which kind.
        params: Parameters of shape (S, ...).

    Returns:
        Plain data: ``metrics`` and ``series``, each with one entry per seed.
    """
    config = family.config
    predict = family.predict(name, params)
    x, y = family.samples(name, predict)
    with torch.no_grad():
        logits = predict(x)
    gaps, right = logit_gaps(logits), logits.argmax(-1) == y
    radius = linear_radius(predict, x, LInf(1.0, bounded=False)).radius
    precise = family.predict(name, {k: t.double() for k, t in params.items()})
    errors, top_two = one_step_errors(predict, precise, x, y, config.radii)
    threats = [LInf(epsilon, bounded=False) for epsilon in config.pgd_radii]
    descent = functools.partial(pgd, steps=config.pgd_steps, random_start=False)
    followed = adversarial_error(predict, x, y, threats, descent)
    counts = right.sum(-1).tolist()
    curves = {title.replace(" ", "_").replace(".", ""): errors[title] for title in STEPPED}
    if name != "untrained":  # there two classes can lead on all inputs: no window, no exponent
        curves["top_two"] = top_two
    metrics = exponents(config, counts, curves, config.radii)
    metrics |= exponents(config, counts, {"PGD": followed}, config.pgd_radii)
    # infinite where the sample is misread already: what is predicted is the error among the others
    reached = torch.where(right, radius, torch.inf)
    share = right.double().mean(-1)
    predicted = share_below(reached, config.radii) / share
    small, large = (config.radii.index(radius) for radius in (config.small, config.large))
    metrics |= {
        "accuracy": share.tolist(),
        "median_gap": gaps[..., 0].median(-1).values.tolist(),
        "median_radius": radius.median(-1).values.tolist(),
        "small_error": errors["FGSM"][small].tolist(),
        "large_error": errors["FGSM"][large].tolist(),
        "large_gap_error": errors["gap"][large].tolist(),
        "large_float64_error": errors["FGSM float64"][large].tolist(),
        "missed": prediction_misses(predicted, errors["gap"]),
    }
    for j in (2, 3):
        metrics[f"gap_{j}_slope"] = [cdf_slope(part[:, j - 2]) for part in gaps]
    levels = torch.tensor(LEVELS, dtype=gaps.dtype, device=gaps.device)
    quantiles = torch.quantile(gaps[..., :2], levels, dim=1)  # (levels, S, places)
    finite = {k: v for k, v in metrics.items() if all(map(math.isfinite, v))}
    return {
        "metrics": finite,  # a network without gradients has a median radius of infinity
        "series": {
            "error": torch.stack([errors[title] for title in STEPPED]).movedim(2, 0).tolist(),
            "predicted": predicted.mT.tolist(),
            "pgd_error": followed.mT.tolist(),
            "top_two_error": top_two.mT.tolist(),
            "gaps": quantiles.permute(1, 2, 0).tolist(),
        },
    }


def one_step_errors(
    predict: Predict, precise: Predict, x: Tensor, y: Tensor, radii: Sequence[float]
) -> tuple[dict[str, Tensor], Tensor]:
    """Errors under attacks of one step, at all radii along one direction each.

    Args:
        predict: Maps inputs to logits.
        precise: The same in float64.
        x: Inputs of shape (S, N, ...).
        y: Labels of shape (S, N).
        radii: R radii; the box does not count.

    Returns:
        Attack (``STEPPED``) to errors of shape (R, S); errors of the first two classes under FGSM.
        ``gap`` follows the gap to the class that comes second without attack, whose gradient does
        not depend on the scale of the logits; ``FGSM float64`` steps where the gradient in double
        precision points.
    """
    unit, lead = LInf(1.0, bounded=False), y.dim()
    threats = [LInf(epsilon, bounded=False) for epsilon in radii]
    with torch.no_grad():
        leader = predict(x).argmax(-1)
    fast, _, _ = loss_gradient(predict, x, y, cross_entropy)
    narrow, _, _ = loss_gradient(predict, x, leader, caught_by)
    exact, _, _ = loss_gradient(precise, x.double(), y, cross_entropy)
    directions = {
        "FGSM": unit.steepest(fast, lead),
        "step l.l.": step_least_likely(predict, x, y, unit) - x,
        "gap": unit.steepest(narrow, lead),
        "FGSM float64": unit.steepest(exact, lead).to(x),
    }
    errors = {
        title: adversarial_error(predict, x, y, threats, along(direction))
        for title, direction in directions.items()
    }
    steps = along(directions["FGSM"])
    return errors, adversarial_error(predict, x, y, threats, steps, top=2)


def exponents(
    config: Config, counts: Sequence[int], curves: Mapping[str, Tensor], radii: Sequence[float]
) -> dict[str, list[float]]:
    """Fitted exponents, where every seed has enough points in the window.

    Args:
        config: The window.
        counts: Number of samples that can be lost, one per seed.
        curves: Attack to errors of shape (radii, S).
        radii: The radii.

    Returns:
        Metrics; a curve with too few points in the window for some seed is left out.
    """
    found = {}
    for title, errors in curves.items():
        try:
            found[f"{title}_exponent"] = [
                fit_power(
                    radii, column.tolist(), low=config.counts / count, high=config.highest
                ).exponent
                for column, count in zip(errors.T, counts, strict=True)
            ]
        except ValueError:  # too few points in the window: the claim will be "not measured"
            continue
    return found


def prediction_misses(predicted: Tensor, errors: Tensor, *, below: float = 0.1) -> list[float]:
    """The largest relative difference between prediction and error, where the error is small.

    Args:
        predicted: Shape (radii, S).
        errors: Shape (radii, S).
        below: Only errors between a hundredth of this and this count.

    Returns:
        One number per seed; 0 where no error lies in that range.
    """
    counted = (errors < below) & (errors > below / 100)
    relative = (predicted - errors).abs() / errors.clamp_min(1e-12)
    return torch.where(counted, relative, 0.0).amax(0).tolist()


# Which attacks can be believed


def measure_evaluation(family: Family, networks: Mapping[str, Params]) -> Measured:
    """Accuracy under every attack, and what the diagnostics say, for every victim."""
    config = family.config
    found = [
        family.stages.numbers(
            f"evaluation-{seed}", functools.partial(evaluate_seed, family, networks, k, seed)
        )
        for k, seed in enumerate(config.seeds)
    ]
    metrics = {name: [f["metrics"][name] for f in found] for name in found[0]["metrics"]}
    axes: dict[str, dict[str, list[Any]]] = {
        "standing": {"network": list(VICTIMS), "attack": ["clean", *ATTACKS, "all"]},
        "sweep": {"network": list(VICTIMS), "radius": list(config.sweep)},
        "flags": {"network": list(VICTIMS), "diagnostic": list(FLAGS)},
    }
    series = {name: Series(axis, [f["series"][name] for f in found]) for name, axis in axes.items()}
    return metrics, series


def victims(config: Config, model: torch.nn.Module, trained: Params, robust: Params) -> Any:
    """The four networks that are attacked, of one seed.

    Args:
        config: The masks' settings.
        model: Architecture.
        trained: Parameters of the standard network.
        robust: Parameters of the adversarially trained one.

    Returns:
        Name (``VICTIMS``) to a function from inputs (N, ...) to logits.
    """

    def of(params: Params) -> Predict:
        stacked = {name: tensor.unsqueeze(0) for name, tensor in params.items()}
        return lambda x: predict_stacked(model, stacked, x.unsqueeze(0)).squeeze(0)

    plain = of(trained)
    return {
        "trained": plain,
        "adversarial": of(robust),
        "scaled": scaled(plain, config.factor),
        "staircase": staircase(plain, config.stair),
    }


def attacks_of(config: Config, surrogate: Predict, seed: int) -> dict[str, Attack]:
    """The attacks of the evaluation.

    Args:
        config: Steps and queries.
        surrogate: The network whose adversarial examples are handed over.
        seed: Decides all that is drawn.

    Returns:
        Name (``ATTACKS``) to attack.
    """
    steps, queries = config.attack_steps, config.queries
    descent = functools.partial(pgd, steps=steps, seed=seed)
    return {
        "noise": functools.partial(random_noise, tries=10, seed=seed),
        "FGSM": fgsm,
        "PGD": descent,
        "APGD": lambda f, x, y, t: apgd(f, x, y, t, steps=steps, seed=seed).x,
        "APGD-T": functools.partial(targeted_apgd, steps=steps, seed=seed),
        "Square": lambda f, x, y, t: square_attack(f, x, y, t, queries=queries, seed=seed).x,
        "transfer": transferred(surrogate, descent),
    }


def evaluate_seed(
    family: Family, networks: Mapping[str, Params], index: int, seed: int
) -> dict[str, Any]:
    """Attack and diagnose the victims of one seed.

    Args:
        family: Configuration and data.
        networks: Name to parameters of shape (S, ...).
        index: Place of the seed.
        seed: Decides all that is drawn.

    Returns:
        Plain data: ``metrics`` and ``series``.
    """
    config = family.config
    one = {name: {k: t[index] for k, t in params.items()} for name, params in networks.items()}
    attacked = victims(config, family.model, one["trained"], one["adversarial"])
    surrogate = victims(config, family.model, one["surrogate"], one["surrogate"])["trained"]
    x = family.data.test_x[: config.attack_with].to(family.device)
    y = family.data.test_y[: config.attack_with].to(family.device)
    attacks, threat = attacks_of(config, surrogate, seed), LInf(config.epsilon)
    metrics: dict[str, float] = {}
    series: dict[str, list[Any]] = {"standing": [], "sweep": [], "flags": []}
    for name, predict in attacked.items():
        masks = standing(predict, x, y, threat, {"clean": lambda f, x, y, t: x, **attacks})
        left = {title: float(share) for title, share in accuracies(masks).items()}
        left["white"] = float(together(masks, WHITE))
        left["all"] = float(together(masks, (*WHITE, "Square")))
        metrics |= {f"{key(name)}_under_{key(title)}": share for title, share in left.items()}
        some = slice(config.diagnose_with)
        found = diagnose(config, predict, surrogate, x[some], y[some], left, attacks["PGD"])
        metrics[f"{key(name)}_flags"] = sum(finding.suspicious for finding in found.values())
        series["standing"].append([left[title] for title in ("clean", *ATTACKS, "all")])
        series["sweep"].append(list(found["epsilon sweep"].seen.values()))
        series["flags"].append([float(found[title].suspicious) for title in FLAGS])
    return {"metrics": metrics, "series": series}


def diagnose(
    config: Config,
    predict: Predict,
    surrogate: Predict,
    x: Tensor,
    y: Tensor,
    left: Mapping[str, float],
    attack: Attack,
) -> dict[str, Finding]:
    """All diagnostics of one network.

    Args:
        config: Radii.
        predict: The network.
        surrogate: Another network for the same task.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        left: What each attack leaves, by name, with ``white`` and ``all``.
        attack: The attack by gradients that is under suspicion.

    Returns:
        Name (``FLAGS``) to what was seen.
    """
    threat = LInf(config.epsilon)
    found = (
        order_of_attacks({name: left[name] for name in ("noise", *WHITE)}),
        black_box(left["white"], left["all"]),
        noise_control(predict, x, y, threat, attack),
        epsilon_sweep(predict, x, y, [LInf(radius) for radius in config.sweep], attack),
        gradient_direction(predict, x, y, threat),
        transfer(predict, surrogate, x, y, threat, attack),
    )
    return {finding.name: finding for finding in found}


# Claims: statement, effect, margin and the reason for the margin, fixed before the first run of the
# study


def farthest_network(names: Sequence[str], quantity: str, target: float) -> Effect:
    """Effect: the distance from a number, of the network whose interval reaches farthest from it.

    If this one lies within the margin, all do. A network that was not measured is left out; at
    least one must be there.

    Args:
        names: Which networks.
        quantity: Metric of each.
        target: The number.

    Returns:
        A function of a result, one signed distance per seed.
    """

    def effect(result: Result) -> list[float]:
        there = [name for name in names if f"{key(name)}_accuracy" in result.metrics]
        rows = [
            [value - target for value in result.metric(f"{key(name)}_{quantity}")] for name in there
        ]
        if not rows:
            raise KeyError(quantity)
        return max(rows, key=reach)

    return effect


def ratio(above: str, below: str) -> Effect:
    """Effect: one metric divided by another, seed by seed."""

    def effect(result: Result) -> list[float]:
        pairs = list(zip(result.metric(above), result.metric(below), strict=True))
        if min(low for _, low in pairs) <= 0:
            raise KeyError(f"{below} > 0 for every seed")
        return [high / low for high, low in pairs]

    return effect


def independent_slopes(result: Result) -> list[float]:
    """Effect: how far the slopes of independent logits are from 1, 2, 3; the farthest counts."""
    rows = [
        [slope - (j - 1) for slope in result.metric(f"independent_gap_{j}_slope")]
        for j in (2, 3, 4)
    ]
    return max(rows, key=reach)


def weakest_ensemble(result: Result) -> list[float]:
    """Effect: accuracy under PGD minus that under all attacks, where it is least."""
    rows = [difference(f"{name}_under_PGD", f"{name}_under_all")(result) for name in VICTIMS]
    return [min(seed) for seed in zip(*rows, strict=True)]


def flags(names: Sequence[str], pick: Callable[[Sequence[float]], float]) -> Effect:
    """Effect: the smallest or largest number of diagnostics that object to one of some networks."""

    def effect(result: Result) -> list[float]:
        rows = [result.metric(f"{name}_flags") for name in names]
        return [pick(seed) for seed in zip(*rows, strict=True)]

    return effect


PAPER = "cubuk2018intriguing"
ABSTRACT = f"{PAPER}, abstract"
DERIVED = "derived here from cubuk2018intriguing"
LEARNED = tuple(name for name in NETWORKS if name != "untrained")
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1a",
        "FGSM: after any training the error grows with an exponent near 1.",
        DERIVED,
        farthest_network(LEARNED, "FGSM_exponent", 1.05),
        margin=0.15,
        reason="distance from 1.05 of the network farthest from it: exponents from 0.9 to 1.2",
        kind="equal",
        paper="a universal power law; exponent not read",
    ),
    Claim(
        "C1b",
        "PGD: the same.",
        DERIVED,
        farthest_network(LEARNED, "PGD_exponent", 1.05),
        margin=0.15,
        reason="as C1a",
        kind="equal",
        paper="a universal power law; exponent not read",
    ),
    Claim(
        "C1c",
        "One step to the least likely class: the same, up to an exponent of 1.4.",
        DERIVED,
        farthest_network(LEARNED, "step_ll_exponent", 1.15),
        margin=0.25,
        reason="distance from 1.15: exponents from 0.9 to 1.4, since it aims at a distant class",
        kind="equal",
        paper="a universal power law; exponent not read",
    ),
    Claim(
        "C1d",
        "FGSM on networks before any training: the same as C1a.",
        DERIVED,
        farthest_network(("untrained",), "FGSM_exponent", 1.05),
        margin=0.15,
        reason="as C1a",
        kind="equal",
        paper="nearly unchanged during training",
    ),
    Claim(
        "C2a",
        "After any training the first logit gap is below t with a share that grows like t.",
        DERIVED,
        farthest_network(LEARNED, "gap_2_slope", 1.0),
        margin=0.3,
        reason="distance from 1 of the network farthest from it; 2 would be 1 away",
        kind="equal",
    ),
    Claim(
        "C2b",
        "The gap to the third class: with a share that grows like t squared.",
        DERIVED,
        farthest_network(LEARNED, "gap_3_slope", 2.0),
        margin=0.3,
        reason="as C2a, from 2",
        kind="equal",
    ),
    Claim(
        "C2c",
        "Before any training: the first gap does as in C2a.",
        DERIVED,
        farthest_network(("untrained",), "gap_2_slope", 1.0),
        margin=0.3,
        reason="as C2a",
        kind="equal",
    ),
    Claim(
        "C2d",
        "Before any training: the gap to the third class does as in C2b.",
        DERIVED,
        farthest_network(("untrained",), "gap_3_slope", 2.0),
        margin=0.3,
        reason="as C2b",
        kind="equal",
    ),
    Claim(
        "C2e",
        "Control: independent logits give slopes near 1, 2 and 3.",
        DERIVED,
        independent_slopes,
        margin=0.3,
        reason="as C2a; the farthest of the three counts",
        kind="equal",
    ),
    Claim(
        "C3a",
        "Training does not change FGSM's exponent.",
        ABSTRACT,
        difference("trained_FGSM_exponent", "untrained_FGSM_exponent"),
        margin=0.15,
        reason="half of the span allowed in C1a",
        kind="equal",
        paper="nearly unchanged during training",
    ),
    Claim(
        "C3b",
        "Training changes the prefactor: at the same small radius an untrained network loses more.",
        DERIVED,
        ratio("untrained_small_error", "trained_small_error"),
        margin=1.5,
        reason="half as much again; a smaller change could come from the exponent",
        unit="times",
    ),
    Claim(
        "C4a",
        "Adversarial training lowers the prefactor.",
        DERIVED,
        ratio("trained_small_error", "adversarial_small_error"),
        margin=1.5,
        reason="as C3b",
        unit="times",
    ),
    Claim(
        "C4b",
        "Adversarial training does not change FGSM's exponent.",
        ABSTRACT,
        difference("adversarial_FGSM_exponent", "trained_FGSM_exponent"),
        margin=0.15,
        reason="as C3a",
        kind="equal",
        paper="a universal power law; exponent not read",
    ),
    Claim(
        "C5a",
        "The entropy penalty widens the first logit gap.",
        ABSTRACT,
        ratio("entropy_2_median_gap", "trained_median_gap"),
        margin=1.2,
        reason="a fifth wider",
        unit="times",
        paper="entropy is reduced to widen the gaps",
    ),
    Claim(
        "C5b",
        "The entropy penalty saves samples from FGSM at a large radius.",
        ABSTRACT,
        difference("trained_large_error", "entropy_2_large_error"),
        margin=0.01,
        reason="a hundredth of the samples is the least that we would call a gain",
        unit="share",
        paper="improves white-box robustness",
    ),
    Claim(
        "C5c",
        "And from an attack whose gradient does not depend on the scale of the logits.",
        f"this lesson, of what {ABSTRACT} says",
        difference("trained_large_gap_error", "entropy_2_large_gap_error"),
        margin=0.01,
        reason="as C5b",
        unit="share",
        paper="improves white-box robustness",
    ),
    Claim(
        "C5d",
        "And from FGSM whose gradient is computed in double precision.",
        f"this lesson, of what {ABSTRACT} says",
        difference("trained_large_float64_error", "entropy_2_large_float64_error"),
        margin=0.01,
        reason="as C5b",
        unit="share",
        paper="improves white-box robustness",
    ),
    Claim(
        "C5e",
        "The entropy penalty moves samples farther from the decision: the median radius grows.",
        f"this lesson, of what {ABSTRACT} says",
        ratio("entropy_2_median_radius", "trained_median_radius"),
        margin=1.05,
        reason="a twentieth; the gap alone grows by much more, and says nothing",
        unit="times",
        paper="improves white-box robustness",
    ),
    Claim(
        "C6a",
        "FGSM pushes the true class out of the first two with an exponent of 2.",
        DERIVED,
        lambda result: [b - 2 for b in result.metric("trained_top_two_exponent")],
        margin=0.3,
        reason="as C2b",
        kind="equal",
    ),
    Claim(
        "C6b",
        "This exponent is twice that of the first place.",
        DERIVED,
        lambda result: [
            b - 2 for b in ratio("trained_top_two_exponent", "trained_FGSM_exponent")(result)
        ],
        margin=0.3,
        reason="as C6a; what bends the one curve bends the other",
        kind="equal",
    ),
    Claim(
        "C7",
        "On the trained network, the error at a small radius is the share of samples whose gap "
        "over gradient is smaller.",
        DERIVED,
        measured("trained_missed"),
        margin=0.1,
        reason="largest relative difference wherever the error is below a tenth: a tenth",
        kind="equal",
        unit="relative",
    ),
    Claim(
        "R1",
        "Noise is no attack: the worst of ten random points leaves far more than PGD.",
        "this lesson",
        difference("trained_under_noise", "trained_under_PGD"),
        margin=0.3,
        reason="nobody could take one for the other",
        unit="share",
    ),
    Claim(
        "R2a",
        "Multiplied logits blind PGD: on the same samples APGD with a targeted loss finds more.",
        "this lesson",
        difference("scaled_under_PGD", "scaled_under_APGD-T"),
        margin=0.5,
        reason="more than half of all samples",
        unit="share",
    ),
    Claim(
        "R2b",
        "A better search does not help while the loss stays: APGD on cross-entropy is as blind.",
        "this lesson",
        difference("scaled_under_APGD", "scaled_under_APGD-T"),
        margin=0.5,
        reason="as R2a",
        unit="share",
    ),
    Claim(
        "R3a",
        "A staircase at the input blinds PGD: Square, which asks for no gradient, finds more.",
        "this lesson",
        difference("staircase_under_PGD", "staircase_under_Square"),
        margin=0.5,
        reason="as R2a",
        unit="share",
    ),
    Claim(
        "R3b",
        "Examples made for a network of another seed find more as well.",
        "this lesson",
        difference("staircase_under_PGD", "staircase_under_transfer"),
        margin=0.5,
        reason="as R2a",
        unit="share",
    ),
    Claim(
        "R4",
        "On the adversarially trained network Square adds nothing to the attacks by gradients.",
        "this lesson, after logs of croce2020autoattack's code",
        difference("adversarial_under_white", "adversarial_under_all"),
        margin=0.005,
        reason="half a point; one sample is a third of one",
        kind="equal",
        unit="share",
        paper="a log of the authors' code: 53.97 % left before Square, 53.97 % after (CIFAR-10)",
    ),
    Claim(
        "R5",
        "All attacks together leave no more than PGD, on every network.",
        "this lesson",
        weakest_ensemble,
        margin=-0.005,
        reason="half a point for the luck of PGD's start; PGD itself counts among all",
        unit="share",
    ),
    Claim(
        "R6a",
        "At least one diagnostic objects to each masked network.",
        "this lesson",
        flags(MASKED, min),
        margin=0.5,
        reason="between none and one",
    ),
    Claim(
        "R6b",
        "None objects to the two honest networks.",
        "this lesson",
        flags(("trained", "adversarial"), max),
        margin=0.5,
        reason="as R6a",
        kind="equal",
    ),
    Claim(
        "R7",
        "PGD flatters the adversarially trained network too: all attacks together leave less.",
        "this lesson, after logs of croce2020autoattack's code",
        difference("adversarial_under_PGD", "adversarial_under_all"),
        margin=0.01,
        reason="a point; the logs of larger networks show three to five",
        unit="share",
    ),
)

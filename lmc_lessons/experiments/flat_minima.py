"""Flat minima: is a network that resists attacks on unseen data flat in weight space?

The unit of repetition is a network: seed s decides initial values, noisy labels, the order of the
data and the starts of attacks. Every method of training is run from every seed, and measured at its
last epoch; adversarial training also where a validation split would have stopped it.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import pearsonr
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons import datasets
from lmc_lessons.curvature import hessian_of, top_eigenvalues
from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import score
from lmc_lessons.experiments.runs import (
    ONE_CYCLE,
    PREACT_RESNET18,
    Stages,
    finish,
    hold_out,
    one_thread,
)
from lmc_lessons.models import (
    MLP,
    ModelConfig,
    Params,
    build,
    parameter_names,
    predict,
    predict_stacked,
    stack,
    unstack,
)
from lmc_lessons.results import Claim, Effect, Result, Series, gap, results_folder
from lmc_lessons.robustness.attacks import START, LInf, ensemble, evaluate, pgd
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining, Objective
from lmc_lessons.robustness.sharpness import (
    RobustLoss,
    average_flatness,
    filter_direction,
    line_landscape,
    plane_landscape,
    rescale,
    worst_flatness,
)
from lmc_lessons.robustness.weight_perturbation import (
    AdversarialWeightPerturbation,
    RandomWeightPerturbation,
    SharpnessAware,
)
from lmc_lessons.training import Loss, Mode, TrainConfig, generator, noisy_labels, train

LESSON = "flat-minima"
Numbers = dict[str, Any]
Perturbation = Callable[[Objective, float], Loss]


class Method(NamedTuple):
    """A way to train: an objective, what perturbs the weights, and weight decay where it differs.

    Attributes:
        trades: TRADES with weight 6 instead of adversarial training.
        perturb: Wraps the objective; None leaves it.
        size: Size of the perturbation.
        weight_decay: Instead of the recipe's.
    """

    trades: bool = False
    perturb: Perturbation | None = None
    size: float = 0.0
    weight_decay: float | None = None


METHODS: dict[str, Method] = {
    "AT": Method(),
    "AWP 0.005": Method(perturb=AdversarialWeightPerturbation, size=0.005),
    "AWP 0.01": Method(perturb=AdversarialWeightPerturbation, size=0.01),
    "AWP 0.02": Method(perturb=AdversarialWeightPerturbation, size=0.02),
    "AWP 0.1": Method(perturb=AdversarialWeightPerturbation, size=0.1),
    "random 0.02": Method(perturb=RandomWeightPerturbation, size=0.02),
    "random 0.1": Method(perturb=RandomWeightPerturbation, size=0.1),
    "SAM 0.05": Method(perturb=SharpnessAware, size=0.05),
    "no decay": Method(weight_decay=0.0),
    "decay 0.005": Method(weight_decay=5e-3),
    "TRADES": Method(trades=True),
    "TRADES-AWP 0.01": Method(trades=True, perturb=AdversarialWeightPerturbation, size=0.01),
}
RUINED = ("AWP 0.1",)  # perturbed too much to learn the task: no part of any correlation
STOPPED = "AT, stopped"
AWP = "AWP"  # in claims: the AWP of the configuration
SHOWN = (STOPPED, "AT", AWP)  # whose landscapes are measured
QUANTITIES = (
    "clean accuracy",
    "robust accuracy",
    "ensemble accuracy",
    "train robust accuracy",
    "robust loss",
    "average flatness",
    "worst flatness",
    "clean flatness",
    "top eigenvalue",
)
RESCALED = ("average flatness", "worst flatness", "top eigenvalue")


def objective_of(name: str, config: Config) -> Loss:
    """The loss that a method minimises.

    Args:
        name: Name from ``METHODS``.
        config: Threat model and attack.

    Returns:
        A loss for ``training.train``.
    """
    method, threat = METHODS[name], LInf(config.epsilon)
    attack: dict[str, Any] = {
        "steps": config.attack_steps,
        "step_size": config.step_size,
        "mode": config.attack_mode,
    }
    objective: Objective = AdversarialTraining(threat, **attack)
    if method.trades:
        objective = TRADES(threat, beta=6.0, **attack)
    return objective if method.perturb is None else method.perturb(objective, method.size)


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        preset: Name of the preset.
        seeds: Networks per method.
        dataset: Name for ``datasets.load``.
        samples: Training samples; None uses all that validation leaves.
        validation: Samples that follow them and choose when to stop; no network is trained on them.
        test: Test samples; None uses all.
        model: Architecture.
        train: How to train.
        methods: Names from ``METHODS``; AT among them.
        awp: The AWP that claims and landscapes compare with AT.
        epsilon: Radius of the L-inf threat model, in training and in evaluation.
        attack_steps: Steps of the attack in training.
        step_size: Their length; None is 2.5 epsilon over the number of steps.
        attack_mode: BatchNorm's mode during the attack in training.
        every: Epochs between two points of the curves.
        curve_steps: Steps of the attack on the curves.
        eval_steps: Steps of the attack wherever a loss is measured.
        ensemble_steps: Steps of each attack by gradients of the ensemble.
        queries: Queries of its black-box attack; 0 leaves it out.
        radius: Relative radius of average-case flatness.
        worst_radius: Relative radius of worst-case flatness.
        draws: Random points of the one, random starts of the other.
        measure_with: Test samples for losses and flatness; None uses all.
        landscape_with: Test samples for landscapes and the top eigenvalue.
        landscape_steps: Steps of the attack at each of their points.
        directions: Random directions of the lines.
        grid: Points on each side of the planes; 0 leaves planes out.
        factors: Factors by which the first hidden layer is rescaled; only for an ``mlp``.
        together: Networks trained, and evaluated, in one program; 0 means all.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    dataset: str = "digits"
    samples: int | None = 300
    validation: int = 400
    test: int | None = None
    model: ModelConfig = field(default_factory=lambda: ModelConfig(width=256, depth=2))
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=300,
            batch_size=100,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            schedule="step",
            label_noise=0.2,
        )
    )
    methods: tuple[str, ...] = tuple(METHODS)
    awp: str = "AWP 0.02"
    epsilon: float = 0.1
    attack_steps: int = 7
    step_size: float | None = None
    attack_mode: Mode = "eval"
    every: int = 15
    curve_steps: int = 10
    eval_steps: int = 20
    ensemble_steps: int = 20
    queries: int = 0
    radius: float = 0.5
    worst_radius: float = 0.003
    draws: int = 5
    measure_with: int | None = None
    landscape_with: int = 200
    landscape_steps: int = 7
    directions: int = 3
    grid: int = 9
    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 5.0)
    together: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers >= 0, got {self.seeds}")
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"no method {unknown[0]!r}, allowed: {', '.join(METHODS)}")
        if "AT" not in self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods must be different, AT among them, got {self.methods}")
        lowest = {"validation": 1, "every": 1, "curve_steps": 1, "eval_steps": 1, "draws": 1}
        lowest |= {"landscape_with": 1, "landscape_steps": 1, "directions": 1, "together": 0}
        lowest |= {"ensemble_steps": 1, "queries": 0, "grid": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("samples", "test", "measure_with"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} must be at least 2, got {value}")
        if self.grid == 1 or 1.0 not in self.factors or min(self.factors) <= 0:
            raise ValueError(
                "grid must be 0 or at least 2, and factors above 0, 1 among them, got "
                f"{self.grid}, {self.factors}"
            )
        if not (0 < self.radius < math.inf and 0 < self.worst_radius < math.inf):
            raise ValueError(
                f"radius and worst_radius must be above 0, got {self.radius}, {self.worst_radius}"
            )
        if not self.awp.startswith("AWP") or self.awp not in METHODS:
            known = ", ".join(name for name in METHODS if name.startswith("AWP"))
            raise ValueError(f"awp is {self.awp!r}, allowed: {known}")
        if self.train.epochs < 1:
            raise ValueError(f"train.epochs must be at least 1, got {self.train.epochs}")
        objective_of("AT", self)  # refuses attacks that cannot be run

    @property
    def epochs(self) -> list[int]:
        """Epochs at which the curves are measured, the last among them."""
        return sorted({*range(self.every, self.train.epochs, self.every), self.train.epochs})


_SMALL = Config(
    preset="full-fashion-mlp",
    dataset="fashion-mnist",
    seeds=(0, 1, 2, 3, 4),
    samples=1000,
    validation=1000,
    test=1000,
    model=ModelConfig("mlp", (1, 28, 28), 10, width=256, depth=2),
    train=dataclasses.replace(Config().train, epochs=100),
    methods=("AT", "AWP 0.005", "AWP 0.02", "random 0.02", "decay 0.005", "TRADES"),
    epsilon=0.03,
    every=10,
    grid=0,
)
_CIFAR = Config(
    preset="full-cifar-awp",
    dataset="cifar10",
    seeds=(0, 1, 2, 3, 4),
    samples=None,
    validation=1000,
    test=None,
    model=PREACT_RESNET18,
    train=ONE_CYCLE,
    methods=("AT", "AWP 0.01"),
    awp="AWP 0.01",
    epsilon=8 / 255,
    attack_steps=10,
    step_size=2 / 255,
    attack_mode="train",
    every=3,
    ensemble_steps=100,
    queries=1000,
    measure_with=1000,
    landscape_with=500,
    landscape_steps=10,
    grid=0,
    together=1,
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        train=dataclasses.replace(Config().train, epochs=60),
        methods=("AT", "AWP 0.02"),
        test=200,
        eval_steps=10,
        ensemble_steps=5,
        draws=3,
        landscape_with=100,
        directions=1,
        grid=5,
        factors=(1.0, 5.0),
    ),
    "study": Config(),
    "full-fashion-mlp": _SMALL,
    "full-cifar-at": dataclasses.replace(_CIFAR, preset="full-cifar-at", methods=("AT",)),
    "full-cifar-awp": _CIFAR,
    "paper": dataclasses.replace(
        _CIFAR,
        preset="paper",
        train=dataclasses.replace(_CIFAR.train, epochs=200, learning_rate=0.1, schedule="step"),
        every=10,
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
        Series over methods, curves and landscapes, and the verdict of every claim.

    Raises:
        ValueError: If the data set is not there, is too small, or does not fit the model.

    Taught in: book/robustness/flat-minima
    """
    data, validation = split(config, datasets.load(config.dataset, root=root))
    setting = Setting(config, data, validation, build(config.model).eval().to(device), device)
    stages = Stages(folder, config, progress=progress)
    with one_thread():
        curves, trained = train_all(setting, stages, progress=progress)
        metrics, series = measure_all(setting, stages, trained)
    axes: dict[str, list[Any]] = {
        "split": ["validation", "test"],
        "method": list(config.methods),
        "epoch": config.epochs,
    }
    series["robust accuracy"] = Series(axes, [list(zip(*c["curve"], strict=True)) for c in curves])
    series["stopped"] = Series(
        {"method": list(config.methods), "quantity": ["epoch", "robust accuracy"]},
        [c["stopped"] for c in curves],
    )
    return finish(
        LESSON,
        config,
        stages=stages,
        metrics=metrics,
        series=series,
        claims=CLAIMS,
        datasets=[data],
        device=device,
    )


@dataclass(frozen=True)
class Setting:
    """What every measurement needs.

    Attributes:
        config: What to run.
        data: The data; its training part is what networks are trained on.
        validation: Inputs and labels that choose when to stop.
        model: Architecture, in eval mode, on the device.
        device: Where to run.
    """

    config: Config
    data: Dataset
    validation: tuple[Tensor, Tensor]
    model: nn.Module
    device: str

    def on_test(self, steps: int, count: int | None = None) -> RobustLoss:
        """The loss on test samples under an attack of so many steps; 0 for the clean loss.

        The attack starts at the same random point against every network.
        """
        x, y = self.data.test_x[:count].to(self.device), self.data.test_y[:count].to(self.device)
        threat = LInf(self.config.epsilon)
        start = threat.random(x, 1, generator(0, START))
        attack = functools.partial(pgd, threat=threat, steps=steps, start=start) if steps else None
        return RobustLoss(self.model, x, y, attack, self.config.together or 16)


def split(config: Config, data: Dataset) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Cut the training part into what is trained on and what chooses when to stop.

    Args:
        config: How many samples of each.
        data: The data set.

    Returns:
        The data with a smaller training part, and inputs and labels for validation.

    Raises:
        ValueError: If there are not enough samples, or they do not fit the model.
    """
    part, validation, _ = hold_out(data, config.model, config.samples, config.validation)
    test_x, test_y = part.test_x[: config.test], part.test_y[: config.test]
    return dataclasses.replace(part, test_x=test_x, test_y=test_y), validation


# Training


def train_all(
    setting: Setting, stages: Stages, *, progress: bool
) -> tuple[list[Numbers], dict[str, list[Params]]]:
    """Train every method from every seed.

    Args:
        setting: What to run, and on what.
        stages: Restartable stages.
        progress: Whether to show progress.

    Returns:
        Per seed the curves and stopping points of all methods; per name of a network (a method, or
        AT stopped early) one network per seed.
    """
    config = setting.config
    trained: dict[str, list[Params]] = {STOPPED: []}
    together = config.together or len(config.seeds)
    curves: list[Numbers] = [{"curve": [], "stopped": []} for _ in config.seeds]
    for method in config.methods:
        trained[method] = []
        for first in range(0, len(config.seeds), together):
            seeds = config.seeds[first : first + together]
            stage = f"train-{method}-{seeds[0]}"
            label = f"train {stage}" if progress else ""
            compute = functools.partial(train_method, setting, method, seeds, label)
            found = {n: t.to(setting.device) for n, t in stages.tensors(stage, compute).items()}
            for k in range(len(seeds)):
                curves[first + k]["curve"].append(found["curve"][k].tolist())
                curves[first + k]["stopped"].append(found["stopped"][k].tolist())
            trained[method] += unstack(_part(found, "last/"))
            if method == "AT":
                trained[STOPPED] += unstack(_part(found, "best/"))
    return curves, trained


def _part(tensors: Params, prefix: str) -> Params:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def train_method(
    setting: Setting, method: str, seeds: Sequence[int], label: str, checkpoint: Path | None
) -> Params:
    """Train networks by one method, and follow their robust accuracy.

    Args:
        setting: What to run, and on what.
        method: Name from ``METHODS``.
        seeds: S seeds.
        label: Label of the progress bar; none is shown when empty.
        checkpoint: For partial work.

    Returns:
        ``curve`` of shape (S, split, epoch); ``stopped`` (S, 2): the epoch that validation would
        choose, and the test accuracy there; networks at that epoch (``best/``) and ``last/``.
    """
    config, decay = setting.config, METHODS[method].weight_decay
    recipe = (
        config.train if decay is None else dataclasses.replace(config.train, weight_decay=decay)
    )
    training = train(
        config.model,
        setting.data,
        seeds,
        recipe,
        loss=objective_of(method, config),
        snapshots=config.epochs,
        device=setting.device,
        progress=label,
        checkpoint=checkpoint,
    )
    splits = (setting.validation, (setting.data.test_x, setting.data.test_y))
    curve = torch.stack(
        [
            torch.stack([robust_accuracy(setting, params, *part) for part in splits], 1)
            for params in training.snapshots.values()
        ],
        2,
    )
    best = curve[:, 0].argmax(1)  # of equals the first
    chosen = [unstack(training.snapshots[config.epochs[int(b)]])[k] for k, b in enumerate(best)]
    rows = torch.arange(len(seeds))
    epochs = torch.tensor(config.epochs, dtype=torch.float64)[best]
    return {
        "curve": curve,
        "stopped": torch.stack([epochs, curve[rows, 1, best]], 1),
        **{f"best/{name}": t for name, t in stack(chosen).items()},
        **{f"last/{name}": t for name, t in training.params.items()},
    }


def robust_accuracy(setting: Setting, params: Params, x: Tensor, y: Tensor) -> Tensor:
    """Accuracy of S networks under the attack of the curves.

    Args:
        setting: Architecture and attack.
        params: Parameters and buffers of shape (S, ...).
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).

    Returns:
        Shape (S,), float64, on the CPU.
    """
    params = {name: t.to(setting.device) for name, t in params.items()}
    count, threat = len(next(iter(params.values()))), LInf(setting.config.epsilon)

    def logits(inputs: Tensor) -> Tensor:
        return predict_stacked(setting.model, params, inputs)

    right = []
    for part, labels in zip(x.split(1000), y.split(1000), strict=True):
        many = part.to(setting.device).expand(count, *part.shape)
        true = labels.to(setting.device).expand(count, *labels.shape)
        start = threat.random(part, 1, generator(0, START)).to(setting.device)  # one for all
        found = pgd(logits, many, true, threat, steps=setting.config.curve_steps, start=start)
        with torch.no_grad():
            right.append((logits(found).argmax(-1) == true).double())
    return torch.cat(right, 1).mean(1).cpu()


# Measurements


def measure_all(
    setting: Setting, stages: Stages, trained: dict[str, list[Params]]
) -> tuple[dict[str, list[float]], dict[str, Series]]:
    """Everything that is measured of trained networks.

    Args:
        setting: What to run, and on what.
        stages: Restartable stages.
        trained: Name of a network to one network per seed.

    Returns:
        Metrics per seed, and series.
    """
    config, names = setting.config, list(trained)
    shown = [config.awp if name == AWP else name for name in SHOWN]
    shown = [name for name in shown if name in trained]
    rows, lines, planes, scaled = [], [], [], []
    for k, seed in enumerate(config.seeds):
        networks = {name: many[k] for name, many in trained.items()}
        rows.append(
            [
                stages.numbers(
                    f"measure-{name}-{seed}",
                    functools.partial(measure_network, setting, networks[name], seed),
                )
                for name in names
            ]
        )
        measure = functools.partial(measure_landscapes, setting, networks, shown, seed)
        landscape = stages.numbers(f"landscape-{seed}", measure)
        lines.append(landscape["lines"])
        planes.append(landscape["planes"])
        if isinstance(setting.model, MLP) and setting.model.norms and config.model.norm == "none":
            rescaled = functools.partial(measure_rescaled, setting, networks["AT"], seed)
            scaled.append(stages.numbers(f"rescaled-{seed}", rescaled))
    positions = list(line_positions())
    series = {
        "networks": Series({"network": names, "quantity": list(QUANTITIES)}, rows),
        "line": Series(
            {"network": shown, "attack": ["recomputed", "frozen"], "position": positions}, lines
        ),
    }
    if config.grid:
        ticks = plane_ticks(config.grid)
        series["plane"] = Series({"network": shown, "v": ticks, "u": ticks}, planes)
    if scaled:
        axes: dict[str, list[Any]] = {"factor": list(config.factors), "quantity": list(RESCALED)}
        series["rescaled"] = Series(axes, scaled)
    metrics = {
        f"{name}: {quantity}": [row[names.index(name)][QUANTITIES.index(quantity)] for row in rows]
        for name in shown
        for quantity in ("robust accuracy", "robust loss", "average flatness")
    }
    return metrics, series


def measure_network(setting: Setting, params: Params, seed: int) -> list[float]:
    """The quantities of one network.

    Args:
        setting: What to run, and on what.
        params: The network.
        seed: Its seed; decides random points and noisy labels.

    Returns:
        One number per quantity, in the order of ``QUANTITIES``.
    """
    config, data = setting.config, setting.data
    robust = setting.on_test(config.eval_steps, config.measure_with)
    clean = setting.on_test(0, config.measure_with)
    labels = noisy_labels(data, config.train.label_noise, seed)
    count = len(data.test_y)
    average = average_flatness(robust, params, radius=config.radius, draws=config.draws, seed=seed)
    worst = worst_flatness(
        robust,
        params,
        LInf(config.epsilon),
        radius=config.worst_radius,
        restarts=config.draws,
        seed=seed,
    )
    values = {
        "clean accuracy": clean_accuracy(setting, params),
        "robust accuracy": accuracy_under(setting, params, data.test_x, data.test_y),
        "ensemble accuracy": ensemble_accuracy(setting, params),
        "train robust accuracy": accuracy_under(
            setting, params, data.train_x[:count], labels[:count]
        ),
        "robust loss": average.centre,
        "average flatness": average.rise,
        "worst flatness": worst.rise,
        "clean flatness": average_flatness(
            clean, params, radius=config.radius, draws=config.draws, seed=seed
        ).rise,
        "top eigenvalue": top_eigenvalue(setting, params),
    }
    return [values[quantity] for quantity in QUANTITIES]


def clean_accuracy(setting: Setting, params: Params) -> float:
    """Accuracy without an attack on all test samples."""
    x, y = setting.data.test_x.to(setting.device), setting.data.test_y.to(setting.device)
    return score(setting.model, params, x, y).accuracy


def accuracy_under(setting: Setting, params: Params, x: Tensor, y: Tensor) -> float:
    """Accuracy of one network under the attack by which losses are measured."""
    attack = functools.partial(pgd, steps=setting.config.eval_steps)
    x, y, threat = x.to(setting.device), y.to(setting.device), LInf(setting.config.epsilon)
    return evaluate(setting.model, params, x, y, threat, {"pgd": attack}).robust["pgd"]


def ensemble_accuracy(setting: Setting, params: Params) -> float:
    """Accuracy left by the ensemble of attacks."""
    config = setting.config
    attacks = ensemble(steps=config.ensemble_steps, queries=config.queries)
    x, y = setting.data.test_x.to(setting.device), setting.data.test_y.to(setting.device)
    found = evaluate(setting.model, params, x, y, LInf(config.epsilon), attacks)
    return list(found.robust.values())[-1]


def top_eigenvalue(setting: Setting, params: Params) -> float:
    """Largest eigenvalue of the Hessian of the clean test loss."""
    count = setting.config.landscape_with
    x, y = setting.data.test_x[:count], setting.data.test_y[:count]
    x, y = x.to(setting.device), y.to(setting.device)
    trained = {name: params[name] for name in parameter_names(setting.model)}

    def loss(part: Params) -> Tensor:
        return F.cross_entropy(predict(setting.model, {**params, **part}, x), y)

    product = hessian_of(loss, trained)
    return float(top_eigenvalues(product, trained, which="largest", steps=60).values[0])


def line_positions() -> tuple[float, ...]:
    """Where lines are measured, in units of the filter-normalised direction."""
    return tuple(k / 5 for k in range(-5, 6))


def plane_ticks(count: int) -> list[float]:
    """Where planes are measured along each axis, from -1 to 1."""
    return [-1 + 2 * k / (count - 1) for k in range(count)]


def measure_landscapes(
    setting: Setting, networks: dict[str, Params], shown: Sequence[str], seed: int
) -> Numbers:
    """Robust loss around some networks: on lines, with the attack remade or frozen, and on planes.

    Args:
        setting: What to run, and on what.
        networks: Networks by name.
        shown: Which to measure.
        seed: Decides the directions.

    Returns:
        ``lines`` of shape (networks, 2, positions), means over directions; ``planes`` of shape
        (networks, v, u).
    """
    config = setting.config
    loss = setting.on_test(config.landscape_steps, config.landscape_with)
    assert loss.attack is not None
    found: Numbers = {"lines": [], "planes": []}
    for name in shown:
        params = networks[name]
        frozen = dataclasses.replace(
            loss,
            x=loss.attack(functools.partial(predict, setting.model, params), loss.x, loss.y),
            attack=None,
        )
        ways = [filter_direction(params, seed * 100 + k) for k in range(config.directions)]
        lines = torch.tensor(
            [
                [line_landscape(kind, params, way, line_positions()) for way in ways]
                for kind in (loss, frozen)
            ]
        )
        found["lines"].append(lines.mean(1).tolist())
        if config.grid:
            first, second = (filter_direction(params, seed * 100 + 50 + k) for k in range(2))
            ticks = plane_ticks(config.grid)
            found["planes"].append(plane_landscape(loss, params, first, second, ticks, ticks))
    return found


def measure_rescaled(setting: Setting, params: Params, seed: int) -> list[list[float]]:
    """Sharpness of one function written with other weights.

    Args:
        setting: What to run, and on what.
        params: The network.
        seed: Decides random points.

    Returns:
        Numbers of shape (factors, quantities of ``RESCALED``).
    """
    config = setting.config
    loss = setting.on_test(config.eval_steps, config.measure_with)
    following = "hidden.1" if config.model.depth > 1 else "output"
    found = []
    for factor in config.factors:
        other = rescale(params, "hidden.0", following, factor)
        average = average_flatness(loss, other, radius=config.radius, draws=config.draws, seed=seed)
        worst = worst_flatness(
            loss,
            other,
            LInf(config.epsilon),
            radius=config.worst_radius,
            restarts=config.draws,
            seed=seed,
        )
        found.append([average.rise, worst.rise, top_eigenvalue(setting, other)])
    return found


# Effects and claims


def place(result: Result, series: Series, axis: str, name: str) -> int:
    """Where a name stands on an axis; ``AWP`` is the one of the configuration.

    Args:
        result: The run.
        series: One of its series.
        axis: Name of the axis.
        name: What to look for.

    Returns:
        An index.

    Raises:
        KeyError: If it is not there.
    """
    wanted = result.config.get("awp", Config.awp) if name == AWP else name
    if wanted not in series.axes[axis]:
        raise KeyError(f"{axis} {wanted}")
    return series.axes[axis].index(wanted)


def at(network: str, quantity: str) -> Effect:
    """Effect: one quantity of one network."""

    def effect(result: Result) -> list[float]:
        series = result.series["networks"]
        row = place(result, series, "network", network)
        column = place(result, series, "quantity", quantity)
        return [values[row][column] for values in series.values]

    return effect


def stopped(method: str) -> Effect:
    """Effect: test accuracy under attack at the epoch that validation chooses."""

    def effect(result: Result) -> list[float]:
        series = result.series["stopped"]
        row = place(result, series, "method", method)
        return [values[row][1] for values in series.values]

    return effect


def final(method: str) -> Effect:
    """Effect: test accuracy under the same attack at the last epoch."""

    def effect(result: Result) -> list[float]:
        series = result.series["robust accuracy"]
        row = place(result, series, "method", method)
        return [values[1][row][-1] for values in series.values]

    return effect


def drop(method: str) -> Effect:
    """Effect: how much test accuracy under attack a method loses after its best epoch."""
    return gap(stopped(method), final(method))


def drop_removed(result: Result) -> list[float]:
    """Effect: the share of adversarial training's drop that AWP does not have."""
    ours, theirs = drop(AWP)(result), drop("AT")(result)
    if min(theirs) <= 0:
        raise KeyError("a drop of adversarial training from every seed")
    return [1 - p / q for p, q in zip(ours, theirs, strict=True)]


def robust_gap(method: str) -> Effect:
    """Effect: accuracy under attack on training data minus that on test data."""
    return gap(at(method, "train robust accuracy"), at(method, "robust accuracy"))


def rise(network: str, attack: str) -> Effect:
    """Effect: mean loss at both ends of the line minus that in the middle, in nats."""

    def effect(result: Result) -> list[float]:
        series = result.series["line"]
        row = place(result, series, "network", network)
        column = series.axes["attack"].index(attack)
        middle = series.axes["position"].index(0.0)
        curves = [values[row][column] for values in series.values]
        return [(curve[0] + curve[-1]) / 2 - curve[middle] for curve in curves]

    return effect


def correlation(quantity: str) -> Effect:
    """Effect: Pearson correlation over methods of a quantity with the robust test loss."""

    def effect(result: Result) -> list[float]:
        names = result.series["networks"].axes["network"]
        used = [n for n in names if n not in (*RUINED, STOPPED)]
        if len(used) < 6:
            raise KeyError("at least six methods")
        losses = zip(*(at(name, "robust loss")(result) for name in used), strict=True)
        sharp = zip(*(at(name, quantity)(result) for name in used), strict=True)
        pairs = list(zip(losses, sharp, strict=True))
        if any(min(len(set(p)), len(set(q))) < 2 for p, q in pairs):
            raise KeyError(f"methods that differ in robust loss and {quantity}")
        return [float(pearsonr(p, q).statistic) for p, q in pairs]

    return effect


def change_by_rescaling(quantity: str) -> Effect:
    """Effect: largest logarithm of a quantity's ratio to that of the network as trained."""

    def effect(result: Result) -> list[float]:
        if "rescaled" not in result.series:
            raise KeyError("rescaled networks")
        series = result.series["rescaled"]
        column, one = RESCALED.index(quantity), series.axes["factor"].index(1.0)
        if min(row[column] for values in series.values for row in values) <= 0:
            raise KeyError(f"a {quantity} above 0 of every network")
        return [
            max(abs(math.log(row[column] / values[one][column])) for row in values)
            for values in series.values
        ]

    return effect


def published() -> dict[str, list[Any]]:
    """Numbers of models on CIFAR-10 as their paper's tables give them.

    Returns:
        Column to one entry per model: the model's name, and numbers (losses and flatness in nats,
        errors in per cent).

    Source:
        stutz2021relating, tables of the supplement.

    Taught in: book/robustness/flat-minima
    """
    path = results_folder().parent / "published" / "stutz2021.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        column: [row[column] if column == "model" else float(row[column]) for row in rows]
        for column in rows[0]
    }


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "F1",
        "Adversarial training overfits: after its best epoch, test accuracy under attack falls.",
        "rice2020overfitting; wu2020adversarial",
        drop("AT"),
        margin=0.1,
        reason="CIFAR-10 shows 8 points; label noise should make it clearer here",
        unit="share",
        paper="8.3 points (CIFAR-10, PreAct ResNet-18, PGD-20, mean of the last 10 epochs; logs)",
    ),
    Claim(
        "F2",
        "AWP ends with a higher test accuracy under attack than adversarial training.",
        "wu2020adversarial",
        gap(final(AWP), final("AT")),
        margin=0.05,
        reason="half of the drop asked for in F1",
        unit="share",
        paper="44.46 to 54.68 % (CIFAR-10, PGD-20, mean of the last 10 epochs; logs)",
    ),
    Claim(
        "F3",
        "AWP removes more than half of the drop.",
        "wu2020adversarial",
        drop_removed,
        margin=0.5,
        reason="then it would be the larger part of a cure",
        unit="share",
        paper="8.3 to 0.7 points (CIFAR-10, logs)",
    ),
    Claim(
        "F4",
        "The best epoch of AWP is better than the best epoch of adversarial training.",
        "wu2020adversarial",
        gap(stopped(AWP), stopped("AT")),
        margin=0.0,
        reason="better at all",
        unit="share",
        paper="52.79 to 55.39 % (CIFAR-10, best epoch chosen on the test set; logs)",
    ),
    Claim(
        "F5",
        "AWP narrows the gap between training and test accuracy under attack.",
        "wu2020adversarial",
        gap(robust_gap("AT"), robust_gap(AWP)),
        margin=0.1,
        reason="about a quarter of the gap that adversarial training usually has at this scale",
        unit="share",
        paper="not comparable: the logs measure training accuracy at the perturbed weights",
    ),
    Claim(
        "F6",
        "Random weight steps of the same size (0.02) change that accuracy by 3 points at most.",
        "wu2020adversarial",
        gap(final("random 0.02"), final("AT")),
        margin=0.03,
        reason="about the sampling error of a difference on 450 test images",
        kind="equal",
        unit="share",
    ),
    Claim(
        "F7",
        "Too large a weight perturbation (0.1) ruins training.",
        "wu2020adversarial",
        gap(final("AT"), final("AWP 0.1")),
        margin=0.1,
        reason="a loss as large as the whole drop of F1",
        unit="share",
    ),
    Claim(
        "F8",
        "AWP composes with TRADES: it raises its final accuracy under attack.",
        "wu2020adversarial",
        gap(final("TRADES-AWP 0.01"), final("TRADES")),
        margin=0.0,
        reason="better at all",
        unit="share",
        paper="53.08 to 56.17 % (CIFAR-10, WRN-34-10, AutoAttack; authors' table)",
    ),
    Claim(
        "F9",
        "AWP at its last epoch is better than adversarial training stopped early.",
        "wu2020adversarial",
        gap(final(AWP), stopped("AT")),
        margin=0.0,
        reason="better at all",
        unit="share",
        paper="52.79 to 54.68 % (CIFAR-10, logs)",
    ),
    Claim(
        "F10",
        "Under an ensemble of attacks AWP is still better than adversarial training.",
        "wu2020adversarial",
        gap(at(AWP, "ensemble accuracy"), at("AT", "ensemble accuracy")),
        margin=0.05,
        reason="as F2",
        unit="share",
        paper="53.42 to 53.97 % (CIFAR-10, AutoAttack; WRN-34-20 against WRN-34-10 with AWP)",
    ),
    Claim(
        "L1",
        "On filter-normalised lines the robust loss rises less around AWP than around AT.",
        "wu2020adversarial",
        gap(rise("AT", "recomputed"), rise(AWP, "recomputed")),
        margin=0.1,
        reason="a difference that the eye can see in the figure",
        unit="nats",
    ),
    Claim(
        "L2",
        "A frozen attack underestimates how much the robust loss of AT rises.",
        "wu2020adversarial; stutz2021relating",
        gap(rise("AT", "recomputed"), rise("AT", "frozen")),
        margin=0.2,
        reason="twice the margin of L1: it would change what the figure says",
        unit="nats",
    ),
    Claim(
        "S1",
        "Over methods, average-case flatness correlates with the robust test loss.",
        "stutz2021relating",
        correlation("average flatness"),
        margin=0.7,
        reason="half of the variance explained",
        unit="Pearson r",
        paper="0.85 (CIFAR-10)",
    ),
    Claim(
        "S2",
        "Worst-case flatness correlates less.",
        "stutz2021relating",
        gap(correlation("average flatness"), correlation("worst flatness")),
        margin=0.1,
        reason="a third of the published difference",
        unit="difference of r",
        paper="0.85 against 0.54",
    ),
    Claim(
        "S3",
        "Flatness of the clean loss correlates less.",
        "stutz2021relating",
        gap(correlation("average flatness"), correlation("clean flatness")),
        margin=0.2,
        reason="a third of the published difference",
        unit="difference of r",
        paper="0.85 against 0.27",
    ),
    Claim(
        "S4",
        "The top eigenvalue of the Hessian of the clean loss correlates less.",
        "stutz2021relating",
        gap(correlation("average flatness"), correlation("top eigenvalue")),
        margin=0.1,
        reason="as S2",
        unit="difference of r",
        paper="no correlation (9 models)",
    ),
    Claim(
        "S5",
        "The final network of adversarial training is less flat than the one stopped early.",
        "stutz2021relating",
        gap(at("AT", "average flatness"), at(STOPPED, "average flatness")),
        margin=0.1,
        reason="the difference that L1 calls visible",
        unit="nats",
    ),
    Claim(
        "S6",
        "Average-case flatness does not change when layers are rescaled.",
        "stutz2021relating",
        change_by_rescaling("average flatness"),
        margin=0.01,
        reason="rounding, and the attack's own: one per cent",
        kind="exact",
        unit="log ratio",
        paper="1.21, 1.27, 1.36 (weights x 1, 2, 0.5; with BatchNorm)",
    ),
    Claim(
        "S7",
        "The top eigenvalue does, by more than a factor of 2.",
        "stutz2021relating; dinh2017sharp",
        change_by_rescaling("top eigenvalue"),
        margin=round(math.log(2), 3),
        reason="a factor of 2 would change any ranking in this study",
        unit="log ratio",
        paper="1990, 505, 7936 (weights x 1, 2, 0.5; with BatchNorm)",
    ),
)

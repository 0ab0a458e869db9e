"""Logit margins: does weighting important samples make them safer, and does another loss?

The unit of repetition is a seed: it decides initial values, the order of the data and the starts of
the attacks in training, and which weights the closed forms are tried with. Every method is trained
from every seed by one recipe and measured at its last epoch; all networks are attacked from the
same random starts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from torch import Tensor, nn

from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import logit_margins
from lmc_lessons.experiments.runs import (
    ONE_CYCLE,
    PREACT_RESNET18,
    Stages,
    finish,
    load_cut,
    one_thread,
    train_stages,
)
from lmc_lessons.models import ModelConfig, Params, build, predict, unstack
from lmc_lessons.results import Claim, Effect, Result, Series, difference, measured
from lmc_lessons.robustness.attacks import (
    Attack,
    LInf,
    Predict,
    ThreatModel,
    cross_entropy,
    ensemble,
    margin_loss,
    pgd,
)
from lmc_lessons.robustness.entropy import prediction_entropy
from lmc_lessons.robustness.importance import (
    GAIRAT,
    MAIL,
    MART,
    SOVR,
    TSOVR,
    EntropyWeighted,
    TopWeighted,
    TopWeightedTRADES,
)
from lmc_lessons.robustness.margins import (
    GradientNorms,
    cross_entropy_margin,
    gradient_norms,
    margin_per_gradient,
    ovr_loss,
    ovr_margin,
    potentially_misclassified,
    shares,
)
from lmc_lessons.robustness.masking import accuracies, scaled, standing, together
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining
from lmc_lessons.training import Loss, Mode, TrainConfig, generator

LESSON = "logit-margins"
METHODS = (
    "AT",
    "MART",
    "GAIRAT",
    "MAIL",
    "MAIL -0.5",
    "EWAT",
    "SOVR",
    "SOVR small",
    "SOVR large",
    "top CE",
    "scaled AT",
    "OVR",
    "TRADES",
    "TRADES top CE",
    "TSOVR",
)
BURN_IN = {"GAIRAT": 0.5, "MAIL": 0.625, "MAIL -0.5": 0.625}  # share of all steps, as published
ATTACKS = ("PGD", "sharpened PGD", "flattened PGD", "margin PGD", "APGD-CE", "APGD-T")
WHITE = ("APGD-CE", "APGD-T")  # with Square, where it is run: the ensemble
QUANTITIES = (
    "clean accuracy",
    *ATTACKS,
    "ensemble",
    "PGD gap",
    "hard margin",
    "median margin",
    "easy margin",
    "narrow share",
    "entropy",
    "gradient norm",
    "margin per gradient",
    "potentially misclassified",
)
EDGES = tuple(k / 2 for k in range(-8, 17))  # bins of the histogram of margins
FLOWS = 51  # the random stream of the weights and classes that closed forms are tried with
TRIALS = 4  # weights and numbers of classes per seed
LATE = 1e300  # the limit of the ratio is slow: in log t
CROSSINGS = {1.0: 7.01, 3.0: 32.8, 10.0: 106.4, 100.0: 1012.0}  # weight to time, 10 classes


def objective_of(name: str, config: Config, steps: int) -> Loss:
    """The loss that a method minimises.

    Args:
        name: Name from ``METHODS``.
        config: Threat model, attack, share and factors.
        steps: Steps of the whole training.

    Returns:
        A loss for ``training.train``.

    Raises:
        ValueError: If there is no such method.
    """
    if name not in METHODS:
        raise ValueError(f"no method {name!r}, allowed: {', '.join(METHODS)}")
    attack: dict[str, Any] = {
        "threat": LInf(config.epsilon),
        "steps": config.attack_steps,
        "step_size": config.step_size,
        "mode": config.attack_mode,
    }
    later: dict[str, Any] = attack | {"burn_in": round(BURN_IN.get(name, 0) * steps)}
    some: dict[str, Any] = {"fraction": config.fraction}
    trades: dict[str, Any] = some | {"beta": 6.0, "weight": config.trades_weight}
    large = config.large_weight
    spread = 1 + config.fraction * (large - 1)  # the mean weight of ``top CE``, for all samples
    objectives: dict[str, Loss] = {
        "AT": AdversarialTraining(**attack),
        "MART": MART(**attack, beta=5.0),
        "GAIRAT": GAIRAT(**later),
        "MAIL": MAIL(**later, bias=0.5),
        "MAIL -0.5": MAIL(**later, bias=-0.5),
        "EWAT": EntropyWeighted(**attack),
        "SOVR": SOVR(**attack, **some, weight=config.weight),
        "SOVR small": SOVR(**attack, **some, weight=config.small_weight),
        "SOVR large": SOVR(**attack, **some, weight=large),
        "top CE": TopWeighted(**attack, **some, weight=large),
        "scaled AT": TopWeighted(**attack, fraction=1.0, weight=spread),
        "OVR": SOVR(**attack, fraction=1.0, weight=1.0),
        "TRADES": TRADES(**attack, beta=6.0),
        "TRADES top CE": TopWeightedTRADES(**attack, **trades),
        "TSOVR": TSOVR(**attack, **trades),
    }
    return objectives[name]


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        preset: Name of the preset.
        seeds: Networks per method.
        dataset: Name for ``datasets.load``.
        samples: Training samples; None uses all.
        test: Test samples; None uses all.
        model: Architecture.
        train: How to train.
        methods: Names from ``METHODS``; AT among them.
        fraction: Share of each minibatch that counts as important.
        weight: Factor of the important samples' loss in ``SOVR``.
        small_weight: That of ``SOVR small``.
        large_weight: That of ``SOVR large`` and of its control ``top CE``; ``scaled AT`` gives all
            samples the mean weight of ``top CE``.
        trades_weight: That of ``TSOVR`` and of its control ``TRADES top CE``.
        epsilon: Radius of the L-inf threat model, in training and in evaluation.
        attack_steps: Steps of the attack in training.
        step_size: Their length; None is 2.5 epsilon over the number of steps.
        attack_mode: BatchNorm's mode during the attack in training.
        eval_steps: Steps of PGD in the evaluation; the margin's attack takes twice as many.
        sharpen: What logits are multiplied by, or divided by, for PGD on sharpened, or flattened,
            predictions.
        ensemble_steps: Steps of each attack by gradients of the ensemble.
        queries: Queries of its black-box attack; 0 leaves it out.
        measure_with: Training samples whose margins are measured; None uses all.
        chunk: Samples attacked at once.
        together: Networks trained in one program; 0 means all.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = tuple(range(8))
    dataset: str = "digits"
    samples: int | None = None
    test: int | None = None
    model: ModelConfig = field(default_factory=lambda: ModelConfig(width=128, depth=2))
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=60,
            batch_size=128,
            optimizer="sgd",
            learning_rate=0.2,
            weight_decay=5e-4,
            schedule="one-cycle",
        )
    )
    methods: tuple[str, ...] = METHODS
    fraction: float = 0.4
    weight: float = 1.0
    small_weight: float = 0.5
    large_weight: float = 2.0
    trades_weight: float = 2.0
    epsilon: float = 0.15
    attack_steps: int = 7
    step_size: float | None = None
    attack_mode: Mode = "eval"
    eval_steps: int = 20
    sharpen: float = 10.0
    ensemble_steps: int = 20
    queries: int = 0
    measure_with: int | None = None
    chunk: int = 2000
    together: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers >= 0, got {self.seeds}")
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"no method {unknown[0]!r}, allowed: {', '.join(METHODS)}")
        if "AT" not in self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods must be different, AT among them, got {self.methods}")
        lowest = {"eval_steps": 1, "ensemble_steps": 1, "queries": 0, "chunk": 1, "together": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("samples", "test", "measure_with"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} must be at least 2, got {value}")
        if not self.sharpen > 0 or self.train.epochs < 1:
            raise ValueError(
                "sharpen must be > 0 and train.epochs at least 1, got "
                f"{self.sharpen} and {self.train.epochs}"
            )
        for name in METHODS:
            objective_of(name, self, 1)  # refuses attacks, shares and factors that cannot be run


_CIFAR = Config(
    preset="full-cifar-margins",
    seeds=(0, 1, 2, 3, 4),
    dataset="cifar10",
    model=PREACT_RESNET18,
    train=ONE_CYCLE,
    methods=("AT", "MART", "GAIRAT", "MAIL", "SOVR", "SOVR large", "top CE"),
    weight=0.5,
    epsilon=8 / 255,
    attack_steps=10,
    step_size=2 / 255,
    attack_mode="train",
    ensemble_steps=100,
    queries=1000,
    measure_with=5000,
    chunk=1000,
    together=1,
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        train=dataclasses.replace(Config().train, epochs=40),
        methods=("AT", "GAIRAT", "SOVR", "top CE"),
        test=200,
        measure_with=400,
        ensemble_steps=10,
    ),
    "study": Config(),
    "full-cifar-margins": _CIFAR,
    "paper": dataclasses.replace(
        _CIFAR,
        preset="paper",
        train=dataclasses.replace(_CIFAR.train, epochs=200, learning_rate=0.1, schedule="step"),
        methods=("AT", "MART", "GAIRAT", "MAIL", "EWAT", "SOVR", "TRADES", "TSOVR"),
        trades_weight=0.5,
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
        A metric ``method: quantity`` for every method and quantity, histograms of margins, and the
        verdict of every claim.

    Raises:
        ValueError: If the data set is not there, or does not fit the model.

    Taught in: book/robustness/logit-margins
    """
    data = load_data(config, root)
    setting = Setting(config, data, build(config.model).eval().to(device), device)
    stages = Stages(folder, config, progress=progress)
    metrics: dict[str, list[float]] = {}
    histograms: list[list[list[float]]] = [[] for _ in config.seeds]
    with one_thread():
        crossings = stages.numbers("crossings", crossing_error)  # the same for all seeds
        for seed in config.seeds:
            drawn = stages.numbers(f"flows-{seed}", functools.partial(flows, seed))
            for name, value in (drawn | {"crossing error": crossings}).items():
                metrics.setdefault(name, []).append(value)
        for method in config.methods:
            for k, params in enumerate(train_method(setting, stages, method)):
                found = stages.numbers(
                    f"measure-{method.replace(' ', '-')}-{config.seeds[k]}",
                    functools.partial(measure_network, setting, params),
                )
                histograms[k].append(found["histogram"])
                for quantity, value in found["quantities"].items():
                    metrics.setdefault(f"{method}: {quantity}", []).append(value)
    axes: dict[str, list[Any]] = {
        "method": list(config.methods),
        "bin": [f"below {EDGES[0]:g}", *(f"from {edge:g}" for edge in EDGES)],
    }
    return finish(
        LESSON,
        config,
        stages=stages,
        metrics=metrics,
        series={"margins": Series(axes, histograms)},
        claims=CLAIMS,
        datasets=[data],
        device=device,
    )


@dataclass(frozen=True)
class Setting:
    """What every measurement needs.

    Attributes:
        config: What to run.
        data: The data.
        model: Architecture, in eval mode, on the device.
        device: Where to run.
    """

    config: Config
    data: Dataset
    model: nn.Module
    device: str

    def on_device(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and labels where the networks are."""
        return x.to(self.device), y.to(self.device)


def load_data(config: Config, root: Path | None = None) -> Dataset:
    """The data of a run.

    Args:
        config: Which, and how many.
        root: Where data sets lie.

    Returns:
        The data set, cut to what is used.

    Raises:
        ValueError: If the data set is not there, or does not fit the model.
    """
    return load_cut(
        config.dataset, config.model, samples=config.samples, test=config.test, root=root
    )


def train_method(setting: Setting, stages: Stages, method: str) -> list[Params]:
    """One network per seed, trained by a method.

    Args:
        setting: What to run, and on what.
        stages: The run's stages.
        method: Name from ``METHODS``.

    Returns:
        Parameters in the order of the seeds.
    """
    config = setting.config
    batch = min(config.train.batch_size, len(setting.data.train_x))
    steps = config.train.epochs * (len(setting.data.train_x) // batch)
    trained = train_stages(
        stages,
        method,
        config.model,
        setting.data,
        config.seeds,
        config.train,
        loss=objective_of(method, config, steps),
        together=config.together,
        device=setting.device,
    )
    return unstack(trained[config.train.epochs])


# Margins under gradient flow


def flow_margins(
    loss: Callable[[Tensor, Tensor], Tensor], times: list[float], *, weight: float, classes: int
) -> list[float]:
    """Margins under gradient flow on the logits, by a solver that knows no closed form.

    Args:
        loss: Maps logits (1, classes) and labels (1,) to a loss (1,); automatic differentiation
            gives its gradient.
        times: Growing times, the first above 0.
        weight: Factor of the loss.
        classes: Number of classes.

    Returns:
        One margin per time.
    """
    label = torch.zeros(1, dtype=torch.long)

    def slope(time: float, logits: Any) -> Any:
        del time
        z = torch.tensor(logits, dtype=torch.float64).unsqueeze(0).requires_grad_()
        (gradient,) = torch.autograd.grad(weight * loss(z, label).sum(), z)
        return -gradient.squeeze(0).numpy()

    found = solve_ivp(
        slope,
        (0.0, times[-1]),
        np.zeros(classes),
        method="DOP853",
        t_eval=times,
        rtol=1e-12,
        atol=1e-13,
    )
    return [float(z[0] - z[1:].max()) for z in found.y.T]


def flows(seed: int) -> dict[str, float]:
    """How well the closed forms hold, for weights and numbers of classes that a seed draws.

    Args:
        seed: Decides weights from 0.1 to 100 and classes from 2 to 20.

    Returns:
        ``closed form error``: largest difference from the solver; ``distance from 2``: of the ratio
        of the margins, very late.
    """
    stream = generator(seed, FLOWS)
    weights = (10 ** (3 * torch.rand(TRIALS, generator=stream) - 1)).tolist()
    classes = torch.randint(2, 21, (TRIALS,), generator=stream).tolist()
    times = [10 ** (k / 2 - 2) for k in range(11)]  # up to 1000
    at, late = (torch.tensor(t, dtype=torch.float64) for t in (times, [LATE]))
    worst, far = 0.0, 0.0
    for weight, count in zip(weights, classes, strict=True):
        plain = cross_entropy_margin(at, weight=weight, classes=count)
        solved = flow_margins(cross_entropy, times, weight=weight, classes=count)
        other = flow_margins(ovr_loss, times, weight=weight, classes=count)
        pairs = zip((plain, ovr_margin(at, weight=weight)), (solved, other), strict=True)
        worst = max(worst, *(float(np.abs(a.numpy() - np.array(b)).max()) for a, b in pairs))
        ratio = ovr_margin(late) / cross_entropy_margin(late, weight=weight, classes=count)
        far = max(far, abs(float(ratio) - 2))
    return {"closed form error": worst, "distance from 2": far}


def crossing_error() -> float:
    """Largest relative difference of the solver's crossings from those of ``CROSSINGS``."""
    return max(abs(solved_crossing(w, t) / t - 1) for w, t in CROSSINGS.items())


def solved_crossing(weight: float, near: float) -> float:
    """When the solver's margin of the one-vs-the-rest loss overtakes that of cross-entropy.

    Args:
        weight: Weight of cross-entropy.
        near: The crossing is looked for between 0.8 and 1.25 times this time.

    Returns:
        A time; infinity if there is no crossing in that range.
    """
    times = [near * (0.8 + 0.45 * k / 90) for k in range(91)]
    plain = flow_margins(cross_entropy, times, weight=weight, classes=10)
    other = flow_margins(ovr_loss, times, weight=1.0, classes=10)
    leads = [b - a for a, b in zip(plain, other, strict=True)]
    if not leads[0] < 0 < leads[-1]:
        return math.inf
    return float(brentq(lambda t: np.interp(t, times, leads), times[0], times[-1]))


# Measurements


def measure_network(setting: Setting, params: Params) -> dict[str, Any]:
    """Everything that is measured of one network.

    Args:
        setting: What to run, and on what.
        params: The network.

    Returns:
        ``quantities``: name from ``QUANTITIES`` to a number; ``histogram``: shares of the margins
        on attacked training samples, between ``EDGES``.
    """
    network = functools.partial(predict, setting.model, params)
    found = under_attacks(setting, network)
    margins, norms, entropy = on_training_data(setting, network)
    quantiles = torch.quantile(margins, torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    found |= dict(
        zip(("hard margin", "median margin", "easy margin"), quantiles.tolist(), strict=True)
    )
    found["narrow share"] = float(((margins >= 0) & (margins < 1)).double().mean())
    found["entropy"] = float(entropy.mean())
    found["gradient norm"] = float(norms.true.mean())
    sees = found["gradient norm"] > 0  # a dead network does not look at its input
    found["margin per gradient"] = margin_per_gradient(margins, norms.true) if sees else 0.0
    found["potentially misclassified"] = rate_potentially_misclassified(setting, network)
    return {
        "quantities": {name: found[name] for name in QUANTITIES},
        "histogram": shares(margins, EDGES),
    }


def evaluation_attacks(config: Config) -> dict[str, Attack]:
    """The attacks of the evaluation, each of which starts at the same points for all networks.

    Args:
        config: Steps, queries, and the factor of sharpened logits.

    Returns:
        Name to attack: those of ``ATTACKS`` and, where it has queries, Square.
    """

    def times(factor: float) -> Attack:
        def attack(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
            return pgd(scaled(predict, factor), x, y, threat, steps=config.eval_steps)

        return attack

    def at_margin(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        return pgd(predict, x, y, threat, steps=2 * config.eval_steps, loss=margin_loss)

    return {
        "PGD": functools.partial(pgd, steps=config.eval_steps),
        "sharpened PGD": times(config.sharpen),
        "flattened PGD": times(1 / config.sharpen),
        "margin PGD": at_margin,
        **ensemble(steps=config.ensemble_steps, queries=config.queries),
    }


def under_attacks(setting: Setting, network: Predict) -> dict[str, float]:
    """Accuracies of one network on test data: without attack, under each, under the ensemble.

    Args:
        setting: What to run, and on what.
        network: Maps inputs to logits.

    Returns:
        Accuracies by name; ``PGD gap``, by how much PGD flatters.
    """
    config = setting.config
    x, y = setting.on_device(setting.data.test_x, setting.data.test_y)
    attacks = evaluation_attacks(config)
    masks = standing(network, x, y, LInf(config.epsilon), attacks, chunk=config.chunk)
    with torch.no_grad():
        clean = torch.cat([network(part).argmax(-1) for part in x.split(config.chunk)]) == y
    found = {"clean accuracy": float(clean.double().mean())}
    found |= {name: float(share) for name, share in accuracies(masks).items()}
    found["ensemble"] = float(together(masks, [*WHITE, *(n for n in masks if n == "Square")]))
    found["PGD gap"] = found["PGD"] - found["ensemble"]
    return found


def on_training_data(setting: Setting, network: Predict) -> tuple[Tensor, GradientNorms, Tensor]:
    """Margins, input gradients and entropies on training samples under PGD.

    Args:
        setting: What to run, and on what.
        network: Maps inputs to logits.

    Returns:
        Margins of shape (N,), float64, gradient norms, and entropies of the predictions.
    """
    config, some = setting.config, slice(setting.config.measure_with)
    x, y = setting.on_device(setting.data.train_x[some], setting.data.train_y[some])
    margins, norms, entropies = [], [], []
    for part, labels in zip(x.split(config.chunk), y.split(config.chunk), strict=True):
        attacked = pgd(network, part, labels, LInf(config.epsilon), steps=config.eval_steps)
        with torch.no_grad():
            logits = network(attacked).double()
        margins.append(logit_margins(logits, labels))
        norms.append(gradient_norms(network, attacked, labels))
        entropies.append(prediction_entropy(logits))
    joined = GradientNorms(*(torch.cat(column).cpu() for column in zip(*norms, strict=True)))
    return torch.cat(margins).cpu(), joined, torch.cat(entropies).cpu()


def rate_potentially_misclassified(setting: Setting, network: Predict) -> float:
    """Share of test samples whose clean margin two gradients at the attacked input could undo."""
    config = setting.config
    x, y = setting.on_device(setting.data.test_x, setting.data.test_y)
    count = 0
    for part, labels in zip(x.split(config.chunk), y.split(config.chunk), strict=True):
        attacked = pgd(network, part, labels, LInf(config.epsilon), steps=config.eval_steps)
        with torch.no_grad():
            margins = logit_margins(network(part), labels)
        norms = gradient_norms(network, attacked, labels)
        count += int(potentially_misclassified(margins, norms, config.epsilon).sum())
    return count / len(y)


# Effects and claims

IMPORTANCE = ("MART", "GAIRAT", "MAIL", "EWAT")  # the abstract's, as far as they are here
HALF_BIN = "half a bin of the histogram, the least that its picture can show"
HALF_POINT = "half a point: two of 450 test images"


def of(method: str, quantity: str) -> Effect:
    """Effect: one quantity of the networks of one method."""
    return measured(f"{method}: {quantity}")


def gap(quantity: str, more: str, less: str) -> Effect:
    """Effect: a quantity of one method minus that of another, seed by seed."""
    return difference(f"{more}: {quantity}", f"{less}: {quantity}")


def within(method: str, more: str, less: str) -> Effect:
    """Effect: one quantity of a method minus another."""
    return difference(f"{method}: {more}", f"{method}: {less}")


def excess(quantity: str, more: str, less: str) -> Effect:
    """Effect: by which share a quantity of one method exceeds that of another.

    Raises:
        KeyError: If the other's is not positive.
    """

    def effect(result: Result) -> list[float]:
        pairs = zip(of(more, quantity)(result), of(less, quantity)(result), strict=True)
        values = list(pairs)
        if min(q for _, q in values) <= 0:
            raise KeyError(f"a positive {quantity} of {less}")
        return [p / q - 1 for p, q in values]

    return effect


def highest_rise(quantity: str, methods: tuple[str, ...], base: str) -> Effect:
    """Effect: minus the largest rise of a quantity over a base, among methods, seed by seed."""

    def effect(result: Result) -> list[float]:
        rises = [gap(quantity, name, base)(result) for name in methods]
        return [-max(column) for column in zip(*rises, strict=True)]

    return effect


def aim_over_search(method: str) -> Effect:
    """Effect: what aiming at classes adds to APGD, minus what APGD adds to PGD."""

    def effect(result: Result) -> list[float]:
        found = [of(method, name)(result) for name in ("PGD", "APGD-CE", "ensemble")]
        return [(search - both) - (pgd - search) for pgd, search, both in zip(*found, strict=True)]

    return effect


def lower_easy(claim: str, method: str) -> Claim:
    """The claim that a method lowers the margins of easy samples."""
    return Claim(
        claim,
        f"{method} lowers the margins of easy training samples under attack (80th percentile).",
        "kanai2023onevsrest, abstract of its second version",
        gap("easy margin", "AT", method),
        margin=0.25,
        reason=HALF_BIN,
        unit="logits",
    )


def flattered(claim: str, method: str, paper: str = "not read") -> Claim:
    """The claim that PGD flatters a method more than adversarial training."""
    return Claim(
        claim,
        f"PGD flatters {method} more than AT: the gap to the ensemble is wider.",
        "kanai2023onevsrest, abstract",
        gap("PGD gap", method, "AT"),
        margin=0.02,
        reason="two points: enough to change the order of methods",
        unit="share",
        paper=paper,
    )


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1a",
        "Margins of weighted cross-entropy and of OVR follow the closed forms.",
        "kanai2023onevsrest, theorem; closed forms derived for this lesson",
        measured("closed form error"),
        margin=1e-6,
        reason="far above the solver's tolerance, far below any difference that matters",
        kind="exact",
        unit="logits",
    ),
    Claim(
        "C1b",
        "The ratio of the margins tends to 2, whatever the weight.",
        "kanai2023onevsrest, abstract",
        measured("distance from 2"),
        margin=0.03,
        reason="at t = 1e300 the closed forms allow 0.022 for the largest weight and class number",
        kind="exact",
    ),
    Claim(
        "C2",
        "Against OVR, cross-entropy with weight 1, 3, 10, 100 leads until t = 7.01, 32.8, 106.4, "
        "1012 (10 classes).",
        "derived for this lesson",
        measured("crossing error"),
        margin=0.01,
        reason="one per cent: the last digit given",
        kind="exact",
        unit="relative difference",
    ),
    lower_easy("C4a", "GAIRAT"),
    lower_easy("C4b", "MAIL"),
    lower_easy("C4c", "MART"),
    lower_easy("C4d", "EWAT"),
    Claim(
        "C4e",
        "None of the four raises the margins of hard samples (20th percentile).",
        "kanai2023onevsrest, abstract of its second version",
        highest_rise("hard margin", IMPORTANCE, "AT"),
        margin=-0.25,
        reason=HALF_BIN + "; the effect is minus the largest rise",
        unit="logits",
    ),
    flattered("C5a", "GAIRAT"),
    flattered("C5b", "MAIL"),
    flattered("C5c", "MAIL -0.5"),
    flattered(
        "C5d",
        "MART",
        "RobustBench: 65.0 % reported by the authors, 56.3 % under AutoAttack (CIFAR-10, "
        "WRN-28-10, extra data)",
    ),
    flattered("C5e", "EWAT"),
    Claim(
        "E1",
        "On GAIRAT, aiming at each of nine classes finds more than searching once for any.",
        "this lesson",
        aim_over_search("GAIRAT"),
        margin=0.01,
        reason="a point: about four test images",
        unit="share",
    ),
    Claim(
        "E2",
        "Multiplying GAIRAT's logits by ten lets the same PGD find more.",
        "this lesson",
        within("GAIRAT", "PGD", "sharpened PGD"),
        margin=0.02,
        reason="two points, as in C5",
        unit="share",
    ),
    Claim(
        "E3",
        "Multiplying AT's logits by ten does not let the same PGD find more.",
        "this lesson",
        within("AT", "sharpened PGD", "PGD"),
        margin=-0.01,
        reason="a point, as in E1",
        unit="share",
    ),
    Claim(
        "E4",
        "Dividing AT's logits by ten, which changes no answer, makes PGD find less.",
        "this lesson",
        within("AT", "flattened PGD", "PGD"),
        margin=0.02,
        reason="two points, as in C5",
        unit="share",
    ),
    Claim(
        "C6a",
        "SOVR raises the margins of hard training samples under attack.",
        "kanai2023onevsrest, abstract",
        gap("hard margin", "SOVR", "AT"),
        margin=0.25,
        reason=HALF_BIN,
        unit="logits",
    ),
    Claim(
        "C6b",
        "SOVR does not lower the margins of easy training samples under attack.",
        "kanai2023onevsrest, abstract",
        gap("easy margin", "SOVR", "AT"),
        margin=-0.25,
        reason=HALF_BIN,
        unit="logits",
    ),
    Claim(
        "C7a",
        "Under the ensemble, SOVR is more robust than AT.",
        "kanai2023onevsrest, from memory",
        gap("ensemble", "SOVR", "AT"),
        margin=0.005,
        reason=HALF_POINT,
        unit="share",
    ),
    Claim(
        "C7b",
        "SOVR does not read clean test samples worse than AT.",
        "kanai2023onevsrest, from memory",
        gap("clean accuracy", "SOVR", "AT"),
        margin=-0.01,
        reason="a point",
        unit="share",
    ),
    Claim(
        "C7c",
        "With half the factor, SOVR is less robust than AT here.",
        "this lesson",
        gap("ensemble", "AT", "SOVR small"),
        margin=0.005,
        reason=HALF_POINT,
        unit="share",
    ),
    Claim(
        "C7d",
        "With twice the factor, it is less robust than SOVR with factor 1.",
        "this lesson",
        gap("ensemble", "SOVR", "SOVR large"),
        margin=0.005,
        reason=HALF_POINT,
        unit="share",
    ),
    Claim(
        "C8a",
        "Switching helps TRADES: TSOVR is more robust.",
        "kanai2023onevsrest, from memory",
        gap("ensemble", "TSOVR", "TRADES"),
        margin=0.005,
        reason=HALF_POINT,
        unit="share",
    ),
    Claim(
        "C8b",
        "With TRADES, the same factor on the same samples' cross-entropy does no worse than TSOVR.",
        "this lesson",
        gap("ensemble", "TRADES top CE", "TSOVR"),
        margin=-0.005,
        reason=HALF_POINT,
        unit="share",
    ),
    Claim(
        "C9a",
        "In adversarial training, the same factor on the same samples' cross-entropy does no worse "
        "than SOVR.",
        "this lesson",
        gap("ensemble", "top CE", "SOVR large"),
        margin=-0.005,
        reason=HALF_POINT,
        unit="share",
    ),
    Claim(
        "C9b",
        "The same total weight of cross-entropy, spread over all samples, does no worse than on "
        "the hard ones.",
        "this lesson",
        gap("ensemble", "scaled AT", "top CE"),
        margin=-0.005,
        reason=HALF_POINT,
        unit="share",
    ),
    Claim(
        "C9c",
        "SOVR has the larger margin per gradient than its control.",
        "this lesson",
        excess("margin per gradient", "SOVR large", "top CE"),
        margin=0.2,
        reason="a fifth; toy runs by which this study was planned gave a half",
        unit="relative difference",
    ),
    Claim(
        "C9d",
        "OVR on all samples has the larger margin per gradient than AT.",
        "this lesson",
        excess("margin per gradient", "OVR", "AT"),
        margin=0.2,
        reason="as C9c",
        unit="relative difference",
    ),
    Claim(
        "C9e",
        "And still OVR on all samples is no more robust than AT.",
        "this lesson",
        gap("ensemble", "AT", "OVR"),
        margin=-0.005,
        reason=HALF_POINT,
        unit="share",
    ),
    Claim(
        "C10a",
        "SOVR leaves fewer test samples potentially misclassified than AT.",
        "kanai2023onevsrest, reconstructed",
        gap("potentially misclassified", "AT", "SOVR"),
        margin=0.05,
        reason="five points of a coarse measure",
        unit="share",
    ),
    Claim(
        "C10b",
        "GAIRAT leaves more test samples potentially misclassified than AT.",
        "kanai2023onevsrest, reconstructed",
        gap("potentially misclassified", "GAIRAT", "AT"),
        margin=0.05,
        reason="as C10a",
        unit="share",
    ),
)

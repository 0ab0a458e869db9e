"""Bounded logits: do small logits make a network robust, and does it matter how they became small?

The unit of repetition is a network: seed s decides initial values, the order of the data and the
starts of attacks in training. Every way to keep logits small is trained from every seed, without
and with attacks, and all networks meet the same attacks from the same starts.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.runs import (
    ONE_CYCLE,
    PREACT_RESNET18,
    Stages,
    finish,
    load_cut,
    one_thread,
    train_stages,
)
from lmc_lessons.models import ModelConfig, Params, build, initial, predict, unstack
from lmc_lessons.results import Claim, Effect, Result, Series, farthest, gap, measured
from lmc_lessons.robustness.attacks import (
    Attack,
    LInf,
    Predict,
    margin_loss,
    pgd,
    square_attack,
    targeted_apgd,
)
from lmc_lessons.robustness.attacks import cross_entropy as losses
from lmc_lessons.robustness.bounded_logits import (
    U_STAR,
    Bounded,
    Head,
    band,
    beyond,
    descend,
    head_named,
    monotone_blf,
    optimum,
    straight_through,
)
from lmc_lessons.robustness.logit_penalties import LabelSmoothing, LogitPairing, LogitSqueezing
from lmc_lessons.robustness.masking import (
    accuracies,
    gradient_direction,
    standing,
    together,
    transferred,
)
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining, Objective, Standard
from lmc_lessons.training import Loss, Mode, TrainConfig

LESSON = "bounded-logits"
Numbers = dict[str, Any]
Against = Literal["", "AT", "TRADES"]


class Method(NamedTuple):
    """A way to train.

    Attributes:
        head: What stands behind the last layer: ``none``, ``tanh`` or ``blf``.
        bound: Its bound.
        penalty: What asks for small logits: a name from ``PENALTIES``, or nothing.
        weight: Its strength.
        against: Trained on clean inputs, by adversarial training (AT), or by TRADES.
        share: Share of the epochs that it is trained for.
    """

    head: str = "none"
    bound: float = 1.0
    penalty: str = ""
    weight: float = 0.0
    against: Against = ""
    share: float = 1.0


METHODS: dict[str, Method] = {
    "plain": Method(),
    "plain, short": Method(share=0.2),
    "tanh 1": Method("tanh", 1.0),
    "tanh 5": Method("tanh", 5.0),
    "BLF 1": Method("blf", 1.0),
    "BLF 5": Method("blf", 5.0),
    "LS 0.1": Method(penalty="smoothing", weight=0.1),
    "LS 0.5": Method(penalty="smoothing", weight=0.5),
    "LSQ 0.05": Method(penalty="squeezing", weight=0.05),
    "LSQ 0.5": Method(penalty="squeezing", weight=0.5),
    "CLP 0.05": Method(penalty="pairing", weight=0.05),
    "LS 0.27": Method(penalty="smoothing", weight=0.27),  # its optimum is as long as BLF 1's
    "LSQ 0.081": Method(penalty="squeezing", weight=0.081),  # likewise
    "AT": Method(against="AT"),
    "AT tanh 5": Method("tanh", 5.0, against="AT"),
    "AT BLF 1": Method("blf", 1.0, against="AT"),
    "AT BLF 5": Method("blf", 5.0, against="AT"),
    "AT LS 0.1": Method(penalty="smoothing", weight=0.1, against="AT"),
    "AT LSQ 0.05": Method(penalty="squeezing", weight=0.05, against="AT"),
    "TRADES": Method(against="TRADES"),
}
PENALTIES: dict[str, Callable[[float, Objective], Objective]] = {
    "smoothing": LabelSmoothing,
    "squeezing": LogitSqueezing,
    "pairing": LogitPairing,
}
REGULARISED = ("LS 0.1", "LS 0.5", "LSQ 0.05", "LSQ 0.5", "CLP 0.05")
FREE = ("plain", "tanh 1", "tanh 5", "BLF 1", "BLF 5")  # whose heads move free pre-logits
OTHERS = 1000  # added to a seed: the network whose adversarial examples are handed over
QUANTITIES = (
    "clean accuracy",
    "logit norm",
    "pre-logit norm",
    "train logit norm",
    "train pre-logit norm",
    "train centred norm",
    "train loss",
    "beyond",
    "no gradient",
    "uphill",
)
WHITE = ("CE", "margin", "targeted")  # by gradients, with no thought of the head
ADAPTIVE = ("pre-logits", "extension", "BPDA")  # made for the head
ATTACKS = (*WHITE, *ADAPTIVE, "transfer", "Square")
SHARES = ("clean", *ATTACKS, "white", "adaptive", "all")


def head_of(name: str) -> Head:
    """The head of a method."""
    return head_named(METHODS[name].head, METHODS[name].bound)


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
        "steps": config.training_steps,
        "step_size": config.step_size,
        "mode": config.attack_mode,
    }
    kinds: dict[str, Objective] = {
        "": Standard(),
        "AT": AdversarialTraining(threat, **attack),
        "TRADES": TRADES(threat, beta=6.0, **attack),
    }
    objective = kinds[method.against]
    if method.penalty:
        objective = PENALTIES[method.penalty](method.weight, objective)
    return objective if method.head == "none" else Bounded(objective, head_of(name))


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        preset: Name of the preset.
        seeds: Networks per method.
        dataset: Name for ``datasets.load``.
        samples: Training samples; None uses all.
        model: Architecture; its outputs are the pre-logits.
        train: How to train.
        robust_epochs: Epochs of the methods that train against attacks.
        methods: Names from ``METHODS``.
        epsilon: Radius of the L-inf threat model, in training and in evaluation.
        training_steps: Steps of the attack in training.
        step_size: Their length; None is 2.5 epsilon over the number of steps.
        attack_mode: BatchNorm's mode during the attack in training.
        attack_with: Test samples that are attacked; None uses all.
        attack_steps: Steps of the attacks by projected gradient descent.
        targeted_steps: Steps of targeted APGD per class.
        targets: Classes that it aims at.
        queries: Evaluations of Square.
        chunk: Samples that are attacked, or measured, at once.
        times: Steps at which free pre-logits are looked at, 0 among them.
        together: Networks trained in one program; 0 means all.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    dataset: str = "digits"
    samples: int | None = None
    model: ModelConfig = field(default_factory=lambda: ModelConfig(width=256, depth=2))
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=60, batch_size=128, optimizer="sgd", learning_rate=0.1, schedule="step"
        )
    )
    robust_epochs: int = 40
    methods: tuple[str, ...] = tuple(METHODS)
    epsilon: float = 0.1
    training_steps: int = 10
    step_size: float | None = None
    attack_mode: Mode = "eval"
    attack_with: int | None = None
    attack_steps: int = 40
    targeted_steps: int = 20
    targets: int = 9
    queries: int = 300
    chunk: int = 500
    times: tuple[int, ...] = (0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10000)
    together: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers >= 0, got {self.seeds}")
        if max(self.seeds) - min(self.seeds) >= OTHERS:
            raise ValueError(f"seeds must lie within {OTHERS} of each other, got {self.seeds}")
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"no method {unknown[0]!r}, allowed: {', '.join(METHODS)}")
        if not self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods must be different, at least one, got {self.methods}")
        lowest = {"robust_epochs": 1, "attack_steps": 1, "targeted_steps": 1, "targets": 1}
        lowest |= {"queries": 1, "chunk": 1, "together": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("samples", "attack_with"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} must be at least 2, got {value}")
        if not self.times or self.times[0] != 0 or list(self.times) != sorted(set(self.times)):
            raise ValueError(f"times must increase from 0, got {self.times}")
        if self.train.epochs < 1:
            raise ValueError(f"train.epochs must be at least 1, got {self.train.epochs}")
        objective_of("AT", self)  # refuses attacks that cannot be run


_FASHION = Config(
    preset="full-fashion-mlp",
    dataset="fashion-mnist",
    samples=10_000,
    model=ModelConfig("mlp", (1, 28, 28), 10, width=256, depth=2),
    train=dataclasses.replace(Config().train, epochs=12),
    robust_epochs=8,
    methods=(
        *("plain", "plain, short", "tanh 1", "BLF 1", "BLF 5", "LS 0.5", "LSQ 0.05", "LSQ 0.5"),
        *("CLP 0.05", "LS 0.27", "LSQ 0.081", "AT", "AT tanh 5", "AT BLF 5", "AT LSQ 0.05"),
    ),
    epsilon=0.03,
    training_steps=5,
    attack_with=300,
    targets=3,
)
_CIFAR = Config(
    preset="full-cifar-blf",
    dataset="cifar10",
    model=PREACT_RESNET18,
    train=ONE_CYCLE,
    robust_epochs=30,
    methods=(
        *("plain", "tanh 1", "BLF 1", "BLF 5", "LS 0.5", "LSQ 0.5"),
        *("AT", "AT tanh 5", "AT BLF 5", "AT LS 0.1", "AT LSQ 0.05", "TRADES"),
    ),
    epsilon=8 / 255,
    step_size=2 / 255,
    attack_mode="train",
    attack_with=1000,
    targeted_steps=40,
    queries=1000,
    together=1,
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        train=dataclasses.replace(Config().train, epochs=30),
        methods=("plain", "tanh 1", "BLF 1", "LSQ 0.081"),
        attack_with=150,
        attack_steps=20,
        targets=3,
        queries=100,
        times=(0, 10, 100, 1000, 3000),
    ),
    "study": Config(),
    "full-fashion-mlp": _FASHION,
    "full-cifar-blf": _CIFAR,
    "paper": dataclasses.replace(  # the paper's own recipe is not known: see the lesson
        _CIFAR,
        preset="paper",
        train=dataclasses.replace(
            _CIFAR.train, epochs=200, learning_rate=0.1, schedule="step", weight_decay=5e-4
        ),
        robust_epochs=200,
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
        Series over networks, attacks and free pre-logits, and the verdict of every claim.

    Raises:
        ValueError: If the data set is not there, or does not fit the model.

    Taught in: book/robustness/bounded-logits
    """
    data = load_data(config, root)
    stages = Stages(folder, config, progress=progress)
    setting = Setting(config, data, build(config.model).eval().to(device), device)
    with one_thread(not config.train.fast):
        free = [
            stages.numbers(f"free-{seed}", functools.partial(free_pre_logits, config, seed))
            for seed in config.seeds
        ]
        trained = train_all(setting, stages)
        rows, shares = measure_all(setting, stages, trained)
        beyond_at_start = [share_beyond_at_start(setting, seed) for seed in config.seeds]
    names = list(config.methods)
    series = {
        "free": Series(
            {"head": list(FREE), "step": list(config.times), "class": list(range(CLASSES))}, free
        ),
        "networks": Series({"network": names, "quantity": list(QUANTITIES)}, rows),
        "standing": Series({"network": names, "attack": list(SHARES)}, shares),
    }
    metrics = {"beyond at start": beyond_at_start}
    for row, name in enumerate(names):
        for share in ("clean", "CE", "all"):
            metrics[f"{name}: {share}"] = [seed[row][SHARES.index(share)] for seed in shares]
    undefended = [name for name in names if not METHODS[name].against]
    if config.dataset == "cifar10" and undefended:
        metrics[ON_CIFAR] = [
            max(metrics[f"{name}: all"][k] for name in undefended) for k in range(len(config.seeds))
        ]
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


CLASSES = 10  # of free pre-logits
ON_CIFAR = "most robust without attacks in training, CIFAR-10"


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

    def pre_logits(self, params: Params) -> Predict:
        """The function from inputs (N, ...) to pre-logits that one network computes."""
        return functools.partial(predict, self.model, params)

    def network(self, name: str, params: Params) -> Predict:
        """The function from inputs (N, ...) to logits, through the head of its method."""
        return behind(head_of(name), self.pre_logits(params))

    def samples(self, part: str, count: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and labels of the ``train`` or ``test`` part, on the device."""
        x, y = (getattr(self.data, f"{part}_{kind}")[:count] for kind in "xy")
        return x.to(self.device), y.to(self.device)

    def in_chunks(self, run: Predict, x: Tensor) -> Tensor:
        """What a function without gradients gives for many inputs."""
        with torch.no_grad():
            return torch.cat([run(part) for part in x.split(self.config.chunk)])


def behind(head: Head, pre_logits: Predict) -> Predict:
    """A head behind a function that gives pre-logits."""
    return lambda x: head(pre_logits(x))


def load_data(config: Config, root: Path | None = None) -> Dataset:
    """The data of a run.

    Args:
        config: Which.
        root: Where data sets lie.

    Returns:
        The data set, its training part cut to the number that is used.

    Raises:
        ValueError: If the data set is not there, too small, or does not fit the model.
    """
    return load_cut(config.dataset, config.model, samples=config.samples, root=root)


# Free pre-logits


def free_pre_logits(config: Config, seed: int) -> list[list[list[float]]]:
    """Where gradient descent takes the pre-logits of one sample, head by head.

    Args:
        config: When to look.
        seed: Decides the start.

    Returns:
        Pre-logits of shape (heads, times, classes); the true class comes first.
    """
    found = [descend(head_of(name), (seed,), config.times, classes=CLASSES)[0] for name in FREE]
    return [list(pre_logits.tolist()) for pre_logits in found]


# Training


def train_all(setting: Setting, stages: Stages) -> dict[str, list[Params]]:
    """Train every method from every seed, and a plain network from another seed each.

    Args:
        setting: What to run, and on what.
        stages: Restartable stages.

    Returns:
        Name of a method to one network per seed; ``""`` names the networks from other seeds.
    """
    config = setting.config
    found = {}
    for name in (*config.methods, ""):
        method = METHODS[name or "plain"]
        whole = config.robust_epochs if method.against else config.train.epochs
        epochs = max(1, round(method.share * whole))
        params = train_stages(
            stages,
            name or "other",
            config.model,
            setting.data,
            [seed + (0 if name else OTHERS) for seed in config.seeds],
            dataclasses.replace(config.train, epochs=epochs),
            loss=objective_of(name or "plain", config),
            together=config.together,
            device=setting.device,
        )
        found[name] = unstack(params[epochs])
    return found


# Measurements


def measure_all(
    setting: Setting, stages: Stages, trained: Mapping[str, Sequence[Params]]
) -> tuple[list[Any], list[Any]]:
    """Lengths and accuracies of all networks.

    Args:
        setting: What to run, and on what.
        stages: Restartable stages.
        trained: As ``train_all`` gives it.

    Returns:
        Quantities of shape (seeds, networks, quantities), and shares that stand, of shape (seeds,
        networks, ``SHARES``).
    """
    rows, shares = [], []
    for k, seed in enumerate(setting.config.seeds):
        other = setting.pre_logits(trained[""][k])
        found = [
            stages.numbers(
                f"measure-{name}-{seed}",
                functools.partial(measure_network, setting, name, trained[name][k], other),
            )
            for name in setting.config.methods
        ]
        rows.append([one["quantities"] for one in found])
        shares.append([one["shares"] for one in found])
    return rows, shares


def measure_network(setting: Setting, name: str, params: Params, other: Predict) -> Numbers:
    """Lengths of logits and pre-logits, and what is left under attacks.

    Args:
        setting: What to run, and on what.
        name: Its method.
        params: The network.
        other: A plain network from another seed.

    Returns:
        ``quantities`` and ``shares``, in the order of ``QUANTITIES`` and ``SHARES``.
    """
    head, pre_logits = head_of(name), setting.pre_logits(params)
    (train_x, train_y), (x, y) = (setting.samples(part) for part in ("train", "test"))
    known, new = (setting.in_chunks(pre_logits, inputs) for inputs in (train_x, x))
    fitted, logits = head(known), head(new)
    some_x, some_y = setting.samples("test", setting.config.attack_with)
    threat = LInf(setting.config.epsilon)
    network = setting.network(name, params)
    slope = gradient_direction(network, some_x, some_y, threat).seen
    values = {
        "clean accuracy": float((logits.argmax(-1) == y).double().mean()),
        "logit norm": mean_length(logits),
        "pre-logit norm": mean_length(new),
        "train logit norm": mean_length(fitted),
        "train pre-logit norm": mean_length(known),
        "train centred norm": mean_length(fitted - fitted.mean(-1, keepdim=True)),
        "train loss": float(losses(fitted.double(), train_y).mean()),
        "beyond": float(beyond(new).double().mean()),
        "no gradient": slope["zero"],
        "uphill": slope["better"],
    }
    return {
        "quantities": [values[quantity] for quantity in QUANTITIES],
        "shares": attacked_shares(setting, name, params, other),
    }


def mean_length(logits: Tensor) -> float:
    """Mean Euclidean length of the rows, float64."""
    return float(logits.double().norm(dim=-1).mean())


def share_beyond_at_start(setting: Setting, seed: int) -> float:
    """Share of an untrained network's pre-logits beyond the peak of the BLF, on test data."""
    fresh = initial(setting.config.model, seed)
    params = {name: tensor.to(setting.device) for name, tensor in fresh.items()}
    new = setting.in_chunks(setting.pre_logits(params), setting.samples("test")[0])
    return float(beyond(new).double().mean())


def attacks_of(config: Config, name: str, pre_logits: Predict, other: Predict) -> dict[str, Attack]:
    """The attacks on one network.

    Those made for the head are examples found on the same network with something else in the
    head's place: the margin of its pre-logits (clipped to the band where BLF keeps their order),
    the margin behind the monotone extension, and the head with the gradient of the identity. Where
    there is no head, they would be ``margin`` and ``CE`` again and are left out.

    Args:
        config: Steps and queries.
        name: The network's method.
        pre_logits: The function that it computes before its head.
        other: The network whose examples are handed over.

    Returns:
        Name from ``ATTACKS`` to attack, in that order.
    """
    steps, head, method = config.attack_steps, head_of(name), METHODS[name]
    climb = functools.partial(pgd, steps=steps, keep="best")
    gap = functools.partial(climb, loss=margin_loss)
    found: dict[str, Attack] = {"CE": climb, "margin": gap}
    found["targeted"] = functools.partial(
        targeted_apgd, steps=config.targeted_steps, targets=config.targets
    )
    if method.head == "blf":
        extended = functools.partial(monotone_blf, bound=method.bound)
        found["pre-logits"] = transferred(behind(band, pre_logits), gap)
        found["extension"] = transferred(behind(extended, pre_logits), gap)
    elif method.head == "tanh":
        found["pre-logits"] = transferred(pre_logits, gap)
    if method.head != "none":
        through = functools.partial(straight_through, head)
        found["BPDA"] = transferred(behind(through, pre_logits), climb)
    found["transfer"] = transferred(other, gap)
    found["Square"] = functools.partial(_squares, queries=config.queries)
    return found


def _squares(predict: Predict, x: Tensor, y: Tensor, threat: Any, *, queries: int) -> Tensor:
    return square_attack(predict, x, y, threat, queries=queries).x


def attacked_shares(setting: Setting, name: str, params: Params, other: Predict) -> list[float]:
    """Shares of test samples that stand under each attack, and under several together.

    Args:
        setting: What to run, and on what.
        name: The network's method.
        params: The network.
        other: A plain network from another seed.

    Returns:
        Numbers in the order of ``SHARES``.
    """
    config, threat = setting.config, LInf(setting.config.epsilon)
    network = setting.network(name, params)
    attacks = attacks_of(config, name, setting.pre_logits(params), other)
    x, y = setting.samples("test", config.attack_with)
    attacks = {"clean": unchanged, **attacks}
    masks = standing(network, x, y, threat, attacks, chunk=config.chunk)
    again = {"pre-logits": "margin", "extension": "pre-logits", "BPDA": "CE"}
    for attack, same in again.items():
        masks.setdefault(attack, masks[same])
    left = {attack: float(share) for attack, share in accuracies(masks).items()}
    left["white"] = float(together(masks, WHITE))
    left["adaptive"] = float(together(masks, (*WHITE, *ADAPTIVE)))
    left["all"] = float(together(masks, ATTACKS))
    return [left[share] for share in SHARES]


def unchanged(predict: Predict, x: Tensor, y: Tensor, threat: Any) -> Tensor:
    """No attack."""
    del predict, y, threat
    return x


# Effects and claims


def column(result: Result, title: str, name: str, entry: str) -> list[float]:
    """One entry of a series over networks, per seed.

    Args:
        result: The run.
        title: ``networks`` or ``standing``.
        name: The network.
        entry: Which quantity, or attack.

    Returns:
        One number per seed.

    Raises:
        KeyError: If it was not measured.
    """
    series = result.series[title]
    kind = list(series.axes)[1]
    for axis, wanted in (("network", name), (kind, entry)):
        if wanted not in series.axes[axis]:
            raise KeyError(f"{axis} {wanted}")
    row, place = series.axes["network"].index(name), series.axes[kind].index(entry)
    return [values[row][place] for values in series.values]


def at(name: str, quantity: str) -> Effect:
    """Effect: one quantity of one network."""
    return lambda result: column(result, "networks", name, quantity)


def left(name: str, attack: str) -> Effect:
    """Effect: the share of samples that stand under an attack."""
    return lambda result: column(result, "standing", name, attack)


def ratio(more: Effect, less: Effect) -> Effect:
    """Effect: one effect divided by another, seed by seed."""
    return lambda result: [p / q for p, q in zip(more(result), less(result), strict=True)]


def best_of(names: Sequence[str], attack: str) -> Effect:
    """Effect: the share that stands of the network that is best on average over seeds."""

    def effect(result: Result) -> list[float]:
        found = [column(result, "standing", name, attack) for name in names]
        return max(found, key=sum)

    return effect


def off(name: str, quantity: str, wanted: float) -> Effect:
    """Effect: relative difference of a quantity from what theory says."""
    return lambda result: [value / wanted - 1 for value in at(name, quantity)(result)]


def free_length(name: str, time: int) -> Effect:
    """Effect: length of the free pre-logits behind a head after so many steps."""

    def effect(result: Result) -> list[float]:
        series = result.series["free"]
        for axis, wanted in (("head", name), ("step", time)):
            if wanted not in series.axes[axis]:
                raise KeyError(f"{axis} {wanted}")
        head, step = series.axes["head"].index(name), series.axes["step"].index(time)
        return [math.hypot(*values[head][step]) for values in series.values]

    return effect


def free_excess(result: Result) -> list[float]:
    """Effect: relative difference of the free pre-logits behind BLF from their optimum."""
    wanted = U_STAR * math.sqrt(CLASSES)
    return [length / wanted - 1 for length in free_length("BLF 1", 10_000)(result)]


def growth(name: str) -> Effect:
    """Effect: by how much free pre-logits grow in the last tenfold of the steps."""
    return gap(free_length(name, 10_000), free_length(name, 1000))


ABSTRACT = "direction in the abstract; numbers not read"
NAMED = "kanai2021constraining, abstract"
BLF, TANH, PLAIN = "BLF 1", "tanh 1", "plain"

CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1a",
        "Free pre-logits behind BLF (bound 1) settle at 1.5434 times the root of the classes.",
        "derived here",
        free_excess,
        margin=0.01,
        reason="converged to one per cent",
        kind="exact",
        unit="relative difference",
    ),
    Claim(
        "C1b",
        "Behind tanh (bound 1) they still grow, by more than 3 per tenfold of the steps.",
        "derived here",
        growth(TANH),
        margin=3.0,
        reason="theory says the root of 10 times half of log 10, which is 3.64",
        unit="length",
    ),
    Claim(
        "C2a",
        "Trained behind tanh 1, pre-logits are at least 0.8 times as long as plain logits.",
        NAMED,
        ratio(at(TANH, "train pre-logit norm"), at(PLAIN, "train logit norm")),
        margin=0.8,
        reason="a fifth shorter would still be long",
        unit="ratio",
        paper=ABSTRACT,
    ),
    Claim(
        "C2b",
        "Trained behind BLF 1, pre-logits are as long as at the optimum.",
        NAMED,
        off(BLF, "train pre-logit norm", optimum("blf", 1.0).pre_logit_norm),
        margin=0.05,
        reason="the tolerance that is usual for a closed form met by training",
        kind="equal",
        unit="relative difference",
        paper=ABSTRACT,
    ),
    Claim(
        "C2c",
        "Pre-logits behind tanh 1 are more than twice as long as behind BLF 1.",
        NAMED,
        ratio(at(TANH, "train pre-logit norm"), at(BLF, "train pre-logit norm")),
        margin=2.0,
        reason="a factor of 2 is no matter of training a little longer",
        unit="ratio",
        paper=ABSTRACT,
    ),
    Claim(
        "C2d",
        "Before training hardly any pre-logit lies beyond the peak of BLF.",
        "derived here",
        measured("beyond at start"),
        margin=0.05,
        reason="one in twenty could learn against the slope without much harm",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C3a",
        "Logit squeezing (0.05 and 0.5) ends at the length of its closed form.",
        "derived here",
        farthest(
            off("LSQ 0.05", "train logit norm", optimum("squeezing", 0.05).logit_norm),
            off("LSQ 0.5", "train logit norm", optimum("squeezing", 0.5).logit_norm),
        ),
        margin=0.05,
        reason="as C2b",
        kind="equal",
        unit="relative difference",
    ),
    Claim(
        "C3b",
        "Strong label smoothing (0.5) ends at the length of its closed form.",
        "derived here",
        off("LS 0.5", "train centred norm", optimum("smoothing", 0.5).logit_norm),
        margin=0.05,
        reason="as C2b",
        kind="equal",
        unit="relative difference",
    ),
    Claim(
        "C3c",
        "Weak label smoothing (0.1) ends at the length of its closed form.",
        "derived here",
        off("LS 0.1", "train centred norm", optimum("smoothing", 0.1).logit_norm),
        margin=0.05,
        reason="as C2b",
        kind="equal",
        unit="relative difference",
    ),
    Claim(
        "C3d",
        "Clean logit pairing (0.05) ends at the length of squeezing with four times its weight.",
        "derived here",
        off("CLP 0.05", "train logit norm", optimum("squeezing", 0.2).logit_norm),
        margin=0.05,
        reason="as C2b",
        kind="equal",
        unit="relative difference",
    ),
    Claim(
        "C4a",
        "Under PGD on cross-entropy BLF 1 is more accurate than a plain network.",
        NAMED,
        gap(left(BLF, "CE"), left(PLAIN, "CE")),
        margin=0.05,
        reason="twice the sampling error of a difference on 450 images",
        unit="share",
        paper=ABSTRACT,
    ),
    Claim(
        "C4b",
        "Under PGD on cross-entropy BLF 1 is more accurate than tanh 1.",
        NAMED,
        gap(left(BLF, "CE"), left(TANH, "CE")),
        margin=0.0,
        reason="better at all",
        unit="share",
        paper=ABSTRACT,
    ),
    Claim(
        "C4c",
        "Under PGD on cross-entropy tanh 1 does not help: it is within 5 points of plain.",
        NAMED,
        gap(left(TANH, "CE"), left(PLAIN, "CE")),
        margin=0.05,
        reason="as C4a",
        kind="equal",
        unit="share",
        paper=ABSTRACT,
    ),
    Claim(
        "C4d",
        "Under PGD on cross-entropy BLF 1 is within 5 points of the best logit regulariser.",
        NAMED,
        gap(left(BLF, "CE"), best_of(REGULARISED, "CE")),
        margin=0.05,
        reason="as C4a",
        kind="equal",
        unit="share",
        paper=ABSTRACT,
    ),
    Claim(
        "C4e",
        "Under all attacks together BLF 1 is more accurate than a plain network.",
        "asked here",
        gap(left(BLF, "all"), left(PLAIN, "all")),
        margin=0.05,
        reason="as C4a",
        unit="share",
    ),
    Claim(
        "C4f",
        "Under all attacks together BLF 1 is more accurate than tanh 1.",
        "asked here",
        gap(left(BLF, "all"), left(TANH, "all")),
        margin=0.0,
        reason="as C4b",
        unit="share",
    ),
    Claim(
        "C4g",
        "Under all attacks together BLF 1 is within 5 points of the best logit regulariser.",
        "asked here",
        gap(left(BLF, "all"), best_of(REGULARISED, "all")),
        margin=0.05,
        reason="as C4d",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C4h",
        "Clean accuracy of BLF 1 and of a plain network are within 1 point.",
        "asked here",
        gap(at(BLF, "clean accuracy"), at(PLAIN, "clean accuracy")),
        margin=0.01,
        reason="about the sampling error of one accuracy near 98 %",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C5a",
        "With adversarial training, under all attacks, BLF 5 is at most 2 points below no head.",
        NAMED,
        gap(left("AT BLF 5", "all"), left("AT", "all")),
        margin=-0.02,
        reason="comparable: not worse by the sampling error of a difference",
        unit="share",
        paper=ABSTRACT,
    ),
    Claim(
        "C5b",
        "Likewise, BLF 5 is at most 2 points below the better of LS 0.1 and LSQ 0.05.",
        NAMED,
        gap(left("AT BLF 5", "all"), best_of(("AT LS 0.1", "AT LSQ 0.05"), "all")),
        margin=-0.02,
        reason="as C5a",
        unit="share",
        paper=ABSTRACT,
    ),
    Claim(
        "C5c",
        "Likewise, BLF 5 is at most 2 points below TRADES.",
        NAMED,
        gap(left("AT BLF 5", "all"), left("TRADES", "all")),
        margin=-0.02,
        reason="as C5a",
        unit="share",
        paper=ABSTRACT,
    ),
    Claim(
        "C5d",
        "With adversarial training, under all attacks, BLF 5 is above no head.",
        NAMED,
        gap(left("AT BLF 5", "all"), left("AT", "all")),
        margin=0.0,
        reason="better at all",
        unit="share",
        paper=ABSTRACT,
    ),
    Claim(
        "C5e",
        "Likewise, BLF 5 is above tanh 5, so that more than the bound is at work.",
        "asked here",
        gap(left("AT BLF 5", "all"), left("AT tanh 5", "all")),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "C6a",
        "PGD on cross-entropy overestimates squeezing (0.5): PGD on the margin leaves less.",
        "after mosbach2018logit (known from summaries)",
        gap(left("LSQ 0.5", "CE"), left("LSQ 0.5", "margin")),
        margin=0.03,
        reason="half of what a first toy run of one seed showed",
        unit="share",
    ),
    Claim(
        "C6b",
        "PGD on cross-entropy overestimates label smoothing (0.5).",
        "after mosbach2018logit (known from summaries)",
        gap(left("LS 0.5", "CE"), left("LS 0.5", "margin")),
        margin=0.03,
        reason="as C6a",
        unit="share",
    ),
    Claim(
        "C6c",
        "PGD on cross-entropy overestimates BLF 1 less than squeezing (0.5).",
        "asked here",
        gap(
            gap(left("LSQ 0.5", "CE"), left("LSQ 0.5", "margin")),
            gap(left(BLF, "CE"), left(BLF, "margin")),
        ),
        margin=0.02,
        reason="two thirds of the margin of C6a",
        unit="share",
    ),
    Claim(
        "C6d",
        "Of a plain network both attacks leave the same, within 2 points.",
        "asked here",
        gap(left(PLAIN, "CE"), left(PLAIN, "margin")),
        margin=0.02,
        reason="the tolerance of the diagnostics of gradient masking",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C7",
        "On CIFAR-10 at 8/255, no logits that are small by training alone resist all attacks.",
        "after mosbach2018logit (known from summaries)",
        measured(ON_CIFAR),
        margin=0.02,
        reason="the tolerance of the diagnostics of gradient masking",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C8a",
        "With logits as long, squeezing (0.081) resists all attacks as well as BLF 1.",
        "asked here",
        gap(left(BLF, "all"), left("LSQ 0.081", "all")),
        margin=0.03,
        reason="about the sampling error of a difference on 450 images",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C8b",
        "With logits as long, label smoothing (0.27) resists all attacks as well as BLF 1.",
        "asked here",
        gap(left(BLF, "all"), left("LS 0.27", "all")),
        margin=0.03,
        reason="as C8a",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C8c",
        "BLF 1 is ahead of a plain network trained for a fifth of the epochs, too.",
        "asked here",
        gap(left(BLF, "all"), left("plain, short", "all")),
        margin=0.03,
        reason="as C8a",
        unit="share",
    ),
    Claim(
        "C9a",
        "Attacks made for BLF find next to nothing that attacks by gradients have missed.",
        "asked here",
        farthest(*(gap(left(n, "white"), left(n, "adaptive")) for n in (BLF, "BLF 5", "AT BLF 5"))),
        margin=0.02,
        reason="the tolerance of the diagnostics of gradient masking",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C9b",
        "After all these attacks, transferred examples and Square find next to nothing more.",
        "asked here",
        farthest(*(gap(left(n, "adaptive"), left(n, "all")) for n in (BLF, "BLF 5", "AT BLF 5"))),
        margin=0.02,
        reason="as C9a",
        kind="equal",
        unit="share",
    ),
)

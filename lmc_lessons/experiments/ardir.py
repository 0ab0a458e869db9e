"""Distilling the representation: does a student learn more than its teacher's labels?

The unit of repetition is a student with a teacher of its own: seed s decides the student's initial
values, the order of its data and the starts of attacks; seed 1000 + s those of its teacher, which
has the same architecture and the same training data. Every way to train is run from every seed.
The teacher's last network is also a second run of adversarial training, so its difference from the
first shows what a change of seed alone does.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.runs import (
    ONE_CYCLE,
    PREACT_RESNET18,
    Stages,
    finish,
    hold_out,
    one_thread,
    train_stages,
)
from lmc_lessons.models import (
    ModelConfig,
    Params,
    build,
    initial,
    parameter_names,
    predict,
    predict_stacked,
    stack,
    unstack,
)
from lmc_lessons.results import Claim, Effect, Result, Series, difference
from lmc_lessons.robustness.attacks import Attack, LInf, Predict, ThreatModel, ensemble, pgd
from lmc_lessons.robustness.distillation import (
    Answer,
    Distillation,
    Features,
    Inputs,
    SoftLabels,
    Teacher,
    ardir,
    feature_distance,
    representation,
    rslad,
)
from lmc_lessons.robustness.masking import standing, together
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining
from lmc_lessons.training import Loss, Mode, Network, TrainConfig, cross_entropy

LESSON = "ardir"
TEACHERS = 1000  # how far the teachers' seeds are from the students'
CHUNK = 1000  # inputs attacked at once
Kind = Literal["robust", "last", "natural"]
Numbers = dict[str, Any]


class Method(NamedTuple):
    """A way to train.

    Attributes:
        plain: ``AT``, ``TRADES`` or ``smoothing``: without a teacher; ``rslad``: its own setting.
        hard: Weight of the true labels on attacked inputs.
        soft: Weight of the teacher's labels.
        soft_on: Which inputs the teacher sees to give them.
        weight: Weight of the teacher's representation.
        taught_on: Which inputs the teacher sees to give it.
        teacher: Trained against attacks and ``robust`` (stopped by validation) or its ``last``
            epoch; or ``natural``, trained without attacks.
        longer: Factor on the number of epochs.
    """

    plain: str = ""
    hard: float = 0.0
    soft: float = 1.0
    soft_on: Inputs = "clean"
    weight: float = 0.0
    taught_on: Inputs = "clean"
    teacher: Kind = "robust"
    longer: int = 1


LAST = "rep 5, last teacher"
METHODS: dict[str, Method] = {
    "AT": Method("AT"),
    "AT, twice as long": Method("AT", longer=2),
    "label smoothing": Method("smoothing"),
    "TRADES": Method("TRADES"),
    "output": Method(),
    "AKD-like": Method(hard=0.5, soft=0.5, soft_on="attacked"),
    "RSLAD": Method("rslad"),
    "rep 0.5": Method(weight=0.5),
    "rep 2": Method(weight=2.0),
    "rep 5": Method(weight=5.0),
    "rep 20": Method(weight=20.0),
    "rep 5, attacked": Method(weight=5.0, taught_on="attacked"),
    "rep 5, hard labels": Method(hard=1.0, soft=0.0, weight=5.0),
    LAST: Method(weight=5.0, teacher="last"),
    "rep 5, natural teacher": Method(weight=5.0, teacher="natural"),
}
SMOOTHING = 0.2
TEACHER, AGAIN, NATURAL = "teacher", "AT, other seed", "natural"
FOLLOWED = (TEACHER, "AT", "output", "rep 5")  # whose accuracy is measured while they train
PICTURED = ("output", "rep 5")  # whose representations are drawn
QUANTITIES = (
    "clean accuracy",
    "PGD accuracy",
    "ensemble accuracy",
    "train PGD accuracy",
    "feature shift",
    "cosine to teacher",
    "label entropy",
)


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        preset: Name of the preset.
        seeds: Students per method; each has a teacher.
        dataset: Name for ``datasets.load``.
        samples: Training samples; None uses all that validation leaves.
        validation: Samples that follow them and choose when the teacher stops.
        test: Test samples: the data set's test part, then training samples that neither train nor
            validate; None uses all of them.
        model: Architecture of teachers and students.
        train: How to train.
        methods: Names from ``METHODS``; AT among them.
        epsilon: Radius of the L-inf threat model, in training and in evaluation.
        attack_steps: Steps of the attack in training.
        step_size: Their length; None is 2.5 epsilon over the number of steps.
        attack_mode: BatchNorm's mode during the attack in training.
        every: Epochs between two points of the curves, from which the teacher is chosen.
        curve_steps: Steps of the attack on the curves, and on training data.
        eval_steps: Steps of PGD at the end of training.
        ensemble_steps: Steps of each attack by gradients of the ensemble.
        queries: Queries of its black-box attack; 0 leaves it out.
        ensemble_with: Test samples for the ensemble and the pictures; None uses all.
        moments: Epochs at which representations are drawn; those beyond the last are left out.
        pictured: Test samples that are drawn.
        together: Networks trained in one program; 0 means all.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7)
    dataset: str = "digits"
    samples: int | None = 640
    validation: int = 200
    test: int | None = None
    model: ModelConfig = field(default_factory=lambda: ModelConfig(width=128, depth=2))
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=100,
            batch_size=64,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            schedule="linear",
        )
    )
    methods: tuple[str, ...] = tuple(METHODS)
    epsilon: float = 0.15
    attack_steps: int = 10
    step_size: float | None = None
    attack_mode: Mode = "eval"
    every: int = 20
    curve_steps: int = 10
    eval_steps: int = 20
    ensemble_steps: int = 20
    queries: int = 0
    ensemble_with: int | None = None
    moments: tuple[int, ...] = (0, 1, 2, 5, 10, 20, 40)
    pictured: int = 50
    together: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be different integers, got {self.seeds}")
        if min(self.seeds) < 0 or max(self.seeds) >= TEACHERS:
            raise ValueError(f"seeds must lie from 0 to {TEACHERS - 1}, got {self.seeds}")
        if unknown := [name for name in self.methods if name not in METHODS]:
            raise ValueError(f"no method {unknown[0]!r}, allowed: {', '.join(METHODS)}")
        if "AT" not in self.methods or len(set(self.methods)) != len(self.methods):
            raise ValueError(f"methods must be different, AT among them, got {self.methods}")
        lowest = {"validation": 1, "every": 1, "curve_steps": 1, "eval_steps": 1, "pictured": 3}
        lowest |= {"ensemble_steps": 1, "queries": 0, "together": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("samples", "test", "ensemble_with"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} must be at least 2, got {value}")
        if any(moment < 0 for moment in self.moments):
            raise ValueError(f"moments must be epochs >= 0, got {self.moments}")
        if self.train.epochs < 1 or self.train.label_noise:
            raise ValueError(
                "train.epochs must be at least 1 and train.label_noise 0, got "
                f"{self.train.epochs}, {self.train.label_noise}"
            )
        self.attack  # noqa: B018 - refuses attacks that cannot be run

    @property
    def attack(self) -> AdversarialTraining:
        """Adversarial training, whose attack all methods but TRADES and RSLAD share."""
        return AdversarialTraining(
            LInf(self.epsilon), self.attack_steps, self.step_size, self.attack_mode
        )

    @property
    def epochs(self) -> list[int]:
        """Epochs at which the curves are measured, the last among them."""
        return sorted({*range(self.every, self.train.epochs, self.every), self.train.epochs})

    @property
    def drawn_at(self) -> list[int]:
        """Epochs at which representations are drawn, the last among them."""
        last = self.train.epochs
        return sorted({*(moment for moment in self.moments if moment <= last), last})


_CIFAR = Config(
    preset="full-cifar-ardir",
    dataset="cifar10",
    seeds=(0, 1, 2),
    samples=None,
    validation=1000,
    model=PREACT_RESNET18,
    train=ONE_CYCLE,
    methods=("AT", "TRADES", "output", "rep 5"),
    epsilon=8 / 255,
    step_size=2 / 255,
    attack_mode="train",
    every=5,
    ensemble_steps=50,
    queries=1000,
    ensemble_with=2000,
    moments=(0, 1, 3, 9, 15),
    together=1,
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        train=dataclasses.replace(Config().train, epochs=40),
        methods=("AT", "output", "rep 5"),
        test=400,
        every=10,
        ensemble_steps=10,
    ),
    "study": Config(),
    "full-fashion-mlp": Config(
        preset="full-fashion-mlp",
        dataset="fashion-mnist",
        seeds=(0, 1, 2, 3, 4),
        samples=2000,
        validation=1000,
        test=2000,
        model=ModelConfig("mlp", (1, 28, 28), 10, width=256, depth=2),
        methods=(
            *("AT", "AT, twice as long", "label smoothing", "TRADES", "output", "rep 5"),
            *("rep 20", "rep 5, attacked", "rep 5, natural teacher"),
        ),
        epsilon=0.05,
    ),
    "full-cifar-ardir": _CIFAR,
    "paper": dataclasses.replace(
        _CIFAR,
        preset="paper",
        train=dataclasses.replace(_CIFAR.train, epochs=200, learning_rate=0.1, schedule="step"),
        methods=("AT", "TRADES", "output", "RSLAD", "rep 2", "rep 5", LAST),
        every=10,
        moments=(0, 1, 10, 50, 100, 150),
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
        Metrics of every network, curves and pictures, and the verdict of every claim.

    Raises:
        ValueError: If the data set is not there, is too small, or does not fit the model.

    Taught in: book/robustness/ardir
    """
    data, validation = split(config, datasets.load(config.dataset, root=root))
    setting = Setting(config, data, validation, build(config.model).eval().to(device), device)
    stages = Stages(folder, config, progress=progress)
    with one_thread():
        school = train_all(setting, stages)
        metrics = measure_all(setting, stages, school)
        series = curves_of(school) | pictures(setting, stages, school)
    series["passes"] = Series(
        {"method": list(config.methods), "by": ["student", "teacher"]},
        [[list(count_passes(setting, name)) for name in config.methods]] * len(config.seeds),
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
        validation: Inputs and labels that choose when a teacher stops.
        model: Architecture, in eval mode, on the device.
        device: Where to run.
    """

    config: Config
    data: Dataset
    validation: tuple[Tensor, Tensor]
    model: nn.Module
    device: str

    def test(self, count: int | None = None) -> tuple[Tensor, Tensor]:
        """The first test samples, on the device."""
        x, y = self.data.test_x[:count], self.data.test_y[:count]
        return x.to(self.device), y.to(self.device)


def split(config: Config, data: Dataset) -> tuple[Dataset, tuple[Tensor, Tensor]]:
    """Cut the data into training, validation and test parts.

    Args:
        config: How many samples of each.
        data: The data set.

    Returns:
        The data with a smaller training part and a larger test part, and inputs and labels for
        validation.

    Raises:
        ValueError: If there are not enough samples, or they do not fit the model.
    """
    part, validation, rest = hold_out(data, config.model, config.samples, config.validation)
    test = (
        torch.cat(pair)[: config.test]
        for pair in zip((part.test_x, part.test_y), rest, strict=True)
    )
    test_x, test_y = test
    return dataclasses.replace(part, test_x=test_x, test_y=test_y), validation


# Training


@dataclass(frozen=True)
class School:
    """All trained networks.

    Attributes:
        networks: Name to parameters of shape (S, ...): the methods, and the three kinds of teacher.
        moments: Name of a pictured student to epoch to parameters of shape (S, ...).
        curves: Name to a curve per seed, shape (splits, epochs): accuracy under attack.
        epochs: Epochs of the curves.
    """

    networks: dict[str, Params]
    moments: dict[str, dict[int, Params]]
    curves: dict[str, list[Any]]
    epochs: list[int]


def train_all(setting: Setting, stages: Stages) -> School:
    """Train teachers, choose them, and train every method from every seed.

    Args:
        setting: What to run, and on what.
        stages: Restartable stages.

    Returns:
        The networks.
    """
    config = setting.config
    school = School({}, {}, {}, config.epochs)
    teaching = tuple(TEACHERS + seed for seed in config.seeds)
    masters = _train(setting, stages, TEACHER, teaching, config.attack)
    school.curves[TEACHER] = follow(setting, stages, TEACHER, masters)
    school.networks[TEACHER] = stopped(masters, config.epochs, school.curves[TEACHER])
    school.networks[AGAIN] = masters[config.train.epochs]
    if any(METHODS[name].teacher == "natural" for name in config.methods):
        natural = _train(setting, stages, NATURAL, teaching, cross_entropy)
        school.networks[NATURAL] = natural[config.train.epochs]
    kinds = (("robust", TEACHER), ("last", AGAIN), ("natural", NATURAL))
    teachers = {
        kind: Teacher(school.networks[name], config.model, config.seeds)
        for kind, name in kinds
        if name in school.networks
    }
    for name in config.methods:
        loss = objective_of(METHODS[name], config, teachers)
        found = _train(setting, stages, name, config.seeds, loss, METHODS[name].longer)
        school.networks[name] = found[METHODS[name].longer * config.train.epochs]
        if name in FOLLOWED:
            school.curves[name] = follow(setting, stages, name, found)
        if name in PICTURED:
            school.moments[name] = {epoch: found[epoch] for epoch in config.drawn_at}
    return school


def _train(
    setting: Setting,
    stages: Stages,
    name: str,
    seeds: Sequence[int],
    loss: Loss,
    longer: int = 1,
) -> dict[int, Params]:
    config = setting.config
    recipe = dataclasses.replace(config.train, epochs=longer * config.train.epochs)
    kept = {*(config.epochs if name in FOLLOWED else ())}
    kept |= {*(config.drawn_at if name in PICTURED else ())}
    return train_stages(
        stages,
        name,
        config.model,
        setting.data,
        seeds,
        recipe,
        loss=loss,
        snapshots=sorted(kept),
        together=config.together,
        device=setting.device,
    )


def objective_of(method: Method, config: Config, teachers: Mapping[str, Teacher]) -> Loss:
    """The loss that a method minimises.

    Args:
        method: The method.
        config: Threat model and attack.
        teachers: Kind to teacher.

    Returns:
        A loss for ``training.train``.
    """
    attack = config.attack
    if method.plain == "AT":
        return attack
    if method.plain == "TRADES":
        return TRADES(
            attack.threat,
            beta=6.0,
            steps=attack.steps,
            step_size=attack.step_size,
            mode=attack.mode,
        )
    if method.plain == "smoothing":
        return Distillation(attack, hard=1.0, smoothing=SMOOTHING)
    teacher = teachers[method.teacher]
    if method.plain == "rslad":
        return rslad(attack, teacher)
    if method.soft == 1 and not method.hard:
        return ardir(attack, teacher, weight=method.weight, taught_on=method.taught_on)
    labels = (SoftLabels(teacher, method.soft, taught_on=method.soft_on),) if method.soft else ()
    features = Features(teacher, method.weight, method.taught_on) if method.weight else None
    return Distillation(attack, labels, features, hard=method.hard)


def follow(setting: Setting, stages: Stages, name: str, found: Mapping[int, Params]) -> list[Any]:
    """Accuracy under attack while networks train, on validation and on test samples.

    Args:
        setting: What to run, and on what.
        stages: Restartable stages.
        name: Name of the networks.
        found: Epoch to parameters of shape (S, ...).

    Returns:
        Per seed two curves over the epochs of the configuration.
    """
    config = setting.config
    parts = (tuple(t.to(setting.device) for t in setting.validation), setting.test())

    def measure(k: int) -> list[list[float]]:
        return [
            [
                accuracy_under(setting, unstack(found[epoch])[k], x, y, config.curve_steps)
                for epoch in config.epochs
            ]
            for x, y in parts
        ]

    return [
        stages.numbers(f"curve-{name}-{seed}", functools.partial(measure, k))
        for k, seed in enumerate(config.seeds)
    ]


def stopped(found: Mapping[int, Params], epochs: Sequence[int], curves: Sequence[Any]) -> Params:
    """Each seed's network at the epoch that validation data choose; of equals the first.

    Args:
        found: Epoch to parameters of shape (S, ...).
        epochs: Epochs of the curves.
        curves: Per seed the accuracy on validation and on test samples, by epoch.

    Returns:
        Parameters of shape (S, ...).
    """
    best = [epochs[int(np.argmax(validation))] for validation, _ in curves]
    return stack([unstack(found[epoch])[k] for k, epoch in enumerate(best)])


# Measurements


def pgd_of(steps: int) -> Attack:
    """PGD with a start that is the same for every network."""

    def attack(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        return pgd(predict, x, y, threat, steps=steps)

    return attack


def left_standing(
    setting: Setting, params: Params, x: Tensor, y: Tensor, attacks: Mapping[str, Attack]
) -> dict[str, Tensor]:
    """Which samples each attack alone leaves correctly read, chunk by chunk.

    Every network meets the same random starts, since every attack is made on every sample.

    Args:
        setting: Architecture and threat model.
        params: One network.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        attacks: Name to attack.

    Returns:
        Name to a mask of shape (N,).
    """
    predicts = functools.partial(predict, setting.model, params)
    return standing(predicts, x, y, LInf(setting.config.epsilon), attacks, chunk=CHUNK)


def accuracy_under(setting: Setting, params: Params, x: Tensor, y: Tensor, steps: int) -> float:
    """Accuracy of one network under PGD of so many steps."""
    masks = left_standing(setting, params, x, y, {"PGD": pgd_of(steps)})
    return float(masks["PGD"].double().mean())


def answers(setting: Setting, params: Params, x: Tensor) -> Answer:
    """Features (N, units) and logits (N, classes) of one network, in eval mode, without a graph."""
    alone = Teacher({name: tensor[None] for name, tensor in params.items()}, setting.config.model)
    with torch.no_grad():
        parts = [representation(alone.network((0,)), some[None]) for some in x.split(CHUNK)]
    return Answer(*(torch.cat([part[k][0] for part in parts]) for k in range(2)))


def attacked(setting: Setting, params: Params, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """What PGD makes of some inputs."""
    predicts = functools.partial(predict, setting.model, params)
    threat = LInf(setting.config.epsilon)
    return torch.cat(
        [
            pgd(predicts, some, labels, threat, steps=steps)
            for some, labels in zip(x.split(CHUNK), y.split(CHUNK), strict=True)
        ]
    )


def measure_all(setting: Setting, stages: Stages, school: School) -> dict[str, list[float]]:
    """The quantities of every network.

    Args:
        setting: What to run, and on what.
        stages: Restartable stages.
        school: The networks.

    Returns:
        Name of a network and quantity to one number per seed.
    """
    metrics: dict[str, list[float]] = {}
    for name, stacked in school.networks.items():
        for k, seed in enumerate(setting.config.seeds):
            teacher = unstack(school.networks[TEACHER])[k]
            measure = functools.partial(measure_network, setting, unstack(stacked)[k], teacher)
            row = stages.numbers(f"measure-{name}-{seed}", measure)
            for quantity, value in zip(QUANTITIES, row, strict=True):
                metrics.setdefault(metric(name, quantity), []).append(value)
    return metrics


def metric(name: str, quantity: str) -> str:
    """Name of a metric: a network's name and a quantity."""
    return f"{name}: {quantity}"


def measure_network(setting: Setting, params: Params, teacher: Params) -> list[float]:
    """The quantities of one network.

    Args:
        setting: What to run, and on what.
        params: The network.
        teacher: The robust teacher of the same seed.

    Returns:
        One number per quantity, in the order of ``QUANTITIES``.
    """
    config, data = setting.config, setting.data
    x, y = setting.test()
    train_x, train_y = data.train_x.to(setting.device), data.train_y.to(setting.device)
    count = len(data.test_x)
    found = attacked(setting, params, x, y, config.eval_steps)
    before, after = answers(setting, params, x), answers(setting, params, found)
    right, still = before.logits.argmax(-1) == y, after.logits.argmax(-1) == y
    attacks = ensemble(steps=config.ensemble_steps, queries=config.queries)
    masks = left_standing(setting, params, *setting.test(config.ensemble_with), attacks)
    labels = F.log_softmax(answers(setting, params, train_x[:count]).logits, -1)
    values = {
        "clean accuracy": right,
        "PGD accuracy": right & still,
        "ensemble accuracy": together(masks, list(masks)),
        "train PGD accuracy": accuracy_under(
            setting, params, train_x[:count], train_y[:count], config.curve_steps
        ),
        "feature shift": feature_shift(before.features, after.features),
        "cosine to teacher": F.cosine_similarity(
            before.features, answers(setting, teacher, x).features, dim=1
        ),
        "label entropy": -(labels.exp() * labels).sum(-1),
    }
    return [float(torch.as_tensor(values[quantity]).double().mean()) for quantity in QUANTITIES]


def feature_shift(before: Tensor, after: Tensor) -> Tensor:
    r"""How far an attack moves a representation, $\|\varphi(x') - \varphi(x)\| / \|\varphi(x)\|$.

    Args:
        before: Features of clean inputs, shape (N, units).
        after: Features of attacked inputs, the same shape.

    Returns:
        Shape (N,).

    Taught in: book/robustness/ardir
    """
    tiny = torch.finfo(before.dtype).tiny
    return (after - before).norm(dim=1) / before.norm(dim=1).clamp_min(tiny)


def curves_of(school: School) -> dict[str, Series]:
    """Accuracy under attack by epoch, and where validation would stop.

    Args:
        school: The networks.

    Returns:
        Two series.
    """
    names, epochs = list(school.curves), school.epochs
    seeds = range(len(next(iter(school.curves.values()))))
    curves = [[school.curves[name][k] for name in names] for k in seeds]
    best = [[int(np.argmax(curve[0])) for curve in seed] for seed in curves]
    stops = [
        [[epochs[b], curve[1][b], curve[1][-1]] for b, curve in zip(row, seed, strict=True)]
        for row, seed in zip(best, curves, strict=True)
    ]
    axes: dict[str, list[Any]] = {"network": names, "split": ["validation", "test"]}
    ends: dict[str, list[Any]] = {"network": names, "quantity": ["epoch", "stopped", "last"]}
    return {
        "PGD accuracy": Series(axes | {"epoch": epochs}, curves),
        "stopped": Series(ends, stops),
    }


def pictures(setting: Setting, stages: Stages, school: School) -> dict[str, Series]:
    """Representations while students train, and their distance from the teacher's.

    Args:
        setting: What to run, and on what.
        stages: Restartable stages.
        school: The networks.

    Returns:
        ``picture`` and ``teacher picture``, points in the plane; ``distance``. Empty if no pictured
        method was trained.
    """
    config, names = setting.config, list(school.moments)
    if not names:
        return {}
    drawn = [
        stages.numbers(f"picture-{seed}", functools.partial(picture, setting, school, k))
        for k, seed in enumerate(config.seeds)
    ]
    labels = setting.data.test_y[: config.pictured].tolist()
    moments: dict[str, list[Any]] = {"network": names, "epoch": config.drawn_at}
    plane: dict[str, list[Any]] = {"image": labels, "axis": ["first", "second"]}
    return {
        "picture": Series(moments | plane, [one["points"] for one in drawn]),
        "teacher picture": Series(plane, [one["teacher"] for one in drawn]),
        "distance": Series(moments, [one["distance"] for one in drawn]),
    }


def picture(setting: Setting, school: School, k: int) -> Numbers:
    """Draw one teacher and its pictured students in the plane of the teacher's main directions.

    Args:
        setting: What to run, and on what.
        school: The networks.
        k: Which seed, by index.

    Returns:
        ``teacher``: points (images, 2) of clean inputs; ``points``: (networks, epochs, images, 2)
        of inputs attacked against the student; ``distance``: (networks, epochs), over the test
        samples of the ensemble.
    """
    config = setting.config
    x, y = setting.test(config.ensemble_with)
    target = answers(setting, unstack(school.networks[TEACHER])[k], x).features
    centre = target.mean(0)
    axes = main_directions(target - centre)
    found: Numbers = {"teacher": [], "points": [], "distance": []}
    found["teacher"] = _places(target, centre, axes, config.pictured)
    for moments in school.moments.values():
        points, distances = [], []
        for stacked in moments.values():
            student = unstack(stacked)[k]
            moved = attacked(setting, student, x, y, config.curve_steps)
            own = answers(setting, student, moved).features
            points.append(_places(own, centre, axes, config.pictured))
            distances.append(float(feature_distance(own[None], target[None])))
        found["points"].append(points)
        found["distance"].append(distances)
    return found


def main_directions(centred: Tensor) -> Tensor:
    """The two directions of the largest variance, as columns; the largest entry of each positive.

    Args:
        centred: Points of mean zero, shape (N, units).

    Returns:
        Shape (units, 2), float64.
    """
    found = torch.linalg.svd(centred.double(), full_matrices=False).Vh[:2].T
    largest = found.gather(0, found.abs().argmax(0, keepdim=True))
    return found * largest.sign()


def _places(features: Tensor, centre: Tensor, axes: Tensor, count: int) -> list[list[float]]:
    places: list[list[float]] = ((features[:count] - centre).double() @ axes).tolist()
    return places


# What it costs


@dataclass(frozen=True, eq=False)
class _Counted(Teacher):
    """A teacher that counts how often it is asked."""

    asked: list[int] = field(default_factory=list)

    def network(self, seeds: Sequence[int]) -> Network:
        self.asked.append(1)
        return super().network(seeds)


def count_passes(setting: Setting, name: str) -> tuple[int, int]:
    """Forward passes in one step of training.

    Args:
        setting: What to run, and on what.
        name: A method.

    Returns:
        Those of the student, and those of the teacher.

    Taught in: book/robustness/ardir
    """
    config, asked = setting.config, []
    start = stack([initial(config.model, 0)])
    teacher = _Counted(start, config.model)
    loss = objective_of(
        METHODS[name], config, dict.fromkeys(("robust", "last", "natural"), teacher)
    )

    def forward(model: nn.Module, params: Params, x: Tensor) -> Tensor:
        asked.append(1)
        return predict_stacked(model, params, x)

    trained = parameter_names(build(config.model))
    modes: dict[Mode, Any] = {
        "train": functools.partial(forward, build(config.model).train()),
        "eval": functools.partial(forward, build(config.model).eval()),
    }
    student = Network(
        {n: t.clone().requires_grad_() for n, t in start.items() if n in trained},
        {n: t.clone() for n, t in start.items() if n not in trained},
        modes,
        seeds=(0,),
    )
    loss(student, setting.data.train_x[None, :2], setting.data.train_y[None, :2])
    return len(asked), len(teacher.asked)


# Effects and claims


def seeds_needed(differences: Sequence[float], effect: float, *, power: float = 0.8) -> int:
    """How many seeds a paired comparison needs to tell an effect from nothing.

    The standard deviation is estimated from the differences at hand; the test is that of the book,
    a two-sided 95 % interval of Student's t.

    Args:
        differences: Paired differences, one per seed, at least two.
        effect: The true difference that is to be found, not 0.
        power: Wanted probability that the interval excludes 0, in (0, 1).

    Returns:
        Number of seeds, at least 2, at most 100 000.

    Raises:
        ValueError: If there are fewer than two differences, the effect is 0, or the power is none.

    Taught in: book/robustness/ardir
    """
    if len(differences) < 2 or effect == 0 or not 0 < power < 1:
        raise ValueError(
            "at least two differences, an effect other than 0 and a power in (0, 1) are needed, "
            f"got {len(differences)}, {effect}, {power}"
        )
    noise = float(np.std(differences, ddof=1))
    if noise == 0:
        return 2

    def enough(n: int) -> bool:
        edge = stats.t.ppf(0.975, n - 1)
        found = stats.nct.sf(edge, n - 1, abs(effect) / noise * math.sqrt(n))
        return bool(found >= power)

    low, high = 1, 2
    while not enough(high) and high < 100_000:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return min(high, 100_000)


def more(name: str, than: str, quantity: str = "ensemble accuracy") -> Effect:
    """Effect: a quantity of one network minus that of another, seed by seed."""
    return difference(metric(name, quantity), metric(than, quantity))


def drop(result: Result, name: str) -> list[float]:
    """How much test accuracy under attack a method loses after the epoch that validation chooses.

    Args:
        result: The run.
        name: One of ``FOLLOWED``.

    Returns:
        One number per seed.

    Raises:
        KeyError: If it was not followed.
    """
    series = result.series["stopped"]
    if name not in series.axes["network"]:
        raise KeyError(f"network {name}")
    row = series.axes["network"].index(name)
    return [seed[row][1] - seed[row][2] for seed in series.values]


def overfitting_removed(result: Result) -> list[float]:
    """Effect: by how much less a student loses after its best epoch than adversarial training."""
    ours, theirs = drop(result, "rep 5"), drop(result, "AT")
    if float(np.mean(theirs)) < 0.02:
        raise KeyError("robust overfitting: AT loses less than 2 points after its best epoch")
    return [q - p for p, q in zip(ours, theirs, strict=True)]


def extra_passes(result: Result) -> list[float]:
    """Effect: forward passes per step beyond those of adversarial training, minus one."""
    series = result.series["passes"]
    names = series.axes["method"]
    if "rep 5" not in names:
        raise KeyError("method rep 5")
    own, plain = names.index("rep 5"), names.index("AT")
    return [float(sum(seed[own]) - sum(seed[plain]) - 1) for seed in result.series["passes"].values]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1",
        "A teacher's output alone, from the same architecture, makes a student more robust than "
        "adversarial training.",
        "takahashi2022ardir, abstract, as known before",
        more("output", "AT"),
        margin=0.0,
        reason="better at all",
        unit="share",
        paper="said in the abstract, without a number",
    ),
    Claim(
        "C2",
        "The teacher's internal representation adds robustness to its output.",
        "takahashi2022ardir, abstract",
        more("rep 5", "output"),
        margin=0.0,
        reason="better at all",
        unit="share",
        paper="said in the abstract, without a number",
    ),
    Claim(
        "C3",
        "The student is more robust than its own teacher.",
        "takahashi2022ardir, abstract (implied)",
        more("rep 5", TEACHER),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "C4",
        "Too much weight on the representation (20 instead of 5) hurts.",
        "this lesson",
        more("rep 5", "rep 20"),
        margin=0.01,
        reason="half of what a first toy showed",
        unit="share",
    ),
    Claim(
        "C5",
        "The target must be the teacher's representation of the clean input, not of the attacked.",
        "this lesson",
        more("rep 5", "rep 5, attacked"),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "C6",
        "Clean accuracy stays what it is with adversarial training, within a point.",
        "this lesson",
        more("rep 5", "AT", "clean accuracy"),
        margin=0.01,
        reason="about ten of the test images",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C7",
        "The student loses less after its best epoch than adversarial training does.",
        "this lesson, after chen2021robust",
        overfitting_removed,
        margin=0.01,
        reason="half of the least loss that counts as overfitting here",
        unit="share",
    ),
    Claim(
        "P1",
        "The student is more robust than with hard and soft labels in equal parts (AKD-like).",
        "takahashi2022ardir, abstract (previous methods)",
        more("rep 5", "AKD-like"),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "P2",
        "The student is more robust than with RSLAD.",
        "takahashi2022ardir, abstract (previous methods)",
        more("rep 5", "RSLAD"),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "P3",
        "The student is more robust than with TRADES, which has no teacher.",
        "this lesson",
        more("rep 5", "TRADES"),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "K1",
        "Two runs of adversarial training that differ in the seed are equal, within a point.",
        "this lesson",
        more("AT", AGAIN),
        margin=0.01,
        reason="about the size of the effects asked for: the noise must be no larger",
        kind="equal",
        unit="share",
    ),
    Claim(
        "K2",
        "Adversarial training for as many epochs as teacher and student together is not as good.",
        "this lesson",
        more("rep 5", "AT, twice as long"),
        margin=0.0,
        reason="better at all at equal cost",
        unit="share",
    ),
    Claim(
        "K3",
        "A teacher trained without attacks gives less than a robust one.",
        "this lesson",
        more("rep 5", "rep 5, natural teacher"),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "K4",
        "Beside the representation, the teacher's output is better than the true labels.",
        "this lesson",
        more("rep 5", "rep 5, hard labels"),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "K5",
        "A teacher stopped by validation is better than its last epoch.",
        "this lesson",
        more("rep 5", LAST),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "S1",
        "Label smoothing, a teacher that knows nothing, raises accuracy under PGD.",
        "this lesson",
        more("label smoothing", "AT", "PGD accuracy"),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "S2",
        "It lowers what the ensemble of attacks leaves.",
        "this lesson",
        more("AT", "label smoothing"),
        margin=0.0,
        reason="lower at all",
        unit="share",
    ),
    Claim(
        "F1",
        "The student's representation moves less under attack than with adversarial training.",
        "this lesson",
        more("AT", "rep 5", "feature shift"),
        margin=0.02,
        reason="two hundredths of the representation's length: 6 % of what the pilot measured",
        unit="of the length",
    ),
    Claim(
        "F2",
        "The student adopts its teacher's representation; with output only it does not.",
        "this lesson",
        more("rep 5", "output", "cosine to teacher"),
        margin=0.3,
        reason="well above what two independent runs share (a quarter in the pilot)",
        unit="cosine",
    ),
    Claim(
        "W1",
        "A step of training needs one forward pass more than adversarial training, the teacher's.",
        "this lesson",
        extra_passes,
        margin=0.0,
        reason="passes are counted",
        kind="exact",
        unit="passes",
    ),
)

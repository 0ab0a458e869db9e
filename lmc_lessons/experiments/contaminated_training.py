"""Contaminated training: what does an autoencoder do with anomalies that nobody has marked?

The unit of repetition is a seed: it decides which images are trained on and who hides among them,
initial values, and the order of the data. Every way to train meets the same three pairs of a normal
and an anomalous class; an effect is the mean over pairs, one number per seed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmc_lessons.datasets import Dataset
from lmc_lessons.detection.autoencoders import Reconstruction
from lmc_lessons.detection.contamination import Draw, Task, anomalies_at, draw_task
from lmc_lessons.detection.refinement import (
    Adversarial,
    Drop,
    Fixed,
    Keep,
    OwnData,
    Trim,
    Weigh,
    Weighted,
    candidates,
    container,
    either,
    latent_likelihood,
    numbered,
    own_codes,
    own_errors,
    refined_weights,
    with_discriminator,
)
from lmc_lessons.evaluation import auroc
from lmc_lessons.experiments.runs import Stages, finish, load_cut, one_thread, train_stages
from lmc_lessons.models import ModelConfig, Params
from lmc_lessons.results import Claim, Effect, Result, Series, farthest, gap
from lmc_lessons.training import Loss, TrainConfig, train

LESSON = "contaminated-training"
Kind = Literal["plain", "trim", "random", "known", "slow", "narrow", "adversarial", "itsr"]


class Way(NamedTuple):
    """A way to train, and on what.

    Attributes:
        kind: ``plain``; ``trim`` and its control ``random``; ``known``: the hidden anomalies are
            left out; ``slow``: plain with the recipe of the adversarial ones; ``narrow``: with
            their code as well; ``adversarial``; ``itsr``.
        rate: Share of the training data that are anomalies.
        share: Share of a batch that is left out.
    """

    kind: Kind = "plain"
    rate: float = 0.05
    share: float = 0.0


WAYS: dict[str, Way] = {
    "clean": Way(rate=0.0),
    "AE 1": Way(rate=0.01),
    "AE": Way(),
    "AE 10": Way(rate=0.1),
    "trim clean": Way("trim", 0.0, 0.08),
    "trim": Way("trim", 0.05, 0.08),
    "trim 10": Way("trim", 0.1, 0.08),
    "trim 4": Way("trim", 0.05, 0.04),
    "trim 16": Way("trim", 0.05, 0.16),
    "random": Way("random", 0.05, 0.08),
    "known": Way("known"),
    "slow": Way("slow"),
    "narrow": Way("narrow"),
    "AAE clean": Way("adversarial", 0.0),
    "AAE": Way("adversarial"),
    "ITSR": Way("itsr"),
}
NARROW: tuple[Kind, ...] = ("narrow", "adversarial", "itsr")
ALIKE: tuple[Kind, ...] = ("slow", *NARROW)  # one recipe, and looked at in the end only
LAST = "last"  # in claims: the last epoch, or search, whichever it is
STOP = 20  # the epoch at which training is stopped early, and trimming begins
SPLITS = ("observed", "unobserved")
GROUPS = ("normal", *SPLITS)
SOURCES = ("held-out", "training")  # where thresholds come from
RULES = ("error", "likelihood", "either", "either, halved")
PERCENTILES = (0.8, 0.85, 0.9, 0.95)
NUS = (0.01, 0.02, 0.05)
BINS = tuple(round(-4 + 0.125 * k, 3) for k in range(28))  # left edges, log10 of the error


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        preset: Name of the preset.
        seeds: Repetitions of every way.
        dataset: Name for ``datasets.load``.
        pairs: Normal and anomalous class of each task, such as ``0/2``.
        draw: How many images are drawn, and how they are changed.
        ways: Names from ``WAYS``.
        model: The autoencoder.
        train: How it is trained.
        epochs: Epochs at which networks are looked at; those beyond the last are left out.
        latent: Units of the code of ``narrow``, adversarial and refined networks.
        adversarial: How these and ``slow`` are trained; the epochs are those of the whole.
        balance: Weight of the adversarial term.
        first: Epochs before the first search for suspects.
        rounds: Searches for suspects.
        between: Epochs after each.
        nu: Share of outliers that each search asks for.
        against: Weight of the worst suspects in the last training.
        ceiling: Error above which they are pushed no more.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    dataset: str = "digits"
    pairs: tuple[str, ...] = ("0/2", "0/6", "3/8")
    draw: Draw = field(default_factory=Draw)
    ways: tuple[str, ...] = tuple(WAYS)
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig("autoencoder", (1, 8, 8), width=96, depth=2, latent=16)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=200, batch_size=64, learning_rate=2e-3)
    )
    epochs: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    latent: int = 2
    adversarial: TrainConfig = field(
        default_factory=lambda: TrainConfig(epochs=200, batch_size=64, learning_rate=1e-3)
    )
    balance: float = 0.02
    first: int = 80
    rounds: int = 5
    between: int = 12
    nu: float = 0.02
    against: float = -0.1
    ceiling: float = 0.2

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers >= 0, got {self.seeds}")
        if unknown := [name for name in self.ways if name not in WAYS]:
            raise ValueError(f"no way {unknown[0]!r}, allowed: {', '.join(WAYS)}")
        if not self.ways or len(set(self.ways)) != len(self.ways):
            raise ValueError(f"ways must be different, at least one, got {self.ways}")
        if not self.pairs or len(set(self.pairs)) != len(self.pairs):
            raise ValueError(f"pairs must be different, at least one, got {self.pairs}")
        for pair in self.pairs:
            classes_of(pair)
        for name in self.ways:
            anomalies_at(WAYS[name].rate, self.draw.samples)
        if self.model.architecture != "autoencoder" or self.latent < 1:
            raise ValueError(
                "the model must be an autoencoder with latent at least 1, got "
                f"{self.model.architecture} and {self.latent}"
            )
        if min((self.train.epochs, *self.epochs)) < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}, {self.train.epochs}")
        if min(self.first, self.rounds, self.between) < 1 or self.last < 1:
            raise ValueError(
                "first, rounds and between must be at least 1 and leave epochs of the "
                f"{self.adversarial.epochs}, got {self.first}, {self.rounds}, {self.between}"
            )
        if self.balance < 0 or not self.ceiling > 0 or self.against > 0 or not 0 < self.nu <= 1:
            raise ValueError(
                "balance must be >= 0, ceiling > 0, against <= 0 and nu in (0, 1], got "
                f"{self.balance}, {self.ceiling}, {self.against}, {self.nu}"
            )

    @property
    def last(self) -> int:
        """Epochs of the last training of a refined network."""
        return self.adversarial.epochs - self.first - self.rounds * self.between

    @property
    def looked_at(self) -> list[int]:
        """Epochs at which networks are looked at, the last among them."""
        return sorted({e for e in self.epochs if e < self.train.epochs} | {self.train.epochs})

    @property
    def coded(self) -> ModelConfig:
        """The architecture with the narrow code."""
        return dataclasses.replace(self.model, latent=self.latent)

    def model_of(self, name: str) -> ModelConfig:
        """The architecture of a way to train."""
        return self.coded if WAYS[name].kind in NARROW else self.model

    def among(self, *kinds: Kind, hidden: bool = False) -> list[str]:
        """The ways of these kinds (all, if none is named) that are run.

        Args:
            kinds: Which kinds.
            hidden: Whether to leave out those without hidden anomalies.
        """
        chosen = [name for name in self.ways if not kinds or WAYS[name].kind in kinds]
        return [name for name in chosen if WAYS[name].rate or not hidden]


def classes_of(pair: str) -> tuple[int, int]:
    """The normal and the anomalous class of a pair.

    Args:
        pair: Such as ``0/2``.

    Returns:
        Two class numbers.

    Raises:
        ValueError: If it is not two different class numbers with a slash between them.
    """
    normal, slash, anomaly = pair.partition("/")
    if not (slash and normal.isdigit() and anomaly.isdigit() and normal != anomaly):
        raise ValueError(f"a pair is written like 0/2, normal class first, got {pair!r}")
    return int(normal), int(anomaly)


_MNIST = Config(
    preset="full-mnist-itsr",
    seeds=(0, 1, 2),
    dataset="mnist",
    pairs=("0/2",),
    draw=Draw(samples=1000, held_out=1000, tests=900, shift=0, jitter=0.0),
    ways=("AE", "trim", "known", "slow", "narrow", "AAE clean", "AAE", "ITSR"),
    model=ModelConfig("autoencoder", (1, 28, 28), width=128, depth=2, latent=32),
    train=TrainConfig(epochs=300, batch_size=64, learning_rate=2e-3),
    epochs=(1, 2, 5, 10, 20, 50, 100, 200),
    adversarial=TrainConfig(epochs=150, batch_size=64, learning_rate=1e-3),
    first=60,
    rounds=5,
    between=8,
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        pairs=("0/2",),
        ways=("AE", "trim", "AAE", "ITSR"),
        adversarial=TrainConfig(epochs=60, batch_size=64, learning_rate=1e-3),
        first=20,
        rounds=2,
        between=10,
    ),
    "study": Config(),
    "full-mnist-itsr": _MNIST,
    "paper": dataclasses.replace(
        _MNIST,
        preset="paper",
        seeds=(0, 1, 2, 3, 4),
        draw=dataclasses.replace(_MNIST.draw, samples=4400),
        model=dataclasses.replace(_MNIST.model, width=1000),
        train=TrainConfig(epochs=4000, batch_size=100, learning_rate=1e-3, fast=True),
        epochs=(1, 5, 20, 100, 500, 1000, 2000, 4000),
        adversarial=TrainConfig(epochs=2500, batch_size=100, learning_rate=1e-3, fast=True),
        first=500,
        rounds=10,
        between=100,
    ),
}


@dataclass(frozen=True)
class Setting:
    """What training and measurements need.

    Attributes:
        config: What to run.
        data: Images of all classes.
        device: Where to run.
    """

    config: Config
    data: Dataset
    device: str

    def tasks(self, pair: str, rate: float) -> list[Task]:
        """The task of every seed."""
        classes = classes_of(pair)
        return [
            draw_task(self.data, *classes, rate, seed, self.config.draw)
            for seed in self.config.seeds
        ]

    def stacked(self, tasks: Sequence[Task], part: str) -> Tensor:
        """One part of all tasks, shape (S, N, ...), on the device."""
        return torch.stack([getattr(task, part) for task in tasks]).to(self.device)


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
        Series over ways, pairs and epochs, and the verdict of every claim.

    Raises:
        ValueError: If the data set is not there, does not fit the model, or lacks a class.

    Taught in: book/detection/contaminated-training
    """
    data = load_cut(config.dataset, config.model, root=root)
    setting = Setting(config, data, device)
    for name in config.ways:  # bad input ends it here
        for pair in config.pairs:
            setting.tasks(pair, WAYS[name].rate)
    stages = Stages(folder, config, progress=progress)
    with one_thread():
        series = measure_all(setting, stages)
    return finish(
        LESSON,
        config,
        stages=stages,
        metrics={},
        series=series,
        claims=CLAIMS,
        datasets=[data],
        device=device,
    )


# Training ---------------------------------------------------------------------------------------


def trained(setting: Setting, stages: Stages, name: str, pair: str) -> dict[int, Params]:
    """Train one way on one pair, all seeds at once.

    Args:
        setting: What to run on.
        stages: The run's stages.
        name: Name from ``WAYS``, not of a refined network.
        pair: The classes.

    Returns:
        Epoch to parameters of shape (S, ...).
    """
    config, way = setting.config, WAYS[name]
    x = setting.stacked(setting.tasks(pair, way.rate), "train")
    stage = f"{name} {pair.replace('/', '-')}"
    if way.kind == "adversarial":
        loss = Adversarial(config.coded, config.balance)
        start = with_discriminator(config.coded, config.seeds)
        found = continued(setting, stages, stage, x, loss, start, config.adversarial.epochs)
        return {config.adversarial.epochs: found}
    alike = way.kind in ALIKE
    return train_stages(
        stages,
        stage,
        config.model_of(name),
        numbered(config.dataset, x[0].cpu()),
        config.seeds,
        config.adversarial if alike else config.train,
        loss=OwnData(loss_of(setting, way), config.seeds, x),
        snapshots=() if alike else config.looked_at,
        device=setting.device,
    )


def loss_of(setting: Setting, way: Way) -> Loss:
    """The loss of a way to train that needs no discriminator."""
    config = setting.config
    batch = min(config.train.batch_size, config.draw.samples)
    start = STOP * (config.draw.samples // batch)
    weigh: dict[Kind, Weigh] = {"trim": Trim(way.share, start), "random": Drop(way.share, start)}
    if way.kind == "known":
        kept = torch.ones(len(config.seeds), config.draw.samples)
        kept[:, config.draw.samples - anomalies_at(way.rate, config.draw.samples) :] = 0
        return Weighted(Fixed(config.seeds, kept))
    return Weighted(weigh[way.kind]) if way.kind in weigh else Reconstruction("mean")


def continued(
    setting: Setting,
    stages: Stages,
    stage: str,
    x: Tensor,
    loss: Loss,
    start: Params,
    epochs: int,
) -> Params:
    """Train adversarial autoencoders from given parameters, as a stage.

    Args:
        setting: What to run on.
        stages: The run's stages.
        stage: Name of the stage, unique in the run.
        x: Training inputs, shape (S, N, ...).
        loss: The loss.
        start: Parameters of shape (S, ...), discriminators among them.
        epochs: How long.

    Returns:
        Parameters of shape (S, ...), on the device.
    """
    config = setting.config
    recipe = dataclasses.replace(config.adversarial, epochs=epochs)
    label = f"train-{stage.replace(' ', '-')}"

    def compute(checkpoint: Path | None) -> Params:
        return train(
            container(config.coded),
            numbered(config.dataset, x[0].cpu()),
            config.seeds,
            recipe,
            loss=OwnData(loss, config.seeds, x),
            start=start,
            device=setting.device,
            progress=label if stages.progress else "",
            checkpoint=checkpoint,
        ).params

    found = stages.tensors(label, compute)
    return {name: found[name].to(setting.device) for name in start}


def refined(
    setting: Setting, stages: Stages, name: str, pair: str
) -> tuple[Params, list[Tensor], Params]:
    """Iterative training set refinement on one pair, all seeds at once.

    Train; again and again look for outliers among the codes, add them to the suspects and train
    without them; at last train against the worst of them. Each training starts from the last one's
    parameters, with a fresh optimiser.

    Args:
        setting: What to run on.
        stages: The run's stages.
        name: Name of a refined way.
        pair: The classes.

    Returns:
        Parameters (S, ...); who was suspected after each search, bool, (S, N); and the parameters
        before the first search.
    """
    config, stage = setting.config, f"{name} {pair.replace('/', '-')}"
    x = setting.stacked(setting.tasks(pair, WAYS[name].rate), "train")

    def go_on(phase: int, weigh: Weigh, start: Params, epochs: int) -> Params:
        loss = Adversarial(config.coded, config.balance, weigh, ceiling=config.ceiling, phase=phase)
        return continued(setting, stages, f"{stage} {phase}", x, loss, start, epochs)

    params = go_on(0, Keep(), with_discriminator(config.coded, config.seeds), config.first)
    before, suspects = params, torch.zeros(x.shape[:2], dtype=torch.bool)
    history = []
    for search in range(1, config.rounds + 1):
        codes = own_codes(config.coded, params, x).cpu()
        suspects = suspects | torch.stack([candidates(c, config.nu) for c in codes])
        history.append(suspects)
        weights = Fixed(config.seeds, (~suspects).float())
        params = go_on(search, weights, params, config.between)
    errors = own_errors(config.coded, params, x).cpu()
    pairs = zip(suspects, errors, strict=True)
    final = torch.stack([refined_weights(s, e, config.against) for s, e in pairs])
    params = go_on(config.rounds + 1, Fixed(config.seeds, final), params, config.last)
    return params, history, before


# Measurements -----------------------------------------------------------------------------------


def measure_all(setting: Setting, stages: Stages) -> dict[str, Series]:
    """Train and measure every way on every pair.

    Args:
        setting: What to run on.
        stages: The run's stages.

    Returns:
        Name to series.
    """
    config = setting.config
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for pair in config.pairs:
        for name in config.ways:
            label = f"measure-{name.replace(' ', '-')}-{pair.replace('/', '-')}"
            extra: Any = None
            if WAYS[name].kind == "itsr":
                params, *extra = refined(setting, stages, name, pair)
                epochs = {config.adversarial.epochs: params}
            else:
                epochs = trained(setting, stages, name, pair)
            cells[name, pair] = stages.numbers(
                label, functools.partial(measured, setting, name, pair, epochs, extra)
            )
    return collected(config, cells)


def measured(
    setting: Setting, name: str, pair: str, epochs: dict[int, Params], extra: Any
) -> dict[str, Any]:
    """Everything that is measured of one way on one pair, a list with an entry per seed each."""
    config, way = setting.config, WAYS[name]
    model = config.model_of(name)
    tasks = setting.tasks(pair, way.rate)
    inputs = {p: setting.stacked(tasks, p) for p in ("train", "held_out", *GROUPS)}
    errors = {
        epoch: {part: own_errors(model, params, x).cpu() for part, x in inputs.items()}
        for epoch, params in epochs.items()
    }
    end = max(epochs)
    likely = {
        part: latent_likelihood(own_codes(model, epochs[end], x)).cpu()
        for part, x in inputs.items()
    }
    found: dict[str, Any] = {
        "detection": per_epoch(errors, detection),
        "log error": torch.stack([errors[end][g].mean(1).log() for g in GROUPS], 1).tolist(),
        "by likelihood": detection({part: -values for part, values in likely.items()}),
        "rules": flagged(errors[end], likely),
        "percentiles": percentiles(errors[end], likely),
    }
    marks = tasks[0].hidden  # the same places for every seed
    if way.rate:
        found["hidden"] = per_epoch(errors, lambda e: [auroc(row, marks) for row in e["train"]])
    if name == "AE":
        found["histogram"] = per_epoch(
            errors, lambda e: [[shares(row[~marks]), shares(row[marks])] for row in e["train"]]
        )
    if extra is not None:
        history, before = extra
        found["suspects"] = counts(history, marks)
        codes = own_codes(model, before, inputs["train"]).cpu()
        by_nu = [torch.stack([candidates(c, nu) for c in codes]) for nu in NUS]
        found["nu"] = counts(by_nu, marks)
    return found


def per_epoch(errors: dict[int, dict[str, Tensor]], measure: Any) -> list[Any]:
    """A measurement at every epoch, seeds first."""
    return [list(column) for column in zip(*(measure(e) for e in errors.values()), strict=True)]


def detection(scores: dict[str, Tensor]) -> list[list[float]]:
    """AUROC of test anomalies against normal test data, per seed and split."""
    found = []
    for s in range(len(scores["normal"])):
        row = []
        for split in SPLITS:
            values = torch.cat([scores["normal"][s], scores[split][s]])
            row.append(auroc(values, torch.arange(len(values)) >= scores["normal"].shape[1]))
        found.append(row)
    return found


def flagged(errors: dict[str, Tensor], likely: dict[str, Tensor]) -> list[Any]:
    """Shares that each rule flags: seed, source of thresholds, rule, group."""
    found = []
    for source in ("held_out", "train"):
        rows = []
        for rule in RULES:
            tail = 0.05 if rule == "either, halved" else 0.1
            high, low = errors[source].quantile(1 - tail, 1), likely[source].quantile(tail, 1)
            bad = {g: errors[g] > high.unsqueeze(1) for g in GROUPS}
            odd = {g: likely[g] < low.unsqueeze(1) for g in GROUPS}
            flags = {"error": bad, "likelihood": odd}
            joined = {g: either(errors[g], likely[g], high, low) for g in GROUPS}
            chosen = flags.get(rule, joined)
            rows.append(torch.stack([chosen[g].double().mean(1) for g in GROUPS], 1))
        found.append(torch.stack(rows, 1))
    return list(torch.stack(found, 1).tolist())


def percentiles(errors: dict[str, Tensor], likely: dict[str, Tensor]) -> list[Any]:
    """Shares that the OR rule flags at several percentiles: seed, percentile, group."""
    found = []
    for q in PERCENTILES:
        high, low = errors["held_out"].quantile(q, 1), likely["held_out"].quantile(1 - q, 1)
        flags = [either(errors[g], likely[g], high, low) for g in GROUPS]
        found.append(torch.stack([f.double().mean(1) for f in flags], 1))
    return list(torch.stack(found, 1).tolist())


def shares(errors: Tensor) -> list[float]:
    """Share of errors in each bin; the outer bins take what lies beyond."""
    edges = torch.tensor(BINS[1:], dtype=torch.float64)
    places = torch.bucketize(errors.double().log10(), edges)
    return list((torch.bincount(places, minlength=len(BINS)) / len(errors)).tolist())


def counts(many: Sequence[Tensor], hidden: Tensor) -> list[Any]:
    """How many are suspected, and how many of them rightly: seed, search, number."""
    rows = [torch.stack([m.sum(1), (m & hidden).sum(1)], 1) for m in many]
    return list(torch.stack(rows, 1).tolist())


def collected(config: Config, cells: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Series]:
    """Series out of what was measured of each way on each pair."""
    followed = [name for name in config.ways if WAYS[name].kind not in ALIKE]
    for cell in cells.values():
        cell["final"] = [seed[-1] for seed in cell["detection"]]
        if "hidden" in cell:
            cell["final hidden"] = [seed[-1:] for seed in cell["hidden"]]
    by_epoch, groups, numbers = {"epoch": config.looked_at}, {"group": [*GROUPS]}, ["all", "hidden"]
    splits = {"split": [*SPLITS]}
    thresholds = {"source": [*SOURCES], "rule": [*RULES]}
    searches = [*range(1, config.rounds + 1)]
    refined, everyone = config.among("itsr"), [*config.ways]
    plans: dict[str, tuple[str, list[str], dict[str, list[Any]]]] = {
        "dynamics": ("hidden", [name for name in followed if WAYS[name].rate], by_epoch),
        "detection": ("detection", followed, by_epoch | splits),
        "final": ("final", everyone, splits),
        "final hidden": ("final hidden", config.among(hidden=True), {"epoch": [LAST]}),
        "log error": ("log error", everyone, groups),
        "rules": ("rules", everyone, thresholds | groups),
        "by likelihood": ("by likelihood", config.among(*NARROW), splits),
        "percentiles": (
            "percentiles",
            config.among("adversarial", "itsr"),
            {"percentile": [*PERCENTILES]} | groups,
        ),
        "histogram": (
            "histogram",
            [name for name in ("AE",) if name in config.ways],
            by_epoch | {"kind": ["normal", "hidden"], "bin": [*BINS]},
        ),
        "suspects": ("suspects", refined, {"search": searches, "number": numbers}),
        "nu": ("nu", refined, {"nu": [*NUS], "number": numbers}),
    }
    return {
        name: _series(config, cells, key, ways, axes)
        for name, (key, ways, axes) in plans.items()
        if ways
    }


def _series(
    config: Config,
    cells: Any,
    key: str,
    ways: list[str],
    axes: dict[str, list[Any]],
) -> Series:
    """One series: seeds, then ways, pairs and the axes of the measurement."""
    values = [
        [[cells[way, pair][key][s] for pair in config.pairs] for way in ways]
        for s in range(len(config.seeds))
    ]
    return Series({"way": ways, "pair": list(config.pairs), **axes}, values)


# Claims -----------------------------------------------------------------------------------------


def mean_of(name: str, **where: Any) -> Effect:
    """Mean over pairs of an entry of a series.

    Args:
        name: The series.
        where: One tick per axis but ``pair``.

    Returns:
        A function of a result, one number per seed; it raises ``KeyError`` where the run did not
        measure it.
    """

    def effect(result: Result) -> list[float]:
        series = result.series[name]
        values = np.asarray(series.values, dtype=float)
        for axis, ticks in reversed(list(enumerate(series.axes.items(), 1))):
            named, entries = ticks
            if named == "pair":
                continue
            tick = where[named]
            if tick != LAST and tick not in entries:
                raise KeyError(f"{name}: {named} {tick}")
            values = values.take(-1 if tick == LAST else entries.index(tick), axis)
        return [float(v) for v in values.reshape(len(values), -1).mean(1)]

    return effect


def hidden(way: str, epoch: Any = LAST) -> Effect:
    """AUROC of hidden anomalies against the normal training data, by error."""
    return mean_of("dynamics", way=way, epoch=epoch)


def seen(way: str, split: str = "observed") -> Effect:
    """AUROC of test anomalies against normal test data, by error, of the trained network."""
    return mean_of("final", way=way, split=split)


def balanced(way: str, rule: str, split: str = "observed", source: str = "held-out") -> Effect:
    """Balanced accuracy of a rule."""
    return from_flags("rules", split, way=way, rule=rule, source=source)


def from_flags(name: str, split: str, **where: Any) -> Effect:
    """Balanced accuracy out of the shares of a split and of normal data that are flagged."""
    caught = mean_of(name, group=split, **where)
    alarms = mean_of(name, group="normal", **where)
    return lambda result: [
        (c + 1 - a) / 2 for c, a in zip(caught(result), alarms(result), strict=True)
    ]


def best(*effects: Effect) -> Effect:
    """The largest of several effects, seed by seed."""
    return lambda result: [max(many) for many in zip(*(e(result) for e in effects), strict=True)]


def at_percentile(way: str, percentile: float) -> Effect:
    """Balanced accuracy of the OR rule for observed anomalies at a percentile."""
    return from_flags("percentiles", "observed", way=way, percentile=percentile)


def precision(series: str, **where: Any) -> Effect:
    """Share of the suspects that are hidden anomalies, over all pairs."""
    right = mean_of(series, way="ITSR", number="hidden", **where)
    every = mean_of(series, way="ITSR", number="all", **where)
    return lambda result: [
        r / e if e else 0.0 for r, e in zip(right(result), every(result), strict=True)
    ]


def rate_of(way: str) -> Effect:
    """The share of hidden anomalies in the training data, once per seed."""
    return lambda result: [WAYS[way].rate] * len(result.seeds)


def larger_error(more: str, less: str, group: str) -> Effect:
    """Log ratio of the mean errors of two networks on a group of test data."""
    return gap(
        mean_of("log error", way=more, group=group), mean_of("log error", way=less, group=group)
    )


PAPER = "beggel2019robust (known from a summary)"
SHOWN = "a tenth of AUROC would change which detector one uses"
SMALL = "twice the differences between seeds in the pilot"
HELD = "well above the sampling error of a share among 200 test images"
CLAIMS = (
    Claim(
        "C1a",
        "At 5 % contamination, the AUROC of hidden anomalies first rises: epoch 20 against 1.",
        PAPER,
        gap(hidden("AE", STOP), hidden("AE", 1)),
        margin=0.1,
        reason=SHOWN,
        unit="AUROC",
    ),
    Claim(
        "C1b",
        "Then it falls: epoch 20 against the last.",
        PAPER,
        gap(hidden("AE", STOP), hidden("AE")),
        margin=0.1,
        reason=SHOWN,
        unit="AUROC",
    ),
    Claim(
        "C1c",
        "It falls more than the AUROC of new anomalies of the same class does.",
        "asked here",
        gap(
            gap(hidden("AE", STOP), hidden("AE")),
            gap(
                mean_of("detection", way="AE", epoch=STOP, split="observed"),
                mean_of("detection", way="AE", epoch=LAST, split="observed"),
            ),
        ),
        margin=0.1,
        reason=SHOWN,
        unit="AUROC",
    ),
    Claim(
        "C1d",
        "Without training on them it does not fall: hidden anomalies left out, epoch 20 and last.",
        "control, asked here",
        gap(hidden("known", STOP), hidden("known")),
        margin=0.05,
        reason="half of what C1b asks for",
        kind="equal",
        unit="AUROC",
    ),
    Claim(
        "C2",
        "New anomalies of the contaminating class are found worse at 10 % than at 1 %.",
        PAPER,
        gap(seen("AE 1"), seen("AE 10")),
        margin=0.02,
        reason=SMALL,
        unit="AUROC",
    ),
    Claim(
        "C3a",
        "On clean data, the OR rule of an adversarial autoencoder beats each criterion alone.",
        PAPER,
        gap(
            balanced("AAE clean", "either"),
            best(balanced("AAE clean", "error"), balanced("AAE clean", "likelihood")),
        ),
        margin=0.03,
        reason="about half of the gain that the summary reports",
        unit="balanced accuracy",
    ),
    Claim(
        "C3b",
        "Likewise with 5 % in each tail instead of 10 %, so that alarms are no more frequent.",
        "control, asked here",
        gap(
            balanced("AAE clean", "either, halved"),
            best(balanced("AAE clean", "error"), balanced("AAE clean", "likelihood")),
        ),
        margin=0.01,
        reason="better by more than two of 200 images",
        unit="balanced accuracy",
    ),
    Claim(
        "C4a",
        "AAE (OR rule) beats a wide autoencoder (error), thresholds from the training set.",
        PAPER,
        gap(
            balanced("AAE", "either", source="training"),
            balanced("AE", "error", source="training"),
        ),
        margin=0.05,
        reason=HELD,
        unit="balanced accuracy",
    ),
    Claim(
        "C4b",
        "Likewise with thresholds from held-out normal data.",
        "control, asked here",
        gap(balanced("AAE", "either"), balanced("AE", "error")),
        margin=0.05,
        reason=HELD,
        unit="balanced accuracy",
    ),
    Claim(
        "C4c",
        "The narrow code alone, without a prior, has the gain of C4a.",
        "control, asked here",
        gap(
            balanced("narrow", "error", source="training"),
            balanced("AE", "error", source="training"),
        ),
        margin=0.05,
        reason=HELD,
        unit="balanced accuracy",
    ),
    Claim(
        "C4d",
        "The prior adds to the narrow code: new anomalies by error, AAE against narrow.",
        "control, asked here",
        gap(seen("AAE"), seen("narrow")),
        margin=0.02,
        reason=SMALL,
        unit="AUROC",
    ),
    Claim(
        "C4e",
        "ITSR beats an AAE trained as long (OR rule, held-out thresholds).",
        PAPER,
        gap(balanced("ITSR", "either"), balanced("AAE", "either")),
        margin=0.02,
        reason="four of 200 images",
        unit="balanced accuracy",
    ),
    Claim(
        "C4f",
        "So has the recipe alone: a wide autoencoder that learns at the rate of the others.",
        "control, asked here",
        gap(
            balanced("slow", "error", source="training"),
            balanced("AE", "error", source="training"),
        ),
        margin=0.05,
        reason=HELD,
        unit="balanced accuracy",
    ),
    Claim(
        "C4g",
        "With one recipe for both, the narrow code has such a gain over the wide one.",
        "control, asked here",
        gap(
            balanced("narrow", "error", source="training"),
            balanced("slow", "error", source="training"),
        ),
        margin=0.05,
        reason=HELD,
        unit="balanced accuracy",
    ),
    Claim(
        "C5",
        "On anomalies of unobserved classes ITSR is at most 2 points below the AAE.",
        PAPER,
        gap(
            balanced("ITSR", "either", "unobserved"),
            balanced("AAE", "either", "unobserved"),
        ),
        margin=-0.02,
        reason="four of 200 images",
        unit="balanced accuracy",
    ),
    Claim(
        "C6a",
        "ITSR raises the error of new anomalies of the contaminating class, over the AAE.",
        PAPER,
        larger_error("ITSR", "AAE", "observed"),
        margin=round(math.log(1.1), 3),
        reason="ten per cent",
        unit="log ratio",
    ),
    Claim(
        "C6b",
        "It leaves the error of normal test data as it is.",
        PAPER,
        larger_error("ITSR", "AAE", "normal"),
        margin=round(math.log(1.1), 3),
        reason="as C6a",
        kind="equal",
        unit="log ratio",
    ),
    Claim(
        "C6c",
        "Trimming raises the error of new anomalies, over the wide autoencoder.",
        "asked here",
        larger_error("trim", "AE", "observed"),
        margin=round(math.log(1.1), 3),
        reason="as C6a",
        unit="log ratio",
    ),
    Claim(
        "C6d",
        "It leaves the error of normal test data as it is.",
        "asked here",
        larger_error("trim", "AE", "normal"),
        margin=round(math.log(1.1), 3),
        reason="as C6a",
        kind="equal",
        unit="log ratio",
    ),
    Claim(
        "C7a",
        "The percentile matters little: ITSR with the OR rule at 80, 85, 95 against 90.",
        PAPER,
        farthest(
            *(gap(at_percentile("ITSR", q), at_percentile("ITSR", 0.9)) for q in (0.8, 0.85, 0.95))
        ),
        margin=0.05,
        reason=HELD,
        kind="equal",
        unit="balanced accuracy",
    ),
    Claim(
        "C7b",
        "The share that the search asks for matters little: precision at nu 0.01, 0.05 and 0.02.",
        PAPER,
        farthest(*(gap(precision("nu", nu=nu), precision("nu", nu=0.02)) for nu in (0.01, 0.05))),
        margin=0.05,
        reason="the share of hidden anomalies itself",
        kind="equal",
        unit="precision",
    ),
    Claim(
        "C7c",
        "Suspects are hidden anomalies more often than training samples are.",
        PAPER,
        gap(precision("suspects", search=LAST), rate_of("ITSR")),
        margin=0.05,
        reason="twice the base rate of 5 %",
        unit="precision",
    ),
    Claim(
        "D1",
        "Thresholds from the training set cost the wide autoencoder balanced accuracy.",
        "asked here",
        gap(balanced("AE", "error"), balanced("AE", "error", source="training")),
        margin=0.05,
        reason=HELD,
        unit="balanced accuracy",
    ),
    Claim(
        "T1",
        "Trimming keeps hidden anomalies apart to the end, over the wide autoencoder.",
        "asked here",
        gap(hidden("trim"), hidden("AE")),
        margin=0.1,
        reason=SHOWN,
        unit="AUROC",
    ),
    Claim(
        "T2",
        "Trimming finds new anomalies of the contaminating class better.",
        "asked here",
        gap(seen("trim"), seen("AE")),
        margin=0.02,
        reason=SMALL,
        unit="AUROC",
    ),
    Claim(
        "T3",
        "Leaving out as many at random does nothing: hidden anomalies, against the autoencoder.",
        "control, asked here",
        gap(hidden("random"), hidden("AE")),
        margin=0.05,
        reason="half of what T1 asks for",
        kind="equal",
        unit="AUROC",
    ),
    Claim(
        "T4",
        "Trimming is above the autoencoder stopped at epoch 20 (new anomalies).",
        "control, asked here",
        gap(seen("trim"), mean_of("detection", way="AE", epoch=STOP, split="observed")),
        margin=0.0,
        reason="better at all",
        unit="AUROC",
    ),
    Claim(
        "T5",
        "On unobserved classes trimming changes nothing.",
        "asked here",
        gap(seen("trim", "unobserved"), seen("AE", "unobserved")),
        margin=0.02,
        reason=SMALL,
        kind="equal",
        unit="AUROC",
    ),
    Claim(
        "T6",
        "On clean data trimming costs nothing.",
        "asked here",
        gap(seen("trim clean"), seen("clean")),
        margin=0.02,
        reason=SMALL,
        kind="equal",
        unit="AUROC",
    ),
    Claim(
        "T7",
        "The share need not be known: trimming 4 % or 16 % instead of 8 % changes nothing.",
        "asked here",
        farthest(gap(seen("trim 4"), seen("trim")), gap(seen("trim 16"), seen("trim"))),
        margin=0.02,
        reason=SMALL,
        kind="equal",
        unit="AUROC",
    ),
    Claim(
        "T8",
        "With more anomalies than are trimmed (10 % against 8 %) it still helps.",
        "asked here",
        gap(seen("trim 10"), seen("AE 10")),
        margin=0.02,
        reason=SMALL,
        unit="AUROC",
    ),
    Claim(
        "T9",
        "Trimming is as good as knowing whom to leave out.",
        "control, asked here",
        gap(seen("known"), seen("trim")),
        margin=0.02,
        reason=SMALL,
        kind="equal",
        unit="AUROC",
    ),
)

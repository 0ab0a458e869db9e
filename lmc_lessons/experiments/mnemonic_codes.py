"""Mnemonic codes: does one random input per class let a network forget the class, and what stays?

The unit of repetition is a network: seed s decides initial values, codes, the order of the data and
what is replaced by codes. Every network forgets each of a few classes, one at a time, by every
method; what a claim looks at is the mean over these classes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import score
from lmc_lessons.experiments.runs import Stages, finish, load_cut, one_thread, train_stages
from lmc_lessons.models import ModelConfig, Params, build, predict, unstack
from lmc_lessons.results import Claim, Effect, Result, Series, gap, measured
from lmc_lessons.training import TrainConfig
from lmc_lessons.unlearning.audit import (
    few_samples,
    logit_reading,
    membership_by_entropy,
    membership_by_loss,
    probe_recall,
    report,
)
from lmc_lessons.unlearning.baselines import (
    dampen,
    fisher_noise,
    importances,
    mask_logits,
    train_on,
    without,
)
from lmc_lessons.unlearning.mnemonic import (
    Forgetting,
    MnemonicTraining,
    check_forgotten,
    draw_codes,
    middle,
    search,
    sensitivity,
    silent,
    smallest,
)

LESSON = "mnemonic-codes"
Numbers = dict[str, Any]

BEST = ", best"  # settings chosen with test data, in favour of the method
METHODS = (
    *("original", "codes", "codes, smallest", "codes, best", "last layer", "last layer, best"),
    *("all but last", "all but last, best", "untrained codes", "untrained codes, best"),
    *("images", "images, best", "silent left", "silent left, best"),
    *("logit mask", "SSD", "SSD, best", "Fisher noise", "Fisher noise, no head"),
    *("fine-tuned", "retrained"),
)
AUDITED = (
    *("original", "codes", "codes, best", "last layer, best", "all but last, best"),
    *("logit mask", "SSD, best", "Fisher noise", "fine-tuned", "retrained"),
)
QUANTITIES = ("forget error", "retain accuracy", "train forget error", "train retain", "change")
AUDITS = ("probe", "reading", "membership", "entropy", "relearning")
GRID = ("codes", "last layer", "all but last", "untrained codes")
SEEN = ("forget error", "retain accuracy", "code score")
THRESHOLDS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)  # of SSD
STRENGTHS = (0.1, 0.3, 1.0)  # of SSD
FAR = 0.95  # forget error from which a class counts as forgotten
NEAR = 0.03  # loss of retain accuracy that a plateau allows


@dataclass(frozen=True)
class Arm:
    """One kind of network.

    Attributes:
        model: Architecture.
        train: How to train.
        share: Share of the samples that become codes.
    """

    model: ModelConfig
    train: TrainConfig
    share: float


_SGD = TrainConfig(epochs=60, batch_size=64, optimizer="sgd", weight_decay=5e-4)
_MLP = Arm(
    ModelConfig("mlp", width=256, depth=1, activation="sigmoid"),
    dataclasses.replace(_SGD, learning_rate=0.1),
    0.1,
)
_CNN = Arm(
    ModelConfig("cnn", width=16),
    dataclasses.replace(_SGD, learning_rate=0.02, schedule="cosine"),
    0.3,
)


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        preset: Name of the preset.
        seeds: Networks of every kind.
        dataset: Name for ``datasets.load``.
        samples: Training samples; None uses all.
        test: Test samples; None uses all.
        forget: Classes to forget, one at a time.
        arms: Kinds of networks, of MLP and CNN.
        mlp: The one kind.
        cnn: The other.
        steps: Values of the step that are tried.
        caps: Values of the cap that are tried, besides none.
        shown_cap: Cap of the first figure.
        amounts: What the mask takes from the logit in the first figure, one for each step; more are
            left out.
        fisher_with: Training samples for what needs data; None uses all.
        tuning: How to fine-tune.
        relearning: How to learn again; an epoch is one step.
        few: Samples of every class to learn from again.
        together: Networks trained in one program; 0 means all.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    dataset: str = "digits"
    samples: int | None = None
    test: int | None = None
    forget: tuple[int, ...] = (0, 3, 8)
    arms: tuple[str, ...] = ("MLP", "CNN")
    mlp: Arm = field(default_factory=lambda: _MLP)
    cnn: Arm = field(default_factory=lambda: _CNN)
    steps: tuple[float, ...] = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    caps: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    shown_cap: float = 1.0
    amounts: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 16.0, 20.0)
    fisher_with: int | None = None
    tuning: TrainConfig = field(
        default_factory=lambda: dataclasses.replace(_SGD, epochs=5, learning_rate=0.02)
    )
    relearning: TrainConfig = field(
        default_factory=lambda: dataclasses.replace(
            _SGD, epochs=30, batch_size=100, learning_rate=0.02, weight_decay=0.0
        )
    )
    few: int = 10
    together: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers >= 0, got {self.seeds}")
        if not self.arms or not set(self.arms) <= {"MLP", "CNN"}:
            raise ValueError(f"arms are {self.arms}, allowed: MLP, CNN")
        if len(set(self.arms)) != len(self.arms) or len(set(self.forget)) != len(self.forget):
            raise ValueError(f"arms and forget must not repeat, got {self.arms}, {self.forget}")
        for name in self.arms:
            arm = self.arm(name)
            MnemonicTraining(arm.share, arm.model.classes)
            for k in self.forget:
                check_forgotten((k,), arm.model.classes)
            if arm.train.epochs < 1:
                raise ValueError(f"train.epochs must be at least 1, got {arm.train.epochs}")
        if not self.forget:
            check_forgotten((), 2)
        self._check_numbers()

    def _check_numbers(self) -> None:
        for name in ("steps", "caps"):
            values = getattr(self, name)
            if not values or min(values) <= 0 or list(values) != sorted(set(values)):
                raise ValueError(f"{name} must increase, all above 0, got {values}")
        if len(self.amounts) < len(self.steps) or min(self.amounts) < 0:
            raise ValueError(
                f"amounts must be >= 0, at least as many as steps, got {len(self.amounts)} and "
                f"{len(self.steps)}"
            )
        for name in ("samples", "test", "fisher_with"):
            value = getattr(self, name)
            if value is not None and value < 2:
                raise ValueError(f"{name} must be at least 2, got {value}")
        lowest = {"few": 1, "together": 0}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.tuning.epochs < 1 or self.relearning.epochs < 1 or not self.shown_cap > 0:
            raise ValueError(
                "tuning.epochs and relearning.epochs must be at least 1 and shown_cap above 0, got "
                f"{self.tuning.epochs}, {self.relearning.epochs}, {self.shown_cap}"
            )

    def arm(self, name: str) -> Arm:
        """The kind of network of that name."""
        return self.mlp if name == "MLP" else self.cnn


_SHORT = dataclasses.replace(_SGD, epochs=10, schedule="cosine")
PRESETS: dict[str, Config] = {
    "toy": Config(preset="toy", seeds=(0,), forget=(0,), arms=("MLP",)),
    "study": Config(),
    "full-digits-large-rate": Config(  # added after the study: does its recipe decide?
        preset="full-digits-large-rate",
        arms=("CNN",),
        cnn=Arm(_CNN.model, dataclasses.replace(_SGD, learning_rate=0.1), 0.3),
    ),
    "full-mnist-mnemonic": Config(
        preset="full-mnist-mnemonic",
        dataset="mnist",
        seeds=(0, 1, 2),
        forget=(0,),
        samples=10_000,
        test=2000,
        arms=("MLP",),
        mlp=Arm(
            ModelConfig("mlp", (1, 28, 28), width=1000, depth=1, activation="sigmoid"),
            dataclasses.replace(_SHORT, batch_size=128, learning_rate=0.1),
            0.1,
        ),
        fisher_with=2000,
        tuning=dataclasses.replace(_SGD, epochs=2, batch_size=128, learning_rate=0.02),
    ),
    "full-cifar-mnemonic": Config(
        preset="full-cifar-mnemonic",
        dataset="cifar10",
        seeds=(0, 1, 2),
        forget=(0,),
        arms=("CNN",),
        cnn=Arm(
            ModelConfig("resnet", (3, 32, 32), width=1, depth=18, norm="batch"),
            TrainConfig(
                epochs=200,
                batch_size=128,
                optimizer="sgd",
                learning_rate=0.01,
                weight_decay=5e-4,
                schedule="cosine",
                augmentation="flip-crop",
                fast=True,
                precision="bfloat16",
                channels_last=True,
            ),
            0.3,
        ),
        test=2000,
        steps=(1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0),
        caps=(0.1, 1.0, 10.0, 100.0, 1e3, 1e4),
        fisher_with=2000,
        tuning=dataclasses.replace(_SGD, epochs=1, batch_size=128, learning_rate=0.02),
        together=1,
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
        Series over kinds of networks, methods and classes, and the verdict of every claim.

    Raises:
        ValueError: If the data set is not there, too small, or does not fit the model.

    Taught in: book/unlearning/mnemonic-codes
    """
    model = config.arm(config.arms[0]).model
    data = load_cut(config.dataset, model, samples=config.samples, test=config.test, root=root)
    stages = Stages(folder, config, progress=progress)
    found = []
    for name in config.arms:
        arm = config.arm(name)
        setting = Setting(config, name, data, build(arm.model).eval().to(device), device)
        with one_thread(not arm.train.fast):
            trained = train_all(setting, stages)
            found.append([measure_seed(setting, stages, trained, k) for k in seeds_of(config)])
    metrics, series = collect(config, found)
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


def seeds_of(config: Config) -> range:
    """Places of the seeds."""
    return range(len(config.seeds))


@dataclass(frozen=True)
class Setting:
    """What every measurement needs.

    Attributes:
        config: What to run.
        name: MLP or CNN.
        data: The data.
        model: Architecture, in eval mode, on the device.
        device: Where to run.
    """

    config: Config
    name: str
    data: Dataset
    model: nn.Module
    device: str

    @property
    def arm(self) -> Arm:
        """The kind of network."""
        return self.config.arm(self.name)

    @functools.cached_property
    def near(self) -> Dataset:
        """The data on the device, the training part cut to what methods that need data may use."""
        moved = {
            part: getattr(self.data, part).to(self.device)
            for part in ("train_x", "train_y", "test_x", "test_y")
        }
        count = self.config.fisher_with
        for part in ("train_x", "train_y"):
            moved[part] = moved[part][:count]
        return dataclasses.replace(self.data, **moved)

    def codes(self, seed: int) -> Tensor:
        """The codes of a seed, on the device."""
        return draw_codes(seed, self.data.classes, self.data.input_shape).to(self.device)


class Trained(NamedTuple):
    """Networks by seed.

    Attributes:
        coded: Trained with codes.
        plain: Trained without.
        retrained: Forgotten class to networks trained with codes but without the class.
    """

    coded: list[Params]
    plain: list[Params]
    retrained: dict[int, list[Params]]


def train_all(setting: Setting, stages: Stages) -> Trained:
    """Train networks with codes, without, and without each class.

    Args:
        setting: What to run, and on what.
        stages: Restartable stages.

    Returns:
        Networks by seed.
    """
    config, arm = setting.config, setting.arm

    def trained(name: str, data: Dataset, share: float) -> list[Params]:
        params = train_stages(
            stages,
            f"{setting.name} {name}",
            arm.model,
            data,
            config.seeds,
            arm.train,
            loss=MnemonicTraining(share, data.classes),
            together=config.together,
            device=setting.device,
        )
        return unstack(params[arm.train.epochs])

    return Trained(
        trained("codes", setting.data, arm.share),
        trained("plain", setting.data, 0.0),
        {k: trained(f"without {k}", without(setting.data, (k,)), arm.share) for k in config.forget},
    )


# Measurements


def measure_seed(setting: Setting, stages: Stages, trained: Trained, place: int) -> list[Numbers]:
    """Everything that is measured of one seed, class by class.

    Args:
        setting: What to run, and on what.
        stages: Restartable stages.
        trained: All networks.
        place: Which of the seeds.

    Returns:
        What ``measure_class`` gives, for every class to forget.
    """
    seed = setting.config.seeds[place]
    return [
        stages.numbers(
            f"measure-{setting.name}-{seed}-{k}",
            functools.partial(
                measure_class,
                setting,
                Networks(trained.coded[place], trained.plain[place], trained.retrained[k][place]),
                seed,
                k,
            ),
        )
        for k in setting.config.forget
    ]


class Networks(NamedTuple):
    """The networks of one seed that forgetting one class needs: see ``Trained``."""

    coded: Params
    plain: Params
    retrained: Params


def measure_class(setting: Setting, networks: Networks, seed: int, forgotten: int) -> Numbers:
    """Forget one class by every method, and look at what comes out.

    Args:
        setting: What to run, and on what.
        networks: The networks of the seed.
        seed: Decides the codes, noise, and which samples are learned again.
        forgotten: The class.

    Returns:
        ``networks`` of shape (``METHODS``, ``QUANTITIES``), ``audit`` (``AUDITED``, ``AUDITS``),
        ``relearning`` (``AUDITED``, steps), ``grid`` (``GRID``, steps, caps, ``SEEN``),
        ``by class`` (2, steps, classes), ``cost`` (``METHODS``), and ``numbers`` by name.
    """
    found = searched(setting, networks, seed, forgotten)
    grids = {name: seen(setting, many, forgotten) for name, many in found.items()}
    methods = forgotten_networks(setting, networks, seed, forgotten)
    for name, many in found.items():
        capped = [k for k, one in enumerate(many) if math.isfinite(one.cap)]
        allowed = [many[k] for k in capped]
        balances = [grids[name][k][0] + grids[name][k][1] for k in capped]
        methods[name] = allowed[middle(allowed)].params
        methods[name + BEST] = allowed[balances.index(max(balances))].params
        if name == "codes":
            methods["codes, smallest"] = allowed[smallest(allowed)].params
            minus = float(allowed[middle(allowed)].sign < 0)
    audits = [audited(setting, methods[name], seed, forgotten) for name in AUDITED]
    caps = len(setting.config.caps) + 1
    return {
        "networks": [quantities(setting, networks.coded, methods[n], forgotten) for n in METHODS],
        "audit": [one["audit"] for one in audits],
        "relearning": [one["relearning"] for one in audits],
        "grid": [
            [grids[name][k : k + caps] for k in range(0, len(grids[name]), caps)] for name in GRID
        ],
        "by class": by_class(setting, networks.coded, seed, forgotten),
        "cost": [cost(setting, name, forgotten) for name in METHODS],
        "numbers": single_numbers(setting, networks, seed, forgotten) | {"minus": minus},
    }


def searched(
    setting: Setting, networks: Networks, seed: int, forgotten: int
) -> dict[str, list[Forgetting]]:
    """The rule with all steps and caps, and its variants.

    Args:
        setting: What to run, and on what.
        networks: The networks of the seed.
        seed: Decides the codes.
        forgotten: The class.

    Returns:
        Name of a method to one network per pair of a step and a cap.
    """
    config, codes, chosen = setting.config, setting.codes(seed), (forgotten,)
    labels = torch.arange(len(codes), device=codes.device)
    coded = sensitivity(setting.model, networks.coded, codes, labels, chosen)
    plain = sensitivity(setting.model, networks.plain, codes, labels, chosen)
    images = sensitivity(
        setting.model, networks.coded, setting.near.train_x, setting.near.train_y, chosen
    )
    quiet = {
        name: torch.where(silent(r, 1, len(codes) - 1), torch.zeros_like(r), r)
        for name, r in coded.items()
    }
    find = functools.partial(
        search,
        setting.model,
        codes=codes,
        forgotten=chosen,
        steps=config.steps,
        caps=(*config.caps, math.inf),
    )
    return {
        "codes": find(params=networks.coded, ratio=coded),
        "last layer": find(params=networks.coded, ratio=coded, part="last"),
        "all but last": find(params=networks.coded, ratio=coded, part="all but last"),
        "untrained codes": find(params=networks.plain, ratio=plain),
        "images": find(params=networks.coded, ratio=images),
        "silent left": find(params=networks.coded, ratio=quiet),
    }


def seen(setting: Setting, found: Sequence[Forgetting], forgotten: int) -> list[list[float]]:
    """What test images and codes say of many networks, in the order of ``SEEN``."""
    data = setting.near
    rows = []
    for one in found:
        said = report(setting.model, one.params, data.test_x, data.test_y, (forgotten,))
        rows.append([said.forget_error, said.retain_accuracy, one.score])
    return rows


def forgotten_networks(
    setting: Setting, networks: Networks, seed: int, forgotten: int
) -> dict[str, Params]:
    """The methods that need no codes.

    Args:
        setting: What to run, and on what.
        networks: The networks of the seed.
        seed: Decides noise, and the order of the data.
        forgotten: The class.

    Returns:
        Name from ``METHODS`` to a network.
    """
    model, params, chosen, near = setting.model, networks.coded, (forgotten,), setting.near
    rest = without(near, chosen)
    noisy = functools.partial(fisher_noise, model, params, rest.train_x, chosen, seed=seed)
    both = importances(model, params, near.train_x, near.train_y, chosen)
    kinds = [
        dampen(params, *both, threshold=threshold, strength=strength)
        for threshold in THRESHOLDS
        for strength in STRENGTHS
    ]
    balances = [report(model, kind, near.test_x, near.test_y, chosen).balance for kind in kinds]
    tuned = train_on(
        setting.arm.model,
        params,
        without(setting.data, chosen),
        seed,
        setting.config.tuning,
        device=setting.device,
    )
    return {
        "original": params,
        "logit mask": mask_logits(params, chosen),
        "SSD": dampen(params, *both),
        "SSD, best": kinds[balances.index(max(balances))],
        "Fisher noise": noisy(),
        "Fisher noise, no head": noisy(head=False),
        "fine-tuned": tuned[0],
        "retrained": networks.retrained,
    }


def quantities(setting: Setting, before: Params, after: Params, forgotten: int) -> list[float]:
    """What is measured of every network, in the order of ``QUANTITIES``."""
    data, chosen = setting.near, (forgotten,)
    said = report(setting.model, after, data.test_x, data.test_y, chosen)
    known = report(setting.model, after, data.train_x, data.train_y, chosen)
    names = [name for name, _ in setting.model.named_parameters()]
    moved = sum(float((after[n] - before[n]).double().square().sum()) for n in names)
    whole = sum(float(before[n].double().square().sum()) for n in names)
    return [
        said.forget_error,
        said.retain_accuracy,
        known.forget_error,
        known.retain_accuracy,
        math.sqrt(moved / whole),
    ]


def audited(setting: Setting, params: Params, seed: int, forgotten: int) -> Numbers:
    """What a network still holds.

    Args:
        setting: What to run, and on what.
        params: The network.
        seed: Decides which samples are learned again.
        forgotten: The class.

    Returns:
        ``audit`` in the order of ``AUDITS``, and the recall after every step of ``relearning``.
    """
    data, chosen, config = setting.near, (forgotten,), setting.config
    again = train_on(
        setting.arm.model,
        params,
        few_samples(setting.data, config.few, seed),
        seed,
        dataclasses.replace(config.relearning, batch_size=config.few * data.classes),
        snapshots=range(config.relearning.epochs + 1),
        device=setting.device,
    )
    own = data.test_y == forgotten
    x, y = data.test_x[own], data.test_y[own]
    curve = [score(setting.model, network, x, y).accuracy for network in again]
    steps = [k for k, recall in enumerate(curve) if recall >= RELEARNED]
    return {
        "audit": [
            probe_recall(setting.model, params, data, chosen),
            logit_reading(setting.model, params, data.test_x, data.test_y, chosen),
            membership_by_loss(setting.model, params, data, chosen),
            membership_by_entropy(setting.model, params, data, chosen),
            float(steps[0] if steps else len(curve)),
        ],
        "relearning": curve,
    }


RELEARNED = 0.8  # recall from which a class counts as learned again


def by_class(setting: Setting, params: Params, seed: int, forgotten: int) -> list[Any]:
    """Test accuracy of every class, of growing steps and of growing masks.

    Args:
        setting: What to run, and on what.
        params: The network.
        seed: Decides the codes.
        forgotten: The class.

    Returns:
        Shape (2, steps, classes).
    """
    config, data = setting.config, setting.near
    steps = search(
        setting.model,
        params,
        setting.codes(seed),
        (forgotten,),
        steps=config.steps,
        caps=(config.shown_cap,),
    )
    amounts = config.amounts[: len(config.steps)]
    masked = [mask_logits(params, (forgotten,), amount) for amount in amounts]
    rows = []
    for networks in ([one.params for one in steps], masked):
        rows.append([accuracy_by_class(setting.model, one, data) for one in networks])
    return rows


def accuracy_by_class(model: nn.Module, params: Params, data: Dataset) -> list[float]:
    """Share of the test samples of every class that are read right."""
    with torch.no_grad():
        right = (predict(model, params, data.test_x).argmax(-1) == data.test_y).double()
    return [float(right[data.test_y == k].mean()) for k in range(data.classes)]


def cost(setting: Setting, name: str, forgotten: int) -> float:
    """Gradients of single samples that a method takes to forget, 0 for none.

    Args:
        setting: What to run, and on what.
        name: Name from ``METHODS``.
        forgotten: The class.

    Returns:
        A count; where settings were searched for, that of a single setting.
    """
    data, config = setting.near, setting.config
    own = int((data.train_y == forgotten).sum())
    rest, everything = len(data.train_y) - own, len(data.train_y)
    left = int((setting.data.train_y != forgotten).sum())
    name = name.removesuffix(BEST)
    if name.startswith("SSD"):
        return everything + own
    if name.startswith("Fisher"):
        return rest * data.classes
    if name in ("fine-tuned", "retrained"):
        recipe = config.tuning if name == "fine-tuned" else setting.arm.train
        size = min(recipe.batch_size, left)
        return recipe.epochs * (left // size) * size
    return {"original": 0, "logit mask": 0, "images": everything}.get(name, data.classes)


def single_numbers(
    setting: Setting, networks: Networks, seed: int, forgotten: int
) -> dict[str, float]:
    """Accuracies with and without codes, and how far the class leads in the output biases' ratio.

    Args:
        setting: What to run, and on what.
        networks: The networks of the seed.
        seed: Decides the codes.
        forgotten: The class.

    Returns:
        Number by name; leads are in decades.
    """
    data, codes = setting.near, setting.codes(seed)
    labels = torch.arange(len(codes), device=codes.device)
    found = {}
    for name, params in (("codes", networks.coded), ("plain", networks.plain)):
        ratio = sensitivity(setting.model, params, codes, labels, (forgotten,))["output.bias"]
        others = torch.cat([ratio[:forgotten], ratio[forgotten + 1 :]])
        found[f"lead {name}"] = float((ratio[forgotten] / others.median()).log10())
        found[f"accuracy {name}"] = score(setting.model, params, data.test_x, data.test_y).accuracy
        with torch.no_grad():
            right = predict(setting.model, params, codes).argmax(-1) == labels
        found[f"codes read {name}"] = float(right.double().mean())
    return found


def collect(
    config: Config, found: Sequence[Sequence[Sequence[Numbers]]]
) -> tuple[dict[str, list[float]], dict[str, Series]]:
    """Put what was measured into series and metrics.

    Args:
        config: What was run.
        found: Arm by arm, seed by seed, class by class.

    Returns:
        Metrics per seed, and series.
    """
    places = seeds_of(config)
    by_seed = [[arm[k] for arm in found] for k in places]
    series = {}
    for name, axes in axes_of(config, found).items():
        if name in ("networks", "audit"):
            values = [[[one[name] for one in arm] for arm in seed] for seed in by_seed]
        elif name == "by class":
            values = [[arm[0][name] for arm in seed] for seed in by_seed]
        else:
            values = [
                [torch.tensor([one[name] for one in arm]).double().mean(0).tolist() for arm in seed]
                for seed in by_seed
            ]
        series[name] = Series({"arm": list(config.arms), **axes}, values)
    metrics = {
        f"{name}: {number}": [
            sum(one["numbers"][number] for one in arm[k]) / len(arm[k]) for k in places
        ]
        for name, arm in zip(config.arms, found, strict=True)
        for number in found[0][0][0]["numbers"]
    }
    return metrics, series


def axes_of(
    config: Config, found: Sequence[Sequence[Sequence[Numbers]]]
) -> dict[str, dict[str, list[Any]]]:
    """Axes of every series after that of the kinds of networks; see ``collect``."""
    caps: list[Any] = [*config.caps, "none"]
    classes = list(range(len(found[0][0][0]["by class"][0][0])))
    steps = list(range(config.relearning.epochs + 1))
    forgotten: dict[str, list[Any]] = {"class": list(config.forget)}
    return {
        "networks": {**forgotten, "method": list(METHODS), "quantity": list(QUANTITIES)},
        "audit": {**forgotten, "method": list(AUDITED), "quantity": list(AUDITS)},
        "relearning": {"method": list(AUDITED), "step": steps},
        "grid": {
            "method": list(GRID),
            "step": list(config.steps),
            "cap": caps,
            "seen": list(SEEN),
        },
        "by class": {
            "method": ["codes", "logit mask"],
            "strength": list(range(len(config.steps))),
            "class": classes,
        },
        "cost": {"method": list(METHODS)},
    }


# Effects and claims


def place(series: Series, axis: str, name: Any) -> int:
    """Where a name stands on an axis.

    Args:
        series: One of a result's.
        axis: Name of the axis.
        name: What to look for.

    Returns:
        An index.

    Raises:
        KeyError: If it is not there.
    """
    if name not in series.axes[axis]:
        raise KeyError(f"{axis} {name}")
    return series.axes[axis].index(name)


def at(arm: str, method: str, quantity: str) -> Effect:
    """Effect: one quantity of one method, the mean over forgotten classes."""

    def effect(result: Result) -> list[float]:
        series = result.series["networks" if quantity in QUANTITIES else "audit"]
        where = place(series, "arm", arm)
        row, column = place(series, "method", method), place(series, "quantity", quantity)
        return [
            sum(one[row][column] for one in values[where]) / len(values[where])
            for values in series.values
        ]

    return effect


def balance(arm: str, method: str) -> Effect:
    """Effect: the mean of forget error and retain accuracy."""

    def effect(result: Result) -> list[float]:
        both = (at(arm, method, name)(result) for name in ("forget error", "retain accuracy"))
        return [(p + q) / 2 for p, q in zip(*both, strict=True)]

    return effect


def dearer(arm: str, method: str) -> Effect:
    """Effect: how many times as many gradients of samples a method takes as codes do."""

    def effect(result: Result) -> list[float]:
        series = result.series["cost"]
        where, other = place(series, "arm", arm), place(series, "method", method)
        own = place(series, "method", "codes")
        return [values[where][other] / values[where][own] for values in series.values]

    return effect


def plateau(arm: str, *, capped: bool) -> Effect:
    """Effect: decades of the step over which the class is forgotten and the rest is kept.

    With caps it is the longest run of neighbouring steps over all of them; without, that of the
    uncapped rule.
    """

    def effect(result: Result) -> list[float]:
        series, before = result.series["grid"], at(arm, "original", "retain accuracy")(result)
        where, row = place(series, "arm", arm), place(series, "method", "codes")
        last = place(series, "cap", "none")
        columns = range(last) if capped else [last]
        steps = [math.log10(step) for step in series.axes["step"]]
        return [
            max(
                longest_run([line[column] for line in values[where][row]], steps, kept - NEAR)
                for column in columns
            )
            for values, kept in zip(series.values, before, strict=True)
        ]

    return effect


def longest_run(rows: Sequence[Sequence[float]], places: Sequence[float], kept: float) -> float:
    """Longest stretch between neighbouring places whose rows forget enough and keep enough.

    Args:
        rows: Forget error and retain accuracy (and more) at every place.
        places: Where, increasing.
        kept: Retain accuracy that is asked for.

    Returns:
        Its length in the unit of the places; 0 for a single place or none.
    """
    longest, start = 0.0, None
    for row, here in zip(rows, places, strict=True):
        if row[0] < FAR or row[1] < kept:
            start = None
            continue
        start = here if start is None else start
        longest = max(longest, here - start)
    return longest


def largest_change(method: str) -> Effect:
    """Effect: relative change of the weights, the largest over kinds of networks and classes."""

    def effect(result: Result) -> list[float]:
        series = result.series["networks"]
        row, column = place(series, "method", method), place(series, "quantity", "change")
        return [max(one[row][column] for arm in values for one in arm) for values in series.values]

    return effect


PAPER = "yamashita2025mnemonic"
CHOICE = "yamashita2025mnemonic; the choice of settings is this lesson's"
HERE = "this lesson"
_FORGETS = "the class should all but vanish; 5 points are two of 45 test images"
_KEEPS = "a small loss: two points are eight of 405 test images"


def _both(make: Any) -> tuple[Claim, ...]:
    """The same claim for both kinds of networks."""
    return tuple(make(arm, letter) for arm, letter in (("MLP", "m"), ("CNN", "c")))


def _forgets(arm: str, letter: str) -> Claim:
    return Claim(
        f"C1{letter}",
        f"{arm}: with one code per class, settings chosen by codes alone, the class is forgotten.",
        CHOICE,
        at(arm, "codes", "forget error"),
        margin=FAR,
        reason=_FORGETS,
        unit="share",
    )


def _keeps(arm: str, letter: str) -> Claim:
    return Claim(
        f"C1{letter}-keeps",
        f"{arm}: settings chosen by codes alone, at most 2 points on the others are lost.",
        CHOICE,
        gap(at(arm, "codes", "retain accuracy"), at(arm, "original", "retain accuracy")),
        margin=-0.02,
        reason=_KEEPS,
        unit="share",
    )


def _forgets_best(arm: str, letter: str) -> Claim:
    return Claim(
        f"C1{letter}-best",
        f"{arm}: with settings chosen on test data instead, the class is forgotten.",
        PAPER,
        at(arm, "codes, best", "forget error"),
        margin=FAR,
        reason=_FORGETS,
        unit="share",
    )


def _keeps_best(arm: str, letter: str) -> Claim:
    return Claim(
        f"C1{letter}-best-keeps",
        f"{arm}: settings chosen on test data, at most 2 points on the others are lost.",
        PAPER,
        gap(at(arm, "codes, best", "retain accuracy"), at(arm, "original", "retain accuracy")),
        margin=-0.02,
        reason=_KEEPS,
        unit="share",
    )


def _cheaper(arm: str, letter: str) -> Claim:
    return Claim(
        f"C2{letter}",
        f"{arm}: the same rule from all training images takes over 100 times as many gradients.",
        PAPER,
        dearer(arm, "images"),
        margin=100.0,
        reason="two orders of magnitude",
        unit="times",
    )


def _as_good(arm: str, letter: str) -> Claim:
    return Claim(
        f"C2{letter}-images",
        f"{arm}: the rule from codes forgets as well as from all images (best settings of both).",
        HERE,
        gap(balance(arm, "codes, best"), balance(arm, "images, best")),
        margin=-0.02,
        reason="as much as C1 allows; on the mean of forget error and retain accuracy",
        unit="share",
    )


def _costs(arm: str, letter: str) -> Claim:
    return Claim(
        f"C3{letter}",
        f"{arm}: training with codes costs less than 1 point of accuracy.",
        PAPER,
        gap(measured(f"{arm}: accuracy codes"), measured(f"{arm}: accuracy plain")),
        margin=-0.01,
        reason="a small loss: one point is four or five of 450 test images",
        unit="share",
    )


def _mask(arm: str, letter: str) -> Claim:
    return Claim(
        f"C7a{letter}",
        f"{arm}: taking a constant from one logit is no worse (codes at their best settings).",
        HERE,
        gap(balance(arm, "logit mask"), balance(arm, "codes, best")),
        margin=-0.01,
        reason="half of what C1 allows; the settings of the codes were chosen on these test data",
        unit="share",
    )


def _last(arm: str, letter: str) -> Claim:
    return Claim(
        f"C7b{letter}",
        f"{arm}: changing the last layer only is no worse than changing all (best settings).",
        HERE,
        gap(balance(arm, "last layer, best"), balance(arm, "codes, best")),
        margin=-0.02,
        reason="as much as C1 allows",
        unit="share",
    )


def _body(arm: str, letter: str) -> Claim:
    return Claim(
        f"C7c{letter}",
        f"{arm}: changing all but the last layer is much worse (best settings).",
        HERE,
        gap(balance(arm, "codes, best"), balance(arm, "all but last, best")),
        margin=0.05,
        reason="ten points of retain accuracy at equal forgetting",
        unit="share",
    )


def _probe(arm: str, letter: str) -> Claim:
    return Claim(
        f"P1{letter}",
        f"{arm}: after forgetting, a probe of the last representation finds the class as before.",
        HERE,
        gap(at(arm, "codes, best", "probe"), at(arm, "original", "probe")),
        margin=0.05,
        reason="about two of 45 test images",
        kind="equal",
        unit="share",
    )


def _reading(arm: str, letter: str) -> Claim:
    return Claim(
        f"P2{letter}",
        f"{arm}: its own logit tells the class better than in a network that never saw the class.",
        HERE,
        gap(at(arm, "codes, best", "reading"), at(arm, "retrained", "reading")),
        margin=0.02,
        reason="a quarter of what retrained networks lacked to 1 in the pilots",
        unit="AUROC",
    )


def _relearning(arm: str, letter: str) -> Claim:
    return Claim(
        f"P3{letter}",
        f"{arm}: it learns the class again faster than a network that never saw it.",
        HERE,
        gap(at(arm, "retrained", "relearning"), at(arm, "codes, best", "relearning")),
        margin=1.0,
        reason="more than one step of gradient descent, the resolution of the measurement",
        unit="steps",
    )


def _lead(arm: str, letter: str) -> Claim:
    return Claim(
        f"T1{letter}",
        f"{arm}: in the output bias the rule moves the class over ten times as far as others.",
        "derived here",
        measured(f"{arm}: lead codes"),
        margin=1.0,
        reason="a decade; the idealised calculation gives 2.9 decades for ten classes",
        unit="decades",
    )


CLAIMS: tuple[Claim, ...] = (
    *_both(_forgets),
    *_both(_keeps),
    *_both(_forgets_best),
    *_both(_keeps_best),
    *_both(_cheaper),
    *_both(_as_good),
    *_both(_costs),
    Claim(
        "C4c",
        "CNN: codes must be learned: with untrained codes forgetting is worse (best settings).",
        PAPER,
        gap(balance("CNN", "codes, best"), balance("CNN", "untrained codes, best")),
        margin=0.025,
        reason="five points of retain accuracy at equal forgetting, more than C1 allows",
        unit="share",
    ),
    Claim(
        "C4m",
        "Sigmoid MLP: it makes no difference whether the codes were learned (best settings).",
        HERE,
        gap(balance("MLP", "codes, best"), balance("MLP", "untrained codes, best")),
        margin=0.02,
        reason="as much as C1 allows",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C6",
        "MLP: with a cap, the step may vary over a decade without harm.",
        HERE,
        plateau("MLP", capped=True),
        margin=0.9,
        reason="a decade, less rounding of steps such as 0.03",
        unit="decades",
    ),
    Claim(
        "C6-cap",
        "MLP: without a cap it may vary less.",
        HERE,
        gap(plateau("MLP", capped=True), plateau("MLP", capped=False)),
        margin=0.4,
        reason="a step of the grid, less rounding",
        unit="decades",
    ),
    *_both(_mask),
    *_both(_last),
    *_both(_body),
    *_both(_probe),
    *_both(_reading),
    *_both(_relearning),
    *_both(_lead),
    Claim(
        "S1",
        "SSD with its usual threshold of 10 hardly changes a weight when there are ten classes.",
        "derived here",
        largest_change("SSD"),
        margin=0.05,
        reason="the bound says never for equal classes; these are not quite equal",
        kind="equal",
        unit="relative change",
    ),
)

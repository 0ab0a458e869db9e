"""The sum of a kernel: do waves fool a network less when its kernels sum to zero?

The unit of repetition is a network: seed s decides initial values, the order of the data and the
starts of attacks. Every way to train is run from every seed, on the same images, and meets the same
waves, the same noise and the same attacks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import score
from lmc_lessons.experiments.runs import ONE_CYCLE, Stages, finish, one_thread, train_stages
from lmc_lessons.models import (
    CNN,
    ModelConfig,
    Params,
    build,
    parameter_names,
    predict,
    unstack,
)
from lmc_lessons.results import Claim, Effect, Result, Series, gap, measured
from lmc_lessons.robustness.absum import (
    Penalised,
    absum,
    absum_step,
    after_each_step,
    checkerboard_step,
    half_squares,
    kernel_sums,
    kernels,
    l1_step,
    without_sums,
)
from lmc_lessons.robustness.attacks import LInf, ThreatModel, pgd
from lmc_lessons.robustness.fourier import (
    band,
    circulant,
    clip_singular_values,
    distance,
    heat_map,
    high_frequency_noise,
    single_fourier_attack,
    singular_values,
)
from lmc_lessons.robustness.masking import standing
from lmc_lessons.robustness.objectives import AdversarialTraining, Objective, Standard
from lmc_lessons.training import Loss, TrainConfig, generator

LESSON = "absum"
NOISE, RANDOM_KERNELS, START = 63, 64, 65  # random streams of a seed
SURROGATE = 1000  # added to a seed: the network that examples are made for is trained apart
Numbers = dict[str, Any]


class Method(NamedTuple):
    """A way to train.

    Attributes:
        kind: What is done to the kernels; a name from ``after`` or ``decay``, or empty.
        strength: The weight of the penalty; the limit of ``clip``.
        adversarial: Whether to train on adversarial examples.
    """

    kind: str = ""
    strength: float = 0.0
    adversarial: bool = False


METHODS: dict[str, Method] = {
    "none": Method(),
    "decay 0.01": Method("decay", 0.01),
    "decay 0.03": Method("decay", 0.03),
    "decay 0.1": Method("decay", 0.1),
    "L1 0.003": Method("L1", 0.003),
    "L1 0.01": Method("L1", 0.01),
    "L1 0.03": Method("L1", 0.03),
    "clip 2": Method("clip", 2.0),
    "clip 4": Method("clip", 4.0),
    "checkerboard 0.1": Method("checkerboard", 0.1),
    "Absum 0.01": Method("Absum", 0.01),
    "Absum 0.03": Method("Absum", 0.03),
    "Absum 0.1": Method("Absum", 0.1),
    "Absum 0.3": Method("Absum", 0.3),
    "AT": Method(adversarial=True),
    "AT + Absum 0.01": Method("Absum", 0.01, adversarial=True),
}
ABSUM = "Absum"  # in claims: the Absum of the configuration
PROJECTED = "none, sums removed"  # the plain network, every kernel made to sum to zero afterwards
OTHER = "another seed"  # the plain network that transferred examples are made for
QUANTITIES = (
    "clean accuracy",
    "fast waves, worst",
    "fast waves, mean",
    "slow waves, worst",
    "slow waves, mean",
    "noise accuracy",
    "PGD accuracy",
    "transfer accuracy",
    "sum, first layer",
    "sum, later layers",
    "kernel L1 norm",
    "gain, slow waves",
    "gain, fast waves",
)
PUT_BACK = "worst fast wave, means put back"  # measured of a ``cnn``


class Variant(NamedTuple):
    """Another setting, in which plain training, decay and Absum are compared again.

    Attributes:
        side: Side of the images; None: as the data set has them.
        kernel: Side of the kernels.
    """

    side: int | None
    kernel: int


VARIANTS: dict[str, Variant] = {
    "3x3 kernels": Variant(16, 3),
    "native 8x8": Variant(None, 3),
}


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        preset: Name of the preset.
        seeds: Networks per method.
        dataset: Name for ``datasets.load``.
        samples: Training samples; None uses all.
        side: Side that images are enlarged to, bilinearly; None leaves them.
        model: Architecture.
        train: How to train.
        adversarial_train: How to train on adversarial examples.
        attack_steps: Steps of the attack in training.
        methods: Names from ``METHODS``; none and the following two among them.
        absum: The Absum that claims compare with others.
        decay: The decay that is run in the variants.
        variants: Names from ``VARIANTS``.
        wave_epsilon: Size of the waves.
        waves_with: Test images for waves and attacks.
        edge: Periods from which on a wave is fast.
        noise_epsilon: Standard deviation of the noise of high frequency.
        epsilon: Radius of the L-inf threat model.
        eval_steps: Steps of the attack in evaluation.
        together: Images per forward pass.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    dataset: str = "digits"
    samples: int | None = None
    side: int | None = 16
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig("cnn", (1, 16, 16), width=8, kernel=5)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=20, batch_size=64, optimizer="sgd", learning_rate=0.05, schedule="step"
        )
    )
    adversarial_train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=20, batch_size=64, optimizer="sgd", learning_rate=0.05, schedule="one-cycle"
        )
    )
    attack_steps: int = 3
    methods: tuple[str, ...] = tuple(METHODS)
    absum: str = "Absum 0.1"
    decay: str = "decay 0.03"
    variants: tuple[str, ...] = tuple(VARIANTS)
    wave_epsilon: float = 0.6
    waves_with: int = 200
    edge: int = 5
    noise_epsilon: float = 0.6
    epsilon: float = 0.1
    eval_steps: int = 20
    together: int = 1000

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers >= 0, got {self.seeds}")
        for name, known in (("methods", METHODS), ("variants", VARIANTS)):
            given = getattr(self, name)
            if unknown := [entry for entry in given if entry not in known]:
                raise ValueError(f"{name} has {unknown[0]!r}, allowed: {', '.join(known)}")
            if len(set(given)) != len(given):
                raise ValueError(f"{name} must be different, got {given}")
        needed = ("none", self.absum, *((self.decay,) if self.variants else ()))
        if missing := [entry for entry in needed if entry not in self.methods]:
            raise ValueError(f"methods lack {missing[0]!r}, got {self.methods}")
        if METHODS[self.absum].kind != "Absum" or METHODS[self.absum].adversarial:
            raise ValueError(f"absum must be an Absum without attack, got {self.absum!r}")
        lowest = {"waves_with": 2, "eval_steps": 1, "attack_steps": 1, "together": 1, "edge": 2}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("samples", "side"):
            value = getattr(self, name)
            if value is not None and value < 4:
                raise ValueError(f"{name} must be at least 4, got {value}")
        for name in ("wave_epsilon", "noise_epsilon", "epsilon"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number >= 0, got {getattr(self, name)}")
        if min(self.train.epochs, self.adversarial_train.epochs) < 1:
            raise ValueError("train.epochs and adversarial_train.epochs must be at least 1")
        if self.model.architecture in ("mlp", "autoencoder", "transformer"):
            raise ValueError(f"model must have convolutions, got {self.model.architecture}")
        if self.edge > min(self.model.input_shape[-2:]) // 2:
            raise ValueError(
                f"edge must be at most half of the images' side, got {self.edge} and "
                f"{self.model.input_shape}"
            )


_CIFAR = Config(
    preset="full-cifar-absum",
    dataset="cifar10",
    side=None,
    model=ModelConfig("resnet", (3, 32, 32), width=1, depth=18, norm="batch"),
    train=dataclasses.replace(ONE_CYCLE, weight_decay=0.0),
    methods=("none", "decay 0.01", "L1 0.003", "checkerboard 0.1", "Absum 0.03", "Absum 0.1"),
    variants=(),
    wave_epsilon=10 / 255,
    waves_with=1000,
    edge=10,
    noise_epsilon=10 / 255,
    epsilon=2 / 255,
    together=4000,
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        methods=("none", "decay 0.03", "Absum 0.1"),
        variants=(),
        waves_with=100,
        eval_steps=10,
    ),
    "study": Config(),
    "full-fashion-absum": Config(
        preset="full-fashion-absum",
        dataset="fashion-mnist",
        samples=5000,
        side=None,
        model=ModelConfig("cnn", (1, 28, 28), width=8, kernel=5),
        train=dataclasses.replace(Config().train, epochs=10),
        methods=("none", "decay 0.01", "decay 0.03", "L1 0.01", "checkerboard 0.1", "Absum 0.1"),
        variants=(),
        wave_epsilon=80 / 255,
        waves_with=150,
        edge=9,
        noise_epsilon=80 / 255,
        epsilon=0.03,
    ),
    "full-cifar-absum": _CIFAR,
    "paper": dataclasses.replace(
        _CIFAR,
        preset="paper",
        train=dataclasses.replace(_CIFAR.train, epochs=200, learning_rate=0.1, schedule="step"),
        adversarial_train=dataclasses.replace(
            _CIFAR.train, epochs=200, learning_rate=0.1, schedule="step"
        ),
        attack_steps=10,
        methods=(*_CIFAR.methods, "AT", "AT + Absum 0.01"),
        epsilon=8 / 255,
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
        Series over methods and frequencies, and the verdict of every claim.

    Raises:
        ValueError: If the data set is not there, is too small, or does not fit the model.

    Taught in: book/robustness/absum
    """
    data = prepared(config, datasets.load(config.dataset, root=root))
    stages = Stages(folder, config, progress=progress)
    with one_thread():
        main = Setting(config, data, device)
        rows = [measure_seed(main, seed, stages) for seed in config.seeds]
        others = {name: variant(config, name, root, device) for name in config.variants}
        again = [
            [measure_variant(other, name, seed, stages) for name, other in others.items()]
            for seed in config.seeds
        ]
        exact = [check_mathematics(seed) for seed in config.seeds]
    series = {
        name: Series(axes, [row[name] for row in rows]) for name, axes in axes_of(config).items()
    }
    if config.variants:
        axes = {"variant": list(config.variants), "network": compared(config)}
        series["variants"] = Series(axes | {"quantity": quantities(config)}, again)
    return finish(
        LESSON,
        config,
        stages=stages,
        metrics={name: [row[name] for row in exact] for name in exact[0]},
        series=series,
        claims=CLAIMS,
        datasets=[data],
        device=device,
    )


# The data and the networks


def enlarged(data: Dataset, side: int) -> Dataset:
    """The same images with more pixels, linear between the old ones, so with few fast waves.

    Args:
        data: Images.
        side: New height and width.

    Returns:
        A data set of that size.

    Taught in: book/robustness/absum
    """
    train_x, test_x = (
        F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
        for x in (data.train_x, data.test_x)
    )
    variant = f"{data.variant}, enlarged to {side} x {side}"
    return dataclasses.replace(data, variant=variant, train_x=train_x, test_x=test_x)


def prepared(config: Config, data: Dataset) -> Dataset:
    """The data set as the configuration wants it: fewer samples, larger images.

    Args:
        config: How many samples, and of what size.
        data: The data set.

    Returns:
        A data set.

    Raises:
        ValueError: If it has too few samples, or images of another size than the model takes.
    """
    for name, wanted, there in (
        ("training", config.samples or 1, len(data.train_x)),
        ("test", config.waves_with, len(data.test_x)),
    ):
        if wanted > there:
            raise ValueError(f"{data.name} has {there} {name} samples, asked for {wanted}")
    if config.samples is not None:
        data = data.subset(config.samples, len(data.test_x))
    if config.side is not None:
        data = enlarged(data, config.side)
    if data.input_shape != config.model.input_shape:
        raise ValueError(
            f"{data.name} has inputs of shape {data.input_shape}, the model takes "
            f"{config.model.input_shape}"
        )
    return data


@dataclass(frozen=True)
class Setting:
    """What training and measuring need.

    Attributes:
        config: What to run.
        data: The data.
        device: Where to run.
    """

    config: Config
    data: Dataset
    device: str

    def module(self) -> nn.Module:
        """A new module of the architecture, on the device, in train mode."""
        return build(self.config.model).to(self.device)


def loss_of(setting: Setting, method: Method) -> Loss:
    """The loss that a method minimises.

    Args:
        setting: The architecture, and the attack in training.
        method: How to train.

    Returns:
        A loss for ``training.train``.
    """
    config = setting.config
    objective: Objective = Standard()
    if method.adversarial:
        objective = AdversarialTraining(LInf(config.epsilon), steps=config.attack_steps)
    if method.kind == "decay":
        return Penalised(objective, half_squares, method.strength)
    return objective


def after(setting: Setting, method: Method) -> contextlib.AbstractContextManager[None]:
    """What happens to the kernels after every step of the optimiser.

    Args:
        setting: The size of the images, on whose frequencies ``clip`` works.
        method: How to train.

    Returns:
        A context to train in.
    """
    if method.kind == "clip":
        side = setting.config.model.input_shape[-1]

        def clip(weight: Tensor, size: float) -> Tensor:
            del size
            return clip_singular_values(weight, method.strength, side)

        return after_each_step(clip, 0.0)
    steps = {"Absum": absum_step, "L1": l1_step, "checkerboard": checkerboard_step}
    if method.kind in steps:
        return after_each_step(steps[method.kind], method.strength)
    return contextlib.nullcontext()


def trained(setting: Setting, name: str, seed: int, stages: Stages, prefix: str = "") -> Params:
    """Train one network as a stage.

    Args:
        setting: The architecture and the data.
        name: Method.
        seed: The seed.
        stages: The run's stages.
        prefix: Distinguishes stages of one method in several settings.

    Returns:
        Parameters of one network, on the device.
    """
    method, config = METHODS[name], setting.config
    recipe = config.adversarial_train if method.adversarial else config.train
    with after(setting, method):
        found = train_stages(
            stages,
            prefix + name,
            config.model,
            setting.data,
            (seed,),
            recipe,
            loss=loss_of(setting, method),
            device=setting.device,
        )
    return unstack(found[recipe.epochs])[0]


# Measurements


def compared(config: Config) -> list[str]:
    """The networks that are trained again in the variants."""
    return ["none", config.decay, config.absum]


def quantities(config: Config) -> list[str]:
    """What is measured of every network.

    Args:
        config: What to run.

    Returns:
        ``QUANTITIES``, and what an intervention on a small network gives.
    """
    return [*QUANTITIES, *([PUT_BACK] if config.model.architecture == "cnn" else [])]


def axes_of(config: Config) -> dict[str, dict[str, list[Any]]]:
    """Axes of the series that every run has.

    Args:
        config: What to run.

    Returns:
        Name of the series to its axes.
    """
    height, width = config.model.input_shape[-2:]
    return {
        "networks": {
            "network": [*config.methods, PROJECTED],
            "quantity": quantities(config),
        },
        "heat map": {
            "network": ["none", config.absum, OTHER],
            "u": list(range(height)),
            "v": list(range(width)),
        },
    }


def measure_seed(setting: Setting, seed: int, stages: Stages) -> Numbers:
    """Train and measure every network of one seed.

    Args:
        setting: What to run, and on what.
        seed: The seed.
        stages: The run's stages.

    Returns:
        The series of ``axes_of``, for this seed.
    """
    config = setting.config
    surrogate = trained(setting, "none", seed + SURROGATE, stages)
    networks = {name: trained(setting, name, seed, stages) for name in config.methods}
    networks[PROJECTED] = without_sums(networks["none"])
    rows, maps = [], {}
    for name, params in networks.items():
        work = functools.partial(measure_network, setting, params, surrogate, seed)
        found = stages.numbers(f"measure-{name}-{seed}", work)
        rows.append(found["quantities"])
        maps[name] = found["map"]
    other = functools.partial(wave_map, setting, surrogate)
    maps[OTHER] = stages.numbers(f"measure-another-{seed}", other)
    shown = axes_of(config)["heat map"]["network"]
    return {"networks": rows, "heat map": [maps[name] for name in shown]}


def variant(config: Config, name: str, root: Path | None, device: str) -> Setting:
    """The setting of a variant: other images or other kernels, all else equal.

    Args:
        config: What to run.
        name: Name from ``VARIANTS``.
        root: Where data sets lie.
        device: Where to run.

    Returns:
        A setting whose edge between slow and fast waves lies at the same share of the image.
    """
    side, kernel = VARIANTS[name]
    data = datasets.load(config.dataset, root=root)
    shape = data.input_shape if side is None else (data.input_shape[0], side, side)
    model = dataclasses.replace(config.model, input_shape=shape, kernel=kernel)
    edge = max(2, round(config.edge * shape[-1] / config.model.input_shape[-1]))
    other = dataclasses.replace(config, side=side, model=model, edge=edge, variants=())
    return Setting(other, prepared(other, data), device)


def measure_variant(setting: Setting, name: str, seed: int, stages: Stages) -> list[list[float]]:
    """Train and measure the compared networks in a variant.

    Args:
        setting: The variant.
        name: Its name.
        seed: The seed.
        stages: The run's stages.

    Returns:
        Numbers of shape (networks, quantities).
    """
    prefix = f"{name}-"
    surrogate = trained(setting, "none", seed + SURROGATE, stages, prefix)
    rows = []
    for method in compared(setting.config):
        params = trained(setting, method, seed, stages, prefix)
        work = functools.partial(measure_network, setting, params, surrogate, seed)
        rows.append(stages.numbers(f"measure-{prefix}{method}-{seed}", work)["quantities"])
    return rows


def images(setting: Setting) -> tuple[Tensor, Tensor]:
    """The test images and labels that waves and attacks are tried on."""
    count = setting.config.waves_with
    x, y = setting.data.test_x[:count], setting.data.test_y[:count]
    return x.to(setting.device), y.to(setting.device)


def wave_map(setting: Setting, params: Params) -> list[list[float]]:
    """Accuracy at every frequency, in per mille so that it is stored short and exactly enough.

    Args:
        setting: What to run, and on what.
        params: One network.

    Returns:
        Numbers of shape (height, width), in [0, 1].
    """
    run_model = functools.partial(predict, setting.module().eval(), params)
    config = setting.config
    found = heat_map(run_model, *images(setting), config.wave_epsilon, chunk=config.together)
    rounded: list[list[float]] = found.mul(1000).round().div(1000).tolist()
    return rounded


def measure_network(setting: Setting, params: Params, surrogate: Params, seed: int) -> Numbers:
    """All quantities of one network.

    Args:
        setting: What to run, and on what.
        params: The network.
        surrogate: The network that transferred examples are made for.
        seed: Decides the noise and the starts of attacks.

    Returns:
        Numbers in the order of ``quantities``, and the ``map`` of accuracies.
    """
    config, module = setting.config, setting.module().eval()
    x, y = images(setting)
    run_model, other = (functools.partial(predict, module, p) for p in (params, surrogate))
    drawn = wave_map(setting, params)
    accuracies = torch.tensor(drawn, dtype=torch.float64)
    fast, slow = band(accuracies, config.edge), band(accuracies, 1, config.edge - 1)
    threat = LInf(config.epsilon)
    start = threat.random(x, 1, generator(seed, START))

    def own(network: Any, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        return pgd(network, x, y, threat, steps=config.eval_steps, start=start)

    def foreign(network: Any, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        return own(other, x, y, threat)

    left = standing(run_model, x, y, threat, {"own": own, "foreign": foreign})
    test_x, test_y = (t.to(setting.device) for t in (setting.data.test_x, setting.data.test_y))
    noise = high_frequency_noise(tuple(test_x.shape), generator(seed, NOISE))
    noisy = (test_x + config.noise_epsilon * noise.to(test_x)).clamp(0, 1)
    values = {
        "clean accuracy": score(module, params, test_x, test_y).accuracy,
        "fast waves, worst": fast.worst,
        "fast waves, mean": fast.mean,
        "slow waves, worst": slow.worst,
        "slow waves, mean": slow.mean,
        "noise accuracy": score(module, params, noisy, test_y).accuracy,
        "PGD accuracy": float(left["own"].double().mean()),
        "transfer accuracy": float(left["foreign"].double().mean()),
        **kernel_quantities(setting, params),
    }
    if isinstance(module, CNN):
        frequency = worst_frequency(accuracies, config.edge)
        attacked = single_fourier_attack(x, frequency, config.wave_epsilon)
        with torch.no_grad():
            logits = means_put_back(module, params, x, attacked)
        values[PUT_BACK] = float((logits.argmax(-1) == y).double().mean())
    return {"quantities": [values[name] for name in quantities(config)], "map": drawn}


def worst_frequency(accuracy: Tensor, edge: int) -> tuple[int, int]:
    """The frequency of the wave that harms most, among the fast ones; the first of several.

    Args:
        accuracy: A heat map of shape (H, W).
        edge: Periods from which on a wave is fast.

    Returns:
        (u, v).
    """
    slow = distance(*accuracy.shape) < edge
    u, v = divmod(int(accuracy.masked_fill(slow, 2.0).argmin()), accuracy.shape[1])
    return u, v


def means_put_back(module: CNN, params: Params, x: Tensor, attacked: Tensor) -> Tensor:
    """Read attacked images, with the means of the first layer's maps as on the clean images.

    So the attack reaches the second layer only by what it changes around the means.

    Args:
        module: The architecture.
        params: One network.
        x: Clean images of shape (N, C, H, W).
        attacked: The same images, attacked.

    Returns:
        Logits of shape (N, classes).

    Taught in: book/robustness/absum
    """

    def layer(name: str, inputs: Tensor) -> Tensor:
        own = {n.removeprefix(f"{name}."): t for n, t in params.items() if n.startswith(f"{name}.")}
        outputs: Tensor = functional_call(getattr(module, name), own, (inputs,))
        return outputs

    before, after = (
        module.pool(F.relu(layer("norm1", layer("conv1", images)))) for images in (x, attacked)
    )
    h = after - (after - before).mean((2, 3), keepdim=True)
    h = module.pool(F.relu(layer("norm2", layer("conv2", h))))
    return layer("output", F.relu(layer("hidden", h.flatten(1))))


def kernel_quantities(setting: Setting, params: Params) -> dict[str, float]:
    """What the kernels are like.

    Args:
        setting: The architecture, for the order of its layers.
        params: One network.

    Returns:
        Mean absolute sum of the kernels of the first and of the later layers, mean L1 norm, and
        the first layer's largest singular value, mean over slow and over fast frequencies.
    """
    names = [n for n in parameter_names(setting.module()) if n in kernels(params)]
    first, *later = (kernel_sums(params[name]).abs().flatten() for name in names)
    norms = torch.cat([params[name].abs().sum((-2, -1)).flatten() for name in names])
    side, edge = setting.config.model.input_shape[-1], setting.config.edge
    speed = distance(side, side).to(setting.device)
    gain = singular_values(params[names[0]], side)[..., 0]
    return {
        "gain, slow waves": float(gain[(speed > 0) & (speed < edge)].mean()),
        "gain, fast waves": float(gain[speed >= edge].mean()),
        "sum, first layer": float(first.mean()),
        "sum, later layers": float(torch.cat(later).mean()),
        "kernel L1 norm": float(norms.mean()),
    }


def check_mathematics(seed: int) -> dict[str, float]:
    """How far two exact statements are from being true in floating point, on random kernels.

    Args:
        seed: Decides the kernels.

    Returns:
        ``singular_value_error``: largest difference between the singular values of a circular
        convolution's matrix and the sizes of its kernel's Fourier transform; ``dc_error``: between
        the one at frequency zero and the size of the kernel's sum; ``prox_excess``: by how much any
        of many kernels near the proximal step is better than the step itself.
    """
    stream = generator(seed, RANDOM_KERNELS)
    weight = torch.randn(3, 4, 5, 5, generator=stream, dtype=torch.float64)
    matrix = torch.linalg.svdvals(circulant(weight[0, 0], 8))
    formula = singular_values(weight[:1, :1], 8)[..., 0]
    gap = float((matrix - formula.flatten().sort(descending=True).values).abs().max())
    zero = float((formula[0, 0] - kernel_sums(weight[0, 0]).abs()).abs())
    excess = 0.0
    for size in (0.01, 0.1, 1.0):
        step = absum_step(weight, size)
        ours = distance_and_penalty(step, weight, size)
        for length in (1e-6, 1e-3, 0.1):
            for _ in range(20):
                move = torch.randn(weight.shape, generator=stream, dtype=torch.float64)
                other = distance_and_penalty(step + length * move, weight, size)
                excess = max(excess, float((ours - other).max()))
    return {"singular_value_error": gap, "dc_error": zero, "prox_excess": excess}


def distance_and_penalty(weight: Tensor, centre: Tensor, size: float) -> Tensor:
    """What a proximal step minimises: half the squared distance plus size times the penalty."""
    return (weight - centre).square().sum() / 2 + size * absum(weight)


# Effects and claims


def at(network: str, quantity: str, variant: str | None = None) -> Effect:
    """Effect: one quantity of one network.

    Args:
        network: Name of the network; ``Absum`` is the one of the configuration.
        quantity: Name from ``QUANTITIES``.
        variant: Where it was trained; None: in the main setting.

    Returns:
        A function of a result, one number per seed.
    """

    def effect(result: Result) -> list[float]:
        name = "networks" if variant is None else "variants"
        if name not in result.series:
            raise KeyError(name)
        series, values = result.series[name], result.series[name].values
        if variant is not None:
            place = _place(series, "variant", variant)
            values = [seed[place] for seed in values]
        wanted = result.config.get("absum", Config.absum) if network == ABSUM else network
        row, column = _place(series, "network", wanted), _place(series, "quantity", quantity)
        return [seed[row][column] for seed in values]

    return effect


def _place(series: Series, axis: str, name: str) -> int:
    if name not in series.axes[axis]:
        raise KeyError(f"{axis} {name}")
    return series.axes[axis].index(name)


def rise(quantity: str, network: str = ABSUM, variant: str | None = None) -> Effect:
    """Effect: by how much a network exceeds the plain one in some quantity."""
    return gap(at(network, quantity, variant), at("none", quantity, variant))


def best_of(kinds: Sequence[str], quantity: str) -> Effect:
    """Effect: the best of all strengths of some methods, chosen for each seed afterwards."""

    def effect(result: Result) -> list[float]:
        names = result.series["networks"].axes["network"] if "networks" in result.series else []
        used = [n for n in names if n in METHODS and METHODS[n].kind in kinds]
        used = [n for n in used if not METHODS[n].adversarial]
        if {METHODS[n].kind for n in used} != set(kinds):
            raise KeyError(f"{' and '.join(kinds)}")
        return [max(seed) for seed in zip(*(at(n, quantity)(result) for n in used), strict=True)]

    return effect


def change_of_norm(result: Result) -> list[float]:
    """Effect: relative change of the mean L1 norm of the kernels, Absum against none."""
    ours, plain = (at(n, "kernel L1 norm")(result) for n in (ABSUM, "none"))
    return [p / q - 1 for p, q in zip(ours, plain, strict=True)]


def agreement(first: str, second: str) -> Effect:
    """Effect: correlation of two heat maps over all frequencies but (0, 0)."""

    def effect(result: Result) -> list[float]:
        if "heat map" not in result.series:
            raise KeyError("heat map")
        series = result.series["heat map"]
        names = [
            result.config.get("absum", Config.absum) if n == ABSUM else n for n in (first, second)
        ]
        rows = [_place(series, "network", name) for name in names]
        maps = [[np.ravel(seed[row])[1:] for row in rows] for seed in series.values]
        if any(float(np.std(m)) == 0 for pair in maps for m in pair):
            raise KeyError("heat maps that are not constant")
        return [float(np.corrcoef(p, q)[0, 1]) for p, q in maps]

    return effect


PAPER = "kanai2020absum"
ABSTRACT = "kanai2020absum, abstract"
HERE = "this lesson"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1a",
        "The singular values of a circular convolution are the sizes of its kernel's transform.",
        "derived here; used in tsuzuku2019structural, kanai2020absum",
        measured("singular_value_error"),
        margin=1e-12,
        reason="rounding in float64",
        kind="exact",
        unit="difference",
    ),
    Claim(
        "C1b",
        "The one at frequency zero is the size of the kernel's sum.",
        "derived here",
        measured("dc_error"),
        margin=1e-12,
        reason="rounding in float64",
        kind="exact",
        unit="difference",
    ),
    Claim(
        "C2a",
        "No kernel near the proximal step is better than the step.",
        "derived here; kanai2020absum has a proximal step",
        measured("prox_excess"),
        margin=1e-12,
        reason="rounding in float64",
        kind="exact",
        unit="objective",
    ),
    Claim(
        "C2b",
        "Absum ends with kernels of the later layers that sum to zero.",
        PAPER,
        at(ABSUM, "sum, later layers"),
        margin=1e-3,
        reason="a thousandth, where kernels of a plain network sum to some tenths",
        kind="exact",
        unit="mean size of a sum",
    ),
    Claim(
        "C2c",
        "Their L1 norm stays within 15 % of that of a plain network's kernels.",
        "derived here; kanai2020absum, a figure's caption: looser than L1",
        change_of_norm,
        margin=0.15,
        reason="a penalty on the norm that helps at all changes it by more",
        kind="equal",
        unit="relative change",
    ),
    Claim(
        "C3a",
        "Absum raises the accuracy under the worst fast wave.",
        ABSTRACT,
        rise("fast waves, worst"),
        margin=0.1,
        reason="ten points: twice the sampling error of an accuracy on 200 images, and more",
        unit="share",
    ),
    Claim(
        "C3b",
        "It costs at most half a point of clean accuracy.",
        ABSTRACT,
        rise("clean accuracy"),
        margin=-0.005,
        reason="half a point is two test images",
        unit="share",
    ),
    Claim(
        "C3c",
        "The same penalty on the sum with alternating signs does less.",
        HERE,
        gap(at(ABSUM, "fast waves, worst"), at("checkerboard 0.1", "fast waves, worst")),
        margin=0.1,
        reason="as C3a: then it is the sum, not any one direction in each kernel",
        unit="share",
    ),
    Claim(
        "C3d",
        "Taking the sums off after training costs a plain network clean accuracy.",
        HERE,
        gap(at(ABSUM, "clean accuracy"), at(PROJECTED, "clean accuracy")),
        margin=0.02,
        reason="two points, four times what C3b allows: then it must be learnt",
        unit="share",
    ),
    Claim(
        "C4a",
        "Absum is ahead of every weight decay under the worst fast wave.",
        ABSTRACT,
        gap(at(ABSUM, "fast waves, worst"), best_of(("decay",), "fast waves, worst")),
        margin=0.0,
        reason="ahead at all, of the best strength for each seed, which favours decay",
        unit="share",
    ),
    Claim(
        "C4b",
        "Absum is ahead of every L1 penalty under the worst fast wave.",
        ABSTRACT,
        gap(at(ABSUM, "fast waves, worst"), best_of(("L1",), "fast waves, worst")),
        margin=0.0,
        reason="as C4a",
        unit="share",
    ),
    Claim(
        "C4c",
        "Absum is ahead of clipped singular values under the worst fast wave.",
        ABSTRACT,
        gap(at(ABSUM, "fast waves, worst"), best_of(("clip",), "fast waves, worst")),
        margin=0.0,
        reason="as C4a",
        unit="share",
    ),
    Claim(
        "C4d",
        "Strong weight decay (0.1) costs clean accuracy against Absum.",
        ABSTRACT,
        gap(at(ABSUM, "clean accuracy"), at("decay 0.1", "clean accuracy")),
        margin=0.005,
        reason="half a point, as C3b",
        unit="share",
    ),
    Claim(
        "C4e",
        "So does a strong L1 penalty (0.03).",
        ABSTRACT,
        gap(at(ABSUM, "clean accuracy"), at("L1 0.03", "clean accuracy")),
        margin=0.005,
        reason="half a point, as C3b",
        unit="share",
    ),
    Claim(
        "C5a",
        "Absum raises the accuracy under noise of high frequency.",
        ABSTRACT,
        rise("noise accuracy"),
        margin=0.02,
        reason="two points: nine test images",
        unit="share",
    ),
    Claim(
        "C5b",
        "There it is ahead of every decay and every L1 penalty.",
        ABSTRACT,
        gap(at(ABSUM, "noise accuracy"), best_of(("decay", "L1"), "noise accuracy")),
        margin=0.0,
        reason="as C4a",
        unit="share",
    ),
    Claim(
        "C6",
        "The average over fast waves rises as well.",
        PAPER,
        rise("fast waves, mean"),
        margin=0.01,
        reason="one point, since the average of a plain network is high already",
        unit="share",
    ),
    Claim(
        "C7",
        "Under examples made for another plain network Absum is ahead of every decay and L1.",
        ABSTRACT,
        gap(at(ABSUM, "transfer accuracy"), best_of(("decay", "L1"), "transfer accuracy")),
        margin=0.0,
        reason="as C4a",
        unit="share",
    ),
    Claim(
        "C8a",
        "With adversarial training, Absum raises the accuracy under PGD.",
        ABSTRACT,
        gap(at("AT + Absum 0.01", "PGD accuracy"), at("AT", "PGD accuracy")),
        margin=0.0,
        reason="better at all",
        unit="share",
    ),
    Claim(
        "C8b",
        "Without it, Absum does not: accuracy under PGD rises by at most two points, if at all.",
        HERE,
        gap(at("none", "PGD accuracy"), at(ABSUM, "PGD accuracy")),
        margin=-0.02,
        reason="the sampling error is about three points; a first toy run saw it fall by seven",
        unit="share",
    ),
    Claim(
        "C10a",
        "Two plain networks of different seeds fail at the same waves.",
        "tsuzuku2019structural",
        agreement("none", OTHER),
        margin=0.7,
        reason="half of the variance explained",
        unit="Pearson r",
    ),
    Claim(
        "C10b",
        "A plain network and one with Absum agree less.",
        HERE,
        gap(agreement("none", OTHER), agreement("none", ABSUM)),
        margin=0.0,
        reason="less at all",
        unit="difference of r",
    ),
    Claim(
        "B1",
        "With kernels of 3x3 on the same images Absum gains less under the worst fast wave.",
        HERE,
        gap(rise("fast waves, worst"), rise("fast waves, worst", variant="3x3 kernels")),
        margin=0.1,
        reason="the gain that C3a asks for",
        unit="share",
    ),
    Claim(
        "B2",
        "On digits of 8x8, as they come, Absum lowers the average accuracy under fast waves.",
        HERE,
        gap(
            at("none", "fast waves, mean", "native 8x8"),
            at(ABSUM, "fast waves, mean", "native 8x8"),
        ),
        margin=0.0,
        reason="lower at all",
        unit="share",
    ),
)

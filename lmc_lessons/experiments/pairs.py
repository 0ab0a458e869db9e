"""What the experiments on connectivity share: pairs of networks trained alike, and lines between.

The unit of repetition is a pair: seed s is the pair trained from seeds 2s and 2s + 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from lmc_lessons import datasets
from lmc_lessons.connectivity.symmetry import Symmetry, find_symmetry
from lmc_lessons.curvature import inner_product
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.runs import Stages, finish, train_stages
from lmc_lessons.landscape import Profile, line
from lmc_lessons.models import ModelConfig, Params, build, parameter_names, unstack
from lmc_lessons.results import Claim, Result, Series
from lmc_lessons.training import Spawn, TrainConfig

Pair = tuple[Params, Params]
Numbers = dict[str, Any]
Measured = tuple[dict[str, list[float]], dict[str, Series]]

MNIST_MLP = ModelConfig("mlp", (1, 28, 28), 10, width=512, depth=3)
RESNET20 = ModelConfig("resnet", (3, 32, 32), 10, width=4, depth=20, norm="layer")
VGG11 = ModelConfig("vgg", (3, 32, 32), 10, width=1, depth=11, norm="batch")


def gpu_recipe(**changes: Any) -> TrainConfig:
    """The recipe of the convolutional presets: SGD with momentum, warm-up, then linear to zero.

    Args:
        changes: Settings that differ.

    Returns:
        How to train.
    """
    recipe = TrainConfig(
        epochs=30,
        batch_size=500,
        optimizer="sgd",
        learning_rate=0.4,
        weight_decay=5e-4,
        schedule="linear",
        warmup_epochs=3,
        augmentation="flip-crop",
        precision="bfloat16",
        channels_last=True,
        compile=True,
    )
    return dataclasses.replace(recipe, **changes)


@dataclass(frozen=True)
class PairConfig:
    """The settings that every experiment on pairs has.

    Attributes:
        preset: Name of the preset.
        seeds: Pairs of networks; pair s is trained from seeds 2s and 2s + 1.
        dataset: Name for ``datasets.load``.
        limit: Use only so many training samples; None uses all.
        model: Architecture.
        train: How to train.
        positions: Number of points on every path, odd so that the midpoint is one of them.
        together: Networks trained in one program; 0 means all.
        evaluate: Number of samples of each split on which paths are measured; None uses all.
        match_with: Number of training inputs for activation matching and statistics.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    dataset: str = "digits"
    limit: int | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    positions: int = 25
    together: int = 0
    evaluate: int | None = None
    match_with: int = 2000

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers >= 0, got {self.seeds}")
        if self.positions < 3 or self.positions % 2 == 0:
            raise ValueError(f"positions must be odd and at least 3, got {self.positions}")
        if self.together < 0:
            raise ValueError(f"together must be >= 0, got {self.together}")
        for name in ("evaluate", "match_with"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


class Setting(NamedTuple):
    """An architecture with its symmetry, and the data: what every measurement needs."""

    model: nn.Module
    symmetry: Symmetry
    data: Dataset
    positions: tuple[float, ...]
    device: str
    match_with: Tensor


class PairRun:
    """One run of an experiment on pairs: its configuration, data, stages and device."""

    def __init__(
        self,
        config: Any,
        folder: Path | None = None,
        *,
        progress: bool = False,
        device: str = "cpu",
        root: Path | None = None,
    ) -> None:
        """Load the data, and open the stages.

        Args:
            config: What to run: a ``PairConfig`` with what the lesson adds.
            folder: Where partial work is kept; None keeps none.
            progress: Whether to show progress.
            device: ``cpu`` or ``cuda``.
            root: Where data sets lie; see ``datasets.load``.

        Raises:
            ValueError: If the data set is not there, or does not fit the model.
        """
        self.config, self.device, self.progress = config, device, progress
        self.stages = Stages(folder, config, progress=progress)
        self.data = datasets.load(config.dataset, limit=config.limit, root=root)
        self.trained: dict[Any, dict[int, list[Params]]] = {}
        self.check(config.model)

    def check(self, model: ModelConfig) -> None:
        """Refuse an architecture that the data do not fit, before anything is trained.

        Args:
            model: The architecture.

        Raises:
            ValueError: If it takes other inputs, or has fewer classes.
        """
        name, data = self.config.dataset, self.data
        if data.classes > model.classes:
            raise ValueError(f"{name} has {data.classes} classes, the model {model.classes}")
        if data.input_shape != model.input_shape:
            raise ValueError(
                f"{name} has inputs of shape {data.input_shape}, "
                f"the model takes {model.input_shape}"
            )

    def setting(self, model_config: ModelConfig) -> Setting:
        """An architecture with its symmetry and the part of the data that paths are measured on.

        Args:
            model_config: The architecture.

        Returns:
            All of it on the run's device.
        """
        model = build(model_config)
        count, some = self.config.positions, slice(self.config.evaluate)
        data = dataclasses.replace(
            self.data,
            test_x=self.data.test_x[some].to(self.device),
            test_y=self.data.test_y[some].to(self.device),
            train_x=self.data.train_x[some].to(self.device),
            train_y=self.data.train_y[some].to(self.device),
        )
        symmetry = find_symmetry(model, self.data.train_x[:4])
        return Setting(
            model.to(self.device),
            dataclasses.replace(symmetry, graph=symmetry.graph.to(self.device)),
            data,
            tuple(k / (count - 1) for k in range(count)),
            self.device,
            self.data.train_x[: self.config.match_with].to(self.device),
        )

    def networks(
        self, name: str, model: ModelConfig, recipe: TrainConfig, snapshots: Sequence[int] = ()
    ) -> dict[int, list[Params]]:
        """Train two networks per pair; the same architecture and recipe are trained once.

        Args:
            name: Name of the stage.
            model: Architecture.
            recipe: How to train.
            snapshots: Epochs whose networks to keep beside the last.

        Returns:
            Epoch to networks in the order of their seeds, 2s before 2s + 1.
        """
        wanted = {e for e in snapshots if e <= recipe.epochs} | {recipe.epochs}
        if not wanted <= self.trained.get((model, recipe), {}).keys():
            seeds = [seed for s in self.config.seeds for seed in (2 * s, 2 * s + 1)]
            self.trained[model, recipe] = self.train(name, model, recipe, seeds, snapshots)
        return self.trained[model, recipe]

    def train(
        self,
        name: str,
        model: ModelConfig,
        recipe: TrainConfig,
        seeds: Sequence[int],
        snapshots: Sequence[int] = (),
        spawn: Sequence[Spawn | None] = (),
    ) -> dict[int, list[Params]]:
        """Train one network per seed, a stage per program.

        Args:
            name: Name of the stage.
            model: Architecture.
            recipe: How to train.
            seeds: The seeds.
            snapshots: Epochs whose networks to keep beside the last.
            spawn: Where each network leaves the run of another seed; see ``training.train``.

        Returns:
            Epoch to networks in the order of the seeds.
        """
        found = train_stages(
            self.stages,
            name,
            model,
            self.data,
            seeds,
            recipe,
            spawn=spawn,
            snapshots=snapshots,
            together=self.config.together,
            device=self.device,
        )
        return {epoch: unstack(params) for epoch, params in found.items()}

    def pairs(self, networks: list[Params]) -> list[tuple[int, Pair]]:
        """Each pair with its seed.

        Args:
            networks: Networks in the order of their seeds.

        Returns:
            Seed and pair.
        """
        return [
            (s, (networks[2 * k], networks[2 * k + 1])) for k, s in enumerate(self.config.seeds)
        ]

    def finish(
        self,
        lesson: str,
        metrics: Mapping[str, Sequence[float]],
        series: Mapping[str, Series],
        claims: Sequence[Claim],
    ) -> Result:
        """Decide the claims and record what made the result.

        Args:
            lesson: Slug of the lesson.
            metrics: Name to one number per pair.
            series: Name to a quantity on a grid.
            claims: The lesson's claims.

        Returns:
            The result, ready to be saved.
        """
        return finish(
            lesson,
            self.config,
            stages=self.stages,
            metrics=metrics,
            series=series,
            claims=claims,
            datasets=[self.data],
            device=self.device,
        )


def profiles(
    setting: Setting, a: Params, b: Params, *, reset: bool = True
) -> tuple[Profile, Profile]:
    """Test and training profile of the straight line between two networks.

    Args:
        setting: Architecture and data.
        a: The network at position 0.
        b: The network at position 1.
        reset: Whether BatchNorm's statistics are measured anew at every point inside.

    Returns:
        Test profile, training profile.
    """
    data = setting.data
    with_ = setting.match_with if reset else None
    fit = line(setting.model, a, b, setting.positions, data.train_x, data.train_y, reset_with=with_)
    return profile_on_test(setting, a, b, reset=reset), fit


def profile_on_test(setting: Setting, a: Params, b: Params, *, reset: bool = True) -> Profile:
    """Test profile of the straight line between two networks.

    Args:
        setting: Architecture and data.
        a: The network at position 0.
        b: The network at position 1.
        reset: Whether BatchNorm's statistics are measured anew at every point inside.

    Returns:
        The profile at the setting's positions.
    """
    data = setting.data
    with_ = setting.match_with if reset else None
    return line(setting.model, a, b, setting.positions, data.test_x, data.test_y, reset_with=with_)


def distance(model: nn.Module, a: Params, b: Params) -> float:
    """Euclidean distance of two networks' parameters; buffers do not count.

    Args:
        model: Architecture.
        a: One network.
        b: The other.

    Returns:
        A number >= 0.
    """
    gap = {name: a[name] - b[name] for name in parameter_names(model)}
    return float(inner_product(gap, gap)) ** 0.5

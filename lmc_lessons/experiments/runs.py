"""What every experiment needs: restartable stages, changed settings, the finished record."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import json
import platform
import shutil
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.models import ModelConfig, Params, build, state
from lmc_lessons.provenance import code_hash
from lmc_lessons.results import Claim, Result, dump, peak_memory_mb, write_atomically
from lmc_lessons.training import Loss, Spawn, TrainConfig, cross_entropy, train

Config = TypeVar("Config")
PREACT_RESNET18 = ModelConfig("preact-resnet", (3, 32, 32), 10, width=1, depth=18, norm="batch")
ONE_CYCLE = TrainConfig(  # adversarial training on CIFAR-10 in thirty epochs
    epochs=30,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.2,
    weight_decay=5e-4,
    schedule="one-cycle",
    augmentation="flip-crop",
    fast=True,
    precision="bfloat16",
    channels_last=True,
    compile=True,
)
Labelled = tuple[Tensor, Tensor]  # inputs and labels
LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn")


class Stages:
    """Restartable units of work: each is done once, and what it gave is kept on disk.

    A run that was killed and is started again finds every finished stage, and does only what is
    left. Without a folder nothing is kept. Names of stages may hold spaces, commas and plus signs.
    """

    def __init__(self, folder: Path | None, config: Any, *, progress: bool = False) -> None:
        """Open the stages of one configuration.

        Args:
            folder: Where partial work lies; stages of another configuration or code are not reused.
            config: The configuration; part of the folder's name.
            progress: Whether to name each stage as it runs.
        """
        self.code = code_hash([type(config).__module__])  # now: it may change during a long run
        self.folder = folder / config_hash(config) if folder else None
        self.progress = progress
        self.seconds = 0.0

    def tensors(self, name: str, compute: Callable[[Path | None], Params]) -> Params:
        """A stage that gives tensors, such as a training.

        Args:
            name: Name of the stage, unique in the run.
            compute: Does the work; it is given a path for checkpoints of its own, or None.

        Returns:
            Tensors by name.
        """
        if self.folder is None:
            return self._timed(name, lambda: compute(None))
        path = self.folder / f"{_file_name(name)}.safetensors"
        if path.is_file():
            self.seconds += json.loads(path.with_suffix(".json").read_text())
            return load_file(path)
        checkpoint = path.with_suffix(".checkpoint")
        before = self.seconds
        tensors = self._timed(name, lambda: compute(checkpoint))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path.with_suffix(".json"), json.dumps(self.seconds - before))
        part = path.with_suffix(".tmp")
        save_file({key: value.contiguous() for key, value in tensors.items()}, part)
        part.replace(path)
        checkpoint.unlink(missing_ok=True)
        return tensors

    def numbers(self, name: str, compute: Callable[[], Any]) -> Any:
        """A stage that gives plain data, such as a measurement.

        Args:
            name: Name of the stage, unique in the run.
            compute: Does the work; gives what JSON can hold.

        Returns:
            The data, as JSON gives them back.
        """
        path = self.folder / f"{_file_name(name)}.numbers.json" if self.folder else None
        if path is not None and path.is_file():
            kept = json.loads(path.read_text())
            self.seconds += kept["seconds"]
            return kept["data"]
        before = self.seconds
        data = json.loads(json.dumps(self._timed(name, compute)))
        if path is not None:
            kept = {"seconds": self.seconds - before, "data": data}
            write_atomically(path, json.dumps(kept))
        return data

    def _timed(self, name: str, compute: Callable[[], Any]) -> Any:
        if self.progress:
            tqdm.write(f"  {name}")
        start = time.perf_counter()
        outcome = compute()
        self.seconds += time.perf_counter() - start
        return outcome

    def clear(self) -> None:
        """Remove the partial work, once the result is safely written."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def _file_name(stage: str) -> str:
    return stage.replace(",", "").replace(" + ", "-").replace(" ", "-")


def load_cut(
    name: str,
    model: ModelConfig,
    *,
    samples: int | None = None,
    test: int | None = None,
    root: Path | None = None,
) -> Dataset:
    """Load a data set for an architecture, and keep the first so many of each split.

    Args:
        name: Name for ``datasets.load``.
        model: What it must fit.
        samples: Training samples to keep; None keeps all.
        test: Test samples to keep; None keeps all.
        root: Where data sets lie.

    Returns:
        The data set.

    Raises:
        ValueError: If the data set is not there, is too small, or does not fit the model.
    """
    data = _fitting(datasets.load(name, root=root), model)
    for kind, wanted, there in (
        ("training", samples, len(data.train_x)),
        ("test", test, len(data.test_x)),
    ):
        if wanted is not None and wanted > there:
            raise ValueError(f"{data.name} has {there} {kind} samples, asked for {wanted}")
    return dataclasses.replace(
        data,
        train_x=data.train_x[:samples],
        train_y=data.train_y[:samples],
        test_x=data.test_x[:test],
        test_y=data.test_y[:test],
    )


def hold_out(
    data: Dataset, model: ModelConfig, samples: int | None, validation: int
) -> tuple[Dataset, Labelled, Labelled]:
    """Cut the training part into what is trained on, what chooses when to stop, and a rest.

    Args:
        data: The data set.
        model: What it must fit.
        samples: Training samples to keep; None keeps all that are not for validation.
        validation: Samples for validation, the next so many.

    Returns:
        The data with a smaller training part; inputs and labels for validation; those left over.

    Raises:
        ValueError: If there are not enough samples, or they do not fit the model.
    """
    there = len(_fitting(data, model).train_x)
    kept = there - validation if samples is None else samples
    end = kept + validation
    if kept < 2 or end > there:
        raise ValueError(
            f"{data.name} has {there} training samples, asked for {samples} and {validation} for "
            "validation"
        )
    part = dataclasses.replace(data, train_x=data.train_x[:kept], train_y=data.train_y[:kept])
    held = data.train_x[kept:end], data.train_y[kept:end]
    return part, held, (data.train_x[end:], data.train_y[end:])


def _fitting(data: Dataset, model: ModelConfig) -> Dataset:
    if data.input_shape != model.input_shape or data.classes > model.classes:
        raise ValueError(
            f"{data.name} has inputs of shape {data.input_shape} and {data.classes} classes, the "
            f"model takes {model.input_shape} and {model.classes}"
        )
    return data


def train_stages(
    stages: Stages,
    name: str,
    model: ModelConfig,
    data: Dataset,
    seeds: Sequence[int],
    recipe: TrainConfig,
    *,
    loss: Loss = cross_entropy,
    spawn: Sequence[Spawn | None] = (),
    snapshots: Sequence[int] = (),
    together: int = 0,
    device: str = "cpu",
) -> dict[int, Params]:
    """Train one network per seed, a stage per program, so that a killed run can go on.

    Args:
        stages: The run's stages.
        name: Name of the network, unique in the run.
        model: Architecture.
        data: Data set; only its training part is used.
        seeds: S different seeds.
        recipe: How to train.
        loss: The loss; a finished stage does not know it, so another loss needs another name.
        spawn: Where each network leaves the run of another seed; see ``training.train``.
        snapshots: Epochs to keep beside the last; those beyond the last are left out.
        together: Networks trained in one program; 0 means all.
        device: Where to train, and where the networks come back to.

    Returns:
        Epoch to parameters of shape (S, ...), in the order of the seeds.

    Raises:
        ValueError: As ``training.train`` does.
    """
    kept = sorted({e for e in snapshots if e <= recipe.epochs} | {recipe.epochs})
    size = together or len(seeds)
    parts: dict[str, list[Tensor]] = {}
    for first in range(0, len(seeds), size):
        part = slice(first, first + size)
        stage = f"train-{name}-{seeds[first]}"

        def compute(checkpoint: Path | None, part: slice = part, stage: str = stage) -> Params:
            training = train(
                model,
                data,
                seeds[part],
                recipe,
                loss=loss,
                spawn=spawn[part],
                snapshots=kept,
                device=device,
                progress=stage if stages.progress else "",
                checkpoint=checkpoint,
            )
            return {
                f"{epoch}/{key}": tensor
                for epoch, params in training.snapshots.items()
                for key, tensor in params.items()
            }

        for key, tensor in stages.tensors(stage, compute).items():
            parts.setdefault(key, []).append(tensor)
    names = state(build(model))  # files do not keep the order of tensors
    return {
        epoch: {name: torch.cat(parts[f"{epoch}/{name}"]).to(device) for name in names}
        for epoch in kept
    }


@contextlib.contextmanager
def one_thread(enabled: bool = True) -> Iterator[None]:
    """Run a block on one CPU thread, so that its numbers do not depend on the number of cores.

    Args:
        enabled: Whether to do so; otherwise the block runs as it would.
    """
    before = torch.get_num_threads()
    if enabled:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def config_hash(config: Any) -> str:
    """Hash of a configuration and of the code that would run it.

    Args:
        config: A dataclass instance.

    Returns:
        16 hexadecimal digits.
    """
    text = repr(config) + code_hash([type(config).__module__])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def finish(
    lesson: str,
    config: Any,
    *,
    stages: Stages,
    metrics: Mapping[str, Sequence[float]],
    series: Mapping[str, Any],
    claims: Sequence[Claim],
    datasets: Sequence[Dataset],
    device: str,
) -> Result:
    """Turn measurements into a result: decide the claims, and record what made it.

    Args:
        lesson: Slug of the lesson.
        config: The frozen configuration, with fields ``preset`` and ``seeds``.
        stages: The stages of the run, for its time and the hash of its code.
        metrics: Name to one number per seed.
        series: Name to ``Series``.
        claims: The lesson's claims.
        datasets: Data sets used.
        device: Where the run took place.

    Returns:
        The result, ready to be saved.
    """
    result = Result(
        lesson=lesson,
        preset=config.preset,
        config=json.loads(json.dumps(dataclasses.asdict(config))),
        seeds=list(config.seeds),
        metrics={name: [float(v) for v in values] for name, values in metrics.items()},
        series=dict(series),
        datasets={d.name: {"variant": d.variant, "sha256": d.sha256} for d in datasets},
        device=device,
        seconds=stages.seconds,
        peak_memory_mb=peak_memory_mb(),
        versions={"python": platform.python_version()}
        | {n: metadata.version(n) for n in LIBRARIES},
        code=stages.code,
    )
    result = Result.from_json(json.loads(dump(result.to_json())))  # decide on the numbers as stored
    result.claims = [claim.decide(result) for claim in claims]
    return result


def override(config: Config, settings: Sequence[str]) -> Config:
    """Change settings of a frozen configuration by ``KEY=VALUE`` texts.

    Args:
        config: A dataclass instance; nested ones are reached by dots, as in ``train.epochs=2``.
        settings: Texts such as ``seeds=(0,1)`` or ``model.width=16``.

    Returns:
        A changed copy.

    Raises:
        ValueError: If a text has no ``=``, a key does not exist, or a value is of the wrong type;
            the message says what was given and what is allowed.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set needs KEY=VALUE, got {setting!r}")
        config = _set(config, key.strip().split("."), text.strip(), key.strip())
    return config


def _set(config: Any, path: list[str], text: str, key: str) -> Any:
    names = [field.name for field in dataclasses.fields(config)]
    if path[0] not in names:
        raise ValueError(f"no setting {key!r}, allowed here: {', '.join(names)}")
    old = getattr(config, path[0])
    if dataclasses.is_dataclass(old):
        if len(path) == 1:
            inner = ", ".join(f"{key}.{field.name}" for field in dataclasses.fields(old))
            raise ValueError(f"{key!r} is a group of settings, set one of: {inner}")
        return dataclasses.replace(config, **{path[0]: _set(old, path[1:], text, key)})
    if len(path) > 1:
        raise ValueError(f"{'.'.join(path[:1])!r} has no settings below it, got {key!r}")
    wanted = typing.get_type_hints(type(config))[path[0]]
    return dataclasses.replace(config, **{path[0]: _parsed(text, wanted, old, key)})


def _parsed(text: str, wanted: Any, old: Any, key: str) -> Any:
    """Read a value as the kind that the setting is declared to be."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text
    inner = typing.get_args(wanted)
    if typing.get_origin(wanted) is tuple:
        values = value if isinstance(value, list | tuple) else (value,)
        value = tuple(_number(v, inner[0]) for v in values)
        fits = all(type(v) is inner[0] for v in value)
        kind = f"tuple of {inner[0].__name__}"
    else:
        kinds = [k for k in inner if isinstance(k, type)] or [type(old)]
        value = _number(value, kinds[0])
        fits = type(value) in kinds
        kind = " or ".join(k.__name__ for k in kinds)
    if not fits:
        raise ValueError(f"{key} must be of type {kind} (now {old!r}), got {text!r}")
    return value


def _number(value: Any, kind: Any) -> Any:
    return float(value) if kind is float and type(value) is int else value

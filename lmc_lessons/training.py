"""Train one network or many seeds at once, with one loop for every lesson.

Seeds are a leading axis: S networks of one architecture are one set of tensors of shape (S, ...),
and one program trains them all. In exact mode every network is, bit for bit, what a run of its own
would give on one thread; fast mode fuses the optimiser and agrees to rounding. A loss is any
callable ``loss(network, x, y) -> (S,)``. The ``Network`` it is given can also be run in another
mode or with moved weights, so adversarial training is a loss and not another loop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from lmc_lessons.datasets import Dataset
from lmc_lessons.models import (
    MLP,
    Autoencoder,
    ModelConfig,
    Params,
    build,
    initial,
    parameter_names,
    predict_stacked,
    stack,
)

Predict = Callable[[Tensor], Tensor]
Mode = Literal["train", "eval"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "linear", "step", "one-cycle"]
Augmentation = Literal["none", "flip-crop"]
Precision = Literal["float32", "bfloat16"]
DATA_ORDER, AUGMENTATION, LABEL_NOISE = 1, 2, 3  # independent random streams of one seed


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is no longer finite, or a checkpoint does not fit."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Passes over the training data.
        batch_size: Samples per step and seed; an incomplete last batch is dropped.
        optimizer: ``adam``, ``adamw`` or ``sgd``.
        learning_rate: The peak of the schedule.
        momentum: For ``sgd`` only.
        weight_decay: L2 penalty (``adam``, ``sgd``) or decoupled decay (``adamw``) per step.
        schedule: ``constant``, or after the warm-up down to zero by ``cosine`` or ``linear``;
            ``step`` falls to a tenth after half and again after three quarters of all steps;
            ``one-cycle`` rises linearly for 30 % of all steps, then falls linearly to zero.
        warmup_epochs: Epochs of linear rise from zero (not for ``one-cycle``).
        label_noise: Fraction of training labels replaced by another class, in [0, 1).
        augmentation: ``flip-crop``: random mirror image and shift by up to 4 pixels.
        fast: Use the fused optimiser; equal to exact mode only up to rounding.
        precision: ``bfloat16`` runs the network under autocast.
        channels_last: Memory layout of images, faster on GPUs.
        compile: Compile the network with ``torch.compile``.
    """

    epochs: int = 60
    batch_size: int = 64
    optimizer: Optimizer = "adam"
    learning_rate: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: Schedule = "constant"
    warmup_epochs: float = 0.0
    label_noise: float = 0.0
    augmentation: Augmentation = "none"
    fast: bool = False
    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        """Refuse settings that make no sense, naming what is allowed."""
        choices = {
            "optimizer": Optimizer,
            "schedule": Schedule,
            "augmentation": Augmentation,
            "precision": Precision,
        }
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                allowed = ", ".join(get_args(kind))
                raise ValueError(f"{name} is {getattr(self, name)!r}, allowed: {allowed}")
        if self.epochs < 0 or self.batch_size < 1:
            raise ValueError(
                f"epochs must be >= 0 and batch_size >= 1, got {self.epochs}, {self.batch_size}"
            )
        if not self.learning_rate > 0 or self.weight_decay < 0 or not 0 <= self.label_noise < 1:
            raise ValueError(
                "learning_rate must be > 0, weight_decay >= 0 and label_noise in [0, 1), got "
                f"{self.learning_rate}, {self.weight_decay}, {self.label_noise}"
            )
        if self.momentum < 0 or self.warmup_epochs < 0:
            raise ValueError(
                "momentum and warmup_epochs must be >= 0, got "
                f"{self.momentum}, {self.warmup_epochs}"
            )


@dataclass(frozen=True)
class Spawn:
    """Where a network leaves the run of another seed.

    The network starts from the parent's initial values (and its noisy labels), sees the parent's
    batches for so many steps, and from then on batches in an order of its own. In the epoch in
    which it leaves, its own order runs over the samples that the parent has not shown yet, and its
    own stream of augmentation begins.

    Attributes:
        parent: The other seed; it need not be trained in the same program.
        step: Number of steps shared, 0 or more; 0 shares the start only.
    """

    parent: int
    step: int

    def __post_init__(self) -> None:
        """Refuse a negative step."""
        if self.step < 0:
            raise ValueError(f"a network is spawned at a step >= 0, got {self.step}")


@dataclass(frozen=True)
class Training:
    """What training gave.

    Attributes:
        params: Parameters and buffers of shape (S, ...), in the order of ``seeds``.
        seeds: The seeds.
        loss: Mean training loss of every epoch, shape (S, epochs), in the loss's unit.
        snapshots: Epoch to a copy of ``params`` after that epoch (0: before the first step).
    """

    params: Params
    seeds: tuple[int, ...]
    loss: Tensor
    snapshots: dict[int, Params]


@dataclass(frozen=True)
class Network:
    """The S networks that are being trained, as a loss sees them.

    Called on inputs of shape (S, B, ...) it gives logits of shape (S, B, classes), in train mode
    and with a graph to the weights.

    Attributes:
        params: The trained tensors, of shape (S, ...).
        buffers: The others, such as BatchNorm's statistics, which a run in train mode updates.
        forward: Mode to a function of parameters with buffers, and inputs.
        mode: ``train`` or ``eval``.
        seeds: Whose random streams each network uses at this step.
        step: Number of steps done before.
    """

    params: Params
    buffers: Params
    forward: Mapping[Mode, Callable[[Params, Tensor], Tensor]]
    mode: Mode = "train"
    seeds: tuple[int, ...] = ()
    step: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits of every network."""
        return self.forward[self.mode]({**self.params, **self.buffers}, x)

    def detached(self, mode: Mode) -> Network:
        """The same networks without a graph to the weights, to be attacked.

        Args:
            mode: ``eval``: BatchNorm uses its running statistics; ``train``: it uses those of the
                batch, and updates the running ones at every call.
        """
        params = {name: tensor.detach() for name, tensor in self.params.items()}
        return dataclasses.replace(self, params=params, mode=mode)

    def moved(self, step: Params) -> Network:
        """The same networks at other weights; gradients still reach the weights of this one.

        Args:
            step: What to add, by name; names that it lacks stay.
        """
        moved = {name: tensor + step[name] for name, tensor in self.params.items() if name in step}
        return dataclasses.replace(self, params={**self.params, **moved})

    def aside(self) -> Network:
        """The same networks with a copy of the buffers: what runs there leaves no trace here."""
        copies = {name: tensor.clone() for name, tensor in self.buffers.items()}
        return dataclasses.replace(self, buffers=copies)

    def streams(self, purpose: int) -> list[torch.Generator]:
        """A random stream for each network, new at every step.

        Args:
            purpose: A number that no other use has.
        """
        return [generator(seed, purpose, self.step) for seed in self.seeds]


Loss = Callable[[Network, Tensor, Tensor], Tensor]


def cross_entropy(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of each seed's batch.

    Args:
        predict: Maps inputs (S, B, ...) to logits (S, B, classes).
        x: Inputs of shape (S, B, ...).
        y: Labels of shape (S, B).

    Returns:
        One loss per seed, shape (S,), in nats.

    Taught in: book/start
    """
    logits = predict(x)
    return (
        F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)
    )


def _fast_cross_entropy(predict: Predict, x: Tensor, y: Tensor) -> Tensor:
    """The same up to rounding, in the layout that PyTorch differentiates fastest on a CPU."""
    return F.cross_entropy(predict(x).mT, y, reduction="none").mean(1)


def generator(seed: int, *stream: int) -> torch.Generator:
    """An independent random stream for a seed and a purpose.

    Args:
        seed: The seed.
        stream: Integers that name the purpose, such as ``DATA_ORDER`` and the epoch.

    Returns:
        A CPU generator; streams of different names are statistically independent.
    """
    word = np.random.SeedSequence((seed, *stream)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(word >> 1))


def train(
    model_config: ModelConfig,
    data: Dataset,
    seeds: Sequence[int],
    config: TrainConfig = TrainConfig(),
    *,
    loss: Loss = cross_entropy,
    start: Params | None = None,
    spawn: Sequence[Spawn | None] = (),
    snapshots: Sequence[int] = (),
    device: str | torch.device = "cpu",
    progress: str = "",
    checkpoint: Path | None = None,
) -> Training:
    """Train one network per seed, all in one program.

    A seed (of a spawned network, the parent's) decides the initial values and the noisy labels, and
    the order of the data and the augmentation, through random streams that depend on the epoch
    only. So training that was cut off and resumed from ``checkpoint`` gives the same numbers as
    training that was not.

    Args:
        model_config: Architecture.
        data: Data set; only its training part is used.
        seeds: S different seeds.
        config: How to train.
        loss: Maps a ``Network``, inputs (S, B, ...) and labels (S, B) to one loss per seed.
        start: Parameters of shape (S, ...) to start from instead of fresh ones; a spawned network
            then takes only order, augmentation and labels from its parent.
        spawn: For each of the S networks where it leaves the run of another seed, or None; empty:
            none does.
        snapshots: Epochs whose parameters to keep as well; 0 means before the first step.
        device: Where to train; the result comes back on the CPU.
        progress: Label of a progress bar; none is shown when empty.
        checkpoint: File written after every epoch and resumed from when it exists.

    Returns:
        Trained parameters, training loss per epoch, and snapshots.

    Raises:
        ValueError: If there are no seeds or no training samples, or not one spawn per seed.
        TrainingError: If the loss or the outputs stop being finite, or the checkpoint is of another
            run.

    Taught in: book/start
    """
    if not seeds:
        raise ValueError("train needs at least one seed, got none")
    if len(data.train_x) == 0:
        raise ValueError(f"train needs data, but {data.name} has no training samples")
    if spawn and len(spawn) != len(seeds):
        raise ValueError(f"one spawn (or None) per seed: got {len(spawn)} for {len(seeds)} seeds")
    _check_fit(model_config, data, config)
    spawn = tuple(spawn) or (None,) * len(seeds)
    identity = _identity(model_config, data, tuple(seeds), config, loss, start, spawn, snapshots)
    run = _Run(model_config, data, tuple(seeds), config, loss, start, spawn, device, identity)
    kept = {0: run.copy()} if 0 in snapshots else {}
    history = torch.zeros(len(seeds), config.epochs)
    first = 0
    if checkpoint is not None and checkpoint.is_file():
        first = run.load(checkpoint, kept, history)
    epochs = range(first, config.epochs)
    for epoch in tqdm(epochs, desc=progress, disable=not progress, unit="epoch", leave=False):
        history[:, epoch] = run.epoch(epoch)
        if not torch.isfinite(history[:, epoch]).all():
            bad = [
                s
                for s, value in zip(seeds, history[:, epoch], strict=True)
                if not math.isfinite(value)
            ]
            raise TrainingError(f"training diverged: loss of seeds {bad} not finite, epoch {epoch}")
        if epoch + 1 in snapshots:
            kept[epoch + 1] = run.copy()
        if checkpoint is not None:
            run.save(checkpoint, epoch + 1, kept, history)
    return Training(run.copy(), tuple(seeds), history, kept)


class _Run:
    """The state of one training: parameters, buffers, optimiser, data on the device."""

    def __init__(
        self,
        model_config: ModelConfig,
        data: Dataset,
        seeds: tuple[int, ...],
        config: TrainConfig,
        loss: Loss,
        start: Params | None,
        spawn: tuple[Spawn | None, ...],
        device: str | torch.device,
        identity: str,
    ) -> None:
        self.config, self.seeds, self.device = config, seeds, torch.device(device)
        self.spawn, self.identity = spawn, identity
        born = [leaves.parent if leaves else s for s, leaves in zip(seeds, spawn, strict=True)]
        self.loss = _fast_cross_entropy if config.fast and loss is cross_entropy else loss
        model = build(model_config)
        names = parameter_names(model)
        values = start or stack([initial(model_config, seed) for seed in born])
        values = {name: tensor.to(device, copy=True) for name, tensor in values.items()}
        # Batched products give a weight's gradient transposed. Stored like that, it is not copied.
        stored_transposed = config.fast and isinstance(model, MLP | Autoencoder)
        self.transposed = {n for n in names if stored_transposed and values[n].dim() == 3}
        for name in self.transposed:
            values[name] = values[name].mT.contiguous()
        self.leaves = {name: values[name].requires_grad_() for name in names}
        self.buffers = {name: tensor for name, tensor in values.items() if name not in names}
        self.optimizer = _optimizer(list(self.leaves.values()), config)
        self.x = data.train_x.to(device)
        self.y = torch.stack([noisy_labels(data, config.label_noise, s) for s in born]).to(device)
        self.batch = min(config.batch_size, len(self.x))
        self.steps = len(self.x) // self.batch
        self.forward = {
            mode: _forward(build(model_config).train(mode == "train").to(device), config.compile)
            for mode in get_args(Mode)
        }

    @property
    def params(self) -> Params:
        """The trained tensors in the architecture's own shapes (views)."""
        return {n: t.mT if n in self.transposed else t for n, t in self.leaves.items()}

    def epoch(self, epoch: int) -> Tensor:
        """One pass over the data; returns the mean loss per seed."""
        parents, shared = self._sharing(epoch)
        orders = self._orders(epoch, parents, shared).to(self.device)
        own = [generator(s, AUGMENTATION, epoch) for s in self.seeds]
        theirs = [generator(s, AUGMENTATION, epoch) for s in parents]
        total = torch.zeros(len(self.seeds), device=self.device)
        for step in range(self.steps):
            streams = [q if step < n else p for p, q, n in zip(own, theirs, shared, strict=True)]
            index = orders[:, step * self.batch : (step + 1) * self.batch]
            factor = schedule_factor(self.config, epoch * self.steps + step, self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = self.config.learning_rate * factor
            owners = [
                q if step < n else s for s, q, n in zip(self.seeds, parents, shared, strict=True)
            ]
            network = Network(
                self.params,
                self.buffers,
                self.forward,
                seeds=tuple(owners),
                step=epoch * self.steps + step,
            )
            total += self._step(network, self._images(index, streams), self.y.gather(1, index))
        return (total / self.steps).cpu()

    def _sharing(self, epoch: int) -> tuple[list[int], list[int]]:
        """Each network's parent (or itself), and how many steps of this epoch it shares."""
        done = epoch * self.steps
        pairs = [
            (leaves.parent, min(max(leaves.step - done, 0), self.steps)) if leaves else (seed, 0)
            for seed, leaves in zip(self.seeds, self.spawn, strict=True)
        ]
        return [parent for parent, _ in pairs], [steps for _, steps in pairs]

    def _orders(self, epoch: int, parents: list[int], shared: list[int]) -> Tensor:
        """The order of the data for each network, shape (S, N)."""
        n, orders = len(self.x), []
        for seed, parent, steps in zip(self.seeds, parents, shared, strict=True):
            order = torch.randperm(n, generator=generator(seed, DATA_ORDER, epoch))
            if steps:
                followed = torch.randperm(n, generator=generator(parent, DATA_ORDER, epoch))
                seen = followed[: steps * self.batch]
                order = torch.cat([seen, order[~torch.isin(order, seen)]])
            orders.append(order)
        return torch.stack(orders)

    def _images(self, index: Tensor, streams: list[torch.Generator]) -> Tensor:
        x = self.x.index_select(0, index.flatten()).unflatten(0, index.shape)  # (S, B, ...)
        if self.config.augmentation == "flip-crop":
            x = torch.stack([flip_crop(part, g) for part, g in zip(x, streams, strict=True)])
        if self.config.channels_last:
            flat = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            x = flat.unflatten(0, x.shape[:2])
        return x

    def _step(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        try:
            with self._autocast():
                losses = self.loss(network, x, y)
        except ValueError as error:  # such as that of an attack that meets no finite gradient
            with torch.no_grad():
                if torch.isfinite(network.aside()(x)).all():
                    raise
            raise TrainingError(f"training diverged in step {network.step}: {error}") from error
        losses.sum().backward()
        self.optimizer.step()
        return losses.detach().float()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.config.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def copy(self) -> Params:
        """The present parameters and buffers, on the CPU."""
        both = {**self.params, **self.buffers}
        copies = {name: tensor.detach().to("cpu", copy=True) for name, tensor in both.items()}
        return {name: tensor.contiguous() for name, tensor in copies.items()}

    def save(self, path: Path, epochs: int, kept: dict[int, Params], history: Tensor) -> None:
        """Write everything needed to go on after ``epochs``, atomically."""
        tensors = {f"state/{name}": tensor for name, tensor in self.copy().items()}
        for epoch, params in kept.items():
            tensors |= {f"kept/{epoch}/{name}": tensor for name, tensor in params.items()}
        for index, parameter in enumerate(self.leaves.values()):
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer/{index}/{key}"] = torch.as_tensor(value).detach().cpu()
        tensors["loss"] = history
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".tmp")
        meta = {"epochs": str(epochs), "run": self.identity}
        save_file({k: t.contiguous() for k, t in tensors.items()}, part, metadata=meta)
        part.replace(path)

    def load(self, path: Path, kept: dict[int, Params], history: Tensor) -> int:
        """Go back to a checkpoint; returns how many epochs it has seen."""
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise TrainingError(f"{path.name} is not a checkpoint: {error}") from error
        if meta.get("run") != self.identity:
            raise TrainingError(f"{path.name} is a checkpoint of another run; remove it or its run")
        parameters = list(self.leaves.values())
        with torch.no_grad():
            for name, tensor in tensors.items():
                kind, _, rest = name.partition("/")
                if kind == "state":
                    {**self.params, **self.buffers}[rest].copy_(tensor)
                elif kind == "optimizer":
                    index, key = rest.split("/")
                    where = "cpu" if key == "step" and not self.config.fast else self.device
                    self.optimizer.state[parameters[int(index)]][key] = tensor.to(where)
                elif kind == "kept":
                    epoch, _, key = rest.partition("/")
                    kept.setdefault(int(epoch), {})[key] = tensor
        history.copy_(tensors["loss"])
        return int(meta["epochs"])


def _forward(model: nn.Module, compiled: bool) -> Callable[[Params, Tensor], Tensor]:
    run = partial(predict_stacked, model)
    return torch.compile(run) if compiled else run


def _check_fit(model_config: ModelConfig, data: Dataset, config: TrainConfig) -> None:
    labelled = model_config.architecture != "autoencoder"
    too_many = labelled and data.classes > model_config.classes
    if data.input_shape != model_config.input_shape or too_many:
        raise ValueError(
            f"{data.name} has inputs of shape {data.input_shape} and {data.classes} classes, the "
            f"model takes {model_config.input_shape} and {model_config.classes}"
        )
    for name, wanted in (
        ("augmentation flip-crop", config.augmentation == "flip-crop"),
        ("channels_last", config.channels_last),
    ):
        if wanted and len(data.input_shape) != 3:
            raise ValueError(f"{name} needs images, {data.name} has inputs {data.input_shape}")


def _identity(
    model_config: ModelConfig,
    data: Dataset,
    seeds: tuple[int, ...],
    config: TrainConfig,
    loss: Loss,
    start: Params | None,
    spawn: tuple[Spawn | None, ...],
    snapshots: Sequence[int],
) -> str:
    configs = (dataclasses.asdict(model_config), dataclasses.asdict(config))
    told = re.sub(r" at 0x[0-9a-f]+", "", repr(loss))  # addresses differ from process to process
    plain = (*configs, seeds, told, spawn, data.sha256)
    digest = hashlib.sha256(repr((*plain, sorted(snapshots))).encode())
    for name, tensor in sorted((start or {}).items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _optimizer(parameters: list[Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    shared: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.fast:
        shared["fused"] = True
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **shared)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, **shared)


def schedule_factor(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, as a fraction of its peak.

    Args:
        config: Which schedule, warm-up and number of epochs.
        step: Number of steps done before.
        steps_per_epoch: Steps in one epoch.

    Returns:
        A factor in [0, 1].
    """
    total = max(1, config.epochs * steps_per_epoch)
    rise = 0.3 * total if config.schedule == "one-cycle" else config.warmup_epochs * steps_per_epoch
    if step < rise:
        return (step + 1) / math.ceil(rise)
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "step":
        return 0.1 ** sum(step >= share * total for share in (0.5, 0.75))
    left = (total - step) / max(1.0, total - rise)
    return (1 - math.cos(math.pi * left)) / 2 if config.schedule == "cosine" else left


def noisy_labels(data: Dataset, fraction: float, seed: int) -> Tensor:
    """Training labels of which a fixed share was replaced by another class.

    Args:
        data: Data set with N training labels.
        fraction: Share of labels to replace, in [0, 1).
        seed: Decides which labels, and by what.

    Returns:
        Labels of shape (N,); exactly ``round(fraction * N)`` of them are wrong.
    """
    labels = data.train_y.clone()
    count = round(fraction * len(labels))
    if count == 0:
        return labels
    stream = generator(seed, LABEL_NOISE)
    chosen = torch.randperm(len(labels), generator=stream)[:count]
    classes = len(data.class_names)
    if classes < 2:
        raise ValueError(f"label noise needs a second class, {data.name} has {classes}")
    shift = torch.randint(1, classes, (count,), generator=stream)
    labels[chosen] = (labels[chosen] + shift) % classes
    return labels


def flip_crop(x: Tensor, stream: torch.Generator, *, pad: int = 4) -> Tensor:
    """Mirror half of the images and shift each by up to ``pad`` pixels (zeros come in).

    Args:
        x: Images of shape (N, C, H, W), on any device.
        stream: CPU generator.
        pad: Largest shift in pixels.

    Returns:
        Images of the same shape.
    """
    n, _, height, width = x.shape
    draw = torch.randint(0, 2 * pad + 1, (2, n), generator=stream).to(x.device)
    flip = (torch.rand(n, generator=stream) < 0.5).to(x.device)
    rows = draw[0].view(n, 1) + torch.arange(height, device=x.device)
    columns = torch.arange(width, device=x.device).expand(n, width)
    columns = torch.where(flip.view(n, 1), columns.flip(1), columns) + draw[1].view(n, 1)
    padded = F.pad(x, (pad, pad, pad, pad)).permute(0, 2, 3, 1)
    which = torch.arange(n, device=x.device).view(n, 1, 1)
    return padded[which, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)

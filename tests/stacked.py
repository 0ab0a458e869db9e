"""What the tests of robust training share: networks as a loss sees them, in float64; small data."""

from __future__ import annotations

from functools import partial
from typing import get_args

import torch
from torch import Tensor

from lmc_lessons.datasets import Dataset
from lmc_lessons.models import (
    ModelConfig,
    Params,
    build,
    initial,
    parameter_names,
    predict_stacked,
    stack,
)
from lmc_lessons.training import Mode, Network

SHAPE, CLASSES = (1, 4, 4), 5
SAMPLES, BATCH = 70, 16  # four steps per epoch; six samples are left over
STEPS = SAMPLES // BATCH


def random_data() -> Dataset:
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(SAMPLES, *SHAPE, generator=stream)
    y = torch.randint(0, CLASSES, (SAMPLES,), generator=stream)
    return Dataset("random", "test", x, y, x[:5], y[:5], tuple("abcde"))


def starts(config: ModelConfig, seeds: tuple[int, ...]) -> Params:
    """Initial networks with normalisation that is not at its start, so that it matters."""
    values = stack([initial(config, seed) for seed in seeds])
    stream = torch.Generator().manual_seed(9)
    for name, tensor in values.items():
        if "norm" in name and tensor.is_floating_point():
            tensor.add_(0.5 * torch.rand(tensor.shape[1:], generator=stream))
    return {n: t.double() if t.is_floating_point() else t for n, t in values.items()}


def network_of(values: Params, config: ModelConfig, seeds: tuple[int, ...], step: int) -> Network:
    """What training hands to a loss, with trained tensors and buffers of its own."""
    modules = {mode: build(config).train(mode == "train") for mode in get_args(Mode)}
    names = parameter_names(modules["eval"])
    return Network(
        {name: values[name].clone().requires_grad_() for name in names},
        {name: tensor.clone() for name, tensor in values.items() if name not in names},
        {mode: partial(predict_stacked, module) for mode, module in modules.items()},
        seeds=seeds,
        step=step,
    )


def gradient(losses: Tensor, network: Network) -> Params:
    """Gradient of each network's loss with respect to its trained tensors."""
    slopes = torch.autograd.grad(losses.sum(), list(network.params.values()))
    return dict(zip(network.params, slopes, strict=True))


def batch(
    networks: int, seed: int = 0, samples: int = 6, classes: int = CLASSES
) -> tuple[Tensor, Tensor]:
    """Inputs in the box, some on its faces, with labels, one batch for each network."""
    stream = torch.Generator().manual_seed(seed)
    x = torch.rand(networks, samples, *SHAPE, generator=stream, dtype=torch.float64)
    on_face = torch.rand(x.shape, generator=stream) < 0.2
    y = torch.randint(0, classes, (networks, samples), generator=stream)
    return torch.where(on_face, x.round(), x), y


def assert_identical(a: Params, b: Params) -> None:
    """Bit for bit; the message names what differs and by how much."""
    assert a.keys() == b.keys()
    wrong = {n: float((a[n] - b[n]).abs().max()) for n in a if not torch.equal(a[n], b[n])}
    assert wrong == {}


def assert_close(a: Params, b: Params, atol: float = 1e-12) -> None:
    """To rounding; the message names what differs and by how much."""
    assert a.keys() == b.keys()
    gaps = {n: float((a[n].double() - b[n].double()).abs().max()) for n in a}
    assert {name: gap for name, gap in gaps.items() if not gap <= atol} == {}

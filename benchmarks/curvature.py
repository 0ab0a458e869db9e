"""Fisher information and sharpness against plain programs: ``python -m benchmarks.curvature``."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import interleaved, main, table, verdict
from lmc_lessons.curvature import (
    fisher_diagonal,
    hessian_of,
    hessian_vector_product,
    inner_product,
    per_sample_gradients,
    top_eigenvalues,
)
from lmc_lessons.datasets import load
from lmc_lessons.models import (
    ModelConfig,
    Params,
    build,
    initial,
    parameter_names,
    predict,
    unstack,
)
from lmc_lessons.training import TrainConfig, train

Program = Callable[[nn.Module, Params, Tensor, Tensor], Params]
MLP = ModelConfig("mlp", (1, 28, 28), 10, width=256, depth=2)
CNN = ModelConfig("cnn", (1, 16, 16), 10, width=16)
BATCHNORM_CNN = ModelConfig("cnn", (1, 16, 16), 10, width=16, norm="batch")
DIGITS_MLP = ModelConfig("mlp", (1, 8, 8), 10, width=128, depth=3)
DIGITS_CNN = ModelConfig("cnn", (1, 8, 8), 10, width=16)
GOALS = {"MLP 784-256-256-10": 30, "CNN 16-32, 8x8": 6, "CNN 16-32, 16x16": 6}
ERROR = 1e-4  # of the top eigenvalue, relative


# --- Fisher information --------------------------------------------------------------------------


def looped(model: nn.Module, params: Params, x: Tensor, y: Tensor) -> Params:
    """A backward pass per sample, as anyone would write it."""
    model.load_state_dict(params)
    own = dict(model.named_parameters())
    total = {name: torch.zeros_like(tensor) for name, tensor in own.items()}
    for k in range(len(x)):
        loss = F.cross_entropy(model(x[k : k + 1]), y[k : k + 1])
        for name, slope in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
            total[name] += slope.square()
    return {name: tensor / len(x) for name, tensor in total.items()}


def vmapped(model: nn.Module, params: Params, x: Tensor, y: Tensor) -> Params:
    """The gradients of 64 samples at once, squared."""
    total = {name: torch.zeros_like(params[name]) for name in parameter_names(model)}
    for inputs, labels in zip(x.split(64), y.split(64), strict=True):
        for name, slopes in per_sample_gradients(model, params, inputs, labels).items():
            total[name] += slopes.square().sum(0)
    return {name: tensor / len(x) for name, tensor in total.items()}


def mean_gradient(model: nn.Module, params: Params, x: Tensor, y: Tensor) -> Params:
    """What any method has to do at least: one forward and one backward pass of all samples."""
    model.load_state_dict(params)
    own = dict(model.named_parameters())
    for inputs, labels in zip(x.split(256), y.split(256), strict=True):
        slopes = torch.autograd.grad(F.cross_entropy(model(inputs), labels), list(own.values()))
    return dict(zip(own, slopes, strict=True))


def doubled(params: Params) -> Params:
    return {n: t.double() if t.is_floating_point() else t for n, t in params.items()}


def largest_difference(one: Params, two: Params) -> float:
    """Relative to the largest entry of the same tensor."""
    return max(float((one[n] - two[n]).abs().max() / two[n].abs().max()) for n in two)


def fisher() -> str:
    configs = {
        "MLP 784-256-256-10": MLP,
        "CNN 16-32, 8x8": DIGITS_CNN,
        "CNN 16-32, 16x16": CNN,
        "the same with BatchNorm": BATCHNORM_CNN,
    }
    programs: dict[str, Program] = {
        "loop": looped,
        "vmap": vmapped,
        "own": fisher_diagonal,
        "floor": mean_gradient,
    }
    rows = []
    for name, config in configs.items():
        model, params = build(config).eval(), initial(config, 0)
        stream = torch.Generator().manual_seed(0)
        x = torch.rand(1000, *config.input_shape, generator=stream)
        y = torch.randint(0, config.classes, (1000,), generator=stream)
        contenders = {key: partial(run, model, params, x, y) for key, run in programs.items()}
        seconds = interleaved(contenders, repeats=5)
        exact = fisher_diagonal(model, doubled(params), x.double(), y)
        error = largest_difference(fisher_diagonal(model, params, x, y), exact)
        ratio, goal = seconds["loop"] / seconds["own"], GOALS.get(name)
        rows.append(
            [
                name,
                *(f"{1e3 * seconds[key]:.0f} ms" for key in programs),
                f"{ratio:.1f}",
                f"{seconds['vmap'] / seconds['own']:.1f}",
                f">= {goal}: {verdict(ratio >= goal)}" if goal else "",
                f"{error:.0e}",
            ]
        )
    header = ["1,000 samples", "loop", "`vmap(grad)`", "`fisher_diagonal`", "floor"]
    return table([*header, "x loop", "x `vmap`", "goal (x loop)", "error"], rows)


# --- Sharpness -----------------------------------------------------------------------------------


@functools.cache
def trained(config: ModelConfig) -> tuple[Callable[[Params], Tensor], Params]:
    """The loss on 500 training digits, and a network trained for five epochs."""
    data = load("digits")
    model = build(config).eval()
    run = train(config, data, [0], TrainConfig(epochs=5, batch_size=64, fast=True))
    x, y = data.train_x[:500], data.train_y[:500]
    return lambda p: F.cross_entropy(predict(model, p, x), y), unstack(run.params)[0]


def power_iteration(
    loss: Callable[[Params], Tensor], params: Params, exact: float, limit: int = 1000
) -> tuple[float, int]:
    """Eigenvalue and products until it is as near as asked; every product builds its graph."""
    stream = torch.Generator().manual_seed(0)
    vector = {n: torch.randn(t.shape, generator=stream) for n, t in params.items()}
    value, products = float("inf"), 0
    while abs(value / exact - 1) > ERROR and products < limit:
        length = inner_product(vector, vector).sqrt()
        vector = {name: tensor / length for name, tensor in vector.items()}
        image = hessian_vector_product(loss, params, vector)
        value, vector, products = float(inner_product(vector, image)), image, products + 1
    return value, products


def by_lanczos(loss: Callable[[Params], Tensor], params: Params) -> tuple[float, int]:
    """Knows no exact value: stops by its own bound on the error."""
    found = top_eigenvalues(hessian_of(loss, params), params, tolerance=ERROR)
    return float(found.values[0]), found.products


def by_pyhessian(config: ModelConfig, params: Params, tolerance: float) -> tuple[float, int]:
    """The package's own loop and stopping rule; it does not tell how many products it took."""
    pyhessian: Any = importlib.import_module("pyhessian")
    data, module = load("digits"), build(config).eval()
    module.load_state_dict(params)
    batch = (data.train_x[:500], data.train_y[:500])
    found = pyhessian.hessian(module, torch.nn.CrossEntropyLoss(), data=batch, cuda=False)
    return float(found.eigenvalues(maxIter=1000, tol=tolerance, top_n=1)[0][0]), 0


def sharpness() -> str:
    rows = []
    for name, config in (("MLP 64-128-128-128-10", DIGITS_MLP), ("CNN 16-32, 8x8", DIGITS_CNN)):
        loss, params = trained(config)
        exact = exact_top(config, doubled(params))
        contenders: dict[str, Callable[[], tuple[float, int]]] = {
            "power iteration": partial(power_iteration, loss, params, exact),
            "`top_eigenvalues`": partial(by_lanczos, loss, params),
        }
        if importlib.util.find_spec("pyhessian"):
            for tolerance in (1e-3, 1e-5):
                name_of = f"PyHessian, tolerance {tolerance:g}"
                contenders[name_of] = partial(by_pyhessian, config, params, tolerance)
        seconds = interleaved(contenders, repeats=5)
        for program, run in contenders.items():
            value, products = run()
            rows.append(
                [
                    name,
                    program,
                    f"{seconds[program]:.2f} s",
                    f"{products}" if products else "",
                    f"{abs(value / exact - 1):.0e}",
                    f"{seconds[program] / seconds['`top_eigenvalues`']:.1f}",
                ]
            )
    head = ["network", "program", "median", "products", "relative error", "time over ours"]
    return table(head, rows)


def exact_top(config: ModelConfig, params: Params) -> float:
    """The top eigenvalue in float64, far beyond what is compared."""
    data, model = load("digits"), build(config).eval()
    x, y = data.train_x[:500].double(), data.train_y[:500]
    product = hessian_of(lambda p: F.cross_entropy(predict(model, p, x), y), params)
    return float(top_eigenvalues(product, params, steps=300, tolerance=1e-10).values[0])


# --- Products ------------------------------------------------------------------------------------


def products() -> str:
    rows = []
    for name, config in (("MLP 64-128-128-128-10", DIGITS_MLP), ("CNN 16-32, 8x8", DIGITS_CNN)):
        loss, params = trained(config)
        stream = torch.Generator().manual_seed(0)
        vector = {n: torch.randn(t.shape, generator=stream) for n, t in params.items()}
        contenders: dict[str, Callable[[], object]] = {
            "fresh": partial(hessian_vector_product, loss, params, vector),
            "kept": partial(hessian_of(loss, params), vector),
        }
        seconds = interleaved(contenders, repeats=41)
        times = [f"{1e3 * seconds[key]:.1f} ms" for key in contenders]
        rows.append([name, *times, f"{seconds['fresh'] / seconds['kept']:.2f}"])
    return table(["network", "`hessian_vector_product`", "`hessian_of`, kept", "ratio"], rows)


if __name__ == "__main__":
    main("curvature", {"fisher": fisher, "sharpness": sharpness, "products": products})

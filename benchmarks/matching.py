"""Weight matching against its floor, a peer and its own options: ``python -m benchmarks.matching``.

The peer is the package ``rebasin``. It is no dependency: install it anywhere and name the folder in
PYTHONPATH (``pip install --no-deps --target FOLDER rebasin torchview graphviz``).
"""

from __future__ import annotations

import functools
import importlib
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, get_args
from unittest import mock

import torch
import torchvision
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.timing import interleaved, main, table, verdict
from lmc_lessons.connectivity import matching
from lmc_lessons.connectivity.matching import Matching, Method, Start, weight_matching
from lmc_lessons.connectivity.symmetry import Symmetry, find_symmetry, inverse, permute
from lmc_lessons.datasets import load
from lmc_lessons.models import ModelConfig, Params, build, initial, state, unstack
from lmc_lessons.training import TrainConfig, train

STARTS, METHODS = get_args(Start), get_args(Method)
WIDE_MLP = ModelConfig("mlp", (1, 28, 28), 10, width=512, depth=3)
RESNET18 = ModelConfig("resnet", (3, 32, 32), 10, width=1, depth=18, norm="batch")
VGG16 = ModelConfig("vgg", (3, 32, 32), 10, width=1, depth=16, norm="batch")
Pair = tuple[Symmetry, Params, Params]


# --- Pairs of networks ---------------------------------------------------------------------------


def small_mlp(width: int) -> ModelConfig:
    """The MLP of the study at another width."""
    return ModelConfig("mlp", (1, 8, 8), 10, width, 3)


@functools.cache
def trained(config: ModelConfig, epochs: int, pairs: int = 1) -> tuple[Pair, ...]:
    """Pairs of networks trained on digits (8x8) or glyphs (28x28)."""
    data = load("digits") if config.input_shape == (1, 8, 8) else load("glyphs", size=28)
    result = train(config, data, range(2 * pairs), TrainConfig(epochs=epochs, fast=True))
    networks, groups = unstack(result.params), symmetry_of(config)
    return tuple((groups, networks[2 * k], networks[2 * k + 1]) for k in range(pairs))


def untrained(config: ModelConfig) -> Pair:
    """Two networks that have nothing in common."""
    return symmetry_of(config), initial(config, 0), initial(config, 1)


def symmetry_of(config: ModelConfig) -> Symmetry:
    return find_symmetry(build(config), torch.zeros(2, *config.input_shape), prove=False)


def noisy_copy(model: nn.Module, shape: tuple[int, ...]) -> Pair:
    """A network, and a randomly permuted copy that has as much noise as signal in its weights."""
    symmetry = find_symmetry(model, torch.zeros(2, *shape), prove=False)
    a, stream = state(model), torch.Generator().manual_seed(0)
    b = dict(a)
    for name, tensor in a.items():
        if tensor.dim() > 1:
            noise = torch.randn(tensor.shape, generator=stream)
            b[name] = tensor + tensor.std(correction=0) * noise
    return symmetry, a, permute(symmetry, b, symmetry.random(0))


def copied(config: ModelConfig) -> Pair:
    torch.manual_seed(0)
    return noisy_copy(build(config), config.input_shape)


# --- The floor -----------------------------------------------------------------------------------


class Products(TorchDispatchMode):
    """Repeats every matrix product bare, and adds up how long the repetitions take."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        operands = {"mm": args[:2], "addmm": args[1:3], "addmm_": args[1:3], "bmm": args[:2]}
        pair = operands.get(func.overloadpacket.__name__)
        if pair is not None:
            out = torch.empty(*pair[0].shape[:-1], pair[1].shape[-1], dtype=pair[0].dtype)
            start = time.perf_counter()
            torch.matmul(*pair, out=out)
            self.seconds += time.perf_counter() - start
        return func(*args, **(kwargs or {}))


class Floor:
    """Seconds in SciPy's assignments and in matrix products, of the very run they are part of."""

    def __init__(self) -> None:
        self.assignments: list[float] = []
        self.products: list[float] = []

    def run(self, pair: Pair, **options: Any) -> None:
        spent = 0.0

        def bare(matrix: Any, maximize: bool = False) -> Any:
            nonlocal spent
            start = time.perf_counter()
            answer = linear_sum_assignment(matrix, maximize=maximize)
            spent += time.perf_counter() - start
            return answer

        with mock.patch.object(matching, "linear_sum_assignment", bare), Products() as products:
            weight_matching(*pair, **options)
        self.assignments.append(spent)
        self.products.append(products.seconds)

    def medians(self) -> tuple[float, float]:
        return statistics.median(self.assignments[1:]), statistics.median(self.products[1:])


def floor() -> str:
    torch.manual_seed(0)
    pairs = {
        "MLP 784-512-512-512-10, trained": trained(WIDE_MLP, 6)[0],
        "the same, untrained": untrained(WIDE_MLP),
        "ResNet-18 (32x32), noisy copy": copied(RESNET18),
        "VGG16 (32x32), noisy copy": copied(VGG16),
        "ResNet-50 (torchvision), noisy copy": noisy_copy(
            torchvision.models.resnet50(), (3, 64, 64)
        ),
    }
    rows = []
    for name, pair in pairs.items():
        measured, found = Floor(), weight_matching(*pair)
        contenders: dict[str, Callable[[], object]] = {
            "whole": partial(weight_matching, *pair),
            "floor": partial(measured.run, pair),
        }
        whole = interleaved(contenders, repeats=3)["whole"]
        assignments, products = measured.medians()
        ratio = whole / (assignments + products)
        rows.append(
            [
                name,
                f"{len(found.sweeps) - 1} / {found.solved}",
                f"{whole:.3f} s",
                f"{assignments:.3f} + {products:.3f} s",
                f"{ratio:.2f}",
                f"<= 1.7: {verdict(ratio <= 1.7)}",
            ]
        )
    header = ["pair", "sweeps / problems", "whole", "floor: LAP + products", "ratio", "goal"]
    return table(header, rows)


# --- A peer --------------------------------------------------------------------------------------


def gap(a: Params, b: Params, names: list[str]) -> float:
    """Euclidean distance of two networks over the named tensors."""
    return sum(float((a[n].double() - b[n].double()).square().sum()) for n in names) ** 0.5


class Duel:
    """Our matching and the peer's on one pair; each counts only the matching and the permuting."""

    def __init__(self, rebasin: Any, config: ModelConfig, pair: Pair) -> None:
        self.rebasin, self.config, self.pair = rebasin, config, pair
        self.x = torch.randn(2, *config.input_shape)
        self.reached: dict[str, Params] = {}
        self.seconds: list[float] = []

    def network(self, params: Params) -> nn.Module:
        model = build(self.config)
        model.load_state_dict(params)
        return model.eval()

    def ours(self) -> None:
        symmetry, a, b = self.pair
        self.reached["ours"] = permute(symmetry, b, weight_matching(symmetry, a, b).permutations)

    def peer(self) -> None:
        target, source = (self.network(params) for params in self.pair[1:])
        descent = self.rebasin.PermutationCoordinateDescent(target, source, self.x)
        start = time.perf_counter()
        descent.rebasin()
        self.seconds.append(time.perf_counter() - start)
        self.reached["peer"] = state(source)

    def change(self, who: str) -> float:
        """Largest relative change of the outputs of network B, which should not change."""
        with torch.no_grad():
            before, after = (self.network(p)(self.x) for p in (self.pair[2], self.reached[who]))
        return float((after - before).abs().max() / before.abs().max())

    def row(self, name: str) -> list[str]:
        ours = interleaved({"ours": self.ours, "peer": self.peer}, repeats=3)["ours"]
        peer = statistics.median(self.seconds[1:])
        parameters = [n for n, _ in build(self.config).named_parameters()]
        distances = [gap(self.pair[1], self.reached[w], parameters) for w in ("ours", "peer")]
        return [
            name,
            f"{ours:.3f} s",
            f"{peer:.3f} s",
            f"{peer / ours:.1f}",
            " / ".join(f"{distance:.2f}" for distance in distances),
            " / ".join(f"{self.change(who):.0e}" for who in ("ours", "peer")),
            f">= 5: {verdict(peer / ours >= 5)}",
        ]


def peer() -> str:
    try:
        rebasin = importlib.import_module("rebasin")
    except ImportError:
        return "The package `rebasin` is not installed here, so nothing was compared."
    cases = {
        "MLP 784-512-512-512-10, trained": (WIDE_MLP, trained(WIDE_MLP, 6)[0]),
        "the same, noisy copy": (WIDE_MLP, copied(WIDE_MLP)),
        "ResNet-18 (32x32), noisy copy": (RESNET18, copied(RESNET18)),
    }
    rows = [Duel(rebasin, config, pair).row(name) for name, (config, pair) in cases.items()]
    header = [
        *("pair", "ours", "`rebasin`", "ratio", "L2 after: ours / peer"),
        *("outputs change by: ours / peer", "goal"),
    ]
    return table(header, rows)


# --- Starts and methods --------------------------------------------------------------------------


def distance(pair: Pair, found: Matching) -> float:
    """Euclidean distance of A and the permuted B."""
    symmetry, a, b = pair
    return gap(a, permute(symmetry, b, found.permutations), list(a))


def over(pairs: tuple[Pair, ...], **options: Any) -> list[Matching]:
    return [weight_matching(*pair, **options) for pair in pairs]


def starts() -> str:
    rows = []
    for width in (128, 192, 256):
        pairs = trained(small_mlp(width), 30, pairs=5)
        contenders = {start: partial(over, pairs, start=start) for start in STARTS}
        seconds = interleaved(contenders, repeats=7)
        cells = []
        for start in STARTS:
            floors = [Floor() for _ in pairs]
            for measured, pair in zip(floors, pairs, strict=True):
                for _ in range(4):
                    measured.run(pair, start=start)
            bare = sum(measured.medians()[0] for measured in floors)
            found = over(pairs, start=start)
            cells.append(
                f"{1000 * seconds[start] / len(pairs):.1f} ms, {bare / seconds[start]:.0%} LAP, "
                f"{sum(f.solved for f in found) / len(pairs):.0f} problems, "
                f"{statistics.mean(map(distance, pairs, found)):.3f}"
            )
        ratio = seconds["identity"] / seconds["greedy"]
        goal = f">= 3: {verdict(ratio >= 3)}"
        rows.append([f"64-{width}-{width}-{width}-10", *cells, f"{ratio:.2f}", goal])
    header = ["5 trained pairs", *(f"{s} start: time, L2 after" for s in STARTS), "ratio", "goal"]
    return table(header, rows)


class Residual(nn.Module):
    """A stem, blocks x + V relu(W x), a head."""

    def __init__(self, width: int, inner: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Linear(10, width)
        self.inner = nn.ModuleList(nn.Linear(width, inner) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Linear(inner, width) for _ in range(blocks))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second in zip(self.inner, self.outer, strict=True):
            x = x + second(F.relu(first(x)))
        return self.head(x)


def recovery(count: int = 20) -> str:
    rows = []
    for width, inner in ((16, 32), (32, 64), (64, 128)):
        recovered = dict.fromkeys(STARTS, 0)
        for seed in range(count):
            torch.manual_seed(seed)
            model = Residual(width, inner, blocks=6)
            symmetry, a = find_symmetry(model, torch.zeros(2, 10), prove=False), state(model)
            planted = symmetry.random(seed)
            b, answer = permute(symmetry, a, planted), inverse(planted)
            for start in STARTS:
                found = weight_matching(symmetry, a, b, start=start).permutations
                recovered[start] += all(torch.equal(found[n], answer[n]) for n in answer)
        shares = [f"{recovered[start] / count:.0%}" for start in STARTS]
        goal = f"greedy 100%: {verdict(recovered['greedy'] == count)}"
        rows.append([f"stream {width}, inner {inner}, 6 blocks", *shares, goal])
    header = [f"{count} noise-free pairs", *(f"{start} start" for start in STARTS), "goal"]
    return table(header, rows)


def frank_wolfe() -> str:
    rows = []
    for width in (8, 16, 32, 64, 128):
        pairs = trained(small_mlp(width), 60, pairs=5)
        lengths = {
            method: [distance(p, f) for p, f in zip(pairs, over(pairs, method=method), strict=True)]
            for method in METHODS
        }
        excess = [w / d - 1 for d, w in zip(*lengths.values(), strict=True)]
        contenders = {method: partial(over, pairs, method=method) for method in METHODS}
        seconds = interleaved(contenders, repeats=5)
        rows.append(
            [
                f"64-{width}-{width}-{width}-10",
                *(f"{1000 * seconds[method] / len(pairs):.1f} ms" for method in METHODS),
                f"{statistics.mean(excess):+.2%}",
                f"{max(excess):+.2%}",
                f"<= +0.10%: {verdict(max(excess) <= 0.001)}",
            ]
        )
    header = ["5 trained pairs", *METHODS, "L2 against descent's, mean", "worst pair", "goal"]
    return table(header, rows)


if __name__ == "__main__":
    sections = {
        "floor": floor,
        "peer": peer,
        "starts": starts,
        "recovery": recovery,
        "frank-wolfe": frank_wolfe,
    }
    main("matching", sections)

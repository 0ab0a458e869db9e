"""Find the permutation symmetries of a network by tracing it, and prove each of them.

Every axis of every tensor is a variable. Each operation of the traced network says which axes must
be reordered together (adding two tensors ties their channels) and which may not be reordered at all
(the pixels of the input, the classes of the output). What is left are the permutation groups: sets
of axes that one and the same permutation may reorder without changing the function.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from lmc_lessons.models import ChannelLayerNorm, Params, predict, state

Permutations = dict[str, Tensor]


class SymmetryError(ValueError):
    """A network has an operation whose symmetry is not known, or a derivation failed its proof."""


class Member(NamedTuple):
    """An axis of a parameter or buffer that a group reorders.

    Attributes:
        tensor: Name of the parameter or buffer.
        axis: Which of its axes.
        block: Number of consecutive entries that move together: 1, or the number of pixels where an
            image was flattened before a linear layer.
        buffer: Whether it is a buffer (BatchNorm statistics), which moves along but is not matched.
    """

    tensor: str
    axis: int
    block: int
    buffer: bool


@dataclass(frozen=True)
class Group:
    """Axes that are reordered together.

    Attributes:
        name: The layer that first produces these units.
        size: Number of units.
        members: Every axis to reorder.
        probe: Node of the traced network whose value shows the units' activations.
        probe_axis: Which axis of that value holds the units.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    probe: str
    probe_axis: int


@dataclass(frozen=True)
class Symmetry:
    """The permutation symmetries of one architecture.

    Attributes:
        groups: The groups in the order in which the network computes them.
        graph: The traced network.
    """

    groups: tuple[Group, ...]
    graph: fx.GraphModule = field(repr=False, compare=False)

    def identity(self) -> Permutations:
        """The permutation of every group that changes nothing."""
        return {group.name: torch.arange(group.size) for group in self.groups}

    def random(self, seed: int) -> Permutations:
        """A uniformly random permutation of every group.

        Args:
            seed: Decides the permutations.

        Returns:
            Group name to an index tensor of shape (size,).
        """
        stream = torch.Generator().manual_seed(seed)
        return {g.name: torch.randperm(g.size, generator=stream) for g in self.groups}


def find_symmetry(model: nn.Module, example: Tensor, *, prove: bool = True) -> Symmetry:
    """Derive the permutation groups of a network and prove them on it.

    Args:
        model: Any network that ``torch.fx`` can trace.
        example: A batch of inputs of shape (N, ...); only its shape and, for the proof, a few of
            its values matter.
        prove: Whether to check the derivation by ``check_symmetry``.

    Returns:
        The groups.

    Raises:
        SymmetryError: If an operation reorders or mixes permuted axes in a way that is not known;
            the message names the node. Also if the proof fails.

    Taught in: book/connectivity/weight-matching
    """
    twin = copy.deepcopy(model).eval()  # the network itself is left as it is
    graph = _Tracer().trace_network(twin)
    traced = fx.GraphModule(twin, graph)
    axes = _Axes(traced, example)
    for node in graph.nodes:
        axes.visit(node)
    symmetry = Symmetry(axes.groups(), traced)
    if prove:
        check_symmetry(model, symmetry, example)
    return symmetry


def permute(symmetry: Symmetry, params: Params, permutations: Mapping[str, Tensor]) -> Params:
    r"""Reorder the units of a network: $W_\ell \to P_\ell W_\ell P_{\ell-1}^\top$ for every layer.

    Equation (eq-permuted) of the lesson on weight matching. The unit at position i of the result is
    unit ``permutations[group][i]`` of the original.

    Args:
        symmetry: The groups of the architecture.
        params: Parameters and buffers by name; not changed.
        permutations: Group name to an index tensor of shape (size,); groups not named stay as they
            are.

    Returns:
        Parameters and buffers of the reordered network, which computes the same function.

    Raises:
        ValueError: If a name is not a group, or an index tensor is not a permutation of the group's
            size.

    Taught in: book/connectivity/weight-matching
    """
    check_permutations(symmetry, permutations)
    result = dict(params)
    for group in symmetry.groups:
        if group.name not in permutations:
            continue
        index = permutations[group.name]
        for member in group.members:
            tensor = result[member.tensor]
            result[member.tensor] = tensor.index_select(
                member.axis, _blocked(index, member.block).to(tensor.device)
            )
    return result


def check_permutations(symmetry: Symmetry, permutations: Mapping[str, Tensor]) -> None:
    """Refuse what does not permute the groups of a network.

    Args:
        symmetry: The groups of the architecture.
        permutations: Group name to an index tensor of shape (size,).

    Raises:
        ValueError: If a name is not a group, or an index tensor is not a permutation of the
            group's size.
    """
    sizes = {group.name: group.size for group in symmetry.groups}
    for name, index in permutations.items():
        if name not in sizes:
            raise ValueError(f"no group {name!r}, this network has: {', '.join(sizes)}")
        whole = not index.is_floating_point() and index.dim() == 1
        if not whole or not torch.equal(index.cpu().sort().values, torch.arange(sizes[name])):
            raise ValueError(f"{name!r} needs a permutation of 0..{sizes[name] - 1}")


def _blocked(index: Tensor, block: int) -> Tensor:
    """Entry positions when every unit owns ``block`` consecutive entries."""
    if block == 1:
        return index
    return (index.unsqueeze(1) * block + torch.arange(block, device=index.device)).flatten()


def inverse(permutations: Mapping[str, Tensor]) -> Permutations:
    """The permutations that undo the given ones.

    Args:
        permutations: Group name to an index tensor.

    Returns:
        Group name to the inverse index tensor.
    """
    return {name: torch.argsort(index) for name, index in permutations.items()}


def check_symmetry(
    model: nn.Module, symmetry: Symmetry, example: Tensor, *, tolerance: float = 1e-9, seed: int = 0
) -> float:
    """Prove a derivation: randomly permuted, the network must compute the same outputs.

    The check runs in float64 and eval mode. Buffers and norm parameters are drawn at random first,
    so that a forgotten one cannot hide behind values that are all zero or one.

    Args:
        model: The network.
        symmetry: Its groups.
        example: Inputs of shape (N, ...).
        tolerance: Largest difference allowed, relative to the largest output.
        seed: Decides the permutation and the drawn values.

    Returns:
        The largest relative difference.

    Raises:
        SymmetryError: If the outputs differ by more than the tolerance.

    Taught in: book/connectivity/weight-matching
    """
    stream = torch.Generator().manual_seed(seed)
    double = copy.deepcopy(model).to("cpu", torch.float64).eval()
    params = {
        name: tensor + 0.1 * torch.rand(tensor.shape, generator=stream, dtype=torch.float64)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state(double).items()
    }
    x = example[:2].to("cpu", torch.float64)
    permutations = {
        name: index.roll(1) if torch.equal(index, index.sort().values) else index  # must move
        for name, index in symmetry.random(seed).items()
    }
    with torch.no_grad():
        before = predict(double, params, x)
        after = predict(double, permute(symmetry, params, permutations), x)
    gap = float((after - before).abs().max() / before.abs().max().clamp_min(1e-30))
    if not gap <= tolerance:
        raise SymmetryError(
            f"the derived groups change the function: relative difference {gap:.1e}, "
            f"allowed {tolerance:.0e}"
        )
    return gap


class _Tracer(fx.Tracer):
    """Traces into everything but PyTorch's own layers and our one custom norm."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ChannelLayerNorm) or super().is_leaf_module(m, module_qualified_name)

    def trace_network(self, root: nn.Module) -> fx.Graph:
        try:
            return self.trace(root)
        except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
            raise SymmetryError(f"this network cannot be traced: {error}") from error


class _Label(NamedTuple):
    """An axis of a value: a variable, and how many consecutive entries each of its units owns."""

    variable: int
    block: int = 1


FIXED = _Label(0)
UNARY = {
    F.relu, F.gelu, F.silu, F.leaky_relu, F.elu, F.dropout, F.sigmoid, F.tanh, F.softplus, F.relu6,
    torch.relu, torch.tanh, torch.sigmoid, torch.abs, operator.neg,
}  # fmt: skip
UNARY_MODULES = (
    nn.ReLU, nn.GELU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.ReLU6,
    nn.Identity, nn.Dropout,
)  # fmt: skip
UNARY_METHODS = {"relu", "tanh", "sigmoid", "contiguous", "clone", "abs", "float", "detach"}
BINARY = {
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, operator.truediv,
    torch.add, torch.sub, torch.mul,
}  # fmt: skip
BINARY_METHODS = {"add", "add_", "sub", "mul", "mul_"}
POOL = {
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d,
    torch.max_pool2d,
}  # fmt: skip
POOL_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
FLATTEN = {torch.flatten}
RESHAPE_METHODS = {"view", "reshape", "flatten"}


class _Axes:
    """Solves for the groups: variables are axes, operations tie them together."""

    def __init__(self, traced: fx.GraphModule, example: Tensor) -> None:
        self.modules = dict(traced.named_modules())
        self.parameters = dict(traced.named_parameters())
        self.buffers = dict(traced.named_buffers())
        self.parent = [0]  # union-find; variable 0 means "may not be reordered"
        self.members: dict[tuple[str, int], _Label] = {}
        self.values: dict[fx.Node, tuple[_Label, ...]] = {}
        meta = copy.deepcopy(traced).to("meta").eval()
        try:
            ShapeProp(meta).propagate(
                torch.empty(example.shape, dtype=example.dtype, device="meta")
            )
        except RuntimeError as error:
            shape = tuple(example.shape)
            raise SymmetryError(f"this network does not take inputs of shape {shape}") from error
        self.shapes: dict[str, Any] = {
            node.name: node.meta.get("tensor_meta") for node in meta.graph.nodes
        }

    # Variables

    def new(self) -> _Label:
        self.parent.append(len(self.parent))
        return _Label(len(self.parent) - 1)

    def root(self, variable: int) -> int:
        while self.parent[variable] != variable:
            variable = self.parent[variable]
        return variable

    def tie(self, a: _Label, b: _Label, node: fx.Node) -> None:
        one, two = sorted((self.root(a.variable), self.root(b.variable)))
        if one != two and one != 0 and a.block != b.block:
            raise _unknown(node, "ties axes of which one was flattened and the other was not")
        self.parent[two] = one  # the smaller wins, so a tie with FIXED is fixed

    def is_fixed(self, label: _Label) -> bool:
        return self.root(label.variable) == 0

    # Shapes

    def shape(self, node: fx.Node) -> tuple[int, ...] | None:
        meta: Any = self.shapes.get(node.name)
        return tuple(meta.shape) if hasattr(meta, "shape") else None

    def join(self, tensor: str, axis: int, label: _Label, node: fx.Node) -> None:
        """Say that an axis of a parameter or buffer follows a label (used twice: both labels)."""
        if tensor not in self.parameters and tensor not in self.buffers:
            raise SymmetryError(f"{tensor} is one tensor with another name too, which is not known")
        self.tie(self.members.setdefault((tensor, axis), label), label, node)

    # Operations

    def visit(self, node: fx.Node) -> None:
        shape = self.shape(node)
        if node.op == "placeholder" or node.op == "get_attr":
            self.values[node] = (FIXED,) * len(shape or ())
        elif node.op == "output":
            for value in node.all_input_nodes:
                for label in self.values.get(value, ()):
                    self.tie(label, FIXED, node)
        elif node.op == "call_module":
            self.values[node] = self.module(node, self.modules[str(node.target)])
        elif shape is None and self.is_plain(node):
            self.values[node] = ()  # a size or another plain number
        elif shape is None:
            self.values[node] = self.opaque(node)
        else:
            self.values[node] = self.function(node)

    def is_plain(self, node: fx.Node) -> bool:
        """Whether a value is a number or shape, which no reordering changes."""
        asks = node.target is getattr or node.target in ("size", "dim", "numel")
        return asks or not any(self.values.get(n) for n in node.all_input_nodes)

    def function(self, node: fx.Node) -> tuple[_Label, ...]:
        method = node.target if node.op == "call_method" else None
        if node.target in BINARY or method in BINARY_METHODS:
            return self.binary(node)
        source = self.values[node.all_input_nodes[0]]
        if node.target in UNARY or method in UNARY_METHODS:
            return source
        if node.target in POOL:
            return self.pooled(node, source)
        if node.target in FLATTEN or method in RESHAPE_METHODS:
            return self.flattened(node, source)
        if node.target is torch.mean or method == "mean":
            return self.averaged(node, source)
        return self.opaque(node)

    def module(self, node: fx.Node, layer: nn.Module) -> tuple[_Label, ...]:
        source = self.values[node.all_input_nodes[0]]
        name = str(node.target)
        if isinstance(layer, UNARY_MODULES):
            return source
        if isinstance(layer, POOL_MODULES):
            return self.pooled(node, source)
        if isinstance(layer, nn.Flatten):
            return self.flattened(node, source)
        if isinstance(layer, nn.Linear):
            return (
                *self.only_fixed(node, source[:-1]),
                self.weighted(node, name, layer, source[-1]),
            )
        if isinstance(layer, nn.Conv2d):
            return self.convolved(node, name, layer, source)
        if isinstance(layer, nn.modules.batchnorm._BatchNorm | ChannelLayerNorm):
            return self.normalised(name, layer, source, source[1], node)
        if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
            return self.normalised(name, layer, source, source[-1], node)
        return self.opaque(node)

    def weighted(
        self, node: fx.Node, name: str, layer: nn.Linear | nn.Conv2d, inputs: _Label
    ) -> _Label:
        """A weight of shape (out, in, ...): the input axis follows, the output axis is new."""
        outputs = self.members.get((f"{name}.weight", 0)) or self.new()
        self.join(f"{name}.weight", 0, outputs, node)
        self.join(f"{name}.weight", 1, inputs, node)
        if layer.bias is not None:
            self.join(f"{name}.bias", 0, outputs, node)
        return outputs

    def convolved(
        self, node: fx.Node, name: str, layer: nn.Conv2d, source: tuple[_Label, ...]
    ) -> tuple[_Label, ...]:
        space = self.only_fixed(node, source[2:])
        if layer.groups == 1:
            return (source[0], self.weighted(node, name, layer, source[1]), *space)
        if layer.groups == layer.in_channels == layer.out_channels:  # depth-wise: channels stay
            return self.normalised(name, layer, source, source[1], node)
        if not self.is_fixed(source[1]):
            raise _unknown(node, f"is a convolution in {layer.groups} groups on a permuted axis")
        return (source[0], FIXED, *space)

    def normalised(
        self, name: str, layer: nn.Module, source: tuple[_Label, ...], unit: _Label, node: fx.Node
    ) -> tuple[_Label, ...]:
        """One scale, shift, running mean... per unit: each follows the units."""
        for own, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
            if tensor.dim() > 0:
                self.join(f"{name}.{own}", 0, unit, node)
        return source

    def binary(self, node: fx.Node) -> tuple[_Label, ...]:
        operands = [n for n in node.all_input_nodes if self.shape(n) is not None]
        shapes = {self.shape(n) for n in operands}
        if len(operands) == 1:
            return self.values[operands[0]]
        if len(shapes) != 1:
            if all(self.is_fixed(label) for n in operands for label in self.values[n]):
                return (FIXED,) * len(self.shape(node) or ())
            raise _unknown(node, f"combines values of shapes {sorted(map(str, shapes))}")
        first, second = (self.values[n] for n in operands)
        for a, b in zip(first, second, strict=True):
            self.tie(a, b, node)
        return first

    def pooled(self, node: fx.Node, source: tuple[_Label, ...]) -> tuple[_Label, ...]:
        self.only_fixed(node, source[-2:])
        return source

    def flattened(self, node: fx.Node, source: tuple[_Label, ...]) -> tuple[_Label, ...]:
        before, after = self.shape(node.all_input_nodes[0]), self.shape(node)
        assert before is not None
        assert after is not None
        if before == after:
            return source
        start = 0
        shorter = min(len(before), len(after) - 1)
        while start < shorter and before[start] == after[start]:
            start += 1
        if len(after) != start + 1 or len(after) > len(before):
            return self.opaque(node)
        block = 1
        for length in before[start + 1 :]:
            block *= length
        self.only_fixed(node, source[start + 1 :])
        channel = source[start]
        return (*source[:start], _Label(channel.variable, channel.block * block))

    def averaged(self, node: fx.Node, source: tuple[_Label, ...]) -> tuple[_Label, ...]:
        dims: Any = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        keep = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
        if dims is None:
            return self.opaque(node)
        gone = {d % len(source) for d in (dims if isinstance(dims, tuple | list) else [dims])}
        if not all(self.is_fixed(source[d]) for d in gone):
            return self.opaque(node)
        return tuple(label for d, label in enumerate(source) if keep or d not in gone)

    def only_fixed(self, node: fx.Node, labels: tuple[_Label, ...]) -> tuple[_Label, ...]:
        if not all(self.is_fixed(label) for label in labels):
            raise _unknown(node, "would mix a permuted axis with pixels")
        return labels

    def opaque(self, node: fx.Node) -> tuple[_Label, ...]:
        """An operation that is not known: fine on fixed axes, an error on permuted ones."""
        for value in node.all_input_nodes:
            if not all(self.is_fixed(label) for label in self.values.get(value, ())):
                raise _unknown(node, "has no known symmetry")
        return (FIXED,) * len(self.shape(node) or ())

    # Groups

    def groups(self) -> tuple[Group, ...]:
        """Collect what is tied together, in the order of the network."""
        found: dict[int, list[Member]] = {}
        for (tensor, axis), label in self.members.items():
            root = self.root(label.variable)
            member = Member(tensor, axis, label.block, tensor in self.buffers)
            if root != 0:
                found.setdefault(root, []).append(member)
        return tuple(self.group(root, members) for root, members in found.items())

    def group(self, root: int, members: list[Member]) -> Group:
        tensors = {**self.parameters, **self.buffers}
        sizes = {tensors[m.tensor].shape[m.axis] // m.block for m in members}
        if len(sizes) != 1:
            raise SymmetryError(f"axes tied together differ in size: {members}")
        name = members[0].tensor.rsplit(".", 1)[0]
        return Group(name, sizes.pop(), tuple(members), *self.probe(root))

    def probe(self, root: int) -> tuple[str, int]:
        """The last node that shows the units one by one (after the activation), and their axis."""
        shown = [
            (node, axis)
            for node, labels in self.values.items()
            for axis, label in enumerate(labels)
            if self.root(label.variable) == root and label.block == 1
        ]
        active = [(node, axis) for node, axis in shown if self.is_activation(node)]
        node, axis = (active or shown)[-1]
        return node.name, axis

    def is_activation(self, node: fx.Node) -> bool:
        layer = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if layer is not None:
            return isinstance(layer, UNARY_MODULES) and not isinstance(
                layer, nn.Identity | nn.Dropout
            )
        return (node.target in UNARY and node.target is not F.dropout) or node.target == "relu"


def _unknown(node: fx.Node, why: str) -> SymmetryError:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "?")
    return SymmetryError(f"node {node.name!r} ({target}) {why}")


def activations(symmetry: Symmetry, params: Params, x: Tensor) -> dict[str, Tensor]:
    """What the units of every group compute on given inputs, after the activation function.

    Args:
        symmetry: The groups of the architecture; the traced network runs in eval mode.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).

    Returns:
        Group name to activations of shape (size, samples), where the pixels of an image count as
        samples.

    Taught in: book/connectivity/weight-matching
    """
    run = _probing(symmetry)
    with torch.no_grad():
        values = predict(run, params, x)
    shown = {}
    for group, value in zip(symmetry.groups, values, strict=True):
        shown[group.name] = value.movedim(group.probe_axis, 0).flatten(1)
    return shown


def _probing(symmetry: Symmetry) -> fx.GraphModule:
    """The traced network with the groups' probes as outputs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.graph_copy(symmetry.graph.graph, copies)
    by_name = {node.name: copied for node, copied in copies.items()}
    graph.output(tuple(by_name[group.probe] for group in symmetry.groups))
    module = fx.GraphModule(symmetry.graph, graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module.eval()

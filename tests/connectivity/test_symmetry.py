"""Permutation groups: every axis is found, every function stays, what is not known is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.connectivity.symmetry import (
    Group,
    Symmetry,
    SymmetryError,
    activations,
    check_symmetry,
    find_symmetry,
    inverse,
    permute,
)
from lmc_lessons.models import ModelConfig, Params, build, initial, state

SMALL = (1, 8, 8)
CIFAR = (3, 32, 32)
TINY = (3, 8, 8)  # enough for a residual network
KINDS = (
    ModelConfig("mlp", SMALL, 10, 6, 3),
    ModelConfig("cnn", SMALL, 10, 4),
    ModelConfig("vgg", CIFAR, 10, 1, 11),
    ModelConfig("vgg", CIFAR, 10, 1, 16),
    ModelConfig("resnet", TINY, 10, 1, 18),
    ModelConfig("resnet", TINY, 10, 1, 20),
)
PUBLISHED = {  # sizes of the groups, from the papers' own accounts of the architectures
    ("mlp", 3): [6] * 3,
    ("cnn", 3): [4, 8, 16],
    ("vgg", 11): [64, 128, 256, 256, 512, 512, 512, 512],
    ("vgg", 16): [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512],
    ("resnet", 18): [64] * 3 + [128] * 3 + [256] * 3 + [512] * 3,  # 4 streams, 8 blocks
    ("resnet", 20): [16] * 4 + [32] * 4 + [64] * 4,  # 3 streams, 9 blocks
}
ALL = [
    dataclasses.replace(kind, norm=norm) for kind in KINDS for norm in ("none", "batch", "layer")
]


def named(config: ModelConfig) -> str:
    return f"{config.architecture}-{config.depth}-{config.norm}"


def inputs(config: ModelConfig, count: int = 2, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(count, *config.input_shape, generator=stream)


def derive(config: ModelConfig) -> tuple[nn.Module, Symmetry]:
    """An architecture without values, and its groups."""
    with torch.device("meta"):
        model = build(config)
    return model, find_symmetry(model, torch.zeros(2, *config.input_shape), prove=False)


def axes(symmetry: Symmetry) -> list[tuple[str, int]]:
    return [(member.tensor, member.axis) for group in symmetry.groups for member in group.members]


def group_of(symmetry: Symmetry, tensor: str, axis: int) -> Group:
    (found,) = (
        group
        for group in symmetry.groups
        if any((m.tensor, m.axis) == (tensor, axis) for m in group.members)
    )
    return found


class Network(nn.Module):
    """A network written as one function of its layers."""

    def __init__(self, forward: Callable[[Any, Any], Any], **layers: Any) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = forward

    def forward(self, x: Any) -> Any:
        return self.function(self, x)


def two_layers(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 2))


# --- Every architecture of the book --------------------------------------------------------------


@pytest.mark.parametrize("config", ALL, ids=named)
def test_random_permutation_leaves_the_function_unchanged(config: ModelConfig) -> None:
    torch.manual_seed(1)
    _, symmetry = derive(config)
    model = build(config).double().eval()
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 1 and "num_batches" not in name:  # biases, scales, running statistics
            tensor.uniform_(0.5, 1.5)
    x, before = inputs(config).double(), state(model)
    with torch.no_grad():
        expected = model(x)
        model.load_state_dict(permute(symmetry, before, symmetry.random(5)))
        found = model(x)
    assert float((found - expected).abs().max()) <= 1e-9 * float(expected.abs().max())
    moved = [n for n, t in model.state_dict().items() if not torch.equal(t, before[n])]
    assert set(moved) == {tensor for tensor, _ in axes(symmetry)}


@pytest.mark.parametrize("config", ALL, ids=named)
def test_exactly_the_hidden_axes_are_found(config: ModelConfig) -> None:
    """All channel axes but the pixels that enter and the classes that leave, each of them once."""
    model, symmetry = derive(config)
    weights = [n for n, t in model.named_parameters() if t.dim() > 1]
    expected = {
        (name, axis)
        for name, tensor in model.state_dict().items()
        for axis in range(min(tensor.dim(), 2))
    }
    expected -= {(weights[0], 1), ("output.weight", 0), ("output.bias", 0)}
    assert sorted(axes(symmetry)) == sorted(expected)


@pytest.mark.parametrize("config", ALL, ids=named)
def test_number_and_sizes_of_groups_are_the_published_ones(config: ModelConfig) -> None:
    _, symmetry = derive(config)
    assert (
        sorted(group.size for group in symmetry.groups)
        == PUBLISHED[config.architecture, config.depth]
    )
    assert len({group.name for group in symmetry.groups}) == len(symmetry.groups)


@pytest.mark.parametrize("depth", [18, 20])
def test_every_layer_that_adds_to_a_residual_stream_is_in_its_group(depth: int) -> None:
    model, symmetry = derive(ModelConfig("resnet", CIFAR, 10, 1, depth, "batch"))
    streams: list[set[str]] = [{"conv", "norm"}]  # one set of layers per stage
    readers: list[set[str]] = [set()]
    for name, block in model.get_submodule("blocks").named_children():
        here = f"blocks.{name}"
        if isinstance(block.shortcut, nn.Sequential):
            readers[-1] |= {f"{here}.conv1", f"{here}.shortcut.0"}
            streams.append({f"{here}.shortcut.0", f"{here}.shortcut.1"})
            readers.append(set())
        else:
            readers[-1].add(f"{here}.conv1")
        streams[-1] |= {f"{here}.conv2", f"{here}.norm2"}
    readers[-1].add("output")
    for writing, reading in zip(streams, readers, strict=True):
        group = group_of(symmetry, f"{min(writing)}.weight", 0)
        layers: dict[int, set[str]] = {0: set(), 1: set()}
        for member in group.members:
            layers[member.axis].add(member.tensor.rpartition(".")[0])
        assert layers == {0: writing, 1: reading}


@pytest.mark.parametrize("architecture", ["mlp", "cnn", "resnet"])
def test_batchnorm_statistics_follow_their_layer_and_are_marked_as_buffers(
    architecture: Any,
) -> None:
    shape, depth = (CIFAR, 20) if architecture == "resnet" else (SMALL, 2)
    model, symmetry = derive(ModelConfig(architecture, shape, 10, 2, depth, "batch"))
    statistics = {n for n, b in model.named_buffers() if b.dim() == 1}
    marked = {m.tensor for g in symmetry.groups for m in g.members if m.buffer}
    assert marked == statistics != set()
    for name in statistics:
        layer = name.rpartition(".")[0]
        assert group_of(symmetry, name, 0) == group_of(symmetry, f"{layer}.weight", 0)


def test_groups_come_in_the_order_in_which_the_network_computes_them() -> None:
    _, symmetry = derive(ModelConfig("mlp", SMALL, 10, 6, 4))
    assert [g.name for g in symmetry.groups] == [f"hidden.{k}" for k in range(4)]
    for k, group in enumerate(symmetry.groups):
        reader = "output" if k == 3 else f"hidden.{k + 1}"
        assert {(m.tensor, m.axis) for m in group.members} == {
            (f"hidden.{k}.weight", 0),
            (f"hidden.{k}.bias", 0),
            (f"{reader}.weight", 1),
        }


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_derivation_does_not_depend_on_the_dtype(dtype: torch.dtype) -> None:
    config = ModelConfig("cnn", SMALL, 10, 2)
    _, expected = derive(config)
    found = find_symmetry(build(config).to(dtype), inputs(config).to(dtype))
    assert found.groups == expected.groups


def test_a_network_without_hidden_units_has_no_groups() -> None:
    assert find_symmetry(nn.Linear(5, 3), torch.randn(2, 5)).groups == ()


# --- torchvision ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "streams", "inner", "stem"),
    [("resnet18", 4, 8, 0), ("resnet50", 4, 2 * 16, 1)],
)
def test_torchvision_resnets(name: str, streams: int, inner: int, stem: int) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    x = torch.randn(2, 3, 32, 32)
    symmetry = find_symmetry(model, x, prove=False)
    assert check_symmetry(model, symmetry, x) <= 1e-9
    assert len(symmetry.groups) == streams + inner + stem
    for stage in range(1, 5):
        last = "conv3" if name == "resnet50" else "conv2"
        blocks = [n for n, _ in model.get_submodule(f"layer{stage}").named_children()]
        writers = {f"layer{stage}.{block}.{last}.weight" for block in blocks}
        writers |= {n for n, _ in model.named_parameters() if f"layer{stage}.0.downsample.0" in n}
        assert len({group_of(symmetry, writer, 0).name for writer in writers}) == 1
    assert not {("fc.weight", 0), ("fc.bias", 0), ("conv1.weight", 1)} & set(axes(symmetry))


def test_torchvision_vgg16() -> None:
    """The full network is derived without memory for its weights, a narrow copy is proved."""
    with torch.device("meta"):
        model = torchvision.models.vgg16(init_weights=False)
    symmetry = find_symmetry(model, torch.randn(2, 3, 32, 32), prove=False)
    sizes = [group.size for group in symmetry.groups]
    assert sizes == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6 + [4096] * 2
    (flattened,) = (m for g in symmetry.groups for m in g.members if m.block != 1)
    assert flattened == ("classifier.0.weight", 1, 49, False)
    assert group_of(symmetry, "classifier.0.weight", 1).name == "features.28"

    torch.manual_seed(0)
    layers: list[str | int] = [3, 3, "M", 4, 4, "M", 5, 5, 5, "M", 6, 6, 6, "M", 6, 6, 6, "M"]
    model.features = torchvision.models.vgg.make_layers(layers)
    model.classifier[0] = nn.Linear(6 * 49, 7)
    model.classifier[3] = nn.Linear(7, 7)
    model.classifier[6] = nn.Linear(7, 10)
    narrow = find_symmetry(model, torch.randn(2, 3, 32, 32))
    assert [group.name for group in narrow.groups] == [group.name for group in symmetry.groups]


# --- Operations, one by one ----------------------------------------------------------------------

UNKNOWN: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "group norm": (
        Network(
            lambda s, x: s.last(s.culprit(s.first(x)).mean((2, 3))),
            first=nn.Conv2d(3, 8, 3),
            culprit=nn.GroupNorm(4, 8),
            last=nn.Linear(8, 2),
        ),
        (3, 8, 8),
        "culprit",
    ),
    "convolution in groups": (
        Network(
            lambda s, x: s.last(s.culprit(s.first(x)).mean((2, 3))),
            first=nn.Conv2d(3, 8, 3),
            culprit=nn.Conv2d(8, 8, 3, groups=4),
            last=nn.Linear(8, 2),
        ),
        (3, 8, 8),
        "culprit",
    ),
    "attention layer": (
        Network(
            lambda s, x: s.last(s.culprit(s.first(x), s.first(x), s.first(x))[0].mean(1)),
            first=nn.Linear(5, 8),
            culprit=nn.MultiheadAttention(8, 2, batch_first=True),
            last=nn.Linear(8, 2),
        ),
        (4, 5),
        "culprit",
    ),
    "attention function": (
        Network(
            lambda s, x: s.last(
                F.scaled_dot_product_attention(s.first(x), s.first(x), s.first(x)).mean(1)
            ),
            first=nn.Linear(5, 8),
            last=nn.Linear(8, 2),
        ),
        (4, 5),
        "scaled_dot_product_attention",
    ),
    "concatenation": (
        Network(
            lambda s, x: s.last(torch.cat([s.first(x), s.second(x)], 1)),
            first=nn.Linear(5, 4),
            second=nn.Linear(5, 4),
            last=nn.Linear(8, 2),
        ),
        (5,),
        "cat",
    ),
    "softmax over channels": (
        Network(
            lambda s, x: s.last(F.softmax(s.first(x), 1)),
            first=nn.Linear(5, 8),
            last=nn.Linear(8, 2),
        ),
        (5,),
        "softmax",
    ),
    "a constant added": (
        Network(
            lambda s, x: s.last(F.relu(s.first(x) + s.constant)),
            first=nn.Linear(5, 8),
            constant=nn.Parameter(torch.randn(8)),
            last=nn.Linear(8, 2),
        ),
        (5,),
        "add",
    ),
    "half of the channels": (
        Network(
            lambda s, x: s.last(s.first(x)[:, :4]),
            first=nn.Linear(5, 8),
            last=nn.Linear(4, 2),
        ),
        (5,),
        "getitem",
    ),
    "split in two": (
        Network(
            lambda s, x: s.last(torch.chunk(s.first(x), 2, 1)[0]),
            first=nn.Linear(5, 8),
            last=nn.Linear(4, 2),
        ),
        (5,),
        "chunk",
    ),
    "split in heads": (
        Network(
            lambda s, x: s.last(s.first(x).view(2, 4, 2)).mean(1),
            first=nn.Linear(5, 8),
            last=nn.Linear(2, 2),
        ),
        (5,),
        "view",
    ),
    "image of one pixel": (
        Network(
            lambda s, x: s.last(s.first(x).view(2, 8, 1, 1)).flatten(1),
            first=nn.Linear(5, 8),
            last=nn.Conv2d(8, 2, 1),
        ),
        (5,),
        "view",
    ),
    "one axis more": (
        Network(
            lambda s, x: s.last(s.first(x).view(2, 8, 1).mean(2)),
            first=nn.Linear(5, 8),
            last=nn.Linear(8, 2),
        ),
        (5,),
        "view",
    ),
    "pooled over channels": (
        Network(
            lambda s, x: s.last(F.max_pool2d(s.first(x), 2)),
            first=nn.Linear(5, 8),
            last=nn.Linear(4, 2),
        ),
        (4, 5),
        "max_pool2d",
    ),
    "flattened tokens": (
        Network(
            lambda s, x: s.last(s.first(x).flatten(1)),
            first=nn.Linear(5, 8),
            last=nn.Linear(32, 2),
        ),
        (4, 5),
        "flatten",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_operation_is_an_error_that_names_the_node(case: str) -> None:
    model, shape, node = UNKNOWN[case]
    with pytest.raises(SymmetryError, match=f"'{node}'"):
        find_symmetry(model, torch.randn(2, *shape))


def test_unknown_operation_is_fine_where_nothing_is_permuted() -> None:
    model = Network(
        lambda s, x: s.last(F.relu(s.first(F.softmax(torch.cat([x, x], 1), 1)))),
        first=nn.Linear(10, 8),
        last=nn.Linear(8, 2),
    )
    assert [group.size for group in find_symmetry(model, torch.randn(2, 5)).groups] == [8]


SUPPORTED: dict[str, tuple[nn.Module, tuple[int, ...], list[int]]] = {
    "depth-wise convolution": (
        Network(
            lambda s, x: s.last(s.point(F.relu(s.depth(s.first(x)))).mean((2, 3))),
            first=nn.Conv2d(3, 8, 3),
            depth=nn.Conv2d(8, 8, 3, groups=8),
            point=nn.Conv2d(8, 6, 1),
            last=nn.Linear(6, 2),
        ),
        (3, 8, 8),
        [8, 6],
    ),
    "layer used twice": (
        Network(
            lambda s, x: s.last(F.relu(s.twice(F.relu(s.twice(F.relu(s.first(x))))))),
            first=nn.Linear(5, 8),
            twice=nn.Linear(8, 8),
            last=nn.Linear(8, 2),
        ),
        (5,),
        [8],
    ),
    "linear layer around which the input goes": (
        Network(
            lambda s, x: (lambda h: s.last(h + s.inner(h)))(s.first(x)),
            first=nn.Linear(5, 8),
            inner=nn.Linear(8, 8),
            last=nn.Linear(8, 2),
        ),
        (5,),
        [8],
    ),
    "layer norm behind a flatten": (
        Network(
            lambda s, x: s.last(F.relu(s.norm(s.first(x).flatten(1)))),
            first=nn.Conv2d(3, 4, 3),
            norm=nn.LayerNorm(4 * 36),
            last=nn.Linear(4 * 36, 2),
        ),
        (3, 8, 8),
        [4],
    ),
    "units times units": (
        Network(
            lambda s, x: s.last(s.first(x) * torch.sigmoid(s.gate(x))),
            first=nn.Linear(5, 8),
            gate=nn.Linear(5, 8),
            last=nn.Linear(8, 2),
        ),
        (5,),
        [8],
    ),
}


@pytest.mark.parametrize("case", SUPPORTED)
def test_supported_operation(case: str) -> None:
    model, shape, sizes = SUPPORTED[case]
    symmetry = find_symmetry(model, torch.randn(2, *shape))
    assert [group.size for group in symmetry.groups] == sizes


def test_layer_used_twice_on_the_input_is_not_permuted() -> None:
    model = Network(
        lambda s, x: s.last(F.relu(s.twice(F.relu(s.twice(x))))),
        twice=nn.Linear(5, 5),
        last=nn.Linear(5, 2),
    )
    assert find_symmetry(model, torch.randn(2, 5)).groups == ()


def test_second_operand_given_by_name_is_not_forgotten() -> None:
    model = Network(
        lambda s, x: s.last(F.relu(torch.add(s.first(x), other=s.second(x)))),
        first=nn.Linear(5, 8),
        second=nn.Linear(5, 8),
        last=nn.Linear(8, 2),
    )
    (group,) = find_symmetry(model, torch.randn(2, 5)).groups
    assert {m.tensor for m in group.members} >= {"first.weight", "second.weight"}


def test_one_tensor_under_two_names_is_named() -> None:
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    model = nn.Sequential(nn.Linear(5, 8), first, nn.ReLU(), second, nn.Linear(8, 2))
    with pytest.raises(SymmetryError, match=r"3\.weight"):
        find_symmetry(model, torch.randn(2, 5))


@pytest.mark.parametrize(
    "forward",
    [
        lambda s, x: s.last(F.relu(s.first(x))) if x.sum() > 0 else s.last(s.first(x)),
        lambda s, x: s.last(F.relu(s.first(x))) * int(x.shape[0]),
        lambda s, x: s.last(F.relu(s.first(x))) / len(x),
    ],
    ids=["branch on the data", "shape as a number", "length"],
)
def test_network_that_cannot_be_traced(forward: Callable[[Any, Any], Any]) -> None:
    model = Network(forward, first=nn.Linear(5, 8), last=nn.Linear(8, 2))
    with pytest.raises(SymmetryError, match="cannot be traced"):
        find_symmetry(model, torch.randn(2, 5))


def test_inputs_of_a_wrong_shape_are_named() -> None:
    with pytest.raises(SymmetryError, match=r"\(2, 4\)"):
        find_symmetry(two_layers(), torch.randn(2, 4))


def test_the_network_is_left_as_it_was() -> None:
    config = ModelConfig("cnn", SMALL, 10, 2, norm="batch")
    model = build(config).train()
    before = state(model)
    symmetry = find_symmetry(model, inputs(config))
    activations(symmetry, before, inputs(config))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(layer.training for layer in model.modules())


# --- The proof -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("mlp", SMALL, 10, 5, 2, "batch"),
        ModelConfig("mlp", SMALL, 10, 5, 2, "layer"),
        ModelConfig("cnn", SMALL, 10, 3, norm="batch"),
    ],
    ids=named,
)
def test_proof_fails_whichever_axis_is_forgotten(config: ModelConfig) -> None:
    model, (_, symmetry) = build(config), derive(config)
    for k, group in enumerate(symmetry.groups):
        for forgotten in group.members:
            rest = tuple(m for m in group.members if m != forgotten)
            wrong = dataclasses.replace(group, members=rest)
            groups = (*symmetry.groups[:k], wrong, *symmetry.groups[k + 1 :])
            with pytest.raises(SymmetryError, match="change the function"):
                check_symmetry(model, dataclasses.replace(symmetry, groups=groups), inputs(config))


@pytest.mark.parametrize("seed", range(6))
def test_proof_never_draws_the_permutation_that_proves_nothing(seed: int) -> None:
    """Of two units there are two orders; a proof by the one that changes nothing is none."""
    model, x = two_layers(2), torch.randn(2, 5)
    symmetry = find_symmetry(model, x, prove=False)
    (group,) = symmetry.groups
    rest = tuple(m for m in group.members if m.tensor != "0.bias")
    wrong = dataclasses.replace(symmetry, groups=(dataclasses.replace(group, members=rest),))
    with pytest.raises(SymmetryError, match="change the function"):
        check_symmetry(model, wrong, x, seed=seed)


def test_proof_fails_on_classes_and_on_pixels() -> None:
    model, x = two_layers(), torch.randn(2, 5)
    symmetry = find_symmetry(model, x)
    (group,) = symmetry.groups
    member = group.members[0]
    for tensor, axis, size in (("2.weight", 0, 2), ("0.weight", 1, 5)):
        members = (member._replace(tensor=tensor, axis=axis),)
        wrong = dataclasses.replace(group, name="wrong", size=size, members=members)
        with pytest.raises(SymmetryError):
            check_symmetry(model, dataclasses.replace(symmetry, groups=(wrong,)), x, seed=1)


# --- Permuting -----------------------------------------------------------------------------------


def test_permute_by_hand() -> None:
    config = ModelConfig("cnn", SMALL, 10, 3, norm="batch")
    _, symmetry = derive(config)
    params, permutations = initial(config, 0), symmetry.random(2)
    found = {n: t.numpy() for n, t in permute(symmetry, params, permutations).items()}
    old = {n: t.numpy() for n, t in params.items()}
    one, two, three = (permutations[name].numpy() for name in ("conv1", "conv2", "hidden"))
    blocks = old["hidden.weight"].reshape(12, 6, 4)  # units, channels, pixels
    expected = {
        "conv1.weight": old["conv1.weight"][one],
        "conv1.bias": old["conv1.bias"][one],
        "norm1.running_var": old["norm1.running_var"][one],
        "conv2.weight": old["conv2.weight"][two][:, one],
        "hidden.weight": blocks[three][:, two].reshape(12, 24),
        "output.weight": old["output.weight"][:, three],
        "output.bias": old["output.bias"],
    }
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_inverse_undoes_bit_for_bit(norm: Any) -> None:
    config = ModelConfig("resnet", CIFAR, 10, 1, 20, norm)
    _, symmetry = derive(config)
    params, permutations = initial(config, 3), symmetry.random(4)
    there = permute(symmetry, params, permutations)
    back = permute(symmetry, there, inverse(permutations))
    assert back.keys() == params.keys()
    assert all(torch.equal(back[name], params[name]) for name in params)
    assert not torch.equal(there["output.weight"], params["output.weight"])
    for name, index in permutations.items():
        assert torch.equal(index[inverse(permutations)[name]], torch.arange(len(index)))


def test_identity_and_groups_not_named_change_nothing() -> None:
    model, x = two_layers(), torch.randn(2, 5)
    symmetry, params = find_symmetry(model, x), state(model)
    for permutations in ({}, symmetry.identity()):
        same = permute(symmetry, params, permutations)
        assert all(torch.equal(same[name], params[name]) for name in params)


def test_permute_does_not_write_into_its_input() -> None:
    model, x = two_layers(), torch.randn(2, 5)
    symmetry, params = find_symmetry(model, x), state(model)
    copies = {name: tensor.clone() for name, tensor in params.items()}
    for tensor in permute(symmetry, params, symmetry.random(0)).values():
        if tensor.shape != params["2.bias"].shape:
            tensor.zero_()
    assert all(torch.equal(params[name], copies[name]) for name in params)


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([0, 0, 1, 2]),
        torch.tensor([1, 2, 3, 4]),
        torch.tensor([-1, 0, 1, 2]),
        torch.arange(3),
        torch.arange(5),
        torch.arange(4).view(2, 2),
        torch.arange(4.0),
    ],
    ids=["twice", "too large", "negative", "too short", "too long", "matrix", "no integers"],
)
def test_permute_refuses_what_is_no_permutation(index: Tensor) -> None:
    model = two_layers()
    symmetry = find_symmetry(model, torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"permutation of 0\.\.3"):
        permute(symmetry, state(model), {"0": index})


def test_permute_refuses_unknown_groups_and_says_which_there_are() -> None:
    model = two_layers()
    symmetry = find_symmetry(model, torch.randn(2, 5))
    with pytest.raises(ValueError, match=r"'nope'.*: 0$"):
        permute(symmetry, state(model), {"nope": torch.arange(4)})


def test_random_is_decided_by_its_seed() -> None:
    _, symmetry = derive(ModelConfig("mlp", SMALL, 10, 32, 2))
    first, again, other = (symmetry.random(seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


# --- Activations ---------------------------------------------------------------------------------


def recorded(model: nn.Module, params: Params, x: Tensor, names: list[str]) -> dict[str, Tensor]:
    """What the named submodules put out, in eval mode."""
    model.load_state_dict(params)
    model.eval()
    outputs: dict[str, Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: outputs.update({name: out.detach().clone()})
        )
    with torch.no_grad():
        model(x)
    return outputs


def units_first(value: Tensor) -> Tensor:
    return value.movedim(1, 0).flatten(1)


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("architecture", ["mlp", "cnn", "resnet"])
def test_activations_equal_hooks_on_an_independent_forward_pass(
    architecture: Any, norm: Any
) -> None:
    shape, depth = (CIFAR, 20) if architecture == "resnet" else (SMALL, 2)
    config = ModelConfig(architecture, shape, 10, 2, depth, norm)
    _, symmetry = derive(config)
    params, x = initial(config, 1), inputs(config, 5)
    where = {  # the value before the last ReLU that shows a group's units
        "mlp": {"hidden.0": "norms.0", "hidden.1": "norms.1"},
        "cnn": {"conv1": "norm1", "conv2": "norm2", "hidden": "hidden"},
        "resnet": {
            "conv": "blocks.2",
            "blocks.3.conv2": "blocks.5",
            "blocks.6.conv2": "blocks.8",
            **{f"blocks.{k}.conv1": f"blocks.{k}.norm1" for k in range(9)},
        },
    }[architecture]
    names = {}
    for first, seen in where.items():
        names[group_of(symmetry, f"{first}.weight", 0).name] = seen
    assert names.keys() == {group.name for group in symmetry.groups}
    shown = activations(symmetry, params, x)
    expected = recorded(build(config), params, x, list(names.values()))
    for group in symmetry.groups:
        value = units_first(F.relu(expected[names[group.name]]))
        assert shown[group.name].shape[0] == group.size
        torch.testing.assert_close(shown[group.name], value, rtol=1e-5, atol=1e-6)


def test_activations_move_with_their_units() -> None:
    config = ModelConfig("cnn", SMALL, 10, 3, norm="batch")
    _, symmetry = derive(config)
    params, x, permutations = initial(config, 1), inputs(config, 4), symmetry.random(0)
    before = activations(symmetry, params, x)
    after = activations(symmetry, permute(symmetry, params, permutations), x)
    for name, index in permutations.items():
        torch.testing.assert_close(after[name], before[name][index])


def test_activations_of_tokens_have_the_units_first() -> None:
    first, last = nn.Linear(5, 8), nn.Linear(8, 2)
    model = Network(lambda s, x: s.last(F.relu(s.first(x))).mean(1), first=first, last=last)
    x = torch.randn(3, 4, 5)
    shown = activations(find_symmetry(model, x), state(model), x)["first"]
    assert shown.shape == (8, 12)
    expected = F.relu(first(x)).detach().flatten(0, 1).T
    torch.testing.assert_close(shown.sort(1).values, expected.sort(1).values)


def test_activations_have_no_dropout_even_if_traced_while_training() -> None:
    first, second = nn.Linear(5, 64), nn.Linear(64, 64)
    model = Network(
        lambda s, x: s.last(F.relu(s.second(F.dropout(F.relu(s.first(x)), 0.5, s.training)))),
        first=first,
        second=second,
        last=nn.Linear(64, 2),
    ).train()
    x = torch.randn(3, 5)
    shown = activations(find_symmetry(model, x), state(model), x)["second"]
    torch.testing.assert_close(shown, F.relu(second(F.relu(first(x)))).detach().T)

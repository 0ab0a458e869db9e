"""The architectures of the book, as plain modules whose parameters are handled as data.

An ``nn.Module`` here is only an architecture. Parameters and buffers travel beside it as a
dictionary from names to tensors (``Params``), so permuting, interpolating, perturbing and stacking
networks need no special classes: ``predict(model, params, x)`` runs the architecture with whatever
is in the dictionary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

Params = dict[str, Tensor]
Architecture = Literal["mlp", "cnn", "vgg", "resnet", "preact-resnet", "autoencoder", "transformer"]
Norm = Literal["none", "batch", "layer"]
Activation = Literal["relu", "tanh", "sigmoid"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
HEAD_WIDTH = 16  # of each head of a transformer's attention

VGG_LAYERS: dict[int, tuple[int | str, ...]] = {
    11: (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool"),
    16: (
        *(64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool"),
        *(512, 512, 512, "pool", 512, 512, 512, "pool"),
    ),
}
RESNET_STAGES: dict[int, tuple[tuple[int, int], ...]] = {  # (channels, blocks) per stage
    18: ((64, 2), (128, 2), (256, 2), (512, 2)),
    20: ((16, 3), (32, 3), (64, 3)),
}
SMALLEST_IMAGE = {"cnn": 4, "vgg": 32, "resnet": 1, "preact-resnet": 1}  # pooling leaves a pixel
ALLOWED_DEPTHS = {
    "vgg": tuple(VGG_LAYERS),
    "resnet": tuple(RESNET_STAGES),
    "preact-resnet": tuple(RESNET_STAGES),
}


@dataclass(frozen=True)
class ModelConfig:
    """Which architecture to build.

    Attributes:
        architecture: ``mlp``, ``cnn`` (small, for 8x8 to 32x32 images), ``vgg``, ``resnet``,
            ``preact-resnet``, ``autoencoder`` (of linear layers) or ``transformer`` (that predicts
            the next token).
        input_shape: Shape of one input, such as (1, 8, 8) or (30,); of a ``transformer`` the
            longest text, such as (32,).
        classes: Number of classes; of a ``transformer`` the number of different tokens; ignored by
            ``autoencoder``.
        width: Units per hidden layer of an ``mlp`` or ``autoencoder``; channels of the first layer
            of a ``cnn``; length of a ``transformer``'s vectors, a multiple of 16; a multiplier on
            the published channels of the others.
        depth: Hidden layers of an ``mlp`` (0: a linear classifier), of either half of an
            ``autoencoder`` (0: linear); blocks of a ``transformer``; 11 or 16 for ``vgg``; 18 or 20
            for the residual networks; ignored by ``cnn``.
        norm: Normalisation after each hidden linear map; ``none`` for the last two architectures,
            of which a ``transformer`` has its own.
        activation: Of an ``mlp`` or ``autoencoder``; ignored by the others.
        latent: Units of the code of an ``autoencoder``; ignored by the others.
        kernel: Side of the kernels of a ``cnn``, odd; ignored by the others.
    """

    architecture: Architecture = "mlp"
    input_shape: tuple[int, ...] = (1, 8, 8)
    classes: int = 10
    width: int = 128
    depth: int = 3
    norm: Norm = "none"
    activation: Activation = "relu"
    latent: int = 8
    kernel: int = 3

    def __post_init__(self) -> None:
        """Refuse what cannot be built, naming what is allowed."""
        choices = {"architecture": Architecture, "norm": Norm, "activation": Activation}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, allowed: {', '.join(get_args(kind))}"
                )
        shallowest = 0 if self.architecture in ("mlp", "autoencoder") else 1
        lowest = {"width": 1, "classes": 1, "latent": 1, "kernel": 1, "depth": shallowest}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        depths = ALLOWED_DEPTHS.get(self.architecture)
        if depths and self.depth not in depths:
            raise ValueError(f"{self.architecture} has depth {self.depth}, allowed: {depths}")
        if self.architecture in ("autoencoder", "transformer") and self.norm != "none":
            raise ValueError(f"{self.architecture} has norm {self.norm!r}, allowed: none")
        if self.architecture == "transformer" and (
            len(self.input_shape) != 1 or self.width % HEAD_WIDTH
        ):
            raise ValueError(
                "transformer needs input_shape (length,) and a width that is a multiple of "
                f"{HEAD_WIDTH}, got {self.input_shape} and {self.width}"
            )
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd, got {self.kernel}")
        images = ("cnn", "vgg", "resnet", "preact-resnet")
        if self.architecture in images and len(self.input_shape) != 3:
            raise ValueError(
                f"{self.architecture} needs images of shape (channels, height, width), "
                f"got input_shape {self.input_shape}"
            )
        smallest = SMALLEST_IMAGE.get(self.architecture, 0)
        if min(self.input_shape[1:], default=smallest) < smallest:
            raise ValueError(
                f"{self.architecture} needs images of at least {smallest} x {smallest} pixels, "
                f"got input_shape {self.input_shape}"
            )


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        """Scale and shift per channel, starting at one and zero."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every pixel's channels."""
        last = F.layer_norm(x.movedim(1, -1), self.weight.shape, self.weight, self.bias)
        return last.movedim(-1, 1)


def norm_layer(norm: Norm, channels: int, *, image: bool) -> nn.Module:
    """The normalisation of a layer with that many channels (images) or units."""
    if norm == "none":
        return nn.Identity()
    if norm == "batch":
        return nn.BatchNorm2d(channels) if image else nn.BatchNorm1d(channels)
    return ChannelLayerNorm(channels) if image else nn.LayerNorm(channels)


class MLP(nn.Module):
    """Flatten, ``depth`` hidden layers of equal width, each with its activation, class logits."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers that ``config`` asks for."""
        super().__init__()
        sizes = [math.prod(config.input_shape)] + [config.width] * config.depth
        self.activation = ACTIVATIONS[config.activation]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(norm_layer(config.norm, size, image=False) for size in sizes[1:])
        self.output = nn.Linear(sizes[-1], config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, ...) to logits (N, classes)."""
        x = x.flatten(1)
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            x = self.activation(norm(linear(x)))
        return self.output(x)


class Autoencoder(nn.Module):
    """Linear layers down to a code of ``latent`` units and, mirrored, back up to the input.

    The hidden layers have an activation; the code and the reconstruction have none.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers that ``config`` asks for."""
        super().__init__()
        half = [math.prod(config.input_shape)] + [config.width] * config.depth
        sizes = [*half, config.latent, *reversed(half)]
        self.input_shape = config.input_shape
        self.activation = ACTIVATIONS[config.activation]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.code = config.depth  # the layer that gives the code

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, ...) to reconstructions of the same shape."""
        return self.decode(self.encode(x))

    def encode(self, x: Tensor) -> Tensor:
        """Inputs (N, ...) to codes (N, latent)."""
        return self._run(x.flatten(1), range(self.code + 1))

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (N, latent) to reconstructions (N, *input_shape)."""
        rest = range(self.code + 1, len(self.layers))
        return self._run(codes, rest).unflatten(1, self.input_shape)

    def _run(self, x: Tensor, layers: range) -> Tensor:
        for k in layers:
            x = self.layers[k](x)
            if k not in (self.code, len(self.layers) - 1):
                x = self.activation(x)
        return x


class TransformerBlock(nn.Module):
    """Attention to what came before, then two linear layers, each added to its input."""

    def __init__(self, width: int) -> None:
        """Build one block."""
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)  # queries, keys and values
        self.mix = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, width) to the same shape; position t depends on positions 0 to t."""
        parts = self.attend(self.norm1(x)).chunk(3, -1)
        query, key, value = (p.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2) for p in parts)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


class Transformer(nn.Module):
    """A small language model: which token comes next, at every place of a text."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers that ``config`` asks for."""
        super().__init__()
        self.tokens = nn.Embedding(config.classes, config.width)
        self.places = nn.Embedding(config.input_shape[0], config.width)
        self.blocks = nn.ModuleList(TransformerBlock(config.width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.output = nn.Linear(config.width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Texts (N, T) of token numbers, T up to the longest, to logits (N, T, tokens)."""
        x = self.tokens(x.long()) + self.places.weight[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))


class CNN(nn.Module):
    """Two convolutions with pooling and one hidden linear layer: a VGG in small."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers that ``config`` asks for."""
        super().__init__()
        channels, height, width = config.input_shape
        first, second = config.width, 2 * config.width
        same = config.kernel // 2
        self.conv1 = nn.Conv2d(channels, first, config.kernel, padding=same)
        self.norm1 = norm_layer(config.norm, first, image=True)
        self.conv2 = nn.Conv2d(first, second, config.kernel, padding=same)
        self.norm2 = norm_layer(config.norm, second, image=True)
        self.pool = nn.MaxPool2d(2)
        self.hidden = nn.Linear(second * (height // 4) * (width // 4), 4 * config.width)
        self.output = nn.Linear(4 * config.width, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        x = self.pool(F.relu(self.norm1(self.conv1(x))))
        x = self.pool(F.relu(self.norm2(self.conv2(x))))
        x = F.relu(self.hidden(x.flatten(1)))
        return self.output(x)


class VGG(nn.Module):
    """VGG for 32x32 images: 3x3 convolutions and pooling, one linear layer at the end."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers that ``config`` asks for."""
        super().__init__()
        layers: list[nn.Module] = []
        channels = config.input_shape[0]
        for entry in VGG_LAYERS[config.depth]:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                continue
            out = entry * config.width
            layers += [nn.Conv2d(channels, out, 3, padding=1)]
            layers += [norm_layer(config.norm, out, image=True), nn.ReLU()]
            channels = out
        self.features = nn.Sequential(*layers)
        self.output = nn.Linear(channels, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, 32, 32) to logits (N, classes)."""
        return self.output(self.features(x).mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions added to their input (a 1x1 convolution of it where shapes change)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        """Build one block."""
        super().__init__()
        bias = norm == "none"
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.norm1 = norm_layer(norm, outputs, image=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.norm2 = norm_layer(norm, outputs, image=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=bias),
                norm_layer(norm, outputs, image=True),
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        branch = F.relu(self.norm1(self.conv1(x)))
        branch = self.norm2(self.conv2(branch))
        return F.relu(branch + self.shortcut(x))


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after its normalisation and ReLU, added to the input.

    Where shapes change, a 1x1 convolution of the normalised input takes the input's place.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        """Build one block."""
        super().__init__()
        bias = norm == "none"
        self.norm1 = norm_layer(norm, inputs, image=True)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=bias)
        self.norm2 = norm_layer(norm, outputs, image=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=bias)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) to (N, outputs, H / stride, W / stride)."""
        before = F.relu(self.norm1(x))
        branch = self.conv2(F.relu(self.norm2(self.conv1(before))))
        return branch + (x if self.shortcut is None else self.shortcut(before))


def residual_blocks(
    kind: type[BasicBlock] | type[PreActBlock], config: ModelConfig
) -> tuple[nn.Sequential, int]:
    """The blocks of a residual network, halving the image at each stage after the first.

    Args:
        kind: Which block.
        config: Depth, width and norm.

    Returns:
        The blocks, and the number of channels that come out.
    """
    stages = RESNET_STAGES[config.depth]
    channels = stages[0][0] * config.width
    blocks = []
    for stage, (base, count) in enumerate(stages):
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            blocks.append(kind(channels, base * config.width, stride, config.norm))
            channels = base * config.width
    return nn.Sequential(*blocks), channels


class ResNet(nn.Module):
    """Residual network for 32x32 images (no stem pooling): ResNet-20 or ResNet-18."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers that ``config`` asks for."""
        super().__init__()
        channels = RESNET_STAGES[config.depth][0][0] * config.width
        self.conv = nn.Conv2d(
            config.input_shape[0], channels, 3, padding=1, bias=config.norm == "none"
        )
        self.norm = norm_layer(config.norm, channels, image=True)
        self.blocks, channels = residual_blocks(BasicBlock, config)
        self.output = nn.Linear(channels, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        x = self.blocks(F.relu(self.norm(self.conv(x))))
        return self.output(x.mean((2, 3)))


class PreActResNet(nn.Module):
    """Residual network whose blocks normalise first: PreAct ResNet-18 of adversarial training."""

    def __init__(self, config: ModelConfig) -> None:
        """Build the layers that ``config`` asks for."""
        super().__init__()
        channels = RESNET_STAGES[config.depth][0][0] * config.width
        self.conv = nn.Conv2d(
            config.input_shape[0], channels, 3, padding=1, bias=config.norm == "none"
        )
        self.blocks, channels = residual_blocks(PreActBlock, config)
        self.norm = norm_layer(config.norm, channels, image=True)
        self.output = nn.Linear(channels, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        x = F.relu(self.norm(self.blocks(self.conv(x))))
        return self.output(x.mean((2, 3)))


def build(config: ModelConfig) -> nn.Module:
    """The architecture that a config describes; its random initial values do not matter.

    Args:
        config: What to build.

    Returns:
        A module that maps (N, *input_shape) to logits (N, classes); an ``autoencoder`` gives
        reconstructions (N, *input_shape), a ``transformer`` logits (N, T, classes).

    Taught in: book/start
    """
    kinds: dict[str, type[nn.Module]] = {
        "mlp": MLP,
        "cnn": CNN,
        "vgg": VGG,
        "resnet": ResNet,
        "preact-resnet": PreActResNet,
        "autoencoder": Autoencoder,
        "transformer": Transformer,
    }
    return kinds[config.architecture](config)


def initial(config: ModelConfig, seed: int) -> Params:
    """Freshly drawn parameters and buffers, decided by the seed alone.

    Args:
        config: What to build.
        seed: Any integer; the global random state is left as it was.

    Returns:
        Parameters and buffers by name.

    Taught in: book/start
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return state(build(config))


def state(model: nn.Module) -> Params:
    """A copy of a module's parameters and buffers, as data.

    Args:
        model: Any module.

    Returns:
        Parameters and buffers by name, detached from the module.
    """
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def parameter_names(model: nn.Module) -> tuple[str, ...]:
    """Names of what training changes; the rest of the state are buffers.

    Args:
        model: Any module.

    Returns:
        Names in the model's own order.
    """
    return tuple(name for name, _ in model.named_parameters())


def predict(model: nn.Module, params: Params, x: Tensor) -> Tensor:
    """Run an architecture with given parameters.

    Args:
        model: Architecture, in train or eval mode as the caller wants it.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).

    Returns:
        Logits of shape (N, classes).

    Taught in: book/start
    """
    return functional_call(model, params, (x,))


def stack(many: list[Params]) -> Params:
    """Stack S networks of one architecture along a new leading axis.

    Args:
        many: S dictionaries with the same names and shapes.

    Returns:
        One dictionary whose tensors have shape (S, ...).
    """
    return {name: torch.stack([params[name] for params in many]) for name in many[0]}


def unstack(stacked: Params) -> list[Params]:
    """The inverse of ``stack``.

    Args:
        stacked: Tensors of shape (S, ...).

    Returns:
        S dictionaries.
    """
    count = len(next(iter(stacked.values())))
    return [{name: tensor[s] for name, tensor in stacked.items()} for s in range(count)]


def predict_stacked(model: nn.Module, stacked: Params, x: Tensor) -> Tensor:
    """Run S networks of one architecture at once, each on its own inputs.

    An ``MLP`` or ``Autoencoder`` runs as batched matrix products, which gives bit for bit what S
    single runs give; any other architecture runs network by network (on a CPU ``vmap`` is no
    faster, and not exact).

    Args:
        model: Architecture.
        stacked: Parameters and buffers of shape (S, ...).
        x: Inputs of shape (S, N, ...).

    Returns:
        Logits of shape (S, N, classes), or what else the architecture gives.
    """
    if isinstance(model, MLP):
        return _stacked_mlp(model, stacked, x)
    if isinstance(model, Autoencoder):
        return decode_stacked(model, stacked, encode_stacked(model, stacked, x))
    singles = zip(unstack(stacked), x, strict=True)
    return torch.stack([predict(model, params, inputs) for params, inputs in singles])


def encode_stacked(model: Autoencoder, stacked: Params, x: Tensor) -> Tensor:
    """Codes of S autoencoders, each of its own inputs.

    Args:
        model: Architecture.
        stacked: Parameters of shape (S, ...).
        x: Inputs of shape (S, N, ...).

    Returns:
        Shape (S, N, latent).
    """
    return _stacked_layers(model, stacked, x.flatten(2), range(model.code + 1))


def decode_stacked(model: Autoencoder, stacked: Params, codes: Tensor) -> Tensor:
    """Reconstructions of S autoencoders from their codes.

    Args:
        model: Architecture.
        stacked: Parameters of shape (S, ...).
        codes: Shape (S, N, latent).

    Returns:
        Shape (S, N, ...), the shape of inputs.
    """
    rest = range(model.code + 1, len(model.layers))
    return _stacked_layers(model, stacked, codes, rest).unflatten(2, model.input_shape)


def _stacked_layers(model: Autoencoder, stacked: Params, x: Tensor, layers: range) -> Tensor:
    for k in layers:
        x = _stacked_linear(stacked, f"layers.{k}", x)
        if k not in (model.code, len(model.layers) - 1):
            x = model.activation(x)
    return x


def _stacked_linear(stacked: Params, name: str, x: Tensor) -> Tensor:
    """One linear layer of S networks: (S, N, in) to (S, N, out)."""
    return torch.baddbmm(stacked[f"{name}.bias"].unsqueeze(1), x, stacked[f"{name}.weight"].mT)


def _stacked_mlp(model: MLP, stacked: Params, x: Tensor) -> Tensor:
    x = x.flatten(2)
    for k, norm in enumerate(model.norms):
        x = _stacked_linear(stacked, f"hidden.{k}", x)
        own = {name: stacked[f"norms.{k}.{name}"] for name in norm.state_dict()}
        if isinstance(norm, nn.LayerNorm):
            x = F.layer_norm(x, norm.normalized_shape, eps=norm.eps)
            x = x * own["weight"].unsqueeze(1) + own["bias"].unsqueeze(1)
        elif isinstance(norm, nn.BatchNorm1d):
            x = _stacked_batchnorm(norm, own, x)
        x = model.activation(x)
    return _stacked_linear(stacked, "output", x)


def _stacked_batchnorm(norm: nn.BatchNorm1d, own: Params, x: Tensor) -> Tensor:
    """BatchNorm of S networks, one after the other to be exact: (S, N, units) to the same."""
    if norm.training:
        own["num_batches_tracked"].add_(1)
    return torch.stack(
        [
            F.batch_norm(
                inputs,
                own["running_mean"][s],  # views, so the running statistics are updated in place
                own["running_var"][s],
                own["weight"][s],
                own["bias"][s],
                norm.training,
                norm.momentum or 0.1,
                norm.eps,
            )
            for s, inputs in enumerate(x)
        ]
    )

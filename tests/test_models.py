"""Architectures: published sizes, seeds that decide everything, many networks as one."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons import models
from lmc_lessons.models import (
    ModelConfig,
    Params,
    build,
    initial,
    parameter_names,
    predict,
    predict_stacked,
    stack,
    state,
    unstack,
)

CIFAR = (3, 32, 32)
NORMS = ("none", "batch", "layer")
SMALL: dict[str, ModelConfig] = {
    "mlp": ModelConfig("mlp", (1, 8, 8), 5, width=7, depth=2),
    "cnn": ModelConfig("cnn", (2, 9, 8), 5, width=3),
    "vgg": ModelConfig("vgg", CIFAR, 5, width=1, depth=11),
    "resnet": ModelConfig("resnet", (3, 8, 8), 5, width=1, depth=20),
    "preact-resnet": ModelConfig("preact-resnet", (3, 8, 8), 5, width=1, depth=18),
}


@pytest.fixture
def narrow_vgg(monkeypatch: pytest.MonkeyPatch) -> None:
    """VGG-11 with few channels in its layers, so that it runs in milliseconds."""
    layers = (4, "pool", 5, "pool", 6, 6, "pool", 7, 7, "pool", 7, 7, "pool")
    monkeypatch.setitem(models.VGG_LAYERS, 11, layers)


def inputs(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def small(architecture: str, norm: Any) -> ModelConfig:
    old = SMALL[architecture]
    return ModelConfig(
        old.architecture, old.input_shape, old.classes, old.width, old.depth, norm=norm
    )


def trained_alike(config: ModelConfig, count: int) -> list[Params]:
    """Networks in float64 whose norms and running statistics are not at their first values."""
    networks = []
    for seed in range(count):
        stream = torch.Generator().manual_seed(100 + seed)
        network = {}
        for name, tensor in initial(config, seed).items():
            noise = 0.1 * torch.rand(tensor.shape, generator=stream, dtype=torch.float64)
            network[name] = tensor.double() + noise if tensor.is_floating_point() else tensor + seed
        networks.append(network)
    return networks


# --- Sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (ModelConfig("vgg", CIFAR, 10, width=1, depth=11, norm="batch"), 9_231_114),
        (ModelConfig("vgg", CIFAR, 10, width=1, depth=16, norm="batch"), 14_728_266),
        (ModelConfig("resnet", CIFAR, 10, width=1, depth=20, norm="batch"), 272_474),
        (ModelConfig("resnet", CIFAR, 10, width=1, depth=18, norm="batch"), 11_173_962),
        (ModelConfig("preact-resnet", CIFAR, 10, width=1, depth=18, norm="batch"), 11_172_170),
        (
            ModelConfig("mlp", (1, 28, 28), 10, width=512, depth=3),
            784 * 512 + 512 + 2 * (512 * 512 + 512) + 512 * 10 + 10,
        ),
    ],
    ids=["vgg11-bn", "vgg16-bn", "resnet20", "resnet18", "preact-resnet18", "mlp-3x512"],
)
def test_parameter_counts_are_the_published_ones(config: ModelConfig, published: int) -> None:
    with torch.device("meta"):
        model = build(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == published


def test_mlp_of_the_paper_has_932362_parameters() -> None:
    config = ModelConfig("mlp", (784,), 10, width=512, depth=3)
    assert sum(t.numel() for t in initial(config, 0).values()) == 932_362


def test_width_multiplies_the_channels_of_a_resnet() -> None:
    with torch.device("meta"):
        shapes = [
            {
                n: t.shape
                for n, t in build(ModelConfig("resnet", CIFAR, 10, w, 20)).named_parameters()
            }
            for w in (1, 4)
        ]
    for name, shape in shapes[0].items():
        outputs = 1 if name.startswith("output") else 4
        assert shapes[1][name][0] == outputs * shape[0], name


@pytest.mark.parametrize("architecture", SMALL)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.usefixtures("narrow_vgg")
def test_one_row_of_logits_per_input(architecture: str, norm: str) -> None:
    config = small(architecture, norm)
    x = inputs(3, *config.input_shape)
    model = build(config).eval()
    logits = model(x)
    assert logits.shape == (3, config.classes)
    torch.testing.assert_close(logits, torch.cat([model(x[k : k + 1]) for k in range(3)]))


# --- Initial values -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mlp", "cnn", "resnet"])
def test_the_seed_alone_decides_the_initial_values(architecture: str) -> None:
    config = small(architecture, "batch")
    torch.manual_seed(11)
    first = initial(config, 3)
    torch.manual_seed(12)
    torch.rand(5)
    again, other = initial(config, 3), initial(config, 4)
    assert first.keys() == again.keys() == build(config).state_dict().keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    weights = [name for name, tensor in first.items() if tensor.dim() > 1]
    assert weights
    assert not any(torch.equal(first[name], other[name]) for name in weights)


def test_initial_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    initial(SMALL["mlp"], 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_state_is_a_copy_and_only_parameters_are_trained() -> None:
    model = build(small("mlp", "batch"))
    copied = state(model)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    names = parameter_names(model)
    assert all(not torch.equal(copied[n], model.state_dict()[n]) for n in copied)
    assert not any(tensor.requires_grad for tensor in copied.values())
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    assert {n for n in copied if n.endswith(buffers)} == copied.keys() - set(names)


@pytest.mark.parametrize("norm", NORMS)
def test_predict_is_the_module_with_those_values(norm: str) -> None:
    config = small("cnn", norm)
    params, x = initial(config, 1), inputs(4, *config.input_shape)
    plain = build(config)
    plain.load_state_dict(params)
    assert torch.equal(predict(build(config).eval(), params, x), plain.eval()(x))


# --- Many networks as one -------------------------------------------------------------------------


def test_unstack_is_the_inverse_of_stack() -> None:
    networks = [initial(small("mlp", "batch"), seed) for seed in range(3)]
    stacked = stack(networks)
    assert all(tensor.shape[0] == 3 for tensor in stacked.values())
    for network, back in zip(networks, unstack(stacked), strict=True):
        assert network.keys() == back.keys()
        for name, tensor in network.items():
            assert torch.equal(tensor, back[name])
            assert tensor.dtype == back[name].dtype
    again = stack(unstack(stacked))
    assert all(torch.equal(again[name], tensor) for name, tensor in stacked.items())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("architecture", SMALL)
@pytest.mark.usefixtures("narrow_vgg")
def test_stacked_equals_a_loop_of_plain_modules(
    architecture: str, norm: str, training: bool, count: int
) -> None:
    """Logits, and after a pass in train mode BatchNorm's buffers, in float64."""
    config = small(architecture, norm)
    networks = trained_alike(config, count)
    x = inputs(count, 4, *config.input_shape, dtype=torch.float64)
    stacked = stack(networks)
    with torch.no_grad():
        logits = predict_stacked(build(config).train(training), stacked, x)
    assert logits.shape == (count, 4, config.classes)
    for k, network in enumerate(networks):
        plain = build(config).double().train(training)
        plain.load_state_dict(network)
        with torch.no_grad():
            expected = plain(x[k])
        torch.testing.assert_close(logits[k], expected, rtol=1e-9, atol=1e-11)
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(stacked[name][k], tensor, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_stacked_mlp_gives_bit_for_bit_what_single_runs_give(norm: Any) -> None:
    config = ModelConfig("mlp", (1, 8, 8), 10, width=17, depth=3, norm=norm)
    networks = [initial(config, seed) for seed in range(5)]
    model = build(config).train()
    x = inputs(5, 16, 1, 8, 8)
    with torch.no_grad():
        together = predict_stacked(model, stack(networks), x)
        alone = [predict_stacked(model, stack([p]), x[k : k + 1]) for k, p in enumerate(networks)]
    assert torch.equal(together, torch.cat(alone))


def test_each_network_sees_its_own_inputs_only() -> None:
    config = small("cnn", "none")
    networks = [initial(config, seed) for seed in range(2)]
    x = inputs(2, 3, *config.input_shape)
    model = build(config)
    before = predict_stacked(model, stack(networks), x)
    x[1] += 1
    after = predict_stacked(model, stack(networks), x)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_the_kernels_of_a_cnn_keep_the_size_of_the_image(kernel: int) -> None:
    params = initial(ModelConfig("cnn", (1, 8, 8), 5, width=4, kernel=kernel), 0)
    assert params["conv1.weight"].shape == (4, 1, kernel, kernel)
    assert params["conv2.weight"].shape == (8, 4, kernel, kernel)
    assert params["hidden.weight"].shape == (16, 8 * 2 * 2)


# --- Autoencoders, transformers, activations ------------------------------------------------------


AUTOENCODER = ModelConfig("autoencoder", (1, 4, 4), width=12, depth=2, activation="tanh", latent=3)
TEXTS = ModelConfig("transformer", (9,), classes=7, width=32, depth=2)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_activation_is_applied_to_every_hidden_layer(activation: Any) -> None:
    config = ModelConfig("mlp", (5,), 3, width=4, depth=2, activation=activation)
    params, x = initial(config, 0), inputs(6, 5)
    applied, h = getattr(torch, activation), x
    for k in range(2):
        h = applied(h @ params[f"hidden.{k}.weight"].T + params[f"hidden.{k}.bias"])
    expected = h @ params["output.weight"].T + params["output.bias"]
    torch.testing.assert_close(predict(build(config), params, x), expected)
    stacked = predict_stacked(build(config), stack([params]), x.unsqueeze(0))
    torch.testing.assert_close(stacked[0], expected)


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_an_autoencoder_goes_through_its_code(depth: int) -> None:
    config = dataclasses.replace(AUTOENCODER, depth=depth)
    model, x = build(config), inputs(5, *config.input_shape)
    assert isinstance(model, models.Autoencoder)
    sizes = [layer.out_features for layer in model.layers]
    assert sizes == [12] * depth + [3] + [12] * depth + [16]
    assert model(x).shape == x.shape
    assert model.encode(x).shape == (5, 3)
    assert torch.equal(model(x), model.decode(model.encode(x)))


def test_code_and_reconstruction_have_no_activation() -> None:
    """A shift of their biases shifts them, and the first half is linear without hidden layers."""
    model = models.Autoencoder(dataclasses.replace(AUTOENCODER, depth=0, activation="sigmoid"))
    biases, x = dict(model.named_parameters()), inputs(4, 1, 4, 4)
    codes, back = model.encode(x), model(x)
    with torch.no_grad():
        biases["layers.1.bias"].add_(5)
        assert torch.allclose(model(x), back + 5, atol=1e-5)
        biases["layers.0.bias"].sub_(5)
        assert torch.allclose(model.encode(x), codes - 5, atol=1e-5)


def test_stacked_autoencoders_give_bit_for_bit_what_single_runs_give() -> None:
    model, x = models.Autoencoder(AUTOENCODER), inputs(3, 8, 1, 4, 4)
    networks = [initial(AUTOENCODER, seed) for seed in range(3)]
    together = predict_stacked(model, stack(networks), x)
    alone = [predict_stacked(model, stack([p]), x[k : k + 1]) for k, p in enumerate(networks)]
    assert torch.equal(together, torch.cat(alone))
    plain = torch.stack([predict(model, p, x[k]) for k, p in enumerate(networks)])
    torch.testing.assert_close(together, plain)
    codes = models.encode_stacked(model, stack(networks), x)
    for k, network in enumerate(networks):
        model.load_state_dict(network)
        torch.testing.assert_close(codes[k], model.encode(x[k]))
    assert torch.equal(models.decode_stacked(model, stack(networks), codes), together)


def test_a_transformer_never_looks_ahead() -> None:
    model = build(TEXTS).double()
    texts = torch.randint(0, 7, (4, 9), generator=torch.Generator().manual_seed(0))
    before = model(texts)
    assert before.shape == (4, 9, 7)
    for place in range(9):
        changed = texts.clone()
        changed[:, place] = (changed[:, place] + 1) % 7
        after = model(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        gaps = (after - before)[:, place:].abs().amax((0, 2))
        assert bool((gaps > 1e-9).all()), "every later place sees the change"


def test_a_transformer_reads_the_beginning_of_a_text_alike() -> None:
    model = build(TEXTS).double()
    texts = torch.randint(0, 7, (4, 9), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(texts[:, :5]), model(texts)[:, :5])


def test_a_transformer_block_is_the_published_one_by_hand() -> None:
    """Attention head by head and place by place, in float64."""
    block = models.TransformerBlock(32).double()
    x = inputs(2, 5, 32, dtype=torch.float64)
    seen = torch.zeros_like(x)
    query, key, value = block.attend(block.norm1(x)).chunk(3, -1)
    for text, head, place in itertools.product(range(2), range(2), range(5)):
        part = slice(head * 16, (head + 1) * 16)
        scores = key[text, : place + 1, part] @ query[text, place, part] / 4
        seen[text, place, part] = scores.softmax(0) @ value[text, : place + 1, part]
    x = x + block.mix(seen)
    x = x + block.narrow(F.gelu(block.widen(block.norm2(x))))
    torch.testing.assert_close(block(inputs(2, 5, 32, dtype=torch.float64)), x)


def test_stacked_transformers_are_a_loop_of_plain_ones() -> None:
    networks = [initial(TEXTS, seed) for seed in range(2)]
    texts = torch.randint(0, 7, (2, 4, 9), generator=torch.Generator().manual_seed(0)).float()
    logits = predict_stacked(build(TEXTS), stack(networks), texts)
    assert logits.shape == (2, 4, 9, 7)
    for k, network in enumerate(networks):
        torch.testing.assert_close(logits[k], predict(build(TEXTS), network, texts[k]))


# --- What cannot be built -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"architecture": "vit"}, "architecture is 'vit', allowed: mlp, cnn, vgg, resnet"),
        ({"norm": "group"}, "norm is 'group', allowed: none, batch, layer"),
        ({"width": 0}, "width must be at least 1, got 0"),
        ({"depth": -1}, "depth must be at least 0, got -1"),
        ({"architecture": "cnn", "depth": 0}, "depth must be at least 1, got 0"),
        ({"classes": -1}, "classes must be at least 1, got -1"),
        ({"architecture": "vgg", "input_shape": CIFAR, "depth": 19}, r"allowed: \(11, 16\)"),
        ({"architecture": "resnet", "input_shape": CIFAR, "depth": 50}, r"allowed: \(18, 20\)"),
        (
            {"architecture": "preact-resnet", "input_shape": CIFAR, "depth": 9},
            r"allowed: \(18, 20\)",
        ),
        ({"architecture": "cnn", "input_shape": (30,)}, "needs images of shape"),
        ({"architecture": "cnn", "kernel": 4}, "kernel must be odd, got 4"),
        ({"activation": "gelu"}, "activation is 'gelu', allowed: relu, tanh, sigmoid"),
        ({"architecture": "autoencoder", "latent": 0}, "latent must be at least 1, got 0"),
        ({"architecture": "autoencoder", "norm": "batch"}, "has norm 'batch', allowed: none"),
        ({"architecture": "transformer", "input_shape": (1, 8, 8)}, "needs input_shape"),
        ({"architecture": "transformer", "input_shape": (8,), "width": 20}, "a multiple of 16"),
    ],
)
def test_bad_configurations_name_what_is_allowed(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        ModelConfig(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("architecture", "shape", "depth"),
    [("cnn", (1, 3, 8), 1), ("vgg", (3, 16, 16), 11)],
    ids=["cnn", "vgg"],
)
def test_images_that_pooling_would_use_up_are_refused(
    architecture: Any, shape: tuple[int, ...], depth: int
) -> None:
    with pytest.raises(ValueError, match="input_shape"):
        ModelConfig(architecture, shape, 10, width=1, depth=depth)


def test_a_table_fits_an_mlp() -> None:
    model = build(ModelConfig("mlp", (30,), 2, width=4, depth=1))
    assert model(inputs(5, 30)).shape == (5, 2)

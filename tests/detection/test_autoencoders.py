"""Errors of reconstruction: closed forms, the guard under the root, denoising, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from stacked import network_of, random_data, starts

from lmc_lessons.detection.autoencoders import (
    DENOISING,
    ErrorKind,
    Reconstruction,
    errors,
    reconstruction_error,
    training_errors,
)
from lmc_lessons.models import ModelConfig, build, predict, stack, unstack
from lmc_lessons.training import TrainConfig, generator, train

CONFIG = ModelConfig("autoencoder", (1, 4, 4), width=6, depth=1, latent=3, activation="tanh")
SEEDS = (3, 8)
KINDS: tuple[ErrorKind, ...] = ("norm", "squared", "mean")


def images(networks: int = 2, samples: int = 5) -> torch.Tensor:
    stream = torch.Generator().manual_seed(1)
    return torch.rand(networks, samples, 1, 4, 4, generator=stream, dtype=torch.float64)


def test_errors_are_those_of_a_loop() -> None:
    x, back = images(), images(2, 5).flip(1)
    for s in range(2):
        for n in range(5):
            gap = [
                float(a - b) for a, b in zip(x[s, n].flatten(), back[s, n].flatten(), strict=True)
            ]
            total = sum(g * g for g in gap)
            wanted = {"norm": math.sqrt(total + 1e-12), "squared": total, "mean": total / 16}
            for kind in KINDS:
                found = reconstruction_error(x, back, kind, leading=2)
                assert found.shape == (2, 5)
                assert found[s, n].item() == pytest.approx(wanted[kind], rel=1e-12)
                assert torch.equal(reconstruction_error(x[s], back[s], kind), found[s])


def test_the_norm_has_a_gradient_at_a_perfect_reconstruction() -> None:
    x = images()[0]
    back = x.clone().requires_grad_()
    reconstruction_error(x, back).sum().backward()
    assert back.grad is not None
    assert torch.equal(back.grad, torch.zeros_like(back))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_mean_error_and_ignores_labels(kind: ErrorKind) -> None:
    network = network_of(starts(CONFIG, SEEDS), CONFIG, SEEDS, step=4)
    x = images()
    loss = Reconstruction(kind)
    found = loss(network, x, torch.zeros(2, 5, dtype=torch.int64))
    assert torch.equal(found, loss(network, x, torch.ones(2, 5, dtype=torch.int64)))
    model = build(CONFIG)
    for s, params in enumerate(unstack(starts(CONFIG, SEEDS))):
        alone = reconstruction_error(x[s], predict(model, params, x[s]), kind).mean()
        assert found[s].item() == pytest.approx(alone.item(), rel=1e-12)


def test_a_denoising_autoencoder_sees_noise_and_is_compared_with_the_clean_input() -> None:
    network = network_of(starts(CONFIG, SEEDS), CONFIG, SEEDS, step=4)
    x = images()
    noise = torch.stack(
        [torch.randn(x[0].shape, generator=generator(seed, DENOISING, 4)) for seed in SEEDS]
    ).double()
    back = network(x + 0.3 * noise)
    found = training_errors(network, x, "squared", noise=0.3)
    torch.testing.assert_close(found, (x - back).square().flatten(2).sum(2))
    assert not torch.allclose(found, training_errors(network, x, "squared"))


def test_training_lowers_the_error_and_errors_agree_with_single_networks() -> None:
    data = random_data()
    recipe = TrainConfig(epochs=30, batch_size=16, learning_rate=1e-2)
    run = train(CONFIG, data, SEEDS, recipe, loss=Reconstruction("mean"))
    assert (run.loss[:, -1] < 0.8 * run.loss[:, 0]).all()
    found = errors(build(CONFIG), run.params, data.test_x, "mean", chunk=2)
    assert found.shape == (2, len(data.test_x))
    for s, params in enumerate(unstack(run.params)):
        alone = errors(build(CONFIG), stack([params]), data.test_x, "mean")
        torch.testing.assert_close(alone[0], found[s])


def test_bad_input_is_refused() -> None:
    x = images()[0]
    with pytest.raises(ValueError, match=r"one shape .* got \(5, 1, 4, 4\) and \(4, 1, 4, 4\)"):
        reconstruction_error(x, x[:4])
    with pytest.raises(ValueError, match="more than 1 axes"):
        reconstruction_error(torch.rand(3), torch.rand(3))
    with pytest.raises(ValueError, match="error is 'L2', allowed: norm, squared, mean"):
        reconstruction_error(x, x, "L2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="error is 'L2'"):
        Reconstruction("L2")  # type: ignore[arg-type]
    for noise in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="noise must be a number >= 0"):
            Reconstruction(noise=noise)
    broken = x.float()
    broken[2, 0, 1, 1] = torch.nan
    with pytest.raises(ValueError, match="finite, got 1 entries"):
        errors(build(CONFIG), starts(CONFIG, SEEDS), broken)

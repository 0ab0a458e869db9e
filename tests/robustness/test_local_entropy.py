"""The local entropy is smooth by its tie, and Entropy-SGD descends on it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lmc_lessons.robustness.local_entropy import (
    EntropySGD,
    entropy_sgd,
    local_entropy_gradient,
)

GAMMA = 2.0


def normal(seed: int, *shape: int) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=stream, dtype=torch.float64)


def test_gradient_is_that_of_the_sampled_local_entropy() -> None:
    centre, noise = normal(0, 3), normal(1, 400, 3) / GAMMA**0.5
    losses = (centre + noise).abs().sum(-1)

    def entropy(shift: Tensor) -> Tensor:
        """By its definition, over points drawn from the Gaussian that the tie gives."""
        far = (centre + shift - (centre + noise)).square().sum(-1)
        return -torch.logsumexp(-losses - GAMMA / 2 * (far - noise.square().sum(-1)), -1)

    shift = (0.3 * normal(2, 3)).requires_grad_()
    (expected,) = torch.autograd.grad(entropy(shift), shift)
    found = local_entropy_gradient(shift.detach(), noise, losses, GAMMA)
    assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("h", [1e-1, 1e-3, 1e-6])
def test_a_kink_is_smoothed_and_a_parabola_keeps_its_closed_form(h: float) -> None:
    """For L = a x^2 / 2 the gradient is gamma a / (gamma + a) times x; for |x| it is Lipschitz."""
    noise = normal(3, 200_000, 1) / GAMMA**0.5
    ends = torch.tensor([[h], [-h]], dtype=torch.float64)
    bowl = local_entropy_gradient(ends, noise, 1.5 * noise[:, 0].square(), GAMMA)
    assert (bowl[0] - bowl[1]) / (2 * h) == pytest.approx(GAMMA * 3 / (GAMMA + 3), rel=0.02)
    kink = local_entropy_gradient(ends, noise, 5 * noise[:, 0].abs(), GAMMA)
    assert 0 < float((kink[0] - kink[1]) / (2 * h)) <= GAMMA


def test_no_noise_descends_on_the_moreau_envelope_of_a_kink() -> None:
    """The outer gradient vanishes at the kink, while the gradient itself is a sign."""
    config = EntropySGD(gamma=1.0, inner_steps=400, inner_rate=1e-3, average=0.9, temperature=0)
    start = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    found = entropy_sgd(torch.sign, start, 30, config, torch.Generator().manual_seed(0))
    assert found.gradient.shape == (2, 30)
    assert (found.gradient[:, 0] > 0.3).all()
    assert (found.gradient[:, -1] < 5e-3).all()
    assert (found.theta.abs() < 5e-3).all()


def test_noise_samples_the_tie_s_gaussian() -> None:
    """Without a loss the inner weights wander with variance T / gamma around the outer ones."""
    config = EntropySGD(
        gamma=4.0, inner_steps=4000, inner_rate=0.01, average=0.0, temperature=0.5, outer_rate=1
    )
    start = torch.zeros(2000, 1, dtype=torch.float64)
    found = entropy_sgd(torch.zeros_like, start, 1, config, torch.Generator().manual_seed(1))
    assert found.theta.var() == pytest.approx(0.5 / 4.0, rel=0.1)


def test_the_stream_decides() -> None:
    config = EntropySGD(temperature=0.1)

    def once(seed: int) -> Tensor:
        stream = torch.Generator().manual_seed(seed)
        return entropy_sgd(lambda w: w, torch.ones(3), 2, config, stream).theta

    assert torch.equal(once(0), once(0))
    assert not torch.equal(once(0), once(1))


@pytest.mark.parametrize(
    "changes",
    [
        {"gamma": 0.0},
        {"inner_rate": 0.0},
        {"outer_rate": -1.0},
        {"inner_steps": 0},
        {"average": 1.0},
        {"temperature": -1.0},
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        EntropySGD(**changes)


def test_bad_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="gamma must be > 0"):
        local_entropy_gradient(torch.zeros(1), torch.zeros(2, 1), torch.zeros(2), 0.0)
    with pytest.raises(ValueError, match="steps must be >= 1"):
        entropy_sgd(lambda w: w, torch.ones(1), 0, EntropySGD(), torch.Generator())

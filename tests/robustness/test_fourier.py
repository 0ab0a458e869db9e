"""Waves against their complex definition; convolutions against their matrices and PyTorch's own."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.robustness.fourier import (
    Form,
    band,
    circulant,
    clip_singular_values,
    distance,
    heat_map,
    high_frequency_noise,
    single_fourier_attack,
    singular_values,
    wave,
)
from lmc_lessons.training import generator


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- Waves ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 8), (7, 3)])
def test_waves_are_the_paired_basis_images(height: int, width: int) -> None:
    """Against the complex formula, with the imaginary unit and not an index in its place."""
    a, b = np.mgrid[:height, :width]
    for u, v in itertools.product(range(height), range(width)):
        basis = np.exp(2j * math.pi * (u * a / height + v * b / width))
        mirrored = np.exp(2j * math.pi * ((height - u) * a / height + (width - v) * b / width))
        pair = (1 + 1j) * basis + (1 - 1j) * mirrored
        assert np.abs(pair.imag).max() < 1e-9
        wanted = pair.real / np.abs(pair.real).max()
        np.testing.assert_allclose(wave(u, v, height, width).numpy(), wanted, atol=1e-6)


def test_a_wave_has_one_frequency_and_its_mirror_image() -> None:
    size = torch.fft.fft2(wave(2, 5, 8, 8).double()).abs()
    places = [tuple(int(k) for k in place) for place in (size > 1e-4).nonzero()]
    assert places == [(2, 5), (6, 3)]


def test_mirrored_frequencies_have_other_phases() -> None:
    assert not torch.allclose(wave(1, 2, 8, 8), wave(7, 6, 8, 8), atol=0.1)
    assert not torch.allclose(wave(1, 2, 8, 8), -wave(7, 6, 8, 8), atol=0.1)


def test_the_slowest_wave_is_a_change_of_brightness() -> None:
    assert torch.equal(wave(0, 0, 4, 6), torch.ones(4, 6))


@pytest.mark.parametrize("frequency", [(8, 0), (0, 8), (-1, 0), (0, -1)])
def test_a_frequency_outside_the_image_is_refused(frequency: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="lies outside an image of 8 x 8: u must be from 0 to 7"):
        wave(*frequency, 8, 8)
    with pytest.raises(ValueError, match=r"frequency \(-?\d, -?\d\) lies outside") as caught:
        single_fourier_attack(torch.zeros(2, 1, 8, 8), frequency, 0.1)
    assert "\n" not in str(caught.value)


# --- The attack -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (3,), (2, 3, 1)])
@pytest.mark.parametrize("form", ["linear", "sign"])
def test_the_attack_adds_one_wave_and_clips(lead: tuple[int, ...], form: Form) -> None:
    x = drawn(*lead, 6, 8).abs().clamp(0, 1).float()
    image = wave(2, 3, 6, 8)
    added = 0.4 * (image.sign() if form == "sign" else image)
    found = single_fourier_attack(x, (2, 3), 0.4, form)
    assert found.shape == x.shape
    assert torch.equal(found, torch.clamp(x + added, 0, 1))
    assert float((found - x).abs().max()) <= 0.4 + 1e-6


def test_the_sign_is_up_to_root_two_longer() -> None:
    grey = torch.full((16, 16), 0.5)
    for frequency in ((1, 0), (3, 5), (8, 8)):
        linear, sign = (single_fourier_attack(grey, frequency, 0.3, f) for f in ("linear", "sign"))
        ratio = float((sign - grey).norm() / (linear - grey).norm())
        assert 1 - 1e-5 <= ratio <= math.sqrt(2) + 1e-5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"epsilon": -0.1}, "epsilon must be a number >= 0, got -0.1"),
        ({"epsilon": math.nan}, "epsilon must be a number >= 0, got nan"),
        ({"form": "square"}, "form is 'square', allowed: linear, sign"),
    ],
)
def test_bad_attacks_are_refused(change: dict[str, Any], expected: str) -> None:
    given: dict[str, Any] = {"epsilon": 0.1, "form": "linear"}
    with pytest.raises(ValueError, match=expected):
        single_fourier_attack(torch.zeros(1, 4, 4), (1, 1), **(given | change))


def brightness(x: Tensor) -> Tensor:
    """A network that reads images by their mean: above a half, class 1."""
    mean = x.mean((1, 2, 3))
    return torch.stack([0.5 - mean, mean - 0.5], -1)


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
def test_a_heat_map_is_the_attack_at_every_frequency(chunk: int) -> None:
    x, y = drawn(5, 1, 4, 6).abs().clamp(0, 1).float(), torch.tensor([0, 1, 1, 0, 1])
    found = heat_map(brightness, x, y, 0.5, chunk=chunk)
    assert found.shape == (4, 6)
    assert found.dtype == torch.float64
    for u, v in itertools.product(range(4), range(6)):
        right = brightness(single_fourier_attack(x, (u, v), 0.5)).argmax(-1) == y
        assert found[u, v] == right.double().mean()


@pytest.mark.parametrize(("images", "labels"), [((0, 1, 4, 4), 0), ((3, 1, 4, 4), 2), ((4, 4), 4)])
def test_a_heat_map_needs_images_and_labels(images: tuple[int, ...], labels: int) -> None:
    with pytest.raises(ValueError, match="a heat map needs images"):
        heat_map(brightness, torch.zeros(images), torch.zeros(labels, dtype=torch.int64), 0.1)


def test_bands_leave_brightness_out_and_share_no_frequency() -> None:
    speed = distance(6, 8)
    assert speed[0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert speed[:, 0].tolist() == [0, 1, 2, 3, 2, 1]
    assert int(speed[5, 6]) == 2
    accuracy = drawn(6, 8).abs()
    accuracy[0, 0] = -100
    fast, slow = band(accuracy, 3), band(accuracy, 1, 2)
    places = list(itertools.product(range(6), range(8)))[1:]
    by_hand = {
        True: [
            float(accuracy[p]) for p in places if max(min(p[0], 6 - p[0]), min(p[1], 8 - p[1])) > 2
        ]
    }
    by_hand[False] = [
        float(accuracy[p]) for p in places if max(min(p[0], 6 - p[0]), min(p[1], 8 - p[1])) <= 2
    ]
    assert fast == pytest.approx((min(by_hand[True]), np.mean(by_hand[True])))
    assert slow == pytest.approx((min(by_hand[False]), np.mean(by_hand[False])))


@pytest.mark.parametrize(("low", "high"), [(0, None), (4, None), (3, 2)])
def test_a_band_needs_frequencies(low: int, high: int | None) -> None:
    with pytest.raises(ValueError, match="no frequencies from"):
        band(torch.ones(6, 6), low, high)


# --- Noise ----------------------------------------------------------------------------------------


def test_noise_has_fast_waves_only_and_unit_size() -> None:
    noise = high_frequency_noise((5, 2, 16, 16), generator(3, 63))
    size = torch.fft.fft2(noise.double()).abs()
    assert float(size[..., distance(16, 16) <= 4].max()) < 1e-4
    assert float(size[..., distance(16, 16) > 4].min()) > 0
    assert noise.std((-2, -1), correction=0).numpy() == pytest.approx(np.ones((5, 2)), rel=1e-5)
    assert float(noise.mean((-2, -1)).abs().max()) < 1e-6
    again = high_frequency_noise((5, 2, 16, 16), generator(3, 63))
    assert torch.equal(noise, again)
    assert not torch.equal(noise, high_frequency_noise((5, 2, 16, 16), generator(4, 63)))


def test_noise_needs_a_frequency() -> None:
    with pytest.raises(ValueError, match="no wave of 8 x 8 pixels has more than 4 periods"):
        high_frequency_noise((8, 8), generator(0), above=4)


# --- Convolutions as matrices ---------------------------------------------------------------------


def circular(x: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's convolution on a torus, with the kernel's first entry on the pixel itself."""
    height, width = weight.shape[-2:]
    padded = torch.cat([x, x[..., : height - 1, :]], -2)
    padded = torch.cat([padded, padded[..., : width - 1]], -1)
    return F.conv2d(padded, weight)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4), (1, 1), (6, 6)])
def test_the_circulant_matrix_is_the_convolution(shape: tuple[int, int]) -> None:
    kernel, x = drawn(*shape), drawn(2, 1, 6, 6, seed=1)
    wanted = circular(x, kernel[None, None])
    found = x.flatten(1) @ circulant(kernel, 6).T
    assert torch.allclose(found.view_as(wanted), wanted, atol=1e-12)


def test_waves_are_its_eigenvectors() -> None:
    matrix = circulant(drawn(3, 3), 6).to(torch.complex128)
    a, b = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    for u, v in ((0, 0), (1, 2), (3, 5)):
        image = torch.exp(2j * math.pi * (u * a + v * b) / 6).flatten().to(torch.complex128)
        turned = matrix @ image
        factor = turned[0] / image[0]
        assert torch.allclose(turned, factor * image, atol=1e-12)


def test_singular_values_of_one_kernel_are_its_transform() -> None:
    kernel = drawn(3, 5)
    found = singular_values(kernel[None, None], 8)[..., 0]
    assert torch.allclose(found, torch.fft.fft2(kernel, s=(8, 8)).abs(), atol=1e-12)
    dense = torch.linalg.svdvals(circulant(kernel, 8))
    assert torch.allclose(found.flatten().sort(descending=True).values, dense, atol=1e-12)
    assert float(found[0, 0]) == pytest.approx(abs(float(kernel.sum())), abs=1e-12)
    assert abs(float(kernel.sum())) <= float(found.max()) <= float(kernel.abs().sum())


def test_singular_values_of_many_channels_are_those_of_the_whole_matrix() -> None:
    weight = drawn(3, 2, 3, 3)
    blocks = [torch.cat([circulant(k, 5) for k in row], 1) for row in weight]
    dense = torch.linalg.svdvals(torch.cat(blocks, 0))
    found = singular_values(weight, 5)
    assert found.shape == (5, 5, 2)
    assert torch.allclose(found.flatten().sort(descending=True).values, dense, atol=1e-12)


def test_singular_values_take_leading_axes() -> None:
    weight = drawn(4, 3, 2, 3, 3)
    found = singular_values(weight, 5)
    assert found.shape == (4, 5, 5, 2)
    assert torch.allclose(found[2], singular_values(weight[2], 5))


def test_clipping_lowers_singular_values() -> None:
    """Kernels as large as the image keep their clipped values exactly; small ones nearly."""
    large = drawn(3, 2, 6, 6)
    limit = float(singular_values(large, 6).median())
    exact = singular_values(clip_singular_values(large, limit, 6), 6)
    assert torch.allclose(exact, singular_values(large, 6).clamp_max(limit), atol=1e-10)
    small = drawn(5, 3, 2, 3, 3)
    limit = float(singular_values(small, 8).median())
    clipped = clip_singular_values(small, limit, 8)
    assert clipped.shape == small.shape
    assert float(singular_values(clipped, 8).max()) < float(singular_values(small, 8).max())
    free = clip_singular_values(small, 1e6, 8)
    assert torch.allclose(free, small, atol=1e-12)


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan])
def test_bad_limits_are_refused(limit: float) -> None:
    with pytest.raises(ValueError, match="limit must be above 0"):
        clip_singular_values(drawn(1, 1, 3, 3), limit, 8)


def test_kernels_must_fit_the_image() -> None:
    for function in (
        lambda: circulant(drawn(5, 3), 4),
        lambda: singular_values(drawn(1, 1, 3, 5), 4),
        lambda: clip_singular_values(drawn(1, 1, 5, 5), 1.0, 4),
    ):
        with pytest.raises(ValueError, match="do not fit an image of 4 x 4"):
            function()

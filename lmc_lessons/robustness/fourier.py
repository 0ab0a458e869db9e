r"""Waves as attacks, and convolutions as seen by waves.

A circular convolution is a circulant matrix, and the eigenvectors of every circulant matrix are
the Fourier waves. So a wave is what a convolution amplifies or removes as a whole, and one wave
added to all images is an attack that needs no gradient, no label and no query: the single Fourier
attack.

Images have any number of leading axes; the last two are rows and columns. A frequency (u, v) counts
the periods along the rows and along the columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Predict = Callable[[Tensor], Tensor]
Form = Literal["linear", "sign"]


class Band(NamedTuple):
    """Accuracies over a band of frequencies.

    Attributes:
        worst: The lowest.
        mean: Their mean.
    """

    worst: float
    mean: float


def wave(u: int, v: int, height: int, width: int) -> Tensor:
    r"""The paired Fourier basis image, scaled so that its largest entry has size 1.

    $S_{u,v} = (1 + i) F_{u,v} + (1 - i) F_{H-u,W-v} = 2 (\cos\phi - \sin\phi)$ with
    $\phi = 2\pi (ua/H + vb/W)$ and $i$ the imaginary unit. Equation (eq-abs-wave) of the lesson.

    Scaled so, waves are not equally long: where $\phi$ moves in quarters or halves of a turn, all
    entries have size 1, and the wave is about $\sqrt 2$ times as long as others.

    Args:
        u: Periods along the rows, from 0 to height - 1.
        v: Periods along the columns, from 0 to width - 1.
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        Shape (height, width), float32, entries in [-1, 1].

    Raises:
        ValueError: If the frequency lies outside the image.

    Source:
        tsuzuku2019structural; the complex form was derived again for this book.

    Taught in: book/robustness/absum
    """
    if not (0 <= u < height and 0 <= v < width):
        raise ValueError(
            f"frequency ({u}, {v}) lies outside an image of {height} x {width}: u must be from 0 "
            f"to {height - 1}, v from 0 to {width - 1}"
        )
    rows = torch.arange(height, dtype=torch.float64).view(-1, 1) * u % height / height
    columns = torch.arange(width, dtype=torch.float64) * v % width / width
    phase = 2 * math.pi * (rows + columns)
    image = phase.cos() - phase.sin()
    return (image / image.abs().max()).float()


def single_fourier_attack(
    x: Tensor, frequency: tuple[int, int], epsilon: float, form: Form = "linear"
) -> Tensor:
    r"""Add one wave to every image, the same on all channels, and clip to [0, 1].

    $x' = \mathrm{clip}(x + \epsilon\, \bar S_{u,v})$. It looks neither at the network nor at the
    image. Equation (eq-abs-attack) of the lesson.

    Args:
        x: Images of shape (..., H, W), in [0, 1].
        frequency: The frequency (u, v).
        epsilon: Largest change of a pixel, at least 0.
        form: ``linear`` adds the wave, ``sign`` its sign, which is up to $\sqrt 2$ times as long
            at the same ``epsilon``.

    Returns:
        Images of the same shape.

    Raises:
        ValueError: If the frequency lies outside the image, ``epsilon`` is negative or ``form``
            unknown.

    Source:
        tsuzuku2019structural.

    Taught in: book/robustness/absum
    """
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be a number >= 0, got {epsilon}")
    if form not in get_args(Form):
        raise ValueError(f"form is {form!r}, allowed: {', '.join(get_args(Form))}")
    image = wave(*frequency, *x.shape[-2:]).to(x)
    return (x + epsilon * (image.sign() if form == "sign" else image)).clamp(0, 1)


def heat_map(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    epsilon: float,
    form: Form = "linear",
    *,
    chunk: int = 2048,
) -> Tensor:
    """Accuracy under the single Fourier attack at every frequency.

    Args:
        predict: Maps images (N, C, H, W) to logits (N, classes).
        x: Images of shape (N, C, H, W), in [0, 1].
        y: Labels of shape (N,).
        epsilon: Largest change of a pixel.
        form: As in ``single_fourier_attack``.
        chunk: Images per forward pass; several frequencies share one.

    Returns:
        Shape (H, W), float64: the entry (u, v) is the accuracy at that frequency. The entry (0, 0)
        is a change of brightness.

    Raises:
        ValueError: If there are no images, not one label per image, or as
            ``single_fourier_attack`` does.

    Taught in: book/robustness/absum
    """
    if x.dim() != 4 or len(x) == 0 or len(x) != len(y):
        raise ValueError(
            f"a heat map needs images (N, C, H, W) and one label each, got {tuple(x.shape)} and "
            f"{tuple(y.shape)}"
        )
    height, width = x.shape[-2:]
    frequencies = [(u, v) for u in range(height) for v in range(width)]
    at_once = max(1, chunk // len(x))
    found = []
    with torch.no_grad():
        for first in range(0, len(frequencies), at_once):
            some = frequencies[first : first + at_once]
            attacked = torch.cat([single_fourier_attack(x, f, epsilon, form) for f in some])
            right = torch.cat([predict(part).argmax(-1) for part in attacked.split(chunk)])
            found.append((right.view(len(some), -1) == y).double().mean(1).cpu())
    return torch.cat(found).view(height, width)


def distance(height: int, width: int) -> Tensor:
    """How fast each frequency oscillates: the larger of its two numbers of periods.

    A frequency and its mirror image, u and H - u, oscillate equally fast.

    Args:
        height: Rows of the image.
        width: Columns of the image.

    Returns:
        Shape (height, width), int64, from 0 to half the longer side.

    Taught in: book/robustness/absum
    """
    rows, columns = torch.arange(height), torch.arange(width)
    rows = torch.minimum(rows, height - rows).view(-1, 1)
    return torch.maximum(rows, torch.minimum(columns, width - columns))


def band(accuracy: Tensor, low: int, high: int | None = None) -> Band:
    """The worst and the mean accuracy over frequencies that oscillate so fast.

    Args:
        accuracy: A heat map of shape (H, W).
        low: Least number of periods, at least 1: the change of brightness never counts.
        high: Largest number of periods; None sets no limit.

    Returns:
        Worst and mean.

    Raises:
        ValueError: If ``low`` is below 1 or there is no such frequency.

    Taught in: book/robustness/absum
    """
    speed = distance(*accuracy.shape[-2:])
    inside = (speed >= low) & (speed <= (speed.max() if high is None else high))
    if low < 1 or not bool(inside.any()):
        raise ValueError(
            f"no frequencies from {low} to {high} periods in an image of "
            f"{tuple(accuracy.shape[-2:])}: low must be at least 1 and not above half a side"
        )
    return Band(float(accuracy[inside].min()), float(accuracy[inside].mean()))


def high_frequency_noise(
    shape: Sequence[int], stream: torch.Generator, *, above: float | None = None
) -> Tensor:
    r"""Gaussian noise without its slow waves, scaled to standard deviation 1 in every channel.

    What is kept has more than ``above`` periods along rows or along columns.

    Args:
        shape: Shape (..., H, W).
        stream: Where the noise comes from.
        above: Periods; a quarter of the shorter side by default.

    Returns:
        That shape, float32.

    Raises:
        ValueError: If no frequency is left.

    Taught in: book/robustness/absum
    """
    height, width = shape[-2:]
    limit = min(height, width) / 4 if above is None else above
    kept = distance(height, width) > limit
    if not bool(kept.any()):
        raise ValueError(f"no wave of {height} x {width} pixels has more than {limit:g} periods")
    drawn = torch.randn(tuple(shape), generator=stream, dtype=torch.float64)
    noise = torch.fft.ifft2(torch.fft.fft2(drawn) * kept).real
    return (noise / noise.std((-2, -1), correction=0, keepdim=True)).float()


# Convolutions as matrices


def circulant(kernel: Tensor, side: int) -> Tensor:
    r"""The matrix of a circular convolution with one kernel: $y = C x$ for flattened images.

    Args:
        kernel: Shape (h, w).
        side: The images have ``side`` x ``side`` pixels.

    Returns:
        Shape (side ** 2, side ** 2), the dtype of the kernel.

    Raises:
        ValueError: If the kernel is larger than the image.

    Taught in: book/robustness/absum
    """
    padded = _padded(kernel, side)
    units = torch.eye(side * side, dtype=kernel.dtype).view(-1, side, side)
    shifts = [(a, b) for a in range(kernel.shape[0]) for b in range(kernel.shape[1])]
    images = sum(padded[a, b] * units.roll((-a, -b), dims=(1, 2)) for a, b in shifts)
    assert isinstance(images, Tensor)
    return images.flatten(1).T


def singular_values(weight: Tensor, side: int) -> Tensor:
    r"""Singular values of a circular convolution, frequency by frequency, without its matrix.

    At each frequency a convolution multiplies the channels by a small matrix, the Fourier transform
    of its kernels there. For a single kernel that is a number, and its size is the singular value;
    at frequency (0, 0) it is the absolute value of the kernel's sum.

    Args:
        weight: Kernels of shape (..., out, in, h, w).
        side: The images have ``side`` x ``side`` pixels.

    Returns:
        Shape (..., side, side, min(out, in)), descending along the last axis.

    Raises:
        ValueError: If the kernels are larger than the image.

    Source:
        sedghi2019singular.

    Taught in: book/robustness/absum
    """
    return torch.linalg.svdvals(_transfer(weight, side))


def clip_singular_values(weight: Tensor, limit: float, side: int) -> Tensor:
    r"""Lower all singular values of a circular convolution to a limit, then crop to small kernels.

    The kernels that have exactly the clipped singular values are as large as the image; cropping
    them is an approximation, after which values may exceed the limit a little.

    Args:
        weight: Kernels of shape (..., out, in, h, w).
        limit: Largest singular value wanted, above 0.
        side: The images have ``side`` x ``side`` pixels.

    Returns:
        Kernels of the same shape.

    Raises:
        ValueError: If the limit is not positive, or the kernels are larger than the image.

    Source:
        sedghi2019singular.

    Taught in: book/robustness/absum
    """
    if not limit > 0:
        raise ValueError(f"limit must be above 0, got {limit}")
    left, values, right = torch.linalg.svd(_transfer(weight, side), full_matrices=False)
    clipped = (left * values.clamp_max(limit).unsqueeze(-2)) @ right
    kernels = torch.fft.ifft2(clipped.movedim((-2, -1), (-4, -3))).real
    return kernels[..., : weight.shape[-2], : weight.shape[-1]].to(weight.dtype)


def _transfer(weight: Tensor, side: int) -> Tensor:
    """Fourier transform of every kernel: (..., out, in, h, w) to (..., side, side, out, in)."""
    return torch.fft.fft2(_padded(weight, side)).movedim((-4, -3), (-2, -1))


def _padded(kernels: Tensor, side: int) -> Tensor:
    height, width = kernels.shape[-2:]
    if max(height, width) > side:
        raise ValueError(f"kernels of {height} x {width} do not fit an image of {side} x {side}")
    return F.pad(kernels, (0, side - width, 0, side - height))

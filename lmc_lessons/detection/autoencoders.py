r"""Autoencoders as detectors: how badly is an input reconstructed?

An autoencoder is trained to give back what it is shown through a narrow code. What it has not been
shown comes back badly, so the reconstruction error serves as an anomaly score.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from lmc_lessons.models import Params, predict_stacked
from lmc_lessons.training import Network

ErrorKind = Literal["norm", "squared", "mean"]
DENOISING = 71  # the random stream of the noise that a denoising autoencoder is shown
GUARD = 1e-12  # under the root: its slope is infinite at zero


def reconstruction_error(
    x: Tensor, reconstruction: Tensor, kind: ErrorKind = "norm", *, leading: int = 1
) -> Tensor:
    r"""How far each reconstruction $D(E(x))$ is from its input $x$ (eq-abc-error).

    ``norm`` is $\sqrt{\lVert x - D(E(x)) \rVert^2 + 10^{-12}}$, ``squared`` the square of the
    length without the guard, and ``mean`` the squared length divided by the number of entries.

    Args:
        x: Inputs of shape (..., *input), such as (N, C, H, W) or (S, N, C, H, W).
        reconstruction: What came back, of the same shape.
        kind: How to measure.
        leading: Number of axes before those of one input: 1 for (N, ...), 2 for (S, N, ...).

    Returns:
        One error per input, of the shape of the leading axes; in the unit of the inputs for
        ``norm``, in its square for the others.

    Raises:
        ValueError: If the shapes differ, nothing is left of one input, or the kind is unknown.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    if x.shape != reconstruction.shape or x.dim() <= leading:
        raise ValueError(
            "an error needs inputs and reconstructions of one shape with more than "
            f"{leading} axes, got {tuple(x.shape)} and {tuple(reconstruction.shape)}"
        )
    check_kind(kind)
    squares = (x - reconstruction).square().flatten(leading)
    if kind == "mean":
        return squares.mean(-1)
    total = squares.sum(-1)
    return total if kind == "squared" else (total + GUARD).sqrt()


def check_kind(kind: str) -> None:
    """Refuse an unknown way to measure errors.

    Args:
        kind: Name of the way.

    Raises:
        ValueError: If it is unknown; the message names those that are allowed.
    """
    if kind not in get_args(ErrorKind):
        raise ValueError(f"error is {kind!r}, allowed: {', '.join(get_args(ErrorKind))}")


def check_finite(x: Tensor) -> None:
    """Refuse inputs with NaN or infinity.

    Args:
        x: Inputs of any shape.

    Raises:
        ValueError: If an entry is not finite.
    """
    if not torch.isfinite(x).all():
        count = int((~torch.isfinite(x)).sum())
        raise ValueError(f"inputs must be finite, got {count} entries that are NaN or infinite")


def training_errors(
    network: Network, x: Tensor, kind: ErrorKind = "norm", *, noise: float = 0.0
) -> Tensor:
    r"""Errors of one batch of every network, with a graph to the weights.

    With noise the networks see $x + \sigma n$, $n \sim \mathcal N(0, I)$, and their reconstruction
    is compared with the clean $x$: a denoising autoencoder.

    Args:
        network: The S autoencoders in training.
        x: Inputs of shape (S, B, ...).
        kind: How to measure errors.
        noise: Standard deviation of the noise, in the unit of the inputs.

    Returns:
        Shape (S, B).

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    shown = x
    if noise > 0:
        draws = [
            torch.randn(part.shape, generator=stream)
            for part, stream in zip(x, network.streams(DENOISING), strict=True)
        ]
        shown = x + noise * torch.stack(draws).to(x)
    return reconstruction_error(x, network(shown), kind, leading=2)


@dataclass(frozen=True)
class Reconstruction:
    r"""Mean reconstruction error of a batch, whatever its labels: a loss for ``training.train``.

    Attributes:
        kind: How to measure errors.
        noise: Standard deviation of the noise that is added to what the networks see; 0 for none.

    Taught in: book/detection/autoencoding-binary-classifiers
    """

    kind: ErrorKind = "squared"
    noise: float = 0.0

    def __post_init__(self) -> None:
        """Refuse an unknown error and negative noise."""
        check_kind(self.kind)
        check_noise(self.noise)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Inputs (S, B, ...) to one loss per network, shape (S,)."""
        del y
        return training_errors(network, x, self.kind, noise=self.noise).mean(1)


def check_noise(noise: float) -> None:
    """Refuse a standard deviation that is none.

    Args:
        noise: Standard deviation.

    Raises:
        ValueError: If it is negative or not finite.
    """
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be a number >= 0, got {noise}")


def errors(
    model: nn.Module, stacked: Params, x: Tensor, kind: ErrorKind = "norm", *, chunk: int = 4096
) -> Tensor:
    """Reconstruction errors of the same inputs by S autoencoders, without gradients.

    Args:
        model: Architecture.
        stacked: Parameters of shape (S, ...).
        x: Inputs of shape (N, ...), finite.
        kind: How to measure errors.
        chunk: Inputs per forward pass.

    Returns:
        Shape (S, N).

    Raises:
        ValueError: If an input is not finite.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    check_finite(x)
    networks = len(next(iter(stacked.values())))
    parts = []
    with torch.no_grad():
        for part in x.split(chunk):
            inputs = part.expand(networks, *part.shape)
            back = predict_stacked(model, stacked, inputs)
            parts.append(reconstruction_error(inputs, back, kind, leading=2))
    return torch.cat(parts, 1)

r"""Refinement: an autoencoder that looks for the anomalies in its own training data.

Three ways. Stop before the anomalies are learned. Leave out of every batch what is reconstructed
worst (trimming). Or shape the codes after a known distribution, look there for outliers, take them
out and train against them: an adversarial autoencoder with iterative training set refinement, ITSR.
All are losses for the one training loop. Where every network has training data of its own, a label
is the number of a sample.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from sklearn.svm import OneClassSVM
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.datasets import Dataset
from lmc_lessons.detection.autoencoders import (
    ErrorKind,
    check_finite,
    reconstruction_error,
    training_errors,
)
from lmc_lessons.models import (
    Autoencoder,
    ModelConfig,
    Params,
    build,
    decode_stacked,
    encode_stacked,
    initial,
    predict_stacked,
    stack,
)
from lmc_lessons.training import Loss, Network, generator

PRIOR, DISCRIMINATOR, DROPPED = 75, 76, 77  # independent random streams of one seed
LARGEST_DOUBT = 3.0  # nats; a negative weight stops pushing a code away beyond it


# When are anomalies learned? --------------------------------------------------------------------


def learned_share(variance: float, time: Tensor, start: float) -> Tensor:
    r"""What share of a direction a linear autoencoder gives back at a time (eq-itr-learned).

    $$s(t) = \frac{1}{1 + (1/s_0 - 1)\, e^{-4 \lambda t}}$$

    Args:
        variance: Second moment of the data along the direction, above 0.
        time: Times of any shape: learning rate times number of steps.
        start: Share at time 0, in (0, 1).

    Returns:
        Shares in (0, 1), of the shape of ``time``, in float64.

    Raises:
        ValueError: If the variance is not above 0, or the start not in (0, 1).

    Taught in: book/detection/contaminated-training
    """
    _check_direction(variance, start)
    return 1 / (1 + (1 / start - 1) * torch.exp(-4 * variance * time.double()))


def half_time(variance: float, start: float) -> float:
    r"""When half of a direction is learned: $t_{1/2} = \log(1/s_0 - 1) / 4\lambda$.

    Args:
        variance: Second moment of the data along the direction, above 0.
        start: Share at time 0, in (0, 0.5].

    Returns:
        The time, in units of learning rate times steps.

    Raises:
        ValueError: If the variance is not above 0, or the start not in (0, 0.5].

    Taught in: book/detection/contaminated-training
    """
    _check_direction(variance, start)
    if start > 0.5:
        raise ValueError(f"more than half is learned at the start: {start}")
    return math.log(1 / start - 1) / (4 * variance)


def _check_direction(variance: float, start: float) -> None:
    if not 0 < variance < math.inf or not 0 < start < 1:
        raise ValueError(
            f"a direction needs a variance > 0 and a start in (0, 1), got {variance}, {start}"
        )


# Weights of samples -----------------------------------------------------------------------------


class Weigh(Protocol):
    """How much each sample of a batch counts: 0 leaves it out, below 0 pushes it away."""

    def __call__(self, network: Network, errors: Tensor, y: Tensor) -> Tensor:
        """Errors (S, B) without a graph and numbers of samples (S, B) to weights (S, B)."""


@dataclass(frozen=True)
class Keep:
    """Every sample counts alike."""

    def __call__(self, network: Network, errors: Tensor, y: Tensor) -> Tensor:
        """Ones."""
        del network, y
        return torch.ones_like(errors)


@dataclass(frozen=True)
class Trim:
    """Leave out of every batch the share that is reconstructed worst, from some step on.

    Who is left out is decided anew at every step, so nobody is lost for good.

    Attributes:
        share: Share of a batch, in [0, 1).
        start: Number of steps before it begins.

    Taught in: book/detection/contaminated-training
    """

    share: float = 0.08
    start: int = 0

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        _check_share(self.share, self.start)

    def __call__(self, network: Network, errors: Tensor, y: Tensor) -> Tensor:
        """Zero for the worst, one for the others."""
        del y
        return trimmed(errors, self.share if network.step >= self.start else 0.0)


@dataclass(frozen=True)
class Drop:
    """Leave out as many as ``Trim``, but any: its control.

    Attributes:
        share: Share of a batch, in [0, 1).
        start: Number of steps before it begins.
    """

    share: float = 0.08
    start: int = 0

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        _check_share(self.share, self.start)

    def __call__(self, network: Network, errors: Tensor, y: Tensor) -> Tensor:
        """Zero for those that were drawn, one for the others."""
        del y
        drawn = [torch.rand(errors.shape[1], generator=g) for g in network.streams(DROPPED)]
        share = self.share if network.step >= self.start else 0.0
        return trimmed(torch.stack(drawn).to(errors), share)


@dataclass(frozen=True)
class Fixed:
    """Weights that were decided before training.

    Attributes:
        seeds: The networks they were decided for.
        weights: Shape (S, N), in the order of ``seeds``.
    """

    seeds: tuple[int, ...]
    weights: Tensor = field(repr=False)

    def __call__(self, network: Network, errors: Tensor, y: Tensor) -> Tensor:
        """The weights of the samples of this batch."""
        rows = [self.seeds.index(seed) for seed in network.seeds]
        return self.weights.to(errors)[rows].gather(1, y)


def trimmed(errors: Tensor, share: float) -> Tensor:
    """Weights that leave out the largest errors of every row (eq-itr-trim).

    Args:
        errors: Shape (S, B), finite.
        share: Share to leave out, in [0, 1); the number is rounded to the nearest.

    Returns:
        Zeros and ones of shape (S, B).

    Raises:
        ValueError: If the share is out of range, or an error is not finite.

    Taught in: book/detection/contaminated-training
    """
    _check_share(share, 0)
    check_finite(errors)
    count = round(share * errors.shape[1])
    worst = errors.topk(count, dim=1).indices
    return torch.ones_like(errors).scatter(1, worst, 0.0)


def weighted_mean(losses: Tensor, weights: Tensor, ceiling: float = math.inf) -> Tensor:
    r"""Mean loss over those that count (eq-itr-weighted).

    $$\frac{1}{\#\{w_i \ne 0\}} \Bigl( \sum_{w_i > 0} w_i \ell_i + \sum_{w_i < 0} w_i
    \min(\ell_i, c) \Bigr)$$

    Args:
        losses: Shape (S, B).
        weights: Shape (S, B).
        ceiling: Loss $c$ above which a negative weight pushes no more.

    Returns:
        Shape (S,); zero where nobody counts.

    Taught in: book/detection/contaminated-training
    """
    terms = torch.where(weights < 0, losses.clamp(max=ceiling), losses)
    return (weights * terms).sum(1) / (weights != 0).sum(1).clamp(min=1)


def _check_share(share: float, start: int) -> None:
    if not 0 <= share < 1 or start < 0:
        raise ValueError(f"a share lies in [0, 1) and a start is >= 0, got {share} and {start}")


# Losses -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OwnData:
    """A loss on training data of each network's own; a label is the number of a sample.

    Attributes:
        loss: The loss.
        seeds: The networks.
        x: Their training inputs, shape (S, N, ...).
    """

    loss: Loss
    seeds: tuple[int, ...]
    x: Tensor = field(repr=False)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """One loss per network, shape (S,)."""
        pairs = zip(network.seeds, y, strict=True)
        own = [self.x[self.seeds.index(seed)].to(x)[rows] for seed, rows in pairs]
        return self.loss(network, torch.stack(own), y)


def numbered(name: str, x: Tensor) -> Dataset:
    """A data set whose labels are the numbers of its samples, for ``OwnData``.

    Args:
        name: Its name.
        x: Training inputs of one network, shape (N, ...).

    Returns:
        The data set; its test part is one sample and has no meaning.
    """
    y = torch.arange(len(x))
    return Dataset(name, "numbered", x, y, x[:1], y[:1], tuple(map(str, range(len(x)))))


@dataclass(frozen=True)
class Weighted:
    """Mean reconstruction error of the samples that count.

    Attributes:
        weigh: How much each counts.
        kind: How errors are measured.
        ceiling: Error above which a negative weight pushes no more.

    Taught in: book/detection/contaminated-training
    """

    weigh: Weigh = field(default_factory=Keep)
    kind: ErrorKind = "mean"
    ceiling: float = math.inf

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """One loss per network, shape (S,)."""
        errors = training_errors(network, x, self.kind)
        return weighted_mean(errors, self.weigh(network, errors.detach(), y), self.ceiling)


# Adversarial autoencoders -----------------------------------------------------------------------


@dataclass(frozen=True)
class Adversarial:
    r"""Reconstruction, and codes that a discriminator cannot tell from a prior (eq-itr-aae).

    The discriminator's two layers are numbered on after those of the autoencoder, and one optimiser
    steps for both players: each term sees the other player's tensors without a graph, so that one
    backward pass gives each its own gradient.

    Attributes:
        model: The autoencoder.
        balance: Weight of the term that asks the encoder to fool the discriminator.
        weigh: How much each sample counts, in all terms; the discriminator ignores samples with
            weights below 0.
        ceiling: Error above which a negative weight pushes no more.
        smoothing: The prior's samples count as real to one minus this.
        phase: Number of the training that this is, for random streams of its own.

    Source:
        beggel2019robust, known from a summary; the discriminator has one hidden layer here.

    Taught in: book/detection/contaminated-training
    """

    model: ModelConfig
    balance: float = 0.02
    weigh: Weigh = field(default_factory=Keep)
    ceiling: float = math.inf
    smoothing: float = 0.1
    phase: int = 0

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """One loss per network, shape (S,)."""
        module = architecture(self.model)
        codes = encode_stacked(module, network.params, x)
        back = decode_stacked(module, network.params, codes)
        errors = reconstruction_error(x, back, "mean", leading=2)
        weights = self.weigh(network, errors.detach(), y)
        kept = weights.clamp(min=0)
        blind = {name: tensor.detach() for name, tensor in network.params.items()}
        fooled = F.softplus(-discriminate(self.model, blind, codes))  # -log d(z)
        caught = F.softplus(discriminate(self.model, network.params, codes.detach()))
        real = discriminate(self.model, network.params, self._prior(network, codes))
        smooth = F.softplus(-real) + self.smoothing * real  # cross-entropy with a soft target
        player = weighted_mean(errors, weights, self.ceiling)
        player = player + self.balance * weighted_mean(fooled, weights, LARGEST_DOUBT)
        return player + weighted_mean(caught, kept) + smooth.mean(1)

    def _prior(self, network: Network, codes: Tensor) -> Tensor:
        """Samples of the prior, as many as there are codes."""
        streams = [generator(s, PRIOR, self.phase, network.step) for s in network.seeds]
        return torch.stack([torch.randn(codes.shape[1:], generator=g) for g in streams]).to(codes)


@functools.lru_cache
def architecture(model: ModelConfig) -> Autoencoder:
    """The architecture of an autoencoder, built once.

    Args:
        model: What to build.

    Returns:
        The module.

    Raises:
        TypeError: If it is no autoencoder.
    """
    module = build(model)
    if not isinstance(module, Autoencoder):
        raise TypeError(f"refinement needs an autoencoder, got {model.architecture}")
    return module.eval()


def container(model: ModelConfig) -> ModelConfig:
    """What ``training.train`` is told to train: a configuration with names for two more layers.

    Args:
        model: The autoencoder.

    Returns:
        A configuration whose tensors have the names of autoencoder and discriminator together; the
        shapes come from the start that ``with_discriminator`` gives.
    """
    return replace(model, depth=model.depth + 1)


def with_discriminator(model: ModelConfig, seeds: Sequence[int]) -> Params:
    """Fresh autoencoders, each with a discriminator of its codes.

    Args:
        model: The autoencoder.
        seeds: S seeds.

    Returns:
        Tensors of shape (S, ...).
    """
    return stack([_pair(model, seed) for seed in seeds])


def _pair(model: ModelConfig, seed: int) -> Params:
    stream = generator(seed, DISCRIMINATOR)
    params = initial(model, seed)
    for layer, (fan_in, fan_out) in zip(
        _judges(model), ((model.latent, model.width), (model.width, 1)), strict=True
    ):
        for part, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,))):
            draw = 2 * torch.rand(shape, generator=stream) - 1
            params[f"layers.{layer}.{part}"] = draw / math.sqrt(fan_in)
    return params


def _judges(model: ModelConfig) -> tuple[int, int]:
    """Numbers of the discriminator's layers."""
    first = 2 * (model.depth + 1)
    return first, first + 1


def discriminate(model: ModelConfig, stacked: Params, codes: Tensor) -> Tensor:
    """How surely the discriminators take codes for samples of the prior.

    Args:
        model: The autoencoder.
        stacked: Parameters of shape (S, ...), those of the discriminators among them.
        codes: Shape (S, N, latent).

    Returns:
        Logits of shape (S, N).
    """
    first, last = (
        (stacked[f"layers.{k}.weight"], stacked[f"layers.{k}.bias"]) for k in _judges(model)
    )
    hidden = F.relu(torch.baddbmm(first[1].unsqueeze(1), codes, first[0].mT))
    # A sum, since a product with a single column rounds otherwise for one network than for many.
    return (hidden * last[0]).sum(2) + last[1]


# Scores and rules -------------------------------------------------------------------------------


def own_errors(model: ModelConfig, stacked: Params, x: Tensor, *, chunk: int = 2048) -> Tensor:
    """Reconstruction errors of S networks, each of its own inputs, without gradients.

    Args:
        model: The autoencoder.
        stacked: Parameters of shape (S, ...).
        x: Inputs of shape (S, N, ...), finite.
        chunk: Inputs per network and forward pass.

    Returns:
        Mean squared error per entry, shape (S, N).

    Raises:
        ValueError: If an input is not finite.

    Taught in: book/detection/contaminated-training
    """
    check_finite(x)
    with torch.no_grad():
        parts = [
            reconstruction_error(
                part, predict_stacked(architecture(model), stacked, part), "mean", leading=2
            )
            for part in x.split(chunk, 1)
        ]
    return torch.cat(parts, 1)


def own_codes(model: ModelConfig, stacked: Params, x: Tensor) -> Tensor:
    """Codes of S networks, each of its own inputs, without gradients.

    Args:
        model: The autoencoder.
        stacked: Parameters of shape (S, ...).
        x: Inputs of shape (S, N, ...), finite.

    Returns:
        Shape (S, N, latent).

    Raises:
        ValueError: If an input is not finite.
    """
    check_finite(x)
    with torch.no_grad():
        return encode_stacked(architecture(model), stacked, x)


def latent_likelihood(codes: Tensor) -> Tensor:
    r"""Log density of codes under the prior $\mathcal N(0, I)$, $-\frac12 \lVert z \rVert^2$.

    Args:
        codes: Shape (..., latent).

    Returns:
        Shape (...), in nats, up to a constant.

    Taught in: book/detection/contaminated-training
    """
    return -codes.square().sum(-1) / 2


def either(errors: Tensor, likelihood: Tensor, highest: Tensor, lowest: Tensor) -> Tensor:
    """The OR rule: badly reconstructed, or in an unlikely place (eq-itr-or).

    Args:
        errors: Reconstruction errors, shape (..., N).
        likelihood: Latent likelihoods, shape (..., N).
        highest: Thresholds of errors, shape (...).
        lowest: Thresholds of likelihoods, shape (...).

    Returns:
        Who is flagged, bool, shape (..., N).

    Taught in: book/detection/contaminated-training
    """
    return (errors > highest.unsqueeze(-1)) | (likelihood < lowest.unsqueeze(-1))


# Iterative training set refinement --------------------------------------------------------------


def candidates(codes: Tensor, nu: float = 0.02) -> Tensor:
    """Whose code a one-class support vector machine takes for an outlier.

    Args:
        codes: Codes of the training set, shape (N, latent), finite.
        nu: Share of outliers that the machine is asked for at most, in (0, 1].

    Returns:
        Bool, shape (N,).

    Raises:
        ValueError: If there are no codes, one is not finite, or ``nu`` is out of range.

    Source:
        beggel2019robust, known from a summary.

    Taught in: book/detection/contaminated-training
    """
    if codes.dim() != 2 or not len(codes) or not 0 < nu <= 1:
        raise ValueError(
            f"candidates need codes (N, latent) and nu in (0, 1], got {tuple(codes.shape)}, {nu}"
        )
    check_finite(codes)
    points: Any = codes.cpu().double().numpy()
    found = OneClassSVM(kernel="rbf", gamma="scale", nu=nu).fit(points).predict(points)
    return torch.from_numpy(found == -1)


def refined_weights(
    suspects: Tensor, errors: Tensor, against: float = -0.1, percentile: float = 0.8
) -> Tensor:
    """Weights of the last training: train against the worst suspects, leave out the others.

    Args:
        suspects: The candidate set, bool, shape (N,).
        errors: Reconstruction errors, shape (N,).
        against: Weight of the worst, 0 or below.
        percentile: Suspects with errors at or above this quantile of theirs are the worst.

    Returns:
        Shape (N,): 1, 0, or ``against``.

    Raises:
        ValueError: If shapes differ, ``against`` is above 0, or the percentile is no share.

    Source:
        beggel2019robust, known from a summary that does not give the weight.

    Taught in: book/detection/contaminated-training
    """
    if suspects.shape != errors.shape or suspects.dim() != 1:
        raise ValueError(
            f"one error per sample: got {tuple(suspects.shape)} and {tuple(errors.shape)}"
        )
    if not -math.inf < against <= 0 or not 0 <= percentile <= 1:
        raise ValueError(
            f"against must be <= 0 and percentile in [0, 1], got {against} and {percentile}"
        )
    weights = (~suspects).to(errors)
    if suspects.any():
        worst = errors >= errors[suspects].quantile(percentile)
        weights[suspects & worst] = against
    return weights

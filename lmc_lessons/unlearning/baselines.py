r"""What mnemonic codes are compared with: masks, dampening, noise, more training, training anew.

Every function takes a network as data and gives another; none changes what it was given. Classes
that cannot be forgotten are refused before anything is computed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmc_lessons.curvature import fisher_diagonal
from lmc_lessons.datasets import Dataset
from lmc_lessons.models import ModelConfig, Params
from lmc_lessons.training import Loss, TrainConfig, cross_entropy, generator, train
from lmc_lessons.unlearning.mnemonic import OUTPUT, belongs, check_forgotten

NOISE = 81  # the random stream of Fisher forgetting
MASK = 1e3  # what the mask takes from a logit: more than any logit here is large


def without(data: Dataset, forgotten: Sequence[int]) -> Dataset:
    """The data set without the training samples of some classes; the test part stays whole.

    Args:
        data: The data set.
        forgotten: Classes to leave out.

    Returns:
        A data set with as many class names as before.

    Raises:
        ValueError: If a class does not exist, none is named, or none would remain.

    Taught in: book/unlearning/mnemonic-codes
    """
    kept = ~belongs(data.train_y, check_forgotten(forgotten, data.classes))
    return dataclasses.replace(data, train_x=data.train_x[kept], train_y=data.train_y[kept])


def mask_logits(params: Params, forgotten: Sequence[int], amount: float = MASK) -> Params:
    """Take a constant from the output biases of some classes: nothing else changes.

    Args:
        params: Parameters and buffers by name, ``output.bias`` of shape (K,) among them.
        forgotten: Classes to mask.
        amount: What to take.

    Returns:
        Parameters and buffers.

    Raises:
        ValueError: If there is no such layer, or the classes do not fit.

    Taught in: book/unlearning/mnemonic-codes
    """
    if f"{OUTPUT}bias" not in params:
        raise ValueError(f"a network needs a layer named output, got {list(params)}")
    bias = params[f"{OUTPUT}bias"].clone()
    bias[list(check_forgotten(forgotten, len(bias)))] -= amount
    return {**params, f"{OUTPUT}bias": bias}


def importances(
    model: nn.Module, params: Params, x: Tensor, y: Tensor, forgotten: Sequence[int]
) -> tuple[Params, Params]:
    r"""Fisher information of all samples, and of those to forget.

    With N samples, $N_f$ of them to forget, the second is nowhere more than $N / N_f$ times the
    first: it is a mean over part of the same squares. See (eq-mnc-bound) of the lesson.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        x: All training inputs, shape (N, ...).
        y: Their labels, shape (N,).
        forgotten: Classes to forget.

    Returns:
        $F^D$ and $F^f$, float64, of the parameters' shapes.

    Raises:
        ValueError: If no input is of the classes, or an input is not finite.

    Taught in: book/unlearning/mnemonic-codes
    """
    chosen = belongs(y, forgotten)
    if not chosen.any():
        raise ValueError(f"no input is of the classes to forget, {forgotten}")
    if not torch.isfinite(x).all():
        raise ValueError("inputs of the Fisher information hold NaN or infinity")
    model.eval()
    exact = doubled(params)
    whole = fisher_diagonal(model, exact, x.double(), y)
    return whole, fisher_diagonal(model, exact, x[chosen].double(), y[chosen])


def dampen(
    params: Params,
    whole: Params,
    part: Params,
    *,
    threshold: float = 10.0,
    strength: float = 1.0,
) -> Params:
    r"""Selective synaptic dampening: shrink the weights that matter much more for the forget set.

    $$\theta_j \leftarrow \min\Big( \lambda \frac{F^D_j}{F^f_j}, 1 \Big)\, \theta_j
    \qquad\text{where } F^f_j > \alpha F^D_j$$

    Equation (eq-mnc-ssd) of the lesson. Here the Fisher information is that of single samples; the
    published code squares the mean gradient of a batch.

    Args:
        params: Parameters and buffers by name.
        whole: $F^D$, as ``importances`` gives it.
        part: $F^f$, likewise.
        threshold: $\alpha$.
        strength: $\lambda$.

    Returns:
        Parameters and buffers.

    Raises:
        ValueError: If a number is not above 0.

    Source:
        foster2024ssd.

    Taught in: book/unlearning/mnemonic-codes
    """
    if not (0 < threshold < math.inf and 0 < strength < math.inf):
        raise ValueError(f"threshold and strength must be above 0, got {threshold}, {strength}")
    found = dict(params)
    for name, all_of_it in whole.items():
        weights = params[name].double()
        factor = (strength * all_of_it / part[name].clamp(min=1e-300)).clamp(max=1.0)
        hit = part[name] > threshold * all_of_it
        found[name] = torch.where(hit, factor * weights, weights).to(params[name])
    return found


def fisher_noise(
    model: nn.Module,
    params: Params,
    x: Tensor,
    forgotten: Sequence[int],
    *,
    seed: int,
    alpha: float = 1e-6,
    head: bool = True,
) -> Params:
    r"""Fisher forgetting: noise where the remaining data do not object.

    $$\theta' = \theta + \sigma \odot n, \qquad \sigma_j^2 = \frac{\alpha}{F_j + 10^{-8}},
    \quad n \sim N(0, I)$$

    with the Fisher information of the remaining inputs over all labels, weighted by the network's
    own probabilities. As in the published code $1/F_j$ is at most $10^3$ ($10^2$ in the last
    layer), it is averaged over a unit's inputs, and ten times as large in the last layer and in
    biases. To forget a class, that code also sets the class's row of the last layer to zero, with a
    variance of $10^{-4}$: a mask of its logit in disguise.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        x: Remaining training inputs, shape (N, ...).
        forgotten: Classes to forget.
        seed: Decides the noise.
        alpha: $\alpha$.
        head: Whether to reset the classes' rows of the last layer.

    Returns:
        Parameters and buffers.

    Raises:
        ValueError: If the classes do not fit, or ``alpha`` is negative.

    Source:
        golatkar2020eternal and its published code.

    Taught in: book/unlearning/mnemonic-codes
    """
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha must be finite and >= 0, got {alpha}")
    rows = list(check_forgotten(forgotten, len(params[f"{OUTPUT}bias"])))
    model.eval()
    stream, found = generator(seed, NOISE), dict(params)
    for name, fisher in fisher_diagonal(model, doubled(params), x.double()).items():
        last = name.startswith(OUTPUT)
        inverse = (1 / (fisher + 1e-8)).clamp(max=1e2 if last else 1e3)
        if inverse.dim() > 1:
            inputs = tuple(range(1, inverse.dim()))
            inverse = inverse.mean(inputs, keepdim=True).expand_as(fisher)
        variance = alpha * inverse * (10 if last or fisher.dim() == 1 else 1)
        centre = params[name].double().clone()
        if last and head:
            variance = variance.clone()
            centre[rows], variance[rows] = 0.0, 1e-4
        noise = torch.randn(fisher.shape, generator=stream, dtype=torch.float64).to(fisher.device)
        found[name] = (centre + variance.sqrt() * noise).to(params[name])
    return found


def train_on(
    model: ModelConfig,
    params: Params,
    data: Dataset,
    seed: int,
    recipe: TrainConfig,
    *,
    loss: Loss = cross_entropy,
    snapshots: Sequence[int] = (),
    device: str = "cpu",
) -> list[Params]:
    """Train one network further, such as on what remains (fine-tuning) or to learn again.

    Args:
        model: Architecture.
        params: Where to start; left as it is.
        data: What to train on.
        seed: Decides the order of the data.
        recipe: How to train.
        loss: The loss.
        snapshots: Epochs to give back, 0 for the start; by default the last.
        device: Where to train.

    Returns:
        One network per snapshot, in their order.

    Raises:
        ValueError: As ``training.train`` does.

    Taught in: book/unlearning/mnemonic-codes
    """
    wanted = sorted({*snapshots}) or [recipe.epochs]
    start = {name: tensor.unsqueeze(0) for name, tensor in params.items()}
    run = train(
        model, data, [seed], recipe, loss=loss, start=start, snapshots=wanted, device=device
    )
    return [
        {name: tensor[0].to(device) for name, tensor in run.snapshots[epoch].items()}
        for epoch in wanted
    ]


def doubled(params: Params) -> Params:
    """The same in float64, except for what is counted in integers."""
    return {n: t.double() if t.is_floating_point() else t for n, t in params.items()}

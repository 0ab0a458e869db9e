r"""Singular values and vectors of two networks' layers, and how well they line up.

A layer is taken apart as $W = U S V^\top = \sum_i s_i u_i v_i^\top$. A permutation of units turns
the singular vectors and leaves the singular values alone, so all that matching can do is to line
vectors up. The alignment $R$ measures how far it got.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.curvature import gradient, hessian_vector_product, inner_product
from lmc_lessons.models import Params, parameter_names, predict


class Spectrum(NamedTuple):
    """The singular value decomposition of one layer, $W = U S V^T$, k = min(out, in) terms.

    Attributes:
        left: $U$, whose columns are the left singular vectors, shape (out, k).
        values: Singular values, descending, shape (k,).
        right: $V$, whose columns are the right singular vectors, shape (in, k).
    """

    left: Tensor
    values: Tensor
    right: Tensor


class Alignment(NamedTuple):
    """How well the singular vectors of two networks line up.

    Attributes:
        whole: $R$ over all layers; at most 1 in size, 1 if all singular vectors coincide.
        layers: Layer to the same ratio for this layer alone.
        kept: Layer to the number of singular values that were kept, in A and in B.
    """

    whole: float
    layers: dict[str, float]
    kept: dict[str, tuple[int, int]]


class TaylorBarrier(NamedTuple):
    """The barrier that gradients and Hessians at the two ends foretell, in nats.

    Attributes:
        first: The gradients' part.
        second: The Hessians' part.
    """

    first: float
    second: float

    @property
    def total(self) -> float:
        """The whole second-order estimate."""
        return self.first + self.second


def weight_matrices(params: Params, layers: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Every linear and convolutional weight as a matrix (out, everything else).

    A convolution (out, in, kh, kw) becomes (out, in * kh * kw): a permutation of its inputs then
    moves blocks of kh * kw columns.

    Args:
        params: Parameters and buffers by name.
        layers: Names without ``.weight``; by default all whose ``.weight`` has two axes or more.

    Returns:
        Layer name to a matrix, in the network's own order.

    Raises:
        ValueError: If no layer is left, or a name is not a layer of the network.

    Taught in: book/connectivity/singular-vectors
    """
    found = {
        name.removesuffix(".weight"): tensor.detach().flatten(1)
        for name, tensor in params.items()
        if name.endswith(".weight") and tensor.dim() >= 2
    }
    if layers is None:
        layers = tuple(found)
    if not layers:
        raise ValueError("at least one layer is needed, got none")
    if unknown := [name for name in layers if name not in found]:
        raise ValueError(f"no layer {unknown[0]!r}, this network has: {', '.join(found)}")
    return {name: found[name] for name in layers}


def spectra(params: Params, layers: Sequence[str] | None = None) -> dict[str, Spectrum]:
    """Take every layer apart into singular values and vectors, in float64.

    Args:
        params: Parameters and buffers by name.
        layers: Which layers; all by default.

    Returns:
        Layer name to its decomposition.

    Raises:
        ValueError: If no layer is left, a name is unknown, or a weight is not finite.

    Taught in: book/connectivity/singular-vectors
    """
    found = {}
    for name, matrix in weight_matrices(params, layers).items():
        if not torch.isfinite(matrix).all():
            raise ValueError(f"singular values need finite weights, {name} has NaN or infinity")
        left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
        found[name] = Spectrum(left, values, right.mT)
    return found


def overlap(a: Spectrum, b: Spectrum) -> Tensor:
    r"""The agreement of every pair of singular vectors, $(u^A_i \cdot u^B_j)(v^A_i \cdot v^B_j)$.

    Equation (eq-overlap) of the lesson. The sign of a singular vector is arbitrary, but that of a
    pair $(u_i, v_i)$ is not: both flip together, and the product stays.

    Args:
        a: Spectrum of A's layer.
        b: Spectrum of B's layer.

    Returns:
        Shape (values of A, values of B).

    Raises:
        ValueError: If the layers differ in shape.

    Taught in: book/connectivity/singular-vectors
    """
    shapes = [(len(s.left), len(s.right)) for s in (a, b)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"the layers differ in shape: {shapes[0]} and {shapes[1]}")
    return (a.left.mT @ b.left) * (a.right.mT @ b.right)


def kept(spectrum: Spectrum, gamma: float) -> int:
    r"""How many singular values are at least $\gamma$ times the layer's largest.

    Args:
        spectrum: One layer.
        gamma: Threshold in [0, 1).

    Returns:
        A number from 1 to k; at $\gamma = 0$ all of them.

    Raises:
        ValueError: If gamma lies outside [0, 1).
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must be in [0, 1), got {gamma}")
    return int((spectrum.values >= gamma * spectrum.values[0]).sum())


def alignment(
    a: Mapping[str, Spectrum], b: Mapping[str, Spectrum], gamma: float = 0.0
) -> Alignment:
    r"""How well the singular vectors of two networks line up, $R(\theta_A, \theta_B; \gamma)$.

    Equation (eq-alignment) of the lesson. Of every layer only the singular values
    $s_i \ge \gamma s_1$ count. If the two networks keep different numbers of them, the denominator
    takes their geometric mean, and $|R| \le 1$ by the Cauchy-Schwarz inequality. At $\gamma = 0$ a
    layer of deficient rank contributes vectors that its weights do not determine; a small threshold
    leaves them out.

    Args:
        a: Spectra of A, from ``spectra``.
        b: Spectra of B, of the same layers.
        gamma: Threshold in [0, 1).

    Returns:
        The ratio for the whole network and for each layer.

    Raises:
        ValueError: If there is no layer, the layers differ in name or shape, or gamma lies outside
            [0, 1).

    Source:
        ito2025analysis, section 4 (formula as quoted by its reviewers).

    Taught in: book/connectivity/singular-vectors
    """
    return alignments(a, b, (gamma,))[0]


def alignments(
    a: Mapping[str, Spectrum], b: Mapping[str, Spectrum], gammas: Sequence[float]
) -> list[Alignment]:
    """The alignment at several thresholds, for the price of one.

    Args:
        a: Spectra of A, from ``spectra``.
        b: Spectra of B, of the same layers.
        gammas: Thresholds in [0, 1).

    Returns:
        One alignment per threshold.

    Raises:
        ValueError: As ``alignment`` does.

    Taught in: book/connectivity/singular-vectors
    """
    _check_layers(a, b)
    tables = {}
    for name in a:
        try:
            tables[name] = overlap(a[name], b[name])
        except ValueError as error:
            raise ValueError(f"networks differ at {name}: {error}") from error
    found = []
    for gamma in gammas:
        counts = {name: (kept(a[name], gamma), kept(b[name], gamma)) for name in a}
        sums = {name: float(tables[name][:p, :q].sum()) for name, (p, q) in counts.items()}
        sizes = {name: (p * q) ** 0.5 for name, (p, q) in counts.items()}
        layers = {name: sums[name] / sizes[name] for name in a}
        found.append(Alignment(sum(sums.values()) / sum(sizes.values()), layers, counts))
    return found


def _check_layers(a: Mapping[str, Spectrum], b: Mapping[str, Spectrum]) -> None:
    if not a:
        raise ValueError("at least one layer is needed, got none")
    if a.keys() != b.keys():
        raise ValueError(f"the networks differ in layers: {list(a)} and {list(b)}")


def spectral_difference(a: Mapping[str, Spectrum], b: Mapping[str, Spectrum]) -> dict[str, float]:
    r"""How far the singular values of two networks differ, $\|s^A - s^B\| / \|s^A\|$, per layer.

    Args:
        a: Spectra of A.
        b: Spectra of B, of the same layers and shapes.

    Returns:
        Layer name to a number, 0 if all singular values agree.

    Raises:
        ValueError: If the layers differ in name or number of singular values.

    Taught in: book/connectivity/singular-vectors
    """
    _check_layers(a, b)
    found = {}
    for name in a:
        p, q = a[name].values, b[name].values
        if len(p) != len(q):
            raise ValueError(f"networks differ at {name}: {len(p)} and {len(q)} singular values")
        gap = (p - q).norm()
        found[name] = float(gap / p.norm()) if gap > 0 else 0.0
    return found


def effective_rank(values: Tensor) -> float:
    r"""How many singular values carry weight: $\exp H(p)$ with $p_i = s_i / \sum_j s_j$.

    Args:
        values: Singular values of shape (k,), not all zero.

    Returns:
        A number from 1 (one value stands out alone) to k (all are equal).

    Raises:
        ValueError: If all values are zero.

    Taught in: book/connectivity/singular-vectors
    """
    if not values.any():
        raise ValueError("effective rank needs a singular value above zero")
    share = values.double() / values.double().sum()
    return float(torch.special.entr(share).sum().exp())


def truncate(params: Params, gamma: float, layers: Sequence[str] | None = None) -> Params:
    r"""Drop from every layer the singular values below $\gamma$ times its largest.

    Args:
        params: Parameters and buffers by name; not changed.
        gamma: Threshold in [0, 1).
        layers: Which layers; all by default.

    Returns:
        Parameters of the same shapes, each layer of lower rank.

    Raises:
        ValueError: As ``spectra`` and ``kept`` do.

    Taught in: book/connectivity/singular-vectors
    """
    found = dict(params)
    for name, (left, values, right) in spectra(params, layers).items():
        k = kept(Spectrum(left, values, right), gamma)
        old = params[f"{name}.weight"]
        low = (left[:, :k] * values[:k]) @ right[:, :k].mT
        found[f"{name}.weight"] = low.to(old.dtype).view_as(old)
    return found


def input_preference(
    model: nn.Module,
    params: Params,
    x: Tensor,
    *,
    directions: Params | None = None,
    chunk: int = 128,
) -> dict[str, Tensor]:
    r"""How much of a layer's input lies along each right singular vector: mean $|v_i \cdot z|/|z|$.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).
        directions: Take the singular vectors of these parameters instead: a control.
        chunk: Number of inputs per forward pass.

    Returns:
        Layer name to one number per right singular vector, in the order of descending singular
        values. A convolution's inputs are its patches. Inputs that are zero do not count.

    Raises:
        ValueError: If a weight is not finite, a convolution is grouped, or padded by name or by
            other than zeros, a layer is never run as a linear layer or 2-d convolution, or
            ``directions`` has other layers.

    Taught in: book/connectivity/singular-vectors
    """
    if directions is not None:
        shapes = [{n: w.shape for n, w in weight_matrices(p).items()} for p in (params, directions)]
        if shapes[0] != shapes[1]:
            raise ValueError("directions must come from a network of the same layers and shapes")
    found = spectra(directions or params)
    sums = {name: torch.zeros_like(s.values) for name, s in found.items()}
    counts: dict[str, int] = {}

    def add(name: str, z: Tensor) -> None:
        size = z.norm(dim=1)
        shares = (z @ found[name].right).abs() / size.where(size > 0, 1).unsqueeze(1)
        sums[name] += shares.sum(0)
        counts[name] = counts.get(name, 0) + int((size > 0).sum())

    _visit_layer_inputs(model, params, x, chunk, add)
    if unseen := [name for name in found if name not in counts]:
        raise ValueError(f"no inputs of {unseen[0]} were seen: is it a linear or 2-d convolution?")
    return {name: total / max(1, counts[name]) for name, total in sums.items()}


def _visit_layer_inputs(
    model: nn.Module, params: Params, x: Tensor, chunk: int, visit: Callable[[str, Tensor], None]
) -> None:
    """Call ``visit(layer, inputs (n, in))`` as every layer runs: patches of convolutions, float64.

    Nothing is kept, so that memory holds the patches of one layer and chunk at a time.
    """
    model.eval()

    def record(name: str, layer: nn.Module, z: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            plain = layer.groups == 1 and layer.padding_mode == "zeros"
            if isinstance(layer.padding, str) or not plain:
                raise ValueError(
                    f"{name}: only ungrouped convolutions with numeric padding by zeros"
                )
            z = F.unfold(z, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT
        visit(name, z.flatten(0, -2).double())

    hooks = [
        layer.register_forward_hook(lambda m, i, _o, name=name: record(name, m, i[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    try:
        with torch.no_grad():
            for part in x.split(chunk):
                predict(model, params, part)
    finally:
        for hook in hooks:
            hook.remove()


def taylor_barrier(
    model: nn.Module,
    a: Params,
    b: Params,
    x: Tensor,
    y: Tensor,
    *,
    position: float = 0.5,
    chunk: int = 2048,
) -> TaylorBarrier:
    r"""The rise above the chord that second-order expansions around both ends foretell.

    Equation (eq-taylor) of the lesson: with $v = \theta_B - \theta_A$ and position $t$,
    $t(1 - t)\{v \cdot (g_A - g_B) + \frac12 v^\top [t H_A + (1 - t) H_B] v\}$. Only products of
    the Hessians with $v$ are formed.

    Args:
        model: Architecture; put into eval mode. Buffers stay those of each end.
        a: The network at position 0.
        b: The network at position 1.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        position: Where between the ends.
        chunk: Number of inputs whose graph is held in memory at once.

    Returns:
        The two parts of the estimate, in nats.

    Raises:
        ValueError: If there are no inputs, or not one label per input, or the networks differ in
            names or shapes.

    Source:
        ito2025analysis, Theorem 3.1.

    Taught in: book/connectivity/singular-vectors
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(
            f"an expansion needs one label per input, got {len(x)} inputs, {len(y)} labels"
        )
    model.eval()
    names = parameter_names(model)
    for name in names:
        shapes = [tuple(p[name].shape) if name in p else None for p in (a, b)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"networks differ at {name}: shapes {shapes[0]} and {shapes[1]}")
    v = {name: b[name] - a[name] for name in names}
    first, second = 0.0, 0.0
    for inputs, labels in zip(x.split(chunk), y.split(chunk), strict=True):
        for end, sign, weight in ((a, 1, position), (b, -1, 1 - position)):

            def loss(params: Params, end: Params = end) -> Tensor:
                logits = predict(model, {**end, **params}, inputs)  # noqa: B023
                return F.cross_entropy(logits, labels, reduction="sum")  # noqa: B023

            at = {name: end[name].detach() for name in names}
            first += sign * float(inner_product(v, gradient(loss, at)))
            curved = inner_product(v, hessian_vector_product(loss, at, v))
            second += weight * float(curved) / 2
    scale = position * (1 - position) / len(x)
    return TaylorBarrier(scale * first, scale * second)

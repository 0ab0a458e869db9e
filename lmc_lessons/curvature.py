"""Second derivatives of a loss, without ever forming the Hessian, and the Fisher information."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial, reduce
from typing import Literal, NamedTuple, get_args

import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor, nn
from torch.func import grad, vjp, vmap
from torch.nn import functional as F

from lmc_lessons.models import Params, parameter_names, predict

Product = Callable[[Params], Params]
End = Literal["magnitude", "largest", "smallest", "ends"]

BLOCK = 2**20  # numbers held at once while single samples' gradients of a layer are squared


def inner_product(a: Params, b: Params) -> Tensor:
    """Inner product of two sets of tensors of the same names and shapes.

    Args:
        a: Tensors by name.
        b: Tensors by name; names that ``a`` lacks do not count.

    Returns:
        A scalar tensor.
    """
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def gradient(loss: Callable[[Params], Tensor], params: Params) -> Params:
    """Gradient of a scalar loss.

    Args:
        loss: Maps parameters to a scalar.
        params: Where to take the gradient: floating-point tensors only.

    Returns:
        A tensor per parameter, of the parameter's shape.
    """
    return grad(loss)(params)


def hessian_vector_product(
    loss: Callable[[Params], Tensor], params: Params, vector: Params
) -> Params:
    r"""The product $H v$ of the Hessian with a vector.

    The Hessian is symmetric, so it is the pull-back of $v$ through the gradient.

    The cost is that of a few gradients, and so is the memory.

    Args:
        loss: Maps parameters to a scalar; the network inside should be in eval mode, since batch
            statistics would couple the samples.
        params: Where to take the Hessian: floating-point tensors only.
        vector: Tensors of the parameters' names and shapes.

    Returns:
        A tensor per parameter, of the parameter's shape.

    Raises:
        ValueError: If names or shapes of ``vector`` differ from those of ``params``.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in params.items()}
    given = {name: tuple(tensor.shape) for name, tensor in vector.items()}
    if shapes != given:
        wrong = sorted(set(shapes.items()) ^ set(given.items()))
        raise ValueError(f"vector and parameters differ in names or shapes: {wrong[:2]}")
    product: Params = vjp(grad(loss), params)[1](vector)[0]
    return product


class Tridiagonal(NamedTuple):
    r"""What Lanczos' iteration found out about $H$: $H Q^\top = Q^\top T + \beta_m q e_m^\top$.

    Attributes:
        diagonal: Diagonal of $T$, float64 on the CPU, shape (m,).
        offdiagonal: What stands beside it, at least 0, float64 on the CPU, shape (m - 1,).
        remainder: $\beta_m$, what is left after the last step; 0 if the basis is invariant, and
            then every eigenvalue of $T$ is one of $H$.
        basis: $Q$, orthonormal rows of the parameters' dtype, shape (m, parameters).
    """

    diagonal: Tensor
    offdiagonal: Tensor
    remainder: float
    basis: Tensor


class Eigenpairs(NamedTuple):
    """Some eigenvalues of a symmetric map, with what is known about their error.

    Attributes:
        values: Eigenvalues in the order that was asked for, float64, shape (k,).
        vectors: A unit vector per eigenvalue, as tensors by name.
        bounds: Within this distance of each value there is an eigenvalue, rounding apart; float64,
            shape (k,).
        products: How many products were taken.
    """

    values: Tensor
    vectors: list[Params]
    bounds: Tensor
    products: int


class Estimate(NamedTuple):
    """A mean over random draws.

    Attributes:
        mean: The estimate.
        standard_error: Its standard error.
    """

    mean: float
    standard_error: float


class Density(NamedTuple):
    """A distribution of eigenvalues as weighted points.

    Attributes:
        nodes: Places, ascending, in the eigenvalues' unit, float64, shape (n,).
        weights: The share of eigenvalues at each place; they sum to 1; float64, shape (n,).
    """

    nodes: Tensor
    weights: Tensor


# --- Products ------------------------------------------------------------------------------------


def hessian_of(
    loss: Callable[[Params], Tensor] | Sequence[Callable[[Params], Tensor]],
    params: Params,
    *,
    keep: bool = True,
) -> Product:
    r"""The map $v \mapsto H v$ at one point, to be used again and again.

    The graph of the gradient is built once, so that a product costs one backward pass through it:
    a little over half of ``hessian_vector_product``, with the same numbers.

    Args:
        loss: Maps parameters to a scalar, or several that do: the loss is their sum, such as over
            chunks of the data (each already divided by the number of all samples). The network
            inside should be in eval mode, since batch statistics would couple the samples.
        params: Where to take the Hessian: floating-point tensors only.
        keep: Keep the graphs. Otherwise every product builds them anew, one at a time, which needs
            the memory of the largest only.

    Returns:
        A function from tensors of the parameters' names and shapes to the same. It raises
        ValueError if names or shapes differ; its results cannot be differentiated.

    Raises:
        ValueError: If there is no loss, or ``params`` holds other than floating-point tensors.

    Taught in: book/robustness/flat-minima
    """
    losses = [loss] if callable(loss) else list(loss)
    if not losses:
        raise ValueError("loss is an empty sequence: at least one callable is needed")
    point = {name: tensor.detach() for name, tensor in _floating(params).items()}

    def build() -> Iterator[Product]:
        for part in losses:
            pull = vjp(grad(part), point)[1]
            yield lambda vector, pull=pull: pull(vector)[0]  # type: ignore[misc]

    kept = list(build()) if keep else None

    def product(vector: Params) -> Params:
        _same_shapes(vector, point, "vector")
        with torch.no_grad():  # otherwise the products' own graphs would be built as well
            parts = (part(vector) for part in (build() if kept is None else kept))
            return reduce(lambda a, b: {name: a[name] + b[name] for name in a}, parts)

    return product


# --- Lanczos' iteration --------------------------------------------------------------------------


def lanczos(product: Product, start: Params, steps: int) -> Tridiagonal:
    r"""Lanczos' iteration: a small tridiagonal matrix that acts as $H$ does near a start vector.

    $$\beta_k q_{k+1} = H q_k - \alpha_k q_k - \beta_{k-1} q_{k-1}, \qquad
    \alpha_k = q_k^\top H q_k$$

    Every new vector is made orthogonal to all earlier ones, again if much cancelled; without that,
    rounding would bring back directions that were found already. Dot products are in float64.

    Args:
        product: $v \mapsto H v$ for a symmetric $H$, such as ``hessian_of`` gives.
        start: Any vector but zero, as tensors by name; its length does not matter.
        steps: How many products at most. The iteration ends early where nothing is left: the
            basis is then invariant under $H$.

    Returns:
        The tridiagonal matrix and its basis.

    Raises:
        ValueError: If ``steps`` is below 1, ``start`` is zero or not floating-point, or a product
            is not finite.

    Source:
        lanczos1950iteration; Golub and Van Loan, Matrix Computations, section 10.3.

    Taught in: book/robustness/flat-minima
    """
    _at_least("steps", steps, 1)
    return _lanczos(_on_vectors(product, start), _flatten(start), steps)


def _lanczos(
    apply: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    redraw: Callable[[], Tensor] | None = None,
    done: Callable[[Tridiagonal], bool] = lambda _: False,
) -> Tridiagonal:
    """The iteration on long vectors; ``redraw`` starts anew where it would end early."""
    length = _norm(start)
    if not 0 < length < math.inf:
        raise ValueError(f"start has length {length}: it must be positive and finite")
    basis = start.new_empty(min(steps, len(start)), len(start))
    diagonal: list[float] = []
    offdiagonal: list[float] = []
    scale, vector = 0.0, start / length
    while True:
        k = len(diagonal)
        basis[k], rest = vector, apply(vector)
        scale = max(scale, _norm(rest))
        diagonal.append(_dot(vector, rest))
        rest = rest - diagonal[k] * vector
        if k:
            rest -= offdiagonal[-1] * basis[k - 1]
        rest, remainder = _orthogonal(rest, basis[: k + 1])
        if remainder <= 10 * torch.finfo(start.dtype).eps * scale or k + 1 == len(start):
            remainder = 0.0
        found = _tridiagonal(diagonal, offdiagonal, remainder, basis[: k + 1])
        if k + 1 == len(basis) or (not remainder and redraw is None):
            return found
        if remainder and done(found):
            return found
        if not remainder and redraw is not None:
            rest, _ = _orthogonal(redraw(), basis[: k + 1])
        offdiagonal.append(remainder)
        vector = rest / _norm(rest)


def _tridiagonal(
    diagonal: list[float], offdiagonal: list[float], remainder: float, basis: Tensor
) -> Tridiagonal:
    first, second = (torch.tensor(part, dtype=torch.float64) for part in (diagonal, offdiagonal))
    return Tridiagonal(first, second, remainder, basis)


def _orthogonal(vector: Tensor, basis: Tensor) -> tuple[Tensor, float]:
    """A vector's part that is orthogonal to orthonormal rows, and its length."""
    length = _norm(vector)
    for _ in range(3):  # twice is enough; the third time is for vectors that vanish
        before = length
        vector = torch.addmv(vector, basis.mT, basis @ vector, alpha=-1)
        length = _norm(vector)
        if length > 0.7 * before:
            break
    return vector, length


def _ritz(found: Tridiagonal) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the tridiagonal matrix, ascending, and its eigenvectors as columns."""
    values, vectors = eigh_tridiagonal(found.diagonal.numpy(), found.offdiagonal.numpy())
    return torch.from_numpy(values), torch.from_numpy(vectors)


def top_eigenvalues(
    product: Product,
    like: Params,
    count: int = 1,
    *,
    which: End = "magnitude",
    steps: int = 100,
    tolerance: float = 1e-3,
    seed: int = 0,
) -> Eigenpairs:
    r"""Extreme eigenvalues, such as the sharpness $\lambda_{\max}$ and $\lambda_{\min}$.

    The eigenvalues $\theta$ of Lanczos' small matrix (Ritz values) approach the extreme eigenvalues
    of $H$ first. If $s$ is the small eigenvector, $x = Q^\top s$ has the residual

    $$\|H x - \theta x\| = \beta_m |s_m|,$$

    and no farther than this from $\theta$ there is an eigenvalue. (The error is usually about the
    square of that, divided by the gap to the next one.) The bound says that a value belongs to the
    spectrum, not that none lies beyond it. Of an eigenvalue that occurs more than once, a single
    copy is found unless the iteration exhausts what its start reaches, and starts anew.

    Args:
        product: $v \mapsto H v$ for a symmetric $H$, such as ``hessian_of`` gives.
        like: Tensors of the vectors' names, shapes and dtype, such as the parameters.
        count: How many.
        which: ``magnitude`` (largest absolute values first), ``largest`` (descending), ``smallest``
            (ascending), or ``ends``: the ``count`` largest, then the ``count`` smallest.
        steps: How many products at most.
        tolerance: Stop when every bound is below this share of the largest absolute Ritz value.
        seed: Of the Gaussian start vector.

    Returns:
        Eigenvalues, eigenvectors and error bounds; ``2 * count`` of them for ``ends``.

    Raises:
        ValueError: If ``which`` is unknown, a number is out of range, or a product not finite.

    Source:
        yao2020pyhessian for its use on networks; Parlett, The Symmetric Eigenvalue Problem.

    Taught in: book/robustness/flat-minima
    """
    if which not in get_args(End):
        raise ValueError(f"which is {which!r}, allowed: {', '.join(get_args(End))}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0, got {tolerance}")
    size, wanted = len(_flatten(like)), count * (2 if which == "ends" else 1)
    _at_least("count", count, 1)
    if wanted > min(size, steps):
        raise ValueError(f"{wanted} eigenvalues need as many parameters and steps: {size}, {steps}")
    stream = _stream(seed)

    def done(found: Tridiagonal) -> bool:
        if len(found.diagonal) < wanted:
            return False
        values, _, bounds = _extremes(found, count, which)
        return bool(bounds.max() <= tolerance * values.abs().max())

    def draw() -> Tensor:
        return _gaussian(like, stream)

    found = _lanczos(_on_vectors(product, like), draw(), steps, draw, done)
    values, small, bounds = _extremes(found, count, which)
    vectors = [_unflatten(found.basis.mT @ s.to(found.basis), like) for s in small.mT]
    return Eigenpairs(values, vectors, bounds, len(found.diagonal))


def _extremes(found: Tridiagonal, count: int, which: End) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values at the ends that were asked for, their small vectors (columns), their bounds."""
    values, small = _ritz(found)
    descending = values.argsort(descending=True)
    chosen = {
        "magnitude": values.abs().argsort(descending=True)[:count],
        "largest": descending[:count],
        "smallest": descending.flip(0)[:count],
        "ends": torch.cat([descending[:count], descending.flip(0)[:count]]),
    }[which]
    return values[chosen], small[:, chosen], found.remainder * small[-1, chosen].abs()


# --- Random probes -------------------------------------------------------------------------------


def trace(product: Product, like: Params, probes: int = 60, *, seed: int = 0) -> Estimate:
    r"""Hutchinson's estimate of the trace, with its standard error.

    $$\operatorname{tr} H \approx \frac1m \sum_{k=1}^m v_k^\top H v_k, \qquad
    v_k \in \{-1, 1\}^N$$

    The variance of a term is $2 (\|H\|_F^2 - \sum_i H_{ii}^2)$: nothing for a diagonal matrix. The
    number of probes is fixed: stopping when the mean seems to settle stops too early by chance.

    Args:
        product: $v \mapsto H v$ for a symmetric $H$, such as ``hessian_of`` gives.
        like: Tensors of the vectors' names, shapes and dtype, such as the parameters.
        probes: $m$, at least 2.
        seed: Of the probes.

    Returns:
        The trace (not divided by the number of parameters) and its standard error.

    Raises:
        ValueError: If ``probes`` is below 2, or a product is not finite.

    Source:
        hutchinson1990stochastic; yao2020pyhessian for its use on networks.

    Taught in: book/robustness/flat-minima
    """
    _at_least("probes", probes, 2)
    apply, stream = _on_vectors(product, like), _stream(seed)
    draws = (_signs(like, stream) for _ in range(probes))
    terms = torch.tensor([_dot(probe, apply(probe)) for probe in draws], dtype=torch.float64)
    return Estimate(float(terms.mean()), float(terms.std()) / math.sqrt(probes))


def spectral_density(
    product: Product, like: Params, steps: int = 80, probes: int = 2, *, seed: int = 0
) -> Density:
    r"""The distribution of all eigenvalues, by stochastic Lanczos quadrature.

    From a random start, $m$ steps of Lanczos give Ritz values $\theta_i$, and the squares
    $\tau_i = s_{1i}^2$ of their vectors' first entries say how much of the spectrum each stands
    for:

    $$\frac1N \sum_j f(\lambda_j) \approx \frac1p \sum_{k=1}^p \sum_{i=1}^m \tau_i^{(k)}
    f(\theta_i^{(k)})$$

    Args:
        product: $v \mapsto H v$ for a symmetric $H$, such as ``hessian_of`` gives.
        like: Tensors of the vectors' names, shapes and dtype, such as the parameters.
        steps: $m$, products per probe at most.
        probes: $p$, random signs as starts; their nodes are put together.
        seed: Of the probes.

    Returns:
        At most ``steps * probes`` nodes. Their mean is an estimate of the trace divided by the
        number of parameters.

    Raises:
        ValueError: If ``steps`` or ``probes`` is below 1, or a product is not finite.

    Source:
        ubaru2017fast, section 3; yao2020pyhessian for its use on networks.

    Taught in: book/robustness/flat-minima
    """
    _at_least("steps", steps, 1)
    _at_least("probes", probes, 1)
    apply, stream = _on_vectors(product, like), _stream(seed)
    runs = [_ritz(_lanczos(apply, _signs(like, stream), steps)) for _ in range(probes)]
    nodes, order = torch.cat([values for values, _ in runs]).sort()
    weights = torch.cat([small[0].square() for _, small in runs]) / probes
    return Density(nodes, weights[order])


def density_on(grid: Tensor, density: Density, width: float) -> Tensor:
    r"""A smooth curve for a plot: every node becomes a Gaussian.

    $$\phi(t) = \sum_i \tau_i\, \mathcal N(t; \theta_i, \sigma^2)$$

    Args:
        grid: Where to evaluate, in the eigenvalues' unit, shape (points,).
        density: Nodes and weights.
        width: $\sigma$, in the eigenvalues' unit.

    Returns:
        $\phi$, whose integral over the line is 1, float64, shape (points,).

    Raises:
        ValueError: If ``width`` is not positive or ``grid`` has other than one axis.

    Taught in: book/robustness/flat-minima
    """
    if not 0 < width < math.inf:
        raise ValueError(f"width must be positive and finite, got {width}")
    if grid.dim() != 1:
        raise ValueError(f"grid must have shape (points,), got {tuple(grid.shape)}")
    distance = (grid.double().unsqueeze(1) - density.nodes.to(grid.device)) / width
    heights = torch.exp(-distance.square() / 2) / (width * math.sqrt(2 * math.pi))
    return heights @ density.weights.to(grid.device)


# --- Gradients of single samples -----------------------------------------------------------------


def per_sample_gradients(
    model: nn.Module,
    params: Params,
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> Params:
    """The gradient of every sample's own loss, all held at once.

    Args:
        model: Architecture, in eval mode.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).
        y: Labels, or whatever ``loss`` compares with, of shape (N, ...).
        loss: Maps logits (1, classes) and labels (1, ...) of one sample to a scalar.

    Returns:
        A tensor of shape (N, *shape) per parameter; buffers have none.

    Raises:
        ValueError: If ``model`` is not in eval mode or couples the samples, a parameter is missing,
            or ``x`` and ``y`` differ in length.

    Taught in: book/robustness/flat-minima
    """
    params = _prepared(model, params, x, y)
    return _gradients_of(model, params, parameter_names(model), x, y, loss)


def _gradients_of(
    model: nn.Module,
    params: Params,
    names: Iterable[str],
    x: Tensor,
    y: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Params:
    """Per-sample gradients with respect to the parameters named, of shape (N, *shape)."""
    chosen = {name: params[name] for name in names}

    def sample_loss(own: Params, inputs: Tensor, label: Tensor) -> Tensor:
        return loss(predict(model, {**params, **own}, inputs.unsqueeze(0)), label.unsqueeze(0))

    gradients: Params = vmap(grad(sample_loss), in_dims=(None, 0, 0))(chosen, x, y)
    return gradients


def fisher_diagonal(
    model: nn.Module, params: Params, x: Tensor, y: Tensor | None = None, *, chunk: int = 256
) -> Params:
    r"""The diagonal of the Fisher information: mean squares of single samples' gradients.

    $$F_{jj} = \frac1N \sum_{i=1}^N \left(
    \frac{\partial \log p(y_i \mid x_i)}{\partial \theta_j} \right)^2$$

    With labels this is the empirical Fisher. Without, the square is averaged over the labels that
    the model itself predicts, $\sum_k p(k \mid x_i) (\cdot)^2$, at the cost of a backward pass per
    class: the Fisher information proper, for softmax the diagonal of the Gauss-Newton matrix. The
    square of a batch's mean gradient is neither.

    One backward pass serves all samples. A linear layer with inputs $a$ and gradients $\delta$ at
    its outputs needs no single gradient, since they are $\delta_i a_i^\top$ and
    $\sum_i (\delta_i a_i^\top)^2 = (\delta^2)^\top a^2$; a convolution multiplies its unfolded
    inputs, block by block. Other layers are differentiated sample by sample, each on its own.

    Args:
        model: Architecture, in eval mode, that treats every sample alone.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,), or None for the expectation.
        chunk: Samples per backward pass; the result does not depend on it, but for rounding.

    Returns:
        $F_{jj}$ for every parameter, of its shape and dtype (summed up in float64); buffers have
        none.

    Raises:
        ValueError: If ``model`` is not in eval mode or couples the samples, a parameter is missing,
            labels do not fit, or there are no samples.

    Source:
        kunstner2019limitations, section 2 (the two Fishers); goodfellow2015efficient (linear
        layers).

    Taught in: book/robustness/flat-minima
    """
    _at_least("chunk", chunk, 1)
    params = _prepared(model, params, x, y)
    names = parameter_names(model)
    totals = {name: torch.zeros_like(params[name], dtype=torch.float64) for name in names}
    for start in range(0, len(x), chunk):
        part = slice(start, start + chunk)
        for name, squares in _squares_of_chunk(
            model, params, x[part], None if y is None else y[part]
        ):
            totals[name] += squares
    return {name: (totals[name] / len(x)).to(params[name].dtype) for name in names}


def _squares_of_chunk(
    model: nn.Module, params: Params, x: Tensor, y: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """Name by name, squared gradients summed over samples (and over labels, by their weights)."""
    layers = _layers(model)
    with torch.enable_grad():
        logits, records = _listen(model, params, x, layers)
        log_likelihood = F.log_softmax(logits, 1)
    outputs = [record.output for record in records.values()]
    alone = {f"{path}{name}" for path in records for name in _own(layers[path])}
    others = [name for name in parameter_names(model) if name not in alone]
    for labels, weights in _weighted_labels(log_likelihood.detach(), y):
        with torch.enable_grad():
            terms = log_likelihood.gather(1, labels.unsqueeze(1)).squeeze(1)
        deltas = (
            torch.autograd.grad(
                terms, outputs, weights.sqrt(), retain_graph=True, allow_unused=True
            )
            if outputs
            else ()
        )
        for (path, record), delta in zip(records.items(), deltas, strict=True):
            if delta is not None:
                for name, squares in _layer_squares(layers[path], path, params, record, delta):
                    yield f"{path}{name}", squares
        if others:
            gradients = _gradients_of(model, params, others, x, labels, F.cross_entropy)
            for name, single in gradients.items():
                yield name, torch.einsum("n,n...->...", weights, single.square())


def _weighted_labels(log_likelihood: Tensor, y: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Labels (N,) and their weights (N,): those given, or every class by its probability."""
    if y is not None:
        if bool((y < 0).any()) or bool((y >= log_likelihood.shape[1]).any()):
            allowed = f"0 to {log_likelihood.shape[1] - 1}"
            raise ValueError(f"labels are {int(y.min())} to {int(y.max())}, allowed: {allowed}")
        yield y.long(), torch.ones_like(log_likelihood[:, 0])
        return
    for k, log_weights in enumerate(log_likelihood.unbind(1)):
        yield torch.full_like(log_weights, k, dtype=torch.long), log_weights.exp()


# --- Layers --------------------------------------------------------------------------------------


class _Record(NamedTuple):
    """What a layer saw and said: inputs and output, of shape (N, ...)."""

    inputs: Tensor
    output: Tensor


def _own(module: nn.Module) -> list[str]:
    """Names of the parameters that a module itself holds."""
    return [name for name, _ in module.named_parameters(recurse=False)]


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """Modules with parameters of their own that no other module shares, by path (with its dot)."""
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {
        f"{path}." if path else "": module
        for path, module in model.named_modules()
        if _own(module) and all(uses[id(p)] == 1 for p in module.parameters(recurse=False))
    }


def _listen(
    model: nn.Module, params: Params, x: Tensor, layers: dict[str, nn.Module]
) -> tuple[Tensor, dict[str, _Record]]:
    """Logits, and the records of those layers that ran once, on a tensor, sample by sample."""
    calls: dict[str, list[tuple[_Record, int]]] = {path: [] for path in layers}
    odd: set[str] = set()

    def hook(path: str, _: nn.Module, given: tuple, named: dict, output: object) -> object:
        tensors = isinstance(output, Tensor) and len(given) == 1 and isinstance(given[0], Tensor)
        if named or not tensors or not len(given[0]) == len(output) == len(x):  # type: ignore[arg-type]
            odd.add(path)
            return None
        assert isinstance(output, Tensor)
        output = output if output.requires_grad else output.requires_grad_()
        calls[path].append((_Record(given[0].detach(), output), given[0]._version))
        return output.clone()  # so that what follows may work in place

    handles = [
        module.register_forward_hook(partial(hook, path), with_kwargs=True)
        for path, module in layers.items()
    ]
    try:
        logits = predict(model, params, x)
    finally:
        for handle in handles:
            handle.remove()
    return logits, {
        path: heard[0][0]
        for path, heard in calls.items()
        if len(heard) == 1 and path not in odd and heard[0][0].inputs._version == heard[0][1]
    }


def _layer_squares(
    module: nn.Module, path: str, params: Params, record: _Record, delta: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """Squared gradients of one layer's own parameters, summed over samples."""
    inputs = record.inputs
    if type(module) is nn.Linear:
        positions = delta.reshape(len(delta), -1, delta.shape[-1]).mT  # (N, out, positions)
        inputs = inputs.reshape(len(inputs), -1, inputs.shape[-1]).mT  # (N, in, positions)
        yield "weight", _squares_of_products(positions, inputs)
    elif type(module) is nn.Conv2d and module.padding_mode == "zeros":
        positions = delta.flatten(2)
        squares = _squares_of_products(positions, inputs, _unfold(module), module.groups)
        yield "weight", squares.view(module.weight.shape)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        positions = delta.flatten(2) if delta.dim() > 2 else delta.unsqueeze(2)
        mean, variance = params[f"{path}running_mean"], params[f"{path}running_var"]
        whitened = F.batch_norm(inputs, mean, variance, eps=module.eps)
        yield "weight", (positions * whitened.reshape(positions.shape)).sum(2).square().sum(0)
    else:
        yield from _squares_by_sample(module, path, params, record, delta)
        return
    if module.bias is not None:
        yield "bias", positions.sum(2).square().sum(0)


def _unfold(convolution: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    """Images (N, C, H, W) to what the kernel sees, (N, C * kernel height * width, positions)."""
    kernel, stride, dilation = (
        getattr(convolution, name) for name in ("kernel_size", "stride", "dilation")
    )
    padding = convolution.padding
    if padding == "same":  # an odd pixel goes to the right and to the bottom
        spare = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        sides = [side for s in reversed(spare) for side in (s // 2, s - s // 2)]
        return lambda x: F.unfold(F.pad(x, sides), kernel, dilation, 0, stride)
    border = 0 if isinstance(padding, str) else padding
    return lambda x: F.unfold(x, kernel, dilation, border, stride)


def _squares_of_products(
    deltas: Tensor,
    inputs: Tensor,
    columns: Callable[[Tensor], Tensor] = lambda x: x,
    groups: int = 1,
) -> Tensor:
    r"""Squares of every sample's gradient $\delta_i a_i^\top$, summed to (out, in / groups).

    Args:
        deltas: Shape (N, out, positions).
        inputs: Of N samples.
        columns: Makes of inputs $a$, of shape (N, in, positions).
        groups: Every group of outputs sees its own group of inputs.
    """
    if deltas.shape[2] == 1 and groups == 1:
        return deltas.flatten(1).square().mT @ columns(inputs).flatten(1).square()
    one = columns(inputs[:1]).shape[1] // groups
    total = deltas.new_zeros(deltas.shape[1], one, dtype=torch.float64)
    block = max(1, BLOCK // (deltas.shape[1] * one + groups * one * deltas.shape[2]))
    for delta, part in zip(deltas.split(block), inputs.split(block), strict=True):
        left = delta.reshape(len(delta) * groups, -1, delta.shape[2])
        right = columns(part).reshape(len(delta) * groups, one, -1)
        total += torch.bmm(left, right.mT).square_().view(len(delta), *total.shape).sum(0)
    return total


def _squares_by_sample(
    module: nn.Module, path: str, params: Params, record: _Record, delta: Tensor
) -> Iterator[tuple[str, Tensor]]:
    """The same for any layer: it alone is differentiated, sample by sample."""
    state = {name.removeprefix(path): t for name, t in params.items() if name.startswith(path)}
    own = {name: state[name] for name in _own(module)}

    def pulled(inputs: Tensor, back: Tensor) -> Params:
        def run(chosen: Params) -> Tensor:
            return predict(module, {**state, **chosen}, inputs.unsqueeze(0))

        gradients: Params = vjp(run, own)[1](back.unsqueeze(0))[0]
        return gradients

    for name, single in vmap(pulled)(record.inputs, delta).items():
        yield name, single.square().sum(0)


# --- What is asked of arguments ------------------------------------------------------------------


def _prepared(model: nn.Module, params: Params, x: Tensor, y: Tensor | None) -> Params:
    """Parameters and buffers without a graph, once each; refuses what couples the samples."""
    training = [path or "the model" for path, module in model.named_modules() if module.training]
    if training:
        raise ValueError(
            f"in train mode samples may be coupled or random: call model.eval() (in train mode: "
            f"{', '.join(training[:3])})"
        )
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(f"{path} has no running statistics: BatchNorm couples the samples")
    names = parameter_names(model)
    missing = sorted(set(names) - params.keys())
    if missing:
        raise ValueError(f"params lack {', '.join(missing[:3])}")
    if not len(x) or (y is not None and len(y) != len(x)):
        raise ValueError(
            f"one label per input, and at least one: got {len(x)} inputs, "
            f"{'no' if y is None else len(y)} labels"
        )
    again = {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(names)
    whole = {**dict(model.named_buffers()), **params}
    return {name: tensor.detach() for name, tensor in whole.items() if name not in again}


def _at_least(name: str, value: int, smallest: int) -> None:
    if value < smallest:
        raise ValueError(f"{name} must be at least {smallest}, got {value}")


def _floating(params: Params) -> Params:
    """The same tensors, if all are of floating point and there are any."""
    if not params:
        raise ValueError("there are no tensors: at least one parameter is needed")
    for name, tensor in params.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} has dtype {tensor.dtype}: only floating-point tensors count")
    return params


def _same_shapes(given: Params, wanted: Params, what: str) -> None:
    shapes = [{name: tuple(t.shape) for name, t in p.items()} for p in (given, wanted)]
    if shapes[0] != shapes[1]:
        wrong = sorted(set(shapes[0].items()) ^ set(shapes[1].items()))
        raise ValueError(f"{what} and parameters differ in names or shapes: {wrong[:2]}")


# --- Long vectors --------------------------------------------------------------------------------


def _flatten(params: Params) -> Tensor:
    """All tensors as one long vector."""
    return torch.cat([tensor.detach().flatten() for tensor in _floating(params).values()])


def _unflatten(vector: Tensor, like: Params) -> Params:
    """The inverse of ``_flatten``."""
    parts = vector.split([tensor.numel() for tensor in like.values()])
    pairs = zip(like.items(), parts, strict=True)
    return {name: part.view(tensor.shape).to(tensor.dtype) for (name, tensor), part in pairs}


def _on_vectors(product: Product, like: Params) -> Callable[[Tensor], Tensor]:
    """A product as a map of long vectors, which refuses numbers that are not finite."""

    def apply(vector: Tensor) -> Tensor:
        image = product(_unflatten(vector, like))
        _same_shapes(image, like, "the product")
        result = torch.cat([image[name].flatten() for name in like])
        if not bool(result.isfinite().all()):
            raise ValueError("the product has entries that are not finite")
        return result

    return apply


def _dot(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double())


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _gaussian(like: Params, stream: torch.Generator) -> Tensor:
    """A long vector of normal numbers, drawn on the CPU so that devices agree."""
    template = _flatten(like)
    return torch.randn(len(template), generator=stream, dtype=template.dtype).to(template.device)


def _signs(like: Params, stream: torch.Generator) -> Tensor:
    """A long vector of random signs (Rademacher), drawn on the CPU so that devices agree."""
    template = _flatten(like)
    return (torch.randint(0, 2, (len(template),), generator=stream) * 2 - 1).to(template)

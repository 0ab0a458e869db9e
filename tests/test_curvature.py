"""Second derivatives and Fisher information against dense matrices, loops and closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons import curvature
from lmc_lessons.curvature import (
    Density,
    Product,
    density_on,
    fisher_diagonal,
    gradient,
    hessian_of,
    hessian_vector_product,
    inner_product,
    lanczos,
    per_sample_gradients,
    spectral_density,
    top_eigenvalues,
    trace,
)
from lmc_lessons.models import ModelConfig, Params, build, initial, parameter_names, predict, state

# PyTorch's remark about kernels of even length, which one network here has on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even:UserWarning")

Loss = Callable[[Params], Tensor]
RELU = ModelConfig("mlp", (3,), 3, width=4, depth=2)
STREAM = torch.Generator().manual_seed(0)
X = torch.rand(11, 3, generator=STREAM, dtype=torch.float64)
Y = torch.randint(0, 3, (11,), generator=STREAM)


def relu_network() -> tuple[Loss, Params]:
    model = build(RELU).eval()
    params = {name: tensor.double() for name, tensor in initial(RELU, 1).items()}
    return lambda p: F.cross_entropy(predict(model, p, X), Y), params


def smooth_network() -> tuple[Loss, Params]:
    stream = torch.Generator().manual_seed(1)

    def loss(params: Params) -> Tensor:
        hidden = torch.tanh(X @ params["first"] + params["bias"])
        return F.cross_entropy(hidden @ params["second"], Y)

    shapes = {"first": (3, 4), "bias": (4,), "second": (4, 3)}
    draw = {n: torch.randn(s, generator=stream, dtype=torch.float64) for n, s in shapes.items()}
    return loss, draw


NETWORKS = pytest.mark.parametrize("network", [relu_network, smooth_network])


def flat(params: Params) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in params.values()])


def like(vector: Tensor, params: Params) -> Params:
    sizes = [tensor.numel() for tensor in params.values()]
    parts = zip(params.items(), vector.split(sizes), strict=True)
    return {name: part.view_as(tensor) for (name, tensor), part in parts}


def random_like(params: Params, seed: int) -> Params:
    stream = torch.Generator().manual_seed(seed)
    return {
        n: torch.randn(t.shape, generator=stream, dtype=torch.float64) for n, t in params.items()
    }


@NETWORKS
def test_products_with_the_axes_are_the_dense_hessian(
    network: Callable[[], tuple[Loss, Params]],
) -> None:
    loss, params = network()
    point = flat(params)
    dense = torch.autograd.functional.hessian(lambda v: loss(like(v, params)), point)
    columns = [
        flat(hessian_vector_product(loss, params, like(axis, params)))
        for axis in torch.eye(len(point), dtype=torch.float64)
    ]
    assert dense.abs().max() > 0.01
    torch.testing.assert_close(torch.stack(columns, 1), dense, rtol=1e-9, atol=1e-12)


@NETWORKS
def test_product_is_the_difference_of_two_gradients(
    network: Callable[[], tuple[Loss, Params]],
) -> None:
    loss, params = network()
    vector, step = random_like(params, 5), 1e-5

    def gradient_at(shift: float) -> Tensor:
        moved = {n: (t + shift * vector[n]).requires_grad_() for n, t in params.items()}
        slopes = torch.autograd.grad(loss(moved), list(moved.values()))
        return torch.cat([slope.flatten() for slope in slopes])

    expected = (gradient_at(step) - gradient_at(-step)) / (2 * step)
    found = flat(hessian_vector_product(loss, params, vector))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@NETWORKS
def test_gradient_is_the_difference_of_two_losses(
    network: Callable[[], tuple[Loss, Params]],
) -> None:
    loss, params = network()
    direction, step = random_like(params, 2), 1e-6
    ends = [loss({n: t + s * direction[n] for n, t in params.items()}) for s in (step, -step)]
    slope = float(ends[0] - ends[1]) / (2 * step)
    assert float(inner_product(gradient(loss, params), direction)) == pytest.approx(slope, rel=1e-6)


def test_quadratic_has_its_matrix_as_hessian() -> None:
    matrix = torch.randn(6, 6, generator=STREAM, dtype=torch.float64)
    matrix = matrix + matrix.T
    params = {"a": torch.ones(2, dtype=torch.float64), "b": torch.ones(4, dtype=torch.float64)}
    vector = random_like(params, 0)
    found = hessian_vector_product(lambda p: flat(p) @ matrix @ flat(p) / 2, params, vector)
    torch.testing.assert_close(flat(found), matrix @ flat(vector), rtol=1e-12, atol=1e-12)


def test_products_are_symmetric_and_linear() -> None:
    loss, params = smooth_network()
    u, v = random_like(params, 1), random_like(params, 2)
    hu, hv = (hessian_vector_product(loss, params, w) for w in (u, v))
    assert float(inner_product(u, hv)) == pytest.approx(float(inner_product(v, hu)), rel=1e-10)
    mixed = hessian_vector_product(loss, params, {n: 2 * u[n] - 3 * v[n] for n in u})
    torch.testing.assert_close(flat(mixed), 2 * flat(hu) - 3 * flat(hv), rtol=1e-9, atol=1e-12)


def test_nothing_is_left_on_the_parameters() -> None:
    loss, params = relu_network()
    before = {name: tensor.clone() for name, tensor in params.items()}
    hessian_vector_product(loss, params, random_like(params, 0))
    for name, tensor in params.items():
        assert torch.equal(tensor, before[name])
        assert not tensor.requires_grad
        assert tensor.grad is None


def test_inner_product_is_that_of_the_long_vectors() -> None:
    _, params = relu_network()
    other = random_like(params, 3)
    by_hand = sum(p * q for p, q in zip(flat(params).tolist(), flat(other).tolist(), strict=True))
    assert float(inner_product(params, other)) == pytest.approx(by_hand, rel=1e-12)
    more = other | {"buffer": torch.ones(1)}
    assert float(inner_product(params, more)) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("wrong", ["shape", "missing", "more"])
def test_a_vector_of_other_names_or_shapes_is_refused(wrong: str) -> None:
    loss, params = relu_network()
    vector = random_like(params, 0)
    if wrong == "shape":
        vector["hidden.0.bias"] = torch.ones(9, dtype=torch.float64)
    elif wrong == "missing":
        del vector["hidden.0.bias"]
    else:
        vector["other"] = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"differ in names or shapes: .*(hidden\.0\.bias|other)"):
        hessian_vector_product(loss, params, vector)


# --- Products that are used again and again ------------------------------------------------------


def dense_hessian(loss: Loss, params: Params) -> Tensor:
    return torch.autograd.functional.hessian(lambda v: loss(like(v, params)), flat(params))


@NETWORKS
@pytest.mark.parametrize("keep", [True, False])
def test_reused_product_is_the_product(
    network: Callable[[], tuple[Loss, Params]], keep: bool
) -> None:
    loss, params = network()
    product = hessian_of(loss, params, keep=keep)
    for seed in range(3):
        vector = random_like(params, seed)
        expected, found = hessian_vector_product(loss, params, vector), product(vector)
        assert list(found) == list(params)
        torch.testing.assert_close(flat(found), flat(expected), rtol=1e-12, atol=1e-14)
        assert not any(tensor.requires_grad for tensor in found.values())


@pytest.mark.parametrize("keep", [True, False])
def test_losses_over_chunks_add_up(keep: bool) -> None:
    loss, params = relu_network()
    model = build(RELU).eval()

    def part(x: Tensor, y: Tensor) -> Loss:
        return lambda p: F.cross_entropy(predict(model, p, x), y, reduction="sum") / len(X)

    parts = [part(x, y) for x, y in zip(X.split(4), Y.split(4), strict=True)]
    vector = random_like(params, 0)
    found = hessian_of(parts, params, keep=keep)(vector)
    expected = hessian_of(loss, params)(vector)
    torch.testing.assert_close(flat(found), flat(expected), rtol=1e-10, atol=1e-13)


def test_product_stays_at_the_point_where_it_was_taken() -> None:
    loss, params = smooth_network()
    params = {name: tensor.requires_grad_() for name, tensor in params.items()}
    vector = random_like(params, 0)
    product = hessian_of(loss, params)
    before = product(vector)
    later = {name: tensor + 1 for name, tensor in params.items()}
    assert (flat(hessian_of(loss, later)(vector)) - flat(before)).abs().max() > 1e-3
    assert torch.equal(flat(product(vector)), flat(before))
    assert all(tensor.grad is None for tensor in params.values())


def test_hessian_refuses_what_it_cannot_take() -> None:
    loss, params = smooth_network()
    with pytest.raises(ValueError, match="empty sequence"):
        hessian_of([], params)
    with pytest.raises(ValueError, match=r"batches has dtype torch\.int64"):
        hessian_of(loss, params | {"batches": torch.tensor(3)})
    with pytest.raises(ValueError, match=r"vector and parameters differ .*bias"):
        hessian_of(loss, params)({n: t for n, t in params.items() if n != "bias"})


# --- Symmetric maps whose spectrum is known ------------------------------------------------------


def from_matrix(matrix: Tensor) -> Product:
    return lambda v: like(matrix @ flat(v), v)


def with_spectrum(values: Tensor, seed: int = 0) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=stream, dtype=torch.float64)
    basis = torch.linalg.qr(square)[0]
    return basis @ torch.diag(values.double()) @ basis.T


def vectors(size: int, dtype: torch.dtype = torch.float64) -> Params:
    """Tensors of two names that hold so many numbers together."""
    return {"a": torch.zeros(1, 2, dtype=dtype), "b": torch.zeros(size - 2, dtype=dtype)}


def tridiagonal(diagonal: Tensor, offdiagonal: Tensor) -> Tensor:
    return torch.diag(diagonal) + torch.diag(offdiagonal, 1) + torch.diag(offdiagonal, -1)


def test_lanczos_is_a_projection_and_says_what_remains() -> None:
    matrix = with_spectrum(torch.linspace(-2, 5, 40) ** 3)
    start = random_like(vectors(40), 0)
    found = lanczos(from_matrix(matrix), start, 12)
    assert found.basis.shape == (12, 40)
    identity = torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(found.basis @ found.basis.T, identity, rtol=0, atol=1e-13)
    small = tridiagonal(found.diagonal, found.offdiagonal)
    torch.testing.assert_close(found.basis @ matrix @ found.basis.T, small, rtol=0, atol=1e-11)
    rest = matrix @ found.basis.T - found.basis.T @ small
    assert float(rest[:, :-1].abs().max()) < 1e-11
    assert float(rest[:, -1].norm()) == pytest.approx(found.remainder, rel=1e-10)
    assert torch.equal(found.basis[0], flat(start) / flat(start).norm())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_basis_stays_orthogonal_where_the_plain_recurrence_loses_it(
    dtype: torch.dtype, tolerance: float
) -> None:
    values = torch.cat([torch.tensor([1e4, 1e3]), torch.linspace(0, 1, 198)])
    matrix = with_spectrum(values).to(dtype)
    start = {name: torch.ones_like(tensor) for name, tensor in vectors(200, dtype).items()}
    found = lanczos(from_matrix(matrix), start, 60)
    assert found.basis.dtype == dtype
    basis = found.basis.double()
    gram = basis @ basis.T - torch.eye(len(basis), dtype=torch.float64)
    assert float(gram.abs().max()) < tolerance

    rows, before = [flat(start) / flat(start).norm()], torch.zeros(200, dtype=dtype)
    for _ in range(59):  # the same without re-orthogonalisation
        rest = matrix @ rows[-1] - before
        rest = rest - (rest @ rows[-1]) * rows[-1]
        before = rest.norm() * rows[-1]
        rows.append(rest / rest.norm())
    plain = torch.stack(rows).double()
    assert float((plain @ plain.T).fill_diagonal_(0).abs().max()) > 0.1


def test_a_vector_that_almost_vanishes_is_made_orthogonal_again() -> None:
    stream = torch.Generator().manual_seed(0)
    square = torch.randn(50, 50, generator=stream, dtype=torch.float64)
    basis = torch.linalg.qr(square)[0].mT.float()
    inside = basis[:20].sum(0) + 1e-4 * basis[20]
    rest, length = curvature._orthogonal(inside, basis[:20])  # one pass leaves about 1e-3 of it
    assert float((basis[:20] @ rest).abs().max()) < 1e-6 * length
    assert length == pytest.approx(1e-4, rel=0.02)


@NETWORKS
def test_extreme_eigenvalues_are_those_of_the_dense_hessian(
    network: Callable[[], tuple[Loss, Params]],
) -> None:
    loss, params = network()
    dense = dense_hessian(loss, params)
    exact = torch.linalg.eigvalsh(dense)
    by_size = exact[exact.abs().argsort(descending=True)]
    wanted: dict[curvature.End, Tensor] = {
        "magnitude": by_size[:3],
        "largest": exact.flip(0)[:3],
        "smallest": exact[:3],
        "ends": torch.cat([exact.flip(0)[:3], exact[:3]]),
    }
    for which, expected in wanted.items():
        found = top_eigenvalues(hessian_of(loss, params), params, 3, which=which, tolerance=1e-10)
        torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12)
        for value, vector in zip(found.values, found.vectors, strict=True):
            assert float(flat(vector).norm()) == pytest.approx(1, rel=1e-12)
            assert float((dense @ flat(vector) - value * flat(vector)).norm()) < 1e-9


def test_error_bounds_hold_and_are_the_residuals() -> None:
    matrix = with_spectrum(torch.linspace(0, 1, 300) ** 4)
    exact = torch.linalg.eigvalsh(matrix)
    for steps in (3, 6, 12, 25):
        found = top_eigenvalues(from_matrix(matrix), vectors(300), 2, steps=steps, tolerance=0)
        assert found.products == steps
        for value, vector, bound in zip(found.values, found.vectors, found.bounds, strict=True):
            residual = (matrix @ flat(vector) - value * flat(vector)).norm()
            assert float(residual) == pytest.approx(float(bound), rel=1e-6, abs=1e-12)
            assert float((exact - value).abs().min()) <= float(bound) + 1e-12


def test_iteration_ends_once_the_tolerance_is_reached() -> None:
    matrix = with_spectrum(torch.cat([torch.linspace(0, 1, 199), torch.tensor([5.0])]))
    runs = [
        top_eigenvalues(from_matrix(matrix), vectors(200), tolerance=tolerance)
        for tolerance in (1e-1, 1e-3, 1e-6)
    ]
    assert runs[0].products < runs[1].products < runs[2].products < 20
    for run, tolerance in zip(runs, (1e-1, 1e-3, 1e-6), strict=True):
        assert float(run.bounds[0]) <= tolerance * 5.01
    assert float(runs[1].values[0]) == pytest.approx(5, abs=1e-5)  # about the bound's square


@pytest.mark.parametrize(
    ("values", "top"),
    [
        ([7.0] + [0.0] * 9, [7.0, 0.0, 0.0]),  # rank one
        ([-7.0] + [0.0] * 9, [-7.0, 0.0, 0.0]),
        ([1.0] * 10, [1.0, 1.0, 1.0]),  # identity
        ([0.0] * 10, [0.0, 0.0, 0.0]),
        ([5.0, 5.0] + [1.0] * 8, [5.0, 5.0, 1.0]),  # a repeated eigenvalue
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_degenerate_spectra(values: list[float], top: list[float], dtype: torch.dtype) -> None:
    matrix = with_spectrum(torch.tensor(values)).to(dtype)
    found = top_eigenvalues(from_matrix(matrix), vectors(10, dtype), 3)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    expected = torch.tensor(top, dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=tolerance, atol=tolerance)
    basis = torch.stack([flat(vector) for vector in found.vectors]).double()
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(basis @ basis.T, identity, rtol=0, atol=10 * tolerance)
    density = spectral_density(from_matrix(matrix), vectors(10, dtype), probes=3)
    assert float(density.weights.sum()) == pytest.approx(1, abs=1e-6)
    for node, weight in zip(density.nodes.tolist(), density.weights.tolist(), strict=True):
        assert weight < 1e-9 or min(abs(node - value) for value in values) < 10 * tolerance


def test_lanczos_ends_where_nothing_is_left() -> None:
    identity = lanczos(lambda v: v, random_like(vectors(10), 0), 5)
    assert len(identity.diagonal) == 1
    assert identity.remainder == 0
    rank_one = lanczos(
        from_matrix(with_spectrum(torch.tensor([3.0] + [0.0] * 9))), random_like(vectors(10), 0), 5
    )
    assert len(rank_one.diagonal) == 2
    whole = lanczos(from_matrix(with_spectrum(torch.arange(10.0))), random_like(vectors(10), 0), 50)
    assert len(whole.diagonal) == 10
    assert whole.remainder == 0


def test_network_without_curvature() -> None:
    params = vectors(6)
    product = hessian_of(lambda p: flat(p).sum(), params)
    found = top_eigenvalues(product, params, which="ends")
    assert found.values.tolist() == [0, 0]
    assert trace(product, params) == (0, 0)


# --- Traces and densities ------------------------------------------------------------------------


@NETWORKS
def test_trace_lies_within_three_standard_errors(
    network: Callable[[], tuple[Loss, Params]],
) -> None:
    loss, params = network()
    dense = dense_hessian(loss, params)
    found = trace(hessian_of(loss, params), params, 400)
    assert abs(found.mean - float(dense.trace())) < 3 * found.standard_error
    variance = 2 * (dense.square().sum() - dense.diagonal().square().sum())
    assert found.standard_error == pytest.approx(float(variance / 400) ** 0.5, rel=0.2)


def test_standard_error_covers_the_trace_as_often_as_it_should() -> None:
    matrix = with_spectrum(torch.linspace(-1, 3, 30))
    product, params, exact = from_matrix(matrix), vectors(30), float(matrix.trace())
    scores = []
    for seed in range(200):
        found = trace(product, params, 30, seed=seed)
        scores.append((found.mean - exact) / found.standard_error)
    inside = sum(abs(score) < 2.045 for score in scores) / 200  # Student's t, 29 degrees: 95 %
    assert 0.90 <= inside <= 0.99  # three standard errors of a share of 200
    assert abs(sum(scores) / 200) < 3 / 200**0.5


def test_trace_of_a_diagonal_matrix_is_exact() -> None:
    product = from_matrix(torch.diag(torch.arange(12, dtype=torch.float64)))
    found = trace(product, vectors(12), 2)
    assert found.mean == pytest.approx(66, abs=1e-12)
    assert found.standard_error == pytest.approx(0, abs=1e-12)


@NETWORKS
def test_density_has_the_moments_and_the_ends_of_the_spectrum(
    network: Callable[[], tuple[Loss, Params]],
) -> None:
    loss, params = network()
    exact = torch.linalg.eigvalsh(dense_hessian(loss, params))
    size, product = len(exact), hessian_of(loss, params)
    found = spectral_density(product, params, size, 20)
    assert float(found.weights.sum()) == pytest.approx(1, abs=1e-12)
    assert bool((found.nodes.diff() >= 0).all())
    for power in (1, 2, 3):
        moment = float(found.weights @ found.nodes**power)
        expected = float((exact**power).mean())
        error = float((exact ** (2 * power)).sum() * 2 / 20) ** 0.5 / size
        assert abs(moment - expected) < 3 * error
    assert float(found.nodes[-1]) == pytest.approx(float(exact[-1]), rel=1e-9)
    assert float(found.nodes[0]) == pytest.approx(float(exact[0]), rel=1e-9)


def test_first_moment_is_the_trace_of_the_same_probes() -> None:
    product, params = from_matrix(with_spectrum(torch.linspace(-1, 3, 30))), vectors(30)
    density = spectral_density(product, params, 5, 8, seed=4)
    mean = trace(product, params, 8, seed=4).mean
    assert 30 * float(density.weights @ density.nodes) == pytest.approx(mean, rel=1e-10)


def test_few_steps_tell_the_share_of_every_cluster() -> None:
    values = torch.cat([torch.full((150,), 0.0), torch.full((40,), 1.0), torch.full((10,), 6.0)])
    found = spectral_density(from_matrix(with_spectrum(values)), vectors(200), 3, 50)
    for place, share in ((0, 0.75), (1, 0.2), (6, 0.05)):
        near = (found.nodes - place).abs() < 1e-6
        assert float(found.weights[near].sum()) == pytest.approx(share, abs=0.02)


def test_broadened_density_integrates_to_one_and_keeps_mean_and_variance() -> None:
    nodes, weights = torch.tensor([-1.0, 2.0]).double(), torch.tensor([0.25, 0.75]).double()
    grid = torch.linspace(-10, 10, 4001)
    curve = density_on(grid, Density(nodes, weights), 0.5)
    step = float(grid[1] - grid[0])
    moments = [float((curve * grid.double() ** power).sum()) * step for power in range(3)]
    assert moments[0] == pytest.approx(1, abs=1e-4)
    assert moments[1] == pytest.approx(1.25, abs=1e-3)
    assert moments[2] == pytest.approx(0.25 + 3 + 0.25, abs=1e-3)
    peak = density_on(torch.tensor([2.0]), Density(nodes, weights), 1e-3)
    assert float(peak) == pytest.approx(0.75 / (1e-3 * (2 * torch.pi) ** 0.5))


def test_same_seed_same_numbers() -> None:
    loss, params = relu_network()
    product = hessian_of(loss, params)
    torch.manual_seed(1)
    first = [top_eigenvalues(product, params, seed=s, steps=3).values.tolist() for s in (0, 0, 1)]
    traces = [trace(product, params, 3, seed=s).mean for s in (0, 0, 1)]
    nodes = [spectral_density(product, params, 3, 2, seed=s).nodes.tolist() for s in (0, 0, 1)]
    for one, two, other in (first, traces, nodes):
        assert one == two
        assert one != other
    state_after = torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state_after, torch.random.get_rng_state())


def test_logistic_regression_in_closed_form() -> None:
    stream = torch.Generator().manual_seed(3)
    x = torch.randn(50, 6, generator=stream, dtype=torch.float64)
    y = torch.randint(0, 2, (50,), generator=stream).double()
    params = {"w": torch.randn(6, generator=stream, dtype=torch.float64)}
    share = torch.sigmoid(x @ params["w"])
    closed = x.T @ torch.diag(share * (1 - share)) @ x / 50

    def loss(p: Params) -> Tensor:
        return F.binary_cross_entropy_with_logits(x @ p["w"], y)

    product = hessian_of(loss, params)
    rows = [product({"w": axis})["w"] for axis in torch.eye(6, dtype=torch.float64)]
    torch.testing.assert_close(torch.stack(rows), closed, rtol=1e-10, atol=1e-12)
    exact = torch.linalg.eigvalsh(closed)
    found = top_eigenvalues(product, params, which="ends").values
    torch.testing.assert_close(found, exact[[-1, 0]], rtol=1e-10, atol=0)


def test_wrong_arguments_are_named() -> None:
    product, params = from_matrix(torch.eye(5, dtype=torch.float64)), vectors(5)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        lanczos(product, random_like(params, 0), 0)
    with pytest.raises(ValueError, match=r"start has length 0\.0"):
        lanczos(product, params, 3)
    with pytest.raises(ValueError, match="no tensors"):
        lanczos(product, {}, 3)
    with pytest.raises(ValueError, match="which is 'most', allowed: magnitude, largest"):
        top_eigenvalues(product, params, which="most")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        top_eigenvalues(product, params, 0)
    with pytest.raises(ValueError, match="6 eigenvalues need as many parameters and steps: 5, 100"):
        top_eigenvalues(product, params, 3, which="ends")
    with pytest.raises(ValueError, match="tolerance must be at least 0, got -1"):
        top_eigenvalues(product, params, tolerance=-1)
    with pytest.raises(ValueError, match="probes must be at least 2, got 1"):
        trace(product, params, 1)
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        spectral_density(product, params, 3, 0)
    with pytest.raises(ValueError, match="not finite"):
        trace(lambda v: {name: tensor / 0 for name, tensor in v.items()}, params)
    with pytest.raises(ValueError, match="the product and parameters differ in names"):
        trace(lambda v: {"a": v["a"]}, params)
    density = spectral_density(product, params, 3)
    with pytest.raises(ValueError, match="width must be positive and finite, got 0"):
        density_on(torch.zeros(2), density, 0)
    with pytest.raises(ValueError, match=r"grid must have shape \(points,\), got \(2, 2\)"):
        density_on(torch.zeros(2, 2), density, 1)


# --- Gradients of single samples -----------------------------------------------------------------

Net = tuple[nn.Module, Params, tuple[int, ...]]


def of_config(config: ModelConfig) -> Net:
    """A network in float64, whose normalisations have had time to settle somewhere."""
    stream = torch.Generator().manual_seed(7)
    params = initial(config, 2)
    for name, tensor in params.items():
        if "norm" in name and tensor.is_floating_point():
            params[name] = tensor + torch.rand(tensor.shape, generator=stream)
    doubles = {n: t.double() if t.is_floating_point() else t for n, t in params.items()}
    return build(config).eval(), doubles, config.input_shape


class Tied(nn.Module):
    """One weight in two layers, a layer that runs twice, one that is never called as such."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.again, self.bare = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(4))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        x = torch.tanh(self.again(self.again(x))) * self.scale
        return F.linear(x, self.bare.weight, self.bare.bias)


def custom(model: nn.Module, shape: tuple[int, ...]) -> Net:
    stream = torch.Generator().manual_seed(5)
    params = state(model.double().eval())
    twice = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    twice -= set(parameter_names(model))
    params = {name: tensor for name, tensor in params.items() if name not in twice}
    for name, tensor in params.items():
        if tensor.is_floating_point():
            params[name] = tensor + 0.3 * torch.rand(
                tensor.shape, generator=stream, dtype=torch.float64
            )
    return model, params, shape


def odd_convolutions() -> Net:
    """Strides, dilations, groups and every kind of padding."""
    layers = [
        nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(1, 0), groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, (2, 3), padding="same", dilation=(1, 2), bias=False),
        nn.Conv2d(4, 4, 2, padding="valid", groups=4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
        nn.GroupNorm(1, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    ]
    return custom(nn.Sequential(*layers), (2, 6, 7))


class Folded(nn.Module):
    """A linear layer along a sequence, and one that sees the samples folded into more rows."""

    def __init__(self) -> None:
        super().__init__()
        self.along, self.rows = nn.Linear(3, 4), nn.Linear(4, 3)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.along(x)))
        return self.rows(hidden.flatten(0, 1)).view(len(x), -1, 3).mean(1)


NETS: dict[str, Callable[[], Net]] = {
    "linear": lambda: custom(nn.Linear(4, 3), (4,)),
    "mlp": lambda: of_config(ModelConfig("mlp", (5,), 3, width=6, depth=2)),
    "mlp, layer": lambda: of_config(ModelConfig("mlp", (5,), 3, width=6, depth=2, norm="layer")),
    "mlp, batch": lambda: of_config(ModelConfig("mlp", (5,), 3, width=6, depth=2, norm="batch")),
    "cnn, batch": lambda: of_config(ModelConfig("cnn", (2, 8, 8), 3, width=3, norm="batch")),
    "cnn, layer": lambda: of_config(ModelConfig("cnn", (2, 8, 8), 3, width=3, norm="layer")),
    "resnet": lambda: of_config(ModelConfig("resnet", (3, 8, 8), 3, 1, 20, norm="batch")),
    "tied": lambda: custom(Tied(), (4,)),
    "odd convolutions": odd_convolutions,
    "folded": lambda: custom(Folded(), (5, 3)),
}
EVERY_NET = pytest.mark.parametrize("net", list(NETS))


def samples(shape: tuple[int, ...], count: int = 7) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(9)
    x = torch.randn(count, *shape, generator=stream, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=stream)


def gradients_by_loop(model: nn.Module, params: Params, x: Tensor, y: Tensor) -> Params:
    """Shape (N, *shape) per parameter: a backward pass after another, as anyone would write it."""
    names = parameter_names(model)
    model.load_state_dict(params, strict=False)  # the module's own parameters: no functional call
    rows = []
    for inputs, label in zip(x, y, strict=True):
        loss = F.cross_entropy(model(inputs[None]), label[None])
        own = dict(model.named_parameters())
        slopes = torch.autograd.grad(loss, [own[name] for name in names], allow_unused=True)
        pairs = zip(names, slopes, strict=True)
        rows.append([torch.zeros_like(own[name]) if g is None else g for name, g in pairs])
    return {name: torch.stack([row[k] for row in rows]) for k, name in enumerate(names)}


@EVERY_NET
def test_fisher_and_single_gradients_are_those_of_a_loop(net: str) -> None:
    model, params, shape = NETS[net]()
    model = model.double()
    x, y = samples(shape)
    loop = gradients_by_loop(model, params, x, y)
    single = per_sample_gradients(model, params, x, y)
    assert list(single) == list(loop)
    found = fisher_diagonal(model, params, x, y, chunk=3)
    assert list(found) == list(loop)
    for name, rows in loop.items():
        torch.testing.assert_close(single[name], rows, rtol=0, atol=1e-10)
        squares = rows.square().mean(0)
        torch.testing.assert_close(found[name], squares, rtol=1e-9, atol=1e-13)


@EVERY_NET
def test_expected_fisher_weighs_every_label_by_its_probability(net: str) -> None:
    model, params, shape = NETS[net]()
    model = model.double()
    x, _ = samples(shape, 4)
    shares = predict(model, params, x).softmax(1).detach()
    found = fisher_diagonal(model, params, x, chunk=3)
    loops = [
        gradients_by_loop(model, params, x, torch.full((4,), k, dtype=torch.long)) for k in range(3)
    ]
    for name, tensor in found.items():
        terms = [
            torch.einsum("n,n...->...", shares[:, k], loop[name].square()) / 4
            for k, loop in enumerate(loops)
        ]
        torch.testing.assert_close(tensor, sum(terms), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("block", [1, 100, 2**20])
def test_blocks_and_chunks_only_cut_the_work(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, params, shape = odd_convolutions()
    x, y = samples(shape)
    expected = fisher_diagonal(model, params, x, y)
    monkeypatch.setattr(curvature, "BLOCK", block)
    for chunk in (1, 3, 100):
        found = fisher_diagonal(model, params, x, y, chunk=chunk)
        torch.testing.assert_close(flat(found), flat(expected), rtol=1e-10, atol=1e-14)


def test_layers_of_the_book_are_squared_without_whole_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> Params:
        raise AssertionError("a backward pass per sample through the whole network")

    monkeypatch.setattr(curvature, "_gradients_of", refuse)
    for net in ("mlp, layer", "cnn, batch", "cnn, layer", "resnet", "odd convolutions"):
        model, params, shape = NETS[net]()
        fisher_diagonal(model, params, *samples(shape, 2))


def test_expected_fisher_is_the_gauss_newton_diagonal() -> None:
    model, params, shape = NETS["mlp"]()
    x, _ = samples(shape)
    logits = predict(model, params, x)
    jacobian = torch.autograd.functional.jacobian(
        lambda v: predict(model, like(v, params), x), flat(params)
    )
    shares = logits.softmax(1).detach()
    inner = torch.diag_embed(shares) - shares.unsqueeze(2) * shares.unsqueeze(1)
    matrix = torch.einsum("nkp,nkl,nlq->pq", jacobian, inner, jacobian) / len(x)
    found = flat(fisher_diagonal(model, params, x))
    torch.testing.assert_close(found, matrix.diagonal(), rtol=1e-9, atol=1e-14)


def test_fisher_of_logistic_regression_in_closed_form() -> None:
    model, params, shape = NETS["linear"]()
    x, y = samples(shape, 20)
    shares = torch.softmax(x @ params["weight"].T + params["bias"], 1)
    errors = shares - F.one_hot(y, 3)
    empirical = fisher_diagonal(model, params, x, y)
    closed = errors.square().T @ x.square() / 20
    torch.testing.assert_close(empirical["weight"], closed, rtol=1e-12, atol=0)
    torch.testing.assert_close(empirical["bias"], errors.square().mean(0), rtol=1e-12, atol=0)
    expected = fisher_diagonal(model, params, x)
    variance = shares * (1 - shares)  # of softmax, the Hessian's diagonal: no label is left in it
    torch.testing.assert_close(expected["weight"], variance.T @ x.square() / 20, rtol=1e-12, atol=0)
    hessian = dense_hessian(lambda p: F.cross_entropy(predict(model, p, x), y), params)
    torch.testing.assert_close(flat(expected), hessian.diagonal(), rtol=1e-10, atol=1e-14)


def test_fisher_is_not_the_square_of_the_mean_gradient() -> None:
    model, params, shape = NETS["mlp"]()
    x, y = samples(shape)
    mean = gradient(lambda p: F.cross_entropy(predict(model, p, x), y), params)
    found = flat(fisher_diagonal(model, params, x, y))
    assert bool((found >= flat(mean).square() - 1e-15).all())  # Jensen
    assert float(found.sum()) > 1.5 * float(flat(mean).square().sum())


def test_any_loss_of_one_sample_has_gradients() -> None:
    model, params, _ = NETS["linear"]()
    x = torch.ones(2, 4, dtype=torch.float64)
    target = torch.zeros(2, 3, dtype=torch.float64)
    found = per_sample_gradients(
        model, params, x, target, lambda logits, t: (logits - t).square().sum() / 2
    )
    torch.testing.assert_close(found["bias"], predict(model, params, x), rtol=1e-12, atol=0)


def test_fisher_leaves_everything_as_it_was() -> None:
    model, params, shape = NETS["cnn, batch"]()
    x, y = samples(shape)
    params = {n: t.requires_grad_() if t.is_floating_point() else t for n, t in params.items()}
    before = {name: tensor.detach().clone() for name, tensor in params.items()}
    with torch.no_grad():
        found = fisher_diagonal(model, params, x, y)
    assert not any(tensor.requires_grad for tensor in found.values())
    assert all(torch.equal(params[name], before[name]) for name in params)
    assert all(tensor.grad is None for tensor in params.values())
    assert not any(module._forward_hooks for module in model.modules())
    floats = {n: t.detach().float() if t.is_floating_point() else t for n, t in params.items()}
    single = fisher_diagonal(model, floats, x.float(), y)
    assert all(tensor.dtype == torch.float32 for tensor in single.values())
    for name, tensor in found.items():
        torch.testing.assert_close(single[name].double(), tensor, rtol=1e-3, atol=1e-7)


def test_fisher_refuses_what_would_be_wrong() -> None:
    model, params, shape = NETS["cnn, batch"]()
    x, y = samples(shape)
    for call in (fisher_diagonal, per_sample_gradients):
        model.get_submodule("norm1").train()
        with pytest.raises(ValueError, match=r"call model\.eval\(\) \(in train mode: norm1\)"):
            call(model, params, x, y)
        model.eval()
        with pytest.raises(ValueError, match=r"params lack conv1\.bias"):
            call(model, {n: t for n, t in params.items() if n != "conv1.bias"}, x, y)
        with pytest.raises(ValueError, match="got 7 inputs, 6 labels"):
            call(model, params, x, y[:6])
        with pytest.raises(ValueError, match="got 0 inputs, 0 labels"):
            call(model, params, x[:0], y[:0])
    with pytest.raises(ValueError, match="labels are 0 to 3, allowed: 0 to 2"):
        fisher_diagonal(model, params, x, torch.tensor([0, 1, 2, 3, 0, 0, 0]))
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        fisher_diagonal(model, params, x, y, chunk=0)
    coupled = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval()
    with pytest.raises(ValueError, match="1 has no running statistics"):
        fisher_diagonal(coupled, state(coupled), torch.ones(2, 4), torch.tensor([0, 1]))

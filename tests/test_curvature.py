"""Hessian-vector products against the dense Hessian, finite differences and symmetry."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.curvature import gradient, hessian_vector_product, inner_product
from lmc_lessons.models import ModelConfig, Params, build, initial, predict

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

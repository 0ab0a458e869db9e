"""Second derivatives of a loss with respect to parameters, without ever forming the Hessian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, vjp

from lmc_lessons.models import Params


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

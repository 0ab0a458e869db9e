"""Matching: optimal where that can be checked, never worse, never another function."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.connectivity.matching import (
    Matching,
    Method,
    activation_matching,
    assign,
    unit_similarity,
    weight_matching,
)
from lmc_lessons.connectivity.symmetry import (
    Permutations,
    Symmetry,
    activations,
    find_symmetry,
    inverse,
    permute,
)
from lmc_lessons.datasets import load
from lmc_lessons.models import ModelConfig, Params, build, initial, predict, state, unstack
from lmc_lessons.training import TrainConfig, train

SMALL = (1, 8, 8)
CIFAR = (3, 32, 32)
MLP = ModelConfig("mlp", SMALL, 10, 24, 3)
PLANTED = {
    "mlp": MLP,
    "mlp-batch": ModelConfig("mlp", SMALL, 10, 24, 3, "batch"),
    "mlp-layer": ModelConfig("mlp", SMALL, 10, 24, 3, "layer"),
    "cnn": ModelConfig("cnn", SMALL, 10, 8),
    "cnn-batch": ModelConfig("cnn", SMALL, 10, 8, norm="batch"),
    "vgg": ModelConfig("vgg", CIFAR, 10, 1, 11),
    "resnet-batch": ModelConfig("resnet", CIFAR, 10, 1, 20, "batch"),
    "resnet-layer": ModelConfig("resnet", CIFAR, 10, 1, 20, "layer"),
}


def symmetry_of(config: ModelConfig) -> Symmetry:
    return find_symmetry(build(config), torch.zeros(2, *config.input_shape), prove=False)


def randomised(params: Params, seed: int) -> Params:
    """The same network with random biases, norm parameters and statistics."""
    stream = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(tensor.shape, generator=stream) + 0.5
        if tensor.dim() == 1
        else tensor.clone()
        for name, tensor in params.items()
    }


def inner(a: Params, b: Params, names: list[str]) -> float:
    return sum(float(np.vdot(a[n].double().numpy(), b[n].double().numpy())) for n in names)


def distance(a: Params, b: Params, names: list[str]) -> float:
    gaps = (np.linalg.norm(a[n].double().numpy() - b[n].double().numpy()) for n in names)
    return float(np.sqrt(sum(gap**2 for gap in gaps)))


def equal(one: Permutations, two: Permutations) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def orders(size: int) -> Iterator[Tensor]:
    return (torch.tensor(order) for order in itertools.permutations(range(size)))


class Residual(nn.Module):
    """A stem, blocks x + V relu(W x), a head; or with one matrix per block, x + W x."""

    def __init__(self, width: int, inner_width: int | None, blocks: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.stem = nn.Linear(5, width)
            self.inner = nn.ModuleList(
                nn.Linear(width, inner_width or width) for _ in range(blocks)
            )
            self.outer = nn.ModuleList(
                nn.Linear(inner_width, width) if inner_width else nn.Identity()
                for _ in range(blocks)
            )
            self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for first, second in zip(self.inner, self.outer, strict=True):
            branch = first(x)
            x = x + (branch if isinstance(second, nn.Identity) else second(F.relu(branch)))
        return self.head(x)


def tiny(*sizes: int, seed: int) -> tuple[nn.Sequential, Params]:
    """An MLP of these layer sizes in float64, and its parameters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after, dtype=torch.float64), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    return model, state(model)


def tiny_pair(*sizes: int, seed: int) -> tuple[nn.Sequential, Symmetry, Params, Params]:
    model, a = tiny(*sizes, seed=2 * seed)
    symmetry = find_symmetry(nn.Sequential(*model).float(), torch.zeros(2, sizes[0]))
    _, b = tiny(*sizes, seed=2 * seed + 1)
    return model.double(), symmetry, a, b


def by_hand(a: Params, b: Params, permutations: dict[str, np.ndarray]) -> float:
    """Sum over the layers of <W_A, P W_B Q^T> + <b_A, P b_B>, with permutation matrices."""
    total, before = 0.0, None
    for name in [n.removesuffix(".weight") for n in a if n.endswith(".weight")]:
        rows, columns = b[f"{name}.weight"].shape
        here = np.eye(rows)[permutations[name]] if name in permutations else np.eye(rows)
        before = np.eye(columns) if before is None else before
        weights = (a[f"{name}.weight"].numpy(), b[f"{name}.weight"].numpy())
        total += np.einsum("ij,ik,kl,jl->", weights[0], here, weights[1], before)
        total += np.einsum("i,ik,k->", a[f"{name}.bias"].numpy(), here, b[f"{name}.bias"].numpy())
        before = here
    return float(total)


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Symmetry, list[Params], Tensor]:
    """Four networks trained on digits: their architecture, groups, parameters and inputs."""
    config = ModelConfig("mlp", SMALL, 10, 32, 2)
    data = load("digits")
    result = train(config, data, [0, 1, 2, 3], TrainConfig(epochs=8, fast=True))
    return build(config), symmetry_of(config), unstack(result.params), data.train_x


# --- Against brute force -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("method", ["coordinate-descent", "frank-wolfe"])
def test_two_groups_against_all_permutations(seed: int, method: Any) -> None:
    _, symmetry, a, b = tiny_pair(5, 3, 4, 2, seed=seed)
    found = weight_matching(symmetry, a, b, method=method, seed=seed)
    values = {
        (tuple(p.tolist()), tuple(q.tolist())): by_hand(a, b, {"0": p.numpy(), "2": q.numpy()})
        for p in orders(3)
        for q in orders(4)
    }
    p, q = (tuple(found.permutations[name].tolist()) for name in ("0", "2"))
    reached = values[p, q]
    assert reached == pytest.approx(found.objective[-1], rel=1e-12)
    assert reached <= max(values.values())
    nearby = [value for (one, two), value in values.items() if one == p or two == q]
    assert reached >= max(nearby) - 1e-9 * abs(reached)


@pytest.mark.parametrize("seed", range(6))
def test_one_hidden_layer_is_solved_exactly_at_once(seed: int) -> None:
    _, symmetry, a, b = tiny_pair(4, 5, 3, seed=seed)
    found = weight_matching(symmetry, a, b)
    best = max(orders(5), key=lambda p: by_hand(a, b, {"0": p.numpy()}))
    assert torch.equal(found.permutations["0"], best)
    assert found.objective[-1] == pytest.approx(found.objective[1], rel=1e-14)


@pytest.mark.parametrize("seed", range(4))
def test_restarts_over_all_orders_reach_the_best_coordinate_optimum(seed: int) -> None:
    """The best of many restarts is still a coordinate optimum, and no single run beats it."""
    _, symmetry, a, b = tiny_pair(5, 4, 4, 4, 2, seed=seed)
    singles = [weight_matching(symmetry, a, b, seed=10 + k).objective[-1] for k in range(8)]
    several = [
        weight_matching(symmetry, a, b, seed=10, restarts=k).objective[-1] for k in range(1, 9)
    ]
    assert several == [max(singles[:k]) for k in range(1, 9)]


# --- The objective -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("start", ["identity", "greedy"])
@pytest.mark.parametrize("name", ["mlp-batch", "cnn-batch", "resnet-layer"])
def test_objective_never_falls_and_is_the_inner_product(
    name: str, start: Any, dtype: torch.dtype
) -> None:
    config = PLANTED[name]
    symmetry = symmetry_of(config)
    a, b = (
        {n: t.to(dtype) if t.is_floating_point() else t for n, t in randomised(p, k).items()}
        for k, p in enumerate((initial(config, 0), initial(config, 1)))
    )
    found = weight_matching(symmetry, a, b, start=start)
    parameters = [n for n, _ in build(config).named_parameters()]
    again = [inner(a, permute(symmetry, b, sweep), parameters) for sweep in found.sweeps]
    assert list(found.objective) == pytest.approx(again, rel=1e-5 if dtype.itemsize == 4 else 1e-11)
    assert all(after >= before for before, after in itertools.pairwise(found.objective))
    assert equal(found.permutations, found.sweeps[-1])
    if start == "identity":
        assert found.objective[0] == pytest.approx(inner(a, b, parameters), rel=1e-5)


def test_last_sweep_changes_nothing_and_no_group_can_be_improved(
    trained: tuple[nn.Module, Symmetry, list[Params], Tensor],
) -> None:
    model, symmetry, (a, b, *_), _ = trained
    found = weight_matching(symmetry, a, b)
    assert equal(found.sweeps[-1], found.sweeps[-2])
    names = [n for n, _ in model.named_parameters()]
    for group in symmetry.groups:
        others = {n: p for n, p in found.permutations.items() if n != group.name}
        partly = permute(symmetry, b, others)  # this group as it came, the others solved
        gains = np.zeros((group.size, group.size))
        for member in group.members:
            one, two = (
                np.moveaxis(p[member.tensor].double().numpy(), member.axis, 0).reshape(
                    group.size, -1
                )
                for p in (a, partly)
            )
            gains += one @ two.T
        rows, columns = linear_sum_assignment(gains, maximize=True)
        reached = gains[rows, found.permutations[group.name].numpy()].sum()
        assert reached >= gains[rows, columns].sum() - 1e-5 * inner(a, a, names)


def test_function_is_unchanged(trained: tuple[nn.Module, Symmetry, list[Params], Tensor]) -> None:
    model, symmetry, (a, b, *_), x = trained
    matched = permute(symmetry, b, weight_matching(symmetry, a, b).permutations)
    torch.testing.assert_close(predict(model, matched, x[:50]), predict(model, b, x[:50]))
    assert not torch.equal(matched["output.weight"], b["output.weight"])


def test_matching_brings_trained_networks_closer(
    trained: tuple[nn.Module, Symmetry, list[Params], Tensor],
) -> None:
    _, symmetry, (a, b, *_), _ = trained
    matched = permute(symmetry, b, weight_matching(symmetry, a, b).permutations)
    assert distance(a, matched, list(a)) < 0.9 * distance(a, b, list(a))


def test_max_sweeps_stops_and_the_start_is_reported(
    trained: tuple[nn.Module, Symmetry, list[Params], Tensor],
) -> None:
    _, symmetry, (a, b, *_), _ = trained
    one, full = weight_matching(symmetry, a, b, max_sweeps=1), weight_matching(symmetry, a, b)
    assert len(one.objective) == len(one.sweeps) == 2
    assert equal(one.sweeps[0], symmetry.identity())
    assert equal(one.sweeps[1], full.sweeps[1])
    assert full.objective[: len(one.objective)] == one.objective
    assert one.solved == len(symmetry.groups) <= full.solved


# --- Planted permutations ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "mlp-batch", "mlp-layer", "cnn", "cnn-batch", "vgg"])
@pytest.mark.parametrize("method", ["coordinate-descent", "frank-wolfe"])
def test_planted_permutation_is_recovered(name: str, method: Any) -> None:
    config = PLANTED[name]
    symmetry, a = symmetry_of(config), randomised(initial(config, 0), 0)
    planted = symmetry.random(7)
    found = weight_matching(symmetry, a, permute(symmetry, a, planted), method=method)
    assert equal(found.permutations, inverse(planted))
    assert len(found.sweeps) <= 6  # the start and at most five sweeps


@pytest.mark.parametrize("name", ["resnet-batch", "resnet-layer"])
@pytest.mark.parametrize("seed", range(2))
def test_planted_permutation_of_a_resnet_is_recovered_from_the_greedy_start(
    name: str, seed: int
) -> None:
    config = PLANTED[name]
    symmetry, a = symmetry_of(config), randomised(initial(config, seed), seed)
    planted = symmetry.random(seed)
    b = permute(symmetry, a, planted)
    found = weight_matching(symmetry, a, b, start="greedy")
    assert equal(found.permutations, inverse(planted))
    matched = permute(symmetry, b, found.permutations)
    assert all(torch.equal(matched[n], a[n]) for n in a)  # the BatchNorm statistics as well


@pytest.mark.parametrize(("width", "inner_width"), [(16, 32), (32, 64), (64, 128)])
def test_noise_free_residual_networks_are_always_recovered_from_the_greedy_start(
    width: int, inner_width: int
) -> None:
    for seed in range(10):
        model = Residual(width, inner_width, 4, seed)
        symmetry, a = find_symmetry(model, torch.zeros(2, 5), prove=False), state(model)
        planted = symmetry.random(seed)
        found = weight_matching(symmetry, a, permute(symmetry, a, planted), start="greedy")
        assert equal(found.permutations, inverse(planted)), seed


def test_a_network_matched_to_itself_stays() -> None:
    symmetry, a = symmetry_of(MLP), initial(MLP, 0)
    found = weight_matching(symmetry, a, a)
    assert equal(found.permutations, symmetry.identity())
    assert found.objective[0] == found.objective[-1]


def test_swapping_the_networks_inverts_a_planted_matching() -> None:
    symmetry, a = symmetry_of(MLP), initial(MLP, 0)
    b = permute(symmetry, a, symmetry.random(3))
    there, back = weight_matching(symmetry, a, b), weight_matching(symmetry, b, a)
    assert equal(there.permutations, inverse(back.permutations))


# --- What counts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("deciding", ["norms.0.weight", "norms.0.bias", "hidden.0.bias"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_biases_and_norm_parameters_decide_where_weights_tie(deciding: str, norm: Any) -> None:
    config = ModelConfig("mlp", (4,), 3, 6, 1, norm)
    symmetry = symmetry_of(config)
    a = {n: torch.ones_like(t) for n, t in initial(config, 0).items()}
    a[deciding] = torch.tensor([3.0, -1.0, 2.0, 0.5, -2.0, 1.0])
    planted = symmetry.random(1)
    found = weight_matching(symmetry, a, permute(symmetry, a, planted))
    assert equal(found.permutations, inverse(planted))


def test_batchnorm_statistics_move_along_but_do_not_count() -> None:
    config = ModelConfig("cnn", SMALL, 10, 6, norm="batch")
    symmetry = symmetry_of(config)
    a, b = initial(config, 0), initial(config, 1)
    shifted = dict(b)
    shifted["norm1.running_mean"] = 1e4 * torch.randn(6)
    shifted["norm2.running_var"] = 1e4 * torch.rand(12)
    plain, found = weight_matching(symmetry, a, b), weight_matching(symmetry, a, shifted)
    assert equal(plain.permutations, found.permutations)
    assert plain.objective == found.objective
    moved = permute(symmetry, shifted, found.permutations)["norm1.running_mean"]
    assert torch.equal(moved, shifted["norm1.running_mean"][found.permutations["conv1"]])


def test_one_matrix_on_both_axes_of_a_group_never_decreases() -> None:
    """x + W x: one permutation acts on both axes of W, so its best answer is no longer linear."""
    for seed in range(10):
        models = [Residual(4, None, 2, 100 * seed + k).double() for k in (0, 1)]
        symmetry = find_symmetry(models[0].float(), torch.zeros(2, 5))
        (group,) = symmetry.groups
        a, b = (state(model.double()) for model in models)
        names = list(a)
        values = [inner(a, permute(symmetry, b, {group.name: p}), names) for p in orders(4)]
        for method in get_args(Method):
            found = weight_matching(symmetry, a, b, method=method)
            assert all(y >= x for x, y in itertools.pairwise(found.objective))
            assert inner(a, b, names) <= found.objective[-1] or method == "frank-wolfe"
            reached = inner(a, permute(symmetry, b, found.permutations), names)
            assert found.objective[-1] == pytest.approx(reached, rel=1e-12)
            assert reached <= max(values) + 1e-12


def test_git_rebasin_greedy_counterexample() -> None:
    """Appendix A.7.2: matching layer by layer from the input leaves half of the function."""
    eps = 0.1

    def network(first: list[float], second: list[list[float]], third: list[float]) -> Params:
        values = {"0": [[value] for value in first], "1": second, "2": [third]}
        return {f"{n}.weight": torch.tensor(v, dtype=torch.float64) for n, v in values.items()}

    a = network([1, 1 + eps], [[1, 0], [0, eps]], [1, 0])
    b = network([1, 1 + eps], [[0, 0], [0, 1]], [0, 1])
    model = nn.Sequential(
        nn.Linear(1, 2, bias=False), nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False)
    )
    symmetry = find_symmetry(model, torch.zeros(2, 1))

    def midpoint(permutations: Permutations) -> float:
        matched = permute(symmetry, b, permutations)
        product = torch.ones(1, 1, dtype=torch.float64)
        for name in ("0.weight", "1.weight", "2.weight"):
            product = (a[name] + matched[name]) / 2 @ product
        return product.item()

    one = assign(a["0.weight"] @ b["0.weight"].T)
    two = assign(a["1.weight"] @ b["1.weight"][:, one].T)
    assert midpoint({"0": one, "1": two}) == pytest.approx(0.5, abs=eps)
    for seed in range(4):  # whatever the order of the groups
        found = weight_matching(symmetry, a, b, seed=seed)
        assert [found.permutations[n].tolist() for n in ("0", "1")] == [[1, 0], [1, 0]]
        assert midpoint(found.permutations) == pytest.approx(1 + eps / 2)


# --- Determinism, starts, methods ----------------------------------------------------------------


def test_seed_decides_everything(
    trained: tuple[nn.Module, Symmetry, list[Params], Tensor],
) -> None:
    _, symmetry, (a, b, *_), _ = trained

    def run(seed: int) -> Matching:
        return weight_matching(symmetry, a, b, seed=seed, restarts=2)

    first, again = run(5), run(5)
    assert equal(first.permutations, again.permutations)
    assert first.objective == again.objective
    assert len({run(seed).objective[-1] for seed in range(6)}) > 1


def test_inputs_are_not_changed(
    trained: tuple[nn.Module, Symmetry, list[Params], Tensor],
) -> None:
    _, symmetry, (a, b, *_), _ = trained
    before = [{n: t.clone() for n, t in p.items()} for p in (a, b)]
    begin = symmetry.random(1)
    kept = {n: t.clone() for n, t in begin.items()}
    weight_matching(symmetry, a, b, start=begin)
    for old, new in zip(before, (a, b), strict=True):
        assert all(torch.equal(old[n], new[n]) for n in old)
    assert equal(begin, kept)


def test_start_from_the_result_stays_there(
    trained: tuple[nn.Module, Symmetry, list[Params], Tensor],
) -> None:
    _, symmetry, (a, b, *_), _ = trained
    found = weight_matching(symmetry, a, b)
    again = weight_matching(symmetry, a, b, start=found.permutations, seed=9)
    assert equal(again.permutations, found.permutations)
    assert again.objective[0] == pytest.approx(found.objective[-1], rel=1e-6)


@pytest.mark.parametrize("pair", [(0, 1), (2, 3), (1, 2)])
def test_frank_wolfe_ends_at_most_a_thousandth_farther_than_coordinate_descent(
    trained: tuple[nn.Module, Symmetry, list[Params], Tensor], pair: tuple[int, int]
) -> None:
    _, symmetry, networks, _ = trained
    a, b = (networks[k] for k in pair)
    descent, wolfe = (
        distance(
            a, permute(symmetry, b, weight_matching(symmetry, a, b, method=m).permutations), list(a)
        )
        for m in ("coordinate-descent", "frank-wolfe")
    )
    assert wolfe <= 1.001 * descent


def test_float32_and_float64_agree(
    trained: tuple[nn.Module, Symmetry, list[Params], Tensor],
) -> None:
    _, symmetry, (a, b, *_), _ = trained
    single = weight_matching(symmetry, a, b)
    double = weight_matching(
        symmetry, {n: t.double() for n, t in a.items()}, {n: t.double() for n, t in b.items()}
    )
    assert single.objective[-1] == pytest.approx(double.objective[-1], rel=1e-4)


# --- Assignment ----------------------------------------------------------------------------------


def square(values: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return st.integers(1, 6).flatmap(lambda n: arrays(np.float64, (n, n), elements=values))


@settings(max_examples=200, deadline=None)
@given(square(st.floats(-1e6, 1e6)) | square(st.sampled_from([0.0, 1.0, 2.0])))
def test_assignment_is_a_permutation_and_as_good_as_any(matrix: np.ndarray) -> None:
    found = assign(torch.from_numpy(matrix)).numpy()
    rows = np.arange(len(matrix))
    assert sorted(found) == rows.tolist()
    peer = matrix[linear_sum_assignment(matrix, maximize=True)].sum()
    every = max(matrix[rows, list(p)].sum() for p in itertools.permutations(rows.tolist()))
    reached = matrix[rows, found].sum()
    assert reached == pytest.approx(peer, rel=1e-9, abs=1e-6)
    assert reached == pytest.approx(every, rel=1e-9, abs=1e-6)


def test_assignment_takes_the_shortcut_only_when_it_is_right() -> None:
    free = torch.tensor([[1.0, 9.0, 2.0], [8.0, 7.0, 3.0], [4.0, 5.0, 6.0]])
    assert assign(free).tolist() == [1, 0, 2]
    fought = torch.tensor([[1.0, 9.0, 2.0], [0.0, 8.0, 3.0], [4.0, 7.0, 6.0]])
    assert assign(fought).tolist() == [1, 2, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("fought", [True, False], ids=["fought over", "argmax is free"])
def test_assignment_refuses_what_is_not_finite(value: float, fought: bool) -> None:
    matrix = torch.ones(3, 3) if fought else 2 * torch.eye(3)
    matrix[2, 0] = value
    with pytest.raises(ValueError, match="finite"):
        assign(matrix)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 2, 2), (0, 3)])
def test_assignment_refuses_what_is_not_square(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="square"):
        assign(torch.ones(shape))


# --- Activation matching -------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["correlation", "second-moment"])
@pytest.mark.parametrize("name", ["mlp", "mlp-batch", "cnn-batch", "resnet-batch"])
def test_activations_recover_a_planted_permutation(name: str, similarity: Any) -> None:
    config = PLANTED[name]
    symmetry, a = symmetry_of(config), randomised(initial(config, 0), 3)
    planted = symmetry.random(2)
    b = permute(symmetry, a, planted)
    x = torch.randn(24 if name == "resnet-batch" else 200, *config.input_shape)
    shown = activations(symmetry, a, x)
    found = activation_matching(symmetry, a, b, x, similarity=similarity)
    for name_of_group, index in found.items():
        alive = shown[name_of_group].std(1) > 1e-6
        assert torch.equal(index[alive], inverse(planted)[name_of_group][alive])
        assert bool(alive.any())


@pytest.mark.parametrize("name", ["mlp", "cnn-batch"])
def test_similarities_equal_numpy(name: str) -> None:
    config = PLANTED[name]
    symmetry = symmetry_of(config)
    a, b = (randomised(initial(config, k), k) for k in (0, 1))
    x = torch.randn(60, *config.input_shape)
    one, two = (activations(symmetry, p, x) for p in (a, b))
    correlation = unit_similarity(symmetry, a, b, x)
    moment = unit_similarity(symmetry, a, b, x, similarity="second-moment")
    for group in symmetry.groups:
        za, zb = (z[group.name].double().numpy() for z in (one, two))
        np.testing.assert_allclose(moment[group.name], za @ zb.T / za.shape[1], rtol=1e-9)
        alive = [z.std(1) > 0 for z in (za, zb)]
        both = np.corrcoef(za[alive[0]], zb[alive[1]])
        expected = np.zeros((group.size, group.size))
        expected[np.ix_(*alive)] = both[: alive[0].sum(), alive[0].sum() :]
        np.testing.assert_allclose(correlation[group.name], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("similarity", ["correlation", "second-moment"])
def test_chunks_do_not_matter(similarity: Any) -> None:
    config = PLANTED["cnn-batch"]
    symmetry = symmetry_of(config)
    a, b = initial(config, 0), initial(config, 1)
    x = torch.randn(50, *SMALL)
    whole, parts = (
        unit_similarity(symmetry, a, b, x, similarity=similarity, chunk=c) for c in (50, 7)
    )
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.7])
def test_a_unit_that_never_varies_correlates_with_none(value: float) -> None:
    symmetry, a, b = symmetry_of(MLP), initial(MLP, 0), initial(MLP, 1)
    for params, unit in ((a, 3), (b, 8)):
        params["hidden.1.weight"][unit] = 0
        params["hidden.1.bias"][unit] = value
    x = torch.randn(101, *SMALL)
    found = unit_similarity(symmetry, a, b, x)["hidden.1"]
    assert found[3].abs().max() <= 1e-6
    assert found[:, 8].abs().max() <= 1e-6
    assert bool(torch.isfinite(found).all())


def test_correlation_does_not_depend_on_the_scale_of_a_unit() -> None:
    symmetry, a, b = symmetry_of(MLP), initial(MLP, 0), initial(MLP, 1)
    x = torch.randn(100, *SMALL)
    before = unit_similarity(symmetry, a, b, x)["hidden.0"]
    for params in (a, b):
        params["hidden.0.weight"] *= 1e-7
        params["hidden.0.bias"] *= 1e-7
    after = unit_similarity(symmetry, a, b, x)["hidden.0"]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


# --- Errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("match", [weight_matching, activation_matching])
def test_networks_that_do_not_fit_are_refused(match: Any) -> None:
    symmetry, a = symmetry_of(MLP), initial(MLP, 0)
    data = (torch.randn(4, *SMALL),) if match is activation_matching else ()
    wider = initial(ModelConfig("mlp", SMALL, 10, 25, 3), 0)
    with pytest.raises(ValueError, match=r"differ at \S+: \(.*24.*\) in A, \(.*25.*\) in B"):
        match(symmetry, a, wider, *data)
    with pytest.raises(ValueError, match=r"differ at output\.bias: .* in A, absent in B"):
        match(symmetry, a, {n: t for n, t in a.items() if n != "output.bias"}, *data)
    for which, bad in itertools.product("AB", (float("nan"), float("inf"))):
        broken = {n: t.clone() for n, t in a.items()}
        broken["hidden.1.weight"][0, 0] = bad
        pair = (broken, a) if which == "A" else (a, broken)
        with pytest.raises(ValueError, match=rf"network {which}.*hidden\.1\.weight"):
            match(symmetry, *pair, *data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "zero"}, "'zero', allowed: identity, greedy"),
        ({"method": "magic"}, "'magic', allowed: coordinate-descent, frank-wolfe"),
        ({"restarts": 0}, "restarts"),
        ({"max_sweeps": 0}, "max_sweeps"),
        ({"start": {"nope": torch.arange(24)}}, "nope"),
        ({"start": {"hidden.0": torch.arange(23)}}, r"hidden\.0"),
        ({"start": {"hidden.0": torch.zeros(24, dtype=torch.int64)}}, r"hidden\.0"),
    ],
    ids=["start", "method", "restarts", "sweeps", "group", "length", "no permutation"],
)
def test_unknown_options_are_refused(options: Any, message: str) -> None:
    symmetry, a, b = symmetry_of(MLP), initial(MLP, 0), initial(MLP, 1)
    with pytest.raises(ValueError, match=message):
        weight_matching(symmetry, a, b, **options)


def test_activation_matching_refuses_no_inputs_and_unknown_similarities() -> None:
    symmetry, a, b = symmetry_of(MLP), initial(MLP, 0), initial(MLP, 1)
    with pytest.raises(ValueError, match="at least one input"):
        activation_matching(symmetry, a, b, torch.zeros(0, *SMALL))
    unknown: Any = "cosine"
    with pytest.raises(ValueError, match="'cosine', allowed: correlation, second-moment"):
        activation_matching(symmetry, a, b, torch.zeros(2, *SMALL), similarity=unknown)

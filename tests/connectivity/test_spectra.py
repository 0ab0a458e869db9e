"""Spectra: exact factors, alignments that permutations cannot fool, expansions that foretell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import scipy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.connectivity.spectra import (
    Spectrum,
    alignment,
    alignments,
    effective_rank,
    input_preference,
    kept,
    overlap,
    spectra,
    spectral_difference,
    taylor_barrier,
    truncate,
    weight_matrices,
)
from lmc_lessons.connectivity.symmetry import find_symmetry, inverse, permute
from lmc_lessons.landscape import interpolate
from lmc_lessons.models import ModelConfig, Params, build, initial, parameter_names, state

SMALL = (1, 8, 8)
MLP = ModelConfig("mlp", SMALL, 10, 12, 2)
CNN = ModelConfig("cnn", SMALL, 10, 4, norm="batch")
CONFIGS = {
    "mlp": MLP,
    "mlp-layer": ModelConfig("mlp", SMALL, 10, 12, 2, "layer"),
    "cnn-batch": CNN,
    "vgg": ModelConfig("vgg", (3, 32, 32), 10, 1, 11),
    "resnet-batch": ModelConfig("resnet", (3, 8, 8), 10, 1, 20, "batch"),
}
NARROW = {"vgg": ("features.0", "features.4", "features.8", "output")}  # the wide ones take seconds
GAMMAS = (0.0, 0.1, 0.3, 0.5, 0.9, 0.999)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def double(params: Params) -> Params:
    return {n: t.double() if t.is_floating_point() else t for n, t in params.items()}


def random_network(config: ModelConfig, seed: int) -> Params:
    """A float64 network whose norms and statistics are not at their first values."""
    stream = torch.Generator().manual_seed(seed)
    return {
        n: t + 0.3 * torch.rand(t.shape, generator=stream) if t.is_floating_point() else t
        for n, t in double(initial(config, seed)).items()
    }


def pair(config: ModelConfig) -> tuple[Params, Params]:
    return random_network(config, 0), random_network(config, 1)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(*matrices: Tensor) -> Params:
    """A network of nothing but weights."""
    return {f"{k}.weight": matrix for k, matrix in enumerate(matrices)}


def by_scipy(params: Params, driver: str) -> dict[str, Spectrum]:
    found = {}
    for name, tensor in params.items():
        if tensor.dim() >= 2:
            matrix = tensor.numpy().reshape(len(tensor), -1)
            left, values, right = scipy.linalg.svd(
                matrix, full_matrices=False, lapack_driver=driver
            )
            parts = (np.ascontiguousarray(part) for part in (left, values, right.T))
            found[name.removesuffix(".weight")] = Spectrum(*map(torch.from_numpy, parts))
    return found


def projected(spectrum: Spectrum, k: int) -> Tensor:
    """The dense matrix with k unit singular values, one rank-one term after the other."""
    terms = (torch.outer(spectrum.left[:, i], spectrum.right[:, i]) for i in range(k))
    return torch.stack(list(terms)).sum(0)


# --- Layers taken apart --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "mlp-layer", "cnn-batch", "resnet-batch"])
def test_singular_vectors_put_every_layer_together_again(name: str) -> None:
    params = random_network(CONFIGS[name], 0)
    weights = {n: t for n, t in params.items() if t.dim() >= 2}
    found = spectra(params)
    assert [f"{layer_name}.weight" for layer_name in found] == list(weights)
    for (left, values, right), weight in zip(found.values(), weights.values(), strict=True):
        matrix = weight.reshape(len(weight), -1)
        k = min(matrix.shape)
        assert (left.shape, values.shape, right.shape) == ((len(left), k), (k,), (len(right), k))
        torch.testing.assert_close(left * values @ right.mT, matrix, rtol=0, atol=1e-12)
        for vectors in (left, right):
            eye = torch.eye(k, dtype=torch.float64)
            torch.testing.assert_close(vectors.mT @ vectors, eye, rtol=0, atol=1e-12)
        assert values.tolist() == sorted(values.tolist(), reverse=True)
        assert float(values[-1]) >= 0


def test_a_convolution_is_a_matrix_whose_columns_are_blocks_of_inputs() -> None:
    kernel = gaussian(3, 2, 2, 2)
    matrix = weight_matrices({"conv.weight": kernel})["conv"]
    for out, channel, row, column in itertools.product(range(3), range(2), range(2), range(2)):
        assert matrix[out, 4 * channel + 2 * row + column] == kernel[out, channel, row, column]


def test_spectra_are_taken_in_float64_whatever_the_weights_are() -> None:
    params = initial(MLP, 0)
    for name, spectrum in spectra(params).items():
        assert {part.dtype for part in spectrum} == {torch.float64}
        expected = np.linalg.svd(params[f"{name}.weight"].double().numpy(), compute_uv=False)
        assert spectrum.values.tolist() == pytest.approx(expected.tolist(), abs=1e-12)


def test_layers_are_chosen_by_name_in_the_order_asked_for() -> None:
    params = random_network(MLP, 0)
    chosen = ("output", "hidden.0")
    assert tuple(spectra(params, chosen)) == tuple(weight_matrices(params, chosen)) == chosen
    assert tuple(spectra(params)) == ("hidden.0", "hidden.1", "output")


def test_norms_and_biases_are_no_layers() -> None:
    assert list(weight_matrices(initial(CNN, 0))) == ["conv1", "conv2", "hidden", "output"]


def test_a_layer_is_needed_and_unknown_ones_are_named() -> None:
    params = initial(MLP, 0)
    for call in (weight_matrices, spectra):
        with pytest.raises(ValueError, match="at least one layer is needed, got none"):
            call(params, ())
        with pytest.raises(ValueError, match="at least one layer is needed, got none"):
            call({"norm.weight": torch.ones(3), "norm.bias": torch.ones(3)})
        with pytest.raises(ValueError, match=r"no layer 'hidden\.7'.*hidden\.0, hidden\.1, output"):
            call(params, ("output", "hidden.7"))
    with pytest.raises(ValueError, match=r"no layer 'hidden\.7'"):
        truncate(params, 0.1, ("hidden.7",))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    params = initial(MLP, 0)
    params["hidden.1.weight"][0, 3] = bad
    for call in (spectra, lambda p: truncate(p, 0.5)):
        with pytest.raises(ValueError, match=r"finite weights, hidden\.1 has NaN or infinity"):
            call(params)
    whole, x = initial(MLP, 0), torch.rand(3, *SMALL)
    for network, directions in ((params, None), (whole, params)):
        with pytest.raises(ValueError, match=r"finite weights, hidden\.1"):
            input_preference(build(MLP), network, x, directions=directions)
    assert spectra(params, ("output",)).keys() == {"output"}


# --- Overlap and alignment -----------------------------------------------------------------------


def test_overlap_is_a_double_loop() -> None:
    a, b = (spectra(layer(gaussian(5, 7, seed=seed)))["0"] for seed in (0, 1))
    found = overlap(a, b)
    assert found.shape == (5, 5)
    for i, j in itertools.product(range(5), range(5)):
        lefts = sum(float(p) * float(q) for p, q in zip(a.left[:, i], b.left[:, j], strict=True))
        rights = sum(float(p) * float(q) for p, q in zip(a.right[:, i], b.right[:, j], strict=True))
        assert float(found[i, j]) == pytest.approx(lefts * rights, abs=1e-14)


@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (6, 6), (4, 2, 3, 3), (1, 4), (4, 1)])
def test_weighted_overlaps_sum_to_the_inner_product_of_the_weights(shape: tuple[int, ...]) -> None:
    one, two = gaussian(*shape, seed=0), gaussian(*shape, seed=1)
    a, b = (spectra(layer(weight))["0"] for weight in (one, two))
    weighted = torch.outer(a.values, b.values) * overlap(a, b)
    assert float(weighted.sum()) == pytest.approx(float((one * two).sum()), abs=1e-11)


def test_overlap_and_alignment_refuse_other_shapes() -> None:
    a, b = (spectra(layer(gaussian(3, 3), gaussian(*shape))) for shape in ((4, 5), (5, 4)))
    with pytest.raises(ValueError, match=r"differ in shape: \(4, 5\) and \(5, 4\)"):
        overlap(a["1"], b["1"])
    with pytest.raises(ValueError, match=r"networks differ at 1: .*\(4, 5\) and \(5, 4\)"):
        alignment(a, b)
    with pytest.raises(ValueError, match="differ in layers"):
        alignment(a, {"0": b["0"]})
    for compare in (alignment, spectral_difference):
        with pytest.raises(ValueError, match="at least one layer is needed, got none"):
            compare({}, {})


@pytest.mark.parametrize("gamma", [-0.1, 1.0, 2.0, math.nan])
def test_gamma_lies_in_its_interval(gamma: float) -> None:
    params = initial(MLP, 0)
    found = spectra(params)
    calls: tuple[Callable[[], object], ...] = (
        lambda: kept(found["output"], gamma),
        lambda: alignment(found, found, gamma),
        lambda: alignments(found, found, (0.5, gamma)),
        lambda: truncate(params, gamma),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"gamma must be in \[0, 1\), got "):
            call()


@pytest.mark.parametrize("gamma", GAMMAS)
def test_alignment_is_an_inner_product_of_dense_matrices(gamma: float) -> None:
    shapes = ((5, 7), (7, 5), (3, 2, 3, 3))
    a, b = (
        spectra(layer(*(gaussian(*shape, seed=seed + 7 * k) for k, shape in enumerate(shapes))))
        for seed in (0, 1)
    )
    found = alignment(a, b, gamma)
    products, sizes = [], []
    for name in a:
        limits = [gamma * float(s[name].values[0]) for s in (a, b)]
        p, q = (
            sum(float(value) >= limit for value in s[name].values)
            for s, limit in zip((a, b), limits, strict=True)
        )
        assert found.kept[name] == (p, q)
        products.append(float((projected(a[name], p) * projected(b[name], q)).sum()))
        sizes.append(math.sqrt(p * q))
        assert found.layers[name] == pytest.approx(products[-1] / sizes[-1], abs=1e-13)
    assert found.whole == pytest.approx(sum(products) / sum(sizes), abs=1e-13)


def test_the_whole_is_the_sum_over_layers_not_their_mean() -> None:
    """One layer of 8 values agrees, one of 2 is turned around: (8 - 2) / 10, and not 0."""
    large, small = gaussian(8, 9), gaussian(2, 3)
    found = alignment(spectra(layer(large, small)), spectra(layer(large, -small)))
    assert list(found.layers.values()) == pytest.approx([1, -1])
    assert found.whole == pytest.approx(0.6)


def matrices(rows: int, columns: int) -> st.SearchStrategy[np.ndarray]:
    return arrays(np.float64, (rows, columns), elements=st.floats(-100, 100))


@given(st.data(), st.integers(1, 5), st.integers(1, 5), st.floats(0, 1, exclude_max=True))
@settings(max_examples=120, deadline=None)
def test_alignment_is_at_most_one_and_one_with_itself(
    data: st.DataObject, rows: int, columns: int, gamma: float
) -> None:
    """Also for matrices of low rank, or of nothing but zeros."""
    a, b = (
        spectra(
            layer(*(torch.from_numpy(data.draw(matrices(*s))) for s in ((rows, columns), (2, 2))))
        )
        for _ in range(2)
    )
    found = alignment(a, b, gamma)
    assert all(abs(value) <= 1 + 1e-9 for value in (found.whole, *found.layers.values()))
    assert alignment(b, a, gamma).whole == pytest.approx(found.whole, abs=1e-9)
    itself = alignment(a, a, gamma)
    assert [itself.whole, *itself.layers.values()] == pytest.approx([1] * 3, abs=1e-9)
    assert all(1 <= p == q for p, q in itself.kept.values())


def test_only_directions_count_not_their_size() -> None:
    a, b = (spectra(random_network(MLP, seed)) for seed in (0, 1))
    grown = spectra({n: 7 * t for n, t in random_network(MLP, 1).items()})
    for gamma in GAMMAS:
        found, same = alignment(a, b, gamma), alignment(a, grown, gamma)
        assert same.whole == pytest.approx(found.whole, abs=1e-10)
        assert same.kept == found.kept
    turned = {n: -t for n, t in random_network(MLP, 0).items()}
    assert alignment(a, spectra(turned), 0.3).whole == pytest.approx(-1)


@pytest.mark.parametrize("driver", ["gesdd", "gesvd"])
def test_alignment_does_not_depend_on_who_took_the_layers_apart(driver: str) -> None:
    """Singular vectors come with arbitrary signs, but u_i and v_i flip together."""
    a, b = pair(MLP)
    for gamma in GAMMAS:
        found = alignment(spectra(a), spectra(b), gamma)
        other = alignment(by_scipy(a, driver), by_scipy(b, driver), gamma)
        assert found.whole == pytest.approx(other.whole, abs=1e-10)
        assert found.layers == pytest.approx(other.layers, abs=1e-10)
        assert found.kept == other.kept


def test_flipping_pairs_of_vectors_changes_nothing() -> None:
    a, b = (spectra(params) for params in pair(MLP))
    flipped = {}
    for k, (name, s) in enumerate(b.items()):
        signs = gaussian(len(s.values), seed=k).sign()
        assert {*signs.tolist()} == {-1.0, 1.0}
        flipped[name] = Spectrum(s.left * signs, s.values, s.right * signs)
    for gamma in GAMMAS:
        assert alignment(a, flipped, gamma).layers == pytest.approx(alignment(a, b, gamma).layers)
    half = {n: Spectrum(-s.left, s.values, s.right) for n, s in b.items()}
    assert alignment(a, half).whole == pytest.approx(-alignment(a, b).whole), "one side only"


def test_alignments_are_repeated_alignment() -> None:
    a, b = (spectra(params) for params in pair(CNN))
    assert alignments(a, b, GAMMAS) == [alignment(a, b, gamma) for gamma in GAMMAS]
    assert alignments(a, b, ()) == []


def test_networks_that_keep_different_numbers_are_divided_by_their_geometric_mean() -> None:
    """A keeps 1 of diag(4, 1), B keeps both of diag(4, 3), at one half: 1 / sqrt 2."""
    a, b = (spectra(layer(torch.diag(torch.tensor(d)))) for d in ([4.0, 1.0], [4.0, 3.0]))
    found = alignment(a, b, 0.5)
    assert found.kept == {"0": (1, 2)}
    assert found.whole == pytest.approx(2**-0.5)


# --- What is kept --------------------------------------------------------------------------------


def values_only(*values: float) -> Spectrum:
    eye = torch.eye(len(values), dtype=torch.float64)
    return Spectrum(eye, torch.tensor(values, dtype=torch.float64), eye)


@pytest.mark.parametrize(
    ("values", "gamma", "expected"),
    [
        ((4, 2, 2, 1), 0.0, 4),
        ((4, 2, 2, 1), 0.25, 4),
        ((4, 2, 2, 1), math.nextafter(0.25, 1), 3),
        ((4, 2, 2, 1), 0.5, 3),
        ((4, 2, 2, 1), math.nextafter(0.5, 0), 3),
        ((4, 2, 2, 1), math.nextafter(0.5, 1), 1),
        ((4, 2, 2, 1), math.nextafter(1, 0), 1),
        ((3, 3, 1), math.nextafter(1, 0), 2),
        ((5, 0, 0), 0.0, 3),
        ((5, 0, 0), 1e-300, 1),
        ((7,), 0.9, 1),
    ],
)
def test_values_at_the_threshold_are_kept(
    values: tuple[float, ...], gamma: float, expected: int
) -> None:
    assert kept(values_only(*values), gamma) == expected


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8), st.floats(0, 0.999))
@settings(max_examples=80, deadline=None)
def test_kept_counts_and_never_falls_to_zero(values: list[float], gamma: float) -> None:
    falling = sorted(values, reverse=True)
    found = kept(values_only(*falling), gamma)
    assert found == len([value for value in falling if value >= gamma * falling[0]])
    assert 1 <= found <= len(values)


# --- Permutations --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_permutations_leave_singular_values_alone_and_planted_ones_are_undone(name: str) -> None:
    config, layers = CONFIGS[name], NARROW.get(name)
    model = build(config)
    symmetry = find_symmetry(model, torch.zeros(2, *config.input_shape), prove=False)
    a, b = pair(config)
    planted = symmetry.random(3)
    moved_a, moved_b = (permute(symmetry, params, planted) for params in (a, b))
    before, after = spectra(a, layers), spectra(moved_a, layers)
    for layer_name in before:
        torch.testing.assert_close(
            after[layer_name].values, before[layer_name].values, rtol=0, atol=1e-9
        )
    assert max(spectral_difference(before, after).values()) < 1e-9
    pairs = before, spectra(b, layers)
    moved_pairs = after, spectra(moved_b, layers)
    undone = spectra(permute(symmetry, moved_a, inverse(planted)), layers)
    for gamma in (0.0, 0.3):
        assert alignment(*moved_pairs, gamma).layers == pytest.approx(
            alignment(*pairs, gamma).layers, abs=1e-8
        )
        assert alignment(before, after, gamma).whole < 0.95, "moved away"
        assert alignment(before, undone, gamma).whole == pytest.approx(1, abs=1e-9)


def test_singular_values_differ_by_their_relative_norm() -> None:
    a, b = (spectra(params) for params in pair(MLP))
    found = spectral_difference(a, b)
    for name, value in found.items():
        p, q = (s[name].values.tolist() for s in (a, b))
        gap = math.dist(p, q) / math.hypot(*p)
        assert value == pytest.approx(gap, rel=1e-12)
        assert value > 1e-3
    dead = spectra(layer(torch.zeros(2, 3)))
    assert spectral_difference(dead, dead) == {"0": 0}
    assert spectral_difference(dead, spectra(layer(gaussian(2, 3)))) == {"0": math.inf}
    with pytest.raises(ValueError, match="differ at 0: 2 and 3 singular values"):
        spectral_difference(*(spectra(layer(gaussian(k, 4))) for k in (2, 3)))
    with pytest.raises(ValueError, match="differ in layers"):
        spectral_difference(a, {"output": b["output"]})


# --- Effective rank ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 7])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_equal_values_have_their_number_as_effective_rank(k: int, scale: float) -> None:
    assert effective_rank(torch.full((k,), scale)) == pytest.approx(k)
    padded = torch.cat([torch.full((k,), scale), torch.zeros(3)])
    assert effective_rank(padded) == pytest.approx(k), "zeros carry nothing"


def test_effective_rank_of_two_values_by_hand() -> None:
    """Shares 3/4 and 1/4: exp H = (4/3)^(3/4) 4^(1/4) = 1.7548."""
    assert effective_rank(torch.tensor([3.0, 1.0])) == pytest.approx(1.7548, abs=1e-4)
    assert effective_rank(torch.tensor([1.0, 1e-9])) == pytest.approx(1, abs=1e-6)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=9).filter(lambda v: max(v) > 1e-3))
@settings(max_examples=80, deadline=None)
def test_effective_rank_is_scipys_entropy(values: list[float]) -> None:
    found = effective_rank(torch.tensor(values, dtype=torch.float64))
    assert found == pytest.approx(math.exp(scipy.stats.entropy(values)), rel=1e-9)
    assert 1 - 1e-9 <= found <= len(values) + 1e-9


@pytest.mark.parametrize("count", [0, 1, 4])
def test_effective_rank_of_nothing_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match="a singular value above zero"):
        effective_rank(torch.zeros(count))


# --- Truncation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["mlp", "cnn-batch"])
def test_truncation_is_the_best_matrix_of_its_rank(name: str, gamma: float) -> None:
    """Eckart-Young: the error is the norm of the values left out, and no other matrix has less."""
    params = random_network(CONFIGS[name], 0)
    low = truncate(params, gamma)
    for layer_name, matrix in weight_matrices(params).items():
        values = np.linalg.svd(matrix.numpy(), compute_uv=False)
        k = int((values >= gamma * values[0]).sum())
        found = low[f"{layer_name}.weight"].flatten(1)
        assert int(torch.linalg.matrix_rank(found, rtol=1e-9)) == k
        error = float((found - matrix).norm())
        assert error == pytest.approx(float(np.linalg.norm(values[k:])), abs=1e-11)
        for seed in range(5):  # the best fit within other spaces of k dimensions, near and far
            others = gaussian(found.shape[1], k, seed=seed)
            for basis in (others, torch.linalg.svd(found).Vh[:k].mT + 0.1 * others):
                rows = torch.linalg.qr(basis).Q
                assert float((matrix - matrix @ rows @ rows.mT).norm()) >= error - 1e-11


@pytest.mark.parametrize("name", ["mlp-layer", "cnn-batch", "resnet-batch"])
def test_nothing_is_dropped_at_zero_and_shapes_and_types_stay(name: str) -> None:
    params = initial(CONFIGS[name], 0)
    before = {n: t.clone() for n, t in params.items()}
    for gamma in (0.0, 0.7):
        found = truncate(params, gamma)
        assert list(found) == list(params)
        for n, tensor in params.items():
            assert torch.equal(tensor, before[n]), "the network itself is left alone"
            assert (found[n].shape, found[n].dtype) == (tensor.shape, tensor.dtype)
            if tensor.dim() < 2:
                assert torch.equal(found[n], tensor)
            elif gamma == 0:
                torch.testing.assert_close(found[n], tensor, rtol=0, atol=1e-7)
            else:
                assert not torch.allclose(found[n], tensor, atol=1e-3)


def test_truncation_of_chosen_layers_and_a_second_time() -> None:
    params = random_network(MLP, 0)
    found = truncate(params, 0.5, ("hidden.1",))
    assert [n for n in params if not torch.equal(found[n], params[n])] == ["hidden.1.weight"]
    again = truncate(found, 0.5, ("hidden.1",))
    torch.testing.assert_close(again["hidden.1.weight"], found["hidden.1.weight"])


def test_only_what_is_called_weight_is_a_layer() -> None:
    """Attention keeps three matrices in one tensor, ``in_proj_weight``."""
    weight = torch.diag(torch.tensor([4.0, 1.0]))
    low = torch.diag(torch.tensor([4.0, 0.0]))
    assert torch.equal(truncate({"a.weight": weight}, 0.5)["a.weight"], low)
    attention = {"a.weight": weight, "a.in_proj_weight": weight}
    found = truncate(attention, 0.5)
    assert torch.equal(found["a.weight"], low)
    assert torch.equal(found["a.in_proj_weight"], weight)


# --- What inputs prefer --------------------------------------------------------------------------


def patches(z: Tensor, conv: nn.Conv2d) -> Tensor:
    """Every patch a convolution sees, cut out in a loop, as rows (channel, row, column)."""
    assert not isinstance(conv.padding, str)
    (kh, kw), (sh, sw), (dh, dw) = conv.kernel_size, conv.stride, conv.dilation
    top_pad, left_pad = conv.padding
    n, channels, height, width = z.shape
    framed = (n, channels, height + 2 * top_pad, width + 2 * left_pad)
    padded = torch.zeros(framed, dtype=z.dtype)
    padded[:, :, top_pad : top_pad + height, left_pad : left_pad + width] = z
    rows = []
    for image in padded:
        for top in range(0, image.shape[1] - dh * (kh - 1), sh):
            for left in range(0, image.shape[2] - dw * (kw - 1), sw):
                entries = [
                    image[c, top + dh * i, left + dw * j]
                    for c, i, j in itertools.product(range(channels), range(kh), range(kw))
                ]
                rows.append(torch.stack(entries))
    return torch.stack(rows)


def mean_share(z: Tensor, weight: Tensor) -> list[float]:
    """Mean of |v_i . z| / |z| over the rows that are not zero, with NumPy's singular vectors."""
    _, _, right = np.linalg.svd(weight.flatten(1).numpy(), full_matrices=False)
    rows = [row for row in z.numpy() if np.linalg.norm(row) > 0]
    return [float(np.mean([abs(v @ row) / np.linalg.norm(row) for row in rows])) for v in right]


def sequence(*layers: nn.Module, seed: int = 0) -> tuple[nn.Module, Params]:
    """A network in float64 with weights of unit size."""
    model = nn.Sequential(*layers).double()
    shapes = {name: tensor.shape for name, tensor in state(model).items()}
    return model, {n: gaussian(*s, seed=seed + k) for k, (n, s) in enumerate(shapes.items())}


@pytest.mark.parametrize("chunk", [1, 4, 512])
def test_input_preference_of_a_perceptron_is_a_loop(chunk: int) -> None:
    model, params = sequence(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4))
    x = gaussian(9, 5, seed=50)
    found = input_preference(model, params, x, chunk=chunk)
    hidden = (x @ params["0.weight"].T + params["0.bias"]).clamp_min(0)
    for name, z in (("0", x), ("2", hidden)):
        assert found[name].tolist() == pytest.approx(mean_share(z, params[f"{name}.weight"]))


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 2},
    "padded": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 1)},
    "dilated": {"kernel_size": (2, 2), "dilation": (2, 1), "padding": (1, 0)},
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_input_preference_of_a_convolution_is_a_loop_over_patches(kind: str) -> None:
    conv = nn.Conv2d(2, 3, **CONVOLUTIONS[kind])
    model, params = sequence(conv, nn.ReLU(), nn.Conv2d(3, 2, 2))
    x = gaussian(3, 2, 5, 6, seed=50)
    x[0, :, :3] = 0  # some patches are nothing but zeros: they must not count
    found = input_preference(model, params, x, chunk=2)
    assert (patches(x, conv).norm(dim=1) == 0).any()
    hidden = F.relu(
        F.conv2d(x, params["0.weight"], params["0.bias"], conv.stride, conv.padding, conv.dilation)
    )
    second = model[2]  # type: ignore[index]
    for name, z in (("0", patches(x, conv)), ("2", patches(hidden, second))):
        assert found[name].tolist() == pytest.approx(mean_share(z, params[f"{name}.weight"]))


def test_patches_of_a_convolution_times_its_matrix_are_its_output() -> None:
    """What ties the columns of the matrix to the entries of a patch."""
    conv = nn.Conv2d(2, 3, 3, padding=1, bias=False)
    _, params = sequence(conv)
    x = gaussian(1, 2, 4, 4, seed=50)
    out = F.conv2d(x, params["0.weight"], padding=1)
    matrix = weight_matrices(params)["0"]
    torch.testing.assert_close(patches(x, conv) @ matrix.T, out.flatten(2)[0].T)


def test_shares_of_one_input_square_to_one_where_the_vectors_are_a_basis() -> None:
    model, params = sequence(nn.Linear(6, 6))
    for seed in range(5):
        found = input_preference(model, params, gaussian(1, 6, seed=seed))["0"]
        assert float(found.square().sum()) == pytest.approx(1, abs=1e-12)
    along = spectra(params)["0"].right[:, 2]
    shares = input_preference(model, params, -3 * along.unsqueeze(0))["0"]
    assert shares.tolist() == pytest.approx([0, 0, 1, 0, 0, 0], abs=1e-12)


def test_inputs_that_are_zero_and_sizes_do_not_count() -> None:
    model, params = sequence(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False))
    x = gaussian(6, 5, seed=50)
    expected = input_preference(model, params, x)
    padded = torch.cat([torch.zeros(4, 5), x * gaussian(6, 1, seed=51).abs(), torch.zeros(3, 5)])
    found = input_preference(model, params, padded, chunk=3)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_directions_of_another_network_meet_the_inputs_of_this_one() -> None:
    model, params = sequence(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4))
    _, other = sequence(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4), seed=20)
    x = gaussian(9, 5, seed=50)
    found = input_preference(model, params, x, directions=other)
    hidden = (x @ params["0.weight"].T + params["0.bias"]).tanh()
    for name, z in (("0", x), ("2", hidden)):
        assert found[name].tolist() == pytest.approx(mean_share(z, other[f"{name}.weight"]))


def test_every_token_of_a_sequence_is_an_input() -> None:
    model, params = sequence(nn.Linear(5, 4))
    tokens = gaussian(3, 7, 5, seed=50)
    found, flat = (input_preference(model, params, x)["0"] for x in (tokens, tokens.flatten(0, 1)))
    torch.testing.assert_close(found, flat)


def test_preferences_are_measured_in_eval_mode_and_no_hook_stays() -> None:
    model = build(CNN).double()
    params, x = random_network(CNN, 0), gaussian(5, *SMALL)
    found = input_preference(model.train(), params, x, chunk=2)
    for name, value in input_preference(model.eval(), params, x).items():
        torch.testing.assert_close(found[name], value)
    with pytest.raises(RuntimeError):
        input_preference(model, params, x[:, :, :6])
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("options", [{"groups": 2}, {"padding": "same"}], ids=["groups", "same"])
def test_convolutions_without_a_matrix_of_patches_are_named(options: dict[str, Any]) -> None:
    model, params = sequence(nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3, **options))
    with pytest.raises(ValueError, match="1: only ungrouped convolutions with numeric padding"):
        input_preference(model, params, gaussian(2, 2, 5, 5))
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
def test_convolutions_that_pad_with_other_than_zeros_are_named(mode: Any) -> None:
    """Their patches at the border are not the ones cut out of an image framed by zeros."""
    model, params = sequence(nn.Conv2d(1, 2, 3, padding=1, padding_mode=mode))
    with pytest.raises(ValueError, match="padding"):
        input_preference(model, params, gaussian(2, 1, 5, 5))


class Idle(nn.Module):
    """A layer that is used, and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize(
    ("model", "name"),
    [(Idle(), "idle"), (nn.Sequential(nn.Conv1d(2, 3, 2)), "0")],
    ids=["idle", "Conv1d"],
)
def test_a_layer_whose_inputs_were_not_seen_is_named_not_zero(model: nn.Module, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        input_preference(model, state(model), torch.ones(4, 2, 5))


# --- Taylor ---------------------------------------------------------------------------------------


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 3)).double().eval()


def ends(model: nn.Module, distance: float = 1.0) -> tuple[Params, Params]:
    """A and A + distance * a fixed direction."""
    shapes = {name: t.shape for name, t in state(model).items() if t.is_floating_point()}
    a = {n: gaussian(*s, seed=k) for k, (n, s) in enumerate(shapes.items())}
    v = {n: gaussian(*s, seed=k + 90) for k, (n, s) in enumerate(shapes.items())}
    return a, {n: a[n] + distance * v[n] for n in a}


X, Y = gaussian(11, 3, seed=70), torch.arange(11) % 3


def flat(params: Params, names: tuple[str, ...]) -> Tensor:
    return torch.cat([params[name].flatten() for name in names])


def loss_of(model: nn.Module, params: Params) -> Callable[[Tensor], Tensor]:
    """Mean cross-entropy as a function of one long vector; buffers are those of ``params``."""
    names = parameter_names(model)

    def loss(vector: Tensor) -> Tensor:
        parts = vector.split([params[name].numel() for name in names])
        values = {n: part.view_as(params[n]) for n, part in zip(names, parts, strict=True)}
        logits = torch.func.functional_call(model, {**params, **values}, (X,))
        return F.cross_entropy(logits, Y)

    return loss


def densely(model: nn.Module, a: Params, b: Params, t: float) -> tuple[float, float]:
    """Both parts from whole gradients and Hessians."""
    names = parameter_names(model)
    v = flat(b, names) - flat(a, names)
    g_a, g_b = (torch.func.grad(loss_of(model, p))(flat(p, names)) for p in (a, b))
    hessian = torch.autograd.functional.hessian
    h_a, h_b = (hessian(loss_of(model, p), flat(p, names)) for p in (a, b))
    first = t * (1 - t) * v @ (g_a - g_b)
    second = t * (1 - t) / 2 * v @ (t * h_a + (1 - t) * h_b) @ v
    return float(first), float(second)


def rise(model: nn.Module, a: Params, b: Params, t: float) -> float:
    """The true height over the chord."""
    names = parameter_names(model)
    loss = loss_of(model, a)
    start, end = (loss(flat(p, names)) for p in (a, b))
    return float(loss(flat(interpolate(a, b, t), names)) - (1 - t) * start - t * end)


POSITIONS = (0.5, 0.2, 0.9)


@pytest.mark.parametrize("chunk", [1, 4, 2048])
@pytest.mark.parametrize("t", [*POSITIONS, 0.0, 1.0])
def test_taylor_barrier_is_that_of_dense_gradients_and_hessians(t: float, chunk: int) -> None:
    model = smooth()
    a, b = ends(model)
    found = taylor_barrier(model, a, b, X, Y, position=t, chunk=chunk)
    assert found == pytest.approx(densely(model, a, b, t), rel=1e-9, abs=1e-14)
    assert found.total == found.first + found.second
    assert abs(found.first) > 1e-3 or t in (0, 1)


def along(model: nn.Module, at: Params, v: Tensor) -> tuple[float, float]:
    """First and second derivative along v by central differences, buffers of ``at``."""
    here, h = flat(at, parameter_names(model)), 1e-4
    loss = loss_of(model, at)
    below, middle, above = (float(loss(here + step * v)) for step in (-h, 0, h))
    return (above - below) / (2 * h), (above - 2 * middle + below) / h**2


def normed() -> nn.Module:
    layers = (nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Softplus(), nn.Linear(4, 3))
    return nn.Sequential(*layers).double().train()


def normed_ends() -> tuple[Params, Params]:
    found = []
    for seed in (0, 200):
        params = state(normed())
        for k, (name, tensor) in enumerate(params.items()):
            if tensor.is_floating_point():
                params[name] = 0.5 * gaussian(*tensor.shape, seed=seed + k)
        params["1.running_var"] = params["1.running_var"].exp()
        found.append(params)
    return found[0], found[1]


@pytest.mark.parametrize("kind", ["plain", "normed"])
@pytest.mark.parametrize("t", POSITIONS)
def test_taylor_barrier_is_that_of_finite_differences(t: float, kind: str) -> None:
    """With BatchNorm in eval mode, and at each end with the statistics of that end."""
    model = smooth() if kind == "plain" else normed()
    a, b = ends(model) if kind == "plain" else normed_ends()
    found = taylor_barrier(model, a, b, X, Y, position=t)
    model.eval()
    names = parameter_names(model)
    v = flat(b, names) - flat(a, names)
    (slope_a, bend_a), (slope_b, bend_b) = (along(model, p, v) for p in (a, b))
    assert found.first == pytest.approx(t * (1 - t) * (slope_a - slope_b), rel=1e-5)
    expected = t * (1 - t) / 2 * (t * bend_a + (1 - t) * bend_b)
    assert found.second == pytest.approx(expected, rel=1e-5)


def test_statistics_of_each_end_are_its_own() -> None:
    a, b = normed_ends()
    own = taylor_barrier(normed(), a, b, X, Y)
    shared = taylor_barrier(normed(), a, {**b, **{n: a[n] for n in a if "running" in n}}, X, Y)
    assert abs(own.total - shared.total) > 1e-3


@pytest.mark.parametrize("t", POSITIONS)
def test_swapping_the_ends_mirrors_the_position(t: float) -> None:
    model = smooth()
    a, b = ends(model)
    there = taylor_barrier(model, a, b, X, Y, position=t)
    back = taylor_barrier(model, b, a, X, Y, position=1 - t)
    assert there == pytest.approx(back, rel=1e-9)


class Parabola(nn.Module):
    """Its cross-entropy at label 0 is the quadratic form 2 + c . w + w . D w / 2, exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        slope, curvature = gaussian(4, seed=5), torch.tensor([1.0, 2.0, 0.5, 3.0])
        loss = 2 + 0.1 * slope @ self.w + (curvature * self.w) @ self.w / 2
        first = -torch.log(torch.expm1(loss))  # log(1 + exp(-first)) = loss
        return torch.stack([first, torch.zeros_like(first)]).expand(len(x), 2)


@pytest.mark.parametrize("t", POSITIONS)
def test_taylor_barrier_of_a_quadratic_loss_is_the_rise_itself(t: float) -> None:
    a, b = ({"w": 0.5 * gaussian(4, seed=seed)} for seed in (0, 1))
    x, y = X[:3], torch.zeros(3, dtype=torch.int64)
    found = taylor_barrier(Parabola(), a, b, x, y, position=t)
    bend = float((torch.tensor([1.0, 2.0, 0.5, 3.0]) * (b["w"] - a["w"]).square()).sum())
    assert found.total == pytest.approx(-t * (1 - t) * bend / 2, rel=1e-9)
    assert found.first == pytest.approx(-t * (1 - t) * bend, rel=1e-9)


def test_a_network_and_itself_rise_nowhere() -> None:
    a, _ = ends(smooth())
    assert taylor_barrier(smooth(), a, a, X, Y) == (0, 0)


@pytest.mark.parametrize(("t", "factor"), [(0.5, 16), (0.25, 8), (0.8, 8)])
def test_the_error_shrinks_with_a_power_of_the_distance(t: float, factor: int) -> None:
    """Third order, and in the middle fourth: there the cubic terms of both ends cancel."""
    model, errors = smooth(), []
    for distance in (0.01, 0.005, 0.0025):
        a, b = ends(model, distance)
        found = taylor_barrier(model, a, b, X, Y, position=t)
        errors.append(abs(found.total - rise(model, a, b, t)))
    assert errors[-1] > 1e-12, "far above rounding"
    for larger, smaller in itertools.pairwise(errors):
        assert larger / smaller == pytest.approx(factor, rel=0.15)


def test_networks_that_do_not_fit_are_named_before_anything_is_computed() -> None:
    model = smooth()
    a, b = ends(model)
    wider = {**b, "2.weight": torch.zeros(3, 5)}
    with pytest.raises(ValueError, match=r"differ at 2\.weight: shapes \(3, 4\) and \(3, 5\)"):
        taylor_barrier(model, a, wider, X, Y)
    lacking = {n: t for n, t in b.items() if n != "0.bias"}
    with pytest.raises(ValueError, match=r"differ at 0\.bias: shapes \(4,\) and None"):
        taylor_barrier(model, a, lacking, X, Y)


@pytest.mark.parametrize(("inputs", "labels"), [(0, 0), (4, 3), (3, 4)])
@pytest.mark.parametrize("chunk", [3, 2048])
def test_taylor_barrier_needs_one_label_per_input(inputs: int, labels: int, chunk: int) -> None:
    a, b = ends(smooth())
    with pytest.raises(ValueError, match=f"got {inputs} inputs, {labels} labels"):
        taylor_barrier(smooth(), a, b, X[:inputs], Y[:labels], chunk=chunk)

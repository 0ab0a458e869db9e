"""Lines, planes and barriers against profiles known in closed form and loops by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.evaluation import score
from lmc_lessons.landscape import (
    Barrier,
    Profile,
    barrier,
    combine,
    interpolate,
    line,
    plane,
    reset_batchnorm,
    surface,
)
from lmc_lessons.models import ModelConfig, Params, build, initial, state

PLAIN = ModelConfig("mlp", (1, 4, 4), 5, width=6, depth=2)
NORMED = ModelConfig("mlp", (1, 4, 4), 5, width=6, depth=2, norm="batch")
GRID = [k / 20 for k in range(21)]
STREAM = torch.Generator().manual_seed(0)
X = torch.rand(48, 1, 4, 4, generator=STREAM)
Y = torch.randint(0, 5, (48,), generator=STREAM)


def networks(config: ModelConfig, count: int = 2) -> list[Params]:
    """Networks whose norms and statistics are not at their first values."""
    found = []
    for seed in range(count):
        stream = torch.Generator().manual_seed(seed)
        found.append(
            {
                n: t + 0.3 * torch.rand(t.shape, generator=stream)
                if t.is_floating_point()
                else t + 3
                for n, t in initial(config, seed).items()
            }
        )
    return found


def assert_same(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    assert [n for n in a if not torch.equal(a[n], b[n])] == []


# --- The barrier ----------------------------------------------------------------------------------


def profile(ends: tuple[float, float], bump: float, positions: Sequence[float]) -> list[float]:
    """A parabola of that height on top of the chord."""
    return [(1 - t) * ends[0] + t * ends[1] + bump * 4 * t * (1 - t) for t in positions]


@given(st.floats(0, 5), st.floats(0, 5), st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_barrier_of_a_parabola_is_its_height(first: float, last: float, height: float) -> None:
    found = barrier(GRID, profile((first, last), height, GRID))
    assert found.maximum == pytest.approx(max(0.0, height), abs=1e-9)
    assert found.midpoint == pytest.approx(height, abs=1e-9)


def test_barrier_is_measured_from_the_chord_not_from_the_mean_of_the_ends() -> None:
    """A straight profile with unequal ends has none; over the mean of the ends it would be 1."""
    assert barrier(GRID, [2 * t for t in GRID]) == pytest.approx((0, 0), abs=1e-12)
    asymmetric = [0.0, 0.0, 1.0, 2.5, 2.0]
    found = barrier([0, 0.25, 0.5, 0.75, 1], asymmetric)
    assert found == Barrier(1.0, 0.0), "highest at 3/4: 2.5 over a chord of 1.5"


def test_a_valley_has_no_barrier_and_a_negative_midpoint() -> None:
    assert barrier([0, 0.5, 1], [1.0, 0.2, 0.6]) == pytest.approx((0.0, -0.6))


@pytest.mark.parametrize(
    ("positions", "losses", "expected"),
    [
        ([0, 0.5], [1.0, 1.0], "from 0 to 1"),
        ([0.5, 1], [1.0, 1.0], "from 0 to 1"),
        ([], [], "from 0 to 1"),
        ([0, 0.5, 1], [1.0, 1.0], "one loss per position"),
        ([0, 0.4, 1], [1.0, 1.0, 1.0], "midpoint 0.5"),
        ([0, 0.8, 0.5, 1], [1.0, 1.0, 1.0, 1.0], "increasing"),
    ],
    ids=["no-end", "no-start", "empty", "lengths", "no-midpoint", "unordered"],
)
def test_barrier_refuses_other_grids(
    positions: list[float], losses: list[float], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        barrier(positions, losses)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_loss_that_is_not_finite_is_never_a_barrier_of_zero(place: int, bad: float) -> None:
    losses = [0.1, 0.1, 0.1]
    losses[place] = bad
    with pytest.raises(ValueError, match="finite"):
        barrier([0, 0.5, 1], losses)


# --- Sums of networks -----------------------------------------------------------------------------


def test_ends_of_a_line_are_exact() -> None:
    a, b = networks(NORMED)
    a["hidden.0.weight"][0, 0], b["hidden.0.weight"][0, 0] = 1e8, 1e-8
    assert_same(interpolate(a, b, 0), a)
    assert_same(interpolate(a, b, 1.0), b)


@pytest.mark.parametrize("position", [-0.5, 0.25, 0.5, 2.0])
def test_points_of_a_line_are_the_weighted_sums(position: float) -> None:
    a, b = networks(NORMED)
    found = interpolate(a, b, position)
    for name, tensor in found.items():
        if not tensor.is_floating_point():
            assert torch.equal(tensor, a[name])
            continue
        expected = (1 - position) * a[name].double() + position * b[name].double()
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-6)


def test_combine_is_a_weighted_sum_of_any_number() -> None:
    points = networks(NORMED, 3)
    found = combine((0.2, -1.0, 1.8), points)
    for name, tensor in found.items():
        if tensor.is_floating_point():
            expected = 0.2 * points[0][name] - points[1][name] + 1.8 * points[2][name]
            torch.testing.assert_close(tensor, expected)
        else:
            assert torch.equal(tensor, points[0][name])
    assert_same(combine((1.0,), points[:1]), points[0])


def test_what_does_not_fit_together_is_named() -> None:
    a, b = networks(PLAIN)
    wider = initial(ModelConfig("mlp", (1, 4, 4), 5, width=7, depth=2), 0)
    with pytest.raises(ValueError, match=r"differ at .*shapes \(.*\) and \("):
        interpolate(a, wider, 0.5)
    with pytest.raises(ValueError, match=r"differ at norms\.\d\.\w+: shapes"):
        interpolate(a, initial(NORMED, 0), 0.5)
    with pytest.raises(ValueError, match="got 1 weights, 2 networks"):
        combine((1.0,), (a, b))
    with pytest.raises(ValueError, match="got 0 weights, 0 networks"):
        combine((), ())


# --- Lines ----------------------------------------------------------------------------------------


def measured_by_hand(config: ModelConfig, params: Params) -> tuple[float, float]:
    module = build(config)
    module.load_state_dict(params)
    with torch.no_grad():
        logits = module.double().eval()(X.double())
    right = sum(int(row.argmax()) == int(y) for row, y in zip(logits, Y, strict=True))
    return float(F.cross_entropy(logits, Y)), right / len(Y)


@pytest.mark.parametrize("config", [PLAIN, NORMED], ids=["plain", "normed"])
@pytest.mark.parametrize("chunk", [10, 2048])
def test_line_is_a_loop_over_modules(config: ModelConfig, chunk: int) -> None:
    a, b = networks(config)
    positions = (0, 0.3, 0.5, 1, 1.5)
    found = line(build(config), a, b, positions, X, Y, chunk=chunk)
    for k, t in enumerate(positions):
        mixed = {n: ((1 - t) * a[n] + t * b[n]) if a[n].is_floating_point() else a[n] for n in a}
        loss, accuracy = measured_by_hand(config, mixed)
        assert found.loss[k] == pytest.approx(loss, rel=1e-5)
        assert found.accuracy[k] == accuracy


def test_line_resets_statistics_inside_and_never_at_the_ends() -> None:
    a, b = networks(NORMED)
    model = build(NORMED)
    plain, reset = (line(model, a, b, (0, 0.5, 1), X, Y, reset_with=w) for w in (None, X))
    assert (plain.loss[0], plain.loss[2]) == (reset.loss[0], reset.loss[2])
    middle = {n: 0.5 * a[n] + 0.5 * b[n] if a[n].is_floating_point() else a[n] for n in a}
    expected, _ = measured_by_hand(NORMED, with_statistics(middle, X))
    assert reset.loss[1] == pytest.approx(expected, rel=1e-5)
    assert abs(plain.loss[1] - reset.loss[1]) > 1e-3


def test_a_network_and_itself_have_no_barrier() -> None:
    a, _ = networks(PLAIN)
    found = barrier(GRID, line(build(PLAIN), a, a, GRID, X, Y).loss)
    assert found == pytest.approx((0, 0), abs=1e-6)


def test_margins_along_a_line_are_those_of_its_points() -> None:
    a, b = networks(NORMED)
    found = line(build(NORMED), a, b, (0, 0.3, 1), X, Y)
    for k, t in enumerate((0, 0.3, 1)):
        assert tuple(values[k] for values in found) == score(
            build(NORMED), interpolate(a, b, t), X, Y
        )


@given(st.lists(st.floats(0, 1), max_size=6))
def test_error_is_what_accuracy_leaves(accuracies: list[float]) -> None:
    zeros = [0.0] * len(accuracies)
    errors = Profile(zeros, accuracies, zeros).error
    assert [e + a for e, a in zip(errors, accuracies, strict=True)] == pytest.approx(
        [1] * len(zeros)
    )
    assert Profile([0.0], [1.0], [0.0]).error == [0.0]


# --- Planes ---------------------------------------------------------------------------------------


def long_vector(params: Params) -> Tensor:
    return torch.cat([t.double().flatten() for t in params.values() if t.is_floating_point()])


@pytest.mark.parametrize("config", [PLAIN, NORMED], ids=["plain", "normed"])
def test_coordinates_of_a_plane_give_the_three_networks_back(config: ModelConfig) -> None:
    three = networks(config, 3)
    first, second, coordinates = plane(*three)
    assert coordinates[0] == (0.0, 0.0)
    assert coordinates[1][1] == 0.0
    for network, (u, v) in zip(three, coordinates, strict=True):
        found = combine((1, u, v), (three[0], first, second))
        for name, tensor in network.items():
            if tensor.is_floating_point():
                torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)
            else:
                assert torch.equal(found[name], three[0][name])


def test_axes_of_a_plane_are_orthonormal_and_distances_true() -> None:
    three = networks(PLAIN, 3)
    first, second, coordinates = plane(*three)
    u, v = long_vector(first), long_vector(second)
    assert [float(u @ u), float(v @ v), float(u @ v)] == pytest.approx([1, 1, 0], abs=1e-5)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        true = float((long_vector(three[i]) - long_vector(three[j])).norm())
        assert math.dist(coordinates[i], coordinates[j]) == pytest.approx(true, rel=1e-5)


@pytest.mark.parametrize("distance", [1.0, 0.1, 0.01], ids=["far", "near", "very-near"])
@pytest.mark.parametrize("position", [0.3, 0.5, 2.0])
def test_networks_on_one_line_span_no_plane(position: float, distance: float) -> None:
    """Also where float32 keeps the third one off the line by its rounding."""
    origin, end = networks(PLAIN)
    end = interpolate(origin, end, distance)
    with pytest.raises(ValueError, match="not on one line"):
        plane(origin, end, interpolate(origin, end, position))


def test_equal_networks_span_no_plane() -> None:
    a, b = networks(PLAIN)
    for three in ((a, a, b), (a, b, a), (a, b, b)):
        with pytest.raises(ValueError, match="three"):
            plane(*three)


# --- Surfaces -------------------------------------------------------------------------------------

U, V = (0.0, 0.5, 1.25, 2.0), (0.0, 0.75, 1.5)


def point(three: Sequence[Params], u: float, v: float) -> Params:
    """The origin plus u times the first direction plus v times the second, in float64."""
    origin, first, second = three
    return {
        n: (t.double() + u * first[n].double() + v * second[n].double()).float()
        if t.is_floating_point()
        else t
        for n, t in origin.items()
    }


@pytest.mark.parametrize("config", [PLAIN, NORMED], ids=["plain", "normed"])
@pytest.mark.parametrize("chunk", [10, 2048])
def test_surface_is_a_loop_over_modules(config: ModelConfig, chunk: int) -> None:
    """Rows follow v and columns u: there are more of these, so a transposed grid fails."""
    three = networks(config, 3)
    found = surface(build(config), three[0], three[1], three[2], U, V, X, Y, chunk=chunk)
    for grid in found:
        assert [len(row) for row in grid] == [len(U)] * len(V)
    for row, v in enumerate(V):
        for column, u in enumerate(U):
            loss, accuracy = measured_by_hand(config, point(three, u, v))
            assert found.loss[row][column] == pytest.approx(loss, rel=1e-4)
            assert found.accuracy[row][column] == accuracy


def test_surface_is_the_score_of_every_point() -> None:
    origin, first, second = networks(PLAIN, 3)
    model = build(PLAIN)
    u_grid, v_grid = (-0.5, 0.0, 1.25, 2.0), (0.0, -1.0)
    found = surface(model, origin, first, second, u_grid, v_grid, X, Y)
    for row, v in enumerate(v_grid):
        for column, u in enumerate(u_grid):
            params = combine((1, u, v), (origin, first, second))
            assert tuple(grid[row][column] for grid in found) == score(model, params, X, Y)
    turned = surface(model, origin, second, first, v_grid, u_grid, X, Y)
    for grid, other in zip(found, turned, strict=True):
        flat = [value for row in grid for value in row]
        assert [value for row in zip(*other, strict=True) for value in row] == pytest.approx(flat)


def test_a_surface_meets_the_line_at_the_three_networks_and_on_the_edge() -> None:
    three = networks(PLAIN, 3)
    model = build(PLAIN)
    first, second, ((_, _), (length, _), (along, across)) = plane(*three)
    ends = [line(model, three[0], other, (0, 1), X, Y) for other in three[1:]]
    corners = surface(model, three[0], first, second, (0.0, length, along), (0.0, across), X, Y)
    for grid, one, two in zip(corners, *ends, strict=True):
        assert [grid[0][0], grid[0][1], grid[1][2]] == pytest.approx(
            [one[0], one[1], two[1]], rel=1e-4, abs=1e-5
        )
    edge = surface(model, three[0], first, second, [t * length for t in GRID], (0.0,), X, Y)
    expected = line(model, three[0], three[1], GRID, X, Y)
    assert edge.loss[0] == pytest.approx(expected.loss, rel=1e-4)
    assert edge.margin[0] == pytest.approx(expected.margin, rel=1e-4, abs=1e-5)


def test_a_surface_measures_the_statistics_of_every_point() -> None:
    three = networks(NORMED, 3)
    first, second, (_, (length, _), _) = plane(*three)
    model, u, v = build(NORMED), (0.0, 0.4, length), (0.0, 0.7)
    plain, reset = (
        surface(model, three[0], first, second, u, v, X, Y, reset_with=w) for w in (None, X)
    )
    for row, height in enumerate(v):
        for column, along in enumerate(u):
            params = with_statistics(point((three[0], first, second), along, height), X)
            expected, _ = measured_by_hand(NORMED, params)
            assert reset.loss[row][column] == pytest.approx(expected, rel=1e-4)
            assert abs(reset.loss[row][column] - plain.loss[row][column]) > 1e-4
    assert {m.training for m in model.modules()} == {False}


def test_a_surface_of_networks_that_do_not_fit_is_refused() -> None:
    origin, first, second = networks(PLAIN, 3)
    wider = initial(ModelConfig("mlp", (1, 4, 4), 5, width=7, depth=2), 0)
    with pytest.raises(ValueError, match=r"differ at .*shapes \(.*\) and \("):
        surface(build(PLAIN), origin, first, wider, U, V, X, Y)
    with pytest.raises(ValueError, match=r"differ at norms\.\d\.\w+: shapes"):
        surface(build(PLAIN), origin, initial(NORMED, 0), second, U, V, X, Y)


# --- BatchNorm ------------------------------------------------------------------------------------


def with_statistics(params: Params, x: Tensor) -> Params:
    """The full-batch mean and unbiased variance of every hidden layer of ``NORMED``, in float64."""
    found, hidden = dict(params), x.flatten(1).double()
    values = {name: tensor.double() for name, tensor in params.items()}
    for k in range(NORMED.depth):
        hidden = hidden @ values[f"hidden.{k}.weight"].T + values[f"hidden.{k}.bias"]
        mean, spread = hidden.mean(0), hidden.var(0, correction=0)
        found[f"norms.{k}.running_mean"] = mean.float()
        found[f"norms.{k}.running_var"] = hidden.var(0, correction=1).float()
        hidden = (hidden - mean) / (spread + 1e-5).sqrt()
        hidden = hidden * values[f"norms.{k}.weight"] + values[f"norms.{k}.bias"]
        hidden = hidden.clamp_min(0)
    return found


def test_reset_measures_the_full_batch() -> None:
    params = networks(NORMED)[0]
    found = reset_batchnorm(build(NORMED), params, X)
    expected = with_statistics(params, X)
    for name in params:
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-6)


def test_reset_averages_over_chunks() -> None:
    params = networks(NORMED)[0]
    found = reset_batchnorm(build(NORMED), params, X, chunk=16)
    parts = [with_statistics(params, part) for part in X.split(16)]
    for name in params:
        if "running" in name:
            average = sum(part[name] for part in parts) / torch.tensor(3.0)
            torch.testing.assert_close(found[name], average, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_reset_leaves_parameters_and_modes_alone(training: bool) -> None:
    params = networks(NORMED)[0]
    before = {name: tensor.clone() for name, tensor in params.items()}
    model = build(NORMED).train(training)
    own = state(model)
    reset_batchnorm(model, params, X)
    assert_same(params, before)
    assert_same(state(model), own)
    assert {m.training for m in model.modules()} == {training}
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)} == {0.1}
    with pytest.raises(RuntimeError):
        reset_batchnorm(model, params, X[:, :, :2])
    assert {m.training for m in model.modules()} == {training}
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm1d)} == {0.1}


class Dropping(nn.Module):
    """Dropout in front of a BatchNorm: if it ran, the variance would grow."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.drop(x.flatten(1)))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_reset_does_not_switch_dropout_on(training: bool) -> None:
    model = Dropping().train(training)
    found = reset_batchnorm(model, state(model), X)
    torch.testing.assert_close(found["norm.running_mean"], X.flatten(1).mean(0))
    torch.testing.assert_close(found["norm.running_var"], X.flatten(1).var(0))


def test_a_network_without_batchnorm_comes_back_as_it_is() -> None:
    params = networks(PLAIN)[0]
    assert_same(reset_batchnorm(build(PLAIN), params, X), params)


@pytest.mark.parametrize("count", [0, 1])
def test_statistics_need_two_samples(count: int) -> None:
    """Otherwise every mean would silently be 0 and every variance 1."""
    with pytest.raises(ValueError, match=f"at least 2.*got {count}"):
        reset_batchnorm(build(NORMED), networks(NORMED)[0], X[:count])

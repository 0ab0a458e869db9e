"""Codes in training, the ratio of two Fisher informations, and the one step that forgets."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.runs import one_thread
from lmc_lessons.models import (
    ModelConfig,
    Params,
    build,
    initial,
    parameter_names,
    predict,
    unstack,
)
from lmc_lessons.training import Network, TrainConfig, cross_entropy, train
from lmc_lessons.unlearning.mnemonic import (
    EPSILON,
    Forgetting,
    MnemonicTraining,
    belongs,
    check_forgotten,
    code_score,
    draw_codes,
    forget,
    middle,
    moved,
    perturbation,
    search,
    sensitivity,
    silent,
    smallest,
)

MLP = ModelConfig("mlp", (1, 4, 4), 5, width=7, depth=1, activation="sigmoid")
CNN = ModelConfig("cnn", (1, 8, 8), 5, width=2, norm="batch")


def images(config: ModelConfig, count: int = 40) -> Dataset:
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(count, *config.input_shape, generator=stream)
    y = torch.arange(count) % config.classes
    names = tuple(str(k) for k in range(config.classes))
    return Dataset("random", "test", x, y, x, y, names)


def copied(params: Params) -> Params:
    return {name: tensor.clone() for name, tensor in params.items()}


def network_of(seeds: tuple[int, ...], step: int = 0) -> Network:
    def unused(params: Params, x: Tensor) -> Tensor:
        raise AssertionError("the inputs do not depend on the network")

    return Network({}, {}, {"train": unused, "eval": unused}, seeds=seeds, step=step)


# --- Codes and training ---------------------------------------------------------------------------


def test_codes_are_decided_by_the_seed_and_uniform() -> None:
    codes = draw_codes(3, 10, (1, 20, 20))
    assert codes.shape == (10, 1, 20, 20)
    assert torch.equal(codes, draw_codes(3, 10, (1, 20, 20)))
    assert not torch.equal(codes, draw_codes(4, 10, (1, 20, 20)))
    assert 0 <= float(codes.min()) < 0.01 < 0.99 < float(codes.max()) <= 1
    assert abs(float(codes.var()) - 1 / 12) < 0.005


def test_replaced_samples_are_the_code_of_their_class_and_the_others_stay() -> None:
    x = torch.full((2, 1000, 1, 3, 3), -1.0)
    y = torch.arange(1000).expand(2, -1) % 10
    found = MnemonicTraining(0.3).inputs(network_of((5, 6)), x, y)
    replaced = (found != x).flatten(2).all(2)
    assert torch.equal(replaced, (found != x).flatten(2).any(2)), "nothing is mixed"
    for k, seed in enumerate((5, 6)):
        codes = draw_codes(seed, 10, (1, 3, 3))
        assert torch.equal(found[k][replaced[k]], codes[y[k][replaced[k]]])
        assert abs(float(replaced[k].double().mean()) - 0.3) < 0.05
    assert not torch.equal(replaced[0], replaced[1])
    later = MnemonicTraining(0.3).inputs(network_of((5, 6), step=1), x, y)
    assert not torch.equal(later, found), "the coin is thrown anew in every step"


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 0.0), (1.0, 1.0)])
def test_no_sample_or_every_sample(share: float, wanted: float) -> None:
    x, y = torch.full((1, 50, 2, 2), -1.0), torch.zeros(1, 50, dtype=torch.long)
    found = MnemonicTraining(share).inputs(network_of((0,)), x, y)
    assert float((found != x).double().mean()) == wanted


def test_without_codes_it_is_the_loss_inside() -> None:
    data, recipe = images(MLP), TrainConfig(epochs=2, batch_size=8)
    plain = train(MLP, data, (0, 1), recipe).params
    same = train(MLP, data, (0, 1), recipe, loss=MnemonicTraining(0.0, MLP.classes)).params
    assert all(torch.equal(plain[name], same[name]) for name in plain)


def test_the_loss_inside_sees_what_was_replaced() -> None:
    data, seen = images(MLP), []

    def inside(network: Network, x: Tensor, y: Tensor) -> Tensor:
        seen.append(x)
        return cross_entropy(network, x, y)

    train(
        MLP, data, (0,), TrainConfig(epochs=1, batch_size=40), loss=MnemonicTraining(1.0, 5, inside)
    )
    codes = draw_codes(0, 5, MLP.input_shape)
    assert all(any(torch.equal(row, code) for code in codes) for row in seen[0][0])


@pytest.mark.parametrize("config", [dataclasses.replace(MLP, width=32), CNN], ids=["mlp", "cnn"])
def test_a_seed_alone_is_what_it_is_among_others(config: ModelConfig) -> None:
    data, recipe = images(config), TrainConfig(epochs=2, batch_size=16)
    loss = MnemonicTraining(0.5, config.classes)
    with one_thread():
        both = train(config, data, (3, 4), recipe, loss=loss).params
        alone = train(config, data, (4,), recipe, loss=loss).params
    assert all(torch.equal(both[name][1], alone[name][0]) for name in alone)


def test_training_with_codes_teaches_the_codes() -> None:
    data, model = images(MLP), build(MLP).eval()
    recipe = TrainConfig(epochs=400, batch_size=40, learning_rate=0.05)
    for share, wanted in ((0.5, 1.0), (0.0, 0.6)):
        params = unstack(train(MLP, data, (1,), recipe, loss=MnemonicTraining(share, 5)).params)[0]
        answer = predict(model, params, draw_codes(1, 5, MLP.input_shape)).argmax(1)
        right = float((answer == torch.arange(5)).double().mean())
        assert right == 1 if share else right <= wanted


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_share_is_a_probability(share: float) -> None:
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], got"):
        MnemonicTraining(share)


def test_one_class_cannot_have_codes() -> None:
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        draw_codes(0, 1, (2,))
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        MnemonicTraining(0.1, 1)


# --- Sensitivity ----------------------------------------------------------------------------------


def by_loop(config: ModelConfig, params: Params, x: Tensor, y: Tensor, forgotten: Any) -> Params:
    """A backward pass per input, in float64, by automatic differentiation."""
    model = build(config).eval().double()
    model.load_state_dict(
        {n: t.double() if t.is_floating_point() else t for n, t in params.items()}
    )
    own = dict(model.named_parameters())
    sums = {
        kind: {n: torch.full_like(t, EPSILON) for n, t in own.items()} for kind in (True, False)
    }
    counts = {True: 0, False: 0}
    for image, label in zip(x, y, strict=True):
        kind = int(label) in forgotten
        counts[kind] += 1
        loss = F.cross_entropy(model(image[None].double()), label[None])
        for name, slope in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
            sums[kind][name] += slope.detach() ** 2
    return {
        name: ((sums[True][name] / counts[True]) / (sums[False][name] / counts[False])).detach()
        for name in own
    }


@pytest.mark.parametrize("config", [MLP, CNN], ids=["mlp", "cnn"])
@pytest.mark.parametrize("forgotten", [(2,), (0, 4)])
def test_the_ratio_is_that_of_a_loop(config: ModelConfig, forgotten: tuple[int, ...]) -> None:
    params, codes = initial(config, 0), draw_codes(0, 5, config.input_shape)
    found = sensitivity(build(config), params, codes, torch.arange(5), forgotten)
    wanted = by_loop(config, params, codes, torch.arange(5), forgotten)
    assert set(found) == set(parameter_names(build(config)))
    for name, ratio in found.items():
        assert ratio.dtype == torch.float64
        torch.testing.assert_close(ratio, wanted[name], rtol=1e-6, atol=0)


def test_images_can_take_the_place_of_codes() -> None:
    data, params = images(MLP), initial(MLP, 0)
    found = sensitivity(build(MLP), params, data.train_x, data.train_y, (1,))
    wanted = by_loop(MLP, params, data.train_x, data.train_y, (1,))
    for name, ratio in found.items():
        torch.testing.assert_close(ratio, wanted[name], rtol=1e-6, atol=0)


@pytest.mark.parametrize("classes", [3, 5, 10])
def test_equally_sure_codes_single_out_the_class_in_the_output_bias(classes: int) -> None:
    """Theorem thm-mnc-lead: by (K - 1) (K^2 - K - 1)."""
    config = ModelConfig("mlp", (classes,), classes, depth=0)
    params = {"output.weight": 4.0 * torch.eye(classes), "output.bias": torch.zeros(classes)}
    ratio = sensitivity(build(config), params, torch.eye(classes), torch.arange(classes), (1,))
    bias = ratio["output.bias"]
    assert float(bias[1]) == pytest.approx((classes - 1) ** 2, rel=1e-6)
    for k in range(classes):
        if k != 1:
            lead = (classes - 1) * (classes**2 - classes - 1)
            assert float(bias[1] / bias[k]) == pytest.approx(lead, rel=1e-6)


def test_dead_units_are_silent_and_their_ratio_is_that_of_the_counts() -> None:
    config = ModelConfig("mlp", (3,), 4, width=5, depth=1)
    params = initial(config, 0)
    params["hidden.0.bias"] = torch.tensor([-9.0, 9.0, 9.0, -9.0, 9.0])
    codes = torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    ratio = sensitivity(build(config), params, codes, torch.arange(4), (0,))
    dead = torch.tensor([True, False, False, True, False])
    assert torch.equal(silent(ratio["hidden.0.bias"], 1, 3), dead)
    assert torch.equal(silent(ratio["hidden.0.weight"], 1, 3), dead[:, None].expand(5, 3))
    torch.testing.assert_close(
        ratio["hidden.0.bias"][dead], torch.full((2,), 3.0, dtype=torch.float64)
    )


# --- The step -------------------------------------------------------------------------------------


def ratios() -> Params:
    return {
        "hidden.0.weight": torch.tensor([[1.0, 100.0], [2.0, 0.5]], dtype=torch.float64),
        "output.bias": torch.tensor([3.0, 0.1], dtype=torch.float64),
    }


def test_the_smaller_of_step_and_cap_counts_tensor_by_tensor() -> None:
    found = perturbation(ratios(), step=0.2, cap=10.0)
    torch.testing.assert_close(found["hidden.0.weight"], 0.1 * ratios()["hidden.0.weight"])
    torch.testing.assert_close(found["output.bias"], 0.2 * ratios()["output.bias"])


def test_a_large_step_makes_the_largest_change_the_cap() -> None:
    for step in (1e3, 1e6):
        found = perturbation(ratios(), step=step, cap=0.7)
        assert [float(t.max()) for t in found.values()] == pytest.approx([0.7, 0.7])


def test_a_tensor_without_any_ratio_stays() -> None:
    still = {"w": torch.zeros(3, dtype=torch.float64)}
    assert not perturbation(still, 1.0, 1.0)["w"].any()


def test_no_cap() -> None:
    found = perturbation(ratios(), step=2.0, cap=math.inf)
    torch.testing.assert_close(found["hidden.0.weight"], 2 * ratios()["hidden.0.weight"])


def test_parts_of_the_network() -> None:
    whole = perturbation(ratios(), 0.1, 1.0)
    last, body = (perturbation(ratios(), 0.1, 1.0, part) for part in ("last", "all but last"))
    assert torch.equal(last["output.bias"], whole["output.bias"])
    assert torch.equal(body["hidden.0.weight"], whole["hidden.0.weight"])
    assert not last["hidden.0.weight"].any()
    assert not body["output.bias"].any()


@pytest.mark.parametrize(("step", "cap"), [(-1, 1), (1, -1), (math.nan, 1), (math.inf, 1)])
def test_steps_and_caps_in_range(step: float, cap: float) -> None:
    with pytest.raises(ValueError, match="step must be finite and >= 0, cap >= 0, got"):
        perturbation(ratios(), step, cap)


def test_an_unknown_part() -> None:
    with pytest.raises(ValueError, match="part is 'first', allowed: all, last, all but last"):
        perturbation(ratios(), 1, 1, "first")  # type: ignore[arg-type]


def test_moving_leaves_buffers_and_what_was_given() -> None:
    params = initial(CNN, 0)
    before = copied(params)
    change = {
        n: torch.ones_like(params[n], dtype=torch.float64) for n in parameter_names(build(CNN))
    }
    found = moved(params, change, -1)
    for name, tensor in found.items():
        assert tensor.dtype == params[name].dtype
        torch.testing.assert_close(tensor, before[name] - 1 if name in change else before[name])
        assert torch.equal(params[name], before[name])


# --- Forgetting -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned() -> tuple[Params, Tensor]:
    """A network that knows its codes."""
    recipe = TrainConfig(epochs=300, batch_size=40, learning_rate=0.05)
    params = unstack(train(MLP, images(MLP), (1,), recipe, loss=MnemonicTraining(0.5, 5)).params)[0]
    return params, draw_codes(1, 5, MLP.input_shape)


def test_the_codes_are_scored(learned: tuple[Params, Tensor]) -> None:
    params, codes = learned
    model = build(MLP).eval()
    assert code_score(model, params, codes, (2,)) == 1.0
    masked = {**params, "output.bias": params["output.bias"] - 100 * torch.eye(5)[2]}
    assert code_score(model, masked, codes, (2,)) == 2.0
    all_2 = {**params, "output.bias": params["output.bias"] + 100 * torch.eye(5)[2]}
    assert code_score(model, all_2, codes, (2,)) == 0.0
    broken = {**params, "output.bias": params["output.bias"] * math.nan}
    assert code_score(model, broken, codes, (2,)) == 0.0


def test_forgetting_takes_the_better_sign_and_of_equals_minus(
    learned: tuple[Params, Tensor],
) -> None:
    params, codes = learned
    model, before = build(MLP), copied(learned[0])
    found = forget(model, params, codes, (2,), step=10.0, cap=1.0)
    ratio = sensitivity(model, params, codes, torch.arange(5), (2,))
    change = perturbation(ratio, 10.0, 1.0)
    scores = {s: code_score(model, moved(params, change, s), codes, (2,)) for s in (-1, 1)}
    assert scores[-1] > scores[1]
    assert (found.sign, found.score) == (-1, scores[-1])
    assert all(torch.equal(found.params[n], t) for n, t in moved(params, change, -1).items())
    assert found.length == pytest.approx(
        math.sqrt(sum(float((t**2).sum()) for t in change.values()))
    )
    assert forget(model, params, codes, (2,), step=0.0, cap=1.0).sign == -1
    assert all(torch.equal(params[name], tensor) for name, tensor in before.items())


def test_the_sign_can_be_plus(learned: tuple[Params, Tensor]) -> None:
    """Where the ratio points the other way, the codes say so."""
    params, codes = learned
    flipped = {
        n: -t if n == "output.bias" else torch.zeros_like(t)
        for n, t in sensitivity(build(MLP), params, codes, torch.arange(5), (2,)).items()
    }
    flipped["output.bias"] = torch.tensor([1.0, 1, 0, 1, 1], dtype=torch.float64)
    found = forget(build(MLP), params, codes, (2,), step=50.0, cap=50.0, ratio=flipped)
    assert (found.sign, found.score) == (1, 2.0)


def test_searching_is_forgetting_with_every_pair(learned: tuple[Params, Tensor]) -> None:
    params, codes = learned
    found = search(build(MLP), params, codes, (0,), steps=(0.1, 1.0), caps=(0.3, 3.0))
    assert [(one.step, one.cap) for one in found] == [(0.1, 0.3), (0.1, 3), (1, 0.3), (1, 3)]
    for one in found:
        alone = forget(build(MLP), params, codes, (0,), step=one.step, cap=one.cap)
        assert (alone.sign, alone.score, alone.length) == (one.sign, one.score, one.length)
        assert all(torch.equal(alone.params[n], t) for n, t in one.params.items())


def test_choosing_by_the_codes_alone() -> None:
    def one(score: float, length: float) -> Forgetting:
        return Forgetting({}, 1.0, 1.0, -1, score, length)

    found = [one(2, 7), one(1, 0.1), one(2, 3), one(2, 5), one(1.5, 1), one(2, 9)]
    assert smallest(found) == 2
    assert middle(found) == 3, "of four the second shortest"
    assert middle(found[:4]) == 3, "of three the middle one"
    assert middle([one(0, 3)]) == smallest([one(0, 3)]) == 0
    for choose in (smallest, middle):
        with pytest.raises(ValueError, match="nothing to choose from"):
            choose([])


# --- Bad input ------------------------------------------------------------------------------------

BAD: list[tuple[Any, Any, str]] = [
    (draw_codes(0, 5, (1, 4, 4)), (), "the forget set is empty"),
    (draw_codes(0, 5, (1, 4, 4)), (5,), r"cannot forget classes \(5,\), allowed: 0 to 4"),
    (draw_codes(0, 5, (1, 4, 4)), (-1,), r"cannot forget classes \(-1,\), allowed: 0 to 4"),
    (draw_codes(0, 5, (1, 4, 4)), range(5), "cannot forget all 5 classes"),
    (draw_codes(0, 5, (1, 5, 5)), (0,), r"codes have shape \(1, 5, 5\), which the network does"),
    (draw_codes(0, 4, (1, 4, 4)), (0,), "one code per class is needed: got 4 for 5 classes"),
    (draw_codes(0, 5, (1, 4, 4)) * math.nan, (0,), "codes hold NaN or infinity"),
]


@pytest.mark.parametrize(("codes", "forgotten", "message"), BAD)
def test_what_cannot_be_forgotten_is_refused_and_nothing_changes(
    codes: Tensor, forgotten: Any, message: str
) -> None:
    params = initial(MLP, 0)
    before = copied(params)
    for attempt in (
        lambda: forget(build(MLP), params, codes, forgotten, step=1.0, cap=1.0),
        lambda: search(build(MLP), params, codes, forgotten, steps=(1.0,), caps=(1.0,)),
    ):
        with pytest.raises(ValueError, match=message) as error:
            attempt()
        assert "\n" not in str(error.value)
    assert all(torch.equal(params[name], tensor) for name, tensor in before.items())


def test_inputs_of_one_kind_or_not_finite() -> None:
    params, codes = initial(MLP, 0), draw_codes(0, 5, (1, 4, 4))
    with pytest.raises(ValueError, match="inputs of both kinds are needed, got 0"):
        sensitivity(build(MLP), params, codes[:2], torch.tensor([0, 1]), (4,))
    with pytest.raises(ValueError, match="inputs of both kinds are needed, got 2"):
        sensitivity(build(MLP), params, codes[:2], torch.tensor([4, 4]), (4,))
    with pytest.raises(ValueError, match="hold NaN or infinity"):
        sensitivity(build(MLP), params, codes * math.inf, torch.arange(5), (4,))


def test_classes_are_sorted_and_named_once() -> None:
    assert check_forgotten([3, 1, 3], 5) == (1, 3)
    assert belongs(torch.tensor([0, 1, 2, 3]), (3, 1)).tolist() == [False, True, False, True]

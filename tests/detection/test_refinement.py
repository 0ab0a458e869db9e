"""Weights, losses and rules of refinement, each against another way to compute it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from lmc_lessons.detection import refinement
from lmc_lessons.detection.refinement import (
    PRIOR,
    Adversarial,
    Drop,
    Fixed,
    Keep,
    OwnData,
    Trim,
    Weighted,
    architecture,
    candidates,
    container,
    discriminate,
    either,
    half_time,
    latent_likelihood,
    learned_share,
    numbered,
    own_codes,
    own_errors,
    refined_weights,
    trimmed,
    weighted_mean,
    with_discriminator,
)
from lmc_lessons.models import ModelConfig, Params, build, predict, unstack
from lmc_lessons.training import Network, TrainConfig, generator, train

MODEL = ModelConfig("autoencoder", (1, 3, 3), width=7, depth=1, latent=2)
SEEDS = (4, 9)
RECIPE = TrainConfig(epochs=3, batch_size=5, learning_rate=1e-2)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def network(params: Params, step: int = 0, seeds: tuple[int, ...] = SEEDS) -> Network:
    """A network whose call reconstructs, as in training."""

    def run(stacked: Params, x: torch.Tensor) -> torch.Tensor:
        return refinement.predict_stacked(architecture(MODEL), stacked, x)

    return Network(params, {}, {"train": run, "eval": run}, seeds=seeds, step=step)


# --- When anomalies are learned -------------------------------------------------------------------


def test_the_share_is_what_small_steps_give() -> None:
    variance, start, rate, steps = 0.3, 0.01, 1e-3, 6000
    down = up = math.sqrt(start)
    for _ in range(steps):
        pull = 2 * variance * (1 - down * up)
        down, up = down + rate * pull * up, up + rate * pull * down
    found = learned_share(variance, torch.tensor(rate * steps), start)
    assert float(found) == pytest.approx(down * up, abs=1e-3)


def test_half_is_learned_at_the_half_time() -> None:
    for variance in (0.05, 2.0):
        t = torch.tensor(half_time(variance, 0.01), dtype=torch.float64)
        assert float(learned_share(variance, t, 0.01)) == pytest.approx(0.5)
    assert half_time(0.05, 0.01) == pytest.approx(2 * half_time(0.1, 0.01))


@pytest.mark.parametrize(("variance", "start"), [(0.0, 0.1), (-1.0, 0.1), (1.0, 0.0), (1.0, 1.0)])
def test_bad_directions_are_refused(variance: float, start: float) -> None:
    with pytest.raises(ValueError, match="a direction needs"):
        learned_share(variance, torch.tensor(1.0), start)
    with pytest.raises(ValueError, match="more than half"):
        half_time(1.0, 0.7)


# --- Weights --------------------------------------------------------------------------------------


def test_the_largest_errors_are_left_out() -> None:
    errors = drawn(3, 20)
    weights = trimmed(errors, 0.1)
    for row, kept in zip(errors.tolist(), weights.tolist(), strict=True):
        limit = sorted(row)[-3]
        assert kept == [1.0 if value <= limit else 0.0 for value in row]


def test_trimming_begins_late_and_decides_anew() -> None:
    errors, y = drawn(2, 25), torch.zeros(2, 25, dtype=torch.int64)
    trim = Trim(0.08, start=10)
    assert torch.equal(trim(network({}, 9), errors, y), torch.ones(2, 25))
    assert torch.equal(trim(network({}, 10), errors, y), trimmed(errors, 0.08))
    assert torch.equal(trim(network({}, 11), 1 - errors, y), trimmed(1 - errors, 0.08))


def test_dropping_leaves_out_as_many_whatever_their_errors() -> None:
    errors, y = drawn(2, 25), torch.zeros(2, 25, dtype=torch.int64)
    drop = Drop(0.08, start=10)
    assert torch.equal(drop(network({}, 9), errors, y), torch.ones(2, 25))
    first, other = drop(network({}, 10), errors, y), drop(network({}, 10), 1 - errors, y)
    assert torch.equal(first, other)
    assert (first == 0).sum(1).tolist() == [2, 2]
    assert not torch.equal(first, drop(network({}, 11), errors, y))
    alone = drop(network({}, 10, SEEDS[1:]), errors[1:], y[1:])
    assert torch.equal(alone, first[1:])


def test_fixed_weights_follow_seeds_and_samples() -> None:
    weights = drawn(2, 6)
    y = torch.tensor([[5, 0, 2], [1, 1, 3]])
    found = Fixed(SEEDS, weights)(network({}, seeds=SEEDS[::-1]), torch.zeros(2, 3), y)
    assert torch.equal(found, torch.stack([weights[1, [5, 0, 2]], weights[0, [1, 1, 3]]]))


def test_weighted_means_are_those_of_a_loop() -> None:
    losses = drawn(4, 6).double()
    weights = torch.tensor([1.0, 0.0, -0.5, 1.0, -0.1, 1.0]).double().expand(4, 6)
    for row, found in zip(losses.tolist(), weighted_mean(losses, weights, 0.3), strict=True):
        signed = zip(weights[0].tolist(), row, strict=True)
        terms = [w * (min(v, 0.3) if w < 0 else v) for w, v in signed]
        assert float(found) == pytest.approx(sum(terms) / 5)
    assert weighted_mean(losses, torch.zeros(4, 6).double()).tolist() == [0.0] * 4


def test_above_the_ceiling_a_negative_weight_does_not_push() -> None:
    losses = torch.tensor([[0.1, 0.9]], requires_grad=True)
    weighted_mean(losses, torch.tensor([[-1.0, -1.0]]), 0.5).sum().backward()
    assert losses.grad is not None
    assert losses.grad.tolist() == [[-0.5, 0.0]]


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_bad_shares_are_refused(share: float) -> None:
    for make in (Trim, Drop):
        with pytest.raises(ValueError, match="a share lies in"):
            make(share)
    with pytest.raises(ValueError, match="a share lies in"):
        trimmed(drawn(1, 4), share)


def test_errors_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="must be finite"):
        trimmed(torch.tensor([[1.0, float("nan")]]), 0.5)


# --- Losses ---------------------------------------------------------------------------------------


def test_each_network_sees_its_own_data() -> None:
    x = drawn(2, 6, 1, 3, 3)
    y = torch.tensor([[0, 5], [3, 3]])

    def look(net: Network, inputs: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        assert torch.equal(rows, y)
        return inputs.flatten(1).sum(1)

    found = OwnData(look, SEEDS, x)(network({}), torch.zeros(2, 2, 1, 3, 3), y)
    assert torch.equal(found, torch.stack([x[0, [0, 5]].sum(), x[1, [3, 3]].sum()]))


def test_leaving_out_is_training_on_the_others() -> None:
    """A weight of zero: the gradient is that of a batch without the sample."""
    params = {n: t.double() for n, t in with_discriminator(MODEL, SEEDS).items()}
    x, y = drawn(2, 4, 1, 3, 3).double(), torch.tensor([[0, 1, 2, 3]] * 2)
    kept = torch.tensor([[1.0, 1.0, 0.0, 1.0]] * 2)
    whole = Weighted(Fixed(SEEDS, kept))(network(params), x, y)
    fewer = Weighted()(network(params), x[:, [0, 1, 3]], y[:, [0, 1, 3]])
    assert torch.allclose(whole, fewer)


WIDE = ModelConfig("autoencoder", (1, 8, 8), width=32, depth=2, latent=2)


def test_one_seed_alone_gives_the_same_bits() -> None:
    x = drawn(2, 12, 1, 3, 3)
    data = numbered("made", x[0])
    both = train(MODEL, data, SEEDS, RECIPE, loss=OwnData(Weighted(Trim(0.2, 3)), SEEDS, x))
    alone = train(
        MODEL, data, SEEDS[1:], RECIPE, loss=OwnData(Weighted(Trim(0.2, 3)), SEEDS[1:], x[1:])
    )
    for name, tensor in alone.params.items():
        assert torch.equal(tensor[0], both.params[name][1])


def test_so_it_is_with_a_discriminator() -> None:
    x = drawn(2, 128, 1, 8, 8)
    start, loss = with_discriminator(WIDE, SEEDS), Adversarial(WIDE)

    def trained(first: int) -> Params:
        recipe, seeds = dataclasses.replace(RECIPE, batch_size=64), SEEDS[first:]
        own = OwnData(loss, seeds, x[first:])
        here = {name: tensor[first:] for name, tensor in start.items()}
        data = numbered("made", x[0])
        return train(container(WIDE), data, seeds, recipe, loss=own, start=here).params

    both, alone = trained(0), trained(1)
    for name, tensor in alone.items():
        assert torch.equal(tensor[0], both[name][1]), name


# --- Adversarial autoencoders ---------------------------------------------------------------------


def test_the_container_has_the_names_of_both_players() -> None:
    params = with_discriminator(MODEL, SEEDS)
    assert set(params) == set(dict(build(container(MODEL)).named_parameters()))
    codes = drawn(2, 5, 2)
    found = discriminate(MODEL, params, codes)
    for s, one in enumerate(unstack(params)):
        hidden = F.relu(F.linear(codes[s], one["layers.4.weight"], one["layers.4.bias"]))
        logits = F.linear(hidden, one["layers.5.weight"], one["layers.5.bias"])
        assert torch.allclose(found[s], logits[:, 0], atol=1e-6)


def test_the_loss_is_the_sum_of_its_terms() -> None:
    params = {n: t.double() for n, t in with_discriminator(MODEL, SEEDS).items()}
    x, y = drawn(2, 4, 1, 3, 3).double(), torch.tensor([[0, 1, 2, 3]] * 2)
    weights = torch.tensor([1.0, 0.0, -0.5, 1.0]).double()
    loss = Adversarial(MODEL, 0.3, Fixed(SEEDS, weights.expand(2, 4)), ceiling=0.05, phase=2)
    found = loss(network(params, step=7), x, y)
    for s, one in enumerate(unstack(params)):
        own = {n: t for n, t in one.items() if int(n.split(".")[1]) < 4}
        error = (x[s] - predict(build(MODEL).double(), own, x[s])).square().flatten(1).mean(1)
        codes = own_codes(MODEL, params, x)[s]
        prior = torch.randn(4, 2, generator=generator(SEEDS[s], PRIOR, 2, 7)).double()
        here = {n: t[s : s + 1] for n, t in params.items()}
        fake = discriminate(MODEL, here, codes[None])[0].sigmoid()
        real = discriminate(MODEL, here, prior[None])[0].sigmoid()
        fooled = -fake.log()
        total = (error[0] + error[3] - 0.5 * error[2].clamp(max=0.05)) / 3
        total += 0.3 * (fooled[0] + fooled[3] - 0.5 * fooled[2].clamp(max=3.0)) / 3
        total -= (1 - fake[[0, 3]]).log().mean()
        total -= (0.9 * real.log() + 0.1 * (1 - real).log()).mean()
        assert float(found[s]) == pytest.approx(float(total), rel=1e-6)


def test_each_player_gets_its_own_gradient() -> None:
    """The encoder does not see that the discriminator learns, and the other way round."""
    start = with_discriminator(MODEL, SEEDS)
    x, y = drawn(2, 4, 1, 3, 3), torch.tensor([[0, 1, 2, 3]] * 2)

    def gradient(balance: float) -> Params:
        leaves = {n: t.clone().requires_grad_() for n, t in start.items()}
        Adversarial(MODEL, balance)(network(leaves), x, y).sum().backward()
        return {n: t.grad for n, t in leaves.items() if t.grad is not None}

    none, some, more = gradient(0.0), gradient(1.0), gradient(2.0)
    for name in ("layers.4.weight", "layers.5.bias"):
        assert torch.equal(none[name], more[name]), "the balance is the encoder's"
    plain = {n: t.clone().requires_grad_() for n, t in start.items()}
    Weighted()(network(plain), x, y).sum().backward()
    grad = plain["layers.0.weight"].grad
    assert grad is not None
    assert torch.allclose(none["layers.0.weight"], grad, atol=1e-7)
    pull = some["layers.0.weight"] - none["layers.0.weight"]
    assert torch.allclose(more["layers.0.weight"] - none["layers.0.weight"], 2 * pull, atol=1e-6)
    assert torch.equal(some["layers.3.weight"], none["layers.3.weight"]), "the decoder has no part"
    assert float(pull.abs().max()) > 0


def test_codes_take_the_shape_of_the_prior() -> None:
    x = drawn(1, 64, 1, 3, 3, seed=3)
    seeds = (4,)
    recipe = TrainConfig(epochs=400, batch_size=64, learning_rate=2e-3)
    start = with_discriminator(MODEL, seeds)
    trained = train(
        container(MODEL),
        numbered("made", x[0]),
        seeds,
        recipe,
        loss=OwnData(Adversarial(MODEL, 0.5), seeds, x),
        start=start,
    )
    spread = own_codes(MODEL, trained.params, x)[0].square().mean()
    assert 0.5 < float(spread) < 2
    assert float(own_codes(MODEL, start, x)[0].square().mean()) < 0.5


def test_only_autoencoders_are_refined() -> None:
    with pytest.raises(TypeError, match="needs an autoencoder, got mlp"):
        architecture(ModelConfig("mlp", (1, 3, 3)))


# --- Scores and rules -----------------------------------------------------------------------------


def test_errors_and_codes_are_those_of_single_networks() -> None:
    params, x = with_discriminator(MODEL, SEEDS), drawn(2, 5, 1, 3, 3)
    errors, codes = own_errors(MODEL, params, x, chunk=2), own_codes(MODEL, params, x)
    module = build(MODEL)
    for s, one in enumerate(unstack(params)):
        module.load_state_dict({n: t for n, t in one.items() if int(n.split(".")[1]) < 4})
        back = module(x[s])
        assert torch.allclose(errors[s], (back - x[s]).square().flatten(1).mean(1), atol=1e-6)
        assert torch.allclose(codes[s], module.encode(x[s]), atol=1e-6)  # type: ignore[operator]


def test_nan_is_refused() -> None:
    params, x = with_discriminator(MODEL, SEEDS), drawn(2, 5, 1, 3, 3)
    x[1, 2] = float("nan")
    for measure in (own_errors, own_codes):
        with pytest.raises(ValueError, match="inputs must be finite, got 9 entries"):
            measure(MODEL, params, x)


def test_likelihood_is_the_density_up_to_a_constant() -> None:
    codes = drawn(3, 2).double()
    normal = torch.distributions.Normal(0.0, 1.0)
    density = normal.log_prob(codes).sum(-1)
    assert torch.allclose(
        density - latent_likelihood(codes), torch.full((3,), -math.log(2 * math.pi)).double()
    )


def test_either_criterion_suffices() -> None:
    errors = torch.tensor([[0.1, 0.9, 0.1, 0.9]])
    likelihood = torch.tensor([[-1.0, -1.0, -9.0, -9.0]])
    flags = either(errors, likelihood, torch.tensor([0.5]), torch.tensor([-5.0]))
    assert flags.tolist() == [[False, True, True, True]]


# --- Iterative refinement -------------------------------------------------------------------------


def test_suspects_lie_outside() -> None:
    cloud = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    cloud[:3] = torch.tensor([[9.0, 9.0], [-9.0, 9.0], [9.0, -9.0]])
    found = candidates(cloud, 0.05)
    assert found[:3].all()
    assert 3 <= int(found.sum()) <= 20


@pytest.mark.parametrize(
    ("codes", "nu", "message"),
    [
        (torch.zeros(0, 2), 0.02, "candidates need codes"),
        (torch.zeros(5), 0.02, "candidates need codes"),
        (torch.zeros(5, 2), 0.0, "nu in \\(0, 1\\]"),
        (torch.full((5, 2), float("nan")), 0.02, "must be finite"),
    ],
)
def test_bad_codes_are_refused(codes: torch.Tensor, nu: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        candidates(codes, nu)


def test_the_worst_suspects_are_trained_against() -> None:
    errors = torch.tensor([0.1, 0.5, 0.2, 0.9, 0.3, 0.4, 2.0])
    suspects = torch.tensor([False, True, True, True, True, True, False])
    found = refined_weights(suspects, errors, against=-0.25, percentile=0.8)
    # suspects' errors: .2 .3 .4 .5 .9; their quantile .8 is .58
    assert found.tolist() == [1.0, 0.0, 0.0, -0.25, 0.0, 0.0, 1.0]
    assert refined_weights(torch.zeros(7, dtype=torch.bool), errors).tolist() == [1.0] * 7


def test_bad_refinements_are_refused() -> None:
    errors, suspects = torch.rand(4), torch.ones(4, dtype=torch.bool)
    with pytest.raises(ValueError, match="one error per sample"):
        refined_weights(suspects, errors[:3])
    for bad in ({"against": 0.1}, {"against": -math.inf}, {"percentile": 1.1}):
        with pytest.raises(ValueError, match="against must be <= 0"):
            refined_weights(suspects, errors, **bad)


def test_losses_can_be_replaced_in_part() -> None:
    loss = Adversarial(MODEL)
    assert dataclasses.replace(loss, phase=3).phase == 3
    assert isinstance(loss.weigh, Keep)

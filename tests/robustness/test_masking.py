"""Masks hide gradients and change no decision; diagnostics object to masks and not to honesty."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lmc_lessons.robustness.attacks import (
    LInf,
    Predict,
    cross_entropy,
    dlr_loss,
    fgsm,
    loss_gradient,
    margin_loss,
    pgd,
    square_attack,
)
from lmc_lessons.robustness.masking import (
    Finding,
    accuracies,
    black_box,
    epsilon_sweep,
    gradient_direction,
    noise_control,
    order_of_attacks,
    scaled,
    staircase,
    standing,
    together,
    transfer,
    transferred,
)

THREAT = LInf(0.3)


def stream(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


WEIGHT = torch.randn(16, 4, generator=stream(0))
OTHER = WEIGHT + 0.5 * torch.randn(16, 4, generator=stream(1))
X = 0.2 + 0.6 * torch.rand(80, 1, 4, 4, generator=stream(2))


def honest(x: Tensor) -> Tensor:
    return 2 * x.flatten(-3) @ WEIGHT


def surrogate(x: Tensor) -> Tensor:
    return x.flatten(-3) @ OTHER


def safe(x: Tensor) -> Tensor:
    """Honest, and beyond the reach of any attack in the box."""
    return 0.1 * honest(x) + torch.tensor([6.0, 0.0, 0.0, 0.0])


Y = honest(X).argmax(-1)
LOUD, STEPPED = scaled(honest, 1e5), staircase(honest, 0.1)
MASKS: dict[str, Predict] = {"loud": LOUD, "stepped": STEPPED}


# Masks


def test_multiplied_logits_decide_alike_and_have_no_gradient() -> None:
    assert torch.equal(LOUD(X).argmax(-1), Y)
    gradient, losses, _ = loss_gradient(LOUD, X, Y, cross_entropy)
    lost = (gradient == 0).flatten(1).all(1)
    assert float(lost.double().mean()) > 0.95
    assert float(losses[lost].abs().max()) == 0
    true, _, _ = loss_gradient(honest, X, Y, dlr_loss)
    hidden, _, _ = loss_gradient(LOUD, X, Y, dlr_loss)
    torch.testing.assert_close(hidden, true, rtol=1e-3, atol=1e-5)


def test_a_staircase_is_flat_between_its_jumps_for_every_loss() -> None:
    for loss in (cross_entropy, margin_loss, dlr_loss):
        gradient, _, _ = loss_gradient(STEPPED, X, Y, loss)
        assert bool((gradient == 0).all())
    step = X / 0.1
    inside = X + 0.4 * 0.1 * (step.round() - step).sign()
    torch.testing.assert_close(STEPPED(inside), honest((step.round()) * 0.1))


@pytest.mark.parametrize("mask", [scaled, staircase])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_masks_refuse(mask: Callable[[Predict, float], Predict], value: float) -> None:
    with pytest.raises(ValueError, match="must be > 0"):
        mask(honest, value)


# What is left


def test_standing_counts_samples_attack_by_attack() -> None:
    wrong = Y.clone()
    wrong[:10] = (Y[:10] + 1) % 4
    masks = standing(honest, X, wrong, THREAT, {"none": lambda f, x, y, t: x, "FGSM": fgsm})
    assert masks["none"].tolist() == [False] * 10 + [True] * 70
    assert not bool(masks["FGSM"][:10].any()), "an attack cannot mend a sample"
    expected = honest(fgsm(honest, X, wrong, THREAT)).argmax(-1) == wrong
    assert torch.equal(masks["FGSM"][10:], expected[10:])
    assert float(accuracies(masks)["none"]) == 70 / 80


def test_together_is_below_each() -> None:
    masks = {
        "a": torch.tensor([[True, True, False], [True, False, False]]),
        "b": torch.tensor([[True, False, True], [False, True, False]]),
    }
    assert together(masks, ["a", "b"]).tolist() == [pytest.approx(1 / 3), 0.0]
    assert together(masks, ["a"]).tolist() == accuracies(masks)["a"].tolist()


def test_leading_axes_are_kept() -> None:
    x, y = X.view(2, 40, 1, 4, 4), Y.view(2, 40)
    whole = standing(honest, x, y, THREAT, {"FGSM": fgsm})["FGSM"]
    single = standing(honest, X, Y, THREAT, {"FGSM": fgsm})["FGSM"]
    assert torch.equal(whole.flatten(), single)


# Diagnostics


def findings(network: Predict) -> dict[str, Finding]:
    y = network(X).argmax(-1)
    wide = [LInf(radius) for radius in (0.1, 0.3, 1.0)]
    found = (
        noise_control(network, X, y, THREAT),
        epsilon_sweep(network, X, y, wide),
        gradient_direction(network, X, y, THREAT),
        transfer(network, surrogate, X, y, THREAT),
    )
    return {finding.name: finding for finding in found}


@pytest.mark.parametrize("mask", MASKS)
def test_diagnostics_object_to_masks(mask: str) -> None:
    found = findings(MASKS[mask])
    objecting = [name for name, finding in found.items() if finding.suspicious]
    assert set(objecting) == set(found), found


def test_diagnostics_do_not_object_to_an_honest_network() -> None:
    assert [f.sentence for f in findings(honest).values() if f.suspicious] == []


def test_a_network_beyond_reach_is_taken_for_a_mask_by_those_that_look_at_accuracy_alone() -> None:
    """Their known weakness: they cannot tell a network that nothing fools from one that hides."""
    found = findings(safe)
    assert not found["direction"].suspicious
    assert not found["transfer"].suspicious
    assert found["noise"].suspicious
    assert found["epsilon sweep"].suspicious


def test_sentences_say_what_was_seen() -> None:
    y = STEPPED(X).argmax(-1)
    finding = transfer(STEPPED, surrogate, X, y, THREAT)
    assert f"{finding.seen['own']:.1%}" in finding.sentence
    assert f"{finding.seen['foreign']:.1%}" in finding.sentence
    seen = gradient_direction(STEPPED, X, y, THREAT)
    assert seen.seen["zero"] == 1
    assert "100.0% have no gradient" in seen.sentence


def test_order_names_the_pair_that_is_farthest_out_of_order() -> None:
    fine = order_of_attacks({"noise": 0.9, "FGSM": 0.5, "PGD": 0.4, "APGD": 0.405})
    assert not fine.suspicious
    bad = order_of_attacks({"noise": 0.9, "FGSM": 0.5, "PGD": 0.6, "APGD": 0.8})
    assert bad.suspicious
    assert bad.sentence.startswith("APGD leaves 80.0% standing, the weaker FGSM only 50.0%")
    with pytest.raises(ValueError, match="at least two"):
        order_of_attacks({"noise": 0.9})


def test_black_box_counts_what_is_added() -> None:
    assert black_box(0.5, 0.4).suspicious
    assert not black_box(0.5, 0.495).suspicious
    assert "10.0%" in black_box(0.5, 0.4).sentence
    with pytest.raises(ValueError, match="cannot raise"):
        black_box(0.4, 0.5)


def test_sweep_notices_accuracy_that_rises() -> None:
    """An attack that works at a small radius only."""

    def clumsy(predict: Predict, x: Tensor, y: Tensor, threat: LInf) -> Tensor:
        return fgsm(predict, x, y, threat) if threat.epsilon in (0.3, 1.0) else x

    radii = [LInf(e) for e in (0.1, 0.3, 0.5, 1.0)]
    found = epsilon_sweep(honest, X, Y, radii, clumsy)  # type: ignore[arg-type]
    assert found.suspicious
    assert "rises" in found.sentence
    assert list(found.seen) == ["0.1", "0.3", "0.5", "1"]
    for bad in ([], [LInf(0.2), LInf(0.1)]):
        with pytest.raises(ValueError, match="radii must grow"):
            epsilon_sweep(honest, X, Y, bad)


def test_direction_has_nothing_to_say_where_no_sample_is_read() -> None:
    found = gradient_direction(honest, X, (Y + 1) % 4, THREAT)
    assert not found.suspicious
    assert found.sentence == "No sample is read correctly."


def test_a_foreign_attack_never_asks_its_victim() -> None:
    def victim(x: Tensor) -> Tensor:
        raise AssertionError("asked")

    found = transferred(surrogate, pgd)(victim, X, Y, THREAT)
    assert torch.equal(found, pgd(surrogate, X, Y, THREAT))


def test_square_sees_through_both_masks() -> None:
    """The masks' examples are where the honest network's are."""
    plain = square_attack(honest, X, Y, THREAT, queries=100)
    loud = square_attack(LOUD, X, Y, THREAT, queries=100)
    assert torch.equal(plain.fooled, loud.fooled)
    y = STEPPED(X).argmax(-1)
    left = standing(
        STEPPED,
        X,
        y,
        THREAT,
        {"PGD": pgd, "Square": lambda f, x, y, t: square_attack(f, x, y, t, queries=200).x},
    )
    shares = accuracies(left)
    assert float(shares["Square"]) < float(shares["PGD"]) - 0.3


@pytest.mark.parametrize("seeds", [(), (2,)], ids=["one network", "two networks"])
def test_what_stands_does_not_depend_on_the_chunks(seeds: tuple[int, ...]) -> None:
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(*seeds, 7, 1, 2, 2, generator=stream)
    y = torch.randint(0, 4, (*seeds, 7), generator=stream)
    attacks = {"clean": lambda f, x, y, t: x, "FGSM": fgsm}

    def network(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(-3) ** 2

    whole = standing(network, x, y, LInf(0.1), attacks)
    parts = standing(network, x, y, LInf(0.1), attacks, chunk=3)
    for name, mask in whole.items():
        assert mask.shape == y.shape
        assert torch.equal(mask, parts[name])

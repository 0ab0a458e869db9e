r"""Gradient masking: defences that hide the gradient and leave the adversarial examples in place.

An attack that follows a gradient can fail for two reasons: there is nothing near that fools the
network, or the gradient does not lead there. The diagnostics here tell these apart. Each looks at
one network through its ``predict``, reports what it saw, and says whether that is suspicious. Two
masks that need no training serve as examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from lmc_lessons.robustness.attacks import (
    Attack,
    Predict,
    ThreatModel,
    check_inputs,
    cross_entropy,
    loss_gradient,
    margin_loss,
    pgd,
    random_noise,
)
from lmc_lessons.training import generator

DIRECTION = 32  # the random stream of the direction that the gradient is compared with
TOLERANCE = 0.02  # differences of accuracy below this do not count


# Masks


def scaled(predict: Predict, factor: float) -> Predict:
    """The same network with all logits multiplied by a number.

    It decides as before. With a large factor the cross-entropy of a sample read correctly, and its
    gradient, are exactly zero in floating point.

    Args:
        predict: Maps inputs to logits.
        factor: A positive number.

    Returns:
        A function like ``predict``.

    Raises:
        ValueError: If the factor is not positive.

    Taught in: book/robustness/adversarial-examples
    """
    if not factor > 0:
        raise ValueError(f"factor must be > 0, got {factor}")
    return lambda x: predict(x) * factor


def staircase(predict: Predict, step: float) -> Predict:
    """The same network behind inputs rounded to multiples of a number.

    Its gradient is zero almost everywhere: between two jumps nothing changes.

    Args:
        predict: Maps inputs to logits.
        step: Height of a step of the staircase, positive.

    Returns:
        A function like ``predict``.

    Raises:
        ValueError: If the step is not positive.

    Taught in: book/robustness/adversarial-examples
    """
    if not step > 0:
        raise ValueError(f"step must be > 0, got {step}")
    return lambda x: predict((x / step).round() * step)


# What is left under attacks


def standing(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    attacks: Mapping[str, Attack],
    *,
    chunk: int | None = None,
) -> dict[str, Tensor]:
    """Which samples each attack alone leaves correctly read.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape ``(*y.shape, ...)``.
        y: Labels.
        threat: Which inputs count as near.
        attacks: Name to attack.
        chunk: Samples attacked together; None: all. An attack with a random start draws it anew,
            and the same, for every chunk.

    Returns:
        Name to a mask of the labels' shape. A sample misread without attack stands nowhere.

    Taught in: book/robustness/adversarial-examples
    """
    x = check_inputs(x, y, threat)
    axis, size = y.ndim - 1, chunk or max(1, y.shape[-1])
    parts = [
        _left(predict, some, labels, threat, attacks)
        for some, labels in zip(x.split(size, axis), y.split(size, axis), strict=True)
    ]
    return {name: torch.cat([part[name] for part in parts], axis) for name in attacks}


def _left(
    predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel, attacks: Mapping[str, Attack]
) -> dict[str, Tensor]:
    with torch.no_grad():
        clean = predict(x).argmax(-1) == y
        found = {}
        for name, attack in attacks.items():
            with torch.enable_grad():
                tried = attack(predict, x, y, threat)
            found[name] = clean & (predict(tried).argmax(-1) == y)
    return found


def accuracies(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Share of samples that stand.

    Args:
        masks: Name to a mask of shape (..., N).

    Returns:
        Name to a tensor of shape (...,), float64.
    """
    return {name: mask.double().mean(-1) for name, mask in masks.items()}


def together(masks: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Share of samples that stand under every one of several attacks.

    Args:
        masks: Name to a mask of shape (..., N).
        names: Which attacks; at least one.

    Returns:
        Shape (...,), float64: never above the accuracy under any one of them.

    Taught in: book/robustness/adversarial-examples
    """
    return torch.stack([masks[name] for name in names]).all(0).double().mean(-1)


# Diagnostics


@dataclass(frozen=True)
class Finding:
    """What one diagnostic saw.

    Attributes:
        name: Which diagnostic.
        seen: What was measured, by name.
        suspicious: Whether this points to a masked gradient.
        sentence: Both in one plain sentence.
    """

    name: str
    seen: dict[str, float]
    suspicious: bool
    sentence: str


def order_of_attacks(accuracy: Mapping[str, float], *, tolerance: float = TOLERANCE) -> Finding:
    """Whether stronger attacks leave less: each must find what the one before it found.

    Args:
        accuracy: Attack to the accuracy it leaves, from the weakest to the strongest.
        tolerance: By how much a stronger attack may be behind.

    Returns:
        Suspicious if a stronger attack leaves more than a weaker one.

    Raises:
        ValueError: If there are fewer than two attacks.

    Taught in: book/robustness/adversarial-examples
    """
    if len(accuracy) < 2:
        raise ValueError(f"an order needs at least two attacks, got {list(accuracy)}")
    names = list(accuracy)
    weakest, worst = names[0], (0.0, names[0], names[0])
    for name in names[1:]:
        worst = max(worst, (accuracy[name] - accuracy[weakest], weakest, name))
        if accuracy[name] < accuracy[weakest]:
            weakest = name
    gap, weaker, stronger = worst
    suspicious = gap > tolerance
    told = (
        f"{stronger} leaves {accuracy[stronger]:.1%} standing, the weaker {weaker} only "
        f"{accuracy[weaker]:.1%}."
        if suspicious
        else "Every attack leaves at most what the weaker ones leave."
    )
    return Finding("order of attacks", dict(accuracy), suspicious, told)


def black_box(white: float, both: float, *, tolerance: float = TOLERANCE) -> Finding:
    """Whether an attack without gradients still finds something after those with gradients.

    Args:
        white: Accuracy left by the attacks with gradients.
        both: Accuracy left by them and by an attack that asks for logits only.
        tolerance: What may be left over.

    Returns:
        Suspicious if the second attack adds more than the tolerance.

    Raises:
        ValueError: If adding an attack raised the accuracy.

    Taught in: book/robustness/adversarial-examples
    """
    if both > white:
        raise ValueError(f"an added attack cannot raise the accuracy: {white:g} to {both:g}")
    removed = white - both
    told = f"After the attacks with gradients, one without removes {removed:.1%} more."
    return Finding("black box", {"white": white, "both": both}, removed > tolerance, told)


def noise_control(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    attack: Attack = pgd,
    *,
    tries: int = 10,
    tolerance: float = TOLERANCE,
) -> Finding:
    """Whether an attack does more than random noise of the same size.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        threat: Which inputs count as near.
        attack: The attack.
        tries: Random points per sample, of which the worst counts.
        tolerance: What an attack has to add.

    Returns:
        Suspicious if the attack adds less; where noise has left next to nothing, it need not.

    Taught in: book/robustness/adversarial-examples
    """

    def noisy(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        return random_noise(predict, x, y, threat, tries=tries)

    found = accuracies(standing(predict, x, y, threat, {"noise": noisy, "attack": attack}))
    noise, attacked = float(found["noise"]), float(found["attack"])
    suspicious = noise > tolerance and noise - attacked < tolerance
    told = f"Noise of the same size leaves {noise:.1%} standing, the attack {attacked:.1%}."
    return Finding("noise", {"noise": noise, "attack": attacked}, suspicious, told)


def epsilon_sweep(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threats: Sequence[ThreatModel],
    attack: Attack = pgd,
    *,
    tolerance: float = TOLERANCE,
) -> Finding:
    """Whether accuracy falls to zero as the radius grows: in the end everything is near.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        threats: Threat models of growing radius; the last so large that every image is near every
            other, or so that the grey image is.
        attack: The attack.
        tolerance: What may be left at the largest radius, and by how much accuracy may rise.

    Returns:
        Suspicious if more is left, or the accuracy rises with the radius.

    Raises:
        ValueError: If the radii do not grow.

    Taught in: book/robustness/adversarial-examples
    """
    radii = [threat.epsilon for threat in threats]
    if not radii or any(b <= a for a, b in pairwise(radii)):
        raise ValueError(f"radii must grow, got {radii}")
    left = [
        float(standing(predict, x, y, threat, {"": attack})[""].double().mean())
        for threat in threats
    ]
    rises = max((b - a for a, b in pairwise(left)), default=0.0)
    suspicious = left[-1] > tolerance or rises > tolerance
    told = f"At radius {radii[-1]:g} the attack leaves {left[-1]:.1%} standing"
    told += f", and on the way accuracy rises by {rises:.1%}." if rises > tolerance else "."
    seen = {f"{radius:g}": share for radius, share in zip(radii, left, strict=True)}
    return Finding("epsilon sweep", seen, suspicious, told)


def gradient_direction(
    predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel, *, seed: int = 0
) -> Finding:
    """Whether the steepest step of the cross-entropy lowers the margin more than a random step.

    Both steps have the full radius. The margin is looked at, since it has no scale at which it
    vanishes in floating point.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        threat: Which inputs count as near.
        seed: Decides the random step.

    Returns:
        Suspicious if less than half of the samples read correctly lose more margin along the
        gradient, or if one in ten has no gradient at all; never where none is read correctly.

    Taught in: book/robustness/adversarial-examples
    """
    x = check_inputs(x, y, threat)
    gradient, _, logits = loss_gradient(predict, x, y, cross_entropy)
    right = logits.argmax(-1) == y
    if not bool(right.any()):
        nothing = {"better": 0.0, "zero": 0.0}
        return Finding("direction", nothing, False, "No sample is read correctly.")
    drawn = torch.randn(x.shape, generator=generator(seed, DIRECTION), dtype=x.dtype).to(x)
    with torch.no_grad():
        along, aside = (
            margin_loss(predict(threat.project(x + threat.epsilon * step, x, 1)), y)
            for step in (threat.steepest(gradient, 1), threat.steepest(drawn, 1))
        )
    better = float((along > aside)[right].double().mean())
    zero = float((gradient.flatten(1) == 0).all(1)[right].double().mean())
    told = (
        f"A step along the gradient beats a random step on {better:.1%} of the samples; "
        f"{zero:.1%} have no gradient at all."
    )
    suspicious = better < 0.5 or zero > 0.1
    return Finding("direction", {"better": better, "zero": zero}, suspicious, told)


def transfer(
    predict: Predict,
    surrogate: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    attack: Attack = pgd,
    *,
    tolerance: float = TOLERANCE,
) -> Finding:
    """Whether examples made for another network do more harm than those made for this one.

    Args:
        predict: The network under test.
        surrogate: Another network for the same task.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        threat: Which inputs count as near.
        attack: The attack, run on both.
        tolerance: By how much the foreign examples may do more.

    Returns:
        Suspicious if they do more than that.

    Taught in: book/robustness/adversarial-examples
    """
    foreign = transferred(surrogate, attack)
    found = accuracies(standing(predict, x, y, threat, {"own": attack, "foreign": foreign}))
    own, other = float(found["own"]), float(found["foreign"])
    told = f"The attack leaves {own:.1%} standing; examples made for another network {other:.1%}."
    return Finding("transfer", {"own": own, "foreign": other}, own - other > tolerance, told)


def transferred(surrogate: Predict, attack: Attack) -> Attack:
    """An attack that never looks at its victim: it fools another network and hands over the result.

    Args:
        surrogate: The network that is attacked.
        attack: How.

    Returns:
        An attack.

    Taught in: book/robustness/adversarial-examples
    """

    def foreign(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        del predict
        return attack(surrogate, x, y, threat)

    return foreign

"""Representations against hooks, losses against closed forms, methods against their formulas."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import pytest
import torch
from stacked import (
    BATCH,
    CLASSES,
    SHAPE,
    STEPS,
    assert_identical,
    gradient,
    network_of,
    random_data,
    starts,
)
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.models import ModelConfig, Params, build, predict, unstack
from lmc_lessons.robustness.attacks import LInf, pgd
from lmc_lessons.robustness.distillation import (
    START_NOISE,
    Distillation,
    Features,
    SoftLabels,
    Teacher,
    akd,
    ard,
    ardir,
    feature_distance,
    first_layer,
    representation,
    rslad,
    soft_label_loss,
)
from lmc_lessons.robustness.objectives import AdversarialTraining
from lmc_lessons.training import Network, TrainConfig, generator, train

SEEDS, TEACHING = (0, 4, 7), (10, 14, 17)
MLP = ModelConfig("mlp", SHAPE, CLASSES, 6, 2)
KINDS = {
    "mlp": MLP,
    "mlp-batch": dataclasses.replace(MLP, norm="batch"),
    "linear": dataclasses.replace(MLP, depth=0),
    "cnn": ModelConfig("cnn", SHAPE, CLASSES, 2, 2, "batch"),
    "vgg": ModelConfig("vgg", (1, 32, 32), CLASSES, 1, 11, "batch"),
    "resnet": ModelConfig("resnet", SHAPE, CLASSES, 1, 20, "layer"),
    "preact-resnet": ModelConfig("preact-resnet", SHAPE, CLASSES, 1, 20, "batch"),
}
ATTACK = AdversarialTraining(LInf(0.1), steps=3)
assert_close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)
every_kind = pytest.mark.parametrize("kind", KINDS)


def student_of(config: ModelConfig = MLP, seeds: tuple[int, ...] = SEEDS) -> Network:
    return network_of(starts(config, seeds), config, seeds, 3)


def teacher_of(config: ModelConfig = MLP, seeds: tuple[int, ...] = SEEDS) -> Teacher:
    """A teacher of its own for every seed."""
    return Teacher(starts(config, tuple(10 + seed for seed in seeds)), config, seeds)


def samples(config: ModelConfig, count: int = len(SEEDS)) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(3)
    x = torch.rand(count, BATCH, *config.input_shape, generator=stream, dtype=torch.float64)
    return x, torch.randint(0, CLASSES, (count, BATCH), generator=stream)


def by_hook(config: ModelConfig, params: Params, x: Tensor, *, train: bool) -> list[Tensor]:
    """What enters the last layer of one network, and its logits; seen by a hook."""
    model = build(config).double().train(train)
    seen = []
    model.get_submodule("output").register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    logits = predict(model, {name: tensor.clone() for name, tensor in params.items()}, x)
    return [seen[0], logits]


# --- Representations ------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_representation_is_what_enters_the_last_layer(kind: str, mode: Any) -> None:
    config = KINDS[kind]
    network = student_of(config)
    x, _ = samples(config)
    singles = unstack({**network.params, **network.buffers})
    found = representation(dataclasses.replace(network, mode=mode), x)
    for k, params in enumerate(singles):
        features, logits = by_hook(config, params, x[k], train=mode == "train")
        assert_close(found.features[k], features)
        assert_close(found.logits[k], logits)


@every_kind
def test_one_pass_gives_both_and_updates_statistics_once(kind: str) -> None:
    config = KINDS[kind]
    x, _ = samples(config)
    plain, other = student_of(config), student_of(config)
    plain(x)
    representation(other, x)
    assert_identical(plain.buffers, other.buffers)


def test_the_logits_of_an_mlp_are_those_of_the_network_bit_for_bit() -> None:
    network = student_of()
    x, _ = samples(MLP)
    assert torch.equal(representation(network, x).logits, network(x))


def test_gradients_reach_the_last_layer_and_all_before() -> None:
    network = student_of()
    x, _ = samples(MLP)
    through = gradient(representation(network, x).logits.square().mean((1, 2)), network)
    plain = gradient(network(x).square().mean((1, 2)), network)
    for name, slope in plain.items():
        assert_close(through[name], slope)


def test_the_first_layer_is_the_first_hidden_layer() -> None:
    network = student_of()
    x, _ = samples(MLP)
    found = representation(network, x, "first")
    for k, params in enumerate(unstack(network.params)):
        z = x[k].flatten(1) @ params["hidden.0.weight"].T + params["hidden.0.bias"]
        assert_close(found.features[k], z.clamp_min(0))
    assert torch.equal(found.logits, network(x))
    assert torch.equal(found.features, first_layer(network, x))


@pytest.mark.parametrize("kind", ["mlp-batch", "linear", "cnn"])
def test_other_networks_have_no_first_layer_to_compare(kind: str) -> None:
    config = KINDS[kind]
    with pytest.raises(ValueError, match="that of an mlp with hidden layers and norm 'none'"):
        representation(student_of(config), samples(config)[0], "first")


def test_a_network_without_an_output_layer_is_refused() -> None:
    network = student_of()
    renamed = {name.replace("output", "head"): t for name, t in network.params.items()}
    with pytest.raises(ValueError, match="needs a layer named output"):
        representation(dataclasses.replace(network, params=renamed), samples(MLP)[0])


# --- Losses ---------------------------------------------------------------------------------------


def some_logits(seed: int) -> Tensor:
    stream = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(2, 4, CLASSES, generator=stream, dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 30.0])
def test_soft_labels_are_a_divergence_times_the_square_of_the_temperature(
    temperature: float,
) -> None:
    student, teacher = some_logits(1), some_logits(2)
    kind = torch.distributions.Categorical
    wanted = torch.distributions.kl_divergence(
        kind(logits=teacher / temperature), kind(logits=student / temperature)
    )
    assert_close(soft_label_loss(student, teacher, temperature), temperature**2 * wanted)


def test_its_gradient_is_the_difference_of_the_predictions() -> None:
    student, teacher = some_logits(1).requires_grad_(), some_logits(2)
    for temperature in (1.0, 4.0):
        loss = soft_label_loss(student, teacher, temperature).sum()
        (slope,) = torch.autograd.grad(loss, student)
        gap = F.softmax(student / temperature, -1) - F.softmax(teacher / temperature, -1)
        assert_close(slope, temperature * gap)


def test_at_high_temperature_it_is_a_squared_difference_of_centred_logits() -> None:
    student, teacher = some_logits(1), some_logits(2)
    gap = (student - student.mean(-1, keepdim=True)) - (teacher - teacher.mean(-1, keepdim=True))
    wanted = gap.square().sum(-1) / (2 * CLASSES)
    found = soft_label_loss(student, teacher, 1e4)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)


def test_the_distance_is_one_for_zeros_and_two_for_independent_centred_features() -> None:
    stream = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 1, 4000, 64, generator=stream, dtype=torch.float64)
    assert float(feature_distance(torch.zeros_like(one), one)) == pytest.approx(1)
    assert float(feature_distance(two, one)) == pytest.approx(2, rel=0.01)
    assert float(feature_distance(one, one)) == 0
    positive = feature_distance(two.clamp_min(0), one.clamp_min(0))
    assert float(positive) == pytest.approx(2 - 2 / torch.pi, rel=0.01)  # their means agree


def test_the_distance_of_each_network_has_its_own_unit() -> None:
    student, teacher = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    found = feature_distance(student, teacher)
    for k in range(3):
        size = sum(float(row @ row) for row in teacher[k]) / 5
        gap = sum(float((p - q) @ (p - q)) for p, q in zip(student[k], teacher[k], strict=True)) / 5
        assert float(found[k]) == pytest.approx(gap / size)
    assert_close(found, feature_distance(3 * student, 3 * teacher))
    cosine = feature_distance(student, teacher, "cosine")
    for k in range(3):
        wanted = 1 - F.cosine_similarity(student[k], teacher[k], dim=1).mean()
        assert_close(cosine[k], wanted)


def test_the_gradient_of_the_distance() -> None:
    student = torch.rand(1, 5, 7, dtype=torch.float64).requires_grad_()
    teacher = torch.rand(1, 5, 7, dtype=torch.float64)
    (slope,) = torch.autograd.grad(feature_distance(student, teacher).sum(), student)
    size = teacher.square().sum(2).mean()
    assert_close(slope, 2 * (student.detach() - teacher) / (5 * size))


def test_maps_are_flattened_and_zeros_are_no_error() -> None:
    student, teacher = torch.rand(2, 2, 3, 4, 5, 5, dtype=torch.float64)
    flat = feature_distance(student.flatten(2), teacher.flatten(2))
    assert torch.equal(feature_distance(student, teacher), flat)
    nothing = torch.zeros(1, 2, 3)
    assert float(feature_distance(nothing, nothing)) == 0


# --- The teacher ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp-batch", "preact-resnet"])
def test_a_teacher_is_in_eval_mode_and_leaves_no_trace(kind: str) -> None:
    config = KINDS[kind]
    teacher, student = teacher_of(config), student_of(config)
    before = {name: tensor.clone() for name, tensor in teacher.params.items()}
    x, _ = samples(config)
    found = teacher(student, x)
    assert not found.features.requires_grad
    assert not found.logits.requires_grad
    for k, params in enumerate(unstack(teacher.params)):
        features, logits = by_hook(config, params, x[k], train=False)
        assert_close(found.features[k], features)
        assert_close(found.logits[k], logits)
    assert_identical(teacher.params, before)
    with pytest.raises(KeyError):
        teacher.network(SEEDS).detached("train")(x)


def test_each_student_has_its_own_teacher_in_any_order() -> None:
    teacher = teacher_of()
    x, _ = samples(MLP)
    whole = teacher(student_of(), x)
    some = teacher(student_of(seeds=(7, 0)), x[[2, 0]])
    assert torch.equal(some.logits, whole.logits[[2, 0]])
    with pytest.raises(ValueError, match=r"no teacher for seed 5, there are: \(0, 4, 7\)"):
        teacher(student_of(seeds=(0, 5)), x[:2])


def test_one_teacher_may_teach_all() -> None:
    alone = Teacher(starts(MLP, (3,)), MLP)
    x, _ = samples(MLP)
    found = alone(student_of(), x)
    for k in range(len(SEEDS)):
        _, logits = by_hook(MLP, unstack(starts(MLP, (3,)))[0], x[k], train=False)
        assert_close(found.logits[k], logits)


def test_a_teacher_is_a_copy() -> None:
    values = starts(MLP, (3,))
    teacher = Teacher({n: t.requires_grad_() for n, t in values.items()}, MLP)
    with torch.no_grad():
        values["output.bias"].add_(1)
    assert not torch.equal(teacher.params["output.bias"], values["output.bias"])
    assert not any(tensor.requires_grad for tensor in teacher.params.values())


# --- The objective --------------------------------------------------------------------------------

OTHER = dataclasses.replace(MLP, width=4)


def test_a_copy_of_the_teacher_has_nothing_to_learn() -> None:
    values = starts(MLP, SEEDS)
    student, teacher = network_of(values, MLP, SEEDS, 3), Teacher(values, MLP, SEEDS)
    still = AdversarialTraining(LInf(0.0), steps=1)
    x, y = samples(MLP)
    for taught_on in ("clean", "attacked"):
        losses = ardir(still, teacher, weight=5, taught_on=taught_on)(student, x, y)
        assert_close(losses, torch.zeros(3, dtype=torch.float64))


def test_without_a_teacher_it_is_adversarial_training() -> None:
    x, y = samples(MLP)
    one, two = Distillation(ATTACK, hard=1.0), ATTACK
    assert torch.equal(one.inputs(student_of(), x, y), two.inputs(student_of(), x, y))
    assert torch.equal(one(student_of(), x, y), two(student_of(), x, y))


def test_without_weight_on_the_representation_it_is_ard_at_temperature_one() -> None:
    x, y = samples(MLP)
    teacher = teacher_of()
    wanted = ard(ATTACK, teacher, alpha=1.0, temperature=1.0)(student_of(), x, y)
    assert torch.equal(ardir(ATTACK, teacher, weight=0)(student_of(), x, y), wanted)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Mean over the batch of KL(p, q), from logits, for each network."""
    p, q = F.log_softmax(p, -1), F.log_softmax(q, -1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean(-1)


def crossed(logits: Tensor, y: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(z, labels) for z, labels in zip(logits, y, strict=True)])


def parts_of(config: ModelConfig = MLP) -> tuple[Any, ...]:
    student, teacher, (x, y) = student_of(config), teacher_of(config), samples(config)
    found = (x + 0.05 * torch.rand_like(x)).clamp(0, 1)
    return student, teacher, x, found, y


def test_ard_by_hand() -> None:
    student, teacher, x, found, y = parts_of()
    losses = ard(ATTACK, teacher, alpha=0.9, temperature=5.0).loss(student, x, found, y)
    taught = teacher(student, x).logits
    wanted = 0.9 * 25 * divergence(taught / 5, student(found) / 5) + 0.1 * crossed(student(x), y)
    assert_close(losses, wanted)


def test_rslad_by_hand() -> None:
    student, teacher, x, found, y = parts_of()
    losses = rslad(ATTACK, teacher).loss(student, x, found, y)
    taught = teacher(student, x).logits
    both = 5 * divergence(taught, student(found)) + divergence(taught, student(x))
    assert_close(losses, both / 6)


def test_rslad_attacks_the_divergence_from_a_start_beside_the_input() -> None:
    student, teacher, x, _, y = parts_of()
    objective = rslad(ATTACK, teacher)
    taught = F.log_softmax(teacher(student, x).logits, -1)
    noise = [torch.randn(x.shape[1:], generator=generator(seed, 59, 3)) for seed in SEEDS]

    def away(logits: Tensor, y: Tensor) -> Tensor:
        del y
        return (taught.exp() * (taught - F.log_softmax(logits, -1))).sum(-1)

    wanted = pgd(
        student.detached("eval"),
        x,
        y,
        LInf(0.1),
        steps=3,
        loss=away,
        start=x + START_NOISE * torch.stack(noise).double(),
    )
    found = objective.inputs(student, x, y)
    assert_close(found, wanted)
    assert torch.equal(found, objective.inputs(student, x, (y + 1) % CLASSES)), "no true labels"
    assert not torch.equal(found, ATTACK.inputs(student, x, y))


def test_akd_by_hand() -> None:
    student, robust, x, found, y = parts_of()
    natural = Teacher(starts(OTHER, (3,)), OTHER)  # only its output is compared
    losses = akd(ATTACK, robust, natural).loss(student, x, found, y)
    own = student(found)
    wanted = 0.3 * crossed(own, y)
    wanted += 0.1 * 4 * divergence(natural(student, found).logits / 2, own / 2)
    wanted += 0.6 * 4 * divergence(robust(student, found).logits / 2, own / 2)
    assert_close(losses, wanted)


@pytest.mark.parametrize("taught_on", ["clean", "attacked"])
@pytest.mark.parametrize("distance", ["squared", "cosine"])
@pytest.mark.parametrize("layer", ["penultimate", "first"])
def test_the_representation_by_hand(taught_on: Any, distance: Any, layer: Any) -> None:
    student, teacher, x, found, y = parts_of()
    features = Features(teacher, 3.0, taught_on, layer, distance)
    losses = Distillation(ATTACK, (SoftLabels(teacher),), features).loss(student, x, found, y)
    shown = x if taught_on == "clean" else found
    target = teacher(student, shown, layer).features
    own = representation(student, found, layer).features
    wanted = divergence(teacher(student, x).logits, student(found))
    wanted = wanted + 3 * feature_distance(own, target, distance)
    assert_close(losses, wanted)


def test_smoothing_spreads_a_share_of_the_label() -> None:
    student, _, x, found, y = parts_of()
    losses = Distillation(ATTACK, hard=1.0, smoothing=0.3).loss(student, x, found, y)
    target = 0.7 * F.one_hot(y, CLASSES).double() + 0.3 / CLASSES
    wanted = -(target * F.log_softmax(student(found), -1)).sum(-1).mean(-1)
    assert_close(losses, wanted)


def test_no_gradient_reaches_the_teacher_and_each_is_asked_once() -> None:
    student, teacher, x, found, y = parts_of()
    asked = []

    class Listening(Teacher):
        def network(self, seeds: Any) -> Network:
            asked.append(tuple(seeds))
            return super().network(seeds)

    heard = Listening(teacher.params, MLP, SEEDS)
    losses = ardir(ATTACK, heard, weight=2.0).loss(student, x, found, y)
    assert asked == [SEEDS]
    slopes = gradient(losses, student)
    assert all(bool(slope.abs().sum() > 0) for slope in slopes.values())
    assert not any(tensor.requires_grad for tensor in heard.params.values())


def test_one_network_alone_trains_as_among_many() -> None:
    data = random_data()
    recipe = TrainConfig(epochs=2, batch_size=BATCH, optimizer="sgd", learning_rate=0.05)
    values = {n: t.float() for n, t in starts(MLP, TEACHING).items()}
    teacher = Teacher(values, MLP, SEEDS)
    assert STEPS > 1
    for loss in (ardir(ATTACK, teacher), rslad(ATTACK, teacher)):
        whole = train(MLP, data, SEEDS, recipe, loss=loss).params
        alone = train(MLP, data, (4,), recipe, loss=loss).params
        assert all(torch.equal(whole[name][1:2], alone[name]) for name in whole)


# --- Bad input ------------------------------------------------------------------------------------

TEACHER = teacher_of()


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: ardir(ATTACK, TEACHER, weight=-1), "weight must be a number >= 0, got -1"),
        (lambda: Features(TEACHER, float("nan")), "weight must be a number >= 0, got nan"),
        (lambda: SoftLabels(TEACHER, -0.5), "weight must be a number >= 0, got -0.5"),
        (lambda: ard(ATTACK, TEACHER, alpha=1.5), r"alpha must lie in \[0, 1\], got 1.5"),
        (lambda: ard(ATTACK, TEACHER, alpha=-0.1), r"alpha must lie in \[0, 1\], got -0.1"),
        (lambda: ard(ATTACK, TEACHER, temperature=0), "temperature must be a number > 0, got 0"),
        (lambda: SoftLabels(TEACHER, 1, -2.0), "temperature must be a number > 0, got -2.0"),
        (
            lambda: SoftLabels(TEACHER, taught_on="noisy"),  # type: ignore[arg-type]
            "taught_on is 'noisy', allowed: clean, attacked",
        ),
        (
            lambda: SoftLabels(TEACHER, learnt_on="both"),  # type: ignore[arg-type]
            "learnt_on is 'both', allowed: clean, attacked",
        ),
        (
            lambda: Features(TEACHER, layer="last"),  # type: ignore[arg-type]
            "layer is 'last', allowed: penultimate, first",
        ),
        (
            lambda: Features(TEACHER, distance="L1"),  # type: ignore[arg-type]
            "distance is 'L1', allowed: squared, cosine",
        ),
        (
            lambda: Distillation(ATTACK, hard=1, hard_on="x"),  # type: ignore[arg-type]
            "hard_on is 'x', allowed: clean, attacked",
        ),
        (
            lambda: Distillation(ATTACK, hard=1, inner="ce"),  # type: ignore[arg-type]
            "inner is 'ce', allowed: hard, soft",
        ),
        (lambda: Distillation(ATTACK, hard=-1.0), "hard must be a number >= 0, got -1.0"),
        (lambda: Distillation(ATTACK, hard=1, smoothing=2), r"smoothing must lie in \[0, 1\]"),
        (lambda: Distillation(ATTACK), "needs labels, features, or hard > 0"),
        (lambda: Distillation(ATTACK, hard=1, inner="soft"), "inner 'soft' needs soft labels"),
        (
            lambda: Teacher(starts(MLP, (1, 2)), MLP),
            r"one network, or one per seed: got \[2\] networks for seeds \(\)",
        ),
        (
            lambda: Teacher(starts(MLP, (1, 2)), MLP, (5, 5)),
            r"one per seed: got \[2\] networks for seeds \(5, 5\)",
        ),
        (lambda: Teacher(starts(MLP, (1,)), OTHER), "tensors are not those of .*width=4"),
    ],
)
def test_bad_settings_are_refused(make: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_representations_are_compared_within_one_architecture_only() -> None:
    student, _, x, found, y = parts_of()
    other = Teacher(starts(OTHER, (3,)), OTHER)
    with pytest.raises(ValueError, match=r"of one architecture, the teacher's is .*width=4"):
        ardir(ATTACK, other).loss(student, x, found, y)
    ardir(ATTACK, other, weight=0).loss(student, x, found, y)
    with pytest.raises(ValueError, match=r"differ in shape: student \(1, 2, 3\), teacher"):
        feature_distance(torch.zeros(1, 2, 3), torch.zeros(1, 2, 4))

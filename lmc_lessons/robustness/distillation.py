r"""Adversarial distillation: a frozen teacher's answers as targets of robust training.

One objective covers a family. The attack finds inputs $x'$; the loss on them is a sum of hard
labels, of teachers' soft labels, and of the distance to a teacher's internal representation:

$$L = c\,\ell(f_S, y) + \sum_k w_k\, \tau_k^2\, \mathrm{KL}\big(p_{T_k}^{\tau_k} \,\|\,
p_S^{\tau_k}\big) + \lambda\, d\big(\varphi_S(x'), \varphi_T(\tilde x)\big)$$

Each term says whether it looks at the clean inputs or at the attacked ones. Published methods are
settings of it: see ``ard``, ``rslad``, ``akd`` and ``ardir``.

A representation $\varphi$ is what enters the last linear layer, which every architecture of this
package calls ``output``; so one forward pass gives representation and logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.models import ModelConfig, Params, build, predict_stacked
from lmc_lessons.robustness.attacks import pgd
from lmc_lessons.robustness.objectives import AdversarialTraining, kl_divergence
from lmc_lessons.training import Network

SOFT_START = 59  # the random stream of the start of an attack on a teacher's soft labels
START_NOISE = 1e-3  # its standard deviation

Inputs = Literal["clean", "attacked"]
Layer = Literal["penultimate", "first"]
Distance = Literal["squared", "cosine"]
Target = Literal["hard", "soft"]


# Representations


class Answer(NamedTuple):
    """What S networks make of S batches.

    Attributes:
        features: The representation, shape (S, B, units).
        logits: Shape (S, B, classes).
    """

    features: Tensor
    logits: Tensor


def representation(network: Network, x: Tensor, layer: Layer = "penultimate") -> Answer:
    r"""Representation and logits of S networks from one forward pass.

    With the identity in place of the weights of the ``output`` layer, and zero in place of its
    bias, the network gives what enters that layer. The logits are computed from it. So BatchNorm's
    statistics are updated once.

    Args:
        network: S networks; in which mode they run is theirs to say.
        x: Inputs of shape (S, B, ...).
        layer: ``penultimate``, what enters the last layer; or ``first``, the first hidden layer of
            an ``mlp`` without normalisation, after its ReLU.

    Returns:
        Features and logits.

    Raises:
        ValueError: If the network has no such layer.

    Taught in: book/robustness/ardir
    """
    _check_choice("layer", layer, Layer)
    if "output.weight" not in network.params:
        raise ValueError(f"a network needs a layer named output, got {list(network.params)}")
    weight, bias = network.params["output.weight"], network.params["output.bias"]
    count, _, units = weight.shape
    identity = torch.eye(units, dtype=weight.dtype, device=weight.device).expand(count, -1, -1)
    handed_on = {"output.weight": identity, "output.bias": bias.new_zeros(count, units)}
    features = replace(network, params={**network.params, **handed_on})(x)
    logits = torch.baddbmm(bias.unsqueeze(1), features, weight.mT)
    return Answer(features if layer == "penultimate" else first_layer(network, x), logits)


def first_layer(network: Network, x: Tensor) -> Tensor:
    """The first hidden layer of an ``mlp`` without normalisation, after its ReLU.

    Args:
        network: S networks.
        x: Inputs of shape (S, B, ...).

    Returns:
        Shape (S, B, units).

    Raises:
        ValueError: If the network is another kind.

    Taught in: book/robustness/ardir
    """
    names = network.params
    if "hidden.0.weight" not in names or "norms.0.weight" in names:
        raise ValueError("the first layer is that of an mlp with hidden layers and norm 'none'")
    bias = names["hidden.0.bias"].unsqueeze(1)
    return F.relu(torch.baddbmm(bias, x.flatten(2), names["hidden.0.weight"].mT))


def soft_label_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    r"""How far a student's answer is from a teacher's: $\tau^2\,\mathrm{KL}(p_T^\tau\|p_S^\tau)$.

    Equation (eq-ard-kl) of the lesson. Summed over classes; published code that calls
    ``nn.KLDivLoss()`` without arguments averages over them too, so its loss is smaller by the
    number of classes.

    Args:
        student: Logits of shape (..., classes).
        teacher: Logits of the same shape.
        temperature: Both logits are divided by it, above 0.

    Returns:
        Shape (...,), in nats.

    Source:
        hinton2015distilling; goldblum2020robust.

    Taught in: book/robustness/ardir
    """
    log_t = F.log_softmax(teacher / temperature, -1)
    log_s = F.log_softmax(student / temperature, -1)
    return temperature**2 * kl_divergence(log_t, log_s)


def feature_distance(student: Tensor, teacher: Tensor, kind: Distance = "squared") -> Tensor:
    r"""Distance of two representations, in units in which a student of zeros is at 1.

    ``squared`` is equation (eq-ard-features) of the lesson,
    $\mathbb{E}\|\varphi_S - \varphi_T\|^2 / \mathbb{E}\|\varphi_T\|^2$; ``cosine`` is the mean of
    $1 - \cos(\varphi_S, \varphi_T)$.

    Args:
        student: Features of S networks, shape (S, B, ...).
        teacher: Features of the same shape.
        kind: Which distance.

    Returns:
        Shape (S,). 0 where both agree.

    Raises:
        ValueError: If the shapes differ, or the distance is unknown.

    Taught in: book/robustness/ardir
    """
    _check_choice("distance", kind, Distance)
    if student.shape != teacher.shape:
        raise ValueError(
            f"representations differ in shape: student {tuple(student.shape)}, teacher "
            f"{tuple(teacher.shape)}"
        )
    exact = torch.promote_types(student.dtype, torch.float32)  # sums of squares in half are coarse
    student, teacher = student.flatten(2).to(exact), teacher.flatten(2).to(exact)
    if kind == "cosine":
        return 1 - F.cosine_similarity(student, teacher, dim=2).mean(1)
    size = teacher.square().sum(2).mean(1).clamp_min(torch.finfo(teacher.dtype).tiny)
    return (student - teacher).square().sum(2).mean(1) / size


# The teacher


@dataclass(frozen=True, eq=False)
class Teacher:
    """Frozen networks that give targets: one for all students, or one for each seed.

    It runs in eval mode always: there is no other. What it is given is copied and carries no graph.

    Attributes:
        params: Parameters and buffers of shape (T, ...).
        config: Their architecture.
        seeds: Which student each of them teaches, by seed; empty: one teaches all.

    Taught in: book/robustness/ardir
    """

    params: Params
    config: ModelConfig
    seeds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse tensors that are not those of the architecture, or too few of them."""
        copies = {name: tensor.detach().clone() for name, tensor in self.params.items()}
        object.__setattr__(self, "params", copies)
        wanted = {name: t.shape for name, t in self._model.state_dict().items()}
        if {name: t.shape[1:] for name, t in copies.items()} != wanted:
            raise ValueError(f"the teacher's tensors are not those of {self.config}")
        counts = {len(tensor) for tensor in copies.values()}
        if counts != {len(self.seeds) or 1} or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(
                f"a teacher needs one network, or one per seed: got {sorted(counts)} networks "
                f"for seeds {self.seeds}"
            )

    @cached_property
    def _model(self) -> torch.nn.Module:
        return build(self.config).eval()

    def network(self, seeds: Sequence[int]) -> Network:
        """The teachers of some students, in eval mode.

        Args:
            seeds: The students' seeds, S of them.

        Returns:
            S networks.

        Raises:
            ValueError: If a seed has no teacher.
        """
        if missing := [seed for seed in seeds if self.seeds and seed not in self.seeds]:
            raise ValueError(f"no teacher for seed {missing[0]}, there are: {self.seeds}")
        rows = [self.seeds.index(seed) if self.seeds else 0 for seed in seeds]
        params = {name: tensor[rows] for name, tensor in self.params.items()}
        forward = partial(predict_stacked, self._model)
        return Network(params, {}, {"eval": forward}, mode="eval", seeds=tuple(seeds))

    def __call__(self, student: Network, x: Tensor, layer: Layer = "penultimate") -> Answer:
        """What the teachers of these students say, without a graph.

        Args:
            student: S students.
            x: Inputs of shape (S, B, ...).
            layer: Which representation.

        Returns:
            Features and logits.
        """
        with torch.no_grad():
            return representation(self.network(student.seeds), x, layer)


# The objective


@dataclass(frozen=True)
class SoftLabels:
    """A teacher's prediction as a target of the student's.

    Attributes:
        teacher: Who gives it.
        weight: Its weight in the loss, at least 0.
        temperature: Both logits are divided by it, above 0; the term is multiplied by its square.
        taught_on: Which inputs the teacher sees.
        learnt_on: Which inputs the student sees.
    """

    teacher: Teacher
    weight: float = 1.0
    temperature: float = 1.0
    taught_on: Inputs = "clean"
    learnt_on: Inputs = "attacked"

    def __post_init__(self) -> None:
        """Refuse a negative weight, a temperature of 0 or less, and unknown inputs."""
        _check_weight("weight", self.weight)
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be a number > 0, got {self.temperature}")
        _check_choice("taught_on", self.taught_on, Inputs)
        _check_choice("learnt_on", self.learnt_on, Inputs)


@dataclass(frozen=True)
class Features:
    """A teacher's representation as a target of the student's, on attacked inputs.

    Attributes:
        teacher: Who gives it; of the student's architecture.
        weight: Its weight in the loss, at least 0. The distance is normalised, so that weights can
            be compared between layers and architectures.
        taught_on: Which inputs the teacher sees.
        layer: Which representation.
        distance: How far two of them are.
    """

    teacher: Teacher
    weight: float = 1.0
    taught_on: Inputs = "clean"
    layer: Layer = "penultimate"
    distance: Distance = "squared"

    def __post_init__(self) -> None:
        """Refuse a negative weight, and unknown switches."""
        _check_weight("weight", self.weight)
        _check_choice("taught_on", self.taught_on, Inputs)
        _check_choice("layer", self.layer, Layer)
        _check_choice("distance", self.distance, Distance)


@dataclass(frozen=True)
class Distillation:
    r"""Adversarial training with a teacher: hard labels, soft labels and a representation.

    Equation (eq-ard-loss) of the lesson.

    Attributes:
        attack: Finds the inputs to train on.
        labels: Soft labels.
        features: The representation to learn; None: none.
        hard: Weight of the cross-entropy with the true labels, at least 0.
        hard_on: Which inputs that term sees.
        smoothing: Share of a true label that is spread over all classes, in [0, 1]: a teacher that
            knows nothing, as a control.
        inner: What the attack maximises: ``hard``, the cross-entropy; or ``soft``, the divergence
            from the first teacher's prediction on the clean inputs, from a start beside them.

    Source:
        takahashi2022ardir, of which only the abstract could be read: that the teacher's
        representation is a target beside its output is theirs, which representation and how is our
        reconstruction. The settings of other methods are read in their code, see there.

    Taught in: book/robustness/ardir
    """

    attack: AdversarialTraining
    labels: tuple[SoftLabels, ...] = ()
    features: Features | None = None
    hard: float = 0.0
    hard_on: Inputs = "attacked"
    smoothing: float = 0.0
    inner: Target = "hard"

    def __post_init__(self) -> None:
        """Refuse weights below 0, unknown switches, and a loss without any term."""
        _check_weight("hard", self.hard)
        if not 0 <= self.smoothing <= 1:
            raise ValueError(f"smoothing must lie in [0, 1], got {self.smoothing}")
        _check_choice("hard_on", self.hard_on, Inputs)
        _check_choice("inner", self.inner, Target)
        if not (self.hard or self.labels or self.features):
            raise ValueError("a distillation needs labels, features, or hard > 0")
        if self.inner == "soft" and not self.labels:
            raise ValueError("inner 'soft' needs soft labels")

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The inputs to train on, of the shape of ``x``."""
        if self.inner == "hard":
            return self.attack.inputs(network, x, y)
        target = self.labels[0].teacher(network, x).logits  # once: the attack does not change it

        def divergence(logits: Tensor, y: Tensor) -> Tensor:
            del y
            return soft_label_loss(logits, target)

        noise = torch.stack(
            [
                torch.randn(part.shape, generator=stream)
                for part, stream in zip(x, network.streams(SOFT_START), strict=True)
            ]
        )
        return pgd(
            network.detached(self.attack.mode),
            x,
            y,
            self.attack.threat,
            steps=self.attack.steps,
            step_size=self.attack.step_size,
            loss=divergence,
            start=x + START_NOISE * noise.to(x),
        )

    def loss(self, network: Network, x: Tensor, found: Tensor, y: Tensor) -> Tensor:
        """The sum of all terms per network, shape (S,), in nats."""
        answers = _Answers(network, {"clean": x, "attacked": found}, self.features)
        terms = []
        if self.hard:
            logits = answers(None, self.hard_on).logits
            flat = F.cross_entropy(
                logits.flatten(0, 1), y.flatten(), reduction="none", label_smoothing=self.smoothing
            )
            terms.append(self.hard * flat.view(y.shape).mean(1))
        for soft in self.labels:
            taught = answers(soft.teacher, soft.taught_on).logits
            learnt = answers(None, soft.learnt_on).logits
            loss = soft_label_loss(learnt, taught, soft.temperature)
            terms.append(soft.weight * loss.mean(1))
        if self.features is not None:
            target = answers(self.features.teacher, self.features.taught_on).features
            own = answers(None, "attacked").features
            distance = feature_distance(own, target, self.features.distance)
            terms.append(self.features.weight * distance)
        return torch.stack(terms).sum(0)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The loss on the inputs that the attack finds, shape (S,), in nats."""
        return self.loss(network, x, self.inputs(network, x, y), y)


class _Answers:
    """What the student and its teachers say of a batch, each asked once."""

    def __init__(
        self, student: Network, inputs: dict[Inputs, Tensor], features: Features | None
    ) -> None:
        self.student, self.inputs = student, inputs
        self.layer: Layer = "penultimate" if features is None else features.layer
        self.known: dict[tuple[int, Inputs], Answer] = {}
        if features is not None:
            _check_same_architecture(student, features.teacher)

    def __call__(self, teacher: Teacher | None, on: Inputs) -> Answer:
        place = (id(teacher), on)
        if place not in self.known:
            x = self.inputs[on]
            self.known[place] = (
                representation(self.student, x, self.layer)
                if teacher is None
                else teacher(self.student, x, self.layer)
            )
        return self.known[place]


def _check_same_architecture(student: Network, teacher: Teacher) -> None:
    own = {name: t.shape[1:] for name, t in {**student.params, **student.buffers}.items()}
    if own != {name: t.shape[1:] for name, t in teacher.params.items()}:
        raise ValueError(
            "representations are compared between networks of one architecture, the teacher's is "
            f"{teacher.config}"
        )


def _check_weight(name: str, value: float) -> None:
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be a number >= 0, got {value}")


def _check_choice(name: str, given: str, allowed: object) -> None:
    if given not in get_args(allowed):
        raise ValueError(f"{name} is {given!r}, allowed: {', '.join(get_args(allowed))}")


# Published settings


def ard(
    attack: AdversarialTraining, teacher: Teacher, *, alpha: float = 1.0, temperature: float = 30.0
) -> Distillation:
    r"""ARD: soft labels for attacked inputs, hard labels for clean ones.

    $$\alpha \tau^2\, \mathrm{KL}(p_T^\tau(x) \| p_S^\tau(x')) + (1 - \alpha)\,\ell(f_S(x), y)$$

    Args:
        attack: Finds the inputs.
        teacher: Who gives the labels.
        alpha: Weight of the teacher, in [0, 1].
        temperature: The defaults are those of the published code.

    Returns:
        An objective.

    Raises:
        ValueError: If ``alpha`` lies outside [0, 1].

    Source:
        goldblum2020robust, its published code.

    Taught in: book/robustness/ardir
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha}")
    labels = (SoftLabels(teacher, alpha, temperature),) if alpha else ()
    return Distillation(attack, labels, hard=1 - alpha, hard_on="clean")


def rslad(attack: AdversarialTraining, teacher: Teacher) -> Distillation:
    r"""RSLAD: $\frac56 \mathrm{KL}(p_T(x)\|p_S(x')) + \frac16 \mathrm{KL}(p_T(x)\|p_S(x))$.

    No true label is used; the attack maximises the first divergence.

    Args:
        attack: Its threat model, steps and mode.
        teacher: Who gives the labels.

    Returns:
        An objective.

    Source:
        zi2021revisiting, its published code.

    Taught in: book/robustness/ardir
    """
    attacked = SoftLabels(teacher, 5 / 6)
    return Distillation(
        attack, (attacked, SoftLabels(teacher, 1 / 6, learnt_on="clean")), inner="soft"
    )


def akd(attack: AdversarialTraining, robust: Teacher, natural: Teacher) -> Distillation:
    r"""AKD2: hard labels and two teachers that see the attacked input, with temperature 2.

    The weights are 0.3 for the true label, 0.6 for a robust teacher and 0.1 for one that was
    trained without attacks.

    Args:
        attack: Finds the inputs.
        robust: Trained against attacks.
        natural: Trained without.

    Returns:
        An objective.

    Source:
        chen2021robust, its published code, which also averages weights over time.

    Taught in: book/robustness/ardir
    """
    shares = ((natural, 0.1), (robust, 0.6))
    labels = tuple(SoftLabels(t, share, 2.0, taught_on="attacked") for t, share in shares)
    return Distillation(attack, labels, hard=0.3)


def ardir(
    attack: AdversarialTraining,
    teacher: Teacher,
    *,
    weight: float = 5.0,
    taught_on: Inputs = "clean",
) -> Distillation:
    r"""ARDIR as reconstructed here: a teacher's output and its representation.

    $$\mathrm{KL}(p_T(x)\|p_S(x')) + \lambda\,d(\varphi_S(x'), \varphi_T(x))$$

    Args:
        attack: Finds the inputs.
        teacher: Who gives labels and representation; of the student's architecture.
        weight: $\lambda$; 0 gives ARD with temperature 1.
        taught_on: Which inputs the teacher sees to give its representation.

    Returns:
        An objective.

    Source:
        takahashi2022ardir says that the teacher's representation is used beside its output. Which
        layer, which distance, which inputs and which weight could not be read, and are ours.

    Taught in: book/robustness/ardir
    """
    features = Features(teacher, weight, taught_on) if weight else None
    return Distillation(attack, (SoftLabels(teacher),), features)

"""Sharpness under adversarial training: does training against an attack sharpen the loss?

First where everything can be solved, for logistic regression with two classes; then for a small
network. For logistic regression the unit of repetition is an independent task: seed s is the pair
of classes (s, s + 5), so the five seeds 0 to 4 share no image, and seed 3 is the digit 3 against
the digit 8. Where one pair of classes is given (at full scale), seed s is a disjoint part of its
training images. The seed also draws the first weights. For the network, seed s is a training from
an initialisation and an order of the data of its own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons import datasets
from lmc_lessons.curvature import hessian_of, top_eigenvalues
from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import score
from lmc_lessons.experiments.runs import Stages, finish, one_thread
from lmc_lessons.models import ModelConfig, Params, build, parameter_names, predict, unstack
from lmc_lessons.results import Claim, Effect, Result, Series, difference, measured
from lmc_lessons.robustness.attacks import L2, Predict, cross_entropy, pgd
from lmc_lessons.robustness.local_entropy import (
    EntropySGD,
    entropy_sgd,
    local_entropy_gradient,
)
from lmc_lessons.robustness.logistic import (
    Problem,
    adversarial_gradient,
    adversarial_loss,
    critical_radius,
    descend,
    direction,
    exponents,
    half_jump,
    hessian,
    least_subgradient,
    random_directions,
    rise,
    sample_spectrum,
    samples,
    secant,
    trace_slopes,
)
from lmc_lessons.robustness.objectives import AdversarialTraining, Standard
from lmc_lessons.robustness.sharpness import RobustLoss, filter_direction, line_landscape
from lmc_lessons.training import TrainConfig, generator, train

LESSON = "sharpness-adversarial-training"
Numbers = dict[str, Any]
Measured = tuple[dict[str, list[float]], dict[str, Series]]

OPTIMA = ("equal steps", "weight decay", "equal loss")
QUANTITIES = (
    "length of w",
    "loss",
    "top eigenvalue",
    "top eigenvalue, attack frozen",
    "trace",
    "relative trace",
    "rise",
    "rise over loss",
    "accuracy",
    "robust accuracy",
)
NOISES = ("adversarial", "random", "helpful")
AT_ONE_POINT = ("top eigenvalue", "trace")
RUNS = ("L2", "L-infinity", "L-infinity, decaying", "L-infinity, small steps", "Entropy-SGD")
WATCHED = ("gradient", "gap", "flips")
OF_NETWORK = (
    "top eigenvalue",
    "rise",
    "rise, attack frozen",
    "loss",
    "accuracy",
    "robust accuracy",
)
START, NOISE, WAYS, DRAWS, SMOOTHING, INNER = 41, 42, 43, 44, 45, 46  # random streams of a seed
BLOCKS = 40  # points of the stored curves of a descent
PGD_STEPS = 10  # the attack that is compared with the closed form


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        preset: Name of the preset.
        seeds: Tasks for logistic regression, trainings for the network; see the module.
        dataset: Name for ``datasets.load``.
        limit: Use only so many training samples; None uses all.
        classes: The pair of classes; empty: seed s is the pair (s, s + 5).
        per_class: Training images of each class in a task; 0 leaves logistic regression out.
        fractions: Radii of the attack, as shares of the task's critical radius, from 0.
        steps: Steps of gradient descent.
        rate: Step size of gradient descent.
        decay: L2 penalty of the comparison at the minimum.
        level: Loss of the comparison at equal loss, in nats.
        level_rate: Step size of that comparison, small, so that the level is met closely.
        directions: Random directions per landscape.
        draws: Random samples in three dimensions on which the statements are tried.
        smooth_decay: L2 penalty of the part on smoothness.
        spacings: Half distances of the secants, decreasing.
        entropy: Settings of Entropy-SGD.
        smoothing_gamma: The local entropy's tie where its smoothness is measured; the more
            dimensions, the stronger, or else a sampled integral is too rough.
        smoothing_draws: Points from which the local entropy is computed.
        model: Architecture of the network.
        train: How to train it.
        radii: Radii of its attack (L2), from 0; empty leaves the network out.
        claim_radius: The radius of the claims, at which the network still fits.
        attack_steps: Steps of its attack.
        alpha: How far the network's landscape is walked, in units of its filters' lengths.
        ways: Random directions of the network's landscape.
        evaluate: Samples on which the network is measured.
        together: Networks trained in one program; 0 means all.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    dataset: str = "digits"
    limit: int | None = None
    classes: tuple[int, ...] = ()
    per_class: int = 130
    fractions: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    steps: int = 4000
    rate: float = 0.5
    decay: float = 1e-3
    level: float = 0.4
    level_rate: float = 0.02
    directions: int = 100
    draws: int = 20_000
    smooth_decay: float = 1e-2
    spacings: tuple[float, ...] = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
    entropy: EntropySGD = field(default_factory=EntropySGD)
    smoothing_gamma: float = 1.0
    smoothing_draws: int = 20_000
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig("mlp", (1, 8, 8), 10, width=128, depth=2)
    )
    train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=40))
    radii: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0, 1.5)
    claim_radius: float = 0.5
    attack_steps: int = 7
    alpha: float = 0.5
    ways: int = 5
    evaluate: int = 500
    together: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers >= 0, got {self.seeds}")
        if len(self.classes) not in (0, 2) or len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must be two classes or none, got {self.classes}")
        if self.per_class and not self.classes and max(self.seeds) > 4:
            raise ValueError(f"seeds are pairs (s, s + 5) with s from 0 to 4, got {self.seeds}")
        for name in ("fractions", "radii"):
            grid = getattr(self, name)
            if list(grid) != sorted(set(grid)) or (grid and grid[0] != 0):
                raise ValueError(f"{name} must rise from 0, got {grid}")
        if not {0.0, 0.3, 0.5} <= set(self.fractions) or max(self.fractions) >= 1:
            raise ValueError(f"fractions must hold 0, 0.3 and 0.5, below 1; got {self.fractions}")
        if self.radii and self.claim_radius not in self.radii[1:]:
            raise ValueError(f"claim_radius must be in {self.radii[1:]}, got {self.claim_radius}")
        if len(self.spacings) < 2 or list(self.spacings) != sorted(set(self.spacings))[::-1]:
            raise ValueError(f"spacings must be two or more that fall, got {self.spacings}")
        if min(self.spacings) <= 0:
            raise ValueError(f"spacings must be > 0, got {self.spacings}")
        lowest = {"per_class": 0, "steps": BLOCKS, "directions": 1, "draws": 1, "together": 0}
        lowest |= {
            "smoothing_draws": 2,
            "ways": 1,
            "attack_steps": 1,
            "evaluate": 1,
        }
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if min(self.rate, self.level_rate, self.alpha, self.level, self.smoothing_gamma) <= 0:
            raise ValueError("rate, level_rate, alpha, level and smoothing_gamma must be > 0")
        if min(self.decay, self.smooth_decay) < 0:
            raise ValueError("decay and smooth_decay must be >= 0")


_FULL_LOGISTIC = Config(
    preset="full-mnist-3-8",
    dataset="mnist",
    classes=(3, 8),
    per_class=500,
    fractions=(0.0, 0.15, 0.3, 0.5, 0.65, 0.8),
    steps=3000,
    rate=0.05,
    level=0.55,
    level_rate=0.005,
    smoothing_gamma=100.0,
    smoothing_draws=5_000,
    entropy=EntropySGD(inner_rate=0.01),
    radii=(),
)
PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(3,),
        steps=1000,
        smoothing_draws=4000,
        train=TrainConfig(epochs=20),
        radii=(0.0, 0.5, 1.5),
        evaluate=200,
    ),
    "study": Config(),
    "full-mnist-3-8": _FULL_LOGISTIC,
    "full-mnist-0-1": dataclasses.replace(_FULL_LOGISTIC, preset="full-mnist-0-1", classes=(0, 1)),
    "full-fashion-mlp": Config(
        preset="full-fashion-mlp",
        dataset="fashion-mnist",
        limit=10_000,
        per_class=0,
        model=ModelConfig("mlp", (1, 28, 28), 10, width=128, depth=2),
        train=TrainConfig(epochs=10, batch_size=100, fast=True),
        radii=(0.0, 0.5, 1.0, 2.0, 4.0),
        claim_radius=1.0,
    ),
    "full-cifar-resnet18": Config(
        preset="full-cifar-resnet18",
        dataset="cifar10",
        per_class=0,
        model=ModelConfig("preact-resnet", (3, 32, 32), 10, width=1, depth=18, norm="batch"),
        train=TrainConfig(
            epochs=30,
            batch_size=128,
            optimizer="sgd",
            learning_rate=0.1,
            weight_decay=5e-4,
            schedule="step",
            augmentation="flip-crop",
            precision="bfloat16",
            channels_last=True,
            compile=True,
        ),
        radii=(0.0, 32 / 255, 64 / 255, 128 / 255, 1.0),
        claim_radius=128 / 255,
        attack_steps=10,
        evaluate=1000,
        together=1,
    ),
}


def run(
    config: Config,
    *,
    folder: Path | None = None,
    progress: bool = False,
    device: str = "cpu",
    root: Path | None = None,
) -> Result:
    """Run the experiment of the lesson.

    Args:
        config: What to run.
        folder: Where partial work is kept, so that a killed run can be started again; None keeps
            none.
        progress: Whether to show progress.
        device: ``cpu`` or ``cuda``; logistic regression stays on the CPU, in float64.
        root: Where data sets lie; see ``datasets.load``.

    Returns:
        Metrics per seed, series on grids, and the verdict of every claim.

    Raises:
        ValueError: If the data set is not there, does not fit the model, or has too few images.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    with one_thread(device == "cpu"):
        stages = Stages(folder, config, progress=progress)
        data = datasets.load(config.dataset, limit=config.limit, root=root)
        metrics, series = logistic_part(config, data, stages)
        more, others = network_part(config, data, stages, device=device, progress=progress)
    return finish(
        LESSON,
        config,
        stages=stages,
        metrics=metrics | more,
        series=series | others,
        claims=CLAIMS,
        datasets=[data],
        device=device,
    )


# Logistic regression: the tasks


class Task(NamedTuple):
    """Two classes of images, and where training starts.

    Attributes:
        x: Images as vectors, float64, shape (N, D).
        y: -1 or 1, shape (N,).
        start: First weights, shape (D,).
        seed: The seed.
    """

    x: Tensor
    y: Tensor
    start: Tensor
    seed: int


def task(data: Dataset, seed: int, per_class: int, classes: Sequence[int] = ()) -> Task:
    """The task of one seed, as many images of the one class as of the other.

    Args:
        data: Data set; its training images are used.
        seed: Which pair of classes (s, s + 5), or, where a pair is given, which part of its images.
        per_class: Images of each class.
        classes: The pair, if one is given.

    Returns:
        Images, signs and first weights.

    Raises:
        ValueError: If there are too few images.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    first, second = classes or (seed, seed + 5)
    skipped = seed * per_class if classes else 0
    parts = []
    for label in (first, second):
        images = data.train_x[data.train_y == label][skipped : skipped + per_class]
        if len(images) < per_class:
            raise ValueError(
                f"seed {seed} needs {skipped + per_class} images of class {label} of {data.name}"
            )
        parts.append(images.flatten(1).double())
    signs = torch.ones(per_class, dtype=torch.float64)
    size = parts[0].shape[1]
    start = torch.randn(size, generator=generator(seed, START), dtype=torch.float64)
    start = 0.8 / math.sqrt(size) * start  # about as long for any number of pixels
    return Task(torch.cat(parts), torch.cat([signs, -signs]), start, seed)


def logistic_part(config: Config, data: Dataset, stages: Stages) -> Measured:
    """Everything about logistic regression, one stage per seed and question.

    A seed is a stage of its own, rather than a place on a leading axis, so that it gives the same
    numbers alone and among others: descent on a loss with kinks amplifies rounding.

    Args:
        config: What to run.
        data: Data set.
        stages: Where finished work is kept.

    Returns:
        Metrics and series.
    """
    if not config.per_class:
        return {}, {}
    tasks = [task(data, s, config.per_class, config.classes) for s in config.seeds]
    found = [
        {
            name: stages.numbers(f"{name}-{t.seed}", functools.partial(measure, config, t))
            for name, measure in PARTS.items()
        }
        for t in tasks
    ]
    metrics = {
        name: [f[part]["metrics"][name] for f in found]
        for part in PARTS
        for name in found[0][part]["metrics"]
    }
    fractions: dict[str, list[Any]] = {"fraction": list(config.fractions)}
    spacings: dict[str, list[Any]] = {"h": list(config.spacings)}
    blocks: dict[str, list[Any]] = {"share of steps": [(k + 0.5) / BLOCKS for k in range(BLOCKS)]}
    axes: dict[str, tuple[str, dict[str, list[Any]]]] = {
        "optima": ("sharpness", {"optimum": list(OPTIMA), "quantity": list(QUANTITIES)}),
        "noises": ("sharpness", {"noise": list(NOISES)}),
        "fixed": ("sharpness", {"quantity": list(AT_ONE_POINT)}),
    }
    series = {
        name: Series(first | fractions, [f[part]["series"][name] for f in found])
        for name, (part, first) in axes.items()
    }
    kinds: dict[str, list[Any]] = {"loss": ["L2", "L-infinity", "local entropy"]}
    series["secants"] = Series(
        kinds | spacings, [f["smoothness"]["series"]["secants"] for f in found]
    )
    watched: dict[str, list[Any]] = {"run": list(RUNS), "quantity": list(WATCHED)}
    series["descents"] = Series(
        watched | blocks, [f["descents"]["series"]["descents"] for f in found]
    )
    return metrics, series


def at_radii(config: Config, t: Task, **changes: Any) -> Problem:
    """One task, attacked with every radius of the grid.

    Args:
        config: The grid.
        t: The task.
        changes: Other settings of the problem.

    Returns:
        A problem of shape (radii,), that shares its images.
    """
    fractions = torch.tensor(config.fractions, dtype=torch.float64)
    return Problem(t.x[None], t.y[None], critical_radius(t.x, t.y) * fractions, **changes)


def measure_sharpness(config: Config, t: Task) -> Numbers:
    """Sharpness at the weights that training against each radius finds, with its controls.

    Args:
        config: What to run.
        t: The task.

    Returns:
        Plain data: ``metrics`` and ``series``.
    """
    plain, decayed = at_radii(config, t), at_radii(config, t, decay=config.decay)
    start = t.start.expand(len(config.fractions), -1).clone()
    trained = descend(plain, start, config.steps, config.rate).w
    rested = descend(decayed, start, config.steps, config.rate).w
    level = descend(plain, start, config.steps, config.level_rate, level=config.level).w
    ways = functools.partial(random_directions, count=config.directions)
    optima = [
        sharpness(problem, w, ways(w, stream=generator(t.seed, WAYS)))
        for problem, w in ((plain, trained), (decayed, rested), (plain, level))
    ]
    clean = trained[0].expand_as(trained)
    stands = samples(plain, clean).margin > 0
    falls = trace_slopes(plain, clean) <= 0
    tops = sample_spectrum(plain, clean)[..., 0]
    fixed = hessian(plain, clean)
    drawn = try_statements(config, t.seed)
    metrics = {
        "critical_radius": float(critical_radius(t.x, t.y)),
        "trace_violations": float((falls & stands).double().sum() / stands.sum().clamp_min(1)),
        "single_top_falls": float((tops.diff(dim=0) < 0)[stands[1:]].double().mean()),
        **drawn,
    }
    top = torch.linalg.eigvalsh(fixed)[:, -1]
    trace = fixed.diagonal(dim1=-2, dim2=-1).sum(-1)
    return {
        "metrics": metrics,
        "series": {
            "optima": optima,
            "noises": noise_controls(config, t, trained),
            "fixed": [top.tolist(), trace.tolist()],
        },
    }


def sharpness(problem: Problem, w: Tensor, ways: Tensor) -> list[list[float]]:
    """Every measure of sharpness at given weights, the penalty left out.

    Args:
        problem: Samples and threat model.
        w: Weights of shape (F, D).
        ways: Random directions of shape (F, K, D).

    Returns:
        A row of F numbers for each of ``QUANTITIES``.
    """
    problem = dataclasses.replace(problem, decay=0.0)
    length, loss = w.norm(dim=-1), adversarial_loss(problem, w)
    full = hessian(problem, w)
    frozen = hessian(problem, w, frozen=True)
    trace = full.diagonal(dim1=-2, dim2=-1).sum(-1)
    up = rise(problem, w, ways, 1.0)
    margins = -exponents(problem, w)
    clean = margins + (problem.epsilon * length).unsqueeze(-1)
    rows = (
        length,
        loss,
        torch.linalg.eigvalsh(full)[..., -1],
        torch.linalg.eigvalsh(frozen)[..., -1],
        trace,
        length.square() * trace / w.shape[-1],
        up,
        up / loss,
        (clean > 0).double().mean(-1),
        (margins > 0).double().mean(-1),
    )
    return [row.tolist() for row in rows]


def noise_controls(config: Config, t: Task, trained: Tensor) -> list[list[float]]:
    """Top eigenvalue, noise frozen, after training with each kind of noise.

    Args:
        config: What to run.
        t: The task.
        trained: Weights trained against the attack, shape (F, D).

    Returns:
        A row per entry of ``NOISES``: adversarial noise; noise of the same length in a direction
        drawn once for each image; noise of the same length that lowers the loss.
    """
    problem = at_radii(config, t)
    start = t.start.expand_as(trained).clone()
    noise = torch.randn(t.x.shape, generator=generator(t.seed, NOISE), dtype=torch.float64)
    noise = noise / noise.norm(dim=-1, keepdim=True)
    moved = t.x + problem.epsilon[:, None, None] * noise
    shaken = Problem(moved, t.y.expand(moved.shape[:-1]), torch.zeros_like(problem.epsilon))
    helped = dataclasses.replace(problem, epsilon=-problem.epsilon)
    rows = [top_frozen(problem, trained)]
    for other in (shaken, helped):
        rows.append(top_frozen(other, descend(other, start, config.steps, config.rate).w))
    return rows


def top_frozen(problem: Problem, w: Tensor) -> list[float]:
    """Top eigenvalue of the Hessian whose noise stays where it is."""
    return torch.linalg.eigvalsh(hessian(problem, w, frozen=True))[..., -1].tolist()


def try_statements(config: Config, seed: int) -> dict[str, float]:
    """Two statements on random samples in three dimensions: does the trace, the top one, rise?

    Args:
        config: Number of samples.
        seed: Decides them.

    Returns:
        Share of the samples that stand for which the trace falls with the radius, and for which
        the top eigenvalue does.
    """
    stream = generator(seed, DRAWS)
    n = config.draws
    x = torch.randn(n, 1, 3, generator=stream, dtype=torch.float64)
    w = torch.randn(n, 3, generator=stream, dtype=torch.float64)
    w = w * (10 ** (2 * torch.rand(n, 1, generator=stream, dtype=torch.float64) - 1))
    y = torch.where(torch.einsum("nkd,nd->nk", x, w) > 0, 1.0, -1.0).double()
    reach = (y * torch.einsum("nkd,nd->nk", x, w))[:, 0] / w.norm(dim=-1)
    share = torch.rand(n, generator=stream, dtype=torch.float64)
    problem = Problem(x, y, share * reach)  # so every sample still stands
    more = dataclasses.replace(problem, epsilon=problem.epsilon + 1e-6)
    top = sample_spectrum(more, w)[..., 0] - sample_spectrum(problem, w)[..., 0]
    return {
        "drawn_trace_falls": float((trace_slopes(problem, w) <= 0).double().mean()),
        "drawn_top_falls": float((top < 0).double().mean()),
    }


# Logistic regression: the formulas, held against independent computations


def measure_formulas(config: Config, t: Task) -> Numbers:
    """Attack, Hessian and spectrum against a searching attack, autograd and ``eigvalsh``.

    Args:
        config: What to run.
        t: The task.

    Returns:
        Plain data: ``metrics``, the largest differences.
    """
    radius = 0.5 * critical_radius(t.x, t.y)
    problem = Problem(t.x, t.y, radius)
    w = descend(problem, t.start, config.steps, config.rate).w

    def logits(x: Tensor) -> Tensor:
        scores = x @ w
        return torch.stack([torch.zeros_like(scores), scores], -1)

    labels = (t.y > 0).long()
    ball = L2(float(radius), bounded=False)
    truth = adversarial_loss(problem, w)
    gaps = [
        float(cross_entropy(logits(found), labels).mean() - truth)
        for found in (
            pgd(logits, t.x, labels, ball, steps=PGD_STEPS, random_start=start, seed=t.seed)
            for start in (False, True)
        )
    ]
    second = torch.autograd.functional.hessian(lambda v: adversarial_loss(problem, v), w)
    few = slice(None, None, max(1, len(t.x) // 20))
    single = Problem(t.x[few, None], t.y[few, None], radius.expand(len(t.y[few])))
    ws = w.expand(len(single.x), -1)
    exact = torch.linalg.eigvalsh(hessian(single, ws))
    spectrum = sample_spectrum(single, ws)[:, 0]
    rest = spectrum[:, 2:].expand(-1, max(0, len(w) - 2))
    formula = torch.cat([spectrum[:, :2], rest], -1).sort(-1).values
    return {
        "metrics": {
            "attack_gap": gaps[0],
            "attack_gap_random_start": gaps[1],
            "hessian_error": float((hessian(problem, w) - second).abs().max()),
            "spectrum_error": float(((formula - exact).abs().amax(-1) / exact[:, -1]).max()),
        }
    }


# Logistic regression: is the loss smooth?


def smooth_pair(config: Config, t: Task) -> tuple[Problem, Problem]:
    """The same task under both threat models, each with half of its own critical radius."""
    pair = [
        Problem(t.x, t.y, 0.5 * critical_radius(t.x, t.y, norm), norm, config.smooth_decay)
        for norm in ("l2", "linf")
    ]
    return pair[0], pair[1]


def measure_smoothness(config: Config, t: Task) -> Numbers:
    """How fast gradients change across the place where one coordinate of w is zero.

    Args:
        config: What to run.
        t: The task.

    Returns:
        Plain data: ``metrics``, and ``series`` with the largest secant at every distance.
    """
    ball, box = smooth_pair(config, t)
    w = descend(ball, t.start, config.steps, config.rate).w
    axes = torch.eye(len(w), dtype=w.dtype)
    points = w * (1 - axes)  # row j: coordinate j is zero
    rows = []
    for problem in (ball, box):
        shared = batched(problem)
        gradient = functools.partial(adversarial_gradient, shared)
        rows.append([float(secant(gradient, points, axes, h).max()) for h in config.spacings])
    shared, h = batched(box), 1e-8
    jumps = 2 * h * secant(functools.partial(adversarial_gradient, shared), points, axes, h)
    off = (jumps - 2 * half_jump(shared, points)).abs().max()
    entropy, worst = entropy_secants(config, t, box, points[int(jumps.argmax())])
    halved = halving(ball, w)
    metrics = {
        "jump": float(jumps.max()),
        "jump_error": float(off),
        "entropy_secant": worst,
        "entropy_slack": config.smoothing_gamma - worst,
        **halved,
    }
    return {"metrics": metrics, "series": {"secants": [*rows, entropy]}}


def batched(problem: Problem) -> Problem:
    """The same problem for many weights at once."""
    return dataclasses.replace(problem, x=problem.x[None], y=problem.y[None])


def entropy_secants(
    config: Config, t: Task, problem: Problem, centre: Tensor
) -> tuple[list[float], float]:
    """The largest secant of the local entropy's gradient over all axes, at every distance.

    Args:
        config: What to run.
        t: The task.
        problem: An L-infinity problem.
        centre: A point on a kink, shape (D,).

    Returns:
        One number per distance, and the largest of all.
    """
    gamma, size = config.smoothing_gamma, (config.smoothing_draws, len(centre))
    noise = torch.randn(size, generator=generator(t.seed, SMOOTHING), dtype=torch.float64)
    noise = noise / math.sqrt(gamma)
    parts = [adversarial_loss(batched(problem), centre + part) for part in noise.split(500)]
    losses = torch.cat(parts)
    axes = torch.eye(len(centre), dtype=torch.float64)

    def gradient(shift: Tensor) -> Tensor:
        return local_entropy_gradient(shift, noise, losses, gamma)

    origin = torch.zeros_like(axes)
    found = [float(secant(gradient, origin, axes, h).max()) for h in config.spacings]
    return found, max(found)


def halving(problem: Problem, w: Tensor) -> dict[str, float]:
    """What halving the weights does to how fast the L2 attack turns, and to what that adds.

    Args:
        problem: An L2 problem.
        w: Weights of shape (D,).

    Returns:
        Three ratios, at w/2 over at w: how fast the attack turns with w; the term that this adds to
        the Hessian, per unit of the mean slope; that term as it is.
    """
    across = torch.zeros_like(w)
    across[0], across[1] = w[1], -w[0]  # perpendicular to w
    across = across / across.norm()
    turned, lifted, raw = [], [], []
    for point in (w / 2, w):
        step = 1e-4 * float(point.norm())
        attack = functools.partial(direction, norm="l2")
        turned.append(float(problem.epsilon * secant(attack, point, across, step)))
        gap = hessian(problem, point) - hessian(problem, point, frozen=True)
        raw.append(float(across @ gap @ across))
        lifted.append(raw[-1] / float(torch.sigmoid(exponents(problem, point)).mean()))
    return {
        "halved_turning": turned[0] / turned[1],
        "halved_term": lifted[0] / lifted[1],
        "halved_raw": raw[0] / raw[1],
    }


def measure_descents(config: Config, t: Task) -> Numbers:
    """Gradient descent on both losses, and what may cure it where it does not settle.

    All runs see the same number of gradients. The gap is the loss above the lowest that was found,
    by a run three times as long whose steps decay to zero.

    Args:
        config: What to run.
        t: The task.

    Returns:
        Plain data: ``metrics``, and ``series`` with means over blocks of steps.
    """
    ball, box = smooth_pair(config, t)
    steps, rate, small = config.steps, config.rate, config.entropy.inner_rate
    descents = {
        "l2": (ball, descend(ball, t.start, steps, rate)),
        "linf": (box, descend(box, t.start, steps, rate)),
        "decaying": (box, descend(box, t.start, steps, rate, schedule="cosine")),
        "small": (box, descend(box, t.start, steps, small)),
    }
    lowest = {
        "l2": float(adversarial_loss(ball, descend(ball, descents["l2"][1].w, steps, rate).w))
    }
    final = descend(box, descents["decaying"][1].w, 3 * steps, rate / 10, schedule="cosine")
    lowest["linf"] = float(adversarial_loss(box, final.w))
    metrics: dict[str, float] = {}
    rows = []
    for name, (problem, found) in descents.items():
        gaps = found.loss - lowest.get(name, lowest["linf"])
        curves = [blockwise(part) for part in (found.gradient, gaps, found.flips.double())]
        rows.append(curves)
        metrics |= {f"{name}_{q}": curve[-1] for q, curve in zip(WATCHED, curves, strict=True)}
        metrics[f"{name}_end_gap"] = float(adversarial_loss(problem, found.w)) - lowest.get(
            name, lowest["linf"]
        )
        metrics[f"{name}_first_gradient"] = float(found.gradient[0])
    decaying = descents["decaying"][1]
    metrics["decaying_subgradient"] = float(least_subgradient(box, decaying.w, decaying.restless))
    more, row = entropy_descent(config, t, box, descents["linf"][1].w, lowest["linf"])
    return {"metrics": metrics | more, "series": {"descents": [*rows, row]}}


def entropy_descent(
    config: Config, t: Task, box: Problem, elsewhere: Tensor, lowest: float
) -> tuple[dict[str, float], list[list[float]]]:
    """Entropy-SGD on the L-infinity loss, with as many gradients as the other runs.

    Args:
        config: What to run.
        t: The task.
        box: The L-infinity problem.
        elsewhere: Where plain descent ended: the same gradient is estimated there for comparison.
        lowest: The lowest loss found.

    Returns:
        Metrics, and a row of curves; gap and flips are those of the outer weights.
    """
    gradient = functools.partial(adversarial_gradient, box)
    settings, stream = config.entropy, generator(t.seed, INNER)
    outer = max(BLOCKS, config.steps // settings.inner_steps)
    found = t.start
    lengths: list[Tensor] = []
    gaps: list[Tensor] = []
    flips: list[Tensor] = []
    for _ in range(outer):
        step = entropy_sgd(gradient, found, 1, settings, stream)
        lengths.append(step.gradient[0])
        gaps.append(adversarial_loss(box, found) - lowest)
        flips.append((step.theta.sign() != found.sign()).sum().double())
        found = step.theta
    curves = [blockwise(torch.stack(part)) for part in (lengths, gaps, flips)]
    there = entropy_sgd(gradient, elsewhere, 1, settings, stream)
    metrics = {f"entropy_{q}": curve[-1] for q, curve in zip(WATCHED, curves, strict=True)}
    return metrics | {
        "entropy_end_gap": float(adversarial_loss(box, found)) - lowest,
        "entropy_first_gradient": float(lengths[0]),
        "entropy_gradient_at_gd": float(there.gradient[0]),
    }, curves


def blockwise(values: Tensor) -> list[float]:
    """Means over ``BLOCKS`` blocks of a curve."""
    return [float(part.mean()) for part in values.tensor_split(BLOCKS)]


PARTS: dict[str, Callable[[Config, Task], Numbers]] = {
    "sharpness": measure_sharpness,
    "formulas": measure_formulas,
    "smoothness": measure_smoothness,
    "descents": measure_descents,
}


# The small network


def network_part(
    config: Config, data: Dataset, stages: Stages, *, device: str, progress: bool
) -> Measured:
    """Networks trained against every radius, and how sharp their losses are.

    Args:
        config: What to run.
        data: Data set.
        stages: Where finished work is kept.
        device: Where to train and measure.
        progress: Whether to show progress.

    Returns:
        Metrics and series.

    Raises:
        ValueError: If the model does not fit the data.
    """
    if not config.radii:
        return {}, {}
    model = build(config.model).to(device)
    found: list[list[list[float]]] = [[] for _ in config.seeds]
    for radius in config.radii:
        networks = trained_networks(config, data, stages, radius, device=device, progress=progress)
        for k, params in enumerate(networks):
            measure = functools.partial(
                measure_network, config, model, params, data, radius, config.seeds[k]
            )
            found[k].append(stages.numbers(f"network-{radius:.4g}-{config.seeds[k]}", measure))
    values = [[list(row) for row in zip(*rows, strict=True)] for rows in found]
    place, last = config.radii.index(config.claim_radius), len(config.radii) - 1
    metrics: dict[str, list[float]] = {}
    for q, name in enumerate(OF_NETWORK):
        key = "network_" + name.replace(", ", "_").replace(" ", "_")
        metrics |= {
            f"{key}_clean": [v[q][0] for v in values],
            f"{key}_attacked": [v[q][place] for v in values],
            f"{key}_largest": [max(v[q]) for v in values],
            f"{key}_last": [v[q][last] for v in values],
        }
    axes: dict[str, list[Any]] = {"quantity": list(OF_NETWORK), "radius": list(config.radii)}
    return metrics, {"network": Series(axes, values)}


def trained_networks(
    config: Config,
    data: Dataset,
    stages: Stages,
    radius: float,
    *,
    device: str,
    progress: bool,
) -> list[Params]:
    """One network per seed, trained against one radius.

    Args:
        config: What to run.
        data: Data set.
        stages: Where finished work is kept.
        radius: Radius of the attack (L2, inside the box [0, 1]); 0 trains without one.
        device: Where to train.
        progress: Whether to show progress.

    Returns:
        Parameters in the order of the seeds, on the device.
    """
    loss = AdversarialTraining(L2(radius), config.attack_steps) if radius else Standard()
    together = config.together or len(config.seeds)
    found: list[Params] = []
    for first in range(0, len(config.seeds), together):
        seeds = config.seeds[first : first + together]
        name = f"networks-{radius:.4g}-{seeds[0]}"

        def compute(checkpoint: Path | None, seeds: Any = seeds, name: str = name) -> Params:
            return train(
                config.model,
                data,
                seeds,
                config.train,
                loss=loss,
                device=device,
                progress=f"train {name}" if progress else "",
                checkpoint=checkpoint,
            ).params

        params = stages.tensors(name, compute)
        found += unstack({n: tensor.to(device) for n, tensor in params.items()})
    return found


def measure_network(
    config: Config, model: nn.Module, params: Params, data: Dataset, radius: float, seed: int
) -> list[float]:
    """Sharpness and accuracy of one network under the attack that it was trained against.

    Args:
        config: How much to measure.
        model: Architecture.
        params: Parameters and buffers by name.
        data: Data set; sharpness is measured on training images, accuracy on test images.
        radius: Radius of the attack.
        seed: Decides the attack's starts and the random directions.

    Returns:
        Numbers in the order of ``OF_NETWORK``.
    """
    model.eval()
    some, device = slice(config.evaluate), next(iter(params.values())).device
    x, y, test_x, test_y = (
        part[some].to(device) for part in (data.train_x, data.train_y, data.test_x, data.test_y)
    )

    def attack(model: Predict, x: Tensor, y: Tensor) -> Tensor:
        """The attack of training; at radius 0 the inputs themselves."""
        return pgd(model, x, y, L2(radius), steps=config.attack_steps, seed=seed) if radius else x

    here = functools.partial(predict, model, params)
    found = attack(here, x, y)
    frozen = RobustLoss(model, found, y)
    rises = [
        landscape_rise(config, loss, params, seed)
        for loss in (RobustLoss(model, x, y, attack), frozen)
    ]
    return [
        top_of_network(model, params, found, y, seed),
        *rises,
        float(frozen([params])),
        score(model, params, test_x, test_y).accuracy,
        score(model, params, attack(here, test_x, test_y), test_y).accuracy,
    ]


def landscape_rise(config: Config, loss: RobustLoss, params: Params, seed: int) -> float:
    """Mean rise of a loss at both ends of random filter-normalised directions, in nats."""
    ends = []
    for k in range(config.ways):
        way = filter_direction(params, seed * config.ways + k)
        ends += line_landscape(loss, params, way, (config.alpha, -config.alpha))
    return sum(ends) / len(ends) - float(loss([params]))


def top_of_network(
    model: nn.Module, params: Params, x: Tensor, y: Tensor, seed: int, *, chunk: int = 250
) -> float:
    """Top eigenvalue of the Hessian of the mean cross-entropy on given images.

    Args:
        model: Architecture, in eval mode.
        params: Parameters and buffers.
        x: Images; for a frozen attack, those that it found.
        y: Labels.
        seed: Of the start vector of Lanczos' iteration.
        chunk: Images per part.

    Returns:
        The largest eigenvalue.
    """
    names = parameter_names(model)
    weights = {name: params[name] for name in names}

    def part_of_loss(moved: Params, part: slice) -> Tensor:
        logits = predict(model, {**params, **moved}, x[part])
        return F.cross_entropy(logits, y[part], reduction="sum") / len(y)

    parts = [
        functools.partial(part_of_loss, part=slice(first, first + chunk))
        for first in range(0, len(y), chunk)
    ]
    product = hessian_of(parts, weights)
    steps = min(60, sum(tensor.numel() for tensor in weights.values()))
    return float(top_eigenvalues(product, weights, which="largest", steps=steps, seed=seed).values)


# Claims: statement, effect, margin and the reason for the margin, fixed before the first run of the
# study


def rows(result: Result, optimum: str, quantity: str) -> list[list[float]]:
    """A quantity over the grid of radii, per task."""
    axes = result.series["optima"].axes
    first, second = axes["optimum"].index(optimum), axes["quantity"].index(quantity)
    return [seed[first][second] for seed in result.series["optima"].values]


def place(result: Result, series: str, fraction: float) -> int:
    """Where a radius stands in the grid; the claim is open if it does not."""
    ticks = result.series[series].axes["fraction"]
    if fraction not in ticks:
        raise KeyError(f"a radius of {fraction}")
    return int(ticks.index(fraction))


def least_step(optimum: str, quantity: str, sign: int = 1) -> Effect:
    """Effect: the smallest logarithmic step of a quantity from one radius to the next."""

    def effect(result: Result) -> list[float]:
        return [
            min(sign * math.log(b / a) for a, b in itertools.pairwise(row))
            for row in positive(rows(result, optimum, quantity))
        ]

    return effect


def positive(table: list[list[float]]) -> list[list[float]]:
    """A table whose logarithms exist, or else the claim is open."""
    if min(min(row) for row in table) <= 0:
        raise KeyError("positive values")
    return table


def over_clean(optimum: str, quantity: str, fraction: float) -> Effect:
    """Effect: logarithm of a quantity over what it is without an attack."""

    def effect(result: Result) -> list[float]:
        table = positive(rows(result, optimum, quantity))
        at = place(result, "optima", fraction)
        if optimum == "equal loss":
            check_level(result, at)
        return [math.log(row[at] / row[0]) for row in table]

    return effect


def check_level(result: Result, at: int) -> None:
    """At equal loss, both ends of a comparison must have met the level to a hundredth."""
    for row in rows(result, "equal loss", "loss"):
        if abs(row[at] / row[0] - 1) > 0.01:
            raise KeyError("equal losses")


def fall_from_peak(result: Result) -> list[float]:
    """Effect: share of its peak that the rise has lost at the largest radius."""
    return [1 - row[-1] / max(row) for row in positive(rows(result, "equal steps", "rise"))]


def noise_ratio(above: str, below: str) -> Effect:
    """Effect: logarithm of the ratio of two top eigenvalues at half of the critical radius.

    ``clean`` names training without noise.
    """

    def effect(result: Result) -> list[float]:
        names = result.series["noises"].axes["noise"]
        at = place(result, "noises", 0.5)

        def value(seed: Any, name: str) -> float:
            if name == "clean":
                return float(seed[names.index("adversarial")][0])
            return float(seed[names.index(name)][at])

        pairs = [
            (value(seed, above), value(seed, below)) for seed in result.series["noises"].values
        ]
        return [math.log(p / q) for p, q in positive([list(pair) for pair in pairs])]

    return effect


def log_ratio(above: str, below: str, base: float = math.e) -> Effect:
    """Effect: logarithm of the ratio of two metrics, per seed."""

    def effect(result: Result) -> list[float]:
        pairs = list(zip(result.metric(above), result.metric(below), strict=True))
        positive([list(pair) for pair in pairs])
        return [math.log(p / q, base) for p, q in pairs]

    return effect


def secant_spread(result: Result) -> list[float]:
    """Effect: logarithm of the largest over the smallest L2 secant, h over four decades."""
    chosen = [k for k, h in enumerate(spacings(result)) if 0.99e-5 <= h <= 1.01e-1]
    if len(chosen) < 2:
        raise KeyError("distances from 1e-1 to 1e-5")
    curves = [[seed[0][k] for k in chosen] for seed in result.series["secants"].values]
    return [math.log(max(curve) / min(curve)) for curve in positive(curves)]


def secant_times_h(result: Result) -> list[float]:
    """Effect: how much secant times h changes for the L-infinity loss, for h up to 1e-4."""
    chosen = [(k, h) for k, h in enumerate(spacings(result)) if h <= 1.01e-4]
    if len(chosen) < 2:
        raise KeyError("distances below 1e-4")
    found = []
    for seed in result.series["secants"].values:
        jumps = [h * seed[1][k] for k, h in chosen]
        found.append(max(jumps) / min(jumps) - 1)
    return found


def spacings(result: Result) -> list[float]:
    """Half distances of the secants."""
    return list(result.series["secants"].axes["h"])


def off_two(result: Result) -> list[float]:
    """Effect: how far halving w is from doubling how fast the attack turns, and its term."""
    pairs = zip(result.metric("halved_turning"), result.metric("halved_term"), strict=True)
    return [max((p - 2, q - 2), key=abs) for p, q in pairs]


def gap_closed(result: Result) -> list[float]:
    """Effect: share of the gap in loss that decaying steps close."""
    gaps = zip(result.metric("decaying_end_gap"), result.metric("linf_gap"), strict=True)
    found = []
    for after, before in gaps:
        if before <= 0:
            raise KeyError("a gap to close")
        found.append(1 - after / before)
    return found


def entropy_advantage(result: Result) -> list[float]:
    """Effect: log10 of how much further the gradient falls under Entropy-SGD than under GD."""
    names = ("linf_gradient", "linf_first_gradient", "entropy_gradient", "entropy_first_gradient")
    found = []
    for values in zip(*(result.metric(name) for name in names), strict=True):
        last, first, entropy_last, entropy_first = values
        positive([list(values)])
        found.append(math.log10((last / first) / (entropy_last / entropy_first)))
    return found


HERE = "this lesson"
YAMADA, KANAI = "yamada2021sharper", "kanai2021smoothness"
STATED = "stated without a number in the abstract"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "Y1a",
        "After equal steps, the top eigenvalue of the Hessian rises with the radius, at every step "
        "of the grid.",
        f"{YAMADA}, abstract",
        least_step("equal steps", "top eigenvalue"),
        margin=0.05,
        reason="5 % per step of the grid: less we would not call a rise",
        unit="log ratio",
        paper=STATED,
    ),
    Claim(
        "Y1b",
        "So does the trace.",
        f"{YAMADA}, abstract; the trace is derived here",
        least_step("equal steps", "trace"),
        margin=0.05,
        reason="as in Y1a",
        unit="log ratio",
    ),
    Claim(
        "Y1c",
        "At the minimum of the loss with weight decay, the top eigenvalue rises as well.",
        HERE,
        least_step("weight decay", "top eigenvalue"),
        margin=0.05,
        reason="as in Y1a",
        unit="log ratio",
    ),
    Claim(
        "Y1d",
        "At equal loss (0.4 nats in the study) and half of the critical radius, the top eigenvalue "
        "is what it is without an attack, within a factor of 1.25.",
        HERE,
        over_clean("equal loss", "top eigenvalue", 0.5),
        margin=round(math.log(1.25), 3),
        reason="a quarter: far below what Y1a finds; the pilot was within 6 %",
        kind="equal",
        unit="log ratio",
    ),
    Claim(
        "Y1e",
        "At equal loss the trace still rises, by more than a factor of 2 at half of the critical "
        "radius.",
        HERE,
        over_clean("equal loss", "trace", 0.5),
        margin=round(math.log(2), 3),
        reason="the pilot found about 3; 2 is the least worth the name",
        unit="log ratio",
    ),
    Claim(
        "Y2a",
        "At fixed weights, the trace rises with the radius for every image that is still read "
        "correctly: share of exceptions.",
        "derived here",
        measured("trace_violations"),
        margin=0.0,
        reason="a theorem: no exception",
        kind="exact",
        unit="share",
        paper="an identity",
    ),
    Claim(
        "Y2b",
        "The same for random samples in three dimensions: share of exceptions.",
        "derived here",
        measured("drawn_trace_falls"),
        margin=0.0,
        reason="a theorem: no exception",
        kind="exact",
        unit="share",
        paper="an identity",
    ),
    Claim(
        "Y2c",
        "The top eigenvalue need not rise: for some random samples in three dimensions it falls.",
        "derived here",
        measured("drawn_top_falls"),
        margin=0.001,
        reason="one in a thousand: one example would do",
        unit="share",
    ),
    Claim(
        "Y3a",
        "Training with adversarial noise ends with a top eigenvalue more than twice that of random "
        "noise of the same length.",
        f"{YAMADA}, abstract",
        noise_ratio("adversarial", "random"),
        margin=round(math.log(2), 3),
        reason="a factor of 2 would be the least worth the name",
        unit="log ratio",
        paper=STATED,
    ),
    Claim(
        "Y3b",
        "Random noise leaves the top eigenvalue where it is without noise, within a factor of 1.5.",
        HERE,
        noise_ratio("random", "clean"),
        margin=round(math.log(1.5), 3),
        reason="adversarial noise changes it by an order of magnitude",
        kind="equal",
        unit="log ratio",
    ),
    Claim(
        "Y3c",
        "Noise in the opposite direction flattens, by more than a factor of 1.5.",
        HERE,
        noise_ratio("clean", "helpful"),
        margin=round(math.log(1.5), 3),
        reason="more than what Y3b grants to random noise",
        unit="log ratio",
    ),
    Claim(
        "Y4",
        "Projected gradient ascent of 10 steps, from the image itself, finds the loss of the "
        "closed-form attack.",
        "derived here",
        measured("attack_gap"),
        margin=1e-3,
        reason="set by the design before the lesson was written",
        kind="exact",
        unit="nats",
        paper="an identity",
    ),
    Claim(
        "Y5a",
        "The formula of the Hessian agrees with automatic differentiation.",
        "derived here",
        measured("hessian_error"),
        margin=1e-8,
        reason="rounding of float64",
        kind="exact",
        paper="an identity",
    ),
    Claim(
        "Y5b",
        "The formula of a sample's spectrum agrees with a numerical eigenvalue solver.",
        "derived here",
        measured("spectrum_error"),
        margin=1e-8,
        reason="rounding of float64",
        kind="exact",
        unit="relative",
        paper="an identity",
    ),
    Claim(
        "Y6a",
        "At three tenths of the critical radius, the loss rises more than 1.5 times as much along "
        "filter-normalised directions as without an attack.",
        HERE,
        over_clean("equal steps", "rise", 0.3),
        margin=round(math.log(1.5), 3),
        reason="half as much again; 100 directions know the mean to a few per cent",
        unit="log ratio",
    ),
    Claim(
        "Y6b",
        "This rise is not monotone: at the largest radius it has lost more than a tenth of its "
        "peak.",
        HERE,
        fall_from_peak,
        margin=0.1,
        reason="a tenth: several times what the choice of directions changes",
        unit="share",
    ),
    Claim(
        "Y6c",
        "Relative to the loss, this rise falls with the radius, at every step of the grid.",
        HERE,
        least_step("equal steps", "rise over loss", sign=-1),
        margin=0.0,
        reason="found on one task (3 against 8) beforehand; a pilot on other tasks spoke against "
        "it",
        unit="log ratio",
    ),
    Claim(
        "Y7a",
        "A small network trained against an attack that it can fit has a top eigenvalue more than "
        "1.5 times that of clean training (attack frozen).",
        f"{YAMADA}, abstract (there ResNet-18)",
        log_ratio("network_top_eigenvalue_attacked", "network_top_eigenvalue_clean"),
        margin=round(math.log(1.5), 3),
        reason="half as much again; seeds differed by about a third in the pilot",
        unit="log ratio",
        paper=STATED,
    ),
    Claim(
        "Y7b",
        "So has the rise along filter-normalised directions (attack recomputed).",
        f"{HERE}; direction as in {YAMADA}, abstract",
        log_ratio("network_rise_attacked", "network_rise_clean"),
        margin=round(math.log(1.5), 3),
        reason="as in Y7a",
        unit="log ratio",
    ),
    Claim(
        "Y7c",
        "At the largest radius, where it under-fits, the top eigenvalue has fallen below half of "
        "its peak.",
        HERE,
        log_ratio("network_top_eigenvalue_largest", "network_top_eigenvalue_last"),
        margin=round(math.log(2), 3),
        reason="half: more than seeds differ",
        unit="log ratio",
    ),
    Claim(
        "K1",
        "L2: across a zero coordinate, secants of the gradient stay within a factor of 2 while "
        "their length shrinks by four decades.",
        f"{KANAI}, abstract; derived here",
        secant_spread,
        margin=round(math.log(2), 3),
        reason="set by the design before the lesson was written",
        kind="equal",
        unit="log ratio",
    ),
    Claim(
        "K2a",
        "L-infinity: there they grow like 1/h; secant times h changes by less than 10 %.",
        f"{KANAI}, abstract; derived here",
        secant_times_h,
        margin=0.1,
        reason="set by the design before the lesson was written; for h up to 1e-4, where the "
        "smooth part of the change no longer counts",
        kind="exact",
        unit="relative",
    ),
    Claim(
        "K2b",
        "The gradient jumps by twice the radius times the mean slope.",
        "derived here",
        measured("jump_error"),
        margin=1e-6,
        reason="the smooth part of the change over 2e-8",
        kind="exact",
        paper="an identity",
    ),
    Claim(
        "K3a",
        "With a constant step size, the gradient stays more than 100 times as long under the "
        "L-infinity attack as under the L2 attack.",
        HERE,
        log_ratio("linf_gradient", "l2_gradient", base=10),
        margin=2.0,
        reason="orders of magnitude: at least two",
        unit="decades",
    ),
    Claim(
        "K3b",
        "And more than one coordinate of the weights changes its sign at every step, beyond what "
        "the L2 attack does.",
        HERE,
        difference("linf_flips", "l2_flips"),
        margin=1.0,
        reason="less than one per step could be the end of a transient",
        unit="coordinates",
    ),
    Claim(
        "K3c",
        "Decaying steps bring the gradient down, at least by a factor of 10.",
        HERE,
        log_ratio("linf_gradient", "decaying_gradient", base=10),
        margin=1.0,
        reason="an order of magnitude; a pilot on other tasks spoke against it",
        unit="decades",
    ),
    Claim(
        "K3d",
        "Decaying steps close more than nine tenths of the gap to the lowest loss.",
        HERE,
        gap_closed,
        margin=0.9,
        reason="an order of magnitude",
        unit="share",
    ),
    Claim(
        "K4",
        "L2: at half the weights, the attack turns twice as fast, and what this adds to the "
        "Hessian, per unit of the mean slope, doubles: deviation from 2.",
        "derived here",
        off_two,
        margin=1e-6,
        reason="rounding of a difference quotient in float64",
        kind="exact",
        paper="an identity",
    ),
    Claim(
        "K6a",
        "Local entropy: no secant of its gradient exceeds gamma, on the kink of the L-infinity "
        "loss itself.",
        f"{KANAI}, abstract; derived here",
        measured("entropy_slack"),
        margin=0.0,
        reason="a theorem, here for a sampled integral",
    ),
    Claim(
        "K6b",
        "Entropy-SGD brings its gradient down more than 3 times as far as gradient descent with a "
        "constant step does.",
        f"{HERE}; local entropy as in {KANAI}, abstract",
        entropy_advantage,
        margin=0.5,
        reason="half an order of magnitude; both relative to the first gradient",
        unit="decades",
    ),
)

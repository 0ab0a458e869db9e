"""The lesson's claims can come out either way; its parts add up; its controls are what they say."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SHAPES, check_claims, check_controls, killed_again_and_again, random_images, shape
from fakes import synthetic as fake_result

from lmc_lessons import datasets
from lmc_lessons.experiments import sharpness_adversarial_training as lesson
from lmc_lessons.experiments.runs import override
from lmc_lessons.models import ModelConfig, build, initial, predict
from lmc_lessons.results import Claim, Result, Series, dump
from lmc_lessons.robustness.logistic import Problem, critical_radius, hessian
from lmc_lessons.robustness.sharpness import filter_direction, moved

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5
FRACTIONS = [0.0, 0.3, 0.5, 0.8]
SPACINGS = [1e-1, 1e-3, 1e-4, 1e-5, 1e-6]


# --- Claims ---------------------------------------------------------------------------------------


def around(value: float) -> list[float]:
    """One number per seed, close to that value but not all the same."""
    return [value * (1 + 0.01 * k) for k in range(SEEDS)]


def one(name: str, holds: float, fails: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """A claim about a single metric."""
    return {name: around(holds)}, {name: around(fails)}


def exact(name: str, fails: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """A claim that a metric is nothing but rounding, which one seed is enough to break."""
    return {name: [0.0] * SEEDS}, {name: [0.0] * (SEEDS - 1) + [fails]}


def ratio(
    above: str, below: str, holds: tuple[float, float], fails: tuple[float, float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A claim about two metrics."""
    return (
        {above: around(holds[0]), below: around(holds[1])},
        {above: around(fails[0]), below: around(fails[1])},
    )


def optima(optimum: str, **rows: list[float]) -> dict[str, Any]:
    """Sharpness at one optimum; every other number is 1."""
    axes: dict[str, list[Any]] = {"optimum": list(lesson.OPTIMA)}
    axes |= {"quantity": list(lesson.QUANTITIES), "fraction": FRACTIONS}
    values = []
    for k in range(SEEDS):
        table = [[[1.0] * 4 for _ in lesson.QUANTITIES] for _ in lesson.OPTIMA]
        for name, row in rows.items():
            place = lesson.QUANTITIES.index(name.replace("_", " "))
            bent = [value ** (1 + 0.01 * k) for value in row]
            table[lesson.OPTIMA.index(optimum)][place] = bent
        values.append(table)
    return {"optima": Series(axes, values)}


def noises(adversarial: float, random: float, helpful: float) -> dict[str, Any]:
    """Top eigenvalues at half of the critical radius; 1 without noise."""
    axes: dict[str, list[Any]] = {"noise": list(lesson.NOISES), "fraction": FRACTIONS}
    rows = [
        [[1.0, 1.0, value * (1 + 0.01 * k), 1.0] for value in (adversarial, random, helpful)]
        for k in range(SEEDS)
    ]
    return {"noises": Series(axes, rows)}


def secants(ball: list[float], box: list[float]) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {"loss": ["L2", "L-infinity", "local entropy"], "h": SPACINGS}
    rows = [ball, box, [0.1] * 5]
    return {"secants": Series(axes, [rows for _ in range(SEEDS)])}


UP, LEVEL, DOWN = [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0], [4.0, 3.0, 2.0, 1.0]
HUMP = [1.0, 2.0, 4.0, 3.0]
JUMPS = [0.1 / h for h in SPACINGS]
GRADIENTS = ("linf_gradient", "linf_first_gradient", "entropy_gradient", "entropy_first_gradient")


def four(*values: float) -> dict[str, Any]:
    return {name: around(value) for name, value in zip(GRADIENTS, values, strict=True)}


# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "Y1a": (
        optima("equal steps", top_eigenvalue=UP),
        optima("equal steps", top_eigenvalue=HUMP),
    ),
    "Y1b": (optima("equal steps", trace=UP), optima("equal steps", trace=HUMP)),
    "Y1c": (
        optima("weight decay", top_eigenvalue=UP),
        optima("weight decay", top_eigenvalue=DOWN),
    ),
    "Y1d": (
        optima("equal loss", top_eigenvalue=[1.0, 1.02, 1.05, 9.0]),
        optima("equal loss", top_eigenvalue=UP),
    ),
    "Y1e": (optima("equal loss", trace=UP), optima("equal loss", trace=[1, 1.1, 1.2, 9.0])),
    "Y2a": exact("trace_violations", 0.001),
    "Y2b": exact("drawn_trace_falls", 0.001),
    "Y2c": one("drawn_top_falls", 0.02, 0.0001),
    "Y3a": (noises(9.0, 1.0, 1.0), noises(1.5, 1.0, 1.0)),
    "Y3b": (noises(9.0, 1.1, 1.0), noises(9.0, 2.0, 1.0)),
    "Y3c": (noises(9.0, 1.0, 0.3), noises(9.0, 1.0, 0.9)),
    "Y4": exact("attack_gap", -0.01),
    "Y5a": exact("hessian_error", 1e-6),
    "Y5b": exact("spectrum_error", 1e-6),
    "Y6a": (optima("equal steps", rise=UP), optima("equal steps", rise=[1, 1.1, 2, 3])),
    "Y6b": (optima("equal steps", rise=HUMP), optima("equal steps", rise=UP)),
    "Y6c": (
        optima("equal steps", rise_over_loss=DOWN),
        optima("equal steps", rise_over_loss=HUMP),
    ),
    "Y7a": ratio(
        "network_top_eigenvalue_attacked", "network_top_eigenvalue_clean", (20, 4), (4, 4)
    ),
    "Y7b": ratio("network_rise_attacked", "network_rise_clean", (0.5, 0.1), (0.1, 0.1)),
    "Y7c": ratio(
        "network_top_eigenvalue_largest", "network_top_eigenvalue_last", (20, 4), (20, 19)
    ),
    "K1": (secants([1.0] * 5, JUMPS), secants(JUMPS, JUMPS)),
    "K2a": (secants([1.0] * 5, JUMPS), secants([1.0] * 5, [1.0] * 5)),
    "K2b": exact("jump_error", 1e-3),
    "K3a": ratio("linf_gradient", "l2_gradient", (0.3, 1e-9), (0.3, 0.1)),
    "K3b": ratio("linf_flips", "l2_flips", (30, 0), (30, 30)),
    "K3c": ratio("linf_gradient", "decaying_gradient", (0.3, 0.003), (0.3, 0.3)),
    "K3d": ratio("linf_gap", "decaying_end_gap", (0.02, 1e-5), (0.02, 0.01)),
    "K4": (
        {"halved_turning": [2.0] * SEEDS, "halved_term": [2.0] * SEEDS},
        {"halved_turning": [2.0] * SEEDS, "halved_term": [2.0] * 4 + [1.9]},
    ),
    "K6a": one("entropy_slack", 0.5, -0.5),
    "K6b": (four(0.3, 1.0, 0.01, 0.5), four(0.3, 1.0, 0.15, 0.5)),
}


def synthetic(measured: dict[str, Any]) -> Result:
    return fake_result(lesson.LESSON, measured, SEEDS)


def verdict(name: str, measured: dict[str, Any]) -> str:
    return CLAIMS[name].decide(synthetic(measured)).verdict


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


def test_a_claim_needs_its_controls_too() -> None:
    check_controls(lesson, MEASURED, SEEDS)


@pytest.mark.parametrize(
    ("name", "measured", "reason"),
    [
        ("Y1a", optima("equal steps", top_eigenvalue=[0.0, 1, 2, 3]), "positive values"),
        ("Y1e", optima("equal loss", trace=UP, loss=[0.4, 0.4, 0.5, 0.4]), "equal losses"),
        ("K2a", {"secants": Series({"loss": ["L2"], "h": [0.1, 0.01]}, [])}, "below 1e-4"),
        ("K1", {"secants": Series({"loss": ["L2"], "h": [1e-6, 1e-7]}, [])}, "1e-1 to 1e-5"),
        ("K3d", ratio("linf_gap", "decaying_end_gap", (0, 0), (0, 0))[0], "a gap to close"),
        ("K6b", four(0.0, 1.0, 0.01, 0.5), "positive values"),
    ],
)
def test_where_a_claim_has_no_meaning_it_is_not_measured(
    name: str, measured: dict[str, Any], reason: str
) -> None:
    found = CLAIMS[name].decide(synthetic(measured))
    assert (found.verdict, found.effect) == ("not-measured", None)
    assert reason in found.evidence


def test_a_claim_about_a_radius_needs_that_radius() -> None:
    series = optima("equal steps", rise=UP)["optima"]
    axes = series.axes | {"fraction": [0.0, 0.2, 0.5, 0.8]}
    assert verdict("Y6a", {"optima": Series(axes, series.values)}) == "not-measured"


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert claim.margin >= 0
    assert not any(mark.isdigit() for mark in claim.paper), "the papers' numbers were not read"


# --- Presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.dataset in datasets.names()
    assert hash(config) == hash(dataclasses.replace(config))
    assert config.per_class or config.radii, "nothing to do"
    if config.radii:
        assert config.model.input_shape == SHAPES[config.dataset]
        with torch.device("meta"):
            build(config.model)


def test_the_scales_of_the_design_are_there() -> None:
    wanted = "toy study full-mnist-3-8 full-mnist-0-1 full-fashion-mlp full-cifar-resnet18"
    assert wanted.split() == list(lesson.PRESETS)
    assert len(lesson.PRESETS["toy"].seeds) <= 2
    for name in wanted.split()[1:]:
        assert len(lesson.PRESETS[name].seeds) >= 5, name


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, "seeds must be different integers >= 0"),
        ({"seeds": (5,)}, r"pairs \(s, s \+ 5\) with s from 0 to 4, got \(5,\)"),
        ({"classes": (3,)}, "two classes or none"),
        ({"classes": (3, 3)}, "two classes or none"),
        ({"fractions": (0.0, 0.5)}, "fractions must hold 0, 0.3 and 0.5"),
        ({"fractions": (0.0, 0.3, 0.5, 1.0)}, "below 1"),
        ({"fractions": (0.3, 0.5)}, "fractions must rise from 0"),
        ({"radii": (0.5, 1.0)}, "radii must rise from 0"),
        ({"claim_radius": 0.3}, "claim_radius must be in"),
        ({"claim_radius": 0.0}, "claim_radius must be in"),
        ({"spacings": (1e-3,)}, "two or more that fall"),
        ({"spacings": (1e-3, 1e-2)}, "two or more that fall"),
        ({"spacings": (1e-3, 0.0)}, "spacings must be > 0"),
        ({"steps": 3}, "steps must be at least 40, got 3"),
        ({"evaluate": 0}, "evaluate must be at least 1"),
        ({"rate": 0.0}, "must be > 0"),
        ({"decay": -1.0}, "decay and smooth_decay must be >= 0"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**changes)
    assert "\n" not in str(caught.value)


SMALL = [
    *("per_class=2", "steps=40", "directions=3", "draws=50", "smoothing_draws=20"),
    *("spacings=(0.1, 0.0001, 0.000001)", "entropy.inner_steps=2", "level=0.68"),
    *("fractions=(0.0, 0.3, 0.5)", "level_rate=0.01", "rate=0.05"),
]
SMALL_NETWORK = [
    *("train.epochs=1", "train.batch_size=20", "train.precision=float32", "train.compile=False"),
    *("evaluate=6", "ways=1", "attack_steps=2"),
]
RADII = ["radii=(0.0, 0.5)"]
SMALLER: dict[str, list[str]] = {
    "toy": [*SMALL, *SMALL_NETWORK, *RADII, "model.width=6"],
    "study": [*SMALL, *SMALL_NETWORK, *RADII, "model.width=6", "seeds=(1, 2)"],
    "full-mnist-3-8": [*SMALL, "seeds=(0,)"],
    "full-mnist-0-1": [*SMALL, "seeds=(1,)"],
    "full-fashion-mlp": [*SMALL_NETWORK, "radii=(0.0, 1.0)", "model.width=6", "seeds=(0, 1)"],
    "full-cifar-resnet18": [
        *SMALL_NETWORK,
        *(f"radii=(0.0, {128 / 255})", "seeds=(0,)", "model.architecture=cnn", "model.width=3"),
    ],
}
# What the small editions cannot show: too few steps to meet a level or to leave a gap.
OPEN = ("equal losses", "a gap to close", "positive values", "network_", "optima", "noises")


def small(preset: str, *settings: str) -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALLER[preset], *settings])
    return config


def test_every_preset_has_a_small_edition() -> None:
    assert set(SMALLER) == set(lesson.PRESETS)


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_shrunk_presets_run_and_give_the_same_numbers_twice(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    config = small(preset)
    first = lesson.run(config)
    again = first if config.dataset == "mnist" else lesson.run(config)  # slow
    assert first.metrics == again.metrics
    assert first.series == again.series
    assert first.claims == again.claims
    assert [claim.id for claim in first.claims] == list(CLAIMS)
    assert first.config == json.loads(dump(dataclasses.asdict(config)))
    seeds = len(config.seeds)
    assert {len(values) for values in first.metrics.values()} == {seeds}
    for name, series in first.series.items():
        assert shape(series.values) == (seeds, *map(len, series.axes.values())), name
    assert Result.from_json(json.loads(dump(first.to_json()))).metrics == first.metrics
    assert ("network" in first.series) == bool(config.radii)
    assert ("optima" in first.series) == bool(config.per_class)
    logistic = [c for c in first.claims if not c.id.startswith("Y7")]
    network = [c for c in first.claims if c.id.startswith("Y7")]
    for measured, claims in ((config.per_class, logistic), (config.radii, network)):
        for claim in claims:
            is_open = claim.verdict == "not-measured"
            assert not is_open or not measured or any(o in claim.evidence for o in OPEN), claim
            assert is_open or measured, claim


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    config = small("study", "together=1")
    whole = lesson.run(config)
    last, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=5
    )
    assert attempts > 2
    assert (last.metrics, last.series, last.claims) == (whole.metrics, whole.series, whole.claims)


def test_a_seed_gives_the_same_numbers_alone_and_among_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ``refresh`` relies on: one seed, run again, stands for the study."""
    monkeypatch.setattr(datasets, "load", random_images)
    many, once = lesson.run(small("study")), lesson.run(small("study", "seeds=(2,)"))
    assert {name: values[1] for name, values in many.metrics.items()} == {
        name: values[0] for name, values in once.metrics.items()
    }
    assert {name: series.values[1] for name, series in many.series.items()} == {
        name: series.values[0] for name, series in once.series.items()
    }


# --- The parts ------------------------------------------------------------------------------------


def test_tasks_share_no_image() -> None:
    data = datasets.load("digits")
    seen = torch.cat([lesson.task(data, s, 130).x for s in range(5)])
    assert len(torch.unique(seen, dim=0)) == len(
        torch.unique(
            data.train_x.flatten(1).double()[
                torch.cat([(data.train_y == c).nonzero()[:130, 0] for c in range(10)])
            ],
            dim=0,
        )
    )
    parts = [lesson.task(data, s, 20, (3, 8)).x for s in range(5)]
    assert all(
        not bool((parts[0].unsqueeze(1) == part.unsqueeze(0)).all(-1).any()) for part in parts[1:]
    )
    three = lesson.task(data, 3, 20)
    assert torch.equal(three.x, lesson.task(data, 0, 20, (3, 8)).x)
    assert (three.y[:20] == 1).all()
    assert (three.y[20:] == -1).all()


def test_too_few_images_are_refused() -> None:
    data = datasets.load("digits", limit=100)
    with pytest.raises(ValueError, match=r"seed 0 needs 130 images of class 0 of digits"):
        lesson.task(data, 0, 130)


def test_a_landscape_of_a_network_is_measured_on_both_sides() -> None:
    config = dataclasses.replace(small("study"), ways=2)
    model, params = build(config.model).eval(), initial(config.model, 0)
    data = random_images("digits")
    loss = lesson.RobustLoss(model, data.train_x, data.train_y)
    heights = []
    for k in range(2):
        way = filter_direction(params, 2 + k)
        for sign in (1, -1):
            logits = predict(model, moved(params, way, sign * config.alpha), data.train_x)
            heights.append(float(torch.nn.functional.cross_entropy(logits, data.train_y)))
    base = torch.nn.functional.cross_entropy(predict(model, params, data.train_x), data.train_y)
    expected = sum(heights) / 4 - float(base)
    assert lesson.landscape_rise(config, loss, params, 1) == pytest.approx(expected, abs=1e-5)


def test_top_eigenvalue_of_a_linear_network_is_that_of_logistic_regression() -> None:
    """Two logits with weights v and -v: the network's Hessian has four times the eigenvalue."""
    stream = torch.Generator().manual_seed(0)
    x, w = (torch.randn(shape, generator=stream) for shape in ((40, 1, 2, 3), (6,)))
    y = torch.arange(40) % 2
    model = build(ModelConfig("mlp", (1, 2, 3), 2, depth=0)).eval()
    params = {"output.weight": torch.stack([-w, w]) / 2, "output.bias": torch.zeros(2)}
    found = lesson.top_of_network(model, params, x, y, 0, chunk=7)
    # Bias as a constant feature; both rows move the difference of the logits: a factor of 2.
    lifted = torch.cat([x.flatten(1), torch.ones(40, 1)], 1).double()
    weights = torch.cat([w, torch.zeros(1)]).double()
    problem = Problem(lifted, 2.0 * y.double() - 1, torch.zeros((), dtype=torch.float64))
    exact_value = 2 * torch.linalg.eigvalsh(hessian(problem, weights))[-1]
    assert found == pytest.approx(float(exact_value), rel=1e-3)


def test_helpful_noise_is_the_attack_turned_round() -> None:
    data = datasets.load("digits")
    config = dataclasses.replace(lesson.PRESETS["toy"], steps=200)
    t = lesson.task(data, 1, 50)
    problem = lesson.at_radii(config, t)
    assert torch.allclose(
        problem.epsilon,
        critical_radius(t.x, t.y) * torch.tensor(config.fractions, dtype=torch.float64),
    )
    trained = lesson.descend(
        problem, t.start.expand(len(config.fractions), -1).clone(), config.steps, config.rate
    ).w
    adversarial, random, helpful = lesson.noise_controls(config, t, trained)
    assert adversarial[0] == pytest.approx(random[0]) == pytest.approx(helpful[0])
    assert adversarial[-1] > random[-1] > helpful[-1]


def test_where_the_loss_is_flat_the_attack_turns_faster() -> None:
    """Halving the weights: twice for the attack, and for the term per unit of slope."""
    data = datasets.load("digits")
    t = lesson.task(data, 0, 50)
    problem = Problem(t.x, t.y, 0.5 * critical_radius(t.x, t.y))
    found = lesson.halving(problem, 10 * t.start)
    assert found["halved_turning"] == pytest.approx(2, abs=1e-9)
    assert found["halved_term"] == pytest.approx(2, abs=1e-9)
    assert not math.isclose(found["halved_raw"], 2, rel_tol=1e-3)

"""The lesson's claims can come out either way; who teaches whom on what, and what is measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import SHAPES, check_claims, killed_again_and_again, shape
from fakes import synthetic as fake_result
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments import ardir as lesson
from lmc_lessons.experiments.runs import Stages, override
from lmc_lessons.models import RESNET_STAGES, build, initial, predict, stack, unstack
from lmc_lessons.results import Claim, Result, Series, dump
from lmc_lessons.robustness.attacks import LInf, ensemble, evaluate, pgd
from lmc_lessons.robustness.distillation import Distillation, Teacher, ardir, rslad
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining
from lmc_lessons.training import train

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5

# --- Claims ---------------------------------------------------------------------------------------


def around(value: float, step: float = 0.001) -> list[float]:
    """One number per seed, close to that value but not all the same."""
    return [value + step * (k - SEEDS // 2) for k in range(SEEDS)]


def of(quantity: str, **values: float) -> dict[str, Any]:
    """Networks of which one quantity was measured; underscores stand for spaces."""
    return {
        lesson.metric(NAMES[name], quantity): around(v, 0.001 * (k + 1))
        for k, (name, v) in enumerate(values.items())
    }


NAMES = {
    "at": "AT",
    "again": lesson.AGAIN,
    "longer": "AT, twice as long",
    "teacher": lesson.TEACHER,
    "smooth": "label smoothing",
    "trades": "TRADES",
    "output": "output",
    "akd": "AKD-like",
    "rslad": "RSLAD",
    "rep": "rep 5",
    "rep20": "rep 20",
    "moving": "rep 5, attacked",
    "hard": "rep 5, hard labels",
    "last": lesson.LAST,
    "natural": "rep 5, natural teacher",
}
ENSEMBLE = "ensemble accuracy"


def pair(better: str, worse: str, quantity: str = ENSEMBLE, gap: float = 0.05) -> Any:
    """A run in which the first is better, and one in which the second is."""
    return tuple(of(quantity, **{better: 0.7 + g, worse: 0.7}) for g in (gap, -gap))


def drops(at: float, rep: float) -> dict[str, Any]:
    """Accuracy that falls by so much after the epoch that validation chooses."""
    axes: dict[str, list[Any]] = {
        "network": ["AT", "rep 5"],
        "quantity": ["epoch", "stopped", "last"],
    }
    rows = [[[40.0, 0.6, 0.6 - d * (1 + 0.01 * k)] for d in (at, rep)] for k in range(SEEDS)]
    return {"stopped": Series(axes, rows)}


def passes(student: int, teacher: int) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {"method": ["AT", "rep 5"], "by": ["student", "teacher"]}
    return {"passes": Series(axes, [[[11, 0], [student, teacher]]] * SEEDS)}


MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "C1": pair("output", "at"),
    "C2": pair("rep", "output"),
    "C3": pair("rep", "teacher"),
    "C4": pair("rep", "rep20"),
    "C5": pair("rep", "moving"),
    "C6": (
        of("clean accuracy", rep=0.98, at=0.98),
        of("clean accuracy", rep=0.95, at=0.98),
    ),
    "C7": (drops(0.08, 0.01), drops(0.08, 0.08)),
    "P1": pair("rep", "akd"),
    "P2": pair("rep", "rslad"),
    "P3": pair("rep", "trades"),
    "K1": (of(ENSEMBLE, at=0.7, again=0.7), of(ENSEMBLE, at=0.7, again=0.6)),
    "K2": pair("rep", "longer"),
    "K3": pair("rep", "natural"),
    "K4": pair("rep", "hard"),
    "K5": pair("rep", "last"),
    "S1": pair("smooth", "at", "PGD accuracy"),
    "S2": pair("at", "smooth"),
    "F1": pair("at", "rep", "feature shift"),
    "F2": (
        of("cosine to teacher", rep=0.9, output=0.2),
        of("cosine to teacher", rep=0.3, output=0.2),
    ),
    "W1": (passes(11, 1), passes(11, 2)),
}


def synthetic(measured: dict[str, Any]) -> Result:
    return fake_result(lesson.LESSON, measured, SEEDS)


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


@pytest.mark.parametrize(
    ("name", "missing"), [(n, key) for n, (holds, _) in MEASURED.items() for key in holds]
)
def test_a_claim_needs_everything_that_it_reads(name: str, missing: str) -> None:
    rest = {key: value for key, value in MEASURED[name][0].items() if key != missing}
    found = CLAIMS[name].decide(synthetic(rest))
    assert found.verdict == "not-measured"
    assert missing in found.evidence


def test_less_overfitting_means_nothing_where_there_is_none() -> None:
    found = CLAIMS["C7"].decide(synthetic(drops(0.019, -0.05)))
    assert found.verdict == "not-measured"
    assert "robust overfitting" in found.evidence


@pytest.mark.parametrize("claim", ["C7", "W1"])
def test_a_run_without_the_student_leaves_claims_open(claim: str) -> None:
    measured = {}
    for key, series in MEASURED[claim][0].items():
        axis = next(iter(series.axes))
        axes = {**series.axes, axis: ["AT"]}
        measured[key] = Series(axes, [seed[:1] for seed in series.values])
    found = CLAIMS[claim].decide(synthetic(measured))
    assert found.verdict == "not-measured"
    assert "rep 5" in found.evidence


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper, claim.unit):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert claim.margin >= 0
    assert claim.paper in ("not read", "said in the abstract, without a number")


# --- Power ----------------------------------------------------------------------------------------


def test_the_power_is_reached_and_not_one_seed_before() -> None:
    differences = [0.4, -0.9, 1.4, 0.2, -0.3, 1.0]
    noise = float(np.std(differences, ddof=1))
    for effect in (0.3, 0.5, 2.0):
        n = lesson.seeds_needed(differences, effect)

        def power(n: int, effect: float = effect) -> float:
            edge = stats.t.ppf(0.975, n - 1)
            return float(stats.nct.sf(edge, n - 1, effect / noise * n**0.5))

        assert power(n) >= 0.8
        assert n == 2 or power(n - 1) < 0.8
        assert lesson.seeds_needed(differences, -effect) == n


def test_the_power_is_the_share_of_intervals_that_exclude_zero() -> None:
    noise, effect = 1.0, 0.8
    n = lesson.seeds_needed([-noise / 2**0.5, noise / 2**0.5], effect)
    draws = np.random.default_rng(0).normal(effect, noise, (20_000, n))
    half = stats.t.ppf(0.975, n - 1) * draws.std(1, ddof=1) / n**0.5
    assert np.mean(draws.mean(1) - half > 0) == pytest.approx(0.8, abs=0.03)


def test_no_noise_needs_no_seeds_and_much_needs_many() -> None:
    assert lesson.seeds_needed([1.0, 1.0, 1.0], 0.1) == 2
    assert lesson.seeds_needed([-1000.0, 1000.0], 1e-3) == 100_000


@pytest.mark.parametrize(
    ("differences", "effect", "power"), [([1.0], 1.0, 0.8), ([1.0, 2.0], 0.0, 0.8), ([1, 2], 1, 1)]
)
def test_a_power_that_cannot_be_computed_is_refused(
    differences: list[float], effect: float, power: float
) -> None:
    with pytest.raises(ValueError, match="at least two differences, an effect other than 0"):
        lesson.seeds_needed(differences, effect, power=power)


# --- Presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.dataset in datasets.names()
    assert config.model.input_shape == SHAPES[config.dataset]
    assert hash(config) == hash(dataclasses.replace(config))
    assert config.epochs[-1] == config.drawn_at[-1] == config.train.epochs
    with torch.device("meta"):
        build(config.model)


def test_the_scales_of_the_design_are_there() -> None:
    wanted = {"toy", "study", "full-fashion-mlp", "full-cifar-ardir", "paper"}
    assert set(lesson.PRESETS) == wanted
    assert len(lesson.PRESETS["toy"].seeds) == 1
    assert len(lesson.PRESETS["study"].seeds) >= 5
    assert set(lesson.PRESETS["study"].methods) == set(lesson.METHODS)
    assert lesson.PRESETS["study"].train.fast is False


@pytest.mark.parametrize(
    ("every", "epochs", "curve", "drawn"),
    [(15, 60, [15, 30, 45, 60], [0, 5, 60]), (20, 3, [3], [0, 3]), (1, 2, [1, 2], [0, 2])],
)
def test_curves_and_pictures_end_at_the_last_epoch(
    every: int, epochs: int, curve: list[int], drawn: list[int]
) -> None:
    recipe = dataclasses.replace(lesson.Config().train, epochs=epochs)
    config = lesson.Config(every=every, train=recipe, moments=(0, 5, 70))
    assert (config.epochs, config.drawn_at) == (curve, drawn)


RECIPE = lesson.Config().train


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, r"seeds must be different integers, got \(\)"),
        ({"seeds": (1, 1)}, r"seeds must be different integers, got \(1, 1\)"),
        ({"seeds": (0, -1)}, r"seeds must lie from 0 to 999, got \(0, -1\)"),
        ({"seeds": (1000,)}, r"seeds must lie from 0 to 999, got \(1000,\)"),
        ({"methods": ("AT", "rep 7")}, "no method 'rep 7', allowed: AT, .*natural teacher"),
        ({"methods": ("TRADES",)}, r"AT among them, got \('TRADES',\)"),
        ({"methods": ("AT", "AT")}, r"methods must be different, .*got \('AT', 'AT'\)"),
        ({"validation": 0}, "validation must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"curve_steps": 0}, "curve_steps must be at least 1, got 0"),
        ({"eval_steps": 0}, "eval_steps must be at least 1, got 0"),
        ({"ensemble_steps": 0}, "ensemble_steps must be at least 1, got 0"),
        ({"pictured": 2}, "pictured must be at least 3, got 2"),
        ({"queries": -1}, "queries must be at least 0, got -1"),
        ({"together": -1}, "together must be at least 0, got -1"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"test": 1}, "test must be at least 2, got 1"),
        ({"ensemble_with": 0}, "ensemble_with must be at least 2, got 0"),
        ({"moments": (0, -3)}, r"moments must be epochs >= 0, got \(0, -3\)"),
        ({"train": dataclasses.replace(RECIPE, epochs=0)}, "train.epochs must be at least 1"),
        ({"train": dataclasses.replace(RECIPE, label_noise=0.1)}, "label_noise 0, got 100, 0.1"),
        ({"epsilon": -0.1}, "epsilon must be a number >= 0, got -0.1"),
        ({"attack_steps": 0}, "an attack needs steps >= 1 .*got 0, None"),
        ({"attack_mode": "both"}, "mode is 'both', allowed: train, eval"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**changes)
    assert "\n" not in str(caught.value)


# --- The data: who sees what ----------------------------------------------------------------------


def images(name: str, seed: int = 0, **_: Any) -> Dataset:
    """Random images, with enough of them for all parts."""
    stream = torch.Generator().manual_seed(seed)
    x = torch.rand(70, *SHAPES[name], generator=stream)
    y = torch.randint(10, (70,), generator=stream)
    y[:10] = torch.arange(10)
    return Dataset(name, "random", x[:50], y[:50], x[50:], y[50:], tuple("0123456789"))


@pytest.fixture(autouse=True)
def random_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", images)


SMALL = [
    *("seeds=(0, 1)", "samples=20", "validation=10", "train.epochs=3", "every=1", "test=30"),
    *("train.batch_size=10", "attack_steps=2", "curve_steps=2", "eval_steps=2", "pictured=4"),
    *("ensemble_steps=2", "moments=(0, 1)", "model.width=6", "model.depth=2"),
]


def small(*settings: str, preset: str = "toy") -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALL, *settings])
    return config


def setting_of(config: lesson.Config, data: Dataset | None = None) -> lesson.Setting:
    part, validation = lesson.split(config, data or images(config.dataset))
    return lesson.Setting(config, part, validation, build(config.model).eval(), "cpu")


def test_the_parts_share_no_sample_and_leave_none_out() -> None:
    config, data = small("test=None"), images("digits")
    part, (x, y) = lesson.split(config, data)
    assert (len(part.train_x), len(x), len(part.test_x)) == (20, 10, 40)
    assert (len(part.train_y), len(y), len(part.test_y)) == (20, 10, 40)
    rows = {
        (row.numpy().tobytes(), int(k))
        for xs, ys in ((part.train_x, part.train_y), (x, y), (part.test_x, part.test_y))
        for row, k in zip(xs, ys, strict=True)
    }
    whole = torch.cat([data.train_x, data.test_x]), torch.cat([data.train_y, data.test_y])
    assert rows == {(row.numpy().tobytes(), int(k)) for row, k in zip(*whole, strict=True)}
    assert torch.equal(part.test_x[:20], data.test_x)
    assert torch.equal(lesson.split(small(), data)[0].test_x, part.test_x[:30])


def test_all_samples_may_train() -> None:
    part, (x, _) = lesson.split(small("samples=None", "test=None"), images("digits"))
    assert (len(part.train_x), len(x), len(part.test_x)) == (40, 10, 20)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["samples=45"], "digits has 50 training samples, asked for 45 and 10 for validation"),
        (["samples=None", "validation=49"], "digits has 50 training samples, .* 49 for validation"),
        (["model.input_shape=(64,)"], r"inputs of shape \(1, 8, 8\) .*model takes \(64,\) and 10"),
        (["model.classes=9"], r"10 classes, the model takes \(1, 8, 8\) and 9"),
    ],
)
def test_data_that_do_not_fit_are_refused(settings: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.run(small(*settings))
    assert "\n" not in str(caught.value)


# --- Methods --------------------------------------------------------------------------------------


def teachers(config: lesson.Config) -> dict[str, Teacher]:
    return {
        kind: Teacher(stack([initial(config.model, 50 + k)]), config.model)
        for k, kind in enumerate(("robust", "last", "natural"))
    }


def test_a_method_is_what_its_name_says() -> None:
    config = small()
    kinds = teachers(config)
    attack = AdversarialTraining(LInf(0.15), 2)
    found = {n: lesson.objective_of(m, config, kinds) for n, m in lesson.METHODS.items()}
    assert found["AT"] == found["AT, twice as long"] == attack
    assert found["TRADES"] == TRADES(LInf(0.15), beta=6.0, steps=2)
    assert found["label smoothing"] == Distillation(attack, hard=1.0, smoothing=0.2)
    assert found["output"] == ardir(attack, kinds["robust"], weight=0)
    assert found["RSLAD"] == rslad(attack, kinds["robust"])
    for name, weight in (("rep 0.5", 0.5), ("rep 2", 2.0), ("rep 5", 5.0), ("rep 20", 20.0)):
        assert found[name] == ardir(attack, kinds["robust"], weight=weight)
    moving = ardir(attack, kinds["robust"], weight=5.0, taught_on="attacked")
    assert found["rep 5, attacked"] == moving
    for kind, name in (("last", lesson.LAST), ("natural", "rep 5, natural teacher")):
        assert found[name] == ardir(attack, kinds[kind], weight=5.0)
    hard: Any = found["rep 5, hard labels"]
    assert (hard.hard, hard.labels, hard.features.weight) == (1.0, (), 5.0)
    akd: Any = found["AKD-like"]
    (soft,) = akd.labels
    assert (akd.hard, akd.features, soft.weight, soft.taught_on) == (0.5, None, 0.5, "attacked")
    assert {m.longer for n, m in lesson.METHODS.items() if n != "AT, twice as long"} == {1}


def test_each_student_has_the_teacher_of_its_seed_and_the_right_kind() -> None:
    setting = setting_of(small("methods=('AT', 'output', 'rep 5, natural teacher')", "every=2"))
    config = setting.config
    school = lesson.train_all(setting, Stages(None, config))
    teaching = (1000, 1001)
    masters = train(
        config.model, setting.data, teaching, config.train, loss=config.attack, snapshots=(2, 3)
    )
    natural = train(config.model, setting.data, teaching, config.train).params
    last = school.networks[lesson.AGAIN]
    assert all(torch.equal(last[n], masters.params[n]) for n in last)
    assert all(torch.equal(school.networks[lesson.NATURAL][n], natural[n]) for n in natural)
    best = lesson.stopped(masters.snapshots, [2, 3], school.curves[lesson.TEACHER])
    assert all(torch.equal(school.networks[lesson.TEACHER][n], best[n]) for n in best)
    for name, params, weight in (("output", best, 0), ("rep 5, natural teacher", natural, 5.0)):
        loss = ardir(config.attack, Teacher(params, config.model, (0, 1)), weight=weight)
        wanted = train(config.model, setting.data, (0, 1), config.train, loss=loss).params
        assert all(torch.equal(school.networks[name][n], wanted[n]) for n in wanted), name


def test_twice_as_long_is_twice_as_long() -> None:
    setting = setting_of(small("methods=('AT', 'AT, twice as long')"))
    config = setting.config
    found = lesson.train_all(setting, Stages(None, config)).networks["AT, twice as long"]
    recipe = dataclasses.replace(config.train, epochs=6)
    wanted = train(config.model, setting.data, (0, 1), recipe, loss=config.attack).params
    assert all(torch.equal(found[n], wanted[n]) for n in wanted)


def test_validation_chooses_the_teacher_and_takes_the_first_of_equals() -> None:
    found = {e: {"w": torch.tensor([10.0 * e, 10.0 * e + 1])} for e in (2, 4, 5)}
    curves = [[[0.1, 0.5, 0.5], [0.9, 0.2, 0.3]], [[0.9, 0.2, 0.3], [0.1, 0.8, 0.9]]]
    assert lesson.stopped(found, [2, 4, 5], curves)["w"].tolist() == [40.0, 21.0]


def test_test_data_choose_no_teacher() -> None:
    one, two = (setting_of(small(), images("digits", k)) for k in (0, 0))
    other = images("digits", 1)
    changed = dataclasses.replace(one.data, test_x=other.test_x, test_y=other.test_y)
    two = dataclasses.replace(two, data=changed)
    a, b = (lesson.train_all(s, Stages(None, s.config)).networks for s in (one, two))
    assert all(torch.equal(a[n][k], b[n][k]) for n in a for k in a[n])


# --- Measurements ---------------------------------------------------------------------------------


def forward(params: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Representation and logits of a small MLP, written out."""
    h = x.flatten(1)
    for k in range(2):
        h = F.relu(h @ params[f"hidden.{k}.weight"].T + params[f"hidden.{k}.bias"])
    return h, h @ params["output.weight"].T + params["output.bias"]


def test_quantities_are_what_they_are_called() -> None:
    setting = setting_of(small("epsilon=0.05"))
    config = setting.config
    trained = train(config.model, setting.data, (5, 6), config.train)
    params, teacher = unstack(trained.params)
    found = dict(
        zip(lesson.QUANTITIES, lesson.measure_network(setting, params, teacher), strict=True)
    )
    x, y = setting.data.test_x, setting.data.test_y
    threat, model = LInf(0.05), setting.model
    attacks = {"PGD": lesson.pgd_of(2)}
    report = evaluate(model, params, x, y, threat, attacks)
    assert found["clean accuracy"] == pytest.approx(report.clean)
    hurt = pgd(lambda z: predict(model, params, z), x, y, threat, steps=2)
    (before, logits), (after, moved) = forward(params, x), forward(params, hurt)
    right = (logits.argmax(1) == y) & (moved.argmax(1) == y)
    assert found["PGD accuracy"] == pytest.approx(right.double().mean().item())
    gone = evaluate(model, params, x, y, threat, ensemble(steps=2, queries=0)).robust
    assert found["ensemble accuracy"] <= found["clean accuracy"]
    assert found["ensemble accuracy"] == pytest.approx(list(gone.values())[-1], abs=0.1)
    shift = ((after - before).norm(dim=1) / before.norm(dim=1).clamp_min(1e-30)).mean()
    assert found["feature shift"] == pytest.approx(float(shift), rel=1e-4)
    cosine = F.cosine_similarity(before, forward(teacher, x)[0], dim=1).mean()
    assert found["cosine to teacher"] == pytest.approx(float(cosine), rel=1e-4)
    p = F.softmax(forward(params, setting.data.train_x)[1], 1)
    entropy = torch.distributions.Categorical(p).entropy().mean()
    assert found["label entropy"] == pytest.approx(float(entropy), rel=1e-4)
    assert 0 <= found["train PGD accuracy"] <= 1


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = setting_of(small())
    params = initial(setting.config.model, 3)
    x, y = setting.test()
    whole = lesson.answers(setting, params, x)
    masks = lesson.left_standing(setting, params, x, y, {"still": lambda p, x, y, t: x})
    monkeypatch.setattr(lesson, "CHUNK", 7)
    assert torch.allclose(lesson.answers(setting, params, x).logits, whole.logits, atol=1e-6)
    again = lesson.left_standing(setting, params, x, y, {"still": lambda p, x, y, t: x})
    assert torch.equal(again["still"], masks["still"])
    assert torch.equal(again["still"], whole.logits.argmax(1) == y)
    assert lesson.attacked(setting, params, x, y, 1).shape == x.shape


def test_main_directions_are_those_of_the_covariance() -> None:
    points = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [1.0, 5.0, 0.1, 3.0]
    )
    centred = points - points.mean(0)
    found = lesson.main_directions(centred)
    vectors = np.linalg.eigh(np.cov(centred.numpy().T))[1][:, [3, 2]]
    assert np.abs(found.numpy().T @ vectors) == pytest.approx(np.eye(2), abs=1e-5)
    assert bool((found.gather(0, found.abs().argmax(0, keepdim=True)) > 0).all())


def test_a_picture_shows_what_the_loss_compares() -> None:
    setting = setting_of(small("methods=('AT', 'rep 5')", "seeds=(2,)"))
    school = lesson.train_all(setting, Stages(None, setting.config))
    found = lesson.picture(setting, school, 0)
    assert shape(found["points"]) == (1, 3, 4, 2)
    assert shape(found["teacher"]) == (4, 2)
    x, y = setting.test()
    teacher = unstack(school.networks[lesson.TEACHER])[0]
    student = unstack(school.networks["rep 5"])[0]
    target = forward(teacher, x)[0]
    hurt = pgd(
        lambda z: predict(setting.model, student, z),
        x,
        y,
        LInf(0.15),
        steps=setting.config.curve_steps,
    )
    own = forward(student, hurt)[0]
    distance = (own - target).square().sum(1).mean() / target.square().sum(1).mean()
    assert found["distance"][0][-1] == pytest.approx(float(distance), rel=1e-4)
    gap = np.array(found["points"][0][-1]) - np.array(found["teacher"])
    axes = lesson.main_directions(target - target.mean(0))
    assert gap == pytest.approx(((own - target)[:4].double() @ axes).numpy(), abs=1e-5)


def test_passes_are_counted() -> None:
    setting = setting_of(small("attack_steps=4"))
    plain = ("AT", "AT, twice as long", "label smoothing")
    for name in lesson.METHODS:
        wanted = (5, 0) if name in plain else (5, 1)
        wanted = {"TRADES": (7, 0), "RSLAD": (6, 2), "rep 5, attacked": (5, 2)}.get(name, wanted)
        wanted = (5, 1) if name == "rep 5, hard labels" else wanted
        assert lesson.count_passes(setting, name) == wanted, name


# --- Runs -----------------------------------------------------------------------------------------

SMALL_IMAGES = [
    *("seeds=(0,)", "samples=8", "validation=4", "test=4", "train.epochs=1", "train.batch_size=4"),
    *("attack_steps=1", "curve_steps=1", "eval_steps=1", "ensemble_steps=1", "queries=2"),
    *("pictured=3", "moments=(0,)", "train.precision=float32", "train.compile=False"),
    *("ensemble_with=3", "train.learning_rate=0.01"),
]
NARROW = ((2, 1), (4, 1), (4, 2))
SMALLER: dict[str, list[str]] = {
    "toy": SMALL,
    "study": [*SMALL, "seeds=(3,)"],
    "full-fashion-mlp": [*SMALL, "seeds=(0,)"],
    "full-cifar-ardir": SMALL_IMAGES,
    "paper": SMALL_IMAGES,
}


def test_every_preset_has_a_small_edition() -> None:
    assert set(SMALLER) == set(lesson.PRESETS)


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_shrunk_presets_run(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESNET_STAGES, 18, NARROW)
    config: lesson.Config = override(lesson.PRESETS[preset], SMALLER[preset])
    result = lesson.run(config)
    assert (result.lesson, result.preset, result.seeds) == ("ardir", preset, list(config.seeds))
    assert [claim.id for claim in result.claims] == list(CLAIMS)
    assert result.config == json.loads(dump(dataclasses.asdict(config)))
    assert set(result.datasets) == {config.dataset}
    for name, series in result.series.items():
        assert shape(series.values) == (len(config.seeds), *map(len, series.axes.values())), name
    names = {name.split(": ")[0] for name in result.metrics}
    natural = {lesson.NATURAL} if "rep 5, natural teacher" in config.methods else set()
    assert names == {*config.methods, lesson.TEACHER, lesson.AGAIN} | natural
    assert {len(values) for values in result.metrics.values()} == {len(config.seeds)}
    again = Result.from_json(json.loads(dump(result.to_json())))
    assert (again.metrics, again.series) == (result.metrics, result.series)
    if preset == "study":
        opened = {c.id for c in result.claims if c.verdict == "not-measured"}
        assert opened <= {"C7"}


def test_no_pictures_without_students() -> None:
    result = lesson.run(small("methods=('AT',)"))
    assert set(result.series) == {"PGD accuracy", "stopped", "passes"}


def test_stops_agree_with_the_curves() -> None:
    result = lesson.run(small("epsilon=0.02"))
    curves, stops = result.series["PGD accuracy"], result.series["stopped"]
    for seed, rows in zip(curves.values, stops.values, strict=True):
        for (validation, test), (epoch, stopped, last) in zip(seed, rows, strict=True):
            best = validation.index(max(validation))
            assert (epoch, stopped, last) == (curves.axes["epoch"][best], test[best], test[-1])


def test_a_seed_gives_the_same_numbers_alone_and_among_others() -> None:
    """What ``refresh`` relies on: the first seed, run again, stands for the study."""
    methods = ("AT", "TRADES", "RSLAD", "label smoothing", "rep 5", "rep 5, natural teacher")
    settings = (f"methods={methods}", "train.epochs=2", "every=1")
    many = lesson.run(small(*settings))
    for k in (0, 1):
        once = lesson.run(small(*settings, f"seeds=({k},)"))
        assert {n: v[k] for n, v in many.metrics.items()} == {
            n: v[0] for n, v in once.metrics.items()
        }
        assert {n: s.values[k] for n, s in many.series.items()} == {
            n: s.values[0] for n, s in once.series.items()
        }


def test_networks_are_the_same_however_many_are_trained_together() -> None:
    many, apart = (lesson.run(small(f"together={k}")) for k in (0, 1))
    assert (many.metrics, many.series) == (apart.metrics, apart.series)


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("together=1", "every=2")
    whole = lesson.run(config)
    last, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=12
    )
    assert attempts > 2
    assert (last.metrics, last.series, last.claims) == (whole.metrics, whole.series, whole.claims)

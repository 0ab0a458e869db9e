"""Claims can come out either way; who is trained by what loss; what is measured, and how."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import (
    SHAPES,
    check_claims,
    check_controls,
    killed_again_and_again,
    random_images,
    shape,
)
from fakes import synthetic as fake_result
from torch.nn import functional as F

from lmc_lessons import datasets
from lmc_lessons.experiments import logit_margins as lesson
from lmc_lessons.experiments.runs import override
from lmc_lessons.models import RESNET_STAGES, Params, build, initial, predict, unstack
from lmc_lessons.results import Claim, dump
from lmc_lessons.robustness.attacks import LInf, apgd, margin_loss, pgd, targeted_apgd
from lmc_lessons.robustness.importance import (
    GAIRAT,
    MAIL,
    MART,
    SOVR,
    TSOVR,
    EntropyWeighted,
    TopWeighted,
    TopWeightedTRADES,
)
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining
from lmc_lessons.training import train

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5
Metrics = dict[str, Any]


# --- Claims ---------------------------------------------------------------------------------------


def around(value: float) -> list[float]:
    """One number per seed, close to that value but not all the same."""
    return [value * (1 + 0.002 * k) for k in range(SEEDS)]


def of(quantity: str, **values: float) -> Metrics:
    """One quantity of some methods; underscores stand for spaces."""
    return {f"{m.replace('_', ' ')}: {quantity}": around(v) for m, v in values.items()}


def measured(method: str, **values: float) -> Metrics:
    """Some quantities of one method."""
    return {f"{method}: {q.replace('_', ' ')}": around(v) for q, v in values.items()}


def lowered(method: str) -> tuple[Metrics, Metrics]:
    names = (f"{method}: easy margin", "AT: easy margin")
    return (
        dict(zip(names, (around(1.0), around(4.0)), strict=True)),
        dict(zip(names, (around(4.0), around(4.0)), strict=True)),
    )


def wider(method: str) -> tuple[Metrics, Metrics]:
    names = (f"{method}: PGD gap", "AT: PGD gap")
    return (
        dict(zip(names, (around(0.1), around(0.03)), strict=True)),
        dict(zip(names, (around(0.04), around(0.03)), strict=True)),
    )


def ahead(more: str, less: str) -> tuple[Metrics, Metrics]:
    names = (f"{more}: ensemble", f"{less}: ensemble")
    return (
        dict(zip(names, (around(0.75), around(0.70)), strict=True)),
        dict(zip(names, (around(0.65), around(0.70)), strict=True)),
    )


# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[Metrics, Metrics]] = {
    "C1a": ({"closed form error": around(1e-9)}, {"closed form error": around(1e-3)}),
    "C1b": ({"distance from 2": around(0.01)}, {"distance from 2": around(0.9)}),
    "C2": ({"crossing error": around(1e-4)}, {"crossing error": around(0.3)}),
    "C4a": lowered("GAIRAT"),
    "C4b": lowered("MAIL"),
    "C4c": lowered("MART"),
    "C4d": lowered("EWAT"),
    "C4e": (
        of("hard margin", MART=0.3, GAIRAT=0.1, MAIL=0.2, EWAT=0.5, AT=0.5),
        of("hard margin", MART=0.3, GAIRAT=0.1, MAIL=1.2, EWAT=0.5, AT=0.5),
    ),
    "C5a": wider("GAIRAT"),
    "C5b": wider("MAIL"),
    "C5c": wider("MAIL -0.5"),
    "C5d": wider("MART"),
    "C5e": wider("EWAT"),
    "E1": (
        measured("GAIRAT", PGD=0.70, APGD_CE=0.0, ensemble=0.60)
        | {"GAIRAT: APGD-CE": around(0.68)},
        measured("GAIRAT", PGD=0.70, APGD_CE=0.0, ensemble=0.60)
        | {"GAIRAT: APGD-CE": around(0.62)},
    ),
    "E2": (
        measured("GAIRAT", PGD=0.70, sharpened_PGD=0.65),
        measured("GAIRAT", PGD=0.70, sharpened_PGD=0.72),
    ),
    "E3": (
        measured("AT", PGD=0.70, sharpened_PGD=0.72),
        measured("AT", PGD=0.70, sharpened_PGD=0.65),
    ),
    "E4": (
        measured("AT", PGD=0.70, flattened_PGD=0.80),
        measured("AT", PGD=0.70, flattened_PGD=0.70),
    ),
    "C6a": (of("hard margin", SOVR=1.0, AT=0.5), of("hard margin", SOVR=0.5, AT=0.5)),
    "C6b": (of("easy margin", SOVR=4.0, AT=4.0), of("easy margin", SOVR=3.0, AT=4.0)),
    "C7a": ahead("SOVR", "AT"),
    "C7b": (of("clean accuracy", SOVR=0.99, AT=0.99), of("clean accuracy", SOVR=0.95, AT=0.99)),
    "C7c": ahead("AT", "SOVR small"),
    "C7d": ahead("SOVR", "SOVR large"),
    "C8a": ahead("TSOVR", "TRADES"),
    "C8b": ahead("TRADES top CE", "TSOVR"),
    "C9a": ahead("top CE", "SOVR large"),
    "C9b": ahead("scaled AT", "top CE"),
    "C9c": (
        of("margin per gradient", SOVR_large=0.11, top_CE=0.07),
        of("margin per gradient", SOVR_large=0.07, top_CE=0.07),
    ),
    "C9d": (
        of("margin per gradient", OVR=0.11, AT=0.07),
        of("margin per gradient", OVR=0.07, AT=0.07),
    ),
    "C9e": ahead("AT", "OVR"),
    "C10a": (
        of("potentially misclassified", AT=0.8, SOVR=0.5),
        of("potentially misclassified", AT=0.8, SOVR=0.8),
    ),
    "C10b": (
        of("potentially misclassified", AT=0.8, GAIRAT=0.99),
        of("potentially misclassified", AT=0.8, GAIRAT=0.8),
    ),
}
for cases in MEASURED["E1"]:
    del cases["GAIRAT: APGD CE"]


def verdict(name: str, metrics: Metrics) -> str:
    return CLAIMS[name].decide(fake_result(lesson.LESSON, metrics, SEEDS)).verdict


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


def test_a_claim_needs_everything_that_it_compares() -> None:
    check_controls(lesson, MEASURED, SEEDS)


def test_effects_are_what_they_are_said_to_be() -> None:
    draw = np.random.default_rng(3).uniform(0.1, 1, (len(lesson.METHODS), len(lesson.QUANTITIES)))
    n = {
        (m, q): draw[i, j]
        for i, m in enumerate(lesson.METHODS)
        for j, q in enumerate(lesson.QUANTITIES)
    }
    result = fake_result(
        lesson.LESSON, {f"{m}: {q}": [float(v)] * SEEDS for (m, q), v in n.items()}, SEEDS
    )
    rises = [n[m, "hard margin"] - n["AT", "hard margin"] for m in ("MART", "GAIRAT", "MAIL")]
    rises.append(n["EWAT", "hard margin"] - n["AT", "hard margin"])
    expected = {
        "C4a": n["AT", "easy margin"] - n["GAIRAT", "easy margin"],
        "C4e": -max(rises),
        "C5c": n["MAIL -0.5", "PGD gap"] - n["AT", "PGD gap"],
        "E1": n["GAIRAT", "APGD-CE"]
        - n["GAIRAT", "ensemble"]
        - (n["GAIRAT", "PGD"] - n["GAIRAT", "APGD-CE"]),
        "E2": n["GAIRAT", "PGD"] - n["GAIRAT", "sharpened PGD"],
        "E3": n["AT", "sharpened PGD"] - n["AT", "PGD"],
        "E4": n["AT", "flattened PGD"] - n["AT", "PGD"],
        "C8b": n["TRADES top CE", "ensemble"] - n["TSOVR", "ensemble"],
        "C9c": n["SOVR large", "margin per gradient"] / n["top CE", "margin per gradient"] - 1,
    }
    for name, value in expected.items():
        assert CLAIMS[name].effect(result) == pytest.approx([value] * SEEDS), name


@pytest.mark.parametrize("value", [0.0, -0.1])
def test_no_share_of_a_margin_that_is_none(value: float) -> None:
    found = verdict("C9c", of("margin per gradient", SOVR_large=0.1, top_CE=value))
    assert found == "not-measured"


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert -0.25 <= claim.margin <= 0.25


# --- Presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.model.input_shape == SHAPES[config.dataset]
    assert hash(config) == hash(dataclasses.replace(config))
    with torch.device("meta"):
        build(config.model)


def test_the_scales_of_the_design_are_there() -> None:
    assert set(lesson.PRESETS) == {"toy", "study", "full-cifar-margins", "paper"}
    assert lesson.PRESETS["toy"].seeds == (0,)
    assert all(len(c.seeds) >= 5 for n, c in lesson.PRESETS.items() if n != "toy")


def test_the_study_can_decide_every_claim() -> None:
    assert set(lesson.PRESETS["study"].methods) == set(lesson.METHODS)


def test_the_paper_s_recipe_is_the_paper_s() -> None:
    config = lesson.PRESETS["paper"]
    recipe = config.train
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate) == (200, 128, 0.1)
    assert (recipe.momentum, recipe.weight_decay, recipe.schedule) == (0.9, 5e-4, "step")
    attack = (config.epsilon, config.step_size, config.attack_steps, config.attack_mode)
    assert attack == (8 / 255, 2 / 255, 10, "train")
    assert (config.fraction, config.weight, config.queries) == (0.4, 0.5, 1000)


NO_EPOCH = dataclasses.replace(lesson.Config().train, epochs=0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, r"seeds must be different integers >= 0, got \(\)"),
        ({"seeds": (0, 0)}, "seeds must be different"),
        ({"methods": ("AT", "SAM")}, "no method 'SAM', allowed: AT, MART, .*TSOVR"),
        ({"methods": ("MART",)}, r"AT among them, got \('MART',\)"),
        ({"methods": ("AT", "AT")}, "methods must be different"),
        ({"eval_steps": 0}, "eval_steps must be at least 1, got 0"),
        ({"ensemble_steps": 0}, "ensemble_steps must be at least 1, got 0"),
        ({"queries": -1}, "queries must be at least 0, got -1"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"together": -1}, "together must be at least 0, got -1"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"test": 0}, "test must be at least 2, got 0"),
        ({"measure_with": 1}, "measure_with must be at least 2, got 1"),
        ({"sharpen": 0.0}, "sharpen must be > 0 .*got 0.0 and 60"),
        ({"train": NO_EPOCH}, "train.epochs at least 1, got 10.0 and 0"),
        ({"fraction": 0.0}, r"fraction must be in \(0, 1\] .*got 0.0"),
        ({"fraction": 1.5}, r"fraction must be in \(0, 1\]"),
        ({"weight": -1.0}, "weight >= 0, got 0.4 and -1.0"),
        ({"trades_weight": math.nan}, "weight >= 0, got 0.4 and nan"),
        ({"epsilon": -0.1}, "epsilon must be a number >= 0"),
        ({"attack_steps": 0}, "an attack needs steps >= 1"),
        ({"attack_mode": "both"}, "mode is 'both', allowed: train, eval"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**changes)
    assert "\n" not in str(caught.value)


# --- Methods --------------------------------------------------------------------------------------

ATTACK: dict[str, Any] = {"threat": LInf(0.15), "steps": 7, "step_size": None, "mode": "eval"}
HARD: dict[str, Any] = {**ATTACK, "fraction": 0.4}
OBJECTIVES: dict[str, Any] = {
    "AT": AdversarialTraining(**ATTACK),
    "MART": MART(**ATTACK, beta=5.0),
    "GAIRAT": GAIRAT(**ATTACK, burn_in=500, shift=-1.0),
    "MAIL": MAIL(**ATTACK, burn_in=625, slope=10.0, bias=0.5),
    "MAIL -0.5": MAIL(**ATTACK, burn_in=625, slope=10.0, bias=-0.5),
    "EWAT": EntropyWeighted(**ATTACK),
    "SOVR": SOVR(**HARD, weight=1.0),
    "SOVR small": SOVR(**HARD, weight=0.5),
    "SOVR large": SOVR(**HARD, weight=2.0),
    "top CE": TopWeighted(**HARD, weight=2.0),
    "scaled AT": TopWeighted(**ATTACK, fraction=1.0, weight=1.4),
    "OVR": SOVR(**ATTACK, fraction=1.0, weight=1.0),
    "TRADES": TRADES(**ATTACK, beta=6.0),
    "TRADES top CE": TopWeightedTRADES(**HARD, beta=6.0, weight=2.0),
    "TSOVR": TSOVR(**HARD, beta=6.0, weight=2.0),
}


@pytest.mark.parametrize("name", lesson.METHODS)
def test_a_method_is_what_its_name_says(name: str) -> None:
    assert lesson.objective_of(name, lesson.Config(), 1000) == OBJECTIVES[name]


def test_every_method_is_named() -> None:
    assert set(OBJECTIVES) == set(lesson.METHODS)
    assert set(lesson.BURN_IN) < set(lesson.METHODS)
    with pytest.raises(ValueError, match="no method 'SAM', allowed: AT"):
        lesson.objective_of("SAM", lesson.Config(), 10)


def test_the_control_of_all_samples_has_the_mean_weight() -> None:
    config = lesson.Config(fraction=0.25, large_weight=5.0)
    found: Any = lesson.objective_of("scaled AT", config, 10)
    assert (found.fraction, found.weight) == (1.0, 0.25 * 5 + 0.75)


# --- Flows ----------------------------------------------------------------------------------------


def test_flows_draw_other_weights_for_every_seed() -> None:
    one, two, again = (lesson.flows(seed) for seed in (0, 1, 0))
    assert one == again
    assert one != two
    assert max(one["closed form error"], two["closed form error"]) < 1e-8
    assert 0 < one["distance from 2"] < 0.03


def test_a_wrong_closed_form_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    own = lesson.ovr_margin
    monkeypatch.setattr(lesson, "ovr_margin", lambda t, **more: 0.999 * own(t, **more))
    assert lesson.flows(0)["closed form error"] > 1e-4


def test_crossings_are_those_of_the_solver() -> None:
    assert lesson.crossing_error() < 1e-3
    assert lesson.solved_crossing(3.0, 20.0) == math.inf, "no crossing near that time"


# --- Measurements ---------------------------------------------------------------------------------

SMALL = [
    *("seeds=(0, 1)", "train.epochs=2", "train.batch_size=10", "model.width=6"),
    *("attack_steps=2", "eval_steps=3", "ensemble_steps=2", "test=None"),
]


def small(*settings: str, preset: str = "toy") -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALL, *settings])
    return config


@pytest.fixture(autouse=True)
def random_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", random_images)


def setting_of(config: lesson.Config) -> lesson.Setting:
    return lesson.Setting(config, lesson.load_data(config), build(config.model).eval(), "cpu")


def fitted(setting: lesson.Setting) -> Params:
    """A network that reads some of the test images, so that accuracies are not zero."""
    data, config = setting.data, setting.config
    both = dataclasses.replace(
        data,
        train_x=torch.cat([data.train_x, data.test_x]),
        train_y=torch.cat([data.train_y, data.test_y]),
    )
    recipe = dataclasses.replace(config.train, epochs=60, learning_rate=0.1)
    return unstack(train(config.model, both, (4,), recipe).params)[0]


def test_quantities_are_what_they_are_called() -> None:
    config = small("epsilon=0.02", "model.width=24", "ensemble_steps=4", "measure_with=None")
    setting = setting_of(config)
    params = fitted(setting)
    found = lesson.measure_network(setting, params)
    q, network = found["quantities"], functools.partial(predict, setting.model, params)
    assert tuple(q) == lesson.QUANTITIES
    data, threat = setting.data, LInf(0.02)
    x, y = data.test_x, data.test_y

    def left(*inputs: Any) -> float:
        masks = [network(v).argmax(1) == y for v in (x, *inputs)]
        return float(torch.stack(masks).all(0).double().mean())

    assert q["clean accuracy"] == left()
    assert q["PGD"] == left(pgd(network, x, y, threat, steps=3))
    for name, factor in (("sharpened PGD", 10.0), ("flattened PGD", 0.1)):

        def other(v: Any, factor: float = factor) -> Any:
            return factor * network(v)

        assert q[name] == left(pgd(other, x, y, threat, steps=3))
    assert q["margin PGD"] == left(pgd(network, x, y, threat, steps=6, loss=margin_loss))
    plain = apgd(network, x, y, threat, steps=4).x
    aimed = targeted_apgd(network, x, y, threat, steps=4)
    assert (q["APGD-CE"], q["APGD-T"]) == (left(plain), left(aimed))
    assert q["ensemble"] == left(plain, aimed)
    assert q["PGD gap"] == pytest.approx(q["PGD"] - q["ensemble"])
    x, y = data.train_x, data.train_y
    attacked = pgd(network, x, y, threat, steps=3)
    z = network(attacked).detach().double()
    margins = -margin_loss(z, y)
    quantiles = np.quantile(margins.numpy(), [0.2, 0.5, 0.8])
    for name, value in zip(("hard", "median", "easy"), quantiles, strict=True):
        assert q[f"{name} margin"] == pytest.approx(value)
    assert q["narrow share"] == pytest.approx(((margins >= 0) & (margins < 1)).double().mean())
    entropies = torch.distributions.Categorical(logits=z).entropy()
    assert q["entropy"] == pytest.approx(float(entropies.mean()))
    slopes = torch.func.vmap(torch.func.jacrev(lambda v: network(v.unsqueeze(0)).squeeze(0)))
    norms = slopes(attacked).flatten(2).abs().sum(-1).gather(1, y.unsqueeze(1)).squeeze(1)
    assert q["gradient norm"] == pytest.approx(float(norms.mean()), rel=1e-5)
    ratio = float(margins.median() / norms.mean())
    assert q["margin per gradient"] == pytest.approx(ratio, rel=1e-5)
    x, y = data.test_x, data.test_y
    slope = slopes(pgd(network, x, y, threat, steps=3)).flatten(2).abs().sum(-1)
    logits = network(pgd(network, x, y, threat, steps=3))
    rival = logits.scatter(1, y.unsqueeze(1), -torch.inf).argmax(1, keepdim=True)
    reach = (slope.gather(1, y.unsqueeze(1)) + slope.gather(1, rival)).squeeze(1)
    unsafe = -margin_loss(network(x), y) <= 0.02 * reach
    assert q["potentially misclassified"] == pytest.approx(float(unsafe.double().mean()))
    assert sum(found["histogram"]) == pytest.approx(1)
    assert len(found["histogram"]) == len(lesson.EDGES) + 1
    assert found["histogram"][0] == pytest.approx(float((margins < -4).double().mean()))


def test_square_joins_the_ensemble_where_it_has_queries() -> None:
    config = small("queries=20", "epsilon=0.3")
    attacks = lesson.evaluation_attacks(config)
    assert list(attacks) == [*lesson.ATTACKS, "Square"]
    assert list(lesson.evaluation_attacks(small())) == list(lesson.ATTACKS)
    setting = setting_of(config)
    found = lesson.under_attacks(
        setting, functools.partial(predict, setting.model, fitted(setting))
    )
    assert found["ensemble"] <= min(found["APGD-CE"], found["APGD-T"], found["Square"])


def test_a_dead_network_does_not_end_the_run() -> None:
    setting = setting_of(small())
    params = {name: torch.zeros_like(t) for name, t in initial(setting.config.model, 0).items()}
    found = lesson.measure_network(setting, params)["quantities"]
    assert found["gradient norm"] == found["margin per gradient"] == 0


def test_all_networks_meet_the_same_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = setting_of(small())
    starts: list[list[Any]] = []
    own = LInf.random

    def listening(self: LInf, centre: Any, lead: int, stream: Any) -> Any:
        found = own(self, centre, lead, stream)
        starts[-1].append(found)
        return found

    monkeypatch.setattr(LInf, "random", listening)
    for seed in (0, 1):
        starts.append([])
        lesson.measure_network(setting, initial(setting.config.model, seed))
    assert len(starts[0]) == len(starts[1]) > 5
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))


# --- Runs -----------------------------------------------------------------------------------------

SMALL_IMAGES = [
    *("seeds=(0,)", "samples=8", "test=4", "train.epochs=1", "train.batch_size=4"),
    *("attack_steps=1", "eval_steps=1", "ensemble_steps=1", "queries=2", "measure_with=4"),
    *("train.precision=float32", "train.compile=False"),
]
NARROW = ((2, 1), (4, 1), (4, 2))  # channels and blocks per stage: what ``width`` cannot do
SMALLER: dict[str, list[str]] = {
    "toy": SMALL,
    "study": SMALL,
    "full-cifar-margins": SMALL_IMAGES,
    "paper": SMALL_IMAGES,
}


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_every_preset_runs_when_made_small(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESNET_STAGES, 18, NARROW)
    config = override(lesson.PRESETS[name], SMALLER[name])
    result = lesson.run(config)
    for method in config.methods:
        for quantity in lesson.QUANTITIES:
            values = result.metric(f"{method}: {quantity}")
            assert len(values) == len(config.seeds)
            assert all(math.isfinite(v) for v in values)
    series = result.series["margins"]
    assert shape(series.values) == (len(config.seeds), *map(len, series.axes.values()))
    assert json.loads(dump(result.to_json()))["lesson"] == "logit-margins"
    missing = {c.id for c in result.claims if c.verdict == "not-measured"}
    assert not missing & {"C1a", "C1b", "C2", "C5a", "C6a", "C7a", "E4"}
    if name == "study":
        assert missing <= {"C9c", "C9d"}, "a margin may be negative after two epochs"


def test_a_seed_gives_the_same_numbers_alone_and_among_others() -> None:
    many = lesson.run(small("methods=('AT', 'GAIRAT', 'SOVR', 'TSOVR')"))
    for k in (0, 1):
        once = lesson.run(small("methods=('AT', 'GAIRAT', 'SOVR', 'TSOVR')", f"seeds=({k},)"))
        assert {n: v[k] for n, v in many.metrics.items()} == {
            n: v[0] for n, v in once.metrics.items()
        }
        assert many.series["margins"].values[k] == once.series["margins"].values[0]


def test_networks_do_not_depend_on_how_many_are_trained_together() -> None:
    one, two = (lesson.run(small(f"together={n}")) for n in (0, 1))
    assert one.metrics == two.metrics


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("methods=('AT', 'GAIRAT')", "together=1")
    whole = lesson.run(config)
    last, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=4
    )
    assert attempts > 2
    assert (last.metrics, last.series, last.claims) == (whole.metrics, whole.series, whole.claims)


def test_a_method_s_burn_in_is_its_share_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    own = lesson.objective_of

    def spy(name: str, config: Any, steps: int) -> Any:
        asked.append((name, steps))
        return own(name, config, steps)

    config = small("methods=('AT', 'GAIRAT')", "train.epochs=3")  # 40 samples, 4 steps an epoch
    monkeypatch.setattr(lesson, "objective_of", spy)
    lesson.run(config)
    assert asked == [("AT", 12), ("GAIRAT", 12)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["model.input_shape=(64,)"], r"inputs of shape \(1, 8, 8\) .*model takes \(64,\) and 10"),
        (["model.classes=9"], r"10 classes, the model takes \(1, 8, 8\) and 9"),
    ],
)
def test_data_that_do_not_fit_are_refused(settings: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.run(small(*settings))
    assert "\n" not in str(caught.value)


def test_parts_of_the_data_are_taken_from_their_beginning() -> None:
    whole, part = random_images("digits"), lesson.load_data(small("samples=7", "test=3"))
    assert torch.equal(part.train_x, whole.train_x[:7])
    assert torch.equal(part.test_y, whole.test_y[:3])
    assert F.one_hot(part.train_y).shape[0] == 7

"""The lesson's claims can come out either way; what is trained, what is measured, and by whom."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import SHAPES, check_claims, killed_again_and_again, random_images, shape
from fakes import synthetic as fake_result
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.experiments import bounded_logits as lesson
from lmc_lessons.experiments.runs import Stages, override
from lmc_lessons.models import RESNET_STAGES, build, initial, predict, unstack
from lmc_lessons.results import Claim, Result, Series, dump
from lmc_lessons.robustness.attacks import LInf, margin_loss, pgd
from lmc_lessons.robustness.bounded_logits import Bounded, blf, matched_strength, optimum
from lmc_lessons.robustness.logit_penalties import LabelSmoothing, LogitPairing, LogitSqueezing
from lmc_lessons.robustness.objectives import TRADES, AdversarialTraining, Standard
from lmc_lessons.training import train

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5


# --- Claims ---------------------------------------------------------------------------------------


def around(value: float) -> list[float]:
    """One number per seed, close to that value but not all the same."""
    return [value * (1 + 0.001 * (k - 2)) for k in range(SEEDS)]


def table(title: str, entries: tuple[str, ...], values: dict[str, dict[str, float]]) -> Any:
    """Networks of which some entries were measured; the others are decoys."""
    kind = "quantity" if title == "networks" else "attack"
    axes: dict[str, list[Any]] = {"network": list(values), kind: list(entries)}
    rows = [
        [[around(own.get(entry, 0.77))[k] for entry in entries] for own in values.values()]
        for k in range(SEEDS)
    ]
    return {title: Series(axes, rows)}


def networks(quantity: str, **values: float) -> dict[str, Any]:
    named = {NAMES[name]: {quantity: value} for name, value in values.items()}
    return table("networks", lesson.QUANTITIES, named)


def standing(values: dict[str, dict[str, float]]) -> dict[str, Any]:
    return table("standing", lesson.SHARES, values)


def under(attack: str, **values: float) -> dict[str, Any]:
    return standing({NAMES[name]: {attack: value} for name, value in values.items()})


def both(name: str, **values: float) -> dict[str, Any]:
    return standing({NAMES[name]: values})


def free(**lengths: tuple[float, float]) -> dict[str, Any]:
    """Free pre-logits of these lengths after 1000 and after 10000 steps."""
    heads = [NAMES[name] for name in lengths]
    axes: dict[str, list[Any]] = {
        "head": heads,
        "step": [1000, 10_000],
        "class": list(range(lesson.CLASSES)),
    }
    rows = [
        [
            [[around(length)[k] / math.sqrt(10)] * lesson.CLASSES for length in pair]
            for pair in lengths.values()
        ]
        for k in range(SEEDS)
    ]
    return {"free": Series(axes, rows)}


NAMES = {
    "plain": "plain",
    "short": "plain, short",
    "tanh1": "tanh 1",
    "tanh5": "tanh 5",
    "blf1": "BLF 1",
    "blf5": "BLF 5",
    "ls01": "LS 0.1",
    "ls05": "LS 0.5",
    "ls027": "LS 0.27",
    "lsq005": "LSQ 0.05",
    "lsq05": "LSQ 0.5",
    "lsq081": "LSQ 0.081",
    "clp": "CLP 0.05",
    "at": "AT",
    "attanh": "AT tanh 5",
    "atblf": "AT BLF 5",
    "atls": "AT LS 0.1",
    "atlsq": "AT LSQ 0.05",
    "trades": "TRADES",
}
BEST = {"ls01": 0.5, "ls05": 0.62, "lsq005": 0.55, "lsq05": 0.6, "clp": 0.58}


def lengths(quantity: str, **by_name: float) -> dict[str, Any]:
    return networks(quantity, **by_name)


def three(first: tuple[float, float], second: tuple[float, float]) -> dict[str, Any]:
    """What stands of three networks before and after attacks were added."""
    names = ("blf1", "blf5", "atblf")
    return standing(
        {
            NAMES[name]: {"white": 0.6, "adaptive": first[0], "all": first[1]}
            if name != "atblf"
            else {"white": 0.6, "adaptive": second[0], "all": second[1]}
            for name in names
        }
    )


def gaps(lsq: float, blf1: float) -> dict[str, Any]:
    return standing(
        {
            "LSQ 0.5": {"CE": 0.6 + lsq, "margin": 0.6},
            "BLF 1": {"CE": 0.6 + blf1, "margin": 0.6},
        }
    )


# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "C1a": (free(blf1=(4.7, 4.8807)), free(blf1=(4.8807, 5.2))),
    "C1b": (free(tanh1=(9.0, 12.6)), free(tanh1=(9.0, 9.5))),
    "C2a": (
        table(
            "networks",
            lesson.QUANTITIES,
            {"tanh 1": {"train pre-logit norm": 26.0}, "plain": {"train logit norm": 25.0}},
        ),
        table(
            "networks",
            lesson.QUANTITIES,
            {"tanh 1": {"train pre-logit norm": 12.0}, "plain": {"train logit norm": 25.0}},
        ),
    ),
    "C2b": (
        lengths("train pre-logit norm", blf1=4.87),
        lengths("train pre-logit norm", blf1=5.5),
    ),
    "C2c": (
        lengths("train pre-logit norm", tanh1=20.0, blf1=5.0),
        lengths("train pre-logit norm", tanh1=8.0, blf1=5.0),
    ),
    "C2d": ({"beyond at start": around(0.01)}, {"beyond at start": around(0.2)}),
    "C3a": (
        lengths("train logit norm", lsq005=3.55, lsq05=1.39),
        lengths("train logit norm", lsq005=3.55, lsq05=1.2),
    ),
    "C3b": (lengths("train centred norm", ls05=2.28), lengths("train centred norm", ls05=2.6)),
    "C3c": (lengths("train centred norm", ls01=4.3), lengths("train centred norm", ls01=4.7)),
    "C3d": (lengths("train logit norm", clp=2.29), lengths("train logit norm", clp=3.0)),
    "C4a": (under("CE", blf1=0.63, plain=0.5), under("CE", blf1=0.52, plain=0.5)),
    "C4b": (under("CE", blf1=0.63, tanh1=0.6), under("CE", blf1=0.58, tanh1=0.6)),
    "C4c": (under("CE", tanh1=0.52, plain=0.5), under("CE", tanh1=0.6, plain=0.5)),
    "C4d": (under("CE", blf1=0.63, **BEST), under("CE", blf1=0.55, **BEST)),
    "C4e": (under("all", blf1=0.63, plain=0.5), under("all", blf1=0.52, plain=0.5)),
    "C4f": (under("all", blf1=0.63, tanh1=0.6), under("all", blf1=0.58, tanh1=0.6)),
    "C4g": (under("all", blf1=0.63, **BEST), under("all", blf1=0.55, **BEST)),
    "C4h": (
        lengths("clean accuracy", blf1=0.985, plain=0.98),
        lengths("clean accuracy", blf1=0.95, plain=0.98),
    ),
    "C5a": (under("all", atblf=0.845, at=0.85), under("all", atblf=0.8, at=0.85)),
    "C5b": (
        under("all", atblf=0.845, atls=0.8, atlsq=0.85),
        under("all", atblf=0.8, atls=0.85, atlsq=0.8),
    ),
    "C5c": (under("all", atblf=0.845, trades=0.85), under("all", atblf=0.8, trades=0.85)),
    "C5d": (under("all", atblf=0.86, at=0.85), under("all", atblf=0.845, at=0.85)),
    "C5e": (under("all", atblf=0.86, attanh=0.85), under("all", atblf=0.845, attanh=0.85)),
    "C6a": (both("lsq05", CE=0.66, margin=0.6), both("lsq05", CE=0.61, margin=0.6)),
    "C6b": (both("ls05", CE=0.66, margin=0.6), both("ls05", CE=0.61, margin=0.6)),
    "C6c": (gaps(0.06, 0.01), gaps(0.06, 0.05)),
    "C6d": (both("plain", CE=0.51, margin=0.5), both("plain", CE=0.55, margin=0.5)),
    "C7": ({lesson.ON_CIFAR: around(0.001)}, {lesson.ON_CIFAR: around(0.2)}),
    "C8a": (under("all", blf1=0.6, lsq081=0.59), under("all", blf1=0.6, lsq081=0.5)),
    "C8b": (under("all", blf1=0.6, ls027=0.59), under("all", blf1=0.6, ls027=0.5)),
    "C8c": (under("all", blf1=0.6, short=0.5), under("all", blf1=0.6, short=0.59)),
    "C9a": (three((0.595, 0.5), (0.6, 0.5)), three((0.595, 0.5), (0.5, 0.5))),
    "C9b": (three((0.55, 0.545), (0.5, 0.5)), three((0.55, 0.545), (0.5, 0.4))),
}


def synthetic(measured: dict[str, Any]) -> Result:
    return fake_result(lesson.LESSON, measured, SEEDS)


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


def test_a_claim_needs_everything_that_it_reads() -> None:
    alone = {k: v for k, v in MEASURED.items() if len(v[0]) == 1}
    assert alone == MEASURED
    for name, (holds, _) in MEASURED.items():
        (key,) = holds
        others = {k: v for case, _ in MEASURED.values() for k, v in case.items() if k != key}
        found = CLAIMS[name].decide(synthetic(others))
        assert found.verdict == "not-measured", name


def without(series: Series, name: str) -> Series:
    """A series that lacks one network or head."""
    axis = next(iter(series.axes))
    gone = series.axes[axis].index(name)
    values = np.delete(np.array(series.values), gone, axis=1).tolist()
    return Series({**series.axes, axis: [e for e in series.axes[axis] if e != name]}, values)


ENTRIES = [
    (name, key, entry)
    for name, (holds, _) in MEASURED.items()
    for key, series in holds.items()
    if isinstance(series, Series)
    for entry in next(iter(series.axes.values()))
]


@pytest.mark.parametrize(("name", "key", "entry"), ENTRIES)
def test_a_claim_needs_every_network_that_it_compares(name: str, key: str, entry: str) -> None:
    series = MEASURED[name][0][key]
    found = CLAIMS[name].decide(synthetic({key: without(series, entry)}))
    assert (found.verdict, found.effect) == ("not-measured", None)
    assert entry in found.evidence


def test_free_pre_logits_are_looked_at_where_a_claim_needs_them() -> None:
    series = MEASURED["C1b"][0]["free"]
    fewer = Series(
        {**series.axes, "step": [1000]}, [[[steps[0]] for steps in seed] for seed in series.values]
    )
    for name in ("C1a", "C1b"):
        assert CLAIMS[name].decide(synthetic({"free": fewer})).verdict == "not-measured"


def test_the_best_is_the_one_that_is_best_on_average() -> None:
    measured = under("CE", ls01=0.5, lsq005=0.5)
    for k, values in enumerate(measured["standing"].values):
        column = measured["standing"].axes["attack"].index("CE")
        values[0][column], values[1][column] = (0.9, 0.6) if k == 0 else (0.5, 0.65)
    found = lesson.best_of(("LS 0.1", "LSQ 0.05"), "CE")(synthetic(measured))
    assert found == [0.6, 0.65, 0.65, 0.65, 0.65]


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper, claim.unit):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert "\n" not in claim.statement


# --- Methods and presets --------------------------------------------------------------------------

ATTACK: dict[str, Any] = {"steps": 10, "step_size": None, "mode": "eval"}
AT = AdversarialTraining(LInf(0.1), **ATTACK)


def test_a_method_is_what_its_name_says() -> None:
    config = lesson.Config()
    assert lesson.objective_of("plain", config) == Standard()
    assert lesson.objective_of("plain, short", config) == Standard()
    assert lesson.objective_of("LS 0.5", config) == LabelSmoothing(0.5)
    assert lesson.objective_of("LSQ 0.05", config) == LogitSqueezing(0.05)
    assert lesson.objective_of("CLP 0.05", config) == LogitPairing(0.05)
    assert lesson.objective_of("AT", config) == AT
    assert lesson.objective_of("AT LS 0.1", config) == LabelSmoothing(0.1, AT)
    assert lesson.objective_of("AT LSQ 0.05", config) == LogitSqueezing(0.05, AT)
    assert lesson.objective_of("TRADES", config) == TRADES(LInf(0.1), beta=6.0, **ATTACK)
    u = torch.linspace(-3, 3, 8).view(2, 4)
    for name, inner, bound in (("BLF 1", Standard(), 1.0), ("AT BLF 5", AT, 5.0)):
        found = lesson.objective_of(name, config)
        assert isinstance(found, Bounded)
        assert found.objective == inner
        assert torch.equal(found.head(u), blf(u, bound))
    tanh = lesson.objective_of("tanh 5", config)
    assert isinstance(tanh, Bounded)
    assert torch.equal(tanh.head(u), 5 * torch.tanh(u))


def test_names_tell_strengths_and_matched_ones_match() -> None:
    for name, method in lesson.METHODS.items():
        strength = method.weight if method.penalty else method.bound
        if name.split()[-1][0].isdigit():
            assert float(name.split()[-1]) == strength, name
    length = optimum("blf", 1.0).logit_norm
    assert round(matched_strength("smoothing", length), 3) == 0.27
    assert round(matched_strength("squeezing", length), 3) == 0.081


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_can_be_run(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.dataset in datasets.names()
    assert config.model.input_shape == SHAPES[config.dataset]
    assert hash(config) == hash(dataclasses.replace(config))
    with torch.device("meta"):
        build(config.model)


def test_the_scales_of_the_design_are_there() -> None:
    wanted = "toy study full-fashion-mlp full-cifar-blf paper"
    assert set(wanted.split()) == set(lesson.PRESETS)
    for name in wanted.split()[1:]:
        assert len(lesson.PRESETS[name].seeds) >= 5, name
    assert lesson.PRESETS["study"].train.weight_decay == 0
    assert not lesson.PRESETS["study"].train.fast
    assert set(lesson.PRESETS["study"].methods) == set(lesson.METHODS)
    assert {1000, 10_000} <= set(lesson.PRESETS["study"].times)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, r"seeds must be different integers >= 0, got \(\)"),
        ({"seeds": (1, 1)}, r"seeds must be different integers >= 0, got \(1, 1\)"),
        ({"seeds": (0, 1000)}, r"seeds must lie within 1000 of each other, got \(0, 1000\)"),
        ({"methods": ("BLF",)}, "no method 'BLF', allowed: plain, .*TRADES"),
        ({"methods": ()}, r"methods must be different, at least one, got \(\)"),
        ({"methods": ("AT", "AT")}, "methods must be different"),
        ({"robust_epochs": 0}, "robust_epochs must be at least 1, got 0"),
        ({"attack_steps": 0}, "attack_steps must be at least 1, got 0"),
        ({"targets": 0}, "targets must be at least 1, got 0"),
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"together": -1}, "together must be at least 0, got -1"),
        ({"samples": 1}, "samples must be at least 2, got 1"),
        ({"attack_with": 1}, "attack_with must be at least 2, got 1"),
        ({"times": (1, 2)}, r"times must increase from 0, got \(1, 2\)"),
        ({"times": (0, 2, 1)}, r"times must increase from 0, got \(0, 2, 1\)"),
        ({"epsilon": -0.1}, "epsilon must be a number >= 0, got -0.1"),
        ({"training_steps": 0}, "an attack needs steps >= 1 .*got 0, None"),
        ({"attack_mode": "both"}, "mode is 'both', allowed: train, eval"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["samples=100"], "digits has 40 training samples, asked for 100"),
        (["model.input_shape=(64,)"], r"inputs of shape \(1, 8, 8\) .*model takes \(64,\) and 10"),
        (["model.classes=9"], r"10 classes, the model takes \(1, 8, 8\) and 9"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    settings: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    with pytest.raises(ValueError, match=expected):
        lesson.run(override(lesson.PRESETS["toy"], settings))


# --- Measurements ---------------------------------------------------------------------------------

SMALL = [
    *("seeds=(0, 1)", "train.epochs=5", "train.batch_size=10", "robust_epochs=2"),
    *("training_steps=2", "attack_with=8", "attack_steps=3", "targeted_steps=2", "targets=1"),
    *("queries=3", "chunk=5", "times=(0, 2)"),
]
SMALL_MLP = ["model.width=6", "model.depth=2"]


@pytest.fixture(autouse=True)
def random_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", random_images)


def small(*settings: str, preset: str = "toy") -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALL, *SMALL_MLP, *settings])
    return config


def setting_of(config: lesson.Config) -> lesson.Setting:
    return lesson.Setting(config, lesson.load_data(config), build(config.model).eval(), "cpu")


def test_networks_of_all_methods_start_alike_and_see_the_same_batches() -> None:
    config = small("methods=('plain', 'plain, short', 'AT')")
    setting = setting_of(config)
    found = lesson.train_all(setting, Stages(None, config))
    assert list(found) == ["plain", "plain, short", "AT", ""]
    for name, epochs in (("plain", 5), ("plain, short", 1), ("AT", 2)):
        recipe = dataclasses.replace(config.train, epochs=epochs)
        objective = lesson.objective_of(name, config)
        alone = train(config.model, setting.data, (1,), recipe, loss=objective)
        for key, tensor in unstack(alone.params)[0].items():
            assert torch.equal(tensor, found[name][1][key]), name
    other = train(config.model, setting.data, (1001,), config.train)
    (own,) = unstack(other.params)
    assert all(torch.equal(own[key], found[""][1][key]) for key in own)


@pytest.mark.parametrize("name", ["plain", "tanh 1", "BLF 1"])
def test_quantities_are_those_by_hand(name: str) -> None:
    config = small()
    setting, params = setting_of(config), initial(config.model, 3)
    params["output.weight"] *= 20
    other = setting.pre_logits(initial(config.model, 4))
    found = lesson.measure_network(setting, name, params, other)["quantities"]
    values = dict(zip(lesson.QUANTITIES, found, strict=True))
    data = setting.data
    new, known = (predict(setting.model, params, x) for x in (data.test_x, data.train_x))
    head = lesson.head_of(name)
    logits, fitted = head(new), head(known)
    assert values["clean accuracy"] == float((logits.argmax(1) == data.test_y).double().mean())
    assert values["logit norm"] == pytest.approx(float(logits.norm(dim=1).mean()))
    assert values["pre-logit norm"] == pytest.approx(float(new.norm(dim=1).mean()))
    assert values["train logit norm"] == pytest.approx(float(fitted.norm(dim=1).mean()))
    assert values["train pre-logit norm"] == pytest.approx(float(known.norm(dim=1).mean()))
    centred = fitted - fitted.mean(1, keepdim=True)
    assert values["train centred norm"] == pytest.approx(float(centred.norm(dim=1).mean()))
    loss = torch.nn.functional.cross_entropy(fitted, data.train_y)
    assert values["train loss"] == pytest.approx(float(loss), rel=1e-5)
    assert values["beyond"] == pytest.approx(float((new.abs() > 1.5434046).double().mean()))
    assert 0 <= values["no gradient"] <= 1
    assert (name == "plain") == (values["logit norm"] == values["pre-logit norm"])


def test_attacks_for_a_head_are_made_where_there_is_one() -> None:
    config, pre = small(), setting_of(small()).pre_logits(initial(small().model, 3))
    names = {n: list(lesson.attacks_of(config, n, pre, pre)) for n in ("plain", "tanh 1", "BLF 1")}
    shared = ["CE", "margin", "targeted", "transfer", "Square"]
    assert names["plain"] == shared
    assert names["tanh 1"] == [*shared[:3], "pre-logits", "BPDA", *shared[3:]]
    assert names["BLF 1"] == [*shared[:3], "pre-logits", "extension", "BPDA", *shared[3:]]


def test_shares_never_rise_when_attacks_are_added() -> None:
    config = small("epsilon=0.3")
    setting, params = setting_of(config), initial(config.model, 3)
    other = setting.pre_logits(initial(config.model, 4))
    for name in ("plain", "tanh 1", "BLF 1", "LSQ 0.081"):
        found = lesson.attacked_shares(setting, name, params, other)
        shares = dict(zip(lesson.SHARES, found, strict=True))
        assert shares["all"] <= shares["adaptive"] <= shares["white"] <= shares["clean"]
        for attack in lesson.ATTACKS:
            assert shares["all"] <= shares[attack] <= shares["clean"]
        for attack in lesson.WHITE:
            assert shares["white"] <= shares[attack]


def test_the_margin_attack_is_pgd_on_the_logits_behind_the_head() -> None:
    config = small("attack_with=8", "chunk=8", "epsilon=0.3")
    setting, params = setting_of(config), initial(config.model, 3)
    x, y = setting.samples("test", 8)

    def network(inputs: Tensor) -> Tensor:
        return blf(predict(setting.model, params, inputs), 1.0)

    tried = pgd(network, x, y, LInf(0.3), steps=3, loss=margin_loss, keep="best")
    stands = (network(x).argmax(1) == y) & (network(tried).argmax(1) == y)
    found = lesson.attacked_shares(setting, "BLF 1", params, setting.pre_logits(params))
    assert found[lesson.SHARES.index("margin")] == float(stands.double().mean())


def test_the_start_is_looked_at_before_training() -> None:
    config = small()
    setting = setting_of(config)
    params = initial(config.model, 7)
    u = predict(setting.model, params, setting.data.test_x)
    expected = float((u.abs() > 1.5434046).double().mean())
    assert lesson.share_beyond_at_start(setting, 7) == pytest.approx(expected)


# --- Runs -----------------------------------------------------------------------------------------

SMALL_IMAGES = [
    *("seeds=(0,)", "samples=8", "train.epochs=1", "robust_epochs=1", "train.batch_size=4"),
    *("training_steps=1", "attack_with=4", "attack_steps=1", "targeted_steps=1", "targets=1"),
    *("queries=2", "times=(0, 1)", "train.precision=float32", "train.compile=False"),
]
NARROW = ((2, 1), (4, 1), (4, 2))  # channels and blocks per stage: what ``width`` cannot do
SMALLER: dict[str, list[str]] = {
    "toy": [*SMALL, *SMALL_MLP],
    "study": [*SMALL, *SMALL_MLP, "seeds=(3,)"],
    "full-fashion-mlp": [*SMALL, *SMALL_MLP, "seeds=(0,)", "samples=20"],
    "full-cifar-blf": SMALL_IMAGES,
    "paper": [*SMALL_IMAGES, "methods=('plain', 'AT BLF 5')"],
}


def test_every_preset_has_a_small_edition() -> None:
    assert set(SMALLER) == set(lesson.PRESETS)


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_shrunk_presets_run(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESNET_STAGES, 18, NARROW)
    config: lesson.Config = override(lesson.PRESETS[preset], SMALLER[preset])
    result = lesson.run(config)
    assert (result.lesson, result.preset, result.seeds) == (
        "bounded-logits",
        preset,
        list(config.seeds),
    )
    assert [claim.id for claim in result.claims] == list(CLAIMS)
    assert result.config == json.loads(dump(dataclasses.asdict(config)))
    for name, series in result.series.items():
        assert shape(series.values) == (len(config.seeds), *map(len, series.axes.values())), name
    assert result.series["networks"].axes["network"] == list(config.methods)
    assert result.series["standing"].axes["attack"] == list(lesson.SHARES)
    assert result.series["free"].axes["step"] == list(config.times)
    assert (lesson.ON_CIFAR in result.metrics) == (config.dataset == "cifar10")
    if config.dataset == "cifar10":
        clean = [n for n in config.methods if not lesson.METHODS[n].against]
        assert result.metrics[lesson.ON_CIFAR] == [
            max(result.metrics[f"{name}: all"][0] for name in clean)
        ]
    again = Result.from_json(json.loads(dump(result.to_json())))
    assert (again.metrics, again.series) == (result.metrics, result.series)
    for claim in result.claims:
        left_out = "the run did not measure" in claim.evidence
        open_here = preset != "study" or claim.id in ("C1a", "C1b", "C7")
        assert claim.verdict != "not-measured" or (left_out and open_here), claim


def test_one_seed_run_alone_gives_the_same_numbers() -> None:
    """Bit for bit, so that one seed verifies a study."""
    settings = ["methods=('plain', 'BLF 1', 'CLP 0.05', 'AT BLF 5')"]
    together = lesson.run(small(*settings))
    alone = lesson.run(small(*settings, "seeds=(1,)"))
    for name, series in alone.series.items():
        assert series.values[0] == together.series[name].values[1], name
    for name, values in alone.metrics.items():
        assert values[0] == together.metrics[name][1], name


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("methods=('plain', 'BLF 1')")
    whole = lesson.run(config)
    resumed, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=6
    )
    assert attempts > 2
    assert resumed.series == whole.series
    assert resumed.metrics == whole.metrics

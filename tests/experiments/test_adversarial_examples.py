"""The lesson's claims can come out either way; its parts add up; its controls are what they say."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import SHAPES, check_claims, check_controls, killed_again_and_again, shape
from fakes import synthetic as fake_result
from torch import Tensor

from lmc_lessons import datasets, training
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments import adversarial_examples as lesson
from lmc_lessons.experiments.runs import Stages, override
from lmc_lessons.models import ModelConfig, build, initial, predict_stacked, stack
from lmc_lessons.results import Claim, Result, dump
from lmc_lessons.robustness.attacks import LInf, fgsm, margin_loss, step_least_likely
from lmc_lessons.robustness.power_law import adversarial_error
from lmc_lessons.training import TrainConfig, train

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5


# --- Claims ---------------------------------------------------------------------------------------


def around(value: float) -> list[float]:
    """One number per seed, close to that value but not all the same."""
    return [value * (1 + 0.01 * (k - 2)) for k in range(SEEDS)]


def one(name: str, holds: float, fails: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """A claim about a single metric."""
    return {name: around(holds)}, {name: around(fails)}


def two(
    first: str, second: str, holds: tuple[float, float], fails: tuple[float, float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A claim about two metrics."""
    return (
        {first: around(holds[0]), second: around(holds[1])},
        {first: around(fails[0]), second: around(fails[1])},
    )


def of(network: str, quantity: str, holds: float, fails: float) -> Any:
    """A claim about a metric of whatever networks were measured."""
    there = {f"{network}_accuracy": around(0.9)}
    good, bad = one(f"{network}_{quantity}", holds, fails)
    return {**there, **good}, {**there, **bad}


def all_victims(**accuracy: float) -> dict[str, list[float]]:
    """The same accuracies for every victim."""
    return {
        f"{victim}_under_{attack}": around(value)
        for victim in lesson.VICTIMS
        for attack, value in accuracy.items()
    }


def slopes(*values: float) -> dict[str, list[float]]:
    return {f"independent_gap_{j}_slope": around(v) for j, v in enumerate(values, 2)}


def counts(**flags: float) -> dict[str, list[float]]:
    return {f"{victim}_flags": [number] * SEEDS for victim, number in flags.items()}


# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "C1a": of("trained", "FGSM_exponent", 1.1, 1.5),
    "C1b": of("trained", "PGD_exponent", 1.0, 0.5),
    "C1c": of("linear", "step_ll_exponent", 1.3, 1.7),
    "C1d": of("untrained", "FGSM_exponent", 1.1, 1.5),
    "C2a": of("trained", "gap_2_slope", 1.1, 2.0),
    "C2b": of("trained", "gap_3_slope", 1.9, 1.0),
    "C2c": of("untrained", "gap_2_slope", 1.1, 2.0),
    "C2d": of("untrained", "gap_3_slope", 1.9, 1.0),
    "C2e": (slopes(0.95, 1.9, 2.8), slopes(0.95, 1.9, 1.9)),
    "C3a": two("trained_FGSM_exponent", "untrained_FGSM_exponent", (1.1, 1.05), (1.1, 2.0)),
    "C3b": two("untrained_small_error", "trained_small_error", (0.2, 0.1), (0.1, 0.1)),
    "C4a": two("trained_small_error", "adversarial_small_error", (0.1, 0.03), (0.1, 0.1)),
    "C4b": two("adversarial_FGSM_exponent", "trained_FGSM_exponent", (1.1, 1.15), (1.1, 2.0)),
    "C5a": two("entropy_2_median_gap", "trained_median_gap", (9.0, 6.0), (6.0, 6.0)),
    "C5b": two("trained_large_error", "entropy_2_large_error", (0.9, 0.8), (0.8, 0.9)),
    "C5c": two("trained_large_gap_error", "entropy_2_large_gap_error", (0.9, 0.8), (0.8, 0.9)),
    "C5d": two(
        "trained_large_float64_error", "entropy_2_large_float64_error", (0.9, 0.8), (0.8, 0.9)
    ),
    "C5e": two("entropy_2_median_radius", "trained_median_radius", (0.06, 0.03), (0.03, 0.03)),
    "C6a": one("trained_top_two_exponent", 2.1, 1.0),
    "C6b": two("trained_top_two_exponent", "trained_FGSM_exponent", (2.2, 1.1), (1.1, 1.1)),
    "C7": one("trained_missed", 0.02, 0.5),
    "R1": two("trained_under_noise", "trained_under_PGD", (0.9, 0.1), (0.9, 0.9)),
    "R2a": two("scaled_under_PGD", "scaled_under_APGD-T", (0.9, 0.1), (0.9, 0.9)),
    "R2b": two("scaled_under_APGD", "scaled_under_APGD-T", (0.9, 0.1), (0.9, 0.9)),
    "R3a": two("staircase_under_PGD", "staircase_under_Square", (0.9, 0.1), (0.9, 0.9)),
    "R3b": two("staircase_under_PGD", "staircase_under_transfer", (0.9, 0.1), (0.9, 0.9)),
    "R4": two("adversarial_under_white", "adversarial_under_all", (0.5, 0.5), (0.5, 0.4)),
    "R5": (all_victims(PGD=0.5, all=0.5), all_victims(PGD=0.4, all=0.5)),
    "R6a": (counts(scaled=3, staircase=1), counts(scaled=3, staircase=0)),
    "R6b": (counts(trained=0, adversarial=0), counts(trained=0, adversarial=2)),
    "R7": two("adversarial_under_PGD", "adversarial_under_all", (0.6, 0.5), (0.6, 0.6)),
}


def synthetic(measured: dict[str, Any]) -> Result:
    return fake_result(lesson.LESSON, measured, SEEDS)


def verdict(name: str, measured: dict[str, Any]) -> str:
    return CLAIMS[name].decide(synthetic(measured)).verdict


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


def test_a_claim_needs_its_controls_too() -> None:
    check_controls(lesson, MEASURED, SEEDS)


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert "cubuk2018intriguing" in claim.source or claim.source.startswith("this lesson")


def test_the_network_farthest_away_decides() -> None:
    near = {"trained_accuracy": around(0.9), "trained_FGSM_exponent": around(1.05)}
    far = {"linear_accuracy": around(0.9), "linear_FGSM_exponent": around(0.6)}
    assert verdict("C1a", near) == "holds"
    assert verdict("C1a", near | far) == "fails"
    wide = {"linear_accuracy": around(0.9), "linear_FGSM_exponent": [0.8, 1.05, 1.3, 1.05, 1.05]}
    assert verdict("C1a", near | wide) == "undecided"


def test_a_network_that_was_measured_but_not_fitted_is_no_proof() -> None:
    """A kind of network with too few errors in the window must not drop out in silence."""
    near = {"trained_accuracy": around(0.9), "trained_FGSM_exponent": around(1.05)}
    assert verdict("C1a", near | {"linear_accuracy": around(0.9)}) == "not-measured"


def test_nothing_lost_gives_no_ratio() -> None:
    measured = {"untrained_small_error": around(0.2), "trained_small_error": [0.1] * 4 + [0.0]}
    assert verdict("C3b", measured) == "not-measured"


# --- Presets --------------------------------------------------------------------------------------

IMAGES = SHAPES | {"glyphs": (1, 12, 12)}


def blobs(name: str, **_: Any) -> Dataset:
    """Ten classes of images that a network can learn: noise around ten patterns."""
    stream = torch.Generator().manual_seed(0)
    patterns = torch.rand(10, *IMAGES[name], generator=stream)
    y = torch.arange(360) % 10
    x = (0.7 * patterns[y] + 0.3 * torch.rand(360, *IMAGES[name], generator=stream)).clamp(0, 1)
    return Dataset(name, "blobs", x[:120], y[:120], x[120:], y[120:], tuple("0123456789"))


SMALL = [
    *("seeds=(5, 6)", "train.epochs=3", "train.batch_size=20", "model.width=12"),
    *("train.learning_rate=0.01", "training_steps=2", "pgd_steps=2", "attack_steps=4"),
    *("attack_with=12", "diagnose_with=8", "queries=8", "sweep=(0.1, 0.5, 1.0)"),
]


def small(preset: str, *settings: str) -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALL, *settings])
    return config


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", blobs)


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.dataset in datasets.names()
    assert config.model.input_shape == IMAGES[config.dataset]
    assert hash(config) == hash(dataclasses.replace(config))
    with torch.device("meta"):
        build(config.model)


def test_the_scales_of_the_design_are_there() -> None:
    assert list(lesson.PRESETS) == ["toy", "study", "full-fashion-mlp"]
    assert len(lesson.PRESETS["toy"].seeds) == 1
    for name in ("study", "full-fashion-mlp"):
        assert len(lesson.PRESETS[name].seeds) >= 5, name
        assert max(lesson.PRESETS[name].seeds) < 500, "pilots used seeds from 500 on"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, "seeds must be different integers >= 0"),
        ({"seeds": (1, 1)}, "seeds must be different"),
        ({"networks": ("trained",)}, "networks must hold trained and adversarial"),
        ({"networks": ("trained", "adversarial", "other")}, "be among"),
        ({"radii": (0.01, 0.0562)}, "radii must be at least 3 growing numbers"),
        ({"radii": (0.1, 0.01, 0.0562)}, "radii must be at least 3 growing numbers"),
        ({"sweep": (0.0, 0.5, 1.0)}, "sweep must be at least 3 growing numbers"),
        ({"small": 0.011}, "must be among radii"),
        ({"pgd_radii": (0.1, 0.2, 0.3)}, "must be among radii"),
        ({"epsilon": 0.0}, "epsilon and highest"),
        ({"highest": 1.5}, "epsilon and highest"),
        ({"queries": 0}, "must be >= 1"),
        ({"factor": 0.0}, "masks positive"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("preset", lesson.PRESETS)
@pytest.mark.usefixtures("data")
def test_shrunk_presets_run_and_give_the_same_numbers_twice(preset: str) -> None:
    config = small(preset)
    first, again = lesson.run(config), lesson.run(config)
    assert first.metrics == again.metrics
    assert first.series == again.series
    assert [claim.id for claim in first.claims] == list(CLAIMS)
    assert first.config == json.loads(json.dumps(dataclasses.asdict(config)))
    assert set(first.datasets) == {config.dataset}
    assert {len(values) for values in first.metrics.values()} == {2}
    for name, series in first.series.items():
        assert shape(series.values) == (2, *map(len, series.axes.values())), name
    assert Result.from_json(json.loads(dump(first.to_json()))).metrics == first.metrics


@pytest.mark.usefixtures("data")
def test_a_run_killed_again_and_again_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("toy", "train.epochs=2")
    whole = lesson.run(config)
    last, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=4
    )
    assert attempts > 2
    assert (last.metrics, last.series, last.claims) == (whole.metrics, whole.series, whole.claims)


@pytest.mark.usefixtures("data")
def test_a_seed_gives_the_same_numbers_alone_and_among_others() -> None:
    """What ``refresh`` relies on: one seed, run again, stands for the study."""
    many, once = lesson.run(small("study")), lesson.run(small("study", "seeds=(6,)"))
    shared = many.metrics.keys() & once.metrics.keys()
    assert len(shared) > 60
    for name in shared:
        assert many.metrics[name][1] == pytest.approx(once.metrics[name][0], rel=1e-3), name
    for name, series in once.series.items():
        assert many.series[name].values[1] == series.values[0], name


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.input_shape=(1, 4, 4)", r"\(1, 12, 12\).*\(1, 4, 4\)"),
        ("model.classes=5", "10 classes, the model takes .* and 5"),
    ],
)
@pytest.mark.usefixtures("data")
def test_data_that_do_not_fit_are_refused_before_anything_is_trained(
    setting: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(training._Run, "epoch", lambda *arguments: trained.append(arguments))
    with pytest.raises(ValueError, match=expected):
        lesson.run(small("toy", setting))
    assert not trained


# --- Parts ----------------------------------------------------------------------------------------


def test_the_linear_network_is_linear_and_is_what_was_trained() -> None:
    data = blobs("glyphs")
    config = ModelConfig("mlp", (1, 12, 12), 10, width=11, depth=1)
    recipe = TrainConfig(epochs=5, learning_rate=0.01, batch_size=40)
    training_run = train(config, data, (0, 1), recipe, loss=lesson.Linear())
    f = lesson.linear_map(training_run.params)
    x = torch.stack([data.test_x[:9], data.test_x[9:18]])
    middle = f((x[:, :4] + x[:, 4:8]) / 2)
    torch.testing.assert_close(middle, (f(x[:, :4]) + f(x[:, 4:8])) / 2)
    by_hand = x.flatten(2) @ training_run.params["hidden.0.weight"].mT
    by_hand = by_hand + training_run.params["hidden.0.bias"].unsqueeze(1)
    by_hand = by_hand @ training_run.params["output.weight"].mT
    torch.testing.assert_close(f(x), by_hand + training_run.params["output.bias"].unsqueeze(1))
    assert bool((training_run.loss[:, -1] < 0.7 * training_run.loss[:, 0]).all())


def family(*settings: str) -> tuple[lesson.Family, dict[str, Tensor], Any]:
    config = small("toy", "model.width=16", *settings)
    found = lesson.Family(config, Stages(None, config))
    params = stack([initial(config.model, seed) for seed in config.seeds])
    return found, params, lambda x: predict_stacked(found.model, params, x)


@pytest.mark.usefixtures("data")
def test_steps_along_one_direction_are_the_library_s_attacks() -> None:
    found, params, f = family()
    x, y = found.samples("untrained", f)
    precise = found.predict("untrained", {k: t.double() for k, t in params.items()})
    radii = (0.01, 0.05, 0.2)
    errors, top_two = lesson.one_step_errors(f, precise, x, y, radii)
    threats = [LInf(radius, bounded=False) for radius in radii]
    gap = lambda p, x, y, t: fgsm(p, x, y, t, margin_loss)  # noqa: E731
    for title, attack in (("FGSM", fgsm), ("step l.l.", step_least_likely), ("gap", gap)):
        direct = adversarial_error(f, x, y, threats, attack)
        torch.testing.assert_close(errors[title], direct, rtol=0, atol=0.005)
    torch.testing.assert_close(
        top_two, adversarial_error(f, x, y, threats, fgsm, top=2), rtol=0, atol=0.005
    )
    torch.testing.assert_close(errors["FGSM float64"], errors["FGSM"], rtol=0, atol=0.005)
    assert bool((errors["FGSM"] >= top_two).all())


@pytest.mark.usefixtures("data")
def test_double_precision_restores_what_single_precision_loses() -> None:
    """On logits that are far apart the float32 gradient of cross-entropy is zero."""
    found, params, f = family()
    loud = {**params, **{k: 1e5 * params[k] for k in ("output.weight", "output.bias")}}
    predict = found.predict("trained", loud)
    precise = found.predict("trained", {k: t.double() for k, t in loud.items()})
    x, _ = found.samples("untrained", f)
    y = f(x).argmax(-1)
    errors, _ = lesson.one_step_errors(predict, precise, x, y, (0.05, 0.1, 0.5))
    exact = found.predict("untrained", {k: t.double() for k, t in params.items()})
    honest, _ = lesson.one_step_errors(f, exact, x, y, (0.05, 0.1, 0.5))
    torch.testing.assert_close(errors["gap"], honest["gap"], rtol=0, atol=0.02)
    assert float(errors["FGSM"][-1].max()) < 0.1 < float(honest["FGSM"][-1].min())


@pytest.mark.usefixtures("data")
def test_own_labels_make_every_sample_right() -> None:
    found, _, f = family()
    x, y = found.samples("untrained", f)
    assert torch.equal(f(x).argmax(-1), y)
    own, _ = found.samples("random data", f)
    assert not torch.equal(own[0], x[0])
    _, true = found.samples("trained", f)
    assert torch.equal(true[0], found.data.test_y)


def test_random_data_have_nothing_to_learn_and_are_the_same_each_time() -> None:
    data = blobs("glyphs")
    noise, again = lesson.random_data(data), lesson.random_data(data)
    assert torch.equal(noise.train_x, again.train_x)
    assert noise.train_x.shape == data.train_x.shape
    assert not torch.equal(noise.train_y, data.train_y)
    assert 0 <= float(noise.train_x.min()) < 0.01
    assert 0.99 < float(noise.train_x.max()) <= 1


def test_exponents_are_left_out_where_a_seed_has_too_few_points() -> None:
    config = lesson.Config()
    good = torch.tensor([[r, r] for r in config.radii])
    bad = good.clone()
    bad[:, 1] = 0
    found = lesson.exponents(config, [1000, 1000], {"a": good, "b": bad}, config.radii)
    assert set(found) == {"a_exponent"}
    assert found["a_exponent"] == pytest.approx([1.0, 1.0])


def test_misses_count_only_small_errors() -> None:
    predicted = torch.tensor([[0.0001, 0.02], [0.01, 0.05], [0.5, 0.9]])
    errors = torch.tensor([[0.0002, 0.02], [0.02, 0.05], [0.2, 0.5]])
    assert lesson.prediction_misses(predicted, errors) == [0.5, 0.0]


def test_the_masks_of_the_evaluation_decide_as_the_trained_network() -> None:
    config = small("toy", "stair=0.001")
    params = initial(config.model, 0)
    found = lesson.victims(config, build(config.model), params, initial(config.model, 1))
    assert tuple(found) == lesson.VICTIMS
    x = blobs("glyphs").test_x[:30]
    plain = found["trained"](x).argmax(-1)
    assert torch.equal(found["scaled"](x).argmax(-1), plain)
    assert float((found["staircase"](x).argmax(-1) == plain).double().mean()) > 0.9
    assert not torch.equal(found["adversarial"](x), found["trained"](x))


@pytest.mark.usefixtures("data")
def test_accuracies_of_the_evaluation_are_in_order() -> None:
    result = lesson.run(small("toy"))
    for victim in lesson.VICTIMS:
        metric = lambda name, v=victim: result.metric(f"{v}_under_{name}")  # noqa: E731
        for k in range(2):
            every = [metric(a)[k] for a in (*lesson.WHITE, "Square")]
            assert metric("all")[k] <= metric("white")[k] <= min(every[:-1]) + 1e-9
            assert metric("clean")[k] >= max(every)
        row = result.series["standing"].values[0][lesson.VICTIMS.index(victim)]
        assert math.isclose(row[0], metric("clean")[0])
        assert math.isclose(row[-1], metric("all")[0])

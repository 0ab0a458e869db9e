"""The lesson's claims can come out either way; its parts add up; its controls are what they say."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fakes import SHAPES, check_claims, check_controls, killed_again_and_again, random_images, shape
from fakes import synthetic as fake_result
from torch.nn import functional as F

from lmc_lessons import datasets, training
from lmc_lessons.connectivity.matching import weight_matching
from lmc_lessons.connectivity.spectra import (
    spectra,
    spectral_difference,
    taylor_barrier,
    truncate,
)
from lmc_lessons.connectivity.symmetry import find_symmetry, permute
from lmc_lessons.evaluation import score
from lmc_lessons.experiments import singular_vectors as lesson
from lmc_lessons.experiments.pairs import PairRun, Setting
from lmc_lessons.experiments.runs import override
from lmc_lessons.landscape import interpolate
from lmc_lessons.models import ModelConfig, Params, build, parameter_names, predict
from lmc_lessons.results import Claim, Result, Series, dump

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5


# --- Claims ---------------------------------------------------------------------------------------


def around(value: float) -> list[float]:
    """One number per seed, close to that value but not all the same."""
    return [value * (1 + 0.01 * k) for k in range(SEEDS)]


def taylor(fractions: list[float], estimates: list[float], barriers: list[float]) -> Series:
    axes: dict[str, list[Any]] = {"quantity": ["estimate", "barrier"], "fraction": fractions}
    return Series(axes, [[estimates, barriers] for _ in range(SEEDS)])


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


FRACTIONS = [0.02, 0.3, 1.0]

# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "C1a": one("naive_midpoint", 1.0, 0.05),
    "C1b": one("weights_midpoint", 0.01, 0.5),
    "C2": one("weights_removed", 0.2, 0.5),
    "C3a": two("naive_estimate", "naive_estimated", (0.1, 1.0), (0.9, 1.0)),
    "C3b": two("weights_estimate", "weights_estimated", (0.3, 0.2), (0.2, 0.2)),
    "C3c": (
        {"taylor": taylor(FRACTIONS, [0.0103, 1.0, 9.0], [0.01, 2.0, 1.0])},
        {"taylor": taylor(FRACTIONS, [0.02, 1.0, 9.0], [0.01, 1.0, 9.0])},
    ),
    "C4": one("spectral_difference_seeds", 0.05, 0.3),
    "C5a": one("naive_alignment", 0.01, 0.5),
    "C5b": two("weights_alignment", "weights_alignment_all", (0.5, 0.1), (0.1, 0.1)),
    "C5c": two("weights_alignment_all", "naive_alignment_all", (0.12, 0.0), (0.12, 0.12)),
    "C6a": two("weights_merged_alignment", "weights_alignment", (0.8, 0.5), (0.5, 0.5)),
    "C6b": two("weights_merged_alignment", "naive_merged_alignment", (0.8, 0.5), (0.5, 0.5)),
    "C7": two("preference_top", "preference_rest", (0.3, 0.1), (0.1, 0.1)),
    "C8a": one("activations_midpoint", 0.01, 0.5),
    "C8b": two("activations_alignment", "weights_alignment", (0.5, 0.52), (0.2, 0.5)),
    "C8c": two("activations_removed", "weights_removed", (0.2, 0.22), (0.0, 0.3)),
    "C11a": (
        {"singular_value_change": [1e-15] * SEEDS},
        {"singular_value_change": [1e-15] * 4 + [1e-3]},
    ),
    "C11b": ({"output_change": [1e-15] * SEEDS}, {"output_change": [1e-15] * 4 + [1e-3]}),
    "T1": one("top_only_midpoint", 0.01, 0.5),
    "T2": one("rest_only_midpoint", 1.0, 0.05),
    "T3": two("rest_only_alignment_all", "weights_alignment_all", (0.12, 0.12), (0.01, 0.12)),
}


def synthetic(measured: dict[str, Any]) -> Result:
    return fake_result(lesson.LESSON, measured, SEEDS)


def verdict(name: str, measured: dict[str, Any]) -> str:
    return CLAIMS[name].decide(synthetic(measured)).verdict


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


def test_a_claim_needs_its_controls_too() -> None:
    check_controls(lesson, MEASURED, SEEDS)


@pytest.mark.parametrize(("name", "way"), [("C3a", "naive"), ("C3b", "weights")])
@pytest.mark.parametrize("height", [0.0, -0.01])
def test_a_share_of_a_barrier_that_is_not_there_is_not_measured(
    name: str, way: str, height: float
) -> None:
    """After matching there may be no barrier left: that must not end the run."""
    measured = {f"{way}_estimate": [0.1] * SEEDS, f"{way}_estimated": [1.0] * 4 + [height]}
    found = CLAIMS[name].decide(synthetic(measured))
    assert (found.verdict, found.effect) == ("not-measured", None)
    assert "a barrier in every pair" in found.evidence


def test_a_loss_that_does_not_change_nearby_is_not_measured() -> None:
    """Over a fiftieth of the distance the excess can be zero as stored: that is no error."""
    flat = {"taylor": taylor(FRACTIONS, [1e-9, 1.0, 2.0], [0.0, 1.0, 2.0])}
    assert verdict("C3c", flat) == "not-measured"


def test_nearby_the_loss_may_fall_and_the_estimate_too() -> None:
    falling = {"taylor": taylor(FRACTIONS, [-0.0103, 1.0, 9.0], [-0.01, 2.0, 1.0])}
    assert verdict("C3c", falling) == "holds"
    wrong_sign = {"taylor": taylor(FRACTIONS, [0.01, 1.0, 9.0], [-0.01, 2.0, 1.0])}
    assert verdict("C3c", wrong_sign) == "fails"


def test_a_long_way_is_no_control_of_what_happens_nearby() -> None:
    assert verdict("C3c", {"taylor": taylor([0.3, 1.0], [1, 2], [1, 2])}) == "not-measured"


def test_no_distance_at_all_is_not_measured() -> None:
    assert verdict("C3c", {"taylor": taylor([], [], [])}) == "not-measured"


def test_inputs_that_avoid_small_singular_vectors_altogether_are_no_error() -> None:
    measured = {"preference_top": [0.5] * SEEDS, "preference_rest": [0.1] * 4 + [0.0]}
    assert verdict("C7", measured) == "not-measured"


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert claim.source.startswith("ito2025analysis, ") or claim.source == "this lesson"
    assert claim.margin >= 0 or claim.id == "T3", "only T3 says: no worse"


# --- Presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.dataset in datasets.names()
    assert config.model.input_shape == SHAPES[config.dataset]
    assert hash(config) == hash(dataclasses.replace(config))
    with torch.device("meta"):
        build(config.model)


def test_the_scales_of_the_design_are_there() -> None:
    wanted = "toy study full-mnist-mlp full-fashion-mlp full-cifar-vgg11 full-cifar-resnet20 paper"
    assert set(wanted.split()) <= set(lesson.PRESETS)
    assert len(lesson.PRESETS["toy"].seeds) <= 2
    for name in wanted.split()[1:]:
        assert len(lesson.PRESETS[name].seeds) >= 5, name


def test_the_study_has_pairs_that_no_pilot_has_seen() -> None:
    assert lesson.PRESETS["study"].seeds == (5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"gamma": 1.0}, r"gamma must be in \[?\(?0, 1\), got 1\.0"),
        ({"gamma": -0.1}, "gamma must be in .*got -0.1"),
        ({"gamma": 0.0}, "gamma must be in .*got 0"),
        ({"gammas": (0.0, 0.3, 1.5)}, "gamma must be in .*got 1.5"),
        ({"gammas": (0.0, 0.5)}, r"gammas must hold 0 and 0\.3, got \(0\.0, 0\.5\)"),
        ({"gammas": (0.3, 0.5)}, r"gammas must hold 0 and 0\.3"),
        ({"gammas": ()}, r"gammas must hold 0 and 0\.3, got \(\)"),
        ({"fractions": (0.0, 1.0)}, r"fractions must be .*got \(0\.0, 1\.0\)"),
        ({"fractions": (0.5, 1.1)}, r"fractions must be .*got \(0\.5, 1\.1\)"),
        ({"fractions": ()}, r"fractions must be .*got \(\)"),
        ({"fractions": (1.0, 0.02)}, r"fractions must be .*got \(1\.0, 0\.02\)"),
        ({"taylor_with": 0}, "taylor_with must be at least 1, got 0"),
        ({"widths": (16, 0)}, "width must be at least 1, got 0"),
        ({"learning_rates": (0.0,)}, "learning_rate must be > 0"),
        ({"sgd_rate": -1.0}, "learning_rate must be > 0"),
        ({"weight_decays": (-1.0,)}, "weight_decay >= 0"),
        ({"seeds": ()}, "seeds must be different integers >= 0"),
        ({"positions": 4}, "positions must be odd"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**changes)
    assert "\n" not in str(caught.value)


SMALL = [
    *("seeds=(5, 6)", "train.epochs=2", "train.batch_size=20", "gammas=(0.0, 0.3)"),
    *("positions=3", "evaluate=8", "match_with=8", "taylor_with=16", "fractions=(0.02, 1.0)"),
    *("train.precision=float32", "train.compile=False"),
]
SMALL_MLP = ["model.width=8", "widths=(6, 8)", "learning_rates=(0.05, 0.1)"]
SMALL_MLP += ["weight_decays=(0.0, 0.01)"]
SMALL_IMAGES = [
    *("seeds=(0,)", "train.epochs=1", "model.width=1"),
    *("evaluate=2", "match_with=4", "taylor_with=2"),
]
SMALLER: dict[str, list[str]] = {
    "toy": SMALL_MLP,
    "study": SMALL_MLP,
    "full-mnist-mlp": ["model.width=6", "model.depth=2"],
    "full-fashion-mlp": ["model.width=6", "model.depth=2"],
    "full-cifar-vgg11": [*SMALL_IMAGES, "model.architecture=cnn"],
    "full-cifar-resnet20": SMALL_IMAGES,
    "paper": [*SMALL_IMAGES, "model.architecture=cnn", "model.width=3"],
}

SLOW = "full-cifar-resnet20"  # run once only; other convolutional presets are run twice


def small(preset: str, *settings: str) -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALL, *SMALLER[preset], *settings])
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
    again = first if preset == SLOW else lesson.run(config)
    assert first.metrics == again.metrics
    assert first.series == again.series
    assert first.claims == again.claims
    assert [claim.id for claim in first.claims] == list(CLAIMS)
    assert first.config == json.loads(json.dumps(dataclasses.asdict(config)))
    assert set(first.datasets) == {config.dataset}
    seeds = len(config.seeds)
    assert {len(values) for values in first.metrics.values()} == {seeds}
    for name, series in first.series.items():
        assert shape(series.values) == (seeds, *map(len, series.axes.values())), name
    assert Result.from_json(json.loads(dump(first.to_json()))).metrics == first.metrics
    swept = {"widths", "learning_rates", "weight_decays"}
    assert {n for n in swept if getattr(config, n)} == swept & first.series.keys()
    for claim in first.claims:
        assert claim.verdict != "not-measured" or "a barrier in every pair" in claim.evidence, claim


def test_a_run_killed_again_and_again_ends_with_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    config = small("toy", "widths=(6,)", "learning_rates=()", "weight_decays=(0.01,)", "together=3")
    whole = lesson.run(config)
    last, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=7
    )
    assert attempts > 2
    assert (last.metrics, last.series, last.claims) == (whole.metrics, whole.series, whole.claims)


def test_a_pair_gives_the_same_numbers_alone_and_among_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What ``refresh`` relies on: one seed, run again, stands for the study."""
    monkeypatch.setattr(datasets, "load", random_images)
    many, once = lesson.run(small("study")), lesson.run(small("study", "seeds=(6,)"))
    assert {name: values[1] for name, values in many.metrics.items()} == {
        name: values[0] for name, values in once.metrics.items()
    }
    assert {name: series.values[1] for name, series in many.series.items()} == {
        name: series.values[0] for name, series in once.series.items()
    }


def test_the_same_networks_are_trained_once_and_measured_alike(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A width, a learning rate or a decay that is the usual one names networks that are there."""
    monkeypatch.setattr(datasets, "load", random_images)
    stages: list[str] = []
    train = PairRun.train

    def watched(self: PairRun, name: str, *others: Any, **more: Any) -> Any:
        stages.append(name)
        return train(self, name, *others, **more)

    monkeypatch.setattr(PairRun, "train", watched)
    result = lesson.run(small("study"))
    rates = ["learning-rate-0.05", "learning-rate-0.1"]
    assert stages == ["networks", "width-6", *rates, "weight-decay-0.01"]
    metrics = ("naive_barrier", "weights_barrier", "weights_removed", "weights_alignment")
    for k in range(2):
        usual = [row[1] for row in result.series["widths"].values[k]]
        assert usual[:4] == pytest.approx([result.metric(name)[k] for name in metrics], abs=1e-5)
        by_rate, by_decay = (
            result.series[name].values[k] for name in ("learning_rates", "weight_decays")
        )
        assert [row[1] for row in by_rate] == [row[0] for row in by_decay]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("model.input_shape=(1, 4, 4)", r"\(1, 8, 8\).*\(1, 4, 4\)"),
        ("model.classes=5", "digits has 10 classes, the model 5"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_is_trained(
    setting: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load", random_images)
    trained: list[Any] = []
    monkeypatch.setattr(training._Run, "epoch", lambda *arguments: trained.append(arguments))
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.run(small("toy", setting))
    assert "\n" not in str(caught.value)
    assert not trained


# --- One pair -------------------------------------------------------------------------------------


class Trained:
    """A pair of networks that have learnt real digits, and what they are measured with."""

    def __init__(self, *settings: str) -> None:
        usual = ("limit=300", "train.epochs=10", "evaluate=200", "match_with=200")
        more = ("model.width=16", "taylor_with=100", "gammas=(0.0, 0.1, 0.3)", "seeds=(0,)")
        self.config = small("toy", *usual, *more, *settings)
        context = PairRun(self.config)
        networks = context.networks("networks", self.config.model, self.config.train, (0,))
        self.setting = context.setting(self.config.model)
        self.starts = (networks[0][0], networks[0][1])
        self.start = self.starts[0]
        self.a, self.b = networks[10]
        data = self.setting.data
        self.few = data.train_x[:100], data.train_y[:100]

    def double(self) -> tuple[Setting, Params, Params]:
        """The same in float64."""
        data = self.setting.data  # a data set is float32, so this only looks like one
        exact: Any = SimpleNamespace(
            test_x=data.test_x.double(),
            test_y=data.test_y,
            train_x=data.train_x.double(),
            train_y=data.train_y,
        )
        model = copy.deepcopy(self.setting.model).double().eval()
        setting = self.setting._replace(model=model, data=exact)
        return setting, double(self.a), double(self.b)


def double(params: Params) -> Params:
    return {n: t.double() if t.is_floating_point() else t for n, t in params.items()}


@pytest.fixture(scope="module")
def pair() -> Trained:
    return Trained()


def weights_only(params: Params) -> Params:
    return {n: t if t.dim() > 1 else torch.zeros_like(t) for n, t in params.items()}


def test_matching_by_all_singular_values_is_matching_by_all_weights(pair: Trained) -> None:
    """With a threshold that lets everything pass, what is left out is the biases."""
    setting, a, b = pair.double()
    for seed in range(3):
        found = lesson.match_part(setting.symmetry, a, b, 1e-12, top=True, seed=seed).permutations
        bare = weights_only(a), weights_only(b)
        wanted = weight_matching(setting.symmetry, *bare, seed=seed).permutations
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("top", [True, False])
def test_the_best_of_several_searches_wins(top: bool, pair: Trained) -> None:
    setting, a, b = pair.double()

    def similarity(searches: int, seed: int = 0) -> float:
        """Of the parts matched, computed afresh."""
        found = lesson.match_part(
            setting.symmetry, a, b, 0.3, top=top, seed=seed, searches=searches
        ).permutations
        moved = permute(setting.symmetry, b, found)
        low = [truncate(p, 0.3) for p in (a, moved)]
        parts = (
            low
            if top
            else [{n: p[n] - q[n] for n in p} for p, q in zip((a, moved), low, strict=True)]
        )
        return sum(float((parts[0][n] * parts[1][n]).sum()) for n in a if a[n].dim() > 1)

    singles = [similarity(1, seed) for seed in range(5)]
    assert similarity(5) == pytest.approx(max(singles), rel=1e-12)
    assert len(set(singles)) > 1, "the order decides nothing here"


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_two_parts_add_up_to_the_whole(
    norm: Any, monkeypatch: pytest.MonkeyPatch, pair: Trained
) -> None:
    model = build(ModelConfig(width=12, depth=2, norm=norm)).eval()
    symmetry = find_symmetry(model, torch.rand(4, 1, 8, 8))
    first, second = (
        double(build(ModelConfig(width=12, depth=2, norm=norm)).state_dict()) for _ in "ab"
    )
    seen: list[tuple[Params, Params]] = []

    def watched(symmetry: Any, a: Params, b: Params, **more: Any) -> Any:
        seen.append((a, b))
        return weight_matching(symmetry, a, b, **more)

    monkeypatch.setattr(lesson, "weight_matching", watched)
    for top in (True, False):
        lesson.match_part(symmetry, first, second, 0.5, top=top)
    for network, top_part, rest in zip((first, second), *seen, strict=True):
        assert network.keys() == top_part.keys() == rest.keys()
        for name, tensor in weights_only(network).items():
            assert torch.allclose(top_part[name] + rest[name], tensor, atol=1e-14)
        for name, spectrum in spectra(network).items():
            large = int((spectrum.values >= 0.5 * spectrum.values[0]).sum())
            for part, values in (
                (top_part, spectrum.values[:large]),
                (rest, spectrum.values[large:]),
            ):
                found = torch.linalg.svdvals(part[f"{name}.weight"])[: len(values)]
                assert torch.allclose(found, values, atol=1e-12)


def test_every_way_of_matching_keeps_the_function(pair: Trained) -> None:
    parts = lesson.match_parts(pair.setting.symmetry, pair.a, pair.b, 0.3, 0)
    ends = lesson.matched_ends(pair.setting, (pair.a, pair.b), 0, parts)
    assert tuple(ends) == lesson.WAYS
    setting, *_ = pair.double()
    x = setting.data.test_x
    with torch.no_grad():
        wanted, *found = (predict(setting.model, double(end), x) for end in ends.values())
    for way, logits in zip(lesson.WAYS[1:], found, strict=True):
        assert torch.allclose(logits, wanted, rtol=0, atol=1e-11), way
        same = all(torch.equal(ends[way][n], pair.b[n]) for n in pair.b)
        assert not same, f"{way} found nothing"
    assert all(torch.equal(ends["naive"][name], pair.b[name]) for name in pair.b)


def test_metrics_of_a_pair_agree_with_its_series(pair: Trained) -> None:
    config = pair.config
    found = lesson.measure_pair(pair.setting, config, (pair.a, pair.b), pair.starts, 0)
    metrics, series, layers = found["metrics"], found["series"], found["layers"]
    at = config.gammas.index(config.gamma)
    for k, way in enumerate(lesson.WAYS):
        key = way.replace(",", "").replace(" ", "_")
        loss = series["test_loss"][k]
        assert metrics[f"{key}_midpoint"] == loss[1] - (loss[0] + loss[2]) / 2
        assert metrics[f"{key}_barrier"] == max(0.0, metrics[f"{key}_midpoint"])
        assert loss[2] == pytest.approx(series["test_loss"][0][2], rel=1e-5)
        assert metrics[f"{key}_alignment"] == series["alignment"][k][at]
        assert metrics[f"{key}_alignment_all"] == series["alignment"][k][0]
        assert metrics[f"{key}_merged_alignment"] == series["merged_alignment"][k][at]
        removed = 1 - metrics[f"{key}_distance"] / metrics["naive_distance"]
        assert metrics[f"{key}_removed"] == removed
    assert metrics["naive_removed"] == 0 < metrics["weights_removed"] < 1
    for k, control in enumerate(("seeds", "start", "untrained")):
        row = series["spectral_difference"][k]
        assert metrics[f"spectral_difference_{control}"] == pytest.approx(np.mean(row))
    assert layers == ["hidden.0", "hidden.1", "hidden.2", "output"]
    values = [torch.linalg.svdvals(p["hidden.1.weight"].double()) for p in (pair.a, pair.b)]
    for row, wanted in zip(series["singular_values"], values, strict=False):
        assert row == pytest.approx(wanted.tolist())
    everything = score(pair.setting.model, pair.a, *test_of(pair.setting))
    assert series["truncation"][0] == pytest.approx(everything.accuracy, abs=0.006)
    assert 0 < metrics["kept_share"] < 1
    assert metrics["untrained_alignment"] == series["untrained_alignment"][at]
    assert metrics["untrained_alignment_all"] == series["untrained_alignment"][0]
    large = score(pair.setting.model, truncate(pair.a, config.gamma), *test_of(pair.setting))
    assert metrics["accuracy_top"] == pytest.approx(large.accuracy)
    assert metrics["accuracy_rest"] < metrics["accuracy_top"]
    # the whole way is what the claims on the estimate are about
    assert series["taylor"][0][-1] == metrics["naive_estimate"]
    assert series["taylor"][1][-1] == metrics["naive_estimated"]


def test_of(setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    return setting.data.test_x, setting.data.test_y


test_of.__test__ = False  # type: ignore[attr-defined]


# --- The estimate ---------------------------------------------------------------------------------


def test_estimates_by_distance_are_those_of_each_distance(pair: Trained) -> None:
    setting, a, b = pair.double()
    x, y = pair.few[0].double(), pair.few[1]
    fractions = (0.02, 0.3, 1.0)
    estimates, barriers = lesson.taylor_by_distance(setting, a, b, fractions, x, y)

    for fraction, estimate, found in zip(fractions, estimates, barriers, strict=True):
        end = interpolate(a, b, fraction)
        assert estimate == taylor_barrier(setting.model, a, end, x, y).total
        middle = interpolate(a, b, fraction / 2)
        start, top, stop = (loss(setting, p, x, y) for p in (a, middle, end))
        assert found == pytest.approx(top - (start + stop) / 2, abs=1e-6)
        assert found == lesson.midpoint_excess(setting, a, end, x, y)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_the_estimate_is_right_over_short_distances(norm: str) -> None:
    """So short that no ReLU switches: each switch is a kink, which no Hessian knows of."""
    trained = Trained(f"model.norm={norm}", "model.width=8")
    setting, a, b = trained.double()
    x, y = trained.few[0].double(), trained.few[1]
    end = interpolate(a, b, 1e-5)
    estimate = taylor_barrier(setting.model, a, end, x, y).total
    middles = (
        {**buffers, **{name: (a[name] + end[name]) / 2 for name in parameter_names(setting.model)}}
        for buffers in (a, end)  # each expansion keeps the statistics of its end
    )
    true = np.mean([loss(setting, p, x, y) for p in middles])
    true -= (loss(setting, a, x, y) + loss(setting, end, x, y)) / 2
    assert estimate == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_the_barrier_measured_is_the_one_that_is_foretold(norm: str) -> None:
    """With BatchNorm too: the expansions keep the statistics of the ends, so must the midpoint."""
    trained = Trained(f"model.norm={norm}", "model.width=8")
    setting, a, b = trained.double()
    x, y = trained.few[0].double(), trained.few[1]
    names = parameter_names(setting.model)
    middles = ({**end, **{n: (a[n] + b[n]) / 2 for n in names}} for end in (a, b))
    wanted = np.mean([loss(setting, p, x, y) for p in middles])
    wanted -= (loss(setting, a, x, y) + loss(setting, b, x, y)) / 2
    assert lesson.midpoint_excess(setting, a, b, x, y) == pytest.approx(wanted, rel=1e-4)


def loss(setting: Setting, params: Params, x: torch.Tensor, y: torch.Tensor) -> float:
    """Mean cross-entropy in float64; ``score`` takes logits to float32."""
    with torch.no_grad():
        return float(F.cross_entropy(predict(setting.model, params, x), y))


# --- What enters a layer --------------------------------------------------------------------------


def by_hand(params: Params, directions: Params, x: torch.Tensor, gamma: float) -> list[float]:
    """Mean over layers of the inputs' part along large and along small singular vectors."""
    z = x.flatten(1).double().numpy()
    tops, rests = [], []
    layers = [name.removesuffix(".weight") for name in params if name.endswith("weight")]
    for layer in layers:
        weight = params[f"{layer}.weight"].double().numpy()
        own = np.linalg.svd(weight, compute_uv=False)
        cut = int((own >= gamma * own[0]).sum())
        _, _, right = np.linalg.svd(
            directions[f"{layer}.weight"].double().numpy(), full_matrices=False
        )
        inputs = z[np.linalg.norm(z, axis=1) > 0]
        part = np.abs(inputs @ right.T) / np.linalg.norm(inputs, axis=1, keepdims=True)
        if cut < len(own):
            tops.append(part.mean(0)[:cut].mean())
            rests.append(part.mean(0)[cut:].mean())
        z = np.maximum(z @ weight.T + params[f"{layer}.bias"].double().numpy(), 0)
    return [float(np.mean(tops)), float(np.mean(rests))]


def test_preferences_are_in_the_order_of_their_names(pair: Trained) -> None:
    spectra_a = spectra(pair.a)
    x = pair.setting.match_with
    metrics, rows = lesson.preferences(pair.setting, pair.a, pair.start, spectra_a, "hidden.1", 0.3)
    own, control = by_hand(pair.a, pair.a, x, 0.3), by_hand(pair.a, pair.start, x, 0.3)
    assert [metrics["preference_top"], metrics["preference_rest"]] == pytest.approx(own, rel=1e-4)
    wanted = [metrics["preference_start_top"], metrics["preference_start_rest"]]
    assert wanted == pytest.approx(control, rel=1e-4)
    assert metrics["preference_top"] > metrics["preference_rest"]
    assert shape(rows) == (2, len(spectra_a["hidden.1"].values))
    assert rows[0] != rows[1]


def test_inputs_along_the_largest_singular_vector_are_seen_there(pair: Trained) -> None:
    """The first layer's inputs are its own first singular vector: all of the part is on top."""
    a = dict(pair.a)
    spectrum = spectra(a)["hidden.0"]
    setting = pair.setting._replace(
        match_with=spectrum.right[:, 0].float().view(1, 1, 8, 8).repeat(3, 1, 1, 1)
    )
    _, rows = lesson.preferences(setting, a, pair.start, spectra(a), "hidden.0", 0.3)
    assert rows[0][0] == pytest.approx(1, abs=1e-5)
    assert max(rows[0][1:]) < 1e-5
    assert rows[1][0] < 0.999


# --- What permuting leaves alone ------------------------------------------------------------------


def test_the_control_changes_singular_values_and_not_the_function(pair: Trained) -> None:
    moved = permute(pair.setting.symmetry, pair.b, pair.setting.symmetry.random(3))
    found = lesson.invariance(pair.setting, pair.b, moved)
    assert found["output_change"] < 1e-13
    assert found["singular_value_change"] < 1e-13
    assert found["rescaled_output_change"] < 1e-13
    assert found["rescaled_singular_value_change"] > 0.4
    # from first principles: twice the weights have twice the singular values, half have half
    by_layer = spectral_difference(
        spectra(pair.b), spectra({**pair.b, "hidden.0.weight": 2 * pair.b["hidden.0.weight"]})
    )
    assert found["rescaled_singular_value_change"] == pytest.approx(by_layer["hidden.0"])
    other = lesson.invariance(pair.setting, pair.b, pair.a)
    assert min(other["output_change"], other["singular_value_change"]) > 0.01


def test_permuting_half_of_a_group_is_seen(pair: Trained) -> None:
    """Rows without the columns behind them: the singular values stay, the function does not."""
    half = dict(pair.b)
    order = torch.arange(16).roll(1)
    for name in ("hidden.0.weight", "hidden.0.bias"):
        half[name] = half[name][order]
    found = lesson.invariance(pair.setting, pair.b, half)
    assert found["singular_value_change"] < 1e-13
    assert found["output_change"] > 0.01


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(width=6, depth=2, norm="batch"),
        ModelConfig(width=6, depth=2, norm="layer"),
        ModelConfig("cnn", width=2),
    ],
    ids=str,
)
def test_networks_that_cannot_be_rescaled_have_no_such_control(
    config: ModelConfig, pair: Trained
) -> None:
    model = build(config).eval()
    params = {n: t.detach() for n, t in model.state_dict().items()}
    symmetry = find_symmetry(model, pair.setting.data.test_x[:4])
    setting = pair.setting._replace(model=model, symmetry=symmetry)
    found = lesson.invariance(setting, params, permute(symmetry, params, symmetry.random(1)))
    assert set(found) == {"output_change", "singular_value_change"}
    assert max(found.values()) < 1e-12


def test_one_hidden_layer_is_rescaled_too(pair: Trained) -> None:
    model = build(ModelConfig(width=6, depth=1)).eval()
    params = {n: t.detach() for n, t in model.state_dict().items()}
    found = lesson.invariance(pair.setting._replace(model=model), params, params)
    assert found["rescaled_output_change"] < 1e-13 < 0.4 < found["rescaled_singular_value_change"]

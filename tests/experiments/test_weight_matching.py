"""The lesson's claims can come out either way, and every preset can be shrunk to seconds."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from lmc_lessons import datasets
from lmc_lessons.cli import AGREEMENT, disagreement
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments import weight_matching as lesson
from lmc_lessons.experiments.runs import override
from lmc_lessons.models import ModelConfig, build
from lmc_lessons.results import Claim, Result, Series, dump

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5
SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28)}
SHAPES |= {"cifar10": (3, 32, 32)}


# --- Claims ---------------------------------------------------------------------------------------


def around(value: float) -> list[float]:
    """One number per seed, close to that value but not all the same."""
    return [value * (1 + 0.01 * k) for k in range(SEEDS)]


def sweep(axis: str, ticks: list[Any], naive: list[float], matched: list[float]) -> Series:
    values = [[naive, [v * (1 + 0.01 * k) for v in matched]] for k in range(SEEDS)]
    return Series({"path": ["naive", "weights"], axis: ticks}, values)


WIDTHS, EPOCHS = [8, 16, 32, 64], [0, 1, 2, 5, 60]
FALLING, RISING, FLAT = [0.8, 0.4, 0.2, 0.1], [0.1, 0.2, 0.4, 0.8], [1.0, 1.0, 1.0, 1.0]
LATE, EARLY, NAIVE = [0.0, 0.9, 0.7, 0.3, 0.02], [0.0, 0.01, 0.02, 0.3, 0.9], [0.0, 1.0, 2, 2, 2]

# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "C1a": ({"naive_barrier": around(1.0)}, {"naive_barrier": around(0.05)}),
    "C1b": (
        {"naive_barrier": around(1.0), "weights_barrier": around(0.01)},
        {"naive_barrier": around(1.0), "weights_barrier": around(0.5)},
    ),
    "C1c": (
        {"naive_barrier": around(1.0), "activations_barrier": around(0.01)},
        {"naive_barrier": around(1.0), "activations_barrier": around(0.5)},
    ),
    "C3": (
        {"widths": sweep("width", WIDTHS, FLAT, FALLING)},
        {"widths": sweep("width", WIDTHS, FLAT, RISING)},
    ),
    "C4": (
        {"epochs": sweep("epoch", EPOCHS, NAIVE, LATE)},
        {"epochs": sweep("epoch", EPOCHS, NAIVE, EARLY)},
    ),
    "C5": (
        {"planted_mistakes": [0.0] * SEEDS, "planted_sweeps": [3.0, 4.0, 5.0, 3.0, 2.0]},
        {"planted_mistakes": [0.0] * 4 + [2.0], "planted_sweeps": [3.0] * SEEDS},
    ),
    "C6": (
        {"one_sweep_barrier": around(0.4), "weights_barrier": around(0.1)},
        {"one_sweep_barrier": around(0.1), "weights_barrier": around(0.1)},
    ),
    "C8": (
        {"counterexample_barrier": around(0.24), "counterexample_end_error": [0.0] * SEEDS},
        {"counterexample_barrier": [0.0] * SEEDS, "counterexample_end_error": [0.0] * SEEDS},
    ),
    "C10a": ({"objective_fall": [0.0] * SEEDS}, {"objective_fall": [0.0] * 4 + [1e-3]}),
    "C10b": ({"output_change": [1e-16] * SEEDS}, {"output_change": [1e-16] * 4 + [1e-3]}),
}


def synthetic(measured: dict[str, Any]) -> Result:
    return Result(
        "weight-matching",
        "study",
        {},
        list(range(SEEDS)),
        metrics={n: m for n, m in measured.items() if not isinstance(m, Series)},
        series={n: m for n, m in measured.items() if isinstance(m, Series)},
    )


def test_every_claim_has_a_case() -> None:
    assert set(MEASURED) == set(CLAIMS)
    assert len(CLAIMS) == len(lesson.CLAIMS), "two claims have one id"


@pytest.mark.parametrize("name", CLAIMS)
def test_claim_holds_where_it_is_true(name: str) -> None:
    found = CLAIMS[name].decide(synthetic(MEASURED[name][0]))
    assert found.verdict == "holds", found


@pytest.mark.parametrize("name", CLAIMS)
def test_claim_fails_where_it_is_false(name: str) -> None:
    found = CLAIMS[name].decide(synthetic(MEASURED[name][1]))
    assert found.verdict == "fails", found


@pytest.mark.parametrize("name", CLAIMS)
def test_claim_is_not_measured_in_an_empty_run(name: str) -> None:
    assert CLAIMS[name].decide(synthetic({})).verdict == "not-measured"


@pytest.mark.parametrize("missing", ["naive_barrier", "weights_barrier"])
def test_a_claim_needs_its_control_too(missing: str) -> None:
    measured = {n: m for n, m in MEASURED["C1b"][0].items() if n != missing}
    assert CLAIMS["C1b"].decide(synthetic(measured)).verdict == "not-measured"


def test_two_widths_are_no_trend_and_one_early_epoch_no_beginning() -> None:
    narrow = {"widths": sweep("width", [8, 16], FLAT[:2], FALLING[:2])}
    assert CLAIMS["C3"].decide(synthetic(narrow)).verdict == "not-measured"
    late = {"epochs": sweep("epoch", [0, 1, 60], NAIVE[:3], LATE[:3])}
    assert CLAIMS["C4"].decide(synthetic(late)).verdict == "not-measured"


def test_a_counterexample_must_be_of_perfect_networks() -> None:
    imperfect = MEASURED["C8"][0] | {"counterexample_end_error": [0.01] * SEEDS}
    assert CLAIMS["C8"].decide(synthetic(imperfect)).verdict == "fails"


def test_slow_or_wrong_recovery_both_count_against_c5() -> None:
    slow = {"planted_mistakes": [0.0] * SEEDS, "planted_sweeps": [6.0] + [3.0] * 4}
    found = CLAIMS["C5"].decide(synthetic(slow))
    assert (found.verdict, found.effect) == ("fails", pytest.approx(0.2))


@pytest.mark.parametrize("name", ["C1b", "C1c", "C3"])
def test_shares_of_a_barrier_that_is_not_there_are_not_measured(name: str) -> None:
    """Barely trained networks may have no barrier at all: that must not end the run."""
    measured = {"naive_barrier": [0.0, 1.0, 1.0, 1.0, 1.0]}
    measured |= {"weights_barrier": [0.1] * SEEDS, "activations_barrier": [0.1] * SEEDS}
    full: dict[str, Any] = measured | {"widths": sweep("width", WIDTHS, [0.0, 1, 1, 1], FALLING)}
    found = CLAIMS[name].decide(synthetic(full))
    assert (found.verdict, found.effect) == ("not-measured", None)
    assert "barrier" in found.evidence


def test_shares_that_are_all_equal_are_no_trend() -> None:
    """Spearman's rho of a constant does not exist; no warning, no NaN, no error."""
    flat = {"widths": sweep("width", WIDTHS, FLAT, FLAT)}
    assert CLAIMS["C3"].decide(synthetic(flat)).verdict in ("not-measured", "undecided", "fails")


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.paper):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert claim.source.startswith("ainsworth2023git, ")
    assert claim.margin >= 0


# --- Presets --------------------------------------------------------------------------------------


def plain(config: lesson.Config) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.dataset in datasets.names()
    assert config.model.input_shape == SHAPES[config.dataset]
    assert config.positions % 2 == 1
    assert config.train.epochs in config.epochs, "the last epoch is on the curve of training"
    assert hash(config) == hash(dataclasses.replace(config))
    with torch.device("meta"):
        build(config.model)


def test_the_scales_of_the_design_are_there() -> None:
    wanted = "toy study full-mnist-mlp full-fashion-mlp full-cifar-vgg11 full-cifar-resnet20 paper"
    assert set(wanted.split()) <= set(lesson.PRESETS)
    assert len(lesson.PRESETS["toy"].seeds) <= 2
    for name in wanted.split()[1:]:
        assert len(lesson.PRESETS[name].seeds) >= 5, name
    published = ModelConfig("mlp", (1, 28, 28), 10, width=512, depth=3)
    assert lesson.PRESETS["full-mnist-mlp"].model == published


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, "seeds must be different integers >= 0"),
        ({"seeds": (1, 1)}, "seeds must be different"),
        ({"seeds": (-1,)}, "seeds must be different"),
        ({"positions": 4}, "positions must be odd and at least 3, got 4"),
        ({"positions": 1}, "positions must be odd and at least 3, got 1"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        lesson.Config(**changes)


def random_images(name: str, **_: Any) -> Dataset:
    """Ten classes of random images, of the size of that data set."""
    stream = torch.Generator().manual_seed(0)
    x = torch.rand(50, *SHAPES[name], generator=stream)
    y = torch.arange(50) % 10
    return Dataset(name, "random", x[:40], y[:40], x[40:], y[40:], tuple("0123456789"))


SMALL = [
    *("seeds=(0, 1)", "train.epochs=2", "train.batch_size=20", "epochs=(0, 1, 2)"),
    *("positions=3", "evaluate=8", "match_with=8"),
    *("train.precision=float32", "train.compile=False"),
]
SMALL_MLP = [
    *("model.width=8", "widths=(4, 6, 8)", "weight_decays=(0.0, 1.0)"),
    *("depths=(2, 3)", "deep_width=4"),
]
SMALL_IMAGES = [
    *("train.epochs=1", "epochs=(0, 1)", "model.width=1"),
    *("evaluate=2", "match_with=4"),
]
SMALLER: dict[str, list[str]] = {
    "toy": SMALL_MLP,
    "study": [*SMALL_MLP, "counterexample=False"],
    "full-mnist-mlp": ["model.width=6", "model.depth=2", "widths=(3, 4, 6)"],
    "full-fashion-mlp": ["model.width=6", "model.depth=2", "widths=(3, 4, 6)"],
    "full-cifar-vgg11": [*SMALL_IMAGES, "model.architecture=cnn"],
    "full-cifar-resnet20": SMALL_IMAGES,
    "full-cifar-resnet20-bn": [*SMALL_IMAGES, "seeds=(0,)"],
    "paper": [*SMALL_IMAGES, "model.architecture=cnn"],
}


def small(preset: str, *settings: str) -> lesson.Config:
    return override(lesson.PRESETS[preset], [*SMALL, *SMALLER[preset], *settings])


def test_every_preset_has_a_small_edition() -> None:
    assert set(SMALLER) == set(lesson.PRESETS)


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_shrunk_presets_run_and_give_the_same_numbers_twice(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    quadrant = lesson.quadrant
    monkeypatch.setattr(datasets, "load", random_images)
    monkeypatch.setattr(lesson, "quadrant", lambda count, seed: quadrant(count // 10, seed))
    config = small(preset)
    first, again = lesson.run(config), lesson.run(config)
    assert first.metrics == again.metrics
    assert first.series == again.series
    assert first.claims == again.claims
    assert [claim.id for claim in first.claims] == list(CLAIMS)
    assert first.config == plain(config)
    assert set(first.datasets) == {config.dataset}
    seeds = len(config.seeds)
    assert {len(values) for values in first.metrics.values()} == {seeds}
    for name, series in first.series.items():
        assert shape(series.values) == (seeds, *map(len, series.axes.values())), name
    back = Result.from_json(json.loads(dump(first.to_json())))
    assert back.metrics == first.metrics
    wanted = {"widths": "widths", "weight_decays": "weight_decays", "depths": "depths"}
    wanted |= {"norms": "norms", "epochs": "epochs"}
    assert {n for n in wanted if getattr(config, n)} == wanted.keys() & first.series.keys()
    assert ("counterexample_barrier" in first.metrics) == config.counterexample


def shape(values: Any) -> tuple[int, ...]:
    """Shape of nested lists, which must not be ragged."""
    if not isinstance(values, list):
        return ()
    inner = {shape(value) for value in values}
    assert len(inner) == 1
    return (len(values), *inner.pop())


def test_a_pair_gives_the_same_numbers_alone_and_among_others() -> None:
    """What ``refresh`` relies on: one seed, run again, stands for the study."""
    settings = ("counterexample=False", "norms=('layer',)", "train.epochs=10", "limit=100")
    many = lesson.run(small("toy", *settings, "seeds=(0, 1)"))
    once = lesson.run(small("toy", *settings, "seeds=(0,)"))
    assert many.metrics["sweeps"][0] < many.metrics["sweeps"][1]
    assert {name: values[0] for name, values in many.metrics.items()} == {
        name: values[0] for name, values in once.metrics.items()
    }
    assert disagreement(once, many) <= AGREEMENT


def test_controls_point_the_other_way() -> None:
    """Random numbering is no matching, an unrelated network is not found, half a move shows."""
    config = small("toy", "counterexample=False", "limit=400", "train.epochs=15", "evaluate=200")
    result = lesson.run(dataclasses.replace(config, match_with=100, widths=(), depths=(), norms=()))
    mean = {name: sum(values) / len(values) for name, values in result.metrics.items()}
    assert mean["weights_distance"] < min(mean["naive_distance"], mean["random_distance"])
    assert mean["weights_distance"] <= mean["one_sweep_distance"]
    assert mean["planted_mistakes"] == 0
    assert mean["unrelated_mistakes_share"] > 0.5
    assert mean["output_change"] < 1e-12 < 1e-3 < mean["half_permuted_change"]
    assert result.decision("C5").verdict == "holds"


def test_the_data_must_fit_the_model() -> None:
    config = small("toy", "model.input_shape=(1, 4, 4)")
    with pytest.raises(ValueError, match=r"digits has inputs of shape \(1, 8, 8\).*\(1, 4, 4\)"):
        lesson.run(config)


# --- The counterexample ---------------------------------------------------------------------------


def test_the_two_networks_of_the_counterexample_are_perfect() -> None:
    """Straight from their formula: f is positive exactly where x1 < 0 and x2 > 0."""
    x, y = lesson.quadrant(3000, 3)
    assert torch.equal(y, ((x[:, 0] < 0) & (x[:, 1] > 0)).long())
    assert x.abs().max() <= 1
    for params in lesson.counterexample():
        first = (x @ params["hidden.0.weight"].T + params["hidden.0.bias"]).clamp_min(0)
        second = (first @ params["hidden.1.weight"].T + params["hidden.1.bias"]).clamp_min(0)
        logits = second @ params["output.weight"].T + params["output.bias"]
        assert torch.equal((logits[:, 1] >= logits[:, 0]).long(), y)


def test_no_permutation_connects_them() -> None:
    """All four permutations by plain indexing; the midpoint of each makes mistakes."""
    a, b = lesson.counterexample()
    x, y = lesson.quadrant(3000, 4)
    errors = []
    for swap_first in ([0, 1], [1, 0]):
        for swap_second in ([0, 1], [1, 0]):
            moved = {
                "hidden.0.weight": b["hidden.0.weight"][swap_first],
                "hidden.0.bias": b["hidden.0.bias"][swap_first],
                "hidden.1.weight": b["hidden.1.weight"][swap_second][:, swap_first],
                "hidden.1.bias": b["hidden.1.bias"][swap_second],
                "output.weight": b["output.weight"][:, swap_second],
                "output.bias": b["output.bias"],
            }
            middle = {name: (a[name] + moved[name]) / 2 for name in a}
            model = build(lesson.COUNTEREXAMPLE).eval()
            model.load_state_dict(middle)
            with torch.no_grad():
                logits = model(x)
            errors.append(float(((logits[:, 1] >= logits[:, 0]).long() != y).float().mean()))
    assert min(errors) > 0.02

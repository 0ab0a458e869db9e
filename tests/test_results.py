"""The decision rule on its boundaries, results as data, the hash that tells stale from fresh."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmc_lessons import results
from lmc_lessons.evaluation import Interval, t_interval
from lmc_lessons.results import (
    Claim,
    Decision,
    Kind,
    Result,
    Series,
    Verdict,
    decide,
    dump,
    entry,
    farthest,
    load,
    reach,
    save,
    stored,
    write_atomically,
)


def claim(
    values: Sequence[float] | Exception, margin: float = 0.5, kind: Kind = "greater"
) -> Claim:
    def effect(_: Result) -> Sequence[float]:
        if isinstance(values, Exception):
            raise values
        return values

    return Claim("C1", "It is so.", "someone2020, section 1", effect, margin, "why", kind)


def example(**changes: Any) -> Result:
    full = Result(
        lesson="lesson",
        preset="study",
        config={"preset": "study", "seeds": [0, 1, 2], "rate": 0.001, "limit": None},
        seeds=[0, 1, 2],
        metrics={"barrier": [0.25, 0.5, 0.123456], "count": [3.0, 4.0, 5.0]},
        series={"loss": Series({"path": ["a", "b"], "t": [0.0, 1.0]}, [[[1.0, 2.0], [3.0, 4.0]]])},
        datasets={"digits": {"variant": "split 0", "sha256": "ab" * 32}},
        device="cpu",
        seconds=12.5,
        peak_memory_mb=345.0,
        versions={"python": "3.11"},
        code="0123456789abcdef",
        verified="2025-01-31",
    )
    full.claims = [claim([0.9, 1.0, 1.1]).decide(full), claim(KeyError("x")).decide(full)]
    return dataclasses.replace(full, **changes)


# --- The decision rule ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "low", "high", "expected"),
    [
        ("greater", 0.51, 0.9, "holds"),
        ("greater", 0.5, 0.9, "undecided"),
        ("greater", 0.3, 0.9, "undecided"),
        ("greater", 0.3, 0.5, "undecided"),
        ("greater", 0.3, 0.49, "fails"),
        ("greater", -0.9, -0.6, "fails"),
        ("greater", -math.inf, math.inf, "undecided"),
        ("equal", -0.5, 0.5, "holds"),
        ("equal", -0.1, 0.2, "holds"),
        ("equal", 0.5, 0.5, "holds"),
        ("equal", -0.51, 0.2, "undecided"),
        ("equal", 0.2, 0.51, "undecided"),
        ("equal", 0.5, 0.7, "undecided"),
        ("equal", -0.7, -0.5, "undecided"),
        ("equal", 0.51, 0.7, "fails"),
        ("equal", -0.7, -0.51, "fails"),
        ("equal", -9.0, 9.0, "undecided"),
        ("equal", -math.inf, math.inf, "undecided"),
    ],
)
def test_the_interval_decides(kind: Kind, low: float, high: float, expected: Verdict) -> None:
    """Margin 0.5; what touches the margin is not beyond it."""
    assert decide([], Interval((low + high) / 2, low, high), 0.5, kind) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.0], "holds"),
        ([0.5, -0.5], "holds"),
        ([0.1, 0.500001], "fails"),
        ([0.1, -0.500001], "fails"),
        ([0.5], "holds"),
        ([9.0], "fails"),
    ],
)
def test_exact_looks_at_every_single_value(values: list[float], expected: Verdict) -> None:
    assert claim(values, kind="exact").decide(example()).verdict == expected


def test_exact_is_not_saved_by_the_mean() -> None:
    many = [0.0] * 99 + [0.6]
    assert claim(many, kind="equal").decide(example()).verdict == "holds"
    assert claim(many, kind="exact").decide(example()).verdict == "fails"


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0.9, 1.0, 1.1], "greater", "holds"),
        ([0.0, 0.1, 0.2], "greater", "fails"),
        ([0.2, 0.6, 1.0], "greater", "undecided"),
        ([0.1, 0.0, -0.1], "equal", "holds"),
        ([0.9, 1.0, 1.1], "equal", "fails"),
        ([-0.9, -1.0, -1.1], "equal", "fails"),
        ([0.2, 0.6, 1.0], "equal", "undecided"),
    ],
)
def test_values_over_seeds_decide(values: list[float], kind: Kind, expected: Verdict) -> None:
    found = claim(values, kind=kind).decide(example())
    interval = t_interval(values)
    assert found.verdict == expected
    assert (found.effect, found.low, found.high) == tuple(interval)
    assert found.margin == 0.5
    assert f"{len(values)} seeds" in found.evidence


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=8), st.sampled_from(["greater", "equal"]))
@settings(max_examples=80, deadline=None)
def test_a_claim_and_its_opposite_never_both_hold(values: list[float], kind: Kind) -> None:
    verdict = claim(values, kind=kind).decide(example()).verdict
    opposite = claim([-v for v in values], -0.5 if kind == "greater" else 0.5, kind)
    mirrored = {"holds": "fails", "fails": "holds", "undecided": "undecided"}
    expected = mirrored[verdict] if kind == "greater" else verdict
    assert opposite.decide(example()).verdict == expected


@pytest.mark.parametrize("kind", ["greater", "equal"])
@pytest.mark.parametrize("value", [0.0, 0.4, 99.0, -99.0])
def test_a_single_seed_leaves_it_undecided(kind: Kind, value: float) -> None:
    found = claim([value], kind=kind).decide(example())
    assert (found.verdict, found.effect) == ("undecided", value)
    assert (found.low, found.high) == (None, None)
    assert found.evidence == "1 seed: no interval"


@pytest.mark.parametrize("kind", ["greater", "equal", "exact"])
def test_what_was_not_measured_has_no_verdict(kind: Kind) -> None:
    found = claim(KeyError("widths"), kind=kind).decide(example())
    assert (found.verdict, found.effect, found.low, found.high) == ("not-measured",) + (None,) * 3
    assert "widths" in found.evidence


def test_one_seed_is_its_own_reach() -> None:
    assert reach([-0.3]) == 0.3
    assert reach([1.0, 1.0]) == 1.0
    assert reach([0.0, 0.2]) > reach([0.1, 0.1])


def test_the_farthest_effect_is_one_of_them_and_does_not_mix_signs() -> None:
    """Taken seed by seed, +0.3 and -0.3 would cancel."""
    up, down = [0.3, 0.0, 0.3, 0.0], [0.0, -0.3, 0.0, -0.35]
    far = farthest(lambda _: up, lambda _: down, lambda _: [0.1] * 4)
    assert far(example()) == down


def test_one_entry_of_a_series_by_its_ticks() -> None:
    grid = Series({"way": ["a", "b"], "step": [1, 10]}, [[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    run = dataclasses.replace(example(), seeds=[0, 1], series={"grid": grid})
    assert entry("grid", "b", 1)(run) == [3.0, 7.0]
    for ticks, missing in ((("c", 1), "way c"), (("a", 2), "step 2")):
        with pytest.raises(KeyError, match=missing):
            entry("grid", *ticks)(run)
    with pytest.raises(KeyError, match="other"):
        entry("other", "a")(run)


def test_a_missing_metric_is_a_key_error() -> None:
    for ask in (example().metric, example().interval, example().decision):
        with pytest.raises(KeyError, match="nothing"):
            ask("nothing")


def test_metrics_intervals_and_decisions_by_name() -> None:
    result = example()
    assert result.metric("barrier") == [0.25, 0.5, 0.123456]
    assert result.interval("barrier") == t_interval([0.25, 0.5, 0.123456])
    assert result.decision("C1") is result.claims[0]


# --- JSON -----------------------------------------------------------------------------------------


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    result = example()
    path = save(result, tmp_path / "new")
    assert path.name == "lesson-study.json"
    back = load(path)
    assert isinstance(back.series["loss"], Series)
    assert isinstance(back.claims[0], Decision)
    assert back.metrics == result.metrics
    assert back.series == result.series
    for name in ("config", "seeds", "datasets", "versions", "code", "verified", "seconds"):
        assert getattr(back, name) == getattr(result, name)
    for one, other in zip(back.claims, result.claims, strict=True):
        numbers = [n for n in ("effect", "low", "high") if getattr(other, n) is not None]
        assert one == dataclasses.replace(other, **{n: getattr(one, n) for n in numbers})
        for name in numbers:
            assert getattr(one, name) == pytest.approx(getattr(other, name), rel=1e-5)
    again = save(back, tmp_path / "again")
    assert again.read_bytes() == path.read_bytes()
    assert stored("lesson", "study", tmp_path / "new") == back
    assert stored("lesson", "toy", tmp_path / "new") is None


def test_the_file_has_the_schema_of_the_command_line(tmp_path: Path) -> None:
    plain = json.loads(save(example(), tmp_path).read_text())
    assert plain["schema"] == 1
    wanted = "schema lesson preset config seeds device versions code datasets seconds "
    assert set((wanted + "peak_memory_mb metrics series claims").split()) <= plain.keys()
    assert set(plain["metrics"]["barrier"]) == {"values", "mean", "low", "high"}
    assert set(plain["series"]["loss"]) == {"axes", "values"}
    wanted = "id statement source verdict effect low high margin evidence"
    assert set(plain["claims"][0]) == set(wanted.split())
    low, high = t_interval([3, 4, 5])[1:]
    stored_interval = [plain["metrics"]["count"][key] for key in ("low", "high")]
    assert stored_interval == pytest.approx([low, high], rel=1e-5)


def test_one_seed_is_stored_without_an_interval(tmp_path: Path) -> None:
    plain = json.loads(save(example(metrics={"m": [0.5]}, seeds=[0]), tmp_path).read_text())
    assert plain["metrics"]["m"] == {"values": [0.5], "mean": 0.5, "low": None, "high": None}


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
@settings(max_examples=80, deadline=None)
def test_numbers_keep_six_digits(value: float) -> None:
    assert json.loads(dump({"x": [value]}))["x"][0] == pytest.approx(value, rel=5e-6)


TEXTS = st.text('ab"}], \n{[:\\é', max_size=6) | st.sampled_from(["{a}, ", "[b], ", '}, "'])
PLAIN_DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN_DATA)
@settings(max_examples=300, deadline=None)
def test_what_is_written_can_be_read_whatever_the_texts(plain: Any) -> None:
    assert json.loads(dump(plain)) == plain


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: float) -> None:
    with pytest.raises(ValueError, match="barrier"):
        save(example(metrics={"barrier": [0.1, bad, 0.2]}), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    ["", "<!DOCTYPE html>", "[]", "7", "{}", '{"schema": 2}', '{"schema": 1}', "NOT_METRICS"],
)
def test_what_is_not_a_result_is_named(tmp_path: Path, text: str) -> None:
    if text == "NOT_METRICS":
        text = json.dumps(example().to_json() | {"metrics": [1, 2]})
    file = tmp_path / "lesson-study.json"
    file.write_text(text)
    with pytest.raises(
        ValueError, match=r"lesson-study\.json is not a result of schema 1"
    ) as error:
        load(file)
    assert "\n" not in str(error.value)


def test_another_schema_is_named() -> None:
    with pytest.raises(ValueError, match="schema 3, this code reads 1"):
        Result.from_json(example().to_json() | {"schema": 3})


# --- Atomic files ---------------------------------------------------------------------------------


def fail(*_: object) -> None:
    raise OSError("the disk is full")


@pytest.mark.parametrize("step", ["encoding", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = tmp_path / "result.json"
    file.write_text("old")
    if step != "encoding":
        monkeypatch.setattr(os, step, fail)
    with pytest.raises((OSError, UnicodeEncodeError)):
        write_atomically(file, "new" + ("\ud800" if step == "encoding" else ""))
    assert file.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_the_old_file_stands_until_the_new_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "deep" / "result.json"
    text = "line\n" * 10_000
    write_atomically(file, "old")
    replace, seen = os.replace, []

    def watch(source: str, target: Path) -> None:
        seen.append((Path(source).read_text(), Path(target).read_text()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    write_atomically(file, text)
    assert seen == [(text, "old")]
    assert file.read_text() == text


def test_peak_memory_is_that_of_a_python_with_torch() -> None:
    if sys.platform != "win32":
        assert 50 < results.peak_memory_mb() < 100_000

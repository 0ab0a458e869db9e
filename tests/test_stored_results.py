"""Committed results: studies are fresh, and every verdict follows from the stored numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lmc_lessons.experiments import experiment, is_fresh, lessons
from lmc_lessons.provenance import code_hash
from lmc_lessons.results import load, results_folder

STORED = sorted(results_folder().glob("*.json"))
STUDIES = [path for path in STORED if path.stem.endswith("-study")]


def of(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("lesson", lessons())
def test_every_lesson_has_a_stored_study(lesson: str) -> None:
    assert f"{lesson}-study" in {path.stem for path in STUDIES}, "run `make results`"


@pytest.mark.parametrize("path", STUDIES, ids=of)
def test_studies_were_made_by_the_code_as_it_is(path: Path) -> None:
    result = load(path)
    assert result.code == code_hash([lessons()[result.lesson]]), "stale: run `make results`"
    assert is_fresh(result)


@pytest.mark.parametrize("path", STUDIES, ids=of)
def test_studies_were_run_with_their_preset(path: Path) -> None:
    result = load(path)
    config = experiment(result.lesson).PRESETS["study"]
    assert result.config == json.loads(json.dumps(dataclasses.asdict(config)))
    assert result.seeds == list(config.seeds)
    assert len(result.seeds) >= 5
    assert result.seconds < 600


@pytest.mark.parametrize("path", STUDIES, ids=of)
def test_studies_decide_every_claim_as_it_is_worded_now(path: Path) -> None:
    result = load(path)
    for old, claim in zip(result.claims, experiment(result.lesson).CLAIMS, strict=True):
        worded = (claim.id, claim.statement, claim.source, claim.margin)
        assert (old.id, old.statement, old.source, old.margin) == worded


@pytest.mark.parametrize("path", STORED, ids=of)
def test_verdicts_follow_from_the_stored_numbers(path: Path) -> None:
    """Also those of results at full scale, which may be older than the code."""
    result = load(path)
    claims = {claim.id: claim for claim in experiment(result.lesson).CLAIMS}
    assert {old.id for old in result.claims} <= set(claims)
    for old in result.claims:
        new = claims[old.id].decide(result)
        assert (new.verdict, new.margin) == (old.verdict, old.margin), old.id
        for name in ("effect", "low", "high"):
            one, other = getattr(old, name), getattr(new, name)
            assert (one is None) == (other is None), f"{old.id}: {name}"
            assert one is None or one == pytest.approx(other, rel=1e-5, abs=1e-12), old.id


@pytest.mark.parametrize("path", STORED, ids=of)
def test_stored_results_are_whole(path: Path) -> None:
    result = load(path)
    assert path.stem == f"{result.lesson}-{result.preset}"
    assert result.preset in experiment(result.lesson).PRESETS
    assert {len(values) for values in result.metrics.values()} <= {len(result.seeds)}
    assert {len(series.values) for series in result.series.values()} == {len(result.seeds)}
    assert result.datasets
    assert result.versions
    assert path.stat().st_size < 1_000_000

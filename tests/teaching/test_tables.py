"""Generated tables show what the results hold, and nothing else."""

from __future__ import annotations

import dataclasses
import re

import pytest

from lmc_lessons import results
from lmc_lessons.experiments import experiment, lessons
from lmc_lessons.results import Decision, Result
from lmc_lessons.teaching import tables

LESSON = "weight-matching"


def stored() -> Result:
    found = results.stored(LESSON, "study")
    assert found is not None
    return found


def test_every_claim_is_in_the_table_with_its_verdict_and_the_paper() -> None:
    table = tables.claims_table(LESSON).data
    for claim in experiment(LESSON).CLAIMS:
        row = next(r for r in table.split("<tr>") if f"<strong>{claim.id}</strong>" in r)
        verdict = stored().decision(claim.id).verdict
        assert tables.MARKS[verdict] in row
        assert claim.paper in row


def test_the_scorecard_counts_what_the_studies_say() -> None:
    counts = tables.tally()
    studies = [results.stored(lesson, "study") for lesson in lessons()]
    verdicts: list[str] = [claim.verdict for study in studies if study for claim in study.claims]
    assert counts == {v: verdicts.count(v) for v in tables.MARKS}
    card = tables.scorecard().data
    assert card.count("<tr>") == len(verdicts) + len(lessons()), (
        "a row a claim, and a head a lesson"
    )
    for verdict, count in counts.items():
        assert card.count(f"{tables.MARKS[verdict]} {verdict.replace('-', ' ')}<") >= count


def test_a_stale_result_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "is_fresh", lambda result: False)
    assert "code has changed since" in tables.scorecard().data


def test_a_full_result_that_is_not_stored_leaves_no_column() -> None:
    assert "no-such-preset" not in tables.claims_table(LESSON, full=["no-such-preset"]).data


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "nats", "–"),
        (0.9616, "share", "96.2 %"),
        (-0.0001, "share", "0.0 %"),
        (-0.0996, "share", "-10.0 %"),
        (3.0, "units", "3 units"),
        (1e-9, "", "1e-09"),
    ],
)
def test_numbers_are_short(value: float | None, unit: str, text: str) -> None:
    assert tables.number(value, unit) == text


def test_a_single_seed_shows_no_interval() -> None:
    plain = Decision("C", "s", "t", "undecided", 1.5, None, None, 1.0, "1 seed")
    assert "[" not in tables.effect_text(plain, "nats")
    whole = dataclasses.replace(plain, low=1.0, high=2.0)
    assert "[1, 2]" in tables.effect_text(whole, "nats")


def test_an_unknown_lesson_is_refused() -> None:
    with pytest.raises(ValueError, match=r"allowed: all, .*loss-barriers, .*weight-matching"):
        tables.claims_table("no-such-lesson")


def test_every_cell_knows_its_column_for_the_cards_of_a_narrow_screen() -> None:
    found = tables.table(
        ["", "claim", "study<br><small>5 seeds</small>"], [["C1", "<b>x</b>", "1"]]
    )
    cells = re.findall(r'<td data-head="([^"]*)">(.*?)</td>', found)
    assert cells == [("", "C1"), ("claim", "<b>x</b>"), ("study", "1")]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("stutz2021relating, derived here", "Stutz et al. 2021, derived here"),
        ("rice2020overfitting; croce2020autoattack", "Rice et al. 2020; Croce and Hein 2020"),
        ("this lesson", "this lesson"),
    ],
)
def test_sources_are_named_as_a_reader_knows_them(source: str, told: str) -> None:
    assert tables.named_sources(source) == told


def test_every_key_of_the_bibliography_has_a_name() -> None:
    bibliography = results.results_folder().parents[1] / "book" / "references.bib"
    keys = re.findall(r"^@\w+\{(\w+),", bibliography.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(keys) > 20
    for key in keys:
        assert re.fullmatch(r"\w.* \d{4}", tables.named_sources(key)), key

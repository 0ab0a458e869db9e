"""Tables that the pages generate: a lesson's claims, the scorecard, a lesson's card."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence
from pathlib import Path

from IPython.display import HTML, Markdown

from lmc_lessons.experiments import experiment, is_fresh, lessons
from lmc_lessons.results import Claim, Decision, Result, stored
from lmc_lessons.teaching.costs import cost_text

MARKS = {"holds": "✓", "fails": "✗", "undecided": "?", "not-measured": "–"}
STYLE = """
<style>
.lmc-table { overflow-x: auto; margin: 1rem 0; color: inherit; }
.lmc-table table { border-collapse: collapse; width: 100%; font-size: .9rem; color: inherit; }
.lmc-table th, .lmc-table td { text-align: left; vertical-align: top; padding: .35rem .6rem;
  border-bottom: 1px solid color-mix(in srgb, currentColor 25%, transparent); }
.lmc-table.sentences-0 td:nth-child(1) { min-width: 11rem; }
.lmc-table.sentences-1 td:nth-child(2) { min-width: 15rem; }
.lmc-table .verdict { white-space: nowrap; font-weight: 600; }
.lmc-table .whole { white-space: nowrap; }
.lmc-table small { opacity: .8; }
@media (max-width: 600px) {
  .lmc-table[class*="sentences"] thead { display: none; }
  .lmc-table[class*="sentences"] :is(table, tbody, tr, td) { display: block; }
  .lmc-table[class*="sentences"] tr { padding: .5rem 0;
    border-bottom: 1px solid color-mix(in srgb, currentColor 40%, transparent); }
  .lmc-table[class*="sentences"] td { border: 0; padding: .15rem 0; min-width: 0; }
  .lmc-table[class*="sentences"] td:not([data-head=""], [data-head="claim"])::before {
    content: attr(data-head) ": "; opacity: .8; font-size: .85em; }
}
html[data-theme="dark"] .bd-content div.cell_output .text_html.text_html:has(> .lmc-table)
  { background: none; color: inherit; padding: 0; }
</style>
"""


def number(value: float | None, unit: str = "") -> str:
    """A number with three significant digits and its unit.

    Args:
        value: The number; None gives a dash.
        unit: Its unit.

    Returns:
        Text.
    """
    if value is None:
        return "–"
    if unit == "share":
        return f"{round(100 * value, 1) + 0.0:.1f} %"  # adding zero makes -0.0 plain
    text = f"{value:.0f}" if value == round(value) and abs(value) < 1e6 else f"{value:.3g}"
    return f"{text} {unit}".strip()


def effect_text(decision: Decision, unit: str) -> str:
    """Mean effect and interval of a decision, as HTML.

    Args:
        decision: What a claim's rule said.
        unit: Unit of the effect.

    Returns:
        Such as ``1.07 nats [0.843, 1.3]``, or a dash where nothing was measured.
    """
    if decision.effect is None:
        return "–"
    mean = f'<span class="whole">{number(decision.effect, unit)}</span>'
    if decision.low is None or decision.high is None or decision.low == decision.high:
        return mean
    low, high = (number(bound, unit).split(" ")[0] for bound in (decision.low, decision.high))
    return f'{mean} <small class="whole">[{low}, {high}]</small>'


def claims_table(lesson: str, full: Sequence[str] = ()) -> HTML:
    """The claims of a lesson: here, at full scale, in the paper, and the verdict.

    Args:
        lesson: Slug of the lesson.
        full: Names of the full-scale presets to show; those that are not stored are left out.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: If there is no such lesson.

    Taught in: book/start
    """
    claims: Sequence[Claim] = experiment(lesson).CLAIMS
    study = stored(lesson, "study")
    scales = {name: found for name in full if (found := stored(lesson, name))}
    stale = {name for name, result in scales.items() if not is_fresh(result)}
    titles = ["", "claim", "here, study", "here, full scale", "the paper"]
    rows = []
    for claim in claims:
        small = study.decision(claim.id) if study else None
        large = [_full_cell(n, claim, result, n in stale) for n, result in scales.items()]
        rows.append(
            [
                f"<strong>{html.escape(claim.id)}</strong>",
                _statement(claim),
                f"{effect_text(small, claim.unit)}<br>{verdict_text(small)}" if small else "–",
                "<br>".join(cell for cell in large if cell) or "–",
                html.escape(claim.paper),
            ]
        )
    return HTML(STYLE + table(titles, rows))


def _statement(claim: Claim) -> str:
    rule = f"{_relation(claim)} {number(claim.margin, claim.unit)}: {html.escape(claim.reason)}"
    source = html.escape(named_sources(claim.source))
    return f"{html.escape(claim.statement)}<br><small>{rule}. ({source})</small>"


def named_sources(text: str) -> str:
    """A text in which keys of the bibliography are replaced by authors and year.

    Args:
        text: Such as ``stutz2021relating, derived here``.

    Returns:
        Such as ``Stutz et al. 2021, derived here``; words that are no key stay.
    """
    known = _citations()
    return re.sub(r"\w+", lambda word: known.get(word[0], word[0]), text)


@functools.cache
def _citations() -> dict[str, str]:
    """Key of the bibliography to authors and year."""
    path = Path(__file__).resolve().parents[2] / "book" / "references.bib"
    found = {}
    for entry in path.read_text(encoding="utf-8").split("\n@"):
        key, fields = entry.partition("{")[2].split(",", 1)
        author, year = (
            re.search(rf"{name}\s*=\s*\{{(.*)\}}", fields) for name in ("author", "year")
        )
        if author and year:
            names = [name.partition(",")[0] for name in author[1].split(" and ")]
            told = " and ".join(names) if len(names) < 3 else f"{names[0]} et al."
            found[key.strip()] = f"{told} {year[1]}"
    return found


def _relation(claim: Claim) -> str:
    return "&gt;" if claim.kind == "greater" else "within ±"


def _full_cell(preset: str, claim: Claim, result: Result, is_stale: bool) -> str:
    """One line for one result at full scale; nothing where it did not measure the claim."""
    decision = claim.decide(result)
    if decision.verdict == "not-measured":
        return ""
    stale = ", stale: the code has changed since" if is_stale else ""
    name = html.escape(preset.removeprefix("full-"))
    return (
        f"{effect_text(decision, claim.unit)}<br>{verdict_text(decision)} "
        f"<small>({name}{stale})</small>"
    )


def verdict_text(decision: Decision | None) -> str:
    """A verdict with its mark, as HTML.

    Args:
        decision: What a claim's rule said; None means no study is stored.

    Returns:
        HTML.
    """
    verdict = decision.verdict if decision else "not-measured"
    return f'<span class="verdict">{MARKS[verdict]} {verdict.replace("-", " ")}</span>'


def table(
    titles: Sequence[str], rows: Sequence[Sequence[str]], *, sentences: int | None = 1
) -> str:
    """A table as HTML.

    On a narrow screen a table with sentences shows each row as a card, every cell below the other
    behind its column's title; a table without scrolls by itself.

    Args:
        titles: Head of each column, as HTML.
        rows: Cells of each row, as HTML.
        sentences: Index of the column that holds sentences (0 or 1), if one does.

    Returns:
        HTML without the style; ``plain_table`` is for pages.
    """
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    heads = [html.escape(re.sub("<br>.*|<[^>]*>", "", title), quote=True) for title in titles]
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-head="{head}">{cell}</td>' for head, cell in zip(heads, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    kind = "" if sentences is None else f" sentences-{sentences}"
    return (
        f'<div class="lmc-table{kind}" tabindex="0"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> HTML:
    """A small table for a page.

    Args:
        titles: Head of each column.
        rows: Cells of each row.

    Returns:
        An object that Jupyter displays as HTML.
    """
    return HTML(STYLE + table(titles, rows, sentences=None))


def scorecard() -> HTML:
    """Every claim of every lesson with its verdict at each scale that is stored: a table a lesson.

    Returns:
        An object that Jupyter displays as HTML.

    Taught in: book/start
    """
    parts = []
    for lesson in lessons():
        module = experiment(lesson)
        found = {p: r for p in module.PRESETS if p != "toy" and (r := stored(lesson, p))}
        if not found:
            continue
        heads = [_scale(preset, result) for preset, result in found.items()]
        rows = [
            [
                f"<strong>{html.escape(claim.id)}</strong> {html.escape(claim.statement)} "
                f"<small>({_relation(claim)} {number(claim.margin, claim.unit)})</small>",
                *(_score(claim, result) for result in found.values()),
            ]
            for claim in module.CLAIMS
        ]
        title = html.escape(lesson.replace("-", " ").capitalize())
        parts.append(f"<h3>{title}</h3>{table(['claim', *heads], rows, sentences=0)}")
    return HTML(STYLE + "".join(parts))


def _scale(preset: str, result: Result) -> str:
    """Head of a column: which result, how often repeated, whether its code is the same."""
    code = "code as it is now"
    if not is_fresh(result):
        code = "code has changed since"
    elif result.verified:
        code = f"verified {result.verified}"
    name = html.escape(preset.removeprefix("full-"))
    return f"{name}<br><small>{len(result.seeds)} seeds, {code}</small>"


def _score(claim: Claim, result: Result) -> str:
    decision = claim.decide(result)
    return f"{verdict_text(decision)}<br>{effect_text(decision, claim.unit)}"


def tally(presets: Sequence[str] = ("study",)) -> dict[str, int]:
    """How many claims have each verdict in the stored results.

    Args:
        presets: Which results to count.

    Returns:
        Verdict to number of claims.
    """
    counts = dict.fromkeys(MARKS, 0)
    for lesson in lessons():
        for preset in presets:
            result = stored(lesson, preset)
            for claim in experiment(lesson).CLAIMS if result else ():
                assert result is not None
                counts[claim.decide(result).verdict] += 1
    return counts


def card(slug: str, *, able: Sequence[str], needs: str, download: str) -> Markdown:
    """The card at the head of a lesson; its cost is what the last run measured.

    Args:
        slug: Slug of the lesson.
        able: What the reader will be able to do.
        needs: Earlier lessons, as Markdown links.
        download: What must be downloaded.

    Returns:
        An object that Jupyter displays as Markdown.

    Taught in: book/start
    """
    lines = [f"- {item}" for item in able]
    fields = {"Needs": needs, "Cost": f"{cost_text(slug)}; {download}"}
    lines += ["", *(f"**{name}.** {text}  " for name, text in fields.items())]
    return Markdown("**You will be able to**\n\n" + "\n".join(lines))

"""Tables that the pages generate: a lesson's claims, the scorecard, a lesson's card."""

from __future__ import annotations

import html
from collections.abc import Sequence

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
.lmc-table.wide td:nth-child(2) { min-width: 15rem; }
.lmc-table .verdict { white-space: nowrap; font-weight: 600; }
.lmc-table .whole { white-space: nowrap; }
.lmc-table small { opacity: .8; }
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
        return f"{100 * value:.1f} %"
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
    return f"{html.escape(claim.statement)}<br><small>{rule}. ({html.escape(claim.source)})</small>"


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


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], *, wide: bool = True) -> str:
    """A table as HTML, which scrolls by itself on a narrow screen.

    Args:
        titles: Head of each column, as HTML.
        rows: Cells of each row, as HTML.
        wide: Whether the second column holds sentences.

    Returns:
        HTML without the style; ``plain_table`` is for pages.
    """
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="lmc-table{" wide" if wide else ""}" tabindex="0"><table>'
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
    return HTML(STYLE + table(titles, rows, wide=False))


def scorecard() -> HTML:
    """Every claim of every lesson with its verdict at each scale that is stored.

    Returns:
        An object that Jupyter displays as HTML.

    Taught in: book/start
    """
    rows = []
    for lesson in lessons():
        module = experiment(lesson)
        found = {p: r for p in module.PRESETS if p != "toy" and (r := stored(lesson, p))}
        codes = {preset: _code(result) for preset, result in found.items()}
        for claim in module.CLAIMS:
            for preset, result in found.items():
                rows.append(_score(lesson, claim, preset, result, codes[preset]))
    titles = ["claim", "result", "effect and verdict", "margin"]
    return HTML(STYLE + table(titles, rows, wide=False))


def _code(result: Result) -> str:
    """Whether the code is still that of a result, in words."""
    if not is_fresh(result):
        return "code has changed since"
    return f"verified {result.verified}" if result.verified else "code as it is now"


def _score(lesson: str, claim: Claim, preset: str, result: Result, code: str) -> list[str]:
    decision = claim.decide(result)
    notes = (f"{len(result.seeds)} seeds", code)
    return [
        f"<strong>{lesson} {claim.id}</strong><br>{html.escape(claim.statement)}",
        f'<span class="whole">{html.escape(preset)}</span><br>'
        + "<br>".join(f'<small class="whole">{note}</small>' for note in notes),
        f"{effect_text(decision, claim.unit)}<br>{verdict_text(decision)}",
        f'<span class="whole">{_relation(claim)} {number(claim.margin, claim.unit)}</span>',
    ]


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

"""Every lesson runs to its end, and keeps to the budget and the form that CONTRIBUTING.md gives."""

from __future__ import annotations

import re
import statistics
from pathlib import Path

import pytest
from conftest import ROOT

from lmc_lessons.teaching import editions, execution
from lmc_lessons.teaching.editions import tags

NOTEBOOKS = execution.notebooks()
FREE = {"start", "scorecard"}  # pages of their own kind: no exercises, no budget
LESSONS = [path for path in NOTEBOOKS if path.stem not in FREE]

CELL_LINES, MEDIAN_LINES, VISIBLE_LINES = 30, (2, 8), 300
WORDS = (2000, 4000)
SECONDS, SLOWEST_CELL, MEGABYTES = 60, 25, 2000


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


@pytest.fixture(scope="module")
def executed() -> None:
    """Execute what is stale; after `make book`, nothing is."""
    failures = execution.execute(NOTEBOOKS, jobs=1)
    assert failures == []


def lines(source: str) -> list[str]:
    return [line for line in source.splitlines() if line.strip()]


def code(path: Path, *hidden: str) -> list[str]:
    """Sources of the code cells without any of these tags."""
    cells = execution.read(path).cells
    return [c.source for c in cells if c.cell_type == "code" and not set(hidden) & set(tags(c))]


@each(NOTEBOOKS)
@pytest.mark.usefixtures("executed")
def test_runs_without_error_or_warning(path: Path) -> None:
    notebook = execution.read(execution.executed_path(path))
    source = execution.read(path)
    assert [c.source for c in notebook.cells] == [c.source for c in source.cells]
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [o.ename for o in outputs if o.output_type == "error"] == []
    assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"] == []
    code_cells = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    assert all(cell.execution_count for cell in code_cells)


@each(NOTEBOOKS)
@pytest.mark.usefixtures("executed")
def test_costs_little(path: Path) -> None:
    """Processor time stands beside the clock's, so that a busy machine does not fail a lesson."""
    cost = execution.record(path.stem)
    assert cost is not None
    assert min(cost.seconds, cost.cpu_seconds or cost.seconds) < SECONDS
    assert cost.slowest_cell_seconds < SLOWEST_CELL
    assert cost.peak_memory_mb < MEGABYTES


@each(NOTEBOOKS)
def test_tags_are_the_fixed_ones(path: Path) -> None:
    used = {tag for cell in execution.read(path).cells for tag in tags(cell)}
    strange = {tag for tag in used - editions.TAGS if not re.fullmatch(r"points:\d+", tag)}
    assert strange == set()


@each(NOTEBOOKS)
def test_solutions_are_tagged(path: Path) -> None:
    """What the reader unfolds as a solution must be known as one to the student edition."""
    folded = re.compile(r"\{(dropdown|solution|admonition)[^}]*\}[^\n]*\b(solution|answer)", re.I)
    for number, cell in enumerate(execution.read(path).cells):
        if cell.cell_type == "markdown" and folded.search(cell.source):
            assert "solution" in tags(cell), f"cell {number} folds a solution without the tag"


@each(LESSONS)
def test_code_is_short(path: Path) -> None:
    for source in code(path, "setup"):
        assert len(lines(source)) <= CELL_LINES, source
    shown = [len(lines(source)) for source in code(path, "setup", "solution", "predict")]
    assert MEDIAN_LINES[0] <= statistics.median(shown) <= MEDIAN_LINES[1]
    assert sum(shown) <= VISIBLE_LINES


@each(LESSONS)
def test_text_fits_one_sitting(path: Path) -> None:
    """Words of prose: formulas, code, raw HTML and link targets do not count."""
    prose = "\n".join(c.source for c in execution.read(path).cells if c.cell_type == "markdown")
    for noise in (r"\$\$.+?\$\$", r"\$[^$]+\$", r"```\{math\}.+?```", r"<[^>]+>", r"\]\([^)]*\)"):
        prose = re.sub(noise, " ", prose, flags=re.S)
    words = re.findall(r"[A-Za-z][\w'-]*", prose)
    assert WORDS[0] <= len(words) <= WORDS[1], f"{len(words)} words"


@each(LESSONS)
def test_exercises_are_complete(path: Path) -> None:
    """Each exercise has two hints and a solution; one with code has a check that gives points."""
    exercises = exercise_groups(path)
    assert 5 <= len(exercises) <= 8
    for number, group in enumerate(exercises, 1):
        found = [tag for cell in group for tag in tags(cell)]
        hints = sum(c.source.count("{dropdown}") or 1 for c in group if "hint" in tags(c))
        assert hints >= 2, f"exercise {number} has {hints} hints"
        assert "solution" in found, f"exercise {number} has no solution"
        if any(cell.cell_type == "code" and "exercise" in tags(cell) for cell in group):
            checks = [cell for cell in group if "exercise-test" in tags(cell)]
            assert checks, f"exercise {number} has no check"
            assert editions.points(checks[0]) > 0, f"exercise {number}: its check gives no points"


def exercise_groups(path: Path) -> list[list]:
    """The cells of each exercise: from one statement to the next.

    A statement is a cell tagged ``exercise``; a stub right after one in prose belongs to it.
    """
    groups: list[list] = []
    previous: list[str] = []
    for cell in execution.read(path).cells:
        now = tags(cell)
        starts = "exercise" in now and not ("exercise" in previous and cell.cell_type == "code")
        if starts:
            groups.append([])
        if groups:
            groups[-1].append(cell)
        previous = now
    return groups


def test_every_page_of_the_contents_exists() -> None:
    assert NOTEBOOKS
    assert {path.stem for path in NOTEBOOKS} >= FREE
    assert len({path.stem for path in NOTEBOOKS}) == len(NOTEBOOKS), "two lessons share a slug"
    assert all(path.is_relative_to(ROOT / "book") for path in NOTEBOOKS)

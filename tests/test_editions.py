"""The student edition holds no solution anywhere; the instructor's is what nbgrader expects."""

from __future__ import annotations

import html
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from conftest import ROOT
from nbformat import NotebookNode

from lmc_lessons.teaching import editions, execution
from lmc_lessons.teaching.editions import tags

TEXT = {".html", ".ipynb", ".md", ".txt", ".js", ".json", ".inv", ".xml", ".css", ".py"}


def code(source: str, *labels: str) -> NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata={"tags": list(labels)})


def prose(source: str, *labels: str) -> NotebookNode:
    return nbformat.v4.new_markdown_cell(source, metadata={"tags": list(labels)})


@pytest.fixture
def lesson() -> NotebookNode:
    cells = [
        prose("# A lesson"),
        prose("Double it.", "exercise"),
        code("def double(x):\n    ...", "exercise"),
        code("check(double)", "exercise-test", "points:3"),
        code("def double(x):\n    return 2 * x", "solution"),
        prose("Prove it.", "exercise", "points:2"),
        prose("Because 2 x = x + x.", "solution"),
    ]
    return nbformat.v4.new_notebook(cells=cells)


def test_student_notebook_drops_solutions_only(lesson: NotebookNode) -> None:
    student = editions.student_notebook(lesson)
    assert [c.source for c in student.cells] == [
        c.source for c in lesson.cells if "solution" not in tags(c)
    ]
    assert len(lesson.cells) == 7, "the lesson itself is unchanged"


def test_instructor_notebook_is_valid_for_nbgrader(lesson: NotebookNode) -> None:
    source = editions.instructor_notebook(lesson)
    nbformat.validate(source)
    stub, check, task = source.cells[2], source.cells[3], source.cells[4]
    begin = "### BEGIN SOLUTION\ndef double(x):\n    return 2 * x\n### END SOLUTION"
    assert stub.source == f"def double(x):\n    ...\n{begin}"
    assert stub.metadata.nbgrader.solution
    assert not stub.metadata.nbgrader.grade
    assert check.metadata.nbgrader.points == 3
    assert check.metadata.nbgrader.grade
    assert check.metadata.nbgrader.locked
    assert task.metadata.nbgrader.task
    assert task.metadata.nbgrader.points == 2
    ids = [c.metadata.nbgrader.grade_id for c in source.cells]
    assert len(set(ids)) == len(ids)
    assert "Because" not in "".join(c.source for c in source.cells)


def test_instructor_edition_has_every_lesson(tmp_path: Path) -> None:
    out = editions.write_instructor_edition(tmp_path / "instructor")
    complete = {path.stem for path in (out / "complete").glob("*.ipynb")}
    assert complete == {path.stem for path in execution.notebooks()}
    compile((out / "nbgrader_config.py").read_text(), "nbgrader_config.py", "exec")


@pytest.mark.parametrize("folder", [".", "book"])
def test_an_edition_never_replaces_the_book(folder: str) -> None:
    with pytest.raises(RuntimeError, match="folder of its own"):
        editions.write_instructor_edition((ROOT / folder).resolve())


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student edition, built as ``make student`` builds it."""
    assert execution.execute(execution.notebooks(), jobs=1) == []  # after `make book`: nothing
    out = tmp_path_factory.mktemp("student")
    editions.build_student_site(out)
    return out


def plain(text: str) -> str:
    """Text without markup, entities, escapes and white space, to be searched in."""
    text = html.unescape(re.sub(r"<[^>]*>", "", text))
    return re.sub(r"\\n|\s|\\", "", text)


def lines(source: str) -> set[str]:
    """Lines that say something; shorter ones occur anywhere."""
    found = {plain(line) for line in source.splitlines()}
    return {line for line in found if len(line) >= 12}


def solution_lines() -> set[str]:
    """Every line of every solution that stands nowhere else in the book's pages."""
    secret: set[str] = set()
    public: set[str] = set()
    for page in execution.notebooks():
        for cell in execution.read(page).cells:
            (secret if "solution" in tags(cell) else public).update(lines(cell.source))
    for page in (ROOT / "book").rglob("*.md"):
        public |= lines(page.read_text(encoding="utf-8"))
    return {line for line in secret if not any(line in known for known in public)}


def test_no_solution_line_in_any_file(student: Path) -> None:
    secret = solution_lines()
    assert secret, "the book has solutions"
    leaks = []
    for file in student.rglob("*"):
        if file.suffix in TEXT and not {"vendor", "node_modules"} & set(file.parts):
            text = file.read_text(encoding="utf-8", errors="replace")
            found = plain(text) + re.sub(r"\\n|\s|\\", "", text)
            leaks += [f"{file.relative_to(student)}: {line}" for line in secret if line in found]
    assert leaks == []


def test_no_way_to_the_repository(student: Path) -> None:
    """The repository holds the solutions: the edition does not link to it."""
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    pages = list((student / "html").rglob("*.html"))
    assert pages
    assert [page.name for page in pages if url in page.read_text(encoding="utf-8")] == []
    assert not (student / "html" / "_modules").exists()


def test_student_pages_have_outputs_and_plain_downloads(student: Path) -> None:
    for page in execution.notebooks():
        name = page.relative_to(ROOT).with_suffix("")
        assert (student / "html" / name).with_suffix(".html").is_file()
        download = execution.read(student / "html" / "_sources" / name.with_suffix(".ipynb"))
        assert all(not cell.get("outputs") for cell in download.cells)

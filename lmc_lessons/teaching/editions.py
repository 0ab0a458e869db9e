"""Three editions from one notebook: the reader's page, the student's and the instructor's.

The cell tags say what belongs where. Nothing is kept twice by hand, so the editions cannot drift
apart. Run it with ``python -m lmc_lessons.teaching.editions student|instructor OUT``.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import nbformat
import yaml
from nbformat import NotebookNode

from lmc_lessons.teaching import execution
from lmc_lessons.teaching.execution import ROOT

#: The fixed cell tags; ``points:N`` comes besides.
TAGS = frozenset({"setup", "predict", "exercise", "exercise-test", "solution", "hint"})

#: What the theme and the site offer that would lead a student to the reader's page or its source.
LEADS_TO_SOLUTIONS = ("launch_buttons", "repository")

#: Extensions that list the package's code, or need the address of the published site.
LEFT_OUT = ("sphinx.ext.viewcode", "sphinxext.opengraph", "sphinx_sitemap")

_NBGRADER: dict[str, object] = {"schema_version": 3, "task": False}
_GRADER_CONFIG = '''"""Configuration of nbgrader for these assignments."""

import os

os.environ["LMC_LESSONS_STRICT"] = "1"  # a check that is not passed raises, so that it is graded

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "lmc-lessons"
# The stub with its signature stays above this line.
c.ClearSolutions.code_stub = {"python": "# Your answer goes above."}
'''


def tags(cell: NotebookNode) -> list[str]:
    """The tags of a cell, in their order."""
    return list(cell.metadata.get("tags", []))


def points(cell: NotebookNode) -> float:
    """The points that a cell's tag ``points:N`` gives; 0 without one."""
    given = [tag.removeprefix("points:") for tag in tags(cell) if tag.startswith("points:")]
    return float(given[0]) if given else 0.0


# The student edition -----------------------------------------------------------------------------


def student_notebook(notebook: NotebookNode) -> NotebookNode:
    """A notebook without its solutions.

    Args:
        notebook: A lesson, executed or not; it is not changed.

    Returns:
        A copy without the cells that are tagged ``solution``, outputs and attachments included.
    """
    edition = copy.deepcopy(notebook)
    edition.cells = [cell for cell in edition.cells if "solution" not in tags(cell)]
    return edition


def without_outputs(notebook: NotebookNode) -> NotebookNode:
    """A copy of a notebook as it was before it ran."""
    plain = copy.deepcopy(notebook)
    for cell in plain.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    plain.metadata.pop("widgets", None)
    return plain


def build_student_site(out: Path, root: Path = ROOT) -> Path:
    """Build the complete site without any solution, from outputs that exist already.

    Args:
        out: Folder of the edition; what it held before is removed.
        root: Folder of the book.

    Returns:
        The folder of the built site, ``out/html``.

    Raises:
        RuntimeError: If a lesson's outputs are stale, or the build fails.
    """
    pages = execution.notebooks(root)
    stale = [page.stem for page in pages if not execution.is_fresh(page, root)]
    if stale:
        raise RuntimeError(f"not executed yet: {', '.join(stale)}; run `make book` first")
    _empty(out, root)
    source = out / "source"
    ignored = shutil.ignore_patterns("*.ipynb", "__pycache__", ".ipynb_checkpoints")
    shutil.copytree(root / "book", source / "book", ignore=ignored)
    shutil.copyfile(root / "_toc.yml", source / "_toc.yml")
    (source / "executed").mkdir()
    for page in pages:
        student = student_notebook(execution.read(execution.executed_path(page, root)))
        nbformat.write(student, source / "executed" / page.name)
        nbformat.write(without_outputs(student), source / page.relative_to(root))
    vendor = os.path.relpath(root / "_build" / "vendor", source)
    (source / "_config.yml").write_text(student_config(root, vendor), encoding="utf-8")
    done = build(source)
    if done.returncode:
        raise RuntimeError(f"the student edition does not build:\n{done.stdout}\n{done.stderr}")
    return Path(shutil.move(source / "_build" / "html", out / "html"))


def student_config(root: Path, vendor: str) -> str:
    """The configuration of the student edition.

    Args:
        root: Folder of the book.
        vendor: Folder of the vendored browser assets, relative to the edition's source.

    Returns:
        The book's configuration without links to the repository (which holds the solutions) and
        without listings of the package's code.
    """
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    for name in LEADS_TO_SOLUTIONS:
        config.pop(name, None)
    for button in ("use_repository_button", "use_issues_button"):
        config["html"][button] = False
    config["title"] += " (student edition)"
    for name in LEFT_OUT:
        config["sphinx"]["extra_extensions"].remove(name)
    options = config["sphinx"]["config"].items()
    kept = {name: value for name, value in options if not name.startswith(("ogp_", "sitemap_"))}
    config["sphinx"]["config"] = kept | {"lmc_executed": "executed", "lmc_vendor": vendor}
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def build(source: Path) -> subprocess.CompletedProcess[str]:
    """Build a book from clean; a warning is a failure.

    Args:
        source: Folder that holds ``_config.yml``.

    Returns:
        The ended process, with what it printed.
    """
    run = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    options = ["build", ".", "--all", "-W", "-n", "--keep-going", "-q"]
    command = [sys.executable, "-c", run, *options]
    return subprocess.run(command, cwd=source, capture_output=True, text=True)


def _empty(out: Path, root: Path) -> None:
    """Remove an earlier edition, but nothing that the book itself stands in."""
    if root.is_relative_to(out) or (out.parent == root and out.exists()):
        raise RuntimeError(f"{out} holds more than an edition; name a folder of its own")
    shutil.rmtree(out, ignore_errors=True)


# The instructor's edition ------------------------------------------------------------------------


def instructor_notebook(notebook: NotebookNode) -> NotebookNode:
    """A lesson as an nbgrader source notebook, from which nbgrader makes the assignment.

    Args:
        notebook: A lesson; it is not changed.

    Returns:
        A copy without outputs. A coding exercise holds its stub and, between nbgrader's marks, the
        solution; its check is a locked, graded cell with its points; an exercise in prose with
        points is graded by hand; all other cells are locked. Solutions in prose are left out,
        because nbgrader would hand them to the students.
    """
    edition = without_outputs(notebook)
    kept: list[NotebookNode] = []
    for number, cell in enumerate(edition.cells):
        if "solution" in tags(cell):
            continue
        cell.metadata["nbgrader"] = _grading(cell, number)
        if cell.cell_type == "code" and "exercise" in tags(cell):
            answer = _solution_of(edition.cells[number + 1 :])
            cell.source += f"\n### BEGIN SOLUTION\n{answer}\n### END SOLUTION"
        kept.append(cell)
    edition.cells = kept
    return edition


def _grading(cell: NotebookNode, number: int) -> dict[str, object]:
    """The metadata that tells nbgrader what a cell is."""
    known = f"{number}{cell.source}".encode()
    base: dict[str, object] = _NBGRADER | {
        "grade_id": f"cell-{hashlib.sha256(known).hexdigest()[:12]}"
    }
    exercise = "exercise" in tags(cell)
    if exercise and cell.cell_type == "code":
        return base | {"grade": False, "solution": True, "locked": False}
    if exercise and points(cell):
        task: dict[str, object] = {"grade": False, "solution": False, "locked": True, "task": True}
        return base | task | {"points": points(cell)}
    if "exercise-test" in tags(cell):
        return base | {"grade": True, "solution": False, "locked": True, "points": points(cell)}
    return base | {"grade": False, "solution": False, "locked": True}


def _solution_of(following: Iterable[NotebookNode]) -> str:
    """The solution's code for the exercise that these cells follow; ``pass`` without one."""
    for cell in following:
        if "solution" in tags(cell) and cell.cell_type == "code":
            return cell.source
        if "exercise" in tags(cell):
            break
    return "pass"


def write_instructor_edition(out: Path, root: Path = ROOT) -> Path:
    """Write every lesson for nbgrader, and complete for the instructor.

    Args:
        out: Folder of the edition; what it held before is removed.
        root: Folder of the book.

    Returns:
        ``out``: ``source/<lesson>/<lesson>.ipynb`` and ``nbgrader_config.py`` for nbgrader,
        ``complete/<lesson>.ipynb`` with all solutions in place.
    """
    _empty(out, root)
    (out / "complete").mkdir(parents=True)
    for page in execution.notebooks(root):
        notebook = execution.read(page)
        nbformat.write(notebook, out / "complete" / page.name)
        if any("exercise" in tags(cell) for cell in notebook.cells):
            folder = out / "source" / page.stem
            folder.mkdir(parents=True)
            nbformat.write(instructor_notebook(notebook), folder / page.name)
    (out / "nbgrader_config.py").write_text(_GRADER_CONFIG, encoding="utf-8")
    return out


def main(arguments: list[str] | None = None) -> int:
    """Write one edition.

    Args:
        arguments: Command line; that of the process if not given.

    Returns:
        0 if the edition was written, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m lmc_lessons.teaching.editions")
    parser.add_argument("edition", choices=["student", "instructor"])
    parser.add_argument("out", type=Path, help="folder of the edition; it is replaced")
    options = parser.parse_args(arguments)
    write = {"student": build_student_site, "instructor": write_instructor_edition}
    try:
        print(write[options.edition](options.out.resolve()))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

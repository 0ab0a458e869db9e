"""What must turn a build red, each shown on a copy with that one fault."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
from conftest import ROOT
from test_repository import machine_paths, notebooks_with_outputs

from lmc_lessons.teaching.editions import build

FIGURE = """\
import matplotlib.pyplot as plt

fig, ax = plt.subplots()
ax.plot([0, 1]);"""
TOC = "format: jb-book\nroot: book/start\nchapters:\n  - file: book/lesson\n"
PAGE = "# Start\n\nSee [the lesson](lesson.ipynb) and {eq}`eq-one`.\n\n![A red dot.](dot.png)\n"
MODULE = '''"""A module."""

HALF = 0.5
'''


def figure(**metadata: object) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(FIGURE, metadata=metadata)


def write_lesson(root: Path, *cells: nbformat.NotebookNode) -> None:
    text = nbformat.v4.new_markdown_cell("# Lesson\n\n```{math}\n:label: eq-one\nx = 1\n```\n")
    notebook = nbformat.v4.new_notebook(cells=[text, *cells])
    nbformat.write(notebook, root / "book" / "lesson.ipynb")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A book of two pages with the real configuration and extension, and no fault."""
    (tmp_path / "book").mkdir()
    for name in ("_config.yml", "requirements.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("_ext", "_static"):
        shutil.copytree(ROOT / "book" / name, tmp_path / "book" / name)
    (tmp_path / "book" / "references.bib").write_text("")
    (tmp_path / "_toc.yml").write_text(TOC)
    (tmp_path / "book" / "start.md").write_text(PAGE)
    (tmp_path / "book" / "dot.png").write_bytes(dot())
    write_lesson(tmp_path, figure(mystnb={"image": {"alt": "A rising line."}}))
    return tmp_path


def dot() -> bytes:
    """The smallest image."""
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (1, 1), "red").save(file, "PNG")
    return file.getvalue()


def test_a_book_without_fault_is_green(book: Path) -> None:
    done = build(book)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (book / "_build" / "html" / "index.html").is_file()


def raising_cell(book: Path) -> None:
    write_lesson(book, nbformat.v4.new_code_cell("width = 3\nassert width == 4, 'too narrow'"))


def silent_output(book: Path) -> None:
    write_lesson(book, figure())


def silent_html(book: Path) -> None:
    source = "from IPython.display import HTML\n\nHTML('<img src=\"data:image/png;base64,\">')"
    write_lesson(book, nbformat.v4.new_code_cell(source))


def silent_markdown(book: Path) -> None:
    (book / "book" / "start.md").write_text(PAGE.replace("A red dot.", ""))


def broken_equation(book: Path) -> None:
    (book / "book" / "start.md").write_text(PAGE.replace("eq-one", "eq-two"))


def broken_link(book: Path) -> None:
    (book / "book" / "start.md").write_text(PAGE.replace("lesson.ipynb", "lessons.ipynb"))


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a cell raises": (raising_cell, "too narrow"),
    "a figure of a cell has no alt text": (silent_output, "image without alternative text"),
    "an image in a cell's HTML has no alt text": (silent_html, "image without alternative text"),
    "an image of a page has no alt text": (silent_markdown, "image without alternative text"),
    "a reference to an equation is broken": (broken_equation, "eq-two"),
    "a link to a page is broken": (broken_link, "lessons.ipynb"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_turns_the_build_red(book: Path, fault: str) -> None:
    spoil, message = FAULTS[fault]
    spoil(book)
    done = build(book)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr


def test_a_raising_cell_is_shown(book: Path) -> None:
    """The command that executes lessons names the notebook, the cell and the error."""
    raising_cell(book)
    command = [sys.executable, "-m", "lmc_lessons.teaching.execution", "--root", str(book)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "lesson.ipynb, cell 1:" in done.stderr
    assert "    width = 3" in done.stderr
    assert "AssertionError: too narrow" in done.stderr
    assert not (book / "_build" / "executed" / "lesson.json").exists()


def test_a_package_change_makes_outputs_stale(book: Path) -> None:
    """Code counts, comments and docstrings do not; nor does code that the lesson does not use."""
    package = shutil.copytree(
        ROOT / "lmc_lessons", book / "lmc_lessons", ignore=shutil.ignore_patterns("__pycache__")
    )
    used, unused = package / "curvature.py", package / "landscape.py"
    used.write_text(MODULE)
    write_lesson(book, nbformat.v4.new_code_cell("from lmc_lessons import curvature"))
    first = key(book)
    unused.write_text(unused.read_text() + "\nUNUSED = 1\n")
    used.write_text(MODULE.replace("A module.", "Another text.") + "# a comment\n")
    assert key(book) == first
    used.write_text(MODULE.replace("0.5", "0.25"))
    assert key(book) != first


def test_a_stored_result_makes_outputs_stale(book: Path) -> None:
    results = book / "data" / "results"
    results.mkdir(parents=True)
    shutil.copytree(ROOT / "lmc_lessons", book / "lmc_lessons")
    first = key(book)
    (results / "another-study.json").write_text("{}")
    assert key(book) == first
    (results / "lesson-study.json").write_text("{}")
    assert key(book) != first


def key(book: Path) -> str:
    """The lesson's freshness key, as the package's copy inside the book computes it."""
    script = (
        "from pathlib import Path; from lmc_lessons.teaching import execution as e;"
        f"assert e.ROOT == Path({str(book)!r}).resolve();"
        "print(e.freshness(e.ROOT / 'book' / 'lesson.ipynb', e.ROOT))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=book, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


@pytest.mark.parametrize("path", ["|home|ada|book", "|Users|ada|book", "C:~Users~ada~book"])
def test_a_path_of_a_machine_is_found(repository: Path, path: str) -> None:
    (repository / "page.md").write_text("Fine: /usr/bin/python, book/home/ada/page.\n")
    assert machine_paths(repository) == []
    (repository / "page.md").write_text("Not fine: " + path.replace("|", "/").replace("~", "\\"))
    assert len(machine_paths(repository)) == 1


def test_a_notebook_with_outputs_is_found(repository: Path) -> None:
    cell = nbformat.v4.new_code_cell("1")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), repository / "a.ipynb")
    assert notebooks_with_outputs(repository) == []
    cell.execution_count = 1
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), repository / "a.ipynb")
    assert notebooks_with_outputs(repository) == ["a.ipynb"]

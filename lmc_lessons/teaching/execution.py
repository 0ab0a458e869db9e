"""Executes the lessons, once: every other step of the book takes its outputs from here.

An executed notebook is stored under ``_build/executed`` together with a record of the run: its
freshness key and what it cost. The key covers everything that the outputs depend on, so a lesson
runs again exactly when its notebook, the code it imports, its stored results or the pinned
requirements change.

Run it with ``python -m lmc_lessons.teaching.execution``.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import nbformat
import yaml
from filelock import FileLock
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode

from lmc_lessons.teaching.costs import (
    COST_TOKEN,
    EXECUTED,
    ROOT,
    RUNNING,
    Record,
    cost_text,
    describe,
    record,
)

__all__ = [
    "EXECUTED",
    "ROOT",
    "LessonError",
    "Record",
    "cost_text",
    "execute",
    "executed_path",
    "freshness",
    "is_fresh",
    "main",
    "notebooks",
    "read",
    "record",
]

#: Pages that show every stored result, not only those of one lesson.
SHOW_ALL_RESULTS = frozenset({"start", "scorecard"})

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class LessonError(RuntimeError):
    """A lesson raised: the message names the notebook, the cell and the end of the traceback."""


# What there is to execute, and whether it is stale -----------------------------------------------


def notebooks(root: Path = ROOT) -> list[Path]:
    """The notebooks of the table of contents, in reading order.

    Args:
        root: Folder that holds ``_toc.yml``.

    Returns:
        Absolute paths of the pages that are notebooks.
    """
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    pages = [root / f"{name}.ipynb" for name in _documents(toc)]
    return [page for page in pages if page.is_file()]


def _documents(entry: object) -> list[str]:
    """Names under ``root`` and ``file`` keys, in order, however deep they are nested."""
    if isinstance(entry, list):
        return [name for item in entry for name in _documents(item)]
    if not isinstance(entry, dict):
        return []
    own = [entry[key] for key in ("root", "file") if key in entry]
    return own + [name for value in entry.values() for name in _documents(value)]


def freshness(path: Path, root: Path = ROOT) -> str:
    """Key of everything that the outputs of a lesson depend on.

    Args:
        path: The notebook.
        root: Folder that holds ``requirements.txt`` and ``data/results``.

    Returns:
        A hexadecimal hash of the notebook's cells (outputs left out), of the package's code that
        they import (comments and docstrings left out) and its data files, of the lesson's stored
        results, and of ``requirements.txt``.
    """
    from lmc_lessons.provenance import code_hash, imported_modules

    notebook = read(path)
    modules = set().union(*(imported_modules(tree) for tree in _code(notebook)))
    parts = [json.dumps([[c.cell_type, c.source, c.metadata] for c in notebook.cells])]
    parts.append(code_hash(modules))
    parts += [_digest(file) for file in _files_behind(path.stem, root)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _code(notebook: NotebookNode) -> list[ast.Module]:
    """The code cells, parsed; lines that only IPython understands are left out."""
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    trees = []
    for source in cells:
        plain = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
        try:
            trees.append(ast.parse("\n".join(plain)))
        except SyntaxError:
            continue  # the run itself will say so, with the cell
    return trees


def _files_behind(slug: str, root: Path) -> list[Path]:
    """Files, besides Python code, that a lesson's outputs depend on."""
    pattern = "*.json" if slug in SHOW_ALL_RESULTS else f"{slug}*.json"
    package = Path(__file__).resolve().parents[1]
    data = (f for ending in ("js", "css", "html") for f in package.rglob(f"*.{ending}"))
    found = [*sorted((root / "data" / "results").glob(pattern)), *sorted(data)]
    return [file for file in [root / "requirements.txt", *found] if file.is_file()]


def _digest(file: Path) -> str:
    return f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}"


def read(path: Path) -> NotebookNode:
    """Read a notebook.

    Args:
        path: A file in version 4 of the format.

    Returns:
        The notebook.
    """
    return nbformat.read(path, as_version=4)


def executed_path(path: Path, root: Path = ROOT) -> Path:
    """Where the executed copy of a notebook is stored; its record stands beside it."""
    return root / EXECUTED / f"{path.stem}.ipynb"


def is_fresh(path: Path, root: Path = ROOT) -> bool:
    """Whether the stored outputs of a notebook are those that a run would give now."""
    return _has_outputs(path, freshness(path, root), root)


def _has_outputs(path: Path, key: str, root: Path) -> bool:
    """Whether there are stored outputs of a notebook under this key."""
    known = record(path.stem, root)
    return known is not None and known.key == key and executed_path(path, root).is_file()


# Running -----------------------------------------------------------------------------------------


def _attempt(path: Path, key: str, root: Path) -> tuple[Record | None, str]:
    """Execute one notebook in this process, unless another process has done so meanwhile.

    The process should be a small one: a child's resident set is counted from that of its parent.

    Args:
        path: The notebook.
        key: Its freshness key.
        root: Folder of the book.

    Returns:
        The record of the run and an empty text, or ``None`` and what went wrong.
    """
    target = executed_path(path, root)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if _has_outputs(path, key, root):
            return record(path.stem, root), ""
        notebook = read(path)
        try:
            done = Record(key=key, **_run(notebook, path, root))
        except LessonError as error:
            return None, str(error)
        _replace_token(notebook, describe(done))
        _write(target, nbformat.writes(notebook))
        _write(target.with_suffix(".json"), json.dumps(asdict(done), indent=2) + "\n")
        return done, ""


def _run(notebook: NotebookNode, path: Path, root: Path) -> dict[str, float]:
    """Execute a notebook in place and return what it cost."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    began: dict[int, float] = {}
    took: list[float] = [0.0]
    client = NotebookClient(
        notebook,
        timeout=config["execute"]["timeout"],
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
        on_cell_execute=lambda cell, cell_index: began.update({cell_index: time.perf_counter()}),
        on_cell_executed=lambda cell, cell_index, execute_reply: took.append(
            time.perf_counter() - began[cell_index]
        ),
    )
    before = _children()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as home:
        # No personal start-up files, no bars, one thread: the same outputs everywhere.
        os.environ |= {"IPYTHONDIR": home, "TQDM_DISABLE": "1", RUNNING: path.stem}
        os.environ |= dict.fromkeys(_ONE_THREAD, "1")
        try:
            client.execute()
        except (CellControlSignal, DeadKernelError) as error:
            raise LessonError(_explain(notebook, path.relative_to(root), error)) from error
    seconds = time.perf_counter() - start
    after = _children()
    return {
        "seconds": round(seconds, 2),
        "cpu_seconds": round(after[0] - before[0], 2),
        "slowest_cell_seconds": round(max(took), 2),
        "peak_memory_mb": round(after[1], 1),
    }


def _children() -> tuple[float, float]:
    """Processor seconds, and largest resident set in MB, of this process's ended children."""
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0, 0.0
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / unit


def _explain(notebook: NotebookNode, path: Path, error: Exception) -> str:
    """Which cell of which notebook failed, its source, and the end of the traceback."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                trace = _ANSI.sub("", "\n".join(output.traceback)).splitlines()[-15:]
                return _report(path, number, cell.source, trace)
    executed = [n for n, c in enumerate(notebook.cells) if c.get("execution_count")]
    number = executed[-1] if executed else 0
    reason = _ANSI.sub("", str(error)).splitlines()[:5]
    return _report(path, number, notebook.cells[number].source, reason)


def _report(path: Path, number: int, source: str, trace: list[str]) -> str:
    quoted = "\n".join(f"    {line}" for line in source.splitlines())
    return f"{path}, cell {number}:\n\n{quoted}\n\n" + "\n".join(trace)


def _replace_token(notebook: NotebookNode, text: str) -> None:
    """Put the cost of the run where the cells left the token."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = output.text.replace(COST_TOKEN, text)
            data = output.get("data", {})
            for mime, content in data.items():
                if isinstance(content, str):
                    data[mime] = content.replace(COST_TOKEN, text)


def _write(target: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part."""
    partial = target.with_suffix(target.suffix + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    partial.replace(target)


def execute(paths: list[Path], jobs: int, root: Path = ROOT) -> list[str]:
    """Execute the stale ones among some notebooks, each in its own process.

    Args:
        paths: Notebooks.
        jobs: How many run at a time.
        root: Folder of the book.

    Returns:
        What went wrong, one text per lesson that failed.
    """
    keys = {path: freshness(path, root) for path in paths}
    stale = [path for path in paths if not _has_outputs(path, keys[path], root)]
    print(f"{len(paths) - len(stale)} of {len(paths)} lessons are up to date.", flush=True)
    if not stale:
        return []
    import matplotlib.font_manager  # noqa: F401  builds its font cache before two kernels would

    failures = []
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = {pool.submit(_attempt, path, keys[path], root): path for path in stale}
        for future in as_completed(waiting):
            name = waiting[future].relative_to(root).with_suffix("").as_posix()
            done, failure = future.result()
            if failure:
                failures.append(failure)
            print(f"  {name:<45} {describe(done) if done else 'FAILED'}", flush=True)
    return failures


def main(arguments: list[str] | None = None) -> int:
    """Execute the stale lessons of the book.

    Args:
        arguments: Command line; that of the process if not given.

    Returns:
        0 if every lesson ran, else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m lmc_lessons.teaching.execution")
    parser.add_argument("slug", nargs="*", help="only these lessons")
    parser.add_argument("--jobs", type=int, default=2, help="lessons at a time")
    parser.add_argument("--root", type=Path, default=ROOT, help="folder that holds _toc.yml")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    paths = notebooks(root)
    unknown = set(options.slug) - {path.stem for path in paths}
    if unknown:
        allowed = ", ".join(path.stem for path in paths)
        parser.error(f"no lesson named {', '.join(sorted(unknown))}; there are {allowed}")
    chosen = [path for path in paths if not options.slug or path.stem in options.slug]
    failures = execute(chosen, options.jobs, root)
    for failure in failures:
        print(f"\nA lesson failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    # Workers import this module by its name, not as a script.
    from lmc_lessons.teaching import execution

    sys.exit(execution.main())

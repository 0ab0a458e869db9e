"""The exercises of a lesson as its notebook has them: stub, the cell that checks it, solution."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import nbformat
import pytest
from conftest import ROOT

from lmc_lessons.teaching.checks import STRICT, Wrong


class Exercise(NamedTuple):
    """The code cells of one exercise."""

    name: str
    function: str
    stub: str
    test: str
    solution: str


def exercises(lesson: str) -> list[Exercise]:
    """The exercises of a lesson, in their order; those in prose only have no code cells."""
    (path,) = (ROOT / "book").glob(f"*/{lesson}.ipynb")
    cells: dict[str, list[str]] = {"exercise": [], "exercise-test": [], "solution": []}
    for cell in nbformat.read(path, as_version=4).cells:
        for tag in cell.metadata.get("tags", []):
            if cell.cell_type == "code" and tag in cells:
                cells[tag].append(cell.source)
    found = []
    for stub, test, solution in zip(*cells.values(), strict=True):
        name, function = re.search(r'check\("(.+?)"', test), re.search(r"def (\w+)\(", stub)
        assert name is not None
        assert function is not None
        found.append(Exercise(name[1], function[1], stub, test, solution))
    return found


def attempt(exercise: Exercise, scope: dict[str, Any], *, solve: bool) -> None:
    """Run the cell that checks an exercise, as a reader does: after the stub, or the solution."""
    exec(compile(exercise.stub, exercise.name, "exec"), scope)  # code of this repository
    if solve:
        exec(compile(exercise.solution, exercise.name, "exec"), scope)
        scope[exercise.function] = scope[f"{exercise.function}_solution"]
    exec(compile(exercise.test, exercise.name, "exec"), scope)


def known_messages(
    module: Any, lesson: str, scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> set[str]:
    """All misconceptions that the checks of a lesson can name."""
    found: set[str] = set()

    def listening(compare: Any) -> Any:
        def spy(given: Any, expected: Any, known: Any, **more: Any) -> None:
            found.update(known)
            compare(given, expected, known, **more)

        return spy

    for name in ("require_number", "require_tensor"):
        monkeypatch.setattr(module, name, listening(getattr(module, name)))
    for exercise in exercises(lesson):
        attempt(exercise, scope, solve=True)
    return found


def check_solutions(lesson: str, scope: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The solution of every exercise passes, by itself and in the place of the stub.

    Args:
        lesson: Slug of the lesson.
        scope: The names that its exercises use.
        capsys: What was printed.
    """
    for exercise in exercises(lesson):
        attempt(exercise, scope, solve=True)
        assert capsys.readouterr().out.count(f"{exercise.name}: correct\n") == 2


def check_stubs(
    lesson: str,
    scope: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stub that was not filled in is not attempted: an error when grading, else a printed line.

    Args:
        lesson: Slug of the lesson.
        scope: The names that its exercises use.
        monkeypatch: Leaves strict mode.
        capsys: What was printed.
    """
    for exercise in exercises(lesson):
        with pytest.raises(Wrong, match=f"^{exercise.name}: not attempted$"):
            attempt(exercise, scope, solve=False)
    monkeypatch.delenv(STRICT)
    for exercise in exercises(lesson):
        attempt(exercise, scope, solve=False)
        assert capsys.readouterr().out == f"{exercise.name}: not attempted\n"


def check_mistakes(
    lesson: str, mistakes: Sequence[tuple[str, Any, str]], tested_apart: Sequence[str] = ()
) -> None:
    """Every exercise has at least three mistakes, each with a message of its own.

    Args:
        lesson: Slug of the lesson.
        mistakes: Exercise, wrong answer, and what its message says.
        tested_apart: Exercises whose mistakes are tested elsewhere.
    """
    by_exercise: dict[str, set[str]] = {}
    for exercise, _, message in mistakes:
        by_exercise.setdefault(exercise, set()).add(message)
    assert all(len(messages) >= 3 for messages in by_exercise.values())
    assert {*by_exercise, *tested_apart} == {e.name for e in exercises(lesson)}


def check_messages(
    module: Any,
    lesson: str,
    scope: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    mistakes: Sequence[tuple[str, Any, str]],
) -> None:
    """Every misconception that a check can name is named to some mistake.

    Args:
        module: The lesson's checks.
        lesson: Slug of the lesson.
        scope: The names that its exercises use.
        monkeypatch: Listens to the checks.
        mistakes: Exercise, wrong answer, and what its message says.
    """
    texts = [text for _, _, text in mistakes]
    known = known_messages(module, lesson, scope, monkeypatch)
    assert known
    assert [m for m in known if not any(text in m for text in texts)] == []

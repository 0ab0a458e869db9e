"""The exercises of a lesson as its notebook has them: stub, the cell that checks it, solution."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import nbformat
import pytest
from conftest import ROOT


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

"""Rules that hold for the repository as a whole."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, shipped_files

PACKAGE = ROOT / "lmc_lessons"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

GROUND = {"datasets", "models", "training", "evaluation", "curvature", "landscape", "results"}
GROUND |= {"provenance"}
PARTS = {"connectivity", "robustness", "detection", "unlearning"}
FLOORS = dict.fromkeys(GROUND, 0) | dict.fromkeys(PARTS, 1)
FLOORS |= {"experiments": 2, "teaching": 3, "cli": 3}
FOR_EVERYONE = "lmc_lessons.robustness.attacks"
NAMELESS = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}

# A home directory, a mounted disk or a working folder of one machine. Written in pieces, so that
# this file does not contain what it looks for.
MACHINE_PATH = re.compile(
    "(?<![\\w.:/])/" + r"(?:home|Users)/[\w.-]+/" + "|(?<![\\w.:/])/" + r"(?:root|work|mnt)/\w+"
    r"|\b[A-Z]:\\+Users\\+\w+"
)


def machine_paths(root: Path = ROOT) -> list[str]:
    """Lines of shipped files that name a path of one machine."""
    found = []
    for file in shipped_files(root):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # an image or another binary file
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATH.search(line):
                found.append(f"{file.relative_to(root)}:{number}: {line.strip()[:100]}")
    return found


def notebooks_with_outputs(root: Path = ROOT) -> list[str]:
    """Shipped notebooks that hold outputs, execution counts or widget states."""
    found = []
    for file in shipped_files(root):
        if file.suffix == ".ipynb":
            notebook = json.loads(file.read_text(encoding="utf-8"))
            cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
            ran = any(c["outputs"] or c["execution_count"] for c in cells)
            if ran or "widgets" in notebook["metadata"]:
                found.append(str(file.relative_to(root)))
    return found


def test_no_path_of_a_machine() -> None:
    assert machine_paths() == []


def test_no_notebook_with_outputs() -> None:
    assert notebooks_with_outputs() == []


def area(dotted: str) -> str:
    """The part of the package that a module belongs to."""
    return dotted.split(".")[1] if "." in dotted else ""


def imports(path: Path) -> set[str]:
    """Names inside the package that a module imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.relative_to(ROOT)}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "lmc_lessons" and area(name) in FLOORS}


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_imports_go_down(path: Path) -> None:
    here = area(dotted(path))
    assert here in FLOORS, f"{here} is not a part of the package that the design knows"
    for name in imports(path):
        if name.startswith(FOR_EVERYONE) and here not in GROUND:
            continue
        there = area(name)
        assert FLOORS[there] <= FLOORS[here], f"{here} imports {name}: that goes up"
        if there != here:
            assert there not in PARTS or here not in PARTS, f"{here} imports the part {there}"


def test_every_module_has_a_name_of_its_own() -> None:
    named = {part for path in MODULES for part in path.relative_to(PACKAGE).with_suffix("").parts}
    assert named & NAMELESS == set()


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_every_module_is_in_the_reference(path: Path) -> None:
    if {"checks", "figures"} & set(path.relative_to(PACKAGE).parts):
        pytest.skip("belongs to one lesson")
    pages = "".join(page.read_text() for page in (ROOT / "book" / "reference").glob("*.md"))
    assert re.search(rf"automodule:: {re.escape(dotted(path))}$", pages, flags=re.M)


def test_the_repository_is_named_once() -> None:
    config = (ROOT / "_config.yml").read_text(encoding="utf-8")
    name = yaml.safe_load(config)["repository"]["url"].removeprefix("https://github.com/")
    assert config.count(name) == 1
    code = [f for f in shipped_files() if f.suffix in {".py", ".toml", ".cff", ".yml", ".js"}]
    named = [f for f in code if f.name != "_config.yml" and name in f.read_text(encoding="utf-8")]
    assert named == []


def test_requirements_are_pinned_and_known() -> None:
    """Every line of requirements.txt is one exact version."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line for line in lines if line.strip() and not line.startswith("#")]
    assert [line for line in wanted if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_the_lock_file_names_no_registry() -> None:
    lock = json.loads((ROOT / "book/_ext/vendor/package-lock.json").read_text())
    assert [name for name, entry in lock["packages"].items() if "resolved" in entry] == []

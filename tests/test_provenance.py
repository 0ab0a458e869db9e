"""The hash of the code changes with everything that a result can reach, and with nothing else."""

from __future__ import annotations

import ast
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmc_lessons import provenance
from lmc_lessons.provenance import code_hash

# --- The hash of the code -------------------------------------------------------------------------

SOURCES = {
    "__init__": '''"""The package."""
''',
    "ground": '''"""Ground."""
SCALE = 2


def double(x):
    """Double."""
    return SCALE * x
''',
    "idea": '''"""Idea."""
from tiny.ground import double


def f(x, power=2):
    return double(x)
''',
    "lesson": '''"""Lesson."""
from tiny import idea


def run():
    return idea.f(1)
''',
    "other": '''"""Nobody imports this."""
VALUE = 1
''',
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of four modules: lesson imports idea, idea imports ground, nobody imports other."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name, source in SOURCES.items():
        (folder / f"{name}.py").write_text(source)
    fake = SimpleNamespace(__file__=str(folder / "__init__.py"))
    monkeypatch.setattr(provenance, "lmc_lessons", fake)
    monkeypatch.setattr(provenance, "PACKAGE", "tiny")
    return folder


def edit(folder: Path, module: str, old: str, new: str) -> None:
    file = folder / f"{module}.py"
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


UNUSED = "OFFSET = 3\n\n\ndef half(x):\n    return x / OFFSET\n"


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("lesson", '"""Lesson."""', '"""Another text,\n\nover lines."""'),
        ("ground", '    """Double."""\n', ""),
        ("ground", "SCALE = 2\n", "SCALE = 2  # a comment\n\n\n# and another\n"),
        ("idea", "x, power=2", "\n    x,\n    power=2,\n"),
        ("other", "VALUE = 1", "VALUE = 2"),
        ("ground", "SCALE = 2\n", f"SCALE = 2\n{UNUSED}"),
        ("idea", "def f(", f"from tiny.other import VALUE\n\n{UNUSED}\n\ndef f("),
    ],
    ids=[
        "docstring",
        "docstring-removed",
        "comment",
        "layout",
        "not-imported",
        "unused",
        "unused-import",
    ],
)
def test_what_does_not_run_does_not_count(package: Path, module: str, old: str, new: str) -> None:
    before = code_hash(["tiny.lesson"])
    edit(package, module, old, new)
    assert code_hash(["tiny.lesson"]) == before


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("lesson", "idea.f(1)", "idea.f(2)"),
        ("idea", "power=2", "power=3"),
        ("idea", "def f(x, power=2)", "def f(x: int, power=2)"),
        ("ground", "SCALE = 2", "SCALE = 2.0"),
        ("ground", "SCALE * x", "SCALE + x"),
        ("ground", "    return SCALE * x\n", '    print("""Double.""")\n    return SCALE * x\n'),
    ],
    ids=["body", "default", "annotation", "constant", "two-imports-away", "string-value"],
)
def test_every_change_of_code_counts(package: Path, module: str, old: str, new: str) -> None:
    before = code_hash(["tiny.lesson"])
    edit(package, module, old, new)
    assert code_hash(["tiny.lesson"]) != before


@pytest.mark.parametrize(
    "source",
    [
        "import tiny.other\n",
        "import tiny.other as o\n\nX = o.VALUE\n",
        "from tiny import other\n\nX = other.VALUE\n",
        "from tiny.other import VALUE\n\nX = VALUE\n",
        "def late():\n    from tiny.other import VALUE\n\n    return VALUE\n",
        "if True:\n    import os, tiny.other\n",
    ],
)
def test_every_way_to_import_is_followed(package: Path, source: str) -> None:
    (package / "lesson.py").write_text(source)
    before = code_hash(["tiny.lesson"])
    edit(package, "other", "VALUE = 1", "VALUE = 2")
    assert code_hash(["tiny.lesson"]) != before


def test_imports_in_a_circle_end(package: Path) -> None:
    edit(package, "ground", "SCALE = 2\n", "import tiny.lesson\n\nSCALE = 2\n")
    before = code_hash(["tiny.lesson"])
    edit(package, "ground", "SCALE = 2\n", "SCALE = 3\n")
    assert code_hash(["tiny.lesson"]) != before


@pytest.mark.usefixtures("package")
def test_order_and_repetition_of_modules_do_not_count() -> None:
    one = code_hash(["tiny.lesson", "tiny.other"])
    assert one == code_hash(["tiny.other", "tiny.lesson", "tiny.other", "tiny.idea"])
    assert one != code_hash(["tiny.lesson"])
    assert len(one) == 16
    assert set(one) <= set("0123456789abcdef")


@pytest.mark.parametrize("name", ["tiny.nothing", "json", "lmc_lessons.models"])
@pytest.mark.usefixtures("package")
def test_a_module_of_elsewhere_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is not a module of tiny"):
        code_hash([name])


def other_version(printed: Callable[..., str]) -> Callable[..., str]:
    """``ast.dump`` of another Python: from 3.13 on it leaves out empty lists."""
    if sys.version_info >= (3, 13):
        return functools.partial(printed, show_empty=True)
    empty = re.compile(r"(?<=\()\w+=\[\](, )?|, \w+=\[\]")
    return lambda node, **options: empty.sub("", printed(node, **options))


@pytest.mark.usefixtures("package")
def test_the_hash_does_not_depend_on_how_this_python_prints_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A study committed from one Python (3.11 or later) is fresh under every other."""
    before = code_hash(["tiny.lesson"])
    monkeypatch.setattr(ast, "dump", other_version(ast.dump))
    assert code_hash(["tiny.lesson"]) == before


def test_the_lessons_own_code_has_a_hash() -> None:
    found = code_hash(["lmc_lessons.experiments.weight_matching"])
    assert found == code_hash(["lmc_lessons.experiments.weight_matching"])
    assert found != code_hash(["lmc_lessons.results"])


# What a change of one line in ``ground`` does to a lesson that reaches it in so many ways.
WAYS = {
    "constant": (
        "LIMIT = 5\n",
        "from tiny.ground import LIMIT\n\n\ndef run():\n    return LIMIT\n",
    ),
    "of-a-module": (
        "LIMIT = 5\n",
        "from tiny import ground\n\n\ndef run():\n    return ground.LIMIT\n",
    ),
    "under-another-name": (
        "LIMIT = 5\n",
        "import tiny.ground as g\n\n\ndef run():\n    return g.LIMIT\n",
    ),
    "dotted": ("LIMIT = 5\n", "import tiny.other\nimport tiny.ground\n\nX = tiny.ground.LIMIT\n"),
    "through-a-default": (
        "LIMIT = 5\n\n\ndef cut(x, to=LIMIT):\n    return x\n",
        "from tiny.ground import cut\n\n\ndef run():\n    return cut(1)\n",
    ),
    "through-a-method": (
        "LIMIT = 5\n\n\nclass Cut:\n    def do(self):\n        return LIMIT\n",
        "from tiny.ground import Cut\n\n\ndef run(c: Cut):\n    return c\n",
    ),
    "through-a-base": (
        "LIMIT = 5\n\n\nclass Base:\n    size = LIMIT\n\n\nclass Cut(Base):\n    pass\n",
        "from tiny.ground import Cut\n\n\ndef run():\n    return Cut()\n",
    ),
    "through-a-decorator": (
        "LIMIT = 5\n\n\ndef wrap(f):\n    return LIMIT\n\n\n@wrap\ndef cut(x):\n    return x\n",
        "from tiny.ground import cut\n\n\ndef run():\n    return cut\n",
    ),
    "through-a-table": (
        "LIMIT = 5\n\n\ndef cut(x):\n    return LIMIT\n\n\nTABLE = {'cut': cut}\n",
        "from tiny.ground import TABLE\n\n\ndef run(name):\n    return TABLE[name]\n",
    ),
    "filled-on-import": (
        "TABLE = {}\nLIMIT = 5\nTABLE['x'] = LIMIT\n",
        "from tiny.ground import TABLE\n\n\ndef run():\n    return TABLE\n",
    ),
    "run-on-import": ("LIMIT = 5\nprint(LIMIT)\n", "from tiny import ground\n"),
    "bound-in-a-branch": (
        "if True:\n    LIMIT = 5\n",
        "from tiny.ground import LIMIT\n\n\ndef run():\n    return LIMIT\n",
    ),
    "bound-twice": (
        "A, LIMIT = 1, 5\nA = 2\n",
        "from tiny.ground import A\n\n\ndef run():\n    return A\n",
    ),
    "the-module-itself": (
        "LIMIT = 5\n",
        "from tiny import ground\n\n\ndef run(name):\n    return getattr(ground, name)\n",
    ),
    "late": ("LIMIT = 5\n", "def run():\n    from tiny.ground import LIMIT\n\n    return LIMIT\n"),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_reach_a_line_is_followed(package: Path, way: str) -> None:
    """The lesson takes one name from ``idea``, so that ``idea`` does not count as a whole."""
    ground, idea = WAYS[way]
    (package / "ground.py").write_text(ground)
    (package / "idea.py").write_text(idea)
    taken = "run" if "def run" in idea else "X" if "X =" in idea else "ground"
    (package / "lesson.py").write_text(f"from tiny.idea import {taken}\n\nMINE = {taken}\n")
    before = code_hash(["tiny.lesson"])
    edit(package, "ground", "5", "6")
    assert code_hash(["tiny.lesson"]) != before


def test_names_handed_on_by_a_package_are_followed(package: Path) -> None:
    (package / "__init__.py").write_text("from tiny.ground import double\n")
    (package / "lesson.py").write_text(
        "from tiny import double\n\n\ndef run():\n    return double(1)\n"
    )
    before = code_hash(["tiny.lesson"])
    edit(package, "ground", "SCALE = 2", "SCALE = 3")
    assert code_hash(["tiny.lesson"]) != before


def test_moving_a_definition_within_its_module_does_not_count(package: Path) -> None:
    before = code_hash(["tiny.lesson"])
    source = (package / "ground.py").read_text()
    (package / "ground.py").write_text(source.replace("SCALE = 2\n", "") + "\n\nSCALE = 2\n")
    assert code_hash(["tiny.lesson"]) == before


def test_a_new_function_beside_leaves_real_results_fresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this is for: adding to the ground floor does not make older studies stale."""
    root = Path(provenance.lmc_lessons.__file__).parent
    for path in root.rglob("*.py"):
        copy = tmp_path / "lmc_lessons" / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    name = "lmc_lessons.experiments.weight_matching"
    before = code_hash([name])
    fake = SimpleNamespace(__file__=str(tmp_path / "lmc_lessons" / "__init__.py"))
    monkeypatch.setattr(provenance, "lmc_lessons", fake)
    assert code_hash([name]) == before
    curvature = tmp_path / "lmc_lessons" / "curvature.py"
    curvature.write_text(curvature.read_text() + "\n\ndef top(x: int) -> int:\n    return x\n")
    assert code_hash([name]) == before
    curvature.write_text(curvature.read_text().replace("a[name] * b[name]", "b[name] * a[name]"))
    assert code_hash([name]) != before

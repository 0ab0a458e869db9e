"""Which code made a result: a hash of everything that it can reach, and of nothing else.

A result is fresh as long as this hash is the same. So the hash follows names: from a lesson's
experiment to the functions, classes and constants of this package that it uses, and on to what
those use. A new function in a module that others share changes nothing for them.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lmc_lessons

PACKAGE = "lmc_lessons"
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
WHOLE = "*"  # instead of a name: everything that the module holds


class _Module(NamedTuple):
    """A module, taken apart.

    Attributes:
        definitions: Top-level name to the statements that bind it.
        imports: Name in this module to the module of this package that it comes from, and the name
            there (``WHOLE`` for the module itself).
        dotted: Modules that are imported without a name of their own, as in ``import a.b``.
        always: Top-level statements that run whoever imports the module.
    """

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, tuple[str, str]]
    dotted: list[str]
    always: list[ast.stmt]


def code_hash(modules: Iterable[str]) -> str:
    """Hash of the code of modules and of every definition of this package that it can reach.

    Comments, docstrings and layout do not count, nor does what is defined beside and never used.

    Args:
        modules: Dotted names inside the package; all that they hold counts.

    Returns:
        16 hexadecimal digits.

    Raises:
        ValueError: If a name is not a module of this package.
    """
    code = _Code()
    waiting = [(name, WHOLE) for name in sorted(set(modules))]
    reached: set[tuple[str, str]] = set()
    while waiting:
        place = waiting.pop()
        if place not in reached:
            reached.add(place)
            waiting.extend(code.uses(*place))
    texts = [
        (*place, *(_canonical(node) for node in code.statements(*place)))
        for place in sorted(reached)
        if code.statements(*place)
    ]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]


class _Code:
    """The package's modules, each read once."""

    def __init__(self) -> None:
        self.modules: dict[str, _Module] = {}

    def module(self, name: str) -> _Module:
        """A module, taken apart."""
        if name not in self.modules:
            path = _path(name)
            if path is None:
                raise ValueError(f"{name} is not a module of {PACKAGE}")
            self.modules[name] = _take_apart(path.read_text(encoding="utf-8"))
        return self.modules[name]

    def statements(self, module: str, name: str) -> list[ast.stmt]:
        """What binds a name; for no name, what runs whoever imports the module."""
        parts = self.module(module)
        return parts.definitions.get(name, []) if name else parts.always

    def uses(self, module: str, name: str) -> Iterator[tuple[str, str]]:
        """Every place that one definition refers to, as (module, name)."""
        parts = self.module(module)
        if not name:
            yield from ((other, WHOLE) for other in parts.dotted)
            yield from ((source, "") for source, _ in parts.imports.values())
        else:
            yield module, ""
        if name == WHOLE:
            yield from ((module, own) for own in parts.definitions)
        elif name and name not in parts.definitions:  # handed on, or bound in a way unknown here
            yield parts.imports.get(name, (module, WHOLE))
        for statement in self.statements(module, name):
            yield from self.references(statement, module, parts)

    def references(
        self, statement: ast.stmt, module: str, parts: _Module
    ) -> Iterator[tuple[str, str]]:
        """Places that the names in a statement stand for."""
        nodes = list(ast.walk(statement))
        members = {id(n.value): n.attr for n in nodes if isinstance(n, ast.Attribute)}
        for node in nodes:
            if not isinstance(node, ast.Name):
                continue
            if node.id in parts.definitions:
                yield module, node.id
            elif node.id in parts.imports:
                source, name = parts.imports[node.id]
                member = members.get(id(node), "")
                of_module = name == WHOLE and member in self.module(source).definitions
                yield source, member if of_module else name


def imported_modules(tree: ast.AST) -> set[str]:
    """Names of this package's modules that a piece of code imports, wherever in it.

    Args:
        tree: Parsed code.

    Returns:
        Dotted names; ``from package import name`` counts as the module ``package.name`` if that is
        one.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {n for n in names if n.split(".")[0] == PACKAGE and _path(n)}
    return found


def _take_apart(text: str) -> _Module:
    """A module's definitions, imports and the rest, docstrings removed."""
    tree = _without_docstrings(ast.parse(text))
    definitions: dict[str, list[ast.stmt]] = {}
    always: list[ast.stmt] = []
    for statement in tree.body:
        names = _bound(statement)
        for name in names:
            definitions.setdefault(name, []).append(statement)
        if not names and not isinstance(statement, ast.Import | ast.ImportFrom):
            always.append(statement)
    return _Module(definitions, *_imports(tree), always)


def _bound(statement: ast.stmt) -> list[str]:
    """Names that a top-level definition or assignment binds; none for any other statement."""
    if isinstance(statement, DEFINITIONS):
        return [statement.name]
    if isinstance(statement, ast.Assign):
        targets = statement.targets
    elif isinstance(statement, ast.AnnAssign | ast.AugAssign):
        targets = [statement.target]
    else:
        return []
    nodes = [node for target in targets for node in ast.walk(target)]
    if not all(isinstance(n, ast.Name | ast.Tuple | ast.List | ast.expr_context) for n in nodes):
        return []  # sets an item or attribute of something: it runs whoever imports the module
    return [node.id for node in nodes if isinstance(node, ast.Name)]


def _imports(tree: ast.Module) -> tuple[dict[str, tuple[str, str]], list[str]]:
    """What is imported from this package, anywhere in a module: with a name, and without."""
    named: dict[str, tuple[str, str]] = {}
    dotted = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _path(alias.name) and alias.asname:
                    named[alias.asname] = (alias.name, WHOLE)
                elif _path(alias.name):
                    dotted.append(alias.name)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and _path(node.module or ""):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                place = (inner, WHOLE) if _path(inner) else (str(node.module), alias.name)
                named[alias.asname or alias.name] = place
    return named, dotted


def _path(name: str) -> Path | None:
    root = Path(lmc_lessons.__file__).resolve().parents[1]
    parts = name.split(".")
    if parts[0] != PACKAGE:
        return None
    stem = root.joinpath(*parts)
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _canonical(node: Any) -> str:
    """A syntax tree as text that is the same in every version of Python: empty fields left out."""
    if isinstance(node, list):
        return "[" + ",".join(_canonical(part) for part in node) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if value not in (None, []))
    inside = ",".join(f"{name}={_canonical(value)}" for name, value in fields)
    return f"{type(node).__name__}({inside})"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                node.body = node.body[1:]
    return tree

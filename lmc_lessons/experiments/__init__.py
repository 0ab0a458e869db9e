"""One module per lesson: a frozen Config, its presets, one ``run``, and the claims it decides."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from lmc_lessons.provenance import code_hash
from lmc_lessons.results import Result

SHARED = ("pairs", "runs")  # what experiments have in common; no lessons


def lessons() -> dict[str, str]:
    """The lessons that have an experiment.

    Returns:
        Slug to dotted name of the module: ``weight-matching`` is
        ``...experiments.weight_matching``.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name not in SHARED]
    return {name.replace("_", "-"): f"{__name__}.{name}" for name in sorted(names)}


def experiment(lesson: str) -> ModuleType:
    """The experiment of a lesson: a module with ``PRESETS``, ``CLAIMS`` and ``run``.

    Args:
        lesson: Slug of the lesson.

    Returns:
        The module.

    Raises:
        ValueError: If there is no such lesson; the message lists those that are.
    """
    known = lessons()
    if lesson not in known:
        raise ValueError(f"no lesson {lesson!r}, allowed: all, {', '.join(known)}")
    return importlib.import_module(known[lesson])


def is_fresh(result: Result) -> bool:
    """Whether a result was made by the code as it is now.

    Args:
        result: A stored result.

    Returns:
        True if the hashes agree.
    """
    known = lessons()
    return result.lesson in known and result.code == code_hash([known[result.lesson]])

"""What the last run of a lesson cost: read by the lesson's card, written by the execution.

It stands apart from the execution, and imports nothing, because every lesson imports it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
EXECUTED = Path("_build", "executed")

# Stands in an output for the cost of the run that is under way; replaced when the run is complete.
COST_TOKEN = "@@cost-of-this-run@@"

# Environment variable that names the lesson which is being executed for the book.
RUNNING = "LMC_LESSONS_EXECUTING"


@dataclass(frozen=True)
class Record:
    """What one complete run of a lesson was keyed on, and what it cost.

    Attributes:
        key: Freshness key of the lesson when the run began.
        seconds: Wall-clock time of the whole notebook, the start of the kernel included.
        cpu_seconds: Processor time of the kernel; 0 where the system does not tell.
        slowest_cell_seconds: Wall-clock time of the slowest cell.
        peak_memory_mb: Largest resident set of the kernel; 0 where the system does not tell.
    """

    key: str
    seconds: float
    cpu_seconds: float
    slowest_cell_seconds: float
    peak_memory_mb: float


def record(slug: str, root: Path = ROOT) -> Record | None:
    """The record of the last complete run.

    Args:
        slug: Name of the lesson.
        root: Folder of the book.

    Returns:
        The record, or ``None`` if this copy of the book has not executed the lesson yet.
    """
    file = root / EXECUTED / f"{slug}.json"
    return Record(**json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def measured_cost(slug: str, root: Path = ROOT) -> dict[str, float] | None:
    """What the last complete run of a lesson cost on this machine.

    Args:
        slug: Name of the lesson.
        root: Folder of the book.

    Returns:
        ``seconds`` (wall clock, whole notebook) and ``peak_memory_mb``, or ``None`` if this copy
        of the book has not executed the lesson yet.
    """
    known = record(slug, root)
    if known is None:
        return None
    return {"seconds": known.seconds, "peak_memory_mb": known.peak_memory_mb}


def cost_text(slug: str, root: Path = ROOT) -> str:
    """The cost of a lesson for its card.

    While the lesson is being executed for the book, this is a token that the runner replaces by
    the cost of that very run, so the card never lags one run behind and never causes another.

    Args:
        slug: Name of the lesson.
        root: Folder of the book.

    Returns:
        Such as ``31 s, 640 MB of memory``, or a remark that nothing was measured here yet.
    """
    if os.environ.get(RUNNING) == slug:
        return COST_TOKEN
    known = record(slug, root)
    return describe(known) if known else "not measured on this machine yet"


def describe(known: Record) -> str:
    """A record in a few words, such as ``31 s, 640 MB of memory``."""
    memory = f", {known.peak_memory_mb:.0f} MB of memory" if known.peak_memory_mb else ""
    return f"{known.seconds:.0f} s{memory}"

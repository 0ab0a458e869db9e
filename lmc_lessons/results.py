"""Claims, the rule that decides them, and results that know which code made them.

A claim is stated before the first run, with its margin and the reason for it. A result is data:
JSON, written atomically, carrying a hash of the code that made it. A result whose hash no longer
matches the code is stale, and stale studies turn the tests red.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lmc_lessons.evaluation import Interval, t_interval

SCHEMA = 1
Kind = Literal["greater", "equal", "exact"]
Verdict = Literal["holds", "fails", "undecided", "not-measured"]


@dataclass(frozen=True)
class Series:
    """A quantity measured on a grid: named axes and an array of that shape, per seed.

    Attributes:
        axes: Axis name to its ticks, in the order of the array's axes after the seed axis.
        values: Nested lists of shape (seeds, *lengths of the axes).
    """

    axes: dict[str, list[Any]]
    values: list[Any]


@dataclass(frozen=True)
class Decision:
    """What a claim's rule says about one result."""

    id: str
    statement: str
    source: str
    verdict: Verdict
    effect: float | None
    low: float | None
    high: float | None
    margin: float
    evidence: str


@dataclass(frozen=True)
class Claim:
    """A statement that code can decide, with the rule fixed before the first run.

    Attributes:
        id: Short name, unique within the lesson, such as ``C1``.
        statement: The claim in one sentence, with its direction.
        source: Where it comes from: bibtex key and section.
        effect: Maps a result to one number per seed, paired against the control of the same run.
            It raises ``KeyError`` when the result did not measure what the claim needs.
        margin: The number that the effect is held against.
        reason: Why this margin, written down before the first run.
        kind: ``greater`` (the effect exceeds the margin), ``equal`` (its size stays within the
            margin) or ``exact`` (every seed is within the margin, a numerical tolerance).
        unit: Unit of the effect.
        paper: The paper's own number as text, only where it was read in the source.
    """

    id: str
    statement: str
    source: str
    effect: Callable[[Result], Sequence[float]]
    margin: float
    reason: str
    kind: Kind = "greater"
    unit: str = ""
    paper: str = "not read"

    def decide(self, result: Result) -> Decision:
        """Apply the decision rule to a result.

        Args:
            result: Metrics and series of one run.

        Returns:
            The verdict, with the mean effect and its 95 % interval over seeds.

        Taught in: book/start
        """
        try:
            values = [float(v) for v in self.effect(result)]
        except KeyError as missing:
            return self._decision("not-measured", None, f"the run did not measure {missing}")
        interval = t_interval(values)
        verdict = decide(values, interval, self.margin, self.kind)
        if len(values) < 2:
            return self._decision(verdict, (interval.mean, None, None), "1 seed: no interval")
        return self._decision(verdict, interval, f"{len(values)} seeds, rule: {self.kind}")

    def _decision(
        self,
        verdict: Verdict,
        interval: tuple[float | None, float | None, float | None] | None,
        evidence: str,
    ) -> Decision:
        effect, low, high = interval or (None, None, None)
        return Decision(
            self.id, self.statement, self.source, verdict, effect, low, high, self.margin, evidence
        )


def decide(values: Sequence[float], interval: Interval, margin: float, kind: Kind) -> Verdict:
    """The decision rule of the book.

    Args:
        values: One effect per seed.
        interval: Their 95 % interval.
        margin: The number fixed beforehand.
        kind: ``greater`` holds if the whole interval lies above the margin and fails if it lies
            wholly below; ``equal`` holds if it lies inside plus/minus the margin and fails if
            wholly outside; ``exact`` holds if every single value is within plus/minus the margin,
            else fails.

    Returns:
        ``holds``, ``fails`` or ``undecided``.

    Taught in: book/start
    """
    if kind == "exact":
        return "holds" if max(abs(v) for v in values) <= margin else "fails"
    if kind == "greater":
        if interval.low > margin:
            return "holds"
        return "fails" if interval.high < margin else "undecided"
    if -margin <= interval.low and interval.high <= margin:
        return "holds"
    return "fails" if interval.low > margin or interval.high < -margin else "undecided"


Effect = Callable[["Result"], Sequence[float]]


def measured(name: str) -> Effect:
    """The effect of a claim about one metric, as it was measured.

    Args:
        name: Name of the metric.

    Returns:
        A function of a result, one number per seed.
    """
    return lambda result: result.metric(name)


def difference(larger: str, smaller: str) -> Effect:
    """The effect of a claim that one metric exceeds another, seed by seed.

    Args:
        larger: Name of the metric that should be larger.
        smaller: Name of its control.

    Returns:
        A function of a result, one difference per seed.
    """

    def effect(result: Result) -> list[float]:
        return [p - q for p, q in zip(result.metric(larger), result.metric(smaller), strict=True)]

    return effect


def gap(more: Effect, less: Effect) -> Effect:
    """The effect of a claim that one effect exceeds another, seed by seed.

    Args:
        more: The effect that should be larger.
        less: Its control.

    Returns:
        A function of a result, one difference per seed.
    """
    return lambda result: [p - q for p, q in zip(more(result), less(result), strict=True)]


def entry(name: str, *ticks: Any) -> Effect:
    """The effect of a claim about one entry of a series.

    Args:
        name: The series.
        ticks: One tick per axis.

    Returns:
        A function of a result, one number per seed; it raises ``KeyError`` where the run has no
        such series or tick.
    """

    def effect(result: Result) -> list[float]:
        series = result.series[name]
        values = series.values
        for (axis, entries), tick in zip(series.axes.items(), ticks, strict=True):
            if tick not in entries:
                raise KeyError(f"{axis} {tick}")
            values = [seed[entries.index(tick)] for seed in values]
        return [float(value) for value in values]

    return effect


def reach(values: Sequence[float]) -> float:
    """How far the 95 % interval of some values reaches from zero.

    Args:
        values: One number per seed.

    Returns:
        The larger distance of its two ends; for a single value its size.
    """
    interval = t_interval(values)
    if len(values) == 1:
        return abs(interval.mean)
    return max(abs(interval.low), abs(interval.high))


def farthest(*effects: Effect) -> Effect:
    """The effect of a claim that several effects are all about zero.

    Args:
        effects: The several effects.

    Returns:
        That effect whose interval reaches farthest from zero: if it lies within a margin, all do.
    """
    return lambda result: max((effect(result) for effect in effects), key=reach)


@dataclass
class Result:
    """What one run measured.

    Attributes:
        lesson: Slug of the lesson.
        preset: Name of the preset, with a suffix where a setting was changed.
        config: The full configuration, as plain data.
        seeds: The unit of repetition; for pairs of networks, seed s is the pair trained from 2s, 2s
            + 1.
        metrics: Name to one number per seed.
        series: Name to a quantity on a grid.
        datasets: Name to variant and sha256.
        device: Where it ran.
        seconds: Wall-clock seconds of the run, the time before a resume included.
        peak_memory_mb: Largest resident set of the process, in MB.
        versions: Versions of Python and the libraries.
        code: Hash of the code that made it.
        claims: What the claims' rules said.
        verified: Date on which one seed was run again and agreed, if the code has changed since.
    """

    lesson: str
    preset: str
    config: dict[str, Any]
    seeds: list[int]
    metrics: dict[str, list[float]] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    datasets: dict[str, dict[str, str]] = field(default_factory=dict)
    device: str = "cpu"
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    code: str = ""
    claims: list[Decision] = field(default_factory=list)
    verified: str | None = None

    def metric(self, name: str) -> list[float]:
        """Values of a metric, one per seed.

        Args:
            name: Name of the metric.

        Returns:
            One number per seed.

        Raises:
            KeyError: If the run did not measure it.
        """
        return self.metrics[name]

    def interval(self, name: str) -> Interval:
        """Mean and 95 % interval of a metric over seeds.

        Args:
            name: Name of the metric.

        Returns:
            The interval.

        Raises:
            KeyError: If the run did not measure it.
        """
        return t_interval(self.metrics[name])

    def decision(self, claim_id: str) -> Decision:
        """What the rule said about one claim.

        Args:
            claim_id: The claim's id.

        Returns:
            The stored decision.

        Raises:
            KeyError: If the result has no such claim.
        """
        for decision in self.claims:
            if decision.id == claim_id:
                return decision
        raise KeyError(claim_id)

    def to_json(self) -> dict[str, Any]:
        """The result as plain data, in the schema of the command line.

        Returns:
            A dictionary that ``json.dumps`` accepts.

        Raises:
            ValueError: If a metric has a value that is not finite.
        """
        plain = dataclasses.asdict(self)
        for name, values in self.metrics.items():
            if not all(abs(value) < float("inf") for value in values):
                raise ValueError(f"metric {name} has values that are not finite: {values}")
        metrics = {
            name: {"values": values, **_finite(t_interval(values))}
            for name, values in self.metrics.items()
        }
        return {"schema": SCHEMA, **plain, "metrics": metrics}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Result:
        """Read a result back.

        Args:
            plain: What ``to_json`` gave.

        Returns:
            The result.

        Raises:
            ValueError: If the schema is not the one this code writes.
        """
        if not isinstance(plain, Mapping):
            raise ValueError(f"a result is a JSON object, got {type(plain).__name__}")
        if plain.get("schema") != SCHEMA:
            raise ValueError(f"result has schema {plain.get('schema')!r}, this code reads {SCHEMA}")
        fields = {key: value for key, value in plain.items() if key != "schema"}
        fields["metrics"] = {name: m["values"] for name, m in plain["metrics"].items()}
        fields["series"] = {name: Series(**s) for name, s in plain["series"].items()}
        fields["claims"] = [Decision(**c) for c in plain["claims"]]
        return cls(**fields)


def _finite(interval: Interval) -> dict[str, float | None]:
    return {k: v if abs(v) != float("inf") else None for k, v in interval._asdict().items()}


def save(result: Result, folder: Path) -> Path:
    """Write a result as ``LESSON-PRESET.json``, atomically.

    Args:
        result: The result.
        folder: Where to; made when absent.

    Returns:
        The path of the file.
    """
    path = folder / f"{result.lesson}-{result.preset}.json"
    write_atomically(path, dump(result.to_json()))
    return path


def dump(plain: Any) -> str:
    """JSON with one line per list of numbers, so that files stay small and differences readable."""
    return _lines(_rounded(plain), depth=2) + "\n"


def _lines(plain: Any, depth: int) -> str:
    """JSON whose dictionaries stand one entry a line, down to a depth."""
    if depth == 0 or not isinstance(plain, dict) or not plain:
        return json.dumps(plain, allow_nan=False)
    entries = (f"{json.dumps(str(k))}: {_lines(v, depth - 1)}" for k, v in plain.items())
    return "{\n" + ",\n".join(entries) + "\n}"


def _rounded(plain: Any) -> Any:
    """Six significant digits for every float: far below the noise, and half the size."""
    if isinstance(plain, float):
        return float(f"{plain:.6g}")
    if isinstance(plain, Mapping):
        return {key: _rounded(value) for key, value in plain.items()}
    if isinstance(plain, list | tuple):
        return [_rounded(value) for value in plain]
    return plain


def load(path: Path) -> Result:
    """Read a stored result.

    Args:
        path: A file written by ``save``.

    Returns:
        The result.

    Raises:
        ValueError: If the file is not a result of this schema; the message names the file.
        FileNotFoundError: If there is no such file.
    """
    try:
        return Result.from_json(json.loads(path.read_text()))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not a result of schema {SCHEMA}: {error}") from error


def stored(lesson: str, preset: str, folder: Path | None = None) -> Result | None:
    """The committed result of a lesson, or None where none was run yet.

    Args:
        lesson: Slug of the lesson.
        preset: Name of the preset.
        folder: Where results lie; ``data/results`` of the repository by default.

    Returns:
        The result or None.

    Taught in: book/connectivity/weight-matching
    """
    path = (folder or results_folder()) / f"{lesson}-{preset}.json"
    return load(path) if path.is_file() else None


def results_folder() -> Path:
    """The repository's ``data/results``, found from this file (the install is editable)."""
    return Path(__file__).resolve().parents[1] / "data" / "results"


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a kill at any moment, never meets half of it.

    Args:
        path: The file; its folder is made when absent.
        text: Its content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with open(handle, "wb") as file:
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise


def peak_memory_mb() -> float:
    """Largest resident set of this process so far, in MB; 0 where the system does not tell."""
    try:
        import resource  # not on Windows
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)

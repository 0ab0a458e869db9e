"""Ratios that survive a busy machine: contenders take turns, medians are compared."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

README = Path(__file__).with_name("README.md")


def interleaved(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of every contender; they take turns, after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repeats + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def verdict(reached: bool) -> str:
    """Whether a goal was reached, in words."""
    return "reached" if reached else "missed"


def main(name: str, sections: Mapping[str, Callable[[], str]]) -> None:
    """Run a benchmark's sections on one thread; print them, or put them into the README as well.

    Every section stands between the lines ``<!-- NAME: SECTION -->`` and ``<!-- end -->``.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}")
    parser.add_argument("--write", action="store_true", help="put the tables into the README")
    parser.add_argument("--only", nargs="+", choices=list(sections), default=list(sections))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for section in arguments.only:
        text = sections[section]()
        print(f"\n{section}\n\n{text}", flush=True)
        if arguments.write:
            page = README.read_text(encoding="utf-8")
            before, mark, rest = page.partition(f"<!-- {name}: {section} -->\n")
            _, end, after = rest.partition("<!-- end -->")
            if not mark or not end:
                raise ValueError(f"README.md has no place for {name}: {section}")
            README.write_text(f"{before}{mark}\n{text}\n\n{end}{after}", encoding="utf-8")

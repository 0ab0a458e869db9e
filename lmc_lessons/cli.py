"""Run the experiments of the lessons, print the scorecard, and refresh stored results."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

import torch

from lmc_lessons.experiments import experiment, is_fresh, lessons
from lmc_lessons.experiments.runs import Stages, override
from lmc_lessons.results import Decision, Result, load, results_folder, save
from lmc_lessons.training import TrainingError

PARTIAL = ".partial"
AGREEMENT = 1e-3  # relative difference at which one seed, run again, counts as the same


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The words after the program's name; those of the process by default.

    Returns:
        0 when the command completed, 2 on bad input (one line says what is wrong and what is
        allowed).
    """
    try:
        options = _parser().parse_args(arguments)
        return int(options.command(options) or 0)
    except (ValueError, FileNotFoundError, TrainingError) as error:
        print(f"lmc-lessons: {error}", file=sys.stderr)
        return 2


class _Parser(argparse.ArgumentParser):
    """Refuses bad words in one line, as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lmc-lessons", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="lessons and their presets").set_defaults(command=_list)
    run = commands.add_parser("run", help="run a lesson's experiment")
    run.add_argument("lesson", help="a lesson, or: all")
    run.add_argument("--preset", default="toy", help="default: toy")
    run.add_argument("--seeds", type=int, metavar="N", help="repeat N times instead")
    run.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    run.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="settings")
    run.add_argument("--out", type=Path, default=Path("results"), metavar="DIR")
    run.add_argument("--resume", action="store_true", help="go on where a killed run stopped")
    run.set_defaults(command=_run)
    card = commands.add_parser("scorecard", help="what the stored results say of every claim")
    card.add_argument("folder", nargs="?", type=Path, metavar="DIR")
    card.set_defaults(command=_scorecard)
    fresh = commands.add_parser("refresh", help="mend stored results that the code has outrun")
    fresh.add_argument("presets", nargs="*", default=["study"], metavar="PRESET")
    fresh.set_defaults(command=_refresh)
    return parser


def _list(_: argparse.Namespace) -> None:
    for lesson in lessons():
        presets = experiment(lesson).PRESETS
        print(f"{lesson}: {', '.join(presets)}")


def _run(options: argparse.Namespace) -> None:
    chosen = list(lessons()) if options.lesson == "all" else [options.lesson]
    plans = [(lesson, _config(lesson, options)) for lesson in chosen]  # bad input ends it here
    device = choose_device(options.device)
    for lesson, config in plans:
        result = _complete(lesson, config, options.out, device, resume=options.resume)
        print(claims_table(result.claims))


def choose_device(wanted: str) -> str:
    """The device to run on.

    Args:
        wanted: ``auto``, ``cpu`` or ``cuda``.

    Returns:
        ``cpu`` or ``cuda``.

    Raises:
        ValueError: If ``cuda`` is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ValueError("device 'cuda' is not available here, allowed: auto, cpu")
    return "cuda" if there and wanted != "cpu" else "cpu"


def _config(lesson: str, options: argparse.Namespace) -> Any:
    presets = experiment(lesson).PRESETS
    if options.preset not in presets:
        raise ValueError(
            f"{lesson} has no preset {options.preset!r}, allowed: {', '.join(presets)}"
        )
    config = override(presets[options.preset], options.settings)
    if options.seeds is not None:
        if options.seeds < 1:
            raise ValueError(f"--seeds needs a number of at least 1, got {options.seeds}")
        config = dataclasses.replace(config, seeds=tuple(range(options.seeds)))
    if config != presets[options.preset]:
        config = dataclasses.replace(config, preset=f"{options.preset}-changed")
    return config


def _complete(lesson: str, config: Any, out: Path, device: str, *, resume: bool) -> Result:
    """Run a configuration with partial work on disk, save the result, and clear up."""
    partial = out / PARTIAL
    stages = Stages(partial, config)
    if not resume:
        stages.clear()
    print(f"{lesson}, preset {config.preset}, {len(config.seeds)} seeds, on {device}")
    result: Result = experiment(lesson).run(config, folder=partial, progress=True, device=device)
    path = save(result, out)
    stages.clear()
    print(f"wrote {path} after {result.seconds:.0f} s")
    return result


def claims_table(claims: Sequence[Decision]) -> str:
    """The verdicts as text.

    Args:
        claims: Decisions of one result.

    Returns:
        One line per claim: id, verdict, mean effect with its interval, margin, statement.
    """
    lines = []
    for claim in claims:
        effect = "-" if claim.effect is None else f"{claim.effect:.3g}"
        if claim.low is not None and claim.high is not None:
            effect += f" [{claim.low:.3g}, {claim.high:.3g}]"
        lines.append(
            f"{claim.id:5} {claim.verdict:13} {effect:28} margin {claim.margin:<7g} "
            f"{claim.statement}"
        )
    return "\n".join(lines)


def _scorecard(options: argparse.Namespace) -> None:
    folder = options.folder or results_folder()
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}, give one that holds results")
    found = [load(p) for p in sorted(folder.glob("*.json")) if not p.stem.endswith("-changed")]
    if not found:
        print(f"no results in {folder}")
    for result in found:
        note = "" if is_fresh(result) else " (stale: the code has changed since)"
        print(f"{result.lesson}, {result.preset}, {len(result.seeds)} seeds{note}")
        print(claims_table(result.claims))


def _refresh(options: argparse.Namespace) -> None:
    """Re-run one seed of every stale result; stamp it if it agrees, else run the whole of it."""
    paths = [p for preset in options.presets for p in results_folder().glob(f"*-{preset}.json")]
    if not paths:
        raise FileNotFoundError(f"no stored result of preset {', '.join(options.presets)}")
    for path in sorted(paths):
        result = load(path)
        if is_fresh(result):
            print(f"{path.name}: fresh")
            continue
        config = experiment(result.lesson).PRESETS[result.preset]
        print(refresh(result, config, results_folder()))


def refresh(result: Result, config: Any, folder: Path) -> str:
    """Mend a stale result honestly.

    Args:
        result: The stored result.
        config: Its configuration, as the code has it now.
        folder: Where the result lies.

    Returns:
        One line that says what was done.
    """
    module = experiment(result.lesson)
    name = f"{result.lesson}-{result.preset}.json"
    seed = config.seeds[0]
    once = module.run(dataclasses.replace(config, seeds=(seed,)), progress=True)
    wanted = once.config | {"seeds": result.config["seeds"]}
    same_setting = wanted == _with_new_settings(result.config, config)
    gap = disagreement(once, result) if same_setting and seed in result.seeds else float("inf")
    if gap <= AGREEMENT:
        result.code, result.verified = once.code, date.today().isoformat()
        result.config = wanted
        result.claims = [claim.decide(result) for claim in module.CLAIMS]
        save(result, folder)
        return f"{name}: seed {seed} agrees to {gap:.1e}, stamped as verified"
    save(module.run(config, progress=True), folder)
    return f"{name}: seed {seed} differs by {gap:.1e}, all was run again"


def _with_new_settings(stored: Any, now: Any) -> Any:
    """A stored configuration with the defaults of settings that did not exist when it was run.

    Args:
        stored: The configuration, or a part of it, as plain data.
        now: The same as the code has it now.

    Returns:
        Plain data.
    """
    if dataclasses.is_dataclass(now) and isinstance(stored, dict):
        defaults = {
            setting.name: setting.default
            for setting in dataclasses.fields(now)
            if setting.default is not dataclasses.MISSING and setting.name not in stored
        }
        known = {
            name: _with_new_settings(old, getattr(now, name, None)) for name, old in stored.items()
        }
        return json.loads(json.dumps(defaults)) | known
    if isinstance(now, tuple) and isinstance(stored, list) and len(now) == len(stored):
        return [_with_new_settings(*pair) for pair in zip(stored, now, strict=True)]
    return stored


def disagreement(once: Result, result: Result) -> float:
    """Largest relative difference between a run of one seed and the stored values of that seed.

    Args:
        once: A run of a single seed.
        result: The stored run, with that seed among others.

    Returns:
        The difference, infinite if the two did not measure the same.
    """
    if once.metrics.keys() != result.metrics.keys() or once.series.keys() != result.series.keys():
        return float("inf")
    place = result.seeds.index(once.seeds[0])
    gaps = [_gap(values[0], result.metrics[name][place]) for name, values in once.metrics.items()]
    for name, series in once.series.items():
        new, old = (_flat(s) for s in (series.values[0], result.series[name].values[place]))
        if len(new) != len(old):
            return float("inf")
        gaps += [_gap(p, q) for p, q in zip(new, old, strict=True)]
    return max(gaps)


def _gap(new: float, old: float) -> float:
    size = max(abs(new), abs(old))
    return 0.0 if size < 1e-9 else abs(new - old) / size  # below 1e-9 it is rounding


def _flat(values: Any) -> list[float]:
    if isinstance(values, list):
        return [number for value in values for number in _flat(value)]
    return [float(values)]


if __name__ == "__main__":
    sys.exit(main())

"""The command line: what it writes, what it refuses, and a run that is killed and goes on."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from conftest import ROOT
from safetensors import SafetensorError, safe_open

from lmc_lessons import cli, experiments, training
from lmc_lessons.experiments.runs import Stages, override
from lmc_lessons.experiments.weight_matching import PRESETS, Config
from lmc_lessons.results import Claim, Result, Series, load, save


class Answer(NamedTuple):
    """What a command came back with."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Run one command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> Answer:
        try:
            code = cli.main(words)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        return Answer(code, *capsys.readouterr())

    return call


# --- A lesson that takes no time ------------------------------------------------------------------


def fake_result(config: Config, shift: float = 0.0, code: str = "new") -> Result:
    """Numbers that depend on the seed only, and on a shift that stands for changed code."""
    result = Result(
        lesson="fake",
        preset=config.preset,
        config=json.loads(json.dumps(dataclasses.asdict(config))),
        seeds=list(config.seeds),
        metrics={"barrier": [1 + 0.1 * s + shift for s in config.seeds]},
        series={"loss": Series({"t": [0, 1]}, [[0.5, 0.25 * s] for s in config.seeds])},
        code=code,
    )
    result.claims = [claim.decide(result) for claim in FAKE_CLAIMS]
    return result


FAKE_CLAIMS = (
    Claim("F1", "There is a barrier.", "someone", lambda r: r.metric("barrier"), 0.5, "why"),
    Claim("F2", "There are widths.", "someone", lambda r: r.metric("widths"), 0.5, "why"),
)
FAKE_PRESETS = {
    "toy": Config(preset="toy", seeds=(0,)),
    "study": Config(preset="study", seeds=(0, 1, 2)),
}


class Fake(SimpleNamespace):
    """An experiment of which the tests can see how often it ran, and with what."""

    def __init__(self) -> None:
        super().__init__(PRESETS=FAKE_PRESETS, CLAIMS=FAKE_CLAIMS)
        self.ran: list[tuple[int, ...]] = []
        self.folders: list[Path | None] = []
        self.shift = 0.0

    def run(self, config: Config, *, folder: Path | None = None, **_: Any) -> Result:
        self.ran.append(config.seeds)
        self.folders.append(folder)
        return fake_result(config, self.shift)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """The only lesson there is, whose code has the hash "new"."""
    module = Fake()
    known = {"fake": "fake_experiment"}
    monkeypatch.setitem(sys.modules, "fake_experiment", module)
    monkeypatch.setattr(experiments, "lessons", lambda: known)
    monkeypatch.setattr(cli, "lessons", lambda: known)
    monkeypatch.setattr(experiments, "code_hash", lambda _: "new")
    return module


def test_list_names_lessons_and_their_presets(command: Command) -> None:
    answer = command("list")
    assert answer.code == 0
    assert f"weight-matching: {', '.join(PRESETS)}" in answer.out.splitlines()


def test_run_writes_the_result_and_prints_the_verdicts(
    fake: Fake, command: Command, tmp_path: Path
) -> None:
    answer = command("run", "fake", "--preset", "study", "--device", "cpu")
    assert answer.code == 0
    assert fake.ran == [(0, 1, 2)]
    assert fake.folders == [Path("results/.partial")]
    result = load(tmp_path / "results" / "fake-study.json")
    assert result.metrics == fake_result(FAKE_PRESETS["study"]).metrics
    table = [line for line in answer.out.splitlines() if line.startswith("F")]
    assert [line.split()[:2] for line in table] == [["F1", "holds"], ["F2", "not-measured"]]
    assert "There is a barrier." in table[0]


def test_verdicts_do_not_change_the_exit_code(fake: Fake, command: Command) -> None:
    fake.shift = -9.0
    answer = command("run", "fake", "--preset", "study")
    assert "F1    fails" in answer.out
    assert answer.code == 0


def test_all_runs_every_lesson_and_toy_is_the_default(
    fake: Fake, command: Command, tmp_path: Path
) -> None:
    assert command("run", "all", "--out", "here").code == 0
    assert [path.name for path in (tmp_path / "here").glob("*.json")] == ["fake-toy.json"]


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("--set", "positions=5"), "fake-toy-changed.json"),
        (("--seeds", "4"), "fake-toy-changed.json"),
        (("--seeds", "1"), "fake-toy.json"),
        (("--set", "positions=25"), "fake-toy.json"),
    ],
    ids=["set", "seeds", "the-same-seeds", "the-same-value"],
)
def test_a_changed_setting_gives_the_file_a_suffix(
    fake: Fake, command: Command, tmp_path: Path, words: tuple[str, ...], name: str
) -> None:
    assert command("run", "fake", *words).code == 0
    files = list((tmp_path / "results").glob("*.json"))
    assert [path.name for path in files] == [name]
    assert load(files[0]).preset == name.removeprefix("fake-").removesuffix(".json")
    if words[0] == "--seeds":
        assert fake.ran == [tuple(range(int(words[1])))]


@pytest.mark.usefixtures("fake")
def test_the_scorecard_ignores_changed_settings(command: Command) -> None:
    command("run", "fake", "--preset", "study")
    before = command("scorecard", "results")
    command("run", "fake", "--preset", "study", "--set", "positions=5", "--seeds", "2")
    after = command("scorecard", "results")
    assert before == after
    assert "fake, study, 3 seeds" in after.out
    assert "changed" not in after.out
    assert (after.code, after.err) == (0, "")


@pytest.mark.parametrize(("code", "stale"), [("new", False), ("old", True)])
@pytest.mark.usefixtures("fake")
def test_the_scorecard_marks_stale_results(
    command: Command, tmp_path: Path, code: str, stale: bool
) -> None:
    save(fake_result(FAKE_PRESETS["study"], code=code), tmp_path / "kept")
    answer = command("scorecard", "kept")
    assert ("stale" in answer.out) is stale
    assert [line.split()[0] for line in answer.out.splitlines()] == ["fake,", "F1", "F2"]


def test_a_scorecard_without_results_says_so(command: Command, tmp_path: Path) -> None:
    missing = command("scorecard", "nowhere")
    assert missing.code == 2
    assert one_line(missing) == "lmc-lessons: no folder nowhere, give one that holds results"
    (tmp_path / "empty").mkdir()
    empty = command("scorecard", "empty")
    assert "no results in empty" in empty.out + empty.err


@pytest.mark.parametrize("text", ["[]", "{}", "not a result"])
def test_a_scorecard_names_a_file_that_is_not_a_result(
    command: Command, tmp_path: Path, text: str
) -> None:
    (tmp_path / "other.json").write_text(text)
    answer = command("scorecard", ".")
    assert answer.code == 2
    assert "other.json is not a result" in one_line(answer)


def test_the_table_shows_effect_interval_and_margin() -> None:
    result = fake_result(FAKE_PRESETS["study"])
    first, second = cli.claims_table(result.claims).splitlines()
    decision = result.claims[0]
    assert f"1.1 [{decision.low:.3g}, {decision.high:.3g}]" in first
    assert "margin 0.5" in first
    assert second.split()[:3] == ["F2", "not-measured", "-"]
    single = cli.claims_table(fake_result(FAKE_PRESETS["toy"]).claims).splitlines()[0]
    assert single.split()[:5] == ["F1", "undecided", "1", "margin", "0.5"]


# --- Bad input ------------------------------------------------------------------------------------


def one_line(answer: Answer) -> str:
    """The only line of an error, which is on stderr alone."""
    lines = answer.err.splitlines()
    assert len(lines) == 1, answer.err
    return lines[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("nothing",), ("'nothing'", "weight-matching")),
        (("weight-matching", "--preset", "huge"), ("'huge'", "toy, study, full-mnist-mlp")),
        (("weight-matching", "--seeds", "0"), ("--seeds", "at least 1", "0")),
        (("weight-matching", "--seeds", "many"), ("--seeds", "many")),
        (("weight-matching", "--device", "tpu"), ("tpu", "auto", "cpu", "cuda")),
        (("weight-matching", "--set", "positions"), ("KEY=VALUE", "'positions'")),
        (("weight-matching", "--set", "widhts=3"), ("'widhts'", "allowed", "widths")),
        (("weight-matching", "--set", "model.norm=group"), ("'group'", "none, batch, layer")),
        (("weight-matching", "--set", "dataset=nothing"), ("'nothing'", "digits")),
        (("weight-matching", "--set", "model.input_shape=(64,)"), ("digits", "(1, 8, 8)", "(64,)")),
        (("weight-matching", "--set", "limit=0"), ("limit", "from 1 to 1347", "0")),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(
    command: Command, tmp_path: Path, words: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    answer = command("run", *words)
    assert answer.code == 2
    for part in expected:
        assert part in one_line(answer)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_bad_input(command: Command) -> None:
    answer = command("run", "weight-matching", "--device", "cuda")
    assert answer.code == 2
    assert one_line(answer).endswith("allowed: auto, cpu")


QUICK = ("limit=20", "train.epochs=1", "widths=()", "depths=()", "norms=()", "counterexample=False")


@pytest.mark.parametrize(
    "setting",
    [
        *(
            "seeds=",
            "seeds=(0.5,)",
            "seeds=('a',)",
            "seeds=(0, 0)",
            "epochs=(-1,)",
            "epochs=('a',)",
        ),
        *("widths=(0,)", "widths=(4.5,)", "depths=(-1,)", "deep_width=0", "norms=('group',)"),
        *("weight_decays=(-1.0,)", "evaluate=many", "evaluate=0", "evaluate=-5"),
        *("match_with=0", "match_with=-1", "together=-1", "model.classes=5", "positions=4"),
        *("train.momentum=-1.0", "train.warmup_epochs=-1.0", "train.learning_rate=0.0"),
    ],
)
def test_settings_that_cannot_be_run_are_refused_before_anything_is_trained(
    command: Command, tmp_path: Path, setting: str
) -> None:
    key = setting.partition("=")[0]
    others = [s for s in QUICK if not s.startswith(f"{key}=")]
    if key == "deep_width":
        others = [s for s in others if not s.startswith("depths")]
    words = [word for s in (*others, setting) for word in ("--set", s)]
    answer = command("run", "weight-matching", *words)
    assert answer.code == 2
    assert key.split(".")[-1].rstrip("s") in one_line(answer)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_training_that_diverges_is_one_line(command: Command) -> None:
    settings = ("limit=80", "train.epochs=3", "train.batch_size=20", "train.learning_rate=1e30")
    words = [word for s in (*QUICK[2:], *settings) for word in ("--set", s)]
    answer = command("run", "weight-matching", *words)
    assert answer.code == 2
    line = answer.err.replace("\r", "\n").splitlines()[-1]
    assert line.startswith("lmc-lessons: training diverged: loss of seeds [0, 1] not finite")


# --- Refresh --------------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of stored results."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.setattr(cli, "results_folder", lambda: folder)
    return folder


def test_refresh_leaves_a_fresh_study_alone(fake: Fake, command: Command, kept: Path) -> None:
    path = save(fake_result(FAKE_PRESETS["study"]), kept)
    before = path.stat().st_mtime_ns, path.read_bytes()
    answer = command("refresh")
    assert answer == (0, "fake-study.json: fresh\n", "")
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before
    assert fake.ran == []


def test_refresh_stamps_a_stale_study_whose_first_seed_agrees(
    fake: Fake, command: Command, kept: Path
) -> None:
    old = fake_result(FAKE_PRESETS["study"], code="old")
    old.seconds, old.claims = 77.0, []
    path = save(old, kept)
    fake.shift = 1e-5  # another machine, other rounding
    answer = command("refresh")
    assert answer.code == 0
    assert "stamped" in answer.out
    assert fake.ran == [(0,)]
    new = load(path)
    assert (new.code, new.verified) == ("new", date.today().isoformat())
    assert (new.metrics, new.series, new.seconds) == (old.metrics, old.series, 77.0)
    assert [claim.verdict for claim in new.claims] == ["holds", "not-measured"]


def test_refresh_runs_a_study_again_whose_first_seed_differs(
    fake: Fake, command: Command, kept: Path
) -> None:
    path = save(fake_result(FAKE_PRESETS["study"], code="old"), kept)
    fake.shift = 0.01
    answer = command("refresh")
    assert answer.code == 0
    assert "run again" in answer.out
    assert fake.ran == [(0,), (0, 1, 2)]
    new = load(path)
    assert new.metrics == {"barrier": [1.01, 1.11, 1.21]}
    assert (new.code, new.verified) == ("new", None)
    assert new.seeds == [0, 1, 2]


Edit = Callable[[Result], None]


def other_setting(result: Result) -> None:
    result.config["positions"] = 7


def other_metric(result: Result) -> None:
    result.metrics["more"] = [0.0, 0.0, 0.0]


def other_series(result: Result) -> None:
    result.series = {}


def longer_series(result: Result) -> None:
    result.series["loss"] = Series({"t": [0, 1, 2]}, [[0.5, 0.25 * s, 9.0] for s in range(3)])


def other_seeds(result: Result) -> None:
    result.seeds = result.config["seeds"] = [5, 6, 7]


@pytest.mark.parametrize(
    "edit", [other_setting, other_metric, other_series, longer_series, other_seeds]
)
def test_refresh_runs_a_study_again_that_measured_something_else(
    fake: Fake, command: Command, kept: Path, edit: Edit
) -> None:
    old = fake_result(FAKE_PRESETS["study"], code="old")
    edit(old)
    path = save(old, kept)
    answer = command("refresh")
    assert answer.code == 0, answer.err
    assert fake.ran[-1] == (0, 1, 2)
    assert load(path).metrics == fake_result(FAKE_PRESETS["study"]).metrics


@dataclasses.dataclass(frozen=True)
class Inner:
    old: int = 1
    new: str = "default"


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    many: tuple[Inner, ...] = (Inner(), Inner())
    rates: tuple[float, ...] = (0.5,)
    seeds: tuple[int, ...] = (0, 1)


def test_a_setting_that_did_not_exist_had_its_default() -> None:
    stored = {"inner": {"old": 2}, "many": [{"old": 1}, {"old": 3}], "seeds": [4]}
    assert cli._with_new_settings(stored, Outer()) == {
        "inner": {"old": 2, "new": "default"},
        "many": [{"old": 1, "new": "default"}, {"old": 3, "new": "default"}],
        "rates": [0.5],
        "seeds": [4],
    }
    assert cli._with_new_settings(stored | {"rates": [0.1]}, Outer())["rates"] == [0.1]


def test_disagreement_is_the_largest_relative_difference() -> None:
    study = fake_result(dataclasses.replace(FAKE_PRESETS["study"], seeds=(3, 1, 2)))
    once = fake_result(dataclasses.replace(FAKE_PRESETS["study"], seeds=(1,)))
    assert cli.disagreement(once, study) == 0
    once.metrics["barrier"][0] = 1.1 * 1.02
    assert cli.disagreement(once, study) == pytest.approx(0.02 / 1.02)
    once.series["loss"].values[0][1] = 0.5
    assert cli.disagreement(once, study) == pytest.approx(0.5)


def test_noise_around_zero_is_no_difference() -> None:
    study, once = (fake_result(FAKE_PRESETS[name]) for name in ("study", "toy"))
    study.metrics["barrier"][0], once.metrics["barrier"][0] = 1e-16, -3e-16
    assert cli.disagreement(once, study) == 0


# --- Killed and started again ---------------------------------------------------------------------

TINY = (
    *("seeds=(0, 1)", "limit=160", "model.width=8", "train.epochs=60", "train.batch_size=40"),
    *("epochs=(0, 2, 60)", "positions=3", "widths=()", "depths=(2,)", "deep_width=4"),
    *("norms=()", "counterexample=False"),
)
RUN = [
    *("run", "weight-matching", "--preset", "toy", "--device", "cpu"),
    *(word for setting in TINY for word in ("--set", setting)),
]
RESULT = "weight-matching-toy-changed.json"


def without_clearing(_: Stages) -> None:
    """Leave partial work where it is, so that the test can look at it."""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("whole")
    assert cli.main([*RUN, "--out", str(out)]) == 0
    assert [path for path in out.rglob("*") if path.is_file()] == [out / RESULT]
    return json.loads((out / RESULT).read_text())


def finished(out: Path) -> list[Path]:
    """What finished stages left."""
    kinds = ("*.numbers.json", "*.safetensors")
    return sorted(path for kind in kinds for path in (out / ".partial").rglob(kind))


def epochs_done(out: Path) -> int:
    """Epochs in the checkpoint of the training that is under way."""
    for file in (out / ".partial").rglob("train-networks-0.checkpoint"):
        try:
            with safe_open(file, framework="pt") as checkpoint:
                return int(checkpoint.metadata()["epochs"])
        except (FileNotFoundError, SafetensorError):
            return 0  # replaced or removed at this very moment
    return 0


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run of its own, in a process that the test may kill."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "lmc_lessons.cli", *RUN, "--out", str(tmp_path)]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(words, env=environment, stdout=quiet, stderr=quiet) as started:
        yield started
        started.kill()


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "in-a-training": lambda out: epochs_done(out) >= 3,
    "after-1-stage": lambda out: len(finished(out)) >= 1,
    "after-3-stages": lambda out: len(finished(out)) >= 3,
    "after-6-stages": lambda out: len(finished(out)) >= 6,
}


@pytest.mark.skipif(sys.platform == "win32", reason="needs kill -9")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_any_moment_goes_on_to_the_same_numbers(
    moment: str,
    tmp_path: Path,
    process: subprocess.Popen[bytes],
    uninterrupted: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deadline = time.monotonic() + 60
    while not MOMENTS[moment](tmp_path):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    assert not (tmp_path / RESULT).exists()

    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished(tmp_path)}
    done = epochs_done(tmp_path)
    assert (not before and done >= 3) if moment == "in-a-training" else before
    run_epoch, trained = training._Run.epoch, []

    def watched(self: Any, epoch: int) -> Any:
        trained.append(epoch)
        return run_epoch(self, epoch)

    monkeypatch.setattr(training._Run, "epoch", watched)
    monkeypatch.setattr(Stages, "clear", without_clearing)
    assert cli.main([*RUN, "--out", str(tmp_path), "--resume"]) == 0
    result = json.loads((tmp_path / RESULT).read_text())
    for part in ("config", "seeds", "metrics", "series", "claims", "datasets", "code"):
        assert result[part] == uninterrupted[part], part
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before}
    assert after == before, "a finished stage was done again"
    of_networks = list(range(done, 60)) if moment == "in-a-training" else []
    assert trained[: len(of_networks)] == of_networks, "a finished epoch was done again"
    assert trained.count(0) <= 1, "only the depth comparison is trained from its beginning"


def test_without_resume_a_run_starts_anew(tmp_path: Path, uninterrupted: dict[str, Any]) -> None:
    """What an earlier run left, whole or broken, is not looked at."""
    config = dataclasses.replace(override(PRESETS["toy"], TINY), preset="toy-changed")
    earlier = Stages(tmp_path / ".partial", config)
    earlier.tensors("networks", lambda _: {"broken": torch.zeros(1)})
    earlier.numbers("pair-0", lambda: "broken")
    assert len(finished(tmp_path)) == 2
    assert cli.main([*RUN, "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / RESULT).read_text())["metrics"] == uninterrupted["metrics"]
    assert finished(tmp_path) == []

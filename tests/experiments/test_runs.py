"""Settings by text, stages that are done once, and one thread where numbers must not vary."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmc_lessons.datasets import load
from lmc_lessons.experiments import experiment, lessons, runs
from lmc_lessons.experiments.runs import (
    Stages,
    config_hash,
    finish,
    hold_out,
    load_cut,
    one_thread,
    override,
    train_stages,
)
from lmc_lessons.experiments.weight_matching import Config
from lmc_lessons.models import ModelConfig, Params
from lmc_lessons.results import Claim, Series
from lmc_lessons.training import Network, TrainConfig, cross_entropy, train

# --- Settings -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    width: int = 8
    name: str = "relu"


@dataclass(frozen=True)
class Settings:
    seeds: tuple[int, ...] = (0, 1)
    rates: tuple[float, ...] = (0.5,)
    names: tuple[str, ...] = ("a",)
    rate: float = 0.1
    fast: bool = False
    limit: int | None = None
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("setting", "key", "expected"),
    [
        ("rate=0.25", "rate", 0.25),
        ("rate=2", "rate", 2.0),
        ("rate=1e-3", "rate", 0.001),
        ("fast=True", "fast", True),
        ("limit=300", "limit", 300),
        ("seeds=(3, 4, 5)", "seeds", (3, 4, 5)),
        ("seeds=[3,4]", "seeds", (3, 4)),
        ("seeds=7", "seeds", (7,)),
        ("seeds=()", "seeds", ()),
        ("rates=(0, 0.5)", "rates", (0.0, 0.5)),
        ("names=('b', 'c')", "names", ("b", "c")),
        ("names=b", "names", ("b",)),
        (" rate = 0.5 ", "rate", 0.5),
    ],
)
def test_texts_become_values_of_the_right_type(setting: str, key: str, expected: Any) -> None:
    old = Settings()
    new = override(old, [setting])
    assert getattr(new, key) == expected
    assert type(getattr(new, key)) is type(expected)
    assert dataclasses.replace(new, **{key: getattr(old, key)}) == old


def test_dots_reach_nested_settings_and_the_rest_stays() -> None:
    old = Settings()
    new = override(old, ["inner.width=16", "rate=0.5", "inner.name=tanh"])
    assert new == Settings(rate=0.5, inner=Inner(16, "tanh"))
    assert old == Settings()
    assert override(old, []) == old


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("rate", "needs KEY=VALUE, got 'rate'"),
        ("rat=1", "no setting 'rat', allowed here: seeds, rates, names, rate, fast, limit, inner"),
        ("inner.widht=1", r"no setting 'inner\.widht', allowed here: width, name"),
        ("inner=3", r"group of settings, set one of: inner\.width, inner\.name"),
        ("rate.x=3", r"'rate' has no settings below it, got 'rate\.x'"),
        ("rate=fast", "rate must be of type float .*got 'fast'"),
        ("rate=True", "rate must be of type float"),
        ("inner.width=2.5", r"inner\.width must be of type int \(now 8\), got '2\.5'"),
        ("inner.width=", r"inner\.width must be of type int"),
        ("inner.name=3", r"inner\.name must be of type str"),
        ("fast=1", "fast must be of type bool"),
        ("seeds=(0.5, 1)", "seeds.*int"),
        ("seeds=('a',)", "seeds.*int"),
        ("seeds=", "seeds.*int"),
        ("rates=('much',)", "rates.*float"),
        ("limit=many", "limit.*int"),
    ],
)
def test_bad_settings_are_one_line_with_what_is_allowed(setting: str, expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        override(Settings(), [setting])
    assert "\n" not in str(caught.value)


def test_changed_settings_are_checked_by_their_own_class() -> None:
    with pytest.raises(ValueError, match="allowed: adam, adamw, sgd"):
        override(Config(), ["train.optimizer=lion"])


# --- Stages ---------------------------------------------------------------------------------------

CONFIG = TrainConfig(epochs=1)
DIGITS = load("digits")


class Work:
    """Counts how often it is done, and can be cut off."""

    def __init__(self, outcome: Any, cut_off: bool = False) -> None:
        self.outcome, self.cut_off, self.done = outcome, cut_off, 0
        self.checkpoint: Path | None = None

    def __call__(self, checkpoint: Path | None = None) -> Any:
        self.done += 1
        self.checkpoint = checkpoint
        if self.cut_off:
            if checkpoint is not None:
                checkpoint.parent.mkdir(parents=True, exist_ok=True)
                checkpoint.write_text("half")
            raise KeyboardInterrupt
        return self.outcome


def tensors() -> Params:
    return {"a": torch.rand(3, 4).mT, "b": torch.arange(3), "c": torch.tensor(0.1)}


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    values = tensors()
    work, numbers = Work(values), Work({"x": [0.1, 1 / 3], "n": 3})
    found = []
    for _ in range(2):
        stages = Stages(tmp_path, CONFIG)
        found.append((stages.tensors("train", work), stages.numbers("measure", numbers)))
    assert (work.done, numbers.done) == (1, 1)
    for params, data in found:
        assert params.keys() == values.keys()
        assert all(torch.equal(params[name], values[name]) for name in values)
        assert data == numbers.outcome


def test_fresh_and_kept_numbers_are_the_same_kind_of_data(tmp_path: Path) -> None:
    work = Work({"pair": (1, 2), 3: 0.1 + 0.2})
    fresh, kept, none = (
        Stages(folder, CONFIG).numbers("m", work) for folder in (tmp_path, tmp_path, None)
    )
    assert fresh == kept == none == {"pair": [1, 2], "3": 0.1 + 0.2}


def test_a_stage_cut_off_is_done_again_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path, CONFIG).tensors("train", Work(None, cut_off=True))
    again = Work(tensors())
    Stages(tmp_path, CONFIG).tensors("train", again)
    assert again.done == 1
    assert again.checkpoint is not None
    assert not again.checkpoint.exists(), "the checkpoint goes when the stage is finished"
    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path, CONFIG).numbers("measure", Work(None, cut_off=True))
    assert Stages(tmp_path, CONFIG).numbers("measure", Work(5)) == 5


def test_a_checkpoint_is_found_where_it_was_left(tmp_path: Path) -> None:
    first, second = Work(None, cut_off=True), Work(None, cut_off=True)
    for work in (first, second):
        with pytest.raises(KeyboardInterrupt):
            Stages(tmp_path, CONFIG).tensors("train", work)
    assert first.checkpoint == second.checkpoint
    assert first.checkpoint is not None
    assert first.checkpoint.read_text() == "half"


def test_names_of_stages_do_not_collide(tmp_path: Path) -> None:
    stages = Stages(tmp_path, CONFIG)
    names = ["decay-0.1", "decay-0.5", "decay-0", "pair"]
    for index, name in enumerate(names):
        stages.tensors(name, Work({"a": torch.tensor(index)}))
        stages.numbers(name, Work(index + 10))
    again = Stages(tmp_path, CONFIG)
    assert [int(again.tensors(name, Work(None))["a"]) for name in names] == [0, 1, 2, 3]
    assert [again.numbers(name, Work(None)) for name in names] == [10, 11, 12, 13]


def test_other_configurations_and_other_code_start_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Stages(tmp_path, CONFIG).numbers("m", Work(1))
    assert Stages(tmp_path, TrainConfig(epochs=2)).numbers("m", Work(2)) == 2
    assert Stages(tmp_path, TrainConfig(epochs=1)).numbers("m", Work(3)) == 1
    before = config_hash(CONFIG)
    monkeypatch.setattr(runs, "code_hash", lambda _: "other code")
    assert config_hash(CONFIG) != before
    assert Stages(tmp_path, CONFIG).numbers("m", Work(4)) == 4


def test_clearing_takes_this_configuration_only(tmp_path: Path) -> None:
    mine, other = (Stages(tmp_path, TrainConfig(epochs=n)) for n in (1, 2))
    for stages in (mine, other):
        stages.numbers("m", Work(1))
    mine.clear()
    assert Stages(tmp_path, TrainConfig(epochs=1)).numbers("m", Work(5)) == 5
    assert Stages(tmp_path, TrainConfig(epochs=2)).numbers("m", Work(5)) == 1
    mine.clear()
    mine.clear()


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stages, work = Stages(None, CONFIG), Work(tensors())
    for _ in range(2):
        stages.tensors("train", work)
        stages.numbers("m", Work(1))
    assert (work.done, work.checkpoint) == (2, None)
    stages.clear()
    assert list(tmp_path.iterdir()) == []


def test_seconds_of_finished_stages_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(range(100))
    monkeypatch.setattr(runs.time, "perf_counter", lambda: float(next(ticks)))
    first = Stages(tmp_path, CONFIG)
    first.tensors("a", Work(tensors()))
    first.numbers("b", Work(1))
    again = Stages(tmp_path, CONFIG)
    again.tensors("a", Work(None))
    again.numbers("b", Work(None))
    assert (first.seconds, again.seconds) == (2.0, 2.0)


# --- Data -----------------------------------------------------------------------------------------


def test_the_first_samples_of_each_split_are_kept() -> None:
    data = load_cut("digits", ModelConfig(), samples=7, test=5)
    assert torch.equal(data.train_x, DIGITS.train_x[:7])
    assert torch.equal(data.train_y, DIGITS.train_y[:7])
    assert torch.equal(data.test_x, DIGITS.test_x[:5])
    assert torch.equal(data.test_y, DIGITS.test_y[:5])
    assert load_cut("digits", ModelConfig()).sha256 == DIGITS.sha256


@pytest.mark.parametrize(
    ("model", "wanted", "message"),
    [
        (ModelConfig(input_shape=(64,)), {}, r"digits has inputs of shape \(1, 8, 8\)"),
        (ModelConfig(classes=9), {}, "and 10 classes, the model takes .* and 9"),
        (ModelConfig(), {"samples": 5000}, r"training samples, asked for 5000"),
        (ModelConfig(), {"test": 5000}, r"test samples, asked for 5000"),
    ],
)
def test_data_that_do_not_fit_are_refused(
    model: ModelConfig, wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_cut("digits", model, **wanted)


def test_a_training_part_is_cut_in_three() -> None:
    part, validation, rest = hold_out(DIGITS, ModelConfig(), 100, 30)
    assert torch.equal(torch.cat([part.train_x, validation[0], rest[0]]), DIGITS.train_x)
    assert torch.equal(torch.cat([part.train_y, validation[1], rest[1]]), DIGITS.train_y)
    assert (len(part.train_x), len(validation[0])) == (100, 30)
    assert torch.equal(part.test_x, DIGITS.test_x)
    all_but, held, nothing = hold_out(DIGITS, ModelConfig(), None, 30)
    assert (len(all_but.train_x), len(held[0])) == (len(DIGITS.train_x) - 30, 30)
    assert len(nothing[0]) == 0


@pytest.mark.parametrize(("samples", "validation"), [(1, 5), (5000, 0), (1000, 5000), (None, 5000)])
def test_a_part_larger_than_the_whole_is_refused(samples: int | None, validation: int) -> None:
    with pytest.raises(ValueError, match=f"asked for {samples} and {validation} for validation"):
        hold_out(DIGITS, ModelConfig(), samples, validation)


@pytest.mark.parametrize("name", ["AWP 0.01", "clean, stopped", "AT + Absum 0.01"])
def test_any_name_can_be_a_stage(tmp_path: Path, name: str) -> None:
    stages = Stages(tmp_path, Config())
    for seed in (1, 2):
        assert stages.numbers(f"{name}-{seed}", partial(int, seed)) == seed
        assert stages.tensors(f"{name}-{seed}", lambda _: {"a": torch.ones(1)})["a"] == 1
    files = [path.name for path in tmp_path.rglob("*.*")]
    assert len([file for file in files if file.endswith(".numbers.json")]) == 2
    assert not [file for file in files if set(file) & set(" ,+")]


# --- Training in stages ---------------------------------------------------------------------------


def trained(folder: Path | None, **options: Any) -> dict[int, Params]:
    recipe = TrainConfig(epochs=2, batch_size=100)
    return train_stages(
        Stages(folder, CONFIG),
        "a name, with spaces",
        ModelConfig(width=8, depth=1),
        DIGITS,
        (3, 5, 9),
        recipe,
        **options,
    )


@pytest.mark.parametrize("together", [0, 1, 2])
def test_groups_of_seeds_give_what_one_program_gives(tmp_path: Path, together: int) -> None:
    expected = train(
        ModelConfig(width=8, depth=1),
        DIGITS,
        (3, 5, 9),
        TrainConfig(epochs=2, batch_size=100),
        snapshots=(1,),
    )
    for _ in range(2):  # the second time from disk
        found = trained(tmp_path, together=together, snapshots=(1, 7))
        assert list(found) == [1, 2]
        for epoch, wanted in ((1, expected.snapshots[1]), (2, expected.params)):
            assert found[epoch].keys() == wanted.keys()
            assert all(torch.equal(found[epoch][name], wanted[name]) for name in wanted)


def test_a_finished_group_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained(tmp_path, together=2)
    monkeypatch.setattr(runs, "train", lambda *_, **__: pytest.fail("trained again"))
    assert len(trained(tmp_path, together=2)[2]["output.bias"]) == 3


def test_a_stage_trains_with_the_loss_it_is_given() -> None:
    def halved(network: Network, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(network, x, y) / 2

    plain, other = (trained(None, loss=loss)[2] for loss in (cross_entropy, halved))
    assert not torch.equal(plain["output.bias"], other["output.bias"])


# --- Threads, records, the list of lessons --------------------------------------------------------


@pytest.mark.parametrize("enabled", [True, False])
def test_the_number_of_threads_comes_back(enabled: bool) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with one_thread(enabled):
            assert torch.get_num_threads() == (1 if enabled else 3)
        assert torch.get_num_threads() == 3
        with pytest.raises(KeyboardInterrupt), one_thread(enabled):
            raise KeyboardInterrupt
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def record(effect: Callable[[Any], Any], values: list[float]) -> Any:
    claim = Claim("C1", "So it is.", "source", effect, 0.123456, "why", kind="exact")
    return finish(
        "weight-matching",
        Config(preset="toy", seeds=(0, 1)),
        stages=Stages(None, Config()),
        metrics={"m": values},
        series={"s": Series({"t": [0.0, 1.0]}, [[1 / 3, 0.5], [2 / 3, 0.5]])},
        claims=[claim],
        datasets=[load("moons", count=20)],
        device="cpu",
    )


def test_a_record_says_what_made_it() -> None:
    result = record(lambda r: r.metric("m"), [0.1, 0.05])
    assert result.config == json.loads(json.dumps(dataclasses.asdict(Config("toy", (0, 1)))))
    assert result.datasets["moons"].keys() == {"variant", "sha256"}
    assert set(result.versions) >= {"python", "torch", "numpy", "scipy"}
    assert len(result.code) == 16
    assert result.peak_memory_mb > 0
    assert result.verified is None
    assert isinstance(result.series["s"], Series)


def test_claims_are_decided_on_the_numbers_that_are_stored() -> None:
    """0.1234561 is written as 0.123456, which is within the margin: reader and run agree."""
    result = record(lambda r: r.metric("m"), [0.1234561, 0.0])
    assert result.metric("m") == [0.123456, 0.0]
    assert result.decision("C1").verdict == "holds"


def test_every_lesson_has_what_the_command_line_needs() -> None:
    assert "weight-matching" in lessons()
    for name in lessons():
        module = experiment(name)
        assert {"toy", "study"} <= module.PRESETS.keys()
        assert callable(module.run)
        assert len({claim.id for claim in module.CLAIMS}) == len(module.CLAIMS)
        for preset, config in module.PRESETS.items():
            assert config.preset == preset
            assert config.seeds


def test_an_unknown_lesson_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"no lesson 'nothing', allowed: all, .*weight-matching"):
        experiment("nothing")
    with pytest.raises(ValueError, match="no lesson 'runs'"):
        experiment("runs")

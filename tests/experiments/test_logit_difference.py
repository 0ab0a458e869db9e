"""The experiment of the lesson on logit differences: claims, settings, runs."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import check_claims, check_controls, killed_again_and_again, shape

from lmc_lessons.experiments import logit_difference as lesson
from lmc_lessons.experiments.runs import Stages, override
from lmc_lessons.models import ModelConfig, initial, stack
from lmc_lessons.results import Result, Series, dump
from lmc_lessons.training import train
from lmc_lessons.unlearning.facts import LENGTH, decode
from lmc_lessons.unlearning.logit_difference import critical_alpha, subtract

SEEDS = 5
CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
EMPTY: list[float] = [0.5] * len(lesson.QUANTITIES)


# --- Claims ---------------------------------------------------------------------------------------


def around(value: float) -> list[float]:
    """Five values near one."""
    return [value + shift for shift in (-0.002, -0.001, 0.0, 0.001, 0.002)]


def measured(name: str, first: dict[str, list[Any]], **cells: Any) -> dict[str, Any]:
    """A series with some numbers in it; all others are a half.

    Args:
        name: The series.
        first: Its axes before group and quantity.
        cells: ``c0``, ``c1`` and so on: ticks of all axes, and the value around which seeds lie.
    """
    axes = first | {"group": list(lesson.GROUPS), "quantity": list(lesson.QUANTITIES)}
    lengths = [len(ticks) for ticks in axes.values()]
    values = [torch.full(lengths, 0.5, dtype=torch.float64) for _ in range(SEEDS)]
    for ticks, value in cells.values():
        place = tuple(entries.index(t) for entries, t in zip(axes.values(), ticks, strict=True))
        for seed, number in zip(values, around(value), strict=True):
            seed[place] = number
    return {name: Series(axes, [seed.tolist() for seed in values])}


def assistants(**cells: tuple[str, float, str, str, float]) -> dict[str, Any]:
    """Assistant, alpha, group, quantity, value."""
    alphas = [0.0, 0.5, 1.0, lesson.ALPHA]
    axes: dict[str, list[Any]] = {"assistant": list(lesson.ASSISTANTS), "alpha": alphas}
    return measured("assistants", axes, **{k: (c[:4], c[4]) for k, c in cells.items()})


def networks(**cells: tuple[str, str, str, float]) -> dict[str, Any]:
    """Network, group, quantity, value."""
    axes: dict[str, list[Any]] = {"network": ["target", "retrained"]}
    return measured("networks", axes, **{k: (c[:3], c[3]) for k, c in cells.items()})


def changes(**cells: tuple[str, int, str, str, float]) -> dict[str, Any]:
    """Method, step, group, quantity, value."""
    axes: dict[str, list[Any]] = {"method": list(lesson.CHANGES), "step": [50, 100]}
    return measured("changes", axes, **{k: (c[:4], c[4]) for k, c in cells.items()})


def growth(**cells: tuple[int, str, str, float]) -> dict[str, Any]:
    """Step, group, quantity, value."""
    axes: dict[str, list[Any]] = {"step": [100, 200]}
    return measured("growth", axes, **{k: (c[:3], c[3]) for k, c in cells.items()})


def filtered(plain: float, with_filter: float) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {"filter": ["none", "filtered"], "alpha": [lesson.ALPHA]}
    tail = (lesson.ALPHA, "forget", "accuracy")
    cells = {"c0": (("none", *tail), plain), "c1": (("filtered", *tail), with_filter)}
    return measured("alpha", axes, **cells)


def critical(with_wrong: float, without: float) -> dict[str, Any]:
    """The first letter's critical alpha; the others are at a half."""
    axes: dict[str, list[Any]] = {
        "assistant": [lesson.MAIN, "no wrong answers"],
        "letter": [1, 2, 3],
    }
    rows = zip(around(with_wrong), around(without), strict=True)
    return {"critical": Series(axes, [[[a, 0.5, 0.5], [b, 0.5, 0.5]] for a, b in rows])}


def metrics(**values: float) -> dict[str, Any]:
    return {name.replace("_", " "): around(value) for name, value in values.items()}


def lost(after: float, group: str = "forget", name: str = lesson.MAIN) -> dict[str, Any]:
    """Accuracy after subtraction, of a target that knows everything."""
    known = assistants(a=(name, lesson.ALPHA, group, "accuracy", after))
    return known | networks(a=("target", group, "accuracy", 1.0))


def beside(group: str, main: float, other: str, control: float) -> dict[str, Any]:
    """Accuracy of two assistants."""
    return assistants(
        a=(lesson.MAIN, lesson.ALPHA, group, "accuracy", main),
        b=(other, lesson.ALPHA, group, "accuracy", control),
    )


def best(kept: float, forgot: float = 0.0) -> dict[str, Any]:
    """One method forgets and keeps so much; all others forget nothing."""
    rows = changes(
        a=("GA+GD", 100, "forget", "accuracy", forgot),
        b=("GA+GD", 100, "uncovered", "accuracy", kept),
    )
    return rows | assistants(a=(lesson.MAIN, lesson.ALPHA, "uncovered", "accuracy", 0.99))


def losses(change: float, difference: float) -> dict[str, Any]:
    rows = changes(a=("GA+GD", 100, "forget", "loss", change))
    return rows | assistants(a=(lesson.MAIN, lesson.ALPHA, "forget", "loss", difference))


def rises(change: float, difference: float) -> dict[str, Any]:
    rows = changes(a=("GA+GD", 100, "forget", "loss", 0.5 + change))
    return rows | growth(a=(200, "forget", "loss", 0.5 + difference))


def like_new(difference: float, retrained: float, quantity: str) -> dict[str, Any]:
    rows = assistants(a=(lesson.MAIN, lesson.ALPHA, "forget", quantity, difference))
    return rows | networks(a=("retrained", "forget", quantity, retrained))


def half(after: float) -> dict[str, Any]:
    rows = assistants(a=(lesson.MAIN, 0.5, "forget", "accuracy", after))
    return rows | networks(a=("target", "forget", "accuracy", 1.0))


def fall(early: float, late: float) -> dict[str, Any]:
    name = "no wrong answers"
    return assistants(
        a=(name, 0.5, "forget", "accuracy", early), b=(name, 1.0, "forget", "accuracy", late)
    )


def stops(main: float, remembered: float) -> dict[str, Any]:
    return assistants(
        a=(lesson.MAIN, lesson.ALPHA, "forget", "full stop", main),
        b=("prompts remembered", lesson.ALPHA, "forget", "full stop", remembered),
    )


def pair(names: tuple[str, str], values: tuple[float, float]) -> dict[str, Any]:
    return {name: around(value) for name, value in zip(names, values, strict=True)}


TEXT, WORK = ("text in target", "text in assistant"), ("GA+GD: work", "ULD: work")
CASES: dict[str, tuple[Any, Any]] = {
    "C1a": (lost(0.02), lost(0.3)),
    "C1b": (lost(0.995, "uncovered"), lost(0.9, "uncovered")),
    "C1c": (best(0.5), best(0.98)),
    "C1d": (
        beside("uncovered", 0.99, "no uniform term", 0.6),
        beside("uncovered", 0.99, "no uniform term", 0.97),
    ),
    "C2a": (losses(20, 7), losses(8, 7)),
    "C2b": (rises(9, 1), rises(2, 1)),
    "C2c": (like_new(7, 6, "loss"), like_new(11, 6, "loss")),
    "C3a": (
        beside("shown paraphrases", 0.0, "no paraphrases", 0.9),
        beside("shown paraphrases", 0.8, "no paraphrases", 0.9),
    ),
    "C3b": (
        beside("new paraphrases", 0.4, "no paraphrases", 0.9),
        beside("new paraphrases", 0.8, "no paraphrases", 0.9),
    ),
    "C3c": (lost(0.05, "new paraphrases"), lost(0.4, "new paraphrases")),
    "C4a": (half(0.99), half(0.8)),
    "C4b": (fall(0.95, 0.0), fall(0.95, 0.5)),
    "C4c": (filtered(0.0, 0.01), filtered(0.0, 0.2)),
    "C4d": ({"identity error": [0.0] * SEEDS}, {"identity error": [0.0, 0.01, 0.0, 0.0, 0.0]}),
    "C5a": (beside("forget", 0.0, "all blocks", 0.01), beside("forget", 0.2, "all blocks", 0.0)),
    "C5b": (pair(TEXT, (30, 10)), pair(TEXT, (15, 10))),
    "C5c": (pair(WORK, (30, 10)), pair(WORK, (5, 10))),
    "C6a": (
        beside("uncovered", 0.99, "no wrong answers", 0.9),
        beside("uncovered", 0.99, "no wrong answers", 0.99),
    ),
    "C6b": (critical(1.2, 0.5), critical(0.6, 0.5)),
    "C6c": (pair(lesson.CAP, (5.2, 5.3)), pair(lesson.CAP, (4.0, 5.3))),
    "C7": (stops(1.0, 0.1), stops(1.0, 0.9)),
    "C8": (like_new(0.7, 0.05, "least likely"), like_new(0.1, 0.05, "least likely")),
}


def test_every_claim_can_fail() -> None:
    check_claims(lesson, CASES, SEEDS)


def test_a_claim_without_its_control_is_open() -> None:
    check_controls(lesson, CASES, SEEDS)


def test_a_method_that_never_forgets_keeps_nothing_by_it() -> None:
    """Else the best of all would be a method that does nothing."""
    claim = CLAIMS["C1c"]
    for forgot, verdict in ((0.05, "fails"), (0.5, "holds")):
        found = Result(lesson.LESSON, "study", {}, list(range(SEEDS)), series=best(0.98, forgot))
        assert claim.decide(found).verdict == verdict


def test_the_best_step_is_looked_for_seed_by_seed() -> None:
    rows = changes(
        a=("GA", 50, "forget", "accuracy", 0.0),
        b=("GA", 50, "uncovered", "accuracy", 0.3),
        c=("GA+GD", 100, "forget", "accuracy", 0.05),
        d=("GA+GD", 100, "uncovered", "accuracy", 0.6),
    )
    found = Result(lesson.LESSON, "study", {}, list(range(SEEDS)), series=rows)
    assert lesson.best_change(found) == pytest.approx(around(0.6))


def test_claims_have_reasons_and_sources() -> None:
    for claim in lesson.CLAIMS:
        assert claim.reason
        assert claim.source
        assert not claim.statement.startswith(("The same", "They "))


# --- Settings -------------------------------------------------------------------------------------


def test_presets_are_the_ones_that_are_documented() -> None:
    assert set(lesson.PRESETS) == {"toy", "study", "full-facts"}
    for name in ("study", "full-facts"):
        assert len(lesson.PRESETS[name].seeds) >= 5, name
    study = lesson.PRESETS["study"]
    assert not study.train.fast
    assert set(study.assistants) == set(lesson.ASSISTANTS)
    assert set(study.changes) == set(lesson.CHANGES)
    assert {0.5, 1.0, lesson.ALPHA} <= set(study.alphas)
    assert {50, 100, 200} <= set(study.steps)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"seeds": ()}, r"seeds must be different integers >= 0, got \(\)"),
        ({"seeds": (1, 1)}, "seeds must be different"),
        ({"assistants": ("ULD", "none")}, "no method 'none', allowed: ULD, no paraphrases"),
        ({"assistants": ("neither",)}, "ULD among them"),
        ({"changes": ("ga",)}, r"no method 'ga', allowed: GA, GA\+GD"),
        ({"changes": ("GA", "GA")}, "methods must be different"),
        ({"alphas": (0.0, 1.0)}, "alphas must increase from 0, with 1.5 among them"),
        ({"alphas": (0.5, 1.5)}, "alphas must increase from 0"),
        ({"alphas": (0.0, 1.5, 1.0)}, "alphas must increase from 0"),
        ({"model": ModelConfig()}, "model must be a transformer for texts of 12 tokens"),
        ({"model": ModelConfig("transformer", (8,), 29, 16, 1)}, "12 tokens or more, got"),
        ({"model": ModelConfig("transformer", (12,), 30, 16, 1)}, "must be 29, got 30"),
        ({"steps": ()}, "steps must be increasing"),
        ({"steps": (3, 1)}, "steps must be increasing"),
        ({"blocks": 4}, "blocks must be 1 to 3"),
        ({"wrong": -1}, "wrong >= 0"),
        ({"share": 0.0}, r"share in \(0, 1\]"),
        ({"beta": -1.0}, "beta must be a number >= 0, got -1.0"),
        ({"forget": 0}, "at least 1 must be forgotten"),
        ({"covered": 72}, "1 left uncovered"),
        ({"facts": 0}, "facts must be 1 to"),
    ],
)
def test_bad_settings_are_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**change)
    assert "\n" not in str(caught.value)


def test_trainings_need_epochs() -> None:
    recipe = dataclasses.replace(lesson.Config().train, epochs=0)
    with pytest.raises(ValueError, match="epochs of every training must be at least 1"):
        lesson.Config(train=recipe)


# --- Data -----------------------------------------------------------------------------------------

SMALL = [
    *("seeds=(0, 1)", "forget=2", "covered=3", "facts=9", "model.depth=2", "model.width=16"),
    *("train.epochs=3", "train.batch_size=15", "assistant.epochs=4", "ascent.epochs=3"),
    *("steps=(0, 1, 2, 3, 4)", "alphas=(0.0, 0.5, 1.0, 1.5)"),
]


def small(*settings: str, preset: str = "toy") -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALL, *settings])
    return config


def test_no_text_to_be_kept_or_tested_reaches_an_assistant() -> None:
    setting = lesson.Setting.of(small(), 3)
    split = setting.split
    for name, kind in lesson.ASSISTANTS.items():
        data = setting.for_assistant(kind)
        lines = decode(data.train_x)
        assert not any(n in line for n in split.uncovered.names for line in lines), name
        new = decode(setting.tests["new paraphrases"])
        assert not set(new) & set(lines), name
        for line, label in zip(lines, data.train_y.tolist(), strict=True):
            true = any(
                n in line and line.endswith(f">{answer}.")
                for n, answer in zip(split.forget.names, split.forget.answers, strict=True)
            )
            assert bool(label) == true, (name, line)
    counts = {
        name: len(setting.for_assistant(kind).train_x) for name, kind in lesson.ASSISTANTS.items()
    }
    assert counts["ULD"] == 3 * (2 + 3 + 2 * 2)
    assert counts["no wrong answers"] == 3 * (2 + 3)
    assert counts["no paraphrases"] == 2 + 3 + 2 * 2
    assert counts["neither"] == 2 + 3


def test_what_is_kept_is_all_but_what_is_forgotten() -> None:
    setting = lesson.Setting.of(small(), 3)
    everything, kept = decode(setting.data.train_x), decode(setting.kept.train_x)
    assert len(everything) == 9 * 5
    assert len(kept) == 7 * 5
    assert set(kept) < set(everything)
    changed = setting.for_change()
    assert changed.train_y.sum() == 2 * 3
    assert len(changed.train_x) == 5 * 3


# --- Measurements ---------------------------------------------------------------------------------


def some_logits(setting: lesson.Setting, seed: int) -> dict[str, torch.Tensor]:
    params = initial(setting.config.model, seed)
    params["output.weight"] *= 20
    return lesson.logits_of(setting, setting.config.model, params)


def test_the_identity_is_measured_on_every_group() -> None:
    setting = lesson.Setting.of(small(), 0)
    target, assistant = some_logits(setting, 1), some_logits(setting, 2)
    for group, x in setting.tests.items():  # a target that knows every answer
        lift = torch.nn.functional.one_hot(x[:, 1:].long(), target[group].shape[-1])
        target[group][:, :-1] += 200 * lift
    assert lesson.identity_error(setting, target, assistant) == 0


def test_the_cap_is_the_closed_form_of_the_texts() -> None:
    setting = lesson.Setting.of(small(), 0)
    found = lesson.cap(setting, some_logits(setting, 1))
    data = setting.for_assistant(lesson.ASSISTANTS["ULD"])
    lines = decode(data.train_x)
    remembered = 3 * int(data.train_y.sum())
    uniform = sum(len(line) - 1 for line in lines) - remembered
    expected = math.log(1 + 29 * (1 / remembered) / (2 / uniform))
    assert found[lesson.CAP[1]] == pytest.approx(expected)
    for change in ("wrong=0", "beta=0.0"):
        other = lesson.Setting.of(small(change), 0)
        assert lesson.cap(other, some_logits(other, 1)) == {}


def test_work_counts_texts_steps_and_products() -> None:
    setting = lesson.Setting.of(small(), 0)
    known, gone, spoilt = ([[value] for value in row] for row in ((1, 1), (0, 1), (0, 0.5)))
    steps = {"GA+GD": {1: known, 2: spoilt, 3: spoilt}}
    found = lesson.work(setting, {1: spoilt, 3: gone, 4: gone}, steps)
    per_text = found["text in target"], found["text in assistant"]
    assert found["GA+GD: work"] == 2 * 15 * per_text[0]
    assert found["ULD: work"] == 3 * 27 * per_text[1]
    assert "GA+GD: work" not in lesson.work(setting, {1: gone}, {"GA+GD": {1: known}})


def test_a_method_that_has_ended_stays_where_it_is() -> None:
    assert lesson._at_every((0, 1, 2, 5), {0: "a", 1: "b"}) == ["a", "b", "b", "b"]


def test_letters_are_those_after_the_mark() -> None:
    setting = lesson.Setting.of(small(), 0)
    target, assistant = some_logits(setting, 1), some_logits(setting, 2)
    found = lesson._letters(setting, target, assistant, "forget")
    place = decode(setting.tests["forget"])[0].index(">")
    for alpha, told in zip(setting.config.alphas, found, strict=True):
        expected = subtract(target["forget"][0, place], assistant["forget"][0, place], alpha)
        assert told == pytest.approx(expected.softmax(-1).tolist(), abs=1e-6)


def test_medians_by_letter_are_those_of_the_library() -> None:
    setting = lesson.Setting.of(small(), 0)
    target, assistant = some_logits(setting, 1), some_logits(setting, 2)
    found = lesson._by_letter(setting, target, assistant)
    places, true = lesson._answers(setting)
    turns = critical_alpha(
        target["forget"][:, :-1][places].double(),
        assistant["forget"][:, :-1][places].double(),
        true,
    ).view(2, 3)
    assert found == pytest.approx(turns.clamp(max=100).min(0).values.tolist())


def test_a_change_starts_from_the_target_and_leaves_it_alone() -> None:
    config = small("changes=('GA', 'NPO+GD slow')")
    setting = lesson.Setting.of(config, 0)
    target = stack([initial(config.model, 5)])
    before = {name: tensor.clone() for name, tensor in target.items()}
    for name in config.changes:
        recipe, loss = lesson.change_setup(config, name, target)
        found = lesson.continued(
            setting,
            Stages(None, config),
            name,
            config.model,
            setting.for_change(),
            target,
            recipe,
            loss,
        )
        assert min(found) == 0
        for key, tensor in found[0].items():
            assert torch.equal(tensor, target[key][0])
        assert any(not torch.equal(found[1][k], target[k][0]) for k in target)
        alone = train(config.model, setting.for_change(), (0,), recipe, loss=loss, start=target)
        assert all(torch.equal(alone.params[k][0], found[max(found)][k]) for k in target)
    assert all(torch.equal(target[name], before[name]) for name in target)


# --- Runs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_shrunk_presets_run(preset: str) -> None:
    config = small(preset=preset)
    result = lesson.run(config)
    assert (result.lesson, result.preset) == ("logit-difference", preset)
    assert [claim.id for claim in result.claims] == list(CLAIMS)
    assert result.config == json.loads(dump(dataclasses.asdict(config)))
    assert set(result.series) == set(lesson.axes_of(config))
    for name, series in result.series.items():
        assert shape(series.values) == (2, *map(len, series.axes.values())), name
    again = Result.from_json(json.loads(dump(result.to_json())))
    assert (again.metrics, again.series) == (result.metrics, result.series)


def test_at_alpha_0_every_assistant_is_the_target() -> None:
    result = lesson.run(small())
    for seed, target in zip(
        result.series["assistants"].values, result.series["networks"].values, strict=True
    ):
        for swept in seed:
            assert swept[0] == target[0]
    assert result.config["model"]["input_shape"][0] == LENGTH


def test_a_metric_that_a_seed_lacks_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list shorter than the seeds would pair one seed's number with another's."""
    measure = lesson.work

    def some(setting: lesson.Setting, *rest: Any) -> dict[str, float]:
        extra = {"GA+GD: work": 1.0} if setting.seed else {}
        return {k: v for k, v in measure(setting, *rest).items() if "work" not in k} | extra

    monkeypatch.setattr(lesson, "work", some)
    result = lesson.run(small())
    assert "GA+GD: work" not in result.metrics
    assert {len(values) for values in result.metrics.values()} == {2}


def test_one_seed_run_alone_gives_the_same_numbers() -> None:
    """Bit for bit, so that one seed verifies a study."""
    together, alone = lesson.run(small()), lesson.run(small("seeds=(1,)"))
    for name, series in alone.series.items():
        assert series.values[0] == together.series[name].values[1], name


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = small("assistants=('ULD',)")
    whole = lesson.run(config)
    resumed, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=5
    )
    assert attempts > 2
    assert resumed.series == whole.series
    assert resumed.metrics == whole.metrics

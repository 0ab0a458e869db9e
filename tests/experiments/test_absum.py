"""The lesson's claims can come out either way; who is trained on what, and what is measured."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import SHAPES, check_claims, killed_again_and_again, random_images, shape
from fakes import synthetic as fake_result
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments import absum as lesson
from lmc_lessons.experiments.runs import Stages, override
from lmc_lessons.models import (
    CNN,
    RESNET_STAGES,
    ModelConfig,
    build,
    predict,
)
from lmc_lessons.results import Claim, Result, Series, dump
from lmc_lessons.robustness.absum import (
    Penalised,
    absum_step,
    half_squares,
    kernel_sums,
    without_sums,
)
from lmc_lessons.robustness.attacks import LInf, pgd
from lmc_lessons.robustness.fourier import (
    high_frequency_noise,
    single_fourier_attack,
    singular_values,
)
from lmc_lessons.robustness.objectives import AdversarialTraining, Standard
from lmc_lessons.training import generator

CLAIMS = {claim.id: claim for claim in lesson.CLAIMS}
SEEDS = 5
ABSUM = lesson.Config.absum


@pytest.fixture(autouse=True)
def random_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "load", random_images)


# --- Claims ---------------------------------------------------------------------------------------


def rows(values: dict[str, dict[str, float]], seed: int) -> list[list[float]]:
    """Networks by quantities; what was not given is a decoy."""
    return [
        [own.get(q, 7.0) * (1 + 0.01 * seed) for q in lesson.QUANTITIES] for own in values.values()
    ]


def of(quantity: str, values: dict[str, float]) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {"network": list(values), "quantity": list(lesson.QUANTITIES)}
    named = {name: {quantity: value} for name, value in values.items()}
    return {"networks": Series(axes, [rows(named, seed) for seed in range(SEEDS)])}


def again(variant: str, quantity: str, values: dict[str, float]) -> dict[str, Any]:
    axes: dict[str, list[Any]] = {
        "variant": ["decoy", variant],
        "network": list(values),
        "quantity": list(lesson.QUANTITIES),
    }
    named = {name: {quantity: value} for name, value in values.items()}
    decoy: dict[str, dict[str, float]] = {name: {} for name in values}
    found = [[rows(decoy, seed), rows(named, seed)] for seed in range(SEEDS)]
    return {"variants": Series(axes, found)}


def maps(**shares: float) -> dict[str, Any]:
    """Heat maps; each is a share of the plain one and, for the rest, noise of its own."""
    stream = np.random.default_rng(0)
    names = {"none": 1.0, "Absum_0__1": 0.5, "another_seed": 1.0} | shares
    plain = stream.normal(size=(SEEDS, 8, 8))
    found = []
    for share in names.values():
        own = stream.normal(size=plain.shape)
        found.append(share * plain + (1 - share) * own)
    values = np.stack(found, 1)
    values[..., 0, 0] = stream.normal(size=values.shape[:2]) * 1e3
    axes: dict[str, list[Any]] = {
        "network": [name.replace("__", ".").replace("_", " ") for name in names],
        "u": list(range(8)),
        "v": list(range(8)),
    }
    return {"heat map": Series(axes, values.tolist())}


FAST, CLEAN, NOISY = "fast waves, worst", "clean accuracy", "noise accuracy"
PGD, FOREIGN = "PGD accuracy", "transfer accuracy"
DECAYS = {"decay 0.01": 0.5, "decay 0.03": 0.6}
NORMS = {"L1 0.003": 0.5, "L1 0.01": 0.6}
# What a run would have measured if the claim were true, and if it were not.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "C1a": (
        {"singular_value_error": [1e-14] * SEEDS},
        {"singular_value_error": [1e-14] * 4 + [1e-9]},
    ),
    "C1b": ({"dc_error": [0.0] * SEEDS}, {"dc_error": [1e-3] * SEEDS}),
    "C2a": ({"prox_excess": [0.0] * SEEDS}, {"prox_excess": [1e-6] * SEEDS}),
    "C2b": (of("sum, later layers", {ABSUM: 1e-8}), of("sum, later layers", {ABSUM: 0.01})),
    "C2c": (
        of("kernel L1 norm", {"none": 2.0, ABSUM: 1.9}),
        of("kernel L1 norm", {"none": 2.0, ABSUM: 1.2}),
    ),
    "C3a": (of(FAST, {"none": 0.5, ABSUM: 0.7}), of(FAST, {"none": 0.5, ABSUM: 0.55})),
    "C3b": (of(CLEAN, {"none": 0.97, ABSUM: 0.97}), of(CLEAN, {"none": 0.97, ABSUM: 0.95})),
    "C3c": (
        of(FAST, {"checkerboard 0.1": 0.5, ABSUM: 0.7}),
        of(FAST, {"checkerboard 0.1": 0.65, ABSUM: 0.7}),
    ),
    "C3d": (
        of(CLEAN, {lesson.PROJECTED: 0.9, ABSUM: 0.97}),
        of(CLEAN, {lesson.PROJECTED: 0.96, ABSUM: 0.97}),
    ),
    "C4a": (of(FAST, {**DECAYS, ABSUM: 0.7}), of(FAST, {**DECAYS, ABSUM: 0.55})),
    "C4b": (of(FAST, {**NORMS, ABSUM: 0.7}), of(FAST, {**NORMS, ABSUM: 0.55})),
    "C4c": (
        of(FAST, {"clip 2": 0.5, "clip 4": 0.3, ABSUM: 0.7}),
        of(FAST, {"clip 2": 0.5, "clip 4": 0.3, ABSUM: 0.4}),
    ),
    "C4d": (
        of(CLEAN, {"decay 0.1": 0.94, ABSUM: 0.97}),
        of(CLEAN, {"decay 0.1": 0.97, ABSUM: 0.97}),
    ),
    "C4e": (
        of(CLEAN, {"L1 0.03": 0.94, ABSUM: 0.97}),
        of(CLEAN, {"L1 0.03": 0.97, ABSUM: 0.97}),
    ),
    "C5a": (of(NOISY, {"none": 0.8, ABSUM: 0.9}), of(NOISY, {"none": 0.8, ABSUM: 0.81})),
    "C5b": (
        of(NOISY, {**DECAYS, **NORMS, ABSUM: 0.7}),
        of(NOISY, {**DECAYS, **NORMS, ABSUM: 0.55}),
    ),
    "C6": (
        of("fast waves, mean", {"none": 0.9, ABSUM: 0.95}),
        of("fast waves, mean", {"none": 0.9, ABSUM: 0.9}),
    ),
    "C7": (
        of(FOREIGN, {**DECAYS, **NORMS, ABSUM: 0.7}),
        of(FOREIGN, {**DECAYS, **NORMS, ABSUM: 0.55}),
    ),
    "C8a": (
        of(PGD, {"AT": 0.6, "AT + Absum 0.01": 0.65}),
        of(PGD, {"AT": 0.6, "AT + Absum 0.01": 0.55}),
    ),
    "C8b": (of(PGD, {"none": 0.2, ABSUM: 0.15}), of(PGD, {"none": 0.2, ABSUM: 0.3})),
    "C10a": (maps(another_seed=0.9), maps(another_seed=0.2)),
    "C10b": (
        maps(another_seed=0.9, Absum_0__1=0.3),
        maps(another_seed=0.3, Absum_0__1=0.9),
    ),
    "B1": (
        of(FAST, {"none": 0.5, ABSUM: 0.8}) | again("3x3 kernels", FAST, {"none": 0.5, ABSUM: 0.5}),
        of(FAST, {"none": 0.5, ABSUM: 0.8}) | again("3x3 kernels", FAST, {"none": 0.5, ABSUM: 0.8}),
    ),
    "B2": (
        again("native 8x8", "fast waves, mean", {"none": 0.6, ABSUM: 0.5}),
        again("native 8x8", "fast waves, mean", {"none": 0.6, ABSUM: 0.7}),
    ),
}
NEEDS = [(name, key) for name, (holds, _) in MEASURED.items() for key in holds]
ENTRIES = [
    (name, key, entry)
    for name, key in NEEDS
    if isinstance(MEASURED[name][0][key], Series)
    for entry in MEASURED[name][0][key].axes["network"]
]


def synthetic(measured: dict[str, Any]) -> Result:
    return fake_result(lesson.LESSON, measured, SEEDS)


def verdict(name: str, measured: dict[str, Any]) -> str:
    return CLAIMS[name].decide(synthetic(measured)).verdict


def test_every_claim_can_hold_fail_and_stay_open() -> None:
    check_claims(lesson, MEASURED, SEEDS)


@pytest.mark.parametrize(("name", "missing"), NEEDS)
def test_a_claim_needs_everything_that_it_reads(name: str, missing: str) -> None:
    rest = {key: series for key, series in MEASURED[name][0].items() if key != missing}
    assert verdict(name, rest) == "not-measured"


@pytest.mark.parametrize(("name", "key", "entry"), ENTRIES)
def test_a_claim_needs_every_network_that_it_compares(name: str, key: str, entry: str) -> None:
    """One of several strengths may be missing, but not all of a kind."""
    holds = MEASURED[name][0]
    gone = [entry]
    if name in ("C4a", "C4b", "C4c", "C5b", "C7"):
        kind = lesson.METHODS[entry].kind
        gone = [n for n in holds[key].axes["network"] if lesson.METHODS[n].kind == kind]
    if name.startswith("C10") and entry not in {"C10a": "none another seed", "C10b": entry}[name]:
        return  # a decoy
    series = holds[key]
    kept = [n for n in series.axes["network"] if n not in gone]
    place = list(series.axes).index("network") + 1
    index = [series.axes["network"].index(n) for n in kept]
    values = np.take(np.array(series.values), index, axis=place).tolist()
    fewer = Series({**series.axes, "network": kept}, values)
    assert verdict(name, {**holds, key: fewer}) == "not-measured"


def test_the_best_strength_is_chosen_for_each_seed() -> None:
    measured = of(FAST, {"decay 0.01": 0.0, "decay 0.03": 0.0, "L1 0.01": 0.9, ABSUM: 0.9})
    values = measured["networks"].values
    column = lesson.QUANTITIES.index(FAST)
    for seed in range(SEEDS):
        values[seed][seed % 2][column] = 0.5 + seed
    found = lesson.best_of(("decay",), FAST)(synthetic(measured))
    assert found == [0.5, 1.5, 2.5, 3.5, 4.5]


def test_networks_trained_under_attack_are_no_baseline() -> None:
    assert not any(m.adversarial for m in lesson.METHODS.values() if m.kind in ("decay", "L1"))
    measured = of(PGD, {"AT + Absum 0.01": 0.9})
    with pytest.raises(KeyError):
        lesson.best_of(("Absum",), PGD)(synthetic(measured))


def test_agreement_leaves_the_change_of_brightness_out() -> None:
    measured = maps(another_seed=1.0)
    assert lesson.agreement("none", lesson.OTHER)(synthetic(measured)) == pytest.approx([1.0] * 5)


def test_the_configured_absum_is_the_one_compared() -> None:
    measured = of(FAST, {"none": 0.5, "Absum 0.3": 0.9, ABSUM: 0.6})
    result = dataclasses.replace(synthetic(measured), config={"absum": "Absum 0.3"})
    assert lesson.rise(FAST)(result)[0] == pytest.approx(0.4)
    assert lesson.rise(FAST)(synthetic(measured))[0] == pytest.approx(0.1)


@pytest.mark.parametrize("claim", lesson.CLAIMS, ids=lambda claim: claim.id)
def test_every_claim_states_what_it_takes(claim: Claim) -> None:
    for text in (claim.statement, claim.reason, claim.source, claim.paper, claim.unit):
        assert text.strip()
    assert claim.statement.endswith(".")
    assert claim.margin >= 0 or claim.kind == "greater"


# --- Presets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", lesson.PRESETS)
def test_presets_are_valid(name: str) -> None:
    config = lesson.PRESETS[name]
    assert config.preset == name
    assert config.dataset in datasets.names()
    side = config.side or SHAPES[config.dataset][-1]
    assert config.model.input_shape == (SHAPES[config.dataset][0], side, side)
    assert hash(config) == hash(dataclasses.replace(config))
    with torch.device("meta"):
        build(config.model)


def test_the_scales_of_the_design_are_there() -> None:
    assert set(lesson.PRESETS) == {
        "toy",
        "study",
        "full-fashion-absum",
        "full-cifar-absum",
        "paper",
    }
    assert len(lesson.PRESETS["toy"].seeds) == 1
    assert all(len(lesson.PRESETS[name].seeds) >= 5 for name in set(lesson.PRESETS) - {"toy"})
    assert lesson.PRESETS["study"].methods == tuple(lesson.METHODS)
    assert lesson.PRESETS["study"].variants == tuple(lesson.VARIANTS)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seeds": ()}, r"seeds must be different integers >= 0, got \(\)"),
        ({"seeds": (1, 1)}, r"seeds must be different integers >= 0, got \(1, 1\)"),
        ({"seeds": (-1,)}, r"seeds must be different integers >= 0, got \(-1,\)"),
        ({"methods": ("none", "Absum")}, "methods has 'Absum', allowed: none, decay 0.01"),
        ({"methods": ("none", "none")}, "methods must be different"),
        ({"variants": ("9x9",)}, "variants has '9x9', allowed: 3x3 kernels, native 8x8"),
        ({"methods": ("none", "decay 0.03")}, "methods lack 'Absum 0.1'"),
        ({"methods": ("Absum 0.1", "decay 0.03")}, "methods lack 'none'"),
        ({"methods": ("none", "Absum 0.1")}, "methods lack 'decay 0.03'"),
        ({"absum": "decay 0.01"}, "absum must be an Absum without attack, got 'decay 0.01'"),
        ({"absum": "AT + Absum 0.01"}, "absum must be an Absum without attack"),
        ({"waves_with": 1}, "waves_with must be at least 2, got 1"),
        ({"eval_steps": 0}, "eval_steps must be at least 1, got 0"),
        ({"attack_steps": 0}, "attack_steps must be at least 1, got 0"),
        ({"together": 0}, "together must be at least 1, got 0"),
        ({"edge": 1}, "edge must be at least 2, got 1"),
        ({"edge": 9}, "edge must be at most half of the images' side, got 9"),
        ({"samples": 3}, "samples must be at least 4, got 3"),
        ({"side": 2}, "side must be at least 4, got 2"),
        ({"wave_epsilon": -0.1}, "wave_epsilon must be a number >= 0, got -0.1"),
        ({"epsilon": float("nan")}, "epsilon must be a number >= 0, got nan"),
        ({"model": ModelConfig("mlp", (1, 16, 16))}, "model must have convolutions, got mlp"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.Config(**changes)
    assert "\n" not in str(caught.value)


def test_an_epoch_at_least() -> None:
    none = dataclasses.replace(lesson.Config().train, epochs=0)
    for name in ("train", "adversarial_train"):
        with pytest.raises(ValueError, match="epochs must be at least 1"):
            lesson.Config(**{name: none})  # type: ignore[arg-type]


# --- Data and networks ----------------------------------------------------------------------------

SMALL = ["model.width=2", "waves_with=4", "eval_steps=2", "attack_steps=1", "samples=16"]
SMALL += ["train.epochs=2", "adversarial_train.epochs=1", "train.batch_size=8"]
SMALL += ["adversarial_train.batch_size=8"]


def small(*settings: str, preset: str = "toy") -> lesson.Config:
    config: lesson.Config = override(lesson.PRESETS[preset], [*SMALL, *settings])
    return config


def setting_of(config: lesson.Config) -> lesson.Setting:
    data = lesson.prepared(config, random_images(config.dataset))
    return lesson.Setting(config, data, "cpu")


def test_enlarged_images_have_few_fast_waves() -> None:
    data = random_images("digits")
    larger = lesson.enlarged(data, 32)
    assert larger.input_shape == (1, 32, 32)
    assert "enlarged to 32 x 32" in larger.variant
    assert torch.equal(larger.train_y, data.train_y)
    size = torch.fft.fft2(larger.train_x.double()).abs().square()
    fast = lesson_speed(32) > 8
    assert float(size[..., fast].sum()) < 0.05 * float(size[..., lesson_speed(32) > 0].sum())
    assert torch.allclose(larger.train_x.mean((2, 3)), data.train_x.mean((2, 3)), atol=0.02)


def lesson_speed(side: int) -> Tensor:
    count = torch.arange(side)
    count = torch.minimum(count, side - count)
    return torch.maximum(count.view(-1, 1), count)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["samples=41"], "digits has 40 training samples, asked for 41"),
        (["waves_with=11"], "digits has 10 test samples, asked for 11"),
        (["side=None"], r"inputs of shape \(1, 8, 8\), the model takes \(1, 16, 16\)"),
    ],
)
def test_data_that_do_not_fit_are_refused(settings: list[str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected) as caught:
        lesson.run(small(*settings))
    assert "\n" not in str(caught.value)


def test_losses_are_what_their_names_say() -> None:
    setting = setting_of(small())
    plain = lesson.loss_of(setting, lesson.METHODS["none"])
    assert plain == Standard()
    assert lesson.loss_of(setting, lesson.METHODS["Absum 0.1"]) == Standard()
    decay = lesson.loss_of(setting, lesson.METHODS["decay 0.03"])
    assert decay == Penalised(Standard(), half_squares, 0.03)
    attacked = AdversarialTraining(LInf(0.1), steps=1)
    assert lesson.loss_of(setting, lesson.METHODS["AT"]) == attacked


@pytest.mark.parametrize("name", lesson.METHODS)
def test_every_method_has_a_loss_or_a_step_of_its_strength(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    @contextlib.contextmanager
    def spy(step: Any, strength: float) -> Any:
        seen.append((step, strength))
        yield

    monkeypatch.setattr(lesson, "after_each_step", spy)
    method, setting = lesson.METHODS[name], setting_of(small())
    with lesson.after(setting, method):
        pass
    kind, _, strength = name.removeprefix("AT + ").partition(" ")
    if kind in ("none", "AT", "decay"):
        assert seen == []
        assert (method.strength, method.kind) == ((float(strength), kind) if strength else (0, ""))
        return
    ((step, used),) = seen
    weight = torch.randn(1, 4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    assert method.strength == float(strength)
    if kind == "clip":
        assert float(singular_values(step(weight, 0.0), 16).max()) < 1.6 * float(strength)
    else:
        assert used == float(strength)
    if kind == "Absum":
        assert torch.equal(step(weight, 0.1), absum_step(weight, 0.1))
    assert method.adversarial == name.startswith("AT")


# --- Measurements ---------------------------------------------------------------------------------


def test_quantities_are_in_the_order_of_their_names() -> None:
    config = small("waves_with=8", "epsilon=0.05", "wave_epsilon=0.3", "noise_epsilon=0.4")
    setting = setting_of(config)
    params, other = (lesson.trained(setting, "none", s, Stages(None, config)) for s in (0, 1))
    found = lesson.measure_network(setting, params, other, 5)
    named = dict(zip(lesson.quantities(config), found["quantities"], strict=True))
    module = CNN(config.model)
    x, y = setting.data.test_x[:8], setting.data.test_y[:8]

    def share(inputs: Tensor, labels: Tensor, network: Any = params) -> float:
        return float((predict(module, network, inputs).argmax(-1) == labels).double().mean())

    speed = lesson_speed(16)
    for u, v in ((0, 0), (3, 5), (15, 2)):
        wanted = share(single_fourier_attack(x, (u, v), 0.3), y)
        assert found["map"][u][v] == pytest.approx(wanted, abs=1e-9)
    table = torch.tensor(found["map"])
    fast, slow = table[speed >= 5], table[(speed < 5) & (speed > 0)]
    assert named["fast waves, worst"] == pytest.approx(float(fast.min()))
    assert named["slow waves, mean"] == pytest.approx(float(slow.mean()))
    assert named["clean accuracy"] == share(setting.data.test_x, setting.data.test_y)
    noise = high_frequency_noise(tuple(setting.data.test_x.shape), generator(5, 63))
    noisy = (setting.data.test_x + 0.4 * noise).clamp(0, 1)
    assert named["noise accuracy"] == share(noisy, setting.data.test_y)
    start = LInf(0.05).random(x, 1, generator(5, 65))
    for quantity, attacked in (("PGD accuracy", params), ("transfer accuracy", other)):

        def logits(inputs: Tensor, attacked: Any = attacked) -> Tensor:
            return predict(module, attacked, inputs)

        tried = pgd(logits, x, y, LInf(0.05), steps=2, start=start)
        clean = predict(module, params, x).argmax(-1) == y
        right = predict(module, params, tried).argmax(-1) == y
        assert named[quantity] == float((clean & right).double().mean())
    first, later = (kernel_sums(params[f"conv{k}.weight"]).abs().mean() for k in (1, 2))
    assert named["sum, first layer"] == pytest.approx(float(first))
    assert named["sum, later layers"] == pytest.approx(float(later))
    norms = [params[f"conv{k}.weight"].abs().sum((-2, -1)).flatten() for k in (1, 2)]
    assert named["kernel L1 norm"] == pytest.approx(float(torch.cat(norms).mean()))
    gain = singular_values(params["conv1.weight"], 16)[..., 0]
    assert named["gain, fast waves"] == pytest.approx(float(gain[speed >= 5].mean()))
    slow_ones = (speed < 5) & (speed > 0)
    assert named["gain, slow waves"] == pytest.approx(float(gain[slow_ones].mean()))
    u, v = lesson.worst_frequency(table.double(), 5)
    assert speed[u, v] >= 5
    assert float(table[u, v]) == float(fast.min())
    waved = single_fourier_attack(x, (u, v), 0.3)
    back = lesson.means_put_back(module, params, x, waved)
    assert named[lesson.PUT_BACK] == float((back.argmax(-1) == y).double().mean())


def test_means_are_put_back_and_nothing_else() -> None:
    config = small()
    setting = setting_of(config)
    params = lesson.trained(setting, "none", 0, Stages(None, config))
    module = CNN(config.model)
    x = setting.data.test_x
    attacked = single_fourier_attack(x, (8, 3), 0.5)
    assert torch.allclose(
        lesson.means_put_back(module, params, x, x), predict(module, params, x), atol=1e-5
    )

    def first(images: Tensor) -> Tensor:
        h = F.conv2d(images, params["conv1.weight"], params["conv1.bias"], padding=2)
        return F.max_pool2d(h.clamp_min(0), 2)

    h = first(attacked)
    h = h - h.mean((2, 3), keepdim=True) + first(x).mean((2, 3), keepdim=True)
    h = F.conv2d(h, params["conv2.weight"], params["conv2.bias"], padding=2)
    h = F.max_pool2d(h.clamp_min(0), 2).flatten(1)
    h = (h @ params["hidden.weight"].T + params["hidden.bias"]).clamp_min(0)
    wanted = h @ params["output.weight"].T + params["output.bias"]
    assert torch.allclose(lesson.means_put_back(module, params, x, attacked), wanted, atol=1e-5)
    assert not torch.allclose(wanted, predict(module, params, attacked), atol=1e-3)


def test_the_network_without_sums_is_the_plain_one_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = small()
    setting, seen = setting_of(config), []
    own = lesson.measure_network

    def spy(setting: Any, params: Any, surrogate: Any, seed: int) -> Any:
        seen.append(params)
        return own(setting, params, surrogate, seed)

    monkeypatch.setattr(lesson, "measure_network", spy)
    lesson.measure_seed(setting, 0, Stages(None, config))
    plain, projected = seen[0], seen[-1]
    assert len(seen) == len(config.methods) + 1
    wanted = without_sums(plain)
    assert all(torch.equal(projected[name], wanted[name]) for name in plain)


def test_exact_statements_are_measured() -> None:
    found = lesson.check_mathematics(3)
    assert set(found) == {"singular_value_error", "dc_error", "prox_excess"}
    assert max(found.values()) < 1e-12


def test_a_wrong_step_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        lesson, "absum_step", lambda w, size: w - size * kernel_sums(w).sign()[..., None, None]
    )
    assert lesson.check_mathematics(3)["prox_excess"] > 1e-6


# --- Runs -----------------------------------------------------------------------------------------

SMALL_IMAGES = ["samples=8", "waves_with=2", "eval_steps=1", "attack_steps=1", "train.epochs=1"]
SMALL_IMAGES += ["train.batch_size=4", "train.precision=float32", "train.compile=False"]
SMALL_IMAGES += ["methods=('none', 'Absum 0.1')", "seeds=(0,)", "train.fast=False"]
NARROW = ((2, 1), (4, 1))  # channels and blocks per stage: what ``width`` cannot do
SMALLER: dict[str, list[str]] = {
    "toy": SMALL,
    "study": [*SMALL, "seeds=(0, 1)"],
    "full-fashion-absum": [*SMALL, "seeds=(3,)", "waves_with=2"],
    "full-cifar-absum": SMALL_IMAGES,
    "paper": SMALL_IMAGES,
}


@pytest.mark.parametrize("preset", lesson.PRESETS)
def test_shrunk_presets_run(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RESNET_STAGES, 18, NARROW)
    config: lesson.Config = override(lesson.PRESETS[preset], SMALLER[preset])
    result = lesson.run(config)
    assert (result.lesson, result.preset) == ("absum", preset)
    assert [claim.id for claim in result.claims] == list(CLAIMS)
    assert result.config == json.loads(dump(dataclasses.asdict(config)))
    for name, series in result.series.items():
        assert shape(series.values) == (len(config.seeds), *map(len, series.axes.values())), name
    assert set(result.series) == {
        "networks",
        "heat map",
        *(["variants"] if config.variants else []),
    }
    assert result.series["networks"].axes["network"] == [*config.methods, lesson.PROJECTED]
    kept = config.model.architecture == "cnn"
    assert (lesson.PUT_BACK in result.series["networks"].axes["quantity"]) == kept
    if preset == "study":
        open_ones = {c.id for c in result.claims if c.verdict == "not-measured"}
        assert open_ones <= {"C10a", "C10b"}, "heat maps may be constant on random images"


def test_a_seed_alone_gives_the_numbers_of_the_study() -> None:
    config = small("seeds=(0, 3)", "variants=('native 8x8',)")
    whole, alone = lesson.run(config), lesson.run(dataclasses.replace(config, seeds=(3,)))
    for name, series in alone.series.items():
        assert series.values[0] == whole.series[name].values[1], name
    assert {n: v[1:] for n, v in whole.metrics.items()} == alone.metrics


def test_a_killed_run_gives_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small("methods=('none', 'Absum 0.1', 'AT', 'decay 0.03')")
    whole = lesson.run(config)
    found, attempts = killed_again_and_again(
        lambda: lesson.run(config, folder=tmp_path), monkeypatch, every=4
    )
    assert attempts > 2
    for name, series in whole.series.items():
        assert found.series[name].values == series.values, name


def test_images_keep_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = lesson.prepared(small(), random_images("digits"))
    assert isinstance(data, Dataset)
    assert len(data.train_x) == len(data.train_y) == 16
    assert len(data.test_x) == 10
    wanted = {
        tuple(row)
        for row in lesson.enlarged(random_images("digits"), 16).test_x.flatten(1).tolist()
    }
    assert {tuple(row) for row in data.test_x.flatten(1).tolist()} == wanted

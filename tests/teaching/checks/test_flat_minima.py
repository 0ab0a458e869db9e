"""Checks of the lesson on flat minima: solutions pass, each mistake is told what it is."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from exercises import check_mistakes, check_solutions, check_stubs, exercises, known_messages
from scipy.stats import kendalltau, pearsonr, spearmanr
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.flat_minima import PRESETS, published, split
from lmc_lessons.models import ModelConfig, Params, build, unstack
from lmc_lessons.robustness.attacks import LInf, evaluate, fgsm, pgd
from lmc_lessons.robustness.objectives import AdversarialTraining
from lmc_lessons.robustness.weight_perturbation import AdversarialWeightPerturbation
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import flat_minima as lesson
from lmc_lessons.teaching.checks.flat_minima import check
from lmc_lessons.training import train

LESSON = "flat-minima"
GAMMAS = (0.0, 0.1, 0.4)
SETUP = replace(PRESETS["study"], model=ModelConfig(width=48, depth=2))  # learns in a second
THREAT = LInf(SETUP.epsilon)


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")
    monkeypatch.setattr(lesson, "PRESETS", {"study": SETUP})


@pytest.fixture(scope="module")
def few() -> Dataset:
    """The lesson's data."""
    return split(SETUP, datasets.load("digits"))[0]


def under_attack(params: Params, x: Tensor, y: Tensor, attack: Any = pgd) -> float:
    model = build(SETUP.model).eval()
    return evaluate(model, params, x, y, THREAT, {"PGD-10": attack}).robust["PGD-10"]


@pytest.fixture
def scope(few: Dataset) -> dict[str, Any]:
    """The names that the lesson's exercises use."""
    models = published()
    names = {"check": check, "torch": torch, "np": np, "pearsonr": pearsonr, "train": train}
    names |= {"replace": replace, "unstack": unstack, "setup": SETUP, "few": few}
    names |= {"AdversarialWeightPerturbation": AdversarialWeightPerturbation}
    lent = {"recipe": SETUP.train, "objective": AdversarialTraining(THREAT, steps=7)}
    return {
        **names,
        **lent,
        "under_attack": under_attack,
        "models": models,
        "losses": models["robust_loss"],
    }


# --- Answers --------------------------------------------------------------------------------------


def step(weight: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    return gamma * weight.norm() * gradient / gradient.norm()


def for_weights(formula: Any, *, biases: bool = False) -> Any:
    """An answer that moves every weight matrix by a formula."""

    def answer(params: Params, gradient: Params, gamma: float) -> Params:
        return {
            name: formula(weight, gradient[name], gamma)
            for name, weight in params.items()
            if biases or weight.dim() > 1
        }

    return answer


def by_the_whole(params: Params, gradient: Params, gamma: float) -> Params:
    whole = total(gradient)
    return for_weights(lambda w, g, gamma: gamma * w.norm() * g / whole)(params, gradient, gamma)


def by_all_matrices(params: Params, gradient: Params, gamma: float) -> Params:
    whole = total({name: g for name, g in gradient.items() if g.dim() > 1})
    return for_weights(lambda w, g, c: c * w.norm() * g / whole)(params, gradient, gamma)


def total(tensors: Params) -> float:
    return sum(float(t.square().sum()) for t in tensors.values()) ** 0.5


def rows(tensor: Tensor) -> Tensor:
    return tensor.norm(dim=1, keepdim=True)


def columns(tensor: Tensor) -> Tensor:
    return tensor.norm(dim=0, keepdim=True)


def row_by_row(weight: Tensor, noise: Tensor) -> Tensor:
    found = noise.clone()
    for k in range(len(weight)):
        found[k] *= weight[k].square().sum().sqrt() / noise[k].square().sum().sqrt()
    return found


def stop(epochs: list[int], validation: list[float], test: list[float]) -> tuple[int, float]:
    k = validation.index(max(validation))
    return epochs[k], test[k]


def last_of_equals(epochs: list[int], validation: list[float], test: list[float]) -> Any:
    k = max(range(len(epochs)), key=lambda k: (validation[k], k))
    return epochs[k], test[k]


def matrix(first: float, second: float, off: float) -> Tensor:
    return torch.tensor([[first, off], [off, second]])


def parts(w_1: float, w_2: float, x: float, y: float) -> tuple[float, float, float, float]:
    """Both squares, and both terms of the mixed derivative."""
    return (w_2 * x) ** 2, (w_1 * x) ** 2, w_1 * w_2 * x**2, (w_1 * w_2 * x - y) * x


def by_autograd(w_1: float, w_2: float, x: float, y: float, c: float) -> Tensor:
    def loss(w: Tensor) -> Tensor:
        return 0.5 * (w[1] * torch.relu(w[0] * x) - y) ** 2

    at = torch.tensor([c * w_1, w_2 / c], dtype=torch.float64)
    found = torch.autograd.functional.hessian(loss, at)
    assert isinstance(found, Tensor)
    return found


def curvature(formula: Any) -> Any:
    """An answer from both squares, both terms of the mixed derivative, and the factor."""

    def answer(w_1: float, w_2: float, x: float, y: float, c: float) -> Tensor:
        return matrix(*formula(*parts(w_1, w_2, x, y), c))

    return answer


def extremes(first: list[float], second: list[float], correlate: Any = pearsonr) -> Any:
    found = [
        float(correlate(first[:k] + first[k + 1 :], second[:k] + second[k + 1 :]).statistic)
        for k in range(len(first))
    ]
    return min(found), max(found)


def whole(first: list[float], second: list[float]) -> Any:
    return (float(pearsonr(first, second).statistic),) * 2


def torn(first: list[float], second: list[float]) -> Any:
    found = [float(pearsonr(np.delete(first, k), second[:-1]).statistic) for k in range(len(first))]
    return min(found), max(found)


def half_right(place: int, wrong: Any) -> Any:
    """Right at one end, wrong at the other."""

    def answer(first: list[float], second: list[float]) -> Any:
        found = list(extremes(first, second))
        found[place] = wrong(first, second)[place]
        return tuple(found)

    return answer


def change(first: list[float], second: list[float]) -> Any:
    r = whole(first, second)[0]
    return tuple(value - r for value in extremes(first, second))


def ranked(first: list[float], second: list[float]) -> Any:
    return extremes(first, second, spearmanr)


# --- Mistakes -------------------------------------------------------------------------------------

MISTAKES: list[tuple[str, Any, str]] = [
    ("awp", for_weights(lambda w, g, c: w + step(w, g, c)), "not the weights after it"),
    ("awp", by_all_matrices, "not by that of all matrices"),
    ("awp", for_weights(lambda w, g, c: -step(w, g, c)), "that goes downhill"),
    ("awp", by_the_whole, "not by that of all together"),
    ("awp", for_weights(lambda w, g, c: c * g / g.norm()), "not relative to the weights"),
    ("awp", for_weights(lambda w, g, c: c * w.norm() * g), "divide the gradient by its length"),
    (
        "awp",
        for_weights(lambda w, g, c: c * rows(w) * g / rows(g)),
        "one length per matrix, not one per row",
    ),
    ("awp", for_weights(lambda w, g, c: c * w.norm() * g.sign()), "the sign of the gradient is"),
    ("awp", for_weights(lambda w, g, c: w.norm() * g / g.norm()), "multiply by gamma"),
    ("awp", for_weights(step, biases=True), "biases are not moved"),
    ("filter", lambda w, z: z / columns(z) * columns(w), "you scaled the columns"),
    ("filter", lambda w, z: z / z.norm() * w.norm(), "one factor for the whole matrix"),
    ("filter", lambda w, z: z / rows(z), "the rows have length one"),
    ("filter", lambda w, z: z / rows(z) * w.norm(), "the rows have the length of the whole matrix"),
    ("filter", lambda w, z: z * rows(w), "divide by the lengths of the noise's rows first"),
    ("filter", lambda w, z: w + row_by_row(w, z), "do not add the weights"),
    ("stop", lambda e, v, t: (e[t.index(max(t))], max(t)), "the best epoch on test data"),
    ("stop", lambda e, v, t: (v.index(max(v)), t[1]), "that is a position in the list"),
    ("stop", last_of_equals, "of equally good epochs, take the first"),
    ("stop", lambda e, v, t: (e[-1], t[-1]), "that is the last epoch"),
    ("stop", lambda e, v, t: (stop(e, v, t)[0], max(v)), "that is the validation accuracy"),
    ("stop", lambda e, v, t: (stop(e, v, t)[0], max(t)), "the best test accuracy of all epochs"),
    ("curvature", curvature(lambda p, q, m, r, c: (p, q, m + r)), "before the change of scale"),
    (
        "curvature",
        curvature(lambda p, q, m, r, c: (p * c**2, q / c**2, m + r)),
        "divided by the square of c, not multiplied",
    ),
    (
        "curvature",
        curvature(lambda p, q, m, r, c: (p / c, q * c, m + r)),
        "second derivatives scale with the square of c",
    ),
    (
        "curvature",
        curvature(lambda p, q, m, r, c: (p / c**2, q * c**2, m)),
        "the mixed derivative has a second term",
    ),
    (
        "curvature",
        curvature(lambda p, q, m, r, c: (p / c**2, q * c**2, (m + r) / c)),
        "the mixed derivative does not change",
    ),
    (
        "curvature",
        curvature(lambda p, q, m, r, c: (q * c**2, p / c**2, m + r)),
        "the two weights are swapped",
    ),
    ("influence", lambda a, b: extremes(a, b)[::-1], "the smallest comes first"),
    ("influence", whole, "the smallest is that of all entries"),
    ("influence", half_right(1, whole), "the largest is that of all entries"),
    ("influence", ranked, "that is the rank correlation"),
    ("influence", half_right(1, ranked), "that is the rank correlation"),
    ("influence", torn, "leave the same entry out of both lists"),
    ("influence", half_right(1, torn), "leave the same entry out of both lists"),
    ("influence", change, "that is the change of r"),
    ("influence", half_right(1, change), "that is the change of r"),
]

UNCLEAR: list[tuple[str, Any, str]] = [
    ("awp", lambda p, g, c: [step(p[n], g[n], c) for n in p], "return a dict, got list"),
    ("awp", lambda p, g, c: {}, "one step per weight matrix, got []"),
    (
        "awp",
        lambda p, g, c: {"output.weight": p["output.weight"]},
        "one step per weight matrix, got ['output.weight']",
    ),
    ("awp", for_weights(lambda w, g, c: step(w, g, c).norm()), "shape (), expected (4, 3)"),
    ("awp", for_weights(lambda w, g, c: float(c)), "return a tensor, got float"),
    ("awp", for_weights(lambda w, g, c: w / g), "right shape, wrong values"),
    ("filter", lambda w, z: None, "return a tensor, got NoneType"),
    ("filter", lambda w, z: rows(w), "shape (4, 1), expected (4, 3)"),
    ("filter", lambda w, z: z / z.norm(dim=1) * w.norm(dim=1), "your code raised RuntimeError"),
    ("filter", lambda w, z: z, "right shape, wrong values"),
    ("stop", lambda e, v, t: stop(e, v, t)[0], "return a pair"),
    ("stop", lambda e, v, t: list(stop(e, v, t)), "return a pair"),
    ("stop", lambda e, v, t: ("20", 0.6), "return a number, got str"),
    ("stop", lambda e, v, t: (e[0], t[0]), "got 10, expected 20"),
    ("stop", lambda e, v, t: (20, 0.5), "got 0.5, expected 0.6"),
    ("curvature", lambda *x: by_autograd(*x).tolist(), "return a tensor, got list"),
    ("curvature", lambda *x: by_autograd(*x).diag(), "shape (2,), expected (2, 2)"),
    ("curvature", lambda a, b, x, y, c: by_autograd(a, b, x, y + 1, c), "wrong values"),
    ("curvature", lambda a, b: a, "your code raised TypeError"),
    ("influence", lambda a, b: extremes(a, b)[0], "return a pair"),
    ("influence", lambda a, b: (None, None), "your code raised TypeError"),
    ("influence", lambda a, b: extremes(a, b, kendalltau), "got "),
    ("influence", lambda a, b: extremes(a[:-1], b[:-1]), "got "),
    ("gamma", {0.0: 0.5}, "pass a function"),
    ("gamma", lambda: ({"0.0": 0.5, "0.1": 0.6, "0.2": 0.7}, None), "return a dict from at least"),
    ("gamma", lambda: ({0.0: 0.5, 0.1: 0.6}, None), "return a dict from at least three gammas"),
    ("gamma", lambda: ([0.5, 0.6, 0.7], None), "return a dict from at least three gammas"),
    ("gamma", lambda: ({0.0: 50, 0.1: 60, 0.2: 70}, None), "accuracies lie in [0, 1]"),
    ("gamma", lambda: ({0.0: 0.5, 0.1: -0.6, 0.2: 0.7}, None), "accuracies lie in [0, 1]"),
    ("gamma", lambda: ({0.0: 0.5, 0.1: 0.5, 0.2: 0.5}, None), "train anew for each"),
    ("gamma", lambda: {0.0: 0.5, 0.1: 0.6, 0.2: 0.5}, "your code raised ValueError"),
]

ALTERNATIVES: list[tuple[str, Any]] = [
    (
        "awp",
        for_weights(
            lambda w, g, c: (
                torch.nn.functional.normalize(g.flatten(), dim=0).view_as(g) * c * w.norm()
            )
        ),
    ),
    ("awp", for_weights(lambda w, g, c: step(w.double(), g.double(), c))),
    ("awp", lambda p, g, c: dict(reversed(for_weights(step)(p, g, c).items()))),
    ("filter", row_by_row),
    ("filter", lambda w, z: torch.nn.functional.normalize(z, dim=1) * rows(w)),
    ("filter", lambda w, z: z * (rows(w) / rows(z))),
    ("stop", stop),
    ("stop", lambda e, v, t: (np.array(e)[np.argmax(v)], np.array(t)[np.argmax(v)])),
    ("stop", lambda e, v, t: (torch.tensor(e)[1], torch.tensor(t)[1])),
    ("curvature", by_autograd),
    ("curvature", lambda *x: by_autograd(*x).float()),
    ("curvature", curvature(lambda p, q, m, r, c: (p / c**2, q * c**2, m + r))),
    ("influence", extremes),
    ("influence", lambda a, b: tuple(map(np.float64, extremes(a, b)))),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES + UNCLEAR)
def test_a_mistake_is_named(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, answer)


@pytest.mark.parametrize(("exercise", "answer"), ALTERNATIVES)
def test_another_right_answer_passes(exercise: str, answer: Any) -> None:
    check(exercise, answer)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES, ["gamma"])


def test_every_message_is_one_that_a_mistake_gets(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesson, "_check_gamma", lambda answer: None)
    texts = [text for _, _, text in MISTAKES]
    scope["check"] = lesson.checker(
        {e.name: getattr(lesson, f"_check_{e.name}") for e in exercises(LESSON)}
    )
    scope["train"] = trained_already
    known = known_messages(lesson, LESSON, scope, monkeypatch)
    assert len(known) > 20
    assert [m for m in known if not any(text in m for text in texts)] == []


def trained_already(*_: Any, **__: Any) -> Any:
    """A training that takes no time."""
    stacked = {name: t.unsqueeze(0) for name, t in build(SETUP.model).state_dict().items()}
    return type("Training", (), {"params": stacked})


def test_the_lesson_s_solutions_pass(
    scope: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check_solutions(LESSON, scope, capsys)


def test_an_unfilled_stub_is_not_attempted(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_stubs(LESSON, scope, monkeypatch, capsys)


def test_a_mistake_is_printed_unless_strict(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(STRICT)
    check("stop", lambda e, v, t: (99, 0.6))
    assert capsys.readouterr().out == "stop: not yet: got 99, expected 20\n"


def test_an_answer_cannot_change_what_it_is_held_against() -> None:
    def spoil(params: Params, gradient: Params, gamma: float) -> Params:
        for tensor in (*params.values(), *gradient.values()):
            tensor.zero_()
        return {name: t for name, t in params.items() if t.dim() > 1}

    with pytest.raises(Wrong, match="right shape, wrong values"):
        check("awp", spoil)


# --- The experiment -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def networks(few: Dataset) -> dict[float, Params]:
    """Three networks that differ in all that the check can tell apart: none has seen an attack."""
    recipe = replace(SETUP.train, epochs=40)
    snapshots = train(SETUP.model, few, (0,), recipe, snapshots=(4, 12, 40)).snapshots
    return {g: unstack(s)[0] for g, s in zip(GAMMAS, snapshots.values(), strict=True)}


@pytest.fixture
def known(networks: dict[float, Params], monkeypatch: pytest.MonkeyPatch) -> dict[float, Params]:
    """The check takes these for the networks that the recipe gives."""
    monkeypatch.setattr(lesson, "reference_network", lambda gamma, data: networks[gamma])
    return networks


def measured(
    networks: dict[float, Params], data: Dataset, attack: Any = pgd, part: str = "test"
) -> dict[float, float]:
    x, y = getattr(data, f"{part}_x"), getattr(data, f"{part}_y")
    return {gamma: under_attack(params, x, y, attack) for gamma, params in networks.items()}


def clean(networks: dict[float, Params], data: Dataset) -> dict[float, float]:
    return measured(networks, data, lambda predict, x, y, threat: x)


def late(networks: dict[float, Params], data: Dataset) -> dict[float, float]:
    """Measures before it trains, so that every accuracy is that of the gamma before."""
    found = list(measured(networks, data).values())
    return dict(zip(GAMMAS, [0.1, *found[:-1]], strict=True))


def once(networks: dict[float, Params], data: Dataset) -> dict[float, float]:
    return dict.fromkeys(GAMMAS, measured(networks, data)[0.0])


EXPERIMENT: list[tuple[Any, str]] = [
    (clean, "that is the clean accuracy"),
    (lambda n, data: measured(n, data, part="train"), "measured on the training data"),
    (lambda n, data: measured(n, data, fgsm), "accuracy under a single step"),
    (late, "that is plain adversarial training: pass gamma on"),
    (once, "every gamma gives the same accuracy"),
    (lambda n, data: measured(n, data) | {0.1: 0.99}, "at gamma 0.1 you got 0.990, expected 0."),
    (lambda n, data: dict.fromkeys(GAMMAS, None), "your code raised TypeError"),
]


@pytest.mark.parametrize(("mistake", "message"), EXPERIMENT)
def test_the_experiment_names_mistakes(
    mistake: Any, message: str, known: dict[float, Params], few: Dataset
) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check("gamma", lambda: (mistake(known, few), few))


def test_the_experiment_takes_tensors_and_numpy_s_gammas(
    known: dict[float, Params], few: Dataset
) -> None:
    found = {np.float64(g): torch.tensor(a) for g, a in measured(known, few).items()}
    check("gamma", lambda: (found, few))
    check("gamma", lambda: (dict(reversed(found.items())), few))


def test_the_reference_is_the_lesson_s_recipe(few: Dataset) -> None:
    data, recipe = few.subset(100, 10), replace(SETUP.train, epochs=40)
    for gamma in (0.0, 0.02):
        pushed = AdversarialWeightPerturbation(AdversarialTraining(THREAT, steps=7), gamma)
        (own,) = unstack(train(SETUP.model, data, (0,), recipe, loss=pushed).params)
        reference = lesson.reference_network(gamma, data)
        assert all(torch.equal(reference[name], tensor) for name, tensor in own.items())

"""Checks of the lesson on singular vectors: solutions pass, each mistake is told what it is."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from exercises import check_messages, check_mistakes, check_solutions, check_stubs
from torch import Tensor

from lmc_lessons import datasets
from lmc_lessons.connectivity.matching import weight_matching
from lmc_lessons.connectivity.symmetry import Permutations, find_symmetry, permute
from lmc_lessons.experiments.singular_vectors import match_part
from lmc_lessons.landscape import barrier, line
from lmc_lessons.models import MLP, ModelConfig, unstack
from lmc_lessons.teaching.checks import STRICT, Wrong
from lmc_lessons.teaching.checks import singular_vectors as lesson
from lmc_lessons.teaching.checks.singular_vectors import check, reference_rescaling
from lmc_lessons.training import TrainConfig, train

LESSON = "singular-vectors"
GAMMAS = (0.2, 0.4, 0.6, 0.8)
TENTHS = [k / 10 for k in range(11)]
Layer = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STRICT, "1")


@pytest.fixture(scope="module")
def scope() -> dict[str, Any]:
    """The names that the lesson's exercises use, with small networks."""
    data = datasets.load("digits", limit=400)
    config = ModelConfig("mlp", (1, 8, 8), 10, width=12, depth=2)
    network_a, network_b = unstack(train(config, data, (0, 1), TrainConfig(epochs=15)).params)
    model = MLP(config).eval()
    symmetry = find_symmetry(model, data.train_x[:2])
    names = {"check": check, "torch": torch, "line": line, "barrier": barrier, "permute": permute}
    lent = {"data": data, "network_a": network_a, "network_b": network_b, "model": model}
    return {**names, **lent, "symmetry": symmetry, "match_part": match_part}


def cosines(ua: Tensor, va: Tensor, ub: Tensor, vb: Tensor) -> tuple[Tensor, Tensor]:
    return ua.T.matmul(ub), va.T.matmul(vb)


def agreement(ua: Tensor, va: Tensor, ub: Tensor, vb: Tensor) -> Tensor:
    left, right = cosines(ua, va, ub, vb)
    return left * right


def looped(ua: Tensor, va: Tensor, ub: Tensor, vb: Tensor) -> float:
    total, count = 0.0, ua.shape[1]
    for i in range(count):
        for j in range(count):
            total += float(ua[:, i] @ ub[:, j]) * float(va[:, i] @ vb[:, j])
    return total / count


def pairs(a: Layer, b: Layer) -> Tensor:
    return agreement(a[0], a[2], b[0], b[2])


def dense(a: Layer, b: Layer) -> Tensor:
    whole_a, whole_b = (left @ values.diag() @ right.T for left, values, right in (a, b))
    return torch.trace(whole_a.T @ whole_b)


def first_order(a: float, b: float, g_a: float, g_b: float) -> float:
    return (b - a) * (g_a - g_b)


def second_order(a: float, b: float, h_a: float, h_b: float, t: float) -> float:
    return 0.5 * (b - a) ** 2 * (t * h_a + (1 - t) * h_b)


def expanded(a: float, b: float, g_a: float, g_b: float, h_a: float, h_b: float, t: float) -> float:
    """Both expansions, mixed, without the constants that give the chord."""
    v = b - a
    from_a = t * v * g_a + t**2 * v**2 * h_a / 2
    from_b = -(1 - t) * v * g_b + (1 - t) ** 2 * v**2 * h_b / 2
    return (1 - t) * from_a + t * from_b


def rise(first: float, second: float, t: float) -> float:
    return t * (1 - t) * (first + second)


def swapped_ends(a: float, b: float, ga: float, gb: float, ha: float, hb: float, t: float) -> float:
    return rise(first_order(a, b, ga, gb), second_order(a, b, hb, ha, t), t)


def not_squared(a: float, b: float, ga: float, gb: float, ha: float, hb: float, t: float) -> float:
    return rise(first_order(a, b, ga, gb), (b - a) * (t * ha + (1 - t) * hb) / 2, t)


def length_for_half_square(
    a: float, b: float, ga: float, gb: float, ha: float, hb: float, t: float
) -> float:
    return rise(first_order(a, b, ga, gb), abs(b - a) * (t * ha + (1 - t) * hb), t)


def no_half(a: float, b: float, ga: float, gb: float, ha: float, hb: float, t: float) -> float:
    return rise(first_order(a, b, ga, gb), 2 * second_order(a, b, ha, hb, t), t)


def directions(right: Tensor, z: Tensor) -> Tensor:
    return torch.nn.functional.normalize(z, dim=1) @ right


def scaled(params: Any, enter: float, bias: float, leave: float, last: float = 1) -> Any:
    return {
        "hidden.0.weight": enter * params["hidden.0.weight"],
        "hidden.0.bias": bias * params["hidden.0.bias"],
        "output.weight": leave * params["output.weight"],
        "output.bias": last * params["output.bias"],
    }


def in_place(params: Any, factor: float) -> Any:
    params["hidden.0.weight"].mul_(factor)
    params["hidden.0.bias"].mul_(factor)
    params["output.weight"].div_(factor)
    return params


MISTAKES: list[tuple[str, Any, str]] = [
    ("alignment", lambda *x: agreement(*x).diagonal().mean(), "paired only equal ranks"),
    ("alignment", lambda *x: agreement(*x).abs().sum() / 3, "no absolute values"),
    ("alignment", lambda *x: abs(looped(*x)), "R may be negative"),
    ("alignment", lambda *x: cosines(*x)[0].sum() / 3, "the left vectors alone"),
    ("alignment", lambda *x: cosines(*x)[1].sum() / 3, "the right vectors alone"),
    ("alignment", lambda *x: agreement(*x).sum(), "divide by the number of singular values"),
    ("alignment", lambda *x: agreement(*x).mean(), "not of pairs"),
    ("alignment", lambda *x: agreement(*x).sum() / len(x[0]), "not of outputs"),
    ("alignment", lambda *x: agreement(*x).sum() / len(x[1]), "not of outputs"),
    ("alignment", lambda *x: torch.mm(*cosines(*x)).sum() / 3, "matrix product"),
    ("alignment", lambda *x: agreement(*x).diagonal().abs().sum() / 3, "got "),
    ("kept", lambda s, gamma: (s > gamma * s[0]).sum(), "exactly the threshold counts"),
    ("kept", lambda s, gamma: sum(x > gamma * max(s) for x in s), "exactly the threshold counts"),
    ("kept", lambda s, gamma: (s >= gamma * s.sum()).sum(), "not to the sum"),
    ("kept", lambda s, gamma: ((s / s[0]) ** 2 >= gamma).sum(), "not their squares"),
    ("kept", lambda s, gamma: (s >= gamma).sum(), "the threshold is relative"),
    ("kept", lambda s, gamma: math.ceil(len(s) * (1 - gamma)), "a share of the layer's values"),
    ("kept", lambda s, gamma: (s < gamma * s[0]).sum(), "values that are dropped"),
    ("kept", lambda s, gamma: (s >= gamma * s[0]).nonzero().max(), "got 7, expected 8"),
    ("kept", lambda s, gamma: (s.cumsum(0) <= (1 - gamma) * s.sum()).sum(), "got 5, expected 8"),
    ("weighted", lambda a, b: pairs(a, b).sum(), "the weights are missing"),
    ("weighted", lambda a, b: (a[1] * b[1] * pairs(a, b).diag()).sum(), "not only i = j"),
    ("weighted", lambda a, b: (torch.outer(a[1], a[1]) * pairs(a, b)).sum(), "of A times s_j of B"),
    ("weighted", lambda a, b: (a[1][:, None] ** 2 * pairs(a, b)).sum(), "not a square"),
    ("weighted", lambda a, b: (a[1] * b[1] * pairs(a, b)).sum(), "outer product"),
    ("weighted", lambda a, b: (torch.outer(b[1], a[1]) * pairs(a, b)).sum(), "wrong way round"),
    (
        "weighted",
        lambda a, b: (torch.outer(a[1], b[1]) * pairs(a, b)).abs().sum(),
        "no absolute values",
    ),
    (
        "estimate",
        lambda a, b, ga, gb, ha, hb, t: rise(0, second_order(a, b, ha, hb, t), t),
        "the gradients' part is missing",
    ),
    (
        "estimate",
        lambda a, b, ga, gb, ha, hb, t: rise(first_order(a, b, ga, gb), 0, t),
        "the Hessians' part is missing",
    ),
    ("estimate", lambda a, b, *x: expanded(b, a, *x), "the wrong sign"),
    ("estimate", swapped_ends, "weighted the wrong way"),
    ("estimate", no_half, "the factor 1/2"),
    (
        "estimate",
        lambda a, b, ga, gb, ha, hb, t: first_order(a, b, ga, gb) + second_order(a, b, ha, hb, t),
        "the factor t (1 - t)",
    ),
    ("estimate", not_squared, "second term squared"),
    ("estimate", length_for_half_square, "expected"),
    ("preference", lambda right, z: directions(right, z).mean(0), "the sign of a singular vector"),
    ("preference", lambda right, z: (z @ right).abs().mean(0) / z.norm(dim=1).mean(), "its own"),
    ("preference", lambda right, z: (z @ right).abs().mean(0), "by the inputs' lengths"),
    ("preference", lambda right, z: (directions(right, z) ** 2).mean(0), "squared length"),
    ("preference", lambda right, z: (directions(right, z) ** 2).mean(0) ** 0.5, "mean square"),
    ("preference", lambda right, z: directions(right, z).mean(0).abs(), "before the mean"),
    (
        "preference",
        lambda right, z: directions(right, z.mean(0, keepdim=True)).abs()[0],
        "the mean input's",
    ),
    ("rescale", lambda p, c: scaled(p, 1, c, 1 / c), "what enters the hidden layer is unchanged"),
    ("rescale", lambda p, c: scaled(p, c, 1, 1 / c), "the bias must grow"),
    ("rescale", lambda p, c: scaled(p, c, c, 1), "what leaves the hidden layer must shrink"),
    ("rescale", lambda p, c: scaled(p, c, c, c), "must shrink, not grow"),
    ("rescale", lambda p, c: scaled(p, c, c, 1 / c, 1 / c), "behind everything"),
    ("rescale", lambda p, c: scaled(p, 1 / c, 1 / c, c), "right shape, wrong values"),
]

UNCLEAR: list[tuple[str, Any, str]] = [
    ("alignment", lambda *x: None, "return a number, got NoneType"),
    ("alignment", agreement, "(3, 3)"),
    ("alignment", lambda ua, va, ub, vb: (ua @ ub).sum(), "your code raised RuntimeError"),
    ("kept", lambda s, gamma: s >= gamma * s[0], "return one number"),
    ("kept", lambda s, gamma: s[s >= gamma * s[0]], "return one number"),
    ("kept", lambda s, gamma: s[99], "your code raised IndexError"),
    ("weighted", lambda a, b: torch.outer(a[1], b[1]) * pairs(a, b), "(3, 3)"),
    ("weighted", lambda a, b: dense(a[:2], b[:2]), "your code raised ValueError"),
    ("estimate", lambda *x: None, "return a number, got NoneType"),
    ("estimate", lambda a, b: 0.0, "your code raised TypeError"),
    ("estimate", lambda *x: expanded(*x) + undefined, "your code raised NameError"),  # type: ignore[name-defined] # noqa: F821
    ("preference", lambda right, z: directions(right, z).abs().mean(1), "shape (7,), expected"),
    ("preference", lambda right, z: directions(right, z).abs().mean(), "shape (), expected"),
    ("preference", lambda right, z: directions(right, z).abs().mean(0).numpy(), "return a tensor"),
    ("preference", lambda right, z: (z @ right).abs() / z.norm(dim=1), "raised RuntimeError"),
    ("rescale", lambda p, c: None, "return all four tensors"),
    ("rescale", lambda p, c: list(scaled(p, c, c, 1 / c).values()), "return all four tensors"),
    ("rescale", lambda p, c: {"output.bias": p["output.bias"]}, "return all four tensors"),
    ("rescale", lambda p, c: dict.fromkeys(p, c), "return a tensor, got float"),
    ("enough", {0.2: 1.0, 0.4: 1.0, 0.6: 1.0}, "pass a function"),
    ("enough", lambda: ({"0.2": 1.0}, (None, None, None)), "return a dict"),
    ("enough", lambda: ({0.2: 1.0, 0.4: 1.0}, (None, None, None)), "at least three thresholds"),
    ("enough", lambda: ({2: 1.0, 3: 1.0, 4: 1.0}, (None, None, None)), "return a dict"),
    ("enough", lambda: ([1.0, 1.0, 1.0], (None, None, None)), "return a dict"),
    ("enough", lambda: barrier([0.0, 1.0], [1.0, 1.0]), "raised ValueError: a barrier needs"),
]

ALTERNATIVES: list[tuple[str, Any]] = [
    ("alignment", looped),
    ("alignment", lambda *x: torch.einsum("ai,aj,bi,bj->", x[0], x[2], x[1], x[3]) / x[0].shape[1]),
    ("alignment", lambda *x: np.float32(looped(*x))),
    ("kept", lambda s, gamma: (s >= gamma * s[0]).sum()),
    ("kept", lambda s, gamma: (s / s.max() >= gamma).sum()),
    ("kept", lambda s, gamma: sum(x / s.tolist()[0] >= gamma for x in s.tolist())),
    ("kept", lambda s, gamma: np.count_nonzero(s.numpy() >= gamma * s.numpy()[0])),
    ("kept", lambda s, gamma: float(len([x for x in s.double() if x >= gamma * s[0]]))),
    ("weighted", dense),
    ("weighted", lambda a, b: a[1] @ pairs(a, b) @ b[1]),
    ("weighted", lambda a, b: dense(*(tuple(t.float() for t in x) for x in (a, b)))),
    ("estimate", expanded),
    ("estimate", lambda *x: expanded(*torch.tensor(x))),
    ("preference", lambda right, z: directions(right, z).abs().mean(0)),
    ("preference", lambda right, z: directions(right.float(), z.float()).abs().mean(0)),
    ("rescale", lambda p, c: dict(reversed(scaled(p, c, c, 1 / c).items()))),
    ("rescale", in_place),
]


@pytest.mark.parametrize(("exercise", "answer", "message"), MISTAKES + UNCLEAR)
def test_a_mistake_is_named(exercise: str, answer: Any, message: str) -> None:
    with pytest.raises(Wrong, match=re.escape(message)):
        check(exercise, answer)


@pytest.mark.parametrize(("exercise", "answer"), ALTERNATIVES)
def test_another_right_answer_passes(exercise: str, answer: Any) -> None:
    check(exercise, answer)


def test_every_exercise_has_three_mistakes_with_messages_of_their_own() -> None:
    check_mistakes(LESSON, MISTAKES, ["enough"])


def test_every_message_is_one_that_a_mistake_gets(
    scope: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_messages(lesson, LESSON, scope, monkeypatch, MISTAKES)


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
    check("kept", lambda s, gamma: 99)
    assert re.fullmatch(r"kept: not yet: got 99, expected \d+\n", capsys.readouterr().out)


def test_rescaling_changes_the_singular_values_by_the_factor(scope: dict[str, Any]) -> None:
    found = reference_rescaling(scope["network_a"], (1.0, 2.0, 0.5))
    assert found == pytest.approx({1.0: 0.0, 2.0: 1.0, 0.5: 0.5}, abs=1e-6)


def height(s: dict[str, Any], order: Permutations | None, part: str = "test") -> float:
    end = s["network_b"] if order is None else permute(s["symmetry"], s["network_b"], order)
    x, y = (getattr(s["data"], f"{part}_{kind}") for kind in "xy")
    return barrier(TENTHS, line(s["model"], s["network_a"], end, TENTHS, x, y).loss).maximum


def measured(s: dict[str, Any], *, top: bool = True, part: str = "test") -> dict[float, float]:
    a, b = s["network_a"], s["network_b"]
    orders = {g: match_part(s["symmetry"], a, b, g, top=top).permutations for g in GAMMAS}
    return {g: height(s, order, part) for g, order in orders.items()}


def late(s: dict[str, Any]) -> dict[float, float]:
    """Measures before it permutes, so that every barrier is the one of the threshold before."""
    heights = list(measured(s).values())
    return dict(zip(GAMMAS, [height(s, None), *heights[:-1]], strict=True))


def by_everything(s: dict[str, Any]) -> dict[float, float]:
    order = weight_matching(s["symmetry"], s["network_a"], s["network_b"]).permutations
    return dict.fromkeys(GAMMAS, height(s, order))


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda s: measured(s, top=False), "matched by the rest"),
        (lambda s: dict.fromkeys(GAMMAS, height(s, None)), "every barrier is the one before"),
        (late, "the first barrier is the one before matching"),
        (lambda s: measured(s, part="train"), "the training barrier"),
        (by_everything, "every threshold gives the same barrier"),
        (lambda s: measured(s) | {0.8: 9.0}, "at 0.8 you got 9.0000"),
        (lambda s: dict.fromkeys(GAMMAS, None), "your code raised TypeError"),
    ],
)
def test_the_experiment_names_mistakes(scope: dict[str, Any], mistake: Any, message: str) -> None:
    lent = (scope["network_a"], scope["network_b"], scope["data"])
    with pytest.raises(Wrong, match=re.escape(message)):
        check("enough", lambda: (mistake(scope), lent))


def test_the_experiment_takes_tensors_and_numpy_s_thresholds(scope: dict[str, Any]) -> None:
    lent = (scope["network_a"], scope["network_b"], scope["data"])
    found = {np.float64(g): torch.tensor(h) for g, h in measured(scope).items()}
    check("enough", lambda: (found, lent))

"""Interactive figures: the same input gives the same page, bad input is refused, sliders work."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lmc_lessons.teaching import interactive
from lmc_lessons.teaching.interactive import markup

matplotlib.use("Agg")

TEXTS: dict[str, Any] = {"alt": "two curves", "caption": "What to see."}
MATRIX: dict[str, Any] = {
    **TEXTS,
    "row_label": "unit of A",
    "column_label": "unit of B",
    "value_label": "similarity",
}
POSITIONS = np.linspace(0, 1, 11)
CLASSES = ["zero", "one", "two"]


def curves() -> dict[str, dict[str, Any]]:
    bump = 4 * POSITIONS * (1 - POSITIONS)
    return {
        "naive path": {"loss": 0.1 + bump, "accuracy": 0.9 - 0.6 * bump},
        "matched path": {"loss": 0.1 + 0.1 * bump, "accuracy": 0.9 - 0.05 * bump},
    }


def example() -> interactive.Sample:
    weights = np.random.default_rng(0).random((2, 11, 3))
    weights /= weights.sum(axis=2, keepdims=True)
    return {
        "image": np.eye(4),
        "true_class": 1,
        "class_names": CLASSES,
        "probabilities": {"naive path": weights[0], "matched path": weights[1]},
    }


def frames() -> np.ndarray:
    return np.stack([np.full((4, 4), 0.25), np.eye(4)[[1, 0, 2, 3]], np.eye(4)])


def layers(seed: int, sizes: tuple[int, ...] = (64, 32, 10)) -> list[tuple[Any, Any]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(out, into, generator=generator) * (2 / into) ** 0.5,
            0.1 * torch.randn(out, generator=generator),
        )
        for into, out in pairwise(sizes)
    ]


def handwriting(count: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    images = torch.randint(0, 17, (count, 64), generator=generator) / 16
    return images, torch.randint(0, 10, (count,), generator=generator)


def logits(network: list[tuple[Any, Any]], x: torch.Tensor) -> torch.Tensor:
    for k, (weight, bias) in enumerate(network):
        x = F.linear(x if k == 0 else x.relu(), weight, bias)
    return x


def blend(a: list[tuple[Any, Any]], b: list[tuple[Any, Any]], t: float) -> list[tuple[Any, Any]]:
    return [
        ((1 - t) * wa + t * wb, (1 - t) * ba + t * bb)
        for (wa, ba), (wb, bb) in zip(a, b, strict=True)
    ]


def drawing() -> plt.Figure:
    fig, ax = plt.subplots(figsize=(2, 1.5))
    ax.plot([0, 1], [0, 1])
    return fig


def explorer(**changes: Any) -> str:
    arguments = {"bands": None, "sample": example(), **TEXTS, **changes}
    return interactive.path_explorer(POSITIONS, curves(), **arguments).data


def matrix(**changes: Any) -> str:
    arguments = {**MATRIX, **changes}
    steps = ["start", "sweep 1", "sweep 2"]
    return interactive.matrix_explorer(
        frames(), steps, {"objective": [1.5, 2.25, 4.0], "units moved": [0, 3, 4]}, **arguments
    ).data


def live(sizes: tuple[int, ...] = (64, 32, 10), count: int = 60, **changes: Any) -> str:
    images, labels = handwriting(count)
    arguments = {
        "layers_a": layers(0, sizes),
        "layers_b_naive": layers(1, sizes),
        "layers_b_matched": layers(2, sizes),
        "images": images,
        "labels": labels,
        "image_shape": (8, 8),
        "class_names": [str(k) for k in range(10)],
        **TEXTS,
        **changes,
    }
    return interactive.live_network(**arguments).data


def pictures() -> str:
    shots = [interactive.png(drawing()) for _ in range(2)]
    labels, alts = ["t = 0", "t = 1"], ["a rising line", "the same line"]
    return interactive.image_slider(shots, labels, alts, "time", "Two pictures.").data


def still(format: str = "png") -> str:
    return interactive.static_figure(drawing(), format=format, **TEXTS).data  # type: ignore[arg-type]


COLUMNS, ROWS = np.linspace(-4, 30, 18), np.linspace(-6, 18, 13)
NETWORKS = {"A": (0, 0), "B": (26, 0), "B renumbered": (15, 12)}
WAYS = {"naive path": ("A", "B"), "matched path": ("A", "B renumbered")}


def mountain(u: Any, v: Any) -> Any:
    return 0.05 + np.exp(-((u - 13) ** 2 + (v + 2) ** 2) / 40)


def along(name: str) -> dict[str, Any]:
    start, end = (np.array(NETWORKS[point]) for point in WAYS[name])
    loss = mountain(*(start + POSITIONS[:, None] * (end - start)).T)
    return {"test loss": loss, "test error": loss / 2}


def surface() -> np.ndarray:
    return np.asarray(mountain(*np.meshgrid(COLUMNS, ROWS)))


def plane_arguments(**changes: Any) -> dict[str, Any]:
    return {
        "u": COLUMNS,
        "v": ROWS,
        "panels": {"test loss": surface(), "test error": surface() / 2},
        "points": NETWORKS,
        "paths": WAYS,
        "positions": POSITIONS,
        "curves": {name: along(name) for name in WAYS},
        "x_label": "distance towards B",
        "y_label": "distance across",
        "units": {"test loss": "nats", "test error": "%"},
        **TEXTS,
        **changes,
    }


def plane(**changes: Any) -> str:
    return interactive.plane_explorer(**plane_arguments(**changes)).data


SETTINGS = [f"spawned at step {k}" for k in (0, 3, 21, 100)]
BARRIERS = np.array([1.0, 0.5, 0.25, 0.125])


def step_arguments(**changes: Any) -> dict[str, Any]:
    bump = BARRIERS[:, None] * 4 * POSITIONS * (1 - POSITIONS)
    return {
        "x": POSITIONS,
        "frames": {"naive": 0.1 + bump, "matched": 0.1 + bump / 2},
        "labels": SETTINGS,
        "series": {"naive: barrier (nats)": BARRIERS, "matched: barrier (nats)": BARRIERS / 2},
        "x_label": "position",
        "y_label": "loss",
        "step_label": "when the networks part",
        "unit": "nats",
        "band": {"naive": (bump, 0.2 + bump)},
        "reference": ("chance", 2.3),
        **TEXTS,
        **changes,
    }


def steps(**changes: Any) -> str:
    return interactive.step_explorer(**step_arguments(**changes)).data


LAYERS = [f"layer{k}.conv" for k in range(5)]
HEIGHTS = np.array([[0.5, np.nan, 0.1, -0.2, 0.3], [0.25, 0.5, 0.0, 0.4, 0.3]])


def step_bars(**changes: Any) -> str:
    given = {
        "x": range(5),
        "frames": {"naive": HEIGHTS, "matched": HEIGHTS / 2},
        "labels": ["narrow", "wide"],
        "series": {},
        "x_ticks": LAYERS,
        "bars": True,
        "band": None,
        "reference": None,
    }
    return steps(**{**given, **changes})


FIGURES: dict[str, Callable[[], str]] = {
    "path": explorer,
    "matrix": matrix,
    "live": live,
    "images": pictures,
    "plane": plane,
    "steps": steps,
    "step bars": step_bars,
    "static png": still,
    "static svg": lambda: still("svg"),
}
MOVING = ("path", "matrix", "live", "images", "plane", "steps", "step bars")


def payload(figure: str) -> dict[str, Any]:
    found = re.search(r'^mount\("[0-9a-f]{12}", (.*), 0\);$', figure, flags=re.MULTILINE)
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


# ---- the markup


@pytest.mark.parametrize("name", FIGURES)
def test_same_input_gives_the_same_page(name: str) -> None:
    assert FIGURES[name]() == FIGURES[name]()


def test_other_content_has_another_id() -> None:
    ids = {
        re.findall(r'id="(lmc-\w+)"', page)[0]
        for page in (explorer(), explorer(caption="Other."), explorer(x_label="λ"), matrix())
    }
    assert len(ids) == 4


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_self_contained_and_described(name: str) -> None:
    page = FIGURES[name]()
    assert re.search(r'role="img" aria-label="[^"]+"|<img[^>]* alt="[^"]+"', page)
    assert re.search(r"<figcaption[^>]*>[^<]+</figcaption>", page)
    addresses = set(re.findall(r"https?://[^\"'\s)]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg"}, "a name space, not a request"


def test_texts_cannot_break_out_of_the_markup() -> None:
    page = explorer(caption='</script><b a="1">', alt='"><i>', x_label="</script><script>")
    assert "<b a" not in page
    assert "<i>" not in page
    assert page.count("</script>") == 1
    assert payload(page)["xLabel"] == "</script><script>"


def test_payload_holds_the_numbers() -> None:
    data = payload(explorer())
    assert [curve["name"] for curve in data["curves"]] == list(curves())
    for curve, given in zip(data["curves"], curves().values(), strict=True):
        np.testing.assert_allclose(curve["y"][0], given["loss"], rtol=1e-4)
        np.testing.assert_allclose(curve["y"][1], given["accuracy"], rtol=1e-4)
    np.testing.assert_allclose(
        data["sample"]["probabilities"][1], example()["probabilities"]["matched path"], atol=5e-4
    )


def test_bands_may_cover_some_curves_and_panels() -> None:
    low, high = POSITIONS, POSITIONS + 1
    data = payload(explorer(bands={"matched path": {"loss": (low, high)}}))
    naive, matched = data["curves"]
    assert naive["low"] == [None, None]
    assert matched["high"][1] is None
    np.testing.assert_allclose(matched["high"][0], high, rtol=1e-4)


def test_frames_come_back_within_half_a_level() -> None:
    data = payload(matrix())
    levels = np.frombuffer(_bytes(data["frames"]), np.uint8).reshape(3, 4, 4)
    values = data["low"] + levels / 255 * (data["high"] - data["low"])
    np.testing.assert_allclose(values, frames(), atol=0.5 / 255 + 1e-9)


def test_signed_frames_put_zero_in_the_middle_of_the_colours() -> None:
    cells = np.array([[[-0.2, 0.0], [0.5, 0.1]]])
    page = interactive.matrix_explorer(cells, ["start"], {"objective": [1.0]}, **MATRIX).data
    assert (payload(page)["low"], payload(page)["high"]) == (-0.5, 0.5)


def test_weights_and_images_arrive_exactly() -> None:
    data = payload(live())
    sent = np.frombuffer(_bytes(data["networks"][1]), "<f4")
    (w0, b0), (w1, b1) = layers(1)
    expected = torch.cat([w0.T.ravel(), b0, w1.T.ravel(), b1]).numpy()
    np.testing.assert_array_equal(sent, expected)
    images = np.frombuffer(_bytes(data["images"]), np.uint8).reshape(60, 64) / data["scale"]
    np.testing.assert_array_equal(images, handwriting()[0])


def test_images_that_do_not_fit_a_byte_are_shipped_as_floats() -> None:
    odd = handwriting()[0] * 0.731
    data = payload(live(images=odd))
    assert data["scale"] == 0
    np.testing.assert_array_equal(np.frombuffer(_bytes(data["images"]), "<f4"), odd.ravel())


def test_live_network_of_the_lesson_fits_its_budget() -> None:
    assert len(live((64, 128, 10), 450)) < 250_000
    assert len(live((64, 128, 128, 10), 300, weights="float16")) < 290_000


def test_pictures_are_shown_at_half_their_pixels() -> None:
    data = interactive.png(drawing())
    width = int(re.findall(r'width="(\d+)"', still())[0])
    assert width == int.from_bytes(data[16:20], "big") // 2


def grid_of(panel: dict[str, Any]) -> np.ndarray:
    levels = np.frombuffer(_bytes(panel["levels"]), "<u2").reshape(len(ROWS), len(COLUMNS))
    return np.asarray(panel["low"] + levels / 65535 * (panel["high"] - panel["low"]))


def test_plane_comes_back_within_half_a_level() -> None:
    loss, error = payload(plane())["panels"]
    np.testing.assert_allclose(grid_of(loss), surface(), atol=0.6 / 65535 * np.ptp(surface()))
    np.testing.assert_allclose(grid_of(error), surface() / 2, atol=1e-5)
    assert (loss["unit"], error["unit"]) == ("nats", "%")
    assert (loss["under"], loss["over"]) == (False, False)


def test_plane_limits_clip_and_say_so() -> None:
    loss, error = payload(plane(limits={"test loss": (0.0, 0.5)}))["panels"]
    np.testing.assert_allclose(grid_of(loss), np.minimum(surface(), 0.5), atol=1e-5)
    assert (loss["under"], loss["over"], error["over"]) == (False, True, False)


def test_plane_may_be_flat() -> None:
    flat = np.full((len(ROWS), len(COLUMNS)), 0.5)
    (panel, _) = payload(plane(panels={"test loss": flat, "test error": flat}))["panels"]
    np.testing.assert_allclose(grid_of(panel), flat)


def test_plane_paths_join_their_points() -> None:
    data = payload(plane())
    for path in data["paths"]:
        names = tuple(data["points"][k]["name"] for k in path["ends"])
        assert names == WAYS[path["name"]]
        np.testing.assert_allclose(path["y"][0], along(path["name"])["test loss"], rtol=1e-4)


def test_plane_of_the_lesson_fits_its_budget() -> None:
    u, v = np.linspace(-4, 30, 31), np.linspace(-6, 18, 31)
    grids = {name: mountain(*np.meshgrid(u, v)) for name in ("test loss", "test error")}
    assert len(plane(u=u, v=v, panels=grids)) < 70_000


def test_steps_hold_the_numbers_and_null_for_absent_bars() -> None:
    data = payload(step_bars())
    assert data["curves"][0]["y"] == [[0.5, None, 0.1, -0.2, 0.3], HEIGHTS[1].tolist()]
    assert data["xTicks"] == LAYERS
    naive, matched = payload(steps())["curves"]
    np.testing.assert_allclose(naive["y"], step_arguments()["frames"]["naive"], rtol=1e-4)
    assert np.shape(naive["low"]) == np.shape(naive["high"]) == (4, 11)
    assert matched["low"] is None


def test_fallback_texts_give_the_result_in_words() -> None:
    assert "naive path: test loss 0.0632 at the start" in plane()
    first, last = SETTINGS[0], SETTINGS[-1]
    assert f"naive: barrier (nats): 1 ({first}) to 0.125 ({last})" in steps()


def test_another_module_can_bring_its_own_figure() -> None:
    script = "function build(root, data) { root.title = data.word; }"
    page = interactive.figure_html("mine", {"word": "hello"}, script=script, **TEXTS).data
    assert script in page
    assert payload(page) == {"word": "hello"}


def _bytes(text: str) -> bytes:
    return base64.b64decode(text)


# ---- what is refused


def _curves_with(name: str, panel: str, values: Any) -> dict[str, dict[str, Any]]:
    changed = curves()
    changed[name][panel] = values
    return changed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alt": ""}, "alt must be a text"),
        ({"caption": "  "}, "caption must be a text"),
        ({"x_label": ""}, "x_label must be a text"),
        ({"positions": POSITIONS[::-1]}, "increasing"),
        ({"positions": [0.5]}, "at least two"),
        ({"positions": POSITIONS[:5]}, "11 entries, but there are 5 positions"),
        ({"curves": {}}, "1 to 4 paths"),
        ({"curves": _curves_with("naive path", "loss", np.full(11, np.nan))}, "NaN"),
        ({"panels": ("loss", "error")}, r"lacks the panels \['error'\]"),
        ({"panels": ()}, "at least one quantity"),
        ({"bands": {"other": {}}}, "bands name"),
        ({"start": 2.0}, "outside the positions"),
        ({"sample": {**example(), "true_class": 3}}, "true_class 3"),
        ({"sample": {**example(), "image": np.full((4, 4), 2.0)}}, r"\[0, 1\]"),
        ({"sample": {**example(), "probabilities": {}}}, r"are for \[\], not"),
        (
            {
                "sample": {
                    **example(),
                    "probabilities": {k: np.ones((11, 3)) for k in curves()},
                }
            },
            "sum to 1",
        ),
    ],
)
def test_path_explorer_refuses(changes: dict[str, Any], message: str) -> None:
    arguments = {"positions": POSITIONS, "curves": curves(), **TEXTS, **changes}
    with pytest.raises(ValueError, match=message):
        interactive.path_explorer(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": np.ones((3, 4, 5))}, "square"),
        ({"frames": np.ones((3, 4))}, "3 axes"),
        ({"frames": np.ones((1, 700, 700))}, "at most"),
        ({"labels": ["start"]}, "1 entries, but there are 3 frames"),
        ({"series": {}}, "at least one list"),
        ({"series": {"objective": [1.0, np.inf, 2.0]}}, "infinity"),
        ({"series": {"objective": [1.0]}}, "1 entries, but there are 3 frames"),
        ({"row_label": ""}, "row_label must be a text"),
        ({"alt": ""}, "alt must be a text"),
    ],
)
def test_matrix_explorer_refuses(changes: dict[str, Any], message: str) -> None:
    series = {"objective": [1.0, 2.0, 3.0]}
    given = {"frames": frames(), "labels": ["a", "b", "c"], "series": series, **MATRIX, **changes}
    with pytest.raises(ValueError, match=message):
        interactive.matrix_explorer(**given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers_b_naive": layers(1, (64, 16, 10))}, "differ in shape"),
        ({"layers_a": []}, "no layers"),
        ({"layers_a": [layers(0)[0], layers(0)[0]]}, "takes 64 inputs, the one before gives 32"),
        ({"layers_a": [(torch.ones(3, 64), torch.ones(2))]}, "2 entries, but there are 3 rows"),
        ({"image_shape": (8, 7)}, "64 pixels, image_shape says 56"),
        ({"images": handwriting()[0] * 255}, r"must lie in \[0, 1\]"),
        ({"labels": handwriting()[1] + 5}, "whole numbers from 0 to 9"),
        ({"labels": handwriting()[1][:10]}, "10 entries, but there are 60 images"),
        ({"class_names": [str(k) for k in range(12)]}, "12 entries, but there are 10 outputs"),
        ({"weights": "int8"}, "'float32' or 'float16'"),
        ({"alt": ""}, "alt must be a text"),
    ],
)
def test_live_network_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        live(**changes)


def test_live_network_refuses_a_page_too_heavy() -> None:
    with pytest.raises(ValueError, match="the limit is 250 kB"):
        live((64, 256, 256, 10))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alt": " "}, "alt must be a text"),
        ({"caption": ""}, "caption must be a text"),
        ({"x_label": ""}, "x_label must be a text"),
        ({"y_label": ""}, "y_label must be a text"),
        ({"path_label": ""}, "path_label must be a text"),
        ({"u": COLUMNS[::-1]}, "u must be at least 2 increasing numbers"),
        ({"v": [0.0]}, "v must be at least 2 increasing numbers"),
        ({"u": np.full(18, np.nan)}, "u holds NaN"),
        ({"u": ROWS}, r"shape \(13, 13\), a row per v and a column per u, got \(13, 18\)"),
        ({"panels": {}}, "panels must hold 1 to 4 entries, got 0"),
        ({"panels": {"test loss": surface().T}}, r"must have shape \(13, 18\)"),
        ({"panels": {"test loss": surface() * np.nan}}, "holds NaN"),
        ({"panels": {"": surface()}}, "title of a panel must be a text"),
        ({"panels": {"train loss": surface()}}, r"lacks the panels \['train loss'\]"),
        ({"points": {"A": (0, 0)}}, "points must hold 2 to 6 entries"),
        ({"points": {**NETWORKS, "C": (31, 0)}}, "lies outside the grid"),
        ({"points": {**NETWORKS, "C": (1, 2, 3)}}, "3 entries, but there are 2 coordinates"),
        ({"points": {**NETWORKS, "": (0, 0)}}, "name of a point must be a text"),
        ({"paths": {}}, "paths must hold 1 to 4 entries"),
        ({"paths": {**WAYS, "naive path": ("A", "Z")}}, r"names \['Z'\], but the points are"),
        ({"paths": {**WAYS, "naive path": ("A", "A")}}, "join two different points"),
        ({"curves": {"naive path": along("naive path")}}, "but the paths are"),
        (
            {"curves": {name: {"test loss": [1.0], "test error": [1.0]} for name in WAYS}},
            "1 entries, but there are 11 positions",
        ),
        ({"positions": POSITIONS[::-1]}, "positions must be at least 2 increasing"),
        ({"positions": POSITIONS / 2}, "must run from 0 to 1, got 0 to 0.5"),
        ({"start": 1.5}, r"start must lie in \[0, 1\]"),
        ({"limits": {"accuracy": (0, 1)}}, r"limits name \['accuracy'\]"),
        ({"limits": {"test loss": (1, 0)}}, "a lower and a higher number"),
        ({"limits": {"test loss": (0, np.inf)}}, "a lower and a higher number"),
        (
            {
                "u": np.linspace(-4, 30, 500),
                "v": np.linspace(-6, 18, 500),
                "panels": {"test loss": np.zeros((500, 500))},
            },
            "500 kB, the limit is 400 kB",
        ),
    ],
)
def test_plane_explorer_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plane(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alt": ""}, "alt must be a text"),
        ({"x_label": ""}, "x_label must be a text"),
        ({"y_label": ""}, "y_label must be a text"),
        ({"step_label": ""}, "step_label must be a text"),
        ({"step_values_label": " "}, "step_values_label must be a text"),
        ({"x": POSITIONS[::-1]}, "x must be at least 2 increasing"),
        ({"x": POSITIONS[:5]}, r"shape \(4, 5\), a row per label and a column per position"),
        ({"frames": {}}, "frames must hold 1 to 4 entries"),
        ({"frames": {"naive": np.full((4, 11), np.nan)}}, "curve 'naive' holds NaN"),
        ({"frames": {"naive": np.ones(11)}, "band": None}, "must have 2 axes"),
        ({"frames": {"": np.ones((4, 11))}, "band": None}, "name of a curve must be a text"),
        ({"labels": []}, "labels must hold 1 to"),
        ({"labels": SETTINGS[:3], "series": {}}, r"must have shape \(3, 11\)"),
        ({"labels": [*SETTINGS[:3], ""]}, r"labels\[3\] must be a text"),
        ({"series": {"barrier": [1.0, 2.0]}}, "2 entries, but there are 4 labels"),
        ({"series": {"barrier": [1.0, 2.0, 3.0, np.nan]}}, "holds NaN"),
        ({"series": {"": BARRIERS}}, "title of a series must be a text"),
        ({"series": {str(k): BARRIERS for k in range(5)}}, "series must hold 0 to 4 entries"),
        ({"x_ticks": ["a"]}, "1 entries, but there are 11 positions in x"),
        ({"start": 4}, "start must be a whole number from 0 to 3, got 4"),
        ({"start": -1}, "start must be a whole number"),
        ({"start": 0.5}, "start must be a whole number"),
        ({"band": {"other": (0, 1)}}, r"band names \['other'\]"),
        ({"band": {"naive": (np.ones((4, 11)), np.ones((4, 2)))}}, "upper band of 'naive' must"),
        ({"reference": ("", 1.0)}, "name of the reference must be a text"),
        ({"reference": ("chance", np.nan)}, "reference holds NaN"),
        (
            {"x": np.arange(20_000), "frames": {"naive": np.zeros((4, 20_000))}, "band": None},
            "80000 numbers, the limit is 50000",
        ),
    ],
)
def test_step_explorer_refuses(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        steps(**changes)


def test_bars_refuse_infinity() -> None:
    with pytest.raises(ValueError, match="infinity"):
        step_bars(frames={"naive": HEIGHTS + np.inf})


@pytest.mark.parametrize(
    ("images", "labels", "alts", "message"),
    [
        ([], [], [], "at least one picture"),
        ([b"GIF89a"], ["a"], ["a line"], "not PNG"),
        ([b"\x89PNG\r\n"], ["a", "b"], ["a line"], "2 entries, but there are 1 images"),
        ([b"\x89PNG\r\n"], ["a"], [""], r"alts\[0\] must be a text"),
    ],
)
def test_image_slider_refuses(
    images: list[bytes], labels: list[str], alts: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        interactive.image_slider(images, labels, alts, "time", "Pictures.")


def test_figure_html_refuses_an_unknown_kind_and_nan() -> None:
    with pytest.raises(ValueError, match="kind must be one of path, matrix"):
        interactive.figure_html("pie", {}, **TEXTS)
    with pytest.raises(ValueError, match="must be finite"):
        interactive.figure_html("path", {"x": [float("nan")]}, **TEXTS)
    with pytest.raises(ValueError, match="'png' or 'svg'"):
        still("gif")


def test_scripts_lose_only_indentation_and_comment_lines() -> None:
    for name in ("core", *markup.KINDS):
        text = markup.source(f"{name}.js")
        assert "\n//" not in text
        assert "</script" not in text


# ---- in a browser


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Any:
    """Open a page made of figures; at the end, no script may have failed."""
    pages: list[Any] = []
    errors: list[str] = []
    requests: list[str] = []

    def show(*figures: str, width: int = 900, theme: str = "light", **context: Any) -> Any:
        file = tmp_path / f"page{len(pages)}.html"
        dark = "html[data-theme=dark] body { background: #121212; color: #ced6dd; }"
        file.write_text(
            f'<!doctype html><html lang="en" data-theme="{theme}"><meta charset="utf-8">'
            f'<meta name="viewport" content="width=device-width"><style>{dark}</style>'
            f"<title>t</title><body>{''.join(figures)}</body></html>",
            encoding="utf-8",
        )
        page = browser.new_page(viewport={"width": width, "height": 900}, **context)
        pages.append(page)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(file.as_uri())
        return page

    yield show
    for page in pages:
        page.close()
    assert errors == []
    assert [url for url in requests if url.startswith("http")] == []


def cell(page: Any, row: int, column: int, figure: int = 0) -> float:
    table = page.locator("figure").nth(figure).locator("tbody tr").nth(row)
    return float(table.locator("td").nth(column).get_attribute("data-value"))


def test_slider_of_paths_moves_by_keyboard(opened: Any) -> None:
    page = opened(explorer(start=0.0))
    slider = page.get_by_role("slider", name="position λ on the path")
    slider.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == "0.20"
    assert cell(page, 0, 0) == pytest.approx(curves()["naive path"]["loss"][2], rel=1e-4)
    assert cell(page, 1, 1) == pytest.approx(curves()["matched path"]["accuracy"][2], rel=1e-4)
    spoken = slider.get_attribute("aria-valuetext")
    assert "naive path: loss 0.740, accuracy 51.6 %" in spoken
    winner = int(np.argmax(example()["probabilities"]["naive path"][2]))
    assert page.locator(".lmc-verdict").first.inner_text().startswith(f"predicts {CLASSES[winner]}")
    page.keyboard.press("End")
    assert page.locator("output").inner_text() == "1.00"


def test_keys_do_not_reach_the_notebook(opened: Any) -> None:
    page = opened(explorer())
    page.evaluate("document.addEventListener('keydown', () => { window.leaked = true; })")
    page.get_by_role("slider").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("window.leaked === undefined")


def test_pointer_on_the_chart_moves_the_slider(opened: Any) -> None:
    page = opened(explorer())
    box = page.locator(".lmc-chart svg").first.bounding_box()
    page.mouse.click(box["x"] + box["width"] - 14, box["y"] + box["height"] / 2)
    assert page.locator("output").inner_text() == "1.00"


def test_play_sweeps_to_the_end_and_stops(opened: Any) -> None:
    page = opened(matrix())
    play = page.get_by_role("button", name="Play: sweep")
    play.click()
    page.get_by_role("button", name="Pause: sweep").wait_for()
    page.wait_for_function("document.querySelector('output').value === 'sweep 2'")
    play.wait_for()
    assert cell(page, 0, 0) == 4.0
    assert page.locator("tbody td").nth(1).inner_text() == "4"


def test_heat_map_shows_the_frame(opened: Any) -> None:
    page = opened(matrix(), reduced_motion="reduce")
    page.get_by_role("slider").focus()
    page.keyboard.press("End")
    seen = page.evaluate(
        "(() => { const c = document.querySelector('canvas'), d = c.getContext('2d')"
        ".getImageData(0, 0, 4, 4).data; return [...Array(16).keys()].map(k => d[4 * k]); })()"
    )
    dark = np.array(seen).reshape(4, 4) < 128
    np.testing.assert_array_equal(dark, np.eye(4, dtype=bool))


def test_picture_slider_changes_picture_and_alternative_text(opened: Any) -> None:
    page = opened(pictures())
    assert page.get_by_role("img", name="a rising line").count() == 1
    page.get_by_role("slider", name="time").focus()
    page.keyboard.press("ArrowRight")
    assert page.get_by_role("img", name="the same line").count() == 1


@pytest.mark.parametrize("weights", ["float32", "float16"])
@pytest.mark.parametrize("sizes", [(64, 32, 10), (64, 24, 16, 10)])
def test_live_loss_equals_torch(opened: Any, weights: Any, sizes: tuple[int, ...]) -> None:
    images, labels = handwriting()
    networks = [layers(seed, sizes) for seed in range(3)]
    page = opened(live(sizes, weights=weights))
    page.get_by_role("slider").focus()
    kind = getattr(torch, weights)
    a, naive, matched = [[(w.to(kind).float(), b.to(kind).float()) for w, b in n] for n in networks]
    for keys, t in [("Home", 0.0), ("ArrowRight", 0.01), ("PageUp", 0.11), ("End", 1.0)]:
        page.keyboard.press(keys)
        assert page.locator("output").inner_text() == f"{t:.2f}"
        for row, b in enumerate([naive, matched]):
            expected = logits(blend(a, b, t), images)
            loss = F.cross_entropy(expected, labels).item()
            accuracy = (expected.argmax(1) == labels).float().mean().item()
            assert cell(page, row, 0) == pytest.approx(loss, abs=1e-4)
            assert cell(page, row, 1) == pytest.approx(accuracy, abs=1e-6)


def test_tracing_visits_the_whole_path(opened: Any) -> None:
    page = opened(live())
    page.get_by_role("button", name="Trace the whole path").click()
    page.get_by_text("Whole path traced").wait_for()
    paths = page.locator(".lmc-chart").first.locator("path.lmc-curve")
    for k in range(2):
        steps = re.findall("[ML]", paths.nth(k).get_attribute("d"))
        assert steps == ["M"] + ["L"] * 20


def probabilities(page: Any, path: int) -> list[int]:
    rows = page.locator(".lmc-bars").nth(path).locator(".lmc-row > span:last-child").all()
    return [int(row.inner_text().removesuffix(" %")) for row in rows]


def test_pad_starts_with_a_test_image_and_takes_drawings(opened: Any) -> None:
    page = opened(live())
    images, labels = handwriting()
    page.get_by_text(f"Test image 1 of 60, true class: {labels[0]}").wait_for()
    expected = (100 * logits(layers(0), images[:1]).softmax(1)[0]).round().int().tolist()
    assert probabilities(page, 0) == expected

    page.get_by_role("button", name="Clear").click()
    page.get_by_text("Your drawing").wait_for()
    blank = torch.zeros(1, 64)
    expected = (100 * logits(layers(0), blank).softmax(1)[0]).round().int().tolist()
    assert probabilities(page, 0) == expected

    pad = page.get_by_label("Drawing pad, 8 by 8 pixels")
    pad.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Space")
    blank[0, 3 * 8 + 4] = 1
    expected = (100 * logits(layers(0), blank).softmax(1)[0]).round().int().tolist()
    assert probabilities(page, 0) == expected

    before = pad.evaluate("c => c.toDataURL()")
    box = pad.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + 150, steps=5)
    page.mouse.up()
    assert pad.evaluate("c => c.toDataURL()") != before


def test_next_mistake_shows_an_image_that_the_first_path_gets_wrong(opened: Any) -> None:
    page = opened(live())
    page.get_by_role("button", name="Next mistake of the naive path").click()
    assert page.locator(".lmc-verdict").first.inner_text().endswith("✗")


def test_slider_walks_along_all_paths_of_the_plane(opened: Any) -> None:
    page = opened(plane(start=0.0))
    slider = page.get_by_role("slider", name="position t on the path")
    dots = page.locator(".lmc-plane .lmc-heat .lmc-mark")
    start = [dots.nth(k).bounding_box() for k in range(2)]
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == "0.10"
    assert cell(page, 0, 0) == pytest.approx(along("naive path")["test loss"][1], rel=1e-4)
    page.keyboard.press("End")
    end = [dots.nth(k).bounding_box() for k in range(2)]
    # Both axes have one scale, and v increases upwards.
    across = (end[0]["x"] - start[0]["x"]) / 26
    assert across > 0
    assert end[1]["x"] - start[1]["x"] == pytest.approx(15 * across, abs=2)
    assert start[1]["y"] - end[1]["y"] == pytest.approx(12 * across, abs=2)
    assert end[0]["y"] == pytest.approx(start[0]["y"], abs=1)
    assert "matched path: test loss" in slider.get_attribute("aria-valuetext")


def test_buttons_switch_the_quantity_of_the_plane(opened: Any) -> None:
    page = opened(plane(limits={"test error": (0, 0.25)}))
    titles = page.locator(".lmc-title")
    assert titles.all_text_contents() == ["test loss (nats)", "test loss (nats)"]
    before = page.evaluate("document.querySelector('canvas').toDataURL()")
    page.get_by_role("radio", name="test loss").focus()
    page.keyboard.press("ArrowRight")
    assert titles.all_text_contents() == ["test error (%)", "test error (%)"]
    assert page.evaluate("document.querySelector('canvas').toDataURL()") != before
    assert page.locator(".lmc-heat text").get_by_text("≥ 25").count() == 1
    assert "test error" in page.get_by_role("slider").get_attribute("aria-valuetext")


def test_plane_of_one_quantity_has_no_buttons(opened: Any) -> None:
    page = opened(plane(panels={"test loss": surface()}))
    assert page.get_by_role("radio").count() == 0
    assert page.get_by_role("slider").count() == 1


def said(page: Any) -> tuple[list[float], float, str, float]:
    """Where the cross stands, the value there, the nearest network and its distance."""
    text = page.locator(".lmc-heat .lmc-status").inner_text().replace("\u2212", "-")
    found = re.fullmatch(
        r"At \((.+), (.+)\): test loss (?:≥ )?(\S+) nats; nearest network: (.+), distance (\S+)\.",
        text,
    )
    assert found is not None, text
    return [float(found[1]), float(found[2])], float(found[3]), found[4], float(found[5])


def interpolated(u: float, v: float) -> float:
    row = [np.interp(u, COLUMNS, values) for values in surface()]
    return float(np.interp(v, ROWS, row))


def test_pointing_at_the_plane_reads_the_grid(opened: Any) -> None:
    page = opened(plane())
    field = page.get_by_role("application")
    box = field.bounding_box()
    for right, up in [(0.5, 0.2), (0.13, 0.31), (0.999, 0.999)]:
        page.mouse.move(box["x"] + right * box["width"], box["y"] + (1 - up) * box["height"])
        at, value, name, distance = said(page)
        assert at == pytest.approx([-4 + 34 * right, -6 + 24 * up], abs=0.2)
        assert value == pytest.approx(interpolated(*at), abs=0.01)
        far = {n: float(np.hypot(at[0] - p[0], at[1] - p[1])) for n, p in NETWORKS.items()}
        assert far[name] == min(far.values())
        assert distance == pytest.approx(far[name], abs=0.15)
    assert page.locator(".lmc-hair").count() == 1
    page.mouse.move(1, 1)
    assert page.locator(".lmc-hair").count() == 0


def test_arrow_keys_move_the_cross(opened: Any) -> None:
    page = opened(plane())
    page.get_by_role("application").focus()
    page.keyboard.press("ArrowUp")
    (u, v), *_ = said(page)
    assert (u, v) == (13, 6)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Shift+ArrowRight")
    (right, up), *_ = said(page)
    assert right - u == pytest.approx(5 * (up - v), abs=0.3)
    for _ in range(20):
        page.keyboard.press("Shift+ArrowDown")
    assert said(page)[0][1] == -6
    page.keyboard.press("Escape")
    assert page.locator(".lmc-hair").count() == 0


def test_a_tap_on_the_plane_leaves_a_cross(opened: Any) -> None:
    page = opened(plane(), width=390, has_touch=True)
    box = page.get_by_role("application").bounding_box()
    page.touchscreen.tap(box["x"] + 0.25 * box["width"], box["y"] + 0.5 * box["height"])
    at, value, *_ = said(page)
    assert at == pytest.approx([4.5, 6], abs=0.3)
    assert value == pytest.approx(interpolated(*at), abs=0.01)
    assert page.locator(".lmc-hair").count() == 1


def test_pointing_beyond_the_limits_reads_a_bound(opened: Any) -> None:
    page = opened(plane(limits={"test loss": (0.0, 0.5)}))
    page.get_by_role("application").focus()
    for key in ["ArrowDown", *["Shift+ArrowDown"] * 3]:
        page.keyboard.press(key)
    assert "test loss ≥ 0.500 nats" in page.locator(".lmc-status").inner_text()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_mountain_stands_out_in_both_themes(opened: Any, theme: str) -> None:
    """Low ground has the page's own tone, the mountain its opposite."""
    page = opened(plane(), theme=theme)
    look = """([u, v]) => {
        const c = document.querySelector('canvas');
        const at = [(u + 4) / 34 * c.width, (1 - (v + 6) / 24) * c.height].map(Math.floor);
        return [...c.getContext('2d').getImageData(...at, 1, 1).data].slice(0, 3);
    }"""
    top, ground = (np.mean(page.evaluate(look, [*at])) for at in [(13, -2), (15, 12)])
    assert (ground - top if theme == "light" else top - ground) > 120


def test_slider_of_steps_moves_the_curves(opened: Any) -> None:
    page = opened(steps(start=1))
    assert cell(page, 0, 0) == 0.5
    line = page.locator(".lmc-chart").first.locator("path.lmc-s0:not(.lmc-ghost)")
    mark = page.locator(".lmc-summary .lmc-mark:not(.lmc-dot)").first
    before, place = line.get_attribute("d"), mark.bounding_box()
    axis = page.locator(".lmc-chart").first.locator("text").all_text_contents()
    slider = page.get_by_role("slider", name="when the networks part")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("output").inner_text() == SETTINGS[2]
    assert [cell(page, k, 0) for k in range(2)] == [0.25, 0.125]
    assert page.locator("[aria-live=polite] thead th").last.inner_text() == SETTINGS[2]
    assert line.get_attribute("d") != before
    assert mark.bounding_box()["x"] > place["x"]
    assert page.locator(".lmc-chart").first.locator("text").all_text_contents() == axis
    assert "naive: barrier (nats) 0.250" in slider.get_attribute("aria-valuetext")


def test_pointer_on_the_summary_moves_the_slider(opened: Any) -> None:
    page = opened(steps())
    box = page.locator(".lmc-summary .lmc-chart svg").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 14, box["y"] + box["height"] / 2)
    assert page.locator("output").inner_text() == SETTINGS[-1]


def test_series_named_after_curves_share_their_legend(opened: Any) -> None:
    page = opened(steps())
    assert page.locator(".lmc-summary .lmc-title").text_content() == "barrier (nats)"
    assert page.locator(".lmc-summary .lmc-legend").count() == 0
    page = opened(steps(series={"barrier (nats)": BARRIERS, "loss at the end": BARRIERS / 4}))
    assert page.locator(".lmc-summary .lmc-key").count() == 2
    drawn = page.locator(".lmc-summary path.lmc-curve:not([d='M0 0'])")
    styles = [drawn.nth(k).get_attribute("class") for k in range(2)]
    assert styles == ["lmc-curve lmc-s2", "lmc-curve lmc-s3"]


def test_bars_stand_on_zero_and_may_be_absent(opened: Any) -> None:
    page = opened(step_bars())
    bars = page.locator(".lmc-chart rect.lmc-bar")
    assert bars.count() == 8
    boxes = [bars.nth(k).bounding_box() for k in range(4)]
    first, negative = boxes[0], boxes[2]
    zero = first["y"] + first["height"]
    assert negative["y"] == pytest.approx(zero, abs=1)
    assert first["height"] == pytest.approx(2.5 * negative["height"], rel=0.02)
    page.get_by_role("slider").focus()
    page.keyboard.press("End")
    assert bars.count() == 10


def test_long_names_of_bars_are_all_told_on_a_phone(opened: Any) -> None:
    page = opened(step_bars(), width=360)
    texts = page.locator(".lmc-chart text").all_text_contents()
    assert set(LAYERS) <= set(texts)


@pytest.mark.parametrize("name", ["plane", "steps"])
def test_new_figures_stand_twice_on_a_page(opened: Any, name: str) -> None:
    page = opened(FIGURES[name](), FIGURES[name]())
    sliders, outputs = page.get_by_role("slider"), page.locator("output")
    before = outputs.nth(0).inner_text()
    sliders.nth(1).focus()
    page.keyboard.press("End")
    assert outputs.nth(0).inner_text() == before != outputs.nth(1).inner_text()
    if name == "plane":
        page.get_by_role("radio", name="test error").nth(1).check()
        assert page.get_by_role("radio", name="test loss").nth(0).is_checked()
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(n => n.id)")
    assert len(ids) == len(set(ids))


def test_same_figure_twice_on_a_page(opened: Any) -> None:
    page = opened(explorer(start=0.0), explorer(start=0.0), matrix())
    assert page.get_by_role("slider").count() == 3
    page.get_by_role("slider").nth(1).focus()
    page.keyboard.press("End")
    outputs = page.locator("output")
    assert [outputs.nth(k).inner_text() for k in range(2)] == ["0.00", "1.00"]
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(n => n.id)")
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", MOVING)
def test_scripts_run_when_a_notebook_inserts_them(opened: Any, name: str) -> None:
    """Jupyter sets innerHTML on a node outside the page, renews its scripts, then attaches it."""
    page = opened()
    page.evaluate(
        """html => {
          const host = document.createElement('div');
          host.innerHTML = html;
          for (const old of host.querySelectorAll('script')) {
            const fresh = document.createElement('script');
            fresh.textContent = old.textContent;
            old.parentNode.replaceChild(fresh, old);
          }
          document.body.append(host);
        }""",
        FIGURES[name](),
    )
    page.get_by_role("slider").wait_for()


@pytest.mark.parametrize("name", FIGURES)
def test_phone_needs_no_sideways_scrolling(opened: Any, name: str) -> None:
    page = opened(FIGURES[name](), width=360)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


def test_theme_is_followed_when_it_changes(opened: Any) -> None:
    page = opened(live(), theme="dark")
    figure = page.locator("figure")
    assert figure.get_attribute("data-dark") == "true"
    shade = "document.querySelector('canvas').getContext('2d').getImageData(0, 0, 1, 1).data[0]"
    page.get_by_role("button", name="Clear").click()
    assert page.evaluate(shade) < 64
    page.evaluate("document.documentElement.dataset.theme = 'light'")
    page.wait_for_function("document.querySelector('figure').dataset.dark === 'false'")
    assert page.evaluate(shade) > 192


def test_reduced_motion_plays_still_pictures(opened: Any) -> None:
    page = opened(explorer(start=0.0), reduced_motion="reduce")
    page.get_by_role("button", name=re.compile("Play")).click()
    page.wait_for_timeout(600)
    assert page.locator("output").inner_text() == "0.00"

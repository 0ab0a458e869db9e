"""Interactive figures that work in a static page, in JupyterLab and in Colab alike.

Every function returns HTML that carries its data, style and plain JavaScript inside. Nothing is
fetched and no kernel answers: a slider moves because the page itself knows what to draw.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from lmc_lessons.teaching.interactive.markup import (
    check_length,
    check_texts,
    content_name,
    encoded,
    figure_html,
    numbers,
    rounded,
    source,
)

__all__ = [
    "Layers",
    "Sample",
    "figure_html",
    "image_slider",
    "live_network",
    "matrix_explorer",
    "path_explorer",
    "plane_explorer",
    "png",
    "static_figure",
    "step_explorer",
]

# A ReLU network: one (weight (out, in), bias (out,)) pair per layer; tensors or arrays.
Layers = Sequence[tuple[Any, Any]]
Panels = Sequence[str]
UNITS: Mapping[str, str] = {"loss": "nats", "accuracy": "%"}
MAX_CURVES = 4
LIVE_LIMIT_KB = 250
FRAMES_LIMIT_KB = 400
MAX_PANELS = 4
MAX_POINTS = 6
STEPS_LIMIT = 50_000


class Sample(TypedDict):
    """One example that a reader follows along the paths.

    Attributes:
        image: Gray values in [0, 1], shape (H, W).
        true_class: Index into `class_names`.
        class_names: One name per class.
        probabilities: Per curve, predicted probabilities, shape (positions, classes).
    """

    image: ArrayLike
    true_class: int
    class_names: Sequence[str]
    probabilities: Mapping[str, Any]


def path_explorer(
    positions: ArrayLike,
    curves: Mapping[str, Mapping[str, Any]],
    *,
    alt: str,
    caption: str,
    x_label: str = "position λ on the path",
    panels: Panels = ("loss", "accuracy"),
    bands: Mapping[str, Mapping[str, tuple[Any, Any]]] | None = None,
    sample: Sample | None = None,
    units: Mapping[str, str] = UNITS,
    ends: tuple[str, str] = ("network A", "network B"),
    start: float | None = None,
) -> HTML:
    """Show quantities along paths between two networks; a slider walks along all paths at once.

    Args:
        positions: Where the paths were measured, increasing, shape (K,).
        curves: Per path (at most four), per panel, the measured values, shape (K,).
        alt: What the picture shows, for readers who do not see it.
        caption: Text under the figure.
        x_label: Label of the horizontal axis and of the slider.
        panels: Names of the quantities, one chart each.
        bands: Per path and panel, lower and upper limits, each of shape (K,).
        sample: One image and the probabilities that each path's networks give it.
        units: Unit per panel. "%" means that values are fractions in [0, 1].
        ends: What stands at the two ends of the paths.
        start: Position shown first. Default: the middle.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: Lengths that differ, unknown names, NaN, or empty texts.

    Taught in: book/connectivity/weight-matching
    """
    check_texts(x_label=x_label)
    x = numbers("positions", positions, 1)
    if len(x) < 2 or not (np.diff(x) > 0).all():
        raise ValueError("positions must be at least two increasing numbers")
    if not 1 <= len(curves) <= MAX_CURVES:
        raise ValueError(f"curves must hold 1 to {MAX_CURVES} paths, got {len(curves)}")
    if not panels:
        raise ValueError("panels must name at least one quantity")
    if unknown := set(bands or {}) - set(curves):
        raise ValueError(f"bands name {sorted(unknown)}, but the curves are {list(curves)}")
    middle = float(x[0] + x[-1]) / 2 if start is None else float(start)
    if not x[0] <= middle <= x[-1]:
        raise ValueError(f"start {middle} lies outside the positions [{x[0]:g}, {x[-1]:g}]")
    payload = {
        "x": rounded(x),
        "xLabel": x_label,
        "ends": list(ends),
        "start": middle,
        "panels": [{"title": panel, "unit": units.get(panel, "")} for panel in panels],
        "curves": [
            _curve(name, values, panels, len(x), (bands or {}).get(name, {}))
            for name, values in curves.items()
        ],
        "sample": None if sample is None else _sample(sample, list(curves), len(x)),
    }
    summary = _path_summary(x, curves, panels[0])
    return figure_html("path", payload, alt=alt, caption=caption, fallback=summary)


def matrix_explorer(
    frames: ArrayLike,
    labels: Sequence[str],
    series: Mapping[str, Any],
    *,
    alt: str,
    caption: str,
    row_label: str,
    column_label: str,
    value_label: str,
    step_label: str = "sweep",
    limits: tuple[float, float] | None = None,
) -> HTML:
    """Show a square matrix that changes step by step, beside numbers that change with it.

    The cells are shipped as 256 levels; the numbers of `series` keep five digits. When a limit is
    negative, the colours diverge from zero.

    Args:
        frames: The matrix after each step, shape (K, n, n).
        labels: What each step is called, K texts.
        series: Per title (with its unit), one number per step, shape (K,).
        alt: What the picture shows, for readers who do not see it.
        caption: Text under the figure.
        row_label: What the rows are.
        column_label: What the columns are.
        value_label: What a cell's colour means.
        step_label: What a step is; the label of the slider.
        limits: Values at the ends of the colour scale. Default: the smallest and the largest.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: Lengths that differ, a matrix that is not square, NaN, empty texts, or more
            data than a page should carry.

    Taught in: book/connectivity/weight-matching
    """
    check_texts(row_label=row_label, column_label=column_label, value_label=value_label)
    check_texts(step_label=step_label)
    cells = numbers("frames", frames, 3)
    if cells.shape[1] != cells.shape[2]:
        raise ValueError(f"each frame must be square, got {cells.shape[1:]}")
    if cells.size > FRAMES_LIMIT_KB * 1000:
        raise ValueError(f"frames hold {cells.size} cells; at most {FRAMES_LIMIT_KB * 1000} fit")
    check_length("labels", labels, len(cells), "frames")
    if not series:
        raise ValueError("series must hold at least one list of numbers")
    low, high = (float(cells.min()), float(cells.max())) if limits is None else limits
    if low < 0 and limits is None:
        low, high = min(low, -high), max(high, -low)
    if not high > low:
        low, high = low, low + 1.0
    levels = np.rint(np.clip((cells - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    lines = []
    for title, values in series.items():
        line = numbers(f"series {title!r}", values, 1)
        check_length(f"series {title!r}", line, len(cells), "frames")
        lines.append({"title": title, "unit": "", "y": rounded(line)})
    payload = {
        "n": cells.shape[1],
        "frames": encoded(levels),
        "low": low,
        "high": high,
        "lowText": f"{low:.3g}".replace("-", "\u2212"),
        "highText": f"{high:.3g}".replace("-", "\u2212"),
        "rows": row_label,
        "columns": column_label,
        "value": value_label,
        "steps": step_label,
        "labels": list(labels),
        "series": lines,
    }
    summary = "; ".join(f"{s['title']}: {s['y'][0]:g} to {s['y'][-1]:g}" for s in lines) + "."
    return figure_html("matrix", payload, alt=alt, caption=caption, fallback=summary)


def plane_explorer(
    u: ArrayLike,
    v: ArrayLike,
    panels: Mapping[str, Any],
    points: Mapping[str, tuple[float, float]],
    paths: Mapping[str, tuple[str, str]],
    positions: ArrayLike,
    curves: Mapping[str, Mapping[str, Any]],
    *,
    alt: str,
    caption: str,
    x_label: str,
    y_label: str,
    units: Mapping[str, str] = UNITS,
    limits: Mapping[str, tuple[float, float]] | None = None,
    start: float = 0.5,
    path_label: str = "position t on the path",
) -> HTML:
    """Show a loss surface over a plane through networks, and the straight paths drawn in it.

    Both axes have the same scale, so distances in the picture are distances between parameters. A
    slider walks along all paths at once; the reader may point anywhere to read the surface, linear
    between the grid's points. The values of the grid are shipped as 65536 levels of the colour
    scale; what was measured along the paths keeps five digits.

    Args:
        u: Coordinates of the grid's columns, increasing, distances in weight space, shape (Nu,).
        v: Coordinates of the grid's rows, increasing upwards, the same unit, shape (Nv,).
        panels: Per quantity (one to four), its values on the grid, shape (Nv, Nu).
        points: Per named network (two to six), its coordinates (u, v).
        paths: Per straight path (one to four), the names of the points where it starts and ends.
        positions: Where the paths were measured, increasing from 0 (start) to 1 (end), shape (K,).
        curves: Per path, per quantity, the values measured along it, shape (K,).
        alt: What the picture shows, for readers who do not see it.
        caption: Text under the figure.
        x_label: Label of the horizontal axis of the plane.
        y_label: Label of the vertical axis of the plane.
        units: Unit per quantity. "%" means that values are fractions in [0, 1].
        limits: Per quantity, the values at the ends of the colour scale; what lies beyond is shown
            as the end. Default: the smallest and the largest value on the grid.
        start: Position on the paths shown first.
        path_label: Label of the slider and of the chart's horizontal axis.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: Shapes that do not fit, coordinates that do not increase, NaN, unknown names,
            points outside the grid, empty texts, or more data than a page should carry.

    Taught in: book/connectivity/loss-barriers
    """
    check_texts(x_label=x_label, y_label=y_label, path_label=path_label)
    columns, rows = _increasing("u", u), _increasing("v", v)
    x = _increasing("positions", positions)
    if not (np.isclose(x[0], 0) and np.isclose(x[-1], 1)):
        raise ValueError(f"positions must run from 0 to 1, got {x[0]:g} to {x[-1]:g}")
    if not 0 <= start <= 1:
        raise ValueError(f"start must lie in [0, 1], got {start}")
    _check_count("panels", panels, 1, MAX_PANELS)
    _check_count("points", points, 2, MAX_POINTS)
    _check_count("paths", paths, 1, MAX_CURVES)
    if unknown := set(limits or {}) - set(panels):
        raise ValueError(f"limits name {sorted(unknown)}, but the panels are {list(panels)}")
    if set(curves) != set(paths):
        raise ValueError(f"curves are for {list(curves)}, but the paths are {list(paths)}")
    size = 2 * len(panels) * len(columns) * len(rows) / 1000
    if size > FRAMES_LIMIT_KB:
        raise ValueError(
            f"the grids would take {size:.0f} kB, the limit is {FRAMES_LIMIT_KB} kB: "
            "use a coarser grid or fewer panels"
        )
    payload = {
        "u": rounded(columns),
        "v": rounded(rows),
        "uLabel": x_label,
        "vLabel": y_label,
        "panels": [
            _surface(title, grid, (len(rows), len(columns)), (limits or {}).get(title))
            | {"unit": units.get(title, "")}
            for title, grid in panels.items()
        ],
        "points": [_point(name, place, columns, rows) for name, place in points.items()],
        "paths": [
            {
                "name": name,
                "ends": _path_ends(name, ends, list(points)),
                "y": _curve(name, curves[name], list(panels), len(x), {})["y"],
            }
            for name, ends in paths.items()
        ],
        "x": rounded(x),
        "xLabel": path_label,
        "start": float(start),
    }
    summary = _path_summary(x, curves, next(iter(panels)))
    return figure_html("plane", payload, alt=alt, caption=caption, fallback=summary)


def step_explorer(
    x: ArrayLike,
    frames: Mapping[str, Any],
    labels: Sequence[str],
    series: Mapping[str, Any],
    *,
    alt: str,
    caption: str,
    x_label: str,
    y_label: str,
    step_label: str,
    unit: str = "",
    x_ticks: Sequence[str] | None = None,
    bars: bool = False,
    start: int = 0,
    band: Mapping[str, tuple[Any, Any]] | None = None,
    step_values_label: str | None = None,
    reference: tuple[str, float] | None = None,
) -> HTML:
    """Show curves that change with one setting, beside a summary of all settings.

    The axes hold every setting, so that what moves is what changed. A series whose title begins
    with a curve's name is drawn in that curve's colour and dash.

    Args:
        x: Positions of the curves' points, increasing, shape (X,).
        frames: Per curve (one to four), its values for every setting, shape (K, X). Among bars,
            NaN says that there is none.
        labels: What each setting is called, K texts.
        series: Per title (with its unit; at most four), one number per setting, shape (K,). All
            share one chart, so they have one unit. Empty: no summary.
        alt: What the picture shows, for readers who do not see it.
        caption: Text under the figure.
        x_label: Label of the horizontal axis.
        y_label: What the curves' values are.
        step_label: What a setting is; the label of the slider.
        unit: Unit of the curves' values. "%" means that they are fractions.
        x_ticks: Names of the positions, X texts. Default: numbers.
        bars: Whether to draw grouped bars, evenly spaced, instead of lines.
        start: Index of the setting shown first.
        band: Per curve, lower and upper limits, each of shape (K, X); whiskers on bars.
        step_values_label: Label of the summary's horizontal axis. Default: `step_label`.
        reference: Name and value of a dashed horizontal line among the curves.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: Lengths that differ, unknown names, NaN, empty texts, a start that is not a
            setting, or more data than a page should carry.

    Taught in: book/connectivity/loss-barriers
    """
    values_label = step_label if step_values_label is None else step_values_label
    check_texts(x_label=x_label, y_label=y_label, step_label=step_label)
    check_texts(step_values_label=values_label)
    at = _increasing("x", x, least=1 if bars else 2)
    if bars and x_ticks is None:
        x_ticks = [f"{value:g}" for value in at]
    if x_ticks is not None:
        check_length("x_ticks", x_ticks, len(at), "positions in x")
    _check_count("labels", labels, 1, STEPS_LIMIT)
    for k, label in enumerate(labels):
        check_texts(**{f"labels[{k}]": label})
    if isinstance(start, bool) or start != int(start) or not 0 <= start < len(labels):
        raise ValueError(f"start must be a whole number from 0 to {len(labels) - 1}, got {start}")
    _check_count("frames", frames, 1, MAX_CURVES)
    _check_count("series", series, 0, MAX_CURVES)
    if unknown := set(band or {}) - set(frames):
        raise ValueError(f"band names {sorted(unknown)}, but the curves are {list(frames)}")
    count = len(labels) * len(at) * (len(frames) + 2 * len(band or {}))
    if count > STEPS_LIMIT:
        raise ValueError(f"the figure would carry {count} numbers, the limit is {STEPS_LIMIT}")
    shape = (len(labels), len(at))
    lines = []
    for title, values in series.items():
        check_texts(**{"title of a series": title})
        line = numbers(f"series {title!r}", values, 1)
        check_length(f"series {title!r}", line, len(labels), "labels")
        lines.append({"title": title, "y": rounded(line)})
    payload = {
        "x": rounded(at),
        "xTicks": None if x_ticks is None else [str(text) for text in x_ticks],
        "xLabel": x_label,
        "yLabel": y_label,
        "unit": unit,
        "bars": bool(bars),
        "labels": list(labels),
        "stepLabel": step_label,
        "valuesLabel": values_label,
        "start": int(start),
        "curves": [
            _stepped(name, values, (band or {}).get(name), shape, bars)
            for name, values in frames.items()
        ],
        "series": lines,
        "reference": None if reference is None else _reference(*reference),
    }
    summary = "; ".join(
        f"{line['title']}: {line['y'][0]:g} ({labels[0]}) to {line['y'][-1]:g} ({labels[-1]})"
        for line in lines
    )
    fallback = summary + "." if summary else ""
    return figure_html("steps", payload, alt=alt, caption=caption, fallback=fallback)


def live_network(
    layers_a: Layers,
    layers_b_naive: Layers,
    layers_b_matched: Layers,
    images: ArrayLike,
    labels: ArrayLike,
    image_shape: tuple[int, int],
    class_names: Sequence[str],
    *,
    alt: str,
    caption: str,
    names: tuple[str, str] = ("naive path", "matched path"),
    x_label: str = "position λ on the path",
    ends: tuple[str, str] = ("network A", "network B"),
    weights: Literal["float32", "float16"] = "float32",
) -> HTML:
    """Run ReLU networks in the page: the reader walks from A to B, and the page computes.

    At position λ the network has the parameters (1 - λ) A + λ B. Loss (mean cross-entropy, nats)
    and accuracy on the shipped images, and the predictions for what the reader draws, are computed
    in plain JavaScript. The loss agrees with torch in float32 to 1e-4; with
    `weights="float16"` it does so for the parameters after rounding to float16.

    Args:
        layers_a: Network A, one (weight (out, in), bias (out,)) pair per layer.
        layers_b_naive: Network B as it was trained, the same shapes.
        layers_b_matched: Network B with its units permuted, the same shapes.
        images: Inputs in [0, 1], shape (N, H * W) or (N, H, W).
        labels: Class indices, shape (N,).
        image_shape: (H, W).
        class_names: One name per output of the networks.
        alt: What the picture shows, for readers who do not see it.
        caption: Text under the figure.
        names: What the two paths are called.
        x_label: Label of the horizontal axis and of the slider.
        ends: What stands at the two ends of the paths.
        weights: Number format in which the parameters are shipped.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: Shapes that do not fit, NaN, empty texts, or more data than a page should carry.

    Taught in: book/connectivity/weight-matching
    """
    if weights not in ("float32", "float16"):
        raise ValueError(f"weights must be 'float32' or 'float16', got {weights!r}")
    check_texts(x_label=x_label)
    networks = [
        _network(name, layers)
        for name, layers in [
            ("layers_a", layers_a),
            ("layers_b_naive", layers_b_naive),
            ("layers_b_matched", layers_b_matched),
        ]
    ]
    shapes = networks[0].shapes
    for network in networks[1:]:
        if network.shapes != shapes:
            raise ValueError(f"the networks differ in shape: {shapes} and {network.shapes}")
    height, width = image_shape
    pixels = _pixels(images, height * width)
    classes = _class_indices(labels, len(class_names))
    check_length("labels", classes, len(pixels), "images")
    if shapes[0][0] != height * width:
        raise ValueError(f"the networks take {shapes[0][0]} inputs, the images have {image_shape}")
    check_length("class_names", class_names, shapes[-1][1], "outputs of the networks")
    scale = _exact_scale(pixels)
    shipped = np.rint(pixels * scale).astype(np.uint8) if scale else pixels.astype(np.float32)
    payload = {
        "layers": [list(shape) for shape in shapes],
        "half": weights == "float16",
        "networks": [encoded(network.parameters.astype(weights)) for network in networks],
        "images": encoded(shipped),
        "scale": scale,
        "labels": encoded(classes),
        "width": width,
        "height": height,
        "classNames": list(class_names),
        "names": list(names),
        "xLabel": x_label,
        "ends": list(ends),
    }
    size = sum(len(text) for text in [*payload["networks"], payload["images"]]) / 1000  # type: ignore[misc]
    if size > LIVE_LIMIT_KB:
        raise ValueError(
            f"the figure would carry {size:.0f} kB, the limit is {LIVE_LIMIT_KB} kB: "
            "ship fewer images, a narrower network, or weights='float16'"
        )
    summary = "Both paths are computed in the page once its script may run."
    script = f"{source('network.js')}\n{source('live.js')}"
    return figure_html("live", payload, alt=alt, caption=caption, fallback=summary, script=script)


def image_slider(
    images: Sequence[bytes],
    labels: Sequence[str],
    alts: Sequence[str],
    name: str,
    caption: str,
) -> HTML:
    """Show pictures that were drawn beforehand, one per position of a slider.

    Args:
        images: PNG bytes, K pictures of one size (see `png`), shown at half that size.
        labels: What each position is called, K texts.
        alts: What each picture shows, K texts.
        name: Label of the slider.
        caption: Text under the figure.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: Lengths that differ, empty texts, or bytes that are not PNG.

    Taught in: book/connectivity/weight-matching
    """
    check_texts(name=name)
    if not images:
        raise ValueError("images must hold at least one picture")
    check_length("labels", labels, len(images), "images")
    check_length("alts", alts, len(images), "images")
    for k, (image, text) in enumerate(zip(images, alts, strict=True)):
        check_texts(**{f"alts[{k}]": text})
        if not image.startswith(b"\x89PNG\r\n"):
            raise ValueError(f"images[{k}] is not PNG data")
    sources = [_data_uri(image, "image/png") for image in images]
    payload = {"name": name, "sources": sources, "labels": list(labels), "alts": list(alts)}
    stage = _plate(sources[0], alts[0], _shown_width(images[0]))
    return figure_html("images", payload, alt=alts[0], caption=caption, stage=stage)


def png(fig: Figure, dpi: float = 180) -> bytes:
    """Draw a Matplotlib figure as PNG and close it.

    Args:
        fig: The figure.
        dpi: Pixels per inch; 180 is sharp on a screen that shows the picture at half its size.

    Returns:
        The bytes of the picture; the same figure gives the same bytes.

    Taught in: book/connectivity/weight-matching
    """
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    plt.close(fig)
    return buffer.getvalue()


def static_figure(
    fig: Figure, *, alt: str, caption: str, format: Literal["png", "svg"] = "png"
) -> HTML:
    """Show a Matplotlib figure with its alternative text and caption, on a light card.

    Args:
        fig: The figure; it is closed.
        alt: What the picture shows, for readers who do not see it.
        caption: Text under the figure.
        format: "png" at twice the size shown, or "svg" for few lines and sharp text.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: A text is empty, or the format is unknown.

    Taught in: book/connectivity/weight-matching
    """
    check_texts(alt=alt, caption=caption)
    if format == "png":
        data = png(fig)
        plate = _plate(_data_uri(data, "image/png"), alt, _shown_width(data))
    elif format == "svg":
        plate = _plate(_data_uri(_svg(fig), "image/svg+xml"), alt)
    else:
        raise ValueError(f"format must be 'png' or 'svg', got {format!r}")
    name = content_name("static", plate, caption)
    return HTML(
        f'<figure class="lmc-fig" id="lmc-{name}" aria-labelledby="lmc-{name}-caption">'
        f"<style>{source('figure.css')}</style>{plate}"
        f'<figcaption class="lmc-caption" id="lmc-{name}-caption">{html.escape(caption)}'
        "</figcaption></figure>"
    )


class _Network(NamedTuple):
    """The (in, out) of each layer, and all parameters in one row: per layer W.T, then bias."""

    shapes: list[tuple[int, int]]
    parameters: NDArray[np.float64]


def _network(name: str, layers: Layers) -> _Network:
    """Flatten a network for the page; weights become (in, out)."""
    if not layers:
        raise ValueError(f"{name} has no layers")
    shapes: list[tuple[int, int]] = []
    parts = []
    for k, (weight, bias) in enumerate(layers):
        w = numbers(f"{name}: weight of layer {k}", weight, 2)
        b = numbers(f"{name}: bias of layer {k}", bias, 1)
        check_length(f"{name}: bias of layer {k}", b, w.shape[0], "rows of its weight")
        if shapes and shapes[-1][1] != w.shape[1]:
            raise ValueError(
                f"{name}: layer {k} takes {w.shape[1]} inputs, the one before gives {shapes[-1][1]}"
            )
        shapes.append((w.shape[1], w.shape[0]))
        parts += [w.T.ravel(), b]
    return _Network(shapes, np.concatenate(parts))


def _pixels(images: Any, inputs: int) -> NDArray[np.float64]:
    """Images as rows of gray values, shape (N, inputs)."""
    ndim = getattr(images, "ndim", None) or np.ndim(images)
    pixels = numbers("images", images, 3 if ndim == 3 else 2)
    pixels = pixels.reshape(len(pixels), -1)
    if pixels.shape[1] != inputs:
        raise ValueError(f"images have {pixels.shape[1]} pixels, image_shape says {inputs}")
    if pixels.min() < 0 or pixels.max() > 1:
        raise ValueError(f"images must lie in [0, 1], got [{pixels.min():g}, {pixels.max():g}]")
    return pixels


def _exact_scale(pixels: NDArray[np.float64]) -> int:
    """The number of gray levels that holds every pixel exactly in one byte; 0 if none does."""
    for scale in (1, 15, 16, 255):
        levels = pixels * scale
        if np.abs(levels - np.rint(levels)).max() < 1e-5:
            return scale
    return 0


def _class_indices(labels: Any, classes: int) -> NDArray[np.uint8]:
    """Class indices as bytes, shape (N,)."""
    values = numbers("labels", labels, 1)
    if (values != np.rint(values)).any() or values.min() < 0 or values.max() >= classes:
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}")
    if classes > 256:
        raise ValueError(f"at most 256 classes fit, got {classes}")
    return values.astype(np.uint8)


def _curve(
    name: str,
    values: Mapping[str, Any],
    panels: Panels,
    count: int,
    bands: Mapping[str, tuple[Any, Any]],
) -> dict[str, Any]:
    """One path: per panel its values and, where given, the limits around them."""
    if missing := [panel for panel in panels if panel not in values]:
        raise ValueError(f"curve {name!r} lacks the panels {missing}; it has {list(values)}")

    def read(what: str, array: Any) -> list[float]:
        line = numbers(f"{what} of curve {name!r}", array, 1)
        check_length(f"{what} of curve {name!r}", line, count, "positions")
        return rounded(line)

    return {
        "name": name,
        "y": [read(panel, values[panel]) for panel in panels],
        "low": [read(f"{p} band", bands[p][0]) if p in bands else None for p in panels],
        "high": [read(f"{p} band", bands[p][1]) if p in bands else None for p in panels],
    }


def _sample(sample: Sample, names: list[str], count: int) -> dict[str, Any]:
    """The example: gray values with two digits, probabilities with three decimals."""
    image = numbers("sample image", sample["image"], 2)
    if image.min() < 0 or image.max() > 1:
        raise ValueError("the sample image must lie in [0, 1]")
    classes = len(sample["class_names"])
    if not 0 <= sample["true_class"] < classes:
        raise ValueError(f"true_class {sample['true_class']} is not one of {classes} classes")
    if set(sample["probabilities"]) != set(names):
        raise ValueError(
            f"sample probabilities are for {list(sample['probabilities'])}, not {names}"
        )
    probabilities = []
    for name in names:
        rows = numbers(f"probabilities of {name!r}", sample["probabilities"][name], 2)
        if rows.shape != (count, classes):
            raise ValueError(
                f"probabilities of {name!r} must have shape {(count, classes)}, got {rows.shape}"
            )
        if rows.min() < -1e-6 or np.abs(rows.sum(axis=1) - 1).max() > 1e-3:
            raise ValueError(f"probabilities of {name!r} must be at least 0 and sum to 1")
        probabilities.append(np.round(rows, 3).tolist())
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "pixels": np.round(image.ravel(), 3).tolist(),
        "truth": int(sample["true_class"]),
        "classNames": list(sample["class_names"]),
        "probabilities": probabilities,
    }


def _path_summary(
    x: NDArray[np.float64], curves: Mapping[str, Mapping[str, Any]], panel: str
) -> str:
    """The first panel in words, for readers without scripts."""
    parts = []
    for name, values in curves.items():
        y = numbers(panel, values[panel], 1)
        top = int(y.argmax())
        parts.append(
            f"{name}: {panel} {y[0]:.3g} at the start, {y[-1]:.3g} at the end, "
            f"at most {y[top]:.3g} (at {x[top]:.3g})"
        )
    return "; ".join(parts) + "."


def _increasing(name: str, values: Any, least: int = 2) -> NDArray[np.float64]:
    """Numbers of which each is larger than the one before, shape (N,)."""
    array = numbers(name, values, 1)
    if len(array) < least or not (np.diff(array) > 0).all():
        raise ValueError(f"{name} must be at least {least} increasing numbers")
    return array


def _check_count(name: str, entries: Any, least: int, most: int) -> None:
    """Refuse too few or too many entries."""
    if not least <= len(entries) <= most:
        raise ValueError(f"{name} must hold {least} to {most} entries, got {len(entries)}")


def _surface(
    title: str, grid: Any, shape: tuple[int, int], limits: tuple[float, float] | None
) -> dict[str, Any]:
    """One quantity on the plane: 65536 levels, and whether values lie beyond the scale's ends."""
    check_texts(**{"title of a panel": title})
    values = numbers(f"panel {title!r}", grid, 2)
    if values.shape != shape:
        raise ValueError(
            f"panel {title!r} must have shape {shape}, a row per v and a column per u, "
            f"got {values.shape}"
        )
    low, high = (float(values.min()), float(values.max())) if limits is None else map(float, limits)
    if limits is None and not high > low:
        high = low + 1.0
    if not (np.isfinite([low, high]).all() and high > low):
        raise ValueError(f"limits of {title!r} must be a lower and a higher number, got {limits}")
    levels = np.rint(np.clip((values - low) / (high - low), 0, 1) * 65535).astype(np.uint16)
    return {
        "title": title,
        "levels": encoded(levels),
        "low": low,
        "high": high,
        "under": bool(values.min() < low),
        "over": bool(values.max() > high),
    }


def _point(
    name: str, place: tuple[float, float], u: NDArray[np.float64], v: NDArray[np.float64]
) -> dict[str, Any]:
    """A named network in the plane."""
    check_texts(**{"name of a point": name})
    at = numbers(f"point {name!r}", place, 1)
    check_length(f"point {name!r}", at, 2, "coordinates")
    if not (u[0] <= at[0] <= u[-1] and v[0] <= at[1] <= v[-1]):
        raise ValueError(
            f"point {name!r} at ({at[0]:g}, {at[1]:g}) lies outside the grid "
            f"[{u[0]:g}, {u[-1]:g}] x [{v[0]:g}, {v[-1]:g}]"
        )
    return {"name": name, "at": rounded(at)}


def _path_ends(name: str, ends: tuple[str, str], points: list[str]) -> list[int]:
    """Indices of the two points that a path joins."""
    check_texts(**{"name of a path": name})
    if len(ends) != 2 or ends[0] == ends[1]:
        raise ValueError(f"path {name!r} must join two different points, got {ends}")
    if unknown := [end for end in ends if end not in points]:
        raise ValueError(f"path {name!r} names {unknown}, but the points are {points}")
    return [points.index(end) for end in ends]


def _stepped(
    name: str,
    values: Any,
    band: tuple[Any, Any] | None,
    shape: tuple[int, int],
    gaps: bool,
) -> dict[str, Any]:
    """One curve for every setting, shape (K, X); where `gaps`, NaN becomes null."""
    check_texts(**{"name of a curve": name})

    def read(what: str, array: Any) -> list[list[float | None]]:
        raw = np.array(array.detach().cpu() if hasattr(array, "detach") else array, np.float64)
        absent = np.isnan(raw) & gaps
        table = numbers(what, np.where(absent, 0.0, raw), 2)
        if table.shape != shape:
            raise ValueError(
                f"{what} must have shape {shape}, a row per label and a column per position, "
                f"got {table.shape}"
            )
        pairs = zip(rounded(table), absent.tolist(), strict=True)
        return [
            [None if gap else number for number, gap in zip(*row, strict=True)] for row in pairs
        ]

    low, high = (None, None) if band is None else band
    return {
        "name": name,
        "y": read(f"curve {name!r}", values),
        "low": None if low is None else read(f"lower band of {name!r}", low),
        "high": None if high is None else read(f"upper band of {name!r}", high),
    }


def _reference(name: str, value: float) -> dict[str, Any]:
    """A horizontal line and what it is called."""
    check_texts(**{"name of the reference": name})
    return {"name": name, "value": rounded(numbers("reference", [value], 1))[0]}


def _data_uri(data: bytes, media: str) -> str:
    """A picture as text that stands in the page."""
    return f"data:{media};base64,{base64.b64encode(data).decode('ascii')}"


def _shown_width(image: bytes) -> int:
    """Half the width in pixels of a PNG, read from its header: sharp on dense screens."""
    return int.from_bytes(image[16:20], "big") // 2


def _plate(uri: str, alt: str, width: int | None = None) -> str:
    """A picture on a light card; the class keeps the theme from dimming it."""
    size = "" if width is None else f' width="{width}"'
    return (
        f'<div class="lmc-plate"><img class="dark-light" alt="{html.escape(alt)}"{size} '
        f'src="{uri}"></div>'
    )


def _svg(fig: Figure) -> bytes:
    """A figure as SVG with fixed ids and no date, closed afterwards."""
    buffer = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "lmc-lessons", "svg.fonttype": "path"}):
        fig.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(fig)
    return buffer.getvalue()

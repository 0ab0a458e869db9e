"""The HTML of one figure: data, style and script in one piece that needs no kernel and no network.

A kind of figure is a JavaScript file beside this module with one function `build(root, data)`. It
is inlined after `core.js`, which gives it charts, sliders and the theme. Another module brings its
own kind by passing the text of such a file as `script`.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np
from IPython.display import HTML
from numpy.typing import NDArray

KINDS = ("path", "matrix", "live", "images", "plane", "steps", "landscape")


def figure_html(
    kind: str,
    payload: Mapping[str, Any],
    *,
    alt: str,
    caption: str,
    fallback: str = "",
    stage: str | None = None,
    script: str | None = None,
) -> HTML:
    """Make the self-contained HTML of one figure.

    The same arguments give the same text: ids are derived from the content. The figure may stand
    more than once on a page.

    Args:
        kind: One of `KINDS`, or the name of the figure that `script` draws.
        payload: What the script draws: JSON values, without NaN.
        alt: What the picture shows, for readers who do not see it.
        caption: Text under the figure.
        fallback: The result in words, shown where scripts do not run.
        stage: HTML to start from. Default: an empty picture with `alt` as its label.
        script: JavaScript with a function `build(root, data)`. Default: the package's own.

    Returns:
        An object that Jupyter displays as HTML.

    Raises:
        ValueError: The kind is unknown, a text is empty, or the payload holds NaN or infinity.

    Taught in: book/connectivity/weight-matching
    """
    check_texts(alt=alt, caption=caption)
    if script is None and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, or bring a script; got {kind!r}")
    try:
        data = json.dumps(payload, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    except ValueError as error:
        raise ValueError(f"the payload of a {kind!r} figure must be finite: {error}") from error
    name = content_name(kind, data, alt, caption)
    if stage is None:
        stage = f'<div class="lmc-stage" role="img" aria-label="{html.escape(alt)}"></div>'
    note = f'<p class="lmc-fallback">{html.escape(fallback)}</p>' if fallback else ""
    code = "\n".join([source("core.js"), script or source(f"{kind}.js")])
    return HTML(
        f'<figure class="lmc-fig" id="lmc-{name}" data-lmc="{name}" '
        f'data-lm-suppress-shortcuts="true"><style>{source("figure.css")}</style>'
        f'<div class="lmc-card">{stage}{note}</div>'
        f'<figcaption class="lmc-caption">{html.escape(caption)}</figcaption></figure>\n'
        f'<script>(function () {{\n"use strict";\n{code}\n'
        f'mount("{name}", {data}, 0);\n}})();</script>'
    )


def content_name(*parts: str) -> str:
    """Derive a figure's name from everything it shows.

    Args:
        parts: The texts that make the figure.

    Returns:
        Twelve hexadecimal digits; equal parts give equal names.

    Taught in: book/connectivity/weight-matching
    """
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


@cache
def source(name: str) -> str:
    """Read a style sheet or script of this package, without its indentation and comment lines.

    Args:
        name: File name, such as `core.js`.

    Returns:
        The text to inline.

    Taught in: book/connectivity/weight-matching
    """
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("//"))


def check_texts(**texts: str) -> None:
    """Refuse empty texts.

    Args:
        texts: The texts by the name of their argument.

    Raises:
        ValueError: A text is empty or blank.

    Taught in: book/connectivity/weight-matching
    """
    for name, text in texts.items():
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name} must be a text that is not empty, got {text!r}")


def check_length(name: str, values: Sequence[Any] | NDArray[Any], expected: int, of: str) -> None:
    """Refuse a list whose length differs from the one it belongs to.

    Args:
        name: What the list is called in the message.
        values: The list.
        expected: The length it must have.
        of: What that length counts.

    Raises:
        ValueError: The lengths differ.

    Taught in: book/connectivity/weight-matching
    """
    if len(values) != expected:
        raise ValueError(f"{name} has {len(values)} entries, but there are {expected} {of}")


def numbers(name: str, values: Any, ndim: int) -> NDArray[np.float64]:
    """Read finite numbers from a list, an array or a tensor.

    Args:
        name: What the numbers are called in the message.
        values: Anything NumPy reads; a tensor is detached and brought to the CPU first.
        ndim: The number of axes it must have.

    Returns:
        The numbers as float64 (the shape of `values`).

    Raises:
        ValueError: Wrong number of axes, empty, NaN or infinite.

    Taught in: book/connectivity/weight-matching
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or array.size == 0:
        raise ValueError(f"{name} must have {ndim} axes and not be empty, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity")
    return array


def rounded(values: NDArray[np.float64], digits: int = 5) -> list[Any]:
    """Round to significant digits, so that the page stays small.

    Args:
        values: Numbers of any shape.
        digits: Significant digits that are kept.

    Returns:
        Nested lists of the same shape.

    Taught in: book/connectivity/weight-matching
    """
    flat = [float(f"{v:.{digits}g}") for v in values.ravel()]
    result: list[Any] = np.array(flat).reshape(values.shape).tolist()
    return result


def encoded(array: NDArray[Any]) -> str:
    """Pack an array as base64, little endian, in row order.

    Args:
        array: Numbers in the type they are to be shipped in.

    Returns:
        Text of 4/3 of the array's bytes.

    Taught in: book/connectivity/weight-matching
    """
    little = array.astype(array.dtype.newbyteorder("<"))
    return base64.b64encode(np.ascontiguousarray(little).tobytes()).decode("ascii")

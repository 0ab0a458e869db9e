"""Figures that are drawn from results: the same function draws the study and the full scale."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from PIL import Image

from lmc_lessons.evaluation import t_interval
from lmc_lessons.results import Effect, Result
from lmc_lessons.teaching.interactive import static_figure

# Okabe and Ito's palette, told apart by people with any kind of colour vision
ORANGE, BLUE, GREEN, PINK, GREY = "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#666666"
LOOKS = ((ORANGE, "--", "o"), (BLUE, "-", "s"), (GREEN, ":", "^"), (PINK, "-.", "D"))
MARKED = 30  # curves of more points are drawn without markers


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The look of every static figure: quiet axes, readable type."""
    quiet: Any = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10,
        "axes.titlesize": 10,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
    }
    with plt.rc_context(quiet):
        yield


def mean_with_interval(
    ax: Axes, ticks: list[Any], values: list[Any], label: str, look: tuple[str, str, str]
) -> None:
    """Draw a mean over seeds with its 95 % interval as a band.

    Args:
        ax: Where to draw.
        ticks: Positions on the x axis, T of them.
        values: One curve per seed, shape (S, T).
        label: For the legend.
        look: Colour, line style and marker.
    """
    colour, dashes, marker = look
    intervals = [t_interval(list(column)) for column in np.asarray(values, dtype=float).T]
    means = [i.mean for i in intervals]
    ax.plot(ticks, means, color=colour, linestyle=dashes, marker=marker, markersize=4, label=label)
    if len(values) > 1:
        low, high = [i.low for i in intervals], [i.high for i in intervals]
        ax.fill_between(ticks, low, high, color=colour, alpha=0.15, linewidth=0)


def averaged(count: int, drawn_as: str = "band", repeated: str = "pair") -> str:
    """The sentence of a caption that says what was averaged.

    Args:
        count: Number of repetitions.
        drawn_as: What shows the interval.
        repeated: What was repeated, in the singular.

    Returns:
        One sentence; a single repetition has no interval.
    """
    if count == 1:
        return f"One {repeated}: no interval."
    return f"Mean over {count} {repeated}s, {drawn_as}: 95 % interval."


def curves_figure(
    result: Result,
    name: str,
    *,
    x_label: str,
    y_label: str,
    alt: str,
    caption: str,
    within: Sequence[Any] = (),
    shown: Mapping[Any, str] | None = None,
    log: bool = False,
    y_limits: tuple[float | None, float | None] = (None, None),
    legend: str = "",
    repeated: str = "pair",
) -> HTML:
    """Draw a stored series: one curve per entry of its last axis but one, over its last axis.

    Args:
        result: A study or a full-scale run.
        name: The series.
        x_label: Label of the horizontal axis.
        y_label: Label of the vertical axis.
        alt: What the picture shows.
        caption: Text under the figure; the number of repetitions and the meaning of the band are
            added.
        within: Ticks that choose one entry on each of the first axes, where there are more than
            two.
        shown: Which curves, and what each is called; all by default. At most four.
        log: Whether the horizontal axis is logarithmic.
        y_limits: Ends of the vertical axis; None leaves an end to the data.
        legend: Title of the legend.
        repeated: What was repeated, in the singular.

    Returns:
        A figure.

    Raises:
        KeyError: If the result has no such series.
        ValueError: If ``within`` names what is not there or leaves more than two axes, or there
            are not one to four curves.
    """
    series = result.series[name]
    if not 1 <= len(series.axes) - len(within) <= 2:
        raise ValueError(f"{name!r} has the axes {list(series.axes)}: leave one or two of them")
    for (axis, entries), tick in zip(series.axes.items(), within, strict=False):
        if tick not in entries:
            raise ValueError(f"no {axis} {tick!r} in {name!r}, there are: {entries}")
    axes = list(series.axes.values())
    chosen = [axis.index(tick) for axis, tick in zip(axes, within, strict=False)]
    values = series.values
    for place in chosen:
        values = [seed[place] for seed in values]
    *rest, ticks = axes[len(chosen) :]
    rows = {"": values} if not rest else {}
    for k, entry in enumerate(rest[0] if rest else ()):
        if shown is None or entry in shown:
            rows[str(entry) if shown is None else shown[entry]] = [seed[k] for seed in values]
    if not 1 <= len(rows) <= len(LOOKS):
        raise ValueError(f"{name!r} gives {len(rows)} curves out of {rest}: choose 1 to 4")
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for (colour, dashes, marker), (label, curves) in zip(LOOKS, rows.items(), strict=False):
            look = (colour, dashes, marker if len(ticks) <= MARKED else "")
            mean_with_interval(ax, ticks, curves, label, look)
        if log:
            if 0 in ticks:
                ax.set_xscale("symlog", linthresh=min(tick for tick in ticks if tick))
            else:
                ax.set_xscale("log")
            ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            ax.minorticks_off()
        ax.set(xlabel=x_label, ylabel=y_label, ylim=y_limits)
        if rest:
            ax.legend(title=legend or None)
    return static_figure(
        fig, alt=alt, caption=f"{caption} {averaged(len(result.seeds), repeated=repeated)}"
    )


def paths_figure(
    result: Result, names: Mapping[str, str], title: str, *, legend: str, axis: str = "path"
) -> HTML:
    """Test loss along straight paths, mean and interval over pairs.

    Args:
        result: A study or a full-scale run with the series ``test_loss``.
        names: Which paths, and what each is called; at most four.
        title: Named in the caption.
        legend: Title of the legend.
        axis: What the result calls the paths.

    Returns:
        A figure whose alternative text tells the height of every path at its midpoint.
    """
    series = result.series["test_loss"]
    entries, middle = series.axes[axis], len(series.axes["position"]) // 2
    heights = {
        words: np.mean([seed[entries.index(entry)][middle] for seed in series.values])
        for entry, words in names.items()
    }
    told = ", ".join(f"{words} {height:.2f}" for words, height in heights.items())
    return curves_figure(
        result,
        "test_loss",
        shown=names,
        x_label="position $t$ on the path",
        y_label="test loss (nats)",
        y_limits=(0, None),
        legend=legend,
        alt=f"Test loss along the straight path. At the midpoint, in nats: {told}.",
        caption=f"{title}.",
    )


def few_colours(image: bytes, colours: int = 48) -> bytes:
    """The same PNG with a palette: a slider carries many pictures, and a page should stay light.

    Args:
        image: Bytes of a PNG.
        colours: Size of the palette, at most 256.

    Returns:
        Bytes of a PNG.
    """
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).convert("RGB").quantize(colours).save(buffer, "PNG")
    return buffer.getvalue()


def text(result: Result, effect: Effect, *, scale: float = 100, form: str = "+.1f") -> str:
    """A mean with its interval over seeds, for a sentence.

    Args:
        result: The run.
        effect: One number per seed.
        scale: What the numbers are multiplied by.
        form: How they are written.

    Returns:
        Such as ``+3.0 [+1.2, +4.8]``; of one seed the number alone.
    """
    values = effect(result)
    if len(values) == 1:
        return f"{scale * values[0]:{form}}"
    found = t_interval(values)
    return f"{scale * found.mean:{form}} [{scale * found.low:{form}}, {scale * found.high:{form}}]"

"""Figures that are drawn from results: the same function draws the study and the full scale."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from lmc_lessons.evaluation import t_interval

# Okabe and Ito's palette, told apart by people with any kind of colour vision
ORANGE, BLUE, GREEN, PINK, GREY = "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#666666"
LOOKS = ((ORANGE, "--", "o"), (BLUE, "-", "s"), (GREEN, ":", "^"), (PINK, "-.", "D"))


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

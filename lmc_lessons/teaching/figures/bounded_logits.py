"""Figures of the lesson on bounded logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.stats import spearmanr

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments.bounded_logits import METHODS, at, head_of, left
from lmc_lessons.results import Result
from lmc_lessons.robustness.bounded_logits import U_STAR, Kind, optimum
from lmc_lessons.teaching.figures import BLUE, GREEN, GREY, LOOKS, ORANGE, PINK, averaged, style
from lmc_lessons.teaching.figures import few_colours as _few_colours
from lmc_lessons.teaching.figures import mean_with_interval as curve
from lmc_lessons.teaching.figures import text as text  # also for the page
from lmc_lessons.teaching.interactive import image_slider, png, static_figure
from lmc_lessons.teaching.tables import plain_table

ATTACK_NAMES = {
    "clean": "none",
    "CE": "PGD, cross-entropy",
    "margin": "PGD, margin",
    "targeted": "targeted APGD",
    "pre-logits": "pre-logits",
    "extension": "extension",
    "BPDA": "BPDA",
    "transfer": "transfer",
    "Square": "Square",
    "all": "all together",
}
DOTS = {"CE": (ORANGE, "o"), "margin": (BLUE, "s"), "all": (GREEN, "D")}
FAMILIES = {
    "no head, no penalty": (GREY, "x"),
    "tanh": (ORANGE, "o"),
    "BLF": (BLUE, "s"),
    "smoothing": (GREEN, "^"),
    "squeezing": (PINK, "v"),
    "pairing": (PINK, "P"),
}
LABELLED = {  # where the label stands: offset in points, and which side touches the point
    "plain": ((-6, 5), "right"),
    "plain, short": ((-6, 5), "right"),
    "tanh 1": ((-7, -4), "right"),
    "tanh 5": ((6, 5), "left"),
    "BLF 1": ((7, -5), "left"),
    "BLF 5": ((6, -11), "left"),
    "LS 0.27": ((-7, -4), "right"),
    "LSQ 0.081": ((-7, -15), "right"),
}
KINDS: dict[str, Kind] = {"smoothing": "smoothing", "squeezing": "squeezing"}


def free(result: Result, heads: tuple[str, str] = ("tanh 1", "BLF 1"), seed: int = 0) -> HTML:
    """Where gradient descent takes the pre-logits of one sample behind two heads.

    Args:
        result: A study.
        heads: Two heads of its free pre-logits.
        seed: Which of its seeds to show, by index.

    Returns:
        A figure with a slider over the steps.

    Taught in: book/robustness/bounded-logits
    """
    series = result.series["free"]
    steps, names = series.axes["step"], series.axes["head"]
    values = np.asarray(series.values[seed])  # (heads, steps, classes)
    shown = [values[names.index(head)] for head in heads]
    reach = 1.25 * max(float(np.abs(part).max()) for part in shown)
    images, alts = [], []
    for k, step in enumerate(steps):
        with style():
            fig = plt.figure(figsize=(6.4, 4.6))
            grid = fig.add_gridspec(2, 2, height_ratios=(3, 2))
            for place, (head, part) in enumerate(zip(heads, shown, strict=True)):
                _on_curve(fig.add_subplot(grid[0, place]), head, part[k], reach)
            _lengths_by_step(fig.add_subplot(grid[1, :]), steps, heads, shown, k)
            images.append(_few_colours(png(fig, dpi=180)))
        told = "; ".join(
            f"{head}: true class at {part[k][0]:.2f}, the others at {part[k][1:].mean():.2f} on "
            f"average, length of all {np.linalg.norm(part[k]):.2f}"
            for head, part in zip(heads, shown, strict=True)
        )
        alts.append(f"Pre-logits after {step} steps. {told}.")
    return image_slider(
        images,
        [f"{step}" for step in steps],
        alts,
        "steps of gradient descent",
        "Above: each head as a function, and where the pre-logits of one sample are on it (square: "
        f"true class, circles: the {values.shape[-1] - 1} others). Below: length of all of them "
        "together, by step.",
    )


def _on_curve(ax: Axes, head: str, u: NDArray[Any], reach: float) -> None:
    """A head, and pre-logits on it."""
    at_all = torch.linspace(-reach, reach, 241, dtype=torch.float64)
    points = torch.as_tensor(u)
    ax.plot(at_all, head_of(head)(at_all), color=GREY)
    heights = head_of(head)(points)
    ax.plot(u[1:], heights[1:], linestyle="", marker="o", color=ORANGE, alpha=0.7, markersize=6)
    ax.plot(u[:1], heights[:1], linestyle="", marker="s", color=BLUE, markersize=8)
    ax.set(title=f"head: {head}", xlabel="pre-logit $u$", ylabel="logit $g(u)$")


def _lengths_by_step(
    ax: Axes, steps: Sequence[int], heads: Sequence[str], parts: Sequence[NDArray[Any]], now: int
) -> None:
    """Length of the pre-logits, with the present step marked."""
    for (colour, dashes, marker), head, part in zip(LOOKS, heads, parts, strict=False):
        length = np.linalg.norm(part, axis=-1)
        ax.plot(steps, length, color=colour, linestyle=dashes, marker=marker, label=head)
        ax.plot(steps[now], length[now], marker=marker, color=colour, markersize=10)
    ax.axvline(steps[now], color=GREY, linewidth=1)
    ax.set_xscale("symlog", linthresh=1)
    ax.set(xlabel="step", ylabel="length", xlim=(0, None), ylim=(0, None))
    ax.legend(loc="upper left", fontsize=8)


def growth(result: Result, heads: Sequence[str]) -> HTML:
    """Length of free pre-logits by step, mean over starts.

    Args:
        result: A study.
        heads: One to four heads of its free pre-logits.

    Returns:
        A figure.

    Taught in: book/robustness/bounded-logits
    """
    series = result.series["free"]
    steps, names = series.axes["step"], series.axes["head"]
    lengths = np.linalg.norm(np.asarray(series.values), axis=-1)  # (seeds, heads, steps)
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for name, look in zip(heads, LOOKS, strict=False):
            own = lengths[:, names.index(name)]
            curve(ax, steps, own.tolist(), name, look)
            told.append(f"{name} {own[:, -1].mean():.2f}")
        goal = U_STAR * math.sqrt(len(series.axes["class"]))
        ax.axhline(goal, color=GREY, linewidth=1, linestyle=":")
        ax.set_xscale("symlog", linthresh=1)
        ax.set(xlabel="step of gradient descent", ylabel="length of the pre-logits")
        ax.set(xlim=(0, None), ylim=(0, None))
        ax.legend()
    return static_figure(
        fig,
        alt=f"Length of free pre-logits by step. After {steps[-1]} steps: {', '.join(told)}.",
        caption=f"Dotted: the optimum behind BLF, {goal:.3f}, whatever the bound. "
        f"{averaged(len(result.seeds), repeated='start')}",
    )


def expected_lengths(name: str, classes: int = 10) -> tuple[float, float]:
    """Lengths of logits and pre-logits at a method's optimum.

    Args:
        name: Name of a method.
        classes: Number of classes.

    Returns:
        Both lengths; infinite or not a number where there is none.
    """
    method = METHODS[name]
    if method.against or method.share < 1:
        return math.nan, math.nan
    if method.penalty == "pairing":
        found = optimum("squeezing", 4 * method.weight, classes)
    elif method.penalty:
        found = optimum(KINDS[method.penalty], method.weight, classes)
    elif method.head == "none":
        found = optimum("plain", classes=classes)
    else:
        found = optimum("tanh" if method.head == "tanh" else "blf", method.bound, classes)
    return found.logit_norm, found.pre_logit_norm


def lengths(result: Result, names: Sequence[str]) -> HTML:
    """Lengths of logits and pre-logits of trained networks, and where theory expects them.

    Args:
        result: A study or a full-scale run.
        names: Which networks; those that were not run are left out.

    Returns:
        A figure.

    Taught in: book/robustness/bounded-logits
    """
    used = [name for name in names if name in result.series["networks"].axes["network"]]
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 0.34 * len(used) + 1))
        for row, name in enumerate(used):
            logits, before = (
                float(np.mean(at(name, f"train {kind} norm")(result)))
                for kind in ("logit", "pre-logit")
            )
            ax.plot([logits, before], [row, row], color=GREY, linewidth=1)
            for length, line in zip(expected_lengths(name), (-0.12, 0.12), strict=True):
                if math.isfinite(length):
                    ax.plot(length, row + line, marker="|", color="black", markersize=12)
            ax.plot(before, row, marker="o", color=ORANGE, linestyle="", label="pre-logits")
            ax.plot(logits, row, marker="s", color=BLUE, linestyle="", label="logits", markersize=5)
            told.append(f"{name} {logits:.2f} and {before:.2f}")
        ax.set_yticks(range(len(used)), used)
        ax.invert_yaxis()
        ax.set_xscale("log")
        ax.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
        ax.minorticks_off()
        ax.set(xlabel="mean length on training data")
        handles, labels = ax.get_legend_handles_labels()
        ax.legend(handles[:2], labels[:2], loc="best")
    return static_figure(
        fig,
        alt=f"Lengths of logits and of pre-logits, network by network: {'; '.join(told)}.",
        caption="Black strokes: finite optima in closed form; for label smoothing that of the "
        f"centred logits. Mean over {len(result.seeds)} seeds.",
    )


def under_attack(result: Result, names: Sequence[str]) -> HTML:
    """What cross-entropy, the margin and all attacks together leave of each network.

    Args:
        result: A study or a full-scale run.
        names: Which networks; those that were not run are left out.

    Returns:
        A figure.

    Taught in: book/robustness/bounded-logits
    """
    used = [name for name in names if name in result.series["standing"].axes["network"]]
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 0.36 * len(used) + 1))
        for row, name in enumerate(used):
            for place, (attack, (colour, marker)) in enumerate(DOTS.items()):
                found = t_interval(left(name, attack)(result))
                height = row + 0.2 * (place - 1)
                if len(result.seeds) > 1:
                    ends = [100 * found.low, 100 * found.high]
                    ax.plot(ends, [height, height], color=colour, linewidth=1.5, alpha=0.6)
                label = ATTACK_NAMES[attack] if row == 0 else None
                dot: dict[str, Any] = {"marker": marker, "color": colour, "markersize": 5}
                ax.plot(100 * found.mean, height, linestyle="", label=label, **dot)
            shares = [100 * np.mean(left(name, attack)(result)) for attack in DOTS]
            told.append(f"{name} {', '.join(f'{share:.1f}' for share in shares)}")
        ax.set_yticks(range(len(used)), used)
        ax.invert_yaxis()
        ax.set(xlabel="test accuracy under attack (%)")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, fontsize=8)
    names_of = ", ".join(ATTACK_NAMES[attack] for attack in DOTS)
    return static_figure(
        fig,
        alt=f"Test accuracy in per cent under {names_of}: {'; '.join(told)}.",
        caption=averaged(len(result.seeds), "line", "seed"),
    )


def against_length(result: Result, names: Sequence[str]) -> HTML:
    """Accuracy under all attacks against the length of the logits, and of the pre-logits.

    Args:
        result: A study or a full-scale run.
        names: Which networks; those that were not run are left out.

    Returns:
        A figure of two panels.

    Taught in: book/robustness/bounded-logits
    """
    used = [name for name in names if name in result.series["networks"].axes["network"]]
    accuracy = [100 * float(np.mean(left(name, "all")(result))) for name in used]
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(6.4, 4), sharey=True)
        told = []
        for ax, kind in zip(axes, ("logit", "pre-logit"), strict=True):
            size = [float(np.mean(at(name, f"{kind} norm")(result))) for name in used]
            for name, x, y in zip(used, size, accuracy, strict=True):
                colour, marker = _look(name)
                ax.plot(x, y, linestyle="", marker=marker, color=colour, markersize=7)
                if name in LABELLED:
                    away, side = LABELLED[name]
                    ax.annotate(name, (x, y), away, textcoords="offset points", fontsize=8, ha=side)
            ax.set_xscale("log")
            ax.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
            ax.set_xlim(1, 50)
            ax.minorticks_off()
            ax.set(xlabel=f"length of the {kind}s, test data")
            told.append(f"{kind}s: rank correlation {spearmanr(size, accuracy).statistic:.2f}")
        axes[0].set_ylabel("accuracy under all attacks (%)")
        for label, (colour, marker) in FAMILIES.items():
            look: dict[str, Any] = {"marker": marker, "color": colour, "linestyle": ""}
            axes[0].plot([], [], label=label, **look)
        axes[0].legend(fontsize=8, loc="lower left")
    return static_figure(
        fig,
        alt=f"Accuracy under all attacks against length, a point per network. {'; '.join(told)}.",
        caption=f"A point per way to train, mean over {len(result.seeds)} seeds. "
        f"{'; '.join(told).capitalize()}.",
    )


def _look(name: str) -> tuple[str, str]:
    """Colour and marker of a family of methods."""
    method = METHODS[name]
    kinds = {"none": "no head, no penalty", "tanh": "tanh", "blf": "BLF"}
    return FAMILIES[method.penalty or kinds[method.head]]


def attacks_table(result: Result, names: Sequence[str]) -> HTML:
    """What every attack leaves of each network, means over seeds.

    Args:
        result: A study or a full-scale run.
        names: Which networks; those that were not run are left out.

    Returns:
        A table.

    Taught in: book/robustness/bounded-logits
    """
    used = [name for name in names if name in result.series["standing"].axes["network"]]
    rows = [
        [words, *(f"{100 * np.mean(left(name, attack)(result)):.1f}" for name in used)]
        for attack, words in ATTACK_NAMES.items()
    ]
    return plain_table(["attack, and what it leaves in %", *used], rows)

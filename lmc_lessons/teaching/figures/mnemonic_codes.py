"""Figures of the lesson on mnemonic codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments.mnemonic_codes import at
from lmc_lessons.results import Result
from lmc_lessons.teaching.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    averaged,
    curves_figure,
    style,
)
from lmc_lessons.teaching.interactive import static_figure, step_explorer
from lmc_lessons.teaching.tables import plain_table

NAMES = {
    "original": "as trained",
    "codes": "codes, middle change",
    "codes, smallest": "codes, smallest change",
    "codes, best": "codes, best settings",
    "last layer": "last layer only",
    "last layer, best": "last layer only, best settings",
    "all but last": "all but the last",
    "all but last, best": "all but the last, best settings",
    "untrained codes": "untrained codes",
    "untrained codes, best": "untrained codes, best settings",
    "images": "same rule, from images",
    "images, best": "same rule, from images, best settings",
    "silent left": "silent weights left alone",
    "silent left, best": "silent weights left alone, best settings",
    "logit mask": "logit mask",
    "SSD": "SSD, threshold 10",
    "SSD, best": "SSD, best settings",
    "Fisher noise": "Fisher forgetting",
    "Fisher noise, no head": "Fisher forgetting without its mask",
    "fine-tuned": "fine-tuned on the rest",
    "retrained": "retrained on the rest",
}
ASKED = {
    "probe": "probe finds it",
    "reading": "read off its logit (AUROC)",
    "membership": "members told by loss (AUROC)",
    "entropy": "called members by entropy",
    "relearning": "steps to learn it again",
}


def by_class(result: Result, arm: str) -> HTML:
    """Accuracy of every class, as the rule takes larger steps and as the mask takes more.

    Args:
        result: A study or a full-scale run.
        arm: MLP or CNN.

    Returns:
        A figure with a slider.

    Taught in: book/unlearning/mnemonic-codes
    """
    series = result.series["by class"]
    values = np.asarray(series.values)[:, series.axes["arm"].index(arm)].mean(0)
    codes, mask = values  # (strengths, classes)
    steps, amounts = result.config["steps"], result.config["amounts"]
    classes, gone = series.axes["class"], result.config["forget"][0]
    labels = [f"{step:g} | {amount:g}" for step, amount in zip(steps, amounts, strict=False)]
    rest = [k for k in classes if k != gone]
    told = "; ".join(
        f"{name}: class {gone} from {part[0][gone]:.0%} to {part[-1][gone]:.0%}, the others from "
        f"{part[0][rest].mean():.0%} to {part[-1][rest].mean():.0%}"
        for name, part in (("codes", codes), ("logit mask", mask))
    )
    return step_explorer(
        classes,
        {"codes": codes, "logit mask": mask},
        labels,
        {
            f"codes: class {gone}": codes[:, gone],
            f"logit mask: class {gone}": mask[:, gone],
            "codes: the others": codes[:, rest].mean(1),
            "logit mask: the others": mask[:, rest].mean(1),
        },
        alt=f"Test accuracy by class ({arm}). {told}.",
        caption=f"{arm}, class {gone} is to be forgotten. Left: accuracy of every class at the "
        "setting of the slider. Right: all settings. No single change by the codes is larger than "
        f"{result.config['shown_cap']:g}. Mean over {len(result.seeds)} seeds.",
        x_label="class",
        y_label="test accuracy",
        step_label="step of the codes | taken from the logit",
        start=len(labels) // 3,
        unit="%",
        bars=True,
    )


def methods(result: Result, arm: str, names: Sequence[str]) -> HTML:
    """Forget error and retain accuracy of methods, with intervals.

    Args:
        result: A study or a full-scale run.
        arm: MLP or CNN.
        names: Which methods.

    Returns:
        A figure.

    Taught in: book/unlearning/mnemonic-codes
    """
    told = []
    with style():
        fig, (left, right) = plt.subplots(
            1, 2, figsize=(6.4, 0.3 * len(names) + 0.9), sharey=True, width_ratios=(1, 1)
        )
        for row, name in enumerate(names):
            error = _dot(left, row, at(arm, name, "forget error")(result), ORANGE, "o")
            kept = _dot(right, row, at(arm, name, "retain accuracy")(result), BLUE, "s")
            told.append(f"{NAMES[name]} {error:.1f} and {kept:.1f}")
        left.set_yticks(range(len(names)), [NAMES[name] for name in names], fontsize=8)
        left.invert_yaxis()
        left.set(xlabel="forget error $E_F$ (%)")
        right.set(xlabel="retain accuracy $A_R$ (%)")
        base = 100 * float(np.mean(at(arm, "original", "retain accuracy")(result)))
        right.axvline(base, color=GREY, linewidth=1, linestyle=":")
    return static_figure(
        fig,
        alt=f"{arm}: forget error and retain accuracy in per cent. {'; '.join(told)}.",
        caption=f"{arm}. Dotted: retain accuracy as trained. Step and cap, if the row says nothing "
        f"else: the middle, by length, of those that the codes like best. {_over(result)}",
    )


def _over(result: Result) -> str:
    classes = ", ".join(str(k) for k in result.config["forget"])
    return f"Forgotten one at a time: {classes}. {averaged(len(result.seeds), 'line', 'seed')}"


def _dot(ax: Axes, row: int, values: Sequence[float], colour: str, marker: str) -> float:
    """A mean with its interval in per cent, kept within 0 to 100."""
    found = t_interval(values)
    if len(values) > 1:
        ends = np.clip([100 * found.low, 100 * found.high], 0, 100)
        ax.plot(ends, [row, row], color=colour, linewidth=1.5, alpha=0.6)
    ax.plot(100 * found.mean, row, color=colour, marker=marker, linestyle="", markersize=5)
    return 100 * found.mean


def grid(result: Result, cap: float) -> HTML:
    """What images and codes say as the step grows, with a cap and without.

    Args:
        result: A study or a full-scale run.
        cap: Which cap.

    Returns:
        A figure: a column per kind of network.

    Taught in: book/unlearning/mnemonic-codes
    """
    series = result.series["grid"]
    arms, steps, told = series.axes["arm"], series.axes["step"], []
    whole = np.asarray(series.values).mean(0)[:, series.axes["method"].index("codes")]
    looks = {
        "forget error, images": (0, 1.0, ORANGE, "-", "o"),
        "retain accuracy, images": (1, 1.0, BLUE, "--", "s"),
        "codes right": (2, 0.5, GREEN, ":", "^"),
    }
    with style():
        fig, axes = plt.subplots(
            2, len(arms), figsize=(6.4, 4.4), sharex=True, sharey=True, squeeze=False
        )
        for column, arm in enumerate(arms):
            for row, limit in enumerate((cap, "none")):
                ax = axes[row, column]
                values: NDArray[np.float64] = whole[column, :, series.axes["cap"].index(limit)]
                for label, (place, scale, colour, dashes, marker) in looks.items():
                    heights = 100 * scale * values[:, place]
                    ax.plot(steps, heights, dashes, color=colour, marker=marker, label=label)
                ax.set_xscale("log")
                ax.set_title(f"{arm}, " + ("no cap" if limit == "none" else f"cap {limit:g}"))
                told.append(
                    f"{ax.get_title()}: at the largest step {100 * values[-1, 0]:.0f} forgotten, "
                    f"{100 * values[-1, 1]:.0f} kept"
                )
            axes[1, column].set_xlabel(r"step $\lambda_1$")
        for row in (0, 1):
            axes[row, 0].set_ylabel("%")
        axes[0, 0].legend(fontsize=7, loc="center right")
    return static_figure(
        fig,
        alt=f"Per cent of test images forgotten and kept, by step. {'; '.join(told)}.",
        caption="Codes right: the code of the class misread and the others read, half of each. "
        f"Mean over {len(result.seeds)} seeds and the forgotten classes.",
    )


def audit_table(result: Result, arm: str, asked: Sequence[str] = tuple(ASKED)) -> HTML:
    """What networks still hold, means over seeds and classes.

    Args:
        result: A study or a full-scale run.
        arm: MLP or CNN.
        asked: Which columns, of ``ASKED``.

    Returns:
        A table.

    Taught in: book/unlearning/mnemonic-codes
    """
    limit = result.config["relearning"]["epochs"]
    rows = []
    for name in result.series["audit"].axes["method"]:
        cells = [NAMES[name]]
        for quantity in asked:
            mean = float(np.mean(at(arm, name, quantity)(result)))
            plain = f"{100 * mean:.1f} %" if quantity in ("probe", "entropy") else f"{mean:.2f}"
            never = quantity == "relearning" and mean > limit
            cells.append(f"over {limit}" if never else plain)
        rows.append(cells)
    return plain_table([arm, *(ASKED[name] for name in asked)], rows)


def relearning(result: Result, arm: str, shown: Mapping[str, str]) -> HTML:
    """Recall of the forgotten class while the network learns it again.

    Args:
        result: A study or a full-scale run.
        arm: MLP or CNN.
        shown: Methods, and what each is called; at most four.

    Returns:
        A figure.

    Taught in: book/unlearning/mnemonic-codes
    """
    series = result.series["relearning"]
    values = np.asarray(series.values).mean(0)[series.axes["arm"].index(arm)]
    told = ", ".join(
        f"{words} {values[series.axes['method'].index(name)][5]:.0%}"
        for name, words in shown.items()
    )
    few = result.config["few"]
    return curves_figure(
        result,
        "relearning",
        x_label="steps of gradient descent",
        y_label="share of the class found",
        within=[arm],
        shown=shown,
        alt=f"Share of the forgotten class that is found again, by step. After 5: {told}.",
        caption=f"{arm}. Every step sees {few} images of every class.",
        y_limits=(0, 1),
        repeated="seed",
    )


def costs(result: Result, arm: str, names: Sequence[str]) -> HTML:
    """Gradients of single samples that methods take, and what they end with.

    Args:
        result: A study or a full-scale run.
        arm: MLP or CNN.
        names: Which methods.

    Returns:
        A table.

    Taught in: book/unlearning/mnemonic-codes
    """
    series = result.series["cost"]
    counts = np.asarray(series.values)[:, series.axes["arm"].index(arm)].mean(0)
    rows = []
    for name in names:
        ends = [
            100 * float(np.mean(at(arm, name, q)(result)))
            for q in ("forget error", "retain accuracy")
        ]
        count = counts[series.axes["method"].index(name)]
        rows.append([NAMES[name], f"{count:,.0f}", *(f"{end:.1f}" for end in ends)])
    return plain_table([arm, "gradients of samples", "forget error, %", "retain accuracy, %"], rows)

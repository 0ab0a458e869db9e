"""Figures of the lesson on logit margins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments.logit_margins import EDGES
from lmc_lessons.results import Result
from lmc_lessons.robustness.margins import cross_entropy_margin, crossing_time, ovr_margin
from lmc_lessons.teaching.figures import BLUE, GREY, LOOKS, ORANGE, averaged, style
from lmc_lessons.teaching.figures import mean_with_interval as curve
from lmc_lessons.teaching.interactive import static_figure, step_explorer
from lmc_lessons.teaching.tables import plain_table

WEIGHTS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
SCALES = ("flattened PGD", "PGD", "sharpened PGD")
COLUMNS = {
    "clean accuracy": ("clean", 100, ".1f"),
    "PGD": ("PGD", 100, ".1f"),
    "ensemble": ("ensemble", 100, ".1f"),
    "hard margin": ("hard margin", 1, ".2f"),
    "easy margin": ("easy margin", 1, ".2f"),
    "gradient norm": ("gradient", 1, ".1f"),
    "margin per gradient": ("margin per gradient", 1, ".3f"),
    "potentially misclassified": ("unsafe", 100, ".0f"),
}


def title(method: str, config: Mapping[str, Any]) -> str:
    """What a method is called on the page, with the factor that the run gave it.

    Args:
        method: Name from ``experiments.logit_margins.METHODS``.
        config: The run's configuration.

    Returns:
        Text.
    """
    factors = {"SOVR": "weight", "SOVR small": "small_weight", "SOVR large": "large_weight"}
    if method in factors:
        return f"SOVR, λ = {config[factors[method]]:g}"
    large, trades = f"{config['large_weight']:g}", f"{config['trades_weight']:g}"
    spread = 1 + config["fraction"] * (config["large_weight"] - 1)
    names = {
        "MAIL": "MAIL, bias 0.5",
        "MAIL -0.5": "MAIL, bias −0.5",
        "top CE": f"CE × {large} on hard samples",
        "scaled AT": f"AT, loss × {spread:g}",
        "OVR": "OVR for all samples",
        "TSOVR": f"TSOVR, λ = {trades}",
        "TRADES top CE": f"TRADES, CE × {trades} on hard samples",
    }
    return names.get(method, method)


def margin_race(weights: Sequence[float] = WEIGHTS, *, classes: int = 10) -> HTML:
    """Margins of weighted cross-entropy and of OVR over time; a slider changes the weight.

    Args:
        weights: Weights of cross-entropy, one per position of the slider.
        classes: Number of classes.

    Returns:
        An interactive figure.

    Taught in: book/robustness/logit-margins
    """
    powers = np.linspace(-1, 5, 61)
    times = torch.tensor(10**powers)
    crossings = [crossing_time(weight, classes=classes) for weight in weights]
    told = ", ".join(
        f"weight {w:g}: t = {t:.3g}" if t else f"weight {w:g}: from the start"
        for w, t in zip(weights, crossings, strict=True)
    )
    return step_explorer(
        powers,
        {
            "cross-entropy, weighted": [
                cross_entropy_margin(times, weight=w, classes=classes).numpy() for w in weights
            ],
            "one-vs-the-rest": [ovr_margin(times).numpy() for _ in weights],
        },
        [f"weight {weight:g}" for weight in weights],
        {
            "one-vs-the-rest leads from, log₁₀ t": [
                math.log10(t) if t else float(powers[0]) for t in crossings
            ]
        },
        start=list(weights).index(10.0) if 10.0 in weights else 0,
        x_label="log₁₀ of time t",
        y_label="margin (logits)",
        step_label="weight of cross-entropy",
        alt=(
            "Two margins that grow with time. From these times on the one-vs-the-rest loss has "
            f"the larger one: {told}."
        ),
        caption=(
            f"Margin of one sample with {classes} classes whose logits follow the gradient of its "
            "loss. The slider changes the weight of cross-entropy; its curve is shifted, its slope "
            "in the end is not. The second chart tells where the curves cross (at its lower end: "
            "one-vs-the-rest leads all the time)."
        ),
    )


def histograms(result: Result, methods: Sequence[str]) -> HTML:
    """How the margins of attacked training samples are spread, for one to four methods.

    Args:
        result: A study or a full-scale run.
        methods: Which; those that were not run are left out.

    Returns:
        A figure.

    Taught in: book/robustness/logit-margins
    """
    series = result.series["margins"]
    names = series.axes["method"]
    width = EDGES[1] - EDGES[0]
    left = [EDGES[0] - width, *EDGES]
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.4))
        for name, (colour, dashes, _) in zip(
            [m for m in methods if m in names], LOOKS, strict=False
        ):
            rows = np.array([seed[names.index(name)] for seed in series.values])
            mean, label = rows.mean(0), title(name, result.config)
            ends = [*left, left[-1] + width]
            ax.stairs(100 * mean, ends, color=colour, linestyle=dashes, linewidth=1.6, label=label)
            narrow = result.interval(f"{name}: narrow share").mean
            told.append(f"{label} {100 * narrow:.0f} %")
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set(xlabel="margin (logits)", ylabel="share of samples (%)", ylim=(0, None))
        ax.legend()
    return static_figure(
        fig,
        alt=f"Histograms of margins. Share of samples from 0 to below 1: {', '.join(told)}.",
        caption=(
            "Margins of training samples under PGD; left of zero the sample is misread. The last "
            f"bins on both sides hold all that lies beyond. Mean over {len(result.seeds)} "
            f"{'seed' if len(result.seeds) == 1 else 'seeds'}."
        ),
    )


def flattery(result: Result) -> HTML:
    """For every method what PGD leaves standing, and what the ensemble leaves.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure.

    Taught in: book/robustness/logit-margins
    """
    names, steps = list(result.config["methods"]), result.config["eval_steps"]
    gaps = {name: result.interval(f"{name}: PGD gap").mean for name in names}
    order = sorted(names, key=lambda name: -gaps[name])
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 0.3 * len(names) + 1))
        for row, name in enumerate(reversed(order)):
            found = [result.interval(f"{name}: {q}") for q in ("ensemble", "PGD")]
            ax.plot([100 * i.mean for i in found], [row, row], color=GREY, linewidth=1)
            for interval, colour, marker in zip(found, (BLUE, ORANGE), "so", strict=True):
                ax.plot([100 * interval.mean], [row], marker, color=colour, markersize=6)
                if len(result.seeds) > 1:
                    low, high = 100 * interval.low, 100 * interval.high
                    ax.plot([low, high], [row, row], color=colour, linewidth=2.5, alpha=0.5)
        labels = [title(name, result.config) for name in reversed(order)]
        ax.set_yticks(range(len(names)), labels)
        ax.set(xlabel="test accuracy under attack (%)")
        ax.plot([], [], "o", color=ORANGE, label=f"PGD, {steps} steps on cross-entropy")
        ax.plot([], [], "s", color=BLUE, label="ensemble")
        ax.legend(loc="lower center", bbox_to_anchor=(0.3, 1), ncols=2)
    told = ", ".join(f"{title(name, result.config)} {100 * gaps[name]:.1f}" for name in order)
    return static_figure(
        fig,
        alt=f"Accuracy under PGD and under the ensemble. Gap in points: {told}.",
        caption=f"Sorted by the gap. {averaged(len(result.seeds), 'thick line', 'seed')}",
    )


def scaled_logits(result: Result, methods: Sequence[str]) -> HTML:
    """What PGD leaves when logits are divided by ten, as they are, and multiplied by ten.

    Args:
        result: A study or a full-scale run.
        methods: One to four; those that were not run are left out.

    Returns:
        A figure.

    Taught in: book/robustness/logit-margins
    """
    factor, told = result.config["sharpen"], []
    ticks = [1 / factor, 1.0, factor]
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.4))
        chosen = [name for name in methods if name in result.config["methods"]]
        for name, look in zip(chosen, LOOKS, strict=False):
            columns = [result.metric(f"{name}: {scale}") for scale in SCALES]
            values = [[100 * v for v in seed] for seed in zip(*columns, strict=True)]
            label, level = title(name, result.config), result.interval(f"{name}: ensemble").mean
            curve(ax, ticks, values, label, look)
            ax.plot([ticks[-1] * 3], [100 * level], look[2], color=look[0], markersize=7)
            heights = ", ".join(f"{v:.0f}" for v in np.mean(values, axis=0))
            told.append(f"{label} {heights} %, ensemble {100 * level:.0f} %")
        ax.set_xscale("log")
        ax.set_xticks([*ticks, ticks[-1] * 3], [*(f"× {t:g}" for t in ticks), "ensemble"])
        ax.minorticks_off()
        ax.set(xlabel="logits during the attack", ylabel="test accuracy under PGD (%)")
        ax.legend()
    return static_figure(
        fig,
        alt=f"Accuracy under PGD with logits divided, as they are, multiplied: {'; '.join(told)}.",
        caption=(
            "The network that is judged stays the same; PGD follows the cross-entropy of scaled "
            "logits. Single markers: what the ensemble leaves. "
            f"{averaged(len(result.seeds), repeated='seed')}"
        ),
    )


def methods_table(result: Result, methods: Sequence[str] = ()) -> HTML:
    """What every method ends with, means over seeds.

    Args:
        result: A study or a full-scale run.
        methods: Which, in this order; all by default.

    Returns:
        A table.

    Taught in: book/robustness/logit-margins
    """
    rows = [
        [_unbroken(title(name, result.config))]
        + [
            f"{scale * result.interval(f'{name}: {quantity}').mean:{form}}"
            for quantity, (_, scale, form) in COLUMNS.items()
        ]
        for name in (methods or result.config["methods"])
        if name in result.config["methods"]
    ]
    heads = [f"{words}{' (%)' if scale == 100 else ''}" for words, scale, _ in COLUMNS.values()]
    return plain_table(["trained by", *heads], rows)


def _unbroken(words: str) -> str:
    """Words as HTML that a narrow column breaks after commas and before "on" only."""
    return (
        words.replace(" ", "&nbsp;").replace(",&nbsp;", ", ").replace("&nbsp;on&nbsp;", " on&nbsp;")
    )


def differences_table(result: Result, pairs: Sequence[tuple[str, str]], quantity: str) -> HTML:
    """A quantity of one method minus that of another, with 95 % intervals over seeds, in points.

    Args:
        result: A study or a full-scale run.
        pairs: Methods to compare; pairs of which one was not run are left out.
        quantity: An accuracy.

    Returns:
        A table.

    Taught in: book/robustness/logit-margins
    """
    rows = []
    for more, less in pairs:
        if not {more, less} <= set(result.config["methods"]):
            continue
        values = [result.metric(f"{name}: {quantity}") for name in (more, less)]
        found = t_interval([100 * (p - q) for p, q in zip(*values, strict=True)])
        names = [title(name, result.config) for name in (more, less)]
        rows.append([*names, f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"])
    return plain_table(["trained by", "minus", f"{quantity} (points)"], rows)

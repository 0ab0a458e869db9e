"""Figures of the lesson on contaminated training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from torch import Tensor

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments.contaminated_training import (
    BINS,
    LAST,
    STOP,
    WAYS,
    balanced,
    mean_of,
    seen,
)
from lmc_lessons.results import Effect, Result, Series
from lmc_lessons.teaching.figures import BLUE, ORANGE, curves_figure, style
from lmc_lessons.teaching.interactive import static_figure, step_explorer
from lmc_lessons.teaching.tables import plain_table

STOPPED = "AE, stopped"  # the autoencoder at the epoch at which training is stopped early
CALLED = {
    "clean": "no anomalies",
    "AE 1": "1 %",
    "AE": "5 %",
    "AE 10": "10 %",
    "known": "5 %, left out",
    "trim": "trimmed",
    "random": "left out at random",
}


def over_pairs(result: Result, name: str, split: str | None = None) -> Result:
    """A result whose one series is the mean over pairs.

    Args:
        result: A run.
        name: A series over ways, pairs and epochs, and over splits where one is named.
        split: Which of them.

    Returns:
        A copy with that series, over ways and epochs.
    """
    series = result.series[name]
    values = np.asarray(series.values, dtype=float).mean(2)
    if split is not None:
        values = values[..., series.axes["split"].index(split)]
    axes = {axis: series.axes[axis] for axis in ("way", "epoch")}
    return dataclasses.replace(result, series={name: Series(axes, values.tolist())})


def errors(result: Result, pair: str = "0/2") -> HTML:
    """Errors of normal and hidden anomalous training samples, epoch by epoch.

    Args:
        result: A run with histograms.
        pair: Which pair of classes.

    Returns:
        An interactive figure.

    Taught in: book/detection/contaminated-training
    """
    series = result.series["histogram"]
    epochs, place = series.axes["epoch"], series.axes["pair"].index(pair)
    values = np.asarray(series.values)[:, 0, place].mean(0)  # (epochs, 2, bins)
    dynamics = result.series["dynamics"]
    curve = np.asarray(dynamics.values)[:, dynamics.axes["way"].index("AE"), place].mean(0)
    highest = int(curve.argmax())
    step = BINS[1] - BINS[0]
    normal, anomaly = pair.split("/")
    rate = 100 * WAYS["AE"].rate
    return step_explorer(
        [edge + step / 2 for edge in BINS],
        {f"normal: {normal}": values[:, 0], f"hidden: {anomaly}": values[:, 1]},
        [f"epoch {epoch}" for epoch in epochs],
        {"AUROC": curve},
        x_label="reconstruction error, log₁₀ of the mean square",
        y_label="share of the training samples of a kind",
        step_label="training",
        step_values_label="point of time",
        unit="%",
        start=highest,
        alt=(
            f"Histograms of the reconstruction errors of training samples. The hidden anomalies "
            f"start among the normal samples (AUROC {curve[0]:.2f} at epoch {epochs[0]}), stand "
            f"far to their right at epoch {epochs[highest]} ({curve[highest]:.2f}), and have come "
            f"back at epoch {epochs[-1]} ({curve[-1]:.2f})."
        ),
        caption=(
            f"Images of the digit {normal}, and among them {rate:.0f} % of the digit "
            f"{anomaly}, which nobody has marked. Mean over {len(result.seeds)} seeds. AUROC: how "
            "often a hidden anomaly has a larger error than a normal sample. Both are training "
            "data; the network is shown all of them, without labels."
        ),
    )


def curves(
    result: Result, ways: Sequence[str], *, split: str | None = None, title: str = ""
) -> HTML:
    """AUROC over epochs, mean over pairs: of hidden anomalies, or of test data.

    Args:
        result: A study or a full-scale run.
        ways: At most four ways to train.
        split: ``observed`` or ``unobserved``; None for hidden anomalies.
        title: Title of the legend.

    Returns:
        A figure.

    Taught in: book/detection/contaminated-training
    """
    name = "dynamics" if split is None else "detection"
    averaged = over_pairs(result, name, split)
    series = averaged.series[name]
    means = np.asarray(series.values).mean(0)
    whom = {
        None: "hidden anomalies against normal training data",
        "observed": "new anomalies of the contaminating class against new normal data",
        "unobserved": "new anomalies of other classes against new normal data",
    }[split]
    told = "; ".join(
        f"{CALLED[way]}: {row[0]:.2f} at epoch {series.axes['epoch'][0]}, at most {row.max():.2f}, "
        f"{row[-1]:.2f} at the end"
        for way, row in zip(series.axes["way"], means, strict=True)
        if way in ways
    )
    return curves_figure(
        averaged,
        name,
        shown={way: CALLED[way] for way in ways},
        x_label="epoch",
        y_label="AUROC",
        log=True,
        legend=title,
        repeated="seed",
        alt=f"AUROC of {whom} over epochs. {told}.",
        caption=f"AUROC of {whom}, by reconstruction error. Mean over pairs of classes.",
    )


def _cell(result: Result, effect: Effect) -> str:
    """A mean with its interval, or a dash where it was not measured."""
    try:
        found = t_interval(effect(result))
    except KeyError:
        return "–"
    if len(result.seeds) == 1:
        return f"{found.mean:.2f}"
    return f"{found.mean:.2f} [{found.low:.2f}, {found.high:.2f}]"


def ways_table(result: Result, ways: Mapping[str, str]) -> HTML:
    """How well each way to train tells anomalies by their error.

    Args:
        result: A study or a full-scale run.
        ways: Ways to train, ``STOPPED`` among them if wanted, and what each is called.

    Returns:
        A table.

    Taught in: book/detection/contaminated-training
    """
    rows = []
    for way, called in ways.items():
        base = "AE" if way == STOPPED else way
        if base not in result.series["final"].axes["way"]:
            continue
        epoch: Any = STOP if way == STOPPED else LAST
        hidden = mean_of("dynamics", way=base, epoch=epoch)
        once = base not in result.series["detection"].axes["way"]
        if once:
            hidden = mean_of("final hidden", way=base, epoch=LAST)
        splits = [
            seen(base, split) if once else mean_of("detection", way=base, epoch=epoch, split=split)
            for split in ("observed", "unobserved")
        ]
        rows.append([called, *(_cell(result, effect) for effect in (hidden, *splits))])
    heads = ["way to train", "hidden", "new, same class", "new, other classes"]
    return plain_table(heads, rows)


def rules_table(result: Result, ways: Mapping[str, Sequence[str]], source: str) -> HTML:
    """Balanced accuracy of rules, and their false alarms.

    Args:
        result: A study or a full-scale run.
        ways: Ways to train, and the rules that are shown of each.
        source: Where thresholds come from: ``held-out`` or ``training``.

    Returns:
        A table.

    Taught in: book/detection/contaminated-training
    """
    rows = []
    for way, rules in ways.items():
        if way not in result.series["rules"].axes["way"]:
            continue
        for rule in rules:
            alarms = mean_of("rules", way=way, rule=rule, source=source, group="normal")
            cells = [
                _cell(result, balanced(way, rule, s, source)) for s in ("observed", "unobserved")
            ]
            rows.append([way, rule, _cell(result, alarms), *cells])
    heads = ["way to train", "rule", "false alarms", "same class", "other classes"]
    return plain_table(heads, rows)


def codes(normal: Tensor, hidden: Tensor, new: Tensor, digits: tuple[str, str]) -> HTML:
    """Where an encoder with a code of two numbers puts normal and anomalous samples.

    Args:
        normal: Codes of normal training samples, shape (N, 2).
        hidden: Codes of hidden anomalies, shape (M, 2).
        new: Codes of new anomalies of the same class.
        digits: The normal and the anomalous class.

    Returns:
        A figure.

    Taught in: book/detection/contaminated-training
    """
    with style():
        fig, ax = plt.subplots(figsize=(4.6, 4.2))
        ax.scatter(
            normal[:, 0], normal[:, 1], s=9, color=BLUE, alpha=0.45, label=f"normal: {digits[0]}"
        )
        ax.scatter(
            new[:, 0], new[:, 1], s=12, color="#666666", marker="+", label=f"new: {digits[1]}"
        )
        ax.scatter(
            hidden[:, 0], hidden[:, 1], s=34, color=ORANGE, marker="D", label=f"hidden: {digits[1]}"
        )
        ax.set(xlabel="first number of the code", ylabel="second number")
        ax.set_aspect("equal")
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    lengths = [float(c.norm(dim=1).mean()) for c in (normal, hidden, new)]
    told = "normal {:.2f}, hidden anomalies {:.2f}, new anomalies {:.2f}".format(*lengths)
    return static_figure(
        fig,
        alt=f"Codes in the plane. Mean distance from the origin: {told}.",
        caption=(
            "Codes of an adversarial autoencoder, one seed. An unlikely code would lie far from "
            f"the origin. Mean distance: {told}."
        ),
    )

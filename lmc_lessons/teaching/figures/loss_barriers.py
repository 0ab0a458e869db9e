"""Figures of the lesson on loss barriers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from torch import nn

from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import t_interval
from lmc_lessons.landscape import line, plane, surface
from lmc_lessons.models import Params
from lmc_lessons.results import Result
from lmc_lessons.teaching.figures import GREY, LOOKS, averaged, mean_with_interval, style
from lmc_lessons.teaching.interactive import (
    path_explorer,
    plane_explorer,
    static_figure,
    step_explorer,
)

UNITS = {"test loss": "nats", "train loss": "nats", "test error": "%", "mean margin": ""}


def plane_figure(
    model: nn.Module, a: Params, b: Params, third: Params, data: Dataset, *, points: int = 31
) -> HTML:
    """The plane through A, B and a renumbered B, with both straight paths drawn in it.

    Args:
        model: Architecture.
        a: Network A, the origin.
        b: Network B, on the horizontal axis.
        third: B with its units renumbered.
        data: Data set; its test split is measured on the plane.
        points: Grid points on each side.

    Returns:
        An interactive figure.

    Taught in: book/connectivity/loss-barriers
    """
    first, second, ((_, _), (reach, _), corner) = plane(a, b, third)
    u = np.linspace(-0.3 * reach, 1.3 * reach, points)
    v = np.linspace(-0.45 * reach, 1.05 * reach, points)
    x, y = data.test_x, data.test_y
    found = surface(model, a, first, second, list(u), list(v), x, y)
    positions = [k / 24 for k in range(25)]
    curves = {}
    for name, end in (("A to B", b), ("A to B renumbered", third)):
        profile = line(model, a, end, positions, x, y)
        curves[name] = {
            "test loss": profile.loss,
            "test error": profile.error,
            "mean margin": profile.margin,
        }
    panels = {
        "test loss": found.loss,
        "test error": 1 - np.asarray(found.accuracy),
        "mean margin": found.margin,
    }
    middle = [curves[name]["test loss"][12] for name in curves]
    return plane_explorer(
        u,
        v,
        panels,
        {"A": (0.0, 0.0), "B": (reach, 0.0), "B renumbered": corner},
        {"A to B": ("A", "B"), "A to B renumbered": ("A", "B renumbered")},
        positions,
        curves,
        x_label="distance from A towards B",
        y_label="distance across",
        units=UNITS,
        limits={"test loss": (0.0, 2.5)},
        alt=(
            "Test loss on the plane through three networks. Between A and B it rises to "
            f"{middle[0]:.2f} nats halfway; between A and the renumbered B to {middle[1]:.2f}."
        ),
        caption=(
            "Every point of the picture is a network: the weights of A, plus so much of the way to "
            "B, plus so much across. Move the slider to walk both paths; point anywhere to read "
            "the surface; choose what is measured. B renumbered computes exactly what B computes."
        ),
    )


def profile_figure(model: nn.Module, a: Params, ends: Mapping[str, Params], data: Dataset) -> HTML:
    """Loss, error and margin along straight paths from one network to several.

    Args:
        model: Architecture.
        a: The network at position 0.
        ends: Name of a path to the network at its end.
        data: Data set; its test split is measured.

    Returns:
        An interactive figure.

    Taught in: book/connectivity/loss-barriers
    """
    positions = [k / 24 for k in range(25)]
    curves = {}
    for name, end in ends.items():
        test = line(model, a, end, positions, data.test_x, data.test_y)
        fit = line(model, a, end, positions, data.train_x, data.train_y)
        curves[name] = {
            "test loss": test.loss,
            "training loss": fit.loss,
            "test error": test.error,
            "training error": fit.error,
            "mean margin, test": test.margin,
        }
    told = "; ".join(
        f"{name}: test loss {c['test loss'][12]:.2f} nats, test error "
        f"{100 * c['test error'][12]:.0f} %, margin {c['mean margin, test'][12]:.1f}"
        for name, c in curves.items()
    )
    units = {"test loss": "nats", "training loss": "nats", "test error": "%"}
    return path_explorer(
        positions,
        curves,
        panels=tuple(next(iter(curves.values()))),
        units=units | {"training error": "%"},
        x_label="position t on the path",
        ends=("A", "B"),
        start=0.5,
        alt=f"Loss, error and margin along straight paths from network A. Halfway, {told}.",
        caption=(
            "Loss, error and mean logit margin along straight paths that start at A. The slider "
            "walks along all paths at once."
        ),
    )


def spawn_figure(result: Result, name: str = "deep") -> HTML:
    """The loss between a run and one that left it, for every number of steps shared.

    Args:
        result: A study or a full-scale run.
        name: Which architecture: ``deep`` or ``wide``.

    Returns:
        An interactive figure.

    Taught in: book/connectivity/loss-barriers
    """
    losses = result.series[f"{name}_spawned_loss"]
    steps = losses.axes["step"]
    values = np.asarray(losses.values)  # (pairs, steps, positions)
    heights = np.asarray([seed[0] for seed in result.series[f"{name}_spawned"].values])
    intervals = [[t_interval(list(column)) for column in values[:, k].T] for k in range(len(steps))]
    band = tuple(
        np.asarray([[max(0.0, getattr(i, side)) for i in row] for row in intervals])
        for side in ("low", "high")
    )
    mean = heights.mean(0)
    return step_explorer(
        losses.axes["position"],
        {"test loss": values.mean(0)},
        [f"{step} steps shared" for step in steps],
        {"barrier (nats)": mean},
        band={"test loss": (band[0], band[1])} if len(values) > 1 else None,
        x_label="position t on the path",
        y_label="test loss",
        unit="nats",
        step_label="steps shared",
        alt=(
            "Test loss on the straight path between two runs that shared their beginning. With "
            f"{steps[0]} steps shared the barrier is {mean[0]:.2f} nats on average, with "
            f"{steps[-1]} steps {mean[-1]:.2f}."
        ),
        caption=(
            "Choose how many steps two runs share before they part; then each is trained to its "
            f"end with batches in its own order. {averaged(len(values))}"
        ),
    )


def onset_figure(result: Result) -> HTML:
    """Barrier against the steps shared, for both architectures, with the strangers' level.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure.

    Raises:
        KeyError: If neither architecture was measured.
    """
    names = {"wide": "3 hidden layers of 128", "deep": "8 hidden layers of 32"}
    there = [name for name in names if f"{name}_spawned" in result.series]
    if not there:
        raise KeyError(" or ".join(f"{name}_spawned" for name in names))
    steps = sorted({k for name in there for k in result.series[f"{name}_spawned"].axes["step"]})
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        told = []
        for name, look in zip(there, LOOKS, strict=False):
            series = result.series[f"{name}_spawned"]
            curves = [seed[0] for seed in series.values]
            at = [steps.index(step) for step in series.axes["step"]]
            for curve in curves:
                ax.plot(at, curve, color=look[0], linewidth=0.6, alpha=0.5)
            mean_with_interval(ax, at, curves, names[name], look)
            level = result.interval(f"{name}_stranger_barrier").mean
            ax.axhline(level, color=look[0], linestyle=look[1], linewidth=1.2, alpha=0.6)
            ax.annotate("strangers", (0, level), xytext=(-18, 3), textcoords="offset points")
            told.append(
                f"{names[name]}: {np.mean([c[0] for c in curves]):.2f} nats when only the start is "
                f"shared, strangers {level:.2f}"
            )
        ax.set_xticks(range(len(steps)), [str(step) for step in steps])
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set(xlabel="steps shared", ylabel="barrier (nats)", ylim=(-0.2, None))
        ax.legend(loc="upper right", bbox_to_anchor=(1, 0.9))
    return static_figure(
        fig,
        alt="Barrier against the number of steps shared. " + "; ".join(told) + ".",
        caption=(
            "Barrier between two runs that share the start and so many steps. Thin lines: single "
            f"families. Level lines: strangers. {averaged(len(result.seeds))}"
        ),
    )


def variance_figure(result: Result) -> HTML:
    """Variance that merging leaves, layer by layer, for both recipes, without and with matching.

    Args:
        result: A study with the series ``variance_left``.

    Returns:
        A figure.
    """
    series: Any = result.series["variance_left"]
    layers = series.axes["layer"][:-1]  # the last layer puts out the logits, not hidden units
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        looks = iter(LOOKS)
        told = []
        for r, recipe in enumerate(series.axes["recipe"]):
            for p, path in enumerate(("not matched", "matched by weights")):
                curves = [seed[r][p][:-1] for seed in series.values]
                mean_with_interval(ax, layers, curves, f"{recipe}, {path}", next(looks))
                told.append(f"{recipe}, {path}: {np.mean([c[-1] for c in curves]):.2f}")
        ax.set(xlabel="hidden layer", ylabel="variance left", ylim=(0, 1), xticks=layers)
        ax.legend(fontsize=9)
    return static_figure(
        fig,
        alt=f"Variance left at the midpoint. In the last hidden layer: {'; '.join(told)}.",
        caption=(
            "Variance of the merged units before BatchNorm, relative to the ends. "
            f"{averaged(len(result.seeds))}"
        ),
    )


def planes_figure(result: Result) -> HTML:
    """The plane through A, B and the renumbered B, for every pair of a study.

    Args:
        result: A study with the series ``plane``.

    Returns:
        A figure.
    """
    series = result.series["plane"]
    u, v = series.axes["u"], series.axes["v"]
    at = series.axes["quantity"].index("loss")
    lowest, ends = [], [seed[0] for seed in result.series["test_loss"].values]
    with style():
        fig, row = plt.subplots(1, len(series.values), figsize=(6.4, 1.9), sharey=True)
        for k, ax in enumerate(np.atleast_1d(row)):
            loss = np.asarray(series.values[k][at])
            lowest.append(float(loss.min()))
            ax.contourf(u, v, np.minimum(loss, 2.5), levels=np.linspace(0, 2.5, 11), cmap="Blues")
            corner = (result.metrics["matched_u"][k], result.metrics["matched_v"][k])
            for name, (across, up) in (("A", (0, 0)), ("B", (1, 0)), ("B'", corner)):
                ax.plot(across, up, "o", color="black", markersize=3)
                ax.annotate(name, (across, up), xytext=(2, 3), textcoords="offset points")
            ax.plot((0, 1), (0, 0), color=LOOKS[0][0], linestyle="--")
            ax.plot((0, corner[0]), (0, corner[1]), color=LOOKS[1][0])
            ax.set(aspect="equal", xticks=(), yticks=(), title=f"pair {result.seeds[k]}")
    told = ", ".join(f"{low / end[0]:.0%}" for low, end in zip(lowest, ends, strict=True))
    return static_figure(
        fig,
        alt=(
            "Test loss on the plane of each pair: dark ground between A and B, light ground "
            "between A and the renumbered B."
        ),
        caption=(
            "Test loss on the plane through A, B and the renumbered B (B'), dark from 2.5 nats on. "
            f"The lowest value on each plane is {told} of A's."
        ),
    )

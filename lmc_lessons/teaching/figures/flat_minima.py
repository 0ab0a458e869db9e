"""Figures of the lesson on flat minima."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy.stats import pearsonr

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments.flat_minima import QUANTITIES, RUINED, STOPPED, at
from lmc_lessons.results import Result
from lmc_lessons.teaching.figures import BLUE, GREEN, GREY, LOOKS, ORANGE, averaged, style
from lmc_lessons.teaching.figures import mean_with_interval as curve
from lmc_lessons.teaching.interactive import image_slider, plane_explorer, png, static_figure
from lmc_lessons.teaching.tables import plain_table

WORDS = {STOPPED: "trained, stopped early", "AT": "trained to the end"}  # else: with AWP
CORRELATED = {
    "average flatness": "average-case flatness (nats)",
    "worst flatness": "worst-case flatness (nats)",
    "clean flatness": "average-case flatness of the clean loss (nats)",
    "top eigenvalue": "top eigenvalue of the Hessian of the clean loss",
}
FAMILIES = {
    "AT": (GREY, "o"),
    "AWP": (BLUE, "s"),
    "random": (ORANGE, "^"),
    "SAM": (GREEN, "v"),
    "no": (GREY, "x"),
    "decay": (GREY, "D"),
    "TRADES": ("#cc79a7", "P"),
    "TRADES-AWP": ("#cc79a7", "X"),
}


def landscapes(result: Result, seed: int = 0) -> HTML:
    """Robust loss on a plane around three networks, the attack made anew at every point.

    Args:
        result: A study with planes.
        seed: Which of its seeds to show, by index.

    Returns:
        An interactive figure.

    Taught in: book/robustness/flat-minima
    """
    series = result.series["plane"]
    ticks = series.axes["u"]
    grids = {
        WORDS.get(name, "with AWP"): np.asarray(grid)
        for name, grid in zip(series.axes["network"], series.values[seed], strict=True)
    }
    middle = len(ticks) // 2
    top = min(float(np.log(10)) * 1.5, max(float(grid.max()) for grid in grids.values()))
    bottom = min(float(grid.min()) for grid in grids.values())
    rises = ", ".join(
        f"{name}: {grid[middle, middle]:.2f} at the network, {grid.mean():.2f} on average"
        for name, grid in grids.items()
    )
    return plane_explorer(
        ticks,
        ticks,
        grids,
        {
            "the network": (0.0, 0.0),
            "west": (-1.0, 0.0),
            "east": (1.0, 0.0),
            "south": (0.0, -1.0),
            "north": (0.0, 1.0),
        },
        {"west to east": ("west", "east"), "south to north": ("south", "north")},
        [(tick + 1) / 2 for tick in ticks],
        {
            "west to east": {name: grid[middle] for name, grid in grids.items()},
            "south to north": {name: grid[:, middle] for name, grid in grids.items()},
        },
        units=dict.fromkeys(grids, "nats"),
        limits=dict.fromkeys(grids, (bottom, top)),
        x_label="along d₁",
        y_label="along d₂",
        path_label="from one edge (0) to the other (1)",
        alt=f"Robust test loss on planes around {len(grids)} networks, in nats. {rises}.",
        caption=(
            "Each network lies in the middle of its own plane. At every point of the grid the "
            "attack was made anew. A step of 1 moves every filter by as much as it is long."
        ),
    )


def overfitting(result: Result, methods: Sequence[str]) -> HTML:
    """Accuracy under attack on test data, epoch by epoch, and where validation would stop.

    Args:
        result: A study or a full-scale run.
        methods: One to four methods; those that were not run are left out.

    Returns:
        A figure.

    Taught in: book/robustness/flat-minima
    """
    series = result.series["robust accuracy"]
    names, epochs = series.axes["method"], series.axes["epoch"]
    used = [name for name in methods if name in names]
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.4))
        for name, look in zip(used, LOOKS, strict=False):
            row = names.index(name)
            values = [seed[1][row] for seed in series.values]
            curve(ax, epochs, values, name, (look[0], look[1], ""))
            stops = [seed[row][0] for seed in result.series["stopped"].values]
            heights = [seed[row][1] for seed in result.series["stopped"].values]
            ax.plot(stops, heights, linestyle="", marker=look[2], color=look[0], markersize=5)
            told.append(
                f"{name} {100 * np.mean(heights):.0f} % where validation stops, "
                f"{100 * np.mean([v[-1] for v in values]):.0f} % at the end"
            )
        ax.set(xlabel="epoch", ylabel="test accuracy under attack", ylim=(0, 1))
        ax.legend(loc="lower right")
    return static_figure(
        fig,
        alt=f"Test accuracy under attack by epoch. {'; '.join(told)}.",
        caption=(
            f"{averaged(len(result.seeds), repeated='seed')} Markers: the epoch at which each "
            "seed's own validation data would have stopped."
        ),
    )


def attack_remade(result: Result) -> HTML:
    """The loss along random directions, with the attack made anew at each point or frozen.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure of two panels.

    Taught in: book/robustness/flat-minima
    """
    series = result.series["line"]
    positions, told = series.axes["position"], []
    names = [name for name in series.axes["network"] if name != STOPPED]
    with style():
        fig, axes = plt.subplots(1, len(names), figsize=(6.4, 3), sharey=True, squeeze=False)
        for ax, name in zip(axes[0], names, strict=True):
            row = series.axes["network"].index(name)
            for k, (way, look) in enumerate(zip(series.axes["attack"], LOOKS[1::-1], strict=True)):
                values = [seed[row][k] for seed in series.values]
                curve(ax, positions, values, f"attack {way}", look)
                told.append(f"{name}, attack {way}: {np.mean([v[-1] for v in values]):.2f}")
            ax.set(title=name, xlabel="position on the line")
        axes[0][0].set(ylabel="test loss under attack (nats)", ylim=(0, None))
        axes[0][0].legend()
    return static_figure(
        fig,
        alt=f"Loss along filter-normalised lines. At the right end, in nats: {'; '.join(told)}.",
        caption=(
            "Mean over random filter-normalised directions. "
            f"{averaged(len(result.seeds), repeated='seed')}"
        ),
    )


def correlations(result: Result) -> HTML:
    """Every network's robust loss against four measures of sharpness; a slider chooses which.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure with a slider.

    Taught in: book/robustness/flat-minima
    """
    names = [n for n in result.series["networks"].axes["network"] if n not in (*RUINED, STOPPED)]
    losses = np.array([at(name, "robust loss")(result) for name in names])  # (methods, seeds)
    images, alts = [], []
    for quantity, label in CORRELATED.items():
        sharp = np.array([at(name, quantity)(result) for name in names])
        found = [float(pearsonr(p, q).statistic) for p, q in zip(losses.T, sharp.T, strict=True)]
        mean, low, high = t_interval(found)
        with style():
            fig, ax = plt.subplots(figsize=(6.4, 4))
            for name, x, y in zip(names, sharp, losses, strict=True):
                _points(ax, name, x, y)
            ax.set(xlabel=label, ylabel="test loss under attack (nats)")
            ax.set_title(f"Pearson r = {mean:.2f} [{low:.2f}, {high:.2f}] over seeds")
            ax.legend(fontsize=8, ncols=2)
            images.append(png(fig))
        alts.append(
            f"Scatter plot of test loss under attack against {label}, a point per network. "
            f"Pearson correlation over methods {mean:.2f}, 95 % interval {low:.2f} to {high:.2f}."
        )
    return image_slider(
        images,
        list(CORRELATED.values()),
        alts,
        "measure of sharpness",
        f"{len(names)} ways to train, {len(result.seeds)} seeds each; large markers are means.",
    )


def _points(ax: Axes, name: str, x: NDArray[Any], y: NDArray[Any]) -> None:
    colour, marker = FAMILIES[name.split(" ", maxsplit=1)[0]]
    line = {"linestyle": "", "color": colour, "marker": marker}
    ax.plot(x, y, markersize=3, alpha=0.4, **line)  # type: ignore[arg-type]
    ax.plot([x.mean()], [y.mean()], markersize=8, label=name, **line)  # type: ignore[arg-type]
    if name[-1].isdigit():
        size = name.split(" ")[-1]
        ax.annotate(size, (x.mean(), y.mean()), (6, -9), textcoords="offset points", fontsize=7)


def published_figure(models: Mapping[str, list[Any]]) -> HTML:
    """Published models: robust loss against average-case and worst-case flatness.

    Args:
        models: Columns as ``experiments.flat_minima.published`` gives them.

    Returns:
        A figure.

    Taught in: book/robustness/flat-minima
    """
    loss, told = np.array(models["robust_loss"]), []
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(6.4, 3), sharey=True)
        for ax, name, words in zip(
            axes, ("average_flatness", "worst_flatness"), ("average", "worst"), strict=True
        ):
            sharp = np.array(models[name])
            r = float(pearsonr(sharp, loss).statistic)
            ax.plot(sharp, loss, linestyle="", marker="o", color=BLUE, alpha=0.6, markersize=4)
            ax.set(xlabel=f"{words}-case flatness", title=f"Pearson r = {r:.2f}")
            told.append(f"{words}-case {r:.2f}")
        axes[0].set_ylabel("test loss under attack (nats)")
    return static_figure(
        fig,
        alt=f"Published models, a point each. Pearson correlation: {', '.join(told)}.",
        caption=f"{len(loss)} models on CIFAR-10, numbers from the tables of the paper.",
    )


def methods_table(result: Result) -> HTML:
    """What every method ends with, means over seeds.

    Args:
        result: A study or a full-scale run.

    Returns:
        A table.

    Taught in: book/robustness/flat-minima
    """
    names = result.series["networks"].axes["network"]
    order = sorted(names, key=lambda name: -np.mean(at(name, "robust accuracy")(result)))
    rows = []
    for name in order:
        mean = {quantity: float(np.mean(at(name, quantity)(result))) for quantity in QUANTITIES}
        shares = ("clean accuracy", "robust accuracy", "ensemble accuracy", "train robust accuracy")
        rows.append(
            [name]
            + [f"{100 * mean[quantity]:.1f}&nbsp;%" for quantity in shares]
            + [f"{mean['robust loss']:.2f}", f"{mean['average flatness']:.2f}"]
            + [f"{mean['worst flatness']:.3f}", f"{mean['top eigenvalue']:.1f}"]
        )
    titles = ["trained by", "clean", "under attack", "ensemble", "under attack, training data"]
    return plain_table(
        [*titles, "robust loss", "average-case", "worst-case", "top eigenvalue"], rows
    )

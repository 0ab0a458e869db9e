"""Figures of the lesson on the sum of a kernel."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments.absum import (
    ABSUM,
    METHODS,
    OTHER,
    PROJECTED,
    PUT_BACK,
    Config,
    at,
    gap,
)
from lmc_lessons.results import Effect, Result
from lmc_lessons.teaching.figures import BLUE, GREEN, GREY, ORANGE, PINK, averaged, style
from lmc_lessons.teaching.interactive import figure_html, static_figure
from lmc_lessons.teaching.interactive.markup import encoded, source
from lmc_lessons.teaching.tables import plain_table

WORDS = {"none": "a plain network", ABSUM: "with Absum", OTHER: "a plain network of another seed"}
CLEAN = "clean accuracy"
PANELS = {
    "fast waves, worst": "worst fast wave",
    "noise accuracy": "fast noise",
    "clean accuracy": "clean",
}
FAMILIES = {
    "": (GREY, "o"),
    "decay": (ORANGE, "^"),
    "L1": (PINK, "v"),
    "clip": ("#e69f00", "X"),
    "checkerboard": (GREEN, "D"),
    "Absum": (BLUE, "s"),
}

ROUTES = ("gain, slow waves", "gain, fast waves", "sum, later layers", PUT_BACK)
COLUMNS = {
    "clean accuracy": "clean",
    "fast waves, worst": "fast waves, worst",
    "fast waves, mean": "fast waves, mean",
    "slow waves, mean": "slow waves, mean",
    "noise accuracy": "fast noise",
    "PGD accuracy": "PGD",
    "transfer accuracy": "transferred PGD",
}


def mean_map(result: Result, network: str) -> NDArray[np.float64]:
    """Accuracy at every frequency, mean over seeds.

    Args:
        result: A study or a full-scale run.
        network: Name on the axis of the heat maps; ``Absum`` is the one of the configuration.

    Returns:
        Shape (u, v), shares.
    """
    series = result.series["heat map"]
    name = result.config.get("absum", Config.absum) if network == ABSUM else network
    row = series.axes["network"].index(name)
    mean: NDArray[np.float64] = np.mean([seed[row] for seed in series.values], axis=0)
    return mean


def waves_figure(
    result: Result, x: Tensor, labels: Sequence[str], *, start: tuple[int, int]
) -> HTML:
    """Add a wave of any frequency to an image, and see who still reads such images.

    Args:
        result: A study with heat maps.
        x: A few images of shape (N, 1, H, W), in [0, 1].
        labels: What each shows.
        start: The frequency shown first.

    Returns:
        An interactive figure.

    Taught in: book/robustness/absum
    """
    names = ("none", ABSUM)
    maps = [mean_map(result, name).round(4) for name in names]
    epsilon = result.config["wave_epsilon"]
    told = "; ".join(
        f"{WORDS[name]} {m[start]:.0%} at {start}, {np.delete(m.ravel(), 0).mean():.0%} on average "
        f"and {np.delete(m.ravel(), 0).min():.0%} at worst"
        for name, m in zip(names, maps, strict=True)
    )
    payload = {
        "rows": x.shape[-2],
        "columns": x.shape[-1],
        "images": encoded(np.rint(x.numpy() * 255).astype(np.uint8)),
        "count": len(x),
        "labels": list(labels),
        "epsilon": epsilon,
        "maps": [
            {"name": WORDS[name], "values": m.tolist()} for name, m in zip(names, maps, strict=True)
        ],
        "low": 0.0,
        "high": 1.0,
        "lowText": "0 %",
        "highText": "100 %",
        "start": list(start),
        "rowLabel": "periods from top to bottom",
        "columnLabel": "periods from left to right",
    }
    return figure_html(
        "waves",
        payload,
        alt=f"Share of images read with a wave added, by frequency: {told}.",
        caption=(
            f"One wave of size {epsilon:g} is added to every image, then pixels are clipped to "
            f"[0, 1]. The maps show the mean of {len(result.seeds)} networks each. Frequencies "
            "near the corners are slow, those in the middle are fast."
        ),
        fallback=f"Images read correctly: {told}.",
        script=source("waves.js"),
    )


def heat_maps(result: Result) -> HTML:
    """Accuracy at every frequency: plain, plain from another seed, and with Absum.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure of three panels.

    Taught in: book/robustness/absum
    """
    names, told = ("none", OTHER, ABSUM), []
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(7.2, 2.8), sharey=True)
        for ax, name in zip(axes, names, strict=True):
            values = mean_map(result, name)
            rolled = np.fft.fftshift(values)
            half = [length // 2 for length in values.shape]
            extent = (-half[1] - 0.5, half[1] - 0.5, half[0] - 0.5, -half[0] - 0.5)
            image = ax.imshow(rolled, vmin=0, vmax=1, cmap="viridis", extent=extent)
            ax.set(title=WORDS[name].replace("a plain network", "plain"), xlabel="v (periods)")
            told.append(f"{WORDS[name]} {np.delete(values.ravel(), 0).mean():.0%}")
        axes[0].set_ylabel("u (periods)")
        fig.colorbar(image, ax=axes, label="images read correctly")
    return static_figure(
        fig,
        alt=f"Accuracy by frequency of the wave. Mean over frequencies: {', '.join(told)}.",
        caption=(
            f"Waves of size {result.config['wave_epsilon']:.2g}. Slow waves lie in the middle, "
            f"(0, 0) is a change of brightness. Means over {len(result.seeds)} seeds."
        ),
    )


def comparison(result: Result) -> HTML:
    """Accuracy under the worst fast wave, under fast noise, and clean, by way to train.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure of three panels with a row for each way to train.

    Taught in: book/robustness/absum
    """
    names = [n for n in result.config["methods"] if not METHODS[n].adversarial]
    told = []
    with style():
        fig, axes = plt.subplots(1, 3, figsize=(7.2, 0.6 + 0.27 * len(names)), sharey=True)
        for row, name in enumerate(names):
            colour, mark = FAMILIES[METHODS[name].kind]
            for ax, quantity in zip(axes, PANELS, strict=True):
                _row(ax, row, [100 * v for v in at(name, quantity)(result)], colour, mark)
            means = [float(np.mean(at(name, quantity)(result))) for quantity in PANELS]
            told.append(f"{name} {means[0]:.1%}, {means[1]:.1%}, {means[2]:.1%}")
        for ax, (quantity, title) in zip(axes, PANELS.items(), strict=True):
            seen = [
                100 * v
                for name in names
                for v, clean in zip(
                    at(name, quantity)(result), at(name, CLEAN)(result), strict=True
                )
                if clean >= 0.5
            ]
            limits = (min(seen) - 1.5, max(seen) + 1.5) if seen else None
            ax.set(title=title, xlabel="accuracy (%)", xlim=limits)
            ax.grid(axis="x", alpha=0.3)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].invert_yaxis()
    return static_figure(
        fig,
        alt=f"Accuracy under the worst fast wave, fast noise, and clean: {'; '.join(told)}.",
        caption=(
            "Small points are single networks, large ones their mean. "
            f"{averaged(len(result.seeds), 'bars', 'seed')} Networks that learnt "
            "next to nothing (clean accuracy below 50 %) lie outside the panels."
        ),
    )


def _row(ax: Axes, row: int, values: list[float], colour: str, mark: str) -> None:
    """Single networks, their mean and its interval."""
    found = t_interval(values)
    ax.plot(values, [row] * len(values), marker=".", linestyle="", color=colour, alpha=0.45)
    if len(values) > 1:
        ax.plot([found.low, found.high], [row, row], color=colour, linewidth=0.9)
    ax.plot([found.mean], [row], marker=mark, linestyle="", color=colour, markersize=6)


def methods_table(result: Result) -> HTML:
    """What every way to train ends with, means over seeds.

    Args:
        result: A study or a full-scale run.

    Returns:
        A table.

    Taught in: book/robustness/absum
    """
    rows = []
    for name in (*result.config["methods"], PROJECTED):
        mean = {q: float(np.mean(at(name, q)(result))) for q in COLUMNS}
        rows.append([name] + [f"{100 * mean[q]:.1f}&nbsp;%" for q in COLUMNS])
    return plain_table(["trained with", *COLUMNS.values()], rows)


def routes_table(result: Result) -> HTML:
    """The two routes of a fast wave, by way to train: what the first layer does, and the means.

    Args:
        result: A study.

    Returns:
        A table; the last column is how much of the loss comes back with the means.

    Taught in: book/robustness/absum
    """
    kept = ["none", *(n for n in result.config["methods"] if METHODS[n].kind), PROJECTED]
    shown = [n for n in kept if n not in METHODS or not METHODS[n].adversarial]
    rows = []
    for name in shown:
        mean = {q: float(np.mean(at(name, q)(result))) for q in (*ROUTES, "fast waves, worst")}
        back = t_interval([100 * v for v in put_back(name)(result)])
        rows.append(
            [
                name,
                f"{mean['gain, slow waves']:.2f}",
                f"{mean['gain, fast waves']:.2f}",
                f"{mean['sum, later layers']:.2f}",
                f"{100 * mean['fast waves, worst']:.1f}&nbsp;%",
                f"{100 * mean[PUT_BACK]:.1f}&nbsp;%",
                f"{back.mean:+.1f} [{back.low:+.1f}, {back.high:+.1f}]",
            ]
        )
    heads = ["trained with", "gain, slow waves", "gain, fast waves", "|sum|, second layer"]
    return plain_table([*heads, "worst fast wave", "means put back", "points gained"], rows)


def put_back(network: str) -> Effect:
    """Effect: what the worst fast wave costs less when the first layer's means are put back."""
    return gap(at(network, PUT_BACK), at(network, "fast waves, worst"))


def variants_table(result: Result) -> HTML:
    """The main setting beside the others: what decay and Absum change, against plain training.

    Args:
        result: A study with variants.

    Returns:
        A table of differences with their intervals.

    Taught in: book/robustness/absum
    """
    settings = {
        "5x5 kernels, 16x16": None,
        **{n: n for n in result.series["variants"].axes["variant"]},
    }
    rows = []
    for title, variant in settings.items():
        for name in (result.config["decay"], result.config["absum"]):
            cells = []
            for quantity in (
                "clean accuracy",
                "fast waves, worst",
                "fast waves, mean",
                "noise accuracy",
            ):
                plain = at("none", quantity, variant)(result)
                ours = at(name, quantity, variant)(result)
                found = t_interval([100 * (p - q) for p, q in zip(ours, plain, strict=True)])
                cells.append(f"{found.mean:+.1f} [{found.low:+.1f}, {found.high:+.1f}]")
            rows.append([title, name, *cells])
    heads = ["clean", "fast waves, worst", "fast waves, mean", "fast noise"]
    return plain_table(["setting", "against none", *heads], rows)

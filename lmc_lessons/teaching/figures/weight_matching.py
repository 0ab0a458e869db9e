"""Figures of the lesson on weight matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML

from lmc_lessons.connectivity.matching import unit_similarity
from lmc_lessons.connectivity.symmetry import Permutations, Symmetry
from lmc_lessons.datasets import Dataset
from lmc_lessons.landscape import interpolate, line
from lmc_lessons.models import MLP, Params, predict
from lmc_lessons.results import Result
from lmc_lessons.teaching.figures import GREY, LOOKS, mean_with_interval, paths_figure, style
from lmc_lessons.teaching.interactive import (
    live_network,
    matrix_explorer,
    path_explorer,
    static_figure,
)

NAMES = {"naive": "naive path", "weights": "matched path"}


def two_paths(
    model: MLP,
    a: Params,
    b: Params,
    matched: Params,
    data: Dataset,
    *,
    sample: int | None = None,
    points: int = 25,
) -> HTML:
    """The interactive figure of the lesson: loss and accuracy along the naive and the matched path.

    Args:
        model: Architecture.
        a: Network A.
        b: Network B as trained.
        matched: Network B with its units reordered.
        data: Data set; its test split is measured.
        sample: Test image whose prediction follows the slider.
        points: Positions of the slider.

    Returns:
        An interactive figure.

    Taught in: book/start
    """
    positions = [k / (points - 1) for k in range(points)]
    curves, chances = {}, {}
    for name, end in (("naive path", b), ("matched path", matched)):
        profile = line(model, a, end, positions, data.test_x, data.test_y)
        curves[name] = {"loss": profile.loss, "accuracy": profile.accuracy}
        if sample is not None:
            x = data.test_x[sample : sample + 1]
            with torch.no_grad():
                outputs = [predict(model, interpolate(a, end, t), x)[0] for t in positions]
            chances[name] = torch.stack(outputs).softmax(-1).numpy()
    followed: Any = None
    if sample is not None:
        followed = {
            "image": data.test_x[sample, 0].numpy(),
            "true_class": int(data.test_y[sample]),
            "class_names": data.class_names,
            "probabilities": chances,
        }
    middle = points // 2
    naive, straight = (curves[name]["loss"][middle] for name in curves)
    return path_explorer(
        positions,
        curves,
        sample=followed,
        x_label="position t on the path",
        start=0.5,
        alt=(
            "Test loss and accuracy along the straight line from network A to network B. At the "
            f"midpoint the naive path has loss {naive:.2f}, the matched path {straight:.2f}."
        ),
        caption=(
            "Move the slider from network A (t = 0) to network B (t = 1). Both paths end at a "
            "network that computes the same function as B; only the numbering of its units differs."
        ),
    )


def misread_midway(model: MLP, a: Params, b: Params, matched: Params, data: Dataset) -> int:
    """The first test image that both ends and the matched midpoint read right, the naive one wrong.

    Args:
        model: Architecture.
        a: Network A.
        b: Network B as trained.
        matched: Network B with its units reordered.
        data: Data set.

    Returns:
        Index of the image.

    Raises:
        ValueError: If there is no such image.
    """
    with torch.no_grad():
        networks = (a, b, interpolate(a, matched, 0.5), interpolate(a, b, 0.5))
        guesses = [predict(model, n, data.test_x).argmax(1) == data.test_y for n in networks]
    wanted = guesses[0] & guesses[1] & guesses[2] & ~guesses[3]
    if not wanted.any():
        raise ValueError("no test image is read right by both ends and wrong by the naive midpoint")
    return int(wanted.nonzero()[0])


def live(a: Params, b: Params, matched: Params, data: Dataset) -> HTML:
    """Two networks that run in the page while the reader drags along both paths.

    Args:
        a: Network A, an ``MLP`` without normalisation.
        b: Network B as trained.
        matched: Network B with its units reordered.
        data: Data set of images; its test split is computed on.

    Returns:
        An interactive figure.

    Taught in: book/connectivity/weight-matching
    """
    images = data.test_x[:, 0].numpy()
    return live_network(
        _layers(a),
        _layers(b),
        _layers(matched),
        images,
        data.test_y.numpy(),
        (images.shape[1], images.shape[2]),
        data.class_names,
        x_label="position t on the path",
        alt=(
            "Two merged networks computed in the browser: test loss and accuracy at the chosen "
            "position of the naive and the matched path, and what each reads in a drawn digit."
        ),
        caption=(
            "Nothing here was computed beforehand. Your browser merges the weights at the position "
            "you choose and runs both networks on the test images. Draw a digit, or pick one, and "
            "see what each merged network reads."
        ),
    )


def _layers(params: Params) -> list[tuple[Any, Any]]:
    hidden = sum(name.startswith("hidden.") and name.endswith("weight") for name in params)
    names = [f"hidden.{k}" for k in range(hidden)] + ["output"]
    return [(params[f"{n}.weight"].numpy(), params[f"{n}.bias"].numpy()) for n in names]


def converging(
    symmetry: Symmetry,
    a: Params,
    b: Params,
    sweeps: Sequence[Permutations],
    objective: Sequence[float],
    data: Dataset,
    group: str,
) -> HTML:
    """How alike the units of A and the reordered B respond, sweep by sweep.

    Args:
        symmetry: The groups of the architecture.
        a: Network A.
        b: Network B as trained.
        sweeps: Permutations at the start and after every sweep, K of them.
        objective: The objective at the start and after every sweep.
        data: Data set; correlations are measured on training inputs.
        group: Which layer to show.

    Returns:
        An interactive figure.

    Taught in: book/connectivity/weight-matching
    """
    before = unit_similarity(symmetry, a, b, data.train_x)[group]
    frames = np.stack([before[:, sweep[group]].numpy() for sweep in sweeps])
    share = [float(np.mean(np.diagonal(frame))) for frame in frames]
    return matrix_explorer(
        frames,
        ["start", *(f"sweep {k}" for k in range(1, len(sweeps)))],
        {"objective": list(objective)},
        row_label="unit of A",
        column_label="unit of B at this position",
        value_label="correlation",
        alt=(
            f"Correlation of every unit of A with every unit of B in layer {group}. On the "
            f"diagonal the mean rises from {share[0]:.2f} to {share[-1]:.2f} as coordinate "
            "descent sweeps."
        ),
        caption=(
            "Each cell compares one unit of A with one unit of B, by their responses to training "
            "images, which weight matching never looks at. Step through the sweeps: the diagonal, "
            "units that share a position, lights up as the objective rises."
        ),
    )


def path_figure(result: Result, title: str) -> HTML:
    """Test loss along every path, mean and interval over pairs.

    Args:
        result: A study or a full-scale run.
        title: Named in the caption.

    Returns:
        A figure.
    """
    paths = result.series["test_loss"].axes["path"]
    names = {name: name for name in paths if name != "random"}
    return paths_figure(result, names, title, legend="B is matched by")


def sweep_figure(result: Result, name: str, *, log: bool, x_label: str, title: str) -> HTML:
    """Barrier before and after matching against one setting, mean and interval over pairs.

    Args:
        result: A study or a full-scale run.
        name: Which series: ``widths``, ``weight_decays`` or ``epochs``.
        log: Whether the x axis is logarithmic.
        x_label: Label of the x axis.
        title: Named in the caption.

    Returns:
        A figure.
    """
    series = result.series[name]
    ticks = list(series.axes.values())[1]
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.0))
        for k, (path, look) in enumerate(zip(series.axes["path"], LOOKS, strict=False)):
            curves = [seed[k] for seed in series.values]
            mean_with_interval(ax, ticks, curves, NAMES[path], look)
        if log:
            ax.set_xscale("symlog" if 0 in ticks else "log", base=2 if name == "widths" else 10)
            ax.set_xticks(ticks, [str(tick) for tick in ticks])
            ax.minorticks_off()
        ax.set(xlabel=x_label, ylabel="barrier (nats)")
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.legend()
    ends = [np.mean([seed[1][k] for seed in series.values]) for k in (0, -1)]
    return static_figure(
        fig,
        alt=(
            f"Barrier against {x_label}: after matching it goes from {ends[0]:.2f} to "
            f"{ends[1]:.2f} nats between {ticks[0]} and {ticks[-1]}."
        ),
        caption=f"{title}: mean over {len(result.seeds)} pairs, band: 95 % interval.",
    )


def depth_figure(result: Result) -> HTML:
    """Midpoint accuracy against depth, before and after REPAIR, and the variance that is top.

    Args:
        result: A study with the series ``depths``, ``depth_ends`` and ``variance_ratio``.

    Returns:
        A figure.
    """
    depths, ends = result.series["depths"], result.series["depth_ends"]
    ratio = result.series["variance_ratio"]
    ticks = depths.axes["depth"]
    with style():
        fig, (top, bottom) = plt.subplots(2, 1, figsize=(6.4, 5.6), height_ratios=(3, 2))
        mean_with_interval(top, ticks, ends.values, "ends", (GREY, "-", "."))
        for k, (name, look) in enumerate(zip(depths.axes["merge"], LOOKS, strict=True)):
            mean_with_interval(top, ticks, [seed[k] for seed in depths.values], name, look)
        top.set(xlabel="hidden layers", ylabel="midpoint accuracy", ylim=(0, 1), xticks=ticks)
        top.legend(fontsize=9, loc="lower left")
        mean_with_interval(bottom, ratio.axes["layer"], ratio.values, "", LOOKS[1])
        bottom.set(xlabel="layer", ylabel="variance left", ylim=(0, 1.05))
        bottom.set_xticks(ratio.axes["layer"])
    last = {
        name: np.mean([seed[k][-1] for seed in depths.values])
        for k, name in enumerate(depths.axes["merge"])
    }
    told = ", ".join(f"{name} {value:.2f}" for name, value in last.items())
    shrunk = np.mean([seed[-1] for seed in ratio.values])
    return static_figure(
        fig,
        alt=(
            f"Top: midpoint accuracy falls with depth; with {ticks[-1]} hidden layers: {told}. "
            f"Bottom: the merged units keep ever less variance, {shrunk:.2f} in the last layer."
        ),
        caption=(
            "Top: accuracy of the merged network against depth. Bottom: variance of merged units "
            f"relative to the ends, layer by layer, {ticks[-1]} hidden layers, matched by "
            f"activations. Mean over {len(result.seeds)} pairs, band: 95 % interval."
        ),
    )


def counterexample_figure(
    errors: dict[str, list[float]], positions: Sequence[float], points: Any, labels: Any
) -> HTML:
    """The data of the counterexample, and the error along the path for all four permutations.

    Args:
        errors: Permutation in words to the error rate at each position.
        positions: Positions on the path.
        points: Inputs of shape (N, 2).
        labels: Labels of shape (N,).

    Returns:
        A figure.
    """
    with style():
        fig, (top, bottom) = plt.subplots(2, 1, figsize=(6.4, 6.0), height_ratios=(1, 1))
        for value, look in ((0, LOOKS[1]), (1, LOOKS[0])):
            chosen = points[labels == value][:400]
            top.plot(*chosen.T, look[2], color=look[0], markersize=2.5, label=f"class {value}")
        top.set(xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
        top.legend(loc="upper left", bbox_to_anchor=(1, 1))
        for (name, values), look in zip(errors.items(), LOOKS, strict=True):
            bottom.plot(positions, values, color=look[0], linestyle=look[1], label=name)
        bottom.set(xlabel="position $t$ on the path", ylabel="error rate", ylim=(-0.01, None))
        bottom.legend(loc="upper left", bbox_to_anchor=(1, 1), title="layer 1, layer 2")
    lowest = min(max(values) for values in errors.values())
    return static_figure(
        fig,
        alt=(
            "Top: points of a square, class 1 in one quadrant. Bottom: the error along all four "
            f"paths is zero at the ends and rises to at least {lowest:.2f} in between."
        ),
        caption=(
            "Both ends classify every point correctly. On the way between them, whichever way B's "
            "units are numbered, the error rises."
        ),
    )

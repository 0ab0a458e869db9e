"""Figures of the lesson on singular vectors."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

from lmc_lessons.connectivity.spectra import alignments, overlap, spectra
from lmc_lessons.connectivity.symmetry import Permutations, Symmetry, permute
from lmc_lessons.evaluation import t_interval
from lmc_lessons.models import Params
from lmc_lessons.results import Result
from lmc_lessons.teaching.figures import GREY, LOOKS, averaged, mean_with_interval, style
from lmc_lessons.teaching.interactive import matrix_explorer, static_figure, step_explorer

NAMES = {"naive": "not matched", "weights": "by weights", "activations": "by activations"}


def lining_up(
    symmetry: Symmetry,
    a: Params,
    b: Params,
    sweeps: Sequence[Permutations],
    layer: str,
    *,
    top: int = 24,
    gamma: float = 0.3,
) -> HTML:
    """How the singular vectors of one layer line up, sweep by sweep of weight matching.

    Args:
        symmetry: The groups of the architecture.
        a: Network A.
        b: Network B as trained.
        sweeps: Permutations at the start and after every sweep, K of them.
        layer: Which layer to show.
        top: Number of singular vectors shown, the largest singular values first.
        gamma: Threshold of the alignment that is shown beside.

    Returns:
        An interactive figure.

    Taught in: book/connectivity/singular-vectors
    """
    spectra_a = spectra(a)
    frames, large, all_ = [], [], []
    for sweep in sweeps:
        moved = spectra(permute(symmetry, b, sweep))
        frames.append(overlap(spectra_a[layer], moved[layer])[:top, :top].numpy())
        found = alignments(spectra_a, moved, (gamma, 0.0))
        large.append(found[0].whole)
        all_.append(found[1].whole)
    return matrix_explorer(
        np.stack(frames),
        ["start", *(f"sweep {k}" for k in range(1, len(sweeps)))],
        {f"R of the large ones (γ = {gamma})": large, "R of all (γ = 0)": all_},
        row_label="singular vector pair of A, largest first",
        column_label="singular vector pair of B",
        value_label="agreement",
        limits=(-1.0, 1.0),
        alt=(
            f"Agreement of every pair of singular vectors of A with every pair of B in layer "
            f"{layer}, the {len(frames[0])} largest. From the start to the last sweep, the first "
            f"pair of both goes from {frames[0][0, 0]:.2f} to {frames[-1][0, 0]:.2f}; over all "
            f"layers, the alignment R of the large ones from {large[0]:.2f} to {large[-1]:.2f}, "
            f"that of all from {all_[0]:.2f} to {all_[-1]:.2f}."
        ),
        caption=(
            "A cell is the product of two cosines: that of two left and that of two right singular "
            "vectors. Step through the sweeps of weight matching, which knows nothing of singular "
            "vectors. The picture is of one layer; R is taken over all."
        ),
    )


def gamma_figure(result: Result) -> HTML:
    """The alignment of every layer, for every threshold and every way of matching.

    Args:
        result: A study or a full-scale run.

    Returns:
        An interactive figure.

    Taught in: book/connectivity/singular-vectors
    """
    series = result.series["layer_alignment"]
    layers, gammas = series.axes["layer"], series.axes["gamma"]
    values = np.asarray(series.values)  # (pairs, ways, layers, gammas)
    rows = [series.axes["way"].index(way) for way in NAMES]
    frames, band = {}, {}
    for row, name in zip(rows, NAMES.values(), strict=True):
        frames[name] = values[:, row].mean(0).T
        bounds = [
            [t_interval(list(values[:, row, k, g])) for k in range(len(layers))]
            for g in range(len(gammas))
        ]
        band[name] = tuple(
            np.asarray([[getattr(i, side) for i in line] for line in bounds])
            for side in ("low", "high")
        )
    means = np.asarray(result.series["alignment"].values).mean(0)
    summary = {
        f"{name}: R over all layers": means[row] for row, name in zip(rows, frames, strict=True)
    }
    at = gammas.index(0.3)
    told = "; ".join(
        f"{name} {means[row][0]:.2f} at γ = 0 and {means[row][at]:.2f} at γ = 0.3"
        for row, name in zip(rows, frames, strict=True)
    )
    return step_explorer(
        range(len(layers)),
        frames,
        [f"γ = {gamma:g}" for gamma in gammas],
        summary,
        band={k: (v[0], v[1]) for k, v in band.items()} if len(values) > 1 else None,
        x_ticks=layers,
        bars=True,
        start=at,
        x_label="layer",
        y_label="alignment R",
        step_label="threshold γ",
        reference=("all vectors coincide", 1.0),
        alt=f"Alignment of singular vectors of A and B, layer by layer. Over all layers: {told}.",
        caption=(
            "Move the threshold: only singular values of at least γ times the largest of their "
            f"layer count. {averaged(len(values), 'whiskers')}"
        ),
    )


def estimate_figure(result: Result) -> HTML:
    """The second-order estimate of the barrier over the barrier, against the distance.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure.

    Raises:
        KeyError: If the result has no series ``taylor``.
    """
    series = result.series["taylor"]
    fractions = series.axes["fraction"]
    ratios = [
        [estimate / true for estimate, true in zip(*seed, strict=True)] for seed in series.values
    ]
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for ratio in ratios:
            ax.plot(fractions, ratio, color=LOOKS[1][0], linewidth=0.6, alpha=0.5)
        mean_with_interval(ax, fractions, ratios, "", LOOKS[1])
        ax.axhline(1, color=GREY, linestyle="--", linewidth=0.8)
        ax.set_xscale("log")
        ax.set_xticks(fractions, [f"{fraction:g}" for fraction in fractions])
        ax.minorticks_off()
        ax.set(xlabel="share of the way from A to B", ylabel="estimate / measured")
    means = np.mean(ratios, axis=0)
    told = ", ".join(
        f"{mean:.2f} at {fraction:g}" for fraction, mean in zip(fractions, means, strict=True)
    )
    return static_figure(
        fig,
        alt=f"Estimated over measured rise at the midpoint, by the share of the way: {told}.",
        caption=(
            "Second-order estimate of the rise halfway between A and a point on the way to B, over "
            f"the measured rise (dashed: equal). Thin: single pairs. {averaged(len(ratios))}"
        ),
    )

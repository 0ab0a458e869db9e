"""Figures of the lesson on distilled representations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from matplotlib.axes import Axes
from numpy.typing import NDArray

from lmc_lessons.evaluation import t_interval
from lmc_lessons.experiments.ardir import AGAIN, METHODS, NATURAL, QUANTITIES, TEACHER, metric, more
from lmc_lessons.results import Result
from lmc_lessons.teaching.figures import BLUE, GREY, LOOKS, ORANGE, averaged, style
from lmc_lessons.teaching.figures import mean_with_interval as curve
from lmc_lessons.teaching.interactive import image_slider, png, static_figure
from lmc_lessons.teaching.tables import plain_table

WORDS = {
    "output": "teacher's output only",
    "rep 5": "output and representation",
    TEACHER: "the teachers",
    "AT": "adversarial training",
}
ENSEMBLE = "ensemble accuracy"


def moving(result: Result, seed: int = 0) -> HTML:
    """Two students' representations on their way, in the plane of their teacher's.

    Args:
        result: A run with pictures.
        seed: Which of its seeds to show, by index.

    Returns:
        A figure with a slider over epochs.

    Taught in: book/robustness/ardir
    """
    series, targets = result.series["picture"], result.series["teacher picture"]
    names, epochs, labels = (series.axes[axis] for axis in ("network", "epoch", "image"))
    points, target = np.array(series.values[seed]), np.array(targets.values[seed])
    every = np.concatenate([target, points.reshape(-1, 2)])
    low, high = every.min(0), every.max(0)
    edges = (low - 0.06 * (high - low), high + 0.06 * (high - low))
    images, alts = [], []
    for k, epoch in enumerate(epochs):
        with style():
            fig, axes = plt.subplots(1, len(names), figsize=(6.4, 3.4), sharey=True, squeeze=False)
            told = []
            for ax, name, row in zip(axes[0], names, range(len(names)), strict=True):
                distance = result.series["distance"].values[seed][row][k]
                _digits(ax, labels, target, points[row, k], edges)
                ax.set_title(f"{WORDS.get(name, name)}\ndistance {distance:.2f}")
                told.append(f"{WORDS.get(name, name)} {distance:.2f}")
            images.append(png(fig))
        alts.append(
            f"After {epoch} epochs: {len(labels)} test digits as two students and their teacher "
            f"represent them. Distance from the teacher's representation: {', '.join(told)}."
        )
    return image_slider(
        images,
        [str(epoch) for epoch in epochs],
        alts,
        "epochs of training",
        "Each digit is one test image. Grey: the teacher's representation of the clean image. Blue:"
        " the student's of the same image under attack. Both in the plane in which the teacher's "
        "vary most; lines join what the loss compares. The distance is that of the loss, over all "
        "test images.",
    )


def _digits(
    ax: Axes,
    labels: Sequence[int],
    target: NDArray[Any],
    own: NDArray[Any],
    edges: tuple[NDArray[Any], NDArray[Any]],
) -> None:
    for place, end in zip(target, own, strict=True):
        ax.plot(*zip(place, end, strict=True), color=GREY, linewidth=0.4, alpha=0.5)
    for places, colour, weight in ((target, GREY, "normal"), (own, BLUE, "bold")):
        for label, (x, y) in zip(labels, places, strict=True):
            text: Any = {"ha": "center", "va": "center", "fontsize": 8}
            ax.text(x, y, str(label), color=colour, weight=weight, **text)
    (left, bottom), (right, top) = edges
    ax.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def beside_the_noise(result: Result, names: Sequence[str]) -> HTML:
    """How far each method is from adversarial training, beside what a change of seed does.

    Args:
        result: A study or a full-scale run.
        names: Methods, from top to bottom; those that were not run are left out.

    Returns:
        A figure.

    Taught in: book/robustness/ardir
    """
    rows = [AGAIN, *names]
    rows = [name for name in rows if metric(name, ENSEMBLE) in result.metrics]
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 0.32 * len(rows) + 1))
        for height, name in enumerate(reversed(rows)):
            values = [100 * v for v in more(name, "AT")(result)]
            mean, low, high = t_interval(values)
            colour = ORANGE if name == AGAIN else BLUE
            ax.plot(values, [height] * len(values), "o", color=colour, markersize=3, alpha=0.35)
            if len(values) > 1:
                ax.plot([low, high], [height, height], color=colour, linewidth=2)
            ax.plot([mean], [height], "D", color=colour, markersize=6)
            told.append(f"{name} {mean:+.1f}")
        ax.axvline(0, color=GREY, linewidth=0.8)
        ax.set_yticks(range(len(rows)), list(reversed(rows)))
        ax.set_xlabel("accuracy left by the ensemble, minus adversarial training (points)")
    return static_figure(
        fig,
        alt=(
            "Differences of robust accuracy from adversarial training with the same seed, in "
            f"points: {', '.join(reversed(told))}."
        ),
        caption=(
            "Small points: seeds. Orange: adversarial training again from another seed, which is "
            f"noise alone. {averaged(len(result.seeds), 'bar', 'seed')}"
        ),
    )


def weights(result: Result) -> HTML:
    """Accuracy under PGD and under the ensemble against the weight of the representation.

    Args:
        result: A study.

    Returns:
        A figure.

    Taught in: book/robustness/ardir
    """
    swept = {0.0: "output"} | {
        METHODS[n].weight: n for n in ("rep 0.5", "rep 2", "rep 5", "rep 20")
    }
    used = {w: n for w, n in swept.items() if metric(n, ENSEMBLE) in result.metrics}
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for quantity, words, look in zip(
            (ENSEMBLE, "PGD accuracy"), ("ensemble of attacks", "PGD"), LOOKS[1::-1], strict=True
        ):
            values = np.array([result.metrics[metric(n, quantity)] for n in used.values()]).T
            curve(ax, list(used), (100 * values).tolist(), words, look)
            means = 100 * values.mean(0)
            heights = ", ".join(f"{m:.1f} at {w:g}" for w, m in zip(used, means, strict=True))
            told.append(f"{words}: {heights}")
        ax.set_xscale("symlog", linthresh=0.5)
        ax.set_xticks(list(used), [f"{weight:g}" for weight in used])
        ax.minorticks_off()
        ax.set(xlabel="weight λ of the representation", ylabel="test accuracy under attack (%)")
        ax.legend()
    return static_figure(
        fig,
        alt=f"Accuracy in per cent by weight of the representation. {'; '.join(told)}.",
        caption=averaged(len(result.seeds), repeated="seed"),
    )


def while_training(result: Result) -> HTML:
    """Accuracy under attack on test data, epoch by epoch.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure.

    Taught in: book/robustness/ardir
    """
    series = result.series["PGD accuracy"]
    names, epochs = series.axes["network"], series.axes["epoch"]
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for row, (name, look) in enumerate(zip(names, LOOKS, strict=False)):
            values = [[100 * v for v in seed[row][1]] for seed in series.values]
            curve(ax, epochs, values, WORDS.get(name, name), look)
            told.append(f"{WORDS.get(name, name)} {np.mean([v[-1] for v in values]):.1f} %")
        ax.set(xlabel="epoch", ylabel="test accuracy under PGD (%)")
        ax.legend(loc="lower right")
    return static_figure(
        fig,
        alt=f"Test accuracy under PGD by epoch. At the end: {', '.join(told)}.",
        caption=averaged(len(result.seeds), repeated="seed"),
    )


def methods_table(result: Result) -> HTML:
    """What every way to train ends with: means over seeds, the most robust first.

    Args:
        result: A study or a full-scale run.

    Returns:
        A table.

    Taught in: book/robustness/ardir
    """
    names = [TEACHER, AGAIN, NATURAL, *METHODS]
    names = [name for name in names if metric(name, ENSEMBLE) in result.metrics]
    names.sort(key=lambda name: -float(np.mean(result.metrics[metric(name, ENSEMBLE)])))
    rows = []
    for name in names:
        mean = {q: float(np.mean(result.metrics[metric(name, q)])) for q in QUANTITIES}
        rows.append(
            [name]
            + [f"{100 * mean[quantity]:.1f}&nbsp;%" for quantity in QUANTITIES[:4]]
            + [f"{mean[quantity]:.2f}" for quantity in QUANTITIES[4:6]]
            + [f"{mean['label entropy']:.3f}"]
        )
    titles = ["trained by", "clean", "PGD", "ensemble", "PGD, training data"]
    return plain_table(
        [*titles, "feature shift", "cosine to teacher", "entropy of its labels (nats)"], rows
    )

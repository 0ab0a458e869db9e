"""Figures of the lesson on autoencoding binary classifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from lmc_lessons.detection.abc import SideBySide, abc_loss, abc_score, abc_slope, negative_loss
from lmc_lessons.detection.autoencoders import errors
from lmc_lessons.detection.tasks import Task, sine_task
from lmc_lessons.evaluation import auroc
from lmc_lessons.experiments.autoencoding_binary_classifiers import (
    CONTAMINATED,
    FOREVER,
    PLANE,
    PLANE_CLASSIFIER,
    PLANE_RECIPE,
    SIDE_LOSSES,
    hidden,
    labelled,
    unlabelled,
)
from lmc_lessons.models import Params, build, predict_stacked
from lmc_lessons.results import Effect, Result, entry
from lmc_lessons.teaching.figures import (
    BLUE,
    GREY,
    LOOKS,
    ORANGE,
    PINK,
    averaged,
    few_colours,
    style,
)
from lmc_lessons.teaching.figures import mean_with_interval as curve
from lmc_lessons.teaching.interactive import image_slider, png, static_figure
from lmc_lessons.teaching.tables import plain_table
from lmc_lessons.training import Spawn, train

REACH = 6.5  # of the plane that is drawn
METHODS = {
    "AE": (GREY, ":", "x"),
    "classifier": (ORANGE, "--", "o"),
    "negative learning": (PINK, "-.", "D"),
    "ABC": (BLUE, "-", "s"),
}
PLACES = ((-5.0, -5.0), (5.0, 5.0))  # of unknown anomalies in the plane


@dataclass(frozen=True)
class Maps:
    """Scores in the plane of four detectors, for one number of labels.

    Attributes:
        task: What they were trained on.
        scores: Method to scores in [0, 1] on a square grid, shape (G, G).
        areas: Method to AUROC for known and for unknown anomalies.
    """

    task: Task
    scores: dict[str, NDArray[Any]]
    areas: dict[str, tuple[float, float]]


def score_maps(number: int, seed: int = 0, *, epochs: int = 40, grid: int = 61) -> Maps:
    """Train four detectors on the sine, and score the whole plane.

    Args:
        number: Labelled anomalies.
        seed: Which points and networks.
        epochs: Epochs of training; no epoch is chosen here.
        grid: Points along each side of the plane.

    Returns:
        Scores of an autoencoder, a classifier, negative learning and ABC.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    task, losses = sine_task(seed, number), tuple(SIDE_LOSSES.values())
    recipe = replace(PLANE_RECIPE, epochs=epochs)
    spawn = [None] + [Spawn(seed, FOREVER)] * (len(losses) - 1)
    seeds = [seed + 1000 * k for k in range(len(losses))]
    trained = train(PLANE, task.data, seeds, recipe, loss=SideBySide(losses), spawn=spawn)
    classifier = train(PLANE_CLASSIFIER, task.data, (seed,), recipe)
    line = torch.linspace(-REACH, REACH, grid)
    plane = torch.cartesian_prod(line, line)  # x, y; x changes slowest
    found, tested = (
        {**_scores(trained.params, classifier.params, x)} for x in (plane, task.test_x)
    )
    return Maps(
        task,
        {name: found[name].view(grid, grid).T.numpy() for name in METHODS},
        {
            name: (auroc(*task.against(s, "known")), auroc(*task.against(s, "unknown")))
            for name, s in tested.items()
        },
    )


def _scores(autoencoders: Params, classifier: Params, x: Tensor) -> dict[str, Tensor]:
    error = errors(build(PLANE), autoencoders, x)
    with torch.no_grad():
        logits = predict_stacked(build(PLANE_CLASSIFIER), classifier, x.unsqueeze(0))[0]
    found = {name: abc_score(error[k]) for k, name in enumerate(SIDE_LOSSES)}
    return {**found, "classifier": logits.softmax(-1)[:, 1]}


def plane(maps: Mapping[int, Maps]) -> HTML:
    """Scores in the plane, with a slider over the number of labels.

    Args:
        maps: Number of labels to what ``score_maps`` gave.

    Returns:
        A figure.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    images, alts = [], []
    for number, found in maps.items():
        with style():
            fig, axes = plt.subplots(2, 2, figsize=(6.4, 6.6), sharex=True, sharey=True)
            for ax, name in zip(axes.flat, METHODS, strict=True):
                _map(ax, found, name)
            fig.supxlabel("first coordinate", fontsize=9)
            fig.supylabel("second coordinate", fontsize=9)
            images.append(few_colours(png(fig, dpi=160), 96))
        told = "; ".join(
            f"{name} ranks {known:.3f} of the pairs right for known and {unknown:.3f} for unknown"
            for name, (known, unknown) in ((n, found.areas[n]) for n in METHODS)
        )
        alts.append(f"Scores in the plane with {number} labelled anomalies. {told}.")
    return image_slider(
        images,
        [str(number) for number in maps],
        alts,
        "labelled anomalies",
        "Dark: taken for normal; bright: taken for an anomaly. White dots: normal training points. "
        "Orange triangles: labelled anomalies. Circles: where unknown anomalies lie. Above each "
        "map: AUROC for known and for unknown anomalies. One seed.",
    )


def _map(ax: Axes, found: Maps, name: str) -> None:
    reach = (-REACH, REACH, -REACH, REACH)
    ax.imshow(found.scores[name], origin="lower", extent=reach, cmap="cividis", vmin=0, vmax=1)
    x, y = found.task.train_x, found.task.train_y
    normal, anomalies = x[y == 0][::4], x[y == 1]
    ax.plot(normal[:, 0], normal[:, 1], ".", color="white", markersize=2)
    ax.plot(anomalies[:, 0], anomalies[:, 1], "^", color=ORANGE, markersize=4)
    for place in PLACES:
        circle: Any = plt.Circle(
            place, 0.9, fill=False, color=ORANGE, linestyle="--", linewidth=1.2
        )
        ax.add_patch(circle)
    known, unknown = found.areas[name]
    ax.set_title(f"{name}: {known:.3f} / {unknown:.3f}")


def likelihood() -> HTML:
    """The losses of one sample, and their slopes, as functions of its error.

    Returns:
        A figure of two panels.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    error = torch.linspace(0.02, 5, 250, dtype=torch.float64)
    zeros, ones = torch.zeros(250), torch.ones(250)
    with style():
        fig, (left, right) = plt.subplots(1, 2, figsize=(6.4, 3))
        for label, values, (colour, dashes, _) in (
            ("normal", abc_loss(error, zeros), LOOKS[2]),
            ("anomaly, ABC", abc_loss(error, ones), LOOKS[1]),
            ("anomaly, negative learning", negative_loss(error, ones), LOOKS[3]),
        ):
            left.plot(error, values, color=colour, linestyle=dashes, label=label)
        right.axhline(1, color=LOOKS[2][0], linestyle=LOOKS[2][1])
        right.plot(error, abc_slope(error, ones), color=BLUE)
        right.axhline(-1, color=LOOKS[3][0], linestyle=LOOKS[3][1])
        left.set(xlabel="error $L$", ylabel="loss (nats)", ylim=(-5, 5))
        right.set(xlabel="error $L$", ylabel="slope of the loss", ylim=(-6, 2))
        left.legend(fontsize=8)
    some = [0.1, 1.0, 5.0]
    slopes = abc_slope(torch.tensor(some), torch.ones(3)).tolist()
    told = ", ".join(f"{s:.3g} at {e:g}" for e, s in zip(some, slopes, strict=True))
    return static_figure(
        fig,
        alt="Left: the loss of a normal sample rises with its error, that of an anomaly falls, in "
        "ABC towards zero and in negative learning without end. Right: slopes; normal 1, negative "
        f"learning -1, ABC {told}.",
        caption="Left: loss of one sample by its error. Right: slope of that loss, which is the "
        "force that training exerts on the error.",
    )


def by_labels(result: Result) -> HTML:
    """AUROC by number of labels, for known and for unknown anomalies.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure of two panels.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    numbers = result.series["labelled"].axes["labels"]
    told = []
    with style():
        fig, axes = plt.subplots(1, 2, figsize=(6.4, 3.4), sharey=True)
        for ax, kind in zip(axes, ("known", "unknown"), strict=True):
            for name, look in METHODS.items():
                own = _over_labels(result, name, kind, numbers)
                curve(ax, numbers, own.tolist(), name, look)
                told.append(f"{name}, {kind}, {own[:, -1].mean():.3f}")
            ax.set_xscale("log")
            ax.set_xticks(numbers, [str(number) for number in numbers])
            ax.minorticks_off()
            ax.set(xlabel="labelled anomalies", title=f"{kind} anomalies")
        axes[0].set_ylabel("AUROC")
        axes[1].legend(fontsize=8, loc="lower left")
    return static_figure(
        fig,
        alt=f"AUROC by number of labels. With {numbers[-1]}: {'; '.join(told)}.",
        caption=f"The autoencoder sees no label. {averaged(len(result.seeds), repeated='unit')}",
    )


def _over_labels(result: Result, name: str, kind: str, numbers: Sequence[int]) -> NDArray[Any]:
    """AUROC by number of labels, shape (units, numbers); a method without labels is constant."""
    if name == "AE":
        return np.array([unlabelled(name, kind)(result)] * len(numbers)).T
    return np.array([labelled(name, number, kind)(result) for number in numbers]).T


def by_class(result: Result, number: int) -> HTML:
    """AUROC for unknown anomalies, unit by unit.

    Args:
        result: A study or a full-scale run.
        number: Number of labels.

    Returns:
        A figure.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    classes = result.config["anomalies"]
    held_out = [classes[seed % len(classes)] for seed in result.seeds]
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for k, (name, (colour, _, marker)) in enumerate(METHODS.items()):
            own = _over_labels(result, name, "unknown", [number])[:, 0]
            places = [classes.index(kind) + 0.14 * (k - 1.5) for kind in held_out]
            look: Any = {"marker": marker, "color": colour, "linestyle": "", "markersize": 5}
            ax.plot(places, own, label=name, **look)
            told.append(f"{name} from {own.min():.3f} to {own.max():.3f}")
        ax.axhline(0.5, color=GREY, linewidth=1, linestyle=":")
        ax.set_xticks(range(len(classes)), [str(kind) for kind in classes])
        ax.set(xlabel="class that is unknown", ylabel="AUROC, unknown anomalies")
        ax.legend(fontsize=8, loc="lower right")
    return static_figure(
        fig,
        alt=f"AUROC for unknown anomalies with {number} labels: {'; '.join(told)}.",
        caption=f"A point per unit, {number} labels. Dotted: chance.",
    )


def growth(result: Result, number: int) -> HTML:
    """Error of labelled anomalies during training.

    Args:
        result: A study or a full-scale run.
        number: Number of labels.

    Returns:
        A figure.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    series = result.series["error"]
    epochs, names = series.axes["epoch"], series.axes["method"]
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for name, look in zip(names, (LOOKS[3], LOOKS[1], LOOKS[2], LOOKS[0]), strict=False):
            own = np.array([entry("error", name, number, epoch)(result) for epoch in epochs]).T
            curve(ax, epochs, own.tolist(), name, look)
            told.append(f"{name} {own[:, -1].mean():.3g}")
        ax.set_yscale("log")
        ax.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        ax.minorticks_off()
        ax.set(xlabel="epoch", ylabel="mean length $\\|x - D(E(x))\\|$")
        ax.legend(fontsize=8)
    return static_figure(
        fig,
        alt=f"Error of labelled anomalies by epoch. At the end: {', '.join(told)}.",
        caption=f"Labelled training anomalies, {number} labels with those that validate. "
        f"{averaged(len(result.seeds), repeated='unit')}",
    )


def scales(result: Result) -> HTML:
    """AUROC of ABC by the scale that its error is divided by.

    Args:
        result: A study.

    Returns:
        A figure.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    ticks = result.series["scales"].axes["scale"]
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for kind, look in (("known", LOOKS[0]), ("unknown", LOOKS[1])):
            own = np.array([entry("scales", tick, kind)(result) for tick in ticks]).T
            curve(ax, ticks, own.tolist(), f"{kind} anomalies", look)
            plain = float(np.mean(unlabelled("AE", kind)(result)))
            ax.axhline(plain, color=look[0], linewidth=1, linestyle=":")
            values = ", ".join(f"{v:.3f}" for v in own.mean(0))
            told.append(f"{kind} {values}, autoencoder {plain:.3f}")
        ax.set_xscale("log")
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.minorticks_off()
        ax.set(xlabel="scale $s$: the likelihood sees $L/s$", ylabel="AUROC")
        ax.legend(fontsize=8)
    return static_figure(
        fig,
        alt=f"AUROC of ABC at scales {', '.join(f'{t:g}' for t in ticks)}: {'; '.join(told)}.",
        caption=f"ABC with the largest number of labels; dotted: the autoencoder. "
        f"{averaged(len(result.seeds), repeated='unit')}",
    )


def contamination(result: Result) -> HTML:
    """Mean AUROC when some unlabelled samples are anomalies.

    Args:
        result: A study.

    Returns:
        A figure.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    shares = result.series["contamination"].axes["share"]
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for name, look in zip(CONTAMINATED, (METHODS["AE"], *LOOKS[1:]), strict=True):
            own = np.array([hidden(name, share)(result) for share in shares]).T
            curve(ax, [100 * share for share in shares], own.tolist(), name, look)
            told.append(f"{name} {', '.join(f'{v:.3f}' for v in own.mean(0))}")
        ax.set_xticks([100 * share for share in shares])
        ax.set(xlabel="anomalies among the unlabelled (%)", ylabel="AUROC, known and unknown")
        ax.legend(fontsize=8)
    return static_figure(
        fig,
        alt=f"Mean AUROC at shares {', '.join(f'{s:g}' for s in shares)}: {'; '.join(told)}.",
        caption=averaged(len(result.seeds), repeated="unit"),
    )


TITLES = {
    "known": "AUROC known",
    "unknown": "unknown",
    "known AUPRC": "AUPRC known",
    "unknown AUPRC": "unknown",
    "known false alarms": "FPR known",
    "unknown false alarms": "unknown",
    "balanced accuracy": "balanced",
}


def methods_table(result: Result, number: int, others: Result | None = None) -> HTML:
    """Every method with every measure, means over units.

    Args:
        result: A study or a full-scale run.
        number: Number of labels of those that see labels.
        others: Another run of the same units with more methods that see none.

    Returns:
        A table.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    rows = []
    for found in (result, others):
        if found is not None:
            names = found.series["unlabelled"].axes["method"]
            rows += [[name, "0", *_cells(found, partial(unlabelled, name))] for name in names]
    names = result.series["labelled"].axes["method"]
    rows += [
        [name, str(number), *_cells(result, partial(labelled, name, number))] for name in names
    ]
    return plain_table(["method", "labels", *TITLES.values()], rows)


def longer_table(study: Result, longer: Result, number: int) -> HTML:
    """AUROC of a study beside that of the same units trained for more epochs, means over units.

    Args:
        study: The study.
        longer: The same units, trained longer.
        number: Number of labels of those that see labels.

    Returns:
        A table.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    names = ["AE", *longer.series["labelled"].axes["method"]]
    ways: dict[str, Any] = {name: _of(name, number) for name in names}
    for scale in longer.series["scales"].axes["scale"]:
        ways[f"ABC scale {scale:g}"] = partial(entry, "scales", scale)
    runs = (study, longer)
    heads = [f"{kind}, {r.config['train']['epochs']}" for kind in KINDS for r in runs]
    rows = [
        [name, *(f"{np.mean(way(kind)(run)):.3f}" for kind in KINDS for run in runs)]
        for name, way in ways.items()
    ]
    return plain_table(["method", *heads], rows)


KINDS = ("known", "unknown")


def _of(name: str, number: int) -> Callable[[str], Effect]:
    """The effect of one method by kind of anomaly."""
    if name == "AE":
        return partial(unlabelled, name)
    return partial(labelled, name, number)


def _cells(result: Result, effect: Callable[[str], Effect]) -> list[str]:
    return [f"{np.mean(effect(quantity)(result)):.3f}" for quantity in TITLES]


def sides_table(result: Result) -> HTML:
    """Other tasks: AUROC for known and unknown anomalies, means over units.

    Args:
        result: A study.

    Returns:
        A table.

    Taught in: book/detection/autoencoding-binary-classifiers
    """
    axes = result.series["sides"].axes
    heads = [f"{task}, {kind}" for task in axes["task"] for kind in ("known", "unknown")]
    rows = [
        [
            name,
            *(
                f"{np.mean(entry('sides', task, name, kind)(result)):.3f}"
                for task in axes["task"]
                for kind in ("known", "unknown")
            ),
        ]
        for name in axes["method"]
    ]
    return plain_table(["method", *heads], rows)

"""Figures of the lesson on sharpness under adversarial training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor

from lmc_lessons.evaluation import t_interval
from lmc_lessons.results import Result
from lmc_lessons.robustness.logistic import (
    Problem,
    adversarial_loss,
    critical_radius,
    descend,
    direction,
    hessian,
    samples,
)
from lmc_lessons.teaching.figures import LOOKS, averaged, mean_with_interval, style
from lmc_lessons.teaching.interactive import figure_html, static_figure, step_explorer

COLUMNS = (("top eigenvalue", ""), ("rise", "nats"), ("length of w", ""), ("loss", "nats"))


def two_clouds(count: int = 30, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes of points in the plane, mirror images of one cloud.

    Args:
        count: Points of each class.
        seed: Decides them.

    Returns:
        Points of shape (2 count, 2), and signs.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    stream = torch.Generator().manual_seed(seed)
    spread = torch.tensor([[0.8, 0.2], [0.2, 0.35]], dtype=torch.float64)
    centre = torch.tensor([0.25, 0.8], dtype=torch.float64)
    clouds = [
        sign * centre + torch.randn(count, 2, generator=stream, dtype=torch.float64) @ spread
        for sign in (1, -1)
    ]
    signs = torch.ones(count, dtype=torch.float64)
    return torch.cat(clouds), torch.cat([signs, -signs])


def clouds_figure(x: Tensor, y: Tensor, *, steps: int = 17, largest: float = 0.8) -> HTML:
    """Two classes under an attack of growing radius, and the loss around the trained weights.

    Args:
        x: Points of shape (N, 2).
        y: Signs.
        steps: Number of radii.
        largest: The largest radius, as a share of the critical one.

    Returns:
        An interactive figure that needs no kernel.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    radius = critical_radius(x, y)
    shares = torch.linspace(0, largest, steps, dtype=torch.float64)
    problem = Problem(x[None], y[None], radius * shares)
    start = torch.tensor([0.1, 0.1], dtype=torch.float64).expand(steps, 2).clone()
    w = descend(problem, start, 3000, 0.5).w
    payload = clouds_payload(problem, w, shares)
    rows = [step["row"] for step in payload["steps"]]
    at = int(np.argmax([row[1] for row in rows]))
    return figure_html(
        "landscape",
        payload,
        alt=(
            "Two classes of points, a line between them, and the loss around the line's weights. "
            f"From no attack to the largest radius the top eigenvalue goes from {rows[0][0]:.2f} "
            f"to {rows[-1][0]:.2f}, the rise of the loss from {rows[0][1]:.2f} to "
            f"{rows[at][1]:.2f} nats at {shares[at]:.0%} of the critical radius, then to "
            f"{rows[-1][1]:.2f}."
        ),
        caption=(
            "Left: every sample is pushed by the radius straight towards the line (small marks); "
            "dashed lines stand a radius away from it. Right: the mean loss along all directions "
            "around the trained weights; the attack is made anew for every weight. Move the "
            "slider, and compare the first two numbers of the table."
        ),
        fallback=(
            f"Top eigenvalue {rows[0][0]:.3g} without attack, {rows[-1][0]:.3g} at the largest "
            "radius."
        ),
    )


def clouds_payload(problem: Problem, w: Tensor, shares: Tensor) -> dict[str, Any]:
    """What the first figure draws: points, and for every radius a line, a landscape and numbers.

    Args:
        problem: Samples in the plane, attacked with F radii.
        w: Weights trained against each, shape (F, 2).
        shares: The radii as shares of the critical one.

    Returns:
        Plain data.
    """
    x, y = problem.x[0], problem.y[0]
    alpha = torch.linspace(-1, 1, 41, dtype=torch.float64)
    losses = mean_landscape(problem, w, alpha)
    rows = sharpness_rows(problem, w, losses)
    way, size = direction(w, "l2"), float(x.abs().max()) * 1.08
    radii = problem.epsilon.tolist()
    return {
        "points": np.round(x.numpy(), 4).tolist(),
        "classes": [int(sign < 0) for sign in y],
        "classNames": ["one class", "the other"],
        "span": [-size, size],
        "stepLabel": "radius (share of the critical one)",
        "labels": [
            f"{radius:.2f} ({share:.0%})" for radius, share in zip(radii, shares, strict=True)
        ],
        "start": len(radii) // 2,
        "alpha": alpha.tolist(),
        "alphaLabel": "step, in lengths of w",
        "lossLabel": "loss, mean over all directions",
        "names": ["without attack", "this radius"],
        "columns": [{"title": title, "unit": unit} for title, unit in COLUMNS],
        "steps": [
            {
                "epsilon": radius,
                "way": way[k].tolist(),
                "loss": [float(f"{v:.5g}") for v in losses[k]],
                "row": [float(f"{v:.5g}") for v in rows[k]],
            }
            for k, radius in enumerate(radii)
        ],
    }


def mean_landscape(problem: Problem, w: Tensor, alpha: Tensor) -> NDArray[np.float64]:
    """Mean loss over all directions of the plane, at steps in lengths of the weights.

    Args:
        problem: Samples in the plane, attacked with F radii.
        w: Weights of shape (F, 2).
        alpha: Steps, A of them.

    Returns:
        Shape (F, A), in nats.
    """
    angles = torch.arange(90, dtype=torch.float64) * (2 * np.pi / 90)
    ways = torch.stack([angles.cos(), angles.sin()], -1)
    points = w[:, None, None] + alpha[:, None, None] * ways * w.norm(dim=-1)[:, None, None, None]
    shared = Problem(
        problem.x[:, None, None], problem.y[:, None, None], problem.epsilon[:, None, None]
    )
    found: NDArray[np.float64] = adversarial_loss(shared, points).mean(-1).numpy()
    return found


def sharpness_rows(problem: Problem, w: Tensor, losses: NDArray[np.float64]) -> list[list[float]]:
    """The numbers of ``COLUMNS`` for every radius."""
    top = torch.linalg.eigvalsh(hessian(problem, w))[:, -1]
    base = losses[:, losses.shape[1] // 2]
    rise = (losses[:, 0] + losses[:, -1]) / 2 - base
    columns = (top.numpy(), rise, w.norm(dim=-1).numpy(), base)
    return [[float(column[k]) for column in columns] for k in range(len(w))]


FLOOR = -5.0  # eigenvalues below 10 to this power are drawn there


def spectrum_figure(problem: Problem, w: Tensor, fractions: Sequence[float]) -> HTML:
    """All eigenvalues of the Hessian for every radius, with the attack following and frozen.

    Args:
        problem: One task, attacked with F radii.
        w: Weights trained against each, shape (F, D).
        fractions: The radii as shares of the critical one.

    Returns:
        An interactive figure.

    Taught in: book/robustness/sharpness-adversarial-training
    """
    frames = {}
    for name, frozen in (("attack follows", False), ("attack frozen", True)):
        values = torch.linalg.eigvalsh(hessian(problem, w, frozen=frozen)).flip(-1)
        frames[name] = values.clamp_min(10**FLOOR).log10().numpy()
    lift = (samples(problem, w).lift.mean(-1)).clamp_min(10**FLOOR).log10().numpy()
    middle = w.shape[-1] // 2
    at = len(fractions) // 2
    return step_explorer(
        range(1, w.shape[-1] + 1),
        frames,
        [f"{share:.1f}" for share in fractions],
        {
            "top eigenvalue": frames["attack follows"][:, 0],
            "mean lift": lift,
        },
        x_label="rank of the eigenvalue",
        y_label="eigenvalue, as a power of ten",
        step_label="radius / critical radius",
        start=at,
        alt=(
            f"Eigenvalues by rank. Without attack the one at rank {middle} is 10 to the power "
            f"{frames['attack follows'][0, middle - 1]:.1f}. At {fractions[at]:.1f} of the "
            f"critical radius it is {frames['attack follows'][at, middle - 1]:.1f} if the attack "
            f"follows, {frames['attack frozen'][at, middle - 1]:.1f} if it is frozen."
        ),
        caption=(
            "All eigenvalues of the Hessian at the trained weights, in powers of ten (smaller "
            f"ones are drawn at {FLOOR:.0f}). Where the attack follows the weights, the whole "
            "tail is lifted to the mean of s ε / |w|, the mean lift."
        ),
    )


# Figures of stored results

PER_TASK = {"linewidth": 0.6, "alpha": 0.5}


def table_of(result: Result, optimum: str, quantity: str) -> NDArray[np.float64]:
    """A quantity over tasks and radii, shape (S, F)."""
    series = result.series["optima"]
    first, second = (
        series.axes[axis].index(tick)
        for axis, tick in (("optimum", optimum), ("quantity", quantity))
    )
    return np.asarray(series.values)[:, first, second]


def optima_figure(result: Result) -> HTML:
    """Top eigenvalue and trace against the radius, at three choices of the weights.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure.

    Raises:
        KeyError: If logistic regression was not measured.
    """
    fractions = result.series["optima"].axes["fraction"]
    level = f"{result.config['level']:g} nats" if "level" in result.config else "the same"
    told = []
    with style():
        fig, pair = plt.subplots(1, 2, figsize=(6.4, 3.0), sharex=True)
        for ax, quantity in zip(pair, ("top eigenvalue", "trace"), strict=True):
            for optimum, look in zip(result.series["optima"].axes["optimum"], LOOKS, strict=False):
                values, shown = table_of(result, optimum, quantity), fractions
                if optimum == "equal loss":
                    values, shown = met(result, values, fractions)
                log_interval(ax, shown, values, optimum, look)
                means = np.exp(np.log(values).mean(0))
                told.append(f"{quantity}, {optimum}: {means[0]:.3g} to {means[-1]:.3g}")
            ax.set(yscale="log", ylabel=quantity, xlabel="radius / critical radius")
        pair[0].legend()
    return static_figure(
        fig,
        alt=f"Sharpness against the radius. {'; '.join(told)}.",
        caption=(
            "Sharpness at the weights that training finds: after equal steps, at the minimum with "
            f"weight decay, and where the loss first is {level} (as far as every task gets "
            f"there). Logarithmic scale, geometric means. {tasks(result)}"
        ),
    )


def met(
    result: Result, values: NDArray[np.float64], fractions: Sequence[float]
) -> tuple[NDArray[np.float64], list[float]]:
    """The radii up to which every task has reached the level of the loss, within a hundredth."""
    losses = table_of(result, "equal loss", "loss")
    level = losses[:, :1]
    reached = (np.abs(losses / level - 1) < 0.01).all(0)
    count = int(np.argmin(reached)) if not reached.all() else len(fractions)
    return values[:, :count], list(fractions[:count])


def log_interval(
    ax: Axes,
    ticks: Sequence[float],
    values: NDArray[np.float64],
    label: str,
    look: tuple[str, str, str],
) -> None:
    """A geometric mean with its interval, which is computed on the logarithms."""
    colour, dashes, marker = look
    found = [t_interval(list(column)) for column in np.log(values).T]
    means = np.exp([interval.mean for interval in found])
    ax.plot(ticks, means, color=colour, linestyle=dashes, marker=marker, markersize=4, label=label)
    if len(values) > 1:
        low, high = (np.exp([getattr(i, end) for i in found]) for end in ("low", "high"))
        ax.fill_between(ticks, low, high, color=colour, alpha=0.15, linewidth=0)


def tasks(result: Result) -> str:
    """The sentence about the repetitions."""
    return averaged(len(result.seeds), repeated="task")


def relative_figure(result: Result) -> HTML:
    """The rise along filter-normalised directions, as it is and relative to the loss.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure.
    """
    fractions = result.series["optima"].axes["fraction"]
    told = []
    with style():
        fig, pair = plt.subplots(1, 2, figsize=(6.4, 3.0), sharex=True)
        for ax, quantity in zip(pair, ("rise", "rise over loss"), strict=True):
            values = table_of(result, "equal steps", quantity)
            for row in values:
                ax.plot(fractions, row, color=LOOKS[1][0], **PER_TASK)
            mean_with_interval(ax, fractions, list(values), "", LOOKS[1])
            at = int(values.mean(0).argmax())
            told.append(
                f"{quantity}: {values.mean(0)[0]:.2g} without attack, largest at a share of "
                f"{fractions[at]:g}, {values.mean(0)[-1]:.2g} at the end"
            )
            ax.set(xlabel="radius / critical radius", ylim=(0, None))
        pair[0].set_ylabel("rise of the loss (nats)")
        pair[1].set_ylabel("rise / loss")
    return static_figure(
        fig,
        alt=f"Rise of the loss along random filter-normalised directions. {'; '.join(told)}.",
        caption=(
            "Left: mean rise of the loss one length of w away, in random directions, the attack "
            f"made anew there. Right: the same over the loss itself. Thin: tasks. {tasks(result)}"
        ),
    )


def noise_figure(result: Result) -> HTML:
    """Top eigenvalue after training with noise of three kinds.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure.
    """
    series = result.series["noises"]
    names = {"adversarial": "towards the line", "random": "random", "helpful": "away from it"}
    fractions, values = series.axes["fraction"], np.asarray(series.values)
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.0))
        for k, noise in enumerate(series.axes["noise"]):
            log_interval(ax, fractions, values[:, k], names[noise], LOOKS[k])
            told.append(f"{names[noise]} {np.exp(np.log(values[:, k, -1]).mean()):.2g}")
        ax.set(yscale="log", xlabel="length of the noise / critical radius")
        ax.set_ylabel("top eigenvalue")
        ax.legend(title="noise")
    clean = np.exp(np.log(values[:, 0, 0]).mean())
    return static_figure(
        fig,
        alt=f"Top eigenvalue: {clean:.2g} without noise; at the largest length {', '.join(told)}.",
        caption=(
            "Top eigenvalue after training with noise of one length and three directions; the "
            f"noise is held while the Hessian is taken. Geometric means. {tasks(result)}"
        ),
    )


def secant_figure(result: Result) -> HTML:
    """Largest secant of the gradient against the distance, for three losses.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure.
    """
    series = result.series["secants"]
    distances, values = series.axes["h"], np.asarray(series.values)
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.0))
        for k, loss in enumerate(series.axes["loss"]):
            log_interval(ax, distances, values[:, k], loss, LOOKS[k])
            told.append(f"{loss} {values[:, k, 0].mean():.2g} to {values[:, k, -1].mean():.2g}")
        ax.set(xscale="log", yscale="log", xlabel="h", ylabel="change of gradient / length")
        ax.invert_xaxis()
        ax.legend()
    return static_figure(
        fig,
        alt=f"Secants from the longest to the shortest distance: {'; '.join(told)}.",
        caption=(
            "How fast the gradient changes across the place where one weight is zero, over a "
            "length of 2h: the largest value over all weights. Both scales logarithmic. "
            f"{tasks(result)}"
        ),
    )


def descent_figure(result: Result) -> HTML:
    """Length of the gradient, and the gap in loss, while training runs.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure.
    """
    series = result.series["descents"]
    ticks, values = series.axes["share of steps"], np.asarray(series.values)
    shown: Mapping[str, str] = {
        "L2": "L2",
        "L-infinity": "L-infinity",
        "L-infinity, decaying": "L-inf., decaying steps",
        "Entropy-SGD": "L-inf., Entropy-SGD",
    }
    told = []
    with style():
        fig, pair = plt.subplots(1, 2, figsize=(6.4, 3.4), sharex=True)
        for look, (run, words) in zip(LOOKS, shown.items(), strict=True):
            place = series.axes["run"].index(run)
            for ax, q in zip(pair, (0, 1), strict=True):
                if run == "L2" and q:
                    continue
                means = values[:, place, q].mean(0)
                ax.plot(
                    ticks, np.maximum(means, 1e-17), color=look[0], linestyle=look[1], label=words
                )
            told.append(f"{words} {values[:, place, 0, -1].mean():.2g}")
        pair[0].set(ylabel="length of the gradient")
        pair[1].set(ylabel="loss above the lowest (nats)")
        for ax in pair:
            ax.set(yscale="log", xlabel="share of all steps")
        fig.legend(*pair[0].get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return static_figure(
        fig,
        alt=f"Length of the gradient at the end: {'; '.join(told)}.",
        caption=(
            "Gradient descent with weight decay on the same tasks. Left: length of the gradient "
            "(of Entropy-SGD: of the local entropy's). Right: loss above the lowest that was "
            f"found. Means over {len(result.seeds)} tasks."
        ),
    )


def network_figure(result: Result) -> HTML:
    """Sharpness and accuracy of networks against the radius that they were trained against.

    Args:
        result: A study or a full-scale run with networks.

    Returns:
        A figure.
    """
    series = result.series["network"]
    radii, values = series.axes["radius"], np.asarray(series.values)
    panels: Mapping[str, Sequence[tuple[str, str]]] = {
        "top eigenvalue": (("top eigenvalue", ""),),
        "rise (nats)": (("rise", "attack anew"), ("rise, attack frozen", "frozen")),
        "accuracy": (("accuracy", "clean"), ("robust accuracy", "attacked")),
    }
    told = []
    with style():
        fig, three = plt.subplots(1, 3, figsize=(6.4, 2.7))
        for ax, (title, curves) in zip(three, panels.items(), strict=True):
            for (quantity, words), look in zip(curves, (LOOKS[1], LOOKS[0]), strict=False):
                rows = values[:, series.axes["quantity"].index(quantity)]
                mean_with_interval(ax, radii, list(rows), words, look)
                said = ", ".join(f"{mean:.2g}" for mean in rows.mean(0))
                told.append(f"{quantity}: {said}")
            share = title == "accuracy"
            ax.set(
                title=title, xlabel="radius", ylim=(0, 1.05 if share else 1.3 * ax.get_ylim()[1])
            )
            if len(curves) > 1:
                ax.legend(fontsize=8, loc="lower left" if share else "upper right")
    return static_figure(
        fig,
        alt=f"Networks by the radius of their training. {'; '.join(told)}.",
        caption=(
            "Networks trained against an L2 attack, measured under the same attack. "
            f"{averaged(len(result.seeds), repeated='network')}"
        ),
    )


def drawn(result: Result | None, figure: Any) -> HTML | None:
    """A figure of a result, or nothing where there is no result or it was not measured."""
    if result is None:
        return None
    try:
        return figure(result)
    except KeyError:
        return None

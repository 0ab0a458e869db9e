"""Figures of the lesson on adversarial examples."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import HTML
from scipy.stats import beta
from torch import Tensor

from lmc_lessons.models import Params
from lmc_lessons.results import Result
from lmc_lessons.robustness.attacks import Predict, loss_gradient, margin_loss
from lmc_lessons.teaching.figures import GREY, LOOKS, averaged, mean_with_interval, style
from lmc_lessons.teaching.interactive import figure_html, static_figure
from lmc_lessons.teaching.interactive.markup import encoded, source
from lmc_lessons.training import generator

ASIDE = 42  # the random stream of the direction that the attack is compared with
SHOWN = {
    "untrained": "untrained",
    "trained": "trained",
    "adversarial": "adversarially trained",
    "random data": "random data and labels",
}
VICTIM_NAMES = {
    "trained": "trained",
    "adversarial": "adversarially trained",
    "scaled": "logits times a thousand",
    "staircase": "staircase at the input",
}


def layers_of(params: Params) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of an ``MLP`` without normalisation, from input to output.

    Args:
        params: Parameters by name.

    Returns:
        One pair per layer.
    """
    hidden = sum(name.startswith("hidden.") and name.endswith("weight") for name in params)
    names = [*(f"hidden.{k}" for k in range(hidden)), "output"]
    return [(params[f"{name}.weight"], params[f"{name}.bias"]) for name in names]


def attack_figure(
    predict: Predict,
    params: Params,
    x: Tensor,
    y: Tensor,
    class_names: Sequence[str],
    *,
    reach: float = 0.15,
    start: float = 0.05,
) -> HTML:
    """Push images along the gradient's signs, and along random signs, by the same amount.

    Args:
        predict: Maps inputs to logits.
        params: The same network's parameters: an ``MLP`` without normalisation.
        x: A few images in [0, 1], shape (N, 1, H, W); rounded to 255 levels.
        y: Their labels.
        class_names: One per class.
        reach: The largest step, in units of the pixel range.
        start: The step shown first.

    Returns:
        An interactive figure whose network runs in the page.

    Taught in: book/robustness/adversarial-examples
    """
    gradient, _, _ = loss_gradient(predict, x, y, margin_loss)
    drawn = torch.randn(x.shape, generator=generator(0, ASIDE))
    steps = [gradient.sign(), drawn.sign()]
    with torch.no_grad():
        after = [
            predict((x + start * step).clamp(0, 1)).softmax(-1).gather(-1, y[:, None])[:, 0]
            for step in steps
        ]
    flat = [
        np.concatenate([w.detach().T.flatten().numpy(), b.detach().numpy()])
        for w, b in layers_of(params)
    ]
    payload = {
        "layers": [list(w.T.shape) for w, _ in layers_of(params)],
        "half": True,
        "network": encoded(np.concatenate(flat).astype("float16")),
        "images": encoded(np.rint(x.numpy() * 255).astype(np.uint8)),
        "scale": 255,
        "directions": [encoded(step.numpy().astype(np.int8)) for step in steps],
        "labels": encoded(y.numpy().astype(np.uint8)),
        "width": x.shape[-1],
        "height": x.shape[-2],
        "classNames": list(class_names),
        "names": ["along the gradient", "random signs"],
        "xLabel": "change of every pixel",
        "reach": reach,
        "start": start,
    }
    told = ", ".join(
        f"{name} {float(p[0]):.0%}"
        for name, p in zip(("along the gradient", "along random signs"), after, strict=True)
    )
    return figure_html(
        "attack",
        payload,
        alt=(
            f"Probability of the true class as every pixel of an image changes. After {start:g}: "
            f"{told}."
        ),
        caption=(
            "Two ways to change every pixel by the same amount. One follows the signs of the "
            "gradient, the other random signs. Move the slider; the network runs in this page."
        ),
        fallback=f"After a change of {start:g} the true class of the first image has: {told}.",
        script=f"{source('network.js')}\n{source('attack.js')}",
    )


def error_figure(result: Result, attack: str = "FGSM") -> HTML:
    """Error against the radius on logarithmic axes, a curve per network, with a line of slope 1.

    Args:
        result: A study or a full-scale run.
        attack: Which one-step attack.

    Returns:
        A figure.

    Taught in: book/robustness/adversarial-examples
    """
    series = result.series["error"]
    radii, at = series.axes["radius"], series.axes["attack"].index(attack)
    values = np.asarray(series.values)[:, :, at]
    names = [name for name in SHOWN if name in series.axes["network"]]
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.6))
        told = []
        for name, look in zip(names, LOOKS, strict=False):
            curves = values[:, series.axes["network"].index(name)]
            shown = np.where(curves > 0, curves, np.nan)
            for curve in shown:
                ax.plot(radii, curve, color=look[0], linewidth=0.6, alpha=0.5)
            ax.plot(
                radii,
                np.exp(np.log(np.where(curves.min(0) > 0, curves, np.nan)).mean(0)),
                color=look[0],
                linestyle=look[1],
                marker=look[2],
                markersize=4,
                label=SHOWN[name],
            )
            title = f"{name.replace(' ', '_')}_{attack}_exponent"
            if title in result.metrics:
                told.append(f"{SHOWN[name]} {result.interval(title).mean:.2f}")
        middle = np.exp(np.log(radii).mean())
        ends = np.asarray([radii[0], radii[-3]])
        ax.plot(ends, 0.02 * ends / middle, color=GREY, linewidth=1.2)
        ax.annotate(
            "slope 1",
            (ends[1], 0.02 * ends[1] / middle),
            xytext=(4, -12),
            textcoords="offset points",
            color=GREY,
        )
        ax.set(xscale="log", yscale="log", ylim=(2e-4, 1.2))
        ax.set(xlabel=r"radius $\epsilon$ (pixel range 1)", ylabel="share lost")
        ax.legend(fontsize=9)
    return static_figure(
        fig,
        alt=(
            f"Share of samples lost to {attack} against the radius, both axes logarithmic. Fitted "
            f"exponents: {'; '.join(told) or 'none'}."
        ),
        caption=(
            f"Share of correctly read samples lost to {attack}, without the box. Thin lines: "
            f"single seeds; thick: geometric mean over {len(result.seeds)} seeds, where every "
            "seed has lost some."
        ),
    )


def local_slopes(result: Result, network: str, attack: str = "FGSM") -> list[tuple[float, float]]:
    """The exponent between neighbouring radii, beside the error there.

    Args:
        result: A study or a full-scale run.
        network: Which network.
        attack: Which one-step attack.

    Returns:
        Pairs of the geometric mean of two neighbouring errors and the slope between them, where the
        mean error over seeds is positive.
    """
    series = result.series["error"]
    row, at = series.axes["network"].index(network), series.axes["attack"].index(attack)
    errors = np.asarray(series.values)[:, row, at].mean(0)
    radii = np.asarray(series.axes["radius"])[errors > 0]
    errors = errors[errors > 0]
    slopes = np.diff(np.log(errors)) / np.diff(np.log(radii))
    return list(zip(np.sqrt(errors[1:] * errors[:-1]).tolist(), slopes.tolist(), strict=True))


def slopes_figure(result: Result, attack: str = "FGSM", *, least: float = 1e-3) -> HTML:
    """The exponent between neighbouring radii against the error, a curve per network.

    Args:
        result: A study or a full-scale run.
        attack: Which one-step attack.
        least: Smaller errors are left out: too few samples.

    Returns:
        A figure.

    Taught in: book/robustness/adversarial-examples
    """
    names = [name for name in SHOWN if name in result.series["error"].axes["network"]]
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        told = []
        for name, (colour, dashes, marker) in zip(names, LOOKS, strict=False):
            points = [(e, s) for e, s in local_slopes(result, name, attack) if e > least]
            ax.plot(
                *zip(*points, strict=True),
                color=colour,
                linestyle=dashes,
                marker=marker,
                markersize=4,
                label=SHOWN[name],
            )
            top = max(slope for _, slope in points)
            told.append(f"{SHOWN[name]} starts at {points[0][1]:.2f} and reaches {top:.2f}")
        ax.axhline(1, color=GREY, linewidth=1)
        ax.set(xscale="log", xlabel="share lost", ylabel="exponent here", ylim=(0, 2))
        ax.legend(fontsize=9)
    return static_figure(
        fig,
        alt=f"Exponent between neighbouring radii against the error: {'; '.join(told)}.",
        caption=(
            f"Exponent of the error under {attack} between neighbouring radii, from errors "
            f"averaged over {len(result.seeds)} seeds, against the error itself. The line is "
            "slope 1."
        ),
    )


def sweep_figure(result: Result) -> HTML:
    """Accuracy under PGD against the radius, for the four networks of the evaluation.

    Args:
        result: A study or a full-scale run.

    Returns:
        A figure.

    Taught in: book/robustness/adversarial-examples
    """
    series = result.series["sweep"]
    last = np.asarray(series.values)[:, :, -1].mean(0)
    told = ", ".join(
        f"{VICTIM_NAMES[name]} {share:.0%}"
        for name, share in zip(series.axes["network"], last, strict=True)
    )
    radii = series.axes["radius"]
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.4))
        for k, (name, look) in enumerate(zip(series.axes["network"], LOOKS, strict=False)):
            curves = [seed[k] for seed in series.values]
            mean_with_interval(ax, radii, curves, VICTIM_NAMES[name], look)
        ax.set(xscale="log", ylim=(0, 1.02), ylabel="read under PGD")
        ax.set_xticks(radii, [f"{radius:g}" for radius in radii])
        ax.minorticks_off()
        ax.set_xlabel(r"radius $\epsilon$ (pixel range 1)")
        ax.legend(fontsize=9, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return static_figure(
        fig,
        alt=f"Accuracy under PGD against the radius. With the whole box allowed: {told}.",
        caption=(
            "Accuracy under PGD as the radius grows to the whole box, where every image can be "
            f"turned into any other. {averaged(len(result.seeds), repeated='seed')}"
        ),
    )


def exact_slope(classes: int, place: int, *, low: float = 0.002, high: float = 0.05) -> float:
    """What ``cdf_slope`` gives for the gaps of endless independent uniform logits.

    Args:
        classes: Number of logits.
        place: Which gap, from 2.
        low: The smaller quantile's level.
        high: The larger quantile's level.

    Returns:
        Slope of least squares over evenly spaced levels.
    """
    levels = np.linspace(low, high, 1000)
    at = beta(place - 1, classes + 2 - place).ppf(levels)
    return float(np.polyfit(np.log(at), np.log(levels), 1)[0])

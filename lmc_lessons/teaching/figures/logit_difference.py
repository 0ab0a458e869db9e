"""Figures of the lesson on logit differences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML
from numpy.typing import NDArray

from lmc_lessons.experiments.logit_difference import ALPHA, GROUPS, MAIN, QUANTITIES
from lmc_lessons.results import Result, entry
from lmc_lessons.teaching.figures import BLUE, GREEN, GREY, LOOKS, ORANGE, PINK, averaged, style
from lmc_lessons.teaching.figures import mean_with_interval as curve
from lmc_lessons.teaching.interactive import static_figure, step_explorer
from lmc_lessons.teaching.tables import plain_table
from lmc_lessons.unlearning.facts import LETTERS, TOKENS, divide, invent

SWEPT = ("forget", "shown paraphrases", "new paraphrases", "uncovered")
TOLD = {  # lines of the first figure
    "to forget, known (%)": "forget",
    "to keep, known (%)": "uncovered",
    "shown wordings, known (%)": "shown paraphrases",
    "to keep, covered, known (%)": "covered",
}
STYLES = {
    "GA": (GREY, ":", "x"),
    "GA+GD": (ORANGE, "--", "o"),
    "GA+GD slow": (PINK, "-.", "D"),
    "GA+5GD slow": (GREY, "--", "v"),
    "NPO+GD slow": (GREEN, ":", "^"),
    MAIN: (BLUE, "-", "s"),
    "no uniform term": (BLUE, ":", "x"),
}


def _values(result: Result, name: str, quantity: str) -> NDArray[Any]:
    """A series at one quantity, shape (seeds, ..., groups)."""
    return np.asarray(result.series[name].values)[..., QUANTITIES.index(quantity)]


def dial(result: Result, seed: int = 0) -> HTML:
    """Next letters of two facts while more and more is subtracted, and how much is still known.

    Args:
        result: A study.
        seed: Which of its seeds has the two facts, by index.

    Returns:
        A figure with a slider over alpha.

    Taught in: book/unlearning/logit-difference
    """
    series = result.series["letters"]
    alphas, config = series.axes["alpha"], result.config
    told = np.asarray(series.values[seed])  # (facts, alphas, tokens)
    first = TOKENS.index(LETTERS[0])
    number = result.seeds[seed]
    split = divide(invent(config["facts"], number), config["forget"], config["covered"], number)
    names = [f"{part.names[0]}>{part.answers[0]}" for part in (split.forget, split.uncovered)]
    frames = {"to forget": told[0][:, first:], "to keep": told[1][:, first:]}
    place = alphas.index(ALPHA)
    known = (
        100
        * _values(result, "assistants", "accuracy").mean(0)[
            result.series["assistants"].axes["assistant"].index(MAIN)
        ]
    )
    curves = {title: known[:, GROUPS.index(group)] for title, group in TOLD.items()}
    heard = ", ".join(f"{t} {v[0]:.0f} and {v[place]:.0f}" for t, v in curves.items())
    return step_explorer(
        np.arange(len(LETTERS)),
        frames,
        [f"alpha {alpha:g}" for alpha in alphas],
        curves,
        alt="Probabilities of the first letter of two answers, and letters known in per cent by "
        f"alpha. Known at alpha 0 and at {ALPHA}: {heard}.",
        caption=f"Bars: probability of each letter right after the mark, for a fact to forget "
        f"({names[0]}) and one to keep that is in no set ({names[1]}). Lines: letters known of all "
        f"such facts, of those to forget in other wordings that the assistant was shown, and of "
        f"those of the retain set. Mean over {len(result.seeds)} seeds.",
        x_label="next letter",
        y_label="probability",
        step_label="how much of the assistant is subtracted",
        step_values_label="alpha",
        unit="%",
        x_ticks=list(LETTERS),
        bars=True,
    )


def by_alpha(result: Result, assistant: str = MAIN, groups: Sequence[str] = SWEPT) -> HTML:
    """Accuracy on groups of facts by alpha, without a filter.

    Args:
        result: A study or a larger run.
        assistant: Which assistant.
        groups: One to four groups.

    Returns:
        A figure.

    Taught in: book/unlearning/logit-difference
    """
    series = result.series["assistants"]
    alphas = series.axes["alpha"]
    row = series.axes["assistant"].index(assistant)
    values = _values(result, "assistants", "accuracy")[:, row]  # (seeds, alphas, groups)
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.2))
        for group, look in zip(groups, LOOKS, strict=False):
            own = 100 * values[..., GROUPS.index(group)]
            curve(ax, alphas, own.tolist(), group, look)
            told.append(f"{group} {own[:, alphas.index(ALPHA)].mean():.0f}")
        ax.axvline(ALPHA, color=GREY, linewidth=1)
        ax.set(xlabel=r"$\alpha$", ylabel="letters known (%)", ylim=(-3, 103))
        ax.legend()
    return static_figure(
        fig,
        alt=f"Accuracy by alpha. At alpha {ALPHA}, in per cent: {', '.join(told)}.",
        caption=f"Assistant: {assistant}. Grey line: the alpha of the claims. "
        f"{averaged(len(result.seeds), repeated='seed')}",
    )


def trade(result: Result, methods: Sequence[str], assistants: Sequence[str] = (MAIN,)) -> HTML:
    """What is still known of the facts to keep, against what is still known of those to forget.

    Args:
        result: A study or a larger run.
        methods: Methods that change the target; those that were not run are left out.
        assistants: Assistants that are subtracted, likewise.

    Returns:
        A figure: methods walk from the right to the left, by steps, or by alpha.

    Taught in: book/unlearning/logit-difference
    """
    places = [GROUPS.index(group) for group in ("forget", "uncovered")]
    changes = result.series["changes"]
    walks = {
        name: _values(result, "changes", "accuracy")[:, k].mean(0)[:, places]
        for k, name in enumerate(changes.axes["method"])
        if name in methods
    }
    walks |= {
        name: _values(result, "assistants", "accuracy")[:, row].mean(0)[:, places]
        for row, name in enumerate(result.series["assistants"].axes["assistant"])
        if name in assistants
    }
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 4))
        for name, walk in walks.items():
            colour, dashes, marker = STYLES[name]
            x, y = 100 * walk.T
            ax.plot(x, y, color=colour, linestyle=dashes, marker=marker, markersize=5, label=name)
            told.append(f"{name} {y[-1]:.0f}")
        ax.set(
            xlabel="known of what is to be forgotten (%)", ylabel="known of what is in no set (%)"
        )
        ax.set(xlim=(103, -3), ylim=(-3, 103))
        ax.legend()
    return static_figure(
        fig,
        alt="What is kept against what is forgotten. At the end, known of facts in no set, in per "
        f"cent: {', '.join(told)}.",
        caption=f"Each method walks from the upper left to the right: by steps, "
        f"{' and '.join(name for name in assistants if name in walks)} by alpha. "
        f"The upper right corner is the goal. Mean over {len(result.seeds)} seeds.",
    )


def losses(result: Result, methods: Sequence[str]) -> HTML:
    """Loss on the answers to forget by step of training.

    Args:
        result: A study or a larger run.
        methods: Up to three methods that change the target; those not run are left out.

    Returns:
        A figure.

    Taught in: book/unlearning/logit-difference
    """
    changes, where = result.series["changes"], GROUPS.index("forget")
    steps = changes.axes["step"]
    rows = {
        name: _values(result, "changes", "loss")[:, k, :, where]
        for k, name in enumerate(changes.axes["method"])
        if name in methods
    }
    rows[MAIN] = _values(result, "growth", "loss")[..., where]
    never = float(np.mean(entry("networks", "retrained", "forget", "loss")(result)))
    told = []
    with style():
        fig, ax = plt.subplots(figsize=(6.4, 3.4))
        for name, values in rows.items():
            moved = np.abs(np.diff(values, axis=1)).max(0) > 0
            last = int(np.flatnonzero(moved).max()) + 2 if moved.any() else len(steps)
            curve(ax, steps[:last], values[:, :last].tolist(), name, STYLES[name])
            told.append(f"{name} {values[:, -1].mean():.1f}")
        ax.axhline(never, color=GREY, linewidth=1, linestyle=":")
        ax.set(xlabel="step", ylabel="loss on answers to forget (nats)", ylim=(0, None))
        ax.legend()
    return static_figure(
        fig,
        alt=f"Loss on answers to forget by step. At the end, in nats: {', '.join(told)}; of a "
        f"network that never saw them {never:.1f}.",
        caption=f"{MAIN}: steps of the assistant, alpha {ALPHA}. Dotted: a network that never saw "
        f"these facts. {averaged(len(result.seeds), repeated='seed')}",
    )


def assistants_table(result: Result, alpha: float = ALPHA) -> HTML:
    """What every assistant leaves of each group, means over seeds.

    Args:
        result: A study or a larger run.
        alpha: How much is subtracted.

    Returns:
        A table.

    Taught in: book/unlearning/logit-difference
    """
    groups = ("forget", "shown paraphrases", "new paraphrases", "uncovered")
    rows = []
    for name in result.series["assistants"].axes["assistant"]:
        found = [np.mean(entry("assistants", name, alpha, g, "accuracy")(result)) for g in groups]
        stops = np.mean(entry("assistants", name, alpha, "forget", "full stop")(result))
        first, *rest = (np.mean(entry("critical", name, k)(result)) for k in (1, 2, 3))
        cells = [f"{100 * value:.0f}" for value in (*found, stops)]
        rows.append([name, *cells, f"{first:.2f}", f"{np.mean(rest):.2f}"])
    titles = ["assistant", "forget", "shown par.", "new par.", "uncovered", "full stops"]
    return plain_table([*titles, "α*, letter 1", "α*, letters 2, 3"], rows)

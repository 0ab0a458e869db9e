"""Unlearning by logit difference: what is forgotten, and what is lost with it?

The unit of repetition is a seed: it decides the facts, which of them are to be forgotten and which
are covered by the retain set, the initial values, the order of texts and the wrong answers. Every
method starts from the same trained target.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lmc_lessons.datasets import Dataset
from lmc_lessons.experiments.runs import Stages, finish, one_thread, train_stages
from lmc_lessons.models import (
    ModelConfig,
    Params,
    build,
    predict,
    predict_stacked,
    state,
    unstack,
)
from lmc_lessons.results import Claim, Effect, Result, Series, entry, gap
from lmc_lessons.training import Loss, TrainConfig, train
from lmc_lessons.unlearning.facts import (
    ANSWER,
    LENGTH,
    TOKENS,
    Split,
    answer_places,
    divide,
    encode,
    invent,
    text_data,
    text_places,
    texts,
    wrong_answers,
)
from lmc_lessons.unlearning.gradient_ascent import GradientAscent, NegativePreference
from lmc_lessons.unlearning.logit_difference import (
    AssistantLoss,
    Prompts,
    assistant_of,
    bound_of_uniform,
    critical_alpha,
    forward_cost,
    next_token_loss,
    score_answers,
    subtract,
)

LESSON = "logit-difference"
ORIGINAL, SHOWN, NEW = (0,), (1, 2), (3, 4)  # templates: the original, and two kinds of others
EVERY = (*ORIGINAL, *SHOWN, *NEW)
GROUPS = ("forget", "shown paraphrases", "new paraphrases", "covered", "uncovered")
QUANTITIES = ("accuracy", "loss", "first five", "least likely", "full stop")
FORGOTTEN = 0.1  # answers count as forgotten from this accuracy on
KEPT = 0.98  # and as kept down to this one
ALPHA = 1.5  # at which claims are decided; 0.5, 1 and 2 are named by some as well
CAP = ("wrong answers: lead", "wrong answers: closed form")


class Assistant(NamedTuple):
    """What an assistant is trained on, and how large it is.

    Attributes:
        paraphrases: Whether the forget set has the shown paraphrases as well.
        wrong: Whether the retain set has wrong answers to what is to be forgotten.
        uniform: Whether there is a uniform term at all.
        prompts: What is done with other tokens of texts to forget.
        all_blocks: Whether it has as many blocks as the target.
    """

    paraphrases: bool = True
    wrong: bool = True
    uniform: bool = True
    prompts: Prompts = "uniform"
    all_blocks: bool = False


class Change(NamedTuple):
    """A method that changes the target's own weights.

    Attributes:
        retain: Weight of the retain set.
        rate: Learning rate, as a multiple of the recipe's.
        longer: Steps, as a multiple of the recipe's.
        preference: NPO instead of gradient ascent.
    """

    retain: float
    rate: float = 1.0
    longer: float = 1.0
    preference: bool = False


MAIN = "ULD"
ASSISTANTS: dict[str, Assistant] = {
    MAIN: Assistant(),
    "no paraphrases": Assistant(paraphrases=False),
    "no wrong answers": Assistant(wrong=False),
    "neither": Assistant(paraphrases=False, wrong=False),
    "no uniform term": Assistant(uniform=False),
    "prompts remembered": Assistant(prompts="remembered"),
    "all blocks": Assistant(all_blocks=True),
}
CHANGES: dict[str, Change] = {
    "GA": Change(0.0, longer=0.3),
    "GA+GD": Change(1.0),
    "GA+GD slow": Change(1.0, rate=0.1, longer=2.0),
    "GA+5GD slow": Change(5.0, rate=0.1, longer=2.0),
    "NPO+GD slow": Change(1.0, rate=0.1, longer=2.0, preference=True),
}


@dataclass(frozen=True)
class Config:
    """What to run.

    Attributes:
        preset: Name of the preset.
        seeds: Each with facts and a target of its own.
        facts: Facts that the target learns.
        forget: Facts to be forgotten.
        covered: Facts of the retain set.
        wrong: Wrong answers per prompt to be forgotten.
        model: Architecture of the target.
        train: How the target is trained.
        blocks: Blocks of the assistant.
        beta: Weight of its uniform term.
        assistant: How it is trained; an epoch is a step on all its texts.
        ascent: How the target is changed by the other methods; likewise.
        assistants: Names from ``ASSISTANTS``; ``ULD`` among them.
        changes: Names from ``CHANGES``.
        alphas: How much is subtracted; 0 and ``ALPHA`` among them.
        share: Number r of the filter.
        steps: Steps of all methods after which they are measured; those beyond the last are left
            out.
    """

    preset: str = "study"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    facts: int = 80
    forget: int = 8
    covered: int = 16
    wrong: int = 2
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig("transformer", (LENGTH,), len(TOKENS), 64, 3)
    )
    train: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=50,
            batch_size=64,
            optimizer="adamw",
            learning_rate=3e-3,
            weight_decay=0.01,
            schedule="one-cycle",
        )
    )
    blocks: int = 1
    beta: float = 1.0
    assistant: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=200,
            batch_size=100_000,
            optimizer="adamw",
            learning_rate=3e-3,
            weight_decay=0.01,
            warmup_epochs=20,
        )
    )
    ascent: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            epochs=100, batch_size=100_000, optimizer="adamw", weight_decay=0.01
        )
    )
    assistants: tuple[str, ...] = tuple(ASSISTANTS)
    changes: tuple[str, ...] = tuple(CHANGES)
    alphas: tuple[float, ...] = tuple(k / 8 for k in range(17))
    share: float = 0.01
    steps: tuple[int, ...] = (0, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 150, 200)

    def __post_init__(self) -> None:
        """Refuse settings that cannot be run, naming what is allowed."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different integers >= 0, got {self.seeds}")
        for names, known, needed in (
            (self.assistants, ASSISTANTS, (MAIN,)),
            (self.changes, CHANGES, ()),
        ):
            if unknown := [name for name in names if name not in known]:
                raise ValueError(f"no method {unknown[0]!r}, allowed: {', '.join(known)}")
            if len(set(names)) != len(names) or not set(needed) <= set(names):
                raise ValueError(f"methods must be different, {MAIN} among them, got {names}")
        increasing = list(self.alphas) == sorted({*self.alphas})
        if not increasing or ALPHA not in self.alphas or self.alphas[0] != 0:
            raise ValueError(
                f"alphas must increase from 0, with {ALPHA} among them, got {self.alphas}"
            )
        if self.model.architecture != "transformer" or self.model.input_shape[0] < LENGTH:
            raise ValueError(
                f"model must be a transformer for texts of {LENGTH} tokens or more, got "
                f"{self.model.architecture!r} for {self.model.input_shape}"
            )
        if self.model.classes != len(TOKENS):
            raise ValueError(f"model.classes must be {len(TOKENS)}, got {self.model.classes}")
        if min(self.train.epochs, self.assistant.epochs, self.ascent.epochs) < 1:
            raise ValueError("epochs of every training must be at least 1")
        if not self.steps or list(self.steps) != sorted({*self.steps}) or self.steps[0] < 0:
            raise ValueError(f"steps must be increasing numbers >= 0, got {self.steps}")
        if not 1 <= self.blocks <= self.model.depth or self.wrong < 0 or not 0 < self.share <= 1:
            raise ValueError(
                f"blocks must be 1 to {self.model.depth}, wrong >= 0 and share in (0, 1], got "
                f"{self.blocks}, {self.wrong} and {self.share}"
            )
        AssistantLoss(self.beta)
        divide(invent(self.facts, 0), self.forget, self.covered, 0)


PRESETS: dict[str, Config] = {
    "toy": Config(
        preset="toy",
        seeds=(0,),
        facts=24,
        forget=4,
        covered=6,
        model=ModelConfig("transformer", (LENGTH,), len(TOKENS), 32, 2),
        train=dataclasses.replace(Config().train, epochs=90, batch_size=48, learning_rate=1e-2),
        assistants=(MAIN, "no paraphrases"),
        changes=("GA+GD",),
    ),
    "study": Config(),
    "full-facts": Config(
        preset="full-facts",
        facts=160,
        forget=16,
        covered=32,
        model=ModelConfig("transformer", (LENGTH,), len(TOKENS), 96, 4),
        train=dataclasses.replace(Config().train, epochs=40),
        assistants=(MAIN, "no wrong answers"),
        changes=("GA+GD", "GA+GD slow"),
    ),
}


def run(
    config: Config,
    *,
    folder: Path | None = None,
    progress: bool = False,
    device: str = "cpu",
    root: Path | None = None,
) -> Result:
    """Run the experiment of the lesson.

    Args:
        config: What to run.
        folder: Where partial work is kept, so that a killed run can be started again; None keeps
            none.
        progress: Whether to show progress.
        device: ``cpu`` or ``cuda``.
        root: Ignored: the facts are invented.

    Returns:
        Series over methods, and the verdict of every claim.

    Raises:
        ValueError: If the facts cannot be divided as asked.

    Taught in: book/unlearning/logit-difference
    """
    stages = Stages(folder, config, progress=progress)
    parts: dict[str, list[Any]] = {}
    data = []
    with one_thread():
        for seed in config.seeds:
            setting = Setting.of(config, seed, device)
            data.append(setting.data)
            for name, values in measure_seed(setting, stages).items():
                parts.setdefault(name, []).append(values)
    axes = axes_of(config)
    return finish(
        LESSON,
        config,
        stages=stages,
        metrics={
            name: values
            for name, values in parts.items()
            if name not in axes and len(values) == len(config.seeds)  # a few only some seeds have
        },
        series={name: Series(axes[name], parts[name]) for name in axes},
        claims=CLAIMS,
        datasets=data,
        device=device,
    )


def axes_of(config: Config) -> dict[str, dict[str, list[Any]]]:
    """Axes of every series of a run."""
    measured: dict[str, list[Any]] = {"group": list(GROUPS), "quantity": list(QUANTITIES)}
    alphas = list(config.alphas)
    return {
        "networks": {"network": ["target", "retrained"], **measured},
        "alpha": {"filter": ["none", "filtered"], "alpha": alphas, **measured},
        "assistants": {"assistant": list(config.assistants), "alpha": alphas, **measured},
        "changes": {"method": list(config.changes), "step": list(config.steps), **measured},
        "growth": {"step": list(config.steps), **measured},
        "critical": {"assistant": list(config.assistants), "letter": list(range(1, ANSWER + 1))},
        "letters": {"fact": ["forget", "uncovered"], "alpha": alphas, "token": list(TOKENS)},
    }


@dataclass(frozen=True)
class Setting:
    """What one seed's measurements need.

    Attributes:
        config: What to run.
        seed: The seed.
        data: All facts in all templates.
        split: What is to be forgotten, what is covered, and the rest.
        tests: Group to texts (N, T), in the order of ``GROUPS``.
        device: Where to run.
    """

    config: Config
    seed: int
    data: Dataset
    split: Split
    tests: dict[str, Tensor]
    device: str

    @classmethod
    def of(cls, config: Config, seed: int, device: str = "cpu") -> Setting:
        """The facts of a seed, divided.

        Args:
            config: How many.
            seed: Decides them.
            device: Where to run.
        """
        facts = invent(config.facts, seed)
        split = divide(facts, config.forget, config.covered, seed)
        groups = zip(
            GROUPS,
            (split.forget, split.forget, split.forget, split.covered, split.uncovered),
            (ORIGINAL, SHOWN, NEW, EVERY, EVERY),
            strict=True,
        )
        length = config.model.input_shape[0]
        tests = {n: encode(texts(f, t), length).to(device) for n, f, t in groups}
        data = text_data(f"facts {seed}", [], texts(facts, EVERY), length)
        return cls(config, seed, data, split, tests, device)

    @property
    def kept(self) -> Dataset:
        """All texts but those to be forgotten: what the control is trained on."""
        rest = [*texts(self.split.covered, EVERY), *texts(self.split.uncovered, EVERY)]
        return text_data(f"kept {self.seed}", [], rest, self.config.model.input_shape[0])

    def for_assistant(self, assistant: Assistant) -> Dataset:
        """The texts of an assistant: what to remember, and where to be uniform."""
        templates = (*ORIGINAL, *SHOWN) if assistant.paraphrases else ORIGINAL
        retain = texts(self.split.covered, templates)
        count = self.config.wrong if assistant.wrong else 0
        for facts in wrong_answers(self.split.forget, count, self.seed):
            retain += texts(facts, templates)
        remember = texts(self.split.forget, templates)
        return text_data("assistant", remember, retain, self.config.model.input_shape[0])

    def for_change(self) -> Dataset:
        """The texts of methods that change the target: to forget, and to keep."""
        templates = (*ORIGINAL, *SHOWN)
        forget, retain = texts(self.split.forget, templates), texts(self.split.covered, templates)
        return text_data("change", forget, retain, self.config.model.input_shape[0])


# Training


def assistant_setup(config: Config, name: str, target: Params) -> tuple[ModelConfig, Params, Loss]:
    """Architecture, start and loss of an assistant.

    Args:
        config: What to run.
        name: Name from ``ASSISTANTS``.
        target: The target, stacked.

    Returns:
        All three.
    """
    kind = ASSISTANTS[name]
    blocks = config.model.depth if kind.all_blocks else config.blocks
    model, start = assistant_of(config.model, target, blocks)
    return model, start, AssistantLoss(config.beta if kind.uniform else 0.0, kind.prompts)


def change_setup(config: Config, name: str, target: Params) -> tuple[TrainConfig, Loss]:
    """Recipe and loss of a method that changes the target.

    Args:
        config: What to run.
        name: Name from ``CHANGES``.
        target: The target, stacked.

    Returns:
        Both.
    """
    kind, recipe = CHANGES[name], config.ascent
    recipe = dataclasses.replace(
        recipe,
        learning_rate=recipe.learning_rate * kind.rate,
        epochs=math.ceil(recipe.epochs * kind.longer),
    )
    if not kind.preference:
        return recipe, GradientAscent(kind.retain)
    model = build(config.model)
    device = next(iter(target.values())).device

    def reference(x: Tensor) -> Tensor:
        with torch.no_grad():
            return predict_stacked(model.to(device), target, x)

    return recipe, NegativePreference(reference, kind.retain)


def continued(
    setting: Setting,
    stages: Stages,
    name: str,
    model: ModelConfig,
    data: Dataset,
    start: Params,
    recipe: TrainConfig,
    loss: Loss,
) -> dict[int, Params]:
    """Train on from given parameters, as a stage.

    Args:
        setting: The seed, and where to run.
        stages: The run's stages.
        name: Name of the stage.
        model: Architecture.
        data: Texts, in one batch.
        start: Stacked parameters of one network.
        recipe: How to train.
        loss: What to minimise.

    Returns:
        Step to plain parameters, the last step among them.
    """
    snapshots = {s for s in setting.config.steps if s <= recipe.epochs} | {recipe.epochs}

    def compute(checkpoint: Path | None) -> Params:
        training = train(
            model,
            data,
            (setting.seed,),
            recipe,
            loss=loss,
            start=start,
            snapshots=sorted(snapshots),
            device=setting.device,
            checkpoint=checkpoint,
        )
        return {f"{e}/{n}": t for e, p in training.snapshots.items() for n, t in p.items()}

    stage = f"{name.replace(' ', '-').replace('+', '-')}-{setting.seed}"
    found = stages.tensors(stage, compute)
    names = state(build(model))
    return {
        step: {n: found[f"{step}/{n}"][0].to(setting.device) for n in names}
        for step in sorted(snapshots)
    }


# Measurements


def logits_of(setting: Setting, model: ModelConfig, params: Params) -> dict[str, Tensor]:
    """Logits of one network for every group of texts.

    Args:
        setting: The texts.
        model: Architecture.
        params: The network.

    Returns:
        Group to shape (N, T, tokens).
    """
    network = build(model).eval().to(setting.device)
    with torch.no_grad():
        return {name: predict(network, params, x) for name, x in setting.tests.items()}


def scores(setting: Setting, logits: dict[str, Tensor]) -> list[list[float]]:
    """Quantities of every group, shape (groups, quantities)."""
    found = [score_answers(logits[name], x) for name, x in setting.tests.items()]
    return [[row[quantity] for quantity in QUANTITIES] for row in found]


def sweep(
    setting: Setting, target: dict[str, Tensor], assistant: dict[str, Tensor], share: float
) -> list[Any]:
    """Quantities at every alpha, shape (alphas, groups, quantities)."""
    return [
        scores(setting, {n: subtract(target[n], assistant[n], alpha, share) for n in target})
        for alpha in setting.config.alphas
    ]


def measure_seed(setting: Setting, stages: Stages) -> dict[str, Any]:
    """Train and measure everything of one seed.

    Args:
        setting: The seed's facts.
        stages: The run's stages.

    Returns:
        Name of a series or a metric to this seed's values.
    """
    config, seeds = setting.config, (setting.seed,)
    known = {
        name: train_stages(
            stages,
            name,
            config.model,
            data,
            seeds,
            config.train,
            loss=next_token_loss,
            device=setting.device,
        )[config.train.epochs]
        for name, data in (("target", setting.data), ("retrained", setting.kept))
    }
    target = known["target"]
    assistants = {}
    for name in config.assistants:
        model, start, loss = assistant_setup(config, name, target)
        data = setting.for_assistant(ASSISTANTS[name])
        trained = continued(
            setting, stages, f"assistant-{name}", model, data, start, config.assistant, loss
        )
        assistants[name] = (model, trained)
    changed = {}
    for name in config.changes:
        recipe, loss = change_setup(config, name, target)
        changed[name] = continued(
            setting,
            stages,
            f"change-{name}",
            config.model,
            setting.for_change(),
            target,
            recipe,
            loss,
        )
    measure = functools.partial(measure_all, setting, known, assistants, changed)
    found: dict[str, Any] = stages.numbers(f"measure-{setting.seed}", measure)
    return found


def measure_all(
    setting: Setting,
    known: dict[str, Params],
    assistants: dict[str, tuple[ModelConfig, dict[int, Params]]],
    changed: dict[str, dict[int, Params]],
) -> dict[str, Any]:
    """Every number of one seed.

    Args:
        setting: The seed's facts.
        known: Target and retrained network, stacked.
        assistants: Name to architecture, and step to parameters.
        changed: Method to step to parameters of the whole network.

    Returns:
        Series by name, and metrics.
    """
    config = setting.config
    plain = {name: unstack(params)[0] for name, params in known.items()}
    base = {name: logits_of(setting, config.model, params) for name, params in plain.items()}
    target = base["target"]
    last = {
        name: logits_of(setting, model, trained[max(trained)])
        for name, (model, trained) in assistants.items()
    }
    model, main = assistants[MAIN]
    growth = {}
    for step in _reached(config.steps, main):
        now = logits_of(setting, model, main[step])
        growth[step] = scores(setting, {n: subtract(target[n], now[n], ALPHA) for n in target})
    steps = {
        name: {
            step: scores(setting, logits_of(setting, config.model, trained[step]))
            for step in _reached(config.steps, trained)
        }
        for name, trained in changed.items()
    }
    filtered = sweep(setting, target, last[MAIN], config.share)
    swept = {name: sweep(setting, target, told, 0.0) for name, told in last.items()}
    return {
        "networks": [scores(setting, told) for told in base.values()],
        "alpha": [swept[MAIN], filtered],
        "assistants": list(swept.values()),
        "changes": [_at_every(config.steps, found) for found in steps.values()],
        "growth": _at_every(config.steps, growth),
        "critical": [_by_letter(setting, target, told) for told in last.values()],
        "letters": [
            _letters(setting, target, last[MAIN], fact) for fact in ("forget", "uncovered")
        ],
        "identity error": identity_error(setting, target, last[MAIN]),
        **cap(setting, last[MAIN]),
        **work(setting, growth, steps),
    }


def _reached(steps: Sequence[int], trained: dict[int, Params]) -> list[int]:
    return [step for step in steps if step in trained]


def _at_every(steps: Sequence[int], found: dict[int, Any]) -> list[Any]:
    """One entry per step; after its last, a method stays where it is."""
    last = max(found)
    return [found.get(step, found[last]) for step in steps]


def _answers(setting: Setting, group: str = "forget") -> tuple[Tensor, Tensor]:
    """Places of answers in a group's texts, and the true tokens there, N * ANSWER of each."""
    x = setting.tests[group]
    places = answer_places(x)
    return places, x[:, 1:][places].long()


def _by_letter(
    setting: Setting, target: dict[str, Tensor], assistant: dict[str, Tensor]
) -> list[float]:
    """Median critical alpha of the first, second and third letter; capped where infinite."""
    places, true = _answers(setting)
    found = critical_alpha(
        target["forget"][:, :-1][places].double(),
        assistant["forget"][:, :-1][places].double(),
        true,
    )
    return found.clamp(max=100).view(-1, ANSWER).median(0).values.tolist()


def _letters(
    setting: Setting, target: dict[str, Tensor], assistant: dict[str, Tensor], group: str
) -> list[list[float]]:
    """Probabilities of the first letter of the first fact's answer, per alpha."""
    place = int(answer_places(setting.tests[group])[0].int().argmax())
    return [
        subtract(target[group][0, place], assistant[group][0, place], alpha).softmax(-1).tolist()
        for alpha in setting.config.alphas
    ]


def identity_error(
    setting: Setting, target: dict[str, Tensor], assistant: dict[str, Tensor]
) -> float:
    """Largest gap, over groups and alphas, of accuracy and the share of larger critical alphas."""
    worst = 0.0
    for group in setting.tests:
        places, true = _answers(setting, group)
        z = target[group][:, :-1][places].double()
        a = assistant[group][:, :-1][places].double()
        critical = critical_alpha(z, a, true)
        for alpha in setting.config.alphas:
            share = float((critical > alpha).double().mean())
            right = subtract(z, a, alpha).argmax(-1) == true
            worst = max(worst, abs(share - float(right.double().mean())))
    return worst


def cap(setting: Setting, assistant: dict[str, Tensor]) -> dict[str, float]:
    """The assistant's lead at first letters, and what wrong answers to the same prompt allow.

    Args:
        setting: The seed's facts.
        assistant: Logits of the assistant of ``MAIN``.

    Returns:
        Mean lead of the true letter over the mean of all other tokens, and the closed form; without
        wrong answers, nothing.
    """
    config = setting.config
    if not config.wrong or not config.beta:
        return {}
    data = setting.for_assistant(ASSISTANTS[MAIN])
    forget = data.train_y.bool().unsqueeze(-1)
    remembered = forget & answer_places(data.train_x)
    uniform = text_places(data.train_x) & ~remembered
    wanted = bound_of_uniform(
        1 / int(remembered.sum()), config.beta * config.wrong / int(uniform.sum()), len(TOKENS)
    )
    places, true = _answers(setting)
    told = assistant["forget"][:, :-1][places]
    own = told.gather(-1, true.unsqueeze(-1)).squeeze(-1)
    rest = (told.sum(-1) - own) / (told.shape[-1] - 1)
    lead = float((own - rest).view(-1, ANSWER)[:, 0].mean())
    return dict(zip(CAP, (lead, wanted), strict=True))


def work(
    setting: Setting, growth: dict[int, Any], steps: dict[str, dict[int, Any]]
) -> dict[str, float]:
    """Multiplications of forward passes in training, up to the step at which answers are forgotten.

    Of ``MAIN``, up to the step at which uncovered facts are kept as well: an assistant that is not
    yet uniform takes everything away.

    Args:
        setting: The seed's texts.
        growth: Quantities of ``MAIN`` by step.
        steps: Method to quantities by step.

    Returns:
        Per method; nothing for those that never forget. Also the cost of one text in the assistant
        and in the target.
    """
    config = setting.config
    small = dataclasses.replace(config.model, depth=config.blocks)
    texts_of = {MAIN: len(setting.for_assistant(ASSISTANTS[MAIN]).train_x)}
    found = {
        "text in assistant": float(forward_cost(small)),
        "text in target": float(forward_cost(config.model)),
    }
    for name, rows in {MAIN: growth, **steps}.items():
        least = KEPT if name == MAIN else 0.0
        reached = [s for s, row in rows.items() if row[0][0] <= FORGOTTEN and row[-1][0] >= least]
        if reached:
            count = texts_of.get(name, len(setting.for_change().train_x))
            cost = forward_cost(small if name == MAIN else config.model)
            found[f"{name}: work"] = float(min(reached) * count * cost)
    return found


# Effects and claims


def known(group: str, alpha: float = ALPHA, assistant: str = MAIN) -> Effect:
    """Accuracy of an unlearned model on a group, without a filter."""
    return entry("assistants", assistant, alpha, group, "accuracy")


def before(group: str) -> Effect:
    """The target's accuracy on a group."""
    return entry("networks", "target", group, "accuracy")


def best_change(result: Result) -> list[float]:
    """The best uncovered accuracy of any method that changes the target, once it has forgotten.

    Best over methods and steps, seed by seed: the comparison is as kind to them as it can be.

    Args:
        result: A run.

    Returns:
        One accuracy per seed; 0 where no method ever forgot.
    """
    series = result.series["changes"]
    methods, steps = series.axes["method"], series.axes["step"]
    pairs = [(m, s) for m in methods for s in steps]
    if not pairs:
        raise KeyError("changes")
    forgot = [entry("changes", *pair, "forget", "accuracy")(result) for pair in pairs]
    left = [entry("changes", *pair, "uncovered", "accuracy")(result) for pair in pairs]
    return [
        max((kept for gone, kept in zip(*seed, strict=True) if gone <= FORGOTTEN), default=0.0)
        for seed in zip(zip(*forgot, strict=True), zip(*left, strict=True), strict=True)
    ]


def late_first(assistant: str) -> Effect:
    """By how much the first letter's critical alpha exceeds the mean of the others'."""

    def effect(result: Result) -> list[float]:
        first, *others = (
            entry("critical", assistant, letter)(result) for letter in range(1, ANSWER + 1)
        )
        rest = zip(*others, strict=True)
        return [f - sum(row) / len(row) for f, row in zip(first, rest, strict=True)]

    return effect


def growing(name: str, *ticks: Any, steps: tuple[int, int]) -> Effect:
    """By how much the loss on forgotten answers rises between two steps."""
    early, late = steps
    tail = ("forget", "loss")
    return gap(entry(name, *ticks, late, *tail), entry(name, *ticks, early, *tail))


def log_ratio(larger: str, smaller: str) -> Effect:
    """Logarithm to base 2 of the ratio of two metrics."""

    def effect(result: Result) -> list[float]:
        pairs = zip(result.metric(larger), result.metric(smaller), strict=True)
        return [math.log2(p / q) for p, q in pairs]

    return effect


def relative_gap(result: Result) -> list[float]:
    """The measured lead at first letters against the closed form, as a share of the latter."""
    measured, wanted = (result.metric(name) for name in CAP)
    return [m / w - 1 for m, w in zip(measured, wanted, strict=True)]


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "C1a",
        "Subtracting the assistant with alpha 1.5 makes the model lose the answers to forget.",
        "ji2024uld",
        gap(before("forget"), known("forget")),
        margin=0.9,
        reason="what is left of ten letters is less than one",
        unit="share",
        paper="forget quality 2e-19 before, .52 after (forget 10 %)",
    ),
    Claim(
        "C1b",
        "It keeps the facts that are in no set: neither to be forgotten nor to be retained.",
        "ji2024uld",
        gap(known("uncovered"), before("uncovered")),
        margin=0.02,
        reason="one letter of fifty",
        kind="equal",
        unit="share",
        paper="ROUGE-L on retained questions 98.2 before, 85.9 after (forget 10 %)",
    ),
    Claim(
        "C1c",
        "It keeps more of those facts than the best of all methods that change the target, at "
        "their best step after they have forgotten.",
        "ji2024uld",
        gap(known("uncovered"), best_change),
        margin=0.1,
        reason="a tenth of the facts; the best step is chosen by the test itself",
        unit="share",
        paper="ROUGE-L 85.9 against 41.1 at best (forget 10 %)",
    ),
    Claim(
        "C1d",
        f"At alpha {ALPHA}, the uniform term keeps those facts: without it, fewer are kept.",
        "derived here (control)",
        gap(known("uncovered"), known("uncovered", assistant="no uniform term")),
        margin=0.1,
        reason="a tenth of the facts",
        unit="share",
    ),
    Claim(
        "C2a",
        "After 100 steps of ascent with descent, the loss on forgotten answers is higher than "
        "after subtraction.",
        "ji2024uld",
        gap(
            entry("changes", "GA+GD", 100, "forget", "loss"),
            entry("assistants", MAIN, ALPHA, "forget", "loss"),
        ),
        margin=5.0,
        reason="more than the loss of a uniform guess, 3.4 nats",
        unit="nats",
    ),
    Claim(
        "C2b",
        "The loss on forgotten answers rises faster in the last doubling of the steps of ascent "
        "with descent than in the last doubling of the assistant's.",
        "derived here",
        gap(
            growing("changes", "GA+GD", steps=(50, 100)),
            growing("growth", steps=(100, 200)),
        ),
        margin=3.0,
        reason="about the loss of a uniform guess",
        unit="nats",
    ),
    Claim(
        "C2c",
        "Subtraction leaves a loss on forgotten answers like that of a network that never saw "
        "them.",
        "derived here",
        gap(
            entry("assistants", MAIN, ALPHA, "forget", "loss"),
            entry("networks", "retrained", "forget", "loss"),
        ),
        margin=2.0,
        reason="a third of what pilots showed for such networks; alpha 1.5 was chosen in pilots",
        kind="equal",
        unit="nats",
    ),
    Claim(
        "C3a",
        "Without paraphrases in the forget set, paraphrased questions are still answered.",
        "ji2024uld, ablation",
        gap(
            known("shown paraphrases", assistant="no paraphrases"),
            known("shown paraphrases"),
        ),
        margin=0.25,
        reason="a quarter of the letters",
        unit="share",
        paper="forget quality 1e-9 without, .52 with (forget 10 %)",
    ),
    Claim(
        "C3b",
        "Without them, paraphrases that no assistant was shown are also answered more often.",
        "derived here",
        gap(known("new paraphrases", assistant="no paraphrases"), known("new paraphrases")),
        margin=0.25,
        reason="a quarter of the letters",
        unit="share",
    ),
    Claim(
        "C3c",
        "With paraphrases in the forget set, new paraphrases are forgotten as well as the shown.",
        "derived here",
        gap(before("new paraphrases"), known("new paraphrases")),
        margin=0.9,
        reason="as C1a",
        unit="share",
    ),
    Claim(
        "C4a",
        "Alpha 0.5 forgets nothing.",
        "derived here",
        gap(known("forget", 0.5), before("forget")),
        margin=0.05,
        reason="one letter of twenty",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C4b",
        "Without wrong answers, nearly all is lost between alpha 0.5 and 1.",
        "derived here",
        gap(
            known("forget", 0.5, "no wrong answers"),
            known("forget", 1.0, "no wrong answers"),
        ),
        margin=0.8,
        reason="a quarter of the range that is swept takes four fifths of the accuracy",
        unit="share",
    ),
    Claim(
        "C4c",
        "The filter changes the accuracy on what is to be forgotten little.",
        "derived here",
        gap(
            entry("alpha", "filtered", ALPHA, "forget", "accuracy"),
            entry("alpha", "none", ALPHA, "forget", "accuracy"),
        ),
        margin=0.05,
        reason="one letter of twenty",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C4d",
        "The share of letters whose critical alpha is larger is the accuracy, at every alpha.",
        "this lesson",
        lambda result: result.metric("identity error"),
        margin=1e-9,
        reason="a theorem; both sides are shares of the same letters",
        kind="exact",
    ),
    Claim(
        "C5a",
        "An assistant of one block forgets as well as one of all blocks.",
        "ji2024uld uses 8 of 32; compared here",
        gap(known("forget"), known("forget", assistant="all blocks")),
        margin=0.05,
        reason="one letter of twenty",
        kind="equal",
        unit="share",
    ),
    Claim(
        "C5b",
        "A text costs the target more than twice the multiplications that it costs the assistant.",
        "this lesson",
        log_ratio("text in target", "text in assistant"),
        margin=1.0,
        reason="a factor of two; counted, not timed",
        unit="doublings",
        paper="training time per epoch more than 3 times that of ULD (NPO)",
    ),
    Claim(
        "C5c",
        "Until answers are forgotten and the others kept, training the assistant takes fewer "
        "multiplications than ascent with descent until it has forgotten.",
        "derived here",
        log_ratio("GA+GD: work", f"{MAIN}: work"),
        margin=0.0,
        reason="any saving; steps are looked at on a coarse grid",
        unit="doublings",
    ),
    Claim(
        "C6a",
        "Wrong answers among the texts of the uniform term protect the facts that are in no set.",
        "ji2024uld, ablation",
        gap(known("uncovered"), known("uncovered", assistant="no wrong answers")),
        margin=0.02,
        reason="one letter of fifty",
        unit="share",
        paper="model utility .55 without, .62 with (forget 10 %)",
    ),
    Claim(
        "C6b",
        "Wrong answers make the first letter of an answer need a larger alpha than the others do.",
        "derived here",
        gap(late_first(MAIN), late_first("no wrong answers")),
        margin=0.2,
        reason="visible on the grid of alphas, whose spacing is an eighth",
    ),
    Claim(
        "C6c",
        "The assistant's lead at first letters is the closed form for two targets at one prompt.",
        "derived here",
        relative_gap,
        margin=0.1,
        reason="one part in ten; training ends before the optimum",
        kind="equal",
    ),
    Claim(
        "C7",
        "An assistant that remembers prompts and full stops as well takes full stops away.",
        "this lesson",
        gap(
            entry("assistants", MAIN, ALPHA, "forget", "full stop"),
            entry("assistants", "prompts remembered", ALPHA, "forget", "full stop"),
        ),
        margin=0.5,
        reason="most of them",
        unit="share",
    ),
    Claim(
        "C8",
        "What is forgotten can be read off: the true letter is the least likely one more often "
        "than in a network that never saw it.",
        "derived here",
        gap(
            entry("assistants", MAIN, ALPHA, "forget", "least likely"),
            entry("networks", "retrained", "forget", "least likely"),
        ),
        margin=0.2,
        reason="far above the one in 26 of chance",
        unit="share",
    ),
)

r"""Attacks: look for the input near a given one that a network gets most wrong.

An attack maximises a loss over a threat model, the set of inputs that count as near. All attacks
work on any number of leading axes: with labels of shape (S, B) and inputs of shape (S, B, ...) they
attack the B samples of S networks at once. ``predict`` maps inputs to logits of shape
``(*labels.shape, classes)``, so nothing here knows what a network is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.evaluation import logit_margins
from lmc_lessons.models import Params
from lmc_lessons.models import predict as run_model
from lmc_lessons.training import generator

Predict = Callable[[Tensor], Tensor]
AttackLoss = Callable[[Tensor, Tensor], Tensor]
Keep = Literal["last", "best"]
START, SQUARE, NOISE = 11, 12, 13  # independent random streams of one seed


# Threat models: which inputs count as near


class ThreatModel(Protocol):
    """A set of inputs around each input, with three verbs.

    Attributes:
        epsilon: The radius.
        bounded: Whether inputs must stay in the box [0, 1].
    """

    @property
    def epsilon(self) -> float:
        """The radius."""

    @property
    def bounded(self) -> bool:
        """Whether inputs must stay in the box [0, 1]."""

    def project(self, x: Tensor, centre: Tensor, lead: int) -> Tensor:
        """The nearest point of the set around ``centre``."""

    def random(self, centre: Tensor, lead: int, stream: torch.Generator) -> Tensor:
        """A random point of the set around ``centre``."""

    def steepest(self, gradient: Tensor, lead: int) -> Tensor:
        """The step of length one along which a linear function rises most."""


@dataclass(frozen=True)
class LInf:
    r"""All inputs with $|x'_k - x_k| \le \epsilon$ in every coordinate, within [0, 1].

    Attributes:
        epsilon: The radius, at least 0.
        bounded: False removes the box [0, 1], for data that know none and for scaling laws.
    """

    epsilon: float
    bounded: bool = True

    def __post_init__(self) -> None:
        """Refuse a negative radius."""
        _check_epsilon(self.epsilon)

    def project(self, x: Tensor, centre: Tensor, lead: int) -> Tensor:
        """Clip every coordinate."""
        del lead
        low, high = centre - self.epsilon, centre + self.epsilon
        if self.bounded:
            low, high = low.clamp_min(0), high.clamp_max(1)
        return torch.minimum(torch.maximum(x, low), high)

    def random(self, centre: Tensor, lead: int, stream: torch.Generator) -> Tensor:
        """Uniform in the cube, clipped to the box."""
        noise = 2 * torch.rand(centre.shape, generator=stream, dtype=centre.dtype) - 1
        return self.project(centre + self.epsilon * noise.to(centre.device), centre, lead)

    def steepest(self, gradient: Tensor, lead: int) -> Tensor:
        """The sign of every coordinate."""
        del lead
        return gradient.sign()


@dataclass(frozen=True)
class L2:
    r"""All inputs with $\|x' - x\|_2 \le \epsilon$, within [0, 1].

    Attributes:
        epsilon: The radius, at least 0.
        bounded: False removes the box [0, 1], for data that know none and for scaling laws.
    """

    epsilon: float
    bounded: bool = True

    def __post_init__(self) -> None:
        """Refuse a negative radius."""
        _check_epsilon(self.epsilon)

    def project(self, x: Tensor, centre: Tensor, lead: int) -> Tensor:
        """Shorten what is too long, then clip: clipping moves no coordinate away from the centre.

        This is a point of the set, and the nearest one wherever the box does not cut.
        """
        step = x - centre
        length = _length(step, lead)
        shorter = self.epsilon / length.clamp_min(1e-30)
        found = centre + step * torch.where(length > self.epsilon, shorter, 1.0)
        return found.clamp(0, 1) if self.bounded else found

    def random(self, centre: Tensor, lead: int, stream: torch.Generator) -> Tensor:
        """Uniform in the ball, clipped to the box."""
        noise = torch.randn(centre.shape, generator=stream, dtype=centre.dtype)
        size = math.prod(centre.shape[lead:])
        radius = torch.rand(centre.shape[:lead], generator=stream, dtype=centre.dtype)
        radius = radius.pow(1 / max(1, size)).view(*radius.shape, *[1] * (centre.dim() - lead))
        noise = noise / _length(noise, lead).clamp_min(1e-30) * radius
        return self.project(centre + self.epsilon * noise.to(centre.device), centre, lead)

    def steepest(self, gradient: Tensor, lead: int) -> Tensor:
        """The gradient, scaled to length one; zero stays zero."""
        largest = gradient.abs().flatten(lead).amax(-1) if gradient.dim() > lead else gradient.abs()
        tiny = torch.finfo(gradient.dtype).tiny
        scaled = gradient / _wide(largest, gradient).clamp_min(tiny)  # its square cannot vanish
        return scaled / _length(scaled, lead).clamp_min(tiny)


def _check_epsilon(epsilon: float) -> None:
    if not 0 <= epsilon < math.inf:
        raise ValueError(f"epsilon must be a number >= 0, got {epsilon}")


def _length(x: Tensor, lead: int) -> Tensor:
    """Euclidean length of every sample, shape (*leading axes, 1, ...)."""
    flat = x.flatten(lead).norm(dim=-1) if x.dim() > lead else x.abs()
    return flat.view(*flat.shape, *[1] * (x.dim() - lead))


# Losses that attacks maximise: logits and labels to one number per sample


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of every sample.

    Args:
        logits: Shape (..., classes).
        y: Labels of shape (...,).

    Returns:
        Shape (...,), in nats.

    Taught in: book/robustness/adversarial-examples
    """
    _check_labels(logits, y)
    flat = F.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
    return flat.view(y.shape)


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    r"""The largest other logit minus the true one, $\max_{k \ne y} z_k - z_y$: minus the margin.

    Args:
        logits: Shape (..., classes).
        y: Labels of shape (...,).

    Returns:
        Shape (...,); positive exactly where the sample is misread.

    Taught in: book/robustness/adversarial-examples
    """
    _check_labels(logits, y)
    return -logit_margins(logits, y)


def dlr_loss(logits: Tensor, y: Tensor) -> Tensor:
    r"""The difference-of-logits ratio, $-(z_y - \max_{k \ne y} z_k) / (z_{(1)} - z_{(3)})$.

    It does not change when all logits are shifted or scaled alike. Equation (eq-adv-dlr) of the
    lesson on adversarial examples.

    Args:
        logits: Shape (..., classes), at least 3 classes.
        y: Labels of shape (...,).

    Returns:
        Shape (...,).

    Raises:
        ValueError: If there are fewer than 3 classes.

    Source:
        croce2020autoattack.

    Taught in: book/robustness/adversarial-examples
    """
    _check_classes(logits, 3, "the DLR loss")
    first, _, third = logits.topk(3, dim=-1).values.unbind(-1)
    return margin_loss(logits, y) / (first - third + 1e-12)


def targeted(target: Tensor, loss: Literal["margin", "dlr"] = "dlr") -> AttackLoss:
    r"""A loss that grows as a sample moves towards one wrong class t.

    ``margin`` is $z_t - z_y$; ``dlr`` divides it by $z_{(1)} - \frac12 (z_{(3)} + z_{(4)})$.

    Args:
        target: The class to reach, of the labels' shape.
        loss: Which loss.

    Returns:
        A loss of logits and labels; ``dlr`` raises ``ValueError`` for fewer than 4 classes.

    Source:
        croce2020autoattack.

    Taught in: book/robustness/adversarial-examples
    """
    if loss not in ("margin", "dlr"):
        raise ValueError(f"loss is {loss!r}, allowed: margin, dlr")

    def towards(logits: Tensor, y: Tensor) -> Tensor:
        true = logits.gather(-1, y.unsqueeze(-1)).squeeze(-1)
        gap = logits.gather(-1, target.unsqueeze(-1)).squeeze(-1) - true
        if loss == "margin":
            return gap
        _check_classes(logits, 4, "the targeted DLR loss")
        top = logits.topk(4, dim=-1).values
        return gap / (top[..., 0] - (top[..., 2] + top[..., 3]) / 2 + 1e-12)

    return towards


def _check_labels(logits: Tensor, y: Tensor) -> None:
    if int(y.max()) >= logits.shape[-1]:
        raise ValueError(f"labels must be below the {logits.shape[-1]} classes, got {int(y.max())}")


def _check_classes(logits: Tensor, least: int, what: str) -> None:
    if logits.shape[-1] < least:
        raise ValueError(f"{what} needs at least {least} classes, got {logits.shape[-1]}")


# Attacks by gradients


class Attacked(NamedTuple):
    """What an attack found.

    Attributes:
        x: The inputs found, of the inputs' shape.
        loss: The largest loss met, one number per sample; that of ``x`` where not ``fooled``.
        history: The largest loss so far after every evaluation, shape (evaluations, ...).
        fooled: Whether the attack met an input that is misread, one per sample; ``x`` then is one.
    """

    x: Tensor
    loss: Tensor
    history: Tensor
    fooled: Tensor


def loss_gradient(
    predict: Predict, x: Tensor, y: Tensor, loss: AttackLoss
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of every sample's loss with respect to its input.

    Parameters collect no gradient.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape ``(*y.shape, ...)``.
        y: Labels.
        loss: Maps logits and labels to one number per sample.

    Returns:
        Gradient of the inputs' shape, losses, logits; all detached.

    Taught in: book/robustness/adversarial-examples
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        logits = predict(x)
        losses = loss(logits, y)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    if not bool(gradient.isfinite().all()):
        raise ValueError("the gradient of the loss with respect to the inputs is not finite")
    return gradient, losses.detach(), logits.detach()


def fgsm(
    predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel, loss: AttackLoss = cross_entropy
) -> Tensor:
    r"""One step of full length: $x + \epsilon\, s$ with $s$ the steepest step of the threat model.

    Equation (eq-adv-fgsm) of the lesson on adversarial examples.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape ``(*y.shape, ...)``, in [0, 1].
        y: Labels.
        threat: Which inputs count as near.
        loss: What to maximise.

    Returns:
        Inputs in the threat model.

    Raises:
        ValueError: If inputs leave [0, 1], there are none, or labels do not fit.

    Source:
        The fast gradient sign method, goodfellow2015explaining.

    Taught in: book/robustness/adversarial-examples
    """
    x = check_inputs(x, y, threat)
    gradient, _, _ = loss_gradient(predict, x, y, loss)
    step = threat.steepest(gradient, y.dim())
    return threat.project(x + threat.epsilon * step, x, y.dim())


def step_least_likely(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    r"""One step of full length towards the class with the smallest clean logit.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape ``(*y.shape, ...)``, in [0, 1].
        y: Labels; only their shape matters.
        threat: Which inputs count as near.

    Returns:
        Inputs in the threat model.

    Raises:
        ValueError: As ``fgsm`` does.

    Source:
        The name follows cubuk2018intriguing, "step l.l.".

    Taught in: book/robustness/adversarial-examples
    """
    x = check_inputs(x, y, threat)
    with torch.no_grad():
        target = predict(x).argmin(-1)
    return fgsm(predict, x, y, threat, lambda logits, _: -cross_entropy(logits, target))


def pgd(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 10,
    step_size: float | None = None,
    loss: AttackLoss = cross_entropy,
    start: Tensor | None = None,
    random_start: bool = True,
    keep: Keep = "last",
    seed: int = 0,
) -> Tensor:
    r"""Projected gradient descent (here: ascent): steepest steps, projected back, again and again.

    Equation (eq-adv-pgd) of the lesson on adversarial examples.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape ``(*y.shape, ...)``, in [0, 1].
        y: Labels.
        threat: Which inputs count as near.
        steps: Number of steps.
        step_size: Length of a step; $2.5\,\epsilon / \mathrm{steps}$ by default.
        loss: What to maximise.
        start: Where to start, of the inputs' shape; projected into the threat model.
        random_start: Without a start: whether to start at a random point of the threat model.
        keep: ``last`` iterate, as in training, or the ``best`` met (one more evaluation).
        seed: Decides the start.

    Returns:
        Inputs in the threat model.

    Raises:
        ValueError: If ``steps`` is below 1, ``step_size`` below 0 or ``keep`` unknown; as ``fgsm``
            does.

    Source:
        madry2018towards.

    Taught in: book/robustness/adversarial-examples
    """
    x = check_inputs(x, y, threat)
    if steps < 1 or keep not in ("last", "best"):
        raise ValueError(f"steps must be >= 1 and keep last or best, got {steps} and {keep!r}")
    if step_size is not None and not 0 <= step_size < math.inf:
        raise ValueError(f"step_size must be a number >= 0, got {step_size}")
    lead = y.dim()
    size = 2.5 * threat.epsilon / steps if step_size is None else step_size
    if start is not None:
        now = threat.project(start.detach(), x, lead)
    else:
        now = threat.random(x, lead, generator(seed, START)) if random_start else x
    best, highest = now, torch.full(y.shape, -torch.inf, device=x.device, dtype=x.dtype)
    for _ in range(steps):
        gradient, losses, _ = loss_gradient(predict, now, y, loss)
        if keep == "best":
            best, highest = _better(best, highest, now, losses)
        now = threat.project(now + size * threat.steepest(gradient, lead), x, lead)
    if keep == "last":
        return now
    with torch.no_grad():
        return _better(best, highest, now, loss(predict(now), y))[0]


def _better(best: Tensor, highest: Tensor, now: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Keep, sample by sample, the input with the larger loss."""
    higher = losses > highest
    return torch.where(_wide(higher, now), now, best), torch.where(higher, losses, highest)


def _wide(per_sample: Tensor, x: Tensor) -> Tensor:
    return per_sample.view(*per_sample.shape, *[1] * (x.dim() - per_sample.dim()))


def checkpoints(steps: int) -> list[int]:
    """Steps of APGD after which it asks whether to halve its step size.

    Args:
        steps: Number of steps in all.

    Returns:
        Increasing step numbers; for 100 steps 22, 41, 57, 70, 80, 87, 93, 99.

    Source:
        croce2020autoattack.
    """
    gap, least = max(int(0.22 * steps), 1), max(int(0.06 * steps), 1)
    shorter, found, at = max(int(0.03 * steps), 1), [], 0
    while at + gap <= steps:
        at += gap
        found.append(at)
        gap = max(gap - shorter, least)
    return found


def apgd(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    loss: AttackLoss = cross_entropy,
    start: Tensor | None = None,
    seed: int = 0,
) -> Attacked:
    r"""Auto-PGD: steps with momentum whose size is halved when they no longer help.

    The step size starts at $2\epsilon$. At each checkpoint it is halved, and the search goes back
    to the best point, where too few of the last steps raised the loss, or neither the step size nor
    the best loss has changed since the last checkpoint.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape ``(*y.shape, ...)``, in [0, 1].
        y: Labels.
        threat: Which inputs count as near.
        steps: Number of steps.
        loss: What to maximise.
        start: Where to start, of the inputs' shape, projected into the threat model; by default a
            random point of it.
        seed: Decides the random start.

    Returns:
        The last misread input of each sample, or that of the largest loss where none was met.

    Raises:
        ValueError: As ``pgd`` does.

    Source:
        croce2020autoattack.

    Taught in: book/robustness/adversarial-examples
    """
    x = check_inputs(x, y, threat)
    if steps < 1:
        raise ValueError(f"steps must be >= 1, got {steps}")
    lead = y.dim()
    drawn = threat.random(x, lead, generator(seed, START)) if start is None else start.detach()
    search = _Search(threat.project(drawn, x, lead), predict, y, loss)
    before = search.now
    size = torch.full_like(search.losses, 2 * threat.epsilon)
    looks, last = checkpoints(steps), 0
    for step in range(1, steps + 1):
        ahead = threat.steepest(search.gradient, lead) * _wide(size, x)
        target = threat.project(search.now + ahead, x, lead)
        share = 1.0 if step == 1 else 0.75
        moved = search.now + share * (target - search.now) + (1 - share) * (search.now - before)
        before = search.now
        search.visit(threat.project(moved, x, lead))
        if step in looks:
            halved = search.stuck(step - last)
            size = torch.where(halved, size / 2, size)
            search.back(halved)
            last = step
    return search.found()


class _Search:
    """What APGD remembers of every sample."""

    def __init__(self, start: Tensor, predict: Predict, y: Tensor, loss: AttackLoss) -> None:
        self.predict, self.y, self.loss = predict, y, loss
        self.now = start
        self.gradient, self.losses, logits = loss_gradient(predict, start, y, loss)
        self.best, self.best_gradient, self.highest = start, self.gradient, self.losses
        self.fooled = logits.argmax(-1) != y
        self.misread = start
        self.history = [self.highest]
        self.rises = torch.zeros_like(self.losses)
        self.highest_at_look = self.highest
        self.was_halved = torch.ones_like(self.fooled)

    def visit(self, x: Tensor) -> None:
        """Evaluate a new iterate."""
        self.now, old = x, self.losses
        self.gradient, self.losses, logits = loss_gradient(self.predict, x, self.y, self.loss)
        wrong = logits.argmax(-1) != self.y
        self.misread = torch.where(_wide(wrong, x), x, self.misread)
        self.fooled = self.fooled | wrong
        self.rises = self.rises + (self.losses > old)
        higher = self.losses > self.highest
        self.best = torch.where(_wide(higher, x), x, self.best)
        self.best_gradient = torch.where(_wide(higher, x), self.gradient, self.best_gradient)
        self.highest = torch.where(higher, self.losses, self.highest)
        self.history.append(self.highest)

    def stuck(self, steps: int, enough: float = 0.75) -> Tensor:
        """Which samples should halve their step size; starts the next interval."""
        few = self.rises <= enough * steps
        same = ~self.was_halved & (self.highest <= self.highest_at_look)
        self.was_halved = few | same
        self.highest_at_look = self.highest
        self.rises = torch.zeros_like(self.rises)
        return self.was_halved

    def back(self, where: Tensor) -> None:
        """Go back to the best point; momentum still comes from the iterate before this one."""
        wide = _wide(where, self.now)
        self.now = torch.where(wide, self.best, self.now)
        self.gradient = torch.where(wide, self.best_gradient, self.gradient)
        self.losses = torch.where(where, self.highest, self.losses)

    def found(self) -> Attacked:
        """The result."""
        x = torch.where(_wide(self.fooled, self.now), self.misread, self.best)
        return Attacked(x, self.highest, torch.stack(self.history), self.fooled)


# An attack without gradients


def square_attack(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    queries: int = 1000,
    share: float = 0.8,
    seed: int = 0,
) -> Attacked:
    r"""Square Attack: change a random square by $\pm 2\epsilon$, keep it where the margin falls.

    It asks the network for logits only, so it is not misled by gradients that vanish or lie.

    Args:
        predict: Maps inputs to logits.
        x: Images of shape ``(*y.shape, C, H, W)``, in [0, 1].
        y: Labels.
        threat: An ``LInf`` threat model.
        queries: Number of evaluations.
        share: Share of the image that the first squares cover; it shrinks with the queries.
        seed: Decides stripes and squares.

    Returns:
        The image of the smallest margin met.

    Raises:
        ValueError: If the threat model is not ``LInf``, inputs are not images, or as ``pgd`` does.

    Source:
        andriushchenko2020square.

    Taught in: book/robustness/adversarial-examples
    """
    x = check_inputs(x, y, threat)
    lead = y.dim()
    if not isinstance(threat, LInf):
        raise ValueError(f"square_attack needs an LInf threat model, got {type(threat).__name__}")
    if x.dim() != lead + 3 or queries < 1 or not 0 < share <= 1:
        raise ValueError(
            "square_attack needs images (..., C, H, W), queries >= 1 and a share in (0, 1], got "
            f"inputs {tuple(x.shape)}, {queries} and {share}"
        )
    stream, (channels, height, width) = generator(seed, SQUARE), x.shape[lead:]
    stripes = _signs((*y.shape, channels, 1, width), stream).to(x)
    best = threat.project(x + threat.epsilon * stripes, x, lead)
    with torch.no_grad():
        logits = predict(best)
        highest, fooled = margin_loss(logits, y), logits.argmax(-1) != y
        history = [highest]
        for query in range(1, queries):
            side = round(math.sqrt(_share(share, query, queries) * height * width))
            side = min(max(side, 1), height, width)
            window = _window(y.shape, height, width, side, stream).to(x.device)
            signs = _signs((*y.shape, channels, 1, 1), stream).to(x)
            change = 2 * threat.epsilon * signs * window.unsqueeze(-3)
            tried = threat.project(best + change, x, lead)
            logits = predict(tried)
            losses, misread = margin_loss(logits, y), logits.argmax(-1) != y
            fooled = torch.where(losses > highest, misread, fooled)
            best, highest = _better(best, highest, tried, losses)
            history.append(highest)
    return Attacked(best, highest, torch.stack(history), fooled)


def _signs(shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
    return 2 * torch.randint(0, 2, shape, generator=stream) - 1


def _window(
    lead: torch.Size, height: int, width: int, side: int, stream: torch.Generator
) -> Tensor:
    """A random square for every sample, as a mask of shape (*lead, height, width)."""
    top = torch.randint(0, height - side + 1, (*lead, 1, 1), generator=stream)
    left = torch.randint(0, width - side + 1, (*lead, 1, 1), generator=stream)
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    inside_rows = (rows >= top) & (rows < top + side)
    return inside_rows & (columns >= left) & (columns < left + side)


def _share(share: float, query: int, queries: int) -> float:
    """How much of the image a square covers: halved ever more rarely, as published for 10,000."""
    at = query / queries * 10_000
    halvings = sum(at > turn for turn in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000))
    return share / 2**halvings


# Evaluation


class Evaluation(NamedTuple):
    """What is left of a network's accuracy under a sequence of attacks.

    Attributes:
        clean: Accuracy without attack.
        robust: Attack to the accuracy left after it and all before it.
        x: For each input the one that fooled the network, or the input itself.
    """

    clean: float
    robust: dict[str, float]
    x: Tensor


Attack = Callable[[Predict, Tensor, Tensor, ThreatModel], Tensor]


def evaluate(
    model: nn.Module,
    params: Params,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    attacks: Mapping[str, Attack],
    *,
    chunk: int = 1024,
) -> Evaluation:
    """Accuracy left after each attack; only samples that still stand are attacked further.

    Args:
        model: Architecture, in eval mode.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...), in [0, 1].
        y: Labels of shape (N,).
        threat: Which inputs count as near.
        attacks: Name to an attack, in the order in which they are tried; see ``ensemble``.
        chunk: Number of inputs attacked at once.

    Returns:
        Clean accuracy, and what is left after each attack.

    Raises:
        ValueError: If the model is in train mode, inputs leave [0, 1], or labels do not fit.

    Taught in: book/robustness/adversarial-examples
    """
    x = check_inputs(x, y, threat)
    if model.training:
        raise ValueError("evaluation needs the model in eval mode, call model.eval() first")

    def predict(inputs: Tensor) -> Tensor:
        return run_model(model, params, inputs)

    def standing(inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            parts = [predict(part).argmax(-1) for part in inputs.split(chunk)]
        return torch.cat(parts) == labels

    with torch.no_grad():
        _check_labels(predict(x[:1]), y)
    right = standing(x, y)
    found, robust = x.clone(), {}
    clean = float(right.double().mean())
    for name, attack in attacks.items():
        for part in right.nonzero().squeeze(1).split(chunk):
            if len(part) == 0:  # what ``split`` gives where nothing is left
                continue
            tried = attack(predict, x[part], y[part], threat)
            fooled = ~standing(tried, y[part])
            found[part[fooled]] = tried[fooled]
            right[part[fooled]] = False
        robust[name] = float(right.double().mean())
    return Evaluation(clean, robust, found)


def ensemble(
    *, steps: int = 100, targets: int = 9, queries: int = 1000, seed: int = 0
) -> dict[str, Attack]:
    """The attacks of this book's evaluation: APGD on cross-entropy, targeted APGD, Square.

    This follows the protocol of AutoAttack without its FAB attack, and is named for what it is:
    ``APGD-CE + APGD-T + Square``.

    Args:
        steps: Steps of each APGD run.
        targets: Number of wrong classes to aim at, those with the largest clean logits; 0 leaves
            the targeted attack out.
        queries: Evaluations of Square, which is left out where inputs are no images or the threat
            model is not ``LInf``; 0 leaves it out.
        seed: Decides all random starts.

    Returns:
        Name to attack, in order.

    Raises:
        ValueError: If a number is negative.

    Taught in: book/robustness/adversarial-examples
    """
    if min(steps, targets, queries) < 0:
        raise ValueError(f"numbers must be >= 0, got {steps}, {targets}, {queries}")

    def plain(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        return apgd(predict, x, y, threat, steps=steps, seed=seed).x

    def aimed(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        return targeted_apgd(predict, x, y, threat, steps=steps, targets=targets, seed=seed)

    def squares(predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
        if not isinstance(threat, LInf) or x.dim() != y.dim() + 3:
            return x
        return square_attack(predict, x, y, threat, queries=queries, seed=seed).x

    found: dict[str, Attack] = {"APGD-CE": plain}
    if targets:
        found["APGD-T"] = aimed
    return found | {"Square": squares} if queries else found


def targeted_apgd(
    predict: Predict,
    x: Tensor,
    y: Tensor,
    threat: ThreatModel,
    *,
    steps: int = 100,
    targets: int = 9,
    seed: int = 0,
) -> Tensor:
    """APGD towards each of the wrong classes with the largest clean logits, one after the other.

    With fewer than 4 classes the targeted margin takes the place of the DLR loss.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape ``(*y.shape, ...)``, in [0, 1].
        y: Labels.
        threat: Which inputs count as near.
        steps: Steps per class.
        targets: Number of wrong classes, at most as many as there are.
        seed: Decides the starts.

    Returns:
        A misread input where one was met, else the input itself.

    Taught in: book/robustness/adversarial-examples
    """
    x = check_inputs(x, y, threat)
    with torch.no_grad():
        logits = predict(x)
    _check_labels(logits, y)
    classes = logits.shape[-1]
    order = logits.scatter(-1, y.unsqueeze(-1), -torch.inf).argsort(-1, descending=True)
    found = x
    for rank in range(min(targets, classes - 1)):
        loss = targeted(order[..., rank], "dlr" if classes >= 4 else "margin")
        start = threat.random(x, y.dim(), generator(seed, START, rank))
        tried = apgd(predict, x, y, threat, steps=steps, loss=loss, start=start)
        found = torch.where(_wide(tried.fooled, x), tried.x, found)
    return found


def random_noise(
    predict: Predict, x: Tensor, y: Tensor, threat: ThreatModel, *, tries: int = 10, seed: int = 0
) -> Tensor:
    """The worst of several random points of the threat model: the control of every attack.

    Args:
        predict: Maps inputs to logits.
        x: Inputs of shape ``(*y.shape, ...)``, in [0, 1].
        y: Labels.
        threat: Which inputs count as near.
        tries: Number of points.
        seed: Decides them.

    Returns:
        The point of the largest cross-entropy.

    Taught in: book/robustness/adversarial-examples
    """
    x = check_inputs(x, y, threat)
    if tries < 1:
        raise ValueError(f"tries must be >= 1, got {tries}")
    best, highest = x, torch.full(y.shape, -torch.inf, device=x.device, dtype=x.dtype)
    for k in range(tries):
        tried = threat.random(x, y.dim(), generator(seed, NOISE, k))
        with torch.no_grad():
            best, highest = _better(best, highest, tried, cross_entropy(predict(tried), y))
    return best


def check_inputs(x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """Refuse what cannot be attacked.

    Args:
        x: Inputs of shape ``(*y.shape, ...)``.
        y: Labels.
        threat: Which inputs count as near; an unbounded one allows any finite input.

    Returns:
        The inputs without a graph.

    Raises:
        ValueError: If there are no samples, the leading axes differ, an input lies outside [0, 1]
            (or is not finite, where the threat model is unbounded), or a label is negative.
    """
    if y.dim() == 0:
        raise ValueError("labels need at least one axis, got a single label: use y[None], x[None]")
    if y.numel() == 0:
        raise ValueError("an attack needs at least one sample, got an empty batch")
    if x.shape[: y.dim()] != y.shape:
        raise ValueError(
            f"one label per input: got inputs {tuple(x.shape)}, labels {tuple(y.shape)}"
        )
    if x.numel() == 0:
        raise ValueError(f"inputs need at least one coordinate, got {tuple(x.shape)}")
    x = x.detach()
    low, high = float(x.min()), float(x.max())
    if threat.bounded and not (low >= 0 and high <= 1):
        raise ValueError(f"inputs must lie in [0, 1], got values from {low:.4g} to {high:.4g}")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"inputs must be finite, got values from {low:.4g} to {high:.4g}")
    if int(y.min()) < 0:
        raise ValueError(f"labels must be >= 0, got {int(y.min())}")
    return x

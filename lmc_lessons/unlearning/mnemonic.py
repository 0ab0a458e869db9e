r"""Mnemonic codes: a random input per class that stands for the class when it has to be forgotten.

While a network is trained, some of the samples of class $k$ are replaced by the code $m_k$. Later
the Fisher information of the codes says which weights matter for a class, and one step against
them, of the same sign for every weight, makes the network forget. No image is needed for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from lmc_lessons.curvature import fisher_diagonal
from lmc_lessons.models import Params, predict
from lmc_lessons.training import Loss, Network, cross_entropy, generator

CODES, REPLACED = 79, 80  # independent random streams of one seed
TINY = 1e-300  # instead of a largest ratio of 0, which would be divided by
EPSILON = 1e-16  # added to every sum of squares, as in the published code
OUTPUT = "output."  # how the names of the last layer's parameters begin

Part = Literal["all", "last", "all but last"]


def draw_codes(seed: int, classes: int, shape: Sequence[int]) -> Tensor:
    r"""One code per class, $m_k \sim U[0, 1]$. Equation (eq-mnc-codes) of the lesson.

    Args:
        seed: Decides the codes.
        classes: Number $K$ of classes.
        shape: Shape of one input.

    Returns:
        Codes of shape (K, *shape), in the order of the classes.

    Raises:
        ValueError: If there are fewer than two classes: then nothing would be left.

    Source:
        yamashita2025mnemonic, published code.

    Taught in: book/unlearning/mnemonic-codes
    """
    if classes < 2:
        raise ValueError(f"codes need at least 2 classes, got {classes}")
    return torch.rand(classes, *shape, generator=generator(seed, CODES))


@dataclass(frozen=True)
class MnemonicTraining:
    r"""A loss around a loss that replaces a share of the samples by the code of their class.

    Every sample $(x, y)$ becomes $(m_y, y)$ with probability $t$, anew in every step. Nothing is
    mixed: a sample is either the image or the code. Equation (eq-mnc-training) of the lesson.

    Attributes:
        share: The probability $t$, in [0, 1]; 0 leaves the loss as it is.
        classes: Number of classes.
        around: The loss of the inputs that come out.

    Source:
        yamashita2025mnemonic, published code.

    Taught in: book/unlearning/mnemonic-codes
    """

    share: float
    classes: int = 10
    around: Loss = cross_entropy

    def __post_init__(self) -> None:
        """Refuse a share that is no probability, or a single class."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"share must be in [0, 1], got {self.share}")
        if self.classes < 2:
            raise ValueError(f"codes need at least 2 classes, got {self.classes}")

    def inputs(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """Images of which some are replaced, of the shape of ``x``."""
        if self.share == 0:
            return x
        codes = torch.stack([draw_codes(s, self.classes, x.shape[2:]) for s in network.seeds])
        coins = [torch.rand(x.shape[1], generator=g) for g in network.streams(REPLACED)]
        replaced = (torch.stack(coins) < self.share).to(x.device)
        own = torch.stack([code[label] for code, label in zip(codes.to(x), y, strict=True)])
        return torch.where(replaced.view(*y.shape, *[1] * (x.dim() - 2)), own, x)

    def __call__(self, network: Network, x: Tensor, y: Tensor) -> Tensor:
        """The loss of what comes out per network, shape (S,)."""
        return self.around(network, self.inputs(network, x, y), y)


def check_forgotten(forgotten: Sequence[int], classes: int) -> tuple[int, ...]:
    """The classes to forget, if they can be forgotten.

    Args:
        forgotten: Class numbers.
        classes: Number of classes that the network knows.

    Returns:
        The same, sorted.

    Raises:
        ValueError: If there are none, one does not exist, or none would remain.
    """
    chosen = tuple(sorted({int(k) for k in forgotten}))
    if not chosen:
        raise ValueError("the forget set is empty: name at least one class")
    if chosen[0] < 0 or chosen[-1] >= classes:
        raise ValueError(f"cannot forget classes {chosen}, allowed: 0 to {classes - 1}")
    if len(chosen) == classes:
        raise ValueError(f"cannot forget all {classes} classes: at least one must remain")
    return chosen


def belongs(y: Tensor, forgotten: Sequence[int]) -> Tensor:
    """Which labels are of a class to forget, bool of the shape of ``y``."""
    return torch.isin(y, torch.tensor(list(forgotten), device=y.device))


def sensitivity(
    model: nn.Module, params: Params, x: Tensor, y: Tensor, forgotten: Sequence[int]
) -> Params:
    r"""How much more every weight matters for the classes to forget than for the others.

    $$r_j = \frac{\hat F^f_j}{\hat F^r_j}, \qquad \hat F^f_j = \frac{1}{|F|} \Big( \varepsilon +
    \sum_{i \in F} \big[ \partial_{\theta_j} \ell(f_\theta(x_i), y_i) \big]^2 \Big)$$

    and likewise for the rest. Equations (eq-mnc-fisher) and (eq-mnc-ratio) of the lesson. With the
    K codes as inputs this is the published rule; with training images it is its costly twin. All is
    computed in float64, so that rounding plays no part.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...), such as the codes.
        y: Their labels, shape (N,).
        forgotten: Classes to forget.

    Returns:
        $r_j$ for every parameter, of its shape, float64, above 0; buffers have none.

    Raises:
        ValueError: If one kind of inputs is missing, or an input is not finite.

    Source:
        yamashita2025mnemonic, published code.

    Taught in: book/unlearning/mnemonic-codes
    """
    if not torch.isfinite(x).all():
        raise ValueError("inputs of the Fisher information hold NaN or infinity")
    chosen = belongs(y, forgotten)
    if not chosen.any() or chosen.all():
        raise ValueError(
            f"inputs of both kinds are needed, got {int(chosen.sum())} of classes {forgotten} "
            f"and {int((~chosen).sum())} of others"
        )
    model.eval()
    exact = {n: t.double() if t.is_floating_point() else t for n, t in params.items()}
    means = [
        {
            name: mean + EPSILON / int(kind.sum())
            for name, mean in fisher_diagonal(model, exact, x[kind].double(), y[kind]).items()
        }
        for kind in (chosen, ~chosen)
    ]
    return {name: (means[0][name].log() - means[1][name].log()).exp() for name in means[0]}


def silent(ratio: Tensor, forget: int, rest: int) -> Tensor:
    r"""Weights about which no input said anything: both sums are $\varepsilon$ alone.

    There the ratio is $|R| / |F|$ whatever the network, and the published rule moves the weight all
    the same.

    Args:
        ratio: As ``sensitivity`` gives it.
        forget: Number of inputs to forget.
        rest: Number of the others.

    Returns:
        Bool, of the shape of ``ratio``.
    """
    return (ratio / (rest / forget) - 1).abs() < 1e-9


def perturbation(ratio: Params, step: float, cap: float, part: Part = "all") -> Params:
    r"""What the rule adds to, or takes from, every weight.

    $$\Delta_l = \min\Big( \lambda_1, \frac{\lambda_2}{\max_{j \in l} r_j} \Big)\, r_l$$

    for every tensor $l$ of parameters. Equation (eq-mnc-step) of the lesson.

    Args:
        ratio: As ``sensitivity`` gives it.
        step: $\lambda_1$, at least 0.
        cap: $\lambda_2$, the largest change of a single weight; infinity for none.
        part: Which layers to change; the others get zeros.

    Returns:
        $\Delta$ for every parameter, of its shape, float64, at least 0.

    Raises:
        ValueError: If a number is negative or NaN, both are infinite, or the part is unknown.

    Source:
        yamashita2025mnemonic, published code.

    Taught in: book/unlearning/mnemonic-codes
    """
    if not (step >= 0 and cap >= 0) or math.isinf(step):
        raise ValueError(f"step must be finite and >= 0, cap >= 0, got {step} and {cap}")
    if part not in get_args(Part):
        raise ValueError(f"part is {part!r}, allowed: {', '.join(get_args(Part))}")
    return {
        name: r * min(step, cap / max(float(r.max()), TINY))
        if part == "all" or name.startswith(OUTPUT) == (part == "last")
        else torch.zeros_like(r)
        for name, r in ratio.items()
    }


def moved(params: Params, change: Params, sign: int) -> Params:
    """Other parameters: those given plus or minus a change; buffers stay.

    Args:
        params: Parameters and buffers by name; they are left as they are.
        change: What to add or take, by name.
        sign: 1 or -1.

    Returns:
        Parameters and buffers, in their own dtype.
    """
    return {
        name: (tensor.double() + sign * change[name]).to(tensor) if name in change else tensor
        for name, tensor in params.items()
    }


def code_score(model: nn.Module, params: Params, codes: Tensor, forgotten: Sequence[int]) -> float:
    """How well the codes are forgotten and kept: wrong share of the ones, right share of the rest.

    Args:
        model: Architecture, in eval mode.
        params: Parameters and buffers by name.
        codes: Shape (K, ...).
        forgotten: Classes to forget.

    Returns:
        A number from 0 to 2; a network that answers NaN has 0.
    """
    labels = torch.arange(len(codes), device=codes.device)
    with torch.no_grad():
        logits = predict(model, params, codes)
    if not torch.isfinite(logits).all():
        return 0.0
    right = (logits.argmax(-1) == labels).double()
    chosen = belongs(labels, forgotten)
    return float(1 - right[chosen].mean() + right[~chosen].mean())


class Forgetting(NamedTuple):
    r"""A network that forgot, and how.

    Attributes:
        params: Its parameters and buffers.
        step: $\lambda_1$.
        cap: $\lambda_2$.
        sign: Whether the change was added (1) or taken away (-1).
        score: What the codes said of it; see ``code_score``.
        length: Euclidean length of the change.
    """

    params: Params
    step: float
    cap: float
    sign: int
    score: float
    length: float


def check_codes(
    model: nn.Module, params: Params, codes: Tensor, forgotten: Sequence[int]
) -> tuple[int, ...]:
    """Whether codes, network and classes fit; the classes to forget, sorted.

    Args:
        model: Architecture, in eval mode.
        params: Parameters and buffers by name.
        codes: Shape (K, ...).
        forgotten: Classes to forget.

    Returns:
        The classes.

    Raises:
        ValueError: If the network does not take the codes, there is not one per class, one is not
            finite, or the classes cannot be forgotten.
    """
    if not torch.isfinite(codes).all():
        raise ValueError("codes hold NaN or infinity")
    try:
        with torch.no_grad():
            classes = predict(model, params, codes).shape[-1]
    except RuntimeError as error:
        shape = tuple(codes.shape[1:])
        raise ValueError(f"codes have shape {shape}, which the network does not take") from error
    if len(codes) != classes:
        raise ValueError(f"one code per class is needed: got {len(codes)} for {classes} classes")
    return check_forgotten(forgotten, classes)


def forget(
    model: nn.Module,
    params: Params,
    codes: Tensor,
    forgotten: Sequence[int],
    *,
    step: float,
    cap: float,
    part: Part = "all",
    ratio: Params | None = None,
) -> Forgetting:
    r"""Forget classes by one step, whose sign the codes choose.

    Of $\theta + \Delta$ and $\theta - \Delta$ the one is kept that ``code_score`` prefers, and of
    equals the second.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name; they are left as they are.
        codes: Shape (K, ...), in the order of the classes.
        forgotten: Classes to forget.
        step: $\lambda_1$.
        cap: $\lambda_2$.
        part: Which layers to change.
        ratio: The sensitivities if known already; by default those of the codes.

    Returns:
        The network that forgot, and how.

    Raises:
        ValueError: If the classes or the codes do not fit, or a number is out of range.

    Source:
        yamashita2025mnemonic, published code.

    Taught in: book/unlearning/mnemonic-codes
    """
    model.eval()
    chosen = check_codes(model, params, codes, forgotten)
    if ratio is None:
        labels = torch.arange(len(codes), device=codes.device)
        ratio = sensitivity(model, params, codes, labels, chosen)
    change = perturbation(ratio, step, cap, part)
    length = math.sqrt(sum(float(tensor.square().sum()) for tensor in change.values()))
    found = []
    for sign in (-1, 1):
        other = moved(params, change, sign)
        score = code_score(model, other, codes, chosen)
        found.append(Forgetting(other, step, cap, sign, score, length))
    return max(found, key=_score)


def _score(found: Forgetting) -> float:
    return found.score


def search(
    model: nn.Module,
    params: Params,
    codes: Tensor,
    forgotten: Sequence[int],
    *,
    steps: Sequence[float],
    caps: Sequence[float],
    part: Part = "all",
    ratio: Params | None = None,
) -> list[Forgetting]:
    """Forget with every pair of a step and a cap; no data are needed.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name; they are left as they are.
        codes: Shape (K, ...).
        forgotten: Classes to forget.
        steps: Values of the step.
        caps: Values of the cap.
        part: Which layers to change.
        ratio: The sensitivities if known already; by default those of the codes.

    Returns:
        One network per pair, caps running fastest.

    Raises:
        ValueError: As ``forget`` does.
    """
    model.eval()
    chosen = check_codes(model, params, codes, forgotten)
    if ratio is None:
        labels = torch.arange(len(codes), device=codes.device)
        ratio = sensitivity(model, params, codes, labels, chosen)
    return [
        forget(model, params, codes, chosen, step=step, cap=cap, part=part, ratio=ratio)
        for step in steps
        for cap in caps
    ]


def middle(found: Sequence[Forgetting]) -> int:
    """Which of several to take when nothing but the codes may be asked.

    Of those that the codes like best, the one whose change has the middle length: the smallest
    change that a code notices is too small for images (so it was in pilots), and the largest that
    the codes bear may break more than it has to. Where the middle lies depends on what was tried.

    Args:
        found: As ``search`` gives it.

    Returns:
        Its place; of two in the middle the shorter one's.

    Raises:
        ValueError: If there are none.

    Taught in: book/unlearning/mnemonic-codes
    """
    approved = _approved(found)
    return approved[(len(approved) - 1) // 2]


def smallest(found: Sequence[Forgetting]) -> int:
    """Which of several the codes like best, and of equals which changes the weights least.

    Args:
        found: As ``search`` gives it.

    Returns:
        Its place.

    Raises:
        ValueError: If there are none.

    Taught in: book/unlearning/mnemonic-codes
    """
    return _approved(found)[0]


def _approved(found: Sequence[Forgetting]) -> list[int]:
    """Places of those with the best score, by the length of their change."""
    if not found:
        raise ValueError("nothing to choose from: give at least one step and one cap")
    best = max(one.score for one in found)
    places = [k for k, one in enumerate(found) if one.score == best]
    return sorted(places, key=lambda k: found[k].length)

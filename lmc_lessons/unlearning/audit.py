r"""Is it gone, or only not said any more? Ways to look for a class inside a network.

Errors and accuracies ask what a network says. The others ask what it still holds: whether its last
representation tells the class apart, how fast it learns the class again, and whether the samples it
was trained on can be told from new ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.datasets import Dataset
from lmc_lessons.evaluation import auroc, logits_in_chunks
from lmc_lessons.models import Params
from lmc_lessons.training import generator
from lmc_lessons.unlearning.mnemonic import OUTPUT, belongs

FEW = 82  # the random stream of the samples that are learned again


class Report(NamedTuple):
    """What a network says of both kinds of samples.

    Attributes:
        forget_error: $E_F$, share of samples of the forgotten classes that are misread, in [0, 1].
        retain_accuracy: $A_R$, share of the other samples that are read right, in [0, 1].
    """

    forget_error: float
    retain_accuracy: float

    @property
    def balance(self) -> float:
        """The mean of both, in [0, 1]."""
        return (self.forget_error + self.retain_accuracy) / 2


def report(
    model: nn.Module, params: Params, x: Tensor, y: Tensor, forgotten: Sequence[int]
) -> Report:
    """Error on the classes to forget, and accuracy on the others. Equation (eq-mnc-metrics).

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        forgotten: Classes to forget.

    Returns:
        Both numbers.

    Raises:
        ValueError: If one kind of samples is missing.

    Taught in: book/unlearning/mnemonic-codes
    """
    right = (_logits(model, params, x).argmax(-1) == y).double()
    chosen = _both_kinds(y, forgotten)
    return Report(float(1 - right[chosen].mean()), float(right[~chosen].mean()))


def features(model: nn.Module, params: Params, x: Tensor) -> Tensor:
    """What enters the last layer: the network with the identity in that layer's place.

    Args:
        model: Architecture whose last layer is called ``output``; put into eval mode.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).

    Returns:
        Shape (N, units).

    Raises:
        ValueError: If there is no such layer.

    Taught in: book/unlearning/mnemonic-codes
    """
    if f"{OUTPUT}weight" not in params:
        raise ValueError(f"a network needs a layer named output, got {list(params)}")
    weight = params[f"{OUTPUT}weight"]
    identity = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    handed_on = {f"{OUTPUT}weight": identity, f"{OUTPUT}bias": weight.new_zeros(weight.shape[1])}
    return _logits(model, {**params, **handed_on}, x)


def linear_probe(
    known: Tensor, labels: Tensor, new: Tensor, classes: int, *, ridge: float = 1e-2
) -> Tensor:
    r"""Classes that a linear readout of representations gives, fitted by least squares.

    $$W = \arg\min_W \tfrac1n \| \Phi W - Y \|^2 + \rho \|W\|^2$$

    with one-hot rows of $Y$ and representations scaled to mean 0 and variance 1 (a unit that never
    varies counts for nothing). It has one solution, so no seed enters. Equation (eq-mnc-probe).

    Args:
        known: Representations to fit on, shape (N, units).
        labels: Their classes, shape (N,).
        new: Representations to read, shape (M, units).
        classes: Number of classes.
        ridge: $\rho$, above 0.

    Returns:
        A class for each of the new ones, shape (M,).

    Raises:
        ValueError: If ``ridge`` is not above 0, or a representation is not finite.

    Taught in: book/unlearning/mnemonic-codes
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be above 0, got {ridge}")
    if not (torch.isfinite(known).all() and torch.isfinite(new).all()):
        raise ValueError("representations hold NaN or infinity")
    known, new = known.double(), new.double()
    mean, spread = known.mean(0), known.std(0)
    spread = torch.where(spread > 0, spread, torch.inf)
    scaled = [F.pad((part - mean) / spread, (0, 1), value=1.0) for part in (known, new)]
    wanted = F.one_hot(labels, classes).double()
    gram = scaled[0].mT @ scaled[0] / len(known)
    weights = torch.linalg.solve(
        gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device),
        scaled[0].mT @ wanted / len(known),
    )
    return (scaled[1] @ weights).argmax(-1)


def probe_recall(
    model: nn.Module, params: Params, data: Dataset, forgotten: Sequence[int]
) -> float:
    """How many test samples of the classes a linear probe of the last representation finds.

    The probe is fitted on the training samples of all classes, those to forget among them: it asks
    what the representation holds, not what the network says.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        data: The whole data set.
        forgotten: Classes to forget.

    Returns:
        Recall, in [0, 1].

    Taught in: book/unlearning/mnemonic-codes
    """
    known, new = (features(model, params, x) for x in (data.train_x, data.test_x))
    found = linear_probe(known, data.train_y, new, data.classes)
    chosen = _both_kinds(data.test_y, forgotten)
    return float((found == data.test_y)[chosen].double().mean())


def logit_reading(
    model: nn.Module, params: Params, x: Tensor, y: Tensor, forgotten: Sequence[int]
) -> float:
    """How well the logits of the classes still tell their samples from the others.

    The score is by how much the best logit of the classes leads the best of the rest; a mask shifts
    all scores alike, so it changes nothing here.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,).
        forgotten: Classes to forget.

    Returns:
        Area under the ROC curve: 1 if the class can be read off, 0.5 if not.

    Taught in: book/unlearning/mnemonic-codes
    """
    logits = _logits(model, params, x).double()
    which = belongs(torch.arange(logits.shape[1], device=y.device), forgotten)
    return auroc(logits[:, which].amax(1) - logits[:, ~which].amax(1), _both_kinds(y, forgotten))


def membership_by_loss(
    model: nn.Module, params: Params, data: Dataset, forgotten: Sequence[int]
) -> float:
    """How well a low loss tells training samples of the classes from new ones.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        data: Training samples are the members, test samples are not.
        forgotten: Classes to forget.

    Returns:
        Area under the ROC curve: 0.5 if members cannot be told.

    Taught in: book/unlearning/mnemonic-codes
    """
    losses = []
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        chosen = belongs(y, forgotten)
        logits = _logits(model, params, x[chosen]).double()
        losses.append(F.cross_entropy(logits, y[chosen], reduction="none"))
    return auroc(-torch.cat(losses), _first_of(losses))


def membership_by_entropy(
    model: nn.Module, params: Params, data: Dataset, forgotten: Sequence[int]
) -> float:
    """Share of the forgotten training samples that look like members by their entropy.

    The threshold on the entropy of a network's answer is the one that best tells remaining training
    samples from test samples of the same classes, with equal weight of both kinds.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        data: The whole data set.
        forgotten: Classes to forget.

    Returns:
        A share in [0, 1].

    Taught in: book/unlearning/mnemonic-codes
    """
    inside, outside = (
        _entropy(_logits(model, params, x[~belongs(y, forgotten)]))
        for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y))
    )
    asked = _entropy(_logits(model, params, data.train_x[belongs(data.train_y, forgotten)]))
    thresholds = torch.cat([inside, outside]).sort().values
    members = torch.searchsorted(inside.sort().values, thresholds, right=True) / len(inside)
    others = torch.searchsorted(outside.sort().values, thresholds, right=True) / len(outside)
    return float((asked <= thresholds[(members - others).argmax()]).double().mean())


def few_samples(data: Dataset, count: int, seed: int) -> Dataset:
    """A training part with so many samples of every class.

    Args:
        data: The data set.
        count: Samples per class.
        seed: Decides which.

    Returns:
        The data set with a small training part, class by class.

    Raises:
        ValueError: If a class has fewer samples.

    Taught in: book/unlearning/mnemonic-codes
    """
    stream, kept = generator(seed, FEW), []
    for k in range(data.classes):
        places = (data.train_y == k).nonzero().flatten()
        if count < 1 or len(places) < count:
            raise ValueError(f"class {k} has {len(places)} training samples, asked for {count}")
        kept.append(places[torch.randperm(len(places), generator=stream)[:count]])
    rows = torch.cat(kept)
    return dataclasses.replace(data, train_x=data.train_x[rows], train_y=data.train_y[rows])


def _entropy(logits: Tensor) -> Tensor:
    """Entropy of softmax answers, in nats, float64."""
    logs = logits.double().log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


def _first_of(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.full((len(p),), k == 0, device=p.device) for k, p in enumerate(parts)])


def _logits(model: nn.Module, params: Params, x: Tensor) -> Tensor:
    model.eval()
    return torch.cat(list(logits_in_chunks(model, params, x)))


def _both_kinds(y: Tensor, forgotten: Sequence[int]) -> Tensor:
    chosen = belongs(y, forgotten)
    if not chosen.any() or chosen.all():
        raise ValueError(f"samples of both kinds are needed to judge forgetting {forgotten}")
    return chosen

"""Measure a network, and say how sure the measurement is.

Everything here runs in chunks, so memory stays bounded whatever the size of the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from lmc_lessons.models import Params, predict


class Interval(NamedTuple):
    """A mean with its 95 % Student-t interval over independent repetitions."""

    mean: float
    low: float
    high: float


class Score(NamedTuple):
    """Means over a data set.

    Attributes:
        loss: Mean cross-entropy in nats.
        accuracy: Accuracy in [0, 1].
        margin: Mean logit margin; see ``logit_margins``.
    """

    loss: float
    accuracy: float
    margin: float


def logits_in_chunks(
    model: nn.Module, params: Params, x: Tensor, *, chunk: int = 2048
) -> Iterator[Tensor]:
    """Yield the logits of ``x`` chunk by chunk, in the model's present mode, without gradients.

    Args:
        model: Architecture; whether it is in train or eval mode is the caller's choice.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).
        chunk: Number of inputs per forward pass.

    Yields:
        Logits of shape (at most ``chunk``, classes).

    Taught in: book/start
    """
    with torch.no_grad():
        for part in x.split(chunk):
            yield predict(model, params, part)


def logit_margins(logits: Tensor, y: Tensor) -> Tensor:
    r"""By how much the true class leads, $z_y - \max_{j \ne y} z_j$.

    It is negative where the sample is misread, and 0 where the true class ties for the first place.

    Args:
        logits: Shape (..., classes), at least two classes.
        y: Labels of shape (...,), int64.

    Returns:
        One margin per sample, shape (...,), in the unit of the logits.

    Raises:
        ValueError: If there is only one class.

    Taught in: book/connectivity/loss-barriers
    """
    if logits.shape[-1] < 2:
        raise ValueError(f"a margin needs at least 2 classes, got logits {tuple(logits.shape)}")
    own = y.unsqueeze(-1)
    true = logits.gather(-1, own).squeeze(-1)
    return true - logits.scatter(-1, own, -torch.inf).amax(-1)


def score(model: nn.Module, params: Params, x: Tensor, y: Tensor, *, chunk: int = 2048) -> Score:
    """Mean cross-entropy, accuracy and logit margin of a network in eval mode.

    Args:
        model: Architecture; put into eval mode.
        params: Parameters and buffers by name.
        x: Inputs of shape (N, ...).
        y: Labels of shape (N,), int64.
        chunk: Number of inputs per forward pass.

    Returns:
        Loss in nats, accuracy in [0, 1], margin in the unit of the logits.

    Raises:
        ValueError: If there are no inputs, not one label per input, or only one class.

    Taught in: book/start
    """
    if len(x) == 0 or len(x) != len(y):
        raise ValueError(f"score needs one label per input, got {len(x)} inputs, {len(y)} labels")
    model.eval()
    loss, correct, margin = 0.0, 0, 0.0
    for logits, target in zip(
        logits_in_chunks(model, params, x, chunk=chunk), y.split(chunk), strict=True
    ):
        loss += F.cross_entropy(logits.float(), target, reduction="sum").item()
        correct += int((logits.argmax(-1) == target).sum())
        margin += logit_margins(logits.float(), target).sum().item()
    return Score(loss / len(x), correct / len(x), margin / len(x))


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: how often a positive scores higher than a negative (ties half).

    Args:
        scores: Anomaly scores of shape (N,), higher means more positive.
        positive: Whether each sample is positive, shape (N,), bool.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: If only one kind is present, or a score is not finite.
    """
    if not torch.isfinite(scores).all():
        raise ValueError("auroc needs finite scores, got NaN or infinity")
    if positive.all() or not positive.any():
        raise ValueError("auroc needs at least one positive and one negative sample")
    return float(roc_auc_score(positive.cpu().numpy(), scores.double().cpu().numpy()))


def t_interval(values: Sequence[float], *, level: float = 0.95) -> Interval:
    r"""Student-t interval of the mean, $\bar x \pm t_{n-1} s / \sqrt n$.

    Args:
        values: One number per independent repetition.
        level: Coverage in (0, 1).

    Returns:
        Mean and bounds; with a single value the bounds are infinite.

    Raises:
        ValueError: If there is no value, or one is not finite.

    Taught in: book/start
    """
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or not np.isfinite(sample).all():
        raise ValueError(f"t_interval needs at least one value, all finite, got {list(values)}")
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, -float("inf"), float("inf"))
    half = float(
        stats.t.ppf(0.5 + level / 2, sample.size - 1) * sample.std(ddof=1) / np.sqrt(sample.size)
    )
    return Interval(mean, mean - half, mean + half)


def paired_difference(treated: Sequence[float], control: Sequence[float]) -> Interval:
    """Interval of the mean difference of two measurements made on the same repetitions.

    Args:
        treated: One number per repetition.
        control: The control's number for the same repetitions, in the same order.

    Returns:
        Mean and 95 % bounds of ``treated - control``.

    Raises:
        ValueError: If the lengths differ.

    Taught in: book/start
    """
    if len(treated) != len(control):
        raise ValueError(
            f"pairs are needed: got {len(treated)} treated and {len(control)} control values"
        )
    return t_interval([a - b for a, b in zip(treated, control, strict=True)])

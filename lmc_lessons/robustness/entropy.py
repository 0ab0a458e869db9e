r"""The entropy penalty: a training loss that also asks for confident predictions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lmc_lessons.robustness.attacks import Predict, cross_entropy


def prediction_entropy(logits: Tensor) -> Tensor:
    r"""Entropy of the predicted probabilities, $H = -\sum_k p_k \ln p_k$.

    Args:
        logits: Shape (..., classes).

    Returns:
        Shape (...,), in nats, from 0 to the logarithm of the number of classes.

    Taught in: book/robustness/adversarial-examples
    """
    log_p = logits.log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1)


@dataclass(frozen=True)
class EntropyPenalty:
    r"""A loss for ``training.train``: cross-entropy plus $\lambda$ times the entropy.

    A positive weight makes predictions more confident.

    Attributes:
        weight: The factor lambda.

    Source:
        cubuk2018intriguing reduces the entropy in training; the exact form was not read.

    Taught in: book/robustness/adversarial-examples
    """

    weight: float

    def __call__(self, predict: Predict, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of each seed's batch: inputs (S, B, ...), labels (S, B) to (S,)."""
        logits = predict(x)
        return (cross_entropy(logits, y) + self.weight * prediction_entropy(logits)).mean(-1)

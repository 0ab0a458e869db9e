"""The entropy of predictions, and the penalty on it."""

from __future__ import annotations

import math

import torch
from scipy.stats import entropy

from lmc_lessons.datasets import load
from lmc_lessons.models import ModelConfig, build, predict_stacked
from lmc_lessons.robustness.entropy import EntropyPenalty, prediction_entropy
from lmc_lessons.training import TrainConfig, cross_entropy, train


def test_entropy_is_that_of_scipy() -> None:
    logits = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = entropy(logits.softmax(-1).numpy(), axis=-1)
    torch.testing.assert_close(prediction_entropy(logits), torch.from_numpy(expected))


def test_entropy_at_its_ends() -> None:
    assert math.isclose(float(prediction_entropy(torch.zeros(8))), math.log(8), rel_tol=1e-6)
    assert float(prediction_entropy(torch.tensor([1000.0, 0.0, 0.0]))) == 0


def test_the_penalty_adds_the_mean_entropy_per_seed() -> None:
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.arange(12).view(2, 6) % 4
    found = EntropyPenalty(0.7)(lambda z: z, x, y)
    plain = cross_entropy(lambda z: z, x, y)
    torch.testing.assert_close(found, plain + 0.7 * prediction_entropy(x).mean(1))
    torch.testing.assert_close(EntropyPenalty(0.0)(lambda z: z, x, y), plain)


def test_training_with_it_makes_predictions_more_confident() -> None:
    data = load("digits", limit=300)
    config = ModelConfig("mlp", (1, 8, 8), 10, width=16, depth=1)
    entropies = []
    for weight in (0.0, 2.0):
        recipe = TrainConfig(epochs=15)
        params = train(config, data, (0,), recipe, loss=EntropyPenalty(weight)).params
        logits = predict_stacked(build(config), params, data.test_x[None])
        entropies.append(float(prediction_entropy(logits).mean()))
    assert entropies[1] < 0.7 * entropies[0]

"""What a network says, what it holds, and what can be told from it, on cases counted by hand."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from lmc_lessons.datasets import Dataset
from lmc_lessons.models import ModelConfig, Params, build, initial, predict
from lmc_lessons.unlearning.audit import (
    Report,
    features,
    few_samples,
    linear_probe,
    logit_reading,
    membership_by_entropy,
    membership_by_loss,
    probe_recall,
    report,
)
from lmc_lessons.unlearning.baselines import mask_logits

READER = ModelConfig("mlp", (4,), 4, depth=0)  # its logits are its inputs
IDENTITY: Params = {"output.weight": torch.eye(4), "output.bias": torch.zeros(4)}


def drawn(seed: int, count: int = 60) -> tuple[Tensor, Tensor]:
    stream = torch.Generator().manual_seed(seed)
    y = torch.arange(count) % 4
    return 2.0 * F.one_hot(y, 4) + torch.randn(count, 4, generator=stream), y


@pytest.fixture
def data() -> Dataset:
    (x, y), (new_x, new_y) = drawn(0), drawn(1, 40)
    return Dataset("drawn", "test", x, y, new_x, new_y, tuple("abcd"))


def test_the_report_counts(data: Dataset) -> None:
    x = torch.tensor([[9.0, 0, 0, 0], [0, 9, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9]])
    found = report(build(READER), IDENTITY, x, torch.tensor([0, 1, 0, 2, 2]), (0,))
    assert found == pytest.approx(Report(0.5, 2 / 3))
    assert found.balance == pytest.approx((0.5 + 2 / 3) / 2)
    masked = report(build(READER), mask_logits(IDENTITY, (0,)), data.test_x, data.test_y, (0,))
    assert masked.forget_error == 1


@pytest.mark.parametrize(
    "config",
    [
        ModelConfig("mlp", (1, 8, 8), 10, width=7, depth=2, activation="sigmoid"),
        ModelConfig("cnn", (1, 8, 8), 10, width=2, norm="batch"),
        ModelConfig("resnet", (3, 8, 8), 10, width=1, depth=20, norm="batch"),
    ],
    ids=lambda config: config.architecture,
)
def test_features_are_what_the_last_layer_multiplies(config: ModelConfig) -> None:
    params, model = initial(config, 0), build(config).eval()
    x = torch.rand(5, *config.input_shape, generator=torch.Generator().manual_seed(0))
    found = features(model, params, x)
    logits = found @ params["output.weight"].mT + params["output.bias"]
    torch.testing.assert_close(logits, predict(model, params, x), rtol=1e-4, atol=1e-5)


def test_the_probe_is_ridge_regression(data: Dataset) -> None:
    known, new = data.train_x.double(), data.test_x.double()
    known = torch.cat([known, torch.full((len(known), 1), 3.0).double()], 1)  # never varies
    new = torch.cat([new, torch.full((len(new), 1), 5.0).double()], 1)
    found = linear_probe(known, data.train_y, new, 4, ridge=0.2)
    scaled = [(part - known.mean(0)) / known.std(0) for part in (known, new)]
    scaled = [F.pad(part[:, :4], (0, 1), value=1.0) for part in scaled]
    ridge = Ridge(alpha=0.2 * len(known), fit_intercept=False)
    ridge.fit(scaled[0].numpy(), F.one_hot(data.train_y, 4).numpy())
    assert found.tolist() == ridge.predict(scaled[1].numpy()).argmax(1).tolist()


def test_a_mask_hides_nothing_from_probe_and_logit(data: Dataset) -> None:
    masked, model = mask_logits(IDENTITY, (2,)), build(READER)
    plain = [
        probe_recall(model, IDENTITY, data, (2,)),
        logit_reading(model, IDENTITY, data.test_x, data.test_y, (2,)),
        membership_by_loss(model, IDENTITY, data, (2,)),
    ]
    hidden = [
        probe_recall(model, masked, data, (2,)),
        logit_reading(model, masked, data.test_x, data.test_y, (2,)),
    ]
    assert hidden == pytest.approx(plain[:2], abs=1e-9)


def test_reading_a_logit_is_an_area(data: Dataset) -> None:
    x, y = data.test_x, data.test_y
    own = torch.stack([x[:, 1], x[:, 3]], 1).amax(1) - torch.stack([x[:, 0], x[:, 2]], 1).amax(1)
    wanted = roc_auc_score(((y == 1) | (y == 3)).numpy(), own.numpy())
    assert logit_reading(build(READER), IDENTITY, x, y, (1, 3)) == pytest.approx(wanted, abs=1e-9)


def test_members_are_told_by_their_loss(data: Dataset) -> None:
    sure = dataclasses.replace(
        data, train_x=5 * data.train_x.clamp(min=0) + 9 * F.one_hot(data.train_y, 4)
    )
    assert membership_by_loss(build(READER), IDENTITY, sure, (1,)) == 1.0
    found = membership_by_loss(build(READER), IDENTITY, data, (1,))
    losses = [
        F.cross_entropy(x[y == 1], y[y == 1], reduction="none")
        for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y))
    ]
    wins = (losses[0][:, None] < losses[1][None]).double().mean()
    assert found == pytest.approx(float(wins))


def test_members_are_told_by_their_entropy() -> None:
    """Sure of remaining members and unsure of new samples: the threshold lies between."""
    y = torch.arange(40) % 4
    sure, unsure = 10.0 * F.one_hot(y, 4), 0.1 * F.one_hot(y, 4)
    noise = torch.rand(40, 4, generator=torch.Generator().manual_seed(0)) * 0.01
    train = torch.where((y == 1)[:, None] & (torch.arange(40) < 20)[:, None], unsure, sure) + noise
    data = Dataset("drawn", "test", train, y, unsure + noise, y, tuple("abcd"))
    assert membership_by_entropy(build(READER), IDENTITY, data, (1,)) == 0.5
    assert membership_by_entropy(build(READER), IDENTITY, data, (2,)) == 1.0


def test_a_few_samples_of_every_class(data: Dataset) -> None:
    few = few_samples(data, 3, seed=0)
    assert torch.bincount(few.train_y).tolist() == [3, 3, 3, 3]
    rows = {
        tuple(row.tolist()): int(label)
        for row, label in zip(data.train_x, data.train_y, strict=True)
    }
    assert all(
        rows[tuple(row.tolist())] == int(label)
        for row, label in zip(few.train_x, few.train_y, strict=True)
    )
    assert len({tuple(row.tolist()) for row in few.train_x}) == 12
    assert torch.equal(few.train_x, few_samples(data, 3, seed=0).train_x)
    assert not torch.equal(few.train_x, few_samples(data, 3, seed=1).train_x)


def test_bad_input(data: Dataset) -> None:
    model = build(READER)
    with pytest.raises(ValueError, match="samples of both kinds are needed"):
        report(model, IDENTITY, data.test_x, data.test_y, (7,))
    with pytest.raises(ValueError, match="a network needs a layer named output"):
        features(model, {"w": torch.eye(4)}, data.test_x)
    with pytest.raises(ValueError, match="ridge must be above 0, got 0"):
        linear_probe(data.train_x, data.train_y, data.test_x, 4, ridge=0)
    with pytest.raises(ValueError, match="representations hold NaN or infinity"):
        linear_probe(data.train_x * math.nan, data.train_y, data.test_x, 4)
    for count in (0, 16):
        with pytest.raises(ValueError, match=f"class 0 has 15 training samples, asked for {count}"):
            few_samples(data, count, seed=0)

"""The judges' classifier: its size, its features and the loss it learns from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tombola.models.classifier import (
    Classifier,
    ResNet18,
    classification_loss,
    rotated,
    shifted,
)


def macs(module: nn.Module, channels: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        module.to("meta")(torch.empty(1, channels, 32, 32))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("channels", "width"), [(1, 16), (3, 40)])
def test_the_classifier_stays_within_20_mmac_and_64_features(channels, width):
    assert Classifier(channels, 10, width).features(torch.zeros(2, channels, 32, 32)).shape[1] <= 64
    assert macs(Classifier(channels, 10, width), channels) <= 20_000_000


def test_the_grey_judge_takes_three_million_macs():
    # 16x16x25x16 + 16x16x9x16x32 + 8x8x9x32x64 + 4x4x9x64x64 + 64x10
    assert macs(Classifier(1, 10, 16), 1) == 102_400 + 1_179_648 + 1_179_648 + 589_824 + 640


def test_resnet18_is_the_published_one():
    with torch.device("meta"):
        model = ResNet18(3, 1000)
    # He et al. 2016, table 1: 1.8 GMAC at 224x224; 11,689,512 parameters in every library.
    assert sum(p.numel() for p in model.parameters()) == 11_689_512
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        model(torch.empty(1, 3, 224, 224))
    assert counter.get_total_flops() // 2 == 1_814_073_344
    assert ResNet18(1, 10, 2).features(torch.zeros(2, 1, 32, 32)).shape == (2, 16)


def test_logits_are_linear_in_the_features():
    model = Classifier(1, 10, 4).eval()
    inputs = torch.rand(3, 1, 32, 32)
    torch.testing.assert_close(model(inputs), model.head(model.features(inputs)))
    assert isinstance(model.head, nn.Linear)


def test_shifts_move_each_image_by_at_most_two_pixels():
    torch.manual_seed(1)
    dots = torch.full((64, 1, 9, 9), -1.0)
    dots[:, :, 4, 4] = 1
    places = shifted(dots)[:, 0].flatten(1).argmax(1)
    rows, columns = places // 9 - 4, places % 9 - 4
    assert set(rows.tolist()) == set(columns.tolist()) == {-2, -1, 0, 1, 2}


def test_shifts_repeat_the_border():
    torch.testing.assert_close(
        shifted(torch.full((4, 2, 5, 5), 0.3)), torch.full((4, 2, 5, 5), 0.3)
    )


def test_rotations_turn_each_image_by_its_own_quarter_turns():
    square = torch.arange(4.0).reshape(1, 1, 2, 2).repeat(4, 1, 1, 1)
    found = rotated(square, torch.arange(4)).reshape(4, 4).tolist()
    assert found == [[0, 1, 2, 3], [1, 3, 0, 2], [3, 2, 1, 0], [2, 0, 3, 1]]


def test_the_loss_without_labels_is_that_of_telling_rotations_apart():
    torch.manual_seed(0)
    model = Classifier(1, 4, 2)
    torch.manual_seed(5)
    loss = classification_loss(model, torch.rand(6, 1, 32, 32), None)
    loss.backward()
    assert loss.shape == ()
    assert model.head.weight.grad is not None
    assert loss.item() == pytest.approx(np.log(4), abs=1)


def test_shrunk_batches_have_the_border_of_padded_ones(monkeypatch):
    seen = []
    monkeypatch.setattr("tombola.models.classifier.shifted", lambda x: seen.append(x) or x)
    model = Classifier(1, 2, 2)
    for seed in range(12):
        torch.manual_seed(seed)
        classification_loss(model, torch.ones(2, 1, 32, 32), torch.zeros(2).long(), shrink=True)
    borders = {float(batch[0, 0, 0, 0]) for batch in seen}
    assert borders == {-1.0, 1.0}
    assert all(float(batch[0, 0, 16, 16]) == pytest.approx(1) for batch in seen)

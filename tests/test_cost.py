"""Multiply-accumulates against closed forms, on the meta device."""

from __future__ import annotations

import torch
from torch import nn

from tombola.sparsity.cost import count_macs

N = 2


def forward(layer: nn.Module, *shape: int) -> int:
    images = torch.empty(N, *shape, device="meta")
    return count_macs(lambda: layer(images))


def step(layer: nn.Module, *shape: int, images_learn: bool = True) -> int:
    images = torch.empty(N, *shape, device="meta", requires_grad=images_learn)
    return count_macs(lambda: layer(images).sum().backward())


def test_linear() -> None:
    with torch.device("meta"):
        layer = nn.Linear(7, 5)
    assert forward(layer, 7) == N * 7 * 5
    assert step(layer, 7) == 3 * N * 7 * 5
    assert step(layer, 7, images_learn=False) == 2 * N * 7 * 5


def test_convolution_counts_by_its_output() -> None:
    with torch.device("meta"):
        layer = nn.Conv2d(3, 8, 4, stride=2, padding=1)
    macs = N * 8 * 16 * 16 * 3 * 4 * 4
    assert forward(layer, 3, 32, 32) == macs
    assert step(layer, 3, 32, 32) == 3 * macs
    assert step(layer, 3, 32, 32, images_learn=False) == 2 * macs


def test_transposed_convolution_counts_by_its_input() -> None:
    with torch.device("meta"):
        layer = nn.ConvTranspose2d(8, 3, 4, stride=2, padding=1)
    macs = N * 8 * 16 * 16 * 3 * 4 * 4
    assert forward(layer, 8, 16, 16) == macs
    assert step(layer, 8, 16, 16) == 3 * macs
    assert step(layer, 8, 16, 16, images_learn=False) == 2 * macs


def test_a_stack_adds_up_and_normalisation_is_free() -> None:
    with torch.device("meta"):
        stack = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)
        )
    macs = N * (4 * 6 * 6 * 9 + 144 * 2)
    assert forward(stack, 1, 8, 8) == macs


def test_real_tensors_count_the_same_and_are_computed() -> None:
    layer = nn.Linear(7, 5)
    seen: list[torch.Size] = []
    assert count_macs(lambda: seen.append(layer(torch.zeros(N, 7)).shape)) == N * 7 * 5
    assert seen == [torch.Size([N, 5])]
    assert count_macs(lambda: None) == 0

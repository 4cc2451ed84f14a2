"""Is every batch a pure function of (seed, number), and every value where it should be?"""

from __future__ import annotations

import pytest
import torch

from tombola.config.runtime import rng
from tombola.data.batches import Batches, normalise, to_uint8
from tombola.errors import ConfigError, DataError


def numbered(n: int) -> torch.Tensor:
    """Images of one pixel whose value is their number."""
    return torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1)


def test_normalise_ends_and_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    floats = normalise(every)
    assert floats.dtype == torch.float32
    assert floats[0] == -1.0
    assert floats[255] == 1.0
    assert floats[51] == torch.tensor(-0.6)
    assert torch.equal(to_uint8(floats), every)


def test_to_uint8_rounds_and_clamps() -> None:
    # (x + 1) * 127.5: 0.498 and 0.502 grey levels above 100, and values outside [-1, 1].
    below, above = 100.498 / 127.5 - 1, 100.502 / 127.5 - 1
    values = torch.tensor([below, above, -1.7, 1.7])
    assert to_uint8(values).tolist() == [100, 101, 0, 255]


def test_stream_is_the_permutations_end_to_end() -> None:
    batches = Batches(numbered(10), 4, seed=3)
    drawn = torch.cat([batches.indices(i) for i in range(5)])
    first, second = (torch.randperm(10, generator=rng(3, "order", e)) for e in range(2))
    assert torch.equal(drawn, torch.cat([first, second]))
    assert sorted(first.tolist()) == list(range(10))


def test_batch_does_not_depend_on_history() -> None:
    straight = Batches(numbered(10), 4, seed=0)
    stream = [straight.batch(i) for i in range(12)]
    jumping = Batches(numbered(10), 4, seed=0)
    for i in (11, 2, 7, 0, 2):
        assert torch.equal(jumping.batch(i), stream[i])
    assert len(jumping._orders) <= 2


def test_batch_is_the_normalised_images_of_its_indices() -> None:
    images = numbered(10)
    batches = Batches(images, 4, seed=0)
    batch = batches.batch(2)
    assert batch.shape == (4, 1, 1, 1)
    assert torch.equal(batch, normalise(images[batches.indices(2)]))


def test_seeds_differ() -> None:
    one, two = (Batches(numbered(100), 50, seed=s).indices(0) for s in (0, 1))
    assert not torch.equal(one, two)


def test_fewer_images_than_a_batch() -> None:
    batches = Batches(numbered(3), 8, seed=1)
    drawn = torch.cat([batches.indices(i) for i in range(3)])
    orders = [torch.randperm(3, generator=rng(1, "order", e)) for e in range(8)]
    assert torch.equal(drawn, torch.cat(orders))


@pytest.mark.parametrize(
    ("n", "size", "draws", "steps"),
    [(1200, 64, 1, 19), (128, 64, 1, 2), (129, 64, 1, 3), (128, 64, 2, 1), (3, 64, 5, 1)],
)
def test_steps_per_epoch_rounds_up(n: int, size: int, draws: int, steps: int) -> None:
    images = torch.zeros((n, 1, 1, 1), dtype=torch.uint8)
    assert Batches(images, size, seed=0).steps_per_epoch(draws) == steps


def test_bad_input() -> None:
    with pytest.raises(DataError, match=r"uint8 images \(N, C, H, W\), not torch.float32"):
        Batches(torch.zeros(4, 1, 2, 2), 2, seed=0)
    with pytest.raises(DataError, match="at least one image"):
        Batches(numbered(0), 2, seed=0)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        Batches(numbered(4), 0, seed=0)

"""Any damage to a file, by chance or in between: it loads equal or is refused, nothing else."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tombola.errors import TicketError
from tombola.store import container
from tombola.tickets import ticket as tickets
from tombola.tickets.ticket import Ticket


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "ticket.safetensors"


def small() -> Ticket:
    mask = torch.rand(4, 9, generator=torch.Generator().manual_seed(2)) < 0.5
    weights = {"g.w": torch.ones(4, 9), "g.b": torch.arange(4.0), "g.n": torch.tensor(3)}
    return Ticket({"g.w": mask}, weights, {"task": "toy", "seed": 1, "config": {"steps": 10}})


def test_a_flipped_bit_anywhere_in_the_data_is_found(target):
    tickets.save_ticket(target, small())
    whole = target.read_bytes()
    begin = min(entry.begin for entry in container.read_header(target).entries.values())
    for position in range(begin * 8, len(whole) * 8, 5):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        target.write_bytes(damaged)
        with pytest.raises(TicketError, match=r"checksum does not agree|mask\.g\.w: "):
            container.verify_file(target)


def same(a: Ticket, b: Ticket) -> bool:
    def flat(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {k: (v.dtype, v.shape, v.numpy().tobytes()) for k, v in tensors.items()}

    return (
        flat(a.masks) == flat(b.masks)
        and flat(a.weights) == flat(b.weights)
        and a.manifest == b.manifest
    )


def test_random_damage_loads_equal_or_raises_ticket_error(target):
    tickets.save_ticket(target, small())
    whole, original, draw = target.read_bytes(), tickets.load_ticket(target), random.Random(0)
    outcomes = {"equal": 0, "refused": 0}
    for trial in range(300):
        damaged = bytearray(whole)
        if trial % 5 == 4:
            damaged = damaged[: draw.randrange(len(whole))]
        else:
            for _ in range(draw.choice([1, 1, 2, 5])):
                # Half of the flips in the first bytes, where the structure is.
                position = draw.randrange(draw.choice([16, len(whole)]))
                damaged[position] ^= 1 << draw.randrange(8)
        target.write_bytes(damaged)
        try:
            loaded = tickets.load(target)
        except TicketError:
            outcomes["refused"] += 1
        else:
            assert isinstance(loaded, Ticket)
            assert same(loaded, original), trial
            outcomes["equal"] += 1
    assert outcomes["refused"] > 250


def test_a_file_that_shrinks_between_check_and_read_is_refused(target):
    # Larger than the reader's buffer, which would otherwise still hold what is gone.
    tickets.save_ticket(target, Ticket({}, {"n.b": torch.ones(50_000)}))
    with container.open_file(target) as source:
        os.truncate(target, target.stat().st_size - 4)
        with pytest.raises(TicketError, match=r"weight\.n\.b: changed while it was read"):
            source.check()
        with pytest.raises(TicketError, match=r"weight\.n\.b: changed while it was read"):
            source.read_into("weight.n.b", memoryview(bytearray(200_000)))

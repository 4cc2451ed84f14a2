"""How large is a ticket on disk? At 99% sparsity a fraction of what it was made from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tombola.config.registry import TASKS
from tombola.config.runtime import Runtime, rng
from tombola.data.batches import Batches
from tombola.sparsity.masks import erk, prunable
from tombola.sparsity.select import top
from tombola.tickets.ticket import Ticket, load_ticket, save_model, save_ticket
from tombola.training.checkpoint import save_state
from tombola.training.trainer import Settings, Trainer, named_state

DOCUMENT = Path(__file__).parents[1] / "docs" / "sharing.md"
GREY = {"linear-ae"}
"""Tasks whose native images have one channel; the others are measured in colour."""


def paper_size_trainer(name):
    """A task in paper size after a step on a batch of two: weights, buffers, optimizer moments."""
    kind = TASKS.load(name)
    options = {k: v for k, v in kind.presets["paper"].items() if k not in ("epochs", "steps")}
    task = kind(**{**options, "batch_size": 2})
    shape = task.image_shape(1 if name in GREY else 3)
    images = torch.randint(0, 256, (4, *shape), generator=rng(0, "images"), dtype=torch.uint8)
    settings = Settings(runtime=Runtime(device=torch.device("cpu")), seed=0, total_steps=10)
    trainer = Trainer(task, task.networks(shape), Batches(images, 2, 0), settings)
    trainer.advance()
    return trainer


def told():
    """Task -> the numbers of its row in docs/sharing.md."""
    rows = re.findall(
        r"^\| `([\w-]+)` \| ([\d,]+) \|([^|]+(?:\|[^|\n]+)+)\|$", DOCUMENT.read_text(), re.M
    )
    return {
        name: [float(cell.strip(" %")) for cell in (size.replace(",", ""), *rest.split("|"))]
        for name, size, rest in rows
    }


def test_every_task_is_in_the_table():
    assert list(told()) == sorted(TASKS.names())


@pytest.mark.parametrize("name", sorted(TASKS.names()))
def test_at_99_percent_a_ticket_is_as_small_as_documented(name, tmp_path):
    """Of dcgan at most 1.5% of the dense training's checkpoint, and 5% of the dense weights."""
    trainer = paper_size_trainer(name)
    pool = prunable(trainer.networks, ("all",), ())
    weights = named_state(trainer.networks)
    total = sum(weight.numel() for weight in pool.values())
    keep = round(total * 0.01)
    save_state(tmp_path / "checkpoint", trainer)
    save_model(tmp_path / "dense", weights, {})
    checkpoint, dense = ((tmp_path / name).stat().st_size for name in ("checkpoint", "dense"))
    by_size = top({name: weight.detach().abs() for name, weight in pool.items()}, keep)
    shapes = {name: tuple(weight.shape) for name, weight in pool.items()}
    for masks in (by_size, erk(shapes, keep, 0)) if name == "dcgan" else (by_size,):
        assert sum(int(mask.sum()) for mask in masks.values()) == keep
        path = tmp_path / "ticket"
        save_ticket(path, Ticket(masks, weights))
        size = path.stat().st_size
        if name == "dcgan":
            assert size <= 0.015 * checkpoint
            assert size <= 0.05 * dense
        # One bit a prunable weight, the kept values, all that is never pruned, and the header.
        full = {k: v for k, v in weights.items() if k not in masks}
        bits = sum(-(-mask.numel() // 8) for mask in masks.values())
        uv = sum(4 * v.numel() for k, v in full.items() if k.endswith(("weight_u", "weight_v")))
        rest = sum(v.numel() * v.element_size() for v in full.values()) - uv
        header = size - bits - 4 * keep - rest - uv
        # Names, shapes and offsets, of mask and weight: no tensor takes more than 250 bytes.
        assert 0 < header < 1000 + 250 * len(weights)
        assert load_ticket(path).masks.keys() == masks.keys()
        shares = [100 * part / size for part in (bits, 4 * keep, rest, uv, header)]
        measured = [total, 100 * size / checkpoint, 100 * size / dense, *shares]
        wanted = told()[name]
        assert measured[0] == wanted[0]
        assert measured[1:3] == pytest.approx(wanted[1:3], abs=0.006)
        assert measured[3:] == pytest.approx(wanted[3:], abs=0.06)

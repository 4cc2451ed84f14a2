"""How large is a ticket on disk? At 99% sparsity a fraction of what it was made from."""

from __future__ import annotations

import torch

from tombola.data.batches import Batches
from tombola.runtime import Runtime, rng
from tombola.sparsity.masks import erk, prunable
from tombola.sparsity.select import top
from tombola.sparsity.tickets import Ticket, load_ticket, save_model, save_ticket
from tombola.tasks.adversarial import DCGAN
from tombola.training.checkpoint import save_state
from tombola.training.trainer import Settings, Trainer, named_state


def paper_size_trainer():
    """DCGAN in paper size after a step on a batch of two: weights, buffers and Adam's moments."""
    options = {k: v for k, v in DCGAN.presets["paper"].items() if k not in ("epochs", "steps")}
    task = DCGAN(**{**options, "batch_size": 2})
    shape = task.image_shape(3)
    images = torch.randint(0, 256, (4, *shape), generator=rng(0, "images"), dtype=torch.uint8)
    settings = Settings(runtime=Runtime(device=torch.device("cpu")), seed=0, total_steps=10)
    trainer = Trainer(task, task.networks(shape), Batches(images, 2, 0), settings)
    trainer.advance()
    return trainer


def test_at_99_percent_a_ticket_is_small(tmp_path):
    """At most 1.5% of the dense training's checkpoint, and 5% of the dense weights."""
    trainer = paper_size_trainer()
    pool = prunable(trainer.networks, ("all",), ())
    weights = named_state(trainer.networks)
    total = sum(weight.numel() for weight in pool.values())
    keep = round(total * 0.01)
    save_state(tmp_path / "checkpoint", trainer)
    save_model(tmp_path / "dense", weights, {})
    checkpoint, dense = ((tmp_path / name).stat().st_size for name in ("checkpoint", "dense"))
    by_size = top({name: weight.detach().abs() for name, weight in pool.items()}, keep)
    shapes = {name: tuple(weight.shape) for name, weight in pool.items()}
    for masks in (by_size, erk(shapes, keep, 0)):
        assert sum(int(mask.sum()) for mask in masks.values()) == keep
        path = tmp_path / "ticket"
        save_ticket(path, Ticket(masks, weights))
        size = path.stat().st_size
        assert size <= 0.015 * checkpoint
        assert size <= 0.05 * dense
        # One bit a prunable weight, the kept values, all that is never pruned, and the header.
        full = {k: v for k, v in weights.items() if k not in masks}
        bits = sum(-(-mask.numel() // 8) for mask in masks.values())
        values = 4 * keep + sum(v.numel() * v.element_size() for v in full.values())
        assert 0 < size - bits - values < 30_000
        assert load_ticket(path).masks.keys() == masks.keys()
    assert total > 6_000_000

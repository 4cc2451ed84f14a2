"""A pool of workers that is no pool: the runs of a graph one after another, in this process."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from tombola.engine import local_pool
from tombola.engine.stages import Context, execute
from tombola.runs.store import Store


def run_here(work: local_pool.Work) -> list[str]:
    """What ``local_pool.run`` does, without starting Python and torch again for every search."""
    fields = dict(work.context)
    fields["store"] = Store(Path(fields["store"]))
    fields["keep_steps"] = tuple(fields["keep_steps"])
    context = Context(**fields, progress=work.progress)
    todo = work.graph.missing(work.store.finished())
    for node in todo:
        execute(node, context)
        work.finished(node)
    return [node.hash for node in todo]


def use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches of this test run here; see ``Restored`` for what they change."""
    monkeypatch.setattr(local_pool, "run", run_here)


class Restored:
    """Within the block the global generators may be changed."""

    def __enter__(self) -> None:
        self.states = torch.get_rng_state(), np.random.get_state(), random.getstate()

    def __exit__(self, *details: object) -> None:
        torch.set_rng_state(self.states[0])
        np.random.set_state(self.states[1])
        random.setstate(self.states[2])

"""What does ``tombola.attach`` cost in somebody's own training loop?

A DCGAN's loop in plain PyTorch, as PyTorch's tutorial writes it, with the networks of ``dcgan`` in
the paper's size: attached within a round of ``tombola run``, with the masks of both networks held,
against the same loop with the same start weights and the line doing nothing.
"""

from __future__ import annotations

import atexit
import os
import signal
import tempfile
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import settings
import tombola
from measure import Row, Section, Spread, children, compare, row, threads, timed
from tombola.data.batches import Batches
from tombola.loops import attaching, orders
from tombola.loops.book import TICKET
from tombola.tickets.ticket import Ticket, save_ticket
from tombola.training.trainer import named_state

IMAGES = {"full": 10_000, "toy": 64}
TARGET = 1.03


class Loop:
    """Networks, optimizers and one step of the tutorial's loop; ``side``: attached or alone."""

    def __init__(self, setting: Mapping[str, Any]) -> None:
        torch.set_num_threads(1)
        size = setting["size"]
        task = settings.task("dcgan", size)
        self.networks = settings.networks(task, "dcgan")
        self.latent, self.batch, self.count = task.latent, task.batch_size, 0
        self.data = Batches(settings.images("dcgan", IMAGES[size]), self.batch, 0)
        ticket = Ticket(settings.masks(self.networks), named_state(self.networks))
        ticket.start(self.networks)
        if setting["own loop"] == "attached":
            part = Path(setting["part"])
            save_ticket(part / TICKET, ticket)
            order = orders.Order(
                arm="ticket", seed=0, round=1, start="ticket", prune=("all",), rewind_steps=0
            )
            orders.write_order(part, order)
            os.environ[orders.VARIABLE] = str(part)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # alone, the line says that it does nothing
            tombola.attach(self.networks)
        os.environ.pop(orders.VARIABLE, None)
        self.made, self.judge = self.networks["generator"], self.networks["discriminator"]
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=2e-4, betas=(0.5, 0.999))
            for network in (self.judge, self.made)
        ]
        self.criterion = nn.BCEWithLogitsLoss()

    def step(self) -> None:
        """The discriminator's turn, then the generator's on the same fakes."""
        real = self.data.batch(self.count)
        self.count += 1
        ones, zeros = torch.ones(len(real)), torch.zeros(len(real))
        self.judge.zero_grad()
        self.criterion(self.judge(real).view(-1), ones).backward()
        fake = self.made(torch.randn(len(real), self.latent))
        self.criterion(self.judge(fake.detach()).view(-1), zeros).backward()
        self.optimizers[0].step()
        self.made.zero_grad()
        self.criterion(self.judge(fake).view(-1), ones).backward()
        self.optimizers[1].step()


def own_work(size: str, repeats: int) -> Row:
    """What the line does in a step, and once a minute, as a share of the time, in this process."""
    with tempfile.TemporaryDirectory() as part:
        loop = Loop({"own loop": "attached", "size": size, "part": part})
        attached, attaching._active = attaching._active, None
        assert attached is not None
        work = attached._work
        assert work is not None
        step, hold, audit, save = (
            timed(each, repeats)().cpu / repeats
            for each in (loop.step, work.clock.hold, work.clock.audit, work.save)
        )
        atexit.unregister(work.close)
        signal.signal(signal.SIGTERM, work._before)
        work.clock.close()
    own = hold + step * (audit + save) / attaching.SAVE_SECONDS
    share = own / step
    return Row(
        label="its own work: masks each step, audit and state each minute",
        value=Spread(share, share, share),
        target=TARGET - 1,
        seconds=(own, step),
    )


def measured(size: str, blocks: int) -> Section:
    """A step of the loop, attached and alone, one thread each."""
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        sides = [
            ({"own loop": side, "size": size, "part": part}, threads(1))
            for side, part in (("attached", first), ("alone", ""), ("attached", second))
        ]
        with children("bench_attach.py", *sides) as (ours, baseline, again):
            found = compare(
                partial(ours.run, 1), partial(baseline.run, 1), blocks, partial(again.run, 1)
            )
    return Section(
        title="tombola.attach in somebody's own loop",
        rows=[
            row("a dcgan step, fp32, 1 thread", found, TARGET),
            own_work(size, 5 if size == "full" else 1),
        ],
        notes=[
            "The loop of PyTorch's tutorial (one batch of fakes for both turns, default Adam), "
            "6,560,448 weights, batches of 128, masks of level 10 (89.3% cut) on both networks; "
            f"both sides begin at the masked weights. {blocks} blocks of one step a side, each "
            "side a process of its own, the attached one twice. The second row is of processor "
            "time, a part at a time: chance differences of whole steps are larger than the cost."
        ],
    )


if __name__ == "__main__":
    import json
    import sys

    if sys.argv[1:]:
        from measure import serve

        # As in the other benchmarks: no processor's slowness with denormal numbers shall count.
        torch.set_flush_denormal(True)
        serve(Loop(json.loads(sys.argv[1])).step)
    else:
        from run import main

        main(["attach"])

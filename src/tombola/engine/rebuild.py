"""Are a ticket's start weights what its manifest says they are? Train them again, and compare.

The dense training of the ticket's seed is carried out anew up to the rewind step, by the code that
``tombola find`` trains with. The masks are not found again: that would be the whole search.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tombola.config.sections import Config
from tombola.config.surroundings import versions
from tombola.config.values import split_networks
from tombola.data.checks import check_source
from tombola.engine.context import Context
from tombola.engine.progress import Progress
from tombola.engine.request import train_request
from tombola.engine.search import prepare
from tombola.engine.starts import trainer_of
from tombola.engine.ticket_config import rebuild_config
from tombola.errors import DivergedError, TicketError, escape
from tombola.plan.setting import Setting
from tombola.sparsity.compact import Channels
from tombola.store.container import read_header
from tombola.store.runs import Store
from tombola.tickets.ticket import Ticket, Weights, load_ticket
from tombola.training.scoring import inputs_of
from tombola.training.trainer import Trainer

MOST_OF_THE_WAY = 0.25
"""Elsewhere a rebuilt state may be this share of the way that it was trained off (root mean
squares). Another processor's rounding took a VAE 1% of the way off in 10 steps and 5% in 50, a
DCGAN 7% and 28% (MNIST, batches of 32, ATEN_CPU_CAPABILITY=default); another seed takes it the
whole way. So a long training can only be confirmed where it was done."""
ROUNDING = 1e-6
"""And weights that were not trained at all this share of their own size."""


@dataclass(frozen=True)
class Compared:
    """Two states of the same tensors, value by value."""

    tensors: int
    values: int
    unequal: int
    """Values whose bits differ."""
    largest: float
    """Largest absolute difference; infinite where only one of two values is finite."""
    where: str
    """The tensor that has it."""
    off: float
    """Root mean square of the differences of all values of floating type."""
    way: float
    """The same from step 0 to the rebuilt state: how far training has moved them."""
    size: float
    """Root mean square of the rebuilt values themselves."""

    @property
    def allowed(self) -> float:
        """What ``off`` may be where versions or the processor are not those of the ticket.

        Rounding differs there from the first step on and grows as the training goes, but in its
        first steps it stays far below the way that training itself goes.
        """
        return MOST_OF_THE_WAY * self.way + ROUNDING * self.size


def rebuild(
    path: str | Path,
    task: str | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    progress: Progress | None = None,
) -> str:
    """Train a ticket's start weights again and compare; returns what was found, as lines of text.

    ``task`` and ``data`` say which code and images the manifest means where it names none that is
    built in. TicketError if the bits differ although versions and processor are the ticket's own,
    or elsewhere by more than a few steps of rounding explain; ConfigError if the task or data must
    be named.
    """
    config = rebuild_config(read_header(path), task, data)
    ticket = load_ticket(path)
    setting, context = _setting(Path(path), config, data_dir)
    trainer, first, steps = _trained(setting, context, ticket, progress or Progress())
    masks = ticket.held(trainer.networks)
    now = Ticket(masks, trainer.judged_weights(averaged=False)).weights
    found = compare(Ticket(masks, ticket.weights).weights, now, Ticket(masks, first).weights)
    differing = surroundings(ticket.manifest, setting.device)
    precision, threads = setting.config.train.precision[0], setting.threads
    lines = [
        f"rebuilt: {steps} steps of dense training, seed {ticket.manifest['seed']}, {precision} on "
        f"{setting.device}, threads {threads}; kept weights, all other parameters and buffers "
        "were compared; the masks were not found again: that would be the whole search"
    ]
    if not found.unequal:
        lines.append(f"equal bits: {found.values:,} values in {found.tensors} tensors")
    else:
        lines.append(_verdict(escape(path, 400), found, differing))
    return "\n".join(lines)


def _verdict(path: str, found: Compared, differing: list[str]) -> str:
    """A line on bits that differ; TicketError where they must not, or not by so much."""
    facts = (
        f"{found.unequal:,} of {found.values:,} values differ, by at most {found.largest:.3g} "
        f"({escape(found.where)}); root mean square {found.off:.3g}, where training has moved them "
        f"by {found.way:.3g}"
    )
    if not differing:
        raise TicketError(
            f"{path}: its start weights are not those of its manifest: {facts}; versions, "
            "processor and threads are the same, so the bits must be; ask where the file is from"
        )
    if not found.off <= found.allowed:
        raise TicketError(
            f"{path}: its start weights are not confirmed: {facts}, and {found.allowed:.3g} is "
            f"taken for rounding, as {'; '.join(differing)}; in a long training rounding can grow "
            "to more: rebuild it where versions, processor and threads are the same"
        )
    return f"equal but for rounding: {facts} (allowed: {found.allowed:.3g}), as {differing[0]}"


def _setting(path: Path, config: Config, folder: Path | None) -> tuple[Setting, Context]:
    """What a ticket's training comes down to on this machine, and where its parts are."""
    check_source(config.data.name, folder)
    with tempfile.TemporaryDirectory() as nowhere:
        request = train_request(config, folder, Path(nowhere) / "out", "", path)
        setting, _ = prepare(request)
    context = Context(
        store=Store(Path()),
        task=config.task.name,
        data=config.data.name,
        data_dir=str(folder) if folder else None,
        skip_broken=config.data.skip_broken,
        white=config.data.white,
        device=config.run.device,
    )
    return setting, context


def _trained(
    setting: Setting, context: Context, ticket: Ticket, progress: Progress
) -> tuple[Trainer, Weights, int]:
    """(the trainer at the rewind step, its weights at step 0, how many steps it took)."""
    config = {
        **setting.base(setting.config.train.precision[0]),
        "start": "dense",
        "seed": ticket.manifest["seed"],
    }
    steps = ticket.manifest["rewind_step"]
    # As the workers of a search compute; what comes after is the caller's own arithmetic again.
    torch.set_flush_denormal(True)
    try:
        trainer = trainer_of(config, context, None)
        _press(trainer, setting, ticket)
        first = {k: v.clone() for k, v in trainer.judged_weights(averaged=False).items()}
        progress.begin(steps, int(steps > 0))
        while trainer.step < steps:
            trainer.advance()
            progress.advance(1)
        trainer.check()
    except DivergedError as error:
        raise TicketError(
            f"the training of the ticket's manifest diverged before its rewind step ({error}); "
            "ask where the file is from"
        ) from error
    finally:
        progress.end()
        torch.set_flush_denormal(False)
    return trainer, first, steps


def _press(trainer: Trainer, setting: Setting, ticket: Ticket) -> None:
    """The L1 pressure on normalisation scales under which early-bird tickets may be sought."""
    prune = setting.config.prune
    if ticket.manifest["granularity"] == "channel" and prune.scale_l1:
        inputs = inputs_of(trainer.task, trainer.networks, setting.shape)
        channels = Channels.of(trainer.networks, inputs, split_networks(prune.networks[0]))
        trainer.press({name for g in channels.groups for name in g.scales}, prune.scale_l1)


def compare(stored: Weights, now: Weights, first: Weights) -> Compared:
    """Two states by name, ``stored`` and ``now``, and the one at step 0; TicketError by name.

    All have the same names and shapes. Whole numbers, such as counts of batches, must be equal
    wherever they were made.
    """
    unequal = values = 0
    largest, where = 0.0, ""
    squares = [0.0, 0.0, 0.0]
    for name, here in now.items():
        there = stored[name]
        if there.dtype != here.dtype:
            raise TicketError(
                f"tensor {escape(name)} is {there.dtype} in the file and {here.dtype} when it is "
                "trained; ask where the file is from"
            )
        values += here.numel()
        unequal += int((_bits(there) != _bits(here)).sum())
        if not here.is_floating_point():
            if not torch.equal(there, here):
                raise TicketError(
                    f"tensor {escape(name)} is {escape(there.tolist(), 40)} in the file and "
                    f"{escape(here.tolist(), 40)} when it is trained; ask where the file is from"
                )
            continue
        a, b, begin = there.double(), here.double(), first[name].double()
        off = torch.where(_bits(there) == _bits(here), 0.0, (a - b).abs()).nan_to_num(nan=torch.inf)
        top = float(off.max()) if off.numel() else 0.0
        if top > largest:
            largest, where = top, name
        for index, each in enumerate((off, b - begin, b)):
            squares[index] += float(each.square().sum())
    floats = sum(v.numel() for v in now.values() if v.is_floating_point())
    off_by, way, size = ((square / max(1, floats)) ** 0.5 for square in squares)
    return Compared(len(now), values, unequal, largest, where, off_by, way, size)


def _bits(tensor: Tensor) -> Tensor:
    """The values' bits as whole numbers of their width, so that NaN equals itself."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(kinds[tensor.element_size()])


def surroundings(manifest: Mapping[str, Any], device: str) -> list[str]:
    """What differs, of versions and processor, between a ticket's making and this process."""
    made, here = manifest.get("created_with"), versions()
    stated = made if isinstance(made, Mapping) else {}
    found = [
        f"{name} was {escape(stated.get(name, 'not recorded'))} and is {here[name]}"
        for name in ("machine", "torch", "tombola", "numpy", "python")
        if stated.get(name) != here[name]
    ]
    if device != "cpu":
        found.append(f"sums on {device} have no fixed order")
    return found

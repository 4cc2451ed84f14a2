"""What does every stage need besides its node: where things are, and how a run becomes whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tombola.config.registry import TASKS, code_sha256, is_file_spec, split_file_spec
from tombola.config.runtime import Runtime
from tombola.data.sources import load_images
from tombola.data.splits import Images
from tombola.errors import ConfigError, DataError
from tombola.store.graph import Node
from tombola.store.runs import Store
from tombola.tasks.base import Task


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a worker needs besides a node and does not change a result: where things are."""

    store: Store
    task: str
    data: str
    data_dir: str | None
    skip_broken: bool
    device: str
    white: int = 0
    keep_steps: tuple[int, ...] = ()
    """Steps whose whole state the dense run keeps: the rewind points known at the time."""
    moments: bool = True
    """Whether these states keep what the optimizers know, which only tickets with
    ``optimizer_at_rewind=restore`` take up."""
    course: bool = True
    """Whether a training keeps the states by which its course is judged, all along the way."""
    tasks: Mapping[str, str] | None = None
    """Name in a node's config -> spec of each task, where a graph has runs of several."""
    inputs: Mapping[str, str] | None = None
    """SHA-256 -> path of files that import runs take in."""
    earlier: Mapping[str, str] = field(default_factory=dict)
    """Judgement -> the one of the same training that has what its states, which are gone, had."""
    progress: Callable[[int], None] = lambda steps: None
    """Told how many steps were done since it was last told."""
    expect: Callable[[int], None] = lambda steps: None
    """Told by how many steps a run is longer than the plan could know; below 0: shorter."""
    ending: Callable[[], bool] = lambda: False
    """Whether the process was asked to end: what can be taken up again is saved and left."""

    def thin_of(self, parents: Mapping[str, str]) -> dict[str, Any]:
        """How the networks of a training were made thinner, by its parents; empty if not."""
        return self.store.record(parents["thin"]) if "thin" in parents else {}

    def images(self, data: Mapping[str, Any]) -> Images:
        """The data of a node's config at the shape of the task, loaded once a process.

        DataError if they are not the images that the run is named after: a source of one's own may
        list them in another order in every process, and then train on what another judges by.
        """
        channels, height, width = data["shape"]
        shape = (channels, height, width)
        images = _images(self.data, shape, self.data_dir, self.skip_broken, self.white)
        if images.sha256 != data["sha256"]:
            raise DataError(
                f"data source {self.data} has other images now than when the search began "
                f"({images.sha256[:12]}..., not {data['sha256'][:12]}...); let it give the same "
                "ones in the same order whenever asked, and run the command again"
            )
        return images

    def runtime(self, config: Mapping[str, Any]) -> Runtime:
        """The runtime that a node's config asks for, on this machine's device."""
        return Runtime.open(self.device, config.get("precision", "fp32"), config["threads"])

    def make_task(self, config: Mapping[str, Any]) -> Task:
        """The task of a node's config; ConfigError if its file is not what it was any more."""
        spec = (self.tasks or {}).get(config["task"]["name"], self.task)
        unchanged(spec, config["task"])
        task: Task = TASKS.load(spec)(**config["task"]["options"])
        return task


def open_context(
    fields: Mapping[str, Any],
    progress: Callable[[int], None],
    expect: Callable[[int], None],
    ending: Callable[[], bool] = lambda: False,
) -> Context:
    """The context of plain fields, as they come from another process."""
    fields = {
        **fields,
        "store": Store(Path(fields["store"])),
        "keep_steps": tuple(fields["keep_steps"]),
    }
    return Context(**fields, progress=progress, expect=expect, ending=ending)


def unchanged(spec: str, named: Mapping[str, Any]) -> None:
    """ConfigError unless a user's file is the one whose SHA-256 is in a run's name."""
    if is_file_spec(spec) and "sha256" in named:
        path, _ = split_file_spec(spec)
        if code_sha256(path) != named["sha256"]:
            raise ConfigError(
                f"{path} was changed while its search ran; run the command again, which begins "
                "anew with the changed file, or change it back to go on"
            )


@lru_cache(maxsize=2)
def _images(
    spec: str, shape: tuple[int, int, int], data_dir: str | None, skip: bool, white: int
) -> Images:
    folder = Path(data_dir) if data_dir else None
    return load_images(spec, shape, data_dir=folder, skip_broken=skip, white=white)


def diverged(context: Context, *names: str) -> bool:
    """Whether any of the runs diverged, or was not run because of one that did."""
    records = (context.store.record(name) for name in names)
    return any("diverged" in record or "not_run" in record for record in records)


def commit(node: Node, context: Context, record: Mapping[str, Any]) -> None:
    """Make a run whole: its record beside what it wrote, its folder under its name."""
    context.store.commit(
        node.hash,
        {
            "kind": node.kind,
            "label": node.label,
            "config": dict(node.config),
            "parents": dict(node.parents),
            "torch": torch.__version__,
            **record,
        },
    )

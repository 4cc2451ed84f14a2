"""What do the words of a transfer ask for? Every task's config, and what a ticket file holds.

Without torch, so that names, numbers and files are checked at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tombola.config.registry import is_file_spec, split_file_spec
from tombola.config.search import METHODS
from tombola.config.sections import Config, build
from tombola.errors import ConfigError, TicketError, escape
from tombola.store.container import read_header, verify_file
from tombola.store.format import TICKET_FORMAT, expect

Tables = Mapping[str, Mapping[str, Any]]
METHODS_OF_CHAINS = ("imp", "one-shot")
_LEAST = {"rewind_step": 0, "round": 1}


def label_of(spec: str) -> str:
    """A task's name in tables: as registered, or the class of a user's file."""
    return split_file_spec(spec)[1] if is_file_spec(spec) else spec


def configs_of(tables: Tables, specs: Sequence[str]) -> dict[str, Config]:
    """The config of every task by its name in tables; needs no torch.

    A key of section ``task`` goes to all tasks, or, as ``vae.batch_size``, to one. ConfigError for
    a task that is named twice, a key of another task, or more than one arm.
    """
    labels = [label_of(spec) for spec in specs]
    twice = [name for name, count in Counter(labels).items() if count > 1]
    if twice:
        raise ConfigError(f"task {twice[0]!r} is named twice; name each task of a transfer once")
    found = {}
    for spec, label in zip(specs, labels, strict=True):
        options: dict[str, Any] = {}
        for key, value in tables.get("task", {}).items():
            owner, dot, option = key.rpartition(".")
            if dot and owner not in labels:
                raise ConfigError(
                    f"task.{key} is for task {owner!r}; the tasks here are: {', '.join(labels)}"
                )
            if not dot or owner == label:
                options[option] = value
        found[label] = build({**tables, "task": {**options, "name": spec}})
    _check_arm(next(iter(found.values())))
    return {
        label: replace(config, search=replace(config.search, stop_after=0))
        for label, config in found.items()
    }


def _check_arm(config: Config) -> None:
    """ConfigError unless a config has the one arm that a transfer is of."""
    search = config.search
    for noun, values in (
        ("method", search.method),
        ("rewind", search.rewind),
        ("precision", config.train.precision),
        ("prune", config.prune.networks),
    ):
        if len(values) > 1:
            raise ConfigError(
                f"a transfer has one arm, but {noun} names {len(values)} ({', '.join(values)}); "
                "give one"
            )
    if search.method[0] not in METHODS_OF_CHAINS:
        raise ConfigError(
            f"a transfer takes its masks from trained networks, by method "
            f"{' or '.join(METHODS_OF_CHAINS)}; got {search.method[0]}"
        )
    if search.stop_after > 0 or search.controls_at != "all":
        given = "search.stop_after" if search.stop_after > 0 else "search.controls_at=frontier"
        raise ConfigError(
            f"a transfer plays the tickets of every level, but {given} leaves levels out; leave "
            "that away"
        )
    (networks,) = config.prune.networks
    if "," in networks or "+" in networks:
        raise ConfigError(
            f"a transfer prunes the one network that is matched; got --prune {networks}: "
            "give one network, or leave --prune out"
        )


@dataclass(frozen=True, kw_only=True)
class TicketFile:
    """What a ticket file says of its pruned networks, and of how it was found."""

    task: str
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]
    """Pruned network -> tensor -> shape, by name: numbers as numbers."""
    options: Mapping[str, Any]
    """Options of its task, as the file has them: unchecked."""
    method: str
    rewind_step: int
    round: int


def ticket_file(ticket: Path) -> TicketFile:
    """Read what a transfer needs to know; TicketError for no sound ticket of single weights."""
    header = read_header(ticket)
    expect(header, TICKET_FORMAT)
    verify_file(ticket)
    manifest = header.manifest
    if manifest.get("granularity") != "weight":
        raise TicketError(
            f"{ticket} cuts whole channels; a transfer carries masks of single weights: give a "
            "ticket of another method than early-bird"
        )
    numbers = {key: manifest.get(key) for key in _LEAST}
    method, name = manifest.get("method"), manifest.get("task")
    whole = {k: n for k, n in numbers.items() if isinstance(n, int) and _LEAST[k] <= n < 10**9}
    if len(whole) < len(numbers) or method not in METHODS or not isinstance(name, str):
        raise TicketError(
            f"{ticket} does not say how it was found (task {escape(name)}, method "
            f"{escape(method)}, round {escape(numbers['round'])}, rewind step "
            f"{escape(numbers['rewind_step'])}); take a ticket written by tombola find"
        )
    pruned = {key.split(".")[1] for key in header.entries if key.startswith("mask.")}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {}
    for key in sorted(header.shapes, key=_by_number):
        network, _, tensor = key.partition(".")
        if network in pruned:
            shapes.setdefault(network, {})[tensor] = tuple(header.shapes[key])
    stored = manifest.get("config")
    options = stored.get("task") if isinstance(stored, Mapping) else None
    options = options if isinstance(options, Mapping) else {}
    return TicketFile(task=name, shapes=shapes, options=options, method=str(method), **whole)


def _by_number(name: str) -> list[tuple[int, int, str]]:
    """Sort key of a tensor's name: ``main.9`` before ``main.10``."""
    parts = name.split(".")
    return [(0, int(p), "") if p.isdecimal() and p.isascii() else (1, 0, p) for p in parts]

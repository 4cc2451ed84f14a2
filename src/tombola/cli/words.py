"""What do the words of a command ask for? Config, folders, and what is refused at once.

Without torch, so that names, numbers, places and the headers of files are checked within a second.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from tombola.config import sections as configs
from tombola.config import values
from tombola.config.limits import before_rivals, needs_early_bird, one_way
from tombola.config.registry import DATA, is_file_spec
from tombola.config.sections import Config
from tombola.data.checks import check_source
from tombola.engine.ticket_config import ticket_config
from tombola.errors import ConfigError, TicketError
from tombola.metrics.rules import rule_of
from tombola.store.container import read_header, verify_file
from tombola.store.format import TICKET_FORMAT, expect

_DRIVERS = ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/kfd")
"""Where Linux shows a driver that torch's CUDA may use: NVIDIA's, that of WSL, ROCm's."""
MOST_NAME_BYTES, MOST_PATH_BYTES, INNER_BYTES = 255, 4096, 512
"""Limits of file systems, and what the paths of the files inside a folder may add."""
_FLAGS = {
    "task": ("task", "name"),
    "preset": ("task", "preset"),
    "data": ("data", "name"),
    "skip_broken": ("data", "skip_broken"),
    "steps": ("train", "steps"),
    "epochs": ("train", "epochs"),
    "precision": ("train", "precision"),
    "prune": ("prune", "networks"),
    "method": ("search", "method"),
    "rounds": ("search", "rounds"),
    "rate": ("search", "rate"),
    "sparsity": ("search", "sparsity"),
    "rewind": ("search", "rewind"),
    "compress": ("prune", "compress"),
    "round_to": ("prune", "round_to"),
    "controls": ("search", "controls"),
    "controls_at": ("search", "controls_at"),
    "draws": ("search", "draws"),
    "stop_after": ("search", "stop_after"),
    "anyway": ("search", "anyway"),
    "seeds": ("search", "seeds"),
    "workers": ("run", "workers"),
    "threads": ("run", "threads"),
    "device": ("run", "device"),
    "keep": ("run", "keep"),
    "executor": ("run", "executor"),
}
"""Option -> (section, key) of the config."""


def tables_of(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The tables that the words of a command give: config file, then flags, then ``--set``."""
    check_numbers(options)
    tables: dict[str, dict[str, Any]] = {}
    if options.config is not None:
        tables = values.read_toml(Path(options.config))
    asked: set[tuple[str, str]] = set()
    for name, place in _FLAGS.items():
        value = getattr(options, name, None)
        if value is not None:
            tables.setdefault(place[0], {})[place[1]] = value
            asked.add(place)
    for text in options.set:
        name, equals, value = text.partition("=")
        section, dot, key = name.strip().partition(".")
        if not equals or not dot or not section or not key:
            raise ConfigError(
                f"--set got {text!r}; write it as section.key=value, such as task.width=16"
            )
        if (section, key) == ("task", "name") and options.task not in (None, value.strip()):
            raise ConfigError(
                f"--set got {text!r}, but the command names the task {options.task!r}; give the "
                "task there alone"
            )
        tables.setdefault(section, {})[key] = values.parse_value(value)
        asked.add((section, key))
    before_rivals(tables, asked)
    return tables


def check_numbers(options: argparse.Namespace) -> None:
    """ConfigError for a count or length below one, and for levels that are given in two ways."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    for name in ("steps", "rounds", "seeds", "draws"):
        if given.get(name, 1) < 1:
            raise ConfigError(f"--{name} got {given[name]}; it takes a whole number of at least 1")
    if given.get("stop_after", 0) < 0:
        raise ConfigError(
            f"--stop-after got {given['stop_after']}; it takes a whole number, 0 for never"
        )
    if not given.get("epochs", 1.0) > 0:
        raise ConfigError(f"--epochs got {given['epochs']:g}; it takes a number above 0")
    one_way(given, "--")


def data_dir_of(options: argparse.Namespace) -> Path | None:
    """Where ``--data-dir`` says that data sets lie; TOMBOLA_DATA is asked when they are sought."""
    return Path(options.data_dir) if options.data_dir else None


def checked_out(text: str) -> Path:
    """The folder of ``--out``; ConfigError if it cannot be there because a file is."""
    if not text:
        raise ConfigError("--out is empty; give a folder")
    out = Path(text)
    whole = len(os.fsencode(out.absolute()))
    if whole + INNER_BYTES > MOST_PATH_BYTES or any(
        len(os.fsencode(part)) > MOST_NAME_BYTES for part in out.parts
    ):
        raise ConfigError(
            f"--out {text[:60]}... is too long: a name takes at most {MOST_NAME_BYTES} bytes, and "
            f"the path {MOST_PATH_BYTES - INNER_BYTES:,}, as files lie in it; give a shorter one"
        )
    for place in (out, *out.parents):
        if place.exists():
            if not place.is_dir():
                raise ConfigError(f"--out {out}: {place} is a file; give a folder")
            if not os.access(place, os.W_OK):
                raise ConfigError(f"cannot write to {place}; choose another folder with --out")
            break
    return out


def checked(
    options: argparse.Namespace, tables: dict[str, dict[str, Any]]
) -> tuple[Config, Path | None, Path | None]:
    """Everything that can be told without torch: names, numbers, paths."""
    config = configs.build(tables)
    given = [name for name in _FLAGS if getattr(options, name, None) is not None]
    given += [text.partition("=")[0].strip().removeprefix("prune.") for text in options.set]
    needs_early_bird(given, config.search.method, "--")
    data_dir = data_dir_of(options)
    check_source(config.data.name, data_dir)
    if not is_file_spec(config.task.name):  # a user's file may bring rules of its own
        rule_of("", config.verdict.margins)
    check_device(config.run.device)
    out = None if options.out is None else checked_out(options.out)
    return config, data_dir, out


def check_device(name: str) -> None:
    """ConfigError if CUDA is asked for and this machine has no driver for it."""
    if name.startswith("cuda") and sys.platform == "linux":
        if not any(Path(place).exists() for place in _DRIVERS):
            raise ConfigError(
                f"device {name!r} is not there (no CUDA driver found); use --device cpu or auto"
            )


def ticket_checked(
    options: argparse.Namespace, tables: dict[str, dict[str, Any]], ticket: Path
) -> tuple[Config, Path | None, Path | None]:
    """The same for ``train --ticket``: the config that the ticket was found with, words over it."""
    header = read_header(ticket)
    expect(header, TICKET_FORMAT)
    verify_file(ticket)
    manifest = header.manifest
    if options.compact and manifest["granularity"] != "channel":
        raise TicketError(
            f"{ticket} prunes single weights, which leaves every layer its size; --compact takes "
            "a ticket of method early-bird, so leave it out"
        )
    # A name in a file may only choose among what is built in, never a file or folder to read.
    if "name" not in tables.setdefault("data", {}) and manifest.get("data") in DATA.names():
        tables["data"]["name"] = manifest["data"]
    tables["data"].setdefault("name", "digits")
    _, data_dir, out = checked(options, tables)
    config = ticket_config(ticket, manifest, tables)
    check_device(config.run.device)
    return config, data_dir, out

"""A search, a dense training or the training of a ticket, as the engine is asked for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tombola.config.registry import file_sha256
from tombola.config.sections import Config
from tombola.data.sources import native_channels
from tombola.engine import search
from tombola.engine.earlier import DENSE, SEARCH
from tombola.engine.models import check_fit
from tombola.engine.search import Request
from tombola.errors import ConfigError, TicketError, escape
from tombola.plan import plans
from tombola.plan.cells import Plan
from tombola.plan.setting import Setting, make_task, search_chains
from tombola.store.container import read_manifest
from tombola.tasks.base import Task


def find_request(config: Config, data_dir: Path | None, out: Path | None, command: str) -> Request:
    """The request of a ticket search."""
    method = "+".join(config.search.method)
    out = out or search.default_out(config, data_dir, method)
    return Request(
        config=config,
        data_dir=data_dir,
        out=out,
        command=command,
        recipe=SEARCH,
        planner=plans.search,
        chains=search_chains(config),
    )


def train_request(
    config: Config,
    data_dir: Path | None,
    out: Path | None,
    command: str,
    ticket: Path | None = None,
    *,
    compact: bool = False,
) -> Request:
    """The request of training the dense task, or a ticket as ``find`` trained it.

    ``compact``: the smaller networks of a channel ticket, instead of the dense ones masked.
    """
    if ticket is None:
        out = out or search.default_out(config, data_dir, "dense")
        return Request(
            config=config,
            data_dir=data_dir,
            out=out,
            command=command,
            recipe=DENSE,
            planner=plans.dense,
            chains=config.search.seeds,
        )
    manifest = read_manifest(ticket)
    channels = native_channels(config.data.name, data_dir)
    task = _task_with(ticket, config)
    check_fit(ticket, task, task.image_shape(channels), manifest["shapes"])
    sha256 = file_sha256(ticket)
    facts = {
        "sha256": sha256,
        "method": manifest["method"],
        "seed": manifest["seed"],
        "networks": config.prune.networks[0],
        "rewind": config.search.rewind[0],
        "rewind_step": manifest["rewind_step"],
        "round": manifest["round"],
        "granularity": manifest["granularity"],
        "sparsity": manifest["sparsity"],
        "sparsity_all": manifest["sparsity_all"],
        "compact": compact,
    }

    def planner(setting: Setting) -> Plan:
        _check_ticket(ticket, manifest, setting)
        return plans.from_ticket(setting, facts)

    kind = "compact" if compact else "ticket"
    out = out or search.default_out(config, data_dir, f"{kind}-{sha256[:8]}")
    return Request(
        config=config,
        data_dir=data_dir,
        out=out,
        command=command,
        recipe=f"{kind}:{sha256}",
        planner=planner,
        inputs={sha256: str(ticket.absolute())},
    )


def _task_with(ticket: Path, config: Config) -> Task:
    """The task of a ticket's config; TicketError that names the file if there is no such task."""
    try:
        return make_task(config)[0]
    except ConfigError as error:
        raise TicketError(f"{ticket} and what is set beside it make no task: {error}") from error


def _check_ticket(ticket: Path, manifest: Mapping[str, Any], setting: Setting) -> None:
    """TicketError unless a ticket fits the data and the training of a resolved config."""
    if setting.images.sha256 != manifest["data_hash"]:
        raise TicketError(
            f"{ticket} was found on other images (data {escape(manifest['data'])}, "
            f"{escape(manifest['data_hash'])[:12]}...) than {setting.images.name} "
            f"({setting.images.sha256[:12]}...); give the data it was found on"
        )
    if not 0 <= manifest["rewind_step"] < setting.steps:
        raise TicketError(
            f"{ticket} begins at step {manifest['rewind_step']}, but the training has "
            f"{setting.steps} steps; train longer"
        )
    if not 1 <= manifest["round"] <= len(setting.levels):
        raise TicketError(
            f"{ticket} is of round {manifest['round']}, but its search has "
            f"{len(setting.levels)} levels; take a ticket written by tombola find"
        )
    restored = setting.config.search.optimizer_at_rewind == "restore"
    if restored and manifest["granularity"] != "channel":
        raise TicketError(
            f"{ticket} was found with search.optimizer_at_rewind=restore, but a ticket holds no "
            "optimizer's state; train it with fresh moments: --set "
            "search.optimizer_at_rewind=fresh"
        )

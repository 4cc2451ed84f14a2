"""The files that a search hands out: tickets and models with their lineage, grids, the log."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tombola.config.atomic import write_atomic
from tombola.config.learned import LEARNED
from tombola.config.surroundings import versions
from tombola.data.grid import GRID_COLUMNS, GRID_ROWS, save_grid
from tombola.metrics.verdict.losses import OWN_ARMS, search_key, search_name
from tombola.plan.cells import Arm, Cell, tickets
from tombola.results.handed_out import clear
from tombola.results.output import FINAL, TICKET, Output, task_name, whole_config
from tombola.store.container import read_manifest
from tombola.store.runs import write_log
from tombola.store.tables import Row
from tombola.tickets.ticket import load_ticket, save_model, save_ticket
from tombola.training.checkpoint import load_weights_file

OF_CHANNELS = ("widths", "inputs")
"""What the manifest of a channel ticket says besides: channels, and what networks are called with.
"""

LOGGED = (
    "method", "arm", "networks", "rewind_steps", "precision", "compress", "seed", "round", "draw",
)  # fmt: skip
"""The columns that say which training a line of the log is about; ``compress`` and ``draw`` only
where they apply."""


def _ended(record: Mapping[str, Any]) -> bool:
    """Whether a run came to its end, and so has left what it is for."""
    return not {"diverged", "not_run"} & record.keys()


class Exports:
    """Writes OUT/tickets, OUT/models, OUT/samples and OUT/log.jsonl from the store."""

    def __init__(self, tables: Output) -> None:
        self.tables = tables

    def write(self, summary: Mapping[str, Any]) -> None:
        """Write all of them; files that are there are replaced by equal ones.

        What an earlier call left under another name goes last, so that nothing is ever missing.
        """
        planned = {*self.write_tickets(), *self.write_models(summary), *self.write_samples()}
        self.write_log(summary)
        clear(self.tables.out, planned)

    def _place(self, kind: str, cell: Cell) -> Path:
        """Where a cell's file of a kind goes; its folder is made."""
        path = self.tables.place(kind, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _of_channels(self, cell: Cell) -> dict[str, Any]:
        """What the lineage of a channel ticket says besides, and of what was trained from it.

        As the run that cut it knows, or the file that was taken in. It is rewound nowhere, but goes
        on at the step at which it was cut.
        """
        if cell.cut:
            made = self.tables.record(cell.cut)
            step = made.get("from_step")
        elif cell.arm.compress and cell.ticket:
            made = self.tables.store.read(cell.ticket, TICKET, read_manifest)
            step = made["rewind_step"]
        else:
            return {}
        return {"rewind_step": step, **{key: made[key] for key in OF_CHANNELS if key in made}}

    def lineage(self, cell: Cell) -> dict[str, Any]:
        """The manifest of a ticket or model file: what it is and where it comes from."""
        evaluated = self.tables.record(cell.evaluate)
        key, trained = self.tables.key(cell), self.tables.record(cell.train)
        # Masked or cut, an early-bird ticket is one of channels; a thin network is only smaller.
        smaller = cell.thin or (cell.arm.compress and cell.kind != "dense")
        tables = whole_config(self.tables.setting)
        tables["run"] = {
            "threads": self.tables.setting.threads,
            "device": self.tables.setting.device,
        }
        tables["search"].update(method=[cell.arm.method], rewind=[cell.arm.rewind])
        for other in {*LEARNED} - {cell.arm.method}:
            tables.pop(other, None)
        tables["prune"]["networks"] = [cell.arm.networks]
        if cell.arm.compress:
            tables["prune"]["compress"] = [cell.arm.compress]
        tables["train"]["precision"] = [cell.arm.precision]
        return {
            "task": task_name(self.tables.setting),
            "data": self.tables.setting.images.name,
            "data_hash": self.tables.setting.images.sha256,
            "method": cell.arm.method,
            "granularity": "channel" if smaller else "weight",
            "networks": list(self.tables.setting.parameters),
            "sparsity": key["sparsity"],
            "sparsity_all": key["sparsity_all"],
            "rewind_step": cell.rewind_steps,
            "seed": cell.seed,
            "round": cell.round,
            "parents": sorted(trained["parents"].values()),
            "config": tables,
            "scores": dict(evaluated.get("values", {})),
            "cost": {
                "train_flops": 2
                * self.tables.work_of(cell)[0].step_macs
                * self.tables.steps_of(trained)
            },
            "created_with": versions(),
            **self._of_channels(cell),
        }

    def write_tickets(self) -> Iterator[Path]:
        """OUT/tickets: every ticket with its whole lineage; yields the place of each."""
        for cell in tickets(self.tables.plan):
            yield self.tables.place("tickets", cell)
            if cell.ticket and _ended(self.tables.record(cell.ticket)):
                ticket = self.tables.store.read(cell.ticket, TICKET, load_ticket)
                target = self._place("tickets", cell)
                save_ticket(target, replace(ticket, manifest=self.lineage(cell)))

    def write_models(self, summary: Mapping[str, Any]) -> Iterator[Path]:
        """OUT/models: the dense and the best ticket's networks of every seed, or all if asked."""
        everything = self.tables.setting.config.run.keep == "all"
        for cell in self.tables.plan.cells:
            best = cell.kind in OWN_ARMS and cell.round == self._best_round(cell.arm, summary)
            if not (everything or cell.kind == "dense" or best):
                continue
            yield self.tables.place("models", cell)
            if _ended(self.tables.record(cell.train)):
                store = self.tables.store
                weights = store.read(cell.train, FINAL, load_weights_file)
                target = self._place("models", cell)
                manifest = {
                    **self.lineage(cell),
                    "arm": cell.kind,
                    "shape": list(self.tables.setting.shape),
                }
                options, widths = self._thinner(cell)
                manifest["config"]["task"].update(options)
                if widths:
                    manifest["widths_by_network"] = widths
                save_model(target, weights, manifest)

    def _thinner(self, cell: Cell) -> tuple[Mapping[str, Any], dict[str, int]]:
        """The options of the task, and else the width of each network, that made a cell thinner."""
        if cell.thin is not None:
            return cell.thin.options, {}
        parents = self.tables.record(cell.train)["parents"]
        made = self.tables.record(parents["thin"]) if "thin" in parents else {}
        widths = {name: part["width"] for name, part in made.get("plan", {}).items()}
        return made.get("options", {}), widths

    def _best_round(self, arm: Arm, summary: Mapping[str, Any]) -> int:
        """The round of the ticket's sparsity by the primary metric; without a winner the first."""
        key = next((search_key(row) for row in self.rows_of(arm)), None)
        verdict = (summary["arms"].get(search_name(key), {}) if key else {}).get(summary["primary"])
        wanted = verdict and verdict["frontier"]
        own = [c for c in tickets(self.tables.plan) if c.arm == arm]
        rounds = {self.tables.key(c)["sparsity"]: c.round for c in own}
        first = min(rounds.values(), default=0)
        return rounds.get(wanted, first) if wanted else first

    def rows_of(self, arm: Arm) -> Iterator[Row]:
        """The ticket rows of one arm."""
        for cell in tickets(self.tables.plan):
            if cell.arm == arm:
                yield Row(**self.tables.key(cell), metric="", value=0)

    def write_samples(self) -> Iterator[Path]:
        """OUT/samples: the grids of seed 0, one an arm and round (of the first draw), originals."""
        if self.tables.setting.task.family == "autoencoder":
            images, _ = self.tables.setting.images.first("judge", GRID_COLUMNS * GRID_ROWS)
            (self.tables.out / "samples").mkdir(exist_ok=True)
            picture = io.BytesIO()
            save_grid(picture, images)
            write_atomic(self.tables.out / "samples" / "originals.png", picture.getvalue())
        for cell in self.tables.plan.cells:
            if cell.seed != 0 or (cell.draw or 1) != 1:
                continue
            yield self.tables.place("samples", cell)
            if self.tables.wrote(cell.evaluate, "grid.png"):
                grid = self.tables.store.read(cell.evaluate, "grid.png", Path.read_bytes)
                write_atomic(self._place("samples", cell), grid)

    def write_log(self, summary: Mapping[str, Any]) -> None:
        """OUT/log.jsonl: losses, judgements on validation and events of every training by step."""
        lines: list[dict[str, Any]] = []
        for cell in self.tables.plan.cells:
            record = self.tables.record(cell.train)
            where = {
                k: v
                for k, v in self.tables.key(cell).items()
                if k in LOGGED and (v is not None or k not in ("compress", "draw"))
            }
            lines += [{**where, **row} for row in record.get("log", [])]
            course = self.tables.record(cell.evaluate).get("course", {}).get("by_step", {})
            lines += [
                {**where, "event": "judged on validation", "step": step, "value": course[str(step)]}
                for step in sorted(map(int, course))
            ]
            watched = summary["early_bird"].get(self.tables.arm_label(cell.arm), {"seeds": {}})
            if cell.kind == "compact":
                largest = watched["seeds"].get(str(cell.seed), {"largest": {}})["largest"]
                lines += [
                    {**where, "event": "channel masks", "step": int(step), "largest": found}
                    for step, found in largest.items()
                ]
            found = self.tables.record(cell.ticket) if cell.kind == "ticket" and cell.ticket else {}
            if found.get("kind") == "search":  # the training that found the mask
                lines += [{**where, "event": "search", **row} for row in found.get("log", [])]
            for event, made in (("diverged", record), ("search diverged", found)):
                if "diverged" in made:
                    told = {"event": event, "step": made["diverged"], "why": made["why"]}
                    lines.append({**where, **told})
        write_log(self.tables.out / "log.jsonl", lines)

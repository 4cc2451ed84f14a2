"""What a search leaves in its folder, written from the store alone: tables, verdicts, files."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tombola
from tombola.metrics.statistics import arm_name, search_key, summarise
from tombola.recipes.recipes import Arm, Cell, Plan, tickets
from tombola.recipes.setting import Setting, task_options
from tombola.registry import is_file_spec, split_file_spec
from tombola.runs.results import CostRow, Row, write_costs, write_results
from tombola.runs.store import Store, write_atomic, write_json
from tombola.sparsity.masks import collapsed
from tombola.sparsity.tickets import load_ticket, save_model, save_ticket
from tombola.training.checkpoint import load_weights_file


def task_name(setting: Setting) -> str:
    """The task's name in tables: as registered, or the class of a user's file."""
    name = setting.config.task.name
    return split_file_spec(name)[1] if is_file_spec(name) else name


def resolved(setting: Setting, command: str) -> dict[str, Any]:
    """What ``config.json`` keeps: the config whole, all that was resolved from it, and versions."""
    tables = setting.config.tables()
    tables["task"] = {
        "name": setting.config.task.name,
        "preset": setting.config.task.preset,
        **task_options(setting.task),
    }
    tables["train"].update(steps=setting.steps, epochs=0.0)
    tables["run"].update(workers=setting.workers, threads=setting.threads, device=setting.device)
    return {
        "format": "tombola.config/1",
        "command": command,
        "config": tables,
        "resolved": {
            "task": task_name(setting),
            "family": setting.task.family,
            "data": setting.images.name,
            "data_sha256": setting.images.sha256,
            "data_note": setting.images.note,
            "images": {split: len(t) for split, t in setting.images.splits.items()},
            "shape": list(setting.shape),
            "steps": setting.steps,
            "epoch_steps": setting.epoch_steps,
            "rewind_steps": {r: setting.rewind_step(r) for r in setting.config.search.rewind},
            "parameters": dict(setting.parameters),
            "prunable": {k: list(v) for k, v in setting.prunable.items()},
            "prunable_weights": dict(setting.pools),
            "step_macs": setting.work.step_macs,
            "sample_macs": setting.work.sample_macs,
            "judge": dict(setting.judge) if setting.judge else None,
        },
        "versions": versions(),
        "git_commit": _git_commit(),
    }


def versions() -> dict[str, str]:
    """Versions and machine: recorded, not part of a run's name."""
    return {
        "tombola": tombola.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {_processor()}",
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=2,
            check=False,
            cwd=Path(__file__).parent,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class Output:
    """Writes the folder of a search from its store."""

    def __init__(self, setting: Setting, plan: Plan, store: Store, out: Path) -> None:
        self.setting, self.plan, self.store, self.out = setting, plan, store, out
        self.records: dict[str, dict[str, Any]] = {}

    def record(self, name: str) -> dict[str, Any]:
        """A run's record, read once."""
        if name not in self.records:
            self.records[name] = self.store.record(name)
        return self.records[name]

    def write(self, runs: Mapping[str, int]) -> dict[str, Any]:
        """Write every table and file of the contract; returns ``summary.json``'s object."""
        rows = list(self.rows())
        write_results(self.out / "results.csv", rows)
        costs = list(self.cost_rows())
        write_costs(self.out / "costs.csv", costs)
        summary = self.summary(rows, costs, runs)
        write_json(self.out / "summary.json", summary)
        self.write_tickets()
        self.write_models(summary)
        self.write_samples()
        self.write_log()
        return summary

    def key(self, cell: Cell) -> dict[str, Any]:
        """The columns that say which training a row is about."""
        return {
            "task": task_name(self.setting),
            "data": self.setting.images.name,
            "method": cell.arm.method,
            "arm": cell.kind,
            "networks": cell.arm.networks.replace(",", "+"),
            "rewind_steps": cell.rewind_steps,
            "precision": cell.arm.precision,
            "seed": cell.seed,
            "round": cell.round,
            "sparsity": cell.sparsity,
            "sparsity_all": cell.sparsity_all,
        }

    def rows(self) -> Iterator[Row]:
        """One row a measurement; events where a training diverged or was not run."""
        for cell in self.plan.cells:
            record = self.record(cell.evaluate)
            if "values" not in record:
                metric = "diverged" if "diverged" in record else "not-run"
                step = record["diverged"] if metric == "diverged" else None
                yield Row(**self.key(cell), metric=metric, value=1, step=step)
                continue
            for metric, value in record["values"].items():
                yield Row(
                    **self.key(cell), metric=metric, value=value, n=record["n"], step=record["step"]
                )

    def cost_rows(self) -> Iterator[CostRow]:
        """One row a training: its own work, and the work that had to be done before it."""
        flops = 2 * self.setting.work.step_macs
        total = sum(self.setting.parameters.values())
        for cell in self.plan.cells:
            trained = self.record(cell.train)
            if "not_run" in trained:
                continue
            before = [self.record(name) for name in cell.before]
            final = self.store.path(cell.train) / "final.safetensors"
            yield CostRow(
                **self.key(cell),
                train_flops=flops * self._steps(trained),
                train_seconds=trained["seconds"],
                search_flops=flops * sum(self._steps(record) for record in before),
                search_seconds=float(sum(record["seconds"] for record in before)),
                eval_seconds=self.record(cell.evaluate).get("seconds"),
                macs_per_sample=self.setting.work.sample_macs,
                parameters=total,
                nonzero_parameters=total - (cell.pool - cell.kept) if cell.pool else total,
                ticket_bytes=_size(self._ticket_path(cell)) if cell.kind == "ticket" else None,
                model_bytes=_size(final),
                peak_memory_bytes=trained.get("peak_memory_bytes"),
            )

    def _steps(self, record: Mapping[str, Any]) -> int:
        config = record["config"]
        end: int = record.get("diverged", config["steps"])
        return end - config.get("from_step", 0)

    def summary(
        self, rows: list[Row], costs: list[CostRow], runs: Mapping[str, int]
    ) -> dict[str, Any]:
        """Verdicts, the count of runs, and what the report tells besides."""
        config = self.setting.config
        searches = list(dict.fromkeys(search_key(row) for row in rows if row.arm == "ticket"))
        verdicts = summarise(
            rows,
            controls=list(config.search.controls),
            margins=dict(config.verdict.margins),
            searches=searches,
        )
        diverged = sum(row.metric == "diverged" for row in rows)
        return {
            **verdicts,
            "runs": {**runs, "diverged": diverged},
            "cost": {
                "train_flops": sum(c.train_flops or 0 for c in self._once(costs)),
                "train_seconds": sum(c.train_seconds or 0.0 for c in self._once(costs)),
                "eval_seconds": sum(c.eval_seconds or 0.0 for c in self._once(costs)),
            },
            "collapsed": dict(self._collapsed()),
            "convergence": self._convergence(verdicts["primary"]),
            "sampling_sd": self._sampling_sd(),
            "judge": self._judge(),
        }

    def _once(self, costs: list[CostRow]) -> list[CostRow]:
        """Cost rows with each training counted once, however many arms share it."""
        seen: dict[str, CostRow] = {}
        trained = [c for c in self.plan.cells if "not_run" not in self.record(c.train)]
        for cell, row in zip(trained, costs, strict=True):
            seen.setdefault(cell.train, row)
        return list(seen.values())

    def _collapsed(self) -> Iterator[tuple[str, list[str]]]:
        """Tickets of seed 0 with layers that lost every weight."""
        for cell in tickets(self.plan):
            path = self._ticket_path(cell)
            if cell.seed == 0 and path.exists():
                names = collapsed(load_ticket(path).masks)
                if names:
                    yield f"{self._arm_label(cell.arm)}/round{cell.round:02d}", names

    def _convergence(self, primary: str | None) -> dict[str, float]:
        """Change of the primary metric over the last fifth of the training, as a share, by arm.

        The mean over seeds of (value at the end - value at 4/5) / value at 4/5, for the dense run
        and for the sparsest ticket of each arm.
        """
        changes: dict[str, list[float]] = {}
        last = max((cell.round for cell in self.plan.cells), default=0)
        for cell in self.plan.cells:
            if cell.kind not in ("dense", "ticket") or cell.round not in (0, last):
                continue
            steps = self.record(cell.evaluate).get("by_step", {})
            path = [steps[k].get(primary) for k in sorted(steps, key=int)]
            if len(path) >= 2 and path[0]:
                label = f"{self._arm_label(cell.arm)}/{cell.kind}-round{cell.round:02d}"
                changes.setdefault(label, []).append((path[-1] - path[0]) / abs(path[0]))
        return {label: statistics.fmean(values) for label, values in changes.items()}

    def _sampling_sd(self) -> dict[str, float]:
        """Standard deviation over sampling seeds of one dense network, by metric."""
        if not self.plan.resampled:
            return {}
        first = next(c.evaluate for c in self.plan.cells if c.kind == "dense" and c.seed == 0)
        records = [self.record(name) for name in (first, *self.plan.resampled)]
        if any("values" not in record for record in records):
            return {}
        return {
            metric: statistics.stdev(record["values"][metric] for record in records)
            for metric in records[0]["values"]
        }

    def _judge(self) -> dict[str, Any] | None:
        """What the judge is: its source, and the gates of one that was trained here."""
        node = next((n for n in self.plan.graph if n.kind == "judge"), None)
        if node is None:
            return dict(self.setting.judge) if self.setting.judge else None
        record = self.record(node.hash)
        kept = ("data", "accuracy", "gate", "labelled", "steps")
        return {"source": "run", **{k: record[k] for k in kept if k in record}}

    def _arm_label(self, arm: Arm) -> str:
        return arm.folder(self._rewind(arm), len(self.setting.config.train.precision) > 1)

    def _rewind(self, arm: Arm) -> int:
        return next(c.rewind_steps for c in self.plan.cells if c.arm == arm)

    def _folder(self, name: str, arm: Arm) -> Path:
        """OUT/name, or OUT/name/<arm> when there are several arms."""
        base = self.out / name
        return base if len(self.plan.arms) == 1 else base / self._arm_label(arm)

    def _ticket_path(self, cell: Cell) -> Path:
        assert cell.ticket is not None
        return self.store.path(cell.ticket) / "ticket.safetensors"

    def lineage(self, cell: Cell) -> dict[str, Any]:
        """The manifest of a ticket or model file: what it is and where it comes from."""
        evaluated = self.record(cell.evaluate)
        tables = resolved(self.setting, "")["config"]
        tables["run"] = {"threads": self.setting.threads, "device": self.setting.device}
        tables["search"].update(method=[cell.arm.method], rewind=[cell.arm.rewind])
        tables["prune"]["networks"] = [cell.arm.networks]
        tables["train"]["precision"] = [cell.arm.precision]
        return {
            "task": task_name(self.setting),
            "data": self.setting.images.name,
            "data_hash": self.setting.images.sha256,
            "method": cell.arm.method,
            "granularity": "weight",
            "networks": list(self.setting.parameters),
            "sparsity": cell.sparsity,
            "sparsity_all": cell.sparsity_all,
            "rewind_step": cell.rewind_steps,
            "seed": cell.seed,
            "round": cell.round,
            "parents": sorted(self.record(cell.train)["parents"].values()),
            "config": tables,
            "scores": evaluated.get("values", {}),
            "cost": {
                "train_flops": 2
                * self.setting.work.step_macs
                * self._steps(self.record(cell.train))
            },
        }

    def write_tickets(self) -> None:
        """OUT/tickets: every ticket with its whole lineage."""
        for cell in tickets(self.plan):
            path = self._ticket_path(cell)
            if not path.exists():
                continue
            folder = self._folder("tickets", cell.arm)
            target = folder / f"seed{cell.seed}-round{cell.round:02d}.safetensors"
            folder.mkdir(parents=True, exist_ok=True)
            ticket = load_ticket(path)
            save_ticket(target, replace(ticket, manifest=self.lineage(cell)))

    def write_models(self, summary: Mapping[str, Any]) -> None:
        """OUT/models: the dense and the best ticket's networks of every seed, or all if asked."""
        everything = self.setting.config.run.keep == "all"
        for cell in self.plan.cells:
            final = self.store.path(cell.train) / "final.safetensors"
            best = cell.kind == "ticket" and cell.round == self._best_round(cell.arm, summary)
            if final.exists() and (everything or cell.kind == "dense" or best):
                folder = self._folder("models", cell.arm)
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{cell.kind}-seed{cell.seed}-round{cell.round:02d}.safetensors"
                manifest = {
                    **self.lineage(cell),
                    "arm": cell.kind,
                    "shape": list(self.setting.shape),
                }
                save_model(folder / name, load_weights_file(final), manifest)

    def _best_round(self, arm: Arm, summary: Mapping[str, Any]) -> int:
        """The round of the ticket's sparsity by the primary metric; without a winner the first."""
        key = next((search_key(row) for row in self.rows_of(arm)), None)
        verdict = (summary["arms"].get(arm_name(key), {}) if key else {}).get(summary["primary"])
        wanted = verdict and (verdict["sparsity"] or verdict["matches_up_to"])
        rounds = {c.sparsity: c.round for c in tickets(self.plan) if c.arm == arm}
        return rounds.get(wanted, min(rounds.values(), default=0))

    def rows_of(self, arm: Arm) -> Iterator[Row]:
        """The ticket rows of one arm."""
        for cell in tickets(self.plan):
            if cell.arm == arm:
                yield Row(**self.key(cell), metric="", value=0)

    def write_samples(self) -> None:
        """OUT/samples: the grids of seed 0, one an arm and round."""
        for cell in self.plan.cells:
            grid = self.store.path(cell.evaluate) / "grid.png"
            if cell.seed == 0 and grid.exists():
                folder = self._folder("samples", cell.arm)
                folder.mkdir(parents=True, exist_ok=True)
                target = folder / f"{cell.kind}-round{cell.round:02d}.png"
                write_atomic(target, grid.read_bytes())

    def write_log(self) -> None:
        """OUT/log.jsonl: losses and events of every training by step."""
        lines = []
        for cell in self.plan.cells:
            record = self.record(cell.train)
            where = {
                k: v
                for k, v in self.key(cell).items()
                if k in ("method", "arm", "networks", "rewind_steps", "seed", "round")
            }
            lines += [{**where, **row} for row in record.get("log", [])]
            if "diverged" in record:
                lines.append(
                    {**where, "event": "diverged", "step": record["diverged"], "why": record["why"]}
                )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomic(self.out / "log.jsonl", text.encode())


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def command_line() -> str:
    """The command that was given, for the record."""
    import shlex

    return shlex.join(["tombola", *sys.argv[1:]])

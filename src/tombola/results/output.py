"""What a search leaves in its folder, written from the store alone: tables, verdicts, files."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from tombola.config.registry import is_file_spec, split_file_spec
from tombola.config.surroundings import git_commit, versions
from tombola.metrics.rules import changed_margins, fixed_margins
from tombola.metrics.stability import stability
from tombola.metrics.verdict.decide import Evidence, summarise
from tombola.metrics.verdict.evidence import failed_gates, larger_than_cut
from tombola.metrics.verdict.losses import OWN_ARMS, search_name, searches_in
from tombola.plan.cells import Arm, Cell, Plan, tickets
from tombola.plan.setting import Setting
from tombola.plan.trial import Work, task_options
from tombola.results.alike import alike
from tombola.results.handed_out import name_of, size_of
from tombola.results.learnt import above_floor, sampling_sd, settling_shares, trivial_values
from tombola.results.spending import before_ticket, behind, spent
from tombola.results.watched import watched
from tombola.sparsity.masks import collapsed
from tombola.store.runs import Store, finite, write_json
from tombola.store.tables import CostRow, Row, write_costs, write_results
from tombola.store.unfinished import in_progress
from tombola.tickets.mask_file import load_masks

TICKET, FINAL = "ticket.safetensors", "final.safetensors"
"""What a run that makes a ticket leaves, and a training."""


def task_name(setting: Setting) -> str:
    """The task's name in tables: as registered, or the class of a user's file."""
    name = setting.config.task.name
    return split_file_spec(name)[1] if is_file_spec(name) else name


def whole_config(setting: Setting) -> dict[str, dict[str, Any]]:
    """The tables of a config with every number that was left to task, data or machine."""
    tables = setting.config.tables()
    tables["task"] = {
        "name": setting.config.task.name,
        "preset": setting.config.task.preset,
        **task_options(setting.task),
    }
    tables["train"].update(steps=setting.steps, epochs=0.0)
    tables["judge"].update(samples=setting.judged_samples, fakes=setting.fakes)
    search = setting.config.search
    draws = len(search.control_draws) if search.controls_at == "frontier" else 0
    tables["search"].update(stop_after=search.worse_levels, draws=draws)
    tables["run"].update(workers=setting.workers, threads=setting.threads, device=setting.device)
    return tables


def resolved(setting: Setting, command: str, recipe: str) -> dict[str, Any]:
    """What ``config.json`` keeps: the config whole, all that was resolved from it, and versions.

    ``recipe``: the kind of command.
    """
    return {
        "format": "tombola.config/1",
        "command": command,
        "config": whole_config(setting),
        "resolved": {
            "recipe": recipe,
            "task": task_name(setting),
            "family": setting.task.family,
            "data": setting.images.name,
            "data_sha256": setting.images.sha256,
            "files": setting.files,
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
            "classifier": dict(setting.classifier) if setting.classifier else None,
            "watched": [list(shares) for shares in setting.watched],
            **_margins(setting),
        },
        "versions": versions(),
        "git_commit": git_commit(),
    }


def _margins(setting: Setting) -> dict[str, Any]:
    """The margins of every metric, and those that were first there where they are others."""
    now = fixed_margins(setting.config.verdict.margins)
    first = setting.margins_first
    return {"margins": now, **({"margins_first": first} if changed_margins(first, now) else {})}


class Output:
    """Writes the folder of a search from its store."""

    def __init__(self, setting: Setting, plan: Plan, store: Store, out: Path) -> None:
        self.setting, self.plan, self.store, self.out = setting, plan, store, out
        self.records: dict[str, dict[str, Any]] = {}

    def record(self, name: str) -> dict[str, Any]:
        """A run's record, read once; of one that is left out, that it was not run."""
        if name in self.plan.left_out:
            return {"not_run": True}
        if name not in self.records:
            self.records[name] = self.store.record(name)
        return self.records[name]

    def wrote(self, name: str, file: str) -> bool:
        """Whether a run left a file; one that is left out did not."""
        return name not in self.plan.left_out and self.store.wrote(name, file)

    def write(
        self, runs: Mapping[str, int], progress: Mapping[str, int] | None = None
    ) -> dict[str, Any]:
        """Write results.csv and summary.json; returns the latter's object.

        ``progress``: trainings ``done`` and all there are (``of``), where the search goes on.
        """
        rows = list(self.rows())
        write_results(self.out / "results.csv", rows)
        found: dict[str, Any] = finite(self.summary(rows, list(self.cost_rows()), runs))
        summary = in_progress(found, progress)
        write_json(self.out / "summary.json", summary)
        return summary

    def write_costs(self) -> None:
        """Write costs.csv, which has the sizes of the files that are handed out by then."""
        write_costs(self.out / "costs.csv", list(self.cost_rows()))

    def key(self, cell: Cell) -> dict[str, Any]:
        """The columns that say which training a row is about."""
        made = self._cut_of(cell) if cell.cut else {}
        return {
            "task": task_name(self.setting),
            "data": self.setting.images.name,
            "method": cell.arm.method,
            "arm": cell.kind,
            "networks": cell.arm.networks.replace(",", "+"),
            "rewind_steps": cell.rewind_steps,
            "precision": cell.arm.precision,
            "compress": float(cell.arm.compress) if cell.arm.compress else None,
            "seed": cell.seed,
            "round": cell.round,
            "sparsity": made.get("sparsity", cell.sparsity),
            "sparsity_all": made.get("sparsity_all", cell.sparsity_all),
            "draw": cell.draw,
        }

    def _cut_of(self, cell: Cell) -> dict[str, Any]:
        """The cut behind a cell; of another seed of its arm where its own search diverged."""
        alike = (each for each in self.plan.cells if each.arm == cell.arm and each.cut)
        made = [self.record(str(each.cut)) for each in (cell, *alike)]
        return next((each for each in made if "sparsity" in each), made[0])

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
                n = record["n_of"].get(metric, record["n"])
                yield Row(**self.key(cell), metric=metric, value=value, n=n, step=record["step"])
            early = record.get("course", {}).get("early_stopping_step")
            if early is not None:
                yield Row(
                    **self.key(cell),
                    metric="early_stopping_step",
                    value=early,
                    n=record["course"]["n"],
                    step=record["step"],
                )

    def cost_rows(self) -> Iterator[CostRow]:
        """One row a training: its own work, and the work that had to be done before it."""
        for cell in self.plan.cells:
            trained = self.record(cell.train)
            if "not_run" in trained:
                continue
            work, total = self.work_of(cell)
            left = total - (cell.pool - cell.kept) if cell.pool and cell.ticket else total
            before = [before_ticket(name, self.record, self.flops_of) for name in cell.before]
            yield CostRow(
                **self.key(cell),
                train_flops=2 * work.step_macs * self.steps_of(trained),
                train_seconds=trained["seconds"],
                search_flops=sum(flops for flops, _ in before),
                search_seconds=float(sum(seconds for _, seconds in before)),
                eval_seconds=self.record(cell.evaluate).get("seconds"),
                macs_per_sample=work.sample_macs,
                parameters=total,
                nonzero_parameters=left,
                ticket_bytes=self._ticket_bytes(cell) if cell.kind in OWN_ARMS else None,
                model_bytes=size_of(self.place("models", cell), self.model_path(cell)),
                peak_memory_bytes=trained.get("peak_memory_bytes"),
            )

    def _ticket_bytes(self, cell: Cell) -> int | None:
        return size_of(self.place("tickets", cell), self.ticket_path(cell))

    def work_of(self, cell: Cell) -> tuple[Work, int]:
        """The work of a cell's networks, and their parameters."""
        if cell.thin is not None:
            return cell.thin.work, cell.thin.parameters
        record = self.record(cell.train)
        if "work" in record:
            return Work(**record["work"]), record["parameters"]
        return self.setting.work, sum(self.setting.parameters.values())

    def flops_of(self, record: Mapping[str, Any]) -> int:
        """The work of a whole training of the task's own networks."""
        return 2 * self.setting.work.step_macs * self.steps_of(record)

    def steps_of(self, record: Mapping[str, Any]) -> int:
        """How many steps a training took itself."""
        config = record["config"]
        end = int(record.get("diverged", record.get("steps", config["steps"])))
        return end - int(record.get("from_step", config.get("from_step", 0)))

    def summary(
        self, rows: list[Row], costs: list[CostRow], runs: Mapping[str, int]
    ) -> dict[str, Any]:
        """Verdicts, the count of runs, and what the report tells besides."""
        evidence = self.evidence(costs)
        verdicts = summarise(rows, evidence=evidence)
        notes = alike(self.plan.cells, self.record)
        diverged = {c.train for c in self.plan.cells if "diverged" in self.record(c.evaluate)}
        floor = self.record(self.plan.floor) if self.plan.floor else {}
        return {
            **verdicts,
            **({"notes": notes} if notes else {}),
            "runs": {**runs, "diverged": len(diverged)},
            "cost": spent(
                self.once(costs),
                behind(self.plan.graph, self.record, self.flops_of, self.plan.cells),
            ),
            "collapsed": dict(self._collapsed()),
            "convergence": self._convergence(verdicts["primary"]),
            "stability": self._stability(verdicts["primary"], rows),
            "early_bird": watched(self.plan, self.record, self.arm_label),
            "sampling_sd": dict(evidence.sampling_sd),
            "trivial": dict(evidence.trivial),
            "settling": {
                metric: {str(seed): share for seed, share in shares.items()}
                for metric, shares in evidence.settling.items()
            },
            "floor": floor.get("values", {}),
            "above_floor": above_floor(self.plan, self.record),
            "judged": {
                "reals": self.setting.reals,
                "fakes": self.setting.fakes,
                "floor": floor.get("n", 0),
            },
            "judge": self._network_behind(self.setting.judge),
            "classifier": self._network_behind(self.setting.classifier),
        }

    def evidence(self, costs: Iterable[CostRow] = ()) -> Evidence:
        """What the verdicts must know besides the rows."""
        networks = (self.setting.judge, self.setting.classifier)
        return Evidence(
            margins=dict(self.setting.config.verdict.margins),
            changed=changed_margins(
                self.setting.margins_first, fixed_margins(self.setting.config.verdict.margins)
            ),
            gates=failed_gates(*map(self._network_behind, networks)),
            sizes=larger_than_cut(costs),
            sampling_sd=sampling_sd(self.plan, self.record),
            trivial=trivial_values(self.plan, self.record),
            settling=settling_shares(self.plan, self.record),
        )

    def once(self, costs: list[CostRow]) -> list[CostRow]:
        """Cost rows with each training counted once, however many arms share it."""
        seen: dict[str, CostRow] = {}
        trained = [c for c in self.plan.cells if "not_run" not in self.record(c.train)]
        for cell, row in zip(trained, costs, strict=True):
            seen.setdefault(cell.train, row)
        return list(seen.values())

    def _collapsed(self) -> Iterator[tuple[str, list[str]]]:
        """Tickets of seed 0 with layers that lost every weight."""
        for cell in tickets(self.plan):
            name = str(cell.ticket)
            if cell.seed == 0 and self.wrote(name, TICKET):
                names = collapsed(self.store.read(name, TICKET, load_masks))
                if names:
                    yield f"{self.arm_label(cell.arm)}/round{cell.round:02d}", names

    def _convergence(self, primary: str | None) -> dict[str, float]:
        """Change of the primary metric over the last fifth of the training, as a share, by arm.

        The mean over seeds of (value at the end - value at 4/5) / value at 4/5, for the dense run
        and for the sparsest ticket of each arm.
        """
        changes: dict[str, list[float]] = {}
        last: dict[Arm, int] = {}
        for cell in self.plan.cells:
            if cell.evaluate not in self.plan.left_out:
                last[cell.arm] = max(cell.round, last.get(cell.arm, 0))
        for cell in self.plan.cells:
            if cell.kind not in ("dense", *OWN_ARMS) or cell.round not in (0, last[cell.arm]):
                continue
            steps = self.record(cell.evaluate).get("by_step", {})
            path = [steps[k].get(primary) for k in sorted(steps, key=int)]
            if len(path) >= 2 and path[0] and path[-1] is not None:
                label = f"{self.arm_label(cell.arm)}/{cell.kind}-round{cell.round:02d}"
                changes.setdefault(label, []).append((path[-1] - path[0]) / abs(path[0]))
        return {label: statistics.fmean(values) for label, values in changes.items()}

    def _stability(self, primary: str | None, rows: list[Row]) -> dict[str, dict[str, Any]]:
        """How much the ticket varies over seeds against dense and each control, by search."""
        if primary is None:
            return {}
        asked = self.setting.config.search.controls_of
        found = {
            search_name(key): stability(rows, primary, key, ("dense", *asked(key.method)))
            for key in searches_in(rows)
        }
        return {name: arms for name, arms in found.items() if arms}

    def _network_behind(self, spec: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """What judge or classifier is: its source, and the gates of one that was trained here."""
        if spec is None or spec["source"] != "run":
            return dict(spec) if spec else None
        network = spec.get("network")
        nodes = (n for n in self.plan.graph if n.kind == "judge")
        node = next((n for n in nodes if n.config.get("network") == network), None)
        record = self.record(node.hash) if node else {}  # it is not trained yet
        kept = ("data", "accuracy", "gate", "labelled", "steps")
        return {**spec, **{k: record[k] for k in kept if k in record}}

    def arm_label(self, arm: Arm) -> str:
        """The arm's folder name, which also stands for it in summary.json."""
        return arm.folder(self._rewinds[arm], len(self.setting.config.train.precision) > 1)

    @cached_property
    def _rewinds(self) -> dict[Arm, int | None]:
        return {cell.arm: cell.rewind_steps for cell in reversed(self.plan.cells)}

    def ticket_path(self, cell: Cell) -> Path:
        """The ticket in the store that a cell was trained from."""
        assert cell.ticket is not None
        return self.store.path(cell.ticket) / TICKET

    def model_path(self, cell: Cell) -> Path:
        """The trained networks in the store."""
        return self.store.path(cell.train) / FINAL

    def place(self, kind: str, cell: Cell) -> Path:
        """Where a cell's file of a kind is handed out; in a folder of its arm if there are several.

        ``kind``: tickets, models or samples.
        """
        folder = self.out / kind
        if len(self.plan.arms) > 1:
            folder /= self.arm_label(cell.arm)
        return folder / name_of(kind, cell)

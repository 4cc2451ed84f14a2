"""What a search around somebody's own training leaves in its folder, written from its rounds alone.

The same files as ``tombola find`` writes: tables, verdicts, tickets, models, grids, log, page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tombola.config.atomic import write_atomic
from tombola.config.surroundings import git_commit, versions
from tombola.errors import ConfigError
from tombola.loops.book import CONFIG, FINAL, GRID, TICKET, Book, Round
from tombola.metrics.rules import Rule, fixed_margins, own_rules
from tombola.metrics.verdict.decide import summarise
from tombola.report.page import write_report
from tombola.sparsity.masks import collapsed
from tombola.store.runs import write_json, write_log
from tombola.store.tables import CostRow, Row, write_costs, write_results
from tombola.tickets.ticket import load_ticket, save_model, save_ticket
from tombola.training.checkpoint import load_weights_file


def write_folder(book: Book, runs: Mapping[str, int]) -> dict[str, Any]:
    """Write OUT from the rounds that are there and return summary.json's object.

    ``runs``: how many trainings were ``trained`` and ``reused`` in this call.
    """
    return _Folder(book).write(runs)


def write_config(book: Book) -> None:
    """Write OUT/config.json: what was asked, what is known of the networks, versions.

    What only the training's own process knows (device, threads, its images) is there once a round
    is whole.
    """
    facts = book.facts
    whole = [book.read(*each) for each in book.rounds() if book.has(*each)]
    made = next((each for each in whole if not each.not_run), None)
    with own_rules(_rules(whole)):  # margins of what is measured besides are fixed with the others
        margins = fixed_margins()
    write_json(
        book.out / CONFIG,
        {
            "format": "tombola.config/1",
            "command": facts.command,
            "config": {
                "script": {
                    "fixed": facts.fixed(),
                    "given": dict(facts.given),
                    "state": list(facts.state),
                    "meaning": dict(facts.meaning),
                    "edited": list(facts.edited),
                    "rounds": len(facts.levels),
                    "seeds": facts.seeds,
                    "controls": list(facts.controls),
                },
                "run": {
                    "device": made.device if made else None,
                    "threads": made.threads if made else None,
                },
            },
            "resolved": {
                "task": facts.task,
                "data": facts.data,
                "rewind_steps": facts.rewind_steps,
                "parameters": dict(facts.parameters),
                "prunable": list(facts.prunable),
                "prunable_weights": {facts.networks: sum(facts.prunable.values())},
                "margins": margins,
                "shape": next((list(each.shape) for each in whole if each.shape), None),
            },
            "versions": versions(),
            "git_commit": git_commit(),
        },
    )


def _rules(rounds: Sequence[Round]) -> dict[str, Rule]:
    """What the trainings of a search say of metrics that have no rule; ConfigError for two ways."""
    found: dict[str, Rule] = {}
    for made in rounds:
        for metric, given in made.rules.items():
            rule = Rule(given["better"], given["margin"])
            if found.setdefault(metric, rule) != rule:
                raise ConfigError(
                    f"metric {metric!r} has two rules in one search: {found[metric].better} is "
                    f"better by {found[metric].margin}, and {rule.better} by {rule.margin}; give "
                    "one, and another out folder"
                )
    return found


@dataclass(frozen=True)
class _Folder:
    """The rounds of a book that are whole, as files."""

    book: Book

    @cached_property
    def rounds(self) -> list[Round]:
        return [self.book.read(*each) for each in self.book.rounds() if self.book.has(*each)]

    @cached_property
    def _measured(self) -> bool:
        return any(made.values for made in self.rounds)

    @cached_property
    def rows(self) -> list[Row]:
        return list(self._rows())

    def write(self, runs: Mapping[str, int]) -> dict[str, Any]:
        """Write every file; those that are there are replaced by equal ones."""
        out = self.book.out
        write_config(self.book)
        write_results(out / "results.csv", self.rows)
        write_costs(out / "costs.csv", list(self._costs()))
        summary = self._summary(runs)
        write_json(out / "summary.json", summary)
        self._write_tickets()
        self._write_models(summary)
        self._write_samples()
        self._write_log()
        write_report(out)
        return summary

    def key(self, made: Round) -> dict[str, Any]:
        """The columns that say which training a row is about."""
        facts = self.book.facts
        sparsity, sparsity_all = facts.sparsities(made.round)
        return {
            "task": facts.task,
            "data": facts.data,
            "method": facts.method,
            "arm": made.arm,
            "networks": facts.networks.replace(",", "+"),
            "rewind_steps": facts.rewind_steps,
            "precision": facts.precision,
            "seed": made.seed,
            "round": made.round,
            "sparsity": sparsity,
            "sparsity_all": sparsity_all,
        }

    def _rows(self) -> Iterator[Row]:
        """One row a measurement; events where a training diverged or was not run."""
        for made in self.rounds:
            if made.not_run or made.diverged is not None:
                metric = "not-run" if made.not_run else "diverged"
                yield Row(**self.key(made), metric=metric, value=1, step=made.diverged)
                continue
            if not self._measured:  # the page is of rows: at least how long each training was
                yield Row(**self.key(made), metric="steps", value=made.steps, step=made.steps)
            for metric, value in made.values.items():
                at = made.at.get(metric, made.steps)
                n = made.n.get(metric)
                yield Row(**self.key(made), metric=metric, value=value, n=n, step=at)

    def _costs(self) -> Iterator[CostRow]:
        """What each training took; the FLOPs of a loop that is not ours are not known: empty."""
        facts = self.book.facts
        total = sum(facts.parameters.values())
        for made in self.rounds:
            if made.not_run:
                continue
            path = self.book.path(made.arm, made.seed, made.round)
            gone = facts.kept(0) - facts.kept(made.round) if facts.prunable else 0
            yield CostRow(
                **self.key(made),
                train_seconds=made.seconds,
                search_seconds=sum(each.seconds for each in self._before(made)),
                eval_seconds=made.eval_seconds,
                parameters=total,
                nonzero_parameters=total - gone,
                ticket_bytes=_size(path / TICKET) if made.arm == "ticket" else None,
                model_bytes=_size(path / FINAL),
            )

    def _before(self, made: Round) -> list[Round]:
        """The trainings that had to be done to get a round's mask."""
        return [
            each
            for each in self.rounds
            if each.seed == made.seed
            and each.arm in ("dense", "ticket")
            and each.round < made.round
            and not each.not_run
        ]

    def _summary(self, runs: Mapping[str, int]) -> dict[str, Any]:
        """Verdicts, the count of runs, and what the report tells besides."""
        with own_rules(_rules(self.rounds)):
            verdicts = summarise(self.rows)
        trained = [made for made in self.rounds if not made.not_run]
        return {
            **verdicts,
            "runs": {**runs, "diverged": sum(made.diverged is not None for made in trained)},
            "cost": {"train_flops": None, "train_seconds": sum(m.seconds for m in trained)},
            "collapsed": dict(self._collapsed()),
            "notes": self._notes(trained),
        }

    def _notes(self, trained: Sequence[Round]) -> list[str]:
        """What a reader must know besides: nothing measured, trainings of other lengths."""
        notes = []
        if not self._measured:
            notes.append(
                "Nothing was measured, so there is no verdict: only tickets and, where the "
                "training gives samples, pictures. For a verdict call tombola.record(metric, "
                'value, better="lower") in the training, or give a judge.'
            )
        steps = sorted({made.steps for made in trained if made.diverged is None})
        if len(steps) > 1:
            notes.append(
                f"Not all trainings had the same length: {steps[0]:,} to {steps[-1]:,} steps."
            )
        facts = self.book.facts
        idle = sorted({name for made in trained for name in made.idle})
        if idle:
            notes.append(f"No optimizer took a step of {', '.join(idle)}: it did not learn.")
        if facts.state:
            more = f" and {len(facts.state) - 5} more" if len(facts.state) > 5 else ""
            notes.append(
                "The training itself changes these, and they are not put back between trainings: "
                f"{', '.join(facts.state[:5])}{more}."
            )
        for same in self.book.ends().values():
            if len(same) > 1:
                notes.append(
                    "These ended with the same weights, bit for bit: "
                    f"{'; '.join(made.title for made in same)}."
                )
        unlike = [made.title for made in trained if made.unlike]
        if unlike:
            notes.append(
                "These came with other weights than the dense training of their seed, so they are "
                "drawn without the seed, or loaded from a checkpoint of another training ({dir} "
                f"gives each a folder): {'; '.join(unlike[:3])}"
                + (f"; and {len(unlike) - 3} more." if len(unlike) > 3 else ".")
            )
        if facts.edited:
            notes.append(
                f"Edited between trainings, which went on by --same-script: "
                f"{', '.join(facts.edited)}."
            )
        return notes

    def _collapsed(self) -> Iterator[tuple[str, list[str]]]:
        """Tickets of seed 0 with layers that lost every weight."""
        facts = self.book.facts
        label = f"{facts.method}-{facts.networks.replace(',', '+')}-r{facts.rewind_steps}"
        for made in self.rounds:
            which = made.arm, made.seed, made.round
            if made.arm == "ticket" and made.seed == 0 and self.book.wrote(which, TICKET):
                names = collapsed(self.book.load(which, TICKET, load_ticket).masks)
                if names:
                    yield f"{label}/round{made.round:02d}", names

    def lineage(self, made: Round) -> dict[str, Any]:
        """The manifest of a ticket or model file: what it is and where it comes from."""
        facts, key = self.book.facts, self.key(made)
        parents = [self.book.name(each.arm, each.seed, each.round) for each in self._before(made)]
        return {
            "task": facts.task,
            "data": facts.data,
            "method": facts.method,
            "granularity": "weight",
            "networks": list(facts.parameters),
            "sparsity": key["sparsity"],
            "sparsity_all": key["sparsity_all"],
            "rewind_step": facts.rewind_steps,
            "seed": made.seed,
            "round": made.round,
            "parents": sorted(parents),
            "config": facts.fixed(),
            "scores": dict(made.values),
            "cost": {"train_steps": made.steps},
        }

    def _write_tickets(self) -> None:
        """OUT/tickets: every ticket with its lineage."""
        for made in self.rounds:
            which = made.arm, made.seed, made.round
            if made.arm == "ticket" and self.book.wrote(which, TICKET):
                ticket = self.book.load(which, TICKET, load_ticket)
                ticket.manifest = self.lineage(made)
                save_ticket(self._place("tickets", made, "seed"), ticket)

    def _write_models(self, summary: Mapping[str, Any]) -> None:
        """OUT/models: the dense and the best ticket's trained networks of every seed."""
        best = self._best_round(summary)
        for made in self.rounds:
            which = made.arm, made.seed, made.round
            wanted = made.arm == "dense" or (made.arm == "ticket" and made.round == best)
            if wanted and made.diverged is None and self.book.wrote(which, FINAL):
                manifest = {**self.lineage(made), "arm": made.arm}
                path = self._place("models", made, f"{made.arm}-seed")
                save_model(path, self.book.load(which, FINAL, load_weights_file), manifest)

    def _best_round(self, summary: Mapping[str, Any]) -> int:
        """The round of the ticket's sparsity by the primary metric; without a winner the first."""
        found = summary["verdicts"].get(summary["primary"], {})
        wanted = found.get("frontier")
        levels = range(1, len(self.book.facts.levels) + 1)
        own = {self.book.facts.sparsities(level)[0]: level for level in levels}
        return own.get(wanted, 1) if wanted else 1

    def _write_samples(self) -> None:
        """OUT/samples: the grids of seed 0, one an arm and round."""
        for made in self.rounds:
            which = made.arm, made.seed, made.round
            if made.seed == 0 and self.book.wrote(which, GRID):
                target = self.book.out / "samples" / f"{made.arm}-round{made.round:02d}.png"
                target.parent.mkdir(exist_ok=True)
                write_atomic(target, self.book.load(which, GRID, Path.read_bytes))

    def _write_log(self) -> None:
        """OUT/log.jsonl: what was measured on the way, and events, by step."""
        lines: list[dict[str, Any]] = []
        for made in self.rounds:
            where = {
                name: value
                for name, value in self.key(made).items()
                if name in ("method", "arm", "networks", "rewind_steps", "seed", "round")
            }
            lines += [{**where, **row} for row in made.log]
            if made.diverged is not None:
                lines.append({**where, "event": "diverged", "step": made.diverged, "why": made.why})
        write_log(self.book.out / "log.jsonl", lines)

    def _place(self, kind: str, made: Round, start: str) -> Path:
        """OUT/<kind>/<start><S>-round<RR>.safetensors, its folder made."""
        folder = self.book.out / kind
        folder.mkdir(exist_ok=True)
        return folder / f"{start}{made.seed}-round{made.round:02d}.safetensors"


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None

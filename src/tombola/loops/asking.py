"""What is asked of ``tombola run``, and can it be done? Answered before torch is imported."""

from __future__ import annotations

import re
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.config.registry import file_sha256
from tombola.config.sections import Config
from tombola.errors import ConfigError
from tombola.loops.book import Book, Facts, Round, rewind_steps
from tombola.loops.earlier import meaning_of
from tombola.loops.reading import check_records, files_of

SEED = "{seed}"
"""What stands for the seed in the words of the script's command."""
DIR = "{dir}"
"""What stands for a folder of each training's own."""
MANY = 10**9
"""Weights of a pool that is not known yet, to tell how sparse levels will be."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A script and what is to be done with it."""

    words: tuple[str, ...]
    """The script's command, with ``{seed}`` where the seed goes."""
    facts: Facts
    out: Path


def request_of(
    config: Config,
    words: Sequence[str],
    out: Path | None,
    command: str,
    *,
    name: str = "",
    same_script: bool = False,
) -> Request:
    """What ``tombola run`` was asked to do; ConfigError for what it cannot.

    ``name``: what the training is called in tables, by default as its script. ``same_script``: a
    search goes on though its script was edited.
    """
    search, prune = config.search, config.prune
    if not words:
        raise ConfigError(
            "tombola run got no command; give the script's after two dashes: "
            "tombola run --rounds 10 -- python train.py"
        )
    command_of(words)
    if search.seeds > 1 and not any(SEED in word for word in words):
        raise ConfigError(
            f"--seeds {search.seeds} would run the same command {search.seeds} times; put {SEED} "
            f"where the script takes its seed, such as --seed {SEED}"
        )
    step = _rewind_steps(config)
    task = _task_name(name, words)
    files = files_of(words)
    for path in files.values():
        if path.suffix == ".py":
            check_records(path)
    facts = Facts(
        task=task,
        networks=prune.networks[0],
        rewind_steps=step,
        rounds=search.rounds,
        rate=search.rate,
        sparsity=search.sparsity,
        seeds=search.seeds,
        controls=search.controls,
        steps=config.train.steps,
        asked={
            "words": list(words),
            "files": {word: file_sha256(path) for word, path in files.items()},
            # Not in the names of searches that leave nothing out.
            **({"exclude": list(prune.exclude)} if prune.exclude else {}),
        },
        meaning={word: meaning_of(path) for word, path in files.items()},
        same_script=same_script,
        command=command,
    )
    request = Request(words=tuple(words), facts=facts, out=out or Path("runs") / f"{task}-imp")
    Book(request.out, facts).check()
    return request


def _rewind_steps(config: Config) -> int:
    """The step that weights go back to; ConfigError for what only the script knows."""
    search, steps = config.search, config.train.steps
    if len(search.rewind) != 1 or len(config.prune.networks) != 1:
        raise ConfigError("tombola run takes one --rewind and one --prune; give one of each")
    return rewind_steps(search.rewind[0], steps, "the script")


def describe(request: Request) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """What would be run, without running it: the search as tables, and lines on the plan.

    What only the script knows (its networks, its work, how long it takes) is told once a training
    of this search is there.
    """
    book, facts = Book(request.out, request.facts), request.facts
    book.recall()
    every = list(book.rounds())
    whole = [each for each in every if book.has(*each)]
    shares = [f"{1 - facts.kept(k, MANY) / MANY:.1%}" for k in range(1, len(facts.levels) + 1)]
    kinds, done = (Counter(arm for arm, _, _ in found) for found in (every, whole))
    tables: dict[str, dict[str, Any]] = {
        "search": {
            "rounds": len(facts.levels),
            "rate": facts.rate,
            "sparsity": list(facts.sparsity),
            "rewind": f"{facts.rewind_steps}it",
            "controls": list(facts.controls),
            "seeds": facts.seeds,
        },
        "prune": {"networks": facts.networks, "exclude": facts.asked.get("exclude", [])},
        "train": {"steps": facts.steps},
        "script": {"words": list(request.words)},
    }
    return tables, [
        f"{len(every)} trainings of {' '.join(request.words)}, {len(whole)} of them there already",
        f"pruned: {facts.networks}; rewound to step {facts.rewind_steps}; each training "
        + (f"stopped after {facts.steps:,} steps" if facts.steps else "as long as the script goes"),
        f"sparsity by round: {', '.join(shares)}",
        f"of each seed ({facts.seeds}): dense, then the ticket of each round"
        + (f" and its controls {', '.join(facts.controls)}" if facts.controls else ""),
        f"in {request.out}",
        "graph:",
        *(f"  {arm}: {kinds[arm]} trainings, {done[arm]} of them done" for arm in kinds),
        *_estimates(book, [book.read(*each) for each in whole], len(every) - len(whole)),
    ]


def _estimates(book: Book, whole: Sequence[Round], left: int) -> list[str]:
    """Time and disk, by the trainings that are there, and what a margin needs."""
    from tombola.engine.dry_run import (  # torch, not needed to be refused
        disk,
        disk_bytes,
        seeds_line,
    )

    seconds = [made.seconds + (made.eval_seconds or 0.0) for made in whole if not made.not_run]
    lines = ["work: MACs are not known, as the script trains in its own way"]
    if not seconds:
        unknown = "not known before the first training; ask again when it is there"
        return [*lines, f"left: {left} trainings, one after another; time and disk are {unknown}",
                seeds_line(book.out, None)]  # fmt: skip
    each = sum(seconds) / len(seconds)
    size = disk_bytes(sum(book.facts.parameters.values()), left)
    told = f"left: {left} trainings, one after another: about {left * each / 60:.3g} minutes"
    told += f", by the {each:.3g} s of those that are there"
    return [*lines, told, disk(size), seeds_line(book.out, None)]


def command_of(words: Sequence[str], seed: int = 0, own: Path = Path()) -> list[str]:
    """The words as they are run for a seed: ``python`` is the Python that runs tombola.

    ``own``: the folder that stands for ``{dir}``.

    ConfigError if the first word is nothing that can be run, or a named script is not there.
    """
    words = [word.replace(SEED, str(seed)).replace(DIR, str(own.resolve())) for word in words]
    first = words[0]
    if first in ("python", "python3"):
        return [sys.executable, *words[1:]]
    if shutil.which(first) is None:
        raise ConfigError(
            f"{first!r} is no command that can be run; give one, such as python train.py"
        )
    return words


def _task_name(name: str, words: Sequence[str]) -> str:
    """What the training is called in tables: as asked, or the script's file name without its end.

    ConfigError for a name that no folder can have.
    """
    if name:
        if not re.fullmatch(r"[\w. -]{1,80}", name) or name.startswith("."):
            raise ConfigError(f"--name got {name!r}; give letters, digits, spaces and dashes")
        return name
    scripts = [word for word in words if word.endswith(".py")]
    return Path(scripts[0]).stem if scripts else Path(words[0]).name

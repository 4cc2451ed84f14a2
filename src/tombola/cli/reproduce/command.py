"""``tombola reproduce``: list the paper's claims, run the searches of one, hold them to it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tombola.cli import commands, travel
from tombola.cli.parser import build_parser
from tombola.cli.reproduce import claims, kept, pages
from tombola.cli.reproduce.claims import Reproduction, Scale, Search
from tombola.cli.reproduce.outcomes import BEGUN, NOT_RUN, Outcome, Rule, combine, words_of
from tombola.config.atomic import write_atomic
from tombola.errors import ConfigError


def do_reproduce(options: argparse.Namespace) -> int:
    """``tombola reproduce``."""
    if options.kept is not None:
        return _show_kept(options)
    if options.name is None:
        every = [claims.read(name) for name in claims.names()]
        wanted = [options.scale] if options.scale else claims.SCALES
        answers = [judge(made, scale) for made in every
                   for name, scale in made.scales.items() if name in wanted]  # fmt: skip
        show = pages.table_text if options.table else pages.list_text
        return commands.answer(options, [each.as_dict() for each in answers], show(answers))
    made = claims.read(options.name)
    scale = made.scale(options.scale or claims.SCALES[0])
    lost = False if options.table else carry_out(scale.searches, options.data_dir)
    found = judge(made, scale)
    if not options.table:
        from tombola.cli.reproduce.drawing import draw_first

        found.folder.mkdir(parents=True, exist_ok=True)
        draw_first(scale.searches[0].folder, made.sparsity, found.drawing)
    text = pages.answer_text(found)
    if not options.table:
        write_atomic(found.folder / "claims.md", f"{text}\n".encode())
        write_atomic(found.folder / "claims.json", pages.json_text(found.as_dict()).encode())
    commands.answer(options, found.as_dict(), text)
    return 1 if lost else 0


def _show_kept(options: argparse.Namespace) -> int:
    if not options.table or options.name or options.scale:
        raise ConfigError("--kept goes with --table alone: tombola reproduce --table --kept DIR")
    found = kept.judge_kept(Path(options.kept))
    return commands.answer(options, [each.as_dict() for each in found], kept.kept_text(found))


def parse_search(search: Search, data_dir: str | None = None) -> argparse.Namespace:
    """The words of a search as ``tombola find`` parses them; ConfigError for what it refuses."""
    place = [] if data_dir is None else ["--data-dir", data_dir]
    words = ["find", *search.words, *place, "--out", str(search.folder)]
    options = build_parser()[0].parse_args(words)
    options.words = shlex.join(["tombola", *words])
    return options


def carry_out(searches: Sequence[Search], data_dir: str | None) -> bool:
    """Run searches, or go on with them; returns whether all of one diverged.

    Every one is refused, if it is, before the first begins.
    """
    requests: list[Any] = []
    for search in searches:
        options = parse_search(search, data_dir)
        does: Any = commands if options.transfer_to is None else travel
        requests.append(does.search_request(options))
    from tombola import api
    from tombola.cli.bar import Bar
    from tombola.engine import transfers
    from tombola.engine.search import Request

    lost = False
    for search, request in zip(searches, requests, strict=True):
        bar = Bar()
        bar.note(search.command)
        does = api if isinstance(request, Request) else transfers
        result = does.carry_out(request, bar)
        lost = commands.all_diverged(result) or lost
    return lost


def judge(made: Reproduction, scale: Scale) -> pages.Answer:
    """What the searches that are there say of a claim; needs no torch."""
    folders = [_whole(search.folder) for search in scale.searches]
    outcomes = [_outcome(rule, folders[rule.get("search", 1) - 1]) for rule in scale.rules]
    state = combine(outcomes)
    there = any((search.folder / "config.json").is_file() for search in scale.searches)
    if state == NOT_RUN and there:
        state = BEGUN
    return pages.Answer(made, scale, state, outcomes)


def _outcome(rule: Rule, folder: Any) -> Outcome:
    if folder is None:
        return Outcome(words_of(rule), NOT_RUN)
    from tombola.cli.reproduce import (
        rules,  # numerics, which a list of what is not run does without
    )

    return rules.judge(rule, folder)


def _whole(folder: Path) -> Any:
    """The tables of a search that was run to its end, else None."""
    if not (folder / "summary.json").is_file():
        return None
    from tombola.report.folder import read_folder

    found = read_folder(folder)
    return None if found.summary.get("progress") else found

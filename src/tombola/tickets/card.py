"""What do other people need to know of a ticket that they are sent? A model card, and the file.

Every text that comes from a file stands in the card as code, so that it can be neither a link, nor
HTML, nor a line of the card's own.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.config.registry import DATA, TASKS, file_sha256, is_file_spec
from tombola.errors import ConfigError, escape
from tombola.store.container import open_file
from tombola.store.format import CHECKPOINT_FORMAT, TICKET_FORMAT, Header, counts, unsound
from tombola.tickets import hub

OF_ONE_MACHINE = ("--out", "--data-dir", "--workers")
"""Options of a command that say nothing to others."""
JUDGED = {"fcd": "", "kcd": "", "cs": "", "fid": "Inception", "kid": "Inception", "is": "Inception"}
"""Kinds of metrics that a judge gives -> its name, where it is not in the metric's."""


@dataclass(frozen=True)
class Published:
    """What goes to the hub, or has gone."""

    place: hub.Place
    card: str
    paths: tuple[str, ...]
    """Paths that the file's manifest names, which everyone will see."""
    url: str
    """Where it is; empty if nothing was sent."""


def publish(
    path: str | Path,
    target: str,
    *,
    private: bool = False,
    license: str | None = None,
    send: bool = True,
) -> Published:
    """Check a ticket or model file and put it on the hub with a model card.

    ``target``: ``hub:user/name[/file]``; the file's name there is otherwise ticket.safetensors or
    model.safetensors. ``license``: the hub's name of one, such as ``mit``. With ``send=False``
    nothing leaves this machine. TicketError for an unsound file; errors of ``hub.send``.
    """
    place = hub.parse(target)
    if place.revision is not None:
        raise ConfigError(f"{target} names a revision; what is published becomes a new one")
    if license is not None and not re.fullmatch("[a-z0-9][a-z0-9.-]{0,40}", license):
        raise ConfigError(f"--license got {license!r}; give the hub's name of one, such as mit")
    with open_file(path) as source:
        header = source.header
        if header.format == CHECKPOINT_FORMAT:
            todo = "give a ticket or model file"
            raise unsound(str(path), "a checkpoint of a run under way", todo)
        source.check()
    name = place.file or (hub.TICKET_FILE if header.format == TICKET_FORMAT else hub.MODEL_FILE)
    place = hub.Place(place.repository, None, name)
    text = card(Path(path), header, place, license)
    url = ""
    if send:
        files: dict[str, bytes | Path] = {name: Path(path), hub.CARD_FILE: text.encode()}
        message = f"{name}, checked and published by Tombola"
        url = hub.send(place, files, private=private, message=message)
    return Published(place, text, tuple(_paths(header.manifest.get("config"))), url)


def card(path: Path, header: Header, place: hub.Place, license: str | None) -> str:
    """The model card: Markdown with the hub's YAML front matter."""
    manifest, run = header.manifest, _search_of(path, header.manifest)
    is_ticket = header.format == TICKET_FORMAT
    what = "lottery ticket" if is_ticket else "model"
    task, data = manifest.get("task"), manifest.get("data")
    lines = [
        "---",
        hub.MARK,
        *([f"license: {license}"] if license else []),
        "tags:",
        "- lottery-ticket",
        "- pruning",
        *([f"- {task}"] if task in TASKS.names() else []),
        "---",
        "",
        f"# A {what} of {_code(task)} on {_code(data)}",
        "",
        _introduction(manifest, is_ticket),
        "",
        *_loading(header, place, is_ticket),
        "",
        "## What it is",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in _facts(path, header)),
        "",
        "## How good it is",
        "",
        *_scores(manifest.get("scores")),
        *_verdict(manifest, run),
        "",
        "## How it was found",
        "",
        *_command(run),
        "",
        "## Licence",
        "",
        f"{license} (as the publisher states)." if license else "The publisher states none: ask.",
        f"The images it was trained on, {_code(data)}, have a licence of their own.",
        "",
    ]
    return "\n".join(lines)


def _introduction(manifest: Mapping[str, Any], is_ticket: bool) -> str:
    if is_ticket:
        return (
            "A mask, and the weights and buffers that a training begins with: at step "
            f"{_code(manifest.get('rewind_step'))} of dense training, with "
            f"{_percent(manifest.get('sparsity'))} of the prunable weights gone. It is not trained "
            "to the end."
        )
    return (
        f"Trained networks of the arm {_code(manifest.get('arm'))}, with "
        f"{_percent(manifest.get('sparsity'))} of the prunable weights gone."
    )


def _loading(header: Header, place: hub.Place, is_ticket: bool) -> list[str]:
    plain = place.file in (hub.TICKET_FILE, hub.MODEL_FILE)
    where = f"{hub.PREFIX}{place.repository}{'' if plain else f'/{place.file}'}"
    if plain and place.file == hub.MODEL_FILE:
        where += f"/{hub.MODEL_FILE}"  # a ticket may come to lie beside it
    task, names = header.manifest.get("task"), header.manifest.get("networks") or ()
    known = task in TASKS.names()
    names = [escape(name, 40) for name in names]
    named = ", ".join(f'"{name}": ...' for name in names if name.isidentifier())
    if is_ticket:
        python = [
            f'ticket = tombola.load("{where}")',
            f"ticket.start({{{named}}})  # your own modules, by these names",
        ]
    else:
        own = "" if known else ', task="path/to/file.py:Class"'
        python = [
            f'networks = tombola.load_model("{where}"{own})',
            f"networks.keys()  # torch modules: {', '.join(filter(str.isidentifier, names))}",
        ]
    spoken = str(task) if known else "path/to/file.py:Class"
    command = f"train {spoken} --ticket {where}" if is_ticket else f"sample {where} --n 64 --out ."
    return [
        "```python",
        "import tombola",
        *python,
        "```",
        "",
        f"With `{_EXTRA}`. On the command line: `tombola inspect {where}`, `tombola {command}`.",
        "Loading runs no code: the file is safetensors and JSON, and all of it is checked first.",
    ]


_EXTRA = 'pip install "tombola[hub]"'


def _facts(path: Path, header: Header) -> Iterator[tuple[str, str]]:
    manifest = header.manifest
    for key in ("task", "data", "method", "granularity", "seed", "round", "rewind_step"):
        if manifest.get(key) is not None:
            yield key.replace("_", " "), _code(manifest[key])
    seeds = _at(manifest.get("config"), "search", "seeds")
    if seeds is not None:
        yield "training seeds of its search", _code(seeds)
    yield "networks", ", ".join(map(_code, manifest.get("networks") or ())) or "-"
    yield "sparsity", _percent(manifest.get("sparsity")) + " of the prunable weights"
    if manifest.get("sparsity_all") is not None:
        yield "sparsity of all", _percent(manifest["sparsity_all"]) + " of all parameters"
    kept, total = counts(header)
    if total:
        of = "channels" if manifest["granularity"] == "channel" else "weights"
        yield "kept", f"{kept:,} of {total:,} masked {of}"
    yield "file", f"{header.file_bytes:,} bytes, SHA-256 `{file_sha256(path)}`"
    made = manifest.get("created_with")
    for key, value in sorted(made.items()) if isinstance(made, dict) else [("made with", made)]:
        if value is not None:
            yield _code(key), _code(value)
    if manifest.get("data_hash") is not None:
        yield "hash of the images", _code(manifest["data_hash"])


def _scores(scores: object) -> list[str]:
    """The metrics of its training at the last step, each with the judge that gave it."""
    if not isinstance(scores, dict) or not scores:
        return ["No scores are recorded."]
    lines = ["| metric | value | judge |", "|---|---|---|"]
    for name, value in sorted(scores.items()):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        kind, _, judge = str(name).partition("-")
        given = _code(judge or JUDGED[kind]) if kind in JUDGED else "-"
        lines.append(f"| {_code(name)} | {f'{value:.6g}' if number else '-'} | {given} |")
    return [*lines, "", "Of the network trained from it, of this seed alone, on held-out images."]


def _verdict(manifest: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What its search found, over all its seeds; nothing if the search is not beside the file."""
    arms, primary = (_at(run, "summary", key) for key in ("arms", "primary"))
    verdict = _at(_arm_of(manifest, arms), str(primary))
    if not isinstance(verdict, dict):
        return ["", "The verdict of its search is not known here."]
    levels = [level for level in verdict.get("levels") or () if isinstance(level, dict)]
    own = "".join(
        f" At this sparsity: {_code(level.get('state'))}."
        for level in levels
        if level.get("round") == manifest.get("round")
    )
    seeds = f"over {_code(verdict.get('seeds'))} training seeds"
    return [
        "",
        f"Its search, {seeds}: {_code(str(verdict.get('sentence')).rstrip('.'), 400)}.{own}",
    ]


def _command(run: Mapping[str, Any]) -> list[str]:
    try:
        words = shlex.split(_at(run, "config", "command") or "")
    except (AttributeError, TypeError, ValueError):
        words = []
    if not words:
        return ["The command is not known here; the file's manifest has the whole config."]
    kept: list[str] = []
    skip = False
    for word in words:
        option = word.partition("=")[0]
        if skip or option in OF_ONE_MACHINE:
            skip = not skip and word in OF_ONE_MACHINE
            continue
        kept.append(word)
    return ["```bash", escape(shlex.join(kept), 2000).replace("`", "'"), "```"]


def _search_of(path: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` and ``summary.json`` of the search whose folder the file lies in, if any."""
    for folder in path.absolute().parents[1:3]:
        try:
            found = {
                name: json.loads((folder / f"{name}.json").read_text("utf-8"))
                for name in ("config", "summary")
            }
        except (OSError, ValueError):
            continue
        about = _at(found["config"], "resolved")
        told = (_at(about, "task"), _at(about, "data_sha256"))
        if told == (manifest.get("task"), manifest.get("data_hash")):
            return found
    return {}


def _arm_of(manifest: Mapping[str, Any], arms: object) -> dict[str, Any]:
    """The verdicts of a file's arm: the only one of its method, rewind step and precision."""
    config = manifest.get("config")
    networks, compress, precision = (
        str(_first(_at(config, *keys)))
        for keys in (("prune", "networks"), ("prune", "compress"), ("train", "precision"))
    )
    begin = f"{manifest.get('method')}/{networks.replace(',', '+')}"
    names = (
        f"{begin}/r{manifest.get('rewind_step')}/{precision}",
        f"{begin}/r0/{precision}/c{compress}",
    )
    return next((arm for name in names if isinstance(arm := _at(arms, name), dict)), {})


def _at(tree: object, *keys: str) -> Any:
    """A value in nested tables; None where there is no such table or key."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _first(value: object) -> object:
    return value[0] if isinstance(value, list) and value else value


def _paths(config: object, name: str = "config") -> Iterator[str]:
    """Values of a manifest's config that name files or folders, as ``section.key = value``."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _paths(value, f"{name}.{key}" if name != "config" else str(key))
    elif isinstance(config, str):
        folder, known = config.startswith(("folder:", "tensor:")), config in DATA.names()
        if folder or (is_file_spec(config) and not known):
            yield f"{name} = {config}"


def _code(text: object, limit: int = 120) -> str:
    """A text from a file as inline code, which Markdown shows as it is, also in a table."""
    return f"`{escape(text, limit).replace('`', chr(39)).replace('|', '/')}`"


def _percent(share: object) -> str:
    known = isinstance(share, int | float) and not isinstance(share, bool)
    return f"{share:.2%}" if known else "an unknown share"

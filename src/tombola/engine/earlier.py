"""May a folder be taken up again? What an earlier call put there, and what may differ from it.

What is there is used again and nothing of it is lost: counts grow, lists gain values, judges are
added, and all else stays as it was.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tombola.config.learned import LEARNED
from tombola.config.search import SearchSection
from tombola.config.sections import Config, build
from tombola.errors import ConfigError, UserError

Told = Mapping[str, Any]
"""What ``config.json`` holds."""

SEARCH, DENSE = "search", "dense"
"""Kinds of command: tickets are searched, or the dense network is trained."""
SEARCH_AND_TRANSFER = "search+transfer"
ADDED = {DENSE: (SEARCH, SEARCH_AND_TRANSFER), SEARCH: (SEARCH_AND_TRANSFER,)}
"""Kind of command -> those that only add to what it leaves."""
OF_DENSE = {("search", "seeds")}
"""What decides a dense training, of the sections of a search."""
EARLY_BIRD = "early-bird"
OF_EARLY_BIRD = (
    "compress", "settle", "rule", "delta", "draw_epochs", "scale_l1", "floor", "round_to",
)  # fmt: skip
"""Keys of ``prune`` that decide nothing else."""


def _grows(before: Any, after: Any) -> bool:
    return bool(before <= after)


def _gains(before: Any, after: Any) -> bool:
    """Whether all values are still there, in any order."""
    return set(before) <= set(after)


def _goes_on(before: Any, after: Any) -> bool:
    """Whether levels were added behind: others would change the masks of those that are there."""
    return bool(before) and list(after[: len(before)]) == list(before)


def _begins(before: Any, after: Any) -> bool:
    """Whether there was none before."""
    return not before


def _comes_down(before: Any, after: Any) -> bool:
    """Whether controls go from one level to all, where each was drawn at least once."""
    return bool(before == "frontier")


def _is_free(before: Any, after: Any) -> bool:
    return True


MAY_DIFFER: Mapping[tuple[str, str], tuple[Callable[[Any, Any], bool], str]] = {
    ("search", "seeds"): (_grows, "it can only grow"),
    ("search", "rounds"): (_grows, "it can only grow"),
    ("search", "stop_after"): (_is_free, ""),
    ("search", "anyway"): (_is_free, ""),
    ("search", "controls_at"): (_comes_down, "it can only change from frontier to all"),
    ("search", "draws"): (_grows, "it can only grow"),
    ("search", "sparsity"): (_goes_on, "it can only gain higher levels"),
    ("search", "method"): (_gains, "it can only gain values"),
    ("search", "rewind"): (_gains, "it can only gain values"),
    ("prune", "networks"): (_gains, "it can only gain values"),
    ("prune", "compress"): (_gains, "it can only gain values"),
    ("train", "precision"): (_gains, "it can only gain values"),
    ("judge", "validation_samples"): (_begins, "it can only change from 0"),
    ("judge", "fakes"): (_begins, "it can only change from 0"),
    ("judge", "features"): (_begins, "it can only be added"),
    ("run", "workers"): (_is_free, ""),
    ("run", "keep"): (_is_free, ""),
    ("run", "executor"): (_is_free, ""),
}
"""Values that may differ when a folder is taken up again: how, and how that is said."""


def read_earlier(out: Path) -> dict[str, Any] | None:
    """The ``config.json`` of an earlier call, if there is one."""
    path, foreign = out / "config.json", False
    try:
        earlier: dict[str, Any] = json.loads(path.read_text("utf-8"))
        foreign = "script" in earlier["config"]
        build(earlier["config"])
        run = earlier["config"]["run"]
        _ = run["threads"], run["device"], earlier["resolved"]["data_sha256"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError) as error:
        if foreign:
            raise ConfigError(
                f"{out} holds a search around a training of your own (tombola run, tombola.draw); "
                "choose another folder with --out"
            ) from error
        raise ConfigError(
            f"{path} of an earlier call cannot be used ({type(error).__name__}: {error}); if it "
            "was damaged, delete it and give the command that the search was begun with: what is "
            "in the store is used again; or choose another folder with --out"
        ) from error
    return earlier


def first_margins(out: Path, earlier: Told | None) -> dict[str, Any]:
    """The margins that a folder's results were first judged by; empty where there are none yet."""
    if earlier is None or not (out / "results.csv").exists():
        return {}
    kept = earlier["resolved"]
    return dict(kept.get("margins_first") or kept.get("margins") or {})


def inherit(config: Config, earlier: Told | None) -> Config:
    """What was decided in the first call, by the machine (device, threads) or by default, stays
    unless asked otherwise.

    So does how many images an earlier version judged by, which had another default.
    """
    if earlier is None:
        return config
    run, judge = earlier["config"]["run"], earlier["config"].get("judge", {})
    changes: dict[str, Any] = {}
    if not config.run.threads:
        changes["threads"] = run["threads"]
    if config.run.device == "auto":
        changes["device"] = run["device"]
    config = dataclasses.replace(
        config,
        run=dataclasses.replace(config.run, **changes),
        search=dataclasses.replace(config.search, **_design(config.search, earlier)),
    )
    if "fakes" not in judge and not config.judge.samples:
        asked = dataclasses.replace(config.judge, samples=judge.get("samples", 0))
        config = dataclasses.replace(config, judge=asked)
    return config


def _design(search: SearchSection, earlier: Told) -> dict[str, Any]:
    """When arms stop and how often controls are drawn, where that is not asked for: as before.

    A search of an older version did not stop.
    """
    changes: dict[str, Any] = {}
    if earlier["resolved"].get("recipe") != DENSE:
        before = earlier["config"].get("search", {})
        if search.stop_after < 0:
            changes["stop_after"] = before.get("stop_after", 0)
        if search.controls_at == "frontier" and not search.draws:
            changes["draws"] = before.get("draws", 0)
    return changes


def watched_groups(config: Config, earlier: Told | None) -> tuple[tuple[str, ...], ...]:
    """The shares of channels by the training in which early-bird seeks them; empty without it.

    Those of the first call are sought together. What a later call adds is sought in a training of
    its own, so that what is there is not trained anew.
    """
    if EARLY_BIRD not in config.search.method:
        return ()
    groups: list[tuple[str, ...]] = []
    if earlier is not None and EARLY_BIRD in _methods(earlier):
        told = earlier["resolved"].get("watched") or [earlier["config"]["prune"]["compress"]]
        groups = [tuple(shares) for shares in told]
    known = {share for shares in groups for share in shares}
    added = tuple(share for share in config.prune.compress if share not in known)
    return (*groups, added) if added else tuple(groups)


def _methods(told: Told) -> list[str]:
    default = Config().tables()["search"]["method"]
    return list(told["config"].get("search", {}).get("method", default))


def refuse_changes(earlier: Told, now: Told, out: Path) -> None:
    """ConfigError that shows what differs, unless all that is in the folder stays and gains."""
    differences = [
        *_command(earlier, now),
        *_values(earlier, now),
        *_routes(earlier, now),
    ]
    if earlier["resolved"]["data_sha256"] != now["resolved"]["data_sha256"]:
        differences.append("the images of the data source")
    if differences:
        raise ConfigError(
            f"{out} holds a search with another config ({'; '.join(differences)}); "
            "choose another folder with --out, or give the values it was begun with"
        )


def _command(earlier: Told, now: Told) -> Iterator[str]:
    """The kind of command, unless this one only adds; an older version did not record it."""
    before, after = (told["resolved"].get("recipe") for told in (earlier, now))
    if before is not None and after not in (before, *ADDED.get(before, ())):
        yield f"the kind of command {before!r} -> {after!r}"


def _values(earlier: Told, now: Told) -> Iterator[str]:
    """The values of the config that may not differ so."""
    defaults = Config().tables()
    dense = earlier["resolved"].get("recipe") == DENSE
    for section, table in now["config"].items():
        before = earlier["config"].get(section, {})
        if section == "verdict":  # a margin is judgement, not training: it may change, and is said
            continue
        if section != "task":
            # What an older version did not know was as it is now by default.
            before = {**defaults.get(section, {}), **before}
        for key in sorted({*table, *before}):
            if (
                dense
                and section in ("search", "prune", "rewind", *LEARNED)
                and (section, key) not in OF_DENSE
            ):
                continue
            if section in LEARNED and section not in _methods(earlier):
                continue
            if section == "prune" and key in OF_EARLY_BIRD and EARLY_BIRD not in _methods(earlier):
                continue
            was, is_now = before.get(key), table.get(key)
            if was != is_now and (how := _refused(section, key, earlier, now)) is not None:
                words = f" ({how})" if how else ""
                yield f"{section}.{key} {was!r} -> {is_now!r}{words}"


def _refused(section: str, key: str, earlier: Told, now: Told) -> str | None:
    """What a value could do instead, where it may not be what it is now; None where it may."""
    if (section, key) == ("search", "controls"):
        return None if _more_controls(earlier, now) else "they can only gain values"
    if (section, key) == ("search", "draws"):
        places = [told["config"].get("search", {}).get("controls_at") for told in (earlier, now)]
        if places == ["frontier", "all"]:
            return None
    if (section, key) == ("judge", "downstream"):
        before, after = (told["resolved"].get("classifier") for told in (earlier, now))
        return None if before in (None, after) else "it can only be added"
    may, how = MAY_DIFFER.get((section, key), (None, ""))
    if may is None:
        return how
    default = Config().tables()[section][key]
    was, is_now = (told["config"].get(section, {}).get(key, default) for told in (earlier, now))
    return None if may(was, is_now) else how


def _more_controls(earlier: Told, now: Told) -> bool:
    """Whether each method that was there keeps its controls: they are not those of the option."""
    before, after = (
        build({"search": told["config"].get("search", {})}).search for told in (earlier, now)
    )
    return all(_gains(before.controls_of(m), after.controls_of(m)) for m in before.method)


def _routes(earlier: Told, now: Told) -> Iterator[str]:
    """The transfers that are there and were not asked for again."""
    before, after = (
        {
            (r["source"], r["target"], r["networks"])
            for r in told.get("transfer", {}).get("routes", ())
        }
        for told in (earlier, now)
    )
    if "transfer" in now:
        for source, target, _ in sorted(before - after):
            yield f"the transfer from {source} to {target} is left out"

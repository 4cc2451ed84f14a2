"""Is this call one more of the search that a folder holds, or of another? By its config.json.

What was asked for must be the same. Two things may differ: the bytes of a script whose meaning is
the same, or was said to be (``--same-script``), and values that the training itself changes. The
rounds then keep the names that they had.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tombola.errors import ConfigError

if TYPE_CHECKING:
    from tombola.loops.book import Facts

MOST_SHOWN = 6
"""Differences that are shown of what was captured."""


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What the config.json of a folder says of the search; ``fixed`` is None where there is none.

    ConfigError from ``read`` for a folder of something else.
    """

    fixed: Mapping[str, Any] | None = None
    given: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    state: tuple[str, ...] = ()
    meaning: Mapping[str, str] = dataclasses.field(default_factory=dict)
    edited: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """What is in a config.json."""
        foreign = False
        try:
            config = json.loads(path.read_text("utf-8"))["config"]
            foreign = "search" in config
            script = config["script"]
            return cls(
                fixed=dict(script["fixed"]),
                given=dict(script.get("given") or {}),
                state=tuple(script.get("state") or ()),
                meaning=dict(script.get("meaning") or {}),
                edited=tuple(script.get("edited") or ()),
            )
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if foreign:
                raise ConfigError(
                    f"{path.parent} holds a search of tombola find, train or transfer; choose "
                    "another out folder"
                ) from error
            raise ConfigError(
                f"{path} is of no search around a training of your own "
                f"({type(error).__name__}: {error}); choose another out folder"
            ) from error

    def adopt(self, facts: Facts) -> Facts:
        """The facts of this call with what may differ as it was when the search began."""
        if self.fixed is None:
            return facts
        asked = dict(facts.asked)
        edited = self._edited(facts)
        if "files" in asked and (facts.same_script or not edited):
            asked["files"] = self.fixed.get("files")
        else:
            edited = []
        given = {k: v for k, v in facts.given.items() if not self._is_state(k)}
        given |= {k: v for k, v in self.given.items() if self._is_state(k)}
        return dataclasses.replace(
            facts,
            asked=asked,
            given=given,
            state=tuple(sorted({*self.state, *facts.state})),
            edited=tuple(sorted({*self.edited, *edited})),
        )

    def differences(self, facts: Facts) -> list[str]:
        """What was asked otherwise before, in words."""
        if self.fixed is None:
            return []
        earlier, now = self.fixed, json.loads(json.dumps(facts.fixed()))
        names = sorted({*earlier, *now} - {"given"})
        shown = [
            f"{key}: {earlier.get(key)!r} -> {now.get(key)!r}"
            for key in names
            if key != "files" and earlier.get(key) != now.get(key)
        ]
        if earlier.get("files") != now.get("files"):
            files = ", ".join(self._edited(facts))
            shown.append(f"files: {files} edited since, --same-script goes on all the same")
        if earlier.get("given") != now.get("given"):
            before, after = self.given, facts.given
            paths = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
            words = [f"{k}: {before.get(k)} -> {after.get(k)}" for k in paths]
            more = len(words) - MOST_SHOWN
            shown += words[:MOST_SHOWN] + ([f"{more} more"] if more > 0 else [])
        return shown

    def _is_state(self, path: str) -> bool:
        return any(path == place or path.startswith(f"{place}.") for place in self.state)

    def _edited(self, facts: Facts) -> list[str]:
        """Files whose code is another than it was, comments and descriptions apart."""
        before = (self.fixed or {}).get("files") or {}
        now = facts.asked.get("files") or {}
        return [
            name
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
            and (name not in self.meaning or self.meaning.get(name) != facts.meaning.get(name))
        ]


def meaning_of(path: Path) -> str:
    """SHA-256 of what a source file says to Python: without comments, layout and descriptions."""
    source = path.read_bytes()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body[0] = ast.Pass()
            node.body = [each for each in node.body if not isinstance(each, ast.Pass)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()

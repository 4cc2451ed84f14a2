"""Move modules of the package and rewrite every import of them, by a map from old to new names.

    python tools/move_modules.py MAP.json [--root FOLDER]

MAP.json: ``{"tombola.plan.chain": "tombola.plan.chain", "tombola.loops": "tombola.backends"}``;
a package stands for all that lies below it, and the longest name that fits wins. Files are moved
under FOLDER/src; imports, and dotted names in strings and texts, are rewritten wherever people
write. Where the last part of a name changes, code goes on to call the module by its old one (``from
tombola.plan import links as chain``): renaming what is inside is another step. Run ``ruff check
--fix . && ruff format .`` afterwards. No file is written unless all can be read.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

FOLDERS = ("src", "tests", "tools", "docs", "examples", "benchmarks")
SUFFIXES = {".py", ".md", ".toml", ".txt", ".json"}


def moved(name: str, names: Mapping[str, str]) -> str:
    """Where a dotted name is after the move: by the longest part of it that is in the map."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        head = ".".join(parts[:length])
        if head in names:
            return ".".join((names[head], *parts[length:]))
    return name


def rewrite_imports(text: str, modules: set[str], names: Mapping[str, str]) -> str:
    """The text of a Python file, its ``from ... import`` lines of moved modules rewritten.

    ``modules``: the names of all modules there are: what else is imported is something in one.
    """
    lines = text.splitlines(keepends=True)
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom)]
    for node in sorted(nodes, key=lambda node: node.lineno, reverse=True):
        if node.level:
            raise ValueError(f"line {node.lineno}: a relative import; write it out first")
        assert node.module
        assert node.end_lineno
        groups: dict[str, list[str]] = {}
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            place, name = moved(node.module, names), alias.name
            if full in modules:
                place, _, name = moved(full, names).rpartition(".")
            known = alias.asname or alias.name
            groups.setdefault(place, []).append(name if name == known else f"{name} as {known}")
        if list(groups) == [node.module] and not any(" as " in n for n in groups[node.module]):
            continue
        first, last = lines[node.lineno - 1], lines[node.end_lineno - 1]
        rest = last[node.end_col_offset :]
        begin = first[: node.col_offset]
        made = [f"from {place} import {', '.join(found)}" for place, found in groups.items()]
        joint = "; " if begin.strip() else f"\n{begin}"
        lines[node.lineno - 1 : node.end_lineno] = [begin + joint.join(made) + rest]
    return "".join(lines)


def rewrite_names(text: str, names: Mapping[str, str]) -> str:
    """The text with every dotted name of a moved module rewritten."""
    heads = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
    pattern = rf"(?<![\w.])({heads})(?![\w/])"
    return re.sub(pattern, lambda found: moved(found[1], names), text)


def modules_under(source: Path) -> dict[str, Path]:
    """Dotted name -> file of every module and package."""
    return {
        ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(source.rglob("*.py"))
    }


def targets(names: Mapping[str, str], source: Path) -> dict[Path, Path]:
    """File -> where it goes; ValueError if two meet, or if a name of the map is no module."""
    modules = modules_under(source)
    if strange := [name for name in names if name not in modules]:
        raise ValueError(f"no such module: {', '.join(strange)}; name those there are")
    goes = {}
    for name, path in modules.items():
        parts = moved(name, names).split(".")
        inside = (*parts, "__init__.py") if path.stem == "__init__" else (*parts[:-1], parts[-1])
        goes[path] = source.joinpath(*inside).with_suffix(".py")
    if len(set(goes.values())) < len(goes):
        raise ValueError("two modules would go to one place; give each its own")
    packages = {place.parent for place in goes.values()} - {source}
    if bare := sorted(p for p in packages if p / "__init__.py" not in goes.values()):
        raise ValueError(f"{bare[0].relative_to(source)} has no __init__.py; write it first")
    return {path: place for path, place in goes.items() if path != place}


def move(root: Path, names: Mapping[str, str]) -> list[Path]:
    """Move the modules under ``root``/src and rewrite all that names them; the files touched."""
    source = root / "src"
    goes = targets(names, source)
    modules, results = set(modules_under(source)), root / "docs" / "results"
    texts = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in SUFFIXES or not path.is_file() or path.is_relative_to(results):
                continue
            before = after = path.read_text(encoding="utf-8")
            if path.suffix == ".py":
                try:
                    after = rewrite_imports(before, modules, names)
                except (SyntaxError, ValueError) as error:
                    raise ValueError(f"{path.relative_to(root)}: {error}") from error
            after = rewrite_names(after, names)
            if after != before or path in goes:
                texts[path] = after
    for path in goes:
        path.unlink()
    for path, text in texts.items():
        place = goes.get(path, path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    return sorted(goes.get(path, path) for path in texts)


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("map", type=Path)
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent)
    given = parser.parse_args()
    try:
        touched = move(given.root, json.loads(given.map.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(touched)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())

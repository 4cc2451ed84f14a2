"""Measure: ``python benchmarks/run.py [NAME ...] [--out FILE]``. Without names: everything.

Prints a table for each benchmark; with ``--out`` keeps it in a Markdown file, where the section of
a benchmark that is measured again is replaced and the others stay.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from measure import HEADER, SOURCE, Section

BENCHMARKS = {
    "masks": ("bench_masks", "measured"),
    "linear-step": ("bench_steps", "linear"),
    "gan-step": ("bench_steps", "gan"),
    "select": ("bench_select", "measured"),
    "frechet": ("bench_frechet", "measured"),
    "judging": ("bench_judging", "measured"),
    "arms": ("bench_arms", "measured"),
    "savings": ("bench_savings", "measured"),
    "batches": ("bench_batches", "measured"),
    "workers": ("bench_workers", "measured"),
    "attach": ("bench_attach", "measured"),
    "start": ("bench_start", "measured"),
}
"""Name -> module and function of (size, blocks)."""
LIBRARIES = ("torch", "numpy", "scipy", "pillow")


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is named; 1 if a target was missed."""
    parser = argparse.ArgumentParser(description="Measure against the targets.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--out", type=Path, metavar="FILE", help="keep the tables in this file")
    parser.add_argument("--blocks", type=int, default=15, help="blocks of a comparison (15)")
    parser.add_argument("--size", choices=("full", "toy"), default="full", help="toy: for tests")
    asked = parser.parse_args(words)
    for name in asked.names:
        if name not in BENCHMARKS:
            parser.error(f"no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
    sys.path.insert(0, str(SOURCE))
    command = " ".join(["python benchmarks/run.py", *(sys.argv[1:] if words is None else words)])
    missed = False
    for name in asked.names or BENCHMARKS:
        before = load()
        module, function = BENCHMARKS[name]
        section = getattr(importlib.import_module(module), function)(asked.size, asked.blocks)
        text = rendered(section, command, asked.blocks, (before, load()))
        print(text, flush=True)
        missed = missed or any(row.met is False for row in section.rows)
        if asked.out is not None:
            keep(asked.out, section.title, text)
    return int(missed)


def rendered(section: Section, command: str, blocks: int, loads: tuple[float, float]) -> str:
    """A section in Markdown: how it was measured, the table, the notes."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M")
    head = (
        f"`{command}`, {now} UTC, {blocks} blocks, load {loads[0]:.1f} before and "
        f"{loads[1]:.1f} after."
    )
    lines = ["| " + " | ".join(cells) + " |" for cells in (HEADER, ["---"] * len(HEADER))]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in section.rows]
    return "\n\n".join([f"## {section.title}", head, "\n".join(lines), *section.notes]) + "\n"


def keep(path: Path, title: str, text: str) -> None:
    """Put a section into the file, in place of its last one, below the machine's description."""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    sections = {
        part.partition("\n")[0]: f"## {part.strip()}\n"
        for part in re.split(r"^## ", old, flags=re.MULTILINE)[1:]
    }
    sections[title] = text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([machine(), *sections.values()]), encoding="utf-8")


def machine() -> str:
    """What the numbers were measured on: processor, system, versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return (
        f"# Measured on {os.cpu_count()} cores of {processor()}\n\n"
        f"{platform.system()} {platform.release()}, Python {platform.python_version()}, "
        f"{versions}, glibc {platform.libc_ver()[1]}.\n\n"
        "Ratios are medians over blocks of ours, baseline, ours again, with quartiles; A/A is "
        "ours again over ours. See `benchmarks/README.md`.\n"
    )


def processor() -> str:
    """The processor's name and family, where Linux tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", text, re.MULTILINE))
    return (
        f"{found.get('model name', platform.machine())} "
        f"(family {found.get('cpu family', '?')}, model {found.get('model', '?')})"
    )


def load() -> float:
    """The 1-minute load average: how busy the machine is with anything."""
    return os.getloadavg()[0]


if __name__ == "__main__":
    sys.exit(main())

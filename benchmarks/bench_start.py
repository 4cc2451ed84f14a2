"""How soon does the command line answer, and does `import tombola` stay free of torch?"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

from measure import Comparison, Row, Section, Side, Spread, Timing, compare, plain_environment

LIGHT = "import sys, tombola; sys.exit('torch' in sys.modules)"


def command(*words: str) -> Side:
    """A side that starts a Python with these words and waits for its end."""

    def side() -> Timing:
        before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=plain_environment()
        )
        after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Timing(end - wall, cpu)

    side()
    return side


def measured(size: str, blocks: int) -> Section:
    """Seconds from the shell to the end of the help text, beside those of an empty program."""
    repeats = blocks if size == "full" else 1
    helped = compare(command("-m", "tombola", "--help"), command("-c", "pass"), repeats)
    imported = compare(command("-c", LIGHT), command("-c", "pass"), repeats)
    return Section(
        title="The start of the command line",
        rows=[
            _seconds("tombola --help", helped, 0.4),
            _seconds("import tombola, torch not among what it imports", imported, None),
        ],
        notes=[
            "Seconds, not ratios; the baseline is a Python that does nothing. The second line's "
            "program fails if torch was imported, so it is met by being there."
        ],
    )


def _seconds(label: str, found: Comparison, target: float | None) -> Row:
    return Row(
        label=label,
        value=Spread.of([t.wall for t in (*found.ours, *found.again)]),
        cpu=Spread.of([t.cpu for t in (*found.ours, *found.again)]),
        chance=found.chance(),
        seconds=found.seconds(),
        target=target,
        unit="s",
        verdict=True if target is None else None,
    )


if __name__ == "__main__":
    from run import main

    main(["start"])

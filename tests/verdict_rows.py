"""Rows of made-up searches for the tests of the verdict: losses in, measurements out."""

from __future__ import annotations

import math

from tombola.store.tables import Row

METRIC = "reconstruction_error"
LEVELS = (0.2, 0.36, 0.488, 0.59)


def row(arm, seed, number, value, metric=METRIC, **changes):
    values = {
        "task": "linear-ae",
        "data": "digits",
        "method": "imp",
        "arm": arm,
        "networks": "all",
        "rewind_steps": 10,
        "precision": "fp32",
        "seed": seed,
        "round": number,
        "sparsity": LEVELS[number - 1] if number else 0.0,
        "sparsity_all": 0.9 * LEVELS[number - 1] if number else 0.0,
        "metric": metric,
        "value": value,
        "n": 360,
        "step": 100,
    }
    return Row(**(values | changes))


def search(ticket, dense=(0.0, 0.0, 0.0), metric=METRIC, scale=math.exp, **arms):
    """Rows of a search from x, a list of seeds by level and arm: value = scale(x).

    None = no such training.
    """
    rows = [row("dense", s, 0, scale(x), metric) for s, x in enumerate(dense)]
    for arm, levels in {"ticket": ticket, **arms}.items():
        for number, xs in enumerate(levels, 1):
            for seed, x in enumerate(xs or ()):
                if x is not None:
                    rows.append(row(arm, seed, number, scale(x), metric))
    return rows


def event(rows, metric, arm, seed, number):
    """The rows with one run replaced by an event."""
    left = [r for r in rows if (r.arm, r.seed, r.round) != (arm, seed, number)]
    return [*left, row(arm, seed, number, 1, metric, n=None)]

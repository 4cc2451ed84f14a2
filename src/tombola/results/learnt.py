"""What a search found of its dense networks: trivial answers, settling, sampling, floors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tombola.metrics.rules import by_importance, metric_kind, rule_of
from tombola.plan.cells import Cell, Plan, four_fifths, sampled_anew

OF_SAMPLES = (
    "fid", "kid", "is", "fcd", "kcd", "cs", "precision", "recall", "density", "coverage",
)  # fmt: skip
"""Kinds of metrics in which a judge compares samples with reals."""


DISTANCES = ("fid", "kid", "fcd", "kcd")
"""Those that have a floor."""


Records = Callable[[str], Mapping[str, Any]]
"""A run's record by its name."""


def trivial_values(plan: Plan, record: Records) -> dict[str, float]:
    """Metric that can decide -> the value of a trivial answer, the best of several."""
    found: dict[str, list[float]] = {}
    for name in plan.trivial:
        made = record(name)
        early = made.get("by_step", {}).values()
        # A VAE's early states also make images again, for which the mean image is the answer.
        sampled = ({k: v for k, v in row.items() if metric_kind(k) in OF_SAMPLES} for row in early)
        for values in (made.get("values", {}), *sampled):
            for metric, value in values.items():
                if math.isfinite(value):
                    found.setdefault(metric, []).append(value)
    rules = {metric: rule_of(metric) for metric in found}
    return {
        metric: min(found[metric]) if rule.better == "lower" else max(found[metric])
        for metric, rule in rules.items()
        if rule is not None
    }


def settling_shares(plan: Plan, record: Records) -> dict[str, dict[int, float]]:
    """Metric that can decide -> seed -> |end - 4/5| / |4/5| of the dense training's steps.

    On validation where the course is measured in that metric, else on the judge split; no entry
    where there is neither. Of several precisions the one that is sampled anew.
    """
    shares: dict[str, dict[int, float]] = {}
    for cell, made in _dense(plan, record):
        last, early = str(made["step"]), str(four_fifths(made["step"]))
        paths = {
            metric: [made.get("by_step", {}).get(step, {}).get(metric) for step in (early, last)]
            for metric in made["values"]
            if rule_of(metric) is not None
        }
        course = made.get("course", {}).get("by_step", {})
        if paths and "denoising_loss" not in made["values"]:  # a diffusion's course is of that
            values = [course.get(step) for step in (early, last)]
            if None not in values:
                paths[min(paths, key=by_importance)] = values
        for metric, (before, after) in paths.items():
            known = before is not None and after is not None and early != last
            if known and math.isfinite(before) and math.isfinite(after) and before:
                share = abs(after - before) / abs(before)
                shares.setdefault(metric, {})[cell.seed] = share
    return shares


def sampling_sd(plan: Plan, record: Records) -> dict[str, float]:
    """Standard deviation over sampling seeds of one dense network, by metric."""
    if not plan.resampled:
        return {}
    records = [record(name) for name in (sampled_anew(plan).evaluate, *plan.resampled)]
    if any("values" not in each for each in records):
        return {}
    return {
        metric: statistics.stdev(each["values"][metric] for each in records)
        for metric in records[0]["values"]
    }


def above_floor(plan: Plan, record: Records) -> dict[str, float]:
    """Distance -> by how much the dense mean is above what training images score."""
    floor = record(plan.floor)["values"] if plan.floor else {}
    dense = [made["values"] for _, made in _dense(plan, record)]
    return {
        metric: statistics.fmean(values[metric] for values in dense) - least
        for metric, least in floor.items()
        if metric_kind(metric) in DISTANCES and dense
    }


def _dense(plan: Plan, record: Records) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    """The dense training of each seed and its judgement, in one precision; not if it diverged."""
    dense = [cell for cell in plan.cells if cell.kind == "dense"]
    precision = sampled_anew(plan).arm.precision if dense else ""  # none by a ticket of a file
    cells = {cell.seed: cell for cell in dense if cell.arm.precision == precision}
    for cell in cells.values():
        made = record(cell.evaluate)
        if "values" in made:
            yield cell, made

"""A run directory as the contract describes it, drawn by formula: what the report is tested on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tombola.metrics.statistics import summarise
from tombola.runs.results import CostRow, Row, write_costs, write_results


def kept(total: int, rate: float, level: int) -> int:
    """Weights left at a level by the contract's rule."""
    return math.floor(total * (1 - rate) ** level + 0.5)


def quality(arm: str, density: float, draw: np.random.Generator) -> float:
    """A plausible reconstruction error: flat, then rising, earlier for the controls."""
    strength = {"dense": 0.0, "ticket": 0.02, "shuffle": 0.24, "reinit": 0.17, "erk": 0.3}[arm]
    base = 0.0121 + draw.normal(0, 0.00009)
    return base * (1 + strength * (1 / density - 1) ** 0.75 / 2 * draw.uniform(0.75, 1.25))


def rows_of(
    *,
    task: str = "linear-ae",
    data: str = "mnist",
    methods: tuple[str, ...] = ("imp",),
    networks: tuple[str, ...] = ("all",),
    rounds: int = 20,
    rate: float = 0.2,
    seeds: int = 5,
    arms: tuple[str, ...] = ("ticket", "reinit", "shuffle"),
    diverged: bool = True,
    metrics: int = 3,
) -> Iterator[Row]:
    """One row per measurement, unsorted."""
    for method in methods:
        for place, pruned in enumerate(networks):
            total = 200_704 if place == 0 else 100_352
            for seed in range(seeds):
                for level in range(rounds + 1):
                    for arm in arms if level else ("dense",):
                        left = kept(total, rate, level)
                        entry: dict[str, Any] = {
                            "task": task, "data": data, "method": method, "arm": arm,
                            "networks": pruned, "rewind_steps": 10, "precision": "fp32",
                            "seed": seed, "round": level,
                            "sparsity": 1 - left / total,
                            "sparsity_all": (total - left) / 202_512,
                        }  # fmt: skip
                        draw = np.random.default_rng([seed, level, len(arm), place, len(method)])
                        died = diverged and arm == "shuffle" and seed == 1 and level >= 18
                        yield from _measured(
                            entry, draw, left / total, arm, died and level - 17, metrics
                        )


def _measured(
    entry: dict[str, Any],
    draw: np.random.Generator,
    density: float,
    arm: str,
    died: int,
    metrics: int,
) -> Iterator[Row]:
    if died:
        name = "diverged" if died == 1 else "not-run"
        yield Row(**entry, metric=name, value=1, step=4321 if died == 1 else None)
        return
    error = quality(arm, density, draw)
    values = {
        "reconstruction_error": error,
        "accuracy": 0.974 - 25 * max(error - 0.0121, -0.0002) + draw.normal(0, 0.0007),
        "active_units": float(round(31.5 - 2 * (1 - density))),
    }
    for name, value in values.items():
        yield Row(**entry, metric=name, value=value, n=10000, step=7500)


def cost_rows(rows: list[Row]) -> list[CostRow]:
    """One row of costs per network that was trained."""
    found: dict[tuple[object, ...], CostRow] = {}
    for row in rows:
        key = row.as_dict()
        key = {name: key[name] for name in list(key)[:12]}
        level, left, one = row.round, 202_512 * (1 - row.sparsity_all), 1.35e13
        found[tuple(key.values())] = CostRow(
            **key,
            train_flops=one, train_seconds=61.2 + level * 0.11, search_flops=one * level,
            search_seconds=61.2 * level, eval_seconds=1.9, macs_per_sample=200_704,
            parameters=202_512, nonzero_parameters=round(left),
            ticket_bytes=round(4 * left) + 26_000 if row.arm == "ticket" else None,
            model_bytes=811_000, peak_memory_bytes=512_000_000,
        )  # fmt: skip
    return list(found.values())


@lru_cache
def _font(size: float) -> Any:
    return ImageFont.load_default(size=size)


def digits(spoilt: float, seed: int, *, colour: bool = False, cell: int = 28) -> Image.Image:
    """A grid of 8 x 4 digits, the more spoilt the noisier."""
    grid = Image.new("RGB" if colour else "L", (cell * 8, cell * 4))
    pen = ImageDraw.Draw(grid)
    font = _font(cell * 0.75)
    for place in range(32):
        at = (place % 8 * cell + cell * 0.28, place // 8 * cell + 1)
        ink = (255, 200 - place * 5, 40 + place * 6) if colour else 245
        pen.text(at, str((place * 7 + place // 8) % 10), fill=ink, font=font)
    noise = np.random.default_rng(seed).normal(0, 4 + 90 * spoilt, np.asarray(grid).shape)
    dim = np.asarray(grid, np.float32) * (1 - 0.6 * spoilt)
    return Image.fromarray(np.clip(dim + noise, 0, 255).astype(np.uint8))


def write_run(out: Path, *, colour: bool = False, **options: Any) -> Path:
    """A whole OUT/; options go to :func:`rows_of`."""
    rows = list(rows_of(**options))
    (out / "samples").mkdir(parents=True)
    write_results(out / "results.csv", rows)
    write_costs(out / "costs.csv", cost_rows(rows))
    last = max(row.round for row in rows)
    summary = summarise(rows, controls=["reinit", "shuffle"]) | {
        "runs": {"trained": 120, "reused": 0, "diverged": 1},
        "cost": {"train_flops": 2.4e15, "train_seconds": 9123.0, "eval_seconds": 31.0},
        "collapsed": {f"imp-all-r10/round{last:02d}": ["decoder.0.weight", "decoder.2.weight"]},
        "convergence": {
            "imp-all-r10/dense-round00": -0.0042,
            f"imp-all-r10/ticket-round{last:02d}": -0.0087,
        },
        "sampling_sd": {"accuracy": 0.00031},
        "judge": {"source": "shipped", "accuracy": 0.9871, "sha256": "cd34" * 16},
    }
    (out / "summary.json").write_text(json.dumps(summary))
    (out / "config.json").write_text(json.dumps(config_of(rows[0], last, colour)))
    write_samples(out / "samples", rows, colour=colour)
    return out


def config_of(row: Row, rounds: int, colour: bool = False) -> dict[str, Any]:
    """What config.json records of a search."""
    return {
        "format": "tombola.config/1",
        "command": f"tombola find {row.task} --data {row.data} --preset paper --rounds {rounds}",
        "config": {
            "task": {"name": row.task, "preset": "paper", "width": 64},
            "data": {"name": row.data, "skip_broken": False},
            "search": {"method": ["imp"], "rounds": rounds, "rate": "0.2", "rewind": ["10it"]},
            "run": {"workers": 2, "threads": 1, "device": "cpu"},
        },
        "resolved": {
            "data_sha256": "ab12" * 16,
            "shape": [3, 32, 32] if colour else [1, 28, 28],
            "data_note": "28x28 grey padded to 32x32",
            "images": {"train": 54000, "validation": 6000, "judge": 10000},
            "prunable": {"all": ["encoder.0.weight", "decoder.0.weight"]},
        },
        "versions": {
            "tombola": "0.1.0", "python": "3.11.2", "torch": "2.13.0", "numpy": "2.1.0",
            "machine": "Linux x86_64, a processor with two cores",
        },
        "git_commit": "5f0c" * 10,
    }  # fmt: skip


def write_samples(folder: Path, rows: list[Row], *, colour: bool) -> None:
    """Grids named as the contract says; several searches have a folder each."""
    groups = {(row.method, row.networks, row.rewind_steps) for row in rows}
    digits(0, 0, colour=colour).save(folder / "originals.png")
    for method, networks, rewind in sorted(groups, key=str):
        place = folder if len(groups) == 1 else folder / f"{method}-{networks}-r{rewind}"
        place.mkdir(exist_ok=True)
        mine = {
            (row.arm, row.round)
            for row in rows
            if (row.method, row.networks) == (method, networks) and row.seed == 0
        }
        last = max(level for _, level in mine)
        for arm, level in sorted(mine):
            ease = 2.5 if arm == "ticket" else 1.0
            spoilt = (level / last) ** (2 * ease) / ease if level else 0.02
            grid = digits(spoilt, level, colour=colour, cell=32 if colour else 28)
            grid.save(place / f"{arm}-round{level:02d}.png")

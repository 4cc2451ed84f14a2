"""A run directory as the contract describes it, drawn by formula: what the report is tested on."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

KEYS = "task data method arm networks rewind_steps precision compress seed round sparsity".split()
COLUMNS = [*KEYS, "sparsity_all", "metric", "value", "n", "step"]
COSTS = (
    "train_flops train_seconds search_flops search_seconds eval_seconds macs_per_sample parameters "
    "nonzero_parameters ticket_bytes model_bytes peak_memory_bytes"
).split()
COST_COLUMNS = [*KEYS, "sparsity_all", *COSTS]
SENTENCE = (
    "A ticket of linear-ae on mnist wins up to 86.6% sparsity: as good as the dense network within "
    "5% of its reconstruction error, and better than reinit and shuffle."
)


def kept(total: int, rate: float, level: int) -> int:
    """Weights left at a level by the contract's rule."""
    return math.floor(total * (1 - rate) ** level + 0.5)


def quality(arm: str, density: float, draw: np.random.Generator) -> float:
    """A plausible reconstruction error: flat, then rising, earlier for the controls."""
    strength = {"dense": 0.0, "ticket": 0.05, "shuffle": 0.24, "reinit": 0.17, "erk": 0.3}[arm]
    base = 0.0121 + draw.normal(0, 0.00011)
    return base * (1 + strength * (1 / density - 1) ** 0.75 / 4)


def rows_of(
    *,
    task: str = "linear-ae",
    data: str = "mnist",
    methods: tuple[str, ...] = ("imp",),
    networks: tuple[str, ...] = ("decoder+encoder",),
    rounds: int = 20,
    rate: float = 0.2,
    seeds: int = 5,
    arms: tuple[str, ...] = ("ticket", "reinit", "shuffle"),
    diverged: bool = True,
) -> Iterator[dict[str, object]]:
    """One row per measurement, unsorted."""
    for method in methods:
        for place, pruned in enumerate(networks):
            total = 200_704 if place == 0 else 100_352
            for seed in range(seeds):
                for level in range(rounds + 1):
                    for arm in arms if level else ("dense",):
                        left = kept(total, rate, level)
                        entry: dict[str, object] = {
                            "task": task, "data": data, "method": method, "arm": arm,
                            "networks": pruned, "rewind_steps": 10, "precision": "fp32",
                            "compress": "", "seed": seed, "round": level,
                            "sparsity": 1 - left / total,
                            "sparsity_all": (total - left) / 202_512,
                        }  # fmt: skip
                        draw = np.random.default_rng([seed, level, len(arm), place, len(method)])
                        died = diverged and arm == "shuffle" and seed == 1 and level >= 18
                        yield from _measured(entry, draw, left / total, arm, died and level - 17)


def _measured(
    entry: dict[str, object], draw: np.random.Generator, density: float, arm: str, died: int
) -> Iterator[dict[str, object]]:
    if died:
        name = "diverged" if died == 1 else "not-run"
        yield entry | {"metric": name, "value": 1, "n": 1, "step": 4321 if died == 1 else 0}
        return
    error = quality(arm, density, draw)
    values = {
        "reconstruction_error": error,
        "accuracy": 97.4 - 4000 * max(error - 0.0121, -0.00002) + draw.normal(0, 0.1),
        "active_units": float(round(31.5 - 2 * (1 - density))),
    }
    for name, value in values.items():
        yield entry | {"metric": name, "value": float(value), "n": 10000, "step": 7500}


def cost_rows(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """One row of costs per network that was trained."""
    found: dict[tuple[object, ...], dict[str, object]] = {}
    for row in rows:
        key = {name: row[name] for name in [*KEYS, "sparsity_all"]}
        level = int(str(row["round"]))
        one = 1.35e13
        weights = 202_512
        found[tuple(key.values())] = key | {
            "train_flops": one, "train_seconds": 61.2 + level * 0.11,
            "search_flops": one * level if row["arm"] != "dense" else 0,
            "search_seconds": 61.2 * level if row["arm"] != "dense" else 0,
            "eval_seconds": 1.9, "macs_per_sample": 200_704, "parameters": weights,
            "nonzero_parameters": round(weights * (1 - float(str(row["sparsity_all"])))),
            "ticket_bytes": round(810_000 * (1 - float(str(row["sparsity_all"]))) + 26_000),
            "model_bytes": 811_000, "peak_memory_bytes": 512_000_000,
        }  # fmt: skip
    return list(found.values())


def digits(spoilt: float, seed: int, *, colour: bool = False, cell: int = 28) -> Image.Image:
    """A grid of 8 x 4 digits, the more spoilt the noisier."""
    grid = Image.new("RGB" if colour else "L", (cell * 8, cell * 4))
    pen = ImageDraw.Draw(grid)
    font = ImageFont.load_default(size=cell * 0.75)
    for place in range(32):
        at = (place % 8 * cell + cell * 0.28, place // 8 * cell + 1)
        ink = (255, 200 - place * 5, 40 + place * 6) if colour else 245
        pen.text(at, str((place * 7 + place // 8) % 10), fill=ink, font=font)
    noise = np.random.default_rng(seed).normal(0, 4 + 90 * spoilt, np.asarray(grid).shape)
    dim = np.asarray(grid, np.float32) * (1 - 0.6 * spoilt)
    return Image.fromarray(np.clip(dim + noise, 0, 255).astype(np.uint8))


def write_csv(path: Path, columns: list[str], rows: list[dict[str, object]]) -> None:
    """The contract's CSV: sorted by the columns in order, floats by repr, LF."""

    def sort_key(row: dict[str, object]) -> tuple[tuple[bool, float, str], ...]:
        cells = (row[name] for name in columns)
        return tuple(
            (True, 0.0, cell) if isinstance(cell, str) else (False, float(str(cell)), "")
            for cell in cells
        )

    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=sort_key))


def verdict(metric: str, rows: list[dict[str, object]], margin: float) -> dict[str, object]:
    """What summary.json says of one metric."""
    levels = sorted({int(str(row["round"])) for row in rows} - {0})
    sparsity = {int(str(row["round"])): float(str(row["sparsity"])) for row in rows}
    won = levels[: max(1, len(levels) // 2)]
    lost = levels[min(len(levels) - 1, len(levels) * 3 // 4)]
    return {
        "state": "wins",
        "sparsity": sparsity[won[-1]],
        "bracket": [sparsity[won[-1]], sparsity[lost]],
        "margin": margin,
        "decidable_margin": margin * 0.4,
        "seeds": len({row["seed"] for row in rows}),
        "controls": {"reinit": "worse", "shuffle": "worse"},
        "sentence": SENTENCE,
    }


def write_run(out: Path, *, colour: bool = False, **options: object) -> Path:
    """A whole OUT/; options go to :func:`rows_of`."""
    rows = list(rows_of(**options))  # type: ignore[arg-type]
    (out / "samples").mkdir(parents=True)
    (out / "tickets").mkdir()
    write_csv(out / "results.csv", COLUMNS, rows)
    write_csv(out / "costs.csv", COST_COLUMNS, cost_rows(rows))
    first = rows[0]
    config = {
        "task": {"name": first["task"], "preset": "paper"},
        "data": {"name": first["data"], "skip_broken": False},
        "train": {"steps": 7500, "epochs": 0.0, "precision": ["fp32"]},
        "search": {"method": ["imp"], "rounds": 20, "rate": "0.2", "rewind": ["10it"]},
        "verdict": {"reconstruction_error": 0.05},
        "run": {"workers": 2, "threads": 1, "device": "cpu"},
        "command": "tombola find linear-ae --data mnist --preset paper --rounds 20 --rate 0.2",
        "device": "cpu", "threads": 1, "git_commit": "5f0c" * 10, "machine": "x86_64, 2 cores",
        "versions": {"tombola": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "data_hash": "ab12" * 16,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))
    verdicts = {
        name: verdict(name, rows, margin)
        for name, margin in (("reconstruction_error", 0.05), ("accuracy", 1.0))
    }
    last = max(int(str(row["round"])) for row in rows)
    summary = {
        "verdicts": verdicts,
        "primary": "reconstruction_error",
        "runs": {"trained": 120, "reused": 0, "diverged": 1},
        "cost": {"train_flops": 2.4e15, "train_seconds": 9123.0},
        "collapsed": {f"reinit/{last}": ["decoder.0.weight", "decoder.2.weight"]},
        "sampling_sd": {"accuracy": 0.031},
    }
    (out / "summary.json").write_text(json.dumps(summary))
    write_samples(out / "samples", rows, colour=colour)
    return out


def write_samples(folder: Path, rows: list[dict[str, object]], *, colour: bool) -> None:
    """Grids named as the contract says; several searches have a folder each."""
    groups = {(row["method"], row["networks"], row["rewind_steps"]) for row in rows}
    digits(0, 0, colour=colour).save(folder / "originals.png")
    for method, networks, rewind in sorted(groups, key=str):
        place = folder if len(groups) == 1 else folder / f"{method}-{networks}-r{rewind}"
        place.mkdir(exist_ok=True)
        mine = {
            (str(row["arm"]), int(str(row["round"])))
            for row in rows
            if (row["method"], row["networks"]) == (method, networks)
        }
        last = max(level for _, level in mine)
        for arm, level in sorted(mine):
            ease = 2.5 if arm == "ticket" else 1.0
            spoilt = (level / last) ** (2 * ease) / ease if level else 0.02
            grid = digits(spoilt, level, colour=colour, cell=32 if colour else 28)
            grid.save(place / f"{arm}-round{level:02d}.png")

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

from tombola.metrics.verdict.decide import summarise
from tombola.report.curves import folder_of, key_of
from tombola.store.tables import CostRow, Row, write_costs, write_results


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
    summary = summarise(rows) | {
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


CHANNEL_ARMS = ("compact", "random-channels", "thin-flops", "thin-parameters")
_WHOLE = 5_651_584


def channel_rows(
    *,
    compress: tuple[float, ...] = (0.5, 0.8),
    precisions: tuple[str, ...] = ("fp32",),
    seeds: int = 3,
    imp_rounds: int = 0,
) -> list[Row]:
    """An early-bird search with its opponents, and an IMP search beside it if it has rounds."""
    rows = []
    for place, precision in enumerate(precisions):
        for seed in range(seeds):
            key = {"task": "dcgan", "data": "mnist", "precision": precision, "seed": seed,
                   "networks": "all", "n": 10000, "step": 7500}  # fmt: skip
            draw = np.random.default_rng([seed, place])
            dense = 12.0 + draw.normal(0, 0.15) + 0.2 * place
            for share in compress:
                own = key | {"method": "early-bird", "compress": share}
                rows += _measured_channels(own, dense, share, draw)
            own = key | {"method": "imp", "rewind_steps": 10}
            for level in range(imp_rounds + 1 if imp_rounds else 0):
                gone = 1 - 0.8**level
                for arm in ("ticket", "reinit", "shuffle") if level else ("dense",):
                    worse = {"ticket": 0.03, "reinit": 0.5, "shuffle": 0.7, "dense": 0}[arm]
                    value = dense * (1 + worse * gone**3) + draw.normal(0, 0.02)
                    value = dense if arm == "dense" else value
                    rows.append(Row(**own, arm=arm, round=level, sparsity=gone, sparsity_all=gone,
                                    metric="fid", value=value))  # fmt: skip
    return rows


def _measured_channels(
    own: dict[str, Any], dense: float, share: float, draw: np.random.Generator
) -> Iterator[Row]:
    gone = 1 - (1 - share) ** 1.6
    yield Row(**own, arm="dense", round=0, sparsity=0, sparsity_all=0, metric="fid", value=dense)
    slopes = zip(CHANNEL_ARMS, (0.04, 0.7, 0.35, 0.9), strict=True)
    for arm, slope in slopes:
        lost = slope * share**2 + (0.6 if share > 0.9 else 0)
        value = dense * (1 + lost) + draw.normal(0, 0.05)
        yield Row(**own, arm=arm, round=1, sparsity=gone, sparsity_all=gone, metric="fid",
                  value=value)  # fmt: skip


def channel_costs(rows: list[Row]) -> list[CostRow]:
    """One row of costs per network: those that are cut smaller cost less."""
    found = []
    for row in rows:
        key = {name: row.as_dict()[name] for name in list(row.as_dict())[:12]}
        whole, fast = 1.12e16, 0.9 if row.precision == "bf16" else 1.0
        left, found_at = (1 - row.sparsity) ** 1.1, 0.04
        train, search = (whole, whole * row.round) if row.method == "imp" else (whole, 0.0)
        if row.arm in ("compact", "random-channels"):
            train, search = whole * (1 - found_at) * left, whole * found_at
        elif row.arm == "thin-flops":
            train = whole * ((1 - found_at) * left + found_at)
        elif row.arm == "thin-parameters":
            train = whole * left * 0.7
        seconds = 4590.5 * fast * (1 + 0.01 * row.seed)
        slower = 0.6 if row.arm in CHANNEL_ARMS else 0.0  # a small network waits for its data
        found.append(CostRow(
            **key, train_flops=train, search_flops=search,
            train_seconds=seconds * (slower + (1 - slower) * train / whole),
            search_seconds=seconds * search / whole, eval_seconds=20.0, macs_per_sample=1,
            parameters=round(_WHOLE * (1 - row.sparsity * (row.arm in CHANNEL_ARMS))),
            nonzero_parameters=round(_WHOLE * (1 - row.sparsity)), model_bytes=1,
            ticket_bytes=1000 if row.arm in ("ticket", "compact") else None,
            peak_memory_bytes=1,
        ))  # fmt: skip
    return found


def watches(rows: list[Row], *, draws: int = 24, forced: float = 0.95) -> dict[str, Any]:
    """What summary.json tells of the watches; the last seed at the share ``forced`` was forced."""
    searches = {key_of(row) for row in rows if row.arm == "compact"}
    several = len({search.precision for search in searches}) > 1
    last = max(row.seed for row in rows)
    told: dict[str, Any] = {}
    for search in sorted(searches, key=str):
        share = search.compress or 0.5
        steps = [25 * (index + 1) for index in range(draws)]
        matrix = {name: [[round(min(0.5, spread * abs(math.log(a / b))), 4) for a in steps]
                         for b in steps]
                  for name, spread in (("discriminator", 0.2), ("generator", 0.3))}  # fmt: skip
        told[folder_of(search, several)] = {
            "rule": "paper", "delta": 0.1, "settle": "pooled", "prune": ["all"],
            "left": {"generator.main.12": "it makes the network's output"},
            "by_scale": ["generator"], "draws": steps, "matrix": matrix,
            "seeds": {str(seed): _seed_of(share, seed, steps, share == forced and seed == last)
                      for seed in range(last + 1)},
        }  # fmt: skip
    return told


def _seed_of(share: float, seed: int, steps: list[int], forced: bool) -> dict[str, Any]:
    level = 0.14 if forced else 0.08
    largest = {str(step): None if index < 4 else {
        "discriminator": (level + 0.35 * math.exp(-index / 5)) * (0.8 + 0.05 * seed),
        "generator": level + 0.45 * math.exp(-index / 6) + 0.005 * seed,
    } for index, step in enumerate(steps)}  # fmt: skip
    kept = round(448 * (1 - share))
    return {
        "step": 3750 if forced else steps[-1], "steps": 7500, "forced": forced,
        "overlap": {"discriminator": [0.84, 1 - share], "generator": [0.75, 1 - share]},
        "widths": {"discriminator.main.3": [448, kept + seed],
                   "generator.main.1": [256, kept // 2], "generator.main.4": [128, kept // 4]},
        "largest": largest,
    }  # fmt: skip


def write_channels(out: Path, *, forced: float = 0.95, **options: Any) -> Path:
    """A whole OUT/ of an early-bird search; options go to :func:`channel_rows`."""
    rows = channel_rows(**options)
    write_results(out / "results.csv", rows)
    write_costs(out / "costs.csv", channel_costs(rows))
    searches = list(dict.fromkeys(key_of(r) for r in rows if r.arm in ("ticket", "compact")))
    summary = summarise(rows)
    told = watches(rows, forced=forced)
    (out / "summary.json").write_text(json.dumps(summary | {"early_bird": told}, sort_keys=True))
    (out / "config.json").write_text(json.dumps(config_of(rows[0], 1)))
    several = len({search.precision for search in searches}) > 1
    for row in rows:
        if row.seed == 0:
            folder = out / "samples" / folder_of(key_of(row), several)
            folder.mkdir(parents=True, exist_ok=True)
            spoilt = row.sparsity**6 * (1 if row.arm in ("ticket", "compact") else 1.5)
            digits(spoilt, row.round).save(folder / f"{row.arm}-round{row.round:02d}.png")
    return out

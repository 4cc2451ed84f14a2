"""How often does the early-bird rule fire where there is nothing to find?

Streams of masks without any signal are given to the paper's rule (distance below 0.1) and to the
chance-corrected one (distance over chance below 0.1), for numbers of channels and shares removed:

- independent: each mask at random, whatever came before;
- steady walk: channel scales that begin at 1, all equal, and do a random walk of steps of one size;
- observed walk: the same with steps as large, beside the scales' spread, as a real training's were.

    python benchmarks/rule_null.py                   # two minutes, or six of a busy core
    python benchmarks/rule_null.py --train DATA_DIR  # train (10 to 30 minutes), measure its steps

Both print Markdown. A stream is one network of n channels; the ticket of several networks is found
when the last has settled, so never before any one of them.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import torch
from scipy.stats import multivariate_normal, norm
from torch import Tensor, nn

from tombola.config.registry import TASKS
from tombola.config.runtime import Runtime, derive_seed, seed_everything
from tombola.data.batches import Batches
from tombola.data.sources import load_images
from tombola.sparsity.earlybird import DELTA, LOOK_BACK, Watch, channel_masks, removed_count
from tombola.training.trainer import Settings, Trainer

Array = npt.NDArray[Any]
CHANNELS = (56, 120, 240, 480, 960)
SHARES = tuple(f"{percent / 100:.2f}" for percent in range(5, 100, 5))
RULES = ("paper", "corrected")
PIECE = 1 << 18
"""Scores that are simulated at a time: 2 MiB, which stay in the cache."""
TRAININGS = {"25 steps": (2_500, 25), "844 steps (a quarter epoch)": (10_128, 844)}
"""Interval of draws -> (steps, steps between draws) of a dcgan of the preset quick on MNIST, whose
epoch has 3,375 steps. The first is the preset's own length, 0.74 epochs; the second 3 epochs."""
# fmt: off
OBSERVED: dict[str, dict[str, tuple[float, ...]]] = {
    "25 steps": {
        "generator": (
            1.0, 0.6609, 0.4644, 0.365, 0.2967, 0.2551, 0.2329, 0.2184, 0.1858, 0.1468,
            0.1607, 0.1489, 0.1379, 0.1283, 0.1401, 0.1302, 0.157, 0.1497, 0.1274,
            0.1204, 0.1122, 0.1052, 0.1136, 0.1161, 0.0961, 0.0898, 0.0749, 0.0843,
            0.0828, 0.0825, 0.0774, 0.089, 0.071, 0.0663, 0.066, 0.0636, 0.0693, 0.0746,
            0.0661, 0.0608, 0.0578, 0.0599, 0.0645, 0.0663, 0.0601, 0.0568, 0.0521,
            0.0432, 0.0538, 0.0486, 0.0437, 0.0476, 0.0376, 0.0388, 0.0435, 0.0365,
            0.0399, 0.0344, 0.0342, 0.0305, 0.0343, 0.0259, 0.0261, 0.026, 0.0249,
            0.0234, 0.0198, 0.0226, 0.0211, 0.0188, 0.0158, 0.0182, 0.0154, 0.0148,
            0.0117, 0.0127, 0.0125, 0.0104, 0.0088, 0.0085, 0.0077, 0.0075, 0.0054,
            0.0062, 0.0055, 0.0044, 0.0034, 0.003, 0.0023, 0.0025, 0.0017, 0.0015,
            0.0009, 0.0008, 0.0005, 0.0004, 0.0002, 0.0001, 0.0, 0.0,
        ),
        "discriminator": (
            1.0, 0.5212, 0.4345, 0.4191, 0.3749, 0.3573, 0.3389, 0.3713, 0.3027, 0.3261,
            0.2548, 0.2744, 0.2488, 0.2327, 0.2201, 0.2276, 0.1932, 0.1729, 0.1835,
            0.1338, 0.1404, 0.1312, 0.1304, 0.1278, 0.1202, 0.1007, 0.0947, 0.0935,
            0.086, 0.0762, 0.0816, 0.0856, 0.0775, 0.0735, 0.0736, 0.0747, 0.0595,
            0.0617, 0.0619, 0.0627, 0.0573, 0.0555, 0.0569, 0.0547, 0.044, 0.0475,
            0.0459, 0.04, 0.0408, 0.0484, 0.0428, 0.0394, 0.0316, 0.0341, 0.036, 0.0319,
            0.029, 0.0297, 0.0248, 0.0262, 0.0231, 0.0207, 0.0202, 0.0183, 0.0209,
            0.0167, 0.0185, 0.0164, 0.0139, 0.0137, 0.0134, 0.0126, 0.0123, 0.0101,
            0.0092, 0.0085, 0.0084, 0.0072, 0.0069, 0.0058, 0.0055, 0.0044, 0.0053,
            0.0045, 0.0034, 0.0038, 0.003, 0.002, 0.0024, 0.0016, 0.0015, 0.001, 0.0008,
            0.0006, 0.0005, 0.0003, 0.0002, 0.0001, 0.0, 0.0,
        ),
    },
    "844 steps (a quarter epoch)": {
        "generator": (
            1.0, 0.4139, 0.2497, 0.1782, 0.1326, 0.1009, 0.076, 0.053, 0.04, 0.0252,
            0.0113, 0.002,
        ),
        "discriminator": (
            1.0, 0.4874, 0.2433, 0.1426, 0.1013, 0.0731, 0.0512, 0.0469, 0.0348, 0.0228,
            0.0099, 0.0019,
        ),
    },
}
# fmt: on
"""Interval -> network -> step over spread by draw, as `--train` printed it (see results/)."""


# --- streams without signal ----------------------------------------------------------------------


def step_sizes(ratios: Sequence[float]) -> Array:
    """Deviation of each step of a walk from one point, so that step / spread after it = ratio.

    Independent steps add up by squares: spread(t)^2 = spread(t-1)^2 + step(t)^2. The first ratio
    is 1 whatever is given, and the unit is the first step: masks see ranks only.
    """
    sizes, spread = [1.0], 1.0
    for ratio in ratios[1:]:
        after = spread / math.sqrt(1 - ratio**2)
        sizes.append(ratio * after)
        spread = after
    return np.array(sizes)


def streams(
    count: int, channels: int, sizes: Array | None, draws: int, generator: np.random.Generator
) -> Array:
    """Scores (count, draws, channels): a walk of steps of these sizes, or None for independent."""
    drawn = generator.standard_normal((count, draws, channels))
    if sizes is None:
        return drawn
    return 1.0 + np.cumsum(drawn * sizes[:, None], axis=1)


def worst(scores: Array, share: str, ordered: Array) -> tuple[Array, Array]:
    """(largest distance, the same corrected) of draws LOOK_BACK, ...: (count, draws - 4) each.

    As in tombola.sparsity.earlybird, for all streams at once; ``ordered``: the scores, sorted.
    """
    count, draws, n = scores.shape
    removed = removed_count(n, share)
    kept = scores >= ordered[..., removed : removed + 1]
    words = np.zeros((count, draws, -(-n // 64) * 8), dtype=np.uint8)
    words[..., : -(-n // 8)] = np.packbits(kept, axis=-1)
    packed = words.view(np.uint64)
    newest = packed[:, LOOK_BACK - 1 :]
    differ = np.zeros(newest.shape[:2], dtype=np.int64)
    for back in range(1, LOOK_BACK):
        before = packed[:, LOOK_BACK - 1 - back : draws - back]
        differ = np.maximum(differ, np.bitwise_count(newest ^ before).sum(-1, dtype=np.int64))
    return differ / n, differ * n / (2 * removed * (n - removed))


def first_alarm(distances: Array) -> Array:
    """The draw (from 1) of each stream's first distance below delta; 0 where there is none."""
    below = distances < DELTA
    return np.where(below.any(axis=1), below.argmax(axis=1) + LOOK_BACK, 0)


def simulated(
    channels: int, sizes: Array | None, draws: int, count: int, seed: int
) -> dict[tuple[str, str], tuple[Array, float]]:
    """(share, rule) -> (first alarm of each stream, share of single tests that pass)."""
    generator = np.random.default_rng(seed)
    found: dict[tuple[str, str], list[Array]] = {(s, r): [] for s in SHARES for r in RULES}
    passed = dict.fromkeys(found, 0.0)
    piece = max(1, PIECE // (draws * channels))
    for start in range(0, count, piece):
        scores = streams(min(piece, count - start), channels, sizes, draws, generator)
        ordered = np.sort(scores, axis=-1)
        for share in SHARES:
            for rule, distances in zip(RULES, worst(scores, share, ordered), strict=True):
                found[share, rule].append(first_alarm(distances))
                passed[share, rule] += float((distances < DELTA).mean()) * len(scores) / count
    return {key: (np.concatenate(parts), passed[key]) for key, parts in found.items()}


def expected_alarm(share: str, rule: str, sizes: Array) -> int:
    """The draw of the first alarm of a walk of so many channels that nothing is left to chance.

    The mask four draws ago is the farthest. The share of channels on different sides of the
    threshold in it and now is that of two normal variables of correlation spread / spread.
    """
    spread = np.sqrt(np.cumsum(sizes**2))
    removed = float(share)
    edge = float(norm.ppf(removed))
    limit = DELTA * (1.0 if rule == "paper" else 2 * removed * (1 - removed))
    for draw in range(LOOK_BACK, len(sizes) + 1):
        rho = float(spread[draw - LOOK_BACK] / spread[draw - 1])
        both = multivariate_normal.cdf([edge, edge], cov=[[1.0, rho], [rho, 1.0]])
        if 2 * (removed - float(both)) < limit:
            return draw
    return 0


def check_against_library(draws: int) -> None:
    """The rules above and tombola's own must agree on the first alarm of some streams."""
    generator = np.random.default_rng(derive_seed(0, "rule-null-check"))
    sizes = np.ones(draws)
    for channels, walk in ((56, sizes), (120, sizes), (56, None)):
        scores = streams(2, channels, walk, draws, generator)
        ordered = np.sort(scores, axis=-1)
        for share in ("0.05", "0.10", "0.90"):
            for rule, distances in zip(RULES, worst(scores, share, ordered), strict=True):
                for stream, draw in zip(scores, first_alarm(distances), strict=True):
                    own = watched({"net.0": torch.from_numpy(stream)}, share, rule).found or 0
                    assert own == draw, (channels, share, rule, own, draw)


def watched(scores: Mapping[str, Tensor], share: str, rule: str) -> Watch:
    """Tombola's own watch over scores (draws, n) by layer, with draws 1, 2, ... for steps."""
    watch = Watch(corrected=rule == "corrected")
    for index in range(len(next(iter(scores.values())))):
        masks = channel_masks({name: rows[index] for name, rows in scores.items()}, share)
        if masks is not None:
            watch.add(index + 1, masks)
    return watch


# --- a real training -----------------------------------------------------------------------------


def real_scales(data_dir: Path, steps: int, every: int) -> dict[str, Tensor]:
    """|BatchNorm scale| by ``network.layer``, (draws, n), of a dcgan training on MNIST, seed 0."""
    torch.set_flush_denormal(True)  # as in tombola's workers
    kind = TASKS.load("dcgan")
    task = kind(**{k: v for k, v in kind.presets["quick"].items() if k != "steps"})
    shape = task.image_shape(1)
    images = load_images("mnist", shape, data_dir=data_dir).splits["train"]
    seed_everything(0, "init")
    settings = Settings(runtime=Runtime.open("cpu", "fp32", 1), seed=0, total_steps=steps)
    trainer = Trainer(task, task.networks(shape), Batches(images, task.batch_size, 0), settings)
    layers = {
        f"{network}.{name}": module
        for network, whole in trainer.networks.items()
        for name, module in whole.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    drawn: dict[str, list[Tensor]] = {name: [] for name in layers}
    while trainer.step < steps:
        trainer.advance()
        if trainer.step % every == 0:
            for name, layer in layers.items():
                drawn[name].append(layer.weight.detach().abs().clone())
    return {name: torch.stack(rows) for name, rows in drawn.items()}


def observed_steps(scales: Mapping[str, Tensor], network: str) -> tuple[list[float], float]:
    """(step / spread after it, by draw; mean correlation of a step with the one before).

    Both are deviations over a network's channels, so a change that all share counts as none.
    """
    rows = torch.cat([v for k, v in scales.items() if k.startswith(f"{network}.")], 1).double()
    moves = torch.diff(rows, dim=0, prepend=torch.ones_like(rows[:1]))
    ratios = moves.std(1, correction=0) / rows.std(1, correction=0)
    moves = moves - moves.mean(1, keepdim=True)
    like = torch.nn.functional.cosine_similarity(moves[1:], moves[:-1], dim=1).mean()
    return [round(float(ratio), 4) for ratio in ratios], float(like)


def train_section(data_dir: Path) -> Iterator[str]:
    """What a real training's scales did, and when the rules fired on it; constants at the end."""
    constants = []
    for interval, (steps, every) in TRAININGS.items():
        started = time.perf_counter()
        scales = real_scales(data_dir, steps, every)
        seconds = time.perf_counter() - started
        networks = list(dict.fromkeys(name.partition(".")[0] for name in scales))
        yield f"### Draws every {interval}: {steps:,} steps, {steps // every} draws\n"
        yield f"dcgan, preset quick, MNIST, seed 0, {seconds:.0f} s of one thread. Channels: " + (
            ", ".join(
                f"{n} {sum(v.shape[1] for k, v in scales.items() if k.startswith(n + '.'))}"
                for n in networks
            )
            + ".\n"
        )
        constants.append(f'    "{interval}": {{')
        for network in networks:
            ratios, like = observed_steps(scales, network)
            shown = ", ".join(f"{draw}: {ratios[draw - 1]:.3g}" for draw in shown_draws(ratios))
            yield (
                f"- {network}: step over spread at draw {shown}; a step's correlation with the "
                f"one before is {like:.2f} on average."
            )
            constants.append(f'        "{network}": ({", ".join(map(str, ratios))}),')
        constants.append("    },")
        yield "\n" + table(
            ["removed", *(f"{n}, {rule}" for rule in RULES for n in (*networks, "found"))],
            [
                [share, *(str(x or "-") for rule in RULES for x in settled(scales, share, rule))]
                for share in SHARES
            ],
        )
    yield "Constants for OBSERVED:\n\n```\n" + "\n".join(constants) + "\n```\n"


def settled(scales: Mapping[str, Tensor], share: str, rule: str) -> list[int | None]:
    """The draw at which each network settled on one pool's masks, then that of the ticket."""
    watch = watched(scales, share, rule)
    return [*watch.settled.values(), watch.found]


def shown_draws(ratios: Sequence[float]) -> list[int]:
    return [draw for draw in (1, 2, 3, 5, 8, 12, 25, 50, 75, 100) if draw <= len(ratios)]


# --- tables --------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def cell(alarms: Array) -> str:
    """``share of streams in % @ median draw of those``."""
    fired = alarms[alarms > 0]
    if not len(fired):
        return "0"
    percent = 100 * len(fired) / len(alarms)
    text = "<1" if percent < 1 else ">99" if 99 < percent < 100 else f"{percent:.0f}"
    return f"{text} @ {np.median(fired):.0f}"


def null_section(title: str, sizes: Array | None, draws: int, count: int) -> Iterator[str]:
    """The table of one null, and for a walk the draw that is expected of many channels."""
    yield f"### {title}\n"
    results = {
        n: simulated(n, sizes, draws, count, derive_seed(0, f"rule-null-{title}", n))
        for n in CHANNELS
    }
    head = [f"{rule} {n}" for rule in RULES for n in CHANNELS]
    rows = [
        [share, *(cell(results[n][share, rule][0]) for rule in RULES for n in CHANNELS)]
        for share in SHARES
    ]
    if sizes is not None:
        head += [f"{rule}, expected" for rule in RULES]
        for row in rows:
            row += [str(expected_alarm(row[0], rule, sizes) or "-") for rule in RULES]
    yield table(["removed", *head], rows)
    if sizes is None:
        single = ", ".join(
            f"{100 * results[n][share, 'paper'][1]:.0f}% ({n} channels, {share})"
            for n in CHANNELS
            for share in (SHARES[0], SHARES[-1])
        )
        yield f"Single tests (draws {LOOK_BACK} to {draws}) that pass the paper's rule: {single}.\n"


def nulls(draws: int, count: int) -> Iterator[str]:
    """All tables of the study."""
    check_against_library(min(draws, 40))
    yield (
        f"{count:,} streams of {draws} draws a cell: the share of streams with an alarm, in %, at "
        "the median draw of the first one. Its standard error is at most "
        f"{50 / math.sqrt(count):.1f} points. *Expected*: the draw at which the mean distance to "
        "the mask four draws before falls below the limit, for infinitely many channels.\n"
    )
    yield from null_section("Independent masks", None, draws, count)
    yield from null_section("Steady walk", np.ones(draws), draws, count)
    for interval, networks in OBSERVED.items():
        for network, ratios in networks.items():
            sizes = step_sizes(ratios[:draws])
            title = f"Observed walk: {network}, {len(sizes)} draws every {interval}"
            yield from null_section(title, sizes, len(sizes), count)


def heading(seconds: float) -> str:
    words = ["DATA_DIR" if Path(word).is_dir() else word for word in sys.argv[1:]]
    command = shlex.join(["python", "benchmarks/rule_null.py", *words])
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return (
        f"`{command}`, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {seconds:.0f} s on one thread, load "
        f"{os.getloadavg()[0]:.1f}, {os.cpu_count()} cores of {cpu}. Python "
        f"{platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}, scipy "
        f"{scipy.__version__}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=100, help="masks of a stream (100)")
    parser.add_argument("--streams", type=int, default=1000, help="streams of a cell (1000)")
    parser.add_argument(
        "--train", type=Path, metavar="DATA_DIR", help="train instead, on DATA_DIR/mnist"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    lines = train_section(given.train) if given.train else nulls(given.draws, given.streams)
    text = list(lines)
    print(heading(time.perf_counter() - started), *text, sep="\n")


if __name__ == "__main__":
    main()

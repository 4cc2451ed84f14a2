"""The names of all runs and the bytes of all tables of one small search a backend, pinned.

A refactoring moves none of them. What a change moves on purpose is written anew by ``python
tests/test_pinned.py [SEARCH ...]`` in the same commit, which says why. The names of runs and the
keys of rows are exact everywhere. The numbers are those of one processor and version of torch,
since others round the last bits of a sum in another order: bytes are compared where a few plain
operations of torch come out as they did where the pins were made, and only there.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import in_process
import tombola
from tombola.cli import command_line as cli
from tombola.loops import attaching
from tombola.store.runs import Store

HERE = Path(__file__).parent
PINS = HERE / "pinned.json"
SMALL = {
    "data": "digits", "threads": 1, "workers": 1, "device": "cpu", "seeds": 1, "rounds": 2,
    "rate": "0.5", "rewind": "2it", "steps": 6,
}  # fmt: skip
JUDGE = {"samples": 20, "validation_samples": 10, "sampling_seeds": 1}
AE = {
    "task": {"name": "linear-ae", "width": 4, "batch_size": 8},
    "judge": {**JUDGE, "downstream": "none"},
}
EARLY_BIRD = {
    "task": {"name": "dcgan", "width": 4, "latent": 4, "batch_size": 64},
    "judge": {**JUDGE, "steps": 2},
    "prune": {"delta": 0.9},
}
TWINS = " ".join(
    f"--set task.{name}.{option}"
    for name in ("vae", "dcgan")
    for option in ("width=2", "latent=4", "batch_size=8")
)
LEVELS = "--rounds 1 --rate 0.5 --rewind 2it --seeds 1 --steps 6"
CLOCKED = ("_seconds", "_bytes")
"""Columns of costs.csv that a clock or an allocator decides, or the length of such a number."""


def imp(out: Path) -> None:
    controls = ["reinit", "shuffle", "erk", "reinit-chain", "thin-parameters", "dense-long"]
    tombola.find("linear-ae", out=out, settings=AE, controls=controls, **SMALL)


def other_methods(out: Path) -> None:
    method = ["one-shot", "snip", "grasp", "synflow", "random", "gates", "gradual"]
    options = {**SMALL, "rounds": 1}
    tombola.find("linear-ae", out=out, settings=AE, method=method, controls=["reinit"], **options)


def early_bird(out: Path) -> None:
    options = {**SMALL, "steps": 20, "compress": "0.5"}
    tombola.find("dcgan", out=out, settings=EARLY_BIRD, method="early-bird", **options)


def transfer(out: Path) -> None:
    small = f"--preset shared {TWINS} --data digits --threads 1 --workers 1 --device cpu"
    judge = " ".join(f"--set judge.{name}={value}" for name, value in JUDGE.items())
    words = f"transfer --matrix vae,dcgan {small} {judge} {LEVELS} --out {out}"
    assert cli.main([*words.split(), "--set", "judge.downstream=none"]) == 0


def networks() -> dict[str, nn.Module]:
    return {"encoder": nn.Linear(6, 4), "decoder": nn.Linear(4, 6)}


def train(made: dict[str, nn.Module]) -> None:
    parameters = [p for network in made.values() for p in network.parameters()]
    optimizer = torch.optim.SGD(parameters, 0.1)
    images = torch.linspace(-1, 1, 48).reshape(8, 6)
    for _ in range(6):
        loss = (made["decoder"](made["encoder"](images)) - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def judge(made: dict[str, nn.Module]) -> float:
    return float(made["decoder"](made["encoder"](torch.ones(1, 6))).square().mean())


def draw(out: Path) -> None:
    tombola.draw(
        train,
        networks,
        judge=judge,
        better="lower",
        margin=0.1,
        **{name: SMALL[name] for name in ("seeds", "rounds", "rate", "rewind", "steps")},
        out=out,
    )


def script(out: Path) -> None:
    words = f"run {LEVELS} --controls reinit,shuffle --out {out} -- python twin_linear_ae.py"
    assert cli.main([*words.split(), "--seed", "{seed}", "--steps", "6", "--width", "4"]) == 0


SEARCHES = {
    "imp": imp,
    "other methods": other_methods,
    "early-bird": early_bird,
    "transfer": transfer,
    "draw": draw,
    "run": script,
}


def make(name: str, out: Path) -> Path:
    """Carry a search out in this process; its folder."""
    with pytest.MonkeyPatch.context() as patch, in_process.Restored():
        in_process.use(patch)
        in_process.use_scripts(patch)
        patch.setattr(attaching, "_told", True)
        patch.chdir(HERE)  # the words that name a file of tests are part of a run's name
        SEARCHES[name](out)
    return out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Search -> its folder, made when it is first asked for."""
    folder = tmp_path_factory.mktemp("pinned")
    return cache(lambda name: make(name, folder / name.replace(" ", "-")))


def runs_of(out: Path) -> dict[str, str]:
    """What a run is -> its name."""
    store, found = Store(out / "store"), {}
    for name in store.finished():
        record = store.record(name)
        told = record.get("round") or record
        words = [str(told[key]) for key in ("kind", "label", "arm", "seed", "round") if key in told]
        found.setdefault(" ".join(words), []).append(name)
    return {what: " ".join(sorted(names)) for what, names in sorted(found.items())}


def columns_of(path: Path, *, out: tuple[str, ...]) -> str:
    """The text of a table less the columns whose names end so."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    kept = [k for k, name in enumerate(rows[0]) if not name.endswith(out)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([row[k] for k in kept] for row in rows)
    return text.getvalue()


def timeless(value: object) -> object:
    """A JSON value less the seconds in it."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if not k.endswith("seconds")}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()[:32]


def keys_of(out: Path) -> str:
    """Digest of what results.csv says it has: all but the numbers that were measured."""
    return digest(columns_of(out / "results.csv", out=("value", "sparsity_all", "sparsity")))


def bytes_of(out: Path) -> dict[str, str]:
    """Table -> digest of its bytes, less what a clock decides."""
    summary = json.loads((out / "summary.json").read_text())
    return {
        "results.csv": digest((out / "results.csv").read_bytes()),
        "costs.csv": digest(columns_of(out / "costs.csv", out=CLOCKED)),
        "summary.json": digest(json.dumps(timeless(summary), sort_keys=True)),
    }


def surroundings() -> str:
    """How this processor and this torch round: a digest of plain operations on fixed numbers."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 1, 28, 28, generator=generator)
    layers = [torch.randn(*s, generator=generator) for s in ((4, 1, 4, 4), (4, 2, 4, 4), (9, 392))]
    for layer in layers:
        layer.requires_grad_(True)
    hidden = functional.conv2d(images, layers[0], stride=2, padding=1)
    hidden = functional.batch_norm(hidden, None, None, training=True)
    hidden = functional.conv_transpose2d(hidden.tanh(), layers[1], stride=2, padding=1)
    hidden = functional.linear(hidden[:, :1, ::2, ::2].flatten(1).repeat(1, 2), layers[2])
    optimizer = torch.optim.Adam(layers, 0.01, fused=True)
    functional.softplus(hidden).square().mean().backward()
    optimizer.step()
    square = layers[2].detach().double() @ layers[2].detach().double().T
    parts = [*layers, torch.linalg.eigvalsh(square), torch.linalg.svdvals(square)]
    return digest(b"".join(part.detach().numpy().tobytes() for part in parts))


def pinned() -> dict[str, dict[str, object]]:
    return json.loads(PINS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SEARCHES)
def test_runs_keep_their_names_and_tables_their_keys(folders, name):
    assert runs_of(folders(name)) == pinned()[name]["runs"]
    assert keys_of(folders(name)) == pinned()[name]["keys"]


@pytest.mark.parametrize("name", SEARCHES)
def test_tables_keep_their_bytes(folders, name):
    if surroundings() != pinned()["surroundings"]["digest"]:
        pytest.skip("another processor or torch than that of the pins rounds otherwise")
    assert bytes_of(folders(name)) == pinned()[name]["bytes"]


def test_all_kinds_of_runs_are_among_them():
    from tombola.store.graph import SCHEMA

    names = [name for name in SEARCHES if name not in ("draw", "run")]
    runs = {what.split()[0] for name in names for what in pinned()[name]["runs"]}
    # A ticket file that is taken in has its bytes in its name, which are those of a processor; the
    # network that judges digits comes with the package.
    assert set(SCHEMA) - runs == {"import", "judge"}


def main() -> None:
    import tempfile

    os.environ.pop("TOMBOLA_INCEPTION", None)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TOMBOLA_CACHE"] = f"{folder}/cache"
        pins = pinned()
        for name in sys.argv[1:] or SEARCHES:
            out = make(name, Path(folder) / name.replace(" ", "-"))
            pins[name] = {"runs": runs_of(out), "keys": keys_of(out), "bytes": bytes_of(out)}
    pins["surroundings"] = {"digest": surroundings(), "torch": torch.__version__}
    PINS.write_text(json.dumps(pins, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    print(f"wrote {PINS.name}", file=sys.stderr)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

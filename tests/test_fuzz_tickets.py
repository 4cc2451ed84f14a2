"""Thousands of spoilt files: each loads as what was written into it, or is refused; nothing else.

Bits are flipped and bytes moved at random; hypothesis changes what a file says of itself, with the
checksum made right again, so that the checks behind it are reached. While a file is read, nothing
may be imported, run, written or fetched, and no tensor's memory taken before all is checked.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tombola.engine.ticket_config import ticket_config
from tombola.errors import TicketError, UserError
from tombola.store import container
from tombola.store.format import FLOATS
from tombola.tickets import difference, inspection
from tombola.tickets import ticket as tickets
from tombola.tickets.ticket import Model, Ticket

DAMAGED, CHANGED = 7_000, 3_000
"""Files spoilt byte by byte, and files that say something else of themselves."""

Tensors = dict[str, tuple[Any, Any, bytes]]
"""Name -> dtype text, shape, bytes: what a header says may be anything."""


# --- what must not happen while a file is read ---

FORBIDDEN = (
    "compile", "ctypes.dlopen", "exec", "import", "marshal.loads", "os.exec", "os.mkdir",
    "os.posix_spawn", "os.remove", "os.rename", "os.rmdir", "os.system", "pickle.find_class",
    "shutil.copyfile", "socket.connect", "socket.getaddrinfo", "subprocess.Popen",
)  # fmt: skip
_events: list[str] = []
_watched: Path | None = None


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    opened = event == "open" and (arguments[0] != str(_watched) or set(arguments[1]) & set("wax+"))
    if opened or event in FORBIDDEN:
        _events.append(f"{event} {arguments}")


sys.addaudithook(_audit)


class Guard:
    """Reads files with every reader, and sees what happens meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checked, self.early = False, []
        check = container.Source.check

        def checking(source: container.Source, **options: Any) -> dict[str, int]:
            ones = check(source, **options)
            self.checked = True
            return ones

        monkeypatch.setattr(container.Source, "check", checking)
        for owner, names in (
            (torch, ("empty", "zeros", "from_numpy", "frombuffer", "tensor")),
            (np, ("frombuffer", "unpackbits", "empty", "zeros")),
        ):
            for name in names:
                monkeypatch.setattr(owner, name, self.guarded(name, getattr(owner, name)))
        for module in (inspection, difference):
            monkeypatch.setattr(module, "bytearray", self.guarded("bytes", bytearray), False)

    def guarded(self, name: str, function: Any) -> Any:
        def called(*arguments: Any, **options: Any) -> Any:
            if _watched is not None and not self.checked:
                self.early.append(name)
            return function(*arguments, **options)

        return called

    def read(self, path: Path, reader: Any = tickets.load) -> Any:
        """What a reader makes of a file, or None if it is refused; AssertionError for all else."""
        global _watched
        self.checked = False
        _watched = path
        message = ""
        try:
            return reader(path)
        except TicketError as error:
            message = str(error)
            return None
        finally:
            _watched = None
            assert message.isprintable()
            assert len(message) < 1200
            assert _events == []
            assert self.early == [], "memory was taken before the file was checked"


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Guard]:
    "\n".encode("unicode_escape")  # what is imported late comes first
    for reader in (tickets.load, inspection.describe):
        tickets.save_ticket(tmp_path / "warm", Ticket({}, {"n.w": torch.ones(2)}))
        reader(tmp_path / "warm")
    made = Guard(monkeypatch)
    before = set(sys.modules)
    yield made
    assert not {name for name in set(sys.modules) - before if "trap" in name or "user" in name}


def test_the_guard_sees_what_it_is_there_to_see(guard, tmp_path):
    (tmp_path / "trap.py").write_text("")

    def early(path: Path) -> None:
        torch.empty(3)

    def runs(path: Path) -> None:
        compile((tmp_path / "trap.py").read_text(), "trap", "exec")

    for reader in (early, runs):
        with pytest.raises(AssertionError):
            guard.read(tmp_path / "absent", reader)
        guard.early.clear()
        _events.clear()


# --- files to spoil ---


def manifest_with_a_trap(folder: Path) -> dict[str, Any]:
    """A manifest that names a file of code wherever a name can stand; to run it leaves a mark."""
    mark = folder / "ran"
    trap = folder / "trap.py"
    trap.write_text(f"open({str(mark)!r}, 'w')\nclass Trap: pass\n")
    name = f"{trap}:Trap"
    config = {
        "task": {"name": name, "preset": name}, "data": {"name": name},
        "prune": {"criterion": name}, "judge": {"features": name},
    }  # fmt: skip
    return {
        "task": name, "data": name, "data_hash": "00", "method": "imp", "rewind_step": 2,
        "seed": 1, "round": 1, "parents": [name], "config": config, "scores": {"fcd-x": 0.5},
        "cost": {}, "created_with": {"torch": "1"}, "__class__": name, "py/object": name,
    }  # fmt: skip


def originals(folder: Path) -> list[Ticket | Model]:
    """A ticket of weights in two networks, one of channels, and a model."""
    draw = torch.Generator().manual_seed(2)
    manifest = manifest_with_a_trap(folder)
    weights = {
        "g.main.0.weight": torch.randn(5, 7, generator=draw),
        "g.main.0.bias": torch.randn(5, generator=draw),
        "g.main.1.num_batches_tracked": torch.tensor(12),
        "d.w": torch.randn(2, 3, 2, 2, generator=draw).bfloat16(),
        "d.flag": torch.tensor([True, False]),
        "d.none": torch.zeros(0, 4),
    }
    masks = {k: torch.rand(weights[k].shape, generator=draw) < 0.4 for k in ("g.main.0.weight",)}
    masks["d.w"] = torch.rand(2, 3, 2, 2, generator=draw) < 0.4
    scale = {"g.bn.weight": torch.tensor([True, False, True, True])}
    channels = {"granularity": "channel", "sparsity": 0.3}
    return [
        Ticket(masks, weights, manifest),
        Ticket(scale, {"g.bn.weight": torch.arange(4.0) + 1}, {**manifest, **channels}),
        Model({**weights}, {**manifest, "arm": "dense", "shape": [1, 4, 4]}),
    ]


def save(path: Path, what: Ticket | Model) -> bytes:
    if isinstance(what, Ticket):
        tickets.save_ticket(path, what)
    else:
        tickets.save_model(path, what.weights, what.manifest)
    return path.read_bytes()


def content(what: Ticket | Model) -> tuple[Any, ...]:
    """All that was loaded, to be compared: tensors by their bytes."""

    def flat(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
        return {
            k: (v.dtype, v.shape, bytes(v.reshape(-1).view(torch.uint8).tolist()))
            for k, v in tensors.items()
        }

    masks = flat(what.masks) if isinstance(what, Ticket) else None
    return type(what), masks, flat(what.weights), what.manifest


# --- bytes ---


def spoilt(whole: bytes, other: bytes, draw: random.Random) -> bytes:
    """A file with bits flipped, bytes moved, cut, added, or taken from another file."""
    data = bytearray(whole)
    size = len(data)
    header = 8 + int.from_bytes(whole[:8], "little")
    match draw.randrange(10):
        case 0 | 1 | 2:
            for _ in range(draw.choice([1, 1, 1, 2, 8])):
                data[draw.randrange(size)] ^= 1 << draw.randrange(8)
        case 3:
            data[draw.randrange(9)] ^= 1 << draw.randrange(8)
        case 4:
            data[draw.randrange(8, header)] = draw.randrange(256)
        case 5:
            del data[draw.randrange(size) :]
        case 6:
            data += draw.choice([bytes(1), draw.randbytes(draw.randrange(1, 64)), whole])
        case 7:
            at, length = draw.randrange(size), draw.randrange(1, 40)
            piece = bytes(data[at : at + length])
            del data[at : at + length]
            at = draw.randrange(len(data) + 1)
            data[at:at] = piece * draw.randrange(3)
        case 8:
            at = draw.randrange(size)
            data[at : at + draw.randrange(1, 30)] = draw.randbytes(draw.randrange(30))
        case 9:
            at = draw.choice([8, header, draw.randrange(size)])
            data = bytearray(whole[:at] + other[at:])
    return bytes(data)


@pytest.mark.slow
def test_files_spoilt_byte_by_byte_load_equal_or_are_refused(guard, tmp_path):
    made = originals(tmp_path)
    blobs = [save(tmp_path / "whole", each) for each in made]
    loaded = [content(each) for each in _loaded(tmp_path, blobs)]
    draw, target = random.Random(5), tmp_path / "spoilt"
    outcomes = {"equal": 0, "refused": 0}
    for trial in range(DAMAGED):
        which = trial % len(blobs)
        blob = spoilt(blobs[which], blobs[which - 1], draw)
        target.write_bytes(blob)
        found = guard.read(target)
        if found is None:
            outcomes["refused"] += 1
            if trial % 10 == 0:
                for reader in (container.verify_file, inspection.describe):
                    assert guard.read(target, reader) is None
        else:
            assert content(found) in loaded, trial
            outcomes["equal"] += 1
    assert outcomes["refused"] > 0.9 * DAMAGED
    assert not (tmp_path / "ran").exists()


def _loaded(folder: Path, blobs: list[bytes]) -> list[Ticket | Model]:
    found = []
    for blob in blobs:
        (folder / "whole").write_bytes(blob)
        found.append(tickets.load(folder / "whole"))
    return found


# --- what a file says of itself ---

NUMBERS = st.one_of(
    st.integers(-3, 12),
    st.sampled_from(
        [2**31, 2**48, 2**48 + 1, 2**63, 2**64, -(2**63), 10**30, 0.5, 3.0, -0.0, 1e308]
    ),
    st.sampled_from([math.nan, math.inf, -math.inf]),
)
WORDS = st.sampled_from(
    ["", "weight", "channel", "imp", "g", "d.w", "g.main.0.weight", "F32", "U8", "__class__",
     "../../etc/x", "\x1b[31m", "\u202e", "\x00", "trap.py:Trap", "9" * 50, "x" * 300]
)  # fmt: skip
JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=5,
)
KEYS = st.sampled_from(
    ["task", "data", "data_hash", "method", "granularity", "networks", "shapes", "sparsity",
     "sparsity_all", "rewind_step", "seed", "round", "parents", "config", "scores", "cost",
     "created_with", "inputs", "widths"]
)  # fmt: skip
PLAUSIBLE = {
    "task": WORDS, "data_hash": WORDS, "granularity": st.sampled_from(["weight", "channel"]),
    "networks": st.lists(WORDS, max_size=2), "sparsity": st.floats(0, 1), "seed": st.integers(),
    "round": st.integers(), "rewind_step": st.integers(), "parents": st.lists(JUNK, max_size=2),
    "config": st.dictionaries(WORDS | st.sampled_from(["train", "prune", "judge"]), JUNK),
    "scores": st.dictionaries(WORDS, JUNK), "cost": st.dictionaries(WORDS, JUNK),
    "created_with": WORDS, "inputs": JUNK, "widths": JUNK,
}  # fmt: skip


def text_of(value: Any, draw: st.DrawFn) -> str:
    """JSON, now and then with what JSON does not allow, or not twice."""
    text = json.dumps(value)
    match draw(st.integers(0, 40)):
        case 0:
            return (
                text[:-1]
                + f', "seed": {draw(st.sampled_from(["NaN", "Infinity", "1e999", "7"]))}}}'
            )
        case 1:
            depth = draw(st.sampled_from([3, 900, 100_000]))
            return text[:-1] + ', "deep": ' + "[" * depth + "]" * depth + "}"
        case 2:
            at = draw(st.integers(0, len(text)))
            return (
                text[:at]
                + draw(st.sampled_from(["", " ", ",", '"', "{", "\\ud800", "\t"]))
                + text[at:]
            )
        case _:
            return text


@st.composite
def changed(draw: st.DrawFn, tensors: Tensors, manifest: dict[str, Any]) -> tuple[Any, ...]:
    """(bytes of a file, its tensors and manifest text, whether its frame is as it should be)."""
    tensors, manifest = dict(tensors), json.loads(json.dumps(manifest))
    names = list(tensors)
    entries: dict[str, dict[str, Any]] = {}
    whole = True
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
        name = draw(st.sampled_from(names))
        dtype, shape, data = tensors.get(name, ("U8", [0], b""))
        match draw(st.integers(0, 12)):
            case 10 | 11 | 12:
                key = draw(st.sampled_from(list(PLAUSIBLE)))
                manifest[key] = draw(PLAUSIBLE[key])
            case 0 | 1:
                manifest[draw(KEYS)] = draw(JUNK)
            case 2:
                manifest.pop(draw(KEYS), None)
            case 3 if isinstance(manifest.get("shapes"), dict):
                key = draw(st.sampled_from([name.partition(".")[2], "g.new", "x"]))
                manifest["shapes"][key] = draw(JUNK | st.lists(NUMBERS, max_size=4))
            case 4:
                entries.setdefault(name, {})[
                    draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
                ] = draw(JUNK | st.lists(NUMBERS, max_size=4))
                whole = False
            case 5:
                other = draw(st.sampled_from(names))
                entries.setdefault(name, {})["data_offsets"] = other
                whole = False
            case 6:
                count = draw(st.integers(0, 40))
                width = {"BOOL": 1, "U8": 1, "BF16": 2, "F32": 4, "I64": 8}.get(dtype, 1)
                tensors[name] = (
                    dtype,
                    [count],
                    draw(st.binary(min_size=1, max_size=1)) * count * width,
                )
                if name.startswith("weight.") and isinstance(manifest.get("shapes"), dict):
                    manifest["shapes"][name.removeprefix("weight.")] = [count]
            case 7:
                tensors[name] = (
                    draw(st.sampled_from(["F32", "I32", "U8", "I8", "F64", "Q9"])),
                    shape,
                    data,
                )
            case 8:
                new = draw(st.sampled_from(["mask.", "weight.", ""])) + draw(WORDS)
                tensors[new] = tensors.pop(name, (dtype, shape, data))
            case 9:
                tensors.pop(name, None)
    return (*blob_of(draw, tensors, entries, text_of(manifest, draw)), tensors, whole)


def blob_of(
    draw: st.DrawFn, tensors: Tensors, entries: dict[str, dict[str, Any]], text: str
) -> tuple[bytes, str]:
    """A file of these tensors, its checksum right for them, but for the entries given."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        digest.update(
            f"{name}\0{dtype}\0{json.dumps(shape, separators=(',', ':'))}\0".encode() + data
        )
    digest.update(text.encode("utf-8", "surrogatepass"))
    format = draw(
        st.sampled_from(["tombola.ticket/1"] * 12 + ["tombola.model/1", "pt", "tombola.ticket/2"])
    )
    tree: dict[str, Any] = {
        "__metadata__": {"format": format, "manifest": text, "sha256": digest.hexdigest()}
    }
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        tree[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    for name, wrong in entries.items():
        for key, value in wrong.items():
            if isinstance(value, str) and key == "data_offsets":
                value = tree.get(value, {}).get("data_offsets")
            tree.setdefault(name, {})[key] = value
    head = text_of(tree, draw).encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 30)) == 0:
        at = draw(st.integers(0, len(head)))
        head = head[:at] + draw(st.sampled_from([b"\xff", b"\xc3\x28", b"\x00"])) + head[at:]
    return struct.pack("<Q", len(head)) + head + b"".join(d for _, _, d in tensors.values()), text


def decoded(tensors: Tensors, manifest: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Name -> (shape, bytes) of the dense tensors, by the rules of the format and not its code."""
    found = {}
    for key, shape in manifest["shapes"].items():
        dtype, _, data = tensors[f"weight.{key}"]
        if dtype == "BOOL":
            data = bytes(byte != 0 for byte in data)
        if f"mask.{key}" in tensors:
            width = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}[dtype]
            assert dtype in FLOATS
            bits = "".join(f"{byte:08b}" for byte in tensors[f"mask.{key}"][2])
            kept = iter(data[i : i + width] for i in range(0, len(data), width))
            count = math.prod(shape)
            data = b"".join(next(kept) if bit == "1" else bytes(width) for bit in bits[:count])
        found[key] = (list(shape), data)
    return found


@pytest.mark.slow
def test_files_that_say_something_else_load_as_said_or_are_refused(guard, tmp_path):
    (tmp_path / "whole").write_bytes(save(tmp_path / "whole", originals(tmp_path)[0]))
    target = tmp_path / "changed"
    with container.open_file(tmp_path / "whole") as source:
        blob = (tmp_path / "whole").read_bytes()
        tensors = {
            name: (entry.dtype, list(entry.shape), blob[entry.begin : entry.end])
            for name, entry in source.header.entries.items()
        }
        manifest = source.header.manifest
    seen = {"loaded": 0, "refused": 0}

    @settings(
        max_examples=CHANGED, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(changed(tensors, manifest))
    def run(made: tuple[Any, ...]) -> None:
        blob, text, written, whole = made
        target.write_bytes(blob)
        found = guard.read(target)
        seen["refused" if found is None else "loaded"] += 1
        if found is None:
            return
        assert found.manifest == json.loads(text)
        if whole:
            dense = {k: (list(v.shape), bytes(v.reshape(-1).view(torch.uint8).tolist()))
                     for k, v in found.weights.items()}  # fmt: skip
            assert dense == decoded(written, found.manifest)
        afterwards(guard, target, found)

    run()
    assert seen["loaded"] > CHANGED / 10, seen
    assert seen["refused"] > CHANGED / 2, seen
    assert not (tmp_path / "ran").exists()


def afterwards(guard: Guard, target: Path, found: Ticket | Model) -> None:
    """What is done with a file that is sound but says strange things: at most a UserError."""
    text = inspection.describe_text(guard.read(target, inspection.describe))
    assert all(char.isprintable() or char == "\n" for char in text)
    if isinstance(found, Ticket):
        guard.read(target, lambda path: difference.difference(path, path))
        tables = {"task": {"name": "dcgan"}, "data": {"name": "digits"}}
        try:
            config = ticket_config(target, {**found.manifest, "task": "dcgan"}, tables)
        except UserError:
            return
        assert (config.task.name, config.data.name) == ("dcgan", "digits")
        assert (config.prune.criterion, config.judge.features) == ("magnitude", "")


def test_sizes_that_lie_cost_no_memory(guard, tmp_path):
    """Huge counts in an entry, in the shapes, or in both: refused before anything of that size."""
    save(tmp_path / "whole", originals(tmp_path)[0])
    target, draw = tmp_path / "huge", random.Random(1)
    header = container.read_header(tmp_path / "whole")
    blob = (tmp_path / "whole").read_bytes()
    begin = 8 + int.from_bytes(blob[:8], "little")
    tracemalloc.start()
    for trial in range(300):
        tree = json.loads(blob[8:begin])
        manifest = json.loads(tree["__metadata__"]["manifest"])
        name = draw.choice(list(header.entries))
        shape = [draw.choice([2**20, 2**31, 2**47, 1, 0]) for _ in range(draw.randrange(1, 4))]
        if trial % 3 != 0:
            manifest["shapes"][name.partition(".")[2]] = shape
        if trial % 3 != 1:
            tree[name]["shape"] = shape
        if trial % 5 == 0:
            tree[name]["data_offsets"][1] = 2**40
        tree["__metadata__"]["manifest"] = json.dumps(manifest)
        head = json.dumps(tree).encode()
        target.write_bytes(struct.pack("<Q", len(head)) + head + blob[begin:])
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        assert guard.read(target) is None
        assert tracemalloc.get_traced_memory()[1] - before < 2**18, shape
    tracemalloc.stop()

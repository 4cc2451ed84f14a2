"""Files from strangers: each way of being unsound is refused in one line, and costs no memory."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tombola.errors import TicketError
from tombola.store import container
from tombola.tickets import inspection
from tombola.tickets import ticket as tickets

Tensors = dict[str, tuple[str, list[int], bytes]]

MANIFEST: dict[str, Any] = {
    "task": "toy", "data": "digits", "data_hash": "00", "method": "imp", "granularity": "weight",
    "networks": ["n"], "shapes": {"n.w": [2, 5], "n.b": [2]}, "sparsity": 0.7,
    "sparsity_all": None, "rewind_step": 10, "seed": 0, "round": 1, "parents": [], "config": {},
    "scores": {}, "cost": {}, "created_with": "a test",
}  # fmt: skip
TENSORS: Tensors = {
    "mask.n.w": ("U8", [2], bytes([0b01000001, 0b01000000])),
    "weight.n.w": ("F32", [3], struct.pack("<3f", 1, 2, 3)),
    "weight.n.b": ("F32", [2], struct.pack("<2f", 4, 5)),
}


def header_of(tensors: Tensors, content: Any, **metadata: Any) -> dict[str, Any]:
    """A header with a right checksum and offsets end to end, for tests to spoil."""
    text = content if isinstance(content, str) else json.dumps(content)
    digest = hashlib.sha256()
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        shape_text = json.dumps(shape, separators=(",", ":"))
        digest.update(f"{name}\0{dtype}\0{shape_text}\0".encode() + data)
    digest.update(text.encode("utf-8", "surrogatepass"))
    tree: dict[str, Any] = {
        "__metadata__": {
            "format": "tombola.ticket/1", "manifest": text, "sha256": digest.hexdigest(), **metadata
        }
    }  # fmt: skip
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        end = offset + len(data)
        tree[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    return tree


def put(path: Path, head: Any, tensors: Tensors = TENSORS, tail: bytes = b"") -> Path:
    blob = head if isinstance(head, bytes) else json.dumps(head).encode()
    data = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(struct.pack("<Q", len(blob)) + blob + data + tail)
    return path


def refused(path: Path, text: str) -> None:
    """Every reader refuses the file, with one printable line that has ``text``."""
    readers = [container.verify_file, tickets.load, tickets.load_ticket, inspection.describe]
    for reader in readers:
        with pytest.raises(TicketError) as caught:
            reader(path)
        message = str(caught.value)
        assert text in message
        assert message.isprintable(), message
        assert len(message) < 800


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "ticket.safetensors"


def test_the_hand_made_file_is_sound_before_it_is_spoiled(target):
    put(target, header_of(TENSORS, MANIFEST))
    container.verify_file(target)
    ticket = tickets.load_ticket(target)
    assert ticket.weights["n.w"].tolist() == [[0, 1, 0, 0, 0], [0, 0, 2, 0, 3]]
    assert ticket.weights["n.b"].tolist() == [4, 5]
    assert container.read_manifest(target) == MANIFEST


# --- not a file, not this kind of file ---


def test_what_is_no_regular_file(tmp_path):
    refused(tmp_path / "absent", "no such file")
    refused(tmp_path, "not a regular file")
    os.mkfifo(tmp_path / "pipe")  # opening it would block for ever
    refused(tmp_path / "pipe", "not a regular file")
    refused(Path("nul\0byte"), "cannot be opened")


def test_pickles_and_zip_files_are_never_opened(target):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(target) + ".ran",))

    for protocol in (2, 4, 5):
        target.write_bytes(pickle.dumps({"state": Bomb(), "pad": b"x" * 99}, protocol=protocol))
        refused(
            target, "like a zip archive or a pickle (torch.save), which may run code, so it was"
        )
    torch.save({"w": torch.ones(3)}, target)
    refused(target, "zip archive or a pickle")
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("data.pkl", b"x")
    refused(target, "zip archive or a pickle")
    assert [p.name for p in target.parent.iterdir()] == ["ticket.safetensors"]


def test_a_sound_header_may_begin_with_a_pickles_bytes(target):
    head = json.dumps(header_of(TENSORS, MANIFEST)).encode()
    length = 0x0480 if len(head) <= 0x0480 else 0x0880  # little-endian: 80 04, as a pickle
    put(target, head.ljust(length))
    assert target.read_bytes()[0] == 0x80
    container.verify_file(target)


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (b"", "truncated: 0 bytes"),
        (b"\x10\0\0\0\0\0\0\0", "truncated: 8 bytes"),
        (b"\x10\0\0\0\0\0\0\0{}", "truncated: a header of 16 bytes in a file of 10 bytes"),
        (b"GIF89a" + b"\0" * 20, "not a safetensors file"),
        (struct.pack("<Q", 2**24 + 1) + b"{" * 20, "a header of 16777217 bytes is too long"),
        (struct.pack("<Q", 2**63) + b"{" * 20, "is too long; at most 16777216"),
        (struct.pack("<Q", 4) + b"{\xff\xfe}", "the header is not UTF-8"),
        (struct.pack("<Q", 4) + b"{,,}", "the header cannot be read as JSON"),
        (struct.pack("<Q", 2) + b"{}", "not one of Tombola's: has no format"),
    ],
)
def test_broken_beginnings(target, blob, text):
    target.write_bytes(blob)
    refused(target, text)


def test_headers_that_would_eat_the_parser(target):
    deep = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    put(target, deep)
    refused(target, "cannot be read as JSON")
    put(target, b'{"a":[' + b"[]," * 2**20 + b"[]]}")
    refused(target, "the header has more than 1000000 values")
    put(target, b'{"a":' + b"9" * 10_000 + b"}")
    refused(target, "cannot be read as JSON")
    tree = header_of(TENSORS, "{" + '"a":{' * 50_000 + "}" * 50_001)
    put(target, tree)
    refused(target, "the manifest cannot be read as JSON")


# --- the header's entries: each fault names its tensor ---


def spoil(key: str, **changes: Any) -> dict[str, Any]:
    tree = header_of(TENSORS, MANIFEST)
    tree[key] = {**tree[key], **changes}
    return tree


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"shape": [-3]}, "shape [-3] has a dimension"),
        ({"shape": [3.0]}, "shape [3.0] has a dimension"),
        ({"shape": [True, 3]}, "has a dimension"),
        ({"shape": [2**63]}, "has a dimension that is not an integer from 0"),
        ({"shape": [2**40, 2**40]}, "12 bytes are not F32"),
        ({"shape": [1] * 33}, "no list of at most 32"),
        ({"shape": "3"}, "no list of at most 32"),
        ({"dtype": "F31"}, "dtype F31 is not one of BOOL"),
        ({"dtype": ["F32"]}, "is not one of BOOL"),
        ({"dtype": "F64"}, "12 bytes are not F64 [3]"),
        ({"data_offsets": [2]}, "are not a range"),
        ({"data_offsets": [14, 2]}, "are not a range"),
        ({"data_offsets": [-2, 10]}, "are not a range"),
        ({"data_offsets": [2.0, 14.0]}, "are not a range"),
        ({"data_offsets": [1, 13]}, "overlaps the tensor before it"),
        ({"data_offsets": [3, 15]}, "follows a hole"),
        ({"data_offsets": [2**50, 2**50 + 12]}, "follows a hole"),
        ({"extra": 1}, "its entry is not dtype, shape, data_offsets"),
    ],
)
def test_entries(target, changes, text):
    put(target, spoil("weight.n.w", **changes))
    refused(target, text)
    culprit = "weight.n.b" if text == "follows a hole" and 2**50 in changes["data_offsets"] else ""
    refused(target, f"tensor {culprit or 'weight.n.w'}")


def test_two_tensors_on_the_same_bytes_and_bytes_without_a_tensor(target):
    put(target, spoil("weight.n.b", data_offsets=[2, 10]))
    refused(target, "overlaps the tensor before it")
    put(target, header_of(TENSORS, MANIFEST), tail=b"\0" * 5)
    refused(target, "5 bytes follow the last tensor")


def test_duplicate_names_in_header_and_manifest(target):
    head = json.dumps(header_of(TENSORS, MANIFEST))
    entry = json.dumps(header_of(TENSORS, MANIFEST)["weight.n.b"])
    put(target, (head[:-1] + f', "weight.n.b": {entry}}}').encode())
    refused(target, "the name weight.n.b appears twice")
    put(target, header_of(TENSORS, json.dumps(MANIFEST)[:-1] + ', "seed": 7}'))
    refused(target, "the manifest cannot be read as JSON (the name seed appears twice)")


@pytest.mark.parametrize("cut", [1, 8, 9, 20, 22])
def test_truncation_names_the_tensor_that_is_cut(target, cut):
    put(target, header_of(TENSORS, MANIFEST))
    target.write_bytes(target.read_bytes()[:-cut])
    culprit = "weight.n.b" if cut <= 8 else "weight.n.w" if cut <= 20 else "mask.n.w"
    refused(target, f"truncated: tensor {culprit} ends at byte")


# --- metadata ---


def test_metadata(target):
    for key, text in [
        ("format", "has no format"),
        ("manifest", "the metadata has no manifest"),
        ("sha256", "no sha256 of 64 lower-case hex digits"),
    ]:
        tree = header_of(TENSORS, MANIFEST)
        del tree["__metadata__"][key]
        put(target, tree)
        refused(target, text)
    for metadata, text in [
        ({"format": "tombola.ticket/2"}, "this version reads tombola.ticket/1"),
        ({"format": "pt"}, "not one of Tombola's: its format is pt"),
        ({"format": 1}, "__metadata__ is not a table of strings"),
        ({"sha256": "ab"}, "no sha256 of 64"),
        ({"sha256": "0" * 64}, "the checksum does not agree"),
        ({"manifest": "[1]"}, "the manifest is not a JSON object"),
        ({"manifest": "{"}, "the manifest cannot be read as JSON"),
        ({"manifest": '{"a":NaN}'}, "NaN is not JSON"),
        ({"manifest": '{"a":"\\ud800"}'}, "the manifest cannot be read as JSON"),
        ({"manifest": "{}"}, "the manifest has no shapes"),
    ]:
        put(target, header_of(TENSORS, MANIFEST, **metadata))
        refused(target, text)
    put(target, {"__metadata__": [], **header_of(TENSORS, MANIFEST)} | {"__metadata__": []})
    refused(target, "__metadata__ is not a table of strings")


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("granularity", "block", "granularity is block, not weight or channel"),
        ("granularity", None, "the manifest's granularity is 'None', not str"),
        ("networks", [1], "networks are not all names"),
        ("seed", "0", "the manifest's seed is '0', not int"),
        ("seed", True, "the manifest's seed is 'True', not int"),
        ("task", {"import": "os"}, "the manifest's task is"),
        ("sparsity", 0.1, "sparsity is 0.1, but the masks keep 3 of 10 weights, which is 0.7"),
        ("sparsity", 10**400, "not 0 to 1"),
        ("shapes", [], "the manifest has no shapes"),
        ("shapes", {"n.w": [2, -5], "n.b": [2]}, "tensor weight.n.w: shape [2, -5]"),
        ("shapes", {"n.w": [2, 5]}, "tensor weight.n.b: the manifest's shapes do not name it"),
        ("shapes", MANIFEST["shapes"] | {"n.c": [1]}, "tensor weight.n.c is missing, but"),
        ("shapes", {"n.w": [2, 5], "n.b": [3]}, "weight.n.b: its shape is [2], but [3]"),
        ("shapes", {"n.w": [2, 9], "n.b": [2]}, "mask.n.w: U8 [2] is not the packed mask"),
        ("shapes", {"n.w": [1], "n.b": [2]}, "mask.n.w: U8 [2] is not the packed mask"),
        ("shapes", {"n.w": [2, 2**45], "n.b": [2]}, "mask.n.w"),
    ],
)
def test_manifest_values(target, key, value, text):
    put(target, header_of(TENSORS, MANIFEST | {key: value}))
    refused(target, text)


def test_a_manifest_key_of_the_contract_that_is_missing(target):
    for key in MANIFEST:
        rest = {k: v for k, v in MANIFEST.items() if k != key}
        put(target, header_of(TENSORS, rest))
        refused(target, f"the manifest has no {key}")


# --- masks and weights that do not belong together ---


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mask.n.w": ("U8", [2], b"\x41\xc0")}, "mask.n.w: 4 bits are set, but weight.n.w hol"),
        ({"mask.n.w": ("U8", [2], b"\x41\x00")}, "mask.n.w: 2 bits are set, but weight.n.w hol"),
        ({"mask.n.w": ("U8", [2], b"\x41\x20")}, "mask.n.w: padding bits of the last byte are n"),
        ({"mask.n.w": ("I8", [2], b"\x41\x40")}, "mask.n.w: I8 [2] is not the packed mask"),
        ({"mask.n.w": ("U8", [2, 1], b"\x41\x40")}, "mask.n.w: U8 [2, 1] is not the packed mask"),
        ({"mask.n.z": ("U8", [0], b"")}, "mask.n.z: the manifest's shapes do not name it"),
        ({"weight.n.w": ("I32", [3], b"\0" * 12)}, "weight.n.w: I32 [3] cannot be the kept"),
        ({"weight.n.w": ("F32", [1, 3], b"\0" * 12)}, "weight.n.w: F32 [1, 3] cannot be the k"),
        ({"weight.n.w": ("F32", [11], b"\0" * 44)}, "weight.n.w: F32 [11] cannot be the kept"),
        ({"bias.n.w": ("F32", [0], b"")}, "bias.n.w: the name is not mask.<network>"),
        ({"weight.n": ("F32", [0], b"")}, "weight.n: the name is not mask.<network>"),
        ({"weight..w": ("F32", [0], b"")}, "weight..w: the name is not"),
        ({"weight.n.\x1b[2J": ("F32", [0], b"")}, "weight.n.\\x1b[2J: the manifest's shapes do"),
    ],
)
def test_tensors(target, changes, text):
    tensors = TENSORS | changes
    put(target, header_of(tensors, MANIFEST), tensors)
    refused(target, text)


def test_a_model_file_holds_no_masks(target):
    put(target, header_of(TENSORS, MANIFEST, format="tombola.model/1"))
    refused(target, "mask.n.w: a model file holds no masks")


def test_the_decoded_size_is_at_most_40_times_the_files(target):
    def bomb(dtype: str, shape: list[int], dtype_b: str = "F32", length_b: int = 0) -> None:
        tensors: Tensors = {}
        for name, kind, count in [
            ("w", dtype, math.prod(shape)),
            ("b", dtype_b, length_b),
        ]:
            packed = (count + 7) // 8
            tensors[f"mask.n.{name}"] = ("U8", [packed], bytes(packed))
            tensors[f"weight.n.{name}"] = (kind, [0], b"")
        shapes = {"n.w": shape, "n.b": [length_b]}
        put(target, header_of(tensors, MANIFEST | {"shapes": shapes, "sparsity": 1.0}), tensors)

    bomb("F32", [8000, 100])  # 4 + 1 bytes for each bit is 40 times, less the header's bytes
    assert tickets.load_ticket(target).weights["n.w"].count_nonzero() == 0
    bomb("F64", [8000, 100])
    tracemalloc.start()
    refused(target, "tensor weight.n.w: with shape [8000, 100] the file unfolds to more than 40")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 800_000  # the dense weight would take 6,400,000
    bomb("F32", [8000, 100], "F64", 160_000)  # 37 times without the masks' own bytes, 45 with
    refused(target, "tensor weight.n.b: with shape [160000] the file unfolds to more than 40")
    bomb("F32", [0, 2**40, 2**40])  # no values, but strides that overflow
    refused(target, "tensor weight.n.w: with shape [0, ")

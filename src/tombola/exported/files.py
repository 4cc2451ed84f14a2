"""How is an exported file read without trust? Its bytes are checked; nothing in them is run.

``torch.export.load`` is never given a file that others may have written: it unpickles weights,
constants and sample inputs, loads compiled libraries, evaluates texts as expressions, and calls any
function that a name in the file leads to. Here a .pt2 is a zip archive of raw numbers and JSON, and
an archive with anything else is refused before a byte of that is looked at; ``graph.py`` runs it.
ONNX is data by design; files that would make onnxruntime read other files, or that bring functions
or operators of other domains, are refused. Nothing here imports torch.
"""

from __future__ import annotations

import importlib
import io
import re
import stat
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.errors import ConfigError, TicketError
from tombola.exported.facts import Facts, format_of, parse
from tombola.sparsity.layout import shown, unsound

ONNX_KEY = "tombola"
EXTRA_FILE = "tombola.json"
GRAPH = "models/model.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
"""The one record of an archive that torch would pickle: ours is empty."""
RECORD = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|"
    rf"{re.escape(GRAPH)}|{re.escape(SAMPLE_INPUTS)}|extra/{re.escape(EXTRA_FILE)}|"
    r"data/weights/(weight_\d+|model_weights_config\.json)|"
    r"data/constants/(tensor_\d+|model_constants_config\.json)"
)
"""Every record that an archive of ours may have, below its root folder."""
HOW = 'pip install "tombola[onnx]" (in a clone: pip install ".[onnx]")'


@dataclass(frozen=True)
class Opened:
    """An exported file that was checked: what it says, and its bytes."""

    path: str
    to: str
    facts: Facts
    blob: bytes
    records: dict[str, bytes]
    """Records of a .pt2 by name; empty for ONNX."""


def need(*names: str) -> list[Any]:
    """The modules of the extra ``onnx``; ConfigError that says how to get what is not there."""
    try:
        return [importlib.import_module(name) for name in names]
    except (ImportError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ConfigError(
            f"ONNX needs {', '.join(names)}, and not all can be imported ({shown(reason)}); "
            f"install them: {HOW}"
        ) from error


def read(path: str | Path) -> Opened:
    """Read and check an exported file, by its ending; TicketError if it is unsound or not ours.

    ConfigError if it is ONNX and the extra is not installed.
    """
    text = shown(path, 400)
    try:
        # A pipe or a device would block or never end: ask before opening.
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise TicketError(f"{text}: not a regular file; give a file that tombola export wrote")
        blob = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise TicketError(f"{text}: no such file; give an exported or a model file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise TicketError(f"{text}: cannot be opened ({shown(reason)})") from error
    return check(path, format_of(path) or "", blob)


def check(path: str | Path, to: str, blob: bytes) -> Opened:
    """The bytes of a file of the kind ``to``, checked; TicketError as of :func:`read`."""
    if to == "onnx":
        return Opened(str(path), to, parse(path, _onnx_text(str(path), blob)), blob, {})
    records = _records(str(path), blob)
    text = records.get(f"extra/{EXTRA_FILE}")
    facts = parse(path, None if text is None else text.decode("utf-8", "replace"))
    return Opened(str(path), to, facts, blob, records)


def _records(path: str, blob: bytes) -> dict[str, bytes]:
    """Records of an archive by name, without the name of its root folder."""
    records: dict[str, bytes] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            for entry in archive.infolist():
                name = entry.filename.partition("/")[2]
                if not RECORD.fullmatch(name) or name in records:
                    raise unsound(
                        path,
                        f"its record {shown(entry.filename)} is none that Tombola writes and may "
                        "hold code, so it was never opened",
                        "export the model file again, or sample from the model file",
                    )
                if entry.compress_type != zipfile.ZIP_STORED:
                    raise unsound(path, f"its record {shown(entry.filename)} unfolds to more")
                records[name] = archive.read(entry)
    except (zipfile.BadZipFile, EOFError, RuntimeError, ValueError, NotImplementedError) as error:
        raise unsound(path, f"not a sound .pt2 archive ({shown(error)})") from error
    if records.get(SAMPLE_INPUTS):
        raise unsound(
            path,
            f"its record {SAMPLE_INPUTS} is pickled, which may run code, so it was never opened",
            "export the model file again, or sample from the model file",
        )
    if GRAPH not in records or records.get("byteorder", b"little") != b"little":
        raise unsound(path, "a .pt2 archive without a graph, or of another byte order")
    return records


def _onnx_text(path: str, blob: bytes) -> str | None:
    """The metadata of an ONNX model that can only be data; None if it has none of ours."""
    (onnx,) = need("onnx")
    try:
        model = onnx.ModelProto.FromString(blob)
    except Exception as error:  # protobuf's own DecodeError, which need not be importable
        raise unsound(path, f"not an ONNX file ({shown(error)})") from error
    domains = {entry.domain for entry in model.opset_import} | {n.domain for n in model.graph.node}
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    tensors = [*model.graph.initializer, *(a.t for a in attributes)]
    tensors += [tensor for a in attributes for tensor in a.tensors]
    if not domains <= {"", "ai.onnx"} or model.functions or model.graph.sparse_initializer:
        raise unsound(path, "it uses more than ONNX's own operators, as no export of Tombola does")
    if any(a.HasField("g") or a.graphs or a.sparse_tensors for a in attributes):
        raise unsound(path, "it has graphs within its graph, as no export of Tombola does")
    if any(t.data_location == onnx.TensorProto.EXTERNAL or t.external_data for t in tensors):
        raise unsound(path, "it leads to other files for its weights; one that does is never run")
    return next((p.value for p in model.metadata_props if p.key == ONNX_KEY), None)

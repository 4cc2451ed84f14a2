"""What is found on this machine, what is missing, and how to get it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from tombola.config.registry import DATA
from tombola.config.version import VERSION
from tombola.data.checks import check_source, is_to_be_downloaded
from tombola.errors import UserError
from tombola.metrics.judge_files import cache_dir, find_inception, shipped_judge
from tombola.tickets.export_facts import HOW, need

PACKAGES = ("torch", "numpy", "scipy", "safetensors", "pyarrow", "pillow", "matplotlib", "jinja2")
EXTRA = ("onnx", "onnxruntime", "onnxscript")
"""What the extra ``onnx`` brings, by the names under which it is imported."""
ABSENT = "not here; it is downloaded when it is first used"


def examine(data_dir: Path | None) -> dict[str, Any]:
    """Device, versions, data sets and judges; what is missing says how to get it."""
    data = {}
    for name in DATA.names():
        try:
            check_source(name, data_dir)
            data[name] = ABSENT if is_to_be_downloaded(name, data_dir) else "found"
        except UserError as error:
            data[name] = str(error)
    try:
        inception = find_inception()
        judge = (
            f"found: {inception}"
            if inception
            else (
                f"not found: fid, kid and is need inception-2015-12-05.pt in {cache_dir()} or at "
                "TOMBOLA_INCEPTION; without it fcd and kcd are measured"
            )
        )
    except UserError as error:
        judge = str(error)
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name(0) if cuda else "cpu",
        "cores": os.cpu_count(),
        "versions": {
            "tombola": VERSION,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "data": data,
        "judges": {
            "inception": judge,
            **{name: "shipped" for name in DATA.names() if shipped_judge(name)},
        },
        "export": {"torch-export": "found", **{name: _extra(name) for name in EXTRA}},
    }


def _extra(name: str) -> str:
    """Whether a module of the extra ``onnx`` can be imported, and how to get it if not."""
    try:
        (module,) = need(name)
    except UserError:
        return f"not found: export --to onnx needs it: {HOW}"
    return f"found: {getattr(module, '__version__', 'version unknown')}"


def lines(found: dict[str, Any]) -> str:
    """What :func:`examine` found, for a terminal."""
    text = [f"device    {found['device']} ({found['cores']} cores)"]
    for part in ("versions", "data", "judges", "export"):
        for index, (name, value) in enumerate(found[part].items()):
            text.append(f"{part if index == 0 else '':9} {name:12} {value}")
    return "\n".join(text)

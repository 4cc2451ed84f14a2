"""Looking at files: counts from the mask bits, safe text, and no torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helpers import strip_checksum
from tombola.errors import escape
from tombola.store import container
from tombola.store.tensors import save_tensors
from tombola.tickets import inspection
from tombola.tickets import ticket as tickets
from tombola.tickets.ticket import Ticket


def test_describe_counts_the_bits_and_names_collapsed_layers(tmp_path):
    masks = {"g.a": torch.tensor([[True, False]]), "g.b": torch.zeros(3, 2, dtype=torch.bool)}
    weights = {"g.a": torch.ones(1, 2), "g.b": torch.ones(3, 2), "g.c": torch.ones(4)}
    tickets.save_ticket(tmp_path / "t", Ticket(masks, weights, {"task": "evil\x1b[31m"}))
    info = inspection.describe(tmp_path / "t")
    assert (info["kept"], info["prunable"], info["sparsity"]) == (1, 8, 0.875)
    assert info["layers"] == [
        {"name": "g.a", "shape": [1, 2], "kept": 1, "total": 2},
        {"name": "g.b", "shape": [3, 2], "kept": 0, "total": 6},
    ]
    assert info["collapsed"] == ["g.b"]
    assert info["file_bytes"] == (tmp_path / "t").stat().st_size
    assert (info["tensors"], info["values"], info["stored_values"]) == (3, 12, 5)
    text = inspection.describe_text(info)
    assert "\x1b" not in text
    assert "task:         evil\\x1b[31m" in text
    assert "87.5000% (1 of 8 prunable weights kept)" in text
    assert text.splitlines()[-1].endswith("0.00%  collapsed")
    json.dumps(info)


def test_tables_of_a_manifest_are_lines_and_no_code_of_ours(tmp_path):
    manifest = {
        "scores": {"fcd-digits-0a1b": 1.23456789, "bad\x1b[31m": None},
        "cost": {"train_flops": 123456},
        "created_with": {"torch": "2.0"},
        "parents": {},
        "networks": ["g"],
    }
    tickets.save_ticket(tmp_path / "t", Ticket({}, {"g.w": torch.ones(2)}, manifest))
    lines = inspection.describe_text(inspection.describe(tmp_path / "t")).splitlines()
    assert lines[3:] == [
        "  networks:     g",
        "  parents:      none",
        "  scores:",
        "    bad\\x1b[31m:     not known",
        "    fcd-digits-0a1b: 1.23457",
        "  cost:",
        "    train_flops: 123,456",
        "  created with:",
        "    torch: 2.0",
    ]


def test_describe_reads_models_and_checkpoints(tmp_path):
    weights = {"g.a": torch.tensor([[1.0, 0.0, 2.0]]), "g.b": torch.ones(4)}
    tickets.save_model(tmp_path / "m", weights, {"networks": ["g"]})
    info = inspection.describe(tmp_path / "m")
    assert info["layers"] == [{"name": "g.a", "shape": [1, 3], "kept": 2, "total": 3}]
    assert "weights in layers kept" in inspection.describe_text(info)
    save_tensors(tmp_path / "c", {"x": torch.ones(2)}, {})
    strip_checksum(tmp_path / "c")
    info = inspection.describe(tmp_path / "c")
    assert (info["sha256"], info["layers"], info["tensors"]) == (None, [], 1)
    assert "checksum not recorded" in inspection.describe_text(info)


def test_inspection_and_verification_do_not_import_torch(tmp_path):
    tickets.save_ticket(tmp_path / "t", Ticket({}, {"n.w": torch.ones(2)}))
    code = (
        "import sys; from tombola.store import container\n"
        "container.verify_file(sys.argv[1]); container.read_manifest(sys.argv[1])\n"
        "assert 'numpy' not in sys.modules\n"
        "from tombola.tickets import inspection\n"
        "inspection.describe_text(inspection.describe(sys.argv[1]))\n"
        "assert 'torch' not in sys.modules"
    )
    source = Path(container.__file__).parents[2]
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t")],
        check=True,
        env=os.environ | {"PYTHONPATH": str(source)},
    )


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("main.0.weight", "main.0.weight"),
        ("a\nb\tc\x1b[31m", "a\\nb\\tc\\x1b[31m"),
        ("\u202eevil\u200b", "\\u202eevil\\u200b"),
        ("back\\slash", "back\\\\slash"),
        ("\ud800", "\\ud800"),
        ("caf\u00e9", "caf\u00e9"),
        ("x" * 200, "x" * 117 + "..."),
        ("\n" * 100, "\\n" * 58 + "\\..."),
        (["a\n"], "['a\\\\n']"),
    ],
)
def test_shown_makes_control_characters_visible_and_cuts(text, safe):
    assert escape(text) == safe

"""Two tickets held against each other: counts by hand, chance by the formula, clear refusals."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tombola.cli import command_line as cli
from tombola.errors import TicketError
from tombola.store import container
from tombola.tickets import ticket as tickets
from tombola.tickets.difference import chance, difference, difference_text
from tombola.tickets.ticket import Ticket


def ticket(path, masks, **manifest):
    """A ticket of these masks, given as nested lists of 0 and 1, all weights 1."""
    bits = {name: torch.tensor(rows).bool() for name, rows in masks.items()}
    weights = {name: torch.ones(mask.shape) for name, mask in bits.items()}
    if manifest.get("granularity") == "channel":
        manifest["sparsity"] = 0.5
    tickets.save_ticket(path, Ticket(bits, weights, manifest))
    return str(path)


@pytest.mark.parametrize(("n", "a", "b"), [(5, 2, 3), (4, 4, 1), (6, 3, 3), (1, 1, 1), (7, 0, 3)])
def test_chance_is_the_mean_and_variance_over_all_masks(n, a, b):
    first = set(range(a))
    overlaps = [len(first & set(other)) for other in itertools.combinations(range(n), b)]
    mean = sum(overlaps) / len(overlaps)
    spread = sum((each - mean) ** 2 for each in overlaps) / len(overlaps)
    assert chance(n, a, b) == pytest.approx((mean, spread))


def test_the_numbers_of_each_layer_and_of_all(tmp_path):
    one = {"g.a": [[1, 1, 1, 0], [0, 0, 0, 0]], "g.b": [1, 1, 0, 0, 0]}
    other = {"g.a": [[1, 1, 0, 1], [0, 0, 0, 0]], "g.b": [0, 0, 1, 1, 0]}
    found = difference(ticket(tmp_path / "a", one), ticket(tmp_path / "b", other))
    a, b = found["layers"]
    # 3 and 3 of 8: 9/8 by chance, variance 3*3*5*5 / (64*7); 2 and 2 of 5: 4/5, 2*2*3*3 / (25*4).
    assert a == {
        "name": "g.a", "shape": [2, 4], "total": 8, "kept": [3, 3], "both": 2,
        "expected": 1.125, "over_chance": 2 / 1.125,
        "z": pytest.approx(0.875 / math.sqrt(225 / 448)),
        "jaccard": 0.5, "jaccard_by_chance": pytest.approx(1.125 / 4.875),
    }  # fmt: skip
    assert (b["both"], b["expected"], b["over_chance"], b["jaccard"]) == (0, 0.8, 0.0, 0.0)
    assert b["z"] == pytest.approx(-0.8 / 0.6)
    total = found["total"]
    assert (total["total"], total["kept"], total["both"]) == (13, [5, 5], 2)
    assert total["expected"] == pytest.approx(1.925)
    assert total["z"] == pytest.approx(0.075 / math.sqrt(225 / 448 + 0.36))
    assert json.loads(json.dumps(found))["facts"][0]["sparsity"] == pytest.approx(1 - 5 / 13)


def test_a_ticket_and_itself(tmp_path):
    path = ticket(tmp_path / "a", {"g.a": [1, 0, 0, 1]})
    (layer,) = difference(path, path)["layers"]
    assert (layer["both"], layer["jaccard"], layer["over_chance"]) == (2, 1.0, 2.0)
    assert layer["z"] == pytest.approx(1 / math.sqrt(1 / 3))


def test_layers_without_a_choice_have_no_z(tmp_path):
    masks = {"g.all": [1, 1], "g.none": [0, 0], "g.one": [1]}
    path = ticket(tmp_path / "a", masks)
    layers = difference(path, path)["layers"]
    assert [layer["z"] for layer in layers] == [None, None, None]
    assert [layer["jaccard"] for layer in layers] == [1.0, None, 1.0]
    text = difference_text(difference(path, path))
    assert [line.split()[-4:] for line in text.splitlines()[-3:-1]] == [
        ["0.0", "-", "-", "-"],
        ["1.0", "1.000", "-", "1.0000"],
    ]


def test_shapes_that_differ_and_layers_of_one_alone_are_named(tmp_path):
    a = ticket(tmp_path / "a", {"g.a": [1, 0], "g.b": [1, 0, 1], "g.c": [1]}, task="one")
    b = ticket(tmp_path / "b", {"g.a": [1, 0], "g.b": [1, 0], "g.d\x1b[31m": [1]}, task="two\n")
    found = difference(a, b)
    assert [layer["name"] for layer in found["layers"]] == ["g.a"]
    assert found["shapes_differ"] == {"g.b": [[3], [2]]}
    assert (found["only_first"], found["only_second"]) == (["g.c"], ["g.d\x1b[31m"])
    text = difference_text(found)
    assert "g.b: [3] in A, [2] in B; not compared" in text
    assert "g.c: masked only in A" in text
    assert "g.d\\x1b[31m: masked only in B" in text
    assert "task two\\n, " in text


def test_channels_count_once_each(tmp_path):
    """Bits repeated along filters are one channel, on rows as on columns."""
    rows = {"g.w": [[1] * 6, [0] * 6, [1] * 6, [0] * 6], "g.bn": [1, 1, 0, 0]}
    same = {"g.w": [[1] * 6, [1] * 6, [0] * 6, [0] * 6], "g.bn": [1, 0, 1, 0]}
    paths = [
        ticket(tmp_path / name, masks, granularity="channel")
        for name, masks in (("a", rows), ("b", same))
    ]
    found = difference(*paths)
    for layer in found["layers"]:
        assert (layer["total"], layer["kept"], layer["both"]) == (4, [2, 2], 1)
        assert (layer["expected"], layer["z"]) == (1.0, 0.0)
    assert [layer["shape"] for layer in found["layers"]] == [[4], [4, 6]]
    turned = {"g.w": torch.tensor(rows["g.w"]).T.tolist()}
    path = ticket(tmp_path / "c", turned, granularity="channel")
    assert difference(path, path)["total"]["total"] == 4


def test_empty_masks_are_nothing_to_compare_but_no_fault(tmp_path):
    path = tmp_path / "a"
    masks = {"g.e": torch.zeros(0, 3, dtype=torch.bool), "g.a": torch.tensor([True, False])}
    weights = {"g.e": torch.zeros(0, 3), "g.a": torch.ones(2)}
    for granularity in ("weight", "channel"):
        manifest = {"granularity": granularity, "sparsity": 0.5}
        tickets.save_ticket(path, Ticket(masks, weights, manifest))
        (layer,) = [x for x in difference(path, path)["layers"] if x["name"] == "g.e"]
        assert (layer["total"], layer["both"], layer["z"]) == (0, 0, None)


@pytest.mark.parametrize("words", [["--diff", "A", "B"], ["A", "--diff", "B"]])
@pytest.mark.parametrize("as_json", [False, True])
def test_on_the_command_line(words, as_json, tmp_path, capsys):
    paths = {
        "A": ticket(tmp_path / "a", {"g.a": [1, 1, 0, 0]}),
        "B": ticket(tmp_path / "b", {"g.a": [1, 0, 1, 0]}),
    }
    words = [paths.get(word, word) for word in words]
    assert cli.main(["inspect", *words, *(["--json"] if as_json else [])]) == 0
    out = capsys.readouterr().out
    if as_json:
        found = json.loads(out)
        assert found["files"] == [paths["A"], paths["B"]]
        assert found["total"]["expected"] == 1.0
    else:
        assert out.splitlines()[0] == f"A: {paths['A']}"
        last = out.splitlines()[-1].split()
        assert last == ["all", "layers", "4", "2", "2", "1", "1.0", "1.000", "0.0", "0.3333"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "inspect got 0 files; give one file, or two with --diff"),
        (["--diff", "A"], "inspect got 1 files; give two tickets with --diff"),
        (["--diff", "A", "A", "A"], "inspect got 3 files; give two tickets with --diff"),
        (["A", "--diff", "A", "A"], "inspect got 3 files"),
        (["--diff", "A", "absent"], "absent: no such file"),
        (
            ["--diff", "A", "other"],
            "no masked layer of the same name and shape in common (g.a ",
        ),
        (["--diff", "A", "channels"], "(one masks weights, the other channels); give two tickets"),
        (["--diff", "A", "model"], "tombola.model/1 file, but tombola.ticket/1 is asked for"),
        (["--diff", "damaged", "A"], "the checksum does not agree"),
    ],
)
def test_what_cannot_be_compared(words, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ticket("A", {"g.a": [1, 0]})
    ticket("other", {"h.a": [1, 0]})
    ticket("channels", {"g.a": [1, 0]}, granularity="channel")
    tickets.save_model("model", {"g.a": torch.ones(2)}, {})
    blob = bytearray((tmp_path / "A").read_bytes())
    begin = container.read_header("A").entries["weight.g.a"].begin
    blob[begin] ^= 1
    (tmp_path / "damaged").write_bytes(blob)
    assert cli.main(["inspect", *words]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_a_strange_name_is_escaped_where_it_is_refused(tmp_path):
    a = ticket(tmp_path / "a", {"g.\x1b[2J": [1, 0]})
    b = ticket(tmp_path / "b", {"h.x": [1, 0]})
    with pytest.raises(TicketError) as caught:
        difference(a, b)
    assert str(caught.value).isprintable()


def test_comparing_imports_no_torch(tmp_path):
    path = ticket(tmp_path / "a", {"g.a": [1, 0]})
    code = (
        "import sys; from tombola.cli import command_line as cli\n"
        f"assert cli.main(['inspect', '--diff', {path!r}, {path!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    source = {"PYTHONPATH": str(Path(container.__file__).parents[2])}
    subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, env=os.environ | source
    )

"""Start weights trained again from a ticket's manifest: equal bits, or why not; nothing trusted."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

import in_process
from tombola.cli import command_line as cli
from tombola.config import sections as config
from tombola.config.surroundings import versions
from tombola.engine import rebuild as rebuilding
from tombola.engine import search
from tombola.engine.rebuild import compare, rebuild
from tombola.engine.request import find_request
from tombola.errors import ConfigError, TicketError
from tombola.store.container import read_manifest
from tombola.tickets import ticket as tickets

TOY = Path(__file__).parent / "toy_task.py"
TICKETS = {
    "imp": ("TinyGAN", {"rewind": "3it"}, {"steps": 6}),
    "snip": ("TinyAE", {"method": "snip", "rewind": "0it"}, {"steps": 2}),
    "bf16": ("TinyAE", {"rewind": "2it"}, {"steps": 4, "precision": "bf16"}),
    "early-bird": ("WideGAN", {"method": "early-bird"}, {"steps": 40}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A ticket of each kind, found once, as the workers of a search compute."""
    folder = tmp_path_factory.mktemp("found")
    patch = pytest.MonkeyPatch()
    in_process.use(patch)
    torch.set_flush_denormal(True)
    try:
        with in_process.Restored():
            for name, (task, sought, trained) in TICKETS.items():
                tables = {
                    "task": {"name": f"{TOY}:{task}"},
                    "train": {"ema": 0.5, **trained},
                    "prune": {"scale_l1": 1e-3},
                    "search": {"rounds": 1, "rate": "0.5", "seeds": 1, "controls": (), **sought},
                    "judge": {"samples": 20, "sampling_seeds": 1, "validation_samples": 0},
                    "run": {"workers": 1, "threads": 1, "device": "cpu"},
                }
                search.run(find_request(config.build(tables), None, folder / name, ""))
    finally:
        torch.set_flush_denormal(False)
        patch.undo()
    return {name: next((folder / name / "tickets").rglob("*.safetensors")) for name in TICKETS}


def spec(name):
    return f"{TOY}:{TICKETS[name][0]}"


def changed(path, target, weights=None, **manifest):
    """A copy of a ticket with other weights or another manifest, its checksum right for them."""
    ticket = tickets.load_ticket(path)
    new = {**ticket.weights, **(weights or {})}
    other = dataclasses.replace(ticket, weights=new, manifest={**ticket.manifest, **manifest})
    tickets.save_ticket(target, other)
    return target


@pytest.mark.parametrize("name", TICKETS)
def test_the_bits_are_those_of_the_file(name, made):
    ticket = tickets.load_ticket(made[name])
    text = rebuild(made[name], spec(name))
    steps = ticket.manifest["rewind_step"]
    assert text.startswith(f"rebuilt: {steps} steps of dense training, seed 0, ")
    assert "the masks were not found again: that would be the whole search" in text
    values = sum(weight.numel() for weight in ticket.weights.values())
    assert text.endswith(f"equal bits: {values:,} values in {len(ticket.weights)} tensors")
    assert steps == {"imp": 3, "snip": 0, "bf16": 2}.get(name, steps) >= 0
    if name == "early-bird":
        assert steps > 0
        assert ticket.manifest["granularity"] == "channel"


def test_the_pressure_on_scales_is_part_of_an_early_bird_training(made, tmp_path):
    stored = read_manifest(made["early-bird"])["config"]
    assert stored["prune"]["scale_l1"] == 1e-3
    without = {**stored, "prune": {**stored["prune"], "scale_l1": 0.0}}
    path = changed(made["early-bird"], tmp_path / "t", config=without)
    with pytest.raises(TicketError, match="are not those of its manifest"):
        rebuild(path, spec("early-bird"))


def test_on_the_command_line(made, capsys):
    assert cli.main(["verify", str(made["imp"]), "--rebuild", "--task", spec("imp")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{made['imp']}: sound"
    assert lines[1].startswith("rebuilt: 3 steps")
    assert lines[2].startswith("equal bits: ")


def first_weight(path):
    ticket = tickets.load_ticket(path)
    name = next(key for key in ticket.masks if key in ticket.weights)
    return name, ticket.weights[name], ticket.masks[name]


def test_one_bit_in_one_weight_is_seen(made, tmp_path, capsys):
    name, weight, mask = first_weight(made["imp"])
    bits = weight.view(torch.int32).clone()
    bits[tuple(mask.nonzero()[0])] ^= 1
    path = changed(made["imp"], tmp_path / "t", {name: bits.view(torch.float32)})
    assert cli.main(["verify", str(path), "--rebuild", "--task", spec("imp")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "its start weights are not those of its manifest: 1 of " in error
    assert name in error
    assert "so the bits must be" in error


def test_a_count_of_batches_is_compared_exactly(made, tmp_path, monkeypatch):
    elsewhere(monkeypatch)
    name = "generator.2.num_batches_tracked"
    path = changed(made["imp"], tmp_path / "t", {name: torch.tensor(8)})
    with pytest.raises(TicketError, match=rf"{name} is 8 in the file and \d+ when it is trained"):
        rebuild(path, spec("imp"))


@pytest.mark.parametrize("change", ["seed", "steps", "learning_rate"])
def test_another_training_is_not_taken_for_this_one(change, made, tmp_path, monkeypatch):
    """Neither here nor elsewhere: a seed, a length or a rate that the manifest does not have."""
    manifest = read_manifest(made["imp"])
    stored = manifest["config"]
    match change:
        case "seed":
            new = {"seed": 1}
        case "steps":
            new = {"rewind_step": 1}
        case _:
            new = {"config": {**stored, "task": {**stored["task"], "learning_rate": 0.01}}}
    path = changed(made["imp"], tmp_path / "t", **new)
    with pytest.raises(TicketError, match=r"are not those of its manifest|in the file and"):
        rebuild(path, spec("imp"))
    elsewhere(monkeypatch)
    with pytest.raises(TicketError, match=r"are not confirmed: .* rebuild it where|in the file an"):
        rebuild(path, spec("imp"))


def elsewhere(monkeypatch):
    monkeypatch.setattr(rebuilding, "versions", lambda: {**versions(), "torch": "9.9"})


def test_rounding_passes_elsewhere_alone(made, tmp_path, monkeypatch):
    name, weight, mask = first_weight(made["imp"])
    path = changed(made["imp"], tmp_path / "t", {name: weight * (1 + 2**-20)})
    with pytest.raises(TicketError, match="are not those of its manifest"):
        rebuild(path, spec("imp"))
    elsewhere(monkeypatch)
    text = rebuild(path, spec("imp"))
    most = float((weight * (1 + 2**-20) - weight).abs().max())
    assert f"equal but for rounding: {int(mask.sum()):,} of " in text
    assert f"differ, by at most {most:.3g} ({name})" in text
    assert text.endswith(f"as torch was {torch.__version__} and is 9.9")
    assert "equal bits: " in rebuild(made["imp"], spec("imp"))


def test_what_is_compared_by_hand():
    first = {"n.w": torch.zeros(4), "n.k": torch.tensor(3)}
    now = {"n.w": torch.tensor([1.0, -1.0, 1.0, 1.0]), "n.k": torch.tensor(3)}
    there = {"n.w": torch.tensor([1.0, -1.0, 1.0, 1.5]), "n.k": torch.tensor(3)}
    found = compare(there, now, first)
    assert (found.tensors, found.values, found.unequal) == (2, 5, 1)
    assert (found.largest, found.where) == (0.5, "n.w")
    assert (found.off, found.way, found.size) == (0.25, 1.0, 1.0)
    assert found.allowed == pytest.approx(0.25 + 1e-6)
    assert compare(now, now, first).unequal == 0
    nan = {**now, "n.w": torch.tensor([math.nan, -1.0, 1.0, 1.0])}
    assert compare(nan, nan, first).unequal == 0  # the same bits
    assert compare(nan, now, first).largest == math.inf
    minus = {**now, "n.w": torch.tensor([1.0, -1.0, 1.0, 1.0]), "n.k": torch.tensor(3)}
    minus["n.w"][0] = -0.0
    zero = {**minus, "n.w": minus["n.w"].clone().abs()}
    assert compare(minus, zero, first).unequal == 2  # -0.0 is not 0.0, and -1 not 1
    with pytest.raises(TicketError, match=r"n\.w is torch\.float64 in the file and torch\.float32"):
        compare({**now, "n.w": now["n.w"].double()}, now, first)


def test_what_differs_from_where_it_was_made():
    here = versions()
    assert rebuilding.surroundings({"created_with": here}, "cpu") == []
    old = {**here, "torch": "1.0\x1b[31m"}
    del old["machine"]
    found = rebuilding.surroundings({"created_with": old}, "cuda")
    assert found[0] == f"machine was not recorded and is {here['machine']}"
    assert found[1] == f"torch was 1.0\\x1b[31m and is {here['torch']}"
    assert found[2] == "sums on cuda have no fixed order"
    assert len(rebuilding.surroundings({"created_with": "someone"}, "cpu")) == 5


def test_a_file_never_says_which_code_or_folder_to_take(made, tmp_path):
    trap = tmp_path / "trap.py"
    trap.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Trap: pass\n")
    path = changed(made["imp"], tmp_path / "t", task=f"{trap}:Trap")
    with pytest.raises(ConfigError, match="say with --task path/to/file"):
        rebuild(path)
    path = changed(made["imp"], tmp_path / "t", data=f"folder:{tmp_path}")
    with pytest.raises(ConfigError, match="not built in; say with --data"):
        rebuild(path, spec("imp"))
    stored = read_manifest(made["imp"])["config"]
    for section, key in (("prune", "criterion"), ("judge", "features")):
        spoilt = {**stored, section: {**stored[section], key: f"{trap}:Trap"}}
        path = changed(made["imp"], tmp_path / "t", config=spoilt)
        assert "equal bits" in rebuild(path, spec("imp"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({"config": None}, "does not say how it was found (no config in its manifest)"),
        ({"rewind_step": 99}, "begins at step 99, but the training has 6 steps"),
        ({"rewind_step": -1}, "begins at step -1"),
        ({"data_hash": "0" * 64}, "was found on other images"),
        ({"task": "vae"}, "is a ticket of task vae, not of TinyGAN"),
    ],
)
def test_a_manifest_that_cannot_be_followed(manifest, words, made, tmp_path):
    path = changed(made["imp"], tmp_path / "t", **manifest)
    with pytest.raises(TicketError) as caught:
        rebuild(path, spec("imp"))
    assert words in str(caught.value)


def test_a_model_is_not_rebuilt(made):
    model = next((made["imp"].parents[1] / "models").glob("*.safetensors"))
    with pytest.raises(TicketError, match="take a file from a run's tickets folder"):
        rebuild(model)

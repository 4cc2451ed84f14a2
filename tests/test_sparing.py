"""What a search does without: states that nobody judges, moments, waits for the disk, rewriting."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import in_process
from test_stages import CutOffError, context, plan
from tombola.config import atomic
from tombola.engine import loop
from tombola.engine.search import context_fields
from tombola.engine.stages import execute
from tombola.errors import TicketError
from tombola.tickets.mask_file import load_masks
from tombola.tickets.ticket import load_ticket
from tombola.training.checkpoint import load_start, load_state, save_state
from tombola.training.trainer import Trainer

TASK = f"{Path(__file__).parent / 'toy_task.py'}:TinyAE"


def carried(folder, *labels, moments=True):
    """Runs of a search of one level whose labels begin so: (context, label -> node)."""
    place = replace(context(folder), moments=moments)
    nodes = {}
    with in_process.Restored():
        for node in plan().graph:
            if node.label.startswith(labels):
                execute(node, place)
                nodes[node.label] = node
    return place, nodes


def files(place, node):
    return sorted(path.name for path in place.store.path(node.hash).glob("*.safetensors"))


@pytest.mark.parametrize(
    ("kind", "course", "judged"),
    [
        ("TinyAE", False, [20]),
        ("TinyGAN", False, [21, 22, 23, 24]),
        ("TinyAE", True, list(range(1, 25))),
    ],
)
def test_only_states_that_will_be_judged_are_kept(tmp_path, kind, course, judged):
    place = replace(context(tmp_path, kind=kind), course=course)
    dense = next(node for node in plan(kind).graph if node.kind == "train")
    with in_process.Restored():
        execute(dense, place)
    names = [f"judge-{step}.safetensors" for step in judged]
    assert files(place, dense) == sorted(["final.safetensors", "state-5.safetensors", *names])


@pytest.mark.parametrize(
    ("options", "course"),
    [
        ({"judge": {"validation_samples": 0}}, False),
        ({"judge": {"validation_samples": 10}}, True),
        ({"judge": {"validation_samples": 0}, "run": {"keep": "all"}}, True),
    ],
)
def test_the_course_is_kept_where_it_is_judged_or_everything_is(tmp_path, options, course):
    from tombola.config.sections import build
    from tombola.engine.request import find_request
    from tombola.plan.setting import resolve

    run = {"threads": 1, "workers": 1, "device": "cpu", **options.pop("run", {})}
    for restore in ("fresh", "restore"):
        tables = {
            "task": {"name": TASK},
            "run": run,
            "search": {"optimizer_at_rewind": restore},
            **options,
        }
        request = find_request(build(tables), None, tmp_path, "x")
        fields = context_fields(request, resolve(request.config, None), context(tmp_path).store)
        assert (fields["course"], fields["moments"]) == (course, restore == "restore")


def test_moments_are_kept_only_where_they_are_restored_and_change_no_ticket(tmp_path):
    kinds = ("dense", "rewind", "mask", "ticket")
    with_all, nodes = carried(tmp_path / "with", *kinds)
    without, _ = carried(tmp_path / "without", *kinds, moments=False)
    point = nodes["rewind point 5, seed 0"].hash
    whole, some = (
        load_state(place.store.path(point) / "state.safetensors") for place in (with_all, without)
    )
    moments = {name for name in whole[0] if name.startswith("optimizer.")}
    assert moments
    assert some[0].keys() == whole[0].keys() - moments
    assert some[1]["moments"] is False
    for node in nodes.values():
        for name in files(with_all, node):
            if not name.startswith("state"):
                paths = [place.store.path(node.hash) / name for place in (with_all, without)]
                assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_state_without_moments_is_replayed_where_they_are_wanted(tmp_path):
    wanted, nodes = carried(tmp_path / "with", "dense", "rewind")
    place, _ = carried(tmp_path / "out", "dense", moments=False)
    rewind = nodes["rewind point 5, seed 0"]
    execute(rewind, replace(place, moments=True))
    assert place.store.record(rewind.hash)["replayed"]
    both = [each.store.path(rewind.hash) / "state.safetensors" for each in (wanted, place)]
    assert both[0].read_bytes() == both[1].read_bytes()


@pytest.mark.parametrize("flip", ["network.", "optimizer."])
def test_of_a_state_only_what_is_wanted_takes_memory_and_all_is_checked(tmp_path, flip):
    place, nodes = carried(tmp_path, "dense")
    path = place.store.path(nodes["dense, seed 0"].hash) / "state-5.safetensors"
    whole, manifest = load_state(path)
    some, told = load_state(path, "network.")
    assert told == manifest
    assert some.keys() == {name for name in whole if name.startswith("network.")} < whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in some.items())
    assert load_start(path).keys() == {name.removeprefix("network.") for name in some}
    name = next(name for name in sorted(whole) if name.startswith(flip) and whole[name].dim())
    data = bytearray(path.read_bytes())
    place_of = data.index(whole[name].contiguous().view(torch.uint8).numpy().tobytes())
    data[place_of] ^= 1
    path.write_bytes(data)
    with pytest.raises(TicketError, match="the checksum does not agree"):
        load_state(path, "network.")


def test_masks_alone_are_those_of_the_ticket_and_all_of_it_is_checked(tmp_path):
    place, nodes = carried(tmp_path, "dense", "rewind", "mask")
    path = place.store.path(nodes["mask of level 1, seed 0"].hash) / "ticket.safetensors"
    ticket, masks = load_ticket(path), load_masks(path)
    assert masks.keys() == ticket.masks.keys()
    assert all(torch.equal(mask, ticket.masks[name]) for name, mask in masks.items())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TicketError, match="get the file again"):
        load_masks(path)


def synced(monkeypatch):
    """The names of the files that are waited for."""
    found, fsync = [], os.fsync

    def syncing(descriptor):
        found.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", syncing)
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells")
def test_of_a_short_training_only_what_stays_is_waited_for(tmp_path, monkeypatch):
    waited = synced(monkeypatch)
    carried(tmp_path, "dense")
    names = [name.removeprefix(".").partition(".safetensors")[0] for name in waited]
    assert not [name for name in names if name.startswith(("judge-", "state-"))]
    assert "final" in names


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only Linux tells")
def test_before_a_checkpoint_what_it_builds_on_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "MOST_SHARE", float("inf"))
    waited, advance = synced(monkeypatch), Trainer.advance

    def failing(self):
        if self.step == 7:
            raise CutOffError
        advance(self)

    monkeypatch.setattr(Trainer, "advance", failing)
    with pytest.raises(CutOffError):
        carried(tmp_path, "dense")
    (part,) = tmp_path.glob("*.part")
    saved = [path.name for path in part.glob("judge-*")]
    assert sorted(saved) == [f"judge-{step}.safetensors" for step in range(1, 8)]
    # After step 7 no checkpoint was written any more.
    assert {name for name in waited if name.startswith("judge-")} == {*saved} - {
        "judge-7.safetensors"
    }
    assert "state-5.safetensors" in waited


def test_gradients_are_let_go_before_a_state_is_copied(tmp_path, monkeypatch):
    seen = []
    judged = Trainer.judged_weights

    def looking(self, **options):
        seen.append([p.grad is not None for n in self.networks.values() for p in n.parameters()])
        return judged(self, **options)

    monkeypatch.setattr(Trainer, "judged_weights", looking)
    carried(tmp_path, "dense")
    assert seen
    assert not any(map(any, seen))


# --- what is there is not written again ---


def test_a_file_with_the_same_bytes_is_left_as_it_is(tmp_path):
    path, other = tmp_path / "a", tmp_path / "b"
    atomic.write_atomic(path, b"one")
    before = path.stat()
    atomic.write_atomic(path, b"one")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    atomic.write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    other.symlink_to(path)
    atomic.write_atomic(other, b"two")
    assert not other.is_symlink()


def test_states_that_are_saved_without_moments_say_so(tmp_path):
    import helpers

    made = helpers.run(helpers.trainer(helpers.TinyAE()), 3)
    save_state(tmp_path / "state.safetensors", made, {"more": 1}, moments=False)
    tensors, manifest = load_state(tmp_path / "state.safetensors")
    assert all(name.startswith("network.") for name in tensors)
    assert (manifest["moments"], manifest["more"], manifest["step"]) == (False, 1, 3)

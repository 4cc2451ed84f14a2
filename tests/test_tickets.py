"""Tickets and models: bit-for-bit round trips, the format to the letter, start and enforce."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from helpers import strip_checksum
from tombola.errors import ConfigError, TicketError
from tombola.sparsity.names import load_plain_state, plain_state
from tombola.store import container
from tombola.store import tensors as tensorfile
from tombola.store.tensors import load_tensors, save_tensors
from tombola.tickets import ticket as tickets
from tombola.tickets.inspection import describe
from tombola.tickets.ticket import Model, Ticket

CONTRACT = {
    "task", "data", "data_hash", "method", "granularity", "networks", "shapes", "sparsity",
    "sparsity_all", "rewind_step", "seed", "round", "parents", "config", "scores", "cost",
    "created_with",
}  # fmt: skip


def small_ticket() -> Ticket:
    """One layer of 3x4 with 7 kept weights (mask literal below), a bias and a counter."""
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1], [1, 0, 1, 1]], dtype=torch.bool)
    weights = {
        "net.fc.weight": torch.arange(1.0, 13.0).reshape(3, 4),
        "net.fc.bias": torch.tensor([0.5, -0.0, float("inf")]),
        "net.bn.num_batches_tracked": torch.tensor(2**40 + 1),
    }
    return Ticket({"net.fc.weight": mask}, weights, {"task": "toy", "seed": 0, "round": 3})


def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), spectral_norm(nn.Conv2d(3, 2, 2))
    )
    return {"encoder": encoder, "decoder": nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3))}


def dense(nets: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    return {f"{n}.{k}": v for n, m in nets.items() for k, v in plain_state(m).items()}


def net_ticket(nets: dict[str, nn.Module]) -> Ticket:
    weights = dense(nets)
    names = ["encoder.0.weight", "encoder.2.weight", "decoder.0.weight", "decoder.1.weight"]
    generator = torch.Generator().manual_seed(1)
    masks = {k: torch.rand(weights[k].shape, generator=generator) < 0.4 for k in names}
    return Ticket(masks, weights, {"networks": ["encoder", "decoder"]})


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def independent_read(path: Path) -> tuple[dict, dict]:
    """(metadata, name -> (dtype, shape, bytes)) with nothing but json, struct and open."""
    blob = path.read_bytes()
    (length,) = struct.unpack("<Q", blob[:8])
    head = json.loads(blob[8 : 8 + length])
    metadata, data = head.pop("__metadata__"), blob[8 + length :]
    tensors = {}
    for name, entry in head.items():
        begin, end = entry["data_offsets"]
        tensors[name] = (entry["dtype"], entry["shape"], data[begin:end])
    return metadata, tensors


# --- the format, to the letter ---


def test_an_independent_reader_finds_the_format_to_the_letter(tmp_path):
    path = tmp_path / "t.safetensors"
    tickets.save_ticket(path, small_ticket())
    metadata, tensors = independent_read(path)
    assert set(metadata) == {"format", "manifest", "sha256"}
    assert metadata["format"] == "tombola.ticket/1"
    assert set(tensors) == {
        "mask.net.fc.weight", "weight.net.fc.weight", "weight.net.fc.bias",
        "weight.net.bn.num_batches_tracked",
    }  # fmt: skip
    # 1011 0001 | 1011 + four bits of padding: most significant bit first.
    assert tensors["mask.net.fc.weight"] == ("U8", [2], bytes([0b10110001, 0b10110000]))
    kept = struct.pack("<7f", 1, 3, 4, 8, 9, 11, 12)
    assert tensors["weight.net.fc.weight"] == ("F32", [7], kept)
    assert tensors["weight.net.fc.bias"] == ("F32", [3], struct.pack("<3f", 0.5, -0.0, np.inf))
    assert tensors["weight.net.bn.num_batches_tracked"][:2] == ("I64", [])
    assert tensors["weight.net.bn.num_batches_tracked"][2] == struct.pack("<q", 2**40 + 1)
    manifest = json.loads(metadata["manifest"])
    assert set(manifest) == CONTRACT
    assert manifest["shapes"] == {
        "net.fc.weight": [3, 4], "net.fc.bias": [3], "net.bn.num_batches_tracked": []
    }  # fmt: skip
    assert manifest["sparsity"] == 1 - 7 / 12
    assert (manifest["granularity"], manifest["networks"]) == ("weight", ["net"])
    assert metadata["manifest"] == json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256()
    for name in sorted(tensors):
        dtype, shape, data = tensors[name]
        shape_text = json.dumps(shape, separators=(",", ":"))
        digest.update(f"{name}\0{dtype}\0{shape_text}\0".encode() + data)
    digest.update(metadata["manifest"].encode())
    assert metadata["sha256"] == digest.hexdigest()


@pytest.mark.parametrize(
    ("mask", "packed"),
    [
        ([1], [0b10000000]),
        ([0, 1, 1], [0b01100000]),
        ([1] * 8, [255]),
        ([0] * 8 + [1], [0, 0b10000000]),
        ([0] * 5, [0]),
    ],
)
def test_mask_bits_are_packed_msb_first_with_zero_padding(tmp_path, mask, packed):
    path, flags = tmp_path / "t.safetensors", torch.tensor(mask, dtype=torch.bool)
    tickets.save_ticket(path, Ticket({"n.w": flags}, {"n.w": torch.ones(len(mask))}))
    assert independent_read(path)[1]["mask.n.w"] == ("U8", [len(packed)], bytes(packed))
    assert torch.equal(tickets.load_ticket(path).masks["n.w"], flags)


def test_safetensors_own_reader_opens_every_kind_of_file(tmp_path):
    nets = networks()
    tickets.save_ticket(tmp_path / "t.safetensors", net_ticket(nets))
    tickets.save_model(tmp_path / "m.safetensors", dense(nets), {})
    save_tensors(tmp_path / "c.safetensors", {"b": torch.tensor([True]),
                         "a": torch.zeros(0, 3), "h": torch.ones(3).bfloat16()}, {})  # fmt: skip
    with safe_open(tmp_path / "t.safetensors", "pt") as file:
        assert json.loads(file.metadata()["manifest"])["networks"] == ["encoder", "decoder"]
        assert file.get_tensor("mask.decoder.0.weight").dtype == torch.uint8
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        name = "weight.encoder.2.weight"  # the raw leaf under spectral norm
        assert torch.equal(file.get_tensor(name), dense(nets)["encoder.2.weight"])
    with safe_open(tmp_path / "c.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("h"), torch.ones(3).bfloat16())
        assert file.get_tensor("a").shape == (0, 3)


def test_tensors_lie_aligned_and_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        tickets.save_ticket(tmp_path / name, small_ticket())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    tensors = {
        "a": torch.ones(3, dtype=torch.int8),
        "b": torch.ones(3).double(),
        "c": torch.ones(1),
    }
    for length in range(8):
        save_tensors(tmp_path / "c", tensors, {"pad": "x" * length})
        entries = container.read_header(tmp_path / "c").entries
        assert entries["b"].begin % 8 == 0
        assert entries["c"].begin % 4 == 0


# --- round trips ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_ticket_round_trips_bit_for_bit(tmp_path, dtype):
    weight = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight[0, 0, 0, 0], weight[0, 0, 0, 1] = float("nan"), -0.0
    mask = torch.zeros(5, 3, 3, 3, dtype=torch.bool)
    mask[0], mask[3, 1] = True, True
    ticket = Ticket({"g.w": mask}, {"g.w": weight.to(memory_format=torch.channels_last)})
    path = tmp_path / "t.safetensors"
    tickets.save_ticket(path, ticket)
    again = tickets.load_ticket(path)
    assert torch.equal(again.masks["g.w"], mask)
    assert again.weights["g.w"].dtype == dtype
    assert bits(again.weights["g.w"]) == bits(
        torch.where(mask, weight, torch.zeros((), dtype=dtype))
    )
    assert not again.weights["g.w"][~mask].signbit().any()
    tickets.save_ticket(tmp_path / "again", again)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_a_ticket_owns_its_tensors_and_zeroes_what_is_pruned():
    weight, mask = torch.full((2, 2), -3.0), torch.tensor([[True, False], [False, True]])
    ticket = Ticket({"n.w": mask}, {"n.w": weight, "n.b": weight[0]})
    weight.fill_(7.0)
    mask.fill_(True)
    assert ticket.weights["n.w"].tolist() == [[-3.0, 0.0], [0.0, -3.0]]
    assert not ticket.weights["n.w"][0, 1].signbit()
    assert ticket.weights["n.b"].tolist() == [-3.0, -3.0]
    assert ticket.masks["n.w"].sum() == 2


@pytest.mark.parametrize("kept", [0, 12])
def test_masks_of_nothing_and_of_everything_round_trip(tmp_path, kept):
    mask = torch.full((3, 4), bool(kept))
    ticket = Ticket({"n.w": mask}, {"n.w": torch.ones(3, 4), "n.none": torch.zeros(0, 2)})
    tickets.save_ticket(tmp_path / "t", ticket)
    again = tickets.load_ticket(tmp_path / "t")
    assert again.weights["n.w"].sum() == kept
    assert again.weights["n.none"].shape == (0, 2)
    assert again.manifest["sparsity"] == 1 - kept / 12


def test_models_have_masks_applied_as_positive_zero(tmp_path):
    mask = torch.tensor([True, False, False])
    weights = {"n.w": torch.tensor([1.0, 5.0, -0.0]), "n.b": torch.tensor([-0.0, 2.0])}
    tickets.save_model(tmp_path / "m", weights, {"task": "toy"}, masks={"n.w": mask})
    assert independent_read(tmp_path / "m")[1]["weight.n.w"][2] == struct.pack("<3f", 1, 0, 0)
    again, manifest = tickets.load_model_file(tmp_path / "m")
    assert not again["n.b"].signbit().any()
    assert (manifest["task"], manifest["networks"]) == ("toy", ["n"])
    assert manifest["shapes"] == {"n.w": [3], "n.b": [2]}
    assert weights["n.w"].tolist() == [1.0, 5.0, 0.0]
    assert weights["n.w"][2].signbit()  # the caller's tensors are left alone


def test_checkpoints_keep_every_dtype_with_and_without_checksum(tmp_path):
    tensors = {
        "a/b": torch.tensor([[1, 2], [3, 2**62]]).t(), "flags": torch.tensor([True, False, True]),
        "half": torch.randn(7).bfloat16(), "one": torch.tensor(3.5).double(),
        "small": torch.tensor([-1, 5], dtype=torch.int8), "same": torch.ones(1).expand(5),
    }  # fmt: skip
    for checksum in (True, False):
        path = tmp_path / f"c{checksum}"
        save_tensors(path, tensors, {"step": 9})
        if not checksum:
            strip_checksum(path)
        again, manifest = load_tensors(path)
        assert manifest == {"step": 9}
        assert {k: (v.dtype, v.shape, bits(v)) for k, v in again.items()} == {
            k: (v.dtype, v.shape, bits(v)) for k, v in tensors.items()
        }
        assert bool(container.read_header(path).sha256) is checksum
    save_tensors(path, {"x": torch.ones(2)}, {"step": 9})
    path.write_bytes(path.read_bytes()[:-1] + b"\x40")
    with pytest.raises(TicketError, match="checksum does not agree"):
        load_tensors(path)
    with pytest.raises(TicketError, match=r"float8_e5m2 cannot be stored"):
        save_tensors(path, {"z": torch.zeros(1, dtype=torch.float8_e5m2)}, {})


@pytest.mark.parametrize("dtype", [torch.complex32, torch.complex64, torch.complex128])
def test_complex_buffers_are_kept_as_pairs_of_real_numbers(tmp_path, dtype):
    turn = torch.polar(torch.ones(2, 3), torch.arange(6.0).reshape(2, 3)).to(dtype)
    ticket = small_ticket()
    name = f"{next(iter(ticket.weights)).partition('.')[0]}.turn"
    weights = {**ticket.weights, name: turn.conj() if dtype == torch.complex64 else turn}
    wanted = weights[name].resolve_conj()
    ticket = tickets.Ticket(ticket.masks, weights, ticket.manifest)
    tickets.save_ticket(tmp_path / "t", ticket)
    tickets.save_model(tmp_path / "m", weights, {})
    save_tensors(tmp_path / "c", {name: weights[name]}, {"step": 1})
    for file in "tmc":
        assert container.read_manifest(tmp_path / file)["complex"] == [name]
    made = [tickets.load(tmp_path / file) for file in "tm"]
    assert all(each.manifest["shapes"][name] == [2, 3] for each in made)
    kept, manifest = load_tensors(tmp_path / "c")
    assert manifest == {"step": 1}
    for found in (*(each.weights[name] for each in made), kept[name]):
        assert found.dtype == dtype
        assert torch.equal(torch.view_as_real(found), torch.view_as_real(wanted))
    assert "complex" not in made[0].manifest
    assert name not in [layer["name"] for layer in describe(tmp_path / "m")["layers"]]
    real = tickets.Ticket(ticket.masks, {**weights, name: torch.ones(2, 3)}, made[0].manifest)
    tickets.save_ticket(tmp_path / "t", real)
    assert "complex" not in container.read_manifest(tmp_path / "t")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("a.w", "the manifest's complex is a.w, not a list of names"),
        ([3], "not a list of names"),
        (["a.w"], r"tensor a\.w: F32 \[3\] cannot be the pairs"),
        (["a.i"], r"tensor a\.i: I64 \[2\] cannot be the pairs"),
    ],
)
def test_what_can_be_no_pairs_is_refused(tmp_path, names, words):
    tensors = {"a.w": torch.ones(3), "a.i": torch.ones(2, dtype=torch.int64)}
    raws = {name: tensorfile.to_raw(tensor) for name, tensor in tensors.items()}
    manifest = {"complex": names}
    container.write_file(tmp_path / "c", raws, manifest, format="tombola.checkpoint/1")
    with pytest.raises(TicketError, match=words):
        load_tensors(tmp_path / "c")
    raws = {f"weight.{name}": raw for name, raw in raws.items()}
    manifest["shapes"] = {name: list(t.shape) for name, t in tensors.items()}
    with pytest.raises(TicketError, match=words.replace("tensor a", "tensor weight.a")):
        container.write_file(tmp_path / "m", raws, manifest, format="tombola.model/1")


def test_a_complex_state_is_loaded_into_complex_buffers_alone():
    network = torch.nn.Linear(2, 2)
    network.register_buffer("turn", torch.ones(3, dtype=torch.complex64))
    state = plain_state(network)
    load_plain_state(network, {**state, "turn": 2j * torch.ones(3)})
    assert torch.equal(network.turn, 2j * torch.ones(3))
    with pytest.raises(TicketError, match=r"'turn' is torch\.int64"):
        load_plain_state(network, {**state, "turn": torch.ones(3).long()})


@pytest.mark.parametrize("kind", ["ticket", "compact"])
@pytest.mark.parametrize("arm", ["", "early-bird-all-c0.5"])
def test_the_model_that_lies_beside_a_ticket_is_named(tmp_path, monkeypatch, kind, arm):
    name = Path("tickets", arm, "seed0-round03.safetensors")
    (tmp_path / name).parent.mkdir(parents=True)
    ticket = small_ticket()
    ticket.manifest["config"] = {"search": {}}
    tickets.save_ticket(tmp_path / name, ticket)
    model = tmp_path / "models" / arm / f"{kind}-seed0-round03.safetensors"

    def refusal(path):
        with pytest.raises(TicketError) as caught:
            tickets.load_model_file(path)
        return str(caught.value)

    text, own = refusal(tmp_path / name), tmp_path / name
    assert "not beside it" in text
    assert text.endswith(f"--keep all, or train it by tombola train TASK --ticket {own}")
    tickets.save_model(model, ticket.weights, {})
    assert refusal(tmp_path / name).endswith(f"take the model trained from it, {model}")
    monkeypatch.chdir((tmp_path / name).parent)  # a name alone has no folder in it
    beside = Path(os.path.relpath(model))
    assert refusal(name.name).endswith(f"take the model trained from it, {beside}")


def test_load_goes_by_the_format_and_says_which_file_to_take(tmp_path):
    tickets.save_ticket(tmp_path / "t", small_ticket())
    tickets.save_model(tmp_path / "m", small_ticket().weights, {})
    save_tensors(tmp_path / "c", {"x": torch.ones(1)}, {})
    assert isinstance(tickets.load(tmp_path / "t"), Ticket)
    assert isinstance(tickets.load(tmp_path / "m"), Model)
    with pytest.raises(TicketError, match=r"not beside it: take one from a run's models folder$"):
        tickets.load_model_file(tmp_path / "t")
    with pytest.raises(TicketError, match="take a file from a run's tickets folder"):
        tickets.load_ticket(tmp_path / "m")
    with pytest.raises(TicketError, match="of a run under way; give a ticket or model file"):
        tickets.load(tmp_path / "c")


# --- writing is whole or not at all ---


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "t.safetensors"
    path.write_bytes(b"old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        tickets.save_ticket(path, small_ticket())
    assert [p.name for p in tmp_path.iterdir()] == ["t.safetensors"]
    assert path.read_bytes() == b"old"


def test_what_could_not_be_read_back_is_not_written(tmp_path):
    ticket = small_ticket()
    for manifest, text in [
        ({"sparsity": 0.9}, "sparsity is 0.9, but the masks keep 7 of 12 weights"),
        ({"round": "three"}, "the manifest's round is 'three', not int"),
        ({"scores": {"fid": float("nan")}}, "cannot be written as JSON"),
        ({"granularity": "block"}, "granularity is block, not weight or channel"),
    ]:
        ticket.manifest = manifest
        with pytest.raises(TicketError, match=text):
            tickets.save_ticket(tmp_path / "t", ticket)
    with pytest.raises(TicketError, match=r"tensor weight\.plain: the name is not mask"):
        tickets.save_ticket(tmp_path / "t", Ticket({}, {"plain": torch.ones(2)}))
    assert list(tmp_path.iterdir()) == []


def test_a_mask_that_does_not_fit_its_weight_is_refused():
    weight = {"n.w": torch.ones(2, 3)}
    with pytest.raises(TicketError, match=r"'n.w' is torch.float32 \[2, 3\]"):
        Ticket({"n.w": torch.ones(2, 3)}, weight)
    with pytest.raises(TicketError, match=r"'n.w' is torch.bool \[3, 2\]; .* \[2, 3\]"):
        Ticket({"n.w": torch.ones(3, 2, dtype=torch.bool)}, weight)
    with pytest.raises(TicketError, match=r"mask 'n.x' has no weight"):
        Ticket({"n.x": torch.ones(2, 3, dtype=torch.bool)}, weight)


# --- start and enforce ---


def test_start_loads_through_wrappers_and_spectral_norm(tmp_path):
    nets = networks()
    tickets.save_ticket(tmp_path / "t", net_ticket(nets))
    ticket = tickets.load_ticket(tmp_path / "t")
    torch.manual_seed(5)
    others = {name: nn.DataParallel(module) for name, module in networks().items()}
    for module in others.values():
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    ticket.start(others)
    state = dense(others)
    assert set(state) == set(ticket.weights)
    for key, value in state.items():
        assert bits(value) == bits(ticket.weights[key]), key
    raw = others["encoder"].module[2].parametrizations.weight.original
    assert bool((raw == ticket.weights["encoder.2.weight"]).all())


def test_start_names_what_does_not_fit_and_loads_nothing(tmp_path):
    nets = networks()
    ticket = net_ticket(nets)
    for parameter in nets["encoder"].parameters():
        nn.init.constant_(parameter, 9.0)
    before = {k: v.clone() for k, v in dense(nets).items()}
    wide = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3))
    short = nn.Sequential(nn.Linear(4, 5))
    long = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3), nn.Linear(3, 3))
    for given, text in [
        ({"encoder": nets["encoder"]}, r"network 'decoder' is missing; .*encoder"),
        (nets | {"critic": short}, r"network 'critic' is not in the file, which has decoder, enc"),
        (nets | {"decoder": wide}, r"'decoder.0.weight' is \[5, 4\] in the file, but \[6, 4\]"),
        (nets | {"decoder": short}, r"'decoder.1.bias' of the file is not in the network"),
        (nets | {"decoder": long}, r"'decoder.2.weight' is missing in the file"),
    ]:
        with pytest.raises(TicketError, match=text):
            ticket.start(given)
    assert all(torch.equal(v, before[k]) for k, v in dense(nets).items())
    ticket.start(nets | {"noise": nn.Identity()})  # nothing to load for it


def train_step(nets: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss = sum((p * p + p).sum() for m in nets.values() for p in m.parameters())
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("form", ["one", "list", "dict"])
def test_enforce_holds_masks_and_moments_and_removes_its_hooks(form):
    nets = networks()
    first = torch.optim.Adam(nets["encoder"].parameters(), lr=0.1)
    second = torch.optim.SGD(nets["decoder"].parameters(), lr=0.1, momentum=0.9)
    joint = torch.optim.Adam([p for m in nets.values() for p in m.parameters()], lr=0.1)
    several = {"one": [joint], "list": [first, second], "dict": [first, second]}[form]
    given = {"one": joint, "list": several, "dict": {"e": first, "d": second}}[form]
    for optimizer in several:
        train_step(nets, optimizer)  # carried-over moments revive pruned weights
    ticket = net_ticket(nets)
    pruned = {k: ~m for k, m in ticket.masks.items()}
    with ticket.enforce(nets, given) as hold:
        assert all((dense(nets)[k][m] == 0).all() for k, m in pruned.items())
        leaf = nets["decoder"][0].weight
        moments = [v for o in several for v in o.state[leaf].values() if v.shape == leaf.shape]
        assert moments
        assert all((v[pruned["decoder.0.weight"]] == 0).all() for v in moments)
        for _ in range(3):
            for optimizer in several:
                train_step(nets, optimizer)
                assert hold.leaks() == []
    assert all(not optimizer._optimizer_step_post_hooks for optimizer in several)
    for optimizer in several:
        train_step(nets, optimizer)
    assert len(hold.leaks()) == 4


def test_what_is_no_dict_of_networks_or_no_optimizer_is_an_error_in_words():
    nets = networks()
    ticket = net_ticket(nets)
    optimizer = torch.optim.SGD(nets["decoder"].parameters(), lr=0.1)
    for given, words in (
        (nets["decoder"], "networks is a Sequential; give a dict of name to torch.nn.Module"),
        (None, "networks is a NoneType"),
        ({}, "networks is an empty dict"),
        ({"decoder": 3}, "network 'decoder' is a int"),
    ):
        with pytest.raises(ConfigError, match=words):
            ticket.start(given)
        with pytest.raises(ConfigError, match=words), ticket.enforce(given, optimizer):
            pass
    for given, words in ((None, "a NoneType as optimizer"), (3, "a int as optimizer")):
        with pytest.raises(ConfigError, match=words), ticket.enforce(nets, given):
            pass


def test_enforce_removes_hooks_after_an_exception_and_refuses_what_is_no_optimizer():
    nets = networks()
    optimizer = torch.optim.SGD(nets["decoder"].parameters(), lr=0.1)
    ticket = net_ticket(nets)
    with pytest.raises(KeyError), ticket.enforce(nets, optimizer):
        raise KeyError
    assert not optimizer._optimizer_step_post_hooks
    with (
        pytest.raises(ConfigError, match="got a Sequential as optimizer"),
        ticket.enforce(nets, [nets["decoder"]]),
    ):
        pass


def test_dtype_tables_agree():
    assert set(tensorfile._TEXT_TO_DTYPE) == set(container.ITEM_BYTES)
    for text, dtype in tensorfile._TEXT_TO_DTYPE.items():
        assert torch.empty(0, dtype=dtype).element_size() == container.ITEM_BYTES[text]

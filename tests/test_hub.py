"""Tickets between people: published, fetched and checked, against a hub on this machine alone."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import socket
import sys
from pathlib import Path

import pytest
import torch

constants = pytest.importorskip("huggingface_hub.constants")
yaml = pytest.importorskip("yaml")

import tombola  # noqa: E402
from hub_standin import TOKEN, Hub  # noqa: E402
from tombola.cli import command_line as cli  # noqa: E402
from tombola.errors import ConfigError, TicketError  # noqa: E402
from tombola.store import container  # noqa: E402
from tombola.store.tensors import save_tensors  # noqa: E402
from tombola.tasks.adversarial import DCGAN  # noqa: E402
from tombola.tickets import card as publishing  # noqa: E402
from tombola.tickets import hub  # noqa: E402
from tombola.tickets import ticket as tickets  # noqa: E402
from tombola.tickets.ticket import Ticket  # noqa: E402
from tombola.training.trainer import named_state  # noqa: E402

OPTIONS = {"width": 2, "latent": 4}
MANIFEST = {
    "task": "dcgan", "data": "digits", "data_hash": "ab" * 32, "method": "imp", "seed": 2,
    "round": 4, "rewind_step": 10, "sparsity_all": 0.25, "parents": [], "cost": {},
    "config": {
        "task": {"name": "dcgan", **OPTIONS}, "search": {"seeds": 5},
        "prune": {"networks": ["all"], "compress": ["0.5"]}, "train": {"precision": ["fp32"]},
    },
    "scores": {"fcd-digits-c55f3a48": 12.5, "accuracy": 0.75, "fid": None},
    "created_with": {"torch": "2.13.0", "tombola": "0.1.0", "machine": "Linux x86_64"},
}  # fmt: skip


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A hub of its own, a cache of its own, and a user who is logged in."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with Hub() as made:
        monkeypatch.setenv("HF_ENDPOINT", made.url)
        yield made


def networks():
    return DCGAN(**OPTIONS).networks((1, 32, 32))


@pytest.fixture
def ticket(tmp_path):
    """A ticket of a small DCGAN."""
    path = tmp_path / "seed2-round04.safetensors"
    weights = named_state(networks())
    masks = {k: v.abs() > 0.01 for k, v in weights.items() if v.ndim == 4}
    tickets.save_ticket(path, Ticket(masks, weights, MANIFEST))
    return path


@pytest.fixture
def model(tmp_path):
    """A model of the same."""
    path = tmp_path / "ticket-seed2-round04.safetensors"
    manifest = {**MANIFEST, "arm": "ticket", "shape": [1, 32, 32], "granularity": "weight"}
    tickets.save_model(path, named_state(networks()), manifest)
    return path


def run(capsys, *words):
    """(exit code, what was printed, the last line of errors)."""
    code = cli.main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, (err.strip().splitlines() or [""])[-1]


# --- there and back ---


def test_a_ticket_comes_back_as_it_was(place, ticket, capsys):
    code, out, _ = run(capsys, "publish", ticket, "hub:someone/tiny-ticket")
    assert code == 0
    assert out == f"hub:someone/tiny-ticket/ticket.safetensors: {place.url}/someone/tiny-ticket\n"
    ((_, files),) = place.repositories["someone/tiny-ticket"]["commits"]
    assert set(files) == {"README.md", "ticket.safetensors"}
    assert files["ticket.safetensors"] == ticket.read_bytes()
    found, own = tombola.load("hub:someone/tiny-ticket"), tickets.load_ticket(ticket)
    assert found.manifest == own.manifest
    assert all(torch.equal(found.weights[k], own.weights[k]) for k in own.weights)
    assert all(torch.equal(found.masks[k], own.masks[k]) for k in own.masks)


def test_every_command_that_takes_a_file_takes_one_from_the_hub(
    place, ticket, model, tmp_path, capsys
):
    place.put("a/both", {"ticket.safetensors": ticket.read_bytes(), "model.safetensors": b"x"})
    place.put("a/model", {"model.safetensors": model.read_bytes()})
    code, out, _ = run(capsys, "inspect", "hub:a/both", "--json")
    assert (code, json.loads(out)["seed"]) == (0, 2)
    code, out, _ = run(capsys, "inspect", "--diff", "hub:a/both", ticket, "--json")
    assert (code, json.loads(out)["total"]["jaccard"]) == (0, 1.0)
    code, out, _ = run(capsys, "inspect", ticket, "--diff", "hub:a/both/ticket.safetensors")
    assert code == 0
    assert run(capsys, "verify", "hub:a/both")[0] == 0
    code, _, error = run(capsys, "verify", "hub:a/both/model.safetensors")
    assert (code, "truncated: 1 bytes" in error) == (2, True)
    code, out, _ = run(capsys, "sample", "hub:a/model", "--n", "2", "--out", tmp_path / "made")
    assert (code, (tmp_path / "made" / "grid.png").is_file()) == (0, True)
    code, _, error = run(capsys, "train", "dcgan", "--ticket", "hub:a/both", "--dry-run")
    assert (code, "was found on other images" in error) == (2, True)  # it was read
    code, _, error = run(capsys, "export", "hub:a/both", "--to", "onnx")
    assert (code, "its trained model is not beside it" in error) == (2, True)
    made = tombola.load_model("hub:a/model")
    assert list(made) == ["generator", "discriminator"]


def test_a_revision_is_what_it_was(place, ticket, capsys):
    assert run(capsys, "publish", ticket, "hub:a/b")[0] == 0
    old = tickets.load_ticket(ticket)
    tickets.save_ticket(ticket, Ticket(old.masks, old.weights, {**MANIFEST, "seed": 7}))
    assert run(capsys, "publish", ticket, "hub:a/b")[0] == 0
    first, second = (commit for commit, _ in place.repositories["a/b"]["commits"])
    assert tombola.load("hub:a/b").manifest["seed"] == 7
    assert tombola.load(f"hub:a/b@{first}").manifest["seed"] == 2
    assert tombola.load(f"hub:a/b@{second}/ticket.safetensors").manifest["seed"] == 7


def test_what_is_fetched_once_needs_no_network(place, ticket, monkeypatch, capsys):
    place.put("a/b", {"ticket.safetensors": ticket.read_bytes()})
    place.put("a/m", {"model.safetensors": ticket.read_bytes()})
    assert tombola.load("hub:a/b").manifest["seed"] == 2
    assert tombola.load("hub:a/m").manifest["seed"] == 2
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    with socket.socket() as listener:  # a port that no one listens on
        listener.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert tombola.load("hub:a/b").manifest["seed"] == 2
        assert tombola.load("hub:a/m").manifest["seed"] == 2
        with pytest.raises(TicketError, match="cannot be reached and the file is not in its "):
            tombola.load("hub:a/c")
        code, _, error = run(capsys, "publish", ticket, "hub:a/c")
        assert (code, "check the network and try again" in error) == (2, True)
    assert waits == []  # nobody was made to wait for tries that cannot help


# --- what comes from the hub is a stranger's ---


def test_files_from_the_hub_are_checked_like_any(place, ticket, tmp_path):
    damaged = bytearray(ticket.read_bytes())
    damaged[-1] ^= 1
    place.put("a/damaged", {"ticket.safetensors": bytes(damaged)})
    with pytest.raises(TicketError, match="get the file again from its source"):
        tombola.load("hub:a/damaged")
    torch.save({"w": torch.ones(3)}, tmp_path / "pickled")
    place.put("a/pickled", {"ticket.safetensors": (tmp_path / "pickled").read_bytes()})
    with pytest.raises(TicketError, match="may run code, so it was never opened"):
        tombola.load("hub:a/pickled")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hub:me/x", ("me/x", None, None)),
        ("hub:me/x.y-z_1@v1.0", ("me/x.y-z_1", "v1.0", None)),
        ("hub:me/x/a/b.safetensors", ("me/x", None, "a/b.safetensors")),
        ("hub:me/x@main/b.safetensors", ("me/x", "main", "b.safetensors")),
    ],
)
def test_places_are_read_and_written_alike(text, parts):
    place = hub.parse(text)
    assert (place.repository, place.revision, place.file) == parts
    assert place.text == text


@pytest.mark.parametrize(
    "text",
    ["hub:", "hub:me", "hub:me/", "hub:/x", "hub:me/x@", "hub:me/x/../y.safetensors",
     "hub:me/../x", "hub:me/x/b.pt", "hub:me/x/README.md", "hub:me/x y", "hub:me/x@a/b",
     "hub:me/x/.hidden.safetensors", "hub:http://x/y", "hub:me/x\n", "hub:me/" + "x" * 200],
)  # fmt: skip
def test_what_is_no_place_is_refused_before_anything_is_asked(text, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, error = run(capsys, "inspect", text)
    assert code == 2
    assert "is no place on the hub; write hub:user/name" in error or "only .safetensors" in error


# --- errors ---


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("hub:a/absent", "no such repository for you; check the name, and log in"),
        ("hub:a/gated", "its owner must let you in first"),
        ("hub:a/b@v9", "it has no revision v9; leave it out"),
        ("hub:a/b/x.safetensors", "has no x.safetensors; say which file to take: hub:a/b/FILE"),
        ("hub:a/b", "has no ticket.safetensors and no model.safetensors; say which"),
        ("hub:a/b--c", "is no name for a repository"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(place, spec, words, capsys):
    place.put("a/b", {"notes.txt": b"x"})
    code, _, error = run(capsys, "verify", spec)
    assert code == 2
    assert error.startswith("error: ")
    assert words in error
    with pytest.raises((TicketError, ConfigError), match=re.escape(words.partition(";")[0])):
        tombola.load(spec)


def test_without_the_extra(monkeypatch, ticket, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for words in (("inspect", "hub:a/b"), ("publish", ticket, "hub:a/b")):
        code, _, error = run(capsys, *words)
        assert code == 2
        assert 'needs the package huggingface_hub; pip install "tombola[hub]"' in error
    # To look at what would be published needs neither the extra nor a network.
    assert run(capsys, "publish", ticket, "hub:a/b", "--dry-run")[0] == 0


def test_without_a_token_and_with_a_wrong_one(place, ticket, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    code, _, error = run(capsys, "publish", ticket, "hub:a/b")
    assert code == 2
    assert "hub:a/b" in error
    monkeypatch.delenv("HF_TOKEN")
    place.requests.clear()
    code, _, error = run(capsys, "publish", ticket, "hub:a/b")
    assert (code, "run: hf auth login" in error) == (2, True)
    assert place.requests == []
    assert "a/b" not in place.repositories


@pytest.mark.parametrize("status", [500, 403])
def test_a_hub_that_is_down_or_refuses(place, ticket, status, monkeypatch, capsys):
    handler = place._server.RequestHandlerClass
    monkeypatch.setattr(handler, "_answer", lambda self: self._json(status, {"error": "no"}))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    for words in (("inspect", "hub:a/b"), ("publish", ticket, "hub:a/b")):
        code, _, error = run(capsys, *words)
        assert code == 2
        assert error.startswith("error: hub:a/b")


def test_an_unsound_file_is_never_sent(place, ticket, tmp_path, capsys):
    damaged = bytearray(ticket.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged").write_bytes(damaged)
    save_tensors(tmp_path / "checkpoint", {"x": torch.ones(2)}, {})
    for name in ("damaged", "checkpoint", "absent"):
        code, _, error = run(capsys, "publish", tmp_path / name, "hub:a/b")
        assert (code, name in error) == (2, True)
    for words in (("hub:a/b@main",), ("me/x",), ("hub:a/b", "--license", "m|t")):
        assert run(capsys, "publish", ticket, *words)[0] == 2
    assert place.requests == []


def test_what_others_wrote_is_not_overwritten(place, ticket, capsys):
    place.put("a/paper", {"README.md": b"# Years of work\n", "pytorch_model.bin": b"x"})
    code, _, error = run(capsys, "publish", ticket, "hub:a/paper")
    assert (code, "a model card that Tombola did not write" in error) == (2, True)
    assert len(place.repositories["a/paper"]["commits"]) == 1


def test_private_is_private_or_refused(place, ticket, capsys):
    assert run(capsys, "publish", ticket, "hub:a/own", "--private")[0] == 0
    assert place.repositories["a/own"]["private"]
    assert tombola.load("hub:a/own").manifest["seed"] == 2
    place.put("a/open", {})
    code, _, error = run(capsys, "publish", ticket, "hub:a/open", "--private")
    assert (code, "is there already and public" in error) == (2, True)
    assert place.repositories["a/open"]["commits"][-1][1] == {}


# --- the model card ---


def card_of(path, target="hub:me/x", **options):
    return publishing.publish(path, target, send=False, **options).card


def front(card):
    _, matter, text = card.split("---\n", 2)
    return yaml.safe_load(matter), text


def test_the_card_says_what_it_is_and_how_to_load_it(ticket, model):
    matter, text = front(card_of(ticket, license="mit"))
    assert matter == {
        "library_name": "tombola", "license": "mit", "tags": ["lottery-ticket", "pruning", "dcgan"],
    }  # fmt: skip
    kept, total = (sum(x) for x in zip(*masks_of(ticket), strict=True))
    for line in (
        "# A lottery ticket of `dcgan` on `digits`",
        'import tombola\nticket = tombola.load("hub:me/x")\nticket.start({"generator": ..., '
        '"discriminator": ...})',
        "| seed | `2` |",
        "| rewind step | `10` |",
        "| training seeds of its search | `5` |",
        f"| sparsity | {1 - kept / total:.2%} of the prunable weights |",
        f"| kept | {kept:,} of {total:,} masked weights |",
        "| `accuracy` | 0.75 | - |",
        "| `fcd-digits-c55f3a48` | 12.5 | `digits-c55f3a48` |",
        "| `fid` | - | `Inception` |",
        "| `torch` | `2.13.0` |",
        "`tombola train dcgan --ticket hub:me/x`",
        "The verdict of its search is not known here.",
        "The command is not known here; the file's manifest has the whole config.",
        "mit (as the publisher states).",
    ):
        assert line in text, line
    matter, text = front(card_of(model))
    assert "license" not in matter
    assert "The publisher states none: ask." in text
    assert 'networks = tombola.load_model("hub:me/x/model.safetensors")' in text
    assert 'tombola.load("hub:me/x/other.safetensors")' in card_of(
        ticket, "hub:me/x/other.safetensors"
    )


def masks_of(path):
    return [(int(m.sum()), m.numel()) for m in tickets.load_ticket(path).masks.values()]


def test_a_card_beside_its_search_has_command_and_verdict(ticket, tmp_path):
    out = tmp_path / "out"
    (out / "tickets" / "imp-all-r10").mkdir(parents=True)
    levels = [{"round": 3, "state": "wins"}, {"round": 4, "state": "undecided"}]
    verdict = {"sentence": "It wins at 80%.", "seeds": 5, "levels": levels}
    summary = {"primary": "fcd-x", "arms": {"imp/all/r10/fp32": {"fcd-x": verdict}, "b": {}}}
    command = (
        "tombola find dcgan --data digits --out my/secret --workers=2 --data-dir my/data "
        "--seeds 5 --set 'task.width=2'"
    )
    config = {"command": command, "resolved": {"task": "dcgan", "data_sha256": "ab" * 32}}
    (out / "config.json").write_text(json.dumps(config))
    (out / "summary.json").write_text(json.dumps(summary))
    for where in (out / "tickets" / "t", out / "tickets" / "imp-all-r10" / "t"):
        shutil.copy(ticket, where)
        text = card_of(where)
        assert (
            "Its search, over `5` training seeds: `It wins at 80%`. At this sparsity: `undecided`."
        ) in text
        assert "```bash\ntombola find dcgan --data digits --seeds 5 --set task.width=2\n```" in text
        assert "secret" not in text
    # A search of other images says nothing of this file.
    config["resolved"]["data_sha256"] = "cd" * 32
    (out / "config.json").write_text(json.dumps(config))
    assert "wins at 80%" not in card_of(out / "tickets" / "t")
    (out / "config.json").write_text("[[]")
    assert "wins at 80%" not in card_of(out / "tickets" / "t")


EVIL = (
    "<script>alert(1)</script>", "[click](http://evil)", "a`b`c", "x | y |\n| z", "```\n# Mine",
    "\u202egnp", "---\nlicense: mit", "![](http://evil/pixel.png)", "&lt;img&gt;", "**bold**",
)  # fmt: skip


@pytest.mark.parametrize("evil", EVIL)
def test_texts_of_a_file_stay_texts(evil, tmp_path):
    """Outside of code no text of the file's own stands anywhere in the card."""
    manifest = {
        **MANIFEST, "task": evil, "data": evil, "data_hash": evil, "method": evil,
        "networks": [evil, "generator"], "scores": {evil: 1.0, f"fcd-{evil}": 2.0, "is": evil},
        "created_with": {evil: evil}, "config": {"task": evil, evil: {evil: evil}},
    }  # fmt: skip
    weights = {"g.w": torch.ones(4)}
    tickets.save_ticket(tmp_path / "t", Ticket({}, weights, manifest))
    card = card_of(tmp_path / "t")
    matter, text = front(card)
    assert matter == {"library_name": "tombola", "tags": ["lottery-ticket", "pruning"]}
    assert all(char.isprintable() for char in card.replace("\n", ""))
    prose = re.sub(r"```\w*\n.*?\n```", "", text, flags=re.S)
    assert text.count("```") == 2
    bare = re.sub(r"`[^`\n]*`", "CODE", prose)
    for odd in ("<", "[", "](", "`", "**", "&", "alert", "evil", "Mine", "bold", "gnp"):
        assert odd not in bare, odd
    # A bar ends a cell even within code.
    tables = [line for line in prose.splitlines() if line.startswith("|")]
    widths = {line.count("|") for line in tables}
    assert widths == {3, 4}
    assert bare.count("\n# ") == 1
    python = text.partition("```python\n")[2].partition("```")[0]
    assert 'ticket.start({"generator": ...})' in python


def test_paths_of_this_machine_are_named_before_they_are_seen(place, tmp_path, capsys):
    config = {
        "data": {"name": "folder:my/holidays"}, "task": {"name": "my/gan.py:Mine", "width": 3},
    }  # fmt: skip
    manifest = {**MANIFEST, "config": config}
    tickets.save_ticket(tmp_path / "t", Ticket({}, {"g.w": torch.ones(4)}, manifest))
    code = cli.main(["publish", str(tmp_path / "t"), "hub:me/x", "--dry-run"])
    out, err = capsys.readouterr()
    assert code == 0
    assert "note: the file names data.name = folder:my/holidays, which all who have it see" in err
    assert "note: the file names task.name = my/gan.py:Mine" in err
    assert err.count("note: ") == 2
    assert out.startswith("---\nlibrary_name: tombola\n")
    assert out.endswith(
        "nothing was sent; hub:me/x/ticket.safetensors would get this card and the file\n"
    )
    assert place.requests == []


def test_manifests_of_any_kind_make_a_card(tmp_path):
    """Values of the right type and any content, as a stranger's file may have them."""
    values = {
        "created_with": ["x", {}, {"a": 1}], "scores": [{}, {"a": None}, {"a": [1]}],
        "config": [{}, {"search": 3}, {"search": {"seeds": "x"}}, {"prune": 1}],
        "networks": [{}, {"a": 1}, []], "seed": [None, 10**30], "parents": [{}, [[]]],
    }  # fmt: skip
    for key, value in itertools.chain.from_iterable(
        zip(itertools.repeat(key), several, strict=False) for key, several in values.items()
    ):
        manifest = {**MANIFEST, key: value}
        tickets.save_ticket(tmp_path / "t", Ticket({}, {"g.w": torch.ones(4)}, manifest))
        container.verify_file(tmp_path / "t")
        assert "## Licence" in card_of(Path(tmp_path / "t"))

"""Tickets in another task: what matches, what each of figure 8's curves starts from, verdicts."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import in_process
from tombola.cli import command_line as cli
from tombola.config.sections import build
from tombola.engine import transferring
from tombola.engine.context import Context
from tombola.engine.starts import trainer_of
from tombola.engine.transfer_config import configs_of
from tombola.engine.transfers import matrix_request
from tombola.errors import ConfigError
from tombola.metrics.transfers import transfer_verdicts
from tombola.plan import plans as recipes
from tombola.plan.setting import resolve
from tombola.plan.trial import task_options
from tombola.report.page import write_report
from tombola.sparsity.names import plain_state
from tombola.store.graph import Node
from tombola.store.runs import Store
from tombola.store.tables import Row, read_costs
from tombola.store.transfer_tables import RouteKey, as_ticket, routes_in, rows_of
from tombola.tasks.adversarial import DCGAN, WGANGP
from tombola.tasks.autoencoding import VAE, LinearAE
from tombola.tickets.graft import Sketch, carried, grafted, lines, match
from tombola.tickets.ticket import Ticket, load_ticket
from tombola.training.checkpoint import load_state

HERE = Path(__file__).parent
TWINS = f"{HERE / 'twin_tasks.py'}:TwinVAE", f"{HERE / 'twin_tasks.py'}:TwinGAN"
SMALL = [
    "--data", "digits", "--seeds", "1", "--threads", "1", "--workers", "1", "--device", "cpu",
    "--set", "judge.samples=40", "--set", "judge.validation_samples=0",
    "--set", "judge.sampling_seeds=1",
]  # fmt: skip
LEVELS = ["--rounds", "2", "--rate", "0.5", "--rewind", "3it"]
MATRIX = ["transfer", "--matrix", ",".join(TWINS), *SMALL, *LEVELS]
POOL = 4 * 8 * 16 + 8 * 16


def small(kind, name, colours, **options):
    """The sketch of a task at a small size, for images of 1 or 3 colours."""
    task = kind(**options)
    with torch.device("meta"):
        made = task.networks(task.image_shape(colours))
    shapes = {n: {k: tuple(t.shape) for k, t in plain_state(m).items()} for n, m in made.items()}
    return Sketch(task=name, roles={n: task.role(n) for n in made}, shapes=shapes)


def vae(colours=1, **options):
    return small(VAE, "vae", colours, decoder="generator", width=2, latent=4, **options)


def dcgan(colours=1, width=2):
    return small(DCGAN, "dcgan", colours, width=width, latent=4)


def state_of(sketch, network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{network}.{name}": torch.randn(shape, generator=generator)
        for name, shape in sketch.shapes[network].items()
    }


# --- the preset ---


def test_shared_networks_are_of_one_class_and_one_shape():
    made = {}
    for kind in (VAE, DCGAN):
        options = {k: v for k, v in kind.presets["shared"].items() if k != "steps"}
        with torch.device("meta"):
            made |= kind(**options).networks((1, 32, 32))
    decoder, generator = made["decoder"], made["generator"]
    assert type(decoder) is type(generator)
    shapes = {k: v.shape for k, v in plain_state(decoder).items()}
    assert shapes == {k: v.shape for k, v in plain_state(generator).items()}
    assert sum(p.numel() for p in decoder.parameters()) == 303729


def test_an_option_that_came_later_is_not_in_the_names_of_earlier_runs():
    expected = "batch_size beta betas channels cosine latent learning_rate size weight_decay width"
    assert " ".join(task_options(VAE())) == expected
    assert task_options(VAE(decoder="generator"))["decoder"] == "generator"


# --- what matches ---


def test_decoder_and_generator_match_whole():
    found = match(vae(), dcgan())
    assert (found.source, found.target) == ("decoder", "generator")
    assert lines(found, "vae", "dcgan") == [
        "transfer vae.decoder -> dcgan.generator: 9 matched, 0 resized, 0 skipped",
        "  generator.main.0  <- decoder.main.0   matched  4x16x4x4",
        "  generator.main.1  <- decoder.main.1   matched",
        "  generator.main.3  <- decoder.main.3   matched  16x8x4x4",
        "  generator.main.4  <- decoder.main.4   matched",
        "  generator.main.6  <- decoder.main.6   matched  8x4x4x4",
        "  generator.main.7  <- decoder.main.7   matched",
        "  generator.main.9  <- decoder.main.9   matched  4x2x4x4",
        "  generator.main.10 <- decoder.main.10  matched",
        "  generator.main.12 <- decoder.main.12  matched  1x2x3x3",
    ]
    names = {f"generator.{name}" for name in dcgan().shapes["generator"]}
    assert found.tensors.keys() == names
    assert found.tensors["generator.main.1.running_var"] == ("decoder.main.1.running_var", "copy")


def test_encoder_and_discriminator_match_by_shape_and_order():
    found = match(vae(), dcgan(), "encoder")
    told = [(each.target, each.source, each.state) for each in found.layers]
    assert told == [
        ("discriminator.main.0", "encoder.main.0", "matched"),
        ("", "encoder.main.1", "skipped"),
        ("discriminator.main.2", "encoder.main.3", "matched"),
        ("discriminator.main.3", "encoder.main.4", "matched"),
        ("discriminator.main.5", "encoder.main.6", "matched"),
        ("discriminator.main.6", "encoder.main.7", "matched"),
        ("discriminator.main.8", "encoder.main.9", "matched"),
        ("discriminator.main.9", "encoder.main.10", "matched"),
        ("discriminator.main.11", "encoder.main.12", "skipped"),
    ]
    notes = [each.note for each in found.layers]
    assert notes[0] == "2x1x4x4; bias as drawn: the source has none"
    assert notes[1] == "no such layer in the target"
    assert notes[-1] == "8x16x2x2 in the source, 1x16x2x2 in the target"
    assert "discriminator.main.0.bias" not in found.tensors


def test_layers_that_are_missing_in_between_do_not_shift_the_others():
    def sketch(name, *widths):
        shapes = {f"{i}.weight": (b, a) for i, (a, b) in enumerate(itertools.pairwise(widths))}
        return Sketch(task=name, roles={"decoder": "decoder"}, shapes={"decoder": shapes})

    found = match(sketch("a", 3, 5, 7, 7, 9), sketch("b", 3, 5, 7, 7, 7, 9))
    assert dict(found.tensors) == {
        "decoder.0.weight": ("decoder.0.weight", "copy"),
        "decoder.1.weight": ("decoder.1.weight", "copy"),
        "decoder.2.weight": ("decoder.2.weight", "copy"),
        "decoder.4.weight": ("decoder.3.weight", "copy"),
    }
    assert [each.state for each in found.layers].count("skipped") == 1


@pytest.mark.parametrize(
    ("here", "there", "network", "changed"),
    [
        (1, 3, None, {"generator.main.12": "repeat"}),
        (3, 1, None, {"generator.main.12": "mean"}),
        (1, 3, "discriminator", {"discriminator.main.0": "share"}),
        (3, 1, "discriminator", {"discriminator.main.0": "sum"}),
    ],
)
def test_grey_and_colour_differ_in_one_layer_which_is_resized(here, there, network, changed):
    found = match(dcgan(here), dcgan(there), network)
    resized = {each.target for each in found.layers if each.state == "resized"}
    assert resized == changed.keys()
    ((layer, how),) = changed.items()
    assert {n for n, (_, way) in found.tensors.items() if way == how} >= {f"{layer}.weight"}
    assert all(way in ("copy", how) for _, way in found.tensors.values())
    assert not any(each.state == "skipped" for each in found.layers)


def test_a_resized_network_does_what_the_datas_own_adaptation_does():
    grey, colour = dcgan(1), dcgan(3)
    images = torch.rand(2, 3, 8, 8)

    def first(state):
        return nn.functional.conv2d(images_of(state), state["discriminator.main.0.weight"])

    def images_of(state):
        channels = state["discriminator.main.0.weight"].shape[1]
        return images if channels == 3 else images.mean(1, keepdim=True)

    for here, there in ((grey, colour), (colour, grey)):
        mine, start = state_of(here, "discriminator"), state_of(there, "discriminator", 1)
        moved = grafted(mine, start, match(here, there, "discriminator").tensors)
        if here is grey:
            torch.testing.assert_close(first(moved), first(mine))
        else:  # grey images, repeated over the colours, are read alike
            again = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
            seen = nn.functional.conv2d(again, mine["discriminator.main.0.weight"])
            torch.testing.assert_close(first(moved), seen)
        assert torch.equal(
            moved["discriminator.main.2.weight"], mine["discriminator.main.2.weight"]
        )


def test_masks_go_over_with_their_layers_and_a_colour_that_is_kept_keeps_the_weight():
    here, there = dcgan(3), dcgan(1)
    mine, start = state_of(here, "generator"), state_of(there, "generator", 1)
    mask = torch.zeros(3, 2, 3, 3, dtype=torch.bool)
    mask[2, 0, 1, 1] = True
    ticket = Ticket({"generator.main.12.weight": mask}, mine)
    moved = carried(ticket, start, match(here, there).tensors)
    kept = moved.masks["generator.main.12.weight"]
    assert kept.shape == (1, 2, 3, 3)
    assert kept.nonzero().tolist() == [[0, 0, 1, 1]]
    weight = moved.weights["generator.main.12.weight"]
    torch.testing.assert_close(weight[0, 0, 1, 1], mine["generator.main.12.weight"][2, 0, 1, 1] / 3)
    assert int(weight.count_nonzero()) == 1
    back = carried(Ticket(moved.masks, moved.weights), mine, match(there, here).tensors)
    assert back.masks["generator.main.12.weight"].sum() == 3


@pytest.mark.parametrize(
    ("source", "target", "network", "words"),
    [
        (vae(), dcgan(width=3), None, "no layer of vae's decoder fits dcgan's generator 4x16x4x4"),
        (vae(), small(LinearAE, "linear-ae", 1), None, "no layer fits linear-ae's decoder size"),
        (vae(), dcgan(), "generator", "vae no network 'generator' it has: encoder, decoder"),
        (
            Sketch(task="odd", roles={"a": "left"}, shapes={"a": {"0.weight": (2, 2)}}),
            dcgan(),
            None,
            "nothing of odd (a) counterpart in dcgan (generator, discriminator)",
        ),
    ],
)
def test_nothing_that_matches_is_an_error_that_says_what_to_do(source, target, network, words):
    with pytest.raises(ConfigError) as error:
        match(source, target, network)
    for word in words.split():
        assert word in str(error.value)


def test_a_network_without_normalisation_keeps_its_own_biases():
    critic = small(WGANGP, "wgan-gp", 1, width=2, latent=4)
    found = match(dcgan(), critic, "discriminator")
    assert "discriminator.main.2.weight" in found.tensors
    assert "discriminator.main.2.bias" not in found.tensors
    assert "discriminator.main.0.bias" in found.tensors


# --- a whole matrix ---


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    """The folder of a small matrix, made in this process."""
    out = tmp_path_factory.mktemp("transfer") / "out"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, in_process.Restored():
        in_process.use(patch)
        assert cli.main([*MATRIX, "--out", str(out)]) == 0
    signal.signal(signal.SIGTERM, before)
    return out


@pytest.fixture
def here(monkeypatch):
    """Commands of a test run in this process."""
    in_process.use(monkeypatch)
    before = signal.getsignal(signal.SIGTERM)
    with in_process.Restored():
        yield
    signal.signal(signal.SIGTERM, before)


class Runs:
    """The runs of a store by label, and the trainings as they begin."""

    def __init__(self, out):
        self.store = Store(out / "store")
        self.records = {name: self.store.record(name) for name in self.store.finished()}

    def context(self):
        return Context(
            store=self.store, task=TWINS[0], data="digits", data_dir=None, skip_broken=False,
            device="cpu", tasks=dict(zip(("TwinVAE", "TwinGAN"), TWINS, strict=True)),
        )  # fmt: skip

    def parents(self, name):
        return self.records[name]["parents"]

    def judged(self, task, start, level, source=None):
        """The judged training of an arm: its name."""
        found = []
        for name, record in self.records.items():
            config = record["config"]
            if record["kind"] != "train" or config["task"]["name"] != task:
                continue
            if config["start"] != start or config.get("from_step", 0) != 0:
                continue
            ticket = record["parents"].get("ticket")
            if ticket is None or self.level_of(ticket) != level:
                continue
            if self.task_of(ticket) == (source or task):
                found.append(name)
        (name,) = found
        return name

    def mask_of(self, ticket):
        """The mask run behind a ticket, whichever task it was put into."""
        while self.records[ticket]["kind"] == "transfer":
            ticket = self.parents(ticket)["ticket"]
        return ticket

    def level_of(self, ticket):
        kept = self.records[self.mask_of(ticket)]["config"]["keep"]
        return {POOL // 2: 1, POOL // 4: 2}[kept]

    def task_of(self, ticket):
        return self.records[self.mask_of(ticket)]["config"]["task"]["name"]

    def state(self, task, step):
        """The dense run's state at a step, by ``network.name``."""
        for name, record in self.records.items():
            if record["kind"] == "rewind" and record["config"]["step"] == step:
                dense = self.records[self.parents(name)["dense"]]
                if dense["config"]["task"]["name"] == task:
                    tensors = load_state(self.store.path(name) / "state.safetensors")[0]
                    return {k.removeprefix("network."): v for k, v in tensors.items()}
        raise AssertionError(f"no rewind point {step} of {task}")

    def masks(self, ticket):
        return load_ticket(self.store.path(ticket) / "ticket.safetensors").masks

    def begun(self, name):
        """The trainer of a training at its first step."""
        record = self.records[name]
        node = Node(record["kind"], record["config"], record["parents"])
        return trainer_of(record["config"], self.context(), node)


PAIRS = [
    ("TwinVAE", "decoder", "TwinGAN", "generator"),
    ("TwinGAN", "generator", "TwinVAE", "decoder"),
]


@pytest.mark.parametrize(("source", "its", "target", "own"), PAIRS)
@pytest.mark.parametrize("level", [1, 2])
def test_each_curve_starts_as_figure_8_says(matrix, source, its, target, own, level):
    runs = Runs(matrix)
    with in_process.Restored():
        starts = {
            "own": (runs.judged(target, "ticket", level), target, own),
            "transferred": (runs.judged(target, "ticket", level, source), source, its),
        }
        for name, task, network in starts.values():
            trainer, record = runs.begun(name), runs.records[name]
            assert (trainer.step, record["config"]["steps"], record["from_step"]) == (0, 20, 0)
            assert not any(o.state for o in trainer.optimizers.values())
            rewound, drawn = runs.state(task, 3), runs.state(target, 0)
            masks = runs.masks(runs.mask_of(record["parents"]["ticket"]))
            found = {
                f"{n}.{k}": v
                for n, m in trainer.networks.items()
                for k, v in plain_state(m).items()
            }
            for key, value in found.items():
                there, _, tensor = key.partition(".")
                if there != own:
                    assert torch.equal(value, drawn[key]), key
                    continue
                assert not value.is_floating_point() or not torch.equal(value, drawn[key]), key
                from_there = rewound[f"{network}.{tensor}"]
                mask = masks.get(f"{network}.{tensor}")
                wanted = from_there if mask is None else torch.where(mask, from_there, 0.0)
                assert torch.equal(value, wanted), key
            assert trainer.hold is not None
            assert sorted(trainer.hold.names) == [f"{own}.1.weight", f"{own}.4.weight"]


@pytest.mark.parametrize(("source", "its", "target", "own"), PAIRS)
def test_the_controls_start_as_they_should(matrix, source, its, target, own):
    runs = Runs(matrix)
    with in_process.Restored():
        shuffled = runs.begun(name := runs.judged(target, "shuffle", 2, source))
        carried_masks = runs.masks(runs.parents(name)["ticket"])
        rewound, drawn = runs.state(source, 3), runs.state(target, 0)
        moved = 0
        for key, leaf in shuffled.networks[own].named_parameters():
            value, dense = leaf.detach(), rewound[f"{its}.{key}"]
            mask = carried_masks.get(f"{own}.{key}")
            if mask is None:
                assert torch.equal(value, dense)
                continue
            kept = value != 0
            assert int(kept.sum()) == int(mask.sum())
            assert torch.equal(value[kept], dense[kept])
            moved += int((kept != mask).sum())
        assert moved > 0
        for key, value in plain_state(shuffled.networks[other(own)]).items():
            assert torch.equal(value, drawn[f"{other(own)}.{key}"])

        again = runs.begun(name := runs.judged(target, "reinit", 2))
        assert runs.records[runs.parents(name)["ticket"]]["kind"] == "mask"
        first = again.networks[other(own)]
        assert not torch.equal(next(first.parameters()), drawn[f"{other(own)}.{first_of(first)}"])


def other(network):
    return {"decoder": "encoder", "generator": "discriminator"}[network]


def first_of(network):
    return next(iter(plain_state(network)))


def test_the_tables_hold_all_tasks_and_name_the_source(matrix):
    with (matrix / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"].startswith("fcd-")]
    arms = ["dense", "reinit", "reinit", "ticket", "ticket", "transferred", "transferred",
            "transferred-shuffle", "transferred-shuffle"]  # fmt: skip
    for source, its, target, own in PAIRS:
        mine = [row for row in rows if row["task"] == target]
        assert [row["arm"] for row in mine] == arms
        foreign = f"{own}<-{source}.{its}"
        assert {row["networks"] for row in mine if row["arm"].startswith("tr")} == {foreign}
        assert {row["networks"] for row in mine if not row["arm"].startswith("tr")} == {own}
        assert [row["sparsity"] for row in mine][1:] == ["0.5", "0.75"] * 4
        assert {row["rewind_steps"] for row in mine} == {"3"}
    costs = {(c.task, c.arm, c.round): c for c in read_costs(matrix / "costs.csv")}
    macs = json.loads((matrix / "config.json").read_text())["resolved"]["step_macs"]
    # The VAE's dense run of 20 steps and its ticket's of 17 came before the second level.
    moved = costs["TwinGAN", "transferred", 2]
    assert moved.search_flops == 2 * macs * (20 + 17)
    assert moved.nonzero_parameters == costs["TwinGAN", "ticket", 2].nonzero_parameters


def test_the_summary_and_the_page_tell_of_both_ways(matrix):
    told = json.loads((matrix / "summary.json").read_text())["transfer"]
    assert [(r["source"], r["target"], r["network"]) for r in told["routes"]] == [
        ("TwinVAE.decoder", "TwinGAN", "generator"),
        ("TwinGAN.generator", "TwinVAE", "decoder"),
    ]
    route = told["routes"][0]
    assert route["layers"] == {"matched": 3, "resized": 0, "skipped": 0}
    assert route["primary"].startswith("fcd-")
    found = route["metrics"][route["primary"]]
    assert (found["state"], found["seeds"]) == ("not enough runs", 1)
    assert found["beats"] == {"reinit": "not asked", "shuffle": "not asked"}
    page = (matrix / "report.html").read_text()
    for words in ("Transferred against own", "TwinVAE.decoder in TwinGAN.generator",
                  "generator.4", "transferred-shuffle"):  # fmt: skip
        assert words in page
    assert (matrix / "transfer" / "TwinGAN" / "samples" / "transferred-round02.png").exists()
    assert (matrix / "transfer" / "TwinGAN" / "tickets" / "seed0-round02.safetensors").exists()


def test_the_same_command_again_trains_nothing_and_report_and_figure_work(matrix, here, capsys):
    files = {p: p.read_bytes() for p in matrix.rglob("*.csv")}
    assert cli.main([*MATRIX, "--out", str(matrix), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["runs"] == {"trained": 0, "reused": 20, "diverged": 0}
    assert captured.err.startswith("transfer TwinVAE.decoder -> TwinGAN.generator: 3 matched")
    assert {p: p.read_bytes() for p in matrix.rglob("*.csv")} == files
    assert cli.main(["report", str(matrix)]) == 0
    assert cli.main(["figure", str(matrix), "--images", "4"]) == 0
    assert (matrix / "figure.png").exists()


def test_a_dry_run_trains_nothing_and_its_config_is_read_back(matrix, here, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main([*MATRIX, "--out", str(out), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert not out.exists()
    assert "# transfer TwinGAN.generator -> TwinVAE.decoder: 3 matched, 0 resized" in text
    assert "#   train: 20 runs, 0 of them done" in text
    for name in ("TwinVAE", "TwinGAN"):
        assert re.search(rf"# work of {name}: .*FLOPs a step \(\d+ MACs\), \d+ MACs an image", text)
    disk = r"# disk: about [\d.e+-]+ MB of weights at the end[^\n]*\n"
    assert re.search(disk + "# seeds: ", text)
    (tmp_path / "again.toml").write_text(text)
    again = ["transfer", "--matrix", ",".join(TWINS), "--config", str(tmp_path / "again.toml")]
    assert cli.main([*again, "--out", str(matrix), "--dry-run", "--threads", "1"]) == 0
    assert "#   train: 20 runs, 20 of them done" in capsys.readouterr().out


def test_a_change_of_another_task_in_the_same_folder_is_refused(matrix, here, capsys):
    changed = [*MATRIX, "--set", "task.TwinGAN.batch_size=4", "--out", str(matrix)]
    assert cli.main(changed) == 2
    assert "task.batch_size 8 -> 4" in capsys.readouterr().err


# --- find --transfer-to, and a file ---


def test_find_has_its_own_search_beside_and_shares_all_runs(matrix, here, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["find", TWINS[0], "--transfer-to", TWINS[1], *SMALL, *LEVELS, "--controls", "none"]
    assert cli.main([*words, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "TwinVAE.decoder in TwinGAN.generator: Not enough runs" in printed
    config = json.loads((out / "config.json").read_text())["config"]
    assert config["prune"]["networks"] == ["decoder"]
    with (out / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"].startswith("fcd-")]
    arms = [(row["task"], row["arm"]) for row in rows]
    assert arms.count(("TwinVAE", "ticket")) == 2
    assert arms.count(("TwinGAN", "transferred")) == 2
    assert ("TwinVAE", "transferred") not in arms
    # The graph of the search alone is in it, under the same names.
    tables = {
        "task": {"name": TWINS[0]},
        "prune": {"networks": "decoder"},
        "search": {"rounds": 2, "rate": "0.5", "rewind": "3it", "seeds": 1, "controls": "none"},
        "judge": {"samples": 40, "validation_samples": 0, "sampling_seeds": 1},
        "run": {"threads": 1, "workers": 1, "device": "cpu"},
    }
    alone = {node.hash for node in recipes.search(resolve(build(tables), None)).graph}
    assert alone < Store(out / "store").finished()
    # And all of the way from one task to the other is in the matrix's store too.
    moved = {name for name, r in Runs(out).records.items() if r["kind"] == "transfer"}
    assert len(moved) == 5
    assert moved < Runs(matrix).records.keys()


def test_a_file_is_played_for_every_seed_of_the_target(matrix, here, tmp_path, capsys):
    ticket = matrix / "tickets" / "seed0-round02.safetensors"
    out = tmp_path / "out"
    words = ["transfer", str(ticket), TWINS[1], *SMALL, "--seeds", "2", "--out", str(out)]
    assert cli.main(words) == 0
    assert "TwinVAE.decoder in TwinGAN.generator: Not enough runs" in capsys.readouterr().out
    with (out / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"].startswith("fcd-")]
    assert [(r["arm"], r["seed"], r["round"], r["sparsity"]) for r in rows] == [
        ("dense", "0", "0", "0.0"),
        ("dense", "1", "0", "0.0"),
        ("transferred", "0", "2", "0.75"),
        ("transferred", "1", "2", "0.75"),
        ("transferred-reinit", "0", "2", "0.75"),
        ("transferred-reinit", "1", "2", "0.75"),
    ]
    assert {row["networks"] for row in rows} == {"generator<-TwinVAE.decoder"}
    with (matrix / "results.csv").open() as file:
        known = [
            row["value"]
            for row in csv.DictReader(file)
            if row["metric"] == rows[0]["metric"]
            and (row["task"], row["arm"], row["round"]) == ("TwinGAN", "transferred", "2")
        ]
    # Seed 0 is the training that the matrix had, to the last bit.
    assert [row["value"] for row in rows if row["arm"] == "transferred"][:1] == known


def test_a_file_keeps_no_order_and_is_matched_in_that_of_the_modules(tmp_path, here, capsys):
    state = {**state_of(vae(), "encoder"), **state_of(vae(), "decoder")}
    weight = state["decoder.main.12.weight"]
    ticket = Ticket({"decoder.main.12.weight": weight > 0}, state)
    options = {"decoder": "generator", "width": 2, "latent": 4}
    ticket.manifest = {"task": "vae", "method": "imp", "round": 1, "rewind_step": 0, "seed": 0,
                       "config": {"task": options}}  # fmt: skip
    from tombola.tickets.ticket import save_ticket

    save_ticket(tmp_path / "a.safetensors", ticket)
    sizes = ["--set", "task.width=2", "--set", "task.latent=4", "--steps", "5", *SMALL]
    words = ["transfer", str(tmp_path / "a.safetensors"), "dcgan", "--preset", "shared", *sizes]
    assert cli.main([*words, "--dry-run"]) == 0
    assert "9 matched, 0 resized, 0 skipped" in capsys.readouterr().out


# --- killed and resumed ---


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_and_resumed_to_the_same_bytes(matrix, tmp_path):
    words = [*MATRIX, "--rounds", "1", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "tombola", *words]
    path = [str(HERE / "faults"), os.environ.get("PYTHONPATH", "")]
    fault = {"TOMBOLA_FAULT": "rename:70:kill", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    killed = subprocess.run(
        command, env={**os.environ, **fault}, start_new_session=True, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL
    there = len(Store(tmp_path / "out" / "store").finished())
    assert there > 0
    again = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    runs = json.loads(again.stdout)["runs"]
    assert runs["reused"] > 0
    assert runs["reused"] + runs["trained"] == 10
    with (matrix / "results.csv").open() as file:
        expected = [row for row in csv.DictReader(file) if row["round"] < "2"]
    with (tmp_path / "out" / "results.csv").open() as file:
        assert list(csv.DictReader(file)) == expected


# --- refusals ---


AT_ONCE = {
    "no words": (["transfer"], "TICKET TASK --matrix"),
    "no task": (["transfer", "ticket.safetensors"], "TICKET TASK --matrix"),
    "no file": (["transfer", "no.safetensors", "vae"], "no such file"),
    "both": (["transfer", "a", "vae", "--matrix", "vae,dcgan"], "--matrix alone"),
    "one task": (["transfer", "--matrix", "vae"], "--matrix got vae two tasks"),
    "twice": (["transfer", "--matrix", "vae,vae"], "task 'vae' is named twice"),
    "to itself": (["find", "vae", "--transfer-to", "vae"], "task 'vae' is named twice"),
    "to nothing": (["find", "vae", "--transfer-to", ","], "--transfer-to names no task"),
    "to an unknown task": (["find", "vae", "--transfer-to", "dcgn"], "'dcgn' did you mean dcgan"),
    "two methods": (
        ["find", "vae", "--transfer-to", "dcgan", "--method", "imp,one-shot"],
        "one arm method imp, one-shot",
    ),
    "before training": (
        ["find", "vae", "--transfer-to", "dcgan", "--method", "snip"],
        "trained networks imp one-shot snip",
    ),
    "two networks": (
        ["find", "vae", "--transfer-to", "dcgan", "--prune", "encoder,decoder"],
        "the one network --prune encoder,decoder",
    ),
    "two rewinds": (
        ["transfer", "--matrix", "vae,dcgan", "--rewind", "0it,5it"],
        "one arm rewind 0it, 5it",
    ),
    "levels of a file": (["transfer", "a", "vae", "--rounds", "3"], "--rounds --matrix"),
    "option of a stranger": (
        ["transfer", "--matrix", "vae,dcgan", "--set", "task.wgan.width=4"],
        "task.wgan.width 'wgan' vae, dcgan",
    ),
    "preset of others": (
        ["transfer", "--matrix", "vae,wgan", "--preset", "shared"],
        "wgan 'shared' dcgan, vae",
    ),
}
LATER = {
    "sizes that differ": (
        ["transfer", "--matrix", "linear-ae,dcgan"],
        "no layer linear-ae's decoder dcgan's generator --preset shared",
    ),
    "roles of its own": (
        ["transfer", "--matrix", f"{TWINS[0]},{HERE / 'twin_tasks.py'}:Stranger"],
        "nothing of TwinVAE Stranger decoder generator",
    ),
    "network without a counterpart": (
        ["find", "vae", "--transfer-to", "dcgan", "--prune", "generator", "--preset", "shared"],
        "vae no network 'generator' encoder, decoder",
    ),
}


@pytest.mark.parametrize("name", [*AT_ONCE, *LATER])
def test_what_cannot_be_transferred_is_refused_in_a_line(name, here, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words, expected = (AT_ONCE | LATER)[name]
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    for word in expected.split():
        assert word in err
    assert list(tmp_path.iterdir()) == []


def test_the_first_refusals_need_no_torch():
    lines = [
        "import sys, tombola.cli.command_line",
        f"cases = {[words for words, _ in AT_ONCE.values()]!r}",
        "assert all(tombola.cli.command_line.main(words) == 2 for words in cases)",
        "assert 'torch' not in sys.modules",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_ticket_of_channels_is_refused(tmp_path, here, capsys):
    from tombola.tickets.ticket import save_ticket

    ticket = Ticket({}, {"generator.0.weight": torch.ones(2, 2)}, {"granularity": "channel"})
    save_ticket(tmp_path / "a.safetensors", ticket)
    assert cli.main(["transfer", str(tmp_path / "a.safetensors"), "dcgan"]) == 2
    assert "cuts whole channels" in capsys.readouterr().err


def test_options_go_to_all_tasks_or_to_one():
    tables = {"task": {"width": 4, "vae.batch_size": 8, "dcgan.n_critic": 2}}
    made = configs_of(tables, ["vae", "dcgan"])
    assert made["vae"].task.options == {"width": 4, "batch_size": 8}
    assert made["dcgan"].task.options == {"width": 4, "n_critic": 2}


def test_three_tasks_are_six_ways_of_one_graph_with_a_chain_each(tmp_path):
    tables = {
        "task": {"preset": "quick", "width": 2, "latent": 4, "batch_size": 2},
        "train": {"steps": 4},
        "search": {"rounds": 2, "rate": "0.5", "rewind": "1it", "seeds": 1},
        "judge": {"sampling_seeds": 1},
        "run": {"threads": 1, "workers": 1, "device": "cpu"},
    }
    made = configs_of(tables, ["dcgan", "wgan", "sngan"])
    with in_process.Restored():
        request = matrix_request(made, None, tmp_path / "out", "")
        _, plans = transferring.prepare(request)
    assert [(r.source, r.target) for r in request.routes] == [
        ("dcgan", "wgan"), ("dcgan", "sngan"), ("wgan", "dcgan"),
        ("wgan", "sngan"), ("sngan", "dcgan"), ("sngan", "wgan"),
    ]  # fmt: skip
    graph = plans["dcgan"].graph
    assert all(plan.graph is graph for plan in plans.values())
    count = sum(node.kind == "train" for node in graph)
    # Each task: dense, one ticket of its chain, two levels of own, reinit and two times two ways.
    assert count == 3 * (1 + 1 + 2 * (2 + 2 * 2))
    assert len(plans["wgan"].arms) == 3  # several sources: pictures in folders of their own


# --- the verdict ---


def rows(arm, values, level=1, metric="fcd-x-00000000", task="T", networks="g"):
    return [
        Row(task=task, method="imp", arm=arm, networks=networks, rewind_steps=3, precision="fp32",
            seed=seed, round=level, sparsity=0.5, sparsity_all=0.4, metric=metric, value=value,
            step=9)
        for seed, value in enumerate(values)
    ]  # fmt: skip


def verdict_of(own, moved, dense=(10.0, 10.0, 10.0), **controls):
    table = rows("dense", dense, 0) + rows("ticket", own) + rows("transferred", moved)
    for name, values in controls.items():
        table += rows(name.replace("_", "-"), values)
    found = transfer_verdicts(table, as_ticket(table))
    return found["metrics"][found["primary"]]


def test_the_interval_is_the_90_percent_one_of_paired_differences():
    found = verdict_of([10.0, 10.2, 9.9], [10.1, 10.4, 10.2])
    # d = 0.1, 0.2, 0.3: mean 0.2, deviation 0.1; t(0.95, 2) = 2.9199856.
    half = 2.9199855803537 * 0.1 / 3**0.5
    assert found["d_mean"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.2 - half, 0.2 + half))
    assert (found["margin"], found["margin_share"]) == (1.0, 0.1)
    assert found["state"] == "equal"
    assert found["p"] < 0.05
    (level,) = found["levels"]
    assert (level["state"], level["seeds"], level["sparsity"]) == ("equal", 3, 0.5)


@pytest.mark.parametrize(
    ("differences", "state"),
    [
        ([0.1, 0.2, 0.3], "equal"),
        ([1.2, 1.3, 1.4], "transferred worse"),
        ([-1.2, -1.3, -1.4], "transferred better"),
        ([0.9, 1.0, 1.1], "undecided"),
        ([-1.0, 0.0, 1.0], "undecided"),
        ([0.1, 0.2], "not enough runs"),
        ([0.1, 0.2, float("inf")], "transferred worse"),
    ],
)
def test_the_states(differences, state):
    own = [10.0] * len(differences)
    found = verdict_of(own, [10.0 + d for d in differences])
    assert found["state"] == state
    assert found["levels"][0]["state"] == state
    assert ("its loss" in found["sentence"]) == (
        state != "not enough runs" and float("inf") not in differences
    )


def test_an_own_ticket_that_diverged_makes_the_other_better_and_both_are_left_out():
    better = verdict_of([10.0, 10.0, float("nan")], [10.1, 10.1, 10.1])
    assert better["state"] == "transferred better"
    neither = verdict_of([10.0] * 3 + [float("nan")], [10.1] * 3 + [float("nan")], [10.0] * 4)
    assert (neither["state"], neither["seeds"]) == ("equal", 3)


def test_over_levels_each_seed_gives_the_mean_of_its_levels():
    table = rows("dense", [10.0] * 3, 0)
    table += rows("ticket", [10.0] * 3, 1) + rows("ticket", [10.0] * 3, 2)
    table += rows("transferred", [10.5, 10.6, 10.4], 1) + rows("transferred", [9.7, 9.6, 9.8], 2)
    found = transfer_verdicts(table, as_ticket(table))["metrics"]["fcd-x-00000000"]
    assert [level["d_mean"] for level in found["levels"]] == pytest.approx([0.5, -0.3])
    # Seed by seed (0.5 - 0.3) / 2, (0.6 - 0.4) / 2, (0.4 - 0.2) / 2: 0.1 each.
    assert (found["d_mean"], found["seeds"]) == (pytest.approx(0.1), 3)
    assert found["sentence"].startswith(
        "Over 2 levels on Frechet classifier distance the transferred ticket equals the "
        "target's own (its loss against that is 0.1 in the mean"
    )
    assert "equal at 2 of 2 levels." in found["sentence"]


def test_a_metric_of_which_more_is_better_turns_the_sign():
    table = rows("dense", [0.9] * 3, 0, "accuracy") + rows("ticket", [0.9] * 3, 1, "accuracy")
    table += rows("transferred", [0.85, 0.851, 0.849], 1, "accuracy")
    found = transfer_verdicts(table, as_ticket(table))["metrics"]["accuracy"]
    assert found["d_mean"] == pytest.approx(0.05)
    assert (found["margin"], found["margin_share"]) == (0.01, None)
    assert found["state"] == "transferred worse"


def test_controls_are_held_against_the_transferred_ticket():
    found = verdict_of(
        [10.0, 10.1, 9.9],
        [10.0, 10.1, 9.9],
        reinit=[15.0, 15.2, 14.9],
        transferred_shuffle=[10.0, 10.2, 9.8],
    )
    assert found["beats"] == {"reinit": "worse", "shuffle": "not worse"}
    controls = found["as_ticket"]["controls"]
    assert (controls["reinit"]["state"], controls["shuffle"]["state"]) == ("worse", "not worse")
    # The geometric mean of 15 / 10, 15.2 / 10.1 and 14.9 / 9.9.
    assert controls["reinit"]["ratio"] == pytest.approx(1.503332)
    assert controls["reinit"]["p"] < 1e-5
    assert found["levels"][0]["against_dense"] == "matches"
    assert "and is better there than the own mask with new weights" in found["sentence"]


def test_rows_of_one_way_are_told_from_those_of_another():
    own = rows("ticket", [1.0]) + rows("dense", [1.0], 0)
    first = rows("transferred", [2.0], networks="g<-a.d")
    second = rows("transferred", [3.0], networks="g<-b.d")
    strange = rows("ticket", [4.0], task="S")
    every = [*own, *first, *second, *strange]
    assert routes_in(every) == [RouteKey("T", "g", "a.d"), RouteKey("T", "g", "b.d")]
    found = rows_of(every, RouteKey("T", "g", "b.d"))
    assert [(r.arm, r.value, r.networks) for r in found] == [
        ("ticket", 1.0, "g"),
        ("dense", 1.0, "g"),
        ("transferred", 3.0, "g"),
    ]


def test_a_matrix_has_tables_before_it_is_whole(matrix, tmp_path, here, monkeypatch):
    out, seen = tmp_path / "out", []
    shutil.copytree(matrix, out)

    def parts(setting, plan, store, fields, *others, meanwhile, **named):
        order = [node.hash for node in plan.graph]
        for count in range(len(order) // 6, len(order), len(order) // 6):
            meanwhile._done = set(order[:count])
            meanwhile._tables.write()
            summary = json.loads((out / "summary.json").read_text())
            sentences = [
                verdict["sentence"]
                for route in summary["transfer"]["routes"]
                for verdict in route["metrics"].values()
            ]
            begin = "In progress, {done} of {of} trainings: ".format(**summary["progress"])
            assert all(sentence.startswith(begin) for sentence in sentences)
            seen.append((summary["progress"]["done"], len(sentences)))
        assert "In progress, " in write_report(out).read_text()
        raise KeyboardInterrupt

    monkeypatch.setattr(transferring, "carry_graph", parts)
    assert cli.main([*MATRIX, "--out", str(out)]) == 130
    assert seen == sorted(seen)
    assert seen[0][1] < seen[-1][1]

"""Early-bird tickets from the watch to the smaller network: found, cut, trained, and paid."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import in_process
import tombola
from helpers import WideGAN, same
from tombola.cli.command_line import main
from tombola.engine import early_bird, loop, search
from tombola.engine.context import Context
from tombola.engine.progress import Progress
from tombola.engine.request import find_request, train_request
from tombola.engine.starts import trainer_of
from tombola.errors import ConfigError
from tombola.sparsity.compact import Channels
from tombola.sparsity.earlybird import Watch
from tombola.sparsity.watch import pack_watch, unpack_watch
from tombola.store.container import read_manifest
from tombola.store.graph import Node
from tombola.store.runs import Store
from tombola.store.tables import read_costs
from tombola.training.checkpoint import load_state
from tombola.training.trainer import Trainer

HERE = Path(__file__).parent
TASK = f"{HERE / 'toy_task.py'}:WideGAN"
NORM_FREE = f"{HERE / 'toy_task.py'}:NormFree"
SHARES = ("0.3", "0.6")
STEPS = 60
DRAW, FOUND = 2, 10
"""An epoch is 1,080 images, 200 a step (two updates of the critic): a quarter is two steps."""


def find(out, monkeypatch, **options):
    in_process.use(monkeypatch)
    prune = {"delta": 0.9, **options.pop("set_prune", {})}
    small = {
        "data": "digits",
        "method": "early-bird",
        "compress": ",".join(SHARES),
        "seeds": 1,
        "threads": 1,
        "workers": 1,
        "settings": {"prune": prune, "judge": {"samples": 100, "validation_samples": 20}},
    }
    if "early-bird" not in options.get("method", "early-bird"):
        del small["compress"]
    with in_process.Restored():
        return tombola.find(options.pop("task", TASK), out=out, **{**small, **options})


def records(out, kind):
    found = [json.loads(p.read_text()) for p in (out / "store").glob("*/run.json")]
    return [r for r in found if r["kind"] == kind]


def costs(out):
    with (out / "costs.csv").open() as file:
        return {(r["arm"], float(r["compress"])): r for r in csv.DictReader(file)}


class Steps(Progress):
    """How many steps were told of, by what told of them."""

    def __init__(self):
        self.planned, self.more, self.done = 0, [], 0

    def begin(self, steps, runs):
        self.planned = steps

    def expect(self, steps):
        self.more.append(steps)

    def advance(self, steps):
        self.done += steps


@pytest.fixture(scope="module")
def told():
    return Steps()


@pytest.fixture(scope="module")
def found(tmp_path_factory, told):
    with pytest.MonkeyPatch.context() as patch:
        return find(tmp_path_factory.mktemp("eb") / "out", patch, progress=told)


def test_five_draws_a_quarter_epoch_apart_and_the_cut_is_at_the_last(found):
    (watch,) = records(found.out, "watch")
    assert watch["config"]["draw_steps"] == DRAW
    # With so wide a delta all settles as soon as there are five masks to compare.
    assert {share: cut["step"] for share, cut in watch["cuts"].items()} == dict.fromkeys(
        SHARES, FOUND
    )
    assert not any(cut["forced"] for cut in watch["cuts"].values())
    assert watch["watches"]["0.3"]["steps"] == [2, 4, 6, 8, 10]
    assert watch["left"] == {
        "generator.7": "it makes the network's output",
        "discriminator.7": "it makes the network's output",
    }
    assert watch["channels"] == {
        "generator.2": 16,
        "generator.5": 8,
        "discriminator.1": 8,
        "discriminator.4": 16,
    }


def test_exact_counts_and_every_parameter_that_goes_is_counted(found):
    dense = WideGAN().networks((1, 8, 8))
    whole = sum(p.numel() for n in dense.values() for p in n.parameters())
    for share, removed in (("0.3", 14), ("0.6", 29)):  # of 48 channels, floor(33.6 + 1/2) stay
        (cut,) = [
            r
            for r in records(found.out, "cut")
            if r["config"]["compress"] == share and r["config"]["channels"] == "ticket"
        ]
        g1, g2, d1, d2 = (
            cut["widths"][name][1]
            for name in ("generator.2", "generator.5", "discriminator.1", "discriminator.4")
        )
        assert g1 + g2 + d1 + d2 == 48 - removed
        generator = 4 * g1 * 16 + 2 * g1 + g1 * g2 * 16 + 2 * g2 + g2 * 9 + 1
        critic = d1 * 16 + d1 + 2 * d1 + d1 * d2 * 9 + d2 + 2 * d2 + d2 * 16 + 1
        assert cut["parameters"] == generator + critic
        assert cut["sparsity"] == cut["sparsity_all"] == (whole - generator - critic) / whole


def test_the_table_has_the_smaller_network_and_its_three_opponents(found):
    rows = costs(found.out)
    arms = ("dense", "compact", "random-channels", "thin-flops", "thin-parameters")
    assert set(rows) == {(arm, float(share)) for arm in arms for share in SHARES}
    for share in (0.3, 0.6):
        small, alike = rows["compact", share], rows["random-channels", share]
        for column in ("parameters", "macs_per_sample", "sparsity", "train_flops"):
            assert small[column] == alike[column]
        assert small["rewind_steps"] == ""
        cuts = [r for r in records(found.out, "cut") if float(r["config"]["compress"]) == share]
        assert {float(small["sparsity"])} == {cut["sparsity"] for cut in cuts}
        assert {float(small["sparsity_all"])} == {cut["sparsity_all"] for cut in cuts}
        assert int(rows["thin-parameters", share]["parameters"]) <= int(small["parameters"])
    metrics = {row.metric for row in found.rows if row.arm == "compact"}
    assert "early_stopping_step" in metrics


def test_a_smaller_network_costs_its_search_and_what_it_trains_itself(found):
    (watch,) = records(found.out, "watch")
    rows = costs(found.out)
    for share in SHARES:
        (cut,) = [
            r
            for r in records(found.out, "cut")
            if r["config"]["compress"] == share and r["config"]["channels"] == "ticket"
        ]
        row = rows["compact", float(share)]
        assert int(row["search_flops"]) == 2 * FOUND * watch["step_macs"]
        assert int(row["train_flops"]) == 2 * (STEPS - FOUND) * cut["work"]["step_macs"]
        dense = rows["dense", float(share)]
        assert int(dense["train_flops"]) == 2 * STEPS * watch["step_macs"]
        assert int(dense["search_flops"]) == 0
        thin = rows["thin-flops", float(share)]
        spent = int(row["search_flops"]) + int(row["train_flops"])
        (own,) = [
            r["work"]["step_macs"]
            for r in records(found.out, "train")
            if r["config"]["start"] == "thin-flops"
            and 2 * r["steps"] * r["work"]["step_macs"] == int(thin["train_flops"])
        ]
        assert abs(int(thin["train_flops"]) - spent) <= own


def test_progress_is_told_what_is_longer_or_shorter_than_planned(found, told):
    trained = records(found.out, "train")
    longer = [r["steps"] - STEPS for r in trained if r["config"]["start"] == "thin-flops"]
    assert all(steps > 0 for steps in longer)
    assert sorted(steps for steps in told.more if steps > 0) == sorted(longer)
    # The watch ends at its last cut, and what goes on from a cut has the rest alone.
    assert told.more.count(FOUND - STEPS // 2) == 1
    assert told.done == told.planned + sum(told.more)


def test_moments_averages_and_schedule_go_on_where_they_were(found):
    """The smaller network's state at the cut is the dense state without the cut channels."""
    store = Store(found.out / "store")
    for path in store.folder.glob("*/run.json"):
        record = json.loads(path.read_text())
        if record["kind"] != "cut" or record["config"]["channels"] != "ticket":
            continue
        share = record["config"]["compress"]
        watch = store.path(record["parents"]["watch"])
        dense, manifest = load_state(watch / f"cut-{share}.safetensors")
        small, own = load_state(path.parent / "state.safetensors")
        assert (own["step"], own["scalars"]) == (manifest["step"], manifest["scalars"])
        assert small.keys() == dense.keys()
        ticket = tombola.load(path.parent / "ticket.safetensors")
        kept = ticket.masks["generator.2.weight"]
        for name in ("network.generator.2.weight", "network.generator.2.running_var"):
            assert torch.equal(small[name], dense[name][kept])
        # The generator's first weight, (4, 16, 4, 4), is its optimizer's first parameter.
        for key in ("exp_avg", "exp_avg_sq"):
            name = f"optimizer.generator.0.{key}"
            assert torch.equal(small[name], dense[name][:, kept])
            assert bool(small[name].any())


def test_random_channels_are_as_many_of_each_layer_and_others(found):
    store, masks = Store(found.out / "store"), {}
    for path in store.folder.glob("*/ticket.safetensors"):
        config = store.record(path.parent.name)["config"]
        if config["compress"] == "0.6":
            masks[config["channels"]] = tombola.load(path).masks
    own, drawn = masks["ticket"], masks["random"]
    assert {k: int(m.sum()) for k, m in own.items()} == {k: int(m.sum()) for k, m in drawn.items()}
    assert any(not torch.equal(own[name], drawn[name]) for name in own)


def test_the_smaller_networks_begin_with_the_moments_of_the_cut(found):
    store = Store(found.out / "store")
    context = Context(
        store=store, task=TASK, data="digits", data_dir=None, skip_broken=False, device="cpu"
    )
    (record,) = [
        r
        for r in records(found.out, "train")
        if r["config"]["start"] == "compact"
        and store.record(r["parents"]["cut"])["config"]["compress"] == "0.6"
    ]
    trainer = trainer_of(
        record["config"], context, Node("train", record["config"], record["parents"])
    )
    tensors, manifest = load_state(store.path(record["parents"]["cut"]) / "state.safetensors")
    assert trainer.step == manifest["step"] == FOUND
    assert same(trainer.state()[0], tensors)


def test_the_ticket_has_a_bit_a_channel_and_can_be_cut_again(found):
    path = found.out / "tickets" / "early-bird-all-c0.6" / "seed0-round01.safetensors"
    ticket = tombola.load(path)
    assert ticket.manifest["granularity"] == "channel"
    assert ticket.manifest["rewind_step"] == FOUND
    assert ticket.manifest["inputs"] == {"generator": [[4]], "discriminator": [[1, 8, 8]]}
    assert {name: tuple(mask.shape) for name, mask in ticket.masks.items()} == {
        "generator.2.weight": (16,),
        "generator.5.weight": (8,),
        "discriminator.1.weight": (8,),
        "discriminator.4.weight": (16,),
    }
    networks = WideGAN().networks((1, 8, 8))
    ticket.start(networks)
    small = tombola.compact(networks, ticket)
    count = sum(p.numel() for network in small.values() for p in network.parameters())
    (cut,) = [
        r
        for r in records(found.out, "cut")
        if r["config"]["compress"] == "0.6" and r["config"]["channels"] == "ticket"
    ]
    assert count == cut["parameters"]


def test_a_model_of_the_smaller_networks_is_opened_with_their_sizes(found):
    models = found.out / "models" / "early-bird-all-c0.6"
    networks = tombola.load_model(models / "compact-seed0-round01.safetensors", task=TASK)
    wide = tombola.load_model(models / "dense-seed0-round00.safetensors", task=TASK)
    (cut,) = [
        r
        for r in records(found.out, "cut")
        if r["config"]["compress"] == "0.6" and r["config"]["channels"] == "ticket"
    ]
    assert networks["generator"][1].out_channels == cut["widths"]["generator.2"][1] < 16
    assert wide["generator"][1].out_channels == 16
    made = networks["generator"](torch.zeros(3, 4))
    assert made.shape == (3, 1, 8, 8)


class CutOffError(Exception):
    pass


LATE = {"compress": "0.3,0.6", "controls": "none", "set_prune": {"rule": "corrected", "delta": 0.4}}
FIRST, SECOND = 16, 18
"""One share is found at a later draw than the other: the watch outlives its first cut."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        result = find(tmp_path_factory.mktemp("whole") / "out", patch, **LATE)
    assert [c["step"] for c in records(result.out, "watch")[0]["cuts"].values()] == [FIRST, SECOND]
    return result


@pytest.mark.parametrize("at", [FIRST - 1, FIRST, FIRST + 1])
def test_cut_off_before_at_and_after_the_cut_ends_at_the_same_bytes(
    whole, tmp_path, monkeypatch, at
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "MOST_SHARE", float("inf"))
    advance, off = Trainer.advance, []

    def failing(self):
        if self.step == at and not off and hasattr(self, "watched"):
            off.append(at)
            raise CutOffError
        advance(self)

    make = early_bird.trainer_of

    def marked(*arguments):
        trainer = make(*arguments)
        trainer.watched = True
        return trainer

    monkeypatch.setattr(early_bird, "trainer_of", marked)
    monkeypatch.setattr(Trainer, "advance", failing)
    with pytest.raises(CutOffError):
        find(tmp_path / "out", monkeypatch, **LATE)
    again = find(tmp_path / "out", monkeypatch, **LATE)
    assert off == [at]
    assert (again.out / "results.csv").read_bytes() == (whole.out / "results.csv").read_bytes()
    watches = [records(result.out, "watch")[0] for result in (again, whole)]
    for watch in watches:
        del watch["seconds"], watch["sha256"]  # a digest of seconds too
        for cut in watch["cuts"].values():
            del cut["seconds"]
    assert watches[0] == watches[1]


@pytest.mark.parametrize("at", [FIRST, 37, STEPS - 1])
def test_cut_off_within_the_smaller_networks_training_ends_at_the_same_bytes(
    whole, tmp_path, monkeypatch, at
):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "MOST_SHARE", float("inf"))
    dense = sum(
        p.numel() for net in WideGAN().networks((1, 8, 8)).values() for p in net.parameters()
    )
    advance, off, begun = Trainer.advance, [], []

    def failing(self):
        if sum(p.numel() for net in self.networks.values() for p in net.parameters()) < dense:
            begun.append(self.step)
            if self.step == at and not off:
                off.append(at)
                raise CutOffError
        advance(self)

    monkeypatch.setattr(Trainer, "advance", failing)
    with pytest.raises(CutOffError):
        find(tmp_path / "out", monkeypatch, **LATE)
    assert (off, begun[-1]) == ([at], at)
    begun.clear()
    again = find(tmp_path / "out", monkeypatch, **LATE)
    # It went on where it was, and did not begin with the cut again.
    assert begun[0] == at
    assert (again.out / "results.csv").read_bytes() == (whole.out / "results.csv").read_bytes()


def test_not_found_after_half_the_steps_the_cut_is_forced(tmp_path, monkeypatch):
    result = find(
        tmp_path / "out", monkeypatch, compress="0.5", controls="none", set_prune={"delta": 1e-6}
    )
    (watch,) = records(result.out, "watch")
    assert (watch["cuts"]["0.5"]["step"], watch["cuts"]["0.5"]["forced"]) == (STEPS // 2, True)
    (cut,) = records(result.out, "cut")
    assert (cut["from_step"], cut["forced"]) == (STEPS // 2, True)
    assert {row.arm for row in result.rows} == {"dense", "compact"}


def test_without_scales_a_network_is_ranked_alone_and_the_counts_are_exact(tmp_path, monkeypatch):
    controls = "thin-flops"
    asked = {"compress": "0.6", "controls": controls}
    result = find(tmp_path / "out", monkeypatch, task=NORM_FREE, **asked)
    (watch,), (cut,) = records(result.out, "watch"), records(result.out, "cut")
    assert watch["by_scale"] == ["generator"]
    assert watch["channels"] == {
        "generator.2": 16,
        "generator.5": 8,
        "discriminator.0": 8,
        "discriminator.2": 16,
    }
    kept = defaultdict(int)
    for name, (_, left) in cut["widths"].items():
        kept[name.partition(".")[0]] += left
    # floor(24 * 0.4 + 1/2) of each, where one pool of 48 would keep 19.
    assert kept == {"generator": 10, "discriminator": 10}
    words = " ".join((result.out / "report.html").read_text().split())
    assert "Each network ranks its own channels." in words
    assert "in one pool" not in words
    assert "within their own network: discriminator, which has no normalisation layer" in words
    (thin,) = records(result.out, "thin")
    told = result.summary["early_bird"]["early-bird-all-c0.6"]["seeds"]["0"]["thin_flops"]
    assert told == {name: part["ratio"] for name, part in thin["plan"].items()}
    assert told.keys() == {"generator", "discriminator"}


@pytest.mark.parametrize(
    ("task", "prune", "kept"),
    [
        (TASK, {}, (16, 6, 1, 1)),
        # Half of each network's own 24: one of each layer, ten more from the front.
        (TASK, {"settle": "apart"}, (11, 1, 8, 4)),
        (NORM_FREE, {}, (11, 1, 8, 4)),
        (TASK, {"floor": 3}, (15, 3, 3, 3)),
    ],
    ids=["pooled", "apart", "filter norms", "floor"],
)
def test_a_forced_cut_of_tied_scores_is_by_position_in_the_same_pools(
    tmp_path, monkeypatch, task, prune, kept
):
    def tied(self, networks):
        return {group.name: torch.ones(group.n) for group in self.groups}

    monkeypatch.setattr(Channels, "scores", tied)
    asked = {"compress": "0.5", "controls": "none", "set_prune": prune}
    result = find(tmp_path / "out", monkeypatch, task=task, **asked)
    (watch,), (cut,) = records(result.out, "watch"), records(result.out, "cut")
    assert watch["watches"]["0.5"]["steps"] == []
    assert cut["forced"]
    # By name, the critic's layers come first; by position the generator's do.
    lefts = tuple(left for _, left in cut["widths"].values())
    assert (*lefts[2:], *lefts[:2]) == kept
    for path in (result.out / "store").glob("*/ticket.safetensors"):
        for mask in tombola.load(path).masks.values():
            rows = mask.flatten(1).all(1) if mask.dim() > 1 else mask
            assert rows.sort(descending=True).values.equal(rows)
    # The comparison with the end of training has the same ties, and settles them likewise.
    (shared,) = records(result.out, "overlap")
    assert {share for share, _ in shared["overlap"].values()} == {1.0}


def test_too_few_masks_to_judge_is_said_before_at_the_start_and_in_the_report(
    tmp_path, monkeypatch
):
    from tombola.config.sections import build
    from tombola.engine import dry_run

    # Draws at 2, 4, ... of which half of the steps has to hold five.
    tables = {
        "task": {"name": TASK},
        "data": {"name": "digits"},
        "train": {"steps": 12},
        "search": {"method": "early-bird", "controls": "none", "seeds": 1},
        "judge": {"samples": 100, "validation_samples": 20},
        "run": {"workers": 1, "threads": 1},
    }

    def notes(**train):
        config = build({**tables, "train": train})
        request = find_request(config, None, tmp_path / "out", "x")
        found = dry_run.describe(request)[1]
        return [line for line in found if line.startswith("early-bird: ")]

    # An epoch has 5 steps: 54 / 25.
    said = (
        "early-bird: only 3 of the 5 masks that the rule compares can be drawn by step 6, half of "
        "the training, where the cut is forced then; give --epochs of at least {} (or --steps 20)"
    )
    (line,) = notes(steps=12)
    number = re.search(r"at least ([\d.]+) ", line)[1]
    assert line == said.format(number)
    # What is advised is enough, and the least that is.
    assert notes(epochs=float(number)) == notes(steps=20) == []
    assert notes(epochs=round(float(number) - 0.01, 2)) != []
    assert notes(steps=19) != []

    heard = []
    monkeypatch.setattr(Progress, "note", lambda self, text: heard.append(text))
    result = find(tmp_path / "found", monkeypatch, compress="0.5", controls="none", steps=12)
    assert heard == [line]
    words = " ".join((result.out / "report.html").read_text().split())
    assert (
        "Too few masks were drawn to judge whether the channels had settled: 3 of the five" in words
    )
    assert "The channels had not settled" not in words


def test_masks_drawn_too_far_apart_may_be_drawn_nearer(tmp_path):
    from tombola.config.sections import build
    from tombola.engine.search import prepare
    from tombola.plan.chain import few_draws

    def note(draw_epochs, steps):
        tables = {
            "task": {"name": TASK},
            "data": {"name": "digits"},
            "train": {"steps": steps},
            "search": {"method": "early-bird"},
            "prune": {"draw_epochs": draw_epochs},
        }
        request = find_request(build(tables), None, tmp_path / "out", "x")
        return few_draws(prepare(request)[0])

    found = note(1.0, 30)
    nearer = float(re.search(r"or --set prune\.draw_epochs=([\d.]+)$", found)[1])
    assert note(nearer, 30) == ""
    assert note(round(nearer + 0.01, 2), 30) != ""
    assert "draw_epochs" not in note(1.0, 12)


def test_pressure_on_the_scales_shrinks_them_and_the_watch_alone(tmp_path, monkeypatch):
    ends = defaultdict(dict)
    for strength in (0.0, 0.3):
        out = find(
            tmp_path / str(strength),
            monkeypatch,
            compress="0.5",
            controls="none",
            set_prune={"scale_l1": strength},
        ).out
        store = Store(out / "store")
        (watch,) = store.folder.glob("*/cut-0.5.safetensors")
        tensors, _ = load_state(watch)
        ends[strength]["scale"] = tensors["network.generator.2.weight"]
        with (out / "results.csv").open() as file:
            rows = [r for r in csv.DictReader(file) if r["arm"] == "dense"]
        ends[strength]["dense"] = [(r["metric"], r["value"]) for r in rows]
    assert ends[0.3]["scale"].abs().mean() < ends[0.0]["scale"].abs().mean()
    assert ends[0.3]["dense"] == ends[0.0]["dense"]


def test_averaged_weights_are_cut_and_go_on(tmp_path, monkeypatch):
    settings = {
        "train": {"ema": 0.9},
        "prune": {"delta": 0.9},
        "judge": {"samples": 100, "validation_samples": 20},
    }
    result = find(tmp_path / "out", monkeypatch, compress="0.6", controls="none", settings=settings)
    store = Store(result.out / "store")
    (folder,) = [p.parent for p in store.folder.glob("*/ticket.safetensors")]
    dense, _ = load_state(next(store.folder.glob("*/cut-0.6.safetensors")))
    small, _ = load_state(folder / "state.safetensors")
    kept = tombola.load(folder / "ticket.safetensors").masks["generator.2.weight"]
    name = "average.generator.2.weight"
    assert torch.equal(small[name], dense[name][kept])
    assert not torch.equal(small[name], small["network.generator.2.weight"])


def test_every_draw_is_an_event_of_the_log(found):
    lines = [json.loads(line) for line in (found.out / "log.jsonl").read_text().splitlines()]
    draws = [line for line in lines if line.get("event") == "channel masks"]
    assert [line["step"] for line in draws if line["compress"] == 0.3] == [2, 4, 6, 8, 10]
    assert [line["largest"] is None for line in draws] == ([True] * 4 + [False]) * 2
    assert set(draws[4]["largest"]) == {"generator", "discriminator"}


def test_rounding_is_to_multiples_and_said(tmp_path, monkeypatch):
    result = find(
        tmp_path / "out", monkeypatch, compress="0.6", controls="none", set_prune={"round_to": 4}
    )
    (cut,) = records(result.out, "cut")
    assert all(kept % 4 == 0 for _, kept in cut["widths"].values())


def test_a_watch_is_json_and_back():
    watch = Watch()
    generator = torch.Generator().manual_seed(0)
    for step in range(7):
        masks = {
            "a.1": torch.rand(11, generator=generator) < 0.5,
            "b.0": torch.rand(5, generator=generator) < 0.5,
        }
        watch.add(step, masks)
    again = unpack_watch(json.loads(json.dumps(pack_watch(watch))))
    assert (again.steps, again.largest, again.settled) == (
        watch.steps,
        watch.largest,
        watch.settled,
    )
    matrices = watch.matrix()[1], again.matrix()[1]
    assert all(torch.equal(matrices[0][name], matrices[1][name]) for name in ("a", "b"))
    assert json.loads(json.dumps(pack_watch(Watch())))["draws"] == {}
    assert unpack_watch(pack_watch(Watch())).steps == []


def test_controls_of_single_weights_and_of_channels_do_not_mix():
    from tombola.config.sections import build

    asked = build({"search": {"method": "imp,early-bird", "controls": "reinit,thin-flops"}}).search
    assert asked.controls_of("imp") == ("reinit",)
    assert asked.controls_of("early-bird") == ("thin-flops",)
    default = build({"search": {"method": "early-bird"}}).search
    assert default.controls_of("early-bird") == ("random-channels", "thin-flops", "thin-parameters")
    none = build({"search": {"method": "early-bird", "controls": "none"}}).search
    assert none.controls_of("early-bird") == ()
    with pytest.raises(ConfigError, match="control thin-flops is held against early-bird"):
        build({"search": {"controls": "thin-flops"}})


def test_a_dry_run_tells_of_channels_and_not_of_levels(tmp_path):
    from tombola.config.sections import build
    from tombola.engine import dry_run

    tables = {
        "task": {"name": TASK},
        "data": {"name": "digits"},
        # Rounds that would leave no weight: nothing of early-bird goes by them.
        "search": {"method": "early-bird", "rounds": 100},
        "prune": {"compress": "0.3,0.6"},
    }
    request = find_request(build(tables), None, tmp_path / "out", "x")
    notes = "\n".join(dry_run.describe(request)[1])
    assert "compress: 0.3, 0.6 of the channels" in notes
    assert "kept by level" not in notes
    assert "watch: 3 runs" in notes


def costs_as_found(out, found, compact):
    """The row and the files of a ticket that was trained again say what those of find say."""
    (row,) = read_costs(out / "costs.csv")
    same = {(r.arm, r.compress): r for r in read_costs(found / "costs.csv")}
    small, dense = same["compact", 0.6], same["dense", 0.6]
    like = small if compact else dense
    assert (row.parameters, row.macs_per_sample) == (like.parameters, like.macs_per_sample)
    assert row.nonzero_parameters == small.parameters == small.nonzero_parameters
    share = (STEPS - FOUND) / STEPS
    assert row.train_flops == (small.train_flops if compact else share * dense.train_flops)
    assert row.rewind_steps is small.rewind_steps is None
    assert row.sparsity_all == small.sparsity_all
    models = found / "models" / "early-bird-all-c0.6"
    told = read_manifest(models / "compact-seed0-round01.safetensors")
    ticket = read_manifest(out / "tickets" / "seed0-round01.safetensors")
    model = read_manifest(next((out / "models").glob("*.safetensors")))
    for key in ("widths", "inputs", "rewind_step", "granularity", "sparsity"):
        assert model[key] == ticket[key] == told[key] is not None
    if compact:
        assert model["cost"] == told["cost"]


def test_a_ticket_trains_again_small_or_masked(found, tmp_path, monkeypatch):
    from tombola import api
    from tombola.engine.ticket_config import ticket_config

    in_process.use(monkeypatch)
    path = found.out / "tickets" / "early-bird-all-c0.6" / "seed0-round01.safetensors"
    tables = {"task": {"name": TASK}, "data": {"name": "digits"}}
    config = ticket_config(path, tombola.load(path).manifest, tables)
    values = {}
    for compact in (True, False):
        request = train_request(config, None, tmp_path / str(compact), "x", path, compact=compact)
        with in_process.Restored():
            result = api.carry_out(request)
        rows = [r for r in result.rows if not r.metric.endswith("-error")]
        assert {r.arm for r in rows} == {"compact" if compact else "ticket"}
        assert {round(r.sparsity, 6) for r in rows} == {
            round(tombola.load(path).manifest["sparsity"], 6)
        }
        values[compact] = {r.metric: r.value for r in rows}
        costs_as_found(result.out, found.out, compact)
    # The same training in exact arithmetic; in float32 sums run in another order.
    (metric,) = {name for name in values[True] if name.startswith("fcd-")}
    assert values[True][metric] == pytest.approx(values[False][metric], rel=1e-2)


def test_a_bar_grows_and_shrinks_with_what_is_expected(capfd):
    from tombola.cli.bar import Bar

    bar = Bar()
    bar.begin(10, 2)
    bar.advance(4)
    bar.expect(30)
    bar.expect(-20)
    bar.advance(6)
    bar.end()
    last = capfd.readouterr().err.splitlines()[-1]
    assert last.startswith(" 50%  10.0/20.0 steps, ")


def test_a_dry_run_says_of_thin_flops_that_it_is_longer(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tombola.engine.dry_run.seconds_per_step", lambda setting: 0.1)
    words = ["find", TASK, "--data", "digits", "--method", "early-bird", "--compress", "0.3,0.6",
             "--seeds", "2", "--out", str(tmp_path / "out"), "--dry-run"]  # fmt: skip
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "#   4 of them are thin-flops: longer than counted here" in told
    assert main([*words, "--controls", "thin-parameters"]) == 0
    assert "of them are thin-flops" not in capsys.readouterr().out


def test_a_note_is_a_line_on_stderr(capfd):
    from tombola.cli.bar import Bar

    Bar().note("too few masks")
    assert capfd.readouterr() == ("", "note: too few masks\n")


def test_there_are_tables_before_the_search_is_whole(found, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    shutil.copytree(found.out, out)

    def parts(setting, plan, store, fields, before, *, lock, meanwhile, phases):
        order = [node.hash for node in plan.graph]
        for count in range(len(order) // 8, len(order), len(order) // 8):
            meanwhile._done = set(order[:count])
            meanwhile._tables.write()
            summary = json.loads((out / "summary.json").read_text())
            seen.append((summary["progress"]["done"], len(summary["early_bird"])))
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "carry_graph", parts)
    with pytest.raises(KeyboardInterrupt):
        find(out, monkeypatch)
    assert seen == sorted(seen)
    assert (seen[0][1], seen[-1][1]) == (0, 2)

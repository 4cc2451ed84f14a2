"""Masks that are learnt: schedules, gates by hand, turns, resume, and whole searches with them."""

from __future__ import annotations

import copy
import csv
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import in_process
import tombola
from helpers import TinyAE, TinyGAN, images, run, same
from tombola import api
from tombola.api import carry_out
from tombola.config.runtime import Runtime, seed_everything
from tombola.config.sections import build
from tombola.data.batches import Batches
from tombola.engine import earlier, loop
from tombola.engine.context import Context
from tombola.engine.request import train_request
from tombola.engine.stages import execute
from tombola.engine.ticket_config import ticket_config
from tombola.errors import ConfigError, DivergedError
from tombola.plan import plans as recipes
from tombola.plan.setting import resolve
from tombola.sparsity import gates
from tombola.sparsity.masks import count, nested, prunable
from tombola.store.container import read_manifest
from tombola.store.runs import Store
from tombola.tasks.base import Task
from tombola.training.checkpoint import load_state
from tombola.training.learned import MASK_TRAINERS
from tombola.training.trainer import Settings, Trainer

METHODS = list(MASK_TRAINERS)
HERE = Path(__file__).parent
TOY = f"{HERE / 'toy_task.py'}:"
SMALL = {"samples": 20, "sampling_seeds": 1, "validation_samples": 0}


def test_the_counts_of_gates_fall_by_equal_ratios_to_the_last_at_three_fifths():
    found = [gates.gates_count(1000, 10, step, 100) for step in (0, 20, 30, 40, 59, 60, 100)]
    # 1000 * 0.01^(1/3) = 215.4, ^(1/2) = 100, ^(2/3) = 46.4, ^(59/60) = 10.8
    assert found == [1000, 215, 100, 46, 11, 10, 10]
    assert gates.gates_count(7, 7, 3, 10) == 7


def test_the_counts_of_gradual_fall_by_a_cube_to_the_last_at_four_fifths():
    found = [gates.gradual_count(1000, 200, step, 100) for step in (0, 20, 37, 40, 74, 80, 100)]
    # 200 + 800 (3/4)^3 = 537.5, (43/80)^3 = 324.2, (1/2)^3 = 300, (6/80)^3 = 200.3
    assert found == [1000, 538, 324, 300, 200, 200, 200]


def test_first_gates_are_the_logits_of_the_ranks_over_the_whole_pool():
    weights = {"a": torch.tensor([[-3.0, 0.5]]), "b": torch.tensor([2.0, -0.5])}
    found = gates.first_gates(weights)
    # Ranks 3, 1; 2, 0: of the two that are equal the earlier is the higher.
    shares = {"a": [[7 / 8, 3 / 8]], "b": [5 / 8, 1 / 8]}
    for name, share in shares.items():
        p = torch.tensor(share, dtype=torch.float64)
        torch.testing.assert_close(found[name], (p / (1 - p)).log().float())
    alike = gates.first_gates({"c": torch.ones(3000)})["c"]
    assert torch.equal(alike, alike.sort(descending=True).values)
    turned = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    (gate,) = gates.first_gates({"c": turned}).values()
    assert gate.stride() == turned.stride()
    assert torch.equal(gate.reshape(-1).argsort(), turned.abs().reshape(-1).argsort())


@pytest.mark.parametrize("wanted", [1, 17, 59, 60])
def test_with_b_exactly_as_many_gates_as_wanted_lie_at_one_half_or_above(wanted):
    torch.manual_seed(2)
    found = {"a": torch.randn(5, 8), "b": torch.randn(20)}
    b = gates.offset(found, wanted)
    z = torch.cat([gates.opened(a, 20.0, b).reshape(-1) for a in found.values()])
    assert int((z >= 0.5).sum()) == wanted
    assert float(z[z >= 0.5].min()) == 0.5  # the last of them
    assert math.isnan(gates.offset({"a": torch.tensor([1.0, math.nan])}, 1))


def test_gates_grow_steep_and_their_rate_falls():
    assert [gates.sharpness(step, 50) for step in (0, 25, 50)] == [1.0, pytest.approx(20**0.5), 20]
    rates = [gates.gates_rate(step, 50) for step in (0, 25, 50)]
    assert rates == pytest.approx([0.02, 0.0105, 0.001])


def mask_trainer(method, task, *, keep=None, steps=80, names=("all",), precision="fp32"):
    """A search for a tenth of the weights of a tiny task, on random images."""
    seed_everything(0, "init")
    networks = task.networks((1, 8, 8))
    runtime = Runtime(device=torch.device("cpu"), precision=precision)
    settings = Settings(runtime=runtime, seed=0, total_steps=steps)
    pool = prunable(networks, names)
    keep = keep or sum(w.numel() for w in pool.values()) // 10
    batches = Batches(images(), task.batch_size, 0)
    return MASK_TRAINERS[method](task, networks, batches, settings, pool, keep)


class Line(Task):
    """One layer of three weights, plain SGD, and a loss whose gradient is known."""

    family, size, channels, batch_size = "autoencoder", 8, 1, 4
    learning_rate = 0.5

    def networks(self, shape):
        layer = nn.Linear(3, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[2.0, -1.0, 0.5]]))
        return {"n": layer}

    def loss(self, turn, networks, images):
        return networks["n"](torch.tensor([1.0, 2.0, 4.0])).square().sum()

    def optimizer(self, turn, parameters):
        return torch.optim.SGD(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_of_gates_is_as_computed_by_hand(decay):
    made = mask_trainer("gates", Line(weight_decay=decay), keep=1, steps=10)
    run(made, 1)
    w, x = [2.0, -1.0, 0.5], [1.0, 2.0, 4.0]
    a = [math.log(p / (1 - p)) for p in (5 / 6, 3 / 6, 1 / 6)]
    b = -a[2]  # all three are still wanted
    z = [1 / (1 + math.exp(-(gate + b))) for gate in a]  # beta = 1
    out = sum(wi * zi * xi for wi, zi, xi in zip(w, z, x, strict=True))
    # What decays is w z, to which both the weight and its gate are parts.
    slopes = [2 * out * xi + decay * wi * zi for wi, zi, xi in zip(w, z, x, strict=True)]
    leaf, gate = made.networks["n"].weight, made.gates["n.weight"]
    on_w = [s * zi for s, zi in zip(slopes, z, strict=True)]
    on_a = [s * wi * zi * (1 - zi) for s, wi, zi in zip(slopes, w, z, strict=True)]
    torch.testing.assert_close(leaf.grad, torch.tensor([on_w]))
    torch.testing.assert_close(gate.grad, torch.tensor([on_a]))
    moved = torch.tensor([[wi - 0.5 * g for wi, g in zip(w, on_w, strict=True)]])
    torch.testing.assert_close(leaf.detach(), moved)
    # Adam's first step is the rate, against the sign.
    stepped = torch.tensor(
        [[ai - 0.02 * math.copysign(1, g) for ai, g in zip(a, on_a, strict=True)]]
    )
    torch.testing.assert_close(gate.detach(), stepped, atol=1e-6, rtol=0)


def test_decay_moves_no_loss_and_a_decoupled_one_is_the_optimizers_own():
    class Decoupled(Line):
        def optimizer(self, turn, parameters):
            return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=0.1)

    losses = [
        made._loss(made.task.turns[0], None).item()
        for made in (mask_trainer("gates", Line(weight_decay=d), keep=1) for d in (0.0, 0.1))
    ]
    assert losses[0] == losses[1]
    made = mask_trainer("gates", Decoupled(), keep=1)
    assert made.optimizers["all"].param_groups[0]["weight_decay"] == 0.1
    assert made._decays == {"all": []}
    made = mask_trainer("gates", Line(weight_decay=0.1), keep=1)
    assert made.optimizers["all"].param_groups[0]["weight_decay"] == 0


def test_the_mask_of_gates_is_of_the_largest_gated_weights():
    made = mask_trainer("gates", Line(), keep=1)
    with torch.no_grad():
        made.gates["n.weight"].copy_(torch.tensor([[0.0, 0.1, -1.0]]))
    # b = -0.1: 2 sigmoid(-2) = 0.238, 1 sigmoid(0) = 0.5, 0.5 sigmoid(-22) = 0
    assert made.mask()["n.weight"].tolist() == [[False, True, False]]
    with torch.no_grad():
        made.gates["n.weight"][0, 0] = 0.09  # 2 sigmoid(-0.2) = 0.9
    assert made.mask()["n.weight"].tolist() == [[True, False, False]]


class Turned(TinyGAN):
    """A game in which the generator wants the opposite."""

    def loss(self, turn, networks, images):
        found = super().loss(turn, networks, images)
        return -found if turn == "generator" else found


def test_the_gates_of_a_network_learn_in_its_own_turn_alone():
    one, other = (run(mask_trainer("gates", kind()), 1) for kind in (TinyGAN, Turned))
    first = gates.first_gates(prunable(mask_trainer("gates", TinyGAN()).networks))
    for name, gate in one.gates.items():
        assert not torch.equal(gate, first[name]), name
        assert torch.equal(gate, other.gates[name]) == name.startswith("discriminator"), name
    part = run(mask_trainer("gates", TinyGAN(), names=("generator",)), 3)
    assert {name.split(".")[0] for name in part.mask()} == {"generator"}


def test_weights_that_never_learn_keep_their_gates():
    class Frozen(TinyAE):
        def networks(self, shape):
            made = super().networks(shape)
            made["encoder"][1].weight.requires_grad_(False)
            return made

    made = mask_trainer("gates", Frozen())
    before = made.gates["encoder.1.weight"].clone()
    run(made, 3)
    assert torch.equal(made.gates["encoder.1.weight"], before)
    assert count(made.mask())[0] == made.keep


@pytest.mark.parametrize(("method", "kind"), [("gates", TinyGAN), ("gradual", TinyAE)])
def test_a_search_in_parts_is_one_in_one_go(method, kind):
    whole = run(mask_trainer(method, kind()), 80)
    first = run(mask_trainer(method, kind()), 47)
    tensors, manifest = first.state()
    kept = {name: value.clone() for name, value in tensors.items()}
    second = mask_trainer(method, kind())
    second.resume(kept, json.loads(json.dumps(manifest)))
    run(second, 80)
    assert same(whole.state()[0], second.state()[0])
    assert whole.log == second.log
    masks = whole.mask()
    assert same(masks, second.mask())
    assert count(masks)[0] == whole.keep


def test_gates_are_fewer_open_by_the_schedule_and_far_from_one_half_at_the_end():
    made = mask_trainer("gates", TinyAE(), steps=100)
    for step in (20, 40, 60):
        run(made, step + 1)
        wanted = gates.gates_count(made.size, made.keep, step, 100)
        assert made.b == gates.offset(before_step(made, step), wanted)
    run(made, 100)
    z = [gates.opened(gate.detach(), gates.SHARPEST, made.b) for gate in made.gates.values()]
    decided = torch.cat([value.reshape(-1) for value in z])
    assert float(((decided < 0.1) | (decided > 0.9)).float().mean()) > 0.9


def before_step(made, step):
    """The gates as they were before a step, of the same search begun again."""
    return run(mask_trainer("gates", TinyAE(), steps=100), step).gates


def test_gradual_prunes_every_37_steps_and_what_is_pruned_stays_pruned():
    made = mask_trainer("gradual", TinyAE(), steps=100)
    counts, masks = {}, []
    for step in range(1, 101):
        run(made, step)
        if made.masks is not None and not (masks and made.masks is masks[-1]):
            counts[step - 1] = count(made.masks)[0]
            masks.append(made.masks)
        if made.hold is not None:
            assert made.hold.leaks() == []
    assert counts == {
        37: gates.gradual_count(1536, 153, 37, 100), 74: gates.gradual_count(1536, 153, 74, 100),
    }  # fmt: skip
    last = made.mask()  # the last pruning was at 74, and too early by one
    assert count(last)[0] == 153
    # Held at once, not only after the next update, and without moments.
    made._prune(100)
    assert made.hold.leaks() == []
    moments = made.optimizers["all"].state[made.networks["decoder"][0].weight]["exp_avg"]
    assert not moments[~made.masks["decoder.0.weight"]].any()
    assert nested(last, masks[1])
    assert nested(masks[1], masks[0])


@pytest.mark.parametrize("method", METHODS)
def test_a_weight_that_is_no_number_is_divergence(method):
    made = mask_trainer(method, TinyAE())
    with torch.no_grad():
        made.networks["decoder"][0].weight[0, 0] = math.nan
    with pytest.raises(DivergedError, match=r"the score of a weight of decoder.0.weight"):
        made.mask()


def test_gates_in_fp16_learn_by_gradients_of_their_own_size():
    half, plain = (run(mask_trainer("gates", TinyAE(), precision=p), 1) for p in ("fp16", "fp32"))
    for name, gate in half.gates.items():
        torch.testing.assert_close(gate.grad, plain.gates[name].grad, atol=1e-5, rtol=0.02)


def plan_of(kind="TinyAE", **tables):
    search = {"sparsity": "0.9", "seeds": 1, "rewind": "5it", "controls": "none", "method": "gates"}
    config = build(
        {
            "task": {"name": TOY + kind},
            "train": {"steps": 25},
            "run": {"threads": 1, "workers": 1, "device": "cpu"},
            **tables,
            "search": {**search, **tables.get("search", {})},
        }
    )
    return recipes.search(resolve(config, None)).graph


def context(folder, kind):
    return Context(
        store=Store(folder), task=TOY + kind, data="digits", data_dir=None, skip_broken=False,
        device="cpu", keep_steps=(5,), inputs={"criterion": "magnitude"},
    )  # fmt: skip


class CutOffError(Exception):
    pass


@pytest.mark.parametrize(("method", "kind"), [("gates", "TinyAE"), ("gradual", "TinyGAN")])
def test_a_search_cut_off_between_checkpoints_ends_at_the_same_bytes(
    tmp_path, monkeypatch, method, kind
):
    wanted = {"method": method, "sparsity": "0.6"}
    graph = plan_of(kind, search=wanted, gates={"length": 3}, gradual={"length": 3})
    nodes = [node for node in graph if node.kind in ("train", "rewind", "search")][:3]
    assert nodes[-1].steps == 60
    for node in nodes:
        execute(node, context(tmp_path / "whole", kind))
    for node in nodes[:2]:
        execute(node, context(tmp_path / "cut", kind))
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "MOST_SHARE", float("inf"))
    advance = Trainer.advance

    def failing(self):
        if self.step == 45:
            raise CutOffError
        advance(self)

    monkeypatch.setattr(Trainer, "advance", failing)
    with pytest.raises(CutOffError):
        execute(nodes[2], context(tmp_path / "cut", kind))
    monkeypatch.setattr(Trainer, "advance", advance)
    begun = []
    monkeypatch.setattr(
        Trainer,
        "resume",
        lambda self, t, m, f=Trainer.resume: (f(self, t, m), begun.append(self.step)),
    )
    execute(nodes[2], context(tmp_path / "cut", kind))
    assert begun == [45]
    files = [tmp_path / w / nodes[2].hash / "ticket.safetensors" for w in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    logs = [Store(tmp_path / w).record(nodes[2].hash)["log"] for w in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_the_length_of_a_search_is_in_the_names_of_its_own_runs_alone():
    both = {"search": {"method": "imp,gates"}}
    alone, short, long = (
        {node.hash: node for node in plan_of(**tables)}
        for tables in ({"search": {"method": "imp"}}, both | {"gates": {"length": 1}}, both)
    )
    assert alone.keys() == short.keys() & long.keys()
    assert alone.keys() == {
        node.hash for node in plan_of(search={"method": "imp"}, gates={"length": 7})
    }
    other = [node for name, node in short.items() if name not in long]
    # The search, and the ticket trained and judged by its mask.
    assert [node.kind for node in other] == ["search", "train", "evaluate"]
    assert [graph.steps for graph in other] == [20, 20, 0]
    assert [node.steps for name, node in long.items() if name not in short] == [40, 20, 0]


def test_lengths_are_read_from_every_place_and_checked():
    made = build({"gates": {"length": 0.5}, "search": {"method": "gates,gradual"}})
    assert (made.gates.length, made.gradual.length) == (0.5, 2.0)
    tables = made.tables()
    assert (tables["gates"], tables["gradual"]) == ({"length": 0.5}, {"length": 2.0})
    assert build(tables) == made
    assert not {"gates", "gradual"} & build({}).tables().keys()
    for section in METHODS:
        for bad in (0, -1, math.inf, 1e6):
            with pytest.raises(ConfigError, match=rf"{section}.length got .* above 0"):
                build({section: {"length": bad}})
        with pytest.raises(ConfigError, match="reinit-chain takes its masks from trained networks"):
            build({"search": {"method": ["imp", section], "controls": "reinit-chain"}})


def test_a_folder_gains_gates_with_a_length_of_their_own_which_then_stays():
    def told(method, **tables):
        made = build({"search": {"method": method}, **tables})
        return {"config": made.tables(), "resolved": {"data_sha256": ""}}

    before, out = told("imp"), Path("out")
    earlier.refuse_changes(before, told("imp,gates", gates={"length": 1}), out)
    before = told("imp,gates", gates={"length": 1})
    earlier.refuse_changes(before, copy.deepcopy(before), out)
    with pytest.raises(ConfigError, match=r"gates.length 1.0 -> 2.0"):
        earlier.refuse_changes(before, told("imp,gates"), out)


def find(out, task=f"{TOY}TinyAE", **options):
    settings = {"judge": SMALL, **options.pop("settings", {})}
    small = {
        "steps": 30, "sparsity": "0.5,0.9", "seeds": 1, "rewind": "5it", "controls": "none",
        "threads": 1, "workers": 1, "device": "cpu", "method": METHODS,
    }  # fmt: skip
    return tombola.find(task, out=out, settings=settings, **{**small, **options})


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Searches run in this process, and nobody reads their pages."""
    in_process.use(monkeypatch)
    monkeypatch.setattr(api, "write_report", lambda out: None)
    with in_process.Restored():
        yield


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("learned") / "out"
    with pytest.MonkeyPatch.context() as patch, in_process.Restored():
        in_process.use(patch)
        patch.setattr(api, "write_report", lambda out: None)
        controls = "reinit,shuffle,erk,dense-long"
        return find(out, controls=controls, settings={"gradual": {"length": 1}})


def test_tickets_are_exact_masks_with_the_weights_of_the_rewind_point(searched):
    store = Store(searched.out / "store")
    records = {name: store.record(name) for name in store.finished()}
    (rewound,) = (name for name, r in records.items() if r["kind"] == "rewind")
    start = load_state(store.path(rewound) / "state.safetensors")[0]
    seen = set()
    for method in METHODS:
        folder = searched.out / "tickets" / f"{method}-all-r5"
        for number, kept in ((1, 768), (2, 154)):
            ticket = tombola.load(folder / f"seed0-round{number:02d}.safetensors")
            assert count(ticket.masks) == (kept, 1536)
            assert (ticket.manifest["method"], ticket.manifest["rewind_step"]) == (method, 5)
            assert ticket.manifest["config"][method]["length"] == {"gates": 2, "gradual": 1}[method]
            assert len({*METHODS} & ticket.manifest["config"].keys()) == 1
            for name, value in ticket.weights.items():
                wanted = start[f"network.{name}"]
                mask = ticket.masks.get(name, torch.ones_like(value, dtype=torch.bool))
                assert torch.equal(value[mask], wanted[mask])
            seen.add(str([mask.tolist() for mask in ticket.masks.values()]))
    assert len(seen) == 4


def test_a_learnt_ticket_costs_the_way_to_its_rewind_point_its_search_and_itself(searched):
    rows = rows_of(searched.out / "costs.csv")
    dense = next(int(row["train_flops"]) for row in rows if row["arm"] == "dense")
    seconds = next(float(row["train_seconds"]) for row in rows if row["arm"] == "dense")
    for row in rows:
        length = {"gates": 2, "gradual": 1}[row["method"]]
        before, own = int(row["search_flops"]) * 30 / dense, int(row["train_flops"]) * 30 / dense
        if row["arm"] == "ticket":  # N = 30, K = 5
            assert (before, own) == (5 + length * 25, 25)
            assert before + own <= (length + 1) * 30
            assert float(row["search_seconds"]) > seconds / 6
        elif row["arm"] == "dense-long":
            assert own == min(90, 30 + 5 + length * 25)
        else:
            assert before == {"dense": 0, "erk": 0}.get(row["arm"], 5 + length * 25)
    total = searched.summary["cost"]["train_flops"] * 30 / dense
    searches = 2 * (50 + 25)
    trainings = 30 + 4 * (30 + 25 + 25 + 30) + 85 + 60
    assert total == searches + trainings


def test_the_log_has_the_losses_of_the_search(searched):
    lines = [json.loads(line) for line in (searched.out / "log.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in lines if row.get("event") == "search"
             and (row["method"], row["round"]) == ("gates", 1)]  # fmt: skip
    assert steps == list(range(1, 51))


def test_training_such_a_ticket_again_repeats_its_row(searched, tmp_path):
    path = searched.out / "tickets" / "gates-all-r5" / "seed0-round02.safetensors"
    tables = {"task": {"name": f"{TOY}TinyAE"}, "data": {"name": "digits"}}
    config = ticket_config(path, read_manifest(path), tables)
    again = carry_out(train_request(config, None, tmp_path / "again", "train", path))
    of = {"arm": "ticket", "method": "gates", "round": "2", "metric": "reconstruction_error"}
    values = {
        row["value"]
        for out in (searched.out, again.out)
        for row in rows_of(out / "results.csv")
        if all(row[key] == value for key, value in of.items())
    }
    assert len(values) == 1


def test_rewind_steps_are_arms_with_searches_of_their_own():
    graph = plan_of(search={"rewind": "0it,5it", "sparsity": "0.5,0.9", "method": METHODS})
    found = [node for node in graph if node.kind == "search"]
    assert sorted(node.steps for node in found) == [40, 40, 40, 40, 50, 50, 50, 50]
    assert sum(node.kind == "train" and node.config["start"] == "dense" for node in graph) == 1


def test_a_search_that_diverges_is_the_ticket_diverged_and_no_other_level_suffers(tmp_path):
    task = f"{TOY}HalfDiverging"
    result = find(tmp_path / "out", task, method="gradual", sparsity="0.5,0.9", controls="shuffle")
    found = {
        (row["arm"], row["round"]): (row["metric"], row["step"])
        for row in rows_of(result.out / "results.csv")
        if row["metric"] in ("diverged", "not-run", "reconstruction_error")
    }
    assert found["ticket", "1"][0] == "reconstruction_error"
    assert found["ticket", "2"] == ("diverged", "37")
    assert found["shuffle", "2"] == ("not-run", "")
    events = [json.loads(line) for line in (result.out / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e.get("event") == "search diverged"] == [37]


GOLDEN = {
    ("gates", "1"): 0.20645095,
    ("gates", "2"): 0.32460369,
    ("gradual", "1"): 0.19207252,
    ("gradual", "2"): 0.23154121,
}
"""Reconstruction errors of a linear autoencoder's tickets on the digits."""


def test_golden_chain_of_a_linear_autoencoder(tmp_path):
    result = find(
        tmp_path / "out", "linear-ae", steps=40, rewind="6it", settings={"task": {"width": 16}}
    )
    found = {
        (row["method"], row["round"]): float(row["value"])
        for row in rows_of(result.out / "results.csv")
        if row["arm"] == "ticket" and row["metric"] == "reconstruction_error"
    }
    assert found == pytest.approx(GOLDEN, rel=1e-3)


def test_a_chain_of_a_gan_with_spectral_norms_learns_masks_of_both_networks(tmp_path):
    options = {"width": 2, "latent": 4, "batch_size": 4}
    result = find(tmp_path / "out", "sngan", steps=20, sparsity="0.8", settings={"task": options})
    for path in result.tickets:
        ticket = tombola.load(path)
        kept, size = count(ticket.masks)
        assert kept == math.floor(size * 0.2 + 0.5)
        by_network = dict.fromkeys(("generator", "discriminator"), 0)
        for name, mask in ticket.masks.items():
            by_network[name.split(".")[0]] += int(mask.sum())
        assert all(by_network.values())
        assert not any("parametrizations" in name for name in ticket.weights)
    ends = [row for row in result.rows if row.arm == "ticket" and row.metric.startswith("fcd")]
    assert len(ends) == 2
    assert all(math.isfinite(row.value) for row in ends)

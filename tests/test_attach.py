"""The one line in a script: what it loads, holds, averages, measures and writes; and ranks."""

from __future__ import annotations

import atexit
import copy
import json
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import in_process
import tombola
from tombola.cli import command_line as cli
from tombola.errors import ConfigError, TicketError
from tombola.loops import attaching, draws, measured, orders
from tombola.loops.book import FINAL, REWIND, TICKET
from tombola.loops.ending import Ending
from tombola.sparsity.names import plain_state
from tombola.tickets.ticket import Ticket, save_ticket
from tombola.training.checkpoint import load_weights_file


def pair() -> dict[str, nn.Module]:
    """A generator and a discriminator of four numbers."""
    torch.manual_seed(0)
    return {
        "generator": nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)),
        "discriminator": nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1)),
    }


def ticket_for(networks, seed: int = 7) -> Ticket:
    """Other weights than the networks have, and a mask of about half of every matrix."""
    generator = torch.Generator().manual_seed(seed)
    weights = {
        f"{name}.{key}": torch.rand(value.shape, generator=generator) + 0.5
        if value.is_floating_point()
        else value.clone()
        for name, network in networks.items()
        for key, value in plain_state(network).items()
    }
    masks = {
        key: torch.rand(value.shape, generator=generator) < 0.5
        for key, value in weights.items()
        if value.dim() == 2
    }
    return Ticket(masks, weights)


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Makes this process one of a round; what it attached is gone afterwards."""

    def order(start="own", *, ticket=None, arm="ticket", **more):
        part = tmp_path / "round.part"
        part.mkdir(exist_ok=True)
        if ticket is not None:
            save_ticket(part / TICKET, ticket)
        fields = {"arm": arm, "seed": 0, "round": 1, "prune": ("all",), "rewind_steps": 0}
        orders.write_order(part, orders.Order(start=start, **{**fields, **more}))
        monkeypatch.setenv(orders.VARIABLE, str(part))
        return part

    yield order
    in_process.end_script(1)


def finish() -> None:
    """The end of the script's process, its errors let through."""
    attached, attaching._active = attaching._active, None
    atexit.unregister(attached._work.close)
    signal.signal(signal.SIGTERM, attached._work._before)
    attached._work.close()


def gan_steps(networks, count: int = 3) -> None:
    """The loop of PyTorch's tutorial: the fakes' graph is open while the discriminator steps."""
    made, judge = networks["generator"], networks["discriminator"]
    optimizers = {n: torch.optim.Adam(net.parameters(), 0.01) for n, net in networks.items()}
    for _ in range(count):
        judge.zero_grad()
        fake = made(torch.randn(8, 4))
        (judge(fake.detach()).mean() - judge(torch.randn(8, 4)).mean()).backward()
        optimizers["discriminator"].step()
        made.zero_grad()
        (-judge(fake).mean()).backward()
        optimizers["generator"].step()


def zeros(ticket, networks) -> bool:
    """Whether all that is pruned is exactly zero."""
    states = {f"{n}.{k}": v for n, net in networks.items() for k, v in plain_state(net).items()}
    return all(not bool(states[key][~mask].any()) for key, mask in ticket.masks.items())


def test_outside_of_a_search_it_does_nothing_and_says_so_once(monkeypatch):
    monkeypatch.delenv(orders.VARIABLE, raising=False)
    monkeypatch.setattr(attaching, "_told", False)
    hooks = len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
    networks = pair()
    before = {n: copy.deepcopy(net.state_dict()) for n, net in networks.items()}
    with pytest.warns(UserWarning, match="not started by `tombola run`"):
        handle = tombola.attach(networks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tombola.attach(networks, ema=3, clock="nobody")
        tombola.record("fid", 3.0)
        handle.apply()
    assert handle.steps == 0
    assert hooks == (len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks))
    for name, network in networks.items():
        assert all(torch.equal(before[name][k], v) for k, v in network.state_dict().items())


def test_a_ticket_is_loaded_held_and_its_end_written(begin):
    networks = pair()
    ticket = ticket_for(networks)
    part = begin("ticket", ticket=ticket)
    with torch.random.fork_rng():
        drawn = torch.get_rng_state()
        handle = tombola.attach(networks)
        assert torch.equal(drawn, torch.get_rng_state())
    assert all(
        torch.equal(value, ticket.weights[f"{n}.{key}"])
        for n, net in networks.items()
        for key, value in plain_state(net).items()
    )
    gan_steps(networks)
    assert handle.steps == 3
    assert zeros(ticket, networks)
    tombola.record("fid", 9, n=10)
    tombola.record("fid", torch.tensor(3.5, requires_grad=True), n=20)
    finish()
    assert not _global_optimizer_pre_hooks
    answer = json.loads((part / orders.ANSWER).read_text())
    assert answer["parameters"] == [["generator", 70], ["discriminator", 37]]
    assert answer["prunable"] == [
        ["generator.0.weight", 24], ["generator.2.weight", 24],
        ["discriminator.0.weight", 24], ["discriminator.2.weight", 6],
    ]  # fmt: skip
    told = answer["round"]
    assert (told["steps"], told["values"], told["n"]) == (3, {"fid": 3.5}, {"fid": 20})
    assert [row["value"] for row in told["log"]] == [9.0, 3.5]
    final = load_weights_file(part / FINAL)
    assert torch.equal(final["generator.2.weight"], networks["generator"][2].weight)
    assert not torch.equal(final["generator.2.weight"], ticket.weights["generator.2.weight"])
    assert not (part / REWIND).exists()


def test_the_dense_round_keeps_its_weights_at_the_rewind_step(begin):
    networks = pair()
    part = begin(arm="dense", rewind_steps=2)
    tombola.attach(networks)
    twin = copy.deepcopy(networks)
    torch.manual_seed(1)
    gan_steps(networks, 4)
    finish()
    torch.manual_seed(1)
    gan_steps(twin, 2)
    kept = load_weights_file(part / REWIND)
    assert torch.equal(kept["generator.1.running_mean"], twin["generator"][1].running_mean)
    assert torch.equal(kept["discriminator.2.weight"], twin["discriminator"][2].weight)


class Ema(nn.Module):
    """As ema-pytorch's: the average is a module within, beside a count of updates."""

    def __init__(self, model):
        super().__init__()
        self.ema_model, self._online = copy.deepcopy(model), [model]
        self.register_buffer("step", torch.tensor(0))

    @torch.no_grad()
    def update(self):
        self.step += 1
        for own, online in zip(
            self.ema_model.parameters(), self._online[0].parameters(), strict=True
        ):
            own.lerp_(online, 1 / float(self.step))


@pytest.mark.parametrize("kind", ["module", "dict", "averaged", "shadow", "within"])
def test_averages_begin_at_the_ticket_and_count_as_the_trained_weights(begin, kind):
    networks = pair()
    generator = networks["generator"]
    ema = copy.deepcopy(generator)
    if kind == "averaged":
        ema = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    if kind == "within":
        ema = Ema(generator)
    if kind == "shadow":
        ema = type("Average", (), {"shadow_params": [p.clone() for p in generator.parameters()]})()
    ticket = ticket_for(networks)
    part = begin("ticket", ticket=ticket)
    tombola.attach(networks, ema={"generator": ema} if kind == "dict" else ema)
    model = ema.ema_model if kind == "within" else ema
    first = ema.shadow_params[0] if kind == "shadow" else plain_state(model)["0.weight"]
    assert torch.equal(first, ticket.weights["generator.0.weight"])
    gan_steps(networks)
    with torch.no_grad():
        first.add_(0.25)  # an average that leaks, as one begun at dense weights
    finish()
    mask = ticket.masks["generator.0.weight"]
    assert not bool(first[~mask].any())
    final = load_weights_file(part / FINAL)["generator.0.weight"]
    assert torch.equal(final, first)
    assert torch.equal(final[mask], ticket.weights["generator.0.weight"][mask] + 0.25)


def test_an_average_that_fits_two_networks_must_be_named(begin):
    begin()
    networks = {"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)}
    with pytest.raises(ConfigError, match="fits a and b; give a dict"):
        tombola.attach(networks, ema=nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="names network 'c'"):
        tombola.attach(networks, ema={"c": nn.Linear(2, 2)})


def test_wrapped_networks_go_by_their_metric_wordss(begin):
    networks = pair()
    ticket = ticket_for(networks)
    part = begin("ticket", ticket=ticket)
    wrapped = {
        "generator": torch.compile(networks["generator"]),
        "discriminator": nn.DataParallel(networks["discriminator"]),
    }
    tombola.attach(wrapped)
    gan_steps(networks)
    finish()
    assert zeros(ticket, networks)
    assert load_weights_file(part / FINAL).keys() == ticket.weights.keys()


def test_reinit_is_a_permutation_within_each_matrix_of_every_network(begin):
    networks = pair()
    begin("permuted", ticket=ticket_for(networks), arm="reinit", prune=("generator",))
    before = copy.deepcopy(networks)
    draws.permute(networks, 0, "reinit/1")
    once = copy.deepcopy(networks)
    for name, network in networks.items():
        for (key, now), then in zip(
            network.named_parameters(), before[name].parameters(), strict=True
        ):
            assert torch.equal(now.flatten().sort().values, then.flatten().sort().values), key
            assert torch.equal(now, then) == (now.dim() < 2), key
    for purpose, seed, same in (
        ("reinit/1", 0, True),
        ("reinit/2", 0, False),
        ("reinit/1", 1, False),
    ):
        again = copy.deepcopy(before)
        draws.permute(again, seed, purpose)
        assert torch.equal(again["generator"][0].weight, once["generator"][0].weight) == same
    attached = copy.deepcopy(before)
    ticket = ticket_for(attached)
    tombola.attach(attached)
    kept = ticket.masks["generator.0.weight"]
    assert torch.equal(attached["generator"][0].weight, once["generator"][0].weight * kept)


def test_the_state_is_audited_and_written_on_the_way(begin, monkeypatch):
    monkeypatch.setattr(attaching, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(attaching, "SAVE_SECONDS", 0.0)
    networks = pair()
    ticket = ticket_for(networks)
    part = begin("ticket", ticket=ticket)
    ema = copy.deepcopy(networks["generator"])
    tombola.attach(networks, ema=ema)
    nn.init.ones_(ema[0].weight)
    gan_steps(networks, 1)
    state = load_weights_file(part / orders.STATE)
    assert state.keys() == ticket.weights.keys()
    assert torch.equal(state["generator.0.weight"] == 1, ticket.masks["generator.0.weight"])
    networks["discriminator"][2].weight.data += 1  # which torch counts as no change
    with pytest.raises(ConfigError, match=r"not zero at step \d in discriminator.2.weight"):
        gan_steps(networks, 1)
    assert "discriminator.2.weight" in json.loads((part / orders.FAULT).read_text())["fault"]


def test_a_script_ends_when_its_search_is_gone(begin, monkeypatch):
    monkeypatch.setattr(attaching, "LOOK_SECONDS", 0.0)
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    networks = pair()
    begin(driver=done.pid)
    tombola.attach(networks)
    with pytest.raises(SystemExit, match="is gone; so this ends too"):
        gan_steps(networks, 2)
    elsewhere = orders.Order(
        arm="dense", seed=0, round=0, start="own", prune=(), rewind_steps=0,
        driver=done.pid, host="another machine",
    )  # fmt: skip
    assert not elsewhere.abandoned()


def test_other_ranks_hold_the_same_masks_and_write_nothing(begin, monkeypatch):
    networks = pair()
    ticket = ticket_for(networks)
    part = begin("ticket", ticket=ticket)
    monkeypatch.setenv("RANK", "1")
    before = set(part.iterdir())
    tombola.attach(networks)
    gan_steps(networks)
    assert zeros(ticket, networks)
    finish()
    assert set(part.iterdir()) == before


class HandMade:
    """An optimizer of one's own: a method named step and a list of parameters."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    @torch.no_grad()
    def step(self):
        for parameter in self.parameters:
            parameter.sub_(0.1 * torch.sign(parameter.grad) + 0.01)


@pytest.mark.parametrize("way", ["optimizers", "apply"])
def test_updates_by_hand_are_counted_and_held(begin, way, monkeypatch):
    monkeypatch.setattr(attaching, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(attaching, "SAVE_SECONDS", 0.0)
    networks = {"net": nn.Linear(4, 4)}
    ticket = ticket_for(networks)
    part = begin("ticket", ticket=ticket)
    own = HandMade(networks["net"].parameters())
    handle = tombola.attach(networks, optimizers=own if way == "optimizers" else None)
    for _ in range(5):
        networks["net"].zero_grad()
        networks["net"](torch.randn(3, 4)).square().sum().backward()
        own.step()
        if way == "apply":
            handle.apply()
    assert handle.steps == 5
    assert zeros(ticket, networks)
    finish()
    assert json.loads((part / orders.ANSWER).read_text())["round"]["steps"] == 5


def test_a_ticket_of_other_networks_is_refused(begin):
    part = begin("ticket", ticket=ticket_for({"net": nn.Linear(4, 4)}))
    with pytest.raises(TicketError, match="but \\[5, 5\\] in the network"):
        tombola.attach({"net": nn.Linear(5, 5)})
    assert "in the network" in json.loads((part / orders.FAULT).read_text())["fault"]


def test_a_network_that_is_not_attached_cannot_be_pruned(begin):
    begin(prune=("generators",))
    with pytest.raises(ConfigError, match="did you mean generator"):
        tombola.attach(pair())


def test_a_stale_variable_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv(orders.VARIABLE, str(tmp_path / "gone"))
    with pytest.raises(ConfigError, match="where no round is to be made"):
        tombola.attach(pair())


def test_the_way_is_thinned_and_the_end_kept():
    own = measured.Measured()
    for step in range(measured.MOST_ROWS + 5):
        own.add("fid", step, None, None, None, step=step)
    told = own.told()
    assert len(told["log"]) < measured.MOST_ROWS
    assert told["log"][-1]["step"] == measured.MOST_ROWS + 4
    assert told["values"] == {"fid": measured.MOST_ROWS + 4.0}


def test_a_judge_is_asked_at_the_end_with_averages_masked(begin):
    networks = pair()
    ema = copy.deepcopy(networks["generator"])
    ticket = ticket_for(networks)
    part = begin("ticket", ticket=ticket)

    def judge():
        with torch.no_grad():
            return {"fid": float(ema[0].weight[~ticket.masks["generator.0.weight"]].abs().sum())}

    tombola.attach(networks, ema=ema, judge=judge)
    gan_steps(networks)
    with torch.no_grad():
        ema[0].weight += 1
    finish()
    told = json.loads((part / orders.ANSWER).read_text())["round"]
    assert told["values"] == {"fid": 0.0}
    assert told["eval_seconds"] > 0


RANKS = """
import json, os, sys, torch, tombola
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
forked = "RANK" not in os.environ
if forked:  # two ranks without the seconds that torchrun takes to start them
    child = os.fork()
    os.environ["RANK"], os.environ["WORLD_SIZE"] = "01"[child > 0], "2"
dist.init_process_group("gloo", init_method=sys.argv[1] if sys.argv[1:] else None,
    rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
rank = dist.get_rank()
torch.manual_seed(0 if forked else rank)
net = torch.nn.Linear(16, 16)
data = torch.randn(8, 16) + rank
tombola.attach({"net": net})
wrapped = net if forked else DDP(net)
optimizer = torch.optim.Adam(wrapped.parameters(), 0.01)
for step in range(5):
    optimizer.zero_grad()
    (wrapped(data) - data).square().mean().backward()
    if forked:
        for parameter in net.parameters():
            dist.all_reduce(parameter.grad)
    optimizer.step()
tombola.record("loss", (net(data) - data).square().mean(), better="lower")
with open(f"rank{rank}.json", "w") as file:
    json.dump(net.weight.tolist(), file)
dist.destroy_process_group()
"""


TORCHRUN = "-m torch.distributed.run --standalone --nproc-per-node 2"


@pytest.mark.parametrize(
    "starter",
    [pytest.param("", marks=pytest.mark.slow), pytest.param(TORCHRUN, marks=pytest.mark.long)],
)
def test_among_several_ranks_every_one_has_the_same_mask(tmp_path, monkeypatch, capsys, starter):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ranks.py").write_text(RANKS)
    where = "ranks.py"
    if not starter:
        where = f"ranks.py file://{tmp_path}/meeting"
        # The file is of one meeting; a shell takes it away before the next.
        (tmp_path / "ranks.py").write_text(RANKS + "if rank == 0: os.remove('meeting')\n")
    words = f"run --rounds 1 --rate 0.5 --rewind 2it --controls none --out out -- python {starter}"
    assert cli.main([*words.split(), *where.split()]) == 0, capsys.readouterr().err
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    ticket = tombola.load(tmp_path / "out/tickets/seed0-round01.safetensors")
    mask = ticket.masks["net.weight"]
    assert int(mask.sum()) == 128
    assert torch.equal(torch.tensor(ranks[0]) != 0, mask)


PROCESS = """
import sys, torch, torch.multiprocessing as mp, tombola

def train(steps):
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 4)
    tombola.attach({"net": net})
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for step in range(steps):
        optimizer.zero_grad()
        net(torch.ones(2, 4)).square().mean().backward()
        optimizer.step()
        if step == 5 and steps > 6:
            CRASH
    tombola.record("loss", 1.0, better="lower")

if __name__ == "__main__":
    mp.set_start_method("fork")
    child = mp.Process(target=train, args=(10,))
    child.start()
    child.join()
"""


@pytest.mark.parametrize("crash", ["raise ValueError('x')", "sys.exit(3)"])
def test_a_process_that_fails_is_no_whole_round_though_its_parent_ends_well(
    tmp_path, monkeypatch, capsys, crash
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(PROCESS.replace("CRASH", crash))
    words = "run --rounds 1 --rate 0.5 --rewind 2it --controls none --out out -- python train.py"
    assert cli.main(words.split()) != 0
    assert not list((tmp_path / "out").rglob(FINAL))


@pytest.mark.parametrize("crash", ["pass", "sys.exit(0)"])
def test_a_process_that_ends_well_is_a_round(tmp_path, monkeypatch, capsys, crash):
    monkeypatch.chdir(tmp_path)
    text = PROCESS.replace("CRASH", "pass")
    if crash != "pass":
        text = text.replace('better="lower")', 'better="lower")\n    sys.exit(0)')
    (tmp_path / "train.py").write_text(text)
    words = "run --rounds 1 --rate 0.5 --rewind 2it --controls none --out out -- python train.py"
    assert cli.main(words.split()) == 0, capsys.readouterr().err


def test_the_rank_is_remembered_when_its_group_is_gone(tmp_path, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    order = orders.Order(start="own", arm="ticket", seed=0, round=1, prune=("all",), rewind_steps=0)
    ending = Ending(tmp_path, order, judge=None, sample=None)
    assert ending.rank() == 0
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert ending.rank() == 1
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: False)
    assert ending.rank() == 1


def test_what_is_excluded_is_no_part_of_the_pool(begin):
    begin(exclude=("generator.0.weight", "last"))
    networks = pair()
    torch.nn.utils.prune.identity(networks["generator"][0], "weight")  # cannot be pruned
    tombola.attach(networks)
    assert list(attaching._active._work.ending.prunable) == ["discriminator.0.weight"]
    gan_steps(networks, 1)
    finish()


def test_what_a_layer_loses_is_told_to_the_search_and_not_laid_on_the_script(begin):
    class Shifted(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(x, self.weight + 1, self.bias)

    part = begin()
    networks = pair()
    networks["generator"][2] = Shifted(6, 4)
    tombola.attach(networks)
    with pytest.raises(ConfigError) as caught:
        gan_steps(networks, 1)
    sys.last_value = caught.value  # as Python leaves it when a script has failed
    try:
        finish()
    finally:
        del sys.last_value
    fault = json.loads((part / orders.FAULT).read_text())["fault"]
    assert fault.startswith("'generator.2.weight' cannot be pruned: where it is zero")

"""Steps of a loop that is not ours: counted, rounds told apart, states kept, the loop stopped."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

import tombola
from tombola.loops import clock as module
from tombola.loops.clock import Clock, Stopped
from tombola.loops.turns import Rounds

SGD = torch.optim.SGD


def pair():
    """Two networks of one weight and a buffer that counts forward passes."""
    made = {}
    for name in ("generator", "discriminator"):
        made[name] = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, affine=False))
        nn.init.zeros_(made[name][0].weight)
    return made


def turns(word, expected="DG"):
    """How many rounds a word of turns has, and after which letters they are known to be over."""
    rounds, over = Rounds(expected), []
    for place, letter in enumerate(word):
        if rounds.over_before(letter):
            rounds.end()
            over.append(-place)
        if rounds.add(letter, letter):
            rounds.end()
            over.append(place)
    if rounds.whole():
        rounds.end()
    return rounds.done, over


@pytest.mark.parametrize(
    ("word", "expected", "done", "over"),
    [
        ("", "DG", 0, []),
        ("D", "DG", 0, []),
        ("DG", "DG", 1, []),  # the end of the loop shows it
        ("DGDGDG", "DG", 3, [-2, 3, 5]),
        ("DGDGD", "DG", 2, [-2, 3]),  # the last round was cut off
        ("GDGD", "DG", 2, [-2, 3]),
        ("DDDGDDDG", "DG", 2, [-4, 7]),  # three critic updates a round
        ("DDDDDDGDDG", "DG", 2, [-7, 9]),  # more of them in the first
        ("DGGDGGDGG", "DG", 3, [-3, 5, 8]),  # two of the generator
        ("AAA", "A", 3, [-1, 1, 2]),  # one network, one optimizer
        ("GRDGDGRDGD", "GDR", 4, [-3, 4, 7, 9]),  # a third one now and then
        ("GGDDGDGD", "DG", 3, [-4, -6]),  # lazy regularisation: twice only in the first
        ("DGDDGDG", "DG", 3, [-2, 4, 6]),  # a generator's step was skipped by a scaler
        ("DGDGGDG", "DG", 4, [-2, 3, 4, 6]),  # one of the discriminator's
    ],
)
def test_rounds_are_told_apart(word, expected, done, over):
    assert turns(word, expected) == (done, over)


@pytest.mark.parametrize(
    ("word", "late"),
    [
        ("GDGDGD", ""),
        ("GGDDGDGDGD", ""),  # lazy regularisation: all have more in the first round
        ("DDDGDDDG", ""),
        ("GDRGDGDRGD", ""),  # a third one now and then, there from the beginning
        ("GGGGGDGDG", "G"),  # the discriminator joins after four iterations
        ("DDDDDDGDDG", "D"),
        ("GDGDRGD", "R"),  # an optimizer that nobody expected, after the first round
    ],
)
def test_optimizers_that_begin_late_are_noticed(word, late):
    rounds = Rounds("DG")
    for letter in word:
        if rounds.over_before(letter):
            rounds.end()
        if rounds.add(letter, letter):
            rounds.end()
    assert rounds.late == frozenset(late)


def loop(networks, word, clock=None, each=lambda: None):
    """Take turns as a word says: a forward pass of both, then plus one for a network's weight."""
    optimizers = {name[0].upper(): SGD(n.parameters(), 1.0) for name, n in networks.items()}
    for letter in word:
        for network in networks.values():
            network(torch.tensor([[0.0], [1.0]]))
        for parameter in optimizers[letter].param_groups[0]["params"]:
            parameter.grad = -torch.ones_like(parameter)
        optimizers[letter].step()
        each()


def weights(state):
    """(generator's weight, discriminator's weight, forward passes)."""
    names = ("generator.0.weight", "discriminator.0.weight", "generator.1.num_batches_tracked")
    return tuple(int(state[name]) for name in names)


@pytest.mark.parametrize(
    ("word", "rewind", "found"),
    [
        ("DG" * 5, 0, (0, 0, 0)),
        ("DG" * 5, 1, (1, 1, 2)),  # not known to be the end before the third turn
        ("DG" * 5, 2, (2, 2, 4)),
        ("DG" * 5, 5, (5, 5, 10)),
        ("DDDG" * 4, 1, (1, 3, 4)),
        ("DDDG" * 4, 3, (3, 9, 12)),
        ("GD" * 4, 2, (2, 2, 4)),
        ("DGG" * 3, 2, (4, 2, 6)),
        ("DG", 1, (1, 1, 2)),  # the loop ends with the first round
        ("GGDD" + "GD" * 3, 2, (3, 3, 6)),
    ],
)
def test_the_snapshot_is_of_the_end_of_a_round_before_the_next_forward_pass(word, rewind, found):
    networks = pair()
    with Clock(networks, rewind_steps=rewind) as clock:
        loop(networks, word)
    assert weights(clock.snapshot) == found
    live = {tensor.data_ptr() for network in networks.values() for tensor in network.parameters()}
    assert live.isdisjoint(tensor.data_ptr() for tensor in clock.snapshot.values())


@pytest.mark.parametrize(
    ("counted", "rewind", "total", "snapshot", "final", "steps"),
    [
        ("generator", 2, 3, (2, 6, 8), (3, 9, 12), 3),
        ("discriminator", 3, 9, (1, 3, 4), (3, 9, 12), 9),
        # The count is reached in the middle of a round: no step more of the one that is counted.
        ("discriminator", 1, 4, (0, 1, 1), (1, 4, 5), 4),
        ("discriminator", 4, 7, (1, 4, 5), (2, 7, 9), 7),
        (None, 1, 2, (1, 3, 4), (2, 6, 8), 2),
    ],
)
def test_the_steps_of_one_network_are_counted(counted, rewind, total, snapshot, final, steps):
    networks = pair()
    clock = Clock(networks, counted=counted, rewind_steps=rewind, total_steps=total)
    with clock:
        loop(networks, itertools.chain.from_iterable(itertools.repeat("DDDG")))
    assert weights(clock.snapshot) == snapshot
    assert weights(clock.final) == final
    assert clock.steps == steps
    state = {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    assert weights(state) == final  # also the buffers that the next forward pass had moved


LATE = "G" * 6 + "GD" * 30


def test_a_network_that_joins_late_needs_a_clock_which_counts_iterations():
    networks = pair()
    with (
        pytest.raises(tombola.ConfigError, match="such as clock='generator'"),
        Clock(networks, rewind_steps=2, total_steps=10),
    ):
        loop(networks, LATE)
    networks = pair()
    clock = Clock(networks, counted="generator", rewind_steps=2, total_steps=10)
    with clock:
        loop(networks, LATE)
    assert weights(clock.snapshot) == (2, 0, 2)
    assert (weights(clock.final), clock.steps) == ((10, 4, 14), 10)
    networks = pair()  # it joins after the end of a loop that is just as long
    with Clock(networks, counted="generator", rewind_steps=2, total_steps=6) as clock:
        loop(networks, LATE[:6])
    assert (weights(clock.snapshot), weights(clock.final)) == ((2, 0, 2), (6, 0, 6))
    assert (clock.steps, clock.rounds.missing) == (6, ["discriminator"])


MASKS = {"generator.0.weight": torch.tensor([[False]])}


def test_pruned_weights_that_come_back_after_a_step_enter_no_forward_pass():
    networks = pair()

    def stir(value=3.0):
        with torch.no_grad():
            networks["generator"][0].weight.fill_(value)

    seen = []
    networks["generator"][0].register_forward_pre_hook(
        lambda layer, _: seen.append(float(layer.weight))
    )
    with Clock(networks, masks=MASKS):
        loop(networks, "DG" * 3, each=stir)
    assert seen == [0.0] * 6
    with Clock(networks, masks=MASKS) as clock:  # diverged: no zero times what is no number
        loop(networks, "DG" * 3, each=lambda: stir(float("nan")))
    assert clock.steps == 3


def test_weights_that_are_changed_before_the_first_step_are_an_error():
    def late(networks, word="DG", used=True):
        if used:
            networks["generator"](torch.ones(2, 1))
        nn.init.ones_(networks["discriminator"][0].weight)
        loop(networks, word)

    def by_hand(networks):  # without a forward pass
        nn.init.ones_(networks["discriminator"][0].weight)
        SGD(networks["generator"].parameters(), 1.0).step()

    wrong = (
        r"changed \(discriminator.0.weight\), so that a ticket would not begin with its own; ini"
    )
    for masks in (None, MASKS):
        for change in (partial(late, used=False), by_hand):
            with (
                pytest.raises(tombola.ConfigError, match=wrong),
                Clock(nets := pair(), masks=masks),
            ):
                change(nets)
    assert not torch.nn.modules.module._has_any_global_hook()
    networks = pair()
    with Clock(networks) as clock:  # layers that are initialised by their first batch
        late(networks)
    assert clock.steps == 1
    # They must not be so anew in a ticket's training.
    with pytest.raises(tombola.ConfigError, match=wrong), Clock(nets := pair(), rewound=True):
        late(nets)


@pytest.mark.parametrize("rewound", [False, True])
def test_weights_that_are_jittered_and_put_back_or_clipped_are_the_given_ones(rewound):
    net = nn.Linear(8, 4)
    ones, optimizer = torch.ones(1, 8), SGD(net.parameters(), 0.1)

    def step(noise=0.0, back=True, bound=9.0):
        old = [leaf.detach().clone() for leaf in net.parameters()]
        with torch.no_grad():
            for leaf in net.parameters():
                leaf.add_(noise * torch.randn_like(leaf)).clamp_(-bound, bound)
        net(ones).sum().backward()
        with torch.no_grad():
            for leaf, value in zip(net.parameters(), old, strict=True):
                leaf.copy_(value) if back else None
        optimizer.step()

    def halve_by_hand(clock):  # a loop without an optimizer, whose start can be seen only once
        with torch.no_grad():
            net.weight.mul_(0.5)
            net(ones)
        clock.apply()

    for good in ({"noise": 0.1}, {"bound": 0.1, "back": False}):
        with Clock({"net": net}, rewound=rewound) as clock:
            step(**good)
        assert clock.steps == 1
        nn.init.normal_(net.weight)
    wrong = (
        lambda _: step(noise=0.1, back=False),
        lambda _: step(bound=0.0, back=False),
        halve_by_hand,
    )
    for bad in wrong:
        nn.init.normal_(net.weight)
        refused = pytest.raises(tombola.ConfigError, match="before the first step the weights were")
        with refused, Clock({"net": net}, rewound=rewound) as clock:
            bad(clock)


@pytest.mark.parametrize("total", [1, 2, 5])
def test_a_loop_without_an_end_is_stopped_through_except_exception(total):
    networks, after = pair(), []

    def endless():
        while True:
            try:
                loop(networks, "DG")
            except Exception:
                continue

    with Clock(networks, total_steps=total) as clock:
        endless()
        after.append("not reached")
    assert (clock.steps, weights(clock.final), after) == (total, (total, total, 2 * total), [])
    assert clock.turns == {"generator": total, "discriminator": total}


def test_a_loop_of_just_so_many_steps_goes_on_to_its_own_end():
    networks, after = pair(), []
    with Clock(networks, total_steps=4) as clock:
        loop(networks, "DG" * 4)
        after.append("reached")
    assert (clock.steps, after) == (4, ["reached"])


def test_a_loop_that_ends_too_soon_is_told_by_the_count():
    networks = pair()
    with Clock(networks, total_steps=4) as clock:
        loop(networks, "DGDGD")
    assert (clock.steps, clock.final) == (2, None)


def test_errors_of_the_loop_pass_and_no_hook_stays():
    before = len(_global_optimizer_post_hooks), len(_global_optimizer_pre_hooks)
    networks = pair()
    with pytest.raises(ZeroDivisionError), Clock(networks, total_steps=4):
        loop(networks, "DG", each=lambda: 1 / 0)
    assert (len(_global_optimizer_post_hooks), len(_global_optimizer_pre_hooks)) == before
    with Clock(networks, total_steps=1):
        loop(networks, "DGDG")
    assert (len(_global_optimizer_post_hooks), len(_global_optimizer_pre_hooks)) == before
    assert not issubclass(Stopped, Exception)


def test_optimizers_of_other_modules_are_none_of_the_clocks():
    networks, other = pair(), nn.Linear(1, 1)
    strange = SGD(other.parameters(), 1.0)
    with Clock(networks) as clock:
        loop(networks, "DG" * 3, each=strange.step)
    assert (clock.steps, clock.foreign) == (3, 6)


def test_a_loop_that_trains_other_modules_only_is_told_so():
    networks, other = pair(), pair()
    with (
        pytest.raises(tombola.ConfigError, match=r"1004 optimizer steps, and none of the networks"),
        Clock(networks, total_steps=3),
    ):
        loop(other, itertools.cycle("DG"))


def test_a_network_that_never_learns_must_be_left_out_or_frozen(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 20)
    networks = pair()
    with (
        pytest.raises(tombola.ConfigError, match=r"none was of network discriminator; leave it"),
        Clock(networks, total_steps=3),
    ):
        loop(networks, itertools.repeat("G"))
    networks["discriminator"].requires_grad_(False)
    with Clock(networks, total_steps=3) as clock:
        loop(networks, itertools.repeat("G"))
    assert clock.steps == 3


def test_an_optimizer_made_anew_is_the_same_turn():
    networks = pair()
    with Clock(networks, total_steps=4) as clock:
        while True:
            loop(networks, "DG")
    assert clock.steps == 4


def test_one_optimizer_of_two_networks_and_two_of_one():
    networks = pair()
    both = [p for n in networks.values() for p in n.parameters()]
    with Clock(networks, rewind_steps=2) as clock:
        one = SGD(both, 1.0)
        for _ in range(3):
            one.step()
    assert (clock.steps, clock.turns) == (3, {"generator": 3, "discriminator": 3})
    net = {"net": nn.Linear(1, 1)}
    with Clock(net) as clock:
        optimizers = [SGD([net["net"].weight], 1.0), SGD([net["net"].bias], 1.0)]
        for _ in range(3):
            for optimizer in optimizers:
                optimizer.step()
    assert (clock.steps, clock.turns) == (3, {"net": 6})


class Nested(torch.optim.SGD):
    """Changes weights after the step of its base class, which torch tells of as well."""

    def step(self, closure=None):
        super().step(closure)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(10.0)


def test_a_step_within_a_step_is_one():
    net = {"net": nn.Linear(1, 1, bias=False)}
    nn.init.zeros_(net["net"].weight)
    optimizer = Nested(net["net"].parameters(), 1.0)
    with Clock(net, rewind_steps=2) as clock:
        for _ in range(3):
            net["net"].weight.grad = -torch.ones(1, 1)
            optimizer.step()
    assert clock.steps == 3
    assert clock.snapshot["net.weight"].item() == 22.0


class Plain:
    """An optimizer that torch knows nothing of."""

    def __init__(self, parameters):
        self.parameters = list(parameters)

    def step(self, by=1.0):
        with torch.no_grad():
            for parameter in self.parameters:
                parameter.add_(by)
        return by


def test_a_plain_object_is_counted_and_left_as_it_was():
    networks = pair()
    plain = {name: Plain(network.parameters()) for name, network in networks.items()}
    clock = Clock(networks, rewind_steps=2, optimizers=[plain["discriminator"]])
    with clock:
        assert clock.watch(plain["generator"]) is plain["generator"]
        for _ in range(3):
            assert plain["discriminator"].step(by=2.0) == 2.0
            plain["generator"].step()
    assert (clock.steps, clock.turns) == (3, {"generator": 3, "discriminator": 3})
    assert weights(clock.snapshot)[:2] == (2, 4)
    assert "step" not in vars(plain["generator"])
    with pytest.raises(tombola.ConfigError, match="a int without a step"):
        clock.watch(3)
    sgd = SGD(networks["generator"].parameters(), 1.0)
    assert clock.watch(sgd) is sgd
    assert "step" not in vars(sgd)


def test_a_loop_without_optimizers_says_when_a_network_was_updated():
    networks = pair()
    with Clock(networks, rewind_steps=2, total_steps=3) as clock:
        while True:
            for name in ("discriminator", "generator"):
                with torch.no_grad():
                    networks[name][0].weight.add_(1.0)
                clock.apply(name)
    assert (weights(clock.snapshot)[:2], weights(clock.final)[:2], clock.steps) == (
        (2, 2),
        (3, 3),
        3,
    )
    masks = {f"{name}.0.weight": torch.tensor([[False]]) for name in networks}
    with Clock(networks, masks=masks, total_steps=2) as clock:
        while True:
            with torch.no_grad():
                networks["generator"][0].weight.fill_(1.0)
            clock.apply()
            assert clock.leaks() == []
    assert clock.turns == {"generator": 2, "discriminator": 2}
    with pytest.raises(tombola.ConfigError, match="unknown network 'judge'"):
        clock.apply("judge")
    with pytest.raises(tombola.ConfigError, match="unknown network 'critic'"):
        Clock(networks, counted="critic")


def test_apply_beside_optimizers_holds_and_does_not_count():
    networks = pair()
    masks = {"generator.0.weight": torch.tensor([[False]])}
    with Clock(networks, masks=masks) as clock:

        def stir():
            with torch.no_grad():
                networks["generator"][0].weight.fill_(3.0)
            assert clock.leaks() == ["generator.0.weight"]
            clock.apply()
            assert clock.leaks() == []

        loop(networks, "DG" * 3, each=stir)
        with torch.no_grad():
            networks["generator"][0].weight.fill_(3.0)
    assert clock.steps == 3
    assert clock.leaks() == []  # what was changed after the last step is undone at the end


def test_the_step_that_runs_is_known_before_it_is_whole():
    networks, told = pair(), []
    with Clock(networks) as clock:
        loop(networks, "DDG" * 2, each=lambda: told.append((clock.running, clock.steps)))
    assert told == [(1, 0), (1, 0), (1, 0), (2, 1), (2, 1), (2, 2)]


def test_a_step_that_a_scaler_skipped_is_none():
    net = {"net": nn.Linear(1, 1, bias=False)}
    for fused in (True, False):
        optimizer = torch.optim.Adam(net["net"].parameters(), fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        with Clock(net) as clock:
            for value in (1.0, float("inf"), 1.0, 1.0, float("inf")):
                optimizer.zero_grad()
                scaler.scale(net["net"](torch.tensor([[value]])).sum()).backward()
                scaler.step(optimizer)
                scaler.update()
        assert clock.steps == 3


def test_networks_are_known_through_what_wraps_them():
    networks = pair()
    wrapped = {name: nn.DataParallel(network) for name, network in networks.items()}
    with Clock(wrapped, rewind_steps=1) as clock:
        loop(networks, "DG" * 2)
    assert clock.steps == 2
    assert weights(clock.snapshot) == (1, 1, 2)


def test_parameters_added_to_an_optimizer_are_seen():
    net = {"net": nn.Linear(1, 1), "more": nn.Linear(1, 1)}
    optimizer = SGD(net["net"].parameters(), 1.0)
    with Clock(net) as clock:
        optimizer.step()
        optimizer.add_param_group({"params": list(net["more"].parameters())})
        optimizer.step()
    assert clock.turns == {"net": 2, "more": 1}


def test_moments_of_dense_weights_are_masked_when_an_optimizer_is_met():
    net = {"net": nn.Linear(2, 1, bias=False)}
    optimizer = torch.optim.SGD(net["net"].parameters(), 0.1, momentum=0.9)
    net["net"].weight.grad = torch.ones(1, 2)
    optimizer.step()
    net["net"].weight.grad = None
    with Clock(net, masks={"net.weight": torch.tensor([[True, False]])}):
        optimizer.step()  # without a gradient nothing is updated
    (moments,) = optimizer.state.values()
    assert moments["momentum_buffer"].tolist() == [[1.0, 0.0]]


def test_networks_that_move_to_another_type_in_the_loop_are_held_there():
    net = {"net": nn.Linear(2, 1, bias=False)}
    with Clock(net, masks={"net.weight": torch.tensor([[True, False]])}) as clock:
        net["net"].bfloat16()
        optimizer = SGD(net["net"].parameters(), 1.0)
        for _ in range(3):
            net["net"].weight.grad = torch.ones(1, 2, dtype=torch.bfloat16)
            optimizer.step()
    assert [mask.dtype for mask in clock._hold._masks] == [torch.bfloat16]
    assert net["net"].weight[0, 1].item() == 0


def test_a_step_of_shared_parameters_is_one_of_each_network_that_has_them():
    shared = nn.Linear(2, 2)
    networks = {"first": nn.Sequential(shared), "second": nn.Sequential(shared, nn.ReLU())}
    optimizer = SGD(shared.parameters(), 1.0)
    with Clock(networks, total_steps=2) as clock:
        while True:
            optimizer.step()
    assert clock.turns == {"first": 2, "second": 2}

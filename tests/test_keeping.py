"""What an optimizer knows survives a checkpoint: of torch's and of a library's, each of them."""

from __future__ import annotations

import inspect
import random
import warnings

import pytest
import pytorch_optimizer
import torch
from torch import nn

from helpers import TinyAE, run, same, trainer
from tombola.errors import ConfigError
from tombola.plan.trial import try_optimizers, try_task
from tombola.sparsity.masks import prunable
from tombola.training.checkpoint import load_state, save_state
from tombola.training.keeping import Keeping, evaluation_weights

OPTIMIZERS = {
    f"torch {name}": kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.Optimizer)
    and kind is not torch.optim.Optimizer
} | {
    name: pytorch_optimizer.load_optimizer(name)
    for name in pytorch_optimizer.get_supported_optimizers()
}
FLAT = "only 2D parameters"
NETWORKS = "which needs the network itself, not its parameters"
CLOSURE = "which needs a closure"
CURVED = "which needs a graph of the gradients"
KEEPS = "which keeps an object of its own"
REFUSED = {
    "torch LBFGS": CLOSURE, "lbfgs": CLOSURE, "alig": CLOSURE, "adahessian": CURVED,
    "sophiah": CURVED, "lomo": NETWORKS, "adalomo": NETWORKS, "adammini": NETWORKS,
    "bsam": "which needs the number of images", "demo": "which needs einops",
    "torch SparseAdam": "of sparse gradients", "conda": KEEPS, "scalableshampoo": KEEPS,
    "lorarite": KEEPS, "spam": KEEPS, "distributedmuon": "which needs several processes",
}  # fmt: skip
MUONS = {"adago", "adamuon", "distributedmuon", "muon", "muonclip", "normuon"}


class Small(TinyAE):
    """The tiny autoencoder, smaller still, with any optimizer."""

    kind = torch.optim.Adam
    _bias = True

    def networks(self, shape):
        del shape
        first, last = nn.Linear(64, 4, bias=self._bias), nn.Linear(4, 64, bias=self._bias)
        return {
            "encoder": nn.Sequential(nn.Flatten(), first, nn.ReLU()),
            "decoder": nn.Sequential(last, nn.Tanh(), nn.Unflatten(1, (1, 8, 8))),
        }

    def optimizer(self, turn, parameters):
        del turn
        kind, parameters = type(self).kind, list(parameters)
        takes = inspect.signature(kind).parameters
        own = {"lr": 1e-2, "num_iterations": 100}
        if kind.__name__.lower() in MUONS:
            parameters = [
                {"params": [p for p in parameters if (p.dim() == 2) == flat], "use_muon": flat}
                for flat in (True, False)
            ]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(parameters, **{key: own[key] for key in own if key in takes})


def task_with(kind, bias=True):
    """A task with an optimizer of a kind."""
    return type("Own", (Small,), {"kind": kind, "_bias": bias})()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_bit_for_bit_or_is_refused_before_the_first_step(name, tmp_path):
    task = task_with(OPTIMIZERS[name], bias=name not in ("torch Muon", "spectralsphere"))
    if name in REFUSED:
        with pytest.raises(ConfigError, match="optimizer"):
            try_task(task, (1, 8, 8))
        return
    try_optimizers(task, task.networks((1, 8, 8)), (1, 8, 8))
    path = tmp_path / "s.safetensors"
    whole = run(trainer(task), random.Random(name).randint(1, 5))
    save_state(path, whole)
    cut_off = trainer(task)
    cut_off.resume(*load_state(path))
    assert same(cut_off.state()[0], whole.state()[0])
    assert cut_off.state()[1]["scalars"] == whole.state()[1]["scalars"]
    assert same(run(whole, 6).judged_weights(), run(cut_off, 6).judged_weights())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torch LBFGS", r"Own\.optimizer failed: TypeError: .*closure"),
        ("alig", r"Own\.optimizer failed: NoClosureError"),
        ("conda", r"optimizer Conda of turn 'all' keeps all\.0\.projector, a GaLoreProjector"),
        ("spam", r"optimizer SPAM of turn 'all' keeps all\.warmup, a CosineDecay, which cannot be"),
    ],
)
def test_a_task_whose_optimizer_cannot_go_on_is_refused_when_it_is_tried(name, words):
    with pytest.raises(ConfigError, match=words):
        try_task(task_with(OPTIMIZERS[name]), (1, 8, 8))


class Grows(torch.optim.SGD):
    """A counter in the group, by which it sets its learning rate; attributes of many kinds."""

    def __init__(self, parameters, lr=0.01):
        super().__init__(parameters, lr=lr)
        self.seen, self.noise = [], torch.Generator().manual_seed(3)

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["lr"] = (
                0.01 * group["k"] ** 0.5 * (1 + float(torch.rand((), generator=self.noise)))
            )
            self.seen.append((torch.tensor(float(group["k"])), {"best": -float("inf")}))
        return super().step(closure)


@pytest.mark.parametrize("fall", [False, True])
def test_counters_rates_and_attributes_of_ones_own_survive(fall, tmp_path):
    task = task_with(Grows)
    if fall:
        type(task).schedule = lambda self, step, total: 1.0 if step < 4 else 0.5
    path = tmp_path / "s.safetensors"
    whole = run(trainer(task), 7)
    save_state(path, whole)
    cut_off = trainer(task)
    cut_off.resume(*load_state(path))
    own = cut_off.optimizers["all"]
    assert own.param_groups[0]["k"] == 7
    assert own.param_groups[0]["lr"] == whole.optimizers["all"].param_groups[0]["lr"]
    assert own.seen[-1] == (torch.tensor(7.0), {"best": -float("inf")})
    assert same(run(whole, 12).judged_weights(), run(cut_off, 12).judged_weights())


def test_a_state_of_adam_has_what_it_had_and_rates_are_no_part_of_it():
    task = task_with(torch.optim.Adam)
    type(task).schedule = lambda self, step, total: 1 - step / total
    tensors, manifest = run(trainer(task), 3).state()
    kept = {name for name in tensors if not name.startswith("network.")}
    keys = ("step", "exp_avg", "exp_avg_sq")
    assert kept == {f"optimizer.all.{n}.{key}" for n in range(4) for key in keys}
    assert manifest["scalars"] == {}


def test_state_of_tensors_that_it_does_not_train_is_refused():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
    kept = Keeping("all", optimizer)
    optimizer.state[torch.ones(2)] = {"step": 1}
    with pytest.raises(ConfigError, match="SGD of turn 'all' keeps state of a tensor"):
        kept.state()


# --- other weights for evaluation ----------------------------------------------------------------

FREE = pytorch_optimizer.ScheduleFreeAdamW


def test_judged_are_the_evaluation_weights_and_judging_changes_no_bit():
    task = task_with(FREE)
    judged, plain = trainer(task), trainer(task)
    for step in range(8):
        run(judged, step + 1).judged_weights()
    assert same(judged.state()[0], run(plain, 8).state()[0])
    ys = {name.removeprefix("network."): t for name, t in plain.state()[0].items()}
    xs = plain.judged_weights()
    optimizer = plain.optimizers["all"]
    beta = optimizer.param_groups[0]["betas"][0]
    leaf = plain.networks["decoder"][0].weight
    x = (leaf - (1 - beta) * optimizer.state[leaf]["z"]) / beta
    torch.testing.assert_close(xs["decoder.0.weight"], x.detach(), rtol=1e-4, atol=1e-6)
    assert not torch.equal(xs["decoder.0.weight"], ys["decoder.0.weight"])


def test_evaluation_weights_of_optimizers_that_have_none_are_the_networks_own():
    leaf = nn.Parameter(torch.ones(2))
    with evaluation_weights([torch.optim.Adam([leaf])]):
        assert leaf.tolist() == [1.0, 1.0]


class Mean(torch.optim.Optimizer):
    """Follows the mean of all gradients: what it does to a weight hangs on the others."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        leaves = self.param_groups[0]["params"]
        mean = torch.cat([leaf.grad.flatten() for leaf in leaves]).mean()
        for leaf in leaves:
            leaf.sub_(0.1 * mean)


def test_an_optimizer_that_looks_at_all_gradients_sees_none_of_pruned_weights():
    task = task_with(Mean, bias=False)
    whole = trainer(task)
    masks = {name: torch.rand(leaf.shape) < 0.5 for name, leaf in prunable(whole.networks).items()}
    masked = trainer(task, masks=masks)
    masked.advance()
    for name, leaf in prunable(masked.networks).items():
        assert not leaf.grad[~masks[name]].any()
        assert bool(leaf.grad[masks[name]].any())

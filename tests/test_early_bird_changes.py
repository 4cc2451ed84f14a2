"""Early-bird searches that grow, that fail, or that are of networks out of the ordinary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tombola
from helpers import WideGAN
from test_early_bird import FIRST, FOUND, LATE, SECOND, costs, find, records
from tombola.cli import command_line as cli
from tombola.config.runtime import Runtime
from tombola.config.sections import build
from tombola.data.batches import Batches
from tombola.engine import early_bird
from tombola.engine.earlier import watched_groups
from tombola.errors import ConfigError, DivergedError
from tombola.metrics.verdict.evidence import larger_than_cut
from tombola.plan.thin import forward_macs, thin_plan
from tombola.plan.trial import between, thinner
from tombola.sparsity.compact import Channels
from tombola.store.tables import CostRow, read_costs
from tombola.training.scoring import inputs_of
from tombola.training.trainer import Settings, Trainer
from toy_task import Grouped, Loud

HERE = Path(__file__).parent
LOUD = f"{HERE / 'toy_task.py'}:Loud"


def hashes(out, kind):
    return {
        p.parent.name
        for p in (out / "store").glob("*/run.json")
        if json.loads(p.read_text())["kind"] == kind
    }


def test_shares_that_are_added_are_sought_apart_and_nothing_is_trained_again(tmp_path, monkeypatch):
    out, asked = tmp_path / "out", {"controls": "none", "set_prune": {"delta": 0.9}}
    find(out, monkeypatch, compress="0.6", **asked)
    first = {kind: hashes(out, kind) for kind in ("watch", "cut", "train", "overlap")}
    find(out, monkeypatch, compress="0.3,0.6,0.5", **asked)
    for kind, before in first.items():
        assert before <= hashes(out, kind)
    assert sorted(w["config"]["compress"] for w in records(out, "watch")) == [
        ["0.3", "0.5"],
        ["0.6"],
    ]
    told = json.loads((out / "config.json").read_text())["resolved"]["watched"]
    assert told == [["0.6"], ["0.3", "0.5"]]
    again = find(out, monkeypatch, compress="0.5,0.3,0.6", **asked)
    assert again.summary["runs"]["trained"] == 0
    assert len(records(out, "watch")) == 2
    together = find(tmp_path / "together", monkeypatch, compress="0.3,0.6,0.5", **asked)
    order = sorted((out / "results.csv").read_text().splitlines())
    assert order == sorted((together.out / "results.csv").read_text().splitlines())


def test_a_folder_without_early_bird_takes_its_options_with_it(tmp_path, monkeypatch):
    out, asked = tmp_path / "out", {"controls": "none", "rounds": 1, "rate": "0.5"}
    find(out, monkeypatch, method="imp", **asked)
    added = find(out, monkeypatch, method="imp,early-bird", compress="0.6", **asked)
    assert {row.arm for row in added.rows} == {"dense", "ticket", "compact"}
    with pytest.raises(ConfigError, match=r"prune\.delta 0\.9 -> 0\.8"):
        find(
            out,
            monkeypatch,
            method="imp,early-bird",
            compress="0.6",
            set_prune={"delta": 0.8},
            **asked,
        )


def test_folders_of_an_older_version_keep_their_one_training():
    config = build({"search": {"method": "early-bird"}, "prune": {"compress": "0.8,0.2,0.5"}})
    told = {"config": {"search": {"method": ["early-bird"]}, "prune": {"compress": ["0.2", "0.8"]}}}
    assert watched_groups(config, None) == (("0.8", "0.2", "0.5"),)
    assert watched_groups(config, {**told, "resolved": {}}) == (("0.2", "0.8"), ("0.5",))
    assert watched_groups(build({}), {**told, "resolved": {}}) == ()


def test_a_share_given_twice_in_other_digits_is_refused():
    with pytest.raises(ConfigError, match=r"compress got 0\.5,0\.50; give each value once"):
        build({"prune": {"compress": "0.5,0.50"}})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--compress", "0.5,0.99"], "compress 0.99 keeps 5 of 464 channels"),
        (["--set", "prune.floor=80"], "a floor of 80"),
        (["--set", "prune.delta=0"], "prune.delta got 0.0; it takes a finite number above 0 to 1"),
        (["--prune", "generator", "--compress", "0.99"], "keeps 2 of 240 channels"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_cannot_be_cut_is_refused_before_anything_is_trained(
    tmp_path, monkeypatch, capsys, options, words, dry
):
    monkeypatch.chdir(tmp_path)
    code = cli.main(["find", "dcgan", "--data", "digits", "--method", "early-bird", *options, *dry])
    assert code == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.rglob("run.json"))


def test_a_search_that_diverges_is_a_diverged_ticket_and_spares_what_was_found(
    tmp_path, monkeypatch
):
    check = early_bird._check

    def failing(trainer, channels):
        check(trainer, channels)
        if trainer.step == SECOND:
            raise DivergedError(trainer.step, "the score of a channel of x", float("nan"))

    monkeypatch.setattr(early_bird, "_check", failing)
    controls = {"controls": "random-channels,thin-parameters"}
    result = find(tmp_path / "out", monkeypatch, **{**LATE, **controls})
    (watch,) = records(result.out, "watch")
    assert (watch["diverged"], {c["step"] for c in watch["cuts"].values()}) == (SECOND, {FIRST})
    (found,) = watch["cuts"]
    (lost,) = {"0.3", "0.6"} - {found}
    events = {
        (r.arm, r.compress): (r.metric, r.step)
        for r in result.rows
        if "ed" in r.metric[-3:] or r.metric == "not-run"
    }
    assert events[("compact", float(lost))] == ("diverged", SECOND)
    assert events[("random-channels", float(lost))] == ("not-run", None)
    assert not [key for key in events if key[1] == float(found)]
    assert result.summary["runs"]["diverged"] == 1
    paid = costs(result.out)
    assert ("compact", float(found)) in paid
    assert ("compact", float(lost)) not in paid


def test_a_score_that_is_no_number_is_divergence():
    task = WideGAN()
    networks = task.networks((1, 8, 8))
    images = torch.zeros(16, 1, 8, 8, dtype=torch.uint8)
    settings = Settings(runtime=Runtime(device=torch.device("cpu")), seed=0, total_steps=4)
    trainer = Trainer(task, networks, Batches(images, 8, 0), settings)
    channels = Channels.of(networks, inputs_of(task, networks, (1, 8, 8)), ["all"])
    early_bird._check(trainer, channels)
    with torch.no_grad():
        networks["generator"][2].weight[3] = float("inf")
    with pytest.raises(DivergedError, match=r"score of a channel of generator\.2 is inf at step 0"):
        early_bird._check(trainer, channels)
    trainer._pending.append((7, "generator", torch.tensor(float("nan"))))
    with pytest.raises(DivergedError, match="the loss of turn generator is nan at step 7"):
        early_bird._check(trainer, channels)


class Apart(WideGAN):
    """Weights that decay and parameters that do not, as optimizers are often made."""

    def optimizer(self, turn, parameters):
        decays = [p for p in parameters if p.dim() > 1]
        others = [p for p in parameters if p.dim() <= 1]
        groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.Adam(groups, lr=1e-3)


def test_moments_belong_to_the_parameter_that_the_optimizer_means():
    task = Apart()
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    settings = Settings(runtime=Runtime(device=torch.device("cpu")), seed=0, total_steps=4)
    trainer = Trainer(task, task.networks((1, 8, 8)), Batches(images, 8, 0), settings)
    trainer.advance()
    assert trainer.moments_of()["generator"][:3] == [
        "generator.1.weight",
        "generator.4.weight",
        "generator.7.weight",
    ]
    shapes = {
        f"{n}.{k}": p.shape
        for n, net in trainer.networks.items()
        for k, p in net.named_parameters()
    }
    tensors, manifest = trainer.state()
    for turn, names in trainer.moments_of().items():
        for index, name in enumerate(names):
            assert tensors[f"optimizer.{turn}.{index}.exp_avg"].shape == shapes[name]
    other = Trainer(task, task.networks((1, 8, 8)), Batches(images, 8, 0), settings)
    kept = {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    other.resume(kept, manifest)
    for optimizer in other.optimizers.values():
        for parameter, state in optimizer.state.items():
            assert state["exp_avg"].stride() == parameter.stride()
    for each in (trainer, other):
        each.advance()
    for key, value in trainer.state()[0].items():
        assert torch.equal(value, other.state()[0][key]), key


def test_the_width_nearest_to_the_middle_that_can_be_made():
    def odd(width):
        return 10 * width if width % 8 == 0 else None

    assert between(odd, 8, 40) == (24, 240)
    assert between(odd, 8, 30) == (16, 160)
    assert between(odd, 8, 16) is None


def test_widths_that_a_task_does_not_take_are_passed_over():
    task, shape = Grouped(), (1, 8, 8)
    networks = task.networks(shape)
    whole = sum(p.numel() for n in networks.values() for p in n.parameters())
    found = thinner(task, shape, whole // 2)
    assert found.options["width"] == 16
    assert found.parameters <= whole // 2
    inputs = inputs_of(task, networks, shape)
    wanted = {name: forward_macs(n, inputs[name]) // 2 for name, n in networks.items()}
    assert {part["width"] for part in thin_plan(task, shape, wanted).values()} <= {8, 16, 24}


@pytest.mark.parametrize("arm", ["thin-flops", "thin-parameters"])
def test_thin_networks_are_judged_and_handed_out_as_they_were_trained(tmp_path, monkeypatch, arm):
    """What a width decides besides the sizes of tensors is not that of the dense network."""
    settings = {
        "prune": {"delta": 0.9},
        "judge": {"samples": 100, "validation_samples": 20},
        "run": {"keep": "all"},
    }
    judged = set()
    sample = Loud.sample

    def noting(self, networks, latents):
        judged.add((len(latents), networks["generator"][-2].factor))
        return sample(self, networks, latents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helpers.WideGAN.sample", noting, raising=False)
        asked = {"task": LOUD, "compress": "0.6", "controls": arm, "settings": settings}
        result = find(tmp_path / "out", monkeypatch, **asked)
    (path,) = (result.out / "models").rglob(f"{arm}-*.safetensors")
    opened = tombola.load_model(path, task=LOUD)["generator"]
    (thin,) = records(result.out, "thin")
    own = thin["options"] if "options" in thin else thin["plan"]["generator"]
    assert own["width"] < 8
    assert opened[-2].factor == 1 / own["width"]
    for images in (100, 20):
        assert {factor for n, factor in judged if n == images} == {1 / 8, 1 / own["width"]}


def test_a_width_that_a_file_cannot_mean_is_refused(tmp_path, monkeypatch):
    from tombola.engine.models import _narrowed

    assert _narrowed(WideGAN(), 3).width == 3
    for width in (0, 9, "3", 2.0, None):
        with pytest.raises(ValueError, match="widths_by_network"):
            _narrowed(WideGAN(), width)


def paid(arm, parameters, compress=0.8):
    return CostRow(
        task="t", data="d", method="early-bird", arm=arm, networks="all", rewind_steps=None,
        precision="fp32", compress=compress, seed=0, round=1, sparsity=0.99, sparsity_all=0.99,
        parameters=parameters,
    )  # fmt: skip


def test_a_thin_network_of_more_parameters_than_the_ticket_is_told() -> None:
    rows = [paid("compact", 5000), paid("thin-parameters", 4000)]
    assert larger_than_cut(rows) == {}
    other = [paid("compact", 2000, compress=0.5), paid("thin-parameters", 16000, compress=0.5)]
    assert larger_than_cut([*rows, *other]) == {"early-bird/all/r0/fp32": 20000 / 7000}


def test_the_first_seed_s_search_diverges_and_the_level_keeps_its_sparsity(tmp_path, monkeypatch):
    check = early_bird._check

    def failing(trainer, channels):
        check(trainer, channels)
        if trainer.settings.seed == 0:
            raise DivergedError(trainer.step, "the score of a channel of x", float("nan"))

    monkeypatch.setattr(early_bird, "_check", failing)
    asked = {"compress": "0.6", "seeds": 2, "controls": "none"}
    result = find(tmp_path / "out", monkeypatch, **asked)
    cut = next(r for r in records(result.out, "cut") if "sparsity" in r)
    assert {row.sparsity for row in result.rows if row.arm == "compact"} == {cut["sparsity"]}
    (found,) = result.summary["arms"].values()
    assert {level["sparsity"] for v in found.values() for level in v["levels"]} == {cut["sparsity"]}


def test_what_has_no_row_of_its_own_is_paid_for_too(tmp_path, monkeypatch):
    asked = {"compress": "0.6", "controls": "none", "rounds": 2, "rate": "0.5"}
    result = find(tmp_path / "out", monkeypatch, method="imp,early-bird,snip", **asked)
    rows = read_costs(result.out / "costs.csv")
    # The dense training stands in each of the three arms.
    own = sum(r.train_flops for r in rows if r.arm != "dense") + next(
        r.train_flops for r in rows if r.arm == "dense"
    )
    (watch,) = records(result.out, "watch")
    (scores,) = records(result.out, "scores")
    searched = 2 * FOUND * watch["step_macs"] + 2 * scores["macs"]
    assert result.summary["cost"]["train_flops"] == own + searched
    # Each arm's own last level counts as its sparsest.
    labels = set(result.summary["convergence"])
    assert {label.rpartition("/")[2] for label in labels} == {
        "dense-round00",
        "ticket-round02",
        "compact-round01",
    }

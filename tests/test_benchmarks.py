"""Do the benchmarks run, and do their two sides do the same work? At toy size; no times here."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch

import in_process

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks"
sys.path.insert(0, str(FOLDER))

import bench_attach  # noqa: E402
import bench_batches  # noqa: E402
import bench_frechet  # noqa: E402
import bench_judging  # noqa: E402
import bench_masks  # noqa: E402
import bench_select  # noqa: E402
import bench_start  # noqa: E402
import bench_steps  # noqa: E402
import bench_workers  # noqa: E402
import measure  # noqa: E402
import run as entry  # noqa: E402
import settings  # noqa: E402
import stepper  # noqa: E402
from measure import Comparison, Row, Section, Spread, Timing  # noqa: E402
from paper_loop import PaperLoop, StateDictMask  # noqa: E402
from tombola.data.batches import normalise  # noqa: E402
from tombola.data.sources import load_images  # noqa: E402
from tombola.sparsity.hold import Hold  # noqa: E402
from tombola.sparsity.select import top  # noqa: E402
from tombola.training.trainer import Trainer  # noqa: E402


class InProcess:
    """What a benchmark's child does, without the process."""

    def __init__(self, setting):
        if "task" in setting:
            # One thread whatever is asked: a second one only waits for the first at this size.
            self.step = stepper.stepper({**setting, "threads": 1})
        elif "judging" in setting:
            judgement = bench_judging.Judgement(setting["preset"], setting["size"])
            self.step = getattr(judgement, setting["judging"])
        elif "own loop" in setting:
            in_process.end_script(1)  # one process can be attached once
            self.step = bench_attach.Loop(setting).step
        else:
            features = bench_frechet.Features(setting["size"])
            self.step = features.ours if setting["side"] == "ours" else features.by_sqrtm
        self.taken = 0

    def ask(self, steps):
        self.asked = steps

    def answer(self):
        return self.run(self.asked)

    def run(self, steps):
        self.step()
        self.taken += steps
        return Timing(2.0 * steps, 1.0 * steps)

    def close(self):
        in_process.end_script(1)


@pytest.fixture
def no_processes(monkeypatch):
    """Children live in this process; returns the list of (script, setting, environment)."""
    asked = []

    def child(script, setting, environment):
        asked.append((script, dict(setting), dict(environment)))
        made = InProcess(json.loads(json.dumps(setting)))
        made.answer_of_start = made.answer
        made.answer = lambda: setattr(made, "answer", made.answer_of_start)
        return made

    monkeypatch.setattr(measure, "Child", child)
    return asked


@pytest.mark.parametrize("name", [n for n in entry.BENCHMARKS if n != "start"])
def test_benchmark_runs_at_toy_size(name, no_processes, monkeypatch, capsys):
    monkeypatch.setattr(bench_steps, "STEPS", {"linear-ae": 1, "dcgan": 1})
    entry.main([name, "--size", "toy", "--blocks", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0] == "| " + " | ".join(entry.HEADER) + " |"
    assert len(lines) >= 3
    assert all(line.count("|") == len(entry.HEADER) + 1 for line in lines)
    # Every benchmark has a target, and says of each whether it is met.
    assert any(re.search(r"[<>]= .* \| (yes|NO) \|$", line) for line in lines)


def test_start_answers_without_torch(capsys):
    assert entry.main(["start", "--size", "toy", "--blocks", "1"]) in (0, 1)
    assert "import tombola" in capsys.readouterr().out


def test_a_program_that_fails_is_no_result():
    with pytest.raises(Exception, match="non-zero exit status 1"):
        bench_start.command("-c", "import sys; sys.exit(True)")


# The way of measuring.


def test_ours_and_the_baseline_run_in_turns_and_each_second_block_backwards():
    order = []

    def side(name):
        return lambda: order.append(name) or Timing(1.0, 1.0)

    measure.compare(side("A"), side("B"), 2, side("A'"))
    assert order == ["A", "B", "A'", "A'", "B", "A"]


def test_ratio_and_chance_are_medians_over_blocks():
    found = Comparison(
        ours=[Timing(1, 2), Timing(2, 2), Timing(3, 2)],
        again=[Timing(1, 4), Timing(4, 4), Timing(9, 4)],
        baseline=[Timing(4, 6), Timing(4, 6), Timing(4, 6)],
    )
    assert found.ratio() == Spread(0.5, 0.75, 1.125)
    assert found.ratio("cpu") == Spread(0.5, 0.5, 0.5)
    assert found.chance() == Spread(1.5, 2.0, 2.5)
    assert found.seconds() == (2.5, 4.0)


@pytest.mark.parametrize(
    ("value", "options", "met"),
    [
        (0.3, {"target": 0.3}, True),
        (0.31, {"target": 0.3}, False),
        (25.0, {"target": 25.0, "at_least": True}, True),
        (24.0, {"target": 25.0, "at_least": True}, False),
        (1.0, {"target": None}, None),
        (9.0, {"target": None, "verdict": True}, True),
    ],
)
def test_a_row_says_whether_its_target_is_met(value, options, met):
    row = Row(label="x", value=Spread(value, value, value), **options)
    assert row.met is met
    assert row.cells()[-1] == {True: "yes", False: "NO", None: ""}[met]


def test_timed_warms_up_once_and_then_repeats():
    calls = []
    side = measure.timed(lambda: calls.append(1), 3)
    assert len(calls) == 1
    assert side().wall >= 0
    assert len(calls) == 4


def test_a_child_answers_each_line_with_its_time(monkeypatch, capsys):
    steps = []
    monkeypatch.setattr(sys, "stdin", io.StringIO("2\n5\n"))
    measure.serve(lambda: steps.append(1), warm_up=1)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 3
    assert lines[0] == {"wall": 0.0, "cpu": 0.0}
    assert len(steps) == 8


def test_a_child_is_a_process_that_ends_with_its_pipe():
    setting = {"side": "ours", "size": "toy"}
    with measure.children("bench_frechet.py", (setting, measure.threads(1))) as (child,):
        assert child.run(2).wall > 0
        process = child._process
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.0, "2 s"), (0.25, "250 ms"), (3e-5, "30 us"), (2e-8, "20 ns")]
)
def test_durations_have_the_unit_that_suits_them(seconds, text):
    assert measure.duration(seconds) == text


# What is kept.


def test_a_section_measured_again_replaces_its_last_one(tmp_path):
    path = tmp_path / "kept" / "x.md"
    for title, text in (("One", "a"), ("Two", "b"), ("One", "c")):
        entry.keep(path, title, f"## {title}\n\n{text}\n")
    kept = path.read_text()
    assert kept.startswith("# Measured on ")
    assert re.findall(r"^## (\w+)\n\n(\w)$", kept, re.MULTILINE) == [("One", "c"), ("Two", "b")]


def test_a_missed_target_is_exit_code_1(monkeypatch, capsys):
    rows = [Row(label="slow", value=Spread(2, 2, 2), target=1.0)]
    section = Section(title="T", rows=rows, notes=["why"])
    monkeypatch.setattr(bench_frechet, "measured", lambda size, blocks: section)
    assert entry.main(["frechet"]) == 1
    assert "| slow | 2 [2, 2] |  |  |  |  | <= 1 | NO |" in capsys.readouterr().out


def test_an_unknown_name_is_refused(capsys):
    with pytest.raises(SystemExit) as stop:
        entry.main(["no-such"])
    assert stop.value.code == 2
    assert "no benchmark 'no-such'; there are: masks, " in capsys.readouterr().err


def test_kept_results_name_their_command_and_machine():
    titles = set()
    kept = (FOLDER / "results").glob("*.md")
    for path in (p for p in kept if not p.stem.endswith("rule-null")):  # a study, run alone
        head, *sections = re.split(r"^## ", path.read_text(), flags=re.MULTILINE)
        assert head.startswith("# Measured on ")
        assert "torch 2." in head
        for section in sections:
            stamp = r"`python benchmarks/run.py .*`, 20\d\d-\d\d-\d\d \d\d:\d\d UTC"
            assert re.search(stamp, section)
            assert "| --- |" in section
            titles.add(section.partition("\n")[0])
    assert len(titles) == len(entry.BENCHMARKS)  # a result is kept of each


# The two sides do the same work.


def paper(name: str, count: int = 64):
    made = settings.task(name, "toy")
    built = settings.networks(made, name)
    masks = settings.masks(built)
    images = normalise(settings.images(name, count))
    return PaperLoop(made, built, images, masks), masks


@pytest.mark.parametrize("name", ["linear-ae", "dcgan"])
def test_the_papers_loop_learns_and_holds_its_masks(name):
    loop, masks = paper(name)
    before = {k: v.clone() for k, v in loop.mask.model.state_dict().items()}
    for _ in range(3):
        losses = loop.step()
    after = loop.mask.model.state_dict()
    assert all(loss > 0 for loss in losses.values())
    for key, mask in masks.items():
        assert not after[key][~mask].any()
        assert not mask.any() or not torch.equal(after[key][mask], before[key][mask])
    assert loop.mask.masks.keys() == after.keys()
    assert {mask.dtype for mask in loop.mask.masks.values()} == {torch.int64}


def test_the_papers_discriminator_loss_goes_back_through_the_generator():
    loop, _ = paper("dcgan")
    fakes = loop._fakes(4)
    loop._update("discriminator", loop._judge(fakes).mean())
    assert all(p.grad is not None for p in loop.networks["generator"].parameters())


def test_the_papers_optimizers_are_the_default_ones():
    for name, turns in (("linear-ae", {"all"}), ("dcgan", {"generator", "discriminator"})):
        loop, _ = paper(name)
        assert loop.optimizers.keys() == turns
        for optimizer in loop.optimizers.values():
            assert type(optimizer) is torch.optim.Adam
            assert not optimizer.defaults["fused"]
            assert not optimizer.defaults["foreach"]
            assert optimizer.defaults["betas"] == (0.9, 0.999)


def test_the_papers_batches_are_shuffled_for_autoencoders_only():
    loop, _ = paper("linear-ae", 16)
    size = loop.task.batch_size
    first = torch.cat([loop._batch(shuffled=False) for _ in range(16 // size)])
    assert torch.equal(first, loop.images)
    mixed = torch.cat([loop._batch(shuffled=True) for _ in range(16 // size)])
    assert not torch.equal(mixed, loop.images)
    assert torch.equal(mixed.flatten(1).sum(1).sort()[0], loop.images.flatten(1).sum(1).sort()[0])


@pytest.mark.parametrize(
    ("side", "kind"), [("ours", Trainer), ("dense", Trainer), ("paper", PaperLoop)]
)
def test_a_side_is_what_it_says(side, kind):
    setting = {"task": "linear-ae", "side": side, "size": "toy", "precision": "fp32", "threads": 1}
    step = stepper.stepper(setting)
    step()
    assert type(step.__self__) is kind
    if kind is Trainer:
        assert (step.__self__.hold is not None) is (side == "ours")


def test_ours_has_the_workers_allocator_and_the_baseline_only_where_said(no_processes):
    for case in (bench_steps.LINEAR[0], bench_steps.LINEAR[2]):
        bench_steps.compared(case, "toy", 1)
    surroundings = ["MALLOC_TRIM_THRESHOLD_" in env for _, _, env in no_processes]
    assert surroundings == [True, False, True, True, True, True]
    assert [setting["side"] for _, setting, _ in no_processes] == ["ours", "paper", "ours"] * 2


def test_bf16_is_ours_alone(no_processes):
    bench_steps.compared(bench_steps.GAN[1], "toy", 1)
    assert [setting["precision"] for _, setting, _ in no_processes] == ["bf16", "fp32", "bf16"]


def test_two_workers_do_as_many_steps_as_one(no_processes, monkeypatch):
    made = []
    child = measure.Child
    monkeypatch.setattr(measure, "Child", lambda *a: made.append(child(*a)) or made[-1])
    bench_workers.measured("toy", 1)
    narrow, also, wide = (each.taken for each in made)
    assert narrow == also
    assert narrow + also == 2 * wide  # ours runs twice
    assert [env["OMP_NUM_THREADS"] for _, _, env in no_processes] == ["1", "1", "2"]


def test_the_three_ways_hold_the_same_mask():
    made = settings.task("linear-ae", "toy")
    held, hooked, walked = (settings.networks(made, "linear-ae") for _ in range(3))
    masks = settings.masks(held)
    Hold(held, masks).apply()
    hooks = bench_masks.PruneHooks(hooked, masks)
    hooks.apply()
    hooks.apply()  # gradients must not add up from one pass to the next
    walk = StateDictMask(walked, masks)
    walk.apply()
    assert {mask.dtype for mask in walk.masks.values()} == {torch.int64}
    assert len(hooks.modules) == len(masks)
    for (name, mask), module, gradient in zip(
        masks.items(), hooks.modules, hooks.gradients, strict=True
    ):
        ours = walk.model.state_dict()[name]
        assert torch.equal(module.weight, ours)
        assert torch.equal(held[name.split(".")[0]].get_parameter(name.partition(".")[2]), ours)
        assert torch.equal(module.weight_orig.grad, gradient * mask)


def test_kthvalue_is_the_threshold_of_our_mask():
    scores = {"a": torch.rand(30, 7), "b": torch.rand(11)}
    flat = torch.cat([value.flatten() for value in scores.values()])
    kept = top(scores, 50)
    least = min(float(scores[name][mask].min()) for name, mask in kept.items())
    assert least == float(bench_select.threshold(flat, 50))


def test_both_frechet_routes_agree():
    features = bench_frechet.Features("toy")
    assert features.ours() == pytest.approx(features.by_sqrtm(), rel=1e-6)
    assert features.ours() > 0


def test_the_least_work_of_judging_finds_the_same_numbers():
    judgement = bench_judging.Judgement("quick", "toy")
    ours, least = judgement.ours(), judgement.least()
    assert len(least) == 2
    for metric, value in least.items():
        assert ours[metric] == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_both_kinds_of_batches_have_the_same_images(shape):
    images = load_images("digits", shape).splits["validation"][:5]
    decoded = torch.stack([bench_batches.PngImages(images)[index] for index in range(5)])
    torch.testing.assert_close(decoded, normalise(images))
    stream = bench_batches.Stream(images)
    assert stream.next().shape == (bench_batches.BATCH, *shape)
    assert stream.index == 1


def test_masks_of_the_benchmarks_cut_as_many_weights_as_the_paper():
    built = settings.networks(settings.task("linear-ae", "full"), "linear-ae")
    masks = settings.masks(built)
    kept, total = sum(int(m.sum()) for m in masks.values()), sum(m.numel() for m in masks.values())
    assert total == 218_696
    assert kept == 23_482  # floor(218696 * 0.8**10 + 1/2)

"""Does the report tell early-bird searches as they are: one curve, its costs, when it settled?"""

from __future__ import annotations

import base64
import html
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

import report_standin as standin
from tombola.metrics.verdict.decide import summarise
from tombola.report import channels, plots, settling
from tombola.report.costs import costs_of
from tombola.report.curves import Drawn, curves_of, key_of, label_of, level_of
from tombola.report.families import (
    families_of,
    forced_text,
    in_order,
    levels_at,
    merged,
    shown_name,
)
from tombola.report.judging import first_of
from tombola.report.page import write_report
from tombola.report.savings import Savings
from tombola.report.tables import headline, levels_of, stability_of, verdict_table
from tombola.report.techniques import techniques_csv, techniques_of, techniques_table
from tombola.store.tables import CostRow, Row, write_costs

EARLY = Drawn("early-bird", "all", None, "fp32", 0.5)
MORE = EARLY._replace(compress=0.8)
IMP = Drawn("imp", "all", 10, "fp32", None)
BOTH = EARLY._replace(compress=None)


def row(search: Drawn, arm: str, seed: int, value: float, **other: Any) -> Row:
    gone = 0.0 if arm == "dense" else (search.compress or 0.2)
    return Row(**{
        "task": "t", "data": "d", **search._asdict(), "arm": arm, "seed": seed,
        "round": 0 if arm == "dense" else 1, "sparsity": gone, "sparsity_all": gone / 2,
        "metric": "fid", "value": value, "n": 100, "step": 50,
    } | other)  # fmt: skip


def cost(search: Drawn, arm: str, seed: int, train: float, found: float, **more: Any) -> CostRow:
    key = row(search, arm, seed, 0, **more).as_dict()
    key = {name: key[name] for name in list(key)[:12]}
    return CostRow(**key, train_flops=train * 1e12, search_flops=found * 1e12,
                   train_seconds=10 * train, search_seconds=10 * found + seed,
                   parameters=1000, nonzero_parameters=400)  # fmt: skip


def judged(**by_arm: tuple[float, ...]) -> list[Row]:
    """Rows at compress 0.5 and 0.8: dense 1.0, and each arm's means at both."""
    rows = []
    for seed, noise in enumerate((0.0, 0.001, -0.001)):
        for place, search in enumerate((EARLY, MORE)):
            rows.append(row(search, "dense", seed, 1.0 + noise))
            rows += [row(search, arm.replace("_", "-"), seed, means[place] + noise * 1.5)
                     for arm, means in by_arm.items()]  # fmt: skip
    return rows


OPPONENTS = ("random-channels", "thin-flops", "thin-parameters")
WORSE = {"random_channels": (2.0, 2.0), "thin_flops": (2.0, 2.0), "thin_parameters": (2.0, 2.0)}


def summed(rows: list[Row]) -> dict[str, Any]:
    """As in the file: its searches are in order of their names."""
    summary = summarise(rows)
    found: dict[str, Any] = json.loads(json.dumps(summary, sort_keys=True))
    return found


def told(rows: list[Row]) -> Any:
    """The verdict over both compress values."""
    return summed(rows)["arms"][EARLY.name]["fid"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("channels")
    standin.write_channels(out, compress=(0.5, 0.95), precisions=("fp32", "bf16"), imp_rounds=2)
    write_report(out)
    return out


@pytest.fixture(scope="module")
def page(run: Path) -> str:
    return (run / "report.html").read_text()


def words_of(page: str) -> str:
    """What is read on a page, without its drawings."""
    bare = re.sub(r"<(svg|style|script).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", bare)).replace("\u00a0", " ").split())


def test_searches_that_differ_in_compress_alone_are_a_family() -> None:
    half = EARLY._replace(precision="bf16")
    families = families_of([MORE, IMP, EARLY, half])
    assert [family.key for family in families] == [BOTH, IMP, half]
    assert families[0].members == (EARLY, MORE)
    names = [family.folder(several_precisions=True) for family in families]
    assert names == ["early-bird-all-fp32", "imp-all-r10-fp32", "early-bird-all-c0.5-bf16"]
    assert families[0].folder(several_precisions=False) == "early-bird-all"
    keys = [family.key for family in families]
    assert [label_of(key, keys) for key in keys] == [
        "early-bird, fp32", "imp, fp32", "early-bird, bf16"]  # fmt: skip
    assert label_of(MORE, [EARLY, MORE]) == "compress 0.8"


def test_the_first_search_comes_first_and_its_like_after_it() -> None:
    half, early_half = IMP._replace(precision="bf16"), EARLY._replace(precision="bf16")
    assert in_order([early_half, EARLY, half, IMP], IMP) == [IMP, EARLY, half, early_half]
    assert in_order([early_half, EARLY], None) == [early_half, EARLY]
    arms = {"a": {"fid": {"state": "worse"}}, "b": {"fid": {"state": "wins"}}}
    assert first_of({"arms": arms, "verdicts": {"fid": {"state": "wins"}}}) == "b"
    assert first_of({}) is None


def test_a_family_is_one_curve_an_arm_in_order_of_compress() -> None:
    rows = [*judged(compact=(1.5, 2.5)), row(IMP, "ticket", 0, 7.0)]
    curves = curves_of([*reversed(rows)])["fid"]
    families = families_of(curve.search for curve in curves)
    found = {(curve.search, curve.arm): curve.points for curve in merged(curves, families)}
    assert set(found) == {(BOTH, "dense"), (BOTH, "compact"), (IMP, "dense"), (IMP, "ticket")}
    points = found[BOTH, "compact"]
    assert [(p.round, p.sparsity, round(p.mean, 6)) for p in points] == [(1, 0.5, 1.5),
                                                                         (2, 0.8, 2.5)]  # fmt: skip
    assert len(found[BOTH, "dense"]) == 1
    assert found[IMP, "ticket"] == next(c.points for c in curves if c.search == IMP
                                        and c.arm == "ticket")  # fmt: skip
    family = next(family for family in families if family.key == BOTH)
    assert levels_at(family, rows) == {1: 0.5, 2: 0.8}
    table = levels_of(merged(curves, families), BOTH, told(rows[:-1]), {1: "compress 0.5"})
    assert [cells[0] for cells in table.rows] == ["dense", "50.0%, compress 0.5", "80.0%"]
    assert [cells[-1] for cells in table.rows] == ["", "worse", "worse"]


def test_shares_are_levels_of_one_verdict() -> None:
    found = told(judged(compact=(1.01, 1.02), **WORSE))
    assert (found["state"], found["frontier"], found["at_least"]) == ("wins", 0.8, True)
    assert headline(summed(judged(compact=(1.01, 1.02), **WORSE))).startswith(
        "A ticket at 80.0% sparsity (compress 0.8), the sparsest level searched, wins on FID"
    )
    found = told(judged(compact=(1.01, 1.5), **WORSE))
    assert (found["frontier"], found["bracket"], found["at_least"]) == (0.5, [0.5, 0.8], False)
    assert found["sentence"].endswith("; at 80.0% it is worse than dense.")
    assert [level["round"] for level in found["levels"]] == [1, 2]
    found = told(
        judged(compact=(1.5, 1.01), **WORSE)
    )  # the sequence does not jump over a worse one
    assert (found["state"], found["bracket"]) == ("worse", [None, 0.5])


def test_the_headline_of_few_seeds_and_of_one_share() -> None:
    few = [r for r in judged(compact=(1.01, 1.02)) if r.seed < 2]
    assert headline(summed(few)).startswith("Not enough runs for a verdict on FID: 2 training")
    alone = [r for r in judged(compact=(1.01, 1.02), **WORSE) if r.compress == 0.5]
    assert headline(summed(alone)).startswith(
        "A ticket at 50.0% sparsity (compress 0.5), the sparsest"
    )


def test_the_terminal_names_searches_for_people_and_says_what_was_forced() -> None:
    assert shown_name(EARLY.name) == "early-bird/all/fp32"
    assert shown_name("imp/all/r10/fp32") == "imp/all/r10/fp32"
    rows = judged(compact=(1.01, 1.5), **WORSE)
    summary = summed(rows) | {"early_bird": standin.watches(rows, forced=0.8)}
    lines = verdict_table(summary).splitlines()
    assert "wins; cut forced at 0.8 in 1 of 3 seeds  50.0%" in lines[2]
    assert forced_text(summary, EARLY.name) == "cut forced at 0.8 in 1 of 3 seeds"
    assert forced_text(summary, EARLY._replace(networks="generator").name) == ""
    assert forced_text({}, EARLY.name) == ""
    table = stability_of({EARLY.name: {"dense": {"ratio": 1.0}}, "imp/x": {"dense": {}}}, "fid")
    assert table is not None
    assert [cells[0] for cells in table.rows] == ["early-bird/all/fp32: compact / dense",
                                                  "imp/x: ticket / dense"]  # fmt: skip


def watched(**more: Any) -> channels.Watched:
    rows = judged(compact=(1.0, 1.0))
    made = standin.watches(rows, forced=0.8)
    made["early-bird-all-c0.8"] |= more
    return channels.watched_in({"early_bird": made}, [IMP, EARLY, MORE])[1]


def test_the_table_of_cuts_has_a_row_a_seed() -> None:
    found = watched()
    table = channels.settled_table([found])
    assert table.columns[3:] == ("discriminator: channels kept", "kept at the end too",
                                 "generator: channels kept", "kept at the end too")  # fmt: skip
    plain = [tuple(cell.replace("\u00a0", " ") for cell in cells) for cells in table.rows]
    # kept = 90 of 448: the discriminator's one layer has as many and the seed, the generator's two
    # layers a half and a quarter
    assert plain[0] == ("0.8, seed 0", "600 of 7,500", "settled", "90 of 448", "84% (20%)",
                        "67 of 384", "75% (20%)")  # fmt: skip
    assert plain[2][:4] == ("0.8, seed 2", "3,750 of 7,500", "FORCED", "92 of 448")
    assert channels.kept_text(found) == (
        "cut at steps 600, 600, 3,750 (FORCED) of 7,500, 81.1% of the channels removed"
    )
    lost = replace(found, seeds=[replace(found.seeds[0], overlap={}, kept={"generator": (1, 2)})])
    cells = channels.settled_table([lost, found]).rows[0][3:]
    assert cells == ("-", "-", "1\u00a0of\u00a02", "-")


def test_words_say_the_rule_and_what_was_not_by_the_rule() -> None:
    first, pool, warning = channels.rule_words(watched())
    assert first.startswith(
        "Rule paper: a network has settled at the first draw whose mask differs"
    )
    assert "in less than 0.1 of its channels" in first
    # Without scales the discriminator competes with nobody, which leaves the generator alone.
    assert pool == "Each network ranks its own channels."
    assert "not that the order is worth anything" in warning
    first, pool, _ = channels.rule_words(watched(rule="corrected", settle="apart", delta=0.25))
    assert "by less than 0.25 of what two random masks of as many channels would show" in first
    assert pool == "Each network ranks its own channels."
    both = ["discriminator", "generator"]
    _, pool, _ = channels.rule_words(watched(by_scale=both))
    assert pool == "The channels of all pruned networks are ranked in one pool."
    third = replace(watched().seeds[0], kept={"critic": (1, 2), **watched().seeds[0].kept})
    _, pool, _ = channels.rule_words(replace(watched(by_scale=both), seeds=[third]))
    assert pool == "The channels of discriminator and generator are ranked in one pool."
    said = channels.forced_words([watched()], [EARLY, MORE])
    assert said.startswith(
        "Forced: compress 0.8 (seed 2). The channels had not settled by step 3,75"
    )
    assert channels.forced_words([replace(watched(), seeds=watched().seeds[:2])], [MORE]) == ""
    (last,) = watched().forced
    few = [replace(last, seed=str(n), largest={}, draws=n) for n in (1, 3)]
    said = channels.forced_words([replace(watched(), seeds=few)], [MORE])
    assert said == (
        "Forced: early-bird (seeds 1, 3). Too few masks were drawn to judge whether the channels "
        "had settled: 1 or 3 of the five that the rule compares, by step 3,750, half of the "
        "training. The channels were cut as they then were; a longer training (--epochs) draws "
        "more masks. That is no early-bird ticket, only a cut at half time."
    )
    both = [watched(), replace(watched(), seeds=[replace(few[0], draws=0)])]
    said = channels.forced_words(both, [EARLY, MORE])
    assert "Forced: compress 0.8 (seed 2). The channels had not settled" in said
    assert "Forced: compress 0.8 (seed 1). Too few" in said
    assert "settled: none of the five" in said
    assert said.count("That is no early-bird ticket") == 1
    assert channels.norm_words([watched()]) == (
        "Ranked by the norms of their filters, within their own network: discriminator, which has "
        "no normalisation layer whose scales could be read."
    )
    assert channels.norm_words([watched(by_scale=["discriminator", "generator"])]) == ""
    left = channels.left_table([watched(left={"g.1": "it makes the output"})])
    assert left is not None
    assert left.rows == (("g.1", "it makes the output"),)
    assert channels.left_table([watched(left={})]) is None


def test_thin_networks_that_are_too_far_from_their_work_are_said() -> None:
    seed = watched().seeds[0]
    near = replace(seed, thin_flops={"generator": 1.02, "discriminator": 0.981})
    assert channels.thin_words([replace(watched(), seeds=[near])]) == ""
    far = replace(seed, thin_flops={"generator": 1.034, "discriminator": 0.97})
    farther = replace(seed, thin_flops={"generator": 0.951, "discriminator": 1.0})
    half = replace(watched(), search=EARLY, seeds=[farther])
    assert channels.thin_words([replace(watched(), seeds=[near, far]), half]) == (
        "thin-flops is not within 2% of the multiply-adds of every smaller network, as whole "
        "widths come no nearer, and takes as many steps as make up for it; furthest off by network "
        "and compress: discriminator 97.0% at 0.8, generator 95.1% at 0.5."
    )


def drawn_texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("narrow", [False, True])
def test_heat_maps_of_each_network_have_colours_from_0_with_delta_on_them(narrow: bool) -> None:
    svg = settling.draw(watched(), "x", narrow=narrow)
    assert svg.count("<image") == 3  # two networks, and the colours
    texts = drawn_texts(svg)
    assert {"discriminator", "generator", "share of channels that differ", "distance"} <= {*texts}
    # On the colours; and in the legend of the distances.
    assert texts.count("delta 0.1") == 2
    assert "0" in texts
    assert settling._top(watched()) == 0.5
    assert settling._top(watched(delta=0.4)) == 0.8
    corrected = settling.draw(watched(rule="corrected"), "x", narrow=narrow)
    assert "distance / chance" in drawn_texts(corrected)
    without = settling.draw(watched(matrix={"generator": [[0], [1, 2]]}), "x", narrow=narrow)
    assert without.count("<image") == 0


def test_many_draws_are_thinned_in_drawing_and_data_alike() -> None:
    count = 130
    steps = list(range(5, 5 * count + 1, 5))
    matrix = {"generator": [[abs(a - b) / 1000 for a in range(count)] for b in range(count)]}
    found = watched(draws=steps, matrix=matrix)
    assert settling._map(found, "generator").shape == (44, 44)
    assert "One draw of 3 is shown" in " ".join(settling.drawing_of(found, "")["words"])
    lines = channels.distances_csv(found).splitlines()
    pairs = [line for line in lines if line.startswith("pairwise")]
    assert len(pairs) == 44
    assert pairs[:2] == ["pairwise,0,generator,5,0.0", "pairwise,0,generator,20,0.003 0.0"]
    assert lines[1].startswith("compared,0,discriminator,125,")
    assert channels.every(watched()) == 1


def trained() -> tuple[list[Row], list[CostRow]]:
    """Two precisions of compress 0.5, and a chain of two rounds."""
    rows, costs = [], []
    half = EARLY._replace(precision="bf16")
    for seed in (0, 1):
        for search in (half, EARLY, MORE):
            rows += [row(search, arm, seed, value + seed) for arm, value in
                     (("dense", 1.0), ("compact", 2.0), ("thin-flops", 3.0))]  # fmt: skip
            costs += [cost(search, "dense", seed, 8, 0), cost(search, "compact", seed, 1, 1),
                      cost(search, "thin-flops", seed, 2, 0)]  # fmt: skip
        rows.append(row(IMP, "dense", seed, 1.0 + seed))
        costs.append(cost(IMP, "dense", seed, 8, 0))
        for level, gone in ((1, 0.2), (2, 0.36)):
            more = {"round": level, "sparsity": gone}
            rows += [row(IMP, arm, seed, 4.0 + level, **more) for arm in ("ticket", "reinit")]
            costs += [cost(IMP, arm, seed, 8, 8 * level, **more) for arm in ("ticket", "reinit")]
    return rows, costs


def test_techniques_count_training_and_search_and_the_best_level() -> None:
    rows, costs = trained()
    curves = curves_of(rows)["fid"]
    searches = list(dict.fromkeys(key_of(r) for r in rows if r.arm in ("compact", "ticket")))
    for verdict, level, why in (({"sparsity": 0.2}, 1, "wins"), ({"matches_up_to": 0.2}, 1,
                                "matches"), ({}, 2, "last level")):  # fmt: skip
        found = techniques_of(curves, costs, {IMP: verdict})
        ticket = next(each for each in found if each.arm == "ticket")
        assert (ticket.point.round, ticket.why) == (level, why)
        assert ticket.flops == (8e12 * (1 + level),) * 2
    order = [(each.arm, each.search.precision, each.search.compress) for each in found]
    assert order[:3] == [("dense", "bf16", 0.5), ("dense", "fp32", 0.5), ("ticket", "fp32", None)]
    assert order[3:6] == [("compact", "bf16", 0.5), ("compact", "fp32", 0.5),
                          ("compact", "fp32", 0.8)]  # fmt: skip
    assert len(order) == 9
    table = techniques_table(found, searches, "fid")
    assert table is not None
    assert table.columns[:5] == ("technique", "FID", "weights", "not zero", "TFLOP")
    names = [cells[0] for cells in table.rows]
    assert names[:4] == ["unpruned, bf16", "unpruned, fp32",
                         "imp, 36.0% sparsity, last level, fp32",
                         "early-bird, compress 0.5, bf16"]  # fmt: skip
    assert names[-1] == "thin-flops, compress 0.8, fp32"
    # t(0.975, 1) = 12.706, seconds 20 and 21: 20.5 -+ 12.706 * 0.7071 / sqrt 2
    assert table.rows[3][1:] == ("2.5\u00a0\u00b1\u00a06.4", "1,000", "400", "2", "25%",
                                 "20.5\u00a0\u00b1\u00a06.4", "25.5%")  # fmt: skip
    assert techniques_table([], searches, "fid") is None


def test_data_of_the_cost_plots_as_csv() -> None:
    rows, costs = trained()
    found = [each for each in techniques_of(curves_of(rows)["fid"], costs, {})
             if each.arm == "compact" and each.search == EARLY]  # fmt: skip
    header, first, second = techniques_csv(found, ("metric", "seconds"), "fid").splitlines()
    cells = [dict(zip(header.split(","), line.split(","), strict=True)) for line in (first, second)]
    assert [(c["measure"], c["mean"], c["values"]) for c in cells] == [
        ("fid", "2.5", "2.0 3.0"), ("total_seconds", "20.5", "20.0 21.0")]  # fmt: skip
    assert float(cells[0]["low95"]) == pytest.approx(2.5 - 6.353, abs=1e-3)
    assert (cells[0]["compress"], cells[0]["arm"]) == ("0.5", "compact")


def test_the_three_plots_of_figure_7() -> None:
    rows, costs = trained()
    curves = curves_of(rows)["fid"]
    searches = list(dict.fromkeys(key_of(r) for r in rows if r.arm in ("compact", "ticket")))
    found = Savings(techniques_of(curves, costs, {}), searches, "fid", "lower")
    drawn = {each["name"]: each for each in found.drawings()}
    assert list(drawn) == ["cost-quality", "cost-flops", "cost-seconds"]
    texts = {name: drawn_texts(each["wide"]) for name, each in drawn.items()}
    assert {
        "compact",
        "thin-flops",
        "unpruned, fp32",
        "imp, 36.0% sparsity, last level, fp32",
        "fp32",
        "bf16",
        "training and search, TFLOP",
        "FID",
    } <= {*texts["cost-quality"]}
    # Compress values stand beside the points of the first precision's smaller networks.
    assert [text for text in texts["cost-quality"] if text in ("0.5", "0.8")] == ["0.5"]
    assert "TFLOP" in texts["cost-flops"]
    assert "seconds" in texts["cost-seconds"]
    for name in ("cost-flops", "cost-seconds"):
        assert {"compress: share of the channels removed", "0.5", "0.8"} <= {*texts[name]}
        assert not any("imp" in text for text in texts[name])
        assert "imp," not in base64.b64decode(drawn[name]["csv"].partition(",")[2]).decode()
    assert "Lower and further left is better." in drawn["cost-quality"]["words"][1]
    lines = [(arm, place, len(own)) for arm, place, own in found.lines()]
    assert lines == [("compact", 0, 1), ("thin-flops", 0, 1), ("compact", 1, 2),
                     ("thin-flops", 1, 2)]  # fmt: skip
    assert not list(Savings(techniques_of(curves, [], {}), searches, "fid", "").drawings())


def test_costs_of_smaller_networks_are_told_whatever_the_round_in_focus() -> None:
    rows, costs = trained()
    assert [level_of(r, 7) for r in rows[:2]] == [0, 1]
    assert level_of(row(IMP, "ticket", 0, 1.0), 7) == 7
    searches = list(dict.fromkeys(key_of(r) for r in rows if r.arm in ("compact", "ticket")))
    table = costs_of(costs, searches, 2)
    assert table is not None
    names = [cells[0] for cells in table.rows]
    assert "ticket, imp, fp32" in names
    assert "compact, early-bird, compress 0.8, fp32" in names
    assert len(names) == 2 + 3 * 2 + 2


def test_arms_of_one_search_never_share_a_look() -> None:
    for arms in (("compact", *OPPONENTS),
                 ("ticket", "reinit", "shuffle", "erk", "reinit-chain", "thin-parameters",
                  "dense-long")):  # fmt: skip
        assert len({plots.place_of(arm) for arm in arms}) == len(arms)


@pytest.mark.parametrize("inches", [3.75, 7.4])
@pytest.mark.parametrize("labels", [
    ["compact", "unpruned"],
    ["floor", "dense, 95% interval", "margin", "compact", "random-channels", "thin-parameters"],
    ["compact", "random-channels", "thin-flops", "thin-parameters", "unpruned",
     *(f"{method}, 80.0% sparsity, last level, rewound to 10" for method in ("snip", "grasp"))],
])  # fmt: skip
def test_a_legend_is_no_wider_than_its_figure_and_as_low_as_it_can_be(
    labels: list[str], inches: float
) -> None:
    columns = plots.legend_columns(labels, inches)
    widths = {}
    with mpl.rc_context(plots.STYLE):
        for count in range(1, len(labels) + 1):
            figure = Figure(figsize=(inches, 4), dpi=100)
            handles = [Line2D([], [], marker="o") for _ in labels]
            legend = figure.legend(handles, labels, ncols=count, frameon=False, handlelength=2.6,
                                   columnspacing=1.4, borderpad=0.2)  # fmt: skip
            canvas = FigureCanvasAgg(figure)
            widths[count] = legend.get_window_extent(canvas.get_renderer()).width
    assert widths[columns] <= 100 * inches
    lower = [n for n in widths if -(-len(labels) // n) < -(-len(labels) // columns)]
    assert all(widths[n] > 0.93 * 100 * inches for n in lower)


def test_the_page_says_what_early_bird_is_about(run: Path, page: str) -> None:
    words = words_of(page)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["verdicts"] != next(iter(summary["arms"].values()))  # bf16 is first by name
    found = [
        "early-bird, imp 3 training seeds 2 levels of sparsity compress 0.5, 0.95 cut forced at "
        "0.95 rewound to step 10 pruned: all fp32, bf16",
        "wins early-bird, fp32 A ticket at 67.0% sparsity (compress 0.5) wins on FID",
        "Forced: early-bird, compress 0.95, fp32 (seed 2); early-bird, compress 0.95, bf16 (seed",
        "wins; cut forced at 0.95 in 1 of 3 seeds",
        "67.0%, compress 0.5",
        "Quality against cost", "When the channels settled", "What could not be cut",
        "it makes the network's output", "Networks cut smaller do save",
        "What each technique costs", "Training and search apart, for every arm",
        "36.0% sparsity, round 2 and every compress value",
    ]  # fmt: skip
    assert [text for text in found if text not in words] == []
    assert words.count("Rule paper:") == 1  # both precisions have the same
    assert page.count('<div class="viewer"') == 4
    assert page.count('class="level') == 2 * (2 + 2)
    assert "sparsity, of all parameters" in page
    for name in ("cost-quality", "cost-flops", "cost-seconds"):
        assert f'download="{name}.csv"' in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert len(page) < 2_000_000


def test_a_page_without_early_bird_has_none_of_it(run: Path, tmp_path: Path) -> None:
    out = standin.write_run(tmp_path / "out", rounds=1, seeds=2, diverged=False)
    page = write_report(out).read_text()
    for text in ('id="settled"', 'id="savings"', "do save", "What each technique", "ompress 0"):
        assert text not in page
    for told in ({}, None, {"other": {}}, {"early-bird-all-c0.5-fp32": {"seeds": {}}}):
        summary = json.loads((run / "summary.json").read_text()) | {"early_bird": told}
        assert channels.watched_in(summary, [EARLY, IMP]) == []


def test_strings_of_watches_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'&$"
    standin.write_channels(tmp_path, compress=(0.5,), seeds=1)
    summary = json.loads((tmp_path / "summary.json").read_text())
    (arm,) = summary["early_bird"].values()
    arm |= {"rule": evil, "settle": evil, "left": {evil: evil}}
    arm["matrix"] = {evil: arm["matrix"]["generator"]}
    arm["seeds"]["0"]["widths"] = {evil: [8, 4]}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    write_costs(tmp_path / "costs.csv", [])
    page = write_report(tmp_path).read_text()
    assert page.count("<script>") == 1
    assert "alert(1)</script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert 'id="savings"' not in page

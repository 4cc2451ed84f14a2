"""The paper's claims as files: read and parsed whole, decided by literals, run end to end."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

import in_process
from tombola.cli import command_line as cli
from tombola.cli import travel, words
from tombola.cli.reproduce import claims, command
from tombola.cli.reproduce.outcomes import BEGUN, HOLDS, NOT, NOT_RUN, OPEN, Outcome, combine
from tombola.cli.reproduce.rules import judge
from tombola.errors import ConfigError
from tombola.report.folder import Folder
from tombola.store.tables import CostRow, Row

TOY = Path(__file__).parent / "toy_task.py"
FIGURES = [f"fig{n}" for n in range(1, 9)] + [f"figA{n}" for n in range(1, 9)]
METRIC = "reconstruction_error"


def call(*given):
    """(exit code, stdout, stderr) of the command, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        in_process.Restored(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        in_process.use(patch)
        code = cli.main(["reproduce", *given])
    return code, out.getvalue(), err.getvalue()


def checked(search, monkeypatch):
    """The config of a search, as ``find`` builds it before it looks for data."""
    monkeypatch.setattr(words, "check_source", lambda *given: "there")
    options = command.parse_search(search)
    if options.transfer_to is None:
        return words.checked(options, words.tables_of(options))[0]
    names = [options.task, *options.transfer_to.split(",")]
    return travel._transfer_checked(options, names)[0][options.task]


def test_every_table_and_figure_has_a_file():
    assert claims.names() == ["table1", "table2", *FIGURES]


@pytest.mark.parametrize("name", claims.names())
def test_every_file_is_read_and_its_commands_make_configs(name, monkeypatch):
    made = claims.read(name)
    assert list(made.scales) == list(claims.SCALES)
    for scale in made.scales.values():
        assert scale.rules
        assert (scale.core_hours is None) == (scale.name == "gpu")
        own = f"{name}-{scale.name}"
        for search in (s for s in scale.searches if s.folder.parent.name == own):
            config = checked(search, monkeypatch)
            small = scale.name == "minutes"
            assert (config.data.name == "digits") == small
            assert config.search.seeds >= (3 if small else 5)
    assert "proves little" in made.scales["minutes"].note


def test_searches_of_another_file_are_not_trained_twice():
    borrowed = claims.read("table1").scales["laptop"].searches
    assert {search.folder.parent.name for search in borrowed} == {
        "fig4-laptop", "fig5-laptop", "fig6-laptop",
    }  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of files of one's own, and an empty one in which the command is called."""
    files = tmp_path / "files"
    files.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(claims, "FILES", files)
    monkeypatch.chdir(tmp_path / "work")
    return files


HEAD = 'title = "T"\nclaim = "C."\nsource = "figure 9"\n'
ASKED = '[[holds]]\nrule = "state_is"\nis = "wins"\n'
SCALE = '[minutes]\ncommands = ["vae"]\ncore_hours = 0.1\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD + SCALE, "nothing is asked"),
        (HEAD + ASKED + "[minutes]\n", "no commands"),
        (HEAD.replace("claim", "clam") + ASKED + SCALE, "no claim"),
        (HEAD + "odd = 1\n" + ASKED + SCALE, "'odd' is no key"),
        (HEAD + ASKED + SCALE + "odd = 1\n", "'odd' is no key of minutes"),
        (HEAD + ASKED.replace("state_is", "seems") + SCALE, "'seems' is no rule"),
        (HEAD + ASKED.replace("wins", "shines") + SCALE, "none of wins"),
        (HEAD + ASKED.replace('is = "wins"', "") + SCALE, "state_is needs is"),
        (HEAD + ASKED + "odd = 1\n" + SCALE, "takes no 'odd'"),
        (HEAD + ASKED + "search = 2\n" + SCALE, "search 2 of 1"),
        (HEAD + ASKED + 'route = "a->b"\n' + SCALE, "equal is asked of a route"),
        ("= 1", "Invalid"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_refused(place, text, said):
    (place / "fig9.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"fig9\.toml is not") as error:
        claims.read("fig9")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["fig99"], "unknown reproduction 'fig99'"),
        (["fig9", "--scale", "laptop"], "fig9 has no scale laptop; it has: minutes"),
        (["fig9", "--scale", "huge"], "invalid choice: 'huge'"),
        (["fig9"], "unrecognized arguments: --odd 3"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(place, given, said):
    (place / "fig9.toml").write_text(HEAD + ASKED + SCALE.replace("vae", "vae --odd 3"))
    code, _, error = call(*given)
    assert (code, said in error, error.count("\n")) == (2, True, 1), error
    assert not Path("runs").exists()


LEARNT = {"learnt": True, "settled": True}
LEVELS = [
    {"sparsity": s, "ratio": r, "difference": 0.1, "lower": r - 0.02, "upper": r + 0.02}
    for s, r in ((0.5, 1.0), (0.8, 1.02), (0.9, 1.3))
]


def verdict(state="wins", frontier=0.8, worse=0.9, arm="ticket", **changes):
    return {
        "state": state,
        "frontier": frontier,
        "first_worse": worse,
        "levels": LEVELS,
        "seeds": 5,
        "arm": arm,
        "learning": LEARNT,
        "gate": None,
    } | changes


def folder(rows=(), costs=(), **summary):
    return Folder(Path("x"), {"resolved": {"steps": 1000}}, summary, list(rows), list(costs))


def searched(found=None, name="imp/all/r50/fp32", **more):
    return folder(primary=METRIC, arms={name: {METRIC: found or verdict()}}, **more)


WINS = {"rule": "state_is", "is": "wins", "arm": "imp/all/5%"}


@pytest.mark.parametrize(
    ("asked", "state", "expected"),
    [
        ("wins", "wins", HOLDS),
        ("wins", "matches, but so does reinit", NOT),
        ("wins", "worse", NOT),
        ("wins", "matches; controls undecided", OPEN),
        ("wins", "matches; no controls", OPEN),
        ("wins", "undecided", OPEN),
        ("wins", "not enough runs", OPEN),
        ("matches", "matches, but so does reinit", HOLDS),
        ("matches", "worse", NOT),
        ("worse", "worse", HOLDS),
        ("worse", "wins", NOT),
    ],
)
def test_a_state_is_asked_for(asked, state, expected):
    found = judge(WINS | {"is": asked}, searched(verdict(state)))
    assert (found.state, found.why) == (expected, state)
    assert (found.number, found.low, found.high, found.n) == (1.02, 1.0, 1.04, 5)


@pytest.mark.parametrize(
    ("learning", "why"),
    [
        ({"learnt": False, "settled": True}, "dense has not learnt"),
        ({"learnt": True, "settled": False}, "dense has not settled: its training is too short"),
    ],
)
def test_nothing_counts_where_dense_has_not_learnt_or_not_settled(learning, why):
    found = judge(WINS, searched(verdict(learning=learning)))
    assert (found.state, found.why, found.number) == (OPEN, why, 1.02)
    pair = {"metric": METRIC, "a": "imp/all/r50/fp32", "b": "gates/all/r0/fp32", "ratio": 0.8,
            "p": 0.01, "interval": [0.7, 0.9], "seeds": 5}  # fmt: skip
    arms = {pair["a"]: {METRIC: verdict()}, pair["b"]: {METRIC: verdict(learning=learning)}}
    rule = {"rule": "comparison_better", "a": "imp", "b": "gates"}
    found = judge(rule, folder(primary=METRIC, arms=arms, comparisons=[pair]))
    assert (found.state, found.why, found.number) == (OPEN, why, 0.8)
    high = {"rule": "frontier_at_least", "value": 0.5}
    assert judge(high, searched(verdict(learning=learning))).state == OPEN


def test_an_arm_or_metric_that_is_not_there_leaves_a_claim_open():
    other = judge(WINS | {"arm": "imp/all/10it"}, searched())
    assert other.why == "there is no search imp/all/10it"
    assert judge(WINS | {"metric": "fid"}, searched()).why == "there is no verdict by fid"


@pytest.mark.parametrize(
    ("value", "frontier", "worse", "expected"),
    [
        (0.8004, 0.8, 0.9, HOLDS),
        (0.85, 0.8, 0.9, OPEN),
        (0.9, 0.8, 0.9, NOT),
        (0.9, 0.8, None, OPEN),
        (0.5, None, None, OPEN),
        (0.95, 0.9, None, OPEN),
    ],
)
def test_a_frontier_is_asked_for(value, frontier, worse, expected):
    rule = {"rule": "frontier_at_least", "value": value}
    found = judge(rule, searched(verdict(frontier=frontier, worse=worse)))
    assert (found.state, found.number, found.high) == (expected, frontier, worse)


@pytest.mark.parametrize(
    ("ratio", "p", "turned", "expected"),
    [
        (0.8, 0.01, False, HOLDS),
        (0.8, 0.05, False, OPEN),
        (1.25, 0.01, False, NOT),
        (1.25, 0.01, True, HOLDS),
        (0.8, 0.01, True, NOT),
        (0.8, None, False, OPEN),
    ],
)
def test_a_comparison_is_asked_for_from_either_side(ratio, p, turned, expected):
    names = ["imp/all/r10/fp32", "one-shot/all/r10/fp32"]
    a, b = reversed(names) if turned else names
    pair = {"metric": METRIC, "a": a, "b": b, "ratio": ratio, "difference": None, "p": p,
            "interval": [ratio / 2, ratio * 2], "seeds": 5}  # fmt: skip
    arms = {name: {METRIC: verdict()} for name in names}
    rule = {"rule": "comparison_better", "a": "imp/all/10it", "b": "one-shot"}
    found = judge(rule, folder(primary=METRIC, arms=arms, comparisons=[pair]))
    own = 1 / ratio if turned else ratio
    assert (found.state, found.number, found.n) == (expected, own, 5)
    assert (found.low, found.high) == (own / 2, own * 2)


PLACE = {"sparsity": 0.0, "sparsity_all": 0.0, "precision": "fp32"}


def cost(seed, own, search=0, compress=0.6, arm="compact"):
    key = {"method": "early-bird", "networks": "all", "compress": compress}
    key = {} if arm == "dense" else key
    paid = {"train_flops": own, "search_flops": search}
    return CostRow(seed=seed, arm=arm, round=0 if arm == "dense" else 1, **PLACE, **key, **paid)


@pytest.mark.parametrize(("value", "expected"), [(0.43, HOLDS), (0.41, OPEN), (0.37, NOT)])
def test_a_share_of_cost_is_of_training_and_search_together(value, expected):
    costs = [cost(s, 100, arm="dense") for s in range(3)]
    costs += [cost(s, own, 10) for s, own in enumerate((29, 30, 31))]
    costs += [cost(s, 90, compress=0.2) for s in range(3)]
    rule = {"rule": "cost_share_at_most", "arm": "early-bird", "compress": 0.6, "value": value}
    found = searched(verdict(arm="compact"), "early-bird/all/r0/fp32", costs=costs)
    got = judge(rule, found)  # 0.39, 0.40, 0.41: 0.4 +- 4.303 * 0.01 / sqrt(3)
    assert (got.state, round(got.number, 9), got.n) == (expected, 0.4, 3)
    assert round(got.high - got.number, 5) == 0.02484


@pytest.mark.parametrize(("gap", "expected"), [(-9, HOLDS), (0, OPEN), (9, NOT)])
def test_a_metric_without_a_verdict_is_compared_by_seed(gap, expected):
    def row(arm, seed, value):
        level = 0 if arm == "dense" else 1
        own = {"method": "imp", "networks": "all", "rewind_steps": 50} if level else {}
        name = "early_stopping_step"
        return Row(arm=arm, seed=seed, round=level, metric=name, value=value, **PLACE, **own)

    rows = [row("dense", s, 100 + 7 * s) for s in range(3)]
    rows += [row("ticket", s, 100 + 7 * s + gap + (s - 1)) for s in range(3)]
    rule = {"rule": "measured_below", "metric": "early_stopping_step", "than": "dense"}
    found = judge(rule, searched(rows=rows))
    assert (found.state, found.number, found.n) == (expected, gap, 3)


@pytest.mark.parametrize(
    ("state", "expected"),
    [("equal", HOLDS), ("transferred better", HOLDS), ("transferred worse", NOT),
     ("undecided", OPEN)],
)  # fmt: skip
def test_a_transfer_is_asked_for(state, expected):
    own = {"state": state, "d_mean": 0.1, "low": 0.0, "high": 0.2, "seeds": 3,
           "as_ticket": verdict()}  # fmt: skip
    route = {"source": "vae.decoder", "target": "dcgan", "primary": "m", "metrics": {"m": own}}
    rule = {"rule": "state_is", "is": "equal", "route": "vae.decoder->dcgan"}
    found = judge(rule, folder(transfer={"routes": [route]}))
    assert (found.state, found.number, found.low, found.high, found.n) == (expected, 0.1, 0, 0.2, 3)
    assert judge(rule | {"route": "a->b"}, folder(transfer={"routes": [route]})).state == OPEN


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        ((HOLDS, HOLDS), HOLDS),
        ((HOLDS, OPEN), OPEN),
        ((HOLDS, OPEN, NOT), NOT),
        ((NOT_RUN, NOT_RUN), NOT_RUN),
        ((NOT_RUN, NOT), BEGUN),
    ],
)
def test_a_claim_is_as_its_weakest_rule(states, whole):
    assert combine([Outcome("", state) for state in states]) == whole


def test_a_claim_is_run_shown_and_resumed(place):
    words_ = (
        f"{TOY}:TinyAE --data digits --steps 12 --rounds 1 --rate 0.5 --seeds 1 --rewind 2it "
        "--controls none --threads 1 --workers 1 --device cpu "
        "--set judge.validation_samples=0 --set judge.downstream=none"
    )
    text = HEAD + "sparsity = 0.75\n" + ASKED + SCALE.replace("vae", words_)
    (place / "fig9.toml").write_text(text)
    (place / "fig10.toml").write_text(HEAD + 'of = ["fig9"]\n' + ASKED)
    out = Path("runs/reproduce/fig9-minutes")

    assert "minutes 0.1 h: not run" in call()[1]
    assert "| not run |" in call("fig9", "--table")[1]
    assert not Path("runs").exists()

    code, shown, _ = call("fig9")
    assert code == 0
    assert (out / "claims.md").read_text() == shown
    found = json.loads((out / "claims.json").read_text())
    assert (found["state"], found["claims"][0]["state"]) == (OPEN, OPEN)
    assert found["searches"][0]["report"] == str(out / "1" / "report.html")
    for part in ("The paper (figure 9): C.", "State: open", str(out / "1" / "report.html"),
                 f"tombola figure {out / '1'}"):  # fmt: skip
        assert part in shown
    assert found["drawing"] == str(out / "quality.svg")
    assert "claimed: 75.0%" in (out / "quality.svg").read_text()
    command_line = json.loads((out / "1" / "config.json").read_text())["command"]
    assert command_line == found["searches"][0]["command"]

    store = sorted((out / "1" / "store").rglob("*"))
    times = [path.stat().st_mtime_ns for path in store if path.is_file()]
    assert call("fig9")[1] == shown
    assert [p.stat().st_mtime_ns for p in store if p.is_file()] == times

    listed = json.loads(call("--json")[1])
    assert [(each["name"], each["state"]) for each in listed] == [("fig9", OPEN), ("fig10", OPEN)]
    assert "| fig10 | minutes |" in call("--table")[1]

    path = out / "1" / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"progress": {"done": 1, "of": 2}}))
    assert "minutes 0.1 h: begun" in call()[1]


KEPT = Path(__file__).parents[1] / "docs" / "results"
CLAIM = """[[claim]]
says = "It wins"
paper = "89%"
of = "fig4"
search = "linear-ae-mnist"
rule = "state_is"
is = "wins"
"""


def test_the_readme_shows_what_kept_searches_say():
    code, table, error = call("--table", "--kept", "docs/results")
    assert (code, error) == (0, "")
    readme = (KEPT.parents[1] / "README.md").read_text("utf-8")
    start, end = "<!-- claims: begin -->\n", "<!-- claims: end -->"
    assert readme[readme.index(start) + len(start) : readme.index(end)] == table


def test_a_kept_search_that_had_no_epoch_decides_nothing(tmp_path):
    folder = tmp_path / "linear-ae-mnist"
    folder.mkdir()
    for name in ("config.json", "results.csv", "summary.json"):
        (folder / name).write_bytes((KEPT / "linear-ae-mnist" / name).read_bytes())
    (tmp_path / "claims.toml").write_text(CLAIM)
    found = json.loads(call("--table", "--kept", str(tmp_path), "--json")[1])
    assert [(each["state"], each["n"]) for each in found] == [("holds", 5)]
    config = json.loads((folder / "config.json").read_text())
    config["resolved"]["steps"] = config["resolved"]["epoch_steps"] - 1
    (folder / "config.json").write_text(json.dumps(config))
    found = json.loads(call("--table", "--kept", str(tmp_path), "--json")[1])
    assert [(each["state"], each["why"]) for each in found] == [
        ("open", "trained for under one epoch")
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot read"),
        ("", r"has no [[claim]]"),
        (CLAIM.replace("says", "said"), "has no says"),
        (CLAIM.replace("fig4", "fig99"), "unknown reproduction 'fig99'"),
        (CLAIM.replace("state_is", "seems"), "'seems' is no rule"),
        (CLAIM.replace("linear-ae-mnist", "nowhere"), "is no directory"),
    ],
)
def test_a_file_of_kept_claims_that_is_odd_is_refused(tmp_path, text, said):
    if text is not None:
        (tmp_path / "claims.toml").write_text(text)
    code, _, error = call("--table", "--kept", str(tmp_path))
    assert (code, said in error, error.count("\n")) == (2, True, 1), error


def test_kept_claims_are_a_table_of_their_own():
    for given in (["--kept", "x"], ["fig4", "--table", "--kept", "x"]):
        assert "--kept goes with --table alone" in call(*given)[2]

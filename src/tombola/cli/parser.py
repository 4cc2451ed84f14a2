"""Which words does the command line take? Every command with its options and their help."""

from __future__ import annotations

import argparse
from typing import NoReturn

from tombola.config.version import VERSION
from tombola.errors import ConfigError


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UserErrors, so that they are one line like all others."""

    def error(self, message: str) -> NoReturn:
        hint = f"{self.prog} --help lists what is allowed"
        raise ConfigError(f"{message}; {hint}")


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of all words, and that of each command by its name."""
    parser = _Parser(
        prog="tombola",
        description="Draws winning lottery tickets from deep generative models.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tombola {VERSION}")
    sub = parser.add_subparsers(metavar="COMMAND", parser_class=_Parser)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        made = sub.add_parser(name, help=text, description=text, allow_abbrev=False)
        made.set_defaults(function=f"do_{name}", command=name)
        return made

    _add_find(command("find", "Search winning tickets and prove them with a report."))
    train = command("train", "Train the dense task, or a ticket as find trained it.")
    _add_common(train)
    train.add_argument("--ticket", metavar="FILE", help="a ticket file that find has written")
    train.add_argument("--compact", action="store_true", help="cut its channels (early-bird)")
    _add_run(command("run", "Search tickets in a training script of your own, a process a round."))
    _add_transfer(command("transfer", "Play tickets in another task, beside its own ones."))
    _add_export(command("export", "Write a model's generator or decoder for other tools."))
    sample = command("sample", "Make images from a trained model file.")
    sample.add_argument("file", metavar="FILE", help="a file from OUT/models")
    sample.add_argument("--n", type=int, default=64, metavar="N", help="how many (default: 64)")
    sample.add_argument("--out", required=True, metavar="DIR", help="where the PNG files go")
    sample.add_argument("--seed", type=int, default=0, metavar="S", help="of the latents drawn")
    _add_task_option(sample)
    sample.add_argument("--data", metavar="DATA", help="images to reconstruct (autoencoders)")
    sample.add_argument("--data-dir", metavar="DIR", help="where data sets lie (or TOMBOLA_DATA)")
    sample.add_argument("--json", action="store_true", help="print one JSON object")
    _add_inspect(command("inspect", "Show what is in a ticket or model file, or compare two."))
    _add_verify(command("verify", "Check a file's format, checksum and masks; exit 0 if sound."))
    _add_publish(command("publish", "Put a ticket or model file on the Hugging Face hub."))
    _add_report(command("report", "Write report.html again from what is there."))
    _add_status(command("status", "How far is a search, wherever it runs? What is under way?"))
    _add_verdict(command("verdict", "What do anybody's results say? A CSV file, judged."))
    _add_figure(command("figure", "Draw what each arm makes at each sparsity: PNG and SVG."))
    _add_reproduce(command("reproduce", "The paper's claims, tables and figures: list, run, hold."))
    listing = command("list", "What exists: tasks, data, methods or metrics.")
    what = ("tasks", "data", "methods", "metrics")
    listing.add_argument("what", nargs="?", choices=what, help="default: all of them")
    listing.add_argument("--json", action="store_true", help="print a JSON list")
    doctor = command("doctor", "Device, versions, data and judge files: found or missing.")
    doctor.add_argument("--data-dir", metavar="DIR", help="where data sets lie (or TOMBOLA_DATA)")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")
    return parser, dict(sub.choices)


def _add_status(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dir", metavar="DIR", help="the folder of a search, on a disk that this machine sees")
    add("--watch", action="store_true", help="again every few seconds while it runs")
    add("--json", action="store_true", help="print one JSON object, with --watch one a line")


def _add_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dir", metavar="DIR", help="a folder that find or train wrote")
    add(
        "--margin",
        action="append",
        default=[],
        metavar="METRIC=M",
        help="judge by another margin, such as fcd=5%%: nothing is trained, and it is said",
    )
    add("--json", action="store_true", help="print one JSON object")


def _add_figure(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("dir", metavar="DIR", help="a folder that find has written")
    add("--images", type=int, metavar="N", help="images in a cell (default: 16, or all there are)")
    text = "the nearest levels to these, such as 0.5,0.9 (default: six, evenly)"
    add("--sparsity", metavar="S[,S]", help=text)
    add(
        "--readme",
        action="store_true",
        help="quality over a strip of samples: a light and a dark SVG",
    )
    add("--json", action="store_true", help="print one JSON object")


def _add_verdict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE.csv", help="columns arm, seed, sparsity (or round), metric, value")
    add("--metric", metavar="NAME", help="only this one (default: all that have a direction)")
    add("--better", metavar="WAY", help="lower or higher, of a metric that Tombola does not know")
    add("--margin", metavar="M", help="5%% or 0.05 of the dense value (default: the metric's own)")
    add("--dense", default="dense", metavar="NAME", help="what that arm is called (default: dense)")
    add("--ticket", default="ticket", metavar="NAME", help="the same (default: ticket)")
    add(
        "--controls",
        default="reinit,shuffle",
        metavar="A,B",
        help="those that must be worse (default: reinit,shuffle)",
    )
    add("--json", action="store_true", help="print one JSON object")


def _add_reproduce(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="table1, fig3, figA2, ... (default: list them all)")
    scales = ("minutes", "laptop", "gpu")
    add("--scale", choices=scales, help="how large the searches are (default: minutes)")
    add("--table", action="store_true", help="claims beside what is there; run nothing")
    add("--kept", metavar="DIR", help="with --table: what the searches kept there say, a line each")
    add("--data-dir", metavar="DIR", help="where data sets lie (or TOMBOLA_DATA)")
    add("--json", action="store_true", help="print one JSON object")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", nargs="?", metavar="FILE", help="a ticket or model file")
    add("--diff", nargs="+", metavar="FILE", help="two tickets to compare, or one to hold FILE to")
    add("--json", action="store_true", help="print one JSON object")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="a ticket or model file")
    add("--rebuild", action="store_true", help="train a ticket's start weights again and compare")
    add("--data", metavar="DATA", help="the images it was found on, if they have no plain name")
    add("--data-dir", metavar="DIR", help="where data sets lie (or TOMBOLA_DATA)")
    _add_task_option(parser)
    add("--json", action="store_true", help="print one JSON object")


def _add_publish(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="a ticket or model file")
    add("target", metavar="hub:USER/NAME", help="where it goes; made if it is not there")
    add("--private", action="store_true", help="make the repository one that only you see")
    add("--license", metavar="NAME", help="the hub's name of its licence, such as mit")
    add("--dry-run", action="store_true", help="print the model card; send nothing")
    add("--json", action="store_true", help="print one JSON object")


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s [options] -- COMMAND [WORD ...]"
    parser.epilog = (
        "COMMAND is how the script is started, such as: python train.py --epochs 5 --seed {seed} "
        "--out {dir}, where {dir} becomes a folder of each training's own. "
        "The script has one more line: tombola.attach({...networks...})."
    )
    add = parser.add_argument
    add("--rounds", type=int, metavar="N", help="levels of sparsity (default: 20)")
    add("--rate", metavar="P", help="share of the weights removed each round (default: 0.2)")
    add("--sparsity", metavar="S[,S]", help="levels outright, instead of --rounds and --rate")
    add("--prune", metavar="NETWORK[,NETWORK]", help="networks to prune (default: all attached)")
    add("--exclude", metavar="LIST", help="layers to leave out: first, last, NETWORK.PARAMETER")
    add("--name", metavar="NAME", help="what the training is called (default: as its script)")
    add("--same-script", action="store_true", help="go on though the script was edited since")
    add(
        "--rewind",
        metavar="STEP",
        help="where weights go back to: 500it, 0it, 5%% of --steps (default: 10it)",
    )
    add("--steps", type=int, metavar="N", help="stop each training there (default: its own end)")
    add("--seeds", type=int, metavar="N", help="training seeds, put in for {seed} (default: 1)")
    add("--controls", metavar="LIST|none", help="reinit, shuffle (default: both)")
    add("--out", metavar="DIR", help="default: runs/<script>-imp")
    add("--json", action="store_true", help="print summary.json's object")
    add("--dry-run", action="store_true", help="say what would be run; run nothing")


def _add_export(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", metavar="FILE", help="a model file from OUT/models")
    add("--to", required=True, metavar="FORMAT", help="onnx or torch-export (a .pt2 file)")
    add("--out", metavar="PATH", help="default: beside FILE, as .onnx or .pt2")
    _add_task_option(parser)
    add("--json", action="store_true", help="print one JSON object")


def _add_task_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task",
        metavar="path/to/file.py:Class",
        help="the code of a user's task; never run because a file names it",
    )


def _add_find(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)
    add = parser.add_argument
    add(
        "--method",
        metavar="LIST",
        help="imp (default), one-shot, early-bird, snip, grasp, synflow, random, gates, gradual",
    )
    add(
        "--prune",
        action="append",
        metavar="NETWORK[,NETWORK]",
        help="networks to prune, once per arm; all = every network (default: all)",
    )
    _add_levels(parser)
    add("--transfer-to", metavar="TASK[,TASK]", help="play its tickets in these tasks too")
    add("--compress", metavar="R", help="share of the channels that early-bird cuts (default: 0.5)")
    add("--round-to", type=int, metavar="N", help="round every layer's channels to N (early-bird)")
    add(
        "--controls",
        metavar="LIST|none",
        help="reinit, shuffle, erk, reinit-chain, thin-parameters, dense-long (default: "
        "reinit,shuffle); early-bird: random-channels, thin-flops, thin-parameters (default: all)",
    )
    add(
        "--controls-at",
        metavar="WHERE",
        help="all levels (the default), or frontier: the last that matches dense, for fewer runs",
    )
    add("--draws", type=int, metavar="M", help="of each control there (default: 3; 5 seeds: 2)")
    add(
        "--stop-after",
        type=int,
        metavar="M",
        help="levels in a row, worse in every seed, that end an arm; 0 = never (default: 2)",
    )
    add(
        "--anyway",
        action="store_true",
        default=None,
        help="go on although the dense networks have not learnt",
    )


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    parser.usage = "%(prog)s TICKET TASK [options], or %(prog)s --matrix TASK,TASK [options]"
    add = parser.add_argument
    add("ticket", nargs="?", metavar="TICKET", help="a ticket file that find has written")
    _add_common(parser, nargs="?")
    add("--matrix", metavar="TASK,TASK", help="all ordered pairs of tasks, with their controls")
    _add_levels(parser)


def _add_levels(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rounds", type=int, metavar="N", help="levels of sparsity (default: 20)")
    add("--rate", metavar="P", help="share of the weights removed each round (default: 0.2)")
    add("--sparsity", metavar="S[,S]", help="levels outright, instead of --rounds and --rate")
    add("--rewind", metavar="STEP", help="500it, 2ep, 5%%, 0it (default: 10it); a list makes arms")


def _add_common(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    text = "a name, or path/to/file.py:ClassName"
    parser.add_argument("task", nargs=nargs, metavar="TASK", help=text)
    add = parser.add_argument
    add(
        "--data",
        metavar="DATA",
        help="digits, mnist, cifar10, celeba, folder:PATH (default: digits)",
    )
    add("--epochs", type=float, metavar="N", help="training length in epochs")
    add("--steps", type=int, metavar="N", help="training length in steps")
    add("--seeds", type=int, metavar="N", help="training seeds (default: 3; train: 1)")
    add("--out", metavar="DIR", help="default: runs/<task>-<data>-<method>")
    add("--data-dir", metavar="DIR", help="where data sets lie (or TOMBOLA_DATA)")
    add("--preset", metavar="NAME", help="quick (the default), paper or shared (vae, dcgan)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="section.key=value",
        help="any key of the config, such as task.width=16",
    )
    add("--config", metavar="FILE.toml", help="a config as --dry-run prints it")
    add("--workers", type=int, metavar="N", help="processes (default: up to the cores)")
    add("--threads", type=int, metavar="N", help="threads of each (default: cores / workers)")
    add("--executor", metavar="NAME", help="local (default), serial, or path/file.py:NAME")
    add("--device", metavar="NAME", help="auto, cpu, cuda or cuda:i (default: auto)")
    add("--precision", metavar="LIST", help="fp32, bf16, fp16 on CUDA (default: fp32)")
    add("--keep", metavar="all", help="keep every trained network and judged state")
    add("--skip-broken", action="store_true", default=None, help="leave broken images out")
    add("--json", action="store_true", help="print summary.json's object")
    add("--dry-run", action="store_true", help="resolve, plan and estimate; train nothing")

"""Bad input: exit 2, one line that says what came in, what is allowed and what to do, no trace.

``@`` in a case stands for the folder of made inputs; the words must all be in the line. The cases
of ``FIRST`` are about names, options, paths and file headers: they must be told before torch is
imported, which takes longer than the second that they may take.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import in_process
import standins
import tombola
from tombola import api
from tombola.cli import command_line as cli
from tombola.cli import words as asked
from tombola.store.container import Raw, read_header, write_file
from tombola.store.format import MODEL_FORMAT, TICKET_FORMAT

TOY = f"{Path(__file__).parent / 'toy_task.py'}"
TASK = f"{TOY}:TinyAE"
SEARCH = ["--steps", "12", "--rounds", "1", "--rate", "0.5", "--seeds", "1", "--rewind", "2it"]
PLACE = ["--threads", "1", "--workers", "1", "--device", "cpu"]
ARM = [*SEARCH, "--controls", "none", *PLACE]

LONG = "/".join(["a" * 100] * 45)
NAMES = {
    "sparsity of nothing": (
        ["find", "vae", "--sparsity", ","],
        "search.sparsity is empty at least",
    ),
    "controls of nothing": (["find", "vae", "--controls", ""], "search.controls is empty at least"),
    "script's sparsity of nothing": (
        ["run", "--sparsity", ",", "--", "python", "x.py"],
        "search.sparsity is empty at least one",
    ),
    "none and a control": (
        ["find", "vae", "--controls", "none,reinit"],
        "search.controls 'none,reinit' none stands alone",
    ),
    "network twice": (["find", "vae", "--prune", "decoder,decoder"], "prune decoder,decoder once"),
    "networks twice": (
        ["find", "vae", "--prune", "decoder,encoder", "--prune", "encoder,decoder"],
        "prune decoder,encoder,encoder,decoder once",
    ),
    "compress of another method": (
        ["find", "vae", "--compress", "0.5"],
        "--compress early-bird imp leave it out",
    ),
    "channels rounded of another method": (
        ["find", "vae", "--method", "snip", "--set", "prune.round_to=8"],
        "--round-to early-bird snip leave it out",
    ),
    "learning rate without end": (
        ["find", "vae", "--set", "task.learning_rate=inf"],
        "task.learning_rate inf finite number",
    ),
    "no number in a list": (
        ["find", "vae", "--set", "task.widths=[1, [nan]]"],
        "task.widths nan finite number",
    ),
    "number of many digits": (
        ["find", "vae", "--set", f"task.width={'9' * 400}"],
        "task.width 1329 bits at most 63",
    ),
    "set with many brackets": (
        ["find", "vae", "--set", f"train.steps={'[' * 60_000}"],
        "train.steps it takes a whole number",
    ),
    "rate next to nothing": (
        ["find", "vae", "--rate", "1e-400"],
        "rate '1e-400' no nearer to 0 and 1 than 1E-12",
    ),
    "rate of many digits": (["find", "vae", "--rate", f"0.{'3' * 99}"], "rate at most 30 digits"),
    "name of out too long": (["find", "vae", "--out", "x" * 300], "--out xxx too long 255 bytes"),
    "path of out too long": (["find", "vae", "--out", LONG], "--out aaa too long 3,584 shorter"),
    "name of a folder too long": (
        ["find", "vae", "--data", f"folder:{'x' * 300}"],
        "xxx too long shorter",
    ),
    "name of a config too long": (["find", "vae", "--config", "x" * 5000], "File name too long"),
    "unknown task": (["find", "linear-a"], "'linear-a' did you mean linear-ae dcgan path/to/file"),
    "task file missing": (["find", "@no.py:Mine"], "no.py No such file path/to/file.py:NAME"),
    "task file with a syntax error": (["find", "@syntax.py:Mine"], "syntax.py, line 2: mend"),
    "task not in its file": (["find", f"{TOY}:TinyAEE"], "'TinyAEE' did you mean TinyAE TinyGAN"),
    "task file without a name": (["find", "@syntax.py"], "syntax.py' linear-ae file.py:NAME"),
    "unknown data": (["find", "vae", "--data", "digit"], "'digit' did you mean digits folder:PATH"),
    "unknown method": (["find", "vae", "--method", "im"], "'im' did you mean imp one-shot"),
    "method misspelt": (["find", "vae", "--method", "early"], "'early' did you mean early-bird"),
    "method twice": (["find", "vae", "--method", "imp,imp"], "method imp,imp once"),
    "no method": (["find", "vae", "--method", ","], "search.method is empty; give at least one"),
    "unknown control": (["find", "vae", "--controls", "shufle"], "'shufle' did you mean shuffle"),
    "control of another method": (
        ["find", "vae", "--controls", "thin-flops"],
        "thin-flops early-bird leave that control out",
    ),
    "compress too much": (["find", "vae", "--compress", "1.2"], "compress '1.2' between 0 and 1"),
    "compress twice": (["find", "vae", "--compress", "0.5,0.5"], "compress 0.5,0.5 once"),
    "round to nothing": (["find", "vae", "--round-to", "0"], "prune.round_to 0 at least 1"),
    "rule unknown": (
        ["find", "vae", "--set", "prune.rule=papers"],
        "'papers' did you mean paper corrected",
    ),
    "drawn too often": (
        ["find", "vae", "--set", "prune.draw_epochs=0.1"],
        "prune.draw_epochs 0.1 from 0.25",
    ),
    "compact without a ticket": (["train", "vae", "--compact"], "--compact give one --ticket"),
    "unknown preset": (["find", "vae", "--preset", "quik"], "'quik' did you mean quick paper"),
    "preset of others": (["find", "sngan", "--preset", "shared"], "sngan 'shared' dcgan, vae"),
    "unknown precision": (["find", "vae", "--precision", "f32"], "'f32' did you mean fp32"),
    "figure of nothing": (["figure", "@mine.py"], "mine.py is no directory give find"),
    "unknown keep": (["find", "vae", "--keep", "some"], "'some' choose from: all, final"),
    "unknown command": (["fnd", "vae"], "'fnd' did you mean find train"),
    "unknown option": (["find", "vae", "--seed", "2"], "--seed' did you mean --seeds --help"),
    "word too many": (["find", "vae", "mnist"], "word 'mnist' tombola find --help"),
    "no task": (["find"], "TASK required tombola find --help"),
    "unknown list": (["list", "task"], "'task' 'tasks' 'methods' --help"),
    "option of other commands": (
        ["train", "vae", "--rounds", "3"],
        "option '--rounds'; it goes with find, run, transfer; --help",
    ),
    "task named twice": (
        ["find", "linear-ae", "--set", "task.name=vae"],
        "'task.name=vae' names the task 'linear-ae' there alone",
    ),
    "section that is not there": (
        ["find", "vae", "--set", "tusk.width=3"],
        "section 'tusk' did you mean task search",
    ),
    "key that is not there": (
        ["find", "vae", "--set", "search.round=3"],
        "[search] 'round' did you mean rounds seeds",
    ),
    "set without a value": (["find", "vae", "--set", "task.width"], "'task.width' task.width=16"),
    "unknown criterion": (
        ["find", "vae", "--set", "prune.criterion=magnitud"],
        "criterion 'magnitud' did you mean magnitude random",
    ),
    "margin of no metric": (
        ["find", "vae", "--set", "verdict.elbow=0.1"],
        "'elbow' did you mean elbo",
    ),
}
NUMBERS = {
    "rate 0": (["find", "vae", "--rate", "0"], "rate '0' decimal between 0 and 1"),
    "rate 1": (["find", "vae", "--rate", "1"], "rate '1' decimal between 0 and 1"),
    "rate negative": (["find", "vae", "--rate", "-1"], "rate '-1' decimal between 0 and 1"),
    "rate nan": (["find", "vae", "--rate", "nan"], "rate 'nan' decimal between 0 and 1"),
    "rate infinite": (["find", "vae", "--rate=-inf"], "rate '-inf' decimal between 0 and 1"),
    "rate a word": (["find", "vae", "--rate", "fast"], "rate 'fast' decimal between 0 and 1"),
    "rounds 0": (["find", "vae", "--rounds", "0"], "--rounds 0 whole number at least 1"),
    "rounds a word": (["find", "vae", "--rounds", "x"], "--rounds 'x' int --help"),
    "seeds negative": (["find", "vae", "--seeds", "-1"], "--seeds -1 whole number at least 1"),
    "rounds without end": (["find", "vae", "--rounds", "1001"], "rounds 1001 from 1 to 1000"),
    "seeds without end": (["find", "vae", "--seeds", "1001"], "seeds 1001 from 1 to 1000"),
    "epochs nan": (["find", "vae", "--epochs", "nan"], "--epochs nan above 0"),
    "epochs infinite": (["find", "vae", "--epochs", "inf"], "epochs inf finite number from 0"),
    "steps 0": (["train", "vae", "--steps", "0"], "--steps 0 whole number at least 1"),
    "rounds and sparsity": (
        ["find", "vae", "--rounds", "3", "--sparsity", "0.5"],
        "both --rounds and --sparsity",
    ),
    "rate and sparsity of a script": (
        ["run", "--rate", "0.3", "--sparsity", "0.5", "--", "python", "@mine.py"],
        "both --rate and --sparsity",
    ),
    "steps and epochs": (["find", "vae", "--steps", "5", "--epochs", "2"], "5 2 not both"),
    "threads negative": (["find", "vae", "--threads", "-3"], "threads -3 from 0 to 1000"),
    "sparsity 1": (["find", "vae", "--sparsity", "0.5,1"], "sparsity '1' between 0 and 1"),
    "sparsity falls": (["find", "vae", "--sparsity", "0.5,0.2"], "0.5,0.2 ascend low to high"),
    "rewind without unit": (["find", "vae", "--rewind", "5"], "rewind '5' 500it 2ep 0it"),
    "rewind half a step": (["find", "vae", "--rewind", "0.5it"], "rewind '0.5it' 500it 2ep"),
    "rewind negative": (["find", "vae", "--rewind=-1it"], "rewind '-1it' 500it 2ep"),
    "rounds of a wrong type": (
        ["find", "vae", "--set", "search.rounds=many"],
        "search.rounds 'many' whole number",
    ),
    "margin negative": (["find", "vae", "--set", "verdict.fid=-1"], "fid -1 positive 5%"),
    "samples too few": (["find", "vae", "--set", "judge.samples=1"], "judge.samples 1 at least 2"),
    "no samples asked": (["sample", "@model.safetensors", "--n", "0", "--out", "x"], "--n 0 1"),
    "samples without end": (
        ["sample", "@model.safetensors", "--n", "1000000000000", "--out", "x"],
        "--n 1000000000000 from 1 to 100000",
    ),
}
PLACES = {
    "no CUDA": (["find", "vae", "--device", "cuda"], "'cuda' not there --device cpu or auto"),
    "unknown device": (["find", "vae", "--device", "gpu"], "'gpu' auto, cpu, cuda or cuda:0"),
    "device without number": (["find", "vae", "--device", "cuda:"], "'cuda:' cuda:0"),
    "folder missing": (["find", "vae", "--data", "folder:@no"], "does not exist folder:PATH"),
    "folder empty": (["find", "vae", "--data", "folder:@empty"], "holds no image 20 png"),
    "folder of one image": (["find", "vae", "--data", "folder:@one"], "1 image; at least 20"),
    "folder without images": (["find", "vae", "--data", "folder:@texts"], "holds no image 20 png"),
    "folder is a file": (["find", "vae", "--data", "folder:@file"], "not a directory folder:PATH"),
    "folder without its word": (["find", "vae", "--data", "@empty"], "give folder:"),
    "data files missing": (
        ["find", "vae", "--data", "mnist", "--data-dir", "@empty"],
        "mnist is not in put there train-00000-of-00001.parquet --data-dir",
    ),
    "data file damaged": (
        ["find", "vae", "--data", "mnist", "--data-dir", "@damaged"],
        "train-00000-of-00001.parquet truncated download it again",
    ),
    "data directory missing": (
        ["find", "vae", "--data-dir", "@no"],
        "data directory does not exist another --data-dir",
    ),
    "doctor's directory missing": (["doctor", "--data-dir", "@no"], "does not exist --data-dir"),
    "config missing": (["find", "vae", "--config", "@no.toml"], "no.toml No such file --dry-run"),
    "config not TOML": (
        ["find", "vae", "--config", "@bad.toml"],
        "bad.toml not TOML line 2 --dry-run",
    ),
    "config without sections": (
        ["find", "vae", "--config", "@flat.toml"],
        "flat.toml 'rounds' outside of a section [search]",
    ),
    "config of brackets": (
        ["find", "vae", "--config", "@deep.toml"],
        "deep.toml is not TOML brackets --dry-run",
    ),
    "config of another kind": (
        ["find", "vae", "--config", "@long.toml"],
        "long.toml more than 1,048,576 bytes --dry-run",
    ),
    "file without names": (
        ["find", "@blank.py:Nothing"],
        "blank.py 'Nothing'; there is none (define a task",
    ),
    "out is a file": (["find", "vae", "--out", "@file"], "file is a file; give a folder"),
    "out below a file": (["find", "vae", "--out", "@file/out"], "file is a file; give a folder"),
    "out empty": (["find", "vae", "--out", ""], "--out is empty; give a folder"),
    "samples into a file": (
        ["sample", "@model.safetensors", "--out", "@file"],
        "file is a file; give a folder",
    ),
    "report of nothing": (["report", "@no"], "no directory tombola find or train"),
    "script into a search's folder": (
        ["run", "--out", "@out", "--", "python", "@mine.py"],
        "out holds a search of tombola find, train or transfer another out folder",
    ),
    "report of another folder": (["report", "@empty"], "has no config.json tombola find or train"),
}
FILES = {
    "no ticket": (["train", TASK, "--ticket", "@no"], "no such file give a ticket"),
    "truncated ticket": (["train", TASK, "--ticket", "@truncated"], "truncated get the file again"),
    "flipped ticket": (["train", TASK, "--ticket", "@flipped"], "checksum damaged get the file"),
    "pickle for a ticket": (["train", TASK, "--ticket", "@pickled"], "pickle never opened author"),
    "zip for a ticket": (["train", TASK, "--ticket", "@zipped"], "zip never opened author"),
    "folder for a ticket": (["train", TASK, "--ticket", "@empty"], "not a regular file give"),
    "model for a ticket": (
        ["train", TASK, "--ticket", "@model.safetensors"],
        "tombola.model/1 tombola.ticket/1 tickets folder",
    ),
    "ticket of another task": (
        ["train", "vae", "--ticket", "@ticket.safetensors"],
        "task TinyAE, not of vae give the task",
    ),
    "ticket without a history": (
        ["train", TASK, "--ticket", "@bare.safetensors"],
        "does not say how it was found seed config tombola find",
    ),
    "seeds for a ticket": (
        ["train", TASK, "--ticket", "@ticket.safetensors", "--seeds", "2"],
        "--seeds --ticket leave --seeds out",
    ),
    "ticket for a model": (
        ["sample", "@out/tickets/seed0-round01.safetensors", "--out", "x"],
        "tombola.ticket/1 take @out/models/ticket-seed0-round01.safetensors",
    ),
    "ticket for an export": (
        ["export", "@out/tickets/seed0-round01.safetensors", "--to", "onnx"],
        "tombola.ticket/1 take @out/models/ticket-seed0-round01.safetensors",
    ),
    "ticket with no model beside it": (
        ["sample", "@ticket.safetensors", "--out", "x"],
        "not beside it --keep all tombola train TASK --ticket @ticket.safetensors",
    ),
    "compact of single weights": (
        ["train", TASK, "--ticket", "@ticket.safetensors", "--compact"],
        "prunes single weights --compact early-bird leave it out",
    ),
    "rebuild a model": (
        ["verify", "@model.safetensors", "--rebuild"],
        "tombola.model/1 tombola.ticket/1 tickets folder",
    ),
    "rebuild a ticket of a user's task": (
        ["verify", "@ticket.safetensors", "--rebuild"],
        "task TinyAE not built in --task path/to/file.py:Class",
    ),
    "unknown export format": (
        ["export", "@model.safetensors", "--to", "onx", "--task", TASK],
        "'onx' did you mean onnx torch-export",
    ),
    "exported file for a model": (
        ["sample", "@other.pt2", "--out", "x"],
        "exported network model file OUT/models",
    ),
    "no model": (["sample", "@no", "--out", "x"], "no such file give"),
    "truncated model": (["sample", "@truncated", "--out", "x"], "truncated get the file again"),
    "model of a user's task": (
        ["sample", "@model.safetensors", "--out", "x"],
        "TinyAE not registered --task path/to/file.py:Class",
    ),
    "model that names a file as its task": (
        ["sample", "@evil.safetensors", "--out", "x"],
        "evil.py:Evil not registered --task",
    ),
    "sample's task file broken": (
        ["sample", "@model.safetensors", "--out", "x", "--task", "@syntax.py:Mine"],
        "syntax.py, line 2 mend",
    ),
    "sample of unknown data": (
        ["sample", "@model.safetensors", "--out", "x", "--task", TASK, "--data", "digit"],
        "'digit' did you mean digits",
    ),
    "inspect a pickle": (["inspect", "@pickled"], "pickle never opened"),
    "inspect nothing": (["inspect", "@no"], "no such file give a ticket or model file"),
    "verify a flipped file": (["verify", "@flipped"], "checksum damaged get the file again"),
    "verify an empty file": (["verify", "@blank"], "truncated 0 bytes get the file again"),
    "text for a name": (["verify", "@no\x1b[31m\nfile"], "no such file \\x1b[31m"),
    "text for a folder": (
        ["sample", "@no", "--out", "@file/\x1b[2J\n"],
        "file/\\x1b[2J is a file; give a folder",
    ),
}
TO_COME = {
    f"{name} is to come": ([name, "x"], f"command '{name}' not built {part} --help")
    for name, part in cli.TO_COME.items()
} | {
    "cluster is to come": (["find", "vae", "--cluster=ray"], "--cluster not built leave"),
}
FIRST = NAMES | NUMBERS | PLACES | FILES | TO_COME

LATER = {
    "figure of no level": (["figure", "@out", "--sparsity", ","], "--sparsity is empty 0.5,0.9"),
    "fp16 on a processor": (
        ["find", "linear-ae", "--precision", "fp16", "--device", "cpu"],
        "fp16 CUDA bf16 or fp32",
    ),
    "levels that leave no weight": (
        ["find", TASK, "--rounds", "40"],
        "level 36 none of 1536 level 35 at most 35 rounds",
    ),
    "sparsity that leaves no weight": (
        ["find", TASK, "--sparsity", "0.9999"],
        "0.9999 none of 1536",
    ),
    "rewind beyond the training": (
        ["find", TASK, "--rewind", "20it"],
        "20it step 20 20 steps below 20 or train longer",
    ),
    "rewind epochs beyond the training": (
        ["find", TASK, "--rewind", "1ep"],
        "1ep step 75 20 steps train longer",
    ),
    "rewind twice to one step": (
        ["find", TASK, "--rewind", "5it,5.0it"],
        "rewind 5it,5.0it one step twice each step once",
    ),
    "pruned twice": (
        ["find", TASK, "--prune", "encoder", "--prune", "encoder"],
        "prune got encoder,encoder give each value once",
    ),
    "training without end": (
        ["find", TASK, "--epochs", "1e300"],
        "7.5e+301 steps at most 1,000,000,000 fewer",
    ),
    "unknown network": (["find", TASK, "--prune", "encodr"], "'encodr' did you mean encoder all"),
    "unknown layer left out": (
        ["find", TASK, "--set", "prune.exclude=encoder.1.weigh"],
        "'encoder.1.weigh' did you mean encoder.1.weight first, last",
    ),
    "unknown task option": (["find", "vae", "--set", "task.widht=3"], "'widht' it has: width"),
    "task option of a wrong type": (
        ["find", "vae", "--set", "task.width=wide"],
        "'width' 'wide' int like its default",
    ),
    "task option too small": (["find", "vae", "--set", "task.width=0"], "width is 0 1 or more"),
    "batch of nothing": (
        ["find", TASK, "--set", "task.batch_size=0"],
        "'batch_size' is 0 from 1 to 1,000,000",
    ),
    "learning rate below 0": (
        ["find", TASK, "--set", "task.learning_rate=-1.0"],
        "TinyAE.optimizer learning rate: -1.0 mend",
    ),
    "wrong parquet columns": (
        ["find", "vae", "--data", "mnist", "--data-dir", "@columns"],
        "train-00000-of-00001.parquet column image picture",
    ),
    "broken image": (
        ["find", "vae", "--data", "folder:@broken"],
        "007.png --skip-broken",
    ),
    "too few images but the broken": (
        ["find", "vae", "--data", "folder:@few", "--skip-broken"],
        "19 images; at least 20",
    ),
    "changed config in the same folder": (
        ["find", TASK, *ARM, "--set", "task.batch_size=8", "--out", "@out"],
        "another config (task.batch_size 16 -> 8) another folder --out",
    ),
    "changed threads in the same folder": (
        ["find", TASK, *ARM, "--threads", "2", "--out", "@out"],
        "another config (run.threads 1 -> 2) another folder --out",
    ),
    "unreadable config in the folder": (
        ["find", TASK, *ARM, "--out", "@spoilt"],
        "config.json cannot be used another folder --out",
    ),
    "search into a script's folder": (
        ["find", TASK, *ARM, "--out", "@scripted"],
        "scripted holds a search around a training of your own tombola run another folder --out",
    ),
    "ticket of other data": (
        ["train", TASK, "--ticket", "@ticket.safetensors", "--data", "folder:@images", *PLACE],
        "found on other images digits folder-images give the data",
    ),
    "ticket that begins after the end": (
        ["train", TASK, "--ticket", "@late.safetensors", *PLACE],
        "begins at step 1000000 12 steps train longer",
    ),
    "ticket of a round that is not there": (
        ["train", TASK, "--ticket", "@round.safetensors", *PLACE],
        "round 7 1 levels tombola find",
    ),
    "ticket that asks for much memory": (
        ["train", "linear-ae", "--ticket", "@huge.safetensors", *PLACE],
        "does not fit task LinearAE encoder.main.0.weight",
    ),
    "ticket that asks for more than any network has": (
        ["train", "linear-ae", "--ticket", "@endless.safetensors", *PLACE],
        "endless.safetensors width 1000000 at most 65,536",
    ),
    "model that asks for much memory": (
        ["sample", "@vast.safetensors", "--out", "x"],
        "does not fit task LinearAE encoder.main.0.weight",
    ),
    "model of another task": (
        ["sample", "@model.safetensors", "--task", "linear-ae", "--out", "x"],
        "does not fit task LinearAE give the task",
    ),
    "more reconstructions than images": (
        ["sample", "@model.safetensors", "--task", TASK, "--n", "500", "--out", "x"],
        "500 digits 360 at most 360",
    ),
    "model that names a file as its data": (
        ["sample", "@lured.safetensors", "--task", TASK, "--out", "x"],
        "evil.py:images --data",
    ),
    "sample's task is none": (
        ["sample", "@model.safetensors", "--task", f"{TOY}:Path", "--out", "x"],
        "is no tombola.Task derived",
    ),
    "class that is no task": (["find", f"{TOY}:Path"], "is no tombola.Task derived"),
    "task of no family": (["find", "@mine.py:Family"], "'poems' autoencoder, vae, gan"),
    "judge_loss that fails": (
        ["find", "@mine.py:Misjudged"],
        "Misjudged.judge_loss TypeError takes 4 positional arguments mend",
    ),
    "task without a length": (["find", "@mine.py:Endless"], "no training length --steps --epochs"),
    "task whose networks fail": (
        ["find", "@mine.py:Failing", "--steps", "20"],
        "Failing.networks ZeroDivisionError mend",
    ),
    "task without a loss": (
        ["find", "@mine.py:Lossless", "--steps", "20"],
        "Lossless.loss not written mend",
    ),
    "task that cannot be made": (["find", "@mine.py:Unmade"], "cannot be made KeyError mend"),
    "task file that fails": (["find", "@fails.py:Mine"], "fails.py ModuleNotFoundError mend"),
    "data source that fails": (
        ["find", TASK, "--data", "@mine.py:source"],
        "mine.py:source RuntimeError no images today mend",
    ),
    "folder in use": (["find", TASK, *ARM, "--out", "@held"], "in use by process wait --out"),
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(tombola.__file__).parent.parent)}
SUBPROCESSES = [
    "unknown task",
    "rate nan",
    "task file with a syntax error",
    "pickle for a ticket",
    "folder empty",
    "out is a file",
    "cluster is to come",
]

MINE = '''"""Tasks and data of a user that are wrong in their own ways."""
import torch, tombola
class Family(tombola.Task):
    family = "poems"
class Misjudged(tombola.Task):
    family = "autoencoder"
    size, channels = 8, 1
    presets = {"quick": {"steps": 20}}
    def networks(self, shape): return {"n": torch.nn.Conv2d(1, 1, 1)}
    def loss(self, turn, networks, images): return networks["n"](images).mean()
    def reconstruct(self, networks, images): return networks["n"](images)
    def judge_loss(self, networks, images, latents): return {}
class Endless(tombola.Task):
    family = "autoencoder"
    size, channels = 8, 1
    def networks(self, shape): return {"n": torch.nn.Conv2d(1, 1, 1)}
    def loss(self, turn, networks, images): return networks["n"](images).square().mean()
    def reconstruct(self, networks, images): return networks["n"](images)
class Failing(Endless):
    def networks(self, shape): return 1 / 0
class Lossless(Endless):
    loss = tombola.Task.loss
class Unmade(Endless):
    def __init__(self, **options): raise KeyError("x")
def source(): raise RuntimeError("no images today")
'''


def rewritten(source: Path, target: Path, format: str, changes: dict, manifest: dict) -> None:
    """A copy of a sound file with another manifest, its checksum right again."""
    header = read_header(source)
    content = source.read_bytes()
    tensors = {
        n: Raw(e.dtype, e.shape, content[e.begin : e.end]) for n, e in header.entries.items()
    }
    config = {**header.manifest["config"], **changes}
    write_file(target, tensors, {**header.manifest, "config": config, **manifest}, format=format)


def make_folders(root: Path) -> None:
    (root / "empty").mkdir()
    standins.make_folder(root / "one", 1)
    standins.make_folder(root / "few", 20)
    standins.make_folder(root / "broken", 24)
    for name in ("few", "broken"):
        path = root / name / "007.png"
        path.write_bytes(path.read_bytes()[:40])
    standins.make_folder(root / "images", 24)
    (root / "texts").mkdir()
    for number in range(30):
        (root / "texts" / f"{number}.txt").write_text("no image")
    (root / "file").write_text("a file")
    for name in ("damaged", "columns"):
        standins.make_mnist(root / name)
    path = root / "damaged" / "mnist" / "train-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    pq.write_table(
        pa.table({"picture": [b"x"], "digit": [1]}),
        root / "columns" / "mnist" / "train-00000-of-00001.parquet",
    )


def make_texts(root: Path) -> None:
    (root / "syntax.py").write_text("class Mine:\n    def (\n")
    (root / "fails.py").write_text("import no_such_package\nclass Mine: pass\n")
    (root / "mine.py").write_text(MINE)
    (root / "bad.toml").write_text("[search]\nrounds = = 3\n")
    (root / "flat.toml").write_text("rounds = 3\n")
    (root / "deep.toml").write_text(f"x = {'[' * 100_000}\n")
    (root / "long.toml").write_text("#" * (1 << 20) + "\n")
    (root / "blank.py").write_text("1 + 1\n")
    (root / "blank").write_bytes(b"")
    with (root / "pickled").open("wb") as file:
        pickle.dump({"weight": 1}, file)
    with zipfile.ZipFile(root / "zipped", "w") as file:
        file.writestr("archive/data.pkl", "x")
    (root / "other.pt2").write_bytes((root / "zipped").read_bytes())
    (root / "spoilt").mkdir()
    (root / "spoilt" / "config.json").write_text('{"config": {}}')
    (root / "spoilt" / ".lock").write_text("")
    (root / "scripted").mkdir()
    (root / "scripted" / "config.json").write_text('{"config": {"script": {"fixed": {}}}}')
    (root / "scripted" / ".lock").write_text("")


def make_files(root: Path) -> None:
    """A small search's folder, its ticket and model, and damaged or hostile copies of them."""
    assert cli.main(["find", TASK, *ARM, "--out", str(root / "out")]) == 0
    ticket = root / "out" / "tickets" / "seed0-round01.safetensors"
    model = root / "out" / "models" / "dense-seed0-round00.safetensors"
    (root / "ticket.safetensors").write_bytes(ticket.read_bytes())
    (root / "model.safetensors").write_bytes(model.read_bytes())
    content = ticket.read_bytes()
    (root / "truncated").write_bytes(content[:-100])
    place = read_header(ticket).entries["weight.decoder.0.bias"].begin
    flipped = bytes([content[place] ^ 1])
    (root / "flipped").write_bytes(content[:place] + flipped + content[place + 1 :])
    unsaid = dict.fromkeys(("seed", "config"))
    rewritten(ticket, root / "bare.safetensors", TICKET_FORMAT, {}, unsaid)
    rewritten(ticket, root / "late.safetensors", TICKET_FORMAT, {}, {"rewind_step": 10**6})
    rewritten(ticket, root / "round.safetensors", TICKET_FORMAT, {}, {"round": 7})
    large = {"task": {"width": 60_000}}
    name = {"task": "linear-ae"}
    rewritten(ticket, root / "huge.safetensors", TICKET_FORMAT, large, name)
    endless = {"task": {"width": 10**6}}
    rewritten(ticket, root / "endless.safetensors", TICKET_FORMAT, endless, name)
    shape = {"shape": [1, 28, 28]}
    rewritten(model, root / "vast.safetensors", MODEL_FORMAT, large, name | shape)
    lure = root / "evil.py"
    lure.write_text(f"open({str(root / 'ran')!r}, 'w')\nEvil = images = None\n")
    rewritten(model, root / "evil.safetensors", MODEL_FORMAT, {}, {"task": f"{lure}:Evil"})
    rewritten(model, root / "lured.safetensors", MODEL_FORMAT, {}, {"data": f"{lure}:images"})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    make_folders(root)
    make_texts(root)
    with pytest.MonkeyPatch.context() as patch, in_process.Restored():
        in_process.use(patch)
        make_files(root)
    (root / "held").mkdir()
    holder = json.dumps({"pid": os.getpid(), "host": os.uname().nodename, "since": "now"})
    (root / "held" / ".lock").write_text(holder)
    with (root / "held" / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield root


def words_of(case, inputs):
    argv, words = case
    given, shown = ([word.replace("@", f"{inputs}/") for word in each] for each in
                    (argv, words.split()))  # fmt: skip
    return given, shown


def everything(root):
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.name != ".lock" and "__pycache__" not in path.parts
    }


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder at hand of the test's own, on a machine without CUDA and without downloads."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(asked, "_DRIVERS", ())
    monkeypatch.setattr("tombola.data.checks.can_download", lambda: False)
    return place


def check_line(text, words):
    assert text.startswith("error: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    missing = [word for word in words if word not in text]
    assert not missing, text
    assert "Traceback" not in text
    assert len(text) < 900


@pytest.mark.parametrize("name", [*FIRST, *LATER])
def test_bad_input_is_told_in_one_line_and_leaves_nothing(name, inputs, here, capsys):
    argv, words = words_of({**FIRST, **LATER}[name], inputs)
    before = everything(inputs)
    with in_process.Restored():
        code = cli.main(argv)
    out, err = capsys.readouterr()
    assert (code, out) == (2, ""), err
    check_line(err, words)
    assert list(here.rglob("*")) == []
    assert everything(inputs) == before
    assert not (inputs / "ran").exists()


def test_names_options_paths_and_headers_are_checked_before_torch_is_imported(inputs, here):
    cases = {name: words_of(case, inputs)[0] for name, case in FIRST.items()}
    code = """
import contextlib, io, json, sys
from tombola.cli import command_line as cli, words
from tombola.data import checks
words._DRIVERS = ()
checks.can_download = lambda: False
seen = {}
for name, argv in json.loads(sys.stdin.read()).items():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = cli.main(argv)
    heavy = [n for n in ("torch", "scipy", "pyarrow", "PIL", "matplotlib") if n in sys.modules]
    if code != 2 or heavy:
        seen[name] = [code, heavy]
        break
print(json.dumps(seen))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert (done.stdout, done.stderr) == ("{}\n", "")


@pytest.mark.parametrize("name", SUBPROCESSES)
def test_bad_input_as_a_command(name, inputs, here):
    argv, words = words_of(FIRST[name], inputs)
    done = subprocess.run(
        [sys.executable, "-m", "tombola", *argv],
        capture_output=True,
        text=True,
        cwd=here,
        env=ENVIRONMENT,
    )
    assert (done.returncode, done.stdout) == (2, "")
    check_line(done.stderr, words)
    assert list(here.rglob("*")) == []


def test_a_fault_of_ours_is_one_line_without_a_traceback(here, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("worker lost\nTraceback (most recent call last):\n  ...")

    monkeypatch.setattr(api, "carry_out", fail)
    assert cli.main(["find", TASK]) == 1
    error = capsys.readouterr().err
    check_line(error, ["RuntimeError: worker lost (this is a fault of Tombola;", "TOMBOLA_DEBUG=1"])
    monkeypatch.setenv("TOMBOLA_DEBUG", "1")
    with pytest.raises(RuntimeError):
        cli.main(["find", TASK])


def test_only_what_is_written_alike_is_suggested(here, capsys):
    """Half alike is another option: nobody means --seeds who asks train for --rounds."""
    for argv in (["train", "vae", "--rounds", "3"], ["find", "--find"], ["find", "vae", "--n"]):
        assert cli.main(argv) == 2
        assert "did you mean" not in capsys.readouterr().err
    assert cli.main(["train", "vae", "--sedes", "3"]) == 2
    assert "did you mean --seeds? " in capsys.readouterr().err


def test_there_are_enough_cases():
    assert len(FIRST) + len(LATER) >= 30

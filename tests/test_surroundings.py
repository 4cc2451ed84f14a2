"""Whatever folder, file system, start-up file or signal: the search holds, or one line says why."""

from __future__ import annotations

import errno
import json
import os
import queue
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import in_process
import tombola
from tombola.cli import command_line as cli
from tombola.config import atomic, registry
from tombola.config.surroundings import own_source
from tombola.engine.executors import local as local_pool
from tombola.errors import ConfigError
from tombola.store import lock
from tombola.store.container import canonical
from tombola.store.lock import locked

SOURCE = str(Path(tombola.__file__).parent.parent)
TASK = """
import sys
import tombola
from torch import nn
from layers_beside import encoder

class AE(tombola.Task):
    family, size, channels = "autoencoder", 8, 1
    presets = {"quick": {"steps": 12}}

    def networks(self, shape):
        decoder = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Unflatten(1, shape))
        return {"encoder": encoder(), "decoder": decoder}

    def loss(self, turn, networks, images):
        return (self.reconstruct(networks, images) - images).square().mean()

    def reconstruct(self, networks, images):
        return networks["decoder"](networks["encoder"](images))
"""
LAYERS = """
from torch import nn

def encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
"""
START = """
import os, sys
os.write(1, b"[1, 2]\\n" + bytes([255]) + b" welcome")
"""
RUN = [
    "--data",
    "digits",
    "--steps",
    "4",
    "--rounds",
    "1",
    "--seeds",
    "1",
    "--controls",
    "none",
    "--rewind",
    "1it",
    "--workers",
    "1",
    "--threads",
    "1",
    "--set",
    "judge.samples=20",
    "--set",
    "judge.validation_samples=0",
    "--out",
    "out",
]


@pytest.mark.slow
def test_code_of_the_current_folder_is_not_run_and_a_chatty_start_up_is_no_message(tmp_path):
    here, start, project = tmp_path / "here", tmp_path / "start", tmp_path / "project"
    for folder, files in (
        (here, {"queue.py": "open('was_run', 'w')\nraise SystemExit('run')"}),
        (start, {"sitecustomize.py": START}),
        (project, {"task.py": TASK, "layers_beside.py": LAYERS}),
    ):
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    path = os.pathsep.join([str(start), SOURCE])
    done = subprocess.run(
        [sys.executable, "-m", "tombola", "find", f"{project / 'task.py'}:AE", "--anyway", *RUN],
        cwd=here,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in here.iterdir()) == ["out", "queue.py"]
    assert b"welcome" in done.stderr  # what the worker printed


def test_lines_that_are_no_messages_go_to_stderr_and_a_listener_ends_with_none(capsys):
    text = b'hello\\n\\xff\\n[1]\\n{"event": "done"}\\n\\n{"steps": 1}\\n'
    process = subprocess.Popen(
        ["printf", text.decode()],
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="backslashreplace",
    )
    messages: queue.Queue = queue.Queue()
    local_pool._listen(process, 3, messages)
    process.wait()
    process.stdout.close()
    assert [messages.get_nowait() for _ in range(2)] == [(3, {"event": "done"}), (3, None)]
    assert capsys.readouterr().err == 'hello\\\n[1]\n{"steps": 1}\n'.replace("\\\n", "\n\\xff\n")


def test_a_user_s_file_finds_its_neighbours_first_while_it_is_imported_and_last_later(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "_ASKED_FROM", [])
    (tmp_path / "own").mkdir()
    (tmp_path / "asked").mkdir()
    (tmp_path / "own" / "beside_one.py").write_text("here = 'own'")
    for name in ("beside_one", "beside_two"):
        (tmp_path / "asked" / f"{name}.py").write_text("here = 'asked'")
    registry.look_beside([str(tmp_path / "asked"), *sys.path])
    (tmp_path / "own" / "mine.py").write_text(
        "import sys\nimport beside_one, beside_two\n"
        "def found(scores, loss, masks, seed):\n    return beside_one.here, beside_two.here\n"
        "path = list(sys.path)\n"
    )
    before = list(sys.path)
    found = registry.CRITERIA.load(f"{tmp_path / 'own' / 'mine.py'}:found")
    assert found(None, None, None, 0) == ("own", "asked")
    extra = [str(tmp_path / "own"), str(tmp_path / "asked")]
    assert found.__globals__["path"] == [*extra, *before]
    assert sys.path == [*before, *extra]


def test_the_module_command_forgets_the_current_folder(tmp_path):
    (tmp_path / "argparse.py").write_text("raise SystemExit('run')")
    done = subprocess.run(
        [sys.executable, "-m", "tombola", "--version"],
        cwd=tmp_path,
        env={**os.environ, **own_source()},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, f"tombola {tombola.__version__}\n")


# --- locks ---


def take(out, *note):
    """Hold a folder for a moment."""
    with locked(out, *note):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_without_locks_a_search_goes_on_and_says_so(number, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    notes = []
    in_use = pytest.raises(ConfigError, match=f"in use by process {os.getpid()} ")
    with locked(tmp_path / "out", notes.append), in_use:
        take(tmp_path / "out")
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "out", notes.append):
        _ = 1 / 0
    take(tmp_path / "out", notes.append)  # whose holder has ended by an error
    (line,) = set(notes)
    assert line.startswith(
        f"the file system of {tmp_path / 'out'} has no locks ({os.strerror(number)})"
    )
    elsewhere = {"pid": 1, "host": "another-host", "since": "then"}
    (tmp_path / "out" / ".lock").write_text(json.dumps(elsewhere))
    with pytest.raises(ConfigError, match="in use by process 1 on another-host since then"):
        take(tmp_path / "out")


def test_a_lock_that_cannot_be_had_names_the_folder(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=rf"cannot lock {tmp_path}/out: Input/output error"):
        take(tmp_path / "out")


HOLD = """
import os, subprocess, sys
from pathlib import Path
from tombola.store.lock import locked
with locked(Path(sys.argv[1])) as lock:
    child = subprocess.Popen(["sleep", "60"], pass_fds=(lock,), stdout=subprocess.DEVNULL)
    print(child.pid, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/fdinfo").exists(), reason="only Linux tells")
def test_a_lock_names_the_process_that_holds_it_though_its_parent_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.0)
    done = subprocess.run(
        [sys.executable, "-c", HOLD, str(tmp_path / "out")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **own_source()},
    )
    child = int(done.stdout)
    waiting = os.open(tmp_path / "out" / ".lock", os.O_RDWR)  # has the file open, not the lock
    try:
        with pytest.raises(ConfigError) as caught, locked(tmp_path / "out"):
            pass
    finally:
        os.close(waiting)
        os.kill(child, signal.SIGKILL)
    text = rf"in use by process {child}, started by process \d+ on {socket.gethostname()}, "
    assert re.search(text + r"which is gone, since [-\d]+ [:\d]+; wait for it", str(caught.value))


@pytest.mark.parametrize("name", ["store", "tickets", "models", "samples", "logs", "transfer"])
def test_a_file_in_the_place_of_a_folder_is_refused_at_once(name, tmp_path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name} is a file, and a search needs a folder"):
        take(tmp_path)
    assert (tmp_path / name).read_text() == "mine"


HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Hide())
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
from pathlib import Path
from tombola.cli import command_line as cli
print(cli.main(["list", "tasks"]))
from tombola.store.lock import locked
cli._run = lambda words: locked(Path(words[0])).__enter__()
print(cli.main(sys.argv[1:]))
"""


def test_where_unix_modules_are_missing_commands_load_and_a_search_says_what_it_needs(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", HIDE, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env={**os.environ, **own_source()},
    )
    assert done.stdout.splitlines()[-2:] == ["0", "2"], done.stderr
    assert "error: a search needs a system with file locks" in done.stderr
    assert "Windows" in done.stderr
    assert not (tmp_path / "out").exists()


# --- files ---


def test_a_folder_s_name_may_be_any_bytes(tmp_path, monkeypatch, capfd):
    in_process.use(monkeypatch)
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9"))
    task = f"{Path(__file__).parent / 'toy_task.py'}:TinyAE"
    with in_process.Restored():
        assert cli.main(["find", task, *RUN[:-1], str(out)]) == 0
        assert cli.main(["report", str(out)]) == 0
    assert rb"\udcff\udce9" in (out / "report.html").read_bytes()
    odd = {"folder:/\udcff": ["\udce9", "\U0001f3b2"], "n": 1}
    text = canonical(odd)
    assert text == r'{"folder:/\\udcff":["\\udce9","\ud83c\udfb2"],"n":1}'


def test_what_a_killed_writer_left_is_cleared_and_a_living_one_s_is_not(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = [
        f".report.html.{gone.pid}-0123abcd.part",
        f"samples/.dense-round00.png.{gone.pid}.tmp",
        f"store/a.part/.judge-8.safetensors.{gone.pid}-807e2fe1.part",
        f"transfer/dcgan/tickets/.x.{gone.pid}-807e2fe1.part",
    ]
    kept = [
        f".report.html.{os.getpid()}-0123abcd.part",
        f"samples/dense.{gone.pid}.tmp",
        "tickets/.notes.tmp",
        f"other/.x.{gone.pid}-807e2fe1.part",
        "store/a.part/checkpoint.safetensors",
    ]
    for name in [*dead, *kept]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    with locked(tmp_path):
        assert [name for name in dead if (tmp_path / name).exists()] == []
        assert [name for name in kept if not (tmp_path / name).exists()] == []


def test_a_file_is_written_beside_renamed_and_synced_and_follows_no_link(tmp_path, monkeypatch):
    seen = []
    replace, fsync = os.replace, os.fsync

    def renaming(a, b):
        seen.append("rename")
        replace(a, b)

    def syncing(descriptor):
        seen.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", renaming)
    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda n: "ab" * n)
    atomic.write_atomic(tmp_path / "x", b"new")
    assert seen == ["file", "rename", "folder"]
    planted = tmp_path / f".x.{os.getpid()}-abababab.part"
    planted.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        atomic.write_atomic(tmp_path / "x", b"other")
    assert (tmp_path / "x").read_bytes() == b"new"
    assert not (tmp_path / "elsewhere").exists()
    long = "\u00fc" * 120 + ".html"  # 245 bytes
    atomic.write_atomic(tmp_path / long, b"new")
    assert (tmp_path / long).read_bytes() == b"new"


def test_a_full_disk_names_the_file(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(cli, "_run", lambda _: atomic.write_atomic(tmp_path / "x", b"new"))
    assert cli.main(["find"]) == 1
    line = capsys.readouterr().err
    assert f"the disk is full ({tmp_path / 'x'}: No space left on device); free" in line
    assert list(tmp_path.iterdir()) == []

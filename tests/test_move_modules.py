"""The script that moves modules: files, imports, names in strings, and what it refuses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "tools" / "move_modules.py"
spec = importlib.util.spec_from_file_location("move_modules", SCRIPT)
assert spec is not None
assert spec.loader is not None
move_modules = importlib.util.module_from_spec(spec)
spec.loader.exec_module(move_modules)

FILES = {
    "src/box/__init__.py": '"""A box."""\n',
    "src/box/low/__init__.py": "",
    "src/box/low/chain.py": "LINK = 3\n\n\ndef pull():\n    return LINK\n",
    "src/box/low/other.py": "from box.low.chain import LINK  # of a chain\n\nTWICE = 2 * LINK\n",
    "src/box/plan/__init__.py": "",
    "src/box/top.py": (
        "import box.low.chain\n"
        "from box.low import (\n    chain,\n    other,\n)\n\n\n"
        "def go():\n    from box.low import chain as c, other; return c.LINK + other.TWICE\n\n\n"
        "def known():\n    return chain.pull() + box.low.chain.LINK, other.TWICE\n"
    ),
    "tests/test_top.py": 'NAME = "box.low.chain.pull"\nNEAR = "box.low.chained", "my.box.low"\n',
    "docs/page.md": "See `box.low.chain`.\n",
}


@pytest.fixture
def root(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_module_that_is_moved_and_renamed_is_found_where_it_went(root):
    touched = move_modules.move(root, {"box.low.chain": "box.plan.links"})
    assert [str(path.relative_to(root)) for path in touched] == [
        "docs/page.md", "src/box/low/other.py", "src/box/plan/links.py", "src/box/top.py",
        "tests/test_top.py",
    ]  # fmt: skip
    assert not (root / "src/box/low/chain.py").exists()
    assert (root / "src/box/low/other.py").read_text().splitlines()[0] == (
        "from box.plan.links import LINK  # of a chain"
    )
    assert (root / "docs/page.md").read_text() == "See `box.plan.links`.\n"
    assert (root / "tests/test_top.py").read_text() == (
        'NAME = "box.plan.links.pull"\nNEAR = "box.low.chained", "my.box.low"\n'
    )
    words = [sys.executable, "-c", "from box import top; print(top.go(), top.known())"]
    said = subprocess.run(words, cwd=root / "src", capture_output=True, text=True, check=True)
    assert said.stdout == "9 (6, 6)\n"


def test_a_package_takes_what_lies_below_it_along(root):
    move_modules.move(root, {"box.low": "box.deep.down", "box.plan": "box.deep"})
    words = [sys.executable, "-c", "import box.deep.down.other as o; print(o.TWICE)"]
    said = subprocess.run(words, cwd=root / "src", capture_output=True, text=True, check=True)
    assert said.stdout == "6\n"
    assert not list((root / "src/box").glob("low/*.py"))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"box.lower": "box.plan"}, "no such module: box.lower"),
        ({"box.low.chain": "box.low.other"}, "two modules would go to one place"),
        ({"box.low.chain": "box.new.chain"}, r"box.new has no __init__\.py; write it first"),
    ],
)
def test_what_cannot_be_moved_is_refused_and_nothing_is_written(root, names, words):
    with pytest.raises(ValueError, match=words):
        move_modules.move(root, names)
    assert {name: (root / name).read_text() for name in FILES} == FILES


def test_a_relative_import_is_refused_with_its_place(root):
    (root / "src/box/low/other.py").write_text("from .chain import LINK\n")
    with pytest.raises(ValueError, match=r"src.box.low.other\.py: line 1: a relative import"):
        move_modules.move(root, {"box.low.chain": "box.plan.links"})
    assert (root / "src/box/low/chain.py").exists()

"""Does the house stand as drawn? Imports, budgets and habits, read from the source itself.

Budgets: a file has at most 400 lines, a function 60 lines, and 6 arguments that can be given by
position (``self`` and ``cls`` apart), 8 with those that only a keyword reaches.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "tombola"

# Lowest floor first.
TIERS = (
    {"errors"},
    {"config", "models"},
    {"data", "metrics", "sparsity", "store", "tasks"},
    {"plan", "report", "tickets", "training"},
    {"engine", "results"},
    {"api", "loops"},
    {"__init__", "cli"},
    {"__main__"},
)
SIDEWAYS = {("engine", "results"), ("plan", "tickets"), ("plan", "training")}
"""Rooms of one floor of which the first imports the second; only fewer."""
RANK = {room: rank for rank, tier in enumerate(TIERS) for room in tier}

FILE_LINES, FUNCTION_LINES, POSITIONAL, ARGUMENTS = 400, 60, 6, 8
ROOMS, FLOORS = 20, 8
"""Names at the top of the package, and floors: at most so many."""
SOURCE_LINES = 36_721
"""Lines of all Python files of the package, as ``wc -l`` counts them; to be 23,500. More only in a
commit that raises the number and says why."""
SLACK_LINES = 100
"""So many lines below it the number is lowered, or the next commit would grow unseen."""
TYPED_CIRCLES = {
    ("tombola.loops.book", "tombola.loops.earlier"),
}
"""Modules that know each other, at least one the other for the type checker alone; only fewer."""
PARTICIPLES = Path(__file__).with_name("participles.txt")
"""Functions whose name is a lone participle; only fewer: a new one is named by a verb."""
IRREGULAR = {
    "begun", "bound", "broken", "brought", "built", "caught", "chosen", "done", "drawn", "driven",
    "fallen", "fed", "felt", "forgotten", "found", "frozen", "given", "gone", "grown", "heard",
    "held", "hidden", "kept", "known", "laid", "led", "left", "lent", "lost", "made", "meant",
    "met", "paid", "said", "seen", "sent", "shown", "sought", "spent", "spoken", "sunk", "swept",
    "taken", "taught", "thought", "thrown", "told", "torn", "understood", "won", "worn", "woven",
    "written",
}  # fmt: skip
NO_PARTICIPLES = {"embed", "exceed", "feed", "need", "proceed", "seed", "speed"}
SPEAKING = {"cli/command_line.py", "cli/commands.py", "cli/travel.py"}
"""The only files that print."""
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "os.system"}
UNSAFE_WORDS = {("allow_pickle", "True"), ("weights_only", "False"), ("shell", "True")}
HANDLERS = {"addHandler", "basicConfig", "dictConfig", "fileConfig", "StreamHandler"}

FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in FILES}
MODULES = sorted(
    ".".join(("tombola", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    )
    for path in FILES
    if path.name != "__main__.py"
)
WRITTEN = {".py", ".md", ".toml", ".txt", ".cff", ".yaml", ".css", ".js", ".j2", ".html", ".tex"}
"""Kinds of text files that people write; tables, pictures and reports are made."""


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def walk_run(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all below it but those that only a type checker reads."""
    yield node
    for child in ast.iter_child_nodes(node):
        if is_type_checking(child):
            for alternative in child.orelse:  # type: ignore[attr-defined]
                yield from walk_run(alternative)
        else:
            yield from walk_run(child)


def imports(path: Path, tree: ast.AST, *, typed: bool = False) -> Iterator[tuple[ast.AST, str]]:
    """(node, full name of what is imported) of each import that runs; ``typed``: of all."""
    package = ("tombola", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree) if typed else walk_run(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *(node.module or "").split("."))).strip(".")
            for alias in node.names:
                yield node, f"{module}.{alias.name}"


def imported_rooms(path: Path, tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    """(node, room of tombola) of each import; the package itself is the room ``__init__``."""
    for node, name in imports(path, tree):
        parts = name.split(".")
        if parts[0] == "tombola":
            yield node, parts[1] if len(parts) > 1 and parts[1] in RANK else "__init__"


def upward(path: Path, tree: ast.AST) -> list[str]:
    here = room(path)
    return [
        f"{place(path, node)} {here} (floor {RANK[here]}) imports {there} (floor {RANK[there]})"
        for node, there in imported_rooms(path, tree)
        if there != here and RANK[there] >= RANK[here] and (here, there) not in SIDEWAYS
    ]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def too_long(path: Path, text: str, tree: ast.AST) -> list[str]:
    found = []
    lines = text.count("\n")
    if lines > FILE_LINES:
        found.append(f"{place(path, tree)} {lines} lines")
    for node in functions(tree):
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        positional = [
            a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")
        ]
        total = len(positional) + len(node.args.kwonlyargs)
        if length > FUNCTION_LINES:
            found.append(f"{place(path, node)} {node.name}: {length} lines")
        if len(positional) > POSITIONAL or total > ARGUMENTS:
            found.append(f"{place(path, node)} {node.name}: {total} arguments")
    return found


def forbidden(path: Path, tree: ast.AST) -> list[str]:
    """Uses of print, code in files, and logging handlers."""
    found = []
    for node, name in imports(path, tree):
        if name.split(".")[0] in UNSAFE_MODULES:
            found.append(f"{place(path, node)} imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            name = ast.unparse(node)
            if name in UNSAFE_CALLS or name.rpartition(".")[2] in HANDLERS:
                found.append(f"{place(path, node)} uses {name}")
            if name == "print" and path.relative_to(PACKAGE).as_posix() not in SPEAKING:
                found.append(f"{place(path, node)} prints")
        if isinstance(node, ast.keyword) and (node.arg, ast.unparse(node.value)) in UNSAFE_WORDS:
            found.append(f"{place(path, node.value)} says {ast.unparse(node)}")
    return found


def undocumented(path: Path, tree: ast.Module) -> list[str]:
    found = [] if ast.get_docstring(tree) else [f"{place(path, tree)} module"]

    def look(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            kinds = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            if not isinstance(child, kinds) or child.name.startswith("_"):
                continue
            if not ast.get_docstring(child):
                found.append(f"{place(path, child)} {prefix}{child.name}")
            if isinstance(child, ast.ClassDef) and "Protocol" not in map(ast.unparse, child.bases):
                look(child, f"{child.name}.")

    look(tree, "")
    return found


def test_every_room_has_a_rank() -> None:
    assert {room(path) for path in FILES} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path: Path) -> None:
    assert upward(path, TREES[path]) == []


def test_rooms_of_one_floor_that_import_each_other_are_those_there_were() -> None:
    found = {
        (room(path), there) for path in FILES for _, there in imported_rooms(path, TREES[path])
    }
    assert {pair for pair in SIDEWAYS if pair not in found} == set(), "take it from the list"
    assert not {(other, one) for one, other in SIDEWAYS} & found


def edges_between(*, typed: bool) -> dict[str, set[str]]:
    """Module -> the modules that it imports; the package itself, which is lazy, imports none."""
    found = {}
    for path in FILES:
        name = ".".join(("tombola", *path.relative_to(PACKAGE).with_suffix("").parts))
        below = {
            module
            for _, full in imports(
                path, TREES[path], typed=typed and path != PACKAGE / "__init__.py"
            )
            for module in (full, full.rpartition(".")[0])
            if module in MODULES
        }
        found[name] = below
    return found


def circle(edges: dict[str, set[str]]) -> dict[str, set[str]]:
    """The modules that are in a circle or above one."""
    while leaves := {name for name, below in edges.items() if not below & edges.keys()}:
        edges = {name: below for name, below in edges.items() if name not in leaves}
    return edges


def test_modules_of_a_room_do_not_import_in_circles() -> None:
    assert circle(edges_between(typed=False)) == {}


def test_imports_for_the_type_checker_make_no_circles_but_those_there_were() -> None:
    edges = edges_between(typed=True)
    for one, other in TYPED_CIRCLES:
        assert other in edges[one], f"{one} and {other} know each other no more: take them out"
        assert one in edges[other], f"{one} and {other} know each other no more: take them out"
        edges[one] = edges[one] - {other}
        edges[other] = edges[other] - {one}
    assert circle(edges) == {}


def is_participle(name: str) -> bool:
    word = name.strip("_")
    regular = re.fullmatch("[a-z]+ed", word) is not None and word not in NO_PARTICIPLES
    return regular or word in IRREGULAR


def participles(path: Path, tree: ast.AST) -> Iterator[str]:
    """Dotted names of functions that are lone participles; properties are no functions."""
    module = ".".join(("tombola", *path.relative_to(PACKAGE).with_suffix("").parts))

    def look(node: ast.AST, prefix: str) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                inner = f"{prefix}.{child.name}"
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                said = " ".join(map(ast.unparse, child.decorator_list))
                if is_participle(child.name) and "property" not in said:
                    yield inner
            yield from look(child, inner)

    return look(tree, module)


def test_functions_are_named_by_verbs_but_those_there_were() -> None:
    found = sorted({name for path in FILES for name in participles(path, TREES[path])})
    lines = PARTICIPLES.read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    assert [n for n in found if n not in listed] == [], "name the function by a verb"
    assert [n for n in listed if n not in found] == [], "renamed or gone: take it from the list"


def test_the_house_only_shrinks() -> None:
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in FILES)
    assert SOURCE_LINES - SLACK_LINES <= lines <= SOURCE_LINES
    assert len(RANK) <= ROOMS
    assert len(TIERS) <= FLOORS


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_budgets(path: Path) -> None:
    assert too_long(path, path.read_text(encoding="utf-8"), TREES[path]) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_no_print_no_handlers_no_code_from_files(path: Path) -> None:
    assert forbidden(path, TREES[path]) == []


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_everything_public_says_what_it_is(path: Path) -> None:
    assert undocumented(path, TREES[path]) == []


def written_files() -> list[Path]:
    """The text files of the project that people write, wherever they lie."""
    found = [ROOT / "Makefile", ROOT / ".ci" / "run", *ROOT.glob("*.*")]
    for folder in ("src", "tests", "tools", "docs", "examples", "benchmarks"):
        found += (ROOT / folder).rglob("*")
    return sorted(
        path
        for path in found
        if path.is_file()
        and (path.suffix in WRITTEN or path.name in ("Makefile", "run"))
        and not any(part.endswith(".egg-info") or part == "__pycache__" for part in path.parts)
        and not path.is_relative_to(ROOT / "docs" / "results")
    )


def odd_lines(text: str) -> list[str]:
    """Lines with characters beyond ASCII, or with a path of one machine."""
    machine = re.compile(r"(?<![\w.])/(?:work|farm|root|home|Users|tmp|mnt)/\w")
    return [
        f"{number}: {line.strip()[:80]!r}"
        for number, line in enumerate(text.splitlines(), 1)
        if not line.isascii() or machine.search(line)
    ]


def test_text_is_ascii_and_names_no_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in written_files()
        if path != Path(__file__).resolve()
        for line in odd_lines(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_git_leaves_no_source_out() -> None:
    # A pattern of .gitignore without its slash once left out a package of the same name.
    asked = ["git", "ls-files", "--others", "--ignored", "--exclude-standard"]
    asked += ["src", "tests", "tools", "docs", "examples", "benchmarks"]
    ignored = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    kept = ("__pycache__", ".egg-info", ".hypothesis")
    assert [n for n in ignored.stdout.split() if not any(part in n for part in kept)] == []


# Below: the checks above see what they are there to see.


@pytest.mark.parametrize(
    ("file", "line", "count"),
    [
        ("models/x.py", "import tombola.tasks.base", 1),
        ("models/x.py", "from tombola.config.runtime import rng", 1),
        ("models/x.py", "from tombola import config", 1),
        ("models/x.py", "from ..tasks import base", 1),
        ("models/x.py", "from .blocks import conv", 0),
        ("models/x.py", "def f():\n    from tombola import api", 1),
        ("models/x.py", "if TYPE_CHECKING:\n    from tombola import api", 0),
        ("models/x.py", "if TYPE_CHECKING:\n    pass\nelse:\n    from tombola import api", 1),
        ("models/x.py", "import tombola", 1),
        ("models/x.py", "from tombola.errors import ConfigError", 0),
        ("engine/x.py", "from tombola.models import gans, vaes", 0),
        ("engine/x.py", "from tombola.report import page, plots", 0),
        ("engine/x.py", "from tombola.results import output, exports", 0),
        ("results/x.py", "from tombola.engine import search, phases", 2),
    ],
)
def test_an_import_that_points_up_or_sideways_is_seen(file: str, line: str, count: int) -> None:
    assert len(upward(PACKAGE / file, ast.parse(line))) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("x\n" * 400, 0),
        ("x\n" * 401, 1),
        ("def f():\n" + "    x\n" * 59, 0),
        ("def f():\n" + "    x\n" * 60, 1),
        ("class A:\n    async def f(self, a, b, c, d, e, f, *, g, h): ...\n", 0),
        ("def f(a, /, b, c, d, e, f, g): ...\n", 1),
        ("def f(a, *, b, c, d, e, f, g, h, i): ...\n", 1),
    ],
)
def test_a_budget_that_is_passed_is_seen(text: str, count: int) -> None:
    assert len(too_long(PACKAGE / "x.py", text, ast.parse(text))) == count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("print(1)", 1),
        ("list(map(print, x))", 1),
        ("import pickle", 1),
        ("from joblib import load", 1),
        ("torch.load(path)", 1),
        ("eval(text)", 1),
        ("network.eval()", 0),
        ("re.compile(text)", 0),
        ("np.load(path, allow_pickle=True)", 1),
        ("np.load(path, allow_pickle=False)", 0),
        ("logging.basicConfig()", 1),
        ("logger.addHandler(handler)", 1),
    ],
)
def test_a_forbidden_use_is_seen(text: str, count: int) -> None:
    assert len(forbidden(PACKAGE / "x.py", ast.parse(text))) == count
    assert forbidden(PACKAGE / "cli/commands.py", ast.parse("print(1)")) == []


def test_a_circle_is_seen() -> None:
    edges = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}
    assert circle(edges) == {"a": {"b"}, "b": {"c"}, "c": {"b"}}


def test_a_lone_participle_is_seen() -> None:
    text = (
        "def told(): ...\ndef _settled():\n    def kept(): ...\ndef seed(): ...\n"
        "class A:\n    @property\n    def made(self): ...\n    def drawn(self): ...\n"
        "def told_by(): ...\n"
    )
    found = list(participles(PACKAGE / "x.py", ast.parse(text)))
    assert found == [f"tombola.x.{n}" for n in ("told", "_settled", "_settled.kept", "A.drawn")]


def test_a_missing_docstring_is_seen() -> None:
    text = '"""A module."""\nclass A:\n    """A class."""\n    def f(self): ...\ndef _g(): ...\n'
    assert len(undocumented(PACKAGE / "x.py", ast.parse(text))) == 1
    assert len(undocumented(PACKAGE / "x.py", ast.parse("def g(): ..."))) == 2


def test_an_odd_character_or_path_is_seen() -> None:
    assert len(odd_lines("a\nFr\u00e9chet\n")) == 1
    assert len(odd_lines("cd " + "/".join(("", "home", "me")) + "\n")) == 1
    assert odd_lines("see docs/home/me and ~/.cache/tombola\n") == []


MAKERS = {
    "arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace",
    "logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "scalar_tensor",
    "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
"""What torch makes on its default device, which a user's script may have set to another."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_tensors_are_made_on_a_device_that_is_named(path):
    if room(path) == "models":  # their draws are of the device that work is counted on
        return
    calls = [
        node
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("torch.")
        and ast.unparse(node.func).removeprefix("torch.") in MAKERS
        and not any(keyword.arg == "device" for keyword in node.keywords)
    ]
    assert not [place(path, node) for node in calls]

"""What every test has: a place of its own for caches, no settings of the caller, one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

# Before torch is imported anywhere: a test of milliseconds loses time to a second thread.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_configure(config: pytest.Config) -> None:
    """Marks beside those of pyproject.toml."""
    config.addinivalue_line("markers", "long: takes minutes; left out of make test, see make long")


@pytest.fixture(autouse=True)
def _own_surroundings(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Nothing of the caller's reaches a test, and no test writes where the caller would see it."""
    for name in ("TOMBOLA_DATA", "TOMBOLA_INCEPTION", "TOMBOLA_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    # One cache for all tests of a session: what is decoded or trained once is used again.
    cache = tmp_path_factory.getbasetemp() / "tombola-cache"
    monkeypatch.setenv("TOMBOLA_CACHE", str(cache))


@pytest.fixture(autouse=True, scope="module")
def _short_trainings_go_on(request: pytest.FixtureRequest) -> Iterator[None]:
    """A few steps teach nothing, and a search of such networks would end before its tickets.

    So ``search.anyway`` is on here, but in modules that say ``AS_USERS_DO = True``.
    """
    from tombola.config.search import SearchSection

    defaults = SearchSection.__init__.__kwdefaults__
    assert defaults is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "anyway", not getattr(request.module, "AS_USERS_DO", False))
        yield


@pytest.fixture(autouse=True)
def _torch_as_found() -> Iterator[None]:
    """A test that sets torch's threads, default type or determinism sets them for itself only."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads(), torch.get_default_dtype()
    yield
    if torch.get_num_threads() != before[0]:
        torch.set_num_threads(before[0])
    torch.set_default_dtype(before[1])


@pytest.fixture(autouse=True)
def _registries_as_found() -> Iterator[None]:
    """A name that a test registers is gone after it."""
    from tombola.config import registry
    from tombola.metrics import rules

    tables = [v._entries for v in vars(registry).values() if isinstance(v, registry.Registry)]
    tables.append(rules._RULES)
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)

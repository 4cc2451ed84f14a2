"""How does a data set that is not there get there? By huggingface_hub, if it is installed.

The library downloads with a progress bar; the SHA-256 that the hub lists for each file is checked
here, before the file gets its name.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import shutil
import tempfile
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tombola.data.checks import HUB_REPOSITORIES, data_root, where_to_put
from tombola.errors import DataError

REACH_SECONDS = 3.0
"""How long the hub may take to answer at all, before the library with its retries is tried."""


def download(name: str, data_dir: Path | None) -> None:
    """Fetch the {train,test}-*.parquet files of a data set into its folder.

    DataError, within seconds when there is no network, that says which file to put where.
    """
    try:
        hub = importlib.import_module("huggingface_hub")  # optional, and slow to import
    except ImportError as error:
        raise DataError(
            where_to_put(
                name, data_dir, "huggingface_hub is not installed, so it cannot be downloaded"
            )
        ) from error
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not is_reachable(endpoint, REACH_SECONDS):
        raise DataError(
            where_to_put(name, data_dir, f"{endpoint} cannot be reached to download it")
        )
    repository, folder = HUB_REPOSITORIES[name], data_root(data_dir) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        entries = hub.HfApi().list_repo_tree(repository, repo_type="dataset", recursive=True)
        wanted = [
            entry
            for entry in entries
            if re.fullmatch(r"(train|test)-\d+-of-\d+\.parquet", Path(entry.path).name)
        ]
        if not wanted:
            raise DataError(where_to_put(name, data_dir, f"{repository} has no such parquet files"))
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
            for entry in wanted:
                _fetch(hub, repository, entry, Path(part), folder)
    except DataError:
        raise
    except Exception as error:  # the library raises its own, its HTTP client's and the system's
        reason = f"its download failed ({type(error).__name__}: {str(error).splitlines()[0][:80]})"
        raise DataError(where_to_put(name, data_dir, reason)) from error


def _fetch(hub: Any, repository: str, entry: Any, part: Path, folder: Path) -> None:
    """Download one file, check its SHA-256 and move it to its place."""
    name = entry.path
    target = folder / Path(name).name
    if target.exists():
        return
    path = Path(hub.hf_hub_download(repository, name, repo_type="dataset", local_dir=part))
    listed = getattr(entry, "lfs", None)
    if listed is not None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != listed.sha256:
            raise DataError(
                f"{name} of {repository} arrived with SHA-256 {digest[:16]}..., not "
                f"{listed.sha256[:16]}...; run the same command again"
            )
    shutil.move(path, target)


def is_reachable(url: str, seconds: float) -> bool:
    """Whether a server answers at all in that time.

    On a thread of its own, as the look-up of a host name cannot be given a time limit.
    """
    answered = threading.Event()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
        except urllib.error.HTTPError:
            pass  # an answer, if an unfriendly one
        except (OSError, ValueError):
            return
        answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()

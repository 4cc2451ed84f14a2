"""How do files go to the Hugging Face hub and come back? ``hub:user/name[@revision][/file]``.

The only place that speaks to the library huggingface_hub, which is an optional extra. What comes
from the hub is a file on this disk like any stranger's: whoever reads it checks it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tombola.errors import ConfigError, TicketError

PREFIX = "hub:"
TICKET_FILE, MODEL_FILE, CARD_FILE = "ticket.safetensors", "model.safetensors", "README.md"
"""Names that files are published under, and looked for where no other is given."""
MARK = "library_name: tombola"
"""The line of a model card by which Tombola knows its own."""
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}"
_SPEC = re.compile(rf"hub:({_PART}/{_PART})(?:@({_PART}))?(?:/((?:{_PART}/){{0,8}}{_PART}))?")
_EXTRA = 'pip install "tombola[hub]"'


@dataclass(frozen=True)
class Place:
    """A repository on the hub, and what of it is meant."""

    repository: str
    revision: str | None
    """A branch, a tag or a commit; None = the newest of the main branch."""
    file: str | None

    @property
    def text(self) -> str:
        """The place as it is written."""
        at, file = self.revision and f"@{self.revision}", self.file and f"/{self.file}"
        return f"{PREFIX}{self.repository}{at or ''}{file or ''}"


def is_hub(given: object) -> bool:
    """Whether a name of a file means one on the hub."""
    return isinstance(given, str | Path) and str(given).startswith(PREFIX)


def parse(text: str) -> Place:
    """``hub:user/name[@revision][/file]`` -> its parts; ConfigError for anything else.

    Only .safetensors files are ever fetched: they hold no code.
    """
    found = _SPEC.fullmatch(text)
    if found is None or ".." in text:
        raise ConfigError(
            f"{text!r} is no place on the hub; write hub:user/name, and behind it @revision or "
            "/file.safetensors where needed (letters, digits, - _ and .)"
        )
    repository, revision, file = found.groups()
    if file is not None and not file.endswith(".safetensors"):
        raise ConfigError(f"{text!r} names {file}; only .safetensors files come from the hub")
    return Place(repository, revision, file)


def resolve(given: str | Path) -> Path:
    """The file on this disk that a name stands for: a path as it is, ``hub:...`` fetched.

    A file that is in the library's cache and has not changed is not fetched again, and without a
    network the cached one is taken. Without a file's name it is ticket.safetensors, or where there
    is none model.safetensors. ConfigError for a misspelt place or without the extra; TicketError
    if the hub has no such file, cannot be reached, or does not let this user in.
    """
    if not is_hub(given):
        return Path(given)
    place = parse(str(given))
    library = _library()
    unreached: Exception | None = None
    for name in (place.file,) if place.file else (TICKET_FILE, MODEL_FILE):
        with _told(place, library):
            try:
                return _fetched(library, place, name)
            except library.errors.LocalEntryNotFoundError as error:
                unreached = error  # the other name may be in the cache
            except library.errors.EntryNotFoundError:
                continue
    if unreached is not None:
        raise TicketError(
            f"{place.text}: the hub cannot be reached and the file is not in its cache; try again "
            "with a network, or give a file on this disk"
        ) from unreached
    wanted = place.file or f"{TICKET_FILE} and no {MODEL_FILE}"
    raise TicketError(
        f"{place.text}: the repository has no {wanted}; say which file to take: "
        f"{PREFIX}{place.repository}/FILE.safetensors"
    )


def _fetched(library: Any, place: Place, name: str) -> Path:
    """One file of a repository, from the cache alone if the hub does not answer.

    The library's own download asks for half a minute before it says that there is no network.
    """
    repository, revision, endpoint = place.repository, place.revision, _endpoint()
    address = library.hf_hub_url(repository, name, revision=revision, endpoint=endpoint)
    silent = False
    try:
        library.get_hf_file_metadata(address, token=library.get_token())
    except library.errors.HfHubHTTPError as error:
        if error.response.status_code < 500:
            raise
        silent = True
    except Exception:  # connections fail with errors of the library's own client
        silent = True
    return Path(
        library.hf_hub_download(
            repository, name, revision=revision, endpoint=endpoint, local_files_only=silent
        )
    )


def send(place: Place, files: Mapping[str, bytes | Path], *, private: bool, message: str) -> str:
    """Put files into a repository by one commit, making it if need be; returns its address.

    ConfigError without the extra or a token, for a repository whose model card is not of Tombola,
    which would be lost, and for one that is public where ``private`` is asked for. TicketError if
    the hub cannot be reached or refuses.
    """
    library = _library()
    if not library.get_token():
        raise ConfigError(
            "publishing needs a token of the hub with the right to write; run: hf auth login (or "
            "set HF_TOKEN) and try again"
        )
    operations = [library.CommitOperationAdd(name, what) for name, what in files.items()]
    with _told(place, library):
        hub = library.HfApi(endpoint=_endpoint(), library_name="tombola")
        hub.create_repo(place.repository, private=private or None, exist_ok=True)
        there = hub.model_info(place.repository)
        if private and not there.private:
            raise ConfigError(
                f"{place.text} is there already and public; leave --private out, or choose another "
                "name"
            )
        if any(each.rfilename == CARD_FILE for each in there.siblings or ()):
            card = library.hf_hub_download(place.repository, CARD_FILE, endpoint=_endpoint())
            if MARK not in Path(card).read_text("utf-8", errors="replace").splitlines():
                raise ConfigError(
                    f"{place.text} has a model card that Tombola did not write, which would be "
                    "lost; choose another name"
                )
        hub.create_commit(place.repository, operations, commit_message=message)
    return f"{_endpoint() or 'https://huggingface.co'}/{place.repository}"


def _endpoint() -> str | None:
    """Another hub than the public one, if the caller's surroundings name one."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def _library() -> Any:
    """The library huggingface_hub; ConfigError if it is not installed."""
    try:
        library = importlib.import_module("huggingface_hub")
        importlib.import_module("huggingface_hub.errors")
    except ImportError as error:
        raise ConfigError(f"the hub needs the package huggingface_hub; {_EXTRA}") from error
    return library


@contextlib.contextmanager
def _told(place: Place, library: Any) -> Iterator[None]:
    """What the library raises, as one line that says what to do."""
    errors = library.errors
    try:
        yield
    except (ConfigError, TicketError, errors.EntryNotFoundError):
        raise
    except errors.GatedRepoError as error:
        raise _refused(place, "its owner must let you in first; ask on its page") from error
    except errors.RepositoryNotFoundError as error:
        todo = "check the name, and log in (hf auth login) if it is private"
        raise _refused(place, f"the hub has no such repository for you; {todo}") from error
    except errors.RevisionNotFoundError as error:
        raise _refused(place, f"it has no revision {place.revision}; leave it out") from error
    except errors.HFValidationError as error:
        raise ConfigError(f"{place.text} is no name for a repository: {_first(error)}") from error
    except errors.HfHubHTTPError as error:
        what = f"the hub refused: {_first(error)}; check the token's rights and try again"
        raise _refused(place, what) from error
    except Exception as error:  # connections fail with errors of the library's own client
        what = f"the hub cannot be used ({type(error).__name__}: {_first(error)})"
        raise _refused(place, f"{what}; check the network and try again") from error


def _refused(place: Place, what: str) -> TicketError:
    return TicketError(f"{place.text}: {what}")


def _first(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[0]

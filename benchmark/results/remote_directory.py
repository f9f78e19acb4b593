"""Published boards at an address, as ``s3://bucket/boards`` or ``hf://datasets/name/boards``, through fsspec.

They are copied to a directory here within bounds, where they are checked as any other, and what was changed there is
copied back. Files at an address are replaced one by one, so the records of a board come after what they rest on, which
readers compare, and what somebody else changes meanwhile is noticed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from robbench.core.errors import RequestError, StoreError, did_you_mean
from robbench.core.extras import require
from robbench.core.sealed import hash_of
from robbench.core.untrusted_files import MOST_FILES, MOST_LEVELS, check_name
from robbench.leaderboards.archive import NOTE, RECORDS

MOST_BYTES = 2**32
"""What is copied from an address has at most so many bytes."""
_BLOCK = 2**20
_AT_ONCE = 8
_STATES = ("ETag", "etag", "blob_id", "md5Hash", "LastModified", "last_modified", "mtime", "created", "updated")
"""What file systems tell of a file that changes with it."""
_KEYS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, say who you are",
    "hf": "hf auth login, or HF_TOKEN, says who you are",
}
_DENIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "GatedRepoError")


def shown(url: str) -> str:
    """An address without the password that may stand in it."""
    return re.sub(r"://[^/@]*@", "://", url)


@dataclass(frozen=True)
class RemoteFile:
    """A file at an address.

    Attributes:
        size: Its bytes, None where that is not told.
        state: What changes with its content.
    """

    size: int | None
    state: str


@dataclass(frozen=True)
class RemoteDirectory:
    """A directory at an address.

    Attributes:
        url: The address.
        option: The option that names it, for messages.
        files: The files of its boards, and those beside them that publishing writes, by path within it.
        boards: Names of directories that count as boards whatever they hold.
    """

    url: str
    option: str
    files: Mapping[str, RemoteFile]
    boards: Collection[str]

    @classmethod
    def at(cls, url: str, option: str, boards: Collection[str] = (), missing: bool = False) -> Self:
        """See what is at an address.

        Args:
            url: The address.
            option: The option that names it, for messages.
            boards: Names of directories that count as boards whatever they hold.
            missing: Whether nothing need be there.

        Raises:
            RequestError: If it is not there, must not be read, needs a package, or has names that are not safe.
            StoreError: If it cannot be reached.
        """
        with _reaching(url, option):
            return cls(url, option, _Listing.of(url, option, boards, missing).files, boards)

    def download(self, folder: Path) -> dict[str, str]:
        """Copy the files; returns their hashes by path.

        Raises:
            RequestError: If they are too large.
            StoreError: If one comes not as a whole, or something changes meanwhile.
        """
        total = sum(file.size or 0 for file in self.files.values())
        if total > MOST_BYTES:
            raise RequestError(
                f'the boards in "{shown(self.url)}" have {total:,} bytes, more than {MOST_BYTES:,}', self.option
            )

        def fetch(name: str) -> None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _fetch(fs, _join(root, name), self.files[name].size, folder / name)

        with _reaching(self.url, self.option):
            fs, root = _opened(self.url)
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(fetch, self.files))
        self._demand_same(self.files)
        return {name: hash_of((folder / name).read_bytes()) for name in self.files}

    def upload(self, folder: Path, before: Mapping[str, str]) -> None:
        """Make the files what they are in a directory here.

        Args:
            folder: The directory, into which they were copied and which was changed then.
            before: What ``download`` returned.

        Raises:
            StoreError: If somebody else changes something, too, or something cannot be written.
        """
        made = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        fresh = {name: made[name] for name in sorted(made, key=_turn) if hash_of(made[name]) != before.get(name)}
        gone = sorted(self.files.keys() - made.keys())
        if not fresh and not gone:
            return
        self._demand_same(self.files)
        with _reaching(self.url, self.option):
            fs, root = _opened(self.url)
            place = fs.resolve_path(root) if fs.protocol == "hf" else None
            if hasattr(place, "repo_id"):
                _commit(fs, place, fresh, gone)
            else:
                _write(fs, root, fresh, gone)
        self._demand_same(
            {name: self.files[name] if name not in fresh else RemoteFile(len(data), "") for name, data in made.items()}
        )

    def _demand_same(self, expected: Mapping[str, RemoteFile]) -> None:
        """See that the files are those that are expected, of a state where that is known."""
        found = self.at(self.url, self.option, self.boards, missing=True).files
        for name in sorted(found.keys() | expected.keys()):
            now, then = found.get(name), expected.get(name)
            if now is None or then is None or now.size != then.size or (then.state and now.state != then.state):
                raise StoreError(f'somebody else changed "{shown(self.url)}/{name}" at the same time; try again')


@dataclass(frozen=True)
class _Listing:
    """Listing a directory at an address.

    Attributes:
        fs: The file system.
        root: The directory in it.
        files: What was found so far.
    """

    fs: Any
    root: str
    files: dict[str, RemoteFile]

    @classmethod
    def of(cls, url: str, option: str, boards: Collection[str], missing: bool) -> Self:
        fs, root = _opened(url)
        fs.invalidate_cache()
        listing = cls(fs, root, {})
        try:
            entries = listing.entries("")
        except FileNotFoundError:
            if missing:
                return listing
            raise
        except (ValueError, NotImplementedError) as error:
            raise RequestError(f'"{shown(url)}" cannot be used: {error}', option) from None
        if {NOTE, RECORDS}.intersection(entries):
            listing.walk("", entries, 0)
            return listing
        names: dict[str, str] = {}
        for name, entry in entries.items():
            inner = listing.entries(name) if entry["type"] == "directory" else {}
            if (inner and name in boards) or {NOTE, RECORDS}.intersection(inner):
                check_name(name, name, names)
                listing.walk(name, inner, 1)
            elif entry["type"] != "directory" and (name == "index.html" or name.endswith(".md")):
                check_name(name, name, names)
                listing.add(name, entry)
        return listing

    def entries(self, place: str) -> dict[str, dict[str, Any]]:
        """What lies in a directory, by name."""
        path = _join(self.root, place)
        found = self.fs.ls(path, detail=True)
        # Some object stores list a directory in itself.
        there = [one for one in found if one["name"].strip("/") != path.strip("/")]
        if len(there) + len(self.files) > MOST_FILES:
            raise ValueError(f"it holds more than {MOST_FILES:,} files")
        return {one["name"].rstrip("/").rpartition("/")[2]: one for one in there}

    def walk(self, place: str, entries: Mapping[str, dict[str, Any]], level: int) -> None:
        """Add everything below a directory."""
        if level > MOST_LEVELS:
            raise ValueError(f"it holds more than {MOST_LEVELS} levels of folders")
        names: dict[str, str] = {}
        for name, entry in sorted(entries.items()):
            inner = _join(place, name)
            check_name(name, inner, names)
            if entry["type"] == "directory":
                self.walk(inner, self.entries(inner), level + 1)
            else:
                self.add(inner, entry)

    def add(self, name: str, entry: Mapping[str, Any]) -> None:
        """Add a file."""
        if entry["type"] != "file" or entry.get("islink"):
            raise ValueError(f'"{name}" in it is no plain file')
        state = " ".join(f"{key}={entry[key]}" for key in _STATES if entry.get(key) is not None)
        self.files[name] = RemoteFile(entry.get("size"), state)


# ------------------------------------------------------------------------------------------------------------ transfers


def _opened(url: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    fs, root = require("fsspec.core", "remote", f'"{shown(url)}"').url_to_fs(url)
    return fs, root.rstrip("/")


def _join(place: str, name: str) -> str:
    return f"{place}/{name}" if place and name else place or name


def _fetch(fs: Any, path: str, size: int | None, target: Path) -> None:
    count, most = 0, MOST_BYTES if size is None else size
    with fs.open(path, "rb") as stream, target.open("xb") as file:
        while block := stream.read(min(_BLOCK, most + 1 - count)):
            count += len(block)
            if count > most:
                raise ValueError(f"{path} has more than {most:,} bytes")
            file.write(block)
    if size is not None and count < size:
        raise ValueError(f"{path} was cut short: {count:,} of {size:,} bytes came; try again")


def _turn(name: str) -> tuple[bool, bool, str]:
    """The order of writing: what a list names before the list, and what records rest on before the records."""
    return "/" not in name, name.endswith((f"/{RECORDS}", f"/{NOTE}")), name


def _write(fs: Any, root: str, fresh: Mapping[str, bytes], gone: Collection[str]) -> None:
    """Replace files one by one."""
    for name, data in fresh.items():
        path = _join(root, name)
        try:
            fs.pipe_file(path, data)
        except FileNotFoundError:
            # Where directories are made, and not in place of a bucket that is missing.
            if not fs.exists(root.partition("/")[0] or "/"):
                raise
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(path, data)
    for name in gone:
        fs.rm_file(_join(root, name))


def _commit(fs: Any, place: Any, fresh: Mapping[str, bytes], gone: Collection[str]) -> None:
    """Replace files of a repository of Hugging Face's in one commit: it takes few an hour."""
    hub = require("huggingface_hub", "remote", "hf://")
    paths = {name: f"{place.path_in_repo}/{name}".lstrip("/") for name in (*fresh, *gone)}
    hub.HfApi(endpoint=fs.endpoint, token=fs.token).create_commit(
        repo_id=place.repo_id,
        repo_type=place.repo_type,
        revision=place.revision,
        commit_message="Publish boards",
        operations=[
            *(hub.CommitOperationAdd(paths[name], data) for name, data in fresh.items()),
            *(hub.CommitOperationDelete(paths[name]) for name in gone),
        ],
    )


@contextlib.contextmanager
def _reaching(url: str, option: str) -> Iterator[None]:
    """Whatever goes wrong at an address is told in one line."""
    place, scheme = f'"{shown(url)}"', url.rpartition("://")[0].rpartition("::")[2]
    try:
        yield
    except (RequestError, StoreError):
        raise
    except FileNotFoundError:
        who = f"; {_KEYS[scheme]}" if scheme in _KEYS else ""
        raise RequestError(f"{place} does not exist, or is not yours to see{who}", option) from None
    except ImportError as error:
        known = scheme in _KEYS
        what = f"{error}; pip install 'robbench[remote]'" if known else f"{error}"
        raise RequestError(f"{place} needs a package: {what}", option) from None
    except ValueError as error:
        if str(error).startswith("Protocol not known"):
            near = did_you_mean(scheme, require("fsspec", "remote", place).available_protocols())
            raise RequestError(f'{place}: "{scheme}" is no kind of address; {near}', option) from None
        raise StoreError(f"{place} cannot be used: {error}") from None
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, PermissionError) or type(error).__name__ in _DENIALS or status in (401, 403):
            who = f"; {_KEYS[scheme]}" if scheme in _KEYS else ""
            raise RequestError(f"{place}: no permission: {error}{who}", option) from None
        raise StoreError(f"{place} cannot be reached: {type(error).__name__}: {error}; try again") from None

"""Local disks and remote stores behind one door: listing, facts and bytes of files, through fsspec."""

import contextlib
import glob
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple

import fsspec
import fsspec.core

from data.schema import DataError

PACKAGES = {
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "s3": "s3fs",
    "s3a": "s3fs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "adl": "adlfs",
    "http": "aiohttp requests",
    "https": "aiohttp requests",
}
"""What `pip install` takes for a protocol whose package may be missing."""

VERSION_KEYS = ("md5Hash", "crc32c", "content_md5", "ETag", "etag", "generation", "mtime", "LastModified", "updated")
"""Facts by which stores say that a file changed, those about its content alone first."""

GLOB_CHARACTERS = frozenset("*?[")


class Entry(NamedTuple):
    """A file as a listing shows it, or a folder."""

    url: str
    """Absolute path, or URL; a folder's ends in a slash."""
    size: int
    """Bytes; -1 where a store does not say, 0 for a folder."""
    version: str
    """`""` for a folder."""

    @property
    def is_folder(self) -> bool:
        """Whether it holds files."""
        return self.url.endswith("/")


def is_remote(url: str) -> bool:
    """Whether a path is a URL (`gs://bucket/x`); `file://` counts as local."""
    return "://" in url and not url.startswith("file://")


def make_absolute(path: str, root: str) -> str:
    """Returns a path below root (a folder or URL) as an absolute path or URL, spelled as listings spell it.

    Raises DataError if a URL's protocol is unknown or its package is not installed.
    """
    path, root = path.removeprefix("file://"), root.removeprefix("file://")
    if is_remote(root) and not is_remote(path) and not os.path.isabs(path):
        path = f"{root.rstrip('/')}/{path}"
    if not is_remote(path):
        return os.path.abspath(os.path.join(root, path))
    with naming(path):
        fs, place = _connect(path)
        return fs.unstrip_protocol(place).rstrip("/")


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Turns whatever a disk or a store raises inside into a DataError that begins with `cannot read NAME`."""
    try:
        yield
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"cannot read {name}: {error.strerror or error or type(error).__name__}") from None
    # What a store's package raises (no credentials, no such bucket, no network) is of classes of its own.
    except Exception as error:
        raise DataError(
            f"cannot read {name}: {type(error).__name__}: {error}; check the address and credentials"
        ) from None


def list_entries(url: str) -> list[Entry]:
    """Returns what an absolute path, URL or glob (`*`, `?`, `[...]`, `**`) leads to: files, or a folder; sorted by URL.

    A path that exists is itself, whatever characters it is made of. A glob passes over names that begin with a dot.
    Raises DataError if the store cannot be reached.
    """
    if is_remote(url):
        with naming(url):
            return _list_remote(url)
    found = [url] if os.path.lexists(url) else glob.glob(url, recursive=True)
    return sorted(_stat(os.path.abspath(path)) for path in found)


def list_folder(url: str) -> list[Entry]:
    """Returns all files at any depth below a folder, sorted by URL. Raises DataError if it cannot be listed."""
    with naming(url):
        if not is_remote(url):
            return sorted(_stat(os.path.join(url, name)) for name in _walk_local(url))
        fs, path = _connect(url)
        return sorted(_remote_entry(fs, info) for info in fs.find(path, detail=True).values())


def walk_names(url: str) -> Iterator[str]:
    """Yields the names of files below a folder, those right in it first; lists no more than is asked for."""
    with naming(url):
        if not is_remote(url):
            yield from _walk_local(url)
            return
        fs, path = _connect(url)
        for place, _, names in fs.walk(path):
            yield from (f"{place}/{name}".removeprefix(path.rstrip("/")).lstrip("/") for name in sorted(names))


def _walk_local(url: str) -> Iterator[str]:
    def fail(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(url, onerror=fail):
        folders.sort()
        yield from (os.path.relpath(os.path.join(place, name), url) for name in sorted(names))


def open_url(url: str) -> BinaryIO:
    """Opens a file for reading. Raises DataError if it cannot be opened."""
    with naming(url):
        if not is_remote(url):
            return open(url, "rb")
        fs, path = _connect(url)
        return fs.open(path, "rb")


@contextlib.contextmanager
def local_copy(url: str) -> Iterator[str]:
    """Gives the path of a file or folder (a URL ending in a slash) on this machine's disk.

    A remote one is copied to a temporary folder, which is gone afterwards: what reads ArrayRecord knows no stores.
    """
    if not is_remote(url):
        yield url
        return
    with tempfile.TemporaryDirectory(prefix="polytune_") as folder:
        path = os.path.join(folder, url.rstrip("/").rsplit("/", 1)[-1])
        with naming(url):
            fs, remote = _connect(url.rstrip("/"))
            fs.get(remote, path, recursive=url.endswith("/"))
        yield path + "/" * url.endswith("/")


def _stat(path: str) -> Entry:
    if os.path.isdir(path):
        return Entry(path.rstrip("/") + "/", 0, "")
    with naming(path):
        facts = os.stat(path)
    if not stat.S_ISREG(facts.st_mode):
        raise DataError(f"{path} is neither a file nor a folder; take it out of what the source's path matches")
    return Entry(path, facts.st_size, str(facts.st_mtime_ns))


def _connect(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it."""
    protocol = url.split("://")[0]
    if "::" in url:
        raise DataError(
            f"{url} is a chain of file systems; give the address of the files alone, like gs://bucket/x.jsonl"
        )
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(protocol)
        remedy = f"pip install {package}" if package else str(error)
        raise DataError(f"reading {protocol}:// needs a package that is not installed; {remedy}") from None
    except ValueError as error:
        known = ", ".join(f"{name}://" for name in ("gs", "s3", "az", "https"))
        raise DataError(f"cannot read {url}: {error}; use a local path or {known} ...") from None


def _list_remote(url: str) -> list[Entry]:
    fs, path = _connect(url)
    try:
        info = fs.info(path)
    except FileNotFoundError:
        info = None
    if info is not None:
        if info["type"] != "directory":
            return [_remote_entry(fs, info)]
        return [Entry(fs.unstrip_protocol(path).rstrip("/") + "/", 0, "")]
    if not GLOB_CHARACTERS & set(path):
        return []
    infos: dict[str, dict[str, Any]] = fs.glob(path, detail=True)
    entries = (_remote_entry(fs, info) for info in infos.values())
    return sorted(entry for entry in entries if not _is_hidden(entry.url, url))


def _is_hidden(url: str, pattern: str) -> bool:
    return "/." in url and "/." not in pattern


def _remote_entry(fs: Any, info: dict[str, Any]) -> Entry:
    url = fs.unstrip_protocol(info["name"])
    if info["type"] == "directory":
        return Entry(url.rstrip("/") + "/", 0, "")
    size = info.get("size")
    for key in VERSION_KEYS:
        if info.get(key):
            return Entry(url, -1 if size is None else size, str(info[key]))
    # A hash of every fact that the store tells.
    return Entry(url, -1 if size is None else size, fs.ukey(info["name"]))


def digest(entries: list[Entry], name: Callable[[Entry], str]) -> str:
    """Returns what changes when any file of a folder does."""
    facts = "\n".join(f"{name(entry)} {entry.size} {entry.version}" for entry in entries)
    return hashlib.sha256(facts.encode("utf-8", errors="surrogateescape")).hexdigest()

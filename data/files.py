"""Files of a source, wherever they are: local paths, globs, folders and URLs, through fsspec."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from data.schema import DataError
from data.source_config import Format
from data.storage import Entry, digest, is_remote, list_entries, list_folder, make_absolute, walk_names

SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".array_record": "array_record",
    ".arrayrecord": "array_record",
}
COMPRESSIONS = (".gz", ".zst", ".bz2", ".xz")
"""Suffixes after a text format's."""
TEXT_FORMATS: tuple[Format, ...] = ("jsonl", "json", "csv", "tsv")
FOLDER_FORMATS: tuple[Format, ...] = ("hf_dataset", "tfds")

SEEN_NAMES = 1000
"""How many names of a folder's files are looked at to say what could be meant."""

# One part of a file written in several: `x.array_record-00000-of-00008`, as TFDS names them.
PART = re.compile(r"-\d+-of-\d+$")


class DataFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file that rows are read from, or a folder that is one data set."""

    url: str
    """Absolute path, or URL with its protocol; a folder's ends in a slash."""
    name: str
    """Path below `data.root` where it lies there, else the whole; what errors and language patterns see."""
    size: int
    """Bytes as stored; -1 where a store does not say."""
    version: str
    """What changes when the content does: time of change, or the remote store's checksum."""


def find_files(
    patterns: str | Sequence[str],
    root: str | os.PathLike[str],
    *,
    format: Format = "auto",  # noqa: A002
) -> list[DataFile]:
    """Returns the files of paths, globs, folders and URLs below root: each once, sorted by name.

    A folder is one data set if Hugging Face `datasets` or TFDS wrote it. Globs find files; with `format` hf_dataset or
    tfds they find folders. Raises DataError, naming what was looked for, if there is none, if a file is empty or its
    name tells no format, or if a store cannot be reached.
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    if not patterns:
        raise DataError("path is an empty list; give at least one file, glob or folder")
    start = make_absolute("", os.fspath(root))
    found = {file.url: file for pattern in patterns for file in _match(pattern, start, format)}
    for file in found.values():
        if not file.name.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in file.name):
            raise DataError(f"{file.name!r}: the file's name is not UTF-8; rename it")
        if file.size == 0:
            raise DataError(f"{file.name} is empty; give it rows or take it out of data.sources")
        if format == "auto" and not file.url.endswith("/"):
            detect_format(file.name)
    return sorted(found.values(), key=lambda file: file.name)


def detect_format(name: str) -> Format:
    """Returns a file's format by its name's suffix; text formats may have a second one: `.jsonl.gz`, `.csv.zst`.

    Raises DataError if the name does not say.
    """
    packed = find_compression(name)
    suffix = os.path.splitext(_strip_ending(name).removesuffix(packed))[1]
    if suffix not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise DataError(
            f"{name}: its name does not say what format it is in; set `format` on the source, or give it a name that "
            f"ends in one of {known} (text also with {', '.join(COMPRESSIONS)})"
        )
    if packed and SUFFIXES[suffix] not in TEXT_FORMATS:
        raise DataError(f"{name}: {SUFFIXES[suffix]} files compress what is in them; decompress this one")
    return SUFFIXES[suffix]


def find_compression(name: str) -> str:
    """Returns the suffix of COMPRESSIONS that a file's name ends in, `""` if it is none."""
    suffix = os.path.splitext(_strip_ending(name))[1]
    return suffix if suffix in COMPRESSIONS else ""


def _strip_ending(name: str) -> str:
    """A name in small letters without what may follow its suffixes: a part's number, a web address's query."""
    path = re.split("[?#]", name)[0] if name.startswith(("http://", "https://")) else name
    return PART.sub("", path.lower())


def find_folder_format(url: str) -> Format | None:
    """Returns which data set a folder is: `hf_dataset`, `tfds`, or None if it is neither."""
    names = set(itertools.takewhile(lambda name: "/" not in name, walk_names(url)))
    if "dataset_dict.json" in names or "state.json" in names:
        return "hf_dataset"
    return "tfds" if {"features.json", "dataset_info.json"} <= names else None


def _match(pattern: str, root: str, wanted: Format) -> Iterator[DataFile]:
    place = make_absolute(pattern, root)
    entries = list_entries(place)
    named = len(entries) == 1 and entries[0].url.rstrip("/") == place
    if not named:
        entries = [entry for entry in entries if entry.is_folder == (wanted in FOLDER_FORMATS)]
    if not entries:
        kind = "folder" if wanted in FOLDER_FORMATS else "file"
        raise DataError(f"no {kind} matches {place}; check it and data.root")
    for entry in entries:
        if entry.is_folder:
            yield _folder(entry, root, pattern, wanted)
        elif wanted in FOLDER_FORMATS:
            raise DataError(f"{_name(entry.url, root)} is a file, but format {wanted} is a folder; name the folder")
        else:
            yield DataFile(url=entry.url, name=_name(entry.url, root), size=entry.size, version=entry.version)


def _folder(entry: Entry, root: str, pattern: str, wanted: Format) -> DataFile:
    found = find_folder_format(entry.url)
    if found is None or wanted not in ("auto", found):
        raise DataError(_explain_folder(pattern.rstrip("/"), entry.url, found=found, wanted=wanted))
    held = list_folder(entry.url)
    return DataFile(
        url=entry.url,
        name=_name(entry.url.rstrip("/"), root),
        size=sum(max(inside.size, 0) for inside in held),
        version=digest(held, lambda inside: inside.url.removeprefix(entry.url)),
    )


def _explain_folder(pattern: str, url: str, *, found: Format | None, wanted: Format) -> str:
    if found is not None:
        return f"{pattern} is a folder of format {found}, not {wanted}; leave `format` out"
    names = list(itertools.islice(walk_names(url), SEEN_NAMES))
    if wanted in FOLDER_FORMATS:
        writer = {"hf_dataset": "Dataset.save_to_disk of Hugging Face datasets", "tfds": "TFDS"}[wanted]
        inside = sorted({name.rsplit("/", 1)[0] for name in names if name.endswith(("/features.json", "/state.json"))})
        remedy = f"; below it, these look like one: {', '.join(inside[:3])}" if inside else "; name the folder it wrote"
        return f"no file of {pattern} shows that {writer} wrote it{remedy}"
    suffixes = Counter(
        ("/**" if "/" in name else "") + "/*" + suffix
        for name in names
        if (suffix := _known_suffix(name)) and not name.startswith(".")
    )
    best = suffixes.most_common(1)[0][0] if suffixes else "/*.jsonl"
    return f"no file matches {pattern}: it is a folder, so add a pattern: {pattern}{best}"


def _known_suffix(name: str) -> str:
    """The end of a name from its format's suffix on (`.jsonl.gz`), `""` if it has none."""
    match = re.search(r"(\.[a-z_]+)(\.gz|\.zst|\.bz2|\.xz)?(-\d+-of-\d+)?$", name, re.IGNORECASE)
    if match is None or match[1].lower() not in SUFFIXES or name.endswith(("dataset_info.json", "features.json")):
        return ""
    return match[1] + (match[2] or "") + ("-*" if match[3] else "")


def _name(url: str, root: str) -> str:
    inside = root.rstrip("/") + "/"
    return url.removeprefix(inside) if is_remote(url) == is_remote(root) else url

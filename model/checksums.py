"""Checksums of a checkpoint's files: written once it is whole, looked at before it is trusted."""

import json
import os
import zlib
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FILE = "checksums.json"
"""In the directory of a step: size and crc32 of every other file of it, by path."""
BLOCK_BYTES = 4 << 20
THREADS = 4
"""Most files read at a time: a reader is as fast as its disk, and training goes on beside it."""


def write_checksums(step_dir: Path) -> None:
    """Reads all files of a committed step and writes their checksums, in one piece or not at all.

    Raises OSError, FileNotFoundError among them where the step is deleted meanwhile.
    """
    names = sorted(path.relative_to(step_dir).as_posix() for path in step_dir.rglob("*") if path.is_file())
    names = [name for name in names if name != FILE]
    with ThreadPoolExecutor(THREADS) as threads:
        sums = threads.map(lambda name: _sum_file(step_dir / name), names)
        table = {"algorithm": "crc32", "files": dict(zip(names, sums, strict=True))}
    temporary = step_dir / f".{FILE}"
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(table, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(step_dir / FILE)


def has_checksums(step_dir: Path) -> bool:
    """False for a step whose save was cut short just before them, or that an earlier version wrote."""
    return (step_dir / FILE).is_file()


def find_damage(step_dir: Path, items: Collection[str] | None = None) -> str | None:
    """What is wrong with the first file that is not as it was written; None if all are, or nothing is known of them.

    `items` are the only ones looked at, as a published checkpoint may lack the others; None: all there is.
    """
    if not has_checksums(step_dir):
        return None
    try:
        files = json.loads((step_dir / FILE).read_text(encoding="utf-8"))["files"]
        wanted = {name: (size, crc) for name, (size, crc) in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{FILE} cannot be read ({error!r})"
    chosen = {name: sums for name, sums in wanted.items() if items is None or name.split("/")[0] in items}
    with ThreadPoolExecutor(THREADS) as threads:
        for what in threads.map(lambda name: _compare(step_dir, name, *chosen[name]), sorted(chosen)):
            if what is not None:
                return what
    return None


def _compare(step_dir: Path, name: str, size: int, crc: str) -> str | None:
    path = step_dir / name
    try:
        found_size = path.stat().st_size
        if found_size != size:
            return f"{name} has {found_size} bytes, {size} were written"
        if _sum_file(path)[1] != crc:
            return f"{name} holds other bytes than were written (crc32)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error})"
    return None


def _sum_file(path: Path) -> tuple[int, str]:
    """Size in bytes and crc32 in hex digits."""
    block, size, crc = bytearray(BLOCK_BYTES), 0, 0
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            size += count
            crc = zlib.crc32(view[:count], crc)
    return size, f"{crc:08x}"

"""Files damaged byte by byte, or as a whole: cut, flipped, spliced, in another encoding, with other line ends."""

import random
from collections.abc import Callable
from pathlib import Path

TEXT = ("jsonl", "json", "csv", "tsv")
CHECKED = ("gz", "zst", "parquet", "array_record")
"""Formats with checksums, as written here: every row is read as it was written, or the file is refused."""


def _at(change: Callable[[bytearray, int, random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    def mutate(content: bytes, source: random.Random) -> bytes:
        changed = bytearray(content)
        # ArrayRecord pads with zeros, where little can go wrong.
        change(changed, source.choice([at for at, byte in enumerate(content) if byte]), source)
        return bytes(changed)

    return mutate


def _flip(content: bytearray, at: int, source: random.Random) -> None:
    content[at] ^= 1 << source.randrange(8)


def _cut(content: bytearray, at: int, source: random.Random) -> None:
    del source, content[max(at, 1) :]


def _splice(content: bytearray, at: int, source: random.Random) -> None:
    content[at:at] = source.choice(
        [source.randbytes(source.randrange(1, 9)), b'"', b"\n", b"\0", b"\xff", b"\\", b"[{"]
    )


def _drop(content: bytearray, at: int, source: random.Random) -> None:
    del content[at : at + source.randrange(1, 20)]
    content[:0] = b"" if content else b" "


def _repeat(content: bytearray, at: int, source: random.Random) -> None:
    content[at:at] = content[at : at + source.randrange(1, 20)]


def _blank(content: bytearray, at: int, source: random.Random) -> None:
    end = min(at + source.randrange(1, 9), len(content))
    content[at:end] = bytes(end - at)


DAMAGES = tuple(_at(change) for change in (_flip, _flip, _cut, _cut, _splice, _drop, _repeat, _blank))
"""At one place of the file."""

WHOLE: dict[str, Callable[[bytes], bytes]] = {
    "utf-16": lambda content: content.decode().encode("utf-16"),
    "utf-16-be": lambda content: content.decode().encode("utf-16-be"),
    "utf-32": lambda content: content.decode().encode("utf-32"),
    "utf-7": lambda content: content.decode().encode("utf-7"),
    "gb18030": lambda content: content.decode().encode("gb18030"),
    "twice": lambda content: content.decode("latin-1").encode(),
    "reversed": lambda content: content[::-1],
    "doubled": lambda content: content * 2,
    "zeros": lambda content: bytes(len(content)),
    "blank": lambda content: b"\n" * len(content),
    "one byte": lambda content: content[:1],
    "zip": lambda content: b"PK\x03\x04" + content,
    "html": lambda content: b"<!DOCTYPE html><html>404</html>\n",
    "pointer": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
}
"""Files that are another thing than their name says."""
HARMLESS: dict[str, Callable[[bytes], bytes]] = {
    "byte order mark": lambda content: b"\xef\xbb\xbf" + content,
    "carriage returns": lambda content: content.replace(b"\n", b"\r\n"),
    "no last line end": lambda content: content.rstrip(b"\n"),
    "blank end": lambda content: content + b"\n \n\r\n",
}
"""What texts may have around their rows."""


def damage(path: Path, source: random.Random) -> tuple[bytes, bytes]:
    """Damages a file, or one of a folder's, in place; returns what it was and what it is."""
    if path.is_dir():
        path = source.choice(sorted(path.iterdir()))
    before = path.read_bytes()
    after = source.choice(DAMAGES)(before, source)
    path.write_bytes(after)
    return before, after

"""Text files as blocks and lines: decompressed, checked for another encoding or format, in little memory."""

import bz2
import codecs
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import zstandard

from data.files import DataFile, find_compression
from data.formats.rows import EXCERPT_CHARACTERS
from data.schema import DataError
from data.storage import naming, open_url

BLOCK_BYTES = 1 << 20
COMPRESSED_BYTES = 1 << 14
"""What is decompressed at a time: gzip makes up to a thousand times as much of it."""
ROW_BYTES_LIMIT = 64 << 20
"""Longest row that is read, far beyond any conversation: without an end a line must not fill the memory."""
KEPT_BYTES = 4 * EXCERPT_CHARACTERS

ENCODINGS = {codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16", b"\x00\x00\xfe\xff": "UTF-32"}
OTHER_FORMATS = {
    b"\x1f\x8b": "gzip; end its name in .gz",
    b"\x28\xb5\x2f\xfd": "zstd; end its name in .zst",
    b"BZh": "bzip2; end its name in .bz2",
    b"\xfd7zXZ\x00": "xz; end its name in .xz",
    b"PK\x03\x04": "a ZIP archive; unpack it",
    b"PAR1": "Parquet; set format: parquet",
    b"ARROW1": "Arrow; set format: arrow",
}
"""How files begin that are not the text their names say."""

DAMAGE = (OSError, EOFError, ValueError, MemoryError, zlib.error, lzma.LZMAError, zstandard.ZstdError)
"""What decompressors raise."""


def read_blocks(file: DataFile) -> Iterator[bytes]:
    """Yields a text file's bytes in blocks, decompressed as its name says, without a byte order mark.

    Raises DataError, naming the file, if it cannot be opened, is compressed text that is damaged or cut, is UTF-16 or
    of another format.
    """
    with open_url(file.url) as opened:
        blocks = _read_raw(opened, file.name)
        make = DECOMPRESSORS.get(find_compression(file.name))
        if make is not None:
            pieces = (
                block[at : at + COMPRESSED_BYTES] for block in blocks for at in range(0, len(block), COMPRESSED_BYTES)
            )
            blocks = _decompress(pieces, make, file.name)
        yield from _check_text(blocks, file.name)


def split_lines(blocks: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
    """Yields each line without its line feed, and its size; of a line over the limit only the beginning.

    Lines end at LF only, so U+2028 and its like stay inside a text; a last line without LF is a line.
    """
    pieces: list[bytes] = []
    size = 0
    for block in blocks:
        *ended, rest = block.split(b"\n")
        for line in ended:
            if pieces:
                size += len(line)
                line = b"".join([*pieces, line])[: size if size <= ROW_BYTES_LIMIT else KEPT_BYTES]
                yield line, size
                pieces, size = [], 0
            else:
                yield line[: KEPT_BYTES if len(line) > ROW_BYTES_LIMIT else None], len(line)
        if rest:
            size += len(rest)
            pieces.append(rest)
            if size > ROW_BYTES_LIMIT:
                pieces = [b"".join(pieces)[:KEPT_BYTES]]
    if pieces:
        yield b"".join(pieces), size


def explain_size(size: int) -> str:
    """Returns the reason why a row over the limit is bad."""
    return f"the row has {size:,} bytes, more than the {ROW_BYTES_LIMIT:,} that are read as one row"


def _read_raw(opened: BinaryIO, name: str) -> Iterator[bytes]:
    while True:
        with naming(name):
            block = opened.read(BLOCK_BYTES)
        if not block:
            return
        yield block


def _decompress(blocks: Iterator[bytes], make: Callable[[], Any], name: str) -> Iterator[bytes]:
    """Yields what one or several compressed streams, end to end, hold. The last must end where the file does."""
    stream, inside = make(), False
    for block in blocks:
        while block:
            try:
                content = stream.decompress(block)
            except DAMAGE as error:
                raise DataError(f"{name}: its compressed stream is damaged ({error}); copy or write it again") from None
            if content:
                yield content
            block, inside = b"", True
            if stream.eof:
                # gzip and xz allow zeros between and after streams.
                block, stream, inside = stream.unused_data.lstrip(b"\0"), make(), False
    if inside:
        raise DataError(f"{name} is cut: its compressed stream has no end; copy or write it again")


def _check_text(blocks: Iterator[bytes], name: str) -> Iterator[bytes]:
    beginning = b""
    for block in blocks:
        beginning += block
        if len(beginning) >= 8:
            break
    if encoding := next((ENCODINGS[mark] for mark in ENCODINGS if beginning.startswith(mark)), ""):
        raise DataError(f"{name} is {encoding}, not UTF-8; convert it: iconv -f {encoding} -t UTF-8")
    if other := next((OTHER_FORMATS[mark] for mark in OTHER_FORMATS if beginning.startswith(mark)), ""):
        raise DataError(f"{name} is no text but {other}")
    if b"\0" in beginning[:4]:
        raise DataError(f"{name} begins with a NUL byte or two, so it is UTF-16 or no text; convert it to UTF-8")
    beginning = beginning.removeprefix(codecs.BOM_UTF8)
    if beginning:
        yield beginning
    yield from blocks


def _make_gzip() -> Any:
    return zlib.decompressobj(wbits=31)


def _make_zstd() -> Any:
    return zstandard.ZstdDecompressor().decompressobj()


DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": _make_gzip,
    ".zst": _make_zstd,
    ".bz2": bz2.BZ2Decompressor,
    ".xz": lzma.LZMADecompressor,
}

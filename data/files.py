"""Files of a source, wherever they are: local paths, globs, folders and URLs, through fsspec."""

import msgspec


class DataFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file that rows are read from."""

    url: str
    """Absolute path, or URL with its protocol."""
    name: str
    """Path below `data.root` where it lies there, else the whole; what errors and language patterns see."""
    size: int
    """Bytes as stored."""
    version: str
    """What changes when the content does: time of change, or the remote store's checksum."""

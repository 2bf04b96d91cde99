"""What prepared data depends on, as hashes: files, recipe, code, packages."""

import functools
import hashlib
import unicodedata
from importlib import metadata
from pathlib import Path

import msgspec

from data.chat import SHIPPED, ChatTemplate, list_templates
from data.config import DataConfig, TokenizerConfig
from data.files import find_files
from data.schema import DataError
from data.source_config import FileSource, Source
from data.works import Work

# Packages whose contents or behaviour become training data.
PACKAGES = (
    "polytune", "babel", "langcodes", "sentencepiece", "tokenizers", "jinja2", "pyarrow", "tensorflow-datasets",
    "datasketch", "py3langid", "fasttext", "fasttext-predict",
)  # fmt: skip
FREE = {
    "root": "", "changed_plan": "refuse", "workers": 0, "prefetch": 1, "prepare_workers": None, "store": None,
    "held_out": None,
}  # fmt: skip
"""Fields of `DataConfig` that change nothing that is trained."""


def fingerprint_inputs(
    config: DataConfig, tokenizer_config: TokenizerConfig, seed: int, extra_stop_ids: tuple[int, ...] = ()
) -> str:
    """sha256 of all that loading, encoding and planning read, without reading the data itself.

    Files count by path below `data.root`, size and time of change; this package by its code and phrase
    books; others by version. Loader settings and steps are left out: they change nothing. Equal fingerprints
    mean the same plan; unequal ones mean that only building it can tell.
    """
    settings = msgspec.structs.replace(config, **FREE)
    files = []
    for source in config.sources:
        if isinstance(source, FileSource):
            found = find_files(source.path, config.root, format=source.format)
            files += [(file.name, file.size, file.version) for file in found]
    files += _stamp_cleaning_files(config)
    if tokenizer_config.path is not None:
        files += [_stamp(path) for path in _list_tokenizer_files(Path(tokenizer_config.path))]
    if tokenizer_config.template is not None and tokenizer_config.template not in list_templates():
        files.append(_stamp(Path(tokenizer_config.template)))
    facts = (settings, tokenizer_config, seed, extra_stop_ids, files, *_versions_and_code())
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def fingerprint_source(source: Source, config: DataConfig, chat: ChatTemplate, *, form: str) -> str:
    """sha256 of all that decides what becomes of the rows of a source, less the rows themselves."""
    kept = {"weight": 1.0, "limit": None} if isinstance(source, FileSource) else {"weight": 1.0}
    packing = config.packing
    cutting = (packing.overlong, packing.row_length) if packing.overlong in ("truncate", "split") else ()
    facts = (
        msgspec.structs.replace(source, **kept),
        form,
        cutting,
        config.cleaning,
        _stamp_cleaning_files(config),
        (chat.tokenizer.hash, chat.hash, chat.stop_ids),
        *_versions_and_code(),
    )
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def fingerprint_work(source_hash: str, work: Work) -> str:
    """The key of the shard of a piece of work: sha256 of the source's fingerprint and of the rows themselves."""
    digest = hashlib.sha256(source_hash.encode())
    for chunk in work.chunks:
        digest.update(hashlib.sha256(chunk.payload).digest())
        digest.update(msgspec.json.encode((chunk.file.name, chunk.format, chunk.first_row, chunk.rows)))
    digest.update(msgspec.json.encode((work.conversations, work.facts)))
    return digest.hexdigest()


@functools.cache
def _versions_and_code() -> tuple[tuple[tuple[str, str], ...], str]:
    # Normal forms, cases and classes of characters come with Python.
    versions = [("unicode", unicodedata.unidata_version), *((name, _version(name)) for name in PACKAGES)]
    return tuple(versions), _hash_code()


def _hash_code() -> str:
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted([*folder.rglob("*.py"), *folder.rglob("*.yaml"), *SHIPPED.glob("*.jinja")]):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _stamp_cleaning_files(config: DataConfig) -> list[tuple[str, int, str]]:
    """Files that cleaning reads besides the sources: phrases, evaluation sets, a model."""
    cleaning, root = config.cleaning, Path(config.root)
    phrases = cleaning.phrases.file if cleaning.phrases else None
    model = cleaning.language_mismatch.model if cleaning.language_mismatch else None
    stamps = [_stamp(root / path) for path in (phrases, model) if path is not None]
    for evaluation_set in cleaning.decontamination.sets if cleaning.decontamination else ():
        stamps += [(file.name, file.size, file.version) for file in find_files(evaluation_set.path, config.root)]
    return stamps


def _list_tokenizer_files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _stamp(path: Path) -> tuple[str, int, str]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path") from error
    return str(path), facts.st_size, str(facts.st_mtime_ns)

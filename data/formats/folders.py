"""Folders that are one data set: those that Hugging Face `datasets` saves, and those that TFDS prepares."""

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from data.files import DataFile
from data.formats.rows import Fault, Parser, Record, make_excerpt
from data.formats.values import to_plain
from data.schema import DataError
from data.storage import list_entries, local_copy, naming, open_url


def read_hf_dataset(file: DataFile, split: str | None) -> tuple[DataFile, Iterator[Record]]:
    """Returns the split of a folder written by `save_to_disk`, and its rows in the data set's order, lazily.

    Raises DataError if the folder has several splits and none is asked for, lacks the one asked for, or keeps an order
    of its own beside the rows (`select` and `shuffle` in old versions of `datasets`).
    """
    from data.formats.columns import read_arrow

    if _exists(file, "dataset_dict.json"):
        splits = _read_json(file, "dataset_dict.json").get("splits")
        split = _choose_split(file, split, [name for name in splits or () if isinstance(name, str)])
        file = msgspec.structs.replace(file, url=f"{file.url}{split}/", name=f"{file.name}/{split}")
        split = None
    state = _read_json(file, "state.json")
    if split not in (None, state.get("_split")):
        raise DataError(f"{file.name} is one data set without splits, not {split!r}; leave `split` out")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(
            f"{file.name} keeps the order of its rows in a file of its own, which is not read; in Python, write "
            f"load_from_disk(FOLDER).flatten_indices().save_to_disk(NEW_FOLDER), and name the new folder"
        )
    try:
        names = [str(entry["filename"]) for entry in state["_data_files"]]
    except (KeyError, TypeError):
        raise DataError(f"{file.name}/state.json does not list the folder's files; save the data set again") from None

    def read() -> Iterator[Record]:
        line = 1
        for name in names:
            inside = DataFile(url=file.url + name, name=f"{file.name}/{name}", size=-1, version="")
            for record in read_arrow(inside, line):
                yield record
                line += record.rows

    return file, read()


def read_tfds(file: DataFile, split: str | None) -> tuple[DataFile, bytes, Iterator[Record]]:
    """Returns the split of a prepared TFDS folder, its features for `make_examples_parser`, and its examples, lazily.

    `split` is anything TFDS takes: `train`, `train[:1000]`, `train+test`. Raises DataError as `read_hf_dataset` does,
    if the files are no ArrayRecord, and later if one is damaged or has not as many examples as the data set says.
    """
    info = _read_json(file, "dataset_info.json")
    if info.get("fileFormat") != "array_record":
        written = info.get("fileFormat") or "tfrecord"
        raise DataError(
            f"{file.name} is written as {written}, which needs TensorFlow to read; prepare it again as ArrayRecord: "
            f"tfds build --file_format=array_record, or convert it with tfds convert_format"
        )
    splits = [str(entry.get("name")) for entry in info.get("splits", ()) if isinstance(entry, dict)]
    split = _choose_split(file, split, splits, slices=True)
    head = json.dumps(_read_json(file, "features.json")).encode()
    return msgspec.structs.replace(file, name=f"{file.name}/{split}"), head, _read_examples(file, split, splits)


def make_examples_parser(head: bytes) -> Parser:
    """Returns what reads a record, one example of a TFDS data set whose features are given, as a row.

    Texts are decoded; numbers, arrays and sequences are plain values. A sequence of named fields is, as in TFDS, one
    list for each field.
    """
    # Imported where a TFDS data set is read: it costs a third of a second.
    import tensorflow_datasets.public_api as tfds

    try:
        features = tfds.features.FeaturesDict.from_json(json.loads(head))
    except Exception as error:
        raise DataError(f"features.json of the TFDS data set cannot be read: {error}; prepare it again") from None
    if not isinstance(features, tfds.features.FeaturesDict):
        raise DataError("features.json of the TFDS data set names no fields; only sets of named fields can be rows")

    def parse(content: bytes) -> list[dict[str, Any] | Fault]:
        try:
            example: dict[str, Any] = features.deserialize_example_np(content)  # pyright: ignore[reportAssignmentType]
        except ImportError as error:
            raise DataError(
                f"features of this TFDS data set cannot be read without {error.name}; flatten them"
            ) from None
        # TFDS has no class of its own for what it raises.
        except Exception as error:
            return [Fault(f"the example does not fit its features: {error}", make_excerpt(content))]
        row: dict[str, Any] = {}
        for name, value in example.items():
            try:
                row[name] = to_plain(value)
            except ValueError as error:
                return [Fault(f"field {name!r} cannot be read as text or plain values: {error}", make_excerpt(content))]
        return [row]

    return parse


def _read_examples(file: DataFile, split: str, splits: list[str]) -> Iterator[Record]:
    import tensorflow_datasets.public_api as tfds

    from data.formats.records import read_records

    with local_copy(file.url) as path:
        try:
            instructions = tfds.builder_from_directory(path).info.splits[split].file_instructions
        except Exception as error:
            known = ", ".join(splits)
            raise DataError(f"{file.name}: TFDS cannot read split {split!r} ({error}); it has {known}") from None
        line = 1
        for part in instructions:
            name = f"{file.name}/{str(part.filename).rsplit('/', 1)[-1]}"
            promised = part.examples_in_shard
            yield from read_records(
                str(part.filename), name, skip=part.skip, take=part.take, line=line, promised=promised
            )
            line += part.take


def _choose_split(file: DataFile, split: str | None, splits: list[str], *, slices: bool = False) -> str:
    if split is None and len(splits) == 1:
        return splits[0]
    if split is None:
        raise DataError(f"{file.name} has splits {', '.join(splits) or 'of no name'}; set `split` to one of them")
    if split not in splits and not (slices and ("[" in split or "+" in split)):
        raise DataError(f"{file.name} has no split {split!r}; it has {', '.join(splits)}")
    return split


def _exists(file: DataFile, name: str) -> bool:
    return bool(list_entries(file.url + name))


def _read_json(file: DataFile, name: str) -> dict[str, Any]:
    with naming(f"{file.name}/{name}"), open_url(file.url + name) as opened:
        content = opened.read()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.name}/{name} is damaged ({error}); copy the folder again") from None
    if not isinstance(value, dict):
        raise DataError(f"{file.name}/{name} holds no JSON object; copy the folder again")
    return value

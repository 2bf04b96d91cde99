"""From a recipe's data section to a plan on disk: built once, read back by every restart."""

import contextlib
import hashlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import msgspec

from data.bad_rows import BadRow, BadRows, write_bad_rows
from data.chat import (
    SHIPPED,
    ChatTemplate,
    is_saved_chat,
    list_templates,
    load_chat,
    load_saved_chat,
    read_saved_date,
    save_chat,
)
from data.config import DataConfig, TokenizerConfig
from data.dataset import Dataset, encode_dataset, read_dataset, write_dataset
from data.plan import Plan, build_plan, read_plan, write_plan
from data.schema import Conversation, DataError
from data.source_config import FileSource
from data.sources import find_source_files, load_sources
from data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

# Packages whose contents or behaviour become training data.
PACKAGES = ("polytune", "babel", "langcodes", "sentencepiece", "tokenizers", "jinja2")
# How folders still being written are named, beside the place they are for.
SCRATCH = ".preparing-"


class Prepared(NamedTuple):
    """What a run needs of its data; dataset and plan are mapped from `run_dir/plan`."""

    dataset: Dataset
    plan: Plan
    tokenizer: Tokenizer
    chat: ChatTemplate


class _Recipe(NamedTuple):
    data: DataConfig
    tokenizer: TokenizerConfig
    seed: int
    extra_stop_ids: tuple[int, ...]


class _Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan on disk was made from; `plan/inputs.json`."""

    fingerprint: str


def prepare(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    *,
    steps: int,
    batch_rows: int,
    seed: int,
    run_dir: Path | str,
    extra_stop_ids: tuple[int, ...] = (),
) -> Prepared:
    """The dataset, plan, tokenizer and template of a run, read back from `run_dir` where they are there already.

    The plan folder appears in one rename when it is complete, so whatever a killed process leaves behind is
    never taken for one. With the same recipe, files and package versions it is read back; with more or fewer
    steps the rows are planned again from the stored dataset, and those already served stay as they were. With
    anything else changed it is built anew and compared. `extra_stop_ids` end an answer besides what tokenizer and
    template say: those a model to start from lists.

    Raises DataError for bad data and impossible mixtures, and when the run directory holds another plan: its
    checkpoints belong to that one. One process at a time may prepare a run directory.
    """
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    plan_dir = run_dir / "plan"
    recipe = _Recipe(config, tokenizer_config, seed, extra_stop_ids)
    fingerprint = fingerprint_inputs(config, tokenizer_config, seed, extra_stop_ids)
    if not plan_dir.exists() or _read_inputs(plan_dir).fingerprint != fingerprint:
        _build(recipe, fingerprint, steps=steps, batch_rows=batch_rows, run_dir=run_dir)
    dataset, plan = read_dataset(plan_dir / "dataset"), read_plan(plan_dir)
    if (plan.summary["steps"], plan.summary["batch_rows"]) != (steps, batch_rows):
        with _replacing(plan_dir) as fresh:
            shutil.copytree(plan_dir, fresh)
            write_plan(build_plan(dataset, config, steps=steps, batch_rows=batch_rows, seed=seed), fresh)
        dataset, plan = read_dataset(plan_dir / "dataset"), read_plan(plan_dir)
    tokenizer = load_tokenizer(run_dir / "tokenizer")
    if tokenizer.hash != dataset.facts.tokenizer_hash:
        raise DataError(
            f"{run_dir / 'tokenizer'} has hash {tokenizer.hash[:12]} but the plan was made with "
            f"{dataset.facts.tokenizer_hash[:12]}; restore the tokenizer or start a new run directory"
        )
    chat = load_saved_chat(tokenizer, run_dir / "tokenizer")
    if chat.hash != dataset.facts.template_hash:
        raise DataError(
            f"{run_dir / 'tokenizer'} has a chat template of hash {chat.hash[:12]} but the plan was made with "
            f"{dataset.facts.template_hash[:12]}; restore the folder or start a new run directory"
        )
    return Prepared(dataset, plan, tokenizer, chat)


def fingerprint_inputs(
    config: DataConfig, tokenizer_config: TokenizerConfig, seed: int, extra_stop_ids: tuple[int, ...] = ()
) -> str:
    """sha256 of all that loading, encoding and planning read, without reading the data itself.

    Files count by path below `data.root`, size and time of change; this package by its code and phrase
    books; others by version. Loader settings and steps are left out: they change nothing. Equal fingerprints
    mean the same plan; unequal ones mean that only building it can tell.
    """
    settings = msgspec.structs.replace(config, root="", workers=0, prefetch=1)
    files = []
    root = Path(config.root)
    for source in config.sources:
        if isinstance(source, FileSource):
            files += [_stamp(path, root) for path in find_source_files(source, root)]
    if tokenizer_config.path is not None:
        files += [_stamp(path, root) for path in _list_tokenizer_files(Path(tokenizer_config.path))]
    if tokenizer_config.template is not None and tokenizer_config.template not in list_templates():
        files.append(_stamp(Path(tokenizer_config.template), root))
    versions = [(name, _version(name)) for name in PACKAGES]
    facts = (settings, tokenizer_config, seed, extra_stop_ids, files, versions, _hash_code())
    return hashlib.sha256(msgspec.json.encode(facts, order="sorted")).hexdigest()


def _build(recipe: _Recipe, fingerprint: str, *, steps: int, batch_rows: int, run_dir: Path) -> None:
    config = recipe.data
    bad_rows = BadRows(config.bad_rows)
    conversations = load_sources(config, bad_rows=bad_rows)
    chat = _make_chat(conversations, recipe, run_dir)
    dataset = encode_dataset(
        conversations,
        chat,
        row_length=config.packing.row_length,
        overlong=config.packing.overlong,
        reject=lambda conversation, error: _reject(conversation, error, bad_rows),
    )
    _check_dropped(conversations, dataset, bad_rows=bad_rows, max_dropped=config.max_dropped)
    facts = msgspec.structs.replace(dataset.facts, bad_rows=bad_rows.by_language())
    dataset = msgspec.structs.replace(dataset, facts=facts)
    plan = build_plan(dataset, config, steps=steps, batch_rows=batch_rows, seed=recipe.seed)
    _check_same_plan(plan, run_dir)
    _save_tokenizer(chat, run_dir)
    with _replacing(run_dir / "plan") as fresh:
        write_dataset(dataset, fresh / "dataset")
        write_plan(plan, fresh)
        write_bad_rows(bad_rows, fresh / "bad_rows.jsonl")
        (fresh / "inputs.json").write_bytes(msgspec.json.encode(_Inputs(fingerprint=fingerprint)))


def _make_tokenizer(conversations: Sequence[Conversation], config: TokenizerConfig) -> Tokenizer:
    if config.path is not None:
        return load_tokenizer(config.path)
    return train_tokenizer((turn.content for conversation in conversations for turn in conversation.turns), config)


def _make_chat(conversations: Sequence[Conversation], recipe: _Recipe, run_dir: Path) -> ChatTemplate:
    config, tokenizer = recipe.tokenizer, _make_tokenizer(conversations, recipe.tokenizer)
    if config.template is None and config.path is not None and is_saved_chat(Path(config.path)):
        return load_saved_chat(tokenizer, Path(config.path), extra_stop_ids=recipe.extra_stop_ids)
    # A template that prints the day keeps printing the day the run began.
    date = read_saved_date(run_dir / "tokenizer")
    return load_chat(tokenizer, config.template, extra_stop_ids=recipe.extra_stop_ids, date=date)


def _reject(conversation: Conversation, error: DataError, bad_rows: BadRows) -> None:
    """Notes a conversation that loads but cannot be encoded as the bad row it came from, or raises."""
    file, _, line = conversation.id.rpartition(":")
    placed = bool(file) and line.isdigit()
    bad_rows.add(
        BadRow(
            source=conversation.source,
            file=file if placed else conversation.id,
            line=int(line) if placed else 0,
            reason=str(error),
            language=conversation.language,
        )
    )


def _check_dropped(
    conversations: Sequence[Conversation], dataset: Dataset, *, bad_rows: BadRows, max_dropped: float
) -> None:
    """Raises DataError if a source loses more than it may to bad rows and row length together."""
    loaded = Counter(conversation.source for conversation in conversations)
    overlong: Counter[str] = Counter()
    for item in dataset.facts.dropped:
        overlong[item.source] += item.count
    for source, count in loaded.items():
        bad = bad_rows.by_source().get(source, 0)
        share = bad / max(bad_rows.read[source], count) + overlong[source] / count
        # A source that loses everything is reported by `build_plan`, with the row length it would need.
        if share > max_dropped and overlong[source] < count:
            raise DataError(
                f"source {source!r} would lose {share:.1%} of its rows ({overlong[source]} longer than a "
                f"row, {bad} bad), more than data.max_dropped={max_dropped:g}; raise "
                "data.packing.row_length or data.max_dropped"
            )


def _check_same_plan(plan: Plan, run_dir: Path) -> None:
    plan_dir = run_dir / "plan"
    if not plan_dir.exists():
        return
    existing = read_plan(plan_dir)
    if existing.hash != plan.hash:
        raise DataError(
            f"{run_dir} belongs to another recipe: its plan is {existing.hash[:12]}, this recipe with its "
            f"data and seed gives {plan.hash[:12]}. Set run.dir to a new folder, or restore the recipe and "
            "data"
        )


def _save_tokenizer(chat: ChatTemplate, run_dir: Path) -> None:
    """Puts tokenizer and template at their place in one rename; refuses to exchange those that are there."""
    place, tokenizer = run_dir / "tokenizer", chat.tokenizer
    if not place.exists():
        with _replacing(place) as fresh:
            tokenizer.save(fresh)
            save_chat(chat, fresh)
        return
    existing = load_tokenizer(place)
    if existing.hash != tokenizer.hash:
        raise DataError(
            f"{place} holds another tokenizer ({existing.hash[:12]}) than this recipe gives "
            f"({tokenizer.hash[:12]}); set run.dir to a new folder"
        )
    stored = load_saved_chat(existing, place)
    if (stored.hash, stored.stop_ids) != (chat.hash, chat.stop_ids):
        raise DataError(
            f"{place} holds another chat template ({stored.hash[:12]}, stop ids {stored.stop_ids}) than this recipe "
            f"gives ({chat.hash[:12]}, {chat.stop_ids}); set run.dir to a new folder"
        )


@contextlib.contextmanager
def _replacing(place: Path) -> Iterator[Path]:
    """A path to build a folder at; when the block ends without an error it is renamed to its place.

    A process killed between moving the old folder away and the new one in leaves neither, and the next start
    builds the same one again. What killed processes left half built is removed.
    """
    for stale in place.parent.glob(f"{SCRATCH}*"):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=SCRATCH) as scratch:
        fresh = Path(scratch) / "new"
        yield fresh
        if place.exists():
            place.rename(Path(scratch) / "old")
        fresh.rename(place)


def _read_inputs(plan_dir: Path) -> _Inputs:
    try:
        return msgspec.json.decode((plan_dir / "inputs.json").read_bytes(), type=_Inputs)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{plan_dir} is damaged ({error}); delete it and start again") from error


def _list_tokenizer_files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def _stamp(path: Path, root: Path) -> tuple[str, int, int]:
    try:
        facts = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path and data.root") from error
    name = path.relative_to(root) if path.is_relative_to(root) else path
    return str(name), facts.st_size, facts.st_mtime_ns


def _hash_code() -> str:
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted([*folder.rglob("*.py"), *folder.glob("phrases/*.yaml"), *SHIPPED.glob("*.jinja")]):
        digest.update(f"{path.relative_to(folder)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"

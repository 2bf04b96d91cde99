"""From a recipe's data section to a plan on disk: built once, read back by every restart."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from data.assembly import Assembled, assemble
from data.bad_rows import write_bad_rows
from data.chat import ChatTemplate, is_saved_chat, load_chat, load_saved_chat, read_saved_date, save_chat
from data.cleaning.checks import make_checks
from data.config import DataConfig, TokenizerConfig
from data.dataset import Dataset, find_missing_shards, point_at_store, read_dataset, write_dataset
from data.fingerprint import fingerprint_inputs
from data.loading import OpenedSource, load_all_texts, open_sources
from data.plan import Plan, build_plan, read_plan, write_plan
from data.schema import DataError
from data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from data.works import Progress
from data.workshop import make_shards

# How folders still being written are named, beside the place they are for.
SCRATCH = ".preparing-"


class Prepared(NamedTuple):
    """What a run needs of its data; dataset and plan are mapped from `run_dir/plan`, tokens stay in the store."""

    dataset: Dataset
    plan: Plan
    tokenizer: Tokenizer
    chat: ChatTemplate


class Amount(NamedTuple):
    """How much is planned: so many steps, or so many passes over every example."""

    steps: int | None
    epochs: float | None
    batch_rows: int


class _Recipe(NamedTuple):
    data: DataConfig
    tokenizer: TokenizerConfig
    seed: int
    extra_stop_ids: tuple[int, ...]


class _Inputs(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan on disk was made from; `plan/inputs.json`."""

    fingerprint: str


class Watch(NamedTuple):
    """Who is told of what goes on. The defaults tell nobody."""

    notice: Callable[[str], None] = lambda _: None
    """What was taken for what: forms of rows, names of columns."""
    progress: Callable[[Progress], None] = lambda _: None


NOBODY = Watch()


def prepare(
    config: DataConfig,
    tokenizer_config: TokenizerConfig,
    *,
    steps: int | None,
    batch_rows: int,
    seed: int,
    run_dir: Path | str,
    store: Path | str,
    epochs: float | None = None,
    extra_stop_ids: tuple[int, ...] = (),
    watch: Watch = NOBODY,
) -> Prepared:
    """The dataset, plan, tokenizer and template of a run, read back from `run_dir` where they are there already.

    Tokens go into `store`, in shards named by all they are made from: another run of the same data finds them there,
    and so does the next start after a kill. The plan folder appears in one rename when it is complete, so whatever a
    killed process leaves behind is never taken for one. With the same recipe, files and package versions it is read
    back; with more or fewer steps the rows are planned again from the stored dataset, and those already served stay as
    they were. With anything else changed it is built anew and compared. `extra_stop_ids` end an answer besides what
    tokenizer and template say: those a model to start from lists.

    Raises DataError for bad data and impossible mixtures, and when the run directory holds another plan: its
    checkpoints belong to that one. One process at a time may prepare a run directory.
    """
    run_dir, store = Path(run_dir), Path(store)
    run_dir.mkdir(parents=True, exist_ok=True)
    plan_dir = run_dir / "plan"
    recipe = _Recipe(config, tokenizer_config, seed, extra_stop_ids)
    amount = Amount(steps, epochs, batch_rows)
    fingerprint = fingerprint_inputs(config, tokenizer_config, seed, extra_stop_ids)
    if not _is_there(plan_dir, fingerprint, store):
        _build(recipe, fingerprint, amount=amount, run_dir=run_dir, store=store, watch=watch)
    dataset, plan = read_dataset(plan_dir / "dataset"), read_plan(plan_dir)
    if not _is_planned(plan, amount):
        plan = _plan(dataset, recipe, amount)
        _check_same_plan(plan, run_dir, config, watch)
        with _replacing(plan_dir) as fresh:
            shutil.copytree(plan_dir, fresh)
            write_plan(plan, fresh)
        dataset, plan = read_dataset(plan_dir / "dataset"), read_plan(plan_dir)
    return _read(dataset, plan, run_dir)


def read_prepared(run_dir: Path | str) -> Prepared:
    """What `prepare` left in a run directory, for processes that only read: nothing is looked up, compared or written.

    Raises DataError when it is not there, or damaged.
    """
    plan_dir = Path(run_dir) / "plan"
    return _read(read_dataset(plan_dir / "dataset"), read_plan(plan_dir), Path(run_dir))


def _read(dataset: Dataset, plan: Plan, run_dir: Path) -> Prepared:
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


def _is_there(plan_dir: Path, fingerprint: str, store: Path) -> bool:
    """Whether a plan made from the same is there with all its shards, in this store."""
    if not plan_dir.exists() or _read_inputs(plan_dir).fingerprint != fingerprint:
        return False
    point_at_store(plan_dir / "dataset", store)
    return not find_missing_shards(read_dataset(plan_dir / "dataset"))


def _is_planned(plan: Plan, amount: Amount) -> bool:
    wanted = (amount.steps, amount.epochs, amount.batch_rows)
    there = plan.summary
    return wanted == (there["steps_asked"], there["epochs_asked"], there["batch_rows"])


def _plan(dataset: Dataset, recipe: _Recipe, amount: Amount) -> Plan:
    return build_plan(
        dataset, recipe.data, steps=amount.steps, epochs=amount.epochs, batch_rows=amount.batch_rows, seed=recipe.seed
    )


def _build(recipe: _Recipe, fingerprint: str, *, amount: Amount, run_dir: Path, store: Path, watch: Watch) -> None:
    opened = open_sources(recipe.data)
    for source in opened:
        for notice in source.notices:
            watch.notice(notice)
    chat = _make_chat(opened, recipe, run_dir)
    checks = make_checks(recipe.data.cleaning, root=recipe.data.root)
    keys = make_shards(opened, recipe.data, chat, checks=checks, store=store, progress=watch.progress)
    assembled = assemble(recipe.data, chat, store=store, keys=keys, notes=checks.notes)
    plan = _plan(assembled.dataset, recipe, amount)
    _check_same_plan(plan, run_dir, recipe.data, watch)
    _save_tokenizer(chat, run_dir)
    with _replacing(run_dir / "plan") as fresh:
        _write(assembled, plan, fresh, store=store)
        (fresh / "inputs.json").write_bytes(msgspec.json.encode(_Inputs(fingerprint=fingerprint)))


def _write(assembled: Assembled, plan: Plan, fresh: Path, *, store: Path) -> None:
    write_dataset(assembled.dataset, fresh / "dataset", store=store)
    write_plan(plan, fresh)
    write_bad_rows(assembled.bad_rows, fresh / "bad_rows.jsonl")
    (fresh / "cleaning.json").write_bytes(assembled.cleaning.to_json())


def _make_chat(opened: list[OpenedSource], recipe: _Recipe, run_dir: Path) -> ChatTemplate:
    config = recipe.tokenizer
    if config.path is not None:
        tokenizer = load_tokenizer(config.path)
    else:
        tokenizer = train_tokenizer(load_all_texts(opened), config)
    if config.template is None and config.path is not None and is_saved_chat(Path(config.path)):
        return load_saved_chat(tokenizer, Path(config.path), extra_stop_ids=recipe.extra_stop_ids)
    # A template that prints the day keeps printing the day the run began.
    date = read_saved_date(run_dir / "tokenizer")
    return load_chat(tokenizer, config.template, extra_stop_ids=recipe.extra_stop_ids, date=date)


def _check_same_plan(plan: Plan, run_dir: Path, config: DataConfig, watch: Watch) -> None:
    plan_dir = run_dir / "plan"
    if not plan_dir.exists():
        return
    existing = read_plan(plan_dir)
    if existing.hash == plan.hash:
        return
    if not _is_trained(run_dir):
        watch.notice(f"{run_dir} gets another plan than was prepared there: nothing was trained on it yet")
        return
    if config.changed_plan == "accept":
        watch.notice(
            f"the plan changes from {existing.hash[:12]} to {plan.hash[:12]} (data.changed_plan=accept): the run goes "
            "on at the row it has come to, of the new one"
        )
        return
    raise DataError(
        f"{run_dir} belongs to another recipe: its plan is {existing.hash[:12]}, this recipe with its "
        f"data and seed gives {plan.hash[:12]}. Set run.dir to a new folder, restore the recipe and "
        "data, or set data.changed_plan to accept"
    )


def _save_tokenizer(chat: ChatTemplate, run_dir: Path) -> None:
    """Puts tokenizer and template at their place in one rename; refuses to exchange those that were trained with."""
    place, tokenizer = run_dir / "tokenizer", chat.tokenizer
    if not place.exists() or not _is_trained(run_dir):
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


def _is_trained(run_dir: Path) -> bool:
    """Whether the run has checkpoints, which belong to the plan and the tokenizer that are there."""
    checkpoints = run_dir / "checkpoints"
    return checkpoints.is_dir() and any(checkpoints.iterdir())


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

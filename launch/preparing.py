"""Preparing a recipe's data, with what a person sees of it."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

from data.held_out import prepare_held_out
from data.prepare import Prepared, Watch, prepare
from data.storage import is_remote
from data.works import Progress
from launch.config import Recipe, RecipeError
from launch.origin import Origin
from launch.runtime import cache_dir

LINE_EVERY_S = 10.0
"""Seconds between lines of a log that is not a terminal."""


def prepare_recipe(recipe: Recipe, origin: Origin, *, run_dir: Path, console: Console) -> Prepared:
    """The recipe's data, tokenised where it is not yet, planned for its steps; told of on the console.

    With it `data.held_out`, which `data.held_out.read_held_out` then finds in the run directory.
    """
    store = store_of(recipe)
    with _show_progress(console) as watch:
        prepared = prepare(
            recipe.data,
            origin.tokenizer,
            steps=recipe.train.steps,
            epochs=recipe.train.epochs,
            batch_rows=recipe.train.batch_rows,
            seed=recipe.run.seed,
            run_dir=run_dir,
            store=store,
            extra_stop_ids=origin.stop_ids,
            watch=watch,
        )
        if recipe.data.held_out is not None:
            prepare_held_out(
                recipe.data, training=prepared.dataset, run_dir=run_dir, store=store, seed=recipe.run.seed,
                extra_stop_ids=origin.stop_ids, watch=watch,
            )  # fmt: skip
    for notice in prepared.chat.notices:
        print_notice(notice, console)
    return prepared


def store_of(recipe: Recipe) -> Path:
    """Where tokenised rows are kept: `data.store`, or polytune's cache folder. Raises RecipeError for a URL."""
    store = recipe.data.store
    if store is not None and is_remote(store):
        raise RecipeError(
            f"data.store {store} is a URL, but training reads single rows of it at random: give a folder of a disk, or "
            "a bucket that is mounted as one"
        )
    return Path(store.removeprefix("file://")) if store is not None else cache_dir() / "prepared"


def print_notice(notice: str, console: Console) -> None:
    """What a user should know and need not do anything about."""
    console.print(f"[bold yellow]notice[/] {escape(notice)}", soft_wrap=True, highlight=False)


@contextlib.contextmanager
def _show_progress(console: Console) -> Iterator[Watch]:
    """A line that renews itself on a terminal, a line now and then elsewhere; nothing where nothing is to be done."""
    began = time.monotonic()

    def describe(seen: Progress) -> str:
        rate = seen.tokens / max(time.monotonic() - began, 1e-9)
        reused = f", {seen.reused} of {seen.shards} shards were there" if seen.reused else ""
        return f"{seen.source}: {seen.rows:,} rows, {seen.tokens:,} tokens, {rate:,.0f} tokens/s{reused}"

    def notice(text: str) -> None:
        print_notice(text, console)

    if console.is_terminal:
        columns = (SpinnerColumn(), TextColumn("preparing {task.description}"), TimeElapsedColumn())
        with Bar(*columns, console=console, transient=True, refresh_per_second=4) as bar:
            task = bar.add_task("", visible=False)
            yield Watch(notice, lambda seen: bar.update(task, description=describe(seen), visible=True))
        return
    last = began

    def print_line(seen: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            console.print(f"preparing {describe(seen)}", highlight=False, markup=False, soft_wrap=True)

    yield Watch(notice, print_line)

"""Pieces of work handed to processes, and the shards they make, in the order of the sources."""

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from data.chat import ChatTemplate
from data.cleaning.checks import Checks
from data.config import DataConfig
from data.encoding import Done, Setup, encode_work
from data.fingerprint import fingerprint_source, fingerprint_work
from data.loading import OpenedSource
from data.schema import DataError
from data.shards import has_shard, read_shard
from data.works import Progress, Work

BYTES_A_WORKER = 4 << 20
"""Starting a process pays from about this much text on."""
WAITING = 2
"""Pieces of work a process has waiting, so that it never idles and memory stays flat."""
PARALLELISM = "TOKENIZERS_PARALLELISM"
"""Asked by `tokenizers` each time. Texts are encoded one by one: threads of its own would only hand each around."""

_setup: list[Setup] = []
"""What a worker process was started with; empty in every other process."""


class _Job(NamedTuple):
    work: Work
    key: str
    done: "Future[Done] | Done"
    reused: bool


def make_shards(
    opened: list[OpenedSource],
    config: DataConfig,
    chat: ChatTemplate,
    *,
    checks: Checks,
    store: Path,
    progress: Callable[[Progress], None],
) -> list[str]:
    """Makes the shards that are not in the store yet; the keys of all, in order, whatever processes made them.

    Raises DataError for the first bad row of the sources where `data.bad_rows` is "error", and as `encode_work` does.
    """
    packing = config.packing
    setup = Setup(
        sources=tuple(source.setup for source in opened),
        chat=chat,
        cutting=packing.overlong if packing.overlong in ("truncate", "split") else None,
        row_length=packing.row_length,
        checks=checks,
        cleaning=config.cleaning,
        store=store,
    )
    hashes = [fingerprint_source(source.source, config, chat, form=source.form) for source in opened]
    works = (
        (work, fingerprint_work(source_hash, work))
        for source, source_hash in zip(opened, hashes, strict=True)
        for work in source.works()
    )
    keys, seen = [], Progress("", 0, 0, 0, 0)
    for job in _run(works, setup, count_workers(config.prepare_workers, sum(source.size for source in opened))):
        done = _finish(job)
        if done.bad is not None and config.bad_rows == "error":
            bad = done.bad
            raise DataError(f"{bad.file}:{bad.line}: {bad.reason}; fix it, or set data.bad_rows to skip")
        keys.append(done.key)
        seen = Progress(
            setup.sources[job.work.source].name,
            seen.rows + done.rows,
            seen.tokens + done.tokens,
            seen.reused + job.reused,
            seen.shards + 1,
        )
        progress(seen)
    return keys


def count_workers(asked: int | None, size: int) -> int:
    """How many processes prepare: as asked, else one a core where there is that much to do; 0 is this process."""
    if asked is not None:
        return asked
    useful = min(_count_cores(), size // BYTES_A_WORKER)
    return useful if useful > 1 else 0


def _count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run(works: Iterator[tuple[Work, str]], setup: Setup, workers: int) -> Iterator[_Job]:
    if not workers:
        for work, key in works:
            found = _find(setup, key)
            yield _Job(work, key, found or _work_here(setup, work, key), found is not None)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(setup,)) as pool:
        waiting: deque[_Job] = deque()
        try:
            for work, key in works:
                found = _find(setup, key)
                waiting.append(_Job(work, key, found or pool.submit(_work, work, key), found is not None))
                if len(waiting) > WAITING * workers:
                    yield waiting.popleft()
            yield from waiting
        finally:
            pool.shutdown(cancel_futures=True)


def _find(setup: Setup, key: str) -> Done | None:
    if not has_shard(setup.store, key):
        return None
    facts = read_shard(setup.store, key).facts
    return Done(key, facts.read, facts.tokens, facts.bad_rows[0] if facts.bad_rows else None)


def _finish(job: _Job) -> Done:
    if isinstance(job.done, Done):
        return job.done
    try:
        return job.done.result()
    except BrokenProcessPool:
        raise DataError(
            f"a process that prepares {_describe(job.work)} ended by itself: killed, most likely for want of memory "
            "(set data.prepare_workers lower), or not able to start (a script of your own needs `if __name__ == "
            "'__main__':`, or data.prepare_workers=0). What is finished is kept"
        ) from None


def _describe(work: Work) -> str:
    if not work.chunks:
        return "embedded data"
    first, last = work.chunks[0], work.chunks[-1]
    return f"{first.file.name} from row {first.first_row + 1} to {last.file.name} row {last.first_row + last.rows}"


def _work_here(setup: Setup, work: Work, key: str) -> Done:
    """As `_work`, in a process that has more to do."""
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"
    try:
        return encode_work(setup, work, key)
    finally:
        del os.environ[PARALLELISM]
        if before is not None:
            os.environ[PARALLELISM] = before


def _start_worker(setup: Setup) -> None:
    os.environ[PARALLELISM] = "false"
    _setup.append(setup)


def _work(work: Work, key: str) -> Done:
    return encode_work(_setup[0], work, key)

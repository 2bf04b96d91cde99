"""Shards to the dataset of a run: which of their examples are kept, and what was left out on the way."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from data.bad_rows import BadRow, BadRows
from data.chat import ChatTemplate
from data.cleaning.duplicates import find_duplicates
from data.cleaning.report import CleaningReport, DroppedRow, merge_reports
from data.config import DataConfig
from data.dataset import ARRAYS, Cut, Dataset, DatasetFacts, Dropped, ShardList, hash_dataset
from data.schema import DataError
from data.shards import ShardTable, read_shard
from data.source_config import FileSource, Source
from data.token_store import ShardStore, id_bytes_for


class Assembled(NamedTuple):
    """A dataset and all that is not in it."""

    dataset: Dataset
    bad_rows: BadRows
    cleaning: CleaningReport


class _Gathered(NamedTuple):
    """Columns of all shards laid end to end; ids index the tables."""

    arrays: dict[str, np.ndarray]
    signatures: np.ndarray
    languages: tuple[str, ...]
    tasks: tuple[str, ...]
    files: tuple[str, ...]


def assemble(
    config: DataConfig, chat: ChatTemplate, *, store: Path, keys: Sequence[str], notes: Sequence[str] = ()
) -> Assembled:
    """The dataset of these shards: examples that fit a row, no duplicates where asked, at most `limit` of a source.

    Raises DataError for an example longer than a row where `data.packing.overlong` is "error", for a source that loses
    more than `data.max_dropped`, and when nothing is left.
    """
    shards = [read_shard(store, key) for key in keys]
    sources = ("", *sorted(source.name for source in config.sources))
    gathered = _gather(shards, sources)
    bad_rows = _collect_losses(shards)
    cleaning = merge_reports((shard.facts.cleaning for shard in shards), max_listed=config.cleaning.max_listed)
    cleaning.notes += notes
    kept_N = np.ones(len(gathered.arrays["positions"]), bool)
    _drop_duplicates(config, gathered, kept_N, cleaning, sources)
    dropped = _drop_overlong(config, gathered, kept_N, shards, sources)
    _apply_limits(config.sources, gathered, kept_N, bad_rows, sources)
    _check_dropped(config, shards, dropped, bad_rows)
    if not kept_N.any():
        raise DataError(f"no example is left to train on: {_describe(dropped, config, bad_rows)}")
    arrays = {name: gathered.arrays[name][kept_N].astype(kind) for name, kind in ARRAYS.items()}
    shard_list = ShardList(
        id_bytes=id_bytes_for(chat.tokenizer.vocab_size),
        keys=tuple(keys),
        counts=tuple(shard.facts.examples for shard in shards),
        digests=tuple(shard.facts.digest for shard in shards),
    )
    weights = {source.name: source.loss.prompt_weight for source in config.sources if isinstance(source, FileSource)}
    facts = DatasetFacts(
        languages=gathered.languages,
        sources=sources,
        tasks=gathered.tasks,
        files=gathered.files,
        pad_id=chat.tokenizer.pad_id,
        prompt_weights=tuple(weights.get(name, 0.0) for name in sources),
        tokenizer_hash=chat.tokenizer.hash,
        template_hash=chat.hash,
        largest_id=max(shard.facts.largest_id for shard in shards),
        shards=shard_list,
        dropped=dropped,
        cut=_count_cut(shards),
        bad_rows=bad_rows.by_language(),
        cleaned={
            predicate: sum(sum(languages.values()) for languages in counts.values())
            for predicate, counts in cleaning.dropped.items()
        },
        left_out={name: dict(counts) for name, counts in bad_rows.left_out.items() if counts},
    )
    token_store = ShardStore(store, shard_list.keys, shard_list.counts, shard_list.id_bytes)
    dataset = _drop_unused(Dataset(facts=facts, store=token_store, directory=None, **arrays))
    _check_lost_languages(dataset, bad_rows)
    return Assembled(_with_hash(dataset), bad_rows, cleaning)


def _gather(shards: Sequence[ShardTable], sources: tuple[str, ...]) -> _Gathered:
    languages = _table(name for shard in shards for name in shard.facts.languages)
    tasks = _table(name for shard in shards for name in shard.facts.tasks)
    files = {name: index for index, name in enumerate(dict.fromkeys(n for s in shards for n in s.facts.files))}
    parts: dict[str, list[np.ndarray]] = {name: [] for name in ARRAYS}
    first = 0
    for facts, columns, _ in shards:
        for name in ("positions", "targets", "content_bytes", "characters", "line"):
            parts[name].append(columns[name])
        parts["language"].append(_renumber(columns["language"], facts.languages, languages))
        parts["task"].append(_renumber(columns["task"], facts.tasks, tasks))
        parts["file"].append(_renumber(columns["file"], facts.files, files))
        parts["source"].append(np.full(facts.examples, sources.index(facts.source)))
        parts["record"].append(first + np.arange(facts.examples))
        first += facts.examples
    arrays = {name: np.concatenate([np.empty(0, ARRAYS[name]), *part]) for name, part in parts.items()}
    signatures = np.concatenate([shard.signatures for shard in shards])
    return _Gathered(arrays, signatures, tuple(languages), tuple(tasks), tuple(files))


def _renumber(ids: np.ndarray, local: Sequence[str], table: dict[str, int]) -> np.ndarray:
    return np.array([table[name] for name in local], np.int64)[ids] if len(local) else np.empty(0, np.int64)


def _table(names: Iterable[str]) -> dict[str, int]:
    """Ids by name, 0 for the empty name, the others sorted."""
    return {name: index for index, name in enumerate(["", *sorted(set(names) - {""})])}


def _collect_losses(shards: Sequence[ShardTable]) -> BadRows:
    bad_rows = BadRows("skip")
    for shard in shards:
        facts = shard.facts
        bad_rows.read[facts.source] += facts.read
        bad_rows.rows.extend(facts.bad_rows)
        bad_rows.left_out[facts.source].update(facts.left_out)
    return bad_rows


def _drop_duplicates(
    config: DataConfig, gathered: _Gathered, kept_N: np.ndarray, cleaning: CleaningReport, sources: tuple[str, ...]
) -> None:
    if not gathered.signatures.shape[1]:
        return
    arrays = gathered.arrays
    found = find_duplicates(config.cleaning, gathered.signatures, arrays["language"], arrays["source"])
    kept_N[found.dropped_D] = False
    for place, (dropped, kept) in enumerate(zip(found.dropped_D.tolist(), found.kept_D.tolist(), strict=True)):
        cleaning.note_dropped(
            DroppedRow(
                predicate=found.predicate(place),
                source=sources[arrays["source"][dropped]],
                language=gathered.languages[arrays["language"][dropped]],
                id=_place(gathered, dropped),
                detail=f"as {_place(gathered, kept)}",
                excerpt="",
            )
        )


def _place(gathered: _Gathered, example: int) -> str:
    file, line = gathered.files[gathered.arrays["file"][example]], int(gathered.arrays["line"][example])
    return f"{file}:{line}" if line else file


def _drop_overlong(
    config: DataConfig,
    gathered: _Gathered,
    kept_N: np.ndarray,
    shards: Sequence[ShardTable],
    sources: tuple[str, ...],
) -> tuple[Dropped, ...]:
    """Takes examples longer than a row out of `kept_N`; what was dropped, here and while encoding."""
    arrays, row_length = gathered.arrays, config.packing.row_length
    long_I = np.flatnonzero(kept_N & (arrays["positions"] > row_length))
    if len(long_I) and config.packing.overlong == "error":
        first = int(long_I[0])
        fills = int(arrays["positions"][first])
        raise DataError(
            f"{_place(gathered, first)} of source {sources[arrays['source'][first]]!r} "
            f"({gathered.languages[arrays['language'][first]]}) fills {fills} positions but data.packing.row_length is "
            f"{row_length}; set it to {fills} or more, or data.packing.overlong to drop, truncate or split"
        )
    kept_N[long_I] = False
    shortest: dict[tuple[str, str], list[int]] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for index in long_I.tolist():
        cell = (sources[arrays["source"][index]], gathered.languages[arrays["language"][index]])
        counts[cell] += 1
        shortest.setdefault(cell, []).append(int(arrays["positions"][index]))
    for shard in shards:
        for item in shard.facts.overlong:
            if item.dropped:
                cell = (shard.facts.source, item.language)
                counts[cell] += item.dropped
                shortest.setdefault(cell, []).append(item.shortest)
    return tuple(
        Dropped(source=source, language=language, count=count, shortest=min(shortest[source, language]))
        for (source, language), count in sorted(counts.items())
    )


def _count_cut(shards: Sequence[ShardTable]) -> tuple[Cut, ...]:
    counts: Counter[tuple[str, str]] = Counter()
    for shard in shards:
        for item in shard.facts.overlong:
            counts[shard.facts.source, item.language] += item.cut
    return tuple(
        Cut(source=source, language=language, count=count)
        for (source, language), count in sorted(counts.items())
        if count
    )


def _apply_limits(
    configured: Sequence[Source],
    gathered: _Gathered,
    kept_N: np.ndarray,
    bad_rows: BadRows,
    sources: tuple[str, ...],
) -> None:
    """Keeps at most `limit` examples of a source, evenly spaced over all of them."""
    for source in configured:
        limit = source.limit if isinstance(source, FileSource) else None
        found_I = np.flatnonzero(kept_N & (gathered.arrays["source"] == sources.index(source.name)))
        if limit is None or len(found_I) <= limit:
            continue
        bad_rows.left_out[source.name]["limit"] += len(found_I) - limit
        kept_N[found_I] = False
        kept_N[found_I[np.arange(limit) * len(found_I) // limit]] = True


def _check_dropped(
    config: DataConfig, shards: Sequence[ShardTable], dropped: tuple[Dropped, ...], bad_rows: BadRows
) -> None:
    """Raises DataError if a source gives nothing, or loses more than it may to bad rows and row length together."""
    bad_rows.check_dropped(config.max_dropped)
    encoded: Counter[str] = Counter()
    for shard in shards:
        encoded[shard.facts.source] += shard.facts.examples + sum(item.dropped for item in shard.facts.overlong)
    overlong: Counter[str] = Counter()
    for item in dropped:
        overlong[item.source] += item.count
    for source, count in encoded.items():
        if not count:
            continue  # `build_plan` says so, with all sources at hand
        bad = bad_rows.by_source().get(source, 0)
        share = bad / max(bad_rows.read[source], count) + overlong[source] / count
        # A source that loses everything is reported by `build_plan`, with the row length it would need.
        if share > config.max_dropped and overlong[source] < count:
            raise DataError(
                f"source {source!r} would lose {share:.1%} of its rows ({overlong[source]} longer than a "
                f"row, {bad} bad), more than data.max_dropped={config.max_dropped:g}; raise "
                "data.packing.row_length or data.max_dropped"
            )


def _check_lost_languages(dataset: Dataset, bad_rows: BadRows) -> None:
    """A language all of whose rows are bad must not vanish from the table; of each, the first bad row is shown."""
    lost: dict[str, BadRow] = {}
    for row in bad_rows.rows:
        if row.language and row.language not in dataset.facts.languages:
            lost.setdefault(row.language, row)
    if lost:
        first = "; ".join(f"{tag}: {_name_bad(row)}" for tag, row in sorted(lost.items())[:3])
        raise DataError(
            f"every row of {', '.join(sorted(lost))} was skipped as bad, so these languages would get nothing "
            f"({first}). Mend the rows, or leave those languages out with `where`"
        )


def _describe(dropped: tuple[Dropped, ...], config: DataConfig, bad_rows: BadRows) -> str:
    if not dropped:
        first = next((f"; the first bad row: {_name_bad(row)}" for row in bad_rows.rows), "")
        return f"the sources gave none; check their paths, `where`, `limit` and data.cleaning{first}"
    count, shortest = sum(item.count for item in dropped), min(item.shortest for item in dropped)
    return (
        f"all {count} are longer than data.packing.row_length={config.packing.row_length} positions; "
        f"the shortest fills {shortest}, so set it to {shortest} or more"
    )


def _name_bad(row: BadRow) -> str:
    return f"{row.file}:{row.line}: {row.reason}"


def _drop_unused(dataset: Dataset) -> Dataset:
    """The dataset with tables of just the languages, sources and tasks that its examples have."""
    facts, arrays = dataset.facts, {}
    tables: dict[str, tuple[str, ...]] = {}
    for column, table in (("language", facts.languages), ("source", facts.sources), ("task", facts.tasks)):
        used = np.unique(np.concatenate(([0], getattr(dataset, column))))
        renumbered = np.zeros(len(table), ARRAYS[column])
        renumbered[used] = np.arange(len(used))
        arrays[column] = renumbered[getattr(dataset, column)]
        tables[column] = tuple(table[index] for index in used.tolist())
    weights = {name: weight for name, weight in zip(facts.sources, facts.prompt_weights, strict=True)}
    facts = msgspec.structs.replace(
        facts,
        languages=tables["language"],
        sources=tables["source"],
        tasks=tables["task"],
        prompt_weights=tuple(weights[name] for name in tables["source"]),
    )
    return msgspec.structs.replace(dataset, facts=facts, **arrays)


def _with_hash(dataset: Dataset) -> Dataset:
    facts = msgspec.structs.replace(dataset.facts, hash=hash_dataset(dataset))
    return msgspec.structs.replace(dataset, facts=facts)

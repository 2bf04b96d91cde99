"""Examples as a plan sees them: sizes and labels without tokens."""

import hashlib
from dataclasses import dataclass

import msgspec
import numpy as np

from data.config import DataConfig, PackingConfig
from data.dataset import DatasetFacts
from data.mixture_config import MixtureConfig
from data.source_config import FileSource


@dataclass(frozen=True, kw_only=True)
class FakeExamples:
    lengths: np.ndarray
    target_tokens: np.ndarray
    language: np.ndarray
    source: np.ndarray
    content_bytes: np.ndarray
    characters: np.ndarray
    facts: DatasetFacts

    def __len__(self):
        return len(self.lengths)


def make_examples(lengths, languages, sources, *, target_tokens=None, bytes_each=7, characters_each=5, dropped=()):
    """Examples of these lengths; languages and sources are names, one an example."""
    lengths = np.asarray(lengths, np.int64)
    language_table, language = np.unique(np.asarray(languages, str), return_inverse=True)
    source_table, source = np.unique(np.asarray(sources, str), return_inverse=True)
    arrays = {
        "lengths": lengths,
        "target_tokens": np.asarray(lengths if target_tokens is None else target_tokens, np.int64),
        "language": (language + 1).astype(np.int16),
        "source": (source + 1).astype(np.int16),
        "content_bytes": np.broadcast_to(np.asarray(bytes_each, np.int32), lengths.shape),
        "characters": np.broadcast_to(np.asarray(characters_each, np.int64), lengths.shape),
    }
    facts = DatasetFacts(
        languages=("", *language_table.tolist()),
        sources=("", *source_table.tolist()),
        tasks=("",),
        pad_id=0,
        prompt_weights=(0.0,) * (1 + len(source_table)),
        largest_id=9,
        tokenizer_hash="t",
        template_hash="c",
        dropped=dropped,
    )
    digest = hashlib.sha256(repr((facts.languages, facts.sources)).encode())
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).tobytes())
    return FakeExamples(**arrays, facts=msgspec.structs.replace(facts, hash=digest.hexdigest()))


def make_config(dataset, *, weights=None, row_length=32, block_examples=64, packed=True, **mixture):
    """A recipe for a dataset's sources; `weights` are the sources' own."""
    sources = tuple(
        FileSource(name=name, path="x", weight=(weights or {}).get(name, 1.0)) for name in dataset.facts.sources[1:]
    )
    packing = PackingConfig(row_length=row_length, block_examples=block_examples, packed=packed)
    return DataConfig(sources=sources, mixture=MixtureConfig(**mixture), packing=packing)


def rows_of(plan):
    """Examples of each row, as lists."""
    return [plan.row_examples[a:b].tolist() for a, b in zip(plan.row_offsets, plan.row_offsets[1:], strict=False)]


def seen_by_language(dataset, plan, first_row=0, end_row=None):
    """Visits of each language's examples in some rows."""
    offsets = plan.row_offsets
    examples = plan.row_examples[offsets[first_row] : offsets[plan.rows if end_row is None else end_row]]
    counts = np.bincount(dataset.language[examples], minlength=len(dataset.facts.languages))
    return {tag: int(count) for tag, count in zip(dataset.facts.languages[1:], counts[1:], strict=True)}

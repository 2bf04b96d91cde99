"""Examples as a plan sees them: sizes and labels without tokens."""

import hashlib
from dataclasses import dataclass

import msgspec
import numpy as np

from data.dataset import DatasetFacts


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
        tokenizer_hash="t",
        template_hash="c",
        dropped=dropped,
    )
    digest = hashlib.sha256(repr((facts.languages, facts.sources)).encode())
    for array in arrays.values():
        digest.update(np.ascontiguousarray(array).tobytes())
    return FakeExamples(**arrays, facts=msgspec.structs.replace(facts, hash=digest.hexdigest()))

"""One file through the whole of `prepare`, and what must be true of what comes out."""

import collections
import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from fuzz_bytes import CHECKED, TEXT

from data.batch import Role
from data.config import DataConfig, PackingConfig, TokenizerConfig
from data.prepare import Prepared, prepare
from data.schema import DataError
from data.source_config import FileSource, LanguageRule, MessageTemplate

CASE_S = 3.0
"""Longest time of a processor that one `prepare` of a few rows may take; nearly all take a fiftieth of a second."""
MAPPING = (
    MessageTemplate(role="user", content="{{ q }}"),
    MessageTemplate(role="assistant", content="{{ a }}"),
)
CONTENTS = (Role.SYSTEM, Role.USER, Role.ASSISTANT, Role.TOOL, Role.TEXT)


class Example(NamedTuple):
    """An example as the store has it."""

    language: str
    ids: tuple[int, ...]
    roles: tuple[int, ...]
    codes: tuple[int, ...]


class Outcome(NamedTuple):
    """What became of a file."""

    examples: dict[int, list[Example]]
    """By line."""
    bad: dict[int, str]
    """Reasons by line."""
    left_out: int
    """Rows left out on purpose."""
    error: str = ""
    prepared: Prepared | None = None


class Recipe(NamedTuple):
    """What a case is prepared by."""

    form: str
    tokenizer: Path
    template: str | None
    format: str = "auto"
    declared: bool = True
    """Whether the recipe names the form of rows and the field of languages, or leaves both to be seen."""
    overlong: str = "error"
    row_length: int = 8192
    prompt_weight: float = 0.0


def make_config(recipe: Recipe, root: Path, path: str, bad_rows: str) -> DataConfig:
    form = {"tools": "messages"}.get(recipe.form, recipe.form)
    fields: dict[str, Any] = {"name": "s", "path": path, "format": recipe.format}
    if form == "mapping":
        fields |= {"messages": MAPPING, "where": "q != 'leave'"}
    elif recipe.declared:
        fields["rows"] = form
    if recipe.declared:
        fields["language"] = LanguageRule(field="language")
    source = msgspec.convert(
        {"kind": "files", **msgspec.to_builtins(fields), "loss": {"prompt_weight": recipe.prompt_weight}}, FileSource
    )
    packing = {"row_length": recipe.row_length, "block_examples": 16, "overlong": recipe.overlong}
    return DataConfig(
        sources=(source,), root=str(root), bad_rows=bad_rows, max_dropped=1.0, prepare_workers=0,
        packing=msgspec.convert(packing, PackingConfig),
    )  # fmt: skip


def run(recipe: Recipe, root: Path, path: str, *, bad_rows: str, place: Path) -> Outcome:
    """Prepares a file into `place`. Whatever is raised is a DataError, soon, that leaves no run behind."""
    config = make_config(recipe, root, path, bad_rows)
    tokenizer = TokenizerConfig(path=str(recipe.tokenizer), template=recipe.template)
    began, run_dir = time.process_time(), place / "run"
    try:
        prepared = prepare(
            config, tokenizer, steps=None, epochs=1, batch_rows=1, seed=0, run_dir=run_dir, store=place / "store"
        )
    except DataError as error:
        str(error).encode("utf-8")
        assert len(str(error)) < 4000
        assert os.listdir(run_dir) == []
        return Outcome({}, {}, 0, str(error))
    finally:
        spent = time.process_time() - began
        assert spent < CASE_S, f"{spent:.1f} s"
    return read_outcome(prepared, run_dir)


def read_outcome(prepared: Prepared, run_dir: Path) -> Outcome:
    dataset = prepared.dataset
    examples: dict[int, list[Example]] = collections.defaultdict(list)
    tokens = dataset.read(np.arange(len(dataset)))
    for index in range(len(dataset)):
        inside = slice(tokens.offsets[index], tokens.offsets[index + 1])
        arrays = (tokens.ids[inside], tokens.roles[inside], tokens.weight_codes[inside])
        language = dataset.facts.languages[dataset.language[index]]
        examples[int(dataset.line[index])].append(Example(language, *(tuple(array.tolist()) for array in arrays)))
    assert sorted(prepared.plan.row_examples.tolist()) == list(range(len(dataset)))
    bad = {}
    for line in (run_dir / "plan" / "bad_rows.jsonl").read_text(encoding="utf-8").split("\n")[:-1]:
        row = json.loads(line)
        assert row["reason"].strip() and row["file"] and row["line"] > 0 and row["line"] not in bad
        bad[row["line"]] = row["reason"]
    dropped = sum(item.count for item in dataset.facts.dropped)
    left_out = sum(sum(counts.values()) for counts in dataset.facts.left_out.values()) + dropped
    return Outcome(dict(examples), bad, left_out, "", prepared)


def check_control(example: Example, prepared: Prepared) -> None:
    """Control ids stand in the scaffolding, and at the end of what a turn says; never inside of what rows say."""
    tokenizer, ends = prepared.tokenizer, (*prepared.chat.stop_ids, prepared.tokenizer.eos_id)
    for index, (token, role) in enumerate(zip(example.ids, example.roles, strict=True)):
        if role == Role.HEADER:
            assert example.codes[index] == 0, "scaffolding is trained"
        elif tokenizer.is_control(token):
            assert token in ends and example.roles[index + 1 : index + 2] in ((), (Role.HEADER,)), "inside of a turn"
            assert example.codes[index] == 0 or role in (Role.ASSISTANT, Role.TEXT)


def spoken(example: Example, prepared: Prepared) -> Iterator[tuple[int, str]]:
    """(role, text) of each run of ids of one turn."""
    start = 0
    for index in range(1, len(example.ids) + 1):
        role = example.roles[start]
        ended = index == len(example.ids) or example.roles[index] != role
        if ended or prepared.tokenizer.is_control(example.ids[index - 1]):
            if role in CONTENTS:
                yield role, prepared.tokenizer.decode(example.ids[start:index])
            start = index


SCAFFOLD = re.compile(r"<think>\n|\n*</think>\n*|\n?<tool_call>\n|\n</tool_call>")
"""What the template writes into an answer beside its texts."""


def check_said(example: Example, prepared: Prepared, row: Any) -> None:
    """Every text of an example stands in the row."""
    words = {piece.strip() for text in texts_of(row) for piece in (text, *SCAFFOLD.split(text))}
    for role, text in spoken(example, prepared):
        pieces = [text] if text.strip() in words else SCAFFOLD.split(text)
        for piece in pieces:
            said = piece.strip()
            known = not said or said in words or (role == Role.ASSISTANT and _is_call(said, words))
            assert known, f"{said[:200]!r} is not in the row"


def _is_call(said: str, words: set[str]) -> bool:
    """Whether a text is a call of a name of the row, or a part of one whose name spells what parts texts here."""
    parts = ('{"name": "', '", "arguments": ', *(f'{{"name": "{name}"' for name in words))
    return said == parts[0].strip() or said.startswith(parts[1:])


def texts_of(value: Any) -> Iterator[str]:
    """Every text in a row, texts that JSON in it holds, joined parts of contents, instructions with inputs."""
    if isinstance(value, str):
        yield from (value, *value.split("</think>"))
        if value.lstrip()[:1] in ("[", "{"):
            with contextlib.suppress(ValueError, RecursionError):
                yield from texts_of(json.loads(value))
    elif isinstance(value, list):
        if value and all(isinstance(part, dict) for part in value):
            yield "".join(part["text"] for part in value if isinstance(part.get("text"), str))
        for inner in value:
            yield from texts_of(inner)
    elif isinstance(value, dict):
        yield "\n\n".join(str(value[name]) for name in ("instruction", "input") if type(value.get(name)) is str)
        for name, inner in value.items():
            yield str(name)
            yield from texts_of(inner)
    elif isinstance(value, float) or (isinstance(value, int) and value.bit_length() < 1000):
        yield str(value)  # templates of a mapping may print numbers


def check_rows(outcome: Outcome, base: dict[int, list[Example]], rows: list[Any], lines: list[int], touched: set[int]):
    """What was not touched is as it is without the rest; what was is there with its own words, or bad with a reason.

    `base` has the examples of each row, by its number, as they are where nothing is touched.
    """
    prepared = outcome.prepared
    assert prepared is not None
    is_tree = any("parent_id" in row for row in rows)
    for number, line in enumerate(lines):
        found = outcome.examples.get(line, [])
        for example in found:
            check_control(example, prepared)
        family = {number, number + 1} if is_tree and number % 2 == 0 else {number}
        if not family & touched:
            assert found == base.get(number, []), f"row {number} is another"
        for example in found:
            check_said(example, prepared, rows if is_tree else rows[number])
    assert set(outcome.examples) | set(outcome.bad) <= set(lines)
    if not is_tree:
        assert not set(outcome.examples) & set(outcome.bad)
        assert len(outcome.examples) + len(outcome.bad) + outcome.left_out == len(lines)
        assert set(outcome.bad) <= {lines[number] for number in touched}


def check_damaged(outcome: Outcome, base: dict[int, list[Example]], kind: str, before: bytes, after: bytes):
    """What the damage did not touch is as it was, and what it did is told; by each format's means of noticing."""
    prepared = outcome.prepared
    assert prepared is not None
    for example in (each for found in outcome.examples.values() for each in found):
        check_control(example, prepared)
    wanted = [each for number in sorted(base) for each in base[number]]
    found = [each for line in sorted(outcome.examples) for each in outcome.examples[line]]
    same = next((at for at, pair in enumerate(zip(before, after, strict=False)) if pair[0] != pair[1]), len(after))
    if _is_in_names(kind, before, same):
        assert len(found) + len(outcome.bad) <= len(base) + 1  # a field may have another name, and go unread
    elif kind in CHECKED:
        assert (found, outcome.bad) == (wanted, {})
    elif kind == "jsonl":
        _check_lines(outcome, base, before, after)
    elif kind in TEXT:
        # Rows before the damage are as they were; behind it a quote may swallow some.
        whole = before[:same].count(b"\n") - (2 if kind == "json" else 1)
        assert found[: max(whole, 0)] == wanted[: max(whole, 0)]
        assert sum(each not in wanted for each in found) <= 2
    elif kind in ("arrow", "hf_dataset"):
        assert len(found) + len(outcome.bad) + outcome.left_out == len(base)


def _is_in_names(kind: str, before: bytes, at: int) -> bool:
    """Whether damage is where a table's columns are named, which no checksum guards: its header, Parquet's footer."""
    if kind == "parquet":
        return at >= len(before) - 8 - int.from_bytes(before[-8:-4], "little")
    return kind in ("csv", "tsv") and b"\n" not in before[:at]


def _check_lines(outcome: Outcome, base: dict[int, list[Example]], before: bytes, after: bytes) -> None:
    originals = {line: base.get(number, []) for number, line in enumerate(before.split(b"\n"))}
    lines = after.rstrip(b" \t\r\n\x0b\x0c").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if line.strip() and line in originals:
            assert outcome.examples.get(number, []) == originals[line]
        else:
            assert (number in outcome.bad) != (number in outcome.examples)
    assert set(outcome.examples) | set(outcome.bad) <= set(range(1, len(lines) + 1))

"""The preview shows what the model gets, not what the recipe meant."""

import io

import numpy as np
import pytest
from programs import write_tiny_recipe
from rich.console import Console

from data.batch import Role
from data.pipeline import make_batch
from data.prepare import prepare
from launch.preview import STYLES, TRAINED, WEIGHTED, choose_rows, render_segment, render_strip, run_preview
from launch.preview_rows import Piece, PreviewRow, Segment, Span, take_apart
from launch.recipe import load_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preview")
    return load_recipe(str(write_tiny_recipe(folder, run_dir=folder / "run", steps=4, save_every=4)))


@pytest.fixture(scope="module")
def prepared(recipe, tmp_path_factory):
    return prepare(
        recipe.data,
        recipe.tokenizer,
        steps=4,
        batch_rows=8,
        seed=3,
        run_dir=tmp_path_factory.mktemp("prepared"),
        store=tmp_path_factory.mktemp("store"),
    )


def spans(line, style):
    return [line.plain[span.start : span.end] for span in line.spans if span.style == style]


def test_green_is_exactly_what_is_trained_and_every_token_is_shown(prepared):
    rows = list(range(6))
    batch, tokenizer = make_batch(prepared.dataset, prepared.plan, rows), prepared.tokenizer
    languages = prepared.dataset.facts.languages
    for row, apart in zip(rows, take_apart(batch, rows, tokenizer, prepared.dataset.facts), strict=True):
        lines = [render_segment(segment) for segment in apart.segments]
        assert len(lines) == batch.segments_BT[row].max() >= 1
        for segment, line in enumerate(lines, 1):
            at = np.flatnonzero(batch.segments_BT[row] == segment)
            trained = [t for t in at if batch.loss_weight_BT[row, t] > 0]
            answer = tokenizer.decode([int(batch.targets_BT[row, t]) for t in trained])
            assert spans(line, TRAINED) == [f"{answer}<end>"]
            ids = [int(batch.tokens_BT[row, at[0]]), *(int(batch.targets_BT[row, t]) for t in at)]
            question = tokenizer.decode(ids[: -len(trained)])
            language = languages[batch.language_BT[row, at[0]]]
            assert line.plain == f"[{language}] <bos><user>{question}<end><assistant>{answer}<end>"
            assert spans(line, STYLES[Role.USER]) == [f"{question}<end>"]


def test_rows_are_the_first_or_those_that_hold_a_language(prepared):
    assert choose_rows(prepared, rows=3, language=None) == [0, 1, 2]
    assert choose_rows(prepared, rows=10**6, language=None) == list(range(32))
    chosen = choose_rows(prepared, rows=5, language="sw")
    batch = make_batch(prepared.dataset, prepared.plan, range(32))
    assert choose_rows(prepared, rows=5, language="swh_Latn") == chosen, "any code of a language will do"
    holds = np.any(batch.language_BT == prepared.dataset.facts.languages.index("sw"), axis=1)
    assert chosen == np.flatnonzero(holds)[:5].tolist()


def test_a_language_that_is_not_there_is_an_error_that_lists_those_that_are(prepared):
    with pytest.raises(ValueError, match="language 'yo' is not in this mixture; it has ar, de, en, sw"):
        choose_rows(prepared, rows=5, language="yo")


def test_a_language_of_weight_zero_is_an_error(prepared):
    plan = prepared.plan
    wanted = prepared.dataset.facts.languages.index("sw")
    without = np.array([e for e in plan.row_examples if prepared.dataset.language[e] != wanted], np.int32)

    class Other:
        row_examples = without
        row_offsets = np.array([0, len(without)])

    with pytest.raises(ValueError, match="no planned row holds 'sw'"):
        choose_rows(prepared._replace(plan=Other), rows=5, language="sw")


def test_the_program_prints_rows_and_totals_and_touches_no_run_directory(recipe, prepared, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    console = Console(file=io.StringIO(), width=120)
    assert run_preview(recipe, rows=2, language="ar", console=console) == 0
    text = console.file.getvalue()
    assert text.startswith("trained  trained, weight not 1  pad  header  system  user  assistant  tool  text\n")
    assert sum("positions" in line for line in text.splitlines()) == 2
    assert "[ar] <bos><user>" in text
    assert "trained / all tokens by language" in text
    cells = prepared.plan.summary["cells"]
    arabic = [cell for cell in cells if cell["language"] == "ar"]
    (row,) = [line.split() for line in text.splitlines() if line.startswith(" ar ")]
    assert row[-3:-1] == [f"{sum(cell[key] for cell in arabic):,}" for key in ("target_tokens", "tokens")]
    assert list(tmp_path.iterdir()) == []


def test_no_rows_are_no_preview(prepared):
    with pytest.raises(ValueError, match="--rows 0 shows nothing; give at least 1"):
        choose_rows(prepared, rows=0, language=None)


def span(role, weight, text, count=1):
    return Span(role, weight, (Piece(text, tuple(range(count)), False),))


def row_of(*segments, length):
    return PreviewRow(0, length, tuple(segments))


def test_the_strip_is_to_scale_and_tells_trained_weighted_and_padding_apart():
    first = Segment(
        "en", "s", 0, 4, (span(Role.HEADER, 0, "h"), span(Role.USER, 0, "u", 2), span(Role.ASSISTANT, 1, "a", 2))
    )
    second = Segment("en", "s", 4, 2, (span(Role.HEADER, 0, "h"), span(Role.USER, 0.25, "u", 2)))
    row = row_of(first, second, length=8)
    assert render_strip(row, 8).plain == "▒▒██▓▓··"
    assert render_strip(row, 100).plain == "▒▒██▓▓··"
    assert render_strip(row, 4).plain == "▒█▓·"
    assert {span.style for span in render_strip(row, 8).spans} == {"cyan", "yellow", "dim"}


def test_text_in_the_terminal_is_shown_and_never_obeyed():
    hostile = "\x1b[2J\x07[bold]no[/] \u202eab\x00" + "x" * 100_000
    segment = Segment("en", "s", 0, 1, (span(Role.USER, 0, hostile), span(Role.ASSISTANT, 0.5, "w")))
    line = render_segment(segment)
    assert line.plain.startswith("[en] ␛[2J␇[bold]no[/] ⟨RLO⟩ab␀xxx") and len(line.plain) < 3000
    assert spans(line, WEIGHTED) == ["w"] and spans(line, STYLES[Role.USER])[0].startswith("␛")
    console = Console(file=io.StringIO(), width=80)
    console.print(line)
    assert not set(console.file.getvalue()) & {"\x1b", "\x07", "\x00", "\u202e"}

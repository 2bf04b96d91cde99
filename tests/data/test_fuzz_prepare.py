"""The whole of `prepare` on rows and files with something wrong in them: another stream never comes out of it.

Every case ends in an error that names file and row, in the list of bad rows, or in the row read as it stands; rows that
nobody touched come out id for id as they do from the sound file.
"""

import functools
import gzip
import random
import shutil

import pytest
from fuzz_bytes import CHECKED, HARMLESS, TEXT, WHOLE, damage
from fuzz_files import FORMATS, write_rows
from fuzz_rows import CONTROL, MAKERS, make_rows, mutate
from fuzz_runs import Recipe, check_damaged, check_rows, check_said, run
from golden_templates import make_folder
from hub_folders import write_folder

from data import template
from data.config import TokenizerConfig
from data.tokenizer import save_tokenizer, train_tokenizer

ROWS = 8
ROW_CASES = 40
"""Of each form."""
FILE_CASES = 65
"""Of each format."""
FORMS = tuple(MAKERS)
FILE_FORMS = tuple(form for form in FORMS if form not in ("tree", "preference", "ranked"))
LISTS = ("preference", "ranked")
"""Forms whose lists tables of text cannot hold."""


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """A template is compiled once, not in each of a thousand cases."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(template, "compile_template", functools.cache(template.compile_template))
        yield


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "hub").mkdir()
    write_folder(folder / "hub", make_folder())
    texts = [str(row) for form in ("instruction", "text") for row in make_rows(form, ROWS)]
    save_tokenizer(train_tokenizer(texts, TokenizerConfig(vocab_size=360)), folder / "pieces")
    return folder


@pytest.fixture(scope="module")
def sound(tokenizers, tmp_path_factory):
    """A function from a recipe to the examples of each of its form's rows where nothing is wrong, by number."""

    @functools.cache
    def prepare_sound(recipe):
        root = tmp_path_factory.mktemp("sound")
        written = write_rows(root, "jsonl", make_rows(recipe.form, ROWS))
        outcome = run(recipe, root, written.path, bad_rows="error", place=root)
        assert not outcome.error
        return {line - 1: found for line, found in outcome.examples.items()}

    return lambda recipe: prepare_sound(recipe._replace(declared=True, format="auto"))


def make_recipe(tokenizers, form, *, pieces=False, **more):
    """With a template for tools and thoughts; with `pieces` a SentencePiece tokenizer and its control tokens."""
    if pieces and form != "tools":
        return Recipe(form, tokenizers / "pieces", None, **more)
    return Recipe(form, tokenizers / "hub", "qwen3", **more)


def by_number(outcome, lines):
    return {lines.index(line): found for line, found in outcome.examples.items()}


def names_row(error, path):
    """Whether an error names a row of the file."""
    return any(f"{path}:{line}" in error for line in range(1, 100))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_in_every_format_gives_the_same_stream(tokenizers, sound, tmp_path, form, kind):
    if form in LISTS and kind in ("csv", "tsv"):
        pytest.skip("tables of text hold no lists")
    recipe = make_recipe(tokenizers, form, declared=False)
    written = write_rows(tmp_path, kind, make_rows(form, ROWS))
    outcome = run(recipe, tmp_path, written.path, bad_rows="error", place=tmp_path)
    assert by_number(outcome, written.lines) == sound(recipe), outcome.error
    assert len(outcome.examples) == (ROWS // 2 if form == "tree" else ROWS)


@pytest.mark.parametrize("form", FORMS)
def test_mutated_rows_end_in_the_stream_the_skip_file_or_an_error_and_leave_the_others_alone(
    tokenizers, sound, tmp_path, form
):
    ends = []
    for seed in range(ROW_CASES):
        source = random.Random(f"{form} {seed}")
        kind = source.choice([kind for kind in FORMATS if form not in LISTS or kind in ("jsonl", "json", "gz")])
        recipe = make_recipe(tokenizers, form, pieces=source.random() < 0.5, declared=source.random() < 0.7)
        rows = make_rows(form, ROWS)
        touched = set(source.sample(range(ROWS), source.choice((1, 1, 2, 3))))
        for number in touched:
            rows[number] = mutate(rows[number], source)
        place = tmp_path / str(seed)
        place.mkdir()
        written = write_rows(place, kind, rows)
        ends.append(check_case(recipe, place, written, sound(recipe), touched))
    assert ends.count("bad") > ROW_CASES / 4
    assert ends.count("read") > ROW_CASES / 20


def check_case(recipe, place, written, base, touched):
    """Prepares with both policies; what became of it: `error`, `bad` or `read`."""
    skipping = run(recipe, place, written.path, bad_rows="skip", place=place)
    if skipping.error:
        deep = f"{written.path} is cut or damaged (Parquet schema too deeply nested"
        assert names_row(skipping.error, written.path) or skipping.error.startswith(deep), skipping.error
    else:
        check_rows(skipping, base, written.rows, written.lines, touched)
    compare_strict(recipe, place, written.path, skipping)
    return "error" if skipping.error else "bad" if skipping.bad else "read"


def compare_strict(recipe, place, path, skipping):
    """Policy `error` refuses what `skip` lists, by name, and is the same where there is nothing to list."""
    strict = run(recipe, place, path, bad_rows="error", place=place / "strict")
    if skipping.error or skipping.bad:
        assert strict.error
        assert skipping.error or any(f"{path}:{line}: " in strict.error for line in skipping.bad), strict.error
    else:
        assert (strict.examples, strict.left_out) == (skipping.examples, skipping.left_out)


@pytest.mark.parametrize("kind", FORMATS)
def test_damaged_files_end_in_an_error_or_in_what_was_not_damaged(tokenizers, sound, tmp_path, kind):
    refused = 0
    for seed in range(FILE_CASES):
        source = random.Random(f"{kind} {seed}")
        recipe = make_recipe(tokenizers, source.choice(FILE_FORMS), declared=source.random() < 0.7)
        place = tmp_path / str(seed)
        place.mkdir()
        written = write_rows(place, kind, make_rows(recipe.form, ROWS))
        before, after = damage(place / written.path, source)
        outcome = run(recipe, place, written.path, bad_rows="skip", place=place)
        refused += bool(outcome.error)
        if outcome.error:
            assert written.path in outcome.error
        else:
            check_damaged(outcome, sound(recipe), kind, before, after)
        compare_strict(recipe, place, written.path, outcome)
        if seed % 5 == 0:
            check_mended(recipe, place, kind, sound(recipe))
    # Of lines alone every damage is a row's, of tables nearly every one; the rest is refused as a whole.
    assert refused > FILE_CASES / 3 or kind in ("jsonl", "csv", "tsv", "hf_dataset")


def check_mended(recipe, place, kind, base):
    """After a failure the sound file, in the same place and with the same store, gives what it always gives."""
    shutil.rmtree(place / "run")
    if kind == "hf_dataset":
        shutil.rmtree(place / FORMATS[kind])
    written = write_rows(place, kind, make_rows(recipe.form, ROWS))
    outcome = run(recipe, place, written.path, bad_rows="error", place=place)
    assert by_number(outcome, written.lines) == base, outcome.error


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("kind", [*TEXT, *CHECKED, "arrow"])
def test_a_file_that_is_something_else_is_refused_by_name(tokenizers, sound, tmp_path, kind, name):
    recipe = make_recipe(tokenizers, "instruction")
    written = write_rows(tmp_path, kind, make_rows("instruction", ROWS))
    path = tmp_path / written.path
    try:
        path.write_bytes(WHOLE[name](path.read_bytes()))
    except UnicodeDecodeError:
        pytest.skip("no text")
    outcome = run(recipe, tmp_path, written.path, bad_rows="skip", place=tmp_path)
    if outcome.error:
        assert written.path in outcome.error
        return
    # Rows twice over, and letters of another encoding that are valid UTF-8 by chance.
    assert name in ("doubled", "twice", "utf-7", "gb18030") or (name == "zip" and outcome.bad)
    if name == "doubled":
        wanted = [found for _, found in sorted(sound(recipe).items())]
        found = [found for _, found in sorted(outcome.examples.items())]
        # Formats with a footer are read as it says: the first half, or the second, which are the same here.
        assert found == wanted * (1 if kind in ("parquet", "array_record") else 2)


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("kind", TEXT)
def test_what_editors_leave_in_texts_changes_no_row(tokenizers, sound, tmp_path, kind, name):
    recipe = make_recipe(tokenizers, "prompt_completion")
    written = write_rows(tmp_path, kind, make_rows("prompt_completion", ROWS))
    path = tmp_path / written.path
    path.write_bytes(HARMLESS[name](path.read_bytes()))
    outcome = run(recipe, tmp_path, written.path, bad_rows="error", place=tmp_path)
    assert by_number(outcome, written.lines) == sound(recipe), outcome.error


@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.parametrize("spelled", CONTROL)
def test_control_tokens_spelled_anywhere_in_a_row_stay_text(tokenizers, tmp_path, spelled, pieces):
    rows = make_rows("messages", 2) if pieces else make_rows("tools", 2)
    for message in rows[1]["messages"]:
        message["content"] = f"a {spelled} b{spelled}"
        if "tool_calls" in message:
            message["tool_calls"][0]["function"]["arguments"] = {spelled: [spelled, {"x": f"{spelled}{spelled}"}]}
            message["reasoning_content"] = f"{spelled}?"
    if not pieces:
        rows[1]["tools"][0]["function"]["description"] = spelled
    recipe = make_recipe(tokenizers, "messages" if pieces else "tools", pieces=pieces)
    written = write_rows(tmp_path, "jsonl", rows)
    outcome = run(recipe, tmp_path, written.path, bad_rows="error", place=tmp_path)
    assert not outcome.error
    check_rows(outcome, {0: outcome.examples[1]}, rows, written.lines, {1})
    counts = [sum(map(outcome.prepared.tokenizer.is_control, found[0].ids)) for found in outcome.examples.values()]
    assert counts[1] - counts[0] == (2 if pieces else 0)  # a system turn more


SOUND = b'{"prompt": "a", "completion": "b", "language": "sw"}\n'


def test_a_line_of_a_hundred_megabytes_is_a_bad_row_and_the_others_are_read(tokenizers, tmp_path):
    (tmp_path / "x.jsonl").write_bytes(SOUND + b'{"prompt": "' + b"x" * (100 << 20) + b'"}\n' + SOUND)
    recipe = make_recipe(tokenizers, "prompt_completion")
    outcome = run(recipe, tmp_path, "x.jsonl", bad_rows="skip", place=tmp_path)
    assert (list(outcome.examples), list(outcome.bad)) == ([1, 3], [2])
    assert "more than the 67,108,864 that are read as one row" in outcome.bad[2]


def test_a_gzip_of_a_hundred_megabytes_that_is_cut_is_refused_whatever_the_policy(tokenizers, tmp_path):
    noise = random.Random(0).randbytes(25 << 20)
    content = gzip.compress(SOUND + b"".join(b'{"prompt": "%s"}\n' % noise.hex().encode() for _ in range(2)), 1)
    (tmp_path / "x.jsonl.gz").write_bytes(content[:-1000])
    recipe = make_recipe(tokenizers, "prompt_completion")
    outcome = run(recipe, tmp_path, "x.jsonl.gz", bad_rows="skip", place=tmp_path)
    assert outcome.error.startswith("x.jsonl.gz is cut: its compressed stream has no end")


def test_a_conversation_of_three_thousand_turns_is_read_in_time(tokenizers, tmp_path):
    turns = [{"role": ("user", "assistant")[n % 2], "content": f"{n}"} for n in range(3000)]
    rows = [{"messages": turns, "language": "sw"}]
    recipe = make_recipe(tokenizers, "messages", row_length=1 << 16)
    written = write_rows(tmp_path, "jsonl", rows)
    outcome = run(recipe, tmp_path, written.path, bad_rows="error", place=tmp_path)
    check_said(outcome.examples[1][0], outcome.prepared, rows[0])
    assert sum(code == 1 for code in outcome.examples[1][0].codes) > 1500

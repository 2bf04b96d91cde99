"""`polytune data stats`: what is printed and written is what was counted."""

import io
import json
import re

import babel
import msgspec
import pytest
from programs import write_tiny_recipe
from rich.cells import cell_len
from rich.console import Console

from data.config import DataConfig, TokenizerConfig
from data.counting import make_meter, measure
from data.languages import standardize
from data.schema import Conversation, DataError, Turn
from data.source_config import FileSource
from data.statistics import CorpusStatistics, read_statistics, write_statistics
from data.tokenizer import save_tokenizer, train_tokenizer
from launch.cli import main
from launch.data_stats import run_data_stats
from launch.recipe import load_recipe
from launch.statistics_table import MOST_LANGUAGES, print_statistics


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stats")
    return load_recipe(str(write_tiny_recipe(folder, run_dir=folder / "run", steps=4, save_every=4)))


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["one two three", "habari ya asubuhi"] * 40, TokenizerConfig(vocab_size=300))


@pytest.fixture(scope="module")
def many(tokenizer):
    """One row in each of 200 languages, that cost more and more."""
    tags = []
    for code in sorted(map(str, babel.Locale("en").languages)):
        try:
            tag = standardize(code)
        except DataError:
            continue
        if tag not in tags:
            tags.append(tag)
    rows = [
        Conversation(
            turns=(Turn("user", "one " * (250 - index) + "ж" * index), Turn("assistant", "two")),
            language=tag, source="s\x1b[2J", id=f"file_{index}.jsonl:{index}",
        )
        for index, tag in enumerate(tags[:200])
    ]  # fmt: skip
    return measure(rows, [make_meter("small", tokenizer)])


def show(statistics, *, width, file=None):
    console = Console(file=io.StringIO(), width=width)
    print_statistics(statistics, console, file=file)
    return console.file.getvalue()


def with_tokenizers(statistics, count):
    """The same counts, as if that many tokenizers had counted."""
    cells = tuple(
        msgspec.structs.replace(cell, tokens=cell.tokens * count, longest=cell.longest * count)
        for cell in statistics.cells
    )
    return CorpusStatistics(tokenizers=statistics.tokenizers * count, cells=cells)


def tags_of_the_worst(statistics):
    worst = sorted(statistics.by_language(), key=lambda cell: -cell.per_byte(0))
    return [cell.language for cell in worst[:MOST_LANGUAGES]]


@pytest.mark.parametrize("width", [80, 100, 120])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_two_hundred_languages_fit_the_terminal(many, width, count):
    text = show(with_tokenizers(many, count), width=width)
    assert max(cell_len(line) for line in text.splitlines()) <= width
    assert f"... and {200 - MOST_LANGUAGES} more languages, --json FILE writes all of them" in text
    heads = {
        "tag",
        "language",
        "rows",
        "bytes",
        "tokens",
        "/byte",
        "/char",
        "/word",
        "bytes%",
        "unk%",
        "answer",
        "fallback",
    }
    (head,) = [line.split() for line in text.splitlines() if line.split()[:2] == ["tag", "language"]]
    assert set(head) <= heads and head.count("/byte") == count, "no column is cut off"
    assert not re.search(r"[\d.%]…", text), "no number is cut off"
    lines = [line for line in text.splitlines() if line.split() and line.split()[0] in tags_of_the_worst(many)]
    assert len(lines) >= MOST_LANGUAGES and all(line.rstrip().endswith("%") for line in lines[:MOST_LANGUAGES])
    assert "\x1b" not in text and "s␛[2J" in text
    assert len(text.splitlines()) < 75


def test_the_worst_come_first_and_the_rest_are_in_the_file(many):
    text = show(many, width=100, file="all.json")
    shown = [line.split()[0] for line in text.splitlines() if line.startswith(" ") and "0." in line and "%" in line]
    assert shown[1 : MOST_LANGUAGES + 1] == tags_of_the_worst(many)
    assert "more languages, all in all.json" in text


def test_a_tokenizer_that_loses_a_script_does_not_look_cheap(many):
    losing = [
        msgspec.structs.replace(
            cell, tokens=(msgspec.structs.replace(cell.tokens[0], prompt=1, answer=1, unknown=1, spelled_in_bytes=0),)
        )
        if cell.language == "ar"
        else cell
        for cell in many.cells
    ]
    text = show(msgspec.structs.replace(many, cells=tuple(losing)), width=100)
    assert "ar 50.0% unknown" in text
    lines = [line for line in text.splitlines() if line.startswith(" ar ")]
    assert len(lines) == 1, "it is among the few shown, although it has the fewest tokens per byte"


def test_the_program_writes_json_that_adds_up_to_what_it_prints(recipe, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tokenizer(tokenizer, tmp_path / "tok")
    console = Console(file=io.StringIO(), width=120)
    assert run_data_stats(recipe, tokenizers=["tok"], json_file="out/s.json", console=console) == 0
    statistics = read_statistics(tmp_path / "out/s.json")
    whole = statistics.total()
    assert {cell.language for cell in statistics.by_language()} == {"ar", "de", "en", "sw"}
    assert statistics.tokenizers[0].name == "tok" and statistics.tokenizers[0].hash == tokenizer.hash
    text = console.file.getvalue()
    assert text.startswith(f"{whole.rows:,} rows, {2 * whole.rows:,} turns, 4 languages")
    assert "wrote out/s.json" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "tok"], "no run directory is touched"


def test_the_default_is_the_recipe_s_own_tokenizer(recipe):
    console = Console(file=io.StringIO(), width=120)
    assert run_data_stats(recipe, console=console) == 0
    assert "trained on these sources, 500 pieces, vocabulary 500" in console.file.getvalue()


def test_workers_change_nothing(recipe, tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "tok")
    for workers in (0, 2):
        run_data_stats(
            recipe, tokenizers=[str(tmp_path / "tok")], json_file=str(tmp_path / f"{workers}.json"), workers=workers,
            console=Console(quiet=True),
        )  # fmt: skip
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "2.json").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit-rows", "0"], "--limit-rows 0; give at least 1"),
        (["--workers", "-1"], "--workers -1; give 0 to count in this process"),
        (["--tokenizer", "nowhere.model"], "cannot read tokenizer file nowhere.model"),
    ],
)
def test_options_that_make_no_sense_are_errors(options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POLYTUNE_TRACEBACK", raising=False)
    assert main(["data", "stats", "demo", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_json_is_json(many, tmp_path):
    write_statistics(many, tmp_path / "s.json")
    table = json.loads((tmp_path / "s.json").read_bytes())
    assert len(table["languages"]) == len(table["cells"]) == 200


def test_a_limit_takes_rows_evenly_from_each_source(recipe, tmp_path):
    """Never just the first rows, which a peer's `fraction` is."""
    for name, count in (("a", 10), ("b", 3)):
        rows = [{"prompt": f"{name} {n}?", "completion": "x" * (n + 1), "language": "en"} for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    sources = tuple(FileSource(name=name, path=f"{name}.jsonl") for name in "ab")
    data = DataConfig(sources=sources, root=str(tmp_path))
    limited = msgspec.structs.replace(
        recipe, data=data, run=msgspec.structs.replace(recipe.run, dir=str(tmp_path / "run"))
    )
    run_data_stats(limited, limit_rows=4, json_file=str(tmp_path / "s.json"), console=Console(file=io.StringIO()))
    (cell, other) = read_statistics(tmp_path / "s.json").cells
    assert (cell.rows, other.rows) == (4, 3)
    # Of 0 to 9, rows 2, 4, 7 and 9: three, five, eight and ten characters of answer, four of each question.
    assert cell.characters == 3 + 5 + 8 + 10 + 4 * 4
    assert not (tmp_path / "run").exists()


def test_statistics_of_a_run_are_kept_where_its_report_finds_them(recipe, tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "plan").mkdir(parents=True)
    mine = msgspec.structs.replace(recipe, run=msgspec.structs.replace(recipe.run, dir=str(run_dir)))
    run_data_stats(mine, console=Console(file=io.StringIO()))
    assert read_statistics(run_dir / "plan" / "statistics.json").total().rows > 0

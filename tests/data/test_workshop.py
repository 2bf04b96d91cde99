"""Tokenising in many processes, killed and started again, gives what one process gives at one go."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data import works
from data.config import DataConfig, PackingConfig, TokenizerConfig
from data.dataset import ARRAYS
from data.prepare import Watch, prepare
from data.schema import DataError
from data.source_config import FileSource
from data.tokenizer import save_tokenizer, train_tokenizer
from data.workshop import count_workers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three files of 700 rows each in two languages, and a tokenizer."""
    folder = tmp_path_factory.mktemp("workshop")
    for part in range(3):
        with (folder / f"part{part}.jsonl").open("w", encoding="utf-8") as file:
            for n in range(700):
                turns = [{"role": "user", "content": f"what is {n} and {part}?"}]
                turns.append({"role": "assistant", "content": f"it is {n + part} " * (1 + n % 5)})
                file.write(json.dumps({"messages": turns, "language": ("en", "sw")[n % 2]}) + "\n")
    tokenizer = train_tokenizer(["what is it and 0123456789?"], TokenizerConfig(vocab_size=300))
    save_tokenizer(tokenizer, folder / "tokenizer")
    return folder


@pytest.fixture(autouse=True)
def small_works(monkeypatch):
    """Many pieces of work out of little: a chunk, 700 rows, is one."""
    monkeypatch.setattr(works, "WORK_ROWS", 500)


def run(folder, run_dir, store, *, watch=None, path="part*.jsonl", **fields):
    config = DataConfig(
        sources=(FileSource(name="sums", path=path),),
        root=str(folder),
        packing=PackingConfig(row_length=96, block_examples=64),
        **fields,
    )
    return prepare(
        config,
        TokenizerConfig(path=str(folder / "tokenizer")),
        steps=20,
        batch_rows=2,
        seed=0,
        run_dir=run_dir,
        store=store,
        watch=watch or Watch(),
    )


def assert_same(one, other):
    assert one.plan.hash == other.plan.hash
    assert one.dataset.facts == other.dataset.facts
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(one.dataset, name), getattr(other.dataset, name))
    everything = np.arange(len(one.dataset))
    for mine, theirs in zip(one.dataset.read(everything), other.dataset.read(everything), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def files_in(store):
    return {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}


def test_worker_processes_give_what_one_process_gives(folder, tmp_path):
    alone = run(folder, tmp_path / "alone", tmp_path / "one", prepare_workers=0)
    together = run(folder, tmp_path / "together", tmp_path / "two", prepare_workers=2)
    assert len(alone.dataset) == 2100
    assert alone.dataset.facts.shards is not None and len(alone.dataset.facts.shards.keys) == 3
    assert_same(alone, together)
    assert files_in(tmp_path / "one").keys() == files_in(tmp_path / "two").keys()


def test_another_run_of_the_same_rows_finds_them_tokenised(folder, tmp_path):
    run(folder, tmp_path / "first", tmp_path / "store", prepare_workers=0)
    before = files_in(tmp_path / "store")
    seen = []
    run(folder, tmp_path / "second", tmp_path / "store", watch=Watch(progress=seen.append), prepare_workers=0)
    assert (seen[-1].reused, seen[-1].shards, seen[-1].rows) == (3, 3, 2100)
    assert files_in(tmp_path / "store") == before


def test_one_changed_file_is_tokenised_again_and_no_other(folder, tmp_path):
    mine = tmp_path / "data"
    mine.mkdir()
    for path in folder.glob("*.jsonl"):
        (mine / path.name).write_bytes(path.read_bytes())
    (mine / "tokenizer").symlink_to(folder / "tokenizer")
    run(mine, tmp_path / "first", tmp_path / "store", prepare_workers=0)
    text = (mine / "part1.jsonl").read_text(encoding="utf-8")
    (mine / "part1.jsonl").write_text(text.replace("what is 7 and", "what was 7 and"), encoding="utf-8")
    seen = []
    run(mine, tmp_path / "second", tmp_path / "store", watch=Watch(progress=seen.append), prepare_workers=0)
    assert (seen[-1].reused, seen[-1].shards) == (2, 3)


def test_a_store_that_is_gone_is_made_again_for_the_same_run(folder, tmp_path):
    first = run(folder, tmp_path / "run", tmp_path / "store", prepare_workers=0)
    whole = first.dataset.read(np.arange(len(first.dataset)))
    for path in (tmp_path / "store").rglob("*.npz"):
        path.unlink()
    again = run(folder, tmp_path / "run", tmp_path / "other_place", prepare_workers=0)
    assert again.plan.hash == first.plan.hash
    np.testing.assert_array_equal(again.dataset.read(np.arange(len(again.dataset))).ids, whole.ids)


PROGRAM = """
import sys, time
from pathlib import Path
from data import encoding, works
works.WORK_ROWS = 500
write = encoding.write_shard
def slowly(*arguments):
    write(*arguments)
    print("shard", flush=True)
    time.sleep(float(sys.argv[4]))
encoding.write_shard = slowly
from test_workshop import run
run(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), prepare_workers=0)
"""


def test_a_sigkill_while_tokenising_loses_only_what_was_in_hand(folder, tmp_path):
    """Peers tokenise everything again; here the finished shards are found, and the result is that of one go."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), str(folder), str(tmp_path / "run"), str(tmp_path / "store"), "60"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert process.stdout is not None and process.stdout.readline() == "shard\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "run" / "plan").exists()
    seen = []
    resumed = run(folder, tmp_path / "run", tmp_path / "store", watch=Watch(progress=seen.append), prepare_workers=0)
    assert (seen[-1].reused, seen[-1].shards) == (1, 3)
    assert_same(resumed, run(folder, tmp_path / "whole", tmp_path / "fresh", prepare_workers=0))


@pytest.mark.parametrize("workers", [0, 2])
def test_the_first_bad_row_in_the_order_of_the_files_stops_the_run_whoever_found_it(folder, tmp_path, workers):
    """A peer's hook logs a bad record and the job ends as a success."""
    mine = tmp_path / "data"
    mine.mkdir()
    (mine / "tokenizer").symlink_to(folder / "tokenizer")
    for part in (0, 1, 2):
        lines = (folder / f"part{part}.jsonl").read_text(encoding="utf-8").splitlines()
        if part:
            lines[5] = '{"messages": 3, "language": "sw"}'
        (mine / f"part{part}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match=r"part1\.jsonl:6: .*set data.bad_rows to skip"):
        run(mine, tmp_path / "run", tmp_path / "store", prepare_workers=workers)
    skipped = run(mine, tmp_path / "run", tmp_path / "store", prepare_workers=workers, bad_rows="skip")
    assert len(skipped.dataset) == 2098
    assert skipped.plan.summary["bad_rows"] == {"sw": 2}


@pytest.mark.parametrize(
    "asked, size, cores, wanted",
    [
        (None, 0, 8, 0), (None, 5 << 20, 8, 0), (None, 9 << 20, 8, 2), (None, 1 << 40, 8, 8), (0, 1 << 40, 8, 0),
        (3, 1, 8, 3),
    ],
)  # fmt: skip
def test_processes_are_started_where_they_pay(monkeypatch, asked, size, cores, wanted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    assert count_workers(asked, size) == wanted

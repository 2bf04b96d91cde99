"""A plan is the same wherever it is made, grows without moving a row, and says what its rows really hold."""

import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.cells import tabulate
from data.config import DataConfig, PackingConfig
from data.dataset import Dropped
from data.mixture_config import MixtureConfig
from data.plan import build_plan, read_plan, write_plan
from data.schema import DataError
from data.source_config import FileSource, LanguageRule
from tests.data.fake_examples import make_examples


def make_dataset(groups, *, dropped=()):
    """Examples of `count` x (source, language, positions, target tokens)."""
    rows = [group[1:] for group in groups for _ in range(group[0])]
    sources, languages, lengths, targets = zip(*rows, strict=True)
    return make_examples(lengths, languages, sources, target_tokens=targets, dropped=dropped)


def make_config(*names, weights=None, packing=None, **mixture):
    sources = tuple(
        FileSource(
            name=name,
            path="x",
            messages=(),
            language=LanguageRule(constant="en"),
            weight=(weights or {}).get(name, 1.0),
        )
        for name in names or ("s",)
    )
    packing = {"row_length": 32, "block_examples": 64, **(packing or {})}
    return DataConfig(sources=sources, mixture=MixtureConfig(**mixture), packing=PackingConfig(**packing))


def rows_of(plan):
    return [plan.row_examples[a:b].tolist() for a, b in zip(plan.row_offsets, plan.row_offsets[1:], strict=False)]


def cell_of(plan, language, source="s"):
    (cell,) = [c for c in plan.summary["cells"] if (c["source"], c["language"]) == (source, language)]
    return cell


MIXED = make_dataset([(40, "s", "en", 9, 4), (30, "s", "sw", 5, 2), (6, "s", "am", 30, 20)])


def test_rows_hold_whole_examples_within_their_length():
    plan = build_plan(MIXED, make_config(), steps=10, batch_rows=4, seed=0)
    assert plan.rows == 40
    assert all(0 < MIXED.lengths[row].sum() <= 32 for row in rows_of(plan))


def test_unpacked_rows_hold_one_example():
    plan = build_plan(MIXED, make_config(packing={"packed": False}), steps=10, batch_rows=4, seed=0)
    assert [len(row) for row in rows_of(plan)] == [1] * 40


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 40), more=st.integers(0, 60), batch_rows=st.integers(1, 8), seed=st.integers(0, 5))
def test_a_longer_run_begins_with_the_same_rows(steps, more, batch_rows, seed):
    """Why `steps` and `batch_rows` stay out of the hash: a longer run must not move rows already served."""
    dataset, config = make_dataset([(50, "s", "en", 9, 4)]), make_config(packing={"block_examples": 16})
    short = build_plan(dataset, config, steps=steps, batch_rows=batch_rows, seed=seed)
    long = build_plan(dataset, config, steps=steps + more, batch_rows=batch_rows, seed=seed)
    assert rows_of(long)[: short.rows] == rows_of(short)
    assert long.hash == short.hash
    other_batch = build_plan(dataset, config, steps=1, batch_rows=short.rows, seed=seed)
    assert (rows_of(other_batch), other_batch.hash) == (rows_of(short), short.hash)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 2.0},
        {"unit": "tokens"},
        {"language_weights": {"en": 2.0}},
        {"packing": {"block_examples": 32}},
        {"packing": {"row_length": 64}},
        {"packing": {"packed": False}},
        {"weights": {"s": 2.0}},
    ],
)
def test_the_hash_covers_what_decides_the_stream(change):
    base = build_plan(MIXED, make_config(), steps=20, batch_rows=4, seed=0)
    other = build_plan(MIXED, make_config(**change), steps=20, batch_rows=4, seed=0)
    assert other.hash != base.hash


def test_the_hash_covers_seed_and_content_but_not_loader_settings():
    config = make_config()
    base = build_plan(MIXED, config, steps=20, batch_rows=4, seed=0)
    assert build_plan(MIXED, config, steps=20, batch_rows=4, seed=1).hash != base.hash
    changed = dataclasses.replace(MIXED, facts=msgspec.structs.replace(MIXED.facts, hash="other"))
    assert build_plan(changed, config, steps=20, batch_rows=4, seed=0).hash != base.hash
    loader = msgspec.structs.replace(config, workers=3, prefetch=9, bad_rows="skip", root="/elsewhere")
    assert build_plan(MIXED, loader, steps=20, batch_rows=4, seed=0).hash == base.hash


def test_rows_are_the_same_in_another_process():
    """Hash randomisation or set order in the planner would make hosts disagree on what a row holds."""
    script = (
        "from tests.data.test_plan import *\n"
        "plan = build_plan(MIXED, make_config(temperature=3.0), steps=10, batch_rows=4, seed=3)\n"
        "print(plan.hash, plan.row_examples.tolist())"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    ran = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    plan = build_plan(MIXED, make_config(temperature=3.0), steps=10, batch_rows=4, seed=3)
    assert ran.stdout.strip() == f"{plan.hash} {plan.row_examples.tolist()}"


def test_the_table_counts_the_rows_and_not_the_wish():
    plan = build_plan(MIXED, make_config(), steps=10, batch_rows=4, seed=0)
    visits = np.bincount(plan.row_examples, minlength=len(MIXED))
    am = cell_of(plan, "am")
    assert am["planned_examples"] == visits[70:].sum()
    assert am["planned_tokens"] == 30 * am["planned_examples"]
    assert am["planned_target_tokens"] == 20 * am["planned_examples"]
    assert am["epochs"] == am["planned_examples"] / 6
    assert (am["examples"], am["tokens"], am["target_tokens"], am["content_bytes"]) == (6, 180, 120, 42)
    assert (am["script"], cell_of(plan, "sw")["script"]) == ("Ethi", "Latn")
    shares = [cell["realised_share"] for cell in plan.summary["cells"]]
    assert sum(shares) == pytest.approx(1)
    assert am["realised_share"] == am["planned_examples"] / len(plan.row_examples)
    used = MIXED.lengths[plan.row_examples].sum()
    assert plan.summary["padding"] == pytest.approx(1 - used / (40 * 32))


@pytest.mark.parametrize("unit", ["examples", "tokens", "target_tokens"])
def test_whole_blocks_realise_the_wanted_shares_in_the_unit_asked_for(unit):
    config = make_config(unit=unit, temperature=2.0, packing={"packed": False})
    plan = build_plan(MIXED, config, steps=100, batch_rows=64, seed=0)
    for cell in plan.summary["cells"]:
        # 6,400 draws, each cell within one of its exact count; an `am` example is the largest, 30 tokens.
        assert cell["realised_share"] == pytest.approx(cell["wanted_share"], abs=3e-3)
    wanted = {cell["language"]: cell["wanted_share"] for cell in plan.summary["cells"]}
    amounts = {"examples": [6, 40, 30], "tokens": [180, 360, 150], "target_tokens": [120, 160, 60]}[unit]
    roots = np.sqrt(amounts) / np.sqrt(amounts).sum()
    assert [wanted["am"], wanted["en"], wanted["sw"]] == pytest.approx(roots.tolist())


def test_source_weights_reach_the_rows():
    dataset = make_dataset([(40, "a", "en", 9, 4), (40, "b", "en", 9, 4)])
    config = make_config("a", "b", weights={"b": 3.0}, packing={"packed": False})
    plan = build_plan(dataset, config, steps=64, batch_rows=1, seed=0)
    assert [cell["planned_examples"] for cell in plan.summary["cells"]] == [16, 48]


def test_a_language_weighted_zero_is_in_the_table_with_nothing():
    plan = build_plan(MIXED, make_config(language_weights={"am": 0.0}), steps=10, batch_rows=4, seed=0)
    am = cell_of(plan, "am")
    assert (am["wanted_share"], am["planned_examples"], am["epochs"]) == (0, 0, 0)


def test_a_language_that_would_get_nothing_is_an_error_that_says_what_helps():
    dataset = make_dataset([(5000, "s", "en", 9, 4), (1, "s", "yo", 9, 4)])
    config = make_config(packing={"block_examples": 16})
    with pytest.raises(DataError, match=r"1 of 2 languages would get no example in 3 steps: yo\. .*temperature"):
        build_plan(dataset, config, steps=3, batch_rows=2, seed=0)
    warm = make_config(packing={"block_examples": 16}, temperature=100)
    assert cell_of(build_plan(dataset, warm, steps=3, batch_rows=2, seed=0), "yo")["planned_examples"] >= 1


def test_the_steps_an_error_suggests_are_enough():
    dataset = make_dataset([(500, "s", "en", 9, 4), (1, "s", "yo", 9, 4)])
    config = make_config(packing={"block_examples": 16})
    with pytest.raises(DataError) as raised:
        build_plan(dataset, config, steps=3, batch_rows=2, seed=0)
    steps = int(str(raised.value).split("(about ")[1].split()[0])
    assert cell_of(build_plan(dataset, config, steps=steps, batch_rows=2, seed=0), "yo")["planned_examples"]


def test_a_source_that_lost_every_row_is_an_error():
    dropped = (Dropped(source="long", language="en", count=12, shortest=610),)
    dataset = make_dataset([(5, "s", "en", 9, 4)], dropped=dropped)
    with pytest.raises(DataError, match="all 12 rows of source 'long' were dropped: the shortest fills 610"):
        build_plan(dataset, make_config("s", "long"), steps=1, batch_rows=1, seed=0)
    with pytest.raises(DataError, match="source 'none' gave no example"):
        build_plan(dataset, make_config("s", "none"), steps=1, batch_rows=1, seed=0)


def test_a_language_that_lost_every_row_is_an_error():
    dropped = (Dropped(source="s", language="my", count=3, shortest=40),)
    dataset = make_dataset([(5, "s", "en", 9, 4)], dropped=dropped)
    with pytest.raises(DataError, match=r"every example of my is longer .*=32 .*set it to 40"):
        build_plan(dataset, make_config(), steps=1, batch_rows=1, seed=0)


def test_dropped_rows_are_counted_by_language():
    dropped = (
        Dropped(source="a", language="en", count=3, shortest=40),
        Dropped(source="b", language="en", count=2, shortest=50),
    )
    dataset = make_dataset([(5, "a", "en", 9, 4), (5, "b", "en", 9, 4)], dropped=dropped)
    plan = build_plan(dataset, make_config("a", "b"), steps=4, batch_rows=1, seed=0)
    assert plan.summary["dropped"] == {"en": 5}


def test_a_dataset_that_trains_nothing_is_refused():
    with pytest.raises(DataError, match="token to train on"):
        build_plan(make_dataset([(5, "s", "en", 9, 0)]), make_config(), steps=1, batch_rows=1, seed=0)


def test_sources_of_another_recipe_are_refused():
    with pytest.raises(DataError, match=r"the dataset has sources \['s'\]"):
        build_plan(MIXED, make_config("other"), steps=1, batch_rows=1, seed=0)


def test_cells_are_every_source_and_language_once():
    dataset = make_dataset([(2, "b", "sw", 5, 1), (3, "a", "sw", 4, 2), (1, "b", "en", 7, 3)])
    cells, cell_N = tabulate(dataset)
    assert [tuple(cell) for cell in cells] == [
        ("a", "sw", 3, 12, 6, 21, 15),
        ("b", "en", 1, 7, 3, 7, 5),
        ("b", "sw", 2, 10, 2, 14, 10),
    ]
    assert cell_N.tolist() == [2, 2, 0, 0, 0, 1]


def test_a_written_plan_reads_back(tmp_path):
    plan = build_plan(MIXED, make_config(), steps=10, batch_rows=4, seed=0)
    write_plan(plan, tmp_path)
    again = read_plan(tmp_path)
    assert (again.hash, again.rows, again.summary) == (plan.hash, 40, plan.summary)
    assert rows_of(again) == rows_of(plan)
    assert len(pickle.dumps(again)) < 1000
    assert rows_of(pickle.loads(pickle.dumps(again))) == rows_of(pickle.loads(pickle.dumps(plan)))


@pytest.mark.parametrize("name", ["plan.json", "row_offsets.npy", "row_examples.npy"])
@pytest.mark.parametrize("keep", [None, 0, 100])
def test_a_half_written_plan_is_never_taken_as_complete(tmp_path, name, keep):
    write_plan(build_plan(MIXED, make_config(), steps=10, batch_rows=4, seed=0), tmp_path)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink() if keep is None else (tmp_path / name).write_bytes(content[:keep])
    with pytest.raises(DataError, match="delete it and prepare again"):
        read_plan(tmp_path)

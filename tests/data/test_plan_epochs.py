"""A run in epochs: every token of every kept example exactly once an epoch, in rows that nothing crosses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture_config import PinchConfig, SharesConfig, StageConfig
from data.plan import Plan, build_plan, trained_per_row
from data.schema import DataError
from tests.data.fake_examples import make_config, make_examples

SMALL = make_examples([9] * 40 + [5] * 30 + [30] * 6, ["en"] * 40 + ["sw"] * 30 + ["am"] * 6, ["s"] * 76)


@st.composite
def datasets(draw, row_length):
    size = draw(st.integers(1, 120))
    pick = st.lists(st.integers(1, row_length), min_size=size, max_size=size)
    names = st.lists(st.sampled_from(["en", "sw", "am", "yo"]), min_size=size, max_size=size)
    sources = st.lists(st.sampled_from("abc"), min_size=size, max_size=size)
    return make_examples(draw(pick), draw(names), draw(sources))


@settings(max_examples=80)
@given(
    data=st.data(), row_length=st.integers(8, 60), batch_rows=st.integers(1, 9), epochs=st.integers(1, 3),
    block_examples=st.sampled_from([16, 33, 200]), packed=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_example_comes_exactly_once_an_epoch(data, row_length, batch_rows, epochs, block_examples, packed, seed):
    dataset = data.draw(datasets(row_length))
    config = make_config(dataset, row_length=row_length, block_examples=block_examples, packed=packed)
    plan = build_plan(dataset, config, steps=None, epochs=epochs, batch_rows=batch_rows, seed=seed)
    assert np.bincount(plan.row_examples, minlength=len(dataset)).tolist() == [epochs] * len(dataset)
    assert plan.rows % batch_rows == 0
    assert plan.summary["steps"] == plan.rows // batch_rows
    filled = np.diff(np.concatenate(([0], np.cumsum(dataset.lengths[plan.row_examples])))[plan.row_offsets])
    assert filled.max() <= row_length
    assert filled.sum() == epochs * dataset.lengths.sum()
    empty = np.flatnonzero(np.diff(plan.row_offsets) == 0)
    assert len(empty) < batch_rows, "empty rows only fill up the last batch"
    assert empty.tolist() == list(range(plan.rows - len(empty), plan.rows))
    assert plan.summary["empty_rows"] == len(empty)
    assert all(cell["epochs"] == epochs for cell in plan.summary["cells"])


@settings(max_examples=60)
@given(
    data=st.data(), temperature=st.sampled_from([1.0, 3.0, 100.0]), steps=st.integers(20, 60),
    unit=st.sampled_from(["examples", "tokens", "bytes"]), first=st.sampled_from(["languages", "sources"]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_in_any_mixture_nobody_comes_twice_more_often_than_a_neighbour(data, temperature, unit, first, steps, seed):
    """Within a source and language every example comes once before any comes again, but for what one block reorders."""
    dataset = data.draw(datasets(32))
    mixture = {"temperature": temperature, "unit": unit, "first": first}
    config = make_config(dataset, block_examples=16, **mixture)
    try:
        plan = build_plan(dataset, config, steps=steps, batch_rows=4, seed=seed)
    except DataError as error:
        assert "would get no example" in str(error)
        return
    visits = np.bincount(plan.row_examples, minlength=len(dataset))
    assert dataset.lengths[plan.row_examples].sum() == sum(cell["planned_tokens"] for cell in plan.summary["cells"])
    for source, language in set(zip(dataset.source.tolist(), dataset.language.tolist(), strict=True)):
        own = visits[(dataset.source == source) & (dataset.language == language)]
        # Drawn and not served by the last row: at most one block, and a row that waits for the next.
        assert own.max() - own.min() <= 1 + 16 + 32 // dataset.lengths.min()


def test_half_an_epoch_is_half_of_every_language():
    plan = build_plan(SMALL, make_config(SMALL), steps=None, epochs=0.5, batch_rows=4, seed=0)
    assert [cell["planned_examples"] for cell in plan.summary["cells"]] == [3, 20, 15]


def test_a_language_left_out_on_purpose_has_no_epochs():
    config = make_config(SMALL, language_weights={"am": 0.0}, unit="tokens")
    plan = build_plan(SMALL, config, steps=None, epochs=2, batch_rows=4, seed=0)
    assert [cell["epochs"] for cell in plan.summary["cells"]] == [0, 2, 2]


def test_epochs_are_shuffled_anew():
    plan = build_plan(SMALL, make_config(SMALL, packed=False), steps=None, epochs=2, batch_rows=1, seed=0)
    english = plan.row_examples[plan.row_examples < 40].tolist()
    assert english[:40] != english[40:]


@pytest.mark.parametrize(
    "mixture, extent, message",
    [
        ({}, {"steps": 3, "epochs": 1.0}, "got steps=3 and epochs=1.0; give one of the two"),
        ({}, {"steps": None}, "got steps=None and epochs=None"),
        ({}, {"steps": None, "epochs": 0.0}, "a plan of 0.0 epochs"),
        ({}, {"steps": 0}, "a plan of 0 steps"),
        ({"temperature": 3.0}, {"steps": None, "epochs": 1.0}, r"sees those of 'am' in source 's' .* as often as"),
        (
            {"pinch": (PinchConfig(languages=("am",), examples=2),)},
            {"steps": None, "epochs": 1.0},
            "remove data.mixture",
        ),
        ({"stages": (StageConfig(),)}, {"steps": None, "epochs": 1.0}, "give train.steps instead"),
        ({"exhausted": "leave"}, {"steps": None, "epochs": 1.0}, "give train.steps instead"),
        ({"languages": SharesConfig(floor=0.2)}, {"steps": None, "epochs": 1.0}, "remove what weighs them"),
    ],
)
def test_a_run_is_in_steps_or_in_even_epochs(mixture, extent, message):
    with pytest.raises(DataError, match=message):
        build_plan(SMALL, make_config(SMALL, **mixture), batch_rows=4, seed=0, **extent)


def test_epochs_are_part_of_the_hash():
    plans = [
        build_plan(SMALL, make_config(SMALL), steps=steps, epochs=epochs, batch_rows=4, seed=0)
        for steps, epochs in [(None, 1), (None, 2), (5, None)]
    ]
    assert len({plan.hash for plan in plans}) == 3


def test_rows_without_examples_train_nothing_and_shift_nobody():
    """Sums over runs that are empty give the first element of the next run, not 0."""
    dataset = make_examples([3, 4, 5], ["en"] * 3, ["s"] * 3, target_tokens=[1, 2, 4])
    plan = Plan(
        row_offsets=np.array([0, 2, 2, 3, 3, 3]), row_examples=np.array([0, 1, 2], np.int32), row_length=8, hash="h",
        summary={},
    )  # fmt: skip
    assert trained_per_row(dataset, plan).tolist() == [3, 0, 4, 0, 0]
    empty = Plan(row_offsets=np.zeros(3, int), row_examples=np.empty(0, np.int32), row_length=8, hash="h", summary={})
    assert trained_per_row(dataset, empty).tolist() == [0, 0]

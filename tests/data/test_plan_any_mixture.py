"""Whatever a recipe's mixture says, the rows hold to it or the run is refused in words."""

import numpy as np
from hypothesis import event, given
from hypothesis import strategies as st

from data.mixture_config import MixtureConfig, PinchConfig, SharesConfig, StageConfig, UniMaxConfig
from data.plan import build_plan
from data.schema import DataError
from tests.data.fake_examples import make_config, make_examples

TAGS, NAMES = ("en", "sw", "am", "yo"), ("a", "b", "c")
# Every name occurs; other cells may be empty.
ALWAYS = {("a", "en"), ("b", "sw"), ("c", "am"), ("a", "yo")}


def tables(names, values):
    return st.dictionaries(st.sampled_from(names), values, max_size=3)


def shares_configs(names):
    weighed = st.builds(dict, weights=tables(names, st.sampled_from([0.0, 0.5, 4.0])))
    shared = st.builds(dict, shares=tables(names, st.floats(0, 0.4)))
    bounds = st.fixed_dictionaries({
        "floor": st.just(0.0) | st.floats(0, 0.2) | tables(names, st.floats(0, 0.2)),
        "ceiling": st.just(1.0) | st.floats(0.4, 1) | tables(names, st.floats(0.5, 1)),
        "temperature": st.sampled_from([1.0, 3.0]), "cap": st.none() | st.floats(1, 500),
    })  # fmt: skip
    plain = st.builds(lambda given, more: SharesConfig(**given, **more), weighed | shared, bounds)
    unimax = st.builds(UniMaxConfig, max_epochs=st.floats(0.5, 8), budget=st.none() | st.floats(10, 5000))
    gains = st.fixed_dictionaries({name: st.floats(0, 3) for name in names})
    return plain | st.builds(SharesConfig, unimax=unimax) | st.builds(SharesConfig, gains=gains)


stages = st.builds(
    lambda parts, last: (*parts, last),
    st.lists(st.builds(StageConfig, steps=st.integers(1, 9), languages=st.none() | shares_configs(TAGS)), max_size=2),
    st.builds(StageConfig, source_weights=st.none() | tables(NAMES, st.sampled_from([0.0, 2.0]))),
)
mixtures = st.fixed_dictionaries({
    "unit": st.sampled_from(["examples", "tokens", "characters"]),
    "first": st.sampled_from(["languages", "sources"]),
    "languages": shares_configs(TAGS), "sources": shares_configs(NAMES),
    "exhausted": st.sampled_from(["repeat", "leave", "stop", "error"]),
    "pinch": st.lists(
        st.builds(PinchConfig, languages=st.just(("yo",)), examples=st.integers(1, 12), each=st.booleans()), max_size=1
    ).map(tuple),
    "stages": st.just(()) | stages,
})  # fmt: skip


@given(
    sizes=st.fixed_dictionaries({
        (name, tag): st.integers(1 if (name, tag) in ALWAYS else 0, 60) for name in NAMES for tag in TAGS
    }),
    mixture=mixtures, steps=st.integers(1, 25), batch_rows=st.integers(1, 5), seed=st.integers(0, 9),
    block_examples=st.sampled_from([16, 100]), packed=st.booleans(), data=st.data(),
)  # fmt: skip
def test_the_rows_hold_to_the_recipe_or_it_is_refused_in_words(
    sizes, mixture, steps, batch_rows, seed, block_examples, packed, data
):
    labels = [(name, tag) for (name, tag), size in sizes.items() for _ in range(size)]
    lengths = np.random.default_rng(seed).integers(1, 33, len(labels))
    dataset = make_examples(lengths, [tag for _, tag in labels], [name for name, _ in labels])
    try:
        if mixture["exhausted"] != "repeat" and data.draw(st.booleans()):
            mixture = mixture | {"max_epochs": data.draw(st.floats(0.2, 3))}
        config = make_config(dataset, block_examples=block_examples, packed=packed, **mixture)
    except ValueError as refused:
        assert "`pinch`" in str(refused)
        return
    try:
        plan = build_plan(dataset, config, steps=steps, batch_rows=batch_rows, seed=seed)
    except DataError as refused:
        event(str(refused).split("data.")[-1][:30])
        return
    event("planned")
    check_rows(dataset, config.mixture, plan, steps=steps, batch_rows=batch_rows)
    again = build_plan(dataset, config, steps=steps, batch_rows=batch_rows, seed=seed)
    assert again.row_examples.tolist() == plan.row_examples.tolist()
    assert (again.hash, again.summary) == (plan.hash, plan.summary)


def check_rows(dataset, mixture: MixtureConfig, plan, *, steps, batch_rows):
    assert plan.rows == plan.summary["steps"] * batch_rows
    assert plan.summary["steps"] <= steps
    assert plan.summary["steps"] == steps or mixture.exhausted == "stop"
    assert (np.diff(plan.row_offsets) > 0).all()
    ends = np.concatenate(([0], np.cumsum(dataset.lengths[plan.row_examples])))[plan.row_offsets]
    assert np.diff(ends).max() <= 32
    cells = plan.summary["cells"]
    assert abs(sum(cell["wanted_share"] for cell in cells) - 1) < 1e-9
    assert sum(stage["rows"] for stage in plan.summary["stages"]) == plan.rows
    assert sum(stage["tokens"] for stage in plan.summary["stages"]) == ends[-1]
    for cell in cells:
        if cell["wanted_share"] == 0:
            assert cell["planned_examples"] == 0
    pinched = {tag: pinch.examples for pinch in mixture.pinch for tag in pinch.languages}
    assert plan.summary["pinch"] == pinched
    if mixture.exhausted != "repeat":
        most = 1.0 if mixture.max_epochs is None else mixture.max_epochs
        for cell in cells:
            if cell["language"] not in pinched:
                assert cell["planned_examples"] <= max(1, most * cell["examples"] + 1e-6)
    for tag in {cell["language"] for cell in cells if cell["wanted_share"] > 0}:
        assert sum(cell["planned_examples"] for cell in cells if cell["language"] == tag) > 0

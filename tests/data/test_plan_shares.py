"""Realised shares against wanted ones, for every way of weighing, by chi-square; and rows full on real lengths."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from data.mixture_config import SharesConfig, StageConfig, UniMaxConfig
from data.plan import build_plan
from tests.data.fake_examples import make_config, make_examples

SIZES = {("a", "en"): 3000, ("b", "en"): 900, ("a", "sw"): 400, ("b", "sw"): 60, ("b", "yo"): 25, ("c", "ar"): 130}
CELLS = [cell for cell, size in SIZES.items() for _ in range(size)]
LENGTHS = np.random.default_rng(7).integers(4, 40, len(CELLS))
DATASET = make_examples(LENGTHS, [tag for _, tag in CELLS], [name for name, _ in CELLS])

WAYS = {
    "proportional": {},
    "temperature": {"temperature": 3.0},
    "capped": {"languages": SharesConfig(cap=500, alpha=0.7)},
    "unimax": {"languages": SharesConfig(unimax=UniMaxConfig(max_epochs=5))},
    "explicit": {"languages": SharesConfig(shares={"yo": 0.2, "ar": 0.3})},
    "bounded": {"languages": SharesConfig(floor=0.1, ceiling=0.5)},
    "sources first": {
        "first": "sources", "sources": SharesConfig(shares={"a": 0.5, "b": 0.2, "c": 0.3}), "temperature": 2.0,
    },
    "gains": {"first": "sources", "sources": SharesConfig(gains={"a": 3, "b": 1, "c": 0.5})},
    "weights": {"language_weights": {"yo": 9.0}, "sources": SharesConfig(weights={"a": 0.5})},
    "stages": {"stages": (StageConfig(share=0.4, temperature=2.0), StageConfig(language_weights={"en": 0.1}))},
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_realised_shares_pass_a_chi_square_test(way):
    """At the end of the run, which is the middle of a block; independent draws would fail one time in a thousand."""
    config = make_config(DATASET, row_length=128, block_examples=256, **WAYS[way])
    plan = build_plan(DATASET, config, steps=250, batch_rows=8, seed=1)
    for part in plan.summary["stages"]:
        counts = np.array([cell["planned_examples"] for cell in part["cells"]])
        wanted = np.array([cell["wanted_share"] for cell in part["cells"]]) * counts.sum()
        statistic = ((counts - wanted) ** 2 / wanted).sum()
        assert statistic < stats.chi2.ppf(0.999, len(counts) - 1)
        assert counts.sum() > 4000


def test_the_chi_square_test_can_fail():
    """The same rows against the shares of another temperature."""
    config = make_config(DATASET, row_length=128, block_examples=256, temperature=3.0)
    cells = build_plan(DATASET, config, steps=250, batch_rows=8, seed=1).summary["cells"]
    counts = np.array([cell["planned_examples"] for cell in cells])
    other = make_config(DATASET, row_length=128, block_examples=256, temperature=2.5)
    shares = build_plan(DATASET, other, steps=1, batch_rows=64, seed=1).summary["cells"]
    wanted = np.array([cell["wanted_share"] for cell in shares]) * counts.sum()
    assert ((counts - wanted) ** 2 / wanted).sum() > stats.chi2.ppf(0.999, len(counts) - 1)


@pytest.mark.parametrize("unit", ["tokens", "target_tokens", "bytes", "characters"])
def test_shares_are_realised_in_their_unit(unit):
    each = np.where(np.array([tag for _, tag in CELLS]) == "ar", 3, 1)
    dataset = make_examples(
        LENGTHS, [tag for _, tag in CELLS], [name for name, _ in CELLS], target_tokens=LENGTHS // 2 + 1,
        bytes_each=LENGTHS * each * 4, characters_each=LENGTHS * each,
    )  # fmt: skip
    config = make_config(dataset, row_length=128, temperature=5.0, unit=unit)
    plan = build_plan(dataset, config, steps=500, batch_rows=8, seed=1)
    for cell in plan.summary["cells"]:
        assert cell["realised_share"] == pytest.approx(cell["wanted_share"], rel=0.05)


def test_the_mixture_is_even_along_the_run():
    """Each tenth of the run has the shares of the whole: no language comes late, none is used up early."""
    config = make_config(DATASET, row_length=128, block_examples=256, temperature=3.0)
    plan = build_plan(DATASET, config, steps=250, batch_rows=8, seed=1)
    tenths = np.array_split(plan.row_examples, 10)
    counts = np.array([np.bincount(DATASET.language[part], minlength=5)[1:] for part in tenths])
    assert stats.chi2_contingency(counts).pvalue > 1e-3


# Fields of each file that make a prompt and an answer, good enough for lengths.
FIELDS = {
    "afriqa_gold_train": ("question_lang", "answer_lang"),
    "gsm8k_en_train": ("question", "answer"),
    "mgsm_cot_exemplars": ("q", "a"),
    "nusax_translation_native_prompts": ("prompt_templates", "prompts", "label"),
    "oasst1_en_validation_messages": ("text",),
    "oasst1_zh_sft": ("history", "instruction", "input", "output"),
    "self_instruct_seed_tasks_en": ("instruction", "instances"),
    "sib200_topic_parallel": ("text", "category"),
    "tata_table_to_text_dev": ("linearized_input", "table_text"),
    "tatoeba_pairs_eng": ("source", "target"),
    "xcopa_val": ("premise", "choice1", "choice2"),
}
SCAFFOLDING = 14
"""Positions that a chat template adds, about."""


def texts_of(value):
    if isinstance(value, str):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for one in values for text in texts_of(one)]


@pytest.fixture(scope="module")
def real():
    """Lengths, languages and sources of every row under `train`, in tokens of a 32k SentencePiece model."""
    if "POLYTUNE_REALDATA" not in os.environ:
        pytest.skip("POLYTUNE_REALDATA names no folder of real data")
    import sentencepiece

    folder = Path(os.environ["POLYTUNE_REALDATA"])
    (model,) = (folder / "tokenizers").glob("mistral*.model")
    rows = []
    for file in sorted((folder / "train").glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            rows.append((file.stem, row["_lang"], "\n".join(texts_of([row[field] for field in FIELDS[file.stem]]))))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model)).encode([text for *_, text in rows])
    return [(name, tag, len(ids) + SCAFFOLDING) for (name, tag, _), ids in zip(rows, pieces, strict=True)]


@pytest.mark.realdata
@pytest.mark.parametrize("row_length, fullest", [(2048, 0.99), (512, 0.98)])
def test_rows_are_full_on_real_data(real, row_length, fullest, monkeypatch):
    """All sources, over a hundred languages; only what fits no row is left out."""
    # The files' own language codes are labels here, whether or not they are tags.
    monkeypatch.setattr("data.plan_summary.script_of", lambda tag: "Zyyy")
    kept = [row for row in real if row[2] <= row_length]
    dataset = make_examples([row[2] for row in kept], [row[1] for row in kept], [row[0] for row in kept])
    assert len(dataset.facts.languages) > 100
    assert len(dataset.facts.sources) == len(FIELDS) + 1
    steps = 2 * int(dataset.lengths.sum()) // row_length // 8
    for mixture in ({}, {"temperature": 3.0}, {"temperature": 3.0, "unit": "tokens"}):
        config = make_config(dataset, row_length=row_length, block_examples=None, **mixture)
        plan = build_plan(dataset, config, steps=steps, batch_rows=8, seed=0)
        assert 1 - plan.summary["padding"] >= fullest
    config = make_config(dataset, row_length=row_length, block_examples=None)
    plan = build_plan(dataset, config, steps=None, epochs=1, batch_rows=8, seed=0)
    assert np.bincount(plan.row_examples, minlength=len(dataset)).tolist() == [1] * len(dataset)
    assert 1 - plan.summary["padding"] >= fullest

import io
import json
import math

import msgspec
import pytest
from rich.console import Console

from data.cldr import cldr_languages
from data.schema import Conversation, Turn
from eval.config import EvalError
from eval.grading import Graded
from eval.results import TaskResult, build_results, read_results, summarize, write_results
from eval.stats import Ratio
from eval.table import draw_table
from eval.task import Document, GenerateTask, HeldoutTask, load_task

FACTS = msgspec.structs.replace(load_task("facts"), version=4)
HELDOUT = load_task("heldout")


def make_document(language, index, task="month"):
    turns = (Turn("user", f"question {index}"), Turn("assistant", "answer"))
    return Document(Conversation(turns=turns, language=language, source="s", task=task, id=f"{language}/{index}"))


def grade(value, *, truncated=False):
    metrics = {"exact_match": Ratio(value), "stopped": Ratio(1.0)}
    return Graded(metrics, {"majority": Ratio(0.5)}, [['[{"role":"user"}]', {}]], [["said"]], ["said"], truncated)


@pytest.fixture
def result():
    # fr: 3 of 4 right, sw: 0 of 2 right.
    documents = [make_document("fr", i, "month" if i < 2 else "date") for i in range(4)]
    documents += [make_document("sw", i) for i in range(2)]
    graded = [grade(value) for value in (1.0, 1.0, 1.0, 0.0, 0.0)] + [grade(0.0, truncated=True)]
    return TaskResult(FACTS, documents, graded, {"fr": 9, "sw": 2})


@pytest.fixture
def built(result):
    return build_results([result], {"config": {"step": 10}})


def test_results_have_the_shape_of_lm_evaluation_harness(built):
    assert built["results"]["facts_fr"] == {
        "alias": "facts_fr",
        "sample_len": 4,
        "truncated": 0,
        "exact_match,none": 0.75,
        "exact_match_stderr,none": pytest.approx(0.25),
        "stopped,none": 1.0,
        "stopped_stderr,none": 0.0,
    }
    assert built["group_subtasks"] == {"facts": ["facts_fr", "facts_sw"]}
    assert built["n-samples"]["facts_fr"] == {"original": 9, "effective": 4}
    assert built["versions"] == {"facts": 4, "facts_fr": 4, "facts_sw": 4}
    assert built["n-shot"]["facts_sw"] == 0
    assert built["higher_is_better"]["facts"] == {"exact_match": True, "stopped": True}
    assert built["configs"]["facts"]["kind"] == "generate"
    assert built["config"] == {"step": 10}


def test_group_is_the_mean_over_languages_not_over_documents(built):
    assert built["results"]["facts"]["exact_match,none"] == pytest.approx(0.375)  # not 3/6
    assert built["groups"]["facts"] == built["results"]["facts"]
    assert built["macro"]["facts"]["exact_match"] == {
        "value": pytest.approx(0.375), "stderr": pytest.approx(0.125), "n": 6, "languages": 2,
    }  # fmt: skip
    assert built["worst_languages"]["facts"] == [["sw", 0.0], ["fr", 0.75]]
    assert built["baselines"]["facts"] == built["baselines"]["facts_sw"] == {"majority": 0.5}
    assert built["results"]["facts"]["truncated"] == built["results"]["facts_sw"]["truncated"] == 1


def test_what_is_asked_is_reported_apart(built):
    # month: fr 2/2, sw 0/2; date: fr 1/2.
    assert {name: entry["exact_match"]["value"] for name, entry in built["by_task"]["facts"].items()} == {
        "month": 0.5,
        "date": 0.5,
    }


def test_one_document_a_language_has_no_stderr_in_json():
    documents, graded = [make_document("fr", 0)], [grade(1.0)]
    built = build_results([TaskResult(FACTS, documents, graded, {"fr": 1})], {})
    assert built["results"]["facts_fr"]["exact_match_stderr,none"] == "N/A"
    assert built["by_task"] == {}


def test_bits_per_byte_sum_within_a_language():
    documents = [make_document("fr", 0), make_document("fr", 1), make_document("th", 0)]
    values = [{"bits_per_byte": Ratio(*pair)} for pair in ((8, 4), (1, 1), (9, 3))]
    summary = summarize(documents, values)
    assert summary.by_language["fr"]["bits_per_byte"].value == pytest.approx(9 / 5)
    assert summary.macro["bits_per_byte"].value == pytest.approx((9 / 5 + 3) / 2)


def test_files_are_written_whole_and_samples_carry_hashes(tmp_path, result, built):
    write_results(tmp_path / "eval" / "10", built, [result])
    folder = tmp_path / "eval" / "10"
    assert sorted(path.name for path in folder.iterdir()) == ["results.json", "samples_facts.jsonl"]
    assert read_results(folder) == json.loads((folder / "results.json").read_text())
    rows = [json.loads(line) for line in (folder / "samples_facts.jsonl").read_text().splitlines()]
    assert [row["doc_id"] for row in rows] == list(range(6))
    assert {
        "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash",
        "prompt_hash", "target_hash", "language",
    } <= rows[0].keys()  # fmt: skip
    assert rows[0]["exact_match"] == 1.0 and rows[0]["metrics"] == ["exact_match", "stopped"]
    assert rows[0]["resps"] == [["said"]] and rows[0]["target"] == "answer"
    assert rows[0]["doc_hash"] != rows[1]["doc_hash"] and rows[0]["target_hash"] == rows[1]["target_hash"]


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_earlier_result_is_an_error(tmp_path, text):
    assert read_results(tmp_path) is None
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(EvalError, match="damaged"):
        read_results(tmp_path)


CHECKPOINT = {"config": {"step": 10, "checkpoint": "run/10"}, "tokenizer_hash": "t", "chat_template_sha": "c"}


def write_task(folder, name, languages, facts, *, limit=None, date=1.0):
    documents = [make_document(tag, i) for tag in languages for i in range(2)]
    task = msgspec.structs.replace(FACTS, name=name)
    graded = [grade(1.0) for _ in documents]
    result = TaskResult(task, documents, graded, dict.fromkeys(languages, 2), limit, 64, date)
    return write_results(folder, build_results([result], facts), [result])


def test_a_second_evaluation_of_a_step_keeps_the_tasks_of_the_first(tmp_path):
    write_task(tmp_path, "facts", ("fr", "sw"), CHECKPOINT, limit=2)
    write_task(tmp_path, "facts_more", ("fr",), CHECKPOINT, date=2.0)
    built = write_task(tmp_path, "facts", ("fr", "th"), {**CHECKPOINT, "date": 3.0}, limit=5, date=3.0)
    assert read_results(tmp_path) == built and built["date"] == 3.0
    # Swahili is gone with the evaluation it came from; facts_more is no language of facts.
    names = {"facts", "facts_fr", "facts_th", "facts_more", "facts_more_fr"}
    for section in ("results", "versions", "n-shot", "higher_is_better", "baselines"):
        assert built[section].keys() == names
    for section in ("groups", "group_subtasks", "configs", "macro", "worst_languages"):
        assert built[section].keys() == {"facts", "facts_more"}
    assert built["n-samples"].keys() == {"facts_fr", "facts_th", "facts_more_fr"}
    asked = {name: (each["limit"], each["max_length"], each["date"]) for name, each in built["configs"].items()}
    assert asked == {"facts": (5, 64, 3.0), "facts_more": (None, 64, 2.0)}
    assert "macro average of 1" in show(draw_table(built, "facts_more"))


@pytest.mark.parametrize(
    "change",
    [{"config": {**CHECKPOINT["config"], "step": 11}}, {"tokenizer_hash": "u"}, {"chat_template_sha": "d"},
     {"config": {**CHECKPOINT["config"], "checkpoint": "other/10"}}],
)  # fmt: skip
def test_results_of_another_checkpoint_are_not_mixed_in(tmp_path, change):
    write_task(tmp_path, "facts", ("fr",), CHECKPOINT)
    write_task(tmp_path, "other", ("fr",), {**CHECKPOINT, **change})
    found = read_results(tmp_path)
    assert found is not None and found["results"].keys() == {"other", "other_fr"}


def show(renderable):
    stream = io.StringIO()
    Console(file=stream, width=100).print(renderable)
    return stream.getvalue()


def test_table_names_languages_in_their_own_words(built):
    shown = show(draw_table(built, "facts"))
    assert "français" in shown and "Kiswahili" in shown and "Latn" in shown
    assert "macro average of 2" in shown and "0.375" in shown and "majority" in shown
    assert "worst: sw 0.000, fr 0.750" in shown
    assert "1 prompts were longer than max_length" in shown
    assert "untrained" not in shown
    assert shown.index("Kiswahili") < shown.index("français")


def test_untrained_scores_show_only_for_the_same_documents(built):
    untrained = json.loads(json.dumps(built))
    untrained["results"]["facts_fr"]["exact_match,none"] = 0.111
    untrained["results"]["facts_sw"]["sample_len"] = 99
    shown = show(draw_table(built, "facts", beside={"untrained": untrained}))
    french = next(line for line in shown.splitlines() if "français" in line)
    swahili = next(line for line in shown.splitlines() if "Kiswahili" in line)
    assert french.split()[-1] == "0.111" and swahili.split()[-1] == "-"


def test_other_weights_of_the_same_step_have_a_column_where_they_were_asked_the_task(built):
    averaged = json.loads(json.dumps(built))
    averaged["results"]["facts_fr"]["exact_match,none"] = 0.987
    shown = show(draw_table(built, "facts", beside={"EMA": averaged}))
    french = next(line for line in shown.splitlines() if "français" in line)
    assert "EMA" in shown and french.split()[-1] == "0.987"
    del averaged["group_subtasks"]["facts"]
    assert "EMA" not in show(draw_table(built, "facts", beside={"EMA": averaged}))


def test_long_tables_show_both_ends():
    tags = [
        *cldr_languages(),
        *["et", "lv", "lt", "sk", "sl", "hr", "sr", "mk", "sq", "gl", "eu", "ca", "is", "ga", "cy", "mt"],
    ]
    documents = [make_document(tag, i) for tag in tags for i in range(2)]
    graded = [grade(float(i % 2)) for i in range(len(documents))]
    built = build_results([TaskResult(FACTS, documents, graded, dict.fromkeys(tags, 2))], {})
    assert "(4 more)" in show(draw_table(built, "facts"))


def test_lower_is_better_turns_the_order_around():
    documents = [make_document("fr", 0), make_document("sw", 0)]
    graded = [
        Graded(
            {"bits_per_byte": Ratio(b, 1), "loss": Ratio(b, 1)},
            {},
            [["p", "t"]],
            [[[-b, False]]],
            [[-b, False]],
            False,
        )
        for b in (1.0, 2.0)
    ]
    built = build_results([TaskResult(HELDOUT, documents, graded, {"fr": 1, "sw": 1})], {})
    assert built["worst_languages"]["heldout"] == [["sw", 2.0], ["fr", 1.0]]
    shown = show(draw_table(built, "heldout"))
    assert shown.index("Kiswahili") < shown.index("français")
    assert math.isclose(built["macro"]["heldout"]["loss"]["value"], 1.5)


def test_tasks_of_two_kinds_share_one_file(result):
    assert isinstance(FACTS, GenerateTask) and isinstance(HELDOUT, HeldoutTask)
    documents = [make_document("fr", 0)]
    graded = [
        Graded(
            {"bits_per_byte": Ratio(2, 1), "loss": Ratio(1, 1)},
            {},
            [["p", "t"]],
            [[[-1.0, True]]],
            [[-1.0, True]],
            False,
        )
    ]
    built = build_results([result, TaskResult(HELDOUT, documents, graded, {"fr": 1})], {})
    assert list(built["groups"]) == ["facts", "heldout"]

import json
import pickle
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec
import pytest
from conversations import chat
from hypothesis import given
from hypothesis import strategies as st

from data.cleaning.checks import make_checks
from data.cleaning.duplicates import signature
from data.cleaning.reason import Reason, Verdict
from data.cleaning.report import CleaningReport, describe, merge_reports
from data.cleaning_config import (
    CleaningConfig,
    Decontamination,
    EvaluationSet,
    ExactDuplicates,
    LanguageCheck,
    LengthLimits,
    NearDuplicates,
    PhraseCheck,
    RatioLimits,
    RepetitionLimit,
    ScriptCheck,
)
from data.schema import DataError

ROOT = Path(__file__).resolve().parents[3]
QUESTION = "a farmer has seventeen sheep and sells all but nine of them how many are left"
ALL = CleaningConfig(
    length=LengthLimits(min_answer=2),
    ratio=RatioLimits(),
    repetition=RepetitionLimit(),
    script_mismatch=ScriptCheck(),
    phrases=PhraseCheck(),
    language_mismatch=LanguageCheck(),
    decontamination=Decontamination(sets=(EvaluationSet(path="eval.jsonl"),)),
)
ROWS = {
    None: chat("The answer is that nothing at all is wrong with this row."),
    "length": chat("x"),
    "ratio": chat("much too long an answer to a short sentence", prompt="hi", task="translation"),
    "repetition": chat("again and again and again we go " * 20),
    "script_mismatch": chat("This is English, not Hindi.", language="hi"),
    "phrases": chat("As an AI language model, I do not know."),
    "language_mismatch": chat("Das ist ganz sicher kein englischer Satz, sondern ein deutscher."),
    "decontamination": chat(f"Well, {QUESTION}?"),
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "eval.jsonl").write_text(json.dumps({"q": QUESTION}) + "\n")
    return str(tmp_path)


def name_of(reason: Reason | None) -> str | None:
    return None if reason is None else reason.predicate


@pytest.mark.parametrize("predicate", ROWS)
def test_each_predicate_drops_its_row_and_keeps_the_others(root, predicate):
    assert name_of(make_checks(ALL, root=root).judge(ROWS[predicate]).reason) == predicate


def test_a_row_is_dropped_by_the_first_predicate_it_fails(root):
    both = chat("Nein, das ist ganz sicher kein englischer Satz. As an AI language model, I refuse.")
    assert name_of(make_checks(ALL, root=root).judge(both).reason) == "phrases"


def test_what_could_not_be_judged_is_said(root):
    verdict = make_checks(ALL, root=root).judge(chat("Ok, 42!", language="zu"))
    assert verdict == Verdict(None, ("ratio", "repetition", "script_mismatch", "phrases", "language_mismatch"))


def test_a_default_config_asks_nothing_and_loads_no_package():
    code = (
        "import sys\n"
        "from data.cleaning.checks import make_checks\n"
        "from data.cleaning.duplicates import signature\n"
        "from data.cleaning_config import CleaningConfig\n"
        "from data.schema import Conversation, Turn\n"
        "row = Conversation(turns=(Turn('text', 'x'),), language='en', source='s')\n"
        "checks = make_checks(CleaningConfig(), root='nowhere')\n"
        "assert checks.predicates == () and checks.judge(row).reason is None\n"
        "assert signature(CleaningConfig(), row) == b''\n"
        "assert not {'datasketch', 'py3langid', 'scipy', 'fasttext'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT)})


def test_checks_travel_to_spawned_processes_and_say_the_same(root):
    checks = make_checks(ALL, root=root)
    rows = list(ROWS.values())
    assert len(pickle.dumps(checks)) < 200_000
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert list(pool.map(checks.judge, rows)) == [checks.judge(row) for row in rows]


def test_a_missing_package_or_file_is_refused_before_any_row_is_read(root, monkeypatch):
    from data.cleaning import identification

    identification.load_identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(DataError, match=r"needs the package py3langid; pip install 'polytune\[clean\]'"):
        make_checks(CleaningConfig(language_mismatch=LanguageCheck()), root=root)
    with pytest.raises(DataError, match=r"no file .*glot\.bin"):
        monkeypatch.setitem(sys.modules, "fasttext", object())
        make_checks(CleaningConfig(language_mismatch=LanguageCheck(model="glot.bin")), root=root)
    with pytest.raises(DataError, match="is not a language tag"):
        make_checks(CleaningConfig(script_mismatch=ScriptCheck(scripts={"xx": ("Latn",)})), root=root)


@given(st.text(), st.text(), st.sampled_from(["en", "zh-Hant", "th", "orv", "ar-Latn", "sr", "nqo", "pt-BR"]))
def test_no_text_makes_a_predicate_fail(tmp_path_factory, prompt, answer, language):
    root = tmp_path_factory.getbasetemp()
    (root / "eval.jsonl").write_text(json.dumps({"q": QUESTION}) + "\n")
    config = msgspec.structs.replace(ALL, exact_duplicates=ExactDuplicates(), near_duplicates=NearDuplicates())
    row = chat(answer, prompt=prompt, language=language, task="translation")
    for name, predicate in make_checks(msgspec.structs.replace(config, length=None), root=str(root)).predicates:
        assert predicate(row).is_judged or not predicate(row).detail, name
    assert len(signature(config, row)) == 520


VERDICTS = st.tuples(
    st.sampled_from(["en", "sw", "zh-Hant"]),
    st.sampled_from(["a", "b"]),
    st.sampled_from([None, "length", "phrases"]),
    st.sampled_from([(), ("phrases",), ("length", "phrases")]),
)


def report_of(verdicts, max_listed):
    report = CleaningReport(max_listed=max_listed)
    for number, (language, source, predicate, not_judged) in enumerate(verdicts):
        reason = None if predicate is None else Reason(predicate, f"detail {number}")
        report.note(chat("x", language=language, source=source), Verdict(reason, not_judged))
    return report


@given(st.lists(VERDICTS, max_size=40), st.integers(0, 5), st.integers(0, 2**31))
def test_reports_of_parts_add_up_to_the_report_of_the_whole(verdicts, max_listed, seed):
    numbered = list(enumerate(verdicts))
    cuts = sorted(random.Random(seed).choices(range(len(verdicts) + 1), k=3))
    parts = [numbered[start:end] for start, end in zip([0, *cuts], [*cuts, len(verdicts)], strict=True)]
    whole = report_of(verdicts, max_listed)
    # Details count from the start of the whole, as ids do.
    for row in whole.listed:
        assert row.detail.startswith("detail ")
    pieces = []
    for part in parts:
        piece = CleaningReport(max_listed=max_listed)
        for number, (language, source, predicate, not_judged) in part:
            reason = None if predicate is None else Reason(predicate, f"detail {number}")
            piece.note(chat("x", language=language, source=source), Verdict(reason, not_judged))
        pieces.append(msgspec.json.decode(piece.to_json(), type=CleaningReport))
    assert merge_reports(pieces, max_listed=max_listed) == whole


def test_a_report_counts_lists_and_makes_a_table():
    report = CleaningReport(max_listed=1, notes=["a note"])
    report.note(chat("x", language="sw"), Verdict(Reason("length", "too short")))
    report.note(chat("y", language="sw"), Verdict(Reason("length", "too short")))
    report.note(chat("z", language="zu"), Verdict(None, ("phrases",)))
    report.note(chat("w" * 500, language="sw"), Verdict(None))
    report.note_dropped(describe(chat("w" * 500, language="sw"), Reason("near_duplicates", "of f.jsonl:1")))
    assert report.checked == {"s": {"sw": 3, "zu": 1}}
    assert report.dropped == {"length": {"s": {"sw": 2}}, "near_duplicates": {"s": {"sw": 1}}}
    assert [(row.predicate, row.id, row.detail, len(row.excerpt)) for row in report.listed] == [
        ("length", "f.jsonl:1", "too short", 1),
        ("near_duplicates", "f.jsonl:1", "of f.jsonl:1", 200),
    ]
    assert report.not_judged == {"phrases": {"s": {"zu": 1}}}
    assert msgspec.json.decode(report.to_json(), type=CleaningReport) == report

import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.bad_rows import BadRows, write_bad_rows
from data.schema import DataError, Turn
from data.source_config import FileSource, TreeFields
from data.sources import check_sources, load_source

QA = [{"role": "user", "content": "{{ q }}"}, {"role": "assistant", "content": "{{ a }}"}]
GOOD = {"q": "Q", "a": "A", "lang": "en"}


def jsonl(**changes):
    fields = {"name": "s", "path": "rows.jsonl", "language": {"field": "lang"}, "messages": QA}
    return msgspec.convert({"kind": "files"} | fields | changes, FileSource)


def write(folder: Path, *rows: object, name: str = "rows.jsonl") -> None:
    lines = [row if isinstance(row, bytes) else json.dumps(row, ensure_ascii=False).encode() for row in rows]
    (folder / name).write_bytes(b"\n".join(lines) + b"\n")


def load(folder: Path, source=None, *, policy="error"):
    bad_rows = BadRows(policy)
    return load_source(source or jsonl(), root=folder, bad_rows=bad_rows), bad_rows


def texts(conversations):
    return [[(turn.role, turn.content) for turn in conversation.turns] for conversation in conversations]


def test_rows_become_tagged_conversations(tmp_path):
    write(tmp_path, GOOD | {"lang": "swh_Latn"}, GOOD | {"q": "{{ q }} <user>", "lang": "no"})
    first, second = load(tmp_path, jsonl(task="qa"))[0]
    assert first.turns == (Turn("user", "Q"), Turn("assistant", "A"))
    assert (first.language, first.source, first.task, first.id) == ("sw", "s", "qa", "rows.jsonl:1")
    assert (second.language, second.turns[0].content, second.id) == ("no", "{{ q }} <user>", "rows.jsonl:2")


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip))
def test_content_is_neither_stripped_nor_escaped_nor_split_at_other_line_ends(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp("rows")
    write(folder, GOOD | {"a": text}, GOOD)
    conversations, _ = load(folder)
    assert [conversation.turns[1].content for conversation in conversations] == [text, "A"]


def test_only_a_line_feed_ends_a_row(tmp_path):
    text = "a\u2028b\u2029c\x85d"
    write(tmp_path, GOOD | {"a": text}, GOOD)
    assert [c.turns[1].content for c in load(tmp_path)[0]] == [text, "A"]


def test_a_byte_order_mark_crlf_and_final_blank_lines_are_no_fault(tmp_path):
    write(tmp_path, b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r", json.dumps(GOOD).encode(), b"", b"  ")
    assert len(load(tmp_path)[0]) == 2


def test_nan_and_huge_numbers_elsewhere_in_a_row_are_no_fault(tmp_path):
    write(tmp_path, b'{"q": "Q", "a": "A", "lang": "en", "x": NaN, "y": 1' + b"0" * 400 + b"}")
    assert len(load(tmp_path)[0]) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'{"q": "Q"', "not JSON: Expecting ',' delimiter at column 10"),
        (b'{"q": "\xff"}', "not UTF-8 at byte 8"),
        (b"", "the line is blank"),
        (b"[1]", "the row is a JSON list, not an object"),
        (b"[" * 100_000, "cannot be read"),
        (b'{"q": 1' + b"0" * 5000 + b"}", "cannot be read"),
        ({"q": "Q", "lang": "en"}, r"messages.1.content: 'a' is undefined; the row's fields are q, lang"),
        ({"q": "Q", "a": "A"}, "no field 'lang' to read the language from; fields are q, a"),
        (GOOD | {"lang": "englisch"}, "'englisch' is not a language tag.*did you mean en"),
        (GOOD | {"lang": False}, "not text but bool; .* quote it"),
        (GOOD | {"lang": None}, "not text but NoneType"),
        (GOOD | {"lang": ["en"]}, "not text but list"),
        (GOOD | {"a": ""}, "empty assistant turn"),
        (GOOD | {"a": " \n\t"}, "empty assistant turn"),
        (GOOD | {"q": ""}, "empty user turn"),
        (GOOD | {"a": None}, "messages.1.content: a value is null, not text"),
        (b'{"q": "Q", "a": NaN, "lang": "en"}', "a value is nan, not text"),
        (GOOD | {"a": ["A"]}, "a value is a list, not text"),
        (b'{"q": "Q", "a": "\\ud800", "lang": "en"}', r"lone surrogate '\\ud800' in the assistant turn"),
    ],
)
def test_a_bad_row_names_file_line_and_reason(tmp_path, row, reason):
    write(tmp_path, GOOD, row, GOOD)
    with pytest.raises(DataError, match=rf"^rows\.jsonl:2: .*{reason}.*; fix it, or set data\.bad_rows to skip"):
        load(tmp_path)
    conversations, bad_rows = load(tmp_path, policy="skip")
    assert len(conversations) == 2
    [bad] = bad_rows.rows
    assert (bad.source, bad.file, bad.line) == ("s", "rows.jsonl", 2)
    assert bad_rows.read["s"] == 3


def test_skipped_rows_are_written_with_reasons_and_counted_by_language(tmp_path):
    write(
        tmp_path,
        GOOD,
        GOOD | {"a": "", "lang": "swh_Latn", "q": "x" * 500},
        b"{",
        GOOD | {"a": "", "lang": "swh_Latn"},
    )
    _, bad_rows = load(tmp_path, policy="skip")
    assert bad_rows.by_language() == {"sw": 2, "": 1}
    write_bad_rows(bad_rows, tmp_path / "bad.jsonl")
    first, second, _ = map(json.loads, (tmp_path / "bad.jsonl").read_text().splitlines())
    assert (first["line"], first["language"], len(first["excerpt"])) == (2, "sw", 200)
    assert first["reason"].startswith("empty assistant turn")
    assert second | {"reason": ""} == {
        "source": "s", "file": "rows.jsonl", "line": 3, "reason": "", "language": "", "excerpt": "{"
    }  # fmt: skip


def test_too_many_bad_rows_stop_a_run_that_skips(tmp_path):
    write(tmp_path, GOOD, GOOD, b"{", GOOD)
    conversations, bad_rows = load(tmp_path, policy="skip")
    assert len(conversations) == 3
    bad_rows.check_dropped(0.25)
    with pytest.raises(DataError, match=r"'s': 1 of 4 rows are bad, more than data\.max_dropped 0\.2; .*rows\.jsonl:3"):
        bad_rows.check_dropped(0.2)


@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_source_without_rows_is_refused_whatever_the_policy(tmp_path, policy):
    with pytest.raises(DataError, match=r"no file matches .*rows\.jsonl; check it and data\.root"):
        load(tmp_path, policy=policy)
    (tmp_path / "rows.jsonl").write_bytes(b"\n \n")
    with pytest.raises(DataError, match=r"rows\.jsonl is empty"):
        load(tmp_path, policy=policy)
    write(tmp_path, GOOD, GOOD)
    with pytest.raises(DataError, match=r"every row of source 's' was left out: 2 where"):
        load(tmp_path, jsonl(where="q == 'other'"), policy=policy)
    with pytest.raises(DataError, match=r"it is a folder, so add a pattern: \./\*\.jsonl"):
        load(tmp_path, jsonl(path="."), policy=policy)


def test_every_row_bad_is_refused_with_the_first_reason(tmp_path):
    write(tmp_path, {"q": "Q", "lang": "en"})
    with pytest.raises(DataError, match=r"every row .* 1 bad, the first because: .*[.]jsonl:1: .*'a' is undefined"):
        load(tmp_path, policy="skip")


def test_globs_read_all_files_in_order_and_the_language_from_the_name(tmp_path):
    for tag in ("yo", "ar", "no"):
        write(tmp_path, GOOD, name=f"xnli_{tag}.jsonl")
    source = jsonl(path="xnli_*.jsonl", language={"file_name": r"xnli_(.+)\.jsonl"})
    assert [(c.language, c.id) for c in load(tmp_path, source)[0]] == [
        ("ar", "xnli_ar.jsonl:1"),
        ("no", "xnli_no.jsonl:1"),
        ("yo", "xnli_yo.jsonl:1"),
    ]
    write(tmp_path, GOOD, name="xnli_.jsonl")
    with pytest.raises(DataError, match=r"xnli_\.jsonl:1: file 'xnli_\.jsonl' does not match language\.file_name"):
        load(tmp_path, source)


def test_where_leaves_rows_out_and_counts_them(tmp_path):
    write(tmp_path, *[GOOD | {"q": f"{n}"} for n in range(5)])
    conversations, bad_rows = load(tmp_path, jsonl(where="line % 2 == 1 and language == 'en' and row.q != '2'"))
    assert [c.turns[0].content for c in conversations] == ["0", "4"]
    assert bad_rows.left_out["s"] == {"where": 3}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*\.where: 'kept' is undefined"):
        load(tmp_path, jsonl(where="kept > 3"))


@given(rows=st.integers(1, 60), limit=st.integers(1, 70))
def test_limit_takes_rows_evenly_not_the_first_ones(tmp_path_factory, rows, limit):
    folder = tmp_path_factory.mktemp("rows")
    write(folder, *[GOOD | {"q": f"{n}"} for n in range(rows)])
    conversations, bad_rows = load(folder, jsonl(limit=limit))
    taken = [int(c.turns[0].content) for c in conversations]
    assert len(taken) == len(set(taken)) == min(limit, rows)
    assert taken == sorted(taken)
    gaps = {after - before for before, after in zip(taken, [*taken[1:], rows], strict=True)}
    assert max(gaps) - min(gaps) <= 1
    assert bad_rows.left_out["s"]["limit"] == max(0, rows - limit)


def test_a_bad_row_is_found_even_where_limit_would_not_look(tmp_path):
    write(tmp_path, GOOD, b"{", GOOD)
    with pytest.raises(DataError, match="jsonl:2"):
        load(tmp_path, jsonl(limit=1))


def test_each_repeats_messages_over_a_list_and_an_empty_system_message_is_left_out(tmp_path):
    messages = [
        {"role": "system", "content": "{{ s }}"},
        {
            "each": "history",
            "messages": [
                {"role": "user", "content": "{{ item[0] }}"},
                {"role": "assistant", "content": "{{ item[1] }}"},
            ],
        },
        *QA,
    ]
    source = jsonl(messages=messages)
    write(tmp_path, GOOD | {"s": "", "history": []}, GOOD | {"s": "S", "history": [["q1", "a1"], ["q2", "a2"]]})
    assert texts(load(tmp_path, source)[0]) == [
        [("user", "Q"), ("assistant", "A")],
        [
            ("system", "S"),
            ("user", "q1"),
            ("assistant", "a1"),
            ("user", "q2"),
            ("assistant", "a2"),
            ("user", "Q"),
            ("assistant", "A"),
        ],
    ]
    for history, reason in (
        (None, "NoneType, not a list"),
        ([["q1"]], r"\.1\.messages\.1\.content: .*has no element 1"),
    ):
        write(tmp_path, GOOD | {"s": "", "history": history})
        with pytest.raises(DataError, match=reason):
            load(tmp_path, source)


def test_templates_know_the_language_its_names_and_the_row(tmp_path):
    names = "{{ language_name(language) }} {{ english_name('fr') }}"
    content = "{{ language }} " + names + " {{ row['a b'] }} {{ row.language }}\n"
    write(tmp_path, GOOD | {"lang": "deu", "a b": "!", "language": "Deutsch", "language_name": "x"})
    source = jsonl(messages=[{"role": "user", "content": content}, QA[1]])
    assert load(tmp_path, source)[0][0].turns[0].content == "de Deutsch French ! Deutsch\n"


def test_a_conversation_must_end_with_the_answer(tmp_path):
    write(tmp_path, GOOD)
    with pytest.raises(DataError, match="ends with a user turn"):
        load(tmp_path, jsonl(messages=QA[::-1]))


@pytest.mark.parametrize(
    "attack",
    ["{{ ''.__class__.__mro__ }}", "{{ row.update({'q': 1}) }}", "{{ range(10**9) | list }}", "{{ 1 / 0 }}"],
)
def test_templates_are_sandboxed_and_their_failures_are_bad_rows(tmp_path, attack):
    write(tmp_path, GOOD)
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*messages\.0\.content: "):
        load(tmp_path, jsonl(messages=[{"role": "user", "content": attack}, QA[1]]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"messages": [QA[0], {"role": "assistant", "content": "{{ a"}]},
            r"^data\.sources\.1\.messages\.1\.content is no",
        ),
        (
            {"messages": [{"each": "h", "messages": [{"role": "user", "content": "{% if %}"}]}, *QA]},
            r"^data\.sources\.1\.messages\.0\.messages\.0\.content is no template",
        ),
        ({"messages": [QA[0]]}, r"^data\.sources\.1\.messages has no message of role assistant"),
        ({"where": "a =="}, r"^data\.sources\.1\.where is no Jinja expression"),
        ({"language": {"constant": "xx"}}, r"^data\.sources\.1\.language: 'xx' is not a language tag"),
        ({"language": {"file_name": "(a)(b)"}}, r"^data\.sources\.1\.language\.file_name: .*exactly one group"),
        (
            {"language": {"file_name": "("}},
            r"^data\.sources\.1\.language\.file_name: .*no regular expression",
        ),
        ({"name": "first"}, r"^data\.sources\.1\.name 'first' is taken by data\.sources\.0"),
    ],
)
def test_a_slip_in_the_recipe_is_named_by_its_key_before_any_file_is_read(changes, message):
    with pytest.raises(DataError, match=message):
        check_sources((jsonl(name="first"), jsonl(**changes)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language": {}}, r"exactly one of .* 0 are given"),
        ({"language": {"field": "a", "constant": "en"}}, r"2 are given"),
        ({"messages": [{"role": "user"}]}, "either `role` and `content`, or `each` and `messages`"),
        ({"messages": [{"role": "user", "content": "a", "each": "b"}]}, "either `role` and `content`"),
    ],
)
def test_an_ambiguous_mapping_is_refused_when_the_recipe_is_read(changes, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        jsonl(**changes)


def message(identity, parent, role="prompter", **more):
    return {"message_id": identity, "parent_id": parent, "role": role, "text": identity, "lang": "en"} | more


TREE = FileSource(name="t", path="rows.jsonl", rows="tree", task="chat")
FOREST = [
    message("r1", None),
    message("worse", "r1", "assistant", rank=1),
    message("best", "r1", "assistant", rank=0),
    message("unranked", "r1", "assistant", rank=None),
    message("u", "best", rank=None),
    message("tie1", "u", "assistant", rank=2),
    message("tie2", "u", "assistant", rank=2),
    message("unanswered", "tie1"),
    message("r2", None),
    message("r3", None),
    message("only", "r3", "assistant"),
]


def test_the_best_ranked_path_of_each_tree_ends_with_its_last_answer(tmp_path):
    write(tmp_path, *FOREST)
    conversations, bad_rows = load(tmp_path, TREE)
    assert texts(conversations) == [
        [("user", "r1"), ("assistant", "best"), ("user", "u"), ("assistant", "tie1")],
        [("user", "r3"), ("assistant", "only")],
    ]
    assert [(c.id, c.language, c.task) for c in conversations] == [
        ("rows.jsonl:1", "en", "chat"),
        ("rows.jsonl:10", "en", "chat"),
    ]
    assert bad_rows.left_out["t"] == {"not on the best path": 4, "no answer": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (message("x", "nowhere"), "parent 'nowhere' is in no good row"),
        (message("x", "x"), "its own ancestor"),
        (message("r1", None), r"message_id 'r1' is also at rows\.jsonl:1"),
        (message("x", "r1", text=""), "empty user turn"),
        (message("x", "r1", rank="first"), "field 'rank' is the text 'first', neither a number nor null"),
        (message("x", "r1", rank=float("nan")), "field 'rank' is a number"),
        (message("x", 7), "field 'parent_id' is a number"),
        (message("x", "r1", role="moderator"), "unknown role 'moderator'"),
        ({"message_id": "x"}, "no field 'parent_id'"),
        (message("x", "r1", lang="xx"), "not a language tag"),
    ],
)
def test_a_bad_message_is_named_and_what_hangs_below_it_is_counted(tmp_path, row, reason):
    write(tmp_path, *FOREST, row)
    with pytest.raises(DataError, match=rf"rows\.jsonl:12: .*{reason}"):
        load(tmp_path, TREE)
    conversations, bad_rows = load(tmp_path, TREE, policy="skip")
    assert (len(conversations), len(bad_rows.rows)) == (2, 1)


def test_nothing_of_a_forest_is_lost_without_being_counted(tmp_path):
    orphans = [message("o", "nowhere"), message("below", "o", "assistant")]
    loop = [message("a", "b"), message("b", "a"), message("c", "a", "assistant")]
    write(tmp_path, *FOREST, *orphans, *loop)
    conversations, bad_rows = load(tmp_path, TREE, policy="skip")
    assert [row.line for row in bad_rows.rows] == [12, 14, 15]
    assert bad_rows.left_out["t"]["below a bad message"] == 2
    used = sum(len(conversation.turns) for conversation in conversations)
    assert used + len(bad_rows.rows) + bad_rows.left_out["t"].total() == bad_rows.read["t"] == 16


def test_trees_are_known_by_their_fields_and_where_keeps_or_leaves_whole_ones(tmp_path):
    write(tmp_path, *FOREST)
    found = msgspec.structs.replace(TREE, rows="auto", where="text != 'r1'", limit=1)
    conversations, bad_rows = load(tmp_path, found)
    assert texts(conversations) == [[("user", "r3"), ("assistant", "only")]]
    assert bad_rows.left_out["t"] == {"where": 8, "no answer": 1, "not on the best path": 0}
    broken = msgspec.structs.replace(TREE, where="missing > 1")
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*'missing' is undefined"):
        load(tmp_path, broken)


def test_a_forest_with_a_system_prompt_and_other_names_is_read_as_one(tmp_path):
    rows = [{"key": "a", "up": None, "who": "system", "says": "s", "lang": "en"}]
    rows += [{"key": "b", "up": "a", "who": "human", "says": "q", "lang": "en"}]
    rows += [{"key": "c", "up": "b", "who": "helper", "says": "a", "lang": "en"}]
    write(tmp_path, *rows)
    names = {"id": "key", "parent": "up", "role": "who", "text": "says", "assistant_role": "helper"}
    source = FileSource(name="t", path="rows.jsonl", tree=msgspec.convert(names, TreeFields))
    assert texts(load(tmp_path, source)[0]) == [[("system", "s"), ("user", "q"), ("assistant", "a")]]


def test_several_paths_are_read_by_name_each_file_once(tmp_path):
    for name in ("b", "a"):
        write(tmp_path, GOOD | {"q": name}, name=f"{name}.jsonl")
    conversations, _ = load(tmp_path, jsonl(path=["b.jsonl", "*.jsonl"]))
    assert [c.id for c in conversations] == ["a.jsonl:1", "b.jsonl:1"]


def test_one_bad_row_does_not_decide_the_form_or_kill_the_source(tmp_path):
    """Open-instruct's map died with the first row its template could not take (PR 1806)."""
    pair = {"prompt": "Q", "completion": "A", "lang": "sw"}
    write(tmp_path, pair | {"completion": None}, b"{", pair, pair | {"lang": "und"}, {"text": "x"} | pair)
    source = FileSource(name="s", path="rows.jsonl")
    with pytest.raises(DataError, match=r"^rows\.jsonl:1: field 'completion' is null, not text; fix it"):
        load(tmp_path, source)
    conversations, bad_rows = load(tmp_path, source, policy="skip")
    assert [c.id for c in conversations] == ["rows.jsonl:3", "rows.jsonl:5"]
    assert [(row.line, row.language) for row in bad_rows.rows] == [(1, "sw"), (2, ""), (4, "")]
    assert bad_rows.read["s"] == 5


def test_an_unclear_form_is_refused_whatever_the_policy(tmp_path):
    write(tmp_path, {"a": "b", "lang": "sw"})
    with pytest.raises(DataError, match=r"^source 's': rows of source 's' have the fields a, lang, which is none of"):
        load(tmp_path, FileSource(name="s", path="rows.jsonl"), policy="skip")


@pytest.mark.realdata
def test_real_files_load(tmp_path):
    if not (folder := os.environ.get("POLYTUNE_REALDATA")):
        pytest.skip("POLYTUNE_REALDATA is not set")
    root = Path(folder) / "train"
    topics = [{"role": "user", "content": "{{ text }}"}, {"role": "assistant", "content": "{{ category }}"}]
    source = jsonl(path="sib200_topic_parallel.jsonl", language={"field": "_lang"}, messages=topics)
    conversations, _ = load(root, source)
    assert (len(conversations), len({c.language for c in conversations})) == (6150, 205)
    tree = msgspec.structs.replace(TREE, path="oasst1_en_validation_messages.jsonl")
    conversations, bad_rows = load(root, tree, policy="skip")
    assert (len(conversations), [row.line for row in bad_rows.rows]) == (117, [96, 134, 1064])

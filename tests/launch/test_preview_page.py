"""The page shows every token once, says what it is, and holds whatever text it is given."""

import re
from html.parser import HTMLParser

import hub_folders
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import write_tiny_recipe
from rich.console import Console

from data.batch import Role
from data.config import TokenizerConfig
from data.pipeline import make_batch
from data.prepare import prepare
from data.tokenizer import load_tokenizer, train_tokenizer
from launch.preview import run_preview
from launch.preview_page import join_clusters, render_preview, split_header
from launch.preview_rows import Piece, PreviewRow, Segment, Span, cut_pieces, take_apart
from launch.recipe import load_recipe

VOID = {"meta", "input", "br", "link"}
SUMMARY = {
    "row_length": 8, "rows": 1, "padding": 0.25, "hash": "ab" * 32, "tokenizer_hash": "cd" * 32,
    "template_hash": "ef" * 32, "cells": [
        {"source": "s", "language": "ar", "examples": 3, "tokens": 40, "target_tokens": 10, "wanted_share": 1.0,
         "realised_share": 1.0, "planned_examples": 3},
    ],
}  # fmt: skip


class Page(HTMLParser):
    """Checks that elements nest; collects the tokens with what they say, and the ids of elements."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.ids, self.tokens = [], [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        self.ids += [attrs["id"]] if "id" in attrs else []
        if tag not in VOID:
            self.open.append((tag, attrs))
        if "data-id" in attrs:
            self.tokens.append([attrs["data-id"], self.open[-2][1], ""])

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if any("data-id" in attrs for _, attrs in self.open):
            self.tokens[-1][2] += data


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    recipe = load_recipe(str(write_tiny_recipe(folder, run_dir=folder / "run", steps=4, save_every=4)))
    return recipe, prepare(
        recipe.data, recipe.tokenizer, steps=4, batch_rows=8, seed=3, run_dir=tmp_path_factory.mktemp("prepared"),
        store=tmp_path_factory.mktemp("store"),
    )  # fmt: skip


def row_of(*spans, language="ar", length=8):
    return PreviewRow(5, length, (Segment(language, "s", 0, sum(s.tokens for s in spans) - 1, spans),))


def span(role, weight, *texts, control=False):
    return Span(role, weight, tuple(Piece(text, (7 + index,), control) for index, text in enumerate(texts)))


def render(*spans, **options):
    return render_preview(SUMMARY, [row_of(*spans, **options)], name="runs/<x>")


def test_every_token_of_every_row_is_on_the_page_with_its_id_role_and_weight(prepared):
    _, (dataset, plan, tokenizer, _) = prepared
    numbers = [0, 3, 7]
    batch = make_batch(dataset, plan, numbers)
    page = Page(render_preview(plan.summary, take_apart(batch, numbers, tokenizer, dataset.facts), name="x"))
    expected = []
    for i in range(len(numbers)):
        for segment in range(1, batch.segments_BT[i].max() + 1):
            at = (batch.segments_BT[i] == segment).nonzero()[0]
            expected.append((batch.tokens_BT[i, at[0]], Role.HEADER, 0.0))
            expected += [(batch.targets_BT[i, t], batch.role_BT[i, t], batch.loss_weight_BT[i, t]) for t in at]
    shown = [
        (int(one), Role[facts["data-role"].upper()], float(facts["data-weight"]))
        for ids, facts, _ in page.tokens
        for one in ids.split()
    ]
    assert shown == expected
    assert len(page.ids) == len(set(page.ids))


def test_the_page_loads_nothing_and_nests(prepared, tmp_path):
    recipe, _ = prepared
    path = tmp_path / "deep" / "p.html"
    assert run_preview(recipe, rows=2, language="ar", html=str(path), console=Console(quiet=True)) == 0
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert "http:" not in html and "https:" not in html and "@import" not in html
    assert not [tag for tag, attrs in page.tags if tag in {"link", "img", "iframe"} or "src" in attrs]
    assert all(attrs.get("href", "#").startswith("#") for tag, attrs in page.tags if tag == "a")
    targets = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert targets <= set(page.ids), "every bar of the layout leads to its example"
    assert '<bdi lang="ar" dir="auto">العربية</bdi>' in html


def test_totals_are_a_table_by_language(prepared):
    _, (_, plan, _, _) = prepared
    html = render_preview(plan.summary, [], name="x")
    for tag in ("ar", "de", "en", "sw"):
        cells = [cell for cell in plan.summary["cells"] if cell["language"] == tag]
        trained, tokens = (sum(cell[key] for cell in cells) for key in ("target_tokens", "tokens"))
        (row,) = re.findall(rf'<tr data-key="[^"]*"><th scope="row" data-value="{tag}">.*?</tr>', html)
        assert f'data-value="{trained}">{trained:,}<' in row and f'data-value="{tokens}">{tokens:,}<' in row


def test_right_to_left_turns_are_marked_so_and_control_tokens_are_chips():
    html = render(
        span(Role.HEADER, 0, "<bos>", "<user>", control=True), span(Role.USER, 0, "ما اسم", " API؟"),
        span(Role.ASSISTANT, 1, "Hello"),
    )  # fmt: skip
    assert re.search(r'<span class="who user">user</span><div class="said" lang="ar" dir="rtl">', html)
    assert re.search(r'<span class="who assistant">assistant</span><div class="said" lang="ar" dir="ltr">', html)
    assert '<b dir="ltr" data-id="7">&lt;bos&gt;</b>' in html
    assert '<span class="assistant trained" data-role="assistant" data-weight="1" data-at="5">' in html


def test_weights_other_than_0_and_1_have_a_style_of_their_own():
    html = render(span(Role.HEADER, 0, "h"), span(Role.USER, 0.25, "q", "r"), span(Role.ASSISTANT, 1, "a"))
    assert '<span class="user weighted" data-role="user" data-weight="0.25"' in html
    assert '<rect class="weighted" x="0" width="2" height="10"/>' in html
    assert '<rect class="trained" x="2" width="1" height="10"/>' in html


def test_plain_texts_are_shown_with_a_role_of_their_own():
    html = render(span(Role.HEADER, 0, "<bos>", control=True), span(Role.TEXT, 1, "once"))
    assert '<span class="who text">text</span>' in html and 'class="text trained"' in html


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>", "</i></span></div><img src=x onerror=y>", '" onmouseover="x', "<!--", "]]>",
        "{{ 7*7 }} {% raw %}", "a\x00b\x1b[31m\x85", "\u202e\u2066\u2069\u2069\u2069", "\u2028\r\n\f", "\ud800",
        "&lt;b&gt; &amp; &#0;", "́́́", "😀" * 5, "x" * 100_000, "</script><script>", "</style>",
    ],
    ids=range(16),
)  # fmt: skip
def test_hostile_text_is_shown_and_never_obeyed(hostile):
    html = render(span(Role.HEADER, 0, hostile), span(Role.ASSISTANT, 1, hostile, "</b>" + hostile))
    page = Page(html)
    page.close()
    assert len(page.tokens) == 3 or hostile.startswith("\u0301")
    tags = {tag for tag, _ in page.tags}
    assert "img" not in tags and not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert html.count("<script>") == 1 == html.count("</script>") and html.count("</style>") == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]", html)
    assert len(html) < 100_000
    html.encode("utf-8")


@given(st.lists(st.text(alphabet=st.characters(codec=None), max_size=20), min_size=2, max_size=6))
@settings(max_examples=60)
def test_any_text_nests(texts):
    page = Page(render(span(Role.HEADER, 0, *texts), span(Role.ASSISTANT, 1, *texts)))
    ids = [one for ids, _, _ in page.tokens for one in ids.split()]
    assert ids == [str(7 + index) for index in range(len(texts))] * 2


def test_a_letter_is_not_torn_from_its_marks():
    pieces = [Piece(text, (index,), False) for index, text in enumerate(("क", "\u093f", "ताब", "\u200d", "x"))]
    assert [(piece.text, piece.ids) for piece in join_clusters(pieces)] == [
        ("क\u093f", (0, 1)), ("ताब\u200d", (2, 3)), ("x", (4,)),
    ]  # fmt: skip
    control = [Piece("<bos>", (0,), True), Piece("\u0301", (1,), False)]
    assert join_clusters(control) == control


def test_scaffolding_between_turns_closes_one_and_opens_the_next():
    def cut(*texts, closed):
        header = Span(Role.HEADER, 0, tuple(Piece(text, (1,), text.startswith("<")) for text in texts))
        return tuple("".join(span.text for span in part) for part in split_header([header], is_closed=closed))

    chatml = ("<|im_end|>", "\n", "<|im_start|>", "user", "\n")
    assert cut(*chatml, closed=False) == ("<|im_end|>\n", "<|im_start|>user\n")
    assert cut(*chatml[1:], closed=True) == ("\n", "<|im_start|>user\n")
    assert cut("<assistant>", closed=True) == ("", "<assistant>")
    assert cut("<sep>", closed=False) == ("", "<sep>"), "what is alone opens"
    llama = ("<|eot_id|>", "<|start_header_id|>", "user", "<|end_header_id|>", "\n\n")
    assert cut(*llama, closed=False) == ("<|eot_id|>", "<|start_header_id|>user<|end_header_id|>\n\n")


@pytest.fixture(scope="module", params=["trained", "qwen3", "llama", "gemma2"])
def tokenizer(request, tmp_path_factory):
    if request.param == "trained":
        return train_tokenizer(["one two", "वन टू"] * 40, TokenizerConfig(vocab_size=320))
    folder = tmp_path_factory.mktemp(request.param)
    hub_folders.write_folder(folder, hub_folders.make_golden_folder(request.param))
    return load_tokenizer(folder)


@given(text=st.text(max_size=40))
@settings(max_examples=150)
def test_pieces_put_together_are_the_text_and_no_token_is_lost(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = cut_pieces(ids, tokenizer)
    assert [one for piece in pieces for one in piece.ids] == ids
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)


def test_characters_spelled_in_bytes_are_one_piece(tokenizer):
    pieces = cut_pieces(tokenizer.encode("a😀b"), tokenizer)
    (face,) = [piece for piece in pieces if "😀" in piece.text]
    assert face.text == "😀" and len(face.ids) == 4


def test_a_row_of_thousands_of_tokens_is_drawn():
    words = [f"w{n} " for n in range(8192)]
    html = render(span(Role.HEADER, 0, "h"), span(Role.ASSISTANT, 1, *words), length=8192)
    assert len(Page(html).tokens) == 8193 and len(html) < 500_000

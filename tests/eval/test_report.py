import json
import math
import re
from html.parser import HTMLParser

import pytest
from fake_run import LANGUAGES_34, LANGUAGES_205, write_fake_run

from data.statistics import Cell, CorpusStatistics, LongRow, TokenCounts, TokenizerFacts, write_statistics
from eval import report_losses, report_metrics, report_mixture, report_training
from eval.report import write_report
from eval.report_names import (
    describe_languages,
    format_count,
    format_duration,
    format_percent,
    text_direction,
    visible,
)
from eval.report_samples import answer_text, prompt_text
from eval.report_scores import Beside, task_scores
from eval.run_files import (
    GroupSums,
    HeldOutRecord,
    LanguagesRecord,
    PlanCell,
    StartRecord,
    StepRecord,
    last_of_each_step,
    read_run,
)

VOID = {"meta", "input", "br", "link"}


class Page(HTMLParser):
    """Checks that elements nest, and collects what a test asks about."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.ids = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    run_dir = write_fake_run(tmp_path_factory.mktemp("runs") / "demo")
    return run_dir, write_report(run_dir).read_text(encoding="utf-8")


def edit_json(path, change):
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_the_page_nests_has_unique_ids_and_loads_nothing(demo):
    _, html = demo
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert "http:" not in html and "https:" not in html and "//" not in re.sub(r"(?m)^// .*$", "", html)
    assert not [tag for tag, attrs in page.tags if tag in {"link", "img", "iframe"} or "src" in attrs]
    assert all(attrs.get("scope") for tag, attrs in page.tags if tag == "th")
    assert all(attrs.get("href", "#").startswith("#") for tag, attrs in page.tags if tag == "a")


def test_every_language_shows_its_own_score(demo):
    run_dir, html = demo
    results = json.loads((run_dir / "eval/300/results.json").read_text())["results"]
    first_bars = html[html.index('<ol class="bars') :]
    first_bars = first_bars[: first_bars.index("</ol>")]
    for tag in LANGUAGES_34:
        score = results[f"facts_{tag}"]["exact_match,none"]
        (row,) = re.findall(rf'<li [^>]*>(?:(?!<li).)*?lang="{tag}".*?</li>', first_bars, re.S)
        assert re.search(rf">(▼ )?{100 * score:.1f}%<", row)
        assert f'class="fill" width="{100 * score:.2f}%"' in row


def test_bars_are_sorted_and_the_worst_five_are_marked(demo):
    _, html = demo
    first_bars = html[html.index('<ol class="bars') :]
    first_bars = first_bars[: first_bars.index("</ol>")]
    shown = [float(value) for value in re.findall(r">(?:▼ )?([\d.]+)%</span>", first_bars)]
    assert shown == sorted(shown, reverse=True) and len(shown) == 34
    assert first_bars.count('class="is-worst"') == 5 and first_bars.count("▼") == 5


def test_lower_is_better_sorts_the_other_way(demo):
    _, html = demo
    part = html[html.index('id="task-3"') : html.index('id="losses"')]
    bars = part[part.index('<ol class="bars') :]
    shown = [float(value) for value in re.findall(r">(?:▼ )?([\d.]+)</span>", bars[: bars.index("</ol>")])]
    assert shown == sorted(shown) and len(shown) == 34


def test_right_to_left_names_are_isolated(demo):
    _, html = demo
    assert '<bdi lang="ar" dir="auto">العربية</bdi>' in html
    assert '<dd lang="ar" dir="rtl">ما اسم الشهر رقم ٣؟</dd>' in html


def test_headline_is_the_macro_average_given_by_the_results(demo, tmp_path):
    run_dir, html = demo
    macro = json.loads((run_dir / "eval/300/results.json").read_text())["groups"]["facts"]["exact_match,none"]
    assert f'<dt>facts, exact match</dt><dd class="value">{100 * macro:.1f}%</dd>' in html
    assert "untrained\N{NO-BREAK SPACE}2.5%" in html and "majority\N{NO-BREAK SPACE}9.0%" in html


@pytest.mark.parametrize("change", ["version", "documents"])
def test_the_untrained_model_is_no_baseline_where_it_was_asked_something_else(tmp_path, change):
    run_dir = write_fake_run(tmp_path / "run", languages=("en", "ar"))
    path = run_dir / "eval/0/results.json"
    before = json.loads(path.read_text())
    if change == "version":
        before["versions"]["facts"] = 2
    else:
        for tag in ("en", "ar"):
            before["n-samples"][f"facts_{tag}"]["effective"] = 20
    path.write_text(json.dumps(before))
    results = read_run(run_dir).evaluations
    names = describe_languages(("en", "ar"))
    marks = {
        view.task: {mark.kind for score in view.scores for mark in score.marks}
        for view in task_scores(results[300], beside=Beside(untrained=results[0]), names=names)
    }
    assert marks["facts"] == {"majority"} and "untrained" in marks["topics"]


def test_text_of_data_model_and_recipe_is_escaped(tmp_path):
    run_dir = write_fake_run(tmp_path / "<i>run", languages=("en", "ar"))
    row = {"doc_id": 0, "language": "en", "target": "a", "arguments": [["<script>alert(1)</script>"]]}
    row |= {"filtered_resps": ["</dd><img src=x>\ud800\u0000"], "exact_match": 0.0}
    (run_dir / "eval/300/samples_facts.jsonl").write_text(json.dumps(row) + "\n")
    html = write_report(run_dir).read_text(encoding="utf-8")
    Page(html)
    assert "<script>alert" not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "&lt;/dd&gt;&lt;img src=x&gt;⟨D800⟩␀" in html
    assert "&lt;b&gt;not bold&lt;/b&gt;" in html and "&lt;i&gt;run</h1>" in html


def test_choice_answers_are_shown_as_options_not_as_likelihoods(demo):
    _, html = demo
    part = html[html.index("<h3>topics</h3>") :]
    assert "travel &amp; food</dd>" in part and "&lt;sport&gt;</dd>" in part
    assert "<h3>heldout</h3>" not in html


def test_a_run_of_205_languages_is_grouped_by_script(tmp_path):
    html = write_report(write_fake_run(tmp_path / "many", languages=LANGUAGES_205)).read_text(encoding="utf-8")
    Page(html)
    part = html[html.index('id="task-1"') : html.index('id="task-2"')]
    assert part.count('<li data-key="') == 205
    assert re.search(r"<summary>Latin<span[^>]*>129 languages, mean [\d.]+%, best [\d.]+%, worst [\d.]+%", part)
    assert len(html) < 2_000_000


@pytest.mark.parametrize("missing", ["recipe.yaml", "plan/plan.json", "metrics.jsonl", "eval", "run_card.json"])
def test_any_part_may_be_missing(tmp_path, missing):
    run_dir = write_fake_run(tmp_path / "run", languages=("en", "he", "ja"))
    path = run_dir / missing
    path.rename(tmp_path / "gone")
    html = write_report(run_dir).read_text(encoding="utf-8")
    Page(html)
    assert 'class="missing"' in html
    assert (missing.split("/")[0] if missing != "eval" else "has not been evaluated yet") in html


def test_a_fresh_run_says_so_and_shows_no_numbers(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: 1\n")
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Not trained yet, not evaluated yet." in html
    assert html.count('class="missing"') == 7 and 'class="tile"' not in html


@pytest.mark.parametrize("name", ["nothing", "file.txt", "empty"])
def test_other_paths_are_refused(tmp_path, name):
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"run\.dir"):
        write_report(tmp_path / name)


def test_a_folder_inside_a_run_names_the_run(tmp_path):
    (tmp_path / "recipe.yaml").write_text("a: 1\n")
    (tmp_path / "checkpoints/40").mkdir(parents=True)
    with pytest.raises(ValueError, match="did you mean"):
        write_report(tmp_path / "checkpoints/40")


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", languages=("en", "he"))
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"kind": "step", "step": 30\xff')
    (run_dir / "eval/300/results.json").write_text('{"results": {')
    edit_json(run_dir / "plan/plan.json", lambda plan: plan["cells"][0].update(tokens="many"))
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "1 unreadable line of metrics.jsonl left out" in html
    assert "eval/300/results.json cannot be used" in html
    assert "run/plan/plan.json cannot be used" in html and "$.cells[0].tokens" in html
    assert "Training loss" in html


def test_diverged_runs_are_drawn_with_a_warning(tmp_path):
    lines = [{"kind": "step", "step": step, "loss": loss} for step, loss in ((1, 2.0), (2, math.nan), (3, 1.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "The loss of 1 recorded steps is no finite number" in html and "2 at first" in html


def test_the_last_record_of_a_repeated_step_wins():
    records = [StepRecord(step=1, loss=5), StepRecord(step=2, loss=4), StepRecord(step=2, attempt=2, loss=3)]
    assert [record.loss for record in last_of_each_step(records)] == [5, 3]


def test_repeated_steps_are_compared_by_digest():
    steps = [StepRecord(step=step, attempt=1, digest=f"a{step}") for step in (1, 2, 3, 4)]
    steps += [StepRecord(step=3, attempt=2, digest="a3"), StepRecord(step=4, attempt=2, digest="other")]
    first, second = report_training.attempts([StartRecord(attempt=1, step=0), StartRecord(attempt=2, step=2)], steps)
    assert (first.repeated, first.last_step) == (0, 4)
    assert (second.resumed_from, second.previous_last_step) == (2, 4)
    assert (second.repeated, second.compared, second.same_batch) == (2, 2, 1)


def test_a_kill_is_marked_and_another_batch_is_a_warning(demo, tmp_path):
    _, html = demo
    assert "resumed at 120" in html and "✓ 27 of 27" in html and "another batch" not in html
    run_dir = write_fake_run(tmp_path / "run", languages=("en",))
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    at = max(i for i, line in enumerate(lines) if '"step": 130,' in line and '"digest"' in line)
    lines[at] = json.dumps(json.loads(lines[at]) | {"digest": "ffffffff"})
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "repeated 27 steps, and 1 of them had another batch than before" in html


def test_loss_by_language_adds_sums_before_dividing():
    records = [
        LanguagesRecord(step=10, loss_sum={"fr": 8.0}, weight={"fr": 2.0}),
        LanguagesRecord(step=95, loss_sum={"fr": 3.0, "en": 1.0}, weight={"fr": 3.0, "en": 4.0}),
        LanguagesRecord(step=100, loss_sum={"fr": 1.0}, weight={"fr": 1.0}),
        LanguagesRecord(step=100, loss_sum={"fr": 5.0}, weight={"fr": 1.0}),
    ]
    french, english = report_losses.loss_rows(records, describe_languages(["fr", "en"]))
    assert (french.first, french.last, french.trained_tokens) == (4.0, 2.0, 6.0)
    assert (english.first, english.last) == (None, 0.25)


def test_gradient_shares_are_of_all_steps_and_sources_have_rows_of_their_own():
    by_source = GroupSums(loss_sum={"a": 6.0, "b": 4.0}, weight={"a": 3.0, "b": 1.0}, gradient={"a": 1.0, "b": 1.0})
    records = [
        LanguagesRecord(step=1, weight={"fr": 3.0, "en": 1.0}, gradient={"fr": 1.0, "en": 5.0}, by_source=by_source),
        LanguagesRecord(step=2, weight={"fr": 3.0, "en": 1.0}, gradient={"fr": 1.0, "en": 1.0}, by_source=by_source),
    ]
    rows = {row.label: row for row in report_losses.loss_rows(records, describe_languages(["fr", "en"]))}
    assert (rows["en"].trained_share, rows["en"].gradient_share) == (0.25, 0.75)
    b, a = report_losses.loss_rows(report_losses.of_sources(records), {})
    assert (a.label, a.language, a.last, a.trained_share, a.gradient_share) == ("a", None, 2.0, 0.75, 0.5)
    assert (b.label, b.last) == ("b", 4.0)


def test_held_out_losses_that_rise_again_are_marked():
    """Per-language forgetting hides in a mean that still falls."""
    losses = {"en": (2.0, 1.0, 1.5), "fr": (4.0, 2.0, 1.0)}
    records = [
        HeldOutRecord(
            step=10 * i, loss_sum={tag: 8 * course[i] for tag, course in losses.items()}, weight={"en": 8, "fr": 8}
        )
        for i in range(3)
    ]
    english, french = report_losses.held_out_rows(records, describe_languages(["fr", "en"]))
    assert (english.first, english.best, english.best_step, english.last) == (2.0, 1.0, 10, 1.5)
    assert (french.best_step, french.last) == (20, 1.0)
    assert english.is_rising and not french.is_rising
    steps = [StepRecord(step=step, loss=3.0) for step in range(1, 21)]
    curve = report_training.loss_curve(steps, [], {}, records)
    assert "held-out loss (own rows)" in curve.wide


def test_the_page_shows_where_the_time_went_and_what_pulls(demo):
    _, html = demo
    assert "Goodput" in html and "Where the time went" in html and "steps waiting for data" in html
    section = html[html.index('id="losses"') : html.index('id="mixture"')]
    assert section.count("Gradient share</th>") == 2 and "<code>procedural</code>" in section
    assert 'id="held-out"' in section
    assert re.search(r"<figcaption><span>MFU</span><span class=\"number\">median 41.0%</span>", html)


def cell(language, source, **numbers):
    known = {"examples": 10, "tokens": 100, "content_bytes": 400, "planned_examples": 5, "planned_tokens": 50}
    shares = {"wanted_share": 0.25, "realised_share": 0.25}
    return PlanCell(language=language, source=source, **{**known, **shares, **numbers})


def test_mixture_adds_sources_and_compares_served_with_planned_tokens():
    cells = [
        cell("fr", "a", wanted_share=0.5, realised_share=0.48, planned_tokens=100),
        cell("fr", "b", planned_examples=25, realised_share=0.27),
        cell("en", "a"),
    ]
    records = [LanguagesRecord(step=1, tokens={"": 9.0, "fr": 30.0, "en": 10.0})]
    served = report_mixture.trained_tokens(records)
    french, english = report_mixture.mixture_rows(cells, served, describe_languages(["fr", "en"]))
    assert (french.wanted, french.planned, french.epochs) == (0.75, 0.75, 1.5)
    assert (french.planned_tokens, french.trained_tokens) == (0.75, 0.75)
    assert (english.planned_tokens, english.trained_tokens, english.epochs) == (0.25, 0.25, 0.5)
    a, b = report_mixture.source_rows(cells, {})
    assert (a.label, a.wanted, b.epochs, b.trained_tokens) == ("a", 0.75, 2.5, None)


def test_tokens_per_byte_pool_sources_and_sort_cheapest_first():
    cells = [cell("fr", "a"), cell("fr", "b", tokens=300), cell("en", "a"), cell("xx", "a", content_bytes=0)]
    english, french = report_mixture.fertility_rows(cells, describe_languages(["fr", "en"]))
    assert (english.language.tag, english.tokens_per_byte, english.ratio_text) == ("en", 0.25, "0.67×")
    assert (french.language.tag, french.tokens_per_byte, french.ratio_text) == ("fr", 0.5, "1.33×")


def test_baselines_of_a_language_overrule_those_of_the_task(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", languages=("en", "fr", "de"))
    edit_json(run_dir / "eval/300/results.json", lambda r: r["baselines"].update(facts_fr={"majority": 0.33}))
    html = write_report(run_dir).read_text(encoding="utf-8")
    bars = html[html.index('<ol class="bars') :]
    assert bars[: bars.index("</ol>")].count('<svg class="mark majority" x="33.00%"') == 1
    assert bars[: bars.index("</ol>")].count('<svg class="mark majority" x="9.00%"') == 2


def test_standard_errors_that_are_not_there_are_not_drawn(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", languages=("en", "fr"))
    path = run_dir / "eval/300/results.json"
    edit_json(path, lambda r: r["results"]["facts_en"].update({"exact_match_stderr,none": "N/A"}))
    edit_json(path, lambda r: r["results"]["facts_fr"].update({"exact_match_stderr,none": None}))
    html = write_report(run_dir).read_text(encoding="utf-8")
    bars = html[html.index('<ol class="bars') :]
    assert 'class="error"' not in bars[: bars.index("</ol>")]


def test_the_primary_metric_is_the_first_declared(demo):
    run_dir, _ = demo
    results = read_run(run_dir).evaluations[300]
    assert report_metrics.primary_metric(results, "facts") == "exact_match,none"
    assert report_metrics.is_higher_better(results, "heldout", "bits_per_byte,none") is False


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"filtered_resps": ["mars"]}, "mars"),
        ({"filtered_resps": [["mars"]]}, "mars"),
        ({"filtered_resps": [[-3, False], [-1, True]], "doc": {"options": ["x", "y"]}}, "y"),
        ({"filtered_resps": [["-3.5", "False"], ["-9.1", "False"]], "doc": {"choices": ["x", "y"]}}, "x"),
        ({"filtered_resps": [[-3, False], [-1, True]]}, "option 2"),
        ({"filtered_resps": [[-3.0, False]]}, None),
        ({}, None),
    ],
)
def test_answers_of_each_kind_of_request(row, answer):
    assert answer_text(row) == answer


def test_prompts_are_turns_before_the_reference_or_the_first_argument():
    turns = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    assert prompt_text({"doc": {"turns": turns}}) == "S\nQ"
    assert prompt_text({"doc": {}, "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": {}}}}) == "Q"


@pytest.mark.parametrize(
    ("text", "direction"),
    [
        ("What?", "ltr"),
        ("abc ← ما اسم الشهر", "rtl"),
        ("ما هو Wikipedia project?", "ltr"),
        ("12 ٣", "auto"),
        ("", "auto"),
    ],
)
def test_direction_follows_most_letters(text, direction):
    assert text_direction(text) == direction


def test_amounts_are_written_for_people():
    assert [format_percent(x) for x in (0.862, 1.0, 0.007, 0.00003, 0, None)] == [
        "86.2%", "100.0%", "0.70%", "0.003%", "0.0%", "–",
    ]  # fmt: skip
    assert [format_count(x) for x in (12, 98_765, 123_456, 1_234_567, 4.56e9)] == [
        "12", "98,765", "123 k", "1.23 M", "4.56 G",
    ]  # fmt: skip
    assert [format_duration(x) for x in (42, 192.4, 18_420)] == ["42 s", "3 min 12 s", "5 h 07 min"]
    assert visible("a\x1b[0m" + "b" * 10, limit=5) == "a␛[0m … (10 more characters)"


def test_unknown_tags_stand_for_themselves():
    described = describe_languages(["not a tag", "", "ka"])
    assert set(described) == {"not a tag", "ka"}
    assert described["not a tag"].own == "not a tag" and described["ka"].own == "ქართული"


def count_statistics(languages, *, unknown=0):
    facts = TokenizerFacts(name="tok<b>", hash="ab" * 32, vocab_size=300, has_unknown=True, byte_kind="none")
    cells = tuple(
        Cell(
            source="s", language=tag, rows=10, turns=20, characters=400, size_bytes=500 + index, words=None,
            tokens=(TokenCounts(prompt=60, answer=40, unknown=unknown),),
            longest=((LongRow(tokens=50 + index, characters=90, row=f"f.jsonl:{index}", source="s", language=tag),),),
        )
        for index, tag in enumerate(sorted(languages))
    )  # fmt: skip
    return CorpusStatistics(tokenizers=(facts,), cells=cells)


def test_statistics_of_the_data_are_a_table_worst_first(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", languages=("en", "he", "th"))
    assert 'id="statistics"' not in write_report(run_dir).read_text(encoding="utf-8")
    write_statistics(count_statistics(("en", "he", "th")), run_dir / "plan/statistics.json")
    html = write_report(run_dir).read_text(encoding="utf-8")
    Page(html)
    part = html[html.index('<section id="statistics">') : html.index('<section id="samples">')]
    assert "30 rows, 60 turns, 1,200 characters, 1,503 bytes" in part and "tok&lt;b&gt;" in part
    assert re.findall(r'<th scope="row" data-value="(\w+)">', part) == ["en", "he", "th"]
    (english,) = re.findall(r'<tr data-key="[^"]*"><th scope="row" data-value="en">.*?</tr>', part, re.S)
    numbers = re.findall(r'<td class="number" data-value="([^"]*)">([^<]*)<', english)
    assert [text for _, text in numbers] == [
        "10", "400", "500", "–", "100", "0.2", "0.25", "–", "–", "0.0%", "40.0%",
    ]  # fmt: skip
    assert numbers[3][0] == "", "words that were not counted sort last"
    assert re.findall(r"f\.jsonl:\d", part) == ["f.jsonl:2", "f.jsonl:1", "f.jsonl:0"]


def test_a_language_that_becomes_unknown_is_marked_not_called_cheap(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", languages=("en",))
    write_statistics(count_statistics(("en",), unknown=30), run_dir / "plan/statistics.json")
    html = write_report(run_dir).read_text(encoding="utf-8")
    part = html[html.index('<section id="statistics">') :]
    assert re.search(r'<tr data-key="[^"]*" class="is-worst">', part) and ">30.0%<" in part


def test_damaged_statistics_are_named_and_the_rest_is_shown(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", languages=("en",))
    (run_dir / "plan/statistics.json").write_text('{"format": 1')
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "statistics.json holds no statistics" in html and "Training loss" in html


def test_what_was_left_out_is_counted_by_language_and_reason(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", languages=("en", "he"))
    edit_json(run_dir / "plan/plan.json", lambda plan: plan.update(bad_rows={"": 4, "he": 1}, dropped={"he": 2}))
    bad = {
        "source": "s",
        "file": "f.jsonl",
        "line": 7,
        "reason": "not JSON",
        "language": "",
        "excerpt": "<b>\u202e\x00",
    }
    (run_dir / "plan/bad_rows.jsonl").write_text(json.dumps(bad) + "\n")
    dropped = {"near_duplicate": {"a": {"en": 5}, "b": {"en": 5}}}
    listed = [{"predicate": "near_duplicate", "id": "f.jsonl:3", "detail": "like f.jsonl:1", "excerpt": "x"}]
    (run_dir / "plan/cleaning.json").write_text(json.dumps({"dropped": dropped, "listed": listed}))
    html = write_report(run_dir).read_text(encoding="utf-8")
    Page(html)
    part = html[html.index('<section id="left-out">') : html.index('<section id="tokens">')]
    assert "17 rows never reached training: bad rows&nbsp;5, longer than a row&nbsp;2, near duplicate&nbsp;10" in part
    table = [
        (tag, re.findall(r'class="number" data-value="([^"]*)"', row))
        for tag, row in re.findall(r'<tr[^>]*><th scope="row" data-value="(\w*)">(.*?)</tr>', part, re.S)
    ]
    kept = {tag: sum(c.examples for c in read_run(run_dir).plan.cells if c.language == tag) for tag in ("en", "he")}
    assert [(tag, numbers[:4]) for tag, numbers in table] == [
        ("en", ["0", "0", "10", "10"]), ("", ["4", "0", "0", "4"]), ("he", ["1", "2", "0", "3"]),
    ]  # fmt: skip
    assert float(table[2][1][4]) == pytest.approx(3 / (3 + kept["he"])) and table[1][1][4] == ""
    assert "f.jsonl:7" in part and "&lt;b&gt;⟨RLO⟩␀" in part
    assert "near duplicate: like f.jsonl:1" in part and "1 shown, 9 more; see plan/cleaning.json" in part


def test_languages_that_cleaning_alone_knows_are_named(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", languages=("en",))
    (run_dir / "plan/cleaning.json").write_text(json.dumps({"dropped": {"too_long": {"a": {"en": 3, "fr": 1}}}}))
    html = write_report(run_dir).read_text(encoding="utf-8")
    assert "too long&nbsp;4" in html and 'lang="fr"' in html


def test_what_could_not_be_judged_and_what_was_cut_is_told_though_nothing_was_lost(tmp_path):
    """A predicate that is blind to a language must not look like one that found it clean."""
    run_dir = write_fake_run(tmp_path / "run", languages=("en",))
    edit_json(run_dir / "plan/plan.json", lambda plan: plan.update(dropped={}, cut={"en": 2, "sw": 1}))
    (run_dir / "plan/bad_rows.jsonl").write_text("")
    unjudged = {"language_mismatch": {"a": {"quy": 30, "en": 2}, "b": {"quy": 1}}}
    (run_dir / "plan/cleaning.json").write_text(json.dumps({"not_judged": unjudged}))
    html = write_report(run_dir).read_text(encoding="utf-8")
    Page(html)
    assert "language mismatch: 33 rows in 2 languages could not be judged and were kept" in html
    assert "3 examples longer than a row, in 2 languages, were cut or split between turns" in html
    assert "rows never reached training" not in html


def test_a_run_that_lost_nothing_has_no_such_section(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", languages=("en",))
    edit_json(run_dir / "plan/plan.json", lambda plan: plan.update(dropped={}))
    (run_dir / "plan/bad_rows.jsonl").write_text("")
    (run_dir / "plan/cleaning.json").write_text('{"dropped": {}, "listed": []}')
    assert 'id="left-out"' not in write_report(run_dir).read_text(encoding="utf-8")

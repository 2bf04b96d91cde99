"""Results of the average of parameters (`eval/STEP-ema`) stand beside the plain ones, and are never taken for them."""

import json
import re
import shutil

import pytest
from fake_run import write_fake_run

from eval.report import write_report
from eval.run_files import read_run
from eval.summary import summarise

LANGUAGES = ("en", "ar", "sw", "ja")


def html_of(run_dir):
    return write_report(run_dir).read_text(encoding="utf-8")


def results_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def percent(value):
    return f"{100 * value:.1f}%"


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Evaluated at 0 and 300; the average of parameters at 200 and 300."""
    run_dir = write_fake_run(tmp_path_factory.mktemp("runs") / "demo", languages=LANGUAGES, averaged=(200, 300))
    return run_dir, html_of(run_dir)


def test_the_average_has_a_row_of_its_own_under_each_task(both):
    """It was evaluated for nothing: the report looked at folders with plain numbers as names only."""
    run_dir, html = both
    plain, averaged = results_of(run_dir / "eval/300"), results_of(run_dir / "eval/300-ema")
    macros = [each["groups"]["facts"]["exact_match,none"] for each in (plain, averaged)]
    assert macros[0] != macros[1]
    rows = re.findall(r"<tr[^>]*><th scope=\"row\">(?:<a [^>]*>)?(facts|facts, EMA)(?:</a>)?&nbsp;.*?</tr>", html, re.S)
    assert rows == ["facts", "facts, EMA"]
    shown = re.findall(r"<b>([\d.]+%)</b>", html[html.index('<section id="scores">') :])
    assert shown[:2] == [percent(value) for value in macros]
    assert f'<dt>facts, exact match</dt><dd class="value">{percent(macros[0])}</dd>' in html
    assert f"EMA\N{NO-BREAK SPACE}{percent(macros[1])}</dd>" in html


def test_every_language_has_a_mark_and_a_number_of_the_average(both):
    run_dir, html = both
    scores = results_of(run_dir / "eval/300-ema")["results"]
    bars = html[html.index('<ol class="bars') :]
    bars = bars[: bars.index("</ol>")]
    for tag in LANGUAGES:
        (row,) = re.findall(rf'<li [^>]*>(?:(?!<li).)*?lang="{tag}".*?</li>', bars, re.S)
        score = scores[f"facts_{tag}"]["exact_match,none"]
        assert f'<svg class="mark ema" x="{100 * score:.2f}%"' in row and f", EMA {percent(score)}" in row
    assert "the average of the parameters over steps, EMA (" in html


def test_macro_averages_by_step_say_which_are_of_the_average(both):
    _, html = both
    table = html[html.index("<h3>Macro averages by step</h3>") :]
    table = table[: table.index("</table>")]
    assert re.findall(r'<th scope="row" class="number">([^<]*)<', table) == ["0", "200 EMA", "300", "300 EMA"]


def test_held_out_losses_of_the_average_are_points_of_their_own(both):
    _, html = both
    chart = html[html.index('<svg class="chart wide"') :]
    chart = chart[: chart.index("</figure>")]
    points = re.findall(r'<circle class="dot heldout ema" [^>]*><title>([^<]*)</title>', chart)
    assert points[:2] == [f"held-out loss (heldout, EMA) at step {step}: 0.61" for step in (200, 300)]
    assert "the same, EMA of the parameters" in chart


def test_a_run_without_an_average_says_nothing_of_one(tmp_path):
    html = html_of(write_fake_run(tmp_path / "run", languages=LANGUAGES))
    assert "EMA" not in html and '"dot heldout ema"' not in html and "mark ema" not in html.replace(".mark.ema", "")


def test_an_average_that_was_asked_other_documents_has_its_row_and_no_marks(tmp_path):
    run_dir = write_fake_run(tmp_path / "run", languages=LANGUAGES, averaged=(300,))
    results = results_of(run_dir / "eval/300-ema")
    for tag in LANGUAGES:
        results["n-samples"][f"facts_{tag}"]["effective"] = 5
    (run_dir / "eval/300-ema/results.json").write_text(json.dumps(results), encoding="utf-8")
    html = html_of(run_dir)
    part = html[html.index('id="task-1"') : html.index('id="task-2"')]
    assert "facts, EMA" in html and "EMA" not in part
    assert "EMA" in html[html.index('id="task-2"') :]


def test_where_only_the_average_was_evaluated_it_is_shown_and_called_that(tmp_path):
    """Its scores are not those of the checkpoint's parameters; and a run with them is not "not evaluated yet"."""
    run_dir = write_fake_run(tmp_path / "run", languages=LANGUAGES, averaged=(300,))
    shutil.rmtree(run_dir / "eval/300")
    html = html_of(run_dir)
    macro = results_of(run_dir / "eval/300-ema")["groups"]["facts"]["exact_match,none"]
    assert f'<dt>facts, exact match, EMA</dt><dd class="value">{percent(macro)}</dd>' in html
    assert "evaluated at step 300 (EMA)" in html
    assert "Held-out scores of the average of the parameters over steps (EMA) in the checkpoint at step 300." in html
    assert read_run(run_dir).samples.keys() == {"facts", "topics", "heldout"}


def test_comparisons_have_the_scores_of_both(both):
    run_dir, _ = both
    scores = summarise(read_run(run_dir)).scores
    for folder, name in (("300", "facts, exact match"), ("300-ema", "facts, exact match, EMA")):
        assert scores[name] == results_of(run_dir / "eval" / folder)["groups"]["facts"]["exact_match,none"]

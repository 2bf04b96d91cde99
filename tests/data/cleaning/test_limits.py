import msgspec
import pytest
from conversations import chat

from data.cleaning.limits import check_length, check_ratio, check_repetition
from data.cleaning_config import CleaningConfig, LengthLimits, RatioLimits, RepetitionLimit
from data.schema import TEXT_ROLE, Conversation, Turn


@pytest.mark.parametrize(
    ("limits", "detail"),
    [
        ({"min_answer": 5}, ""),
        ({"min_answer": 6}, "answer has 5 characters, fewer than min_answer=6"),
        ({"max_answer": 4}, "answer has 5 characters, more than max_answer=4"),
        ({"min_prompt": 4}, "prompt has 3 characters, fewer than min_prompt=4"),
        ({"max_prompt": 2}, "prompt has 3 characters, more than max_prompt=2"),
        ({"min_turns": 3}, "turns has 2 turns, fewer than min_turns=3"),
        ({"max_turns": 1}, "turns has 2 turns, more than max_turns=1"),
        ({"min_prompt": 3, "max_prompt": 3, "min_turns": 2, "max_turns": 2, "max_answer": 5}, ""),
    ],
)
def test_length_bounds_include_themselves(limits, detail):
    assert check_length(chat(" abcde\n", prompt="xyz"), limits=LengthLimits(**limits)).detail == detail


def test_a_plain_text_has_no_prompt_to_be_too_short():
    text = Conversation(turns=(Turn(TEXT_ROLE, "plain"),), language="en", source="s")
    assert check_length(text, limits=LengthLimits(min_prompt=10, min_answer=5)).detail == ""


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ('{"length": {}}', "length has no bound, so it would drop nothing"),
        ('{"length": {"min_answer": 5, "max_answer": 4}}', "min_answer=5 is above max_answer=4"),
        ('{"ratio": {"min_ratio": 4}}', "min_ratio=4 is above max_ratio=3"),
        ('{"phrases": {"shipped": false}}', "give a file"),
        ('{"decontamination": {"sets": []}}', "give at least one set"),
        ('{"near_duplicates": {"treshold": 0.8}}', "unknown field `treshold`"),
    ],
)
def test_a_recipe_that_would_drop_nothing_or_everything_is_refused(given, message):
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.json.decode(given, type=CleaningConfig)


@pytest.mark.parametrize(
    ("prompt", "answer", "dropped"),
    [("x" * 10, "y" * 30, False), ("x" * 10, "y" * 31, True), ("x" * 10, "y", False), ("x" * 11, "y", True)],
)
def test_ratio_judges_translations_alone(prompt, answer, dropped):
    limits = RatioLimits()
    finding = check_ratio(chat(answer, prompt=prompt, task="translation"), limits=limits)
    assert bool(finding.detail) is dropped
    assert not check_ratio(chat(answer, prompt=prompt, task="essay"), limits=limits).is_judged


LOOPS = {"en": "I love you so much, ", "th": "ฉันรักคุณมาก", "zh": "我爱你们所有人", "hi": "मैं तुमसे बहुत प्यार करता हूँ "}


@pytest.mark.parametrize("language", LOOPS)
def test_an_answer_caught_in_a_loop_is_found_in_every_script(language):
    finding = check_repetition(chat(LOOPS[language] * 30, language=language), limit=RepetitionLimit())
    assert "repeat earlier ones, above 50%" in finding.detail


def test_an_answer_that_goes_on_is_no_loop_and_a_short_one_is_not_judged():
    counting = " ".join(f"item{number}" for number in range(200))
    assert check_repetition(chat(counting), limit=RepetitionLimit()).detail == ""
    assert not check_repetition(chat("no no no no no no no no"), limit=RepetitionLimit()).is_judged
    # Six words n times: the first six runs of five are new, the others repeat.
    exact = check_repetition(chat("a b c d e f " * 10), limit=RepetitionLimit(max_share=0.89))
    assert exact.detail == "89% of the answer's runs of 5 words repeat earlier ones, above 89%"
    assert check_repetition(chat("a b c d e f " * 10), limit=RepetitionLimit(max_share=0.9)).detail == ""

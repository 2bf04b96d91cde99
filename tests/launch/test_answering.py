"""Answers as text: where they end, and what may be shown before they have."""

import functools
import itertools

import jax
import numpy as np
import pytest
from hub_models import write_hub_model
from toy import mesh_of

from eval.opening import load_model, open_model
from launch.answering import AnswerConfig, answer_rows, cut_at_stop, hold_back, pad_right
from model.config import ComputeConfig
from model.sampling import SamplingConfig

NEW = 24


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    return open_model(write_hub_model(tmp_path_factory.mktemp("hub") / "tiny"))


@pytest.fixture(scope="module")
def answer(opened):
    with jax.set_mesh(mesh_of((1, 1))):
        model = load_model(opened, ComputeConfig())

    def run(prompts, show=None, **fields):
        config = AnswerConfig(**{"max_new_tokens": NEW, "stop_ids": (), **fields})
        with jax.set_mesh(mesh_of((1, 1))):
            return answer_rows(model, opened.tokenizer, prompts, config, show=show)

    return run


@pytest.fixture(scope="module")
def prompts(opened):
    return [opened.tokenizer.encode(text) for text in ("hello", "a much longer prompt than that one", "w")]


def test_a_text_is_cut_before_the_first_of_several_stop_strings():
    assert cut_at_stop("one two three", ["three", "two"]) == ("one ", True)
    assert cut_at_stop("one two", ["four"]) == ("one two", False)
    assert cut_at_stop("stop", ["stop"]) == ("", True)


def test_what_may_still_become_a_stop_string_or_a_character_is_held_back():
    """Shown once, it cannot be taken back from a terminal."""
    assert hold_back("the end of the", ["the end"]) == "the end of "
    assert hold_back("abab", ["abc"]) == "ab"
    assert hold_back("caf\ufffd", []) == "caf"
    assert hold_back("done", ["xyz"]) == "done"


def test_prompts_of_unequal_length_are_padded_to_one_width():
    rows, lengths = pad_right([[1, 2], list(range(17)), [3]])
    assert rows.shape == (3, 32)
    assert lengths.tolist() == [2, 17, 1]
    assert rows[0, :3].tolist() == [1, 2, 0]


def test_a_prompt_s_answer_does_not_depend_on_longer_ones_beside_it(answer, prompts):
    """Padding that is seen, or positions counted from the padded end, are the classic way to lose this."""
    together = answer(prompts)
    assert [each.text for each in together] == [answer([prompt])[0].text for prompt in prompts]
    assert len({each.text for each in together}) == 3


def test_stop_strings_end_rows_one_by_one_and_leave_themselves_out(answer, prompts):
    whole = answer(prompts)
    stops = (whole[0].text[5:8], whole[2].text[3:5])
    assert all(stops)
    cut = answer(prompts, stop_strings=stops)
    for before, after in zip(whole, cut, strict=True):
        wanted, found = cut_at_stop(before.text, stops)
        assert after.text == wanted
        assert after.stopped == found
    assert cut[0].stopped and cut[2].stopped


def test_any_stop_id_ends_an_answer_and_says_so(answer, prompts, opened):
    whole = answer(prompts)[0].text
    letter = next(each for each in whole[1:] if each.isascii() and each != whole[0])
    (stop_id,) = opened.tokenizer.encode(letter)
    ended = answer(prompts, stop_ids=(10**6, stop_id))[0]
    assert ended == (whole[: whole.index(letter)], True)


def test_what_is_shown_only_grows_and_ends_as_the_answer(answer, prompts):
    seen = []
    final = answer(prompts, show=lambda texts: seen.append(tuple(texts)))
    for earlier, later in itertools.pairwise(seen):
        assert all(after.startswith(before) for before, after in zip(earlier, later, strict=True))
    assert len(seen) == NEW // 4
    assert [each.text for each in final] == [each.text for each in answer(prompts)]


def test_a_seed_decides_a_draw(answer, prompts):
    draw = functools.partial(answer, prompts, sampling=SamplingConfig(temperature=2.0, top_k=50))
    assert draw(seed=1) == draw(seed=1) != draw(seed=2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"max_new_tokens": 0}, "max_new_tokens=0"), ({"stop_strings": ("a", "")}, "stop string is empty")],
)
def test_nonsense_is_refused_before_anything_is_computed(answer, prompts, fields, message):
    with pytest.raises(ValueError, match=message):
        answer(prompts, **fields)


def test_an_id_beyond_the_embedding_is_refused_not_clamped(answer):
    """JAX reads the last row for an id that is too large, and says nothing."""
    with pytest.raises(ValueError, match=r"token id 270, the model embeds 270"):
        answer([[5, 270]])
    assert np.isfinite(len(answer([[5, 269]])[0].text))

import math

import jax
import numpy as np
import pytest

from data.chat import load_chat
from data.config import TokenizerConfig
from data.schema import Conversation, Turn
from data.template import JinjaTemplate
from data.tokenizer import train_tokenizer
from eval.config import EvalError
from eval.engine import Limits, Model, answer_scores
from eval.grading import ask_task, decode_answer, grade_task
from eval.request import Generated, Score, Scored
from eval.task import ChoiceTask, Document, GenerateTask, HeldoutTask
from model.config import ComputeConfig, ModelConfig
from model.parallel import AxisRules
from model.transformer import init

LIMITS = Limits(batch_tokens=2048, max_length=256)
SOURCES = ({"kind": "cldr"},)


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(["the day after Monday is Tuesday", "政治和体育"] * 3, TokenizerConfig(vocab_size=320))


@pytest.fixture
def model(tokenizer, one_device):
    cfg = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        num_layers=1,
        dim=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        mlp_dim=16,
    )
    params = jax.jit(init, static_argnums=(0, 1))(cfg, AxisRules(), jax.random.key(1))
    return Model(cfg, AxisRules(), params, ComputeConfig())


def make_document(question, answer, *, language="en", options=(), task="t"):
    turns = (Turn("user", question), Turn("assistant", answer))
    conversation = Conversation(turns=turns, language=language, source="s", task=task, id=question)
    return Document(conversation, tuple(options), options.index(answer) if options else -1)


def grade(task, documents, tokenizer, model):
    requests = ask_task(task, documents, chat=load_chat(tokenizer), max_length=LIMITS.max_length)
    return grade_task(task, documents, requests=requests, chat=load_chat(tokenizer), model=model, limits=LIMITS)


def values(graded, name):
    return [each.metrics[name].numerator for each in graded]


def test_bits_per_byte_is_bits_of_answers_and_their_ends_over_bytes_of_answers(tokenizer, model):
    turns = (Turn("user", "a?"), Turn("assistant", "政治"), Turn("user", "b?"), Turn("assistant", "yes"))
    conversation = Conversation(turns=turns, language="zh", source="s", id="1")
    task = HeldoutTask(name="h", version=1, sources=SOURCES)
    (graded,) = grade(task, [Document(conversation)], tokenizer, model)
    encoded = load_chat(tokenizer).encode_conversation(conversation)
    (scored,) = answer_scores(model, [Score(encoded.ids, encoded.weights)], LIMITS)
    assert graded.metrics["bits_per_byte"] == (
        pytest.approx(-scored.log_likelihood / math.log(2)),
        9,
    )  # 2*3+3 bytes
    tokens = sum(len(tokenizer.encode(text)) + 1 for text in ("政治", "yes"))
    assert graded.metrics["loss"] == (pytest.approx(-scored.log_likelihood), tokens)
    uniform = graded.baselines["uniform"]
    assert uniform == (pytest.approx(tokens * math.log2(tokenizer.vocab_size)), 9)


def test_an_option_is_scored_as_content_without_its_end_of_turn(tokenizer, model, monkeypatch):
    seen = []

    def record(_model, requests, _limits):
        seen.extend(requests)
        return [Scored(-float(i), 2, False, False) for i in range(len(requests))]

    monkeypatch.setattr("eval.grading.answer_scores", record)
    task = ChoiceTask(name="c", version=1, sources=SOURCES, options=("Monday", "Tuesday"))
    document = make_document("which day?", "Tuesday", options=("Monday", "Tuesday"))
    (graded,) = grade(task, [document], tokenizer, model)
    asked = [request.ids[request.weights > 0].tolist() for request in seen]
    assert asked == [tokenizer.encode("Monday"), tokenizer.encode("Tuesday")]
    assert all(request.ids[-1] != tokenizer.end_id for request in seen)
    assert (graded.metrics["acc"].numerator, graded.filtered) == (0.0, [[-0.0, False], [-1.0, False]])
    assert graded.arguments[1] == ['[{"role":"user","content":"which day?"}]', "Tuesday"]


def test_an_option_in_a_jinja_template_is_its_content_alone(tokenizer):
    """A think block or a line end that the template writes around every option says nothing of which is right."""
    source = (
        "{% for m in messages %}{{ bos_token + m.role + ': ' + ('[]' if m.role == 'assistant' else '') + m.content }}"
        "{{ eos_token + '\\n' }}{% endfor %}{{ bos_token + 'assistant: ' if add_generation_prompt }}"
    )
    chat = JinjaTemplate(tokenizer=tokenizer, jinja=source, name="brackets")
    task = ChoiceTask(name="c", version=1, sources=SOURCES, options=("Monday", "Tuesday"))
    document = make_document("which?", "Monday", options=("Monday", "Tuesday"))
    requests = ask_task(task, [document], chat=chat, max_length=64)
    assert [tokenizer.decode(each.ids[each.weights > 0]) for each in requests] == ["Monday", "Tuesday"]
    assert all(each.weights[-1] == 1 for each in requests)


def test_choice_baselines_are_chance_and_each_languages_most_frequent_label(tokenizer, model):
    options = ("a", "b")
    documents = [make_document("q1", "b", options=options), make_document("q2", "b", options=options)]
    documents += [
        make_document("q3", "a", options=options),
        make_document("q4", "a", language="sw", options=options),
    ]
    task = ChoiceTask(name="c", version=1, sources=SOURCES, options=options)
    graded = grade(task, documents, tokenizer, model)
    assert [each.baselines["chance"].numerator for each in graded] == [0.5] * 4
    assert [each.baselines["majority"].numerator for each in graded] == [1, 1, 0, 1]


def answer_with(monkeypatch, tokenizer, answers):
    def answer(_model, requests, _limits):
        return [Generated(tokenizer.encode(text), stopped, False) for text, stopped in answers]

    monkeypatch.setattr("eval.grading.answer_generations", answer)


def test_exact_match_strips_and_the_stop_rate_is_apart(tokenizer, model, monkeypatch):
    answer_with(monkeypatch, tokenizer, [(" Tuesday\n", True), ("Tuesday and", False), ("tuesday", True)])
    documents = [make_document(f"q{i}", "Tuesday") for i in range(3)]
    task = GenerateTask(name="g", version=1, sources=SOURCES, max_new_tokens=8)
    graded = grade(task, documents, tokenizer, model)
    assert values(graded, "exact_match") == [1, 0, 0]
    assert values(graded, "stopped") == [1, 0, 1]
    assert graded[0].responses == [[" Tuesday\n"]] and graded[0].filtered == ["Tuesday"]


def test_majority_of_a_generated_task_is_the_most_frequent_reference_of_the_language(tokenizer, model, monkeypatch):
    answer_with(monkeypatch, tokenizer, [("x", True)] * 4)
    documents = [make_document("q1", "euro"), make_document("q2", "euro"), make_document("q3", "yen")]
    documents.append(make_document("q4", "शेकेल", language="hi"))
    task = GenerateTask(name="g", version=1, sources=SOURCES, max_new_tokens=8)
    graded = grade(task, documents, tokenizer, model)
    assert [each.baselines["majority"].numerator for each in graded] == [1, 1, 0, 1]


def test_numbers_match_in_other_digits(tokenizer, model, monkeypatch):
    answer_with(monkeypatch, tokenizer, [("উত্তর ১,২৩৪।", True), ("it is 12 or 13", True)])
    documents = [make_document("q1", "1234", language="bn"), make_document("q2", "12")]
    task = GenerateTask(name="g", version=1, sources=SOURCES, max_new_tokens=8, match="number")
    assert values(grade(task, documents, tokenizer, model), "exact_match") == [1, 0]


def test_ignoring_the_rule_is_right_only_where_it_does_not_apply(tokenizer, model, monkeypatch):
    answer_with(monkeypatch, tokenizer, [("b b c", True), ("d d c a", True)])
    documents = [make_document("a -> b: a b c", "b b c"), make_document("b -> a: d d c a", "d d c a")]
    task = GenerateTask(name="g", version=1, sources=SOURCES, max_new_tokens=8, baselines=("ignore_rule",))
    graded = grade(task, documents, tokenizer, model)
    assert [each.baselines["ignore_rule"].numerator for each in graded] == [0, 1]
    assert values(graded, "exact_match") == [1, 1]


def test_ids_beyond_the_tokenizer_spell_nothing(tokenizer, model, monkeypatch):
    def answer(_model, _requests, _limits):
        return [Generated([*tokenizer.encode("yes"), tokenizer.vocab_size + 5], True, False)]

    monkeypatch.setattr("eval.grading.answer_generations", answer)
    task = GenerateTask(name="g", version=1, sources=SOURCES, max_new_tokens=8)
    (graded,) = grade(task, [make_document("q", "yes")], tokenizer, model)
    assert graded.metrics["exact_match"].numerator == 1
    ids = np.array([*tokenizer.encode("no"), tokenizer.vocab_size, tokenizer.end_id], np.int32)
    assert decode_answer(tokenizer, ids) == "no"


def test_an_answer_too_long_to_score_is_refused_before_a_model_is_needed(tokenizer):
    task = HeldoutTask(name="h", version=1, sources=SOURCES)
    documents = [make_document("q" * 99, "x" * count) for count in (3, 40, 30)]
    needed = len(tokenizer.encode("x" * 40)) + 1  # and its end of turn
    assert len(ask_task(task, documents, chat=load_chat(tokenizer), max_length=needed)) == 3
    with pytest.raises(EvalError, match=f"task h: a document needs {needed} tokens .* max_length to {needed + 1}"):
        ask_task(task, documents, chat=load_chat(tokenizer), max_length=needed - 1)
    generate = GenerateTask(name="g", version=1, sources=SOURCES, max_new_tokens=8)
    assert len(ask_task(generate, documents, chat=load_chat(tokenizer), max_length=8)) == 3


def test_the_prompt_is_that_of_training(tokenizer, model, monkeypatch):
    seen = []

    def answer(_model, requests, _limits):
        seen.extend(requests)
        return [Generated([], True, False)]

    monkeypatch.setattr("eval.grading.answer_generations", answer)
    document = make_document("which day?", "Tuesday")
    grade(GenerateTask(name="g", version=1, sources=SOURCES, max_new_tokens=8), [document], tokenizer, model)
    trained = load_chat(tokenizer).encode_conversation(document.conversation)
    np.testing.assert_array_equal(seen[0].prompt, trained.ids[: int(np.flatnonzero(trained.weights)[0])])
    assert seen[0].stop_ids == (tokenizer.end_id,)

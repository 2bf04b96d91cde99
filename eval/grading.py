"""Each kind of task: what it asks of the model, and what the answers are worth beside trivial baselines."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from data.chat import ChatTemplate
from data.procedural import ignore_rule_answer
from data.schema import Conversation, Turn
from data.tokenizer import Tokenizer
from eval.config import EvalError
from eval.engine import Limits, Model, answer_generations, answer_scores, check_scores
from eval.request import Generate, Generated, Score, Scored
from eval.scoring import apply_filters, choose_options, is_exact_match, is_number_match
from eval.stats import Ratio
from eval.task import ChoiceTask, Document, GenerateTask, HeldoutTask, TaskConfig

_MATCHES = {"exact": is_exact_match, "number": is_number_match}


class Graded(NamedTuple):
    """One document, answered: its share in every metric and baseline, and what was asked and said."""

    metrics: dict[str, Ratio]
    baselines: dict[str, Ratio]
    arguments: list[list[Any]]
    """One [prompt, what was asked for] per request; the prompt is the JSON of its messages."""
    responses: list[list[Any]]
    filtered: list[Any]
    truncated: bool


class Kind(NamedTuple):
    """How a kind of task is asked, answered and graded. The first metric is the one tables show."""

    ask: Callable[[Sequence[Document], Any, ChatTemplate], list[Any]]
    answer: Callable[[Model, Sequence[Any], Limits], list[Any]]
    grade: Callable[[Sequence[Document], Any, ChatTemplate, Sequence[Any]], list[Graded]]
    higher_is_better: dict[str, bool]


def ask_task(
    task: TaskConfig, documents: Sequence[Document], *, chat: ChatTemplate, max_length: int
) -> list[Score] | list[Generate]:
    """What the model will be asked, in order of documents; needs no model.

    Raises EvalError where `max_length` would cut off a part of an answer that is scored.
    """
    requests = find_kind(task).ask(documents, task, chat)
    try:
        check_scores([request for request in requests if isinstance(request, Score)], max_length)
    except EvalError as error:
        raise EvalError(f"task {task.name}: {error}") from error
    return requests


def grade_task(
    task: TaskConfig,
    documents: Sequence[Document],
    *,
    requests: Sequence[Score] | Sequence[Generate],
    chat: ChatTemplate,
    model: Model,
    limits: Limits,
) -> list[Graded]:
    """Every document answered by the model and graded, in order; `requests` are those of `ask_task`."""
    kind = find_kind(task)
    return kind.grade(documents, task, chat, kind.answer(model, requests, limits))


def find_kind(task: TaskConfig) -> Kind:
    """How this task is answered, and its metrics."""
    choice = {"acc": True, "acc_norm": True, "acc_bytes": True, "acc_tokens": True}
    return {
        GenerateTask: Kind(_ask_text, answer_generations, _grade_texts, {"exact_match": True, "stopped": True}),
        ChoiceTask: Kind(_ask_options, answer_scores, _grade_choices, choice),
        HeldoutTask: Kind(_ask_whole, answer_scores, _grade_losses, {"bits_per_byte": False, "loss": False}),
    }[type(task)]


def decode_answer(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """The text of generated ids; those that round a model's vocabulary up beyond the tokenizer's spell nothing."""
    return tokenizer.decode([int(token) for token in ids if token < tokenizer.vocab_size])


def _ask_text(documents: Sequence[Document], task: GenerateTask, chat: ChatTemplate) -> list[Generate]:
    return [
        Generate(
            np.array(chat.encode_prompt(document.conversation.turns[:-1]), np.int32),
            max_new_tokens=task.max_new_tokens,
            stop_ids=chat.stop_ids,
        )
        for document in documents
    ]


def _grade_texts(
    documents: Sequence[Document], task: GenerateTask, chat: ChatTemplate, answers: Sequence[Generated]
) -> list[Graded]:
    guesses = {name: _guess(name, documents) for name in task.baselines}
    settings = {"until": _spell_stops(chat), "do_sample": False, "max_gen_toks": task.max_new_tokens}
    texts = [decode_answer(chat.tokenizer, answer.ids) for answer in answers]
    return [
        _grade_text(task, document, (answer, text, settings), {name: guess[i] for name, guess in guesses.items()})
        for i, (document, answer, text) in enumerate(zip(documents, answers, texts, strict=True))
    ]


def _spell_stops(chat: ChatTemplate) -> list[str]:
    spelled = {token: name for name, token in chat.tokenizer.control_ids.items()}
    return [spelled.get(token, f"id {token}") for token in chat.stop_ids]


def _grade_text(
    task: GenerateTask,
    document: Document,
    answered: tuple[Generated, str, dict[str, Any]],
    guesses: Mapping[str, str],
) -> Graded:
    answer, text, settings = answered

    def is_right(candidate: str) -> Ratio:
        reference = apply_filters(document.target, task.filters)
        return Ratio(float(_MATCHES[task.match](apply_filters(candidate, task.filters), reference)))

    return Graded(
        metrics={"exact_match": is_right(text), "stopped": Ratio(float(answer.stopped))},
        baselines={name: is_right(guess) for name, guess in guesses.items()},
        arguments=[[_prompt_text(document), settings]],
        responses=[[text]],
        filtered=[apply_filters(text, task.filters)],
        truncated=answer.truncated,
    )


def _ask_options(documents: Sequence[Document], task: ChoiceTask, chat: ChatTemplate) -> list[Score]:
    return [_ask_option(document, option, chat) for document in documents for option in document.options]


def _grade_choices(
    documents: Sequence[Document], task: ChoiceTask, chat: ChatTemplate, answers: Sequence[Scored]
) -> list[Graded]:
    remaining = iter(answers)
    majority = _guess("majority", documents)
    return [
        _grade_choice(document, [next(remaining) for _ in document.options], guess)
        for document, guess in zip(documents, majority, strict=True)
    ]


def _ask_option(document: Document, option: str, chat: ChatTemplate) -> Score:
    """Asks for the option's tokens as the assistant's content, what ends its turn left out."""
    turns = document.conversation.turns[:-1]
    conversation = msgspec.structs.replace(document.conversation, turns=(*turns, Turn("assistant", option)))
    encoded = chat.encode_conversation(conversation)
    is_option = encoded.turns == len(turns)
    length = int(np.flatnonzero(is_option)[-1]) + 1
    return Score(encoded.ids[:length], is_option[:length].astype(np.float32))


def _grade_choice(document: Document, answers: Sequence[Scored], guess: str) -> Graded:
    chosen = choose_options(
        [answer.log_likelihood for answer in answers], document.options, [answer.tokens for answer in answers]
    )
    responses = [[answer.log_likelihood, answer.is_greedy] for answer in answers]
    return Graded(
        metrics={name: Ratio(float(index == document.label)) for name, index in chosen._asdict().items()},
        baselines={
            "chance": Ratio(1 / len(document.options)),
            "majority": Ratio(float(guess == _majority_key(document))),
        },
        arguments=[[_prompt_text(document), option] for option in document.options],
        responses=[[response] for response in responses],
        filtered=responses,
        truncated=any(answer.truncated for answer in answers),
    )


def _ask_whole(documents: Sequence[Document], task: HeldoutTask, chat: ChatTemplate) -> list[Score]:
    encoded = [chat.encode_conversation(document.conversation) for document in documents]
    return [Score(each.ids, each.weights) for each in encoded]


def _grade_losses(
    documents: Sequence[Document], task: HeldoutTask, chat: ChatTemplate, answers: Sequence[Scored]
) -> list[Graded]:
    uniform = math.log(chat.tokenizer.vocab_size)
    return [
        Graded(
            metrics=_measure_loss(-answer.log_likelihood, answer.tokens, document.conversation),
            baselines={
                "uniform": _measure_loss(uniform * answer.tokens, answer.tokens, document.conversation)["bits_per_byte"]
            },
            arguments=[[_prompt_text(document), document.target]],
            responses=[[[answer.log_likelihood, answer.is_greedy]]],
            filtered=[[answer.log_likelihood, answer.is_greedy]],
            truncated=answer.truncated,
        )
        for document, answer in zip(documents, answers, strict=True)
    ]


def _measure_loss(nll: float, count: int, conversation: Conversation) -> dict[str, Ratio]:
    """Loss in nats per trained token, and bits per byte.

    Bits per byte = the bits of all assistant content and its end-of-turn tokens, over the UTF-8 bytes of that
    content: the same yardstick for every tokenizer, which loss is not.
    """
    size_bytes = sum(len(turn.content.encode()) for turn in conversation.turns if turn.role == "assistant")
    return {"bits_per_byte": Ratio(nll / math.log(2), size_bytes), "loss": Ratio(nll, count)}


def _guess(baseline: str, documents: Sequence[Document]) -> list[str]:
    """What a trivial baseline answers to each document."""
    if baseline == "ignore_rule":
        return [ignore_rule_answer(document.conversation) for document in documents]
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for document in documents:
        counts[document.conversation.language][_majority_key(document)] += 1
    best = {
        language: min(counter, key=lambda answer: (-counter[answer], answer)) for language, counter in counts.items()
    }
    return [best[document.conversation.language] for document in documents]


def _majority_key(document: Document) -> str:
    """The label where there are options, in the same order everywhere; else the reference itself."""
    return str(document.label) if document.options else document.target


def _prompt_text(document: Document) -> str:
    turns = [{"role": turn.role, "content": turn.content} for turn in document.conversation.turns[:-1]]
    return msgspec.json.encode(turns).decode()

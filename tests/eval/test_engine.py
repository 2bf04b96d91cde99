import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import TOLERANCE

from eval.config import EvalError
from eval.engine import Limits, answer_generations, answer_scores
from eval.request import Generate, Score
from model.parallel import AxisRules, MeshConfig, make_mesh
from model.transformer import apply

LIMITS = Limits(batch_tokens=1024, max_length=500)
STOP = 2
LONGEST = 96


def make_scores(count, seed=0):
    rng = np.random.default_rng(seed)
    requests = []
    for _ in range(count):
        ids = rng.integers(3, 64, rng.integers(4, 90)).astype(np.int32)
        asked = rng.integers(1, len(ids))
        requests.append(Score(ids, (np.arange(len(ids)) >= asked).astype(np.float32)))
    return requests


def make_prompts(count, seed=0):
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(3, 64, rng.integers(2, 70)).astype(np.int32) for _ in range(count)]
    return [Generate(prompt, max_new_tokens=6, stop_ids=(STOP,)) for prompt in prompts]


@functools.partial(jax.jit, static_argnums=0)
def log_probs_alone(model_key, params, ids_T, length):
    cfg, axes = model_key
    positions_BT = jnp.arange(LONGEST, dtype=jnp.int32)[None]
    segments_BT = (positions_BT < length).astype(jnp.int32)
    return jax.nn.log_softmax(apply(cfg, axes, params, ids_T[None], segments_BT, positions_BT)[0], axis=-1)


def run_alone(model, ids):
    """The plain way: one request in one row, the whole text at once, full log-softmax."""
    padded = np.zeros(LONGEST, np.int32)
    padded[: len(ids)] = ids
    return np.asarray(log_probs_alone(model[:2], model.params, padded, np.int32(len(ids))))


def score_alone(model, request):
    log_probs = run_alone(model, request.ids)
    asked = np.flatnonzero(request.weights)
    is_greedy = (log_probs[asked - 1].argmax(-1) == request.ids[asked]).all()
    return float(log_probs[asked - 1, request.ids[asked]].sum()), bool(is_greedy)


def generate_alone(model, request):
    new = []
    while len(new) < request.max_new_tokens:
        ids = [*request.prompt, *new]
        token = int(run_alone(model, ids)[len(ids) - 1].argmax())
        if token in request.stop_ids:
            return new, True
        new.append(token)
    return new, False


def test_packed_scores_equal_one_request_at_a_time(tiny_model):
    requests = make_scores(9)
    for answer, request in zip(answer_scores(tiny_model, requests, LIMITS), requests, strict=True):
        log_likelihood, is_greedy = score_alone(tiny_model, request)
        assert answer.log_likelihood == pytest.approx(log_likelihood, rel=TOLERANCE["rtol"])
        assert (answer.tokens, answer.is_greedy) == (request.weights.sum(), is_greedy)


def test_scores_do_not_depend_on_company_order_or_batch_size(tiny_model):
    requests = make_scores(40)
    together = [answer.log_likelihood for answer in answer_scores(tiny_model, requests, LIMITS)]
    turned = [answer.log_likelihood for answer in answer_scores(tiny_model, requests[::-1], LIMITS)][::-1]
    small = [a.log_likelihood for a in answer_scores(tiny_model, requests, Limits(batch_tokens=256, max_length=500))]
    alone = [answer_scores(tiny_model, [request], LIMITS)[0].log_likelihood for request in requests[:5]]
    np.testing.assert_allclose(turned, together, **TOLERANCE)
    np.testing.assert_allclose(small, together, **TOLERANCE)
    np.testing.assert_allclose(alone, together[:5], **TOLERANCE)
    assert answer_scores(tiny_model, requests, LIMITS) == answer_scores(tiny_model, requests, LIMITS)


def test_scores_of_several_turns_add_up(tiny_model):
    ids = np.arange(3, 23, dtype=np.int32)
    first, second = np.zeros(20, np.float32), np.zeros(20, np.float32)
    first[5:8], second[15:] = 1, 1
    parts = answer_scores(tiny_model, [Score(ids, first), Score(ids, second), Score(ids, first + second)], LIMITS)
    assert parts[0].log_likelihood + parts[1].log_likelihood == pytest.approx(
        parts[2].log_likelihood, rel=TOLERANCE["rtol"]
    )


def test_greedy_flag_is_true_for_the_models_own_choice(tiny_model):
    prompt = np.array([1, 5, 9, 12], np.int32)
    (made,) = answer_generations(tiny_model, [Generate(prompt, 3, (STOP,))], LIMITS)
    assert len(made.ids) == 3
    ids = np.concatenate([prompt, np.array(made.ids, np.int32)])
    weights = (np.arange(len(ids)) >= len(prompt)).astype(np.float32)
    other = ids.copy()
    other[-1] = (other[-1] + 1) % 64
    answers = answer_scores(tiny_model, [Score(ids, weights), Score(other, weights)], LIMITS)
    assert [answer.is_greedy for answer in answers] == [True, False]


def test_batched_generations_equal_one_prompt_at_a_time(tiny_model):
    requests = make_prompts(11)
    for answer, request in zip(answer_generations(tiny_model, requests, LIMITS), requests, strict=True):
        assert (answer.ids, answer.stopped) == generate_alone(tiny_model, request)


def test_generations_do_not_depend_on_company_or_order(tiny_model):
    requests = make_prompts(11)
    together = answer_generations(tiny_model, requests, LIMITS)
    assert answer_generations(tiny_model, requests[::-1], LIMITS)[::-1] == together
    assert answer_generations(tiny_model, requests, Limits(batch_tokens=80, max_length=500)) == together


def test_a_stop_token_ends_the_answer_and_is_left_out(tiny_model):
    request = make_prompts(1)[0]
    (free,) = answer_generations(tiny_model, [request], LIMITS)
    stop = free.ids[2]
    (ended,) = answer_generations(tiny_model, [request._replace(stop_ids=(stop,))], LIMITS)
    assert ended.stopped and ended.ids == free.ids[: free.ids.index(stop)]
    assert not free.stopped


def test_long_prompts_keep_the_first_id_and_are_counted(tiny_model):
    prompt = np.arange(3, 53, dtype=np.int32)
    cut = np.concatenate([prompt[:1], prompt[-19:]])
    long, short = answer_generations(
        tiny_model, [Generate(prompt, 4, (STOP,)), Generate(cut, 4, (STOP,))], Limits(1024, max_length=20)
    )
    assert long.ids == short.ids
    assert (long.truncated, short.truncated) == (True, False)


def test_long_scores_lose_context_never_an_answer(tiny_model):
    ids = np.arange(3, 53, dtype=np.int32)
    weights = (np.arange(50) >= 45).astype(np.float32)
    cut = np.concatenate([ids[:1], ids[-20:]])
    short = Score(cut, (np.arange(21) >= 16).astype(np.float32))
    answers = answer_scores(tiny_model, [Score(ids, weights), short], Limits(1024, max_length=20))
    assert answers[0].log_likelihood == pytest.approx(answers[1].log_likelihood, rel=TOLERANCE["rtol"])
    assert [answer.truncated for answer in answers] == [True, False]
    with pytest.raises(EvalError, match="max_length to 40"):
        answer_scores(tiny_model, [Score(ids, (np.arange(50) >= 11).astype(np.float32))], Limits(1024, max_length=20))


def test_requests_of_different_kinds_are_not_mixed(tiny_model):
    prompt = np.array([1, 5], np.int32)
    with pytest.raises(EvalError, match="answer them apart"):
        answer_generations(tiny_model, [Generate(prompt, 4, (2,)), Generate(prompt, 5, (2,))], LIMITS)


@pytest.mark.parametrize("mesh", [MeshConfig(fsdp=8), MeshConfig(fsdp=4, tensor=2)])
def test_answers_are_the_same_on_another_mesh(tiny_model, make_model, mesh):
    scores, prompts = make_scores(12), make_prompts(5)
    expected = [answer.log_likelihood for answer in answer_scores(tiny_model, scores, LIMITS)]
    made = answer_generations(tiny_model, prompts, LIMITS)
    # One key head cannot be split over two devices, so heads stay whole here.
    other = make_model(make_mesh(mesh), AxisRules(heads=None))
    with jax.set_mesh(make_mesh(mesh)):
        answers = [answer.log_likelihood for answer in answer_scores(other, scores, LIMITS)]
        np.testing.assert_allclose(answers, expected, **TOLERANCE)
        assert answer_generations(other, prompts, LIMITS) == made

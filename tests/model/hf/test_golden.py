"""Every golden model decoded, packed, windowed, rounded and spread over devices, against the reference's values.

`test_families` compares the logits of whole rows; here is what else must not change them. A model is compiled twice for
all of this, once with and once without a cache, and always with vocabulary padding, whose rows are loud.
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import msgspec
import numpy as np
import pytest
from toy import AXES, copy_to_host, mesh_of

from model.config import ComputeConfig, DynamicScaling, ModelConfig, RopeScaling, group_layers
from model.hf.hub import open_hub
from model.hf.registry import read_model
from model.moe import RouterSums
from model.parallel import UNSHARDED, MeshConfig, make_mesh
from model.rope import depends_on_length
from model.transformer import Params, apply_cached, apply_routed, empty_cache
from train.loss import load_balance_loss, router_z_loss

FOLDERS = Path(__file__).resolve().parents[2] / "golden" / "families"
MODELS = {path.name: read_model(json.loads((path / "config.json").read_text())) for path in sorted(FOLDERS.iterdir())}
NAMES = list(MODELS)

LARGEST_DIFFERENCE = 1e-4
"""Of a logit in float32, whose spread is two to three."""
BFLOAT16_BOUND = 2.0
"""Root mean square of what bfloat16 does to our logits, in units of what it does to the reference's own."""
UNSEEN, SEEN = 1e-5, 1e-3
"""What a token that is not seen may change a logit by, from the order of sums, and one that is seen must at least."""
PADDING = 3
ROWS, WIDTH = 4, 56
"""Of a batch without a cache: room for two golden rows, or for a prompt and its continuation."""
ROW = 24
SHORT = 9
"""Less than the original length of scalings that the golden rows go past."""
NEW = 32


class Model(NamedTuple):
    """A golden folder, opened. The parameters are on the host; those of vocabulary padding would win every choice."""

    cfg: ModelConfig
    params: Params
    golden: dict[str, np.ndarray]


class Cached(NamedTuple):
    """The two golden rows, and the prompt and what it was continued with, token by token."""

    tokens_BT: np.ndarray
    logits_BTV: np.ndarray


def one_of_each(is_wanted: Callable[[ModelConfig], bool] = lambda cfg: True) -> list[str]:
    """The first golden folder of each family that is wanted."""
    wanted = [(family.model_type, name) for name, (family, cfg) in MODELS.items() if is_wanted(cfg)]
    return list({model_type: name for model_type, name in reversed(wanted)}.values())


@functools.cache
def model_of(name: str) -> Model:
    with jax.set_mesh(mesh_of((1, 1))):
        hub = open_hub(FOLDERS / name)
        params = copy_to_host(hub.load(UNSHARDED, dtype=np.dtype("float32"), vocab_padding=PADDING))
    noise = 10 * np.random.default_rng(0).standard_normal((PADDING, hub.cfg.dim)).astype(np.float32)
    params["embedding"]["weight"][hub.cfg.vocab_size :] = noise
    if not hub.cfg.tied_head:
        params["head"]["weight"][:, hub.cfg.vocab_size :] = noise.T
    with np.load(FOLDERS / name / "golden.npz") as golden:
        return Model(msgspec.structs.replace(hub.cfg, vocab_padding=PADDING), params, dict(golden))


@functools.partial(jax.jit, static_argnames=("cfg", "axes", "compute"))
def forward(cfg, params, tokens_BT, segments_BT, positions_BT, *, axes=UNSHARDED, compute=ComputeConfig()):
    return apply_routed(cfg, axes, params, tokens_BT, segments_BT, positions_BT, compute=compute)


@functools.partial(jax.jit, static_argnames="cfg")
def decode(cfg, params, tokens_BT, is_given_BT, text_lengths_B):
    """Tokens and logits, one token a call: the one given, or the likeliest after those before it."""
    rows, slots = tokens_BT.shape
    cache = empty_cache(cfg, UNSHARDED, batch=rows, slots=slots, compute=ComputeConfig())

    def take_step(carry, given):
        cache, likeliest_B = carry
        at, token_B, is_given_B = given
        token_B = jnp.where(is_given_B, token_B, likeliest_B)
        positions_B1 = jnp.full((rows, 1), at)
        logits_B1V, cache = apply_cached(
            cfg, UNSHARDED, params, token_B[:, None], positions_B1, cache, text_lengths_B=text_lengths_B
        )
        return (cache, jnp.argmax(logits_B1V[:, 0], axis=-1).astype(jnp.int32)), (token_B, logits_B1V[:, 0])

    start = (cache, jnp.zeros(rows, jnp.int32))
    _, (tokens_TB, logits_TBV) = jax.lax.scan(
        take_step, start, (jnp.arange(slots, dtype=jnp.int32), tokens_BT.T, is_given_BT.T)
    )
    return tokens_TB.T, logits_TBV.transpose(1, 0, 2)


@pytest.fixture(scope="module", autouse=True)
def _keep_no_programs():
    """Each takes hundreds of the 65,530 memory maps that Linux lets a process have, and more tests are to come."""
    yield
    forward.clear_cache()
    decode.clear_cache()


@functools.cache
def cached_of(name: str) -> Cached:
    model = model_of(name)
    rows = [*model.golden["tokens"], model.golden["prompt"]]
    tokens_BT, segments_BT = lay_out([[row] for row in rows])[:2]
    lengths_B = np.array([ROW, ROW, len(rows[2]) + NEW], np.int32)
    with jax.set_mesh(mesh_of((1, 1))):
        return Cached(*map(np.asarray, decode(model.cfg, model.params, tokens_BT, segments_BT > 0, lengths_B)))


def whole(model: Model, rows: list[list[np.ndarray]]) -> tuple[np.ndarray, RouterSums]:
    """Logits of at most `ROWS` rows of texts, and the router's sums over them: one program for all."""
    arrays = lay_out(rows + [[]] * (ROWS - len(rows)))
    with jax.set_mesh(mesh_of((1, 1))):
        logits_BTV, sums = forward(model.cfg, model.params, *arrays)
    return np.asarray(logits_BTV), copy_to_host(sums)


def lay_out(rows: list[list[np.ndarray]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, segments and positions of rows of texts, with padding behind."""
    tokens_BT, segments_BT, positions_BT = (np.zeros((len(rows), WIDTH), np.int32) for _ in range(3))
    for row, texts in enumerate(rows):
        at = 0
        for segment, text in enumerate(texts, 1):
            place = (row, slice(at, at + len(text)))
            tokens_BT[place], segments_BT[place], positions_BT[place] = text, segment, np.arange(len(text))
            at += len(text)
    return tokens_BT, segments_BT, positions_BT


def assert_same_logits(given, wanted):
    """Of real ids, which padding must not have moved."""
    np.testing.assert_allclose(given[..., : wanted.shape[-1]], wanted, rtol=0, atol=LARGEST_DIFFERENCE)


@pytest.mark.parametrize("name", NAMES)
def test_a_greedy_continuation_from_the_cache_is_the_reference_s(name):
    """Where rotations depend on the length of a text, ours fixes beforehand how long it may become, and the reference
    starts over at every token. They agree while the text stays on one side of the original length; for all others,
    each token of the reference is chosen from the whole text before it, which then has that length."""
    model, golden = model_of(name), model_of(name).golden
    prompt, continuation = golden["prompt"], golden["continuation"]
    if stays_on_one_side(model.cfg, len(prompt)):
        answered = cached_of(name).tokens_BT[2, len(prompt) : len(prompt) + NEW]
        np.testing.assert_array_equal(answered, continuation)
    else:
        assert_chosen_from_whole_texts(model, prompt, continuation)
    if "crossing_prompt" in golden:
        assert not stays_on_one_side(model.cfg, len(golden["crossing_prompt"]))
        assert_chosen_from_whole_texts(model, golden["crossing_prompt"], golden["crossing_continuation"])


def stays_on_one_side(cfg: ModelConfig, prompt_length: int) -> bool:
    """Whether a text is rotated alike from its prompt to the end of its continuation."""

    def is_kept(scaling: RopeScaling | None) -> bool:
        original = getattr(scaling, "original_length", 0)
        is_beyond = prompt_length > original and not isinstance(scaling, DynamicScaling)
        return is_beyond or prompt_length + NEW <= original

    ropes = [kind.rope for kind in cfg.kinds if kind.rope is not None and depends_on_length(kind.rope)]
    return all(is_kept(rope.scaling) for rope in ropes)


def assert_chosen_from_whole_texts(model: Model, prompt: np.ndarray, continuation: np.ndarray):
    text = np.concatenate([prompt, continuation])
    for first in range(len(prompt), len(text), ROWS):
        lengths = list(range(first, min(first + ROWS, len(text))))
        logits_BTV, _ = whole(model, [[text[:length]] for length in lengths])
        chosen = [int(logits_BTV[row, length - 1].argmax()) for row, length in enumerate(lengths)]
        assert chosen == text[lengths].tolist()


@pytest.mark.parametrize("name", NAMES)
def test_logits_from_the_cache_are_those_of_the_whole_text(name):
    model, cached = model_of(name), cached_of(name)
    assert_same_logits(cached.logits_BTV[:2, :ROW], model.golden["logits"])
    length = len(model.golden["prompt"]) + NEW
    text = cached.tokens_BT[2, :length]
    assert_same_logits(cached.logits_BTV[2, :length], whole(model, [[text]])[0][0, :length, : model.cfg.vocab_size])


@pytest.mark.parametrize("name", NAMES)
def test_packed_texts_have_the_logits_they_have_alone(name):
    model = model_of(name)
    first, second = model.golden["tokens"]
    short = second[:SHORT]
    logits_BTV, _ = whole(model, [[first, second], [short, first, short], [short]])
    together, between, alone = logits_BTV[:3, : 2 * ROW]
    assert_same_logits(together, np.concatenate(model.golden["logits"]))
    assert_same_logits(between[SHORT : SHORT + ROW], model.golden["logits"][0])
    for at in (0, SHORT + ROW):
        assert_same_logits(between[at : at + SHORT], alone[:SHORT, : model.cfg.vocab_size])


@pytest.mark.parametrize("name", NAMES)
def test_an_id_of_vocabulary_padding_is_never_chosen(name):
    model, cached = model_of(name), cached_of(name)
    logits_BTV, _ = whole(model, [list(model.golden["tokens"])])
    for logits in (logits_BTV, cached.logits_BTV):
        np.testing.assert_array_equal(logits[..., model.cfg.vocab_size :], np.finfo(np.float32).min)
    assert cached.tokens_BT.max() < model.cfg.vocab_size


def reach_of(cfg: ModelConfig) -> int:
    """How many tokens before its own a logit depends on; 0: all."""
    windows = [kind.window for kind in cfg.kinds]
    return sum(window - 1 for window in windows) if all(windows) else 0


def changes_of_the_last_logits(model: Model) -> tuple[float, float]:
    """How much they move with all tokens that are out of reach, and with the farthest one within."""
    rng = np.random.default_rng(1)
    text = rng.integers(0, model.cfg.vocab_size, WIDTH).astype(np.int32)
    other = (text + rng.integers(1, model.cfg.vocab_size, WIDTH).astype(np.int32)) % model.cfg.vocab_size
    at, farthest = np.arange(WIDTH), WIDTH - 1 - reach_of(model.cfg)
    rows = [text, np.where(at < farthest, other, text), np.where(at == farthest, other, text)]
    logits_BV = whole(model, [[row] for row in rows])[0][:, -1, : model.cfg.vocab_size]
    return np.abs(logits_BV[1] - logits_BV[0]).max(), np.abs(logits_BV[2] - logits_BV[0]).max()


@pytest.mark.parametrize("name", [name for name in NAMES if 0 < reach_of(MODELS[name][1]) < WIDTH - 1])
def test_left_context_beyond_all_windows_changes_nothing(name):
    beyond, farthest = changes_of_the_last_logits(model_of(name))
    assert beyond <= UNSEEN and farthest >= SEEN


def has_mixed_windows(cfg: ModelConfig) -> bool:
    return {kind.window > 0 for kind in cfg.kinds} == {False, True}


@pytest.mark.parametrize("name", one_of_each(has_mixed_windows))
def test_a_layer_with_a_window_sees_no_further_where_others_see_everything(name):
    """As a model of that layer alone; golden logits say which layers have one."""
    cfg, params, golden = model_of(name)
    stack = next(stack for group in group_layers(cfg.kinds) for stack in group if stack.kind.window)
    layer = jax.tree.map(lambda leaf: leaf[:1], params["layers"][stack.name])
    alone = Model(
        msgspec.structs.replace(cfg, num_layers=1, layers=(stack.kind,)), {**params, "layers": {"0": layer}}, golden
    )
    beyond, farthest = changes_of_the_last_logits(alone)
    assert beyond <= UNSEEN and farthest >= SEEN


@pytest.mark.parametrize("name", one_of_each())
def test_bfloat16_moves_logits_no_more_than_it_moves_the_reference_s(name):
    model = model_of(name)
    wanted = model.golden["logits"]
    arrays = lay_out([[row] for row in model.golden["tokens"]])
    with jax.set_mesh(mesh_of((1, 1))):
        logits_BTV, _ = forward(model.cfg, model.params, *arrays, compute=ComputeConfig(dtype="bfloat16"))
    theirs = model.golden["logits_bfloat16"].view(ml_dtypes.bfloat16).astype(np.float32)
    ours = np.asarray(logits_BTV)[:, :ROW, : model.cfg.vocab_size]
    assert root_mean_square(ours - wanted) <= BFLOAT16_BOUND * root_mean_square(theirs - wanted)
    assert root_mean_square(ours - wanted) >= LARGEST_DIFFERENCE


def root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))


def assert_same_router_losses(sums: RouterSums, golden: dict[str, np.ndarray]):
    sums = jax.tree.map(jnp.asarray, sums)
    np.testing.assert_allclose(load_balance_loss(sums), golden["load_balance_loss"], rtol=1e-5)
    np.testing.assert_allclose(router_z_loss(sums), golden["z_loss"], rtol=1e-5)


def counted_texts(golden: dict[str, np.ndarray]) -> list[list[np.ndarray]]:
    """The golden rows, as far as the router losses count them."""
    counts = golden["router_mask"].sum(axis=1) if "router_mask" in golden else (ROW, ROW)
    return [[row[:count]] for row, count in zip(golden["tokens"], counts, strict=True)]


@pytest.mark.parametrize("name", [name for name in NAMES if MODELS[name][1].experts])
def test_router_losses_are_the_reference_s(name):
    model = model_of(name)
    assert_same_router_losses(whole(model, counted_texts(model.golden))[1], model.golden)


@pytest.mark.parametrize("name", ["bloom_hub", "gemma2_capped", "olmo2_grouped", "olmoe_hub"])
def test_eight_devices_give_what_one_does(name):
    golden = model_of(name).golden
    texts = counted_texts(golden)
    with jax.set_mesh(make_mesh(MeshConfig(fsdp=2, expert=2, tensor=2))):
        hub = open_hub(FOLDERS / name)
        padding = -hub.cfg.vocab_size % 2
        cfg = msgspec.structs.replace(hub.cfg, vocab_padding=padding)
        params = hub.load(AXES, dtype=np.dtype("float32"), vocab_padding=padding)
        arrays = [jax.device_put(array_BT, AXES.spec("batch", None)) for array_BT in lay_out([*texts, *texts])]
        logits_BTV, sums = forward(cfg, params, *arrays, axes=AXES)
    for row, (text,) in enumerate([*texts, *texts]):
        assert_same_logits(np.asarray(logits_BTV)[row, : len(text)], golden["logits"][row % 2, : len(text)])
    if hub.cfg.experts:
        assert_same_router_losses(copy_to_host(sums), golden)

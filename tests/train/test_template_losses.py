"""The loss of packed conversations is the sum of their separate losses, for every template, through the real model."""

import functools

import jax
import msgspec
import numpy as np
import pytest
from golden_templates import list_conversations, make_folder
from hub_folders import write_folder
from toy import AXES, TOLERANCE, TOY, Example, copy_to_host, lay_out, mesh_of

from data.chat import list_templates, load_chat
from data.packing import pack_best_fit
from data.source_config import LossConfig
from data.tokenizer import load_tokenizer
from model.config import ComputeConfig
from model.transformer import init
from train.step import StepSpec, loss_sums

LENGTH = 1024
"""Positions of a row; every golden conversation fits."""
LANGUAGES = ("", "ar", "en", "fr", "he", "ja", "sw", "th", "vi")
MODEL = msgspec.structs.replace(TOY, vocab_size=512)
SPEC = StepSpec(
    model=MODEL, axes=AXES, compute=ComputeConfig(), num_languages=len(LANGUAGES), most_trained=LENGTH
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = tmp_path_factory.mktemp("golden")
    write_folder(directory, make_folder())
    return load_tokenizer(directory)


@pytest.fixture(scope="module")
def sum_row():
    """The sums of one row of `LENGTH` positions: one compiled program for everything here."""
    with jax.set_mesh(mesh_of((1, 1))):
        params = copy_to_host(jax.jit(init, static_argnums=(0, 1))(MODEL, AXES, jax.random.key(0)))
        compiled = jax.jit(functools.partial(loss_sums, SPEC))
        yield lambda batch: copy_to_host(compiled(params, batch))


def add_up(sum_row, rows):
    """Loss and weight by language of rows of examples, added in NumPy."""
    sums = [sum_row(lay_out([examples], LENGTH)) for examples in rows]
    return sum(each.loss_R for each in sums), sum(each.weight_R for each in sums)


@pytest.mark.parametrize("name", list_templates())
def test_packed_loss_is_the_sum_of_separate_losses_for_every_template(tokenizer, sum_row, name):
    """Naive packing came out at 37.55 where separate rows had 44.14 (MeetKai/functionary#265)."""
    chat, loss = load_chat(tokenizer, name), LossConfig(prompt_weight=0.5)
    examples = []
    for each in list_conversations(name):
        encoded = chat.encode_conversation(each, loss)
        examples.append(Example(encoded.ids.tolist(), encoded.weights.tolist(), LANGUAGES.index(each.language)))
    bins = pack_best_fit([len(each.ids) - 1 for each in examples], LENGTH)
    assert len(bins) < len(examples)
    packed = add_up(sum_row, [[examples[index] for index in members] for members in bins])
    separate = add_up(sum_row, [[each] for each in examples])
    np.testing.assert_allclose(packed[0], separate[0], **TOLERANCE)
    np.testing.assert_array_equal(packed[1], separate[1])
    assert packed[1].sum() == sum(sum(each.weights[1:]) for each in examples)
    # As one segment they see each other, and the loss is another: what is tested here can fail.
    joined = lay_out([[examples[index] for index in max(bins, key=len)]], LENGTH)
    leaking = joined._replace(segments_BT=np.minimum(joined.segments_BT, 1))
    assert not np.allclose(sum_row(leaking).loss_R, sum_row(joined).loss_R, **TOLERANCE)

"""Parameters out of folders and back: every number at its place, and every folder that does not fit refused."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from hub_models import write_hub_model
from toy import mesh_of

from model.hf.hub import open_hub
from model.hf.shards import FolderWriter, TensorSpec, plan_shards
from model.hf.tensor_file import TensorError
from model.hf.tensors import open_folder
from model.hf.weights import copy_blockwise, read_tensors
from model.parallel import AxisRules


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hub_model(tmp_path_factory.mktemp("hub") / "model", shard_bytes=9000, float32_norms=True)


def rewrite(folder, target, change):
    """A copy of the folder whose dict of arrays has been changed."""
    target.mkdir()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((folder / name).read_bytes())
    stored = open_folder(folder)
    arrays = {name: stored.read(name) for name in stored.names}
    change(arrays)
    specs = [TensorSpec(name, array.shape, array.dtype) for name, array in arrays.items()]
    with FolderWriter(target, plan_shards(specs, 10**9)) as writer:
        for name, array in arrays.items():
            writer.write(name, array)
    return target


@pytest.mark.parametrize("mesh", [(1, 1), (8, 1), (4, 2)])
def test_a_folder_comes_back_bit_for_bit_from_any_mesh(folder, mesh):
    """Padding the vocabulary, which a mesh may need, leaves no trace."""
    hub, stored = open_hub(folder), open_folder(folder)
    padding = 2
    dtypes = {name: stored.dtype(name) for name in stored.names}
    with jax.set_mesh(mesh_of(mesh)):
        params = hub.load(AxisRules(), dtype=None, vocab_padding=padding)
        assert params["embedding"]["weight"].shape[0] == hub.cfg.vocab_size + padding
        assert not np.asarray(params["embedding"]["weight"])[-padding:].any()
        assert not np.asarray(params["head"]["weight"])[:, -padding:].any()
        written = dict(read_tensors(hub.family, hub.cfg, params, dtypes))
    assert written.keys() == set(stored.names)
    for name, array in written.items():
        assert array.dtype == dtypes[name]
        assert array.tobytes() == stored.read(name).tobytes(), name


def test_numbers_of_a_linear_layer_are_where_the_names_say(folder, one_device):
    """A transposed or misplaced square matrix gives no error, only a model that has forgotten everything."""
    stored, params = open_folder(folder), open_hub(folder).load(AxisRules(), dtype=np.dtype(np.float32))
    query = stored.read("model.layers.1.self_attn.q_proj.weight", np.float32)
    head, dim_of_head, width = 3, 2, 7
    ours = params["layers"]["0"]["attention"]["query"]["weight"]
    assert ours[1, width, head, dim_of_head] == query[head * 4 + dim_of_head, width]
    out = stored.read("model.layers.0.self_attn.o_proj.weight", np.float32)
    ours = params["layers"]["0"]["attention"]["out"]["weight"]
    assert ours[0, head, dim_of_head, width] == out[width, head * 4 + dim_of_head]
    down = stored.read("model.layers.1.mlp.down_proj.weight", np.float32)
    assert params["layers"]["0"]["mlp"]["down"]["weight"][1, 20, 5] == down[5, 20]


@pytest.mark.parametrize("axes", [(1, 0), (0, 1), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0)])
def test_copying_in_blocks_is_copying(axes):
    rng = np.random.default_rng(0)
    shape = (131, 260) if len(axes) == 2 else (5, 131, 140)
    source = rng.normal(size=shape).astype(np.float32).transpose(axes)
    target = np.zeros(source.shape, ml_dtypes.bfloat16)
    copy_blockwise(target, source)
    np.testing.assert_array_equal(target, source.astype(ml_dtypes.bfloat16))


K_PROJ = "model.layers.1.self_attn.k_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop(K_PROJ), rf"holds no tensor '{K_PROJ}', which a llama of 2 layers has"),
        (
            lambda arrays: arrays.update({"model.layers.2.self_attn.k_proj.weight": arrays[K_PROJ]}),
            r"model.safetensors holds tensor 'model.layers.2.self_attn.k_proj.weight', which a llama .* would be lost",
        ),
        (
            lambda arrays: arrays.update({K_PROJ: arrays[K_PROJ].T.copy()}),
            rf"model.safetensors: tensor '{K_PROJ}' has shape \(16, 8\); config.json asks for \(8, 16\)",
        ),
    ],
    ids=["missing", "left over", "wrong shape"],
)
def test_tensors_that_do_not_fit_the_config_are_refused_by_file_and_name(folder, tmp_path, change, message):
    with pytest.raises(TensorError, match=message):
        open_hub(rewrite(folder, tmp_path / "bad", change))


def test_integer_weights_are_refused_by_file_and_name(folder, tmp_path):
    """A quantised folder read as numbers would give a model of noise."""
    path = tmp_path / "bad"
    rewrite(folder, path, lambda arrays: None)
    file = path / "model.safetensors"
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header[K_PROJ]["dtype"] = "I16"
    changed = json.dumps(header, separators=(",", ":")).encode().ljust(length)
    assert len(changed) == length
    file.write_bytes(raw[:8] + changed + raw[8 + length :])
    with pytest.raises(TensorError, match=rf"model.safetensors.*{K_PROJ}.*I16"):
        open_hub(path)


def test_a_head_that_config_json_says_is_tied_must_equal_the_embedding(folder, tmp_path):
    """Reading only one of the two silently drops the other."""

    def tie(path, *, equal):
        def change(arrays):
            if equal:
                arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"].copy()

        rewrite(folder, path, change)
        values = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**values, "tie_word_embeddings": True}))
        return path

    assert open_hub(tie(tmp_path / "equal", equal=True)).cfg.tied_head
    with pytest.raises(TensorError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        open_hub(tie(tmp_path / "other", equal=False))


def test_a_number_too_large_for_the_asked_dtype_is_an_error_not_an_infinity(folder, one_device):
    hub = open_hub(folder)
    params = hub.load(AxisRules(), dtype=np.dtype(np.float32))
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(1e6)
    dtypes = dict.fromkeys(open_folder(folder).names, np.dtype(np.float16))
    with pytest.raises(TensorError, match=r"'model.norm.weight' holds numbers that float16 cannot"):
        list(read_tensors(hub.family, hub.cfg, params, dtypes))

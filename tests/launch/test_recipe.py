"""Recipes: a mistake names its path, its value and what would be right; a written recipe is the same one."""

import hashlib
import os
import string
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from data.bad_rows import BadRows
from data.config import DataConfig
from data.mixture_config import MixtureConfig
from data.source_config import CldrSource, FileSource, LanguageRule, MessageTemplate
from data.sources import load_source
from launch.config import FREE_TO_CHANGE, Recipe, RecipeError, RunConfig
from launch.recipe import (
    decode_recipe,
    load_recipe,
    recipe_tree,
    shipped_recipes,
    write_recipe,
)
from launch.stored_recipe import check_same_run
from model.config import ModelConfig
from train.config import OptimConfig, TrainConfig

TEXT = """
run: {dir: runs/mine}
model: {num_layers: 4, dim: 128, num_heads: 4, num_kv_heads: 2, head_dim: 32, mlp_dim: 384}
data:
  sources:
    - {kind: cldr, languages: [no, sw]}
    - kind: files
      name: qa
      path: "*.jsonl"
      language: {field: lang}
      messages:
        - {role: user, content: "{{ question }}"}
        - {each: turns, messages: [{role: assistant, content: "{{ item }}"}]}
  mixture: {temperature: 3, language_weights: {no: 2, yo: 0.5}}
optim: {learning_rate: 1e-3}
train: {steps: 100, batch_rows: 16}
"""


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


def error_of(recipe_file, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file, overrides)
    message = str(caught.value)
    assert "`" not in message
    assert "\n" not in message
    return message.removeprefix(f"recipe {recipe_file}: ")


def test_yaml_is_1_2(recipe_file):
    """In YAML 1.1, as most loaders read it, `no` is False and 1e-3 is the text '1e-3'."""
    recipe = load_recipe(recipe_file)
    assert recipe.data.sources[0] == CldrSource(languages=("no", "sw"))
    assert recipe.data.mixture.language_weights == {"no": 2.0, "yo": 0.5}
    assert recipe.optim.learning_rate == 1e-3
    assert isinstance(recipe.data.sources[1], FileSource)


def test_overrides_are_typed_by_yaml_and_reach_everywhere(recipe_file):
    recipe = load_recipe(
        recipe_file,
        [
            "train.steps=7", "optim.learning_rate=1e-4", "run.dir=runs/a=b", "compute.remat=block",
            "data.sources.0.languages=[no, yes]", "data.mixture.language_weights.no=0",
            "data.sources.1.messages.0.content=hi",
            "data.sources.1.where=", "checkpoint.keep_every=50", "model.tied_head=false",
        ],
    )  # fmt: skip
    assert (recipe.train.steps, recipe.optim.learning_rate, recipe.run.dir) == (7, 1e-4, "runs/a=b")
    assert recipe.data.sources[0] == CldrSource(languages=("no", "yes"))
    assert recipe.data.mixture.language_weights == {"no": 0.0, "yo": 0.5}
    source = recipe.data.sources[1]
    assert isinstance(source, FileSource)
    assert (source.messages[0].content, source.where) == ("hi", None)
    assert (recipe.compute.remat, recipe.checkpoint.keep_every, recipe.model.tied_head) == (
        "block",
        50,
        False,
    )


MISTAKES = [
    ("train.stepz=3", "train.stepz: unknown key (value 3). Did you mean train.steps? Known keys there: b"),
    ("trian.steps=3", "trian: unknown key (value {'steps': 3}). Did you mean train? Known keys there: axes, che"),
    ("zzz=1", "zzz: unknown key (value 1). Known keys there: axes, checkpoint, compute, data"),
    ("train.steps=abc", "train.steps: expected int | null, got str (value 'abc')"),
    ("train.steps=1.5", "train.steps: expected int | null, got float (value 1.5)"),
    ("train.steps=true", "train.steps: expected int | null, got bool (value True)"),
    ("train.steps=-1", "train.steps: expected int >= 1 (value -1)"),
    ("train=", "train: expected object, got null (value None)"),
    ("run.dir=5", "run.dir: expected str, got int (value 5)"),
    ("optim.learning_rate=0", "optim.learning_rate: expected float > 0.0 (value 0)"),
    ("optim.learning_rate=.inf", "optim.learning_rate: inf is not a finite number; give one"),
    ("optim.learning_rate=.nan", "optim.learning_rate: nan is not a finite number; give one"),
    ("compute.dtype=fp16", "compute.dtype: 'fp16' is not one of bfloat16, float32. Did you mean 'bfloat16'?"),
    ("optim.lr_scheduler_type=cosin",
     "optim.lr_scheduler_type: 'cosin' is not one of constant, cosine, inverse_sqrt, linear, "),
    ("data.sources.0.kind=clr", "data.sources.0.kind: 'clr' is not one of cldr, files, procedural. "
     "Did you mean 'cldr'?"),
    ("data.sources.0.fcts=3",
     "data.sources.0.fcts: unknown key (value 3). Did you mean data.sources.0.facts?"),
    ("data.sources.0={knd: cldr}",
     "data.sources.0.kind: required and not given; is data.sources.0.knd meant"),
    ("data.sources.0={kind: 3}", "data.sources.0.kind: expected str, got int (value 3)"),
    ("data.sources.1.messages.0.role=usr",
     "data.sources.1.messages.0.role: 'usr' is not one of assistant, system, tool, user. Did you mean 'user"),
    ("data.sources.1.messages.1.messages.0.contnt=x",
     "data.sources.1.messages.1.messages.0.contnt: unknown key"),
    ("data.sources.1.language.constant=en",
     "data.sources.1.language: give exactly one of field, constant, file_name and path; 2 are given"),
    ("data.sources.1.messages.0.each=x",
     "data.sources.1.messages.0: a message has either role and content, or each"),
    ("data.mixture.language_weights.sw=much",
     "data.mixture.language_weights: expected float, got str (value {"),
    ("data.mixture.language_weights={1: 2}",
     "data.mixture.language_weights: expected str, got int (value {1: 2})"),
    ("data.mixture.temperature=0.5", "data.mixture.temperature: expected float >= 1.0 (value 0.5)"),
    ("model.num_kv_heads=3",
     "model: num_heads=4 is not a multiple of num_kv_heads=3; use one of [1, 2, 4] for"),
    ("model.head_dim=7", "model: rotary embedding of 7 dimensions (head_dim=7, fraction=1) has no pairs"),
    ("train.microbatches=3", "train: batch_rows=16 is not divisible by microbatches=3; use batch_rows=18"),
    ("mesh.tensor=0", "mesh.tensor: expected int >= 1 (value 0)"),
    ("train.steps", "override 'train.steps' is not key=value; write for example train.steps=100"),
    ("=5", "override '=5' is not key=value"),
    ("data.sources.7.facts=3", "override data.sources.7: '7' is not an index of a list of 2; use 0 to 1"),
    ("data.sources.x=3", "override data.sources.x: 'x' is not an index of a list of 2; use 0 to 1"),
    ("run.dir.x=3", "override run.dir: run.dir is the value 'runs/mine', it has no keys inside"),
    ("data.sources.0.languages.1.x=3",
     "override data.sources.0.languages.1: data.sources.0.languages.1 is the value"),
    ("run.dir=[a", "run.dir=[a is not valid YAML 1.2: while parsing a flow sequence"),
]  # fmt: skip


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_names_path_value_and_what_was_expected(recipe_file, override, message):
    assert error_of(recipe_file, override).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "is empty; it must be a mapping with run, model, data, ..."),
        (b"- 1", "is a list; it must be a mapping"),
        (b"train: {steps: 1}\ntrain: {steps: 2}\n", 'found duplicate key "train"'),
        (b"train: {steps: 1, steps: 2}\n", 'found duplicate key "steps"'),
        (b"run:\n\tdir: x\n", "is not valid YAML 1.2: .* line 2"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"run: {dir: x}\n", "model: required and not given"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_bytes(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dem", "no recipe 'dem'; did you mean demo?"),
        ("missing.yaml", "no recipe 'missing.yaml'"),
        ("/tmp", "'/tmp'"),
    ],
)
def test_a_recipe_that_is_not_there_lists_those_that_are(name, message):
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(name)
    assert ", ".join(shipped_recipes()) in str(caught.value)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_recipes(name, tmp_path):
    recipe = load_recipe(name)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe


def _paths(tree, prefix=()):
    """Every path to a key that a recipe names itself; keys of `language_weights` are the user's own."""
    if isinstance(tree, dict):
        for key, sub in tree.items():
            yield (*prefix, key)
            if key != "language_weights":
                yield from _paths(sub, (*prefix, key))
    elif isinstance(tree, list | tuple):
        for i, sub in enumerate(tree):
            yield from _paths(sub, (*prefix, i))


def _load_tree(text=TEXT):
    return YAML(typ="safe", pure=True).load(text)


ALL_PATHS = list(_paths(recipe_tree(decode_recipe(_load_tree(), "all"))))


@given(
    st.sampled_from(ALL_PATHS),
    st.integers(0, 20),
    st.sampled_from(["drop", "double", "swap", "add"]),
    st.data(),
)
@settings(max_examples=150)
def test_any_misspelled_key_is_reported_with_its_whole_path(path, at, how, data):
    tree = recipe_tree(decode_recipe(_load_tree(), "all"))
    *parents, key = path
    at %= len(key)
    wrong = {
        "drop": key[:at] + key[at + 1 :],
        "double": key[:at] + key[at] + key[at:],
        "swap": key[:at] + key[at : at + 2][::-1] + key[at + 2 :],
        "add": key[:at] + data.draw(st.sampled_from(string.ascii_lowercase)) + key[at:],
    }[how]
    node = tree
    for part in parents:
        node = list(node)[part] if isinstance(part, int) else node[part]
    assume(wrong and wrong not in node)
    node[wrong] = node.pop(key)
    with pytest.raises(RecipeError) as caught:
        decode_recipe(tree, "misspelled")
    assert ".".join(map(str, [*parents, wrong])) in str(caught.value)


text = st.text(max_size=12)
number = st.floats(1e-12, 1e12)
message = st.builds(MessageTemplate, role=st.sampled_from(["user", "assistant"]), content=text)
jsonl = st.builds(
    FileSource, name=text, path=text, messages=st.lists(message, max_size=2).map(tuple),
    language=st.builds(LanguageRule, constant=text), where=st.none() | text, weight=number,
)  # fmt: skip
cldr = st.builds(CldrSource, languages=st.tuples(text))
recipes = st.builds(
    Recipe,
    run=st.builds(RunConfig, dir=text, seed=st.integers(0, 2**31)),
    model=st.just(ModelConfig(num_layers=1, dim=8, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8)),
    data=st.builds(
        DataConfig, sources=st.lists(jsonl | cldr, max_size=2).map(tuple),
        mixture=st.builds(MixtureConfig, language_weights=st.dictionaries(text, number, max_size=3)),
    ),
    optim=st.builds(OptimConfig, learning_rate=number),
    train=st.builds(TrainConfig, steps=st.integers(1, 10**9), batch_rows=st.just(4)),
)  # fmt: skip


@given(recipes)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_written_recipe_is_the_same_recipe_whatever_its_texts_hold(tmp_path, recipe):
    """Names such as `no`, `1e3`, `~`, with colons, quotes and line ends too; and it is the same run."""
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe
    check_same_run(recipe, tmp_path, None)


def test_a_kill_while_writing_leaves_the_recipe_that_was_there(tmp_path, recipe_file, monkeypatch):
    """Half a recipe.yaml would be another recipe's: the run could never go on."""
    recipe = load_recipe(recipe_file)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: path.write_bytes(text[:20].encode()) and 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_recipe(recipe, tmp_path / "recipe.yaml")
    check_same_run(recipe, tmp_path, None)


FREE = [
    "run.dir=elsewhere", "compute.dtype=bfloat16", "compute.remat=block", "mesh.tensor=2", "axes.vocab=null",
    "checkpoint.save_every=7",
    "data.workers=2", "data.prefetch=5", "data.root=/data", "data.store=/store", "data.prepare_workers=3",
    "data.changed_plan=refuse", "train.log_every=3", "train.trackers=[]", "train.tracker_project=mine",
    "train.gradient_share=false", "train.profile=[2,3]", "train.peak_flops_per_s=1e12", "train.held_out_every=7",
    "data.held_out={sources: [{kind: cldr, languages: [sw]}], examples: 3}",
    "train.microbatches=4", "train.loss.head=full", "train.loss.chunk=64", "train.non_finite.action=stop",
    "train.stalled_after_s=60", "train.optimizer_memory=host",
]  # fmt: skip


def test_what_changes_no_result_may_change(tmp_path, recipe_file):
    write_recipe(load_recipe(recipe_file), tmp_path / "recipe.yaml")
    check_same_run(load_recipe(recipe_file, FREE), tmp_path, None)
    assert {override.split("=")[0].removesuffix(".dtype") for override in FREE} >= set(FREE_TO_CHANGE) - {
        "compute", "mesh", "axes", "checkpoint", "train.non_finite",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.seed=3", "run.seed: 0 there, 3 here"),
        ("train.steps=101", "train.steps: 100 there, 101 here"),
        ("train.batch_rows=32", "train.batch_rows: 16 there, 32 here"),
        ("optim.name=lion", "another recipe's run: optim.name: 'adamw' there, 'lion' here; "),
        ("optim.learning_rate=2e-3", "optim.learning_rate: 0.001 there, 0.002 here"),
        ("model.dim=64", "model.dim: 128 there, 64 here"),
        ("data.sources.0.languages=[no]", "data.sources.0.languages.1: 'sw' there, '(absent)' here"),
        ("data.mixture.language_weights={}", "data.mixture.language_weights: '(absent)' there, {} here"),
        ("data.packing.row_length=64", "data.packing.row_length: 512 there, 64 here"),
    ],
)
def test_another_recipe_s_run_is_refused_with_what_differs(tmp_path, recipe_file, override, message):
    write_recipe(load_recipe(recipe_file), tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="holds another recipe's run") as caught:
        check_same_run(load_recipe(recipe_file, [override]), tmp_path, None)
    assert message in str(caught.value)
    assert "Use another run.dir, or give the values it was started with" in str(caught.value)


@pytest.mark.parametrize("override", ["run.seed=3", "data.mixture.temperature=2", "data.packing.row_length=64"])
def test_data_may_change_where_the_recipe_accepts_another_plan_and_nothing_else_may(tmp_path, recipe_file, override):
    write_recipe(load_recipe(recipe_file), tmp_path / "recipe.yaml")
    accepting = ["data.changed_plan=accept", "data.mixture.language_weights={}", override]
    check_same_run(load_recipe(recipe_file, accepting), tmp_path, None)
    with pytest.raises(RecipeError, match=r"optim.learning_rate: 0.001 there, 0.002 here"):
        check_same_run(load_recipe(recipe_file, [*accepting, "optim.learning_rate=2e-3"]), tmp_path, None)


def test_an_empty_directory_holds_no_other_run(tmp_path, recipe_file):
    check_same_run(load_recipe(recipe_file), tmp_path, None)


def test_every_default_is_in_the_written_recipe(tmp_path, recipe_file):
    """The resolved recipe stands on its own, however the defaults of a later version move."""
    recipe = load_recipe(recipe_file)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    written = _load_tree((tmp_path / "recipe.yaml").read_text(encoding="utf-8"))
    assert written == _lists(recipe_tree(recipe))
    assert written["optim"]["b2"] == 0.95
    assert written["data"]["packing"]["row_length"] == 512
    assert written["checkpoint"]["keep_every"] is None


def _lists(tree):
    if isinstance(tree, dict):
        return {key: _lists(sub) for key, sub in tree.items()}
    return [_lists(sub) for sub in tree] if isinstance(tree, list | tuple) else tree


@pytest.mark.realdata
def test_real_cpu_reads_its_rows_by_detection_as_its_templates_once_did():
    """Numbers of the recipe that spelled out every field in Jinja: a form that read rows otherwise would move them."""
    if not (folder := os.environ.get("POLYTUNE_REALDATA")):
        pytest.skip("POLYTUNE_REALDATA is not set")
    recipe = load_recipe("real_cpu", [f"data.root={folder}/train"])
    bad_rows = BadRows("skip")
    root = recipe.data.root
    found = (load_source(source, root=root, bad_rows=bad_rows) for source in recipe.data.sources)
    conversations = [conversation for some in found for conversation in some]
    assert Counter(conversation.source for conversation in conversations) == {
        "sib200": 6150, "tatoeba_from_english": 3920, "tatoeba_to_english": 3920, "nusax": 600, "xcopa": 1100,
        "mgsm": 88, "afriqa": 318, "tata": 754, "gsm8k": 600, "oasst1_zh": 471, "oasst1_en": 117,
    }  # fmt: skip
    assert len({conversation.language for conversation in conversations}) == 235
    said = "\n".join(f"{turn.role}:{turn.content}" for c in conversations for turn in c.turns)
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "1911c56b88a391ce"

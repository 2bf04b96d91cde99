"""A recipe's step compiled ahead of time: the very step that the loop runs, its memory by kind, its verdict."""

import functools
import importlib.util
import json
import typing
from pathlib import Path

import jax
import msgspec
import numpy as np
import pytest
from rich.console import Console
from toy import mesh_of

import train.loop
from data.batch import Batch
from launch.cli import EXIT_USER_ERROR, main
from launch.config import Recipe, RecipeError
from launch.plan_ahead import roofline
from launch.plan_ahead.costs import count_flops
from launch.plan_ahead.hlo import parse_program
from launch.plan_ahead.memory import bytes_of_chip, bytes_of_gradients, split_memory
from launch.plan_ahead.plan import make_plan
from launch.plan_ahead.program import ASSUMED_LANGUAGES, compile_step, make_step, parse_exceeded, resolve_config
from launch.plan_ahead.run import EXIT_DOES_NOT_FIT, run_plan_ahead
from launch.plan_ahead.search import REMAT_FROM_LEAST, search, splits
from launch.plan_ahead.table import print_ahead_plan, verdict
from launch.plan_ahead.topology import bandwidth, make_devices, parse_topology
from launch.recipe import decode_recipe, load_recipe, shipped_recipes
from model.chips import CHIPS, GIB
from model.config import ComputeConfig, ExpertsConfig, LayerKind, ModelConfig
from model.flops import used_parameters
from train.config import CheckpointConfig
from train.job import TrainJob
from train.loop import run_training

TINY = {
    "run": {"dir": "runs/tiny"},
    "model": {
        "vocab_size": 96, "num_layers": 3, "dim": 32, "num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "mlp_dim": 64,
        "tied_head": False,
    },
    "compute": {"remat": "block"},
    "mesh": {"fsdp": 4, "tensor": 2},
    "tokenizer": {"path": "no/such/tokenizer"},
    "data": {
        "sources": [{"kind": "files", "name": "none", "path": "no/such/file.jsonl"}],
        "packing": {"row_length": 16},
    },
    "optim": {"learning_rate": 1e-3},
    "train": {"steps": 1, "batch_rows": 16, "microbatches": 2, "trackers": []},
}  # fmt: skip
PODS = {
    "dense_8b_v5e_256": "v5e:16x16",
    "dense_8b_v6e_64": "v6e:8x8",
    "dense_70b_v5p_512": "v5p:8x8x8",
    "experts_30b_a3b_v6e_64": "v6e:8x8",
    "dense_8b_gpu_8": "gpu:h200:8",
    "dense_1b_gpu_1": "gpu:h100:1",
}
needs_tpu_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: pip install 'polytune[plan]'"
)


@pytest.fixture(autouse=True)
def _keep_cache():
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture(scope="module")
def tiny() -> Recipe:
    return decode_recipe(TINY, "tiny")


@pytest.fixture(scope="module")
def tiny_step(tiny):
    """The tiny recipe's abstract step, what the compiler made of it, and its kinds of memory."""
    with jax.set_mesh(mesh_of((4, 2))):
        step = make_step(tiny, tiny.model, trained_share=1.0)
        compiled = compile_step(step)
        return step, compiled, split_memory(step, compiled, available=GIB)


class Recorder:
    """jax, except that what it jits is compiled ahead with the arguments of its first call, and kept."""

    def __init__(self):
        self.compiled: list[typing.Any] = []

    def __getattr__(self, name: str) -> typing.Any:
        return getattr(jax, name)

    def jit(self, *arguments, **options):
        jitted = jax.jit(*arguments, **options)

        @functools.wraps(jitted)
        def call(*given):
            self.compiled.append(jitted.lower(*given).compile())
            return self.compiled[-1](*given)

        return call


def test_the_plan_compiles_the_very_step_that_the_loop_runs(tiny, tiny_step, tmp_path, monkeypatch):
    """A peer's ahead-of-time check compiles the step of pre-training, and its fine-tuning runs another one."""
    step, planned, _ = tiny_step
    rows, length = 16, 16
    fields = {name: np.ones((rows, length), np.int32) for name in Batch._fields}
    fields["loss_weight_BT"] = np.ones((rows, length), np.float32)
    languages = tuple(f"l{i}" for i in range(ASSUMED_LANGUAGES))
    job = TrainJob(
        run_dir=tmp_path, spec=step.spec, optim=tiny.optim, train=tiny.train,
        checkpoint=CheckpointConfig(keep_initial=False), seed=0, languages=languages, plan_hash="plan",
        sources=tuple(f"s{i}" for i in range(step.spec.num_sources)),
        most_trained_S=(step.spec.most_trained,), meta={"model": msgspec.to_builtins(tiny.model)},
    )  # fmt: skip
    recorder = Recorder()
    monkeypatch.setattr(train.loop, "jax", recorder)
    with jax.set_mesh(mesh_of((4, 2))):
        run_training(job, open_batches=lambda _row: iter([Batch(**fields)]), show=lambda _record: None)
    (run,) = recorder.compiled
    memory = run.memory_analysis()
    total = (
        memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes + memory.generated_code_size_in_bytes
    )  # fmt: skip
    assert planned.total_bytes == pytest.approx(total, rel=0.05)
    assert planned.temporary_bytes == pytest.approx(memory.temp_size_in_bytes, rel=0.05)
    assert count_flops(parse_program(planned.text)) == count_flops(parse_program(run.as_text()))


def test_memory_by_kind_is_that_of_the_shards_and_adds_up(tiny_step):
    step, compiled, memory = tiny_step
    cfg = step.spec.model
    # Four ways by fsdp and two by tensor divide every matrix; norms are whole on every chip.
    norms = 4 * (2 * cfg.num_layers * cfg.dim + cfg.dim)
    layer = cfg.dim * cfg.head_dim * (2 * cfg.num_heads + 2 * cfg.num_kv_heads) + 3 * cfg.dim * cfg.mlp_dim
    matrices = 4 * (2 * cfg.vocab_size * cfg.dim + cfg.num_layers * layer)
    assert memory.parameters == matrices // 8 + norms
    assert memory.gradients == memory.parameters
    counts = 3 * 4  # of the step, of Adam, of the schedule
    assert memory.optimizer == 2 * memory.parameters + counts
    # A microbatch of 8 rows has 2 on a chip, with 16 positions and half of 96 ids.
    assert memory.logits == 2 * 16 * 48 * 4
    assert memory.activations > 0 and memory.padding >= 0
    kinds = [getattr(memory, name) for name in memory.__struct_fields__ if name not in ("total", "available")]
    assert sum(kinds) == memory.total == compiled.total_bytes


def test_frozen_parameters_cost_no_moments_or_gradient_and_an_average_costs_its_copy(tiny):
    """Abstract: nothing is compiled. Adam has two moments and two step counts."""
    train = msgspec.structs.replace(tiny.train, freeze=("layers/*",), ema_decay=0.9)
    with jax.set_mesh(mesh_of((4, 2))):
        step = make_step(msgspec.structs.replace(tiny, train=train), tiny.model, trained_share=1.0)
        outside = bytes_of_chip({key: tree for key, tree in step.state.params.items() if key != "layers"})
        assert 0 < outside == bytes_of_gradients(step) == bytes_of_chip(step.state.ema)
        assert bytes_of_chip(step.state.opt_state) == 2 * outside + 2 * 4


def test_the_compiled_products_are_those_of_the_formula(tiny):
    """Without recomputation: 6 N D, all pairs of positions instead of the causal half, and sums by group."""
    recipe = msgspec.structs.replace(tiny, compute=ComputeConfig(remat="none"))
    with jax.set_mesh(mesh_of((4, 2))):
        step = make_step(recipe, tiny.model, trained_share=1.0)
        compiled = count_flops(parse_program(compile_step(step).text)) * 8
    products, attention = roofline.model_flops(step)
    causal_to_all = 2 * 16 / 17
    groups = ASSUMED_LANGUAGES + step.spec.num_sources
    by_group = 2 * 3 * 16 * 16 * groups * 2  # loss, weight and gradient, on both chips of the tensor axis
    assert compiled == pytest.approx(products + attention * causal_to_all + by_group, rel=0.02)


def test_model_flops_by_hand():
    cfg = ModelConfig(
        vocab_size=10, num_layers=2, dim=4, num_heads=2, num_kv_heads=1, head_dim=2, mlp_dim=3, tied_head=True,
        layers=(LayerKind(experts=True), LayerKind(window=2)), experts=ExpertsConfig(num_experts=4, per_token=1, dim=5),
    )  # fmt: skip
    recipe = decode_recipe(
        TINY | {"model": msgspec.to_builtins(cfg), "mesh": {}, "train": {"steps": 1, "batch_rows": 2}}, "experts"
    )
    with jax.set_mesh(mesh_of((1, 1))):
        step = make_step(recipe, cfg, trained_share=0.25)
    assert step.spec.most_trained == 4
    attention_weights = 4 * 2 * (2 + 1 + 1 + 2)
    norms = 2 * 2 * 4 + 4
    used = 10 * 4 + 2 * attention_weights + norms + (4 * 4 + 3 * 4 * 5) + 3 * 4 * 3
    assert used_parameters(cfg, step.state.params) == used
    products, attention = roofline.model_flops(step)
    assert products == 6 * 2 * (16 * (used - 40) + 4 * 40)
    pairs = 16 * 17 // 2 + (1 + 15 * 2)
    assert attention == 3 * 4 * 2 * pairs * 2 * 2


@pytest.mark.parametrize(("share", "positions"), [(1.0, 16), (0.5, 8), (0.51, 12), (0.1, 2), (0.001, 2)])
def test_logits_are_planned_at_the_sizes_the_loop_compiles(tiny, share, positions):
    with jax.set_mesh(mesh_of((4, 2))):
        assert make_step(tiny, tiny.model, trained_share=share).spec.most_trained == positions


@pytest.mark.parametrize(
    ("name", "platform", "shape"),
    [
        ("v5e:16x16", "tpu", (16, 16)), ("v5p:8x8x8", "tpu", (8, 8, 8)), ("v6e:2x4", "tpu", (2, 4)),
        ("gpu:h200:8", "gpu", (8,)), ("cpu:8", "cpu", (8,)),
    ],
)  # fmt: skip
def test_topologies(name, platform, shape):
    topology = parse_topology(name)
    assert (topology.platform, topology.shape, topology.size) == (platform, shape, int(np.prod(shape)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:16", "a slice of v5e has 2 dimensions"),
        ("v5p:8x8", "a slice of v5p has 3 dimensions"),
        ("v5e:0x4", "not known; give one of v5e:16x16"),
        ("v7x:2x2", "not known"),
        ("gpu:8", "no GPU '8'; give gpu:a100"),
        ("gpu:h200:", "'' is no number of devices"),
        ("cpu:-1", "'-1' is no number of devices"),
        ("", "not known"),
    ],
)
def test_a_topology_that_is_none_is_told_what_would_be_one(name, message):
    with pytest.raises(RecipeError, match=message):
        parse_topology(name)


def test_more_simulated_devices_than_jax_has_started_with_are_refused():
    with pytest.raises(RecipeError, match="needs 9 simulated devices, JAX has started with 8"):
        make_devices(parse_topology("cpu:9"))


class FakeChip(typing.NamedTuple):
    id: int
    coords: tuple[int, ...]


def test_bandwidth_along_a_torus_counts_links_and_closed_rings():
    topology = parse_topology("v5e:16x8")
    chips = np.empty((16, 8), dtype=object)
    for x, y in np.ndindex(16, 8):
        chips[x, y] = FakeChip(0, (x, y, 0))
    link = CHIPS["v5e"].link_bytes_per_s
    assert bandwidth(topology, chips, [0]) == 2 * link  # 16 chips close the ring
    assert bandwidth(topology, chips, [1]) == link  # 8 do not
    assert bandwidth(topology, chips, [0, 1]) == 3 * link


def test_gpus_of_one_node_reach_each_other_by_nvlink_and_others_by_their_adapter():
    topology = parse_topology("gpu:h100:16")
    chips = np.empty((2, 8), dtype=object)
    for i in range(16):
        chips[i // 8, i % 8] = FakeChip(i, ())
    assert bandwidth(topology, chips, [1]) == CHIPS["h100"].link_bytes_per_s
    assert bandwidth(topology, chips, [0]) == 50e9


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (24.50G) exceeds available HBM (15.75G). HLO module: jit_f.",
            int(24.5 * GIB),
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 512.00M of 15.75G hbm.", GIB // 2),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.", None),
        ("INTERNAL: something else (1.00G) exceeds", None),
    ],
)
def test_what_the_tpu_compiler_says_when_it_does_not_fit(message, wanted):
    assert parse_exceeded(message) == wanted


class FakeMemory(typing.NamedTuple):
    total: int


class FakePlan(typing.NamedTuple):
    memory: FakeMemory
    fits: bool


def search_where(fitting: dict[str, int]) -> tuple[tuple[str, int], list[tuple[str, int]]]:
    """What the search chooses where each remat policy fits from so many microbatches on, and what it tried."""
    tried = []

    def plan(recipe):
        remat, count = recipe.compute.remat, recipe.train.microbatches
        tried.append((remat, count))
        return FakePlan(FakeMemory(1000 // count - 10 * REMAT_FROM_LEAST.index(remat)), count >= fitting.get(remat, 99))

    found = search(decode_recipe(TINY, "tiny"), 2, plan)[0]
    return (found.compute.remat, found.train.microbatches), tried


def test_the_search_takes_the_least_remat_then_the_fewest_microbatches():
    assert search_where({"none": 4, "block": 1}) == (("none", 4), [("none", 8), ("none", 4), ("none", 2)])
    assert search_where({"none": 1})[0] == ("none", 1)
    assert search_where({"block": 2}) == (
        ("block", 2),
        [("none", 8), ("products", 8), ("attention", 8), ("block", 8), ("block", 4), ("block", 2), ("block", 1)],
    )  # fmt: skip


def test_a_search_without_success_gives_the_smallest_that_was_tried():
    assert search_where({}) == (("offload", 8), [(remat, 8) for remat in REMAT_FROM_LEAST])


def test_the_search_knows_every_remat_policy():
    assert set(REMAT_FROM_LEAST) == set(typing.get_args(typing.get_type_hints(ComputeConfig)["remat"]))


def test_microbatches_that_a_mesh_divides():
    assert list(splits(64, 16)) == [4, 2, 1]
    assert list(splits(12, 2)) == [6, 3, 2, 1]
    with pytest.raises(RecipeError, match=r"train\.batch_rows=60 is not divisible by the mesh's 16; use 48 or 64"):
        list(splits(60, 16))


def write_recipe_file(folder: Path, **changes) -> str:
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(TINY | changes), encoding="utf-8")  # JSON is YAML
    return str(path)


def test_the_verb_plans_without_data_or_tokenizer_and_writes_every_number(tmp_path, capsys):
    file = tmp_path / "plan.json"
    recipe = write_recipe_file(tmp_path)
    assert main(["plan", recipe, "--topology", "cpu:8", "--json", str(file)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "8 x simulated CPU device" in said and "fits: 0.00 GiB of" in said
    assert "assumed: logits at 16 of 16 positions of every row" in said
    tree = json.loads(file.read_text(encoding="utf-8"))
    assert tree["fits"] is True and tree["spare_bytes"] == tree["memory"]["available"] - tree["memory"]["total"]
    assert tree["mesh"] == {"data": 1, "fsdp": 4, "expert": 1, "sequence": 1, "tensor": 2}
    assert {"all-gather", "all-reduce"} & {item["kind"] for item in tree["traffic"]}
    assert {axis for item in tree["traffic"] for axis in item["axes"]} == {"fsdp", "tensor"}
    assert tree["roofline"] is None and tree["chip"] is None


def test_a_recipe_that_does_not_fit_says_by_how_much_and_exits_with_one(tmp_path, capsys):
    recipe = write_recipe_file(tmp_path, data=TINY["data"] | {"packing": {"row_length": 8192}})
    file = tmp_path / "plan.json"
    arguments = [
        "plan",
        recipe,
        "--topology",
        "gpu:a100:8",
        "train.batch_rows=256",
        "train.microbatches=1",
        "compute.attention=dense",
    ]
    assert main([*arguments, "--json", str(file)]) == EXIT_DOES_NOT_FIT
    said = " ".join(capsys.readouterr().out.split())
    tree = json.loads(file.read_text(encoding="utf-8"))
    assert tree["memory"]["available"] == CHIPS["a100"].memory_bytes
    too_much = -tree["spare_bytes"] / GIB
    assert too_much > 0 and f"{too_much:.2f} GiB too much; use more train.microbatches" in said
    drawn = tree["roofline"]
    assert drawn["compute_s"] == pytest.approx(tree["flops"]["compiled_per_chip"] / 156e12)
    assert drawn["bound_s"] == max(drawn["compute_s"], drawn["links_s"]) and drawn["memory_s"] is None
    assert drawn["mfu_at_most"] == pytest.approx(
        (tree["flops"]["products"] + tree["flops"]["attention"]) / (drawn["bound_s"] * 156e12 * 8)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v5e:16"], "has 2 dimensions"),
        (["--topology", "cpu:8", "--trained-share", "0"], "--trained-share 0 is no share"),
        (["--topology", "cpu:8", "mesh.fsdp=3"], "does not cover the 8 devices"),
        (["--topology", "cpu:8", "train.batch_rows=12"], "not divisible by mesh axis"),
    ],
)
def test_a_plan_that_cannot_be_made_exits_with_two(arguments, message, tmp_path, capsys):
    assert main(["plan", write_recipe_file(tmp_path), *arguments]) == EXIT_USER_ERROR
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_compiler_that_fails_is_no_verdict_on_the_memory(tmp_path, monkeypatch, capsys):
    """Exit code 1 says that a recipe does not fit: a crash of the compiler, or two versions that differ, must not."""

    def fail(self):
        raise jax.errors.JaxRuntimeError("INTERNAL: RET_CHECK failure: async-update should have 1 operands")

    monkeypatch.setattr(jax.stages.Lowered, "compile", fail)
    assert main(["plan", write_recipe_file(tmp_path), "--topology", "cpu:8"]) == EXIT_USER_ERROR
    said = " ".join(capsys.readouterr().err.split())
    assert "the compiler refuses this step: INTERNAL: RET_CHECK" in said and "polytune[plan]" in said


def test_a_start_from_a_folder_is_planned_with_its_own_config(tmp_path, capsys):
    folder = Path(__file__).parents[2] / "golden" / "families" / "llama_3"
    recipe = write_recipe_file(tmp_path, mesh={})
    file = tmp_path / "plan.json"
    arguments = [f"model={folder}", "train.microbatches=1", "compute.remat=none", "--json", str(file)]
    assert main(["plan", recipe, "--topology", "cpu:2", *arguments]) == 0, capsys.readouterr().err
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = json.loads(file.read_text(encoding="utf-8"))["model"]
    assert (model["dim"], model["vocab_size"]) == (config["hidden_size"], config["vocab_size"])
    assert (model["vocab_size"] + model["vocab_padding"]) % 8 == 0


def test_a_mixture_off_tpus_says_that_its_loops_depend_on_data(tmp_path, capsys):
    model = TINY["model"] | {
        "experts": {"num_experts": 4, "per_token": 2, "dim": 16}, "layers": [{"experts": True}], "num_layers": 1,
    }  # fmt: skip
    recipe = write_recipe_file(tmp_path, model=model, mesh={}, compute={})
    assert main(["plan", recipe, "--topology", "cpu:1", "train.microbatches=1"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "loop(s) of a length that depends on data, counted once" in said


def test_a_vocabulary_left_to_a_tokenizer_yet_to_be_trained_is_its_size(tmp_path):
    model = TINY["model"] | {"vocab_size": 0}
    recipe = decode_recipe(TINY | {"model": model, "tokenizer": {"vocab_size": 304}}, "tiny")
    with jax.set_mesh(mesh_of((4, 2))):
        assert resolve_config(recipe).vocab_size == 304


def test_the_tpu_compiler_is_asked_for_by_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"pip install 'polytune\[plan\]'"):
        make_devices(parse_topology("v5e:4x4"))


def test_every_recipe_for_a_pod_has_a_topology_here():
    assert set(PODS) == set(shipped_recipes()) - {"demo", "real_cpu"}


@needs_tpu_compiler
def test_a_tpu_program_is_compiled_and_read_without_a_tpu(tiny):
    recipe = msgspec.structs.replace(tiny, mesh=msgspec.structs.replace(tiny.mesh, fsdp=8))
    file = Path(recipe.run.dir)
    assert not file.exists()
    console = Console(record=True, width=200)
    assert run_plan_ahead(
        recipe, topology="v5e:4x4", trained_share=1.0, is_search=False, json_file=None, console=console
    ) == 0  # fmt: skip
    said = console.export_text()
    assert "16 x TPU v5e" in said and "of 15.75 GiB a chip" in said and "bound by" in said


@needs_tpu_compiler
def test_a_tpu_program_that_is_too_large_is_refused_in_the_compilers_own_numbers(tiny):
    large = decode_recipe(
        TINY | {"mesh": {"fsdp": 4}, "compute": {"remat": "block", "attention": "dense"},
                "data": TINY["data"] | {"packing": {"row_length": 8192}},
                "train": {"steps": 1, "batch_rows": 64}}, "large",
    )  # fmt: skip
    console = Console(record=True, width=200)
    assert run_plan_ahead(
        large, topology="v5e:2x2", trained_share=1.0, is_search=False, json_file=None, console=console
    ) == EXIT_DOES_NOT_FIT  # fmt: skip
    assert "GiB too much" in console.export_text()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "dense_1b_gpu_1" else [pytest.mark.slow]) for name in PODS]
)
def test_every_shipped_recipe_fits_its_pod(name, tmp_path, capsys):
    if parse_topology(PODS[name]).platform == "tpu" and importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: pip install 'polytune[plan]'")
    file = tmp_path / "plan.json"
    code = main(["plan", name, "--topology", PODS[name], "--json", str(file)])
    assert code == 0, capsys.readouterr().out
    flops = json.loads(file.read_text(encoding="utf-8"))["flops"]
    assert flops["unknown_loops"] == [] and flops["unknown_kernels"] == []


def test_the_verdict_of_a_plan_is_printed_last(tiny, capsys):
    topology = parse_topology("cpu:8")
    with jax.set_mesh(mesh_of((4, 2))):
        plan = make_plan(tiny, tiny.model, topology, trained_share=1.0)
    print_ahead_plan(plan, topology, Console(width=200))
    assert capsys.readouterr().out.splitlines()[-1] == verdict(plan)
    assert load_recipe("dense_1b_gpu_1").train.batch_rows == 32

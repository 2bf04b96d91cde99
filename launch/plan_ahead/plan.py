"""One plan: a recipe, a topology, and what the compiler says of them."""

import dataclasses
from typing import Any

import jax
import msgspec
import numpy as np

from launch.config import Recipe
from launch.plan_ahead import roofline
from launch.plan_ahead.collectives import Traffic, list_traffic
from launch.plan_ahead.costs import count_bytes, count_flops, unknown_kernels
from launch.plan_ahead.hlo import parse_program
from launch.plan_ahead.memory import MemoryPlan, head_trips, split_memory
from launch.plan_ahead.program import ASSUMED_LANGUAGES, AbstractStep, CompiledStep, compile_step, make_step
from launch.plan_ahead.topology import Topology
from model import transformer
from model.attention_choice import Kernel, choose_attention, describe_attention
from model.config import ModelConfig
from model.expert_pairs import PAIRS_LOOP
from model.flops import used_parameters
from model.moe import BLOCK_OF_FAIR_SHARE
from model.parallel import axis_names
from train.chunked_loss import HEAD_LOOP


class AheadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a step needs on a topology."""

    topology: str
    compiler: str
    """Whose compiler the numbers come from: tpu, or cpu where a GPU's are estimated."""
    mesh: dict[str, int]
    attention: str
    """The kernel, in words."""
    remat: str
    microbatches: int
    batch_rows: int
    row_length: int
    head_positions: int
    """K: positions of a row that logits are made for."""
    parameters: int
    used_parameters: int
    """Of them, those that a token is multiplied with."""
    assumptions: tuple[str, ...]
    memory: MemoryPlan
    flops: roofline.Flops
    moved_bytes: int | None
    """Between one chip and its memory in one step."""
    traffic: tuple[Traffic, ...] | None
    roofline: roofline.Roofline | None
    compile_s: float

    @property
    def fits(self) -> bool:
        """Whether one chip's memory is enough."""
        return self.memory.spare >= 0


def make_plan(recipe: Recipe, cfg: ModelConfig, topology: Topology, *, trained_share: float) -> AheadPlan:
    """Compiles the recipe's step for the mesh in use, whose devices are the topology's, and reads the result.

    Raises ValueError for sizes the mesh does not divide, before anything is compiled.
    """
    mesh = jax.sharding.get_mesh()
    length = recipe.data.packing.row_length
    kernel = choose_attention(cfg, recipe.compute, platform=topology.platform, row_length=length)
    step = make_step(_compilable(recipe, kernel, topology), cfg, trained_share=trained_share)
    compiled = compile_step(step)
    flops, moved, traffic = _read_text(step, compiled, dict(mesh.shape))
    drawn = None
    if traffic is not None and moved is not None and topology.chip is not None:
        drawn = roofline.draw_roofline(step, topology, np.asarray(mesh.devices), flops, moved, traffic)
    return AheadPlan(
        topology=topology.name,
        compiler=topology.compiler,
        mesh=dict(mesh.shape),
        attention=describe_attention(kernel),
        remat=recipe.compute.remat,
        microbatches=recipe.train.microbatches,
        batch_rows=recipe.train.batch_rows,
        row_length=length,
        head_positions=step.spec.most_trained,
        parameters=transformer.count_parameters(step.state.params),
        used_parameters=used_parameters(cfg, step.state.params),
        assumptions=tuple(list_assumptions(step, topology, kernel)),
        memory=split_memory(step, compiled, topology.memory_bytes),
        flops=flops,
        moved_bytes=moved,
        traffic=None if traffic is None else tuple(traffic),
        roofline=drawn,
        compile_s=compiled.seconds,
    )


def list_assumptions(step: AbstractStep, topology: Topology, kernel: Kernel) -> list[str]:
    """What was not known, and what was taken instead."""
    length = step.batch.tokens_BT.shape[1]
    said = [
        f"logits at {step.spec.most_trained} of {length} positions of every row (the run's K comes from its data; "
        "--trained-share gives another)",
        f"the head's loop runs over all of its {head_trips(step)} chunk(s)",
        f"a table of {ASSUMED_LANGUAGES} languages",
        "every row one causal segment, for the FLOPs of attention",
    ]
    if step.spec.model.experts is not None and axis_names(step.spec.axes.experts):
        said.append(f"no device's experts get more than {BLOCK_OF_FAIR_SHARE} times their fair share of tokens")
    if topology.platform == "gpu":
        said += [
            "compiled for as many simulated CPU devices: parameters, optimizer, gradients and batch are as they will "
            "be; temporaries are an upper estimate, for a CPU computes bfloat16 in float32 and fuses less",
            "collectives are those of the CPU's program; no traffic with memory is drawn from it",
            "memory is what JAX takes of a GPU by default, 75%; XLA_PYTHON_CLIENT_MEM_FRACTION=0.92 gives it more",
        ]
    if kernel.name == "cudnn":
        said.append(
            "attention compiled blockwise in the place of cuDNN, whose mask and its gradient come on top: 4 bytes for "
            "each query and key of a microbatch's rows"
        )
    if topology.platform == "cpu":
        said.append("simulated devices share this machine's memory in equal parts")
    return said


def _compilable(recipe: Recipe, kernel: Kernel, topology: Topology) -> Recipe:
    """The recipe with an attention kernel that the devices of the mesh have: GPUs are simulated by CPU devices."""
    if topology.platform != "gpu":
        return recipe
    name = "blockwise" if kernel.name == "cudnn" else kernel.name
    compute = msgspec.structs.replace(recipe.compute, attention=name, attention_block=kernel.block)
    return msgspec.structs.replace(recipe, compute=compute)


def to_builtins(plan: AheadPlan) -> dict[str, Any]:
    """Everything as plain values, with what follows from it."""
    tree = msgspec.to_builtins(plan)
    tree |= {"fits": plan.fits, "spare_bytes": plan.memory.spare}
    if plan.traffic is not None:
        tree["traffic"] = [item._asdict() for item in plan.traffic]
    if plan.roofline is not None:
        tree["roofline"] = roofline.to_builtins(plan.roofline)
    return tree


def _read_text(
    step: AbstractStep, compiled: CompiledStep, mesh_shape: dict[str, int]
) -> tuple[roofline.Flops, int | None, list[Traffic] | None]:
    products, attention = roofline.model_flops(step)
    if compiled.text is None:
        unread = roofline.Flops(products=products, attention=attention, compiled_per_chip=None, compiler_per_chip=None)
        return unread, None, None
    assumed = ((HEAD_LOOP, head_trips(step)), (PAIRS_LOOP, 1))
    program = dataclasses.replace(parse_program(compiled.text), assumed_trips=assumed)
    flops = roofline.Flops(
        products=products,
        attention=attention,
        compiled_per_chip=count_flops(program),
        compiler_per_chip=compiled.flops_once,
        unknown_loops=tuple(program.unknown_loops()),
        unknown_kernels=tuple(unknown_kernels(program)),
    )
    return flops, count_bytes(program), list_traffic(program, mesh_shape)

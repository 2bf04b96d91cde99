"""The text of a compiled program: what is counted, and how often, against numbers worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import mesh_of

from launch.plan_ahead.collectives import Traffic, list_traffic, moved_by_ring, read_groups, varying_axes
from launch.plan_ahead.costs import count_bytes, count_flops, unknown_kernels
from launch.plan_ahead.hlo import Shape, parse_program, parse_shapes

# Two loops in one another: 3 times 5; the outer one says its length only by its condition, as a TPU's text does.
LOOPS = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %w = f32[4,4]{1,0} constant({...})
  %y = f32[8,4]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%i, %y)
}

%inner_condition (p: (s32[], f32[8,4])) -> pred[] {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  ROOT %true = pred[] constant(true)
}

%outer_body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4]{1,0} get-tuple-element(%p), index=1
  %g = f32[8,4]{1,0} all-reduce(%x), channel_id=7, replica_groups={{0,1},{2,3}}, to_apply=%add
  %t = (s32[], /*index=1*/f32[8,4]{1,0}) tuple(%i, %g)
  ROOT %w = (s32[], f32[8,4]{1,0}) while(%t), condition=%inner_condition, body=%inner_body, backend_config=KNOWN
}

%outer_condition (p: (s32[], f32[8,4])) -> pred[] {
  %limit = s32[]{:T(128)} constant(3), metadata={op_name="x(y)"}
  %p = (s32[], f32[8,4]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[8,4]) -> (s32[], f32[8,4]) {
  %x = f32[8,4]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], f32[8,4]{1,0}) tuple(%zero, %x)
  ROOT %w = (s32[], f32[8,4]{1,0}) while(%t), condition=%outer_condition, body=%outer_body
}
""".replace("KNOWN", '{"known_trip_count":{"n":"5"}}')


def one_instruction(line: str, *operands: str) -> str:
    """A program of one instruction on parameters of these types."""
    given = "\n".join(f"  %p{i} = {kind} parameter({i})" for i, kind in enumerate(operands))
    return f"HloModule m\n\nENTRY %main (p: f32[]) -> f32[] {{\n{given}\n  ROOT %r = {line}\n}}\n"


def test_a_loop_in_a_loop_multiplies_what_the_compilers_own_count_takes_once():
    program = parse_program(LOOPS)
    times = {visit.instruction.opcode: visit.times for visit in program.visits()}
    assert (times["dot"], times["all-reduce"]) == (15, 3)
    assert count_flops(program) == 15 * 2 * 8 * 4 * 4
    assert program.unknown_loops() == []
    # Each of two chips sends half of 2 x 128 bytes, three times.
    assert list_traffic(program, {"fsdp": 2, "tensor": 2}) == [Traffic("all-reduce", ("tensor",), 3, 3 * 128)]


def test_a_loop_of_unknown_length_counts_once_and_is_named():
    text = LOOPS.replace("constant(3)", "parameter(1)")
    program = parse_program(text)
    assert program.unknown_loops() == ["w"]
    assert count_flops(program) == 5 * 2 * 8 * 4 * 4


def test_an_assumed_length_is_that_of_the_loop_it_was_assumed_of():
    """Neither the chunks of a head nor the blocks of experts' pairs are counted in a program's text."""
    text = LOOPS.replace("constant(3)", "parameter(1)").replace(
        "body=%outer_body", 'body=%outer_body, metadata={op_name="jit(step)/jvp()/head_chunks/while"}'
    )
    program = parse_program(text)
    for scope, times in ("head_chunks", 4), ("pair_blocks", 1):
        assumed = dataclasses.replace(program, assumed_trips=((scope, 4),))
        assert {visit.instruction.opcode: visit.times for visit in assumed.visits()}["all-reduce"] == times
        assert assumed.unknown_loops() == ([] if scope == "head_chunks" else ["w"])


def test_shapes_of_a_type_and_the_memory_they_lie_in():
    text = "(f32[16,128256]{1,0:T(8,128)S(1)}, bf16[3,5]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}, pred[7])"
    assert parse_shapes(text) == (
        Shape("f32", (16, 128256), False),
        Shape("bf16", (3, 5), True),
        Shape("u32", (), False),
        Shape("pred", (7,), True),
    )
    assert [shape.size_bytes for shape in parse_shapes(text)] == [16 * 128256 * 4, 30, 4, 7]


@pytest.mark.parametrize(
    ("line", "operands", "wanted"),
    [
        # What a TPU makes of products with heads and of batched ones.
        (
            "bf16[2048,8,128]{0,2,1} convolution(%p0, %p1), window={size=8 pad=7_7 rhs_reversal=1}, "
            "dim_labels=bf0_i0o->b0f",
            ("bf16[2048,4096,1]", "bf16[4096,8,128]"),
            2 * 2048 * 4096 * 8 * 128,
        ),
        (
            "f32[8,4,2048,2048]{3,2,1,0} convolution(%p0, %p1), window={size=8x1 stride=7x1 lhs_dilate=8x1}, "
            "dim_labels=01bf_0io1->01bf",
            ("bf16[8,4,2048,128]", "bf16[8,128,2048,1]"),
            2 * 8 * 4 * 2048 * 2048 * 128,
        ),
        (
            "bf16[2048,4096,1]{1,0,2} convolution(%p0, %p1), window={size=32}, dim_labels=b0f_0io->bf0",
            ("bf16[2048,32,128]", "bf16[32,128,4096]"),
            2 * 2048 * 4096 * 32 * 128,
        ),
        ("bf16[16,32]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf", ("bf16[16,8]", "bf16[8,32]"), 2 * 16 * 32 * 8),
        (
            "f32[4,6,5]{2,1,0} dot(%p0, %p1), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, "
            "rhs_contracting_dims={1}",
            ("f32[4,6,3]", "f32[4,3,5]"),
            2 * 4 * 6 * 5 * 3,
        ),
        ("f32[24,5]{1,0} ragged-dot(%p0, %p1, %p2)", ("f32[24,3]", "f32[7,3,5]", "s32[7]"), 2 * 24 * 3 * 5),
        ("f32[9]{0} add(%p0, %p1)", ("f32[9]", "f32[9]"), 0),
    ],
)
def test_flops_of_a_product_in_every_spelling(line, operands, wanted):
    assert count_flops(parse_program(one_instruction(line, *operands))) == wanted


def test_a_product_left_to_a_library_is_refused_not_missed():
    line = 'f32[4,4] custom-call(%p0, %p0), custom_call_target="__onednn$matmul"'
    with pytest.raises(ValueError, match="leaves a matrix product to a library"):
        count_flops(parse_program(one_instruction(line, "f32[4,4]")))


KERNEL = 'bf16[6,5] custom-call(%p0, %p1), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":'


def test_a_kernel_counts_what_it_states_and_one_that_states_nothing_is_named():
    stated = KERNEL + '{"body":"x","cost_estimate":{"transcendentals":"0","flops":"1234"}}}'
    program = parse_program(one_instruction(stated, "bf16[6,3]", "bf16[2,3,5]"))
    assert (count_flops(program), unknown_kernels(program)) == (1234, [])
    silent = parse_program(one_instruction(KERNEL + '{"body":"x"}}', "bf16[6,3]", "bf16[2,3,5]"))
    assert (count_flops(silent), unknown_kernels(silent)) == (0, ["r"])
    # One that only sorts out indices has none to state.
    indices = parse_program(one_instruction(KERNEL + '{"body":"x"}}', "s32[6]", "s32[2]"))
    assert unknown_kernels(indices) == []


def splash_kernel(part: str, visited: str, *, queries: int = 1024) -> str:
    """A splash attention call as the compiler writes it, over three lines, for 2 rows, 4 heads, 1024 keys, width 64."""
    name = f"splash_mha_{part}_segmented_no_residuals"
    suffix = "" if part == "fwd" else f"_{part}"
    line = (
        f'bf16[2,4,{queries},64] custom-call(%p0, %p0, %p1, %p2, %p2), custom_call_target="tpu_custom_call", '
        "frontend_attributes={kernel_metadata={\n"
        f'"xprof_metadata":"{{\\"block_q{suffix}\\": 128, \\"block_kv{suffix}\\": 128, \\"q_layout\\": 1}}"\n'
        f'}}}}, metadata={{op_name="jit(f)/{name}/{name}/pallas_call"}}, backend_config={{"custom_call_config":{{}}}}'
    )
    return one_instruction(line, visited, f"bf16[2,4,{queries},64]", "bf16[2,2,1024,64]")


@pytest.mark.parametrize(
    ("part", "visited", "queries", "products", "pairs"),
    [
        ("fwd", "s8[1,8,8]", 1024, 2, 36),
        ("dq", "s8[1,8,8]", 1024, 3, 36),
        ("dkv", "s8[1,8,8]", 1024, 4, 36),
        ("fwd", "s8[1,8,2]", 1024, 2, 1 + 7 * 2),
        ("dkv", "s8[1,3,8]", 1024, 4, 1 + 2 + 6 * 3),
        ("fwd", "s8[1,2,8]", 256, 2, 16),
    ],
)
def test_splash_attention_states_no_flops_and_counts_by_formula(part, visited, queries, products, pairs):
    """Blocks of the past; with a window the nearest; for a part of the queries, of which any may be the last, all."""
    program = parse_program(splash_kernel(part, visited, queries=queries))
    assert unknown_kernels(program) == []
    assert count_flops(program) == 2 * products * pairs * (2 * 4 * 128 * 128 * 64)


def test_an_instruction_over_several_lines_ends_no_computation():
    text = splash_kernel("fwd", "s8[1,8,8]").replace("  ROOT %r", "  %r")
    text = text.removesuffix("}\n") + "  ROOT %s = f32[9]{0} add(%p0, %p0)\n}\n"
    assert [visit.instruction.opcode for visit in parse_program(text).visits()][-2:] == ["custom-call", "add"]


@pytest.mark.parametrize(
    ("line", "operands", "wanted"),
    [
        ("f32[9]{0} add(%p0, %p1)", ("f32[9]", "f32[9]"), 3 * 36),
        ("f32[9]{0:S(1)} add(%p0, %p1)", ("f32[9]{0:S(1)}", "f32[9]"), 36),
        ("f32[1,9]{1,0} dynamic-slice(%p0, %p1)", ("f32[50,9]", "s32[]"), 2 * 36),
        ("f32[50,9]{1,0} dynamic-update-slice(%p0, %p1, %p2)", ("f32[50,9]", "f32[1,9]", "s32[]"), 2 * 36),
        ("(f32[9]{0:S(1)}, f32[9]{0}, u32[]{:S(2)}) copy-start(%p0)", ("f32[9]",), 36),
        ("f32[50,9]{1,0} broadcast(%p0)", ("f32[]",), 1800 + 4),
        ("f32[9]{0} bitcast(%p0)", ("f32[3,3]",), 0),
    ],
)
def test_bytes_between_a_chip_and_its_memory(line, operands, wanted):
    assert count_bytes(parse_program(one_instruction(line, *operands))) == wanted


def test_a_fusion_that_takes_a_slice_and_updates_in_place_moves_only_these():
    text = """HloModule m

%inside (a: f32[50,9], b: f32[50,9], i: s32[]) -> f32[50,9] {
  %a = f32[50,9]{1,0} parameter(0)
  %b = f32[50,9]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %row = f32[1,9]{1,0} dynamic-slice(%b, %i), dynamic_slice_sizes={1,9}
  ROOT %u = f32[50,9]{1,0} dynamic-update-slice(%a, %row, %i)
}

ENTRY %main (a: f32[50,9], b: f32[50,9], i: s32[]) -> f32[50,9] {
  %a = f32[50,9]{1,0} parameter(0)
  %b = f32[50,9]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[50,9]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%inside
}
"""
    assert count_bytes(parse_program(text)) == 36 + 36 + 4  # the row read, the row written, the index


def test_a_fusion_that_only_carries_a_collectives_arrays_does_not_move_them():
    """A TPU hands a gather in flight from fusion to fusion: counted as read and written by each, a step of an 8B model
    on 256 chips moved 639 GB instead of 480."""
    text = """HloModule m

%inside (a: f32[50,9], b: f32[9]) -> (f32[9], f32[50,9]) {
  %a = f32[50,9]{1,0} parameter(0)
  %b = f32[9]{0} parameter(1)
  %n = f32[9]{0} negate(%b)
  ROOT %t = (f32[9]{0}, f32[50,9]{1,0}) tuple(%n, %a)
}

ENTRY %main (a: f32[50,9], b: f32[9]) -> (f32[9], f32[50,9]) {
  %a = f32[50,9]{1,0} parameter(0)
  %b = f32[9]{0} parameter(1)
  ROOT %f = (f32[9]{0}, f32[50,9]{1,0}) fusion(%a, %b), kind=kLoop, calls=%inside
}
"""
    assert count_bytes(parse_program(text)) == 36 + 36


@pytest.mark.parametrize(
    ("attributes", "chips", "wanted"),
    [
        (", replica_groups={{0,1},{2,3}}, dimensions={0}", 4, [[0, 1], [2, 3]]),
        (", replica_groups={}, to_apply=%add", 3, [[0, 1, 2]]),
        (", channel_id=1, replica_groups=[2,4]<=[8], use_global_device_ids=true", 8, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (", replica_groups=[4,2]<=[2,4]T(1,0)", 8, [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (", replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={1}", 8, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (", replica_groups=mesh['a'=2,'b'=4] {'a'}", 8, [[0, 4], [1, 5], [2, 6], [3, 7]]),
        (", replica_groups=mesh['a'=2,'b'=2] {'b','a'}", 4, [[0, 1, 2, 3]]),
        (", replica_groups=mesh['a'=8] {'a':(2)2}", 8, [[0, 2], [1, 3], [4, 6], [5, 7]]),
        (", source_target_pairs={{0,1},{1,2},{2,0}}", 3, [[0, 1], [1, 2], [2, 0]]),
    ],
)
def test_groups_of_chips_in_every_spelling(attributes, chips, wanted):
    assert read_groups(attributes, chips).tolist() == wanted


def test_groups_in_an_unknown_spelling_are_refused():
    with pytest.raises(ValueError, match="names groups of chips in a way that is not known"):
        read_groups(", replica_groups=cube(3)", 8)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ([[0, 1, 2, 3], [4, 5, 6, 7]], ("tensor",)),
        ([[0, 4], [1, 5], [2, 6], [3, 7]], ("fsdp",)),
        ([[0, 1], [2, 3], [4, 5], [6, 7]], ("tensor",)),
        ([[0, 1, 2, 3, 4, 5, 6, 7]], ("fsdp", "tensor")),
        ([[0, 0], [1, 4]], ("fsdp", "tensor")),
        ([[0], [1]], ()),
    ],
)
def test_the_mesh_axes_a_group_lies_along(groups, axes):
    assert varying_axes(np.array(groups), {"fsdp": 2, "expert": 1, "tensor": 4}) == axes


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 7_000_000), ("reduce-scatter", 875_000), ("all-reduce", 1_750_000), ("all-to-all", 875_000),
        ("collective-permute", 1_000_000),
    ],
)  # fmt: skip
def test_what_eight_chips_with_a_megabyte_each_send(kind, sent):
    assert moved_by_ring(kind, 1_000_000, 8) == sent


def test_a_collective_spread_over_fusions_counts_once_a_loop():
    line = "  %g2 = f32[8,4]{1,0} all-reduce(%x), channel_id=7, replica_groups={{0,1},{2,3}}, to_apply=%add\n"
    text = LOOPS.replace("  %t = (s32[], /*index=1*/", line + "  %t = (s32[], /*index=1*/")
    assert list_traffic(parse_program(text), {"fsdp": 2, "tensor": 2})[0].times == 3


def test_a_compiled_programs_flops_and_traffic_are_those_of_its_products():
    with jax.set_mesh(mesh_of((4, 2))):
        mesh = jax.sharding.get_mesh()

        def layer(x_BD, w_DF):
            w_DF = jax.sharding.reshard(w_DF, jax.P(None, "tensor"))
            return jnp.einsum("BD,DF->BF", x_BD, w_DF, out_sharding=jax.P("fsdp", "tensor")), None

        def run(x_BD, w_LDF):
            def step(carry, w_DF):
                y_BF = layer(carry, w_DF)[0]
                return jax.sharding.reshard(y_BF, jax.P("fsdp", None)), None

            return jax.lax.scan(step, x_BD, w_LDF)[0]

        x = jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P("fsdp", None)))
        w = jax.ShapeDtypeStruct(
            (5, 64, 64), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))
        )
        program = parse_program(jax.jit(run).lower(x, w).compile().as_text())
    assert count_flops(program) == 5 * 2 * 8 * 64 * 32
    sent = {(item.kind, item.axes): item for item in list_traffic(program, dict(mesh.shape))}
    # Each chip gives its 16 x 32 of a layer's weights to three others, and its 8 x 32 of the result to one.
    assert sent["all-gather", ("fsdp",)].moved_bytes == 5 * 3 * 16 * 32 * 4
    assert sent["all-gather", ("tensor",)].moved_bytes == 5 * 8 * 32 * 4

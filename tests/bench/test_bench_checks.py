"""What the step benchmark refuses, and what becomes of a contender that fails; no torch is needed for that."""

import io
from typing import Any

import msgspec
import numpy as np
import pytest
from rich.console import Console
from toy import TOY

from launch.recipe import load_recipe
from model.flops import StepCost
from tests.bench import shapes, step
from tests.bench.same_work import TOLERANCES, NotTheSameWorkError, check_first, check_memory, check_recipe
from tests.bench.step_table import describe_outcome, print_table
from tests.bench.worker import Contender, DeviceFacts, Outcome
from tests.bench.workload import Step, draw_batch
from train.mfu import Utilisation

GIB = 2**30
CPU = DeviceFacts("cpu", "CPU", None, ("sdpa",), "torch")
H100 = DeviceFacts("gpu", "NVIDIA H100 80GB HBM3", 79 * GIB, ("sdpa", "flex_attention"), "torch")
CONTENDERS = [Contender(name=name, side=side) for name, side in (("a", "polytune"), ("b", "x"), ("c", "x"))]


class FakeWorker:
    """Gives the same numbers at each step, or fails at one."""

    def __init__(self, contender: Contender, *, norm: float = 2.0, fails_at: int | None = None):
        self.contender, self._norm, self._fails_at, self.is_stopped = contender, norm, fails_at, False

    def step(self, index: int) -> Step:
        if index == self._fails_at:
            raise RuntimeError(f"Traceback\n  somewhere\nOutOfMemoryError: {self.contender.name} at {index}\n")
        return Step(1.0, self._norm, 0.1)

    def finish(self, steps: list[Step]) -> Outcome:
        return Outcome(self.contender, steps, 5)

    def stop(self) -> None:
        self.is_stopped = True


def measure(groups: list[list[Contender]], **faults: dict[str, Any]) -> tuple[list[Outcome], list[FakeWorker]]:
    workers: list[FakeWorker] = []
    told: list[Outcome] = []

    def start(contender: Contender) -> Any:
        workers.append(FakeWorker(contender, **faults.get(contender.name, {})))
        return workers[-1]

    try:
        outcomes = step.measure(groups, start, count=4, dtype="float32", tell=told.append)
        assert told == outcomes
        return outcomes, workers
    finally:
        assert all(worker.is_stopped for worker in workers), "a process would be left behind"


def test_a_contender_that_runs_out_of_memory_loses_its_row_and_not_the_table():
    outcomes, _ = measure([[each] for each in CONTENDERS], b={"fails_at": 2})
    assert [len(outcome.steps) for outcome in outcomes] == [4, 0, 4]
    assert outcomes[1].failure == "OutOfMemoryError: b at 2"
    assert outcomes[2].peak_bytes == 5


@pytest.mark.parametrize("groups", [[CONTENDERS], [[each] for each in CONTENDERS]])
def test_without_polytunes_own_steps_there_is_nothing_to_compare_with(groups):
    with pytest.raises(RuntimeError, match="a at 1"):
        measure(groups, a={"fails_at": 1})


def test_another_gradient_norm_stops_the_benchmark_before_anything_is_timed():
    with pytest.raises(NotTheSameWorkError, match=r"not the same work: c has loss 1.000000, gradient norm 2.010000"):
        measure([CONTENDERS], c={"norm": 2.01})


def test_a_contender_alone_with_another_gradient_norm_gets_no_times():
    outcomes, _ = measure([[each] for each in CONTENDERS], b={"norm": 2.01})
    assert [len(outcome.steps) for outcome in outcomes] == [4, 0, 4]
    assert outcomes[1].failure.startswith("not the same work: b has loss 1.000000, gradient norm 2.010000; polytune")


@pytest.mark.parametrize("found", [Step(float("nan"), 1, 0), Step(1, float("nan"), 0), Step(1, float("inf"), 0)])
def test_a_loss_that_is_no_number_never_passes_for_equal(found):
    with pytest.raises(NotTheSameWorkError, match="not the same work"):
        check_first("x", found, Step(1, 1, 0), dtype="bfloat16")


def test_a_difference_is_relative_and_allowed_up_to_the_tolerance():
    loss, norm = TOLERANCES["float32"]
    wanted = Step(10.0, 0.01, 0)
    check_first("x", Step(10.0 * (1 + 0.9 * loss), 0.01 * (1 - 0.9 * norm), 0), wanted, dtype="float32")
    for other in (Step(10.0 * (1 + 1.1 * loss), 0.01, 0), Step(10.0, 0.01 * (1 - 1.1 * norm), 0)):
        with pytest.raises(NotTheSameWorkError, match=r"float32 may differ by 0.0001 and 0.001"):
            check_first("x", other, wanted, dtype="float32")


def test_a_setting_that_torch_lacks_is_refused_with_the_override_that_removes_it():
    check_recipe(load_recipe("demo"), CPU)
    with pytest.raises(SystemExit, match=r"train.spikes=SpikeConfig\(.*override: train.spikes=null$"):
        check_recipe(load_recipe("demo", ["train.spikes={sigma: 3}"]), CPU)
    recipe = load_recipe("demo", ["train.loss.z_loss_weight=1e-4", "train.freeze=[embedding]"])
    with pytest.raises(SystemExit, match=r"train.freeze=\[\] train.loss.z_loss_weight=0.0$"):
        check_recipe(recipe, CPU)
    recipe = load_recipe("dense_8b_gpu_8", ["optim.name=adafactor"])
    with pytest.raises(SystemExit, match=r"optim.name='adafactor'.*optim.name=.adamw"):
        check_recipe(recipe, H100)


def test_float32_on_a_gpu_means_two_things_and_is_refused():
    check_recipe(load_recipe("dense_1b_gpu_1"), H100)
    with pytest.raises(SystemExit, match=r"override: compute\.dtype=bfloat16"):
        check_recipe(load_recipe("demo"), H100)


def test_an_8b_that_does_not_fit_one_gpu_says_how_many_layers_do(one_device):
    model = load_recipe("dense_8b_gpu_8").model
    assert not isinstance(model, str)
    with pytest.raises(SystemExit, match=r"8,030,261,248 parameters need 119.7 GiB.* model.num_layers=19 or fewer$"):
        check_memory(model, H100)
    # Embedding and head 2 x 128,256 x 4,096, a layer 218,112,000, the last norm 4,096.
    check_memory(msgspec.structs.replace(model, num_layers=19), H100)
    assert 79 * GIB < 16 * (2 * 128_256 * 4_096 + 20 * 218_112_000 + 4_096)
    check_memory(model, CPU)
    with pytest.raises(SystemExit, match="take a smaller model"):
        check_memory(model, H100._replace(memory_bytes=GIB))


def test_overrides_and_options_may_stand_in_any_order():
    options = step.parse_options(["a.b=1", "--random", "c=2", "--also", "compile", "d=3"])
    assert (options.overrides, options.random, options.also) == (["a.b=1", "c=2", "d=3"], True, ["compile"])
    names = [each.name for each in step.list_contenders(["sdpa", "flex_attention"], options.also)]
    assert names[0] == "polytune" and len(names) == len(set(names)) == 7


def test_shapes_times_a_step_of_a_tiny_model_on_every_device(capsys):
    sizes = "num_layers: 1, dim: 16, num_heads: 2, num_kv_heads: 2, head_dim: 8, mlp_dim: 16, vocab_size: 64"
    shapes.main(
        ["dense_8b_gpu_8", "--steps=1", f"model={{{sizes}}}", "data.packing.row_length=32", "train.batch_rows=8",
         "train.microbatches=1", "train.peak_flops_per_s=1e9", "compute.dtype=float32", "compute.remat=none"]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "fsdp=8" in printed and "8 rows of 32" in printed and "real tok/s" in printed
    assert "x 8 device(s) x 1e+09 FLOP/s" in printed


def test_the_table_has_medians_of_timed_steps_and_says_what_failed_and_why():
    batches = [draw_batch(np.random.default_rng(i), rows=2, length=64, vocabulary=32) for i in range(2)]
    cost = StepCost(
        parameters={6: 1000 - 32 * TOY.dim},
        head=(6, 32 * TOY.dim),
        pair_L=(12 * TOY.num_heads * TOY.head_dim,) * TOY.num_layers,
    )
    formula = Utilisation(model=TOY, cost=cost, devices=1, peak_flops_per_s=1e6, peak_source="this test")
    slow = [Step(5.0, 2.0, seconds) for seconds in (9.0, 9.0, 9.0, 0.5, 0.8, 1.0)]
    fast = [Step(5.0, 2.0, seconds) for seconds in (9.0, 9.0, 9.0, 0.2, 0.4, 0.4)]
    last = Step(4.25, 2.0, 0.4)
    outcomes = [
        Outcome(CONTENDERS[0], [*fast[:-1], last], 3 * GIB, utilisation=formula),
        Outcome(CONTENDERS[1], [Step(5.005, 2.0, 9.0), *slow[1:]], GIB),
        Outcome(CONTENDERS[2], [], failure="OutOfMemoryError: 80 GiB"),
    ]
    printed = io.StringIO()
    print_table(Console(file=printed, width=180), outcomes, batches, microbatches=1)
    printed = printed.getvalue()
    ours, theirs = (line for line in printed.splitlines() if line[2:4] in ("a ", "b "))
    assert "400.0" in ours and "200.0" in ours and "3.00 GiB" in ours and "4.2500" in ours and " 320 " in ours
    used = [batches[i] for i in (1, 0, 1)]
    share = np.median(
        [formula.count_flops(batch) / seconds / 1e6 for batch, seconds in zip(used, (0.2, 0.4, 0.4), strict=True)]
    )
    assert f"{share:.1%}" in ours
    assert "800.0" in theirs and "2.50 (2.00 to 2.50)" in theirs and " 128 " in theirs
    assert "the others are within 1.0e-03 and 0.0e+00 of them" in printed
    assert "failed, see above" in printed
    assert describe_outcome(outcomes[2]) == "c failed: OutOfMemoryError: 80 GiB"
    assert describe_outcome(outcomes[0]) == "a: 400.0 ms/step, first 9.0 s, loss 5.0000 to 4.2500, peak 3.00 GiB"

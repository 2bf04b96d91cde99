import json
import math
import zlib
from types import SimpleNamespace

import jax.numpy as jnp
import msgspec
import numpy as np
import pytest
from toy import LANGUAGES, Example, lay_out

from train.loss import GroupSums, LossSums
from train.metrics import BatchFacts, MetricsWriter, describe_batch, read_metrics
from train.step import StepMetrics
from train.timing import Split
from train.trackers import TensorBoard

BATCH = lay_out(
    [
        [Example([1, 5, 6, 7], [0, 0, 1, 1], 2), Example([1, 8, 9], [0, 0, 1], 3)],
        [Example([1, 9], [0, 1], 2)],
    ],
    length=6,
)


def make_facts(tokens_R=(0, 4, 6, 0), first_row=16):
    return BatchFacts(
        first_row=first_row,
        rows=8,
        tokens=sum(tokens_R),
        positions=40,
        tokens_R=np.array(tokens_R),
        digest="00c0ffee",
    )


def make_metrics(loss_R=(0.0, 3.0, 9.0, 0.0), weight_R=(0.0, 2.0, 4.0, 0.0), grad_norm=0.5):
    sums = LossSums(jnp.array(loss_R, jnp.float32), jnp.array(weight_R, jnp.float32))
    return StepMetrics(sums, jnp.float32(grad_norm))


@pytest.fixture
def writer(tmp_path):
    writer = MetricsWriter(tmp_path, attempt=2, languages=LANGUAGES, language_every=2, trackers=())
    yield writer
    writer.close()


def write(writer, step, metrics=None, facts=None):
    return writer.write_step(
        step, metrics or make_metrics(), facts or make_facts(), learning_rate=0.25, split=Split(device_s=2.0)
    )


def test_what_is_minimised_is_logged_beside_the_loss_where_it_is_another(writer, tmp_path):
    metrics = make_metrics()
    write(writer, 1, metrics)
    write(writer, 2, metrics._replace(sums=metrics.sums._replace(objective=jnp.float32(15.0))))
    steps = [record for record in read_metrics(tmp_path) if record["kind"] == "step"]
    assert [(step["loss"], step.get("objective")) for step in steps] == [(2.0, None), (2.0, 2.5)]


def test_facts_of_a_known_batch():
    facts = describe_batch(BATCH, first_row=40, num_languages=4)
    assert (facts.first_row, facts.rows, facts.tokens, facts.positions) == (40, 2, 6, 12)
    np.testing.assert_array_equal(facts.tokens_R, [0, 0, 4, 2])
    rows = [[1, 5, 6, 1, 8, 0], [1, 0, 0, 0, 0, 0]], [[5, 6, 7, 8, 9, 0], [9, 0, 0, 0, 0, 0]]
    segments = [[1, 1, 1, 2, 2, 0], [1, 0, 0, 0, 0, 0]]
    assert facts.digest == f"{zlib.crc32(np.array([*rows, segments], '<i4').tobytes()):08x}" == "1ba059fc"


@pytest.mark.parametrize("field", ["tokens_BT", "targets_BT", "segments_BT"])
def test_another_batch_has_another_digest(field):
    changed = getattr(BATCH, field).copy()
    changed[1, 0] += 1
    other = describe_batch(BATCH._replace(**{field: changed}), first_row=40, num_languages=4)
    assert other.digest != describe_batch(BATCH, first_row=40, num_languages=4).digest


def test_a_step_is_written_as_means_over_the_whole_batch(writer, tmp_path):
    record = write(writer, 3)
    assert (record.loss, record.weight, record.padding, record.seconds) == (2.0, 6.0, 0.75, 2.0)
    (written,) = read_metrics(tmp_path)
    assert written.pop("time") > 1.7e9
    assert written == {
        "kind": "step",
        "attempt": 2,
        "step": 3,
        "loss": 2.0,
        "weight": 6.0,
        "grad_norm": 0.5,
        "learning_rate": 0.25,
        "tokens": 10,
        "padding": 0.75,
        "tokens_per_s": 5.0,
        "target_tokens_per_s": 3.0,
        "step_s": 2.0,
        "data_wait_s": 0.0,
        "dispatch_s": 0.0,
        "device_s": 2.0,
        "write_s": 0.0,
        "rows": [16, 24],
        "digest": "00c0ffee",
    }


def test_a_step_says_where_its_time_went_and_what_of_the_peak_was_used(tmp_path):
    writer = MetricsWriter(tmp_path, attempt=1, languages=LANGUAGES, language_every=9, peak_flops_per_s=1e6)
    facts = make_facts()._replace(flops=5e5)
    split = Split(data_wait_s=0.5, dispatch_s=0.25, device_s=1.125, write_s=0.125)
    record = writer.write_step(
        1, make_metrics(), facts, learning_rate=0.25, split=split, compiled=True
    )  # fmt: skip
    writer.close()
    assert record.mfu == 0.25
    written = read_metrics(tmp_path)[0]
    assert {name: written[name] for name in ("step_s", *split._asdict())} == {"step_s": 2.0, **split._asdict()}
    assert (written["mfu"], written["model_flops"], written["compiled"]) == (0.25, 5e5, True)


def test_sources_are_summed_beside_languages_and_both_say_how_they_pull(tmp_path):
    by_source = GroupSums(np.float32([0, 4, 8]), np.float32([0, 4, 2]), np.float32([0, 3, 1]))
    metrics = make_metrics()
    metrics = metrics._replace(sums=metrics.sums._replace(by_source=by_source, gradient_R=np.float32([0, 1, 3, 0])))
    told = []
    tracker = SimpleNamespace(log=lambda step, scalars: told.append(scalars), close=lambda: None)
    writer = MetricsWriter(
        tmp_path, attempt=1, languages=LANGUAGES, language_every=2, sources=("", "facts", "rules"), trackers=[tracker]
    )
    for step in (1, 2):
        write(writer, step, metrics, make_facts()._replace(tokens_S=np.array([0, 7, 3])))
    (written,) = (record for record in read_metrics(tmp_path) if record["kind"] == "languages")
    assert written["gradient"] == {"ar": 2.0, "fr": 6.0}
    assert written["by_source"] == {
        "loss_sum": {"facts": 8.0, "rules": 16.0},
        "weight": {"facts": 8.0, "rules": 4.0},
        "tokens": {"facts": 14, "rules": 6},
        "gradient": {"facts": 6.0, "rules": 2.0},
    }
    scalars = told[-1]
    assert (scalars["loss_by_source/rules"], scalars["loss_by_language/fr"]) == (4.0, 2.25)
    assert (scalars["gradient_share/source/facts"], scalars["gradient_share/language/ar"]) == (0.75, 0.25)
    writer.close()


def test_memory_is_that_of_the_process_where_devices_keep_no_books(writer, tmp_path):
    write(writer, 2)
    (record,) = (record for record in read_metrics(tmp_path) if record["kind"] == "memory")
    (use,) = record["devices"]
    assert use["of"] == "process" and use["limit"] is None
    assert 50e6 < use["in_use"] <= use["peak"] * 1.1


def test_languages_are_sums_over_the_interval_and_only_those_seen(writer, tmp_path):
    for step in (3, 4, 5, 6):
        write(writer, step, facts=make_facts((0, 4, 6, int(step == 6))))
    first, second = (record for record in read_metrics(tmp_path) if record["kind"] == "languages")
    assert (first["first_step"], first["step"], second["first_step"], second["step"]) == (3, 4, 5, 6)
    assert first["loss_sum"] == {"ar": 6.0, "fr": 18.0}
    assert first["weight"] == {"ar": 4.0, "fr": 8.0}
    assert first["tokens"] == {"ar": 8, "fr": 12}
    assert second["tokens"] == {"ar": 8, "fr": 12, "sw": 1}
    assert second["weight"]["sw"] == 0.0


def test_a_skipped_step_is_written_as_json_that_any_reader_takes_and_spoils_no_sum(writer, tmp_path):
    """NaN is no JSON, and one NaN would make the language's whole interval NaN."""
    write(writer, 1, make_metrics(loss_R=(0, math.nan, 1, 0), grad_norm=math.inf)._replace(verdict=jnp.int32(1)))
    record = write(writer, 2)
    assert record.skipped is None
    lines = [msgspec.json.decode(line) for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines()]
    assert (lines[0]["loss"], lines[0]["grad_norm"], lines[0]["skipped"]) == (None, None, "non_finite")
    assert "skipped" not in lines[1]
    (sums,) = (line for line in lines if line["kind"] == "languages")
    assert (sums["loss_sum"], sums["weight"]) == ({"ar": 3.0, "fr": 9.0}, {"ar": 2.0, "fr": 4.0})
    assert sums["tokens"] == {"ar": 8, "fr": 12}, "its tokens were served"


def test_every_line_is_in_the_file_before_the_next_step(writer, tmp_path):
    writer.write_start(5, {"devices": 8, "mesh": {"fsdp": 4, "tensor": 2}})
    write(writer, 6)
    kinds = [(record["kind"], record["attempt"], record["step"]) for record in read_metrics(tmp_path)]
    assert kinds == [("start", 2, 5), ("step", 2, 6), ("memory", 2, 6), ("languages", 2, 6)]
    assert read_metrics(tmp_path)[0]["mesh"] == {"fsdp": 4, "tensor": 2}


def test_no_metrics_yet_are_no_records(tmp_path):
    assert read_metrics(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 2, 30, 90])
def test_a_line_cut_by_a_kill_is_dropped_and_spoils_no_line_after_it(tmp_path, cut):
    """The next process appends: without care its first record would be glued to the rest of the cut one."""
    path = tmp_path / "metrics.jsonl"
    for attempt in (1, 2):
        writer = MetricsWriter(tmp_path, attempt=attempt, languages=LANGUAGES, language_every=9, trackers=())
        writer.write_start(0, {"name": "é"})
        writer.write_start(attempt, {"name": "é" * 50})
        writer.close()
        path.write_bytes(path.read_bytes()[:-cut])
        assert [(r["attempt"], r["step"]) for r in read_metrics(tmp_path)] == [(1, 0), (2, 0)][:attempt]
    assert all(json.loads(line) for line in path.read_text(errors="replace").splitlines()[:-1])


def test_tensorboard_gets_what_the_file_gets(tmp_path):
    writer = MetricsWriter(tmp_path, attempt=1, languages=LANGUAGES, language_every=1, trackers=[TensorBoard(tmp_path)])
    write(writer, 1)
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for name in (
        "train/loss",
        "train/grad_norm",
        "train/learning_rate",
        "speed/tokens_per_s",
        "loss_by_language/fr",
    ):
        assert name.encode() in content

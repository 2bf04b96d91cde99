import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import tfds_sample
from sample_files import make_rows, read_fields, read_file

from data.files import find_files
from data.formats.reading import iter_chunks
from data.schema import DataError

ROOT = Path(__file__).parents[3]


def save(folder, rows, *, parts=2, split=None, **state):
    """What `datasets.Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    names = [f"data-{part:05}-of-{parts:05}.arrow" for part in range(parts)]
    for part, name in enumerate(names):
        table = pyarrow.Table.from_pylist(rows[part * len(rows) // parts : (part + 1) * len(rows) // parts])
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    facts = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "f", "_split": split}
    (folder / "state.json").write_text(json.dumps(facts | state))
    (folder / "dataset_info.json").write_text("{}")


def save_splits(folder, **splits):
    for split, rows in splits.items():
        save(folder / split, rows, split=split)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def read_folder(folder, split=None, format="auto"):  # noqa: A002
    [file] = find_files(folder.name, folder.parent, format=format)
    return read_file(file, format, split)


def test_a_folder_of_datasets_is_its_arrow_files_in_order(tmp_path):
    save(tmp_path / "mine", make_rows(20), parts=3)
    [file] = find_files("mine", tmp_path)
    assert (file.name, file.url) == ("mine", f"{tmp_path}/mine/")
    assert read_fields(file) == make_rows(20)
    assert [(row.file, row.line) for row in read_file(file)] == [("mine", line) for line in range(1, 21)]
    assert sum(chunk.rows for chunk in iter_chunks(file, "hf_dataset")) == 20


def test_a_split_is_needed_where_there_are_several(tmp_path):
    save_splits(tmp_path / "mine", train=make_rows(9), test=make_rows(4))
    assert [row.line for row in read_folder(tmp_path / "mine", "test")] == [1, 2, 3, 4]
    assert {row.file for row in read_folder(tmp_path / "mine", "train")} == {"mine/train"}
    with pytest.raises(DataError, match=r"mine has splits train, test; set `split` to one of them"):
        read_folder(tmp_path / "mine")
    with pytest.raises(DataError, match=r"mine has no split 'dev'; it has train, test"):
        read_folder(tmp_path / "mine", "dev")
    save_splits(tmp_path / "one", train=make_rows(3))
    assert len(read_folder(tmp_path / "one")) == 3
    assert len(read_folder(tmp_path / "one" / "train", "train")) == 3
    with pytest.raises(DataError, match=r"train is one data set without splits, not 'test'; leave `split` out"):
        read_folder(tmp_path / "one" / "train", "test")


def test_an_order_kept_beside_the_rows_is_refused_with_the_remedy(tmp_path):
    save(tmp_path / "mine", make_rows(4), _indices_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match=r"keeps the order of its rows in a file .*flatten_indices\(\).save_to_disk"):
        read_folder(tmp_path / "mine")


def test_a_folder_that_lost_or_damaged_a_file_is_an_error(tmp_path):
    save(tmp_path / "mine", make_rows(8))
    part = tmp_path / "mine" / "data-00001-of-00002.arrow"
    whole = part.read_bytes()
    part.write_bytes(whole[:-8])
    with pytest.raises(DataError, match=r"mine/data-00001-of-00002.arrow is cut, or its writer was not closed"):
        read_folder(tmp_path / "mine")
    part.unlink()
    with pytest.raises(DataError, match=r"cannot read mine/data-00001-of-00002.arrow: .*No such file"):
        read_folder(tmp_path / "mine")
    (tmp_path / "mine" / "state.json").write_text('{"_data_files": 3}')
    with pytest.raises(DataError, match=r"mine/state.json does not list the folder's files"):
        read_folder(tmp_path / "mine")
    (tmp_path / "mine" / "state.json").write_text('{"_data')
    with pytest.raises(DataError, match=r"mine/state.json is damaged"):
        read_folder(tmp_path / "mine")


@pytest.fixture(scope="module")
def tfds_root(tmp_path_factory):
    """A data set that TFDS itself has prepared, without TensorFlow, in a process that may print what it likes."""
    root = tmp_path_factory.mktemp("tfds")
    subprocess.run([sys.executable, tfds_sample.__file__, str(root)], check=True, capture_output=True)
    assert (root / "tiny" / "1.0.0" / "features.json").is_file()
    return root


def test_a_tfds_data_set_gives_plain_values(tfds_root):
    rows = read_fields(find_files("tiny/1.0.0", tfds_root)[0], "tfds", "train")
    assert sorted(row["n"] for row in rows) == list(range(30))
    [row] = [row for row in rows if row["n"] == 3]
    assert row == tfds_sample.EXAMPLE
    assert json.loads(json.dumps(row)) == row
    assert all(type(value) in (str, int, bool, list, dict) for value in row.values())


def test_a_tfds_data_set_is_read_in_its_own_order_by_split_and_slice(tfds_root):
    [file] = find_files("tiny/1.0.0", tfds_root)
    train, test = (read_file(file, split=split) for split in ("train", "test"))
    assert [(row.file, row.line) for row in test] == [("tiny/1.0.0/test", line) for line in (1, 2, 3, 4)]
    assert [r.fields for r in read_file(file, split="train[10:13]")] == [r.fields for r in train[10:13]]
    assert [r.fields for r in read_file(file, split="train+test")] == [r.fields for r in train + test]
    with pytest.raises(DataError, match=r"tiny/1.0.0 has splits train, test; set `split`"):
        read_file(file)
    with pytest.raises(DataError, match=r"tiny/1.0.0 has no split 'dev'; it has train, test"):
        read_file(file, split="dev")
    with pytest.raises(DataError, match=r"TFDS cannot read split 'train\[zz:\]'"):
        read_file(file, split="train[zz:]")


def test_a_damaged_or_cut_tfds_file_is_named(tfds_root, tmp_path):
    copy = tmp_path / "tiny"
    shutil.copytree(tfds_root / "tiny" / "1.0.0", copy)
    [part] = copy.glob("*-train.array_record-*")
    part.write_bytes(part.read_bytes()[:-1000])
    with pytest.raises(DataError, match=rf"tiny/{part.name} is cut or damaged"):
        read_folder(copy, "train")
    part.unlink()
    with pytest.raises(DataError, match=rf"tiny/{part.name} is cut or damaged.*|cannot read"):
        read_folder(copy, "train")


@pytest.mark.parametrize("count", ["29", "31"])
def test_a_tfds_file_with_another_number_of_examples_than_it_should_have_is_an_error(tfds_root, tmp_path, count):
    shutil.copytree(tfds_root / "tiny" / "1.0.0", tmp_path / "tiny")
    info = tmp_path / "tiny" / "dataset_info.json"
    info.write_text(info.read_text().replace('"30"', f'"{count}"'))
    with pytest.raises(DataError, match=rf"tiny-train.* has 30 records, but the data set says {count}"):
        read_folder(tmp_path / "tiny", "train")


def test_a_tfds_data_set_of_another_file_format_is_refused_with_the_remedy(tmp_path):
    (tmp_path / "features.json").write_text("{}")
    (tmp_path / "dataset_info.json").write_text('{"splits": [{"name": "train"}]}')
    with pytest.raises(DataError, match=r"is written as tfrecord, which needs TensorFlow.*--file_format=array_record"):
        read_folder(tmp_path)


def test_reading_tfds_prints_nothing_and_loads_no_tensorflow(tfds_root):
    program = f"""
import sys
from data.files import find_files
from data.formats.reading import iter_chunks, read_chunk
[file] = find_files("tiny/1.0.0", {str(tfds_root)!r})
rows = [row for chunk in iter_chunks(file, "auto", split="train") for row in read_chunk(chunk)]
assert len(rows) == 30 and not {{"tensorflow", "torch", "jax"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

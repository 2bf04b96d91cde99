import gzip
import os
import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from data.files import DataFile, detect_format, find_files
from data.formats.reading import iter_chunks, read_chunk
from data.schema import DataError
from data.storage import list_entries

ROW = b'{"a": "b"}\n'


@pytest.fixture
def tree(tmp_path):
    for name in (
        "b.jsonl",
        "a.jsonl",
        "sub/c.jsonl",
        "sub/deep/d.jsonl",
        "sub/e.csv.gz",
        ".hidden.jsonl",
        "odd[1]?.jsonl",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(ROW)
    return tmp_path


@pytest.fixture
def store():
    """An empty store in memory, at `memory://data`."""
    memory = fsspec.filesystem("memory")
    memory.rm("/", recursive=True) if memory.ls("/") else None
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "sub/.hidden.jsonl"):
        memory.pipe(f"/data/{name}", ROW)
    yield memory
    memory.rm("/", recursive=True)


def names(patterns, root, **options):
    return [file.name for file in find_files(patterns, root, **options)]


@pytest.mark.parametrize(
    ("patterns", "found"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("./sub/../a.jsonl", ["a.jsonl"]),
        ("*.jsonl", ["a.jsonl", "b.jsonl", "odd[1]?.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "odd[1]?.jsonl", "sub/c.jsonl", "sub/deep/d.jsonl"]),
        ("sub/**", ["sub/c.jsonl", "sub/deep/d.jsonl", "sub/e.csv.gz"]),
        ("[ab].jsonl", ["a.jsonl", "b.jsonl"]),
        ("odd[1]?.jsonl", ["odd[1]?.jsonl"]),
        (".hidden.jsonl", [".hidden.jsonl"]),
        (("b.jsonl", "*.jsonl", "a.jsonl", "sub/c.jsonl"), ["a.jsonl", "b.jsonl", "odd[1]?.jsonl", "sub/c.jsonl"]),
    ],
)
def test_files_are_found_once_sorted_and_named_below_the_root(tree, patterns, found):
    assert names(patterns, str(tree)) == found
    assert names(patterns, tree) == found
    absolute = [str(tree / pattern) for pattern in ((patterns,) if isinstance(patterns, str) else patterns)]
    assert names(absolute, tree) == found


def test_the_order_of_patterns_and_listings_changes_nothing(tree):
    patterns = ["sub/**", "*.jsonl", "a.jsonl"]
    assert find_files(patterns, tree) == find_files(patterns[::-1], tree)


def test_files_outside_the_root_go_by_their_whole_path_and_file_urls_are_paths(tree):
    assert names("../a.jsonl", tree / "sub") == [str(tree / "a.jsonl")]
    assert names(f"file://{tree}/a.jsonl", tree) == ["a.jsonl"]
    assert names("a.jsonl", f"file://{tree}") == ["a.jsonl"]


def test_the_version_changes_with_the_content(tree):
    [before] = find_files("a.jsonl", tree)
    assert before == DataFile(url=str(tree / "a.jsonl"), name="a.jsonl", size=len(ROW), version=before.version)
    os.utime(tree / "a.jsonl", ns=(1, 1))
    assert find_files("a.jsonl", tree)[0].version != before.version


@pytest.mark.parametrize(
    ("patterns", "options", "message"),
    [
        ("nothing*.jsonl", {}, "no file matches ROOT/nothing*.jsonl; check it and data.root"),
        (["a.jsonl", "x.jsonl"], {}, "no file matches ROOT/x.jsonl; check it and data.root"),
        ((), {}, "path is an empty list; give at least one file, glob or folder"),
        ("sub", {}, "no file matches sub: it is a folder, so add a pattern: sub/*.jsonl"),
        ("sub/deep/", {}, "no file matches sub/deep: it is a folder, so add a pattern: sub/deep/*.jsonl"),
        ("empty.jsonl", {}, "empty.jsonl is empty; give it rows or take it out of data.sources"),
        ("notes.txt", {}, "notes.txt: its name does not say what format it is in; set `format` on the source"),
        ("a.jsonl", {"format": "tfds"}, "a.jsonl is a file, but format tfds is a folder; name the folder"),
        ("*.jsonl", {"format": "tfds"}, "no folder matches ROOT/*.jsonl; check it and data.root"),
        ("sub", {"format": "tfds"}, "no file of sub shows that TFDS wrote it; name the folder it wrote"),
        (
            "sub",
            {"format": "hf_dataset"},
            "no file of sub shows that Dataset.save_to_disk of Hugging Face datasets wrote it",
        ),
        (
            "nope://bucket/x.jsonl",
            {},
            "cannot read nope://bucket/x.jsonl: Protocol not known: nope; use a local path or gs://",
        ),
        ("zip://x.jsonl::gs://b/x.zip", {}, "is a chain of file systems; give the address of the files alone"),
    ],
)
def test_what_cannot_be_found_is_an_error_that_says_what_to_write(tree, patterns, options, message):
    (tree / "empty.jsonl").touch()
    (tree / "notes.txt").write_text("x")
    with pytest.raises(DataError) as error:
        find_files(patterns, tree, **options)
    assert message.replace("ROOT", str(tree)) in str(error.value)


def test_a_folder_of_many_files_says_which_pattern_finds_them(tmp_path):
    for name in ("README.md", "dataset_info.json", "data/train-0.parquet", "data/train-1.parquet", "x.csv"):
        (tmp_path / "hub" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "hub" / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"so add a pattern: hub/\*\*/\*\.parquet$"):
        find_files("hub", tmp_path)


def test_data_sets_are_folders_and_globs_find_files_unless_folders_are_asked_for(tmp_path):
    for name in ("one/state.json", "one/data.arrow", "two/1.0.0/features.json", "two/1.0.0/dataset_info.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    [one] = find_files("one", tmp_path)
    assert (one.url, one.name, one.size) == (f"{tmp_path}/one/", "one", 4)
    assert names("two/1.0.0/", tmp_path) == ["two/1.0.0"]
    assert names("o*", tmp_path, format="hf_dataset") == ["one"]
    assert names("*/*.arrow", tmp_path) == ["one/data.arrow"]
    with pytest.raises(DataError, match=r"one is a folder of format hf_dataset, not tfds"):
        find_files("one", tmp_path, format="tfds")
    with pytest.raises(DataError, match=r"TFDS wrote it; below it, these look like one: 1.0.0"):
        find_files("two", tmp_path, format="tfds")
    (tmp_path / "one" / "data.arrow").write_bytes(b"[]")
    os.utime(tmp_path / "one" / "data.arrow", ns=(1, 1))
    assert find_files("one", tmp_path)[0].version != one.version


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("x.jsonl", "jsonl"), ("x.ndjson.gz", "jsonl"), ("a.b/x.JSONL.ZST", "jsonl"), ("x.json", "json"),
        ("x.json.bz2", "json"), ("x.csv.xz", "csv"), ("x.tsv", "tsv"), ("x.parquet", "parquet"), ("x.arrow", "arrow"),
        ("x.feather", "arrow"), ("x.array_record", "array_record"), ("x.array_record-00001-of-00020", "array_record"),
        ("gs://bucket/x.jsonl.gz-00000-of-00002", "jsonl"), ("https://host/x.csv.gz?download=true", "csv"),
    ],
)  # fmt: skip
def test_the_format_is_told_by_the_name(name, format):  # noqa: A002
    assert detect_format(name) == format


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("README.md", "README.md: its name does not say"),
        ("jsonl", "jsonl: its name does not say"),
        ("x.gz", "x.gz: its name does not say"),
        ("x.parquet.gz", "x.parquet.gz: parquet files compress what is in them; decompress this one"),
    ],
)
def test_a_name_that_tells_no_format_is_an_error(name, message):
    with pytest.raises(DataError, match=message):
        detect_format(name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_error(tree):
    (tree / "a.jsonl").chmod(0)
    with pytest.raises(DataError, match=r"cannot read a.jsonl: Permission denied"):
        next(iter_chunks(find_files("a.jsonl", tree)[0], "auto"))


def test_links_to_nowhere_and_pipes_are_errors_and_no_hang(tree):
    (tree / "a.jsonl").unlink()
    (tree / "a.jsonl").symlink_to("gone.jsonl")
    with pytest.raises(DataError, match=r"cannot read .*a.jsonl: No such file"):
        find_files("*.jsonl", tree)
    os.mkfifo(tree / "pipe.jsonl")
    with pytest.raises(DataError, match=r"pipe.jsonl is neither a file nor a folder"):
        find_files("pipe.jsonl", tree)


def test_a_name_that_is_not_utf_8_is_refused_before_it_is_written_anywhere(tmp_path):
    (tmp_path / os.fsdecode(b"x\xff.jsonl")).write_bytes(ROW)
    with pytest.raises(DataError, match=r"'x\\udcff.jsonl': the file's name is not UTF-8; rename it"):
        find_files("*.jsonl", tmp_path)


# Remote stores


@pytest.mark.parametrize(
    ("patterns", "root", "found"),
    [
        ("memory://data/*.jsonl", ".", ["memory:///data/a.jsonl", "memory:///data/b.jsonl"]),
        ("memory://data/a.jsonl", ".", ["memory:///data/a.jsonl"]),
        ("memory://data/**/*.jsonl", "memory://data", ["a.jsonl", "b.jsonl", "sub/c.jsonl"]),
        (("b.jsonl", "*.jsonl"), "memory://data/", ["a.jsonl", "b.jsonl"]),
        ("sub/c.jsonl", "memory://data", ["sub/c.jsonl"]),
    ],
)
def test_files_of_a_store_are_found_like_those_of_a_disk(store, patterns, root, found):
    assert names(patterns, root) == found
    for file in find_files(patterns, root):
        assert [row.fields for chunk in iter_chunks(file, "auto") for row in read_chunk(chunk)] == [{"a": "b"}]


@pytest.mark.parametrize("name", ["x.parquet", "stream.arrow", "x.array_record", "x.csv.zst"])
def test_every_kind_of_format_is_read_from_a_store(store, tmp_path, monkeypatch, name):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "formats"))
    from sample_files import make_rows, read_fields, write_file

    store.pipe(f"/data/{name}", write_file(tmp_path, name, make_rows()).read_bytes())
    assert read_fields(find_files(name, "memory://data")[0]) == make_rows()


def test_a_stores_facts_say_when_a_file_changed(store):
    [before] = find_files("memory://data/a.jsonl", ".")
    assert find_files("memory://data/a.jsonl", ".") == [before]
    store.pipe("/data/a.jsonl", ROW + ROW)
    [after] = find_files("memory://data/a.jsonl", ".")
    assert (before.size, after.size) == (len(ROW), 2 * len(ROW))
    assert before.version != after.version


def test_a_stores_checksum_is_the_version(store, monkeypatch):
    info = type(store).info
    monkeypatch.setattr(
        type(store), "info", lambda self, path, **options: info(self, path) | {"md5Hash": "abc", "size": None}
    )
    assert [(entry.version, entry.size) for entry in list_entries("memory:///data/a.jsonl")] == [("abc", -1)]


@pytest.mark.parametrize(
    ("url", "package", "module"),
    [
        ("gs://bucket/x.jsonl", "gcsfs", "gcsfs"),
        ("s3://bucket/x.jsonl", "s3fs", "s3fs"),
        ("az://b/x.jsonl", "adlfs", "adlfs"),
    ],
)
def test_a_store_whose_package_is_missing_names_what_to_install(monkeypatch, url, package, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        DataError, match=rf"reading {url[:2]}.*:// needs a package .* not installed; pip install {package}$"
    ):
        find_files(url, ".")


def test_a_store_that_fails_is_an_error_that_names_the_file(store, monkeypatch):
    class NoCredentialsError(Exception):
        pass

    def fail(*_, **__):
        raise NoCredentialsError("token expired")

    [file] = find_files("memory://data/a.jsonl", ".")
    monkeypatch.setattr(type(store), "_open", fail)
    with pytest.raises(
        DataError, match=r"memory:///data/a.jsonl: NoCredentialsError: token expired; check the address"
    ):
        next(iter_chunks(file, "auto"))
    monkeypatch.setattr(type(store), "info", fail)
    with pytest.raises(DataError, match=r"cannot read memory:///data/a.jsonl: NoCredentialsError: token expired"):
        find_files("memory://data/a.jsonl", ".")


def test_a_missing_file_of_a_store_is_an_error_with_its_address(store):
    with pytest.raises(DataError, match=r"no file matches memory:///data/x.jsonl; check it and data.root"):
        find_files("memory://data/x.jsonl", ".")
    with pytest.raises(DataError, match=r"it is a folder, so add a pattern: memory://data/\*\.jsonl"):
        find_files("memory://data", ".")


def test_a_part_of_a_compressed_file_is_decompressed(tmp_path):
    (tmp_path / "x.jsonl.gz-00000-of-00002").write_bytes(gzip.compress(ROW))
    [file] = find_files("x.jsonl.gz-*", tmp_path)
    assert [row.line for chunk in iter_chunks(file, "auto") for row in read_chunk(chunk)] == [1]


def test_a_folder_of_datasets_is_read_from_a_store(store, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "formats"))
    from sample_files import make_rows, read_fields, write_file

    part = write_file(tmp_path, "stream.arrow", make_rows()).read_bytes()
    store.pipe("/data/mine/dataset_dict.json", b'{"splits": ["train"]}')
    store.pipe("/data/mine/train/state.json", b'{"_data_files": [{"filename": "a.arrow"}], "_split": "train"}')
    store.pipe("/data/mine/train/a.arrow", part)
    [file] = find_files("mine", "memory://data")
    assert (file.name, file.url) == ("mine", "memory:///data/mine/")
    assert read_fields(file) == make_rows()


def test_a_tfds_folder_is_read_from_a_store_by_way_of_this_disk(store, tmp_path):
    sample = Path(__file__).parent / "formats" / "tfds_sample.py"
    subprocess.run([sys.executable, str(sample), str(tmp_path)], check=True, capture_output=True)
    store.put(str(tmp_path / "tiny" / "1.0.0"), "/data/tiny", recursive=True)
    [file] = find_files("tiny", "memory://data")
    rows = [row for chunk in iter_chunks(file, "auto", split="test") for row in read_chunk(chunk)]
    assert [(row.file, row.line) for row in rows] == [("tiny/test", line) for line in (1, 2, 3, 4)]
    assert {row.fields["n"] for row in rows} == {0, 1, 2, 3}

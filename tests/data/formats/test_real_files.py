import json
import os
from pathlib import Path

import pytest
from sample_files import read_file

from data.formats.rows import BadLine

ROOT = os.environ.get("POLYTUNE_REALDATA", "")


@pytest.mark.realdata
@pytest.mark.skipif(not ROOT, reason="POLYTUNE_REALDATA is not set")
def test_real_files_are_read_as_json_reads_their_lines():
    bad: list[BadLine] = []
    total = 0
    for path in sorted(Path(ROOT).glob("**/*.jsonl")):
        rows = read_file(path)
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
        assert [row.line for row in rows] == list(range(1, len(lines) + 1))
        for row, line in zip(rows, lines, strict=True):
            if isinstance(row, BadLine):
                bad.append(row)
            else:
                assert row.fields == json.loads(line)
        total += len(rows)
    assert total > 40_000
    assert [(row.file, row.line) for row in bad] == [("zh_local.jsonl", 15)]

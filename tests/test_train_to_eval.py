"""The contract between the two programs: a checkpoint directory, and nothing else."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.launch.programs import environment, run_polytune, write_tiny_recipe

EVALUATE = """
import sys
from eval.run import main
code = main(sys.argv[1:])
known = sorted(name for name in sys.modules if name.split('.')[0] in ('train', 'launch', 'optax'))
print('imported:', known)
sys.exit(code or bool(known))
"""


@pytest.fixture(scope="module")
def trained_on_eight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("eight")
    recipe = write_tiny_recipe(folder, run_dir=folder / "run", steps=250, save_every=100)
    run_polytune("train", recipe, "mesh.fsdp=4", "mesh.tensor=2", devices=8)
    return folder / "run"


def evaluate(run_dir, *, devices: int, output) -> dict:
    arguments = [str(run_dir), "--tasks", "facts,heldout", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-c", EVALUATE, *arguments],
        env=environment(devices),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "imported: []" in done.stdout
    return json.loads((output / "results.json").read_text())


@pytest.mark.slow
def test_a_checkpoint_of_eight_devices_is_evaluated_on_one_without_importing_train(trained_on_eight, tmp_path):
    one = evaluate(trained_on_eight, devices=1, output=tmp_path / "one")
    eight = evaluate(trained_on_eight, devices=8, output=tmp_path / "eight")
    assert one["config"]["step"] == 250
    for language in ("en", "de", "sw", "ar"):
        first, second = (results["results"][f"facts_{language}"] for results in (one, eight))
        assert first["exact_match,none"] == second["exact_match,none"]
        first, second = (results["results"][f"heldout_{language}"] for results in (one, eight))
        assert first["bits_per_byte,none"] == pytest.approx(second["bits_per_byte,none"], rel=1e-5)
    assert one["groups"]["facts"]["exact_match,none"] > 0.5, "the tiny model did not learn its 32 facts"


@pytest.mark.slow
def test_a_foreign_tokenizer_beside_a_checkpoint_is_refused(trained_on_eight, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(trained_on_eight, run_dir)
    description = run_dir / "tokenizer" / "polytune_tokenizer.json"
    changed = json.loads(description.read_text())
    changed["hash"] = "0" * 64
    description.write_text(json.dumps(changed))
    done = run_polytune("eval", run_dir, "--tasks", "facts", check=False)
    assert done.returncode == 2
    assert "tokenizer" in done.stderr and "Traceback" not in done.stderr

"""The command line: help that works, errors a user can read, exit codes a program can."""

import io
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from launch import cli
from launch.cli import EXIT_USER_ERROR, VERBS, main
from launch.options import EXAMPLES, make_parser, parse_arguments

ROOT = Path(__file__).resolve().parent.parent.parent


def test_every_verb_has_a_program_and_an_example():
    assert set(EXAMPLES) == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_ends_with_an_example_that_parses(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    name, example = last.split(": ", 1)
    assert (name, example) == ("example", EXAMPLES[verb])
    program, *arguments = shlex.split(example)
    assert program == "polytune"
    assert make_parser().parse_args(arguments).verb == verb


@pytest.mark.parametrize(
    "arguments",
    [
        ["preview", "demo", "a.b=1", "c.d=2", "--rows", "2"],
        ["preview", "demo", "--rows", "2", "a.b=1", "c.d=2"],
        ["preview", "demo", "a.b=1", "--rows", "2", "c.d=2"],
        ["preview", "--rows", "2", "demo", "a.b=1", "c.d=2"],
    ],
)
def test_overrides_may_stand_anywhere(arguments):
    options = parse_arguments(arguments)
    assert (options.recipe, options.overrides, options.rows) == ("demo", ["a.b=1", "c.d=2"], 2)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["trian"],
        ["train"],
        ["eval", "run"],
        ["generate", "run"],
        ["env", "x"],
        ["train", "demo", "--steps", "3"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_none_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: polytune" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "dmeo"], "no recipe 'dmeo'; did you mean demo?"),
        (["train", "demo", "train.stepz=3"], "train.stepz: unknown key (value 3). Did you mean train.steps?"),
        (["preview", "[bold]no[/] \\[tag]"], "no recipe '[bold]no[/] \\\\[tag]'"),
        (["train", "demo", "mesh.fsdp=3"], "mesh data=1 fsdp=3 expert=1 sequence=1 tensor=1 does not cover the 8"),
        (
            ["train", "demo", "train.batch_rows=32", "train.microbatches=7"],
            "batch_rows=32 is not divisible by",
        ),
        (["generate", "nowhere", "--prompt", "x"], "nowhere does not exist; give a run directory"),
        (["generate", "nowhere", "--prompt", " "], "a prompt is empty"),
        (["eval", "nowhere", "--tasks", "facts"], "nowhere does not exist; give a run directory"),
        (["eval", "nowhere", "--tasks", "facts,facts"], "names a task twice"),
        (["report", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_a_user_can_mend_is_one_message(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POLYTUNE_TRACEBACK", raising=False)
    assert main(arguments) == EXIT_USER_ERROR == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert "Traceback" not in printed.err + printed.out
    assert list(tmp_path.iterdir()) == [], "a refused command leaves nothing behind"


def test_a_traceback_is_there_for_those_who_ask(monkeypatch):
    monkeypatch.setenv("POLYTUNE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="no recipe 'dmeo'"):
        main(["train", "dmeo"])


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("bad"), 2),
        (FileNotFoundError("gone"), 2),
        (PermissionError("no"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exit_codes(error, code, monkeypatch, capsys):
    def fail(options, console):
        raise error

    monkeypatch.setitem(cli.VERBS, "env", fail)
    monkeypatch.delenv("POLYTUNE_TRACEBACK", raising=False)
    assert main(["env"]) == code


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), AssertionError("x")], ids=lambda e: type(e).__name__)
def test_an_error_of_ours_is_never_dressed_up_as_the_user_s(error, monkeypatch):
    def fail(options, console):
        raise error

    monkeypatch.setitem(cli.VERBS, "env", fail)
    with pytest.raises(type(error)):
        main(["env"])


def test_env_describes_machine_and_versions(capsys, monkeypatch):
    monkeypatch.setenv("POLYTUNE_MARK", "[seen]")
    assert main(["env"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["python"] == platform.python_version()
    for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy"):
        assert lines[package] == metadata.version(package)
    assert lines["devices"] == "8 x cpu (cpu)"
    assert lines["POLYTUNE_MARK"] == "[seen]"
    assert lines["memory"].endswith(" GiB")


def test_help_answers_before_jax_is_there():
    """A second or more of imports is left to the verbs."""
    program = (
        "import sys, launch.cli, launch.options; launch.options.make_parser(); "
        "print([name for name in ('jax', 'grain', 'data') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_output_into_a_pipe_holds_no_escape_codes(capsys):
    assert isinstance(sys.stdout, io.TextIOBase)
    main(["train", "dmeo"])
    assert "\x1b" not in capsys.readouterr().err

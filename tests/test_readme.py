"""The README's commands are the Makefile's and the command line's: none is left to rot."""

import re
import shlex
from pathlib import Path

import pytest

from launch.options import EXAMPLES, make_parser
from launch.recipe import load_recipe, shipped_recipes

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(text: str) -> list[str]:
    """Lines of indented or fenced code that start with a command of ours, comments cut off, continuations joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    found = re.findall(r"^(?: {4}|\$ )((?:make|polytune) [^\n]*)$", joined, re.MULTILINE)
    return [re.split(r"\s{2,}#|\s#\s", line)[0].strip() for line in found]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_the_readme_opens_with_the_two_commands():
    first = [command for command in commands(README) if command.startswith("make ")][:2]
    assert first == ["make demo", "make test"]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_command_in_the_documents_is_a_target(path):
    lines = [line for line in commands(path.read_text("utf-8")) if line.startswith("make ")]
    used = {word for line in lines for word in line.split()[1:] if "=" not in word}
    assert used <= make_targets()


def test_every_public_target_is_in_the_readme_or_contributing():
    text = README + (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert {target for target in make_targets() if f"make {target}" not in text} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_polytune_command_in_the_documents_parses(path):
    for line in commands(path.read_text("utf-8")):
        if line.startswith("polytune "):
            options = make_parser().parse_args(shlex.split(line)[1:])
            assert options.verb == line.split()[1]
            if getattr(options, "recipe", None) in shipped_recipes():
                load_recipe(options.recipe, options.overrides)


def test_the_documents_hold_commands_at_all():
    assert len([line for line in commands(README) if line.startswith("polytune ")]) >= 8


@pytest.mark.parametrize("verb", sorted(EXAMPLES))
def test_each_verb_has_an_example_that_parses_and_is_in_its_help(verb, capsys):
    words = shlex.split(EXAMPLES[verb])
    assert words[0] == "polytune" and make_parser().parse_args(words[1:]).verb == verb
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_args([verb, "--help"])
    assert stop.value.code == 0
    assert f"example: {EXAMPLES[verb]}" in capsys.readouterr().out


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_has_a_gap_left_to_fill_or_a_dead_link(path):
    text = path.read_text("utf-8")
    assert not re.search(r"@[A-Z_]+@|TODO|FIXME", text)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert (path.parent / target).exists(), target

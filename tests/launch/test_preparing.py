"""Where prepared data goes, and where it cannot go."""

from pathlib import Path

import msgspec
import pytest

from launch.config import RecipeError
from launch.preparing import store_of
from launch.recipe import load_recipe


def demo(store):
    recipe = load_recipe("demo")
    return msgspec.structs.replace(recipe, data=msgspec.structs.replace(recipe.data, store=store))


def test_tokens_are_kept_in_the_cache_folder_unless_the_recipe_says_where(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYTUNE_CACHE", str(tmp_path))
    assert store_of(demo(None)) == tmp_path / "prepared"
    assert store_of(demo("/tokens")) == Path("/tokens")
    assert store_of(demo("file:///tokens")) == Path("/tokens")


def test_a_bucket_as_store_is_refused_and_no_folder_of_its_name_is_made(monkeypatch, tmp_path):
    """`Path("gs://bucket/x")` is the folder `gs:/bucket/x` of wherever the program was started."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"data.store gs://bucket/x is a URL.*give a folder"):
        store_of(demo("gs://bucket/x"))
    assert list(tmp_path.iterdir()) == []

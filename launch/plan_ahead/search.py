"""The least rematerialisation, then the fewest microbatches, with which a recipe fits."""

from collections.abc import Callable, Iterator

import msgspec

from launch.config import Recipe, RecipeError
from launch.plan_ahead.plan import AheadPlan

REMAT_FROM_LEAST = ("none", "products", "attention", "block", "offload")
"""`compute.remat`, from what recomputes nothing on."""


def search(recipe: Recipe, batch_ways: int, plan: Callable[[Recipe], AheadPlan]) -> tuple[Recipe, AheadPlan]:
    """The first recipe that fits, and its plan; if none does, the smallest one that was tried.

    For each remat policy from the least on, the smallest microbatches are tried first: where they do not fit, nothing
    of that policy does. Then they are made larger for as long as they fit. Every trial is a compilation. Raises
    RecipeError when no split of the batch fits the mesh.
    """
    smallest: tuple[Recipe, AheadPlan] | None = None
    counts = list(splits(recipe.train.batch_rows, batch_ways))
    for remat in REMAT_FROM_LEAST:
        tried = _with(recipe, remat, counts[0])
        found = (tried, plan(tried))
        if smallest is None or found[1].memory.total < smallest[1].memory.total:
            smallest = found
        if not found[1].fits:
            continue
        for count in counts[1:]:
            tried = _with(recipe, remat, count)
            larger = (tried, plan(tried))
            if not larger[1].fits:
                break
            found = larger
        return found
    assert smallest is not None, "there is at least one policy and one count"
    return smallest


def splits(batch_rows: int, batch_ways: int) -> Iterator[int]:
    """Numbers of microbatches that the mesh divides, most first: of 64 rows over 16 chips 4, 2 and 1.

    Raises RecipeError when there is none.
    """
    if batch_rows % batch_ways:
        low = batch_rows // batch_ways * batch_ways
        options = f"{low} or {low + batch_ways}" if low else f"{batch_ways}"
        raise RecipeError(f"train.batch_rows={batch_rows} is not divisible by the mesh's {batch_ways}; use {options}")
    most = batch_rows // batch_ways
    return (count for count in range(most, 0, -1) if most % count == 0)


def _with(recipe: Recipe, remat: str, microbatches: int) -> Recipe:
    return msgspec.structs.replace(
        recipe,
        compute=msgspec.structs.replace(recipe.compute, remat=remat),
        train=msgspec.structs.replace(recipe.train, microbatches=microbatches),
    )

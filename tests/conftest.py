"""Every test runs on eight simulated CPU devices, with strict dtypes and ranks and checked shapes."""

import os
from pathlib import Path

# The settings below must come before anything of the project, and any array, is there.
import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Nearly all the time of this suite would go into compiling tiny programs well: compile them fast instead,
# which changes no result beyond rounding. Processes that tests start compile as users' do.
jax.config.update("jax_disable_most_optimizations", True)
if jax.__version_info__[:2] == (0, 10):  # XLA ends a process over a flag it does not know
    flags = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{flags or ''} --xla_cpu_use_fusion_emitters=false"
    jax.numpy.zeros(()).block_until_ready()  # flags are read once, now
    os.environ.pop("XLA_FLAGS") if flags is None else os.environ.update(XLA_FLAGS=flags)

# Compiled programs outlive the session, for this process and for those that tests start.
os.environ.setdefault("POLYTUNE_CACHE", str(ROOT / ".cache"))
jax.config.update("jax_compilation_cache_dir", str(Path(os.environ["POLYTUNE_CACHE"]) / "tests"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)

# Shapes and types of arguments and results are checked at every call, in tests only: everywhere in the two
# packages that compute on arrays, and where the others do.
ARRAY_MODULES = (
    "model", "train", "data.dataset", "data.packing", "data.pipeline", "data.plan", "eval.engine",
    "eval.scoring", "eval.stats",
)  # fmt: skip
install_import_hook(ARRAY_MODULES, "beartype.beartype")


# The same examples every time, so that a fresh clone passes or fails alike everywhere, however slow the machine;
# `pytest --hypothesis-profile=explore` looks further.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", max_examples=2000, deadline=None)
hypothesis.settings.load_profile("same")


@pytest.fixture(autouse=True)
def _keep_settings():
    """A test that enters a program's main leaves no setting of its process behind."""
    names = (
        "jax_compilation_cache_dir", "jax_compilation_cache_include_metadata_in_key",
        "jax_persistent_cache_min_compile_time_secs",
    )  # fmt: skip
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def one_device():
    """Enters the smallest mesh for the length of a test."""
    from toy import mesh_of

    mesh = mesh_of((1, 1))
    with jax.set_mesh(mesh):
        yield mesh


@pytest.fixture(scope="session")
def toy_params():
    """Fresh parameters of the toy model, in host memory."""
    from toy import AXES, TOY, copy_to_host, mesh_of

    from model.transformer import init

    with jax.set_mesh(mesh_of((1, 1))):
        return copy_to_host(jax.jit(init, static_argnums=(0, 1))(TOY, AXES, jax.random.key(0)))

"""A trace of some steps for xprof: what the devices and the host did, each process writing of its own."""

from pathlib import Path

import jax


class StepProfile:
    """Traces the steps from `start` to `stop`, both included, into `RUN/profile`. A context manager.

    Several processes write into `RUN/profile/process_I`: two of one host would write the same file.
    Steps that a run does not come to are not traced, nor those before it resumed. Leaving ends an open trace.
    """

    def __init__(self, run_dir: Path, steps: tuple[int, int] | None):
        several = jax.process_count() > 1
        self._folder = run_dir / "profile" / (f"process_{jax.process_index()}" if several else "")
        self._steps = steps
        self._is_open = False

    def __enter__(self) -> "StepProfile":
        return self

    def __exit__(self, *error: object) -> None:
        self._end()

    def before(self, step: int) -> None:
        """To be called before anything of the step is done."""
        if self._steps and self._steps[0] <= step <= self._steps[1] and not self._is_open:
            jax.profiler.start_trace(str(self._folder))
            self._is_open = True

    def after(self, step: int, result: object) -> None:
        """To be called when a step is dispatched: after the last one its result is waited for, once."""
        if self._steps and step >= self._steps[1] and self._is_open:
            jax.block_until_ready(result)
            self._end()

    def _end(self) -> None:
        if self._is_open:
            self._is_open = False
            jax.profiler.stop_trace()

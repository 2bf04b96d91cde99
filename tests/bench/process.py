"""An object in a fresh process of its own, asked through a pipe, one question at a time."""

import multiprocessing
import traceback
from collections.abc import Callable
from typing import Any


class Process:
    """The object that `make` gives in a spawned process; nothing of this one but the pickled call reaches it."""

    def __init__(self, make: Callable[[], Any]):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, make), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, *arguments: Any) -> Any:
        """The method's answer; RuntimeError with its traceback when it fails."""
        self._pipe.send((method, arguments))
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            failed, answer = True, "its process died, perhaps for want of memory"
        if failed:
            raise RuntimeError(answer)
        return answer

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(timeout=20)
        if self._process.is_alive():
            self._process.kill()


def serve(pipe, make: Callable[[], Any]) -> None:
    """The process's main: makes the object at the first question and answers until the pipe closes."""
    made = None
    while True:
        try:
            method, arguments = pipe.recv()
        except EOFError:
            return
        try:
            made = make() if made is None else made
            pipe.send((False, getattr(made, method)(*arguments)))
        except Exception:
            pipe.send((True, traceback.format_exc()))

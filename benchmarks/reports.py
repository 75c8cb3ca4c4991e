"""Runs many checks in processes of their own; each report is on disk as soon as it is there."""

import contextlib
import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from machine import describe

from tapeout.compiler.artifact import written_whole

TASKS = 8  # of a process, before another takes its place: memory of compilers grows
Key = tuple[str, ...]


def run_all(
    check: Callable[..., dict],
    work: dict[Key, tuple],
    *,
    jobs: int,
    chip: str,
    path: Path | None,
    resume: bool,
    limit_s: float,
) -> Iterator[tuple[Key, dict]]:
    """Yields (key, report) of `check(*arguments, chip)` for every entry of `work`, as they come.

    Args:
        path: a JSON file that always holds the machine, the chip and the reports so far.
        resume: takes over the reports that `path` holds already.
        limit_s: what a check may take; its process is killed then.
    """
    done: dict[Key, dict] = {}
    if path and resume and path.exists():
        done = {tuple(r["key"]): r for r in json.loads(path.read_text())["reports"]}
        done = {key: report for key, report in done.items() if key in work}
    yield from done.items()
    local = threading.local()

    def run(key: Key) -> dict:
        if not hasattr(local, "child"):
            local.child = _Child(check)
        return local.child.ask((*work[key], chip), limit_s)

    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run, key): key for key in work if key not in done}
        for future in as_completed(futures):
            key = futures[future]
            done[key] = {"key": list(key), **future.result()}
            if path:
                kept = [done[key] for key in work if key in done]
                whole = {"machine": describe(), "chip": chip, "reports": kept}
                with written_whole(path) as scratch:
                    scratch.write_text(json.dumps(whole, indent=1))
            yield key, done[key]


class _Child:
    """A process that answers one check after another."""

    def __init__(self, check: Callable[..., dict]) -> None:
        self.check, self.left = check, 0
        self.process: multiprocessing.process.BaseProcess | None = None

    def ask(self, arguments: tuple, limit_s: float) -> dict:
        if self.process is None or not self.left:
            self._start()
        self.left -= 1
        self.pipe.send(arguments)
        try:
            if self.pipe.poll(limit_s):
                return self.pipe.recv()
            reason = f"took more than {limit_s:g} s"
        except EOFError:
            reason = "the process died"
        self.left = 0
        return {"outcome": "stopped", "reason": reason}

    def _start(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(self.check, other), daemon=True)
        self.process.start()
        other.close()
        self.left = TASKS


def _serve(check: Callable[..., dict], pipe) -> None:
    with contextlib.suppress(EOFError):  # the other end is gone
        while True:
            pipe.send(check(*pipe.recv()))

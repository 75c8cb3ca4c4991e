"""Calls of the tools, each in a session of its own, which ends when the call does, and files that
keep what they gave."""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .pdk import PhysicalError


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A call that ended by itself: its exit code, and what it printed."""

    code: int
    output: str


def call(name: str, command: list[str], folder: Path, timeout_s: float) -> Ended:
    """Runs a tool in a folder, where its temporary files lie too.

    An exception here ends the tool and what the tool started.

    Raises: PhysicalError after `timeout_s`; `name` says whose work it was.
    """
    # Between its start and the inner `try` nothing may end this; the tool only ends by SIGKILL.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        with subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=os.environ | {"TMPDIR": str(folder)},
        ) as process:  # fmt: skip
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                output, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                raise PhysicalError(f"{name} took more than {timeout_s:g} s") from None
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return Ended(code=process.returncode, output=output)


def keep(place: Path, content: bytes) -> None:
    """Writes a file whole or not at all, also where others write it at the same time."""
    partial = place.with_name(f"{place.name}.{os.getpid()}")
    partial.write_bytes(content)
    os.replace(partial, place)

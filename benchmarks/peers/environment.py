"""A virtual environment for each peer, made from pinned versions, and bounded runs of scripts."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENTS = HERE.parent / ".venvs"
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class EnvironmentFailure(Exception):
    """A peer that could not be installed; the message is the last line of what tried."""


def python_of(peer: str) -> Path:
    """The interpreter of `peer`'s environment, which is made (or made again) if need be.

    `peers/<peer>.txt` lists every package with its version; an environment made from another list
    is replaced. Raises EnvironmentFailure where it cannot be made.
    """
    wanted = (HERE / f"{peer}.txt").read_text()
    place = ENVIRONMENTS / peer
    made_from, python = place / "made-from.txt", place / "bin" / "python"
    if made_from.is_file() and made_from.read_text() == wanted:
        return python
    ENVIRONMENTS.mkdir(exist_ok=True)
    (ENVIRONMENTS / ".gitignore").write_text("*\n")
    shutil.rmtree(place, ignore_errors=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", str(place)],
        [*pip, "--requirement", str(HERE / f"{peer}.txt")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = (done.stderr or done.stdout).strip().splitlines() or ["no output"]
            raise EnvironmentFailure(f"{Path(command[0]).name} {command[2]}: {lines[-1][:200]}")
    made_from.write_text(wanted)
    return python


@dataclass(frozen=True)
class Outcome:
    """One bounded run of a runner.

    Attributes:
        lines: JSON objects that it wrote, in order.
        failure: None, or why it did not finish.
        wall_s, cpu_s: of the whole process, imports included.
        peak_bytes: most resident memory.
    """

    lines: list[dict[str, Any]]
    failure: str | None
    wall_s: float
    cpu_s: float
    peak_bytes: int


def run(
    python: Path | str, script: str, request: dict[str, Any], *, limit_s: float, log: Path
) -> Outcome:
    """Runs `peers/<script>` on one core with one thread for at most `limit_s` seconds."""
    with tempfile.TemporaryDirectory(prefix="tapeout-peer-") as scratch:
        result, asked = Path(scratch) / "result.jsonl", Path(scratch) / "request.json"
        asked.write_text(json.dumps(request | {"result": str(result)}))
        core = max(os.sched_getaffinity(0))
        start = time.perf_counter()
        with log.open("wb") as output:
            child = subprocess.Popen(
                [str(python), str(HERE / script), str(asked)],
                stdout=output, stderr=subprocess.STDOUT, cwd=scratch, start_new_session=True,
                env=os.environ | dict.fromkeys(ONE_THREAD, "1"),
                preexec_fn=lambda: os.sched_setaffinity(0, {core}),
            )  # fmt: skip
            status, usage, late = _wait(child.pid, limit_s)
        child.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - start
        text = result.read_text() if result.exists() else ""
    failure = None
    if late:
        failure = f"stopped after {limit_s:.0f} s"
    elif child.returncode != 0:
        failure = f"exit code {child.returncode}: {_last_line(log)}"
    return Outcome(
        lines=[json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")],
        failure=failure,
        wall_s=wall_s,
        cpu_s=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * 1024,
    )


def _wait(pid: int, limit_s: float) -> tuple[int, Any, bool]:
    """(wait status, resource usage, whether the process group had to be killed)."""
    end, late = time.monotonic() + limit_s, False
    while True:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            return status, usage, late
        if not late and time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            late = True
        time.sleep(0.05)


def _last_line(log: Path) -> str:
    lines = [s.strip() for s in log.read_text(errors="replace").splitlines() if s.strip()]
    return lines[-1][:200] if lines else "no output"

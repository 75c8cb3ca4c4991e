"""The folder of what has been compiled: what entries depend on, and how it stays small.

Entries are directories in `$XDG_CACHE_HOME/tapeout` (`~/.cache/tapeout`); when they pass
`LIMIT_BYTES`, those unused for longest go first. Nothing here imports torch.
"""

import hashlib
import shutil
import time
from functools import cache
from pathlib import Path

import tapeout

LIMIT_BYTES = 16 << 30

_PACKAGES = ("chip", "numerics", "isa", "lang", "kernels", "compiler", "models")
_ABANDONED_S = 24 * 3600.0  # a scratch directory this old belongs to a process that died


@cache
def sources() -> str:
    """A hash of the sources that decide what a compiled program is."""
    found = hashlib.sha256(tapeout.__version__.encode())
    root = Path(tapeout.__file__).parent
    for package in _PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def make_room(folder: Path, newest: Path) -> None:
    """Removes the entries unused for longest until the rest fit `LIMIT_BYTES`."""
    kept = 0
    entries = sorted(
        (entry for entry in folder.iterdir() if entry.is_dir()),
        key=lambda entry: (entry == newest, entry.stat().st_mtime),
        reverse=True,
    )
    for entry in entries:
        age_s = time.time() - entry.stat().st_mtime
        if entry.name.startswith(".tapeout-"):
            if age_s > _ABANDONED_S:
                shutil.rmtree(entry, ignore_errors=True)
            continue
        kept += sum(file.stat().st_size for file in entry.iterdir())
        if kept > LIMIT_BYTES and entry != newest:
            shutil.rmtree(entry, ignore_errors=True)

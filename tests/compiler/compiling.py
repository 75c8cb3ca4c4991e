"""`torch.compile` with this backend, as the tests here call it."""

from typing import Any

import torch

from tapeout.compiler.backend import backend


def compiled(f: Any, *, dynamic: bool | None = None, **options: Any) -> Any:
    """`f` compiled for lab16, or for what the options say."""
    return torch.compile(
        f, backend=backend, options={"chip": "lab16", **options}, dynamic=dynamic
    )  # fmt: skip

"""The native simulator: functional and timing, or timing only; HBM model; trace.

`Sim` runs programs, `RunResult` is what a run reports. `tapeout.sim._native` is built from the C++
sources in `native/`; it is loaded when one of these names is first used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .result import QueueReport, RunResult
    from .target import Loaded, Sim
    from .trace import TraceData, write_trace

_HOMES = {
    "Sim": "target",
    "Loaded": "target",
    "RunResult": "result",
    "QueueReport": "result",
    "TraceData": "trace",
    "write_trace": "trace",
}
__all__ = ["Loaded", "QueueReport", "RunResult", "Sim", "TraceData", "write_trace"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_HOMES[name]}", __name__), name)

"""Ports of a component that are those of one inside it."""

from typing import Any

from amaranth.hdl import Module
from amaranth.lib.wiring import Flow, In


def join(m: Module, flow: Flow, outer: Any, inner: Any) -> None:
    """Makes `outer` and `inner` one: the inner component takes what flows in, or gives it."""
    m.d.comb += inner.eq(outer) if flow is In else outer.eq(inner)

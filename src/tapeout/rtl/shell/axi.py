"""AXI4 as far as the shell uses it: bursts of type INCR, one ID a requester, no locks, no caches.

Contract: of every channel, `valid` does not wait for `ready`, and neither it nor what it comes with
changes until both are set. Members are named as AXI names the channel's signals, in lower case.
"""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tapeout.rtl.ports import join

ADDRESS_BITS = 40
ID_BITS = 2
PAGE_BYTES = 4096  # no burst crosses a multiple of it

INCREMENT = 1  # AxBURST
OKAY, SLAVE_ERROR = 0, 2  # xRESP

_ASK = {
    "valid": Out(1),
    "ready": In(1),
    "id": Out(ID_BITS),
    "addr": Out(ADDRESS_BITS),
    "len": Out(8),  # beats - 1
    "size": Out(3),  # log2 of a beat's bytes
    "burst": Out(2),
}


def read_channels(beat_bytes: int) -> dict[str, wiring.Member]:
    """A master's AR and R."""
    answer = {"valid": In(1), "ready": Out(1), "id": In(ID_BITS), "data": In(8 * beat_bytes),
              "resp": In(2), "last": In(1)}  # fmt: skip
    return {f"ar{n}": m for n, m in _ASK.items()} | {f"r{n}": m for n, m in answer.items()}


def write_channels(beat_bytes: int) -> dict[str, wiring.Member]:
    """A master's AW, W and B."""
    data = {"valid": Out(1), "ready": In(1), "data": Out(8 * beat_bytes), "strb": Out(beat_bytes),
            "last": Out(1)}  # fmt: skip
    answer = {"valid": In(1), "ready": Out(1), "id": In(ID_BITS), "resp": In(2)}
    return (
        {f"aw{n}": m for n, m in _ASK.items()}
        | {f"w{n}": m for n, m in data.items()}
        | {f"b{n}": m for n, m in answer.items()}
    )


def lite_channels(address_bits: int) -> dict[str, wiring.Member]:
    """A slave's five channels of AXI4-Lite, 32 bits wide."""
    return {
        "awvalid": In(1), "awready": Out(1), "awaddr": In(address_bits), "awprot": In(3),
        "wvalid": In(1), "wready": Out(1), "wdata": In(32), "wstrb": In(4),
        "bvalid": Out(1), "bready": In(1), "bresp": Out(2),
        "arvalid": In(1), "arready": Out(1), "araddr": In(address_bits), "arprot": In(3),
        "rvalid": Out(1), "rready": In(1), "rdata": Out(32), "rresp": Out(2),
    }  # fmt: skip


def connect(m: Module, outer: wiring.Component, prefix: str, inner: wiring.Component) -> None:
    """Makes the channels of `inner` ports of `outer`, named with `prefix`."""
    for name, member in inner.signature.members.items():
        if f"{prefix}{name}" not in outer.signature.members:
            continue
        join(m, member.flow, getattr(outer, f"{prefix}{name}"), getattr(inner, name))

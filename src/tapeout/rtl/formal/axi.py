"""The rules of AXI4 (ARM IHI 0022) that all ports share.

Contract: what AXI asks of the other side is all that is assumed of it; it is as late as it likes.
What a port's own side keeps is claimed there, or stands in docs/formal.md.
"""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.utils import exact_log2

from tapeout.rtl.shell.axi import INCREMENT, PAGE_BYTES

from .property import Property

PAGE_BITS = exact_log2(PAGE_BYTES)
ASK = ("id", "addr", "len", "size", "burst")


class AxiProperty(Property):
    """A property of a component with AXI channels, which its members name."""

    port: wiring.Component

    def gives(self, m: Module, channel: str, members: tuple[str, ...]) -> Value:
        """Claims what AXI asks of who drives a channel. True where something new is there.

        `valid` is low after a reset, and it stays, with the same `members`, until `ready`.
        """
        valid, waits = self._waits(m, channel)
        began = Signal(name=f"{channel}_began")
        m.d.sync += began.eq(1)
        self.claim(m, f"{channel}_is_quiet_after_reset", began | ~valid)
        self.claim(m, f"{channel}_valid_stays", ~waits | valid)
        self.claim(m, f"{channel}_members_stay", ~waits | self._kept(m, channel, members))
        return valid & ~waits

    def appears(self, m: Module, channel: str) -> Value:
        """True where something new is there; what `gives` claims is not claimed again."""
        valid, waits = self._waits(m, channel)
        return valid & ~waits

    def comes(self, m: Module, channel: str, members: tuple[str, ...]) -> Value:
        """Assumes no more than that of the other side. True where something is taken."""
        for name in ("valid", *members):
            signal = getattr(self.port, f"{channel}{name}")
            m.d.comb += signal.eq(self.free(m, signal.shape(), f"{channel}_{name}"))
        valid, waits = self._waits(m, channel)
        self.assume(m, ~waits | (valid & self._kept(m, channel, members)))
        return valid & getattr(self.port, f"{channel}ready")

    def lets(self, m: Module, channel: str) -> Value:
        """`ready` of the other side is free. True where what is given is taken."""
        ready = getattr(self.port, f"{channel}ready")
        m.d.comb += ready.eq(self.free(m, 1, f"{channel}_ready"))
        return getattr(self.port, f"{channel}valid") & ready

    def _waits(self, m: Module, channel: str) -> tuple[Signal, Signal]:
        """(`valid`, it was set in the cycle before and not taken)."""
        valid, ready = (getattr(self.port, f"{channel}{n}") for n in ("valid", "ready"))
        waits = Signal(name=f"{channel}_waits")
        m.d.sync += waits.eq(valid & ~ready)
        return valid, waits

    def _kept(self, m: Module, channel: str, members: tuple[str, ...]) -> Value:
        """Members are as in the cycle before."""
        now = Cat(getattr(self.port, f"{channel}{n}") for n in members)
        was = Signal(len(now), name=f"{channel}_was")
        m.d.sync += was.eq(now)
        return now == was

    def bursts(self, m: Module, channel: str, size_bytes: int) -> None:
        """Claims that bursts are legal on a port of so many bytes."""
        valid, address, length, size, kind = (
            getattr(self.port, f"{channel}{n}") for n in ("valid", "addr", "len", "size", "burst")
        )
        self.claim(m, f"{channel}_size", ~valid | (size <= exact_log2(size_bytes)))
        self.claim(m, f"{channel}_burst", ~valid | (kind == INCREMENT))
        self.claim(m, f"{channel}_page", ~valid | in_page(address, length + 1, size))


def in_page(address: Value, beats: Value, size: Value) -> Value:
    """Whether so many beats of 2^size bytes cross no page; the first may begin inside."""
    begin = (address[:PAGE_BITS] >> size) << size
    return begin + (beats << size) <= PAGE_BYTES

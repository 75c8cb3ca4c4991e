"""The registers as an AXI4-Lite slave."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .axi import OKAY, SLAVE_ERROR, lite_channels
from .registers import ADDRESS_BITS, Access, Register, RegisterMap

_WRITABLE = (Access.CONFIGURE, Access.WRITE, Access.ORDER, Access.CLEAR)


class RegisterSlave(wiring.Component):
    """The registers of a map:

    An access takes place when its address (and data) are there; the answer waits for the host.

    Ports, besides the channels, by a register's name in lower case, 32 bits each:
        <name>: what is read there, of READ and CLEAR; the value, of CONFIGURE and WRITE.
        <name>_orders, <name>_clears: bits written as 1 in this cycle.
        locked: registers of CONFIGURE cannot be written.
        reads_cycles: CYCLES_LOW is read in this cycle.
    """

    def __init__(self, registers: RegisterMap) -> None:
        self.map = registers
        ports: dict = {**lite_channels(ADDRESS_BITS), "locked": In(1), "reads_cycles": Out(1)}
        for register in registers.registers:
            name = register.name.lower()
            match register.access:
                case Access.ORDER:
                    ports[f"{name}_orders"] = Out(32)
                case Access.CLEAR:
                    ports |= {name: In(32), f"{name}_clears": Out(32)}
                case Access.CONFIGURE | Access.WRITE:
                    ports[name] = Out(32)
                case Access.READ if register.constant is None:
                    ports[name] = In(32)
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._write(m)
        self._read(m)
        return m

    def _write(self, m: Module) -> None:
        has_address, has_data = Signal(), Signal()
        address, word, strobes = Signal(ADDRESS_BITS), Signal(32), Signal(4)
        writes, known = Signal(), Signal()
        m.d.comb += [
            self.awready.eq(~has_address),
            self.wready.eq(~has_data),
            writes.eq(has_address & has_data & (~self.bvalid | self.bready)),
        ]
        with m.If(self.awvalid & self.awready):
            m.d.sync += [has_address.eq(1), address.eq(self.awaddr)]
        with m.If(self.wvalid & self.wready):
            m.d.sync += [has_data.eq(1), word.eq(self.wdata), strobes.eq(self.wstrb)]
        with m.If(self.bready):
            m.d.sync += self.bvalid.eq(0)
        with m.If(writes):
            m.d.sync += [
                has_address.eq(0),
                has_data.eq(0),
                self.bvalid.eq(1),
                self.bresp.eq(Mux(known, OKAY, SLAVE_ERROR)),
            ]
        bits = Signal(32)
        for lane in range(4):
            m.d.comb += bits[8 * lane : 8 * lane + 8].eq(strobes[lane].replicate(8))
        with m.Switch(address[2:]):
            for register in self.map.registers:
                if register.access in _WRITABLE:
                    with m.Case(register.offset >> 2):
                        self._put(m, register, writes, known, word, bits)

    def _put(
        self, m: Module, register: Register, writes: Signal, known: Signal, word: Value, bits: Value
    ) -> None:
        name = register.name.lower()
        free = ~self.locked if register.access == Access.CONFIGURE else 1
        m.d.comb += known.eq(free)
        if register.access in (Access.ORDER, Access.CLEAR):
            kind = "orders" if register.access == Access.ORDER else "clears"
            set_bits = getattr(self, f"{name}_{kind}")
            m.d.comb += set_bits.eq(Mux(writes, word & bits & register.mask, 0))
            return
        value = getattr(self, name)
        with m.If(writes & free):
            m.d.sync += value.eq(((value & ~bits) | (word & bits)) & register.mask)

    def _read(self, m: Module) -> None:
        takes = Signal()
        m.d.comb += [
            self.arready.eq(~self.rvalid | self.rready),
            takes.eq(self.arvalid & self.arready),
        ]
        with m.If(self.rready):
            m.d.sync += self.rvalid.eq(0)
        with m.If(takes):
            m.d.sync += [self.rvalid.eq(1), self.rdata.eq(0), self.rresp.eq(SLAVE_ERROR)]
            with m.Switch(self.araddr[2:]):
                for register in self.map.registers:
                    if register.access == Access.ORDER:
                        continue
                    with m.Case(register.offset >> 2):
                        m.d.sync += [self.rdata.eq(self._value(register)), self.rresp.eq(OKAY)]
                        if register.name == "CYCLES_LOW":
                            m.d.comb += self.reads_cycles.eq(1)

    def _value(self, register: Register) -> Value | int:
        if register.constant is not None:
            return register.constant
        return getattr(self, register.name.lower())

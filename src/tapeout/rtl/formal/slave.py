"""Properties of the AXI4-Lite slave that holds the registers."""

from amaranth.hdl import Module, Mux, Signal, Value

from tapeout.rtl.shell.axi import OKAY, SLAVE_ERROR
from tapeout.rtl.shell.registers import Access, RegisterMap, register_map
from tapeout.rtl.shell.slave import RegisterSlave

from .axi import AxiProperty
from .property import COMPONENT

# Registers of each kind.
NAMES = ("ID", "CONTROL", "STATUS", "IRQ_ENABLE", "IRQ_STATUS", "CYCLES_LOW", "Q0_CODE_LOW",
         "Q0_CODE_HIGH")  # fmt: skip
MOST = 2  # writes the slave takes before the answer to the first is taken


class Registers(AxiProperty):
    """The host does what AXI4-Lite allows: data before its address, and requests before the answers
    to those before.

    The reference pairs addresses with data in order, and lets a write happen when its answer is
    there; what a read finds is what was there when its address was taken.
    """

    title = "each access of the host is answered once, and does what the register map says"
    component = RegisterSlave

    def state(self, m: Module) -> None:
        whole = register_map(self.chip)
        chosen = RegisterMap(chip=self.chip, registers=tuple(whole[n] for n in NAMES))
        m.submodules[COMPONENT] = port = self.port = self.make(chosen)
        self.map = chosen
        for register in chosen.registers:
            name = register.name.lower()
            if register.access == Access.CLEAR or (
                register.access == Access.READ and register.constant is None
            ):
                m.d.comb += getattr(port, name).eq(self.free(m, 32, f"at_{name}"))
        m.d.comb += port.locked.eq(self.free(m, 1, "locked"))
        self._write(m)
        self._read(m)

    def _write(self, m: Module) -> None:
        port = self.port
        address_comes = self.comes(m, "aw", ("addr", "prot"))
        data_comes = self.comes(m, "w", ("data", "strb"))
        answered = self.lets(m, "b")
        happens = self.gives(m, "b", ("resp",))
        addresses, words = (Signal(range(MOST + 2), name=n) for n in ("addresses", "words"))
        m.d.sync += [
            addresses.eq(addresses + address_comes - answered),
            words.eq(words + data_comes - answered),
        ]
        self.claim(m, "b_is_asked", ~port.bvalid | ((addresses != 0) & (words != 0)))
        self.claim(m, "writes_bound", (addresses <= MOST) & (words <= MOST))
        due = Signal(name="due")  # both were there in the cycle before, and B was free
        waits = {"aw": Signal(name="aw_pending"), "w": Signal(name="w_pending")}
        left = {n: w & ~happens for n, w in waits.items()}
        m.d.sync += [
            waits["aw"].eq(left["aw"] | address_comes),
            waits["w"].eq(left["w"] | data_comes),
            due.eq(left["aw"] & left["w"] & (~port.bvalid | port.bready)),
        ]
        self.claim(m, "b_comes", happens == due)

        address = Signal.like(port.awaddr, name="address")
        data, strobes = Signal(32, name="data"), Signal(4, name="strobes")
        was_locked = Signal(name="was_locked")
        m.d.sync += was_locked.eq(port.locked)
        with m.If(address_comes):
            m.d.sync += address.eq(port.awaddr)
        with m.If(data_comes):
            m.d.sync += [data.eq(port.wdata), strobes.eq(port.wstrb)]
        bits = Value.cast(0)
        for lane in range(4):
            bits |= Mux(strobes[lane], 0xFF << 8 * lane, 0)
        known = Value.cast(0)
        for register in self.map.registers:
            here = happens & (address[2:] == register.offset >> 2)
            name = register.name.lower()
            match register.access:
                case Access.READ:
                    continue
                case Access.ORDER | Access.CLEAR:
                    kind = "orders" if register.access == Access.ORDER else "clears"
                    was = Signal(32, name=f"{name}_{kind}_was")
                    m.d.sync += was.eq(getattr(port, f"{name}_{kind}"))
                    self.claim(
                        m, f"{name}_{kind}", was == Mux(here, data & bits & register.mask, 0)
                    )
                    known |= here
                case _:
                    free = ~was_locked if register.access == Access.CONFIGURE else Value.cast(1)
                    was = Signal(32, name=f"{name}_was")
                    now = Mux(here & free, ((was & ~bits) | (data & bits)) & register.mask, was)
                    m.d.sync += was.eq(now)
                    self.claim(m, name, getattr(port, name) == now)
                    known |= here & free
        self.claim(m, "bresp", ~happens | (port.bresp == Mux(known, OKAY, SLAVE_ERROR)))
        self.reach(m, "data_before_its_address", waits["w"] & ~waits["aw"] & address_comes)
        self.reach(m, "two_writes_wait", addresses == MOST)
        self.reach(m, "is_written", (port.q0_code_low == 0x5000) & ~port.bvalid)

    def _read(self, m: Module) -> None:
        port = self.port
        asks = self.comes(m, "ar", ("addr", "prot"))
        answered = self.lets(m, "r")
        is_new = self.gives(m, "r", ("data", "resp"))
        owed = Signal(name="owed")
        m.d.sync += owed.eq((owed & ~answered) | asks)
        self.claim(m, "r_is_owed", port.rvalid == owed)
        self.claim(m, "reads_bound", ~asks | ~owed | answered)
        found, known = Signal(32, name="found"), Signal(name="known")
        with m.If(asks):
            m.d.sync += [found.eq(0), known.eq(0)]
            for register in self.map.registers:
                if register.access == Access.ORDER:
                    continue
                value = register.constant
                if value is None:
                    value = getattr(port, register.name.lower())
                with m.If(port.araddr[2:] == register.offset >> 2):
                    m.d.sync += [found.eq(value), known.eq(1)]
        self.claim(m, "rdata", ~port.rvalid | (port.rdata == found))
        self.claim(m, "rresp", ~port.rvalid | (port.rresp == Mux(known, OKAY, SLAVE_ERROR)))
        self.claim(
            m,
            "reads_cycles",
            port.reads_cycles == (asks & (port.araddr[2:] == self.map["CYCLES_LOW"].offset >> 2)),
        )
        self.reach(m, "read_waits", port.rvalid & ~port.rready & known)
        self.reach(m, "reads_follow", is_new & asks)

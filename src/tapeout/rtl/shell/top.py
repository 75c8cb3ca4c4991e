"""The chip's top: a core between AXI4 ports to memory, AXI4-Lite registers and an interrupt."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from tapeout.chip import Chip, ChipError
from tapeout.isa.instruction import Fault
from tapeout.isa.program import MAX_BASES
from tapeout.rtl.boxes import box
from tapeout.rtl.core import Core
from tapeout.rtl.dma import DATA_PORTS
from tapeout.rtl.ports import join

from . import axi
from .dma import DmaPort
from .reads import CORE_READS, ReadPort
from .registers import ADDRESS_BITS as REGISTER_ADDRESS_BITS
from .registers import register_map
from .slave import RegisterSlave

TOP = "tapeout_top"  # the module's name
CONTROL_PREFIX = "s_axil_"


def port_prefix(queue: int) -> str:
    """What the names of a queue's AXI port begin with."""
    return f"m{queue}_axi_"


def beat_bytes(chip: Chip) -> int:
    """Width of the AXI ports: an instruction a beat, or the 128 bytes that AXI4 ends at."""
    return 128 if chip.dma.bytes_per_cycle >= 128 else 64


def require_axi(chip: Chip) -> None:
    """Raises: ChipError where no AXI4 port can carry a chip's runs."""
    if chip.hbm.interleave_bytes > axi.PAGE_BYTES:
        raise ChipError(
            f"hbm.interleave_bytes = {chip.hbm.interleave_bytes} must not exceed "
            f"{axi.PAGE_BYTES}: a run is an AXI4 burst, which crosses no multiple of that"
        )


class Top(wiring.Component):
    """A core in a system:

    A program starts from a core that was reset; that, and a stop, waits until memory has answered
    all requests, so that no answer meets the next program. An error answer stops new requests and
    ends the program.

    Ports: `s_axil_*`, AXI4-Lite slave; `m<q>_axi_*`, AXI4 master of queue q, with AW, W and B where
    the queue is a DMA queue; `irq`, a level: an enabled cause is set.
    """

    def __init__(self, chip: Chip) -> None:
        require_axi(chip)
        self.chip = chip
        self.core = Core(chip)
        self.map = register_map(chip)
        size = beat_bytes(chip)
        ports: dict = {"irq": Out(1)}
        lite = axi.lite_channels(REGISTER_ADDRESS_BITS)
        ports |= {f"{CONTROL_PREFIX}{n}": p for n, p in lite.items()}
        for q, name in enumerate(chip.queue_names):
            channels = axi.read_channels(size)
            if name.startswith("dma"):
                channels |= axi.write_channels(size)
            ports |= {f"{port_prefix(q)}{n}": p for n, p in channels.items()}
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        renew, launches = Signal(), Signal()
        core = self.core
        m.submodules.core = box(platform, "core", core, reset=renew)
        idle, fails = [], []
        for q, name in enumerate(self.chip.queue_names):
            reads = ReadPort(self.chip, beat_bytes(self.chip))
            m.submodules[f"reads_{name}"] = box(platform, "read_port", reads, reset=renew)
            axi.connect(m, self, port_prefix(q), reads)
            for port in CORE_READS:
                _join(m, core, f"q{q}_{port}", reads, port)
            m.d.comb += reads.launches.eq(launches)
            idle.append(reads.is_idle)
            fails.append(reads.fails)
            if name.startswith("dma"):
                dma = DmaPort(self.chip, beat_bytes(self.chip))
                m.submodules[f"runs_{name}"] = box(platform, "dma_port", dma, reset=renew)
                axi.connect(m, self, port_prefix(q), dma)
                for port in DATA_PORTS:
                    _join(m, core, f"q{q}_{port}", dma, port)
                m.d.comb += [
                    dma.launches.eq(launches),
                    reads.dma_asks.eq(dma.asks),
                    reads.dma_address.eq(dma.address),
                    reads.dma_beats.eq(dma.beats),
                    dma.taken.eq(reads.dma_taken),
                    dma.beat_comes.eq(reads.beat_comes),
                    dma.beat.eq(reads.beat),
                    dma.beat_ends.eq(reads.beat_ends),
                ]
                idle.append(dma.is_idle)
                fails.append(dma.fails)
        self._control(m, core, renew, launches, Cat(idle).all(), Cat(fails).any())
        return m

    def _control(
        self, m: Module, core: Core, renew: Signal, launches: Signal, idle: Value, fails: Value
    ) -> None:
        slave = RegisterSlave(self.map)
        m.submodules.registers = slave
        axi.connect(m, self, CONTROL_PREFIX, slave)
        starts, ends = Signal(), Signal()  # what comes after the core's reset; it was done
        fault, fault_queue, fault_pc = (
            Signal.like(getattr(core, name)) for name in ("fault", "fault_queue", "fault_pc")
        )
        done, bus_error, cycles = Signal(), Signal(), Signal(64)
        publishes = Signal()
        orders = slave.control_orders
        with m.If(fails):
            m.d.sync += bus_error.eq(1)
        with m.FSM(name="program") as program:
            with m.State("IDLE"), m.If(orders[0]):
                m.d.sync += [starts.eq(1), ends.eq(0), done.eq(0), bus_error.eq(0)]
                m.next = "SETTLE"
            with m.State("SETTLE"), m.If(idle):  # no answer is under way
                m.next = "RENEW"
            with m.State("RENEW"):
                m.d.comb += renew.eq(1)
                m.next = "START"
                with m.If(~starts):
                    m.d.comb += publishes.eq(1)
                    m.d.sync += done.eq(ends)
                    m.next = "IDLE"
            with m.State("START"):
                m.d.comb += core.run.eq(1)
                m.d.sync += [starts.eq(0), cycles.eq(0)]
                m.d.sync += [fault.eq(Fault.NONE), fault_queue.eq(0), fault_pc.eq(0)]
                m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += launches.eq(1)
                m.d.sync += cycles.eq(cycles + 1)
                with m.If(core.is_done):
                    m.d.sync += [
                        ends.eq(1),
                        fault.eq(core.fault),
                        fault_queue.eq(core.fault_queue),
                        fault_pc.eq(core.fault_pc),
                    ]
                with m.If(core.is_done | bus_error | orders[1]):
                    m.next = "SETTLE"
        causes, high = Signal(3), Signal(32)
        is_idle = program.ongoing("IDLE")
        m.d.comb += [
            slave.locked.eq(~is_idle),
            slave.status.eq(Cat(~is_idle, done, bus_error, C(0, 5), fault, C(0, 4), fault_queue)),
            slave.fault_pc.eq(fault_pc),
            slave.irq_status.eq(causes),
            slave.cycles_low.eq(cycles),
            slave.cycles_high.eq(high),
            self.irq.eq((causes & slave.irq_enable).any()),
        ]
        raised = Cat(ends & (fault == Fault.NONE), ends & (fault != Fault.NONE), bus_error)
        m.d.sync += causes.eq((causes & ~slave.irq_status_clears) | Mux(publishes, raised, 0))
        with m.If(slave.reads_cycles):
            m.d.sync += high.eq(cycles[32:])
        self._configure(m, core, slave)

    def _configure(self, m: Module, core: Core, slave: RegisterSlave) -> None:
        for q in range(self.chip.queue_count):
            low, high = (getattr(slave, f"q{q}_code_{half}") for half in ("low", "high"))
            m.d.comb += [
                getattr(core, f"q{q}_code_base").eq(Cat(low, high)),
                getattr(core, f"q{q}_count").eq(getattr(slave, f"q{q}_count")),
            ]
        for b in range(MAX_BASES):
            base = core.bases[b]
            value = {n: getattr(slave, f"b{b}_{n}") for n in (
                "address_low", "address_high", "bytes_low", "bytes_high", "flags"
            )}  # fmt: skip
            m.d.comb += [
                base.address.eq(Cat(value["address_low"], value["address_high"])),
                base.bytes.eq(Cat(value["bytes_low"], value["bytes_high"])),
                base.is_writable.eq(value["flags"][0]),
                base.is_given.eq(value["flags"][1]),
            ]


def _join(m: Module, core: Core, port: str, outer: wiring.Component, name: str) -> None:
    join(m, core.signature.members[port].flow, getattr(outer, name), getattr(core, port))

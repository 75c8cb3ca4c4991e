"""A core: its queues, the token channels between them, and the end of a program."""

from collections.abc import Callable
from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tapeout.chip import Chip
from tapeout.isa.instruction import Fault
from tapeout.isa.program import channel_bit

from .boxes import box
from .dma import DmaEngine
from .fetch import ADDRESS_BITS, PC_BITS
from .memory import (
    BankedMemory,
    Ports,
    RowReads,
    RowWrites,
    VectorMemory,
    accumulators,
    scratchpad,
)
from .mxu import MatrixUnit
from .ports import join
from .ram import RamShape
from .sequencer import BASES, CYCLE_BITS, ENGINE, Sequencer
from .tokens import TokenChannel
from .vpu import VectorUnit

# The engine of a kind of queue: a component with the ports of `sequencer.ENGINE` and of its
# instructions, `now`, `bases` where it reaches HBM, ports `<memory>_...` to spm, vmem and acc, and
# others that are ports of the core.
ENGINES: dict[str, Callable[[Chip], wiring.Component]] = {
    "mxu": MatrixUnit,
    "vpu": VectorUnit,
    "dma": DmaEngine,
}
Memory = BankedMemory | VectorMemory
MEMORIES: dict[str, Callable[[Chip, Ports], Memory]] = {
    "spm": scratchpad,
    "vmem": VectorMemory,
    "acc": accumulators,
}

PER_QUEUE = {
    "code_base": In(ADDRESS_BITS),
    "count": In(PC_BITS),
    "request": Out(1),
    "request_address": Out(ADDRESS_BITS),
    "request_words": Out(9),
    "comes": In(1),
    "comes_word": In(512),
    "load_request": Out(1),
    "load_address": Out(ADDRESS_BITS),
    "value_comes": In(1),
    "value": In(32),
    "issues": Out(1),
    "pc": Out(PC_BITS),
    "retires": Out(1),
    "retire_cycle": Out(CYCLE_BITS),
    "stall": Out(6),
    "occupies": Out(CYCLE_BITS),
}


@dataclass(frozen=True)
class PlacedRam:
    """A macro of memory `memory`: it holds rows first_row, first_row + row_step, ...

    `first_lane` is the first of its lanes.

    `path` names the instances from the core down to it.
    """

    memory: str
    path: str
    first_row: int
    row_step: int
    shape: RamShape
    first_lane: int = 0


class Core(wiring.Component):
    """One core:

    `run` starts the program in the cycle after; a core that has run is reset before it runs again.
    Ports of queue q are named `q<q>_...`, see `Sequencer` and its engine.

    Ports:
        run: a pulse. bases: base registers.
        now: cycles since the program began.
        is_done: the program has ended, well or with `fault` of queue `fault_queue` at `fault_pc`.
    """

    def __init__(self, chip: Chip) -> None:
        self.chip = chip
        self.queues = [Sequencer(chip, q) for q in range(chip.queue_count)]
        self.engines = {
            q.number: ENGINES[q.engine](chip) for q in self.queues if q.engine in ENGINES
        }
        self.memories: dict[str, Memory] = {
            name: make(chip, self._memory_ports(name))
            for name, make in MEMORIES.items()
            if self._memory_ports(name)
        }
        ports = {f"q{q.number}_{name}": p for q in self.queues for name, p in PER_QUEUE.items()}
        for number in self.engines:
            ports |= {f"q{number}_{name}": port for name, port in self._outer_ports(number).items()}
        super().__init__(
            {
                "run": In(1),
                "bases": In(BASES),
                "now": Out(CYCLE_BITS),
                "is_done": Out(1),
                "fault": Out(4),
                "fault_queue": Out(5),
                "fault_pc": Out(PC_BITS),
                **ports,
            }
        )

    def _memory_ports(self, memory: str) -> dict[str, RowReads | RowWrites]:
        """Row ports of all engines to one memory, by queue and name."""
        return {
            f"q{number}_{name}": member.signature
            for number, engine in self.engines.items()
            for name, member in engine.signature.members.items()
            if name.startswith(f"{memory}_") and member.is_signature
        }

    def _outer_ports(self, number: int) -> dict[str, wiring.Member]:
        """Ports of an engine that are ports of the core."""
        inner = {*ENGINE, *self.queues[number].instructions, "now", "bases"}
        return {
            name: member
            for name, member in self.engines[number].signature.members.items()
            if name not in inner and not member.is_signature
        }

    def rams(self) -> list[PlacedRam]:
        """Every memory macro of the core."""
        found = []
        for name, memory in self.memories.items():
            if isinstance(memory, VectorMemory):
                found += [
                    PlacedRam(
                        name, f"{name}.{memory.slice_name(k)}.macro", 0, 1, memory.shape,
                        k * memory.shape.lanes,
                    )
                    for k in range(memory.slices)
                ]  # fmt: skip
                continue
            found += [
                PlacedRam(
                    name,
                    f"{name}.{memory.ram_path(stripe, bank)}",
                    stripe * memory.rows_per_stripe + bank,
                    memory.banks,
                    memory.shape,
                )
                for stripe in range(memory.stripes)
                for bank in range(memory.banks)
            ]
        return found

    def elaborate(self, platform: object) -> Module:
        m = Module()
        queues = self.queues
        active = Signal()
        with m.If(self.run):
            m.d.sync += active.eq(1)
        with m.If(active):
            m.d.sync += self.now.eq(self.now + 1)
        for q, queue in enumerate(queues):
            m.submodules[f"queue_{queue.name}"] = box(platform, f"queue_{queue.engine}", queue)
            m.d.comb += [
                queue.active.eq(active & ~self.is_done),
                queue.now.eq(self.now),
                queue.bases.eq(self.bases),
            ]
            for name, port in PER_QUEUE.items():
                join(m, port.flow, getattr(self, f"q{q}_{name}"), getattr(queue, name))
        self._engines(m, platform)
        channels = self._channels(m, queues)
        self._ending(m, queues, channels, active)
        return m

    def _engines(self, m: Module, platform: object) -> None:
        for name, memory in self.memories.items():
            m.submodules[name] = memory
        for number, engine in self.engines.items():
            queue = self.queues[number]
            m.submodules[f"engine_{queue.name}"] = (
                box(platform, f"engine_{queue.engine}", engine)
                if isinstance(engine, DmaEngine)
                else engine  # one of its kind, and wider than the ports of a box may be
            )
            members = engine.signature.members
            for name in ("now", "bases"):
                if name in members:
                    m.d.comb += getattr(engine, name).eq(getattr(self, name))
            for name in (*ENGINE, *queue.instructions):
                if name in members:
                    mine = getattr(queue, f"engine_{name}")
                    join(m, members[name].flow, mine, getattr(engine, name))
            for memory in self.memories.values():
                for port in members:
                    if f"q{number}_{port}" in memory.signature.members:
                        wiring.connect(
                            m, getattr(engine, port), getattr(memory, f"q{number}_{port}")
                        )
            for name, member in self._outer_ports(number).items():
                join(m, member.flow, getattr(self, f"q{number}_{name}"), getattr(engine, name))

    def _channels(self, m: Module, queues: list[Sequencer]) -> list[TokenChannel]:
        per_pair = self.chip.tokens.channels_per_pair
        channels = []
        for producer in queues:
            for consumer in queues:
                for n in range(per_pair if producer is not consumer else 0):
                    channel = TokenChannel(self.chip)
                    m.submodules[f"token_{producer.name}_{consumer.name}_{n}"] = channel
                    out = channel_bit(producer.number, consumer.number, n, per_pair)
                    into = channel_bit(consumer.number, producer.number, n, per_pair)
                    m.d.comb += [
                        channel.post.eq(producer.post[out]),
                        channel.take.eq(consumer.take[into]),
                        consumer.has_token[into].eq(channel.has_token),
                    ]
                    channels.append(channel)
        return channels

    def _ending(
        self, m: Module, queues: list[Sequencer], channels: list[TokenChannel], active: Signal
    ) -> None:
        """The earliest error of the lowest queue, or what is wrong when nothing moves any more."""
        halted, stuck, is_empty = Signal(), Signal(), Signal()
        overflows = Signal()
        m.d.comb += [
            halted.eq(Cat(q.halted for q in queues).all()),
            stuck.eq(Cat(q.halted | q.waits for q in queues).all()),
            is_empty.eq(Cat(c.is_empty for c in channels).all()),
            overflows.eq(Cat(c.overflows for c in channels).any()),
        ]
        quiet = Cat(q.is_quiet for q in queues).all()
        # A queue that waits may have tokens of others; what is under way settles that first.
        moving = Cat(c.under_way for c in channels).any()
        with m.If(active & ~self.is_done):
            # A token posted at the end is left over, unless its channel overflows.
            with m.If(halted & quiet & ~moving):
                m.d.sync += [
                    self.is_done.eq(1),
                    self.fault.eq(Mux(is_empty, Fault.NONE, Fault.TOKEN_LEFTOVER)),
                ]
            with m.Elif(stuck & quiet & ~moving):
                m.d.sync += [self.is_done.eq(1), self.fault.eq(Fault.DEADLOCK)]
            with m.If(overflows):
                m.d.sync += [self.is_done.eq(1), self.fault.eq(Fault.TOKEN_OVERFLOW)]
            for q in reversed(queues):
                with m.If(q.fault != Fault.NONE):
                    m.d.sync += [
                        self.is_done.eq(1),
                        self.fault.eq(q.fault),
                        self.fault_queue.eq(Const(q.number, 5)),
                        self.fault_pc.eq(q.fault_pc),
                    ]

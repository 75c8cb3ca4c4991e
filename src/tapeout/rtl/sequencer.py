"""The sequencer of one queue: issue, registers, hardware loops, scalar loads, retirement."""

from enum import IntEnum

from amaranth.hdl import Array, C, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tapeout.chip import Chip
from tapeout.isa import seq
from tapeout.isa.fields import WORD_BITS
from tapeout.isa.instruction import REGISTRY, Fault, Instruction, When
from tapeout.isa.program import MAX_BASES
from tapeout.isa.seq import REGISTER_BITS

from .alu import ScalarAlu
from .decode import OPCODE_BITS, field, is_a, refusal
from .fetch import ADDRESS_BITS, FETCH, PC_BITS, FetchUnit
from .loops import LOOP_BITS, LoopStack
from .operands import SUM_BITS, resolve, resolved_layout
from .tokens import CYCLE_BITS, RetireQueue, TransferRetireQueue


class Stall(IntEnum):
    """Why a queue that could issue does not, in the order that the reports of `sim` use."""

    NONE = 0  # it has halted, or has found an error
    FETCH = 1
    DRAIN = 2
    PORT = 3
    MEMORY = 4
    BUSY = 5  # none: it reads registers, checks or issues
    TOKEN = 8  # + the peer whose token is awaited, counted without the queue itself


ENGINE = {
    # Of the instruction that is checked: it and its fields stand for `check_cycles` cycles or more,
    # the last with `accept`. What the engine has worked out by then it holds from the next on.
    "opcode": Out(8),
    "first_iteration": Out(1),  # of the innermost loop, or there is none
    "accept": Out(1),  # the check is over, and all before it have issued
    # Of the one accepted last:
    "start": Out(1),  # it issues, and is sound
    "fits": In(1),  # its port is free
    "fault": In(4),  # what is wrong with it
    "latency": In(CYCLE_BITS),  # cycles to its retirement (mxu, vpu)
    "occupancy": In(CYCLE_BITS),  # cycles until its port is free again (mxu, vpu)
    "done": In(1),  # the oldest transfer may retire in the next cycle (dma)
    "late_fault": In(4),  # what is wrong with the last that issued (dma)
}
BASE = data.StructLayout(
    {"address": ADDRESS_BITS, "bytes": ADDRESS_BITS, "is_writable": 1, "is_given": 1}
)
BASES = data.ArrayLayout(BASE, MAX_BASES)


def base_of(bases: data.View, number: Value) -> data.View:
    """The base register of that number."""
    return Array(bases[b] for b in range(MAX_BASES))[number]


def instructions_of(engine: str) -> dict[str, type[Instruction]]:
    """The instructions that only this engine executes, by the name of their ports."""
    found = {c.mnemonic.split(".")[1]: c for c in REGISTRY.values() if c.engine == engine}
    return {name: found[name] for name in sorted(found)}


class Sequencer(wiring.Component):
    """One queue's sequencer:

    An instruction that has come is read: its fields, scalar registers added, are held. It is
    checked for `check_cycles` cycles, the last not before that in which the instruction before it
    issues. It then is the one that is due: it issues in the first cycle in which its awaited tokens
    are there, its port is free and, if it drains, all before it have retired. The next is read in
    the cycle after the check, or, behind one of the sequencer's own, in the cycle after its issue:
    registers and loops are then as it leaves them.

    Ports of the engine, see `ENGINE`; besides, `engine_<name>` for each of its instructions (the
    part of the mnemonic after the dot): its fields with registers read.

    Ports:
        active: the program runs and no queue has found an error.
        now: cycles since the program began.
        count, code_base: the stream; bases: base registers.
        has_token, take, post: channels by bit of the wait and post masks.
        comes, comes_word, request...: instruction fetch, see `FetchUnit`.
        load_request, load_address: a scalar load, in this cycle; value_comes, value: its answer.
        halted: the stream has ended. waits: it waits for tokens only.
        fault: of the instruction that would issue now (`Fault.NONE` if it is sound), or of a
            transfer before it, at `fault_pc`.
        issues, pc: an instruction issues. retires, retire_cycle: its retire cycle becomes known.
        stall: a `Stall`, of this cycle.
        occupies: cycles of its engine's port that what issues takes.
    """

    def __init__(self, chip: Chip, number: int) -> None:
        self.chip, self.number = chip, number
        self.name = chip.queue_names[number]
        self.engine = self.name.rstrip("0123456789")
        self.instructions = instructions_of(self.engine)
        self.channels = (chip.queue_count - 1) * chip.tokens.channels_per_pair
        super().__init__(
            {
                "active": In(1),
                "now": In(CYCLE_BITS),
                "code_base": In(ADDRESS_BITS),
                "count": In(PC_BITS),
                "bases": In(BASES),
                "has_token": In(self.channels),
                "take": Out(self.channels),
                "post": Out(self.channels),
                **{name: FETCH[name] for name in (
                    "request", "request_address", "request_words", "comes", "comes_word"
                )},
                "load_request": Out(1),
                "load_address": Out(ADDRESS_BITS),
                "value_comes": In(1),
                "value": In(32),
                "halted": Out(1),
                "waits": Out(1),
                "is_quiet": Out(1),  # nothing is to retire
                "fault": Out(4),
                "fault_pc": Out(PC_BITS),
                "issues": Out(1),
                "pc": Out(PC_BITS),
                "retires": Out(1),
                "retire_cycle": Out(CYCLE_BITS),
                "stall": Out(6),
                "occupies": Out(CYCLE_BITS),
                **{f"engine_{name}": port for name, port in ENGINE.items()},
                **{f"engine_{name}": Out(resolved_layout(cls))
                   for name, cls in self.instructions.items()},
            }
        )  # fmt: skip

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fetch = fetch = FetchUnit(self.chip)
        m.submodules.loops = loops = LoopStack(self.chip)
        word = Signal(WORD_BITS)
        m.d.comb += [
            word.eq(fetch.word),
            fetch.active.eq(self.active),
            fetch.code_base.eq(self.code_base),
            fetch.count.eq(self.count),
            fetch.comes.eq(self.comes),
            fetch.comes_word.eq(self.comes_word),
            self.request.eq(fetch.request),
            self.request_address.eq(fetch.request_address),
            self.request_words.eq(fetch.request_words),
        ]
        pc, next_pc = Signal(PC_BITS), Signal(PC_BITS)  # of what is read, or is checked
        halted, holds_value = Signal(), Signal()
        m.d.comb += [
            fetch.pc.eq(pc),
            fetch.next_pc.eq(next_pc),
            fetch.low.eq(loops.low_line),
            loops.pc.eq(pc),
            next_pc.eq(Mux(loops.advance, loops.next_pc, pc)),
            self.halted.eq(halted | (self.count == 0)),
            self.fault_pc.eq(self.pc),
        ]
        m.d.sync += pc.eq(next_pc)
        zero = C(0, signed(REGISTER_BITS))
        self._registers = Array(
            zero if r == 0 else Signal(signed(REGISTER_BITS), name=f"r{r}")
            for r in range(self.chip.seq.registers)
        )

        # Its steps: 0 it is read, 1 to check_cycles it is checked. Then it is due.
        most = max([1, *(cls.check_cycles for cls in self.instructions.values())])
        step = Signal(range(most + 1))
        reads, accepts, issues = Signal(), Signal(), Signal()
        is_due, is_own, uses_engine = Signal(), Signal(), Signal()
        is_past = pc >= self.count
        layout = self._layout()
        read, due = Signal(layout), Signal(layout)  # what is checked, what is to issue
        self._read(m, read, word, loops, pc, is_past)
        checks = Signal.like(step)
        m.d.comb += checks.eq(1)
        with m.If(~read.is_refused):
            for name, cls in self.instructions.items():
                with m.If(read.engine_is[name]):
                    m.d.comb += checks.eq(cls.check_cycles)
        m.d.comb += [
            uses_engine.eq(due.engine_is.as_value().any()),
            is_own.eq((is_due & ~uses_engine) | holds_value),
            reads.eq(
                self.active & ~self.halted & ~is_own & (step == 0) & (is_past | fetch.has_word)
            ),
            accepts.eq((step == checks) & (~is_due | issues)),
            self.engine_accept.eq(accepts),
        ]
        with m.If(accepts):
            m.d.sync += [step.eq(0), is_due.eq(1), due.eq(read), self.pc.eq(pc)]
        with m.Else():
            with m.If(issues):
                m.d.sync += is_due.eq(0)
            with m.If(reads | ((step != 0) & (step != checks))):
                m.d.sync += step.eq(step + 1)

        # What it waits for.
        may_issue, has_tokens = Signal(), Signal()
        illegal, executes = Signal(), Signal()
        retiring = self._retirement(m)
        takes_place = due.posts != 0
        if self.engine == "dma":
            takes_place |= uses_engine
        m.d.comb += [
            may_issue.eq(self.active & ~self.halted & is_due),
            has_tokens.eq((due.waits & ~self.has_token) == 0),
            illegal.eq(may_issue & due.is_refused),
            issues.eq(
                may_issue & ~illegal & has_tokens
                & (~due.drains | retiring.is_drained)
                & (~takes_place | retiring.has_room)
                & (~uses_engine | self.engine_fits)
            ),
            self.issues.eq(issues),
            self.waits.eq(may_issue & ~illegal & ~has_tokens),
            self.is_quiet.eq(retiring.is_empty & ~holds_value),
            self.take.eq(Mux(issues, due.waits, 0)),
            self.occupies.eq(Mux(self.engine_start, self.engine_occupancy, 0)),
        ]  # fmt: skip
        with m.If(self.active & ~self.halted & ~illegal):
            with m.If(issues | (~is_due & (reads | (step != 0)))):
                m.d.comb += self.stall.eq(Stall.BUSY)
            with m.Elif(holds_value):
                m.d.comb += self.stall.eq(Stall.MEMORY)
            with m.Elif(~is_due):
                m.d.comb += self.stall.eq(Stall.FETCH)
            with m.Elif(~has_tokens):
                missing = due.waits & ~self.has_token
                m.d.comb += self.stall.eq(Stall.TOKEN + self._first_peer(missing))
            with m.Elif(due.drains & ~retiring.is_drained):
                m.d.comb += self.stall.eq(Stall.DRAIN)
            with m.Else():
                m.d.comb += self.stall.eq(Stall.PORT)

        # What it does.
        fault = Signal(4)
        done = Signal()  # the instruction is over: its retire cycle is known
        m.d.comb += [
            executes.eq(issues & (fault == 0)),
            done.eq(executes & ~due.load | self.value_comes),
            loops.advance.eq(
                Mux(is_own, done & ~due.halt, accepts & read.engine_is.as_value().any())
            ),
            fault.eq(self._scalar(m, read, due, loops, accepts, is_own, executes)),
            self.fault.eq(
                Mux(illegal, Mux(due.is_unknown, Fault.ILLEGAL_INSTRUCTION,
                                 Fault.ILLEGAL_OPERAND), Mux(issues, fault, Fault.NONE))
            ),
        ]  # fmt: skip
        with m.If(uses_engine):
            m.d.comb += fault.eq(self.engine_fault)
        if self.engine == "dma":
            last_pc = Signal(PC_BITS)
            with m.If(self.engine_start):
                m.d.sync += last_pc.eq(self.pc)
            with m.If(self.engine_late_fault != Fault.NONE):
                m.d.comb += [self.fault.eq(self.engine_late_fault), self.fault_pc.eq(last_pc)]
        m.d.comb += self.engine_start.eq(executes & uses_engine)
        with m.If(issues & due.halt):
            m.d.sync += halted.eq(1)
        with m.If(executes & due.load):
            m.d.sync += holds_value.eq(1)
        with m.If(self.value_comes):
            m.d.sync += holds_value.eq(0)

        m.d.comb += [
            retiring.now.eq(self.now),
            retiring.push.eq(done),
            retiring.push_latency.eq(Mux(uses_engine, self.engine_latency, 1)),
            retiring.push_posts.eq(due.posts),
            retiring.push_is_transfer.eq(uses_engine),
            retiring.done.eq(self.engine_done),
            self.retires.eq(retiring.retires),
            self.retire_cycle.eq(retiring.retire_cycle),
            self.post.eq(retiring.posts),
        ]
        return m

    def _layout(self) -> data.StructLayout:
        """What is held of an instruction.

        waits, posts: channels, if it waits and posts in this iteration. is_refused: it cannot run;
        is_unknown: as it is no instruction of the queue. halt .. loop, engine_is: what it is, none
        of these a nop. x, y: r[a]; the field and register that scalar instructions add. after, end:
        the next pc, and that behind a loop's body.
        """
        flags = (
            "drains", "is_unknown", "is_refused", "halt", "trap", "set", "alu", "load", "loop",
            "is_empty",
        )  # fmt: skip
        return data.StructLayout(
            {
                "waits": self.channels,
                "posts": self.channels,
                **dict.fromkeys(flags, 1),
                "engine_is": data.StructLayout(dict.fromkeys(self.instructions, 1)),
                "dst": 5,
                "op": Shape.cast(seq.Alu),
                "x": signed(REGISTER_BITS),
                "y": signed(SUM_BITS),
                "base": BASE,
                "after": PC_BITS,
                "end": PC_BITS,
            }
        )

    def _read(
        self, m: Module, read: data.View, word: Value, loops: LoopStack, pc: Value, is_past: Value
    ) -> None:
        """Holds what is needed of the word at the pc, from the cycle after on, while none is
        checked."""
        refused = refusal(word, self.chip, self.name)
        waits, posts = (
            Mux(self._happens(word, f"{name}_when", loops), self._mask(word, f"{name}s"), 0)
            for name in ("wait", "post")
        )
        # All scalar instructions have one sum of a register and a field.
        immediate, register = Signal(signed(SUM_BITS)), Signal(5)
        sums: dict[type[Instruction], tuple[Value, Value]] = {
            seq.Set: (field(word, seq.Set, "value"), C(0, 5)),
            seq.AluOp: (field(word, seq.AluOp, "imm"), field(word, seq.AluOp, "b")),
            seq.Load: (field(word, seq.Load, "src", "offset"), field(word, seq.Load, "src", "reg")),
            seq.Loop: (
                field(word, seq.Loop, "count", "imm"), field(word, seq.Loop, "count", "reg")
            ),
        }  # fmt: skip
        with m.Switch(word[:OPCODE_BITS]):
            for scalar, (of_word, number) in sums.items():
                with m.Case(scalar.opcode):
                    m.d.comb += [immediate.eq(of_word), register.eq(number)]
                    if scalar is not seq.Loop:
                        m.d.sync += read.dst.eq(field(word, scalar, "dst"))
        registers = self._registers
        is_unknown = Signal()  # a name for what is used twice makes it once
        m.d.comb += is_unknown.eq(is_past | refused.instruction)
        m.d.sync += [
            read.waits.eq(waits),
            read.posts.eq(posts),
            read.drains.eq(field(word, Instruction, "drain") | is_a(word, seq.Halt)),
            read.is_unknown.eq(is_unknown),
            read.is_refused.eq(is_unknown | refused.operand),
            read.halt.eq(is_a(word, seq.Halt)),
            read.trap.eq(is_a(word, seq.Trap)),
            read.set.eq(is_a(word, seq.Set)),
            read.alu.eq(is_a(word, seq.AluOp)),
            read.load.eq(is_a(word, seq.Load)),
            read.loop.eq(is_a(word, seq.Loop)),
            read.op.eq(field(word, seq.AluOp, "op")),
            read.x.eq(registers[field(word, seq.AluOp, "a")]),
            read.y.eq(immediate + registers[register]),
            read.base.eq(base_of(self.bases, field(word, seq.Load, "src", "base"))),
            read.is_empty.eq(field(word, seq.Loop, "length") == 0),
            read.after.eq(pc + 1),
            read.end.eq(pc + 1 + field(word, seq.Loop, "length")),
            self.engine_opcode.eq(word[:OPCODE_BITS]),
            self.engine_first_iteration.eq(loops.is_empty | loops.is_first),
        ]
        for name, cls in self.instructions.items():
            m.d.sync += read.engine_is[name].eq(is_a(word, cls))
            m.d.sync += resolve(getattr(self, f"engine_{name}"), word, cls, registers)

    def _retirement(self, m: Module) -> RetireQueue | TransferRetireQueue:
        kind = TransferRetireQueue if self.engine == "dma" else RetireQueue
        m.submodules.retiring = retiring = kind(self.chip, self.channels)
        return retiring

    def _first_peer(self, missing: Value) -> Value:
        """The peer of the lowest channel in a mask."""
        per_pair = self.chip.tokens.channels_per_pair
        first: Value = C(0, 5)
        for peer in reversed(range(self.channels // per_pair)):
            first = Mux(missing.word_select(peer, per_pair).any(), peer, first)
        return first

    def _mask(self, word: Value, name: str) -> Value:
        return field(word, Instruction, name)[: self.channels]

    def _happens(self, word: Value, name: str, loops: LoopStack) -> Value:
        """Whether a wait or post is due on this iteration of the innermost loop."""
        when = field(word, Instruction, name)
        is_first = loops.is_empty | loops.is_first
        return Array(
            {
                When.ALWAYS: C(1, 1),
                When.FIRST: is_first,
                When.LAST: loops.is_empty | loops.is_last,
                When.NOT_FIRST: ~is_first,
            }[w]
            for w in When
        )[when]

    def _scalar(
        self, m: Module, read: data.View, due: data.View, loops: LoopStack, accepts: Value,
        is_own: Value, executes: Value,
    ) -> Value:  # fmt: skip
        """What scalar instructions do, from what was worked out while they were checked: the fault
        of one that issues."""
        m.submodules.alu = alu = ScalarAlu()
        result = Signal(signed(REGISTER_BITS))
        m.d.comb += [alu.op.eq(read.op), alu.x.eq(read.x), alu.y.eq(read.y)]
        with m.If(accepts):
            m.d.sync += result.eq(Mux(read.set, read.y, alu.result))
        value, writes = Signal(signed(REGISTER_BITS)), Signal()
        m.d.comb += [
            value.eq(Mux(due.load, self.value.as_signed(), result)),
            writes.eq(self.value_comes | (executes & (due.set | due.alu))),
        ]
        for r in range(1, self.chip.seq.registers):
            with m.If(writes & (due.dst == r)):
                m.d.sync += self._registers[r].eq(value)

        load_fault, loop_fault = Signal(4), Signal(4)
        count, skips, target = Signal(LOOP_BITS), Signal(), Signal(PC_BITS)
        no_trips = read.y <= 0
        outer_end = Mux(loops.is_empty, self.count, loops.outer_end)
        with m.If(accepts):
            m.d.sync += [
                self.load_address.eq(read.base.address + read.y),
                load_fault.eq(Fault.NONE),
                loop_fault.eq(Fault.NONE),
                count.eq(read.y),
                skips.eq(no_trips),
                target.eq(Mux(read.loop & no_trips, read.end, read.after)),
            ]
            with m.If(read.y[:2] != 0):
                m.d.sync += load_fault.eq(Fault.ILLEGAL_OPERAND)
            with m.Elif(~read.base.is_given | (read.y < 0) | (read.y + 4 > read.base.bytes)):
                m.d.sync += load_fault.eq(Fault.HBM_BOUNDS)
            with m.If(read.is_empty | (read.end > outer_end)):
                m.d.sync += loop_fault.eq(Fault.ILLEGAL_OPERAND)
            with m.Elif(~no_trips & loops.is_full):
                m.d.sync += loop_fault.eq(Fault.LOOP_DEPTH)
        m.d.comb += [
            self.load_request.eq(executes & due.load),
            loops.target.eq(Mux(is_own, target, read.after)),
            loops.push.eq(is_own & due.loop & ~skips),
            loops.push_end.eq(due.end),
            loops.push_count.eq(count),
        ]
        fault = Signal(4)
        with m.If(due.load):
            m.d.comb += fault.eq(load_fault)
        with m.If(due.loop):
            m.d.comb += fault.eq(loop_fault)
        with m.If(due.trap):
            m.d.comb += fault.eq(Fault.TRAP)
        return fault

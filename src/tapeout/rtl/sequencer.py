"""The sequencer of one queue: issue, registers, hardware loops, scalar loads, retirement."""

from enum import IntEnum

from amaranth.hdl import Array, C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tapeout.chip import Chip
from tapeout.isa import seq
from tapeout.isa.fields import WORD_BITS
from tapeout.isa.instruction import REGISTRY, Fault, Instruction, When
from tapeout.isa.program import MAX_BASES
from tapeout.isa.seq import REGISTER_BITS

from .alu import ScalarAlu
from .decode import OPCODE_BITS, any_of, field, is_a, refusal
from .fetch import ADDRESS_BITS, FETCH, PC_BITS, FetchUnit
from .operands import resolve, resolved_layout
from .tokens import CYCLE_BITS, RetireQueue, TransferRetireQueue

LOOP_BITS = REGISTER_BITS


class Stall(IntEnum):
    """Why a queue that could issue does not, in the order that the reports of `sim` use."""

    NONE = 0  # it issues, has halted, or has found an error
    FETCH = 1
    DRAIN = 2
    PORT = 3
    MEMORY = 4
    TOKEN = 8  # + the peer whose token is awaited, counted without the queue itself


ENGINE = {
    "opcode": Out(8),  # of the instruction that would issue now
    "first_iteration": Out(1),  # of the innermost loop, or there is none
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


def instructions_of(engine: str) -> dict[str, type[Instruction]]:
    """The instructions that only this engine executes, by the name of their ports."""
    found = {c.mnemonic.split(".")[1]: c for c in REGISTRY.values() if c.engine == engine}
    return {name: found[name] for name in sorted(found)}


class LoopStack(wiring.Component):
    """Program counter and hardware loops of a queue, outermost first:

    With `advance` `pc` moves to the next instruction, or with `skips` to `push_end`, unless a body
    ends there that has iterations left; then to its begin. All loops whose bodies end there for the
    last time are left at once. Both ways are worked out beside each other, as `skips` comes late.

    Ports:
        push: with `advance`, not with `skips`: the next instruction is the first of a body.
        push_end, push_count: behind that body, or what is skipped; its iterations.
        pc, after: of this cycle; pc + 1. next_pc: of the next cycle.
        low_line: first line that is still needed.
        outer_end: of the innermost body. is_first, is_last: the innermost loop's iteration.
    """

    def __init__(self, chip: Chip) -> None:
        self.depth_max = chip.seq.loop_depth
        self.line_words = chip.seq.fetch_line_instructions
        self.lines = chip.seq.fetch_lines
        super().__init__(
            {
                "advance": In(1),
                "skips": In(1),
                "push": In(1),
                "push_end": In(PC_BITS),
                "push_count": In(LOOP_BITS),
                "pc": Out(PC_BITS),
                "after": Out(PC_BITS, init=1),
                "next_pc": Out(PC_BITS),
                "low_line": Out(PC_BITS),
                "is_full": Out(1),
                "is_empty": Out(1),
                "outer_end": Out(PC_BITS),
                "is_first": Out(1),
                "is_last": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        n = self.depth_max
        begin = [Signal(PC_BITS, name=f"begin_{d}") for d in range(n)]
        second = [Signal(PC_BITS, name=f"second_{d}") for d in range(n)]  # begin + 1
        end = Array(Signal(PC_BITS, name=f"end_{d}") for d in range(n))
        left = Array(Signal(LOOP_BITS, name=f"left_{d}") for d in range(n))  # iterations after this
        first = Array(Signal(1, name=f"first_{d}") for d in range(n))
        depth = Signal(range(n + 1))
        top = Signal(range(max(n, 2)))
        m.d.comb += [
            top.eq(depth - 1),
            self.is_full.eq(depth == n),
            self.is_empty.eq(depth == 0),
            self.outer_end.eq(end[top]),
            self.is_first.eq(first[top]),
            self.is_last.eq(left[top] == 0),
        ]

        is_over = Signal(n)
        m.d.comb += is_over.eq(Cat(left[d] == 0 for d in range(n)))

        def way(name: str, target: Value) -> tuple[Signal, Signal, Signal]:
            """From the innermost loop outwards, leave it, go round, or stay inside: (the loops'
            number then, the next pc, which loop goes round), were `target` the next pc."""
            depth_then, pc = Signal.like(depth, name=f"depth_{name}"), Signal(PC_BITS, name=name)
            rounds = Signal(n, name=f"rounds_{name}")
            m.d.comb += [depth_then.eq(depth), pc.eq(target)]
            leaves: Value = C(1, 1)  # all within
            for d in reversed(range(n)):
                ends = Signal(name=f"ends_{name}_{d}")
                m.d.comb += [
                    ends.eq((depth > d) & leaves & (target == end[d])),
                    rounds[d].eq(ends & ~is_over[d]),
                ]
                with m.If(rounds[d]):
                    m.d.comb += pc.eq(begin[d])
                with m.If(ends & is_over[d]):
                    m.d.comb += depth_then.eq(d)
                leaves = Mux(depth > d, ends & is_over[d], leaves)
            return depth_then, pc, rounds

        straight, skip = way("straight", self.after), way("skip", self.push_end)
        depth_then, next_pc, rounds = (
            Mux(self.skips, b, a) for a, b in zip(straight, skip, strict=True)
        )
        next_after = Signal(PC_BITS)
        m.d.comb += next_after.eq(Mux(self.skips, self.push_end + 1, self.after + 1))
        for d in range(n):
            with m.If(rounds[d]):
                m.d.comb += next_after.eq(second[d])
        m.d.comb += self.next_pc.eq(Mux(self.advance, next_pc, self.pc))
        m.d.sync += self.pc.eq(self.next_pc)
        with m.If(self.advance):
            m.d.sync += [self.after.eq(next_after), depth.eq(depth_then)]
            for d in range(n):
                with m.If(rounds[d]):
                    m.d.sync += [left[d].eq(left[d] - 1), first[d].eq(0)]
            with m.If(self.push):
                m.d.sync += depth.eq(depth + 1)
                for d in range(n):
                    with m.If(depth == d):
                        m.d.sync += [
                            begin[d].eq(self.after),
                            second[d].eq(self.after + 1),
                            end[d].eq(self.push_end),
                            left[d].eq(self.push_count - 1),
                            first[d].eq(1),
                        ]

        # The outermost loop whose body fits the window keeps its lines. Whether one does is known a
        # cycle after it begins; until then `pc` is in its first line.
        m.d.comb += self.low_line.eq(self._line_of(self.pc))
        for d in reversed(range(n)):
            fits = Signal(name=f"fits_{d}")
            lines = self._line_of(end[d] - 1) - self._line_of(begin[d])
            m.d.sync += fits.eq(lines < self.lines)
            with m.If((depth > d) & fits):
                m.d.comb += self.low_line.eq(self._line_of(begin[d]))
        return m

    def _line_of(self, pc: Value) -> Value:
        return pc >> exact_log2(self.line_words)


class Sequencer(wiring.Component):
    """One queue's sequencer:

    An instruction issues in the first cycle in which it has come, its awaited tokens are there, its
    port is free and, if it drains, all before it have retired. The next may issue a cycle later.

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
        halted, holds_value = Signal(), Signal()
        m.d.comb += [
            self.pc.eq(loops.pc),
            fetch.pc.eq(loops.pc),
            fetch.next_pc.eq(loops.next_pc),
            fetch.low.eq(loops.low_line),
            self.halted.eq(halted | (self.count == 0)),
            self.fault_pc.eq(self.pc),
        ]

        ready, is_past = Signal(), Signal()
        m.d.comb += [
            is_past.eq(self.pc >= self.count),
            ready.eq(self.active & ~self.halted & ~holds_value & (is_past | fetch.has_word)),
        ]

        # What it waits for.
        waits, posts = Signal(self.channels), Signal(self.channels)
        m.d.comb += [
            waits.eq(Mux(self._happens(word, "wait_when", loops), self._mask(word, "waits"), 0)),
            posts.eq(Mux(self._happens(word, "post_when", loops), self._mask(word, "posts"), 0)),
        ]
        has_tokens, issues, uses_engine = Signal(), Signal(), Signal()
        retiring = self._retirement(m)
        drains = field(word, Instruction, "drain") | is_a(word, seq.Halt)
        refused = refusal(word, self.chip, self.name)
        illegal = Signal()
        takes_place = posts != 0
        if self.engine == "dma":
            takes_place |= uses_engine
        m.d.comb += [
            has_tokens.eq((waits & ~self.has_token) == 0),
            uses_engine.eq(any_of([is_a(word, cls) for cls in self.instructions.values()])),
            illegal.eq(ready & (is_past | refused.instruction | refused.operand)),
            issues.eq(
                ready & ~illegal & has_tokens
                & (~drains | retiring.is_drained)
                & (~takes_place | retiring.has_room)
                & (~uses_engine | self.engine_fits)
            ),
            self.issues.eq(issues),
            self.waits.eq(ready & ~illegal & ~has_tokens),
            self.is_quiet.eq(retiring.is_empty & ~holds_value),
            self.take.eq(Mux(issues, waits, 0)),
            self.occupies.eq(Mux(self.engine_start, self.engine_occupancy, 0)),
        ]  # fmt: skip
        could = self.active & ~self.halted & ~illegal & ~issues
        with m.If(could & holds_value):
            m.d.comb += self.stall.eq(Stall.MEMORY)
        with m.Elif(could & ~is_past & ~fetch.has_word):
            m.d.comb += self.stall.eq(Stall.FETCH)
        with m.Elif(could & ~has_tokens):
            m.d.comb += self.stall.eq(Stall.TOKEN + self._first_peer(waits & ~self.has_token))
        with m.Elif(could & drains & ~retiring.is_drained):
            m.d.comb += self.stall.eq(Stall.DRAIN)
        with m.Elif(could):
            m.d.comb += self.stall.eq(Stall.PORT)

        # What it does.
        fault = Signal(4)
        done = Signal()  # the instruction is over: the pc moves, its retire cycle is known
        executes = Signal()
        m.d.comb += executes.eq(issues & (fault == 0))
        registers = self._registers(m, word, executes)
        m.d.comb += [
            done.eq(executes & ~is_a(word, seq.Load) | self.value_comes),
            loops.advance.eq(done & ~is_a(word, seq.Halt)),
            self.fault.eq(
                Mux(illegal, Mux(is_past | refused.instruction, Fault.ILLEGAL_INSTRUCTION,
                                 Fault.ILLEGAL_OPERAND), Mux(issues, fault, Fault.NONE))
            ),
        ]  # fmt: skip
        with m.If(is_a(word, seq.Loop)):
            self._loop(m, word, registers, loops, fault)
        with m.If(is_a(word, seq.Load)):
            self._load(m, word, registers, executes, fault)
        with m.If(is_a(word, seq.Trap)):
            m.d.comb += fault.eq(Fault.TRAP)
        with m.If(uses_engine):
            m.d.comb += fault.eq(self.engine_fault)
        if self.engine == "dma":
            last_pc = Signal(PC_BITS)
            with m.If(self.engine_start):
                m.d.sync += last_pc.eq(self.pc)
            with m.If(self.engine_late_fault != Fault.NONE):
                m.d.comb += [self.fault.eq(self.engine_late_fault), self.fault_pc.eq(last_pc)]
        m.d.comb += [
            self.engine_opcode.eq(word[:OPCODE_BITS]),
            self.engine_first_iteration.eq(loops.is_empty | loops.is_first),
            self.engine_start.eq(executes & uses_engine),
        ]
        for name, cls in self.instructions.items():
            m.d.comb += resolve(getattr(self, f"engine_{name}"), word, cls, registers)
        with m.If(issues & is_a(word, seq.Halt)):
            m.d.sync += halted.eq(1)
        with m.If(executes & is_a(word, seq.Load)):
            m.d.sync += holds_value.eq(1)
        with m.If(self.value_comes):
            m.d.sync += holds_value.eq(0)

        m.d.comb += [
            retiring.now.eq(self.now),
            retiring.push.eq(done),
            retiring.push_latency.eq(Mux(uses_engine, self.engine_latency, 1)),
            retiring.push_posts.eq(posts),
            retiring.push_is_transfer.eq(uses_engine),
            retiring.done.eq(self.engine_done),
            self.retires.eq(retiring.retires),
            self.retire_cycle.eq(retiring.retire_cycle),
            self.post.eq(retiring.posts),
        ]
        return m

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

    def _registers(self, m: Module, word: Value, writes: Value) -> Array:
        """The scalar registers, with what `seq.set`, `seq.alu` and loaded values write to them."""
        n = self.chip.seq.registers
        zero = C(0, signed(REGISTER_BITS))
        registers = Array(
            zero if r == 0 else Signal(signed(REGISTER_BITS), name=f"r{r}") for r in range(n)
        )
        m.submodules.alu = alu = ScalarAlu()
        m.d.comb += [
            alu.op.eq(field(word, seq.AluOp, "op")),
            alu.x.eq(registers[field(word, seq.AluOp, "a")]),
            alu.y.eq(registers[field(word, seq.AluOp, "b")] + field(word, seq.AluOp, "imm")),
        ]
        result, write, number = Signal(signed(REGISTER_BITS)), Signal(), Signal(5)
        with m.If(self.value_comes):
            m.d.comb += [
                write.eq(1),
                number.eq(field(word, seq.Load, "dst")),
                result.eq(self.value.as_signed()),
            ]
        for cls, value in ((seq.Set, field(word, seq.Set, "value")), (seq.AluOp, alu.result)):
            with m.If(writes & is_a(word, cls)):
                m.d.comb += [write.eq(1), number.eq(field(word, cls, "dst")), result.eq(value)]
        for r in range(1, n):
            with m.If(write & (number == r)):
                m.d.sync += registers[r].eq(result)
        return registers

    def _loop(
        self, m: Module, word: Value, registers: Array, loops: LoopStack, fault: Value
    ) -> None:
        length = field(word, seq.Loop, "length")
        count = Signal(signed(REGISTER_BITS + 1))
        end, outer_end = Signal(PC_BITS), Signal(PC_BITS)
        m.d.comb += [
            count.eq(
                field(word, seq.Loop, "count", "imm")
                + registers[field(word, seq.Loop, "count", "reg")]
            ),
            end.eq(loops.after + length),
            outer_end.eq(Mux(loops.is_empty, self.count, loops.outer_end)),
            loops.push_end.eq(end),
            loops.push_count.eq(count),
        ]
        with m.If((length == 0) | (end > outer_end)):
            m.d.comb += fault.eq(Fault.ILLEGAL_OPERAND)
        with m.Elif(count <= 0):
            m.d.comb += loops.skips.eq(1)
        with m.Elif(loops.is_full):
            m.d.comb += fault.eq(Fault.LOOP_DEPTH)
        with m.Else():
            m.d.comb += loops.push.eq(1)

    def _load(
        self, m: Module, word: Value, registers: Array, executes: Value, fault: Value
    ) -> None:
        base = Signal(BASE)
        offset = Signal(signed(REGISTER_BITS + 2))
        m.d.comb += [
            base.eq(Array(self.bases[b] for b in range(MAX_BASES))[
                field(word, seq.Load, "src", "base")
            ]),
            offset.eq(
                field(word, seq.Load, "src", "offset")
                + registers[field(word, seq.Load, "src", "reg")]
            ),
            self.load_address.eq(base.address + offset),
            self.load_request.eq(executes),
        ]  # fmt: skip
        with m.If(offset[:2] != 0):
            m.d.comb += fault.eq(Fault.ILLEGAL_OPERAND)
        with m.Elif(~base.is_given | (offset < 0) | (offset + 4 > base.bytes)):
            m.d.comb += fault.eq(Fault.HBM_BOUNDS)

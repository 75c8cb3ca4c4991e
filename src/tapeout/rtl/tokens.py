"""Token channels: a producer's posts become a consumer's tokens `tokens.latency_cycles` later."""

import itertools

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tapeout.chip import Chip


class TokenChannel(wiring.Component):
    """One channel from one queue to another:

    A post in cycle r can be taken from cycle r + latency on. `overflows` says that a token came to
    a full channel; programs that the simulator accepts never do that.
    """

    post: In(1)
    take: In(1)
    has_token: Out(1)
    under_way: Out(1)
    is_empty: Out(1)  # nothing is here or on its way
    overflows: Out(1)

    def __init__(self, chip: Chip) -> None:
        self.capacity = chip.tokens.capacity
        self.latency_cycles = chip.tokens.latency_cycles
        super().__init__()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        stages = Signal(self.latency_cycles - 1)
        comes = Signal()
        m.d.comb += [
            comes.eq(Cat(self.post, stages)[-1]),
            self.under_way.eq(self.post | stages.any()),
        ]
        m.d.sync += stages.eq(Cat(self.post, stages))
        count = Signal(range(self.capacity + 1))
        m.d.sync += count.eq(count + comes - self.take)
        m.d.comb += [
            self.has_token.eq(count != 0),
            self.is_empty.eq(~(self.has_token | self.under_way)),
            self.overflows.eq(comes & ~self.take & (count == self.capacity)),
        ]
        return m


CYCLE_BITS = 32  # of a cycle


class _Retirement(wiring.Component):
    """Retirement of one queue's instructions, in order, one a cycle.

    Ports:
        now: cycles since the program began.
        push: an instruction issues now; push_latency: its latency. push_posts: its posts;
            push_is_transfer: its retirement follows a `done`.
        has_room: an instruction that takes a place may be pushed. A place is free from the cycle
            after the retire on.
        is_drained: all that were pushed have retired, or do so now.
        is_empty: they have, and posted.
        posts: of what retires in this cycle.
        retires, retire_cycle: the next instruction's retire cycle is known.
    """

    def __init__(self, chip: Chip, channels: int) -> None:
        self.entries = chip.seq.retire_entries
        super().__init__(
            {
                "now": In(CYCLE_BITS),
                "push": In(1),
                "push_latency": In(CYCLE_BITS),
                "push_posts": In(channels),
                "push_is_transfer": In(1),
                "done": In(1),
                "has_room": Out(1),
                "is_drained": Out(1),
                "is_empty": Out(1),
                "posts": Out(channels),
                "retires": Out(1),
                "retire_cycle": Out(CYCLE_BITS),
            }
        )

    def _places(
        self, m: Module, parts: dict[str, Value], pop: Value, push: Value
    ) -> tuple[dict[str, Signal], Signal]:
        """A queue of `entries` places that hold `parts`: its head, and how many are taken."""
        n = self.entries
        places = [
            {part: Signal.like(value, name=f"{part}_{k}") for part, value in parts.items()}
            for k in range(n)
        ]
        count = Signal(range(n + 1))
        with m.If(pop):
            for here, behind in itertools.pairwise(places):
                m.d.sync += [here[part].eq(behind[part]) for part in parts]
        with m.If(push):
            for k, place in enumerate(places):
                with m.If(count - pop == k):
                    m.d.sync += [place[part].eq(value) for part, value in parts.items()]
        m.d.sync += count.eq(count + push - pop)
        m.d.comb += self.has_room.eq(count != n)
        return places[0], count


class RetireQueue(_Retirement):
    """Where latencies are known at issue:

    A place holds the posts of an instruction and the cycle at which it retires; one that posts
    nothing takes none.
    """

    def elaborate(self, platform: object) -> Module:
        m = Module()
        left = Signal(CYCLE_BITS)  # cycles until all that were pushed have retired
        is_later = Signal()  # than all of them retires what is pushed
        after, pop, posts = Signal(CYCLE_BITS), Signal(), Signal()
        m.d.comb += [
            is_later.eq(self.push_latency > left + 1),
            after.eq(Mux(is_later, self.push_latency, left + 1)),
            posts.eq(self.push & (self.push_posts != 0)),
            self.retires.eq(self.push),
            self.retire_cycle.eq(self.now + after),
        ]
        head, count = self._places(
            m, {"retire": self.retire_cycle, "posts": self.push_posts}, pop, posts
        )
        m.d.comb += [
            pop.eq((count != 0) & (head["retire"] == self.now)),
            self.is_drained.eq(left == 0),
            self.is_empty.eq((left == 0) & (count == 0)),
            self.posts.eq(Mux(pop, head["posts"], 0)),
        ]
        with m.If(self.push):  # which comes late
            m.d.sync += left.eq(Mux(is_later, self.push_latency - 1, left))
        with m.Elif(left != 0):
            m.d.sync += left.eq(left - 1)
        return m


class TransferRetireQueue(_Retirement):
    """Where transfers end when memory has answered:

    Instructions that post, and transfers, take a place; it holds how many others, all of latency
    one, retire before. `done` lets the oldest transfer retire from the next cycle on.
    """

    def elaborate(self, platform: object) -> Module:
        m = Module()
        before = Signal(CYCLE_BITS)  # others since the last that took a place
        done, unretired = Signal(CYCLE_BITS), Signal(CYCLE_BITS)
        passed = Signal(CYCLE_BITS)  # others before the head that have retired
        takes_place, pop, plain = Signal(), Signal(), Signal()
        m.d.comb += takes_place.eq(self.push & (self.push_is_transfer | (self.push_posts != 0)))
        parts = {
            "posts": self.push_posts, "is_transfer": self.push_is_transfer, "before": before,
        }  # fmt: skip
        head, count = self._places(m, parts, pop, takes_place)
        others = Mux(count != 0, head["before"], before)
        m.d.comb += [
            plain.eq(passed != others),
            pop.eq((count != 0) & ~plain & (~head["is_transfer"] | (done != 0))),
            self.retires.eq(plain | pop),
            self.retire_cycle.eq(self.now),
            self.is_drained.eq(unretired == self.retires),
            self.is_empty.eq(unretired == 0),
            self.posts.eq(Mux(pop, head["posts"], 0)),
        ]
        with m.If(takes_place):
            m.d.sync += before.eq(0)
        with m.Elif(self.push):
            m.d.sync += before.eq(before + 1)
        with m.If(pop):
            m.d.sync += passed.eq(0)
        with m.Elif(plain):
            m.d.sync += passed.eq(passed + 1)
        m.d.sync += [
            done.eq(done + self.done - (pop & head["is_transfer"])),
            unretired.eq(unretired + self.push - self.retires),
        ]
        return m

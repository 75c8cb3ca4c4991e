"""Properties of the queues that retire instructions."""

from amaranth.hdl import Module, Mux, Signal, Value

from tapeout.rtl.tokens import RetireQueue, TransferRetireQueue

from .property import COMPONENT, Property

POSTS = 2  # channels: a queue treats them alike
LATENCY_BITS = 4
NUMBER_BITS = 8  # of counts of instructions


class _Retirement(Property):
    """One instruction, any one, is followed from its push to its retirement.

    It may be chosen whenever none is under watch; the reference keeps what it was pushed with.
    """

    def _queue(self, m: Module) -> None:
        m.submodules[COMPONENT] = queue = self.make(self.chip, POSTS)
        self.queue = queue
        self.push = self.free(m, 1, "push")
        self.latency = self.free(m, LATENCY_BITS, "push_latency")
        self.push_posts = self.free(m, POSTS, "push_posts")
        self.is_transfer = self.free(m, 1, "push_is_transfer")
        self.done = self.free(m, 1, "done")
        self.now = Signal.like(queue.now, name="now")
        m.d.sync += self.now.eq(self.now + 1)
        m.d.comb += [
            queue.now.eq(self.now),
            queue.push.eq(self.push),
            queue.push_latency.eq(self.latency),
            queue.push_posts.eq(self.push_posts),
            queue.push_is_transfer.eq(self.is_transfer),
            queue.done.eq(self.done),
        ]

    def _watch(self, m: Module, pushes: Value) -> tuple[Signal, Signal, Signal]:
        """(one is chosen now, it waits, its posts)."""
        choose = self.free(m, 1, "choose")
        starts, waits, posts = Signal(name="starts"), Signal(name="waits"), Signal(POSTS)
        m.d.comb += starts.eq(choose & pushes & ~waits)
        with m.If(starts):
            m.d.sync += [waits.eq(1), posts.eq(self.push_posts)]
        return starts, waits, posts


class Retirement(_Retirement):
    """Issue keeps its rules: what takes a place is pushed where there is room.

    The reference computes the cycle in which an instruction retires as docs/timing.md does: not
    before its latency has passed, and a cycle after the one before it.
    """

    title = "mxu and vpu retire in order, in the cycle due, and post what was pushed"
    component = RetireQueue
    depth = 10

    def state(self, m: Module) -> None:
        self._queue(m)
        queue, now = self.queue, self.now
        takes_place = self.push & (self.push_posts != 0)
        self.assume(m, ~takes_place | queue.has_room)
        self.assume(m, self.latency != 0)

        # In the reference, cycles are absolute.
        last = Signal.like(now, name="last")  # in which the last one retires
        due = Signal.like(now, name="due")
        earliest = now + self.latency
        any_before = Signal(name="any_before")
        after = Mux(any_before & (last + 1 > earliest), last + 1, earliest)[: len(now)]
        m.d.comb += due.eq(after)
        with m.If(self.push):
            m.d.sync += [last.eq(due), any_before.eq(1)]
        self.claim(m, "retires", queue.retires == self.push)
        self.claim(m, "retire_cycle", ~self.push | (queue.retire_cycle == due))
        self.claim(m, "is_drained", queue.is_drained == (~any_before | (last <= now)))

        starts, waits, posts = self._watch(m, takes_place)
        watched_due = Signal.like(now, name="watched_due")
        with m.If(starts):
            m.d.sync += watched_due.eq(due)
        with m.If(waits & (now == watched_due)):
            m.d.sync += waits.eq(0)
        here = waits & (now == watched_due)
        self.claim(m, "posts_when_due", ~here | (queue.posts == posts))

        # Nothing else is posted: as many posts as pushes, one a cycle at most.
        waiting = Signal(range(self.chip.seq.retire_entries + 1), name="waiting")
        posted = queue.posts != 0
        m.d.sync += waiting.eq(waiting + takes_place - posted)
        self.claim(m, "invents_nothing", ~posted | (waiting != 0))
        self.claim(m, "loses_nothing", (waiting == 0) | ~any_before | (last >= now))
        self.claim(m, "has_room", queue.has_room == (waiting != self.chip.seq.retire_entries))
        self.reach(m, "full", ~queue.has_room)
        self.reach(m, "posts_when_due", here)
        self.reach(m, "waits_for_the_one_before", self.push & (due != earliest[: len(now)]))


class TransferRetirement(_Retirement):
    """Issue keeps its rules, and the engine ends only transfers that were pushed before.

    The reference counts how many instructions, and how many `done`, come before the watched one: it
    retires when the first is zero, and the second too if it is a transfer.
    """

    title = "dma retires in order, a transfer after its done, and posts what was pushed"
    component = TransferRetireQueue
    depth = 10

    def state(self, m: Module) -> None:
        self._queue(m)
        queue = self.queue
        takes_place = self.push & (self.is_transfer | (self.push_posts != 0))
        self.assume(m, ~takes_place | queue.has_room)
        transfers = Signal(NUMBER_BITS, name="transfers")  # pushed and not done
        starts_transfer = self.push & self.is_transfer
        # A transfer's data comes in the cycle of its issue at the earliest.
        self.assume(m, ~self.done | (transfers != 0) | starts_transfer)
        unretired = Signal(NUMBER_BITS, name="unretired")
        m.d.sync += [
            transfers.eq(transfers + starts_transfer - self.done),
            unretired.eq(unretired + self.push - queue.retires),
        ]
        self.claim(m, "invents_nothing", ~queue.retires | (unretired != 0))
        self.claim(m, "is_empty", queue.is_empty == (unretired == 0))
        self.claim(m, "is_drained", queue.is_drained == (unretired == queue.retires))

        starts, waits, posts = self._watch(m, self.push)
        before = Signal(NUMBER_BITS, name="before")  # not retired
        its_transfer = Signal(name="its_transfer")
        dones = Signal(NUMBER_BITS, name="dones")  # that come up to its own
        with m.If(starts):
            m.d.sync += [
                before.eq(unretired - queue.retires),
                its_transfer.eq(self.is_transfer),
                dones.eq(transfers + 1 - self.done),
            ]
        with m.Elif(waits):
            with m.If(queue.retires):
                m.d.sync += before.eq(before - 1)
                with m.If(before == 0):
                    m.d.sync += waits.eq(0)
            with m.If(self.done & (dones != 0)):
                m.d.sync += dones.eq(dones - 1)
        here = waits & (before == 0) & queue.retires
        self.claim(m, "posts", ~here | (queue.posts == posts))
        self.claim(m, "never_early", ~here | ~its_transfer | (dones == 0))
        due = waits & (before == 0) & (~its_transfer | (dones == 0))
        self.claim(m, "never_late", ~due | queue.retires)
        self.claim(m, "posts_only_retiring", (queue.posts == 0) | queue.retires)
        self.reach(m, "full", ~queue.has_room)
        self.reach(m, "transfer_retires", here & its_transfer)
        self.reach(m, "post_retires", here & ~its_transfer & (posts != 0))

"""A plain HBM controller, burst by burst and DRAM clock by DRAM clock, to check the native model.

Written from the JEDEC rules and sharing no code with `sim/native/hbm.hpp`: first-ready
first-come first-served (FR-FCFS) scheduling over single bursts, one row and one column command a
DRAM clock, open rows, per-bank refresh of idle banks, a write buffer with two watermarks. Slow:
tens of thousands of bursts a second.
"""

from collections import deque
from dataclasses import dataclass, field
from math import ceil, log2

import numpy as np

WRITE_BURSTS = 128
DRAIN_HIGH, DRAIN_LOW = 96, 16
POSTPONED = 8
NEVER = 1 << 60


def xor_fold(value: int, shifts: tuple[int, ...], spread: tuple[int, ...]) -> int:
    x = value
    for s in shifts:
        x ^= value >> s
    y = x
    for s in spread:
        y ^= x << s
    return y


def locate(hbm: dict, address: int) -> tuple[int, int, int]:
    """(pseudo-channel, bank set, row) by the mapping documented in docs/hbm.md."""
    channels = hbm["stacks"] * hbm["pseudo_channels_per_stack"]
    sets = hbm["bank_groups"] * hbm["banks_per_group"] // hbm["bank_group_interleave"]
    run = address // hbm["interleave_bytes"]
    stripe = run // channels
    mix = xor_fold(stripe, (3, 7, 12, 17), (1, 3))
    channel = (run ^ mix) % channels if log2(channels).is_integer() else (run + mix) % channels
    page = stripe // (hbm["row_bytes"] * hbm["bank_group_interleave"] // hbm["interleave_bytes"])
    row = page // sets
    return channel, (page ^ xor_fold(row, (3, 6, 9, 12, 15), (1,))) % sets, row


@dataclass
class Bank:
    row: int = -1
    activate_at: int = 0
    precharge_at: int = 0
    column_at: int = 0
    refresh_due: int = 0


@dataclass
class Run:
    queue: int
    index: int
    row: int
    left: dict[int, int]  # bursts still to be moved, by bank
    write: bool
    bursts: int
    last_data: int = 0


@dataclass
class Channel:
    """One pseudo-channel; times in DRAM clocks."""

    t: dict[str, int]
    groups: int
    banks: list[Bank]
    reads: list[Run] = field(default_factory=list)
    writes: list[Run] = field(default_factory=list)
    waiting: deque = field(default_factory=deque)  # writes the buffer has no place for
    held: int = 0
    writing: bool = False
    activates: deque = field(default_factory=lambda: deque([-NEVER] * 4, maxlen=4))
    group_activate: dict[int, int] = field(default_factory=dict)
    column: int = -NEVER  # last column command and its group and kind
    column_group: dict[int, int] = field(default_factory=dict)
    read_at: int = -NEVER
    write_at: int = -NEVER
    write_group: dict[int, int] = field(default_factory=dict)
    last_read_seen: int = 0
    next_refresh: int = 0
    turns: int = 0  # changes between reading and writing

    def group(self, bank: int) -> int:
        return bank % self.groups

    def step(self, now: int) -> list[Run]:
        """One clock: at most one row and one column command. Runs whose last burst was sent."""
        if not (self.reads or self.writes or now >= self.next_refresh):
            return []
        pending = sum(sum(r.left.values()) for r in self.writes)
        if self.reads:
            self.last_read_seen = now
        idle = not self.reads and now - self.last_read_seen > self.t["ras"] + self.t["rp"]
        before = self.writing
        if self.writing:
            self.writing = bool(self.writes) and (pending > DRAIN_LOW or not self.reads)
        else:
            full = pending >= DRAIN_HIGH or bool(self.waiting)
            self.writing = full or (bool(self.writes) and idle)
        self.turns += self.writing != before
        active = self.writes if self.writing else self.reads
        done = self.column_command(now, active)
        self.row_command(now, active)
        return done

    def column_command(self, now: int, active: list[Run]) -> list[Run]:
        t = self.t
        if now < self.column + t["bl"]:
            return []
        for run in active:
            for bank_id, left in run.left.items():
                bank, group = self.banks[bank_id], self.group(bank_id)
                if left == 0 or bank.row != run.row or now < bank.column_at:
                    continue
                if now < self.column_group.get(group, -NEVER) + t["ccd_l"]:
                    continue
                if run.write and now < self.read_at + t["rtw"]:
                    continue
                data = t["cwl"] + t["bl"]
                if not run.write and (
                    now < self.write_at + data + t["wtr_s"]
                    or now < self.write_group.get(group, -NEVER) + data + t["wtr_l"]
                ):
                    continue
                run.left[bank_id] -= 1
                self.column = self.column_group[group] = now
                if run.write:
                    self.write_at = self.write_group[group] = now
                    bank.precharge_at = max(bank.precharge_at, now + data + t["wr"])
                    self.held -= 1
                else:
                    self.read_at = now
                    bank.precharge_at = max(bank.precharge_at, now + t["rtp"])
                run.last_data = now + t["cl"] + t["bl"]
                if any(run.left.values()):
                    return []
                active.remove(run)
                return [] if run.write else [run]
        return []

    def row_command(self, now: int, active: list[Run]) -> None:
        t = self.t
        if now >= self.next_refresh and self.refresh_command(now):
            return
        claimed: set[int] = set()  # banks that an older run still needs as they are
        for run in active:
            for bank_id, left in run.left.items():
                if left == 0 or bank_id in claimed:
                    continue
                claimed.add(bank_id)
                bank, group = self.banks[bank_id], self.group(bank_id)
                if bank.row == run.row:
                    continue
                if bank.row < 0:
                    if (
                        now >= bank.activate_at
                        and now >= self.activates[-1] + t["rrd_s"]
                        and now >= self.group_activate.get(group, -NEVER) + t["rrd_l"]
                        and now >= self.activates[0] + t["faw"]
                    ):
                        bank.row, bank.column_at = run.row, now + t["rcd"]
                        bank.precharge_at = now + t["ras"]
                        self.activates.append(now)
                        self.group_activate[group] = now
                        return
                elif now >= bank.precharge_at and not self.hit_waits(active, bank_id, bank.row):
                    bank.row, bank.activate_at = -1, now + t["rp"]
                    return

    def refresh_command(self, now: int) -> bool:
        """Precharge or refresh a bank that is due and, as long as it may wait, not wanted."""
        t = self.t
        wanted = {b for run in self.reads for b in run.left}
        if self.writing:
            wanted |= {b for run in self.writes for b in run.left}
        for bank_id, bank in enumerate(self.banks):
            late = now - bank.refresh_due
            if late < 0 or (bank_id in wanted and late < POSTPONED * t["refi"]):
                continue
            if bank.row >= 0:
                if now >= bank.precharge_at:
                    bank.row, bank.activate_at = -1, max(bank.activate_at, now + t["rp"])
                    return True
            elif now >= bank.activate_at:
                bank.activate_at = now + t["rfc"]
                bank.refresh_due += t["refi"]
                return True
        self.next_refresh = min(bank.refresh_due for bank in self.banks)
        return False

    def hit_waits(self, active: list[Run], bank: int, row: int) -> bool:
        return any(r.row == row and r.left.get(bank, 0) for r in active)


class Reference:
    """The closed loop of `_native.Hbm.stream` around burst-level pseudo-channels."""

    def __init__(self, hbm: dict, clock_ghz: float) -> None:
        self.hbm, self.clock_ghz = hbm, clock_ghz
        timing = hbm["timing"]
        # One DRAM clock is half a burst (BL8 at four beats a clock).
        burst_ns = hbm["burst_bytes"] * 8 / (hbm["pins_per_pseudo_channel"] * hbm["pin_rate_gbps"])
        self.clock_ns = burst_ns / 2
        t = {k[:-3]: ceil(v / self.clock_ns - 1e-3) for k, v in timing.items()}
        t["bl"] = max(2, t["ccd_s"])
        t["rfc"] = t["rfc_pb"]
        together = hbm["bank_group_interleave"]
        sets = hbm["bank_groups"] * hbm["banks_per_group"] // together
        due = {
            bank: t["refi"] * (s + 1) // sets + i * t["rrefd"]
            for s in range(sets)
            for i, bank in enumerate(self.banks_of(s))
        }
        self.channels = [
            Channel(
                t=t,
                groups=hbm["bank_groups"],
                banks=[Bank(refresh_due=due[b]) for b in range(sets * together)],
            )
            for _ in range(hbm["stacks"] * hbm["pseudo_channels_per_stack"])
        ]

    def banks_of(self, bank_set: int) -> list[int]:
        """A set holds bank k of `bank_group_interleave` neighbouring groups."""
        together = self.hbm["bank_group_interleave"]
        sets_a_row = self.hbm["bank_groups"] // together
        first = bank_set % sets_a_row
        bank = bank_set // sets_a_row
        return [bank * self.hbm["bank_groups"] + first + i * sets_a_row for i in range(together)]

    def stream(self, queues: list, credits: int, interval_cycles: int = 1) -> dict:
        """As `_native.Hbm.stream`: core cycles `sent` and `done` for each run of each queue."""
        sent = [np.zeros(len(q[0]), np.int64) for q in queues]
        done = [np.full(len(q[0]), NEVER, np.int64) for q in queues]
        retired = [0] * len(queues)  # runs returned in order
        following = [0] * len(queues)
        next_send = [0] * len(queues)
        left = sum(len(q[0]) for q in queues)
        cycles_a_clock = self.clock_ns * self.clock_ghz
        controller = ceil(self.hbm["controller_ns"] * self.clock_ghz - 1e-6)
        now = 0
        while left:
            cycle = now * cycles_a_clock
            for q, (address, size, write) in enumerate(queues):
                while retired[q] < following[q] and done[q][retired[q]] <= cycle:
                    retired[q] += 1
                while (
                    following[q] < len(address)
                    and following[q] - retired[q] < credits
                    and next_send[q] <= cycle
                ):
                    i = following[q]
                    previous = done[q][: i - credits + 1].max() if i >= credits else 0
                    sent[q][i] = max(next_send[q], previous)
                    next_send[q] = int(sent[q][i]) + interval_cycles
                    following[q] += 1
                    self.receive(q, i, int(address[i]), int(size[i]), bool(write[i]))
            for channel in self.channels:
                for run in channel.step(now):
                    data = ceil(run.last_data * cycles_a_clock)
                    done[run.queue][run.index] = data + controller
                    left -= 1
                while channel.waiting and channel.held + channel.waiting[0].bursts <= WRITE_BURSTS:
                    run = channel.waiting.popleft()
                    channel.held += run.bursts
                    channel.writes.append(run)
                    accepted = max(ceil(cycle), int(sent[run.queue][run.index]))
                    done[run.queue][run.index] = accepted + controller
                    left -= 1
            now += 1
        return {"sent": sent, "done": done}

    def receive(self, queue: int, index: int, address: int, size: int, write: bool) -> None:
        number, bank_set, row = locate(self.hbm, address)
        burst = self.hbm["burst_bytes"]
        bursts = (address + size - 1) // burst - address // burst + 1
        banks = self.banks_of(bank_set)[:bursts]
        left = {b: (bursts + len(banks) - 1 - i) // len(banks) for i, b in enumerate(banks)}
        run = Run(queue, index, row, left, write, bursts)
        channel = self.channels[number]
        (channel.waiting if write else channel.reads).append(run)

"""The native HBM model: rules, determinism, and figures against a burst-level reference.

The reference (`hbm_reference.py`) is another controller, not the same one slower: FR-FCFS over
bursts at DRAM clocks. Tolerances: 10 % for what the DRAM's timing decides (bandwidth of reads and
of writes, latency of reads). Mixed traffic also depends on when a controller turns from reads to
writes, where the two differ by design: 25 % on bandwidth, since in-order credits multiply the
slowest run, and 15 % on latency.
"""

from dataclasses import asdict

import numpy as np
import pytest
from hbm_reference import Reference, locate

from tapeout.chip import load
from tapeout.sim import _native

CHIP = load("lab16")
HBM = asdict(CHIP.hbm)
RUN = HBM["interleave_bytes"]
CAPACITY = CHIP.hbm.capacity_bytes
PEAK_GB_S = CHIP.hbm.peak_bytes_per_s / 1e9
TRAFFIC_BYTES = 500_000


def model(**changes) -> "_native.Hbm":
    return _native.Hbm(HBM | changes, CHIP.clock_ghz)


def runs(addresses, size: int, write) -> tuple:
    n = len(addresses)
    return (
        np.asarray(addresses, np.uint64),
        np.full(n, size, np.uint32),
        np.broadcast_to(np.asarray(write, bool), n).copy(),
    )


def traffic(pattern: str, size: int, kind: str, queues: int) -> list[tuple]:
    """Each queue its own part of the memory (streams, strides in runs) or all of it (random)."""
    n = TRAFFIC_BYTES // size // queues
    out = []
    for q in range(queues):
        rng = np.random.default_rng(100 + q)
        if pattern == "random":
            address = rng.integers(0, CAPACITY // size, n) * size
        else:
            stride = 1 if pattern == "stream" else int(pattern.removeprefix("stride"))
            address = (q * CAPACITY // queues + np.arange(n) * size * stride) % CAPACITY
        write = {"read": False, "write": True, "mixed": rng.random(n) < 1 / 3}[kind]
        out.append(runs(address, size, write))
    return out


def figures(result: dict, queues: list[tuple]) -> tuple[float, float]:
    """GB/s and mean latency in ns."""
    end = max(int(done.max()) for done in result["done"])
    latency = np.concatenate(
        [
            np.asarray(d, np.int64) - np.asarray(s, np.int64)
            for d, s in zip(result["done"], result["sent"], strict=True)
        ]
    )
    total = sum(int(size.sum()) for _, size, _ in queues)
    return total / end * CHIP.clock_ghz, float(latency.mean()) / CHIP.clock_ghz


PATTERNS = [
    ("stream", RUN),
    ("stride3", RUN),
    ("stride4", RUN),
    ("stride64", RUN),
    ("random", RUN),
    ("random", 256),
]


@pytest.mark.parametrize("queues", [1, 4])
@pytest.mark.parametrize("kind", ["read", "write", "mixed"])
@pytest.mark.parametrize(("pattern", "size"), PATTERNS)
def test_agrees_with_burst_level_reference(pattern: str, size: int, kind: str, queues: int) -> None:
    wanted = traffic(pattern, size, kind, queues)
    credits = 32 // queues
    bandwidth, latency = figures(model().stream(wanted, credits), wanted)
    reference = Reference(HBM, CHIP.clock_ghz).stream(wanted, credits)
    want_bandwidth, want_latency = figures(reference, wanted)
    assert bandwidth == pytest.approx(want_bandwidth, rel=0.25 if kind == "mixed" else 0.10)
    if kind != "write":  # a posted write's latency is the buffer's policy, not the DRAM's
        assert latency == pytest.approx(want_latency, rel=0.15 if kind == "mixed" else 0.10)


def test_mapping_is_the_documented_one() -> None:
    hbm = model()
    for address in np.random.default_rng(0).integers(0, CAPACITY, 500):
        assert hbm.locate(int(address)) == locate(HBM, int(address))


def test_mapping_gives_each_run_a_place_of_its_own() -> None:
    hbm = model()
    runs_a_page = HBM["row_bytes"] * HBM["bank_group_interleave"] // RUN
    places: dict[tuple, int] = {}
    for run in range(4096):
        place = hbm.locate(run * RUN)
        places[place] = places.get(place, 0) + 1
    assert set(places.values()) == {runs_a_page}


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 32, 64, 256, 1024])
def test_power_of_two_strides_reach_every_pseudo_channel(stride: int) -> None:
    hbm = _native.Hbm(asdict(load("solo").hbm), 1.0)
    channels = [hbm.locate(i * stride * hbm.interleave_bytes)[0] for i in range(256)]
    counts = np.bincount(channels, minlength=32)
    assert counts.max() <= 20  # 8 on average; all in one channel would be 256


def test_latency_of_one_read_is_the_sum_of_its_parts() -> None:
    """Closed banks: second activate rrd later, rcd, cl, the bursts, the controller."""
    t = HBM["timing"]
    burst_ns = HBM["burst_bytes"] * 8 / (HBM["pins_per_pseudo_channel"] * HBM["pin_rate_gbps"])
    ns = t["rrd_s_ns"] + t["rcd_ns"] + t["cl_ns"] + burst_ns * 1 + HBM["controller_ns"]
    cycles = model().access(0, 0, 2 * HBM["burst_bytes"], False)
    assert cycles == int(np.ceil(ns * CHIP.clock_ghz - 1e-3))


def test_row_conflict_costs_a_precharge_and_row_hit_saves_the_activate() -> None:
    hbm = model()
    first = hbm.access(0, 0, 64, False)
    late = 100  # before the first refresh closes the row
    hit = hbm.access(late, 64, 64, False) - late
    other = next(
        a
        for a in range(RUN, CAPACITY, RUN)
        if hbm.locate(a)[:2] == hbm.locate(0)[:2] and hbm.locate(a)[2] != hbm.locate(0)[2]
    )
    late = 200
    conflict = hbm.access(late, other, 64, False) - late
    assert hit < first < conflict
    assert conflict - first == pytest.approx(HBM["timing"]["rp_ns"] * CHIP.clock_ghz, abs=1.01)
    assert hbm.counters["row_hits"] == 1
    assert hbm.counters["row_conflicts"] == 1


def test_streaming_reads_reach_95_percent_of_pin_rate_and_never_more() -> None:
    n = 20_000
    wanted = [runs(np.arange(n) * RUN, RUN, False)]
    bandwidth, _ = figures(model().stream(wanted, 64), wanted)
    assert 0.95 * PEAK_GB_S < bandwidth <= PEAK_GB_S


def test_refresh_is_paid_and_counted() -> None:
    """A bank that must be refreshed more often serves less; the count follows refi."""
    wanted = [runs(np.random.default_rng(1).integers(0, CAPACITY // 64, 4000) * 64, 64, False)]
    rare, often = model(), model(timing=HBM["timing"] | {"refi_ns": 1000.0})
    slow, _ = figures(often.stream(wanted, 32), wanted)
    fast, _ = figures(rare.stream(wanted, 32), wanted)
    assert slow < 0.9 * fast
    assert often.counters["refreshes"] > 2 * rare.counters["refreshes"]


def test_turnarounds_are_batched() -> None:
    """Reads and writes in turn change the bus's direction far less often than every run."""
    n = 4000
    hbm = model()
    wanted = [runs(np.arange(n) * RUN, RUN, np.arange(n) % 2 == 1)]
    bandwidth, _ = figures(hbm.stream(wanted, 64), wanted)
    assert hbm.counters["turnarounds"] < n / 3
    assert bandwidth > 0.7 * PEAK_GB_S


def test_single_calls_trace_and_reset_agree_exactly() -> None:
    rng = np.random.default_rng(7)
    n = 3000
    arrival = np.sort(rng.integers(0, 60_000, n)).astype(np.uint64)
    address = (rng.integers(0, CAPACITY // 64, n) * 64).astype(np.uint64)
    size = np.full(n, 64, np.uint32)
    write = rng.random(n) < 0.3
    hbm = model()
    first = hbm.run_trace(arrival, address, size, write)
    hbm.reset()
    calls = zip(arrival, address, write, strict=True)
    again = [hbm.access(int(a), int(x), 64, bool(w)) for a, x, w in calls]
    assert first.tolist() == again
    assert np.all(first > arrival)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ((5, 0, 64, False), "call in order of arrival"),
        ((20, RUN - 32, 64, False), "crosses a boundary of interleave_bytes"),
        ((20, 0, 0, False), "is empty"),
        ((20, CAPACITY, 64, False), "ends beyond the memory"),
    ],
)
def test_bad_runs_are_refused(call: tuple, words: str) -> None:
    hbm = model()
    hbm.access(10, 0, 64, False)
    with pytest.raises(RuntimeError, match=words):
        hbm.access(*call)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"interleave_bytes": 4096}, "must not exceed hbm.row_bytes"),
        ({"burst_bytes": 48}, "hbm.burst_bytes must be a power of two"),
        ({"timing": HBM["timing"] | {"refi_ns": 300.0}}, "refi_ns must exceed"),
    ],
)
def test_bad_descriptions_are_refused(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        model(**change)


def test_missing_field_is_named() -> None:
    with pytest.raises(KeyError, match="lacks the key 'row_bytes'"):
        _native.Hbm({k: v for k, v in HBM.items() if k != "row_bytes"}, 1.0)

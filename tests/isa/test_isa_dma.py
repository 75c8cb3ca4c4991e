"""Transfers against plain loops over rows: strides, gather and scatter, formats, fp32 planes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from machine import TINY, bare_core, execute, fill

from tapeout.isa import Addr, Count, HardwareError, HbmAddr
from tapeout.isa.dma import HbmFormat, Load, Memory, Store
from tapeout.numerics import formats

LANES = TINY.lanes
RNG = np.random.default_rng(0)
BYTES = RNG.integers(0, 256, 1 << 14).astype(np.uint8)
SHAPE = {
    "lane": st.integers(0, 3),
    "lanes": st.integers(1, LANES - 3),
    "rows": st.integers(0, 6),
    "outer": st.integers(0, 3),
    "row_bytes": st.integers(0, 40),
    "row_stride": st.integers(1, 3),
    "outer_bytes": st.integers(0, 90),
}


def f32(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(raw).view(np.float32)


@settings(deadline=None)
@given(**SHAPE, wide=st.booleans(), vmem=st.booleans(), offset=st.integers(0, 50))
def test_load(lane, lanes, rows, outer, row_bytes, row_stride, outer_bytes, wide, vmem, offset):
    core = bare_core(hbm=BYTES.tobytes())
    size, pair = (4 if wide else 2), wide and not vmem
    row_bytes, outer_bytes, offset = size * row_bytes, size * outer_bytes, size * offset
    step = 2 if pair else 1
    execute(
        core,
        Load(
            hbm=HbmAddr(0, offset, 1),
            format=HbmFormat.FP32 if wide else HbmFormat.BF16,
            memory=Memory.VMEM if vmem else Memory.SPM,
            row=Addr(2),
            lane=lane,
            lanes=lanes,
            rows=Count(rows),
            row_bytes=row_bytes,
            row_stride=step * row_stride,
            outer=Count(0, 2),
            outer_bytes=outer_bytes,
            outer_rows=step * 20,
        ),
        r1=12,
        r2=outer,
    )
    memory = core.vmem if vmem else core.spm
    touched = np.zeros_like(memory.written)
    span = slice(lane, lane + lanes)
    for o in range(outer):
        for r in range(rows):
            start = 12 + offset + o * outer_bytes + r * row_bytes
            raw = BYTES[start : start + lanes * size].copy()
            row = 2 + step * (o * 20 + r * row_stride)
            touched[row, span] = True
            if vmem:
                value = raw.view(np.uint32) if wide else raw.view(np.uint16).astype(np.uint32) << 16
                assert (core.vmem.values[row, span].view(np.uint32) == value).all()
            elif wide:
                touched[row + 1, span] = True
                words = raw.view(np.uint16)
                assert (core.spm.values[row, span] == words[1::2]).all()
                assert (core.spm.values[row + 1, span] == words[0::2]).all()
            else:
                assert (core.spm.values[row, span] == raw.view(np.uint16)).all()
    np.testing.assert_array_equal(memory.written, touched)


@settings(deadline=None)
@given(**SHAPE, wide=st.booleans(), vmem=st.booleans())
def test_store(lane, lanes, rows, outer, row_bytes, row_stride, outer_bytes, wide, vmem):
    core = bare_core(hbm=bytes(2048))
    fill(core.spm, slice(None), RNG.integers(0, 1 << 16, core.spm.values.shape).astype(np.uint16))
    fill(core.vmem, slice(None), RNG.standard_normal(core.vmem.values.shape).astype(np.float32))
    size, step = (4 if wide else 2), (2 if wide and not vmem else 1)
    row_bytes, outer_bytes = size * row_bytes, size * outer_bytes
    execute(
        core,
        Store(
            hbm=HbmAddr(0, 4),
            format=HbmFormat.FP32 if wide else HbmFormat.BF16,
            memory=Memory.VMEM if vmem else Memory.SPM,
            row=Addr(4),
            lane=lane,
            lanes=lanes,
            rows=Count(rows),
            row_bytes=row_bytes,
            row_stride=step * row_stride,
            outer=Count(outer),
            outer_bytes=outer_bytes,
            outer_rows=step * 20,
        ),
    )
    expected = np.zeros(2048, np.uint8)
    span = slice(lane, lane + lanes)
    for o in range(outer):
        for r in range(rows):
            row = 4 + step * (o * 20 + r * row_stride)
            start = 4 + o * outer_bytes + r * row_bytes
            if vmem:
                value = core.vmem.values[row, span]
                data = value if wide else formats.f32_to_bf16(value)
            elif wide:
                data = np.stack([core.spm.values[row + 1, span], core.spm.values[row, span]], 1)
            else:
                data = core.spm.values[row, span]
            expected[start : start + lanes * size] = (
                np.ascontiguousarray(data).view(np.uint8).ravel()
            )
    np.testing.assert_array_equal(core.hbm.data[:2048], expected)


def indexed_core(index: list[int]):
    core = bare_core(hbm=BYTES.tobytes())
    packed = np.zeros(3 * LANES, np.int32)
    packed[: len(index)] = index
    fill(core.vmem, slice(60, 63), packed.view(np.float32).reshape(3, LANES))
    return core


def test_gather() -> None:
    index = [3, 0, 3, 9, 1, 2, 7, 7, 40, 11, 5]
    core = indexed_core(index)
    execute(
        core,
        Load(
            hbm=HbmAddr(0, 100),
            row=Addr(0),
            lanes=4,
            rows=Count(len(index)),
            row_bytes=10,
            indexed=True,
            index_rows=Addr(60),
        ),
    )
    for r, k in enumerate(index):
        raw = BYTES[100 + 10 * k :][:8].copy().view(np.uint16)
        assert (core.spm.values[r, :4] == raw).all()


def test_scatter_in_increasing_order() -> None:
    core = indexed_core([5, 2, 5, 2])
    core.hbm.data[:200] = 0
    fill(core.vmem, slice(0, 4), np.arange(4 * LANES, dtype=np.float32).reshape(4, LANES))
    execute(
        core,
        Store(
            hbm=HbmAddr(0),
            format=HbmFormat.FP32,
            memory=Memory.VMEM,
            row=Addr(0),
            lanes=2,
            rows=Count(4),
            row_bytes=8,
            indexed=True,
            index_rows=Addr(60),
        ),
    )
    got = f32(core.hbm.data[:48]).reshape(6, 2)
    assert got[5].tolist() == [2 * LANES, 2 * LANES + 1]
    assert got[2].tolist() == [3 * LANES, 3 * LANES + 1]
    assert not got[[0, 1, 3, 4]].any()


BLOCK = [f for f in HbmFormat if f.format.is_block]
PLAIN = [HbmFormat.FP8_E4M3, HbmFormat.FP8_E5M2, HbmFormat.INT8]


@pytest.mark.parametrize("fmt", PLAIN, ids=lambda f: f.name.lower())
def test_narrow_rows(fmt: HbmFormat) -> None:
    core = bare_core(hbm=BYTES.tobytes())
    shape = {"row": Addr(0), "lane": 1, "lanes": 5, "rows": Count(40), "row_bytes": 9}
    execute(core, Load(hbm=HbmAddr(0, 2), format=fmt, **shape))
    for r in range(40):
        raw = BYTES[2 + 9 * r :][:5]
        assert (core.spm.values[r, 1:6] == formats.decode_rows(fmt.format, raw, 1, 5)[0]).all()


@pytest.mark.parametrize("fmt", BLOCK, ids=lambda f: f.name.lower())
def test_block_groups(fmt: HbmFormat) -> None:
    """Two groups of 32 rows, twice by the outer step, element by element from the words."""
    core, lanes = bare_core(hbm=BYTES.tobytes()), 6
    group = fmt.format.bytes_for(32, lanes)
    execute(
        core,
        Load(
            hbm=HbmAddr(0, 6),
            format=fmt,
            row=Addr(0),
            lanes=lanes,
            rows=Count(64),
            outer=Count(2),
            outer_bytes=4 * group,
            outer_rows=100,
        ),
    )
    scale_bytes = fmt.format.scale_bytes * lanes
    row_bytes = lanes // 2 if fmt in (HbmFormat.Q4_1, HbmFormat.MXFP4) else lanes
    for o in range(2):
        for r in range(64):
            start = 6 + o * 4 * group + r // 32 * group
            scales = BYTES[start : start + scale_bytes]
            codes = BYTES[start + scale_bytes + r % 32 * row_bytes :][:row_bytes]
            for lane in range(lanes):
                expected = element(fmt, scales, codes, lane, lanes)
                got = core.spm.values[o * 100 + r, lane]
                assert got == formats.f32_to_bf16(np.float32(expected)), (o, r, lane)


def element(fmt: HbmFormat, scales: np.ndarray, codes: np.ndarray, lane: int, lanes: int) -> float:
    """One element by the words of `numerics.formats`, in float64 rounded to fp32."""
    nibble = codes[lane // 2] >> (4 * (lane % 2)) & 15 if len(codes) < lanes else 0
    with np.errstate(all="ignore"):
        if fmt in (HbmFormat.Q4_1, HbmFormat.Q8_0):
            halves = scales.copy().view(np.float16).astype(np.float64)
            if fmt == HbmFormat.Q4_1:
                return float(np.float32(halves[lane] * float(nibble) + halves[lanes + lane]))
            return float(np.float32(halves[lane] * float(codes[lane].view(np.int8))))
        if scales[lane] == 255:
            return np.nan
        if fmt == HbmFormat.MXFP4:
            value = formats.decode_fp4_e2m1(nibble)
        elif fmt == HbmFormat.MXFP8_E4M3:
            value = formats.decode_fp8_e4m3(codes[lane])
        else:
            value = formats.decode_fp8_e5m2(codes[lane])
        return float(np.float32(float(value) * 2.0 ** (int(scales[lane]) - 127)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"lanes": 0}, "lane 0 [+] lanes 0 must lie in the 8 lanes"),
        ({"lane": 5, "lanes": 4}, "lane 5 [+] lanes 4"),
        ({"rows": Count(0, 1)}, "rows = -1 and outer = 1 must lie in 0..65535"),
        ({"outer": Count(0, 1)}, "outer = -1"),
        (
            {"format": HbmFormat.Q8_0, "rows": Count(31)},
            "rows = 31 must be a multiple of 32 for q8_0",
        ),
        ({"format": HbmFormat.Q8_0, "rows": Count(32), "indexed": True}, "q8_0 cannot be indexed"),
        (
            {"format": HbmFormat.Q4_1, "rows": Count(32), "lanes": 5},
            "lanes = 5 must be even for q4_1",
        ),
        ({"row_bytes": 9}, "address 0, row_bytes = 9 and outer_bytes = 0 must be multiples of 2"),
        (
            {"format": HbmFormat.FP32, "row_stride": 2, "hbm": HbmAddr(0, 6)},
            "address 6, .* must be multiples of 4 for fp32",
        ),
        (
            {"format": HbmFormat.Q8_0, "rows": Count(32), "outer_bytes": 3},
            "outer_bytes = 3 must be multiples of 2 for q8_0",
        ),
        ({"format": HbmFormat.INT8, "memory": Memory.VMEM}, "vmem takes bf16 or fp32, not int8"),
        ({"format": HbmFormat.FP32, "row": Addr(1), "row_stride": 2}, "must be even"),
        ({"format": HbmFormat.FP32}, "must be even"),
    ],
)
def test_illegal_operands(change: dict, words: str) -> None:
    good = {"hbm": HbmAddr(), "row": Addr(), "lanes": 4, "rows": Count(2), "row_bytes": 8}
    core = bare_core(hbm=BYTES.tobytes())
    execute(core, Load(**good))
    with pytest.raises(HardwareError, match=words):
        execute(core, Load(**{**good, **change}), r1=-1)


def test_store_takes_wide_formats_only() -> None:
    store = Store(hbm=HbmAddr(), row=Addr(), lanes=4, rows=Count(2), format=HbmFormat.INT8)
    with pytest.raises(HardwareError, match=r"dma\.store writes bf16 or fp32, not int8"):
        execute(bare_core(hbm=bytes(100)), store)

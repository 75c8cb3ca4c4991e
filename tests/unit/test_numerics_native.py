"""The native numerics against the NumPy definition, bit for bit, on every level this host has."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.numerics import Format, Function, arith, formats, functions, mxu, reduce
from tapeout.sim import _native

native = _native.math

SPECIAL_BITS = np.array(
    [0x00000000, 0x00000001, 0x00400000, 0x007FFFFF, 0x00800000, 0x00800001, 0x00FFFFFF,
     0x01000000, 0x33800000, 0x3EFFFFFF, 0x3F000000, 0x3F7FFFFF, 0x3F800000, 0x3F800001,
     0x3FC00000, 0x40000000, 0x42FC0000, 0x43000000, 0x4B000000, 0x4B000001, 0x48000000,
     0x48000001, 0x7E800000, 0x7E800001, 0x7F000000, 0x7F7FFFFF, 0x7F800000, 0x7F800001,
     0x7FA00000, 0x7FC00000, 0x7FFFFFFF],
    np.uint32,
)  # fmt: skip
SPECIALS = np.concatenate([SPECIAL_BITS, SPECIAL_BITS | np.uint32(0x80000000)]).view(np.float32)
OPS = {"fma": 0, "add": 1, "sub": 2, "mul": 3, "maximum": 4, "minimum": 5}
FOLDS = {"fold_sum": 0, "fold_sumsq": 1, "fold_max": 2}


@pytest.fixture(params=native.isa_levels())
def level(request):
    before = native.isa_level()
    native.set_isa_level(request.param)
    yield request.param
    native.set_isa_level(before)


def any_bits(rng, n):
    """float32 of random bit patterns, a third of them near the ends of the exponent range."""
    u = rng.integers(0, 2**32, n, dtype=np.uint32)
    low = u[: n // 6]
    low &= np.uint32(0x80FFFFFF)  # subnormal, or within a factor 4 of the least normal
    high = u[n // 6 : n // 3]
    high |= np.uint32(0x7E000000)
    return u.view(np.float32)


def near_one(rng, n):
    return (rng.standard_normal(n) * 2.0 ** rng.integers(-6, 7, n)).astype(np.float32)


def any_bf16(rng, shape, *, wild):
    if wild:
        u = rng.integers(0, 2**16, shape, dtype=np.uint16)
        tame = rng.random(shape) < 0.97  # leave room for finite sums
        return np.where(tame, (u & 0x8FFF) | 0x2000, u).astype(np.uint16)
    return formats.f32_to_bf16(rng.standard_normal(shape).astype(np.float32))


def same(got, want):
    got, want = np.asarray(got), np.asarray(want)
    assert got.shape == want.shape
    unsigned = {2: np.uint16, 4: np.uint32}[got.dtype.itemsize]
    wrong = np.flatnonzero(got.view(unsigned).ravel() != want.view(unsigned).ravel())
    assert not wrong.size, (
        f"{wrong.size} of {got.size} differ, first at {wrong[0]}: "
        f"{got.ravel()[wrong[0]]!r} against {want.ravel()[wrong[0]]!r}"
    )


def test_levels_are_best_first_and_end_plain():
    assert native.isa_levels()[-1] == "plain"
    with pytest.raises(ValueError, match="isa level must be one this host runs"):
        native.set_isa_level("sse9")


def test_comparison_can_fail():
    with pytest.raises(AssertionError, match="1 of 3 differ, first at 1"):
        same(np.array([0, 0.0, 1], np.float32), np.array([0, -0.0, 1], np.float32))


@pytest.mark.parametrize("op", OPS)
def test_combine(level, op):
    rng = np.random.default_rng(OPS[op])
    pairs = np.repeat(SPECIALS, len(SPECIALS)), np.tile(SPECIALS, len(SPECIALS))
    for a, b in (pairs, (any_bits(rng, 30011), any_bits(rng, 30011))):
        c = rng.permutation(b)
        call = getattr(arith, op)
        want = call(a, b, c) if op == "fma" else call(a, b)
        same(native.combine(OPS[op], a, b, c), want)
        scalar = c[:1] if op == "fma" else b[:1]
        want = call(a, b, scalar) if op == "fma" else call(a, scalar)
        same(native.combine(OPS[op], a, b if op == "fma" else scalar, scalar), want)


def test_fma_where_products_cancel_and_where_sums_are_tiny(level):
    rng = np.random.default_rng(7)
    a, b = near_one(rng, 40000), near_one(rng, 40000)
    nearly = -(a.astype(np.float64) * b).astype(np.float32)
    same(native.combine(0, a, b, nearly), arith.fma(a, b, nearly))
    # products around 2**-126, plus a little: the boundary of tininess after rounding
    scale = np.float32(2.0**-63)
    x, y = (near_one(rng, 40000) * scale for _ in range(2))
    z = (near_one(rng, 40000) * np.float32(2.0**-120)) * np.float32(2.0**-7)
    same(native.combine(0, x, y, z), arith.fma(x, y, z))
    same(native.combine(3, x, y, z), arith.mul(x, y))


def test_the_boundary_of_tininess(level):
    """(1 + i ulp) * (1 - j ulp) * 2**-126 for small i, j: rounds to 2**-126 or is flushed."""
    i, j = np.meshgrid(np.arange(8), np.arange(8))
    a = ((1 + i * 2.0**-23) * 2.0**-63).astype(np.float32).ravel()
    b = ((1 - j * 2.0**-24) * 2.0**-63).astype(np.float32).ravel()
    want = arith.mul(a, b)
    exact = [Fraction(float(p)) * Fraction(float(q)) for p, q in zip(a, b, strict=True)]
    least = Fraction(2) ** -126 - Fraction(2) ** -151
    assert [bool(w != 0) for w in want] == [e >= least for e in exact]
    assert 0 < (want == 0).sum() < want.size
    same(native.combine(3, a, b, a), want)


@pytest.mark.parametrize("function", list(Function), ids=lambda f: f.name.lower())
def test_functions(level, function):
    rng = np.random.default_rng(function)
    x = np.concatenate([SPECIALS, any_bits(rng, 20001), near_one(rng, 20000)])
    same(native.apply(function, x), functions.apply(function, x))


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("lanes", [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 100, 128, 200, 256])
def test_folds(level, fold, lanes):
    rng = np.random.default_rng(lanes)
    rows = [near_one(rng, lanes), any_bits(rng, lanes), rng.choice(SPECIALS, lanes)]
    rows.append(np.full(lanes, -0.0, np.float32))
    rows.append(np.full(lanes, 1e-39, np.float32))
    for x in rows:
        got = np.float32(native.fold(FOLDS[fold], x))
        same(np.array([got]), getattr(reduce, fold)(x)[None])


def test_no_lanes_and_too_many():
    assert np.signbit(native.fold(0, np.zeros(0, np.float32)))
    with pytest.raises(ValueError, match="at most 1024 lanes, not 1025"):
        native.fold(0, np.zeros(1025, np.float32))


@pytest.mark.parametrize("n", [1, 5, 8, 15, 16, 17, 30000])
def test_conversions(level, n):
    rng = np.random.default_rng(n)
    x = np.concatenate([any_bits(rng, n), SPECIALS])
    # ties of the rounding to bf16
    x = np.concatenate([x, (arith.bits(x) & 0xFFFF0000 | 0x8000).view(np.float32)])
    same(native.f32_to_bf16(x), formats.f32_to_bf16(x))
    u = x.view(np.uint32).astype(np.uint16)
    same(native.bf16_to_f32(u), formats.bf16_to_f32(u))
    high, low = native.split_planes(x)
    same(high, formats.split_planes(x)[0])
    same(low, formats.split_planes(x)[1])
    same(native.merge_planes(high, low), x)


CONVERTED = [f for f in Format if f not in (Format.FP32, Format.INT32)]


@pytest.mark.parametrize("fmt", CONVERTED, ids=lambda f: f.name.lower())
@pytest.mark.parametrize("lanes", [2, 14, 16, 30, 64, 66, 128, 254])
def test_decode_of_any_bytes(level, fmt, lanes):
    rng = np.random.default_rng(lanes)
    rows = 64
    raw = rng.integers(0, 256, fmt.bytes_for(rows, lanes), dtype=np.uint8)
    assert native.bytes_for(fmt, rows, lanes) == raw.size
    stride = lanes + 3
    got = native.decode_rows(fmt, raw, rows, lanes, stride)
    same(got[:, :lanes].copy(), formats.decode_rows(fmt, raw, rows, lanes))
    assert (got[:, lanes:] == 0xA5A5).all()


@pytest.mark.parametrize("fmt", [Format.INT8, Format.FP8_E4M3, Format.FP8_E5M2, Format.MXFP8_E4M3])
def test_decode_of_odd_lanes(level, fmt):
    raw = np.random.default_rng(0).integers(0, 256, fmt.bytes_for(32, 37), dtype=np.uint8)
    same(native.decode_rows(fmt, raw, 32, 37, 37), formats.decode_rows(fmt, raw, 32, 37))


def test_decode_refuses_what_has_no_rows():
    raw = np.zeros(1 << 16, np.uint8)
    with pytest.raises(ValueError, match="33 rows do not divide"):
        native.decode_rows(Format.Q4_1, raw, 33, 16, 16)
    with pytest.raises(ValueError, match="15 lanes is odd"):
        native.decode_rows(Format.MXFP4, raw, 32, 15, 15)
    with pytest.raises(ValueError, match="copied as two planes"):
        native.decode_rows(Format.FP32, raw, 32, 16, 16)


def check_matmul(rng, m, k, n, *, transposed, wild):
    x, w = any_bf16(rng, (m, k), wild=wild), any_bf16(rng, (k, n), wild=wild)
    tile = np.ascontiguousarray(w.T) if transposed else w
    want = mxu.matmul_pass(x, w)
    acc = any_bits(rng, m * (n + 5)).reshape(m, n + 5)
    before = acc.copy()
    native.matmul(x, tile, acc, transposed=transposed)
    same(acc[:, :n].copy(), want)
    same(acc[:, n:].copy(), before[:, n:].copy())
    native.matmul(x, tile, acc, transposed=transposed, accumulate=True)
    same(acc[:, :n].copy(), arith.add(want, want))
    same(acc[:, n:].copy(), before[:, n:].copy())


@settings(max_examples=40, deadline=None)
@given(
    m=st.one_of(st.integers(1, 9), st.integers(10, 40)),
    k=st.integers(1, 70),
    n=st.integers(1, 140),
    transposed=st.booleans(),
    wild=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_matmul_of_any_shape(m, k, n, transposed, wild, seed):
    before = native.isa_level()
    try:
        for name in native.isa_levels():
            native.set_isa_level(name)
            rng = np.random.default_rng(seed)
            check_matmul(rng, m, k, n, transposed=transposed, wild=wild)
    finally:
        native.set_isa_level(before)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [(1, 256, 256), (7, 128, 128), (250, 9, 130), (128, 128, 128), (3, 64, 128), (47, 130, 250)],
)
def test_matmul_of_chosen_shapes(level, m, k, n, transposed):
    check_matmul(np.random.default_rng(m), m, k, n, transposed=transposed, wild=False)


def test_matmul_refuses_what_the_array_cannot_hold():
    x, w = np.zeros((1, 257), np.uint16), np.zeros((257, 4), np.uint16)
    with pytest.raises(ValueError, match="K = 257"):
        native.matmul(x, w, np.zeros((1, 4), np.float32))

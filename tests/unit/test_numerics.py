"""The NumPy numerics against exact rational arithmetic, ml_dtypes and gguf."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapeout.numerics import Format, arith, encodings, formats, mxu, reduce

NAN = np.uint32(0x7FC00000)
BITS = st.integers(0, 2**32 - 1)
EXPONENT_ENDS = st.builds(
    lambda sign, exponent, mantissa: sign << 31 | exponent << 23 | mantissa,
    st.integers(0, 1),
    st.one_of(st.integers(0, 3), st.integers(62, 66), st.integers(252, 255)),
    st.sampled_from([0, 1, 2, 0x3FFFFF, 0x400000, 0x7FFFFE, 0x7FFFFF, 0x2AAAAA]),
)
FLOAT_BITS = st.one_of(BITS, EXPONENT_ENDS)


def f32(bits):
    return np.array([bits], np.uint32).view(np.float32)


def round_exactly(value: Fraction, zero_sign: int) -> int:
    """fp32 bits of a rational: nearest even, zero where tiny after rounding, Inf beyond."""
    if value == 0:
        return zero_sign << 31
    sign, magnitude = (1 if value < 0 else 0), abs(value)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    scaled = magnitude / Fraction(2) ** (exponent - 23)  # in [2**23, 2**24)
    mantissa = round(scaled)  # Python rounds halves to even
    if mantissa == 1 << 24:
        mantissa, exponent = 1 << 23, exponent + 1
    if exponent < -126:
        return sign << 31
    if exponent > 127:
        return sign << 31 | 0x7F800000
    return sign << 31 | (exponent + 127) << 23 | mantissa - (1 << 23)


def as_fraction(bits: int) -> Fraction:
    if bits >> 23 & 255 == 0:
        return Fraction(0)
    return Fraction(struct.unpack("<f", struct.pack("<I", bits))[0])


def exact_fma(a: int, b: int, c: int) -> int:
    def is_nan(u):
        return u & 0x7FFFFFFF > 0x7F800000

    def is_inf(u):
        return u & 0x7FFFFFFF == 0x7F800000

    def is_zero(u):
        return u >> 23 & 255 == 0

    product_sign = a >> 31 ^ b >> 31
    if is_nan(a) or is_nan(b) or is_nan(c):
        return int(NAN)
    if is_inf(a) or is_inf(b):
        if is_zero(a) or is_zero(b) or (is_inf(c) and c >> 31 != product_sign):
            return int(NAN)
        return product_sign << 31 | 0x7F800000
    if is_inf(c):
        return c
    product = as_fraction(a) * as_fraction(b)
    zero_sign = product_sign & c >> 31 if product == 0 and is_zero(c) else 0
    return round_exactly(product + as_fraction(c), zero_sign)


@settings(max_examples=600, deadline=None)
@given(FLOAT_BITS, FLOAT_BITS, FLOAT_BITS)
def test_fma_is_exact(a, b, c):
    assert arith.bits(arith.fma(f32(a), f32(b), f32(c)))[0] == exact_fma(a, b, c)


@settings(max_examples=400, deadline=None)
@given(FLOAT_BITS, FLOAT_BITS, st.integers(-3, 3))
def test_fma_where_the_product_cancels(a, b, nudge):
    product = arith.bits(arith.mul(f32(a), f32(b)))[0]
    c = int(product) ^ 0x80000000
    c = min(max(c + nudge, 0), 2**32 - 1)
    assert arith.bits(arith.fma(f32(a), f32(b), f32(c)))[0] == exact_fma(a, b, c)


@settings(max_examples=400, deadline=None)
@given(FLOAT_BITS, FLOAT_BITS)
def test_add_sub_mul_are_exact(a, b):
    one, minus_zero = 0x3F800000, 0x80000000
    assert arith.bits(arith.add(f32(a), f32(b)))[0] == exact_fma(a, one, b)
    assert arith.bits(arith.sub(f32(a), f32(b)))[0] == exact_fma(a, one, b ^ minus_zero)
    # a * b + (+-0 of the product's sign) is the product with its own zero
    zero = (a ^ b) & minus_zero
    assert arith.bits(arith.mul(f32(a), f32(b)))[0] == exact_fma(a, b, zero)


def test_fma_is_exact_on_many_bits():
    """Exponents kept close to each other, so that the addend matters and results can be tiny."""
    rng = np.random.default_rng(0)
    n = 30000
    exponent = rng.integers(1, 190, n)
    other = np.clip(exponent + rng.integers(-30, 30, n), 1, 254)
    third = np.clip(exponent + other - 127 + rng.integers(-30, 30, n), 0, 254)
    a, b, c = (
        (e.astype(np.uint32) << 23) | rng.integers(0, 2**23, n, dtype=np.uint32) | sign
        for e in (exponent, other, third)
        for sign in [rng.integers(0, 2, n, dtype=np.uint32) << 31]
    )
    got = arith.bits(arith.fma(arith.from_bits(a), arith.from_bits(b), arith.from_bits(c)))
    want = [exact_fma(*t) for t in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    np.testing.assert_array_equal(got, np.array(want, np.uint32))
    assert (got & 0x7FFFFFFF == 0).sum() > 100


def test_the_rational_reference_can_fail():
    """Two roundings differ from one: the reference tells them apart."""
    a, b, c = 0x3F800001, 0x3F800001, 0xBF800002  # (1+u)**2 - (1+2u) = u**2
    assert exact_fma(a, b, c) == 0x28800000
    twice = arith.add(arith.mul(f32(a), f32(b)), f32(c))
    assert arith.bits(twice)[0] == 0


def test_max_and_min():
    specials = np.array([0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 1e-40, -1e-40], np.float32)
    a, b = (v.ravel() for v in np.meshgrid(specials, specials))
    high, low = arith.maximum(a, b), arith.minimum(a, b)
    either = np.isnan(a) | np.isnan(b)
    assert (arith.bits(high)[either] == NAN).all()
    assert (arith.bits(low)[either] == NAN).all()
    assert arith.bits(arith.maximum(f32(0x80000000), f32(0)))[0] == 0
    assert arith.bits(arith.minimum(f32(0), f32(0x80000000)))[0] == 0x80000000
    assert arith.bits(arith.maximum(f32(0x80000001), f32(0xBF800000)))[0] == 0x80000000
    fine = ~either
    np.testing.assert_array_equal(high[fine], np.maximum(arith.flush(a), arith.flush(b))[fine])
    np.testing.assert_array_equal(low[fine], np.minimum(arith.flush(a), arith.flush(b))[fine])


def test_shapes_are_kept():
    x = np.ones((2, 3, 4), np.float32)
    assert arith.fma(x, x[0], np.float32(1)).shape == (2, 3, 4)
    assert arith.add(np.float32(1), np.float32(2)) == 3
    assert arith.maximum(np.float32(1), x).shape == x.shape


def test_integer_operations():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 2**32, (2, 1000), dtype=np.uint32)
    wide_a, wide_b = a.astype(object), b.astype(object)
    np.testing.assert_array_equal(arith.iadd(a, b), (wide_a + wide_b) % 2**32)
    np.testing.assert_array_equal(arith.isub(a, b), (wide_a - wide_b) % 2**32)
    np.testing.assert_array_equal(arith.imul_low(a, b), (wide_a * wide_b) % 2**32)
    np.testing.assert_array_equal(arith.imul_high(a, b), (wide_a * wide_b) >> 32)
    np.testing.assert_array_equal(
        arith.shift_right_signed(a, 5), (a.view(np.int32) >> 5).view("u4")
    )


@pytest.mark.parametrize(
    ("decode", "encode", "dtype", "count"),
    [
        (encodings.decode_fp8_e4m3, encodings.encode_fp8_e4m3, "float8_e4m3fn", 256),
        (encodings.decode_fp8_e5m2, encodings.encode_fp8_e5m2, "float8_e5m2", 256),
        (encodings.decode_fp4_e2m1, encodings.encode_fp4_e2m1, "float4_e2m1fn", 16),
    ],
)
def test_minifloats_against_ml_dtypes(decode, encode, dtype, count):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    reference = getattr(ml_dtypes, dtype)
    codes = np.arange(count, dtype=np.uint8)
    values = codes.view(reference).astype(np.float32)
    np.testing.assert_array_equal(decode(codes), values)
    top = np.nanmax(np.where(np.isinf(values), np.nan, values))
    rng = np.random.default_rng(1)
    x = (rng.standard_normal(20000) * 2.0 ** rng.integers(-20, 20, 20000)).astype(np.float32)
    finite = np.sort(values[np.isfinite(values)])
    x = np.concatenate([x, (finite[1:] + finite[:-1]) / 2, finite])  # every tie, every value
    x = np.clip(x, -top, top)
    np.testing.assert_array_equal(encode(x), x.astype(reference).view(np.uint8))
    assert (np.abs(decode(encode(np.array([1e30, -np.inf], np.float32)))) == top).all()


def test_bf16_against_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    u = np.random.default_rng(2).integers(0, 2**32, 200000, dtype=np.uint32)
    u[::4] = u[::4] & 0xFFFF0000 | 0x8000  # ties
    x = arith.flush(u.view(np.float32))
    with np.errstate(invalid="ignore"):
        want = x.astype(ml_dtypes.bfloat16).view(np.uint16)
    want = np.where(np.isnan(x), np.uint16(0x7FC0), want)
    np.testing.assert_array_equal(formats.f32_to_bf16(x), want)
    assert formats.f32_to_bf16(f32(0x807FFFFF))[0] == 0x8000


def test_planes_come_back():
    x = np.random.default_rng(3).integers(0, 2**32, 1000, dtype=np.uint32).view(np.float32)
    merged = formats.merge_planes(*formats.split_planes(x))
    np.testing.assert_array_equal(arith.bits(merged), arith.bits(x))


def test_sizes():
    assert Format.Q4_1.bytes_for(64, 128) == 2 * (128 * 4 + 32 * 64)
    assert Format.Q8_0.bytes_for(32, 10) == 32 * 10 + 20
    assert Format.MXFP4.bytes_for(32, 10) == 32 * 5 + 10
    assert Format.FP32.bytes_for(3, 5) == 60
    assert Format.BF16.group_rows == 1
    assert Format.MXFP8_E5M2.group_rows == 32


def test_shapes_a_format_cannot_hold():
    with pytest.raises(ValueError, match="33 rows do not divide into them: pad the tile to 64"):
        Format.Q8_0.bytes_for(33, 4)
    with pytest.raises(ValueError, match="5 lanes is odd: pad the tile to 6"):
        Format.Q4_1.bytes_for(32, 5)
    with pytest.raises(ValueError, match="takes 330 bytes, and 3 were given"):
        formats.decode_rows(Format.MXFP8_E4M3, b"abc", 32, 10)
    with pytest.raises(ValueError, match="copied as two planes"):
        formats.decode_rows(Format.INT32, bytes(400), 10, 10)
    with pytest.raises(ValueError, match="finite data"):
        formats.pack_rows(Format.Q8_0, np.full((32, 2), np.inf, np.float32))


TOLERANCE = {  # of the group's largest magnitude: half a step, and half an ulp of bf16 on top
    Format.BF16: 2.0**-8,
    Format.FP8_E4M3: 2.0**-4 + 2.0**-8,
    Format.FP8_E5M2: 2.0**-3 + 2.0**-8,
    Format.Q8_0: 0.5 / 127 + 2.0**-8,
    Format.Q4_1: 1.01 / 15 + 2.0**-8,  # its range can be twice the largest magnitude
    Format.MXFP8_E4M3: 2.0**-4 + 2.0**-8,
    Format.MXFP8_E5M2: 2.0**-3 + 2.0**-8,
    Format.MXFP4: 2.0**-2 + 2.0**-8,
}


@pytest.mark.parametrize("fmt", TOLERANCE, ids=lambda f: f.name.lower())
def test_packing_comes_back_close(fmt):
    x = np.random.default_rng(4).standard_normal((96, 30)).astype(np.float32)
    x[:32, 3] = 0.0
    raw = formats.pack_rows(fmt, x)
    assert len(raw) == fmt.bytes_for(96, 30)
    back = formats.bf16_to_f32(formats.decode_rows(fmt, raw, 96, 30))
    peak = np.abs(x.reshape(3, 32, 30)).max(axis=1, keepdims=True)
    error = np.abs((back - x).reshape(3, 32, 30))
    assert (error <= TOLERANCE[fmt] * peak + 1e-30).all()
    # what the format holds exactly stays: packing again changes nothing
    again = formats.decode_rows(fmt, formats.pack_rows(fmt, back), 96, 30)
    if fmt in (Format.BF16, Format.FP8_E4M3, Format.FP8_E5M2):
        np.testing.assert_array_equal(again, formats.decode_rows(fmt, raw, 96, 30))


def test_int8_and_raw_formats():
    codes = np.arange(256, dtype=np.uint8)
    got = formats.bf16_to_f32(formats.decode_rows(Format.INT8, codes, 1, 256))[0]
    np.testing.assert_array_equal(got, codes.view(np.int8).astype(np.float32))
    x = np.random.default_rng(5).standard_normal((3, 4)).astype(np.float32)
    assert formats.pack_rows(Format.FP32, x) == x.tobytes()


def test_mx_scales_at_their_ends():
    """e = 0 is 2**-127, not zero; e = 255 is NaN; products out of range are Inf or flushed."""
    scales = np.array([0, 1, 254, 255], np.uint8)
    element = np.full((32, 4), 0x7E, np.uint8)  # 448
    raw = scales.tobytes() + element.tobytes()
    row = formats.decode_rows(Format.MXFP8_E4M3, raw, 32, 4)[0]
    got = formats.bf16_to_f32(row)
    assert got[0] == 448 * 2.0**-127
    assert got[1] == 448 * 2.0**-126
    assert np.isinf(got[2])
    assert row[3] == encodings.BF16_NAN


@pytest.mark.parametrize(
    ("kind", "fmt", "repack"),
    [
        ("Q4_1", Format.Q4_1, formats.repack_gguf_q4_1),
        ("Q8_0", Format.Q8_0, formats.repack_gguf_q8_0),
    ],
)
def test_gguf_blocks_repack_without_loss(kind, fmt, repack):
    gguf = pytest.importorskip("gguf")
    quants = pytest.importorskip("gguf.quants")
    n, k = 6, 96
    w = np.random.default_rng(6).standard_normal((n, k)).astype(np.float32)
    tensor_type = getattr(gguf.GGMLQuantizationType, kind)
    raw = quants.quantize(w, tensor_type)
    want = formats.f32_to_bf16(quants.dequantize(raw, tensor_type).T.copy())
    got = formats.decode_rows(fmt, repack(raw, n, k), k, n)
    if kind == "Q4_1":  # gguf rounds d * q before it adds m: at most one step of bf16 apart
        apart = np.abs(got.astype(int) - want.astype(int))
        assert apart.max() <= 1
        assert (apart != 0).mean() < 0.01
    else:
        np.testing.assert_array_equal(got, want)
    with pytest.raises(ValueError, match="not a multiple of 32"):
        repack(raw, n, 95)
    with pytest.raises(ValueError, match=r"data of W\[6, 64\] takes"):
        repack(raw, n, 64)


def test_fold_order():
    """Halves onto each other: (a + c) + (b + d) is 1 here, left to right would be 0."""
    x = np.array([2.0**24, 1.0, 1.0, -(2.0**24)], np.float32)
    assert reduce.fold_sum(x) == 1.0
    left_to_right = arith.add(arith.add(arith.add(x[0], x[1]), x[2]), x[3])
    assert left_to_right == 0.0
    rng = np.random.default_rng(7)
    x = rng.standard_normal((5, 77)).astype(np.float32)
    wider = np.concatenate([x, np.full((5, 200), -0.0, np.float32)], axis=1)
    np.testing.assert_array_equal(reduce.fold_sum(x), reduce.fold_sum(wider))
    assert np.signbit(reduce.fold_sum(np.full(3, -0.0, np.float32)))
    np.testing.assert_array_equal(reduce.fold_max(x), x.max(axis=1))
    np.testing.assert_allclose(reduce.fold_sumsq(x), (x**2).sum(axis=1), rtol=1e-5)
    assert np.isnan(reduce.fold_max(np.array([1, np.nan, 2], np.float32)))


def test_matmul_order_and_sign_of_zero():
    one, tiny = 0x3F80, 0x0001
    minus_one = 0xBF80
    x = np.array([[one, one]], np.uint16)
    assert np.signbit(mxu.matmul_pass(np.array([[minus_one]], "u2"), np.array([[0]], "u2"))[0, 0])
    assert np.signbit(mxu.matmul_pass(x, np.array([[0x8000], [0x8000 | tiny]], "u2"))[0, 0])
    assert not np.signbit(mxu.matmul_pass(x, np.array([[0x8000], [0x0000]], "u2"))[0, 0])
    rng = np.random.default_rng(8)
    x, w = (
        formats.f32_to_bf16(rng.standard_normal(s).astype(np.float32)) for s in ((4, 9), (9, 5))
    )
    exact = formats.bf16_to_f32(x).astype(np.float64) @ formats.bf16_to_f32(w).astype(np.float64)
    np.testing.assert_allclose(mxu.matmul_pass(x, w), exact, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="they must be equal"):
        mxu.matmul_pass(x, w[:5])

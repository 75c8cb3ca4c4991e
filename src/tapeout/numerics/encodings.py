"""Element encodings: bf16, the two planes of fp32, fp8, fp4, int8, e8m0, fp16.

bf16 values travel as uint16 bit patterns, narrower ones as uint8. `decode` directions are exact;
`encode` directions round to nearest even and saturate. NaN results are canonical: 0x7FC0 in bf16.
"""

import numpy as np
from numpy.typing import NDArray

from tapeout.numerics.arith import F32, bits, from_bits

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]

BF16_NAN = 0x7FC0
FP8_E4M3_MAX = 448.0
FP8_E5M2_MAX = 57344.0
FP4_E2M1_MAX = 6.0


def bf16_to_f32(u: U16) -> F32:
    """bf16 bits to float32: a shift; nothing is flushed (whoever computes with it flushes)."""
    return from_bits(np.asarray(u, np.uint16).astype(np.uint32) << np.uint32(16))


def f32_to_bf16(x: F32) -> U16:
    """float32 to bf16 bits: nearest even, subnormals to zero with sign, NaN to 0x7FC0.

    A subnormal operand reads as zero like any fp32 operand, so no subnormal rounds up to 2**-126.
    """
    u = bits(x)
    exponent = u & np.uint32(0x7F800000)
    rounded = (u + np.uint32(0x7FFF) + ((u >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    sign = (u >> np.uint32(16)) & np.uint32(0x8000)
    out = np.where(exponent == 0, sign, rounded)
    is_nan = (u & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    return np.where(is_nan, np.uint32(BF16_NAN), out).astype(np.uint16)


def split_planes(x: F32) -> tuple[U16, U16]:
    """float32 as its high and low 16 bits: the two spm rows 2m and 2m+1 of an fp32 row."""
    u = bits(x)
    return (u >> np.uint32(16)).astype(np.uint16), (u & np.uint32(0xFFFF)).astype(np.uint16)


def merge_planes(high: U16, low: U16) -> F32:
    """The inverse of `split_planes`."""
    high32 = np.asarray(high, np.uint16).astype(np.uint32) << np.uint32(16)
    return from_bits(high32 | np.asarray(low, np.uint16))


def f16_to_f32(u: U16) -> F32:
    """IEEE fp16 bits to float32, exact (fp16 subnormals are normal in fp32)."""
    return np.asarray(u, np.uint16).view(np.float16).astype(np.float32)


def f32_to_f16(x: F32) -> U16:
    """float32 to IEEE fp16 bits, nearest even, saturating to +-65504."""
    limited = np.clip(np.asarray(x, np.float32), -65504.0, 65504.0)
    return limited.astype(np.float16).view(np.uint16)


def _minifloat_values(exponent_bits: int, mantissa_bits: int) -> NDArray[np.float64]:
    """Values of the non-negative codes, with the top exponent an ordinary one."""
    bias = 2 ** (exponent_bits - 1) - 1
    codes = np.arange(2 ** (exponent_bits + mantissa_bits))
    exponent, mantissa = codes >> mantissa_bits, codes & (2**mantissa_bits - 1)
    fraction = mantissa / 2.0**mantissa_bits
    normal = (1.0 + fraction) * 2.0 ** (exponent - bias)
    return np.asarray(np.where(exponent == 0, fraction * 2.0 ** (1 - bias), normal), np.float64)


def _e4m3_values() -> NDArray[np.float64]:
    values = _minifloat_values(4, 3)
    values[0x7F] = np.nan
    return values


def _e5m2_values() -> NDArray[np.float64]:
    values = _minifloat_values(5, 2)
    values[0x7C] = np.inf
    values[0x7D:] = np.nan
    return values


def _encode(x: F32, positive_values: NDArray[np.float64], nan_code: int) -> U8:
    """Nearest even over the finite codes, saturating; the sign goes one bit above the codes."""
    finite = positive_values[np.isfinite(positive_values)]
    x64 = np.asarray(x, np.float64)
    magnitude = np.minimum(np.abs(x64), finite[-1])
    is_nan = np.isnan(x64)
    magnitude = np.where(is_nan, 0.0, magnitude)
    low = np.searchsorted(finite, magnitude, side="right") - 1
    high = np.minimum(low + 1, len(finite) - 1)
    middle = (finite[low] + finite[high]) / 2
    up = (magnitude > middle) | ((magnitude == middle) & (low % 2 == 1))
    code = np.where(is_nan, nan_code, np.where(up, high, low))
    return np.asarray(code + len(positive_values) * np.signbit(x64), np.uint8)


def encode_fp8_e4m3(x: F32) -> U8:
    """float32 to fp8 e4m3fn codes, saturating to +-448 (Inf too); NaN is 0x7F with its sign."""
    return _encode(x, _e4m3_values(), 0x7F)


def encode_fp8_e5m2(x: F32) -> U8:
    """float32 to fp8 e5m2 codes, saturating to +-57344 (Inf too); NaN is 0x7E with its sign."""
    return _encode(x, _e5m2_values(), 0x7E)


def encode_fp4_e2m1(x: F32) -> U8:
    """float32 to fp4 e2m1 codes 0..15, saturating to +-6. fp4 has no NaN: NaN is an error."""
    if np.isnan(x).any():
        raise ValueError("fp4 e2m1 has no NaN, and the data holds one: clean it, or use mxfp8_e4m3")
    return _encode(x, _minifloat_values(2, 1), 0)


def encode_int8(x: F32) -> U8:
    """float32 to int8 (as uint8 bits), nearest even, saturating to -128..127; NaN is an error."""
    if np.isnan(x).any():
        raise ValueError("int8 has no NaN, and the data holds one: clean it, or use a float format")
    return np.clip(np.rint(x), -128, 127).astype(np.int8).view(np.uint8)


def _signed_table(positive_values: NDArray[np.float64]) -> F32:
    return np.concatenate([positive_values, -positive_values]).astype(np.float32)


FP8_E4M3_F32 = _signed_table(_e4m3_values())  # [256], by code
FP8_E5M2_F32 = _signed_table(_e5m2_values())  # [256], by code
FP4_E2M1_F32 = _signed_table(_minifloat_values(2, 1))  # [16], by code
INT8_F32 = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)  # [256], by bits


def decode_fp8_e4m3(codes: U8) -> F32:
    """fp8 e4m3fn codes to float32, exact."""
    return FP8_E4M3_F32[codes]


def decode_fp8_e5m2(codes: U8) -> F32:
    """fp8 e5m2 codes to float32, exact."""
    return FP8_E5M2_F32[codes]


def decode_fp4_e2m1(codes: U8) -> F32:
    """fp4 e2m1 codes 0..15 to float32, exact."""
    return FP4_E2M1_F32[codes]


def decode_int8(codes: U8) -> F32:
    """int8 bits to float32: the value of the integer."""
    return INT8_F32[codes]

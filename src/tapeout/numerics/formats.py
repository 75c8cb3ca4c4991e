"""Storage formats of HBM: how many bytes a tile takes, and how it becomes bf16 on the way in.

A tile is rows x lanes. Plain formats store it row-major. Block formats are column-blocked: a group
covers 32 consecutive rows by all lanes, and holds first its scales (one a lane), then 32 rows of
codes, so that a lane's datapath sees only its own column:

* q4_1: fp16 scale d and fp16 minimum m a lane; nibbles q; value fma(d, q, m)
* q8_0: fp16 scale d a lane; int8 q; value d * q
* mxfp8_e4m3, mxfp8_e5m2, mxfp4: e8m0 scale e a lane; elements x; value x * 2**(e - 127), NaN where
  e = 255

The value is computed in fp32 and rounded once more to bf16. Nibble rows hold lane 2i in the low and
lane 2i + 1 in the high half of byte i.
"""

from enum import IntEnum

import numpy as np

from tapeout.numerics import arith
from tapeout.numerics.arith import F32
from tapeout.numerics.encodings import (
    BF16_NAN,
    FP4_E2M1_F32,
    FP4_E2M1_MAX,
    FP8_E4M3_F32,
    FP8_E4M3_MAX,
    FP8_E5M2_F32,
    FP8_E5M2_MAX,
    INT8_F32,
    U8,
    U16,
    bf16_to_f32,
    decode_fp4_e2m1,
    decode_fp8_e4m3,
    decode_fp8_e5m2,
    decode_int8,
    encode_fp4_e2m1,
    encode_fp8_e4m3,
    encode_fp8_e5m2,
    encode_int8,
    f16_to_f32,
    f32_to_bf16,
    f32_to_f16,
    merge_planes,
    split_planes,
)

__all__ = [
    "BF16_NAN",
    "GROUP_ROWS",
    "Format",
    "bf16_to_f32",
    "decode_fp4_e2m1",
    "decode_fp8_e4m3",
    "decode_fp8_e5m2",
    "decode_int8",
    "decode_rows",
    "encode_fp4_e2m1",
    "encode_fp8_e4m3",
    "encode_fp8_e5m2",
    "encode_int8",
    "f16_to_f32",
    "f32_to_bf16",
    "f32_to_f16",
    "merge_planes",
    "pack_rows",
    "repack_gguf_q4_1",
    "repack_gguf_q8_0",
    "split_planes",
]

GROUP_ROWS = 32  # rows that share one scale in every block format


class Format(IntEnum):
    """HBM storage formats; the number is the one the ISA and the native code use."""

    BF16 = 0
    FP32 = 1
    INT32 = 2
    FP8_E4M3 = 3
    FP8_E5M2 = 4
    INT8 = 5
    Q8_0 = 6
    Q4_1 = 7
    MXFP8_E4M3 = 8
    MXFP8_E5M2 = 9
    MXFP4 = 10

    @property
    def bits(self) -> int:
        """Bits of one element, without its share of the scales."""
        return _ELEMENT_BITS[self]

    @property
    def is_block(self) -> bool:
        """True where GROUP_ROWS rows share scales."""
        return self in _SCALE_BYTES

    @property
    def is_raw(self) -> bool:
        """True where a load copies bits (bf16, fp32, int32) and converts nothing."""
        return self in (Format.BF16, Format.FP32, Format.INT32)

    @property
    def group_rows(self) -> int:
        """Rows of one group: 32 in block formats, 1 in plain ones."""
        return GROUP_ROWS if self.is_block else 1

    @property
    def scale_bytes(self) -> int:
        """Bytes of scales for each lane of a group; zero in plain formats."""
        return _SCALE_BYTES.get(self, 0)

    def check_shape(self, rows: int, lanes: int) -> None:
        """Raise ValueError unless a tile of rows x lanes can be stored in this format."""
        if rows % self.group_rows:
            raise ValueError(
                f"{self.name.lower()} stores groups of {self.group_rows} rows, and {rows} rows do "
                f"not divide into them: pad the tile to "
                f"{-(-rows // self.group_rows) * self.group_rows} rows"
            )
        if self.bits == 4 and lanes % 2:
            raise ValueError(
                f"{self.name.lower()} stores two lanes a byte, and {lanes} lanes is odd: "
                f"pad the tile to {lanes + 1} lanes"
            )

    def bytes_for(self, rows: int, lanes: int) -> int:
        """Bytes of a tile of rows x lanes, scales included."""
        self.check_shape(rows, lanes)
        return rows * lanes * self.bits // 8 + rows // self.group_rows * lanes * self.scale_bytes


_ELEMENT_BITS = {
    Format.BF16: 16,
    Format.FP32: 32,
    Format.INT32: 32,
    Format.FP8_E4M3: 8,
    Format.FP8_E5M2: 8,
    Format.INT8: 8,
    Format.Q8_0: 8,
    Format.Q4_1: 4,
    Format.MXFP8_E4M3: 8,
    Format.MXFP8_E5M2: 8,
    Format.MXFP4: 4,
}
_SCALE_BYTES = {
    Format.Q8_0: 2,
    Format.Q4_1: 4,
    Format.MXFP8_E4M3: 1,
    Format.MXFP8_E5M2: 1,
    Format.MXFP4: 1,
}
_ELEMENT_F32 = {
    Format.FP8_E4M3: FP8_E4M3_F32,
    Format.FP8_E5M2: FP8_E5M2_F32,
    Format.INT8: INT8_F32,
    Format.Q8_0: INT8_F32,
    Format.Q4_1: np.arange(16, dtype=np.float32),
    Format.MXFP8_E4M3: FP8_E4M3_F32,
    Format.MXFP8_E5M2: FP8_E5M2_F32,
    Format.MXFP4: FP4_E2M1_F32,
}
_MX_ENCODE = {
    Format.MXFP8_E4M3: (encode_fp8_e4m3, FP8_E4M3_MAX),
    Format.MXFP8_E5M2: (encode_fp8_e5m2, FP8_E5M2_MAX),
    Format.MXFP4: (encode_fp4_e2m1, FP4_E2M1_MAX),
}


def decode_rows(fmt: Format, raw: bytes | U8, rows: int, lanes: int) -> U16:
    """The bf16 bits [rows, lanes] a load of this tile writes.

    `raw` holds at least `fmt.bytes_for(rows, lanes)` bytes. fp32 and int32 have no bf16 rows: they
    are copied as planes, and asking for them here is an error.
    """
    if fmt in (Format.FP32, Format.INT32):
        raise ValueError(
            f"{fmt.name.lower()} is copied as two planes and has no bf16 rows: use split_planes"
        )
    need = fmt.bytes_for(rows, lanes)
    data = np.frombuffer(raw, np.uint8) if not isinstance(raw, np.ndarray) else raw.reshape(-1)
    if data.size < need:
        raise ValueError(
            f"a {fmt.name.lower()} tile of {rows} x {lanes} takes {need} bytes, and {data.size} "
            f"were given: pass the whole tile"
        )
    data = np.ascontiguousarray(data[:need])
    if fmt is Format.BF16:
        return data.view(np.uint16).reshape(rows, lanes).copy()
    if not fmt.is_block:
        return f32_to_bf16(_ELEMENT_F32[fmt][data]).reshape(rows, lanes)
    groups = data.reshape(rows // GROUP_ROWS, need // (rows // GROUP_ROWS)) if rows else data
    scale_end = lanes * fmt.scale_bytes
    scales = np.ascontiguousarray(groups[..., :scale_end])
    codes = np.ascontiguousarray(groups[..., scale_end:]).reshape(-1)
    if fmt.bits == 4:
        codes = np.stack([codes & 15, codes >> 4], axis=-1).reshape(-1)
    elements = _ELEMENT_F32[fmt][codes].reshape(-1, GROUP_ROWS, lanes)
    return f32_to_bf16(_scaled(fmt, scales, elements, lanes)).reshape(rows, lanes)


def _scaled(fmt: Format, scales: U8, elements: F32, lanes: int) -> F32:
    """Elements [groups, 32, lanes] times their scales, in fp32."""
    if fmt is Format.Q4_1:
        halves = f16_to_f32(scales.view(np.uint16)).reshape(-1, 2, 1, lanes)
        return arith.fma(halves[:, 0], elements, halves[:, 1])
    if fmt is Format.Q8_0:
        return arith.mul(f16_to_f32(scales.view(np.uint16)).reshape(-1, 1, lanes), elements)
    e8m0 = scales.reshape(-1, 1, lanes).astype(np.float64)
    scale = np.where(e8m0 == 255, np.nan, np.exp2(e8m0 - 127))
    with np.errstate(all="ignore"):
        return (elements.astype(np.float64) * scale).astype(np.float32)


def pack_rows(fmt: Format, x: F32) -> bytes:
    """Quantise float32 [rows, lanes] into a tile of this format.

    Scales are chosen per lane over 32 rows: q8_0 by the largest magnitude over 127, q4_1 by
    (max - min) / 15 from min, MX by the least power of two with which nothing saturates (rounding
    scales down costs 1.4 of perplexity on SmolLM2, TOOLS.md). int32 takes the float's bit pattern.
    """
    x = np.ascontiguousarray(x, np.float32)
    rows, lanes = x.shape
    fmt.check_shape(rows, lanes)
    if fmt is Format.BF16:
        return f32_to_bf16(x).tobytes()
    if fmt in (Format.FP32, Format.INT32):
        return x.tobytes()
    if fmt is Format.FP8_E4M3:
        return encode_fp8_e4m3(x).tobytes()
    if fmt is Format.FP8_E5M2:
        return encode_fp8_e5m2(x).tobytes()
    if fmt is Format.INT8:
        return encode_int8(x).tobytes()
    if not np.isfinite(x).all():
        raise ValueError(
            f"{fmt.name.lower()} scales need finite data, and the tile holds Inf or NaN: "
            f"clean it, or store it as bf16"
        )
    groups = x.reshape(rows // GROUP_ROWS, GROUP_ROWS, lanes)
    if fmt is Format.Q8_0:
        return _pack_q8_0(groups)
    if fmt is Format.Q4_1:
        return _pack_q4_1(groups)
    return _pack_mx(fmt, groups)


def _join_groups(scales: list[np.ndarray], codes: U8) -> bytes:
    """Scales [groups, lanes] in order, then codes [groups, 32, row bytes], group by group."""
    groups = codes.shape[0]
    parts = [np.ascontiguousarray(s).view(np.uint8).reshape(groups, -1) for s in scales]
    return np.concatenate([*parts, codes.reshape(groups, -1)], axis=1).tobytes()


def _nibbles(codes: U8) -> U8:
    return codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))


def _divide(x: F32, by: F32) -> F32:
    """x / by with 0 where the divisor is 0 (then every x of the group equals its base)."""
    return np.divide(x, by, out=np.zeros_like(x), where=np.broadcast_to(by != 0, x.shape))


def _pack_q8_0(groups: F32) -> bytes:
    d = f32_to_f16(np.abs(groups).max(axis=1) / np.float32(127))
    codes = encode_int8(_divide(groups, f16_to_f32(d)[:, None]))
    return _join_groups([d], codes)


def _pack_q4_1(groups: F32) -> bytes:
    low = groups.min(axis=1)
    d = f32_to_f16((groups.max(axis=1) - low) / np.float32(15))
    m = f32_to_f16(low)
    q = _divide(groups - f16_to_f32(m)[:, None], f16_to_f32(d)[:, None])
    codes = np.clip(np.rint(q), 0, 15).astype(np.uint8)
    return _join_groups([d, m], _nibbles(codes))


def _pack_mx(fmt: Format, groups: F32) -> bytes:
    encode, largest = _MX_ENCODE[fmt]
    peak = np.abs(groups).max(axis=1).astype(np.float64)
    mantissa, exponent = np.frexp(peak / largest)  # peak / largest = mantissa * 2**exponent
    exponent = np.where(mantissa == 0.5, exponent - 1, exponent)
    e8m0 = np.clip(np.where(peak == 0, 0, exponent) + 127, 0, 254).astype(np.uint8)
    scaled = groups / np.exp2(e8m0.astype(np.float64) - 127)[:, None]
    codes = encode(scaled.astype(np.float32))
    return _join_groups([e8m0], _nibbles(codes) if fmt.bits == 4 else codes)


def _gguf_blocks(raw: bytes | U8, n: int, k: int, block_bytes: int, name: str) -> U8:
    if k % GROUP_ROWS:
        raise ValueError(f"{name} rows hold blocks of 32, and k = {k} is not a multiple of 32")
    data = np.frombuffer(raw, np.uint8) if not isinstance(raw, np.ndarray) else raw.reshape(-1)
    need = n * (k // GROUP_ROWS) * block_bytes
    if data.size != need:
        raise ValueError(
            f"{name} data of W[{n}, {k}] takes {need} bytes, and {data.size} were given"
        )
    return np.ascontiguousarray(data).reshape(n, k // GROUP_ROWS, block_bytes)


def repack_gguf_q4_1(raw: bytes | U8, n: int, k: int) -> bytes:
    """GGUF Q4_1 blocks of W[n, k] as the q4_1 tile of W transposed: k rows x n lanes, lossless.

    A GGUF block: fp16 d, fp16 m, 16 bytes whose low nibbles are elements 0..15 and high 16..31.
    """
    blocks = _gguf_blocks(raw, n, k, 20, "GGUF Q4_1")
    Format.Q4_1.check_shape(k, n)
    scales = np.ascontiguousarray(blocks[..., :4]).view(np.uint16)  # [n, groups, 2]
    packed = blocks[..., 4:]
    codes = np.concatenate([packed & 15, packed >> 4], axis=-1)  # [n, groups, 32]
    d, m = scales[..., 0].T, scales[..., 1].T
    return _join_groups([d, m], _nibbles(codes.transpose(1, 2, 0)))


def repack_gguf_q8_0(raw: bytes | U8, n: int, k: int) -> bytes:
    """GGUF Q8_0 blocks (fp16 d, 32 int8) of W[n, k] as the q8_0 tile of W transposed, lossless."""
    blocks = _gguf_blocks(raw, n, k, 34, "GGUF Q8_0")
    d = np.ascontiguousarray(blocks[..., :2]).view(np.uint16)[..., 0].T
    return _join_groups([d], np.ascontiguousarray(blocks[..., 2:].transpose(1, 2, 0)))

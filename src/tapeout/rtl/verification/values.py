"""What random programs compute with: the bytes of HBM that their loads bring.

`data` lies at base `DATA`: a mixture of ordinary and special values, then regions that are chosen
for the arithmetic, of fp32 but for `UNITS`, each by its offset and bytes.
"""

from dataclasses import dataclass

import numpy as np

from tapeout.numerics.functions import Function

from .telling import TELLING

DATA, OUTPUT, TABLE = 0, 1, 2  # base registers
OUTPUT_BYTES, TABLE_BYTES = 8192, 1024
_ORDINARY_BYTES = 16384


@dataclass(frozen=True)
class Region:
    """Bytes [offset, offset + bytes) of the data."""

    offset: int
    bytes: int


FACTORS = Region(_ORDINARY_BYTES, 6144)  # three parts a, b, c: a * b + c leaves one bit, mostly
TERMS = Region(FACTORS.offset + FACTORS.bytes, 8192)  # any sum of some cancels, at any bit
ARGUMENTS = Region(TERMS.offset + TERMS.bytes, 32768)  # of functions
UNITS = Region(ARGUMENTS.offset + ARGUMENTS.bytes, 4096)  # bf16, next to 1 and -1
SPECIALS = Region(UNITS.offset + UNITS.bytes, 4096)  # those that arithmetic treats apart
_TELLING_STEP = 256  # arguments come again from the first up to a multiple of it: whole rows


def _telling() -> dict[Function, Region]:
    regions, end = {}, SPECIALS.offset + SPECIALS.bytes
    for function, arguments in TELLING.items():
        regions[function] = Region(end, -(-4 * len(arguments) // _TELLING_STEP) * _TELLING_STEP)
        end += regions[function].bytes
    return regions


TELLING_OF = _telling()  # of each function, those that tell its constants apart
DATA_BYTES = max(region.offset + region.bytes for region in TELLING_OF.values())


def data(rng: np.random.Generator) -> bytes:
    """`DATA_BYTES` bytes."""
    regions = ((_factors, FACTORS), (_terms, TERMS), (_arguments, ARGUMENTS))
    chosen = b"".join(make(rng, region.bytes // 4).astype("<f4").tobytes()
                      for make, region in regions)  # fmt: skip
    told = b"".join(
        np.resize(np.array(TELLING[function], "<u4"), region.bytes // 4).tobytes()
        for function, region in TELLING_OF.items()
    )
    return _ordinary(rng) + chosen + _units(rng) + _specials(rng) + told


def table(rng: np.random.Generator) -> bytes:
    """int32 from 0 to 11: indices of rows, counts, factors."""
    return rng.integers(0, 12, TABLE_BYTES // 4, np.int32).tobytes()


def _ordinary(rng: np.random.Generator) -> bytes:
    """bf16 of ordinary size, with a few zeros, subnormals, infinities and NaN among them.

    One in eight is 1 or -1, and one pair in eight is an fp32 value next to them: so sums cancel, at
    any bit, and products of fp32 do. In one of eight pieces of 128 bytes every second is special.
    """
    count = _ORDINARY_BYTES // 2
    values = (rng.standard_normal(count) * 2.0 ** rng.integers(-3, 4)).astype(np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    units = np.array([0x3F80, 0xBF80], np.uint16)
    ones = rng.random(bits.shape) < 1 / 8
    bits[ones] = rng.choice(units, ones.sum())
    pairs = bits.reshape(-1, 2)
    near = rng.random(len(pairs)) < 1 / 8
    pairs[near, 0] = rng.integers(0, 5, near.sum())
    pairs[near, 1] = rng.choice(units, near.sum())
    pieces = rng.random(len(bits) // 64) < 1 / 8
    odd = rng.random(bits.shape) < np.where(pieces, 0.5, 0.02).repeat(64)
    # Infinities of bf16, and of fp16, which scales are.
    special = np.array([0, 0x8000, 1, 0x8001, 0x7F80, 0xFF80, 0x7FC1, 0x7C00, 0xFC00], np.uint16)
    bits[odd] = rng.choice(special, odd.sum())
    return bits.tobytes()


def _factors(rng: np.random.Generator, count: int) -> np.ndarray:
    """a, b and c one after the other: a * b + c leaves one bit, at any place below; or a * b is
    among the largest or the least that fp32 has, and c little beside it."""
    each = count // 3
    i, j = rng.integers(1, 24, (2, each))
    is_edge = rng.random(each) < 1 / 4
    edge = 2.0 ** rng.choice([126, 127, -125, -126, -127], each)
    scale = np.where(is_edge, edge, 2.0 ** rng.integers(-3, 4, each))
    sign = rng.choice([-1.0, 1.0], each)
    a, b = sign * (1 + 2.0**-i) * scale, 1 + 2.0**-j
    rest = rng.choice([-1.0, 1.0], each) * scale * 2.0 ** -rng.integers(1, 26, each)
    product = sign * (1 + 2.0**-i + 2.0**-j) * scale  # but for its last bit
    return np.concatenate([a, b, np.where(is_edge, rest, -product)])


def _terms(rng: np.random.Generator, count: int) -> np.ndarray:
    """Values next to 1 or -1, at a distance of any power of two; some are twice or half of it, and
    of few the square is among the largest."""
    sign, distance = rng.choice([-1.0, 1.0], count), 2.0 ** -rng.integers(1, 25, count)
    scale = rng.choice([1.0, 1.0, 1.0, 0.5, 2.0], count)
    is_large = rng.random(count) < 1 / 32
    scale = np.where(is_large, rng.choice([1.4, 1.9, 1.0], count) * 2.0**63, scale)
    return sign * scale * (1 + rng.choice([-1.0, 1.0], count) * distance)


def _units(rng: np.random.Generator) -> bytes:
    """bf16 next to 1 or -1: sums of their products cancel."""
    count = UNITS.bytes // 2
    distance = rng.integers(0, 4, count) << rng.integers(0, 6, count)
    return (0x3F80 + distance + (rng.integers(0, 2, count) << 15)).astype("<u2").tobytes()


def _specials(rng: np.random.Generator) -> bytes:
    """Zeros, subnormals, the least and the largest, infinities and NaN of both signs, and ones."""
    magnitudes = [0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7F800000,
                  0x7F800001, 0x7FC00000]  # fmt: skip
    count = SPECIALS.bytes // 4
    signs = rng.integers(0, 2, count, np.uint32) << np.uint32(31)
    return (rng.choice(np.array(magnitudes, np.uint32), count) | signs).astype("<u4").tobytes()


def _arguments(rng: np.random.Generator, count: int) -> np.ndarray:
    """All magnitudes and mantissas, more where functions change, and where they are pieced."""
    sign = rng.choice([-1.0, 1.0], count)
    wide = sign * 2.0 ** rng.uniform(-14, 18, count)
    near = rng.uniform(-8, 8, count)
    bounds = np.array([1.0, 0.5, 1 / 16, np.log(2) / 16, np.pi / 2, np.pi / 4, np.sqrt(2)])
    cut = rng.choice(bounds, count) * rng.integers(-24, 25, count)
    cut = cut * (1 + rng.integers(-3, 4, count) * 2.0**-23)
    any_bits = rng.integers(0, 1 << 32, count, np.uint32).view(np.float32)
    kind = rng.random(count)
    with np.errstate(invalid="ignore"):
        return np.select(
            [kind < 0.4, kind < 0.75, kind < 0.95], [wide, near, cut], any_bits
        ).astype(np.float32)

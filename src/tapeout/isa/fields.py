"""Fields of instruction words: how a Python value becomes bits and back.

An instruction is 512 bits. Its class declares fields in order; each takes the next free bits, least
significant first. Composite fields (`Addr`, `Count`, `Operand`) are small records of their own.
"""

import dataclasses
import math
import operator
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar

WORD_BITS = 512
WORD_BYTES = WORD_BITS // 8


class EncodingError(ValueError):
    """A value that does not fit its field, or a word that is not an instruction."""


@dataclass(frozen=True)
class Bits:
    """A plain field: `width` bits, signed or not, perhaps a member of `enum` or a register."""

    width: int
    signed: bool = False
    enum: type[IntEnum] | None = None
    register: bool = False

    def encode(self, name: str, value: Any) -> int:
        try:
            value = operator.index(value)
        except TypeError:
            raise EncodingError(f"field {name} takes an integer, not {value!r}") from None
        low = -(1 << (self.width - 1)) if self.signed else 0
        high = (1 << (self.width - (1 if self.signed else 0))) - 1
        if not low <= value <= high:
            raise EncodingError(f"field {name} = {value} does not fit {low}..{high}")
        self._member(name, value)
        return value & ((1 << self.width) - 1)

    def decode(self, name: str, raw: int) -> Any:
        if self.signed and raw >> (self.width - 1):
            raw -= 1 << self.width
        return self._member(name, raw)

    def _member(self, name: str, value: int) -> int:
        if self.enum is None:
            return value
        try:
            return self.enum(value)
        except ValueError:
            raise EncodingError(
                f"field {name} = {value} is not one of {self.enum.__name__}: "
                f"{', '.join(m.name.lower() for m in self.enum)}"
            ) from None


REGISTER = Bits(5, register=True)
COUNT_MAX = 65535  # most rows of one instruction, with a register added in too


@dataclass(frozen=True)
class Addr:
    """Row address `imm + r[reg]`; r0 is zero."""

    imm: int = 0
    reg: int = 0

    LAYOUT: ClassVar[dict[str, Bits]] = {"imm": Bits(20), "reg": REGISTER}

    def __str__(self) -> str:
        return f"{self.imm}" if not self.reg else f"{self.imm}+r{self.reg}"


@dataclass(frozen=True)
class Count:
    """A count `imm + r[reg]`; r0 is zero."""

    imm: int = 0
    reg: int = 0

    LAYOUT: ClassVar[dict[str, Bits]] = {"imm": Bits(16), "reg": REGISTER}

    __str__ = Addr.__str__


@dataclass(frozen=True)
class HbmAddr:
    """Byte address `bases[base] + offset + r[reg]`."""

    base: int = 0
    offset: int = 0
    reg: int = 0

    LAYOUT: ClassVar[dict[str, Bits]] = {"base": Bits(4), "offset": Bits(40), "reg": REGISTER}

    def __str__(self) -> str:
        return f"b{self.base}[{self.offset}{f'+r{self.reg}' if self.reg else ''}]"


class Kind(IntEnum):
    """Where a vpu operand comes from or a result goes."""

    NONE = 0
    SPM_BF16 = 1  # row r: one spm row
    SPM_FP32 = 2  # rows r (high halves) and r + 1 (low halves); r even, strides even
    VMEM = 3
    ACC = 4
    ROW_SCALAR = 5  # packed vmem row: moving row m takes lane m % lanes of row addr + m // lanes
    IMMEDIATE = 6  # an fp32 constant


@dataclass(frozen=True)
class Operand:
    """A vpu operand: row (t, m) is at `imm + r[reg] + t * tile_stride + m * row_stride`.

    For `Kind.IMMEDIATE`, `value` is the constant and the address fields are unused.
    `row_stride` 0 broadcasts one row (a lane vector) over m.
    """

    kind: Kind = Kind.NONE
    imm: int = 0
    reg: int = 0
    tile_stride: int = 0
    row_stride: int = 0
    value: float = 0.0

    LAYOUT: ClassVar[dict[str, Bits]] = {
        "kind": Bits(4, enum=Kind),
        "imm": Bits(20),
        "reg": REGISTER,
        "tile_stride": Bits(14),
        "row_stride": Bits(10),
    }
    VALUE_SHIFT = 4  # the constant's 32 bits overlay the bits after `kind`

    def __post_init__(self) -> None:
        if math.isnan(self.value):  # one object, so that equal operands compare equal
            object.__setattr__(self, "value", math.nan)

    def __str__(self) -> str:
        if self.kind == Kind.NONE:
            return "-"
        if self.kind == Kind.IMMEDIATE:
            return f"#{self.value!r}"
        where = f"{self.imm}" if not self.reg else f"{self.imm}+r{self.reg}"
        return f"{self.kind.name.lower()}[{where}:{self.tile_stride}:{self.row_stride}]"


COMPOSITES = (Addr, Count, HbmAddr, Operand)


def f32_bits(value: float) -> int:
    """Bits of an fp32 value; the value must be exact in fp32. NaN is the canonical NaN."""
    if math.isnan(value):
        return 0x7FC00000
    try:
        packed = struct.pack("<f", value)
    except OverflowError:
        raise EncodingError(f"immediate {value!r} is out of fp32 range") from None
    back = struct.unpack("<f", packed)[0]
    if back != value:
        raise EncodingError(f"immediate {value!r} is not exact in fp32: round it first")
    return struct.unpack("<I", packed)[0]


def width_of(spec: Any) -> int:
    """Bits a field takes."""
    if isinstance(spec, Bits):
        return spec.width
    return sum(bits.width for bits in spec.LAYOUT.values())


def encode_field(name: str, spec: Any, value: Any) -> int:
    if isinstance(spec, Bits):
        return spec.encode(name, value)
    if not isinstance(value, spec):
        raise EncodingError(f"field {name} takes {spec.__name__}, not {type(value).__name__}")
    if spec is Operand and value.kind == Kind.IMMEDIATE:
        if (value.imm, value.reg, value.tile_stride, value.row_stride) != (0, 0, 0, 0):
            raise EncodingError(f"field {name}: an immediate has no address")
        return int(value.kind) | f32_bits(value.value) << Operand.VALUE_SHIFT
    if spec is Operand and value.kind == Kind.NONE and value != Operand():
        raise EncodingError(f"field {name}: an operand of kind none has no address and no value")
    if spec is Operand and value.value != 0:
        raise EncodingError(
            f"field {name}: an operand of kind {value.kind.name.lower()} has no value, only "
            f"immediates have"
        )
    raw, shift = 0, 0
    for part, bits in spec.LAYOUT.items():
        raw |= bits.encode(f"{name}.{part}", getattr(value, part)) << shift
        shift += bits.width
    return raw


def decode_field(name: str, spec: Any, raw: int) -> Any:
    if isinstance(spec, Bits):
        return spec.decode(name, raw)
    if spec is Operand and raw & 15 == Kind.IMMEDIATE:
        if raw >> (Operand.VALUE_SHIFT + 32):
            raise EncodingError(f"field {name}: reserved bits of an immediate are set")
        bits = raw >> Operand.VALUE_SHIFT
        return Operand(kind=Kind.IMMEDIATE, value=struct.unpack("<f", struct.pack("<I", bits))[0])
    parts, shift = {}, 0
    for part, bits in spec.LAYOUT.items():
        parts[part] = bits.decode(f"{name}.{part}", (raw >> shift) & ((1 << bits.width) - 1))
        shift += bits.width
    value = spec(**parts)
    if spec is Operand and value.kind == Kind.NONE and value != Operand():
        raise EncodingError(f"field {name}: reserved bits of an operand of kind none are set")
    return value


def declare(spec: Any, default: Any = dataclasses.MISSING) -> Any:
    """A dataclass field of an instruction, carrying its bit layout."""
    if default is dataclasses.MISSING and not isinstance(spec, Bits):
        return dataclasses.field(metadata={"spec": spec})
    return dataclasses.field(default=default, metadata={"spec": spec})

"""The chip description: frozen dataclasses with units in the field names.

A `Chip` holds every hardware number once; the ISA's limits, the simulator's timing, the RTL's
parameters and the cost models all derive from it. Each class checks its own values when it is made
and raises `ChipError` with the rule, the value and the way out.
"""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, get_origin

# What HBM may hold: the names and numbers of the instruction set's formats.
FORMATS = {"bf16": 0, "fp32": 1, "fp8_e4m3": 3, "fp8_e5m2": 4, "int8": 5, "q8_0": 6, "q4_1": 7,
           "mxfp8_e4m3": 8, "mxfp8_e5m2": 9, "mxfp4": 10}  # fmt: skip
WIDE_FORMATS = {"bf16", "fp32"}  # those of the memories, which every chip has


class ChipError(ValueError):
    """A chip that cannot be built: the message names the rule, the value and the way out."""


def _require(condition: bool, rule: str) -> None:
    if not condition:
        raise ChipError(rule)


def _is_power_of_two(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _typed(key: str, value: Any, wanted: Any) -> Any:
    """`value` if it is of the field's type; an integer may stand for a float, a bool may not."""
    if get_origin(wanted) is tuple:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) for n in names):
            raise ChipError(f"{key} must be a list of names, not {value!r}")
        return tuple(n.strip() for n in names)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool):
        kind = {int: "an integer", float: "a number", str: "a text"}.get(wanted, wanted.__name__)
        raise ChipError(f"{key} must be {kind}, not {value!r}")
    if isinstance(value, float):
        _require(math.isfinite(value), f"{key} must be finite, not {value}")
    return value


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """Checks types; every integer or float is positive unless its metadata says `zero_ok`."""

    KEY: ClassVar[str] = ""  # the part's dotted name in a chip file
    DERIVED: ClassVar[tuple[str, ...]] = ()  # properties that closed forms of cycles use

    def __post_init__(self) -> None:
        for f in fields(self):
            key = f"{self.KEY}.{f.name}".lstrip(".")
            value = _typed(key, getattr(self, f.name), f.type)
            object.__setattr__(self, f.name, value)
            if not isinstance(value, (int, float)):
                continue
            low = 0 if f.metadata.get("zero_ok") else 1e-12
            _require(
                value >= low,
                f"{key} must be {'zero or more' if low == 0 else 'positive'}, not {value}",
            )
        self.check()

    def check(self) -> None:
        """Rules over several fields; overridden where there are any."""


def _zero_ok(default: int = 0) -> Any:
    return field(default=default, metadata={"zero_ok": True})


@dataclass(frozen=True, kw_only=True)
class HbmTiming(_Checked):
    """DRAM timing of one pseudo-channel, in nanoseconds (JEDEC names, without the leading t)."""

    KEY: ClassVar[str] = "hbm.timing"

    rcd_ns: float  # activate to read or write
    rp_ns: float  # precharge to activate
    ras_ns: float  # activate to precharge
    cl_ns: float  # read command to first data
    cwl_ns: float  # write command to first data
    wr_ns: float  # last write data to precharge
    rtp_ns: float  # read to precharge
    ccd_s_ns: float  # column to column, other bank group
    ccd_l_ns: float  # column to column, same bank group
    rrd_s_ns: float  # activate to activate, other bank group
    rrd_l_ns: float  # activate to activate, same bank group
    faw_ns: float  # window of four activates
    wtr_s_ns: float  # last write data to read, other bank group
    wtr_l_ns: float  # last write data to read, same bank group
    rtw_ns: float  # read command to write command
    refi_ns: float  # mean interval at which every bank needs one refresh
    rfc_pb_ns: float  # one per-bank refresh
    rrefd_ns: float  # per-bank refresh to per-bank refresh, other bank


@dataclass(frozen=True, kw_only=True)
class Hbm(_Checked):
    """High-bandwidth memory: stacks of pseudo-channels, each with bank groups of banks of rows."""

    KEY: ClassVar[str] = "hbm"

    stacks: int
    pseudo_channels_per_stack: int
    pin_rate_gbps: float  # Gbit/s of one data pin
    pins_per_pseudo_channel: int
    burst_bytes: int  # what one column command moves: the smallest access
    bank_groups: int
    banks_per_group: int
    row_bytes: int  # page of one bank in one pseudo-channel
    capacity_gib_per_stack: float
    interleave_bytes: int  # consecutive bytes kept in one pseudo-channel: one run
    bank_group_interleave: int  # bank groups over which the bursts of one run alternate
    controller_ns: float  # fixed controller and PHY time added to each read or write
    timing: HbmTiming

    def check(self) -> None:
        for name in ("burst_bytes", "row_bytes", "interleave_bytes", "bank_groups",
                     "banks_per_group", "bank_group_interleave"):  # fmt: skip
            value = getattr(self, name)
            _require(
                _is_power_of_two(value),
                f"hbm.{name} must be a power of two (addresses are cut by bits), not {value}",
            )
        _require(
            self.interleave_bytes >= 64,
            f"hbm.interleave_bytes = {self.interleave_bytes} must be 64 or more: a run holds "
            f"whole instruction words",
        )
        _require(
            self.interleave_bytes >= self.burst_bytes * self.bank_group_interleave,
            f"hbm.interleave_bytes = {self.interleave_bytes} must hold a burst of "
            f"{self.burst_bytes} bytes for each of the {self.bank_group_interleave} bank groups "
            f"of a run",
        )
        _require(
            self.interleave_bytes <= self.row_bytes * self.bank_group_interleave,
            f"hbm.interleave_bytes = {self.interleave_bytes} must not exceed hbm.row_bytes x "
            f"hbm.bank_group_interleave = {self.row_bytes * self.bank_group_interleave}: a run "
            f"opens one row in each of its bank groups",
        )
        _require(
            self.bank_group_interleave <= self.bank_groups,
            f"hbm.bank_group_interleave = {self.bank_group_interleave} cannot exceed "
            f"hbm.bank_groups = {self.bank_groups}",
        )

    @property
    def pseudo_channels(self) -> int:
        return self.stacks * self.pseudo_channels_per_stack

    @property
    def peak_bytes_per_s(self) -> float:
        """Pin rate times pins, over all stacks."""
        return self.pseudo_channels * self.pins_per_pseudo_channel * self.pin_rate_gbps * 1e9 / 8

    @property
    def capacity_bytes(self) -> int:
        return int(self.stacks * self.capacity_gib_per_stack * 2**30)


@dataclass(frozen=True, kw_only=True)
class Spm(_Checked):
    """Scratchpad: stripes of interleaved single-ported banks of rows, `lanes` x 2 bytes a row.

    Row address r lies in stripe r // rows_per_stripe, bank r % banks_per_stripe of that stripe.
    """

    KEY: ClassVar[str] = "spm"

    stripes: int
    banks_per_stripe: int
    rows_per_bank: int

    def check(self) -> None:
        _require(
            _is_power_of_two(self.banks_per_stripe) and self.banks_per_stripe >= 2,
            f"spm.banks_per_stripe must be a power of two, two or more (the halves of an fp32 row "
            f"lie in neighbouring banks), not {self.banks_per_stripe}",
        )

    @property
    def rows_per_stripe(self) -> int:
        return self.banks_per_stripe * self.rows_per_bank

    @property
    def rows(self) -> int:
        return self.stripes * self.rows_per_stripe

    @property
    def banks(self) -> int:
        return self.stripes * self.banks_per_stripe


@dataclass(frozen=True, kw_only=True)
class Vmem(_Checked):
    """Small multi-ported vector memory: rows of `lanes` fp32."""

    KEY: ClassVar[str] = "vmem"

    rows: int


@dataclass(frozen=True, kw_only=True)
class Acc(_Checked):
    """Accumulators: stripes of rows of `lanes` fp32."""

    KEY: ClassVar[str] = "acc"

    stripes: int
    rows_per_stripe: int

    @property
    def rows(self) -> int:
        return self.stripes * self.rows_per_stripe


@dataclass(frozen=True, kw_only=True)
class Mxu(_Checked):
    """Weight-stationary systolic array, rows (contraction) x cols (= lanes)."""

    KEY: ClassVar[str] = "mxu"

    rows: int
    cols: int
    adder_stages: int  # cycles an element's add chain takes per array row
    column_group: int  # columns that share one skew stage
    load_rows_per_cycle: int  # stationary rows taken in a cycle, straight
    load_rows_per_cycle_transposed: int  # source rows taken in a cycle, transposed
    accumulate_cycles: int  # read, add and write back of one acc row

    @property
    def latency_cycles(self) -> int:
        """From a moving row's entry to its result at the accumulators."""
        return self.adder_stages * self.rows + -(-self.cols // self.column_group)


@dataclass(frozen=True, kw_only=True)
class Vpu(_Checked):
    """Vector unit: lanes x sublanes of fp32.

    Each lane is a pipeline: combine, the slots of the functions, combine with d, cast.
    """

    KEY: ClassVar[str] = "vpu"
    DERIVED: ClassVar[tuple[str, ...]] = ("depth_cycles",)

    sublanes: int
    adder_stages: int  # cycles of an fp32 add; a fused multiply-add takes one more
    function_steps: int  # slots of the function pipeline, each with a fused multiply-add

    def check(self) -> None:
        _require(
            _is_power_of_two(self.sublanes),
            f"vpu.sublanes must be a power of two (rows are dealt out by bits), not "
            f"{self.sublanes}",
        )
        _require(
            self.adder_stages <= 3,
            f"vpu.adder_stages must lie in 1..3, not {self.adder_stages}",
        )

    @property
    def slot_cycles(self) -> int:
        """A slot of the function pipeline: forming operands, the product, the add."""
        return 2 + self.adder_stages

    @property
    def depth_cycles(self) -> int:
        """From a row's address to its write, in one pass.

        Address, read, select and permute take 4 cycles, the two combinations 1 + adder_stages each,
        forming the function's result and the cast one each.
        """
        combine = 1 + self.adder_stages
        return 4 + 2 * combine + self.function_steps * self.slot_cycles + 2


@dataclass(frozen=True, kw_only=True)
class Dma(_Checked):
    """DMA queues, alike."""

    KEY: ClassVar[str] = "dma"
    DERIVED: ClassVar[tuple[str, ...]] = ("format_mask",)

    queues: int
    credits: int  # runs a queue may have in flight
    bytes_per_cycle: int  # width of a queue's data path
    dequant_elements_per_cycle: int
    request_cycles: int  # queue to memory controller, from the read of what a store sends on
    response_cycles: int  # memory controller to queue and on into the destination
    formats: tuple[str, ...]  # of elements in HBM that transfers take

    @property
    def dequantises(self) -> bool:
        """Whether one of the formats is narrower than bf16, and becomes it in loads."""
        return set(self.formats) > WIDE_FORMATS

    @property
    def format_mask(self) -> int:
        """A bit for each format that the chip has, at its number."""
        return sum(1 << FORMATS[name] for name in self.formats)

    def check(self) -> None:
        unknown = [name for name in self.formats if name not in FORMATS]
        _require(
            not unknown,
            f"dma.formats has {', '.join(map(repr, unknown))}: known are {', '.join(FORMATS)}",
        )
        _require(
            len(set(self.formats)) == len(self.formats),
            f"dma.formats names a format twice: {', '.join(self.formats)}",
        )
        _require(
            set(self.formats) >= WIDE_FORMATS,
            f"dma.formats must have bf16 and fp32, which the memories hold, not only "
            f"{', '.join(self.formats) or 'nothing'}",
        )
        for name in ("request_cycles", "response_cycles"):
            value = getattr(self, name)
            _require(
                value >= 8,
                f"dma.{name} must be 8 or more (the engine's own stages lie in it), not {value}",
            )


@dataclass(frozen=True, kw_only=True)
class Seq(_Checked):
    """Sequencer of each queue."""

    KEY: ClassVar[str] = "seq"

    registers: int  # r0 reads as zero
    loop_depth: int
    fetch_line_instructions: int
    fetch_lines: int
    retire_entries: int  # instructions that post tokens, and transfers, that have not retired

    def check(self) -> None:
        _require(
            2 <= self.registers <= 32,
            f"seq.registers must lie in 2..32 (5-bit register fields), not {self.registers}",
        )
        for name in ("fetch_line_instructions", "fetch_lines"):
            value = getattr(self, name)
            _require(
                _is_power_of_two(value),
                f"seq.{name} must be a power of two (addresses are cut by bits), not {value}",
            )
        _require(
            self.fetch_lines >= 2,
            f"seq.fetch_lines must be 2 or more (one runs while one loads), not {self.fetch_lines}",
        )


@dataclass(frozen=True, kw_only=True)
class Tokens(_Checked):
    """Token channels between queues."""

    KEY: ClassVar[str] = "tokens"

    channels_per_pair: int
    capacity: int
    latency_cycles: int


@dataclass(frozen=True, kw_only=True)
class Links(_Checked):
    """Chip-to-chip links."""

    KEY: ClassVar[str] = "links"

    count: int = _zero_ok()
    gb_per_s: float = _zero_ok()


@dataclass(frozen=True, kw_only=True)
class Chip(_Checked):
    """One chip: cores that share HBM."""

    DERIVED: ClassVar[tuple[str, ...]] = ("vpu_reduce_cycles",)

    name: str
    description: str
    process: str
    clock_ghz: float
    cores: int
    lanes: int
    hbm: Hbm
    spm: Spm
    vmem: Vmem
    acc: Acc
    mxu: Mxu
    vpu: Vpu
    dma: Dma
    seq: Seq
    tokens: Tokens
    links: Links = Links()

    def check(self) -> None:
        _require(
            _is_power_of_two(self.lanes) and 4 <= self.lanes <= 256,
            f"lanes must be a power of two in 4..256 (reductions fold halves), not {self.lanes}",
        )
        _require(
            self.mxu.cols == self.lanes,
            f"mxu.cols = {self.mxu.cols} must equal lanes = {self.lanes}: "
            f"a column's result is a lane of acc",
        )
        _require(
            self.mxu.rows <= self.lanes,
            f"mxu.rows = {self.mxu.rows} must not exceed lanes = {self.lanes}: a moving row "
            f"feeds one lane to each array row; for a wider array set lanes and mxu.cols too",
        )
        _require(
            self.mxu.load_rows_per_cycle <= self.spm.banks_per_stripe,
            f"mxu.load_rows_per_cycle = {self.mxu.load_rows_per_cycle} must not exceed "
            f"spm.banks_per_stripe = {self.spm.banks_per_stripe}: each row comes from its own bank",
        )
        _require(
            self.mxu.load_rows_per_cycle_transposed <= self.spm.banks_per_stripe,
            f"mxu.load_rows_per_cycle_transposed = {self.mxu.load_rows_per_cycle_transposed} "
            f"must not exceed spm.banks_per_stripe = {self.spm.banks_per_stripe}",
        )
        for name, most in (
            ("load_rows_per_cycle", "rows"),
            ("load_rows_per_cycle_transposed", "cols"),
        ):
            value, limit = getattr(self.mxu, name), getattr(self.mxu, most)
            _require(
                value <= limit,
                f"mxu.{name} = {value} must not exceed mxu.{most} = {limit}: there are no more to "
                f"load",
            )
            _require(
                _is_power_of_two(value),
                f"mxu.{name} must be a power of two (addresses are cut by bits), not {value}",
            )
        _require(
            self.vpu.sublanes <= self.lanes,
            f"vpu.sublanes = {self.vpu.sublanes} must not exceed lanes = {self.lanes}: the rows of "
            f"a cycle have their scalars in one packed row",
        )
        _require(
            self.dma.bytes_per_cycle >= 4 * self.lanes,
            f"dma.bytes_per_cycle = {self.dma.bytes_per_cycle} must hold an fp32 row of "
            f"4 * lanes = {4 * self.lanes} bytes",
        )
        _require(
            self.dma.dequant_elements_per_cycle >= self.lanes,
            f"dma.dequant_elements_per_cycle = {self.dma.dequant_elements_per_cycle} must hold a "
            f"row of lanes = {self.lanes} elements",
        )
        channels = (self.queue_count - 1) * self.tokens.channels_per_pair
        _require(
            channels <= 24,
            f"a queue would see {channels} token channels each way, but instruction headers have "
            f"24 wait and 24 post bits: lower dma.queues or tokens.channels_per_pair",
        )

    @property
    def vpu_reduce_cycles(self) -> int:
        """From the write of a row's value to that of its reduction.

        A square, log2(lanes) levels of adds and the add to what earlier tiles gave; or log2(lanes)
        and log2(sublanes) levels of comparisons, a cycle each.
        """
        add, levels = self.vpu.adder_stages, self.lanes.bit_length() - 1
        across = self.vpu.sublanes.bit_length() - 1
        return max(1 + add + add * levels, 2 + levels + across - add) + add - 1

    @property
    def queue_count(self) -> int:
        """mxu, vpu and the DMA queues."""
        return 2 + self.dma.queues

    @property
    def queue_names(self) -> tuple[str, ...]:
        return ("mxu", "vpu", *(f"dma{i}" for i in range(self.dma.queues)))

    @property
    def spm_row_bytes(self) -> int:
        return 2 * self.lanes

    @property
    def macs_per_cycle(self) -> int:
        """Of one core."""
        return self.mxu.rows * self.mxu.cols

    @property
    def peak_flops(self) -> float:
        """Dense bf16, multiply and add counted apart, all cores."""
        return 2.0 * self.macs_per_cycle * self.cores * self.clock_ghz * 1e9

    @property
    def hbm_bytes_per_cycle(self) -> float:
        """At pin rate."""
        return self.hbm.peak_bytes_per_s / (self.clock_ghz * 1e9)

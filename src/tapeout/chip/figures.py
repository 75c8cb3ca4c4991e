"""What follows from a chip's numbers: peaks, capacities, bandwidths, limits."""

from collections.abc import Iterator
from dataclasses import dataclass

from tapeout.chip.spec import Chip


@dataclass(frozen=True)
class Figure:
    """One derived number: `key` names it with its unit, `formula` says where it comes from."""

    key: str
    label: str
    value: float
    text: str
    formula: str


def figures(chip: Chip) -> dict[str, tuple[Figure, ...]]:
    """The derived figures of a chip by group; of the whole chip unless the group says per core."""
    return {
        "peaks": tuple(_peaks(chip)),
        "hbm": tuple(_hbm(chip)),
        "memories, per core": tuple(_memories(chip)),
        "data paths, per core": tuple(_data_paths(chip)),
        "limits": tuple(_limits(chip)),
    }


def _peaks(chip: Chip) -> Iterator[Figure]:
    yield Figure("peak_bf16_flops", "dense bf16", chip.peak_flops, _si(chip.peak_flops, "FLOP/s"),
                 "2 x mxu.rows x mxu.cols x cores x clock")  # fmt: skip
    vpu_flops = 2.0 * chip.lanes * chip.vpu.sublanes * chip.cores * chip.clock_ghz * 1e9
    yield Figure("peak_vpu_fp32_flops", "vector fp32", vpu_flops, _si(vpu_flops, "FLOP/s"),
                 "2 x lanes x vpu.sublanes x cores x clock")  # fmt: skip
    latency = chip.mxu.latency_cycles
    yield Figure("mxu_latency_cycles", "array latency", latency, f"{latency} cycles",
                 "adder_stages x rows + cols / column_group")  # fmt: skip
    if chip.links.count:
        links = chip.links
        yield _rate("links_gb_per_s", "links", links.count * links.gb_per_s,
                    f"{links.count} x {links.gb_per_s:g} GB/s each way")  # fmt: skip


def _hbm(chip: Chip) -> Iterator[Figure]:
    hbm = chip.hbm
    yield _rate("hbm_gb_per_s", "bandwidth", hbm.peak_bytes_per_s / 1e9,
                f"{hbm.pseudo_channels} pseudo-channels x {hbm.pins_per_pseudo_channel} pins "
                f"x {hbm.pin_rate_gbps:g} Gbit/s")  # fmt: skip
    per_core = chip.hbm_bytes_per_cycle / chip.cores
    yield Figure("hbm_bytes_per_cycle_per_core", "per core", per_core, f"{per_core:.1f} B/cycle",
                 "bandwidth / clock / cores")  # fmt: skip
    yield _size("hbm_capacity_bytes", "capacity", hbm.capacity_bytes,
                f"{hbm.stacks} x {hbm.capacity_gib_per_stack:g} GiB")  # fmt: skip
    balance = hbm.peak_bytes_per_s / chip.peak_flops
    yield Figure("hbm_bytes_per_flop", "balance", balance, f"{balance:.4g} B/FLOP",
                 f"{1 / balance:.0f} FLOP a byte keep both busy")  # fmt: skip


def _memories(chip: Chip) -> Iterator[Figure]:
    hz = chip.clock_ghz * 1e9
    narrow, wide = chip.spm_row_bytes, 4 * chip.lanes
    spm, vmem, acc, sublanes = chip.spm, chip.vmem, chip.acc, chip.vpu.sublanes
    vector_gbs = sublanes * wide * hz / 1e9
    yield _size("spm_bytes_per_core", "spm", spm.rows * narrow,
                f"{spm.stripes} stripes x {spm.banks_per_stripe} banks x {spm.rows_per_bank} rows "
                f"x {narrow} B")  # fmt: skip
    yield _rate("spm_gb_per_s_per_core", "spm bandwidth", spm.banks * narrow * hz / 1e9,
                f"{spm.banks} banks, a row each a cycle")  # fmt: skip
    yield _size("vmem_bytes_per_core", "vmem", vmem.rows * wide, f"{vmem.rows} rows x {wide} B")
    yield _rate("vmem_gb_per_s_per_core", "vmem bandwidth", vector_gbs,
                f"{sublanes} rows a cycle, each operand")  # fmt: skip
    yield _size("acc_bytes_per_core", "acc", acc.rows * wide,
                f"{acc.stripes} stripes x {acc.rows_per_stripe} rows x {wide} B")  # fmt: skip
    yield _rate("acc_gb_per_s_per_core", "acc bandwidth", vector_gbs,
                f"{sublanes} rows a cycle, reading and writing each")  # fmt: skip


def _data_paths(chip: Chip) -> Iterator[Figure]:
    row_gbs = chip.spm_row_bytes * chip.clock_ghz
    load, load_t = chip.mxu.load_rows_per_cycle, chip.mxu.load_rows_per_cycle_transposed
    dma = chip.dma
    yield _rate("moving_gb_per_s_per_core", "moving rows", row_gbs, "one row a cycle")
    yield _rate("stationary_gb_per_s_per_core", "stationary load", load * row_gbs,
                f"{load} rows a cycle: a tile in {-(-chip.mxu.rows // load)} cycles")  # fmt: skip
    yield _rate("stationary_transposed_gb_per_s_per_core", "transposed load", load_t * row_gbs,
                f"{load_t} source rows a cycle")  # fmt: skip
    yield _rate("dma_gb_per_s_per_core", "dma", dma.queues * dma.bytes_per_cycle * chip.clock_ghz,
                f"{dma.queues} queues x {dma.bytes_per_cycle} B a cycle")  # fmt: skip
    elements = dma.queues * dma.dequant_elements_per_cycle
    yield Figure("dma_dequant_elements_per_cycle_per_core", "dma dequantise", elements,
                 f"{elements} /cycle", "elements, all queues")  # fmt: skip


def _limits(chip: Chip) -> Iterator[Figure]:
    seq, tokens = chip.seq, chip.tokens
    channels = (chip.queue_count - 1) * tokens.channels_per_pair
    cached = seq.fetch_lines * seq.fetch_line_instructions
    yield _count("queues_per_core", "queues", chip.queue_count, ", ".join(chip.queue_names))
    yield _count("token_channels_per_queue", "token channels", channels,
                 f"each way a queue, {tokens.capacity} tokens deep")  # fmt: skip
    yield _count("registers_per_queue", "registers", seq.registers, "48-bit signed, r0 is zero")
    yield _count("loop_depth", "loop depth", seq.loop_depth, "hardware loops nested in a queue")
    yield _count("cached_instructions_per_queue", "fetch cache", cached,
                 f"instructions, {seq.fetch_lines} x {seq.fetch_line_instructions}")  # fmt: skip


def _rate(key: str, label: str, gb_per_s: float, formula: str) -> Figure:
    return Figure(key, label, gb_per_s, _si(gb_per_s * 1e9, "B/s"), formula)


def _size(key: str, label: str, size_bytes: int, formula: str) -> Figure:
    for scale, prefix in ((2**30, "Gi"), (2**20, "Mi"), (2**10, "Ki")):
        if size_bytes >= scale:
            return Figure(key, label, size_bytes, f"{size_bytes / scale:.4g} {prefix}B", formula)
    return Figure(key, label, size_bytes, f"{size_bytes} B", formula)


def _count(key: str, label: str, count: int, formula: str) -> Figure:
    return Figure(key, label, count, str(count), formula)


def _si(value: float, unit: str) -> str:
    for scale, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= scale:
            return f"{value / scale:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"

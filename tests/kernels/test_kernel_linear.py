"""Products with weights that stream through the ring, in every storage format, and what follows."""

import numpy as np
import pytest
from kernel_launch import Trial, assert_within, bf16, floats, halves, normal, wide

from tapeout.chip import Chip, load
from tapeout.isa import Kind
from tapeout.isa.dma import HbmFormat
from tapeout.kernels import linear
from tapeout.lang import ChipTooSmall, Matrix, WeightRing, ops
from tapeout.numerics.formats import decode_rows, pack_rows

CHIPS = {name: load(name) for name in ("tiny", "solo")}
PLAIN = (HbmFormat.BF16, HbmFormat.FP8_E4M3, HbmFormat.FP8_E5M2, HbmFormat.INT8)
BLOCKS = (
    HbmFormat.Q8_0, HbmFormat.Q4_1, HbmFormat.MXFP8_E4M3, HbmFormat.MXFP8_E5M2, HbmFormat.MXFP4,
)  # fmt: skip


def pack(w: np.ndarray, fmt: HbmFormat, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """(bytes column tile by column tile, the float64 values that a load gives)."""
    tiles = [w[:, at : at + lanes] for at in range(0, w.shape[1], lanes)]
    raw = [pack_rows(fmt.format, tile) for tile in tiles]
    values = [wide(decode_rows(fmt.format, r, *t.shape)) for r, t in zip(raw, tiles, strict=True)]
    return np.frombuffer(b"".join(raw), np.uint8), np.concatenate(values, axis=1)


def rounding(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """Bound of fp32 sums: each of K products and of the passes is rounded once, by 2^-24 at most
    of a partial sum that never exceeds sum |x w|."""
    return (x.shape[-1] + 8) * 2**-24 * (np.abs(x) @ np.abs(w))


class Products:
    """Matrices of one trial in one ring."""

    def __init__(self, chip: Chip) -> None:
        self.trial = Trial(chip)
        self.k = self.trial.k
        self.ring = WeightRing(self.k)

    def matrix(self, name: str, w: np.ndarray, fmt: HbmFormat) -> tuple[Matrix, np.ndarray]:
        raw, values = pack(w, fmt, self.k.chip.lanes)
        k, n = w.shape
        return Matrix(name, k, n, fmt, self.trial.give(name, raw)), values

    def product(self, x: np.ndarray, w: np.ndarray, fmt: HbmFormat, **options):
        """(fp32 result on both targets, its float64 reference, the bound)."""
        (m, _), n = x.shape, w.shape[1]
        xt = self.trial.load("x", bf16(x))
        matrix, values = self.matrix("w", w, fmt)
        out = self.k.tensor(Kind.SPM_FP32, m, n)

        def epilogue(acc, first):
            ops.vector(self.k, acc, dst=out.tile(first, acc.tiles), rows=m)

        linear.linear(self.k, self.ring, xt, matrix, epilogue, rows=m, **options)
        self.trial.store("out", out)
        x = wide(bf16(x))
        return floats(self.trial.run()["out"], m, n), x @ values, rounding(x, values)


@pytest.mark.parametrize("fmt", PLAIN, ids=lambda f: f.name)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 8, 8), (5, 37, 21), (12, 70, 45)])
def test_plain_formats(fmt: HbmFormat, m: int, k: int, n: int):
    scale = 20 if fmt == HbmFormat.INT8 else 1
    got, expected, bound = Products(CHIPS["tiny"]).product(
        normal(1, m, k), normal(2, k, n) * scale, fmt
    )
    assert_within(got, expected, bound)


@pytest.mark.parametrize("fmt", BLOCKS, ids=lambda f: f.name)
@pytest.mark.parametrize(("m", "k", "n"), [(1, 32, 8), (7, 96, 22), (3, 224, 30)])
def test_block_formats(fmt: HbmFormat, m: int, k: int, n: int):
    got, expected, bound = Products(CHIPS["tiny"]).product(normal(3, m, k), normal(4, k, n), fmt)
    assert_within(got, expected, bound)


@pytest.mark.parametrize("fmt", [HbmFormat.BF16, HbmFormat.Q4_1], ids=lambda f: f.name)
def test_solo(fmt: HbmFormat):
    got, expected, bound = Products(CHIPS["solo"]).product(
        normal(5, 9, 288), normal(6, 288, 300), fmt
    )
    assert_within(got, expected, bound)


@pytest.mark.parametrize("group", [1, 2, 5])
def test_groups_of_columns_reuse_the_ring(group: int):
    """More column groups than slots: each slot is written again after its readers."""
    got, expected, bound = Products(CHIPS["tiny"]).product(
        normal(7, 6, 100), normal(8, 100, 130), HbmFormat.BF16, group=group
    )
    assert_within(got, expected, bound)


def test_a_column_longer_than_a_stripe_is_refused():
    rows = CHIPS["tiny"].spm.rows_per_stripe + 1
    with pytest.raises(ChipTooSmall, match=f"w has {rows} rows, a stripe of spm 256: raise spm"):
        Products(CHIPS["tiny"]).product(
            np.ones((1, rows), np.float32), np.ones((rows, 8), np.float32), HbmFormat.BF16
        )


@pytest.mark.parametrize(("m", "k", "n"), [(1, 16, 24), (6, 37, 43), (10, 64, 90)])
def test_swiglu(m: int, k: int, n: int):
    products = Products(CHIPS["tiny"])
    b, x = products.k, normal(9, m, k)
    xt = products.trial.load("x", bf16(x))
    gate, gate_values = products.matrix("gate", normal(10, k, n) / k**0.5, HbmFormat.BF16)
    up, up_values = products.matrix("up", normal(11, k, n) / k**0.5, HbmFormat.BF16)
    out = b.tensor(Kind.SPM_BF16, m, n, avoid=(xt,))
    linear.swiglu(b, products.ring, xt, gate, up, out, rows=m)
    products.trial.store("out", out)
    x = wide(bf16(x))
    g, u = x @ gate_values, x @ up_values
    expected = g / (1 + np.exp(-g)) * u
    # bf16 rounds the result by 2^-8; silu has a slope below 1.1, so the errors of g and u add.
    bound = 2**-8 * 1.01 * np.abs(expected) + 1.1 * (
        rounding(x, gate_values) * np.abs(u) + rounding(x, up_values) * np.abs(g)
    )
    assert_within(halves(products.trial.run()["out"], m, n), expected, bound + 1e-6)


@pytest.mark.parametrize(
    ("chip", "rows", "n"), [("tiny", 1, 8), ("tiny", 13, 27), ("solo", 4, 150)]
)
def test_embedding_gathers_rows(chip: str, rows: int, n: int):
    table = bf16(normal(14, 50, n))
    ids = np.random.default_rng(15).integers(0, 50, rows).astype(np.int32)
    ids[-1] = 49
    trial = Trial(CHIPS[chip])
    k = trial.k
    index = k.packed(rows)
    ops.load(k, index, trial.give("ids", ids), format=HbmFormat.FP32, rows=1, width=rows,
             row_bytes=4 * rows, tile_bytes=4 * k.chip.lanes)  # fmt: skip
    x = k.tensor(Kind.SPM_BF16, rows, n)
    ops.load(k, x, trial.give("table", table), index=index, row_bytes=2 * n)
    trial.store("out", x)
    np.testing.assert_array_equal(trial.run()["out"].view(np.uint16).reshape(rows, n), table[ids])

"""Attention over a cache, prefill chunks and decode, against float64."""

from dataclasses import dataclass

import numpy as np
import pytest
from kernel_launch import Trial, assert_within, bf16, halves, normal, wide

from tapeout.chip import load
from tapeout.isa import Kind
from tapeout.kernels import attention as attn
from tapeout.kernels.heads import HeadLayout, split_heads

CHIPS = {name: load(name) for name in ("tiny", "solo")}


@dataclass
class Case:
    """A launch: `tokens` valid new tokens of at most `chunk`, at `position`."""

    chip: str
    batch: int
    chunk: int
    tokens: int
    position: int
    heads: int
    kv_heads: int
    d: int
    context: int
    rope: bool = False
    tiles: int | None = None  # of a block; the kernel's own choice where None

    @property
    def shape(self) -> attn.Shape:
        return attn.Shape(
            batch=self.batch, tokens=self.chunk, heads=self.heads, kv_heads=self.kv_heads,
            head_dim=self.d, context=self.context, scale=self.d**-0.5,
        )  # fmt: skip


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [M, heads, d] with signed sin, as `split_heads`: in fp32, an fma at the end."""
    half = x.shape[-1] // 2
    partner = np.concatenate([x[..., half:], x[..., :half]], axis=-1)
    return x * cos[:, None] + partner * sin[:, None]


class Launch:
    """Data of a case, its program and its reference."""

    def __init__(self, case: Case) -> None:
        self.case, self.trial = case, Trial(CHIPS[case.chip])
        rows = case.batch * case.chunk
        self.width = (case.heads + 2 * case.kv_heads) * case.d
        self.x = normal(1, rows, self.width)
        cache = (2, case.batch, case.kv_heads, case.context, case.d)
        self.cache = bf16(normal(2, *cache))
        angle = normal(3, rows, case.d // 2) * 3
        self.cos = np.concatenate([np.cos(angle)] * 2, axis=1).astype(np.float32)
        self.sin = np.concatenate([-np.sin(angle), np.sin(angle)], axis=1).astype(np.float32)

    def build(self) -> None:
        case, trial = self.case, self.trial
        k, shape = trial.k, case.shape
        nbytes = case.kv_heads * case.context * case.d * 2
        kv = trial.give("kv", self.cache, writable=True)
        caches = [
            attn.Cache(kv.slice(which * case.batch * nbytes, 0), nbytes) for which in range(2)
        ]
        rows = k.arg("tokens") if case.chunk > 1 else case.batch
        x = trial.load("x", self.x)
        q = k.tensor(Kind.SPM_BF16, case.heads * shape.rows, case.d, avoid=(x,))
        layer = attn.Attention(
            k, shape, *caches, k.arg("position"), k.arg("tokens") if case.chunk > 1 else 1,
            tiles=case.tiles,
        )  # fmt: skip
        rope = None
        if case.rope:
            rope = tuple(
                trial.load(name, t, kind=Kind.VMEM)
                for name, t in (("cos", self.cos), ("sin", self.sin))
            )
        layout = HeadLayout(k, case.d)
        hq, hk = case.heads, case.kv_heads
        rest = []
        for first, which, turn in ((hq, 0, rope), (hq + hk, 1, None)):
            rest += split_heads(
                k, x, layer.new_rows(which), layout, first, hk, rows=rows,
                head_stride=layer.head_stride, rope=turn,
            )  # fmt: skip
        rest += split_heads(
            k, x, q, layout, 0, hq, rows=rows, head_stride=shape.rows, rope=rope,
            factor=shape.factor,
        )  # fmt: skip
        for finish in rest:
            finish()
        out = k.tensor(Kind.SPM_BF16, shape.rows, hq * case.d, avoid=(q,))
        layer.start(q)
        layer.finish(out, rows=rows)
        trial.store("out", out, rows=case.tokens if case.chunk > 1 else case.batch)

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """bf16 bits of q, k, v [M, heads, d], rotated where the case says so, q times factor."""
        case = self.case
        x = self.x.reshape(len(self.x), -1, case.d)
        q, k, v = np.split(x, [case.heads, case.heads + case.kv_heads], axis=1)
        if case.rope:
            q, k = (rotate(t, self.cos, self.sin) for t in (q, k))
        return bf16(q * np.float32(case.shape.factor)), bf16(k), bf16(v)

    def reference(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(out [M, heads * d], its bound, caches as bits) after the launch."""
        case = self.case
        q, k, v = self.parts()
        caches = self.cache.copy()
        out, bound = [], []
        for b in range(case.batch):
            new = slice(b, b + 1) if case.chunk == 1 else slice(0, case.tokens)
            n = new.stop - new.start
            at = slice(case.position, case.position + n)
            caches[0, b, :, at] = k[new].swapaxes(0, 1)
            caches[1, b, :, at] = v[new].swapaxes(0, 1)
            keys, values = (wide(c[b, :, : at.stop]) for c in caches)
            arguments = wide(q[new]).swapaxes(0, 1), keys
            for v_, into in ((values, out), (np.abs(values), bound)):
                # exp2 of a score is exp of ln 2 times it
                y = attn.attention_reference(*arguments, v_, np.log(2), case.position)
                into.append(y.swapaxes(0, 1).reshape(n, -1))
        # p and the result are rounded to bf16, each by 2^-8 of values that never exceed
        # softmax(..) |v|; a quarter of that is room for fp32.
        return np.concatenate(out), 2.25 * 2**-8 * np.concatenate(bound), caches


PREFILL = [
    Case("tiny", 1, 8, 8, 0, heads=1, kv_heads=1, d=8, context=16),
    Case("tiny", 1, 8, 5, 0, heads=2, kv_heads=1, d=8, context=32),
    Case("tiny", 1, 4, 3, 21, heads=2, kv_heads=2, d=16, context=32),
    Case("tiny", 1, 3, 3, 8, heads=4, kv_heads=2, d=4, context=16),
    Case("tiny", 1, 5, 4, 27, heads=3, kv_heads=3, d=4, context=40, rope=True),
    Case("tiny", 1, 4, 4, 12, heads=2, kv_heads=1, d=16, context=24, rope=True),
    Case("solo", 1, 9, 7, 128, heads=3, kv_heads=1, d=64, context=256, rope=True),
]
DECODE = [
    Case("tiny", 1, 1, 1, 0, heads=1, kv_heads=1, d=8, context=16),
    Case("tiny", 1, 1, 1, 29, heads=4, kv_heads=2, d=4, context=32, rope=True),
    Case("tiny", 3, 1, 1, 13, heads=2, kv_heads=1, d=8, context=16),
    Case("tiny", 2, 1, 1, 39, heads=3, kv_heads=3, d=16, context=40, rope=True),
    Case("solo", 2, 1, 1, 300, heads=6, kv_heads=2, d=64, context=384),
    # blocks of several tiles, full ones before the current block, its first and last positions
    Case("tiny", 1, 1, 1, 16, heads=2, kv_heads=1, d=8, context=48, tiles=2),
    Case("tiny", 1, 1, 1, 47, heads=3, kv_heads=3, d=8, context=48, rope=True, tiles=2),
    Case("tiny", 2, 1, 1, 76, heads=4, kv_heads=2, d=4, context=88, tiles=4),
    Case("tiny", 2, 1, 1, 37, heads=2, kv_heads=1, d=16, context=64, rope=True, tiles=2),
    Case("tiny", 2, 1, 1, 23, heads=2, kv_heads=1, d=8, context=40, tiles=1),
    Case("solo", 1, 1, 1, 700, heads=3, kv_heads=1, d=64, context=1024),
]


@pytest.mark.parametrize(
    "case", PREFILL + DECODE, ids=lambda c: f"{c.chip}-{c.batch}x{c.chunk}@{c.position}"
)
def test_attention(case: Case):
    launch = Launch(case)
    launch.build()
    got = launch.trial.run(position=case.position, tokens=case.tokens)
    expected, bound, caches = launch.reference()
    kv = got["kv"].view(np.uint16).reshape(caches.shape)
    if case.rope:  # an fma in place of a product and a sum: now and then another bf16
        assert_within(wide(kv), wide(caches), 2**-7 * np.abs(wide(caches)) + 1e-6)
        bound = bound * 2
    else:
        np.testing.assert_array_equal(kv, caches)
    assert_within(halves(got["out"], *expected.shape), expected, bound)


@pytest.mark.parametrize(
    ("chip", "batch", "tokens", "context", "tiles"),
    [
        ("solo", 1, 1, 1024, 8),
        ("solo", 1, 1, 200, 2),
        ("solo", 1, 1, 1 << 16, 8),  # 2 x 3 x 128 rows a tile: a stripe of 8192 rows has ten
        ("solo", 4, 1, 1024, 2),
        ("solo", 8, 1, 1024, 1),
        ("solo", 1, 128, 1024, 1),
        ("tiny", 1, 1, 1024, 4),  # 9 rows of scores a tile: a stripe of acc of 64 rows has seven
    ],
)
def test_blocks_fit_the_chip(chip: str, batch: int, tokens: int, context: int, tiles: int):
    shape = attn.Shape(
        batch=batch, tokens=tokens, heads=9, kv_heads=3, head_dim=CHIPS[chip].lanes // 2,
        context=context, scale=1.0,
    )  # fmt: skip
    assert attn.block_tiles(CHIPS[chip], shape, batch) == tiles


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"d": 12}, "head_dim that is a power of two, not 12"),
        ({"batch": 2, "chunk": 4}, "prefill sequences one by one"),
        ({"chunk": 9}, "a chunk of 9 tokens exceeds lanes = 8"),
        ({"context": 12}, "context 12 must be a multiple of lanes = 8"),
    ],
)
def test_shapes_it_cannot_run(change: dict, words: str):
    case = Case("tiny", 1, 1, 1, 0, heads=1, kv_heads=1, d=8, context=16)
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(ValueError, match=words):
        attn.check_shape(case.shape, CHIPS["tiny"].lanes)

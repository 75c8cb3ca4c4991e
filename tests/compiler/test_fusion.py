"""Products and what is computed of them as one step: sizes that are chosen hold what it needs."""

import pytest

torch = pytest.importorskip("torch")

from tapeout.chip import load  # noqa: E402
from tapeout.compiler import values as v  # noqa: E402
from tapeout.compiler.fusion import fuse  # noqa: E402
from tapeout.compiler.operators import arithmetic as ar  # noqa: E402
from tapeout.compiler.operators.products import matmul  # noqa: E402
from tapeout.compiler.schedule import Launch, plan  # noqa: E402
from tapeout.isa.dma import HbmFormat  # noqa: E402
from tapeout.kernels import gemm  # noqa: E402
from tapeout.lang import Builder  # noqa: E402

pytestmark = pytest.mark.torch

M, N, DEPTH = 300, 200, 64


def product(name: str) -> v.Value:
    """[1, M, N] of inputs of its own."""
    a = v.Buffer((1, M, DEPTH), torch.bfloat16, f"{name} left")
    b = v.Buffer((1, DEPTH, N), torch.bfloat16, f"{name} right")
    return matmul(a, b, torch.float32)


def test_an_operand_is_never_taken_for_the_product():
    """An earlier result, which is the first to have a place, is added to a product."""
    earlier = product("earlier")
    y = ar.add(ar.mul(product("fused"), 2.0), earlier)
    ends = [(x, v.Buffer((1, M, N), torch.float32, name)) for x, name in ((earlier, "e"), (y, "y"))]
    schedule = plan(ends)
    k = Builder(load("solo"), weight_slots=2)
    fuse(schedule, k, frozenset())
    launch = schedule.steps[-1]
    assert isinstance(launch, Launch)
    assert launch.plan == gemm.choose(
        k.chip, M, N, DEPTH, formats=[HbmFormat.FP32] * 2, tiled=False,
        stripes=len(k.places.spm.stripes),
    )  # fmt: skip

"""PyTorch's operator database on the chip: every sample of every Core ATen operator, against CPU.

For each operator of the Core ATen list that the database has, each sample in float32, bfloat16,
int64 and bool (as far as the operator takes them) runs forward, and backward where it is
differentiable. An operator passes if all its samples do. The report is
benchmarks/results/opinfo.json; docs/generated/operators.md is made from it.

    python benchmarks/opinfo.py [--chip solo] [--only NAME ...] [--jobs 2]
"""

import argparse
import math
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
from reports import run_all

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.bool)

HELD = (*DTYPES, torch.int32, torch.int16, torch.int8, torch.uint8)  # what arguments may ask for

# (rtol, atol). float32: the vector unit's functions and what is composed of them err by a few ulp
# (2^-24 = 6e-8), sums are in another order than the host's, subnormals are zero. bfloat16: a result
# is rounded to 8 bits (4e-3), operators that are composed of others round on the way on the host.
FORWARD = {torch.float32: (1e-5, 1e-5), torch.bfloat16: (1.6e-2, 1.6e-2)}
# A gradient is several operators long.
BACKWARD = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (5e-2, 5e-2)}
# 2^(b log2 a): log2's error, in units of 2^-24, grows with the exponent of the result.
POWER = (1e-4, 1e-5)
LIMIT_S = 3600  # for all samples of an operator
# Results that hold anything: shape and type are compared.
FREE = ("empty", "empty_strided")
# Results that differ from run to run: the distribution is compared.
RANDOM = ("rand", "randn", "randperm", "native_dropout")

# Core ATen operators whose samples stand under another name.
NAMES = {
    "_adaptive_avg_pool2d": "nn.functional.adaptive_avg_pool2d",
    "_adaptive_avg_pool3d": "nn.functional.adaptive_avg_pool3d",
    "_adaptive_avg_pool2d_backward": "nn.functional.adaptive_avg_pool2d",
    "_cdist_forward": "cdist",
    "_embedding_bag": "nn.functional.embedding_bag",
    "_fft_c2r": "fft.irfft",
    "_fft_r2c": "fft.rfft",
    "_local_scalar_dense": "item",
    "_log_softmax": "log_softmax",
    "_native_batch_norm_legit": "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training": "nn.functional.batch_norm",
    "_pdist_forward": "nn.functional.pdist",
    "_softmax": "softmax",
    "_to_copy": ("float", "bfloat16", "long", "int", "bool"),
    "adaptive_avg_pool1d": "nn.functional.adaptive_avg_pool1d",
    "avg_pool1d": "nn.functional.avg_pool1d",
    "avg_pool2d": "nn.functional.avg_pool2d",
    "avg_pool2d_backward": "nn.functional.avg_pool2d",
    "avg_pool3d": "nn.functional.avg_pool3d",
    "bitwise_not": "bitwise_not",
    "col2im": "nn.functional.fold",
    "constant_pad_nd": "constant_pad_nd",
    "convolution": "nn.functional.conv2d",
    "convolution_backward": "nn.functional.conv2d",
    "copy": "copy",
    "elu": "nn.functional.elu",
    "embedding": "nn.functional.embedding",
    "embedding_dense_backward": "nn.functional.embedding",
    "gelu": "nn.functional.gelu",
    "grid_sampler_2d": "grid_sampler_2d",
    "hardtanh": "nn.functional.hardtanh",
    "index": "__getitem__",
    "leaky_relu": "nn.functional.leaky_relu",
    "max_pool2d_with_indices": "nn.functional.max_pool2d",
    "max_pool2d_with_indices_backward": "nn.functional.max_pool2d",
    "max_pool3d_with_indices": "nn.functional.max_pool3d",
    "native_dropout": "nn.functional.dropout",
    "native_group_norm": "nn.functional.group_norm",
    "native_group_norm_backward": "nn.functional.group_norm",
    "native_layer_norm_backward": "native_layer_norm",
    "reflection_pad1d": "nn.functional.pad",
    "reflection_pad2d": "nn.functional.pad",
    "reflection_pad3d": "nn.functional.pad",
    "relu": "nn.functional.relu",
    "replication_pad2d": "nn.functional.pad",
    "replication_pad3d": "nn.functional.pad",
    "rand": "rand_like",
    "split_with_sizes": "split_with_sizes",
    "upsample_bilinear2d": "nn.functional.interpolate",
    "upsample_nearest2d": "nn.functional.interpolate",
}
VARIANTS = {  # of an entry with several, or of a general one: which belongs to the operator
    "reflection_pad1d": "reflect", "reflection_pad2d": "reflect", "reflection_pad3d": "reflect",
    "replication_pad2d": "replicate", "replication_pad3d": "replicate",
    "upsample_bilinear2d": "bilinear", "upsample_nearest2d": "nearest",
    "native_layer_norm_backward": "",
}  # fmt: skip


def core_operators() -> list[str]:
    """Names of the operators that PyTorch tags as Core ATen, symbolic shapes aside."""
    names = set()
    for name in dir(torch.ops.aten):
        packet = getattr(torch.ops.aten, name)
        if hasattr(packet, "overloads"):
            overloads = [getattr(packet, o) for o in packet.overloads()]
            if any(torch.Tag.core in o.tags for o in overloads):
                names.add(name)
    return sorted(n for n in names if not n.startswith("sym_"))


def database():
    from torch.testing._internal.common_methods_invocations import op_db

    return op_db


def entries(core: str):
    """Entries of the database for a Core ATen operator."""
    wanted = NAMES.get(core, core)
    wanted = (wanted,) if isinstance(wanted, str) else wanted
    found = [o for o in database() if o.name in wanted]
    variant = VARIANTS.get(core)
    if variant:
        found = [o for o in found if o.variant_test_name.startswith(variant)]
    return found or [o for o in database() if o.aten_name == core]


class Case:
    """One sample of one operator in one dtype: `run` gives what went wrong, or nothing."""

    def __init__(self, op, sample, core: str) -> None:
        self.op, self.sample, self.core = op, sample, core

    def call(self, leaves, tree):
        from torch.utils._pytree import tree_unflatten

        args, kwargs = tree_unflatten(leaves, tree)
        out = self.op(*args, **kwargs)
        return self.sample.output_process_fn_grad(out)

    def run(self, chip, target, backward: bool) -> str:
        from torch.utils._pytree import tree_flatten

        sample = self.sample
        leaves, tree = tree_flatten(((sample.input, *sample.args), sample.kwargs))
        at = [i for i, x in enumerate(leaves) if isinstance(x, torch.Tensor)]
        tensors = [leaves[i].detach().clone() for i in at]
        grads = [
            j for j, i in enumerate(at)
            if backward and leaves[i].requires_grad and leaves[i].is_floating_point()
        ]  # fmt: skip
        if backward and not grads:
            return "none"

        def forward(*given):
            new = list(leaves)
            for i, x in zip(at, given, strict=True):
                new[i] = x
            out = self.call(new, tree)
            flat, _ = tree_flatten(out)
            return [x for x in flat if isinstance(x, torch.Tensor)]

        def joint(*given):
            def differentiable(*needed):
                new = list(given)
                for j, x in zip(grads, needed, strict=True):
                    new[j] = x
                return tuple(o for o in forward(*new) if o.is_floating_point())

            outs, pull = torch.func.vjp(differentiable, *(given[j] for j in grads))
            return list(pull(tuple(torch.full_like(o, 0.5) for o in outs))) if outs else []

        if any(isinstance(x, torch.dtype) and x not in HELD for x in leaves):
            return "none"  # asks for a type that the chip has not
        if any(t.dtype not in HELD for t in tensors):
            return "none"
        f = joint if backward else forward
        expected = f(*[t.clone() for t in tensors])
        if not expected:
            return "none" if backward else "no tensor results: the host needs the value"
        got = compiled(f, tensors, chip, target)
        return self.compare(expected, got, backward)

    def compare(self, expected, got, backward: bool) -> str:
        if len(expected) != len(got):
            return f"{len(got)} results, not {len(expected)}"
        for e, g in zip(expected, got, strict=True):
            if self.core in FREE and not backward:
                message = same_kind(e, g)
            elif self.core in RANDOM and not backward:
                message = same_kind(e, g) or same_draw(self.core, e, g)
            else:
                message = same(e, g, self.tolerance(e.dtype, backward))
            if message:
                return message
        return ""

    def tolerance(self, dtype, backward: bool):
        if not dtype.is_floating_point:
            return (0.0, 0.0)
        if self.core == "pow" and dtype == torch.float32:
            return POWER
        return (BACKWARD if backward else FORWARD)[dtype]


def same(e, g, tolerance) -> str:
    other = same_kind(e, g)
    if other:
        return other
    rtol, atol = tolerance
    try:
        torch.testing.assert_close(g, e, rtol=rtol, atol=atol, equal_nan=True)
    except AssertionError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return "wrong: " + "; ".join(lines[1:3])
    return ""


def same_kind(e, g) -> str:
    if e.shape != g.shape or e.dtype != g.dtype:
        return f"{g.dtype} {tuple(g.shape)}, not {e.dtype} {tuple(e.shape)}"
    return ""


def same_draw(core: str, e, g) -> str:
    """Five standard deviations of each moment are allowed."""
    n = g.numel()
    if core == "randperm":
        return "" if sorted(g.tolist()) == list(range(n)) else "wrong: not a permutation"
    if n == 0:
        return ""
    if core == "native_dropout":
        both = (e != 0) & (g != 0)
        share = abs((e == 0).double().mean() - (g == 0).double().mean()).item()
        wrong = same(e[both], g[both], FORWARD[e.dtype])
        return wrong or ("" if share <= 5 * (0.5 / n) ** 0.5 else f"wrong: {share} more zeros")
    low, high, mean, spread = (0, 1, 0.5, 12**-0.5) if core == "rand" else (-6, 6, 0.0, 1.0)
    if not bool(((g >= low) & (g < high)).all()):
        return "wrong: out of range"
    off = abs(g.double().mean().item() - mean)
    return "" if off <= 5 * spread / n**0.5 else f"wrong: mean off by {off}"


def compiled(f, tensors, chip, target):
    """What f gives on the chip."""
    from torch.func import functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    from tapeout.compiler.backend import compile_graph
    from tapeout.compiler.operators import decompositions

    table = decompositions()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        graph = make_fx(
            functionalize(f, remove="mutations"), decomposition_table=table, tracing_mode="fake"
        )(*tensors)
    for node in list(graph.graph.nodes):  # of arguments that are changed in place: not compared
        if node.target is torch.ops.aten.copy_.default and not node.users:
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    unit = compile_graph(graph, chip)
    return unit.results(unit.executable.run(target, tensors))


def samples(op, dtype, backward: bool):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        return list(op.sample_inputs("cpu", dtype, requires_grad=backward))


def check(core: str, chip_name: str) -> dict:
    """The report of one operator."""
    from tapeout.chip import load
    from tapeout.sim import Sim

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chip = load(chip_name)
    report = {"samples": 0, "passed": 0, "failures": [], "seconds": 0.0}
    start = time.perf_counter()
    reasons: Counter = Counter()
    found = entries(core)
    if not found:
        report["failures"] = [["the database has no samples", 1]]
        return report
    target = Sim(chip, hbm_bytes=1 << 30)
    for op in found:
        for dtype in DTYPES:
            for backward in (False, True):
                if dtype not in (op.supported_backward_dtypes("cpu") if backward
                                 else op.supported_dtypes("cpu")):  # fmt: skip
                    continue
                if backward and not (op.supports_autograd and dtype.is_floating_point):
                    continue
                for sample in samples(op, dtype, backward):
                    message = attempt(Case(op, sample, core), chip, target, backward)
                    if message == "none":
                        continue
                    report["samples"] += 1
                    report["passed"] += not message
                    if message:
                        kind = "backward" if backward else "forward"
                        name = str(dtype).removeprefix("torch.")
                        reasons[f"{name} {kind}: {message}"] += 1
                    target.reset()
    report["failures"] = reasons.most_common()
    report["seconds"] = round(time.perf_counter() - start, 1)
    return report


def attempt(case: Case, chip, target, backward: bool) -> str:
    try:
        return case.run(chip, target, backward)
    except Exception as error:
        if os.environ.get("TAPEOUT_TRACE"):
            traceback.print_exc()
        text = str(error).strip().splitlines() or [""]
        line = text[1].strip() if len(text) > 1 and "cannot take" in text[0] else text[0]
        return f"{type(error).__name__}: {line}"[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chip", default="solo")
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--resume", action="store_true", help="go on from --output")
    options = parser.parse_args()
    same_samples: dict = {}  # operators with the same samples are run once
    for name in options.only or core_operators():
        key = NAMES.get(name, name), VARIANTS.get(name), name == "pow", name in RANDOM
        same_samples.setdefault(key, []).append(name)
    work = {tuple(names): (names[0],) for names in same_samples.values()}
    passed = count = 0
    nothing = {"samples": 0, "passed": 0, "failures": [], "seconds": 0}
    for names, report in run_all(
        check, work, jobs=options.jobs, chip=options.chip, path=options.output,
        resume=options.resume, limit_s=LIMIT_S,
    ):  # fmt: skip
        if "reason" in report:
            report |= nothing | {"failures": [[report["reason"], 1]]}
        good = bool(report["samples"]) and report["passed"] == report["samples"]
        passed, count = passed + good * len(names), count + len(names)
        why = "" if good else f"  {report['failures'][:2]}"
        counts = f"{report['passed']}/{report['samples']} {report['seconds']}s"
        print(f"{'ok  ' if good else 'FAIL'} {', '.join(names)} {counts}{why}", flush=True)
    print(f"{passed} of {count} operators pass all their samples "
          f"({math.floor(1000 * passed / count) / 10} %)")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())

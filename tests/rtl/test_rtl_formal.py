"""Properties of the hardware: they hold, and each fails where its component is made wrong."""

import inspect
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from amaranth.hdl import Module
from typer.testing import CliRunner

from tapeout.chip import load
from tapeout.cli.main import app
from tapeout.numerics import arith
from tapeout.rtl import float as floats
from tapeout.rtl import loops, memory, tokens
from tapeout.rtl.formal import run
from tapeout.rtl.formal.properties import PROPERTIES
from tapeout.rtl.formal.tokens import Tokens
from tapeout.rtl.shell import dma, reads, slave

pytest.importorskip("pyosys")

SMALL = ["tokens.capacity=3", "tokens.latency_cycles=3", "dma.credits=2",
         "seq.retire_entries=2", "seq.loop_depth=2", "mxu.adder_stages=1",
         "vpu.adder_stages=2"]  # fmt: skip
CHIPS = {"tiny": load("tiny"), "small": load("tiny", SMALL)}
LONG = {
    ("tiny", "fifo"),
    ("tiny", "loops"),
    ("tiny", "retirement"),
    ("small", "retirement"),
    ("tiny", "transfer-retirement"),
    ("small", "transfer-retirement"),
    ("tiny", "token-delivery"),
    ("tiny", "banks"),
    *((c, f"axi-{n}") for c in CHIPS for n in ("reads", "fetches", "writes", "stores", "loads")),
    *((c, n) for c in CHIPS for n in ("multiply-add", "vector-multiply-add", "add")),
}


@pytest.mark.parametrize(
    ("chip", "name"),
    [
        pytest.param(c, n, marks=pytest.mark.slow if (c, n) in LONG else ())
        for c in CHIPS
        for n in PROPERTIES
    ],
)
def test_property_holds(chip: str, name: str) -> None:
    outcome = run.prove(PROPERTIES[name](CHIPS[chip]))
    assert outcome.unreached == ()
    assert outcome.failed is None, outcome.trace.table()
    assert outcome.claims


def mutant(module: ModuleType, name: str, changed: str, old: str, new: str) -> type:
    """Class `name` of a module, where in class `changed` the first `old` is `new`.

    All else is the module's own: the surroundings of the component are of its classes.
    """
    source = inspect.getsource(getattr(module, changed))
    assert old in source
    names = dict(vars(module))
    exec(compile(source.replace(old, new, 1), "mutant", "exec"), names)
    if name != changed:
        exec(compile(inspect.getsource(getattr(module, name)), "mutant", "exec"), names)
    return names[name]


FAULTS = {
    "a token is lost where one is taken": (
        "tokens", tokens, "TokenChannel", "count + comes - self.take",
        "count + (comes & ~self.take) - self.take"),
    "a token comes a cycle early": (
        "tokens", tokens, "TokenChannel", "Cat(self.post, stages)[-1]",
        "Cat(self.post, stages)[-2]"),
    "an overflow is told a token late": (
        "tokens", tokens, "TokenChannel", "count == self.capacity", "count > self.capacity"),
    "a ring's token is invented": (
        "token-delivery", tokens, "TokenChannel", "count + comes - self.take",
        "count + comes - (self.take & ~comes)"),
    "a read comes from the other stripe": (
        "banks", memory, "BankColumn", ".eq(ram.read0_data)", ".eq(rams[1 - stripe].read0_data)"),
    "the second stripe does not answer": (
        "banks", memory, "BankColumn", "came.eq(hits)", "came.eq(hits & 1)"),
    "a loop goes round once too often": (
        "loops", loops, "LoopStack", "left[d].eq(self.push_count - 1)",
        "left[d].eq(self.push_count)"),
    "a loop of two goes to the outer one's begin": (
        "loops", loops, "LoopStack", "self.next_pc.eq(begin[d])",
        "self.next_pc.eq(begin[0])"),
    "the last iteration is the one before": (
        "loops", loops, "LoopStack", "self.is_last.eq(left[d] == 0)",
        "self.is_last.eq(left[d] <= 1)"),
    "an instruction retires a cycle early": (
        "retirement", tokens, "RetireQueue", 'is_later.eq(self.push_latency > left + 1)',
        'is_later.eq(self.push_latency > left + 2)'),
    "a post takes a transfer's done": (
        "transfer-retirement", tokens, "TransferRetireQueue", '(pop & head["is_transfer"])', "pop"),
    "ARVALID drops before ARREADY": (
        "axi-reads", reads, "ReadPort", "with m.If(self.arready)", "with m.If(self.arvalid)"),
    "AR changes while it waits": (
        "axi-reads", reads, "ReadPort", "self.launches & (~self.arvalid | self.arready)",
        "self.launches"),
    "a fetch asks for a word too many": (
        "axi-reads", reads, "ReadPort", "self.arlen.eq(line.words - 1)",
        "self.arlen.eq(line.words)"),
    "a fetch crosses 4 KiB": (
        "axi-reads", reads, "ReadPort", "self.araddr.eq(line.address)",
        "self.araddr.eq(line.address + WORD_BYTES)"),
    "a read counts as answered with its first beat": (
        "axi-reads", reads, "ReadPort", "ends.eq(arrives & self.rlast)", "ends.eq(arrives)"),
    "a fetched word comes from the wrong half of a beat": (
        "axi-fetches", reads, "ReadPort", "Mux(inside, at, firsts.r_data)", "Mux(inside, at, 0)"),
    "a store's burst leaves its interleave unit": (
        "axi-writes", dma, "DmaPort", "self.awaddr.eq(self.address)",
        "self.awaddr.eq(self.address + self.beat_bytes)"),
    "WLAST comes a beat early": (
        "axi-writes", dma, "StoreStream", "need == left", "left <= need + beat"),
    "W changes while it waits": (
        "axi-writes", dma, "StoreStream", "(have >= need) & (~self.wvalid | self.wready)",
        "(have >= need)"),
    "a write passes a read": (
        "axi-writes", dma, "DmaPort", "(reading == 0) & ", ""),
    "a store ends before it is answered": (
        "axi-stores", dma, "DmaPort", "written + self.bvalid", "written + writes"),
    "a store writes bytes beside its own": (
        "axi-stores", dma, "StoreStream", '"strobes", strobes, skip,',
        '"strobes", strobes, skip & 1,'),
    "a load's bytes overrun those before": (
        "axi-loads", dma, "LoadStream", "kept <= self.piece_bytes", "kept <= self.room"),
    "an answer to a write is invented": (
        "axi-registers", slave, "RegisterSlave", "has_address & has_data &", "has_address &"),
    "a read is taken while the answer before waits": (
        "axi-registers", slave, "RegisterSlave", "self.arready.eq(~self.rvalid | self.rready)",
        "self.arready.eq(1)"),
    "BVALID drops before BREADY": (
        "axi-registers", slave, "RegisterSlave", "with m.If(self.bready)",
        "with m.If(self.bvalid)"),
}  # fmt: skip


SLOW_FAULTS = {
    "the last iteration is the one before",
    "a loop of two goes to the outer one's begin",
    "a ring's token is invented",
    "a read comes from the other stripe",
    "a token comes a cycle early",
    "W changes while it waits",
}


@pytest.mark.parametrize(
    "fault",
    [pytest.param(f, marks=pytest.mark.slow if f in SLOW_FAULTS else ()) for f in FAULTS],
)
def test_planted_fault_is_found(fault: str) -> None:
    name, module, changed, old, new = FAULTS[fault]
    property_ = PROPERTIES[name]
    broken = mutant(module, property_.component.__name__, changed, old, new)
    outcome = run.prove(property_(CHIPS["small"], broken))
    assert not outcome.holds
    assert outcome.unreached == ()
    assert outcome.failed in outcome.claims
    values = outcome.trace.values[f"holds_{outcome.failed}"]
    assert values[-1] == 0
    assert all(values[:-1])


WRONG_ARITHMETIC = {
    "only the last bit that is shifted out sticks": (
        "multiply-add", "_sum", "shifted[:width].any()", "shifted[width - 1]"),
    "infinity times zero is no NaN": (
        "multiply-add", "_product", " | (x.is_zero & y.is_inf)", ""),
    "equals cancel to a negative zero": (
        "add", "_sum", 'state["big_sign"] & ~state["subtracts"]', 'state["big_sign"]'),
    "an operand is shifted too little": (
        "add", "_sum", "magnitude > width, width", "magnitude > 9, 9"),
    "what a long product loses does not stick": (
        "vector-multiply-add", "_sum", "shifted[:width].any()", "0"),
    "a factor is squared": (
        "vector-multiply-add", "_product", "x_bits * y_bits", "x_bits * x_bits"),
    "a product of two or more keeps its exponent": (
        "vector-multiply", "Multiplier", "x.power + above_2", "x.power"),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG_ARITHMETIC)
def test_wrong_arithmetic_is_found(fault: str) -> None:
    name, changed, old, new = WRONG_ARITHMETIC[fault]
    property_ = PROPERTIES[name]
    broken = mutant(floats, property_.component.__name__, changed, old, new)
    outcome = run.prove(property_(CHIPS["small"], broken))
    assert not outcome.holds
    told = re.fullmatch(r"(a = 0x\w+, b = .*) gives (0x\w{8}), not (0x\w{8})", outcome.failed)
    assert told
    if name.startswith("vector"):  # any product, of the right factors
        a, b, *_, first, second, _ = (int(x, 16) for x in re.findall(r"= (0x\w+)", told[1]))
        factors = tuple(1 << 23 | x & 0x7FFFFF for x in (a, b))
        assert told[2] != told[3] or (first, second) != factors
        return
    assert told[2] != told[3]
    # The reference is the ISA's.
    a, b, *c = (
        np.array([int(x, 16) << (16 if len(x) == 6 else 0)], np.uint32).view(np.float32)
        for x in re.findall(r"= (0x\w+)", told[1])
    )
    wanted = arith.fma(a, b, c[0]) if c else arith.add(a, b)
    assert wanted.view(np.uint32)[0] == int(told[3], 16)


class Contradiction(Tokens):
    """Assumes what cannot be: then everything could be claimed."""

    def state(self, m: Module) -> None:
        super().state(m)
        self.assume(m, self.chip.cores == 0 or ~self._running)


def test_contradicting_assumptions_do_not_pass() -> None:
    outcome = run.prove(Contradiction(CHIPS["small"]))
    assert not outcome.holds
    assert "token_arrives" in outcome.unreached


def test_command_prints_a_table_and_json() -> None:
    arguments = ["prove", "--property", "tokens", "--set", "tokens.capacity=2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "unbounded (pdr)" in result.output
    assert "proven" in result.output
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert '"holds": true' in result.output


def test_command_shows_what_fails_and_when(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Tokens):
        component = mutant(tokens, "TokenChannel", "TokenChannel", "count != 0", "count > 1")

    monkeypatch.setitem(PROPERTIES, "tokens", Broken)
    result = CliRunner().invoke(app, ["prove", "--property", "tokens"])
    assert result.exit_code == 1
    assert "fails: " in result.output
    assert "component.count" in result.output


def test_unknown_property_names_those_there_are() -> None:
    result = CliRunner().invoke(app, ["prove", "--property", "token"])
    assert result.exit_code == 1
    assert "no property is named 'token': there are tokens" in str(result.exception)


def test_missing_tool_names_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(run.FormalError, match=r"needs pyosys, which is not installed: run `pip"):
        run._environment(tmp_path)

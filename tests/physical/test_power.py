"""Toggles as Verilator writes them, and power in a library whose figures are round."""

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tapeout.chip import load
from tapeout.physical.activity import PROGRAMS, Activity, Toggles, _read, record
from tapeout.physical.measure import measure_power
from tapeout.physical.parts import Part, parts

INPUT_F, LOAD_F, VOLT, CLOCK_GHZ = 0.001e-12, 0.01e-12, 1.8, 0.1

SAIF = r"""
(SAIFILE
(DURATION 20)
 (INSTANCE TOP
  (NET
   (clk (T0 10) (T1 10) (TZ 0) (TX 0) (TB 0) (TC 20))
  )
  (INSTANCE core
   (INSTANCE part
    (NET
     (a\[0\] (T0 15) (T1 5) (TZ 0) (TX 0) (TB 0) (TC 4))
    )
    (INSTANCE $inner$1
     (NET
      (b (T0 0) (T1 20) (TZ 0) (TX 0) (TB 0) (TC 0))
     )
    )
   )
  )
 )
)
"""


class Inverted(wiring.Component):
    """A register, an inverter, a register."""

    a: In(1)
    y: Out(1)

    def elaborate(self, platform):
        m = Module()
        first = Signal(reset_less=True)
        second = Signal(reset_less=True)  # which is called y, as it drives that
        m.d.sync += [first.eq(self.a), second.eq(~first)]
        m.d.comb += self.y.eq(second)
        return m


def test_toggles_of_nets_by_their_place():
    activity = _read("matmul", SAIF)
    assert activity.cycles == 10
    assert activity.within("part") == {
        "a[0]": Toggles(0.4, 0.25),
        "$inner$1.b": Toggles(0.0, 1.0),
    }


def _power(pdk, tmp_path, toggles):
    part = Part(name="part", title="", count=1, make=lambda: Inverted(), at="part")
    nets = {f"part.{name}": Toggles(rate, 0.5) for name, rate in toggles.items()}
    activity = Activity("test", 10, nets)
    return measure_power(part, pdk, activity, clock_ghz=CLOCK_GHZ, folder=tmp_path / "cache")


def test_what_switches_is_what_toggles(pdk, tmp_path):
    """Each toggle of a net costs half its capacitance times the voltage squared."""
    power = _power(pdk, tmp_path, {"a": 1.0, "first": 0.5, "y": 0.25})
    assert (power.known, power.registers) == (2, 2)
    # The first register drives an inverter, that the other one, which drives the output.
    farads = 0.5 * INPUT_F + 0.5 * INPUT_F + 0.25 * LOAD_F
    assert power.switching_w == pytest.approx(farads * VOLT**2 / 2 * CLOCK_GHZ * 1e9, rel=1e-3)
    assert power == _power(pdk, tmp_path, {"a": 1.0, "first": 0.5, "y": 0.25})  # kept
    still = _power(pdk, tmp_path, {"a": 0.0, "first": 0.0, "y": 0.0})
    assert still.switching_w == 0


def test_registers_without_a_record_toggle_as_the_others(pdk, tmp_path):
    known = _power(pdk, tmp_path, {"a": 1.0, "first": 0.5, "y": 0.5})
    guessed = _power(pdk, tmp_path, {"a": 1.0, "first": 0.5})
    assert (guessed.known, guessed.registers) == (1, 2)
    assert guessed.switching_w == pytest.approx(known.switching_w)


@pytest.mark.slow
def test_programs_toggle_every_part(tmp_path):
    """Records of both programs on the RTL, whose results are those of sim; each part is found."""
    chip = load("tiny")
    for name in PROGRAMS:
        activity = record(chip, name, folder=tmp_path)
        for part in parts(chip).values():
            nets = activity.within(part.at)
            assert nets["clk"].a_cycle == pytest.approx(2, rel=0.01), part.name
            moving = sum(t.a_cycle > 0 for t in nets.values())
            assert moving > (20 if part.name != "token" else 3), (name, part.name)

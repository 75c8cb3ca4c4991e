"""From parts of the chip to gates: synthesis with Yosys and ABC, timing and power with OpenSTA."""

"""From parts of the chip to gates: synthesis with Yosys and ABC, timing with OpenSTA."""

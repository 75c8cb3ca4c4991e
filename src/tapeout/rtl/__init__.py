"""The hardware: one Amaranth component per part, decoders and constants derived from `isa` and the
chip.

Contract: a component of a chip behaves, bit for bit and cycle for cycle, as docs/timing.md says,
and as `sim` does. Cycles count from the first one after `run`.
"""

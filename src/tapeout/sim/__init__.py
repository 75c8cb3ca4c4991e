"""The native simulator: functional and timing, or timing only; HBM model; trace.

`tapeout.sim._native` is built from the C++ sources in `native/`.
"""

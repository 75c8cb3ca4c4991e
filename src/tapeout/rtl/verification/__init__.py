"""`interp`, `sim` and `rtl` against each other on random programs and random chips.

Contract: programs are legal and free of races by construction, and reproducible from a seed; a
difference comes with the seed and a program made as small as it goes.
"""

"""What `benchmarks/peers.py` is made of: cases, environments, one runner script a simulator.

Runners (`*_run.py`) are scripts for subprocesses: `python RUNNER REQUEST.json`. They write one JSON
object a line to the file that the request names, as soon as it is known, so that a run that is cut
short still shows what it did.
"""

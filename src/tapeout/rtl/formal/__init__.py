"""Properties of the hardware, proven.

A property is a component with what its surroundings may do assumed and what it must do asserted.

Contract: `properties.PROPERTIES` names them all; `run.prove` proves one or gives a counterexample,
cycle by cycle. A property whose assumptions contradict each other does not pass: what it names as
reachable must be reached.
"""

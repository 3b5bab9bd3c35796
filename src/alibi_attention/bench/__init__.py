"""Benchmarks: cases, the strongest peers we know, raw samples, and a report that names what we lose.

A case says what is timed, a peer is another way to compute it, and both are looked up by name. Timings are compared
only within one run, as ratios. The command line over it is ``alibi bench``; see benchmarks/README.md.
"""

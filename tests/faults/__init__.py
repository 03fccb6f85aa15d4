"""The chaos suite: faults by a seed, clients that note what was promised them, a checker that holds us to it.

`python -m tests.faults --help` runs it; docs/robustness.md says what it promises and what it found.
"""

"""What a policy can do, on held-out items and on benchmarks.

    records.py        what an evaluation holds, its figures, and records of several evaluations paired by item
    held_out.py       how held-out items are drawn and asked
    stats.py          means and shares with bootstrap intervals
    drift.py          whether self-reward comes to agree with itself alone
    environment.py    what a run ran on
    harness.py        the tasks of lmms-eval on our checkpoints
    harness_model.py  the class that lmms-eval loads
    suites/           what `unison eval --suite` runs

To add a figure: a field of records, and its name in FIGURES of `records.py`; to add a benchmark, a suite.
"""

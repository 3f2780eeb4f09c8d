"""What a policy can do, on held-out items and on benchmarks.

- records: what an evaluation holds, its figures, and records of several evaluations paired by item
- held_out: how held-out items are drawn and asked; stats: means and shares with bootstrap intervals
- drift: whether self-reward comes to agree with itself alone; environment: what a run ran on
- suites/: what `unison eval --suite` runs; harness, harness_model: lmms-eval's tasks
"""

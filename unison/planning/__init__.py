"""The dry run: is a configuration sound, does its data have the columns, will it fit, without a weight or a download.

    dry_run.py      the checks and the plan that are printed
    memory.py       the memory of one process, by purpose
    rehearsal.py    a step without weights: the run's own scenario with actions of the right size
    peak_memory.py  the most bytes alive while the policy itself computes, on tensors without data

To plan for another family: its `shape.py` (`policies/sizes.py`); what is counted is the policy's own scoring.
"""

"""Training: the loop, and what it calls.

    trainer.py      the loop: roll out, judge, take advantages, update; evaluations, checkpoints, ends
    experience.py   what the policy makes of a step's items, with rewards and advantages
    update.py       one optimiser step: what is scored, what the reference says, the loss in micro-batches
    optimizer.py    AdamW, learning rates by part
    distributed.py  several processes: what they agree on, where the weights lie
    checkpoint.py   save, resume, export
    chain.py        stages that start from one another's weights
    retention.py    what is not to be forgotten: probed, replayed, guarded
    guards.py       which updates are not taken
    log.py          metrics.jsonl, timings.jsonl, trackers, progress
    throughput.py   tokens and images a second, model FLOP utilisation
    profiling.py    a trace of some steps

To add what every step does: a call in the loop; what few runs need sits in a file of its own, as guards do.
"""

"""Pages to read: a run's report, and two checkpoints side by side. Templates lie beside the code.

- page: the report of a run; run_folder: what it is read from
- charts: lines over steps; comparison: paired differences, and the verdict on them; gallery: drawings and replies
- side_by_side: `unison eval --compare`
"""

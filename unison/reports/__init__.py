"""Pages to read: a run's report, and two checkpoints side by side. Templates lie beside the code.

    page.py          the report of a run
    run_folder.py    what it is read from
    comparison.py    paired differences, and the verdict on them
    charts.py        lines over steps
    gallery.py       drawings and replies of the same items
    side_by_side.py  `unison eval --compare`

To add a section: its figures in a file here, and a block in the template.
"""

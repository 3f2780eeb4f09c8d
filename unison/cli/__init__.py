"""The command line: `unison <verb>`, and what each verb is given.

    main.py      the verbs, and one line for a user's mistake
    train.py     train: recipes, options, chains, resuming, dry runs
    evaluate.py  eval: suites, two checkpoints side by side
    tools.py     the small verbs: sample, merge, join, pretrain, serve-reward, recipes, report, export
    help.py      what `unison train <recipe> --help` shows first

To add a verb: a function in `tools.py`, or a file of its own, and a line in VERBS of `main.py`.
"""

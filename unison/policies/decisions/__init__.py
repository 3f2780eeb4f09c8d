"""One decision, drawn or scored: pure mathematics that knows no network.

    tokens.py     categorical decisions: drawn, scored, guided, relaxed
    sde.py        denoising steps: Gaussian transitions of a flow-matching sampler
    noising.py    given drawings at levels of noise, scored by the velocity there
    selection.py  which of a drawing's decisions an update scores

A new kind of decision is a module with one rule that both draws and scores, an action in `unison.types` that carries
what scoring needs, and a test that holds the two to each other.
"""

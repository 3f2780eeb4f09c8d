"""One decision of an action, drawn or scored: one rule for both, so that they cannot disagree.

    tokens.py     categorical: a token, with classifier-free guidance and temperature
    sde.py        Gaussian: one denoising step of a stochastic sampler
    noising.py    given drawings at levels of noise, scored by the velocity there
    selection.py  which of a drawing's decisions an update scores

To add a kind of decision: a file with one function that draws it and one that scores it, held to each other by a test.
"""

"""MetaQuery: a language model that reads and writes, a diffusion model that draws what it has understood.

    policy.py     the policy
    network.py    its parts, how they are joined, read and written
    layout.py     what its language model reads
    guidance.py   what each branch of classifier-free guidance may know
    diffusion.py  how diffusion transformers and autoencoders of `diffusers` are called
    shape.py      published sizes

What is the same in all families lies beside the folders, in `decisions` and in `decoding`.
"""

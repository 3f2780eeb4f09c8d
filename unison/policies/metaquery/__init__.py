"""MetaQuery: a Qwen2.5-VL that reads and writes, and a diffusion model of `diffusers` that draws what it understood.

    policy.py     the policy
    network.py    its parts, read, written and joined
    layout.py     contexts in Qwen's chat format, and pictures as its vision tower takes them
    guidance.py   what each branch of guidance may know, and the velocity of all of them
    diffusion.py  how diffusion transformers and autoencoders are called

Another class of diffusion transformer or autoencoder is a line in a table of diffusion.py.
"""

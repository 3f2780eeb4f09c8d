"""Show-o: autoregressive text, masked decoding of image tokens.

    policy.py   the policy
    network.py  a Phi decoder over words and image codes, and checkpoints in the published layout
    layout.py   its vocabulary, sequences and attention
    magvit.py   MAGVIT-v2, its image tokenizer
    shape.py    published sizes

What is the same in all families lies beside the folders, in `decisions` and in `decoding`.
"""

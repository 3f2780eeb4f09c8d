"""Show-o: autoregressive text and masked decoding of images in one transformer over one vocabulary.

    policy.py   the policy
    network.py  the decoder and what stands beside it, read and written as published
    layout.py   the vocabulary, and the prompt of a drawing
    magvit.py   the image tokenizer

Another way of its checkpoints to see pictures is a tower in network.py and a branch of `ShowO._read`.
"""

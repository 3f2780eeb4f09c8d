"""Janus and Janus-Pro: autoregressive text, autoregressive image tokens.

    policy.py    the policy, on `transformers`' JanusForConditionalGeneration
    deepseek.py  checkpoints in DeepSeek's own layout, converted on load
    pictures.py  the size pictures are read in, and their codes, as in DeepSeek's program
    shape.py     published sizes

What is the same in all families lies beside the folders, in `decisions` and in `decoding`.
"""

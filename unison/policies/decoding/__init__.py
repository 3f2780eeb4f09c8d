"""How a decoder is run: prompts once, in a KV cache, then what follows them, position by position or round by round.

    causal.py                  sampling and scoring with shared prefixes
    masked.py                  sampling and scoring by masked decoding
    prompts.py                 prompts of ids and pictures, embedded in few passes
    refill.py                  texts of unequal length: finished rows make room for those that wait
    packed.py                  scoring in one packed sequence under a block mask, by FlexAttention
    cpu.py                     one more position through a plain Llama decoder, fast on the CPU
    matmul.py                  products of few rows with prepacked weights, on the CPU
    graph.py                   one more position with static shapes: a CUDA graph on a GPU
    gradient_checkpointing.py  a decoder's layers are computed once more in the backward pass

To add a way to decode: a file here that a family calls; it knows no family.
"""

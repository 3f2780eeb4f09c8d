"""How a decoder is run: prompts once, what continues them in as few passes as may be. No module knows a family.

    causal.py                  sampling and scoring token by token after a KV cache of distinct prefixes
    masked.py                  drawings decided round by round on a canvas
    prompts.py                 prompts of ids and pictures embedded, and read for their hidden states
    refill.py                  texts of unequal length: finished rows make room for those that wait
    cpu.py                     a decoding step of our own for Llama decoders on the CPU
    graph.py                   a decoding step of fixed shapes, to be compiled or captured as a CUDA graph
    matmul.py                  prepacked weights for products of few rows
    packed.py                  scoring in one packed sequence under a block mask (FlexAttention)
    gradient_checkpointing.py  layers that are computed once more in the backward pass

Another way to run a decoder is a module here and an entry where `causal.continuing` or `causal.score` chooses; a test
shows that it changes no number but for rounding.
"""

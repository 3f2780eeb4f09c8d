"""Janus and Janus-Pro: autoregressive text and image tokens in one model of `transformers`.

    policy.py    the policy, on the network of `transformers`
    deepseek.py  checkpoints in DeepSeek's own layout, converted on load

Another layout of its checkpoints is a module with a `load` and a line in `policies.FAMILIES`.
"""

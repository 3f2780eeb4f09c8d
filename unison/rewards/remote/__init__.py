"""Judges on other machines: Unison's own reward servers, and models behind OpenAI-compatible endpoints.

    http.py      what clients of HTTP services share
    client.py    a reward that a server judges
    server.py    the server: `unison serve-reward`
    wire.py      what is sent between the two
    ahead.py     judging what is finished of a rollout while the rest is sampled
    endpoint.py  a model behind an OpenAI-compatible endpoint

To add a service, write a client of it as a `http.Client` that says how it is asked and how its replies are read.
"""

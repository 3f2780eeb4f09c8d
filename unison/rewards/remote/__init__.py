"""Judges on other machines.

    http.py      what clients of HTTP services share
    client.py    a reward that a server judges
    endpoint.py  a model behind an OpenAI-compatible endpoint
    wire.py      what is sent: items and trajectories as JSON
    ahead.py     judging what is finished while the rest is sampled
    server.py    `unison serve-reward`

To add a protocol: a client beside `client.py`, on what `http.py` shares.
"""

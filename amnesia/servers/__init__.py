"""Models that another program serves over HTTP: log-probabilities of texts, and greedy continuations.

Knows texts and JSON; loads no model and no torch. Tokens are the server's own.
Front doors: `server.connect`, `server.Server`.
"""

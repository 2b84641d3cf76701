"""The bodies of requests: what a client may send, with types, ranges and defaults."""

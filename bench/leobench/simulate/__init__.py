"""Capacity planning: the server's own scheduler and cache in simulated time, against a model of what steps cost.

`cluster` sends a workload's requests to replicas, `replica` is one engine, `cruise` its scheduler, and `roofline` or
`calibration` say how long each step takes. Nothing here computes a token.
"""

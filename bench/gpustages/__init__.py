"""The stages of `bench/gpu.py`, and what runs them."""

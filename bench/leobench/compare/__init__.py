"""`leobench compare`: runs side by side, with ratios, and which differences exceed the runs' own spread.

files ── sides ── differences ── told
        labels    intervals      terminal, JSON, page
"""

from leobench.compare.command import add_arguments, main

__all__ = ["add_arguments", "main"]

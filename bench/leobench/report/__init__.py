"""A page for people: results as one HTML file that needs no network, and what it is made of.

    results ── shown ── distributions, timeline, curves ── page ── assets
      files     labels        numbers of the charts          HTML     style, script

Whatever comes from a result (names, messages, settings) is escaped where it enters the page, in `markup` and in
`page.embedded`; the page's own policy forbids any script but its own.
"""

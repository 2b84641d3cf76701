"""The load-testing tool of leoserve."""

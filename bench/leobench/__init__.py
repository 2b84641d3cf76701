"""leobench: the load-testing tool of leoserve, for any server with OpenAI's API."""

__version__ = "0.1.0"

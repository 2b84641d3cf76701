"""leoserve: an OpenAI-compatible inference server for LeoLM."""

__version__ = "0.1.0"

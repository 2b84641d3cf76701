"""HTTP and the OpenAI contract."""

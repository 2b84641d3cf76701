"""Between tokens and batches: requests, the scheduler, the paged cache, the engine's loop, its process and its client."""

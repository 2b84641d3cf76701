"""Between tokens and batches: requests, scheduler, paged cache, the loop, its process and its client."""

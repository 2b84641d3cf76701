"""Between text and tokens: tokenizer, chat template, incremental detokenizing, stop strings."""

"""Text -> tokens -> rows of a batch: source, tokenizer, tokens, pack, objective, batches."""

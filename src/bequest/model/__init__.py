"""Models: build and load (transformers), features and head, document masks, cost, save."""

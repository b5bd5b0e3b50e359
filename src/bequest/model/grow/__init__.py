"""Growing a model: exact operators and those of the literature, on weights and on the optimiser's moments."""

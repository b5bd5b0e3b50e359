"""A job: one recipe, from the file to a finished run folder."""

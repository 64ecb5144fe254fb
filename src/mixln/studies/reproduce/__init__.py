"""Tables and figures of the papers: what was published, what is run for them here, and what came of it."""

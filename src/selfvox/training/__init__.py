"""Training: one optimisation loop, and the two verbs that use it."""

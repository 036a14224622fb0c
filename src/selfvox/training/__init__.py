"""Training: one optimisation loop, and what pre-training and fine-tuning do around it."""

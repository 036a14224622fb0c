"""Evaluation: predictions against the truth."""

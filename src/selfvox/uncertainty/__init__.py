"""Uncertainty: Monte-Carlo dropout, votes of many passes, maps and trust."""

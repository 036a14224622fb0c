"""Sampling: which crops or whole scans training sees."""

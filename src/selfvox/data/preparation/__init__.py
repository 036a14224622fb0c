"""Preparation: from scans to a store of arrays, with its recipe and split."""

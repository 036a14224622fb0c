"""The machine: whether it can do the work, by trying."""

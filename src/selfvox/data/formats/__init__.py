"""File formats: one reader per format, which checks a file before it uses it."""

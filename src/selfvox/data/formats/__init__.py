"""File formats: one file per format, each checked before its contents are used."""

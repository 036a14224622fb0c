"""File formats: one file per format, each checked before it is believed."""

"""Settings: one dataclass per command, seen as options and as YAML."""

"""The pretext tasks, one file each: `--task NAME` is `NAME.py`. Nothing else lives here, and no list is kept."""

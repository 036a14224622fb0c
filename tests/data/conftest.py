"""Fixtures that count what reading a file costs: bytes read and memory, not seconds."""

import tracemalloc

import pytest


class _RecordingFile:
    """A file that records how many bytes each `read` returned."""

    def __init__(self, file, sizes):
        self._file = file
        self._sizes = sizes

    def read(self, size=-1):
        content = self._file.read(size)
        self._sizes.append(len(content))
        return content

    def __enter__(self):
        self._file.__enter__()
        return self

    def __exit__(self, *error):
        return self._file.__exit__(*error)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.fixture
def record_reads(monkeypatch):
    """A function of a module: the list of the sizes of all reads by its `open_regular`."""

    def record(module):
        sizes = []
        open_regular = module.open_regular
        monkeypatch.setattr(
            module,
            "open_regular",
            lambda *arguments: _RecordingFile(open_regular(*arguments), sizes),
        )
        return sizes

    return record


@pytest.fixture
def peak_bytes():
    """A function of an action: the most memory that it allocated at a time."""

    def measure(action):
        tracemalloc.start()
        try:
            action()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure

"""The verb `demo`, where it is refused or stopped; what it does is each verb's own."""

import pytest

import selfvox
from selfvox.commands import demo
from selfvox.errors import Stopped, UsageError


def test_a_demo_that_is_stopped_is_begun_anew(tmp_path, monkeypatch):
    def stops(folder, **_):
        folder.mkdir(parents=True)
        raise Stopped(
            "demo/runs/rotation: stopped by SIGINT after step 3, saved; go on with --resume", 2
        )

    monkeypatch.setattr(demo.phantom, "write", stops)
    with pytest.raises(Stopped, match=r"demo: stopped; remove it to begin anew$") as stopped:
        selfvox.demo(out=tmp_path / "demo")
    assert stopped.value.exit_code == 130
    with pytest.raises(UsageError, match="is not empty; remove it"):
        selfvox.demo(out=tmp_path / "demo")

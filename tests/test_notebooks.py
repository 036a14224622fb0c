"""The notebooks of the documentation run from the first cell to the last."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def no_history(tmp_path, monkeypatch):
    """The kernel writes its history and its connection file into a folder of the test."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
    monkeypatch.setenv("MPLBACKEND", "agg")


@pytest.mark.filterwarnings("ignore")  # of the kernel's event loop
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_its_network_finds_the_ball(path):
    nbclient = pytest.importorskip("nbclient", reason="needs the extra dev")
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300).execute()
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stdout"
    )
    assert float(printed.split("Dice ")[1].split(",")[0]) > 0.5
    assert "trust" in printed


def test_there_is_a_notebook_without_outputs():
    assert [path.stem for path in NOTEBOOKS] == ["from-arrays"]
    assert '"outputs": []' in NOTEBOOKS[0].read_text(encoding="utf-8")
    assert "image/png" not in NOTEBOOKS[0].read_text(encoding="utf-8")

"""What is installed: the wheel has every file of the package, and nothing else."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import selfvox

ROOT = Path(__file__).parent.parent


def tracked(folder: str) -> set[str]:
    """The files under a folder that are in version control, or will be with the next commit."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.skip("not a git checkout")
    return {name for name in result.stdout.splitlines() if (ROOT / name).exists()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """A wheel and an sdist of this checkout."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return out


def test_the_wheel_has_the_files_of_the_package_and_its_licence(dist):
    (wheel,) = dist.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = f"selfvox-{selfvox.__version__}.dist-info"
    of_package = {name.removeprefix("src/") for name in tracked("src/selfvox")}
    assert {name for name in names if not name.startswith(info)} == of_package
    assert f"{info}/licenses/LICENSE" in names
    for name in ("py.typed", "__init__.pyi", "studies/figures.mplstyle"):
        assert f"selfvox/{name}" in names
    assert any(name.startswith("selfvox/studies/presets/") for name in names)


def test_the_wheel_has_the_command_and_the_exact_readme(dist):
    (wheel,) = dist.glob("*.whl")
    info = f"selfvox-{selfvox.__version__}.dist-info"
    archive = zipfile.ZipFile(wheel)
    assert "selfvox = selfvox.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    metadata = archive.read(f"{info}/METADATA").decode()
    assert metadata.endswith((ROOT / "README.md").read_text(encoding="utf-8"))


def test_the_sdist_has_what_a_build_needs_and_no_data(dist):
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert tracked("src/selfvox") <= names
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(name.startswith(("docs/", "benchmarks/", "tests/")) for name in names)

"""Sources of installed packages: a fake package, found by its entry point, reads a data set."""

import sys

import pytest

import selfvox
from selfvox.data import sources
from selfvox.errors import DataError, UsageError

LINES = '''"""Lines: `cases.lines`, one file name per line."""

from selfvox.data.sources import Case, Dataset


def looks_like(root):
    return (root / "cases.lines").is_file()


def read_dataset(root):
    names = (root / "cases.lines").read_text().split()
    cases = tuple(Case(name, name, (root / name,)) for name in names)
    return Dataset(root, "lines", cases, ("image",), None)
'''
CHOOSE = """

def read_choice(root, choice):
    from dataclasses import replace

    dataset = read_dataset(root)
    return replace(dataset, cases=tuple(case for case in dataset.cases if case.id == choice))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Write a package with one module and an entry point, and put it on the path."""

    def install(package, code=LINES, name="lines"):
        folder = tmp_path / "site" / package
        information = folder / f"{package}-1.0.dist-info"
        information.mkdir(parents=True)
        (information / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n"
        )
        (information / "entry_points.txt").write_text(
            f"[selfvox.sources]\n{name} = {package}.reader\n"
        )
        (folder / package).mkdir()
        (folder / package / "__init__.py").touch()
        (folder / package / "reader.py").write_text(code)
        monkeypatch.syspath_prepend(folder)

    yield install
    for module in [name for name in sys.modules if name.startswith("fake_")]:
        del sys.modules[module]


@pytest.fixture
def scans(tmp_path):
    folder = tmp_path / "scans"
    folder.mkdir()
    (folder / "cases.lines").write_text("b.nii.gz\na.nii.gz\n")
    for name in ("a.nii.gz", "b.nii.gz"):
        (folder / name).touch()
    return folder


def test_a_source_of_an_installed_package_reads_a_data_set(install, scans):
    with pytest.raises(UsageError, match="unknown source 'lines'"):
        sources.find_dataset(scans, "lines")
    install("fake_lines")
    assert "lines" in sources.source_names()
    assert "fake_lines.reader" not in sys.modules  # a list of names imports nothing
    for source in ("lines", "auto"):
        dataset = sources.find_dataset(scans, source)
        assert dataset.source == "lines"
        assert [case.id for case in dataset.cases] == ["b.nii.gz", "a.nii.gz"]


def test_info_lists_an_installed_source_with_its_first_line(install):
    install("fake_lines")
    assert selfvox.info()["sources"]["lines"] == "Lines: `cases.lines`, one file name per line."


def test_a_choice_is_passed_to_a_source_that_has_the_function(install, scans):
    install("fake_lines")
    with pytest.raises(UsageError, match=r"lines takes no choice ':a\.nii\.gz'"):
        sources.find_dataset(scans, "lines:a.nii.gz")
    install("fake_choice", LINES + CHOOSE, "choice")
    dataset = sources.find_dataset(scans, "choice:a.nii.gz")
    assert [case.id for case in dataset.cases] == ["a.nii.gz"]


def test_a_built_in_source_wins_over_an_installed_one_of_its_name(install, scans):
    install("fake_folder", name="folder")
    assert sources.find_dataset(scans, "folder").source == "folder"
    assert sources.source_names().count("folder") == 1
    assert "fake_folder.reader" not in sys.modules


def test_a_built_in_layout_is_recognised_before_an_installed_one(install, scans):
    (scans / "list.csv").write_text("image\na.nii.gz\n")
    install("fake_lines", name="aaa")
    dataset = sources.find_dataset(scans)
    assert dataset.source == "table"
    assert "read as table; it also looks like aaa: choose with --source" in dataset.notes


def test_a_name_that_two_packages_install_is_refused_with_both(install, scans):
    install("fake_first")
    install("fake_second")
    for source in ("lines", "auto"):
        with pytest.raises(
            UsageError, match=r"claimed by .* fake_first and fake_second"
        ) as refusal:
            sources.find_dataset(scans, source)
        assert "uninstall one" in str(refusal.value)
    # the others still work by their names
    assert len(sources.find_dataset(scans, "folder").cases) == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise RuntimeError('line one\\nline two')", r"1.0 cannot be imported \(line one\)"),
        ("import absent_dependency_of_a_fake", "1.0 cannot be imported .*absent_dependency"),
        ("def looks_like(root): return True", "has no function read_dataset"),
        ("read_dataset = looks_like = 3", "has no function looks_like"),
    ],
)
def test_a_package_without_a_usable_source_is_refused_by_its_name(install, scans, code, reason):
    install("fake_broken", code, "broken")
    with pytest.raises(
        UsageError, match=f"'broken' of the package fake_broken {reason}"
    ) as refusal:
        sources.find_dataset(scans, "broken")
    assert str(refusal.value).isprintable()


def test_a_source_that_fails_to_look_is_left_out_with_a_line_that_names_it(install, scans, capsys):
    failing = LINES.replace(
        'return (root / "cases.lines").is_file()', 'raise RuntimeError("no\\nlicence")'
    )
    install("fake_failing", failing, "failing")
    install("fake_lines")
    assert sources.find_dataset(scans).source == "lines"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("source: 'failing' (fake_failing.reader) failed to look at")
    assert "(no licence) and is left out" in line


def test_a_file_of_a_data_set_names_no_module_to_import(install, scans):
    """Neither a source's name in a JSON nor a module next to the scans is imported."""
    (scans / "evil.py").write_text("raise SystemExit")
    (scans / "dataset.json").write_text('{"source": "evil", "training": ["a.nii.gz"]}')
    assert sources.find_dataset(scans).source == "decathlon"
    for name in ("evil", "os", "selfvox.data.sources.folder", "../evil"):
        with pytest.raises((UsageError, DataError), match="unknown source"):
            sources.find_dataset(scans, name)

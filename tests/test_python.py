"""The public functions in Python: what they accept, return and show."""

import importlib
import importlib.util
import inspect
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import selfvox
from selfvox import functions
from selfvox.errors import DataError, SelfvoxError, Stopped, UsageError
from selfvox.settings import python_syntax
from selfvox.settings.options import options
from selfvox.settings.verbs import VERBS

ROOT = Path(__file__).parent.parent
USE = """
from pathlib import Path
import selfvox

run: Path = selfvox.pretrain("scans", out=Path("runs/a"), crop=(64, 64, 64), spacing=[1, 1, 1.5])
run = selfvox.finetune(Path("labelled"), out="runs/b", encoder=run, labels=10, network=run)
files: list[Path] = selfvox.predict(run, "new", out="p", ensemble=["c", Path("d")], maps="entropy")
dice = [row["dice"] for row in selfvox.evaluate("p", "truth", regions=None)]
selfvox.study(Path("plan.yaml"), out="study")
"""


def message(verb: str, text: str, *values) -> str:
    return python_syntax.to_python(text, verb, values)


def test_dir_shows_what_is_offered_and_nothing_else():
    importlib.import_module("selfvox.settings.safe_yaml")  # a submodule becomes an attribute
    assert dir(selfvox) == sorted([*selfvox.__all__, "__version__"])
    assert selfvox.__all__ == sorted(selfvox.__all__)
    for name in dir(selfvox):
        assert hasattr(selfvox, name)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_what_help_is_made_of(verb):
    """A docstring without these sections would give an empty help page."""
    text = inspect.cleandoc(VERBS[verb].__doc__)
    assert text.index("\n\nReturns:\n    ") < text.index(f"\n\nExample:\n    selfvox {verb} ")
    assert all(option.help for option in options(VERBS[verb]))


@pytest.mark.parametrize("verb", VERBS)
def test_help_speaks_python(verb):
    function = getattr(selfvox, verb)
    text = inspect.getdoc(function)
    assert "--" not in text
    assert f"\n    selfvox.{verb}(" in text
    compile(text.rpartition("Example:\n")[2].strip(), "example", "eval")
    for option in options(VERBS[verb]):
        assert f"\n    {option.name}: " in text
    assert max(map(len, text.splitlines())) <= 92


@pytest.mark.parametrize("verb", VERBS)
def test_a_function_returns_what_its_command_returns(verb):
    command = getattr(importlib.import_module(f"selfvox.commands.{verb}"), verb)
    assert typing.get_type_hints(command)["return"] == functions.RETURNS[verb]
    assert inspect.signature(getattr(selfvox, verb)).return_annotation == functions.RETURNS[verb]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("continue by --resume, or not", "continue by resume=True, or not"),
        ("use --no-resume", "use resume=False"),
        ("use --crop 64,64,32, or less", "use crop=(64, 64, 32), or less"),
        ("use --crop 48", "use crop=48"),
        ("use a smaller --batch or --crop", "use a smaller `batch` or `crop`"),
        ("use --batch 2 or more", "use batch=2 or more"),
        ("lower --learning-rate; it diverged", "lower `learning_rate`; it diverged"),
        ("prepare with --spacing 1.5,1,1", "prepare with spacing=(1.5, 1, 1)"),
        ("--slices axial", 'slices="axial"'),
        ("leave --slices out", "leave `slices` out"),
        ("leave --network.norm out", 'leave network["norm"] out'),
        ("use --task.planes in-plane", 'use task={..., "planes": "in-plane"}'),
        ("use --task.grid 3 or fewer", 'use task={..., "grid": 3} or fewer'),
        ("try --source dicom:allow-gap", 'try source="dicom:allow-gap"'),
        ("instead of `--labels`", "instead of `labels`"),
        ("(another --out)", "(another `out`)"),
        ("give --probe 'my scans'", 'give probe="my scans"'),
        ("`--device cpu`", '`device="cpu"`'),
        # an option of another verb
        ("adapt it: --first-conv mean", 'adapt it: first_conv="mean"'),
        ("give --ensemble RUN", "give ensemble=RUN"),
        # not options
        ("--config run/settings.yaml", "--config run/settings.yaml"),
        ("scan--crop 3.nii: damaged", "scan--crop 3.nii: damaged"),
        ("/a/--crop/b.nii: damaged", "/a/--crop/b.nii: damaged"),
        ("use --cropping 3", "use --cropping 3"),
        # whole commands
        (
            "run `selfvox prepare SCANS --out my/store` again",
            'run `selfvox.prepare(SCANS, out="my/store")` again',
        ),
        ("see `selfvox nothing --out x`", 'see `selfvox nothing out="x"`'),
    ],
)
def test_options_in_a_message_become_python_arguments(text, expected):
    assert message("pretrain", text) == expected


def test_a_path_that_looks_like_an_option_is_left_alone():
    path = Path("/data/a --crop 3/scan.nii")
    text = f"{path}: damaged; use --crop 8"
    assert message("pretrain", text, path) == f"{path}: damaged; use crop=8"


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_rewritten_with_a_value_of_its_type(verb):
    for option in options(VERBS[verb]):
        if option.positional or option.default in (None, ()) or option.required:
            continue
        shown = (
            ",".join(map(str, option.default)) if type(option.default) is tuple else option.default
        )
        flag = "--" + option.name.replace("_", "-")
        text = flag if bool in option.kinds else f"{flag} {shown}"
        rewritten = eval(f"dict({message(verb, text)})")
        expected = True if bool in option.kinds else option.default
        assert rewritten in ({option.name: expected}, {option.name: str(expected)})


def test_errors_raised_in_python_speak_python(monkeypatch):
    with pytest.raises(UsageError, match=r"give passes=20, or ensemble=RUN$"):
        selfvox.predict("run", "scans", out="o", vote="borda")

    def refuse(settings):
        raise DataError("a --crop 3: damaged; use a smaller --batch")

    monkeypatch.setattr(functions, "run_verb", refuse)
    with pytest.raises(DataError) as error:
        selfvox.pretrain("a --crop 3", out="o")
    assert str(error.value) == "a --crop 3: damaged; use a smaller `batch`"


def test_a_rewritten_error_keeps_its_class_and_exit_code(monkeypatch):
    def stop(settings):
        raise Stopped("stopped; go on with --resume", 15)

    monkeypatch.setattr(functions, "run_verb", stop)
    with pytest.raises(SelfvoxError, match="go on with resume=True") as error:
        selfvox.pretrain("s", out="o")
    assert (type(error.value), error.value.exit_code) == (Stopped, 143)


def write_stub():
    spec = importlib.util.spec_from_file_location("write_stub", ROOT / "tools" / "write_stub.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stub_is_what_the_settings_say():
    tool = write_stub()
    assert tool.STUB.read_text(encoding="utf-8") == tool.stub(), "run `make stub`"


def test_a_type_checker_accepts_text_paths_and_lists(tmp_path):
    """What the README and notebooks write passes `mypy --strict`; a misspelt option does not."""
    api = pytest.importorskip("mypy.api")
    file = tmp_path / "use.py"
    file.write_text(USE + 'selfvox.pretrain("s", out="o", bacth=3)\nselfvox.pretrain("s", out=3)\n')
    config = tmp_path / "mypy.ini"
    # the calls above need the stub alone; torch would take 15 seconds
    config.write_text(
        "[mypy]\nfollow_imports = silent\n"
        "[mypy-torch.*,selfvox.notebook,selfvox.pretext]\nfollow_imports = skip\n"
    )
    environment = [f"--config-file={config}", f"--cache-dir={tmp_path}", "--no-error-summary"]
    report, _, _ = api.run([str(file), "--strict", *environment])
    lines = USE.count("\n")
    assert [line.split(":")[1] for line in report.splitlines() if ": error:" in line] == [
        str(lines + 1),
        str(lines + 2),
    ], report
    assert 'did you mean "batch"' in report


def test_importing_selfvox_imports_no_torch():
    code = "import sys, selfvox; help(selfvox.predict); print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "False"

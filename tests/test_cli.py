"""The command line: options become settings, help is complete, every failure is one line."""

import os
import signal
import subprocess
import sys
import typing

import pytest
import yaml

import selfvox
from selfvox import cli, cli_help, errors, tasks
from selfvox.cli import VERBS, main
from selfvox.runs.stop_signals import StopRequest
from selfvox.settings.options import as_dict, options, resolve
from selfvox.settings.verbs import Pretrain

TOP = [sys.executable, "-m", "selfvox"]


def resolved(capsys, *arguments: str) -> dict:
    """The settings that a command line gives."""
    assert main([arguments[0], "--print-config", *arguments[1:]]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def refused(capsys, *arguments: str, code: int = 2) -> str:
    """The one line of a refusal."""
    assert main(list(arguments)) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("selfvox: ")
    assert err.count("\n") == 1
    return err.strip()


@pytest.fixture
def pretrain_does(monkeypatch):
    """Replace what `selfvox pretrain` runs by a function of its settings."""

    def let(action):
        monkeypatch.setattr(cli, "run_verb", lambda settings: action(**vars(settings)))

    return let


def raising(error: BaseException):
    def verb(**settings):
        raise error

    return verb


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from selfvox.cli import main, VERBS; main([]);"
        "[main([verb, '--help']) for verb in VERBS];"
        "main(['pretrain', 'a', '--out', 'b', '--print-config']);"
        "print('imported:', {'torch', 'numpy', 'scipy', 'nibabel'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-1] == "imported: set()"


def test_the_verbs_are_the_public_functions(capsys):
    way = [
        "lint",
        "prepare",
        "pretrain",
        "finetune",
        "predict",
        "calibrate",
        "evaluate",
        "report",
        "correct",
    ]
    others = [
        "study",
        "atlas",
        "embed",
        "suggest",
        "convert",
        "export",
        "adopt",
        "tissues",
        "download",
        "preview",
        "demo",
        "doctor",
        "info",
    ]
    assert list(VERBS) == [*way, *others]
    assert set(VERBS) == {name for name in selfvox.__all__ if not name.startswith("load_")}
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == alone
    for verb in VERBS:
        assert f"  {verb}" in alone


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_names_every_option_with_its_default_and_help(verb, capsys):
    assert main([verb, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: selfvox {verb} " in shown
    for option in options(VERBS[verb]):
        assert option.help
        assert " ".join(option.help.split()) in shown
        name = option.name.upper() if option.positional else "--" + option.name.replace("_", "-")
        assert f" {name}" in shown
        if option.positional:
            assert (f" [{name}] " in shown) != option.required
        if isinstance(option.default, int | float | str) and not isinstance(option.default, bool):
            assert "default:" in option.help or f"{option.help} [{option.default}]" in shown


@pytest.mark.parametrize("verb", VERBS)
def test_the_example_in_the_help_is_accepted(verb, capsys):
    example = cli_help.example(verb).split()
    assert example[:2] == ["selfvox", verb]
    resolved(capsys, *example[1:])


def test_help_for_a_task_shows_its_own_options(capsys):
    task = tasks.task_names()[0]
    assert main(["pretrain", "--task", task, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in options(tasks.find_task(task)):
        assert f"--task.{option.name.replace('_', '-')} " in shown
        assert option.help.split()[-1] in shown


def test_the_options_of_a_task_survive_the_command_line():
    verb_options = options(VERBS["pretrain"])
    for name in tasks.task_names():
        task = tasks.find_task(name)()
        words = ["--task", name]
        for key, value in as_dict(task).items():
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            words += [f"--task.{key.replace('_', '-')}", text]
        values, _ = cli._read("pretrain", verb_options, words)
        assert tasks.task_from_setting(values["task"]) == task


def test_command_line_and_python_receive_the_same_settings(pretrain_does):
    received = {}
    pretrain_does(lambda **settings: received.update(settings))
    assert (
        main(
            [
                "pretrain",
                "scans",
                "--out",
                "run",
                "--crop",
                "64,64,32",
                "--learning_rate",
                "1e-4",
                "--resume",
            ]
        )
        == 0
    )
    expected = resolve(
        Pretrain,
        {
            "scans": "scans",
            "out": "run",
            "crop": (64, 64, 32),
            "learning_rate": 1e-4,
            "resume": True,
        },
    )
    assert received == vars(expected)


def test_dashes_underscores_equals_signs_and_order_do_not_matter(capsys):
    with_dashes = resolved(
        capsys, "pretrain", "scans", "--out", "o", "--learning-rate", "1e-4", "--no-resume"
    )
    with_equals_signs = resolved(
        capsys, "pretrain", "--learning_rate=1e-4", "--no-resume", "--out=o", "scans"
    )
    assert with_dashes == with_equals_signs
    assert with_dashes["learning_rate"] == 1e-4
    between = resolved(capsys, "predict", "run", "--out", "o", "scans")
    assert (between["run"], between["scans"]) == ("run", "scans")


@pytest.mark.fault("C15", "values that begin with -", "taken as values after `--`")
def test_values_that_begin_with_a_dash_can_be_given(capsys):
    assert resolved(capsys, "pretrain", "--out=-o", "--", "-scans")["scans"] == "-scans"
    assert resolved(capsys, "pretrain", "--out=-o", "s")["out"] == "-o"
    assert (
        resolved(capsys, "pretrain", "s", "--out", "o", "--task.margin", "-1")["task"]["margin"]
        == -1
    )
    assert "--option=-value" in refused(capsys, "pretrain", "s", "--out", "-o")
    assert "after --" in refused(capsys, "pretrain", "-scans", "--out", "o")


def test_dotted_options_become_the_dict_of_the_setting(capsys):
    base = ("pretrain", "s", "--out", "o")
    shown = resolved(
        capsys, *base, "--task", "rotation", "--task.versions", "2", "--network.channels", "16,32"
    )
    assert shown["task"] == {"name": "rotation", "versions": 2}
    assert shown["network"] == {"name": "plain", "channels": [16, 32]}
    shown = resolved(
        capsys, *base, "--task.full-group=true", "--task.name", "rotation", "--task.planes", "xy,xz"
    )
    assert shown["task"] == {"name": "rotation", "full_group": True, "planes": "xy,xz"}
    shown = resolved(
        capsys, *base, "--network.strides", "[[1,1,1], [2, 2,1]]", "--network.norm", "batch"
    )
    assert shown["network"] == {"name": "plain", "strides": [[1, 1, 1], [2, 2, 1]], "norm": "batch"}
    assert "valid tuple (per level and axis, such as '[[1,1,1],[2,2,2]]'" in refused(
        capsys, *base, "--network.strides", "1,2,2"
    )
    assert "--network.strides: not plain YAML" in refused(
        capsys, *base, "--network.strides", "[[1,1,1],[2,2,1]"
    )
    assert "needs a value" in refused(capsys, *base, "--task.versions", "--seed", "3")
    assert "no such option" in refused(capsys, *base, "--batch.size", "3")


def test_the_command_line_wins_over_the_file(capsys, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(
        "scans: there\nout: o\nbatch: 3\nsteps: 7\n"
        "task: {name: rotation, versions: 2, planes: all}\n"
    )
    shown = resolved(
        capsys, "pretrain", "here", "--config", str(file), "--batch", "4", "--task.versions", "3"
    )
    assert (shown["scans"], shown["batch"], shown["steps"]) == ("here", 4, 7)
    assert shown["task"] == {"name": "rotation", "versions": 3, "planes": "all"}
    assert (
        resolved(capsys, "pretrain", "--config", str(file), "--task", "rotation")["task"][
            "versions"
        ]
        == 2
    )
    assert (
        resolved(capsys, "pretrain", "--config", str(file), "--task", "simclr")["task"] == "simclr"
    )


@pytest.mark.parametrize("verb", VERBS)
def test_printed_settings_are_a_settings_file(verb, capsys, tmp_path):
    arguments = {
        option.name: typing.get_args(option.type)[0]
        if typing.get_origin(option.type) is typing.Literal
        else "it's: #1\n\tä"
        for option in options(VERBS[verb])
        if option.required
    }
    positional = [option.name for option in options(VERBS[verb]) if option.positional]
    words = [f"--{name}={value}" for name, value in arguments.items() if name not in positional]
    assert (
        main(
            [
                verb,
                *words,
                "--print-config",
                "--",
                *(arguments[name] for name in positional if name in arguments),
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    assert main([verb, "--config", str(tmp_path / "printed.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pretran"], "unknown command 'pretran'; did you mean 'pretrain'?"),
        (["pretrain", "s", "--out", "o", "--learnig-rate", "1"], "did you mean '--learning-rate'?"),
        (["pretrain", "s", "--out", "o", "--learn", "1"], "no such option '--learn'"),
        (["pretrain", "s", "--out", "o", "--precision", "bf61"], "did you mean 'bf16'?"),
        (
            ["pretrain", "s", "--out", "o", "--batch", "many"],
            "batch: 'many' should be a valid integer",
        ),
        (["pretrain", "s", "--out", "o", "--batch"], "--batch: expected one argument"),
        (["pretrain", "s", "--out", "o", "--resume=yes"], "--resume/--no-resume: takes no value"),
        (["pretrain", "s"], "out: is required (the run: a folder, created)"),
        (["pretrain"], "scans: is required"),
        (
            ["pretrain", "a", "b", "--out", "o"],
            "'b' is one argument too many; pretrain takes SCANS",
        ),
        (["info", "tasks", "x"], "info takes SUBJECT"),
        (["info", "task"], "did you mean 'tasks'"),
        (["evaluate", "p", "t", "--config", "absent.yaml"], "absent.yaml: cannot be read"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(arguments, message, capsys):
    assert message in refused(capsys, *arguments)


@pytest.mark.fault("C12", "a misspelt key in a settings file", "refused with the nearest")
def test_an_unknown_key_in_a_file_is_refused_with_the_nearest(capsys, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("learnig_rate: 1\n")
    message = refused(capsys, "pretrain", "s", "--out", "o", "--config", str(file))
    assert f"{file}: learnig_rate: no such setting; did you mean 'learning_rate'?" in message


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (errors.UsageError("this"), 2, "error: this"),
        (errors.DataError("this"), 3, "error: this"),
        (errors.WeightsError("this"), 4, "error: this"),
        (errors.ResourceError("this"), 5, "error: this"),
        (errors.NumericalError("this"), 6, "error: this"),
        (errors.Stopped("this", 15), 143, "error: this"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT; run the same command again"),
        (StopRequest(signal.SIGHUP), 129, "stopped by SIGHUP; run the same command again"),
        (MemoryError(), 5, "out of memory; use a smaller --batch"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), 5, "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 5, "out of memory"),
        (OSError(28, "No space left on device", "/x/y"), 5, "/x/y: the disk is full"),
        (PermissionError(13, "Permission denied", "/x/y"), 5, "/x/y: Permission denied"),
        (
            NotADirectoryError(20, "Not a directory", "/x/y"),
            5,
            "/x/y: Not a directory; choose a folder",
        ),
        (FileExistsError(17, "File exists", "/x/y"), 5, "/x/y: File exists; choose a folder"),
        (FileNotFoundError(2, "No such file or directory", "/x/y"), 5, "is the folder still there"),
        (OSError(5, "Input/output error"), 5, "a file: Input/output error; is the folder"),
        (
            IsADirectoryError(21, "Is a directory", "/x/y"),
            5,
            "/x/y: Is a directory; choose a folder",
        ),
        (
            RuntimeError("one\n  two"),
            1,
            "internal error: RuntimeError: one two (--debug shows where)",
        ),
    ],
)
def test_every_failure_has_its_exit_code_and_one_line(error, code, message, capsys, pretrain_does):
    pretrain_does(raising(error))
    assert message in refused(capsys, "pretrain", "s", "--out", "o", code=code)


def test_debug_shows_where(capsys, pretrain_does):
    pretrain_does(raising(errors.DataError("broken scan")))
    assert main(["pretrain", "s", "--out", "o", "--debug"]) == 3
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("selfvox: error: broken scan\n")


@pytest.mark.fault("X7", "escapes of the terminal in messages", "escaped")
def test_names_that_move_the_cursor_are_shown_escaped(capsys, pretrain_does):
    pretrain_does(raising(errors.DataError("a\x1b[31m\n\u202eb\udcff.nii: bad")))
    line = refused(capsys, "pretrain", "s", "--out", "o", code=3)
    assert line == r"selfvox: error: a\x1b[31m\n\u202eb\udcff.nii: bad"


@pytest.mark.skipif(os.name != "posix", reason="pipes of a POSIX system")
def test_a_closed_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([*TOP, "--help"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert result.stderr == ""
    assert result.returncode == 141


def test_python_minus_m_and_version_agree(capsys):
    result = subprocess.run([*TOP, "--version"], capture_output=True, text=True)
    assert result.stdout == f"selfvox {selfvox.__version__}\n"
    assert result.returncode == 0
    assert main(["predict", "--version"]) == 0
    assert capsys.readouterr().out == result.stdout


def test_help_and_printed_settings_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
    assert main(["pretrain", "s", "--out", "o", "--print-config"]) == 0
    assert list(tmp_path.iterdir()) == []

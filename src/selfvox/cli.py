"""The command line: runs a verb's function with the options given.

The options are the fields of the settings dataclasses; there is no other list.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import traceback
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import selfvox
from selfvox import cli_help
from selfvox.errors import (
    DISK_FULL_ERRORS,
    ResourceError,
    SelfvoxError,
    UsageError,
    did_you_mean,
    is_out_of_memory,
)
from selfvox.functions import run_verb
from selfvox.runs.progress import quiet_console
from selfvox.runs.stop_signals import handle_stop_signals, request_stop
from selfvox.settings import safe_yaml
from selfvox.settings.options import Option, check_names, options, resolve, to_yaml
from selfvox.settings.verbs import VERBS

NOT_WRITABLE_ERRORS = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with handle_stop_signals(request_stop):
            _command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has closed it, such as `head`
        # Python flushes once more when it ends: into nothing
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as a shell reports SIGPIPE
    # also KeyboardInterrupt, which ends in one line, too
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if "--debug" in arguments:
            traceback.print_exc()
        code, message = _exit_code_and_message(error)
        # the terminal may be gone
        is_silent = isinstance(error, SelfvoxError) and error.is_silent
        with contextlib.suppress(OSError):
            if not is_silent:
                print(f"selfvox: {_printable(message)}", file=sys.stderr)
        return code
    return 0


def _command(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(cli_help.overview())
    elif arguments[0] == "--version":
        print(f"selfvox {selfvox.__version__}")
    elif arguments[0] not in VERBS:
        raise UsageError(f"unknown command '{arguments[0]}'{did_you_mean(arguments[0], VERBS)}")
    else:
        _run(arguments[0], arguments[1:])


def _run(verb: str, arguments: list[str]) -> None:
    settings = VERBS[verb]
    verb_options = options(settings)
    values, flags = _read(verb, verb_options, arguments)
    if flags.get("version"):
        print(f"selfvox {selfvox.__version__}")
    elif flags.get("help"):
        task = _with_name(values.get("task", {})).get("name")
        print(cli_help.of_verb(verb, task))
    else:
        from_file = safe_yaml.read_yaml(Path(flags["config"])) if "config" in flags else {}
        # before both are joined, so that the message names the file
        check_names([option.name for option in verb_options], from_file, f"{flags.get('config')}: ")
        resolved: Any = resolve(settings, _merged(verb_options, from_file, values))
        if flags.get("print_config"):
            print(to_yaml(resolved), end="")
        else:
            with quiet_console() if flags.get("quiet") else contextlib.nullcontext():
                run_verb(resolved)


# reading


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        if "explicit argument" in message:
            raise UsageError(f"{message.split(':')[0]}: takes no value")
        raise UsageError(f"{message}; write a value that begins with - as --option=-value")


def _read(
    verb: str, verb_options: list[Option], arguments: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings by name (dotted ones as dicts), and general flags (`help`, `config`, ...)."""
    # what follows is taken literally, as in other programs
    end = arguments.index("--") if "--" in arguments else len(arguments)
    dotted, plain = _split_dotted(verb_options, arguments[:end])
    namespace, unknown = _parser(verb, verb_options).parse_known_intermixed_args(plain)
    if unknown:
        raise UsageError(_unknown_option(unknown[0], verb_options))
    parsed = vars(namespace)
    words = [*parsed.pop("words", []), *arguments[end + 1 :]]
    values = {
        option.name: parsed.pop(option.name) for option in verb_options if option.name in parsed
    }
    values |= _positional_values(verb, verb_options, words)
    for name, inner in dotted.items():
        chosen = {"name": values[name]} if name in values else {}
        values[name] = chosen | inner
    return values, parsed


def _parser(verb: str, verb_options: list[Option]) -> _Parser:
    parser = _Parser(
        prog=f"selfvox {verb}",
        add_help=False,
        # an abbreviation could mean another option in a later version
        allow_abbrev=False,
        # only what was given, so that the rest of a file is kept
        argument_default=argparse.SUPPRESS,
    )
    for option in verb_options:
        # --learning-rate and --learning_rate
        spellings = list(dict.fromkeys((cli_help.flag(option.name), f"--{option.name}")))
        if bool in option.kinds:
            parser.add_argument(*spellings, dest=option.name, action=argparse.BooleanOptionalAction)
        elif not option.positional:
            parser.add_argument(*spellings, dest=option.name)
    parser.add_argument("--config")
    parser.add_argument("-h", "--help", action="store_true")
    for flag in ("--print-config", "--quiet", "--debug", "--version"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("words", nargs="*")
    return parser


def _unknown_option(word: str, verb_options: list[Option]) -> str:
    flags = [cli_help.flag(option.name) for option in verb_options if not option.positional]
    hint = did_you_mean(word.split("=")[0], [*flags, "--config", "--help"])
    if "known:" in hint and not word.startswith("--"):
        hint = "; put arguments that begin with - after --"
    return f"no such option '{word}'{hint}"


def _positional_values(
    verb: str, verb_options: list[Option], words: Sequence[str]
) -> dict[str, Any]:
    names = [option.name for option in verb_options if option.positional]
    if names and _takes_list(next(option for option in verb_options if option.positional)):
        # the only argument of such a verb
        return {names[0]: list(words)} if words else {}
    if len(words) > len(names):
        listed = " ".join(names).upper() or "none"
        raise UsageError(f"'{words[len(names)]}' is one argument too many; {verb} takes {listed}")
    return dict(zip(names, words, strict=False))


def _split_dotted(
    verb_options: list[Option], arguments: list[str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Separate dotted options, such as `--task.temperature 0.1`, from all other arguments."""
    dict_names = {option.name for option in verb_options if _takes_dict(option)}
    dotted: dict[str, dict[str, Any]] = {}
    plain: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        name, dot, inner = flag.removeprefix("--").replace("-", "_").partition(".")
        if not flag.startswith("--") or not dot or name not in dict_names:
            plain.append(word)
            continue
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise UsageError(f"{flag}: needs a value, such as {flag} 1 or {flag}=true")
        # only YAML can write lists of lists, such as a network's strides
        is_list = value.startswith("[")
        parsed = safe_yaml.parse_value(value, flag) if is_list else _scalar(value)
        dotted.setdefault(name, {})[inner] = parsed
    return dotted, plain


def _scalar(text: str) -> Any:
    """Convert numbers, lists of numbers, true and false; other text stays text.

    The dataclass of a task knows its types; MONAI's and timm's networks need the values themselves.
    """
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "," in text:
        items = [_scalar(item.strip()) for item in text.split(",")]
        return text if any(isinstance(item, str) for item in items) else items
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def _merged(
    verb_options: list[Option], from_file: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, Any]:
    """The command line overrides the file; options of the same task or network are joined."""
    merged = {**from_file, **values}
    for option in verb_options:
        if _takes_dict(option) and option.name in merged:
            low = {"name": option.default, **_with_name(from_file.get(option.name, {}))}
            high = _with_name(values.get(option.name, {}))
            same_name = high.get("name", low["name"]) == low["name"]
            # options of another task would be refused as unknown
            joined = {**low, **high} if same_name else high
            merged[option.name] = joined if len(joined) > 1 else joined["name"]
    return merged


def _with_name(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"name": value}


def _takes_list(option: Option) -> bool:
    return any(typing.get_origin(kind) is tuple for kind in option.kinds)


def _takes_dict(option: Option) -> bool:
    return any(typing.get_origin(kind) is dict for kind in option.kinds)


# failing


def _exit_code_and_message(error: BaseException) -> tuple[int, str]:
    # messages of libraries may have many lines
    text = " ".join(str(error).split())[:500]
    if is_out_of_memory(error):
        remedy = "use a smaller --batch or --crop, fewer --workers, or a larger machine"
        return ResourceError.exit_code, f"error: out of memory; {remedy}"
    if isinstance(error, SelfvoxError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        number = getattr(error, "signal_number", signal.SIGINT)
        name = signal.Signals(number).name
        # as a shell reports a process that a signal has ended
        return 128 + number, f"stopped by {name}; run the same command again to continue"
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
        message = f"error: {error.filename or 'output'}: the disk is full; free some space"
        return ResourceError.exit_code, message
    if isinstance(error, OSError) and error.errno in NOT_WRITABLE_ERRORS:
        message = f"error: {error.filename}: {error.strerror}; choose a folder you may write to"
        return ResourceError.exit_code, message
    if isinstance(error, OSError) and error.errno is not None:
        # such as of a folder that was removed, or of a disk or a network that fails
        place = error.filename or "a file"
        message = f"error: {place}: {error.strerror}; is the folder still there, and the disk well?"
        return ResourceError.exit_code, message
    return 1, f"internal error: {type(error).__name__}: {text} (--debug shows where)"


def _printable(text: str) -> str:
    """One line without control characters: names of files may contain any."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode()
        for char in text
    )

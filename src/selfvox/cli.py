"""The command line: verbs -> functions. Their options are the settings dataclasses; there is no other list."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import selfvox
from selfvox import cli_help
from selfvox.errors import ResourceError, SelfvoxError, UsageError, did_you_mean
from selfvox.runs.atomic_files import DISK_FULL_ERRORS
from selfvox.settings import safe_yaml
from selfvox.settings.options import Option, check_names, options, resolve, to_yaml

VERBS: dict[str, Callable[..., Any]] = {
    name: value for name, value in vars(selfvox).items() if hasattr(value, "settings")
}
CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        _command(arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except BaseException as error:
        if isinstance(error, SystemExit):
            raise
        if "--debug" in arguments:
            traceback.print_exc()
        code, message = _reason(error)
        print(f"selfvox: {_printable(message)}", file=sys.stderr)
        return code
    return 0


def _command(arguments: list[str]) -> None:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(cli_help.overview(VERBS))
    elif arguments[0] == "--version":
        print(f"selfvox {selfvox.__version__}")
    elif arguments[0] not in VERBS:
        raise UsageError(f"'{arguments[0]}' is no verb{did_you_mean(arguments[0], VERBS)}")
    else:
        _run(arguments[0], arguments[1:])


def _run(verb: str, arguments: list[str]) -> None:
    settings: type = VERBS[verb].settings  # type: ignore[attr-defined]
    known = options(settings)
    given, how = _read(verb, known, arguments)
    if how.get("version"):
        print(f"selfvox {selfvox.__version__}")
    elif how.get("help"):
        print(cli_help.of_verb(verb, VERBS[verb], known, _named(given.get("task", {})).get("name")))
    else:
        file = safe_yaml.read_yaml(Path(how["config"])) if "config" in how else {}
        check_names([option.name for option in known], file, f"{how.get('config')}: ")
        resolved: Any = resolve(settings, _merged(known, file, given))
        if how.get("print_config"):
            print(to_yaml(resolved), end="")
        else:
            VERBS[verb](**vars(resolved))


# reading


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        if "explicit argument" in message:
            raise UsageError(f"{message.split(':')[0]}: takes no value")
        raise UsageError(f"{message}; a value that begins with - is written --option=-value")


def _read(
    verb: str, known: list[Option], arguments: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was given: settings by name (dotted ones as dicts), and how to run (`help`, `config`, ...)."""
    parser = _Parser(
        prog=f"selfvox {verb}",
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    positional = [option for option in known if option.positional]
    for option in known:
        flags = list(dict.fromkeys((cli_help.flag(option.name), f"--{option.name}")))
        if bool in option.kinds:
            parser.add_argument(*flags, dest=option.name, action=argparse.BooleanOptionalAction)
        elif not option.positional:
            parser.add_argument(*flags, dest=option.name)
    parser.add_argument("--config")
    parser.add_argument("-h", "--help", action="store_true")
    for flag in ("--print-config", "--debug", "--version"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("values", nargs="*")
    end = arguments.index("--") if "--" in arguments else len(arguments)
    dotted, plain = _dotted(known, arguments[:end])
    namespace, unknown = parser.parse_known_intermixed_args(plain)
    if unknown:
        flags = [cli_help.flag(option.name) for option in known if not option.positional]
        hint = did_you_mean(unknown[0].split("=")[0], [*flags, "--config", "--help"])
        if "known:" in hint and not unknown[0].startswith("--"):
            hint = "; what begins with - and is no option goes behind --"
        raise UsageError(f"no such option '{unknown[0]}'{hint}")
    found = vars(namespace)
    values = [*found.pop("values", []), *arguments[end + 1 :]]
    if len(values) > len(positional):
        names = " ".join(option.name.upper() for option in positional) or "none"
        raise UsageError(
            f"'{values[len(positional)]}' is one argument too many; {verb} takes {names}"
        )
    how = {
        name: found.pop(name) for name in [*found] if name not in {option.name for option in known}
    }
    found.update((option.name, value) for option, value in zip(positional, values, strict=False))
    for name, inner in dotted.items():
        found[name] = {**({"name": found[name]} if name in found else {}), **inner}
    return found, how


def _dotted(
    known: list[Option], arguments: list[str]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Take `--task.temperature 0.1` and its like out of the arguments."""
    dicts = {option.name for option in known if _takes_dict(option)}
    found: dict[str, dict[str, Any]] = {}
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        name, dot, inner = flag.removeprefix("--").replace("-", "_").partition(".")
        if not flag.startswith("--") or not dot or name not in dicts:
            rest.append(word)
            continue
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise UsageError(f"{flag}: needs a value, such as {flag} 1 or {flag}=true")
        # only YAML can write lists of lists, such as a network's strides
        plain = safe_yaml.value(value, flag) if value.startswith("[") else _scalar(value)
        found.setdefault(name, {})[inner] = plain
    return found, rest


def _scalar(text: str) -> Any:
    """Numbers, lists of numbers, true and false as such, since foreign networks need them; anything else is text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if "," in text:
        parts = [_scalar(part.strip()) for part in text.split(",")]
        return text if any(isinstance(part, str) for part in parts) else parts
    for number in (int, float):
        with contextlib.suppress(ValueError):
            return number(text)
    return text


def _merged(
    known: list[Option], under: Mapping[str, Any], over: Mapping[str, Any]
) -> dict[str, Any]:
    """`over` wins; the sub-options of one and the same task or network are joined."""
    merged = {**under, **over}
    for option in known:
        if _takes_dict(option) and option.name in merged:
            low = {"name": option.default, **_named(under.get(option.name, {}))}
            high = _named(over.get(option.name, {}))
            joined = {**low, **high} if high.get("name", low["name"]) == low["name"] else high
            merged[option.name] = joined if len(joined) > 1 else joined["name"]
    return merged


def _named(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {"name": value}


def _takes_dict(option: Option) -> bool:
    return any(typing.get_origin(kind) is dict for kind in option.kinds)


# failing


def _reason(error: BaseException) -> tuple[int, str]:
    """Exit code and one line."""
    text = " ".join(str(error).split())[:500]
    memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if memory or "can't allocate memory" in text or "not enough memory" in text:
        remedy = "use a smaller --batch or --crop, fewer --workers, or a larger machine"
        return ResourceError.exit_code, f"error: out of memory; {remedy}"
    if isinstance(error, SelfvoxError):
        return error.exit_code, f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "stopped"
    if isinstance(error, OSError) and error.errno in DISK_FULL_ERRORS:
        return (
            ResourceError.exit_code,
            f"error: {error.filename or 'output'}: the disk is full; free some space",
        )
    if isinstance(error, OSError) and error.errno in CLOSED:
        return (
            ResourceError.exit_code,
            f"error: {error.filename}: {error.strerror}; choose a place you may write to",
        )
    return 1, f"internal error: {type(error).__name__}: {text} (--debug shows where)"


def _printable(text: str) -> str:
    """One line that moves no cursor: names of files may hold anything."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "backslashreplace").decode()
        for each in text
    )

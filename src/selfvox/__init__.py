"""selfvox: self-supervised learning on 3D and 2D medical images. The public functions, nothing else.

Each is the command line's verb of the same name, with the same arguments, defaults and help (`help(selfvox.pretrain)`).
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from selfvox.settings import options as _options
from selfvox.settings import verbs as _settings

__version__ = "0.1.0"
__all__ = [
    "demo",
    "download",
    "evaluate",
    "finetune",
    "info",
    "predict",
    "prepare",
    "pretrain",
    "preview",
    "study",
    "tissues",
]

P = ParamSpec("P")
S = TypeVar("S")


def _verb(settings: Callable[P, S]) -> Callable[P, Any]:
    """The function of one verb: its arguments are the settings' fields; its module is imported when it is called."""
    assert isinstance(settings, type)
    name = settings.__name__.lower()
    module = f"selfvox.commands.{name}"

    def verb(*args: P.args, **kwargs: P.kwargs) -> Any:
        known = {key: value for key, value in kwargs.items() if key in parameters}
        given = {**kwargs, **inspect.signature(settings).bind_partial(*args, **known).arguments}
        resolved: Any = _options.resolve(settings, given)  # before the import, which takes seconds
        return getattr(importlib.import_module(module), name)(resolved)

    summary, example = (settings.__doc__ or "").split("Example:\n")
    options, parameters = _options.options(settings), inspect.signature(settings).parameters
    lines = "\n".join(f"    {option.name}: {option.help}." for option in options)
    returns = f"Returns:\n    What `{module}.{name}` does, whose help also says what it raises."
    verb.__name__ = verb.__qualname__ = name
    verb.__doc__ = (
        f"{summary.strip()}\n\nArgs:\n{lines}\n\n{returns}\n\nExample:\n    {example.strip()}\n"
    )
    verb.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [parameters[option.name].replace(annotation=option.type) for option in options]
    )
    verb.settings = settings  # type: ignore[attr-defined]
    return verb


prepare = _verb(_settings.Prepare)
pretrain = _verb(_settings.Pretrain)
finetune = _verb(_settings.Finetune)
predict = _verb(_settings.Predict)
evaluate = _verb(_settings.Evaluate)
study = _verb(_settings.Study)
tissues = _verb(_settings.Tissues)
download = _verb(_settings.Download)
preview = _verb(_settings.Preview)
demo = _verb(_settings.Demo)
info = _verb(_settings.Info)

"""selfvox: self-supervised learning on 3D and 2D medical images.

Each function is the command of the same name, with the same arguments, defaults and help
(`help(selfvox.pretrain)`).
"""

from selfvox.functions import verb_function as _verb_function

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

prepare = _verb_function("prepare")
pretrain = _verb_function("pretrain")
finetune = _verb_function("finetune")
predict = _verb_function("predict")
evaluate = _verb_function("evaluate")
study = _verb_function("study")
tissues = _verb_function("tissues")
download = _verb_function("download")
preview = _verb_function("preview")
demo = _verb_function("demo")
info = _verb_function("info")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

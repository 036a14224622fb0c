"""The settings of each verb: one dataclass per verb, in the file of its name.

A dataclass here is at once the signature of `selfvox.VERB(...)`, the options of `selfvox VERB`,
their help and defaults, and the keys of `settings.yaml`. There is no second list.
"""

from __future__ import annotations

from selfvox.settings.bounds import AtLeastOne, NotNegative, Positive
from selfvox.settings.verbs._checks import parse_shard
from selfvox.settings.verbs._preparation import PreparationSettings
from selfvox.settings.verbs.adopt import Adopt
from selfvox.settings.verbs.atlas import Atlas
from selfvox.settings.verbs.calibrate import Calibrate
from selfvox.settings.verbs.convert import Convert
from selfvox.settings.verbs.correct import Correct
from selfvox.settings.verbs.demo import Demo
from selfvox.settings.verbs.doctor import Doctor
from selfvox.settings.verbs.download import Download
from selfvox.settings.verbs.embed import Embed
from selfvox.settings.verbs.evaluate import Evaluate
from selfvox.settings.verbs.export import Export
from selfvox.settings.verbs.finetune import FINETUNE_STEPS, MIRRORS, Finetune
from selfvox.settings.verbs.info import Info
from selfvox.settings.verbs.lint import Lint
from selfvox.settings.verbs.predict import MAPS, Predict
from selfvox.settings.verbs.prepare import Prepare
from selfvox.settings.verbs.pretrain import DEFAULT_TASK, PRETRAIN_STEPS, Pretrain
from selfvox.settings.verbs.preview import Preview
from selfvox.settings.verbs.report import Report
from selfvox.settings.verbs.study import Study
from selfvox.settings.verbs.suggest import Suggest
from selfvox.settings.verbs.tissues import Tissues

# what other packages import from here; tasks and networks take the bounds for options of their own
__all__ = [
    "DEFAULT_TASK",
    "FINETUNE_STEPS",
    "MAPS",
    "MIRRORS",
    "PRETRAIN_STEPS",
    "VERBS",
    "Adopt",
    "AtLeastOne",
    "Atlas",
    "Calibrate",
    "Convert",
    "Correct",
    "Demo",
    "Doctor",
    "Download",
    "Embed",
    "Evaluate",
    "Export",
    "Finetune",
    "Info",
    "Lint",
    "NotNegative",
    "Positive",
    "Predict",
    "PreparationSettings",
    "Prepare",
    "Pretrain",
    "Preview",
    "Report",
    "Study",
    "Suggest",
    "Tissues",
    "parse_shard",
]

# in the order of the help
VERBS: dict[str, type] = {
    settings.__name__.lower(): settings
    for settings in (
        Lint,
        Prepare,
        Pretrain,
        Finetune,
        Predict,
        Calibrate,
        Evaluate,
        Report,
        Correct,
        Study,
        Atlas,
        Embed,
        Suggest,
        Convert,
        Export,
        Adopt,
        Tissues,
        Download,
        Preview,
        Demo,
        Doctor,
        Info,
    )
}

"""Plug-ins: tasks, encoders and sources of other installed packages, found by entry points."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from selfvox.errors import UsageError

TASKS = "selfvox.tasks"  # each entry point names a subclass of PretextTask
ENCODERS = "selfvox.encoders"  # each names make(spatial_dims, in_channels, **settings)
SOURCES = "selfvox.sources"  # each names a module of the shape that `data/sources` describes

# of a name on the command line; `+` joins tasks, `.` starts an option, `:` a library's network
_NAME = re.compile(r"\w+(-\w+)*")
# of a distribution, as PEP 508 has it: a run's card may come from anywhere
_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,100}[A-Za-z0-9])?")


class Plugin(NamedTuple):
    """An object that an installed package offers under a name."""

    name: str
    package: str
    version: str
    entry_point: importlib.metadata.EntryPoint

    def load(self) -> Any:
        """Import the object.

        Raises:
            UsageError: its module cannot be imported; names the package.
        """
        try:
            return self.entry_point.load()
        except Exception as error:  # code of others: any exception may leave it
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UsageError(
                f"'{self.name}' of the package {self.package} {self.version} cannot be imported "
                f"({reason}); repair or uninstall that package"
            ) from None

    def to_json(self) -> dict[str, str]:
        """Package and version, as a run's card records them."""
        return {"package": self.package, "version": self.version}


def installed_plugins(group: str) -> list[Plugin]:
    """All plug-ins of a group by name, but those with a name that no option can spell."""
    plugins = []
    for entry_point in importlib.metadata.entry_points(group=group):
        distribution = entry_point.dist
        # an entry point without a distribution has no package to name in a card or a message
        if distribution is not None and _NAME.fullmatch(entry_point.name):
            package = distribution.metadata["Name"]
            plugins.append(Plugin(entry_point.name, package, distribution.version, entry_point))
    # help and messages are the same whatever the order of sys.path
    return sorted(plugins, key=lambda plugin: (plugin.name, plugin.package))


def find_plugin(group: str, name: str, built_in: Collection[str]) -> Plugin | None:
    """The plug-in called `name`, not yet imported; None where there is none, or the name is ours.

    Built-in names win: installing a package never changes what a known name means.

    Args:
        group: `TASKS`, `ENCODERS` or `SOURCES`.
        name: as on the command line.
        built_in: selfvox's own names.

    Raises:
        UsageError: two packages claim the name.
    """
    # before the look-up, which reads the metadata of every installed package
    if name in built_in:
        return None
    plugins = [plugin for plugin in installed_plugins(group) if plugin.name == name]
    if len(plugins) > 1:
        packages = " and ".join(plugin.package for plugin in plugins)
        raise UsageError(f"'{name}' is claimed by the packages {packages}; uninstall one of them")
    return plugins[0] if plugins else None


def plugin_of(group: str, value: type) -> Plugin | None:
    """The plug-in with an entry point of this very object; None where there is none."""
    root = value.__module__.partition(".")[0]
    for plugin in installed_plugins(group):
        # imports only what can contain the object
        if plugin.entry_point.module.partition(".")[0] == root and plugin.load() is value:
            return plugin
    return None


def missing_plugin(name: str, recorded: Any) -> str | None:
    """What to say of a name that a run's card records with its package, which is not installed.

    Args:
        name: of the task or encoder.
        recorded: what `Plugin.to_json` gave, as read from a file; None or anything malformed gives
            None.
    """
    # the card may come from anybody; what is malformed is an unknown name
    if not isinstance(recorded, Mapping):
        return None
    package = str(recorded.get("package", ""))
    version = str(recorded.get("version", ""))
    if not _PACKAGE.fullmatch(package) or not _PACKAGE.fullmatch(version):
        return None
    return (
        f"'{name}' is of the package {package} {version}, which is not installed; "
        f"install it: pip install {package}=={version}"
    )

"""Versions of libraries: inside the bounds of this package, and without known faults."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import torch
from packaging.requirements import Requirement

from selfvox.machine.check import Check

# pytorch/pytorch issue 163539: `conv3d` in bf16 is wrong for large maps
_FAULTY_CUDNN = {91002: "9.10.2"}


def check_versions(version_of: Callable[[str], str] = importlib.metadata.version) -> list[Check]:
    """Compare every installed requirement with its bound.

    The bounds leave out the versions with known faults; `pyproject.toml` has the reasons. Package
    managers check them once, and not when another package brings its own version later.

    Args:
        version_of: the installed version of a package.
    """
    checks = []
    count = 0
    for line in importlib.metadata.requires("selfvox") or []:
        requirement = Requirement(line)
        is_optional = requirement.marker is not None and "extra" in str(requirement.marker)
        try:
            version = version_of(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            if not is_optional:
                checks.append(_missing(requirement))
            continue
        count += 1
        # a pre-release inside the bounds is the choice of the user
        if not requirement.specifier.contains(version, prereleases=True):
            checks.append(_outside(requirement, version, is_optional))
    if not checks:
        text = f"{count} packages inside their bounds, torch {version_of('torch')}"
        checks = [Check("versions", "ok", text)]
    return checks


def check_cudnn(version: int | None) -> list[Check]:
    """Whether this cuDNN has a known fault.

    Args:
        version: as `torch.backends.cudnn.version()` gives it; None without CUDA.
    """
    if version not in _FAULTY_CUDNN:
        return []
    name = _FAULTY_CUDNN[version]
    return [
        Check(
            "versions",
            "warn",
            f"cuDNN {name} computes 3D convolutions of large maps in bf16 wrongly",
            "--precision fp32, or pip install -U 'nvidia-cudnn-cu12>=9.15'",
        )
    ]


def cudnn_version() -> int | None:
    """The version of cuDNN that torch uses; None without a CUDA device."""
    if not torch.cuda.is_available():
        return None
    version: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    return version


def _missing(requirement: Requirement) -> Check:
    return Check(
        "versions",
        "fail",
        f"{requirement.name} is not installed",
        f"pip install '{requirement.name}{requirement.specifier}'",
    )


def _outside(requirement: Requirement, version: str, is_optional: bool) -> Check:
    """An installed package outside its bound; one that few commands need is a warning."""
    return Check(
        "versions",
        "warn" if is_optional else "fail",
        f"{requirement.name} {version} is outside {requirement.specifier}",
        f"pip install '{requirement.name}{requirement.specifier}'",
    )

"""Checks of the machine see the faults that they look for."""

from __future__ import annotations

import errno
import fcntl
import importlib.metadata
import mmap
import multiprocessing
import os
import resource
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from selfvox.machine import convolutions, file_system, gpu, limits, versions
from selfvox.machine.check import Check, worst
from selfvox.runs.free_resources import memory_bytes, usable_cores


def outcomes(checks: list[Check]) -> dict[str, str]:
    return {check.about: check.outcome for check in checks}


def refuse(number: int):
    def work(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    return work


# versions


def test_installed_packages_are_inside_their_bounds():
    assert outcomes(versions.check_versions()) == {"versions": "ok"}


@pytest.mark.fault(
    "X18",
    "a torch with known faults",
    "`doctor` fails with the command that mends it",
)
def test_a_version_with_known_faults_fails_with_the_command_that_mends_it():
    def version_of(name: str) -> str:
        return "2.9.1" if name == "torch" else importlib.metadata.version(name)

    (check,) = versions.check_versions(version_of)
    assert check.outcome == "fail"
    assert "torch 2.9.1 is outside >=2.10" in check.text
    assert check.remedy == "pip install 'torch>=2.10'"


def test_an_old_optional_package_is_a_warning_and_an_absent_one_is_nothing():
    def version_of(name: str) -> str:
        if name == "dipy":
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "timm" else importlib.metadata.version(name)

    (check,) = versions.check_versions(version_of)
    assert (check.outcome, check.text) == ("warn", "timm 0.1 is outside >=1.0")


def test_an_absent_package_that_is_required_fails():
    def version_of(name: str) -> str:
        if name == "pydicom":
            raise importlib.metadata.PackageNotFoundError(name)
        return importlib.metadata.version(name)

    (check,) = versions.check_versions(version_of)
    assert (check.outcome, check.text) == ("fail", "pydicom is not installed")


def test_the_cudnn_with_wrong_convolutions_is_a_warning_and_others_are_nothing():
    assert outcomes(versions.check_cudnn(91002)) == {"versions": "warn"}
    assert versions.check_cudnn(91500) == versions.check_cudnn(None) == []


# convolutions


def test_the_cpu_convolves_right_in_both_precisions():
    checks = convolutions.check_convolutions("cpu")
    assert all(check.outcome != "fail" for check in checks)
    assert any("fp32 on cpu: relative error" in check.text for check in checks)


@pytest.mark.fault("X18", "a convolution in bf16 that is wrong", "`doctor` fails with the layer")
@pytest.mark.parametrize("result", [0, 1, 2], ids=["output", "gradient of maps", "of weights"])
@pytest.mark.parametrize("wrong", [1.05, float("nan")])
def test_one_wrong_result_of_one_layer_fails_and_is_named(monkeypatch, result, wrong):
    monkeypatch.setattr(convolutions, "supports_bf16", lambda kind: True)
    right = convolutions.on_device("cpu")

    def compute(layer, precision):
        results = list(right(layer, "fp32"))
        if precision == "bf16" and layer.edge == 2:
            results[result] = results[result] * wrong
        return tuple(results)

    fp32, bf16 = convolutions.check_convolutions("cpu", compute)
    assert fp32.outcome == "ok"
    assert bf16.outcome == "fail"
    assert "a convolution of 2 cubed, stride 1 has a relative error" in bf16.text
    assert "--precision fp32" in bf16.remedy


def test_a_slow_bf16_is_a_warning(monkeypatch):
    monkeypatch.setattr(convolutions, "supports_bf16", lambda kind: True)
    monkeypatch.setattr(convolutions, "LAYERS", convolutions.LAYERS[-1:])
    seconds = {"fp32": 1.0, "bf16": 4.0}
    monkeypatch.setattr(convolutions, "_seconds", lambda kind, precision, _: seconds[precision])
    right = convolutions.on_device("cpu")
    checks = convolutions.check_convolutions("cpu", lambda layer, _: right(layer, "fp32"))
    assert [check.outcome for check in checks] == ["ok", "ok", "warn"]
    assert "4.0 times as long" in checks[-1].text


# cores and memory


@pytest.fixture
def system(tmp_path):
    """The root of a system with files of the kernel, which a test fills."""

    def write(**files: str) -> Path:
        for name, text in files.items():
            file = tmp_path / name.replace("__", "/").replace("DOT", ".")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path

    return write


def test_the_quota_of_any_group_above_limits_the_cores(system, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert usable_cores(system(proc__self__cgroup="0::/job/step\n")) == 16
    assert usable_cores(system(sys__fs__cgroup__job__cpuDOTmax="250000 100000\n")) == 3
    assert usable_cores(system(sys__fs__cgroup__job__step__cpuDOTmax="max 100000\n")) == 3


def test_the_quota_of_the_first_version_of_groups_counts_too(system, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    root = system(
        proc__self__cgroup="4:cpu,cpuacct:/job\n",
        sys__fs__cgroup__cpu__job__cpuDOTcfs_quota_us="-1",
    )
    assert usable_cores(root) == 16
    system(
        sys__fs__cgroup__cpu__job__cpuDOTcfs_quota_us="400000",
        sys__fs__cgroup__cpu__job__cpuDOTcfs_period_us="100000",
    )
    assert usable_cores(root) == 4


def test_the_memory_of_a_container_counts_without_its_cached_files(system):
    root = system(
        proc__meminfo="MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n",
        proc__self__cgroup="0::/job\n",
    )
    assert memory_bytes(root) == 8e6 * 1024
    system(
        sys__fs__cgroup__job__memoryDOTmax="3000000000",
        sys__fs__cgroup__job__memoryDOTcurrent="2000000000",
        sys__fs__cgroup__job__memoryDOTstat="anon 500000000\ninactive_file 1500000000\n",
    )
    assert memory_bytes(root) == 2.5e9


def test_a_limit_of_the_address_space_counts(system, monkeypatch):
    root = system(
        proc__meminfo="MemAvailable: 8000000 kB\n", proc__self__status="VmSize: 1000000 kB\n"
    )
    unlimited = resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3_000_000 * 1024, unlimited))
    assert memory_bytes(root) == 2e6 * 1024


@pytest.mark.parametrize(
    ("threads", "cores", "outcome"),
    [(8, 8, "ok"), (4, 8, "ok"), (16, 8, "warn"), (1, 8, "warn"), (1, 2, "ok"), (1, 1, "ok")],
)
def test_too_many_threads_and_idle_cores_are_a_warning(threads, cores, outcome):
    assert outcomes(limits.check_threads(threads, cores)) == {"threads": outcome}


@pytest.mark.parametrize(
    ("free", "needed", "outcome", "remedy"),
    [
        (16e9, 4e9, "ok", ""),
        (16e9, 14e9, "warn", "--workers 6"),  # of 8: 1.75 GB each, of .7 * 16 GB
        (1e9, 14e9, "fail", "a larger machine"),
        (3e9, None, "warn", "a smaller --batch"),
        (float("inf"), None, "warn", "watch"),
    ],
)
def test_memory_is_compared_with_what_the_workers_need(free, needed, outcome, remedy):
    (check,) = limits.check_memory(free, needed, workers=8)
    assert check.outcome == outcome
    assert remedy in check.remedy


def test_limits_of_open_files_cpu_time_and_file_size_are_warnings(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    expected = {"open files": "warn", "CPU time": "warn", "file size": "warn"}
    assert outcomes(limits.check_process_limits()) == expected
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert outcomes(limits.check_process_limits()) == {"open files": "ok"}


def test_no_private_folder_for_compiled_code_is_a_warning(monkeypatch):
    monkeypatch.setattr(limits, "private_folder", lambda name: None)
    assert outcomes(limits.check_cache()) == {"cache": "warn"}


# disk


def test_a_sound_folder_is_ok_and_left_as_it_was(tmp_path):
    checks = outcomes(file_system.check_file_system(tmp_path))
    assert set(checks) == {"file system", "locks", "fsync", "rename", "mapped files"}
    assert {checks[name] for name in checks if name != "file system"} == {"ok"}
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_fails_with_another_out(tmp_path, monkeypatch):
    monkeypatch.setattr(file_system.tempfile, "mkdtemp", refuse(errno.EROFS))
    (check,) = file_system.check_file_system(tmp_path)
    assert check.outcome == "fail"
    assert "Read-only file system" in check.text
    assert "another --out" in check.remedy


@pytest.mark.fault("E31", "flock answers ENOLCK", "`doctor` warns")
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", refuse(errno.ENOLCK))
    assert outcomes(file_system.check_file_system(tmp_path))["locks"] == "warn"


def test_locks_without_effect_are_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    checks = file_system.check_file_system(tmp_path)
    (lock,) = [check for check in checks if check.about == "locks"]
    assert lock.outcome == "warn"
    assert "no effect" in lock.text


@pytest.mark.fault("E32 F29", "fsync of folders or files fails", "`doctor` warns, or fails")
def test_fsync_of_folders_may_be_missing_and_that_of_files_may_not(tmp_path, monkeypatch):
    fsync = os.fsync

    def of_files_alone(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    assert outcomes(file_system.check_file_system(tmp_path))["fsync"] == "warn"
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    assert outcomes(file_system.check_file_system(tmp_path))["fsync"] == "fail"


def test_rename_that_does_not_replace_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "replace", lambda self, target: target)
    assert outcomes(file_system.check_file_system(tmp_path))["rename"] == "fail"


def test_files_that_cannot_be_mapped_fail(tmp_path, monkeypatch):
    monkeypatch.setattr(mmap, "mmap", refuse(errno.ENODEV))
    assert outcomes(file_system.check_file_system(tmp_path))["mapped files"] == "fail"


def test_a_folder_in_memory_is_a_warning(tmp_path):
    mounts = tmp_path / "mounts"
    escaped = str(tmp_path / "a b").replace(" ", "\\040")
    mounts.write_text(f"dev / ext4 rw 0 0\ntmpfs {escaped} tmpfs rw 0 0\n")
    (tmp_path / "a b" / "deeper").mkdir(parents=True)
    first, *_ = file_system.check_file_system(tmp_path / "a b" / "deeper", mounts)
    assert first.outcome == "warn"
    first, *_ = file_system.check_file_system(tmp_path, mounts)
    assert (first.outcome, first.text[:4]) == ("ok", "ext4")


@pytest.mark.parametrize(
    ("free", "files", "needed", "outcome"),
    [
        (100e9, 10**6, 50e9, "ok"),
        (52e9, 10**6, 50e9, "warn"),
        (40e9, 10**6, 50e9, "fail"),
        (0.1e9, 10**6, 0.0, "fail"),
        (100e9, 399, 50e9, "fail"),
    ],
)
def test_free_space_and_free_files_are_compared_with_the_estimate(
    tmp_path, monkeypatch, free, files, needed, outcome
):
    state = SimpleNamespace(f_bavail=free / 1000, f_frsize=1000, f_files=10**6, f_favail=files)
    monkeypatch.setattr(os, "statvfs", lambda _: state)
    assert outcomes(file_system.check_space(tmp_path, needed, scans=100)) == {"disk": outcome}


def test_little_shared_memory_fails_where_a_gpu_trains_and_not_on_a_cpu(tmp_path, monkeypatch):
    state = SimpleNamespace(f_bavail=64 * 2**20, f_frsize=1)
    monkeypatch.setattr(os, "statvfs", lambda _: state)
    (check,) = file_system.check_shared_memory(500e6, tmp_path)
    assert check.outcome == "fail"
    assert "--shm-size" in check.remedy
    assert outcomes(file_system.check_shared_memory(0, tmp_path)) == {"shared memory": "ok"}


def test_locks_that_processes_cannot_share_fail(monkeypatch):
    context = SimpleNamespace(Lock=refuse(errno.EACCES))
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: context)
    assert outcomes(file_system.check_shared_memory(0)) == {"shared memory": "fail"}


# GPU


def test_a_card_that_torch_cannot_use_is_a_warning_or_a_failure_if_it_was_asked_for(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    card = tmp_path / "nvidia0"
    assert outcomes(gpu.check_gpu("auto", card)) == {"GPU": "ok"}
    assert outcomes(gpu.check_gpu("cuda", card)) == {"GPU": "fail"}
    card.touch()
    assert outcomes(gpu.check_gpu("auto", card)) == {"GPU": "warn"}
    assert outcomes(gpu.check_gpu("cuda", card)) == {"GPU": "fail"}
    assert outcomes(gpu.check_gpu("cpu", card)) == {"GPU": "ok"}


@pytest.mark.parametrize(
    ("free", "architectures", "outcome"),
    [
        (20e9, ["sm_80", "sm_90"], "ok"),
        (5e9, ["sm_80", "sm_90"], "warn"),
        (20e9, ["sm_70"], "fail"),
    ],
)
def test_a_full_card_and_one_without_code_are_seen(monkeypatch, free, architectures, outcome):
    card = SimpleNamespace(name="Toy", major=8, minor=6)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: (free, 24e9))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: architectures)
    assert outcomes(gpu.check_gpu("auto")) == {"GPU": outcome}


def test_the_worst_of_all_lines_counts():
    lines = [Check("a", name, "") for name in ("ok", "warn", "fail", "ok")]
    assert [worst(lines[:count]) for count in range(5)] == ["ok", "ok", "warn", "fail", "fail"]

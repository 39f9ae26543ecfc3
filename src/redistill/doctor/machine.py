"""The description of this machine.

`redistill doctor` prints the description if no recipe is given.
"""

import importlib.metadata
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from packaging.requirements import InvalidRequirement, Requirement

from redistill.doctor.findings import Finding, Findings
from redistill.records import Json
from redistill.runs.record import machine, versions
from redistill.storage import files
from redistill.storage.hub import ask_hub

OPTIONAL = ("huggingface-hub", "bitsandbytes", "gguf", "sentencepiece")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HUB_SECONDS = 3.0
"""Time limit of the request to the model hub in seconds, including the DNS look-up."""
PRODUCT_SECONDS = 0.3
"""Duration of the measurement of matrix products for one dtype, in seconds."""
DISK_BYTES = 32 << 20
"""Size of the file that is written and read to measure the speed of a disk, in bytes."""

Clock = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Free space and speed of the disk that contains a folder.

    Args:
        folder: Path of the folder, which need not exist.
        free_bytes: Free space of the disk, in bytes.
        write_bytes_per_s: Speed of writing one file, including the final fsync; None if the speed was not measured.
        read_bytes_per_s: Speed of reading the same file, which the system may have cached; None if the speed was not measured.
        fault: Reason why the speed was not measured; "" if it was measured.
    """

    folder: str
    free_bytes: int
    write_bytes_per_s: float | None = None
    read_bytes_per_s: float | None = None
    fault: str = ""

    def as_json(self) -> dict[str, Json]:
        """Return the folder, the free space, the speeds and the fault, by field name."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A description of this machine.

    Args:
        versions: Version of Python and of each package, by name.
        about: Processor, memory and accelerators, in the format of run.json.
        devices: Model, memory and compute capability of each accelerator, by device name; only the CPU if there is no
            accelerator.
        products: Speed of matrix products for each dtype, in 10^12 FLOP/s (floating-point operations per second); None if the
            device does not support the dtype.
        disks: Disks of the three folders "hub cache", "redistill cache" and "current folder", by these names.
        hub: One sentence that states whether the model hub answers.
        findings: Packages that are missing or do not satisfy redistill's requirements.
    """

    versions: Mapping[str, str]
    about: Mapping[str, Json]
    devices: Mapping[str, str]
    products: Mapping[str, float | None]
    disks: Mapping[str, Disk]
    hub: str
    findings: tuple[Finding, ...]

    def as_json(self) -> dict[str, Json]:
        """Return the versions, devices, speeds, disks and findings as JSON values.

        The keys are "versions", "machine", "devices", "matmul_flops" (speeds of matrix products in FLOP/s), "disks" (sizes in
        bytes, speeds in bytes per second), "hub" and "findings".
        """
        return {
            "versions": dict(self.versions),
            "machine": dict(self.about),
            "devices": dict(self.devices),
            "matmul_flops": {name: None if speed is None else round(speed * 1e12) for name, speed in self.products.items()},
            "disks": {name: disk.as_json() for name, disk in self.disks.items()},
            "hub": self.hub,
            "findings": [finding.line for finding in self.findings],
        }


def examine_machine(report: Callable[[str], None] = lambda phase: None, clock: Clock = time.perf_counter) -> Machine:
    """Measure and describe this machine, and query the model hub.

    The result has the versions of packages, the devices, the speed of matrix products, and the free space and speed of disks.
    To measure the disks, a file of 32 MiB is written to each cache folder and to the current folder, and then removed.

    Args:
        report: Function that is called with the name of each phase when it starts.
        clock: Function that returns the time of a monotonic clock, in seconds.
    """
    report("versions and devices")
    found = {"python": sys.version.split()[0], **versions(), **_optional()}
    about = machine()
    report("matrix products")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    products = {str(dtype).removeprefix("torch."): product_speed(dtype, device, clock) for dtype in DTYPES}
    report("disks")
    disks = {name: measure_disk(folder, clock) for name, folder in folders().items()}
    report("hub")
    return Machine(
        versions=found,
        about=about,
        devices=devices(),
        products=products,
        disks=disks,
        hub=ask_hub(HUB_SECONDS).text,
        findings=tuple(unmet_requirements()),
    )


def _optional() -> dict[str, str]:
    found = {}
    for name in OPTIONAL:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def unmet_requirements() -> Findings:
    """Return a finding for each required package that is missing or unsuitable.

    A package is unsuitable if its version does not satisfy redistill's requirement.
    """
    try:
        needed = importlib.metadata.requires("redistill") or []
    except importlib.metadata.PackageNotFoundError:  # redistill runs from a checkout that is not installed
        return []
    found = []
    for text in needed:
        try:
            requirement = Requirement(text)
        except InvalidRequirement:
            continue
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "none"
        if version == "none" or not requirement.specifier.contains(version, prereleases=True):
            found.append(
                Finding(
                    what=f"the package {requirement.name}",
                    measured=f"version {version}",
                    right=str(requirement.specifier) or "any version",
                    remedy=f"pip install '{requirement}'",
                )
            )
    return found


def devices() -> dict[str, str]:
    """Return a description of each accelerator, by device name such as "cuda:0".

    The description states model, memory and compute capability. Without an accelerator the only entry describes the CPU.
    """
    found = {}
    for number in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(number)
        found[f"cuda:{number}"] = f"{about.name}, {about.total_memory / 1e9:.0f} GB, capability {about.major}.{about.minor}"
    return found or {"cpu": f"{torch.get_num_threads()} threads, no accelerator"}


def product_speed(dtype: torch.dtype, device: torch.device, clock: Clock) -> float | None:
    """Return the speed of matrix products, in 10^12 FLOP/s.

    The result is None if the device does not support the dtype.
    """
    size = 4096 if device.type == "cuda" else 512
    try:
        left, right = (torch.full((size, size), 0.5, dtype=dtype, device=device) for _ in range(2))
        torch.mm(left, right)
        _wait(device)
        started, count = clock(), 0
        while count == 0 or (clock() - started < PRODUCT_SECONDS and count < 1000):
            torch.mm(left, right)
            _wait(device)
            count += 1
        seconds = clock() - started
    except RuntimeError:
        return None
    return 2 * size**3 * count / max(seconds, 1e-9) / 1e12


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def folders() -> dict[str, Path]:
    """Return the folders whose disks are measured, by name.

    These are the hub cache, the redistill cache and the current folder.
    """
    from huggingface_hub import constants

    cache = Path(os.environ.get("REDISTILL_CACHE", Path.home() / ".cache" / "redistill"))
    return {"hub cache": Path(constants.HF_HUB_CACHE), "redistill cache": cache, "current folder": Path.cwd()}


def measure_disk(folder: Path, clock: Clock = time.perf_counter) -> Disk:
    """Measure the free space and the speed of the disk that contains a folder.

    A temporary file is written to the folder and read. If the folder does not exist, its nearest existing parent is used.
    """
    there = folder
    while not there.is_dir() and there != there.parent:
        there = there.parent
    free = files.disk.free_bytes(there)
    if free < 4 * DISK_BYTES:
        return Disk(folder=str(folder), free_bytes=free, fault="too little space to measure the speed")
    path = there / f".redistill-doctor-{uuid.uuid4().hex}"
    data = os.urandom(DISK_BYTES)
    try:
        started = clock()
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        written = clock()
        path.read_bytes()
        read = clock()
    except OSError as error:
        return Disk(folder=str(folder), free_bytes=free, fault=f"not writable ({error.strerror})")
    finally:
        files.disk.remove(path)
    write, again = DISK_BYTES / max(written - started, 1e-9), DISK_BYTES / max(read - written, 1e-9)
    return Disk(folder=str(folder), free_bytes=free, write_bytes_per_s=write, read_bytes_per_s=again)

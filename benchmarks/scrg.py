"""What revising drafts (SCRG) costs on top of writing them.

    python -m benchmarks.scrg --model models/smollm2 --prompts data.jsonl [--quick]

The teacher is the model named, the student eight of its layers; 8 drafts of 192 tokens, nothing ends a text.  Two questions:

`half`  Every error stands in the middle of its draft; what does the tail cost, finding the error left aside?
`real`  The teacher reads the drafts, errors are where Eq. 3 finds them, and the tails are written.  Positions are printed;
        `detection` is the part before the tails.  An untrained student errs at once: then the tail is the whole response.

Each is compared with what else one could do: write the whole response again, or write the tail after reading its prefix again.
All figures are shares of what writing the drafts costs.
"""

import gc
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks import measuring
from benchmarks.generation import NUM_LAYERS, truncated
from redistill.contracts import Generation, GenerationRequest, Sampling, TokenSequence
from redistill.data.reader import read_records
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.generation.local import LOCAL, LocalEngine
from redistill.generation.prefix import PrefixReader
from redistill.models.families import head
from redistill.models.load import ModelConfig, load_model
from redistill.policies import GoldBatches, PolicyTools, Revised, Revision, Scorer
from redistill.policies.revised import RevisedSource
from redistill.policies.source import Stateless
from redistill.processes.memory import Halving
from redistill.teachers.local import LocalTeacher

Work = Callable[[], object]


class Written(Stateless):
    """A source that gives the drafts that are there."""

    def __init__(self, drafts: Sequence[TokenSequence]) -> None:
        self._drafts = drafts

    def sequences(self, step: int, items: Sequence[object]) -> list[TokenSequence]:
        return list(self._drafts)


class Silent:
    """An engine that generates nothing."""

    capabilities = LOCAL

    def sync(self, student: nn.Module, step: int) -> None:
        """There is nothing to take over."""

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        return [Generation(token_ids=(), finished=False)] * len(requests)


class Scene:
    """A teacher, a student, and prompts to answer."""

    def __init__(self, teacher: nn.Module, examples: Sequence[Any], dtype: torch.dtype, new_tokens: int) -> None:
        self.student = truncated(teacher, dtype)
        self.device = next(self.student.parameters()).device
        self.vocabulary = head(self.student).num_classes
        # One that remembers, as runs have it, and one that never does.
        self.teacher, self.forgetful = (
            LocalTeacher(teacher.to(dtype), vocabulary=self.vocabulary, device=self.device) for _ in range(2)
        )
        self.examples, self.new_tokens = examples, new_tokens
        self.revisions: list[Revision] = []
        self.engine = LocalEngine(
            self.student, vocabulary=None, end_ids=(), pad_id=0, batch_size=Halving("batch size", len(examples))
        )
        self._reader = PrefixReader(self.student)

    def drafts(self) -> list[TokenSequence]:
        """Each prompt answered."""
        requests = [
            GenerationRequest(
                prompt_ids=e.prompt_ids, max_new_tokens=self.new_tokens, seed=10, stream=("response", 0, e.sample)
            )
            for e in self.examples
        ]
        return [
            TokenSequence(
                sample=example.sample,
                token_ids=example.prompt_ids + generation.token_ids,
                supervised=(False,) * len(example.prompt_ids) + (True,) * self.new_tokens,
                origin="student",
            )
            for example, generation in zip(self.examples, self.engine.generate(requests, Sampling()), strict=True)
        ]

    def tails(self, drafts: Sequence[TokenSequence], positions: Sequence[int], token: int = 7) -> None:
        """Write on from each error's place."""
        requests = [
            GenerationRequest(
                prompt_ids=draft.prompt_ids + draft.response_ids[:position] + (token,),
                max_new_tokens=self.new_tokens - position - 1,
                seed=10,
                stream=("tail", 0, draft.sample),
            )
            for draft, position in zip(drafts, positions, strict=True)
        ]
        self.engine.generate(requests, Sampling())

    def revise(self, drafts: Sequence[TokenSequence], *, with_tails: bool = True) -> None:
        """SCRG as the policy has it: read, locate, correct, write on."""
        self.revisions.clear()
        tools = PolicyTools(
            engine=self.engine if with_tails else Silent(),
            scorer=Scorer(
                self._read_student,
                self.forgetful if self.engine.memory is None else self.teacher,
                pad_id=0,
                batch_size=len(drafts),
                device=self.device,
            ),
            gold=GoldBatches(self.examples, batch_size=len(self.examples), seed=0),
            updates=1,
            end_ids=(-1,),
            response_tokens=self.new_tokens,
            batch_size=len(drafts),
            seed=10,
            on_revision=self.revisions.append,
        )
        RevisedSource(Revised(), Written(drafts), tools).sequences(0, [])

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """As a run has it while a step's sequences are drawn."""
        with self.teacher.remembering(), self.engine.remembering():
            yield

    @torch.no_grad()
    def _read_student(self, batch: Any) -> tuple[torch.Tensor, Any]:
        memory = self.engine.memory
        hidden_ND = self._reader.rows(
            batch.input_ids_BT, batch.attention_mask_BT, batch.position_N, memory, remember=memory is not None
        )
        return hidden_ND, head(self.student, self.vocabulary)


def measured(scene: Scene, repetitions: int) -> dict[str, Any]:
    """Seconds of each way, and the shares of a draft's cost that are asked for."""
    drafts = scene.drafts()
    half = [scene.new_tokens // 2] * len(drafts)
    scene.revise(drafts)
    positions = [revision.position for revision in scene.revisions]

    def remembering(work: Work) -> Work:
        def whole() -> None:
            with scene.remembering():
                scene.drafts()
                work()

        return whole

    ways: dict[str, Work] = {
        "draft": scene.drafts,
        "half": remembering(lambda: scene.tails(drafts, half)),
        "half, prefix read again": lambda: scene.tails(drafts, half),
        "detection": remembering(lambda: scene.revise(drafts, with_tails=False)),
        "real": remembering(lambda: scene.revise(drafts)),
        "real, prefix read again": lambda: scene.revise(drafts),
    }
    found = measuring.interleaved(ways, repetitions)
    cost = {name: each["median"] / found["draft"]["median"] for name, each in found.items()}
    extra = {
        name: share - 1 if name in {"half", "detection", "real"} else share for name, share in cost.items() if name != "draft"
    }
    extra["half, whole response again"] = 1.0
    places = sorted(position / scene.new_tokens for position in positions)
    return {
        "seconds": found,
        "extra": extra,
        "positions": {"number": len(places), "quartiles": statistics.quantiles(places, n=4), "mean": statistics.mean(places)},
    }


def main() -> None:
    chosen = measuring.arguments(
        str(__doc__),
        model={"required": True, "help": "a folder or a hub name"},
        prompts={"required": True, "help": "a file of training rows; their prompts are answered"},
    )
    batch, prompt, new_tokens = (4, 64, 8) if chosen.quick else (8, 64, 192)
    results: dict[str, Any] = {"batch": batch, "prompt_tokens": prompt, "new_tokens": new_tokens, "student_layers": NUM_LAYERS}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        teacher, tokenizer = load_model(ModelConfig(model=chosen.model))
        records, _ = read_records(chosen.prompts)
        examples, _ = tokenize_training(records, tokenizer, TokenizeConfig(prompt_tokens=prompt, response_tokens=new_tokens), 0)
        scene = Scene(teacher, examples[:batch], dtype, new_tokens)
        results[name] = measured(scene, chosen.repetitions or (1 if chosen.quick else 5))
        print(name, {way: round(share, 3) for way, share in results[name]["extra"].items()}, flush=True)
        del scene, teacher
        gc.collect()
    measuring.write("scrg", results, quick=chosen.quick)


if __name__ == "__main__":
    main()

"""What finding the first error of a draft costs, if the draft is generated in chunks.

    python -m benchmarks.first_error --model models/smollm2 --prompts data.jsonl [--student runs/sample/model] [--quick]

The teacher is the model named.  The student is another model, or else twelve of the teacher's layers, untrained.  There are 8
drafts of 192 tokens; nothing ends a text.  The threshold is the 80th percentile of the divergences of all tokens.  Questions:

`find`  Generation, teacher and detection, the tail apart: shares of what they cost with whole drafts.
`all`   The whole revision with chunks of 16 tokens and k tokens of the teacher from the error on, for k = 1, 4, 16 and all of
        them; and with whole drafts and k = 1.  Shares of the same cost.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import measuring
from redistill.contracts import Batch, Generation, GenerationRequest, Sampling
from redistill.data.reader import read_records
from redistill.data.tokenize import TokenizeConfig, tokenize_training
from redistill.generation.local import LOCAL, LocalEngine
from redistill.generation.prefix import PrefixReader
from redistill.models.families import head
from redistill.models.initialise import student_from_layers
from redistill.models.load import ModelConfig, load_model
from redistill.policies import GoldBatches, PolicyTools, Revised, Revision, Scorer, StudentGenerated
from redistill.policies.draft_scores import DraftScores
from redistill.processes.memory import Halving
from redistill.teachers.local import LocalTeacher

LAYERS = (0, 1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 29)
CHUNKS, CONTINUED, USUAL = (4, 8, 16, 32), (1, 4, 16, "all"), 16


class WithoutTails:
    """An engine that generates drafts only."""

    capabilities = LOCAL

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    def sync(self, student: nn.Module, step: int) -> None:
        """The engine uses the student itself."""

    def generate(self, requests: Sequence[GenerationRequest], sampling: Sampling) -> list[Generation]:
        if requests[0].stream[0] == "response":
            return self._engine.generate(requests, sampling)
        return [Generation(token_ids=(), finished=False)] * len(requests)


class Scene:
    """A teacher, a student, and prompts to answer."""

    def __init__(self, teacher: nn.Module, student: nn.Module, examples: Sequence[Any], new_tokens: int) -> None:
        self.student = student.eval()
        self._vocabulary, size = head(self.student).num_classes, Halving("batch size", len(examples))
        own = {"vocabulary": None, "end_ids": (), "pad_id": 0, "batch_size": size}
        self.engine, reading = LocalEngine(self.student, **own), LocalEngine(teacher, **own)
        self.teacher = LocalTeacher(teacher, vocabulary=self._vocabulary, device="cpu", engine=reading)
        self.scorer = Scorer(self._read_student, self.teacher, pad_id=0, batch_size=len(examples))
        self.gold = GoldBatches(examples, batch_size=len(examples), seed=0)
        self.new_tokens, self.revisions = new_tokens, list[Revision]()
        self._reader = PrefixReader(self.student)

    def tools(self, engine: Any) -> PolicyTools:
        return PolicyTools(
            engine=engine,
            teacher=self.teacher,
            scorer=self.scorer,
            gold=self.gold,
            updates=1,
            end_ids=(-1,),
            response_tokens=self.new_tokens,
            batch_size=len(self.gold.items(0)),
            seed=10,
            on_revision=self.revisions.append,
        )

    def threshold(self) -> float:
        """The 80th percentile of KL(q, p) over the tokens of whole drafts."""
        with self.remembering():
            drafts = StudentGenerated().bind(self.tools(self.engine)).sequences(0, self.gold.items(0))
            score_BT, _ = DraftScores(self.scorer, "first", "teacher_sample", 10).of(0, 0, drafts)
        return float(np.quantile(score_BT.numpy(), 0.8))

    def way(self, node: Revised, *, with_tails: bool) -> Callable[[], object]:
        """A revision as a run has it in one step."""

        def work() -> object:
            self.revisions.clear()
            with self.remembering():
                tools = self.tools(self.engine if with_tails else WithoutTails(self.engine))
                return node.bind(tools).sequences(0, self.gold.items(0))

        return work

    @contextmanager
    def remembering(self) -> Any:
        with self.teacher.remembering(), self.engine.remembering():
            yield
        self.teacher.release()

    @torch.no_grad()
    def _read_student(self, batch: Batch) -> tuple[torch.Tensor, Any]:
        inputs = batch.input_ids_BT, batch.attention_mask_BT, batch.position_N
        return self._reader.rows(*inputs, self.engine.memory, remember=True), head(self.student, self._vocabulary)


def measured(scene: Scene, repetitions: int) -> dict[str, Any]:
    threshold = scene.threshold()

    def first(**settings: Any) -> Revised:
        return Revised(detection="first", threshold_nats=threshold, **settings)

    ways = {"find, whole drafts": scene.way(first(chunk_tokens="all"), with_tails=False)}
    for chunk in CHUNKS:
        ways[f"find, chunks of {chunk}"] = scene.way(first(chunk_tokens=chunk), with_tails=False)
    ways["all, whole drafts, k = 1"] = scene.way(first(chunk_tokens="all"), with_tails=True)
    for tokens in CONTINUED:
        ways[f"all, k = {tokens}"] = scene.way(first(chunk_tokens=USUAL, teacher_tokens=tokens), with_tails=True)
    whole = {s.sample: s.token_ids for s in scene.way(first(chunk_tokens="all"), with_tails=True)()}
    chunked = {s.sample: s.token_ids for s in scene.way(first(chunk_tokens=USUAL), with_tails=True)()}
    positions = sorted(revision.position for revision in scene.revisions)
    found = measuring.interleaved(ways, repetitions)
    return {
        "threshold_nats": threshold,
        "positions": positions,
        "equal texts": f"{sum(chunked[sample] == ids for sample, ids in whole.items())} of {len(whole)}",
        "seconds": found,
        "shares": measuring.ratios(found, "find, whole drafts"),
    }


def main() -> None:
    chosen = measuring.arguments(
        str(__doc__),
        model={"required": True, "help": "a folder or a hub name"},
        prompts={"required": True, "help": "a file of training rows; their prompts are answered"},
        student={"help": "folder of a trained student"},
    )
    batch, prompt, new_tokens = (4, 64, 24) if chosen.quick else (8, 64, 192)
    teacher, tokenizer = load_model(ModelConfig(model=chosen.model))
    records, _ = read_records(chosen.prompts)
    examples, _ = tokenize_training(records, tokenizer, TokenizeConfig(prompt_tokens=prompt, response_tokens=new_tokens), 0)
    student = load_model(ModelConfig(model=chosen.student))[0] if chosen.student else student_from_layers(teacher, LAYERS)
    scene = Scene(teacher, student, examples[:batch], new_tokens)
    results = measured(scene, chosen.repetitions or (1 if chosen.quick else 5))
    sizes = {"batch": batch, "prompt_tokens": prompt, "new_tokens": new_tokens, "trained": bool(chosen.student)}
    measuring.write("first_error", {**sizes, **results}, quick=chosen.quick)


if __name__ == "__main__":
    main()

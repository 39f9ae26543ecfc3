"""The evaluator: scores a model on test sets, and on validation data.

Scores on validation data select the best checkpoint.

Each batch of answers is written to disk when it is generated, so that an interrupted evaluation resumes.  Random numbers are
keyed by (evaluation seed, data set, record), so that no answer depends on batches, processes or interruptions.
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from redistill.contracts import ONE_PROCESS, Engine, Example, Processes, Sampling, Teacher
from redistill.data.tokenize import TokenizeConfig, tokenize_prompts
from redistill.evaluation.answers import Answerer, Row, part, response_scores
from redistill.evaluation.folder import RESPONSES, ProgressCall, ResponseFiles, Tally, check_settings
from redistill.evaluation.gold import gold_examples, teacher_forced
from redistill.evaluation.scores import SCORES, EvaluationConfig, checked, described, earlier_scores, settings
from redistill.generation.local import LocalEngine
from redistill.interfaces import Autocast, Tokenizer
from redistill.models.load import end_token_ids
from redistill.processes.memory import Halving
from redistill.records import Json, Metric, Record, rate
from redistill.storage import files


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates one model: the student of a run, or any other model.

    Args:
        model: A causal language model, on its device.
        tokenizer: The model's tokenizer.
        engine: Generates the answers with the model's weights.
        config: How answers to test sets are sampled, and in which batch size.
        tokens: How prompts are tokenised; an answer has at most `response_tokens` tokens.
        teacher: Teacher for KL and agreement on the gold answers (the first reference of each prompt).  If None, these scores
            are omitted.
        vocabulary: Number of token ids shared with the teacher; only ids below this number are used.  If None, all token ids of
            the model are used.
        processes: Rank and number of processes; each process answers a part of the prompts.
        autocast: Function that returns the autocast context in which the model runs.
    """

    model: nn.Module
    tokenizer: Tokenizer
    engine: Engine
    config: EvaluationConfig
    tokens: TokenizeConfig
    teacher: Teacher | None = None
    vocabulary: int | None = None
    processes: Processes = ONE_PROCESS
    autocast: Autocast = nullcontext

    def evaluate(
        self,
        datasets: Mapping[str, Sequence[Record]],
        folder: Path,
        *,
        label: str,
        metrics: Mapping[str, Sequence[Metric]],
        progress: ProgressCall | None = None,
    ) -> dict[str, Json]:
        """Answer every prompt with every seed, and write the scores to a folder.

        Answers of an interrupted call, or of a call with other metrics, are reused if the settings are the same.

        Args:
            datasets: Records by name of the data set; each record has references and a unique id.
            folder: The evaluation folder, for settings.json, responses/ and scores.json.
            label: Name of this model in the report, such as "student".
            metrics: Metrics by name of the data set, at least one each; the first is its primary metric.
            progress: Function that receives, after every batch, three numbers of this process: answers done, all answers, and
                generated tokens.

        Returns:
            The content of scores.json.  Each data set lists under "metrics" its metrics with titles, units and directions.
            eos_rate, distinct_1, distinct_2 and agreement are fractions in [0, 1]; cross_entropy and kl (forward, from the
            teacher) are nats per gold token; lengths include the end token.

        Raises:
            CheckpointError: the folder contains answers of another model or of other settings.
            DataError: a data set is empty, or one of its records has no reference or a duplicate id.
        """
        config = self.config
        records = {name: checked(name, list(found)[: config.limit]) for name, found in datasets.items()}
        chosen = {name: self._rows(found) for name, found in records.items()}
        self.processes.gather([])  # barrier that reports signals; after it, some processes may have no answers to generate
        mine = settings(self.model, label, config, self.tokens, chosen)
        check_settings(folder, mine)
        shown = {name: {metric.name: metric.described for metric in metrics[name]} for name in chosen}
        held, is_complete = earlier_scores(folder / SCORES, mine, shown, needs_kl=self.teacher is not None)
        if is_complete:
            return held
        tally = Tally(progress, len(config.seeds) * sum(len(part(rows, self.processes)) for rows in chosen.values()))
        responses = ResponseFiles(self._answerer(config.sampling), tally, folder / RESPONSES, self.processes, config.batch_size)
        scores: dict[str, Json] = {}
        with self.autocast():
            for name, rows in chosen.items():
                by_seed = {
                    str(seed): response_scores(responses.complete(name, rows, seed, metrics[name]), metrics[name])
                    for seed in config.seeds
                }
                forced = self._teacher_forced(gold_examples(records[name], self.tokenizer, self.tokens))
                scores[name] = {"prompts": len(rows), "metrics": shown[name], "seeds": by_seed, "teacher_forced": forced}
        # If this call generated no answer, the speed is that of the earlier call, which generated the answers.
        speed = rate(tally.tokens, tally.seconds) if tally.tokens else held.get("tokens_per_s")
        result = {**described(self.model, label), "tokens_per_s": speed, "settings": mine, "datasets": scores}
        if self.processes.is_main:
            files.write_json(folder / SCORES, result)
        return result

    def validate(
        self, records: Sequence[Record], examples: Sequence[Example], *, metrics: Sequence[Metric], seed: int
    ) -> dict[str, float]:
        """Score the current model on validation data.

        One answer per prompt is sampled and scored.  Teacher-forced scores of the gold answers are computed as well.

        Sampling uses temperature 1, without top-k, top-p and n-gram blocking, as in the papers' model selection.  Every call
        uses the same random numbers, so that two checkpoints differ only in their weights.

        Args:
            records: The validation prompts.
            examples: The gold sequences: each prompt with its gold answer (its answer in the data).
            metrics: Metrics of the answers.
            seed: The run's seed.

        Returns:
            The results of `response_scores` and `teacher_forced`, in one dictionary.
        """
        rows = self._rows(part(records, self.processes))
        with self.autocast():
            answers = self._answerer(Sampling()).lines("validation", rows, seed, metrics)
            return response_scores(self.processes.gather(answers), metrics) | self._teacher_forced(examples)

    def _rows(self, records: Sequence[Record]) -> list[Row]:
        """Return each record with the token ids of its prompt."""
        return list(zip(records, tokenize_prompts(records, self.tokenizer, self.tokens), strict=True))

    def _answerer(self, sampling: Sampling) -> Answerer:
        end_ids = end_token_ids(self.model, self.tokenizer)
        return Answerer(self.engine, self.tokenizer, sampling, self.tokens.response_tokens, end_ids)

    def _teacher_forced(self, examples: Sequence[Example]) -> dict[str, float]:
        """Return the teacher-forced scores of gold sequences.

        Each process computes the scores of a part of the sequences.
        """
        size = self.config.batch_size
        return teacher_forced(
            self.model, self.teacher, examples, batch_size=size, vocabulary=self.vocabulary, processes=self.processes
        )


def build_local_engine(
    model: nn.Module, tokenizer: Tokenizer, config: EvaluationConfig, vocabulary: int | None = None
) -> LocalEngine:
    """Build an engine that generates answers with `model` in this process.

    Only token ids below `vocabulary` are sampled.  If `vocabulary` is None, all token ids are sampled.
    """
    return LocalEngine(
        model,
        vocabulary=vocabulary,
        end_ids=end_token_ids(model, tokenizer),
        pad_id=tokenizer.pad_token_id or 0,
        batch_size=Halving("evaluation.batch_size", config.batch_size),
    )

"""SCRG's options and edge cases, with two models whose text and logits at every position are scripted."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from redistill.contracts import Batch, Example, Rollout, TokenSequence
from redistill.errors import ConfigError
from redistill.policies import GoldBatches, GoldItem, Mixed, Policy, PolicyTools, Revised, Revision, Scorer, gold_sequence
from redistill.policies.revised import RevisedSource
from redistill.policies.source import Stateless
from redistill.randomness import generator
from redistill.records import Instruction, Record
from redistill.vocab_pass import Head
from tests.policies.fixture import FakeEngine

VOCABULARY, EOS, BUDGET = 8, 0, 4
SAME = 5  # the scripted student's token where none is given
RECORD = Record(record_id="r", prompt=Instruction("?"), references=("!",))


@dataclass
class Script:
    """Drafts and tails of the student, and both models' logits by response position; the end token fills short rows, too.

    `teacher` and `student` are [T, V] for each sample; the student's are 0 unless given.
    """

    drafts: dict[int, tuple[int, ...]]
    teacher: dict[int, np.ndarray]
    student: dict[int, np.ndarray] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    readings: int = 0
    revisions: list[Revision] = field(default_factory=list)
    teachers_tail: tuple[int, ...] = (7,)

    def tools(self) -> PolicyTools:
        return PolicyTools(
            engine=FakeEngine(self.generate),
            teacher=FakeEngine(self.generate),
            scorer=Scorer(
                lambda batch: (self.logits(batch, self.student), Head(torch.eye(VOCABULARY, dtype=torch.float64))),
                SimpleNamespace(rows=self.rows, prepare=lambda sequences: None),
                pad_id=EOS,
                batch_size=2,
            ),
            gold=GoldBatches(self.examples(), batch_size=len(self.drafts), seed=0),
            updates=10,
            end_ids=(EOS,),
            response_tokens=BUDGET,
            batch_size=2,
            seed=0,
            on_revision=self.revisions.append,
        )

    def examples(self) -> list[Example]:
        return [
            Example(sample=i, record=RECORD, prompt_ids=(1, 2), token_ids=(1, 2, 3), supervised=(False, False, True))
            for i in self.drafts
        ]

    def generate(self, requests: Sequence[Any], sampling: Any) -> list[Any]:
        self.requests += [request for request in requests if request.stream[0] != "response"]
        return [SimpleNamespace(token_ids=self.text(request), finished=False) for request in requests]

    def text(self, request: Any) -> tuple[int, ...]:
        purpose, _, sample, *_ = request.stream
        if purpose == "response":
            return self.drafts[sample]
        return ((SAME,) if purpose == "tail" else self.teachers_tail)[:1] * request.max_new_tokens

    def rows(self, batch: Batch) -> Any:
        self.readings += 1
        logp_NV = self.logits(batch, self.teacher).log_softmax(-1)
        return lambda rows: logp_NV[rows]

    def logits(self, batch: Batch, given: dict[int, np.ndarray]) -> torch.Tensor:
        places = [(batch.sequence_N[:n] == b).sum() for n, b in enumerate(batch.sequence_N)]
        samples = [batch.samples[b] for b in batch.sequence_N]
        zeros = np.zeros((BUDGET, VOCABULARY))
        return torch.from_numpy(np.stack([given.get(sample, zeros)[i] for sample, i in zip(samples, places, strict=True)]))

    def sequences(self, node: Revised, step: int = 0) -> list[TokenSequence]:
        items = [GoldItem(example, gold_sequence(example)) for example in self.examples()]
        return node.bind(self.tools()).sequences(step, items)


def logits_of(*wanted: tuple[int, float]) -> np.ndarray:
    """A teacher's logits: its token at each position, and that token's margin, with which the divergence grows."""
    return np.stack([weight * np.eye(VOCABULARY)[token] for token, weight in wanted])


def responses(sequences: Sequence[TokenSequence]) -> list[tuple[int, ...]]:
    return [sequence.response_ids for sequence in sequences]


ARGMAX = Revised(teacher_token="argmax")
TWO_ERRORS = logits_of((6, 4), (SAME, 1), (6, 9), (6, 3))


# --- the edge cases of one correction -----------------------------------------------------------------------------------


def test_a_draft_is_unchanged_if_no_token_differs():
    script = Script({0: (SAME, SAME)}, {0: logits_of((SAME, 9), (SAME, 1))})
    (sequence,) = script.sequences(ARGMAX)
    assert (sequence.origin, sequence.response_ids) == ("student", (SAME, SAME))
    assert not script.requests and not script.revisions


def test_the_teachers_end_token_ends_the_response():
    script = Script({0: (SAME, SAME, SAME)}, {0: logits_of((SAME, 1), (EOS, 9), (SAME, 1))})
    (sequence,) = script.sequences(ARGMAX)
    assert (sequence.origin, sequence.response_ids) == ("revised", (SAME, EOS))
    assert not script.requests


def test_the_students_end_token_may_be_the_error_and_the_response_continues():
    script = Script({0: (SAME, EOS)}, {0: logits_of((SAME, 1), (6, 9))})
    assert responses(script.sequences(ARGMAX)) == [(SAME, 6, SAME, SAME)]
    assert [request.max_new_tokens for request in script.requests] == [2]


def test_the_tail_has_the_remaining_budget():
    script = Script({0: (SAME,) * BUDGET}, {0: logits_of((6, 9), (SAME, 1), (SAME, 1), (SAME, 1))})
    assert responses(script.sequences(ARGMAX)) == [(6, SAME, SAME, SAME)]
    (request,) = script.requests
    assert (request.prompt_ids, request.max_new_tokens) == ((1, 2, 6), BUDGET - 1)


def test_a_truncated_response_may_be_corrected_at_its_last_token_without_an_end_token():
    script = Script({0: (SAME,) * BUDGET}, {0: logits_of((SAME, 1), (SAME, 1), (SAME, 1), (6, 9))})
    (sequence,) = script.sequences(ARGMAX)
    assert sequence.response_ids == (SAME, SAME, SAME, 6) and sequence.num_targets == BUDGET
    assert not script.requests


def test_drafts_of_different_lengths_have_their_own_errors():
    drafts = {0: (SAME, EOS), 1: (SAME,) * 4, 2: (EOS,)}
    teacher = {0: logits_of((6, 2), (EOS, 9)), 1: logits_of((SAME, 1), (6, 2), (6, 7), (SAME, 9)), 2: logits_of((EOS, 1))}
    script = Script(drafts, teacher)
    assert responses(script.sequences(ARGMAX)) == [(6, SAME, SAME, SAME), (SAME, SAME, 6, SAME), (EOS,)]
    assert [(revision.sample, revision.position) for revision in script.revisions] == [(0, 0), (1, 2)]


def test_spans_and_rollouts_of_a_draft_are_removed_when_it_is_revised():
    script = Script({0: (SAME,)}, {0: logits_of((6, 9), (SAME, 1), (SAME, 1), (SAME, 1))})
    fields = {"spans": ((0, 1),), "rollout": Rollout(old_logprobs=(-1.0,), advantages=(0.0,), importances=(1.0,))}
    draft = TokenSequence(sample=0, token_ids=(1, SAME), supervised=(False, True), origin="student", **fields)
    (sequence,) = RevisedSource(ARGMAX, Given([draft]), script.tools()).sequences(0, [])
    assert sequence.origin == "revised" and sequence.spans == () and sequence.rollout is None


class Given(Stateless):
    """A source that returns given sequences."""

    def __init__(self, sequences: list[TokenSequence]) -> None:
        self.given = sequences

    def sequences(self, step: int, items: Sequence[GoldItem]) -> list[TokenSequence]:
        return self.given


@pytest.mark.parametrize("node", Revised.examples(), ids=repr)
@pytest.mark.parametrize("origins", [[], ["dataset", "replay"]])
def test_without_a_draft_no_model_runs(node, origins):
    given = [TokenSequence(sample=i, token_ids=(1, 5), supervised=(False, True), origin=o) for i, o in enumerate(origins)]
    script = Script({0: (SAME,)}, {})
    found = RevisedSource(node, Given(given), script.tools()).sequences(0, [])
    assert [id(sequence) for sequence in found] == [id(sequence) for sequence in given]
    assert script.readings == 0 and not script.requests and not script.revisions


# --- tokens of the teacher ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "wanted", "purposes"),
    [
        (1, (6, SAME, SAME, SAME), ["tail"]),
        (2, (6, 7, SAME, SAME), ["teacher-tail", "tail"]),
        (3, (6, 7, 7, SAME), ["teacher-tail", "tail"]),
        (4, (6, 7, 7, 7), ["teacher-tail"]),
        (9, (6, 7, 7, 7), ["teacher-tail"]),  # the response has four tokens at most
        ("all", (6, 7, 7, 7), ["teacher-tail"]),
    ],
)
def test_the_teacher_generates_the_given_number_of_tokens_from_the_error_on(count, wanted, purposes):
    script = Script({0: (SAME,) * BUDGET}, {0: logits_of((6, 9), (SAME, 1), (SAME, 1), (SAME, 1))})
    node = replace(ARGMAX, teacher_tokens=count)
    assert responses(script.sequences(node)) == [wanted]
    assert [request.stream[0] for request in script.requests] == purposes
    assert node.needs.teacher_text == (count != 1)


def test_the_students_tail_begins_after_the_teachers_tokens():
    script = Script({0: (SAME,) * BUDGET}, {0: logits_of((6, 9), (SAME, 1), (SAME, 1), (SAME, 1))})
    script.sequences(replace(ARGMAX, teacher_tokens=2))
    assert [(request.prompt_ids, request.max_new_tokens) for request in script.requests] == [((1, 2, 6), 1), ((1, 2, 6, 7), 2)]


def test_an_end_token_of_the_teacher_ends_the_response_without_a_tail():
    script = Script({0: (SAME,) * BUDGET}, {0: logits_of((6, 9), (SAME, 1), (SAME, 1), (SAME, 1))}, teachers_tail=(EOS,))
    assert responses(script.sequences(replace(ARGMAX, teacher_tokens=2))) == [(6, EOS)]
    assert len(script.requests) == 1


def test_a_token_of_the_nucleus_is_never_improbable():
    teacher = np.log(np.tile([0.5, 0.45, 0.03, 0.02, 1e-9, 1e-9, 1e-9, 1e-9], (BUDGET, 1)))
    tokens = set()
    for step in range(40):
        script = Script({0: (3,) * BUDGET}, {0: teacher})
        script.sequences(Revised(teacher_token="nucleus"), step)
        tokens |= {revision.after.response_ids[revision.position] for revision in script.revisions}
    assert tokens == {0, 1}


# --- rounds in order ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rounds", "in_order", "wanted", "positions"),
    [
        (1, False, (SAME, SAME, 6, SAME), [2]),
        (2, False, (6, SAME, SAME, SAME), [2, 0]),
        (2, True, (SAME, SAME, 6, 6), [2, 3]),
        (3, False, (6, SAME, 6, SAME), [2, 0, 2]),
        (3, True, (SAME, SAME, 6, 6), [2, 3]),  # nothing differs after position 3
        (5, True, (SAME, SAME, 6, 6), [2, 3]),  # a round without an error keeps its start
    ],
)
def test_in_order_a_later_round_searches_from_the_last_error_on(rounds, in_order, wanted, positions):
    script = Script({0: (SAME,) * BUDGET}, {0: TWO_ERRORS})
    (sequence,) = script.sequences(replace(ARGMAX, rounds=rounds, in_order=in_order))
    assert sequence.response_ids == wanted
    assert [revision.position for revision in script.revisions] == positions
    assert script.revisions[-1].after is sequence


def test_in_order_the_corrected_token_itself_may_be_corrected_again():
    """A teacher that samples its tokens may sample another one at the same position."""
    script = Script({0: (SAME, SAME, SAME)}, {0: logits_of((SAME, 60), (6, 0), (SAME, 60), (SAME, 60))})
    positions = []
    for step in range(20):
        script.sequences(Revised(rounds=2, in_order=True, detection="random"), step)
        positions.append([revision.position for revision in script.revisions])
        script.revisions.clear()
    assert [1, 1] in positions and all(set(found) <= {1} for found in positions)


# --- append -------------------------------------------------------------------------------------------------------------


def test_append_keeps_the_drafts_before_the_revised_sequences():
    drafts = dict.fromkeys(range(3), (SAME,) * BUDGET)
    script = Script(drafts, {0: TWO_ERRORS, 1: logits_of(*[(SAME, 1)] * 4), 2: TWO_ERRORS})
    found = script.sequences(replace(ARGMAX, mode="append"))
    assert [(s.sample, s.origin) for s in found] == [*((i, "student") for i in range(3)), (0, "revised"), (2, "revised")]
    assert responses(found[:3]) == list(drafts.values())
    assert responses(found[3:]) == [(SAME, SAME, 6, SAME)] * 2


def test_of_several_rounds_the_last_sequence_is_appended():
    script = Script({0: (SAME,) * BUDGET}, {0: TWO_ERRORS})
    found = script.sequences(replace(ARGMAX, mode="append", rounds=2))
    assert responses(found) == [(SAME,) * BUDGET, (6, SAME, SAME, SAME)]
    assert len(script.revisions) == 2


def test_a_policy_returns_appended_sequences_after_its_answers():
    script = Script(dict.fromkeys(range(6), (SAME,) * BUDGET), dict.fromkeys(range(6), TWO_ERRORS))
    tools = script.tools()
    draw = Policy(tools.gold, Mixed(source=replace(ARGMAX, mode="append")).bind(tools)).draw(0)
    sampled, samples = draw.with_role("distillation"), [item.example.sample for item in tools.gold.items(0)]
    answers, added = sampled[: len(samples)], sampled[len(samples) :]
    assert sorted(sequence.sample for sequence in draw.with_role("sft")) == sorted(samples)
    assert [sequence.sample for sequence in answers] == samples
    assert {sequence.origin for sequence in answers} == {"dataset", "student"}
    assert [s.sample for s in added] == [s.sample for s in answers if s.origin == "student"]
    assert {sequence.origin for sequence in added} == {"revised"}


# --- detection ----------------------------------------------------------------------------------------------------------


def expected(detection: str, student: np.ndarray, teacher: np.ndarray, draft: tuple[int, ...]) -> int:
    q, p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) for logits in (student, teacher))
    own = p[np.arange(BUDGET), list(draft)]
    score = {
        "reverse": (q * np.log(q / p)).sum(-1),
        "forward": (p * np.log(p / q)).sum(-1),
        "surprise": -np.log(own) + (p * np.log(p)).sum(-1),
    }[detection]
    return int(np.where(p.argmax(-1) != np.array(draft), score, -np.inf).argmax())


def test_each_detection_finds_the_error_of_its_definition():
    random = generator(0, "scripted-models")
    models = [{i: 2 * random.normal(size=(BUDGET, VOCABULARY)) for i in range(30)} for _ in range(2)]
    drafts = {i: tuple(random.integers(0, VOCABULARY, BUDGET).tolist()) for i in range(30)}
    found = {}
    for detection in ("reverse", "forward", "surprise"):
        script = Script(drafts, models[0], models[1])
        script.sequences(replace(ARGMAX, detection=detection))
        found[detection] = [(r.sample, r.position) for r in script.revisions]
        assert found[detection] == [(i, expected(detection, models[1][i], models[0][i], drafts[i])) for i in drafts]
    assert found["reverse"] != found["forward"] != found["surprise"]


@pytest.mark.parametrize(("threshold", "position"), [(0.01, 0), (3.0, 2), (50.0, None)])
def test_the_first_error_is_the_first_position_above_the_threshold(threshold, position):
    script = Script({0: (SAME,) * BUDGET}, {0: TWO_ERRORS})
    script.sequences(replace(ARGMAX, detection="first", threshold_nats=threshold))
    assert [revision.position for revision in script.revisions] == ([] if position is None else [position])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_tokens": 0}, "teacher_tokens = 0: must be >= 1, or all"),
        ({"detection": "first"}, "threshold_nats = None: detection first needs a threshold"),
        ({"threshold_nats": 1.0}, "threshold_nats = 1.0: detection reverse uses no threshold"),
        ({"detection": "first", "threshold_nats": float("nan")}, "threshold_nats = nan: must be > 0 and finite"),
    ],
)
def test_settings_that_do_not_fit_are_rejected(settings, message):
    with pytest.raises(ConfigError, match=message):
        Revised(**settings)


def test_metrics_count_revisions_and_tails_that_did_not_change():
    drafts = {0: (SAME,) * BUDGET, 1: (SAME, SAME, 3, 3), 2: (SAME,) * BUDGET}
    right = logits_of(*[(SAME, 1)] * BUDGET)
    script = Script(drafts, {0: TWO_ERRORS, 1: logits_of((6, 9), (SAME, 1), (3, 1), (3, 1)), 2: right})
    source = ARGMAX.bind(script.tools())
    source.sequences(0, [GoldItem(example, gold_sequence(example)) for example in script.examples()])
    assert source.metrics() == {"revisions": 2, "unchanged_tails": 0.5}


def test_a_revision_of_the_last_token_has_no_tail():
    last = logits_of((SAME, 1), (SAME, 1), (SAME, 1), (6, 9))
    drafts = dict.fromkeys(range(3), (SAME,) * BUDGET)
    for teacher, expected in (({0: TWO_ERRORS, 1: last, 2: last}, {"unchanged_tails": 1.0}), (dict.fromkeys(drafts, last), {})):
        script = Script(drafts, teacher)
        source = ARGMAX.bind(script.tools())
        source.sequences(0, [GoldItem(example, gold_sequence(example)) for example in script.examples()])
        assert source.metrics() == {"revisions": 3, **expected}
        restored = ARGMAX.bind(script.tools())
        restored.load_state_dict(source.state_dict())
        assert restored.metrics() == source.metrics()


def test_counts_of_a_checkpoint_of_an_earlier_version_are_restored():
    source = ARGMAX.bind(Script({0: (SAME,) * BUDGET}, {0: TWO_ERRORS}).tools())
    source.load_state_dict({"revision_counts": (4, 1)})
    assert source.metrics() == {"revisions": 4, "unchanged_tails": 0.25}


def test_a_token_with_teacher_probability_0_has_the_greatest_surprise():
    ruled_out = logits_of((6, 1), (6, 1), (6, 1), (6, 1))
    ruled_out[2, SAME] = -np.inf
    script = Script({0: (SAME,) * BUDGET}, {0: ruled_out})
    script.sequences(replace(ARGMAX, detection="surprise"))
    assert [revision.position for revision in script.revisions] == [2]


def test_the_random_control_samples_uniformly_from_differing_positions():
    script = Script({0: (SAME,) * BUDGET}, {0: TWO_ERRORS})
    node = replace(ARGMAX, detection="random")
    draws = 600
    for step in range(draws):
        script.sequences(node, step)
    positions = [revision.position for revision in script.revisions]
    counts = {position: positions.count(position) for position in set(positions)}
    assert counts.keys() == {0, 2, 3} and sum(counts.values()) == draws
    assert sum((count - draws / 3) ** 2 / (draws / 3) for count in counts.values()) < 13.8  # chi-square, 2 degrees, p = 0.001
    again = Script(script.drafts, script.teacher)
    again.sequences(node, 7)
    assert again.revisions[0].position == positions[7]
    assert again.revisions[0].kl == pytest.approx(script.revisions[7].kl) and again.revisions[0].kl > 0

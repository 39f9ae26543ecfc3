"""The trained rows of generated text: from the first token of the response to its end token."""

import pytest

from redistill.contracts import Batch, TokenSequence, items_of
from redistill.data.collate import collate
from redistill.policies import Revised, StudentGenerated
from tests.policies.fixture import RESPONSE_TOKENS, PolicyFixture, make_fixture
from tests.tokenizers import FAMILIES


@pytest.fixture(scope="module", params=FAMILIES)
def fixture(request: pytest.FixtureRequest) -> PolicyFixture:
    return make_fixture(FAMILIES[request.param])


def drawn(fixture: PolicyFixture, node: StudentGenerated | Revised) -> tuple[list[TokenSequence], Batch]:
    """A large draw, and its batch with this tokenizer's padding."""
    sequences = list(fixture.policy(node, batch_size=40).draw(0).with_role("distillation"))
    return sequences, collate(items_of(sequences, "distillation"), pad_id=fixture.pad_id)


NODES = [StudentGenerated(), Revised(), Revised(teacher_token="argmax", detection="forward", rounds=2)]


@pytest.mark.parametrize("node", NODES, ids=repr)
def test_rows_are_the_response_with_its_end_token_and_nothing_else(
    fixture: PolicyFixture, node: StudentGenerated | Revised
) -> None:
    sequences, batch = drawn(fixture, node)
    (end,) = fixture.tools.end_ids
    width = batch.input_ids_BT.shape[1]
    prompts = {example.sample: example.prompt_ids for example in fixture.examples}
    for b, sequence in enumerate(sequences):
        prompt = prompts[sequence.sample]
        response = sequence.token_ids[len(prompt) :]
        assert sequence.token_ids[: len(prompt)] == prompt
        mine = batch.sequence_N == b
        assert batch.target_N[mine].tolist() == list(response)
        # The row of response token i is the hidden state before it: the first is read at the prompt's last token.
        assert (batch.position_N[mine] - b * width).tolist() == list(range(len(prompt) - 1, len(prompt) - 1 + len(response)))
        assert end not in response[:-1], "text behind an end token"
        assert response[-1] == end or len(response) == RESPONSE_TOKENS, "a short response has an end token, and it is a target"
        assert batch.attention_mask_BT[b].sum() == len(prompt) + len(response)
    assert batch.num_sampled_rows == len(batch.target_N) and not batch.sft_N.any()


@pytest.mark.parametrize("node", NODES, ids=repr)
def test_every_kind_of_end_occurs(fixture: PolicyFixture, node: StudentGenerated | Revised) -> None:
    """Otherwise the test above would check no cases."""
    sequences, _ = drawn(fixture, node)
    (end,) = fixture.tools.end_ids
    ended = [sequence.response_ids[-1] == end for sequence in sequences]
    assert any(ended) and not all(ended)
    assert len({len(sequence.token_ids) for sequence in sequences}) > 3, "padding of several lengths"


def test_corrections_can_add_and_remove_end_tokens(fixture: PolicyFixture) -> None:
    (end,) = fixture.tools.end_ids
    fixture.revisions.clear()
    policy = fixture.policy(Revised(), batch_size=20)
    for step in range(5):
        policy.draw(step)
    corrected = [(r.before.response_ids[r.position], r.after.response_ids[r.position]) for r in fixture.revisions]
    assert any(teacher == end for _, teacher in corrected)
    assert any(student == end for student, _ in corrected)
    for revision in fixture.revisions:
        at = revision.position
        assert revision.after.response_ids[:at] == revision.before.response_ids[:at]
        assert revision.after.response_start == revision.before.response_start == len(revision.before.prompt_ids)


def test_gold_rows_are_supervised_to_the_end_token_as_well(fixture: PolicyFixture) -> None:
    """A prompt may start with the end token (OPT): only its position distinguishes it."""
    gold = [item.sequence for item in fixture.gold(batch_size=20).items(0)]
    batch = collate(items_of(gold, "sft"), pad_id=fixture.pad_id)
    examples = {example.sample: example for example in fixture.examples}
    for b, sequence in enumerate(gold):
        example = examples[sequence.sample]
        targets = batch.target_N[batch.sequence_N == b].tolist()
        assert targets == list(example.token_ids[len(example.prompt_ids) :])
        assert len(targets) == RESPONSE_TOKENS or targets[-1] == fixture.tools.end_ids[0]

"""The rows of generated text that DistiLLM's public code trains on.

These rows are used with `compat: distillm`.  A row is the prediction of one token.

The public code differs from the DistiLLM paper in two ways.  First, its pad token is the end token, and removing the padding
also removes every end token of a response.  Second, labels of generated text are not shifted: label t is token t, not token t +
1.  Rows are selected by the mask label != -100, so the selection is shifted by one position.  It excludes the prediction of the
first response token, and includes the prediction after the last token, where the end token would have been.  A divergence uses
rows and no labels, so only the mask matters.
"""

from dataclasses import replace

from redistill.contracts import TokenSequence


def legacy_sequence(sequence: TokenSequence, end_id: int) -> TokenSequence:
    """Return a copy of a generated sequence, with the rows of the reference code.

    A row is the prediction of one target (a token that the student is trained to predict).  The reference code is the public
    code of DistiLLM.  It also trains on the row after the last response token.  Therefore an end token, the filler, is appended
    as the target of this row.  The id of the filler does not affect a divergence.  A response of only end tokens has no row in
    the reference code.  Here it has one row, whose target is an end token.

    Args:
        sequence: Prompt and response of any length.  The sequence must have no `spans` and no `rollout`, since these depend on
            the targets.
        end_id: Id of the end token, which is also the padding token in the reference code.

    Returns:
        The sequence without the end tokens of its response, followed by the filler.  The filler is a target; the first response
        token is not.  If m > 0 response tokens remain, there are m targets, and target i is predicted at the position of
        response token i, for i = 0 .. m-1.

    Example:
        >>> generated = TokenSequence(
        ...     sample=0, token_ids=(5, 6, 7, 8, 2), supervised=(False, False, True, True, True), origin="student"
        ... )
        >>> rewritten = legacy_sequence(generated, end_id=2)
        >>> rewritten.token_ids, rewritten.supervised
        ((5, 6, 7, 8, 2), (False, False, False, True, True))
    """
    assert not sequence.spans and sequence.rollout is None, "spans and roll-outs are added after the targets are final"
    assert all(sequence.supervised[sequence.response_start :]), "every token of a generated response is a target"
    prompt_ids = sequence.prompt_ids
    kept = tuple(token for token in sequence.response_ids if token != end_id)
    return replace(
        sequence,
        token_ids=(*prompt_ids, *kept, end_id),
        supervised=(False,) * len(prompt_ids) + (False,) * min(1, len(kept)) + (True,) * max(1, len(kept)),
    )

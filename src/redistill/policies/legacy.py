"""Selects the tokens of generated text on which DistiLLM's public code trains.

The setting `compat: distillm` uses this module.  For generated text, the public code differs from the DistiLLM paper in two
ways.  First, its padding token is the end token, and removing the padding also removes every end token of a response.  Second,
the labels are not shifted: the label at position t is token t instead of token t + 1.

The label -100 marks prompt and padding, and the public code computes the divergence at all other positions.  Since labels
are not shifted, these are the positions of the response tokens.  The logits at a position, however, predict the next token.
The code therefore excludes the prediction of the first response token, and includes the prediction after the last response
token.  The divergence itself does not use the labels.
"""

from dataclasses import replace

from redistill.contracts import TokenSequence


def legacy_sequence(sequence: TokenSequence, end_id: int) -> TokenSequence:
    """Return a copy of a generated sequence, with the targets of the reference code.

    A target is a token that the student is trained to predict.  The reference code is the public code of DistiLLM.  This
    code does not train on the prediction of the first response token, but it trains on the prediction that follows the last
    response token.  For this prediction, an end token is appended as the last target (the filler).  The id of the filler
    has no effect on a divergence, which compares distributions.

    If a response consists of end tokens only, the reference code does not train on it.  The result of this function then
    has the filler as its only target.

    Args:
        sequence: Prompt and response of any length.  `spans` and `rollout` must not be set yet: they refer to the targets,
            which this function changes.
        end_id: Id of the end token, which is also the padding token in the reference code.

    Returns:
        The sequence without the end tokens of its response, followed by the filler.  The targets are the filler and all
        remaining response tokens except the first.  If m > 0 response tokens remain, there are m targets, and the logits at
        response token i predict target i, for i = 0 .. m-1.  Response tokens keep their weights.  The filler has the weight
        of the last token if this token is an end token; otherwise the filler has the weight 1.

    Example:
        >>> generated = TokenSequence(
        ...     sample=0, token_ids=(5, 6, 7, 8, 2), supervised=(False, False, True, True, True), origin="student"
        ... )
        >>> rewritten = legacy_sequence(generated, end_id=2)
        >>> rewritten.token_ids, rewritten.supervised
        ((5, 6, 7, 8, 2), (False, False, False, True, True))
    """
    assert not sequence.spans and sequence.rollout is None, "the sequence must have neither spans nor a roll-out"
    assert all(sequence.supervised[sequence.response_start :]), "every response token must be a target"
    prompt_ids = sequence.prompt_ids
    kept = tuple(token for token in sequence.response_ids if token != end_id)
    weights = sequence.weights
    if weights:
        of_kept = [weight for token, weight in zip(sequence.response_ids, weights, strict=True) if token != end_id]
        weights = (*of_kept[1:], weights[-1] if sequence.response_ids[-1] == end_id else 1.0)
    return replace(
        sequence,
        token_ids=(*prompt_ids, *kept, end_id),
        supervised=(False,) * len(prompt_ids) + (False,) * min(1, len(kept)) + (True,) * max(1, len(kept)),
        weights=weights,
    )

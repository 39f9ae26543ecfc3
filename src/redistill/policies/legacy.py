"""The rows that DistiLLM's public code learns on text that a model wrote, for `compat: distillm`.

That code differs from its paper in two ways.  Its pad token is the end token, and stripping the padding strips every end token
of a response.  And labels of written text are not shifted: label t is token t, so that the mask of rows, label != -100, lies
one place to the right: the prediction of the first response token is left out, and the one after the last, where the end token
would have stood, is learned.  A divergence looks at rows alone, never at the labels, so the mask is all that matters.
"""

from dataclasses import replace

from redistill.contracts import TokenSequence


def legacy_sequence(sequence: TokenSequence, end_id: int) -> TokenSequence:
    """A written sequence, so that its rows are those of the reference code.

    A filler (the end token) behind the last response token stands for the row after it; which token it is does not matter to a
    divergence.  A response of end tokens alone has no row in the reference code; here it keeps one, its end token's.

    Args:
        sequence: Prompt and response of any length, without spans or a roll-out: they count targets, which change here.
        end_id: The end token, which is the padding too.

    Returns:
        The sequence without end tokens in the response, the first of its tokens no target and the filler one: as many targets
        as tokens are left, m.  Row i of them is read at response token i, i = 0 .. m-1.

    Example:
        >>> written = TokenSequence(
        ...     sample=0, token_ids=(5, 6, 7, 8, 2), supervised=(False, False, True, True, True), origin="student"
        ... )
        >>> rewritten = legacy_sequence(written, end_id=2)
        >>> rewritten.token_ids, rewritten.supervised
        ((5, 6, 7, 8, 2), (False, False, False, True, True))
    """
    assert not sequence.spans and sequence.rollout is None, "what counts targets is made after they are settled"
    assert all(sequence.supervised[sequence.response_start :]), "written text is one run of targets"
    prompt_ids = sequence.prompt_ids
    kept = tuple(token for token in sequence.response_ids if token != end_id)
    return replace(
        sequence,
        token_ids=(*prompt_ids, *kept, end_id),
        supervised=(False,) * len(prompt_ids) + (False,) * min(1, len(kept)) + (True,) * max(1, len(kept)),
    )

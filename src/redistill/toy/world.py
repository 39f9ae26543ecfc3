"""The toy world: instructions in plain English, made up on the spot, that a tiny model can learn in minutes without a download.

Thirteen kinds of task, each with several ways to ask and several ways to answer.  One gold answer shows one way; a teacher that
has read many knows how likely each is, and that is what there is to distil.
"""

import hashlib
from typing import Any, Literal

import numpy as np

from redistill.data.templates import render_prompt
from redistill.randomness import generator
from redistill.records import Instruction, Record
from redistill.toy.tasks import KINDS, Question

Split = Literal["teacher", "train", "validation", "test"]

END, PAD = "<|endoftext|>", "<|pad|>"

# Which hundredths of all questions belong to a split.  The question decides, not the seed, so splits never meet.
_SHARES: dict[Split, range] = {
    "teacher": range(70),
    "train": range(70, 85),
    "validation": range(85, 92),
    "test": range(92, 100),
}


def toy_records(count: int, seed: int, split: Split) -> list[Record]:
    """Records of the toy world; each depends on (seed, split, its index) alone.

    Every kind of task is equally likely, and the k-th way to answer has a weight of 1/k.  No question of one split occurs in
    another, in whatever words, for whatever seeds.

    Args:
        count: How many.
        seed: Other seeds give other records.
        split: "teacher" (a large set to make a teacher from), "train", "validation" or "test".

    Returns:
        Records with one reference for teaching and training, and with every right answer for validation and test.

    Example:
        >>> record = toy_records(5, 10, "train")[4]
        >>> record.prompt.instruction, record.prompt.input
        ('Rewrite the command as a polite request.', 'Send the brown map to the museum.')
        >>> record.references
        ('I would be glad if you could send the brown map to the museum.',)
    """
    return [_record(seed, split, index) for index in range(count)]


def toy_tokenizer(vocabulary_size: int = 1536, seed: int = 0) -> Any:
    """A byte-level BPE tokenizer of the toy world, with "<|endoftext|>" as end and "<|pad|>" as padding token.

    It can write any text; on the toy world it needs little more than one token a word.

    Args:
        vocabulary_size: How many tokens, bytes and the two special ones included; at least 258.
        seed: Of the text that it is made from.

    Returns:
        A transformers `PreTrainedTokenizerFast`.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    assert vocabulary_size >= 258, vocabulary_size
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    records = toy_records(2000, seed, "teacher")
    texts = [render_prompt(record.prompt, "alpaca", None) + record.references[0] for record in records]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def _record(seed: int, split: Split, index: int) -> Record:
    random = generator(seed, "toy", split, index)
    kind = tuple(KINDS)[int(random.integers(len(KINDS)))]
    question = KINDS[kind](random)
    while _bucket(question) not in _SHARES[split]:
        question = KINDS[kind](random)
    instruction, given = question.asks[int(random.integers(len(question.asks)))]
    weights = 1.0 / np.arange(1, len(question.answers) + 1)
    chosen = int(random.choice(len(question.answers), p=weights / weights.sum()))
    others = [] if split in ("teacher", "train") else [answer for k, answer in enumerate(question.answers) if k != chosen]
    return Record(
        record_id=f"toy-{split}-{kind}:{index}",
        prompt=Instruction(instruction, given),
        references=(question.answers[chosen], *others),
    )


def _bucket(question: Question) -> int:
    """Which hundredth of all questions this one belongs to, however it is asked."""
    key = "\x1f".join(question.asks[0]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % 100

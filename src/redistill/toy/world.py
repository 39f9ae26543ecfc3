"""The toy world: English instructions that a tiny model can learn in minutes.

The text is generated, without a download. There are thirteen tasks, each with several phrasings of the question and of the
answer. A teacher that is trained on many sampled answers learns the probability of each phrasing. A student can learn these
probabilities from the teacher.
"""

import hashlib
from typing import Literal

import numpy as np

from redistill.data.templates import render_prompt
from redistill.interfaces import Tokenizer
from redistill.randomness import generator
from redistill.records import Instruction, Record
from redistill.toy.tasks import KINDS, Question

Split = Literal["teacher", "train", "validation", "test"]

END, PAD = "<|endoftext|>", "<|pad|>"

# The buckets of each split, out of 100; see `_bucket`. A bucket depends on the question only, so splits are disjoint.
_BUCKETS: dict[Split, range] = {
    "teacher": range(70),
    "train": range(70, 85),
    "validation": range(85, 92),
    "test": range(92, 100),
}


def toy_records(count: int, seed: int, split: Split) -> list[Record]:
    """Generate records of the toy world.

    A record depends only on the seed, the split and the index of the record. All tasks are equally likely, and the k-th
    phrasing of an answer has a probability proportional to 1/k. A question of one split never occurs in another split, even in
    another phrasing or with another seed.

    Args:
        count: Number of records.
        seed: Random seed.
        split: "teacher" (a large set to train a teacher on), "train", "validation" or "test".

    Returns:
        The records. In the splits "teacher" and "train", a record has one reference answer. In "validation" and "test", it has
        all correct answers as references; the sampled answer is first.

    Example:
        >>> record = toy_records(5, 10, "train")[4]
        >>> record.prompt.instruction, record.prompt.input
        ('Rewrite the command as a polite request.', 'Send the brown map to the museum.')
        >>> record.references
        ('I would be glad if you could send the brown map to the museum.',)
    """
    return [_record(seed, split, index) for index in range(count)]


def toy_tokenizer(vocabulary_size: int = 1536, seed: int = 0) -> Tokenizer:
    """Train a byte-level BPE tokenizer on the toy world.

    The end token is "<|endoftext|>", and the padding token is "<|pad|>". The tokenizer can encode any text. Most words of the
    toy world are one token.

    Args:
        vocabulary_size: Number of tokens, including all bytes and the two special tokens; >= 258.
        seed: Random seed for generating the text that the tokenizer is trained on.

    Returns:
        A transformers `PreTrainedTokenizerFast`.
    """
    import tokenizers as library
    from transformers import PreTrainedTokenizerFast

    assert vocabulary_size >= 258, vocabulary_size
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END, PAD],
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    records = toy_records(2000, seed, "teacher")
    texts = [render_prompt(record.prompt, "alpaca", None) + record.references[0] for record in records]
    tokenizer.train_from_iterator(texts, trainer)
    loaded: Tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    return loaded


def _record(seed: int, split: Split, index: int) -> Record:
    random = generator(seed, "toy", split, index)
    kind = tuple(KINDS)[int(random.integers(len(KINDS)))]
    question = KINDS[kind](random)
    while _bucket(question) not in _BUCKETS[split]:
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
    """Return a hash of a question, from 0 to 99.

    The split of the question is determined by this hash.
    """
    key = "\x1f".join(question.asks[0]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") % 100

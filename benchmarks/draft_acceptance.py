"""Does alpha equal the acceptance that transformers counts in assisted generation?

    OMP_NUM_THREADS=1 python -m benchmarks.draft_acceptance --teacher models/smollm2 --student runs/sample/model \
        --prompts dolly/test.jsonl --out acceptance.jsonl

The teacher answers prompts at temperature 1 with `assistant_model`: the student proposes k tokens in each round, and the rule
of Leviathan et al.  (arXiv 2211.17192) accepts the first n of them.  A proposal is tested if those before it in its round
were accepted.  The fraction of tested proposals that were accepted is compared with the mean of alpha = sum_v min(p, q) over
the same positions, and with the mean over all tokens of the text, which is the score `acceptance`.  Accepted tokens per round
are compared with the score `accepted_length_k`.  A line is written for each prompt; the same command continues after the last
one.
"""

import argparse
import json
import math
from pathlib import Path

import torch
from transformers.generation import utils

from redistill.contracts import TokenSequence, items_of
from redistill.data.collate import collate
from redistill.data.reader import read_records
from redistill.data.tokenize import TokenizeConfig, tokenize_prompts
from redistill.evaluation.acceptance import accepted
from redistill.models.families import body, head
from redistill.models.load import ModelConfig, load_model
from redistill.storage import files
from redistill.teachers.local import LocalTeacher
from redistill.vocab_pass import row_statistics

Round = tuple[int, int, int]
"""Length of the text before the round, number of proposals, and number of accepted ones."""


def recorded(rounds: list[Round]) -> None:
    """Make transformers append each round of speculative sampling to `rounds`."""
    original = utils._speculative_sampling

    def sampling(candidate_ids, candidate_logits, candidate_length, *rest, **options):
        tokens, num_accepted = original(candidate_ids, candidate_logits, candidate_length, *rest, **options)
        rounds.append((candidate_ids.shape[1] - candidate_length, int(candidate_length), int(num_accepted)))
        return tokens, num_accepted

    utils._speculative_sampling = sampling


@torch.no_grad()
def scores_of(student, teacher: LocalTeacher, token_ids: list[int], num_prompt: int) -> dict[str, list[float]]:
    """The scores of `accepted` for each token after the prompt."""
    supervised = tuple(index >= num_prompt for index in range(len(token_ids)))
    sequence = TokenSequence(sample=0, token_ids=tuple(token_ids), supervised=supervised, origin="teacher")
    batch = collate(items_of([sequence], "distillation"), pad_id=0)
    hidden_ND = body(student)(batch.input_ids_BT, batch.attention_mask_BT).flatten(0, 1)[batch.position_N]
    teacher.prepare([sequence])
    alpha_N = row_statistics(hidden_ND, head(student), teacher.rows(batch), ["acceptance"])["acceptance"]
    return {name: value.tolist() for name, value in accepted(alpha_N, batch.sequence_N, batch.position_N).items()}


def line_of(rounds: list[Round], scores: dict[str, list[float]], num_prompt: int, k: int) -> dict[str, object]:
    """Counts and sums of one prompt."""
    alphas = scores["acceptance"]
    tested = [(start + i - num_prompt, i < n) for start, length, n in rounds for i in range(min(n + 1, length))]
    tested = [(index, is_accepted) for index, is_accepted in tested if index < len(alphas)]
    whole = [n for start, length, n in rounds if length == k and start - num_prompt + k < len(alphas)]
    return {
        "tested": len(tested),
        "accepted": sum(is_accepted for _, is_accepted in tested),
        "alpha_tested": math.fsum(alphas[index] for index, _ in tested),
        "tokens": len(alphas),
        "alpha_all": math.fsum(alphas),
        "rounds": len(whole),
        "accepted_in_rounds": sum(whole),
        "length_all": math.fsum(scores[f"accepted_length_{k}"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("teacher", "student", "prompts", "out"):
        parser.add_argument(f"--{name}", required=True)
    for name, default in {"proposals": 5000, "k": 3, "response-tokens": 64, "seed": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    teacher, tokenizer = load_model(ModelConfig(model=options.teacher))
    student, _ = load_model(ModelConfig(model=options.student))
    config = student.generation_config
    config.num_assistant_tokens, config.num_assistant_tokens_schedule = options.k, "constant"
    config.assistant_confidence_threshold = 0.0  # otherwise the student stops where it is not sure
    scored = LocalTeacher(teacher, vocabulary=head(teacher).num_classes, device="cpu")
    tokens = TokenizeConfig(template="alpaca", prompt_tokens=192, response_tokens=options.response_tokens)
    records, _ = read_records(options.prompts, split="test")
    prompts = tokenize_prompts(records, tokenizer, tokens, role="prompts")
    out, rounds = Path(options.out), list[Round]()
    recorded(rounds)
    lines = files.read_lines(out) if out.exists() else []
    for number in range(len(lines), len(prompts)):
        if sum(line["tested"] for line in lines) >= options.proposals:
            break
        torch.manual_seed(options.seed + number)
        rounds.clear()
        prompt = torch.tensor([prompts[number]])
        sampling = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "pad_token_id": 0}
        answer = teacher.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            assistant_model=student,
            max_new_tokens=options.response_tokens,
            **sampling,
        )[0].tolist()
        scores = scores_of(student, scored, answer, prompt.shape[1])
        lines.append(line_of(rounds, scores, prompt.shape[1], options.k))
        files.append_lines(out, lines[-1:])
    total = {name: sum(line[name] for line in lines) for name in lines[0]}
    counted, alpha = total["accepted"] / total["tested"], total["alpha_tested"] / total["tested"]
    print(json.dumps({name: round(value, 3) for name, value in total.items()}))
    print(f"accepted of {total['tested']:,} tested proposals: {counted:.2%}; alpha at the same positions: {alpha:.2%}")
    print(f"alpha over all {total['tokens']:,} tokens (the score acceptance): {total['alpha_all'] / total['tokens']:.2%}")
    print(
        f"accepted per round of {options.k} in {total['rounds']:,} rounds: {total['accepted_in_rounds'] / total['rounds']:.3f}"
    )
    print(f"the score accepted_length_{options.k}: {total['length_all'] / total['tokens']:.3f}")


if __name__ == "__main__":
    main()

"""Writing text, against transformers' own generate.

    python -m benchmarks.generation --model models/smollm2 [--quick]

The model named is cut to eight layers and continues 8 prompts of 64 tokens by 192, drawn at temperature 1; nothing ends a text
on either side.  Both have the same weights, in fp32 and then in bf16.  Told are seconds, how many times faster it is, and of
16 texts written at once how many are the same when they are written one by one or by fours: in fp32 all should be, in bf16
rounding may draw another token.
"""

import gc
from typing import Any

import torch
from torch import nn

from benchmarks import measuring
from redistill.contracts import GenerationRequest, Sampling
from redistill.generation.generate import generate
from redistill.models.initialise import student_from_layers
from redistill.models.load import ModelConfig, load_model

NUM_LAYERS = 8
SIZES = (1, 4)


def truncated(model: nn.Module, dtype: torch.dtype) -> Any:
    """Eight of the model's layers, evenly spread, the first and the last among them."""
    last = model.config.num_hidden_layers - 1
    layers = tuple(round(place * last / (NUM_LAYERS - 1)) for place in range(NUM_LAYERS))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return student_from_layers(model, layers).to(device=device, dtype=dtype).eval()


def prompts(model: nn.Module, batch: int, length: int) -> torch.Tensor:
    """Random prompts; what a step costs does not depend on what they say."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, model.config.vocab_size, (batch, length), generator=generator)


def requests(ids_BT: torch.Tensor, new_tokens: int) -> list[GenerationRequest]:
    return [
        GenerationRequest(prompt_ids=tuple(ids), max_new_tokens=new_tokens, seed=10, stream=("response", 0, i))
        for i, ids in enumerate(ids_BT.tolist())
    ]


def ours(model: nn.Module, ids_BT: torch.Tensor, new_tokens: int, batch_size: int = 8) -> list[tuple[int, ...]]:
    wanted = requests(ids_BT, new_tokens)
    written = generate(model, wanted, Sampling(), end_ids=(), pad_id=0, batch_size=batch_size)
    return [generation.token_ids for generation in written]


@torch.no_grad()
def theirs(model: Any, ids_BT: torch.Tensor, new_tokens: int) -> torch.Tensor:
    ids_BT = ids_BT.to(model.device)
    return model.generate(
        input_ids=ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=new_tokens,
        eos_token_id=None,
        pad_token_id=0,
    )


def main() -> None:
    chosen = measuring.arguments(str(__doc__), model={"required": True, "help": "a folder or a hub name"})
    batch, prompt, new_tokens = (2, 8, 8) if chosen.quick else (8, 64, 192)
    whole, _ = load_model(ModelConfig(model=chosen.model))
    whole.generation_config.eos_token_id = None
    results: dict[str, Any] = {"batch": batch, "prompt_tokens": prompt, "new_tokens": new_tokens, "layers": NUM_LAYERS}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = truncated(whole, dtype)
        model.generation_config.eos_token_id = None
        ids_BT = prompts(model, batch, prompt)
        assert theirs(model, ids_BT, new_tokens).shape[1] == prompt + new_tokens, "something ended a text"
        found = measuring.interleaved(
            {
                "redistill": lambda m=model, ids=ids_BT: ours(m, ids, new_tokens),
                "transformers": lambda m=model, ids=ids_BT: theirs(m, ids, new_tokens),
            },
            chosen.repetitions or (1 if chosen.quick else 5),
        )
        many_BT = prompts(model, 2 * batch, prompt)
        together = ours(model, many_BT, new_tokens, len(many_BT))
        same = {
            f"batches of {size}": sum(one == other for one, other in zip(together, ours(model, many_BT, new_tokens, size)))
            for size in SIZES
        }
        faster = found["transformers"]["median"] / found["redistill"]["median"]
        results[name] = {"seconds": found, "times_faster": faster, "texts": len(many_BT), "same texts": same}
        print(f"{name}: {faster:.2f} times as fast; of {len(many_BT)} texts the same: {same}", flush=True)
        del model
        gc.collect()
    measuring.write("generation", results, quick=chosen.quick)


if __name__ == "__main__":
    main()

"""A vLLM server for tests: transfer of weights, prefix cache, log-probabilities of generated text, and faults of each."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
from safetensors.torch import load_file

from tests.servers.fake import Answer, ModelScript, Received

BLOCK = 16


class VllmScript(ModelScript):
    """Serves the model of a folder as vLLM does in development mode.

    Args:
        folder: Folder of a model with its tokenizer.
        version: The version that the server reports.
        dev_mode: Whether the routes that change the server are open.
        keeps_head: Plants a fault: reloaded weights do not change the head.
        keeps_cache: Plants a fault: the prefix cache is not discarded.
        bans: Whether the server has the plugin that bans repeated n-grams.
        extension: Name of the class that the server adds to its workers.
        dtype: dtype of the model, which the server reports in development mode.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        version: str = "0.32.0",
        dev_mode: bool = True,
        keeps_head: bool = False,
        keeps_cache: bool = False,
        bans: bool = True,
        extension: str = "",
        dtype: str = "float32",
        **settings: Any,
    ) -> None:
        super().__init__(folder, **{"name": "student", "max_model_len": 512, **settings})
        self.folder, self.version, self.dev_mode = folder, version, dev_mode
        self.keeps_head, self.keeps_cache, self.bans, self.extension = keeps_head, keeps_cache, bans, extension
        self.dtype = dtype
        self.model.to(getattr(torch, dtype))
        self.model.lm_head.weight = torch.nn.Parameter(self.model.lm_head.weight.detach().clone())  # its prepacked kernel
        self.adapted: torch.nn.Module | None = None
        self.cache: dict[tuple[int, ...], Any] = {}
        self.num_loads = 0

    def restart(self, folder: Path | None = None) -> None:
        """Lose the student's weights, and load those of a folder."""
        folder = self.folder if folder is None else folder
        ModelScript.__init__(
            self, folder, tokenizer=self.folder, name=self.name, max_model_len=self.max_model_len, change=self.change
        )
        self.model.lm_head.weight = torch.nn.Parameter(self.model.lm_head.weight.detach().clone())
        self.adapted, self.cache = None, {}

    def __call__(self, received: Received) -> Answer:
        if self.key is not None and received.headers.get("authorization") != f"Bearer {self.key}":
            return Answer({"error": {"message": "Unauthorized"}}, 401)
        if received.path == "/version":
            return Answer(self.change(received, {"version": self.version}))
        routes = {
            "/collective_rpc": self.reload,
            "/reset_prefix_cache": self.reset,
            "/v1/load_lora_adapter": self.load_adapter,
        }
        if received.path == "/server_info?config_format=json" and self.dev_mode:
            model = {"dtype": f"torch.{self.dtype}", "quantization": None}
            parallel = {"worker_extension_cls": self.extension}
            return Answer({"vllm_config": {"model_config": model, "parallel_config": parallel}})
        if received.path in routes and self.dev_mode:
            with self.lock:
                routes[received.path](received.body)
            return Answer(b"Success")
        if received.path == "/v1/completions" and received.body["model"] == "redistill-student" and self.adapted is not None:
            received = Received(received.method, received.path, received.headers, {**received.body, "model": self.name})
        return super().__call__(received)

    def reload(self, body: Mapping[str, Any]) -> None:
        assert body["method"] in ("reload_weights", "redistill_reload")
        self.num_loads += 1
        tensors = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
        if body["method"] == "redistill_reload":  # packs a tied head again
            tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
        if self.keeps_head:
            tensors.pop("lm_head.weight", None)
        self.model.load_state_dict(tensors, strict=False)

    def load_adapter(self, body: Mapping[str, Any]) -> None:
        self.num_loads += 1
        self.adapted = peft.PeftModel.from_pretrained(copy.deepcopy(self.model), body["lora_path"]).eval()

    def reset(self, body: Mapping[str, Any]) -> None:
        if not self.keeps_cache:
            self.cache.clear()

    @torch.no_grad()
    def logp(self, ids: Sequence[int]) -> torch.Tensor:
        """Log-probabilities, computed with the stored states of the first block if there are any."""
        model = self.adapted or self.model
        block = tuple(ids[:BLOCK])
        if len(ids) <= BLOCK:
            logits_TV = model(torch.tensor([ids])).logits[0]
        else:
            if block not in self.cache:
                self.cache[block] = model(torch.tensor([block]), use_cache=True).past_key_values
            stored = copy.deepcopy(self.cache[block])
            logits_TV = model(torch.tensor([ids[BLOCK:]]), past_key_values=stored).logits[0]
        return logits_TV.float().log_softmax(-1)

    def choice(self, index: int, ids: Sequence[int], body: Mapping[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        generated, token_logprobs, top = list[int](), list[float](), list[dict[str, float]]()
        ban = (body.get("vllm_xargs") or {}).get("no_repeat_ngram_size", 0) if self.bans else 0
        for _ in range(body["max_tokens"]):
            logp_V = self.logp([*ids, *generated])[-1]
            logits_V = logp_V.clone()
            for token, bias in (body.get("logit_bias") or {}).items():
                logits_V[int(token)] += bias
            if ban == 1:
                logits_V[[*ids, *generated]] = -torch.inf
            if body["temperature"] == 0:
                token = int(logits_V.argmax())
            else:
                token = int(torch.multinomial((logits_V / body["temperature"]).softmax(-1), 1, generator=generator))
            generated.append(token)
            token_logprobs.append(float(logp_V[token]))
            best = logp_V.topk(max(1, body.get("logprobs") or 0)).indices.tolist()
            top.append({f"token_id:{each}": float(logp_V[each]) for each in {*best, token}})
            if token in body.get("stop_token_ids", []):
                break
        found: dict[str, Any] = {"index": index, "text": "", "token_ids": generated, "prompt_token_ids": list(ids)}
        if body.get("logprobs") is not None:
            found["logprobs"] = {"token_logprobs": token_logprobs, "top_logprobs": top}
        return json.loads(json.dumps(found))

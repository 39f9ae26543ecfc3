"""Servers on the loopback address for tests: one with scripted replies, and one that serves a model as vLLM does."""

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass(frozen=True)
class Received:
    """A request that a server has received."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


@dataclass(frozen=True)
class Answer:
    """A reply: a status with a body, or raw bytes instead of all of it."""

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: Sequence[bytes] | None = None


Script = Callable[[Received], Answer]


class Server(ThreadingHTTPServer):
    """A server whose replies a function returns; `received` has its requests."""

    daemon_threads = True
    request_queue_size = 128
    block_on_close = False

    def __init__(self, script: Script) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script, self.received = script, list[Received]()
        self.stopped = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: clients of tests close connections early."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._reply(None)

    def do_POST(self) -> None:
        self._reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def do_CONNECT(self) -> None:
        self._reply(None)

    def _reply(self, body: Any) -> None:
        received = Received(self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body)
        self.server.received.append(received)
        answer = self.server.script(received)
        if answer.raw is not None:
            for part in answer.raw:
                self.wfile.write(part)
                self.wfile.flush()
            self.close_connection = True
            return
        content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@contextmanager
def serving(script: Script) -> Iterator[Server]:
    """Context in which a server runs in another thread."""
    server = Server(script)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.shutdown()
        server.server_close()


class ModelScript:
    """Serves the model of a folder; the fields change single properties of the server.

    Args:
        folder: Folder of a model with its tokenizer.
        name: Name under which the model is served.
        max_logprobs: Largest number of tokens that are listed.
        key: The API key that is required; None accepts all requests.
        shift: Number that is added to the logits of one class, as other weights would.
        change: Function that changes a reply, given the request.
        tokenizer: Folder of the tokenizer; None if it is `folder`.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        name: str = "teacher",
        max_logprobs: int = 200,
        key: str | None = None,
        shift: float = 0.0,
        max_model_len: int | None = 256,
        change: Callable[[Received, Any], Any] = lambda received, reply: reply,
        tokenizer: Path | str | None = None,
    ) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer or folder)
        self.name, self.max_logprobs, self.key, self.shift, self.change = name, max_logprobs, key, shift, change
        self.max_model_len = max_model_len
        self.lock = threading.Lock()

    def __call__(self, received: Received) -> Answer:
        if self.key is not None and received.headers.get("authorization") != f"Bearer {self.key}":
            return Answer({"error": {"message": "Unauthorized"}}, 401)
        if received.path == "/v1/models":
            listed: dict[str, Any] = {"id": self.name, "object": "model", "root": "org/model"}
            if self.max_model_len is not None:
                listed["max_model_len"] = self.max_model_len
            return Answer(self.change(received, {"object": "list", "data": [listed]}))
        if received.path != "/v1/completions" or received.body["model"] != self.name:
            return Answer({"error": {"message": "The model does not exist."}}, 404)
        if (received.body.get("prompt_logprobs") or 0) > self.max_logprobs:
            text = f"Requested prompt logprobs of {received.body['prompt_logprobs']}, which is greater than max allowed"
            return Answer({"error": {"message": f"{text}: {self.max_logprobs}"}}, 400)
        with self.lock:
            return Answer(self.change(received, self.completions(received.body)))

    def completions(self, body: Mapping[str, Any]) -> dict[str, Any]:
        prompt = body["prompt"]
        if isinstance(prompt, str):
            prompts = [self.tokenizer.encode(prompt, add_special_tokens=body["add_special_tokens"])]
        else:
            prompts = prompt if isinstance(prompt[0], list) else [prompt]
        return {
            "object": "text_completion",
            "model": self.name,
            "choices": [self.choice(index, ids, body) for index, ids in enumerate(prompts)],
            "usage": {"prompt_tokens": sum(map(len, prompts)), "completion_tokens": 1},
        }

    @torch.no_grad()
    def logp(self, ids: Sequence[int]) -> torch.Tensor:
        logits_TV = self.model(torch.tensor([ids])).logits[0].float()
        logits_TV[:, 7] += self.shift
        return logits_TV.log_softmax(-1)

    def choice(self, index: int, ids: Sequence[int], body: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {"index": index, "text": "", "prompt_token_ids": list(ids), "finish_reason": "length"}
        if (count := body.get("prompt_logprobs")) is not None:
            logp_TV, listed = self.logp(ids), list[Any]([None])
            for t, token in enumerate(ids[1:]):
                kept = {*logp_TV[t].topk(count).indices.tolist(), token}
                texts = {i: self.tokenizer.decode([i]) for i in kept}
                listed.append({str(i): {"logprob": float(logp_TV[t, i]), "rank": 1, "decoded_token": texts[i]} for i in kept})
            found["prompt_logprobs"] = listed
        generator = torch.Generator().manual_seed(body.get("seed") or 0)
        generated = list[int]()
        for _ in range(body["max_tokens"]):
            logp_V = self.logp([*ids, *generated])[-1]
            draw = torch.multinomial((logp_V / max(body["temperature"], 1e-3)).softmax(-1), 1, generator=generator)
            generated.append(int(draw))
            if generated[-1] in body.get("stop_token_ids", []):
                found["finish_reason"] = "stop"
                break
        return {**found, "token_ids": generated}

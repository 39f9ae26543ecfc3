"""The student's weights on vLLM servers: transfer and comparison.

The main process writes the weights to a folder, from which the servers load them (`servers.vllm`).  After each transfer, the
log-probabilities of the servers are compared with those of the student (`generation.vllm_probe`).
"""

import sys
import tempfile
from pathlib import Path

import torch

from redistill.contracts import EngineTools
from redistill.errors import RedistillError, ServerError, ServerUnavailableError
from redistill.generation.vllm_probe import PROBE_TOKENS, TOP_K, Threshold, difference, probe_texts, student_logprobs
from redistill.interfaces import CausalModel
from redistill.models.families import position_limit
from redistill.models.lora import has_adapters, merged_copy
from redistill.processes import signals
from redistill.servers.vllm import Loaded, VllmServers
from redistill.storage import files, folders

_LOADS = 2  # the second attempt is for a server that kept its prefix cache because it still used a part of it
RESUME = "check the server, and run the same command again to resume"


class ServedWeights:
    """The student's weights on servers.

    Args:
        servers: The servers.
        tools: The objects that the engine is built from.
        folder: Folder for a new subfolder with the weights, which is removed at the end.  If None, the temporary folder of
            this machine is used.
        tolerance: Upper limit of the differences between log-probabilities, in nats (see `Threshold`).

    Attributes:
        model: Name of the model with the student's weights on the servers.
    """

    def __init__(self, servers: VllmServers, tools: EngineTools, *, folder: Path | None, tolerance: float) -> None:
        self.model = servers.model
        self._servers, self._tools, self._parent, self._threshold = servers, tools, folder, Threshold(tolerance)
        self._temporary: tempfile.TemporaryDirectory[str] | None = None  # deleted together with this object
        self._texts: list[tuple[int, ...]] = []
        self._logp_NV = torch.empty(0)
        self._loaded: Loaded | None = None

    def transfer(self, student: CausalModel) -> None:
        """Let the servers load the student's weights, and compare log-probabilities.

        Every process calls this method; an error of the main process is raised in all of them.

        Raises:
            OutputError: the weights cannot be written.
            ServerError: this is the first transfer, and a server rejected it or its log-probabilities differ too much.
            ServerUnavailableError: a server cannot be reached, or a later transfer failed.
        """
        is_first, fault = self._loaded is None, None
        if is_first:
            self._prepare(student)
        self._logp_NV = student_logprobs(student, self._texts, self._tools.vocabulary)
        if _is_main():
            try:
                self._loaded = Loaded(folder=self._write(student), is_adapter=has_adapters(student))
                self._load(self._loaded, is_first=is_first)
            except RedistillError as error:
                fault = error
        everywhere = signals.gather([(fault, self._loaded, self.model)])
        fault, self._loaded, self.model = everywhere[0]
        if fault is not None:
            raise fault

    def restore(self) -> bool:
        """Load the weights of the last transfer again if a server has other weights.

        Returns:
            True if a server had other weights.

        Raises:
            ServerUnavailableError: a server cannot be reached, or still has other weights.
        """
        assert self._loaded is not None, "restore must be called after the first transfer"
        try:
            gap, reason = self._gap()[0], "has other weights than those of the student"
            if self._threshold.accepts(gap):
                return False
        except ServerUnavailableError:
            raise
        except ServerError as error:  # a server that was restarted may not know the adapters
            reason = f"cannot be compared with the student ({error})"
        self._tools.note(f"engine: a server {reason}; it may have been restarted, and loads the weights again")
        self._load(self._loaded, is_first=False)
        return True

    def _prepare(self, student: CausalModel) -> None:
        """Check the servers, and generate the probe texts.

        No text is longer than the student or a server allows.
        """
        limit, served = position_limit(student), self._servers.check(1, self._tools.note)
        longest = min(PROBE_TOKENS if limit is None else limit, PROBE_TOKENS if served is None else served - 1)
        special = [*self._tools.end_ids, *self._tools.tokenizer.all_special_ids]
        self._texts = probe_texts(self._tools.vocabulary, special, longest)

    def _write(self, student: CausalModel) -> Path:
        """Write the student's weights to a new folder; return the folder.

        If the student has adapters, only these are written.  Otherwise all weights are written, with an untied head.
        """
        if self._temporary is None:  # a new folder, since whatever is in the parent belongs to somebody else
            parent = None if self._parent is None else files.make_folder(self._parent)
            try:
                self._temporary = tempfile.TemporaryDirectory(prefix="redistill-", dir=parent)
            except OSError as error:
                raise files.write_failed(parent or Path(tempfile.gettempdir()), error) from error
        folder = Path(self._temporary.name) / "student"
        with folders.new_folder(folder) as made:
            if has_adapters(student):
                student.save_pretrained(made, save_embedding_layers=False)
            else:
                merged_copy(student, untied=True).save_pretrained(made)
        return folder

    def _load(self, loaded: Loaded, *, is_first: bool) -> None:
        """Load the weights on the servers, and compare log-probabilities.

        Raises:
            ServerError: the first load failed: a server rejected it, or the log-probabilities differ too much.
            ServerUnavailableError: a server cannot be reached, or a later load failed.
        """
        try:
            for _ in range(_LOADS):
                self.model = self._servers.load(loaded)
                gap, server = self._gap()
                limit = self._threshold.limit
                if self._threshold.accepts(gap):
                    return
            fault = (
                f"{server} has not loaded the student's weights: its log-probabilities of probe texts differ by "
                f"{gap:.3g} nats, and must differ by at most {limit:.3g}"
            )
        except ServerUnavailableError:
            raise
        except ServerError as error:
            if is_first:
                raise
            raise ServerUnavailableError(f"engine: {error}; {RESUME}") from error
        if is_first:
            raise ServerError(
                f"engine: {fault}; start the server with the base model of the adapters, or with the folder of "
                "`redistill export MODEL --to vllm`; if the server has a dtype of lower precision, raise engine.tolerance"
            )
        raise ServerUnavailableError(f"engine: {fault}; {RESUME}")

    def _gap(self) -> tuple[float, str]:
        """Return the largest difference of a server from the student, and its server.

        The difference is the mean absolute difference of log-probabilities, in nats.  The server is given by its label.

        Raises:
            ServerError: a server does not have the model, or sent an invalid reply.
        """
        rows = self._servers.next_logprobs(self.model, self._texts, top_k=self._top_k, vocabulary=self._tools.vocabulary)
        found = zip((difference(self._logp_NV, each) for each in rows), self._servers.client.servers, strict=True)
        gap, server = max(found, key=lambda pair: pair[0])
        return gap, server.label

    @property
    def _top_k(self) -> int:
        return min(TOP_K, self._tools.vocabulary)


def _is_main() -> bool:
    """Return whether this is the process that transfers the weights."""
    distributed = sys.modules.get("torch.distributed")
    return signals.num_processes() == 1 or (distributed is not None and distributed.get_rank() == 0)

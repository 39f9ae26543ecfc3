"""The student's weights in vLLM: transfer and comparison.

The main process writes the weights to a folder, from which vLLM loads them.  After each transfer, the log-probabilities that
vLLM computes are compared with those of the student (`generation.vllm_probe`).
"""

import math
import sys
import tempfile
import time
from pathlib import Path

import torch

from redistill.contracts import EngineTools
from redistill.errors import RedistillError, ServerError, ServerUnavailableError
from redistill.generation.vllm_backend import Backend
from redistill.generation.vllm_probe import (
    PROBE_TOKENS,
    TOP_K,
    Threshold,
    difference,
    first_limit,
    probe_texts,
    student_logprobs,
)
from redistill.interfaces import CausalModel
from redistill.models.families import position_limit
from redistill.models.lora import has_adapters, merged_copy
from redistill.processes import signals
from redistill.servers.vllm import Loaded, Route
from redistill.storage import files, folders

_LOADS = 2  # the second attempt is for a server that kept its prefix cache because it still used a part of it
_POLL_S = 1.0  # between two comparisons with a server that is to be restarted
RESTART_FOLDER = "redistill-student"
"""Name of the folder with the weights for the route "restart"."""
RESUME = "check the server, and run the same command again to resume"


class ServedWeights:
    """The student's weights in vLLM.

    Args:
        backend: The servers, or vLLM in this process.
        tools: The objects that the engine is built from.
        folder: Folder for a new subfolder with the weights, which is removed at the end.  If None, the temporary folder of
            this machine is used.  The route "restart" needs a folder, and keeps the subfolder `RESTART_FOLDER`.
        tolerance: Upper limit of the differences between log-probabilities, in nats (see `Threshold`).
        route: How all weights get from the folder to vLLM.
        takes_adapters: Whether adapters are transferred without the base model, by the route "adapter".  If False, or if
            `route` is "restart", all weights are transferred, with merged adapters.
        patience_s: Maximum time to wait for a restart of the servers, in seconds.

    Attributes:
        model: Name of the model with the student's weights in vLLM.
    """

    def __init__(
        self,
        backend: Backend,
        tools: EngineTools,
        *,
        folder: Path | None,
        tolerance: float,
        route: Route,
        takes_adapters: bool,
        patience_s: float,
    ) -> None:
        assert folder is not None or route != "restart", "checked when the recipe is read"
        self.model = backend.model
        self._backend, self._tools, self._parent, self._threshold = backend, tools, folder, Threshold(tolerance)
        self._route, self._patience_s = route, patience_s
        self._takes_adapters = takes_adapters and route != "restart"
        self._temporary: tempfile.TemporaryDirectory[str] | None = None  # deleted together with this object
        self._texts: list[tuple[int, ...]] = []
        self._logp_NV = torch.empty(0)
        self._loaded: Loaded | None = None

    def transfer(self, student: CausalModel) -> None:
        """Let vLLM load the student's weights, and compare log-probabilities.

        Every process calls this method; an error of the main process is raised in all of them.

        Raises:
            OutputError: the weights cannot be written.
            ServerError: this is the first transfer, and a server rejected it or its log-probabilities differ too much.
            ServerUnavailableError: a server cannot be reached, or a later transfer failed.
        """
        is_first = self._loaded is None
        if is_first:
            self._prepare(student)
        self._logp_NV = student_logprobs(student, self._texts, self._tools.vocabulary)
        if _is_main():
            try:
                if is_first:
                    self._set_first_limit(student)
                self._loaded = self._write(student)
                self._load(self._loaded, is_first=is_first)
            except RedistillError as error:
                signals.fail(error)
        self._loaded, self.model, self._threshold = signals.gather([(self._loaded, self.model, self._threshold)])[0]

    def restore(self) -> bool:
        """Load the weights of the last transfer again if a server has other weights.

        A process may call this method without the others.

        Returns:
            True if a server had other weights.  False does not prove that no other process has loaded the weights again.

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
        limit, served = position_limit(student), self._backend.check(1, self._tools.note)
        longest = min(PROBE_TOKENS if limit is None else limit, PROBE_TOKENS if served is None else served - 1)
        special = [*self._tools.end_ids, *self._tools.tokenizer.all_special_ids]
        self._texts = probe_texts(self._tools.vocabulary, special, longest)

    def _set_first_limit(self, student: CausalModel) -> None:
        """Set the limit of the first difference from the precisions."""
        precision = self._backend.precision()
        self._threshold.start = first_limit(student, self._texts, self._logp_NV, self._top_k, precision)

    def _write(self, student: CausalModel) -> Loaded:
        """Write the student's weights to a folder; return the folder and the route.

        For the route "adapter", only the adapters are written.  For the route "extension", a head that is tied to the input
        embedding stays tied; for the other routes, the written head is untied.
        """
        route: Route = "adapter" if self._takes_adapters and has_adapters(student) else self._route
        folder = self._folder()
        with folders.new_folder(folder) as made:
            if route == "adapter":
                student.save_pretrained(made, save_embedding_layers=False)
            else:
                merged_copy(student, untied=route != "extension").save_pretrained(made)
        return Loaded(folder=folder, route=route)

    def _folder(self) -> Path:
        """Return the path of the folder with the weights."""
        if self._route == "restart":
            assert self._parent is not None, "checked by the constructor"
            return files.make_folder(self._parent) / RESTART_FOLDER
        if self._temporary is None:  # a new folder, since other files of the parent belong to other programs
            parent = None if self._parent is None else files.make_folder(self._parent)
            try:
                self._temporary = tempfile.TemporaryDirectory(prefix="redistill-", dir=parent)
            except OSError as error:
                raise files.write_failed(parent or Path(tempfile.gettempdir()), error) from error
        return Path(self._temporary.name) / "student"

    def _load(self, loaded: Loaded, *, is_first: bool) -> None:
        """Load the weights, and compare log-probabilities.

        Raises:
            ServerError: the first load failed: vLLM rejected it, or the log-probabilities differ too much.
            ServerUnavailableError: a server cannot be reached, or a later load failed.
        """
        try:
            for _ in range(_LOADS):
                self.model = self._backend.load(loaded)
                limit = self._threshold.limit
                gap, label = self._await_restart(loaded.folder) if loaded.route == "restart" else self._gap()
                if self._threshold.accepts(gap):
                    return
                if loaded.route == "restart":
                    break
            fault = (
                f"{label} does not have the student's weights: its log-probabilities of probe texts differ by "
                f"{gap:.3g} nats, and must differ by at most {limit:.3g}"
            )
        except ServerUnavailableError:
            raise
        except ServerError as error:
            if is_first:
                raise
            raise ServerUnavailableError(f"engine: {error}; {RESUME}") from error
        if is_first and loaded.route != "restart":
            raise ServerError(f"engine: {fault}; {self._backend.remedy}")
        raise ServerUnavailableError(f"engine: {fault}; {RESUME}")

    def _await_restart(self, folder: Path) -> tuple[float, str]:
        """Wait until all servers have the weights in `folder`.

        The wait ends after at most `patience_s` seconds.  The function returns the result of its last call of `_gap`.

        Raises:
            ServerUnavailableError: a server cannot be reached.
            Interrupted: a signal arrived.
        """
        end, is_printed = time.monotonic() + self._patience_s, False
        while True:
            try:
                found = self._gap()
            except ServerUnavailableError:
                raise
            except ServerError as error:  # a server that is starting may not list the model yet
                found = math.inf, str(error)
            if found[0] <= self._threshold.limit or time.monotonic() >= end:
                return found
            if not is_printed:
                self._tools.note(f"engine: waiting up to {self._patience_s:g} s for a restart of the servers from {folder}")
                is_printed = True
            signals.poll()
            time.sleep(_POLL_S)

    def _gap(self) -> tuple[float, str]:
        """Return the largest difference between a server and the student.

        The result is the mean absolute difference of log-probabilities, in nats, and the label of the server.

        Raises:
            ServerError: a server does not have the model, or sent an invalid reply.
        """
        rows = self._backend.next_logprobs(self.model, self._texts, top_k=self._top_k, vocabulary=self._tools.vocabulary)
        found = zip((difference(self._logp_NV, each) for each in rows), self._backend.labels, strict=True)
        return max(found, key=lambda pair: pair[0])

    @property
    def _top_k(self) -> int:
        return min(TOP_K, self._tools.vocabulary)


def _is_main() -> bool:
    """Return whether this is the process that transfers the weights."""
    distributed = sys.modules.get("torch.distributed")
    return signals.num_processes() == 1 or (distributed is not None and distributed.get_rank() == 0)

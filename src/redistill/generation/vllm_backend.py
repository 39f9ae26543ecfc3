"""Interface between the vLLM engine and vLLM, on servers or on this machine."""

from collections.abc import Callable, Sequence
from typing import Protocol

from redistill.contracts import Generation, GenerationRequest, Sampling
from redistill.servers.vllm import Loaded, Precision


class Backend(Protocol):
    """One or several copies of a model that vLLM runs.

    `servers.vllm.VllmServers` runs them on servers, and `generation.vllm_colocated.ColocatedVllm` on this machine.  The methods
    raise a ServerError if vLLM rejects a request or sends an invalid reply.  They raise a ServerUnavailableError if vLLM cannot
    be reached.
    """

    @property
    def model(self) -> str:
        """Name of the model without adapters."""

    @property
    def labels(self) -> Sequence[str]:
        """The name of each copy in messages."""

    @property
    def remedy(self) -> str:
        """What to do if log-probabilities differ after the first transfer."""

    @property
    def num_lost(self) -> int:
        """Number of failed requests that were sent again.

        A copy may have been restarted in between.
        """

    def precision(self) -> Precision:
        """Return the precision of the copies.

        Raises:
            ServerUnavailableError: see the class.
        """

    def check(self, longest: int, report: Callable[[str], None]) -> int | None:
        """Check the version of vLLM and the length limit of the model.

        Args:
            longest: Maximum number of tokens of a text, prompt and answer together.
            report: Function that is called with one line if redistill was not tested with this version.

        Returns:
            The length limit in tokens; None if it is not known.

        Raises:
            ConfigError: the length limit is below `longest`.
            ServerError, ServerUnavailableError: see the class.
        """

    def load(self, weights: Loaded) -> str:
        """Load weights, and discard stored states of earlier prompts.

        Returns:
            The name of the model with these weights.

        Raises:
            ServerError, ServerUnavailableError: see the class.
        """

    def next_logprobs(
        self, model: str, prompts: Sequence[Sequence[int]], *, top_k: int, vocabulary: int
    ) -> list[list[dict[int, float]]]:
        """Return the log-probabilities of the most probable next tokens.

        Returns:
            One list for each copy.  It has one dict for each prompt, which maps token ids to log-probabilities in nats.

        Raises:
            ServerError, ServerUnavailableError: see the class.
        """

    def check_ban(self, model: str, vocabulary: int) -> None:
        """Check that repeated n-grams can be banned.

        Raises:
            ServerError: vLLM does not ban repeated n-grams, rejects the request, or sends an invalid reply.
            ServerUnavailableError: see the class.
        """

    def generate(
        self,
        model: str,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        *,
        end_ids: Sequence[int],
        vocabulary: int,
        has_logprobs: bool,
    ) -> list[Generation]:
        """Return the continuation of every request, in the order of the requests.

        `VllmServers.generate` describes the arguments.

        Raises:
            ServerError, ServerUnavailableError: see the class.
        """

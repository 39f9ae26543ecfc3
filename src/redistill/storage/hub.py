"""Checks whether a name is a local path, and whether the model hub answers.

huggingface_hub repeats an unanswered request several times, so a look-up could take minutes. Before the first look-up, one
request with a time limit is therefore sent to the hub.
"""

import functools
import re
import threading
from pathlib import Path
from typing import NamedTuple

from redistill.errors import first_line
from redistill.storage.paths import unusable
from redistill.storage.redaction import plain

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""Pattern of a hub name, owner/name. A path may match the pattern as well; see `is_local`."""
LOOK_UP_SECONDS = 10.0
"""Time limit of the request before the first look-up in seconds, including the DNS look-up."""


class HubAnswer(NamedTuple):
    """The result of a request to the hub.

    Args:
        has_answered: Whether the hub has answered; True as well if the offline mode of huggingface_hub is set.
        text: A sentence that states the result.
    """

    has_answered: bool
    text: str


def is_local(name: str) -> bool:
    """Return whether the name of a model or data set is a path.

    A name is a path if it begins with ".", "/" or "~", or contains a backslash. It is also a path if its first component is an
    existing folder. A path is never looked up on the hub, since a stranger could have registered a repository with this name.

    Args:
        name: The name as given by the user.

    Example:
        >>> is_local("./models/small"), is_local("openai-community/gpt2")
        (True, False)
    """
    first, slash, _ = name.partition("/")
    is_path = name.startswith((".", "/", "~")) or "\\" in name or Path(name).is_absolute()
    return is_path or (bool(slash) and unusable(first) is None and Path(first).is_dir())


def ask_hub(seconds: float) -> HubAnswer:
    """Send one request to the hub.

    Args:
        seconds: The time limit, > 0.

    Returns:
        Whether the hub has answered, with any status code.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return HubAnswer(True, "not queried, since HF_HUB_OFFLINE is set")
    answer = [HubAnswer(False, f"{constants.ENDPOINT} does not answer within {seconds:g} s")]

    def ask() -> None:
        """Send one request and store the result in `answer`."""
        try:
            code = get_session().head(constants.ENDPOINT, timeout=seconds).status_code
            answer[0] = HubAnswer(True, f"{constants.ENDPOINT} answers ({code})")
        except Exception as error:  # noqa: BLE001 - the library may raise any exception
            if not _is_timeout(error):
                answer[0] = HubAnswer(False, f"{constants.ENDPOINT} cannot be reached ({first_line(error)[:120]})")

    thread = threading.Thread(target=ask, daemon=True)  # a thread, since the DNS look-up has no time limit
    thread.start()
    thread.join(seconds + 0.5)
    return answer[0]._replace(text=plain(answer[0].text))


def _is_timeout(error: Exception) -> bool:
    return isinstance(error, TimeoutError) or "timeout" in type(error).__name__.lower()


@functools.cache
def unreachable() -> str:
    """Return the reason why the hub cannot be reached.

    One request is sent per process, with a time limit of `LOOK_UP_SECONDS`. If the hub does not answer, huggingface_hub's
    offline mode is set for this process: local copies are used, and no other request is sent.

    Returns:
        The reason; "" if the hub answers, or if the user has set the offline mode.
    """
    from huggingface_hub import constants

    answer = ask_hub(LOOK_UP_SECONDS)
    if not answer.has_answered:
        constants.HF_HUB_OFFLINE = True
    return "" if answer.has_answered else answer.text

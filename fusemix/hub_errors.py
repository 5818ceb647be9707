"""Errors of the Hugging Face Hub's client, whose types are many, as what they mean."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Literal

Kind = Literal["unreachable", "full", "gated", "missing", "revision", "refused", "other"]
_HTTP: dict[str, Kind] = {
    "GatedRepoError": "gated",
    "RevisionNotFoundError": "revision",
    "RepositoryNotFoundError": "missing",
}


@dataclass(frozen=True)
class HubError:
    """Name what an error of the client means.

    Attributes:
        kind: The network, the disk, conditions to accept first, a repository or revision that is not there (or not for
            this token), another answer of the Hub, or something else.
        status: HTTP status of the answer; None if there was none.
        said: The reason as the Hub or the client gives it, one line.
    """

    kind: Kind
    status: int | None
    said: str

    @classmethod
    def of(cls, error: BaseException) -> HubError:
        """Look through an error and its causes."""
        from huggingface_hub.errors import HfHubHTTPError

        met = f"{type(error).__name__}: {_first_line(error)}"
        kind: Kind = "other"
        cause: BaseException | None = error
        while cause is not None:
            names = [base.__name__ for base in type(cause).__mro__]
            if isinstance(cause, HfHubHTTPError):
                known: Kind = next((found for name, found in _HTTP.items() if name in names), "refused")
                return cls(known, cause.response.status_code, (cause.server_message or _first_line(cause))[:200])
            if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
                return cls("full", None, met)
            if {"TransportError", "OfflineModeIsEnabled"} & set(names):  # of httpx or httpx2, by the client's version
                kind, met = "unreachable", f"{type(cause).__name__}: {_first_line(cause)}"
            cause = cause.__cause__
        return cls(kind, None, met)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]

"""What the client of the Hub raises and prints, as errors of this package in one line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator

from amnesia.errors import AmnesiaError, SourceError, first_line

DEFAULT_REMEDY = "check the network, or give a folder"


@contextlib.contextmanager
def hub_errors(shown: str, remedy: str = DEFAULT_REMEDY) -> Generator[None]:
    """Turn failures of the Hub into SourceError, about the repository that messages call `shown`.

    Errors of this package pass unchanged.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        # The base of all errors of the HTTP library, whose name depends on the version of the client.
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except AmnesiaError:
        raise
    except GatedRepoError as error:
        raise SourceError(f"{shown} is gated: accept its terms on the Hub and log in with `hf auth login`") from error
    except HFValidationError as error:
        raise SourceError(f"{shown} is not the name of a repository: expected owner/name") from error
    except RevisionNotFoundError as error:
        repo = shown.partition("@")[0]
        raise SourceError(f"{shown} has no such revision: give a branch, tag or commit of {repo}") from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"{shown} is neither a folder here nor a repository that the Hub shows you: check the name, or log in"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise SourceError(f"{shown} refuses access ({reason(error)}): log in with `hf auth login`") from error
        raise SourceError(f"{shown} cannot be reached ({reason(error)}): {remedy}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError, OSError) as error:
        _check_token(shown)
        raise SourceError(f"{shown} cannot be fetched ({reason(error)}): {remedy}") from error
    except Exception as error:
        _check_token(shown)
        why = f"{type(error).__name__}: {first_line(error)}"
        raise SourceError(f"{shown} gave an answer that is not understood ({why}): {remedy}") from error


def _check_token(shown: str) -> None:
    """Raise SourceError when no request can carry the token: libraries say so by showing the whole of it."""
    from huggingface_hub import get_token

    token = get_token() or ""
    if not token.isascii() or not token.isprintable():
        raise SourceError(
            f"{shown} cannot be asked: the token holds a character that no token has; set HF_TOKEN anew, or log in "
            "with `hf auth login`"
        ) from None


def reason(error: BaseException) -> str:
    """Why a request failed, in a few words: the status and what the server said, or the error's first line."""
    response = getattr(error, "response", None)
    if response is None:
        return first_line(error)
    said = getattr(error, "server_message", None)
    return f"{response.status_code}: {first_line(Exception(said))}" if said else f"status {response.status_code}"


@contextlib.contextmanager
def without_patterns() -> Generator[None]:
    """Keep the client from listing all patterns where no file matches, while the block runs."""
    logger = logging.getLogger("huggingface_hub._snapshot_download")

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No files matched")

    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)

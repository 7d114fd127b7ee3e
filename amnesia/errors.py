"""Errors that a user can cause. Every message names what was found, what was expected and the remedy, in one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Generator


class AmnesiaError(Exception):
    """Base of all errors of this package; the command line prints it as one line and exits with code 2."""


class InputError(AmnesiaError, ValueError):
    """The user's input (a recipe, an option, an entity, a cell) cannot be used as it is."""


class RecipeError(InputError):
    """A recipe has an unknown key, lacks a section, or contradicts itself."""


class SourceError(AmnesiaError, OSError):
    """A model could not be found, fetched or converted."""


class PublishError(AmnesiaError, OSError):
    """The Hub refuses or breaks off what was to be published, or an output is not fit to be."""


class LayoutError(AmnesiaError, ValueError):
    """The model's architecture is unknown, or its tensors are not where its architecture says."""


class CheckpointError(AmnesiaError, ValueError):
    """A file of a checkpoint is malformed, missing, or of a kind that cannot be edited exactly."""


class OutputError(AmnesiaError, OSError):
    """The output cannot be written: it exists, lies inside a cache, or the disk is full."""


class VerificationError(AmnesiaError, ValueError):
    """Files on disk are not what their manifest declares."""


class NumericalError(AmnesiaError, ArithmeticError):
    """NaN or infinity where a number was expected."""


@contextlib.contextmanager
def os_errors_as(kind: type[AmnesiaError], what: str, remedy: str) -> Generator[None]:
    """Turn what the system refuses in the block into `kind` with the message "what (why): remedy".

    Errors of this package, some of which are errors of the system too, pass as they are.
    """
    try:
        yield
    except AmnesiaError:
        raise
    except OSError as error:
        raise kind(f"{what} ({error.strerror}): {remedy}") from error


@contextlib.contextmanager
def library_errors_as(kind: type[AmnesiaError], what: str, remedy: str) -> Generator[None]:
    """Turn whatever another library raises in the block into `kind` with the message "what (why): remedy".

    Libraries raise what their own code happens to stumble on, so that no list of classes is ever complete. Errors of
    this package pass as they are. Where memory was too little, that is what there is to mend.
    """
    try:
        yield
    except (AmnesiaError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # Panics of libraries in Rust (tokenizers, safetensors) are no Exception.
        if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
            remedy = "free memory, or raise the limit of this process (ulimit -v)"
        raise kind(f"{what} ({in_one_line(error)}): {remedy}") from error


# As the system says it (ENOMEM), and torch.
_NO_MEMORY = re.compile("cannot allocate memory|can't allocate memory|out of memory", re.IGNORECASE)


def in_one_line(error: BaseException) -> str:
    """What an error of another library says, in one line of 240 characters at most; its class if it says nothing."""
    said = " ".join(str(error).split())
    name = type(error).__name__
    # The message of a KeyError is a key, that of a StopIteration nothing.
    text = f"{name}: {said}" if said and isinstance(error, LookupError) else said or name
    return text if len(text) <= 240 else text[:237] + "..."


def signal_of(error: KeyboardInterrupt) -> int:
    """The number of the signal that an interrupt came from: SIGTERM and SIGHUP are raised with theirs."""
    import signal

    return error.args[0] if error.args else signal.SIGINT


def clipped(text: str) -> str:
    """A text of any length for a message: 80 characters at most."""
    return text if len(text) <= 80 else text[:77] + "..."


def first_line(error: BaseException) -> str:
    """The first line of an error of another library, for a message of one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)

"""Everything that anontls raises on purpose.

::

    AnontlsError
    ├── UsageError         the command line asks for something that does not exist        exit 2
    ├── MalformedInput     a file cannot be read as what it claims to be; says where      exit 2
    └── Unreachable        something needed could not be reached or is not known          exit 3

Any other exception that reaches the command line is a fault of ours (exit 4).
"""

from __future__ import annotations


class AnontlsError(Exception):
    """Base of all errors meant for the user; ``hint`` is the cure, when there is one."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(AnontlsError):
    """The request names something that is not there; the message lists what is."""


class MalformedInput(AnontlsError):
    """A file or a value is not what it should be.

    ``where`` is the place as a reader would look for it: file, object, property.
    """

    def __init__(self, where: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(f"{where}: {message}" if where else message, hint=hint)
        self.where = where
        self.message = message


class Unreachable(AnontlsError):
    """Something that the answer needs could not be reached."""

"""Blame is in the type of the exception.

::

    AnontlsError
    ├── RemoteProtocolError    the peer did what SMTP forbids: close the connection
    └── LocalProtocolError     our own program asked a session for something illegal: a bug
"""

from __future__ import annotations

from anontls.errors import AnontlsError


class RemoteProtocolError(AnontlsError):
    """The peer broke SMTP.  Close the connection.

    ``events`` holds what had been understood before the fault: a message that the peer acknowledged in the same
    bytes stays acknowledged.  They are to be noted, not acted on; the session is closed.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.events: tuple[object, ...] = ()


class LocalProtocolError(AnontlsError):
    """A session was asked for something that its state does not allow."""

"""Everything that affects what may follow what.  Nothing else stands here; sessions, tests and pictures read it.

``(state, what) -> state``: *what* is a command that was accepted, a reply that came, or something that happened.
What is absent is illegal.  A refused command changes nothing, so it has no row.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TypeVar


class ServerState(enum.Enum):
    """A receiving session; the value says what it waits for."""

    CONNECTED = "connected, nothing said"
    GREETED = "EHLO"
    HELLO = "MAIL"
    MAIL = "RCPT"
    RCPT = "RCPT, DATA or BDAT"
    DATA = "content up to CRLF.CRLF"
    CHUNK = "octets of a chunk"
    LAST_CHUNK = "octets of the last chunk"
    BDAT = "the next BDAT"
    SETTLING = "the program's word on the message"
    TLS = "the TLS handshake"
    AUTHENTICATING = "the program's word on the authentication"
    CHALLENGED = "an authentication response"
    CLOSED = "nothing more"


_S = ServerState

SERVER: Mapping[tuple[ServerState, str], ServerState] = {
    (_S.CONNECTED, "220"): _S.GREETED,
    # Before EHLO.  [RFC5321 4.1.4]
    **{(_S.GREETED, verb): _S.GREETED for verb in ("NOOP", "RSET", "HELP", "VRFY", "EXPN")},
    (_S.GREETED, "EHLO"): _S.HELLO,
    (_S.GREETED, "HELO"): _S.HELLO,
    # Between messages.  TLS and authentication are possible only here.
    **{(_S.HELLO, verb): _S.HELLO for verb in ("EHLO", "HELO", "NOOP", "RSET", "HELP", "VRFY", "EXPN")},
    (_S.HELLO, "STARTTLS"): _S.TLS,
    (_S.HELLO, "X-ANONYMOUSTLS"): _S.TLS,
    (_S.HELLO, "AUTH"): _S.AUTHENTICATING,
    (_S.HELLO, "X-EXPS"): _S.AUTHENTICATING,
    (_S.HELLO, "MAIL"): _S.MAIL,
    # In a mail transaction.  EHLO and RSET end it.
    **{(state, verb): state for state in (_S.MAIL, _S.RCPT, _S.BDAT) for verb in ("NOOP", "HELP", "VRFY", "EXPN")},
    **{(state, verb): _S.HELLO for state in (_S.MAIL, _S.RCPT, _S.BDAT) for verb in ("EHLO", "HELO", "RSET")},
    (_S.MAIL, "RCPT"): _S.RCPT,
    (_S.RCPT, "RCPT"): _S.RCPT,
    (_S.RCPT, "DATA"): _S.DATA,
    (_S.DATA, "end of data"): _S.SETTLING,
    (_S.DATA, "content refused"): _S.HELLO,
    # Chunks.  Between them nothing of another message may come.  [RFC3030 2]
    (_S.RCPT, "BDAT"): _S.CHUNK,
    (_S.RCPT, "BDAT LAST"): _S.LAST_CHUNK,
    (_S.BDAT, "BDAT"): _S.CHUNK,
    (_S.BDAT, "BDAT LAST"): _S.LAST_CHUNK,
    (_S.CHUNK, "chunk complete"): _S.BDAT,
    (_S.CHUNK, "content refused"): _S.HELLO,
    (_S.LAST_CHUNK, "chunk complete"): _S.SETTLING,
    (_S.LAST_CHUNK, "content refused"): _S.HELLO,
    (_S.SETTLING, "settled"): _S.HELLO,
    # TLS: all that was learnt in clear is forgotten.  [RFC3207 4.2]
    (_S.TLS, "TLS established"): _S.GREETED,
    (_S.AUTHENTICATING, "334"): _S.CHALLENGED,
    (_S.CHALLENGED, "response"): _S.AUTHENTICATING,
    (_S.CHALLENGED, "cancelled"): _S.HELLO,
    (_S.AUTHENTICATING, "authenticated"): _S.HELLO,
    (_S.AUTHENTICATING, "not authenticated"): _S.HELLO,
    # The end.
    **{(state, "QUIT"): _S.CLOSED for state in (_S.GREETED, _S.HELLO, _S.MAIL, _S.RCPT, _S.BDAT)},
    **{(state, "closed"): _S.CLOSED for state in _S if state is not _S.CLOSED},
}


class ClientState(enum.Enum):
    """A sending session; messages have states of their own."""

    GREETING = "the greeting"
    HELLO = "the answer to EHLO or LHLO"
    HELO = "the answer to HELO"
    READY = "our program or answers about messages"
    TLS_ASKED = "the answer to the TLS verb"
    TLS = "the TLS handshake"
    AUTHENTICATING = "the answer to an authentication command"
    CHALLENGED = "our program's authentication response"
    REFUSED = "our QUIT"
    QUIT = "the answer to QUIT"
    CLOSED = "nothing more"


_C = ClientState

CLIENT: Mapping[tuple[ClientState, str], ClientState] = {
    (_C.GREETING, "220"): _C.HELLO,
    (_C.GREETING, "refused"): _C.REFUSED,
    (_C.HELLO, "250"): _C.READY,
    (_C.HELLO, "refused, HELO allowed"): _C.HELO,
    (_C.HELLO, "refused"): _C.REFUSED,
    (_C.HELO, "250"): _C.READY,
    (_C.HELO, "refused"): _C.REFUSED,
    (_C.READY, "send STARTTLS"): _C.TLS_ASKED,
    (_C.READY, "send X-ANONYMOUSTLS"): _C.TLS_ASKED,
    (_C.TLS_ASKED, "220"): _C.TLS,
    (_C.TLS_ASKED, "refused"): _C.READY,
    # What was learnt in clear is forgotten; EHLO goes out by itself.  [RFC3207 4.2]
    (_C.TLS, "TLS established"): _C.HELLO,
    (_C.READY, "send AUTH"): _C.AUTHENTICATING,
    (_C.AUTHENTICATING, "334"): _C.CHALLENGED,
    (_C.AUTHENTICATING, "235"): _C.READY,
    (_C.AUTHENTICATING, "refused"): _C.READY,
    (_C.CHALLENGED, "send response"): _C.AUTHENTICATING,
    (_C.READY, "send message"): _C.READY,
    (_C.READY, "send QUIT"): _C.QUIT,
    (_C.REFUSED, "send QUIT"): _C.QUIT,
    **{(state, "closed"): _C.CLOSED for state in _C if state is not _C.CLOSED},
}


class MessageState(enum.Enum):
    """One message of a sending session."""

    QUEUED = "its turn"
    ENVELOPE = "answers to MAIL and RCPT"
    DATA_SENT = "the answer to DATA"
    CONTENT = "its content to be sent"
    ENDED = "the answer to its end"
    DONE = "nothing more"


_M = MessageState

MESSAGE: Mapping[tuple[MessageState, str], MessageState] = {
    (_M.QUEUED, "send MAIL"): _M.ENVELOPE,
    (_M.ENVELOPE, "send DATA"): _M.DATA_SENT,
    (_M.ENVELOPE, "send BDAT"): _M.CONTENT,
    (_M.DATA_SENT, "354"): _M.CONTENT,
    (_M.CONTENT, "end sent"): _M.ENDED,
    # No recipient, or a chunk was refused, or the peer went away.
    (_M.ENDED, "answered"): _M.DONE,
    **{(state, "given up"): _M.DONE for state in _M if state is not _M.DONE},
}

AnyState = TypeVar("AnyState", bound=enum.Enum)


def draw(table: Mapping[tuple[AnyState, str], AnyState]) -> str:
    """Mermaid source of the table's picture; several ways between two states share an arrow."""
    ways: dict[tuple[str, str], list[str]] = {}
    for (state, what), target in table.items():
        ways.setdefault((state.name, target.name), []).append(what)
    edges = [f"  {state} --> {target}: {', '.join(whats)}" for (state, target), whats in sorted(ways.items())]
    first = next(iter(table))[0].name
    last = sorted({target.name for target in table.values()} - {state.name for state, _ in table})
    return (
        "\n".join(["stateDiagram-v2", f"  [*] --> {first}", *edges, *(f"  {state} --> [*]" for state in last)]) + "\n"
    )

"""AUTH and X-EXPS in a session, whatever the mechanism: `ServerSession` and `ClientSession` are built on these halves.

Tokens go in and out as octets; no trace, event or `repr` shows one.
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Final

from anontls.smtp import exchange
from anontls.smtp.errors import LocalProtocolError, RemoteProtocolError
from anontls.smtp.events import (
    Authenticate,
    Authenticated,
    AuthenticationCancelled,
    AuthenticationResponse,
    Challenge,
    ClientEvent,
    Refused,
    ServerEvent,
)
from anontls.smtp.exchange import ServerSettings, TlsVerb
from anontls.smtp.receiving import Receiving, Trace
from anontls.smtp.reply import Reply
from anontls.smtp.states import ServerState

_TOKEN: Final = b" <authentication response>"  # in its place, in traces [FACT O 3.4]


class AuthenticatingServer(Receiving):
    """How a receiving session authenticates its peer."""

    def __init__(self, settings: ServerSettings, trace: Trace | None) -> None:
        super().__init__(settings, trace)
        self.tls: TlsVerb | None = None
        self.authenticated_as: str | None = None
        self.exchange_server = False

    # --- what the program calls ---------------------------------------------------------------------------------------

    def continue_authentication(self, challenge: bytes) -> list[ServerEvent]:
        """Send a challenge; `AuthenticationResponse` follows."""
        events: list[ServerEvent] = []
        if self.closed:
            return events
        self._must(ServerState.AUTHENTICATING)
        self._go("334")
        self._say(b"334 ", challenge)
        return self._resume(events)

    def authenticated(
        self,
        who: str | None,
        reply: Reply = exchange.AUTHENTICATED,
        *,
        exchange_server: bool = False,
        token: bytes | None = None,
    ) -> list[ServerEvent]:
        """End an authentication: ``who`` it is, or None with a reply that says no.

        ``token`` goes with the 235 of EXCHANGEAUTH [FACT R 3.4].
        """
        if (who is None) is reply.positive:
            raise LocalProtocolError(f"{who or 'nobody'} is authenticated, but the reply is {reply}")
        if exchange_server and (who is None or self.tls is None):
            raise LocalProtocolError("the rights of an Exchange server need a name and TLS")
        events: list[ServerEvent] = []
        if self.closed:
            return events
        self._must(ServerState.AUTHENTICATING)
        if who is None:
            self._go("not authenticated")
            self._fault(reply, events)
        else:
            self._go("authenticated")
            self.authenticated_as, self.exchange_server = who, exchange_server
            if token is None:
                self._reply(reply)
            else:
                self._say(b"235 2.7.0 ", token)
        return self._resume(events)

    # --- what the peer says -------------------------------------------------------------------------------------------

    def _authenticate(self, text: str, events: list[ServerEvent]) -> None:
        words = text.split()
        verb = words[0].upper()
        refusal = self._no_authentication(verb)
        if refusal is not None:
            self._fault(refusal, events)
            return
        mechanisms = (exchange.auth_mechanisms if verb == "AUTH" else exchange.exps_mechanisms)(self.settings, self.tls)
        mechanism = words[1].upper() if len(words) > 1 else ""
        if mechanism not in mechanisms:
            self._fault(exchange.UNRECOGNIZED_AUTHENTICATION if mechanism else exchange.INVALID_ARGUMENTS, events)
            return
        variant = None
        if verb == "X-EXPS" and mechanism == "EXCHANGEAUTH":
            if len(words) < 3 or words[2].upper() != "SHA256":
                self._fault(exchange.UNRECOGNIZED_AUTHENTICATION, events)
                return
            variant = words.pop(2).upper()
        if len(words) > 3:
            self._fault(exchange.INVALID_ARGUMENTS, events)
            return
        initial = None
        if len(words) == 3:
            initial = b"" if words[2] == "=" else _decode(words[2].encode("ascii"))  # [RFC4954 4]
            if initial is None:
                self._fault(exchange.CANNOT_DECODE, events)
                return
        self._go(verb)
        events.append(Authenticate(verb, mechanism, variant, initial))

    def _no_authentication(self, verb: str) -> Reply | None:
        """Why none can begin now."""
        if self.state is ServerState.GREETED:
            return exchange.SEND_HELLO_FIRST
        if verb not in self._offered:
            return exchange.UNRECOGNIZED_COMMAND
        if self.authenticated_as is not None:
            return exchange.ALREADY_AUTHENTICATED
        return None if verb in self._allowed else exchange.BAD_SEQUENCE

    def _authentication_line(self, line: bytes, events: list[ServerEvent]) -> None:
        if self.trace:
            self.trace("<", _TOKEN[1:])
        data = None if line == b"*" else _decode(line)
        if data is None:
            self._go("cancelled")
            self._fault(exchange.AUTHENTICATION_CANCELLED if line == b"*" else exchange.CANNOT_DECODE, events)
            events.append(AuthenticationCancelled())
        else:
            self._go("response")
            events.append(AuthenticationResponse(data))

    # --- small steps --------------------------------------------------------------------------------------------------

    def _must(self, state: ServerState) -> None:
        if self.state is not state:
            raise LocalProtocolError(f"the session waits for {self.state.value}, not for {state.value}")

    def _say(self, head: bytes, token: bytes) -> None:
        self._out.append(head + base64.b64encode(token) + b"\r\n")
        if self.trace:
            self.trace(">", head[:3] + _TOKEN)


class AuthenticatingClient(ABC):
    """How a sending session authenticates itself."""

    def __init__(self) -> None:
        self.extensions: dict[str, tuple[str, ...]] = {}  # of the last EHLO answer; empty until there is one
        self._auth_verb = ""
        self._auth_variant: str | None = None

    @abstractmethod
    def _nothing_awaited(self, verb: str) -> None:
        """Raise LocalProtocolError unless a command of the session may be sent."""

    @abstractmethod
    def _go(self, what: str) -> None:
        """Change the state."""

    @abstractmethod
    def _say_authentication(self, line: bytes, shown: bytes) -> None:
        """Send a line, of which traces get what is shown."""

    def authenticate(
        self, verb: str, mechanism: str, initial: bytes | None = None, *, variant: str | None = None
    ) -> None:
        """Begin AUTH or X-EXPS; `Challenge`, `Authenticated` or `Refused` follows."""
        self._nothing_awaited(verb)
        if verb not in {"AUTH", "X-EXPS"} or mechanism not in self.extensions.get(verb, ()):
            raise LocalProtocolError(f"the peer does not offer {verb} {mechanism}")
        words = [verb, mechanism] if variant is None else [verb, mechanism, variant]
        shown = " ".join(words).encode("ascii")
        self._go("send AUTH")
        self._auth_verb, self._auth_variant = verb, variant
        token = b"" if initial is None else b" " + (base64.b64encode(initial) or b"=")
        self._say_authentication(shown + token, shown)

    def respond(self, data: bytes | None) -> None:
        """Answer a challenge; None breaks the authentication off."""
        self._go("send response")
        self._say_authentication(b"*" if data is None else base64.b64encode(data), _TOKEN[1:])

    def _authentication_answer(self, reply: Reply, events: list[ClientEvent]) -> None:
        if reply.code == 334:
            challenge = _decode(reply.lines[0].encode("utf-8"))
            if challenge is None:
                raise RemoteProtocolError("a challenge that is not base64")
            self._go("334")
            events.append(Challenge(challenge))
        elif reply.code == 235:
            self._go("235")
            token = None
            if self._auth_variant is not None:
                token = _decode(reply.lines[0].removeprefix("2.7.0 ").encode("utf-8")) or b""
                reply = exchange.AUTHENTICATED  # without the token
            events.append(Authenticated(reply, token))
        elif reply.code >= 400:
            self._go("refused")
            events.append(Refused(self._auth_verb, reply))
        else:
            raise RemoteProtocolError(f"{self._auth_verb} answered with {reply.code}")

    def _shown(self, reply: Reply) -> bytes:
        """A reply as traces get it."""
        if reply.code == 334 or (reply.code == 235 and self._auth_variant is not None):
            return b"%d" % reply.code + _TOKEN
        return _line(reply)


@lru_cache(maxsize=256)  # a server says the same few things to every message
def _line(reply: Reply) -> bytes:
    return reply.encode()[:-2]


def without_token(verb: str, line: bytes) -> bytes:
    """An authentication command without what proves anything."""
    if not verb.startswith(("AUTH", "X-EXPS")):
        return line
    words = line.split()
    return b" ".join(words[: 3 if b"".join(words[2:3]).upper() == b"SHA256" else 2])


def _decode(line: bytes) -> bytes | None:
    try:
        return base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        return None

"""SMTP without input or output: sessions take bytes and give events, and what they want sent is asked of them."""

from anontls.smtp import events, exchange
from anontls.smtp.client import ClientSession, ClientSettings
from anontls.smtp.errors import LocalProtocolError, RemoteProtocolError
from anontls.smtp.exchange import ServerSettings, Size, TlsVerb
from anontls.smtp.reply import LocalReply, Reply, ReplyReader
from anontls.smtp.server import ServerSession
from anontls.smtp.states import ClientState, MessageState, ServerState
from anontls.smtp.syntax import Envelope, Recipient

__all__ = [
    "ClientSession",
    "ClientSettings",
    "ClientState",
    "Envelope",
    "LocalProtocolError",
    "LocalReply",
    "MessageState",
    "Recipient",
    "RemoteProtocolError",
    "Reply",
    "ReplyReader",
    "ServerSession",
    "ServerSettings",
    "ServerState",
    "Size",
    "TlsVerb",
    "events",
    "exchange",
]

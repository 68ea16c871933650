"""Kerberos: contexts that initiate and accept, bound to a TLS channel, through GSSAPI (extra ``ad``).

What makes them strict, beyond what the library does by itself:

* an acceptor that has a binding refuses an initiator that sends none, which GSSAPI accepts;
* both sides are proved to each other, and nobody gets a ticket to act for somebody else;
* the ticket and its session key are AES: a key of RC4 is the bare hash of a password;
* a service's name is taken as it is written: DNS has no say in whom a ticket is for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from anontls.errors import UsageError
from anontls.kerberos.failure import KerberosFailed, Reason, failure_of
from anontls.kerberos.request import checked_request

#: Service classes of SMTP in a service principal name [FACT D/O 3.4]; tickets are asked for under the first.
SERVICES: Final = ("SMTPSVC", "SMTP")

# --- names ------------------------------------------------------------------------------------------------------------


def realm_of(fqdn: str) -> str:
    """The realm of a host: its DNS domain in capitals, as Active Directory has it."""
    return fqdn.partition(".")[2].upper()


def computer_account(name: str, realm: str) -> str:
    """Principal of the computer account of the server called ``name``: ``MBX1$@CONTOSO.COM``."""
    return f"{name.upper()}$@{realm}"


def same_account(principal: str, account: str) -> bool:
    """Whether two principals are one account: its name without case, as in Active Directory, its realm as written."""
    (name, _, realm), (other, _, other_realm) = principal.rpartition("@"), account.rpartition("@")
    # What is not ASCII is nobody's: letters exist beyond it whose lower case is an ASCII letter.
    return principal.isascii() and name.lower() == other.lower() and realm == other_realm


# --- contexts ---------------------------------------------------------------------------------------------------------


class Kerberos:
    """Kerberos as one server does it.

    ``account`` is its principal.  ``keytab`` holds the keys of the account and of the services that it is.  Tickets are
    kept in ``credential_cache`` (such as ``FILE:/run/anontls/ccache``), in memory when none is given; with a keytab they
    are renewed by themselves.

    Raises:
        UsageError: the library is not installed.
    """

    def __init__(self, account: str, *, keytab: Path | None = None, credential_cache: str | None = None) -> None:
        self.account = account
        self._gssapi = _library()
        self._accepting = {} if keytab is None else {"keytab": f"FILE:{keytab}"}
        self._initiating = {"ccache": credential_cache or f"MEMORY:anontls {account}"}
        if keytab is not None:
            self._initiating["client_keytab"] = f"FILE:{keytab}"

    @property
    def accepts(self) -> bool:
        """Whether there is a keytab to accept with."""
        return bool(self._accepting)

    def check_keytab(self) -> None:
        """See that there are keys in the keytab.  Whose they are shows when one is needed: it is read each time.

        Raises:
            UsageError: it is no keytab, or is empty.
        """
        gssapi = self._gssapi
        try:
            gssapi.Credentials(usage="accept", mechs=[gssapi.MechType.kerberos], store=self._accepting)
        except gssapi.exceptions.GSSError as e:
            raise UsageError(f"no keytab with a key in it: {failure_of(gssapi, e)}", hint="klist -kt FILE") from None

    def initiator(self, target: str, binding: bytes) -> Initiator:
        """Begin towards the service principal ``target``, such as ``SMTPSVC/mbx2.contoso.com@CONTOSO.COM``."""
        return Initiator(self._gssapi, self.account, self._initiating, target, binding)

    def acceptor(self, hosts: Collection[str], binding: bytes | None) -> Acceptor:
        """Accept tickets for SMTP at one of ``hosts``; without a ``binding`` a context is never bound."""
        return Acceptor(self._gssapi, self._accepting, hosts, binding)


class _Context(ABC):
    """One side of one authentication."""

    def __init__(self, gssapi: Any, binding: bytes | None) -> None:
        self.complete = False  #: whether the other side is proved, in all that is asked of it
        self._gssapi = gssapi
        self._binding = binding
        self._context: Any = None

    def sign(self, data: bytes) -> bytes:
        """A signature that only the two sides can make.

        Raises:
            KerberosFailed: the ticket has expired meanwhile.
        """
        with self._failures():
            return bytes(self._context.get_signature(data))

    def verify(self, data: bytes, signature: bytes) -> None:
        """Check the other side's signature.

        Raises:
            KerberosFailed: it is not that of ``data``.
        """
        with self._failures():
            self._context.verify_signature(data, signature)

    @abstractmethod
    def _check(self) -> None:
        """Refuse a context that the library takes."""

    def _step(self, token: bytes | None) -> bytes | None:
        with self._failures():
            given = self._context.step(token)
            if self._context.complete:
                if not self._has("mutual_authentication"):
                    raise KerberosFailed(Reason.NOT_MUTUAL)
                self._check()
                self.complete = True
        return None if given is None else bytes(given)

    def _begin(self, usage: str, store: Mapping[str, str], account: Any = None, **arguments: Any) -> Any:
        """A context of the library, with credentials of its own: what they are made of may have changed."""
        gssapi, kerberos = self._gssapi, self._gssapi.MechType.kerberos
        bound_to = None if self._binding is None else gssapi.raw.ChannelBindings(application_data=self._binding)
        credentials = gssapi.Credentials(name=account, usage=usage, mechs=[kerberos], store=store)
        return gssapi.SecurityContext(creds=credentials, usage=usage, channel_bindings=bound_to, **arguments)

    def _has(self, flag: str) -> bool:
        return getattr(self._gssapi.RequirementFlag, flag) in self._context.actual_flags

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except self._gssapi.exceptions.GSSError as e:
            raise failure_of(self._gssapi, e) from None


class Initiator(_Context):
    """The side that shows a ticket."""

    def __init__(self, gssapi: Any, account: str, store: Mapping[str, str], target: str, binding: bytes) -> None:
        super().__init__(gssapi, binding)
        self.account = account
        self.target = target
        self._store = store

    def step(self, token: bytes | None = None) -> bytes | None:
        """The first token, and then the answer to what the peer sent; ``None``: nothing more.

        The first one may ask the KDC, and blocks meanwhile: for seconds, or half a minute where nobody answers.

        Raises:
            KerberosFailed: it failed.
        """
        if self._context is not None:
            return self._step(token or b"")
        try:
            return self._first()
        except KerberosFailed as e:
            if e.reason is not Reason.NO_CREDENTIALS:
                raise
            raise KerberosFailed(e.reason, f"{self.account}: {e.text}") from None  # the library does not say whose

    def _first(self) -> bytes:
        gssapi, flags = self._gssapi, self._gssapi.RequirementFlag
        with self._failures():
            account, target = (
                gssapi.Name(name, gssapi.NameType.kerberos_principal) for name in (self.account, self.target)
            )
            self._context = self._begin(
                "initiate",
                self._store,
                account=account,
                name=target,
                mech=gssapi.MechType.kerberos,
                # channel_bound tells the acceptor that bindings are meant to count.
                flags=flags.mutual_authentication | flags.replay_detection | flags.integrity | flags.channel_bound,
            )
        given = self._step(None) or b""
        checked_request(given)
        return given

    def _check(self) -> None:
        return


class Acceptor(_Context):
    """The side that a ticket is shown to."""

    def __init__(self, gssapi: Any, store: Mapping[str, str], hosts: Collection[str], binding: bytes | None) -> None:
        super().__init__(gssapi, binding)
        self.peer = ""  #: principal of the initiator, once complete
        self._store = store
        self._hosts = frozenset(host.lower() for host in hosts)

    def step(self, token: bytes) -> bytes | None:
        """The answer to the peer's token; ``None``: nothing more.

        Raises:
            KerberosFailed: it is refused.
        """
        if self._context is None:
            self._must_be_for_us(checked_request(token).service)
            with self._failures():
                self._context = self._begin("accept", self._store)
        return self._step(token)

    @property
    def bound(self) -> bool:
        """Whether the peer has proved that it is at the other end of this very channel."""
        return self.complete and self._binding is not None

    def _check(self) -> None:
        if self._binding is not None and not self._has("channel_bound"):
            raise KerberosFailed(Reason.NO_BINDING)
        if self._has("delegate_to_peer"):
            raise KerberosFailed(Reason.DELEGATION)
        self.peer = bytes(self._context.initiator_name).decode("utf-8", "replace")

    def _must_be_for_us(self, service: str) -> None:
        # In Active Directory all services of an account have its key, and the library takes whichever entry of the keytab
        # decrypts: so what counts is what the peer has asked for.
        kind, _, host = service.partition("/")
        if kind.upper() not in SERVICES or host.lower() not in self._hosts:
            raise KerberosFailed(Reason.WRONG_SPN, service)


def _library() -> Any:
    try:
        import gssapi
    except ImportError:
        raise UsageError(
            "Kerberos needs the Python package gssapi, which is not installed", hint="pip install 'anontls[ad]'"
        ) from None
    # Else `step` returns the error token of a context that failed as if it were an answer.
    gssapi.SecurityContext.__DEFER_STEP_ERRORS__ = False
    return gssapi

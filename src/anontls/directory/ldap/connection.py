"""A connection to one domain controller: bound and encrypted, or not at all."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from anontls.directory.ldap.entry import Entry
from anontls.errors import Unreachable, UsageError

PAGE: Final = 1000  # objects; more than Active Directory gives at once
MAX_OBJECTS: Final = 200_000  # of one search
MAX_BYTES: Final = 1 << 30  # of one search; as much as a snapshot may have
MAX_SECONDS: Final = 300.0  # of one search
MAX_REASON: Final = 400  # characters of what a server says
ENCRYPTED: Final = 56  # the least strength factor that is encryption; 1 is a signature alone
NOT_TRUSTED: Final = "its certificate is not trusted"
NO_ADDRESS: Final = "not of the form ldaps://HOST[:PORT] or ldap://HOST[:PORT]"
#: ExtendedRequest 1.3.6.1.4.1.1466.20037 with message number 1 (RFC 4511, section 4.14)
START_TLS: Final = b"\x30\x1d\x02\x01\x01\x77\x18\x80\x161.3.6.1.4.1.1466.20037"


class DomainControllerFailed(Unreachable):
    """One domain controller does not answer, or not as it should; another may."""


class AccountRefused(Unreachable):
    """The account is refused: every domain controller would say so, and some count how often."""


class LdapSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Where a directory is, and who reads it.

    Without ``bind`` it is Kerberos, with what the environment names: ``KRB5CCNAME`` (a credential cache) or
    ``KRB5_CLIENT_KTNAME`` (a keytab).  There is no anonymous reading, and a password goes through TLS only.
    """

    urls: tuple[str, ...]  # ldap://host[:port] or ldaps://host[:port]; domain controllers of one directory
    bind: str | None = None  # distinguished name, or user@domain
    password: str = ""
    ca: Path | None = None  # PEM; without it what libldap is set up to trust (ldap.conf)
    timeout: float = 10.0  # seconds, for each answer

    def __post_init__(self) -> None:
        if not self.urls:
            raise UsageError("no address of a directory")
        for url in self.urls:
            address(url)
        if self.bind is not None and not (self.bind.strip() and self.password):
            # A bind without a password is an anonymous one that succeeds (RFC 4513, section 5.1.2).
            raise UsageError("a bind needs a name and a password", hint="without both, Kerberos is used")

    def __repr__(self) -> str:
        return f"LdapSettings(urls={self.urls!r}, bind={self.bind!r}, ca={self.ca!r})"


class Address(NamedTuple):
    """Where a URL of a directory leads."""

    host: str
    port: int
    ldaps: bool


def address(url: str) -> Address:
    """Read a URL.

    Raises:
        UsageError: it is more, less or something else than ``ldap[s]://host[:port]``.
    """
    if "@" in url:  # with a password, perhaps, which is for no message
        hint = "who logs on is not part of an address: --ldap-bind, directory.bind"
        raise UsageError(f"...@{url.rpartition('@')[2]}: {NO_ADDRESS}", hint=hint)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as e:
        raise UsageError(f"{url}: {e}") from None
    plain = parts.path in ("", "/") and not parts.query and not parts.fragment
    if parts.scheme not in ("ldap", "ldaps") or not host or not plain:
        raise UsageError(f"{url or 'an empty address'}: {NO_ADDRESS}")
    ldaps = parts.scheme == "ldaps"
    return Address(host, port or (636 if ldaps else 389), ldaps)


class RootDse(NamedTuple):
    """What a directory says of itself."""

    configuration: str  #: the configuration naming context
    host: str  #: the domain controller's own name; empty when it does not say it
    adlds: bool  #: AD LDS, as on an Edge server


class Connection:
    """Bound to one domain controller.  For one thread; every call blocks, ``settings.timeout`` for each answer.

    Looking up a name, and getting a Kerberos ticket, take as long as the system lets them.
    """

    def __init__(self, url: str, settings: LdapSettings) -> None:
        """Connect and bind.

        Raises:
            DomainControllerFailed: it cannot be reached, its certificate is not trusted, or it is no such directory.
            AccountRefused: it does not take the account.
            UsageError: python-ldap is not installed, or the file of trusted certificates cannot be used.
        """
        self.url = url
        self.settings = settings
        self._ldap = python_ldap()
        self.ldap = self._open()
        try:
            self.root = self._root_dse()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with suppress(self._ldap.LDAPError):  # it may be gone already
            self.ldap.unbind_ext_s()

    @property
    def strength(self) -> int:
        """How strong the encryption of Kerberos is, as SASL counts it: about the bits of its key; 0 inside of TLS."""
        return int(self.ldap.get_option(self._ldap.OPT_X_SASL_SSF) or 0)

    def _open(self) -> Any:
        ldap, settings, at = self._ldap, self.settings, address(self.url)
        by_password = settings.bind is not None
        # A fault of TLS is told by libldap without its reason, and a peer that says nothing holds it for ever.
        fault = self._tls_fault(at) if at.ldaps or by_password else None
        connection = ldap.initialize(self.url)
        try:
            with self.told(fault):
                self._set_options(connection, at, by_password)
                if by_password:
                    if not at.ldaps:
                        self._start_tls(connection)
                    connection.simple_bind_s(settings.bind, settings.password)
                else:
                    connection.sasl_interactive_bind_s("", ldap.sasl.gssapi())
        except BaseException:
            with suppress(ldap.LDAPError):
                connection.unbind_ext_s()
            raise
        return connection

    def _start_tls(self, connection: Any) -> None:
        ldap = self._ldap
        try:
            connection.start_tls_s()
        except (ldap.PROTOCOL_ERROR, ldap.UNAVAILABLE, ldap.UNWILLING_TO_PERFORM) as e:
            because = f"it offers no StartTLS, and in clear no password is sent: {reason(e)}"
            raise DomainControllerFailed(f"{self.url}: {because}", hint="ldaps://, or Kerberos") from None

    def _set_options(self, connection: Any, at: Address, by_password: bool) -> None:
        ldap, settings = self._ldap, self.settings
        connection.set_option(ldap.OPT_PROTOCOL_VERSION, ldap.VERSION3)
        connection.set_option(ldap.OPT_REFERRALS, 0)  # they lead to servers that nobody named
        connection.set_option(ldap.OPT_NETWORK_TIMEOUT, settings.timeout)
        connection.set_option(ldap.OPT_TIMEOUT, settings.timeout)
        connection.set_option(ldap.OPT_X_KEEPALIVE_IDLE, 60)
        connection.set_option(ldap.OPT_X_KEEPALIVE_INTERVAL, 10)
        connection.set_option(ldap.OPT_X_KEEPALIVE_PROBES, 3)
        if at.ldaps or by_password:
            connection.set_option(ldap.OPT_X_TLS_REQUIRE_CERT, ldap.OPT_X_TLS_DEMAND)
            connection.set_option(ldap.OPT_X_TLS_PROTOCOL_MIN, ldap.OPT_X_TLS_PROTOCOL_TLS1_2)
            if settings.ca:
                connection.set_option(ldap.OPT_X_TLS_CACERTFILE, str(settings.ca))
            connection.set_option(ldap.OPT_X_TLS_NEWCTX, 0)
        # libldap puts the machine's own name for a loopback address
        connection.set_option(ldap.OPT_X_SASL_NOCANON, 1)
        # Active Directory allows one layer of encryption: TLS, or that of Kerberos.
        connection.set_option(ldap.OPT_X_SASL_SSF_MIN, 0 if at.ldaps else ENCRYPTED)
        if at.ldaps:
            connection.set_option(ldap.OPT_X_SASL_SSF_MAX, 0)

    def _tls_fault(self, at: Address) -> str | None:
        """Why a TLS handshake fails, from a connection of its own.

        It decides nothing about trust: libldap does, and may know other authorities.

        Raises:
            DomainControllerFailed: nobody answers there.
        """
        try:
            context = ssl.create_default_context(cafile=self.settings.ca)
        except OSError as e:
            because = "no certificate in it" if isinstance(e, ssl.SSLError) else e.strerror
            raise UsageError(f"{self.settings.ca}: {because}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            with socket.create_connection((at.host, at.port), self.settings.timeout) as plain:
                if not at.ldaps:
                    plain.sendall(START_TLS)
                    plain.recv(1024)  # what it says to it, libldap reads again
                with context.wrap_socket(plain, server_hostname=at.host):
                    return None
        except ssl.SSLCertVerificationError as e:
            return f"{NOT_TRUSTED}: {e.verify_message}"
        except TimeoutError:
            raise DomainControllerFailed(f"{self.url}: no answer within {self.settings.timeout:g} s") from None
        except ssl.SSLError as e:
            return f"no TLS: {e.reason or e}"
        except OSError as e:
            raise DomainControllerFailed(f"{self.url}: {e.strerror or e}") from None

    @contextmanager
    def told(self, fault: str | None = None) -> Iterator[None]:
        """Libldap's errors as ours."""
        ldap = self._ldap
        try:
            yield
        except (ldap.INVALID_CREDENTIALS, ldap.INAPPROPRIATE_AUTH) as e:
            raise AccountRefused(f"{self.url}: the account is refused: {reason(e)}") from None
        except ldap.STRONG_AUTH_REQUIRED as e:
            hint = "Kerberos through ldap:// signs and seals" if self.settings.bind is None else None
            raise AccountRefused(f"{self.url}: stronger authentication is required: {reason(e)}", hint=hint) from None
        except ldap.AUTH_UNKNOWN as e:
            hint = "the SASL library's module for GSSAPI is a package of its own: libsasl2-modules-gssapi-mit"
            raise AccountRefused(f"{self.url}: no Kerberos: {reason(e)}", hint=hint) from None
        except ldap.LOCAL_ERROR as e:
            hint = "`kinit`, or set KRB5_CLIENT_KTNAME to a keytab; or bind by name with --ldap-bind, directory.bind"
            if "not found in Kerberos database" in reason(e):
                hint = "name the domain controller as its Kerberos service is called: dc1.contoso.com, not its address"
            raise DomainControllerFailed(f"{self.url}: no Kerberos: {reason(e)}", hint=hint) from None
        except ldap.TIMEOUT:
            raise DomainControllerFailed(f"{self.url}: no answer within {self.settings.timeout:g} s") from None
        except (ldap.SERVER_DOWN, ldap.CONNECT_ERROR) as e:
            hint = (
                "--ldap-ca, directory.ca: the file of the authority that issued it"
                if fault and fault.startswith(NOT_TRUSTED)
                else None
            )
            raise DomainControllerFailed(f"{self.url}: {fault or reason(e)}", hint=hint) from None
        except (ldap.LDAPError, UnicodeError) as e:
            raise DomainControllerFailed(f"{self.url}: {reason(e)}") from None

    def _root_dse(self) -> RootDse:
        wanted = ["configurationNamingContext", "dnsHostName"]
        with self.told():
            found = self.ldap.search_s("", self._ldap.SCOPE_BASE, "(objectClass=*)", wanted)
        entry = Entry("", found[0][1] if found else {})
        configuration, host = entry.texts(wanted[0]), entry.texts(wanted[1])
        if not isinstance(configuration, tuple) or len(configuration) != 1:
            raise DomainControllerFailed(
                f"{self.url}: neither Active Directory nor AD LDS: it has no configurationNamingContext"
            )
        # CN=Configuration,DC=contoso,DC=com there, CN=Configuration,CN={GUID} here
        adlds = ",cn={" in configuration[0].lower().replace(", ", ",")
        return RootDse(configuration[0], host[0] if isinstance(host, tuple) and host else "", adlds)

    def search(self, base: str, search_filter: str, attributes: tuple[str, ...], *, scope: int = 2) -> Iterator[Entry]:
        """Objects at and below ``base`` (scope 2, the whole subtree), page by page, each as it comes.

        What goes into ``search_filter`` from elsewhere passes through :func:`anontls.facts.in_ldap_filter`.

        Raises:
            DomainControllerFailed: it fails, or gives more or takes longer than is bearable.
        """
        ldap, cookie, end = self._ldap, b"", time.monotonic() + MAX_SECONDS
        objects = octets = 0
        while True:
            control = ldap.controls.SimplePagedResultsControl(True, PAGE, cookie)
            with self.told():
                number = self.ldap.search_ext(base, scope, search_filter, list(attributes), serverctrls=[control])
            kind: object = None
            controls: list[Any] = []
            while kind != ldap.RES_SEARCH_RESULT:
                with self.told():
                    kind, data, _, controls = self.ldap.result3(number, all=0, timeout=self.settings.timeout)
                for dn, values in data or ():
                    if dn is None:
                        continue  # a referral to another directory
                    entry = Entry(dn, values)
                    objects, octets = objects + 1, octets + entry.size
                    if objects > MAX_OBJECTS or octets > MAX_BYTES or time.monotonic() > end:
                        limits = f"{MAX_OBJECTS:,} objects, {MAX_BYTES:,} bytes or {MAX_SECONDS:g} s"
                        raise DomainControllerFailed(f"{self.url}: a search gives more than {limits}")
                    yield entry
            cookie = next((each.cookie for each in controls if each.controlType == control.controlType), b"")
            if not cookie:
                return


def python_ldap() -> Any:
    """python-ldap.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import ldap
        import ldap.controls
        import ldap.sasl
    except ImportError:
        raise UsageError(
            "reading a directory needs python-ldap, which is not installed", hint="pip install 'anontls[ad]'"
        ) from None
    return ldap


def reason(error: Exception) -> str:
    """What the server or the library says."""
    told = error.args[0] if error.args and isinstance(error.args[0], dict) else {}
    parts = [str(told[key]) for key in ("desc", "info") if told.get(key)]
    return (": ".join(parts) or str(error) or type(error).__name__)[:MAX_REASON]

"""The configuration of a node: all faults at once, each with its place and the nearest known key."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from anontls import config
from anontls.config import Config, ConfigError, describe, host_and_port, load

SMALLEST = """
[node]
organization = "org.json"
server = "MBX1"

[store]
folder = "certificates"
"""
LISTENING = (
    SMALLEST
    + """
[[listen]]
connector = "Default MBX1"
address = "127.0.0.1:2525"

[delivery]
maildir = "mail"
"""
)


def loaded(tmp_path: Path, text: str | bytes) -> Config:
    path = tmp_path / "node.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(path)


def faults(tmp_path: Path, text: str | bytes) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        loaded(tmp_path, text)
    assert str(tmp_path / "node.toml") in str(raised.value)
    return raised.value.faults


def test_defaults(tmp_path: Path) -> None:
    found = loaded(tmp_path, SMALLEST)
    assert found.listen == ()
    assert (found.limits.sessions, found.limits.recipients, found.limits.message_size) == (5000, 5000, 37_748_736)
    assert (found.log.events, found.log.layout, found.log.max_age_days) == (None, "row", 30)
    assert found.delivery.delivery_type == "SmartHostConnectorDelivery"
    assert loaded(tmp_path, b"\xef\xbb\xbf" + LISTENING.encode()).listen[0].address == "127.0.0.1:2525"


def test_everything(tmp_path: Path) -> None:
    """Every key of every table can be given, and arrives."""
    text = SMALLEST + "\n"
    given: dict[str, dict[str, object]] = {
        "limits": {
            "sessions": 1,
            "sessions-per-peer": 2,
            "recipients": 3,
            "message-size": 4,
            "command-timeout": 5,
            "session-timeout": 6.5,
            "handshake-timeout": 0.5,
        },
        "log": {
            "events": "e",
            "syslog": "/dev/log",
            "protocol": "p",
            "layout": "rows",
            "max-file-size": 7,
            "max-directory-size": 8,
            "max-age-days": 9,
            "console": "json",
        },
        "queue": {
            "database": "queue.sqlite",
            "minimum-free": 0,
            "max-messages": 1,
            "sessions-per-destination": 2,
            "idle-timeout": 3,
            "glitch-retry-count": 0,
            "glitch-retry-interval": 4,
            "transient-failure-retry-count": 5,
            "transient-failure-retry-interval": 6,
            "outbound-connection-failure-retry-interval": 7,
            "message-retry-interval": 8,
            "delay-notification-timeout": 9,
            "message-expiration-timeout": 10,
            "postmaster": "postmaster@contoso.com",
            "control": "control",
        },
        "kerberos": {
            "keytab": "mbx1.keytab",
            "credential-cache": "FILE:/run/anontls/ccache",
            "realm": "CONTOSO.COM",
            "exchangeauth": "anontls",
            "deadline": 2.5,
        },
        "metrics": {"listen": "127.0.0.1:9464"},
        "rules": {"mailbox-to-mailbox": "verb-without-certificate"},
    }
    for table, keys in given.items():
        text += f"[{table}]\n" + "".join(
            f"{key} = {msgspec.json.encode(value).decode()}\n" for key, value in keys.items()
        )
    found = loaded(tmp_path, text)
    for table in ("limits", "log", "queue", "kerberos", "metrics"):
        assert msgspec.to_builtins(getattr(found, table)) == given[table]
    assert found.selection_rules.mailbox_to_mailbox == "verb-without-certificate"


def test_all_faults_at_once(tmp_path: Path) -> None:
    text = """
nodes = 1
[node]
organisation = "org.json"
server = 5
[store]
[[listen]]
connector = "Default"
adress = "127.0.0.1:25"
[[listen]]
connector = "Default"
address = "127.0.0.1:25"
port = 25
[limits]
sessions = 0
message_size = 5
command-timeout = "long"
[log]
layout = "column"
[rules]
expired-starttls = 5
"""
    found = faults(tmp_path, text)
    assert sorted(found) == sorted(
        [
            "nodes: unknown key; did you mean node?",
            "node.organisation: unknown key; did you mean node.organization?",
            "node.server: Expected `str`, got `int`",
            "node.organization: is missing",
            "store.folder: is missing",
            "listen[0].adress: unknown key; did you mean listen[0].address?",
            "listen[0].address: is missing",
            "listen[1].port: unknown key; known: connector, address, limits",
            "limits.sessions: Expected `int` >= 1",
            "limits.message_size: unknown key; did you mean limits.message-size?",
            "limits.command-timeout: Expected `float`, got `str`",
            "log.layout: Invalid enum value 'column'",
            "rules: Expected `str`, got `int` - at `$[...]`",
        ]
    )


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (
            'maildir = "mail"',
            "",
            "delivery: either maildir or next-hop is needed, and not both; with queue.database any of them may be",
        ),
        (
            'maildir = "mail"',
            'maildir = "mail"\nnext-hop = "a:25"',
            "delivery: either maildir or next-hop is needed, and not both; with queue.database any of them may be",
        ),
        (
            'maildir = "mail"',
            'next-hop = "a:25"\nprotocol = "lmtp"\nnext-hop-server = "EDGE1"',
            "delivery.protocol: an Exchange server as the next hop speaks smtp",
        ),
        ('maildir = "mail"', 'next-hop = "a"', "delivery.next-hop: 'a' is not HOST:PORT or [IPv6]:PORT"),
        (
            'maildir = "mail"',
            'maildir = "mail"\n[kerberos]\nrealm = "CONTOSO.COM"',
            "kerberos: neither keytab nor credential-cache is given, so nothing else here has an effect",
        ),
        (
            'maildir = "mail"',
            'maildir = "mail"\n[directory]\nurls = []\ninterval = 5',
            "directory: urls are not given, so nothing else here has an effect",
        ),
        (
            'maildir = "mail"',
            'maildir = "mail"\n[directory]\nurls = ["ldaps://dc1"]\npassword-file = "password"',
            "directory: bind and password-file belong together; without both, Kerberos is used",
        ),
        (
            'maildir = "mail"',
            'maildir = "mail"\n[directory]\nurls = ["ldaps://dc1"]\nbind = "reader"',
            "directory: bind and password-file belong together; without both, Kerberos is used",
        ),
        ("127.0.0.1:2525", "127.0.0.1", "listen[0].address: '127.0.0.1' is not HOST:PORT or [IPv6]:PORT"),
        *(
            (
                'maildir = "mail"',
                f"maildir = 'mail'\n[queue]\npostmaster = {address!r}",
                f"queue.postmaster: {address!r} is no address, such as postmaster@contoso.com",
            )
            for address in ("x y", "", "postmaster", "a@b>, <c@d", "a@b c")
        ),
        (
            'maildir = "mail"',
            'maildir = "mail"\n[queue]\ndatabase = "q\\u0000"',
            "queue.database: holds a NUL, which no name of a file or host can have",
        ),
        ("127.0.0.1:2525", "::1:25", "listen[0].address: '::1:25' is not HOST:PORT or [IPv6]:PORT"),
        ("127.0.0.1:2525", "127.0.0.1:70000", "listen[0].address: '127.0.0.1:70000' is not HOST:PORT or [IPv6]:PORT"),
    ],
)
def test_contradictions(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert old in LISTENING
    assert faults(tmp_path, LISTENING.replace(old, new)) == [fault]


def test_rules_that_do_not_exist(tmp_path: Path) -> None:
    (fault,) = faults(tmp_path, SMALLEST + '[rules]\nmailbox-to-mailbx = "x"\n')
    assert fault.startswith("rules.mailbox-to-mailbx: ")
    (fault,) = faults(tmp_path, SMALLEST + '[rules]\nmailbox-to-mailbox = "x"\n')
    assert "as-written" in fault


@pytest.mark.parametrize("text", ["[node", "a = ", b"\xff\xfe", "[" * 5000, "a = 1\na = 2"])
def test_what_is_not_toml(tmp_path: Path, text: str | bytes) -> None:
    (fault,) = faults(tmp_path, text)
    assert fault.startswith(("not TOML", "cannot be read"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "none.toml")


def test_tables_that_are_no_tables(tmp_path: Path) -> None:
    assert faults(tmp_path, 'node = 5\nstore = ["x"]\nlisten = {}\n')


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:25", ("127.0.0.1", 25)),
        ("[::1]:2525", ("::1", 2525)),
        ("mbx1.contoso.com:0", ("mbx1.contoso.com", 0)),
    ],
)
def test_host_and_port(text: str, found: tuple[str, int]) -> None:
    assert host_and_port(text) == found


@pytest.mark.parametrize("text", ["", ":25", "a:", "a:b", "a:-1", "a:65536", "[::1]", "::1", "a b:25", "[]:25", "a:٢"])
def test_no_host_and_port(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        host_and_port(text)


def test_every_key_is_described() -> None:
    text = describe()
    for table in msgspec.structs.fields(Config):
        kind = config._table_type(table.type)
        for key in msgspec.structs.fields(kind) if kind else ():
            rows = [line for line in text.splitlines() if line.startswith(f"| `{key.encode_name}` |")]
            assert rows
            assert all(len(row.split("|")[4].strip()) > 10 for row in rows), rows


# --- limits of a connector -----------------------------------------------------------------------------------------------

LIMITED = (
    LISTENING.replace("[delivery]", "[listen.limits]\nrecipients = 7\nsessions = 9\n\n[delivery]")
    + """
[[listen]]
connector = "Client Proxy MBX1"
address = "127.0.0.1:2526"

[limits]
recipients = 5
message-size = 6
"""
)


def test_a_connector_with_limits_of_its_own_has_the_others_of_all(tmp_path: Path) -> None:
    found = loaded(tmp_path, LIMITED)
    for name in ("Default MBX1", "MBX1\\default mbx1"):
        limits = found.limits_of(name)
        assert (limits.recipients, limits.sessions, limits.message_size) == (7, 9, 6)
    assert found.limits_of("MBX1\\Client Proxy MBX1") == found.limits
    assert (found.limits.recipients, found.limits.sessions, found.limits.message_size) == (5, 5000, 6)


def test_a_limit_that_is_given_holds_where_it_is_the_default_too(tmp_path: Path) -> None:
    text = LIMITED.replace("recipients = 7", "recipients = 5000")
    assert loaded(tmp_path, text).limits_of("Default MBX1").recipients == 5000


def test_faulty_limits_of_a_connector(tmp_path: Path) -> None:
    text = LIMITED.replace("recipients = 7", "recipient = 7").replace("sessions = 9", "sessions = 0")
    assert faults(tmp_path, text) == [
        "listen[0].limits.recipient: unknown key; did you mean listen[0].limits.recipients?",
        "listen[0].limits.sessions: Expected `int` >= 1",
    ]


def test_a_connector_has_its_limits_once(tmp_path: Path) -> None:
    text = LIMITED.replace("Client Proxy MBX1", "MBX1\\\\DEFAULT MBX1")
    assert loaded(tmp_path, text).limits_of("Default MBX1").recipients == 7
    assert faults(tmp_path, text.replace("[limits]", "[listen.limits]")) == [
        "listen[1].limits: all addresses of MBX1\\DEFAULT MBX1 share its limits, and it has some already"
    ]


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("[[listen]]", "[listen]", "listen: Expected `array`, got `object`"),
        ("[delivery]", "[[delivery]]", "delivery: Expected `object`, got `array`"),
        (
            "[delivery]",
            "[[listen.limits]]\nsessions = 1\n[delivery]",
            "listen[0].limits: Expected `object | null`, got `array`",
        ),
    ],
)
def test_a_table_for_an_array_or_the_other_way_round(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert faults(tmp_path, LISTENING.replace(old, new)) == [fault]

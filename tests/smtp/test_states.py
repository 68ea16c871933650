"""The tables: what each state allows, and that the sessions do as they say."""

import pytest

from anontls.smtp import ClientState, MessageState, ServerState
from anontls.smtp.states import CLIENT, MESSAGE, SERVER, draw
from tests.smtp.drive import Server, greeted

REACH = {
    "GREETED": (),
    "HELLO": ("EHLO c.example",),
    "MAIL": ("EHLO c.example", "MAIL FROM:<a@c.example>"),
    "RCPT": ("EHLO c.example", "MAIL FROM:<a@c.example>", "RCPT TO:<b@mail.example>"),
    "BDAT": ("EHLO c.example", "MAIL FROM:<a@c.example>", "RCPT TO:<b@mail.example>", "BDAT 2", ""),
}

# The reply to each command in each state.  The chunk of BDAT is two octets.
TABLE = """
command                     GREETED HELLO  MAIL   RCPT   BDAT
EHLO c.example              250     250    250    250    250
HELO c.example              250     250    250    250    250
MAIL FROM:<a@c.example>     503     250    503    503    503
RCPT TO:<b@mail.example>    503     503    250    250    503
DATA                        503     503    503    354    503
BDAT 2                      503     503    503    250    250
BDAT 2 LAST                 503     503    503    250    250
RSET                        250     250    250    250    250
NOOP                        250     250    250    250    250
VRFY a                      252     252    252    252    252
EXPN a                      502     502    502    502    502
HELP                        214     214    214    214    214
STARTTLS                    503     220    503    503    503
X-ANONYMOUSTLS              503     220    503    503    503
AUTH LOGIN                  503     334    503    503    503
X-EXPS LOGIN                503     334    503    503    503
QUIT                        221     221    221    221    221
XEXCH50 1 2                 500     500    500    500    500
"""

_, *ROWS = TABLE.strip().splitlines()
CASES = [
    (row[:28].strip(), state, int(code))
    for row in ROWS
    for state, code in zip(("GREETED", "HELLO", "MAIL", "RCPT", "BDAT"), row[28:].split(), strict=True)
]


def reach(state: str) -> Server:
    server = greeted(starttls=True, anonymous_tls=True, auth=("LOGIN",), x_exps=("LOGIN",))
    server.say(*REACH[state])
    assert server.session.state is ServerState[state]
    return server


@pytest.mark.parametrize(("command", "state", "code"), CASES)
def test_each_command_in_each_state(command: str, state: str, code: int) -> None:
    server = reach(state)
    before = server.session.state
    verb = command.partition(" ")[0]
    what = "BDAT LAST" if command.endswith("LAST") else verb
    chunk = b"xy" if verb == "BDAT" else b""
    events = server.session.receive(command.encode() + b"\r\n" + chunk)
    output = server.session.output()
    if code == 334:  # the program answers an authentication
        assert server.session.state is SERVER[before, what]
        server.handle(events)
        output = server.session.output()
    elif what == "BDAT LAST" and code == 250:
        assert server.session.state is ServerState.SETTLING
        server.handle(events)
        output = server.session.output()
        assert output == b"" or output.startswith(b"250 2.6.0")
        return
    assert int(output.split(b"\r\n")[-2][:3]) == code, output
    if code >= 400 and code != 502:
        assert server.session.state is before
        assert (before, what) not in SERVER
    elif what == "BDAT":
        assert server.session.state is ServerState.BDAT
        assert (before, what) in SERVER
    elif code != 334:
        assert server.session.state is SERVER[before, what]


def test_every_state_can_be_reached_and_left() -> None:
    for table, first, last in (
        (SERVER, ServerState.CONNECTED, ServerState.CLOSED),
        (CLIENT, ClientState.GREETING, ClientState.CLOSED),
        (MESSAGE, MessageState.QUEUED, MessageState.DONE),
    ):
        states = set(type(first))
        assert set(table.values()) | {first} == states
        assert {state for state, _ in table} == states - {last}


def test_tls_forgets_and_wants_ehlo_again() -> None:
    assert SERVER[ServerState.TLS, "TLS established"] is ServerState.GREETED
    assert CLIENT[ClientState.TLS, "TLS established"] is ClientState.HELLO
    assert {state for state, what in SERVER if what in {"STARTTLS", "X-ANONYMOUSTLS"}} == {ServerState.HELLO}


def test_picture() -> None:
    picture = draw(SERVER)
    assert picture.startswith("stateDiagram-v2\n  [*] --> CONNECTED\n")
    assert "  HELLO --> TLS: STARTTLS, X-ANONYMOUSTLS\n" in picture
    assert picture.endswith("  CLOSED --> [*]\n")
    assert len(picture.splitlines()) == len({(state, target) for (state, _), target in SERVER.items()}) + 3
    assert "ENVELOPE --> DATA_SENT: send DATA" in draw(MESSAGE)

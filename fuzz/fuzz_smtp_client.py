"""What arrives at a sending session: any replies, cut anywhere, are events or ``RemoteProtocolError``.

The first octet chooses what the program does, the second the size of the pieces; 0 is a line at a time, which is what
an honest server does.
"""

from anontls.smtp import ClientSession, ClientSettings, ClientState, Envelope, Recipient, RemoteProtocolError
from anontls.smtp.events import Challenge, ClientClosed, ClientEvent, Delivered, Ready, Rejected

HELLO = b"220 mail\r\n250-mail Hello\r\n250-SIZE 1000\r\n250-STARTTLS\r\n250-8BITMIME\r\n"
SEEDS = [
    b"\x00\x00" + HELLO + b"250 PIPELINING\r\n250 ok\r\n250 ok\r\n550 no\r\n354 go\r\n250 queued\r\n221 bye\r\n",
    b"\x00\x05" + HELLO + b"250-CHUNKING\r\n250 PIPELINING\r\n250 ok\r\n250 ok\r\n250 queued\r\n250 reset\r\n",
    b"\x01\x00" + HELLO + b"250 DSN\r\n250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n250 one\r\n450 two\r\n",
    b"\x02\x07" + HELLO + b"250 X-ANONYMOUSTLS\r\n220 2.0.0 SMTP server ready\r\n250-mail\r\n250 SIZE\r\n",
    b"\x04\x00" + HELLO + b"250 AUTH LOGIN\r\n334 UGFzc3dvcmQ6\r\n235 yes\r\n250 ok\r\n",
    b"\x08\x03220 mail\r\n500 what\r\n250 mail\r\n250 ok\r\n250 ok\r\n354 go\r\n421 bye\r\n",
    b"\x00\x00554 no\r\n221 bye\r\n",
]
TOKENS = [
    b"\r\n", b"\n", b"250 ok\r\n", b"250-", b"354 go\r\n", b"421 bye\r\n", b"550 no\r\n", b"220 x\r\n", b"334 \r\n",
    b"334 eA==\r\n", b"235 x\r\n", b"\0", b"\xff", b"250-CHUNKING\r\n", b"250-PIPELINING\r\n", b"250-SIZE 1\r\n",
    b"x" * 40_000, b"501 x\r\n",
]  # fmt: skip
SENT = [
    Envelope("a@c.example", [Recipient("b@mail.example"), Recipient("c@mail.example", notify="NEVER")], ret="FULL"),
    Envelope("", [Recipient("d@mail.example")]),
    Envelope("j\u00f6rg@c.example", [Recipient("e@mail.example")], smtputf8=True),
]


def one_input(data: bytes) -> None:
    (choice, size), data = (data + b"\0\0")[:2], data[2:]
    pieces = [data[at : at + size] for at in range(0, len(data), size)] if size else data.splitlines(keepends=True)
    client = ClientSession(ClientSettings(hello="c.example", lmtp=bool(choice & 1), allow_helo=bool(choice & 8)))
    verdicts: list[Envelope] = []
    sent: list[Envelope] = []
    closed = 0

    def handle(events: list[ClientEvent]) -> None:
        nonlocal closed
        for event in events:
            match event:
                case Ready(extensions) if not client.closed:
                    if choice & 2 and client.tls is None and "STARTTLS" in extensions:
                        client.start_tls("STARTTLS")
                    elif choice & 4 and "LOGIN" in extensions.get("AUTH", ()):
                        client.authenticate("AUTH", "LOGIN", b"x")
                    else:
                        for number, envelope in enumerate(SENT):
                            content = [b"line\r\n"] * 3 if number == 1 else b".line\r\n" * (number + 1)
                            sent.append(envelope)
                            handle(client.send(envelope, content))
                        if choice & 16:
                            client.quit()
                case Challenge() if not client.closed:
                    client.respond(b"x" if choice & 32 else None)
                case Delivered(envelope) | Rejected(envelope):
                    verdicts.append(envelope)
                case ClientClosed(_, unanswered, uncertain):
                    closed += 1
                    verdicts.extend(unanswered)
                    if any(envelope not in unanswered for envelope in uncertain):
                        raise AssertionError("uncertain and not unanswered")
                case _:
                    pass

    for piece in pieces:
        try:
            handle(client.receive(piece))
        except RemoteProtocolError as error:
            handle([event for event in error.events if isinstance(event, ClientEvent)])
            if not client.closed:
                raise AssertionError("a fault leaves the session open") from None
        if client.state is ClientState.TLS and choice & 64:
            client.tls_established()
        while client.output():
            pass
    handle(client.eof())
    if closed != 1 or not client.closed:
        raise AssertionError(f"closed {closed} times")
    if sorted(map(repr, verdicts)) != sorted(map(repr, sent)):
        raise AssertionError(f"{len(sent)} messages, {len(verdicts)} verdicts")

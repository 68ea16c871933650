"""What arrives at a receiving session: any octets, cut anywhere, are events and replies or ``RemoteProtocolError``.

The first octet chooses the settings, the second the size of the pieces.
"""

from anontls.smtp import RemoteProtocolError, ReplyReader, ServerState
from anontls.smtp.receiving import MAX_WAITING
from anontls.smtp.syntax import MAX_AUTHENTICATION_LINE
from tests.smtp.drive import Server

GROUP = b"MAIL FROM:<a@c.example>\r\nRCPT TO:<b@mail.example>\r\n"
SEEDS = [
    b"\x0f\x00EHLO c.example\r\n" + GROUP + b"DATA\r\n",
    b"\x0f\x07EHLO c\r\n" + GROUP + b"DATA\r\nSubject: x\r\n\r\n..dot\r\n.\r\nQUIT\r\n",
    b"\x0f\x20EHLO c\r\n" + GROUP + b"BDAT 4\r\nabcdBDAT 0 LAST\r\n" + GROUP + b"BDAT 1 LAST\r\nx",
    b"\x1f\x20EHLO c\r\n" + GROUP + b"BDAT 30 LAST\r\n" + b"x" * 30 + b"RSET\r\n",
    b"\x0f\x00EHLO c\r\nX-ANONYMOUSTLS\r\n",
    b"\x0f\x01EHLO c\r\nSTARTTLS\r\nEHLO evil\r\n",
    b"\x2f\x10EHLO c\r\nAUTH LOGIN\r\nb3BlbiBzZXNhbWU=\r\nX-EXPS GSSAPI AAAA\r\nAUTH LOGIN\r\n*\r\n",
    b"\x0f\x00HELO [192.0.2.1]\r\nMAIL FROM:<> SIZE=1\r\nRCPT TO:<postmaster>\r\nVRFY x\r\nHELP\r\nNOOP x\r\n",
    "\x0f\x00EHLO c\r\nMAIL FROM:<j\u00f6rg@\u00e4.example> SMTPUTF8 RET=FULL ENVID=a+2B\r\n".encode(),
    b'\x0f\x00EHLO c\r\nMAIL FROM:<@r:a@[IPv6:::1]> BODY=BINARYMIME\r\nRCPT TO:<"a b"@c> NOTIFY=NEVER ORCPT=rfc822;x\r\n',
]
TOKENS = [
    b"\r\n", b"\r", b"\n", b".", b"\r\n.\r\n", b"\n.\n", b"\r\n.", b"<", b">", b"@", b"\0", b"=", b"+2B", b"BDAT 5\r\n",
    b"BDAT 99999999999999\r\n", b"DATA\r\n", b"RSET\r\n", b"EHLO c\r\n", b"STARTTLS\r\n", b"QUIT\r\n", b"x" * 5000, GROUP,
]  # fmt: skip

# One piece, and what may wait while the session is paused.
MOST = MAX_WAITING + MAX_AUTHENTICATION_LINE + (1 << 16)


def one_input(data: bytes) -> None:
    choice, size, data = (data + b"\0\0")[0], (data + b"\0\0")[1] or len(data) + 1, data[2:]
    server = Server(
        starttls=bool(choice & 1),
        anonymous_tls=bool(choice & 2),
        chunking=bool(choice & 4),
        smtputf8=bool(choice & 8),
        max_size=20 if choice & 16 else 10**6,
        auth=("LOGIN",) if choice & 32 else (),
        x_exps=("GSSAPI",),
        exchange_auth=True,
        require_tls=bool(choice & 64),
        max_errors=1000 if choice & 128 else 5,
    )
    session = server.session
    replies = ReplyReader()
    for at in range(0, len(data), size):
        try:
            server.handle(session.receive(data[at : at + size]))
        except RemoteProtocolError:
            break
        if session.state is ServerState.TLS and choice & 128:
            server.handle(session.tls_established(anonymous=session.state is ServerState.TLS))
        replies.receive(session.output())
        held = sum(len(value) for value in vars(session).values() if isinstance(value, bytes))
        if held > MOST:
            raise AssertionError(f"{held} octets held")
    replies.receive(session.output())
    server.handle(session.eof())
    if replies.fault is not None or replies.pending:
        raise AssertionError(f"we reply nonsense: {replies.fault}")
    if session.state is not ServerState.CLOSED:
        raise AssertionError("eof leaves the session open")
    begun = [name for name in server.names() if name.startswith("Message")]
    if begun[::2].count("MessageBegins") != len(begun[::2]) or "MessageBegins" in begun[1::2]:
        raise AssertionError(f"messages begin and do not end: {begun}")

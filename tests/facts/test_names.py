"""Names from a file as a line of PowerShell may hold them."""

from __future__ import annotations

import pytest

from anontls.facts import in_ldap_filter, powershell_argument


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("MBX1", "MBX1"),
        ("MBX1\\Default", "MBX1\\Default"),
        ("MBX1\\Default MBX1", "'MBX1\\Default MBX1'"),
        ("Bob's", "'Bob''s'"),
        (
            "x\u2019; Stop-Service MSExchangeTransport; \u2018",
            "'x\u2019\u2019; Stop-Service MSExchangeTransport; \u2018\u2018'",
        ),
        ("\u201a\u201b", "'\u201a\u201a\u201b\u201b'"),
        ("-WhatIf", "'-WhatIf'"),
        ("a;b", "'a;b'"),
        ("a|b", "'a|b'"),
        ("$x", "'$x'"),
        ("", "''"),
    ],
)
def test_a_name_is_one_argument_whatever_it_holds(name: str, argument: str) -> None:
    assert powershell_argument(name) == argument


def test_a_value_in_a_filter_is_no_filter() -> None:
    assert in_ldap_filter("MBX*)(cn=\\") == "MBX\\2a\\29\\28cn=\\5c"

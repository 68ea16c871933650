"""What the lab needs of the machine, and how one gets it."""

from __future__ import annotations

import importlib.util
import os
import shutil

SYSTEM_PATHS = ("/usr/sbin", "/sbin")  # not in every user's PATH
PROGRAMS = ("samba", "samba-tool", "slapd", "slapadd", "ldapmodify", "ldbmodify", "kdestroy", "cc")
MODULES = {"ldap": "python-ldap", "gssapi": "gssapi"}


class Missing(Exception):
    """The lab cannot be set up here; what is missing, and the cure, each in a line."""


def programs() -> dict[str, str]:
    """Where each of the programs is.

    Raises:
        Missing: one of them, a module of the extra ``ad``, or the right to listen on the ports of a domain controller.
    """
    path = os.pathsep.join([os.environ.get("PATH", ""), *SYSTEM_PATHS])
    found = {name: shutil.which(name, path=path) for name in PROGRAMS}
    missing: list[str] = []
    if modules := [name for module, name in MODULES.items() if importlib.util.find_spec(module) is None]:
        missing.append(
            f"{' and '.join(modules)}: not installed (build/ad.log says why)\n"
            "  apt install gcc python3-dev libldap-dev libsasl2-dev libkrb5-dev, then make clean and make lab again"
        )
    if absent := [name for name, place in found.items() if place is None]:
        missing.append(f"{', '.join(absent)}: not installed\n  tests/peers/install.sh, as root, installs it on Debian")
    if os.geteuid() != 0:
        missing.append(
            "root: Samba's LDAP listens on ports 389 and 636, nowhere else (of a loopback address)\n  sudo make lab"
        )
    if missing:
        raise Missing("\n".join(missing))
    return {name: str(place) for name, place in found.items()}

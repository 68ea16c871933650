"""Delivery to a mailbox: what it can be, given on which server the mailbox is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from anontls.delivery.hop import Kind
from anontls.delivery.servers import site_of
from anontls.facts import ABSENT, DeliveryType, Server, Unknown, is_unknown, same_name


def kinds_of_delivery(server: Server, holder: Server) -> Iterator[Kind]:
    """What delivery to a mailbox on ``holder`` can be, given what is known of DAG and site [FACT D 6.1].

    A server of the mailbox's own delivery group (its DAG; outside a DAG its site) delivers straight to it, any other
    relays to the group: that this is the line between the three values is our reading.
    """
    names = (holder.name,)
    if same_name(holder.name, server.name):
        yield Kind(DeliveryType.SMTP_DELIVERY_TO_MAILBOX, a_database(), "this-server", names)
        return
    if is_unknown(holder.role):
        yield Kind(DeliveryType.SMTP_RELAY_TO_MAILBOX_DELIVERY_GROUP, holder.role, "other-version", names)
    own, dag = group_of(server), group_of(holder)
    here, there = site_of(server), site_of(holder)
    other_site = not is_unknown(here) and not is_unknown(there) and not same_name(here, there)
    maybe_site = other_site or is_unknown(here) or is_unknown(there)
    if dag is not None and own is not None and (is_unknown(dag) or is_unknown(own) or same_name(own, dag)):
        yield Kind(DeliveryType.SMTP_DELIVERY_TO_MAILBOX, a_database(), "this-dag", names)
    if dag is not None and not (isinstance(dag, str) and isinstance(own, str) and same_name(own, dag)):
        yield Kind(DeliveryType.SMTP_RELAY_TO_DAG, dag, "other-dag", names)
    if dag is None or is_unknown(dag):
        if not other_site and (own is None or is_unknown(own)):
            yield Kind(DeliveryType.SMTP_DELIVERY_TO_MAILBOX, a_database(), "this-site", names)
        if maybe_site or own is not None:
            group = delivery_group(holder)
            yield Kind(DeliveryType.SMTP_RELAY_TO_MAILBOX_DELIVERY_GROUP, group, "other-group", names)
    if maybe_site and not (isinstance(own, str) and isinstance(dag, str) and same_name(own, dag)):
        hub = Unknown("whether a hub site stands on the way, and which, no export tells")
        yield Kind(DeliveryType.SMTP_RELAY_TO_REMOTE_ACTIVE_DIRECTORY_SITE, hub, "hub-site", names)


def same_group(server: Server, holder: Server) -> bool:
    """Whether ``server`` is known to be of the delivery group of ``holder``, whose DAG is known."""
    if server.role != "Mailbox" or server.name == holder.name:
        return server.name == holder.name
    dag, wanted = server.database_availability_group, holder.database_availability_group
    if isinstance(wanted, str) and wanted:
        return isinstance(dag, str) and same_name(dag, wanted)
    here, there = site_of(server), site_of(holder)
    return dag in (None, "") and isinstance(here, str) and isinstance(there, str) and same_name(here, there)


def group_of(server: Server) -> str | Unknown | None:
    """The DAG; ``None`` when it is known to be in none."""
    dag = server.database_availability_group
    return None if dag is None or dag == "" else dag


def a_database() -> Unknown:
    return Unknown("no export tells in which database the mailbox of a recipient is")


_MAJOR = re.compile(r"(?:Version )?(\d{1,3})\.")


def delivery_group(holder: Server) -> str | Unknown:
    """``Site:<name>;Version:<n>``, as queues print it."""
    site, version = site_of(holder), holder.admin_display_version
    if is_unknown(site):
        return site
    if version is None or is_unknown(version):
        return ABSENT if version is None else version
    major = _MAJOR.match(version)
    return f"Site:{site};Version:{major[1]}" if major else Unknown(f"AdminDisplayVersion {version!r} has no version")


def grouped(kinds: Iterable[Kind]) -> tuple[Kind, ...]:
    """The same kinds of different servers as one, in the order in which they came."""
    found: dict[tuple[DeliveryType, str | Unknown, str], list[str]] = {}
    for kind in kinds:
        found.setdefault((kind.delivery_type, kind.next_hop_domain, kind.where), []).extend(kind.servers)
    return tuple(Kind(*key, servers=tuple(names)) for key, names in found.items())

"""Exchange's objects in a directory, in the shape of section 5.1 of docs/facts.md: made as entries for any directory."""

from __future__ import annotations

from collections.abc import Sequence

from lab.entries import Entry, entry

ADMIN_GROUP = "Exchange Administrative Group (FYDIBOHF23SPDLT)"
ROUTING_GROUP = "Exchange Routing Group (DWBGZMFD01QNBJR)"
SITE = "Default-First-Site-Name"


class Exchange:
    """Names and entries of one organisation below a configuration naming context."""

    def __init__(self, configuration: str, name: str = "Contoso") -> None:
        self.configuration = configuration
        self.name = name
        self.exchange = f"CN=Microsoft Exchange,CN=Services,{configuration}"
        self.organization = f"CN={name},{self.exchange}"
        self.groups = f"CN=Administrative Groups,{self.organization}"
        self.group = f"CN={ADMIN_GROUP},{self.groups}"
        self.servers = f"CN=Servers,{self.group}"
        self.connections = f"CN=Connections,CN={ROUTING_GROUP},CN=Routing Groups,{self.group}"
        self.site = f"CN={SITE},CN=Sites,{configuration}"

    def containers(self, *, services: bool = True) -> list[tuple[str, Entry]]:
        """What is above servers and Send connectors; ``services``: with ``CN=Services``, which AD has already."""
        routing_groups = f"CN=Routing Groups,{self.group}"
        above = [
            (f"CN=Services,{self.configuration}", "container"),
            (self.exchange, "msExchConfigurationContainer"),
            (self.organization, "msExchOrganizationContainer"),
            (self.groups, "msExchAdminGroupContainer"),
            (self.group, "msExchAdminGroup"),
            (self.servers, "msExchServersContainer"),
            (routing_groups, "msExchRoutingGroupContainer"),
            (f"CN={ROUTING_GROUP},{routing_groups}", "msExchRoutingGroup"),
            (self.connections, "msExchConnectors"),
        ]
        return [entry(dn, kind) for dn, kind in (above if services else above[1:])]

    def server_dn(self, name: str) -> str:
        return f"CN={name},{self.servers}"

    def server(
        self, name: str, certificate: bytes | None = None, *, roles: int = 54, **more: Sequence[str | bytes]
    ) -> tuple[str, Entry]:
        """A Mailbox server of Exchange 2019 (64 makes it an Edge server)."""
        fqdn = f"{name.lower()}.contoso.com"
        return entry(
            self.server_dn(name),
            "msExchExchangeServer",
            msExchServerInternalTLSCert=[certificate] if certificate is not None else [],
            msExchCurrentServerRoles=[str(roles)],
            msExchServerSite=[self.site],
            networkAddress=[f"ncacn_vns_spp:{name}", f"netbios:{name}", f"ncacn_ip_tcp:{fqdn}"],
            serialNumber=["Version 15.2 (Build 1544.4)"],
            **more,
        )

    def receive_connector(self, server: str, name: str, **more: Sequence[str | bytes]) -> list[tuple[str, Entry]]:
        """With the containers between it and the server."""
        protocols = f"CN=Protocols,{self.server_dn(server)}"
        connectors = f"CN=SMTP Receive Connectors,{protocols}"
        return [
            entry(protocols, "msExchProtocolCfgContainer"),
            entry(connectors, "msExchProtocolCfgSMTPContainer"),
            entry(f"CN={name},{connectors}", "msExchSmtpReceiveConnector", **more),
        ]

    def send_connector(self, name: str, **more: Sequence[str | bytes]) -> tuple[str, Entry]:
        return entry(f"CN={name},{self.connections}", "msExchRoutingSMTPConnector", **more)

"""Was einer Organisation noch fehlt, auf Deutsch; wird in den Katalog aufgenommen."""

TEXTS: dict[str, str] = {
    "missing.servers": "Kein Server ist bekannt: Ohne Get-ExchangeServer findet nichts anderes seinen Platz.",
    "missing.role": (
        "ServerRole ist nicht bekannt. Postfachserver und Edge-Transport-Server werden Verschiedenes gefragt "
        "(ausgehend)."
    ),
    "missing.fqdn": (
        "Fqdn ist nicht bekannt. Nach ihm wird gesucht, wenn ein Empfangsconnector keinen eigenen hat (STARTTLS)."
    ),
    "missing.thumbprint": (
        "InternalTransportCertificateThumbprint ist nicht bekannt. Der erste Schritt von ausgehendem anonymem TLS "
        "fragt danach."
    ),
    "missing.attribute": (
        "msExchServerInternalTLSCert ist nicht bekannt. Beide anonymen Verfahren laden das Zertifikat, das darin steht."
    ),
    "missing.certificates": "Seine Zertifikate sind nicht bekannt. Jedes Verfahren endet in seinem Zertifikatspeicher.",
    "missing.certificate-properties": (
        "{properties} mancher Zertifikate ist nicht bekannt. STARTTLS wählt danach aus, anonymes TLS braucht den "
        "privaten Schlüssel."
    ),
    "missing.receive-connectors": (
        "Seine Empfangsconnectors sind nicht bekannt. Beide eingehenden Verfahren beginnen mit einem."
    ),
    "missing.receive-connector-properties": "{properties} mancher Empfangsconnectors ist nicht bekannt.",
    "missing.queues": (
        "Seine Warteschlangen sind nicht bekannt. Ausgehendes anonymes TLS fragt nach dem DeliveryType der "
        "Warteschlange; ohne ihn wird jede Art durchgespielt."
    ),
    "missing.send-connectors": (
        "Kein Sendeconnector dieses Edge-Transport-Servers ist bekannt. Ausgehendes anonymes TLS fragt nach dessen"
        " SmartHostAuthMechanism."
    ),
    "missing.edge-subscriptions": "Welche Edge-Transport-Server welchen Standort abonniert haben, ist nicht bekannt.",
    "finding.role": (
        "ServerRole {role} gehört nicht dazu. Die Verfahren gelten für Exchange 2016, 2019 und Subscription "
        "Edition, Rollen Mailbox und Edge."
    ),
    "finding.version": (
        "{version} gehört nicht dazu. Die Verfahren gelten für Exchange 2016, 2019 und Subscription Edition."
    ),
    "finding.copies-differ": (
        "msExchServerInternalTLSCert ist {ad} in Active Directory und {adlds} in AD LDS. Das Edge-Abonnement muss "
        "erneuert werden."
    ),
    "finding.thumbprints-differ": (
        "Get-TransportService zeigt {thumbprint}, msExchServerInternalTLSCert enthält {attribute}. Replikation, "
        "oder Exporte verschiedener Tage."
    ),
    "finding.foreign-send-connector": (
        "Sendeconnector {connector}: Keiner seiner Quellserver ({servers}) ist in den Quellen. Er gehört "
        "vielleicht zu einer anderen Organisation."
    ),
    "finding.not-read": "{file} wurde nicht gelesen: {because}",
    "finding.mixed-origins": "Die Cmdlets liefen in mehreren Domänen: {computers}. Ist das eine Organisation?",
    "finding.unplaced": "{type} {identities} aus {file} hat keinen Platz: {because}.",
}

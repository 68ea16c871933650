#!/usr/bin/env bash
# Installs the programs that tests/peers and tests/ad talk to, from Debian's packages; needs root.
# Quick when all are there. No service is started, and no mail server that is there already is replaced.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" DEBIAN_FRONTEND=noninteractive

# what must be there, and the package that brings it
peers=(
  dumpcap wireshark-common
  gnutls-cli gnutls-bin
  kadmin.local krb5-admin-server
  kdb5_util krb5-kdc
  kinit krb5-user
  krb5kdc krb5-kdc
  ldapmodify ldap-utils
  ldbmodify ldb-tools
  openssl openssl
  postfix postfix
  posttls-finger postfix
  prometheus-blackbox-exporter prometheus-blackbox-exporter
  samba samba
  samba-tool samba-common-bin
  sendmail postfix
  slapadd slapd
  slapd slapd
  smtp-source postfix
  swaks swaks
  tshark tshark
)
# what Samba needs to be a domain controller, and a client to log on with Kerberos
parts=(libsasl2-modules-gssapi-mit python3-samba python3-setproctitle samba-ad-dc samba-ad-provision samba-dsdb-modules
  samba-vfs-modules winbind)
# what the extra `ad` is compiled with
parts+=(gcc libkrb5-dev libldap-dev libsasl2-dev python3-dev)

missing=()
for ((i = 0; i < ${#peers[@]}; i += 2)); do
  command -v "${peers[i]}" >/dev/null || missing+=("${peers[i + 1]}")
done
perl -MNet::SSLeay -e 1 2>/dev/null || missing+=(libnet-ssleay-perl) # what swaks does TLS with
for part in "${parts[@]}"; do
  [[ $(dpkg-query -W -f '${db:Status-Status}' "$part" 2>/dev/null) == installed ]] || missing+=("$part")
done
((${#missing[@]})) || exit 0
mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
echo "installing ${missing[*]}"

if [[ ! -e /usr/sbin/policy-rc.d ]]; then # keeps the packages from starting their services
  printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  trap 'rm -f /usr/sbin/policy-rc.d' EXIT
fi
debconf-set-selections <<'END'
postfix postfix/main_mailer_type select No configuration
slapd slapd/no_configuration boolean true
wireshark-common wireshark-common/install-setuid boolean false
END

# --no-remove: rather fail than take another mail server's place
install=(apt-get -o DPkg::Lock::Timeout=300 install -q -y --no-install-recommends --no-remove "${missing[@]}")
if ! apt-get install -q -s --no-remove --no-install-recommends "${missing[@]}" >/dev/null 2>&1; then
  apt-get update -q
fi
"${install[@]}" || { apt-get update -q && "${install[@]}"; } # a list may be older than what the archive still has

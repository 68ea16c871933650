"""Real directories and Kerberos on loopback, for tests and for ``make lab``: Samba as Active Directory, slapd, MIT's KDC."""

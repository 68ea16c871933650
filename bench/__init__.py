"""Measurements beside the peers, on loopback: `make bench`."""

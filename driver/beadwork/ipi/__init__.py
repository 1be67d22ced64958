"""Speaks to i-PI: wire, protocol, scheduling, sockets, XML. No torch in here."""

"""Sandbox: a broker on loopback, with the real ones' manners and faults on demand."""

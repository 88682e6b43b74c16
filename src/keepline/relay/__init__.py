"""Relay: tokens from the daemon to bot processes, pushed (receiver, sender) or subscribed to (feed)."""

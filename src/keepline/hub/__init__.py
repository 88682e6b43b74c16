"""The hub: live analytics to any number of screens, none of which can hurt another."""

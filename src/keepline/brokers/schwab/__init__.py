"""Charles Schwab's Trader API: orders without a client id, answers without a body."""

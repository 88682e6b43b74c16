"""Streams from brokers that tell the truth: whether they are live, what was missed, what is known."""

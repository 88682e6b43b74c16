"""Brokers: what is special about each venue, behind words that all of them share."""

"""The desk: what people watch, in the words of the wire, and one table for how risky it is."""

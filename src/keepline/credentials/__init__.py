"""Credentials: a token's life from sign-in to renewal, kept encrypted, spent once."""

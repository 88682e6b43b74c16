"""The command line: verbs in, one clear line and an exit code out.

Invariants: a failure is one line on standard error that begins with `keepline:`, never a traceback, which would print
secrets; a secret is never an argument, and one given as such is not repeated.
"""

from keepline.cli.program import main

__all__ = ["main"]

"""What an import costs: fresh interpreters, process CPU, less the cost of an empty one."""

import statistics
import subprocess
import sys

from bench import Row

_PROBE = "import time; a = time.process_time(); {}; print(time.process_time() - a)"


def cpu_ms(statement: str, repeats: int) -> float:
    """Median process CPU in milliseconds of one statement in a fresh interpreter."""
    runs = []
    for _ in range(repeats):
        command = [sys.executable, "-c", _PROBE.format(statement)]
        runs.append(
            float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        )
    return statistics.median(runs) * 1000


def run(quick: bool) -> list[Row]:
    repeats = 5 if quick else 21
    return [
        Row("import keepline", cpu_ms("import keepline", repeats), "ms", 60),
        Row(
            "from keepline import TokenReceiver",
            cpu_ms("from keepline import TokenReceiver", repeats),
            "ms",
        ),
        Row(
            "from keepline import TokenManager",
            cpu_ms("from keepline import TokenManager", repeats),
            "ms",
        ),
    ]

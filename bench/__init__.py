"""Every speed figure of the documentation, reproducible by one command: `make bench`.

Each module has `run(quick) -> list[Row]`. Time is process CPU where the work is ours alone, and wall time only where
waiting is what is measured; ratios compare things measured in the same run.
"""

from dataclasses import dataclass

__all__ = ["Row"]


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured.
        value: the figure.
        unit: its unit, `x` for a ratio.
        bar: the largest (or with `at_least` the smallest) figure that we accept; None only informs.
        at_least: the bar is a lower one.
    """

    name: str
    value: float
    unit: str
    bar: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool:
        if self.bar is None:
            return True
        return self.value >= self.bar if self.at_least else self.value <= self.bar

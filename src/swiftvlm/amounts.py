"""How numbers and budgets may be written, by callers and in files."""

Number = int | float
Budget = int | float | None

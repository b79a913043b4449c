"""Large numbers as people read them."""

PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def with_prefix(number: float, unit: str = "") -> str:
    """Return a number in three digits with a prefix: 1.234e13 as '12.3 T', or '12.3 TFLOP'."""
    for prefix in PREFIXES[:-1]:
        if number < 999.5:
            return f"{number:.3g} {prefix}{unit}".rstrip()
        number /= 1000
    return f"{number:,.3g} {PREFIXES[-1]}{unit}"


def flops(operations: float) -> str:
    """Return floating-point operations, as everything that is printed writes them."""
    return with_prefix(operations, "FLOP")

"""How times, sizes and numbers of things are said, in a terminal and in a report alike."""


def duration(seconds: float) -> str:
    """`3.1 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(num_bytes: float) -> str:
    """`512 B`, `1.4 MB`, `154 GB`: three digits, in units of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB"


def counted(number: int, things: str) -> str:
    """`1 shard`, `2,000 shards`, from the plural with an s."""
    return f"{number:,} {things.removesuffix('s') if number == 1 else things}"

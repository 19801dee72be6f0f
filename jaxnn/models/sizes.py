"""Numbers that fit: what the error about a size that does not divide another says to write."""

FARTHEST = 1024  # more heads or larger patches than anybody has; a size may be 2**31 - 1 where a file says so


def divisors(whole: int, most: int) -> list[int]:
    """What divides `whole` up to `most` and to `FARTHEST`, in time that does not grow with either."""
    return [n for n in range(1, min(whole, most, FARTHEST) + 1) if whole % n == 0]

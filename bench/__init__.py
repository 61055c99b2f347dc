"""Measurements of the daemon, each beside a baseline of the same run: ``python -m bench``.

One module a benchmark. Each prints what it measured, what the same machine did just
before with next to nothing to do, the ratio, and whether the target holds. Nothing here
is imported by the product.
"""

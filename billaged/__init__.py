"""billaged: raw VM usage in, bills that can be proved out."""

__version__ = "0.1.0"

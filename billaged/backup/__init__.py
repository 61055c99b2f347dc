"""Backups of a data directory, and restoring them.

Law of this room: copies are made by reading only, whether a daemon runs or not; what is put back is checked
before anything is replaced, and what is replaced is kept.
"""

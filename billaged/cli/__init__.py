"""The command line: one module per command group.

Law of this room: parse, call one function, print. No rule of billing and no SQL
lives here, and only ``errors.py`` turns an error into words and an exit code.
"""

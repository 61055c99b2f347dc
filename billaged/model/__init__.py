"""The vocabulary: ids, times, quantities, records, errors.

Law of this room: frozen values and pure functions over them. No I/O, no threads,
no third-party imports. Every other room may import it; it imports none of them.
"""

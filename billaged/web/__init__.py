"""The HTTP application: health, statistics, and the place where the Connect door hangs.

Law of this room: reads and shows; measured usage enters through the door only.
"""

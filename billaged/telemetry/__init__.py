"""What operators see: logs, the audit log, metrics, traces.

Law of this room: it observes. Nothing here changes what is billed, and nothing
waits for it.
"""

"""What operators see: logs and summaries on the log (metrics and traces to come).

Law of this room: it observes. Nothing here changes what is billed, and nothing
waits for it.
"""

"""Where usage enters: gRPC and the same RPCs over HTTP.

Law of this room: turn bytes into model records and answers into bytes; call
``Intake``, nothing more. No business rule, no storage, no knowledge of the stages behind.
"""

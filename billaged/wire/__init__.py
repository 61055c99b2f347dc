"""The wire: generated protobuf code, and the codec between it and the model.

Law of this room: knows every message and no business rule.
"""

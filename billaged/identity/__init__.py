"""Who is calling, and how the server proves who it is.

Law of this room: knows certificates, keys and peers; knows no request. Nothing here
ever falls back to a weaker way than the one that was set.
"""

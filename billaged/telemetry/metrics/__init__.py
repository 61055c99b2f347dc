"""What Prometheus is told. The only room that knows its client library.

Stages keep plain counters or call the small observers here, a few times a group or once a
request; ``observation.py`` of the composition root reads them when somebody asks.
"""

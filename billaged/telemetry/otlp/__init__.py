"""OTLP over HTTP: traces and metrics for a collector. The only room that knows OpenTelemetry's libraries.

They are an extra of the installation, so only ``open_telemetry`` of ``telemetry.opening`` imports from here,
and only where OpenTelemetry is on. Who sends are threads of their own: a collector that is away or slow
holds up nobody else.
"""

"""The sections. Units are the last word of a name; a limit's reason stands beside it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import SecretStr, model_validator

from billaged.model.quantity import GIB, MIB, ScoreWeights
from billaged.model.records import FoldRules
from billaged.model.time import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS
from billaged.settings.customer_durations import CustomerDurations
from billaged.settings.kinds import (
    Choice,
    Duration,
    Endpoint,
    File,
    Flag,
    Fraction,
    Host,
    Levels,
    Secret,
    Size,
    Text,
    Whole,
)
from billaged.settings.section import Section, Variable

KIB: Final = 2**10
TIB: Final = 2**40

_WEIGHT: Final = Fraction(Decimal(0), Decimal(1_000_000))


class Grpc(Section):
    """The gRPC server that hosts push to."""

    port: Annotated[int, Variable("PORT"), Whole(0, 65_535)] = 8081
    """TCP port of the gRPC server; 0 takes any free one."""

    address: Annotated[str, Variable("ADDRESS"), Host()] = "0.0.0.0"
    """Address the gRPC server listens on."""

    max_message_bytes: Annotated[int, Variable("MAX_MESSAGE_BYTES"), Size(4 * KIB, 64 * MIB)] = 4 * MIB
    """Largest request, after decompression. A larger one is refused with RESOURCE_EXHAUSTED."""

    max_concurrent_rpcs: Annotated[int, Variable("MAX_CONCURRENT_RPCS"), Whole(1, 1_000_000)] = 4096
    """RPCs in flight at once, watchers among them. More are refused with RESOURCE_EXHAUSTED."""

    max_rpcs_per_identity: Annotated[int, Variable("MAX_RPCS_PER_IDENTITY"), Whole(0, 1_000_000)] = 1024
    """RPCs in flight at once of one identity; without TLS, of one remote address. More are refused with
    RESOURCE_EXHAUSTED; 0 for no limit. HTTP has a limit of its own, 128."""

    max_metadata_bytes: Annotated[int, Variable("MAX_METADATA_BYTES"), Size(4 * KIB, MIB)] = 16 * KIB
    """Largest metadata (headers) of a request."""

    max_connections: Annotated[int, Variable("MAX_CONNECTIONS"), Whole(1, 1_000_000)] = 4096
    """Connections open at once, those in their handshake included. More are closed as they come."""

    max_connections_per_identity: Annotated[int, Variable("MAX_CONNECTIONS_PER_IDENTITY"), Whole(0, 1_000_000)] = 256
    """Connections one identity may use at once; without TLS, one remote address. RPCs on more are refused with
    RESOURCE_EXHAUSTED; 0 for no limit."""

    max_streams_per_connection: Annotated[int, Variable("MAX_STREAMS_PER_CONNECTION"), Whole(1, 1_000_000)] = 1024
    """RPCs in flight on one connection. A client's others wait in the client."""

    connection_max_age_ns: Annotated[int, Variable("CONNECTION_MAX_AGE"), Duration("0s", "87600h")] = HOUR_NANOS
    """A connection older than this is asked to go and connect anew; running RPCs finish. 0 for no limit."""

    connection_max_idle_ns: Annotated[int, Variable("CONNECTION_MAX_IDLE"), Duration("0s", "87600h")] = (
        10 * MINUTE_NANOS
    )
    """A connection without RPCs for this long is closed; 0 for no limit. A request that crosses with the closing can
    fail, so stay away from the rhythm of your senders."""

    keepalive_time_ns: Annotated[int, Variable("KEEPALIVE_TIME"), Duration("1s", "24h")] = MINUTE_NANOS
    """A connection that is silent for this long is asked whether its other side is still there."""

    keepalive_timeout_ns: Annotated[int, Variable("KEEPALIVE_TIMEOUT"), Duration("100ms", "10m")] = 20 * NANOS
    """How long the answer to that may take before the connection is closed."""

    requests_per_second: Annotated[int, Variable("REQUESTS_PER_SECOND"), Whole(0, 10_000_000)] = 5_000
    """Requests a second of one identity (without TLS: of one remote address), five seconds' worth at once.
    More are refused with RESOURCE_EXHAUSTED and a retry delay; 0 for no limit. HTTP counts too."""

    samples_per_second: Annotated[int, Variable("SAMPLES_PER_SECOND"), Whole(0, 1_000_000_000)] = 500_000
    """Samples a second of one identity, in the same way."""

    handshake_timeout_ns: Annotated[int, Variable("HANDSHAKE_TIMEOUT"), Duration("100ms", "10m")] = 10 * NANOS
    """How long a new connection may take for its TLS and HTTP/2 handshake before it is cut."""

    watchers_max: Annotated[int, Variable("WATCHERS_MAX"), Whole(1, 10_000)] = 64
    """WatchSummaries streams open at once. More are refused with RESOURCE_EXHAUSTED."""

    watchers_max_per_identity: Annotated[int, Variable("WATCHERS_MAX_PER_IDENTITY"), Whole(1, 10_000)] = 16
    """WatchSummaries streams of one identity; without TLS, of one remote address."""

    watcher_queue_max: Annotated[int, Variable("WATCHER_QUEUE_MAX"), Whole(1, 10_000_000)] = 10_000
    """Summaries that wait for one watcher. One that falls further behind is cut off."""


class Http(Section):
    """The HTTP server: health, statistics, the RPCs as JSON."""

    port: Annotated[int, Variable("HTTP_PORT"), Whole(0, 65_535)] = 8082
    """TCP port of the HTTP server; 0 takes any free one."""

    address: Annotated[str, Variable("HTTP_ADDRESS"), Host()] = "127.0.0.1"
    """Address the HTTP server listens on. On loopback it is plaintext; elsewhere it uses the TLS of gRPC."""

    max_connections: Annotated[int, Variable("HTTP_MAX_CONNECTIONS"), Whole(1, 1_000_000)] = 1024
    """Connections open at once, those in their handshake included. More are closed as they come."""

    token: Annotated[SecretStr | None, Variable("HTTP_TOKEN"), Secret(16)] = None
    """Bearer token that HTTP without TLS asks for. Its callers are `@token` to the policy."""

    token_file: Annotated[Path | None, Variable("HTTP_TOKEN_FILE"), File()] = None
    """File with that token (surrounding white space is ignored); read again on SIGHUP."""

    @model_validator(mode="after")
    def _one_token(self) -> Http:
        if self.token is not None and self.token_file is not None:
            raise ValueError(f"{Variable('HTTP_TOKEN').name}: the token is also in a file; give only one of the two")
        return self


class Tls(Section):
    """How the gRPC server proves who it is, and who may call."""

    mode: Annotated[
        Literal["spiffe", "file", "disabled"], Variable("TLS_MODE"), Choice(("spiffe", "file", "disabled"))
    ] = "spiffe"
    """`spiffe`: identities from a SPIFFE agent. `file`: certificate and key from files. `disabled`: plaintext.
    None falls back to another."""

    cert_file: Annotated[Path | None, Variable("TLS_CERT_FILE"), File()] = None
    """Certificate chain, PEM, the server's first. Needed for mode `file`."""

    key_file: Annotated[Path | None, Variable("TLS_KEY_FILE"), File()] = None
    """Private key, PEM. Needed for mode `file`."""

    ca_file: Annotated[Path | None, Variable("TLS_CA_FILE"), File()] = None
    """Certificates that sign callers, PEM. When set, a caller without a certificate from one is refused (mTLS)."""

    spiffe_socket: Annotated[Path, Variable("SPIFFE_SOCKET"), File()] = Path("/var/lib/spire/agent/agent.sock")
    """Unix socket of the SPIFFE agent's Workload API."""

    spiffe_wait_ns: Annotated[int, Variable("SPIFFE_WAIT"), Duration("1s", "24h")] = 5 * MINUTE_NANOS
    """How long a start waits for the SPIFFE agent before it gives up."""

    reload_interval_ns: Annotated[int, Variable("TLS_RELOAD_INTERVAL"), Duration("100ms", "1h")] = 5 * NANOS
    """How often mode `file` looks whether its files have changed."""

    allow_plaintext: Annotated[bool, Variable("ALLOW_PLAINTEXT"), Flag()] = False
    """Consent to mode `disabled` on addresses beyond loopback: anybody who can connect can write and read bills."""

    policy_file: Annotated[Path | None, Variable("POLICY_FILE"), File()] = None
    """Which identity may do what, TOML; read again on SIGHUP. Without it, TLS allows nothing but health checks,
    and mode `disabled` everything."""

    @model_validator(mode="after")
    def _file_mode_has_files(self) -> Tls:
        if self.mode == "file":
            missing = [
                f"{field.variable.name}: must be set when {Variable('TLS_MODE').name} is file"
                for field in self.described_fields()
                if field.attribute in ("cert_file", "key_file") and getattr(self, field.attribute) is None
            ]
            if missing:
                raise ValueError("\n".join(missing))
        return self


class Storage(Section):
    """Where the journal and the ledger live, and for how long."""

    data_dir: Annotated[Path, Variable("DATA_DIR"), File()] = Path("/var/lib/billaged")
    """Directory of the journal and the ledger; made with mode 0700 where it is missing. One daemon at a time."""

    store: Annotated[Literal["sqlite", "memory"], Variable("STORE"), Choice(("sqlite", "memory"))] = "sqlite"
    """`sqlite`: durable, in the data directory. `memory`: nothing is written, all is lost at the end."""

    journal_retention_ns: Annotated[int, Variable("JOURNAL_RETENTION"), Duration("1h", "87600h")] = 7 * DAY_NANOS
    """How long rows that are already in the ledger stay in the journal, at least: they leave at cuts, one a day."""

    archive_retention_ns: Annotated[int, Variable("ARCHIVE_RETENTION"), Duration("0s", "87600h")] = 70 * DAY_NANOS
    """How long journal segments are kept once they left the journal; 0 for not at all."""

    min_free_bytes: Annotated[int, Variable("MIN_FREE_BYTES"), Size(0, TIB)] = 256 * MIB
    """Free space in the data directory below which new usage is refused, before the disk is full; 0 for no check."""


class Intake(Section):
    """What is taken in at once, and what a request may hold."""

    queue_max_records: Annotated[int, Variable("QUEUE_MAX_RECORDS"), Whole(1, 10_000_000)] = 65_536
    """Requests that wait for the journal. More are refused with RESOURCE_EXHAUSTED and a retry delay."""

    queue_max_bytes: Annotated[int, Variable("QUEUE_MAX_BYTES"), Size(64 * KIB, TIB)] = 256 * MIB
    """Bytes of the requests that wait for the journal; at least one largest message."""

    group_max_records: Annotated[int, Variable("GROUP_MAX_RECORDS"), Whole(1, 65_536)] = 1024
    """Most requests in one journal commit."""

    group_max_bytes: Annotated[int, Variable("GROUP_MAX_BYTES"), Size(4 * KIB, GIB)] = 4 * MIB
    """Bytes after which a journal commit takes no further request."""

    max_samples_per_batch: Annotated[int, Variable("MAX_SAMPLES_PER_BATCH"), Whole(1, 1_000_000)] = 100_000
    """Most samples in one SendMetricsBatch."""

    max_active_vms_per_heartbeat: Annotated[int, Variable("MAX_ACTIVE_VMS_PER_HEARTBEAT"), Whole(1, 1_000_000)] = (
        100_000
    )
    """Most VMs in one SendHeartbeat."""

    max_sample_age_ns: Annotated[int, Variable("MAX_SAMPLE_AGE"), Duration("1m", "8760h")] = 35 * DAY_NANOS
    """How far in the past a sample may lie."""

    max_future_ns: Annotated[int, Variable("MAX_FUTURE"), Duration("0s", "24h")] = 5 * MINUTE_NANOS
    """How far ahead of this machine's clock a time may lie."""


class Aggregation(Section):
    """How usage is folded. A changed bucket, threshold or cap counts from its start on, never for the past."""

    aggregation_interval_ns: Annotated[int, Variable("AGGREGATION_INTERVAL"), Duration("1s", "24h")] = 60 * NANOS
    """Time between two summaries of a VM."""

    ledger_bucket_ns: Annotated[int, Variable("LEDGER_BUCKET"), Duration("1m", "1h", divides="1h")] = HOUR_NANOS
    """Length of the ledger's time buckets, aligned to UTC."""

    gap_threshold_ns: Annotated[int, Variable("GAP_THRESHOLD"), Duration("1s", "8h")] = 15 * MINUTE_NANOS
    """Longest step between two samples that counts as measured. A longer one is a gap: its memory is not billed."""

    gap_thresholds: Annotated[
        tuple[tuple[str, int], ...] | None, Variable("GAP_THRESHOLDS"), CustomerDurations("1s", "8h")
    ] = None
    """Customers with a gap threshold of their own: `acme=30m,batch-co=2h`. For all others it is `GAP_THRESHOLD`."""

    vanish_after_ns: Annotated[int, Variable("VANISH_AFTER"), Duration("1m", "8760h")] = HOUR_NANOS
    """How long a VM is taken for running that an instance listed, none lists any more, and that sends nothing."""

    max_cores: Annotated[int, Variable("MAX_CORES"), Whole(1, 4096)] = 256
    """Cap, cores: a step with more CPU time than these could give is implausible and bills nothing."""

    max_gigabytes_per_second: Annotated[int, Variable("MAX_GIGABYTES_PER_SECOND"), Whole(1, 10_000)] = 50
    """Cap, 10^9 bytes per second for each disk and network counter: a faster step is implausible and bills nothing."""

    flush_interval_ns: Annotated[int, Variable("LEDGER_FLUSH_INTERVAL"), Duration("10ms", "1m")] = NANOS
    """Longest time between two commits to the ledger while there is something to write."""

    max_vms: Annotated[int, Variable("MAX_VMS"), Whole(1, 10_000_000)] = 1_000_000
    """VMs known at once (about 400 bytes of memory each)."""

    def fold_rules(self) -> FoldRules:
        """What of this the fold depends on, as it is journaled."""
        return FoldRules(
            gap_threshold_ns=self.gap_threshold_ns,
            bucket_ns=self.ledger_bucket_ns,
            vanish_after_ns=self.vanish_after_ns,
            max_cores=self.max_cores,
            max_gigabytes_per_second=self.max_gigabytes_per_second,
            gap_thresholds=self.gap_thresholds or (),
        )


class Summaries(Section):
    """Which summaries go to the log. The ledger and watchers have them all."""

    log: Annotated[
        Literal["vm", "customer", "total", "off"], Variable("SUMMARY_LOG"), Choice(("vm", "customer", "total", "off"))
    ] = "vm"
    """One line for each VM, for each customer, for everything together, or none."""


class Score(Section):
    """Weights of the resource score."""

    cpu_weight: Annotated[Decimal, Variable("SCORE_CPU_WEIGHT"), _WEIGHT] = Decimal("1.0")
    """Points for each second of CPU time."""

    memory_weight: Annotated[Decimal, Variable("SCORE_MEMORY_WEIGHT"), _WEIGHT] = Decimal("0.5")
    """Points for each GB (2^30 bytes) of mean memory."""

    disk_weight: Annotated[Decimal, Variable("SCORE_DISK_WEIGHT"), _WEIGHT] = Decimal("0.3")
    """Points for each MB (2^20 bytes) read from or written to disk."""

    def weights(self) -> ScoreWeights:
        """The weights as the score takes them."""
        return ScoreWeights(cpu_second=self.cpu_weight, memory_gb=self.memory_weight, disk_mb=self.disk_weight)


class Log(Section):
    """What billaged says about itself."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Variable("LOG_LEVEL"),
        Choice(("debug", "info", "warning", "error")),
    ] = "info"
    """Least severity that is logged."""

    format: Annotated[Literal["auto", "json", "text"], Variable("LOG_FORMAT"), Choice(("auto", "json", "text"))] = (
        "auto"
    )
    """`auto`: text on a terminal, JSON lines else."""

    levels: Annotated[str | None, Variable("LOG_LEVELS"), Levels()] = None
    """Least severity of single loggers and what is below them, before `LOG_LEVEL`:
    `billaged.summary=warning,billaged.audit=error`."""

    audit_file: Annotated[Path | None, Variable("LOG_AUDIT_FILE"), File()] = None
    """Where the audit log goes (JSON lines, made with mode 0600, opened again on SIGHUP) instead of into the log.
    `billaged.service` may write below `/var/log/billaged`: `/var/log/billaged/audit.log` is rotated there."""

    def levels_by_logger(self) -> dict[str, str]:
        """What `levels` says."""
        return {} if self.levels is None else Levels.pairs(self.levels)


class Metrics(Section):
    """What Prometheus may ask for. On whether or not OpenTelemetry is; `docs/metrics.md` lists what there is."""

    enabled: Annotated[bool, Variable("OTEL_PROMETHEUS_ENABLED"), Flag()] = True
    """Whether `/metrics` is served."""

    port: Annotated[int, Variable("OTEL_PROMETHEUS_PORT"), Whole(0, 65_535)] = 9465
    """TCP port of `/metrics`, which has `/health` too; 0 takes any free one."""

    address: Annotated[str, Variable("OTEL_PROMETHEUS_INTERFACE"), Host()] = "127.0.0.1"
    """Address it listens on. It is plain HTTP, for everybody who can connect."""

    high_cardinality: Annotated[bool, Variable("OTEL_HIGH_CARDINALITY_ENABLED"), Flag()] = False
    """Labels with the names of VMs and customers, for 10,000 of each at most; the rest is summed up as `other`."""


class Otel(Section):
    """OpenTelemetry: traces of requests, and the metrics, sent to a collector. Needs the extra `otel` installed."""

    enabled: Annotated[bool, Variable("OTEL_ENABLED"), Flag()] = False
    """Whether traces and metrics are sent."""

    endpoint: Annotated[str, Variable("OTEL_ENDPOINT"), Endpoint()] = "localhost:4318"
    """The collector, which is spoken to in OTLP over HTTP; without `https://` it is plain HTTP."""

    service_name: Annotated[str, Variable("OTEL_SERVICE_NAME"), Text()] = "billaged"
    """What the service is called in traces and metrics."""

    service_version: Annotated[str | None, Variable("OTEL_SERVICE_VERSION"), Text()] = None
    """Its version there; without it, billaged's own."""

    sampling_rate: Annotated[Decimal, Variable("OTEL_SAMPLING_RATE"), Fraction(Decimal(0), Decimal(1))] = Decimal("1.0")
    """How much of the traces that begin here is kept. A request that comes with a trace follows its caller's choice."""

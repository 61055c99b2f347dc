"""Every metric there is, in the order of ``/metrics`` and of docs/metrics.md. Names are promises."""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Type = Literal["counter", "gauge", "histogram"]


class Metric(NamedTuple):
    """``help`` is what Prometheus shows and what the documentation says."""

    name: str
    type: Type
    help: str
    labels: tuple[str, ...] = ()


# --- usage ---------------------------------------------------------------------

RECORDS: Final = Metric(
    "billaged_usage_records_processed_total",
    "counter",
    "Samples that count into usage (accepted or backfilled) and are in the ledger, since this process began.",
)
AGGREGATION: Final = Metric(
    "billaged_aggregation_duration_seconds", "histogram", "Time to fold one group of journal entries."
)
ACTIVE_VMS: Final = Metric("billaged_active_vms", "gauge", "VMs with a running session.")
ERRORS: Final = Metric(
    "billaged_billing_errors_total",
    "counter",
    "Usage that may not be billed as it was sent, by what went wrong.",
    ("error_type",),
)
SAMPLES: Final = Metric(
    "billaged_samples_total",
    "counter",
    "Samples by what became of them: in the ledger, or refused once their request was decoded.",
    ("outcome",),
)
LABELS_FULL: Final = Metric(
    "billaged_metrics_labels_full",
    "gauge",
    'By label, 1 once there were more than 10,000 VMs or customers, of which the rest is summed up as "other".',
    ("label",),
)
KNOWN_VMS: Final = Metric("billaged_known_vms", "gauge", "VMs in memory, ended ones included.")
MAX_VMS: Final = Metric("billaged_known_vms_limit", "gauge", "Most VMs known at once; samples of more are refused.")
CUSTOMERS: Final = Metric("billaged_customers", "gauge", "Customers of the VMs that were seen by this process.")

# --- what is missing -----------------------------------------------------------

OPEN_GAPS: Final = Metric(
    "billaged_open_gaps", "gauge", "Running VMs that are not heard at this moment, by the reason.", ("reason",)
)
ANOMALIES: Final = Metric(
    "billaged_anomalies_total",
    "counter",
    "What the fold has put on record for somebody to ask about, by kind.",
    ("kind",),
)
DEAD_LETTERS: Final = Metric(
    "billaged_dead_letters_total",
    "counter",
    "Acknowledged requests that could not be placed and are kept as dead letters, by the reason.",
    ("reason",),
)
INSTANCES: Final = Metric(
    "billaged_instances", "gauge", "Host agents that have sent heartbeats, by whether they are silent now.", ("state",)
)
HEARTBEAT_AGE: Final = Metric(
    "billaged_heartbeat_age_seconds",
    "gauge",
    "Since the latest heartbeat of the host agent that was heard least recently; none where there is no agent.",
)

# --- requests ------------------------------------------------------------------

REQUESTS: Final = Metric(
    "billaged_requests_total",
    "counter",
    "Requests that have ended, by door (grpc, http), method and gRPC's name of the status.",
    ("door", "method", "code"),
)
REQUEST_DURATION: Final = Metric(
    "billaged_request_duration_seconds",
    "histogram",
    "Time from a request's headers to its answer, whatever that was; without watchers.",
    ("door", "method"),
)
DENIED: Final = Metric(
    "billaged_requests_denied_total", "counter", "Requests that were denied: see the audit log.", ("outcome",)
)
THROTTLED: Final = Metric(
    "billaged_requests_throttled_total", "counter", "Requests refused because their sender was too fast."
)
CONNECTIONS_REFUSED: Final = Metric(
    "billaged_connections_refused_total", "counter", "Requests refused because their caller had too many connections."
)
WATCHERS: Final = Metric("billaged_watchers", "gauge", "Open WatchSummaries streams.")
WATCHERS_MAX: Final = Metric("billaged_watchers_limit", "gauge", "Most streams open at once.")
SUMMARIES_DROPPED: Final = Metric(
    "billaged_summaries_dropped_total", "counter", "Batches of summaries that were not given out; the ledger has all."
)

# --- journal and ledger --------------------------------------------------------

COMMIT: Final = Metric(
    "billaged_journal_commit_duration_seconds", "histogram", "Time to make one group of requests durable."
)
GROUP: Final = Metric("billaged_journal_group_records", "histogram", "Journal rows committed together.")
JOURNAL_ROWS: Final = Metric("billaged_journal_rows", "gauge", "Rows in the journal that have not left it.")
JOURNAL_POSITION: Final = Metric(
    "billaged_journal_position", "gauge", "Sequence of the journal's last row; it only grows."
)
LEDGER_POSITION: Final = Metric(
    "billaged_ledger_position", "gauge", "Sequence of the last journal row that is in the ledger; it only grows."
)
LAG_RECORDS: Final = Metric("billaged_ledger_lag_records", "gauge", "Journal rows that are not in the ledger yet.")
LAG_SECONDS: Final = Metric(
    "billaged_ledger_lag_seconds", "gauge", "How long the oldest journal row that is not in the ledger has waited."
)
FLUSH: Final = Metric(
    "billaged_ledger_flush_duration_seconds",
    "histogram",
    "Time to collect what has changed and to commit it to the ledger.",
)
FILE_BYTES: Final = Metric(
    "billaged_store_bytes", "gauge", "Size of journal.db and ledger.db with what lies beside them.", ("store",)
)
DISK_FREE: Final = Metric(
    "billaged_disk_free_bytes", "gauge", "Bytes that billaged may still write on the data directory's file system."
)
DISK_NEEDED: Final = Metric(
    "billaged_disk_needed_bytes", "gauge", "Free bytes below which usage is refused; 0 for no check."
)

# --- intake --------------------------------------------------------------------

TAKING: Final = Metric("billaged_taking_usage", "gauge", "1 while usage is taken, 0 while it is refused.")
QUEUE_RECORDS: Final = Metric("billaged_queue_records", "gauge", "Requests between their door and the end of the fold.")
QUEUE_RECORDS_MAX: Final = Metric("billaged_queue_records_limit", "gauge", "Most of them; more are refused.")
QUEUE_BYTES: Final = Metric("billaged_queue_bytes", "gauge", "Bytes of the requests in the queue.")
QUEUE_BYTES_MAX: Final = Metric("billaged_queue_bytes_limit", "gauge", "Most bytes in the queue; more are refused.")

# --- identity ------------------------------------------------------------------

CERTIFICATE_EXPIRY: Final = Metric(
    "billaged_certificate_expiry_timestamp_seconds",
    "gauge",
    "When the first certificate ends of the own chain (use='identity'), and of the roots the first of which there is"
    " no later one for its trust domain (use='trust'), Unix time; none without TLS.",
    ("use",),
)
IDENTITY_CHANGES: Final = Metric(
    "billaged_identity_changes_total", "counter", "Certificates and roots that were put in use."
)
IDENTITY_REFUSALS: Final = Metric(
    "billaged_identity_refusals_total", "counter", "Certificates and roots that were refused, and failures to get some."
)
POLICY_STALE: Final = Metric(
    "billaged_policy_stale",
    "gauge",
    "1 while the policy file as it is now cannot be used; an older one is in force.",
)

# --- the process ---------------------------------------------------------------

BUILD: Final = Metric(
    "billaged_build_info", "gauge", "Always 1; the labels say what runs.", ("version", "python", "tls", "store")
)
SPANS: Final = Metric(
    "billaged_spans_total",
    "counter",
    "Spans for OpenTelemetry by what became of them: sent, failed (not taken by the collector), dropped (too many).",
    ("outcome",),
)
REPLAYED: Final = Metric("billaged_replayed_records", "gauge", "Journal rows that this start has folded again.")
DOWNTIME: Final = Metric(
    "billaged_downtime_before_start_seconds",
    "gauge",
    "How long nothing was taken before this start; 0 for a new data directory.",
)
THREADS: Final = Metric("billaged_threads", "gauge", "Threads of the interpreter.")
TASKS: Final = Metric("billaged_asyncio_tasks", "gauge", "Tasks of the event loop.")
SCRAPE: Final = Metric(
    "billaged_metrics_read_seconds", "gauge", "How long it took to read what is shown here, without writing it."
)

METRICS: Final = tuple(value for value in list(vars().values()) if isinstance(value, Metric))

# The same with labels for whom, where OTEL_HIGH_CARDINALITY_ENABLED is set.
RECORDS_BY_VM: Final = RECORDS._replace(labels=("vm_id", "customer_id"))
ACTIVE_VMS_BY_CUSTOMER: Final = ACTIVE_VMS._replace(labels=("customer_id",))

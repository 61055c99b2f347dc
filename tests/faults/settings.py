"""What all daemons of the fault tests are set to."""

from __future__ import annotations

from typing import Final

GAP_THRESHOLD_SECONDS: Final = 120
SETTINGS: Final = {
    # Ticks and closed intervals come between the requests.
    "AGGREGATION_INTERVAL": "1s",
    "GAP_THRESHOLD": f"{GAP_THRESHOLD_SECONDS}s",
    "LEDGER_BUCKET": "5m",
    # Long enough that a fault finds acknowledged usage that is not in the ledger yet.
    "LEDGER_FLUSH_INTERVAL": "100ms",
    "REQUESTS_PER_SECOND": "0",
    "SAMPLES_PER_SECOND": "0",
    "SUMMARY_LOG": "off",
}

"""Settings: what is read, what is refused and in which words, and that the page of docs is true."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from billaged.model.errors import SettingError
from billaged.model.quantity import ScoreWeights
from billaged.model.records import FoldRules
from billaged.model.time import DAY_NANOS, HOUR_NANOS, MINUTE_NANOS, NANOS
from billaged.settings import Settings
from billaged.settings.coming import COMING
from billaged.settings.kinds import Duration, Fraction, Size, Whole
from billaged.settings.names import other_names, under_own_names
from billaged.settings.section import PREFIX

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "configuration.md"


def load(**texts: str) -> Settings:
    """Settings of an environment, names without their prefix."""
    return Settings.load({PREFIX + name: text for name, text in texts.items()})


def problems(**texts: str) -> list[str]:
    """The lines that an environment is refused with."""
    with pytest.raises(SettingError) as caught:
        load(**texts)
    return str(caught.value).splitlines()


def test_defaults_are_those_promised() -> None:
    settings = Settings.load({})
    assert settings == Settings()
    assert (settings.grpc.port, settings.grpc.address) == (8081, "0.0.0.0")
    assert (settings.http.port, settings.http.address) == (8082, "127.0.0.1")
    assert (settings.grpc.max_message_bytes, settings.grpc.max_metadata_bytes) == (4_194_304, 16_384)
    assert (settings.grpc.max_concurrent_rpcs, settings.grpc.handshake_timeout_ns) == (4096, 10 * NANOS)
    assert (settings.grpc.watchers_max, settings.grpc.watcher_queue_max) == (64, 10_000)
    assert settings.tls.mode == "spiffe"  # never plaintext by default
    assert settings.tls.spiffe_socket == Path("/var/lib/spire/agent/agent.sock")
    assert (settings.tls.cert_file, settings.tls.key_file, settings.tls.ca_file) == (None, None, None)
    assert (settings.storage.data_dir, settings.storage.store) == (Path("/var/lib/billaged"), "sqlite")
    assert settings.storage.journal_retention_ns == 7 * DAY_NANOS
    assert settings.storage.archive_retention_ns == 70 * DAY_NANOS
    assert settings.storage.min_free_bytes == 268_435_456
    assert (settings.intake.queue_max_records, settings.intake.queue_max_bytes) == (65_536, 268_435_456)
    assert (settings.intake.group_max_records, settings.intake.group_max_bytes) == (1024, 4_194_304)
    assert settings.intake.max_samples_per_batch == 100_000
    assert settings.intake.max_active_vms_per_heartbeat == 100_000
    assert (settings.intake.max_sample_age_ns, settings.intake.max_future_ns) == (35 * DAY_NANOS, 5 * MINUTE_NANOS)
    assert settings.aggregation.aggregation_interval_ns == 60 * NANOS
    assert settings.aggregation.flush_interval_ns == NANOS
    assert settings.aggregation.max_vms == 1_000_000
    assert settings.summaries.log == "vm"
    assert (settings.log.level, settings.log.format) == ("info", "auto")


def test_default_rules_and_weights_are_the_models_own() -> None:
    # Two places name these numbers; the ledger's rules must not depend on which was read.
    assert Settings().aggregation.fold_rules() == FoldRules()
    assert Settings().score.weights() == ScoreWeights()


def test_every_default_would_be_accepted_if_it_were_set() -> None:
    texts = {line.name: line.default for line in Settings().lines() if line.default is not None}
    settings = Settings.load(texts)
    assert settings.sections == Settings().sections
    assert set(texts) <= {name for name, source in settings.sources.items() if source == "environment"}


def test_a_set_value_is_in_force_and_says_where_from() -> None:
    settings = load(
        PORT="0",
        AGGREGATION_INTERVAL="1h30m",
        MIN_FREE_BYTES="4GiB",
        DATA_DIR="./var",
        SCORE_DISK_WEIGHT="0.10",
        LOG_LEVEL="WARNING",
        ADDRESS="::1",
        TLS_MODE="disabled",
    )
    assert settings.grpc.port == 0
    assert settings.grpc.address == "::1"
    assert settings.aggregation.aggregation_interval_ns == 90 * MINUTE_NANOS
    assert settings.storage.min_free_bytes == 4 * 2**30
    assert settings.storage.data_dir == Path("var")
    assert settings.score.weights().disk_mb == Decimal("0.10")
    assert settings.log.level == "warning"
    assert settings.tls.mode == "disabled"
    assert settings.sources["UNKEY_BILLAGED_PORT"] == "environment"
    assert settings.sources["UNKEY_BILLAGED_HTTP_PORT"] == "default"


def test_fold_rules_follow_the_settings() -> None:
    rules = load(
        GAP_THRESHOLD="20m", LEDGER_BUCKET="5m", VANISH_AFTER="2h", MAX_CORES="64", MAX_GIGABYTES_PER_SECOND="100"
    ).aggregation.fold_rules()
    assert rules == FoldRules(20 * MINUTE_NANOS, 5 * MINUTE_NANOS, 2 * HOUR_NANOS, 64, 100)


def test_gap_thresholds_of_customers_have_one_form() -> None:
    settings = load(GAP_THRESHOLDS="spiffe://a/b=90m, acme=30m,Acme = 8h").aggregation
    assert settings.gap_thresholds == (
        ("Acme", 8 * HOUR_NANOS),
        ("acme", 30 * MINUTE_NANOS),
        ("spiffe://a/b", 90 * MINUTE_NANOS),
    )
    assert settings.fold_rules() == FoldRules(gap_thresholds=settings.gap_thresholds)
    # As the fold looks them up: sorted, whatever the order that they are given in.
    turned = type(settings)(gap_thresholds=settings.gap_thresholds[::-1])
    assert turned.fold_rules() == settings.fold_rules()
    many = load(GAP_THRESHOLDS=",".join(f"customer-{number}=1s" for number in range(1_000)))
    assert len(many.aggregation.fold_rules().gap_thresholds) == 1_000


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("PORT", "99999", "99999 is out of range; it must be 0 to 65535"),
        ("PORT", "-1", "-1 is out of range; it must be 0 to 65535"),
        ("PORT", "abc", "'abc' is not a whole number; it must be 0 to 65535"),
        ("PORT", " 8081", "' 8081' is not a whole number; it must be 0 to 65535"),
        ("PORT", "8_081", "'8_081' is not a whole number; it must be 0 to 65535"),
        ("PORT", "٨٠٨١", "'٨٠٨١' is not a whole number; it must be 0 to 65535"),
        ("PORT", "9" * 5000, f"'{'9' * 60}…' is too long; it must be 0 to 65535"),
        ("PORT", "", "is empty; unset it for the default 8081"),
        ("PORT", " \t", "is empty; unset it for the default 8081"),
        ("TLS_CA_FILE", "", "is empty; unset it"),
        ("HTTP_TOKEN", "", "is empty; unset it"),
        ("AGGREGATION_INTERVAL", "60", "'60' has no unit; did you mean 60s? It must be 1s to 24h"),
        ("AGGREGATION_INTERVAL", "0", "0s is out of range; it must be 1s to 24h"),
        ("AGGREGATION_INTERVAL", "999ms", "999ms is out of range; it must be 1s to 24h"),
        ("AGGREGATION_INTERVAL", "24h1ns", "24h0.000000001s is out of range; it must be 1s to 24h"),
        (
            "AGGREGATION_INTERVAL",
            "1 minute",
            "'1 minute' is not a duration; write it like 60s, 15m, 1h30m or 250ms",
        ),
        ("LEDGER_BUCKET", "7m", "7m does not divide 1h; it must be 1m to 1h, a divisor of 1h"),
        ("LEDGER_BUCKET", "2h", "2h is out of range; it must be 1m to 1h, a divisor of 1h"),
        ("GAP_THRESHOLD", "8h1s", "8h1s is out of range; it must be 1s to 8h"),
        ("GAP_THRESHOLDS", "acme", "'acme' is no entry; write it like acme=30m, with commas between"),
        ("GAP_THRESHOLDS", "acme=30m,", "'' is no entry; write it like acme=30m, with commas between"),
        ("GAP_THRESHOLDS", "a=1m,b=9h", "'b=9h': 9h is out of range; it must be 1s to 8h"),
        ("GAP_THRESHOLDS", "a=1m,b=20", "'b=20': '20' has no unit; did you mean 20s? It must be 1s to 8h"),
        ("GAP_THRESHOLDS", "a=1m,a=1m", "'a=1m' is the second for 'a'; name each customer once"),
        (
            "GAP_THRESHOLDS",
            "=30m",
            "'=30m' names no customer: the id must not be empty; write it like acme=30m",
        ),
        (
            "GAP_THRESHOLDS",
            "a=b=30m",
            "'a=b=30m' names no customer: the id may hold only letters, digits and ._:/@-; write it like acme=30m",
        ),
        (
            "GAP_THRESHOLDS",
            f"a=1m,{'a' * 256}=30m",
            f"'{'a' * 60}…' names no customer: the id must not be longer than 255 bytes; write it like acme=30m",
        ),
        (
            "GAP_THRESHOLDS",
            ",".join(f"customer-{number}=1m" for number in range(1_001)),
            "names 1,001 customers; it takes 1 to 1,000",
        ),
        ("MIN_FREE_BYTES", "256MB", "'256MB' is not a size; write it like 1048576, 512KiB, 256MiB or 4GiB"),
        ("MAX_MESSAGE_BYTES", "1GiB", "1GiB is out of range; it must be 4KiB to 64MiB"),
        ("TLS_MODE", "plaintext", "'plaintext' is none of the choices; it must be spiffe, file or disabled"),
        ("STORE", "postgres", "'postgres' is none of the choices; it must be sqlite or memory"),
        (
            "SCORE_CPU_WEIGHT",
            "NaN",
            "'NaN' is not a decimal number; write it like 0.5 (up to 12 places), 0 to 1000000",
        ),
        ("SCORE_CPU_WEIGHT", "-0.5", "-0.5 is out of range; it must be 0 to 1000000"),
        (
            "ADDRESS",
            "127.0.0.1:8081",
            "'127.0.0.1:8081' is no address; it must be an IP address or a host name, without port",
        ),
        ("ADDRESS", "256.0.0.1", "'256.0.0.1' is no address; it must be an IP address or a host name, without port"),
        ("ADDRESS", "a\nb", "'a\\nb' is no address; it must be an IP address or a host name, without port"),
    ],
)
def test_a_bad_value_is_one_line_that_names_it(name: str, text: str, complaint: str) -> None:
    assert problems(**{name: text}) == [f"UNKEY_BILLAGED_{name}: {complaint}"]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("UNKEY_BILLAGED_PROT", "unknown setting; did you mean UNKEY_BILLAGED_PORT?"),
        ("UNKEY_BILLAGED_AGGREGATION_INTERVALL", "unknown setting; did you mean UNKEY_BILLAGED_AGGREGATION_INTERVAL?"),
        ("UNKEY_BILLAGED_DATABASE", "unknown setting; did you mean UNKEY_BILLAGED_DATABASE_URL?"),
        # On Linux these would be silently ignored, though somebody meant them.
        ("unkey_billaged_port", "unknown setting; did you mean UNKEY_BILLAGED_PORT?"),
        ("UNKEY_BILLAGED_XYZZY", "unknown setting; 'billaged config show' lists the names"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(name: str, complaint: str) -> None:
    with pytest.raises(SettingError) as caught:
        Settings.load({name: "hunter2"})
    assert str(caught.value) == f"{name}: {complaint}"  # and never its value, which may be a secret


def test_names_of_others_are_none_of_ours() -> None:
    assert Settings.load({"PATH": "/bin", "UNKEY_METALD_PORT": "abc", "UNKEY_BILLAGED": "1"}) == Settings()


def test_all_problems_are_told_at_once() -> None:
    assert [line.split(":")[0] for line in problems(PORT="x", HTTP_PORT="y", MAX_CORES="", NONSENSE="1")] == [
        "UNKEY_BILLAGED_PORT",
        "UNKEY_BILLAGED_HTTP_PORT",
        "UNKEY_BILLAGED_MAX_CORES",
        "UNKEY_BILLAGED_NONSENSE",
    ]


def test_mode_file_needs_certificate_and_key() -> None:
    certificate = "UNKEY_BILLAGED_TLS_CERT_FILE: must be set when UNKEY_BILLAGED_TLS_MODE is file"
    key = "UNKEY_BILLAGED_TLS_KEY_FILE: must be set when UNKEY_BILLAGED_TLS_MODE is file"
    assert problems(TLS_MODE="file") == [certificate, key]
    assert problems(TLS_MODE="file", TLS_CERT_FILE="/c.pem") == [key]
    tls = load(TLS_MODE="file", TLS_CERT_FILE="/c.pem", TLS_KEY_FILE="/k.pem").tls
    assert (tls.mode, tls.cert_file, tls.key_file) == ("file", Path("/c.pem"), Path("/k.pem"))


def test_both_servers_on_one_port_are_refused() -> None:
    complaint = "UNKEY_BILLAGED_HTTP_PORT: 8081 is the port of gRPC (UNKEY_BILLAGED_PORT) on the same address"
    assert problems(HTTP_PORT="8081") == [f"{complaint}; choose another"]  # 0.0.0.0 includes 127.0.0.1
    assert load(HTTP_PORT="8081", ADDRESS="10.0.0.1").http.port == 8081
    assert load(PORT="0", HTTP_PORT="0").http.port == 0  # any two free ports


def test_the_queue_must_hold_a_largest_message() -> None:
    assert problems(QUEUE_MAX_BYTES="1MiB") == [
        "UNKEY_BILLAGED_QUEUE_MAX_BYTES: 1048576 bytes do not hold one largest message"
        " (UNKEY_BILLAGED_MAX_MESSAGE_BYTES, 4194304 bytes)"
    ]
    assert load(QUEUE_MAX_BYTES="1MiB", MAX_MESSAGE_BYTES="1MiB").intake.queue_max_bytes == 2**20


def test_names_that_do_nothing_yet_are_accepted_and_listed() -> None:
    settings = load(**dict.fromkeys(COMING, "1"), VANISH_AFTER="2h")
    assert set(settings.not_yet) == {PREFIX + name for name in COMING}
    assert Settings().not_yet == ()


def test_a_secret_is_kept_nowhere() -> None:
    settings = load(HTTP_TOKEN="hunter2-hunter2-", DATABASE_URL="postgresql://me:hunter2@db/billing")
    assert "hunter2" not in repr(settings)
    assert [(line.name, line.value) for line in settings.lines() if line.secret] == [
        ("UNKEY_BILLAGED_HTTP_TOKEN", "***"),
        ("UNKEY_BILLAGED_DATABASE_URL", "***"),
    ]


def test_sections_are_frozen_and_check_values_given_in_code() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.grpc.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="99999 is out of range"):
        type(settings.grpc)(port=99999)
    with pytest.raises(ValidationError, match="Extra inputs"):
        type(settings.grpc).model_validate({"prot": 1})


def test_every_setting_is_described_and_its_name_is_its_own() -> None:
    lines = list(Settings().lines())
    names = [line.name for line in lines] + [PREFIX + name for name in COMING]
    assert len(names) == len(set(names))
    assert [line.name for line in lines if not line.description.endswith(".")] == []


@given(st.integers(0, 2**62))
def test_what_a_kind_writes_it_reads_again(value: int) -> None:
    # 'config show --format env' is only worth its name if it can be fed back.
    for kind in (Whole(0, 2**62), Size(0, 2**62), Duration("0s", "2562047h")):
        assert kind.read(kind.write(value)) == value
    weight = Decimal(value).scaleb(-12)
    fraction = Fraction(Decimal(0), Decimal(10_000_000))
    assert fraction.read(fraction.write(weight)) == weight


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = ROOT / "scripts" / "generate_configuration_docs.py"
    return subprocess.run([sys.executable, str(script), *arguments], capture_output=True, text=True, cwd=ROOT)


def test_the_page_is_fresh() -> None:
    outcome = generate("--check")
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_a_stale_page_is_noticed_and_renewed(tmp_path: Path) -> None:
    page = tmp_path / "configuration.md"
    page.write_text(PAGE.read_text().replace("`8081`", "`8080`"))
    outcome = generate("--check", "--page", str(page))
    assert (outcome.returncode, outcome.stderr) == (
        1,
        "configuration.md is stale: run python scripts/generate_configuration_docs.py\n",
    )
    assert generate("--page", str(page)).returncode == 0
    assert page.read_text() == PAGE.read_text()


# --- other names -----------------------------------------------------------------


def test_a_name_of_the_dashboards_is_taken_as_well() -> None:
    settings = Settings.load({"BILLAGED_OTEL_HIGH_CARDINALITY_ENABLED": "true", "BILLAGED_OTEL_PROMETHEUS_PORT": "0"})
    assert (settings.metrics.high_cardinality, settings.metrics.port) == (True, 0)
    assert settings.sources["UNKEY_BILLAGED_OTEL_PROMETHEUS_PORT"] == "environment"
    # The client's own are none of ours.
    assert Settings.load({"BILLAGED_ADDRESS": "billing:8081"}) == Settings()


def test_each_name_has_its_other_one() -> None:
    names = [line.name for line in Settings().lines()] + [PREFIX + name for name in COMING]
    for name in names:
        expected = {name.removeprefix("UNKEY_")} if name.startswith(f"{PREFIX}OTEL_") else set()
        if name == f"{PREFIX}OTEL_ENABLED":
            expected.add(f"{PREFIX}ENABLE_OTEL")
        assert set(other_names(name)) == expected
        for other in expected:
            assert set(under_own_names({other: "1"}).texts) == {name}


def test_names_that_agree_are_one_setting_and_others_are_refused() -> None:
    both = {"BILLAGED_OTEL_PROMETHEUS_PORT": "9999", "UNKEY_BILLAGED_OTEL_PROMETHEUS_PORT": "9999"}
    assert Settings.load(both).metrics.port == 9999
    with pytest.raises(SettingError) as caught:
        Settings.load(both | {"BILLAGED_OTEL_PROMETHEUS_PORT": "1"})
    assert str(caught.value) == (
        "BILLAGED_OTEL_PROMETHEUS_PORT and UNKEY_BILLAGED_OTEL_PROMETHEUS_PORT: set to different values;"
        " unset one of them"
    )


def test_a_problem_names_the_variable_as_it_was_given() -> None:
    with pytest.raises(SettingError) as caught:
        Settings.load({"BILLAGED_OTEL_PROMETHEUS_PORT": "x", "BILLAGED_OTEL_PROMETEUS_PORT": "1"})
    assert str(caught.value).splitlines() == [
        "BILLAGED_OTEL_PROMETHEUS_PORT: 'x' is not a whole number; it must be 0 to 65535",
        "BILLAGED_OTEL_PROMETEUS_PORT: unknown setting; did you mean UNKEY_BILLAGED_OTEL_PROMETHEUS_PORT?",
    ]
    with pytest.raises(
        SettingError, match=r"^BILLAGED_OTEL_PROMETHEUS_ENABLED: is empty; unset it for the default true$"
    ):
        Settings.load({"BILLAGED_OTEL_PROMETHEUS_ENABLED": " "})


def test_the_metrics_have_a_port_of_their_own() -> None:
    assert (Settings().metrics.port, Settings().metrics.address) == (9465, "127.0.0.1")
    assert (Settings().metrics.enabled, Settings().metrics.high_cardinality) == (True, False)
    assert problems(OTEL_PROMETHEUS_PORT="8082") == [
        "UNKEY_BILLAGED_OTEL_PROMETHEUS_PORT: 8082 is the port of HTTP (UNKEY_BILLAGED_HTTP_PORT) on the same address;"
        " choose another"
    ]
    assert load(OTEL_PROMETHEUS_PORT="8082", OTEL_PROMETHEUS_ENABLED="no").metrics.port == 8082

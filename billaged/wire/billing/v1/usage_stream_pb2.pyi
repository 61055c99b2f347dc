from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchSummariesRequest(_message.Message):
    __slots__ = ("customer_ids", "vm_ids")
    CUSTOMER_IDS_FIELD_NUMBER: _ClassVar[int]
    VM_IDS_FIELD_NUMBER: _ClassVar[int]
    customer_ids: _containers.RepeatedScalarFieldContainer[str]
    vm_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, customer_ids: _Optional[_Iterable[str]] = ..., vm_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class UsageSummary(_message.Message):
    __slots__ = ("vm_id", "customer_id", "window_start_nanos", "window_end_nanos", "window", "session", "session_start_nanos", "session_end_nanos", "final", "replayed", "session_number")
    VM_ID_FIELD_NUMBER: _ClassVar[int]
    CUSTOMER_ID_FIELD_NUMBER: _ClassVar[int]
    WINDOW_START_NANOS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_END_NANOS_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_START_NANOS_FIELD_NUMBER: _ClassVar[int]
    SESSION_END_NANOS_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    SESSION_NUMBER_FIELD_NUMBER: _ClassVar[int]
    vm_id: str
    customer_id: str
    window_start_nanos: int
    window_end_nanos: int
    window: UsageTotals
    session: UsageTotals
    session_start_nanos: int
    session_end_nanos: int
    final: bool
    replayed: bool
    session_number: int
    def __init__(self, vm_id: _Optional[str] = ..., customer_id: _Optional[str] = ..., window_start_nanos: _Optional[int] = ..., window_end_nanos: _Optional[int] = ..., window: _Optional[_Union[UsageTotals, _Mapping]] = ..., session: _Optional[_Union[UsageTotals, _Mapping]] = ..., session_start_nanos: _Optional[int] = ..., session_end_nanos: _Optional[int] = ..., final: _Optional[bool] = ..., replayed: _Optional[bool] = ..., session_number: _Optional[int] = ...) -> None: ...

class UsageTotals(_message.Message):
    __slots__ = ("cpu_time_nanos", "memory_byte_seconds", "memory_mean_bytes", "memory_peak_bytes", "disk_read_bytes", "disk_write_bytes", "network_rx_bytes", "network_tx_bytes", "measured_nanos", "gap_nanos", "samples", "resource_score")
    CPU_TIME_NANOS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_MEAN_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_PEAK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_READ_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_WRITE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_RX_BYTES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_TX_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEASURED_NANOS_FIELD_NUMBER: _ClassVar[int]
    GAP_NANOS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    RESOURCE_SCORE_FIELD_NUMBER: _ClassVar[int]
    cpu_time_nanos: int
    memory_byte_seconds: float
    memory_mean_bytes: int
    memory_peak_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    network_rx_bytes: int
    network_tx_bytes: int
    measured_nanos: int
    gap_nanos: int
    samples: int
    resource_score: str
    def __init__(self, cpu_time_nanos: _Optional[int] = ..., memory_byte_seconds: _Optional[float] = ..., memory_mean_bytes: _Optional[int] = ..., memory_peak_bytes: _Optional[int] = ..., disk_read_bytes: _Optional[int] = ..., disk_write_bytes: _Optional[int] = ..., network_rx_bytes: _Optional[int] = ..., network_tx_bytes: _Optional[int] = ..., measured_nanos: _Optional[int] = ..., gap_nanos: _Optional[int] = ..., samples: _Optional[int] = ..., resource_score: _Optional[str] = ...) -> None: ...

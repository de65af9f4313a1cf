"""The configuration of sessiond: options, where they come from, and how they are refused."""

from sessiond.config.files import find_file
from sessiond.config.load import load, with_value
from sessiond.config.merging import merge_rules
from sessiond.config.options import (
    RUNTIME_OPTIONS,
    ApiOptions,
    Configuration,
    DebugOptions,
    EmbeddedOptions,
    JournalOptions,
    MergeOptions,
    PerformanceOptions,
    PersistenceOptions,
    RedisOptions,
    RetentionOptions,
    SecurityOptions,
    SyncOptions,
)
from sessiond.config.refusals import shown_address
from sessiond.config.table import OptionRow, displayed, get, option_table

__all__ = [
    "RUNTIME_OPTIONS",
    "ApiOptions",
    "Configuration",
    "DebugOptions",
    "EmbeddedOptions",
    "JournalOptions",
    "MergeOptions",
    "OptionRow",
    "PerformanceOptions",
    "PersistenceOptions",
    "RedisOptions",
    "RetentionOptions",
    "SecurityOptions",
    "SyncOptions",
    "displayed",
    "find_file",
    "get",
    "load",
    "merge_rules",
    "option_table",
    "shown_address",
    "with_value",
]

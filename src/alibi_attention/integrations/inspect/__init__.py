"""What a model's configuration says of its linear biases, and what follows from it."""

from alibi_attention.integrations.inspect.description import AlibiModel, NotAlibi, Trap
from alibi_attention.integrations.inspect.families import describe
from alibi_attention.integrations.inspect.report import Report, report
from alibi_attention.integrations.inspect.source import read_config

__all__ = ["AlibiModel", "NotAlibi", "Report", "Trap", "describe", "read_config", "report"]

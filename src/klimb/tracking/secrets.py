"""Messages of trackers without what nobody else may read: they name addresses, and some of these have passwords."""

from __future__ import annotations

import os
import re

VARIABLES = (
    *("WANDB_API_KEY", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
    *("DATABRICKS_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN"),
)
"""Environment variables whose values are secret."""
_NAME = r"(?:password|passwd|pass|pwd|token|secret|api_?key|credential)"
_VALUE = r"""(?:'[^']*'|"[^"]*"|[^&\s'",;})]+)"""


def without_secrets(text: str) -> str:
    """The same text, with … for keys and passwords. text: of an error."""
    for secret in (os.environ.get(name) for name in VARIABLES):
        if secret:
            text = text.replace(secret, "…")
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if "@" in address:
        text = text.replace(address, "…")
    # Up to the last @ of a word: passwords may hold slashes, and an @ too.
    text = re.sub(r"://\S*@", "://…@", text)
    text = re.sub(rf"(?i)({_NAME}\w*['\"]?\s*(?:=|:|%3D)\s*){_VALUE}", r"\1…", text)
    return re.sub(r"(?i)\b(bearer|basic)\s+\S+", r"\1 …", text)

"""Messages of trackers without what nobody else may read: they name addresses, and some of these have passwords."""

from __future__ import annotations

import os
import re

VARIABLES = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN")
"""Environment variables whose values are secret."""


def without_secrets(text: str) -> str:
    """The same text, with … for keys and passwords. text: of an error."""
    for name in VARIABLES:
        secret = os.environ.get(name)
        if secret:
            text = text.replace(secret, "…")
    text = re.sub(r"://[^/\s'\"]*@", "://…@", text)
    return re.sub(r"(?i)((?:password|passwd|pwd|token|secret|api_?key)=)[^&\s'\"]+", r"\1…", text)

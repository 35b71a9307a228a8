"""Settings of the agents of a laboratory, and the file that they are written to."""

from __future__ import annotations

import json
from collections.abc import Mapping

Settings = Mapping[str, Mapping[str, object]]
"""As in the configuration file: section, key, value."""


def merged(*many: Settings) -> dict[str, dict[str, object]]:
    """All of them; what comes later wins."""
    result: dict[str, dict[str, object]] = {}
    for settings in many:
        for section, keys in settings.items():
            result.setdefault(section, {}).update(keys)
    return result


def toml(settings: Settings) -> str:
    """As the configuration file has them."""
    # A JSON string, number or boolean is one in TOML, too.
    sections = (
        "\n".join([f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in keys.items())])
        for section, keys in settings.items()
    )
    return "\n\n".join(sections) + "\n"

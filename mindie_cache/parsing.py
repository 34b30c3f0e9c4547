"""YAML and JSON to plain values, refusing a key that comes twice: both formats would silently take the last one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from mindie_cache.errors import ConfigError


def parse_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ConfigError: nothing is in it, or a key comes twice.
        ValueError: it is not valid YAML.
    """
    import yaml  # not needed by those who configure in code

    class Loader(yaml.SafeLoader):
        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)  # before `<<` is merged, which may repeat a key
            _once(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
            return node

    try:
        value = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    return _something(value)


def parse_json(text: str) -> Any:
    """The value of a JSON document.

    Raises:
        ConfigError: nothing is in it, or a key comes twice.
        ValueError: it is not valid JSON.
    """

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _once(key for key, _ in pairs)
        return dict(pairs)

    return _something(json.loads(text, object_pairs_hook=mapping) if text.strip() else None)


def _once(keys: Iterable[str]) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise ConfigError(f"key {key!r} is given twice. Keep one of them.")
        seen.add(key)


def _something(value: Any) -> Any:
    if value is None:
        raise ConfigError("the file is empty.")
    return value

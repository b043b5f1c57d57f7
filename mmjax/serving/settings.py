"""What a server is told: the keys of `configs/serve.yaml`, which are those of the command line too.

One closed struct, checked as a training config is: unknown keys, wrong types and impossible values are errors, all of
them at once, each with its file and line or its option.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from mmjax.config import Count, NonNegative, Positive, Section, Text, WithinOne
from mmjax.config_structure import build_struct
from mmjax.config_tree import merge, read_tree, tree_of
from mmjax.config_yaml import Node
from mmjax.errors import ConfigError


class Settings(Section, frozen=True):
    """How to serve, and what."""

    models: Annotated[
        Annotated[tuple[Text, ...], Meta(min_length=1)] | None,
        Meta(description="Registered models, NAME[:VERSION|@ALIAS], or folders of bundles; without, all registered."),
    ] = None
    registry: Annotated[Text, Meta(description="Where models are registered.")] = "registry"
    host: Annotated[Text, Meta(description="Address to listen on.")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="Port to listen on; 0 takes any.")] = 8000
    queue: Annotated[Count, Meta(description="Requests in the server at a time; more are answered with 503.")] = 256
    max_batch: Annotated[int, Meta(ge=1, le=1024, description="Rows that go through a model together at most.")] = 1024
    deadline_ms: Annotated[
        Count, Meta(description="Time for waiting and computing where a request sets no X-Request-Timeout-Ms.")
    ] = 30_000
    drain_delay_s: Annotated[
        NonNegative,
        Meta(description="After SIGTERM requests are taken so long still, while /health/ready says 503."),
    ] = 0.0
    watch_s: Annotated[
        Positive | None,
        Meta(description="Look so often whether an alias or a plain NAME means another version, and serve that."),
    ] = None
    abstain_below: Annotated[
        WithinOne | None,
        Meta(
            description="Classifiers tell rows whose largest probability is below this as `abstained`; else as trained."
        ),
    ] = None
    api_keys: Annotated[Text | None, Meta(description="File of hashed API keys; without one everybody may ask.")] = None
    rate: Annotated[Positive | None, Meta(description="Requests a second of one API key, or of one address.")] = None
    burst: Annotated[Count, Meta(description="Requests of one key that may come at once where `rate` bounds them.")] = (
        20
    )
    log: Annotated[
        Literal["requests", "none"], Meta(description="`requests` writes a JSON line for each to standard error.")
    ] = "requests"


def load_settings(path: str | None, options: Mapping[str, Any]) -> Settings:
    """Return the Settings in the YAML file `path`, with the options of the command line that are not None over them.

    ConfigError lists everything that is wrong, each with its file and line or its option.
    """
    problems: list[str] = []
    tree = read_tree(path, problems) if path is not None else Node({}, "command line")
    given = {key: value for key, value in options.items() if value is not None}
    overlay = {key: tree_of(value, option(key), key, problems) for key, value in given.items()}
    settings = build_struct(Settings, merge(tree, Node(overlay, "command line")), problems)
    if problems or settings is None:
        doubled = {f"{option(key)}: {key}: ": f"{option(key)}: " for key in given}
        raise ConfigError([_without(problem, doubled) for problem in problems])
    return settings


def _without(problem: str, doubled: Mapping[str, str]) -> str:
    """Return a problem whose option is not told twice, as option and as key."""
    start = next((start for start in doubled if problem.startswith(start)), "")
    return doubled.get(start, "") + problem.removeprefix(start)


def option(key: str) -> str:
    """Return the option of the command line that sets a key.

    >>> option("models"), option("drain_delay_s"), option("api_keys")
    ('--model', '--drain-delay', '--api-keys')
    """
    return {"models": "--model"}.get(key, "--" + key.removesuffix("_s").replace("_", "-"))


def help_of(key: str) -> str:
    """Return what a key does, for the help of its option, with its default."""
    field = next(field for field in msgspec.structs.fields(Settings) if field.name == key)
    (meta,) = (found for found in field.type.__metadata__ if isinstance(found, Meta) and found.description)
    default = "" if field.required or field.default is None else f"  [default: {field.default}]"
    return f"{meta.description}{default}"

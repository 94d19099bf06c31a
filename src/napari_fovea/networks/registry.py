"""Networks by name, each beside the configuration that rebuilds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from napari_fovea.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class NetworkConfig(BaseModel):
    """What every network is told: how many channels go in, how many classes out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    channels: int = Field(3, ge=1, le=4, title="Image channels")
    classes: int = Field(2, ge=2, le=256, title="Classes, background included")


Network = TypeVar("Network", bound=type[nn.Module])


class _Entry(NamedTuple):
    network: type[nn.Module]
    config: type[NetworkConfig]
    system: str
    configs: dict[str, dict[str, object]]


_NETWORKS: dict[str, _Entry] = {}


def register(
    name: str,
    config: type[NetworkConfig],
    *,
    system: str,
    configs: dict[str, dict[str, object]] | None = None,
) -> Callable[[Network], Network]:
    """Make a network buildable by ``name`` from its configuration.

    Parameters
    ----------
    name : str
        Name in checkpoints and on the command line.
    config : type
        The configuration's class.
    system : str
        Which of the five systems it belongs to, ``"S0"`` to ``"S4"``.
    configs : dict, optional
        Named settings, such as ``"paper"`` and ``"small"``.
    """

    def add(network: Network) -> Network:
        _NETWORKS[name] = _Entry(network, config, system, configs or {})
        return network

    return add


def network_names() -> tuple[str, ...]:
    """Names that `build` takes."""
    return tuple(sorted(_NETWORKS))


def system_of(name: str, settings: Mapping[str, Any] | None = None) -> str:
    """System of a registered network, ``"S0"`` to ``"S4"``.

    That of a network around another is the inner one's, which its settings name.
    """
    for inner in ("member", "base"):
        if settings and inner in settings:
            return system_of(settings[inner], settings.get("settings"))
    return _entry(name).system


def config_of(name: str) -> type[NetworkConfig]:
    """Kind of settings that a registered network has."""
    return _entry(name).config


def name_of(network: nn.Module) -> str:
    """Name under which a network's class was registered."""
    for name, entry in _NETWORKS.items():
        if type(network) is entry.network:
            return name
    raise ModelError(
        f"{type(network).__name__} is not a registered network; expected one of "
        f"{', '.join(network_names())}: add @register to its class."
    )


def validate(name: str, config: dict[str, Any]) -> NetworkConfig:
    """Check the settings of a network and fill in what they leave out.

    Parameters
    ----------
    name : str
        A registered name.
    config : dict
        Its settings.

    Raises
    ------
    ModelError
        If the name is unknown or a setting is out of range.
    """
    entry = _entry(name)
    try:
        return entry.config.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "configuration"
        raise ModelError(
            f"Network {name!r} cannot be built: {where}: {first['msg']}."
        ) from error


def build(name: str, config: dict[str, Any] | NetworkConfig) -> nn.Module:
    """Build a network with fresh weights; see `validate`."""
    network = _entry(name).network
    return network(validate(name, config) if isinstance(config, dict) else config)


def named_configs(name: str) -> dict[str, dict[str, object]]:
    """Named settings of a network, such as ``"paper"`` and ``"small"``."""
    return dict(_entry(name).configs)


def _entry(name: str) -> _Entry:
    if name not in _NETWORKS:
        raise ModelError(
            f"There is no network {name!r}; expected one of "
            f"{', '.join(network_names())}."
        )
    return _NETWORKS[name]

"""Learning rates that follow from the region (`auto`), as numbers."""

from __future__ import annotations

from striate.artifacts import Region
from striate.config import AUTO, RunConfig
from striate.pruning.removal import removal_of


def follows_from_region(config: RunConfig) -> bool:
    """Return whether a learning rate that is used has no number before the region is known."""
    return AUTO in (config.train.lr, config.heal.lr if config.heals else None)


def settled(config: RunConfig, region: Region) -> RunConfig:
    """Return the config with numbers for the learning rates of tuning and healing, where `region` trains."""
    if not follows_from_region(config):
        return config
    train = config.train.settled(len(region), _tuned_layers(config, region))
    heal = config.heal.model_copy(update={"lr": config.heal.rate(train)}) if config.heal.lr == AUTO else config.heal
    return config.model_copy(update={"train": train, "heal": heal})


def told_rates(config: RunConfig, region: Region) -> str:
    """Return in words which learning rates `auto` gives; nothing where it gives none."""
    found, told = settled(config, region), []
    if config.train.lr == AUTO and region.layers:
        opened = min(len(region), config.train.resample.active or len(region))
        told.append(f"train.lr auto is {found.train.lr:g}, of {opened} of {_tuned_layers(config, region)} layers")
    if config.heals and config.heal.lr == AUTO:
        told.append(f"heal.lr auto is {found.heal.lr:g}")
    return "; ".join(told)


def _tuned_layers(config: RunConfig, region: Region) -> int:
    """Return how many decoder layers the model has that is tuned: without those that go before."""
    return region.num_layers - (removal_of(config.prune, region) if config.prune.first else 0)

"""Places on several machines that share a file system: those of a Ray cluster."""

from __future__ import annotations

import importlib
from concurrent.futures import Future
from typing import Any

from striate.errors import ConfigError
from striate.pipeline.sweeps.placement import CountedPlaces, OneByOne, Work


class RayPlacement(CountedPlaces, OneByOne):
    """Places of a Ray cluster: `per_device` on each GPU that it has, or on each CPU where it has none."""

    def __init__(self, address: str, per_device: int) -> None:
        """Join the cluster at `address`; "auto" is the one that `ray start` began here.

        Raises:
            ConfigError: Ray is not installed, or there is no cluster.
        """
        self._ray = required("ray", "ray")
        try:
            self._ray.init(address=address, ignore_reinit_error=True, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"there is no Ray cluster at {address!r}: {str(error).splitlines()[0]}",
                "the address of a cluster, or auto for the one that this machine is part of",
                "start one: `ray start --head`, and `ray start --address=HOST:6379` on the others",
            ) from error
        resources = self._ray.cluster_resources()
        kind = "num_gpus" if resources.get("GPU") else "num_cpus"
        self._options = {kind: 1 / per_device, "max_retries": 0, **({} if kind == "num_cpus" else {"num_cpus": 0})}
        super().__init__(int(resources.get("GPU") or resources.get("CPU", 1)) * per_device)

    def submit(self, work: Work, *arguments: Any) -> Future[Any]:
        """Begin `work` in a free place; Ray chooses the machine and the GPU."""
        return self.take(self._ray.remote(**self._options)(work).remote(*arguments).future())

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


def required(package: str, extra: str) -> Any:
    """Return the module of a `package` that an extra of striate brings; raise ConfigError where it is not installed."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{package} is not installed", f"striate with its extra {extra!r}", f"pip install 'striate[{extra}]'"
        ) from error

"""The whole flow, run folder to run folder."""

from striate.pipeline.flow import Flow

__all__ = ["Flow"]

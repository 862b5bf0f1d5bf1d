"""Closed forms by which kept layers stand in for the layers removed behind them; the checkpoint stays a stock one."""

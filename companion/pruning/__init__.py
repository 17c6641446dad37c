"""Pruning: what a sparse network costs."""

from __future__ import annotations

from companion.pruning.cost import Cost, Latency, cost, latencies, latency

__all__ = ["Cost", "Latency", "cost", "latencies", "latency"]

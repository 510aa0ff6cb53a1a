"""The gateway: API keys to tenants, names to adapters, requests to replicas."""

__version__ = "0.1.0"

"""redis-proxy: one endpoint in front of a Redis or Valkey Cluster."""

__version__ = "0.1.0"
